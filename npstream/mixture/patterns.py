"""Patterns: which source is drawn at each place of a superblock, and as which of its draws.

Lanes, whose positions take turns, share a pattern for as many blocks as there are lanes, a
*superblock*: there each lane meets each slot of the pattern exactly once. Where the length L of a
block has no factor in common with the number of lanes C, that is so by itself. Place w of block a
is slot w, and of lane ``(a * L + w) % C``: so lane l meets those slots in it that leave
``(l - a * L) % C`` when divided by C, a *class*. Where C divides L, as the lanes of global batches
do, a slot would be of the same lane in every block: there each row of C places is turned by one
place more from block to block, and lane l meets class ``(l + a) % C``.

Classes are numbered in the order in which lanes come through them: each begins with one of its own,
and goes on round and round.

Tested in tests/mixture/test_interleave.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npstream._core.jit import kernel
from npstream._core.typing import AnyArray, Int64
from npstream.mixture.interleave import interleave


class Pattern(NamedTuple):
    """The sources of a superblock: of as many blocks as there are lanes.

    Parameters
    ----------
    lanes, length : int
        Lanes have no factor in common with the length of a block, or divide it.
    turn : int
        Places by which rows of lanes are turned from block to block: 1 where lanes divide the
        length, or 0.
    step, back : int
        Slot q is of class ``q * step % lanes``, and those of class k leave ``k * back % lanes``.
    sources : ndarray of int32, shape (length,)
        The source in each slot.
    ranks : ndarray of int32, shape (length,)
        The number of each slot among those of its source, class by class.
    firsts : ndarray of int64, shape (sources + 1,)
        Where each source's part of `cells` begins.
    cells : ndarray of int32, shape (length,)
        For each source, its slots, class by class: slot q of class k is ``k * rows + q // lanes``
        there, with ``rows = ceil(length / lanes)``.
    """

    lanes: int
    length: int
    turn: int
    step: int
    back: int
    sources: AnyArray
    ranks: AnyArray
    firsts: Int64
    cells: AnyArray

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the arrays take."""
        return self.sources.nbytes + self.ranks.nbytes + self.firsts.nbytes + self.cells.nbytes


def make_pattern(counts: Int64, lanes: int, key: int) -> Pattern:
    """Draw a pattern.

    Parameters
    ----------
    counts : ndarray of int64
        Units of each source in a block.
    lanes : int
        They have no factor in common with the length of a block, or divide it.
    key : int
        A number in range(2**63): see `npstream.orders.permutation.make_key`.

    Examples
    --------
    >>> make_pattern(np.array([2, 4]), lanes=1, key=5).sources
    array([...], dtype=int32)
    """
    length = int(counts.sum())
    turn, step, back = 1, 1, 1
    if length % lanes:
        turn, step, back = 0, pow(-length, -1, lanes), -length % lanes
    pattern = Pattern(
        lanes,
        length,
        turn,
        step,
        back,
        np.empty(length, np.int32),
        np.empty(length, np.int32),
        np.concatenate([[0], np.cumsum(counts)]),
        np.empty(length, np.int32),
    )
    interleave.for_size(2 * length)(counts, key, pattern.sources)
    _number.for_size(length)(pattern)
    return pattern


@kernel
def _number(pattern: Pattern) -> None:
    """Fill in the ranks and cells of a pattern."""
    rows = _rows(pattern)
    filled = np.zeros(pattern.firsts.size - 1, np.int64)
    for kind in range(pattern.lanes):
        for slot in range(kind * pattern.back % pattern.lanes, pattern.length, pattern.lanes):
            source = pattern.sources[slot]
            pattern.ranks[slot] = filled[source]
            cell = kind * rows + slot // pattern.lanes
            pattern.cells[pattern.firsts[source] + filled[source]] = cell
            filled[source] += 1


@kernel
def draws(places: Int64, pattern: Pattern, sources: Int64, numbers: Int64) -> None:
    """Look up which source stands at places, and which of its draws that is.

    Places are those of superblocks that follow each other and have the pattern. Draws are counted
    from the beginning of the first superblock, in the lane of the place.
    """
    lanes = pattern.lanes
    length = pattern.length
    rows = _rows(pattern)
    for k in range(places.size):
        place = int(places[k])
        block = place // length
        within = place - block * length
        superblock = block // lanes
        block -= superblock * lanes
        slot = _turned(within, pattern.turn * block, lanes)
        source = int(pattern.sources[slot])
        cells = pattern.cells[pattern.firsts[source] : pattern.firsts[source + 1]]
        number = int(pattern.ranks[slot])
        if lanes > 1:
            lane = (block * length + within) % lanes
            number -= _below(cells, _first(lane, pattern) * rows)
            if number < 0:
                number += cells.size
        sources[k] = source
        numbers[k] = number + superblock * cells.size


@kernel
def places_of(
    sources: Int64, lanes_of: Int64, numbers: Int64, pattern: Pattern, places: Int64
) -> None:
    """Find the places of a superblock at which lanes make draws of sources: `draws` inverted."""
    lanes = pattern.lanes
    rows = _rows(pattern)
    for k in range(sources.size):
        cells = pattern.cells[pattern.firsts[sources[k]] : pattern.firsts[sources[k] + 1]]
        first = _first(int(lanes_of[k]), pattern)
        cell = int(cells[(int(numbers[k]) + _below(cells, first * rows)) % cells.size])
        kind = cell // rows
        slot = cell % rows * lanes + kind * pattern.back % lanes
        block = (kind - first) % lanes
        places[k] = block * pattern.length + _turned(slot, -pattern.turn * block, lanes)


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
    # In whole blocks, class k was met by lanes whose first is k - whole + 1 up to k: their bounds.
    bounds = np.zeros((counts.shape[0], lanes + 1), np.int64)
    for slot in range(length if whole else 0):
        source = pattern.sources[slot]
        kind = slot * pattern.step % lanes
        first = (kind - whole + 1) % lanes
        bounds[source, first] += 1
        bounds[source, kind + 1] -= 1
        if first > kind:
            bounds[source, 0] += 1
    for source in range(counts.shape[0]):
        met = 0
        for first in range(lanes):
            met += int(bounds[source, first])
            counts[source, first * pattern.back % lanes] = met
    for within in range(stop - whole * length):
        slot = _turned(within, pattern.turn * whole, lanes)
        counts[pattern.sources[slot], (whole * length + within) % lanes] += 1


@kernel
def _rows(pattern: Pattern) -> int:
    """Return the rows of lanes in a block, of which the last may not be whole."""
    return (pattern.length + pattern.lanes - 1) // pattern.lanes


@kernel
def _first(lane: int, pattern: Pattern) -> int:
    """Return the class of which a lane meets the slots in the first block."""
    return lane * pattern.step % pattern.lanes


@kernel
def _turned(within: int, by: int, lanes: int) -> int:
    """Move a place within its row of lanes."""
    place = within % lanes
    return within - place + (place + by) % lanes


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
