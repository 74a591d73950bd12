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

from npstream.iteration.partition import Partition, to_unskipped_position
from npstream.iteration.state import (
    STATE_VERSION,
    DatasetFingerprint,
    ViewFingerprint,
    make_state,
    read_cursor,
    require_within_epoch,
)
from npstream.orders.order import ORDER_VERSION, RowOrder, Shuffle
from npstream.reading.source import view_order

if TYPE_CHECKING:
    from npstream._core.typing import Int64
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
        """Return how many of `nodes` nodes read each chunk.

        The result is 1 if `nodes` divides the number of lanes, and for orders without lanes.
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
        passes into pieces of `epoch_size` samples.
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
        self._last_order: tuple[int, RowOrder] | None = None
        self._fingerprint = ViewFingerprint(DatasetFingerprint(source), selection)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_order": None}  # computed again on first use

    @property
    def size(self) -> int:
        """Samples in an epoch."""
        if self._epoch_size is None or self._selection.size == 0:
            return self._selection.size
        return self._epoch_size

    def _state_settings(self, version: int = STATE_VERSION) -> dict[str, Any]:
        """Return the settings that the order depends on, as a state of `version` holds them."""
        order = None
        if self.shuffle is not None:
            order = {"order": "native", "version": ORDER_VERSION, **asdict(self.shuffle)}
        return {
            "samples": self._selection.size, "fingerprint": self._fingerprint(version),
            "seed": self._seed, "shuffle": order, "epoch_size": self._epoch_size,
        }  # fmt: skip

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
        return Partition(
            size, ranks.rank, ranks.world, batch_size, last, ranks.world // ranks.per_node, start,
            gaps=cursor.gaps, rows=partial(self.at, cursor.epoch),
        )  # fmt: skip

    @property
    def is_view_order(self) -> bool:
        """Whether epochs read the view in its own order."""
        return self.shuffle is None

    @property
    def epoch_size_keeps_order(self) -> bool:
        """True: `epoch_size` changes only where epochs end, not the order of samples."""
        return True

    def needs_state(self, ranks: Ranks) -> bool:
        """Return False: any ranks are valid."""
        return False

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return how many of `nodes` nodes read each chunk; 1 for orders without lanes."""
        lanes = 1 if self.shuffle is None else self.shuffle.lanes or 1
        return nodes // math.gcd(nodes, lanes) if lanes > 1 else 1

    def chunk_share(self, nodes: int) -> float:
        """Return the fraction of a chunk's samples that one of `nodes` nodes reads."""
        lanes = 1 if self.shuffle is None else self.shuffle.lanes or 1
        return math.gcd(nodes, lanes) / nodes

    def with_block(self, nbytes: int) -> tuple[Epochs, str] | None:
        """Return epochs with blocks of `nbytes`, and this setting as text; None if not shuffled."""
        if self.shuffle is None:
            return None
        other = copy(self)
        other.shuffle = Shuffle(nbytes).resolve(self._source.estimate_bytes(self._selection.size))
        return other, f"shuffle=npstream.Shuffle(block={nbytes})"

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return the state of an iteration at `cursor`; it does not depend on `ranks`."""
        return make_state(self._state_settings(), cursor)

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return the cursor of a state; it does not depend on `ranks`."""
        cursor = read_cursor(state, self._state_settings)
        require_within_epoch(cursor, self.size)
        return cursor

    def at(self, epoch: int, positions: Int64) -> Int64:
        """Return the samples at positions in an epoch. Each position is below `size`."""
        samples = self._selection.size
        if self.size == samples:
            return self._selection.at(self._rows(epoch, positions))
        passes, positions = np.divmod(positions + epoch * self.size, samples)
        rows = np.empty_like(positions)
        for number in np.unique(passes).tolist():
            in_pass = passes == number
            rows[in_pass] = self._rows(number, positions[in_pass])
        return self._selection.at(rows)

    def _rows(self, pass_number: int, positions: Int64) -> Int64:
        """Return the rows of the view at positions in a pass."""
        if self.shuffle is None:
            return positions
        if self._last_order is None or self._last_order[0] != pass_number:
            order = view_order(self._source, self._selection, self.shuffle, self._seed, pass_number)
            self._last_order = pass_number, order
        return self._last_order[1].at(positions)


def epochs_for(source: Source, selection: Selection, settings: IterationSettings) -> AnyEpochs:
    """Return the epochs of a view, in a native order or in an order of MosaicML Streaming."""
    if isinstance(settings.shuffle, bool | Shuffle):
        return Epochs(source, selection, settings)
    from npstream.iteration.streaming_epochs import StreamingEpochs

    return StreamingEpochs(source, selection, settings)
