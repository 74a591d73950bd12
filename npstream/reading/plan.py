"""Provide `Field`, a column to read, and `Plan`, which prepares reads of several columns.

Tested in tests/reading/test_plan.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from npstream._core import memory
from npstream._core.typing import AnyArray, Bools, Int64, Sample
from npstream.formats.encodings.encodings import Encoding, view_as
from npstream.indexing.columns import Cell, byte_runs, coalesce_runs
from npstream.storage.coalesce import REQUEST_BYTES, parts_are_cheaper, transfer_cost

if TYPE_CHECKING:
    from npstream.formats.mds import SampleLayout
    from npstream.reading.batch import Ragged


class Computation(Protocol):
    """Computes the values of a column that is not stored, from row numbers."""

    def column(self, rows: Int64) -> AnyArray | Ragged:
        """Return the values at rows, in the form in which `gather` returns a stored column."""
        ...

    def value(self, row: int) -> Any:
        """Return the value at one row, as a sample contains it."""
        ...

    def equal(self, rows: Int64, text: bytes) -> Bools:
        """Return True where a column of text or bytes equals `text`."""
        ...


class ValuePart(NamedTuple):
    """A part of each value of a fixed column.

    A computed column has no stored bytes. Its `first`, `stop` and `shape` are those of the whole
    value, and `is_contiguous` is False.

    Attributes
    ----------
    first, stop : int
        The byte range that is copied from each value.
    shape : tuple of int
        The shape of the copied elements: that of the part if it is contiguous, otherwise flat.
    cell : Cell
        The position of the part: an int or a range for each axis of a value.
    is_contiguous : bool
        True if the part is one contiguous byte range.
    elements : sequence of sequence of int
        For each axis of a value, the positions that are needed, ascending. Elements at other
        positions may be left unread; their values are then undefined.
    """

    first: int
    stop: int
    shape: tuple[int, ...]
    cell: Cell
    is_contiguous: bool
    elements: Sequence[Sequence[int]]


class Field(NamedTuple):
    """A column to read, and the encoding of its values.

    ``part`` restricts a fixed column to a part of each value. ``computation`` computes the values
    of a column that no shard stores. ``table`` is 0 if the source's own shards store the column,
    otherwise the number of the joined source that does, see `npstream.reading.source.Source`.
    """

    name: str
    encoding: Encoding
    part: ValuePart | None = None
    computation: Computation | None = None
    table: int = 0

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one value as read; None if it varies."""
        return self.part.shape if self.part else self.encoding.shape

    def view(self, meaning: Any) -> Field:
        """Return the column with its bytes reinterpreted.

        Parameters
        ----------
        meaning : str or dtype
            The name of an encoding, or a dtype, as in `view_as`.

        Raises
        ------
        ValueError
            If the bytes cannot have that meaning, or if the column is computed.
        """
        if self.computation is not None:
            raise ValueError(
                f"column {self.name!r} is computed, not stored: it has no bytes to declare as "
                f"{meaning!r}; convert its values once they are loaded"
            )
        return self._replace(encoding=view_as(self.encoding, meaning))

    def restrict(self, cell: Cell, elements: Sequence[Sequence[int]] | None = None) -> Field:
        """Return the column restricted to a part of each value.

        Parameters
        ----------
        cell : Cell
            The position of the part.
        elements : sequence of sequence of int, optional
            For each axis of a value, the positions that are needed, ascending; by default all
            positions of the part.
        """
        shape, itemsize = self.encoding.shape, self.encoding.dtype.itemsize
        assert shape is not None
        if cell == Cell.whole(shape):
            return self._replace(part=None)
        positions = cell.positions if elements is None else elements
        if self.computation is not None:  # a computation returns whole values
            part = ValuePart(0, itemsize * prod(shape), shape, cell, False, positions)
        elif (byte_range := cell.byte_range(shape, itemsize)) is not None:
            part = ValuePart(*byte_range, cell.shape, cell, True, positions)
        else:
            first, stop = cell.bounds(shape)
            flat = (stop - first,)
            part = ValuePart(first * itemsize, stop * itemsize, flat, cell, False, positions)
        return self._replace(part=part)

    def byte_ranges(self, gap: int) -> Sequence[tuple[int, int]]:
        """Return the needed byte ranges of a value, merged over gaps of up to `gap` bytes."""
        if self.part is None:
            assert self.encoding.size is not None
            return ((0, self.encoding.size),)
        assert self.encoding.shape is not None
        return byte_runs(self.part.elements, self.encoding.shape, self.encoding.dtype.itemsize, gap)

    @property
    def is_read_exactly(self) -> bool:
        """True if values are read in their final shape: whole, or as one contiguous part."""
        return self.part is None or self.part.is_contiguous

    def take_part(self, values: AnyArray) -> AnyArray:
        """Return the part of values that were read with this field."""
        part, shape = self.part, self.encoding.shape
        if part is None or part.is_contiguous:
            return values
        if self.computation is not None:
            part_values: AnyArray = values[(..., *part.cell.index)]
            return part_values
        assert shape is not None
        return part.cell.strided_view(values, shape)

    def allocate(self, n: int, pool: memory.BufferPool | None = None) -> AnyArray:
        """Return an array for `n` values that all have one size.

        It has the column's dtype if the values are numbers or arrays, and uint8 otherwise. Its
        memory is new, or that of a pool.
        """
        shape, dtype = self.shape, self.encoding.dtype
        if self.encoding.kind != "fixed":
            assert self.encoding.size is not None
            shape, dtype = (self.encoding.size,), np.dtype(np.uint8)
        assert shape is not None
        nbytes = n * dtype.itemsize * prod(shape)
        memory.ensure_fits(nbytes, "rows ({:,}) of column {!r}", n, self.name)
        # Unneeded elements may be left unread. Bools are checked later, so unread bools must be 0.
        if self.part is not None and dtype.kind == "b":
            return np.zeros((n, *shape), dtype)
        if pool is not None:
            return pool.empty(n * prod(shape), dtype).reshape(n, *shape)
        return np.empty((n, *shape), dtype)


class SampleSplit(NamedTuple):
    """How to split the samples of a schema into columns.

    Attributes
    ----------
    columns : ndarray of int64, shape (1 + columns to read, 3)
        The argument `columns` of the kernel `npstream.shards.kernels.read`.
    fixed, variable : list of Field
        The columns of fixed and of variable size, in the order of `columns`. The kernel copies
        fixed columns. For variable columns, it returns the address and length of each value.
    opaque : list of Field
        The columns in `fixed` whose values are bytes, for example text that always has one size.
    """

    columns: Int64
    fixed: list[Field]
    variable: list[Field]
    opaque: list[Field]


class PartialRead(NamedTuple):
    """The byte ranges to read of each sample, instead of the whole sample.

    Attributes
    ----------
    byte_ranges : ndarray of int64, shape (k, 2)
        The first byte of each range within a sample, and the byte after its last.
    copies : dict of str to list of (int, int, int)
        For each column, the copies that fill a value: the first byte in the concatenated ranges,
        the first byte in the value as read, and the number of bytes.
    """

    byte_ranges: Int64
    copies: dict[str, list[tuple[int, int, int]]]


class Plan:
    """Columns to read, with the prepared splits of each schema.

    Attributes
    ----------
    fields : tuple of Field
        The columns, in order.
    computed : dict of str to Computation
        The computations of the columns that are not stored.
    has_only_own_columns : bool
        True if the source's own shards store all columns: none is computed or joined.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.computed = {f.name: f.computation for f in fields if f.computation is not None}
        self.has_only_own_columns = not self.computed and not any(f.table for f in fields)
        self._splits: dict[int, SampleSplit] = {}
        self._partial_reads: dict[int, PartialRead | None] = {}

    @cached_property
    def stored_plan(self) -> Plan:
        """The plan of the stored columns; this plan if all columns are stored."""
        if not self.computed:
            return self
        return Plan([field for field in self.fields if field.computation is None])

    @cached_property
    def own_plan(self) -> Plan:
        """The plan of the columns in the source's own shards; this plan if these are all."""
        if self.has_only_own_columns:
            return self
        return Plan([f for f in self.fields if f.computation is None and not f.table])

    @cached_property
    def joined_plans(self) -> dict[int, Plan]:
        """The plan of each joined source with columns of this plan, by the source's number."""
        numbers = dict.fromkeys(f.table for f in self.fields if f.table)
        return {
            number: Plan([f._replace(table=0) for f in self.fields if f.table == number])
            for number in numbers
        }

    def add_computed(self, sample: Sample, row: int) -> Sample:
        """Return `sample`, which has the stored columns, with the computed columns of `row`."""
        computed = self.computed
        return {
            f.name: computed[f.name].value(row) if f.name in computed else sample[f.name]
            for f in self.fields
        }

    @cached_property
    def is_empty(self) -> bool:
        """True if no bytes are read: there are no columns, or their parts have no elements."""
        return all(f.part is not None and f.part.first == f.part.stop for f in self.fields)

    @cached_property
    def encodings(self) -> dict[str, str]:
        """The name of each column's encoding."""
        return {field.name: field.encoding.name for field in self.fields}

    @cached_property
    def fixed_values(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """The shape and the dtype of a value as read, of each column of numbers or arrays."""
        return {
            f.name: (f.shape, f.encoding.dtype)
            for f in self.fields
            if f.encoding.kind == "fixed" and f.shape is not None
        }

    def split(self, schema: int, layout: SampleLayout) -> SampleSplit:
        """Return how to split the samples of an MDS schema."""
        split = self._splits.get(schema)
        if split is None:
            split = self._splits[schema] = self._make_split(layout)
        return split

    def partial_read(self, schema: int, layout: SampleLayout | None) -> PartialRead | None:
        """Return the byte ranges to read of samples; None to read whole samples.

        Samples are read whole if they vary in size, or if reading byte ranges would take about as
        long.
        """
        if schema not in self._partial_reads:
            partial_read = None
            if layout is not None and layout.stride and not self.is_empty:
                partial_read = self._make_partial_read(layout)
            self._partial_reads[schema] = partial_read
        return self._partial_reads[schema]

    def _make_partial_read(self, layout: SampleLayout) -> PartialRead | None:
        whole_cost = transfer_cost(1, layout.stride)
        if not parts_are_cheaper(transfer_cost(1, 1), whole_cost):
            return None  # even one byte of each sample would take about as long as the whole
        # For each byte range of a column: its begin and end in the sample, its begin in the value
        # as read, and the name of the column.
        column_ranges = []
        for f in self.fields:
            offset, first = layout.columns[f.name].offset, f.part.first if f.part else 0
            for begin, end in f.byte_ranges(REQUEST_BYTES):
                if end > begin:
                    column_ranges.append((offset + begin, offset + end, begin - first, f.name))
        column_ranges.sort()
        byte_ranges = coalesce_runs([entry[:2] for entry in column_ranges], REQUEST_BYTES)
        nbytes = sum(end - begin for begin, end in byte_ranges)
        cost = transfer_cost(len(byte_ranges), nbytes)
        if not (byte_ranges and parts_are_cheaper(cost, whole_cost)):
            return None
        copies: dict[str, list[tuple[int, int, int]]] = {f.name: [] for f in self.fields}
        # Each column range lies in one of the byte ranges, and both ascend.
        range_iterator = iter(byte_ranges)
        range_offset = 0  # where the current byte range begins in the concatenated ranges
        start = stop = column_ranges[0][0]
        for begin, end, target, name in column_ranges:
            if begin >= stop:
                range_offset += stop - start
                start, stop = next(range_iterator)
            copies[name].append((range_offset + begin - start, target, end - begin))
        return PartialRead(np.array(byte_ranges, np.int64), copies)

    def _make_split(self, layout: SampleLayout) -> SampleSplit:
        fixed, variable, fixed_rows, variable_rows = [], [], [], []
        for f in self.fields:
            column = layout.columns[f.name]
            if column.size is None:
                variable.append(f)
                variable_rows.append((column.variable_before, column.offset, 0))
            else:
                first, stop = (f.part.first, f.part.stop) if f.part else (0, column.size)
                fixed.append(f)
                fixed_rows.append((column.variable_before, column.offset + first, stop - first))
        first_row = (layout.nvariable, layout.fixed_nbytes, len(fixed))
        columns = np.array([first_row, *fixed_rows, *variable_rows], np.int64)
        opaque = [f for f in fixed if f.encoding.kind != "fixed"]
        return SampleSplit(columns, fixed, variable, opaque)
