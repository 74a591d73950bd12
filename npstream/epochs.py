"""The samples of a view, epoch after epoch, in the orders that these have."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream.orders.epoch import VERSION, Order, Shuffle, view_order
from npstream.orders.partition import Gaps, stepped_over
from npstream.state import identity

if TYPE_CHECKING:
    from npstream._typing import Int64
    from npstream.selection import Selection
    from npstream.source import Source


class Epochs:
    """Sample ids at positions of epochs.

    Parameters
    ----------
    source : Source
    selection : Selection
        The view, of which each pass has all samples.
    shuffle : bool or Shuffle
        Whether each pass has an order of its own, and its settings.
    seed : int
    size : int, optional
        Samples in an epoch, by default those of the view. Epochs follow each other through the
        passes.
    """

    def __init__(
        self,
        source: Source,
        selection: Selection,
        shuffle: bool | Shuffle,
        seed: int,
        size: int | None,
    ) -> None:
        if not isinstance(shuffle, bool | Shuffle):
            raise TypeError(f"shuffle={shuffle!r}: expected False, True or an npstream.Shuffle")
        self._source = source
        self._selection = selection
        self._seed = seed
        self._chosen = size
        self.shuffle: Shuffle | None = None
        if shuffle is not False:
            nbytes = int(source.index.nbytes.sum()) * selection.size // max(selection.source, 1)
            self.shuffle = (Shuffle() if shuffle is True else shuffle).resolve(nbytes)
        self._held: tuple[int, Order] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    @property
    def size(self) -> int:
        """Samples in an epoch."""
        if self._chosen is None or self._selection.size == 0:
            return self._selection.size
        return self._chosen

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What all of this depends on, and a state compares."""
        order = None
        if self.shuffle is not None:
            order = {"order": "native", "version": VERSION, **asdict(self.shuffle)}
        known = identity(self._source.index, self._selection)
        return {**known, "seed": self._seed, "shuffle": order, "epoch_size": self._chosen}

    def at(self, epoch: int, positions: Int64, gaps: Gaps) -> Int64:
        """Return the samples at positions in what is left of an epoch, below its length."""
        positions = stepped_over(positions, gaps)
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
        if self._held is None or self._held[0] != number:
            order = view_order(self._source, self._selection, self.shuffle, self._seed, number)
            self._held = number, order
        return self._held[1].at(positions)
