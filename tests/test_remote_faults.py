"""Whatever a server does, a store returns the right bytes or says in time what went wrong.

The servers are real ones, behind a proxy that goes wrong. That a bit which flips on the way goes
unnoticed by all drivers is shown too: hashes are checked by those who know them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npstream
from faults import (
    FOR_EVER,
    Fault,
    Proxy,
    flip,
    ignore_range,
    reset,
    slow,
    stall,
    status,
    truncate,
    wrong_length,
)
from npstream import jobs
from npstream.errors import IntegrityError, StorageError
from npstream.remote import RemoteStore
from servers import HOST, KINDS, OBSTORE, Place, Servers, choose_reader

NAME = "folder/file ä+%.bin"
DATA = random.Random(0).randbytes(300_000)
SPAN = (NAME, 1000, 250_000)
PART = DATA[1000:251_000]
SLACK = 2.0  # seconds that a busy machine may take on top
MIDDLE = 100_000  # a byte of the answer, also after what SFTP says at first

EVERY = [*KINDS, OBSTORE]
WEB = [name for name in EVERY if name != "sftp"]


@dataclasses.dataclass
class Weak:
    """A directory with one file, behind a proxy, and a store that has been there."""

    place: Place
    proxy: Proxy
    connected: RemoteStore

    def store(self, timeout: float = 4.0, retries: int = 2) -> RemoteStore:
        self.connected.timeout, self.connected.retries = timeout, retries
        return self.connected

    def statuses(self) -> list[int]:
        return [request.status for request in self.proxy.log]


def store_at(place: Place, timeout: float = 4.0, retries: int = 2) -> RemoteStore:
    return RemoteStore(place.url, place.storage_options, timeout, retries)


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
    found.place.put(NAME, DATA)
    if request.param == OBSTORE:
        reader = found.connected._connect()._read
        if reader.state == "watching":
            for _ in range(2):
                found.connected.ranges([SPAN])
            found.proxy.clear()
        assert reader.state == "proven"
    return found


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_BACK_OFF", 0.03)


on_every_server = pytest.mark.parametrize("weak", EVERY, indirect=True)
on_web_servers = pytest.mark.parametrize("weak", WEB, indirect=True)


def failure(store: RemoteStore, read: Callable[[], Any], deadline: float) -> StorageError:
    """Return the error that reading ends in, which must come in time and say what it should."""
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        read()
    assert time.monotonic() - start < deadline + SLACK
    message = str(caught.value)
    assert store.where(NAME) in message
    assert " attempt" in message
    assert " s: " in message
    assert caught.value.errno in errno.errorcode
    return caught.value


@on_every_server
@pytest.mark.parametrize(
    "fault",
    [
        reset(),
        reset(MIDDLE),
        truncate(MIDDLE),
        stall(),
        stall(MIDDLE),
        slow(0.01, times=FOR_EVER),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.at}",
)
def test_what_passes_is_got_over(weak: Weak, fault: Fault):
    weak.proxy.faults = [fault]
    assert weak.store(timeout=1.8).ranges([SPAN]) == [PART]
    # Drivers may try again by themselves what broke before an answer began.
    assert len(weak.proxy.log) > (fault.kind != "slow")


@on_web_servers
@pytest.mark.parametrize(
    "fault",
    [status(429), status(500), status(503, times=2)],
    ids=lambda fault: str(fault.status),
)
def test_every_attempt_is_one_request(weak: Weak, fault: Fault):
    weak.proxy.faults = [fault]
    assert weak.store().ranges([SPAN]) == [PART]
    assert weak.statuses() == [*[fault.status] * fault.times, 206]
    assert {(request.method, request.range) for request in weak.proxy.log} == {
        ("GET", "bytes=1000-250999")
    }
    assert weak.proxy.log[-1].nbytes == len(PART)


@on_every_server
@pytest.mark.parametrize(
    "fault",
    [reset(), reset(MIDDLE), truncate(MIDDLE), stall(), stall(MIDDLE)],
    ids=lambda fault: f"{fault.kind}-{fault.at}",
)
def test_what_lasts_is_an_error_in_time(weak: Weak, fault: Fault):
    weak.proxy.faults = [dataclasses.replace(fault, times=FOR_EVER)]
    store = weak.store(timeout=0.8, retries=1)
    error = failure(store, lambda: store.ranges([SPAN]), 0.8)
    assert error.errno in (errno.ETIMEDOUT, errno.EIO, errno.ECONNRESET)
    assert "after 2 attempts" in str(error)


@on_web_servers
def test_an_answer_of_the_wrong_length(weak: Weak):
    store = weak.store(retries=1)
    weak.proxy.faults = [wrong_length(MIDDLE)]
    assert store.ranges([SPAN]) == [PART]
    assert len(weak.proxy.log) == 2
    weak.proxy.faults = [wrong_length(MIDDLE, times=FOR_EVER)]
    error = failure(store, lambda: store.ranges([SPAN]), 1.0)
    assert error.errno == errno.EIO
    assert "after 2 attempts" in str(error)


@on_web_servers
@pytest.mark.parametrize(("code", "expected"), [(429, errno.EBUSY), (503, errno.EBUSY)])
def test_what_lasts_is_asked_for_as_often_as_was_said(weak: Weak, code: int, expected: int):
    weak.proxy.faults = [status(code, times=FOR_EVER)]
    store = weak.store(retries=1)
    error = failure(store, lambda: store.ranges([SPAN]), 1.0)
    assert error.errno == expected
    assert "after 2 attempts" in str(error)
    assert weak.statuses() == [code] * 2


@on_web_servers
@pytest.mark.parametrize(("code", "expected"), [(403, errno.EACCES), (404, errno.ENOENT)])
def test_what_will_not_pass_is_asked_for_once(weak: Weak, code: int, expected: int):
    weak.proxy.faults = [status(code, times=FOR_EVER)]
    store = weak.store()
    error = failure(store, lambda: store.ranges([SPAN]), 0.0)
    assert error.errno == expected
    assert "after 1 attempt in" in str(error)
    assert weak.statuses() == [code]


@on_web_servers
def test_a_server_that_ignores_ranges_is_told_of(weak: Weak):
    weak.proxy.faults = [ignore_range(times=FOR_EVER)]
    store = weak.store()
    error = failure(store, lambda: store.ranges([SPAN]), 0.0)
    assert re.search("came; the server ignores Range|Content-Range", str(error))


@on_web_servers
def test_drivers_let_a_flipped_bit_pass(weak: Weak):
    weak.proxy.faults = [flip(MIDDLE)]
    changed = bytearray(PART)
    changed[MIDDLE] ^= 1
    assert weak.store().ranges([SPAN]) == [changed]


@on_every_server
def test_every_call_ends_when_the_server_falls_silent(weak: Weak):
    store = weak.store(timeout=1.0, retries=0)
    weak.proxy.faults = [stall(times=FOR_EVER)]
    calls: list[Callable[[], Any]] = [
        lambda: store.exists(NAME),
        lambda: store.size(NAME),
        lambda: store.version(NAME),
        lambda: store.read(NAME),
        lambda: store.read(NAME, len(DATA)),
        lambda: store.ranges([SPAN]),
        lambda: store.put(NAME, b"new"),
    ]
    if weak.place.server.name != "http":
        calls.append(lambda: store.remove(NAME))
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        for ended in [pool.submit(failure, store, call, 1.0) for call in calls]:
            assert ended.result().errno in (errno.ETIMEDOUT, errno.EIO)


@on_web_servers
def test_every_call_gets_over_a_server_that_is_busy(weak: Weak):
    store = weak.store()

    def busy() -> None:
        weak.proxy.faults = [status(503)]

    busy()
    assert store.exists(NAME)
    busy()
    assert store.size(NAME) == len(DATA)
    busy()
    assert store.read(NAME) == DATA
    busy()
    assert list(store.names("folder/")) == [(NAME, len(DATA))]
    if weak.place.server.name != "http":
        busy()
        store.put(NAME, b"new")
        busy()
        store.remove(NAME)
        assert not store.exists(NAME)
    assert 503 in weak.statuses()


@on_every_server
def test_one_bad_answer_among_many(weak: Weak):
    weak.proxy.faults = [reset(MIDDLE // 2, times=3)]
    spans = [(NAME, at, 60_000) for at in range(0, 240_000, 10_000)]
    expected = [DATA[at : at + 60_000] for _, at, _ in spans]
    assert weak.store(retries=4).ranges(spans) == expected


@on_web_servers
def test_a_file_that_is_cut_short_is_an_error(weak: Weak):
    weak.place.put(NAME, DATA[:150_000])
    store = weak.store(retries=0)
    error = failure(store, lambda: store.ranges([(NAME, 200_000, 9)]), 1.0)
    assert error.errno == errno.ERANGE or "0 of 9 bytes came" in str(error)
    error = failure(store, lambda: store.ranges([SPAN]), 1.0)
    assert "149000 of 250000 bytes came" in str(error)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_name_that_is_not_known(servers: Servers, name: str):
    place = elsewhere(servers[name].fresh(), "nowhere.invalid")
    store = store_at(place, timeout=3.0, retries=1)
    error = failure(store, lambda: store.ranges([SPAN]), 3.0)
    assert "nowhere.invalid" in str(error)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_port_where_nobody_listens(servers: Servers, name: str):
    server = servers[name]
    with socket.create_server((HOST, 0)) as held:
        port = held.getsockname()[1]
    store = store_at(server.at(server.fresh().path, port), timeout=3.0, retries=1)
    failure(store, lambda: store.ranges([SPAN]), 3.0)


def test_a_connection_that_closes_between_the_requests_of_a_range(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
):
    """SFTP's driver sends them in a thread, whose errors would be shown to all."""
    place = servers["sftp"].fresh()
    import paramiko

    place.put(NAME, DATA)
    store = store_at(place)
    assert store.ranges([SPAN]) == [PART]
    client, file = paramiko.SFTPClient, paramiko.SFTPFile
    send, sent = client._async_request, []

    def send_once(self, *request):
        if isinstance(request[0], file):
            sent.append(threading.current_thread().name)
            if len(sent) == 2:
                self.get_channel().get_transport().close()
        return send(self, *request)

    monkeypatch.setattr(client, "_async_request", send_once)
    assert store.ranges([SPAN]) == [PART]  # through another connection
    assert len(set(sent)) == 2  # threads, of which the first had sent two of eight


def elsewhere(place: Place, host: str) -> Place:
    """Return what a driver is told, with another host in it."""
    options = json.loads(json.dumps(place.storage_options).replace(HOST, host))
    return dataclasses.replace(place, url=place.url.replace(HOST, host), storage_options=options)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("s3", "not-the-secret"),
        ("azure", "AccountKey=AAAA"),
        ("oci", "PRIVATE KEY"),
        ("sftp", "PRIVATE KEY"),
        ("hf", "hf_not-the-token"),
    ],
)
def test_wrong_keys_are_refused(servers: Servers, name: str, secret: str):
    place = servers[name].fresh()
    place.put(NAME, DATA)
    assert store_at(place, timeout=20.0).ranges([SPAN]) == [PART]
    store = RemoteStore(place.url, place.refused, 20.0, 2)
    error = failure(store, lambda: store.ranges([SPAN]), 20.0)
    assert error.errno == errno.EACCES
    assert "after 1 attempt in" in str(error)
    assert secret not in str(error)


def test_a_password_for_http(servers: Servers):
    place = servers["http"].at(servers["http"].fresh().path, location="auth")
    place.put(NAME, DATA)
    assert store_at(place).ranges([SPAN]) == [PART]
    store = RemoteStore(place.url, place.refused, 3.0, 2)
    assert failure(store, lambda: store.ranges([SPAN]), 3.0).errno == errno.EACCES


def test_a_certificate_that_nobody_knows(servers: Servers):
    place = servers["http"].secure(servers["http"].fresh().path)
    place.put(NAME, DATA)
    assert store_at(place).ranges([SPAN]) == [PART]
    store = RemoteStore(place.url, place.refused, 3.0, 2)
    assert "certificate" in str(failure(store, lambda: store.ranges([SPAN]), 3.0))


def test_nginx_without_ranges_and_slow(servers: Servers):
    server = servers["http"]
    place = server.at(server.fresh().path, location="slow")
    place.put(NAME, DATA)
    assert store_at(place).ranges([SPAN]) == [PART]
    store = store_at(server.at(place.path, location="norange"))
    error = failure(store, lambda: store.ranges([SPAN]), 3.0)
    assert "ignores Range" in str(error)


VALUES = np.arange(60_000).reshape(3000, 20)


@pytest.fixture
def published(weak: Weak, tmp_path: Path) -> Place:
    """Return where a dataset is, behind a proxy."""
    npstream.write(tmp_path / "data", {"value": VALUES}, shard_size="128KiB")
    place = weak.place.server.fresh()
    for file in (tmp_path / "data").iterdir():
        place.put(file.name, file.read_bytes())
    return place.through(weak.proxy)


@pytest.fixture
def dataset(weak: Weak, published: Place, tmp_path: Path) -> Callable[..., npstream.Dataset]:
    """Return what opens the dataset, with a cache that is empty."""

    def opened(**settings: Any) -> npstream.Dataset:
        settings |= {"cache": tmp_path / "cache", "storage_options": published.storage_options}
        found = npstream.open(published.url, **settings)
        weak.proxy.clear()
        return found

    return opened


@on_web_servers
def test_a_dataset_survives_a_bad_day(weak: Weak, dataset: Callable[..., npstream.Dataset]):
    ds = dataset(timeout=20.0)
    shards = {"path": ".mds", "method": "GET"}
    weak.proxy.faults = [
        status(503, times=2, **shards),
        flip(50_000, times=2, **shards),
        truncate(1000, **shards),
        reset(**shards),
        reset(2000, **shards),
        wrong_length(3000, **shards),
    ]
    assert np.array_equal(ds["value"].load(), VALUES)


@on_web_servers
def test_samples_that_are_wrong_are_never_returned(
    weak: Weak, dataset: Callable[..., npstream.Dataset]
):
    ds = dataset(timeout=3.0, retries=1)
    weak.proxy.faults = [flip(50_000, times=FOR_EVER, path=".mds")]
    with pytest.raises(IntegrityError, match=r"shard\.\d+\.mds"):
        ds["value"].load()
    weak.proxy.faults = []
    assert np.array_equal(ds["value"].load(), VALUES)


@on_web_servers
def test_a_shard_that_is_replaced_while_the_dataset_is_open(
    weak: Weak, published: Place, dataset: Callable[..., npstream.Dataset], tmp_path: Path
):
    ds = dataset(timeout=3.0, retries=1)
    shard = sorted((tmp_path / "data").glob("*.mds"))[1]
    npstream.write(tmp_path / "other", {"value": VALUES + 1}, shard_size="128KiB")
    other = (tmp_path / "other" / shard.name).read_bytes()
    assert np.array_equal(ds["value"][:10].load(), VALUES[:10])
    published.put(shard.name, other)
    with pytest.raises(IntegrityError, match=shard.name):
        ds["value"].load()
    published.put(shard.name, other[:50_000])
    with pytest.raises((IntegrityError, StorageError), match=shard.name):
        ds["value"].load()
    published.put(shard.name, shard.read_bytes())
    assert np.array_equal(ds["value"].load(), VALUES)


@on_web_servers
def test_a_dataset_whose_server_fails_for_ever(
    weak: Weak, dataset: Callable[..., npstream.Dataset]
):
    ds = dataset(timeout=2.0, retries=1)
    for fault in (status(503, times=FOR_EVER), reset(1000, times=FOR_EVER)):
        weak.proxy.faults = [fault]
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"after \d attempts in .*shard\.\d+\.mds"):
            ds["value"].load()
        assert time.monotonic() - start < 2.0 + SLACK
    weak.proxy.faults = []
    assert np.array_equal(ds["value"].load(), VALUES)


@on_every_server
def test_a_dataset_that_is_closed_while_its_server_is_silent(
    weak: Weak, dataset: Callable[..., npstream.Dataset]
):
    ds = dataset(timeout=30.0)
    weak.proxy.faults = [stall(times=FOR_EVER)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(ds["value"].load)
        while not weak.proxy.log:
            time.sleep(0.01)
        start = time.monotonic()
        ds.close()
        with pytest.raises((StorageError, ValueError), match=r"was stopped|is closed"):
            loading.result()
    assert time.monotonic() - start < SLACK
