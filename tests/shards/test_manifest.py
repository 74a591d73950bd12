"""Opening a remote dataset: the requests that it sends, and processes that open it together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from servers import ENGINE_KINDS, choose_engine

import npstream
from npstream.shards import manifest

FILES = ["columns.json", "index.json", "index.msgpack"]


@pytest.fixture(params=["s3", *ENGINE_KINDS])
def kind(request, monkeypatch):
    """Return a kind of server, and let npstream read from it with this kind's engine."""
    choose_engine(request.param, monkeypatch)
    return request.param


@pytest.fixture
def remote_dir(kind, servers, tmp_path):
    """Return a directory on a server that holds a dataset."""
    npstream.write(tmp_path / "data", {"x": np.arange(1000)})
    remote_dir = servers[kind].new_directory()
    for file in (tmp_path / "data").rglob("*"):
        if file.is_file():
            remote_dir.put(str(file.relative_to(tmp_path / "data")), file.read_bytes())
    return remote_dir


def methods_and_names(log):
    """Return the method and the last part of the path of each request."""
    paths = (
        request.path.partition("?")[0].replace("%2F", "/").replace("%2E", ".") for request in log
    )
    return [
        (request.method, path.rpartition("/")[2]) for request, path in zip(log, paths, strict=True)
    ]


def test_a_small_dataset_is_opened_with_few_requests(kind, servers, remote_dir, tmp_path):
    proxy = servers.proxy(kind)
    remote_dir = remote_dir.with_proxy(proxy)
    for is_cached in (False, True):
        proxy.clear()
        ds = npstream.open(
            remote_dir.url, storage_options=remote_dir.storage_options, cache=tmp_path / "cache"
        )
        requests = methods_and_names(proxy.log)
        assert ds[7] == {"x": 7}
        names = [name for _, name in requests if name in FILES]
        index_methods = [method for method, name in requests if name == "index.json"]
        if is_cached:  # the cache has the text, so only the version is requested
            assert index_methods == ["HEAD"]
        else:
            assert index_methods == (["HEAD", "GET"] if kind == "s3" else ["GET"])
        if kind != "s3":
            assert len(names) == len(set(names))


def test_a_larger_index_takes_a_second_request(kind, servers, remote_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "SMALL_FILE", 100)
    proxy = servers.proxy(kind)
    remote_dir = remote_dir.with_proxy(proxy)
    ds = npstream.open(
        remote_dir.url, storage_options=remote_dir.storage_options, cache=tmp_path / "cache"
    )
    requests = methods_and_names(proxy.log)
    index_methods = [method for method, name in requests if name == "index.json"]
    assert index_methods == (["HEAD", "GET"] if kind == "s3" else ["GET", "GET"])
    assert ds["x"].load().tolist() == list(range(1000))


def test_an_empty_file_is_no_index(kind, remote_dir, tmp_path):
    remote_dir.put("index.json", b"")
    with pytest.raises(npstream.errors.FormatError, match=r"index\.json"):
        npstream.open(
            remote_dir.url, storage_options=remote_dir.storage_options, cache=tmp_path / "cache"
        )


OPEN_TOGETHER = """
import json, os, sys
settings = json.load(sys.stdin)
import npstream
read_end, write_end = os.pipe()
children = []
for _ in range(settings["processes"]):
    if (child := os.fork()) == 0:
        os.close(write_end)
        os.read(read_end, 1)  # waits until the parent has forked all children
        ds = npstream.open(
            settings["url"], storage_options=settings["options"], cache=settings["cache"]
        )
        os._exit(len(ds) != 1000)
    children.append(child)
os.close(write_end)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.parametrize("kind", ["s3", ENGINE_KINDS[0]], indirect=True)
def test_processes_that_open_one_cold_cache_fetch_the_index_once(
    kind, servers, remote_dir, tmp_path
):
    proxy = servers.proxy(kind)
    remote_dir = remote_dir.with_proxy(proxy)
    settings = {
        "url": remote_dir.url,
        "options": remote_dir.storage_options,
        "cache": str(tmp_path / "cache"),
        "processes": 64 if kind == ENGINE_KINDS[0] else 8,  # s3fs takes a second for each
    }
    subprocess.run(
        [sys.executable, "-c", OPEN_TOGETHER],
        input=json.dumps(settings),
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    counts = Counter(methods_and_names(proxy.log))
    assert counts["GET", "index.json"] == 1
    assert counts["GET", "index.msgpack"] == 1
