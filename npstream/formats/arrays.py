"""Arrays and scalars as bytes.

The body of an array is ``[dtype code] [shape head] values``: the code only where the column
names no dtype, the head only where it names no shape. The head is one byte, ``ndim << 2 | w``,
and each dimension in ``2**w`` bytes. All numbers are little-endian, all values in C order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, TypeAlias

import numpy as np

from npstream._typing import AnyArray, Body

__all__ = [
    "DTYPES",
    "DTYPE_CODES",
    "MAX_NDIM",
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
]

DType: TypeAlias = np.dtype[Any]

DTYPES = {
    name: np.dtype(name)
    for name in (
        *("uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32"),
        *("uint64", "int64", "float64"),
    )
}
"""The dtypes that columns can have, by name."""

DTYPE_CODES = {8 * d.itemsize + "uif".index(d.kind): d for d in DTYPES.values()}
"""The same by the code that starts an array whose column names no dtype."""

MAX_NDIM = 63
"""An array's head counts its dimensions in six bits."""

_CODES = {dtype: code for code, dtype in DTYPE_CODES.items()}

_WIDTHS = "BHIQ"
"""The type of a head's dimensions, by w."""


def check_length(body: Body, size: int, name: object) -> None:
    """Refuse a body that has not the length which its column fixes."""
    if len(body) != size:
        raise ValueError(f"{len(body)} bytes for a value of {name}, which takes {size}")


def checked_array(value: Any) -> AnyArray:
    """Return an array that can be stored, in the machine's byte order, or say why not."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"expected an array, got {type(value).__name__}")
    if not 0 < value.ndim <= MAX_NDIM or not value.size:
        raise ValueError(
            f"cannot store an array of shape {value.shape}: it must have an element, and "
            f"1 to {MAX_NDIM} axes"
        )
    if value.dtype.kind not in "uif" or value.dtype.newbyteorder("=") not in _CODES:
        hint = "view it as uint8" if value.dtype.kind == "b" else f"known are {', '.join(DTYPES)}"
        raise ValueError(f"cannot store an array of dtype {value.dtype}: {hint}")
    return value.astype(value.dtype.newbyteorder("="), copy=False)


def encode_scalar(dtype: DType, value: Any) -> bytes:
    """Return a number as `dtype` stores it: NumPy's conversion, but never wrapped around."""
    if dtype.kind in "iu" and getattr(value, "ndim", None) == 0:
        value = value.item()  # NumPy checks the range of Python's integers only
    scalar = dtype.type(value)
    if not isinstance(scalar, np.generic):
        raise TypeError(f"expected one {dtype}, got {type(value).__name__}")
    return scalar.tobytes()


def scalar_decoder(dtype: DType) -> Callable[[Body], Any]:
    """Return what turns the body that `encode_scalar` made into a scalar again."""
    code = _STRUCT_CODES.get(dtype.name) if dtype.isnative else None
    if code is not None:
        return partial(_unpack_scalar, dtype.type, code)
    return partial(_view_scalar, dtype)


# The narrower floats are left out: a NaN's payload would not survive the way through a double.
_STRUCT_CODES = {
    **{"int8": "<b", "int16": "<h", "int32": "<i", "int64": "<q", "float64": "<d"},
    **{"uint8": "<B", "uint16": "<H", "uint32": "<I", "uint64": "<Q"},
}


def _unpack_scalar(scalar: Callable[..., Any], code: str, body: Body) -> Any:
    try:
        return scalar(*struct.unpack(code, body))
    except struct.error as error:
        raise ValueError(f"{len(body)} bytes for a number: {error}") from None


def _view_scalar(dtype: DType, body: Body) -> Any:
    check_length(body, dtype.itemsize, dtype)
    return np.frombuffer(body, dtype)[0]


def encode_array(dtype: DType | None, shape: tuple[int, ...] | None, value: Any) -> bytes:
    """Return an array, after what the column does not say of it: its dtype and its shape."""
    array = checked_array(value)
    if dtype is not None and array.dtype != dtype:
        raise ValueError(f"expected an array of dtype {dtype}, got {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"expected an array of shape {shape}, got {array.shape}")
    code = b"" if dtype is not None else bytes([_CODES[array.dtype]])
    head = b"" if shape is not None else _shape_head(array.shape)
    return b"".join((code, head, array.tobytes()))


def decode_array(dtype: DType | None, body: Body) -> AnyArray:
    """Return the array behind a head."""
    dtype, shape, start = parse_array_head(body, dtype)
    return np.ndarray(shape, dtype, body, start).copy()


def decode_fixed(
    name: str, size: int, dtype: DType, shape: tuple[int, ...], body: Body
) -> AnyArray:
    """Return the array whose dtype and shape the column says."""
    check_length(body, size, name)
    return np.ndarray(shape, dtype, body).copy()


def encode_headless(dtype: DType, value: Any) -> bytes:
    """Return the values of an array and nothing else."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        raise TypeError(f"expected a one-dimensional array of dtype {dtype}")
    return value.tobytes()


def decode_headless(dtype: DType, body: Body) -> AnyArray:
    """Return bytes as the values that they are."""
    if len(body) % dtype.itemsize:
        raise ValueError(f"{len(body)} bytes are no whole number of {dtype}")
    return np.frombuffer(body, dtype).copy()


def parse_array_head(body: Body, dtype: DType | None = None) -> tuple[DType, tuple[int, ...], int]:
    """Return an array's dtype and shape, and where in its body the values start.

    Parameters
    ----------
    body : bytes or memoryview
        The whole body; it must end where the values do.
    dtype : dtype, optional
        The dtype that the column says; without one the body starts with its code.

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
        raise ValueError(f"{len(body) - stop} bytes of values for {dtype} of shape {shape}")
    return dtype, shape, stop


def _shape_head(shape: tuple[int, ...]) -> bytes:
    width = next(w for w in range(4) if max(shape) < 1 << (8 << w))
    return bytes([len(shape) << 2 | width]) + np.array(shape, _WIDTHS[width]).tobytes()
