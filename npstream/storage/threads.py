"""Threads for drivers that block. Each thread has its own filesystem."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from npstream.storage.failures import classify

__all__ = ["DriverThreads", "run_in_thread"]

T = TypeVar("T")

_Job = tuple[Callable[[Any], Any], "asyncio.Future[Any]"]


class DriverThreads:
    """Runs blocking calls for an event loop, with one thread for each call in progress.

    A call that is cancelled may block forever. It keeps its thread and the thread's filesystem,
    and later calls get another thread. The threads are daemons, which do not keep the process
    alive.

    Parameters
    ----------
    make : callable
        Makes the filesystem of a thread, in that thread.
    close : callable
        Closes a filesystem.
    """

    def __init__(self, make: Callable[[], Any], close: Callable[[Any], object]) -> None:
        self._make = make
        self._close = close
        self._idle: list[_Thread] = []
        weakref.finalize(self, _stop_threads, self._idle)

    async def run(self, call: Callable[[Any], Any]) -> Any:
        """Return the result of `call`, given a thread's filesystem. Await it in one loop only."""
        loop = asyncio.get_running_loop()
        thread = self._idle.pop() if self._idle else _Thread(self._make, self._close, loop)
        future: asyncio.Future[Any] = loop.create_future()
        thread.jobs.put((call, future))
        try:
            result = await future
        except asyncio.CancelledError:
            thread.abandon()
            raise
        except Exception as error:
            # Never reuse a broken session. The idle sessions are probably broken as well.
            if classify(error).transient:
                thread.jobs.put(None)
                _stop_threads(self._idle)
            else:
                self._idle.append(thread)
            raise
        self._idle.append(thread)
        return result


def _stop_threads(threads: list[_Thread]) -> None:
    while threads:
        threads.pop().jobs.put(None)


class _Thread:
    """A thread that runs jobs until it gets None."""

    def __init__(
        self,
        make: Callable[[], Any],
        close: Callable[[Any], object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._filesystem: Any = None
        self._make, self._close, self._loop = make, close, loop
        _start(self._work)

    def abandon(self) -> None:
        """End the thread when its call returns.

        Close its filesystem, because this may make a blocked call return.
        """
        self.jobs.put(None)
        if (filesystem := self._filesystem) is not None:
            _start(lambda: self._close(filesystem))

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            call, future = job
            result, error = None, None
            try:
                if self._filesystem is None:
                    self._filesystem = self._make()
                result = call(self._filesystem)
            except BaseException as raised:
                error = raised
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            del job, call, future, result, error  # a waiting thread must not keep them alive
        if self._filesystem is not None:
            self._close(self._filesystem)


async def run_in_thread(call: Callable[[], T]) -> T:
    """Return the result of `call`, which a new thread runs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, future, result, error)

    _start(work)
    return await future


def _start(target: Callable[[], object]) -> None:
    threading.Thread(target=target, name="npstream-store", daemon=True).start()


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Set the result or the exception of a future, unless it was cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
