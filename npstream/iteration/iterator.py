"""Iterating over what is left of an epoch, and counting it.

Nothing here reads: what makes the items is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import numpy as np

from npstream.errors import shorten
from npstream.iteration.partition import stepped_over

if TYPE_CHECKING:
    from npstream.iteration.counter import EpochPlace
    from npstream.iteration.partition import Partition


@dataclass(slots=True)
class Run:
    """One iteration: where it began, and how far it came.

    Positions count what is left of the epoch, gaps taken out.

    Parameters
    ----------
    place : EpochPlace
    part : Partition
    position : int
        What was yielded ends here.
    is_over : bool
        Whether the iterator has ended.
    was_taken : bool
        Whether something was yielded before `place`, in the same loop.
    began : int, optional
        Where the loop began, if that is not where the part does.
    missed : int
        Positions after `position` that raised an error, and are passed over if the loop goes on.
    saved : int
        The position at which a state was last asked for.
    number : int, optional
        That of the iteration, as `npstream.iteration.counter.EpochCounter` counts them, if this
        process began it.
    """

    place: EpochPlace
    part: Partition
    position: int
    is_over: bool = False
    was_taken: bool = False
    began: int | None = None
    missed: int = 0
    saved: int = -1
    number: int | None = None

    @property
    def origin(self) -> int:
        """Where the loop began; below 0 if it skipped batches that it had yielded."""
        return self.part.start if self.began is None else self.began

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was taken from it."""
        return self.position == self.part.start and not (self.is_over or self.was_taken)

    @property
    def is_done(self) -> bool:
        """Whether the rank has all of its samples."""
        return self.is_over or self.rows >= self.part.samples

    @property
    def rows(self) -> int:
        """Samples of the rank that are done with: yielded, or passed over."""
        return (self.position + self.missed - self.part.start) // self.part.world

    def reached(self, position: int | None = None) -> EpochPlace | None:
        """Return the place from which on nothing was yielded; None if no batch is left."""
        position = self.position if position is None else position
        if self.is_over or position >= self.part.until:
            return None
        stepped = int(stepped_over(np.array([position]), self.place.gaps)[0])
        return self.place._replace(position=stepped)


Make: TypeAlias = Callable[[Run], Iterator[Any]]
"""Makes the items of a run that come after those that are done with."""


class EpochIterator(chain[Any]):
    """Yields the items of a run, and counts each before it is yielded.

    It survives errors: one that raised for an item goes on, if it is asked to, with the next item,
    and one that was interrupted with the same item. So an error never looks like an epoch's end.

    To do so in no time, it is a chain of generators, of which most often there is one.
    """

    _segments: _Segments

    @classmethod
    def of(cls, run: Run, rows: int, items: Iterator[Any], make: Make) -> EpochIterator:
        """Return an iterator over the items of a run.

        Parameters
        ----------
        run : Run
        rows : int
            Samples of the rank in each item.
        items : iterator
            The items of the run.
        make : callable
            Makes those that are left, after an error or where the iterator is redirected.

        Returns
        -------
        EpochIterator
        """
        segments = _Segments(run, rows * run.part.world, items, make)
        iterator: Any = cls.from_iterable(segments)
        iterator._segments = segments
        return cast("EpochIterator", iterator)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an iterator cannot be copied or pickled: copy what ds.iter returned")

    @property
    def run(self) -> Run:
        """How far it came."""
        return self._segments.run

    def redirect(self, run: Run) -> None:
        """Go on with another run from the next item on."""
        self._segments.leave()
        self._segments.run = run

    def retire(self, reason: str) -> None:
        """Raise for whoever goes on with this, unless all of it was yielded."""
        self._segments.leave()
        if not self.run.is_done:
            self._segments.make = _Refusal(reason)

    def close(self) -> None:
        """Let go of what was read ahead; nothing more is yielded."""
        self._segments.leave()
        self._segments.run = replace(self.run, is_over=True)  # a copy, for no epoch is over


class _Segments:
    """The generators of an iterator: each ends where its run does, or where it was left or failed.

    They refer neither to the iterator nor to this, so that one that nobody has is gone at once.
    """

    def __init__(self, run: Run, step: int, items: Iterator[Any], make: Make) -> None:
        self.run, self.make, self._step = run, make, step
        self._items: Iterator[Any] | None = items
        self._segment: Any = None

    def __iter__(self) -> _Segments:
        return self

    def __next__(self) -> Any:
        if self.run.is_over:
            raise StopIteration
        self._segment = _counted(self._items, self.make, self.run, self._step)
        self._items = None
        return self._segment

    def leave(self) -> None:
        """Let the generator end, and go of what it has read ahead."""
        if self._segment is not None:
            if self._segment.gi_running:
                raise RuntimeError(
                    "called while the next batch is made, as by a transform: call it in the loop "
                    "over the batches"
                )
            self._segment.close()
        self._segment = self._items = None


def _counted(items: Iterator[Any] | None, make: Make, run: Run, step: int) -> Iterator[Any]:
    """Yield the items of a run, each of which moves it on by a step."""
    if items is None:
        items = make(run)
    try:
        if run.missed:
            for item in items:
                run.position, run.missed = run.position + run.missed + step, 0
                yield item
                break
        for item in items:
            run.position += step
            yield item
    except Exception as error:
        run.missed += step
        shorten(error)
        raise
    run.position, run.missed = run.position + run.missed, 0
    run.is_over = True


class _Refusal:
    """Makes no items, but an error."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self, run: Run) -> Iterator[Any]:
        raise RuntimeError(self._reason)
