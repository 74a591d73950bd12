"""Blocks of lanes: which place of a layout each element of a lane stands for, and back.

Lane j of C is cut into blocks of w samples, but for the last, which is what is left, and the
first, which has w * (j + 1) / C, rounded up. A block is permuted as a `Permutation` of its length
permutes it.

Elements are computed a stretch at a time: a whole block if it is small, since a Fisher-Yates
shuffle makes all of it or nothing. The last stretch of each lane is kept in a row of a cache.
"""

from __future__ import annotations

import math

import numpy as np

from npstream._jit import kernel
from npstream._typing import AnyArray, Int64
from npstream.orders.layout import (
    Layout,
    lane_of,
    lane_start,
    place_of,
    sample_at,
    samples_from,
    seek,
    slots_of,
    subkey,
)
from npstream.orders.permutation import SMALL, decipher, encipher, shuffle, shuffled_to

STRETCH = 1 << 9
"""Elements that are computed at once where whole blocks may be too long to keep."""

CACHE_BYTES = 1 << 28
"""Bytes that a cache may grow to. With default settings, even all lanes of 10 TB need less."""


class Cache:
    """The last stretch of each of the lanes that were looked up last.

    Parameters
    ----------
    n, lanes, block : int
        Samples of the view, lanes, and samples of a block.
    dtype : dtype
        Of the layout's arrays.
    """

    __slots__ = ("held", "limit", "row_of", "rows", "scratch")

    def __init__(self, n: int, lanes: int, block: int, dtype: np.dtype[np.signedinteger]) -> None:
        width = min(block, -(-n // lanes))
        small = width <= SMALL
        # Among large blocks there may be small ones, first or last of their lanes.
        self.scratch = np.empty(0 if small else SMALL, dtype)
        self.rows = np.empty((1, width if small else STRETCH), dtype)
        self.limit = max(1, min(lanes, CACHE_BYTES // max(1, self.rows.nbytes)))
        # For each row, its lane, and the first element that it holds and the one after the last.
        self.held = np.full((1, 3), -1, np.int64)
        # The row of each lane, or -1; and how often a row was given to a lane.
        self.row_of = np.full(lanes + 1, -1, np.int64)
        self.row_of[lanes] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache takes."""
        arrays = (self.scratch, self.rows, self.held, self.row_of)
        return sum(array.nbytes for array in arrays)

    def grow(self) -> None:
        """Double the number of rows, at most to the limit."""
        old = len(self.rows)
        count = min(2 * old, self.limit)
        rows, held = np.empty((count, self.rows.shape[1]), self.rows.dtype), self.held
        rows[:old] = self.rows
        self.rows = rows
        self.held = np.full((count, 3), -1, np.int64)
        self.held[:old] = held


@kernel
def look_up(
    positions: Int64,
    start: int,
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
    scratch: AnyArray,
    samples: Int64,
) -> int:
    """Look up the samples at positions, from number `start` on.

    Returns how far it came: not to the end if the cache has too few rows, and may grow.
    """
    last = -2
    lane = 0
    element = 0
    for k in range(start, positions.size):
        position = int(positions[k])
        if position == last + 1:  # as below, but a division takes longer than all the rest
            lane += 1
            if lane == lanes:
                lane = 0
                element += 1
        else:
            element = position // lanes
            lane = position - element * lanes
        last = position
        row = int(row_of[lane])
        if row < 0:
            row = _claim(lane, lanes, limit, row_of, held)
            if row < 0:
                return k
        if element < held[row, 1] or element >= held[row, 2]:
            _fill(
                lane, element, n, lanes, block, key, bounds, pieces, marks,
                held[row], rows[row], scratch,
            )  # fmt: skip
        samples[k] = rows[row, element - held[row, 1]]
    return positions.size


@kernel
def _claim(lane: int, lanes: int, limit: int, row_of: Int64, held: Int64) -> int:
    """Give a row to a lane, the longest held one if need be; or return -1 for lack of rows."""
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
    scratch: AnyArray,
) -> None:
    """Compute the samples of a stretch that has an element of a lane."""
    number, begin, length = _block_of(n, lanes, block, lane, element)
    place = lane_start(n, lanes, lane) + begin
    block_key = subkey(key, lane, number + 1)
    count = length
    if length <= row.size:
        samples_from(bounds, pieces, marks, place, row[:length])
        shuffle(block_key, row[:length])
    elif length <= SMALL:
        samples_from(bounds, pieces, marks, place, scratch[:length])
        shuffle(block_key, scratch[:length])
        first = (element - begin) // row.size * row.size
        begin += first
        count = min(row.size, length - first)
        row[:count] = scratch[first : first + count]
    else:
        # Positions far apart have no use for what lies between them.
        count = min(row.size, length + begin - element) if element == held[2] else 1
        _scatter(block_key, length, element - begin, place, bounds, pieces, marks, row[:count])
        begin = element
    held[1] = begin
    held[2] = begin + count


@kernel
def _scatter(
    key: int,
    length: int,
    offset: int,
    place: int,
    bounds: AnyArray,
    pieces: AnyArray,
    marks: AnyArray,
    samples: AnyArray,
) -> None:
    """Compute some samples of a large block, from number `offset` of the permuted ones on."""
    radix, other = _radices(length)
    left = offset // other
    right = offset - left * other
    low = 0
    high = marks.size - 1
    if samples.size > 1:
        low = seek(marks, place, low, high)
        high = seek(marks, place + length - 1, low, high)
    scale = (high - low + 1) / length
    for k in range(samples.size):
        at = encipher(length, radix, other, key, left, right)
        right += 1
        if right == other:
            right = 0
            left += 1
        mark = min(low + int(at * scale), high)  # right where pieces are of one size
        if marks[mark] > place + at:
            mark = seek(marks, place + at, low, mark)
        elif mark < high and marks[mark + 1] <= place + at:
            mark = seek(marks, place + at, mark, high)
        samples[k] = sample_at(bounds, pieces, marks, mark, place + at)


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
        place = place_of(bounds, pieces, marks, int(slots[piece]), sample)
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
