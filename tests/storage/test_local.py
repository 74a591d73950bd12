"""Local stores: reads, writes, and the errors of files that cannot be read or written."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest

import npstream
from npstream._core import memory
from npstream.errors import StorageError
from npstream.storage import local
from npstream.storage.local import LocalStore, open_store, options_for, write_fully
from npstream.storage.urls import local_path


@pytest.fixture
def store(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "file").write_bytes(b"0123456789")
    (tmp_path / "other").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    return LocalStore(str(tmp_path))


def test_read_list_and_size_of_local_files(store):
    assert store.exists("part/file")
    assert store.exist_many(["none", "part/file", "pipe"]) == [False, True, False]
    assert store.where("part/file") == f"{store.root}/part/file"
    assert store.size("part/file") == 10
    assert store.read("part/file") == b"0123456789"
    assert store.map("part/file").tobytes() == b"0123456789"
    assert store.read("part/file", 10) == b"0123456789"
    spans = [("part/file", 2, 3), ("part/file", 0, 1), ("other", 1, 1), ("part/file", 10, 0)]
    assert store.ranges(spans) == [b"234", b"0", b"b", b""]
    assert list(store.stream(spans[:2])) == [(0, b"234"), (1, b"0")]
    assert store.ranges([]) == []
    assert list(store.names()) == [("other", 3), ("part/file", 10)]
    assert list(store.names("part/")) == list(store.names("part/f")) == [("part/file", 10)]
    assert list(store.names("none/")) == []
    assert store.is_local


@pytest.mark.parametrize("method", ["read", "map", "ranges"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file or directory"),
        ("part", "not a file"),
        ("pipe", "not a file"),
        ("part/file/x", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_errors_name_the_file_and_the_reason(store, method, name, reason):
    argument = [(name, 0, 1)] if method == "ranges" else name
    with pytest.raises(StorageError, match=f"{reason}.*{name}") as caught:
        getattr(store, method)(argument)
    assert isinstance(caught.value, OSError)
    assert caught.value.filename == store.where(name)
    assert caught.value.errno in errno.errorcode
    assert not store.exists(name)


def test_absent_files_raise_file_not_found_error(tmp_path):
    for read in (npstream.open, npstream.verify_dataset, npstream.build_index):
        with pytest.raises(StorageError, match=r"index\.json") as caught:
            read(tmp_path / "nothing")
        assert isinstance(caught.value, FileNotFoundError)
    assert os.listdir(tmp_path) == []
    npstream.write(tmp_path / "data", {"x": [1]})
    with pytest.raises(FileNotFoundError, match="was not kept"):
        npstream.open(tmp_path / "data", version="0123456789abcdef")
    (tmp_path / "data" / "shard.00000.mds").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard\.00000\.mds"):
        npstream.open(tmp_path / "data")[0]
    with pytest.raises(NotADirectoryError):
        npstream.open(tmp_path / "data" / "index.json")


def test_size_and_version_of_a_missing_file_raise(store):
    for method in (store.size, store.version):
        with pytest.raises(StorageError, match=r"No such file.*none"):
            method("none")


@pytest.mark.parametrize("span", [(8, 3), (10, 1), (50, 1)])
def test_a_range_beyond_the_end_of_a_file_raises(store, span):
    descriptors = os.listdir("/dev/fd")
    with pytest.raises(
        StorageError, match=r"part/file: \d of \d bytes? at \d+; the file is shorter"
    ):
        store.ranges([("part/file", 0, 5), ("part/file", *span)])
    assert os.listdir("/dev/fd") == descriptors


def test_a_range_that_one_call_cannot_read_is_read_in_parts(store, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, nbytes, at: pread(file, min(nbytes, 4), at))
    assert store.ranges([("part/file", 1, 9), ("part/file", 0, 2)]) == [b"123456789", b"01"]


def test_a_file_larger_than_memory_is_not_read(store, monkeypatch):
    with open(store.where("hole"), "wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 29)
    with pytest.raises(MemoryError, match=r"reading .*hole takes 1,073,741,824 bytes"):
        store.read("hole")


def test_a_file_of_another_size_is_not_read(store):
    with pytest.raises(StorageError, match=r"part/file: 10 bytes; its index says 11"):
        store.read("part/file", 11)


def test_closing_a_stream_closes_the_file(store):
    descriptors = os.listdir("/dev/fd")
    parts = store.stream([("part/file", 0, 1), ("part/file", 1, 1)])
    assert next(parts) == (0, b"0")
    parts.close()
    assert os.listdir("/dev/fd") == descriptors


def test_files_are_stored_and_removed(store, tmp_path):
    version = store.version("part/file")
    store.put("new/part/file", b"one")
    store.put("part/file", tmp_path / "other")
    assert store.read("new/part/file") == b"one"
    assert store.read("part/file") == b"abc"
    assert store.version("part/file") != version
    store.remove("part/file")
    store.remove("part/file")
    assert sorted(name for name, _ in store.names()) == ["new/part/file", "other"]


@pytest.mark.parametrize(("name", "data"), [("other/x", b""), ("x", "none"), ("part", b"")])
def test_a_failed_put_names_the_file_and_stores_nothing(store, name, data):
    names = list(store.names())
    with pytest.raises(StorageError, match=f"cannot store this file.*{name}"):
        store.put(name, data)
    assert list(store.names()) == names


def test_names_are_listed_while_another_process_removes_files(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "directory").mkdir()
    stat = os.stat

    def stat_and_remove(path, **options):
        status = stat(path, **options)
        if str(path).endswith("b") and not options:
            os.remove(path)
        return status

    monkeypatch.setattr(os, "stat", stat_and_remove)
    names = LocalStore(str(tmp_path)).names()
    assert next(names) == ("a", 1)
    os.remove(tmp_path / "c")
    assert list(names) == [("b", 1)]
    assert not (tmp_path / "b").exists()


def test_a_failed_removal_names_the_file(store):
    with pytest.raises(StorageError, match=r"cannot remove this file.*part"):
        store.remove("part")


@pytest.mark.parametrize("url", ["x/y", "file:///a", pathlib.Path("/a"), "c:/x"])
def test_paths_open_local_stores(url):
    assert open_store(url).root == local_path(url)


@pytest.mark.parametrize(
    "url",
    ["x3://bucket/x", "dbfs:/Volumes/x", "simplecache::s3://bucket/x", "s4://key:secret@x/?secret"],
)
def test_unknown_schemes_are_not_opened_as_paths(url):
    with pytest.raises(
        ValueError, match=r"unknown scheme .* expected a local path.* s3, "
    ) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_storage_options_for_a_path_and_a_path_of_bytes_raise():
    with pytest.raises(ValueError, match="storage_options are for remote stores; '/a' is local"):
        open_store("/a", {"key": "x"})
    with pytest.raises(TypeError):
        open_store(b"/a")


@pytest.mark.parametrize(
    ("url", "other", "is_shared"),
    [
        ("s3://bucket/a", "s3://other/b", True),
        ("s3://bucket/a", "S3A://bucket/b", True),
        ("az://container/a", "abfs://container/b", True),
        ("s3://bucket/a", "gs://bucket/a", False),
        ("https://host/a", "https://host/b", True),
        ("https://host/a", "https://elsewhere/a", False),
        ("https://host/a", "http://host/a", False),
        ("s3://bucket/a", "/data", False),
        ("local://a", "file:///data", False),
    ],
)
def test_options_are_shared_only_within_one_service(url, other, is_shared):
    options = {"key": "secret"}
    assert options_for(url, options, other) == (options if is_shared else None)


class FullDisk:
    """A file whose writes store at most 4 bytes. After 4 bytes, some writes raise an error."""

    def __init__(self, failures, code=errno.ENOSPC):
        self.content, self.failures, self.code = b"", failures, code

    def write(self, data):
        if self.failures and len(self.content) >= 4:
            self.failures -= 1
            raise OSError(self.code, os.strerror(self.code))
        self.content += bytes(data[:4])
        return len(data[:4])


def test_a_write_to_a_full_disk_is_tried_again(monkeypatch):
    monkeypatch.setattr(local, "_FULL_DISK_BACKOFF", 0.001)
    file = FullDisk(local._FULL_DISK_RETRIES)
    write_fully(file.write, b"0123456789")
    assert file.content == b"0123456789"
    for failures, code in ((local._FULL_DISK_RETRIES + 1, errno.ENOSPC), (1, errno.EIO)):
        file = FullDisk(failures, code)
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            write_fully(file.write, b"0123456789")
        assert file.content == b"0123"
    write_fully(FullDisk(9).write, b"")


@pytest.mark.parametrize("is_freed", [False, True])
def test_a_write_to_a_small_disk_waits_for_space_or_is_resumed(is_freed, tmp_path, monkeypatch):
    """Another file of a full tmpfs is removed: while the write waits, or after the write failed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]
    if not shutil.which("mount") or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        (disk / "filler").write_bytes(bytes(600_000))
        monkeypatch.setattr(local, "_FULL_DISK_BACKOFF", 0.001)
        wait = threading.Event.wait

        def free(event, timeout=None):
            if is_freed:
                (disk / "filler").unlink(missing_ok=True)
            return wait(event, timeout)

        monkeypatch.setattr(threading.Event, "wait", free)
        data = {"x": np.zeros(50_000)}
        settings = {"shard_size": 100_000, "sidecar": False}
        if is_freed:
            assert npstream.write(disk / "ds", data, resume=True, **settings).samples == 50_000
        else:
            with pytest.raises(StorageError, match="No space left on device") as caught:
                npstream.write(disk / "ds", data, resume=True, **settings)
            assert caught.value.errno == errno.ENOSPC
            (disk / "filler").unlink()
            npstream.write(disk / "ds", data, resume=True, **settings)
        npstream.write(tmp_path / "whole", data, **settings)
        for name in (tmp_path / "whole").rglob("*.*"):
            assert (disk / "ds" / name.relative_to(tmp_path / "whole")).read_bytes() == (
                name.read_bytes()
            )
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
