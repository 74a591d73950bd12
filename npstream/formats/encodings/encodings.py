"""The encodings of MDS columns: what the bytes of one value mean.

An encoding is named by the string that stands in ``index.json``; `parse` turns that into an
`Encoding`. Columns of a dtype that the format lacks have two names: the one in the index, of the
numbers that store them, and one that says their dtype, such as ``"bool"``, which `column_type`
turns into an `Encoding`. The index records the dtype elsewhere; `with_dtype` puts both together.

Bodies come from files that nobody vouches for: a decoder takes any bytes and either returns a
value or raises a ValueError, and allocates no more than a small multiple of them.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from npstream._core import array_like as foreign
from npstream._core.arguments import quantity
from npstream._core.dtypes import KNOWN, ML_DTYPES, dtype_of, is_known, storage
from npstream._core.typing import Body
from npstream.formats.encodings import arrays, images, objects
from npstream.formats.encodings.arrays import DTYPE_CODES, DTYPES, parse_array_head

__all__ = [
    "DTYPE_CODES",
    "Encoding",
    "Kind",
    "column_type",
    "infer",
    "is_unsafe",
    "parse",
    "parse_array_head",
    "register_encoding",
    "type_of_array",
    "view_as",
    "with_dtype",
]

Kind: TypeAlias = Literal[
    "fixed", "str", "bytes", "image", "ndarray", "int_text", "float_text", "object"
]

_OBJECT = np.dtype(object)

_MAX_SIZE = (1 << 32) - 1
"""The offsets of a shard are uint32."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the values of a column are stored, and how a batch holds them.

    Attributes
    ----------
    name : str
        What the column is called in ``columns=``, such as ``"ndarray:bool:64"``.
    stored : str
        What it is called in ``index.json``, such as ``"ndarray:uint8:64"``; most have one name.
    size : int or None
        The bytes of every value, or None where they vary.
    kind : str
        How a batch holds the column: ``"fixed"``, an array of `dtype` and `shape`; ``"str"``,
        ``"bytes"`` and ``"image"``, the bodies as they are; ``"ndarray"``, arrays of any length;
        ``"int_text"`` and ``"float_text"``, the numbers that the texts say; ``"object"``, decoded
        values.
    dtype : dtype
        The dtype of an element; object for arrays that each name their own.
    shape : tuple of int or None
        The shape of one value, or None where it varies.
    decode : callable
        Turns a body into a sample's value, fresh and writable, or raises a ValueError.
    headless : bool
        Whether the body of an ``"ndarray"`` is its values only, with no dtype code and no shape.
    """

    name: str
    size: int | None
    kind: Kind
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    encoder: Callable[[Any], bytes] = field(repr=False, compare=False)
    decode: Callable[[Body], Any] = field(repr=False, compare=False)
    headless: bool = False
    stored: str = ""

    def __post_init__(self) -> None:
        if not self.stored:
            object.__setattr__(self, "stored", self.name)

    @property
    def recorded(self) -> str:
        """The name of the dtype that the index records besides; empty if it does not."""
        return "" if self.stored == self.name else self.dtype.name

    def encode(self, value: Any) -> bytes:
        """Return the body of a value; `bytes` are taken to be a body already."""
        body = value if isinstance(value, bytes) else self.encoder(value)
        if self.size is not None:
            arrays.check_length(body, self.size, self.name)
        return body

    def encode_value(self, value: Any) -> bytes:
        """Return the body of a value; `bytes` are a value of bytes or, as UTF-8, of text only.

        So are the values of a column encoded whose encoding nobody chose.
        """
        if not isinstance(value, bytes):
            return self.encode(value)
        if self.kind == "str":
            self.decode(value)
        return value if self.kind in ("str", "bytes") else self.encoder(value)


def parse(name: str) -> Encoding:
    """Return the encoding of a column by its name in ``index.json``.

    Examples
    --------
    >>> parse("ndarray:uint16:2,3").size
    12
    """
    known = _KNOWN.get(name)
    if known is not None:
        return known
    if name.startswith("ndarray:"):
        return _parse_array(name)
    import difflib

    # Names that only look alike, such as those of other kinds of text, would mislead.
    near = _OTHER_NAMES.get(name.lower()) or difflib.get_close_matches(name, _KNOWN, 1, 0.75)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown encoding {name!r}: {hint}known are {', '.join(_KNOWN)}")


def column_type(name: str) -> Encoding:
    """Return what values a column has, by the name that ``columns=`` takes.

    These are the names in ``index.json`` and those of dtypes that are recorded besides.

    Raises
    ------
    ValueError
        If there is no such encoding.
    MissingDependencyError
        If its dtype comes from a package that is not installed.

    Examples
    --------
    >>> column_type("bool").stored, column_type("ndarray:complex64:3").stored
    ('uint8', 'ndarray:float32:3,2')
    """
    dtype, shape = name, ""
    if is_array := name.startswith("ndarray:"):
        dtype, _, shape = name.removeprefix("ndarray:").partition(":")
    if name in _KNOWN or dtype in DTYPES or not is_known(dtype):
        return parse(name)
    if is_array and not shape:
        return _ragged(name, dtype_of(dtype))
    return _fixed(name, dtype_of(dtype), _parse_shape(name, shape) if is_array else ())


def with_dtype(stored: Encoding, dtype: str) -> Encoding:
    """Return a stored encoding as that of the dtype which the index records for its column.

    Raises
    ------
    ValueError
        If values of that dtype are not stored so.
    MissingDependencyError
        If the dtype comes from a package that is not installed.

    Examples
    --------
    >>> with_dtype(parse("ndarray:int64:3"), "datetime64[s]").name
    'ndarray:datetime64[s]:3'
    """
    wanted = dtype_of(dtype)
    found = stored
    if stored.kind == "fixed" and stored.shape is not None:
        shape = stored.shape
        found = type_of_array(wanted, shape[:-1] if wanted.kind == "c" else shape)
    elif stored.kind == "ndarray":
        found = column_type(f"ndarray:{dtype}")
    if found.stored != stored.name or not found.recorded:
        raise ValueError(f"{dtype} is not stored as {stored.name!r}")
    return found


def type_of_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Encoding:
    """Return the column of arrays, or numbers, of one dtype and shape.

    Raises
    ------
    ValueError
        If they cannot be stored.

    Examples
    --------
    >>> type_of_array(np.dtype(">i4"), (2, 3)).name, type_of_array(np.dtype(bool), ()).name
    ('ndarray:int32:2,3', 'bool')
    """
    if storage(dtype) is None:
        arrays.checked_array(np.empty(1, dtype))  # says why not
    return column_type(f"ndarray:{dtype.name}:{_dims(shape)}" if shape else dtype.name)


def is_unsafe(name: str) -> bool:
    """Say whether decoding this encoding may run code that the data bring along."""
    return name == "pkl"


def infer(value: Any) -> Encoding:
    """Return the encoding that a writer gives a column whose first value this is.

    An image that was opened from a JPEG file makes a column that stores such files and nothing
    else: other images would lose their pixels in it.

    Examples
    --------
    >>> [infer(value).name for value in (1, True, np.float32(1), "a")]
    ['int', 'bool', 'float32', 'str']
    >>> infer(np.arange(3, dtype=np.uint8)).name, infer(np.datetime64("2026-11-22")).name
    ('ndarray:uint8', 'datetime64[D]')
    """
    for types, name in _INFERRED:
        if isinstance(value, types) and not isinstance(value, np.generic):
            return column_type(name)
    if foreign.is_missing(value):
        raise TypeError(
            f"no encoding follows from {value!r}: {foreign.MISSING}; columns= names the encoding"
        )
    if foreign.is_time(value):
        return type_of_array(foreign.time_array(value).dtype, ())
    if isinstance(value, str | bytes):
        return parse("str" if isinstance(value, str) else "bytes")
    if foreign.is_array(value):
        array = foreign.as_array(value)
        if not array.ndim:
            return type_of_array(array.dtype, ())
        return column_type(f"ndarray:{arrays.checked_array(array).dtype.name}")
    if images.is_image(value):
        return _FILES if images.jpeg_file(value) is not None else parse("png")
    raise TypeError(
        f"no encoding follows from a {type(value).__name__}: name one in columns=, or store a "
        "bool, int, float, complex, str, bytes, list, dict, date, array, NumPy scalar or PIL image"
    )


def register_encoding(
    name: str,
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    *,
    size: int | None = None,
) -> None:
    """Make an encoding of your own known, for reading and for writing.

    Registering a name again replaces it. A process that is spawned imports `encode` and `decode`
    by name, as pickle does: define them at the top of a module.

    Parameters
    ----------
    name : str
        What columns call it: without a colon, and none of npstream's own names.
    encode : callable
        Turns a value into bytes. It is not called for `bytes`, which are stored as they are.
    decode : callable
        Turns these bytes into the value again.
    size : int, optional
        The number of bytes of every value, if they all have one.

    Raises
    ------
    ValueError
        If the name is not free, or the size is not one of a value.

    Examples
    --------
    >>> register_encoding("complex", lambda z: str(z).encode(), lambda body: complex(body.decode()))
    >>> parse("complex").decode(parse("complex").encode(1 + 2j))
    (1+2j)
    """
    if not name or ":" in name or name in _BUILT_IN or is_known(name):
        raise ValueError(f"cannot register {name!r}: empty, with a colon, or npstream's own name")
    if size is not None and not 0 < operator.index(size) <= _MAX_SIZE:
        raise ValueError(f"cannot register {name!r} of size {size}: it must be 1 to {_MAX_SIZE}")
    _KNOWN[name] = Encoding(
        *(name, size, "object", _OBJECT, None),
        partial(_encode_custom, name, encode),
        partial(_decode_custom, name, size, decode),
    )


def view_as(encoding: Encoding, meaning: str | DTypeLike) -> Encoding:
    r"""Return what a column's bytes mean when they are declared anew.

    Parameters
    ----------
    encoding : Encoding
        What is stored.
    meaning : str or dtype
        The name of an encoding, or a dtype. A dtype, or ``"ndarray:<dtype>"`` without a shape,
        takes the bytes of a variable value to be elements and nothing else; where values are
        arrays or have one size it means what it means to `numpy.ndarray.view`.

    Examples
    --------
    >>> view_as(parse("bytes"), np.uint16).decode(b"\1\0\2\0")
    array([1, 2], dtype=uint16)
    """
    if not isinstance(meaning, str) or not _is_name(meaning):
        return _view_as_dtype(encoding, _as_dtype(meaning))
    target = column_type(meaning)
    if target.kind == "ndarray" and target.dtype != _OBJECT:
        return _view_as_dtype(encoding, target.dtype)
    if _has_heads(encoding) and target.kind in ("fixed", "ndarray") and target != encoding:
        raise _misfit(encoding, meaning, "each value starts with a head of its own")
    size, wanted = encoding.size, target.size
    if size is not None and wanted is not None and size != wanted:
        raise _misfit(encoding, meaning, f"they have {quantity(size, 'byte')}, not {wanted:,}")
    return target


def _is_name(text: str) -> bool:
    """Return True for the name of an encoding that is not merely a dtype's."""
    return (text in _KNOWN and text not in DTYPES) or text.startswith("ndarray:")


def _as_dtype(meaning: DTypeLike) -> np.dtype[Any]:
    """Return a dtype, but not NumPy's float64 for None."""
    if isinstance(meaning, str) and meaning in ML_DTYPES:
        return dtype_of(meaning)  # NumPy knows these names once the package is imported
    with contextlib.suppress(TypeError, ValueError, SyntaxError):
        if meaning is not None:
            return np.dtype(meaning)
    raise ValueError(
        f"{meaning!r} is neither a dtype nor an encoding; encodings are {', '.join(_KNOWN)}"
    )


def _has_heads(encoding: Encoding) -> bool:
    return encoding.kind == "ndarray" and not encoding.headless


def _misfit(encoding: Encoding, meaning: object, why: str) -> ValueError:
    return ValueError(f"{encoding.name!r} values cannot be viewed as {meaning}: {why}")


def _view_as_dtype(encoding: Encoding, dtype: np.dtype[Any]) -> Encoding:
    if dtype.hasobject or dtype.subdtype is not None or not dtype.itemsize:
        raise _misfit(encoding, dtype, "it is not the dtype of an element")
    if encoding.size is not None:
        return _view_fixed(encoding, encoding.size, dtype)
    name = f"ndarray:{_spelled(dtype)}"
    if _has_heads(encoding):
        # The heads count the numbers that are stored, of which complex ones have two.
        counted, wanted = parse(encoding.stored).dtype, storage(dtype) or dtype
        if counted == _OBJECT or counted.itemsize != wanted.itemsize:
            raise _misfit(encoding, dtype, "their heads count elements of another size")
        return _ragged(name, dtype)
    encode, decode = partial(arrays.encode_headless, dtype), partial(arrays.decode_headless, dtype)
    return Encoding(name, None, "ndarray", dtype, None, encode, decode, headless=True)


def _view_fixed(encoding: Encoding, size: int, dtype: np.dtype[Any]) -> Encoding:
    """View values of one size as NumPy views rows: a scalar stays one, a last axis is re-cut."""
    shape: tuple[int, ...] = (size,)
    if encoding.kind == "fixed" and encoding.shape is not None:
        shape = encoding.shape
    if not shape and dtype.itemsize == size:
        return _fixed(_spelled(dtype), dtype, ())
    element, last = size // prod(shape), size // prod(shape[:-1])
    if not shape or (element if dtype.itemsize < element else last) % dtype.itemsize:
        row = f"{quantity(last, 'byte')} in elements of {element:,} along the last axis"
        raise _misfit(encoding, dtype, f"{row} are no elements of {dtype.itemsize}")
    shape = (*shape[:-1], last // dtype.itemsize)
    return _fixed(f"ndarray:{_spelled(dtype)}:{_dims(shape)}", dtype, shape)


def _spelled(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name, or its code where the name says less than all."""
    return dtype.name if storage(dtype) is not None and dtype.isnative else dtype.str


def _dims(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def _stored_name(name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None) -> str:
    """Return what the index calls values of a dtype; `name` is what they are called otherwise."""
    number = storage(dtype)
    if dtype.name in DTYPES or number is None:
        return name
    if shape is None:
        return f"ndarray:{number.name}"
    stored = arrays.stored_shape(dtype, shape)
    return f"ndarray:{number.name}:{_dims(stored)}" if stored else number.name


def _ragged(name: str, dtype: np.dtype[Any] | None) -> Encoding:
    encode, decode = partial(arrays.encode_array, dtype, None), partial(arrays.decode_array, dtype)
    stored = name if dtype is None else _stored_name(name, dtype, None)
    known = _OBJECT if dtype is None else dtype
    return Encoding(name, None, "ndarray", known, None, encode, decode, stored=stored)


def _fixed(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Encoding:
    size = prod(shape) * dtype.itemsize
    encode: Callable[[Any], bytes] = partial(arrays.encode_scalar, dtype)
    decode = arrays.scalar_decoder(dtype)
    if shape:
        encode = partial(arrays.encode_array, dtype, shape)
        decode = partial(arrays.decode_fixed, name, size, dtype, shape)
    stored = _stored_name(name, dtype, shape)
    return Encoding(name, size, "fixed", dtype, shape, encode, decode, stored=stored)


@functools.lru_cache
def _parse_array(name: str) -> Encoding:
    """Return the encoding ``ndarray:dtype`` or ``ndarray:dtype:d0,d1,...``."""
    _, dtype_name, *rest = name.split(":")
    dtype = DTYPES.get(dtype_name)
    if not rest and (dtype is not None or not dtype_name):
        return _ragged(name, dtype)
    if dtype is None or len(rest) > 1:
        raise ValueError(
            f"{name!r} is no encoding: write ndarray, ndarray:dtype or ndarray:dtype:d0,d1,... "
            f"with a dtype out of {KNOWN}"
        )
    return _fixed(name, dtype, _parse_shape(name, rest[0]))


def _parse_shape(name: str, text: str) -> tuple[int, ...]:
    """Return the shape in the name of an encoding."""
    try:
        shape = tuple(map(int, text.split(",")))
    except ValueError:
        shape = ()
    if not 0 < len(shape) <= arrays.MAX_NDIM or min(shape) < 1:
        raise ValueError(f"{name!r}: a shape is 1 to {arrays.MAX_NDIM} positive numbers")
    itemsize = dtype_of(name.split(":")[1]).itemsize
    if prod(shape) * itemsize > _MAX_SIZE:
        raise ValueError(f"{name!r}: a value is larger than a shard, {_MAX_SIZE} bytes, can be")
    return shape


def _encode_custom(name: str, encode: Callable[[Any], bytes], value: Any) -> bytes:
    body = encode(value)
    if not isinstance(body, bytes):
        raise TypeError(f"the encoder of {name!r} returned {type(body).__name__}, not bytes")
    return body


def _decode_custom(name: str, size: int | None, decode: Callable[[bytes], Any], body: Body) -> Any:
    if size is not None:
        arrays.check_length(body, size, name)
    return decode(bytes(body))


def _decode_pkl(body: Body) -> Any:
    try:
        return pickle.loads(body)
    except Exception as error:
        # Damaged pickles raise whatever the calls raise that they make.
        raise ValueError(f"not a pickle: {error}") from error


def _variable(
    name: str,
    kind: Kind,
    encode: Callable[[Any], bytes],
    decode: Callable[[Body], Any],
    dtype: DTypeLike = object,
) -> Encoding:
    return Encoding(name, None, kind, np.dtype(dtype), None, encode, decode)


def _image_list(
    name: str, encode: Callable[[Any], bytes], decode: Callable[[Body], Any]
) -> Encoding:
    encode, decode = partial(images.encode_list, encode), partial(images.decode_list, decode)
    return _variable(name, "object", encode, decode)


def _built_in() -> list[Encoding]:
    text = np.dtypes.StringDType()
    return [
        Encoding("int", 8, "fixed", DTYPES["int64"], (), objects.encode_int, objects.decode_int),
        *(_fixed(name, dtype, ()) for name, dtype in DTYPES.items()),
        _ragged("ndarray", None),
        _variable("bytes", "bytes", objects.encode_bytes, bytes),
        _variable("str", "str", objects.encode_str, objects.decode_str, text),
        _variable("str_int", "int_text", objects.encode_str_int, objects.decode_str_int, "int64"),
        _variable(
            "str_float", "float_text", objects.encode_str_float, objects.decode_str_float, "float64"
        ),
        _variable("str_decimal", "object", objects.encode_str_decimal, objects.decode_str_decimal),
        _variable("pil", "image", images.encode_pil, images.decode_pil),
        _variable("jpeg", "image", images.encode_jpeg, images.decode_file),
        _variable("png", "image", images.encode_png, images.decode_file),
        _image_list("list[pil]", images.encode_pil, images.decode_pil),
        _image_list("list[jpeg]", images.encode_jpeg, images.decode_file),
        _image_list("list[png]", images.encode_png, images.decode_file),
        _variable("jpeg_array", "object", images.encode_jpeg_array, images.decode_jpeg_array),
        _variable("jpegarray", "object", images.encode_jpeg_array, images.decode_jpeg_array),
        _variable("json", "object", objects.encode_json, objects.decode_json),
        _variable("pkl", "object", partial(pickle.dumps, protocol=4), _decode_pkl),
    ]


_KNOWN = {encoding.name: encoding for encoding in _built_in()}
_BUILT_IN = frozenset(_KNOWN)

_OTHER_NAMES = {
    **dict.fromkeys(("string", "text", "unicode", "utf8", "utf-8", "varchar"), ("str",)),
    **dict.fromkeys(("integer", "long"), ("int",)),
    **dict.fromkeys(("float", "double"), ("float64", "float32")),
    **dict.fromkeys(("boolean", "bool_"), ("bool",)),
    **dict.fromkeys(("binary", "blob", "byte", "bytearray"), ("bytes",)),
    **dict.fromkeys(("image", "img", "jpg"), ("jpeg", "png", "pil")),
    **dict.fromkeys(("list", "dict", "object"), ("json", "pkl")),
    **dict.fromkeys(("array", "tensor", "numpy"), ("ndarray", "ndarray:float32:224,224,3")),
    **dict.fromkeys(("datetime", "timestamp", "date"), ("datetime64[us]",)),
    "pickle": ("pkl",),
}
"""What users call encodings, and the names that these have here."""

_FILES = replace(parse("jpeg"), encoder=images.encode_jpeg_file)
"""A column of JPEG files, which takes no image that is not one."""

_INFERRED: tuple[tuple[Any, str], ...] = (
    (bool, "bool"),
    (int, "int"),
    (float, "float64"),
    (complex, "complex128"),
    (list | dict, "json"),
)
