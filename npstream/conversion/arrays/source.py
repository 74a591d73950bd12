"""Provide `ArraySource`, the base class of sources whose files contain arrays.

Each array is a column, and all arrays have the same number of rows. A part has some of the rows.

Tested in tests/conversion/arrays/test_numpy_files.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm, prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.dtypes import storage_dtype
from npstream._core.typing import AnyArray
from npstream.conversion.source import InputSource
from npstream.errors import NpstreamError
from npstream.formats.encodings.encodings import infer, type_of_array
from npstream.writing.inputs.parts import Part
from npstream.writing.tables import with_column

if TYPE_CHECKING:
    from npstream.conversion.files import FileList
    from npstream.conversion.source import SourceRequest

__all__ = ["ArrayField", "ArraySource", "ArrayTable", "StoredArray", "array_fields"]

PART_BYTES = 1 << 25
"""Approximate bytes of the rows of a part, which are read by one call."""

_PART_ROWS = 1 << 16
"""Rows of a part whose values vary in size."""

_BLOCK_BYTES = 1 << 23
"""Approximate bytes of values of varying size that one call reads."""

_FIRST_ROWS = 16
"""Rows that the first of these calls reads. Their values show how many rows a later call reads."""

_MAX_ALIGNED_BYTES = 1 << 26
"""Maximum bytes of a part whose ends are aligned to the chunks of all arrays."""


class StoredArray(Protocol):
    """An array in a file: its first axis has the rows.

    ``text`` is ``"str"`` or ``"bytes"`` if the values are text or bytes, whatever their dtype.
    ``ragged`` is the dtype of the elements if values are arrays of varying length, else None.
    ``chunk`` is the number of rows that are stored together.
    """

    where: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    text: str | None
    ragged: np.dtype[Any] | None
    chunk: int

    def read(self, start: int, stop: int) -> Any:
        """Return rows as an array, or as an object array if they vary in size."""


@dataclass(frozen=True)
class ArrayField:
    """A column of a table: an array, or a field of a structured one."""

    array: StoredArray
    encoding: str
    field: str | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.array.shape[0]

    @property
    def row_bytes(self) -> int | None:
        """Bytes of a row of the array, with all fields; None if rows vary in size."""
        array = self.array
        if array.dtype.hasobject or array.dtype.kind == "T":
            return None
        return array.dtype.itemsize * prod(array.shape[1:])


@dataclass(frozen=True)
class ArrayTable:
    """Arrays of one length, such as those of a file.

    Attributes
    ----------
    name : str
        Identifies the table among those of the source.
    where : str
        The file, for messages.
    columns : dict of str to ArrayField
    """

    name: str
    where: str
    columns: dict[str, ArrayField]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return next(iter(self.columns.values())).rows

    def check_lengths(self, hint: str) -> None:
        """Raise ValueError if the arrays differ in length."""
        lengths = {name: field.rows for name, field in self.columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(
                f"{name!r} has {quantity(rows, 'row')}" for name, rows in lengths.items()
            )
            raise ValueError(
                f"{self.where}: the arrays differ in length, and columns do not: {shown}: "
                f"name those to write with columns={hint}"
            )

    def steps(self) -> Iterator[tuple[int, int]]:
        """Yield the first row of each part, and the row after its last."""
        fields = self.columns.values()
        sizes = [field.row_bytes for field in fields]
        rows, chunks = _PART_ROWS, {max(field.array.chunk, 1) for field in fields}
        if None not in sizes:
            row_bytes = max(sum(size or 0 for size in sizes), 1)
            rows = max(PART_BYTES // row_bytes, 1)
            # If each part has whole chunks of all arrays, no chunk is read twice.
            aligned = lcm(*chunks)
            if aligned * row_bytes > _MAX_ALIGNED_BYTES:
                aligned = max(chunks)
            rows = max(rows // aligned, 1) * aligned
        for start in range(0, self.rows, rows):
            yield start, min(start + rows, self.rows)

    def read(self, start: int, stop: int) -> Any:
        """Return rows: arrays by column, or an iterator of samples if values vary in size."""
        if any(field.row_bytes is None for field in self.columns.values()):
            return self._samples(start, stop)
        return self._arrays(start, stop)

    def _arrays(self, start: int, stop: int) -> dict[str, AnyArray]:
        # Fields of one structured array share the array, which is read once.
        rows_by_array: dict[int, Any] = {}
        columns = {}
        for name, field in self.columns.items():
            key = id(field.array)
            if key not in rows_by_array:
                rows_by_array[key] = self._read(name, field, start, stop)
            rows = rows_by_array[key]
            columns[name] = rows if field.field is None else rows[field.field]
        return columns

    def _read(self, name: str, field: ArrayField, start: int, stop: int) -> Any:
        rows = field.array.read(start, stop)
        if len(rows) != stop - start:
            raise ValueError(
                f"{field.array.where}: column {name!r}: {quantity(len(rows), 'row')} came instead "
                f"of {stop - start:,}: the file has changed"
            )
        return rows

    def _samples(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield rows as samples, from blocks of about `_BLOCK_BYTES`."""
        rows = _FIRST_ROWS
        while start < stop:
            block = self._arrays(start, min(start + rows, stop))
            values = [_values(block[name], field.encoding) for name, field in self.columns.items()]
            nbytes, count = 0, 0
            for row in zip(*values, strict=True):
                yield dict(zip(self.columns, row, strict=True))
                nbytes += sum(getattr(value, "nbytes", None) or _size(value) for value in row)
                count += 1
            start += count
            rows = min(max(_BLOCK_BYTES * count // max(nbytes, 1), 1), 4 * rows, _PART_ROWS)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else 8


def _values(rows: Any, encoding: str) -> Iterable[Any]:
    """Return rows as the Python values or arrays of an encoding."""
    if encoding in ("str", "bytes"):
        return list(rows.tolist() if isinstance(rows, np.ndarray) else rows)
    return list(rows)


def array_fields(name: str, array: StoredArray, has_short_names: bool) -> dict[str, ArrayField]:
    """Return the columns of an array: one, or one for each field of a structured array.

    Parameters
    ----------
    name : str
        The name of the array.
    array : StoredArray
    has_short_names : bool
        True to name the column of a structured array's field ``field``; False for ``name.field``.

    Raises
    ------
    TypeError, ValueError
        If the values of the array cannot be stored.
    """
    try:
        if not array.shape:
            raise ValueError("it is a single value, and an array of rows has an axis for them")
        if array.text is not None:
            if len(array.shape) > 1:
                raise ValueError(f"its rows are arrays of text, of shape {array.shape[1:]}")
            return {name: ArrayField(array, array.text)}
        if array.ragged is not None:
            if len(array.shape) > 1:
                raise ValueError(f"its rows are several arrays, of shape {array.shape[1:]}")
            return {name: ArrayField(array, f"ndarray:{_dtype_name(array.ragged)}")}
        if array.dtype.names is None:
            return {name: ArrayField(array, _encoding(array.dtype, array.shape[1:]))}
        columns = {}
        for field in array.dtype.names:
            field_dtype = array.dtype[field]
            shape = array.shape[1:] + field_dtype.shape
            if field_dtype.base.names or field_dtype.base.hasobject:
                raise TypeError(f"its field {field!r} has fields or objects of its own")
            column = field if has_short_names else f"{name}.{field}"
            columns[column] = ArrayField(array, _encoding(field_dtype.base, shape), field)
        return columns
    except NpstreamError:
        raise
    except (TypeError, ValueError) as error:
        column_error = with_column(name, error)
        raise type(column_error)(
            f"{array.where}: {column_error}: leave it out: columns= names those to write"
        ) from None


def _dtype_name(dtype: np.dtype[Any]) -> str:
    _encoding(dtype, ())  # raises TypeError for a dtype without an encoding
    return dtype.newbyteorder("=").name


def _encoding(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    dtype = dtype.newbyteorder("=")
    if dtype.kind in "US" and not shape:
        return "str" if dtype.kind == "U" else "bytes"
    if dtype.kind in "OUST" or (dtype.kind == "V" and storage_dtype(dtype) is None):
        raise TypeError(f"its values, of dtype {dtype} and shape {shape}, have no encoding")
    return type_of_array(dtype, shape).name


class ArraySource(InputSource):
    """The base class of sources whose files contain arrays.

    A subclass for a file format defines `_named_arrays`, which returns the arrays of all tables.
    """

    column_hint: ClassVar[str] = "[...]"
    """The ``columns=`` that the error for arrays of different lengths suggests."""

    def __init__(self, files: FileList, request: SourceRequest) -> None:
        super().__init__(files, request)
        tables = [self._table(name, where, arrays) for name, where, arrays in self._named_arrays()]
        first = tables[0]
        for table in tables[1:]:
            _check_same(first, table)
        self._tables = [table for table in tables if table.rows] or tables[:1]
        self.columns = {
            name: request.encodings.get(name, field.encoding)
            for name, field in first.columns.items()
        }
        for name, value in request.fill.items():
            if name not in self.columns and (request.columns is None or name in request.columns):
                self.columns[name] = request.encodings.get(name) or infer(value).name
        self.samples = sum(table.rows for table in tables)

    @abstractmethod
    def _named_arrays(self) -> Iterable[tuple[str, str, Mapping[str, StoredArray]]]:
        """Return the name of each table, its location for messages, and its arrays by name."""

    def _table(self, name: str, where: str, arrays: Mapping[str, StoredArray]) -> ArrayTable:
        if not arrays:
            raise ValueError(f"{where}: there are no arrays")
        requested = self.request.columns
        fields: dict[str, ArrayField] = {}
        for key, array in arrays.items():
            if requested is None or key in requested or array.dtype.names:
                # A field of a structured array is named `array.field` if the file has other arrays,
                # or if the user names such a column.
                is_prefixed = any(name.startswith(f"{key}.") for name in requested or ())
                columns = array_fields(key, array, len(arrays) == 1 and not is_prefixed)
                if clash := set(columns) & set(fields):
                    raise ValueError(f"{where}: two columns have the name {clash.pop()!r}")
                fields.update(columns)
        available = list(fields)
        if requested is not None:  # the error for an unknown column shows all names
            plain_names = (key for key, array in arrays.items() if not array.dtype.names)
            available = list(dict.fromkeys([*fields, *plain_names]))
        names = self.select_columns(available, where)
        if not names:
            raise ValueError(f"{where}: columns= names none of the arrays {list(arrays)}")
        table = ArrayTable(name, where, {key: fields[key] for key in names})
        table.check_lengths(self.column_hint)
        return table

    def parts(self) -> Sequence[Part]:
        """Return the parts. Each has some rows of a table."""
        return [
            Part(f"{table.name}[{start}:{stop}]", partial(table.read, start, stop), stop - start)
            for table in self._tables
            for start, stop in (list(table.steps()) or [(0, 0)])
        ]


def _check_same(first: ArrayTable, other: ArrayTable) -> None:
    """Raise ValueError if two files differ in their columns."""
    expected = {name: field.encoding for name, field in first.columns.items()}
    actual = {name: field.encoding for name, field in other.columns.items()}
    if expected != actual:
        names = {**expected, **actual}
        name = next(name for name in names if expected.get(name) != actual.get(name))
        raise ValueError(
            f"{other.where}: column {name!r} is {actual.get(name, 'missing')!r}, and "
            f"{expected.get(name, 'missing')!r} in {first.where}: all files need the same columns; "
            "convert them apart, or name the columns to write with columns="
        )
