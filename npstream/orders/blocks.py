"""Blocks of lanes: which sample each element of a lane is, and back.

Lane j of C is cut into blocks of w samples, but for the first, which has w * (j + 1) / C, rounded
up, and the last, which has what is left. Each is permuted as a `Permutation` of its length is.

Elements are computed a stretch at a time, which for a small block is all of it: a Fisher-Yates
shuffle cannot make less. The last stretch of each lane is kept, so that neither reading on nor
reading every lane in turn computes anything twice.
"""

from __future__ import annotations

import math

import numpy as np

from npstream._jit import draw, kernel
from npstream._typing import AnyArray, Int64
from npstream.orders.layout import (
    lane_of,
    lane_start,
    seek,
    size_of,
    slot_at,
    start_of,
    subkey,
)
from npstream.orders.permutation import SMALL, decipher, encipher, shuffled_to

STRETCH = 1 << 11
"""Elements of large blocks that are computed at once, at most."""

WINDOW = 1 << 14
"""Positions that are looked up lane by lane: few enough to stay in the processor's cache."""

CACHE_BYTES = 1 << 28
"""Bytes of stretches that are kept, at most. Few settings bring even all lanes to that."""


class Cache:
    """The last stretch of each lane that was looked up.

    Parameters
    ----------
    n, lanes, block : int
        Samples of the view, lanes, and samples of a block.
    dtype : dtype
        Of the layout's arrays.
    """

    __slots__ = ("guide", "held", "limit", "near", "row_of", "rows", "scratch")

    def __init__(self, n: int, lanes: int, block: int, dtype: np.dtype[np.signedinteger]) -> None:
        longest = min(block, -(-n // lanes))
        large = longest > SMALL
        self.rows = np.empty((1, STRETCH if large else longest), dtype)
        self.limit = max(1, min(lanes, CACHE_BYTES // self.rows.nbytes))
        # Of each row: its lane, the first element that it holds, the one after the last.
        self.held = np.full((1, 3), -1)
        # The row of each lane, or -1; then how often a row was given to a lane.
        self.row_of = np.full(lanes + 1, -1)
        self.row_of[lanes] = 0
        # For large blocks: the pieces of one, and how to find them; and for the small ones among
        # them, which are first or last of their lanes.
        self.near = np.empty((2, 4 * STRETCH if large else 0), np.int64)
        self.guide = np.empty(4 * self.near.shape[1], np.int32)
        self.scratch = np.empty(SMALL if large else 0, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache takes."""
        return sum(getattr(self, name).nbytes for name in self.__slots__ if name != "limit")

    def grow(self) -> None:
        """Make room for twice as many lanes, up to the limit."""
        rows, held = self.rows, self.held
        count = min(2 * len(rows), self.limit)
        self.rows = np.empty((count, rows.shape[1]), rows.dtype)
        self.rows[: len(rows)] = rows
        self.held = np.full((count, 3), -1)
        self.held[: len(held)] = held


@kernel
def look_up(
    positions: Int64,
    n: int,
    lanes: int,
    block: int,
    key: int,
    bounds: AnyArray,
    pieces: AnyArray,
    marks: AnyArray,
    limit: int,
    row_of: Int64,
    held: Int64,
    rows: AnyArray,
    near: Int64,
    guide: AnyArray,
    scratch: AnyArray,
    samples: Int64,
) -> int:
    """Look up the samples at positions.

    Returns how many were: not all if the cache lacks a row for a lane, and may grow.
    """
    done = 0
    while done < positions.size:
        position = int(positions[done])
        stop = done + 1
        while stop < positions.size and positions[stop] == position + stop - done:
            stop += 1
        done += look_up_run(
            position, n, lanes, block, key, bounds, pieces, marks, limit, row_of, held, rows,
            near, guide, scratch, samples[done:stop],
        )  # fmt: skip
        if done < stop:
            return done
    return done


@kernel
def look_up_run(
    position: int,
    n: int,
    lanes: int,
    block: int,
    key: int,
    bounds: AnyArray,
    pieces: AnyArray,
    marks: AnyArray,
    limit: int,
    row_of: Int64,
    held: Int64,
    rows: AnyArray,
    near: Int64,
    guide: AnyArray,
    scratch: AnyArray,
    samples: Int64,
) -> int:
    """Look up the samples at consecutive positions, from `position` on; else as `look_up`."""
    window = max(WINDOW, 16 * lanes)
    for done in range(0, samples.size, window):
        stop = min(done + window, samples.size)
        # Neighbours in a lane are as many positions apart as there are lanes.
        for first in range(done, min(done + lanes, stop)):
            element = (position + first) // lanes
            lane = position + first - element * lanes
            row = int(row_of[lane])
            if row < 0:
                row = _claim(lane, lanes, limit, row_of, held)
                if row < 0:
                    return done
            k = first
            while k < stop:
                if not held[row, 1] <= element < held[row, 2]:
                    _fill(
                        lane, element, n, lanes, block, key, bounds, pieces, marks,
                        held[row], rows[row], near, guide, scratch,
                    )  # fmt: skip
                stretch = rows[row, element - int(held[row, 1]) :]
                count = min(int(held[row, 2]) - element, (stop - k + lanes - 1) // lanes)
                for i in range(count):
                    samples[k + i * lanes] = stretch[i]
                element += count
                k += count * lanes
    return samples.size


@kernel
def _claim(lane: int, lanes: int, limit: int, row_of: Int64, held: Int64) -> int:
    """Give a lane a row, if need be the one that was given away first, or -1 to have more made."""
    count = held.shape[0]
    claims = int(row_of[lanes])
    if claims == count and count < limit:
        return -1
    row = claims % count
    if claims >= count:
        row_of[held[row, 0]] = -1
    row_of[lane] = row
    row_of[lanes] = claims + 1
    held[row, 0] = lane
    held[row, 1] = -1
    held[row, 2] = -1
    return row


@kernel
def _fill(
    lane: int,
    element: int,
    n: int,
    lanes: int,
    block: int,
    key: int,
    bounds: AnyArray,
    pieces: AnyArray,
    marks: AnyArray,
    held: Int64,
    row: AnyArray,
    near: Int64,
    guide: AnyArray,
    scratch: AnyArray,
) -> None:
    """Compute a stretch of a lane with an element in it."""
    number, begin, length = _block_of(n, lanes, block, lane, element)
    place = lane_start(n, lanes, lane) + begin
    block_key = subkey(key, lane, number + 1)
    if length <= row.size:
        count = length
        _shuffle(block_key, bounds, pieces, marks, place, row[:length])
    elif length <= SMALL:
        _shuffle(block_key, bounds, pieces, marks, place, scratch[:length])
        first = (element - begin) // row.size * row.size
        begin += first
        count = min(row.size, length - first)
        row[:count] = scratch[first : first + count]
    else:
        # Whoever reads on gets longer and longer stretches; who jumps about, single elements.
        count = 8 * int(held[2] - held[1]) if element == held[2] else 1
        count = min(count, row.size, begin + length - element)
        _scatter(
            block_key, length, element - begin, bounds, pieces, marks, place, row[:count],
            near, guide,
        )  # fmt: skip
        begin = element
    held[1] = begin
    held[2] = begin + count


@kernel
def _shuffle(
    key: int, bounds: AnyArray, pieces: AnyArray, marks: AnyArray, place: int, samples: AnyArray
) -> None:
    """Compute all samples of a small block, in the order in which its table permutes them."""
    slot = slot_at(bounds, pieces, marks, place)
    skipped = place - start_of(bounds, pieces, marks, slot)
    filled = 0
    while filled < samples.size:
        first = int(bounds[pieces[slot]]) + skipped - filled
        stop = min(filled + size_of(bounds, pieces, slot) - skipped, samples.size)
        for i in range(filled, stop):
            j = draw(key ^ i, i + 1)
            samples[i] = samples[j]
            samples[j] = first + i
        filled = stop
        skipped = 0
        slot += 1


@kernel
def _scatter(
    key: int,
    length: int,
    offset: int,
    bounds: AnyArray,
    pieces: AnyArray,
    marks: AnyArray,
    place: int,
    samples: AnyArray,
    near: Int64,
    guide: AnyArray,
) -> None:
    """Compute some samples of a large block, from number `offset` on."""
    slot = slot_at(bounds, pieces, marks, place)
    count = slot_at(bounds, pieces, marks, place + length - 1) + 1 - slot
    prepared = count <= 4 * samples.size  # otherwise it would take longer than it saves
    shift = 0
    if prepared:
        while length >> shift > 4 * count:
            shift += 1
        skipped = place - start_of(bounds, pieces, marks, slot)
        _prepare(bounds, pieces, slot, count, skipped, length, shift, near, guide)
    radix, other = _radices(length)
    left, right = digits[0, : samples.size], digits[1, : samples.size]
    digit = offset // other
    low = offset - digit * other
    for k in range(samples.size):
        left[k] = digit
        right[k] = low
        low += 1
        if low == other:
            low = 0
            digit += 1
    encipher(length, radix, other, key, left, right)
    for k in range(samples.size):
        at = left[k] * other + right[k]
        if prepared:
            near_piece = int(guide[at >> shift])
            near_piece += at >= near[0, near_piece]
            while at >= near[0, near_piece]:
                near_piece += 1
            samples[k] = near[1, near_piece] + at
        else:
            slot = slot_at(bounds, pieces, marks, place + at)
            samples[k] = bounds[pieces[slot]] + place + at - start_of(bounds, pieces, marks, slot)


@kernel
def _prepare(
    bounds: AnyArray,
    pieces: AnyArray,
    slot: int,
    count: int,
    skipped: int,
    length: int,
    shift: int,
    near: Int64,
    guide: AnyArray,
) -> None:
    """Note where the pieces of a block end in it, and what to add there for the samples.

    ``guide[at >> shift]`` is the first piece that may have number `at` of the block.
    """
    at = -skipped
    for k in range(count):
        near[1, k] = int(bounds[pieces[slot + k]]) - at
        at += size_of(bounds, pieces, slot + k)
        near[0, k] = at
    piece = 0
    for cell in range((length - 1 >> shift) + 1):
        while near[0, piece] <= cell << shift:
            piece += 1
        guide[cell] = piece


@kernel
def find(
    samples: Int64,
    n: int,
    lanes: int,
    block: int,
    key: int,
    bounds: AnyArray,
    pieces: AnyArray,
    marks: AnyArray,
    chunks: int,
    slots: AnyArray,
    positions: Int64,
) -> None:
    """Find the positions of samples; see `npstream.orders.layout.slots_of`."""
    for k in range(samples.size):
        sample = int(samples[k])
        piece = seek(bounds, sample, 0, chunks - 1)
        if slots[piece] < 0:
            piece = -int(slots[piece])
            while bounds[piece + 1] <= sample:
                piece += 1
        place = start_of(bounds, pieces, marks, int(slots[piece])) + sample - int(bounds[piece])
        lane = lane_of(n, lanes, place)
        element = place - lane_start(n, lanes, lane)
        number, begin, length = _block_of(n, lanes, block, lane, element)
        block_key = subkey(key, lane, number + 1)
        if length <= SMALL:
            offset = shuffled_to(block_key, length, element - begin)
        else:
            radix, other = _radices(length)
            offset = decipher(length, radix, other, block_key, element - begin)
        positions[k] = (begin + offset) * lanes + lane


@kernel
def _block_of(n: int, lanes: int, block: int, lane: int, element: int) -> tuple[int, int, int]:
    """Return the number, the first element and the length of an element's block."""
    first = (block * (lane + 1) + lanes - 1) // lanes
    number = 0
    begin = 0
    length = first
    if element >= first:
        number = 1 + (element - first) // block
        begin = first + (number - 1) * block
        length = block
    size = lane_start(n, lanes, lane + 1) - lane_start(n, lanes, lane)
    return number, begin, min(length, size - begin)


@kernel
def _radices(n: int) -> tuple[int, int]:
    """Return the radices that `Permutation` uses for n elements."""
    a = int(math.sqrt(n))
    while a * a < n:
        a += 1
    while (a - 1) * (a - 1) >= n:
        a -= 1
    return a, (n + a - 1) // a
