"""Errors of connections: wrong addresses, certificates and keys, and closed connections."""

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
from faults import Proxy
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
    store = RemoteStore(url, options, 60.0, 0)
    calls = {
        "version": lambda: store.version("a file"),
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


def ask(cases: list[RemoteDirectory], calls: tuple[str, ...], **env: str) -> Iterator[Any]:
    """Call stores in another process, which must print no warning or error.

    Yields, for each case and call, the case, and a list of the errno and the message. For a call
    that succeeds, the list has 0 and the repr of the result.
    """
    arguments = [((case.url, case.storage_options), call) for case in cases for call in calls]
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NPSTREAM_OBSTORE": "0", **env},
    )
    assert process.stderr == ""
    answers = json.loads(process.stdout)
    return zip([remote_dir for remote_dir in cases for _ in calls], answers, strict=True)


@pytest.fixture(scope="module")
def nginx(servers: Servers) -> Any:
    return servers["http"]


@pytest.fixture(scope="module")
def banner() -> Iterator[int]:
    """Return the port of a server that sends a banner at once, which is not HTTP."""
    connections: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                connections[-1].sendall(b"220 ready\r\n\r\n")

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((HOST, 0)))
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)  # ends the thread
        thread.join()
        for connection in connections:
            connection.close()


CONNECTION_ERRORS = [
    ("an unknown host", errno.EHOSTUNREACH, "nowhere.invalid"),
    ("a port where nobody listens", errno.ECONNREFUSED, "nothing listens there"),
    ("a port of another protocol", errno.EPROTO, "check the scheme"),
    ("TLS where there is none", errno.EPROTO, "check the scheme"),
    ("a certificate that nobody knows", errno.ECONNABORTED, "certificate verify failed"),
]

TLS = [("http://", "https://"), ("Protocol=http;", "Protocol=https;")]


def misdirect(
    remote_dir: RemoteDirectory, case: str, closed_port: int, banner: int, nginx: Any
) -> RemoteDirectory:
    """Return a directory whose URL and options lead to the error `case`."""
    sftp, port = remote_dir.server.name == "sftp", remote_dir.server.port
    address = {
        "an unknown host": f"nowhere.invalid:{port}",
        "a port where nobody listens": f"{HOST}:{closed_port}",
        "a port of another protocol": f"{HOST}:{nginx.port if sftp else banner}",
        "TLS where there is none": f"{HOST}:{port}",
        "a certificate that nobody knows": f"{HOST}:{nginx.port_numbers[1]}",
    }
    tls = TLS if case.startswith(("TLS", "a certificate")) else []
    return replace_text(remote_dir, *tls, (f"{HOST}:{port}", address[case]))


def test_connection_errors_name_the_cause(servers: Servers, nginx: Any, banner: int):
    """The message is the same for each driver, and no library prints anything."""
    with socket.create_server((HOST, 0)) as listener:
        closed_port = listener.getsockname()[1]
    expected, cases = [], []
    for name in SERVER_KINDS:
        remote_dir = servers[name].new_directory()
        for case, code, message in CONNECTION_ERRORS[: 3 if name == "sftp" else None]:
            expected += [(case, code, message)] * 2
            cases.append(misdirect(remote_dir, case, closed_port, banner, nginx))
    for (case, code, message), (remote_dir, (number, text)) in zip(
        expected, ask(cases, ("version", "range")), strict=True
    ):
        driver = remote_dir.server.name
        assert number == code, f"{driver}, {case}: {text}"
        assert message in text, f"{driver}, {case}"
        if code == errno.ECONNABORTED:
            variables = {"s3": "AWS_CA_BUNDLE", "oci": "REQUESTS_CA_BUNDLE"}
            assert f"that of its issuer in {variables.get(driver, 'SSL_CERT_FILE')}" in text


def test_a_certificate_is_trusted_as_the_error_says(servers: Servers, nginx: Any):
    files = (nginx.directory / "tls.pem", nginx.directory / "tls.key")
    with contextlib.ExitStack() as stack:
        cases = []
        for name in SERVER_KINDS:
            if name == "sftp":
                continue
            server = servers[name]
            tls_proxy = stack.enter_context(Proxy(server.port, certificate=files))
            remote_dir = server.new_directory()
            remote_dir.put("a file", DATA[:9])
            address = f"{HOST}:{server.port}"
            cases.append(replace_text(remote_dir, *TLS, (address, f"{HOST}:{tls_proxy.port}")))
        names = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
        trust_variables = dict.fromkeys(names, str(files[0]))
        for remote_dir, answer in ask(cases, ("read",), **trust_variables):
            assert answer == [0, repr(DATA[:9])], remote_dir.server.name
        by_option = {
            "s3": {"client_kwargs": {"verify": str(files[0])}},
            "http": {"ssl": str(files[0])},
        }
        with_option = [
            dataclasses.replace(
                case, storage_options=case.storage_options | by_option[case.server.name]
            )
            for case in cases
            if case.server.name in by_option
        ]
        for remote_dir, answer in ask(with_option, ("read",)):
            assert answer == [0, repr(DATA[:9])], remote_dir.server.name


def test_certificate_files_and_contexts_in_options(nginx: Any, tmp_path: Path):
    remote_dir = nginx.https_directory(nginx.new_directory().path)
    remote_dir.put(NAME, DATA)
    certificate = str(nginx.directory / "tls.pem")
    for path in (certificate, Path(certificate)):
        store = pickle.loads(pickle.dumps(RemoteStore(remote_dir.url, {"ssl": path}, 60.0, 0)))
        assert store.ranges([SPAN]) == [PART]
    store = RemoteStore(remote_dir.url, {"ssl": str(tmp_path / "none.pem")}, 60.0, 0)
    # The file of certificates is missing, not a file of the dataset. So `exists` raises, too.
    for call in (store.exists, store.read):
        with pytest.raises(
            StorageError, match=r"none\.pem.*expected a file of certificates"
        ) as caught:
            call(NAME)
        assert caught.value.errno == errno.EINVAL
    context = RemoteStore(remote_dir.url, remote_dir.storage_options, 60.0, 0)
    assert context.ranges([SPAN]) == [PART]
    with pytest.raises(TypeError, match=r"storage_options\['ssl'\], of type SSLContext, cannot be"):
        pickle.dumps(context)
    nested = RemoteStore("memory://x", {"config": {"lock": threading.Lock()}})
    with pytest.raises(TypeError, match=r"storage_options\['config'\]\['lock'\], of type lock"):
        pickle.dumps(nested)


def test_a_range_is_retried_if_the_connection_closes_between_its_requests(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
):
    """SFTP's driver sends them in a thread, which would print its exceptions."""
    remote_dir = servers["sftp"].new_directory()
    import paramiko

    remote_dir.put(NAME, DATA)
    store = store_at(remote_dir)
    assert store.ranges([SPAN]) == [PART]
    client, file = paramiko.SFTPClient, paramiko.SFTPFile
    send, senders = client._async_request, []

    def send_until_closed(self, *request):
        if isinstance(request[0], file):
            senders.append(threading.current_thread().name)
            if len(senders) == 2:
                self.get_channel().get_transport().close()
        return send(self, *request)

    monkeypatch.setattr(client, "_async_request", send_until_closed)
    assert store.ranges([SPAN]) == [PART]  # through another connection
    assert len(set(senders)) == 2  # two threads: the first had sent two of eight requests


def test_a_range_is_retried_if_a_response_is_too_long(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
):
    """SFTP's driver would overwrite the bytes of another request with the surplus."""
    remote_dir = servers["sftp"].new_directory()
    import paramiko

    remote_dir.put(NAME, DATA)
    store = store_at(remote_dir)
    client, file = paramiko.SFTPClient, paramiko.SFTPFile
    send, lengths = client._async_request, []

    def send_more(self, fileobj, kind, *request):
        if isinstance(fileobj, file) and len(request) == 3:  # a handle, an offset and a length
            lengths.append(request[2])
            if len(lengths) <= 2:  # the server then sends twice as many bytes as the driver expects
                request = (*request[:2], 2 * request[2])
        return send(self, fileobj, kind, *request)

    monkeypatch.setattr(client, "_async_request", send_more)
    assert store.ranges([SPAN]) == [PART]
    assert sum(lengths) > len(PART)  # the range was read twice


def replace_text(remote_dir: RemoteDirectory, *changes: tuple[str, str]) -> RemoteDirectory:
    """Return a directory with texts in its URL and options replaced."""
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
def test_wrong_keys_raise_eacces_without_secrets(servers: Servers, name: str, secret: str):
    remote_dir = servers[name].new_directory()
    remote_dir.put(NAME, DATA)
    assert store_at(remote_dir, timeout=20.0).ranges([SPAN]) == [PART]
    store = RemoteStore(remote_dir.url, remote_dir.rejected_options, 20.0, 2)
    error = failure(store, lambda: store.ranges([SPAN]), 20.0)
    assert error.errno == errno.EACCES
    assert "after 1 attempt in" in str(error)
    assert secret not in str(error)


def test_http_basic_authentication(servers: Servers):
    remote_dir = servers["http"].directory_at(servers["http"].new_directory().path, location="auth")
    remote_dir.put(NAME, DATA)
    assert store_at(remote_dir).ranges([SPAN]) == [PART]
    store = RemoteStore(remote_dir.url, remote_dir.rejected_options, 60.0, 2)
    assert failure(store, lambda: store.ranges([SPAN]), 60.0).errno == errno.EACCES


def test_nginx_with_slow_responses_and_without_ranges(servers: Servers):
    server = servers["http"]
    remote_dir = server.directory_at(server.new_directory().path, location="slow")
    remote_dir.put(NAME, DATA)
    assert store_at(remote_dir).ranges([SPAN]) == [PART]
    store = store_at(server.directory_at(remote_dir.path, location="norange"))
    error = failure(store, lambda: store.ranges([SPAN]), 3.0)
    assert "ignores Range" in str(error)
