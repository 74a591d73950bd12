"""The rows of a view as they are stored, for a writer to copy.

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
from npstream.writing.shard import bodies_of_rows
from npstream.writing.tables import rows_as

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Lookup
    from npstream.reading.source import Source
    from npstream.writing.shard import ColumnBlock
    from npstream.writing.tables import Bounds


class StoredTable:
    """Columns of a one-dimensional view: values are copied as they are stored, not decoded.

    Parameters
    ----------
    source : Source
    selection : Selection
    fields : sequence of Field
        None of them is cut.
    """

    def __init__(self, source: Source, selection: Selection, fields: tuple[Field, ...]) -> None:
        self.length = selection.size
        self.row_bytes: int | None = source.estimate_bytes(max(selection.size, 1)) // max(
            self.length, 1
        )
        self.chunk = 1
        self.is_arrays = False
        self._source = source
        self._selection = selection
        self._fields = {field.name: field for field in fields}

    def names(self) -> list[str]:
        """Return the names of the columns, in order."""
        return list(self._fields)

    def encoding(self, name: str) -> Encoding:
        """Return the encoding of a column, or the nearest one to what it was declared to be."""
        encoding = self._fields[name].encoding
        if encoding.kind == "ndarray" and encoding.headless:
            type_of_array(encoding.dtype, ())  # says whether there are such arrays
            return column_type(f"ndarray:{encoding.dtype.name}")
        if encoding.kind == "fixed" and not is_copied_verbatim(encoding):
            return type_of_array(encoding.dtype, encoding.shape or ())
        return encoding

    def blocks(
        self, bounds: Bounds, wanted: Mapping[str, Encoding]
    ) -> Iterator[dict[str, ColumnBlock]]:
        """Yield blocks of rows of the columns that are wanted."""
        copied: list[Field] = []
        others: list[Field] = []
        for name, encoding in wanted.items():
            field = self._fields[name]
            same = (
                is_copied_verbatim(field.encoding)
                and field.encoding.stored_name == encoding.stored_name
            )
            (copied if same else others).append(field)
        plan, first = Plan(copied), 0
        pieces = (self._selection.ids(start, stop) for start, stop in bounds)
        rowwise = self._source.is_view_rowwise(self._selection)
        for _, lookup in self._source.read_ahead(
            pieces, lambda ids: ids, self._selection.step, rowwise
        ):
            parts: dict[str, ColumnBlock] = dict(self._source.bodies(plan, lookup))
            for field in others:
                parts[field.name] = self._convert_rows(field, lookup, wanted[field.name], first)
            yield parts
            first += len(lookup.rows)

    def _convert_rows(
        self, field: Field, lookup: Lookup, wanted: Encoding, first: int
    ) -> ColumnBlock:
        """Return rows, from `first` on, that are to be stored otherwise than they are."""
        plan = Plan([field])
        if field.encoding.kind == wanted.kind == "fixed":
            numbers = self._source.columns(plan, lookup, {})[field.name]
            assert isinstance(numbers, np.ndarray)
            return rows_as(numbers, wanted)
        if field.encoding.headless and wanted.kind == "ndarray":
            rows = self._source.columns(plan, lookup, {})[field.name]
            assert isinstance(rows, Ragged)
            try:
                return bodies_of_rows(rows.values, rows.offsets, rows.shapes, wanted, first)
            except ValueError as error:
                raise ValueError(
                    f"column {field.name!r}: {error}; open the dataset without columns= to copy "
                    "its bytes as they are"
                ) from error
        return self._source.values(plan, lookup)


def stored_table(
    source: Source, selection: Selection, names: tuple[str, ...]
) -> StoredTable | None:
    """Return a view for a writer to copy; None if its samples are transformed."""
    if source.has_transforms:
        return None
    if selection.ndim != 1:
        raise ValueError(
            f"a view of shape {selection.shape} is no sequence of samples: write its ravel()"
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

    def blocks(self, bounds: Bounds, wanted: Encoding) -> Iterator[ColumnBlock]:
        """Yield blocks of rows."""
        for parts in self._table.blocks(bounds, {self.name: wanted}):
            yield parts[self.name]


def is_copied_verbatim(encoding: Encoding) -> bool:
    """Return True if the bodies of a column's values are what the encoding's name says."""
    if encoding.kind != "fixed":
        return not encoding.headless
    try:
        return column_type(encoding.name) == encoding
    except (ValueError, NpstreamError):
        return False
