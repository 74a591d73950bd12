"""Passes through the sources of a mixture, each in an order of its own.

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

_LARGE = Blocks(MAX_TABLE_LENGTH + 1, 1, MAX_TABLE_LENGTH + 1, 0)
"""What takes memory to work in."""


class Stored(NamedTuple):
    """A source: its name and samples, its lanes, and rows of a block in one, 0 for no shuffling."""

    name: str
    samples: int
    lanes: int
    block: int


def source_seed(seed: int, name: str) -> int:
    """Hash what orders of a source are drawn from; other sources do not matter."""
    digest = hashlib.blake2b(f"{seed:x},{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Passes:
    """Rows of sources, by lane and draw; orders are made when they are touched.

    Those used least recently are let go when all together take too much memory.

    Parameters
    ----------
    seed : int
    sources : sequence of Stored
    chunks : sequence of callable or None
        What returns the bounds of each source's chunks; None for sources that are gone.
    """

    def __init__(
        self,
        seed: int,
        sources: Sequence[Stored],
        chunks: Sequence[Callable[[], AnyArray] | None],
    ) -> None:
        self._seed, self._sources, self._chunks = seed, sources, chunks
        self._samples = np.array([source.samples for source in sources], np.int64)
        self._lanes = np.array([source.lanes for source in sources], np.int64)
        self._orders: dict[tuple[int, int], tuple[Order, int]] = {}
        self._scratch: dict[np.dtype[Any], Cache] = {}
        self.nbytes = 0
        """Bytes that orders hold."""

    def rows(self, sources: Int64, numbers: Int64, places: Int64) -> Int64:
        """Return the rows, in their sources, at places of passes; see `spread`."""
        return self._each(sources, numbers, places, Order.at)

    def draws(self, sources: Int64, rows: Int64, numbers: Int64) -> tuple[Int64, Int64]:
        """Return the lane and the draw of rows in passes: `spread` inverted, and `rows`."""
        positions = self._each(sources, numbers, rows, Order.find)
        elements, lane = np.divmod(positions, self._lanes[sources])
        return lane, numbers * self._elements(sources, lane) + elements

    def _elements(self, sources: Int64, lane: Int64) -> Int64:
        """Return the rows in lanes."""
        samples, lanes = self._samples[sources], self._lanes[sources]
        return samples // lanes + (lane < samples % lanes)

    def _each(
        self,
        sources: Int64,
        numbers: Int64,
        values: Int64,
        look_up: Callable[[Order, Int64], Int64],
    ) -> Int64:
        """Look values up in the orders of sources and passes, each of which is gone to once."""
        found = np.empty_like(values)
        if not found.size:
            return found
        first = int(numbers.min())
        span = int(numbers.max()) - first + 1
        for key, here in group_positions(sources * span + numbers - first):
            source, number = key // span, key % span + first
            if self._sources[source].block:
                order = self._order(source, number)
                found[here] = look_up(order, values[here])
                self._weigh((source, number), order)
            else:
                found[here] = values[here]
        self._make_room((source, number))
        return found

    def _order(self, source: int, number: int) -> Order:
        """Return the order of a pass, which from now on is the one used last."""
        known = self._orders.pop((source, number), None)
        if known is not None:
            self._orders[source, number] = known
            return known[0]
        name, samples, lanes, block = self._sources[source]
        chunks = self._chunks[source]
        if chunks is None:
            raise ValueError(
                f"what is drawn there is of source {name!r}, which the mixture has no more"
            )
        dtype = np.dtype(np.int32 if samples < 1 << 31 else np.int64)
        if dtype not in self._scratch:
            self._scratch[dtype] = new_cache(_LARGE, dtype)
        seed = source_seed(self._seed, name)
        order = Order(
            samples, chunks, seed, number, block=block, lanes=lanes, scratch=self._scratch[dtype]
        )
        self._orders[source, number] = order, 0
        return order

    def _weigh(self, key: tuple[int, int], order: Order) -> None:
        """Reckon with the bytes that an order holds by now."""
        nbytes = order.nbytes
        self.nbytes += nbytes - self._orders[key][1]
        self._orders[key] = order, nbytes

    def _make_room(self, last: tuple[int, int]) -> None:
        """Let orders go that were not used for longest, but for the last one."""
        while self.nbytes > CACHE_BYTES and (first := next(iter(self._orders), last)) != last:
            self.nbytes -= self._orders.pop(first)[1]


@kernel
def spread(
    sources: Int64,
    lanes: Int64,
    numbers: Int64,
    offsets: Int64,
    facts: Int64,
    stream_lanes: int,
    across: bool,
    passes: Int64,
    places: Int64,
) -> None:
    """Find which pass of its source each sample of a unit is of, and its place there.

    Parameters
    ----------
    sources, lanes, numbers : ndarray of int64, shape (n,)
        Of each unit, its source, its lane in the stream, and which of the draws there it is.
    offsets : ndarray of int64, shape (n,) or (1,)
        The number of the sample in its unit.
    facts : ndarray of int64, shape (sources, 3)
        Samples of each source, its lanes, and its samples in a unit.
    stream_lanes : int
    across : bool
        As a course has them.
    passes, places : ndarray of int64, shape (n,)
        To be filled in.
    """
    for k in range(sources.size):
        samples = int(facts[sources[k], 0])
        own = int(facts[sources[k], 1])
        number = int(numbers[k])
        turns = int(lanes[k])
        lane = 0
        if not across:
            if own > 1:
                lane = turns % own
                turns //= own
            number = number * (stream_lanes // own) + turns
        number = number * int(facts[sources[k], 2]) + int(offsets[k % offsets.size])
        if across and own > 1:
            lane = number % own
            number //= own
        rows = samples // own + int(lane < samples % own)
        passes[k] = number // rows
        places[k] = (number - int(passes[k]) * rows) * own + lane
