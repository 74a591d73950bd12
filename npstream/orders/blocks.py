"""Blocks of lanes: which sample each element of a lane is, and back.

Lane j of C is cut into blocks of w samples, but for the first, which has w * (j + 1) / C, rounded
up, and the last, which has what is left. Each is permuted as a `Permutation` of its length is.

Elements are computed a stretch at a time, which for a small block is all of it: a Fisher-Yates
shuffle cannot make less. The last stretch of each lane is kept, so that neither reading on nor
reading every lane in turn computes anything twice.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from npstream._jit import draw, kernel
from npstream._typing import AnyArray, Int64
from npstream.orders.layout import (
    Layout,
    lane_of,
    lane_start,
    seek,
    size_of,
    slot_at,
    start_of,
    subkey,
)
from npstream.orders.permutation import SMALL, decipher, encipher, shuffled_from, shuffled_to

STRETCH = 1 << 11
"""Elements of large blocks that are computed at once, at most."""

PIECES = 4 * STRETCH
"""Pieces of a large block, at most, that are worth a table for a stretch."""

WINDOW = 1 << 14
"""Positions that are looked up lane by lane: few enough to stay in the processor's cache."""

CACHE_BYTES = 1 << 28
"""Bytes of stretches that are kept, at most. Few settings bring even all lanes to that."""


class Blocks(NamedTuple):
    """What an order is cut into: samples, lanes, samples of a block in a lane; and its key."""

    n: int
    lanes: int
    block: int
    key: int


class Cache(NamedTuple):
    """The last stretch of each lane that was looked up, and room to compute another.

    Parameters
    ----------
    limit : int
        Rows that there may be, at most one a lane.
    row_of : ndarray of int64, shape (lanes + 1,)
        The row of each lane, or -1; then how often a row was given to a lane.
    held : ndarray of int64, shape (rows, 3)
        The lane of each row, the first element that it holds, and the one after the last.
    rows : ndarray, shape (rows, width)
        Samples.
    table : ndarray, shape (SMALL,)
        A small block among large ones: the first or the last of its lane.
    work : ndarray of int64, shape (4, PIECES)
        For a large block, where its pieces end in it, and what to add to get their samples; and
        the digits of elements.
    guide : ndarray of int32
        See `_prepare`.
    """

    limit: int
    row_of: Int64
    held: Int64
    rows: AnyArray
    table: AnyArray
    work: Int64
    guide: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return sum(array.nbytes for array in self[1:])


def new_cache(blocks: Blocks, count: int, dtype: np.dtype[Any]) -> Cache:
    """Return a cache for `count` lanes, if it may have as many, and samples of that dtype."""
    longest = min(blocks.block, -(-blocks.n // blocks.lanes))
    large = longest > SMALL
    width = STRETCH if large else longest
    limit = max(1, min(blocks.lanes, CACHE_BYTES // (width * dtype.itemsize)))
    count = min(count, limit)
    row_of = np.full(blocks.lanes + 1, -1)
    row_of[-1] = 0
    return Cache(
        limit=limit,
        row_of=row_of,
        held=np.full((count, 3), -1),
        rows=np.empty((count, width), dtype),
        table=np.empty(SMALL if large else 0, dtype),
        work=np.empty((4, PIECES if large else 0), np.int64),
        guide=np.empty(4 * PIECES + 1 if large else 0, np.int32),
    )


def grown(cache: Cache) -> Cache:
    """Return a cache with twice as many rows, up to the limit."""
    old = len(cache.rows)
    count = min(2 * old, cache.limit)
    rows, held = np.empty((count, cache.rows.shape[1]), cache.rows.dtype), np.full((count, 3), -1)
    rows[:old], held[:old] = cache.rows, cache.held
    return cache._replace(rows=rows, held=held)


@kernel
def look_up(positions: Int64, blocks: Blocks, layout: Layout, cache: Cache, samples: Int64) -> int:
    """Look up the samples at positions.

    Returns how many were: not all if the cache lacks a row for a lane, and may grow.
    """
    done = 0
    while done < positions.size:
        position = int(positions[done])
        stop = done + 1
        while stop < positions.size and positions[stop] == position + stop - done:
            stop += 1
        done += look_up_run(position, blocks, layout, cache, samples[done:stop])
        if done < stop:
            return done
    return done


@kernel
def look_up_run(position: int, blocks: Blocks, layout: Layout, cache: Cache, samples: Int64) -> int:
    """Look up the samples at consecutive positions, from `position` on; else as `look_up`."""
    lanes = blocks.lanes
    held = cache.held
    window = max(WINDOW, 16 * lanes)
    for start in range(0, samples.size, window):
        stop = min(start + window, samples.size)
        # Neighbours in a lane are as many positions apart as there are lanes.
        for first in range(start, min(start + lanes, stop)):
            element = (position + first) // lanes
            lane = position + first - element * lanes
            row = _row(lane, cache)
            if row < 0:
                return start
            k = first
            while k < stop:
                if not held[row, 1] <= element < held[row, 2]:
                    _fill(lane, element, blocks, layout, cache, held[row], cache.rows[row])
                stretch = cache.rows[row, element - int(held[row, 1]) :]
                count = min(int(held[row, 2]) - element, (stop - k + lanes - 1) // lanes)
                for i in range(count):
                    samples[k + i * lanes] = stretch[i]
                element += count
                k += count * lanes
    return samples.size


@kernel
def _row(lane: int, cache: Cache) -> int:
    """Return a lane's row: if need be the one that was given away first, or -1 to have more."""
    row = int(cache.row_of[lane])
    if row >= 0:
        return row
    count = len(cache.held)
    claims = int(cache.row_of[-1])
    if claims == count and count < cache.limit:
        return -1
    row = claims % count
    if claims >= count:
        cache.row_of[cache.held[row, 0]] = -1
    cache.row_of[lane] = row
    cache.row_of[-1] = claims + 1
    cache.held[row, 0] = lane
    cache.held[row, 1] = -1
    cache.held[row, 2] = -1
    return row


@kernel
def _fill(
    lane: int,
    element: int,
    blocks: Blocks,
    layout: Layout,
    cache: Cache,
    held: Int64,
    row: AnyArray,
) -> None:
    """Compute a stretch of a lane with an element in it."""
    number, begin, length = _block_of(blocks, lane, element)
    place = lane_start(blocks.n, blocks.lanes, lane) + begin
    key = subkey(blocks.key, lane, number + 1)
    if length <= SMALL and not begin <= held[2] <= begin + length:
        # The first element of a lane: maybe nobody asks for another.
        count = 1
        place += shuffled_from(key, length, element - begin)
        slot = slot_at(layout, place)
        row[0] = int(layout.bounds[layout.pieces[slot]]) + place - start_of(layout, slot)
        begin = element
    elif length <= row.size:
        count = length
        _shuffle(key, layout, place, row[:length])
    elif length <= SMALL:
        _shuffle(key, layout, place, cache.table[:length])
        first = (element - begin) // row.size * row.size
        begin += first
        count = min(row.size, length - first)
        for k in range(count):
            row[k] = cache.table[first + k]
    else:
        # Whoever reads on gets longer and longer stretches; who jumps about, single elements.
        count = 8 * int(held[2] - held[1]) if element == held[2] else 1
        count = min(count, row.size, begin + length - element)
        _scatter(key, length, element - begin, layout, place, cache, row[:count])
        begin = element
    held[1] = begin
    held[2] = begin + count


@kernel
def _shuffle(key: int, layout: Layout, place: int, samples: AnyArray) -> None:
    """Compute all samples of a small block, permuted as `Permutation` permutes its table."""
    slot = slot_at(layout, place)
    skipped = place - start_of(layout, slot)
    filled = 0
    while filled < samples.size:
        first = int(layout.bounds[layout.pieces[slot]]) + skipped - filled
        stop = min(filled + size_of(layout, slot) - skipped, samples.size)
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
    layout: Layout,
    place: int,
    cache: Cache,
    samples: AnyArray,
) -> None:
    """Compute some samples of a large block, from number `offset` on."""
    radix, other = _radices(length)
    left = cache.work[2, : samples.size]
    right = cache.work[3, : samples.size]
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
    slot = slot_at(layout, place)
    count = slot_at(layout, place + length - 1) + 1 - slot
    if count <= 4 * samples.size:
        shift = _prepare(layout, place, length, slot, count, cache.work, cache.guide)
        for k in range(samples.size):
            at = int(left[k]) * other + int(right[k])
            piece = int(cache.guide[at >> shift])
            piece += at >= cache.work[0, piece]
            while at >= cache.work[0, piece]:
                piece += 1
            samples[k] = at + cache.work[1, piece]
    else:
        for k in range(samples.size):
            at = place + int(left[k]) * other + int(right[k])
            slot = slot_at(layout, at)
            samples[k] = int(layout.bounds[layout.pieces[slot]]) + at - start_of(layout, slot)


@kernel
def _prepare(
    layout: Layout, place: int, length: int, slot: int, count: int, work: Int64, guide: AnyArray
) -> int:
    """Tabulate the pieces of a large block.

    Returns a shift: number `at` of the block is in the piece ``guide[at >> shift]``, or in one of
    the next few.
    """
    at = start_of(layout, slot) - place
    for piece in range(count):
        work[1, piece] = int(layout.bounds[layout.pieces[slot + piece]]) - at
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
def find(samples: Int64, blocks: Blocks, layout: Layout, slots: AnyArray, positions: Int64) -> None:
    """Find the positions of samples; see `npstream.orders.layout.slots_of`."""
    for k in range(samples.size):
        sample = int(samples[k])
        piece = seek(layout.bounds, sample, 0, layout.chunks - 1)
        if slots[piece] < 0:
            piece = -int(slots[piece])
            while layout.bounds[piece + 1] <= sample:
                piece += 1
        place = start_of(layout, int(slots[piece])) + sample - int(layout.bounds[piece])
        lane = lane_of(blocks.n, blocks.lanes, place)
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
