"""Requests wait for a restarting server until the deadline, but not for a wrong address.

The tests replace the pauses between attempts by a counter, and the server restarts at a given
pause. So only the tests of deadlines take time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import pickle
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.asyn
import numpy as np
import pytest
from faults import Proxy
from servers import ENGINE_KINDS, SERVER_KINDS, Nginx, RemoteDirectory, Servers, choose_engine

import npstream
from npstream.errors import StorageError
from npstream.storage import deadlines, requests
from npstream.storage.remote import RemoteStore

NAME = "folder/file.bin"
DATA = random.Random(0).randbytes(100_000)
SPAN = (NAME, 1000, 50_000)
PART = DATA[1000:51_000]
RESTART_PAUSE = 30
"""The number of the pause in which the server restarts. It is far more than the retries."""

MAX_FACTOR = 1.5
"""A pause is at most this many times its mean."""


class Pauses:
    """Replaces pauses between attempts: takes no time, counts the pauses, and runs events."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.events: dict[int, Callable[[], object]] = {}

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if (event := self.events.pop(len(self.seconds), None)) is not None:
            await asyncio.to_thread(event)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(requests, "_pause", pauses)
    return pauses


@pytest.fixture(autouse=True)
def _no_server_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_answered_services", set())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "npstream" and record.levelno == logging.WARNING
    ]


@pytest.fixture(params=[*SERVER_KINDS, *ENGINE_KINDS])
def remote_dir(
    request: pytest.FixtureRequest, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RemoteDirectory, Proxy]]:
    """Return a directory with a file on each server, and the proxy in front of it."""
    choose_engine(request.param, monkeypatch)
    new_dir = servers[request.param].new_directory()
    new_dir.put(NAME, DATA)
    proxy = servers.proxy(SERVER_KINDS[new_dir.server.name].name)
    yield new_dir.with_proxy(proxy), proxy
    proxy.open_port()


def test_requests_wait_for_a_server_that_restarts(
    remote_dir: tuple[RemoteDirectory, Proxy], pauses: Pauses, caplog: pytest.LogCaptureFixture
):
    directory, proxy = remote_dir
    store = RemoteStore(directory.url, directory.storage_options, timeout=900.0, retries=3)
    calls: list[Callable[[], Any]] = [
        lambda: store.ranges([SPAN]) == [PART],
        lambda: store.size(NAME) == len(DATA),
        lambda: store.exists(f"{NAME}x") is False,
        lambda: list(store.names("folder/")) == [(NAME, len(DATA))],
    ]
    if directory.server.name not in ("http", "hf"):  # huggingface_hub waits itself during uploads
        calls.append(lambda: store.put("folder2/new", DATA) is None)
    for _ in range(3):  # obstore reads from the third on
        assert store.ranges([SPAN]) == [PART]
    for call in calls:
        pauses.seconds.clear()
        pauses.events[RESTART_PAUSE] = proxy.open_port
        proxy.close_port()
        assert call()
        assert len(pauses.seconds) >= RESTART_PAUSE
        assert max(pauses.seconds) <= MAX_FACTOR * requests._MAX_BACKOFF
    (warning,) = warnings(caplog)  # at most one within the timeout
    assert warning.startswith(f"{store.where(NAME)}: no server there (")
    assert re.search(r"waits for it, for up to (900|[1-8]\d\d) s \(timeout=\)$", warning)


def test_requests_to_a_wrong_address_fail_after_their_retries(
    remote_dir: tuple[RemoteDirectory, Proxy], pauses: Pauses, caplog: pytest.LogCaptureFixture
):
    directory, proxy = remote_dir
    proxy.close_port()
    store = RemoteStore(directory.url, directory.storage_options, timeout=60.0, retries=2)
    with pytest.raises(StorageError, match=r"after 3 attempts .*nothing listens there") as caught:
        store.ranges([SPAN])
    assert caught.value.errno == errno.ECONNREFUSED
    assert len(pauses.seconds) == 2
    assert warnings(caplog) == []


def test_an_iteration_continues_after_a_server_restart(tmp_path: Path, pauses: Pauses):
    if message := Nginx.missing():
        pytest.skip(message)
    server = Nginx(tmp_path)
    server.start()
    try:
        values = np.arange(60_000).reshape(3000, 20)
        npstream.write(tmp_path / "data", {"value": values}, shard_size="64KiB")
        directory = server.new_directory()
        for file in (tmp_path / "data").iterdir():
            if file.is_file():
                directory.put(file.name, file.read_bytes())
        with npstream.open(directory.url, cache=tmp_path / "cache", retries=1) as ds:
            batches = iter(ds.iter(0, 1, batch_size=100))
            seen = [next(batches)["value"]]
            server.kill()
            pauses.events[RESTART_PAUSE] = server.start_process
            seen += [batch["value"] for batch in batches]
            np.testing.assert_array_equal(np.concatenate(seen), values)
            server.kill()
            pauses.events[len(pauses.seconds) + RESTART_PAUSE] = server.start_process
            np.testing.assert_array_equal(
                npstream.open(directory.url, cache=tmp_path / "another", retries=1)["value"].load(),
                values,
            )
    finally:
        server.stop()


# The number of attempts, with a driver whose exceptions are given.


@pytest.fixture
def driver_errors() -> list[Exception | None]:
    """Return the list of exceptions that the driver raises; then it answers."""
    script: list[Exception | None] = []

    class Scripted(fsspec.asyn.AsyncFileSystem):
        protocol = "scripted"
        cachable = False

        async def _cat_file(self, path, start=None, end=None, **kwargs):
            if script and (error := script.pop(0)) is not None:
                raise error
            return DATA[start:end]

        async def _info(self, path, **kwargs):
            raise FileNotFoundError(path)

    fsspec.register_implementation("scripted", Scripted, clobber=True)
    return script


def store(retries: int = 2, host: str = "host", timeout: float = 60.0) -> RemoteStore:
    return RemoteStore(f"scripted://{host}/a", timeout=timeout, retries=retries)


def answered_store(retries: int = 2, **settings: Any) -> RemoteStore:
    """Return a store whose server has answered."""
    remote_store = store(retries, **settings)
    assert remote_store.ranges([SPAN]) == [PART]
    return remote_store


UNREACHABLE = [
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    OSError(errno.EHOSTUNREACH, "no route"),
    OSError(errno.ENETUNREACH, "no network"),
    OSError(errno.ENETDOWN, "the network is down"),
    OSError(errno.EHOSTDOWN, "the host is down"),
    socket.gaierror(socket.EAI_AGAIN, "no name"),
]
BUSY = TimeoutError("busy")


@pytest.mark.parametrize("error", UNREACHABLE, ids=repr)
def test_unreachable_servers_are_awaited_until_the_deadline(
    driver_errors: list[Exception | None], pauses: Pauses, error: Exception
):
    remote_store = answered_store()
    driver_errors += [error] * 100
    assert remote_store.ranges([SPAN]) == [PART]
    assert len(pauses.seconds) == 100
    assert max(pauses.seconds) <= MAX_FACTOR * requests._MAX_BACKOFF
    assert min(pauses.seconds[5:]) >= 0.5 * requests._MAX_BACKOFF


def test_pauses_grow_again_after_another_error(
    driver_errors: list[Exception | None], pauses: Pauses
):
    remote_store = answered_store()
    driver_errors += [*[UNREACHABLE[0]] * 20, BUSY, *[UNREACHABLE[0]] * 20]
    assert remote_store.ranges([SPAN]) == [PART]
    assert len(pauses.seconds) == 41
    for first in (0, 21):
        assert pauses.seconds[first] <= MAX_FACTOR * requests._BACKOFF
        assert pauses.seconds[first + 1] <= MAX_FACTOR * requests._BACKOFF * 2


def test_other_failures_count_as_retries(driver_errors: list[Exception | None]):
    remote_store = answered_store(retries=2)
    driver_errors += [UNREACHABLE[0], BUSY, UNREACHABLE[0], BUSY, UNREACHABLE[0]]
    assert remote_store.ranges([SPAN]) == [PART]
    driver_errors += [
        UNREACHABLE[0],
        BUSY,
        UNREACHABLE[0],
        BUSY,
        UNREACHABLE[0],
        BUSY,
        UNREACHABLE[0],
    ]
    with pytest.raises(StorageError, match=r"after 6 attempts .*busy"):
        remote_store.ranges([SPAN])


def test_without_retries_an_unreachable_server_raises_at_once(
    driver_errors: list[Exception | None],
):
    remote_store = answered_store(retries=0)
    driver_errors += UNREACHABLE[:1]
    with pytest.raises(StorageError, match="after 1 attempt "):
        remote_store.ranges([SPAN])


def test_waiting_for_a_server_ends_at_the_deadline(
    driver_errors: list[Exception | None], monkeypatch: pytest.MonkeyPatch, caplog
):
    remote_store = answered_store()
    remote_store.timeout = 0.5
    driver_errors += UNREACHABLE[:1] * 100_000
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    monkeypatch.setattr(requests, "_MAX_BACKOFF", 0.01)
    with pytest.raises(StorageError, match="check the host and the port") as caught:
        remote_store.ranges([SPAN])  # it would succeed after 100,000 errors
    assert caught.value.errno == errno.ECONNREFUSED
    assert int(re.search(r"after (\d+) attempts", str(caught.value))[1]) > 3
    assert len(warnings(caplog)) == 1


def test_only_servers_that_have_answered_are_awaited(driver_errors: list[Exception | None]):
    """A server has answered this process, or the process that pickled the store."""

    def is_waited_for(remote_store: RemoteStore) -> bool:
        driver_errors[:] = UNREACHABLE[:1] * 5
        try:
            return remote_store.ranges([SPAN]) == [PART]
        except StorageError as error:
            if "after 3 attempts" in str(error):
                return False
            raise
        finally:
            driver_errors.clear()

    assert not is_waited_for(store())
    assert not store().exists(NAME)
    assert not is_waited_for(store())
    unanswered_pickle, answered_pickle = pickle.dumps(store()), pickle.dumps(answered_store())
    assert is_waited_for(store())
    assert is_waited_for(RemoteStore("scripted://host/elsewhere", retries=2))
    assert not is_waited_for(store(host="other"))
    assert not is_waited_for(RemoteStore("scripted://host/a", {"port": 1}, retries=2))
    deadlines._answered_services.clear()  # as if in another process
    assert not is_waited_for(pickle.loads(unanswered_pickle))
    assert is_waited_for(pickle.loads(answered_pickle))


def test_there_is_one_warning_in_a_timeout(driver_errors: list[Exception | None], caplog):
    remote_store = answered_store()
    for _ in range(3):
        driver_errors += [UNREACHABLE[0]] * 10
        assert remote_store.ranges([SPAN]) == [PART]
    assert len(warnings(caplog)) == 1
    remote_store.deadlines._last_warning -= remote_store.timeout
    driver_errors += [UNREACHABLE[0]] * 10
    assert remote_store.ranges([SPAN]) == [PART]
    assert len(warnings(caplog)) == 2


# The event loop in which requests run.


def test_a_blocked_event_loop_raises(
    driver_errors: list[Exception | None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(requests, "_MIN_LOOP_CHECK", 0.2)
    remote_store, released = answered_store(), threading.Event()
    remote_store.timeout = 0.4
    try:
        fsspec.asyn.get_loop().call_soon_threadsafe(released.wait, 600)
        with pytest.raises(
            StorageError, match=r"event loop.* is blocked by another task"
        ) as caught:
            remote_store.ranges([SPAN])
        assert caught.value.errno == errno.ETIMEDOUT
    finally:
        released.set()
    remote_store.timeout = 60.0
    assert remote_store.ranges([SPAN]) == [PART]
