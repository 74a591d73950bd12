"""Streaming's shuffles, bit for bit, each part of one computed where it is asked for.

A shuffle takes *units*, runs of consecutive samples: mostly the shards. They are put in an order
that holds for the whole run, laid end to end, and cut into lanes ("canonical nodes"), a unit that
crosses a boundary into *pieces*. Every epoch shuffles the pieces of each lane, and then samples:

- py1s those of each piece; py2s too, in units that were shuffled before;
- py1br those of each block, a stretch of a lane, of random length;
- py1e those of each piece, and then moves each sample some way along its lane;
- naive all of them, whatever the lanes.

One generator draws all of that, so no part can be computed without what was drawn before it. But
to draw and do nothing else takes little time and no memory. That is done once; it leaves the
generator's states at marks, `SPACING` samples apart, from where any part can be computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from npstream._jit import kernel
from npstream._typing import AnyArray, Int64
from npstream.orders import pcg64
from npstream.orders.pcg64 import State, below, seeded, shuffle, skip_shuffle

SPACING = 1 << 16
"""Samples between marks."""

UNIT_SPACING = 1 << 10
"""Samples between marks in the units of py2s, which are not read one after the other."""


class Order(Protocol):
    """A permutation of range(n), the numbers of samples as the units have them."""

    @property
    def stride(self) -> int:
        """How many positions are worth computing at once: fewer take nearly as long."""

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions `start` to `stop`, which lie in one lane."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs of consecutive numbers, end to end: from ``offsets[k]`` on, ``begins[k]`` and so on."""

    offsets: Int64
    begins: Int64

    def rows(self, start: int, stop: int) -> AnyArray:
        numbers = np.empty(stop - start, _dtype(int(self.offsets[-1])))
        first = int(self.offsets.searchsorted(start, "right")) - 1
        lay.sized(numbers.size)(numbers, start, self.offsets, self.begins, first)
        return numbers

    def permuted(self, order: Int64) -> Pieces:
        return Pieces(_offsets(np.diff(self.offsets)[order]), self.begins[order])


@dataclass(frozen=True, slots=True)
class PiecesOf:
    """Pieces of an order, rather than of the numbers themselves."""

    pieces: Pieces
    order: Order

    def rows(self, start: int, stop: int) -> AnyArray:
        offsets, begins = self.pieces.offsets, self.pieces.begins
        first = int(offsets.searchsorted(start, "right")) - 1
        parts = []
        for k in range(first, int(offsets.searchsorted(stop))):
            low, high = max(start, offsets[k]), min(stop, offsets[k + 1])
            begin = int(begins[k] - offsets[k])
            parts.append(self.order.rows(begin + low, begin + high))
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Runs:
    """What a source has at each position, shuffled within runs, one run after the other.

    Runs come by their starts. They may overlap, and leave positions out. Marks are numbers of
    runs that begin where all before them have ended, with the generator's states there.
    """

    source: Pieces | PiecesOf
    starts: Int64
    stops: Int64
    marks: Int64
    states: State

    @property
    def stride(self) -> int:
        return max(8 * SPACING, 4 * int((self.stops - self.starts).max()))

    def rows(self, start: int, stop: int) -> AnyArray:
        mark = int(self.starts[self.marks].searchsorted(start, "right")) - 1
        runs = slice(int(self.marks[mark]), int(self.starts.searchsorted(stop)))
        base = int(self.starts[runs.start])
        numbers = self.source.rows(base, max(stop, int(self.stops[runs.stop - 1])))
        starts, stops = self.starts[runs] - base, self.stops[runs] - base
        shuffle_runs.sized(numbers.size)(self.states[mark].copy(), numbers, starts, stops)
        return numbers[start - base : stop - base]


@dataclass(frozen=True, slots=True)
class Table:
    """An order held as an array."""

    numbers: AnyArray

    @property
    def stride(self) -> int:
        return len(self.numbers)

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.numbers[start:stop]
