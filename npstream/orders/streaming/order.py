"""Streaming's own orders, bit for bit, so that a run can go on here from its checkpoint.

`StreamingOrder` holds the settings of a run that its order depends on, under Streaming's names.
An epoch takes memory for its shards, not for its samples: what a rank reads is computed when it
is read, after one pass over the random numbers that are drawn before.
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
    METHODS,
    Batching,
    PerDevice,
    PerStream,
    Samples,
    Stratified,
    StreamError,
)
from npstream.orders.streaming.partition import (
    PARTITIONS,
    StreamingPartition,
    World,
    is_relaxed,
    make_partition,
    most_read,
)
from npstream.orders.streaming.sampling import SAMPLINGS, Picks, Weight, chosen
from npstream.orders.streaming.shuffle import ALGORITHMS, EpochShuffle

MOST_IDS = 1 << 21
"""Ids that are computed at once, at most, while a rank's epoch is read."""

STATE = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed")
"""What is in every state of Streaming; new ones also have ``initial_physical_nodes``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamingOrder:
    """The settings of Streaming that the order of samples depends on.

    Parameters
    ----------
    shards : sequence of ndarray
        For each stream, the samples of each shard. Ids count samples through all streams.
    weights : sequence of Weight, optional
        How much an epoch takes of each stream: by default, each sample once.
    batch_size : int
        Samples of one rank in a batch.
    epoch_size, partition_algo, num_canonical_nodes, initial_physical_nodes : optional
    shuffle, shuffle_algo, shuffle_seed, shuffle_block_size : optional
    sampling_method, sampling_granularity, batching_method : optional
        As in Streaming, with its defaults.

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
            "partition_algo": PARTITIONS,
            "shuffle_algo": ALGORITHMS,
            "sampling_method": SAMPLINGS,
            "batching_method": METHODS,
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
        least = dict.fromkeys(("batch_size", "epoch_size", "sampling_granularity"), 1)
        least |= dict.fromkeys(("num_canonical_nodes", "initial_physical_nodes"), 1)
        for name, bound in (least | {"shuffle_block_size": 1, "shuffle_seed": 0}).items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise ValueError(f"{name}={value}: expected at least {bound}")
        if self.weights and len(self.weights) != len(self.shards):
            raise ValueError(
                f"{quantity(len(self.weights), 'weight')} for "
                f"{quantity(len(self.shards), 'stream')}"
            )

    def lanes(self, world: World) -> int:
        """Return `num_canonical_nodes`, or Streaming's default.

        Here and below, ranks that see the same samples count as one; see `World.replicated`.
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
        """Tell whether ranks get parts of batches that were made for other nodes."""
        initial = self.initial_physical_nodes
        return is_relaxed(self.partition_algo, self.lanes(world), world, initial)

    def epoch(self, number: int, world: World, sample_in_epoch: int = 0) -> Epoch:
        """Return an epoch, or what is left of it after so many samples.

        ValueError is raised where there is none, before anything is drawn for it.
        """
        if number < 0:
            raise ValueError(f"epochs are numbered from 0, not {number}")
        taken, proportions = self.taken()
        if self.batching_method == "random":
            picks = self._picks(number, self.shards, taken)
            partition = self._partition(picks.size, world, world, self.batch_size, sample_in_epoch)
            samples = Samples(partition, picks, self._shuffle(number, world, picks))
            return Epoch(world, self.batch_size, samples)

        global_batch = world.ranks * self.batch_size
        batches, rest = divmod(sample_in_epoch, global_batch)
        if rest:
            warnings.warn(
                f"sample_in_epoch={sample_in_epoch} is no multiple of the global batch of "
                f"{quantity(global_batch, 'sample')}: {rest} of them are read again",
                stacklevel=2,
            )
        batching = self._batching(number, world, taken, proportions)
        return Epoch(world, self.batch_size, batching, batches)

    def resume(self, state: Mapping[str, int], world: World) -> tuple[StreamingOrder, int, int]:
        """Take over from the state of a run of Streaming, which its ``state_dict`` returned.

        Returns
        -------
        order : StreamingOrder
            With the seed, the canonical nodes and the initial nodes of that run.
        epoch, sample_in_epoch : int
            Where it goes on: what to pass to `epoch`.

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
        missing = [name for name in STATE if name not in state]
        if missing:
            raise ValueError(f"this is no state of Streaming: it has no {', '.join(missing)}")
        number, sample_in_epoch, lanes, seed = (int(state[name]) for name in STATE)
        if number < 0:  # from before the first epoch
            return self, 0, 0
        order = dataclasses.replace(
            self,
            num_canonical_nodes=lanes,
            shuffle_seed=seed,
            initial_physical_nodes=state.get("initial_physical_nodes"),
        )
        if self.batching_method != "random":
            # Streaming leaves out as many global batches, however many there are: maybe all.
            return order, number, sample_in_epoch
        taken, _ = order.taken()
        size = sum(taken)
        # Samples are repeated to fill lanes and ranks up. They count, and then Streaming refuses
        # the state in which its own run ended an epoch.
        repeated = lanes + 2 * world.ranks * self.batch_size
        if most_read(size, world) < sample_in_epoch <= size + repeated:
            return order, number + 1, 0
        return order, number, sample_in_epoch

    def state(self, world: World, epoch: int = -1, sample_in_epoch: int = 0) -> dict[str, int]:
        """Return the state from which Streaming resumes, by default that before the first epoch.

        `sample_in_epoch` are the samples that a rank has read of the epoch, times the ranks; and
        those before, if the epoch was resumed.
        """
        return {
            "epoch": epoch,
            "sample_in_epoch": sample_in_epoch,
            "num_canonical_nodes": self.lanes(world),
            "shuffle_seed": self.shuffle_seed,
            "initial_physical_nodes": self.initial_physical_nodes or world.nodes,
        }

    def taken(self) -> tuple[list[int], list[float]]:
        """Return how many samples an epoch takes of each stream, and their proportions."""
        sizes = np.array([int(np.sum(shards)) for shards in self.shards])
        weights = self.weights or [Weight()] * len(sizes)
        taken, proportions = chosen(weights, sizes, self.epoch_size, self.shuffle_seed)
        return taken.tolist(), proportions.tolist()

    def _seed(self, number: int) -> int:
        """Return the seed of what is drawn for an epoch of streams, rather than of samples."""
        anew = self.shuffle and self.sampling_method == "balanced"
        return self.shuffle_seed + (number if anew else 0)

    def _picks(self, number: int, shards: Sequence[Int64], taken: list[int]) -> Picks:
        """Return the samples that an epoch takes of streams."""
        seed = self.shuffle_seed + (number if self.sampling_method == "balanced" else 0)
        arrays = [np.asarray(sizes, np.int64) for sizes in shards]
        return Picks(arrays, taken, self.sampling_granularity, self._seed(number), seed)

    def _partition(
        self, size: int, world: World, dealt: World, batch_size: int, drop_first: int = 0
    ) -> StreamingPartition:
        """Return a partition for the lanes of a world, as if it were another."""
        initial = self.initial_physical_nodes
        return make_partition(
            self.partition_algo, size, self.lanes(world), dealt, batch_size, drop_first, initial
        )

    def _shuffle(
        self, number: int, world: World, picks: Picks, proportion: float = 1
    ) -> EpochShuffle | None:
        """Return the shuffle of samples that are so much of an epoch."""
        if not self.shuffle:
            return None
        block_size = int(self.block_size(world) * proportion)
        shuffle = EpochShuffle(
            self.shuffle_algo, self.lanes(world), self.shuffle_seed, number, block_size
        )
        shuffle.check(picks.size, int(picks.sizes.max()))
        return shuffle

    def _batching(
        self, number: int, world: World, taken: list[int], proportions: list[float]
    ) -> Batching:
        """Put the streams together, each with its own partition and shuffle."""
        method, batch_size, lanes = self.batching_method, self.batch_size, self.lanes(world)
        if not all(taken):
            raise StreamError(
                taken.index(0),
                f"an epoch takes no sample of stream {taken.index(0)}, and "
                f"batching_method={method!r} makes batches of each: take some, or leave it out",
            )
        if method == "device_per_stream" and lanes % world.nodes:
            raise ValueError(
                f"num_canonical_nodes={lanes} and {quantity(world.nodes, 'node')}: {method} needs "
                "a multiple"
            )
        dealt, size = {
            "per_stream": (world, batch_size),
            "stratified": (World(1, world.ranks_per_node), 1),
            "device_per_stream": (World(lanes, world.ranks_per_node), 1),
        }[method]
        streams, first_id = [], 0
        if method == "device_per_stream" and self.shuffle:
            self._require_blocks(world, proportions)
        for shards, choose, proportion in zip(self.shards, taken, proportions, strict=True):
            picks = self._picks(number, [shards], [choose])
            partition = self._partition(choose, world, dealt, size)
            shuffle = self._shuffle(number, world, picks, proportion)
            streams.append(Samples(partition, picks, shuffle, first_id))
            first_id += int(picks.sizes.sum())
        if method == "stratified":
            return Stratified.divided(streams, world.ranks * batch_size, np.array(proportions))
        if method == "per_stream":
            return PerStream.drawn(streams, world.ranks * batch_size, self._seed(number))
        return PerDevice.drawn(streams, world, batch_size, self._seed(number))

    def _require_blocks(self, world: World, proportions: list[float]) -> None:
        """Raise if a stream's part of a shuffle block is rounded to 0 samples.

        Streaming does so with "device_per_stream" only, and then whatever the algorithm is.
        """
        block_size = self.block_size(world)
        for stream, proportion in enumerate(proportions):
            if int(block_size * proportion) == 0:
                raise StreamError(
                    stream,
                    f"stream {stream} is {proportion:.3g} of an epoch, so its part of "
                    f"shuffle_block_size={block_size} is rounded to 0 samples: give blocks of "
                    f"{quantity(math.ceil(1 / proportion), 'sample')} or more, or give the stream "
                    "a larger weight",
                )


@dataclass(frozen=True, eq=False)
class Epoch:
    """What is read in an epoch, or in what is left of it: see `StreamingOrder.epoch`.

    Batches of a rank have numbers; loader workers take turns at them. What a rank reads does not
    depend on how many workers it has.
    """

    world: World
    batch_size: int
    batching: Batching
    first_batch: int = 0

    @property
    def batches(self) -> int:
        """Batches of each rank, the last of which may have no sample."""
        return max(self.batching.batches - self.first_batch, 0)

    @property
    def full_batches(self) -> int:
        """Batches of each rank, but for the last one unless that is full on every rank."""
        whole = self.world.ranks * self.batch_size
        last = (self.batches + self.first_batch - 1) * whole
        is_full = self.batches and self.batching.is_filled(np.arange(last, last + whole)).all()
        return self.batches if is_full else max(self.batches - 1, 0)

    def ids(self, node: int, rank: int, batches: range) -> Int64:
        """Return the ids of samples in a rank's batches; -1 fills up the last one.

        Parameters
        ----------
        node, rank : int
            The number of the node, and that of the rank in it.
        batches : range
            Numbers of batches.
        """
        first = np.arange(batches.start, batches.stop, batches.step) * self.batch_size
        slots = np.add.outer(self._slots(node, rank, first), np.arange(self.batch_size))
        return self.batching.ids(slots.reshape(-1)).reshape(slots.shape)

    def samples(self, node: int, rank: int, numbers: Int64) -> Int64:
        """Return the ids of a rank's samples with numbers, counted through its batches, or -1."""
        return self.batching.ids(self._slots(node, rank, numbers))

    def count(self, node: int, rank: int) -> int:
        """Return how many samples a rank has, of which only the last batch may have fewer."""
        full = max(self.batches - 1, 0) * self.batch_size
        last = np.arange(full, self.batches * self.batch_size)
        return full + int(self.batching.is_filled(self._slots(node, rank, last)).sum())

    def at_once(self, step: int = 1) -> int:
        """Return how many of a rank's batches, so far apart, are worth computing at once."""
        batches = self.batching.stride // (self.world.ranks * self.batch_size * step)
        return max(1, min(batches, MOST_IDS // self.batch_size))

    def read(self, node: int, rank: int, batches: range) -> Iterator[Int64]:
        """Yield the ids of each of a rank's batches, computing many at once."""
        step = self.at_once(batches.step)
        for start in range(0, len(batches), step):
            ids = self.ids(node, rank, batches[start : start + step])
            if (ids >= 0).all():
                yield from ids
                continue
            for batch in ids:
                if len(filled := batch[batch >= 0]):
                    yield filled

    def _slots(self, node: int, rank: int, numbers: Int64) -> Int64:
        """Return the slots of a rank's samples."""
        batch, place = np.divmod(numbers, self.batch_size)
        batch = ((batch + self.first_batch) * self.world.nodes + node) * self.world.ranks_per_node
        return (batch + rank) * self.batch_size + place
