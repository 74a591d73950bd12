"""The encodings of MDS columns: what the bytes of one value mean.

An encoding is named by the string that stands in ``index.json``; `parse` turns that into an
`Encoding`. Bodies come from files that nobody vouches for: a decoder takes any bytes and either
returns a value or raises a ValueError, and allocates no more than a small multiple of them.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from npstream._typing import Body
from npstream.formats import arrays, images, objects
from npstream.formats.arrays import DTYPE_CODES, DTYPES, parse_array_head

__all__ = [
    "DTYPE_CODES",
    "Encoding",
    "Kind",
    "infer",
    "is_unsafe",
    "parse",
    "parse_array_head",
    "register_encoding",
    "view_as",
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
        The string in ``index.json``, such as ``"ndarray:uint16:64"``.
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

    def encode(self, value: Any) -> bytes:
        """Return the body of a value; `bytes` are taken to be a body already."""
        body = value if isinstance(value, bytes) else self.encoder(value)
        if self.size is not None:
            arrays.check_length(body, self.size, self.name)
        return body


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

    near = difflib.get_close_matches(name, _KNOWN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown encoding {name!r}: {hint}known are {', '.join(_KNOWN)}")


def is_unsafe(name: str) -> bool:
    """Say whether decoding this encoding may run code that the data bring along."""
    return name == "pkl"


def infer(value: Any) -> str:
    """Return the encoding that a writer gives a column whose first value this is.

    Examples
    --------
    >>> infer(1), infer(np.float32(1)), infer("a"), infer(np.arange(3, dtype=np.uint8))
    ('int', 'float32', 'str', 'ndarray:uint8')
    """
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"no encoding holds a {type(value).__name__}: store np.uint8({value})")
    if isinstance(value, np.ndarray):
        return f"ndarray:{arrays.checked_array(value).dtype.name}"
    if isinstance(value, np.generic) and value.dtype.name in DTYPES:
        return value.dtype.name
    for types, name in _INFERRED:
        if isinstance(value, types):
            return name
    # An image can only exist where Pillow has been imported.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(value, pillow.Image):
        return "png"
    raise TypeError(
        f"no encoding follows from a {type(value).__name__}: name one in columns=, or store an "
        "int, float, str, bytes, list, dict, NumPy scalar, array or PIL image"
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

    Examples
    --------
    >>> register_encoding("complex", lambda z: str(z).encode(), lambda body: complex(body.decode()))
    >>> parse("complex").decode(parse("complex").encode(1 + 2j))
    (1+2j)
    """
    if not name or ":" in name or name in _BUILT_IN:
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
    if not isinstance(meaning, str) or meaning in DTYPES or not _is_name(meaning):
        return _view_as_dtype(encoding, _as_dtype(meaning))
    target = parse(meaning)
    if target.kind == "ndarray" and target.dtype != _OBJECT:
        return _view_as_dtype(encoding, target.dtype)
    if _has_heads(encoding) and target.kind in ("fixed", "ndarray") and target != encoding:
        raise _misfit(encoding, meaning, "each value starts with a head of its own")
    if None not in (encoding.size, target.size) and encoding.size != target.size:
        raise _misfit(encoding, meaning, f"they have {encoding.size} bytes, not {target.size}")
    return target


def _is_name(text: str) -> bool:
    return text in _KNOWN or text.startswith("ndarray:")


def _as_dtype(meaning: DTypeLike) -> np.dtype[Any]:
    """Return a dtype, but not NumPy's float64 for None."""
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
        if encoding.dtype == _OBJECT or encoding.dtype.itemsize != dtype.itemsize:
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
        return _scalar(_spelled(dtype), dtype)
    element, last = size // prod(shape), size // prod(shape[:-1])
    if not shape or (element if dtype.itemsize < element else last) % dtype.itemsize:
        row = f"{last} bytes in elements of {element} along the last axis"
        raise _misfit(encoding, dtype, f"{row} are no elements of {dtype.itemsize}")
    shape = (*shape[:-1], last // dtype.itemsize)
    return _fixed(f"ndarray:{_spelled(dtype)}:{','.join(map(str, shape))}", dtype, shape)


def _spelled(dtype: np.dtype[Any]) -> str:
    return dtype.name if DTYPES.get(dtype.name) == dtype else dtype.str


def _scalar(name: str, dtype: np.dtype[Any]) -> Encoding:
    encode, decode = partial(arrays.encode_scalar, dtype), arrays.scalar_decoder(dtype)
    return Encoding(name, dtype.itemsize, "fixed", dtype, (), encode, decode)


def _ragged(name: str, dtype: np.dtype[Any] | None) -> Encoding:
    encode, decode = partial(arrays.encode_array, dtype, None), partial(arrays.decode_array, dtype)
    return Encoding(
        name, None, "ndarray", _OBJECT if dtype is None else dtype, None, encode, decode
    )


def _fixed(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Encoding:
    size = prod(shape) * dtype.itemsize
    encode = partial(arrays.encode_array, dtype, shape)
    decode = partial(arrays.decode_fixed, name, size, dtype, shape)
    return Encoding(name, size, "fixed", dtype, shape, encode, decode)


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
            f"with a dtype out of {', '.join(DTYPES)}"
        )
    try:
        shape = tuple(map(int, rest[0].split(",")))
    except ValueError:
        shape = ()
    if not 0 < len(shape) <= arrays.MAX_NDIM or min(shape) < 1:
        raise ValueError(f"{name!r}: a shape is 1 to {arrays.MAX_NDIM} positive numbers")
    if prod(shape) * dtype.itemsize > _MAX_SIZE:
        raise ValueError(f"{name!r}: a value is larger than a shard, {_MAX_SIZE} bytes, can be")
    return _fixed(name, dtype, shape)


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
        *(_scalar(name, dtype) for name, dtype in DTYPES.items()),
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

_INFERRED: tuple[tuple[Any, str], ...] = (
    (int, "int"),
    (float, "float64"),
    (str, "str"),
    (bytes, "bytes"),
    (list | dict, "json"),
)
