"""Provide orders in which runs are shuffled one after the other; any part can be computed alone.

A *run* is a range of positions that is shuffled on its own. One generator shuffles all runs, so the
shuffle of a run depends on all draws before it. Drawing without shuffling takes little time and no
memory. It is done once for the whole order, and saves snapshots of the generator's state about
`SPACING` samples apart. From these, any part can be computed.

Tested in tests/orders/streaming/test_shuffle.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from npstream._core.jit import kernel
from npstream._core.typing import AnyArray, Int64
from npstream.orders.streaming.pcg64 import (
    MAX_BOUND,
    WORDS,
    State,
    draw_shuffle,
    save_state,
    skip_shuffle,
)

SPACING = 1 << 16
"""Samples between snapshots."""

MAX_CACHED = 1 << 24
"""Maximum number of ids that are cached for sequential readers."""


class PieceOrder(Protocol):
    """A permutation of sample numbers."""

    @property
    def lookup_size(self) -> int:
        """Number of positions to compute together: fewer take nearly the same time."""

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions `start` to `stop`.

        The range must not be empty, and must lie in one lane: a range of positions of the order.
        """


@dataclass(frozen=True, slots=True)
class OrderTable:
    """An order that is stored as an array."""

    numbers: AnyArray

    @property
    def lookup_size(self) -> int:
        """Number of positions to compute together: any number is efficient."""
        return SPACING

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions `start` to `stop`."""
        return self.numbers[start:stop]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of consecutive numbers: piece k begins at position ``offsets[k]``.

    The numbers of piece k are ``begins[k]``, ``begins[k] + 1``, and so on. If ``begins[k]`` is
    negative, the numbers are the entries of `picks` from this (negative) index on. Numbers have the
    dtype of `picks`.
    """

    offsets: Int64
    begins: Int64
    picks: AnyArray

    @classmethod
    def concatenate(cls, sizes: Int64, begins: Int64, picks: AnyArray) -> Pieces:
        """Return pieces of the given sizes, one after the other."""
        return cls(np.concatenate([[0], sizes.cumsum()]), begins, picks)

    @classmethod
    def consecutive(cls, sizes: Int64) -> Pieces:
        """Return pieces of the given sizes, with the numbers 0, 1, 2 and so on.

        >>> Pieces.consecutive(np.array([3, 4])).begins
        array([0, 3])
        """
        ends = sizes.cumsum()
        return cls.concatenate(sizes, ends - sizes, np.empty(0, number_dtype(int(ends[-1]))))

    @property
    def sizes(self) -> Int64:
        """Length of each piece."""
        return np.diff(self.offsets)

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions `start` to `stop`."""
        numbers = np.empty(stop - start, self.picks.dtype)
        first = int(self.offsets.searchsorted(start, "right")) - 1
        _write_pieces.for_size(numbers.size)(
            numbers, start, self.offsets[first:], self.begins[first:], self.picks
        )
        return numbers


@dataclass(frozen=True, slots=True)
class ComposedPieces:
    """Pieces whose numbers are positions in another order."""

    pieces: Pieces
    order: PieceOrder

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers of `order` at positions `start` to `stop`."""
        offsets, begins = self.pieces.offsets, self.pieces.begins
        first = int(offsets.searchsorted(start, "right")) - 1
        parts = []
        for k in range(first, int(offsets.searchsorted(stop))):
            shift = int(begins[k] - offsets[k])
            low, high = max(start, int(offsets[k])), min(stop, int(offsets[k + 1]))
            parts.append(self.order.rows(low + shift, high + shift))
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Saved states of the generator before some runs.

    `runs` are the numbers of these runs. `starts` are the runs' first positions.
    """

    runs: Int64
    starts: Int64
    states: State

    @classmethod
    def draw(cls, state: State, starts: Int64, stops: Int64, spacing: int = SPACING) -> Snapshots:
        """Draw the random numbers of a shuffle of runs, and save states before some runs."""
        runs = _snapshot_runs(starts, stops, spacing)
        snapshots = cls(runs, starts[runs], np.empty((len(runs), WORDS), np.uint64))
        rows = int((stops - starts).sum())
        _skip_runs.for_size(rows)(state, stops - starts, snapshots.runs, snapshots.states)
        return snapshots

    @classmethod
    def concatenate(cls, parts: list[Snapshots], firsts: Int64) -> Snapshots:
        """Join the snapshots of successive lanes; the runs of lane i begin at ``firsts[i]``."""
        runs = [part.runs + first for part, first in zip(parts, firsts, strict=True)]
        starts, states = [part.starts for part in parts], [part.states for part in parts]
        return cls(np.concatenate(runs), np.concatenate(starts), np.concatenate(states))

    def find(self, position: int) -> int:
        """Return the index of the last snapshot whose run begins at or before a position."""
        return int(self.starts.searchsorted(position, "right")) - 1


@dataclass(frozen=True, slots=True)
class ShuffledRuns:
    """The numbers of a source, shuffled within runs, which are sorted by their starts.

    Runs may overlap, and positions between runs are not shuffled.
    """

    source: Pieces | ComposedPieces
    starts: Int64
    stops: Int64
    snapshots: Snapshots

    @property
    def lookup_size(self) -> int:
        """Number of positions to compute together."""
        return max(8 * SPACING, 4 * int((self.stops - self.starts).max()))

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions `start` to `stop`, all in one lane."""
        snapshot = self.snapshots.find(start)
        runs = slice(int(self.snapshots.runs[snapshot]), int(self.starts.searchsorted(stop)))
        base = int(self.starts[runs.start])
        numbers = self.source.rows(base, max(stop, int(self.stops[runs.stop - 1])))
        shuffle_runs.for_size(numbers.size)(
            self.snapshots.states[snapshot].copy(),
            numbers,
            self.starts[runs] - base,
            self.stops[runs] - base,
        )
        return numbers[start - base : stop - base]


class CachedOrder:
    """An order that reads ahead in each lane, and caches the numbers.

    Parameters
    ----------
    order : PieceOrder
    lanes : ndarray
        The first position of each lane, followed by the end of the last lane. The sizes of lanes
        differ by at most one.
    """

    def __init__(self, order: PieceOrder, lanes: Int64) -> None:
        self._order = order
        self._lanes = lanes
        self._cache: dict[int, tuple[int, AnyArray]] = {}  # by lane: first position, numbers

    def __reduce__(self) -> tuple[type[CachedOrder], tuple[PieceOrder, Int64]]:
        return CachedOrder, (self._order, self._lanes)

    @property
    def lookup_size(self) -> int:
        """Number of positions of each lane to compute together."""
        return self._order.lookup_size

    def at(self, positions: Int64) -> Int64:
        """Return the numbers at positions."""
        indices, sorted_positions = np.empty_like(positions), np.empty_like(positions)
        position_lanes = np.empty(len(positions), np.uint32)
        ends = np.zeros(len(self._lanes) - 1, np.int64)
        _sort_by_lane.for_size(len(positions))(
            positions, self._lanes, position_lanes, indices, sorted_positions, ends
        )
        numbers = np.empty(len(positions), np.int64)
        (lanes,) = np.diff(ends, prepend=0).nonzero()
        readahead = min(MAX_CACHED // max(len(lanes), 1), self.lookup_size)
        for lane in lanes.tolist():
            part = slice(int(ends[lane - 1]) if lane else 0, int(ends[lane]))
            self._gather(lane, indices[part], sorted_positions[part], readahead, numbers)
        return numbers

    def _gather(
        self, lane: int, indices: Int64, positions: Int64, readahead: int, numbers: Int64
    ) -> None:
        """Write the numbers at positions of a lane to ``numbers[indices]``."""
        low, high = int(positions.min()), int(positions.max())
        if high - low < self.lookup_size:
            start, rows = self._rows(lane, low, high + 1, readahead)
            _copy_rows.for_size(len(indices))(numbers, indices, positions - start, rows)
            return
        if (positions[1:] < positions[:-1]).any():
            order = positions.argsort()
            indices, positions = indices[order], positions[order]
        first = 0
        while first < len(positions):
            low = int(positions[first])
            end = int(positions.searchsorted(low + self.lookup_size))
            rows = self._order.rows(low, int(positions[end - 1]) + 1)
            _copy_rows.for_size(end - first)(
                numbers, indices[first:end], positions[first:end] - low, rows
            )
            first = end

    def _rows(self, lane: int, start: int, stop: int, readahead: int) -> tuple[int, AnyArray]:
        """Return the numbers in a range of positions that includes `start` to `stop`.

        Return the first position of the range, then the numbers.
        """
        first, rows = self._cache.get(lane, (start, None))
        if rows is not None and first <= start and stop <= first + len(rows):
            return first, rows
        end = stop
        is_continued = rows is not None and first <= start <= first + len(rows) + self.lookup_size
        if is_continued or 8 * (stop - start) > self.lookup_size:
            # Read ahead for a sequential reader, because more positions cost little more. If only
            # a small part of the lane would remain, read to its end.
            end, lane_end = max(stop, start + readahead), int(self._lanes[lane + 1])
            if end > lane_end - self.lookup_size // 4:
                end = lane_end
            elif end - stop < (stop - start) // 8:
                end = stop  # so little readahead is not worth the memory of the cache
        rows = self._order.rows(start, end)
        # Without readahead, cache only the position, to recognize a sequential reader.
        self._cache[lane] = start, rows if end > stop else rows[:0].copy()
        return start, rows


def number_dtype(size: int) -> type[np.uint32] | type[np.int64]:
    """Return the dtype for the numbers of `size` samples."""
    return np.uint32 if size <= MAX_BOUND else np.int64


def _snapshot_runs(starts: Int64, stops: Int64, spacing: int) -> Int64:
    """Return the runs before which to save a snapshot, about one for each `spacing` samples.

    The returned runs do not overlap earlier runs.
    """
    previous_stops = np.maximum.accumulate(np.concatenate([starts[:1], stops[:-1]]))
    runs = np.flatnonzero(starts >= previous_stops)
    return runs[np.diff(starts[runs] // spacing, prepend=-1) > 0]


@kernel
def _sort_by_lane(
    positions: Int64,
    lanes: Int64,
    position_lanes: AnyArray,
    indices: Int64,
    sorted_positions: Int64,
    ends: Int64,
) -> None:
    """Sort positions by lane; the positions of a lane keep their order.

    Write the lane of each position, the indices that sort the positions, and the sorted positions.
    In the sorted positions, those of lane k end before index ``ends[k]``. `ends` must be zeros.
    """
    count = ends.size
    density = count / lanes[count]
    for k in range(positions.size):
        # The estimate can be off by one: it is rounded, and lanes differ by a sample.
        lane = int(positions[k] * density)
        while lane >= count or lanes[lane] > positions[k]:
            lane -= 1
        while lanes[lane + 1] <= positions[k]:
            lane += 1
        position_lanes[k] = lane
        ends[lane] += 1
    # Replace the count of each lane by its start. The next loop advances the start to the end.
    total = 0
    for lane in range(count):
        ends[lane], total = total, total + ends[lane]
    for k in range(positions.size):
        lane = position_lanes[k]
        target = ends[lane]
        ends[lane] = target + 1
        indices[target], sorted_positions[target] = k, positions[k]


@kernel
def _copy_rows(numbers: Int64, indices: Int64, offsets: Int64, rows: AnyArray) -> None:
    """Copy ``rows[offsets]`` to ``numbers[indices]``."""
    for k in range(indices.size):
        numbers[indices[k]] = rows[offsets[k]]


@kernel
def _write_pieces(
    numbers: AnyArray, start: int, offsets: Int64, begins: Int64, picks: AnyArray
) -> None:
    """Write the numbers of pieces from position `start` on, which is in the first piece."""
    i = 0
    for k in range(begins.size):
        end = max(min(offsets[k + 1] - start, numbers.size), i)
        write_piece(numbers[i:end], begins[k], max(start - offsets[k], 0), picks)
        i = end
        if i == numbers.size:
            return


@kernel
def write_piece(numbers: AnyArray, begin: int, skip: int, picks: AnyArray) -> None:
    """Write the numbers of a piece after its first `skip` ones; see `Pieces`."""
    first = begin + skip
    if begin >= 0:
        for i in range(numbers.size):
            numbers[i] = first + i
        return
    first += picks.size
    for i in range(numbers.size):
        numbers[i] = picks[first + i]


@kernel
def shuffle_runs(state: State, values: AnyArray, starts: Int64, stops: Int64) -> None:
    """Shuffle runs of values, one after the other."""
    for k in range(starts.size):
        draw_shuffle(state, values, starts[k], stops[k])


@kernel
def _skip_runs(state: State, sizes: Int64, snapshot_runs: Int64, states: State) -> None:
    """Advance the state like a shuffle of runs; save the states before the runs `snapshot_runs`."""
    snapshot = 0
    for k in range(sizes.size):
        if snapshot < snapshot_runs.size and snapshot_runs[snapshot] == k:
            save_state(state, snapshot, states)
            snapshot += 1
        skip_shuffle(state, sizes[k])
