"""Provide Streaming's shuffles, bit for bit.

A shuffle orders *units*: ranges of consecutive samples, mostly shards. It puts them in an order
that is the same in all epochs, and cuts their sequence into lanes ("canonical nodes"). A unit that
crosses the end of a lane is cut into *pieces*. Every epoch shuffles the pieces of each lane, and
then samples:

- py1s: the samples of each piece.
- py2s: the same, in units whose samples were shuffled once for all epochs.
- py1br: the samples of each block, a range of a lane with a random length.
- py1e: the samples of each piece; then each sample moves a random distance along its lane.
- naive: all samples together, without lanes.

Source: https://github.com/mosaicml/streaming, directory streaming/base/shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.jit import kernel
from npstream._core.typing import Int64
from npstream.orders.streaming.partition import lane_bounds
from npstream.orders.streaming.pcg64 import MAX_BOUND, State, draw_below, draw_shuffle, seeded
from npstream.orders.streaming.py1e import ExpandedOrder
from npstream.orders.streaming.runs import (
    ComposedPieces,
    OrderTable,
    PieceOrder,
    Pieces,
    ShuffledRuns,
    Snapshots,
    shuffle_runs,
)

SHUFFLE_ALGORITHMS = ("naive", "py1br", "py1e", "py1s", "py2s")

UNIT_SPACING = 1 << 10
"""Samples between snapshots in the units of py2s, which are read in random order."""


@dataclass(frozen=True, slots=True)
class EpochShuffle:
    """The settings of one of Streaming's shuffles.

    Parameters
    ----------
    algorithm : str
    lanes : int
    seed, epoch : int
    block_size : int

    Examples
    --------
    >>> shuffle = EpochShuffle("py1e", lanes=2, seed=0, epoch=0, block_size=4)
    >>> order = shuffle.order(Pieces.consecutive(np.array([3, 4, 3])))
    >>> order.rows(0, 5), order.rows(5, 10)  # its lanes
    (array([9, 7, 8, 1, 0], dtype=uint32), array([2, 3, 5, 6, 4], dtype=uint32))
    """

    algorithm: str
    lanes: int
    seed: int
    epoch: int
    block_size: int

    def check(self, size: int, longest: int) -> None:
        """Raise ValueError unless `size` samples can be shuffled, in units of up to `longest`."""
        if self.algorithm == "py1e" and size < self.lanes:
            raise ValueError(
                f"py1e with num_canonical_nodes={self.lanes} needs a sample for each, and there "
                f"{'is' if size == 1 else 'are'} {quantity(size, 'sample')}: use fewer canonical "
                "nodes, or another order"
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
                f"{self.algorithm} would draw one of {max(longest, widths)} numbers: the maximum "
                f"is {MAX_BOUND}"
            )

    def order(self, units: Pieces) -> PieceOrder:
        """Return the order of the samples of `units`."""
        state = seeded(self.seed + self.epoch)
        size = int(units.offsets[-1])
        if self.algorithm == "naive":
            return _naive(state, units)
        bounds = lane_bounds(size, self.lanes)
        if self.algorithm == "py2s":
            return _py2s(state, units, bounds, self.seed)
        # The order of units depends only on the seed, so that lanes are the same in every epoch.
        fixed = np.random.default_rng(self.seed).permutation(len(units.begins))
        laid = Pieces.concatenate(units.sizes[fixed], units.begins[fixed], units.picks)
        pieces, firsts = _cut(laid, bounds)
        order = np.arange(len(pieces.begins))
        shuffle_runs.for_size(order.size)(state, order, firsts[:-1], firsts[1:])
        pieces = Pieces.concatenate(pieces.sizes[order], pieces.begins[order], pieces.picks)
        if self.algorithm == "py1e":
            return ExpandedOrder.draw(state, pieces, bounds, firsts, self._widths)
        if self.algorithm == "py1br":
            return _py1br(state, pieces, bounds, self._widths)
        starts, stops = pieces.offsets[:-1], pieces.offsets[1:]
        return ShuffledRuns(pieces, starts, stops, Snapshots.draw(state, starts, stops))

    @property
    def _widths(self) -> tuple[int, int]:
        """The bounds of the random length of a block."""
        return int(0.75 * self.block_size), int(1.25 * self.block_size)


def _cut(units: Pieces, bounds: Int64) -> tuple[Pieces, Int64]:
    """Cut units at the bounds of lanes; return the pieces, and each lane's first piece."""
    ends = units.offsets[1:]
    cuts = np.setdiff1d(bounds[1:-1], units.offsets)
    stops = np.sort(np.concatenate([ends, cuts]), kind="stable")
    # The unit of a piece is the number of units that ended before it, even if units are empty.
    unit = np.arange(len(stops)) - cuts.searchsorted(stops)
    starts = np.concatenate([[0], stops[:-1]])
    begins = units.begins[unit] + starts - units.offsets[unit]
    # A piece, even an empty one, is in the first lane that ends at or after the piece's end.
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
    laid = Pieces.concatenate(units.sizes[fixed], units.begins[fixed], units.picks)
    starts, stops = laid.offsets[:-1], laid.offsets[1:]
    inner = ShuffledRuns(
        laid, starts, stops, Snapshots.draw(fixed_state, starts, stops, UNIT_SPACING)
    )

    pieces, firsts = _cut(Pieces(laid.offsets, starts, laid.picks), bounds)
    sizes, begins, snapshots = pieces.sizes, pieces.begins.copy(), []
    for lane in range(len(bounds) - 1):
        part = slice(firsts[lane], firsts[lane + 1])
        order = np.arange(part.start, part.stop)
        draw_shuffle.for_size(order.size)(state, order, 0, order.size)
        sizes[part], begins[part] = sizes[order], begins[order]
        stops = pieces.offsets[part.start] + sizes[part].cumsum()
        snapshots.append(Snapshots.draw(state, stops - sizes[part], stops))
    pieces = Pieces.concatenate(sizes, begins, laid.picks)
    joined = Snapshots.concatenate(snapshots, firsts[:-1])
    return ShuffledRuns(
        ComposedPieces(pieces, inner), pieces.offsets[:-1], pieces.offsets[1:], joined
    )


def _py1br(state: State, pieces: Pieces, bounds: Int64, widths: tuple[int, int]) -> PieceOrder:
    least, most = widths
    staggers = [draw_below.for_size(1)(state, least) for _ in bounds[1:]]
    starts, stops, snapshots = [], [], []
    for lane, stagger in enumerate(staggers):
        origin, length = bounds[lane], int(bounds[lane + 1] - bounds[lane])
        # Before the stagger, each block is at least twice as long as the one before. After it,
        # blocks have at least the minimum width. Both bound the number of blocks.
        blocks = np.empty((2, length // least + stagger.bit_length() + 2), np.int64)
        count = _cut_blocks.for_size(blocks.size)(
            state, length, least, most - least, stagger, blocks
        )
        starts.append(origin + blocks[0, :count])
        stops.append(origin + blocks[1, :count])
        snapshots.append(Snapshots.draw(state, starts[-1], stops[-1]))
    firsts = np.cumsum([0, *map(len, starts[:-1])])
    return ShuffledRuns(
        pieces,
        np.concatenate(starts),
        np.concatenate(stops),
        Snapshots.concatenate(snapshots, firsts),
    )


@kernel
def _cut_blocks(
    state: State, length: int, least: int, widths: int, stagger: int, blocks: Int64
) -> int:
    """Draw the lengths of a lane's blocks; write their starts and stops, return their number."""
    count, position = 0, 0
    while position < length:
        width = least + draw_below(state, widths)
        start, stop = max(position - stagger, 0), min(position + width - stagger, length)
        blocks[0, count], blocks[1, count] = start, stop
        position += stop - start
        count += 1
    return count
