"""Writes with ``resume=True`` that fail, are refused, or run at the same time as another write."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import re
import resource
import signal

import numpy as np
import pandas as pd
import pytest
from children import fork_child, run_in_child, wait_for_child
from resumed_writes import local_files, parts, sample

import npstream
from npstream.errors import StorageError
from npstream.writing.destination import WORK
from npstream.writing.inputs.parts import Part, PartedInput


def numbers(stop=None, count=300):
    """Yield samples, and raise before number `stop`."""
    for number in range(count):
        if number == stop:
            raise ZeroDivisionError
        yield {"x": number, "text": "t" * (number % 5)}


def write(path, data, **settings):
    return npstream.write(path, data, **{"shard_size": 400, "resume": True, **settings})


def begin(path, data=None, stop=200, **settings):
    """Write some of the samples and fail, so that whole shards stay."""
    with pytest.raises(ZeroDivisionError):
        write(path, numbers(stop) if data is None else data, **settings)
    assert WORK in local_files(path)


@pytest.fixture
def whole(tmp_path):
    npstream.write(tmp_path / "whole", numbers(), shard_size=400)
    return local_files(tmp_path / "whole")


# Exceptions


def test_an_exception_names_the_sample_and_keeps_the_whole_shards(tmp_path, whole):
    with pytest.raises(ZeroDivisionError) as caught:
        write(tmp_path / "ds", numbers(200))
    notes = "\n".join(caught.value.__notes__)
    assert "raised by data, instead of sample 200" in notes
    assert re.search(rf"{tmp_path / 'ds'} keeps \d+ whole shards, which readers do not see", notes)
    with pytest.raises(FileNotFoundError, match="repeat its call with resume=True"):
        npstream.open(tmp_path / "ds")
    shards = local_files(tmp_path / "ds")
    del shards[WORK]
    assert shards == {name: whole[name] for name in shards}
    assert len(shards) > 5

    def bad():
        yield from itertools.islice(numbers(), 250)
        yield {"x": "no number", "text": ""}

    with pytest.raises(TypeError, match="sample 250: column 'x'"):
        write(tmp_path / "ds", bad())
    assert local_files(tmp_path / "ds").keys() > shards.keys()

    def map_sample(each):
        raise KeyError(each["x"])

    write(tmp_path / "ds", numbers())
    assert local_files(tmp_path / "ds") == whole
    with pytest.raises(KeyError) as caught:
        write(tmp_path / "mapped", numbers(), map=map_sample)
    assert "in map=, sample 0 of data" in caught.value.__notes__
    assert not (tmp_path / "mapped").exists()


def test_nothing_stays_before_the_first_shard(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        write(tmp_path / "ds", numbers(3))
    assert "keeps" not in str(caught.value.__notes__)
    assert not (tmp_path / "ds").exists()


def test_a_write_without_resume_says_how_to_go_on(tmp_path):
    begin(tmp_path / "ds")
    former_files = local_files(tmp_path / "ds")
    with pytest.raises(FileExistsError, match="to continue that write, repeat its call"):
        npstream.write(tmp_path / "ds", numbers(), shard_size=400)
    assert local_files(tmp_path / "ds") == former_files


def test_a_writer_goes_on(tmp_path, whole):
    rows = list(numbers())
    seen = []
    for stop in (0, 90, 91, 200, 300):
        writer = npstream.Writer(tmp_path / "ds", shard_size=400, resume=True)
        seen.append(writer.input_samples)
        for row in rows[writer.input_samples : stop]:
            writer.write(row)
        if stop < 300:
            del writer  # without `close`, like a program that ends early
            gc.collect()
    assert seen == sorted(seen)
    assert 0 < seen[2] <= 90 < seen[4] <= 200
    assert writer.close().samples == 300
    assert local_files(tmp_path / "ds") == whole
    assert npstream.Writer(tmp_path / "other").input_samples == 0


def test_a_writer_counts_samples_that_are_left_out(tmp_path):
    rows = [{"x": "bad" if k % 4 == 0 else k} for k in range(100)]
    settings = {"columns": {"x": "int64"}, "on_error": "skip", "shard_samples": 5, "resume": True}

    def write_rows(stop):
        with npstream.Writer(tmp_path / "ds", rejects=tmp_path / "rejects", **settings) as writer:
            for row in rows[writer.input_samples : stop]:
                writer.write(row)
            if stop < len(rows):
                raise ZeroDivisionError
        return writer

    with pytest.raises(ZeroDivisionError):
        write_rows(50)
    # The first 47 rows fill 7 shards of 5. A shard that waits for a thread is dropped.
    assert 0 < write_rows(100).input_samples <= 47
    assert npstream.open(tmp_path / "ds")["x"].load().tolist() == [k for k in range(100) if k % 4]
    assert len((tmp_path / "rejects").read_text().splitlines()) == 25


# Other arguments and data


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shard_size": 500}, "shard_size: 400 then, 500 now"),
        ({"shard_samples": 9}, "shard_samples: none then, 9 now"),
        ({"compression": "zstd"}, "compression: none then, 'zstd' now"),
        ({"hashes": ["sha1"]}, r"hashes: \[\] then, \['sha1'\] now"),
        ({"sidecar": False}, "sidecar: True then, False now"),
        ({"format": "jsonl"}, "format: 'mds' then, 'jsonl' now"),
        ({"fill": {"x": 1}}, r"fill: \[\] then, \[\['x', '1'\]\] now"),
        ({"on_error": "skip"}, "on_error: 'raise' then, 'skip' now"),
        ({"map": lambda each: each}, "map=: False then, True now"),
        (
            {"columns": {"x": "int32", "text": "str"}},
            "column 'x': 'int' then, 'int32' now; columns are inferred: True then, False now",
        ),
    ],
)
def test_other_settings_are_refused(settings, words, tmp_path, whole):
    begin(tmp_path / "ds")
    former_names = local_files(tmp_path / "ds").keys()
    with pytest.raises(ValueError, match=f"differs from this one: .*{words}"):
        write(tmp_path / "ds", numbers(), **settings)
    assert local_files(tmp_path / "ds").keys() == former_names
    write(tmp_path / "ds", numbers(), max_errors=None)
    assert local_files(tmp_path / "ds") == whole


def test_other_data_is_refused(tmp_path):
    begin(tmp_path / "ds")
    with pytest.raises(ValueError, match="data: 'samples' then, 'a table or tables' now"):
        write(tmp_path / "ds", pd.DataFrame(list(numbers())))
    with pytest.raises(ValueError, match="length of data: none then, 300 now"):
        write(tmp_path / "ds", list(numbers()))
    with pytest.raises(ValueError, match=r"sample \d+ of data differs from the one that the inter"):
        write(tmp_path / "ds", (row | {"x": row["x"] + 1} for row in numbers()))
    with pytest.raises(ValueError, match=r"data ends before sample \d+, which the interrupted"):
        write(tmp_path / "ds", numbers(count=60))
    with pytest.raises(ValueError, match=r"data: 'samples' then, 'samples of Writer.write' now"):
        npstream.Writer(tmp_path / "ds", shard_size=400, resume=True)


def test_other_tables_are_refused(tmp_path):
    table = {"x": np.arange(300), "text": ["t"] * 300}

    def content():
        yield pd.DataFrame({name: values[:200] for name, values in table.items()})
        raise ZeroDivisionError

    begin(tmp_path / "ds", content())
    with pytest.raises(ValueError, match="column 'x': 'int64' then, 'float64' now"):
        write(tmp_path / "ds", iter([pd.DataFrame(table | {"x": np.arange(300) / 2})]))
    with pytest.raises(ValueError, match=r"sample \d+ of data differs from"):
        write(tmp_path / "ds", iter([pd.DataFrame(table | {"x": np.arange(300)[::-1]})]))
    with pytest.raises(ValueError, match="data ends before sample"):
        write(tmp_path / "ds", iter([pd.DataFrame({"x": [1], "text": [""]})]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_map_that_returns_something_else_is_refused(workers, tmp_path):
    begin(tmp_path / "ds", map=dict, workers=workers)
    with pytest.raises(ValueError, match="and a map= that returns the same"):
        write(tmp_path / "ds", numbers(), map=lambda row: row | {"x": 7}, workers=workers)
    with pytest.raises(ValueError, match="data ends before sample"):
        write(tmp_path / "ds", numbers(), map=lambda row: None, workers=workers)
    with pytest.raises(TypeError, match="resume=True needs single samples"):
        write(
            tmp_path / "ds",
            numbers(),
            map=lambda row: [npstream.Batch({"x": [1], "text": [""]})],
        )


def test_other_parts_are_refused(tmp_path):
    def content(start, stop):
        if stop == 60:
            raise ZeroDivisionError
        return [sample(number) for number in range(start, stop)]

    begin(tmp_path / "ds", parts(content))
    with pytest.raises(ValueError, match="parts of data: 5 then, 1 now"):
        write(tmp_path / "ds", PartedInput([Part("part 0", list)]))
    names = [Part(f"p{k}", list) for k in range(5)]
    with pytest.raises(ValueError, match=r"hash of the names of the parts: .* then, .* now"):
        write(tmp_path / "ds", PartedInput(names))


def test_a_file_of_rejects_that_was_removed_is_refused(tmp_path):
    rows = [{"x": "bad" if k % 4 == 0 else k} for k in range(100)]
    settings = {"on_error": "skip", "columns": {"x": "int64"}, "rejects": tmp_path / "rejects"}

    def failing():
        yield from rows[:90]
        raise ZeroDivisionError

    begin(tmp_path / "ds", failing(), **settings)
    (tmp_path / "rejects").write_text("")
    with pytest.raises(StorageError, match=r"rejects= has 0 bytes, and had .* was interrupted"):
        write(tmp_path / "ds", iter(rows), **settings)


# Other files and processes


def test_files_of_others_are_not_removed(tmp_path, whole):
    begin(tmp_path / "ds")
    former_files = local_files(tmp_path / "ds")
    other = tmp_path / "ds" / "shard.00077.mds"
    other.write_bytes(b"another write's")
    with pytest.raises(FileExistsError, match="not known to be of the write that was interrupted"):
        write(tmp_path / "ds", numbers())
    assert local_files(tmp_path / "ds").keys() == former_files.keys() | {"shard.00077.mds"}
    other.unlink()
    (tmp_path / "ds" / "notes.txt").write_text("not of a dataset")
    write(tmp_path / "ds", numbers())
    assert local_files(tmp_path / "ds") == whole | {"notes.txt": b"not of a dataset"}


def test_shards_after_a_missing_one_are_written_again(tmp_path, whole):
    begin(tmp_path / "ds")
    (tmp_path / "ds" / "shard.00003.mds").unlink()
    write(tmp_path / "ds", numbers())
    assert local_files(tmp_path / "ds") == whole


def test_a_shard_that_was_changed_is_not_removed(tmp_path):
    begin(tmp_path / "ds")
    os.truncate(tmp_path / "ds" / "shard.00003.mds", 10)
    with pytest.raises(FileExistsError, match="not known to be of the write that was interrupted"):
        write(tmp_path / "ds", numbers())
    assert (tmp_path / "ds" / "shard.00003.mds").stat().st_size == 10


def test_a_directory_that_was_copied_goes_on(tmp_path, whole):
    begin(tmp_path / "ds")
    files = local_files(tmp_path / "ds")
    (tmp_path / "copy").mkdir()
    for name, content in files.items():
        (tmp_path / "copy" / name).write_bytes(content)
    write(tmp_path / "copy", numbers())
    assert local_files(tmp_path / "copy") == whole


def test_a_write_without_resume_cannot_be_resumed(tmp_path):
    (tmp_path / "shard.00000.mds").write_bytes(b"")
    with pytest.raises(FileExistsError, match="a write is in progress or was interrupted"):
        write(tmp_path, numbers())
    npstream.write(tmp_path / "ds", numbers())
    with pytest.raises(FileExistsError, match="a dataset, or a part of one, is here"):
        write(tmp_path / "ds", numbers())


def test_a_process_that_still_writes_is_not_disturbed(tmp_path, whole):
    def try_to_write():
        with pytest.raises(FileExistsError, match="another process writes here"):
            write(tmp_path / "ds", numbers())

    def data():
        yield from itertools.islice(numbers(), 200)
        try_to_write()
        run_in_child(try_to_write)
        yield from itertools.islice(numbers(), 200, None)

    write(tmp_path / "ds", data())
    assert local_files(tmp_path / "ds") == whole


def test_a_child_of_a_killed_process_does_not_keep_the_lock(tmp_path, whole):
    """The child can be a worker of a DataLoader in `data`."""
    read, hold = os.pipe()

    def data():
        yield from itertools.islice(numbers(), 200)
        running, tell = os.pipe()
        if os.fork() == 0:
            os.write(tell, b"1")
            os.read(read, 1)  # until the test closes its end
            os._exit(0)
        os.read(running, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    def child():
        os.close(hold)
        write(tmp_path / "ds", data())

    assert wait_for_child(fork_child(child)) == signal.SIGKILL
    write(tmp_path / "ds", numbers())
    os.close(hold)
    os.close(read)
    assert local_files(tmp_path / "ds") == whole


def test_one_of_three_processes_that_resume_at_once_writes(tmp_path, whole):
    for run in range(4):
        path = tmp_path / f"ds{run}"
        if run % 2:
            begin(path)
        ready, go = os.pipe()

        def work(path=path, go=go, ready=ready):
            os.close(go)
            os.read(ready, 1)
            try:
                write(path, numbers())
                os._exit(7)
            except FileExistsError:
                os._exit(8)

        children = [fork_child(work) for _ in range(3)]
        os.close(go)
        os.close(ready)
        codes = sorted(os.waitstatus_to_exitcode(wait_for_child(child)) for child in children)
        assert codes == [7, 8, 8]
        assert local_files(path) == whole


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StorageError, match="No locks available: cannot open and lock the file"):
        write(tmp_path / "ds", numbers())


# Full disks


def test_a_full_disk_keeps_the_whole_shards(tmp_path):
    """RLIMIT_FSIZE limits the size of each file, here that of a larger shard in the middle."""

    def rows(large):
        yield from itertools.islice(numbers(), 100)
        yield {"x": 100, "text": "t" * large}
        yield from itertools.islice(numbers(), 101, None)

    npstream.write(tmp_path / "whole", rows(60_000), shard_size=400)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, -1))
        with pytest.raises(StorageError, match="File too large: cannot store this file") as error:
            write(tmp_path / "ds", rows(60_000))
        assert "whole shards, which readers do not see" in str(error.value.__notes__)

    run_in_child(work)
    assert len(local_files(tmp_path / "ds")) > 3
    write(tmp_path / "ds", rows(60_000))
    assert local_files(tmp_path / "ds") == local_files(tmp_path / "whole")


def test_a_full_disk_at_any_step(tmp_path, whole, monkeypatch):
    """Every fourth call of `fsync` fails, each in a write of its own."""
    fsync, failures = os.fsync, 0
    for failing_call in range(1, 60, 4):
        calls = itertools.count(1)

        def full(descriptor, calls=calls, failing_call=failing_call):
            if next(calls) == failing_call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return fsync(descriptor)

        path = tmp_path / str(failing_call)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with contextlib.suppress(StorageError):
                write(path, numbers())
        failures += next(calls) > failing_call
        if not (path / "index.json").exists():
            write(path, numbers())
        assert local_files(path) == whole
    assert failures > 10
