"""A dataset that is replaced: what its readers are told, and that nobody gets a mixture of two."""

from __future__ import annotations

import datetime
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
REPLACED = "the dataset was replaced since it was opened: open it anew"


def write(directory: Path, first: int = 0, n: int = N, **settings: Any) -> np.ndarray:
    values = np.arange(first, first + 16 * n).reshape(n, 16)
    settings = {"hashes": ["xxh64"], "shard_size": "64KiB", **settings}
    npstream.write(directory, {"value": values, "id": np.arange(n) + first}, **settings)
    return values


class Published:
    """A dataset at a place, which can be replaced by another."""

    def __init__(self, tmp_path: Path, kind: str) -> None:
        self.tmp_path = tmp_path
        self.kind = kind
        self.number = 0
        self.url = str(tmp_path / "here") if kind == "local" else "memory://snapshot/here"

    def put(self, sidecar: bool = True, **settings: Any) -> np.ndarray:
        """Publish a dataset in place of the one that is there."""
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
        """Change the files of some names."""
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
    made = Published(tmp_path, request.param)
    yield made
    made.remove()


def failure(read: Callable[[], object]) -> NpstreamError:
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


LOCAL = [("local", read) for read in READS if read != "prefetch"]  # which fetches nothing
CASES = [*LOCAL, *(("memory", read) for read in READS)]


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize(("published", "read"), CASES, indirect=["published"])
@pytest.mark.parametrize("verify", ["auto", True])
def test_another_dataset_of_fewer_samples(
    published: Published, read: str, sidecar: bool, verify: Any
):
    published.put(sidecar=sidecar)
    with published.open(verify=verify) as ds:
        assert ds[5]["id"] == 5
        # Of the same names, but no shard has as many bytes.
        published.put(first=1, n=N // 2 + 1, shard_size="40KiB", sidecar=sidecar)
        error = failure(lambda: READS[read](ds))
    assert REPLACED in str(error)
    assert DAMAGED not in str(error)
    assert re.search(r"shard\.\d+\.mds|index\.columns", str(error))
    assert error.__context__ is None or error.__suppress_context__
    with published.open() as ds:
        assert ds[0]["id"] == 1


def test_another_dataset_of_the_same_size(published: Published):
    published.put()
    with published.open(verify=True) as ds:
        assert ds[0]["id"] == 0
        published.put(first=7)
        error = failure(lambda: ds["value"].load())
    assert isinstance(error, IntegrityError)
    assert REPLACED in str(error)
    assert DAMAGED not in str(error)


@pytest.mark.parametrize("published", ["memory"], indirect=True)
def test_a_column_in_the_side_car(published: Published):
    published.put()
    with published.open() as ds:
        published.put(first=7)
        error = failure(lambda: ds["id"].load())
    assert isinstance(error, IntegrityError)
    assert "id.npy" in str(error)
    assert REPLACED in str(error)


def test_a_dataset_that_was_removed(published: Published):
    published.put()
    with published.open() as ds:
        assert ds[0]["id"] == 0
        published.remove()
        error = failure(lambda: ds["value"].load())
    assert isinstance(error, FileNotFoundError)
    assert "the dataset was removed since it was opened" in str(error)
    assert error.errno
    assert error.filename.endswith(".mds")


def test_a_file_that_is_damaged(published: Published):
    """Then nothing was replaced, and the error says what it always said."""
    published.put()
    with published.open(verify=True) as ds:
        published.change(lambda body: body[:-9] + bytes(9))
        error = failure(lambda: ds["value"].load())
        assert isinstance(error, IntegrityError)
        assert "replaced" not in str(error)
        if published.kind == "memory":
            assert str(error).endswith(DAMAGED)
        published.change(lambda body: body[: len(body) // 2])
    with published.open() as ds:
        error = failure(lambda: ds["value"].load())
        assert "replaced" not in str(error)


def test_an_index_that_is_the_same_again(published: Published):
    """A version that has changed is a new dataset, also if its index has the same text."""
    published.put(hashes=[], sidecar=False)
    with published.open() as ds:
        published.put(hashes=[], sidecar=False)
        published.change(lambda body: body[:3000])
        assert REPLACED in str(failure(lambda: ds["value"].load()))


def test_the_index_is_looked_at_once_for_each_error(
    published: Published, monkeypatch: pytest.MonkeyPatch
):
    published.put()
    asked: list[str] = []
    with published.open() as ds:
        published.change(lambda body: body[:3000])
        store = ds._source.fetcher.shards.store
        version = type(store).version
        monkeypatch.setattr(
            type(store), "version", lambda self, name: asked.append(name) or version(self, name)
        )
        failure(lambda: ds["value"].load())
        first = len(asked)
        assert set(asked) == {"index.json"}
        if published.kind == "local":
            assert first == 1
        # Errors of reading ahead, which nobody sees, are explained, too.
        failure(lambda: ds[:3]["value"].load())
        assert len(asked) == first + 1


def test_a_store_that_cannot_be_asked(published: Published, monkeypatch: pytest.MonkeyPatch):
    published.put()
    with published.open() as ds:
        published.put(first=1, n=N // 2, shard_size="40KiB")

        def fail(store, name):
            raise StorageError(5, "no answer", name)

        monkeypatch.setattr(type(ds._source.fetcher.shards.store), "version", fail)
        error = failure(lambda: ds["value"].load())
    assert "replaced" not in str(error)
    assert "no answer" not in str(error)


def test_in_a_process_of_a_loader(published: Published):
    published.put()
    ds = pickle.loads(pickle.dumps(published.open()))
    published.put(first=1, n=N // 2, shard_size="40KiB")
    assert REPLACED in str(failure(lambda: ds["value"].load()))


def test_a_mixture_says_it_of_its_source(published: Published, tmp_path: Path):
    write(tmp_path / "other")
    published.put()
    with published.open() as ds:
        mixed = npstream.mix({"one": ds, "other": npstream.open(tmp_path / "other")})
        published.put(first=1, n=N // 2, shard_size="40KiB")
        assert REPLACED in str(failure(lambda: mixed[:1000].load()))


# Versions.

NOW = 1_800_000_000.0
RECENT = NOW - 60
DATE = "Fri, 15 Jan 2027 07:59:00 GMT"


@pytest.mark.parametrize(
    ("info", "text", "is_exact"),
    [
        ({"size": 3, "ETag": '"1f"', "LastModified": RECENT}, f'3:"1f":{RECENT}', True),
        ({"size": 3, "generation": "17", "updated": "2027-01-15T07:59:00Z"}, None, True),
        ({"size": 3, "blob_id": "ab"}, "3:ab", True),
        ({"size": 3, "ETag": 'W/"1f"', "Last-Modified": DATE}, f'3:W/"1f":{DATE}', False),
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
def test_which_versions_are_exact(info: dict[str, Any], text: str | None, is_exact: bool):
    version = version_of(info, NOW)
    assert version.is_exact is is_exact
    if text is not None:
        assert version == text
    copy = pickle.loads(pickle.dumps(version))
    assert (copy, copy.is_exact, type(copy)) == (version, is_exact, Version)


# Servers whose times are whole seconds.


@pytest.fixture(params=["plain", "noetag", "sftp"])
def coarse(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path):
    """Return what publishes datasets that are all written in the same second, and where."""
    if request.param == "sftp":
        server = servers["sftp"]
        place = server.new_directory()
        root = server.directory / place.path
    else:
        server = servers["http"]
        place = server.at(server.new_directory().path, location=request.param)
        root = server.directory / "files" / place.path
    second = int(time.time()) - 3600

    def publish(first: int, **settings: Any) -> np.ndarray:
        source = tmp_path / f"from-{first}"
        values = write(source, first, **settings)
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(source, root)
        for path in root.rglob("*"):
            os.utime(path, (second, second))
        return values

    return publish, place, root


@pytest.mark.parametrize("kind", ["hashes", "side-car", "both"])
def test_datasets_of_the_same_second(coarse, kind: str, tmp_path: Path):
    publish, place, root = coarse
    sizes = []
    for first in (100_000, 200_000):
        settings = {} if kind != "side-car" else {"hashes": []}
        expected = publish(first, **settings)
        if kind == "hashes":
            (root / "index.msgpack").unlink()
        sizes.append([(root / name).stat().st_size for name in ("index.json",)])
        with npstream.open(
            place.url, storage_options=place.storage_options, cache=tmp_path / "cache"
        ) as ds:
            np.testing.assert_array_equal(ds["value"].load(), expected)
            np.testing.assert_array_equal(ds["id"].load(), np.arange(N) + first)
            assert ds.version == npstream.open(root).version
    assert sizes[0] == sizes[1]


def test_a_dataset_that_is_replaced_within_the_second(coarse, tmp_path: Path):
    publish, place, _ = coarse
    publish(100_000)
    with npstream.open(
        place.url, storage_options=place.storage_options, cache=tmp_path / "cache"
    ) as ds:
        version = ds._source.fetcher.shards.snapshot.version
        publish(200_000)
        assert ds._source.fetcher.shards.store.version("index.json") == version
        assert REPLACED in str(failure(lambda: ds["value"].load()))


def test_an_index_of_yesterday_is_read_once(
    coarse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publish, place, root = coarse
    publish(100_000)
    read, names = RemoteStore.read, []
    monkeypatch.setattr(
        RemoteStore, "read", lambda self, name, *n: names.append(name) or read(self, name, *n)
    )

    def opened() -> list[str]:
        names.clear()
        npstream.open(place.url, storage_options=place.storage_options, cache=tmp_path / "cache")
        return sorted(names)

    assert opened() == opened() == ["index.json", "index.msgpack"]
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 100_000,) * 2)
    assert opened() == ["index.json", "index.msgpack"]
    assert opened() == []
