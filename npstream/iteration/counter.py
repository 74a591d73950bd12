"""Which epoch an iteration is of: counted by a process and its workers, without a message.

Each new iteration is of the next epoch. Workers of a DataLoader make theirs in processes of their
own, which may live for one epoch or for all; so where the next one begins, and how often each
worker began, stands in memory that they inherit. Workers begin at the same time, and nothing there
is read whole: so each writes a slot of its own, and none reads another's of its own loader. Loaders
with different numbers of workers may follow each other, and what the others counted is added.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import Int64
from npstream.iteration.partition import Gaps  # noqa: TC001 - a NamedTuple's field

MAX_WORKERS = 256
"""Workers that a loader may have."""

MAX_GAPS = 8
"""Stretches that an epoch may be spared."""

_GAPS = 3
_CURSOR = _GAPS + 2 * MAX_GAPS  # words: epoch, position, restart; gaps, the unused ones empty
_NEXT, _CURRENT = 0, _CURSOR
_PINNED, _NEWEST, _BASE, _WARNED, _SLOTS = range(2 * _CURSOR, 2 * _CURSOR + 5)
_BEGUN, _SHIFT = 0, 1  # of a slot: turns taken, and the epochs by which states moved the worker
_FIRST = np.arange(MAX_WORKERS + 1) * np.arange(-1, MAX_WORKERS) // 2
"""The slot of worker 0 of as many workers; those of the others follow."""

_CONTEXTS = _SLOTS + 2 * (int(_FIRST[-1]) + MAX_WORKERS)
_LENGTH = 8
"""Bytes that say how long a context is."""


class EpochCursor(NamedTuple):
    """Where to begin: a position of an epoch, and the stretches of it that are left out.

    Attributes
    ----------
    epoch, position : int
    gaps : tuple
    restart : int
        The position from which an order deals the rest of the epoch out anew, if it does so.
    context : bytes
        What an order needs to know of the run in which the epoch is; only the order reads it. It is
        the same in all epochs of the run.
    """

    epoch: int
    position: int = 0
    gaps: Gaps = ()
    restart: int = 0
    context: bytes = b""

    @property
    def epoch_start(self) -> EpochCursor:
        """Where the epoch begins."""
        return EpochCursor(self.epoch, context=self.context)


class EpochCounter:
    """The cursors at which iterations begin, one after the other.

    Parameters
    ----------
    epoch : int
        The first epoch.
    context_bytes : int
        Bytes that the context of a cursor may have where workers are to read it.

    Examples
    --------
    >>> counter = EpochCounter(epoch=7)
    >>> counter.advance().epoch, counter.advance().epoch, counter.upcoming().epoch
    (7, 8, 9)
    """

    def __init__(self, epoch: int, context_bytes: int = 0) -> None:
        self._context_bytes = context_bytes
        self._contexts = {_NEXT: b"", _CURRENT: b""}  # read only while nothing is shared
        self._shared: Any = None
        self._set_words(np.zeros(_SLOTS, np.int64))
        self._write(_NEXT, EpochCursor(epoch))

    def __getstate__(self) -> Any:
        if is_spawning():
            self.share()
            return self._shared, self._context_bytes, {}
        copy = EpochCounter(0, self._context_bytes)
        copy.set(self.upcoming(), self.pinned)
        return copy._words, copy._context_bytes, copy._contexts

    def __setstate__(self, state: Any) -> None:
        words, self._context_bytes, self._contexts = state
        self._shared = None if isinstance(words, np.ndarray) else words
        self._set_words(words if self._shared is None else np.frombuffer(words, np.int64))

    def _set_words(self, words: Int64) -> None:
        self._words, self._words_view = words, words.data  # by which a word is read in no time
        self._slots = words[_SLOTS:_CONTEXTS].reshape(-1, 2)

    def share(self) -> None:
        """Move to memory that workers inherit, however they are started."""
        if self._shared is None:
            import multiprocessing

            for context in self._contexts.values():
                self._check_context(context)
            contexts = 2 * -(-(_LENGTH + self._context_bytes) // 8)
            self._shared = multiprocessing.RawArray("q", _CONTEXTS + contexts)
            words: Int64 = np.frombuffer(self._shared, np.int64)
            words[:_SLOTS] = self._words
            self._set_words(words)
            for at, context in self._contexts.items():
                self._write_context(at, context)

    @property
    def pinned(self) -> bool:
        """Whether all iterations are of the same epoch."""
        return bool(self._words[_PINNED])

    def first_warning(self, number: int) -> bool:
        """Return whether nobody said what has this number before; from now on, somebody has."""
        is_first = not int(self._words[_WARNED]) >> number & 1
        self._words[_WARNED] |= 1 << number
        return is_first

    def set(self, cursor: EpochCursor, pinned: bool) -> None:
        """Begin here next."""
        self._slots[:] = 0
        self._words[_PINNED] = pinned
        self._words[_NEWEST] += 1
        self._words[_BASE] = self._words[_NEWEST]
        self._write(_NEXT, cursor)

    @property
    def newest(self) -> int:
        """Number of the iteration that began last, or of the last cursor that was set."""
        return self._words_view[_NEWEST]

    def advance(self) -> EpochCursor:
        """Return where an iteration begins that this process, no worker, makes or leads."""
        cursor = self.upcoming()
        self.coordinate(cursor)
        self.set(self._after(cursor, 1, 1), self.pinned)
        return cursor

    def coordinate(self, cursor: EpochCursor) -> None:
        """Let iterations that this process leads begin here."""
        self._write(_CURRENT, cursor)

    def current(self) -> EpochCursor:
        """Return where the iteration begins that the process leads which has this as a worker."""
        return self._read(_CURRENT)

    def advance_worker(self, worker: int, workers: int) -> EpochCursor:
        """Return where an iteration begins that is made by workers which nobody leads."""
        own, turns, shift = self._worker_slot(worker, workers)
        own[_BEGUN] += 1
        number = self.number(worker, workers)
        if number > self._words[_NEWEST]:
            self._words[_NEWEST] = number  # as do the other workers of the same loader
        return self._after(self._read(_NEXT), turns, turns + shift)

    def number(self, worker: int, workers: int) -> int:
        """Return the number of the last iteration of a worker, or of a process that is none."""
        if not workers:
            return int(self._words[_BASE])
        _, turns, _ = self._worker_slot(worker, workers)
        return int(self._words[_BASE]) + turns

    def resume_worker(self, cursor: EpochCursor, worker: int, workers: int) -> None:
        """Let a worker, as all others do, take a turn of a cursor's epoch next."""
        own, turns, shift = self._worker_slot(worker, workers)
        own[_SHIFT] += cursor.epoch - (self._read(_NEXT).epoch + turns + shift)
        # All write the same here, and none reads it before it wrote.
        self._write_context(_NEXT, cursor.context)

    def upcoming(self) -> EpochCursor:
        """Return where the next iteration begins."""
        turns, shift = self._other_loaders(0)
        return self._after(self._read(_NEXT), turns, turns + shift)

    @property
    def worker_iterations(self) -> int:
        """Iterations that were made by workers whom nobody led, since the last that was led."""
        return self._other_loaders(0)[_BEGUN]

    def last_of_workers(self) -> EpochCursor:
        """Return where the last iteration began that was made by workers whom nobody led."""
        turns, shift = self._other_loaders(0)
        return self._after(self._read(_NEXT), turns - 1, turns - 1 + shift)

    def _worker_slot(self, worker: int, workers: int) -> tuple[Int64, int, int]:
        """Return a worker's slot; and the turns before its next one, and what they are moved by."""
        if workers > MAX_WORKERS:
            raise ValueError(f"num_workers={workers}: at most {MAX_WORKERS} can agree on an epoch")
        self.share()
        own = self._slots[_FIRST[workers] + worker]
        turns, shift = self._other_loaders(workers)
        return own, turns + int(own[_BEGUN]), shift + int(own[_SHIFT])

    def _other_loaders(self, workers: int) -> tuple[int, int]:
        """Add up the slots of the first workers of loaders with other numbers of workers."""
        if self._shared is None:
            return 0, 0
        firsts = np.delete(_FIRST[1:], workers - 1) if workers else _FIRST[1:]
        turns, shift = self._slots[firsts].sum(axis=0).tolist()
        return turns, shift

    def _after(self, cursor: EpochCursor, turns: int, epochs: int) -> EpochCursor:
        """Return where an iteration begins after others, so many epochs on if none is pinned."""
        if turns == 0 and epochs == 0:
            return cursor
        epoch = cursor.epoch if self.pinned else cursor.epoch + epochs
        return cursor._replace(epoch=epoch).epoch_start

    def _read(self, at: int) -> EpochCursor:
        words = self._words[at : at + _CURSOR].tolist()
        (epoch, position, restart), ends = words[:_GAPS], words[_GAPS:]
        gaps = tuple(gap for gap in zip(ends[::2], ends[1::2], strict=True) if gap != (0, 0))
        return EpochCursor(epoch, position, gaps, restart, self._read_context(at))

    def _write(self, at: int, cursor: EpochCursor) -> None:
        words = self._words[at : at + _CURSOR]
        words[:] = 0
        words[:_GAPS] = cursor.epoch, cursor.position, cursor.restart
        if cursor.gaps:
            words[_GAPS : _GAPS + 2 * len(cursor.gaps)] = np.ravel(cursor.gaps)
        self._write_context(at, cursor.context)

    def _read_context(self, at: int) -> bytes:
        if self._shared is None:
            return self._contexts[at]
        memory = self._context_memory(at)
        length = int.from_bytes(memory[:_LENGTH], "little")
        return bytes(memory[_LENGTH : _LENGTH + length])

    def _write_context(self, at: int, context: bytes) -> None:
        if self._shared is None:
            self._contexts[at] = context
            return
        self._check_context(context)
        length = len(context).to_bytes(_LENGTH, "little")
        self._context_memory(at)[: _LENGTH + len(context)] = length + context

    def _check_context(self, context: bytes) -> None:
        """Raise unless workers can be told a context."""
        if len(context) > self._context_bytes:
            raise ValueError(
                f"what an order needs to know of its run takes {quantity(len(context), 'byte')}, "
                f"and workers can be told {self._context_bytes}: begin a new run, or read without "
                "workers"
            )

    def _context_memory(self, at: int) -> memoryview:
        """Return the memory of a cursor's context: its length, and its bytes."""
        contexts = self._words[_CONTEXTS:].reshape(2, -1)
        memory: memoryview = contexts[at // _CURSOR].data.cast("B")
        return memory


def is_spawning() -> bool:
    """Tell whether what is being pickled is sent to a process that is about to start."""
    context: Any = sys.modules.get("multiprocessing.context")
    return context is not None and context.get_spawning_popen() is not None
