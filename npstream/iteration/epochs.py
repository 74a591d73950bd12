"""Provide the samples of a view, epoch after epoch: in the view's order or shuffled by `Shuffle`.

Tested in tests/iteration/test_iteration.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from npstream.iteration.partition import BalancedPartition, Partition, to_unskipped_position
from npstream.iteration.state import (
    STATE_VERSION,
    DatasetFingerprint,
    ViewFingerprint,
    make_state,
    read_cursor,
    require_within_epoch,
)
from npstream.orders.balance import BucketOrder
from npstream.orders.order import (
    ORDER_VERSION,
    RowOrder,
    SequentialOrder,
    Shuffle,
    shuffle_with_block,
)
from npstream.orders.valid import ValidOrder
from npstream.reading.source import view_order

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray, Int64
    from npstream.indexing.selection import Selection
    from npstream.iteration.counter import EpochCursor
    from npstream.iteration.ranks import Ranks
    from npstream.iteration.settings import IterationSettings
    from npstream.reading.source import Source


class AnyEpochs(Protocol):
    """Interface of the epochs of a view, of a mixture, or in an order of Streaming."""

    @property
    def context_bytes(self) -> int:
        """Maximum bytes of `EpochCursor.context`; shared memory is reserved for them."""

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return ranks in which each `replication` consecutive ranks count as one."""

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return the part of this rank in the epoch, from the cursor on.

        `batch_size` and `last` are parameters of `Partition`.
        """

    @property
    def is_view_order(self) -> bool:
        """Whether epochs read the view in its own order."""

    @property
    def epoch_size_keeps_order(self) -> bool:
        """Whether `epoch_size` changes only where epochs end, not the order of samples."""

    def needs_state(self, ranks: Ranks) -> bool:
        """Return True if `ranks` are valid only for iterations that have loaded a state."""

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return how many of `nodes` nodes read each chunk, for a warning about the lanes.

        The result is 1 if `nodes` divides the number of lanes. It is also 1 for orders without
        lanes, although all nodes then read every chunk.
        """

    def chunk_share(self, nodes: int) -> float:
        """Return the fraction of a chunk's samples that one of `nodes` nodes reads."""

    def with_block(self, nbytes: int) -> tuple[AnyEpochs, str] | None:
        """Return epochs with blocks of `nbytes`, and this setting as text; None if not shuffled."""

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return the state of an iteration at `cursor`."""

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return the cursor of a state; raise ValueError if it is from other data or settings."""


class Epochs:
    """Maps positions in epochs to samples of a view.

    Parameters
    ----------
    source : Source
    selection : Selection
        The view. One pass reads all its samples.
    settings : IterationSettings
        Each pass has its own order if `shuffle` is True or a Shuffle. Epochs cut the sequence of
        passes into pieces of `epoch_size` samples. A pass leaves out the rows that `valid` does not
        mark. `balance` has the costs of the rows of the view.
    """

    context_bytes = 0

    def __init__(self, source: Source, selection: Selection, settings: IterationSettings) -> None:
        self._source = source
        self._selection = selection
        self._seed = settings.seed
        self._epoch_size = settings.epoch_samples
        self.shuffle: Shuffle | None = None
        shuffle = settings.shuffle if isinstance(settings.shuffle, Shuffle) else Shuffle()
        if settings.shuffle is not False and shuffle.block != 0:
            self.shuffle = shuffle.resolve(source.estimate_bytes(selection.size))
        self._valid, self._costs, self._buckets = settings.valid, settings.balance, settings.buckets
        self._batch_sizes = settings.batch_size, settings.global_batch_size
        self._last_order: tuple[int, RowOrder | ValidOrder] | None = None
        self._last_buckets: tuple[tuple[int, int], BucketOrder] | None = None
        self._fingerprint = ViewFingerprint(DatasetFingerprint(source), selection)

    def __getstate__(self) -> dict[str, Any]:
        # Both orders are computed again on first use.
        return {**self.__dict__, "_last_order": None, "_last_buckets": None}

    @property
    def _pass_size(self) -> int:
        """Samples in a pass."""
        return self._selection.size if self._valid is None else self._valid.count

    @property
    def size(self) -> int:
        """Samples in an epoch."""
        if self._epoch_size is None or self._pass_size == 0:
            return self._pass_size
        return self._epoch_size

    def _state_settings(self, version: int = STATE_VERSION) -> dict[str, Any]:
        """Return the settings that the order depends on, as a state of `version` holds them."""
        order = None
        if self.shuffle is not None:
            order = {"order": "native", "version": ORDER_VERSION, **asdict(self.shuffle)}
            if not self.shuffle.stratified:
                del order["stratified"]  # earlier releases have no such setting
        settings = {
            "samples": self._selection.size, "fingerprint": self._fingerprint(version),
            "seed": self._seed, "shuffle": order, "epoch_size": self._epoch_size,
        }  # fmt: skip
        if self._valid is not None:
            settings["valid"] = self._valid.identity()
        return settings

    def _settings_with_balance(self, ranks: Ranks, version: int = STATE_VERSION) -> dict[str, Any]:
        """Return the settings that the order of samples and their batches depend on."""
        settings = self._state_settings(version)
        if self._costs is not None:
            settings["balance"] = {"hash": self._costs.identity()}
            if self._buckets is not None:
                size, global_size = self._batch_sizes
                bucket = global_size or (size or 1) * ranks.world
                settings["balance"] |= {"buckets": self._buckets, "global_batch_size": bucket}
        return settings

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return ranks in which each `replication` consecutive ranks count as one."""
        return ranks.merge_replicas(replication)

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return the part of this rank in the epoch, from the cursor on."""
        # A Partition counts only the positions that are outside of gaps.
        size, start = (
            to_unskipped_position(position, cursor.gaps)
            for position in (self.size, cursor.position)
        )
        arguments = (
            size, ranks.rank, ranks.world, batch_size, last, ranks.world // ranks.per_node, start
        )  # fmt: skip
        if self._costs is None:
            rows = partial(self.at, cursor.epoch)
            return Partition(*arguments, gaps=cursor.gaps, rows=rows, grows_lookups=True)
        if self._buckets is not None:
            rows = partial(self._at_in_buckets, cursor.epoch, ranks.world * batch_size)
            return Partition(*arguments, gaps=cursor.gaps, rows=rows, grows_lookups=True)
        rows, costs = (partial(f, cursor.epoch) for f in (self.at, self._costs_at))
        return BalancedPartition(*arguments, gaps=cursor.gaps, rows=rows, costs=costs)

    @property
    def is_view_order(self) -> bool:
        """Whether epochs read the view in its own order."""
        return self.shuffle is None and self._costs is None

    @property
    def epoch_size_keeps_order(self) -> bool:
        """True: `epoch_size` changes only where epochs end, not the order of samples."""
        return True

    def needs_state(self, ranks: Ranks) -> bool:
        """Return False: any ranks are valid."""
        return False

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return how many of `nodes` nodes read each chunk, for a warning about the lanes.

        The result is also 1 for orders without lanes and for balanced batches, although all nodes
        then read every chunk. For balanced batches, another number of lanes would not change that.
        """
        if self._costs is not None:
            return 1
        lanes = 1 if self.shuffle is None else self.shuffle.lanes or 1
        return nodes // math.gcd(nodes, lanes) if lanes > 1 else 1

    def chunk_share(self, nodes: int) -> float:
        """Return the fraction of a chunk's samples that one of `nodes` nodes reads."""
        if self._costs is not None:
            return 1 / nodes
        lanes = 1 if self.shuffle is None else self.shuffle.lanes or 1
        return math.gcd(nodes, lanes) / nodes

    def with_block(self, nbytes: int) -> tuple[Epochs, str] | None:
        """Return epochs with blocks of `nbytes`, and this setting as text; None if not shuffled."""
        if self.shuffle is None:
            return None
        other = copy(self)
        shuffle, text = shuffle_with_block(nbytes, self.shuffle.stratified)
        other.shuffle = shuffle.resolve(self._source.estimate_bytes(self._selection.size))
        return other, text

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return the state of an iteration at `cursor`; only buckets depend on `ranks`."""
        return make_state(self._settings_with_balance(ranks), cursor)

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return the cursor of a state; only buckets depend on `ranks`."""
        cursor = read_cursor(state, partial(self._settings_with_balance, ranks))
        require_within_epoch(cursor, self.size)
        return cursor

    def at(self, epoch: int, positions: Int64) -> Int64:
        """Return the samples at positions in an epoch. Each position is below `size`."""
        return self._selection.at(self._view_rows(epoch, positions))

    def _at_in_buckets(self, epoch: int, bucket_size: int, positions: Int64) -> Int64:
        """Return the samples at positions in an epoch that is sorted into buckets.

        `bucket_size` is the number of samples in a bucket, which is a global batch.
        """
        assert self._costs is not None
        assert self._buckets is not None
        key = epoch, bucket_size
        last = self._last_buckets
        if last is None or last[0] != key:
            rows = partial(self._view_rows, epoch)
            seed = None if self.shuffle is None else self._seed
            order = BucketOrder(
                rows, self.size, self._costs, bucket_size, self._buckets, seed, epoch
            )
            self._last_buckets = last = key, order
        return self._selection.at(last[1].at(positions))

    def _costs_at(self, epoch: int, positions: Int64) -> AnyArray:
        """Return the costs of the samples at positions in an epoch."""
        assert self._costs is not None
        return self._costs.at(self._view_rows(epoch, positions))

    def _view_rows(self, epoch: int, positions: Int64) -> Int64:
        """Return the rows of the view at positions in an epoch."""
        samples = self._pass_size
        if self.size == samples:
            return self._rows_in_pass(epoch, positions)
        passes, positions = np.divmod(positions + epoch * self.size, samples)
        rows = np.empty_like(positions)
        for number in np.unique(passes).tolist():
            in_pass = passes == number
            rows[in_pass] = self._rows_in_pass(number, positions[in_pass])
        return rows

    def _rows_in_pass(self, pass_number: int, positions: Int64) -> Int64:
        """Return the rows of the view at positions in a pass."""
        if self.shuffle is None and self._valid is None:
            return positions
        last = self._last_order
        if last is None or last[0] != pass_number:
            self._last_order = last = pass_number, self._pass_order(pass_number)
        return last[1].at(positions)

    def _pass_order(self, pass_number: int) -> RowOrder | ValidOrder:
        """Return the order of the rows of a pass."""
        order: RowOrder = SequentialOrder(self._selection.size)
        if self.shuffle is not None:
            order = view_order(self._source, self._selection, self.shuffle, self._seed, pass_number)
        return order if self._valid is None else ValidOrder(order, self._valid)


def epochs_for(source: Source, selection: Selection, settings: IterationSettings) -> AnyEpochs:
    """Return the epochs of a view, in a native order or in an order of MosaicML Streaming."""
    if isinstance(settings.shuffle, bool | Shuffle):
        return Epochs(source, selection, settings)
    _require_native_order(settings)
    from npstream.iteration.streaming_epochs import StreamingEpochs

    return StreamingEpochs(source, selection, settings)


def _require_native_order(settings: IterationSettings) -> None:
    """Raise ValueError if an iteration in an order of Streaming has `valid` or `balance`."""
    for setting in ("valid", "balance"):
        if getattr(settings, setting) is not None:
            raise ValueError(
                f"{setting}= and shuffle={settings.shuffle!r}: orders of Streaming leave no rows "
                "out and do not balance; give shuffle=True or an npstream.Shuffle"
            )
