"""Conditional uploads: new files, and replacements of an unchanged file, on each server."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading

import fsspec
import pytest
from destinations import WRITABLE

from npstream.errors import StorageError
from npstream.storage.local import LocalStore, open_store
from npstream.storage.remote import RemoteStore
from npstream.storage.uploads import lock_file

CONDITIONAL = ["directory", "local", "memory", *(kind for kind in WRITABLE if kind != "sftp")]


@pytest.fixture(params=CONDITIONAL)
def conditional_store(request, tmp_path):
    """Return a store that replaces files conditionally."""
    if request.param == "directory":
        yield LocalStore(str(tmp_path))
    elif request.param == "local":
        yield RemoteStore(f"local://{tmp_path}")
    elif request.param == "memory":
        yield RemoteStore("memory://uploads")
        fsspec.filesystem("memory").store.clear()
    else:
        remote_dir = request.getfixturevalue("servers")[request.param].new_directory()
        yield open_store(remote_dir.url, remote_dir.storage_options)


def test_a_file_is_replaced_only_if_it_is_unchanged(conditional_store):
    conditional_store.put("a", b"1")
    first = conditional_store.read_tagged("a")
    assert first.content == b"1"
    conditional_store.replace("a", b"two", first)
    for data in (b"3", b"two"):
        with pytest.raises(FileExistsError) as caught:
            conditional_store.replace("a", data, first)
        assert isinstance(caught.value, StorageError)
    assert conditional_store.read("a") == b"two"
    second = conditional_store.read_tagged("a")
    conditional_store.remove("a")
    with pytest.raises((FileExistsError, FileNotFoundError)):
        conditional_store.replace("a", b"4", second)
    with pytest.raises(FileNotFoundError):
        conditional_store.read_tagged("a")


def test_no_replacement_is_lost(conditional_store):
    """Each thread increments the number in one file: it reads the number, and replaces it."""
    conditional_store.put("n", b"0")
    rounds, errors = 6, []

    def count():
        try:
            for _ in range(rounds):
                while True:
                    tag = conditional_store.read_tagged("n")
                    try:
                        conditional_store.replace("n", b"%d" % (int(tag.content) + 1), tag)
                        break
                    except FileExistsError:
                        pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert conditional_store.read("n") == b"%d" % (3 * rounds)


def test_a_store_without_replacements(servers):
    remote_dir = servers["sftp"].new_directory()
    store = open_store(remote_dir.url, remote_dir.storage_options)
    assert not store.can_replace("a")
    store.put("a", b"1")
    with pytest.raises(StorageError, match="replaces no file conditionally") as caught:
        store.replace("a", b"2", store.read_tagged("a"))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_file_that_is_replaced_while_it_is_read(monkeypatch):
    """If the size that was asked for is out of date, the content is read again."""
    store, sizes = RemoteStore("memory://uploads"), []
    read = RemoteStore.read

    def replace_and_read(self, name, nbytes=None):
        sizes.append(nbytes)
        if len(sizes) == 1:
            store.put("a", b"a longer one")
        if len(sizes) == 2:
            store.put("a", b"short")
        return read(self, name, nbytes)

    store.put("a", b"first")
    monkeypatch.setattr(RemoteStore, "read", replace_and_read)
    assert store.read_tagged("a").content == b"short"
    assert sizes == [5, 12, 5]
    fsspec.filesystem("memory").store.clear()


# The lock of a directory


def test_a_killed_process_leaves_no_lock(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    script = (
        "import sys\nfrom npstream.storage.uploads import lock_file\n"
        "with lock_file(sys.argv[1]):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    descriptor = os.open(tmp_path / "a", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
    process.kill()
    process.communicate()
    store = LocalStore(str(tmp_path))
    store.replace("a", b"2", store.read_tagged("a"))
    assert store.read("a") == b"2"


def test_a_waiter_for_a_replaced_file_locks_the_new_one(tmp_path, monkeypatch):
    path = str(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    contents, has_opened, flock = [], threading.Event(), fcntl.flock

    def wait():
        with lock_file(path) as file:
            contents.append(file.read())

    def lock(descriptor, operation):
        has_opened.set()
        flock(descriptor, operation)

    with lock_file(path):
        monkeypatch.setattr(fcntl, "flock", lock)
        thread = threading.Thread(target=wait)
        thread.start()
        assert has_opened.wait(60)
        os.replace(tmp_path / "b", path)
    thread.join()
    assert contents == [b"2"]


def test_a_read_only_file_is_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "a").chmod(0o444)
    store = LocalStore(str(tmp_path))
    assert store.can_replace("a")
    store.replace("a", b"2", store.read_tagged("a"))
    assert store.read("a") == b"2"


def test_a_file_system_without_locks_replaces_no_file(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks")

    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not LocalStore(str(tmp_path)).can_replace("a")
    with pytest.raises(StorageError):
        LocalStore(str(tmp_path)).replace("a", b"2", LocalStore(str(tmp_path)).read_tagged("a"))
    assert os.listdir(tmp_path) == ["a"]
