"""The test servers and the proxy work as tests expect, and stores work with each server."""

from __future__ import annotations

import pickle
import random
import time
import urllib.request

import pytest
from faults import Request, flip, ignore_range, status
from servers import SERVER_KINDS, RemoteDirectory, Servers

from npstream.storage.local import open_store
from npstream.storage.remote import RemoteStore

DATA = random.Random(1).randbytes(100_000)


def test_a_store_reads_and_writes_on_every_server(remote_dir: RemoteDirectory):
    remote_dir.put("a/b", DATA)
    store = open_store(remote_dir.url, remote_dir.storage_options)
    assert isinstance(store, RemoteStore)
    store = pickle.loads(pickle.dumps(store))
    assert store.size("a/b") == len(DATA)
    assert store.read("a/b") == DATA
    assert store.ranges([("a/b", 5, 7), ("a/b", 99_000, 1000)]) == [DATA[5:12], DATA[99_000:]]
    assert list(store.names()) == [("a/b", len(DATA))]
    if remote_dir.server.name == "http":
        return  # this server is read-only, and responds to a folder's path as to a file's
    assert not store.exists("a")
    store.put("a/c", b"new")
    before = store.version("a/c")
    store.put("a/c", b"newer")
    assert store.version("a/c") != before
    assert sorted(store.names("a/")) == [("a/b", len(DATA)), ("a/c", 5)]
    store.remove("a/c")
    store.remove("a/c")  # removing a missing file is no error
    assert not store.exists("a/c")


def test_new_directories_are_empty(remote_dir: RemoteDirectory):
    assert remote_dir.url != remote_dir.server.new_directory().url
    assert list(RemoteStore(remote_dir.url, remote_dir.storage_options).names()) == []


@pytest.mark.parametrize("name", ["s3", "gcs", "azure"])
def test_environment_variables_give_credentials_and_endpoints(
    servers: Servers, name: str, monkeypatch: pytest.MonkeyPatch
):
    remote_dir = servers[name].new_directory()
    remote_dir.put("a", DATA)
    for variable, value in remote_dir.env.items():
        monkeypatch.setenv(variable, value)
    options = {"anon": False} if name == "azure" else {}
    if name == "gcs":
        options = {"token": "anon"}
    assert RemoteStore(remote_dir.url, options, timeout=20.0).read("a") == DATA


# The proxy logs only HTTP requests, so not those of SFTP.
@pytest.mark.parametrize("name", [name for name in SERVER_KINDS if name != "sftp"])
def test_a_store_makes_one_request_for_each_range(servers: Servers, name: str):
    remote_dir = servers[name].new_directory()
    remote_dir.put("a", DATA)
    proxy = servers.proxy(name)
    through = remote_dir.with_proxy(proxy)
    store = RemoteStore(through.url, through.storage_options, timeout=20.0)
    store.ranges([("a", 10, 5), ("a", 50_000, 50_000)])
    seen = sorted((entry.range, entry.method, entry.nbytes) for entry in proxy.log)
    assert seen == [("bytes=10-14", "GET", 5), ("bytes=50000-99999", "GET", 50_000)]


def test_the_proxy_injects_faults_and_logs_requests(servers: Servers):
    remote_dir = servers["http"].new_directory()
    remote_dir.put("a", DATA)
    proxy = servers.proxy("http")
    url = f"{remote_dir.with_proxy(proxy).url}/a"
    path = url[url.index("/plain") :]

    def get(first: int, last: int) -> bytes:
        request = urllib.request.Request(url, headers={"Range": f"bytes={first}-{last}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    proxy.faults = [status(404, path="elsewhere"), flip(1, times=1)]
    assert get(0, 2) == bytes([DATA[0], DATA[1] ^ 1, DATA[2]])
    assert get(0, 2) == DATA[:3]
    # The response is the whole object, with zeros outside of the range.
    proxy.faults = [ignore_range(method="GET")]
    assert get(1, 2) == bytes(1) + DATA[1:3] + bytes(len(DATA) - 3)
    proxy.latency = 0.05
    start = time.monotonic()
    assert get(1, 2) == DATA[1:3]
    assert time.monotonic() - start >= 0.05
    assert proxy.log == [
        Request("GET", path, "bytes=0-2", 206, 3),
        Request("GET", path, "bytes=0-2", 206, 3),
        Request("GET", path, "bytes=1-2", 200, len(DATA)),
        Request("GET", path, "bytes=1-2", 206, 2),
    ]
    assert servers.proxy("http").log == []  # each call clears the log
