"""Orders made of runs that are shuffled one after the other, each part computed when it is read.

One generator shuffles all the runs, so none can be computed without what was drawn before it. But
drawing, and doing nothing else, takes little time and no memory. It is done once, for the whole
order, and leaves the generator's states at marks, `SPACING` samples apart, from where any part can
be computed.

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
    skip_shuffle,
    write_down,
)

SPACING = 1 << 16
"""Samples between marks."""

MOST_HELD = 1 << 24
"""Numbers, at most, that are kept for whoever reads on."""


class PieceOrder(Protocol):
    """A permutation of range(n)."""

    @property
    def stride(self) -> int:
        """How many positions are worth computing at once: fewer take nearly as long."""

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions `start` to `stop`: at least one, and all in one lane."""


@dataclass(frozen=True, slots=True)
class OrderTable:
    """An order held as an array."""

    numbers: AnyArray

    @property
    def stride(self) -> int:
        """How many positions are worth computing at once: any will do."""
        return SPACING

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions."""
        return self.numbers[start:stop]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Consecutive numbers, from ``begins[k]`` on, at positions from ``offsets[k]`` on.

    Where a piece's begin is negative, they are consecutive ones of `picks`, from that one on as
    counted from the end. Numbers have the type of `picks`.
    """

    offsets: Int64
    begins: Int64
    picks: AnyArray

    @classmethod
    def laid(cls, sizes: Int64, begins: Int64, picks: AnyArray) -> Pieces:
        """Lay pieces of given sizes end to end."""
        return cls(np.concatenate([[0], sizes.cumsum()]), begins, picks)

    @classmethod
    def counted(cls, sizes: Int64) -> Pieces:
        """Return pieces of given sizes that are numbered through.

        >>> Pieces.counted(np.array([3, 4])).begins
        array([0, 3])
        """
        ends = sizes.cumsum()
        return cls.laid(sizes, ends - sizes, np.empty(0, number_type(int(ends[-1]))))

    @property
    def sizes(self) -> Int64:
        """Numbers in each piece."""
        return np.diff(self.offsets)

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions."""
        numbers = np.empty(stop - start, self.picks.dtype)
        first = int(self.offsets.searchsorted(start, "right")) - 1
        _lay.for_size(numbers.size)(
            numbers, start, self.offsets[first:], self.begins[first:], self.picks
        )
        return numbers


@dataclass(frozen=True, slots=True)
class PiecesOf:
    """Pieces of another order, in place of consecutive numbers."""

    pieces: Pieces
    order: PieceOrder

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions."""
        offsets, begins = self.pieces.offsets, self.pieces.begins
        first = int(offsets.searchsorted(start, "right")) - 1
        parts = []
        for k in range(first, int(offsets.searchsorted(stop))):
            shift = int(begins[k] - offsets[k])
            low, high = max(start, int(offsets[k])), min(stop, int(offsets[k + 1]))
            parts.append(self.order.rows(low + shift, high + shift))
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Marks:
    """Runs before which the generator's state is known."""

    runs: Int64
    starts: Int64
    states: State

    @classmethod
    def drawn(cls, state: State, starts: Int64, stops: Int64, spacing: int = SPACING) -> Marks:
        """Draw what shuffling some runs takes, and mark some of them."""
        runs = _clean_runs(starts, stops, spacing)
        marks = cls(runs, starts[runs], np.empty((len(runs), WORDS), np.uint64))
        rows = int((stops - starts).sum())
        _skip_runs.for_size(rows)(state, stops - starts, marks.runs, marks.states)
        return marks

    @classmethod
    def joined(cls, parts: list[Marks], firsts: Int64) -> Marks:
        """Join the marks of successive lanes, whose runs are numbered from `firsts` on."""
        runs = [part.runs + first for part, first in zip(parts, firsts, strict=True)]
        starts, states = [part.starts for part in parts], [part.states for part in parts]
        return cls(np.concatenate(runs), np.concatenate(starts), np.concatenate(states))

    def before(self, position: int) -> int:
        """Return the number of the last mark from which on a position can be computed."""
        return int(self.starts.searchsorted(position, "right")) - 1


@dataclass(frozen=True, slots=True)
class ShuffledRuns:
    """What a source has at each position, shuffled within runs, in the order of their starts.

    Runs may overlap, and leave positions out.
    """

    source: Pieces | PiecesOf
    starts: Int64
    stops: Int64
    marks: Marks

    @property
    def stride(self) -> int:
        """How many positions are worth computing at once."""
        return max(8 * SPACING, 4 * int((self.stops - self.starts).max()))

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions of one lane."""
        mark = self.marks.before(start)
        runs = slice(int(self.marks.runs[mark]), int(self.starts.searchsorted(stop)))
        base = int(self.starts[runs.start])
        numbers = self.source.rows(base, max(stop, int(self.stops[runs.stop - 1])))
        shuffle_runs.for_size(numbers.size)(
            self.marks.states[mark].copy(),
            numbers,
            self.starts[runs] - base,
            self.stops[runs] - base,
        )
        return numbers[start - base : stop - base]


class Window:
    """The numbers of an order at any positions, of which readers mostly come back for the next.

    Parameters
    ----------
    order : PieceOrder
    lanes : ndarray
        The bounds of equal lanes.
    """

    def __init__(self, order: PieceOrder, lanes: Int64) -> None:
        self._order = order
        self._lanes = lanes
        self._held: dict[int, tuple[int, AnyArray]] = {}

    def __reduce__(self) -> tuple[type[Window], tuple[PieceOrder, Int64]]:
        return Window, (self._order, self._lanes)

    @property
    def stride(self) -> int:
        """How many positions of each lane are worth asking for at once."""
        return self._order.stride

    def at(self, positions: Int64) -> Int64:
        """Return the numbers at positions."""
        by_lane, wanted = np.empty_like(positions), np.empty_like(positions)
        lane_of = np.empty(len(positions), np.uint32)
        ends = np.zeros(len(self._lanes) - 1, np.int64)
        _by_lane.for_size(len(positions))(positions, self._lanes, lane_of, by_lane, wanted, ends)
        numbers = np.empty(len(positions), np.int64)
        (lanes,) = np.diff(ends, prepend=0).nonzero()
        room = MOST_HELD // max(len(lanes), 1)
        for lane in lanes.tolist():
            part = slice(int(ends[lane - 1]) if lane else 0, int(ends[lane]))
            self._gather(lane, by_lane[part], wanted[part], min(room, self.stride), numbers)
        return numbers

    def _gather(self, lane: int, where: Int64, wanted: Int64, ahead: int, numbers: Int64) -> None:
        """Write down what is at wanted positions of a lane."""
        low, high = int(wanted.min()), int(wanted.max())
        if high - low < self.stride:
            start, rows = self._rows(lane, low, high + 1, ahead)
            _put.for_size(len(where))(numbers, where, wanted - start, rows)
            return
        if (wanted[1:] < wanted[:-1]).any():
            rising = wanted.argsort()
            where, wanted = where[rising], wanted[rising]
        first = 0
        while first < len(wanted):
            low = int(wanted[first])
            last = int(wanted.searchsorted(low + self.stride))
            rows = self._order.rows(low, int(wanted[last - 1]) + 1)
            _put.for_size(last - first)(numbers, where[first:last], wanted[first:last] - low, rows)
            first = last

    def _rows(self, lane: int, start: int, stop: int, ahead: int) -> tuple[int, AnyArray]:
        """Return numbers from a position on, which is the first result, at least up to `stop`."""
        first, rows = self._held.get(lane, (start, None))
        if rows is not None and first <= start and stop <= first + len(rows):
            return first, rows
        end = stop
        goes_on = rows is not None and first <= start <= first + len(rows) + self.stride
        if goes_on or 8 * (stop - start) > self.stride:
            # Whoever reads on takes more of what costs little more, and leaves no small rest.
            end, lane_end = max(stop, start + ahead), int(self._lanes[lane + 1])
            if end > lane_end - self.stride // 4:
                end = lane_end
            elif end - stop < (stop - start) // 8:
                end = stop
        rows = self._order.rows(start, end)
        self._held[lane] = start, rows if end > stop else rows[:0].copy()
        return start, rows


def number_type(size: int) -> type[np.uint32] | type[np.int64]:
    """Return the type in which the numbers of so many samples are computed."""
    return np.uint32 if size <= MAX_BOUND else np.int64


def _clean_runs(starts: Int64, stops: Int64, spacing: int) -> Int64:
    """Choose runs that begin where all before them have ended, about one for each `spacing`."""
    ended = np.maximum.accumulate(np.concatenate([starts[:1], stops[:-1]]))
    clean = np.flatnonzero(starts >= ended)
    return clean[np.diff(starts[clean] // spacing, prepend=-1) > 0]


@kernel
def _by_lane(
    positions: Int64,
    lanes: Int64,
    lane_of: AnyArray,
    by_lane: Int64,
    wanted: Int64,
    ends: Int64,
) -> None:
    """Group positions by lane, and say where the group of each lane ends."""
    count = ends.size
    density = count / lanes[count]
    for k in range(positions.size):
        lane = int(positions[k] * density)
        # That may be one too many; and lanes differ by a sample.
        while lane >= count or lanes[lane] > positions[k]:
            lane -= 1
        while lanes[lane + 1] <= positions[k]:
            lane += 1
        lane_of[k] = lane
        ends[lane] += 1
    before = 0
    for lane in range(count):
        ends[lane], before = before, before + ends[lane]
    for k in range(positions.size):
        lane = lane_of[k]
        at = ends[lane]
        ends[lane] = at + 1
        by_lane[at], wanted[at] = k, positions[k]


@kernel
def _put(numbers: Int64, where: Int64, wanted: Int64, rows: AnyArray) -> None:
    """Write down what is at wanted positions of some rows."""
    for k in range(where.size):
        numbers[where[k]] = rows[wanted[k]]


@kernel
def _lay(numbers: AnyArray, start: int, offsets: Int64, begins: Int64, picks: AnyArray) -> None:
    """Write the numbers from position `start` on, which lies in the first piece."""
    i = 0
    for k in range(begins.size):
        end = max(min(offsets[k + 1] - start, numbers.size), i)
        lay(numbers[i:end], begins[k], max(start - offsets[k], 0), picks)
        i = end
        if i == numbers.size:
            return


@kernel
def lay(numbers: AnyArray, begin: int, skipped: int, picks: AnyArray) -> None:
    """Write numbers of a piece, but for those that are skipped; see `Pieces`."""
    first = begin + skipped
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
def _skip_runs(state: State, sizes: Int64, marks: Int64, states: State) -> None:
    """Leave the state as shuffling runs would, and write down what it is at marks."""
    mark = 0
    for k in range(sizes.size):
        if mark < marks.size and marks[mark] == k:
            write_down(state, mark, states)
            mark += 1
        skip_shuffle(state, sizes[k])
