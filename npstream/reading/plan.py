"""Columns to read of samples, and how samples are taken apart for that.

Tested in tests/reading/test_plan.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from npstream._core import memory
from npstream._core.typing import AnyArray, Bools, Int64, Sample
from npstream.formats.encodings.encodings import Encoding, view_as
from npstream.indexing.columns import Cell, byte_runs, coalesce_runs
from npstream.shards.table import SplitArguments
from npstream.storage.coalesce import REQUEST_BYTES, is_worthwhile, transfer_cost

if TYPE_CHECKING:
    from npstream.formats.mds import SampleLayout
    from npstream.reading.batch import Ragged


class Computation(Protocol):
    """Makes the values of a column that is not stored, from the numbers of rows."""

    def column(self, rows: Int64) -> AnyArray | Ragged:
        """Return the values at rows as a stored column of the field's encoding is gathered."""
        ...

    def value(self, row: int) -> Any:
        """Return the value at one row as a sample holds it."""
        ...

    def equal(self, rows: Int64, text: bytes) -> Bools:
        """Return where a column of text, or of bytes, is `text`."""
        ...


class ValuePart(NamedTuple):
    """A part of each value of a fixed column.

    Attributes
    ----------
    first, stop : int
        The bytes of a value that are copied.
    shape : tuple of int
        Shape of what is copied: the part's, if it is one run of bytes; else the elements are flat.
    cell : Cell
        The part.
    is_run : bool
        Whether it is one run of bytes.
    elements : sequence of sequence of int
        For each axis of a value the positions that are wanted, rising. Where samples are read in
        part, other elements may have no meaning.
    """

    first: int
    stop: int
    shape: tuple[int, ...]
    cell: Cell
    is_run: bool
    elements: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Field:
    """A column to read, and the encoding of its values.

    ``part`` restricts a fixed column to a part of each value. ``computation`` makes the values of
    a column that no shard stores.
    """

    name: str
    encoding: Encoding
    part: ValuePart | None = None
    computation: Computation | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one value as read; None where it varies."""
        return self.part.shape if self.part else self.encoding.shape

    def view(self, meaning: Any) -> Field:
        """Return the column with its bytes declared to mean something else.

        Raises
        ------
        ValueError
            If they cannot be that, or if no bytes are stored.
        """
        if self.computation is not None:
            raise ValueError(
                f"column {self.name!r} is computed, not stored: it has no bytes to declare as "
                f"{meaning!r}; convert its values once they are loaded"
            )
        return replace(self, encoding=view_as(self.encoding, meaning))

    def restrict(self, cell: Cell, elements: Sequence[Sequence[int]] | None = None) -> Field:
        """Return the column with a part of each value.

        Parameters
        ----------
        cell : Cell
        elements : sequence of sequence of int, optional
            For each axis of a value the positions that are wanted of the part, rising; by default
            all.
        """
        shape, itemsize = self.encoding.shape, self.encoding.dtype.itemsize
        assert shape is not None
        if cell == Cell.whole(shape):
            return replace(self, part=None)
        wanted = cell.positions if elements is None else elements
        if self.computation is not None:  # which makes whole values
            part = ValuePart(0, itemsize * prod(shape), shape, cell, False, wanted)
        elif (run := cell.contiguous(shape, itemsize)) is not None:
            part = ValuePart(*run, cell.shape, cell, True, wanted)
        else:
            first, stop = cell.bounds(shape)
            flat = (stop - first,)
            part = ValuePart(first * itemsize, stop * itemsize, flat, cell, False, wanted)
        return replace(self, part=part)

    def byte_ranges(self, gap: int) -> Sequence[tuple[int, int]]:
        """Return the bytes of a value that are wanted, as runs more than `gap` bytes apart."""
        if self.part is None:
            assert self.encoding.size is not None
            return ((0, self.encoding.size),)
        assert self.encoding.shape is not None
        return byte_runs(self.part.elements, self.encoding.shape, self.encoding.dtype.itemsize, gap)

    @property
    def is_read_exactly(self) -> bool:
        """Whether values are read as the part is wanted: they are whole, or one run of bytes."""
        return self.part is None or self.part.is_run

    def take_part(self, values: AnyArray) -> AnyArray:
        """Return the part of values, as it was read."""
        part, shape = self.part, self.encoding.shape
        if part is None or part.is_run:
            return values
        if self.computation is not None:
            part_of: AnyArray = values[(..., *part.cell.index)]
            return part_of
        assert shape is not None
        return part.cell.strided(values, shape)

    def allocate(self, n: int) -> AnyArray:
        """Return a new array for `n` values of one size: the column's own, or their bytes."""
        shape, dtype = self.shape, self.encoding.dtype
        if self.encoding.kind != "fixed":
            assert self.encoding.size is not None
            shape, dtype = (self.encoding.size,), np.dtype(np.uint8)
        assert shape is not None
        nbytes = n * dtype.itemsize * prod(shape)
        memory.ensure_fits(nbytes, "rows ({:,}) of column {!r}", n, self.name)
        # The elements between those that are wanted may not be fetched, but bools are looked at.
        make = np.zeros if self.part is not None and dtype.kind == "b" else np.empty
        return make((n, *shape), dtype)


@dataclass(frozen=True, slots=True)
class SampleSplit:
    """How samples of a schema are taken apart.

    The columns that are copied at once, and those that are only found, in the tables' order. Of
    the copied ones, `opaque` are those whose bytes, of one size, are no array.
    """

    arguments: SplitArguments
    fixed: list[Field]
    variable: list[Field]
    opaque: list[Field]


class PartialRead(NamedTuple):
    """The parts of samples that columns take, where these are a small part.

    Attributes
    ----------
    runs : ndarray of int64, shape (k, 2)
        The first byte in a sample of each part, and the one after its last.
    pieces : dict of str to list
        For each column where its bytes are if the parts lie end to end, where they go in a value
        as it is read, and how many they are.
    """

    byte_ranges: Int64
    copies: dict[str, list[tuple[int, int, int]]]


class Plan:
    """Columns to read, and how that is done, worked out once.

    Attributes
    ----------
    fields : tuple of Field
        The columns, in order.
    computed : dict of str to Computation
        What makes those that are not stored.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.computed = {f.name: f.computation for f in fields if f.computation is not None}
        self._splits: dict[int, SampleSplit] = {}
        self._partial_reads: dict[int, PartialRead | None] = {}

    @cached_property
    def stored(self) -> Plan:
        """How those of the columns are read that are stored; this plan if all are."""
        if not self.computed:
            return self
        return Plan([field for field in self.fields if field.computation is None])

    def add_computed(self, sample: Sample, row: int) -> Sample:
        """Return a sample of the stored columns with those that are computed for its row."""
        computed = self.computed
        return {
            f.name: computed[f.name].value(row) if f.name in computed else sample[f.name]
            for f in self.fields
        }

    @cached_property
    def is_empty(self) -> bool:
        """Whether no bytes are read, as there are no columns or parts of no elements."""
        return all(f.part is not None and f.part.first == f.part.stop for f in self.fields)

    @cached_property
    def encodings(self) -> dict[str, str]:
        """The name of the encoding of each column."""
        return {field.name: field.encoding.name for field in self.fields}

    def split(self, schema: int, layout: SampleLayout) -> SampleSplit:
        """Return how the samples of an MDS schema are taken apart."""
        split = self._splits.get(schema)
        if split is None:
            split = self._splits[schema] = self._make_split(layout)
        return split

    def partial_read(self, schema: int, layout: SampleLayout | None) -> PartialRead | None:
        """Return the parts of samples that the columns take; None if samples are read whole.

        They are if they vary in size, or if that costs about as much.
        """
        if schema not in self._partial_reads:
            fixed = layout if layout is not None and layout.stride and not self.is_empty else None
            self._partial_reads[schema] = None if fixed is None else self._make_partial_read(fixed)
        return self._partial_reads[schema]

    def _make_partial_read(self, layout: SampleLayout) -> PartialRead | None:
        whole = transfer_cost(1, layout.stride)
        if not is_worthwhile(transfer_cost(1, 1), whole):
            return None
        wanted = []
        for f in self.fields:
            offset, first = layout.columns[f.name].offset, f.part.first if f.part else 0
            for begin, end in f.byte_ranges(REQUEST_BYTES):
                if end > begin:
                    wanted.append((offset + begin, offset + end, begin - first, f.name))
        wanted.sort()
        runs = coalesce_runs([run[:2] for run in wanted], REQUEST_BYTES)
        nbytes = sum(end - begin for begin, end in runs)
        if not (runs and is_worthwhile(transfer_cost(len(runs), nbytes), whole)):
            return None
        pieces: dict[str, list[tuple[int, int, int]]] = {f.name: [] for f in self.fields}
        left, before = iter(runs), 0  # bytes of the runs that lie before `start`
        start = stop = wanted[0][0]
        for begin, end, target, name in wanted:
            if begin >= stop:
                before += stop - start
                start, stop = next(left)
            pieces[name].append((before + begin - start, target, end - begin))
        return PartialRead(np.array(runs, np.int64), pieces)

    def _make_split(self, layout: SampleLayout) -> SampleSplit:
        copied, found, fixed, variable = [], [], [], []
        for f in self.fields:
            place = layout.columns[f.name]
            if place.size is None:
                found.append(f)
                variable.append((place.variable_before, place.offset))
            else:
                first, last = (f.part.first, f.part.stop) if f.part else (0, place.size)
                copied.append(f)
                fixed.append((place.variable_before, place.offset + first, last - first, 0))
        how = SplitArguments(
            layout.nvariable,
            layout.nfixed,
            np.array(fixed, np.int64).reshape(-1, 4),
            np.array(variable, np.int64).reshape(-1, 2),
        )
        return SampleSplit(how, copied, found, [f for f in copied if f.encoding.kind != "fixed"])
