"""Columns to read of samples, and how samples are taken apart for that.

Tested in tests/reading/test_source.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from npstream._core import memory
from npstream._core.typing import AnyArray, Bools, Int64, Sample
from npstream.formats.encodings.encodings import Encoding, view_as
from npstream.shards.table import Split

if TYPE_CHECKING:
    from npstream.formats.mds import SampleLayout
    from npstream.indexing.columns import Cell
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


@dataclass(frozen=True, slots=True)
class Field:
    """A column to read, and the encoding of its values.

    ``part`` restricts a fixed column to bytes ``part[0]`` to ``part[1]`` of each value, which
    has then the shape ``part[2]``. ``computation`` makes the values of a column that no shard
    stores.
    """

    name: str
    encoding: Encoding
    part: tuple[int, int, tuple[int, ...]] | None = None
    computation: Computation | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one value as read; None where it varies."""
        return self.part[2] if self.part else self.encoding.shape

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

    def cut(self, cell: Cell) -> Field:
        """Return the column with a part of each value, or all of it if that is not one run."""
        if self.computation is not None:
            return self
        assert self.encoding.shape is not None
        run = cell.contiguous(self.encoding.shape, self.encoding.dtype.itemsize)
        return replace(self, part=None if run is None else (*run, cell.shape))

    def allocate(self, n: int) -> AnyArray:
        """Return a new array for `n` values of one size: the column's own, or their bytes."""
        shape, dtype = self.shape, self.encoding.dtype
        if self.encoding.kind != "fixed":
            assert self.encoding.size is not None
            shape, dtype = (self.encoding.size,), np.dtype(np.uint8)
        assert shape is not None
        nbytes = n * dtype.itemsize * prod(shape)
        memory.ensure_fits(nbytes, "{:,} rows of column {!r}", n, self.name)
        return np.empty((n, *shape), dtype)


@dataclass(frozen=True, slots=True)
class SampleSplit:
    """How samples of a schema are taken apart.

    The columns that are copied at once, and those that are only found, in the tables' order. Of
    the copied ones, `opaque` are those whose bytes, of one size, are no array.
    """

    how: Split
    copied: list[Field]
    found: list[Field]
    opaque: list[Field]


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

    @cached_property
    def stored(self) -> Plan:
        """How those of the columns are read that are stored; this plan if all are."""
        if not self.computed:
            return self
        return Plan([field for field in self.fields if field.computation is None])

    def complete(self, sample: Sample, row: int) -> Sample:
        """Return a sample of the stored columns with those that are computed for its row."""
        computed = self.computed
        return {
            f.name: computed[f.name].value(row) if f.name in computed else sample[f.name]
            for f in self.fields
        }

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

    def _make_split(self, layout: SampleLayout) -> SampleSplit:
        copied, found, fixed, variable = [], [], [], []
        for f in self.fields:
            place = layout.places[f.name]
            if place.size is None:
                found.append(f)
                variable.append((place.before, place.offset))
            else:
                first, last = f.part[:2] if f.part else (0, place.size)
                copied.append(f)
                fixed.append((place.before, place.offset + first, last - first, 0))
        how = Split(
            layout.nvariable,
            layout.nfixed,
            np.array(fixed, np.int64).reshape(-1, 4),
            np.array(variable, np.int64).reshape(-1, 2),
        )
        return SampleSplit(how, copied, found, [f for f in copied if f.encoding.kind != "fixed"])
