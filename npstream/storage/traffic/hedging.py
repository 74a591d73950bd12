"""Hedged requests: a slow request is sent again, and the first valid answer is used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

__all__ = ["HedgeBudget", "Hedging", "first_answer"]

HEDGE_FACTOR = 3.0
"""An attempt is slow once it has taken this many times the recent median."""

MIN_HEDGE_DELAY = 0.02
"""No attempt is slow before this number of seconds, however fast the store is.

A busy processor delays answers by milliseconds, which a second request does not change.
"""

HEDGE_FRACTION = 0.03
"""Each range request allows this fraction of a hedge, so hedges add at most 3 % more requests."""

MAX_HEDGES = 2
"""Maximum number of hedges of one request.

If 1 % of the answers are slow, so are 1 % of the hedges. With one hedge for each request, one in 40
batches that wait for 256 requests would wait for a slow hedge.
"""

MAX_SAVED_HEDGES = 10.0
"""The maximum number of allowed hedges that are saved for later.

If the whole store becomes slow, hedges do not help. Then at most this number is sent at once.
"""


class HedgeBudget:
    """Limits the number of hedges to a fraction of the requests.

    Attributes
    ----------
    sent, won : int
        The number of hedges that were sent, and the number of hedges that answered first.

    Examples
    --------
    >>> budget = HedgeBudget()
    >>> budget.take()
    False
    >>> for _ in range(34):
    ...     budget.add_request()
    >>> budget.take(), budget.take()
    (True, False)
    """

    def __init__(self) -> None:
        self.sent = self.won = 0
        self._saved = 0.0

    def add_request(self) -> None:
        """Count a range request."""
        self._saved = min(self._saved + HEDGE_FRACTION, MAX_SAVED_HEDGES)

    def take(self) -> bool:
        """Return True if a hedge may be sent now, and count it as sent."""
        if self._saved < 1:
            return False
        self._saved -= 1
        self.sent += 1
        return True


class Hedging(NamedTuple):
    """The conditions for further attempts of a request.

    Attributes
    ----------
    delay : float
        Seconds after which an attempt is slow.
    start : callable
        Returns True if a further attempt may be sent now, and counts it as sent.
    is_valid : callable
        Returns True if a result is a correct answer to the request.
    """

    delay: float
    start: Callable[[], bool]
    is_valid: Callable[[Any], bool]


class Answer(NamedTuple):
    """The result of a request.

    Attributes
    ----------
    result : object
    start : float
        The time, on the loop's clock, when the attempt began that returned the result.
    is_hedge : bool
        True if this was not the first attempt.
    """

    result: Any
    start: float
    is_hedge: bool


async def first_answer(
    perform: Callable[[], Awaitable[Any]], timeout: float, hedging: Hedging | None = None
) -> Answer:
    """Perform a request within `timeout` seconds; if an attempt is slow, begin another one.

    The first valid result is returned, and the other attempts are cancelled. An attempt that fails
    leaves the others running. If there is no valid result, the outcome of the first attempt counts:
    its invalid result is returned, or its exception is raised.

    Parameters
    ----------
    perform : callable
        Returns an awaitable of the result of a new attempt, which may ignore cancellation.
    timeout : float
        Seconds for all attempts together.
    hedging : Hedging, optional
        By default, there is only one attempt.

    Returns
    -------
    Answer

    Raises
    ------
    TimeoutError
        If the first attempt is still running after `timeout`, and no result is valid.
    ConnectionAbortedError
        If the driver cancelled the request.
    """
    loop = asyncio.get_running_loop()
    starts = [loop.time()]
    tasks = [_start(perform())]
    end = starts[0] + timeout
    try:
        is_valid = _is_any if hedging is None else hedging.is_valid
        while True:
            until = end
            if hedging is not None and len(tasks) <= MAX_HEDGES:
                until = min(starts[-1] + hedging.delay, end)
            winner = await _first_valid(tasks, until, is_valid)
            if winner is not None or until == end:
                break
            if hedging is not None and hedging.start():
                starts.append(loop.time())
                tasks.append(_start(perform()))
            else:
                hedging = None
        if winner:
            return Answer(tasks[winner].result(), starts[winner], True)
        if not tasks[0].done():
            raise TimeoutError(f"no answer within {timeout:.1f} s")
        if tasks[0].cancelled():
            raise ConnectionAbortedError("the driver cancelled the request")
        return Answer(tasks[0].result(), starts[0], False)
    finally:
        for task in tasks:
            task.cancel()


async def _first_valid(
    tasks: list[asyncio.Future[Any]], end: float, is_valid: Callable[[Any], bool]
) -> int | None:
    """Wait for a valid result until `end`, a time on the loop's clock.

    Returns
    -------
    int or None
        The index of the first task with a valid result. 0 if all tasks have ended without one. None
        if a task is still running at `end`.
    """
    loop, pending = asyncio.get_running_loop(), {task for task in tasks if not task.done()}
    while pending and (remaining := end - loop.time()) > 0:
        done, pending = await asyncio.wait(
            pending, timeout=remaining, return_when=asyncio.FIRST_COMPLETED
        )
        for number, task in enumerate(tasks):
            if task in done and not _failed(task) and is_valid(task.result()):
                return number
    return None if pending else 0


def _is_any(result: Any) -> bool:
    return True


def _start(work: Awaitable[Any]) -> asyncio.Future[Any]:
    task = asyncio.ensure_future(work)
    # `_failed` retrieves the exception. Otherwise asyncio logs that it was never retrieved.
    task.add_done_callback(_failed)
    return task


def _failed(task: asyncio.Future[Any]) -> bool:
    """Return True if a task was cancelled or raised an exception."""
    return task.cancelled() or task.exception() is not None
