"""Interrupted and garbage-collected writers publish a whole dataset or leave nothing.

Killed writers, and those whose server is killed, publish no index.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from destinations import (
    SAMPLES,
    SHARD,
    WRITABLE,
    add,
    assert_no_files,
    assert_published,
    failing_samples,
    names,
    write,
)
from servers import SERVER_KINDS

import npstream
from npstream.errors import StorageError
from npstream.formats.index import INDEX
from npstream.storage import local
from npstream.storage.local import open_store
from npstream.writing import destination, engine, pipeline, writer

pytestmark = pytest.mark.usefixtures("short_pauses")

# Interruptions


MODULES = {module.__file__ for module in (destination, local, engine, pipeline, writer)}

# If `open` is interrupted, no code can close its file, and Python warns about it.
interruptions = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def small_heap():
    """Exclude existing objects from garbage collection, which would take most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def run_traced(work, function, on_line):
    """Call `work`, and call `on_line` before this thread runs each line of `MODULES`.

    Parameters
    ----------
    work : callable
    function : code, optional
        If given, only lines that run during a call of this function count.
    on_line : callable
        Called with the file name and the line number of each line.
    """

    def is_in_function(frame):
        while frame is not None and frame.f_code is not function:
            frame = frame.f_back
        return frame is not None

    def trace(frame, event, _):
        if frame.f_code.co_filename not in MODULES:
            return None
        if event == "line" and (function is None or is_in_function(frame)):
            on_line((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def interruption_steps(work, function=None):
    """Return the steps of the first and of the last run of each line. A step runs one line."""
    lines = []
    run_traced(work, function, lines.append)
    last_steps = {line: step for step, line in enumerate(lines)}
    first_steps = {line: step for step, line in reversed(list(enumerate(lines)))}
    return sorted({*first_steps.values(), *last_steps.values()})


def interrupt(step, work, function=None):
    """Call `work`, and raise KeyboardInterrupt before the line of a step."""
    steps = itertools.count()

    def on_line(_):
        if next(steps) == step:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run_traced(work, function, on_line)


def remaining_names(url):
    """Return the names of the files at a URL, after unused writers are garbage-collected."""
    if remaining := names(url):
        gc.collect()
        remaining = names(url)
    return remaining


@interruptions
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_an_interruption_at_any_line_leaves_all_or_nothing(kind, tmp_path, memory):
    def work(number):
        where = f"{tmp_path}/a" if kind == "directory" else memory
        npstream.write(f"{where}/{number}", {"v": np.arange(2)}, shard_size=1)
        return f"{where}/{number}"

    expected = names(work("whole"))
    steps = interruption_steps(lambda: work("traced"))
    published = 0
    for number in steps:
        interrupt(number, partial(work, number))
        url = f"{tmp_path}/a/{number}" if kind == "directory" else f"{memory}/{number}"
        if remaining_names(url):
            published += 1
            assert names(url) == expected
            assert npstream.verify_dataset(url).problems == ()
        else:
            assert_no_files(url)
    assert len(steps) > 150  # the modules were traced
    assert 1 <= published < len(steps) / 2


@interruptions
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize(("kind_of_data", "size"), [("samples", 1), ("batches", 300)])
def test_an_interruption_that_a_loop_survives_loses_no_sample(kind_of_data, size, tmp_path):
    """All written samples are published, or nothing is, and then the writer raises."""
    written = []

    def work(number):
        written.clear()
        with (
            contextlib.suppress(ValueError),
            npstream.Writer(tmp_path / str(number), {"v": "str"}, shard_size=size) as out,
        ):
            for k in range(4):
                rows = npstream.Batch({"v": ["x" * 50, str(k)]})
                with contextlib.suppress(KeyboardInterrupt):
                    out.write({"v": str(k)} if kind_of_data == "samples" else rows)
                    written.append(k)

    steps, published = interruption_steps(lambda: work("traced")), 0
    for number in steps:
        interrupt(number, partial(work, number))
        url = str(tmp_path / str(number))
        if remaining_names(url):
            published += 1
            stored = [int(value) for value in npstream.open(url)["v"] if value[0] != "x"]
            assert stored == sorted(set(stored))
            assert set(written) <= set(stored)
        else:
            assert_no_files(url)
    assert len(steps) > 100  # the modules were traced
    assert published


@interruptions
@pytest.mark.usefixtures("small_heap")
@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_an_interruption_while_a_failed_write_is_removed(kind, tmp_path, memory):
    def work(number):
        where = str(tmp_path) if kind == "directory" else memory
        with contextlib.suppress(ZeroDivisionError):
            npstream.write(f"{where}/{number}", failing_samples(), shard_size=SHARD)

    remove = destination.Destination.remove.__code__
    steps = interruption_steps(lambda: work("traced"), remove)
    for number in steps:
        interrupt(number, partial(work, number), remove)
        gc.collect()
        assert_no_files(f"{tmp_path}/{number}" if kind == "directory" else f"{memory}/{number}")
    assert len(steps) > 20  # the removal was traced


@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_a_writer_that_is_garbage_collected_leaves_nothing(kind, thread, tmp_path, memory):
    url = str(tmp_path / "out") if kind == "directory" else memory

    def write_without_close():
        writing = npstream.Writer(url, shard_size=SHARD)
        add(writing, 7)
        assert names(url)

    if thread == "main":
        write_without_close()
    else:
        other_thread = threading.Thread(target=write_without_close)
        other_thread.start()
        other_thread.join()
    for running_thread in threading.enumerate():
        if running_thread.name == "npstream-remove":
            running_thread.join()
    assert_no_files(url)


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
    process = run_python(code, str(tmp_path / "out"))
    assert process.returncode == 0, process.stderr
    assert "this write belongs to process" in process.stdout
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
        fresh = servers[kind].new_directory()
        url, options = fresh.url, fresh.storage_options
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, url, json.dumps(options), str(shards)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "shards\n"
        process.send_signal(signal.SIGKILL)
    remaining = names(url, options)
    assert INDEX not in remaining
    with pytest.raises(FileNotFoundError):
        npstream.open(url, storage_options=options, cache=tmp_path / "cache")
    if remaining:
        with pytest.raises(FileExistsError, match="in progress or was interrupted") as caught:
            write(url, options, 7)
        assert kind == "directory" or f"by process {process.pid} on " in str(caught.value)
        assert names(url, options) == remaining
        for name in remaining:
            open_store(url, options).remove(name)
    write(url, options, 7)
    assert_published(url, options, 7, tmp_path / "cache")


def test_hidden_files_of_a_writer_that_was_killed(tmp_path):
    (tmp_path / ".shard.00000.mds.0123456789abcdef.tmp").write_bytes(b"half")
    with pytest.raises(
        FileExistsError, match=r"interrupted.*\.shard\.00000\.mds\.0123456789abcdef"
    ):
        npstream.write(tmp_path, [{"x": 1}])


# The server goes away


def kill(process):
    """Kill a process and its descendants, which may be in other sessions."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    killed = {process.pid}
    while children := {pid for pid, parent in parents.items() if parent in killed} - killed:
        killed |= children
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("kind", WRITABLE)
def test_a_server_that_is_killed_in_mid_write(kind, tmp_path, servers):
    servers[kind]  # skips the test where it is not installed
    server = SERVER_KINDS[kind](tmp_path)
    server.start()
    try:
        fresh = server.new_directory()
        writing = npstream.Writer(
            fresh.url, shard_size=SHARD, storage_options=fresh.storage_options
        )
        add(writing, 7, SAMPLES // 2)
        writing._shards.finish()  # before the timeout is shortened
        kill(server.process)
        writing._destination._store.timeout = 0.5
        with pytest.raises(StorageError) as caught:
            add(writing, 7, 100 * SAMPLES)
        assert any("could not be removed" in note for note in caught.value.__notes__)
        server.start()
        again = server.directory_at(fresh.path)
        url, options = again.url, again.storage_options
        with pytest.raises(FileNotFoundError):
            npstream.open(url, storage_options=options, cache=tmp_path / "cache")
        if remaining := names(url, options):  # some servers store files in memory
            with pytest.raises(FileExistsError, match="was interrupted"):
                write(url, options, 8)
            assert names(url, options) == remaining
            for name in remaining:
                open_store(url, options).remove(name)
        write(url, options, 8)
        with npstream.open(url, storage_options=options, cache=tmp_path / "cache") as ds:
            assert ds["v"].load().tolist() == [8] * SAMPLES
    finally:
        server.stop()
