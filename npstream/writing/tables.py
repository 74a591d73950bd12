"""Provide columns and tables to write: their encodings, and their rows in blocks.

`npstream.writing.inputs.recognition` makes them from the objects that users give. Classes of
npstream make them by a method ``_writer_input``; see `Writable`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import tee
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from npstream._core import array_like
from npstream._core.arguments import quantity
from npstream._core.array_like import is_missing
from npstream._core.dtypes import convert_exactly, invalid_bool_byte
from npstream._core.memory import address_of
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.errors import ColumnError, MissingDependencyError, NpstreamError
from npstream.formats.encodings.encodings import Encoding, column_type, infer, type_of_array
from npstream.writing.inputs.fill import NO_FILL, Fill, is_absent, keeps_nan
from npstream.writing.shard import Bodies, ColumnBlock, bodies_of_rows

if TYPE_CHECKING:
    from npstream.writing.shard import ShardFormat

Bounds: TypeAlias = "Iterable[tuple[int, int]]"
"""Pairs of the first row of a block and the row after its last. Blocks are consecutive."""


class InputColumn(Protocol):
    """A column to write.

    ``row_bytes`` is the approximate size of a row, or None if it is unknown. ``chunk`` is the
    number of rows that the source reads at once; it is 1 for rows in memory.

    A class may also have these members:

    - ``check()`` raises RowError if there is a missing value and no fill.
    - ``is_array`` is True if blocks for an encoding of a fixed size are never `Bodies`.
    - ``is_stable`` is True if its arrays stay unchanged while later blocks are read.
    """

    length: int
    row_bytes: int | None
    chunk: int

    def encoding(self) -> Encoding:
        """Return the encoding that keeps the column's type."""

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows: arrays or encoded values if possible, which are written faster."""


class InputTable(Protocol):
    """Columns of one length to write; see `InputColumn`.

    ``has_array_blocks`` is True if no column of a fixed size yields blocks of encoded values
    (`Bodies`).

    A class may also have these members:

    - ``has_stable_blocks`` is True if ``is_stable`` is True for all columns.
    - ``available_names`` has all column names of the user's table, for messages.
    """

    length: int
    row_bytes: int | None
    chunk: int
    has_array_blocks: bool

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""

    def encoding(self, name: str) -> Encoding:
        """Return the encoding that keeps a column as it is."""

    def blocks(
        self, bounds: Bounds, target: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns in `target`."""

    def stored_samples(self, bounds: Bounds, layout: ShardFormat) -> StoredSamples | None:
        """Return the rows as samples of a shard format; None if they must be encoded."""


@dataclass(frozen=True, slots=True)
class StoredSamples:
    """Whole samples that shards of a dataset already hold in the format to write.

    Attributes
    ----------
    blocks : iterator of Bodies
        The bytes of samples.
    are_memory_mapped : bool
        True if the samples are in memory-mapped files, so that a block takes no memory.
    """

    blocks: Iterator[Bodies]
    are_memory_mapped: bool


@dataclass(frozen=True, slots=True)
class TableStream:
    """A sequence of tables with the same columns, which can be read only once.

    Attributes
    ----------
    head : InputTable
        A table that defines the encodings. Its rows are not written, unless `tables` repeats it.
    tables : iterator of InputTable
        The tables to write.
    """

    head: InputTable
    tables: Iterator[InputTable]


class Writable(Protocol):
    """A class of npstream whose rows can be written."""

    def _writer_input(self) -> InputColumn | InputTable | TableStream | None:
        """Return a column, a table or tables; None for samples that are written one by one."""


class ArrowStream(Protocol):
    """A table of any library that implements Arrow's stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return a capsule of an ArrowArrayStream."""


class MapDataset(Protocol):
    """Samples by number, such as a map-style Dataset of torch."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a sample."""


def with_column(column: object, error: Exception) -> Exception:
    """Return an exception whose message starts with the name of the column."""
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
        The column's name, for the message.
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

    def sample_error(self, first: int) -> ValueError:
        """Return an error with the sample's number; row 0 of the table is sample `first`."""
        return ValueError(f"sample {first + self.row}: {self._text}")


def missing_advice(kind: str) -> str:
    """Return advice for a column with missing values; `kind` is that of its dtype.

    Examples
    --------
    >>> missing_advice("f")
    "give fill= a value for the column, such as float('nan'), or leave these samples out with \
on_error='skip'"
    """
    missing = {"f": "float('nan')", "M": "np.datetime64('NaT', 's')"}.get(kind)
    example = f", such as {missing}" if missing else ""
    return (
        f"give fill= a value for the column{example}, or leave these samples out with "
        "on_error='skip'"
    )


@contextmanager
def sample_numbers(first: int) -> Iterator[None]:
    """Replace the row in a RowError by the sample number; row 0 is sample `first`."""
    try:
        yield
    except RowError as error:
        raise error.sample_error(first) from error.__cause__


class ListColumn:
    """A list of Python values of any types.

    Parameters
    ----------
    values : sequence
    source_encoding : str, optional
        The encoding for the type of the column in its source, such as "str" for text of pandas.
    fill : Fill
        Replaces missing values.
    """

    def __init__(
        self, values: Any, source_encoding: str | None = None, fill: Fill = NO_FILL
    ) -> None:
        self.length = len(values)
        self.row_bytes: int | None = None
        self.chunk = 1
        self._values = values
        self._source_encoding = source_encoding
        self._fill = fill

    def encoding(self) -> Encoding:
        """Return an encoding that is inferred from the first value that is not missing.

        Return the source's encoding instead if there are no values, or if its kind is "object" or
        "ndarray". One value does not show whether a column is of these kinds.
        """
        if self._source_encoding is not None:
            encoding = column_type(self._source_encoding)
            if encoding.kind in ("object", "ndarray") or not self.length:
                return encoding
        if not self.length:
            raise ValueError("it has no values to infer an encoding from: name one in columns=")
        first = self._values[0]
        if self._fill:
            text = column_type("str")  # an encoding that cannot store NaN, so NaN counts as missing
            first = next((v for v in self._values if not is_absent(v, text)), None)
            if first is None:
                return self._fill.encoding()
        elif is_missing(first):
            first = next((v for v in self._values if not is_missing(v)), first)
        return infer(first)

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield the values, to be encoded one by one."""
        for start, stop in bounds:
            yield self._fill.values(self._values[start:stop], target)


class ArrayColumn:
    """An array, in memory or in a file that another library reads block by block.

    Parameters
    ----------
    read : callable
        Returns rows ``start`` to ``stop``.
    length : int
        Number of rows.
    dtype : dtype
    shape : tuple of int
        The shape of a row.
    source_encoding : str, optional
        The encoding of the column in the dataset that it comes from.
    chunk : int, default: 1
        Number of rows that the source reads at once.
    fill : Fill
        Replaces NaN and NaT if the target encoding cannot store them.
    is_stable : bool, default: False
        Whether the arrays that `read` returns stay unchanged during later calls of `read`. The
        array of another library may return the same memory again.
    """

    is_array = True

    def __init__(
        self,
        read: Callable[[int, int], Any],
        length: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        source_encoding: str | None = None,
        chunk: int = 1,
        fill: Fill = NO_FILL,
        is_stable: bool = False,
    ) -> None:
        self._fill, self.is_stable = fill, is_stable
        self.length = length
        self.row_bytes: int | None = dtype.itemsize * prod(shape)
        self.chunk = chunk
        self._read = read
        self._dtype = dtype.newbyteorder("=")
        self._shape = shape
        self._source_encoding = source_encoding

    def encoding(self) -> Encoding:
        """Return the encoding of the dtype and the shape of a row."""
        if self._source_encoding is not None:
            encoding = self._matching_encoding(self._source_encoding)
            if encoding is not None:
                return encoding
        return type_of_array(self._dtype, self._shape)

    def _matching_encoding(self, name: str) -> Encoding | None:
        """Return the encoding `name`, if it matches the dtype and shape; otherwise None."""
        with suppress(ValueError, NpstreamError):
            encoding = column_type(name)
            fits = encoding.dtype == self._dtype and (encoding.shape or ()) == self._shape
            if fits and encoding.kind in ("fixed", "int_text", "float_text"):
                return encoding
        return None

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of the array, in the dtype of `target`."""
        for start, stop in bounds:
            block = array_like.as_array(self._read(start, stop))
            if len(block) != stop - start:
                raise ValueError(
                    f"rows {start} to {stop}: {quantity(len(block), 'row')} came, so the length "
                    "has changed"
                )
            missing = nan_mask(block, target) if self._fill else None
            if missing is None:
                yield convert_rows(block, target)
            else:
                rows = convert_rows(np.where(missing, block.dtype.type(0), block), target)
                yield self._fill.block(rows, missing, target)


def nan_mask(block: AnyArray, target: Encoding) -> Bools | None:
    """Return a mask of NaN or NaT; None if there are none, or if `target` stores them."""
    if block.ndim != 1 or block.dtype.kind not in "fmM" or keeps_nan(target):
        return None
    missing: Bools = np.isnat(block) if block.dtype.kind in "mM" else np.isnan(block)
    return missing if missing.any() else None


def convert_rows(block: AnyArray, target: Encoding) -> ColumnBlock:
    """Return rows as an array of the encoding's dtype, or as a list of values to encode.

    Only scalars are converted. Rows that are arrays are returned as a list unless their dtype and
    shape are those of the encoding; the encoder checks that list.
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
    column : InputColumn
        The values in missing rows are ignored.
    missing : ndarray of bool
        The mask.
    fill : Fill
        Replaces the missing rows.
    """

    def __init__(self, column: InputColumn, missing: Bools, fill: Fill) -> None:
        self.length, self.row_bytes, self.chunk = column.length, column.row_bytes, column.chunk
        self.is_array = getattr(column, "is_array", False)
        self._column, self._missing, self._fill = column, missing, fill

    def encoding(self) -> Encoding:
        """Return the column's encoding, or that of the fill value if all rows are missing."""
        if self._fill and self._missing.all() and self.length:
            return self._fill.encoding()
        return self._column.encoding()

    def check(self) -> None:
        """Raise RowError if a missing row is not filled."""
        if not self._fill and self._missing.any():
            raise self._error(self._missing, 0)

    def _error(self, missing: Bools, start: int) -> RowError:
        return RowError(
            start + int(missing.argmax()),
            f"{quantity(int(missing.sum()), 'missing value')} of {len(missing):,}; this is the "
            f"first: {missing_advice(self._column.encoding().dtype.kind)} or .dropna()",
        )

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows with missing rows filled."""
        mask_bounds, column_bounds = tee(bounds)
        rows = self._column.blocks(column_bounds, target)
        for start, stop in mask_bounds:
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
        return self._fill.encoding()

    def blocks(self, bounds: Bounds, target: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of the encoded value."""
        body = np.frombuffer(self._fill.body(target), np.uint8)
        for start, stop in bounds:
            if target.kind == "fixed":
                value = body.view(target.dtype.newbyteorder("<")).reshape(target.shape or ())
                yield np.broadcast_to(value, (stop - start, *value.shape))
            else:
                address = np.full(stop - start, address_of(body), np.int64)
                yield Bodies(address, np.full(stop - start, len(body), np.int64), body)


class RaggedColumn:
    """Rows of different lengths in one array.

    Parameters
    ----------
    elements : ndarray, 1-d
        Numbers, or the bytes of encoded values.
    offsets : ndarray of int64, shape (n + 1,)
        Row k is ``elements[offsets[k]:offsets[k + 1]]``.
    encoding : Encoding or None
        The column's encoding. None for encoded images of an unknown format.
    shapes : ndarray of int64, shape (n, ndim) or None
        The shape of each row; None for 1-d rows.
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
                "the encoding of its images is unknown: name 'jpeg', 'png' or 'pil' in columns="
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
                yield Bodies.from_offsets(self._elements, offsets)
            else:
                yield self._values(start, stop)

    @property
    def _holds_arrays(self) -> bool:
        return self._encoding is not None and self._encoding.kind == "ndarray"


class Columns:
    """A table made of columns.

    Parameters
    ----------
    columns : mapping of str to InputColumn
    available_names : collection of str, optional
        All column names of the user's table, for error messages; by default those of `columns`.

    Raises
    ------
    ValueError
        If the columns differ in length.
    """

    def __init__(
        self, columns: Mapping[str, InputColumn], available_names: Collection[str] | None = None
    ) -> None:
        lengths = {name: column.length for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")
        self.length = next(iter(lengths.values()), 0)
        sizes = [column.row_bytes for column in columns.values()]
        self.row_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        self.chunk = max((column.chunk for column in columns.values()), default=1)
        self.has_array_blocks = all(
            getattr(column, "is_array", False) for column in columns.values()
        )
        self.has_stable_blocks = all(
            getattr(column, "is_stable", False) for column in columns.values()
        )
        self._columns = dict(columns)
        self.available_names = list(columns if available_names is None else available_names)

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return list(self._columns)

    def check(self) -> None:
        """Raise RowError if a column has missing values and no fill."""
        for name, column in self._columns.items():
            if hasattr(column, "check"):
                try:
                    column.check()
                except RowError as error:
                    raise with_column(name, error) from None

    def encoding(self, name: str) -> Encoding:
        """Return the encoding that keeps the type of a column."""
        return self._columns[name].encoding()

    def blocks(
        self, bounds: Bounds, target: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns in `target`."""
        column_bounds = tee(bounds, len(target))
        columns = [
            _with_column_errors(name, self._columns[name].blocks(own_bounds, encoding))
            for own_bounds, (name, encoding) in zip(column_bounds, target.items(), strict=True)
        ]
        for blocks in zip(*columns, strict=True):
            yield dict(zip(target, blocks, strict=True))

    def stored_samples(self, bounds: Bounds, layout: ShardFormat) -> None:
        """Return None: columns must be joined to samples."""


def _with_column_errors(name: str, blocks: Iterator[ColumnBlock]) -> Iterator[ColumnBlock]:
    """Yield the blocks of a column, and add its name to exceptions."""
    try:
        yield from blocks
    except NpstreamError:
        raise
    except (TypeError, ValueError) as error:
        raise with_column(name, error) from error


def is_utf8_text(text: str) -> bool:
    """Return True if UTF-8 can encode a text, which then has no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def infer_column(name: str, value: Any) -> Encoding:
    """Return the encoding inferred from a value of a column."""
    try:
        return infer(value)
    except (TypeError, ValueError) as error:
        raise with_column(name, error) from error


def parse_column(name: str, encoding: str) -> Encoding:
    """Return the encoding that a user named for a column."""
    try:
        return column_type(encoding)
    except NpstreamError:
        raise
    except ValueError as error:
        raise with_column(name, error) from None


def table_encodings(table: InputTable, names: Collection[str] | None = None) -> dict[str, Encoding]:
    """Return the encodings that keep the types of the columns in `names`; by default of all."""
    encodings = {}
    existing = table.names()
    for name in existing if names is None else names:
        if name not in existing:
            raise ColumnError(name, getattr(table, "available_names", existing))
        try:
            encodings[name] = table.encoding(name)
        except NpstreamError:
            raise
        except (TypeError, ValueError) as error:
            raise with_column(name, error) from error
    return encodings
