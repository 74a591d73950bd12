"""Streaming's shuffles, bit for bit.

A shuffle takes *units*, runs of consecutive samples: mostly the shards. They are put in an order
that holds for the whole run, laid end to end, and cut into lanes ("canonical nodes"), a unit that
crosses a boundary into *pieces*. Every epoch shuffles the pieces of each lane, and then samples:

- py1s those of each piece; py2s too, in units that were shuffled before;
- py1br those of each block, a stretch of a lane, of random length;
- py1e those of each piece, and then moves each sample some way along its lane;
- naive all of them, whatever the lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npstream._core.jit import kernel
from npstream._core.typing import Int64
from npstream.orders.streaming.partition import lane_bounds
from npstream.orders.streaming.pcg64 import MAX_BOUND, State, draw_below, draw_shuffle, seeded
from npstream.orders.streaming.py1e import Expanded
from npstream.orders.streaming.runs import (
    Marks,
    OrderTable,
    PieceOrder,
    Pieces,
    PiecesOf,
    ShuffledRuns,
    shuffle_runs,
)

ALGORITHMS = ("naive", "py1br", "py1e", "py1s", "py2s")

UNIT_SPACING = 1 << 10
"""Samples between marks in the units of py2s, which are not read in their order."""


@dataclass(frozen=True, slots=True)
class EpochShuffle:
    """What one of Streaming's shuffles depends on, but for the units.

    Parameters
    ----------
    algorithm : str
    lanes : int
    seed, epoch : int
    block_size : int

    Examples
    --------
    >>> shuffle = EpochShuffle("py1e", lanes=2, seed=0, epoch=0, block_size=4)
    >>> order = shuffle.order(Pieces.counted(np.array([3, 4, 3])))
    >>> order.rows(0, 5), order.rows(5, 10)  # its lanes
    (array([9, 7, 8, 1, 0], dtype=uint32), array([2, 3, 5, 6, 4], dtype=uint32))
    """

    algorithm: str
    lanes: int
    seed: int
    epoch: int
    block_size: int

    def check(self, size: int, longest: int) -> None:
        """Raise ValueError unless so many samples can be shuffled, in units of at most so many."""
        if self.algorithm == "py1e" and size < self.lanes:
            raise ValueError(
                f"py1e needs a sample for each of its num_canonical_nodes={self.lanes}, and there "
                f"are {size}: use fewer, or another order"
            )
        least, most = self._widths
        widths = {"py1e": most - least, "py1br": min(least, most - least)}.get(self.algorithm, 1)
        if widths < 1:
            raise ValueError(
                f"shuffle_block_size={self.block_size}: {self.algorithm} needs larger blocks"
            )
        longest = {"naive": size, "py1br": most}.get(self.algorithm, longest)
        if max(longest, widths) > MAX_BOUND:
            raise ValueError(
                f"{self.algorithm} would draw among {max(longest, widths)} at once: at most "
                f"{MAX_BOUND}"
            )

    def order(self, units: Pieces) -> PieceOrder:
        """Return the order of what is in units."""
        state = seeded(self.seed + self.epoch)
        size = int(units.offsets[-1])
        if self.algorithm == "naive":
            return _naive(state, units)
        bounds = lane_bounds(size, self.lanes)
        if self.algorithm == "py2s":
            return _py2s(state, units, bounds, self.seed)
        # The order of units depends on the seed alone: lanes are the same in every epoch.
        fixed = np.random.default_rng(self.seed).permutation(len(units.begins))
        laid = Pieces.laid(units.sizes[fixed], units.begins[fixed], units.picks)
        pieces, firsts = _cut(laid, bounds)
        order = np.arange(len(pieces.begins))
        shuffle_runs.for_size(order.size)(state, order, firsts[:-1], firsts[1:])
        pieces = Pieces.laid(pieces.sizes[order], pieces.begins[order], pieces.picks)
        if self.algorithm == "py1e":
            return Expanded.drawn(state, pieces, bounds, firsts, self._widths)
        if self.algorithm == "py1br":
            return _py1br(state, pieces, bounds, self._widths)
        starts, stops = pieces.offsets[:-1], pieces.offsets[1:]
        return ShuffledRuns(pieces, starts, stops, Marks.drawn(state, starts, stops))

    @property
    def _widths(self) -> tuple[int, int]:
        """The bounds of what is drawn for the length of a block."""
        return int(0.75 * self.block_size), int(1.25 * self.block_size)


def _cut(units: Pieces, bounds: Int64) -> tuple[Pieces, Int64]:
    """Cut units at the bounds of lanes; return the pieces, and the number of each lane's first."""
    ends = units.offsets[1:]
    cuts = np.setdiff1d(bounds[1:-1], units.offsets)
    stops = np.sort(np.concatenate([ends, cuts]), kind="stable")
    # How many units ended before each piece: the number of its unit, also where units are empty.
    unit = np.arange(len(stops)) - cuts.searchsorted(stops)
    starts = np.concatenate([[0], stops[:-1]])
    begins = units.begins[unit] + starts - units.offsets[unit]
    # A piece, even an empty one, belongs to the first lane that reaches its end.
    firsts = bounds[1:].searchsorted(stops).searchsorted(np.arange(len(bounds)))
    return Pieces(np.concatenate([[0], stops]), begins, units.picks), firsts


def _naive(state: State, units: Pieces) -> PieceOrder:
    size = int(units.offsets[-1])
    numbers = units.rows(0, size)
    draw_shuffle.for_size(size)(state, numbers, 0, size)
    return OrderTable(numbers)


def _py2s(state: State, units: Pieces, bounds: Int64, seed: int) -> PieceOrder:
    fixed_state = seeded(seed)
    fixed = np.arange(len(units.begins))
    draw_shuffle.for_size(fixed.size)(fixed_state, fixed, 0, fixed.size)
    laid = Pieces.laid(units.sizes[fixed], units.begins[fixed], units.picks)
    starts, stops = laid.offsets[:-1], laid.offsets[1:]
    inner = ShuffledRuns(laid, starts, stops, Marks.drawn(fixed_state, starts, stops, UNIT_SPACING))

    pieces, firsts = _cut(Pieces(laid.offsets, starts, laid.picks), bounds)
    sizes, begins, marks = pieces.sizes, pieces.begins.copy(), []
    for lane in range(len(bounds) - 1):
        part = slice(firsts[lane], firsts[lane + 1])
        order = np.arange(part.start, part.stop)
        draw_shuffle.for_size(order.size)(state, order, 0, order.size)
        sizes[part], begins[part] = sizes[order], begins[order]
        stops = pieces.offsets[part.start] + sizes[part].cumsum()
        marks.append(Marks.drawn(state, stops - sizes[part], stops))
    pieces = Pieces.laid(sizes, begins, laid.picks)
    joined = Marks.joined(marks, firsts[:-1])
    return ShuffledRuns(PiecesOf(pieces, inner), pieces.offsets[:-1], pieces.offsets[1:], joined)


def _py1br(state: State, pieces: Pieces, bounds: Int64, widths: tuple[int, int]) -> PieceOrder:
    least, most = widths
    staggers = [draw_below.for_size(1)(state, least) for _ in bounds[1:]]
    starts, stops, marks = [], [], []
    for lane, stagger in enumerate(staggers):
        origin, length = bounds[lane], int(bounds[lane + 1] - bounds[lane])
        # Blocks grow at least twofold up to the stagger, and have the least width from there on.
        blocks = np.empty((2, length // least + stagger.bit_length() + 2), np.int64)
        count = _cut_blocks.for_size(blocks.size)(
            state, length, least, most - least, stagger, blocks
        )
        starts.append(origin + blocks[0, :count])
        stops.append(origin + blocks[1, :count])
        marks.append(Marks.drawn(state, starts[-1], stops[-1]))
    firsts = np.cumsum([0, *map(len, starts[:-1])])
    return ShuffledRuns(
        pieces, np.concatenate(starts), np.concatenate(stops), Marks.joined(marks, firsts)
    )


@kernel
def _cut_blocks(
    state: State, length: int, least: int, widths: int, stagger: int, blocks: Int64
) -> int:
    """Draw the lengths of a lane's blocks; write their starts and stops, and return how many."""
    count, at = 0, 0
    while at < length:
        width = least + draw_below(state, widths)
        start, stop = max(at - stagger, 0), min(at + width - stagger, length)
        blocks[0, count], blocks[1, count] = start, stop
        at += stop - start
        count += 1
    return count
