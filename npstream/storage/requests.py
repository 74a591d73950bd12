"""Requests in an event loop: many at once, each until it succeeds or its time is over."""

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
from npstream._core.log import warn
from npstream.errors import StorageError
from npstream.storage.failures import Cause, diagnose
from npstream.storage.responses import NO_RANGES

if TYPE_CHECKING:
    from npstream.storage.deadlines import Patience

__all__ = ["DEADLINE_BYTES", "Job", "Link", "Waits", "persist", "results"]

DEADLINE_BYTES = 1 << 24
"""The most bytes that a request has the time of one deadline for; larger ones have more."""

_IN_FLIGHT_BYTES = 1 << 27
_BACK_OFF = 0.25
_MAX_BACK_OFF = 1.0
"""The longest pause, on average, before another attempt to connect."""

_UNREACHED = {
    *(errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH)
}
"""No server was reached, so it may be restarting."""

_LATEST = 0.95  # the part of its time after which a job is not begun any more

_MENDS = {
    errno.EACCES: "; give credentials that may do this, in storage_options or where the driver "
    "looks for them",
    errno.ERANGE: "; the file is shorter than its index says",
    errno.EHOSTUNREACH: "; check the name of the host, and the network",
    errno.ECONNREFUSED: "; nothing listens there: check the host and the port",
    errno.EPROTO: "; what answers there does not speak the protocol of the URL: check the scheme "
    "(http or https) and the port",
    errno.ECONNABORTED: "; the server's certificate is not trusted: if it should be, name a file "
    "with that of its issuer ",
}

_WORDS = {
    errno.EHOSTUNREACH: "Host unreachable",  # "No route to host" is not what an unknown name has
    errno.ECONNABORTED: "Certificate not trusted",
}
"""What is said of an errno where the system's own words would not be true."""


_LOOP_CHECK = 2.0
"""The shortest time after which a loop that has not run counts as blocked."""

_Arrived = tuple[int, Any, BaseException | None]

_RUNS: _Arrived = (-1, None, None)
"""Arrives when the loop runs."""


@dataclass(slots=True)
class Job:
    """Something to ask a driver for.

    Attributes
    ----------
    where : str
        The file, for messages.
    what : str
        What is done, for messages.
    call : callable
        Given the filesystem, returns the result, or a coroutine if the driver has those.
    nbytes : int
        How much is transferred.
    exact : int, optional
        The number of bytes that must come.
    patience : float
        How many times the usual deadline it has.
    is_optional : bool
        Whether it comes to None, and does not fail, if there is no such file.
    """

    where: str
    what: str
    call: Callable[[Any], Any]
    nbytes: int = 0
    exact: int | None = None
    patience: float = 1.0
    is_optional: bool = False


class Waits:
    """Who waits for results, so that they can be told to stop.

    Parameters
    ----------
    place : str
        Where the results come from, for messages.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._waiting: dict[SimpleQueue[Any], threading.Thread] = {}
        self._stopped: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._is_closed = False

    def stop(self, threads: Iterable[threading.Thread] | None = None) -> None:
        """Let what some threads, or all, wait for fail at once, and whatever they ask for later."""
        if threads is None:
            self._is_closed = True
        else:
            self._stopped.update(threads)
        for arrived, thread in list(self._waiting.items()):
            if self._is_over(thread):
                arrived.put((-1, None, self._error()))

    @contextmanager
    def joined(self) -> Iterator[SimpleQueue[Any]]:
        """Make a queue of results that this thread waits for."""
        arrived: SimpleQueue[Any] = SimpleQueue()
        self._waiting[arrived] = thread = threading.current_thread()
        try:
            # Looked at only now, so that whoever stops the thread sees the queue, or is seen.
            if self._is_over(thread):
                raise self._error()
            yield arrived
        finally:
            del self._waiting[arrived]

    def _is_over(self, thread: threading.Thread) -> bool:
        return self._is_closed or thread in self._stopped

    def _error(self) -> StorageError:
        code = errno.ECANCELED
        return StorageError(code, f"{os.strerror(code)}: reading was stopped", self.place)


class Link(Protocol):
    """What requests go through.

    Attributes
    ----------
    slots : Semaphore
        One for each that may be under way.
    trust : str
        How the driver is told which certificates to trust, for messages.
    """

    slots: asyncio.Semaphore
    trust: str

    def perform(self, call: Callable[[Any], Any]) -> Awaitable[Any]:
        """Return an awaitable of what a job's call comes to."""

    def describe(self, error: BaseException) -> str:
        """Say what an exception says, without secrets."""


def results(
    jobs: Iterable[Job],
    work: Callable[[Job, float], Any],
    loop: asyncio.AbstractEventLoop,
    width: int,
    waits: Waits,
    patience: Patience,
    timeout: float,
) -> Generator[tuple[int, Any]]:
    """Yield what jobs come to, as they end, each with its number; raise what the first raises.

    Closing the generator cancels the jobs that run.

    Parameters
    ----------
    jobs : iterable of Job
        Taken only as far as they may start.
    work : callable
        Given a job, and since when it has been waited for, returns the coroutine that does it.
    loop : asyncio.AbstractEventLoop
        Runs in another thread.
    width : int
        How many run at once.
    waits : Waits
    patience : Patience
    timeout : float
        Seconds to wait for a loop that does not run.
    """
    with waits.joined() as arrived:
        next_arrived = partial(_next, arrived, loop, max(timeout / 2, _LOOP_CHECK), waits.place)
        yield from _results(jobs, work, loop, width, arrived, patience, next_arrived)


def _results(
    jobs: Iterable[Job],
    work: Callable[[Job, float], Any],
    loop: asyncio.AbstractEventLoop,
    width: int,
    arrived: SimpleQueue[_Arrived],
    patience: Patience,
    next_arrived: Callable[[], _Arrived],
) -> Generator[tuple[int, Any]]:
    tasks: dict[int, asyncio.Task[Any]] = {}  # of the loop's thread
    pending: dict[int, int] = {}
    process = os.getpid()

    def start(batch: list[tuple[int, Job]], asked: float) -> None:
        for number, job in batch:
            tasks[number] = task = loop.create_task(work(job, asked))
            task.add_done_callback(partial(finish, number))

    def finish(number: int, task: asyncio.Task[Any]) -> None:
        del tasks[number]
        if not task.cancelled():
            failed = task.exception()
            arrived.put((number, None if failed else task.result(), failed))

    def cancel() -> None:
        for task in list(tasks.values()):
            task.cancel()

    def admitted(job: Job) -> bool:
        room = _IN_FLIGHT_BYTES - sum(pending.values())
        return not pending or (len(pending) < width and job.nbytes <= room)

    waiting = enumerate(jobs)
    following = next(waiting, None)
    try:
        while pending or following is not None:
            batch = []
            while following is not None and admitted(following[1]):
                pending[following[0]] = following[1].nbytes
                batch.append(following)
                following = next(waiting, None)
            if batch:
                loop.call_soon_threadsafe(start, batch, patience.asked())
            with patience.waiting():
                number, result, failed = next_arrived()
            if failed is not None:
                raise failed
            del pending[number]
            yield number, result
            del result
    finally:
        if pending and process == os.getpid():
            with suppress(RuntimeError):  # the process ends, and its loop with it
                loop.call_soon_threadsafe(cancel)


def _next(
    arrived: SimpleQueue[_Arrived], loop: asyncio.AbstractEventLoop, seconds: float, place: str
) -> _Arrived:
    """Return what arrives next. Every job ends in time, unless the loop does not run it.

    The loop is also that of other programs' filesystems, and one blocked callback stops them all.
    """
    is_asked = False
    while True:
        try:
            found = arrived.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            if is_asked or not loop.is_running():
                what = "blocked by another task" if loop.is_running() else "stopped"
                raise StorageError(
                    errno.ETIMEDOUT,
                    f"fsspec's event loop, which makes the requests, is {what}",
                    place,
                ) from None
            is_asked = True
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(arrived.put, _RUNS)
            continue
        if found is not _RUNS:
            return found
        is_asked = False


async def persist(
    job: Job, asked: float, link: Link, patience: Patience, timeout: float, retries: int
) -> Any:
    """Do a job, again after a failure that may pass, until it is done or its time is over.

    Parameters
    ----------
    job : Job
    asked : float
        Since when it has been waited for.
    link : Link
    patience : Patience
    timeout : float
        Seconds for all attempts, and for waiting until it is the job's turn while nothing comes
        to others either.
    retries : int
        How many follow the first. Those that reach no server do not count, if the store has
        answered before: a server that restarts is waited for until the time is over.
    """
    if job.exact == 0:
        return b""
    allowed = timeout * job.patience * max(1.0, job.nbytes / DEADLINE_BYTES)
    if not await _turn(link.slots, lambda: patience.end(asked, _LATEST * allowed)):
        reason = "nothing came, also to those who had asked before"
        raise _failure(job, Cause(errno.ETIMEDOUT, True), 0, asked, reason)
    try:
        return await _attempts(job, asked, link, patience, allowed, retries)
    finally:
        link.slots.release()


async def _attempts(
    job: Job, asked: float, link: Link, patience: Patience, allowed: float, retries: int
) -> Any:
    """Do a job whose turn it is."""
    loop = asyncio.get_running_loop()
    end = patience.end(asked, allowed)
    stalled = False
    attempts = failures = refusals = 0
    while True:
        attempts += 1
        left = max(end - loop.time(), 0.0)
        # A connection that stalls shall leave time for another, and a slow one then have its own.
        limit = left if stalled or failures >= retries else left / 3
        try:
            result = await _within(limit, link.perform(job.call))
            reason, cause = _compare(result, job.exact)
            if not reason:
                patience.came, patience.is_known = loop.time(), True
                return result
        except Exception as error:
            cause, told = diagnose(error)
            reason = _reason(link, error, told)
            stalled = stalled or isinstance(error, TimeoutError)
        if not cause.transient:  # which is an answer, too
            patience.came = loop.time()
        if retries and cause.transient and cause.code in _UNREACHED and patience.is_known:
            refusals += 1
            delay = min(_BACK_OFF * 2 ** min(refusals - 1, 10), _MAX_BACK_OFF)
        else:
            failures, refusals = failures + 1, 0
            delay = _BACK_OFF * 2 ** (failures - 1)
        delay *= 0.5 + random.random()
        if not cause.transient or failures > retries or loop.time() + delay >= end:
            break
        if refusals and patience.is_first_warning(loop.time(), allowed):
            warn(
                "%s: no server there (%s). It has answered before, so npstream waits for it, for "
                "up to %.0f s (timeout=)",
                job.where, reason, end - loop.time(),
            )  # fmt: skip
        await _pause(delay)
    if job.is_optional and cause.code == errno.ENOENT:
        return None
    # Out here the driver's exception, which may tell secrets, is not this one's context.
    mend = _MENDS.get(cause.code, "")
    if cause.code == errno.ECONNABORTED:
        mend += link.trust
    raise _failure(job, cause, attempts, asked, reason + mend)


def _failure(job: Job, cause: Cause, attempts: int, asked: float, reason: str) -> StorageError:
    return StorageError(
        cause.code,
        f"{_WORDS.get(cause.code) or os.strerror(cause.code)}: cannot {job.what}, after {attempts} "
        f"attempt{'s' * (attempts != 1)} in {time.monotonic() - asked:.1f} s: {reason}",
        job.where,
    )


def _reason(link: Link, error: BaseException, told: BaseException) -> str:
    """Say why a request failed: above all in the words of the exception that tells it."""
    said, last = link.describe(told), link.describe(error)
    # fsspec's driver for HTTP raises this one for any failure, with the URL as its text.
    if isinstance(error, FileNotFoundError) or last.partition(": ")[2] in said:
        return said
    return last if said.partition(": ")[2] in last else f"{said} ({last})"


async def _turn(slots: asyncio.Semaphore, end: Callable[[], float]) -> bool:
    """Get a slot, and tell whether there was one before the end, which moves."""
    loop = asyncio.get_running_loop()
    if not slots.locked() and loop.time() < end():
        return await slots.acquire()
    turn = loop.create_task(slots.acquire())
    try:
        while (left := end() - loop.time()) > 0:
            await asyncio.wait((turn,), timeout=left)
            if turn.done():
                return True
    except BaseException:
        _give_up(slots, turn)
        raise
    _give_up(slots, turn)
    return False


def _give_up(slots: asyncio.Semaphore, turn: asyncio.Task[bool]) -> None:
    if turn.done():
        slots.release()
    turn.cancel()


def _compare(result: Any, exact: int | None) -> tuple[str, Cause]:
    """Say what is wrong with the length of an answer; nothing is if the text is empty."""
    if exact is None:
        return "", Cause(0, False)
    if not isinstance(result, bytes | bytearray | memoryview):
        return f"{type(result).__name__} came; expected bytes", Cause(errno.EINVAL, False)
    if len(result) == exact:
        return "", Cause(0, False)
    if len(result) < exact:
        return f"{len(result):,} of {quantity(exact, 'byte')} came", Cause(errno.EIO, True)
    return f"{quantity(len(result), 'byte')} came; {NO_RANGES}", Cause(errno.EINVAL, False)


async def _within(seconds: float, work: Any) -> Any:
    """Return what work comes to, or give it up, whether it likes that or not."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # is looked at
    try:
        await asyncio.wait((task,), timeout=seconds)
        if not task.done():
            raise TimeoutError(f"no answer within {seconds:.1f} s")
        if task.cancelled():
            raise ConnectionAbortedError("the driver cancelled the request")
        return task.result()
    finally:
        task.cancel()


async def _pause(seconds: float) -> None:
    """Wait for nothing."""
    await asyncio.wait((asyncio.get_running_loop().create_future(),), timeout=seconds)
