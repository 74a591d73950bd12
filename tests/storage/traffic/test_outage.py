"""Reads wait through an outage of the store with one warning, for at most `outage` seconds."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest
from fake_drivers import DATA
from faults import FOR_EVER, status
from traffic_datasets import open_numbers, serve_numbers

import npstream
from npstream.errors import StorageError
from npstream.storage import deadlines, requests
from npstream.storage.remote import RemoteStore
from npstream.storage.traffic import outage

SPAN = ("x", 0, 100)
BUSY = TimeoutError("busy")
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
HANG = 120
"""Seconds after which a thread is regarded as hanging."""


@pytest.fixture
def errors(fake, monkeypatch) -> list[Exception]:
    """Return the list of exceptions that the driver raises; then it answers. Pauses are short."""
    script: list[Exception] = []

    def respond(path: str, start: int, end: int) -> bytes:
        if script:
            raise script.pop(0)
        return DATA[start:end]

    fake.respond = staticmethod(respond)
    monkeypatch.setattr(deadlines, "_answered_services", set())
    monkeypatch.setattr(requests, "_BACKOFF", 0.0001)
    monkeypatch.setattr(requests, "OUTAGE_PAUSE", 0.0001)
    return script


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "npstream" and r.levelno == level]


@pytest.mark.parametrize("error", [BUSY, REFUSED, ConnectionResetError("lost")], ids=repr)
def test_a_read_waits_through_an_outage_with_one_warning(errors, caplog, error):
    caplog.set_level(logging.INFO, "npstream")
    store = RemoteStore("fake://a", retries=1, outage=600.0)
    assert store.ranges([SPAN]) == [DATA[:100]]
    for _ in range(2):
        caplog.clear()
        errors += [error] * 200
        assert store.ranges([SPAN] * 3) == [DATA[:100]] * 3
        (warning,) = messages(caplog, logging.WARNING)
        assert warning.startswith("fake://a: the store does not answer (")
        assert warning.endswith("npstream waits for it, for up to 600 s (outage=)")
        (end,) = [line for line in messages(caplog, logging.INFO) if "answers again" in line]
        assert end.startswith("fake://a: the store answers again, after ")


def test_without_the_option_outage_only_the_retries_are_made(errors, caplog):
    store = RemoteStore("fake://a", retries=1)
    errors += [BUSY] * 10
    with pytest.raises(StorageError, match="after 2 attempts"):
        store.ranges([SPAN])
    assert messages(caplog, logging.WARNING) == []


def test_waiting_ends_at_the_limit_of_the_outage(errors, caplog):
    store = RemoteStore("fake://a", retries=1, outage=0.3)
    errors += [BUSY] * 1_000_000
    with pytest.raises(StorageError, match=r"after \d+ attempts .*busy") as caught:
        store.ranges([SPAN])
    assert caught.value.errno == errno.ETIMEDOUT
    attempts = 1_000_000 - len(errors)
    assert attempts > 4
    with pytest.raises(StorageError, match="after 2 attempts"):  # in the same outage
        store.ranges([SPAN])
    assert len(messages(caplog, logging.WARNING)) == 1
    errors.clear()
    assert store.ranges([SPAN]) == [DATA[:100]]


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x")], ids=repr)
def test_permanent_failures_are_raised_and_end_the_outage(errors, error):
    store = RemoteStore("fake://a", retries=0, outage=600.0)
    errors += [BUSY] * 20 + [error]
    with pytest.raises(StorageError, match="after 21 attempts"):
        store.ranges([SPAN])
    assert store.deadlines.outage.extend(1.0) == 1.0  # no outage extends this deadline


def test_a_wrong_address_is_not_waited_for(errors):
    store = RemoteStore("fake://a", retries=2, outage=600.0)
    errors += [REFUSED] * 100
    with pytest.raises(StorageError, match="after 3 attempts"):
        store.ranges([SPAN])


class SilentStore:
    """A store whose requests fail while `is_silent`. `warned` is set by the warning."""

    def __init__(self, fake, monkeypatch, **options) -> None:
        self.is_silent, self.warned = True, threading.Event()

        def respond(path: str, start: int, end: int) -> bytes:
            if self.is_silent:
                raise ConnectionResetError("lost")
            return DATA[start:end]

        def warn(*message: object) -> None:
            self.warned.set()

        fake.respond = staticmethod(respond)
        monkeypatch.setattr(outage, "warn", warn)
        monkeypatch.setattr(requests, "_BACKOFF", 0.001)
        self.store = RemoteStore("fake://a", retries=0, outage=600.0, **options)


def run_in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `work` in a thread; return the thread, and a list that gets the result or the error."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_closing_ends_a_wait(fake, monkeypatch):
    silent = SilentStore(fake, monkeypatch)
    thread, results = run_in_thread(lambda: silent.store.ranges([SPAN]))
    assert silent.warned.wait(HANG)
    silent.store.stop()
    thread.join(HANG)
    assert isinstance(results[0], StorageError)
    assert results[0].errno == errno.ECANCELED


@pytest.fixture
def interruptible():
    """Let SIGINT raise KeyboardInterrupt, as in a terminal. It would end a pytest-xdist worker."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_ctrl_c_ends_a_wait(fake, monkeypatch, interruptible):
    silent = SilentStore(fake, monkeypatch)

    def interrupt() -> None:
        if silent.warned.wait(HANG):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        silent.store.ranges([SPAN])
    thread.join(HANG)
    silent.is_silent = False
    assert silent.store.ranges([SPAN]) == [DATA[:100]]


def test_requests_in_the_queue_wait_as_well(fake, monkeypatch):
    """One request runs at a time; the others wait for its slot for longer than their timeout."""
    monkeypatch.setenv("NPSTREAM_THREADS", "1")
    silent = SilentStore(fake, monkeypatch, timeout=0.3)
    monkeypatch.setattr(requests, "OUTAGE_PAUSE", 0.01)
    readers = [run_in_thread(lambda: silent.store.ranges([SPAN])) for _ in range(4)]
    assert silent.warned.wait(HANG)
    threading.Event().wait(1.0)  # more than the timeout
    assert not any(results for _, results in readers)
    silent.is_silent = False
    for thread, results in readers:
        thread.join(HANG)
        assert results == [[DATA[:100]]]


def test_directories_and_pickles_have_the_same_outage():
    store = RemoteStore("fake://a", outage=600.0)
    folder = store.folder("b")
    assert folder.deadlines.outage is store.deadlines.outage
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.deadlines.outage.seconds == copy.outage == 600.0


@pytest.mark.parametrize("name", ["http", "s3"])
def test_an_iteration_waits_through_an_outage(servers, tmp_path, monkeypatch, name):
    directory, proxy = serve_numbers(servers, name, tmp_path)
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 100:  # long after the retries
            proxy.faults = []

    monkeypatch.setattr(requests, "_pause", pause)
    with open_numbers(directory, tmp_path, retries=1, outage="10min") as ds:
        proxy.faults = [status(503, times=FOR_EVER, path="shard")]
        seen = [batch.ids for batch in ds.iter(0, 1, batch_size=1000)]
        np.testing.assert_array_equal(np.concatenate(seen), np.arange(20_000))
    assert len(pauses) >= 100


def test_the_outage_is_a_duration(tmp_path):
    npstream.write(tmp_path / "data", {"x": [1]})
    with npstream.open(tmp_path / "data", outage="10min") as ds:
        assert len(ds) == 1
    with pytest.raises(ValueError, match=r"outage='10 minutes': expected a number of seconds"):
        npstream.open(tmp_path / "data", outage="10 minutes")
    with pytest.raises(TypeError, match="outage=None: expected a number of seconds"):
        npstream.open(tmp_path / "data", outage=None)
