"""Samples in Streaming's orders, epoch after epoch, for a run that moves here.

They are those of a dataset, or of a mixture, whose sources are Streaming's streams.

Positions count samples of all ranks, as everywhere: of what Streaming deals out, where some
samples come twice so that ranks get equally many.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream.iteration.counter import EpochCursor
from npstream.iteration.partition import Partition, unskipped_before
from npstream.iteration.ranks import Ranks
from npstream.iteration.state import (
    STATE_VERSION,
    DatasetFingerprint,
    ViewFingerprint,
    difference_message,
    make_state,
    read_count,
    read_cursor,
    require_keys,
)
from npstream.orders.streaming.batching import StreamError
from npstream.orders.streaming.order import MOST_IDS, STATE
from npstream.orders.streaming.partition import World
from npstream.orders.streaming.settings import StreamingRun, streaming_shuffle

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.indexing.selection import Selection
    from npstream.iteration.settings import IterationSettings
    from npstream.orders.streaming.order import Epoch, StreamingOrder
    from npstream.reading.source import Source


_CONTEXT = struct.Struct("<qqq")
"""The context of a cursor: a StreamingRun, with 0 for initial nodes that are not known."""


class StreamingEpochs:
    """Samples at positions of epochs, as `Epochs` has them for native orders.

    Parameters
    ----------
    source : Source
    selection : Selection
    settings : IterationSettings
        `shuffle` is a str or a StreamingShuffle, which holds a seed, so `seed` must be 0. An epoch
        picks `epoch_size` samples, by default all, or what the weights sum up to. Orders whose
        batches are not of all samples at random depend on `batch_size` and `global_batch_size`.
    """

    context_bytes = _CONTEXT.size

    def __init__(self, source: Source, selection: Selection, settings: IterationSettings) -> None:
        shuffle = streaming_shuffle(settings.shuffle)
        if (seed := settings.seed) != 0:
            raise ValueError(
                f"seed={seed}: Streaming's orders are drawn from shuffle_seed, as in "
                f"shuffle=npstream.StreamingShuffle({shuffle.shuffle_algo!r}, shuffle_seed={seed})"
            )
        self._batch_size = settings.batch_size
        self._global_batch_size = settings.global_batch_size
        if self._batch_size is None and self._global_batch_size is None and shuffle.is_batched:
            raise ValueError(
                f"batching_method={shuffle.batching_method!r}: give batch_size or global_batch_size"
            )
        self._settings = shuffle
        self._source = source
        self._selection = selection
        self._epoch_size = settings.epoch_samples
        self._names, self._shards = _streams(source, selection)
        self._fingerprint = ViewFingerprint(DatasetFingerprint(source), selection)
        self._weights = shuffle.weights(self._names)
        self._order(None).taken()  # says what does not fit

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return the ranks that are left if several in a row are one, as Streaming counts them."""
        world = _world(ranks).replicated(replication)
        return Ranks(ranks.rank // replication, world.ranks, world.ranks_per_node)

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return a rank's part of what is left of an epoch."""
        if last == "short":
            raise ValueError(
                "last='short': Streaming's orders repeat samples so that all ranks read equally "
                "many; shuffle=False, or a native order, reads each sample once"
            )
        world, first = _world(ranks), cursor.restart
        order, whole = self._order(_run(cursor), batch_size), world.ranks * batch_size
        unit = world.ranks
        if order.is_relaxed(world) and not self._settings.is_batched:
            unit = whole
        if (cursor.position - first) % unit:
            first = cursor.position  # as Streaming does wherever it goes on
        try:
            epoch = order.epoch(cursor.epoch, world, first)
        except StreamError as error:
            if not self._names:
                raise
            name = self._names[error.stream]
            raise ValueError(f"{error} (stream {error.stream} is source {name!r})") from None
        node, rank = world.place(ranks.rank)
        batches, own = epoch.batches, epoch.count(node, rank)
        if last == "drop":
            batches = epoch.full_batches
            own = batches * batch_size
        stop = first + batches * whole
        cuts = [cut for gap in cursor.gaps for cut in gap if cursor.position < cut < stop]
        if any((cut - first) % unit for cut in cuts):
            raise ValueError(
                f"of the epoch, {cursor.gaps} are left out, where an order of Streaming leaves out "
                f"multiples of {quantity(unit, 'sample')}, from sample {first} on: go on with the "
                "ranks and batches for which they were left out"
            )
        size, own_stop, start = (
            unskipped_before(at, cursor.gaps)
            for at in (stop, first + own * world.ranks, cursor.position)
        )
        return Partition(
            size, ranks.rank, ranks.world, batch_size, "short", world.nodes, start,
            stop=own_stop, gaps=cursor.gaps, rows=partial(_samples, epoch, node, rank, first),
            block=MOST_IDS, span=epoch.batching.stride,
        )  # fmt: skip

    @property
    def is_stored_order(self) -> bool:
        """Whether epochs are in the order of the view."""
        return False

    @property
    def epoch_size_keeps_order(self) -> bool:
        """Whether `epoch_size` changes no order, but only where epochs end."""
        return False

    def needs_state(self, ranks: Ranks) -> bool:
        """Tell whether the nodes do, only where a state knows which ones the run began with."""
        world, order = _world(ranks), self._order(None)
        fits = order.lanes(world) % world.nodes == 0 or world.nodes % order.lanes(world) == 0
        return order.partition_algo == "relaxed" and not fits

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return 1: Streaming lets nodes share a lane, or take whole ones."""
        return 1

    def chunk_share(self, nodes: int) -> float:
        """Return which part of a chunk's samples one of several nodes reads, at least."""
        return 1 / nodes

    def with_block(self, nbytes: int) -> tuple[StreamingEpochs, str] | None:
        """Return epochs with another block, and how to set it; None if there is no shuffle."""
        if self._settings.shuffle_algo is None:
            return None
        samples = self._source.rows_of(nbytes)
        other = copy(self)
        other._settings = replace(self._settings, shuffle_block_size=samples)
        return other, f"shuffle_block_size={samples}"

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return a state, which is also one of Streaming's."""
        order, world = self._order(_run(cursor)), _world(ranks)
        of_streaming = order.state(world, cursor.epoch, cursor.position)
        run = StreamingRun(*(of_streaming[name] for name in StreamingRun._fields))
        return {
            **make_state(self._state_settings(run, ranks, STATE_VERSION), cursor),
            "drop_first": cursor.restart,
            **of_streaming,
        }

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return where a state, or one of Streaming's, says to go on."""
        if isinstance(state, Mapping) and "version" not in state:
            for key in (*STATE, "initial_physical_nodes"):
                if state.get(key) is not None:
                    read_count(state, key, -1 if key == "epoch" else 0, 1 << 63)
            order, number, position = self._order(None).resume(state, _world(ranks))
            if state["epoch"] < 0:
                return EpochCursor(0)
            run = StreamingRun(*(getattr(order, name) for name in StreamingRun._fields))
            return EpochCursor(number, position, restart=position, context=_context(run))
        require_keys(state, (*StreamingRun._fields, "drop_first"))
        run = StreamingRun(*(read_count(state, name, 0, 1 << 63) for name in StreamingRun._fields))
        for name, there in run._asdict().items():
            here = getattr(self._settings, name)
            if here is not None and here != there:
                raise ValueError(difference_message(name, there, here))
        cursor = read_cursor(state, partial(self._state_settings, run, ranks))
        return cursor._replace(restart=read_count(state, "drop_first"), context=_context(run))

    def _order(self, run: StreamingRun | None, batch_size: int = 1) -> StreamingOrder:
        return self._settings.order(self._shards, self._weights, batch_size, self._epoch_size, run)

    def _state_settings(self, run: StreamingRun, ranks: Ranks, version: int) -> dict[str, Any]:
        """Return what positions depend on, but for what a run's states know themselves."""
        order = self._order(run)
        names = ["partition_algo", "sampling_method", "sampling_granularity"]
        facts: dict[str, Any] = {
            "samples": self._selection.size, "fingerprint": self._fingerprint(version),
            "seed": run.shuffle_seed, "epoch_size": self._epoch_size,
        }  # fmt: skip
        if self._settings.is_batched:
            names.append("batching_method")
            each = self._global_batch_size or (self._batch_size or 1) * ranks.world
            facts["global_batch_size"] = each
        settings = {name: getattr(order, name) for name in names}
        settings["shuffle_block_size"] = order.block_size(World(1, 1))
        facts["shuffle"] = {"order": self._settings.shuffle_algo, **settings}
        if self._names:
            weights = map(asdict, self._weights)
            facts["weights"] = dict(zip(self._names, weights, strict=True))
        return facts


def _streams(source: Source, selection: Selection) -> tuple[list[str], list[Int64]]:
    """Return the names of a mixture's sources, and the samples of each shard of each stream."""
    members = source.members
    mixed = [(f"source {each.name!r}", each.source, each.selection) for each in members]
    for what, _, view in [("this", source, selection), *mixed]:
        if view.affine != (0, 1) or view.size != view.source:
            raise ValueError(
                f"Streaming's orders are of whole datasets, and {what} is a view of one: "
                f"{view.size:,} of {quantity(view.source, 'sample')}, or in another order; "
                "shuffle=True takes any view"
            )
    if not members:
        return [], [np.diff(source.index.starts)]
    return [each.name for each in members], [np.diff(e.source.index.starts) for e in members]


def _samples(epoch: Epoch, node: int, rank: int, first: int, positions: Int64) -> Int64:
    """Return a rank's samples at its positions, where `epoch` begins at position `first`; or -1."""
    return epoch.samples(node, rank, (positions - first) // epoch.world.ranks)


def _context(run: StreamingRun) -> bytes:
    """Return the context of cursors in a run."""
    return _CONTEXT.pack(run.num_canonical_nodes, run.shuffle_seed, run.initial_physical_nodes or 0)


def _run(cursor: EpochCursor) -> StreamingRun | None:
    """Return the run that a cursor is in; None if no state was loaded."""
    if not cursor.context:
        return None
    lanes, seed, nodes = _CONTEXT.unpack(cursor.context)
    return StreamingRun(lanes, seed, nodes or None)


def _world(ranks: Ranks) -> World:
    return World(ranks.world // ranks.per_node, ranks.per_node)
