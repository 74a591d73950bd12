"""Iterating epoch after epoch, and going on where another process stopped.

Nothing here reads: it is about which cursor of which epoch an iteration begins at, and how far it
came.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from npstream._core.arguments import integer
from npstream._core.optional import torch_door
from npstream.errors import shown
from npstream.iteration.counter import MAX_GAPS, EpochCursor, is_spawning
from npstream.iteration.iterator import EpochIterator, EpochProgress
from npstream.iteration.partition import merge_gaps
from npstream.iteration.rank_epochs import RankEpochs
from npstream.iteration.ranks import this_worker
from npstream.iteration.state import MAX_COUNT, TRAINER_EPOCH, read_count

if TYPE_CHECKING:
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.settings import IterationSettings

T = TypeVar("T")

_REBUILT: Any = None
"""In place of what is made again where a copy arrives."""

OUTDATED = (
    "this iterator is an old one: a newer iteration began, an epoch was set or a state was loaded, "
    "so states do not count what it yields; go on with the newer one. Workers of torch's own "
    "DataLoader may have lost count if a loop was left before all of them had begun: call "
    "set_epoch, or use npstream.torch.DataLoader, whose workers cannot"
)
"""What an iterator says that is used although it is not the one that states are of."""

_READ_AHEAD = (
    "workers of a DataLoader read ahead, and do not know what it yielded: "
    "npstream.torch.DataLoader does, and has the same methods"
)

"""In a state, the number that a trainer gives to its epoch, if one did."""


class Resumable(RankEpochs):
    """What is iterated over epoch after epoch, and has a state."""

    def __init__(self, epochs: AnyEpochs, settings: IterationSettings) -> None:
        super().__init__(epochs, settings)
        self._progress: EpochProgress | None = None
        self._iterator: weakref.ref[EpochIterator] | None = None
        self._resumed: tuple[EpochCursor, int] | None = None
        self._is_coordinated = False
        self._has_warned = False
        # A trainer's number of the epoch that it is in; and ours of its epoch 0.
        self._trainer_epoch: int | None = None
        self._trainer_offset: int | None = None
        if "torch.utils.data" in sys.modules:
            self._counter.share()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_iterator": None, "_counter": copy.copy(self._counter)}
        if is_spawning():
            return {**state, "_progress": None}
        if self._counter.worker_iterations:
            raise RuntimeError(f"it is not known where a copy is to go on: {_READ_AHEAD}")
        if self._current_progress() is not None:
            state["_counter"].set(self._state_cursor(), self._counter.pinned)
            return {**state, "_progress": None}
        # An epoch that was left: its state is that of a copy, and both begin the next one.
        left = None if self._progress is None else replace(self._progress, part=_REBUILT)
        return {**state, "_progress": left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._progress is not None:
            self._progress.part = self._part(self._progress.cursor)

    # Beginning

    def begin(self) -> EpochProgress:
        """Begin the next epoch, or where a state says; what was iterated over before is old.

        For `npstream.torch` only.

        Returns
        -------
        EpochProgress
            What is to be read. The caller makes its iterator, and gives that to `attach`.
        """
        progress = self._fresh_progress()
        if progress is None:
            self._warn_if_left(self._counter.upcoming())
            progress = self._next_progress(self._counter.advance)
        else:
            progress = self._progress_from(progress.cursor)
        return self._register(progress)

    def begin_worker(self, worker: int, workers: int) -> EpochProgress:
        """Begin, in a worker that nobody leads, its share of the next epoch.

        For `npstream.torch` only.

        Parameters
        ----------
        worker : int
            Number of this worker.
        workers : int
            Number of all workers.

        Returns
        -------
        EpochProgress
            What is to be read, as `begin` returns it.
        """
        progress = self._next_progress(partial(self._counter.advance_worker, worker, workers))
        if self._resumed is not None:
            cursor, yielded = self._resumed
            progress = self._progress_from(cursor)
            progress.position += yielded * progress.part.world
            self._resumed = None
        return self._register(progress)

    def _register(self, progress: EpochProgress) -> EpochProgress:
        worker, workers = this_worker()
        if not workers and (old := self._live_iterator()) is not None:
            old.retire(OUTDATED)
        self._progress, self._iterator = progress, None
        progress.number = self._counter.number(worker, workers)
        return progress

    def attach(self, iterator: EpochIterator) -> EpochIterator:
        """Let `skip`, `set_epoch` and states reach the iterator over what has begun; return it.

        For `npstream.torch` only.

        Parameters
        ----------
        iterator : EpochIterator
            The iterator over the progress that `begin` returned.

        Returns
        -------
        EpochIterator
        """
        self._iterator = weakref.ref(iterator)
        return iterator

    def require_newest(self, progress: EpochProgress) -> None:
        """Raise if another iteration than a progress's began last, in this process or in workers.

        For `npstream.torch` only.

        Parameters
        ----------
        progress : EpochProgress
            What is being read.

        Raises
        ------
        RuntimeError
            It says that only the newest iteration goes on.
        """
        if progress.number is not None and self._counter.newest > progress.number:
            raise RuntimeError(OUTDATED)

    def coordinate(self, progress: EpochProgress, start: Callable[[], T]) -> T:
        """Call a function that iterates over this, or starts workers that do.

        They read what comes after all that is done with of a progress, and count nothing. For
        `npstream.torch` only.

        Parameters
        ----------
        progress : EpochProgress
            What is being read.
        start : callable
            Takes nothing.

        Returns
        -------
        Any
            What the function returns.
        """
        position = progress.position + progress.failed
        self._counter.coordinate(progress.resume_cursor(position) or progress.cursor)
        self._is_coordinated = True
        try:
            return start()
        finally:
            self._is_coordinated = False

    # How far it is

    @property
    def epoch(self) -> int:
        """The epoch that a loop is in; outside of loops, the one that the next loop is of.

        After a state was loaded, that is the state's, unless nothing is left of it. The workers of
        torch's own DataLoader read ahead, so with them it is right between loops only.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=2)
        >>> while batches.epoch < 2:
        ...     for batch in batches:
        ...         print(batches.epoch, batch.ids)
        0 [0 1]
        0 [2 0]
        1 [0 1]
        1 [2 0]
        """
        _, workers = this_worker()
        progress = self._progress
        if workers:
            return (
                self._counter.current().epoch
                if self._is_coordinated or progress is None
                else progress.cursor.epoch
            )
        is_new = progress is not None and self._fresh_progress() is progress
        if (
            progress is not None
            and not progress.is_over
            and (is_new or self._live_iterator() is not None)
        ):
            return progress.cursor.epoch
        cursor = self._counter.upcoming()
        if (
            cursor == cursor.epoch_start
            or self._counter.pinned
            or not _is_empty(self._progress_from(cursor))
        ):
            return cursor.epoch
        return cursor.epoch + 1

    def set_epoch(self, epoch: int) -> None:
        """Make all iterations from now on those of one epoch, until it is set anew.

        In the epoch that a state was loaded of, the next iteration begins where the state says.

        Parameters
        ----------
        epoch : int
            Number of the epoch.

        Raises
        ------
        RuntimeError
            Within a loop over this: the epoch that it is in does not change.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=2, shuffle=True)
        >>> batches.set_epoch(4)
        >>> batches.epoch
        4
        """
        self._raise_in_loop("set_epoch()")
        integer("epoch", epoch, 0)
        cursor = self._next_cursor()
        if cursor.epoch != epoch:
            cursor = cursor._replace(epoch=epoch).epoch_start
        self._warn_if_left(cursor)
        self._move_to(cursor, pinned=True)

    def set_trainer_epoch(self, epoch: int) -> None:
        """Take a trainer's word that its epoch of some number begins, or goes on.

        Trainers tell it the sampler of a loader. They may leave epochs early, always at the same
        step: so a progress that goes on from a state, of an epoch that the trainer is done with, begins
        the next one, as it would have if it had not stopped. Otherwise this changes nothing. For
        `npstream.torch` only.

        Parameters
        ----------
        epoch : int
            The trainer's number of the epoch.
        """
        coming = self._next_cursor()
        offset, last = self._trainer_offset, self._trainer_epoch
        self._trainer_epoch = epoch
        if offset is None or (last is not None and epoch <= last) or epoch + offset < coming.epoch:
            self._trainer_offset = coming.epoch - epoch  # another training, which counts anew
        elif epoch + offset > coming.epoch:
            cursor = coming._replace(epoch=epoch + offset).epoch_start
            self._move_to(cursor, self._counter.pinned)

    def state_dict(
        self, num_samples: int | None = None, from_beginning: bool = True
    ) -> dict[str, Any]:
        """Return what is to be loaded to go on after the last batch, or sample, that was yielded.

        Parameters
        ----------
        num_samples : int, optional
            Samples that all ranks together have used, if somebody else counts them.
        from_beginning : bool, default: True
            Whether those of the whole epoch are meant, or those since a state was loaded.

        Returns
        -------
        dict
            Nothing but what JSON can hold. After the last batch of an epoch, it is the state of
            the next one's beginning.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=1, shuffle=True)
        >>> first, second, third = batches
        >>> again = getfixture("example").iter(0, 1, batch_size=1, shuffle=True)
        >>> again.load_state_dict(batches.state_dict(1))
        >>> [batch.ids == other.ids for batch, other in zip(again, [second, third])]
        [array([ True]), array([ True])]
        """
        _, workers = this_worker()
        if workers:
            progress = self._progress or self._progress_from(self._counter.upcoming())
            yielded = (progress.position - progress.part.start) // progress.part.world
            state = self._state_of(progress.cursor)
            return {**state, "workers": workers, "yielded": yielded}
        cursor = self._state_cursor(num_samples, from_beginning)
        if self._progress is not None:
            self._progress.saved_position = self._progress.position
        state = self._state_of(cursor)
        if self._trainer_offset is not None:
            state[TRAINER_EPOCH] = cursor.epoch - self._trainer_offset
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where another was when it returned this state.

        That may have been on another number of ranks or workers, and of other batches. The epoch
        after it is a whole one.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If it was over another dataset or view, or in another order; it says what differs.
        RuntimeError
            Within a loop over this, which would not know of it.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=1)
        >>> first = next(iter(batches))
        >>> again = getfixture("example").iter(0, 1, batch_size=1)
        >>> again.load_state_dict(batches.state_dict())
        >>> [batch.ids.tolist() for batch in again]
        [[1], [2]]
        """
        worker, workers = this_worker()
        self._raise_in_loop("load_state_dict()")
        cursor = self._cursor_of(state)
        if state.get("workers", 0) != workers:
            raise ValueError(
                f"this is the state of one of {shown(state.get('workers', 0))} workers, and there "
                f"are {workers}: states of npstream.torch.DataLoader are the same for any number"
            )
        if workers:
            self._counter.resume_worker(cursor, worker, workers)
            self._resumed = cursor, read_count(state, "yielded")
            return
        self._trainer_epoch = self._trainer_offset = None
        if state.get(TRAINER_EPOCH) is not None:
            self._trainer_offset = cursor.epoch - read_count(state, TRAINER_EPOCH, -MAX_COUNT)
        self._move_to(cursor, pinned=False)

    def skip(self, start: int, stop: int) -> None:
        """Leave batches of an epoch out, say those that made the loss jump.

        It is the epoch that goes on, or comes next. A loop passes over the batches, from the next
        one on; outside of a loop, the next iteration begins behind what was yielded so far, and
        passes over them. States know of them.

        Parameters
        ----------
        start, stop : int
            The first batch to be left out, and the next one not to be, as counted from the
            beginning of the epoch.

        Raises
        ------
        RuntimeError
            In a worker of a DataLoader.
        ValueError
            If too many stretches of an epoch are left out.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=1)
        >>> batches.skip(0, 2)
        >>> [batch.ids.tolist() for batch in batches]
        [[2]]
        """
        start, stop = integer("start", start, 0), integer("stop", stop, 0)
        if this_worker()[1]:
            raise RuntimeError("skip() in a worker of a DataLoader: call it where the loader is")
        cursor = self._state_cursor()
        part = self._part(cursor.epoch_start)
        gap = (min(start * part.global_batch, part.size), min(stop * part.global_batch, part.size))
        gaps = merge_gaps([*cursor.gaps, gap])
        if len(gaps) > MAX_GAPS:
            raise ValueError(f"an epoch is spared {MAX_GAPS} stretches at most")
        progress = self._progress_from(cursor._replace(gaps=gaps))  # says what does not fit
        if (old := self._active_progress()) is None:
            self._move_to(progress.cursor, self._counter.pinned)
            return
        iterator = self._live_iterator()
        assert iterator is not None
        progress.has_yielded, progress.number = True, old.number
        progress.loop_start = progress.position - (old.position - old.origin)
        iterator.redirect(progress)
        self._progress = progress

    def _move_to(self, cursor: EpochCursor, pinned: bool) -> None:
        """Begin there next, or let the iterator do from which nothing was taken."""
        self._counter.set(cursor, pinned)
        iterator, fresh = self._live_iterator(), self._fresh_progress() is not None
        self._progress = None
        if iterator is not None and fresh:
            self._progress = self._next_progress(self._counter.advance)
            self._progress.number = self._counter.number(0, 0)
            iterator.redirect(self._progress)

    # What runs

    def _live_iterator(self) -> EpochIterator | None:
        """Return the iterator that began last, if somebody has it."""
        iterator = None if self._iterator is None else self._iterator()
        return iterator if iterator is not None and iterator.progress is self._progress else None

    def _fresh_progress(self) -> EpochProgress | None:
        """Return the progress that has begun, if nothing was taken from it."""
        progress = self._progress
        return (
            progress
            if progress is not None and progress.is_fresh and not self._counter.worker_iterations
            else None
        )

    def _active_progress(self) -> EpochProgress | None:
        """Return the progress of a loop from which something was taken, and that is not over."""
        progress = self._progress
        if (
            progress is None
            or progress.is_fresh
            or progress.is_done
            or self._live_iterator() is None
        ):
            return None
        return progress

    def _current_progress(self) -> EpochProgress | None:
        """Return the progress that the next batch is of, if that one has begun."""
        return self._fresh_progress() or self._active_progress()

    def _next_cursor(self) -> EpochCursor:
        """Return where the next iteration begins."""
        progress = self._fresh_progress()
        return self._counter.upcoming() if progress is None else progress.cursor

    def _state_cursor(self, samples: int | None = None, from_beginning: bool = True) -> EpochCursor:
        """Return what a state is to say, given what somebody else counted, if so."""
        if samples is None and "accelerate" in sys.modules:
            how, _ = torch_door().accelerate_mode(self)
            if how == "ahead":
                raise RuntimeError(
                    "Accelerate reads a batch ahead of what its DataLoader yields, which would be "
                    "left out: prepare an npstream.torch.DataLoader, which counts what it yields"
                )
        progress = self._progress
        if self._counter.worker_iterations:
            if samples is None:
                raise RuntimeError(_READ_AHEAD)
            progress = self._progress_from(self._counter.last_of_workers())
        if samples is not None:
            progress = progress or self._progress_from(self._counter.upcoming())
            progress = EpochProgress(
                progress.cursor, progress.part, samples + (0 if from_beginning else progress.origin)
            )
        if progress is None:
            return self._counter.upcoming()
        return progress.resume_cursor() or self._counter.upcoming()

    def _raise_in_loop(self, what: str) -> None:
        progress = self._active_progress()
        if progress is not None and not this_worker()[1]:
            raise RuntimeError(
                f"{what} within a loop, which is in epoch {progress.cursor.epoch} and would go on as it "
                "is: leave the loop before, or drop its iterator if you hold it (del, or its "
                "close()); or make another iteration"
            )

    def _warn_if_left(self, next_cursor: EpochCursor) -> None:
        """Say that an epoch was left where a progress that is resumed would go on."""
        progress = self._progress
        if progress is None or self._has_warned or self._trainer_offset is not None:
            return
        is_left = (
            not progress.is_fresh and not progress.is_done and progress.resume_cursor() is not None
        )
        if (
            not is_left
            or progress.saved_position != progress.position
            or next_cursor.epoch == progress.cursor.epoch
        ):
            return
        self._has_warned = True
        self._warn_left(progress)

    # Runs

    def _next_progress(self, take: Callable[[], EpochCursor]) -> EpochProgress:
        """Take turns until there is something to read: little may be left of an epoch."""
        while True:
            progress = self._progress_from(take())
            if not _is_empty(progress) or progress.cursor == progress.cursor.epoch_start:
                return progress

    def _progress_from(self, cursor: EpochCursor) -> EpochProgress:
        part = self._part(cursor)
        return EpochProgress(cursor, part, part.start)


def _is_empty(progress: EpochProgress) -> bool:
    return progress.part.end <= progress.part.start
