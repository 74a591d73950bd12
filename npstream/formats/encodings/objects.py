"""Encoders and decoders of Python objects: int, bytes, str, numbers as text, JSON."""

from __future__ import annotations

import json
import operator
from typing import Any

import numpy as np

from npstream._core import array_like
from npstream._core.arguments import quantity
from npstream._core.typing import Body
from npstream.formats.encodings.arrays import check_length

__all__ = [
    "decode_int",
    "decode_json",
    "decode_str",
    "decode_str_decimal",
    "decode_str_float",
    "decode_str_int",
    "encode_bytes",
    "encode_int",
    "encode_json",
    "encode_str",
    "encode_str_decimal",
    "encode_str_float",
    "encode_str_int",
]


def encode_int(value: Any) -> bytes:
    """Return an integer as int64."""
    number = _integer(value)
    try:
        return number.to_bytes(8, "little", signed=True)
    except OverflowError:
        raise OverflowError(
            f"an integer of {quantity(number.bit_length(), 'bit')} does not fit the 64 of the "
            "encoding 'int'; 'str_int' holds any integer"
        ) from None


def decode_int(body: Body) -> int:
    """Return the Python int that `encode_int` encoded."""
    check_length(body, 8, "int")
    return int.from_bytes(body, "little", signed=True)


def _integer(value: Any) -> int:
    try:
        if not getattr(value, "ndim", 0):  # some one-element arrays define __index__
            return int(operator.index(value))
    except TypeError:
        pass
    raise TypeError(f"expected an int, got {type(value).__name__}")


def encode_bytes(value: Any) -> bytes:
    """Return a bytearray or memoryview of bytes as `bytes`."""
    if not isinstance(value, bytearray | memoryview):
        raise TypeError(f"expected bytes, got {type(value).__name__}")
    if isinstance(value, memoryview) and (value.ndim, value.itemsize) != (1, 1):
        raise TypeError("expected bytes, got a memoryview of something else: use its cast('B')")
    return bytes(value)


def encode_str(value: Any) -> bytes:
    """Return text as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"expected a str, got {type(value).__name__}")
    return value.encode()


def decode_str(body: Body) -> str:
    """Return UTF-8 as text."""
    return str(body, "utf-8")


def encode_str_int(value: Any) -> bytes:
    """Return an integer of any size as text."""
    return str(_integer(value)).encode()


def decode_str_int(body: Body) -> int:
    """Parse an integer."""
    return int(decode_str(body))


def encode_str_float(value: Any) -> bytes:
    """Return a float as the shortest text that round-trips."""
    if not isinstance(value, float):
        raise TypeError(f"expected a float, got {type(value).__name__}")
    return str(float(value)).encode()


def decode_str_float(body: Body) -> float:
    """Parse a float."""
    return float(decode_str(body))


def encode_str_decimal(value: Any) -> bytes:
    """Return a `decimal.Decimal` as text, which keeps its scale."""
    import decimal

    if not isinstance(value, decimal.Decimal):
        raise TypeError(f"expected a decimal.Decimal, got {type(value).__name__}")
    return str(value).encode()


def decode_str_decimal(body: Body) -> Any:
    """Parse a `decimal.Decimal`."""
    import decimal

    text = decode_str(body)
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(f"not a decimal number: {text[:40]!r}") from None


def encode_json(value: Any) -> bytes:
    """Return a value as JSON; a tuple becomes a list, and so does an array that is the whole value.

    Keys must be str, because JSON would silently convert other keys to text.
    """
    if isinstance(value, np.ndarray):
        array = array_like.as_array(value)
        if array.dtype.kind in "mM" or array.dtype.names is not None:
            # tolist() converts some of these to integers, and drops the names of fields.
            raise TypeError(f"JSON cannot store an array of {array.dtype}: convert it first")
        value = array.tolist()
    text = json.dumps(value).encode()
    _check_keys(value)
    return text


def _check_keys(value: Any) -> None:
    """Raise TypeError for keys that are not str: JSON would silently convert them to text."""
    items = value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"its key {key!r} would become text: make it a str, or use 'pkl'")
        items = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in items:
        if type(item) not in _LEAVES:
            _check_keys(item)


_LEAVES = frozenset((str, int, float, bool, type(None)))


def decode_json(body: Body) -> Any:
    """Parse JSON."""
    try:
        return json.loads(decode_str(body))
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
