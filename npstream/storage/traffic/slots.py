"""Provide `RequestSlots`, which bounds the concurrent requests of a store, and adapts the bound.

The bound grows by one and shrinks by a factor, like the congestion window of TCP. So several
processes that share a store get about equal shares of it. When the server answers that it is busy,
the bound shrinks at once. A longer latency can have many reasons. So a lower bound is tried, and
kept only if it makes the latency shorter.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from npstream.storage.traffic.latency import RecentLatencies

__all__ = ["RequestSlots"]

BUSY_FACTOR = 0.5
"""The bound is multiplied by this number when the server answers that it is busy."""

MIN_BUSY_PERIOD = 0.1
"""The bound shrinks at most once in this time, in seconds: busy answers come in groups."""

SLOW_FACTOR = 0.75
"""The bound is multiplied by this number, on trial, when the latency has grown."""

TRIAL_ANSWERS = 128
"""A bound is measured for this number of answers.

After them, all recent latencies are those of requests that began after the bound was set.
"""

TRIAL_FACTOR = 0.9
"""A lower bound stays if the median latency is at most this number times the former median."""

SLOW_GROWTH = 2.0
"""The latency has grown if the recent median is more than this many times the lowest one."""

MIN_SLOW_LIMIT = 8
"""The latency alone does not make the bound smaller than this."""


class _Trial(NamedTuple):
    """A test whether a lower bound makes the latency shorter.

    First the bound stays for `TRIAL_ANSWERS`, so that the recent median belongs to it. Then the
    bound is lowered for as many answers, and the medians are compared.

    Attributes
    ----------
    nbytes : int
        The size of the ranges, in bytes.
    limit : int
        The bound before it was lowered; 0 if it was not lowered yet.
    median : float
        The median latency with the bound `limit`, in seconds.
    """

    nbytes: int
    limit: int = 0
    median: float = 0.0


class RequestSlots:
    """Slots for concurrent requests. Use it in one event loop only.

    Parameters
    ----------
    max_limit : int
        The largest bound, and the bound at the beginning.

    Attributes
    ----------
    limit : int
        The maximum number of concurrent requests now, from 1 to `max_limit`.

    Examples
    --------
    >>> slots = RequestSlots(32)
    >>> slots.count_busy(now=0.0)
    True
    >>> slots.limit
    16
    """

    def __init__(self, max_limit: int) -> None:
        self.limit = self._max_limit = max_limit
        self._in_use = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._answers = 0
        self._trial: _Trial | None = None
        self._last_busy = -math.inf

    def locked(self) -> bool:
        """Return True if `acquire` would wait."""
        return self._in_use >= self.limit or any(not f.done() for f in self._waiters)

    async def acquire(self) -> bool:
        """Take a slot, in the order of the calls; wait until one is free. Return True always."""
        if not self.locked():
            self._in_use += 1
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release()  # the slot was given to this task before it was cancelled
            else:
                with suppress(ValueError):  # `_wake` may have removed it
                    self._waiters.remove(future)
            raise
        return True

    def release(self) -> None:
        """Give a slot back."""
        self._in_use -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiters and self._in_use < self.limit:
            future = self._waiters.popleft()
            if not future.done():
                self._in_use += 1  # on behalf of the task that waits
                future.set_result(None)

    def count_busy(self, now: float) -> bool:
        """Shrink the bound after an answer that the server is busy; return True if it shrank.

        Parameters
        ----------
        now : float
            The time in seconds, on any clock.
        """
        if now - self._last_busy < MIN_BUSY_PERIOD:
            return False
        self._last_busy, self._answers, self._trial = now, 0, None
        previous, self.limit = self.limit, max(int(self.limit * BUSY_FACTOR), 1)
        return self.limit < previous

    def count_answer(self, nbytes: int, recent: RecentLatencies) -> bool:
        """Count an answer. Return True if the bound was adapted after this answer.

        The bound is adapted after one answer for each slot, or in a trial after `TRIAL_ANSWERS`.
        The adapted bound may be the same.

        Parameters
        ----------
        nbytes : int
            The bytes of a range; 0 if the request was not for a range.
        recent : RecentLatencies
            The latencies, with that of this answer.
        """
        self._answers += 1
        if self._answers < (self.limit if self._trial is None else TRIAL_ANSWERS):
            return False
        self._answers = 0
        trial, self._trial = self._trial, None
        if trial is None:
            if nbytes and self._can_lower(nbytes, recent):
                self._trial = _Trial(nbytes)
            elif self.limit < self._max_limit:
                self._raise(1)
        elif not trial.limit:
            if self._can_lower(trial.nbytes, recent):
                median = recent.median(trial.nbytes) or 0.0
                self._trial = _Trial(trial.nbytes, self.limit, median)
                self.limit = int(self.limit * SLOW_FACTOR)
        elif (recent.median(trial.nbytes) or 0.0) > TRIAL_FACTOR * trial.median:
            # The latency has grown for another reason than the number of requests.
            recent.forget_lowest(trial.nbytes)
            self._raise(trial.limit - self.limit)
        return True

    def _can_lower(self, nbytes: int, recent: RecentLatencies) -> bool:
        """Return True if the latency has grown, and the bound can be lowered."""
        is_large = int(self.limit * SLOW_FACTOR) >= MIN_SLOW_LIMIT
        return is_large and recent.growth(nbytes) > SLOW_GROWTH

    def _raise(self, count: int) -> None:
        self.limit += count
        self._wake()
