"""Orders made of runs that are shuffled one after the other, each part computed when it is read.

One generator shuffles all the runs, so none can be computed without what was drawn before it. But
drawing, and doing nothing else, takes little time and no memory. It is done once, for the whole
order, and leaves the generator's states at marks, `SPACING` samples apart, from where any part can
be computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from npstream._jit import kernel
from npstream._typing import AnyArray, Int64
from npstream.orders.pcg64 import MAX_BOUND, WORDS, State, shuffle, skip_shuffle

SPACING = 1 << 16
"""Samples between marks."""


class Order(Protocol):
    """A permutation of range(n)."""

    @property
    def stride(self) -> int:
        """How many positions are worth computing at once: fewer take nearly as long."""

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions `start` to `stop`: at least one, and all in one lane."""


@dataclass(frozen=True, slots=True)
class Table:
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
    """Consecutive numbers, from ``begins[k]`` on, at positions from ``offsets[k]`` on."""

    offsets: Int64
    begins: Int64

    @classmethod
    def laid(cls, sizes: Int64, begins: Int64) -> Pieces:
        """Lay pieces of given sizes end to end."""
        return cls(np.concatenate([[0], sizes.cumsum()]), begins)

    @property
    def sizes(self) -> Int64:
        """Numbers in each piece."""
        return np.diff(self.offsets)

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions."""
        numbers = np.empty(stop - start, number_type(int(self.offsets[-1])))
        first = int(self.offsets.searchsorted(start, "right")) - 1
        _lay.sized(numbers.size)(numbers, start, self.offsets[first:], self.begins[first:])
        return numbers


@dataclass(frozen=True, slots=True)
class PiecesOf:
    """Pieces of another order, in place of consecutive numbers."""

    pieces: Pieces
    order: Order

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
        _skip_runs.sized(rows)(state, stops - starts, marks.runs, marks.states)
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
class Runs:
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
        shuffle_runs.sized(numbers.size)(
            self.marks.states[mark].copy(),
            numbers,
            self.starts[runs] - base,
            self.stops[runs] - base,
        )
        return numbers[start - base : stop - base]


def gather(order: Order, lanes: Int64, positions: Int64) -> Int64:
    """Return the numbers at any positions; `lanes` has the bounds of equal lanes."""
    lane = _lane_of(positions, lanes)
    # NumPy sorts short integers in linear time. In a lane, positions mostly come in order.
    by_lane = lane.argsort(kind="stable")
    (cuts,) = np.diff(lane[by_lane]).nonzero()
    numbers = np.empty(len(positions), np.int64)
    stride = order.stride
    for own in np.split(by_lane, cuts + 1):
        wanted = positions[own]
        if (wanted[1:] < wanted[:-1]).any():
            own = own[wanted.argsort()]
            wanted = positions[own]
        first = 0
        while first < len(own):
            start = int(wanted[first])
            last = int(wanted.searchsorted(start + stride))
            rows = order.rows(start, int(wanted[last - 1]) + 1)
            numbers[own[first:last]] = rows[wanted[first:last] - start]
            first = last
    return numbers


def _lane_of(positions: Int64, lanes: Int64) -> AnyArray:
    """Return the lane that each position is in."""
    count = len(lanes) - 1
    # Lane c begins at c * size // count.
    lane = positions + 1
    lane *= count
    lane -= 1
    lane //= lanes[-1]
    return lane.astype(np.uint16) if count <= 1 << 16 else lane


def number_type(size: int) -> type[np.uint32] | type[np.int64]:
    """Return the type in which the numbers of so many samples are computed."""
    return np.uint32 if size <= MAX_BOUND else np.int64


def _clean_runs(starts: Int64, stops: Int64, spacing: int) -> Int64:
    """Choose runs that begin where all before them have ended, about one for each `spacing`."""
    ended = np.maximum.accumulate(np.concatenate([starts[:1], stops[:-1]]))
    clean = np.flatnonzero(starts >= ended)
    return clean[np.diff(starts[clean] // spacing, prepend=-1) > 0]


@kernel
def _lay(numbers: AnyArray, start: int, offsets: Int64, begins: Int64) -> None:
    """Write the numbers from position `start` on, which lies in the first piece."""
    i = 0
    for k in range(begins.size):
        number = begins[k] + max(start - offsets[k], 0)
        end = min(offsets[k + 1] - start, numbers.size)
        while i < end:
            numbers[i] = number
            number += 1
            i += 1
        if i == numbers.size:
            return


@kernel
def shuffle_runs(state: State, values: AnyArray, starts: Int64, stops: Int64) -> None:
    """Shuffle runs of values, one after the other."""
    for k in range(starts.size):
        shuffle(state, values, starts[k], stops[k])


@kernel
def _skip_runs(state: State, sizes: Int64, marks: Int64, states: State) -> None:
    """Leave the state as shuffling runs would, and write down what it is at marks."""
    mark = 0
    for k in range(sizes.size):
        if mark < marks.size and marks[mark] == k:
            states[mark] = state
            mark += 1
        skip_shuffle(state, sizes[k])
