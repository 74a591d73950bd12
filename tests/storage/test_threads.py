"""Threads of drivers that block."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from fake_drivers import DATA, wait_for_event_loop

from npstream.errors import StorageError
from npstream.storage.remote import RemoteStore


def test_each_thread_of_a_blocking_driver_has_its_own_filesystem(blocking):
    # The driver checks that each thread uses its own filesystem.
    spans = [("x", i, 10) for i in range(300)]
    store = RemoteStore("blocking://a")
    assert store.ranges(spans) == [DATA[i : i + 10] for i in range(300)]
    assert 1 <= blocking.instances <= 32  # the default number of threads
    instances = blocking.instances
    assert store.ranges(spans[:1]) == [DATA[:10]]
    assert blocking.instances == instances


def test_a_stalled_blocking_driver_times_out(blocking):
    released = threading.Event()
    blocking.respond = staticmethod(lambda path, start, end: released.wait(600))
    start = time.monotonic()
    with pytest.raises(StorageError, match="no answer within"):
        RemoteStore("blocking://a", timeout=0.3).ranges([("x", 0, 1)])
    assert time.monotonic() - start < 60.0  # the driver would take ten minutes
    released.set()


def test_invalid_options_of_a_driver_raise(blocking, monkeypatch):
    def refuse(self, **options):
        raise TypeError(f"no option {list(options)}")

    monkeypatch.setattr(blocking, "__init__", refuse)
    with pytest.raises(StorageError, match=r"after 1 attempt.*TypeError: no option \['color'\]"):
        RemoteStore("blocking://a", {"color": "red"}).read("x")


def test_threads_end_with_their_store(blocking):
    previous_threads = set(threading.enumerate())
    store = RemoteStore("blocking://a")
    store.ranges([("x", i, 1) for i in range(50)])
    new_threads = set(threading.enumerate()) - previous_threads
    threads = [thread for thread in new_threads if thread.name == "npstream-store"]
    assert threads
    del store
    gc.collect()
    wait_for_event_loop()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
