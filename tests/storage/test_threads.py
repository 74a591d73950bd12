"""Drivers that block each work in a thread of their own."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from fake_drivers import DATA, wait_for_event_loop

from npstream.errors import StorageError
from npstream.storage.remote import RemoteStore


def test_drivers_that_block_have_a_filesystem_a_thread(blocking):
    spans = [("x", i, 10) for i in range(300)]
    store = RemoteStore("blocking://a")
    assert store.ranges(spans) == [DATA[i : i + 10] for i in range(300)]
    assert 1 <= blocking.instances <= 32
    made = blocking.instances
    assert store.ranges(spans[:1]) == [DATA[:10]]
    assert blocking.instances == made


def test_a_blocking_driver_that_stalls(blocking):
    released = threading.Event()
    blocking.respond = staticmethod(lambda path, start, end: released.wait(60))
    start = time.monotonic()
    with pytest.raises(StorageError, match="no answer within"):
        RemoteStore("blocking://a", timeout=0.3).ranges([("x", 0, 1)])
    assert time.monotonic() - start < 30.0  # the driver would take a minute
    released.set()


def test_a_driver_that_cannot_be_made(blocking, monkeypatch):
    def refuse(self, **options):
        raise TypeError(f"no option {list(options)}")

    monkeypatch.setattr(blocking, "__init__", refuse)
    with pytest.raises(StorageError, match=r"after 1 attempt.*TypeError: no option \['colour'\]"):
        RemoteStore("blocking://a", {"colour": "red"}).read("x")


def test_threads_end_with_their_store(blocking):
    before = set(threading.enumerate())
    store = RemoteStore("blocking://a")
    store.ranges([("x", i, 1) for i in range(50)])
    started = set(threading.enumerate()) - before
    threads = [thread for thread in started if thread.name == "npstream-store"]
    assert threads
    del store
    gc.collect()
    wait_for_event_loop()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
