"""Provide `iterate_epoch`, which yields the samples of one rank and worker in the next epoch.

Tested in tests/streaming/test_dataset.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import Int64
from npstream.iteration.counter import EpochCursor  # noqa: TC001 - a NamedTuple's field
from npstream.iteration.feeding.eviction import MAX_SAMPLED_RANKS, EpochReads
from npstream.iteration.ranks import this_worker
from npstream.orders.streaming.order import (  # noqa: TC001 - fields of a NamedTuple
    Epoch,
    StreamingOrder,
)
from npstream.orders.streaming.settings import StreamingRun
from npstream.streaming.position import detect_world

if TYPE_CHECKING:
    from npstream.orders.streaming.partition import World
    from npstream.streaming.position import RunPosition
    from npstream.streaming.samples import StreamSamples


class IterableSamples(Protocol):
    """What `iterate_epoch` needs of a `StreamingDataset`."""

    batch_size: int | None
    num_canonical_nodes: int | None
    shuffle_seed: int
    shuffle_block_size: int | None
    initial_physical_nodes: int | None
    replication: int | None
    _npstream_ahead: dict[int, Any]

    @property
    def samples_per_shard(self) -> Int64:
        """The number of samples of each shard."""

    @property
    def _npstream_samples(self) -> StreamSamples: ...
    @property
    def _npstream_position(self) -> RunPosition: ...
    @property
    def _npstream_reads_itself(self) -> bool:
        """True if no subclass overrides how the dataset reads a sample."""

    def _npstream_order(self, batch_size: int | None = None) -> StreamingOrder: ...
    def __getitem__(self, at: Any) -> Any: ...


class RankWork(NamedTuple):
    """The part of an epoch that one rank and worker read.

    Attributes
    ----------
    epoch : Epoch
    place : (int, int)
        The node, and the rank on it.
    batches : range
        Numbers of the batches that the worker reads, among the batches of the rank.
    order : StreamingOrder
        The order of all epochs.
    cursor : EpochCursor
        Where the loop began.
    """

    epoch: Epoch
    place: tuple[int, int]
    batches: range
    order: StreamingOrder
    cursor: EpochCursor

    def pieces(self, size: int) -> Iterator[Int64]:
        """Yield the numbers of the samples, in arrays of at most `size` numbers."""
        step = self.epoch.lookup_batches(self.batches.step)
        for start in range(0, len(self.batches), step):
            numbers = self.epoch.ids(*self.place, self.batches[start : start + step]).reshape(-1)
            numbers = numbers[numbers >= 0]  # -1 fills up the last batch
            for first in range(0, len(numbers), size):
                yield numbers[first : first + size]

    def first_numbers(self, n: int) -> Int64:
        """Return the numbers of about the first `n` samples, or of all if there are fewer."""
        batches = self.batches[: -(-n // self.epoch.batch_size)]
        work = self._replace(batches=batches)
        return np.concatenate([np.empty(0, np.int64), *work.pieces(n or 1)])

    @property
    def run_text(self) -> str:
        """Text that identifies the order; it is the same in all processes of a run."""
        return repr((self.order.state(self.epoch.world, 0, 0), self.epoch.batch_size))

    def position(self, samples: int) -> int:
        """Return the position in the epoch after this worker has read a number of samples."""
        return self.cursor.position + samples * self.epoch.world.ranks * self.batches.step

    def epoch_reads(self, number: int) -> EpochReads:
        """Return what the ranks of this node read in an epoch: in this one, or in the next one."""
        epoch, start = self.epoch, self.cursor.position
        if number != self.cursor.epoch:
            try:
                epoch, start = self.order.epoch(number, epoch.world, 0), 0
            except ValueError:  # the next epoch raises this error again when it begins
                return EpochReads(0, 1, 0, lambda _: iter(()))
        world = epoch.world
        global_batch = world.ranks * epoch.batch_size
        samples = epoch.batches * epoch.batch_size * min(world.ranks_per_node, MAX_SAMPLED_RANKS)
        sample_batches = partial(_sample_batches, epoch, self.place[0], start)
        return EpochReads(
            start + epoch.batches * global_batch, global_batch, samples, sample_batches
        )


def _sample_batches(
    epoch: Epoch, node: int, start: int, step: int
) -> Iterator[tuple[Int64, Int64]]:
    """Yield the numbers and positions of samples in every `step`-th batch of ranks of a node.

    If the node has more than `MAX_SAMPLED_RANKS` ranks, only some of them are included.
    """
    per_node, block = epoch.world.ranks_per_node, epoch.lookup_batches(step)
    for rank in range(0, per_node, -(-per_node // MAX_SAMPLED_RANKS)):
        for first in range(0, epoch.batches, block * step):
            batches = range(first, min(first + block * step, epoch.batches), step)
            numbers = epoch.ids(node, rank, batches)
            positions = start + np.array(batches) * (epoch.world.ranks * epoch.batch_size)
            is_sample = numbers >= 0  # -1 fills up the last batch
            yield numbers[is_sample], np.broadcast_to(positions[:, None], numbers.shape)[is_sample]


def begin_epoch(dataset: IterableSamples) -> RankWork:
    """Begin the next epoch of a dataset, and return what this rank and worker read of it."""
    if not isinstance(dataset.batch_size, int):
        raise ValueError(
            f"batch_size={dataset.batch_size!r}: give StreamingDataset the batch_size of the "
            "DataLoader, which is that of one rank; the order of samples depends on it"
        )
    world, rank = detect_world(dataset.replication)
    cursor = dataset._npstream_position.begin()
    order = _resolve_settings(dataset, cursor, world)
    _warn_of_repeats(dataset, order, world)
    epoch = order.epoch(cursor.epoch, world, cursor.position)
    worker, workers = this_worker()
    batches = range(worker, epoch.batches, workers or 1)
    return RankWork(epoch, world.node_and_rank(rank), batches, order, cursor)


def iterate_epoch(dataset: IterableSamples) -> Iterator[Any]:
    """Yield the samples of the next epoch for this rank and worker."""
    work, samples = begin_epoch(dataset), dataset._npstream_samples
    is_rowwise = samples.is_rowwise(work.first_numbers, 1 / work.epoch.world.nodes)
    eviction_orders = [] if is_rowwise else samples.begin_eviction(work)
    pieces, done = work.pieces(samples.samples_per_read), 0
    try:
        for numbers, lookup in samples.read_ahead(pieces, is_rowwise):
            if dataset._npstream_reads_itself:
                yield from samples.samples(lookup)
            else:
                yield from _overridden(dataset, numbers, lookup)
            done += len(numbers)
            for eviction_order in eviction_orders:
                eviction_order.advance(work.position(done))
    finally:
        for eviction_order in eviction_orders:
            eviction_order.end()


def _resolve_settings(
    dataset: IterableSamples, cursor: EpochCursor, world: World
) -> StreamingOrder:
    """Return the order of the samples, with the settings of a loaded state if there is one.

    The dataset gets the settings of the state, and the defaults that depend on the ranks.
    """
    if cursor.context:
        run = StreamingRun.unpack(cursor.context)
        dataset.num_canonical_nodes, dataset.shuffle_seed = (
            run.num_canonical_nodes,
            run.shuffle_seed,
        )
        dataset.initial_physical_nodes = run.initial_physical_nodes
    order = dataset._npstream_order(dataset.batch_size)
    dataset.num_canonical_nodes = order.lanes(world)
    dataset.shuffle_block_size = order.block_size(world)
    return order


def _warn_of_repeats(dataset: IterableSamples, order: StreamingOrder, world: World) -> None:
    """Warn if there are too few samples for the nodes or ranks, or if blocks are too small.

    The messages begin as Streaming's do, since programs may filter them by their first words.
    """
    if this_worker()[0]:
        return
    size, lanes = sum(order.stream_samples()[0]), order.lanes(world)
    if size < lanes or (size == lanes and lanes < world.nodes):
        warnings.warn(
            f"Trying to partition {quantity(size, 'sample')} over "
            f"{quantity(lanes, 'canonical node')}: samples are repeated; use fewer canonical nodes",
            stacklevel=4,
        )
    elif (per_node := size // world.nodes) < world.ranks_per_node:
        warnings.warn(
            f"Attempting to partition {quantity(per_node, 'sample')} per physical node over "
            f"{quantity(world.ranks_per_node, 'rank')}: samples are repeated",
            stacklevel=4,
        )
    largest, block = int(dataset.samples_per_shard.max()), order.block_size(world)
    if order.shuffle and order.shuffle_algo == "py1e" and block < largest:
        warnings.warn(
            "Shuffle block size was smaller than shard size for some shards: "
            f"shuffle_block_size={block} is less than a shard of {quantity(largest, 'sample')}, "
            "whose samples are then not mixed with those of other shards: use larger blocks",
            stacklevel=4,
        )


def _overridden(dataset: IterableSamples, numbers: Int64, lookup: Any) -> Iterator[Any]:
    """Yield ``dataset[number]`` for each number.

    All samples are read at once before the first call. Each sample is then put into
    `_npstream_ahead`, from where `StreamingDataset.get_item` takes it.
    """
    ahead = dataset._npstream_ahead
    samples: list[Any]
    try:
        samples = list(dataset._npstream_samples.samples(lookup))
    except Exception:
        # Each sample is read again alone, so that the user's method gets the error of its sample.
        samples = [None] * len(numbers)
    for number, sample in zip(numbers.tolist(), samples, strict=True):
        ahead.clear()
        if sample is not None:
            ahead[number] = sample
        yield dataset[number]
    ahead.clear()
