"""Provide Streaming's shuffles, bit for bit.

A shuffle orders *units*: ranges of consecutive samples, mostly shards. It puts them in an order
that is the same in all epochs, and cuts their sequence into lanes ("canonical nodes"). A unit that
crosses the end of a lane is cut into *pieces*. Every epoch shuffles the pieces of each lane, and
then samples:

- py1s: the samples of each piece.
- py2s: the samples of each piece. Before units are cut, the samples of each unit are shuffled, in
  the same way in all epochs.
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
from npstream.orders.streaming.pcg64 import (
    MAX_BOUND,
    State,
    draw_below,
    draw_shuffle,
    state_from_seed,
)
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
"""Samples between snapshots of the generator, for py2s's shuffle of the samples within units.

It is smaller than `npstream.orders.streaming.runs.SPACING`, because these samples are looked up in
random order.
"""


@dataclass(frozen=True, slots=True)
class EpochShuffle:
    """The settings of one of Streaming's shuffles.

    Parameters
    ----------
    algorithm : {"naive", "py1br", "py1e", "py1s", "py2s"}
        Streaming's `shuffle_algo`.
    lanes : int
        Streaming's `num_canonical_nodes`.
    seed : int
        Streaming's `shuffle_seed`.
    epoch : int
        Number of the epoch.
    block_size : int
        Streaming's `shuffle_block_size`, in samples.

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

    def check(self, size: int, longest_unit: int) -> None:
        """Raise ValueError unless these settings can shuffle a number of samples.

        Parameters
        ----------
        size : int
            Number of samples.
        longest_unit : int
            Number of samples of the longest unit.
        """
        if self.algorithm == "py1e" and size < self.lanes:
            raise ValueError(
                f"py1e with num_canonical_nodes={self.lanes} needs a sample for each, and there "
                f"{'is' if size == 1 else 'are'} {quantity(size, 'sample')}: use fewer canonical "
                "nodes, or another order"
            )
        min_length, length_stop = self._block_lengths
        # A draw needs at least one number to choose from. py1e and py1br draw one of `count`
        # numbers. py1br also draws the stagger of each lane, which is below `min_length`.
        count = length_stop - min_length
        choices = {"py1e": count, "py1br": min(min_length, count)}.get(self.algorithm, 1)
        if choices < 1:
            raise ValueError(
                f"shuffle_block_size={self.block_size}: {self.algorithm} needs larger blocks"
            )
        longest_run = {"naive": size, "py1br": length_stop}.get(self.algorithm, longest_unit)
        if (bound := max(longest_run, choices)) > MAX_BOUND:
            raise ValueError(
                f"{self.algorithm} would draw one of {bound} numbers, and the maximum is "
                f"{MAX_BOUND} numbers"
            )

    def order(self, units: Pieces) -> PieceOrder:
        """Return the order of the samples of `units`."""
        state = state_from_seed(self.seed + self.epoch)
        size = int(units.offsets[-1])
        if self.algorithm == "naive":
            return _naive(state, units)
        bounds = lane_bounds(size, self.lanes)
        if self.algorithm == "py2s":
            return _py2s(state, units, bounds, self.seed)
        # The order of units depends only on the seed, so that lanes are the same in every epoch.
        unit_order = np.random.default_rng(self.seed).permutation(len(units.begins))
        units = Pieces.concatenate(units.sizes[unit_order], units.begins[unit_order], units.picks)
        pieces, firsts = _cut(units, bounds)
        order = np.arange(len(pieces.begins))
        shuffle_runs.for_size(order.size)(state, order, firsts[:-1], firsts[1:])
        pieces = Pieces.concatenate(pieces.sizes[order], pieces.begins[order], pieces.picks)
        if self.algorithm == "py1e":
            return ExpandedOrder.draw(state, pieces, bounds, firsts, self._block_lengths)
        if self.algorithm == "py1br":
            return _py1br(state, pieces, bounds, self._block_lengths)
        starts, stops = pieces.offsets[:-1], pieces.offsets[1:]
        return ShuffledRuns(pieces, starts, stops, Snapshots.draw(state, starts, stops))

    @property
    def _block_lengths(self) -> tuple[int, int]:
        """The minimum of the random length of a block, and its exclusive maximum."""
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
    # The same in all epochs: shuffle the units, and the samples of each unit.
    seed_state = state_from_seed(seed)
    unit_order = np.arange(len(units.begins))
    draw_shuffle.for_size(unit_order.size)(seed_state, unit_order, 0, unit_order.size)
    units = Pieces.concatenate(units.sizes[unit_order], units.begins[unit_order], units.picks)
    starts, stops = units.offsets[:-1], units.offsets[1:]
    inner = ShuffledRuns(
        units, starts, stops, Snapshots.draw(seed_state, starts, stops, UNIT_SPACING)
    )

    # In each epoch: shuffle the pieces of each lane, and the samples of each piece. The samples of
    # a piece are numbered by their positions in `inner`.
    pieces, firsts = _cut(Pieces(units.offsets, starts, units.picks), bounds)
    sizes, begins, snapshots = pieces.sizes, pieces.begins.copy(), []
    for lane in range(len(bounds) - 1):
        part = slice(firsts[lane], firsts[lane + 1])
        order = np.arange(part.start, part.stop)
        draw_shuffle.for_size(order.size)(state, order, 0, order.size)
        sizes[part], begins[part] = sizes[order], begins[order]
        stops = pieces.offsets[part.start] + sizes[part].cumsum()
        snapshots.append(Snapshots.draw(state, stops - sizes[part], stops))
    pieces = Pieces.concatenate(sizes, begins, units.picks)
    return ShuffledRuns(
        ComposedPieces(pieces, inner),
        pieces.offsets[:-1],
        pieces.offsets[1:],
        Snapshots.concatenate(snapshots, firsts[:-1]),
    )


def _py1br(state: State, pieces: Pieces, bounds: Int64, lengths: tuple[int, int]) -> PieceOrder:
    min_length, length_stop = lengths
    staggers = [draw_below.for_size(1)(state, min_length) for _ in bounds[1:]]
    starts, stops, snapshots = [], [], []
    for lane, stagger in enumerate(staggers):
        origin, length = bounds[lane], int(bounds[lane + 1] - bounds[lane])
        # This many blocks are enough (see `_cut_blocks`): while the position is below the stagger,
        # it at least doubles with each block. Later blocks, except the last, have at least
        # `min_length` samples.
        blocks = np.empty((2, length // min_length + stagger.bit_length() + 2), np.int64)
        count = _cut_blocks.for_size(blocks.size)(
            state, length, min_length, length_stop - min_length, stagger, blocks
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
    state: State, length: int, min_length: int, choices: int, stagger: int, blocks: Int64
) -> int:
    """Draw the lengths of a lane's blocks; write their starts and stops, return their number.

    A block has one of `choices` lengths, from `min_length` on. A block begins `stagger` samples
    before the current position, but not before the lane. So the first blocks may overlap, as they
    do in Streaming.
    """
    count, position = 0, 0
    while position < length:
        block_length = min_length + draw_below(state, choices)
        start, stop = max(position - stagger, 0), min(position + block_length - stagger, length)
        blocks[0, count], blocks[1, count] = start, stop
        position += stop - start
        count += 1
    return count
