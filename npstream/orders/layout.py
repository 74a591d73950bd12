"""Chunks dealt to lanes: where each sample of a view lies in an epoch, and back.

The chunks, permuted, are laid end to end over the lanes, and one that crosses a boundary is cut
there. Then the pieces of each lane are permuted. The layout is what comes of it: the pieces of
lane 0, then those of lane 1, and so on. A sample's *place* is its number in the layout.

A layout consists of three arrays, of int32 while there are fewer than 2**31 samples:

======  ========================================================================================
bounds  piece p is the samples from ``bounds[p]`` to ``bounds[p + 1]``: first the bounds of the
        chunks; after them, for each chunk that was cut, those of its parts; then the number of
        samples, as filling
pieces  the piece in each slot of the layout
marks   the place where every fourth slot begins
======  ========================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npstream._jit import draw, kernel
from npstream._typing import AnyArray, Int64
from npstream.orders.permutation import shuffle

STRIDE = 4
"""Slots for each mark: what a look-up goes through at most."""

MAX_KEY = (1 << 63) - 1
"""What the keys are below that are hashed from other keys."""


class Layout(NamedTuple):
    """The samples of a view in their lanes; see above."""

    bounds: AnyArray
    pieces: AnyArray
    marks: AnyArray
    chunks: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return self.bounds.nbytes + self.pieces.nbytes + self.marks.nbytes


def lay_out(starts: Int64, lanes: int, run_key: int, epoch_key: int) -> Layout:
    """Deal chunks to lanes, and permute the pieces of each lane.

    Parameters
    ----------
    starts : ndarray of int64, shape (chunks + 1,)
        First sample of each chunk, then the number of samples; no chunk is empty.
    lanes : int
    run_key, epoch_key : int
        The keys by which chunks are dealt, and by which pieces are permuted.

    Examples
    --------
    >>> layout = lay_out(np.array([0, 4, 8, 9]), lanes=2, run_key=1, epoch_key=2)
    >>> [(int(layout.bounds[p]), int(layout.bounds[p + 1])) for p in layout.pieces]
    [(0, 4), (8, 9), (4, 8)]
    """
    chunks, n = len(starts) - 1, int(starts[-1])
    dtype = np.int32 if n < 1 << 31 else np.int64
    # A cut adds one piece, and at most three bounds.
    cuts = min(lanes, n)
    bounds = np.full(chunks + 1 + 3 * cuts, n, dtype)
    bounds[: chunks + 1] = starts
    pieces, sizes = np.empty((2, chunks + cuts), np.int32), np.empty((2, chunks + cuts), dtype)
    count = _deal.sized(chunks + cuts)(run_key, chunks, lanes, bounds, pieces, sizes)
    marks = np.empty(-(-count // STRIDE), dtype)
    _permute.sized(count)(epoch_key, n, lanes, pieces[:, :count], sizes[:, :count], marks)
    return Layout(bounds, pieces[0, :count].copy(), marks, chunks)


def slots_of(layout: Layout) -> AnyArray:
    """Return the slot of each piece; for a chunk that was cut, minus its first part's number."""
    slots = np.empty(layout.bounds.size, np.int32)
    _invert.sized(slots.size)(layout.bounds, layout.pieces, layout.chunks, slots)
    return slots


@kernel
def lane_start(n: int, lanes: int, lane: int) -> int:
    """Return the place where a lane begins; the first n % lanes have one sample more."""
    return lane * (n // lanes) + min(lane, n % lanes)


@kernel
def lane_of(n: int, lanes: int, place: int) -> int:
    """Return the lane of a place."""
    size = n // lanes
    longer = n % lanes
    if place < longer * (size + 1):
        return place // (size + 1)
    return longer + (place - longer * (size + 1)) // size


@kernel
def subkey(key: int, lane: int, level: int) -> int:
    """Hash a key to that of one permutation of a lane."""
    return draw(draw(key ^ lane, MAX_KEY) ^ level, MAX_KEY)


@kernel
def _deal(
    key: int, chunks: int, lanes: int, bounds: AnyArray, pieces: AnyArray, sizes: AnyArray
) -> int:
    """Lay permuted chunks end to end over the lanes, and cut them there.

    Of `pieces` and `sizes`, row 1 gets the pieces, lane after lane; row 0 is room to work in.
    Returns the number of pieces.
    """
    n = int(bounds[chunks])
    order = pieces[0]
    shuffle(key, order[:chunks])
    for k in range(chunks):  # a loop apart: this one waits for memory all over the place
        sizes[0, k] = bounds[order[k] + 1] - bounds[order[k]]
    parts = chunks + 1
    slot = 0
    lane = 0
    room = lane_start(n, lanes, 1)
    for k in range(chunks):
        piece = int(order[k])
        size = int(sizes[0, k])
        if room == 0:
            lane += 1
            room = lane_start(n, lanes, lane + 1) - lane_start(n, lanes, lane)
        if size > room:
            bounds[parts] = bounds[piece]
            end = bounds[piece + 1]
            while size > room:
                pieces[1, slot] = parts
                sizes[1, slot] = room
                slot += 1
                bounds[parts + 1] = bounds[parts] + room
                parts += 1
                size -= room
                lane += 1
                room = lane_start(n, lanes, lane + 1) - lane_start(n, lanes, lane)
            bounds[parts + 1] = end
            piece = parts
            parts += 2
        pieces[1, slot] = piece
        sizes[1, slot] = size
        slot += 1
        room -= size
    return slot


@kernel
def _permute(
    key: int, n: int, lanes: int, pieces: AnyArray, sizes: AnyArray, marks: AnyArray
) -> None:
    """Permute the pieces of each lane, from row 1 to row 0, and mark every fourth."""
    slot = 0
    for lane in range(min(lanes, n)):
        first = slot
        room = lane_start(n, lanes, lane + 1) - lane_start(n, lanes, lane)
        while room > 0:
            room -= int(sizes[1, slot])
            slot += 1
        lane_key = subkey(key, lane, 0)
        for i in range(slot - first):  # as in `shuffle`
            j = draw(lane_key ^ i, i + 1)
            pieces[0, first + i] = pieces[0, first + j]
            pieces[0, first + j] = pieces[1, first + i]
            sizes[0, first + i] = sizes[0, first + j]
            sizes[0, first + j] = sizes[1, first + i]
    place = 0
    for slot in range(pieces.shape[1]):
        if slot % STRIDE == 0:
            marks[slot // STRIDE] = place
        place += int(sizes[0, slot])


@kernel
def _invert(bounds: AnyArray, pieces: AnyArray, chunks: int, slots: AnyArray) -> None:
    """Fill in the slot of each piece."""
    for slot in range(pieces.size):
        slots[pieces[slot]] = slot
    part = chunks + 1
    while part < bounds.size and bounds[part] < bounds[chunks]:
        chunk = seek(bounds, int(bounds[part]), 0, chunks - 1)
        slots[chunk] = -part
        while bounds[part] < bounds[chunk + 1]:
            part += 1
        part += 1


@kernel
def seek(values: AnyArray, value: int, low: int, high: int) -> int:
    """Return the last number from `low` to `high` whose value is at most `value`."""
    while low < high:
        middle = (low + high + 1) >> 1
        if values[middle] <= value:
            low = middle
        else:
            high = middle - 1
    return low


@kernel
def size_of(layout: Layout, slot: int) -> int:
    """Return the number of samples in a slot."""
    piece = layout.pieces[slot]
    return int(layout.bounds[piece + 1]) - int(layout.bounds[piece])


@kernel
def slot_at(layout: Layout, place: int) -> int:
    """Return the slot that a place lies in."""
    mark = seek(layout.marks, place, 0, layout.marks.size - 1)
    slot = mark * STRIDE
    left = place - int(layout.marks[mark])
    while left >= size_of(layout, slot):
        left -= size_of(layout, slot)
        slot += 1
    return slot


@kernel
def start_of(layout: Layout, slot: int) -> int:
    """Return the place where a slot begins."""
    mark = slot // STRIDE
    place = int(layout.marks[mark])
    for before in range(mark * STRIDE, slot):
        place += size_of(layout, before)
    return place
