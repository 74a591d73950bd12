"""The threads and child processes that a test itself started.

An earlier test may have left others, which end at an unknown time: a traceback can refer to an
iterator whose thread waits, and a cluster closes its processes in the background.
"""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.process import BaseProcess
from weakref import WeakSet

__all__ = ["forget_earlier", "started_children", "started_threads", "wait_for_threads"]

_EARLIER: WeakSet[threading.Thread | BaseProcess] = WeakSet()


def forget_earlier() -> None:
    """Exclude the threads and processes that run now from later results.

    It is called before each test.
    """
    _EARLIER.update(threading.enumerate())
    _EARLIER.update(multiprocessing.active_children())


def started_threads(prefix: str) -> list[threading.Thread]:
    """Return the running threads that this test started and whose name starts with `prefix`."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in _EARLIER and thread.name.startswith(prefix)
    ]


def wait_for_threads(prefix: str, timeout: float = 60) -> None:
    """Wait until no thread runs that this test started and whose name starts with `prefix`."""
    threads = started_threads(prefix)
    for thread in threads:
        thread.join(timeout)
    assert not any(thread.is_alive() for thread in threads)


def started_children(prefix: str = "") -> list[BaseProcess]:
    """Return the running child processes of this test whose name starts with `prefix`."""
    return [
        process
        for process in multiprocessing.active_children()
        if process not in _EARLIER and process.name.startswith(prefix)
    ]
