"""The values that an expression computes with: arrays with their kind and their missing values.

Tested in tests/explore/test_expression.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from npstream._core import array_like
from npstream._core.optional import import_optional
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.reading.ragged import Ragged

__all__ = ["Operand", "operand_of"]

_KINDS = {
    "b": "bool", "i": "number", "u": "number", "f": "number", "c": "number", "T": "text",
    "U": "text", "S": "bytes", "M": "time", "m": "duration", "O": "object",
}  # fmt: skip
"""The kind of an operand for each kind of NumPy dtypes."""

_TEXT = np.dtypes.StringDType()
_BLOCK_ROWS = 1 << 14
"""Rows of a lazy column that `lengths` reads at once."""


class Operand:
    """Values of all rows, or one value for all of them.

    Parameters
    ----------
    data : ndarray, Ragged, Column or scalar
        A scalar is one value for all rows.
    missing : ndarray of bool, optional
        The rows without a value; by default all rows have one.
    kind : str, optional
        ``"bool"``, ``"number"``, ``"text"``, ``"bytes"``, ``"time"``, ``"duration"``,
        ``"array"``, ``"image"``, ``"object"`` or ``"none"``; by default that of `data`.
    name : str, default: ""
        A description for messages, such as ``"column 'label'"``.
    """

    __slots__ = ("data", "kind", "missing", "name")

    def __init__(
        self, data: Any, missing: Bools | None = None, kind: str | None = None, name: str = ""
    ) -> None:
        self.data = data
        self.missing = missing if missing is not None and missing.any() else None
        self.kind = kind or _kind(data)
        self.name = name

    @property
    def is_scalar(self) -> bool:
        """Return True for one value for all rows."""
        return self.kind == "none" or not hasattr(self.data, "__len__") or self._is_literal_text

    @property
    def _is_literal_text(self) -> bool:
        return isinstance(self.data, str)

    @property
    def is_lazy(self) -> bool:
        """Return True for a column that is not read yet."""
        return _is_lazy(self.data)

    def describe(self) -> str:
        """Return the operand's name and kind for a message."""
        return f"{self.name} ({self.kind})" if self.name else f"{self.data!r} ({self.kind})"

    def take(self, rows: Int64) -> Operand:
        """Return the operand for some rows."""
        if self.is_scalar:
            return self
        missing = None if self.missing is None else self.missing[rows]
        return Operand(self.data[rows], missing, self.kind, self.name)

    def load(self) -> Operand:
        """Return the operand with its values in memory."""
        return operand_of(self.data.load(), self.name) if self.is_lazy else self

    def values(self) -> Any:
        """Return the values as an array, a scalar, or a Ragged of arrays or images."""
        data = self.load().data
        if isinstance(data, Ragged) and self.kind in ("text", "bytes"):
            return np.asarray(data)
        return data

    def lengths(self) -> Int64 | int | None:
        """Return the length of each value, as ``len`` of Python; None if values have none."""
        if self.is_lazy:
            return self._lazy_lengths()
        data = self.data
        if self.is_scalar:
            return len(data) if self._is_literal_text else None
        if isinstance(data, Ragged):
            return _ragged_lengths(data)
        if data.ndim > 1:
            return np.full(len(data), data.shape[1], np.int64)
        if self.kind in ("text", "bytes"):
            return np.strings.str_len(data).astype(np.int64)
        if data.dtype.kind == "O" and all(
            hasattr(value, "__len__") for value, is_missing in self._rows() if not is_missing
        ):
            lengths = (0 if is_missing else len(value) for value, is_missing in self._rows())
            return np.fromiter(lengths, np.int64, len(data))
        return None

    def _lazy_lengths(self) -> Int64 | None:
        """Read a column in blocks, and return the lengths of its values."""
        lengths = []
        for start in range(0, len(self.data), _BLOCK_ROWS):
            block = operand_of(self.data[start : start + _BLOCK_ROWS].load(), self.name).lengths()
            if block is None:
                return None
            lengths.append(np.asarray(block))
        return np.concatenate(lengths) if lengths else np.empty(0, np.int64)

    def _rows(self) -> Iterable[tuple[Any, bool]]:
        """Return each value, and True if it is missing."""
        missing = np.zeros(len(self.data), bool) if self.missing is None else self.missing
        return zip(self.data, missing.tolist(), strict=True)


def _is_lazy(data: Any) -> bool:
    return hasattr(data, "load") and not isinstance(data, np.ndarray | Ragged)


def _kind(data: Any) -> str:
    if data is None:
        return "none"
    if isinstance(data, bool | np.bool_):
        return "bool"
    if isinstance(data, str):
        return "text"
    if isinstance(data, Ragged):
        return {None: "array", "str": "text"}.get(data.kind, data.kind or "array")
    dtype = getattr(data, "dtype", None)
    if dtype is None:
        return "number"  # a Python number
    if getattr(data, "ndim", 1) > 1 or dtype.names:
        return "array"
    if _is_lazy(data) and dtype.kind not in "TO" and not _has_scalars(data):
        return "array"
    return _KINDS.get(dtype.kind, "number")  # ml_dtypes's dtypes have kind V


def _has_scalars(column: Any) -> bool:
    """Return True if the values of a one-dimensional Column are scalars, and not arrays.

    `nbytes` raises TypeError if values vary in size. Such values are arrays of variable shape, or
    numbers that are stored as text.
    """
    try:
        return bool(column.nbytes >= 0)
    except TypeError:
        return not isinstance(column[:0].load(), Ragged)  # reads nothing


def _ragged_lengths(rows: Ragged) -> Int64 | None:
    if rows.kind == "image":
        return None
    if rows.kind == "str":
        if not (rows.values & 0x80).any():
            return rows.lengths
        # Count the bytes that are not continuation bytes of UTF-8.
        starts = (rows.values & 0xC0) != 0x80
        counts: Int64 = np.concatenate([[0], np.cumsum(starts, dtype=np.int64)])
        return counts[rows.offsets[1:]] - counts[rows.offsets[:-1]]
    return rows.lengths if rows.shapes is None else rows.shapes[:, 0]


def operand_of(values: Any, name: str = "") -> Operand:
    """Return the values of a column as an operand.

    Parameters
    ----------
    values : ndarray, Ragged, Column, Arrow array, or list
        None, masked values, Arrow's nulls, pandas's NA and, among Python objects, NaN are missing.
    name : str
        A description for messages.
    """
    if isinstance(values, Ragged) or _is_lazy(values):
        return Operand(values, name=name)
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        missing: Bools = np.asarray(mask.reshape(len(mask), -1).any(axis=1))
        return Operand(np.asarray(values.data), missing, name=name)
    if array_like.is_arrow(values):
        return _from_arrow(array_like.arrow_array(values), name)
    if isinstance(values, list | tuple) and not all(map(_is_plain_scalar, values)):
        objects = np.empty(len(values), object)
        for row, value in enumerate(values):
            objects[row] = value  # `objects[:] = values` would broadcast arrays of one shape
        values = objects
    array = np.asarray(values)
    if array.dtype.kind == "T" and hasattr(array.dtype, "na_object"):
        array = array.astype(object)
    if array.dtype.kind == "O" and array.ndim == 1:
        return _from_objects(array, name)
    return Operand(array, name=name)


def _is_plain_scalar(value: object) -> bool:
    return isinstance(value, str | bytes | bool | int | float | np.generic)


def _from_objects(array: AnyArray, name: str) -> Operand:
    """Return an object array as an operand.

    If all present values are text, all are bools, or all are int or float with absolute values
    below 2**63, the operand has an array of their dtype. Otherwise, its kind is ``"array"`` if one
    of them is an array, and ``"object"`` if not.
    """
    objects = array.tolist()
    present = [value for value in objects if not _is_missing(value)]
    missing = None
    if len(present) < len(objects):
        missing = np.fromiter(map(_is_missing, objects), bool, len(objects))
    types = set(map(type, present))
    if np.ndarray in types:
        return Operand(array, missing, "array", name)
    if types and types <= {str, np.str_}:
        converted = np.array(present, _TEXT)
    elif types and types <= {bool, np.bool_}:
        converted = np.array(present, bool)
    elif types and types <= {int, float} and all(abs(v) < 2**63 for v in present):
        converted = np.array(present)
    else:
        return Operand(array, missing, "object", name)
    if missing is None:
        return Operand(converted, name=name)
    result = np.zeros(len(objects), converted.dtype)
    result[~missing] = converted
    return Operand(result, missing, name=name)


def _is_missing(value: Any) -> bool:
    """Return True for a missing value of an object array, including NaN of Python."""
    return array_like.is_missing(value) or (isinstance(value, float) and value != value)


def _from_arrow(array: Any, name: str) -> Operand:
    """Return an Arrow array as an operand; nulls are missing."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps several chunks if text exceeds 2 GiB
        array = array.cast(pa.large_string()).combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    arrow_type, missing = array.type, None
    if array.null_count:
        missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_null(arrow_type):
        return Operand(np.full(len(array), None, object), missing, "object", name)
    is_list = pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type)
    if is_list and not array.values.null_count and pa.types.is_primitive(arrow_type.value_type):
        values = np.asarray(array.values.to_numpy(zero_copy_only=False))
        offsets = np.asarray(array.offsets)
        return Operand(Ragged(values, offsets), missing, name=name)
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        texts = array.to_numpy(zero_copy_only=False)
        if missing is not None:
            texts[missing] = ""
        return Operand(np.asarray(texts, _TEXT), missing, name=name)
    is_plain = pa.types.is_primitive(arrow_type) and not pa.types.is_time(arrow_type)
    if is_plain:  # to_numpy converts timestamps with a time zone to UTC
        values = array
        if missing is not None:
            values = array.drop_null()
        numbers = np.asarray(values.to_numpy(zero_copy_only=False))
        if missing is not None:
            all_rows = np.zeros(len(array), numbers.dtype)
            all_rows[~missing] = numbers
            numbers = all_rows
        return Operand(numbers, missing, name=name)
    objects = np.empty(len(array), object)
    objects[:] = array.to_pylist()
    return _from_objects(objects, name)
