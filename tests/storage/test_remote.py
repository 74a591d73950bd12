"""Remote stores: basic operations on every server, errors, pickles, forks and threads."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import subprocess
import sys
import threading
from urllib.parse import quote

import fsspec
import fsspec.asyn
import numpy as np
import pytest
from children import run_in_child
from fake_drivers import DATA
from servers import ENGINE_KINDS, choose_engine

import npstream
from npstream.errors import StorageError
from npstream.storage import remote
from npstream.storage.connection import max_requests
from npstream.storage.local import open_store
from npstream.storage.remote import RemoteStore
from npstream.storage.urls import join_url


def check_operations(store):
    """Call the basic operations of a store, and check the results."""
    name = "part/file 1+ä%.bin"
    assert not store.exists(name)
    assert list(store.names()) == []
    store.put(name, DATA)
    store.put("other", b"abc")
    assert store.exists(name)
    assert store.size(name) == len(DATA)
    assert store.read(name) == store.read(name, len(DATA)) == DATA
    spans = [(name, 5000, 300), ("other", 1, 1), (name, 0, 0), (name, 0, 1), (name, 5000, 300)]
    expected = [DATA[5000:5300], b"b", b"", DATA[:1], DATA[5000:5300]]
    assert store.ranges(spans) == expected
    assert dict(store.stream(spans)) == dict(enumerate(expected))
    assert store.ranges([]) == []
    assert list(store.names()) == [("other", 3), (name, len(DATA))]
    assert list(store.names("part/")) == list(store.names("part/fi")) == [(name, len(DATA))]
    version = store.version("other")
    assert store.version("other") == version
    store.put("other", b"longer")
    assert store.version("other") != version
    store.remove("other")
    store.remove("other")
    assert not store.exists("other")
    assert store.exist_many(["other", name, "part/none", name]) == [False, True, False, True]
    store.create("part/new", DATA)
    for other in (DATA, b"", b"other"):
        with pytest.raises(FileExistsError, match="cannot create this file") as caught:
            store.create("part/new", other)
        assert isinstance(caught.value, StorageError)
    assert store.read("part/new") == DATA
    assert store.exist_many([]) == []
    with pytest.raises(StorageError, match="cannot read this file") as caught:
        store.read("other")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == store.where("other")
    assert store.is_local is False


def test_basic_operations_of_a_memory_store(memory):
    check_operations(memory)


def test_basic_operations_of_a_file_store(tmp_path):
    check_operations(RemoteStore(f"file://{tmp_path}/new"))
    assert not [name for name in os.listdir(tmp_path / "new") if name.endswith(".tmp")]


def test_basic_operations_on_each_server(writable):
    check_operations(RemoteStore(writable.url, writable.storage_options))


def test_absent_files_raise_file_not_found_error(remote_dir, tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(3)})
    options = remote_dir.storage_options
    for read in (npstream.open, npstream.verify_dataset, npstream.build_index):
        with pytest.raises(StorageError) as caught:
            read(remote_dir.url, storage_options=options)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == f"{remote_dir.url}/index.json"
    remote_dir.put("index.json", (tmp_path / "data" / "index.json").read_bytes())
    with pytest.raises(FileNotFoundError) as caught:
        npstream.open(remote_dir.url, storage_options=options)[0]
    assert caught.value.filename.endswith("/shard.00000.mds")
    with pytest.raises(FileNotFoundError, match="was not kept"):
        npstream.open(remote_dir.url, storage_options=options, version="0123456789abcdef")


@pytest.mark.parametrize("remote_dir", ["s3", "azure", "oci", "sftp", "hf"], indirect=True)
def test_rejected_credentials_raise_permission_error(remote_dir):
    with pytest.raises(PermissionError) as caught:
        npstream.open(remote_dir.url, storage_options=remote_dir.rejected_options)
    assert isinstance(caught.value, StorageError)


SPECIAL = [
    "#", "a?b#c", "a#b?c=1&d", "a?versionId=1", "a?versionid=1", "a%20%b", "ä日本 *[b]{c}+~",
    "a@b:c;d=e,'\"|^$HOME!...",
]  # fmt: skip

SPECIAL_FILE = "#?%20+&[*] ä.bin"


def test_special_characters_in_a_path(writable):
    remote_dir, options = writable, writable.storage_options
    # Only Google keeps these two as they are.
    names = [*SPECIAL, *(["a//b", "a\\b"] if remote_dir.server.name == "gcs" else [])]
    for number, name in enumerate(names):
        RemoteStore(f"{remote_dir.url}/{name}/ds", options).put(SPECIAL_FILE, DATA[: number + 1])
    parent_store = RemoteStore(remote_dir.url, options)
    assert dict(parent_store.names()) == {
        f"{name}/ds/{SPECIAL_FILE}": k for k, name in enumerate(names, 1)
    }
    for size, name in enumerate(names, 1):
        store = RemoteStore(f"{remote_dir.url}/{name}/ds/", options)
        assert store.exist_many([SPECIAL_FILE, f"{SPECIAL_FILE}#"]) == [True, False]
        assert store.ranges([(SPECIAL_FILE, size - 1, 1)]) == [DATA[size - 1 : size]]
        assert store.read(SPECIAL_FILE) == DATA[:size]
        assert list(store.names()) == [(SPECIAL_FILE, size)]
    store.remove(SPECIAL_FILE)  # in the directory of the last name
    assert len(list(parent_store.names())) == len(names) - 1


def test_special_characters_in_a_web_address(servers):
    remote_dir = servers["http"].new_directory()
    for size, name in enumerate(SPECIAL, 1):
        remote_dir.put(f"{name}/ds/{SPECIAL_FILE}", DATA[:size])
        store = RemoteStore(f"{remote_dir.url}/{quote(name)}/ds/", remote_dir.storage_options)
        assert store.exist_many([SPECIAL_FILE, f"{SPECIAL_FILE}#"]) == [True, False]
        assert store.read(SPECIAL_FILE) == DATA[:size]
        assert list(store.names()) == [(SPECIAL_FILE, size)]
    with pytest.raises(ValueError, match=r"'https://host/a': .*fragment.*write %23"):
        open_store("https://host/a#b?sig=secret")


def test_a_dataset_at_a_url_with_special_characters(tmp_path):
    url = "memory://odd/a#b?c=1%20[*]&ä+/x y"
    npstream.write(url, {"# a?": np.arange(50)})
    ds = npstream.open(url, cache=tmp_path)
    assert ds["# a?"].max() == 49
    assert ds[7] == {"# a?": 7}
    assert npstream.verify_dataset(url).problems == ()
    fsspec.filesystem("memory").store.clear()


def test_writing_to_a_web_server_raises(servers):
    remote_dir = servers["http"].new_directory()
    remote_dir.put("part/a b", DATA)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    assert store.ranges([("part/a b", 3, 5)]) == [DATA[3:8]]
    assert store.read("part/a b") == DATA
    assert list(store.names()) == [("part/a b", len(DATA))]
    for write in (lambda: store.put("x", b"y"), lambda: store.remove("part/a b")):
        with pytest.raises(StorageError):
            write()


@pytest.mark.parametrize("name", ["s3", "gcs", "azure", "oci", "http", "hf", *ENGINE_KINDS])
def test_each_range_takes_one_request(servers, name, monkeypatch):
    choose_engine(name, monkeypatch)
    proxy = servers.proxy(name)
    remote_dir = servers[name].new_directory().with_proxy(proxy)
    remote_dir.put("file", DATA)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options, hedge=False)
    store.ranges([("file", 0, 1)])
    proxy.clear()
    spans = [("file", 100 * i, 50) for i in range(100)]
    assert store.ranges(spans) == [DATA[begin : begin + 50] for _, begin, _ in spans]
    log = proxy.log
    assert sorted(r.range for r in log) == sorted(f"bytes={b}-{b + 49}" for _, b, _ in spans)
    assert sum(r.nbytes for r in log) == 100 * 50


def test_put_stores_a_local_file(memory, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    memory.put("x", tmp_path / "x")
    assert memory.read("x") == DATA
    with pytest.raises(StorageError, match=r"No such file.*none"):
        memory.put("y", tmp_path / "none")


@pytest.mark.parametrize("name", ["s3", "hf", *ENGINE_KINDS])
def test_a_store_works_in_forked_processes_and_threads(servers, name, monkeypatch):
    choose_engine(name, monkeypatch)
    remote_dir = servers[name].new_directory()
    remote_dir.put("file", DATA)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    spans = [("file", i, 10) for i in range(30)]
    expected = [DATA[i : i + 10] for i in range(30)]
    assert store.ranges(spans) == expected
    stream = store.stream(spans)
    next(stream)

    def read_in_child():
        stream.close()
        assert store.ranges(spans) == expected

    run_in_child(read_in_child)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(store.ranges(spans))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8
    assert len(list(stream)) == 29


def test_a_pickled_store_contains_only_its_arguments(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    store = RemoteStore(f"file://{tmp_path}", {"auto_mkdir": False}, timeout=7.0, retries=2)
    assert store.read("x") == DATA
    pickled = pickle.dumps(store)
    assert len(pickled) < 300
    copy = pickle.loads(pickled)
    assert (copy.timeout, copy.retries, copy.root) == (7.0, 2, store.root)
    code = f"import pickle; print(len(pickle.loads({pickled!r}).read('x')))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment)
    assert int(output) == len(DATA)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_an_invalid_number_of_requests_raises(monkeypatch, text):
    monkeypatch.setenv("NPSTREAM_THREADS", text)
    with pytest.raises(ValueError, match=f"NPSTREAM_THREADS='{text}': expected a number"):
        max_requests()


@pytest.mark.parametrize(("timeout", "retries"), [(0, 1), (-1, 1), (float("nan"), 1), (1, -1)])
def test_invalid_timeouts_and_retries_raise(timeout, retries):
    with pytest.raises(ValueError, match="expected"):
        RemoteStore("memory://x", timeout=timeout, retries=retries)


@pytest.mark.parametrize(
    ("info", "size"),
    [
        ({"size": 3}, 3),
        ({"size": np.int64(3)}, 3),
        ({"size": None}, remote.UNKNOWN_SIZE),
        ({}, remote.UNKNOWN_SIZE),
        ({"size": "3"}, 3),
        ({"size": "x"}, remote.UNKNOWN_SIZE),
        ({"size": -7}, remote.UNKNOWN_SIZE),
        ({"size": 2.5}, remote.UNKNOWN_SIZE),
        ({"size": 0, "type": "directory"}, None),
    ],
)
def test_sizes_from_drivers_are_normalized(fake, info, size, monkeypatch):
    async def get_info(self, path, **kwargs):
        return info

    monkeypatch.setattr(fake, "_info", get_info)
    store = RemoteStore("fake://x")
    assert store.sizes(["a"]) == [size]
    if size == 3:
        assert store.size("a") == 3
    else:
        with pytest.raises(StorageError, match=r"does not say its size|a directory"):
            store.size("a")


def test_a_folder_shares_the_connection(remote_dir):
    """A folder is a store of its own, but uses its parent's client, even after unpickling."""
    remote_dir.put("a/c/file", b"0123456789")
    remote_dir.put("file", b"other")
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    folder = store.folder("a/c")
    separate_store = RemoteStore(join_url(remote_dir.url, "a/c"), remote_dir.storage_options)
    assert (folder.root, folder.identity) == (separate_store.root, separate_store.identity)
    assert folder.read("file") == separate_store.read("file") == b"0123456789"
    assert folder.ranges([("file", 2, 3)]) == [b"234"]
    assert store.read("file") == b"other"
    if store.can_list:
        assert dict(folder.names()) == {"file": 10}
    folder_connection, parent_connection = folder._connect(), store._connect()
    assert folder_connection._filesystems is parent_connection._filesystems
    assert folder_connection.slots is parent_connection.slots
    parent, child = pickle.loads(pickle.dumps((store, folder)))
    assert child.read("file") == b"0123456789"
    assert child._connect()._filesystems is parent._connect()._filesystems
    del store, parent_connection, folder_connection
    gc.collect()
    assert folder.read("file") == b"0123456789"
