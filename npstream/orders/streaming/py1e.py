"""Provide Streaming's shuffle py1e; any part of it can be computed alone.

A lane is the range of positions of one of Streaming's canonical nodes. It consists of pieces, which
are ranges of consecutive samples. First, the samples of each piece are shuffled. Then every sample
draws a *place*, a random float near its position, and each lane is sorted by place. A sample moves
less than `ExpandedOrder.reach`. So any part of a lane can be sorted separately, in three steps:

1. A first pass over all samples that may move into the part counts the samples in each bucket of
   places. The counts tell which buckets contain the part.
2. A second pass draws the same places again, and keeps the samples in these buckets.
3. Each bucket is sorted in the processor's cache.

Two samples of a lane may draw the same place, but rarely: about one pair in a lane of 10**8
samples. Then npstream keeps their order. In Streaming their order depends on the processor.

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
    save_state,
    skip_shuffle,
    step,
)
from npstream.orders.streaming.runs import Pieces, Snapshots, write_piece

BUCKET_BITS = 14
"""A bucket covers a range of 2**14 places, so that it is sorted in the L1 or L2 cache."""

MoveParameters: TypeAlias = tuple[int, int, int]
"""Samples of a lane, minimum width (see `ExpandedOrder`), and number of possible widths."""


@dataclass(frozen=True, slots=True)
class ExpandedOrder:
    """The order py1e.

    Parameters
    ----------
    pieces : Pieces
        The pieces of all lanes.
    lanes : ndarray
        The first position of each lane, then the number of samples.
    firsts : ndarray
        The first piece of each lane, then the number of pieces.
    shuffles : Snapshots
        Snapshots of the generator before it shuffles pieces.
    moves : ndarray
        States of the generator before it draws places: row i is its state before it draws those of
        piece ``shuffles.runs[i]``.
    min_width, width_stop : int
        The samples of a piece draw places in a range of random width. The width is at least
        `min_width` and below `width_stop`. If the piece is longer than this width, its samples do
        not move.
    """

    pieces: Pieces
    lanes: Int64
    firsts: Int64
    shuffles: Snapshots
    moves: State
    min_width: int
    width_stop: int

    @classmethod
    def draw(
        cls, state: State, pieces: Pieces, lanes: Int64, firsts: Int64, width_range: tuple[int, int]
    ) -> ExpandedOrder:
        """Draw the random numbers of each lane: for the shuffles of its pieces, then for places."""
        min_width, width_stop = width_range
        shuffles, moves = [], []
        for lane in range(len(lanes) - 1):
            offsets = pieces.offsets[firsts[lane] : firsts[lane + 1] + 1]
            snapshots = Snapshots.draw(state, offsets[:-1], offsets[1:])
            shuffles.append(snapshots)
            moves.append(np.empty_like(snapshots.states))
            # `for_size` expects an amount of work. The work for a piece is large, so the number of
            # rows estimates it better than the number of pieces.
            _skip_moves.for_size(int(offsets[-1] - offsets[0]))(
                state, np.diff(offsets), width_stop - min_width, snapshots.runs, moves[-1]
            )
        snapshots = Snapshots.concatenate(shuffles, firsts[:-1])
        return cls(pieces, lanes, firsts, snapshots, np.concatenate(moves), min_width, width_stop)

    @property
    def reach(self) -> int:
        """Bound of the moves of samples: each sample moves by fewer positions."""
        return self.width_stop // 2 + 1

    @property
    def lookup_size(self) -> int:
        """Number of positions to compute together.

        It is several times `reach`, because each part also draws the places of the samples that are
        up to `reach` away from it. It is also several times the size of the largest piece, because
        a piece that lies partly in the part is shuffled as a whole.
        """
        return 4 * max(self.reach, int(self.pieces.sizes.max()))

    def rows(self, start: int, stop: int) -> AnyArray:
        """Return the numbers of the samples at positions `start` to `stop`, all in one lane."""
        # In sorted order, the samples with places below p are not exactly the first p samples.
        # Their number is p, minus the samples that move up across p, plus those that move down.
        # The difference is less than the reach, and mostly far less, because moves up and down
        # cancel. So try a small slack first.
        part = self._sort_part(start, stop, self.reach // 4)
        if part is None:
            part = self._sort_part(start, stop, self.reach)
        assert part is not None
        return part

    def _sort_part(self, start: int, stop: int, slack: int) -> AnyArray | None:
        """Sort the samples whose places are in the range ``start - slack`` to ``stop + slack``.

        Return the numbers of the samples at positions `start` to `stop`. Return None if some of
        these samples have places outside of the range, because `slack` is too small.
        """
        lane = int(self.lanes.searchsorted(start, "right")) - 1
        origin, end = int(self.lanes[lane]), int(self.lanes[lane + 1])
        # The buckets begin at place `floor` and end at place `ceiling`. Both, and the `offsets` of
        # pieces, are relative to `origin`.
        floor = max(start - origin - slack, 0)
        buckets = -(-(min(stop + slack, end) - origin - floor) >> BUCKET_BITS)
        ceiling = floor + (buckets << BUCKET_BITS)

        snapshot = self.shuffles.find(origin + max(floor - self.reach, 0))
        first = int(self.shuffles.runs[snapshot])
        last = int(self.pieces.offsets.searchsorted(origin + ceiling + self.reach))
        last = min(last, int(self.firsts[lane + 1]))
        offsets = self.pieces.offsets[first : last + 1] - origin
        move = end - origin, self.min_width, self.width_stop - self.min_width
        samples = int(offsets[-1] - offsets[0])

        counts = np.zeros(buckets + 2, np.int64)
        _count.for_size(samples)(self.moves[snapshot].copy(), offsets, move, floor, counts)
        # The first position of each bucket, then the end of the last bucket.
        starts = offsets[0] + counts[:-1].cumsum()
        start, stop = start - origin, stop - origin
        if not starts[0] <= start <= stop <= starts[-1]:
            return None
        first_bucket = int(starts.searchsorted(start, "right")) - 1
        stop_bucket = int(starts.searchsorted(stop))
        base = int(starts[first_bucket])
        bounds = starts[first_bucket : stop_bucket + 1] - base
        floor += first_bucket << BUCKET_BITS

        places = np.empty(bounds[-1])
        picks = self.pieces.picks
        numbers = np.empty(len(places), picks.dtype)
        _scatter.for_size(samples)(
            self.shuffles.states[snapshot].copy(),
            self.moves[snapshot].copy(),
            offsets,
            self.pieces.begins[first:last],
            picks,
            move,
            floor,
            bounds[:-1].copy(),
            places,
            numbers,
            np.empty(int(np.diff(offsets).max()), numbers.dtype),
        )
        cells = np.empty(min(1 << BUCKET_BITS, end - origin - floor) + 1, np.int32)
        largest_bucket = int(np.diff(bounds).max())
        _sort.for_size(samples)(
            places,
            numbers,
            bounds,
            floor,
            cells,
            np.empty(largest_bucket, np.int64),
            np.empty(largest_bucket, numbers.dtype),
        )
        return numbers[start - base : stop - base]


@kernel
def _skip_moves(
    state: State, sizes: Int64, width_count: int, snapshots: Int64, states: State
) -> None:
    """Advance the state as if the places of pieces were drawn, but without drawing them.

    `width_count` is the number of possible widths; see `ExpandedOrder`. The states before the
    pieces with the numbers `snapshots` are written to `states`.
    """
    snapshot = 0
    for k in range(sizes.size):
        if snapshot < snapshots.size and snapshots[snapshot] == k:
            save_state(state, snapshot, states)
            snapshot += 1
        draw_below(state, width_count)
        jump(state, sizes[k])


@kernel
def _move_range(state: State, offset: int, size: int, move: MoveParameters) -> tuple[float, float]:
    """Draw the range of the moves of a piece's samples; return its start (at most 0) and length.

    The range is limited so that no sample leaves the lane.
    """
    lane_size, min_width, width_count = move
    reach = max((min_width + draw_below(state, width_count) - size) / 2, 0.0)
    left = max(-reach, -float(offset))
    return left, min(reach, float(lane_size - offset - size)) - left


@kernel
def _count(state: State, offsets: Int64, move: MoveParameters, floor: int, counts: Int64) -> None:
    """Count the places in each bucket; buckets begin at `floor`.

    ``counts[0]`` counts the places below `floor`. The last count is of places above all buckets.
    """
    last = counts.size - 1
    for k in range(offsets.size - 1):
        left, span = _move_range(state, offsets[k], offsets[k + 1] - offsets[k], move)
        hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
        for i in range(offsets[k], offsets[k + 1]):
            hi, lo, word = step(hi, lo, inc_hi, inc_lo)
            place = i + (left + span * ((word >> u64(11)) * 2.0**-53))
            bucket = ((int(place) - floor) >> BUCKET_BITS) + 1
            counts[min(max(bucket, 0), last)] += 1
        state[0], state[1] = hi, lo


@kernel
def _scatter(
    shuffles: State,
    moves: State,
    offsets: Int64,
    begins: Int64,
    picks: AnyArray,
    move: MoveParameters,
    floor: int,
    cursors: Int64,
    places: NDArray[np.float64],
    numbers: AnyArray,
    piece: AnyArray,
) -> None:
    """Write the numbers and the places of the samples in buckets, ordered by bucket.

    `cursors` holds the index at which each bucket's next sample is written. `piece` is a buffer for
    the numbers of one piece.
    """
    ceiling = floor + (cursors.size << BUCKET_BITS)
    for k in range(begins.size):
        offset, size = offsets[k], offsets[k + 1] - offsets[k]
        left, span = _move_range(moves, offset, size, move)
        if offset + left >= ceiling or offset + size + left + span < floor:
            skip_shuffle(shuffles, size)
            jump(moves, size)
            continue
        write_piece(piece[:size], begins[k], 0, picks)
        draw_shuffle(shuffles, piece, 0, size)
        hi, lo, inc_hi, inc_lo = u64(moves[0]), u64(moves[1]), u64(moves[2]), u64(moves[3])
        for i in range(size):
            hi, lo, word = step(hi, lo, inc_hi, inc_lo)
            place = offset + i + (left + span * ((word >> u64(11)) * 2.0**-53))
            bucket = (int(place) - floor) >> BUCKET_BITS
            if 0 <= bucket < cursors.size:
                index = cursors[bucket]
                cursors[bucket] = index + 1
                places[index] = place
                numbers[index] = piece[i]
        moves[0], moves[1] = hi, lo


@kernel
def _sort(
    places: NDArray[np.float64],
    numbers: AnyArray,
    bounds: Int64,
    floor: int,
    cells: NDArray[np.int32],
    keys: Int64,
    number_buffer: AnyArray,
) -> None:
    """Sort the numbers of each bucket by place.

    A key of 63 bits stands for each sample. Its lower bits are the sample's index in the bucket.
    Its upper bits are the place, relative to the bucket, with as many fraction bits as fit. First,
    a counting sort orders the keys by the integer part of places. Samples with the same integer
    part are a *cell*. Then the keys of cells are sorted. `keys` and `number_buffer` are buffers.
    """
    index_bits = 0
    while keys.size >> index_bits:
        index_bits += 1
    fraction_bits = 63 - BUCKET_BITS - index_bits
    index_mask, scale = (1 << index_bits) - 1, 2.0**fraction_bits
    for bucket in range(bounds.size - 1):
        start, size = bounds[bucket], bounds[bucket + 1] - bounds[bucket]
        base = floor + (bucket << BUCKET_BITS)
        cells[:] = 0
        for i in range(start, start + size):
            cells[int(places[i]) - base + 1] += 1
        total = cells[0]
        for cell in range(1, cells.size):
            total += cells[cell]
            cells[cell] = total
        for i in range(size):
            place = int((places[start + i] - base) * scale)
            target = cells[place >> fraction_bits]
            cells[place >> fraction_bits] = target + 1
            keys[target] = place << index_bits | i
        # Cells have few keys. Two passes of a bubble sort without branches leave very few keys out
        # of order. They cost less than one pass with branches, which the processor mispredicts.
        for _ in range(2 if size else 0):
            largest = keys[0]
            for i in range(1, size):
                key = keys[i]
                keys[i - 1] = min(largest, key)
                largest = max(largest, key)
            keys[size - 1] = largest
        # An insertion sort moves the remaining keys. If two keys do not differ in their place bits,
        # the whole places decide.
        for i in range(1, size):
            if keys[i] >> index_bits > keys[i - 1] >> index_bits:
                continue
            key, target = keys[i], i
            place = places[start + (key & index_mask)]
            while target > 0 and places[start + (keys[target - 1] & index_mask)] > place:
                keys[target] = keys[target - 1]
                target -= 1
            keys[target] = key
        for i in range(size):
            number_buffer[i] = numbers[start + i]
        for i in range(size):
            numbers[start + i] = number_buffer[keys[i] & index_mask]
