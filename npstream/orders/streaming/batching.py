"""Streaming's batching methods: how batches are made of the samples of streams.

- "random" makes one epoch of all streams' samples, to shuffle and to partition.
- The others shuffle and partition each stream by itself. Each global batch is of one stream in
  "per_stream", each batch of a rank in "device_per_stream", and in "stratified" each global batch
  has so much of every stream. What does not fill a batch is left out.

Tested in tests/orders/streaming/test_order.py.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.arrays import group_positions
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.orders.streaming.partition import lane_bounds
from npstream.orders.streaming.runs import SPACING, Window

if TYPE_CHECKING:
    from npstream.orders.streaming.partition import StreamingPartition, World
    from npstream.orders.streaming.sampling import Picks
    from npstream.orders.streaming.shuffle import EpochShuffle

METHODS = ("random", "stratified", "per_stream", "device_per_stream")


class StreamError(ValueError):
    """A stream of which no batches can be made; `stream` is its number."""

    def __init__(self, stream: int, message: str) -> None:
        super().__init__(message)
        self.stream = stream


class Batching(Protocol):
    """What is in the slots of an epoch; see `streaming_partition`."""

    @property
    def batches(self) -> int:
        """Global batches."""

    @property
    def stride(self) -> int:
        """How many slots are worth computing at once."""

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots, or -1."""

    def is_filled(self, slots: Int64) -> Bools:
        """Return which slots hold samples."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one stream, or of all as if they were one: the method "random".

    Parameters
    ----------
    partition : StreamingPartition
    picks : Picks
    shuffle : EpochShuffle, optional
    first_id : int
        Samples in the streams before.
    """

    partition: StreamingPartition
    picks: Picks
    shuffle: EpochShuffle | None
    first_id: int = 0

    @property
    def batches(self) -> int:
        """Global batches."""
        return self.partition.batches

    @property
    def stride(self) -> int:
        """How many slots are worth computing at once."""
        return (self.order.stride if self.order else SPACING) * self.partition.lanes

    @functools.cached_property
    def order(self) -> Window | None:
        """The shuffled order. What it takes is drawn when it is first needed."""
        if self.shuffle is None:
            return None
        lanes = lane_bounds(self.partition.size, self.partition.lanes)
        return Window(self.shuffle.order(self.picks.units), lanes)

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots, or -1."""
        ids = self.partition.positions(slots)
        read = ids >= 0
        if not read.all():
            ids[read] = self._ids(ids[read])
            return ids
        return self._ids(ids)

    def is_filled(self, slots: Int64) -> Bools:
        """Return which slots hold samples."""
        return self.partition.positions(slots) >= 0

    def _ids(self, positions: Int64) -> Int64:
        if self.order is None:
            return self.picks.ids(positions) + self.first_id
        ids = self.order.at(positions)
        ids += self.first_id
        return ids


@dataclass(frozen=True, eq=False)
class _Streams:
    """Streams that are put together."""

    streams: list[Samples]

    @property
    def stride(self) -> int:
        """How many slots are worth computing at once."""
        return sum(stream.stride for stream in self.streams)

    def is_filled(self, slots: Int64) -> Bools:
        """Return which slots hold samples: all do, as what does not fill a batch is left out."""
        return np.ones(slots.shape, bool)

    def ids_of(self, numbers: Int64, slots: Int64) -> Int64:
        """Return the ids in slots of streams of given numbers."""
        ids = np.full(slots.shape, -1)
        # NumPy sorts short integers, by which they are grouped, in linear time.
        short: AnyArray = numbers.astype(np.int16) if len(self.streams) < 1 << 15 else numbers
        for number, own in group_positions(short):
            if number >= 0:
                ids[own] = self.streams[number].ids(slots[own])
        return ids


@dataclass(frozen=True, eq=False)
class Stratified(_Streams):
    """Global batches that hold so many samples of each stream; ``parts`` says how many."""

    parts: Int64
    batches: int

    @classmethod
    def divided(
        cls, streams: list[Samples], batch_size: int, proportions: NDArray[np.float64]
    ) -> Stratified:
        """Divide the global batch in the proportions of the streams."""
        exact = proportions * batch_size
        parts = exact.astype(np.int64)
        parts[np.argsort(exact - parts)[::-1][: batch_size - parts.sum()]] += 1
        if not parts.all():
            stream = int(parts.argmin())
            raise StreamError(
                stream,
                f"a global batch of {batch_size} holds no sample of stream {stream}: use a larger "
                "batch, or give the stream a larger weight",
            )
        partitions = [stream.partition for stream in streams]
        sizes = np.array([each.samples * each.world.ranks for each in partitions])
        _require_batches(streams, (sizes // parts).tolist(), "a global batch's share")
        return cls(streams, parts, int((sizes // parts).min()))

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots."""
        batch, within = np.divmod(slots, self.parts.sum())
        ends = self.parts.cumsum()
        numbers = ends.searchsorted(within, "right")
        within -= (ends - self.parts)[numbers]
        return self.ids_of(numbers, batch * self.parts[numbers] + within)


@dataclass(frozen=True, eq=False)
class PerStream(_Streams):
    """Global batches of one stream each, in random order.

    Parameters
    ----------
    streams : list of Samples
    batch_size : int
        Samples in a global batch.
    origins, nth : ndarray
        The stream of each batch, and how many batches of that one come before.
    """

    batch_size: int
    origins: Int64
    nth: Int64

    @classmethod
    def drawn(cls, streams: list[Samples], batch_size: int, seed: int) -> PerStream:
        """Draw the order of the streams' full batches."""
        full = [each.partition.samples // each.partition.batch_size for each in streams]
        _require_batches(streams, full, f"the {quantity(batch_size, 'sample')} of a global batch")
        origins = _shuffled(full, np.random.default_rng(seed))
        return cls(streams, batch_size, origins, _counted(origins))

    @property
    def batches(self) -> int:
        """Global batches."""
        return len(self.origins)

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots."""
        batch, within = np.divmod(slots, self.batch_size)
        return self.ids_of(self.origins[batch], self.nth[batch] * self.batch_size + within)


@dataclass(frozen=True, eq=False)
class PerDevice(_Streams):
    """Batches of each rank of one stream each, in an order that is drawn for each node.

    Parameters
    ----------
    streams : list of Samples
        Partitioned as if there were a node for each lane, and no batches.
    world : World
    batch_size : int
        Samples of one rank in a batch.
    origins, nth : ndarray
        For each node, the stream of each batch of its lanes, or -1 where those are fewer than
        make a global batch; and how many batches of that one come before.
    """

    world: World
    batch_size: int
    origins: Int64
    nth: Int64

    @classmethod
    def drawn(cls, streams: list[Samples], world: World, batch_size: int, seed: int) -> PerDevice:
        """Draw the orders of the streams' full batches of a rank."""
        lanes, ranks = streams[0].partition.lanes // world.nodes, world.ranks_per_node
        full = [each.partition.samples * lanes * ranks // batch_size for each in streams]
        _require_batches(
            streams, full, f"the {quantity(batch_size, 'sample')} of a rank's batch on each node"
        )
        origins = np.full((world.nodes, -(-sum(full) // ranks) * ranks), -1)
        rng = np.random.default_rng(seed)
        for own in origins:
            own[: sum(full)] = _shuffled(full, rng)
        nth = np.stack([_counted(own) for own in origins])
        return cls(streams, world, batch_size, origins, nth)

    @property
    def batches(self) -> int:
        """Global batches."""
        return int(self.origins.shape[1]) // self.world.ranks_per_node

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots, or -1."""
        nodes, ranks = self.world.nodes, self.world.ranks_per_node
        batch, place = np.divmod(slots, self.batch_size)
        batch, node = self._dealt(batch)
        # Where they are in the streams' partitions, to which each lane is a node.
        lanes = self.streams[0].partition.lanes // nodes
        rest, rank = np.divmod(self.nth[node, batch] * self.batch_size + place, ranks)
        sample, lane = np.divmod(rest, lanes)
        places = ((sample * nodes + node) * lanes + lane) * ranks + rank
        return self.ids_of(self.origins[node, batch], places)

    def is_filled(self, slots: Int64) -> Bools:
        """Return which slots hold samples: those of the last global batch may not."""
        batch, node = self._dealt(slots // self.batch_size)
        filled: Bools = self.origins[node, batch] >= 0
        return filled

    def _dealt(self, batches: Int64) -> tuple[Int64, Int64]:
        """Return the number of each batch among those of a node's lanes, and the node."""
        # They are not dealt to the node's own ranks, but to all nodes in turn.
        batch, node = np.divmod(batches, self.world.nodes)
        return batch, node


def _require_batches(streams: list[Samples], full: list[int], batch: str) -> None:
    """Raise unless every stream fills a batch: an epoch would have no sample of it."""
    for number, (stream, batches) in enumerate(zip(streams, full, strict=True)):
        if not batches:
            raise StreamError(
                number,
                f"stream {number} has {quantity(stream.partition.size, 'sample')} in an epoch, "
                f"which do not fill {batch}, so none of them would be read: make batches smaller, "
                "take more of the stream, or leave it out",
            )


def _shuffled(counts: list[int], rng: np.random.Generator) -> Int64:
    """Return each position of a list as often as it says, in random order."""
    numbers = np.arange(len(counts)).repeat(counts)
    rng.shuffle(numbers)
    return numbers


def _counted(numbers: Int64) -> Int64:
    """Return how often each number came before."""
    counts = np.empty_like(numbers)
    for number in np.unique(numbers):
        own = numbers == number
        counts[own] = np.arange(own.sum())
    return counts
