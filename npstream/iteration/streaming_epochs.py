"""Provide epochs in the orders of MosaicML Streaming, for runs that migrate to npstream.

The samples are those of a dataset, or of a mixture. The sources of a mixture are Streaming's
streams.

Positions count the samples of all ranks, as in native orders. They include the samples that
Streaming repeats so that all ranks read the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream.iteration.counter import EpochCursor
from npstream.iteration.partition import Partition, to_unskipped_position
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
    require_within_epoch,
)
from npstream.orders.streaming.batching import StreamError
from npstream.orders.streaming.order import MAX_IDS, STATE_KEYS
from npstream.orders.streaming.partition import World
from npstream.orders.streaming.settings import RUN_BYTES, StreamingRun, streaming_shuffle

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.indexing.selection import Selection
    from npstream.iteration.settings import IterationSettings
    from npstream.orders.streaming.order import Epoch, StreamingOrder
    from npstream.reading.source import Source


_MAX_REPEATED = 1 << 20
"""Upper bound of the samples that an epoch repeats to fill up ranks. The exact number depends on
the ranks and the batch size of the run that saved a state, and these are unknown."""


class StreamingEpochs:
    """Samples at positions of epochs in an order of Streaming.

    Parameters
    ----------
    source : Source
    selection : Selection
    settings : IterationSettings
        `shuffle` is a str or a StreamingShuffle. It holds the seed, so `seed` must be 0. An epoch
        picks `epoch_size` samples. By default the sizes and the weights of the streams determine
        this number. Orders with another batching method than "random" depend on `batch_size` and
        `global_batch_size`.
    """

    context_bytes = RUN_BYTES

    def __init__(self, source: Source, selection: Selection, settings: IterationSettings) -> None:
        shuffle = streaming_shuffle(settings.shuffle)
        if (seed := settings.seed) != 0:
            raise ValueError(
                f"seed={seed}: Streaming's orders use shuffle_seed instead, as in "
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
        self._order(None).stream_samples()  # raises if settings do not fit

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return ranks in which each `replication` consecutive ranks count as one."""
        world = _world(ranks).merge_replicas(replication)
        return Ranks(ranks.rank // replication, world.ranks, world.ranks_per_node)

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return the part of this rank in the epoch, from the cursor on."""
        if last == "short":
            raise ValueError(
                "last='short': Streaming's orders repeat samples so that all ranks read the same "
                "number; shuffle=False, or a native order, reads each sample once"
            )
        world, restart = _world(ranks), cursor.restart
        order, global_batch = self._order(_run(cursor), batch_size), world.ranks * batch_size
        # An epoch can resume and skip only at multiples of `unit`. A relaxed partition is made for
        # another number of nodes. Only its global batches are the same as for this number of nodes,
        # so the unit is a global batch.
        unit = world.ranks
        if order.is_relaxed(world) and not self._settings.is_batched:
            unit = global_batch
        if (cursor.position - restart) % unit:
            restart = cursor.position  # Streaming divides the rest again when it resumes
        try:
            epoch = order.epoch(cursor.epoch, world, restart)
        except StreamError as error:
            if not self._names:
                raise
            name = self._names[error.stream]
            raise ValueError(f"{error} (stream {error.stream} is source {name!r})") from None
        node, rank = world.node_and_rank(ranks.rank)
        batches, samples = epoch.batches, epoch.count(node, rank)
        if last == "drop":
            batches = epoch.full_batches
            samples = batches * batch_size
        stop = restart + batches * global_batch
        cuts = [cut for gap in cursor.gaps for cut in gap if cursor.position < cut < stop]
        if any((cut - restart) % unit for cut in cuts):
            raise ValueError(
                f"the epoch skips the ranges {cursor.gaps}, and Streaming's orders can skip only "
                f"multiples of {quantity(unit, 'sample')}, counted from sample {restart}: use the "
                "ranks and the batch size with which they were skipped"
            )
        size, rank_stop, start = (
            to_unskipped_position(position, cursor.gaps)
            for position in (stop, restart + samples * world.ranks, cursor.position)
        )
        return Partition(
            size, ranks.rank, ranks.world, batch_size, "short", world.nodes, start,
            stop=rank_stop, gaps=cursor.gaps, rows=partial(_samples, epoch, node, rank, restart),
            lookup_samples=MAX_IDS, lookup_span=epoch.batching.lookup_size,
        )  # fmt: skip

    @property
    def is_view_order(self) -> bool:
        """False: epochs do not read the view in its own order."""
        return False

    @property
    def epoch_size_keeps_order(self) -> bool:
        """False: the order of samples depends on `epoch_size`."""
        return False

    def needs_state(self, ranks: Ranks) -> bool:
        """Return True if `ranks` are valid only after a state was loaded.

        The number of nodes may not fit the number of lanes. A relaxed partition permits that only
        with the initial number of nodes, which the state has.
        """
        world, order = _world(ranks), self._order(None)
        fits = order.lanes(world) % world.nodes == 0 or world.nodes % order.lanes(world) == 0
        return order.partition_algo == "relaxed" and not fits

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return 1: the number of lanes is fixed by Streaming, so there is nothing to warn of."""
        return 1

    def chunk_share(self, nodes: int) -> float:
        """Return the smallest fraction of a chunk's samples that one of `nodes` nodes reads."""
        return 1 / nodes

    def with_block(self, nbytes: int) -> tuple[StreamingEpochs, str] | None:
        """Return epochs with blocks of `nbytes`, and this setting as text; None if not shuffled."""
        if self._settings.shuffle_algo is None:
            return None
        samples = self._source.estimate_rows(nbytes)
        other = copy(self)
        other._settings = replace(self._settings, shuffle_block_size=samples)
        return other, f"shuffle_block_size={samples}"

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return a state, which Streaming can load, too."""
        order, world = self._order(_run(cursor)), _world(ranks)
        streaming_state = order.state(world, cursor.epoch, cursor.position)
        run = StreamingRun(*(streaming_state[name] for name in StreamingRun._fields))
        return {
            **make_state(self._state_settings(run, ranks, STATE_VERSION), cursor),
            "drop_first": cursor.restart,
            **streaming_state,
        }

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return the cursor of a state of npstream or of Streaming."""
        if isinstance(state, Mapping) and "version" not in state:
            for key in (*STATE_KEYS, "initial_physical_nodes"):
                if state.get(key) is not None:
                    read_count(state, key, -1 if key == "epoch" else 0, 1 << 63)
            order, number, position = self._order(None).resume(state, _world(ranks))
            if state["epoch"] < 0:  # saved before the first epoch
                return EpochCursor(0)
            run = StreamingRun(*(getattr(order, name) for name in StreamingRun._fields))
            return EpochCursor(number, position, restart=position, context=run.pack())
        require_keys(state, (*StreamingRun._fields, "drop_first"))
        run = StreamingRun(*(read_count(state, name, 0, 1 << 63) for name in StreamingRun._fields))
        for name, saved in run._asdict().items():
            current = getattr(self._settings, name)
            if current is not None and current != saved:
                raise ValueError(difference_message(name, saved, current))
        cursor = read_cursor(state, partial(self._state_settings, run, ranks))
        samples = sum(self._order(run).stream_samples()[0])
        require_within_epoch(cursor, samples + _MAX_REPEATED)
        return cursor._replace(restart=read_count(state, "drop_first"), context=run.pack())

    def _order(self, run: StreamingRun | None, batch_size: int = 1) -> StreamingOrder:
        return self._settings.order(self._shards, self._weights, batch_size, self._epoch_size, run)

    def _state_settings(self, run: StreamingRun, ranks: Ranks, version: int) -> dict[str, Any]:
        """Return the settings that positions depend on, without those in `StreamingRun`."""
        order = self._order(run)
        names = ["partition_algo", "sampling_method", "sampling_granularity"]
        state_settings: dict[str, Any] = {
            "samples": self._selection.size, "fingerprint": self._fingerprint(version),
            "seed": run.shuffle_seed, "epoch_size": self._epoch_size,
        }  # fmt: skip
        if self._settings.is_batched:
            names.append("batching_method")
            global_size = self._global_batch_size or (self._batch_size or 1) * ranks.world
            state_settings["global_batch_size"] = global_size
        shuffle = {name: getattr(order, name) for name in names}
        shuffle["shuffle_block_size"] = order.block_size(World(1, 1))
        state_settings["shuffle"] = {"order": self._settings.shuffle_algo, **shuffle}
        if self._names:
            weights = map(asdict, self._weights)
            state_settings["weights"] = dict(zip(self._names, weights, strict=True))
        return state_settings


def _streams(source: Source, selection: Selection) -> tuple[list[str], list[Int64]]:
    """Return the names of a mixture's sources, and the samples of each shard of each stream.

    A single dataset is one stream without a name.
    """
    members = source.members
    views = [(f"source {member.name!r}", member.selection) for member in members]
    for name, view in [("this", selection), *views]:
        if view.affine != (0, 1) or view.size != view.dataset_size:
            raise ValueError(
                f"Streaming's orders need whole datasets, and {name} is a view: "
                f"{view.size:,} of {quantity(view.dataset_size, 'sample')}, or in another order; "
                "shuffle=True works on any view"
            )
    if not members:
        return [], [np.diff(source.index.starts)]
    return [m.name for m in members], [np.diff(m.source.index.starts) for m in members]


def _samples(epoch: Epoch, node: int, rank: int, restart: int, positions: Int64) -> Int64:
    """Return a rank's samples at its positions; -1 for a position without a sample.

    `epoch` begins at position `restart`.
    """
    return epoch.samples(node, rank, (positions - restart) // epoch.world.ranks)


def _run(cursor: EpochCursor) -> StreamingRun | None:
    """Return the run of a cursor; None if no state was loaded."""
    return StreamingRun.unpack(cursor.context) if cursor.context else None


def _world(ranks: Ranks) -> World:
    return World(ranks.world // ranks.per_node, ranks.per_node)
