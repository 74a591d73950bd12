"""Iterating epoch after epoch, and going on where another process stopped.

Nothing here reads: it is about which place of which epoch an iteration begins at, and how far it
came.
"""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from npstream.exchange import torch_door
from npstream.orders.partition import joined, stepped_over
from npstream.ranks import integer
from npstream.turns import MAX_GAPS, Place, Turns

if TYPE_CHECKING:
    from npstream._typing import Bools, Int64


class Part(Protocol):
    """One rank's part of what is left of an epoch, as in `npstream.orders.partition.Partition`.

    Positions count what is left, gaps taken out.
    """

    @property
    def world(self) -> int:
        """All ranks."""

    @property
    def batch_size(self) -> int:
        """Samples of the rank in a batch."""

    @property
    def whole(self) -> int:
        """Samples in a global batch."""

    @property
    def start(self) -> int:
        """Where the first batch begins."""

    @property
    def size(self) -> int:
        """The end of the epoch."""

    @property
    def end(self) -> int:
        """The position after the last one that some rank reads."""

    @property
    def until(self) -> int:
        """The position from which on nothing new is read."""

    @property
    def samples(self) -> int:
        """Samples that the rank reads."""

    @property
    def batches(self) -> int:
        """Batches that the rank reads."""

    def at_once(self, step: int) -> int:
        """Return how many batches, so far apart, are worth looking up at once."""

    def read(self, batches: range) -> tuple[Int64, Bools]:
        """Return the samples in some batches, and which of them only fill up the last one."""


@dataclass(slots=True)
class Run:
    """One iteration: where it began, and how far it came.

    Positions count what is left of the epoch, gaps taken out.
    """

    place: Place
    part: Part
    position: int
    is_over: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was taken from it."""
        return self.position == self.part.start and not self.is_over

    def counted(self, items: Iterable[Any], rows: int) -> Iterator[Any]:
        """Yield items, and count each as `rows` samples of every rank before it is yielded."""
        step = rows * self.part.world
        for item in items:
            self.position += step
            yield item
        self.is_over = True

    def reached(self) -> Place | None:
        """Return the place from which on nothing was yielded; None if no batch is left."""
        if self.is_over or self.position >= self.part.until:
            return None
        position = int(stepped_over(np.array([self.position]), self.place.gaps)[0])
        return self.place._replace(position=position)


class Resumable(ABC):
    """What is iterated over epoch after epoch, and has a state."""

    def __init__(self, epoch: int, room: int = 0) -> None:
        self._turns = Turns(epoch, room)
        self._run: Run | None = None
        self._rejoined: tuple[Place, int] | None = None
        self._is_led = False
        if "torch.utils.data" in sys.modules:
            self._turns.share()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None, "_turns": copy.copy(self._turns)}

    @abstractmethod
    def _part(self, place: Place) -> Part:
        """Return this rank's part of what is left of an epoch."""

    @abstractmethod
    def _state_of(self, place: Place) -> dict[str, Any]:
        """Return the state that says to go on at a place."""

    @abstractmethod
    def _place_of(self, state: Mapping[str, Any]) -> Place:
        """Return where a state says to go on; raise if it is of something else."""

    def begin(self) -> Run:
        """Begin the next epoch, or where a state says, and return what counts how far it is.

        This is for whoever hands on what workers read, such as `npstream.torch.DataLoader`.
        """
        run = self._fresh()
        # Each gets a run of its own, for an earlier iterator may yet go on.
        self._run = self._run_from(run.place) if run else self._next_run(self._turns.take)
        return self._run

    def lead(self, is_led: bool) -> None:
        """Let workers that are started now begin where `begin` does, and count no epochs."""
        self._is_led = is_led

    # How far it is

    def set_epoch(self, epoch: int) -> None:
        """Make all iterations from now on those of one epoch, until it is set anew.

        In the epoch that a state was loaded of, the next iteration begins where the state says.
        """
        run = self._fresh()
        place = self._turns.upcoming() if run is None else run.place
        if place.epoch != integer("epoch", epoch, 0):
            place = place._replace(epoch=epoch).beginning
        self._go_to(place, pinned=True)

    def state_dict(
        self, num_samples: int | None = None, from_beginning: bool = True
    ) -> dict[str, Any]:
        """Return what is to be loaded to go on after the last batch, or sample, that was yielded.

        Parameters
        ----------
        num_samples : int, optional
            Samples that all ranks together have used, if somebody else counts them.
        from_beginning : bool
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
        if not workers:
            return self._state_of(self._reached(num_samples, from_beginning))
        run = self._run or self._run_from(self._turns.upcoming())
        yielded = (run.position - run.part.start) // run.part.world
        state = self._state_of(run.place)
        return {**state, "workers": workers, "yielded": yielded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where another was when it returned this state.

        That may have been on another number of ranks or workers, and of other batches. The epoch
        after it is a whole one.

        Raises
        ------
        ValueError
            If it was over another dataset or view, or in another order; it says what differs.
        """
        worker, workers = this_worker()
        place = self._place_of(state)
        if state.get("workers", 0) != workers:
            raise ValueError(
                f"this is the state of one of {state.get('workers', 0)} workers, and there are "
                f"{workers}: states of npstream.torch.DataLoader are the same for any number"
            )
        if workers:
            self._turns.rejoin(place, worker, workers)
            self._rejoined = place, integer("yielded", state["yielded"], 0)
        else:
            self._go_to(place, pinned=False)

    def skip(self, start: int, stop: int) -> None:
        """Leave batches of an epoch out, say those that made the loss jump.

        It is the epoch that goes on, or comes next: the next iteration begins behind what was
        yielded so far, and passes over the batches, which states know.

        Parameters
        ----------
        start, stop : int
            The first batch to be left out, and the next one not to be, as counted from the
            beginning of the epoch.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=1)
        >>> batches.skip(0, 2)
        >>> [batch.ids.tolist() for batch in batches]
        [[2]]
        """
        start, stop = integer("start", start, 0), integer("stop", stop, 0)
        place = self._reached()
        part = self._part(place.beginning)
        gap = (min(start * part.whole, part.size), min(stop * part.whole, part.size))
        gaps = joined([*place.gaps, gap])
        if len(gaps) > MAX_GAPS:
            raise ValueError(f"an epoch is spared {MAX_GAPS} stretches at most")
        self._go_to(place._replace(gaps=gaps), self._turns.pinned)

    def _go_to(self, place: Place, pinned: bool) -> None:
        self._turns.set(place, pinned)
        self._run = None

    def _fresh(self) -> Run | None:
        """Return the run that has begun, if nothing was taken from it."""
        run = self._run
        return run if run is not None and run.is_fresh and not self._turns.begun else None

    def _reached(self, samples: int | None = None, from_beginning: bool = True) -> Place:
        """Return what a state is to say, given what somebody else counted, if so."""
        run = self._run
        if self._turns.begun:
            if samples is None:
                raise RuntimeError(
                    "workers of a DataLoader read ahead, and do not know what it yielded: "
                    "npstream.torch.DataLoader does, and has the same methods"
                )
            run = self._run_from(self._turns.last())
        if samples is not None:
            run = run or self._run_from(self._turns.upcoming())
            run = Run(run.place, run.part, samples + (0 if from_beginning else run.part.start))
        if run is None:
            return self._turns.upcoming()
        return run.reached() or self._turns.upcoming()

    def _begin_as(self, worker: int, workers: int) -> Run:
        """Begin, in a worker, what its share of an epoch is to be taken from."""
        if self._is_led:
            self._run = self._run_from(self._turns.now())
            return self._run
        run = self._next_run(partial(self._turns.take_as, worker, workers))
        if self._rejoined is not None:
            place, yielded = self._rejoined
            run = self._run_from(place)
            run.position += yielded * run.part.world
            self._rejoined = None
        self._run = run
        return run

    def _next_run(self, take: Callable[[], Place]) -> Run:
        """Take turns until there is something to read: little may be left of an epoch."""
        while True:
            run = self._run_from(take())
            if run.part.end > run.part.start or run.place == run.place.beginning:
                return run

    def _run_from(self, place: Place) -> Run:
        part = self._part(place)
        return Run(place, part, part.start)


def this_worker() -> tuple[int, int]:
    """Return the number of the worker that this process is, and of all workers: 0 if it is none."""
    worker: tuple[int, int] = torch_door().worker() if "torch" in sys.modules else (0, 0)
    return worker
