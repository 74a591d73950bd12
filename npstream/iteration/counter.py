"""Provide an epoch counter that a process shares with its DataLoader workers.

Each new iteration reads the next epoch. Workers of torch's own DataLoader begin iterations in their
own processes, which may live for one epoch or for all. So two facts are in shared memory that
workers inherit: the cursor where the next epoch begins, and how many iterations each worker began.

The main process coordinates the workers of `npstream.torch.DataLoader`: it counts their iterations,
and tells them the cursor. Only workers of torch's own DataLoader are uncoordinated.

There is no lock. Workers begin at the same time, and a reader may see half of their writes. So each
worker writes its own slot, and never reads the slots of other workers of its loader. A process may
use several loaders, one after the other, with different numbers of workers. Each number has its own
slots. A worker adds the counts of all other loaders to its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.fork import is_spawning
from npstream._core.typing import Int64
from npstream.formats.sharing import SharedArrays
from npstream.iteration.partition import Gaps  # noqa: TC001 - a NamedTuple's field

MAX_WORKERS = 256
"""Maximum number of workers of a loader."""

MAX_GAPS = 8
"""Maximum number of skipped ranges in an epoch."""

# Layout of the shared memory, in 64-bit words: two cursors, four single words, slots of workers,
# and the contexts of the cursors. A cursor has `_CURSOR_WORDS` words: epoch, position and restart,
# then, at `_GAPS_OFFSET`, the start and stop of each gap. Unused gaps are (0, 0).
#   _NEXT     the cursor of the first iteration after the last call of `set`
#   _CURRENT  the cursor for coordinated workers
#   _PINNED   see `pinned`
#   _NEWEST   see `newest_number`
#   _BASE     the value of _NEWEST at the last call of `set`
#   _WARNED   the warnings that were logged, as bits
_GAPS_OFFSET = 3
_CURSOR_WORDS = _GAPS_OFFSET + 2 * MAX_GAPS
_NEXT, _CURRENT = 0, _CURSOR_WORDS
_PINNED, _NEWEST, _BASE, _WARNED, _SLOTS = range(2 * _CURSOR_WORDS, 2 * _CURSOR_WORDS + 5)
# Words of a worker's slot: the number of iterations that the worker began, and its shift. The shift
# is a number of epochs, which is added to the epoch of its iterations: loaded states change it.
_ITERATIONS, _SHIFT = 0, 1
_FIRST_SLOTS = np.arange(MAX_WORKERS + 1) * np.arange(-1, MAX_WORKERS) // 2
"""``_FIRST_SLOTS[n]`` is the slot of worker 0 in a loader of n workers; the others follow it."""

_CONTEXTS = _SLOTS + 2 * (int(_FIRST_SLOTS[-1]) + MAX_WORKERS)
_LENGTH_BYTES = 8
"""Bytes of the length that precedes each context."""


class EpochCursor(NamedTuple):
    """Where an iteration begins: an epoch, a position in it, and the ranges that it skips.

    Attributes
    ----------
    epoch, position : int
    gaps : tuple
        The skipped ranges.
    restart : int
        The position where the epoch was last resumed. Streaming's orders divide the rest of the
        epoch again from there. Other orders ignore it.
    context : bytes
        Data about the training run, which only the order reads. All epochs of a run have the same.
    """

    epoch: int
    position: int = 0
    gaps: Gaps = ()
    restart: int = 0
    context: bytes = b""

    @property
    def epoch_start(self) -> EpochCursor:
        """The beginning of the cursor's epoch."""
        return EpochCursor(self.epoch, context=self.context)


class EpochCounter:
    """The cursors at which iterations begin, one after the other.

    Parameters
    ----------
    epoch : int
        The first epoch.
    context_bytes : int
        Maximum bytes of `EpochCursor.context`; shared memory is reserved for them.

    Examples
    --------
    >>> counter = EpochCounter(epoch=7)
    >>> counter.advance().epoch, counter.advance().epoch, counter.next_cursor().epoch
    (7, 8, 9)
    """

    def __init__(self, epoch: int, context_bytes: int = 0) -> None:
        self._context_bytes = context_bytes
        self._contexts = {_NEXT: b"", _CURRENT: b""}  # used only before `share`
        self._shared: SharedArrays | None = None
        self._set_words(np.zeros(_SLOTS, np.int64))
        self._write(_NEXT, EpochCursor(epoch))

    def __getstate__(self) -> Any:
        if is_spawning():
            self.share()
            return self._shared, self._context_bytes, {}
        copy = EpochCounter(0, self._context_bytes)
        copy.set(self.next_cursor(), self.pinned)
        return copy._words, copy._context_bytes, copy._contexts

    def __setstate__(self, state: Any) -> None:
        words, self._context_bytes, self._contexts = state
        self._shared = words if isinstance(words, SharedArrays) else None
        self._set_words(words["words"] if isinstance(words, SharedArrays) else words)

    def _set_words(self, words: Int64) -> None:
        # Reading one word of a memoryview is much faster than of an array.
        self._words, self._words_view = words, words.data
        self._slots = words[_SLOTS:_CONTEXTS].reshape(-1, 2)

    def share(self) -> None:
        """Move to shared memory, which workers inherit by fork and by spawn."""
        if self._shared is None:
            for context in self._contexts.values():
                self._check_context(context)
            contexts = 2 * -(-(_LENGTH_BYTES + self._context_bytes) // 8)
            words = np.zeros(_CONTEXTS + contexts, np.int64)
            words[:_SLOTS] = self._words
            self._shared = SharedArrays({"words": words}, shares_writes=True)
            self._shared.move_to_file()
            self._set_words(self._shared["words"])
            for offset, context in self._contexts.items():
                self._write_context(offset, context)

    @property
    def pinned(self) -> bool:
        """Whether all iterations read the same epoch."""
        return bool(self._words[_PINNED])

    def is_first_warning(self, number: int) -> bool:
        """Return True on the first call with this `number`, in this process and its workers."""
        is_first = not int(self._words[_WARNED]) >> number & 1
        self._words[_WARNED] |= 1 << number
        return is_first

    def set(self, cursor: EpochCursor, pinned: bool) -> None:
        """Let the next iteration begin at `cursor`; if `pinned`, all later ones read its epoch."""
        self._slots[:] = 0
        self._words[_PINNED] = pinned
        self._words[_NEWEST] += 1
        self._words[_BASE] = self._words[_NEWEST]
        self._write(_NEXT, cursor)

    @property
    def newest_number(self) -> int:
        """Number of the newest iteration, or of the last call of `set`."""
        return self._words_view[_NEWEST]

    def advance(self) -> EpochCursor:
        """Return where an iteration of the main process begins, and move on to the next epoch.

        Workers that the main process coordinates read this iteration with it.
        """
        cursor = self.next_cursor()
        self.coordinate(cursor)
        self.set(self._advance_cursor(cursor, 1, 1), self.pinned)
        return cursor

    def coordinate(self, cursor: EpochCursor) -> None:
        """Tell coordinated workers where their iteration begins."""
        self._write(_CURRENT, cursor)

    def current_cursor(self) -> EpochCursor:
        """Return where the iteration of a coordinated worker begins."""
        return self._read(_CURRENT)

    def advance_worker(self, worker: int, workers: int) -> EpochCursor:
        """Return where an iteration of an uncoordinated worker begins, and count it."""
        slot, iterations, shift = self._worker_slot(worker, workers)
        slot[_ITERATIONS] += 1
        number = self.number(worker, workers)
        if number > self._words[_NEWEST]:
            # The other workers of the loader write the same number.
            self._words[_NEWEST] = number
        return self._advance_cursor(self._read(_NEXT), iterations, iterations + shift)

    def number(self, worker: int, workers: int) -> int:
        """Return the number of the last iteration of a worker.

        If `workers` is 0, return that of the main process.
        """
        if not workers:
            return int(self._words[_BASE])
        _, iterations, _ = self._worker_slot(worker, workers)
        return int(self._words[_BASE]) + iterations

    def resume_worker(self, cursor: EpochCursor, worker: int, workers: int) -> None:
        """Let a worker's next iteration read the epoch of `cursor`; all workers must call it."""
        slot, iterations, shift = self._worker_slot(worker, workers)
        slot[_SHIFT] += cursor.epoch - (self._read(_NEXT).epoch + iterations + shift)
        # All workers write the same bytes, and each worker writes them before it reads them.
        self._write_context(_NEXT, cursor.context)

    def next_cursor(self) -> EpochCursor:
        """Return where the next iteration begins."""
        iterations, shift = self._other_loaders(0)
        return self._advance_cursor(self._read(_NEXT), iterations, iterations + shift)

    @property
    def worker_iterations(self) -> int:
        """Iterations that uncoordinated workers began since the last call of `set`."""
        return self._other_loaders(0)[_ITERATIONS]

    def last_worker_cursor(self) -> EpochCursor:
        """Return where the last iteration of uncoordinated workers began."""
        iterations, shift = self._other_loaders(0)
        return self._advance_cursor(self._read(_NEXT), iterations - 1, iterations - 1 + shift)

    def _worker_slot(self, worker: int, workers: int) -> tuple[Int64, int, int]:
        """Return a worker's slot, its iterations so far, and the sum of its epoch shifts.

        The two numbers include those of other loaders.
        """
        if workers > MAX_WORKERS:
            raise ValueError(f"num_workers={workers}: at most {MAX_WORKERS} can agree on an epoch")
        self.share()
        slot = self._slots[_FIRST_SLOTS[workers] + worker]
        iterations, shift = self._other_loaders(workers)
        return slot, iterations + int(slot[_ITERATIONS]), shift + int(slot[_SHIFT])

    def _other_loaders(self, workers: int) -> tuple[int, int]:
        """Return the iterations and the shift of all loaders, except the one of `workers` workers.

        Worker 0 of a loader stands for the loader, because all its workers begin every epoch.
        """
        if self._shared is None:
            return 0, 0
        first_slots = np.delete(_FIRST_SLOTS[1:], workers - 1) if workers else _FIRST_SLOTS[1:]
        iterations, shift = self._slots[first_slots].sum(axis=0).tolist()
        return iterations, shift

    def _advance_cursor(self, cursor: EpochCursor, iterations: int, epochs: int) -> EpochCursor:
        """Return the cursor of the iteration that is `iterations` after that of `cursor`.

        Its epoch number is larger by `epochs`, or the same if the epoch is pinned. `epochs` differs
        from `iterations` after workers have loaded a state, which shifts the epoch.
        """
        if iterations == 0 and epochs == 0:
            return cursor
        epoch = cursor.epoch if self.pinned else cursor.epoch + epochs
        return cursor._replace(epoch=epoch).epoch_start

    def _read(self, offset: int) -> EpochCursor:
        words = self._words[offset : offset + _CURSOR_WORDS].tolist()
        (epoch, position, restart), ends = words[:_GAPS_OFFSET], words[_GAPS_OFFSET:]
        gaps = tuple(gap for gap in zip(ends[::2], ends[1::2], strict=True) if gap != (0, 0))
        return EpochCursor(epoch, position, gaps, restart, self._read_context(offset))

    def _write(self, offset: int, cursor: EpochCursor) -> None:
        words = self._words[offset : offset + _CURSOR_WORDS]
        words[:] = 0
        words[:_GAPS_OFFSET] = cursor.epoch, cursor.position, cursor.restart
        if cursor.gaps:
            words[_GAPS_OFFSET : _GAPS_OFFSET + 2 * len(cursor.gaps)] = np.ravel(cursor.gaps)
        self._write_context(offset, cursor.context)

    def _read_context(self, offset: int) -> bytes:
        if self._shared is None:
            return self._contexts[offset]
        memory = self._context_memory(offset)
        length = int.from_bytes(memory[:_LENGTH_BYTES], "little")
        return bytes(memory[_LENGTH_BYTES : _LENGTH_BYTES + length])

    def _write_context(self, offset: int, context: bytes) -> None:
        if self._shared is None:
            self._contexts[offset] = context
            return
        self._check_context(context)
        length = len(context).to_bytes(_LENGTH_BYTES, "little")
        self._context_memory(offset)[: _LENGTH_BYTES + len(context)] = length + context

    def _check_context(self, context: bytes) -> None:
        """Raise ValueError if `context` is too long for shared memory."""
        if len(context) > self._context_bytes:
            raise ValueError(
                f"the data of the training run takes {quantity(len(context), 'byte')}, and at most "
                f"{quantity(self._context_bytes, 'byte')} can be shared with workers: begin a new "
                "run, or read without workers"
            )

    def _context_memory(self, offset: int) -> memoryview:
        """Return the memory of a cursor's context: 8 bytes of length, then the context."""
        contexts = self._words[_CONTEXTS:].reshape(2, -1)
        memory: memoryview = contexts[offset // _CURSOR_WORDS].data.cast("B")
        return memory
