"""Which positions of an epoch a rank reads, batch by batch, and the samples there.

The batches with number t of all ranks are one run of G positions, the global batch. Of P nodes
with R ranks each, rank k of node n takes ``t * G + (i * R + k) * P + n`` as sample i. So what a
global batch holds does not depend on how many ranks and nodes share it; and as an order deals
positions to its lanes in turn, a node reads every P-th lane, and no others, if P divides their
number. Orders differ in one thing only: which rows are at these positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from npstream._core.typing import Bools, Int64

LOOKUP_SAMPLES = 1 << 10
"""Samples that are looked up at once."""

LAST_BATCH_MODES = ("repeat", "drop", "short")
"""What becomes of the last global batch, where too few samples are left to fill it."""

Gaps: TypeAlias = "tuple[tuple[int, int], ...]"
"""Stretches of positions to be left out, each from a start up to a stop; rising, and apart."""


def _positions(positions: Int64) -> Int64:
    """Return the rows at positions of an epoch in the order of its rows: the positions."""
    return positions


@dataclass(frozen=True, slots=True)
class Partition:
    """One rank's part of what is left of an epoch.

    All positions here count what is left: `gaps` are taken out.

    Parameters
    ----------
    size : int
        Positions in the epoch.
    rank, world : int
        Number of this rank, from 0, and of all ranks.
    batch_size : int
        Samples of each rank in a batch.
    last : {"repeat", "drop", "short"}
        Whether the last global batch is filled up with earlier positions of the epoch, is left
        out, or holds what is left, so that ranks may differ in their number of samples.
    nodes : int
        Machines that the ranks are on, as many on each, one machine's after the other's.
    start : int
        Where the first batch begins.
    unit : int
        Consecutive positions that are dealt to a rank at once; `size` and `batch_size` are
        multiples.
    stop : int, optional
        The position after the last one that this rank reads, where ranks differ.
    repeat_start : int
        The first of the positions that fill up the last batch.
    gaps : tuple
        Stretches of the epoch that are left out.
    rows : callable
        Returns the rows at positions in the whole epoch, gaps included, as a new array or the same
        one. Rows below 0 stand for no sample, and are left out. By default the positions.
    block : int
        Samples of the rank that are worth looking up at once.
    span : int, optional
        Positions that such a look-up may range over.

    Examples
    --------
    >>> part = Partition(size=8, rank=1, world=2, batch_size=3)
    >>> part.positions(range(part.batches))
    array([ 1,  3,  5,  7,  9, 11])

    Positions from `size` on stand for the first ones: 9 and 11 for 1 and 3.
    """

    size: int
    rank: int
    world: int
    batch_size: int
    last: str = "repeat"
    nodes: int = 1
    start: int = 0
    unit: int = 1
    stop: int | None = None
    repeat_start: int = 0
    gaps: Gaps = ()
    rows: Callable[[Int64], Int64] = field(default=_positions, repr=False)
    block: int = LOOKUP_SAMPLES
    span: int | None = None

    @property
    def samples(self) -> int:
        """Samples that the rank reads, repeated ones included."""
        stop = self.end if self.stop is None else self.stop
        return len(range(self.start + self._first, stop, self.world * self.unit)) * self.unit

    @property
    def batches(self) -> int:
        """Batches that the rank reads."""
        return -(-self.samples // self.batch_size)

    @property
    def global_batch(self) -> int:
        """Samples in a global batch."""
        return self.world * self.batch_size

    @property
    def end(self) -> int:
        """The position after the last one that some rank reads."""
        left = max(0, self.size - self.start)
        if self.last == "drop":
            left -= left % self.global_batch
        elif self.last == "repeat":
            left += -left % self.global_batch
        return self.start + left

    @property
    def unrepeated_end(self) -> int:
        """The position from which on nothing new is read."""
        return min(self.end, self.size)

    def positions(self, batches: range) -> Int64:
        """Return the positions of the samples in some of the rank's batches."""
        first = np.arange(batches.start, batches.stop, batches.step) * self.global_batch
        step = self.world * self.unit
        within = np.arange(self.start + self._first, self.start + self.global_batch, step)
        if self.unit > 1:
            within = np.add.outer(within, np.arange(self.unit)).reshape(-1)
        positions = np.add.outer(first, within).reshape(-1)
        # Only a short last batch ends early.
        return positions if self.last != "short" else positions[positions < self.end]

    def read(self, batches: range) -> tuple[Int64, Bools]:
        """Return the rows in some batches, and which of them only fill up the last one."""
        positions = self.positions(batches)
        repeated = positions >= self.size
        if repeated.any():
            again = positions[repeated] - self.size
            positions[repeated] = self.repeat_start + again % (self.size - self.repeat_start)
        rows = self.rows(to_epoch_positions(positions, self.gaps))
        is_sample = rows >= 0
        return (rows, repeated) if is_sample.all() else (rows[is_sample], repeated[is_sample])

    def lookup_batches(self, step: int) -> int:
        """Return how many batches, so far apart, are worth looking up at once."""
        batches = self.block // self.batch_size
        if self.span is not None:
            batches = min(batches, self.span // (self.global_batch * step))
        return max(1, batches)

    @property
    def _first(self) -> int:
        """The position of the rank's first sample in a global batch."""
        node, k = divmod(self.rank, self.world // self.nodes)
        return (k * self.nodes + node) * self.unit


def to_epoch_positions(positions: Int64, gaps: Gaps) -> Int64:
    """Turn positions in what is left of an epoch, in place, into positions in all of it.

    >>> to_epoch_positions(np.arange(5), ((1, 3), (4, 10)))
    array([ 0,  3, 10, 11, 12])
    """
    for start, stop in gaps:
        positions += (stop - start) * (positions >= start)
    return positions


def unskipped_before(position: int, gaps: Gaps) -> int:
    """Return how many positions before one are left.

    >>> [unskipped_before(position, ((1, 3), (4, 10))) for position in (0, 1, 2, 3, 12)]
    [0, 1, 1, 1, 4]
    """
    return position - sum(min(max(position, start), stop) - start for start, stop in gaps)


def merge_gaps(gaps: Iterable[tuple[int, int]]) -> Gaps:
    """Return stretches in rising order, those that touch made one.

    >>> merge_gaps([(8, 9), (5, 7), (3, 5), (2, 2)])
    ((3, 7), (8, 9))
    """
    apart: list[tuple[int, int]] = []
    for start, stop in sorted(gaps):
        if start >= stop:
            continue
        if apart and start <= apart[-1][1]:
            first, before = apart.pop()
            start, stop = first, max(before, stop)
        apart.append((start, stop))
    return tuple(apart)
