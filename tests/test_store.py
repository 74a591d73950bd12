"""Where files live, and what is said when they cannot be read."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest

from npstream import memory
from npstream.errors import StorageError
from npstream.store import LocalStore, local_path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a/./b/../c/", "/a/c"),
        ("rel/x", os.path.join(os.getcwd(), "rel/x")),
        ("~/x", os.path.expanduser("~/x")),
        (pathlib.Path("/a"), "/a"),
        ("file:///a/b", "/a/b"),
        ("file://localhost/a", "/a"),
        ("FILE:///a", "/a"),
        ("file:///a%20b/%C3%A4", "/a b/ä"),
        ("/a:b", "/a:b"),
        ("c:/x", os.path.join(os.getcwd(), "c:/x")),
    ],
)
def test_local_path(url, path):
    assert local_path(url) == path


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "gs://x", "https://x/y", "file://host/x", "local://x", "azure-dl://x"]
)
def test_what_is_elsewhere_is_refused(url):
    with pytest.raises(ValueError, match="is not on this machine"):
        local_path(url)


@pytest.mark.parametrize("url", [b"/a", 5, None])
def test_what_is_no_path_is_refused(url):
    with pytest.raises(TypeError):
        local_path(url)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "file").write_bytes(b"0123456789")
    os.mkfifo(tmp_path / "pipe")
    return LocalStore(str(tmp_path))


def test_reading(store):
    assert store.exists("part/file")
    assert store.where("part/file") == f"{store.root}/part/file"
    assert store.size("part/file") == 10
    assert store.read("part/file") == b"0123456789"
    assert store.map("part/file").tobytes() == b"0123456789"
    assert store.ranges("part/file", [(2, 3), (0, 1), (10, 0)]) == [b"234", b"0", b""]
    assert store.ranges("part/file", []) == []


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
def test_failures_say_which_file_and_why(store, method, name, reason):
    args = ([(0, 1)],) if method == "ranges" else ()
    with pytest.raises(StorageError, match=f"{reason}.*{name}") as caught:
        getattr(store, method)(name, *args)
    assert isinstance(caught.value, OSError)
    assert caught.value.filename == store.where(name)
    assert caught.value.errno in errno.errorcode
    assert not store.exists(name)


def test_the_size_of_what_is_not_there(store):
    with pytest.raises(StorageError, match=r"No such file.*none"):
        store.size("none")


@pytest.mark.parametrize("span", [(8, 3), (10, 1), (50, 1)])
def test_ranges_are_never_cut_short(store, span):
    before = os.listdir("/dev/fd")
    with pytest.raises(
        StorageError, match=r"part/file: \d of \d bytes at \d+; the file is shorter"
    ):
        store.ranges("part/file", [(0, 5), span])
    assert os.listdir("/dev/fd") == before


def test_files_that_do_not_fit_are_not_read(store, monkeypatch):
    with open(store.where("hole"), "wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(memory, "available", lambda: 1 << 29)
    with pytest.raises(MemoryError, match=r"reading .*hole takes 1,073,741,824 bytes"):
        store.read("hole")
