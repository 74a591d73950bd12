"""Map elements of lanes to rows, and rows to elements, through the shuffled blocks of each lane.

Lane j of C lanes is cut into blocks of w elements. Two blocks of a lane may be shorter: the first
has ``ceil(w * (j + 1) / C)`` elements, and the last has the rest. Each block is permuted like a
`Permutation` of its length. A block of at most `MAX_TABLE_LENGTH` elements is small; other blocks
are large. `npstream.orders.layout` explains lanes, pieces, slots and places.

A *stretch* is a cached range of consecutive elements of a lane. The first look-up in a lane
computes one element only; a reader that continues gets a stretch at a time. The stretch of a small
block is the whole block, because a Fisher-Yates shuffle computes all elements anyway. Each lane
keeps its last stretch, so a reader that takes all lanes in turn computes nothing twice.

Tested in tests/orders/test_order.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from npstream._core.jit import kernel, u64
from npstream._core.typing import AnyArray, Int64
from npstream.orders.draws import draw
from npstream.orders.layout import (
    Layout,
    find_slot,
    lane_start,
    permute_lane,
    seek,
    slot_place,
    slot_row,
    slot_size,
    subkey,
)
from npstream.orders.permutation import (
    MAX_TABLE_LENGTH,
    decipher,
    encipher,
    shuffled_element,
    shuffled_position,
)

_MAX_STRETCH = 1 << 11
"""Maximum number of elements in a stretch."""

MAX_READAHEAD_STEP = 16
"""Look-ups in a large block are a sequential read if the step between them is less than this.

For a sequential read, a stretch is cached instead of one element.
"""

MAX_PIECES = 4 * _MAX_STRETCH
"""Maximum number of pieces of a large block that are tabulated for a stretch."""

_WINDOW = 1 << 12
"""Positions that are looked up together, lane by lane: few enough for the processor's cache."""

CACHE_BYTES = 1 << 28
"""Maximum number of bytes of cached stretches.

With most settings, the stretches of all lanes take less.
"""


# Columns of `Cache.entries`.
_BEGIN, _END, _STRETCH, _ROW = 0, 1, 2, 3


class Blocks(NamedTuple):
    """The sizes of an order: rows, lanes, and elements of a block; and the key of its epoch."""

    n: int
    lanes: int
    block: int
    key: int


class Cache(NamedTuple):
    """The last computed rows of each lane, and buffers to compute more.

    Parameters
    ----------
    limit : int
        Maximum number of stretches.
    entries : ndarray of int64, shape (lanes, 4)
        For each lane: the first cached element and the one after the last; the number of the lane's
        stretch, or -1 for none; and the row if only one element is cached, else -1.
    owners : ndarray of int64, shape (stretches + 1,)
        The lane that owns each stretch. The last entry counts how often lanes claimed a stretch.
    stretches : ndarray, shape (stretches, width)
        Cached rows.
    table : ndarray, shape (MAX_TABLE_LENGTH,)
        Buffer for a small block, if other blocks are large. Such a small block is the first or the
        last block of its lane.
    work : ndarray of int64, shape (4, MAX_PIECES)
        Buffer for a large block. Its rows are: the end of each piece in the block; for each piece,
        row number minus position in the block; and left and right digits of the cipher.
    guide : ndarray of int32
        Buffer for `_tabulate`.
    """

    limit: int
    entries: Int64
    owners: Int64
    stretches: AnyArray
    table: AnyArray
    work: Int64
    guide: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return self.rows_nbytes + self.table.nbytes + self.work.nbytes + self.guide.nbytes

    @property
    def rows_nbytes(self) -> int:
        """Bytes of the arrays that hold cached rows, without the buffers."""
        return self.entries.nbytes + self.owners.nbytes + self.stretches.nbytes


def new_cache(blocks: Blocks, dtype: np.dtype[Any], shared: Cache | None = None) -> Cache:
    """Return a cache without stretches, for rows of `dtype`.

    It uses the buffers of `shared`, if given. Then only one of the two may be in use at a time.
    """
    longest = min(blocks.block, -(-blocks.n // blocks.lanes))
    width = _MAX_STRETCH if longest > MAX_TABLE_LENGTH else longest
    needs_buffers = longest > MAX_TABLE_LENGTH and shared is None
    cache = Cache(
        limit=max(1, min(blocks.lanes, CACHE_BYTES // (width * dtype.itemsize))),
        entries=np.full((blocks.lanes, 4), -1),
        owners=np.zeros(1, np.int64),
        stretches=np.empty((0, width), dtype),
        table=np.empty(MAX_TABLE_LENGTH if needs_buffers else 0, dtype),
        work=np.empty((4, MAX_PIECES if needs_buffers else 0), np.int64),
        guide=np.empty(4 * MAX_PIECES + 1 if needs_buffers else 0, np.int32),
    )
    if shared is None:
        return cache
    return cache._replace(table=shared.table, work=shared.work, guide=shared.guide)


def grow_cache(cache: Cache, needed: int) -> Cache:
    """Return a copy with more stretches: twice as many, or `needed` if this is more.

    It has at most ``cache.limit`` stretches.
    """
    old, width = cache.stretches.shape
    count = min(max(2 * old, needed), cache.limit)
    stretches, owners = np.empty((count, width), cache.stretches.dtype), np.empty(count + 1, int)
    stretches[:old], owners[:old] = cache.stretches, cache.owners[:old]
    owners[count] = old
    return cache._replace(stretches=stretches, owners=owners)


@kernel
def look_up(positions: Int64, blocks: Blocks, layout: Layout, cache: Cache, rows: Int64) -> int:
    """Write the rows at positions.

    If `positions` has only one element, it is the first of ``rows.size`` consecutive positions.
    Return the number of rows written. It is less than ``rows.size`` if the cache has no free
    stretch, but is below its limit. Then the caller can grow the cache.
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
    """Write the rows at consecutive positions from `position` on; see `look_up`."""
    lanes = blocks.lanes
    window = max(_WINDOW, 16 * lanes)  # at least 16 elements of each lane
    for start in range(0, rows.size, window):
        stop = min(start + window, rows.size)
        # Consecutive elements of a lane are `lanes` positions apart.
        for first in range(start, min(start + lanes, stop)):
            element = (position + first) // lanes
            lane = position + first - element * lanes
            entry = cache.entries[lane]
            k = first
            while k < stop:
                is_cached = entry[_BEGIN] <= element < entry[_END]
                if not (is_cached or _fill(lane, element, blocks, layout, cache)):
                    return start
                if entry[_ROW] >= 0:
                    rows[k] = entry[_ROW]
                    element += 1
                    k += lanes
                else:
                    stretch = cache.stretches[entry[_STRETCH], element - int(entry[_BEGIN]) :]
                    count = min(int(entry[_END]) - element, (stop - k + lanes - 1) // lanes)
                    for i in range(count):
                        rows[k + i * lanes] = stretch[i]
                    element += count
                    k += count * lanes
    return rows.size


@kernel
def _fill(lane: int, element: int, blocks: Blocks, layout: Layout, cache: Cache) -> bool:
    """Cache an element of a lane, or a stretch that contains it.

    Return False if this needs a stretch, none is free, and the cache is below its limit.
    """
    if not layout.is_permuted[lane]:
        permute_lane(layout, lane)
    number, begin, length = _find_block(blocks, lane, element)
    place = lane_start(blocks.n, blocks.lanes, lane) + begin
    key = subkey(blocks.key, lane, number + 1)
    entry = cache.entries[lane]
    # Detect a sequential read. In a small block, the last look-up was in the block or just before
    # it. In a large block, it was just before the element.
    if length <= MAX_TABLE_LENGTH:
        is_continued = begin <= entry[_END] <= begin + length
    else:
        is_continued = 0 <= element - entry[_END] < MAX_READAHEAD_STEP
    if not is_continued:
        entry[_BEGIN] = element
        entry[_END] = element + 1
        entry[_ROW] = _row_of_element(key, length, element - begin, layout, lane, place, cache.work)
        return True
    if entry[_STRETCH] < 0 and not _claim(lane, cache):
        return False
    stretch = cache.stretches[entry[_STRETCH]]
    if length <= stretch.size:
        count = length
        _shuffle(key, layout, lane, place, stretch[:length])
    elif length <= MAX_TABLE_LENGTH:
        _shuffle(key, layout, lane, place, cache.table[:length])
        first = (element - begin) // stretch.size * stretch.size
        begin += first
        count = min(stretch.size, length - first)
        for k in range(count):
            stretch[k] = cache.table[first + k]
    else:
        # Stretches start short, because the reader may stop soon, and grow eightfold.
        count = max(8 * int(entry[_END] - entry[_BEGIN]), 8)
        count = min(count, stretch.size, begin + length - element)
        _scatter(key, length, element - begin, layout, lane, place, cache, stretch[:count])
        begin = element
    entry[_BEGIN] = begin
    entry[_END] = begin + count
    entry[_ROW] = -1
    return True


@kernel
def _claim(lane: int, cache: Cache) -> bool:
    """Give a lane a stretch; return False if none is free and the cache is below its limit.

    A cache at its limit takes the oldest stretch away from its lane.
    """
    count = len(cache.stretches)
    claims = int(cache.owners[count])
    if claims >= count and count < cache.limit:
        return False
    stretch = claims % count
    if claims >= count:
        cache.entries[cache.owners[stretch]] = -1
    cache.entries[lane, _STRETCH] = stretch
    cache.owners[stretch] = lane
    cache.owners[count] = claims + 1
    return True


@kernel
def _row_of_element(
    key: int, length: int, offset: int, layout: Layout, lane: int, place: int, work: Int64
) -> int:
    """Return the row of element `offset` of the block that begins at `place`."""
    if length <= MAX_TABLE_LENGTH:
        place += shuffled_element(key, length, offset)
    else:
        a, b = _radices(length)
        left = work[2, :1]
        right = work[3, :1]
        left[0] = offset // b
        right[0] = offset % b
        encipher(length, a, b, key, left, right)
        place += int(left[0]) * b + int(right[0])
    slot = find_slot(layout, lane, place)
    return slot_row(layout, slot) + place - slot_place(layout, lane, slot)


@kernel
def _shuffle(key: int, layout: Layout, lane: int, place: int, rows: AnyArray) -> None:
    """Write all rows of a small block, permuted like a `Permutation` of its length."""
    slot = find_slot(layout, lane, place)
    skipped = place - slot_place(layout, lane, slot)
    filled = 0
    while filled < rows.size:
        # Before the permutation, element i of the block is row first + i.
        first = slot_row(layout, slot) + skipped - filled
        stop = min(filled + slot_size(layout, slot) - skipped, rows.size)
        for i in range(filled, stop):
            # Unsigned indices need no check for negative ones, which takes a quarter of the time.
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
    """Write rows of a large block, from its element `offset` on."""
    slot = find_slot(layout, lane, place)
    count = find_slot(layout, lane, place + length - 1) + 1 - slot
    if count > 4 * rows.size:  # a table of the pieces would take longer
        for k in range(rows.size):
            rows[k] = _row_of_element(key, length, offset + k, layout, lane, place, cache.work)
        return
    shift = _tabulate(layout, lane, place, length, slot, count, cache.work, cache.guide)
    a, b = _radices(length)
    left = cache.work[2, : rows.size]
    right = cache.work[3, : rows.size]
    digit = offset // b
    low = offset - digit * b
    for k in range(rows.size):
        left[k] = digit
        right[k] = low
        low += 1
        if low == b:
            low = 0
            digit += 1
    encipher(length, a, b, key, left, right)
    for k in range(rows.size):
        target = int(left[k]) * b + int(right[k])
        piece = int(cache.guide[target >> shift])
        # Mostly one step to the next piece is enough. This step has no branch, which the processor
        # could mispredict.
        piece += target >= cache.work[0, piece]
        while target >= cache.work[0, piece]:
            piece += 1
        rows[k] = target + cache.work[1, piece]


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
    """Write the pieces of a block into `work` and `guide`, so that `_scatter` finds them quickly.

    Return a shift. Before the permutation, element i of the block is in piece
    ``guide[i >> shift]``, or in one of the next few pieces.
    """
    target = slot_place(layout, lane, slot) - place
    for piece in range(count):
        work[1, piece] = slot_row(layout, slot + piece) - target
        target += slot_size(layout, slot + piece)
        work[0, piece] = target
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
    """Write the positions of rows; `slots` is from `npstream.orders.layout.piece_slots`."""
    chunks = len(layout.chunks) - 1
    for k in range(rows.size):
        row = int(rows[k])
        piece = seek(layout.chunks, row, 0, chunks - 1)
        if slots[piece] < 0:
            # The chunk is cut: slots[piece] is -1 - i, and its first part is piece chunks + i.
            piece = chunks - 1 - int(slots[piece])
            while layout.parts[piece - chunks + 1] <= row:
                piece += 1
        slot = int(slots[piece])
        lane = seek(layout.firsts, slot, 0, layout.is_permuted.size - 1)
        place = slot_place(layout, lane, slot) + row - slot_row(layout, slot)
        element = place - lane_start(blocks.n, blocks.lanes, lane)
        number, begin, length = _find_block(blocks, lane, element)
        key = subkey(blocks.key, lane, number + 1)
        if length <= MAX_TABLE_LENGTH:
            offset = shuffled_position(key, length, element - begin)
        else:
            a, b = _radices(length)
            offset = decipher(length, a, b, key, element - begin)
        positions[k] = (begin + offset) * blocks.lanes + lane


@kernel
def _find_block(blocks: Blocks, lane: int, element: int) -> tuple[int, int, int]:
    """Return the number, the first element and the length of the block of `element`."""
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
    """Return the radices that `Permutation` uses for `n` elements."""
    a = int(math.sqrt(n))
    while a * a < n:
        a += 1
    while (a - 1) * (a - 1) >= n:
        a -= 1
    return a, (n + a - 1) // a
