"""Provide Streaming's batching methods: how batches are made of the samples of streams.

- "random" shuffles and partitions the samples of all streams together.
- The other methods shuffle and partition each stream separately. Samples that do not fill a batch
  are left out.

  - "per_stream": each global batch is of one stream.
  - "device_per_stream": each batch of a rank is of one stream.
  - "stratified": each global batch has a fixed number of samples of every stream.

A *slot* is the number of a place in the batches of an epoch; it holds a sample or is empty. See
`npstream.orders.streaming.partition`.

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
from npstream.orders.streaming.runs import SPACING, CachedOrder

if TYPE_CHECKING:
    from npstream.orders.streaming.partition import StreamingPartition, World
    from npstream.orders.streaming.sampling import Picks
    from npstream.orders.streaming.shuffle import EpochShuffle

BATCHING_METHODS = ("random", "stratified", "per_stream", "device_per_stream")


class StreamError(ValueError):
    """Raised if no batch can be made of a stream; `stream` is its number."""

    def __init__(self, stream: int, message: str) -> None:
        super().__init__(message)
        self.stream = stream


class Batching(Protocol):
    """The samples in the slots of an epoch."""

    @property
    def batches(self) -> int:
        """Number of global batches."""

    @property
    def lookup_size(self) -> int:
        """Number of slots to compute together."""

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots, or -1 for empty slots."""

    def is_filled(self, slots: Int64) -> Bools:
        """Return True for slots that hold samples."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one stream, or of all streams as one stream: the method "random".

    Parameters
    ----------
    partition : StreamingPartition
    picks : Picks
    shuffle : EpochShuffle, optional
    first_id : int
        Number of samples in the previous streams, by default 0.
    """

    partition: StreamingPartition
    picks: Picks
    shuffle: EpochShuffle | None
    first_id: int = 0

    @property
    def batches(self) -> int:
        """Number of global batches."""
        return self.partition.batches

    @property
    def lookup_size(self) -> int:
        """Number of slots to compute together."""
        # Without a shuffle, any number is efficient.
        return (self.order.lookup_size if self.order else SPACING) * self.partition.lanes

    @functools.cached_property
    def order(self) -> CachedOrder | None:
        """The shuffled order; its random numbers are drawn on first use."""
        if self.shuffle is None:
            return None
        lanes = lane_bounds(self.partition.size, self.partition.lanes)
        return CachedOrder(self.shuffle.order(self.picks.units), lanes)

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots, or -1 for empty slots."""
        positions = self.partition.positions(slots)
        is_filled = positions >= 0
        if not is_filled.all():
            positions[is_filled] = self._ids(positions[is_filled])
            return positions
        return self._ids(positions)

    def is_filled(self, slots: Int64) -> Bools:
        """Return True for slots that hold samples."""
        return self.partition.positions(slots) >= 0

    def _ids(self, positions: Int64) -> Int64:
        if self.order is None:
            return self.picks.ids(positions) + self.first_id
        ids = self.order.at(positions)
        ids += self.first_id
        return ids


@dataclass(frozen=True, eq=False)
class _CombinedStreams:
    """Several streams, each with its own partition."""

    streams: list[Samples]

    @property
    def lookup_size(self) -> int:
        """Number of slots to compute together."""
        return sum(stream.lookup_size for stream in self.streams)

    def is_filled(self, slots: Int64) -> Bools:
        """Return True for all slots: samples that do not fill a batch are left out."""
        return np.ones(slots.shape, bool)

    def stream_ids(self, numbers: Int64, slots: Int64) -> Int64:
        """Return the ids of the samples in slots.

        Slot k is a slot of stream ``numbers[k]``. If this number is negative, the id is -1.
        """
        ids = np.full(slots.shape, -1)
        # `group_positions` sorts: NumPy sorts 16-bit integers in linear time.
        keys: AnyArray = numbers.astype(np.int16) if len(self.streams) < 1 << 15 else numbers
        for number, indices in group_positions(keys):
            if number >= 0:
                ids[indices] = self.streams[number].ids(slots[indices])
        return ids


@dataclass(frozen=True, eq=False)
class Stratified(_CombinedStreams):
    """Global batches with ``parts[i]`` samples of stream i."""

    parts: Int64
    batches: int

    @classmethod
    def divide(
        cls, streams: list[Samples], batch_size: int, proportions: NDArray[np.float64]
    ) -> Stratified:
        """Divide a global batch of `batch_size` samples in the proportions of the streams."""
        exact = proportions * batch_size
        parts = exact.astype(np.int64)
        parts[np.argsort(exact - parts)[::-1][: batch_size - parts.sum()]] += 1
        if not parts.all():
            stream = int(parts.argmin())
            raise StreamError(
                stream,
                f"a global batch of {quantity(batch_size, 'sample')} holds no sample of stream "
                f"{stream}: use a larger batch, or give the stream a larger weight",
            )
        partitions = [stream.partition for stream in streams]
        sizes = np.array([each.samples * each.world.ranks for each in partitions])
        _require_batches(streams, (sizes // parts).tolist(), "its share of a global batch")
        return cls(streams, parts, int((sizes // parts).min()))

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots."""
        batch, offset = np.divmod(slots, self.parts.sum())
        ends = self.parts.cumsum()
        numbers = ends.searchsorted(offset, "right")
        offset -= (ends - self.parts)[numbers]
        return self.stream_ids(numbers, batch * self.parts[numbers] + offset)


@dataclass(frozen=True, eq=False)
class PerStream(_CombinedStreams):
    """Global batches of one stream each, in random order.

    Parameters
    ----------
    streams : list of Samples
    batch_size : int
        Samples in a global batch.
    batch_streams, index_in_stream : ndarray
        The stream of each batch, and the batch's number among those of its stream.
    """

    batch_size: int
    batch_streams: Int64
    index_in_stream: Int64

    @classmethod
    def draw(cls, streams: list[Samples], batch_size: int, seed: int) -> PerStream:
        """Draw the order of the full batches of all streams."""
        counts = [each.partition.samples // each.partition.batch_size for each in streams]
        _require_batches(streams, counts, f"a global batch of {quantity(batch_size, 'sample')}")
        batch_streams = _shuffle_counts(counts, np.random.default_rng(seed))
        return cls(streams, batch_size, batch_streams, _count_earlier(batch_streams))

    @property
    def batches(self) -> int:
        """Number of global batches."""
        return len(self.batch_streams)

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots."""
        batch, offset = np.divmod(slots, self.batch_size)
        return self.stream_ids(
            self.batch_streams[batch], self.index_in_stream[batch] * self.batch_size + offset
        )


@dataclass(frozen=True, eq=False)
class PerDevice(_CombinedStreams):
    """Batches of single ranks, each of one stream. Each node has its own random order of batches.

    Parameters
    ----------
    streams : list of Samples
        Streams whose partitions have one node for each lane, and a batch size of 1.
    world : World
    batch_size : int
        Samples of one rank in a batch.
    batch_streams, index_in_stream : ndarray
        For each node, the stream of each batch of its lanes, and the batch's number among those
        of its stream. The stream is -1 for missing batches of an incomplete last global batch.
    """

    world: World
    batch_size: int
    batch_streams: Int64
    index_in_stream: Int64

    @classmethod
    def draw(cls, streams: list[Samples], world: World, batch_size: int, seed: int) -> PerDevice:
        """Draw the order of the full batches of all streams, for each node."""
        node_lanes, ranks = streams[0].partition.lanes // world.nodes, world.ranks_per_node
        counts = [each.partition.samples * node_lanes * ranks // batch_size for each in streams]
        _require_batches(
            streams, counts, f"a rank's batch of {quantity(batch_size, 'sample')} on each node"
        )
        batch_streams = np.full((world.nodes, -(-sum(counts) // ranks) * ranks), -1)
        rng = np.random.default_rng(seed)
        for node_streams in batch_streams:
            node_streams[: sum(counts)] = _shuffle_counts(counts, rng)
        index_in_stream = np.stack([_count_earlier(row) for row in batch_streams])
        return cls(streams, world, batch_size, batch_streams, index_in_stream)

    @property
    def batches(self) -> int:
        """Number of global batches."""
        return int(self.batch_streams.shape[1]) // self.world.ranks_per_node

    def ids(self, slots: Int64) -> Int64:
        """Return the ids of the samples in slots, or -1 for empty slots."""
        nodes, ranks = self.world.nodes, self.world.ranks_per_node
        batch, offset = np.divmod(slots, self.batch_size)
        batch, node = self._node_batches(batch)
        # Convert to slots of the streams' partitions, in which each lane is a node.
        node_lanes = self.streams[0].partition.lanes // nodes
        index = self.index_in_stream[node, batch] * self.batch_size + offset
        rank_sample, rank = np.divmod(index, ranks)
        sample, lane = np.divmod(rank_sample, node_lanes)
        stream_slots = ((sample * nodes + node) * node_lanes + lane) * ranks + rank
        return self.stream_ids(self.batch_streams[node, batch], stream_slots)

    def is_filled(self, slots: Int64) -> Bools:
        """Return True for slots that hold samples; slots of the last global batch may be empty."""
        batch, node = self._node_batches(slots // self.batch_size)
        is_filled: Bools = self.batch_streams[node, batch] >= 0
        return is_filled

    def _node_batches(self, batches: Int64) -> tuple[Int64, Int64]:
        """Return the number of each batch in its node's order, and the node."""
        # Streaming assigns batches to all nodes in turn, not to the ranks of the node that owns the
        # lanes.
        batch, node = np.divmod(batches, self.world.nodes)
        return batch, node


def _require_batches(streams: list[Samples], counts: list[int], batch_text: str) -> None:
    """Raise StreamError if a stream fills no batch: an epoch would contain none of its samples.

    `counts` are the numbers of full batches. `batch_text` describes a batch in the message.
    """
    for number, (stream, count) in enumerate(zip(streams, counts, strict=True)):
        if not count:
            raise StreamError(
                number,
                f"stream {number} has {quantity(stream.partition.size, 'sample')} in an epoch, "
                f"too few to fill {batch_text}, so none would be read: use smaller batches, take "
                "more samples of the stream, or leave the stream out",
            )


def _shuffle_counts(counts: list[int], rng: np.random.Generator) -> Int64:
    """Return an array with ``counts[i]`` times the number i, in random order."""
    numbers = np.arange(len(counts)).repeat(counts)
    rng.shuffle(numbers)
    return numbers


def _count_earlier(numbers: Int64) -> Int64:
    """Return, for each number, how often the same number occurs before it."""
    counts = np.empty_like(numbers)
    for number in np.unique(numbers):
        is_number = numbers == number
        counts[is_number] = np.arange(is_number.sum())
    return counts
