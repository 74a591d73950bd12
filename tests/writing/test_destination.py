"""Writes that meet others, fail or are killed: what is published stays, and nothing else does."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest
from servers import KINDS

import npstream
from npstream.errors import StorageError
from npstream.storage import drivers
from npstream.storage import local as store
from npstream.storage import requests as jobs
from npstream.storage.local import open_store
from npstream.storage.remote import RemoteStore
from npstream.writing import destination as publish
from npstream.writing import writer
from npstream.writing.destination import INDEX, LOCK

WRITABLE = [name for name in KINDS if name != "http"]
SAMPLES = 24
SHARD = 300  # bytes, so that there are several


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(jobs, "_BACK_OFF", 0.001)


@pytest.fixture
def memory(request):
    """Return the URL of an empty directory in memory."""
    yield f"memory://{request.node.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["directory", "memory", *WRITABLE])
def place(request, tmp_path):
    """Return a URL that holds nothing, and its options: of each kind of store."""
    if request.param == "directory":
        yield str(tmp_path / "new"), None
    elif request.param == "memory":
        yield request.getfixturevalue("memory"), None
    else:
        fresh = request.getfixturevalue("servers")[request.param].fresh()
        yield fresh.url, fresh.storage_options


@pytest.fixture
def create(monkeypatch):
    """Return a function that replaces how the store in memory creates a file."""

    def replace(function):
        driver = drivers.SCHEMES["memory"]
        wrapped = function and (lambda *given: function(driver.create, *given))
        changed = dataclasses.replace(driver, create=wrapped)
        monkeypatch.setitem(drivers.SCHEMES, "memory", changed)

    return replace


def add(writing, value, samples=SAMPLES):
    for _ in range(samples):
        writing.write({"v": np.int64(value), "text": str(value)})


def write(url, options, value, **settings):
    """Write a dataset of one value, and return the report."""
    return npstream.write(url, data(value), shard_size=SHARD, storage_options=options, **settings)


def data(value):
    return {"v": np.full(SAMPLES, value), "text": [str(value)] * SAMPLES}


def names(url, options=None):
    return sorted(name for name, _ in open_store(url, options).names())


def assert_published(url, options, value, cache):
    """Fail unless a place holds one dataset of that value, whole, and nothing else."""
    with npstream.open(url, storage_options=options, cache=cache) as ds:
        assert ds["v"].load().tolist() == [value] * SAMPLES
        assert set(ds["text"]) == {str(value)}
        shards = [name for shard in range(len(ds.shards)) for name in files(ds, shard)]
    assert npstream.verify_dataset(url, storage_options=options).problems == ()
    there = names(url, options)
    columns = [name for name in there if name.startswith("index.columns/")]
    assert len(columns) == 1
    assert there == sorted([INDEX, "index.msgpack", *columns, *shards])


def files(ds, shard):
    named = ds._source.index.files(shard)
    return [(named.zip_data or named.data).name]


def assert_nothing(url, options=None):
    """Fail if anything is left in a place that a write made."""
    assert names(url, options) == []
    where = open_store(url, options)
    if where.is_local:
        assert not Path(url).exists()
    elif url.startswith("sftp"):
        filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
        assert not filesystem.exists(path)


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
    message = r"is here.*no index, as a write is under way or was cut off"
    with pytest.raises(FileExistsError, match=message):
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


def failing():
    for _ in range(SAMPLES):
        yield {"v": np.int64(1), "text": "1"}
    raise ZeroDivisionError


# What a write asks of a store


@pytest.mark.parametrize("kind", ["s3", "azure", "oci"])
def test_requests_of_a_write(kind, servers):
    """Every file is stored once; only the lock file is stored twice, refused once, and deleted."""
    proxy = servers.proxy(kind)
    fresh = servers[kind].fresh().through(proxy)
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
    fresh = servers["s3"].fresh()
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
    assert "may still appear, so its files stay" in note
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
    with pytest.raises(FileExistsError, match=r"is under way or was cut off(?! \(begun)"):
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
    assert "could not be removed" in caught.value.__notes__[0]
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


# Interruptions


MODULES = {module.__file__ for module in (publish, store, writer)}

# A file that is interrupted while it is being opened is closed by nobody.
interruptions = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def small_heap():
    """Collect only what is made from now on, as most of these tests' time would go there."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def traced(work, within, seen):
    """Do some work, and call a function before each line of this thread that writes.

    Parameters
    ----------
    work : callable
    within : code, optional
        Only lines count that are run while this function is running.
    seen : callable
        Given the place of a line.
    """

    def is_within(frame):
        while frame is not None and frame.f_code is not within:
            frame = frame.f_back
        return frame is not None

    def trace(frame, event, _):
        if frame.f_code.co_filename not in MODULES:
            return None
        if event == "line" and (within is None or is_within(frame)):
            seen((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def moments(work, within=None):
    """Return the first and the last time that each line is run, as numbers of lines."""
    lines = []
    traced(work, within, lines.append)
    times = {line: number for number, line in enumerate(lines)}
    times |= {line: number for number, line in reversed(list(enumerate(lines)))}
    return sorted({*times.values(), *{line: k for k, line in enumerate(lines)}.values()})


def interrupt(number, work, within=None):
    """Do some work until so many of its lines were run."""
    lines = itertools.count()

    def seen(_):
        if next(lines) == number:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        traced(work, within, seen)


def settle(url):
    """Return the names of what is in a place once nothing refers to a writer any more."""
    if found := names(url):
        gc.collect()
        found = names(url)
    return found


@interruptions
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_an_interruption_at_any_line_leaves_all_or_nothing(kind, tmp_path, memory):
    def work(number):
        where = f"{tmp_path}/a" if kind == "directory" else memory
        npstream.write(f"{where}/{number}", {"v": np.arange(2)}, shard_size=1)
        return f"{where}/{number}"

    expected = names(work("whole"))
    times = moments(lambda: work("traced"))
    published = 0
    for number in times:
        interrupt(number, partial(work, number))
        url = f"{tmp_path}/a/{number}" if kind == "directory" else f"{memory}/{number}"
        if settle(url):
            published += 1
            assert names(url) == expected
            assert npstream.verify_dataset(url).problems == ()
        else:
            assert_nothing(url)
    assert len(times) > 150
    assert 1 <= published < len(times) / 2


@interruptions
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize(("how", "size"), [("samples", 1), ("batches", 300)])
def test_an_interruption_that_a_loop_survives_loses_no_sample(how, size, tmp_path):
    """What was written is published all the same, or nothing is, and the writer says so."""
    done = []

    def work(number):
        done.clear()
        with (
            contextlib.suppress(ValueError),
            npstream.Writer(tmp_path / str(number), {"v": "str"}, shard_size=size) as out,
        ):
            for k in range(4):
                rows = npstream.Batch({"v": ["x" * 50, str(k)]})
                with contextlib.suppress(KeyboardInterrupt):
                    out.write({"v": str(k)} if how == "samples" else rows)
                    done.append(k)

    times, published = moments(lambda: work("traced")), 0
    for number in times:
        interrupt(number, partial(work, number))
        url = str(tmp_path / str(number))
        if settle(url):
            published += 1
            found = [int(value) for value in npstream.open(url)["v"] if value[0] != "x"]
            assert found == sorted(set(found))
            assert set(done) <= set(found)
        else:
            assert_nothing(url)
    assert len(times) > 100
    assert published


@interruptions
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_an_interruption_while_a_failed_write_is_removed(kind, tmp_path, memory):
    def work(number):
        where = str(tmp_path) if kind == "directory" else memory
        with contextlib.suppress(ZeroDivisionError):
            npstream.write(f"{where}/{number}", failing(), shard_size=SHARD)

    removing = publish.Destination.remove.__code__
    times = moments(lambda: work("traced"), removing)
    for number in times:
        interrupt(number, partial(work, number), removing)
        gc.collect()
        assert_nothing(f"{tmp_path}/{number}" if kind == "directory" else f"{memory}/{number}")
    assert len(times) > 20


@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_a_writer_that_is_given_up_leaves_nothing(kind, thread, tmp_path, memory):
    url = str(tmp_path / "out") if kind == "directory" else memory

    def give_up():
        writing = npstream.Writer(url, shard_size=SHARD)
        add(writing, 7)
        assert names(url)

    if thread == "main":
        give_up()
    else:
        running = threading.Thread(target=give_up)
        running.start()
        running.join()
    for removing in threading.enumerate():
        if removing.name == "npstream-remove":
            removing.join()
    assert_nothing(url)


def run_python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_a_process_that_ends_with_an_open_writer_leaves_nothing(tmp_path):
    code = """
import sys, npstream
writing = npstream.Writer(sys.argv[1], shard_size=300)
for _ in range(24):
    writing.write({"v": 1, "text": "1"})
raise SystemExit(3)
"""
    assert run_python(code, str(tmp_path / "a" / "out")).returncode == 3
    assert os.listdir(tmp_path) == []


def test_a_forked_process_leaves_its_parents_files(tmp_path):
    code = """
import os, sys, npstream
with npstream.Writer(sys.argv[1], shard_size=300) as writing:
    for _ in range(12):
        writing.write({"v": 1, "text": "1"})
    if (child := os.fork()) == 0:
        try:
            while True:
                writing.write({"v": 2, "text": "2"})
        except RuntimeError as error:
            print(error, flush=True)
            sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for _ in range(12):
        writing.write({"v": 1, "text": "1"})
"""
    done = run_python(code, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "this write belongs to process" in done.stdout
    assert npstream.open(tmp_path / "out")["v"].load().tolist() == [1] * SAMPLES
    assert npstream.verify_dataset(tmp_path / "out").problems == ()


KILLED = """
import json, sys
import numpy as np, npstream
url, options, shards = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
writing = npstream.Writer(url, shard_size=1, storage_options=options)
for k in range(shards):
    writing.write({"v": np.int64(k)})
print("shards", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("kind", "shards"),
    [("directory", 1), ("directory", 2), ("directory", 7), ("s3", 2), ("sftp", 7)],
)
def test_a_writer_that_is_killed(kind, shards, tmp_path, servers):
    if kind == "directory":
        url, options = str(tmp_path / "out"), None
    else:
        fresh = servers[kind].fresh()
        url, options = fresh.url, fresh.storage_options
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, url, json.dumps(options), str(shards)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "shards\n"
        process.send_signal(signal.SIGKILL)
    left = names(url, options)
    assert INDEX not in left
    with pytest.raises(FileNotFoundError):
        npstream.open(url, storage_options=options, cache=tmp_path / "cache")
    if left:
        with pytest.raises(FileExistsError, match="under way or was cut off") as caught:
            write(url, options, 7)
        assert kind == "directory" or f"by process {process.pid} on " in str(caught.value)
        assert names(url, options) == left
        for name in left:
            open_store(url, options).remove(name)
    write(url, options, 7)
    assert_published(url, options, 7, tmp_path / "cache")


def test_hidden_files_of_a_writer_that_was_killed(tmp_path):
    (tmp_path / ".shard.00000.mds.0123456789abcdef.tmp").write_bytes(b"half")
    with pytest.raises(FileExistsError, match=r"cut off.*\.shard\.00000\.mds\.0123456789abcdef"):
        npstream.write(tmp_path, [{"x": 1}])


# The server goes away


def kill(process):
    """Kill a process and those that it started, which may have sessions of their own."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    killed = {process.pid}
    while more := {pid for pid, parent in parents.items() if parent in killed} - killed:
        killed |= more
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("kind", WRITABLE)
def test_a_server_that_is_killed_in_mid_write(kind, tmp_path, servers):
    servers[kind]  # skips the test where it is not installed
    server = KINDS[kind](tmp_path)
    server.start()
    try:
        fresh = server.fresh()
        writing = npstream.Writer(
            fresh.url, shard_size=SHARD, storage_options=fresh.storage_options
        )
        add(writing, 7, SAMPLES // 2)
        kill(server.process)
        writing._destination._store.timeout = 0.5
        with pytest.raises(StorageError) as caught:
            add(writing, 7, 100 * SAMPLES)
        assert any("could not be removed" in note for note in caught.value.__notes__)
        server.start()
        again = server.at(fresh.path)
        url, options = again.url, again.storage_options
        with pytest.raises(FileNotFoundError):
            npstream.open(url, storage_options=options, cache=tmp_path / "cache")
        if left := names(url, options):  # some keep all in memory
            with pytest.raises(FileExistsError, match="cut off"):
                write(url, options, 8)
            assert names(url, options) == left
            for name in left:
                open_store(url, options).remove(name)
        write(url, options, 8)
        with npstream.open(url, storage_options=options, cache=tmp_path / "cache") as ds:
            assert ds["v"].load().tolist() == [8] * SAMPLES
    finally:
        server.stop()
