"""Provide `StoredTable` and `find_bodies`: rows of a view as they are stored, for a writer to copy.

Tested in tests/writing/test_copies.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core import memory
from npstream._core.spans import copy_spans
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.errors import NpstreamError
from npstream.formats import text
from npstream.formats.encodings.encodings import Encoding, column_type, type_of_array
from npstream.reading.gather import VariableColumn, read_lines
from npstream.reading.plan import Field, Plan
from npstream.reading.ragged import Ragged
from npstream.reading.schema import schema_fields
from npstream.writing.shard import Bodies, bodies_of_rows
from npstream.writing.tables import StoredSamples, convert_rows

if TYPE_CHECKING:
    from npstream.formats.index import Schema
    from npstream.formats.mds import SampleLayout
    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Lookup
    from npstream.reading.source import Source
    from npstream.shards.table import Fetcher
    from npstream.writing.shard import ColumnBlock, ShardFormat
    from npstream.writing.tables import Bounds


class StoredTable:
    """Columns of a one-dimensional view whose values a writer copies without decoding them.

    It is an `InputTable`; see `npstream.writing.tables`.

    Parameters
    ----------
    source : Source
    selection : Selection
    fields : sequence of Field
        Whole columns, not parts of them.
    """

    def __init__(self, source: Source, selection: Selection, fields: tuple[Field, ...]) -> None:
        self.length = selection.size
        total = source.estimate_read_bytes(Plan(fields))
        self.row_bytes: int | None = total // max(source.index.samples, 1)
        self.chunk = 1
        self.is_arrays = False
        self._source = source
        self._selection = selection
        self._fields = {field.name: field for field in fields}

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return list(self._fields)

    def encoding(self, name: str) -> Encoding:
        """Return the encoding to write a column with.

        It is the column's encoding if its stored bytes can be copied under that name. A column that
        was declared with another dtype gets the encoding of an array of this dtype.
        """
        encoding = self._fields[name].encoding
        if encoding.kind == "ndarray" and encoding.headless:
            type_of_array(encoding.dtype, ())  # raises if the dtype cannot be stored
            return column_type(f"ndarray:{encoding.dtype.name}")
        if encoding.kind == "fixed" and not is_copied_verbatim(encoding):
            return type_of_array(encoding.dtype, encoding.shape or ())
        return encoding

    def blocks(
        self, bounds: Bounds, encodings: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of some columns, in the encodings to write them with."""
        fields_to_copy: list[Field] = []
        fields_to_convert: list[Field] = []
        for name, encoding in encodings.items():
            can_copy = self._has_same_bytes(name, encoding)
            (fields_to_copy if can_copy else fields_to_convert).append(self._fields[name])
        plan, first = Plan(fields_to_copy), 0
        for lookup in self._lookups(bounds, Plan([*fields_to_copy, *fields_to_convert])):
            columns: dict[str, ColumnBlock] = dict(self._source.bodies(plan, lookup))
            for field in fields_to_convert:
                encoding = encodings[field.name]
                columns[field.name] = self._convert_rows(field, lookup, encoding, first)
            yield columns
            first += len(lookup.rows)

    def _lookups(self, bounds: Bounds, plan: Plan) -> Iterator[Lookup]:
        """Yield the lookup of each block of rows, and fetch the plan's columns of later blocks.

        While samples ascend, decompressed shards are released once they are read.
        """
        blocks = (self._selection.ids(start, stop) for start, stop in bounds)
        is_rowwise = self._source.is_view_rowwise(self._selection, plan)
        fetcher, last_sample = self._source.fetcher, 0  # -1: the samples do not ascend
        kept_shards = fetcher.buffered_shards()  # other readers may use these
        for _, lookup in self._source.read_ahead(
            blocks, lambda ids: ids, plan, self._selection.step, is_rowwise
        ):
            if last_sample >= 0 and len(lookup.samples):
                first_sample = int(lookup.samples.min())
                is_ascending = first_sample >= last_sample
                last_sample = int(lookup.samples.max()) if is_ascending else -1
                if last_sample >= 0:
                    fetcher.release_buffers(first_sample, kept_shards)
            yield lookup

    def _has_same_bytes(self, name: str, encoding: Encoding) -> bool:
        """Return True if the stored bytes of a column are valid in another encoding."""
        stored = self._fields[name].encoding
        return is_copied_verbatim(stored) and stored.stored_name == encoding.stored_name

    def stored_samples(self, bounds: Bounds, layout: ShardFormat) -> StoredSamples | None:
        """Return the rows as whole samples; None if a column must be left out or converted."""
        index, target_schema = self._source.index, layout.schema
        fields = [*self._fields.values()]
        if layout.columns.keys() != self._fields.keys() or not Plan(fields).has_only_own_columns:
            return None
        if target_schema.format == "mds":
            # The names of encodings may differ if their bytes do not, such as int and int64.
            key = target_schema.format, target_schema.names, target_schema.sizes
            can_copy = all((s.format, s.names, s.sizes) == key for s in index.schemas) and all(
                self._has_same_bytes(name, encoding) for name, encoding in layout.columns.items()
            )
        else:
            target_fields = schema_fields(target_schema, index.where)
            can_copy = all(schema == target_schema for schema in index.schemas) and all(
                field.encoding == target_fields[field.name].encoding for field in fields
            )
        if not can_copy:
            return None
        lookups = self._lookups(bounds, Plan(fields))
        blocks = (self._source.whole_samples(lookup) for lookup in lookups)
        is_mapped = not self._source.remotes and not index.compressed.any()
        return StoredSamples(blocks, is_mapped)

    def _convert_rows(
        self, field: Field, lookup: Lookup, encoding: Encoding, first: int
    ) -> ColumnBlock:
        """Return rows of a column in another encoding; `first` is the number of the first row."""
        plan = Plan([field])
        if field.encoding.kind == encoding.kind == "fixed":
            numbers = self._source.columns(plan, lookup, {})[field.name]
            assert isinstance(numbers, np.ndarray)
            return convert_rows(numbers, encoding)
        if field.encoding.headless and encoding.kind == "ndarray":
            rows = self._source.columns(plan, lookup, {})[field.name]
            assert isinstance(rows, Ragged)
            try:
                return bodies_of_rows(rows.values, rows.offsets, rows.shapes, encoding, first)
            except ValueError as error:
                raise ValueError(
                    f"column {field.name!r}: {error}; open the dataset without columns= to copy "
                    "its bytes as they are"
                ) from error
        return self._source.values(plan, lookup)


def stored_table(
    source: Source, selection: Selection, names: tuple[str, ...]
) -> StoredTable | None:
    """Return the `StoredTable` of a view; None if its samples are transformed."""
    if source.has_transforms:
        return None
    if selection.ndim != 1:
        raise ValueError(
            f"a view of shape {selection.shape} is not a sequence of samples: write its ravel()"
        )
    return StoredTable(source, selection, source.plan(names).fields)


class StoredColumn:
    """One column of a `StoredTable`."""

    def __init__(self, table: StoredTable, name: str) -> None:
        self.name = name
        self.length, self.chunk = table.length, table.chunk
        self.row_bytes: int | None = None
        self._table = table

    def encoding(self) -> Encoding:
        """Return the encoding of the column, see `StoredTable.encoding`."""
        return self._table.encoding(self.name)

    def blocks(self, bounds: Bounds, encoding: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows, in the encoding to write them with."""
        for columns in self._table.blocks(bounds, {self.name: encoding}):
            yield columns[self.name]


def is_copied_verbatim(encoding: Encoding) -> bool:
    """Return True if the stored bytes of values are valid under the name of their encoding."""
    if encoding.kind != "fixed":
        return not encoding.headless
    try:
        return column_type(encoding.name) == encoding
    except (ValueError, NpstreamError):
        return False


def find_bodies(fetcher: Fetcher, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Locate the stored bytes of columns, for a writer to copy.

    Parameters
    ----------
    fetcher : Fetcher
    plan : Plan
        A plan of whole columns, none of them computed. If it has no columns, no shard is read.
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, with duplicates.
    """
    index = fetcher.index
    if not plan.fields:
        return {}
    if len(index.schemas) <= 1:
        return _find_schema_bodies(fetcher, 0, plan, ids)
    schema_ids = index.schema_ids[np.searchsorted(index.starts, ids, side="right") - 1]
    owners: list[object] = []
    spans = {field.name: np.empty((2, len(ids)), np.int64) for field in plan.fields}
    for schema in np.unique(schema_ids).tolist():
        rows = np.flatnonzero(schema_ids == schema)
        for name, part in _find_schema_bodies(fetcher, schema, plan, ids[rows]).items():
            spans[name][:, rows] = part.address, part.nbytes
            owners.append(part.owner)
    return {name: Bodies(address, nbytes, owners) for name, (address, nbytes) in spans.items()}


def _find_schema_bodies(fetcher: Fetcher, schema: int, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Locate the stored bytes of columns of samples that all have one schema."""
    layout = fetcher.layouts[schema] if fetcher.layouts else None
    if layout is None:
        return _encode_lines(fetcher, schema, plan, ids)
    address, nbytes, owner = fetcher.locate_and_prefetch(ids)
    sizes = _read_sizes(fetcher, layout, ids, address, nbytes)
    encodings = {field.name: field.encoding for field in plan.fields}
    bodies, body_address = {}, address + 4 * layout.nvariable
    for name, column in layout.columns.items():
        if column.size is None:
            size = sizes[:, column.variable_before].astype(np.int64)
        else:
            size = np.full(len(ids), column.size, np.int64)
        if name in encodings:
            bodies[name] = Bodies(body_address, size, owner)
        body_address = body_address + size
    _check_sizes(fetcher, ids, body_address != address + nbytes)
    for name, encoding in encodings.items():
        if encoding.size is not None:
            begin, size = bodies[name].address, bodies[name].nbytes
            values = VariableColumn(fetcher, Field(name, encoding), ids, [np.stack((begin, size))])
            values.raise_if(size != encoding.size, f"{encoding.name!r} takes {encoding.size}")
    return {name: bodies[name] for name in encodings}


def _read_sizes(
    fetcher: Fetcher, layout: SampleLayout, ids: Int64, address: Int64, nbytes: Int64
) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the sizes of the variable columns of samples, shape (n, variable columns)."""
    _check_sizes(fetcher, ids, nbytes < 4 * layout.nvariable + layout.fixed_nbytes)
    sizes = np.empty((len(ids), layout.nvariable), "<u4")
    header = np.full(len(ids), 4 * layout.nvariable, np.int64)
    offsets = header * np.arange(len(ids))
    copy_spans.for_size(len(ids))(address, header, offsets, memory.address_of(sizes))
    return sizes


def find_samples(fetcher: Fetcher, ids: Int64) -> Bodies:
    """Locate whole samples, for a writer to copy; check that the sizes of columns add up.

    Lines of text are checked to be whole lines.

    Parameters
    ----------
    fetcher : Fetcher
    ids : ndarray of int64, shape (n,)
        Sample numbers, in any order, with duplicates.
    """
    index = fetcher.index
    address, nbytes, owner = fetcher.locate_and_prefetch(ids)
    schema_ids = index.schema_ids[np.searchsorted(index.starts, ids, side="right") - 1]
    for schema in np.unique(schema_ids).tolist():
        rows = slice(None) if len(index.schemas) == 1 else np.flatnonzero(schema_ids == schema)
        row_ids, begins, lengths = ids[rows], address[rows], nbytes[rows]
        layout = fetcher.layouts[schema]
        if layout is None:
            _check_lines(fetcher, index.schemas[schema], row_ids, begins, lengths)
        else:
            sizes = _read_sizes(fetcher, layout, row_ids, begins, lengths)
            total = sizes.sum(axis=1, dtype=np.int64) + 4 * layout.nvariable + layout.fixed_nbytes
            _check_sizes(fetcher, row_ids, total != lengths)
    return Bodies(address, nbytes, owner)


def _check_lines(
    fetcher: Fetcher, schema: Schema, ids: Int64, address: Int64, nbytes: Int64
) -> None:
    """Raise FormatError unless each span is one whole line."""
    guard = text.guard_nbytes(schema)
    for sample, begin, length in zip(ids.tolist(), address.tolist(), nbytes.tolist(), strict=True):
        if not text.is_complete_line(schema, ctypes.string_at(begin - guard, length + guard)):
            fetcher.raise_damaged(sample, "it is not one whole line")


def _check_sizes(fetcher: Fetcher, ids: Int64, is_wrong: Bools) -> None:
    """Raise FormatError for the first sample where `is_wrong` is True."""
    if is_wrong.any():
        sample = int(ids[int(is_wrong.argmax())])
        fetcher.raise_damaged(sample, "the sizes of its columns do not add up to its length")


def _encode_lines(fetcher: Fetcher, schema: int, plan: Plan, ids: Int64) -> dict[str, Bodies]:
    """Encode columns of samples that are lines of text."""
    bodies = {}
    for name, values in read_lines(fetcher, schema, [f.name for f in plan.fields], ids).items():
        encode = next(f.encoding.encode for f in plan.fields if f.name == name)
        encoded = []
        for sample, value in zip(ids.tolist(), values, strict=True):
            try:
                encoded.append(encode(value))
            except (ValueError, OverflowError) as error:
                where = fetcher.shards.describe(sample)
                raise type(error)(f"{where}: column {name!r}: {error}") from None
        bodies[name] = Bodies.from_list(encoded)
    return bodies


def column_bodies(column: AnyArray | Ragged) -> Bodies:
    """Return the stored bytes of a gathered column's rows, for a writer to copy."""
    if isinstance(column, Ragged):
        return Bodies.from_offsets(column.values, column.offsets)
    rows = np.ascontiguousarray(column)
    size = rows.dtype.itemsize * prod(rows.shape[1:])
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * size
    return Bodies.from_offsets(rows.reshape(-1).view(np.uint8), offsets)
