"""Tests of replaced datasets: errors report the replacement, and no read mixes two versions."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from servers import Servers

import npstream
from npstream.errors import DAMAGED, FormatError, IntegrityError, NpstreamError, StorageError
from npstream.storage.remote import RemoteStore
from npstream.storage.versions import Version, version_of

N = 2000
HANG = 120
"""Seconds after which a process is regarded as hanging."""

REPLACED = "the dataset was replaced since it was opened: open it anew"


def write(directory: Path, first: int = 0, n: int = N, **settings: Any) -> np.ndarray:
    values = np.arange(first, first + 16 * n).reshape(n, 16)
    settings = {"hashes": ["xxh64"], "shard_size": "64KiB", **settings}
    npstream.write(directory, {"value": values, "id": np.arange(n) + first}, **settings)
    return values


class PublishedDataset:
    """A dataset at one path or URL, which can be replaced."""

    def __init__(self, tmp_path: Path, kind: str) -> None:
        self.tmp_path = tmp_path
        self.kind = kind
        self.number = 0
        self.url = str(tmp_path / "here") if kind == "local" else "memory://snapshot/here"

    def put(self, sidecar: bool = True, **settings: Any) -> np.ndarray:
        """Publish a dataset, in place of the last one."""
        self.number += 1
        source = self.tmp_path / f"source-{self.number}"
        values = write(source, **settings)
        if not sidecar:
            shutil.rmtree(source / "index.columns", ignore_errors=True)
            (source / "index.msgpack").unlink()
        self.remove()
        if self.kind == "local":
            shutil.copytree(source, self.url)
        else:
            fsspec.filesystem("memory").put(f"{source}/", "/snapshot/here/", recursive=True)
        return values

    def remove(self) -> None:
        if self.kind == "local":
            shutil.rmtree(self.url, ignore_errors=True)
        elif fsspec.filesystem("memory").exists("/snapshot"):
            fsspec.filesystem("memory").rm("/snapshot", recursive=True)

    def change(self, change: Callable[[bytes], bytes], pattern: str = "*.mds") -> None:
        """Change the content of files."""
        if self.kind == "local":
            for path in Path(self.url).glob(pattern):
                path.write_bytes(change(path.read_bytes()))
            return
        files = fsspec.filesystem("memory")
        for name in files.glob(f"/snapshot/here/{pattern}"):
            files.pipe_file(name, change(files.cat_file(name)))

    def open(self, **settings: Any) -> npstream.Dataset:
        return npstream.open(self.url, cache=self.tmp_path / "cache", **settings)


@pytest.fixture(params=["local", "memory"])
def published(request: pytest.FixtureRequest, tmp_path: Path):
    dataset = PublishedDataset(tmp_path, request.param)
    yield dataset
    dataset.remove()


def error_of(read: Callable[[], object]) -> NpstreamError:
    with pytest.raises((IntegrityError, FormatError, StorageError)) as caught:
        read()
    return caught.value


READS: dict[str, Callable[[npstream.Dataset], object]] = {
    "load": lambda ds: ds["value"].load(),
    "sample": lambda ds: ds[N - 3],
    "few": lambda ds: ds[::700].load(),
    "batches": lambda ds: list(ds.iter(0, 1, batch_size=100)),
    "shuffled": lambda ds: list(ds.iter(0, 1, batch_size=100, shuffle=True)),
    "prefetch": lambda ds: ds.prefetch(),
}


LOCAL = [("local", read) for read in READS if read != "prefetch"]  # prefetch fetches nothing
CASES = [*LOCAL, *(("memory", read) for read in READS)]


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize(("published", "read"), CASES, indirect=["published"])
@pytest.mark.parametrize("verify", ["auto", True])
def test_a_smaller_dataset_at_the_same_path_is_reported(
    published: PublishedDataset, read: str, sidecar: bool, verify: Any
):
    published.put(sidecar=sidecar)
    with published.open(verify=verify) as ds:
        assert ds[5]["id"] == 5
        # The file names are the same, but no shard has the same size.
        published.put(first=1, n=N // 2 + 1, shard_size="40KiB", sidecar=sidecar)
        error = error_of(lambda: READS[read](ds))
    assert REPLACED in str(error)
    assert DAMAGED not in str(error)
    assert re.search(r"shard\.\d+\.mds|index\.columns", str(error))
    assert error.__context__ is None or error.__suppress_context__
    with published.open() as ds:
        assert ds[0]["id"] == 1


def test_another_dataset_of_the_same_size_is_reported(published: PublishedDataset):
    published.put()
    with published.open(verify=True) as ds:
        assert ds[0]["id"] == 0
        published.put(first=7)
        error = error_of(lambda: ds["value"].load())
    assert isinstance(error, IntegrityError)
    assert REPLACED in str(error)
    assert DAMAGED not in str(error)


@pytest.mark.parametrize("published", ["memory"], indirect=True)
def test_a_replaced_column_of_the_side_car_is_reported(published: PublishedDataset):
    published.put()
    with published.open() as ds:
        published.put(first=7)
        error = error_of(lambda: ds["id"].load())
    assert isinstance(error, IntegrityError)
    assert "id.npy" in str(error)
    assert REPLACED in str(error)


def test_a_removed_dataset_is_reported(published: PublishedDataset):
    published.put()
    with published.open() as ds:
        assert ds[0]["id"] == 0
        published.remove()
        error = error_of(lambda: ds["value"].load())
    assert isinstance(error, FileNotFoundError)
    assert "the dataset was removed since it was opened" in str(error)
    assert error.errno
    assert error.filename.endswith(".mds")


def error_in_worker(ds: npstream.Dataset, queue: Any) -> None:
    queue.put(str(error_of(lambda: ds["value"].load())))


@pytest.mark.parametrize("published", ["memory"], indirect=True)
def test_data_in_memory_are_reported_as_absent_from_a_spawned_process(
    published: PublishedDataset, tmp_path: Path
):
    published.put(sidecar=False)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with published.open() as ds:
        worker = context.Process(target=error_in_worker, args=(ds, queue))
        worker.start()
        text = queue.get(timeout=HANG)
        worker.join()
    assert "memory:// data exist only in the process that wrote them" in text
    assert "write the dataset to a directory, or start workers by fork" in text
    assert "removed" not in text
    with pytest.raises(FileNotFoundError, match="exist only in the process that wrote them"):
        npstream.open("memory://snapshot/absent", cache=tmp_path / "cache")


def test_a_damaged_file_is_not_reported_as_replaced(published: PublishedDataset):
    published.put()
    with published.open(verify=True) as ds:
        published.change(lambda body: body[:-9] + bytes(9))
        error = error_of(lambda: ds["value"].load())
        assert isinstance(error, IntegrityError)
        assert "replaced" not in str(error)
        if published.kind == "memory":
            assert str(error).endswith(DAMAGED)
        published.change(lambda body: body[: len(body) // 2])
    with published.open() as ds:
        error = error_of(lambda: ds["value"].load())
        assert "replaced" not in str(error)


def test_an_equal_index_with_another_version_is_reported(published: PublishedDataset):
    published.put(hashes=[], sidecar=False)
    with published.open() as ds:
        published.put(hashes=[], sidecar=False)
        published.change(lambda body: body[:3000])
        assert REPLACED in str(error_of(lambda: ds["value"].load()))


def test_the_version_of_the_index_is_requested_once_for_each_error(
    published: PublishedDataset, monkeypatch: pytest.MonkeyPatch
):
    published.put()
    names: list[str] = []
    with published.open() as ds:
        published.change(lambda body: body[:3000])
        store = ds._source.fetcher.shards.store
        version = type(store).version
        monkeypatch.setattr(
            type(store), "version", lambda self, name: names.append(name) or version(self, name)
        )
        error_of(lambda: ds["value"].load())
        first = len(names)
        assert set(names) == {"index.json"}
        if published.kind == "local":
            assert first == 1
        # Errors of read-ahead, which only the log shows, request the version too.
        error_of(lambda: ds[:3]["value"].load())
        assert len(names) == first + 1


def test_an_unreachable_store_leaves_the_error_unchanged(
    published: PublishedDataset, monkeypatch: pytest.MonkeyPatch
):
    published.put()
    with published.open() as ds:
        published.put(first=1, n=N // 2, shard_size="40KiB")

        def fail(store, name):
            raise StorageError(5, "no answer", name)

        monkeypatch.setattr(type(ds._source.fetcher.shards.store), "version", fail)
        error = error_of(lambda: ds["value"].load())
    assert "replaced" not in str(error)
    assert "no answer" not in str(error)


def test_a_pickled_dataset_reports_the_replacement(published: PublishedDataset):
    published.put()
    ds = pickle.loads(pickle.dumps(published.open()))
    published.put(first=1, n=N // 2, shard_size="40KiB")
    assert REPLACED in str(error_of(lambda: ds["value"].load()))


def test_a_mixture_reports_the_replacement_of_a_source(published: PublishedDataset, tmp_path: Path):
    write(tmp_path / "other")
    published.put()
    with published.open() as ds:
        mixed = npstream.mix({"one": ds, "other": npstream.open(tmp_path / "other")})
        published.put(first=1, n=N // 2, shard_size="40KiB")
        assert REPLACED in str(error_of(lambda: mixed[:1000].load()))


# Versions.

NOW = 1_800_000_000.0
RECENT = NOW - 60
DATE = "Fri, 15 Jan 2027 07:59:00 GMT"
"""The time RECENT, as a header of HTTP."""


@pytest.mark.parametrize(
    ("info", "text", "is_exact"),
    [
        ({"size": 3, "ETag": '"1f"', "LastModified": RECENT}, f'3:"1f":{RECENT}', True),
        ({"size": 3, "generation": "17", "updated": "2027-01-15T07:59:00Z"}, None, True),
        ({"size": 3, "blob_id": "ab"}, "3:ab", True),
        ({"size": 3, "ETag": 'W/"1f"', "Last-Modified": DATE}, f'3:W/"1f":{DATE}', False),
        # Some servers make the ETag from the time and the size.
        ({"size": 3, "ETag": f'"{int(RECENT):x}-3"', "Last-Modified": DATE}, None, False),
        ({"size": 3, "ETag": f'"{int(RECENT) + 1:x}-3"', "Last-Modified": DATE}, None, True),
        ({"size": 3, "Last-Modified": DATE}, f"3:{DATE}", False),
        ({"size": 3, "Last-Modified": "yesterday"}, "3:yesterday", False),
        ({"size": 3}, "3", False),
        ({"size": None, "Last-Modified": DATE}, f"None:{DATE}", False),
        ({"size": 3, "mtime": RECENT}, f"3:{RECENT}", False),
        ({"size": 3, "mtime": NOW + 60}, f"3:{NOW + 60}", False),
        ({"size": 3, "mtime": NOW - 100_000}, f"3:{NOW - 100_000}", True),
        ({"size": 3, "mtime": RECENT + 0.25}, f"3:{RECENT + 0.25}", True),
        ({"size": 3, "created": "2027-01-15T07:59:00.25+00:00"}, None, True),
        (
            {"size": 3, "mtime": datetime.datetime.fromtimestamp(RECENT, datetime.UTC)},
            "3:2027-01-15 07:59:00+00:00",
            False,
        ),
    ],
)
def test_versions_are_exact_if_they_change_with_every_write(
    info: dict[str, Any], text: str | None, is_exact: bool
):
    version = version_of(info, NOW)
    assert version.is_exact is is_exact
    if text is not None:
        assert version == text
    copy = pickle.loads(pickle.dumps(version))
    assert (copy, copy.is_exact, type(copy)) == (version, is_exact, Version)


# Servers that report times in whole seconds.


@pytest.fixture(params=["plain", "noetag", "sftp"])
def publisher(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path):
    """Return a function that publishes datasets with the same mtime, their URL, and their path."""
    if request.param == "sftp":
        server = servers["sftp"]
        remote = server.new_directory()
        root = server.directory / remote.path
    else:
        server = servers["http"]
        remote = server.directory_at(server.new_directory().path, location=request.param)
        root = server.directory / "files" / remote.path
    second = int(time.time()) - 3600

    def publish(first: int, **settings: Any) -> np.ndarray:
        source = tmp_path / f"from-{first}"
        values = write(source, first, **settings)
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(source, root)
        for path in root.rglob("*"):
            os.utime(path, (second, second))
        return values

    return publish, remote, root


@pytest.mark.parametrize("kind", ["hashes", "side-car", "both"])
def test_datasets_with_the_same_mtime_do_not_share_cached_files(
    publisher, kind: str, tmp_path: Path
):
    publish, remote, root = publisher
    sizes = []
    for first in (100_000, 200_000):
        settings = {} if kind != "side-car" else {"hashes": []}
        expected = publish(first, **settings)
        if kind == "hashes":
            (root / "index.msgpack").unlink()
        sizes.append((root / "index.json").stat().st_size)
        with npstream.open(
            remote.url, storage_options=remote.storage_options, cache=tmp_path / "cache"
        ) as ds:
            np.testing.assert_array_equal(ds["value"].load(), expected)
            np.testing.assert_array_equal(ds["id"].load(), np.arange(N) + first)
            assert ds.version == npstream.open(root).version
    assert sizes[0] == sizes[1]


def test_a_replacement_with_the_same_mtime_is_reported(publisher, tmp_path: Path):
    publish, remote, _ = publisher
    publish(100_000)
    with npstream.open(
        remote.url, storage_options=remote.storage_options, cache=tmp_path / "cache"
    ) as ds:
        version = ds._source.fetcher.shards.snapshot.version
        publish(200_000)
        assert ds._source.fetcher.shards.store.version("index.json") == version
        assert REPLACED in str(error_of(lambda: ds["value"].load()))


def test_an_index_with_an_old_mtime_is_read_once(
    publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publish, remote, root = publisher
    publish(100_000)
    read, names = RemoteStore.read, []
    monkeypatch.setattr(
        RemoteStore, "read", lambda self, name, *n: names.append(name) or read(self, name, *n)
    )

    def open_and_list_reads() -> list[str]:
        names.clear()
        npstream.open(remote.url, storage_options=remote.storage_options, cache=tmp_path / "cache")
        return sorted(names)

    assert open_and_list_reads() == open_and_list_reads() == ["index.json", "index.msgpack"]
    for path in root.rglob("*"):  # more than a day ago
        os.utime(path, (time.time() - 100_000,) * 2)
    assert open_and_list_reads() == ["index.json", "index.msgpack"]
    assert open_and_list_reads() == []
