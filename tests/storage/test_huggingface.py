"""Datasets on Hugging Face's Hub: revisions, tokens, and the requests of each read."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import FOR_EVER, status
from servers import Hub, RemoteDirectory, Servers

import npstream
from npstream.errors import StorageError
from npstream.storage import requests
from npstream.storage.remote import RemoteStore

DATA = bytes(range(256)) * 40


@pytest.fixture
def hub(servers: Servers) -> Hub:
    return servers["hf"]


@pytest.fixture
def remote_dir(hub: Hub) -> RemoteDirectory:
    return hub.new_directory()


def store_at(remote_dir: RemoteDirectory, **settings) -> RemoteStore:
    return RemoteStore(remote_dir.url, remote_dir.storage_options, **settings)


def read_error(read) -> StorageError:
    with pytest.raises(StorageError, match="after 1 attempt in") as caught:
        read()
    return caught.value


def test_shards_come_from_the_cdn_and_the_token_is_not_sent_there(
    servers: Servers, remote_dir: RemoteDirectory
):
    remote_dir.put("shard.mds", DATA)
    proxy = servers.proxy("hf")
    # The CDN would reject the token.
    assert store_at(remote_dir.with_proxy(proxy)).ranges([("shard.mds", 700, 9)]) == [DATA[700:709]]
    log = [(request.method, request.range, request.status) for request in proxy.log]
    assert log == [("GET", "bytes=700-708", 302), ("GET", "bytes=700-708", 206)]
    assert proxy.log[0].path.endswith("/resolve/main/" + remote_dir.path + "/shard.mds")
    assert proxy.log[1].path.startswith("/cdn/")


def test_the_client_log_contains_no_signatures(
    servers: Servers, remote_dir: RemoteDirectory, caplog
):
    remote_dir.put("shard.mds", DATA)
    proxy = servers.proxy("hf")
    with caplog.at_level(logging.INFO):
        store_at(remote_dir.with_proxy(proxy)).ranges([("shard.mds", 700, 9)])
    assert "?" in proxy.log[1].path
    assert "/cdn/" in caplog.text
    assert "?" not in caplog.text


def test_a_redirect_within_the_hub_keeps_the_token(servers: Servers, remote_dir: RemoteDirectory):
    remote_dir.put("index.json", b"{}")
    proxy = servers.proxy("hf")
    assert store_at(remote_dir.with_proxy(proxy)).read("index.json", 2) == b"{}"
    assert [request.status for request in proxy.log] == [307, 206]


@pytest.mark.parametrize(
    ("branch", "revision"),
    [("other", "other"), ("v1.0", "v1.0"), ("refs/pr/1", "refs/pr/1"), ("a/b", "a%2Fb")],
)
def test_a_revision_in_the_url_is_read(hub: Hub, branch: str, revision: str):
    root = f"npstream/data/{branch.replace('/', '%2F')}"
    hub.put("old/file ä+%.bin", DATA, root)
    remote_dir = hub.directory_at("old", root=f"datasets/npstream/data@{revision}")
    store = store_at(remote_dir)
    assert store.ranges([("file ä+%.bin", 3, 5)]) == [DATA[3:8]]
    assert list(store.names()) == [("file ä+%.bin", len(DATA))]
    assert store.size("file ä+%.bin") == len(DATA)
    version = store.version("file ä+%.bin")
    hub.put("old/file ä+%.bin", DATA[1:], root)
    assert store.version("file ä+%.bin") != version
    assert store.read("file ä+%.bin") == DATA[1:]
    # The default branch does not contain the file.
    assert not store_at(hub.directory_at("old")).exists("file ä+%.bin")


def test_a_dataset_at_a_revision_opens(hub: Hub, tmp_path: Path):
    values = np.arange(3000).reshape(-1, 10)
    npstream.write(tmp_path / "data", {"value": values}, shard_size="8KiB")
    for file in (tmp_path / "data").rglob("*.*"):
        name = file.relative_to(tmp_path / "data")
        hub.put(f"train/{name}", file.read_bytes(), "npstream/data/v2")
    remote_dir = hub.directory_at("", root="datasets/npstream/data@v2")
    options = {"storage_options": remote_dir.storage_options, "cache": tmp_path / "cache"}
    with npstream.open(remote_dir.url, split="train", **options) as ds:
        np.testing.assert_array_equal(ds["value"].load(), values)
        loader = ds.iter(0, 1, batch_size=100, shuffle=True)
        assert sum(len(batch["value"]) for batch in loader) == 300
        text = repr(ds) + json.dumps(loader.state_dict())
    assert "hf_writer" not in text


def test_missing_repositories_and_files_raise_enoent(hub: Hub, remote_dir: RemoteDirectory):
    for root in ("datasets/npstream/none", "datasets/npstream/data@none", "buckets/npstream/none"):
        missing = store_at(hub.directory_at("folder", root=root))
        assert read_error(lambda store=missing: store.read("x")).errno == errno.ENOENT
        assert not missing.exists("x")
        assert list(missing.names()) == []
    remote_dir.put("folder/x", DATA)
    store = store_at(remote_dir)
    assert read_error(lambda: store.version("y")).errno == errno.ENOENT
    assert list(store.names("none/")) == []
    assert not store.exists("folder")


def test_tokens_grant_access_and_are_not_shown(
    hub: Hub, remote_dir: RemoteDirectory, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    remote_dir.put("x", DATA)
    endpoint = remote_dir.storage_options["endpoint"]

    def store(token, url=remote_dir.url):
        return RemoteStore(url, {"endpoint": endpoint, "token": token})

    assert store("hf_reader").read("x") == DATA
    anonymous_error = read_error(lambda: store(False).read("x"))
    errors = [
        (errno.EACCES, read_error(lambda: store("hf_wrong-token").read("x"))),
        (errno.ENOENT, anonymous_error),  # the Hub hides private repositories
        (errno.EACCES, read_error(lambda: store("hf_reader").put("y", DATA))),
        (errno.EACCES, read_error(lambda: store("hf_reader").remove("x"))),
        (errno.EACCES, read_error(lambda: store("hf_reader", "hf://datasets/npstream/gated").read("x"))),
    ]  # fmt: skip
    for code, error in errors:
        assert error.errno == code, error
        assert "hf_" not in str(error)
    assert "authenticated" in str(anonymous_error)
    for token in ("hf_reader", "hf_wrong-token"):
        assert token not in repr(store(token))
        assert token not in caplog.text


def test_a_renewed_login_is_used_after_a_401(
    servers: Servers, remote_dir: RemoteDirectory, monkeypatch: pytest.MonkeyPatch
):
    remote_dir.put("x", DATA)
    proxy = servers.proxy("hf")
    endpoint = remote_dir.with_proxy(proxy).storage_options["endpoint"]
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    store = RemoteStore(remote_dir.url, {"endpoint": endpoint})
    assert store.read("x") == DATA
    store._connect()._filesystems[0].credentials = {"authorization": "Bearer hf_expired"}
    proxy.clear()
    assert store.read("x", len(DATA)) == DATA
    assert [request.status for request in proxy.log] == [401, 206]
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    store._connect()._filesystems[0].credentials = {}
    assert read_error(lambda: store.read("x")).errno == errno.EACCES


def test_endpoint_and_token_come_from_the_environment(remote_dir: RemoteDirectory):
    remote_dir.put("x", DATA)
    code = (
        "from npstream.storage.local import open_store; "
        f"print(len(open_store({remote_dir.url!r}).read('x')))"
    )
    environment = {**os.environ, **remote_dir.env, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment)
    assert int(output) == len(DATA)


def test_listings_follow_all_pages(servers: Servers, remote_dir: RemoteDirectory):
    names = [f"part-{i % 3}/{i:03}" for i in range(250)]
    for name in names:
        remote_dir.put(name, name.encode())
    proxy = servers.proxy("hf")
    store = store_at(remote_dir.with_proxy(proxy))
    assert list(store.names()) == [(name, len(name)) for name in sorted(names)]
    assert len(proxy.log) == 3  # a page of the fake Hub has 100 entries
    assert len(list(store.names("part-1/1"))) == len([n for n in names if n.startswith("part-1/1")])


def test_huggingface_hub_does_not_retry(
    servers: Servers, remote_dir: RemoteDirectory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(requests, "_BACKOFF", 0.01)
    proxy = servers.proxy("hf")
    store = store_at(remote_dir.with_proxy(proxy), retries=2)
    for code in (429, 503):
        for call in (
            lambda: store.read("x"),
            lambda: store.ranges([("x", 0, 1)]),
            lambda: store.version("x"),
            lambda: list(store.names()),
        ):
            proxy.clear()
            proxy.faults = [status(code, times=FOR_EVER)]
            with pytest.raises(StorageError, match="after 3 attempts"):
                call()
            assert [request.status for request in proxy.log] == [code] * 3


def test_a_local_file_is_committed(remote_dir: RemoteDirectory, tmp_path: Path):
    (tmp_path / "x").write_bytes(DATA)
    store = store_at(remote_dir)
    store.put("part/x", tmp_path / "x")
    assert store.read("part/x") == DATA


def test_a_bucket_is_read(servers: Servers, hub: Hub):
    hub.put("corpus/part/x", DATA, "npstream/bucket/main")
    proxy = servers.proxy("hf")
    remote_dir = hub.directory_at("corpus", proxy.port, root="buckets/npstream/bucket")
    store = store_at(remote_dir)
    assert store.ranges([("part/x", 3, 5)]) == [DATA[3:8]]
    assert len(proxy.log) == 1
    assert store.size("part/x") == len(DATA)
    assert list(store.names()) == [("part/x", len(DATA))]
    version = store.version("part/x")
    hub.put("corpus/part/x", DATA[1:], "npstream/bucket/main")
    assert store.version("part/x") != version
    assert not store.exists("part")
