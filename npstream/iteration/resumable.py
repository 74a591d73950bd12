"""Iterating epoch after epoch, and going on where another process stopped.

Nothing here reads: it is about which place of which epoch an iteration begins at, and how far it
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
from npstream.iteration.counter import MAX_GAPS, EpochPlace, is_spawning
from npstream.iteration.iterator import EpochIterator, Run
from npstream.iteration.partition import merge_gaps
from npstream.iteration.rank_epochs import RankEpochs
from npstream.iteration.ranks import this_worker
from npstream.iteration.state import MAX_COUNT, TRAINER_EPOCH, count_in

if TYPE_CHECKING:
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.settings import IterationSettings

T = TypeVar("T")

_AGAIN: Any = None
"""In place of what is made again where a copy arrives."""

OLD = (
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
        self._run: Run | None = None
        self._iterator: weakref.ref[EpochIterator] | None = None
        self._rejoined: tuple[EpochPlace, int] | None = None
        self._is_led = False
        self._has_warned = False
        # A trainer's number of the epoch that it is in; and ours of its epoch 0.
        self._trainer_epoch: int | None = None
        self._trainer_offset: int | None = None
        if "torch.utils.data" in sys.modules:
            self._counter.share()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_iterator": None, "_counter": copy.copy(self._counter)}
        if is_spawning():
            return {**state, "_run": None}
        if self._counter.begun:
            raise RuntimeError(f"it is not known where a copy is to go on: {_READ_AHEAD}")
        if self._current() is not None:
            state["_counter"].set(self._reached(), self._counter.pinned)
            return {**state, "_run": None}
        # An epoch that was left: its state is that of a copy, and both begin the next one.
        left = None if self._run is None else replace(self._run, part=_AGAIN)
        return {**state, "_run": left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._run is not None:
            self._run.part = self._part(self._run.place)

    # Beginning

    def begin(self) -> Run:
        """Begin the next epoch, or where a state says; what was iterated over before is old.

        For `npstream.torch` only.

        Returns
        -------
        Run
            What is to be read. The caller makes its iterator, and gives that to `attach`.
        """
        run = self._fresh()
        if run is None:
            self._warn_of_what_is_left(self._counter.upcoming())
            run = self._next_run(self._counter.take)
        else:
            run = self._run_from(run.place)
        return self._begun(run)

    def begin_as(self, worker: int, workers: int) -> Run:
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
        Run
            What is to be read, as `begin` returns it.
        """
        run = self._next_run(partial(self._counter.take_as, worker, workers))
        if self._rejoined is not None:
            place, yielded = self._rejoined
            run = self._run_from(place)
            run.position += yielded * run.part.world
            self._rejoined = None
        return self._begun(run)

    def _begun(self, run: Run) -> Run:
        worker, workers = this_worker()
        if not workers and (old := self._alive()) is not None:
            old.retire(OLD)
        self._run, self._iterator = run, None
        run.number = self._counter.number(worker, workers)
        return run

    def attach(self, iterator: EpochIterator) -> EpochIterator:
        """Let `skip`, `set_epoch` and states reach the iterator over what has begun; return it.

        For `npstream.torch` only.

        Parameters
        ----------
        iterator : EpochIterator
            The iterator over the run that `begin` returned.

        Returns
        -------
        EpochIterator
        """
        self._iterator = weakref.ref(iterator)
        return iterator

    def require_newest(self, run: Run) -> None:
        """Raise if another iteration than a run's began last, in this process or in workers.

        For `npstream.torch` only.

        Parameters
        ----------
        run : Run
            What is being read.

        Raises
        ------
        RuntimeError
            It says that only the newest iteration goes on.
        """
        if run.number is not None and self._counter.newest > run.number:
            raise RuntimeError(OLD)

    def lead(self, run: Run, start: Callable[[], T]) -> T:
        """Call a function that iterates over this, or starts workers that do.

        They read what comes after all that is done with of a run, and count nothing. For
        `npstream.torch` only.

        Parameters
        ----------
        run : Run
            What is being read.
        start : callable
            Takes nothing.

        Returns
        -------
        Any
            What the function returns.
        """
        position = run.position + run.missed
        self._counter.lead(run.reached(position) or run.place)
        self._is_led = True
        try:
            return start()
        finally:
            self._is_led = False

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
        run = self._run
        if workers:
            return self._counter.now().epoch if self._is_led or run is None else run.place.epoch
        is_new = run is not None and self._fresh() is run
        if run is not None and not run.is_over and (is_new or self._alive() is not None):
            return run.place.epoch
        place = self._counter.upcoming()
        if place == place.beginning or self._counter.pinned or not _is_empty(self._run_from(place)):
            return place.epoch
        return place.epoch + 1

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
        self._refuse_in_loop("set_epoch()")
        integer("epoch", epoch, 0)
        place = self._upcoming()
        if place.epoch != epoch:
            place = place._replace(epoch=epoch).beginning
        self._warn_of_what_is_left(place)
        self._go_to(place, pinned=True)

    def follow_epoch(self, epoch: int) -> None:
        """Take a trainer's word that its epoch of some number begins, or goes on.

        Trainers tell it the sampler of a loader. They may leave epochs early, always at the same
        step: so a run that goes on from a state, of an epoch that the trainer is done with, begins
        the next one, as it would have if it had not stopped. Otherwise this changes nothing. For
        `npstream.torch` only.

        Parameters
        ----------
        epoch : int
            The trainer's number of the epoch.
        """
        coming = self._upcoming()
        offset, last = self._trainer_offset, self._trainer_epoch
        self._trainer_epoch = epoch
        if offset is None or (last is not None and epoch <= last) or epoch + offset < coming.epoch:
            self._trainer_offset = coming.epoch - epoch  # another training, which counts anew
        elif epoch + offset > coming.epoch:
            place = coming._replace(epoch=epoch + offset).beginning
            self._go_to(place, self._counter.pinned)

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
            run = self._run or self._run_from(self._counter.upcoming())
            yielded = (run.position - run.part.start) // run.part.world
            state = self._state_of(run.place)
            return {**state, "workers": workers, "yielded": yielded}
        place = self._reached(num_samples, from_beginning)
        if self._run is not None:
            self._run.saved = self._run.position
        state = self._state_of(place)
        if self._trainer_offset is not None:
            state[TRAINER_EPOCH] = place.epoch - self._trainer_offset
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
        self._refuse_in_loop("load_state_dict()")
        place = self._place_of(state)
        if state.get("workers", 0) != workers:
            raise ValueError(
                f"this is the state of one of {shown(state.get('workers', 0))} workers, and there "
                f"are {workers}: states of npstream.torch.DataLoader are the same for any number"
            )
        if workers:
            self._counter.rejoin(place, worker, workers)
            self._rejoined = place, count_in(state, "yielded")
            return
        self._trainer_epoch = self._trainer_offset = None
        if state.get(TRAINER_EPOCH) is not None:
            self._trainer_offset = place.epoch - count_in(state, TRAINER_EPOCH, -MAX_COUNT)
        self._go_to(place, pinned=False)

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
        place = self._reached()
        part = self._part(place.beginning)
        gap = (min(start * part.whole, part.size), min(stop * part.whole, part.size))
        gaps = merge_gaps([*place.gaps, gap])
        if len(gaps) > MAX_GAPS:
            raise ValueError(f"an epoch is spared {MAX_GAPS} stretches at most")
        run = self._run_from(place._replace(gaps=gaps))  # says what does not fit
        if (old := self._running()) is None:
            self._go_to(run.place, self._counter.pinned)
            return
        iterator = self._alive()
        assert iterator is not None
        run.was_taken, run.number = True, old.number
        run.began = run.position - (old.position - old.origin)
        iterator.redirect(run)
        self._run = run

    def _go_to(self, place: EpochPlace, pinned: bool) -> None:
        """Begin there next, or let the iterator do from which nothing was taken."""
        self._counter.set(place, pinned)
        iterator, fresh = self._alive(), self._fresh() is not None
        self._run = None
        if iterator is not None and fresh:
            self._run = self._next_run(self._counter.take)
            self._run.number = self._counter.number(0, 0)
            iterator.redirect(self._run)

    # What runs

    def _alive(self) -> EpochIterator | None:
        """Return the iterator that began last, if somebody has it."""
        iterator = None if self._iterator is None else self._iterator()
        return iterator if iterator is not None and iterator.run is self._run else None

    def _fresh(self) -> Run | None:
        """Return the run that has begun, if nothing was taken from it."""
        run = self._run
        return run if run is not None and run.is_fresh and not self._counter.begun else None

    def _running(self) -> Run | None:
        """Return the run of a loop from which something was taken, and that is not over."""
        run = self._run
        if run is None or run.is_fresh or run.is_done or self._alive() is None:
            return None
        return run

    def _current(self) -> Run | None:
        """Return the run that the next batch is of, if that one has begun."""
        return self._fresh() or self._running()

    def _upcoming(self) -> EpochPlace:
        """Return where the next iteration begins."""
        run = self._fresh()
        return self._counter.upcoming() if run is None else run.place

    def _reached(self, samples: int | None = None, from_beginning: bool = True) -> EpochPlace:
        """Return what a state is to say, given what somebody else counted, if so."""
        if samples is None and "accelerate" in sys.modules:
            how, _ = torch_door().accelerated(self)
            if how == "ahead":
                raise RuntimeError(
                    "Accelerate reads a batch ahead of what its DataLoader yields, which would be "
                    "left out: prepare an npstream.torch.DataLoader, which counts what it yields"
                )
        run = self._run
        if self._counter.begun:
            if samples is None:
                raise RuntimeError(_READ_AHEAD)
            run = self._run_from(self._counter.last())
        if samples is not None:
            run = run or self._run_from(self._counter.upcoming())
            run = Run(run.place, run.part, samples + (0 if from_beginning else run.origin))
        if run is None:
            return self._counter.upcoming()
        return run.reached() or self._counter.upcoming()

    def _refuse_in_loop(self, what: str) -> None:
        run = self._running()
        if run is not None and not this_worker()[1]:
            raise RuntimeError(
                f"{what} within a loop, which is in epoch {run.place.epoch} and would go on as it "
                "is: leave the loop before, or drop its iterator if you hold it (del, or its "
                "close()); or make another iteration"
            )

    def _warn_of_what_is_left(self, next_place: EpochPlace) -> None:
        """Say that an epoch was left where a run that is resumed would go on."""
        run = self._run
        if run is None or self._has_warned or self._trainer_offset is not None:
            return
        is_left = not run.is_fresh and not run.is_done and run.reached() is not None
        if not is_left or run.saved != run.position or next_place.epoch == run.place.epoch:
            return
        self._has_warned = True
        self._warn_of_left(run)

    # Runs

    def _next_run(self, take: Callable[[], EpochPlace]) -> Run:
        """Take turns until there is something to read: little may be left of an epoch."""
        while True:
            run = self._run_from(take())
            if not _is_empty(run) or run.place == run.place.beginning:
                return run

    def _run_from(self, place: EpochPlace) -> Run:
        part = self._part(place)
        return Run(place, part, part.start)


def _is_empty(run: Run) -> bool:
    return run.part.end <= run.part.start
