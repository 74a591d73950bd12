"""Encodings of MDS columns, and their lookup by name.

``index.json`` names the encoding of each column; `parse` converts this name to an `Encoding`. The
format lacks some dtypes, such as bool. The encoding of a column of such a dtype has two names: the
name in the index, such as ``"uint8"``, and the name of the dtype, such as ``"bool"``. `column_type`
accepts both. The index records the dtype in its annotations; `with_dtype` combines the two names.

A *body* is an encoded value. Bodies are untrusted input. A decoder of npstream accepts any bytes.
It returns a value or raises ValueError, and allocates at most a small multiple of the body's size.
The exception is pickle: see `is_unsafe`.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import pickle
from collections.abc import Callable
from copy import copy
from functools import partial
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from npstream._core import array_like
from npstream._core.arguments import quantity
from npstream._core.dtypes import COLUMN_DTYPES, ML_DTYPES, dtype_of, is_column_dtype, storage_dtype
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
"""Maximum bytes of a value, because the offsets in a shard are uint32."""


class Encoding:
    """The stored form of a column's values, and their form in a batch.

    Attributes
    ----------
    name : str
        The name in ``columns=``, such as ``"ndarray:bool:64"``.
    stored_name : str
        The name in ``index.json``, such as ``"ndarray:uint8:64"``; usually equal to `name`.
    size : int or None
        Bytes of each value, or None for a variable size.
    kind : str
        The form of the column in a batch. ``"fixed"``: one array of `dtype`, with values of
        `shape`. ``"str"``, ``"bytes"`` and ``"image"``: the bodies, not decoded. ``"ndarray"``:
        arrays of variable shape. ``"int_text"`` and ``"float_text"``: numbers parsed from text.
        ``"object"``: decoded values.
    dtype : dtype
        The dtype of an element; object if each array stores its own dtype.
    shape : tuple of int or None
        The shape of one value, or None for a variable shape.
    encoder : callable
        Converts a value to a body; `encode` also checks the size.
    decode : callable
        Converts a body to a new, writable value, or raises ValueError.
    headless : bool
        Whether the body of an ``"ndarray"`` is the values only, without dtype code and shape head.
    """

    __slots__ = (
        "decode",
        "dtype",
        "encoder",
        "headless",
        "kind",
        "name",
        "shape",
        "size",
        "stored_name",
    )

    def __init__(
        self,
        name: str,
        size: int | None,
        kind: Kind,
        dtype: np.dtype[Any],
        shape: tuple[int, ...] | None,
        encoder: Callable[[Any], bytes],
        decode: Callable[[Body], Any],
        headless: bool = False,
        stored_name: str = "",
    ) -> None:
        self.name, self.stored_name = name, stored_name or name
        self.size, self.kind, self.dtype, self.shape = size, kind, dtype, shape
        self.encoder, self.decode, self.headless = encoder, decode, headless

    @property
    def _key(self) -> tuple[Any, ...]:
        """The attributes that are compared: not the functions, as `own_encoding` makes new ones."""
        return (
            *(self.name, self.stored_name, self.size, self.kind, self.dtype, self.shape),
            self.headless,
        )

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Encoding) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return (
            f"Encoding(name={self.name!r}, size={self.size!r}, kind={self.kind!r}, "
            f"dtype={self.dtype!r}, shape={self.shape!r}, headless={self.headless!r}, "
            f"stored_name={self.stored_name!r})"
        )

    @property
    def annotated_dtype(self) -> str:
        """The name of the dtype in the index's annotations, or "" if they need none."""
        return "" if self.stored_name == self.name else self.dtype.name

    def encode(self, value: Any) -> bytes:
        """Return the body of a value; `bytes` are returned unchanged, as an encoded body."""
        body = value if isinstance(value, bytes) else self.encoder(value)
        if self.size is not None:
            arrays.check_length(body, self.size, self.name)
        return body

    def encode_value(self, value: Any) -> bytes:
        """Return the body of a value of a column whose encoding was inferred.

        Unlike `encode`, this returns `bytes` unchanged only in bytes and str columns; a str column
        requires UTF-8.
        """
        if not isinstance(value, bytes):
            return self.encode(value)
        if self.kind == "str":
            self.decode(value)
        return value if self.kind in ("str", "bytes") else self.encoder(value)


def parse(name: str) -> Encoding:
    """Return the encoding with a given name in ``index.json``.

    Raises
    ------
    ValueError
        If there is no such encoding.

    Examples
    --------
    >>> parse("ndarray:uint16:2,3").size
    12
    """
    encoding = _ENCODINGS.get(name)
    if encoding is not None:
        return encoding
    if name.startswith("ndarray:"):
        return _parse_array(name)
    import difflib

    # Aliases come first: the closest spelling may be an unrelated encoding.
    similar = _ALIASES.get(name.lower()) or difflib.get_close_matches(name, _ENCODINGS, 1, 0.75)
    hint = f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""
    others = ", ".join(other for other in _ENCODINGS if other not in DTYPES)
    raise ValueError(f"unknown encoding {name!r}: {hint}known are {others}, {COLUMN_DTYPES}")


def encoding_of_type(value: Any) -> str | None:
    """Return the encoding name for a Python type, a NumPy scalar type or a dtype.

    Return None for any other value.

    Examples
    --------
    >>> encoding_of_type(str), encoding_of_type(np.int32), encoding_of_type(np.dtype("M8[s]"))
    ('str', 'int32', 'datetime64[s]')
    """
    if isinstance(value, type) and value in _TYPES:
        return _TYPES[value]
    is_dtype = isinstance(value, np.dtype)
    if is_dtype or (isinstance(value, type) and issubclass(value, np.generic)):
        return str(np.dtype(value).name)
    return None


def column_type(name: str) -> Encoding:
    """Return the encoding with a given name in ``columns=``.

    Valid names are those in ``index.json``, and dtypes that an index records in its annotations.

    Raises
    ------
    ValueError
        If there is no such encoding.
    MissingDependencyError
        If the dtype comes from a package that is not installed.

    Examples
    --------
    >>> column_type("bool").stored_name, column_type("ndarray:complex64:3").stored_name
    ('uint8', 'ndarray:float32:3,2')
    """
    return _ENCODINGS[name] if name in _ENCODINGS else own_encoding(name)


def own_encoding(name: str) -> Encoding:
    """Return the encoding that `column_type` returns if no user has replaced any encoding."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    dtype, shape = name, ""
    if is_array := name.startswith("ndarray:"):
        dtype, _, shape = name.removeprefix("ndarray:").partition(":")
    if dtype in DTYPES or not is_column_dtype(dtype):
        return parse(name)
    if is_array and not shape:
        return _ragged_encoding(name, dtype_of(dtype))
    return _fixed_encoding(name, dtype_of(dtype), _parse_shape(name, shape) if is_array else ())


def with_dtype(stored_encoding: Encoding, dtype: str) -> Encoding:
    """Return the encoding of a column from its stored encoding and its annotated dtype.

    Raises
    ------
    ValueError
        If values of `dtype` are not stored in this encoding.
    MissingDependencyError
        If the dtype comes from a package that is not installed.

    Examples
    --------
    >>> with_dtype(parse("ndarray:int64:3"), "datetime64[s]").name
    'ndarray:datetime64[s]:3'
    """
    column_dtype = dtype_of(dtype)
    # The dtype says how npstream has stored the values, even if a user has replaced the encoding.
    encoding = stored_encoding = _BUILT_IN.get(stored_encoding.name, stored_encoding)
    if stored_encoding.kind == "fixed" and stored_encoding.shape is not None:
        shape = stored_encoding.shape
        encoding = type_of_array(column_dtype, shape[:-1] if column_dtype.kind == "c" else shape)
    elif stored_encoding.kind == "ndarray":
        encoding = own_encoding(f"ndarray:{dtype}")
    if encoding.stored_name != stored_encoding.name or not encoding.annotated_dtype:
        raise ValueError(f"{dtype} is not stored as {stored_encoding.name!r}")
    return encoding


def type_of_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Encoding:
    """Return the encoding of arrays of one dtype and shape, or of scalars for shape ``()``.

    Raises
    ------
    ValueError
        If such arrays cannot be stored.

    Examples
    --------
    >>> type_of_array(np.dtype(">i4"), (2, 3)).name, type_of_array(np.dtype(bool), ()).name
    ('ndarray:int32:2,3', 'bool')
    """
    if storage_dtype(dtype) is None:
        arrays.checked_array(np.empty(1, dtype))  # raises
    return own_encoding(f"ndarray:{dtype.name}:{_dims(shape)}" if shape else dtype.name)


def is_unsafe(name: str) -> bool:
    """Return True if decoding this encoding may execute code from the data."""
    return name == "pkl"


def infer(value: Any) -> Encoding:
    """Return the encoding that a writer infers from a column's first value.

    An image that was opened from a JPEG file gives a column that accepts only such images.
    Encoding other images as JPEG would change their pixels.

    Examples
    --------
    >>> [infer(value).name for value in (1, True, np.float32(1), "a")]
    ['int', 'bool', 'float32', 'str']
    >>> infer(np.arange(3, dtype=np.uint8)).name, infer(np.datetime64("2026-11-22")).name
    ('ndarray:uint8', 'datetime64[D]')
    """
    for types, name in _INFERENCE_RULES:
        if isinstance(value, types) and not isinstance(value, np.generic):
            return column_type(name)
    if array_like.is_missing(value):
        raise TypeError(
            f"no encoding follows from {value!r}: {array_like.HOW_TO_FILL}; "
            "name the encoding in columns="
        )
    if array_like.is_time(value):
        return type_of_array(array_like.time_array(value).dtype, ())
    if isinstance(value, str | bytes):
        return parse("str" if isinstance(value, str) else "bytes")
    if array_like.is_array(value):
        array = array_like.as_array(value)
        if not array.ndim:
            return type_of_array(array.dtype, ())
        return column_type(f"ndarray:{arrays.checked_array(array).dtype.name}")
    if images.is_image(value):
        return _JPEG_FILES if images.jpeg_file(value) is not None else parse("png")
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
    """Register a custom encoding, for reading and writing.

    Registering a name again replaces its encoding. A spawned process imports `encode` and `decode`
    by name, as pickle does. Define both at the top level of a module.

    Parameters
    ----------
    name : str
        Name of the encoding. It must not contain a colon or be one of npstream's own names.
    encode : callable
        Converts a value to bytes. It is not called for `bytes`, which are stored unchanged.
    decode : callable
        Converts these bytes back to the value.
    size : int, optional
        Bytes of each encoded value, if all values have the same size.

    Raises
    ------
    ValueError
        If the name is invalid or reserved, or `size` is out of range.

    Examples
    --------
    >>> register_encoding("complex", lambda z: str(z).encode(), lambda body: complex(body.decode()))
    >>> parse("complex").decode(parse("complex").encode(1 + 2j))
    (1+2j)
    """
    if name in _BUILT_IN or is_column_dtype(name):
        raise ValueError(f"cannot register {name!r}: the name is npstream's own")
    set_encoding(name, encode, decode, size=size)


def set_encoding(
    name: str,
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    *,
    size: int | None = None,
) -> None:
    r"""Register an encoding as `register_encoding`, or replace one of npstream's own.

    The new encoding applies only in this process. It reads and writes the columns whose encoding
    has the name. If it replaces one of npstream's own, reading uses the size that the index of a
    column records, and not `size`; see `with_size`. Columns with a dtype that only npstream
    records, such as ``"bool"``, keep npstream's encoding.

    Examples
    --------
    >>> set_encoding("uint8", lambda image: image.tobytes(), lambda body: np.frombuffer(body, "u1"))
    >>> parse("uint8").decode(b"abc"), column_type("bool").decode(b"\1")
    (array([97, 98, 99], dtype=uint8), np.True_)
    >>> reset_encoding("uint8")
    >>> parse("uint8").decode(b"a")
    np.uint8(97)
    """
    if not name or ":" in name:
        raise ValueError(f"cannot register {name!r}: the name is empty or has a colon")
    if size is not None and not 0 < operator.index(size) <= _MAX_SIZE:
        raise ValueError(f"cannot register {name!r} of size {size}: it must be 1 to {_MAX_SIZE}")
    _ENCODINGS[name] = Encoding(
        *(name, size, "object", _OBJECT, None),
        partial(_encode_custom, name, encode),
        partial(_decode_custom, name, size, decode),
    )


def reset_encoding(name: str) -> None:
    """Remove a user's encoding. If it replaced one of npstream's own, restore that one."""
    if name in _BUILT_IN:
        _ENCODINGS[name] = _BUILT_IN[name]
    else:
        _ENCODINGS.pop(name, None)


def with_size(encoding: Encoding, size: int | None) -> Encoding:
    """Return an encoding; if it replaces one of npstream's own, with the size in an index."""
    if encoding.size == size or encoding is _BUILT_IN.get(encoding.name, encoding):
        return encoding
    result = copy(encoding)
    name, _, decode = result.decode.args  # type: ignore[attr-defined]
    result.size, result.decode = size, partial(_decode_custom, name, size, decode)
    return result


def view_as(encoding: Encoding, meaning: str | DTypeLike) -> Encoding:
    r"""Return the encoding that reinterprets the bytes of another encoding.

    Parameters
    ----------
    encoding : Encoding
        The stored encoding.
    meaning : str or dtype
        The name of an encoding, or a dtype; ``"ndarray:<dtype>"`` without a shape means the dtype.
        A dtype reinterprets arrays and values of a fixed size as `numpy.ndarray.view` does. The
        whole body of any other value is read as elements, without a head.

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
        raise _view_error(encoding, meaning, "each value starts with a head of its own")
    size, expected = encoding.size, target.size
    if size is not None and expected is not None and size != expected:
        raise _view_error(
            encoding, meaning, f"they have {quantity(size, 'byte')}, not {expected:,}"
        )
    return target


def _is_name(text: str) -> bool:
    """Return True for the name of an encoding that is not just the name of a dtype."""
    return (text in _ENCODINGS and text not in DTYPES) or text.startswith("ndarray:")


def _as_dtype(meaning: DTypeLike) -> np.dtype[Any]:
    """Return a dtype; unlike `numpy.dtype`, reject None."""
    if isinstance(meaning, str) and meaning in ML_DTYPES:
        return dtype_of(meaning)  # NumPy knows these names only after ml_dtypes is imported
    with contextlib.suppress(TypeError, ValueError, SyntaxError):
        if meaning is not None:
            return np.dtype(meaning)
    raise ValueError(
        f"{meaning!r} is neither a dtype nor an encoding; encodings are {', '.join(_ENCODINGS)}"
    )


def _has_heads(encoding: Encoding) -> bool:
    return encoding.kind == "ndarray" and not encoding.headless


def _view_error(encoding: Encoding, meaning: object, why: str) -> ValueError:
    return ValueError(f"{encoding.name!r} values cannot be viewed as {meaning}: {why}")


def _view_as_dtype(encoding: Encoding, dtype: np.dtype[Any]) -> Encoding:
    if dtype.hasobject or dtype.subdtype is not None or not dtype.itemsize:
        raise _view_error(encoding, dtype, "it is not the dtype of an element")
    if encoding.size is not None:
        return _view_fixed(encoding, encoding.size, dtype)
    name = f"ndarray:{_dtype_string(dtype)}"
    if _has_heads(encoding):
        # A head stores the shape of the stored numbers. A complex element is stored as two numbers.
        # So the sizes of stored numbers are compared, not the sizes of elements.
        old_dtype, new_dtype = parse(encoding.stored_name).dtype, storage_dtype(dtype) or dtype
        if old_dtype == _OBJECT or old_dtype.itemsize != new_dtype.itemsize:
            raise _view_error(encoding, dtype, "their heads count elements of another size")
        return _ragged_encoding(name, dtype)
    encode, decode = partial(arrays.encode_headless, dtype), partial(arrays.decode_headless, dtype)
    return Encoding(name, None, "ndarray", dtype, None, encode, decode, headless=True)


def _view_fixed(encoding: Encoding, size: int, dtype: np.dtype[Any]) -> Encoding:
    """View values of one size as `numpy.ndarray.view` does.

    A scalar of the same itemsize stays a scalar; otherwise the last axis changes its length.
    """
    shape: tuple[int, ...] = (size,)
    if encoding.kind == "fixed" and encoding.shape is not None:
        shape = encoding.shape
    if not shape and dtype.itemsize == size:
        return _fixed_encoding(_dtype_string(dtype), dtype, ())
    itemsize, row_size = size // prod(shape), size // prod(shape[:-1])
    if not shape or (itemsize if dtype.itemsize < itemsize else row_size) % dtype.itemsize:
        row = f"{quantity(row_size, 'byte')} in elements of {itemsize:,} along the last axis"
        raise _view_error(
            encoding, dtype, f"{row} cannot be divided into elements of {dtype.itemsize}"
        )
    shape = (*shape[:-1], row_size // dtype.itemsize)
    return _fixed_encoding(f"ndarray:{_dtype_string(dtype)}:{_dims(shape)}", dtype, shape)


def _dtype_string(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, or its `str` code if the name is ambiguous."""
    return dtype.name if storage_dtype(dtype) is not None and dtype.isnative else dtype.str


def _dims(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def _stored_name(name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None) -> str:
    """Return the name in ``index.json`` of the encoding `name`, whose elements have `dtype`."""
    number = storage_dtype(dtype)
    if dtype.name in DTYPES or number is None:
        return name
    if shape is None:
        return f"ndarray:{number.name}"
    number_shape = arrays.stored_shape(dtype, shape)
    return f"ndarray:{number.name}:{_dims(number_shape)}" if number_shape else number.name


def _ragged_encoding(name: str, dtype: np.dtype[Any] | None) -> Encoding:
    encode, decode = partial(arrays.encode_array, dtype, None), partial(arrays.decode_array, dtype)
    stored_name = name if dtype is None else _stored_name(name, dtype, None)
    element = _OBJECT if dtype is None else dtype
    return Encoding(name, None, "ndarray", element, None, encode, decode, stored_name=stored_name)


def _fixed_encoding(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Encoding:
    size = prod(shape) * dtype.itemsize
    encode: Callable[[Any], bytes] = partial(arrays.encode_scalar, dtype)
    decode = arrays.scalar_decoder(dtype)
    if shape:
        encode = partial(arrays.encode_array, dtype, shape)
        decode = partial(arrays.decode_fixed, name, size, dtype, shape)
    stored_name = _stored_name(name, dtype, shape)
    return Encoding(name, size, "fixed", dtype, shape, encode, decode, stored_name=stored_name)


@functools.lru_cache
def _parse_array(name: str) -> Encoding:
    """Parse the name ``ndarray:dtype`` or ``ndarray:dtype:d0,d1,...``."""
    _, dtype_name, *shapes = name.split(":")
    dtype = DTYPES.get(dtype_name)
    if not shapes and (dtype is not None or not dtype_name):
        return _ragged_encoding(name, dtype)
    if dtype is None or len(shapes) > 1:
        raise ValueError(
            f"{name!r} is not an encoding: write ndarray, ndarray:dtype or "
            f"ndarray:dtype:d0,d1,... with a dtype out of {COLUMN_DTYPES}"
        )
    return _fixed_encoding(name, dtype, _parse_shape(name, shapes[0]))


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
        raise ValueError(f"{name!r}: a value is larger than a shard's limit of {_MAX_SIZE} bytes")
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
        # A damaged pickle may call anything, and so raise any exception.
        raise ValueError(f"not a pickle: {error}") from error


def _variable_encoding(
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
    return _variable_encoding(name, "object", encode, decode)


def _built_in_encodings() -> list[Encoding]:
    text = np.dtypes.StringDType()
    return [
        Encoding("int", 8, "fixed", DTYPES["int64"], (), objects.encode_int, objects.decode_int),
        *(_fixed_encoding(name, dtype, ()) for name, dtype in DTYPES.items()),
        _ragged_encoding("ndarray", None),
        _variable_encoding("bytes", "bytes", objects.encode_bytes, bytes),
        _variable_encoding("str", "str", objects.encode_str, objects.decode_str, text),
        _variable_encoding(
            "str_int", "int_text", objects.encode_str_int, objects.decode_str_int, "int64"
        ),
        _variable_encoding(
            "str_float", "float_text", objects.encode_str_float, objects.decode_str_float, "float64"
        ),
        _variable_encoding(
            "str_decimal", "object", objects.encode_str_decimal, objects.decode_str_decimal
        ),
        _variable_encoding("pil", "image", images.encode_pil, images.decode_pil),
        _variable_encoding("jpeg", "image", images.encode_jpeg, images.decode_file),
        _variable_encoding("png", "image", images.encode_png, images.decode_file),
        _image_list("list[pil]", images.encode_pil, images.decode_pil),
        _image_list("list[jpeg]", images.encode_jpeg, images.decode_file),
        _image_list("list[png]", images.encode_png, images.decode_file),
        _variable_encoding(
            "jpeg_array", "object", images.encode_jpeg_array, images.decode_jpeg_array
        ),
        _variable_encoding(
            "jpegarray", "object", images.encode_jpeg_array, images.decode_jpeg_array
        ),
        _variable_encoding("json", "object", objects.encode_json, objects.decode_json),
        _variable_encoding("pkl", "object", partial(pickle.dumps, protocol=4), _decode_pkl),
    ]


_ENCODINGS = {encoding.name: encoding for encoding in _built_in_encodings()}
_BUILT_IN = dict(_ENCODINGS)
"""npstream's own encodings, which `set_encoding` may replace in `_ENCODINGS`."""

_TYPES: dict[type, str] = {
    **{bool: "bool", int: "int", float: "float64", complex: "complex128"},
    **{str: "str", bytes: "bytes", list: "json", dict: "json"},
}
"""Python types in ``columns=`` -> their encodings, the same as `infer` gives their values."""

_ALIASES = {
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
"""Names that users may try -> the encodings to suggest."""

_JPEG_FILES = copy(parse("jpeg"))
_JPEG_FILES.encoder = images.encode_jpeg_file
"""Encoding of a column that accepts only images opened from JPEG files."""

_INFERENCE_RULES: tuple[tuple[Any, str], ...] = (
    (bool, "bool"),
    (int, "int"),
    (float, "float64"),
    (complex, "complex128"),
    (list | dict, "json"),
)
"""Python types, and the encoding of a column whose first value is of the type; see `infer`."""
