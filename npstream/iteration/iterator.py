"""Provide an iterator over the rest of an epoch, which counts the samples it yields.

This module reads no data: the caller passes a function that makes the items.
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
    """The progress of one iteration: where it began, and which samples it has yielded.

    Positions are unskipped positions of the epoch, as `Partition` counts them.

    Parameters
    ----------
    cursor : EpochCursor
        Where the iteration began.
    part : Partition
        The rank's part of the epoch, from `cursor` on.
    position : int
        The position after the last item that was yielded.
    is_over : bool, default: False
        True if the iterator has ended. `is_done` is True already after the last item.
    has_yielded : bool, default: False
        True if the loop yielded items before this progress began: `Resumable.skip` gives the
        iterator of a loop a new progress.
    loop_start : int, optional
        The position where the loop began; by default ``part.start``. `origin` explains it.
    failed_positions : int, default: 0
        Number of positions after `position` whose items raised an error instead of being yielded.
        The loop skips them if it continues.
    saved_position : int, default: -1
        The position when a state was last saved; -1 if none was.
    iteration_number : int, optional
        The number of the iteration in `npstream.iteration.counter.EpochCounter`, if this process
        began it.
    """

    cursor: EpochCursor
    part: Partition
    position: int
    is_over: bool = False
    has_yielded: bool = False
    loop_start: int | None = None
    failed_positions: int = 0
    saved_position: int = -1
    iteration_number: int | None = None

    @property
    def origin(self) -> int:
        """The position where the loop began.

        `position` minus the origin is the number of positions that the loop has read.
        `Resumable.skip` keeps this number, but gives the loop a new part, which starts at the
        loop's position. So the origin can be before the start of this part. If the loop skips
        batches that it has already yielded, `position` becomes smaller, because skipped samples
        have no unskipped positions. So the origin can even be negative.
        """
        return self.part.start if self.loop_start is None else self.loop_start

    @property
    def is_fresh(self) -> bool:
        """True if the loop has yielded nothing."""
        return self.position == self.part.start and not (self.is_over or self.has_yielded)

    @property
    def is_done(self) -> bool:
        """True if the rank has read all its samples, or the iterator has ended."""
        return self.is_over or self.samples_done >= self.part.samples

    @property
    def samples_done(self) -> int:
        """Samples of the rank that were yielded or failed."""
        return (self.position + self.failed_positions - self.part.start) // self.part.world

    def resume_cursor(self, position: int | None = None) -> EpochCursor | None:
        """Return the cursor at `position`, by default after all yielded items; None at the end."""
        position = self.position if position is None else position
        if self.is_over or position >= self.part.unrepeated_end:
            return None
        epoch_position = int(to_epoch_positions(np.array([position]), self.cursor.gaps)[0])
        return self.cursor._replace(position=epoch_position)


ItemFactory: TypeAlias = Callable[[EpochProgress], Iterator[Any]]
"""A function that returns an iterator over the items that a progress has not yielded yet."""


class EpochIterator(chain[Any]):
    """Yields the items of an iteration, and counts each item before it is yielded.

    An iterator that raised an exception can continue, so an error never looks like the end of an
    epoch. After an error in an item it continues with the next item. After an interruption, such as
    KeyboardInterrupt, it continues with the same item.

    It is an `itertools.chain` of generators, because a chain adds no time per item. Usually there
    is one generator. After an error or a call of `redirect`, the chain continues with another.
    """

    _segments: _Segments

    @classmethod
    def create(
        cls,
        progress: EpochProgress,
        samples_per_item: int,
        items: Iterator[Any],
        make: ItemFactory,
    ) -> EpochIterator:
        """Return an iterator over the items of an iteration.

        Parameters
        ----------
        progress : EpochProgress
            The progress of the iteration, which the iterator keeps up to date.
        samples_per_item : int
            Number of samples of the rank in each item.
        items : iterator
            The items.
        make : callable
            Makes the remaining items after an error or a call of `redirect`.

        Returns
        -------
        EpochIterator
        """
        segments = _Segments(progress, samples_per_item * progress.part.world, items, make)
        iterator: Any = cls.from_iterable(segments)
        iterator._segments = segments
        return cast("EpochIterator", iterator)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an iterator cannot be copied or pickled: copy what ds.iter returned")

    def __repr__(self) -> str:
        return f"<EpochIterator: {', '.join(f'{name} {text}' for name, text in self._facts())}>"

    def _repr_html_(self) -> str:
        from npstream.rendering.html import key_value_table

        return key_value_table("EpochIterator", self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        """Return how far the iteration is; nothing is read."""
        progress = self.progress
        part = progress.part
        rank, done = f"{part.rank} of {part.world}", progress.samples_done
        return [
            ("epoch", str(progress.cursor.epoch)),
            ("rank", rank),
            ("samples", f"{done:,} of {part.samples:,}{', finished' if progress.is_done else ''}"),
        ]

    @property
    def progress(self) -> EpochProgress:
        """The progress of the iteration."""
        return self._segments.progress

    def redirect(self, progress: EpochProgress) -> None:
        """Replace the progress, and continue with the items that it has not yielded."""
        self._segments.stop()
        self._segments.progress = progress

    def retire(self, reason: str) -> None:
        """Make ``next(iterator)`` raise RuntimeError, unless all items were yielded."""
        self._segments.stop()
        if not self.progress.is_done:
            self._segments.make = _RaisingFactory(reason)

    def close(self) -> None:
        """Release prefetched data; nothing more is yielded."""
        self._segments.stop()
        # `Resumable` may have the same progress, and must not see that the epoch is over.
        self._segments.progress = replace(self.progress, is_over=True)


class _Segments:
    """The generators of an iterator; each ends with the epoch, after `stop`, or after an error.

    Generators refer neither to the iterator nor to this object. There is no reference cycle, so an
    iterator without references is freed at once.
    """

    def __init__(
        self, progress: EpochProgress, step: int, items: Iterator[Any], make: ItemFactory
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
        """End the current generator, and release prefetched data."""
        if self._segment is not None:
            if self._segment.gi_running:
                raise RuntimeError(
                    "this method was called while the next batch is made, perhaps by a transform: "
                    "call it in the loop over the batches"
                )
            self._segment.close()
        self._segment = self._items = None


def _count_yielded(
    items: Iterator[Any] | None, make: ItemFactory, progress: EpochProgress, step: int
) -> Iterator[Any]:
    """Yield items, and advance `progress` by `step` positions before each."""
    if items is None:
        items = make(progress)
    try:
        # The first item after failed ones also moves the position past these. This is a loop of its
        # own, so that the other loop needs no check per item.
        if progress.failed_positions:
            for item in items:
                progress.position += progress.failed_positions + step
                progress.failed_positions = 0
                yield item
                break
        for item in items:
            progress.position += step
            yield item
    except Exception as error:
        progress.failed_positions += step
        shorten(error)
        raise
    progress.position += progress.failed_positions
    progress.failed_positions = 0
    progress.is_over = True


class _RaisingFactory:
    """An `ItemFactory` that raises RuntimeError with `reason`."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self, progress: EpochProgress) -> Iterator[Any]:
        raise RuntimeError(self._reason)
