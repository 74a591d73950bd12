"""The side-car and its columns in the cache: read once, verified, and used without the store."""

from __future__ import annotations

import errno
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from dataset_files import write_jsonl

import npstream
from npstream.cache.cache import Refusal, ShardCache
from npstream.cache.ranges import CachedRanges
from npstream.errors import IntegrityError, StorageError
from npstream.formats.sidecar.blocks import HASH_BLOCK
from npstream.formats.sidecar.sidecar import NPY_HEADER_BYTES
from npstream.shards import manifest
from npstream.storage.remote import RemoteStore
from tests.storage.test_responses import serve_files

ROWS = 200_000
"""A column of int64 with this many rows has several blocks."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    labels = np.random.default_rng(0).integers(0, 9, ROWS)
    npstream.write(directory, {"label": labels, "x": np.arange(ROWS), "flag": labels > 4})
    return directory


def labels_of(data: Path) -> np.ndarray:
    return npstream.open(data)["label"].load()


def column_spans(requests) -> list[tuple[str, int, int]]:
    return [span for span in requests if span[0].startswith("index.columns/")]


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        f"/{path.relative_to(directory).as_posix()}": path.read_bytes()
        for path in directory.rglob("*.*")
        if path.is_file()
    }


def test_each_block_of_a_column_is_fetched_once(data, tmp_path, upload, requests):
    url, labels = upload(data), labels_of(data)
    ds = npstream.open(url, cache=tmp_path)
    requests.clear()
    assert ds["label"][:1000].explain().nbytes == NPY_HEADER_BYTES + HASH_BLOCK
    np.testing.assert_array_equal(ds["label"][:1000].load(), labels[:1000])
    assert column_spans(requests) == requests
    assert sum(span[2] for span in requests) == NPY_HEADER_BYTES + HASH_BLOCK
    assert ds["label"][1000:9000:3].explain().nbytes == 0
    nbytes = ds["label"].explain().nbytes
    np.testing.assert_array_equal(ds["label"].load(), labels)
    assert nbytes == 8 * ROWS - HASH_BLOCK
    assert sum(span[2] for span in requests) == NPY_HEADER_BYTES + 8 * ROWS
    requests.clear()
    np.testing.assert_array_equal(ds["label"].load(), labels)
    with npstream.open(url, cache=tmp_path) as again:
        np.testing.assert_array_equal(again["label"].load(), labels)
        np.testing.assert_array_equal(
            again[again["label"] == 3]["label"].load(), labels[labels == 3]
        )
    assert not column_spans(requests)


def test_prefetched_columns_are_read_without_the_store(data, tmp_path, upload):
    url, labels = upload(data), labels_of(data)
    with npstream.open(url, cache=tmp_path) as ds:
        ds["flag"].prefetch()
        assert ds["flag"].explain().nbytes == 0
        ds[50:].prefetch()
        store = fsspec.filesystem("memory")
        root = url.removeprefix("memory:/")
        stored = {path: store.cat_file(path) for path in store.find(root)}
        store.rm(root, recursive=True)
        try:
            np.testing.assert_array_equal(ds["flag"].load(), labels > 4)
            np.testing.assert_array_equal(ds["label"][50:].load(), labels[50:])
            np.testing.assert_array_equal(ds["label"][60:70].load(), labels[60:70])
            assert ds[77] == {"label": labels[77], "x": 77, "flag": labels[77] > 4}
            selected = ds[50:][ds["label"][50:] == 3]
            np.testing.assert_array_equal(
                selected["x"].load(), 50 + np.flatnonzero(labels[50:] == 3)
            )
        finally:
            for path, body in stored.items():
                store.pipe_file(path, body)


@pytest.mark.parametrize("verify", ["auto", True, False])
def test_a_damaged_block_is_fetched_again(verify, data, tmp_path, upload, requests):
    url, labels = upload(data), labels_of(data)
    with npstream.open(url, cache=tmp_path, verify=verify) as ds:
        ds["label"].load()
        for path in tmp_path.glob("*.shard"):
            with open(path, "r+b") as file:
                file.seek(HASH_BLOCK + 5000)
                file.write(b"\xff" * 64)
        requests.clear()
        np.testing.assert_array_equal(ds["label"].load(), labels)
        assert 0 < sum(span[2] for span in column_spans(requests)) <= 8 * ROWS + NPY_HEADER_BYTES
        requests.clear()
        np.testing.assert_array_equal(ds["label"].load(), labels)
        assert not column_spans(requests)


def test_a_column_that_is_damaged_in_the_store_raises(data, tmp_path, upload):
    url = upload(data)
    store = fsspec.filesystem("memory")
    (name,) = (path for path in store.find(url.removeprefix("memory:/")) if "label" in path)
    body = store.cat_file(name)
    store.pipe_file(name, body[:-8] + bytes(8))
    with npstream.open(url, cache=tmp_path) as ds:
        assert ds["label"][:5].load().tolist() == labels_of(data)[:5].tolist()
        for _ in range(2):
            with pytest.raises(IntegrityError, match="label"):
                ds["label"].load()
        store.pipe_file(name, body)
        np.testing.assert_array_equal(ds["label"].load(), labels_of(data))
    store.pipe_file(name, body[:-8])
    with (
        npstream.open(url, cache=tmp_path / "other") as ds,
        pytest.raises(npstream.errors.FormatError, match=f"expected {ROWS:,} of int64"),
    ):
        ds["label"].load()


def test_a_column_that_the_cache_cannot_hold_is_read_from_the_store(
    data, tmp_path, upload, monkeypatch
):
    url, labels = upload(data), labels_of(data)
    with npstream.open(url, cache=tmp_path) as ds:
        ds["label"][:10].load()
        monkeypatch.setattr(ShardCache, "reserve", lambda *_, **options: Refusal.FULL)
        np.testing.assert_array_equal(ds["label"].load(), labels)
    with npstream.open(url, cache=tmp_path / "none") as ds:
        assert ds["label"].explain().nbytes == NPY_HEADER_BYTES + 8 * ROWS
        np.testing.assert_array_equal(ds["label"].load(), labels)


def test_threads_and_pickled_copies_fetch_a_column_once_each(data, tmp_path, upload, requests):
    ds = npstream.open(upload(data), cache=tmp_path)
    labels = labels_of(data)
    copies = [ds, pickle.loads(pickle.dumps(ds))]
    requests.clear()
    with ThreadPoolExecutor(8) as pool:
        columns = pool.map(lambda k: copies[k % 2]["label"].load(), range(16))
        assert all((values == labels).all() for values in columns)
    assert sum(span[2] for span in column_spans(requests)) <= 2 * (8 * ROWS + NPY_HEADER_BYTES)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES])
def test_a_column_file_without_permission_is_read_from_the_shards(
    code, data, tmp_path, upload, monkeypatch
):
    url, labels = upload(data), labels_of(data)
    size = RemoteStore.size

    def refused(self, name):
        if name.startswith("index.columns/"):
            raise StorageError(code, "it may not be read", name)
        return size(self, name)

    monkeypatch.setattr(RemoteStore, "size", refused)
    with npstream.open(url, cache=tmp_path) as ds:
        with pytest.warns(RuntimeWarning, match="'label' is read from the shards"):
            np.testing.assert_array_equal(ds["label"].load(), labels)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(ds["label"].load(), labels)


# Stores that cannot be reached


@pytest.mark.parametrize("kind", ["small", "large", "no side-car", "aside", "coarse"])
def test_a_cached_dataset_opens_without_its_store(kind, data, tmp_path, monkeypatch):
    files, labels, index = files_of(data), labels_of(data), None
    if kind == "large":
        monkeypatch.setattr(manifest, "LARGE_INDEX", 0)
        monkeypatch.setattr(manifest, "LARGE_SIDECAR", 0)
        monkeypatch.setattr("npstream.formats.sidecar.sidecar.END_BYTES", 64)
    if kind in ("no side-car", "aside"):
        files.pop("/index.msgpack")
    if kind == "aside":
        index = tmp_path / "aside"
        index.mkdir()
        shutil.copy(data / "index.msgpack", index)
        shutil.copytree(data / "index.columns", index / "index.columns")
    settings = {"cache": tmp_path / "cache", "retries": 0, "index": index}
    with serve_files(files) as (url, handler):
        if kind == "coarse":  # a version that another content may have, too
            handler.tag = 'W/"x"'
        with npstream.open(url, **settings) as ds:
            ds.prefetch()
            version = ds.version
    with pytest.warns(RuntimeWarning, match="the store cannot be reached") as caught:
        ds = npstream.open(url, **settings)
    assert [warning.filename for warning in caught] == [__file__]
    with ds:
        assert ds.version == version
        np.testing.assert_array_equal(ds["label"].load(), labels)
        assert ds[7] == {"label": labels[7], "x": 7, "flag": labels[7] > 4}
        assert ds.load()["x"].tolist() == list(range(ROWS))


def test_an_uncached_dataset_does_not_open_without_its_store(data, tmp_path):
    with serve_files(files_of(data)) as (url, _):
        npstream.open(url, cache=tmp_path / "a").close()
    with pytest.raises(StorageError) as caught:
        npstream.open(url, cache=tmp_path / "b", retries=0)
    assert caught.value.errno == errno.ECONNREFUSED
    with (
        serve_files({}) as (other, _),
        pytest.raises(FileNotFoundError),
    ):
        npstream.open(other, cache=tmp_path / "a")


def test_a_removed_dataset_does_not_open_from_the_cache(data, tmp_path):
    with serve_files(files_of(data)) as (url, handler):
        npstream.open(url, cache=tmp_path).close()
        handler.files = {}
        with pytest.raises(FileNotFoundError):
            npstream.open(url, cache=tmp_path)
    with pytest.raises(FileNotFoundError):
        npstream.open(url, cache=tmp_path, retries=0)


def test_a_side_car_that_is_built_later_is_used(tmp_path):
    rows = [{"id": i} for i in range(50)]
    write_jsonl(tmp_path / "data", rows, {"id": "int"})
    with serve_files(files_of(tmp_path / "data")) as (url, handler):
        with npstream.open(url, cache=tmp_path / "cache") as ds:
            assert ds["id"].explain().nbytes > 0
        npstream.build_index(tmp_path / "data")
        handler.files = files_of(tmp_path / "data")
        with npstream.open(url, cache=tmp_path / "cache", verify=True) as ds:
            ds.prefetch()
    with pytest.warns(RuntimeWarning, match="cannot be reached"):
        ds = npstream.open(url, cache=tmp_path / "cache", verify=True, retries=0)
    with ds:
        assert [row["id"] for row in ds] == list(range(50))


def test_byte_ranges_are_cached(tmp_path, monkeypatch):
    store = RemoteStore("memory://parts")
    body = np.random.default_rng(0).bytes(3 * HASH_BLOCK + 777)
    store.put("a", body)
    files = CachedRanges(store, ShardCache(tmp_path), "v", {"in memory": b"0123"})
    # The pieces of a file are a header of `NPY_HEADER_BYTES` and blocks of `HASH_BLOCK`.
    spans = [
        ("a", 0, 10),
        ("a", 100, 100),
        ("a", NPY_HEADER_BYTES + HASH_BLOCK - 1, 2),
        ("in memory", 1, 2),
    ]
    spans += [("a", len(body) - 5, 5), ("a", 0, len(body)), ("a", 7, 0)]
    expected = [body[at : at + n] if name == "a" else b"12" for name, at, n in spans]
    assert [files.ranges([span])[0] for span in spans] == expected
    assert files.ranges(spans) == expected
    assert files.request_bytes(spans) == []
    again = CachedRanges(store, ShardCache(tmp_path), "v", {"in memory": b"0123"})
    assert again.request_bytes(spans) == []
    files.discard([("a", 5, 1), ("in memory", 0, 1)])
    assert files.request_bytes([("a", 0, 10)]) == [NPY_HEADER_BYTES]
    store.remove("a")
    with pytest.raises(FileNotFoundError):
        files.ranges([("a", 0, 10)])
    assert files.ranges([("a", NPY_HEADER_BYTES, 10)]) == [
        body[NPY_HEADER_BYTES : NPY_HEADER_BYTES + 10]
    ]
    npstream.cache.clear(tmp_path)
    monkeypatch.setattr(RemoteStore, "size", None)  # a request for the size would raise
    again = CachedRanges(store, ShardCache(tmp_path), "v", {"in memory": b"0123"})
    assert again.request_bytes([("a", 0, 10), ("in memory", 0, 1)]) == [10]
