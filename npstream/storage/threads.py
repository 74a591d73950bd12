"""Threads for drivers that block, each with a driver's object of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from npstream.storage.failures import classify

__all__ = ["Threads"]

_Job = tuple[Callable[[Any], Any], "asyncio.Future[Any]"]


class Threads:
    """Runs blocking calls for an event loop, as many at once as are awaited.

    A call that is given up keeps its thread, which may never come back, and the object that the
    thread works with; another takes its place. The threads are daemons, so that none of them
    keeps the process from ending.

    Parameters
    ----------
    make : callable
        Makes the object that a thread hands to its calls; called in that thread.
    end : callable
        Closes such an object.
    """

    def __init__(self, make: Callable[[], Any], end: Callable[[Any], object]) -> None:
        self._make = make
        self._end = end
        self._idle: list[_Thread] = []
        weakref.finalize(self, _dismiss, self._idle)

    async def run(self, call: Callable[[Any], Any]) -> Any:
        """Return what a call returns for a thread's object. To be awaited in one loop only."""
        loop = asyncio.get_running_loop()
        thread = self._idle.pop() if self._idle else _Thread(self._make, self._end, loop)
        done: asyncio.Future[Any] = loop.create_future()
        thread.jobs.put((call, done))
        try:
            result = await done
        except asyncio.CancelledError:
            thread.abandon()
            raise
        except Exception as error:
            # A session that broke is not used again, nor are the others, likely broken as well.
            if classify(error).transient:
                thread.jobs.put(None)
                _dismiss(self._idle)
            else:
                self._idle.append(thread)
            raise
        self._idle.append(thread)
        return result


def _dismiss(threads: list[_Thread]) -> None:
    while threads:
        threads.pop().jobs.put(None)


class _Thread:
    """A thread that does jobs until it gets None."""

    def __init__(
        self,
        make: Callable[[], Any],
        end: Callable[[Any], object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._driver: Any = None
        self._make, self._end, self._loop = make, end, loop
        _start(self._work)

    def abandon(self) -> None:
        """Let the thread end once its call returns, and close what it is waiting for."""
        self.jobs.put(None)
        if (driver := self._driver) is not None:
            _start(lambda: self._end(driver))

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            call, done = job
            result, failed = None, None
            try:
                if self._driver is None:
                    self._driver = self._make()
                result = call(self._driver)
            except BaseException as error:
                failed = error
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_settle, done, result, failed)
            del job, call, done, result, failed
        if self._driver is not None:
            self._end(self._driver)


def _start(target: Callable[[], object]) -> None:
    threading.Thread(target=target, name="npstream-store", daemon=True).start()


def _settle(done: asyncio.Future[Any], result: Any, failed: BaseException | None) -> None:
    """Hand over what a job came to, unless it was given up meanwhile."""
    if done.done():
        return
    if failed is None:
        done.set_result(result)
    else:
        done.set_exception(failed)
