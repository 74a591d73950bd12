"""Writes that meet others, fail or are killed: what is published stays, and nothing else does."""

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
    assert_nothing,
    assert_published,
    failing,
    names,
    write,
)

import npstream
from npstream.errors import StorageError
from npstream.formats.index import INDEX
from npstream.storage import local
from npstream.storage.remote import RemoteStore
from npstream.writing.destination import LOCK

pytestmark = pytest.mark.usefixtures("short_pauses")

# Several writers at once


def race(writes):
    """Do several writes from one moment on; return what each came to."""
    results = [None] * len(writes)
    together = threading.Barrier(len(writes))

    def run(number, work):
        try:
            results[number] = work(together.wait)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(writes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def contender(url, options, value, compression=None, delays=None):
    """Return a write that begins with others; with `delays`, it stops for a while at each shard."""

    def work(wait):
        settings = {"shard_size": SHARD, "compression": compression, "storage_options": options}
        with npstream.Writer(url, **settings) as writing:
            wait()
            for _ in range(SAMPLES):
                writing.write({"v": np.int64(value), "text": str(value)})
                if delays is not None:
                    threading.Event().wait(delays.random() / 500)
        return writing.close()

    return work


def assert_one_has_won(results, url, options, values, cache):
    reports = [number for number, found in enumerate(results) if not isinstance(found, Exception)]
    others = [found for found in results if isinstance(found, Exception)]
    assert len(reports) == 1, results
    for error in others:
        assert isinstance(error, FileExistsError), error
        assert isinstance(error, StorageError), error
    assert_published(url, options, values[reports[0]], cache)


@pytest.mark.parametrize("writers", [2, 3])
def test_writers_at_once(place, writers, tmp_path):
    url, options = place
    values = [7, 7, 8][:writers]  # two write the same, as ranks do that all run one script
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
    running = [subprocess.Popen([*command, str(k)], text=True, **pipes) for k in range(3)]
    for process in running:
        assert process.stdout.readline() == "open\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in running]
    won = [k for k, process in enumerate(running) if process.returncode == 0]
    assert len(won) == 1, errors
    assert all("StorageExistsError" in text for k, text in enumerate(errors) if k not in won)
    assert_published(str(tmp_path / "out"), None, won[0], tmp_path / "cache")


def test_a_refused_writer_leaves_what_another_has_published(place, tmp_path):
    url, options = place
    late = npstream.Writer(url, storage_options=options, shard_size=SHARD)
    write(url, options, 7)
    late.write({"v": -1})
    with pytest.raises(FileExistsError, match="a dataset, or a part of one, is here"):
        late.close()
    with pytest.raises(FileExistsError):
        write(url, options, 8)
    assert_published(url, options, 7, tmp_path / "cache")


def test_a_refused_writer_leaves_what_another_is_writing(place, tmp_path):
    url, options = place
    early, late = (
        npstream.Writer(url, storage_options=options, shard_size=SHARD) for _ in range(2)
    )
    add(early, 7, SAMPLES // 2)
    early._shards.finish()
    message = r"is here.*no index, as a write is in progress or was interrupted"
    with pytest.raises(FileExistsError, match=message), late:
        add(late, 8)
    with pytest.raises(FileExistsError, match=message):
        write(url, options, 8)
    with pytest.raises(FileNotFoundError):  # a reader sees nothing yet
        npstream.open(url, storage_options=options, cache=tmp_path / "cache")
    add(early, 7, SAMPLES // 2)
    early.close()
    assert_published(url, options, 7, tmp_path / "cache")
    shards = [name for name in names(url, options) if name.startswith("shard.")]
    assert shards == [f"shard.{number:05}.mds" for number in range(4)]


def test_a_write_that_fails_leaves_nothing(place):
    url, options = place
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            npstream.write(url, failing(), shard_size=SHARD, storage_options=options)
    assert_nothing(url, options)


# What a write asks of a store


@pytest.mark.parametrize("kind", ["s3", "azure", "oci"])
def test_requests_of_a_write(kind, servers):
    """Every file is stored once; only the lock file is stored twice, refused once, and deleted."""
    proxy = servers.proxy(kind)
    fresh = servers[kind].new_directory().via(proxy)
    report = write(fresh.url, fresh.storage_options, 7)
    stored = [(file_of(r.path), r.status) for r in proxy.log if r.method == "PUT"]
    (lock, created), (again, refused) = stored[:2]
    assert (lock, again, created < 300, refused in (409, 412)) == (LOCK, LOCK, True, True)
    there = names(fresh.url, fresh.storage_options)
    assert sorted(name for name, _ in stored[2:]) == sorted(map(file_of, there))
    assert stored[-1][0] == INDEX
    assert len(stored) == 2 + report.shards + 3
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


def lying(create, filesystem, path, data):
    """Ignore the condition, as servers do that do not know it."""
    filesystem.pipe_file(path, data)


def unsupported(create, filesystem, path, data):
    """Answer that this is not implemented."""
    raise OSError(errno.EOPNOTSUPP, "not implemented")


WITHOUT = pytest.mark.parametrize(
    "way", [lying, unsupported, None], ids=["lies", "refuses", "none"]
)


@WITHOUT
def test_names_of_a_writes_own(way, memory, create, tmp_path):
    create(way)
    report = write(memory, None, 7)
    assert_published(memory, None, 7, tmp_path / "cache")
    shards = [name for name in names(memory) if name.startswith("shard.")]
    mark = shards[0].split(".")[1]
    assert shards == [f"shard.{mark}.{number:05}.mds" for number in range(report.shards)]
    assert f"index.columns/{mark}.v.npy" in names(memory)
    with pytest.raises(FileExistsError):
        write(memory, None, 8)
    with pytest.raises(ZeroDivisionError):
        npstream.write(f"{memory}/other", failing(), shard_size=SHARD)
    assert_nothing(f"{memory}/other")


@WITHOUT
def test_writers_of_names_of_their_own(way, memory, create, tmp_path):
    create(way)
    early, late = (npstream.Writer(memory, shard_size=SHARD) for _ in range(2))
    add(late, 8)
    add(early, 7)
    early.close()
    with pytest.raises(FileExistsError):
        late.close()
    assert_published(memory, None, 7, tmp_path / "cache")


@WITHOUT
def test_an_index_that_is_replaced_at_the_same_moment(way, memory, create, tmp_path, monkeypatch):
    """Where a store cannot tell two apart, one of them is there in the end, and whole."""
    create(way)
    first, second = (npstream.Writer(memory, shard_size=SHARD) for _ in range(2))
    add(first, 7)
    add(second, 8)
    put, exists = RemoteStore.put, RemoteStore.exists

    def overtaken(self, name, stored):
        """Store the index, and then that of the other, which has looked for it before."""
        put(self, name, stored)
        if name == INDEX and self is first._destination._store:
            second.close()

    def looked(self, name):
        return exists(self, name) and self is not second._destination._store

    monkeypatch.setattr(RemoteStore, "put", overtaken)
    monkeypatch.setattr(RemoteStore, "exists", looked)
    with pytest.raises(FileExistsError):
        first.close()
    assert_published(memory, None, 8, tmp_path / "cache")


# Failures


PARTS = [LOCK, "shard.00000.mds", "shard.00002.mds", "index.columns/v.npy", "index.msgpack", INDEX]


@pytest.mark.parametrize("part", PARTS)
def test_an_answer_that_is_lost(part, memory, create, tmp_path):
    """The file is stored, and then the connection breaks: the next attempt finds it there."""
    lost = []

    def break_once(function, filesystem, path, stored):
        function(filesystem, path, stored)
        if path.endswith(f"/{part}") and path not in lost:
            lost.append(path)
            raise ConnectionResetError

    create(break_once)
    write(memory, None, 7)
    assert lost
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
        write(memory, None, 7)  # only the answer was lost, and it is there
        return
    with pytest.raises(StorageError, match=part) as caught:
        write(memory, None, 7)
    assert not hasattr(caught.value, "__notes__")
    assert_nothing(memory)


def test_an_index_of_which_nobody_knows_whether_it_is_stored(memory, create):
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
        npstream.write(f"{memory}/other", failing(), shard_size=SHARD)
    assert "could not be removed" in caught.value.__notes__[-1]
    monkeypatch.undo()
    assert LOCK in names(memory)
    RemoteStore(memory).remove(LOCK)
    for name in names(f"{memory}/other"):
        RemoteStore(f"{memory}/other").remove(name)
    assert_published(memory, None, 7, tmp_path / "cache")


def test_what_a_published_index_names_is_never_removed(memory, tmp_path):
    """Another program takes the place meanwhile, without asking who writes there."""
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


def test_an_index_that_cannot_be_read_keeps_all(memory):
    writing = npstream.Writer(memory, shard_size=SHARD)
    add(writing, 7)
    RemoteStore(memory).put(INDEX, b"something else")
    before = set(names(memory))
    with pytest.raises(FileExistsError) as caught:
        writing.close()
    assert "could not be removed" in caught.value.__notes__[0]
    assert before <= set(names(memory))
    assert RemoteStore(memory).read(INDEX) == b"something else"


def test_what_others_write_over_stays_in_a_directory(tmp_path):
    writing = npstream.Writer(tmp_path / "out", shard_size=SHARD)
    add(writing, 7)
    (tmp_path / "out" / "shard.00001.mds").write_bytes(b"theirs")
    (tmp_path / "out" / "notes.txt").write_text("theirs")
    (tmp_path / "out" / INDEX).write_text("theirs")
    with pytest.raises(FileExistsError):
        writing.close()
    assert sorted(os.listdir(tmp_path / "out")) == [INDEX, "notes.txt", "shard.00001.mds"]


def test_a_server_of_files_that_repeats_a_request(tmp_path, monkeypatch):
    """The answer to a link was lost, and its repetition finds the name taken, by itself."""
    link = os.link

    def repeated(old, new):
        link(old, new)
        raise FileExistsError(new)

    monkeypatch.setattr(os, "link", repeated)
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
def test_directories_that_a_write_made_go_with_it(path, tmp_path):
    for refused in ([{"x": object()}], [{"x": 1}, {"y": 2}], failing()):
        with pytest.raises((TypeError, ValueError, KeyError, ZeroDivisionError)):
            npstream.write(tmp_path / path, refused, shard_size=SHARD)
        assert os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir(exist_ok=True)
    with pytest.raises(ZeroDivisionError):
        npstream.write(tmp_path / path, failing(), shard_size=SHARD)
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == []


def test_a_directory_that_vanishes_is_made_anew(tmp_path):
    """As when another write that had made it gives up."""
    early, late = (npstream.Writer(tmp_path / "a" / "out", shard_size=SHARD) for _ in range(2))
    late.write({"v": np.int64(7), "text": "7"})
    del early
    gc.collect()
    assert os.listdir(tmp_path) == []
    late.close()
    assert npstream.open(tmp_path / "a" / "out")[0]["v"] == 7


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_place_that_is_no_directory(path, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="Not a directory"):
        npstream.Writer(tmp_path / path)
    assert (tmp_path / "file").read_text() == "mine"


def test_files_get_their_names_once_all_are_on_the_disk(tmp_path, monkeypatch):
    """Written all, synced all, named all: a sync for each file alone takes a commit for each."""
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
    columns = {f"c{number}": np.arange(20) for number in range(40)}
    npstream.write(tmp_path / "new", columns)
    steps = [(call, len(list(group))) for call, group in itertools.groupby(calls)]
    files = 41  # columns and the side-car; before them a shard; then directories, the index
    assert steps[:5] == [("sync", 1), ("link", 1), ("sync", files), ("link", files), ("sync", 4)]
    assert steps[5:] == [("link", 1), ("sync", 3)]
    assert npstream.open(tmp_path / "new")["c39"][-1] == 19


COLUMNS = {f"c{number}": np.arange(20) for number in range(40)}


def sync_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "npstream-sync"]


@pytest.mark.parametrize("failing", [2, 20, 42])
def test_one_of_many_files_that_the_disk_does_not_take(failing, tmp_path, monkeypatch):
    count, sync = itertools.count(1), os.fsync

    def fail(descriptor: int) -> None:
        if next(count) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"No space left.*cannot create this file.*index\."):
        npstream.write(tmp_path / "new", COLUMNS)
    assert sync_threads() == []
    assert os.listdir(tmp_path) == []


def test_a_file_whose_close_tells_of_a_full_disk(tmp_path, monkeypatch):
    def fail(self) -> None:
        if self.closed:
            return
        io.BufferedWriter.close(self)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    class Remote(io.BufferedWriter):
        close = fail

    monkeypatch.setattr(
        local.Draft, "open", lambda draft, made: Remote(io.FileIO(draft.path, "xb"))
    )
    with pytest.raises(StorageError, match=r"quota.*cannot store this file"):
        npstream.write(tmp_path, COLUMNS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("most", [0, 3])
def test_threads_that_cannot_be_started(most, tmp_path, monkeypatch):
    started, start = [], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "npstream-sync":
            if len(started) == most:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    npstream.write(tmp_path / "new", COLUMNS)
    assert len(started) == most
    assert sync_threads() == []
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
