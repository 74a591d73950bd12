"""Concurrent and failed writes: published files stay, and all other files are removed."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import os
import random
import subprocess
import sys
import threading
from urllib.parse import unquote

import numpy as np
import pytest
from crash_cache import in_child
from destinations import (
    SAMPLES,
    SHARD,
    add,
    assert_no_files,
    assert_published,
    failing_samples,
    names,
    write,
)
from started import started_threads

import npstream
from npstream.errors import StorageError
from npstream.formats.index import INDEX
from npstream.storage import local
from npstream.storage.remote import RemoteStore
from npstream.writing.destination import LOCK

pytestmark = pytest.mark.usefixtures("short_pauses")

# Several writers at once


def race(writes):
    """Start several writes at the same time; return the result or the exception of each."""
    results = [None] * len(writes)
    barrier = threading.Barrier(len(writes))

    def run(number, work):
        try:
            results[number] = work(barrier.wait)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(writes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def contender(url, options, value, compression=None, rng=None):
    """Return a write for `race`; with `rng`, it pauses for up to 2 ms after each sample."""

    def work(wait):
        settings = {"shard_size": SHARD, "compression": compression, "storage_options": options}
        with npstream.Writer(url, **settings) as writing:
            wait()
            for _ in range(SAMPLES):
                writing.write({"v": np.int64(value), "text": str(value)})
                if rng is not None:
                    threading.Event().wait(rng.random() / 500)
        return writing.close()

    return work


def assert_one_has_won(results, url, options, values, cache):
    winners = [k for k, result in enumerate(results) if not isinstance(result, Exception)]
    errors = [result for result in results if isinstance(result, Exception)]
    assert len(winners) == 1, results
    for error in errors:
        assert isinstance(error, FileExistsError), error
        assert isinstance(error, StorageError), error
    assert_published(url, options, values[winners[0]], cache)


@pytest.mark.parametrize("writers", [2, 3])
def test_writers_at_once(target, writers, tmp_path):
    url, options = target
    values = [7, 7, 8][:writers]  # two write the same data, like ranks that run one script
    writes = [contender(url, options, value, "zstd" if value == 8 else None) for value in values]
    assert_one_has_won(race(writes), url, options, values, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_writers_at_once_many_times(kind, tmp_path, memory):
    rng = random.Random(kind)
    for number in range(40):
        url = str(tmp_path / f"{number}") if kind == "directory" else f"{memory}/{number}"
        values = [rng.randrange(2) for _ in range(rng.choice([2, 3, 4]))]
        writes = [
            contender(url, None, value, rng.choice([None, "zstd", "gz"]), rng) for value in values
        ]
        assert_one_has_won(race(writes), url, None, values, tmp_path / "cache")


def test_processes_at_once(tmp_path):
    script = """
import sys
import numpy as np, npstream
with npstream.Writer(sys.argv[1], shard_size=300) as writing:
    print("open", flush=True)
    sys.stdin.readline()
    for _ in range(24):
        writing.write({"v": np.int64(sys.argv[2]), "text": sys.argv[2]})
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen([*command, str(k)], text=True, **pipes) for k in range(3)]
    for process in processes:
        assert process.stdout.readline() == "open\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    winners = [k for k, process in enumerate(processes) if process.returncode == 0]
    assert len(winners) == 1, errors
    assert all("StorageExistsError" in text for k, text in enumerate(errors) if k not in winners)
    assert_published(str(tmp_path / "out"), None, winners[0], tmp_path / "cache")


def test_a_refused_writer_does_not_change_a_published_dataset(target, tmp_path):
    url, options = target
    second = npstream.Writer(url, storage_options=options, shard_size=SHARD)
    write(url, options, 7)
    second.write({"v": -1})
    with pytest.raises(FileExistsError, match="a dataset, or a part of one, is here"):
        second.close()
    with pytest.raises(FileExistsError):
        write(url, options, 8)
    assert_published(url, options, 7, tmp_path / "cache")


def test_a_refused_writer_does_not_change_a_write_in_progress(target, tmp_path):
    url, options = target
    first, second = (
        npstream.Writer(url, storage_options=options, shard_size=SHARD) for _ in range(2)
    )
    add(first, 7, SAMPLES // 2)
    first._shards.finish()
    message = r"is here.*no index, as a write is in progress or was interrupted"
    with pytest.raises(FileExistsError, match=message), second:
        add(second, 8)
    with pytest.raises(FileExistsError, match=message):
        write(url, options, 8)
    with pytest.raises(FileNotFoundError):  # a reader sees nothing yet
        npstream.open(url, storage_options=options, cache=tmp_path / "cache")
    add(first, 7, SAMPLES // 2)
    first.close()
    assert_published(url, options, 7, tmp_path / "cache")
    shards = [name for name in names(url, options) if name.startswith("shard.")]
    assert shards == [f"shard.{number:05}.mds" for number in range(4)]


def test_a_write_that_fails_leaves_nothing(target):
    url, options = target
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            npstream.write(url, failing_samples(), shard_size=SHARD, storage_options=options)
    assert_no_files(url, options)


# Requests to a store


@pytest.mark.parametrize("kind", ["s3", "azure", "oci"])
def test_requests_of_a_write(kind, servers):
    """One request stores each file. A second one of the lock file fails, and a third deletes it."""
    proxy = servers.proxy(kind)
    fresh = servers[kind].new_directory().with_proxy(proxy)
    report = write(fresh.url, fresh.storage_options, 7)
    stored = [(file_of(r.path), r.status) for r in proxy.log if r.method == "PUT"]
    (lock, created), (again, refused) = stored[:2]
    assert (lock, again, created < 300, refused in (409, 412)) == (LOCK, LOCK, True, True)
    paths = names(fresh.url, fresh.storage_options)
    assert sorted(name for name, _ in stored[2:]) == sorted(map(file_of, paths))
    assert stored[-1][0] == INDEX
    assert len(stored) == 2 + report.shards + 3  # a column, the side-car and the index
    assert [file_of(r.path) for r in proxy.log if r.method == "DELETE"] == [LOCK]


def file_of(path):
    return unquote(path).rpartition("/")[2]


def test_a_user_who_may_only_read(servers, tmp_path):
    fresh = servers["s3"].new_directory()
    write(fresh.url, fresh.storage_options, 7)
    reader = fresh.storage_options | {"key": "reader", "secret": "reader-secret-0123456789"}
    assert_published(fresh.url, reader, 7, tmp_path / "cache")
    with pytest.raises(PermissionError) as caught:
        write(f"{fresh.url}/other", reader, 8)
    assert isinstance(caught.value, StorageError)
    assert names(f"{fresh.url}/other", fresh.storage_options) == []


# Stores that do not create files in one step


def ignore_condition(create, filesystem, path, data):
    """Store the file, like a server that ignores the condition of a request."""
    filesystem.pipe_file(path, data)


def refuse_condition(create, filesystem, path, data):
    """Raise, like a server that does not implement conditions."""
    raise OSError(errno.EOPNOTSUPP, "not implemented")


WITHOUT_EXCLUSIVE_CREATION = pytest.mark.parametrize(
    "create_file", [ignore_condition, refuse_condition, None], ids=["ignores", "refuses", "none"]
)


@WITHOUT_EXCLUSIVE_CREATION
def test_file_names_are_unique_to_a_write(create_file, memory, create, tmp_path):
    create(create_file)
    report = write(memory, None, 7)
    assert_published(memory, None, 7, tmp_path / "cache")
    shards = [name for name in names(memory) if name.startswith("shard.")]
    write_id = shards[0].split(".")[1]
    assert shards == [f"shard.{write_id}.{number:05}.mds" for number in range(report.shards)]
    assert f"index.columns/{write_id}.v.npy" in names(memory)
    with pytest.raises(FileExistsError):
        write(memory, None, 8)
    with pytest.raises(ZeroDivisionError):
        npstream.write(f"{memory}/other", failing_samples(), shard_size=SHARD)
    assert_no_files(f"{memory}/other")


@WITHOUT_EXCLUSIVE_CREATION
def test_two_writers_with_unique_file_names(create_file, memory, create, tmp_path):
    create(create_file)
    first, second = (npstream.Writer(memory, shard_size=SHARD) for _ in range(2))
    add(second, 8)
    add(first, 7)
    first.close()
    with pytest.raises(FileExistsError):
        second.close()
    assert_published(memory, None, 7, tmp_path / "cache")


@WITHOUT_EXCLUSIVE_CREATION
def test_two_indexes_that_are_stored_at_the_same_time(
    create_file, memory, create, tmp_path, monkeypatch
):
    """Without exclusive creation, the last index stays, and its dataset is complete."""
    create(create_file)
    first, second = (npstream.Writer(memory, shard_size=SHARD) for _ in range(2))
    add(first, 7)
    add(second, 8)
    put, exists = RemoteStore.put, RemoteStore.exists

    def put_both(self, name, stored):
        """Store the index, and then the index of `second`."""
        put(self, name, stored)
        if name == INDEX and self is first._destination._store:
            second.close()

    def exists_for_first(self, name):
        """Return False to `second`, as if it had checked before the index was stored."""
        return exists(self, name) and self is not second._destination._store

    monkeypatch.setattr(RemoteStore, "put", put_both)
    monkeypatch.setattr(RemoteStore, "exists", exists_for_first)
    with pytest.raises(FileExistsError):
        first.close()
    assert_published(memory, None, 8, tmp_path / "cache")


# Failures


PARTS = [LOCK, "shard.00000.mds", "shard.00002.mds", "index.columns/v.npy", "index.msgpack", INDEX]


@pytest.mark.parametrize("part", PARTS)
def test_a_response_that_is_lost(part, memory, create, tmp_path):
    """The file is stored, and then the connection breaks. The retry finds the stored file."""
    failed_paths = []

    def break_once(function, filesystem, path, stored):
        function(filesystem, path, stored)
        if path.endswith(f"/{part}") and path not in failed_paths:
            failed_paths.append(path)
            raise ConnectionResetError

    create(break_once)
    write(memory, None, 7)
    assert failed_paths
    assert_published(memory, None, 7, tmp_path / "cache")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("is_stored", [False, True])
def test_an_upload_that_never_succeeds(part, is_stored, memory, create):
    def fail(function, filesystem, path, stored):
        is_part = path.endswith(f"/{part}")
        if is_stored or not is_part:
            function(filesystem, path, stored)
        if is_part:
            raise PermissionError if is_stored else ConnectionResetError

    create(fail)
    if (part, is_stored) == (INDEX, True):
        write(memory, None, 7)  # only the response was lost, and the index is stored
        return
    with pytest.raises(StorageError, match=part) as caught:
        write(memory, None, 7)
    assert not hasattr(caught.value, "__notes__")
    assert_no_files(memory)


def test_an_index_whose_upload_times_out_and_may_succeed_later(memory, create):
    released = threading.Event()

    def stall(function, filesystem, path, stored):
        if path.endswith(INDEX):
            released.wait(30)
        function(filesystem, path, stored)

    create(stall)
    with pytest.raises(TimeoutError) as caught:
        write(memory, None, 7, timeout=0.3, retries=0)
    (note,) = caught.value.__notes__
    assert "may still succeed, so its files stay" in note
    before = names(memory)
    assert {LOCK, "shard.00000.mds", "index.msgpack"} <= set(before)
    with pytest.raises(FileExistsError, match=rf"begun .* by process {os.getpid()} on "):
        write(memory, None, 8)
    released.set()


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[" * 1000, b"\xff", b"[1, 2]", b'"' * 5_000_000],
    ids=["empty", "other", "deep", "binary", "list", "long"],
)
def test_a_damaged_lock_file(tmp_path, upload, body):
    (tmp_path / LOCK).write_bytes(body)
    memory = upload(tmp_path)
    with pytest.raises(FileExistsError, match=r"is in progress or was interrupted(?! \(begun)"):
        write(memory, None, 8)


def test_a_lock_file_that_cannot_be_removed(memory, tmp_path, monkeypatch, caplog):
    def refuse(self, name):
        raise StorageError(errno.EACCES, "no right to delete", self.where(name))

    caplog.set_level("INFO", "npstream")
    monkeypatch.setattr(RemoteStore, "remove", refuse)
    monkeypatch.setattr(RemoteStore, "remove_all", lambda self, names: refuse(self, names[0]))
    write(memory, None, 7)
    assert "was published, but" in caplog.text
    with pytest.raises(ZeroDivisionError) as caught:
        npstream.write(f"{memory}/other", failing_samples(), shard_size=SHARD)
    assert "could not be removed" in caught.value.__notes__[-1]
    monkeypatch.undo()
    assert LOCK in names(memory)
    RemoteStore(memory).remove(LOCK)
    for name in names(f"{memory}/other"):
        RemoteStore(f"{memory}/other").remove(name)
    assert_published(memory, None, 7, tmp_path / "cache")


def test_files_of_a_published_index_are_never_removed(memory, tmp_path):
    """Another program stores a dataset at the URL, without a check for other writers."""
    write(tmp_path / "theirs", None, 8)
    writing = npstream.Writer(memory, shard_size=SHARD)
    add(writing, 7)
    for file in (tmp_path / "theirs").glob("*.*"):
        if file.suffix in (".mds", ".json"):
            RemoteStore(memory).put(file.name, file.read_bytes())
    with pytest.raises(FileExistsError):
        writing.close()
    assert names(memory) == sorted(
        file.name for file in (tmp_path / "theirs").iterdir() if file.suffix in (".mds", ".json")
    )
    assert set(npstream.open(memory, cache=tmp_path / "cache")["text"]) == {"8"}


def test_an_index_that_cannot_be_read_keeps_all_files(memory):
    writing = npstream.Writer(memory, shard_size=SHARD)
    add(writing, 7)
    RemoteStore(memory).put(INDEX, b"something else")
    before = set(names(memory))
    with pytest.raises(FileExistsError) as caught:
        writing.close()
    assert "could not be removed" in caught.value.__notes__[0]
    assert before <= set(names(memory))
    assert RemoteStore(memory).read(INDEX) == b"something else"


def test_files_that_others_have_replaced_stay_in_a_directory(tmp_path):
    writing = npstream.Writer(tmp_path / "out", shard_size=SHARD)
    add(writing, 7)
    (tmp_path / "out" / "shard.00001.mds").write_bytes(b"theirs")
    (tmp_path / "out" / "notes.txt").write_text("theirs")
    (tmp_path / "out" / INDEX).write_text("theirs")
    with pytest.raises(FileExistsError):
        writing.close()
    assert sorted(os.listdir(tmp_path / "out")) == [INDEX, "notes.txt", "shard.00001.mds"]


def test_a_file_server_that_repeats_a_request(tmp_path, monkeypatch):
    """The response to a link was lost. Its repetition fails, because the first one succeeded."""
    link = os.link

    def link_and_raise(old, new):
        link(old, new)
        raise FileExistsError(new)

    monkeypatch.setattr(os, "link", link_and_raise)
    write(tmp_path / "out", None, 7)
    monkeypatch.undo()
    assert_published(str(tmp_path / "out"), None, 7, tmp_path / "cache")


def test_writers_at_once_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(old, new):
        raise OSError(errno.EOPNOTSUPP, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    for number in range(10):
        url = str(tmp_path / f"{number}")
        writes = [contender(url, None, value) for value in (7, 7, 8)]
        assert_one_has_won(race(writes), url, None, [7, 7, 8], tmp_path / "cache")


@pytest.mark.parametrize("path", ["out", "a/b/c"])
def test_a_failed_write_removes_the_directories_that_it_created(path, tmp_path):
    for refused in ([{"x": object()}], [{"x": 1}, {"y": 2}], failing_samples()):
        with pytest.raises((TypeError, ValueError, KeyError, ZeroDivisionError)):
            npstream.write(tmp_path / path, refused, shard_size=SHARD)
        assert os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir(exist_ok=True)
    with pytest.raises(ZeroDivisionError):
        npstream.write(tmp_path / path, failing_samples(), shard_size=SHARD)
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == []


def test_a_directory_that_is_removed_is_created_again(tmp_path):
    """The first writer removes the directory that it created, and the second writer needs it."""
    first, second = (npstream.Writer(tmp_path / "a" / "out", shard_size=SHARD) for _ in range(2))
    second.write({"v": np.int64(7), "text": "7"})
    del first
    gc.collect()
    assert os.listdir(tmp_path) == []
    second.close()
    assert npstream.open(tmp_path / "a" / "out")[0]["v"] == 7


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_path_that_is_not_a_directory(path, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="Not a directory"):
        npstream.Writer(tmp_path / path)
    assert (tmp_path / "file").read_text() == "mine"


COLUMNS = {f"c{number}": np.arange(20) for number in range(40)}


def test_files_get_their_names_once_all_are_on_the_disk(tmp_path, monkeypatch):
    """All files are written, then all are synced, and then all but the index get their names.

    The index gets its name once the entries of all directories are on the disk. A file system
    would commit its journal once for each file that is synced alone.
    """
    calls: list[str] = []
    sync, link = os.fsync, os.link

    def record_sync(descriptor: int) -> None:
        calls.append("sync")
        sync(descriptor)

    def record_link(*paths: str) -> None:
        calls.append("link")
        link(*paths)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "link", record_link)
    npstream.write(tmp_path / "new", COLUMNS)
    steps = [(call, len(list(group))) for call, group in itertools.groupby(calls)]
    files = 41  # 40 columns and the side-car
    assert steps[:2] == [("sync", 1), ("link", 1)]  # the shard
    assert steps[2:4] == [("sync", files + 1), ("link", files)]  # the index is synced, too
    assert steps[4:] == [("sync", 3), ("link", 1), ("sync", 1)]  # directories; the index; its own
    assert npstream.open(tmp_path / "new")["c39"][-1] == 19


# The first call syncs the shard. The next 42 sync the columns, the side-car and the index.
@pytest.mark.parametrize("failing_call", [2, 20, 42])
def test_a_full_disk_at_one_of_many_files(failing_call, tmp_path, monkeypatch):
    count, sync = itertools.count(1), os.fsync

    def fail(descriptor: int) -> None:
        if next(count) == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"No space left.*cannot create this file.*index\."):
        npstream.write(tmp_path / "new", COLUMNS)
    assert not started_threads("npstream-sync")
    assert os.listdir(tmp_path) == []


def test_a_quota_that_is_exceeded_at_the_close_of_a_file(tmp_path, monkeypatch):
    def fail(self) -> None:
        if self.closed:
            return
        io.BufferedWriter.close(self)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    class Remote(io.BufferedWriter):
        close = fail

    monkeypatch.setattr(
        local.Draft, "open", lambda draft, folders: Remote(io.FileIO(draft.path, "xb"))
    )
    with pytest.raises(StorageError, match=r"quota.*cannot store this file"):
        npstream.write(tmp_path, COLUMNS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("max_threads", [0, 3])
def test_threads_that_cannot_be_started(max_threads, tmp_path, monkeypatch):
    started, start = [], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "npstream-sync":
            if len(started) == max_threads:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    npstream.write(tmp_path / "new", COLUMNS)
    assert len(started) == max_threads
    assert not started_threads("npstream-sync")
    assert npstream.open(tmp_path / "new")["c39"][-1] == 19


def test_few_files_take_no_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", None)
    npstream.write(tmp_path / "new", {"x": np.arange(3), "y": np.arange(3)})


def test_many_columns_are_written_as_the_interpreter_ends(tmp_path):
    code = (
        "import atexit, numpy as np, npstream\n"
        "columns = {f'c{number}': np.arange(20) for number in range(40)}\n"
        f"atexit.register(npstream.write, {str(tmp_path / 'new')!r}, columns)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert npstream.open(tmp_path / "new")["c39"][-1] == 19


def test_many_columns_are_written_in_a_forked_process(tmp_path):
    npstream.write(tmp_path / "one", COLUMNS)
    child = in_child(lambda: npstream.write(tmp_path / "two", COLUMNS))
    assert os.waitpid(child, 0)[1] == 0
    assert npstream.open(tmp_path / "two")["c39"][-1] == 19
