"""Provide `OrderPieces`: how much memory an order needs, and how far its batches are from random.

An order reads its lanes block by block (see `npstream.orders.order`). In a block, samples come in
random order. So a batch has a random number of samples of each chunk. It is known from which
blocks a batch is drawn, and how many samples of the chunk each block has. The mean and the variance
of the random number follow from this. No sample is looked up.

A *place* is an index into the layout, which has one lane after the other.

The formulas are Theorems 2.1 and 2.2 of W. G. Cochran, Sampling Techniques, 3rd ed., Wiley 1977.
Let k of the w samples of a block be drawn without replacement. The sum of their values has the mean
``k * mean`` and the variance ``k * variance * (w - k) / (w - 1)``. Here `mean` and `variance` are
those of the w values, and `variance` divides by w.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from npstream._core.typing import AnyArray, Int64
from npstream.orders.blocks import Blocks
from npstream.orders.layout import Layout, permute_lanes

__all__ = ["OrderPieces", "pieces_of_layout", "sequential_pieces"]

Float64: TypeAlias = NDArray[np.float64]

_MAX_PARTS = 1 << 21
"""Approximate maximum of the parts that are examined, over all sampled batches.

A part has the rows of one piece in one block from which a batch is drawn. At least four batches are
examined, even if they have more parts.
"""

_MAX_BATCHES = 256
"""The most batches that are examined; they are evenly spaced over the epoch."""


class _Draws(NamedTuple):
    """The blocks from which batches are drawn: one entry for each batch and block.

    Attributes
    ----------
    batch : ndarray of int64
        The index of the batch among the sampled ones.
    start, stop : ndarray of int64
        The first place of the block, and the one after its last.
    drawn : ndarray of int64
        The number of samples that the batch draws from the block.
    """

    batch: Int64
    start: Int64
    stop: Int64
    drawn: Int64


class OrderPieces:
    """The pieces of chunks in the lanes of an order, and the blocks that cut the lanes.

    Parameters
    ----------
    blocks : Blocks
        The sizes of the order.
    rows : ndarray of int64, shape (pieces,)
        The first row of each piece, in the order of the layout.
    places : ndarray of int64, shape (pieces + 1,)
        The place of each piece in the layout, then the number of rows.
    """

    def __init__(self, blocks: Blocks, rows: Int64, places: Int64) -> None:
        self.blocks, self.rows, self.places = blocks, rows, places
        lanes = np.arange(min(blocks.lanes, blocks.n) + 1)
        self._lane_starts = lanes * (blocks.n // blocks.lanes) + np.minimum(
            lanes, blocks.n % blocks.lanes
        )
        # The lengths of the first blocks of lanes; see `npstream.orders.blocks`.
        self._first_lengths = -(-blocks.block * (lanes[:-1] + 1) // blocks.lanes)

    def peak_bytes(self, nbytes: Int64) -> int:
        """Return the most bytes of pieces that are in use at the same time.

        A piece is in use from the beginning of the first block that has some of its samples to the
        end of the last one.

        Parameters
        ----------
        nbytes : ndarray of int64, shape (pieces,)
            The bytes of the chunk of each piece.
        """
        lane = np.searchsorted(self._lane_starts, self.places[:-1], side="right") - 1
        start, _ = self._block_bounds(lane, self.places[:-1])
        _, stop = self._block_bounds(lane, self.places[1:] - 1)
        # Element e of lane j is at position e * lanes + j of the order.
        lane_starts, lanes = self._lane_starts[lane], self.blocks.lanes
        begins = (start - lane_starts) * lanes + lane
        ends = (stop - 1 - lane_starts) * lanes + lane
        # A piece is in use up to and including its last position. At the next position, its bytes
        # are subtracted before the bytes of pieces that begin there are added.
        times = np.concatenate([begins, ends + 1])
        changes = np.concatenate([nbytes, -nbytes])
        order = np.lexsort((changes, times))
        return int(np.cumsum(changes[order]).max(initial=0))

    def chunk_variance(self, batch_size: int, chunks: AnyArray) -> float:
        """Return the variance of a batch's mean, divided by that of a perfect shuffle.

        The samples have a random value, which is the same for all samples of a chunk, and
        independent between chunks. The variance is that of the difference between the mean of a
        batch and the mean of all samples.

        Parameters
        ----------
        batch_size : int
            Samples of a batch.
        chunks : ndarray
            The first row of each chunk, then the number of rows.

        Notes
        -----
        If a batch has the fraction f_c of its samples of chunk c, and all data have the fraction
        p_c, then the variance is proportional to the mean of ``sum((f - p)**2)``. As f_c is p_c on
        average over the batches of an epoch, this is the mean of ``sum(f**2)`` minus ``sum(p**2)``.
        """
        n, size = self.blocks.n, batch_size
        fractions = np.diff(chunks) / max(n, 1)
        shares = float(np.sum(fractions**2))
        # A perfect shuffle draws from one block, which has all samples.
        perfect = (1 - shares) * (n - size) / (size * max(n - 1, 1))
        if n <= size or perfect <= 0:
            return 1.0
        draws, batches = self._draws(size, max(1, self._parts_per_batch(size)))
        # Parts: one entry for each batch, block, and piece of the block.
        first = np.searchsorted(self.places, draws.start, side="right") - 1
        last = np.searchsorted(self.places, draws.stop - 1, side="right") - 1
        owner, piece = _expand(first, last - first + 1)
        length = draws.stop[owner] - draws.start[owner]
        rows = np.minimum(self.places[piece + 1], draws.stop[owner])
        rows = rows - np.maximum(self.places[piece], draws.start[owner])
        drawn, fraction = draws.drawn[owner], rows / length
        variance = drawn * fraction * (1 - fraction) * _finite_correction(length, drawn)
        chunk = np.searchsorted(chunks, self.rows[piece], side="right") - 1
        keys = draws.batch[owner] * np.int64(len(chunks)) + chunk
        _, number = np.unique(keys, return_inverse=True)
        means = np.bincount(number, drawn * fraction)
        squares = (np.sum(means**2) + np.sum(variance)) / (batches * size**2)
        return float((squares - shares) / perfect)

    def value_variance(self, batch_size: int, values: Float64) -> float:
        """Return the variance of a batch's mean of `values`, divided by that of a perfect shuffle.

        The variance is that of the difference between the mean of a batch and the mean of all
        values.

        Parameters
        ----------
        batch_size : int
            Samples of a batch.
        values : ndarray of float64, shape (rows,)
            A value for each row.
        """
        n, size = self.blocks.n, batch_size
        spread = float(np.var(values)) if n else 0.0
        perfect = spread * (n - size) / (size * max(n - 1, 1))
        if n <= size or perfect <= 0:
            return 1.0
        draws, batches = self._draws(size, max(1, min(size, self.blocks.lanes)))
        # Sums of the values at all places before each place.
        _, row = _expand(self.rows, np.diff(self.places))
        deviations = values[row] - np.mean(values)
        sums = np.concatenate([[0.0], np.cumsum(deviations)])
        square_sums = np.concatenate([[0.0], np.cumsum(deviations**2)])
        length, drawn = draws.stop - draws.start, draws.drawn
        means = (sums[draws.stop] - sums[draws.start]) / length
        squares = (square_sums[draws.stop] - square_sums[draws.start]) / length
        variance = drawn * np.maximum(squares - means**2, 0) * _finite_correction(length, drawn)
        totals = np.bincount(draws.batch, drawn * means, minlength=batches)
        return float((np.sum(totals**2) + np.sum(variance)) / (batches * size**2) / perfect)

    def _parts_per_batch(self, batch_size: int) -> int:
        """Estimate the number of parts of `chunk_variance` for one batch."""
        n, lanes, block, _ = self.blocks
        blocks = min(batch_size, lanes) + batch_size // max(block, 1)
        return int(blocks * (2 + min(block, n) * len(self.rows) // max(n, 1)))

    def _draws(self, batch_size: int, parts: int) -> tuple[_Draws, int]:
        """Return the blocks of evenly spaced batches, and the number of these batches.

        `parts` is the work for one batch.
        """
        n, lanes = self.blocks.n, self.blocks.lanes
        total = n // batch_size
        count = min(total, max(4, min(_MAX_BATCHES, _MAX_PARTS // parts)))
        firsts = np.arange(count) * total // count * batch_size
        lane = np.arange(len(self._lane_starts) - 1)
        # Lane j has the positions j, j + lanes, ...
        starts = -(-(firsts[:, None] - lane) // lanes)
        stops = -(-(firsts[:, None] + batch_size - lane) // lanes)
        batch, lane = (a.ravel() for a in np.broadcast_arrays(np.arange(count)[:, None], lane))
        starts, stops = (self._lane_starts[lane] + a.ravel() for a in (starts, stops))
        is_drawn = stops > starts
        batch, lane, starts, stops = (
            batch[is_drawn],
            lane[is_drawn],
            starts[is_drawn],
            stops[is_drawn],
        )
        first, last = (self._block_number(lane, place) for place in (starts, stops - 1))
        owner, number = _expand(first, last - first + 1)
        begin, end = self._bounds_of(lane[owner], number)
        drawn = np.minimum(end, stops[owner]) - np.maximum(begin, starts[owner])
        return _Draws(batch[owner], begin, end, drawn), count

    def _block_number(self, lane: Int64, place: Int64) -> Int64:
        """Return the number, in its lane, of the block that contains a place."""
        element = place - self._lane_starts[lane]
        number: Int64 = 1 + (element - self._first_lengths[lane]) // self.blocks.block
        return np.maximum(number, 0)

    def _bounds_of(self, lane: Int64, number: Int64) -> tuple[Int64, Int64]:
        """Return the places of blocks of lanes: the first one, and the one after the last."""
        ends = self._first_lengths[lane] + number * self.blocks.block
        begins = np.where(number == 0, 0, ends - self.blocks.block)
        start, stop = self._lane_starts[lane], self._lane_starts[lane + 1]
        return start + begins, np.minimum(start + ends, stop)

    def _block_bounds(self, lane: Int64, place: Int64) -> tuple[Int64, Int64]:
        """Return the bounds of the blocks that contain places, as `_bounds_of` does."""
        return self._bounds_of(lane, self._block_number(lane, place))


def pieces_of_layout(blocks: Blocks, layout: Layout) -> OrderPieces:
    """Return the pieces of a layout; permute its lanes if they are not permuted yet."""
    permute_lanes.for_size(layout.pieces.size)(layout)
    count = len(layout.chunks) - 1
    is_part = layout.pieces >= count
    chunk = np.where(is_part, 0, layout.pieces)
    rows = layout.chunks[chunk].astype(np.int64)
    sizes = layout.chunks[chunk + 1].astype(np.int64) - rows
    part = layout.pieces[is_part] - count
    rows[is_part] = layout.parts[part]
    sizes[is_part] = layout.parts[part + 1].astype(np.int64) - rows[is_part]
    return OrderPieces(blocks, rows, np.concatenate([[0], np.cumsum(sizes)]))


def sequential_pieces(chunks: AnyArray, block: int) -> OrderPieces:
    """Return the pieces of an order with one lane, in which the chunks are in stored order.

    Parameters
    ----------
    chunks : ndarray
        The first row of each chunk, then the number of rows.
    block : int
        Samples of a block: 1 for the order of the view, and all for a full shuffle.
    """
    places = np.asarray(chunks, np.int64)
    return OrderPieces(Blocks(int(places[-1]), 1, max(block, 1), 0), places[:-1], places)


def _finite_correction(length: Int64, drawn: Int64) -> Float64:
    """Return (w - k) / (w - 1) for k of w samples; 0 for a block of one sample."""
    correction: Float64 = (length - drawn) / np.maximum(length - 1, 1)
    return correction


def _expand(first: Int64, counts: Int64) -> tuple[Int64, Int64]:
    """Return ``(i, first[i] + k)`` for each i and each k below ``counts[i]``, as two arrays."""
    owner = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(counts)
    offset = np.arange(len(owner)) - np.repeat(ends - counts, counts)
    return owner, first[owner] + offset
