"""Streaming's shuffle py1e: pieces are shuffled, and then each sample moves along its lane.

Every sample draws a place, a float within a reach of its position, and a lane is sorted by place.
So what is at a position comes from within twice the reach of it. A part of a lane is sorted by
itself: a first pass over what may come there counts how many samples fall in each bucket of
places, which tells the buckets that hold the part; a second pass draws the same places again and
keeps what falls in those; and each bucket is sorted in the processor's cache.

Two samples of a lane may draw the same place, though hardly ever: one pair, about, in a lane of
10**8. They keep their order here. In Streaming it depends on the processor.

Tested in tests/orders/streaming/test_shuffle.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from npstream._core.jit import kernel, u64
from npstream._core.typing import AnyArray, Int64
from npstream.orders.streaming.pcg64 import (
    State,
    draw_below,
    draw_shuffle,
    jump,
    skip_shuffle,
    step,
    write_down,
)
from npstream.orders.streaming.runs import Marks, Pieces, lay

SHIFT = 14
"""A bucket holds places in a range of 2**14: what is sorted in the processor's cache."""

Law: TypeAlias = tuple[int, int, int]
"""Samples of a lane, the least width that is drawn for a piece, and how many widths there are."""


@dataclass(frozen=True, slots=True)
class Expanded:
    """The order py1e.

    Parameters
    ----------
    pieces : Pieces
        Of all lanes.
    lanes, firsts : ndarray
        Where each lane begins, and the number of its first piece; at the end, those of no lane.
    shuffles : Marks
        The generator's states in the shuffling of pieces.
    moves : ndarray
        Those at the same marks, in the drawing of places.
    least, most : int
        Bounds of the widths that are drawn for pieces: `least` to ``most - 1``.
    """

    pieces: Pieces
    lanes: Int64
    firsts: Int64
    shuffles: Marks
    moves: State
    least: int
    most: int

    @classmethod
    def drawn(
        cls, state: State, pieces: Pieces, lanes: Int64, firsts: Int64, widths: tuple[int, int]
    ) -> Expanded:
        """Draw what the order takes, lane after lane: the shuffles of its pieces, then places."""
        least, most = widths
        shuffles, moves = [], []
        for lane in range(len(lanes) - 1):
            offsets = pieces.offsets[firsts[lane] : firsts[lane + 1] + 1]
            marks = Marks.drawn(state, offsets[:-1], offsets[1:])
            shuffles.append(marks)
            moves.append(np.empty_like(marks.states))
            _skip_moves.for_size(len(offsets))(
                state, np.diff(offsets), most - least, marks.runs, moves[-1]
            )
        joined = Marks.joined(shuffles, firsts[:-1])
        return cls(pieces, lanes, firsts, joined, np.concatenate(moves), least, most)

    @property
    def reach(self) -> int:
        """More than a sample ever moves."""
        return self.most // 2 + 1

    @property
    def stride(self) -> int:
        """How many positions are worth computing at once."""
        return 4 * max(self.reach, int(self.pieces.sizes.max()))

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers at positions of one lane."""
        # As many samples lie below a place as before a position, give or take what moved across:
        # less than the reach, and by far, as moves to either side cancel out.
        part = self._part(start, stop, self.reach // 4)
        if part is None:
            part = self._part(start, stop, self.reach)
        assert part is not None
        return part

    def _part(self, start: int, stop: int, slack: int) -> AnyArray | None:
        """Sort what falls in places from `slack` below a part to `slack` above it.

        Return the part, or None if it reaches beyond those places.
        """
        lane = int(self.lanes.searchsorted(start, "right")) - 1
        origin, end = int(self.lanes[lane]), int(self.lanes[lane + 1])
        floor = max(start - origin - slack, 0)
        buckets = -(-(min(stop + slack, end) - origin - floor) >> SHIFT)
        ceiling = floor + (buckets << SHIFT)

        mark = self.shuffles.before(origin + max(floor - self.reach, 0))
        first = int(self.shuffles.runs[mark])
        last = int(self.pieces.offsets.searchsorted(origin + ceiling + self.reach))
        last = min(last, int(self.firsts[lane + 1]))
        offsets = self.pieces.offsets[first : last + 1] - origin
        law = end - origin, self.least, self.most - self.least
        drawn = int(offsets[-1] - offsets[0])

        counts = np.zeros(buckets + 2, np.int64)
        _count.for_size(drawn)(self.moves[mark].copy(), offsets, law, floor, counts)
        ranks = offsets[0] + counts[:-1].cumsum()
        start, stop = start - origin, stop - origin
        if not ranks[0] <= start <= stop <= ranks[-1]:
            return None
        needed = slice(int(ranks.searchsorted(start, "right")) - 1, int(ranks.searchsorted(stop)))
        base = int(ranks[needed.start])
        bounds = ranks[needed.start : needed.stop + 1] - base
        floor += needed.start << SHIFT

        places = np.empty(bounds[-1])
        picks = self.pieces.picks
        numbers = np.empty(len(places), picks.dtype)
        _scatter.for_size(drawn)(
            self.shuffles.states[mark].copy(),
            self.moves[mark].copy(),
            offsets,
            self.pieces.begins[first:last],
            picks,
            law,
            floor,
            bounds[:-1].copy(),
            places,
            numbers,
            np.empty(int(np.diff(offsets).max()), numbers.dtype),
        )
        cells = np.empty(min(1 << SHIFT, end - origin - floor) + 1, np.int32)
        most = int(np.diff(bounds).max())
        _sort.for_size(drawn)(
            places,
            numbers,
            bounds,
            floor,
            cells,
            np.empty(most, np.int64),
            np.empty(most, numbers.dtype),
        )
        return numbers[start - base : stop - base]


@kernel
def _skip_moves(state: State, sizes: Int64, widths: int, marks: Int64, states: State) -> None:
    """Leave the state as drawing the places of pieces would, and write down what it is at marks."""
    mark = 0
    for k in range(sizes.size):
        if mark < marks.size and marks[mark] == k:
            write_down(state, mark, states)
            mark += 1
        draw_below(state, widths)
        jump(state, sizes[k])


@kernel
def _span(state: State, offset: int, size: int, law: Law) -> tuple[float, float]:
    """Draw how far the samples of a piece may move: back to the left, and over what range."""
    length, least, widths = law
    reach = max((least + draw_below(state, widths) - size) / 2, 0.0)
    left = max(-reach, -float(offset))
    return left, min(reach, float(length - offset - size)) - left


@kernel
def _count(state: State, offsets: Int64, law: Law, floor: int, counts: Int64) -> None:
    """Count places below a floor, then in each bucket from there on, then above them all."""
    last = counts.size - 1
    for k in range(offsets.size - 1):
        left, room = _span(state, offsets[k], offsets[k + 1] - offsets[k], law)
        hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
        for i in range(offsets[k], offsets[k + 1]):
            hi, lo, word = step(hi, lo, inc_hi, inc_lo)
            place = i + (left + room * ((word >> u64(11)) * 2.0**-53))
            bucket = ((int(place) - floor) >> SHIFT) + 1
            counts[min(max(bucket, 0), last)] += 1
        state[0], state[1] = hi, lo


@kernel
def _scatter(
    shuffles: State,
    moves: State,
    offsets: Int64,
    begins: Int64,
    picks: AnyArray,
    law: Law,
    floor: int,
    cursors: Int64,
    places: NDArray[np.float64],
    numbers: AnyArray,
    piece: AnyArray,
) -> None:
    """Write the samples that fall in buckets, and their places, where the cursors say."""
    ceiling = floor + (cursors.size << SHIFT)
    for k in range(begins.size):
        offset, size = offsets[k], offsets[k + 1] - offsets[k]
        left, room = _span(moves, offset, size, law)
        if offset + left >= ceiling or offset + size + left + room < floor:
            skip_shuffle(shuffles, size)
            jump(moves, size)
            continue
        lay(piece[:size], begins[k], 0, picks)
        draw_shuffle(shuffles, piece, 0, size)
        hi, lo, inc_hi, inc_lo = u64(moves[0]), u64(moves[1]), u64(moves[2]), u64(moves[3])
        for i in range(size):
            hi, lo, word = step(hi, lo, inc_hi, inc_lo)
            place = offset + i + (left + room * ((word >> u64(11)) * 2.0**-53))
            bucket = (int(place) - floor) >> SHIFT
            if 0 <= bucket < cursors.size:
                at = cursors[bucket]
                cursors[bucket] = at + 1
                places[at] = place
                numbers[at] = piece[i]
        moves[0], moves[1] = hi, lo


@kernel
def _sort(
    places: NDArray[np.float64],
    numbers: AnyArray,
    bounds: Int64,
    floor: int,
    cells: NDArray[np.int32],
    keys: Int64,
    spare: AnyArray,
) -> None:
    """Sort each bucket of numbers by place: into cells of one place each, and then within them.

    What is sorted are keys: a place, from where the bucket begins and cut to as many bits as
    fit, and its number among those of the bucket.
    """
    index_bits = 0
    while keys.size >> index_bits:
        index_bits += 1
    fine_bits = 63 - SHIFT - index_bits
    index, fine = (1 << index_bits) - 1, 2.0**fine_bits
    for bucket in range(bounds.size - 1):
        start, size = bounds[bucket], bounds[bucket + 1] - bounds[bucket]
        base = floor + (bucket << SHIFT)
        cells[:] = 0
        for i in range(start, start + size):
            cells[int(places[i]) - base + 1] += 1
        total = cells[0]
        for cell in range(1, cells.size):
            total += cells[cell]
            cells[cell] = total
        for i in range(size):
            place = int((places[start + i] - base) * fine)
            at = cells[place >> fine_bits]
            cells[place >> fine_bits] = at + 1
            keys[at] = place << index_bits | i
        # Hardly any cell has many keys, and what is out of order after this has very few. Where
        # branches cannot be foreseen, two passes without them cost less than one with them.
        for _ in range(2 if size else 0):
            largest = keys[0]
            for i in range(1, size):
                key = keys[i]
                keys[i - 1] = min(largest, key)
                largest = max(largest, key)
            keys[size - 1] = largest
        for i in range(1, size):
            if keys[i] >> index_bits > keys[i - 1] >> index_bits:
                continue
            key, at = keys[i], i
            place = places[start + (key & index)]
            while at > 0 and places[start + (keys[at - 1] & index)] > place:
                keys[at] = keys[at - 1]
                at -= 1
            keys[at] = key
        for i in range(size):
            spare[i] = numbers[start + i]
        for i in range(size):
            numbers[start + i] = spare[keys[i] & index]
