"""Concurrent requests in an event loop, with retries until each request's deadline."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from npstream._core.arguments import quantity
from npstream._core.log import log, warn
from npstream.errors import StorageError
from npstream.storage.failures import Cause, diagnose
from npstream.storage.responses import NO_RANGES
from npstream.storage.traffic.events import is_reporting, report
from npstream.storage.traffic.hedging import Hedging, first_answer
from npstream.storage.traffic.outage import OUTAGE_PAUSE

if TYPE_CHECKING:
    from npstream.storage.deadlines import Deadlines
    from npstream.storage.traffic.record import Traffic
    from npstream.storage.traffic.slots import RequestSlots

__all__ = [
    "DEADLINE_BYTES",
    "Cancellation",
    "Connection",
    "Request",
    "run_requests",
    "run_with_retries",
]

DEADLINE_BYTES = 1 << 24
"""Up to this many bytes, a request has the store's timeout.

The timeout of a larger request is proportional to its bytes.
"""

_MAX_BYTES_IN_FLIGHT = 1 << 27
_BACKOFF = 0.25
"""The mean pause before the second attempt, in seconds. Each further pause is twice as long."""

_MAX_BACKOFF = 1.0
"""The limit of the mean pause before another attempt to connect, in seconds."""

_UNREACHED = {
    *(errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH)
}
"""The attempt reached no server. The server may be restarting."""

_LAST_START = 0.95  # a queued request is not started after this fraction of its timeout

_HINTS = {
    errno.EACCES: "; give credentials that may do this, in storage_options or where the driver "
    "looks for them",
    errno.ERANGE: "; the file is shorter than its index says",
    errno.EHOSTUNREACH: "; check the name of the host, and the network",
    errno.ECONNREFUSED: "; nothing listens there: check the host and the port",
    errno.EPROTO: "; the server does not speak the protocol of the URL: check the scheme "
    "(http or https) and the port",
    errno.ECONNABORTED: "; the server's certificate is not trusted: if it should be, name a file "
    "with that of its issuer ",
}

_ERRNO_TEXTS = {
    errno.EHOSTUNREACH: "Host unreachable",  # the system's "No route to host" misleads
    errno.ECONNABORTED: "Certificate not trusted",
}
"""Replacements for the system's texts where these would be wrong."""


_MIN_LOOP_CHECK = 2.0
"""The shortest time after which an event loop that has not run counts as blocked, in seconds."""

_BODY = (bytes, bytearray, memoryview)
"""The types of the results of range requests."""

_Completion = tuple[int, Any, BaseException | None]
"""The number of a request, its result, and its exception."""

_LOOP_RUNS: _Completion = (-1, None, None)
"""The event loop puts this into the queue to show that it runs."""


@dataclass(slots=True)
class Request:
    """A request to a driver.

    Attributes
    ----------
    where : str
        The file's path or URL, for messages.
    action : str
        What the request does, for messages: "read this file".
    call : callable
        Given the filesystem, returns the result, or a coroutine if the driver has coroutines.
    nbytes : int
        The number of bytes that are transferred.
    expected_nbytes : int, optional
        The number of bytes that the result must have. By default, any number is valid.
    timeout_factor : float
        Multiplies the store's timeout.
    is_optional : bool
        Whether a missing file gives the result None instead of an error.
    start, seconds : float
        The time of the first attempt, on the clock of `time.monotonic`, and the seconds until the
        answer; 0 before the answer.
    """

    where: str
    action: str
    call: Callable[[Any], Any]
    nbytes: int = 0
    expected_nbytes: int | None = None
    timeout_factor: float = 1.0
    is_optional: bool = False
    start: float = 0.0
    seconds: float = 0.0

    @property
    def range_nbytes(self) -> int:
        """The bytes of a range request; 0 for another request."""
        return self.expected_nbytes or 0


class Cancellation:
    """Cancels the waits of threads for results of a store.

    Parameters
    ----------
    root : str
        The store's URL, for messages.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._queues: dict[SimpleQueue[Any], threading.Thread] = {}
        self._stopped: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._is_closed = False

    def stop(self, threads: Iterable[threading.Thread] | None = None) -> None:
        """Fail the requests of `threads`, or of all threads: those pending and all later ones."""
        if threads is None:
            self._is_closed = True
        else:
            self._stopped.update(threads)
        for completions, thread in list(self._queues.items()):
            if self._is_stopped(thread):
                completions.put((-1, None, self._error()))

    @contextmanager
    def queue(self) -> Iterator[SimpleQueue[Any]]:
        """Make the queue in which this thread waits for its completed requests."""
        completions: SimpleQueue[Any] = SimpleQueue()
        self._queues[completions] = thread = threading.current_thread()
        try:
            # This check must follow the registration of the queue. Then a concurrent `stop` either
            # finds the queue, or has marked the thread before the check.
            if self._is_stopped(thread):
                raise self._error()
            yield completions
        finally:
            del self._queues[completions]

    def _is_stopped(self, thread: threading.Thread) -> bool:
        return self._is_closed or thread in self._stopped

    def _error(self) -> StorageError:
        code = errno.ECANCELED
        return StorageError(code, f"{os.strerror(code)}: reading was stopped", self.root)


class Connection(Protocol):
    """A connection that carries requests.

    Attributes
    ----------
    slots : RequestSlots
        Bounds the number of concurrent requests.
    trust : str
        How the driver is configured to trust certificates, for messages.
    """

    slots: RequestSlots
    trust: str

    @property
    def can_hedge(self) -> bool:
        """False if the driver cannot cancel a request without losing its session."""

    def perform(self, call: Callable[[Any], Any]) -> Awaitable[Any]:
        """Return an awaitable of the result of a request's call."""

    def describe(self, error: BaseException) -> str:
        """Return the text of an exception, without secrets."""


def run_requests(
    requests: Iterable[Request],
    work: Callable[[Request, float], Any],
    loop: asyncio.AbstractEventLoop,
    width: Callable[[], int],
    cancellation: Cancellation,
    deadlines: Deadlines,
    timeout: float,
) -> Generator[tuple[int, Any]]:
    """Yield the number and the result of each request as it completes; raise the first error.

    Closing the generator cancels the requests that are in flight.

    Parameters
    ----------
    requests : iterable of Request
        Consumed only when the next request may start.
    work : callable
        Given a request and the time since which the caller has waited for it (see
        `run_with_retries`), returns the coroutine that performs the request.
    loop : asyncio.AbstractEventLoop
        Runs in another thread.
    width : callable
        Returns the maximum number of concurrent requests now.
    cancellation : Cancellation
    deadlines : Deadlines
    timeout : float
        The store's timeout in seconds. If the event loop has stopped, the requests fail after half
        of the timeout. If the event loop is blocked, they fail after the whole timeout.
    """
    with cancellation.queue() as completions:
        next_completion = partial(
            _next_completion,
            completions,
            loop,
            max(timeout / 2, _MIN_LOOP_CHECK),
            cancellation.root,
        )
        yield from _run(requests, work, loop, width, completions, deadlines, next_completion)


def _run(
    requests: Iterable[Request],
    work: Callable[[Request, float], Any],
    loop: asyncio.AbstractEventLoop,
    width: Callable[[], int],
    completions: SimpleQueue[_Completion],
    deadlines: Deadlines,
    next_completion: Callable[[], _Completion],
) -> Generator[tuple[int, Any]]:
    tasks: dict[int, asyncio.Task[Any]] = {}  # only the loop's thread uses it
    in_flight: dict[int, Request] = {}  # by number
    nbytes_in_flight = 0
    process = os.getpid()

    def start(batch: list[tuple[int, Request]], wait_start: float) -> None:
        for number, request in batch:
            tasks[number] = task = loop.create_task(work(request, wait_start))
            task.add_done_callback(partial(finish, number))

    def finish(number: int, task: asyncio.Task[Any]) -> None:
        del tasks[number]
        if not task.cancelled():
            error = task.exception()
            completions.put((number, None if error else task.result(), error))

    def cancel() -> None:
        for task in list(tasks.values()):
            task.cancel()

    def may_start(request: Request) -> bool:
        free = _MAX_BYTES_IN_FLIGHT - nbytes_in_flight
        return not in_flight or (len(in_flight) < width() and request.nbytes <= free)

    numbered = enumerate(requests)
    upcoming = next(numbered, None)
    try:
        while in_flight or upcoming is not None:
            batch = []
            while upcoming is not None and may_start(upcoming[1]):
                number, request = upcoming
                in_flight[number] = request
                nbytes_in_flight += request.nbytes
                batch.append(upcoming)
                upcoming = next(numbered, None)
            if batch:
                loop.call_soon_threadsafe(start, batch, deadlines.wait_start())
            with deadlines.track_wait():
                number, result, error = next_completion()
            if error is not None:
                raise error
            request = in_flight.pop(number)
            nbytes_in_flight -= request.nbytes
            if is_reporting() and isinstance(result, _BODY):
                age = time.monotonic() - request.start - request.seconds
                report("fetch", request.seconds, len(result), request.where, age)
            yield number, result
            del result
    finally:
        if in_flight and process == os.getpid():
            with suppress(RuntimeError):  # the loop is closed when the process ends
                loop.call_soon_threadsafe(cancel)


def _next_completion(
    completions: SimpleQueue[_Completion],
    loop: asyncio.AbstractEventLoop,
    seconds: float,
    root: str,
) -> _Completion:
    """Return the next completion; raise StorageError if the event loop does not run.

    Every request has a deadline, but only a running loop enforces it. Filesystems of other packages
    share fsspec's loop, and one callback that blocks stops them all.

    If nothing completes within `seconds`, this schedules a callback that puts `_LOOP_RUNS` into the
    queue. If nothing arrives within another `seconds`, the loop does not run.
    """
    is_probed = False
    while True:
        try:
            completion = completions.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            if is_probed or not loop.is_running():
                state = "blocked by another task" if loop.is_running() else "stopped"
                raise StorageError(
                    errno.ETIMEDOUT,
                    f"fsspec's event loop, which makes the requests, is {state}",
                    root,
                ) from None
            is_probed = True
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(completions.put, _LOOP_RUNS)
            continue
        if completion is not _LOOP_RUNS:
            return completion
        is_probed = False


async def run_with_retries(
    request: Request,
    wait_start: float,
    connection: Connection,
    deadlines: Deadlines,
    traffic: Traffic,
    timeout: float,
    retries: int,
) -> Any:
    """Perform a request, and retry it after transient failures until its deadline.

    Parameters
    ----------
    request : Request
    wait_start : float
        The time, on the clock of `time.monotonic`, since which the caller has waited.
    connection : Connection
    deadlines : Deadlines
    traffic : Traffic
        Counts the request.
    timeout : float
        Seconds for all attempts together. The time in the queue for a slot counts as well, but
        only while no other request receives anything.
    retries : int
        The maximum number of attempts after the first. Attempts that reach no server do not count
        if the store has answered before. A restarting server thus has until the deadline.
    """
    if request.expected_nbytes == 0:
        return b""
    timeout *= request.timeout_factor * max(1.0, request.nbytes / DEADLINE_BYTES)
    while not await _acquire_slot(
        connection.slots, lambda: deadlines.deadline(wait_start, _LAST_START * timeout)
    ):
        reason = "nothing arrived, nor did anything for earlier requests"
        if deadlines.outage.begin(time.monotonic(), reason):
            continue
        raise _storage_error(request, Cause(errno.ETIMEDOUT, True), 0, wait_start, reason)
    traffic.count_request()
    limits = timeout, retries
    try:
        return await _run_attempts(request, wait_start, connection, deadlines, traffic, *limits)
    finally:
        connection.slots.release()


async def _run_attempts(
    request: Request,
    wait_start: float,
    connection: Connection,
    deadlines: Deadlines,
    traffic: Traffic,
    timeout: float,
    retries: int,
) -> Any:
    """Perform a request that has a slot."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    state = _RetryState(request.where, deadlines, wait_start, timeout, retries, start)
    while True:
        limit = state.begin_attempt(loop.time())
        traffic.count_attempt(request.range_nbytes, is_retry=state.attempts > 1)
        try:
            result, attempt_start = await _attempt(request, connection, traffic, limit)
            reason, cause = _check_length(result, request.expected_nbytes)
            if not reason:
                deadlines.record_answer(now := loop.time())
                deadlines.has_answered = True
                request.start, request.seconds = start, now - start
                if request.range_nbytes:
                    traffic.count_answer(now - start, now - attempt_start, request.range_nbytes)
                traffic.adapt(connection.slots, request.range_nbytes)
                return result
        except Exception as error:
            cause, source = diagnose(error)
            reason = _failure_text(connection, error, source)
            state.has_stalled = state.has_stalled or isinstance(error, TimeoutError)
        if cause.code == errno.EBUSY and connection.slots.count_busy(loop.time()):
            traffic.concurrency = connection.slots.limit
            log("%s: the server is busy: at most %d concurrent requests from now on",
                request.where, traffic.concurrency)  # fmt: skip
        if not cause.transient:
            deadlines.record_answer(loop.time())
            break
        if (pause := state.pause(cause, reason, loop.time())) is None:
            break
        await _pause(pause)
    if request.is_optional and cause.code == errno.ENOENT:
        return None
    # Raised outside the `except` block: the driver's exception may contain secrets, and must not
    # become the context of this one.
    hint = _HINTS.get(cause.code, "")
    if cause.code == errno.ECONNABORTED:
        hint += connection.trust
    raise _storage_error(request, cause, state.attempts, wait_start, reason + hint)


class _RetryState:
    """The attempts of one request: how long each may take, and the pauses between them.

    Attributes
    ----------
    attempts : int
        The number of attempts so far.
    has_stalled : bool
        True if nothing arrived during an attempt.
    """

    def __init__(
        self,
        where: str,
        deadlines: Deadlines,
        wait_start: float,
        timeout: float,
        retries: int,
        now: float,
    ) -> None:
        self._where, self._deadlines = where, deadlines
        self._timeout, self._retries = timeout, retries
        self._deadline = min(deadlines.deadline(wait_start, timeout), now + timeout)
        self.attempts = self._failures = self._unreached = 0
        self.has_stalled = False

    def begin_attempt(self, now: float) -> float:
        """Count an attempt; return the seconds that it may take."""
        self.attempts += 1
        remaining = max(self._deadline - now, 0.0)
        # An attempt gets a third of the remaining time, in case its connection stalls. The last
        # attempt, and each attempt after a stalled one, gets all of the remaining time.
        return remaining if self.has_stalled or self._failures >= self._retries else remaining / 3

    def pause(self, cause: Cause, reason: str, now: float) -> float | None:
        """Return the pause after a transient failure in seconds; None if the request fails."""
        is_unreached = cause.code in _UNREACHED
        has_answered = self._deadlines.has_answered
        if self._retries and is_unreached and has_answered:
            self._unreached += 1
            pause: float = min(_BACKOFF * 2 ** min(self._unreached - 1, 10), _MAX_BACKOFF)
        else:
            self._failures, self._unreached = self._failures + 1, 0
            pause = _BACKOFF * 2 ** (self._failures - 1)
        pause *= 0.5 + random.random()
        if self._failures <= self._retries and now + pause < self._deadline:
            if self._unreached:
                self._warn_unreached(reason, now)
            return pause
        # The address of a server that was never reached is probably wrong.
        may_wait = has_answered or not is_unreached
        if not (may_wait and self._deadlines.outage.begin(now, reason)):
            return None
        self._failures, self._unreached, self.has_stalled = 0, 0, False
        pause = OUTAGE_PAUSE * (0.5 + random.random())
        self._deadline = now + pause + self._timeout
        return pause

    def _warn_unreached(self, reason: str, now: float) -> None:
        """Warn that no server answers: by the outage, which warns when it begins, or here."""
        if self._deadlines.outage.seconds:
            self._deadlines.outage.begin(now, reason)
        elif self._deadlines.should_warn(now, self._timeout):
            warn(
                "%s: no server there (%s). It has answered before, so npstream waits for it, for "
                "up to %.0f s (timeout=)",
                self._where, reason, self._deadline - now,
            )  # fmt: skip


async def _attempt(
    request: Request, connection: Connection, traffic: Traffic, limit: float
) -> tuple[Any, float]:
    """Perform a request within `limit` seconds, with a hedge if it is slow.

    Returns
    -------
    result : object
    start : float
        The time, on the loop's clock, when the answered call began: the attempt or its hedge.
    """
    nbytes, hedging = request.range_nbytes, None
    delay = traffic.hedge_delay(nbytes) if connection.can_hedge else None
    if delay is not None:
        hedging = Hedging(
            delay,
            lambda: traffic.start_hedge(nbytes),
            lambda result: not _check_length(result, request.expected_nbytes)[0],
        )
    answer = await first_answer(lambda: connection.perform(request.call), limit, hedging)
    traffic.budget.won += answer.is_hedge
    return answer.result, answer.start


def _storage_error(
    request: Request, cause: Cause, attempts: int, wait_start: float, reason: str
) -> StorageError:
    return StorageError(
        cause.code,
        f"{_ERRNO_TEXTS.get(cause.code) or os.strerror(cause.code)}: cannot {request.action}, "
        f"after {attempts} attempt{'s' * (attempts != 1)} in "
        f"{time.monotonic() - wait_start:.1f} s: {reason}",
        request.where,
    )


def _failure_text(connection: Connection, error: BaseException, source: BaseException) -> str:
    """Return the reason of a failed request: the text of `source`, and of `error` if it differs."""
    inner, outer = connection.describe(source), connection.describe(error)
    # fsspec's HTTP driver raises FileNotFoundError for any failure, with the URL as its text.
    if isinstance(error, FileNotFoundError) or outer.partition(": ")[2] in inner:
        return inner
    return outer if inner.partition(": ")[2] in outer else f"{inner} ({outer})"


async def _acquire_slot(slots: RequestSlots, deadline: Callable[[], float]) -> bool:
    """Acquire a slot. Return False at the deadline, which may move while this waits."""
    loop = asyncio.get_running_loop()
    if not slots.locked() and loop.time() < deadline():
        return await slots.acquire()
    acquiring = loop.create_task(slots.acquire())
    try:
        while (remaining := deadline() - loop.time()) > 0:
            await asyncio.wait((acquiring,), timeout=remaining)
            if acquiring.done():
                return True
    except BaseException:
        _abandon_slot(slots, acquiring)
        raise
    _abandon_slot(slots, acquiring)
    return False


def _abandon_slot(slots: RequestSlots, acquiring: asyncio.Task[bool]) -> None:
    """Cancel the acquisition of a slot; release the slot if it was acquired just now."""
    if acquiring.done():
        slots.release()
    acquiring.cancel()


def _check_length(result: Any, expected: int | None) -> tuple[str, Cause]:
    """Return why the length of a result is wrong, and the cause; "" if the length is right."""
    if expected is None:
        return "", Cause(0, False)
    if not isinstance(result, _BODY):
        return f"{type(result).__name__} came; expected bytes", Cause(errno.EINVAL, False)
    if len(result) == expected:
        return "", Cause(0, False)
    if len(result) < expected:
        return f"{len(result):,} of {quantity(expected, 'byte')} came", Cause(errno.EIO, True)
    return f"{quantity(len(result), 'byte')} came; {NO_RANGES}", Cause(errno.EINVAL, False)


async def _pause(seconds: float) -> None:
    """Wait for some seconds; tests/test_layers.py permits no call of a function named sleep."""
    await asyncio.wait((asyncio.get_running_loop().create_future(),), timeout=seconds)
