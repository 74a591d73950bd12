"""A server that restarts is waited for until the deadline; a wrong address is an error soon.

No test waits for a time: pauses between attempts are counted, and the server comes back at one.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.asyn
import numpy as np
import pytest
from faults import Proxy
from servers import OBSTORE, SERVER_KINDS, Nginx, RemoteDirectory, Servers, choose_reader

import npstream
from npstream.errors import StorageError
from npstream.storage import deadlines, requests
from npstream.storage.remote import RemoteStore

NAME = "folder/file.bin"
DATA = random.Random(0).randbytes(100_000)
SPAN = (NAME, 1000, 50_000)
PART = DATA[1000:51_000]
LATE = 30
"""The pause in which a server comes back: long after the retries are used up."""


class Pauses:
    """The pauses between attempts, which take no time; in some of them something happens."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.events: dict[int, Callable[[], object]] = {}

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if (event := self.events.pop(len(self.seconds), None)) is not None:
            await asyncio.to_thread(event)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    made = Pauses()
    monkeypatch.setattr(requests, "_pause", made)
    return made


@pytest.fixture(autouse=True)
def _no_server_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_answered_services", set())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "npstream" and record.levelno == logging.WARNING
    ]


@pytest.fixture(params=[*SERVER_KINDS, OBSTORE])
def remote_dir(
    request: pytest.FixtureRequest, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RemoteDirectory, Proxy]]:
    """Return a directory with a file on each server, behind a proxy that can be closed."""
    choose_reader(request.param, monkeypatch)
    found = servers[request.param].new_directory()
    found.put(NAME, DATA)
    proxy = servers.proxy(SERVER_KINDS[found.server.name].name)
    yield found.via(proxy), proxy
    proxy.open_port()


def test_a_server_that_restarts(
    remote_dir: tuple[RemoteDirectory, Proxy], pauses: Pauses, caplog: pytest.LogCaptureFixture
):
    where, proxy = remote_dir
    store = RemoteStore(where.url, where.storage_options, timeout=60.0, retries=3)
    calls: list[Callable[[], Any]] = [
        lambda: store.ranges([SPAN]) == [PART],
        lambda: store.size(NAME) == len(DATA),
        lambda: store.exists(f"{NAME}x") is False,
        lambda: list(store.names("folder/")) == [(NAME, len(DATA))],
    ]
    if where.server.name not in ("http", "hf"):  # the Hub's uploads wait by themselves, too
        calls.append(lambda: store.put("folder2/new", DATA) is None)
    for _ in range(3):  # obstore reads after the first two
        assert store.ranges([SPAN]) == [PART]
    for call in calls:
        pauses.seconds.clear()
        pauses.events[LATE] = proxy.open_port
        proxy.close_port()
        assert call()
        assert len(pauses.seconds) >= LATE
        assert max(pauses.seconds) <= 1.5
    (warning,) = warnings(caplog)  # as all of this takes less than the deadline
    assert warning.startswith(f"{store.where(NAME)}: no server there (")
    assert re.search(r"waits for it, for up to (60|5\d) s \(timeout=\)$", warning)


def test_an_address_that_is_wrong(
    remote_dir: tuple[RemoteDirectory, Proxy], pauses: Pauses, caplog: pytest.LogCaptureFixture
):
    where, proxy = remote_dir
    proxy.close_port()
    store = RemoteStore(where.url, where.storage_options, timeout=60.0, retries=2)
    with pytest.raises(StorageError, match=r"after 3 attempts .*nothing listens there") as caught:
        store.ranges([SPAN])
    assert caught.value.errno == errno.ECONNREFUSED
    assert len(pauses.seconds) == 2
    assert warnings(caplog) == []


def test_a_server_that_is_stopped_and_started(tmp_path: Path, pauses: Pauses):
    if missing := Nginx.missing():
        pytest.skip(missing)
    server = Nginx(tmp_path)
    server.start()
    try:
        values = np.arange(60_000).reshape(3000, 20)
        npstream.write(tmp_path / "data", {"value": values}, shard_size="64KiB")
        where = server.new_directory()
        for file in (tmp_path / "data").iterdir():
            if file.is_file():
                where.put(file.name, file.read_bytes())
        with npstream.open(where.url, cache=tmp_path / "cache", retries=1) as ds:
            batches = iter(ds.iter(0, 1, batch_size=100))
            seen = [next(batches)["value"]]
            server.kill()
            pauses.events[LATE] = server.start_process
            seen += [batch["value"] for batch in batches]
            np.testing.assert_array_equal(np.concatenate(seen), values)
            server.kill()
            pauses.events[len(pauses.seconds) + LATE] = server.start_process
            np.testing.assert_array_equal(
                npstream.open(where.url, cache=tmp_path / "another", retries=1)["value"].load(),
                values,
            )
    finally:
        server.stop()


# What counts as an attempt, by a driver that does as it is told.


@pytest.fixture
def scripted() -> list[Exception | None]:
    """Return what the driver raises, one after the other; then it answers."""
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


def known(retries: int = 2, **settings: Any) -> RemoteStore:
    made = store(retries, **settings)
    assert made.ranges([SPAN]) == [PART]
    return made


GONE = [
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    OSError(errno.EHOSTUNREACH, "no route"),
    OSError(errno.ENETUNREACH, "no network"),
    OSError(errno.ENETDOWN, "the network is down"),
    OSError(errno.EHOSTDOWN, "the host is down"),
    socket.gaierror(socket.EAI_AGAIN, "no name"),
]
BUSY = TimeoutError("busy")


@pytest.mark.parametrize("error", GONE, ids=repr)
def test_what_is_waited_for(scripted: list[Exception | None], pauses: Pauses, error: Exception):
    opened = known()
    scripted += [error] * 100
    assert opened.ranges([SPAN]) == [PART]
    assert len(pauses.seconds) == 100
    assert max(pauses.seconds) <= 1.5
    assert min(pauses.seconds[5:]) >= 0.5  # it is not asked all the time


def test_pauses_grow_each_time(scripted: list[Exception | None], pauses: Pauses):
    opened = known()
    scripted += [*[GONE[0]] * 20, BUSY, *[GONE[0]] * 20]
    assert opened.ranges([SPAN]) == [PART]
    assert len(pauses.seconds) == 41
    for first in (0, 21):
        assert pauses.seconds[first] <= 0.375
        assert pauses.seconds[first + 1] <= 0.75


def test_other_failures_are_counted_as_before(scripted: list[Exception | None]):
    opened = known(retries=2)
    scripted += [GONE[0], BUSY, GONE[0], BUSY, GONE[0]]
    assert opened.ranges([SPAN]) == [PART]
    scripted += [GONE[0], BUSY, GONE[0], BUSY, GONE[0], BUSY, GONE[0]]
    with pytest.raises(StorageError, match=r"after 6 attempts .*busy"):
        opened.ranges([SPAN])


def test_without_retries_nothing_is_waited_for(scripted: list[Exception | None]):
    opened = known(retries=0)
    scripted += GONE[:1]
    with pytest.raises(StorageError, match="after 1 attempt "):
        opened.ranges([SPAN])


def test_the_deadline_ends_it(
    scripted: list[Exception | None], monkeypatch: pytest.MonkeyPatch, caplog
):
    opened = known(timeout=0.5)
    scripted += GONE[:1] * 10_000
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    monkeypatch.setattr(requests, "_MAX_BACKOFF", 0.01)
    start = time.monotonic()
    with pytest.raises(StorageError, match="check the host and the port") as caught:
        opened.ranges([SPAN])
    assert caught.value.errno == errno.ECONNREFUSED
    assert time.monotonic() - start < 30.0  # all pauses would take 100 s
    assert int(re.search(r"after (\d+) attempts", str(caught.value))[1]) > 3
    assert len(warnings(caplog)) == 1


def test_what_makes_a_server_known(scripted: list[Exception | None]):
    """Any file of it, read by any store of this process, or of one that sent the store here."""

    def is_waited_for(opened: RemoteStore) -> bool:
        scripted[:] = GONE[:1] * 5
        try:
            return opened.ranges([SPAN]) == [PART]
        except StorageError as error:
            if "after 3 attempts" in str(error):
                return False
            raise
        finally:
            scripted.clear()

    assert not is_waited_for(store())
    assert not store().exists(NAME)
    assert not is_waited_for(store())
    before, answered = pickle.dumps(store()), pickle.dumps(known())
    assert is_waited_for(store())
    assert is_waited_for(RemoteStore("scripted://host/elsewhere", retries=2))
    assert not is_waited_for(store(host="other"))
    assert not is_waited_for(RemoteStore("scripted://host/a", {"port": 1}, retries=2))
    deadlines._answered_services.clear()  # as in another process
    assert not is_waited_for(pickle.loads(before))
    assert is_waited_for(pickle.loads(answered))


def test_a_warning_for_each_outage(scripted: list[Exception | None], caplog):
    opened = known()
    for _ in range(3):
        scripted += [GONE[0]] * 10
        assert opened.ranges([SPAN]) == [PART]
    assert len(warnings(caplog)) == 1
    opened.deadlines._last_warning -= 61
    scripted += [GONE[0]] * 10
    assert opened.ranges([SPAN]) == [PART]
    assert len(warnings(caplog)) == 2


# The loop in which requests run.


def test_a_loop_that_is_blocked(scripted: list[Exception | None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requests, "_MIN_LOOP_CHECK", 0.2)
    opened, released = known(timeout=0.4), threading.Event()
    try:
        fsspec.asyn.get_loop().call_soon_threadsafe(released.wait, 60)
        with pytest.raises(
            StorageError, match=r"event loop.* is blocked by another task"
        ) as caught:
            opened.ranges([SPAN])
        assert caught.value.errno == errno.ETIMEDOUT
    finally:
        released.set()
    assert opened.ranges([SPAN]) == [PART]
