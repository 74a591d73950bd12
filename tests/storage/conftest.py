"""Stores: fake drivers, a store in memory, servers to write to, and stores behind a proxy."""

from __future__ import annotations

from collections.abc import Callable

import faulty_stores
import fsspec
import fsspec.asyn
import pytest
from fake_drivers import DATA, AsyncFileSystem, BlockingFileSystem
from faulty_stores import NAME, SPAN, FaultyStore, store_at
from servers import OBSTORE, SERVER_KINDS, Servers, choose_reader

from npstream.storage import requests
from npstream.storage.remote import RemoteStore


@pytest.fixture
def fake():
    AsyncFileSystem.running = AsyncFileSystem.max_running = AsyncFileSystem.calls = 0
    AsyncFileSystem.respond = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("fake", AsyncFileSystem, clobber=True)
    return AsyncFileSystem


@pytest.fixture
def blocking():
    BlockingFileSystem.instances = 0
    BlockingFileSystem.respond = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("blocking", BlockingFileSystem, clobber=True)
    return BlockingFileSystem


@pytest.fixture(params=[*(name for name in SERVER_KINDS if name != "http"), OBSTORE])
def writable(request, servers, monkeypatch):
    """Return a fresh directory on each of the servers that can be written to."""
    choose_reader(request.param, monkeypatch)
    return servers[request.param].new_directory()


@pytest.fixture
def memory(request):
    url = f"memory://{request.node.name}"
    yield RemoteStore(url)
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def connected(servers: Servers) -> Callable[[str], FaultyStore]:
    """Return what makes a store, and shares it, as its driver takes long to connect."""
    known: dict[str, FaultyStore] = {}

    def connect(name: str) -> FaultyStore:
        proxy = servers.proxy(name)
        # To SFTP's driver a connection that breaks is another attempt, so each test has its own.
        if name not in known or name == "sftp":
            remote_dir = servers[name].new_directory().via(proxy)
            known[name] = FaultyStore(remote_dir, proxy, store_at(remote_dir, timeout=20.0))
            if name != "sftp":
                assert not known[name].connected.exists(NAME)
            proxy.clear()
        return known[name]

    return connect


@pytest.fixture
def faulty(
    request: pytest.FixtureRequest,
    connected: Callable[[str], FaultyStore],
    monkeypatch: pytest.MonkeyPatch,
) -> FaultyStore:
    """Return what is behind a proxy before the server that the test's parameter names."""
    choose_reader(request.param, monkeypatch)
    found = connected(request.param)
    found.remote_dir.put(NAME, faulty_stores.DATA)
    if request.param == OBSTORE:
        reader = found.connected._connect()._read
        if reader.state == "watching":
            for _ in range(2):
                found.connected.ranges([SPAN])
            found.proxy.clear()
        assert reader.state == "proven"
    return found


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(requests, "_BACKOFF", 0.03)
