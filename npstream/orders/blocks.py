"""Blocks of lanes: which row each element of a lane is, and back.

Lane j of C is cut into blocks of w elements, but for the first, which has w * (j + 1) / C, rounded
up, and the last, which has what is left. Each is permuted as a `Permutation` of its length is.

The first element of a lane that somebody asks for is computed alone; whoever reads on gets a
stretch at a time. Of a small block that is all, since a Fisher-Yates shuffle makes no less. The
last stretch of each lane is kept, so that reading all lanes in turn computes nothing twice.

Tested in tests/orders/test_order.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from npstream._core.jit import draw, kernel, u64
from npstream._core.typing import AnyArray, Int64
from npstream.orders.layout import (
    Layout,
    lane_start,
    lay_lane,
    place_of,
    row_of,
    seek,
    size_of,
    slot_at,
    subkey,
)
from npstream.orders.permutation import SMALL, decipher, encipher, shuffled_from, shuffled_to

_STRETCH = 1 << 11
"""Elements of large blocks that are computed at once, at most."""

STEP = 16
"""Elements of a large block, at most, from one to the next for somebody who reads on."""

PIECES = 4 * _STRETCH
"""Pieces of a large block that are tabulated for a stretch, at most."""

_WINDOW = 1 << 12
"""Positions that are looked up lane by lane: few enough to stay in the processor's cache."""

CACHE_BYTES = 1 << 28
"""Bytes of stretches that are kept, at most. Few settings bring even all lanes to that."""


class Blocks(NamedTuple):
    """What an order is cut into: rows, lanes, elements of a block; and the key of its epoch."""

    n: int
    lanes: int
    block: int
    key: int


class Cache(NamedTuple):
    """What was computed last of each lane, and room to compute more.

    Parameters
    ----------
    limit : int
        Stretches that there may be.
    held : ndarray of int64, shape (lanes, 4)
        For each lane, the first element that is held and the one after the last; the lane's
        stretch, or -1 for none; and the row itself if it is only one, or -1 if the stretch has it.
    lane_of : ndarray of int64, shape (stretches + 1,)
        The lane of each stretch; then how often a stretch was given to a lane.
    stretches : ndarray, shape (stretches, width)
        Rows.
    table : ndarray, shape (SMALL,)
        A small block among large ones: the first or the last of its lane.
    work : ndarray of int64, shape (4, PIECES)
        For a large block: where its pieces end, what to add there to get rows; and digits.
    guide : ndarray of int32
        See `_tabulate`.
    """

    limit: int
    held: Int64
    lane_of: Int64
    stretches: AnyArray
    table: AnyArray
    work: Int64
    guide: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return self.kept + self.table.nbytes + self.work.nbytes + self.guide.nbytes

    @property
    def kept(self) -> int:
        """Bytes of the arrays that hold what was computed."""
        return self.held.nbytes + self.lane_of.nbytes + self.stretches.nbytes


def new_cache(blocks: Blocks, dtype: np.dtype[Any], shared: Cache | None = None) -> Cache:
    """Return a cache, of no stretch yet, for rows of that dtype.

    It works where another one does, if that is given: they may not be used at the same time.
    """
    longest = min(blocks.block, -(-blocks.n // blocks.lanes))
    width = _STRETCH if longest > SMALL else longest
    works = longest > SMALL and shared is None
    cache = Cache(
        limit=max(1, min(blocks.lanes, CACHE_BYTES // (width * dtype.itemsize))),
        held=np.full((blocks.lanes, 4), -1),
        lane_of=np.zeros(1, np.int64),
        stretches=np.empty((0, width), dtype),
        table=np.empty(SMALL if works else 0, dtype),
        work=np.empty((4, PIECES if works else 0), np.int64),
        guide=np.empty(4 * PIECES + 1 if works else 0, np.int32),
    )
    if shared is None:
        return cache
    return cache._replace(table=shared.table, work=shared.work, guide=shared.guide)


def grown(cache: Cache, wanted: int) -> Cache:
    """Return a cache with more stretches: as many as wanted, but not too few nor too many."""
    old, width = cache.stretches.shape
    count = min(max(2 * old, wanted), cache.limit)
    stretches, lane_of = np.empty((count, width), cache.stretches.dtype), np.empty(count + 1, int)
    stretches[:old], lane_of[:old] = cache.stretches, cache.lane_of[:old]
    lane_of[count] = old
    return cache._replace(stretches=stretches, lane_of=lane_of)


@kernel
def look_up(positions: Int64, blocks: Blocks, layout: Layout, cache: Cache, rows: Int64) -> int:
    """Look up the rows at positions; a single one is the first of consecutive positions.

    Returns how many were: not all if the cache lacks a stretch for a lane, and may grow.
    """
    if positions.size == 1:
        return _look_up_run(int(positions[0]), blocks, layout, cache, rows)
    done = 0
    while done < positions.size:
        position = int(positions[done])
        stop = done + 1
        while stop < positions.size and positions[stop] == position + stop - done:
            stop += 1
        done += _look_up_run(position, blocks, layout, cache, rows[done:stop])
        if done < stop:
            return done
    return done


@kernel
def _look_up_run(position: int, blocks: Blocks, layout: Layout, cache: Cache, rows: Int64) -> int:
    """Look up the rows at consecutive positions, from `position` on; else as `look_up`."""
    lanes = blocks.lanes
    window = max(_WINDOW, 16 * lanes)
    for start in range(0, rows.size, window):
        stop = min(start + window, rows.size)
        # Neighbors in a lane are as many positions apart as there are lanes.
        for first in range(start, min(start + lanes, stop)):
            element = (position + first) // lanes
            lane = position + first - element * lanes
            held = cache.held[lane]
            k = first
            while k < stop:
                known = held[0] <= element < held[1]
                if not (known or _fill(lane, element, blocks, layout, cache)):
                    return start
                if held[3] >= 0:
                    rows[k] = held[3]
                    element += 1
                    k += lanes
                else:
                    stretch = cache.stretches[held[2], element - int(held[0]) :]
                    count = min(int(held[1]) - element, (stop - k + lanes - 1) // lanes)
                    for i in range(count):
                        rows[k + i * lanes] = stretch[i]
                    element += count
                    k += count * lanes
    return rows.size


@kernel
def _fill(lane: int, element: int, blocks: Blocks, layout: Layout, cache: Cache) -> bool:
    """Compute an element of a lane, or a stretch from it on; or return False for lack of one."""
    if not layout.laid[lane]:
        lay_lane(layout, lane)
    number, begin, length = _block_of(blocks, lane, element)
    place = lane_start(blocks.n, blocks.lanes, lane) + begin
    key = subkey(blocks.key, lane, number + 1)
    held = cache.held[lane]
    reads_on = 0 <= element - held[1] < STEP
    if length <= SMALL:
        reads_on = begin <= held[1] <= begin + length
    if not reads_on:
        held[0] = element
        held[1] = element + 1
        held[3] = _row_of_element(key, length, element - begin, layout, lane, place, cache.work)
        return True
    if held[2] < 0 and not _claim(lane, cache):
        return False
    stretch = cache.stretches[held[2]]
    if length <= stretch.size:
        count = length
        _shuffle(key, layout, lane, place, stretch[:length])
    elif length <= SMALL:
        _shuffle(key, layout, lane, place, cache.table[:length])
        first = (element - begin) // stretch.size * stretch.size
        begin += first
        count = min(stretch.size, length - first)
        for k in range(count):
            stretch[k] = cache.table[first + k]
    else:
        # Longer and longer ones, for somebody may stop soon.
        count = max(8 * int(held[1] - held[0]), 8)
        count = min(count, stretch.size, begin + length - element)
        _scatter(key, length, element - begin, layout, lane, place, cache, stretch[:count])
        begin = element
    held[0] = begin
    held[1] = begin + count
    held[3] = -1
    return True


@kernel
def _claim(lane: int, cache: Cache) -> bool:
    """Give a lane a stretch: if need be one of another lane, unless there may be more."""
    count = len(cache.stretches)
    claims = int(cache.lane_of[count])
    if claims >= count and count < cache.limit:
        return False
    stretch = claims % count
    if claims >= count:
        cache.held[cache.lane_of[stretch]] = -1
    cache.held[lane, 2] = stretch
    cache.lane_of[stretch] = lane
    cache.lane_of[count] = claims + 1
    return True


@kernel
def _row_of_element(
    key: int, length: int, offset: int, layout: Layout, lane: int, place: int, work: Int64
) -> int:
    """Return the row of number `offset` of a block that begins at a place."""
    if length <= SMALL:
        place += shuffled_from(key, length, offset)
    else:
        radix, other = _radices(length)
        left = work[2, :1]
        right = work[3, :1]
        left[0] = offset // other
        right[0] = offset % other
        encipher(length, radix, other, key, left, right)
        place += int(left[0]) * other + int(right[0])
    slot = slot_at(layout, lane, place)
    return row_of(layout, slot) + place - place_of(layout, lane, slot)


@kernel
def _shuffle(key: int, layout: Layout, lane: int, place: int, rows: AnyArray) -> None:
    """Compute all rows of a small block, permuted as `Permutation` permutes its table."""
    slot = slot_at(layout, lane, place)
    skipped = place - place_of(layout, lane, slot)
    filled = 0
    while filled < rows.size:
        first = row_of(layout, slot) + skipped - filled
        stop = min(filled + size_of(layout, slot) - skipped, rows.size)
        for i in range(filled, stop):
            # Unsigned, they need not be checked for negative ones: a quarter of the time.
            j = u64(draw(key ^ i, i + 1))
            rows[u64(i)] = rows[j]
            rows[j] = first + i
        filled = stop
        skipped = 0
        slot += 1


@kernel
def _scatter(
    key: int,
    length: int,
    offset: int,
    layout: Layout,
    lane: int,
    place: int,
    cache: Cache,
    rows: AnyArray,
) -> None:
    """Compute some rows of a large block, from number `offset` on."""
    slot = slot_at(layout, lane, place)
    count = slot_at(layout, lane, place + length - 1) + 1 - slot
    if count > 4 * rows.size:  # to tabulate them would take longer
        for k in range(rows.size):
            rows[k] = _row_of_element(key, length, offset + k, layout, lane, place, cache.work)
        return
    shift = _tabulate(layout, lane, place, length, slot, count, cache.work, cache.guide)
    radix, other = _radices(length)
    left = cache.work[2, : rows.size]
    right = cache.work[3, : rows.size]
    digit = offset // other
    low = offset - digit * other
    for k in range(rows.size):
        left[k] = digit
        right[k] = low
        low += 1
        if low == other:
            low = 0
            digit += 1
    encipher(length, radix, other, key, left, right)
    for k in range(rows.size):
        at = int(left[k]) * other + int(right[k])
        piece = int(cache.guide[at >> shift])
        piece += at >= cache.work[0, piece]
        while at >= cache.work[0, piece]:
            piece += 1
        rows[k] = at + cache.work[1, piece]


@kernel
def _tabulate(
    layout: Layout,
    lane: int,
    place: int,
    length: int,
    slot: int,
    count: int,
    work: Int64,
    guide: AnyArray,
) -> int:
    """Tabulate the pieces of a block.

    Returns a shift: number `at` of the block is in the piece ``guide[at >> shift]``, or in one of
    the next few.
    """
    at = place_of(layout, lane, slot) - place
    for piece in range(count):
        work[1, piece] = row_of(layout, slot + piece) - at
        at += size_of(layout, slot + piece)
        work[0, piece] = at
    shift = 0
    while length >> shift > 4 * count:
        shift += 1
    piece = 0
    for cell in range((length - 1 >> shift) + 1):
        while work[0, piece] <= cell << shift:
            piece += 1
        guide[cell] = piece
    return shift


@kernel
def find(rows: Int64, blocks: Blocks, layout: Layout, slots: AnyArray, positions: Int64) -> None:
    """Find the positions of rows; see `npstream.orders.layout.slots_of`."""
    chunks = len(layout.chunks) - 1
    for k in range(rows.size):
        row = int(rows[k])
        piece = seek(layout.chunks, row, 0, chunks - 1)
        if slots[piece] < 0:
            piece = chunks - 1 - int(slots[piece])
            while layout.parts[piece - chunks + 1] <= row:
                piece += 1
        slot = int(slots[piece])
        lane = seek(layout.firsts, slot, 0, layout.laid.size - 1)
        place = place_of(layout, lane, slot) + row - row_of(layout, slot)
        element = place - lane_start(blocks.n, blocks.lanes, lane)
        number, begin, length = _block_of(blocks, lane, element)
        key = subkey(blocks.key, lane, number + 1)
        if length <= SMALL:
            offset = shuffled_to(key, length, element - begin)
        else:
            radix, other = _radices(length)
            offset = decipher(length, radix, other, key, element - begin)
        positions[k] = (begin + offset) * blocks.lanes + lane


@kernel
def _block_of(blocks: Blocks, lane: int, element: int) -> tuple[int, int, int]:
    """Return the number, the first element and the length of an element's block."""
    first = (blocks.block * (lane + 1) + blocks.lanes - 1) // blocks.lanes
    number = 0
    begin = 0
    length = first
    if element >= first:
        number = 1 + (element - first) // blocks.block
        begin = first + (number - 1) * blocks.block
        length = blocks.block
    start = lane_start(blocks.n, blocks.lanes, lane)
    size = lane_start(blocks.n, blocks.lanes, lane + 1) - start
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
