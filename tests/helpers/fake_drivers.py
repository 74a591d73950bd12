"""Drivers of fsspec that do what a test says: one with coroutines, one that blocks."""

from __future__ import annotations

import asyncio
import threading

import fsspec
import fsspec.asyn

DATA = bytes(range(256)) * 40


class Fake(fsspec.asyn.AsyncFileSystem):
    """A driver with coroutines, which does what the test says."""

    protocol = "fake"
    cachable = False
    answer = None  # given the path and the range, what to return, raise or wait for
    running = most = calls = 0

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        cls = type(self)
        cls.calls += 1
        cls.running += 1
        cls.most = max(cls.most, cls.running)
        try:
            found = cls.answer(path, start, end)
            return await found if asyncio.iscoroutine(found) else found
        finally:
            cls.running -= 1


class Blocking(fsspec.AbstractFileSystem):
    """The same for a driver without."""

    protocol = "blocking"
    cachable = False
    answer = None
    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).made += 1
        self.thread = threading.get_ident()

    def cat_file(self, path, start=None, end=None, **kwargs):
        assert threading.get_ident() == self.thread  # none is shared
        return type(self).answer(path, start, end)


def loop_is_idle():
    """Wait until the loop has done what was asked of it so far."""
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), fsspec.asyn.get_loop()).result(5)
