"""Provide the partition of an epoch: which positions and rows each rank reads, batch by batch.

Batch t of all ranks together is the global batch t: G consecutive positions. With P nodes of R
ranks each, sample i of rank k of node n is at position ``t * G + (i * R + k) * P + n``. So the
samples of a global batch do not depend on the number of ranks and nodes.

An order interleaves lanes, which are sequences of chunks: consecutive positions are in consecutive
lanes. So if P divides the number of lanes, a node reads only every P-th lane. Orders differ only in
which rows are at these positions.

There are two kinds of positions. *Epoch positions* count all samples of an epoch; *unskipped
positions* count only those outside of the gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from npstream._core.typing import AnyArray, Bools, Int64
from npstream.orders.balance import assign_ranks

LOOKUP_SAMPLES = 1 << 10
"""Samples whose rows are looked up together."""

MAX_LOOKUP_SAMPLES = 1 << 13
"""Samples whose rows are looked up together in a long loop. Each look-up has a fixed time, too."""

LOOKUP_DIVISOR = 8
"""Beyond `LOOKUP_SAMPLES`, a loop looks up at most 1/8 of the samples that it has looked up.

So a short loop computes few rows in vain, and needs no compiled kernel.
"""

LAST_BATCH_MODES = ("repeat", "drop", "short")
"""How the last global batch is made if too few samples are left; see `Partition`."""

Gaps: TypeAlias = "tuple[tuple[int, int], ...]"
"""Skipped ranges of epoch positions, each ``(start, stop)``; sorted, and not adjacent."""


def _unshuffled_rows(positions: Int64) -> Int64:
    """Return the rows at positions of an epoch that is not shuffled: the positions."""
    return positions


@dataclass(frozen=True, slots=True)
class Partition:
    """One rank's part of the rest of an epoch.

    All positions here are unskipped positions.

    Parameters
    ----------
    size : int
        Positions in the epoch.
    rank, world : int
        Number of this rank, counted from 0, and the number of ranks.
    batch_size : int
        Samples of each rank in a batch.
    last : {"repeat", "drop", "short"}
        "repeat" fills the last global batch up with earlier positions of the epoch. "drop" leaves
        it out. "short" keeps it as it is, so ranks may differ in their number of samples.
    nodes : int
        Number of machines. Each has the same number of ranks, and its ranks are consecutive.
    start : int
        The position where the first batch begins.
    unit : int
        Consecutive positions that a rank takes together; divides `size` and `batch_size`.
    stop : int, optional
        The position after the last one that this rank reads; by default `end`, which is the same
        for all ranks.
    repeat_start : int
        The first of the positions that fill up the last batch.
    gaps : tuple
        The skipped ranges of the epoch.
    rows : callable
        Returns the rows at an array of epoch positions. It may write them to this array and return
        it. A negative row stands for no sample, and is left out. By default rows equal positions.
    lookup_samples : int, default: 1024
        Maximum number of samples of the rank in one look-up. One batch may have more.
    grows_lookups : bool, default: False
        Whether look-ups later in a loop may have more samples, up to `MAX_LOOKUP_SAMPLES`.
    lookup_span : int, optional
        Maximum distance from the first to the last position in one look-up. One batch may exceed
        it. By default any distance.

    Examples
    --------
    >>> part = Partition(size=8, rank=1, world=2, batch_size=3)
    >>> part.positions(range(part.batches))
    array([ 1,  3,  5,  7,  9, 11])

    Positions from `size` on repeat the first ones: 9 and 11 repeat 1 and 3.
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
    rows: Callable[[Int64], Int64] = field(default=_unshuffled_rows, repr=False)
    lookup_samples: int = LOOKUP_SAMPLES
    grows_lookups: bool = False
    lookup_span: int | None = None

    @property
    def samples(self) -> int:
        """Samples that the rank reads, repeated ones included."""
        stop = self.end if self.stop is None else self.stop
        return len(range(self.start + self._offset, stop, self.world * self.unit)) * self.unit

    @property
    def batches(self) -> int:
        """Number of batches that the rank reads."""
        return -(-self.samples // self.batch_size)

    @property
    def global_batch(self) -> int:
        """Samples in a global batch."""
        return self.world * self.batch_size

    @property
    def end(self) -> int:
        """The position after the last one that any rank reads, repeated ones included."""
        samples = max(0, self.size - self.start)
        if self.last == "drop":
            samples -= samples % self.global_batch
        elif self.last == "repeat":
            samples += -samples % self.global_batch
        return self.start + samples

    @property
    def unrepeated_end(self) -> int:
        """The position after the last one that any rank reads, without repeated ones."""
        return min(self.end, self.size)

    def positions(self, batches: range) -> Int64:
        """Return the positions of the samples in some of the rank's batches."""
        batch_starts = np.arange(batches.start, batches.stop, batches.step) * self.global_batch
        step = self.world * self.unit
        first_batch = np.arange(self.start + self._offset, self.start + self.global_batch, step)
        if self.unit > 1:
            first_batch = np.add.outer(first_batch, np.arange(self.unit)).reshape(-1)
        positions = np.add.outer(batch_starts, first_batch).reshape(-1)
        # All other modes have only full batches.
        return positions if self.last != "short" else positions[positions < self.end]

    def lookup(self, batches: range) -> tuple[Int64, Bools]:
        """Return the rows of some batches, and a mask of the rows that only fill up the last one.

        Parameters
        ----------
        batches : range
            Numbers of the rank's batches.

        Returns
        -------
        rows : ndarray of int64
            The rows, one batch after the other.
        is_repeated : ndarray of bool
            True for rows that repeat earlier ones of the epoch, to fill up the last batch.
        """
        rows, is_repeated, _ = self.lookup_with_positions(batches)
        return rows, is_repeated

    def lookup_with_positions(self, batches: range) -> tuple[Int64, Bools, Int64]:
        """Return what `lookup` returns, and the epoch position of each row."""
        positions = self.positions(batches)
        is_repeated = positions >= self.size
        positions = self._epoch_positions(positions)
        rows = self.rows(positions.copy())
        is_sample = rows >= 0
        if is_sample.all():
            return rows, is_repeated, positions
        return rows[is_sample], is_repeated[is_sample], positions[is_sample]

    def _epoch_positions(self, positions: Int64) -> Int64:
        """Convert positions to epoch positions, in place.

        Positions from `size` on repeat earlier ones.
        """
        is_repeated = positions >= self.size
        if is_repeated.any():
            excess = positions[is_repeated] - self.size
            positions[is_repeated] = self.repeat_start + excess % (self.size - self.repeat_start)
        return to_epoch_positions(positions, self.gaps)

    def lookup_batches(self, step: int, done: int = 0) -> int:
        """Return how many batches to look up together.

        Parameters
        ----------
        step : int
            A worker reads every `step`-th batch.
        done : int, default: 0
            The number of batches that the loop has looked up.
        """
        samples = self.lookup_samples
        if self.grows_lookups:
            samples = max(samples, done * self.batch_size // LOOKUP_DIVISOR)
            samples = min(samples, MAX_LOOKUP_SAMPLES)
        batches = samples // self.batch_size
        if self.lookup_span is not None:
            batches = min(batches, self.lookup_span // (self.global_batch * step))
        return max(1, batches)

    @property
    def _offset(self) -> int:
        """The position of the rank's first sample in a global batch, counted from 0."""
        node, node_rank = divmod(self.rank, self.world // self.nodes)
        return (node_rank * self.nodes + node) * self.unit


@dataclass(frozen=True, slots=True)
class BalancedPartition(Partition):
    """A partition in which all ranks have nearly equal costs in each batch.

    A global batch has the same samples as in a `Partition`, but they are divided by their costs.
    So its samples do not depend on the number of ranks. Each rank has the same number of samples as
    in a `Partition`.

    Parameters
    ----------
    costs : callable
        Returns the costs of the samples at an array of epoch positions, as float64.
    """

    costs: Callable[[Int64], AnyArray] = field(default=np.zeros_like, repr=False)

    def positions(self, batches: range) -> Int64:
        """Return the positions of the samples in some of the rank's batches."""
        starts = self.start + np.array(batches, np.int64) * self.global_batch
        stops = np.minimum(starts + self.global_batch, self.end)
        sizes = stops - starts
        firsts = np.cumsum(sizes) - sizes
        positions = np.repeat(starts - firsts, sizes) + np.arange(sizes.sum())
        costs = self.costs(self._epoch_positions(positions.copy()))
        # `assign_ranks` numbers ranks by their first position in a global batch: `_offset`.
        mine = [np.empty(0, np.int64)]
        for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True):
            capacities = (size - np.arange(min(self.world, size)) - 1) // self.world + 1
            owners = assign_ranks(costs[first : first + size], capacities)
            mine.append(positions[first : first + size][owners == self._offset])
        return np.concatenate(mine)


def to_epoch_positions(positions: Int64, gaps: Gaps) -> Int64:
    """Convert unskipped positions to epoch positions, in place.

    >>> to_epoch_positions(np.arange(5), ((1, 3), (4, 10)))
    array([ 0,  3, 10, 11, 12])
    """
    for start, stop in gaps:
        positions += (stop - start) * (positions >= start)
    return positions


def to_unskipped_position(position: int, gaps: Gaps) -> int:
    """Convert an epoch position to an unskipped position.

    >>> [to_unskipped_position(position, ((1, 3), (4, 10))) for position in (0, 1, 2, 3, 12)]
    [0, 1, 1, 1, 4]
    """
    return position - sum(min(max(position, start), stop) - start for start, stop in gaps)


def merge_gaps(gaps: Iterable[tuple[int, int]]) -> Gaps:
    """Return sorted ranges, in which adjacent and overlapping ranges are merged.

    >>> merge_gaps([(8, 9), (5, 7), (3, 5), (2, 2)])
    ((3, 7), (8, 9))
    """
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(gaps):
        if start >= stop:
            continue
        if merged and start <= merged[-1][1]:
            last_start, last_stop = merged.pop()
            start, stop = last_start, max(last_stop, stop)
        merged.append((start, stop))
    return tuple(merged)
