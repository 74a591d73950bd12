"""Connections that are wrong: addresses, certificates, keys, servers that hang up."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import (
    Proxy,
)
from faulty_stores import DATA, NAME, PART, SPAN, failure, store_at
from servers import HOST, SERVER_KINDS, RemoteDirectory, Servers

from npstream.errors import StorageError
from npstream.storage.remote import RemoteStore

pytestmark = pytest.mark.usefixtures("short_pauses")

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


def asked(cases: list[RemoteDirectory], calls: tuple[str, ...], **env: str) -> Iterator[Any]:
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
    return zip([remote_dir for remote_dir in cases for _ in calls], answers, strict=True)


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


def wrong(
    remote_dir: RemoteDirectory, what: str, closed: int, banner: int, nginx: Any
) -> RemoteDirectory:
    """Return what a driver is told so that it meets with one of the above."""
    sftp, port = remote_dir.server.name == "sftp", remote_dir.server.port
    there = {
        "an unknown host": f"nowhere.invalid:{port}",
        "a port where nobody listens": f"{HOST}:{closed}",
        "a port of another protocol": f"{HOST}:{nginx.port if sftp else banner}",
        "TLS where there is none": f"{HOST}:{port}",
        "a certificate that nobody knows": f"{HOST}:{nginx.bound[1]}",
    }
    tls = TLS if what.startswith(("TLS", "a certificate")) else []
    return elsewhere(remote_dir, *tls, (f"{HOST}:{port}", there[what]))


def test_what_is_wrong_with_a_connection(servers: Servers, nginx: Any, banner: int):
    """Each driver says the same of it, and no library prints anything of its own."""
    with socket.create_server((HOST, 0)) as held:
        closed = held.getsockname()[1]
    expected, cases = [], []
    for name in SERVER_KINDS:
        remote_dir = servers[name].new_directory()
        for what, code, said in WRONG if name != "sftp" else WRONG[:3]:
            expected += [(what, code, said)] * 2
            cases.append(wrong(remote_dir, what, closed, banner, nginx))
    for (what, code, said), (remote_dir, (number, text)) in zip(
        expected, asked(cases, ("look", "range")), strict=True
    ):
        driver = remote_dir.server.name
        assert number == code, f"{driver}, {what}: {text}"
        assert said in text, f"{driver}, {what}"
        if code == errno.ECONNABORTED:
            trusted = {"s3": "AWS_CA_BUNDLE", "oci": "REQUESTS_CA_BUNDLE"}
            assert f"that of its issuer in {trusted.get(driver, 'SSL_CERT_FILE')}" in text


def test_a_certificate_is_trusted_as_the_error_says(servers: Servers, nginx: Any):
    files = (nginx.directory / "tls.pem", nginx.directory / "tls.key")
    with contextlib.ExitStack() as stack:
        cases = []
        for name in SERVER_KINDS:
            if name == "sftp":
                continue
            server = servers[name]
            front = stack.enter_context(Proxy(server.port, certificate=files))
            remote_dir = server.new_directory()
            remote_dir.put("a file", DATA[:9])
            here = f"{HOST}:{server.port}"
            cases.append(elsewhere(remote_dir, *TLS, (here, f"{HOST}:{front.port}")))
        names = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
        trusted = dict.fromkeys(names, str(files[0]))
        for remote_dir, answer in asked(cases, ("read",), **trusted):
            assert answer == [0, repr(DATA[:9])], remote_dir.server.name
        by_option = {
            "s3": {"client_kwargs": {"verify": str(files[0])}},
            "http": {"ssl": str(files[0])},
        }
        some = [
            dataclasses.replace(p, storage_options=p.storage_options | by_option[p.server.name])
            for p in cases
            if p.server.name in by_option
        ]
        for remote_dir, answer in asked(some, ("read",)):
            assert answer == [0, repr(DATA[:9])], remote_dir.server.name


def test_certificates_in_options(nginx: Any, tmp_path: Path):
    remote_dir = nginx.https_directory(nginx.new_directory().path)
    remote_dir.put(NAME, DATA)
    trusted = str(nginx.directory / "tls.pem")
    for given in (trusted, Path(trusted)):
        store = pickle.loads(pickle.dumps(RemoteStore(remote_dir.url, {"ssl": given}, 3.0, 0)))
        assert store.ranges([SPAN]) == [PART]
    absent = RemoteStore(remote_dir.url, {"ssl": str(tmp_path / "none.pem")}, 3.0, 0)
    for call in (absent.exists, absent.read):  # for a file of ours, not one of the dataset
        with pytest.raises(
            StorageError, match=r"none\.pem.*expected a file of certificates"
        ) as caught:
            call(NAME)
        assert caught.value.errno == errno.EINVAL
    context = RemoteStore(remote_dir.url, remote_dir.storage_options, 3.0, 0)
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
    remote_dir = servers["sftp"].new_directory()
    import paramiko

    remote_dir.put(NAME, DATA)
    store = store_at(remote_dir)
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
    remote_dir = servers["sftp"].new_directory()
    import paramiko

    remote_dir.put(NAME, DATA)
    store = store_at(remote_dir)
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


def elsewhere(remote_dir: RemoteDirectory, *changes: tuple[str, str]) -> RemoteDirectory:
    """Return what a driver is told, with other texts in it."""
    url, options = remote_dir.url, json.dumps(remote_dir.storage_options)
    for old, new in changes:
        url, options = url.replace(old, new), options.replace(old, new)
    return dataclasses.replace(remote_dir, url=url, storage_options=json.loads(options))


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
    remote_dir = servers[name].new_directory()
    remote_dir.put(NAME, DATA)
    assert store_at(remote_dir, timeout=20.0).ranges([SPAN]) == [PART]
    store = RemoteStore(remote_dir.url, remote_dir.rejected_options, 20.0, 2)
    error = failure(store, lambda: store.ranges([SPAN]), 20.0)
    assert error.errno == errno.EACCES
    assert "after 1 attempt in" in str(error)
    assert secret not in str(error)


def test_a_password_for_http(servers: Servers):
    remote_dir = servers["http"].at(servers["http"].new_directory().path, location="auth")
    remote_dir.put(NAME, DATA)
    assert store_at(remote_dir).ranges([SPAN]) == [PART]
    store = RemoteStore(remote_dir.url, remote_dir.rejected_options, 3.0, 2)
    assert failure(store, lambda: store.ranges([SPAN]), 3.0).errno == errno.EACCES


def test_nginx_without_ranges_and_slow(servers: Servers):
    server = servers["http"]
    remote_dir = server.at(server.new_directory().path, location="slow")
    remote_dir.put(NAME, DATA)
    assert store_at(remote_dir).ranges([SPAN]) == [PART]
    store = store_at(server.at(remote_dir.path, location="norange"))
    error = failure(store, lambda: store.ranges([SPAN]), 3.0)
    assert "ignores Range" in str(error)
