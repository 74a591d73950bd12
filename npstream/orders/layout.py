"""Chunks dealt to lanes: where each row of a view lies in an epoch, and back.

The chunks, permuted, are laid end to end over the lanes, and one that crosses a boundary is cut
there. Then the pieces of each lane are permuted: when somebody first needs them, as a batch may
touch few of many lanes. The layout is what comes of it: the pieces of lane 0, then those of lane 1,
and so on. A row's *place* is its number in the layout.

Arrays of a layout; numbers of rows are int32 while there are fewer than 2**31 rows:

======  ========================================================================================
chunks  first row of each chunk, then the number of rows. Chunk p is piece p, unless it is cut
parts   the same for the parts of cut chunks, one chunk after the other; then the number of rows,
        as filling. If there are c chunks, piece c + i begins at ``parts[i]``
pieces  the piece in each slot of the layout
firsts  the first slot of each lane, then the number of slots
laid    for each lane, whether its pieces were permuted
marks   the place where every eighth slot of a lane begins, if it was; see `_marks_of`
======  ========================================================================================

Tested in tests/orders/test_order.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npstream._core.jit import draw, kernel
from npstream._core.memory import huge_empty
from npstream._core.typing import AnyArray
from npstream.orders.permutation import shuffle

STRIDE = 8
"""Slots for each mark: what a look-up goes through at most."""

TOGETHER = 1 << 10
"""Pieces whose sizes are looked up in a loop apart: they lie all over the memory."""

MAX_KEY = (1 << 63) - 1
"""What the keys are below that are hashed from other keys."""


class Layout(NamedTuple):
    """The rows of a view in their lanes; see above. One thread at a time may use it."""

    lanes: int
    key: int
    chunks: AnyArray
    parts: AnyArray
    pieces: AnyArray
    firsts: AnyArray
    laid: AnyArray
    marks: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return sum(array.nbytes for array in self[2:])


def lay_out(chunks: AnyArray, lanes: int, run_key: int, epoch_key: int) -> Layout:
    """Deal chunks to lanes, the pieces of each of which are to be permuted.

    Parameters
    ----------
    chunks : ndarray of int32 or int64
        First row of each chunk, then the number of rows; no chunk is empty.
    lanes : int
    run_key, epoch_key : int
        The keys by which chunks are dealt, and by which pieces are permuted.

    Examples
    --------
    >>> layout = lay_out(np.array([0, 4, 8, 9]), lanes=2, run_key=1, epoch_key=2)
    >>> layout.pieces, layout.firsts
    (array([...], dtype=int32), array([0, 2, 3], dtype=int32))
    """
    n = int(chunks[-1])
    chunks = np.ascontiguousarray(chunks, np.int32 if n < 1 << 31 else np.int64)
    cuts = min(lanes, n)
    # A cut adds one piece, and at most three bounds.
    parts = np.full(3 * cuts, n, chunks.dtype)
    pieces = huge_empty(len(chunks) - 1 + cuts, np.int32)
    firsts = np.empty(cuts + 1, np.int32)
    deal = _deal.for_size(pieces.size)
    count = deal(run_key, lanes, chunks, parts, pieces, firsts)
    marks = np.empty(count // STRIDE + cuts, chunks.dtype)
    laid = np.zeros(cuts, np.uint8)
    return Layout(lanes, epoch_key, chunks, parts, pieces[:count], firsts, laid, marks)


def slots_of(layout: Layout) -> AnyArray:
    """Return the slot of each piece; for a chunk that was cut, -1 - i if its parts begin at i."""
    lay_lanes.for_size(layout.pieces.size)(layout)
    slots = huge_empty(len(layout.chunks) - 1 + layout.parts.size, np.int32)
    _invert.for_size(slots.size)(layout, slots)
    return slots


@kernel
def lane_start(n: int, lanes: int, lane: int) -> int:
    """Return the place where a lane begins; the first n % lanes have one row more."""
    return lane * (n // lanes) + min(lane, n % lanes)


@kernel
def subkey(key: int, lane: int, level: int) -> int:
    """Hash a key to that of one permutation of a lane."""
    return draw(draw(key ^ lane, MAX_KEY) ^ level, MAX_KEY)


@kernel
def _deal(
    run_key: int,
    lanes: int,
    chunks: AnyArray,
    parts: AnyArray,
    pieces: AnyArray,
    firsts: AnyArray,
) -> int:
    """Fill in the parts and pieces of a layout, not yet permuted; return the number of pieces."""
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
    for lane in range(min(lanes, n)):
        firsts[lane] = slot
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
                    pieces[slot] = ahead[used]
                    room -= int(ahead_sizes[used])
                    slot += 1
                    used += 1
                if room == 0 or used == together:
                    continue
                left = int(ahead_sizes[used])
                parts[part] = chunks[ahead[used]]
                used += 1
            size = min(left, room)
            pieces[slot] = count + part
            parts[part + 1] = parts[part] + size
            part += 1 if size < left else 2
            slot += 1
            left -= size
            room -= size
    firsts[min(lanes, n)] = slot
    return slot


@kernel
def lay_lanes(layout: Layout) -> None:
    """Permute the pieces of all lanes."""
    for lane in range(layout.laid.size):
        if not layout.laid[lane]:
            lay_lane(layout, lane)


@kernel
def lay_lane(layout: Layout, lane: int) -> None:
    """Permute the pieces of a lane, as `shuffle` does, but in place."""
    first = int(layout.firsts[lane])
    pieces = layout.pieces[first : layout.firsts[lane + 1]]
    key = subkey(layout.key, lane, 0)
    for i in range(pieces.size):
        j = draw(key ^ i, i + 1)
        here = pieces[i]
        pieces[i] = pieces[j]
        pieces[j] = here
    chunks = layout.chunks
    count = len(chunks) - 1
    marks = layout.marks[_marks_of(layout, lane) :]
    place = lane_start(int(chunks[count]), layout.lanes, lane)
    for i in range(pieces.size):
        if i % STRIDE == 0:
            marks[i // STRIDE] = place
        piece = pieces[i]
        if piece < count:
            place += int(chunks[piece + 1]) - int(chunks[piece])
        else:  # few are cut; and a call for each piece would take five times as long
            place += size_of(layout, first + i)
    layout.laid[lane] = 1


@kernel
def _marks_of(layout: Layout, lane: int) -> int:
    """Return the number of a lane's first mark; all marks of the lane before come before it."""
    return int(layout.firsts[lane]) // STRIDE + lane


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
def slot_at(layout: Layout, lane: int, place: int) -> int:
    """Return the slot of a lane, which was laid, that a place lies in."""
    first = int(layout.firsts[lane])
    begin = _marks_of(layout, lane)
    last = begin + (int(layout.firsts[lane + 1]) - first - 1) // STRIDE
    mark = seek(layout.marks, place, begin, last)
    slot = first + (mark - begin) * STRIDE
    left = place - int(layout.marks[mark])
    while left >= size_of(layout, slot):
        left -= size_of(layout, slot)
        slot += 1
    return slot


@kernel
def place_of(layout: Layout, lane: int, slot: int) -> int:
    """Return the place where a slot of a lane, which was laid, begins."""
    first = int(layout.firsts[lane])
    number = (slot - first) // STRIDE
    place = int(layout.marks[_marks_of(layout, lane) + number])
    for before in range(first + number * STRIDE, slot):
        place += size_of(layout, before)
    return place
