"""Writing of datasets to remote stores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import npstream
from npstream.errors import StorageError
from npstream.storage import drivers, requests
from npstream.storage.remote import RemoteStore
from npstream.writing import shard


def table(n=1000):
    return {"id": np.arange(n), "text": [str(i) * 20 for i in range(n)]}


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_dataset_is_written_to_a_url(memory, compression):
    report = npstream.write(memory.root, table(), shard_size="8KiB", compression=compression)
    assert report.path == memory.root
    assert report.shards > 5
    names = [name for name, _ in memory.names()]
    assert "index.json" in names
    assert len([name for name in names if name.startswith("shard.")]) == report.shards
    with pytest.raises(FileExistsError, match=r"a dataset, or a part of one, is here.*another URL"):
        npstream.Writer(memory.root)


def test_a_dataset_is_written_to_each_server(writable):
    remote_dir, options = writable, writable.storage_options
    report = npstream.write(remote_dir.url, table(), shard_size="16KiB", storage_options=options)
    store = RemoteStore(remote_dir.url, options)
    sizes = dict(store.names())
    assert sum(n for name, n in sizes.items() if name.startswith("shard.")) == report.stored_bytes
    assert sizes["index.json"] > 0
    with pytest.raises(FileExistsError):
        npstream.write(remote_dir.url, table(), storage_options=options)


def test_columns_written_in_several_pieces(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "_PIECE_BYTES", 1 << 10)
    columns = {"x": np.arange(4000).reshape(-1, 4), "id": np.arange(1000)}
    for url in (memory.root, tmp_path):
        npstream.write(url, columns)
    for path in tmp_path.glob("*.mds"):
        assert memory.read(path.name) == path.read_bytes()
    assert npstream.verify_dataset(memory.root).problems == ()


def test_a_split_of_a_url_with_a_query_opens(servers, tmp_path):
    remote_dir = servers["http"].new_directory()
    npstream.write(tmp_path / "data", table())
    for path in (tmp_path / "data").iterdir():
        if path.is_file():
            remote_dir.put(f"train/{path.name}", path.read_bytes())
    ds = npstream.open(f"{remote_dir.url}/?sig=secret/", split="train", cache=tmp_path / "cache")
    assert len(ds) == len(npstream.open(tmp_path / "data"))
    assert ds[7]["id"] == 7
    assert "secret" not in repr(ds)


def test_an_exception_while_writing_leaves_no_files(memory):
    names = []

    def samples():
        for i in range(1000):
            yield {"id": i, "text": "x" * 100}
        names.extend(memory.names("shard."))
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        npstream.write(memory.root, samples(), shard_size="8KiB")
    assert len(names) > 3
    assert list(memory.names()) == []


def test_a_failed_upload_leaves_no_files(memory, monkeypatch):
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    driver = drivers.SCHEMES["memory"]

    def fail(filesystem, path, data):
        if "00003" in path:
            raise ConnectionResetError("again")
        driver.create(filesystem, path, data)

    monkeypatch.setitem(drivers.SCHEMES, "memory", dataclasses.replace(driver, create=fail))
    with pytest.raises(
        StorageError, match=r"cannot create this file of [\d,]+ bytes, after 5 attempts"
    ):
        npstream.write(memory.root, table(), shard_size="16KiB")
    assert list(memory.names()) == []
