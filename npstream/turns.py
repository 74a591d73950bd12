"""Which epoch an iteration is of: counted by a process and its workers, without a message.

Each new iteration is of the next epoch. Workers of a DataLoader make theirs in processes of their
own, which may live for one epoch or for all; so where the next one begins, and how often each
worker began, stands in memory that they inherit. Every worker counts for itself. Loaders with
different numbers of workers may follow each other, and what the others counted is added.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from npstream._typing import Int64
from npstream.orders.partition import Gaps  # noqa: TC001 - a NamedTuple's field

MAX_WORKERS = 256
"""Workers that a loader may have."""

MAX_GAPS = 8
"""Stretches that an epoch may be spared."""

_PLACE = 2 + 2 * MAX_GAPS  # words: epoch, position, and the gaps, of which unused ones are empty
_NEXT, _NOW, _PINNED, _COUNTS = 0, _PLACE, 2 * _PLACE, 2 * _PLACE + 1
_FIRST = np.arange(MAX_WORKERS + 1) * np.arange(-1, MAX_WORKERS) // 2
"""The count of worker 0 of as many workers; those of the others follow."""


class Place(NamedTuple):
    """Where to begin: a position of an epoch, and the stretches of it that are left out."""

    epoch: int
    position: int = 0
    gaps: Gaps = ()


class Turns:
    """The places at which iterations begin, one after the other.

    Examples
    --------
    >>> turns = Turns(epoch=7)
    >>> turns.take().epoch, turns.take().epoch, turns.upcoming().epoch
    (7, 8, 9)
    """

    def __init__(self, epoch: int) -> None:
        self._shared: Any = None
        self._words = np.zeros(_COUNTS, np.int64)
        self._write(_NEXT, Place(epoch))

    def __getstate__(self) -> Any:
        if _is_spawning():
            self.share()
            return self._shared
        copy = Turns(0)
        copy.set(self.upcoming(), self.pinned)
        return copy._words

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, np.ndarray):
            self._shared, self._words = None, state
        else:
            self._shared, self._words = state, np.frombuffer(state, np.int64)

    def share(self) -> None:
        """Move to memory that workers inherit, however they are started."""
        if self._shared is None:
            import multiprocessing

            self._shared = multiprocessing.RawArray("q", _COUNTS + int(_FIRST[-1]) + MAX_WORKERS)
            words: Int64 = np.frombuffer(self._shared, np.int64)
            words[:_COUNTS] = self._words
            self._words = words

    @property
    def pinned(self) -> bool:
        """Whether all iterations are of the same epoch."""
        return bool(self._words[_PINNED])

    def set(self, place: Place, pinned: bool) -> None:
        """Begin here next."""
        self._words[_COUNTS:] = 0
        self._words[_PINNED] = pinned
        self._write(_NEXT, place)

    def take(self) -> Place:
        """Return where an iteration begins that this process, no worker, makes or leads."""
        place = self.upcoming()
        self._write(_NOW, place)
        self.set(self._after(place, 1), self.pinned)
        return place

    def now(self) -> Place:
        """Return where the iteration begins that the process leads which has this as a worker."""
        return self._read(_NOW)

    def take_as(self, worker: int, workers: int) -> Place:
        """Return where an iteration begins that is made by workers which nobody leads."""
        self.share()
        own = self._count_of(worker, workers)
        place = self._after(self._read(_NEXT), self._begun(worker, workers))
        self._words[own] += 1
        return place

    def rejoin(self, epoch: int, worker: int, workers: int) -> None:
        """Let a worker, as all others do, take a turn of this epoch next."""
        self.share()
        self._write(_NEXT, Place(epoch))
        self._words[self._count_of(worker, workers)] = 0

    def upcoming(self) -> Place:
        """Return where the next iteration begins."""
        return self._after(self._read(_NEXT), self.begun)

    @property
    def begun(self) -> int:
        """Iterations that were made by workers whom nobody led, since the last that was led."""
        return self._begun(0, 0)

    def last(self) -> Place:
        """Return where the last iteration began that was made by workers whom nobody led."""
        return self._after(self._read(_NEXT), self.begun - 1)

    def _begun(self, worker: int, workers: int) -> int:
        """Add what one worker counted to what the first ones of all other loaders did."""
        if self._shared is None:
            return 0
        first = _COUNTS + _FIRST[1:]
        begun = int(self._words[first].sum())
        if worker:
            own = self._count_of(0, workers)
            begun += int(self._words[own + worker] - self._words[own])
        return begun

    def _count_of(self, worker: int, workers: int) -> int:
        if workers > MAX_WORKERS:
            raise ValueError(f"num_workers={workers}: at most {MAX_WORKERS} can agree on an epoch")
        return int(_COUNTS + _FIRST[workers]) + worker

    def _after(self, place: Place, turns: int) -> Place:
        if turns == 0:
            return place
        return Place(place.epoch if self.pinned else place.epoch + turns)

    def _read(self, at: int) -> Place:
        epoch, position, *ends = self._words[at : at + _PLACE].tolist()
        gaps = zip(ends[::2], ends[1::2], strict=True)
        return Place(epoch, position, tuple(gap for gap in gaps if gap != (0, 0)))

    def _write(self, at: int, place: Place) -> None:
        words = self._words[at : at + _PLACE]
        words[:] = 0
        words[:2] = place[:2]
        if place.gaps:
            words[2 : 2 + 2 * len(place.gaps)] = np.ravel(place.gaps)


def _is_spawning() -> bool:
    """Tell whether what is being pickled is sent to a process that is about to start."""
    context: Any = sys.modules.get("multiprocessing.context")
    return context is not None and context.get_spawning_popen() is not None
