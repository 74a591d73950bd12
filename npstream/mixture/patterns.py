"""Provide the patterns of superblocks: which source is drawn at each place, and its draw number.

A *pattern* has L *slots*, with a source in each. A *block* has L *places*, and each place has the
source of one slot. C lanes take places in turn. A *superblock* is C consecutive blocks with the
same pattern, in which each lane meets each slot of the pattern exactly once. There are two cases:

- L and C are coprime. Place ``w`` of block ``a`` has slot ``w``, and belongs to lane
  ``(a * L + w) % C``. So in block ``a``, lane ``l`` meets the slots with
  ``slot % C == (l - a * L) % C``. These slots are a *class*.
- C divides L. This is so if a block is a global batch, with stratified batches. Then a slot would
  belong to the same lane in every block. So in block ``a``, each row of C places is rotated by
  ``a`` places, and lane ``l`` meets class ``(l + a) % C``.

Classes are numbered in the order in which each lane meets them, cyclically. Each lane begins with
another class.

Tested in tests/mixture/test_interleave.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npstream._core.jit import kernel
from npstream._core.typing import AnyArray, Int64
from npstream.mixture.interleave import interleave_sources


class Pattern(NamedTuple):
    """The pattern of a superblock.

    Parameters
    ----------
    lanes, length : int
        The number of lanes and the length of a block. They are coprime, or `lanes` divides
        `length`.
    rotation : int
        In block ``a``, each row of `lanes` places is rotated by ``a * rotation`` places. `rotation`
        is 1 if `lanes` divides `length`, else 0.
    step, inverse_step : int
        Slot q is in class ``q * step % lanes``. The slots of class k have
        ``slot % lanes == k * inverse_step % lanes``.
    sources : ndarray of int32, shape (length,)
        The source in each slot.
    slot_numbers : ndarray of int32, shape (length,)
        The number of each slot among the slots of its source, sorted by class.
    cell_starts : ndarray of int64, shape (sources + 1,)
        The first index of each source in `cells`.
    cells : ndarray of int32, shape (length,)
        For each source, its slots, sorted by class. Slot q of class k is encoded as
        ``k * rows + q // lanes``, with ``rows = ceil(length / lanes)``.
    """

    lanes: int
    length: int
    rotation: int
    step: int
    inverse_step: int
    sources: AnyArray
    slot_numbers: AnyArray
    cell_starts: Int64
    cells: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        arrays = (self.sources, self.slot_numbers, self.cell_starts, self.cells)
        return sum(array.nbytes for array in arrays)


def make_pattern(counts: Int64, lanes: int, key: int) -> Pattern:
    """Draw a pattern.

    Parameters
    ----------
    counts : ndarray of int64
        Units of each source in a block. A unit is a sample, or a batch if each batch is of one
        source.
    lanes : int
        A number that is coprime to the length of a block, or divides it.
    key : int
        A number in range(2**63); see `npstream.orders.permutation.make_key`.

    Examples
    --------
    >>> make_pattern(np.array([2, 4]), lanes=1, key=5).sources
    array([...], dtype=int32)
    """
    length = int(counts.sum())
    rotation, step, inverse_step = 1, 1, 1
    if length % lanes:
        rotation, step, inverse_step = 0, pow(-length, -1, lanes), -length % lanes
    pattern = Pattern(
        lanes,
        length,
        rotation,
        step,
        inverse_step,
        np.empty(length, np.int32),
        np.empty(length, np.int32),
        np.concatenate([[0], np.cumsum(counts)]),
        np.empty(length, np.int32),
    )
    interleave_sources.for_size(2 * length)(counts, key, pattern.sources)
    _write_cells.for_size(length)(pattern)
    return pattern


@kernel
def _write_cells(pattern: Pattern) -> None:
    """Write `slot_numbers` and `cells` of a pattern."""
    rows = _rows(pattern)
    source_slots = np.zeros(pattern.cell_starts.size - 1, np.int64)
    for class_number in range(pattern.lanes):
        for slot in range(
            class_number * pattern.inverse_step % pattern.lanes, pattern.length, pattern.lanes
        ):
            source = pattern.sources[slot]
            pattern.slot_numbers[slot] = source_slots[source]
            cell = class_number * rows + slot // pattern.lanes
            pattern.cells[pattern.cell_starts[source] + source_slots[source]] = cell
            source_slots[source] += 1


@kernel
def look_up_draws(places: Int64, pattern: Pattern, sources: Int64, numbers: Int64) -> None:
    """Write the source at each place, and the number of the draw at this place.

    The number counts the draws of the same source in the same lane. Places count through
    consecutive superblocks with the same pattern. Draws count from the beginning of the first
    superblock.
    """
    lanes = pattern.lanes
    length = pattern.length
    rows = _rows(pattern)
    for k in range(places.size):
        place = int(places[k])
        block = place // length
        offset = place - block * length
        superblock = block // lanes
        block -= superblock * lanes
        slot = _rotate(offset, pattern.rotation * block, lanes)
        source = int(pattern.sources[slot])
        cells = pattern.cells[pattern.cell_starts[source] : pattern.cell_starts[source + 1]]
        number = int(pattern.slot_numbers[slot])
        if lanes > 1:
            lane = (block * length + offset) % lanes
            number -= _count_below(cells, _first_class(lane, pattern) * rows)
            if number < 0:
                number += cells.size
        sources[k] = source
        numbers[k] = number + superblock * cells.size


@kernel
def find_places(
    sources: Int64, draw_lanes: Int64, numbers: Int64, pattern: Pattern, places: Int64
) -> None:
    """Write the places of draws in a superblock: the inverse of `look_up_draws`."""
    lanes = pattern.lanes
    rows = _rows(pattern)
    for k in range(sources.size):
        cells = pattern.cells[pattern.cell_starts[sources[k]] : pattern.cell_starts[sources[k] + 1]]
        first = _first_class(int(draw_lanes[k]), pattern)
        cell = int(cells[(int(numbers[k]) + _count_below(cells, first * rows)) % cells.size])
        class_number = cell // rows
        slot = cell % rows * lanes + class_number * pattern.inverse_step % lanes
        block = (class_number - first) % lanes
        places[k] = block * pattern.length + _rotate(slot, -pattern.rotation * block, lanes)


@kernel
def count_draws(pattern: Pattern, stop: int, counts: Int64) -> None:
    """Count the draws of each source in each lane before a place of a superblock.

    Parameters
    ----------
    pattern : Pattern
    stop : int
        The place, at most the length of a superblock.
    counts : ndarray of int64, shape (sources, lanes)
        Output array.
    """
    lanes = pattern.lanes
    length = pattern.length
    blocks = stop // length
    # In the whole blocks, class k is met by the lanes whose first class is k - blocks + 1 to k,
    # cyclically. `bounds` has +1 where such a range begins, and -1 after its end.
    bounds = np.zeros((counts.shape[0], lanes + 1), np.int64)
    for slot in range(length if blocks else 0):
        source = pattern.sources[slot]
        class_number = slot * pattern.step % lanes
        first = (class_number - blocks + 1) % lanes
        bounds[source, first] += 1
        bounds[source, class_number + 1] -= 1
        if first > class_number:
            bounds[source, 0] += 1
    for source in range(counts.shape[0]):
        draws = 0
        for first in range(lanes):
            draws += int(bounds[source, first])
            counts[source, first * pattern.inverse_step % lanes] = draws
    for offset in range(stop - blocks * length):
        slot = _rotate(offset, pattern.rotation * blocks, lanes)
        counts[pattern.sources[slot], (blocks * length + offset) % lanes] += 1


@kernel
def _rows(pattern: Pattern) -> int:
    """Return the number of rows of `lanes` places in a block; the last may be incomplete."""
    return (pattern.length + pattern.lanes - 1) // pattern.lanes


@kernel
def _first_class(lane: int, pattern: Pattern) -> int:
    """Return the class whose slots a lane meets in the first block."""
    return lane * pattern.step % pattern.lanes


@kernel
def _rotate(offset: int, shift: int, lanes: int) -> int:
    """Rotate a place within its row of `lanes` places."""
    place = offset % lanes
    return offset - place + (place + shift) % lanes


@kernel
def _count_below(cells: AnyArray, bound: int) -> int:
    """Return how many of the sorted cells are below a bound."""
    low = 0
    high = cells.size
    while low < high:
        middle = (low + high) >> 1
        if cells[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low
