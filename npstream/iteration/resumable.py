"""Provide `Resumable`: iteration epoch after epoch, with states to resume from.

This module reads no data. It tracks where each iteration begins, and which samples it has yielded.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from npstream._core.arguments import integer, quantity
from npstream._core.fork import is_spawning
from npstream._core.optional import import_npstream_torch
from npstream.errors import short_repr
from npstream.iteration.counter import MAX_GAPS, EpochCursor
from npstream.iteration.iterator import EpochIterator, EpochProgress
from npstream.iteration.partition import merge_gaps
from npstream.iteration.provenance import STEPS, StepHistory, StepRange, read_history
from npstream.iteration.rank_epochs import RankEpochs
from npstream.iteration.ranks import this_worker
from npstream.iteration.state import MAX_COUNT, TRAINER_EPOCH, read_count

if TYPE_CHECKING:
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.partition import Partition
    from npstream.iteration.settings import IterationSettings

T = TypeVar("T")

_NO_PARTITION: Any = None
"""Replaces the partition in a pickle; unpickling makes a new one."""

OUTDATED = (
    "this iterator is outdated: a newer iteration began, an epoch was set or a state was loaded, "
    "so states do not count what this iterator yields; use the newer iteration. Workers of torch's "
    "own DataLoader may have lost count if a loop was left before all of them had begun: call "
    "set_epoch, or use npstream.torch.DataLoader, which counts for its workers"
)
"""The error of an iterator that is used although states no longer count it."""

_WORKERS_PREFETCH = (
    "workers of torch's own DataLoader prefetch, and do not know what the DataLoader yielded: use "
    "npstream.torch.DataLoader, which counts it, and has the same methods"
)


class Resumable(RankEpochs):
    """An iterable over one epoch after another, with a state to resume from.

    The main process counts its iterations. With `npstream.torch.DataLoader` it also counts for the
    workers. Workers of torch's own DataLoader are *uncoordinated*: they count their iterations
    themselves, in shared memory (see `EpochCounter`).
    """

    def __init__(self, epochs: AnyEpochs, settings: IterationSettings) -> None:
        super().__init__(epochs, settings)
        self._progress: EpochProgress | None = None
        self._iterator: weakref.ref[EpochIterator] | None = None
        # In an uncoordinated worker, a loaded state: the cursor, and the number of samples that the
        # worker yielded after it.
        self._worker_state: tuple[EpochCursor, int] | None = None
        self._is_coordinated = False  # True while `coordinate` calls its function
        self._has_warned_unfinished = False  # see `_warn_if_unfinished`
        self._history = StepHistory()
        # The number of the current epoch in a trainer, and `epoch` minus this number.
        self._trainer_epoch: int | None = None
        self._trainer_offset: int | None = None
        # A DataLoader may start workers later, and they inherit the counter.
        if "torch.utils.data" in sys.modules:
            self._counter.share()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_iterator": None, "_counter": copy.copy(self._counter)}
        if is_spawning():  # a worker process, which counts by the shared counter
            return {**state, "_progress": None}
        if self._counter.worker_iterations:
            raise RuntimeError(f"a copy does not know where to continue: {_WORKERS_PREFETCH}")
        if self._current_progress() is not None:
            state["_counter"].set(self._state_cursor(), self._counter.pinned)
            return {**state, "_progress": None}
        # The loop was left: the copy has the same state, and both begin the next epoch.
        progress = None if self._progress is None else replace(self._progress, part=_NO_PARTITION)
        return {**state, "_progress": progress}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._progress is not None:
            self._progress.part = self._part(self._progress.cursor)

    # Begin an iteration

    def begin(self) -> EpochProgress:
        """Begin the next iteration: at a loaded state if there is one, else at the next epoch.

        Iterators of earlier iterations become outdated. For `npstream.torch` only.

        Returns
        -------
        EpochProgress
            The new progress. The caller makes its iterator, and passes it to `attach`.
        """
        progress = self._fresh_progress()
        if progress is None:
            self._warn_if_unfinished(self._counter.next_cursor())
            progress = self._next_progress(self._counter.advance)
        else:
            # The iteration before yielded nothing, so this one begins at the same cursor.
            progress = self._progress_from(progress.cursor)
        return self._register(progress)

    def begin_worker(self, worker: int, workers: int) -> EpochProgress:
        """Begin a worker's share of the next epoch, in an uncoordinated worker.

        For `npstream.torch` only.

        Parameters
        ----------
        worker : int
            Number of this worker.
        workers : int
            Number of workers.

        Returns
        -------
        EpochProgress
            The new progress, as `begin` returns it.
        """
        progress = self._next_progress(partial(self._counter.advance_worker, worker, workers))
        if self._worker_state is not None:
            cursor, yielded = self._worker_state
            progress = self._progress_from(cursor)
            progress.position += yielded * progress.part.world
            self._worker_state = None
        return self._register(progress)

    def _register(self, progress: EpochProgress) -> EpochProgress:
        """Make `progress` the newest one; the iterator before it raises if it is used again."""
        worker, workers = this_worker()
        if not workers and (previous := self._live_iterator()) is not None:
            previous.retire(OUTDATED)
        self._progress, self._iterator = progress, None
        self._record_begin(progress)
        progress.iteration_number = self._counter.number(worker, workers)
        return progress

    def attach(self, iterator: EpochIterator) -> EpochIterator:
        """Register the iterator of the newest progress, so that `skip` and states see it.

        For `npstream.torch` only.

        Parameters
        ----------
        iterator : EpochIterator
            The iterator over the progress that `begin` returned.

        Returns
        -------
        EpochIterator
            The same iterator.
        """
        self._iterator = weakref.ref(iterator)
        return iterator

    def require_newest(self, progress: EpochProgress) -> None:
        """Raise if a newer iteration than that of `progress` began, here or in workers.

        For `npstream.torch` only.

        Parameters
        ----------
        progress : EpochProgress
            The progress of the iteration that continues.

        Raises
        ------
        RuntimeError
            If the iteration is outdated.
        """
        number = progress.iteration_number
        if number is not None and self._counter.newest_number > number:
            raise RuntimeError(OUTDATED)

    def coordinate(self, progress: EpochProgress, start: Callable[[], T]) -> T:
        """Call a function whose iterators do not count, because the caller counts for them.

        The function iterates over this object, or starts workers that do. Its iterators read the
        rest of the epoch after `progress`. For `npstream.torch` only.

        Parameters
        ----------
        progress : EpochProgress
            The progress that the caller keeps up to date.
        start : callable
            The function, without parameters.

        Returns
        -------
        Any
            The result of `start`.
        """
        position = progress.position + progress.failed_positions
        self._counter.coordinate(progress.resume_cursor(position) or progress.cursor)
        self._is_coordinated = True
        try:
            return start()
        finally:
            self._is_coordinated = False

    # Epochs and states

    @property
    def epoch(self) -> int:
        """The epoch of the current loop, or outside of loops, of the next loop.

        After a state was loaded, it is the state's epoch, or the next one if that epoch is
        finished. Workers of torch's own DataLoader prefetch: with them it is exact only between
        loops.

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
            if self._is_coordinated or progress is None:
                return self._counter.current_cursor().epoch
            return progress.cursor.epoch
        # In a loop, or before the first batch of a loop: the epoch of this loop.
        is_fresh = progress is not None and self._fresh_progress() is progress
        is_live = is_fresh or self._live_iterator() is not None
        if progress is not None and not progress.is_over and is_live:
            return progress.cursor.epoch
        # Outside of loops: the epoch of the next loop. If the cursor is within an epoch, but too
        # little of it is left for a batch, this is the epoch after it.
        cursor = self._counter.next_cursor()
        if cursor == cursor.epoch_start or self._counter.pinned:
            return cursor.epoch
        is_finished = _is_empty(self._progress_from(cursor))
        return cursor.epoch + 1 if is_finished else cursor.epoch

    def set_epoch(self, epoch: int) -> None:
        """Make all further iterations read this epoch, until the next call.

        If the epoch is that of a loaded state, the next iteration begins at the state's position.

        Parameters
        ----------
        epoch : int
            Number of the epoch, at least 0.

        Raises
        ------
        RuntimeError
            In a loop over this iteration, whose epoch cannot change.

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
        self._warn_if_unfinished(cursor)
        self._move_to(cursor, pinned=True)

    def set_trainer_epoch(self, epoch: int) -> None:
        """Record that a trainer begins or continues its epoch number `epoch`.

        Trainers call this method through the sampler of a loader. A trainer may leave each epoch
        after a fixed number of steps. A state that was saved at this step is within the epoch, but
        the trainer continues with the next one. So the next iteration begins at the trainer's
        epoch, as if the run had never stopped. If the loaded state is already in the trainer's
        epoch, the next iteration begins at the state. For `npstream.torch` only.

        Parameters
        ----------
        epoch : int
            The trainer's number of the epoch.
        """
        cursor = self._next_cursor()
        offset, previous = self._trainer_offset, self._trainer_epoch
        self._trainer_epoch = epoch
        is_restarted = previous is not None and epoch <= previous
        if offset is None or is_restarted or epoch + offset < cursor.epoch:
            # This is a trainer's first call, or its epochs went back because another training
            # began. The trainer's epoch is the epoch of the next iteration.
            self._trainer_offset = cursor.epoch - epoch
        elif epoch + offset > cursor.epoch:
            trainer_cursor = cursor._replace(epoch=epoch + offset).epoch_start
            self._move_to(trainer_cursor, self._counter.pinned)

    def state_dict(
        self, num_samples: int | None = None, from_beginning: bool = True
    ) -> dict[str, Any]:
        """Return a state from which to resume after the last yielded batch or sample.

        Parameters
        ----------
        num_samples : int, optional
            Samples that all ranks together have used. By default this iteration counts them.
        from_beginning : bool, default: True
            Whether `num_samples` counts from the beginning of the epoch. If False, it counts from
            where the loop began, for instance at a loaded state.

        Returns
        -------
        dict
            It holds only values that JSON can represent. After the last batch of an epoch, it is
            the state of the beginning of the next epoch. Its structure is always the same, as
            `torch.distributed.checkpoint` needs it.

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
            progress = self._progress or self._progress_from(self._counter.next_cursor())
            yielded = (progress.position - progress.part.start) // progress.part.world
            state = self._encode_state(progress.cursor)
            return {**state, "workers": workers, "yielded": yielded}
        cursor = self._state_cursor(num_samples, from_beginning)
        if self._progress is not None:
            self._progress.saved_position = self._progress.position
        state = self._encode_state(cursor)
        # A tuple: torch.distributed.checkpoint would take a list of dicts apart.
        state[STEPS] = tuple(steps.to_json() for steps in self._history.ranges)
        if self._trainer_offset is not None:
            state[TRAINER_EPOCH] = cursor.epoch - self._trainer_offset
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin at a saved state.

        The state may come from an iteration with another number of ranks or workers, or another
        batch size. The next iteration reads the rest of the state's epoch. Later iterations read
        whole epochs. A state that was saved before an append to the dataset continues as before,
        over the samples of that version, with a warning.

        Parameters
        ----------
        state : mapping
            The result of `state_dict`.

        Raises
        ------
        ValueError
            If the state is of another dataset or view, or of another order. The message names the
            difference.
        RuntimeError
            In a loop over this iteration, which would not see the state.

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
        cursor = self._decode_state(state)
        if (state_workers := state.get("workers", 0)) != workers:
            raise ValueError(
                f"the state has workers={short_repr(state_workers)}, and this process has "
                f"workers={workers}: use npstream.torch.DataLoader, whose states are the same for "
                "any number of workers"
            )
        if workers:
            self._counter.resume_worker(cursor, worker, workers)
            self._worker_state = cursor, read_count(state, "yielded")
            return
        self._trainer_epoch = self._trainer_offset = None
        if state.get(TRAINER_EPOCH) is not None:
            self._trainer_offset = cursor.epoch - read_count(state, TRAINER_EPOCH, -MAX_COUNT)
        self._history = read_history(state)
        self._move_to(cursor, pinned=False)

    def skip(self, start: int, stop: int) -> None:
        """Skip batches of an epoch, for instance batches that caused a loss spike.

        In a loop, the current epoch skips them, from its next batch on. Outside of a loop, the next
        iteration continues after the last yielded batch, and skips them. Saved states contain the
        skipped ranges.

        Parameters
        ----------
        start, stop : int
            The first skipped batch, and the one after the last, counted from the beginning of the
            epoch. A `stop` after the last batch skips the rest of the epoch.

        Raises
        ------
        RuntimeError
            In a worker of a DataLoader.
        ValueError
            If `start` is after `stop` or after the epoch's last batch, or if an epoch would have
            more than 8 separate skipped ranges.

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
        if start > stop:
            raise ValueError(
                f"skip({start}, {stop}): expected the first skipped batch and the one after the "
                f"last; skip({stop}, {start}) skips {quantity(start - stop, 'batch')}"
            )
        if start < stop and start * part.global_batch >= part.size:
            batches = -(-part.size // part.global_batch)
            raise ValueError(
                f"skip({start}, {stop}): epoch {cursor.epoch} has only "
                f"{quantity(batches, 'batch')}, counted from 0"
            )
        gap = (min(start * part.global_batch, part.size), min(stop * part.global_batch, part.size))
        gaps = merge_gaps([*cursor.gaps, gap])
        if len(gaps) > MAX_GAPS:
            raise ValueError(f"at most {MAX_GAPS} separate ranges of an epoch can be skipped")
        progress = self._progress_from(cursor._replace(gaps=gaps))  # raises for invalid gaps
        if (previous := self._active_progress()) is None:
            self._move_to(progress.cursor, self._counter.pinned)
            return
        iterator = self._live_iterator()
        assert iterator is not None
        progress.has_yielded, progress.iteration_number = True, previous.iteration_number
        # The number of samples that the loop has read, `position` minus `origin`, stays the same.
        progress.loop_start = progress.position - (previous.position - previous.origin)
        iterator.redirect(progress)
        self._progress = progress
        self._record_begin(progress)

    def _move_to(self, cursor: EpochCursor, pinned: bool) -> None:
        """Make the next iteration begin at `cursor`.

        If there is an iterator that has yielded nothing, it is moved there, too.
        """
        self._counter.set(cursor, pinned)
        iterator, is_fresh = self._live_iterator(), self._fresh_progress() is not None
        self._progress = None
        if iterator is not None and is_fresh:
            self._progress = self._next_progress(self._counter.advance)
            self._progress.iteration_number = self._counter.number(worker=0, workers=0)
            iterator.redirect(self._progress)
            self._record_begin(self._progress)

    # Current iteration

    def _live_iterator(self) -> EpochIterator | None:
        """Return the newest iterator if it still exists."""
        iterator = None if self._iterator is None else self._iterator()
        return iterator if iterator is not None and iterator.progress is self._progress else None

    def _fresh_progress(self) -> EpochProgress | None:
        """Return the newest progress if it has yielded nothing."""
        progress = self._progress
        if progress is None or not progress.is_fresh or self._counter.worker_iterations:
            return None
        return progress

    def _active_progress(self) -> EpochProgress | None:
        """Return the progress of a loop that has yielded items and is not done."""
        progress = self._progress
        if progress is None or progress.is_fresh or progress.is_done:
            return None
        return None if self._live_iterator() is None else progress

    def _current_progress(self) -> EpochProgress | None:
        """Return the progress that the next batch belongs to; None if no loop has begun."""
        return self._fresh_progress() or self._active_progress()

    def _next_cursor(self) -> EpochCursor:
        """Return where the next iteration begins."""
        progress = self._fresh_progress()
        return self._counter.next_cursor() if progress is None else progress.cursor

    def _state_cursor(self, samples: int | None = None, from_beginning: bool = True) -> EpochCursor:
        """Return the cursor to save; `samples` is the caller's count, if the caller has one."""
        if samples is None and "accelerate" in sys.modules:
            mode, _ = import_npstream_torch().accelerate_mode(self)
            if mode == "prefetches":
                raise RuntimeError(
                    "Accelerate's DataLoader prefetches a batch, which a resumed run would leave "
                    "out: prepare an npstream.torch.DataLoader, which counts what it yields"
                )
        progress = self._progress
        if self._counter.worker_iterations:
            if samples is None:
                raise RuntimeError(_WORKERS_PREFETCH)
            progress = self._progress_from(self._counter.last_worker_cursor())
        if samples is not None:
            progress = progress or self._progress_from(self._counter.next_cursor())
            progress = EpochProgress(
                progress.cursor, progress.part, samples + (0 if from_beginning else progress.origin)
            )
        if progress is None:
            return self._counter.next_cursor()
        return progress.resume_cursor() or self._counter.next_cursor()

    def _raise_in_loop(self, call: str) -> None:
        progress = self._active_progress()
        if progress is not None and not this_worker()[1]:
            raise RuntimeError(
                f"{call} in a loop over epoch {progress.cursor.epoch} does not change this loop: "
                "leave the loop first, or delete its iterator if you hold it (del, or its "
                "close()); or make another iteration"
            )

    def _warn_if_unfinished(self, next_cursor: EpochCursor) -> None:
        """Warn if the last loop was left where its state was saved, and another epoch begins.

        A run that resumes from this state would read the rest of the epoch instead.
        """
        progress = self._progress
        if progress is None or self._has_warned_unfinished or self._trainer_offset is not None:
            return
        is_unfinished = (
            not progress.is_fresh and not progress.is_done and progress.resume_cursor() is not None
        )
        if (
            not is_unfinished
            or progress.saved_position != progress.position
            or next_cursor.epoch == progress.cursor.epoch
        ):
            return
        self._has_warned_unfinished = True
        self._warn_unfinished(progress)

    # Steps

    def _record_begin(self, progress: EpochProgress) -> None:
        """Record in the history that a loop begins."""
        self._history = self._history.with_loop(progress.cursor, self._step_range(progress.part))

    def _step_range(self, part: Partition) -> StepRange:
        """Return a range with the batch size and the ranks of this iteration, at epoch 0."""
        per_node = part.world // part.nodes
        last = self._settings.last
        return StepRange(0, 0, 0, part.global_batch, part.world, per_node, last)

    # New iterations

    def _next_progress(self, advance: Callable[[], EpochCursor]) -> EpochProgress:
        """Return the progress of the next epoch that has something to read.

        The rest of an epoch at a loaded state may be too short for a batch.
        """
        while True:
            progress = self._progress_from(advance())
            if not _is_empty(progress) or progress.cursor == progress.cursor.epoch_start:
                return progress

    def _progress_from(self, cursor: EpochCursor) -> EpochProgress:
        part = self._part(cursor)
        return EpochProgress(cursor, part, part.start)


def _is_empty(progress: EpochProgress) -> bool:
    return progress.part.end <= progress.part.start
