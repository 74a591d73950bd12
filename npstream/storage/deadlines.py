"""How long readers wait for a store from which nothing comes.

One read may take several requests, one after the other, wait for what other threads or processes
are fetching, and stand in a queue behind the requests of others. It ends when nothing at all has
come from the store for as long as a request may take, and not that long after each of these.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

__all__ = ["Patience", "carried", "one_read"]


class _Read:
    """What a thread is about: how long it has waited since something came."""

    waited = 0.0


class _Thread(threading.local):
    read: _Read | None = None


_thread = _Thread()


@contextmanager
def one_read() -> Iterator[None]:
    """Count all that this thread waits for within as one read."""
    with _within(_thread.read or _Read()):
        yield


def carried(work: Callable[[], object]) -> Callable[[], object]:
    """Return what does some work in another thread as part of this one's read."""
    read = _thread.read

    def carry() -> None:
        with _within(read):
            work()

    return carry


@contextmanager
def _within(read: _Read | None) -> Iterator[None]:
    before, _thread.read = _thread.read, read
    try:
        yield
    finally:
        _thread.read = before


_known: set[Hashable] = set()
"""The services that have answered this process, or the one that it was forked from."""


class Patience:
    """The waiting of all threads for one store.

    Parameters
    ----------
    service : hashable, optional
        Identifies the server. Stores on the same server share `is_known`.

    Attributes
    ----------
    came : float
        When something came last, whoever had asked for it.
    is_known : bool
        True if the server has answered a request of this process, or of the process that pickled
        the store. So the host and the port are right.

    Examples
    --------
    >>> patience = Patience()
    >>> with one_read():
    ...     with patience.waiting():
    ...         time.sleep(0.02)
    ...     with patience.waiting(60.0) as left:
    ...         left < 59.99
    True
    """

    def __init__(self, service: Hashable = None) -> None:
        self.came = self._warned = -math.inf
        self._service = object() if service is None else service

    @property
    def is_known(self) -> bool:
        """True if the server has answered."""
        return self._service in _known

    @is_known.setter
    def is_known(self, known: bool) -> None:
        if known:
            _known.add(self._service)

    def is_first_warning(self, now: float, period: float) -> bool:
        """Return True once in a period."""
        if now - self._warned < period:
            return False
        self._warned = now
        return True

    @contextmanager
    def waiting(self, timeout: float = math.inf) -> Iterator[float]:
        """Count the time that this takes as waited; tell how long it may be if nothing comes."""
        asked = self.asked()
        try:
            left = self.end(asked, timeout) - time.monotonic()
            yield min(max(left, 0.0), threading.TIMEOUT_MAX)
        finally:
            if _thread.read is not None:
                _thread.read.waited = time.monotonic() - max(asked, self.came)

    def asked(self) -> float:
        """Return since when this thread has waited."""
        read = _thread.read
        return time.monotonic() - (0.0 if read is None else read.waited)

    def end(self, asked: float, timeout: float) -> float:
        """Return until when something that was asked for is waited for, as it stands now."""
        return max(asked, self.came) + timeout
