"""Provide `StoredTable`: the rows of a view in their stored form, for a writer to copy.

Tested in tests/writing/test_copies.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from npstream.errors import NpstreamError
from npstream.formats.encodings.encodings import Encoding, column_type, type_of_array
from npstream.reading.plan import Field, Plan
from npstream.reading.ragged import Ragged
from npstream.reading.schema import schema_fields
from npstream.writing.shard import bodies_of_rows
from npstream.writing.tables import StoredSamples, convert_rows

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Lookup
    from npstream.reading.source import Source
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
        self.has_array_blocks = False
        self._source = source
        self._selection = selection
        self._fields = {field.name: field for field in fields}

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return list(self._fields)

    def encoding(self, name: str) -> Encoding:
        """Return the encoding to write a column with.

        This is the encoding that the column was opened with, if the stored bytes are valid under
        that encoding's name. Otherwise the user declared another dtype in ``columns=``. The result
        is then the encoding of arrays of this dtype.
        """
        encoding = self._fields[name].encoding
        # A headless encoding stores only the values of an array, without its dtype and shape.
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
        # The last sample of the last block that was read; -1 if samples do not ascend.
        last_sample = 0
        fetcher = self._source.fetcher
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
    """Return True if the stored bytes of values are valid under the name of their encoding.

    They may not be if the user declared another dtype in ``columns=``, which changes how the bytes
    are read.
    """
    if encoding.kind != "fixed":
        return not encoding.headless
    try:
        return column_type(encoding.name) == encoding
    except (ValueError, NpstreamError):
        return False
