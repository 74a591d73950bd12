"""Stores: fake drivers, a store in memory, servers to write to, and stores behind a proxy."""

from __future__ import annotations

from collections.abc import Callable

import fsspec
import fsspec.asyn
import pytest
import weak_stores
from fake_drivers import DATA, Blocking, Fake
from servers import KINDS, OBSTORE, Servers, choose_reader
from weak_stores import NAME, SPAN, Weak, store_at

from npstream.storage import requests
from npstream.storage.remote import RemoteStore


@pytest.fixture
def fake():
    Fake.running = Fake.most = Fake.calls = 0
    Fake.answer = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("fake", Fake, clobber=True)
    return Fake


@pytest.fixture
def blocking():
    Blocking.made = 0
    Blocking.answer = staticmethod(lambda path, start, end: DATA[start:end])
    fsspec.register_implementation("blocking", Blocking, clobber=True)
    return Blocking


@pytest.fixture(params=[*(name for name in KINDS if name != "http"), OBSTORE])
def writable(request, servers, monkeypatch):
    """Return a fresh directory on each of the servers that can be written to."""
    choose_reader(request.param, monkeypatch)
    return servers[request.param].fresh()


@pytest.fixture
def memory(request):
    url = f"memory://{request.node.name}"
    yield RemoteStore(url)
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def connected(servers: Servers) -> Callable[[str], Weak]:
    """Return what makes a store, and shares it, as its driver takes long to connect."""
    known: dict[str, Weak] = {}

    def connect(name: str) -> Weak:
        proxy = servers.proxy(name)
        # To SFTP's driver a connection that breaks is another attempt, so each test has its own.
        if name not in known or name == "sftp":
            place = servers[name].fresh().through(proxy)
            known[name] = Weak(place, proxy, store_at(place, timeout=20.0))
            if name != "sftp":
                assert not known[name].connected.exists(NAME)
            proxy.clear()
        return known[name]

    return connect


@pytest.fixture
def weak(
    request: pytest.FixtureRequest,
    connected: Callable[[str], Weak],
    monkeypatch: pytest.MonkeyPatch,
) -> Weak:
    """Return what is behind a proxy before the server that the test's parameter names."""
    choose_reader(request.param, monkeypatch)
    found = connected(request.param)
    found.place.put(NAME, weak_stores.DATA)
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
