"""Credentials that expire while a store is read: both engines renew them in time."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from servers import ENGINE_KINDS, ENGINE_SUFFIX, HOST, choose_engine

from npstream.storage.remote import RemoteStore

DATA = bytes(range(256)) * 4

LIFETIME = 4.0
"""The seconds after which a token expires. On a slow machine a request takes a second."""


class Handler(BaseHTTPRequestHandler):
    """Issues tokens, and answers requests for one file that have a token that has not expired."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.respond()

    def respond(self):
        if self.path == "/container":  # where containers of AWS get credentials
            expiration = (datetime.now(UTC) + timedelta(seconds=LIFETIME)).isoformat()
            keys = {"AccessKeyId": "AK", "SecretAccessKey": "secret"}
            token = {"Token": self.server.issue(), "Expiration": expiration}
            self.send(200, {}, json.dumps(keys | token).encode())
        elif self.path == "/token":  # Google's server of tokens
            token = {"access_token": self.server.issue(), "expires_in": LIFETIME}
            self.send(200, {"Content-Type": "application/json"}, json.dumps(token).encode())
        else:
            header = self.headers.get("x-amz-security-token") or self.headers.get("authorization")
            token = (header or "").removeprefix("Bearer ")
            if self.server.is_valid(token):
                self.send_file()
            else:
                self.server.refused_tokens.append(token)
                body = b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
                self.send(401, {}, body)

    def send_file(self):
        headers = {"ETag": '"tag"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        start, last = 0, len(DATA) - 1
        if (text := self.headers.get("Range")) is not None:
            start, last = map(int, re.findall(r"\d+", text))
            headers["Content-Range"] = f"bytes {start}-{last}/{len(DATA)}"
        self.send(206 if text else 200, headers, DATA[start : last + 1])

    def send(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """The server of tokens and of the file."""

    daemon_threads = True

    def __init__(self):
        super().__init__((HOST, 0), Handler)
        self.issue_times = {}  # token -> time
        self.refused_tokens = []

    @property
    def url(self):
        return f"http://{HOST}:{self.server_port}"

    def issue(self):
        token = f"token-{len(self.issue_times)}"
        self.issue_times[token] = time.monotonic()
        return token

    def is_valid(self, token):
        return time.monotonic() < self.issue_times.get(token, -LIFETIME) + LIFETIME


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def s3_store(server, monkeypatch, tmp_path):
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/container")
    return RemoteStore("s3://bucket/data", {"endpoint_url": server.url})


def gcs_store(server, _monkeypatch, _tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "client_email": "reader@project.example",
        "private_key": key.decode(),
        "token_uri": f"{server.url}/token",
    }
    return RemoteStore("gs://bucket/data", {"token": account, "endpoint_url": server.url})


MAKE_STORE = {"s3": s3_store, "gcs": gcs_store}


@pytest.mark.parametrize("kind", ["s3", "gcs", *ENGINE_KINDS[:2]])
def test_credentials_that_expire_are_renewed(servers, server, kind, monkeypatch, tmp_path):
    if kind in ENGINE_KINDS:
        servers[kind]  # skips the test if obstore is not installed
    choose_engine(kind, monkeypatch)
    store = MAKE_STORE[kind.removesuffix(ENGINE_SUFFIX)](server, monkeypatch, tmp_path)
    reads = 0
    while not server.issue_times or server.is_valid("token-0") or reads < 3:
        assert store.ranges([("file", reads % 100, 50)]) == [DATA[reads % 100 :][:50]]
        reads += 1
    assert store.ranges([("file", 0, 1)]) == [DATA[:1]]
    assert len(server.issue_times) > 1
    assert server.refused_tokens == []
    engine = store._connect()._engine
    assert (engine.state if engine else "none") == ("proven" if kind in ENGINE_KINDS else "none")
