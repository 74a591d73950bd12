"""Patterns: which source is drawn at each place of a superblock, and as which of its draws.

Several lanes, whose positions take turns, share a pattern for as many blocks as there are lanes.
Block a of them runs through it from ``shifts[a]`` on, round and round, and ``shifts[a] % lanes`` is
a. So each lane meets each slot exactly once: it goes through the slots class by class, where slots
are of a class that leave the same remainder when divided by the number of lanes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npstream._jit import draw, kernel
from npstream._typing import AnyArray, Int64
from npstream.orders.interleave import interleave


class Pattern(NamedTuple):
    """The sources of a superblock: of as many blocks as there are lanes.

    Parameters
    ----------
    lanes, length : int
        Lanes divide the length of a block.
    shifts : ndarray of int64, shape (lanes,)
        The slot at which each block begins.
    sources : ndarray of int32, shape (length,)
        The source in each slot.
    ranks : ndarray of int32, shape (length,)
        The number of each slot among those of its source, class by class.
    firsts : ndarray of int64, shape (sources + 1,)
        Where each source's part of `cells` begins.
    cells : ndarray of int32, shape (length,)
        For each source, its slots, class by class: slot q is ``q % lanes * (length // lanes) +
        q // lanes`` there.
    """

    lanes: int
    length: int
    shifts: Int64
    sources: AnyArray
    ranks: AnyArray
    firsts: Int64
    cells: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return sum(array.nbytes for array in self[2:])


def make_pattern(counts: Int64, lanes: int, key: int) -> Pattern:
    """Draw a pattern.

    Parameters
    ----------
    counts : ndarray of int64
        Units of each source in a block; lanes divide their sum.
    lanes : int
    key : int
        A number in range(2**63): see `npstream.orders.permutation.make_key`.

    Examples
    --------
    >>> make_pattern(np.array([2, 4]), lanes=1, key=5).sources
    array([...], dtype=int32)
    """
    length = int(counts.sum())
    pattern = Pattern(
        lanes,
        length,
        np.zeros(lanes, np.int64),
        np.empty(length, np.int32),
        np.empty(length, np.int32),
        np.concatenate([[0], np.cumsum(counts)]),
        np.empty(length, np.int32),
    )
    interleave.sized(2 * length)(counts, key, pattern.sources)
    _number.sized(length)(key, pattern)
    return pattern


@kernel
def _number(key: int, pattern: Pattern) -> None:
    """Fill in all but the sources of a pattern."""
    lanes = pattern.lanes
    rounds = pattern.length // lanes
    if lanes > 1:
        for block in range(lanes):
            pattern.shifts[block] = block + lanes * draw(key ^ ~block, rounds)
    filled = np.zeros(pattern.firsts.size - 1, np.int64)
    cell = 0
    for lane in range(lanes):
        for slot in range(lane, pattern.length, lanes):
            source = pattern.sources[slot]
            pattern.ranks[slot] = filled[source]
            pattern.cells[pattern.firsts[source] + filled[source]] = cell
            filled[source] += 1
            cell += 1


@kernel
def draws(places: Int64, pattern: Pattern, sources: Int64, numbers: Int64) -> None:
    """Look up which source stands at places, and which of its draws that is.

    Places are those of superblocks that follow each other and have the pattern. Draws are counted
    from the beginning of the first superblock, in the lane of the place.
    """
    lanes = pattern.lanes
    length = pattern.length
    rounds = length // lanes
    for k in range(places.size):
        place = int(places[k])
        block = place // length
        within = place - block * length
        superblock = block // lanes
        block -= superblock * lanes
        shift = int(pattern.shifts[block])
        slot = (within + shift) % length
        source = int(pattern.sources[slot])
        sources[k] = source
        cells = pattern.cells[pattern.firsts[source] : pattern.firsts[source + 1]]
        numbers[k] = pattern.ranks[slot] + superblock * cells.size
        if lanes == 1:
            continue
        lane = within % lanes
        kind = slot % lanes
        begin = _below(cells, kind * rounds)
        end = _below(cells, (kind + 1) * rounds)
        entry = _below(cells, _entry(lane, shift, lanes, length))
        before = begin - _below(cells, lane * rounds)
        if kind < lane:
            before += cells.size
        number = int(pattern.ranks[slot]) - entry
        if number < 0:
            number += end - begin
        numbers[k] += before + number - int(pattern.ranks[slot])


@kernel
def places_of(
    sources: Int64, lanes_of: Int64, numbers: Int64, pattern: Pattern, places: Int64
) -> None:
    """Find the places of a superblock at which lanes make draws of sources: `draws` inverted."""
    lanes = pattern.lanes
    length = pattern.length
    rounds = length // lanes
    for k in range(sources.size):
        cells = pattern.cells[pattern.firsts[sources[k]] : pattern.firsts[sources[k] + 1]]
        lane = int(lanes_of[k])
        number = (int(numbers[k]) + _below(cells, lane * rounds)) % cells.size
        kind = int(cells[number]) // rounds
        block = (kind - lane) % lanes
        shift = int(pattern.shifts[block])
        begin = _below(cells, kind * rounds)
        end = _below(cells, (kind + 1) * rounds)
        entry = _below(cells, _entry(lane, shift, lanes, length))
        number += entry - begin
        if number >= end:
            number -= end - begin
        cell = int(cells[number])
        slot = cell % rounds * lanes + kind
        places[k] = block * length + (slot - shift) % length


@kernel
def tally(pattern: Pattern, stop: int, counts: Int64) -> None:
    """Count the draws of each source in each lane before a place of a superblock.

    Parameters
    ----------
    pattern : Pattern
    stop : int
        At most the length of a superblock.
    counts : ndarray of int64, shape (sources, lanes)
        To be filled in.
    """
    lanes = pattern.lanes
    length = pattern.length
    whole = stop // length
    rest = stop - whole * length
    shift = int(pattern.shifts[whole]) if whole < lanes else 0
    counts[:] = 0
    for slot in range(length):
        source = pattern.sources[slot]
        kind = slot % lanes
        # In whole blocks before, a slot was of lanes kind - whole + 1 up to kind: their bounds.
        if whole == lanes:
            counts[source, 0] += 1
        elif whole:
            first = (kind - whole + 1) % lanes
            counts[source, first] += 1
            if first > kind:
                counts[source, 0] += 1
            if kind + 1 < lanes:
                counts[source, kind + 1] -= 1
    for source in range(counts.shape[0]):
        for lane in range(1, lanes):
            counts[source, lane] += counts[source, lane - 1]
    for within in range(rest):
        slot = (within + shift) % length
        counts[pattern.sources[slot], within % lanes] += 1


@kernel
def _entry(lane: int, shift: int, lanes: int, length: int) -> int:
    """Return the cell of the first slot of a lane in a block."""
    slot = (lane + shift) % length
    return slot % lanes * (length // lanes) + slot // lanes


@kernel
def _below(cells: AnyArray, bound: int) -> int:
    """Return how many cells, which rise, are below a bound."""
    low = 0
    high = cells.size
    while low < high:
        middle = (low + high) >> 1
        if cells[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low
