"""Provide Streaming's orders, bit for bit, so that runs can resume from Streaming's checkpoints.

`StreamingOrder` holds the settings that an order depends on, under Streaming's names. Without
"naive", an epoch needs memory for its shards, not for its samples: a rank's samples are computed
when they are read. Before that, one pass over the random numbers of the epoch keeps snapshots of
the generator. "naive" keeps a table of all samples.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import Int64
from npstream.orders.streaming.batching import (
    BATCHING_METHODS,
    Batching,
    PerDevice,
    PerStream,
    Samples,
    Stratified,
    StreamError,
)
from npstream.orders.streaming.partition import (
    PARTITION_ALGORITHMS,
    StreamingPartition,
    World,
    is_relaxed,
    make_partition,
    max_sample_in_epoch,
)
from npstream.orders.streaming.sampling import SAMPLING_METHODS, Picks, Weight, samples_per_stream
from npstream.orders.streaming.shuffle import SHUFFLE_ALGORITHMS, EpochShuffle

MAX_IDS = 1 << 21
"""Maximum number of ids that are computed together while a rank reads an epoch."""

STATE_KEYS = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed")
"""The keys of every state of Streaming; newer states also have ``initial_physical_nodes``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamingOrder:
    """The settings of Streaming that the order of samples depends on.

    Parameters
    ----------
    shards : sequence of ndarray
        For each stream, the number of samples of each shard. Sample ids are consecutive
        numbers over all streams, in this order.
    weights : sequence of Weight, optional
        The weight of each stream; by default an epoch takes each sample once.
    batch_size : int
        Samples of one rank in a batch.
    epoch_size, partition_algo, num_canonical_nodes, initial_physical_nodes : optional
    shuffle, shuffle_algo, shuffle_seed, shuffle_block_size : optional
    sampling_method, sampling_granularity, batching_method : optional
        As in Streaming, with its defaults. `StreamingShuffle` describes them, except two:
        `epoch_size` is the number of samples in an epoch, and `shuffle` turns the shuffle on.

    Examples
    --------
    >>> order = StreamingOrder(shards=[np.array([3, 4, 3])], batch_size=2, shuffle=True)
    >>> epoch = order.epoch(0, World(nodes=1, ranks_per_node=2))
    >>> epoch.ids(node=0, rank=1, batches=range(epoch.batches))
    array([[ 9,  3],
           [ 4,  6],
           [ 7, -1]])
    """

    shards: Sequence[Int64]
    weights: Sequence[Weight] = ()
    batch_size: int
    epoch_size: int | None = None
    partition_algo: str = "relaxed"
    num_canonical_nodes: int | None = None
    initial_physical_nodes: int | None = None
    shuffle: bool = False
    shuffle_algo: str = "py1e"
    shuffle_seed: int = 9176
    shuffle_block_size: int | None = None
    sampling_method: str = "balanced"
    sampling_granularity: int = 1
    batching_method: str = "random"

    def __post_init__(self) -> None:
        choices = {
            "partition_algo": PARTITION_ALGORITHMS,
            "shuffle_algo": SHUFFLE_ALGORITHMS,
            "sampling_method": SAMPLING_METHODS,
            "batching_method": BATCHING_METHODS,
        }
        for name, valid in choices.items():
            if (value := getattr(self, name)) not in valid:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(valid)}")
        minimums = {
            **dict.fromkeys(("batch_size", "epoch_size", "sampling_granularity"), 1),
            **dict.fromkeys(("num_canonical_nodes", "initial_physical_nodes"), 1),
            **{"shuffle_block_size": 1, "shuffle_seed": 0},
        }
        for name, minimum in minimums.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ValueError(f"{name}={value}: expected at least {minimum}")
        if self.weights and len(self.weights) != len(self.shards):
            raise ValueError(
                f"{quantity(len(self.weights), 'weight')} for "
                f"{quantity(len(self.shards), 'stream')}"
            )

    def lanes(self, world: World) -> int:
        """Return `num_canonical_nodes`, or Streaming's default.

        Here and in the other methods, ranks that read the same samples count as one rank; see
        `World.merge_replicas`.
        """
        if self.num_canonical_nodes is not None:
            return self.num_canonical_nodes
        return world.nodes * (64 if self.shuffle_algo in ("py1s", "py2s") else 1)

    def block_size(self, world: World) -> int:
        """Return `shuffle_block_size`, or Streaming's default."""
        if self.shuffle_block_size is not None:
            return self.shuffle_block_size
        return max(4_000_000 // self.lanes(world), 1 << 18)

    def is_relaxed(self, world: World) -> bool:
        """Return True if the partition is made for `initial_physical_nodes` nodes.

        The nodes of `world` then divide each global batch of this partition.
        """
        initial = self.initial_physical_nodes
        return is_relaxed(self.partition_algo, self.lanes(world), world, initial)

    def epoch(self, number: int, world: World, sample_in_epoch: int = 0) -> Epoch:
        """Return an epoch, or the rest of it after `sample_in_epoch` samples.

        Raise ValueError if the settings allow no such epoch, before any random number is drawn.
        """
        if number < 0:
            raise ValueError(f"epochs are numbered from 0, not {number}")
        stream_samples, proportions = self.stream_samples()
        if self.batching_method == "random":
            picks = self._picks(number, self.shards, stream_samples)
            partition = self._partition(picks.size, world, world, self.batch_size, sample_in_epoch)
            samples = Samples(partition, picks, self._shuffle(number, world, picks))
            return Epoch(world, self.batch_size, samples)

        global_batch = world.ranks * self.batch_size
        batches, remainder = divmod(sample_in_epoch, global_batch)
        if remainder:
            warnings.warn(
                f"sample_in_epoch={sample_in_epoch} is not a multiple of the global batch of "
                f"{quantity(global_batch, 'sample')}: {quantity(remainder, 'sample')} will be "
                "read again",
                stacklevel=2,
            )
        batching = self._batching(number, world, stream_samples, proportions)
        return Epoch(world, self.batch_size, batching, batches)

    def resume(self, state: Mapping[str, int], world: World) -> tuple[StreamingOrder, int, int]:
        """Resume from a state that Streaming's ``state_dict`` returned.

        Returns
        -------
        order : StreamingOrder
            This order with the seed, the canonical nodes and the initial nodes of the state.
        epoch, sample_in_epoch : int
            The arguments of `epoch` to continue.

        Examples
        --------
        >>> order = StreamingOrder(shards=[np.array([3, 4, 3])], batch_size=2, shuffle=True)
        >>> state = {"epoch": 3, "sample_in_epoch": 4, "num_canonical_nodes": 1,
        ...          "shuffle_seed": 17, "initial_physical_nodes": 1}
        >>> world = World(nodes=1, ranks_per_node=1)
        >>> order, number, sample_in_epoch = order.resume(state, world)
        >>> order.epoch(number, world, sample_in_epoch).ids(0, 0, range(3))
        array([[8, 7],
               [4, 2],
               [6, 1]])
        """
        missing = [name for name in STATE_KEYS if name not in state]
        if missing:
            raise ValueError(f"this is not a state of Streaming: {', '.join(missing)} missing")
        number, sample_in_epoch, lanes, seed = (int(state[name]) for name in STATE_KEYS)
        if number < 0:  # a state from before the first epoch
            return self, 0, 0
        order = dataclasses.replace(
            self,
            num_canonical_nodes=lanes,
            shuffle_seed=seed,
            initial_physical_nodes=state.get("initial_physical_nodes"),
        )
        if self.batching_method != "random":
            # Streaming skips the global batches before `sample_in_epoch`, even if these are all
            # batches of the epoch.
            return order, number, sample_in_epoch
        stream_samples, _ = order.stream_samples()
        size = sum(stream_samples)
        # sample_in_epoch includes samples that are repeated to fill up lanes and ranks. So a state
        # from the end of an epoch can exceed the maximum that Streaming accepts. Resume such a
        # state at the start of the next epoch.
        max_repeated = lanes + 2 * world.ranks * self.batch_size
        if max_sample_in_epoch(size, world) < sample_in_epoch <= size + max_repeated:
            return order, number + 1, 0
        return order, number, sample_in_epoch

    def state(self, world: World, epoch: int = -1, sample_in_epoch: int = 0) -> dict[str, int]:
        """Return a state for Streaming; by default the state before the first epoch.

        `sample_in_epoch` is the number of samples that one rank has read in the epoch, times the
        number of ranks. It includes the samples before the epoch was resumed.
        """
        return {
            "epoch": epoch,
            "sample_in_epoch": sample_in_epoch,
            "num_canonical_nodes": self.lanes(world),
            "shuffle_seed": self.shuffle_seed,
            "initial_physical_nodes": self.initial_physical_nodes or world.nodes,
        }

    def stream_samples(self) -> tuple[list[int], list[float]]:
        """Return the samples that an epoch takes of each stream, and their proportions."""
        sizes = np.array([int(np.sum(shards)) for shards in self.shards])
        weights = self.weights or [Weight()] * len(sizes)
        stream_samples, proportions = samples_per_stream(
            weights, sizes, self.epoch_size, self.shuffle_seed
        )
        return stream_samples.tolist(), proportions.tolist()

    def _seed(self, number: int) -> int:
        """Return the seed with which an epoch draws shards and the order of batches."""
        is_new_each_epoch = self.shuffle and self.sampling_method == "balanced"
        return self.shuffle_seed + (number if is_new_each_epoch else 0)

    def _picks(self, number: int, shards: Sequence[Int64], stream_samples: list[int]) -> Picks:
        """Return the samples that an epoch takes of the streams with these shards."""
        sample_seed = self.shuffle_seed + (number if self.sampling_method == "balanced" else 0)
        arrays = [np.asarray(sizes, np.int64) for sizes in shards]
        shard_seed, granularity = self._seed(number), self.sampling_granularity
        return Picks(arrays, stream_samples, granularity, shard_seed, sample_seed)

    def _partition(
        self, size: int, world: World, partition_world: World, batch_size: int, drop_first: int = 0
    ) -> StreamingPartition:
        """Return a partition among `partition_world`, with the lanes of `world`."""
        initial = self.initial_physical_nodes
        return make_partition(
            self.partition_algo,
            size,
            self.lanes(world),
            partition_world,
            batch_size,
            drop_first,
            initial,
        )

    def _shuffle(
        self, number: int, world: World, picks: Picks, proportion: float = 1
    ) -> EpochShuffle | None:
        """Return the shuffle of a stream that is `proportion` of an epoch; None without shuffle."""
        if not self.shuffle:
            return None
        block_size = int(self.block_size(world) * proportion)
        shuffle = EpochShuffle(
            self.shuffle_algo, self.lanes(world), self.shuffle_seed, number, block_size
        )
        shuffle.check(picks.size, int(picks.sizes.max()))
        return shuffle

    def _batching(
        self, number: int, world: World, stream_samples: list[int], proportions: list[float]
    ) -> Batching:
        """Combine the streams, each with its own partition and shuffle."""
        method, batch_size, lanes = self.batching_method, self.batch_size, self.lanes(world)
        if not all(stream_samples):
            raise StreamError(
                stream_samples.index(0),
                f"an epoch takes no sample of stream {stream_samples.index(0)}, and "
                f"batching_method={method!r} makes batches of each stream: take some of its "
                "samples, or leave the stream out",
            )
        if method == "device_per_stream" and lanes % world.nodes:
            raise ValueError(
                f"num_canonical_nodes={lanes} and {quantity(world.nodes, 'node')}: {method} needs "
                "a multiple"
            )
        partition_world, partition_batch = {
            "per_stream": (world, batch_size),
            "stratified": (World(1, world.ranks_per_node), 1),
            "device_per_stream": (World(lanes, world.ranks_per_node), 1),
        }[method]
        streams, first_id = [], 0
        if method == "device_per_stream" and self.shuffle:
            self._require_blocks(world, proportions)
        for shards, choose, proportion in zip(
            self.shards, stream_samples, proportions, strict=True
        ):
            picks = self._picks(number, [shards], [choose])
            partition = self._partition(choose, world, partition_world, partition_batch)
            shuffle = self._shuffle(number, world, picks, proportion)
            streams.append(Samples(partition, picks, shuffle, first_id))
            first_id += int(picks.sizes.sum())
        if method == "stratified":
            return Stratified.divide(streams, world.ranks * batch_size, np.array(proportions))
        if method == "per_stream":
            return PerStream.draw(streams, world.ranks * batch_size, self._seed(number))
        return PerDevice.draw(streams, world, batch_size, self._seed(number))

    def _require_blocks(self, world: World, proportions: list[float]) -> None:
        """Raise StreamError if a stream's part of a shuffle block is rounded to 0 samples.

        Streaming has this rule only for "device_per_stream", and there for every algorithm.
        """
        block_size = self.block_size(world)
        for stream, proportion in enumerate(proportions):
            if int(block_size * proportion) == 0:
                raise StreamError(
                    stream,
                    f"stream {stream} is {proportion:.3g} of an epoch, so its part of "
                    f"shuffle_block_size={block_size} is rounded to 0 samples: give "
                    f"shuffle_block_size={math.ceil(1 / proportion)} or more, or give the stream "
                    "a larger weight",
                )


@dataclass(frozen=True, eq=False)
class Epoch:
    """The samples of an epoch, or of the rest of it; see `StreamingOrder.epoch`.

    The batches of a rank are numbered. DataLoader workers take them in turn, so a rank's samples do
    not depend on its number of workers.

    Parameters
    ----------
    world : World
        The nodes and ranks that share the epoch.
    batch_size : int
        Samples of one rank in a batch.
    batching : Batching
        The samples in the slots of the epoch. `npstream.orders.streaming.partition` defines slots.
    first_batch : int, default: 0
        Number of batches in `batching` that are skipped at the start.
    """

    world: World
    batch_size: int
    batching: Batching
    first_batch: int = 0

    @property
    def batches(self) -> int:
        """Number of batches of each rank; the last may be empty on some ranks."""
        return max(self.batching.batches - self.first_batch, 0)

    @property
    def full_batches(self) -> int:
        """Number of batches of each rank that are full on every rank."""
        global_batch = self.world.ranks * self.batch_size
        first_slot = (self.batches + self.first_batch - 1) * global_batch
        last_slots = np.arange(first_slot, first_slot + global_batch)
        is_full = self.batches and self.batching.is_filled(last_slots).all()
        return self.batches if is_full else max(self.batches - 1, 0)

    def ids(self, node: int, rank: int, batches: range) -> Int64:
        """Return the ids of the samples in a rank's batches; -1 fills up the last batch.

        Parameters
        ----------
        node, rank : int
            The number of the node, and the number of the rank on this node.
        batches : range
            Numbers of batches.
        """
        first = np.arange(batches.start, batches.stop, batches.step) * self.batch_size
        slots = np.add.outer(self._slots(node, rank, first), np.arange(self.batch_size))
        return self.batching.ids(slots.reshape(-1)).reshape(slots.shape)

    def samples(self, node: int, rank: int, numbers: Int64) -> Int64:
        """Return the ids of a rank's samples by their numbers in its sequence of batches.

        The id is -1 for a number without a sample, in the last batch.
        """
        return self.batching.ids(self._slots(node, rank, numbers))

    def count(self, node: int, rank: int) -> int:
        """Return the number of a rank's samples; only the last batch may be short."""
        full_samples = max(self.batches - 1, 0) * self.batch_size
        numbers = np.arange(full_samples, self.batches * self.batch_size)  # of the last batch
        return full_samples + int(self.batching.is_filled(self._slots(node, rank, numbers)).sum())

    def lookup_batches(self, step: int = 1) -> int:
        """Return how many batches to compute together, if a worker reads every `step`-th one."""
        batches = self.batching.lookup_size // (self.world.ranks * self.batch_size * step)
        return max(1, min(batches, MAX_IDS // self.batch_size))

    def read(self, node: int, rank: int, batches: range) -> Iterator[Int64]:
        """Yield the ids of each of a rank's batches; many batches are computed together."""
        step = self.lookup_batches(batches.step)
        for start in range(0, len(batches), step):
            ids = self.ids(node, rank, batches[start : start + step])
            if (ids >= 0).all():
                yield from ids
                continue
            for batch in ids:
                if len(batch_ids := batch[batch >= 0]):
                    yield batch_ids

    def _slots(self, node: int, rank: int, numbers: Int64) -> Int64:
        """Return the slots of a rank's samples by their numbers."""
        batch, offset = np.divmod(numbers, self.batch_size)
        batch = ((batch + self.first_batch) * self.world.nodes + node) * self.world.ranks_per_node
        return (batch + rank) * self.batch_size + offset
