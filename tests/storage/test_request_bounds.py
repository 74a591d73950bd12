"""Requests are bounded in number and bytes, retried after transient errors, and time out."""

from __future__ import annotations

import asyncio
import errno
import threading
import time

import numpy as np
import pytest
from fake_drivers import DATA, wait_for_event_loop
from fsspec.asyn import get_loop

from npstream.errors import StorageError
from npstream.storage import requests
from npstream.storage.remote import RemoteStore


def test_concurrent_requests_are_bounded(fake, monkeypatch):
    monkeypatch.setenv("NPSTREAM_THREADS", "5")

    async def answer(start, end):
        await asyncio.sleep(0.002)
        return DATA[start:end]

    fake.respond = staticmethod(lambda path, start, end: answer(start, end))
    consumed = []

    def spans():
        for i in range(100):
            consumed.append(i)
            yield "x", i, 4

    store = RemoteStore("fake://a")
    parts = store.stream(spans())
    next(parts)
    assert len(consumed) <= 5 + 1  # one more may start once the first has completed
    assert len(list(parts)) == 99
    assert fake.max_active == 5
    threads = [threading.Thread(target=lambda: store.ranges(spans())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.max_active == 5


def test_bytes_in_flight_are_bounded(fake, monkeypatch):
    monkeypatch.setattr(requests, "_MAX_BYTES_IN_FLIGHT", 1000)
    in_flight = []

    async def answer(start, end):
        in_flight.append(end - start)
        await asyncio.sleep(0.002)
        assert sum(in_flight) <= 1000 or len(in_flight) == 1  # a larger request runs alone
        in_flight.remove(end - start)
        return DATA[start:end]

    fake.respond = staticmethod(lambda path, start, end: answer(start, end))
    sizes = [400, 400, 400, 2000, 10, 900, 400] * 5
    parts = RemoteStore("fake://a").ranges(("x", 0, size) for size in sizes)
    assert [len(part) for part in parts] == sizes


def test_closing_a_stream_cancels_its_requests(fake):
    waiting = asyncio.Event()
    cancelled = []

    async def answer(start):
        if start == 0:
            return b"0"
        try:
            await waiting.wait()
        except asyncio.CancelledError:
            cancelled.append(start)
            raise

    fake.respond = staticmethod(lambda path, start, end: answer(start))
    parts = RemoteStore("fake://a").stream(("x", i, 1) for i in range(10))
    assert next(parts) == (0, b"0")
    parts.close()
    # Cancelled tasks run their handlers in a later iteration of the loop.
    wait_for_event_loop()
    wait_for_event_loop()
    assert fake.active == 0
    assert len(cancelled) == fake.calls - 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ConnectionResetError, 3), (PermissionError, 1), (FileNotFoundError, 1), (KeyError, 1)],
)
def test_only_transient_errors_are_retried(fake, monkeypatch, error, attempts):
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)

    def answer(path, start, end):
        raise error("what happened")

    fake.respond = staticmethod(answer)
    with pytest.raises(StorageError) as caught:
        RemoteStore("fake://a", retries=2).ranges([("b/c", 0, 1)])
    assert fake.calls == attempts
    message = str(caught.value)
    assert f"{attempts} attempt" in message
    assert "fake://a/b/c" in message
    assert f"{error.__name__}: " in message
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value.__context__, error)  # it may contain secrets


def test_a_retry_that_succeeds_raises_nothing(fake, monkeypatch):
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    outcomes = iter([TimeoutError(), DATA[:3], ConnectionResetError(), DATA[:5]])

    def answer(path, start, end):
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    fake.respond = staticmethod(answer)
    assert RemoteStore("fake://a").ranges([("x", 0, 5)]) == [DATA[:5]]


def test_short_responses_are_retried_and_long_ones_raise(fake, monkeypatch):
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    fake.respond = staticmethod(lambda path, start, end: DATA[start : end - 1])
    with pytest.raises(StorageError, match=r"after 3 attempts.* 9 of 10 bytes came"):
        RemoteStore("fake://a", retries=2).ranges([("x", 5, 10)])
    fake.respond = staticmethod(lambda path, start, end: DATA)
    with pytest.raises(StorageError, match=r"after 1 attempt .*the server ignores Range"):
        RemoteStore("fake://a", retries=2).ranges([("x", 5, 10)])


@pytest.mark.parametrize("ignores_cancellation", [False, True])
def test_a_stalled_request_times_out(fake, monkeypatch, ignores_cancellation):
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    never = asyncio.Event()

    async def answer():
        try:
            await never.wait()
        except asyncio.CancelledError:
            if not ignores_cancellation:
                raise
            await asyncio.wait_for(never.wait(), 600.0)

    fake.respond = staticmethod(lambda path, start, end: answer())
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"after 2 attempts in .*no answer") as caught:
        RemoteStore("fake://a", timeout=0.3).ranges([("x", 0, 1)])
    assert time.monotonic() - start < 60.0  # the driver would take ten minutes
    assert caught.value.errno == errno.ETIMEDOUT
    get_loop().call_soon_threadsafe(never.set)


@pytest.mark.usefixtures("short_first_attempts")
def test_one_stalled_request_is_retried(fake):
    never = asyncio.Event()
    fake.respond = staticmethod(
        lambda path, start, end: never.wait() if fake.calls == 1 else DATA[start:end]
    )
    assert RemoteStore("fake://a", timeout=60.0).ranges([("x", 0, 5)]) == [DATA[:5]]


@pytest.mark.parametrize("answer", ["abc", None, [1, 2, 3], np.arange(3)])
def test_results_other_than_bytes_raise(fake, answer):
    fake.respond = staticmethod(lambda path, start, end: answer)
    with pytest.raises(StorageError, match="came; expected bytes"):
        RemoteStore("fake://x").ranges([("a", 0, 3)])
