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
from npstream.iteration.partition import to_epoch_positions

if TYPE_CHECKING:
    from npstream.iteration.counter import EpochCursor
    from npstream.iteration.partition import Partition


@dataclass(slots=True)
class EpochProgress:
    """One iteration: where it began, and how far it came.

    Positions count what is left of the epoch, gaps taken out.

    Parameters
    ----------
    cursor : EpochCursor
    part : Partition
    position : int
        What was yielded ends here.
    is_over : bool
        Whether the iterator has ended.
    has_yielded : bool
        Whether something was yielded before `cursor`, in the same loop.
    loop_start : int, optional
        Where the loop began, if that is not where the part does.
    missed : int
        Positions after `position` that raised an error, and are passed over if the loop goes on.
    saved : int
        The position at which a state was last asked for.
    number : int, optional
        That of the iteration, as `npstream.iteration.counter.EpochCounter` counts them, if this
        process began it.
    """

    cursor: EpochCursor
    part: Partition
    position: int
    is_over: bool = False
    has_yielded: bool = False
    loop_start: int | None = None
    failed: int = 0
    saved_position: int = -1
    number: int | None = None

    @property
    def origin(self) -> int:
        """Where the loop began; below 0 if it skipped batches that it had yielded."""
        return self.part.start if self.loop_start is None else self.loop_start

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was taken from it."""
        return self.position == self.part.start and not (self.is_over or self.has_yielded)

    @property
    def is_done(self) -> bool:
        """Whether the rank has all of its samples."""
        return self.is_over or self.samples_done >= self.part.samples

    @property
    def samples_done(self) -> int:
        """Samples of the rank that are done with: yielded, or passed over."""
        return (self.position + self.failed - self.part.start) // self.part.world

    def resume_cursor(self, position: int | None = None) -> EpochCursor | None:
        """Return the cursor from which on nothing was yielded; None if no batch is left."""
        position = self.position if position is None else position
        if self.is_over or position >= self.part.unrepeated_end:
            return None
        stepped = int(to_epoch_positions(np.array([position]), self.cursor.gaps)[0])
        return self.cursor._replace(position=stepped)


MakeItems: TypeAlias = Callable[[EpochProgress], Iterator[Any]]
"""Makes the items of a progress that come after those that are done with."""


class EpochIterator(chain[Any]):
    """Yields the items of a progress, and counts each before it is yielded.

    It survives errors: one that raised for an item goes on, if it is asked to, with the next item,
    and one that was interrupted with the same item. So an error never looks like an epoch's end.

    To do so in no time, it is a chain of generators, of which most often there is one.
    """

    _segments: _Segments

    @classmethod
    def of(
        cls, progress: EpochProgress, rows: int, items: Iterator[Any], make: MakeItems
    ) -> EpochIterator:
        """Return an iterator over the items of a progress.

        Parameters
        ----------
        progress : EpochProgress
        rows : int
            Samples of the rank in each item.
        items : iterator
            The items of the progress.
        make : callable
            Makes those that are left, after an error or where the iterator is redirected.

        Returns
        -------
        EpochIterator
        """
        segments = _Segments(progress, rows * progress.part.world, items, make)
        iterator: Any = cls.from_iterable(segments)
        iterator._segments = segments
        return cast("EpochIterator", iterator)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an iterator cannot be copied or pickled: copy what ds.iter returned")

    @property
    def progress(self) -> EpochProgress:
        """How far it came."""
        return self._segments.progress

    def redirect(self, progress: EpochProgress) -> None:
        """Go on with another progress from the next item on."""
        self._segments.stop()
        self._segments.progress = progress

    def retire(self, reason: str) -> None:
        """Raise for whoever goes on with this, unless all of it was yielded."""
        self._segments.stop()
        if not self.progress.is_done:
            self._segments.make = _RaisingFactory(reason)

    def close(self) -> None:
        """Let go of what was read ahead; nothing more is yielded."""
        self._segments.stop()
        self._segments.progress = replace(
            self.progress, is_over=True
        )  # a copy, for no epoch is over


class _Segments:
    """The generators of an iterator: each ends where its progress does, or where it was left or failed.

    They refer neither to the iterator nor to this, so that one that nobody has is gone at once.
    """

    def __init__(
        self, progress: EpochProgress, step: int, items: Iterator[Any], make: MakeItems
    ) -> None:
        self.progress, self.make, self._step = progress, make, step
        self._items: Iterator[Any] | None = items
        self._segment: Any = None

    def __iter__(self) -> _Segments:
        return self

    def __next__(self) -> Any:
        if self.progress.is_over:
            raise StopIteration
        self._segment = _count_yielded(self._items, self.make, self.progress, self._step)
        self._items = None
        return self._segment

    def stop(self) -> None:
        """Let the generator end, and go of what it has read ahead."""
        if self._segment is not None:
            if self._segment.gi_running:
                raise RuntimeError(
                    "called while the next batch is made, as by a transform: call it in the loop "
                    "over the batches"
                )
            self._segment.close()
        self._segment = self._items = None


def _count_yielded(
    items: Iterator[Any] | None, make: MakeItems, progress: EpochProgress, step: int
) -> Iterator[Any]:
    """Yield the items of a progress, each of which moves it on by a step."""
    if items is None:
        items = make(progress)
    try:
        if progress.failed:
            for item in items:
                progress.position, progress.failed = progress.position + progress.failed + step, 0
                yield item
                break
        for item in items:
            progress.position += step
            yield item
    except Exception as error:
        progress.failed += step
        shorten(error)
        raise
    progress.position, progress.failed = progress.position + progress.failed, 0
    progress.is_over = True


class _RaisingFactory:
    """Makes no items, but an error."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self, progress: EpochProgress) -> Iterator[Any]:
        raise RuntimeError(self._reason)
