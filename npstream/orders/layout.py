"""Provide the layout of an epoch: the assignment of chunks to lanes.

A *lane* is a random sequence of chunks. Permuted chunks fill one lane after the other. A chunk that
crosses the end of a lane is cut there. The resulting *pieces* of each lane are permuted once more.
This happens when the lane is first used, because a batch may use only a few of many lanes. In a
stratified layout, both permutations are those of `npstream.orders.stratified`. The pieces of all
lanes are then permuted at once; before this, those of a lane are in the order of their rows. The
layout is the sequence of the pieces of lane 0, then of lane 1, and so on. A piece's index in it is
its *slot*. A row's index in it is its *place*. The functions find the row of a place, and the place
of a row.

Arrays of a layout; row numbers are int32 if there are fewer than 2**31 rows, else int64:

===========  ===================================================================================
chunks       first row of each chunk, then the number of rows. Chunk p is piece p, unless it is
             cut
parts        for each cut chunk, the first row of each of its parts, then the row after its last
             part; unused entries are the number of rows. If there are c chunks, piece c + i has
             the rows from ``parts[i]`` to ``parts[i + 1] - 1``
pieces       the piece in each slot of the layout
firsts       the first slot of each lane, then the number of slots
is_permuted  for each lane, 1 if its pieces are permuted, else 0
marks        for permuted lanes, the place where every eighth slot begins; see `_first_mark`
===========  ===================================================================================

Tested in tests/orders/test_order.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npstream._core.jit import kernel
from npstream._core.memory import huge_empty
from npstream._core.typing import AnyArray
from npstream.orders.draws import draw
from npstream.orders.permutation import shuffle
from npstream.orders.stratified import stratify

MARK_STRIDE = 8
"""Slots per mark: the maximum number of slots that a look-up reads."""

SIZE_BATCH = 1 << 10
"""Chunks whose sizes are read in one tight loop, so that its random memory accesses overlap."""

MAX_KEY = (1 << 63) - 1
"""Keys that are hashed from other keys are below this."""


class Layout(NamedTuple):
    """The rows of a view in their lanes; see the module. Only one thread may use it at a time."""

    lanes: int
    key: int
    chunks: AnyArray
    parts: AnyArray
    pieces: AnyArray
    firsts: AnyArray
    is_permuted: AnyArray
    marks: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return sum(array.nbytes for array in self[2:])


def make_layout(
    chunks: AnyArray, lanes: int, chunks_key: int, epoch_key: int, is_stratified: bool = False
) -> Layout:
    """Assign chunks to lanes. Their pieces are not permuted yet, unless the layout is stratified.

    Parameters
    ----------
    chunks : ndarray of int32 or int64
        First row of each chunk, then the number of rows; no chunk is empty.
    lanes : int
    chunks_key : int
        The key for the assignment of chunks to lanes, the same in all epochs.
    epoch_key : int
        The key for the permutation of pieces.
    is_stratified : bool, default: False

    Examples
    --------
    >>> layout = make_layout(np.array([0, 4, 8, 9]), lanes=2, chunks_key=1, epoch_key=2)
    >>> layout.pieces, layout.firsts
    (array([...], dtype=int32), array([0, 2, 3], dtype=int32))
    """
    n = int(chunks[-1])
    chunks = np.ascontiguousarray(chunks, np.int32 if n < 1 << 31 else np.int64)
    cuts = min(lanes, n)
    # Each cut adds one piece, and at most three bounds.
    parts = np.full(3 * cuts, n, chunks.dtype)
    pieces = huge_empty(len(chunks) - 1 + cuts, np.int32)
    firsts = np.empty(cuts + 1, np.int32)
    if is_stratified:
        order = pieces[cuts:]  # where `_assign_chunks` reads the permuted chunks
        stratify.for_size(order.size)(chunks_key, order)
    assign = _assign_chunks.for_size(pieces.size)
    count = assign(chunks_key, lanes, is_stratified, chunks, parts, pieces, firsts)
    pieces = pieces[:count]
    marks = np.empty(count // MARK_STRIDE + cuts, chunks.dtype)
    is_permuted = np.zeros(cuts, np.uint8)
    layout = Layout(lanes, epoch_key, chunks, parts, pieces, firsts, is_permuted, marks)
    if is_stratified:
        lane = np.repeat(np.arange(cuts), np.diff(firsts))
        pieces[:] = pieces[np.lexsort((np.concatenate([chunks[:-1], parts])[pieces], lane))]
        _stratify_lanes.for_size(count)(layout)
    return layout


def piece_slots(layout: Layout) -> AnyArray:
    """Return the slot of each piece; for a cut chunk, -1 - i if its parts begin at ``parts[i]``."""
    permute_lanes.for_size(layout.pieces.size)(layout)
    slots = huge_empty(len(layout.chunks) - 1 + layout.parts.size, np.int32)
    _invert.for_size(slots.size)(layout, slots)
    return slots


@kernel
def lane_start(n: int, lanes: int, lane: int) -> int:
    """Return the place where a lane begins; the first ``n % lanes`` lanes have one more row."""
    return lane * (n // lanes) + min(lane, n % lanes)


@kernel
def subkey(key: int, lane: int, level: int) -> int:
    """Return the key of one permutation of a lane, hashed from the epoch's key.

    Level 0 permutes the lane's pieces. Level b + 1 permutes the elements of its block b.
    """
    return draw(draw(key ^ lane, MAX_KEY) ^ level, MAX_KEY)


@kernel
def _assign_chunks(
    chunks_key: int,
    lanes: int,
    is_stratified: bool,
    chunks: AnyArray,
    parts: AnyArray,
    pieces: AnyArray,
    firsts: AnyArray,
) -> int:
    """Write the pieces and parts of a layout, and each lane's first slot; return the slot count."""
    count = len(chunks) - 1
    n = int(chunks[count])
    # The permuted chunks are at the end of `pieces`, behind one entry for each possible cut. So
    # writing a piece never overwrites a chunk that is still to be read.
    order = pieces[pieces.size - count :]
    if not is_stratified:
        shuffle(chunks_key, order)
    batch = np.empty(SIZE_BATCH, order.dtype)
    batch_sizes = np.empty(SIZE_BATCH, chunks.dtype)
    batch_length = 0
    next_in_batch = 0
    next_in_order = 0
    uncut_rows = 0  # rows of a chunk after its last cut; 0 if no chunk is being cut
    part = 0
    slot = 0
    for lane in range(min(lanes, n)):
        firsts[lane] = slot
        free_rows = lane_start(n, lanes, lane + 1) - lane_start(n, lanes, lane)
        while free_rows > 0:
            if uncut_rows == 0:
                if next_in_batch == batch_length:
                    batch_length = min(SIZE_BATCH, count - next_in_order)
                    for i in range(batch_length):
                        batch[i] = order[next_in_order + i]
                        batch_sizes[i] = chunks[batch[i] + 1] - chunks[batch[i]]
                    next_in_order += batch_length
                    next_in_batch = 0
                while next_in_batch < batch_length and batch_sizes[next_in_batch] <= free_rows:
                    pieces[slot] = batch[next_in_batch]
                    free_rows -= int(batch_sizes[next_in_batch])
                    slot += 1
                    next_in_batch += 1
                if free_rows == 0 or next_in_batch == batch_length:
                    continue
                uncut_rows = int(batch_sizes[next_in_batch])
                parts[part] = chunks[batch[next_in_batch]]
                next_in_batch += 1
            size = min(uncut_rows, free_rows)
            pieces[slot] = count + part
            parts[part + 1] = parts[part] + size
            part += 1 if size < uncut_rows else 2  # the last part has a bound after it
            slot += 1
            uncut_rows -= size
            free_rows -= size
    firsts[min(lanes, n)] = slot
    return slot


@kernel
def permute_lanes(layout: Layout) -> None:
    """Permute the pieces of all lanes."""
    for lane in range(layout.is_permuted.size):
        if not layout.is_permuted[lane]:
            permute_lane(layout, lane)


@kernel
def permute_lane(layout: Layout, lane: int) -> None:
    """Permute the pieces of a lane in place, like `shuffle`, and write its marks."""
    first = int(layout.firsts[lane])
    pieces = layout.pieces[first : layout.firsts[lane + 1]]
    key = subkey(layout.key, lane, 0)
    for i in range(pieces.size):
        j = draw(key ^ i, i + 1)
        piece_i = pieces[i]
        pieces[i] = pieces[j]
        pieces[j] = piece_i
    _write_marks(layout, lane)


@kernel
def _stratify_lanes(layout: Layout) -> None:
    """Permute the pieces of all lanes by `stratify`, in place, and write the marks."""
    for lane in range(layout.is_permuted.size):
        pieces = layout.pieces[layout.firsts[lane] : layout.firsts[lane + 1]]
        table = np.empty(pieces.size, np.int32)
        stratify(subkey(layout.key, lane, 0), table)
        for i in range(table.size):
            table[i] = pieces[table[i]]
        for i in range(table.size):
            pieces[i] = table[i]
        _write_marks(layout, lane)


@kernel
def _write_marks(layout: Layout, lane: int) -> None:
    """Write the marks of a lane whose pieces are permuted, and set its `is_permuted`."""
    first = int(layout.firsts[lane])
    pieces = layout.pieces[first : layout.firsts[lane + 1]]
    chunks = layout.chunks
    count = len(chunks) - 1
    marks = layout.marks[_first_mark(layout, lane) :]
    place = lane_start(int(chunks[count]), layout.lanes, lane)
    for i in range(pieces.size):
        if i % MARK_STRIDE == 0:
            marks[i // MARK_STRIDE] = place
        piece = pieces[i]
        if piece < count:
            place += int(chunks[piece + 1]) - int(chunks[piece])
        else:
            # Few chunks are cut. Calling slot_size for every piece would take five times longer.
            place += slot_size(layout, first + i)
    layout.is_permuted[lane] = 1


@kernel
def _first_mark(layout: Layout, lane: int) -> int:
    """Return the index of a lane's first mark; the previous lane's marks have lower indices."""
    return int(layout.firsts[lane]) // MARK_STRIDE + lane


@kernel
def _invert(layout: Layout, slots: AnyArray) -> None:
    """Write the slot of each piece; see `piece_slots`."""
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
    """Return the last index from `low` to `high` with ``values[index] <= value``."""
    while low < high:
        middle = (low + high + 1) >> 1
        if values[middle] <= value:
            low = middle
        else:
            high = middle - 1
    return low


@kernel
def slot_row(layout: Layout, slot: int) -> int:
    """Return the first row of the piece in a slot."""
    part = int(layout.pieces[slot]) - (len(layout.chunks) - 1)
    if part < 0:
        return int(layout.chunks[layout.pieces[slot]])
    return int(layout.parts[part])


@kernel
def slot_size(layout: Layout, slot: int) -> int:
    """Return the number of rows of the piece in a slot."""
    piece = int(layout.pieces[slot])
    part = piece - (len(layout.chunks) - 1)
    if part < 0:
        return int(layout.chunks[piece + 1]) - int(layout.chunks[piece])
    return int(layout.parts[part + 1]) - int(layout.parts[part])


@kernel
def find_slot(layout: Layout, lane: int, place: int) -> int:
    """Return the slot that a place is in; the pieces of `lane` must be permuted."""
    first = int(layout.firsts[lane])
    begin = _first_mark(layout, lane)
    last = begin + (int(layout.firsts[lane + 1]) - first - 1) // MARK_STRIDE
    mark = seek(layout.marks, place, begin, last)
    slot = first + (mark - begin) * MARK_STRIDE
    offset = place - int(layout.marks[mark])
    while offset >= slot_size(layout, slot):
        offset -= slot_size(layout, slot)
        slot += 1
    return slot


@kernel
def slot_place(layout: Layout, lane: int, slot: int) -> int:
    """Return the place where a slot begins; the pieces of `lane` must be permuted."""
    first = int(layout.firsts[lane])
    number = (slot - first) // MARK_STRIDE
    place = int(layout.marks[_first_mark(layout, lane) + number])
    for previous_slot in range(first + number * MARK_STRIDE, slot):
        place += slot_size(layout, previous_slot)
    return place
