"""Encoders and decoders of arrays and scalars.

The body of an array is ``[dtype code] [shape head] values``. The code is present only if the
column's encoding names no dtype. The head is present only if the encoding names no shape. The head
is one byte, ``ndim << 2 | w``, followed by the dimensions in ``2**w`` bytes each. All numbers are
little-endian, and all values are in C order.

A dtype that the format lacks is stored as another dtype with the same bytes (`storage_dtype`). A
bool is stored as uint8, and datetime64 as int64. Complex numbers are stored as two floats along an
additional last axis. The index records the original dtype in its annotations.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import prod
from typing import Any

import numpy as np

from npstream._core import array_like
from npstream._core.arguments import quantity
from npstream._core.dtypes import (
    COLUMN_DTYPES,
    NUMBERS,
    DType,
    convert_exactly,
    invalid_bool_byte,
    storage_dtype,
)
from npstream._core.typing import AnyArray, Body

__all__ = [
    "DTYPES",
    "DTYPE_CODES",
    "MAX_NDIM",
    "check_bools",
    "check_length",
    "checked_array",
    "decode_array",
    "decode_fixed",
    "decode_headless",
    "encode_array",
    "encode_headless",
    "encode_scalar",
    "parse_array_head",
    "scalar_decoder",
    "shape_head",
    "stored_shape",
]

DTYPES = NUMBERS
"""The dtypes that the format supports, by name."""

DTYPE_CODES = {8 * d.itemsize + "uif".index(d.kind): d for d in DTYPES.values()}
"""The same dtypes by the code that starts an array of an ``"ndarray"`` column."""

MAX_NDIM = 63
"""Maximum number of dimensions: the head of an array stores it in six bits."""

_CODES = {dtype: code for code, dtype in DTYPE_CODES.items()}

_WIDTHS = "BHIQ"
"""The `struct` codes of the dimensions in a head, by w."""


def check_length(body: Body, size: int, name: object) -> None:
    """Raise ValueError unless a body has the fixed size of its column."""
    if len(body) != size:
        raise ValueError(
            f"{quantity(len(body), 'byte')} for a value of {name}, which takes {size:,}"
        )


def stored_shape(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which an array is stored; complex arrays get one more axis.

    Examples
    --------
    >>> stored_shape(np.dtype("c8"), (4,)), stored_shape(np.dtype("M8[s]"), (4,))
    ((4, 2), (4,))
    """
    return (*shape, 2) if dtype.kind == "c" else shape


def checked_array(value: Any) -> AnyArray:
    """Return a value as a storable array in native byte order, or raise ValueError."""
    array = value if type(value) is np.ndarray else array_like.as_array(value)
    max_axes = MAX_NDIM - (array.dtype.kind == "c")
    if not 0 < array.ndim <= max_axes or not array.size:
        raise ValueError(
            f"cannot store an array of shape {array.shape}: it must have an element, and "
            f"1 to {max_axes} axes; a 'json' column stores empty lists"
        )
    if array.dtype in _CODES:
        return array
    if storage_dtype(array.dtype) is None:
        raise ValueError(
            f"cannot store an array of dtype {array.dtype}: {_dtype_hint(array.dtype)}"
        )
    if (byte := invalid_bool_byte(array)) is not None:
        raise ValueError(f"an array of bool holds the byte {byte}: compare it with 0 first")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _dtype_hint(dtype: DType) -> str:
    """Return advice for a dtype that cannot be stored."""
    if dtype.kind in "mM":
        return f"it has no unit; give it one, as with astype('{dtype.name}[s]')"
    return f"known are {COLUMN_DTYPES}"


def check_bools(values: AnyArray) -> None:
    """Raise ValueError if a bool array contains a byte other than 0 and 1."""
    if (byte := invalid_bool_byte(values)) is not None:
        raise ValueError(f"the byte {byte} is not a bool, which is 0 or 1")


def encode_scalar(dtype: DType, value: Any) -> bytes:
    """Return the bytes of a number in `dtype`; raise if `dtype` cannot represent the number.

    Floats may be rounded to a narrower float; see `npstream._core.dtypes.convert_exactly`.
    """
    kind = type(value)
    if kind is int and dtype.kind in "iu":
        return _integer(dtype, value).tobytes()  # type: ignore[no-any-return]
    if kind is dtype.type and dtype.kind not in "mM":
        return value.tobytes()  # type: ignore[no-any-return]
    if kind is float and dtype.char in "efd":  # NumPy and struct use the same codes
        with suppress(OverflowError):
            return struct.pack(f"<{dtype.char}", value)
    return exact_scalar(dtype, value).tobytes()  # type: ignore[no-any-return]


def exact_scalar(dtype: DType, value: Any) -> Any:
    """Return a value as a scalar of `dtype`, or raise if the conversion would change the value."""
    array = _scalar_array(dtype, value)
    if array.ndim:
        raise TypeError(f"expected one {dtype}, got {type(value).__name__}")
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        return _integer(dtype, array.item())
    converted, is_changed = convert_exactly(array, dtype)
    if is_changed:
        raise ValueError(f"{dtype} cannot hold {array[()]}: {_lossless_hint(array.dtype, dtype)}")
    return converted[()]


def _integer(dtype: DType, value: int) -> Any:
    """Return an integer as a NumPy scalar."""
    try:
        return dtype.type(value)
    except OverflowError:
        limits, bits = np.iinfo(dtype), value.bit_length()
        number = f"{value}" if bits <= 64 else f"an integer of {quantity(bits, 'bit')}"
        raise OverflowError(
            f"{number} is out of bounds for {dtype}, which holds {limits.min} to {limits.max}: "
            "choose a wider one in columns=, or 'str_int'"
        ) from None


def _lossless_hint(value_dtype: DType, column_dtype: DType) -> str:
    """Return advice for a value of `value_dtype` that `column_dtype` cannot hold."""
    if value_dtype.kind in "fc" and column_dtype.kind in "fc":
        return "it is beyond that dtype's range; choose a wider one in columns="
    if value_dtype.kind in "iufb":
        return f"round or convert it first, or choose {value_dtype.name!r} in columns="
    return f"choose {value_dtype.name!r} in columns="


def _scalar_array(dtype: DType, value: Any) -> AnyArray:
    """Return a scalar of Python or another library as a zero-dimensional array."""
    if isinstance(value, bool | int | float | complex) and not isinstance(value, np.generic):
        return _python_number(value)
    if array_like.is_array(value):
        return array_like.as_array(value)
    if array_like.is_time(value):
        return array_like.time_array(value, dtype)
    raise TypeError(f"expected one {dtype}, got {type(value).__name__}")


def _python_number(value: Any) -> AnyArray:
    try:
        return np.asarray(value, None if type(value) is not int or value < 1 << 63 else np.uint64)
    except OverflowError:
        raise ValueError(
            f"an integer of {quantity(value.bit_length(), 'bit')}: 'str_int' holds any integer"
        ) from None


def scalar_decoder(dtype: DType) -> Callable[[Body], Any]:
    """Return the decoder of the bytes that `encode_scalar` returns."""
    code = _STRUCT_CODES.get(dtype.name) if dtype.isnative else None
    if code is not None:
        return partial(_unpack_scalar, dtype.type, code)
    return partial(_view_scalar, dtype)


# Narrower floats are missing: struct converts them to double, which changes the payload of a NaN.
_STRUCT_CODES = {
    **{"int8": "<b", "int16": "<h", "int32": "<i", "int64": "<q", "float64": "<d"},
    **{"uint8": "<B", "uint16": "<H", "uint32": "<I", "uint64": "<Q"},
}


def _unpack_scalar(scalar: Callable[..., Any], code: str, body: Body) -> Any:
    try:
        return scalar(*struct.unpack(code, body))
    except struct.error as error:
        raise ValueError(f"{quantity(len(body), 'byte')} for a number: {error}") from None


def _view_scalar(dtype: DType, body: Body) -> Any:
    check_length(body, dtype.itemsize, dtype)
    values = np.frombuffer(body, dtype)
    check_bools(values)
    return values[0]


def encode_array(dtype: DType | None, shape: tuple[int, ...] | None, value: Any) -> bytes:
    """Return the body of an array.

    `dtype` and `shape` are those in the encoding's name, or None if the name contains none.
    """
    array = checked_array(value)
    if dtype is not None and array.dtype != dtype:
        raise ValueError(f"expected an array of dtype {dtype}, got {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"expected an array of shape {shape}, got {array.shape}")
    code = b""
    if dtype is None:
        if array.dtype not in _CODES:
            raise ValueError(
                f"an 'ndarray' column holds no {array.dtype}: make it one of "
                f"'ndarray:{array.dtype}', all of whose arrays have that dtype"
            )
        code = bytes([_CODES[array.dtype]])
    head = b"" if shape is not None else shape_head(stored_shape(array.dtype, array.shape))
    return b"".join((code, head, array.tobytes()))


def decode_array(dtype: DType | None, body: Body) -> AnyArray:
    """Return the array in a body with a shape head.

    `dtype` is the dtype of the elements; they may be stored as another dtype. If `dtype` is None,
    the body starts with a dtype code.
    """
    stored_dtype = None if dtype is None else storage_dtype(dtype) or dtype
    stored_dtype, shape, start = parse_array_head(body, stored_dtype)
    if dtype is not None and dtype.kind == "c":
        *complex_shape, parts = shape
        if parts != 2 or not complex_shape:
            raise ValueError(
                f"{dtype} stored as {stored_dtype} of shape {shape}: the last axis must be 2"
            )
        shape = tuple(complex_shape)
    array = np.ndarray(shape, stored_dtype if dtype is None else dtype, body, start).copy()
    check_bools(array)
    return array


def decode_fixed(
    name: str, size: int, dtype: DType, shape: tuple[int, ...], body: Body
) -> AnyArray:
    """Return the array in a body without a head; the encoding `name` fixes dtype and shape."""
    check_length(body, size, name)
    array = np.ndarray(shape, dtype, body).copy()
    check_bools(array)
    return array


def encode_headless(dtype: DType, value: Any) -> bytes:
    """Return the values of a one-dimensional array, without a head."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        raise TypeError(f"expected a one-dimensional array of dtype {dtype}")
    return value.tobytes()


def decode_headless(dtype: DType, body: Body) -> AnyArray:
    """Return the one-dimensional array in a body without a head."""
    if len(body) % dtype.itemsize:
        raise ValueError(f"{quantity(len(body), 'byte')}: not a multiple of the size of {dtype}")
    array = np.frombuffer(body, dtype).copy()
    check_bools(array)
    return array


def parse_array_head(body: Body, dtype: DType | None = None) -> tuple[DType, tuple[int, ...], int]:
    """Return an array's stored dtype, its shape, and the offset of its values in the body.

    Parameters
    ----------
    body : bytes or memoryview
        The whole body. No bytes may follow the values.
    dtype : dtype, optional
        The stored dtype that the encoding names. By default, the body starts with a dtype code.

    Examples
    --------
    >>> parse_array_head(bytes([16, 2 << 2, 1, 2]) + bytes(4))
    (dtype('uint16'), (1, 2), 4)
    """
    start = 0
    if dtype is None:
        start = 1
        dtype = DTYPE_CODES.get(body[0]) if len(body) else None
        if dtype is None:
            raise ValueError(
                f"an array starts with {bytes(body[:1])!r}; dtype codes are {list(DTYPE_CODES)}"
            )
    ndim, width = divmod(body[start], 4) if start < len(body) else (0, 0)
    stop = start + 1 + (ndim << width)
    if stop > len(body):
        raise ValueError(f"an array ends at byte {len(body)} of its head of {stop}")
    shape = tuple(np.frombuffer(body, _WIDTHS[width], ndim, start + 1).tolist())
    if not shape or 0 in shape or prod(shape) * dtype.itemsize != len(body) - stop:
        raise ValueError(
            f"{quantity(len(body) - stop, 'byte')} of values for {dtype} of shape {shape}"
        )
    return dtype, shape, stop


def shape_head(shape: tuple[int, ...]) -> bytes:
    """Return the bytes that state an array's number of axes and its dimensions."""
    width = next(w for w in range(4) if max(shape) < 1 << (8 << w))
    return bytes([len(shape) << 2 | width]) + np.array(shape, _WIDTHS[width]).tobytes()
