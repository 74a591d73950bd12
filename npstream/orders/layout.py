"""Chunks dealt to lanes: where each row of a view lies in an epoch, and back.

The chunks, permuted, are laid end to end over the lanes, and one that crosses a boundary is cut
there. Then the pieces of each lane are permuted. The layout is what comes of it: the pieces of
lane 0, then those of lane 1, and so on. A row's *place* is its number in the layout.

Arrays of a layout; numbers of rows are int32 while there are fewer than 2**31 rows:

======  ========================================================================================
chunks  first row of each chunk, then the number of rows. Chunk p is piece p, unless it is cut
parts   the same for the parts of cut chunks, one chunk after the other; then the number of rows,
        as filling. If there are c chunks, piece c + i begins at ``parts[i]``
pieces  the piece in each slot of the layout
marks   the place where every eighth slot begins
======  ========================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npstream._jit import draw, kernel
from npstream._typing import AnyArray, Int64
from npstream.memory import huge_empty
from npstream.orders.permutation import shuffle

STRIDE = 8
"""Slots for each mark: what a look-up goes through at most."""

TOGETHER = 1 << 10
"""Pieces whose sizes are looked up in a loop apart: they lie all over the memory."""

MAX_KEY = (1 << 63) - 1
"""What the keys are below that are hashed from other keys."""


class Layout(NamedTuple):
    """The rows of a view in their lanes; see above."""

    chunks: AnyArray
    parts: AnyArray
    pieces: AnyArray
    marks: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return sum(array.nbytes for array in self)


def lay_out(chunks: AnyArray, lanes: int, run_key: int, epoch_key: int) -> Layout:
    """Deal chunks to lanes, and permute the pieces of each lane.

    Parameters
    ----------
    chunks : ndarray of int32 or int64
        First row of each chunk, then the number of rows; no chunk is empty.
    lanes : int
    run_key, epoch_key : int
        The keys by which chunks are dealt, and by which pieces are permuted.

    Examples
    --------
    >>> lay_out(np.array([0, 4, 8, 9]), lanes=2, run_key=1, epoch_key=2).pieces
    array([0, 2, 1], dtype=int32)
    """
    n = int(chunks[-1])
    chunks = np.ascontiguousarray(chunks, np.int32 if n < 1 << 31 else np.int64)
    cuts = min(lanes, n)
    # A cut adds one piece, and at most three bounds.
    parts = np.full(3 * cuts, n, chunks.dtype)
    pieces = huge_empty(len(chunks) - 1 + cuts, np.int32)
    lane = huge_empty(pieces.size, np.int64)
    marks = np.empty(-(-pieces.size // STRIDE), chunks.dtype)
    deal = _deal.sized(pieces.size)
    count = deal(run_key, epoch_key, lanes, chunks, parts, pieces, lane, marks)
    return Layout(chunks, parts, pieces[:count], marks[: -(-count // STRIDE)])


def slots_of(layout: Layout) -> AnyArray:
    """Return the slot of each piece; for a chunk that was cut, -1 - i if its parts begin at i."""
    slots = huge_empty(len(layout.chunks) - 1 + layout.parts.size, np.int32)
    _invert.sized(slots.size)(layout, slots)
    return slots


@kernel
def lane_start(n: int, lanes: int, lane: int) -> int:
    """Return the place where a lane begins; the first n % lanes have one row more."""
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
    run_key: int,
    epoch_key: int,
    lanes: int,
    chunks: AnyArray,
    parts: AnyArray,
    pieces: AnyArray,
    slots: Int64,
    marks: AnyArray,
) -> int:
    """Fill in the parts, pieces and marks of a layout; return the number of pieces.

    ``slots`` is room for the pieces of a lane: each with its size, in the upper half of a number,
    so that they are permuted together.
    """
    count = len(chunks) - 1
    n = int(chunks[count])
    # Pieces overwrite the chunks that they come from, but none that was not taken yet: the room
    # before the chunks is for all cuts there can be.
    order = pieces[pieces.size - count :]
    shuffle(run_key, order)
    ahead = np.empty(TOGETHER, order.dtype)
    ahead_sizes = np.empty(TOGETHER, chunks.dtype)
    together = 0
    used = 0
    read = 0
    left = 0  # of a chunk that is being cut
    part = 0
    slot = 0
    place = 0
    for lane in range(min(lanes, n)):
        first = slot
        room = lane_start(n, lanes, lane + 1) - lane_start(n, lanes, lane)
        while room > 0:
            if left == 0:
                if used == together:
                    together = min(TOGETHER, count - read)
                    for i in range(together):
                        ahead[i] = order[read + i]
                        ahead_sizes[i] = chunks[ahead[i] + 1] - chunks[ahead[i]]
                    read += together
                    used = 0
                while used < together and ahead_sizes[used] <= room:
                    slots[slot - first] = int(ahead_sizes[used]) << 32 | int(ahead[used])
                    room -= int(ahead_sizes[used])
                    slot += 1
                    used += 1
                if room == 0 or used == together:
                    continue
                left = int(ahead_sizes[used])
                parts[part] = chunks[ahead[used]]
                used += 1
            size = min(left, room)
            slots[slot - first] = size << 32 | (count + part)
            parts[part + 1] = parts[part] + size
            part += 1 if size < left else 2
            slot += 1
            left -= size
            room -= size
        key = subkey(epoch_key, lane, 0)
        for i in range(slot - first):  # as in `shuffle`, but in place
            j = draw(key ^ i, i + 1)
            here = slots[i]
            slots[i] = slots[j]
            slots[j] = here
        for i in range(slot - first):
            if (first + i) % STRIDE == 0:
                marks[(first + i) // STRIDE] = place
            pieces[first + i] = slots[i] & 0xFFFFFFFF
            place += slots[i] >> 32
    return slot


@kernel
def _invert(layout: Layout, slots: AnyArray) -> None:
    """Fill in the slot of each piece."""
    for slot in range(layout.pieces.size):
        slots[layout.pieces[slot]] = slot
    chunks = layout.chunks
    parts = layout.parts
    count = len(chunks) - 1
    part = 0
    while part < parts.size and parts[part] < chunks[count]:
        chunk = seek(chunks, int(parts[part]), 0, count - 1)
        slots[chunk] = -1 - part
        while parts[part] < chunks[chunk + 1]:
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
def row_of(layout: Layout, slot: int) -> int:
    """Return the first row in a slot."""
    part = int(layout.pieces[slot]) - (len(layout.chunks) - 1)
    if part < 0:
        return int(layout.chunks[layout.pieces[slot]])
    return int(layout.parts[part])


@kernel
def size_of(layout: Layout, slot: int) -> int:
    """Return the number of rows in a slot."""
    piece = int(layout.pieces[slot])
    part = piece - (len(layout.chunks) - 1)
    if part < 0:
        return int(layout.chunks[piece + 1]) - int(layout.chunks[piece])
    return int(layout.parts[part + 1]) - int(layout.parts[part])


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
def place_of(layout: Layout, slot: int) -> int:
    """Return the place where a slot begins."""
    mark = slot // STRIDE
    place = int(layout.marks[mark])
    for before in range(mark * STRIDE, slot):
        place += size_of(layout, before)
    return place
