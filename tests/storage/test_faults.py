"""Whatever a server does, a store returns the right bytes or says in time what went wrong.

The servers are real ones, behind a proxy that goes wrong. That a bit which flips on the way goes
unnoticed by all drivers is shown too: hashes are checked by those who know them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import itertools
import json
import os
import pickle
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from faults import (
    FOR_EVER,
    Fault,
    Proxy,
    encoded,
    flip,
    flood,
    garbage,
    ignore_range,
    multipart,
    other_range,
    reset,
    slow,
    stall,
    status,
    truncate,
    unranged,
    unsized,
    wrong_length,
)
from servers import HOST, KINDS, OBSTORE, Place, Servers, choose_reader

import npstream
from npstream.errors import IntegrityError, StorageError
from npstream.storage import requests as jobs
from npstream.storage.remote import RemoteStore

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


CALLS: dict[str, Callable[[RemoteStore], Any]] = {
    "look": lambda store: store.version(NAME),
    "absent": lambda store: store.exists("absent"),
    "range": lambda store: store.ranges([SPAN]),
    "list": lambda store: list(store.names("folder/")),
    "put": lambda store: store.put("new", DATA),
    "put large": lambda store: store.put("new", bytes(9 << 20)),
    "create": lambda store: store.create(f"new {time.monotonic_ns()}", b"new"),
    "remove": lambda store: store.remove("new"),
}


WRITES = ("put", "put large", "create", "remove")
UNCOUNTED = {
    "http": WRITES,  # it only reads
    "hf": ("put", "put large"),  # huggingface_hub uploads in its own way
}


@on_web_servers
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_no_driver_tries_again(weak: Weak):
    """An attempt that fails makes no more requests than one that does not."""
    for name, call in CALLS.items():
        if name in UNCOUNTED.get(weak.place.server.name, ()):
            continue
        weak.proxy.clear()
        call(weak.store(timeout=20.0))
        enough = len(weak.proxy.log)
        for fault in (reset(), status(429), status(500), status(503), reset(1), truncate(1)):
            weak.proxy.clear()
            weak.proxy.faults = [dataclasses.replace(fault, times=FOR_EVER)]
            # Without an answer to read there is nothing to cut short.
            with contextlib.suppress(StorageError):
                call(weak.store(timeout=20.0, retries=0))
            # Where a connection breaks before an answer, aiohttp takes it for one that was idle.
            most = enough * (1 + (fault == reset()))
            assert len(weak.proxy.log) <= most, f"{name}, {fault}: {weak.proxy.log}"


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
@pytest.mark.parametrize(
    "fault",
    [other_range(1000), other_range(-1000), unranged(), multipart(), encoded(), flood()],
    ids=lambda fault: f"{fault.kind}{fault.at or ''}",
)
def test_bytes_that_were_not_asked_for_are_not_taken(weak: Weak, fault: Fault):
    weak.proxy.faults = [dataclasses.replace(fault, times=FOR_EVER)]
    store = weak.store(retries=1)
    error = failure(store, lambda: store.ranges([SPAN]), 2.0)
    assert error.errno in (errno.EIO, errno.EINVAL)
    # What is too much is not read: here a little of it is in the sockets' buffers.
    assert all(request.nbytes < 16 << 20 for request in weak.proxy.log)
    weak.proxy.faults = []
    assert store.ranges([SPAN]) == [PART]


@on_every_server
def test_a_lost_connection_is_no_missing_file(weak: Weak):
    looks: list[Callable[[RemoteStore], Any]] = [
        lambda store: store.exists(NAME),
        lambda store: store.size(NAME) == len(DATA),
        lambda store: store.read(NAME) == DATA,
        lambda store: store.sizes([NAME]) == [len(DATA)],
    ]
    faults = [reset()] if weak.place.server.raw else [reset(), garbage(), truncate(0)]

    def store(**settings: Any) -> RemoteStore:
        # SFTP's driver keeps a session, which nothing breaks any more.
        return store_at(weak.place, **settings) if weak.place.server.raw else weak.store(**settings)

    for look, fault in itertools.product(looks, faults):
        weak.proxy.faults = [fault]
        assert look(store())
    weak.proxy.faults = [reset(times=FOR_EVER)]
    settings = {"timeout": 0.8, "retries": 1}
    for look in looks[:3]:
        error = failure(weak.connected, lambda look=look: look(store(**settings)), 1.0)
        assert error.errno not in (errno.ENOENT, errno.EINVAL)
        assert "after 2 attempts" in str(error)
    (found,) = store(**settings).sizes([NAME])
    assert isinstance(found, StorageError)
    assert found.errno != errno.ENOENT


@on_web_servers
def test_a_size_that_head_does_not_say(weak: Weak):
    weak.proxy.faults = [unsized(times=FOR_EVER, method="HEAD")]
    store = weak.store()
    assert store.exists(NAME)
    assert store.size(NAME) == len(DATA)
    assert store.read(NAME) == DATA
    assert store.version(NAME).startswith(f"{len(DATA)}:")
    assert store.exists(NAME + "x") is False


@on_web_servers
def test_a_body_that_ends_with_the_connection(weak: Weak):
    weak.proxy.faults = [unsized(times=FOR_EVER, method="GET", path=quote("%.bin"))]
    try:
        assert weak.store(retries=0).ranges([SPAN]) == [PART]
    except StorageError as error:  # as some drivers want to know the length first
        assert "ength" in str(error)  # noqa: PT017


@on_web_servers
def test_a_status_line_that_is_none_is_got_over(weak: Weak):
    weak.proxy.faults = [garbage()]
    assert weak.store().ranges([SPAN]) == [PART]
    weak.proxy.faults = [garbage(times=FOR_EVER)]
    store = weak.store(retries=1)
    error = failure(store, lambda: store.ranges([SPAN]), 1.0)
    assert error.errno in (errno.EIO, errno.EPROTO)
    assert "after 2 attempts" in str(error)


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
    assert weak.store(timeout=20.0, retries=4).ranges(spans) == expected


@on_web_servers
def test_a_file_that_is_cut_short_is_an_error(weak: Weak):
    weak.place.put(NAME, DATA[:150_000])
    store = weak.store(retries=0)
    error = failure(store, lambda: store.ranges([(NAME, 200_000, 9)]), 1.0)
    assert error.errno == errno.ERANGE or "0 of 9 bytes came" in str(error)
    error = failure(store, lambda: store.ranges([SPAN]), 1.0)
    assert "149000 of 250000 bytes came" in str(error)


ASK = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from npstream.storage.remote import RemoteStore

def ask(case):
    (url, options), name = case
    store = RemoteStore(url, options, 8.0, 0)
    calls = {
        "look": lambda: store.version("a file"),
        "read": lambda: store.read("a file"),
        "range": lambda: store.ranges([("a file", 0, 3)]),
    }
    try:
        return [0, repr(calls[name]())]
    except OSError as error:
        return [error.errno, str(error)]

with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(ask, json.load(sys.stdin)))))
"""


def asked(cases: list[Place], calls: tuple[str, ...], **env: str) -> Iterator[Any]:
    """Call stores in a process of its own, which must print nothing else; return errno and text."""
    given = [((p.url, p.storage_options), call) for p in cases for call in calls]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NPSTREAM_OBSTORE": "0", **env},
    )
    assert ended.stderr == ""
    answers = json.loads(ended.stdout)
    return zip([place for place in cases for _ in calls], answers, strict=True)


@pytest.fixture(scope="module")
def nginx(servers: Servers) -> Any:
    return servers["http"]


@pytest.fixture(scope="module")
def banner() -> Iterator[int]:
    """Return the port of a server that says something at once, and not what HTTP says."""
    held: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(listener.accept()[0])
                held[-1].sendall(b"220 ready\r\n\r\n")

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((HOST, 0)))
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)  # which ends the thread
        thread.join()
        for connection in held:
            connection.close()


WRONG = [
    ("an unknown host", errno.EHOSTUNREACH, "nowhere.invalid"),
    ("a port where nobody listens", errno.ECONNREFUSED, "nothing listens there"),
    ("a port of another protocol", errno.EPROTO, "check the scheme"),
    ("TLS where there is none", errno.EPROTO, "check the scheme"),
    ("a certificate that nobody knows", errno.ECONNABORTED, "certificate verify failed"),
]
TLS = [("http://", "https://"), ("Protocol=http;", "Protocol=https;")]


def wrong(place: Place, what: str, closed: int, banner: int, nginx: Any) -> Place:
    """Return what a driver is told so that it meets with one of the above."""
    sftp, port = place.server.name == "sftp", place.server.port
    there = {
        "an unknown host": f"nowhere.invalid:{port}",
        "a port where nobody listens": f"{HOST}:{closed}",
        "a port of another protocol": f"{HOST}:{nginx.port if sftp else banner}",
        "TLS where there is none": f"{HOST}:{port}",
        "a certificate that nobody knows": f"{HOST}:{nginx.bound[1]}",
    }
    tls = TLS if what.startswith(("TLS", "a certificate")) else []
    return elsewhere(place, *tls, (f"{HOST}:{port}", there[what]))


def test_what_is_wrong_with_a_connection(servers: Servers, nginx: Any, banner: int):
    """Each driver says the same of it, and no library prints anything of its own."""
    with socket.create_server((HOST, 0)) as held:
        closed = held.getsockname()[1]
    expected, cases = [], []
    for name in KINDS:
        place = servers[name].fresh()
        for what, code, said in WRONG if name != "sftp" else WRONG[:3]:
            expected += [(what, code, said)] * 2
            cases.append(wrong(place, what, closed, banner, nginx))
    for (what, code, said), (place, (number, text)) in zip(
        expected, asked(cases, ("look", "range")), strict=True
    ):
        driver = place.server.name
        assert number == code, f"{driver}, {what}: {text}"
        assert said in text, f"{driver}, {what}"
        if code == errno.ECONNABORTED:
            trusted = {"s3": "AWS_CA_BUNDLE", "oci": "REQUESTS_CA_BUNDLE"}
            assert f"that of its issuer in {trusted.get(driver, 'SSL_CERT_FILE')}" in text


def test_a_certificate_is_trusted_as_the_error_says(servers: Servers, nginx: Any):
    files = (nginx.directory / "tls.pem", nginx.directory / "tls.key")
    with contextlib.ExitStack() as stack:
        cases = []
        for name in KINDS:
            if name == "sftp":
                continue
            server = servers[name]
            front = stack.enter_context(Proxy(server.port, certificate=files))
            place = server.fresh()
            place.put("a file", DATA[:9])
            here = f"{HOST}:{server.port}"
            cases.append(elsewhere(place, *TLS, (here, f"{HOST}:{front.port}")))
        names = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
        trusted = dict.fromkeys(names, str(files[0]))
        for place, answer in asked(cases, ("read",), **trusted):
            assert answer == [0, repr(DATA[:9])], place.server.name
        by_option = {
            "s3": {"client_kwargs": {"verify": str(files[0])}},
            "http": {"ssl": str(files[0])},
        }
        some = [
            dataclasses.replace(p, storage_options=p.storage_options | by_option[p.server.name])
            for p in cases
            if p.server.name in by_option
        ]
        for place, answer in asked(some, ("read",)):
            assert answer == [0, repr(DATA[:9])], place.server.name


def test_certificates_in_options(nginx: Any, tmp_path: Path):
    place = nginx.secure(nginx.fresh().path)
    place.put(NAME, DATA)
    trusted = str(nginx.directory / "tls.pem")
    for given in (trusted, Path(trusted)):
        store = pickle.loads(pickle.dumps(RemoteStore(place.url, {"ssl": given}, 3.0, 0)))
        assert store.ranges([SPAN]) == [PART]
    absent = RemoteStore(place.url, {"ssl": str(tmp_path / "none.pem")}, 3.0, 0)
    for call in (absent.exists, absent.read):  # for a file of ours, not one of the dataset
        with pytest.raises(
            StorageError, match=r"none\.pem.*expected a file of certificates"
        ) as caught:
            call(NAME)
        assert caught.value.errno == errno.EINVAL
    context = RemoteStore(place.url, place.storage_options, 3.0, 0)
    assert context.ranges([SPAN]) == [PART]
    with pytest.raises(TypeError, match=r"storage_options\['ssl'\], of type SSLContext, cannot be"):
        pickle.dumps(context)
    nested = RemoteStore("memory://x", {"config": {"lock": threading.Lock()}})
    with pytest.raises(TypeError, match=r"storage_options\['config'\]\['lock'\], of type lock"):
        pickle.dumps(nested)


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


def test_a_server_that_sends_more_than_a_request_was_for(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
):
    """SFTP's driver would put the rest in the place of what another request was for."""
    place = servers["sftp"].fresh()
    import paramiko

    place.put(NAME, DATA)
    store = store_at(place)
    client, file = paramiko.SFTPClient, paramiko.SFTPFile
    send, lengths = client._async_request, []

    def send_more(self, fileobj, kind, *request):
        if isinstance(fileobj, file) and len(request) == 3:  # a handle, an offset and a length
            lengths.append(request[2])
            more = (1 if len(lengths) > 2 else 2) * request[2]
            request = (*request[:2], more)
        return send(self, fileobj, kind, *request)

    monkeypatch.setattr(client, "_async_request", send_more)
    assert store.ranges([SPAN]) == [PART]
    assert sum(lengths) > len(PART)  # it was read again


def elsewhere(place: Place, *changes: tuple[str, str]) -> Place:
    """Return what a driver is told, with other texts in it."""
    url, options = place.url, json.dumps(place.storage_options)
    for old, new in changes:
        url, options = url.replace(old, new), options.replace(old, new)
    return dataclasses.replace(place, url=url, storage_options=json.loads(options))


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
