"""The samples of a view, epoch after epoch, in the orders that these have.

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

from npstream.iteration.partition import Partition, unskipped_before
from npstream.iteration.state import (
    STATE_VERSION,
    DatasetFingerprint,
    ViewFingerprint,
    make_state,
    read_cursor,
)
from npstream.orders.order import ORDER_VERSION, Order, Shuffle
from npstream.reading.source import view_order

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.indexing.selection import Selection
    from npstream.iteration.counter import EpochCursor
    from npstream.iteration.ranks import Ranks
    from npstream.iteration.settings import IterationSettings
    from npstream.reading.source import Source


class AnyEpochs(Protocol):
    """Samples at positions of epochs: those of a view, of a mixture, or in Streaming's orders."""

    @property
    def context_bytes(self) -> int:
        """Bytes that the context of a cursor may have where workers are to read it."""

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return the ranks that are left if several in a row are one, as to what they read."""

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return a rank's part of what is left of an epoch."""

    @property
    def is_stored_order(self) -> bool:
        """Whether epochs are in the order of the view."""

    @property
    def epoch_size_keeps_order(self) -> bool:
        """Whether `epoch_size` changes no order, but only where epochs end."""

    def needs_state(self, ranks: Ranks) -> bool:
        """Tell whether these ranks will do only after a state was loaded."""

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return how many nodes read a chunk that one could read alone."""

    def chunk_share(self, nodes: int) -> float:
        """Return which part of a chunk's samples one of several nodes reads."""

    def with_block(self, nbytes: int) -> tuple[AnyEpochs, str] | None:
        """Return epochs with another block, and how to set it; None if there is no shuffle."""

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return a state, which does not depend on the ranks."""

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return where a state says to go on."""


class Epochs:
    """Sample ids at positions of epochs.

    Parameters
    ----------
    source : Source
    selection : Selection
        The view, of which each pass has all samples.
    settings : IterationSettings
        Each pass has an order of its own if `shuffle` is True or a Shuffle. Epochs follow each
        other through the passes.
    """

    context_bytes = 0

    def __init__(self, source: Source, selection: Selection, settings: IterationSettings) -> None:
        self._source = source
        self._selection = selection
        self._seed = settings.seed
        self._epoch_size = settings.epoch_samples
        self.shuffle: Shuffle | None = None
        if settings.shuffle is not False:
            shuffle = settings.shuffle if isinstance(settings.shuffle, Shuffle) else Shuffle()
            self.shuffle = shuffle.resolve(source.bytes_of(selection.size))
        self._last_order: tuple[int, Order] | None = None
        self._fingerprint = ViewFingerprint(DatasetFingerprint(source), selection)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_order": None}

    @property
    def size(self) -> int:
        """Samples in an epoch."""
        if self._epoch_size is None or self._selection.size == 0:
            return self._selection.size
        return self._epoch_size

    def _state_settings(self, version: int = STATE_VERSION) -> dict[str, Any]:
        """Return what all of this depends on, as a state of some version has it."""
        order = None
        if self.shuffle is not None:
            order = {"order": "native", "version": ORDER_VERSION, **asdict(self.shuffle)}
        return {
            "samples": self._selection.size, "fingerprint": self._fingerprint(version),
            "seed": self._seed, "shuffle": order, "epoch_size": self._epoch_size,
        }  # fmt: skip

    def merge_replicas(self, ranks: Ranks, replication: int) -> Ranks:
        """Return the ranks that are left if several in a row are one, as to what they read."""
        return ranks.merge_replicas(replication)

    def part(self, cursor: EpochCursor, ranks: Ranks, batch_size: int, last: str) -> Partition:
        """Return a rank's part of what is left of an epoch."""
        return Partition(
            unskipped_before(self.size, cursor.gaps), ranks.rank, ranks.world, batch_size, last,
            ranks.world // ranks.per_node, unskipped_before(cursor.position, cursor.gaps),
            gaps=cursor.gaps, rows=partial(self.at, cursor.epoch),
        )  # fmt: skip

    @property
    def is_stored_order(self) -> bool:
        """Whether epochs are in the order of the view."""
        return self.shuffle is None

    @property
    def epoch_size_keeps_order(self) -> bool:
        """Whether `epoch_size` changes no order, but only where epochs end."""
        return True

    def needs_state(self, ranks: Ranks) -> bool:
        """Tell whether these ranks will do only after a state was loaded: any always do."""
        return False

    def nodes_per_chunk(self, nodes: int) -> int:
        """Return how many nodes read a chunk that one could read alone."""
        lanes = 1 if self.shuffle is None else self.shuffle.lanes or 1
        return nodes // math.gcd(nodes, lanes) if lanes > 1 else 1

    def chunk_share(self, nodes: int) -> float:
        """Return which part of a chunk's samples one of several nodes reads."""
        lanes = 1 if self.shuffle is None else self.shuffle.lanes or 1
        return math.gcd(nodes, lanes) / nodes

    def with_block(self, nbytes: int) -> tuple[Epochs, str] | None:
        """Return epochs with another block, and how to set it; None if there is no shuffle."""
        if self.shuffle is None:
            return None
        other = copy(self)
        other.shuffle = Shuffle(nbytes).resolve(self._source.bytes_of(self._selection.size))
        return other, f"shuffle=npstream.Shuffle(block={nbytes})"

    def state(self, cursor: EpochCursor, ranks: Ranks) -> dict[str, Any]:
        """Return a state, which does not depend on the ranks."""
        return make_state(self._state_settings(), cursor)

    def load_cursor(self, state: Mapping[str, Any], ranks: Ranks) -> EpochCursor:
        """Return where a state says to go on, with any ranks."""
        return read_cursor(state, self._state_settings)

    def at(self, epoch: int, positions: Int64) -> Int64:
        """Return the samples at positions in an epoch, below its length."""
        samples = self._selection.size
        if self.size == samples:
            return self._selection.at(self._rows(epoch, positions))
        passes, positions = np.divmod(positions + epoch * self.size, samples)
        rows = np.empty_like(positions)
        for number in np.unique(passes).tolist():
            here = passes == number
            rows[here] = self._rows(number, positions[here])
        return self._selection.at(rows)

    def _rows(self, number: int, positions: Int64) -> Int64:
        """Return the rows of the view at positions in a pass."""
        if self.shuffle is None:
            return positions
        if self._last_order is None or self._last_order[0] != number:
            order = view_order(self._source, self._selection, self.shuffle, self._seed, number)
            self._last_order = number, order
        return self._last_order[1].at(positions)


def epochs_for(source: Source, selection: Selection, settings: IterationSettings) -> AnyEpochs:
    """Return the epochs of a view: in a native order, or in one of Streaming's."""
    if isinstance(settings.shuffle, bool | Shuffle):
        return Epochs(source, selection, settings)
    from npstream.iteration.streaming_epochs import StreamingEpochs

    return StreamingEpochs(source, selection, settings)
