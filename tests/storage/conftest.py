"""Fixtures with stores: fake drivers, a memory store, writable servers, and faulty servers."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import faulty_stores
import fsspec
import fsspec.asyn
import pytest
from fake_drivers import DATA, AsyncFileSystem, BlockingFileSystem
from faulty_stores import NAME, SPAN, FaultyStore, store_at
from servers import ENGINE_KINDS, SERVER_KINDS, Servers, choose_engine

from npstream.storage import requests
from npstream.storage.remote import RemoteStore


@pytest.fixture
def fake():
    """Register an asynchronous driver for the scheme "fake", and return its class."""
    AsyncFileSystem.active = AsyncFileSystem.max_active = AsyncFileSystem.calls = 0
    AsyncFileSystem.respond = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("fake", AsyncFileSystem, clobber=True)
    return AsyncFileSystem


@pytest.fixture
def blocking():
    """Register a driver without async methods for the scheme "blocking", and return its class."""
    BlockingFileSystem.instances = 0
    BlockingFileSystem.respond = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("blocking", BlockingFileSystem, clobber=True)
    return BlockingFileSystem


@pytest.fixture(params=[*(name for name in SERVER_KINDS if name != "http"), *ENGINE_KINDS])
def writable(request, servers, monkeypatch):
    """Return a new directory on each writable server."""
    choose_engine(request.param, monkeypatch)
    return servers[request.param].new_directory()


@pytest.fixture
def memory(request):
    """Return an empty store in memory."""
    url = f"memory://{request.node.name}"
    yield RemoteStore(url)
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def connect(servers: Servers) -> Callable[[str], FaultyStore]:
    """Return a function that connects to a server, or returns its store of an earlier test.

    Connecting is slow.
    """
    stores: dict[str, FaultyStore] = {}

    def connect_or_reuse(name: str) -> FaultyStore:
        proxy = servers.proxy(name)
        # SFTP keeps one session, which faults break, so each test has its own store.
        if name not in stores or name == "sftp":
            remote_dir = servers[name].new_directory().with_proxy(proxy)
            stores[name] = FaultyStore(remote_dir, proxy, store_at(remote_dir, timeout=20.0))
            if name != "sftp":
                assert not stores[name].remote_store.exists(NAME)
            proxy.clear()
        return stores[name]

    return connect_or_reuse


@pytest.fixture
def faulty(
    request: pytest.FixtureRequest,
    connect: Callable[[str], FaultyStore],
    monkeypatch: pytest.MonkeyPatch,
) -> FaultyStore:
    """Return a store behind a faulty proxy of the server in the test's parameter."""
    choose_engine(request.param, monkeypatch)
    store = connect(request.param)
    store.remote_dir.put(NAME, faulty_stores.DATA)
    if request.param in ENGINE_KINDS:
        store.remote_store.ranges([SPAN])
        store.proxy.clear()
        assert store.remote_store._connect()._engine.state == "proven"
    return store


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between attempts."""
    monkeypatch.setattr(requests, "_BACKOFF", 0.03)


@pytest.fixture
def short_first_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time out the first attempt of each request after a second, however long the timeout is.

    A test of a stall is then fast, and the other attempts have time on a slow machine.
    """
    first_answer, started_requests = requests.first_answer, weakref.WeakSet()

    async def shortened(perform: object, seconds: float, *hedging: object) -> object:
        task = asyncio.current_task()
        if task not in started_requests:
            started_requests.add(task)
            seconds = min(seconds, 1.0)
        return await first_answer(perform, seconds, *hedging)

    monkeypatch.setattr(requests, "first_answer", shortened)
