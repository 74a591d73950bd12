"""Two fake fsspec drivers, asynchronous and blocking, whose responses a test defines."""

from __future__ import annotations

import asyncio
import threading

import fsspec
import fsspec.asyn

DATA = bytes(range(256)) * 40


class AsyncFileSystem(fsspec.asyn.AsyncFileSystem):
    """An asynchronous driver whose reads return the result of `respond`."""

    protocol = "fake"
    cachable = False
    respond = None  # function of path, start and end that returns, raises or waits
    active = max_active = calls = 0

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        cls = type(self)
        cls.calls += 1
        cls.active += 1
        cls.max_active = max(cls.max_active, cls.active)
        try:
            response = cls.respond(path, start, end)
            return await response if asyncio.iscoroutine(response) else response
        finally:
            cls.active -= 1


class BlockingFileSystem(fsspec.AbstractFileSystem):
    """A blocking driver whose reads return the result of `respond`."""

    protocol = "blocking"
    cachable = False
    respond = None
    instances = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).instances += 1
        self.thread = threading.get_ident()

    def cat_file(self, path, start=None, end=None, **kwargs):
        assert threading.get_ident() == self.thread  # each thread has its own instance
        return type(self).respond(path, start, end)


def wait_for_event_loop():
    """Wait until fsspec's event loop has run the callbacks that are scheduled so far."""
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), fsspec.asyn.get_loop()).result(60)
