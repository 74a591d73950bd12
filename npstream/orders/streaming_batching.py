"""Streaming's batching methods: how the samples of streams are put together to batches.

- "random" makes one epoch of all streams' samples, and shuffles and partitions that.
- The others partition each stream by itself. Of "per_stream", each global batch is of one stream;
  of "device_per_stream", each batch of a rank; of "stratified", each global batch holds so much of
  every stream. What does not fill a batch is left out.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from npstream._typing import Int64
from npstream.orders.streaming_partition import Partition, World
from npstream.orders.streaming_runs import SPACING, Order, gather
from npstream.orders.streaming_sampling import Picks
from npstream.orders.streaming_shuffle import Shuffle, lane_bounds

METHODS = ("random", "per_stream", "device_per_stream", "stratified")


class Batching(Protocol):
    """The samples in the slots of an epoch; see `streaming_partition`."""

    @property
    def batches(self) -> int:
        """Global batches."""

    @property
    def stride(self) -> int:
        """How many slots are worth computing at once."""

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots, or -1."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of one stream, or of all as if they were one; the method "random".

    Parameters
    ----------
    partition : Partition
    picks : Picks
    shuffle : Shuffle, optional
        What is drawn for it is drawn when it is first needed.
    first_id : int
        Samples in the streams before.
    """

    partition: Partition
    picks: Picks
    shuffle: Shuffle | None
    first_id: int = 0

    def __post_init__(self) -> None:
        if self.shuffle is not None:
            self.shuffle.check(self.picks.size, int(self.picks.sizes.max()))

    @property
    def batches(self) -> int:
        return self.partition.batches

    @property
    def stride(self) -> int:
        return (self.order.stride if self.order else SPACING) * self.partition.lanes

    @functools.cached_property
    def order(self) -> Order | None:
        return self.shuffle.order(self.picks.units) if self.shuffle else None

    def ids(self, slots: Int64) -> Int64:
        ids = self.partition.positions(slots)
        read = ids >= 0
        numbers = ids[read]
        if self.order is not None:
            lanes = lane_bounds(self.partition.size, self.partition.lanes)
            numbers = gather(self.order, lanes, numbers)
        ids[read] = self.picks.ids(numbers) + self.first_id
        return ids


@dataclass(frozen=True, slots=True)
class PerStream:
    """Global batches of one stream each, in random order.

    ``origins`` has the stream of each batch.
    """

    streams: list[Samples]
    batch_size: int
    origins: Int64

    @classmethod
    def drawn(cls, streams: list[Samples], batch_size: int, seed: int) -> PerStream:
        """Draw the order of the streams' full batches; `batch_size` is that of all ranks."""
        full = [s.partition.samples // s.partition.batch_size for s in streams]
        if not any(full):
            raise ValueError(f"no stream has the {batch_size} samples of a global batch")
        origins = np.arange(len(streams)).repeat(full)
        np.random.default_rng(seed).shuffle(origins)
        return cls(streams, batch_size, origins)

    @property
    def batches(self) -> int:
        return len(self.origins)

    @property
    def stride(self) -> int:
        return sum(stream.stride for stream in self.streams)

    def ids(self, slots: Int64) -> Int64:
        batch, within = np.divmod(slots, self.batch_size)
        streams = self.origins[batch]
        nth = _occurrence(self.origins)[batch]
        return _of_streams(self.streams, streams, nth * self.batch_size + within)


@dataclass(frozen=True, slots=True)
class PerDevice:
    """Batches of each rank of one stream each, in an order that is drawn for each node.

    ``origins`` has, for each node, the stream of each batch of its ranks, and -1 where one has
    fewer.
    """

    streams: list[Samples]
    world: World
    batch_size: int
    origins: Int64

    @classmethod
    def drawn(
        cls, streams: list[Samples], world: World, batch_size: int, seed: int
    ) -> PerDevice:
        """Draw the orders of the streams' full batches of a rank."""
        partitions = [stream.partition for stream in streams]
        ranks = world.ranks_per_node
        full = [p.samples * (p.lanes // world.nodes) * ranks // batch_size for p in partitions]
        origins = np.full((world.nodes, -(-sum(full) // ranks) * ranks), -1)
        rng = np.random.default_rng(seed)
        for node in range(world.nodes):
            own = np.arange(len(streams)).repeat(full)
            rng.shuffle(own)
            origins[node, : len(own)] = own
        return cls(streams, world, batch_size, origins)

    @property
    def batches(self) -> int:
        return self.origins.shape[1] // self.world.ranks_per_node

    @property
    def stride(self) -> int:
        return sum(stream.stride for stream in self.streams)

    def ids(self, slots: Int64) -> Int64:
        ranks, nodes = self.world.ranks_per_node, self.world.nodes
        # Streaming deals the batches out in this way: those of a node's lanes go to all nodes.
        batch, place = np.divmod(slots, self.batch_size)
        batch, node = np.divmod(batch, nodes)
        nth = np.stack([_occurrence(own) for own in self.origins])[node, batch]
        # Streams are partitioned as if every lane had a node: this one's are successive.
        rest, rank = np.divmod(nth * self.batch_size + place, ranks)
        lanes = self.streams[0].partition.lanes // nodes
        sample, lane = np.divmod(rest, lanes)
        slots = ((sample * nodes + node) * lanes + lane) * ranks + rank
        return _of_streams(self.streams, self.origins[node, batch], slots)


@dataclass(frozen=True, slots=True)
class Stratified:
    """Global batches that hold so much of each stream; ``parts`` says how much."""

    streams: list[Samples]
    parts: Int64

    @classmethod
    def divided(
        cls, streams: list[Samples], batch_size: int, proportions: NDArray[np.float64]
    ) -> Stratified:
        """Divide the global batch into the streams' proportions."""
        exact = proportions * batch_size
        parts = exact.astype(np.int64)
        most = np.argsort(exact - parts)[::-1]
        parts[most[: batch_size - parts.sum()]] += 1
        if not parts.all():
            raise ValueError(
                f"stream {parts.argmin()} has less than a sample in a global batch of "
                f"{batch_size}: use a larger batch, or give it a larger weight"
            )
        return cls(streams, parts)

    @property
    def batches(self) -> int:
        full = [
            stream.partition.samples * stream.partition.world.ranks // part
            for stream, part in zip(self.streams, self.parts.tolist(), strict=True)
        ]
        return min(full)

    @property
    def stride(self) -> int:
        return sum(stream.stride for stream in self.streams)

    def ids(self, slots: Int64) -> Int64:
        batch, within = np.divmod(slots, self.parts.sum())
        ends = self.parts.cumsum()
        streams = ends.searchsorted(within, "right")
        nth = within - (ends - self.parts)[streams]
        return _of_streams(self.streams, streams, batch * self.parts[streams] + nth)


def _occurrence(origins: Int64) -> Int64:
    """Return how often each value came before."""
    nth = np.empty_like(origins)
    for stream in np.unique(origins):
        own = origins == stream
        nth[own] = np.arange(own.sum())
    return nth


def _of_streams(streams: list[Samples], numbers: Int64, slots: Int64) -> Int64:
    """Return the ids in slots of streams of given numbers."""
    ids = np.full(slots.shape, -1)
    for number, stream in enumerate(streams):
        own = numbers == number
        ids[own] = stream.ids(slots[own])
    return ids
