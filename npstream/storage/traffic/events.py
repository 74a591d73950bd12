"""Provide `on_event`, which reports the events of reads, with their durations, to a callback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, NamedTuple, TypeAlias

from npstream._core.fork import renew_in_child
from npstream._core.log import warn
from npstream.errors import short_repr

__all__ = ["Event", "EventHandle", "on_event"]

EventKind: TypeAlias = Literal["open", "fetch", "wait", "gather"]


class Event(NamedTuple):
    """Something that a read has done. `npstream.on_event` passes it to callbacks.

    Attributes
    ----------
    kind : str
        "open": `npstream.open` has opened a dataset. "fetch": a store has answered a request for
        bytes. "wait": a read has waited for samples that are in no chunk in memory. "gather":
        columns of several samples were copied into arrays; this includes the waits for them.
    start : float
        When the event began: seconds since 1970, as `time.time` returns.
    seconds : float
        The duration of the event. For "fetch", the time from the first attempt to the answer.
    nbytes : int
        For "fetch" the bytes that were fetched, for "gather" the bytes of the arrays; otherwise 0.
    url : str
        The URL or path of the dataset, or of the file for "fetch". It contains no secrets.

    Examples
    --------
    >>> Event("wait", 1.7e9, 0.25, 0, "s3://bucket/corpus").kind
    'wait'
    """

    kind: EventKind
    start: float
    seconds: float
    nbytes: int
    url: str


EventCallback: TypeAlias = Callable[[Event], object]


class EventHandle:
    """The registration of a callback. Made by `npstream.on_event`.

    It is a context manager, which removes the callback at the end of the ``with`` block.

    Parameters
    ----------
    callback : callable

    Examples
    --------
    >>> handle = on_event(print)
    >>> handle.remove()
    """

    def __init__(self, callback: EventCallback) -> None:
        self._callback = callback
        self._has_warned = False

    def remove(self) -> None:
        """Remove the callback. Removing it twice is no error."""
        with _registry.lock:
            _registry.handles = tuple(h for h in _registry.handles if h is not self)

    def __enter__(self) -> EventHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "registered" if self in _registry.handles else "removed"
        return f"<EventHandle: {short_repr(self._callback)}, {state}>"

    def _call(self, event: Event) -> None:
        try:
            self._callback(event)
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                warn(
                    "the callback %s of npstream.on_event raised %s: %s. Reads go on, and later "
                    "errors of this callback are not reported",
                    short_repr(self._callback), type(error).__name__, error,
                )  # fmt: skip


class _Registry:
    """The registered callbacks."""

    def __init__(self) -> None:
        self.handles: tuple[EventHandle, ...] = ()
        self.lock = threading.Lock()
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """Replace the lock in a forked process: a thread of the parent may have held it."""
        self.lock = threading.Lock()


_registry = _Registry()


class _ThreadState(threading.local):
    is_reporting = False  # True while this thread calls callbacks, whose reads are not reported


_thread = _ThreadState()


def on_event(callback: Callable[[Event], object]) -> EventHandle:
    """Call a function for each event of reads in this process: open, fetch, wait and gather.

    The callback is called after the event, in the thread that reads, so it should be fast. Events
    of reads that the callback itself makes are not reported. If the callback raises an Exception,
    npstream warns once, and the read goes on. Processes that are forked later report their events
    to their copy of the callback. Without callbacks, events cost nothing.

    Parameters
    ----------
    callback : callable
        Takes an `npstream.storage.traffic.events.Event`.

    Returns
    -------
    EventHandle
        Its method ``remove()``, or the end of a ``with`` block, removes the callback.

    Raises
    ------
    TypeError
        If `callback` is not callable.

    Examples
    --------
    >>> import npstream
    >>> ds = getfixture("example")
    >>> kinds = []
    >>> with npstream.on_event(lambda event: kinds.append(event.kind)):
    ...     labels = ds["label"].load()
    >>> kinds
    ['gather']
    """
    if not callable(callback):
        raise TypeError(f"callback={short_repr(callback)}: expected a function of one event")
    handle = EventHandle(callback)
    with _registry.lock:
        _registry.handles = (*_registry.handles, handle)
    return handle


def is_reporting() -> bool:
    """Return True if there is a callback."""
    return bool(_registry.handles)


def report(kind: EventKind, seconds: float, nbytes: int, url: str, age: float = 0.0) -> None:
    """Call the callbacks for an event.

    Parameters
    ----------
    kind : str
    seconds : float
        The duration of the event.
    nbytes : int
    url : str
    age : float, default: 0.0
        Seconds since the event ended.
    """
    if not _registry.handles or _thread.is_reporting:
        return
    event = Event(kind, time.time() - age - seconds, seconds, nbytes, url)
    _thread.is_reporting = True
    try:
        for handle in _registry.handles:
            handle._call(event)
    finally:
        _thread.is_reporting = False


@contextmanager
def report_block(kind: EventKind, url: str) -> Iterator[None]:
    """Report the ``with`` block as an event without bytes, unless the block raises."""
    start = time.perf_counter()
    yield
    report(kind, time.perf_counter() - start, 0, url)
