"""Columns and tables to write: their encodings, and their rows in blocks.

`npstream.writing.inputs.recognition` makes them from the objects that users give. Classes of
npstream make them by a method ``_writer_input``; see `Writable`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import tee
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np

from npstream._core import array_like as foreign
from npstream._core.arguments import quantity
from npstream._core.array_like import is_missing
from npstream._core.dtypes import convert_exactly, invalid_bool_byte
from npstream._core.memory import address_of
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.errors import MissingDependencyError, NpstreamError
from npstream.formats.encodings.encodings import Encoding, column_type, infer, type_of_array
from npstream.writing.inputs.fill import NO_FILL, Fill, is_absent, keeps_nan
from npstream.writing.shard import Bodies, ColumnBlock, bodies_of_rows

Bounds: TypeAlias = "Iterable[tuple[int, int]]"
"""The first row of each block, and the row after its last. Blocks are consecutive."""


class GivenColumn(Protocol):
    """A column to write.

    ``row_bytes`` is the approximate size of a row, or None if it is unknown. ``chunk`` is the
    number of rows that the source reads at once; it is 1 for rows in memory.
    """

    length: int
    row_bytes: int | None
    chunk: int

    def encoding(self) -> Encoding:
        """Return the encoding that keeps the column's type."""

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows, if possible in the form that `target` stores."""


class GivenTable(Protocol):
    """Columns of one length to write; see `GivenColumn`.

    ``is_arrays`` is True if blocks of fixed encodings are arrays, or lists of Python values.
    """

    length: int
    row_bytes: int | None
    chunk: int
    is_arrays: bool

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""

    def encoding(self, name: str) -> Encoding:
        """Return the encoding that keeps a column as it is."""

    def blocks(
        self, bounds: Bounds, target: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns in `target`."""


@dataclass(frozen=True, slots=True)
class TableStream:
    """A sequence of tables with the same columns, which can be read only once.

    Attributes
    ----------
    head : GivenTable
        A table that defines the encodings. Its rows are not written, unless `tables` repeats it.
    tables : iterator of GivenTable
        The tables to write.
    """

    head: GivenTable
    tables: Iterator[GivenTable]


class Writable(Protocol):
    """A class of npstream whose rows can be written."""

    def _writer_input(self) -> GivenColumn | GivenTable | None:
        """Return a column, or a table; None for samples that are to be written one by one."""


class ArrowStream(Protocol):
    """A table of any library that implements Arrow's stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return a capsule of an ArrowArrayStream."""


class MapDataset(Protocol):
    """Samples by number, such as a map-style Dataset of torch."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a sample."""


def named(column: object, error: Exception) -> Exception:
    """Return an exception whose message begins with the column of `error`."""
    if isinstance(error, RowError):
        error.column = column
        return error
    if isinstance(error, MissingDependencyError):
        return error
    kind = ValueError if isinstance(error, ValueError) else TypeError
    return kind(f"column {column!r}: {error}")


class RowError(ValueError):
    """A value of a table that cannot be written.

    Parameters
    ----------
    row : int
        The row of the value in its table.
    message : str
        The reason and the fix.
    column : str, optional
    """

    def __init__(self, row: int, message: str, column: object = None) -> None:
        super().__init__(message)
        self.row = row
        self.column = column

    def __str__(self) -> str:
        return f"row {self.row}: {self._text}"

    @property
    def _text(self) -> str:
        return f"column {self.column!r}: {self.args[0]}" if self.column else str(self.args[0])

    def at(self, first: int) -> ValueError:
        """Return the error for users, for a table whose first row is sample `first`."""
        return ValueError(f"sample {first + self.row}: {self._text}")


class ListColumn:
    """A list of Python values of any types."""

    def __init__(self, values: Any, known: str | None = None, fill: Fill = NO_FILL) -> None:
        self.length = len(values)
        self.row_bytes: int | None = None
        self.chunk = 1
        self._values = values
        self._known = known
        self._fill = fill

    def encoding(self) -> Encoding:
        """Return the encoding that the column had, or infer it from the first present value."""
        if self._known is not None:
            known = column_type(self._known)
            if known.kind in ("object", "ndarray") or not self.length:
                return known
        if not self.length:
            raise ValueError("it has no values to tell its encoding: name that in columns=")
        first = self._values[0]
        if self._fill:
            text = column_type("str")  # for which NaN is missing, too
            first = next((v for v in self._values if not is_absent(v, text)), self._fill.value)
        elif is_missing(first):
            first = next((v for v in self._values if not is_missing(v)), first)
        return infer(first)

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield the values, to be encoded one by one."""
        for start, stop in bounds:
            yield self._fill.values(self._values[start:stop], target)


class ArrayColumn:
    """An array, which may be read block by block from its library.

    Parameters
    ----------
    read : callable
        Returns rows ``start`` to ``stop``.
    length : int
    dtype, shape
        Of a row.
    known : str, optional
        The encoding that the column had where it was read.
    chunk : int
        Rows that are read at once.
    fill : Fill
        Used for NaN and NaT where the target encoding has neither.
    """

    is_array = True

    def __init__(
        self,
        read: Callable[[int, int], Any],
        length: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        known: str | None = None,
        chunk: int = 1,
        fill: Fill = NO_FILL,
    ) -> None:
        self._fill = fill
        self.length = length
        self.row_bytes: int | None = dtype.itemsize * prod(shape)
        self.chunk = chunk
        self._read = read
        self._dtype = dtype.newbyteorder("=")
        self._shape = shape
        self._known = known

    def encoding(self) -> Encoding:
        """Return the encoding of the dtype and the shape of a row."""
        if self._known is not None and (known := self._fitting(self._known)) is not None:
            return known
        return type_of_array(self._dtype, self._shape)

    def _fitting(self, name: str) -> Encoding | None:
        """Return the encoding that the column had, if it fits the dtype and shape."""
        with suppress(ValueError, NpstreamError):
            known = column_type(name)
            fits = known.dtype == self._dtype and (known.shape or ()) == self._shape
            if fits and known.kind in ("fixed", "int_text", "float_text"):
                return known
        return None

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of the array, in the dtype of `target`."""
        for start, stop in bounds:
            block = foreign.as_array(self._read(start, stop))
            if len(block) != stop - start:
                raise ValueError(f"rows {start} to {stop} are {len(block)}: its length has changed")
            missing = missing_numbers(block, target) if self._fill else None
            if missing is None:
                yield rows_as(block, target)
            else:
                rows = rows_as(np.where(missing, block.dtype.type(0), block), target)
                yield self._fill.block(rows, missing, target)


def missing_numbers(block: AnyArray, target: Encoding) -> Bools | None:
    """Return a mask of NaN or NaT; None if there are none, or if `target` stores them."""
    if block.ndim != 1 or block.dtype.kind not in "fmM" or keeps_nan(target):
        return None
    missing: Bools = np.isnat(block) if block.dtype.kind in "mM" else np.isnan(block)
    return missing if missing.any() else None


def rows_as(block: AnyArray, target: Encoding) -> ColumnBlock:
    """Return rows in the dtype of an encoding, or else as values to be encoded one by one.

    Only numbers are converted; arrays must have the dtype and shape that the encoding says.
    """
    if target.kind != "fixed" or block.shape[1:] != target.shape:
        return list(block)
    if block.dtype.newbyteorder("=") == target.dtype:
        return block if invalid_bool_byte(block) is None else list(block)
    if not target.shape:
        with suppress(TypeError):
            converted, wrong = convert_exactly(block, target.dtype)
            if not wrong.any():
                return converted
    return list(block)


class MaskedColumn:
    """A column with a mask of missing rows, which are filled.

    Parameters
    ----------
    column : GivenColumn
        Its values in missing rows are ignored.
    missing : ndarray of bool
    fill : Fill
    """

    def __init__(self, column: GivenColumn, missing: Bools, fill: Fill) -> None:
        self.length, self.row_bytes, self.chunk = column.length, column.row_bytes, column.chunk
        self.is_array = getattr(column, "is_array", False)
        self._column, self._missing, self._fill = column, missing, fill

    def encoding(self) -> Encoding:
        """Return the encoding of the column without its mask."""
        if self._fill and self._missing.all() and self.length:
            return infer(self._fill.value)
        return self._column.encoding()

    def check(self) -> None:
        """Raise RowError if a missing row is not filled."""
        if not self._fill and self._missing.any():
            raise self._error(self._missing, 0)

    def _error(self, missing: Bools, start: int) -> RowError:
        return RowError(
            start + int(missing.argmax()),
            f"{quantity(int(missing.sum()), 'missing value')} of {len(missing):,}, of which this "
            "is the first: give fill= a value for the column, or leave these samples out, as with "
            ".dropna()",
        )

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows with missing rows filled."""
        each, others = tee(bounds)
        rows = self._column.blocks(others, target)
        for start, stop in each:
            missing = self._missing[start:stop]
            if not self._fill and missing.any():
                raise self._error(missing, start)
            yield self._fill.block(next(rows), missing, target)


class ConstantColumn:
    """A column of one repeated value, for tables that lack it."""

    def __init__(self, length: int, fill: Fill) -> None:
        self.length, self.chunk = length, 1
        self.row_bytes: int | None = 0
        self._fill = fill

    def encoding(self) -> Encoding:
        """Return the encoding that suits the value."""
        return infer(self._fill.value)

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of the encoded value."""
        body = np.frombuffer(self._fill.body(target), np.uint8)
        for start, stop in bounds:
            if target.kind == "fixed":
                value = body.view(target.dtype.newbyteorder("<")).reshape(target.shape or ())
                yield np.broadcast_to(value, (stop - start, *value.shape))
            else:
                at = np.full(stop - start, address_of(body), np.int64)
                yield Bodies(at, np.full(stop - start, len(body), np.int64), body)


class RowsColumn:
    """Rows of varying length in one array.

    Parameters
    ----------
    elements : ndarray, 1-d
        Numbers, or the bytes of encoded values.
    offsets : ndarray of int64, shape (n + 1,)
    encoding : Encoding or None
        The column's encoding. None for encoded values of an unknown encoding.
    shapes : ndarray of int64, shape (n, ndim), optional
    values : callable
        Returns rows ``start`` to ``stop`` as Python values.
    """

    def __init__(
        self,
        elements: AnyArray,
        offsets: Int64,
        encoding: Encoding | None,
        shapes: Int64 | None,
        values: Callable[[int, int], Sequence[Any]],
    ) -> None:
        self.length = len(offsets) - 1
        nbytes = int(offsets[-1] - offsets[0]) * elements.itemsize
        self.row_bytes: int | None = nbytes // max(self.length, 1)
        self.chunk = 1
        self._elements, self._offsets, self._shapes = elements, offsets, shapes
        self._encoding = encoding
        self._values = values

    def encoding(self) -> Encoding:
        """Return the encoding that was given."""
        if self._encoding is None:
            raise TypeError(
                "nothing tells what its images are: name 'jpeg', 'png' or 'pil' in columns="
            )
        return self._encoding

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield encoded rows, or values if the target is another encoding."""
        for start, stop in bounds:
            offsets = self._offsets[start : stop + 1]
            if target.kind == "ndarray" and not target.headless and self._holds_arrays:
                shapes = None if self._shapes is None else self._shapes[start:stop]
                yield bodies_of_rows(self._elements, offsets, shapes, target, start)
            elif self._encoding is not None and target.stored_name == self._encoding.stored_name:
                yield Bodies.of(self._elements, offsets)
            else:
                yield self._values(start, stop)

    @property
    def _holds_arrays(self) -> bool:
        return self._encoding is not None and self._encoding.kind == "ndarray"


class Columns:
    """A table made of columns.

    Parameters
    ----------
    columns : mapping of str to GivenColumn
    given : collection of str, optional
        All column names of the user's table, for error messages.

    Raises
    ------
    ValueError
        If they differ in length.
    """

    def __init__(
        self, columns: Mapping[str, GivenColumn], given: Collection[str] | None = None
    ) -> None:
        lengths = {name: column.length for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")
        self.length = next(iter(lengths.values()), 0)
        sizes = [column.row_bytes for column in columns.values()]
        self.row_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        self.chunk = max((column.chunk for column in columns.values()), default=1)
        self.is_arrays = all(getattr(column, "is_array", False) for column in columns.values())
        self._columns = dict(columns)
        self.given = list(columns) if given is None else list(given)

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return list(self._columns)

    def check(self) -> None:
        """Raise RowError if it is known that rows cannot be written."""
        for name, column in self._columns.items():
            if hasattr(column, "check"):
                try:
                    column.check()
                except RowError as error:
                    raise named(name, error) from None

    def encoding(self, name: str) -> Encoding:
        """Return the encoding that keeps the type of a column."""
        return self._columns[name].encoding()

    def blocks(
        self, bounds: Bounds, target: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns in `target`."""
        each = tee(bounds, len(target))
        parts = [
            _located(name, self._columns[name].blocks(mine, encoding))
            for mine, (name, encoding) in zip(each, target.items(), strict=True)
        ]
        for row in zip(*parts, strict=True):
            yield dict(zip(target, row, strict=True))


def _located(name: str, blocks: Iterator[ColumnBlock]) -> Iterator[ColumnBlock]:
    """Yield the blocks of a column; exceptions name the column."""
    try:
        yield from blocks
    except NpstreamError:
        raise
    except (TypeError, ValueError) as error:
        raise named(name, error) from error


def has_utf8_name(name: str) -> bool:
    """Return True if a name can be encoded as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def infer_column(name: str, value: Any) -> Encoding:
    """Return the encoding inferred from a value of a column."""
    try:
        return infer(value)
    except (TypeError, ValueError) as error:
        raise named(name, error) from error


def parse_column(name: str, encoding: str) -> Encoding:
    """Return the encoding that a user named for a column."""
    try:
        return column_type(encoding)
    except NpstreamError:
        raise
    except ValueError as error:
        raise named(name, error) from None


def table_encodings(table: GivenTable) -> dict[str, Encoding]:
    """Return the encodings that keep the types of a table's columns."""
    encodings = {}
    for name in table.names():
        try:
            encodings[name] = table.encoding(name)
        except NpstreamError:
            raise
        except (TypeError, ValueError) as error:
            raise named(name, error) from error
    return encodings
