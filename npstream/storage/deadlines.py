"""Deadlines of reads from remote stores.

A read may send several requests, wait for bytes that another thread or process downloads, and queue
behind other requests. All these waits share one deadline: the read fails once the store has sent
nothing for the time that one request may take.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from npstream._core.arguments import integer, is_number
from npstream.errors import short_repr
from npstream.storage.traffic.outage import Outage

__all__ = ["Deadlines", "inherit_deadline", "require_limits", "shared_deadline"]


class _Read:
    """The waits of one read.

    Attributes
    ----------
    waited : dict of Deadlines to float
        The seconds that the read has waited for each store since the store last answered. A read
        of a mixture waits for several stores, concurrently in several threads. Answers of one
        store must not extend the deadline of another.
    """

    def __init__(self) -> None:
        self.waited: dict[Deadlines, float] = {}


class _ThreadState(threading.local):
    read: _Read | None = None


_thread = _ThreadState()


@contextmanager
def shared_deadline() -> Iterator[None]:
    """Make all waits of this thread in the block share one deadline."""
    with _use_read(_thread.read or _Read()):
        yield


def inherit_deadline(work: Callable[[], object]) -> Callable[[], object]:
    """Return a function that does `work` in another thread under this thread's deadline."""
    read = _thread.read

    def run() -> None:
        with _use_read(read):
            work()

    return run


@contextmanager
def _use_read(read: _Read | None) -> Iterator[None]:
    """Count the waits of this thread in the block as waits of `read`."""
    previous, _thread.read = _thread.read, read
    try:
        yield
    finally:
        _thread.read = previous


_answered_services: set[Hashable] = set()
"""The services that have answered this process, or the process that it was forked from."""


class Deadlines:
    """The deadlines of all threads that wait for one store.

    Parameters
    ----------
    service : hashable, optional
        Identifies the server. Stores on the same server share `has_answered`.
    outage : Outage, optional
        Makes waits longer while the store does not answer. By default, they do not become longer.

    Attributes
    ----------
    last_arrival : float
        The time, on the clock of `time.monotonic`, at which the store last answered a request of
        any thread; ``-inf`` before the first answer.
    has_answered : bool
        True if the server has answered a request of this process, or of the process that pickled
        the store. The host and the port in the URL are then correct. Failures to connect are
        therefore retried until the deadline.

    Examples
    --------
    >>> deadlines = Deadlines()
    >>> with shared_deadline():
    ...     with deadlines.track_wait():
    ...         time.sleep(0.02)
    ...     with deadlines.track_wait(60.0) as seconds:
    ...         seconds < 59.99
    True
    """

    def __init__(self, service: Hashable = None, outage: Outage | None = None) -> None:
        self.outage = outage or Outage(0.0, "")
        self.last_arrival = self._last_warning = -math.inf
        self._service = object() if service is None else service

    @property
    def has_answered(self) -> bool:
        """True if the server has answered a request; see the class."""
        return self._service in _answered_services

    @has_answered.setter
    def has_answered(self, has_answered: bool) -> None:
        if has_answered:
            _answered_services.add(self._service)

    def should_warn(self, now: float, period: float) -> bool:
        """Return True once in each `period`, in seconds."""
        if now - self._last_warning < period:
            return False
        self._last_warning = now
        return True

    @contextmanager
    def track_wait(self, timeout: float = math.inf) -> Iterator[float]:
        """Count the time in the block as waited; yield the seconds until the deadline."""
        start = self.wait_start()
        try:
            seconds = self.deadline(start, timeout) - time.monotonic()
            yield min(max(seconds, 0.0), threading.TIMEOUT_MAX)
        finally:
            if _thread.read is not None:
                _thread.read.waited[self] = time.monotonic() - max(start, self.last_arrival)

    def wait_start(self) -> float:
        """Return the current time minus the seconds that this thread's read has waited."""
        # The maximum and not the sum, because the waits for several stores are concurrent.
        read = _thread.read
        waited = [] if read is None else [*read.waited.values()]
        return time.monotonic() - max(waited, default=0.0)

    def deadline(self, start: float, timeout: float) -> float:
        """Return the deadline of a wait since `start`. Answers and outages of the store move it."""
        return self.outage.extend(max(start, self.last_arrival) + timeout)

    def record_answer(self, now: float) -> None:
        """Record that the store has answered a request; an error such as 404 is an answer, too."""
        self.last_arrival = now
        self.outage.end(now)


def require_limits(timeout: float, retries: int) -> None:
    """Raise TypeError or ValueError unless a store's requests can have these limits.

    Parameters
    ----------
    timeout : float
        The seconds that a request may take, including its retries.
    retries : int
        How often a request is retried.
    """
    if not is_number(timeout):
        raise TypeError(f"timeout={short_repr(timeout)}: expected seconds, more than 0")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout}: expected seconds, more than 0")
    integer("retries", retries, 0)
