"""Provide the passes through the sources of a mixture, each pass in its own order.

Tested in tests/mixture/test_stream.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from npstream._core.arrays import group_positions
from npstream._core.jit import kernel
from npstream._core.typing import AnyArray, Int64
from npstream.orders.blocks import CACHE_BYTES, Blocks, Cache, new_cache
from npstream.orders.order import Order
from npstream.orders.permutation import MAX_TABLE_LENGTH

_SCRATCH_BLOCKS = Blocks(MAX_TABLE_LENGTH + 1, 1, MAX_TABLE_LENGTH + 1, 0)
"""The sizes of an order with large blocks, for which the shared buffers are made.

All orders with blocks of more than `MAX_TABLE_LENGTH` rows need buffers of the same size. Orders
with smaller blocks need no buffers.
"""


class Stored(NamedTuple):
    """A source: its name, its numbers of samples and lanes, and the size of its shuffled blocks.

    `block` is the number of rows of a block in one lane, or 0 without a shuffle. The names of this
    class and its fields are part of `npstream.mixture.stream.MixtureOrder.identity`, so they must
    not change.
    """

    name: str
    samples: int
    lanes: int
    block: int


def source_seed(seed: int, name: str) -> int:
    """Return the seed of a source's orders, hashed from the run's seed and the source's name."""
    digest = hashlib.blake2b(f"{seed:x},{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Passes:
    """The orders of the passes through sources, in an LRU cache with a memory limit.

    Parameters
    ----------
    seed : int
    sources : sequence of Stored
    chunks : sequence of callable or None
        Each returns the bounds of a source's chunks; None for sources that were removed.
    stratified : bool
        Whether the passes are stratified; see `npstream.orders.order.Shuffle`.
    """

    def __init__(
        self,
        seed: int,
        sources: Sequence[Stored],
        chunks: Sequence[Callable[[], AnyArray] | None],
        stratified: bool,
    ) -> None:
        self._seed, self._sources, self._chunks = seed, sources, chunks
        self._stratified = stratified
        self._samples = np.array([source.samples for source in sources], np.int64)
        self._lanes = np.array([source.lanes for source in sources], np.int64)
        self._orders: dict[tuple[int, int], tuple[Order, int]] = {}
        self._scratch: dict[np.dtype[Any], Cache] = {}
        self.nbytes = 0
        """Bytes of memory that the cached orders use."""

    def rows(self, sources: Int64, passes: Int64, places: Int64) -> Int64:
        """Return the rows at places of passes; `find_passes` finds the places and the passes."""
        return self._look_up(sources, passes, places, Order.at)

    def find_draws(self, sources: Int64, rows: Int64, passes: Int64) -> tuple[Int64, Int64]:
        """Return the lane of each row in its source, and the number of the draw that gives the row.

        The draws of a lane are counted from the first pass. `passes` are the passes of the rows.
        """
        positions = self._look_up(sources, passes, rows, Order.find)
        elements, lane = np.divmod(positions, self._lanes[sources])
        return lane, passes * self._elements(sources, lane) + elements

    def _elements(self, sources: Int64, lane: Int64) -> Int64:
        """Return the number of rows in lanes of sources."""
        samples, lanes = self._samples[sources], self._lanes[sources]
        return samples // lanes + (lane < samples % lanes)

    def _look_up(
        self,
        sources: Int64,
        passes: Int64,
        values: Int64,
        look_up: Callable[[Order, Int64], Int64],
    ) -> Int64:
        """Look up places or rows in the orders of sources and passes.

        `look_up` is called once for each order. It is `Order.at` for places, and `Order.find` for
        rows. The values of sources without a shuffle are returned unchanged.
        """
        result = np.empty_like(values)
        if not result.size:
            return result
        first = int(passes.min())
        span = int(passes.max()) - first + 1
        for key, indices in group_positions(sources * span + passes - first):
            source, number = key // span, key % span + first
            if self._sources[source].block:
                order = self._order(source, number)
                result[indices] = look_up(order, values[indices])
                self._update_nbytes((source, number), order)
            else:
                result[indices] = values[indices]
        self._evict((source, number))
        return result

    def _order(self, source: int, number: int) -> Order:
        """Return the order of a pass, and mark it as the most recently used."""
        cached = self._orders.pop((source, number), None)
        if cached is not None:
            self._orders[source, number] = cached
            return cached[0]
        name, samples, lanes, block = self._sources[source]
        chunks = self._chunks[source]
        if chunks is None:
            raise ValueError(
                f"a sample of source {name!r} is at one of the positions, and the mixture no "
                "longer has this source"
            )
        dtype = np.dtype(np.int32 if samples < 1 << 31 else np.int64)
        if dtype not in self._scratch:
            self._scratch[dtype] = new_cache(_SCRATCH_BLOCKS, dtype)
        seed = source_seed(self._seed, name)
        order = Order(
            samples, chunks, seed, number, block=block, lanes=lanes, stratified=self._stratified,
            scratch=self._scratch[dtype],
        )  # fmt: skip
        self._orders[source, number] = order, 0
        return order

    def _update_nbytes(self, key: tuple[int, int], order: Order) -> None:
        """Update `nbytes` by the memory that an order uses now."""
        nbytes = order.nbytes
        self.nbytes += nbytes - self._orders[key][1]
        self._orders[key] = order, nbytes

    def _evict(self, last: tuple[int, int]) -> None:
        """Evict the least recently used orders, but never `last`."""
        while self.nbytes > CACHE_BYTES and (first := next(iter(self._orders), last)) != last:
            self.nbytes -= self._orders.pop(first)[1]


@kernel
def find_passes(
    sources: Int64,
    lanes: Int64,
    numbers: Int64,
    offsets: Int64,
    source_table: Int64,
    stream_lanes: int,
    across: bool,
    passes: Int64,
    places: Int64,
) -> None:
    """Find the pass that reads each sample of a source, and the place of the sample in this pass.

    A unit is a sample, or a batch of samples of one source; see `npstream.mixture.stream`.

    Parameters
    ----------
    sources, lanes, numbers : ndarray of int64, shape (n,)
        For each unit: its source, its lane in the stream, and its number among the draws of its
        source in this lane.
    offsets : ndarray of int64, shape (n,) or (1,)
        The number of the sample in its unit.
    source_table : ndarray of int64, shape (sources, 3)
        For each source: its samples, its lanes, and its samples in a unit.
    stream_lanes : int
        Lanes of the stream.
    across : bool
        See `npstream.mixture.stream.Course`.
    passes, places : ndarray of int64, shape (n,)
        Output arrays.
    """
    for k in range(sources.size):
        samples = int(source_table[sources[k], 0])
        source_lanes = int(source_table[sources[k], 1])
        number = int(numbers[k])
        lane = 0
        if not across:
            # A lane group has consecutive lanes of the stream, one for each lane of the source.
            lane_group = int(lanes[k])
            if source_lanes > 1:
                lane = lane_group % source_lanes
                lane_group //= source_lanes
            number = number * (stream_lanes // source_lanes) + lane_group
        number = number * int(source_table[sources[k], 2]) + int(offsets[k % offsets.size])
        if across and source_lanes > 1:
            lane = number % source_lanes
            number //= source_lanes
        rows = samples // source_lanes + int(lane < samples % source_lanes)
        passes[k] = number // rows
        places[k] = (number - int(passes[k]) * rows) * source_lanes + lane
