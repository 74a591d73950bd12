"""Writers and `write`: columns, errors, published files and reports."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from written_shards import load_index, read, shard_bytes, streaming_files

import npstream
from npstream._core.arguments import size_text
from npstream.errors import ColumnError, StorageError
from npstream.writing.writer import Writer, write

# Columns


def test_inference_from_samples(tmp_path):
    report = write(
        tmp_path,
        [{"i": 1, "f": 0.5, "s": "a", "b": b"a", "n": np.int16(1), "x": np.zeros((2, 3)), "j": {}}],
    )
    assert report.columns == {
        **{"b": "bytes", "f": "float64", "i": "int", "j": "json", "n": "int16", "s": "str"},
        "x": "ndarray:float64",
    }


def test_inference_from_columns(tmp_path):
    report = write(
        tmp_path,
        {
            **{"n": np.zeros(2, np.int16), "x": np.zeros((2, 3, 4), ">f4"), "s": ["a", "b"]},
            **{"u": np.array(["a", "b"]), "o": np.array(["a", b"b"], object), "i": [1, 2]},
            **{"r": [np.zeros(2, np.uint8), np.zeros(3, np.uint8)]},
        },
        columns=None,
    )
    assert report.columns == {
        **{"i": "int", "n": "int16", "o": "str", "r": "ndarray:uint8", "s": "str", "u": "str"},
        "x": "ndarray:float32:3,4",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": [1, 2], "b": [1]}, r"columns differ in length: {'a': 2, 'b': 1}"),
        ({"text": "hello"}, r"column 'text': it is of type str.*a single sample goes into a list"),
        ({"x": 1}, r"column 'x': it is of type int"),
        ({"x": iter([1])}, r"column 'x': it is of type list_iterator"),
        ([("a", 1)], r"sample 0 is a tuple of 2 values without names: name each with columns="),
        (["a"], r"sample 0 is of type str; expected a mapping"),
        ([{}], r"at least one column"),
        ([{1: 2}], r"the key 1, of type int"),
        ({"x": np.zeros((2, 0))}, r"ndarray:float64:0"),
        ({"x": np.zeros(2, "g")}, r"column 'x': cannot store an array of dtype float128"),
        ({"x": np.array(5)}, r"column 'x': it is of type ndarray"),
        (5, r"data is of type int: expected samples"),
    ],
)
def test_data_that_is_refused(data, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        write(tmp_path / "out", data)
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_missing_column_names_the_sample_and_a_near_name(tmp_path):
    with pytest.raises(ColumnError, match="sample 1: no column 'label'; did you mean 'labels'"):
        write(tmp_path, [{"label": 1}, {"labels": 1}])
    with pytest.raises(ColumnError, match="no column 'label'; did you mean 'labels'"):
        write(tmp_path, {"labels": [1]}, columns={"label": "int"})


@pytest.mark.parametrize(
    ("encoding", "bad", "kind"),
    [
        ("int", "1", TypeError),
        ("str", 1, TypeError),
        ("uint8", 256, ValueError),
        ("int32", b"abc", ValueError),
        ("ndarray:uint8:2", np.zeros(3, np.uint8), ValueError),
        ("ndarray:uint8", np.zeros(3, np.int8), ValueError),
    ],
)
def test_a_refused_value_is_located(encoding, bad, kind, tmp_path):
    good = {"int": 1, "str": "", "uint8": 1, "int32": 1}.get(encoding, np.zeros(2, np.uint8))
    with Writer(tmp_path, {"a": encoding}) as writer:
        writer.write({"a": good})
        message = rf"sample 1: column 'a' is '{encoding}' and cannot take this {type(bad).__name__}"
        with pytest.raises(kind, match=message):
            writer.write({"a": bad})
        writer.write({"a": good})
    assert len(read(tmp_path)) == 2


def test_a_refused_value_in_an_array_is_located(tmp_path):
    with pytest.raises(ValueError, match="sample 2: column 'a' is 'uint8'"):
        write(tmp_path, {"a": np.array([1, 2, 256])}, columns={"a": "uint8"})


def test_a_name_that_is_no_encoding_names_the_column(tmp_path):
    with pytest.raises(ValueError, match="column 'a': unknown encoding 'strr': did you mean 'str'"):
        Writer(tmp_path, {"a": "strr"})


def test_types_and_dtypes_stand_for_encodings(tmp_path):
    columns = {"a": int, "b": np.float32, "c": np.dtype("M8[s]"), "d": str, "e": list, "f": bool}
    sample = {"a": 1, "b": 0.5, "c": np.datetime64("2020", "s"), "d": "x", "e": [1], "f": True}
    report = write(tmp_path / "a", [sample], columns=columns)
    assert report.columns == {
        "a": "int", "b": "float32", "c": "datetime64[s]", "d": "str", "e": "json", "f": "bool"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "kind", "words"),
    [
        ("int", TypeError, "columns maps names to encodings, or lists names; got 'int'"),
        ({"x"}, TypeError, "columns maps names to encodings, or lists names; got {'x'}"),
        ([], ValueError, "a dataset has at least one column; columns is empty"),
        (
            ["x", 1],
            TypeError,
            r"columns lists names, or maps them to encodings; got 1 in \['x', 1\]",
        ),
        (["x", "y", "x"], ValueError, "columns names 'x' twice"),
        ({"x": set}, TypeError, "such as 'int32', or types; got 'x': <class 'set'>"),
        ({1: "int"}, TypeError, "or types; got 1: 'int'"),
        ({"\ud800": "int"}, ValueError, "its name has surrogates"),
    ],
)
def test_invalid_columns(columns, kind, words, tmp_path):
    with pytest.raises(kind, match=words):
        write(tmp_path / "a", [{"x": 1}], columns=columns)
    assert os.listdir(tmp_path) == []


def test_names_are_checked_before_anything_is_stored(tmp_path):
    with pytest.raises(ValueError, match="its name has surrogates"):
        write(tmp_path / "a", [{"\ud800": 1}])
    assert os.listdir(tmp_path) == []


# All or nothing


@pytest.mark.parametrize("kind_of_data", ["samples", "a batch"])
def test_a_writer_that_cannot_store_a_shard_is_closed(kind_of_data, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # for the side-car, at the first shard
    writer = Writer(tmp_path / "a", {"x": "str"}, shard_size=300)
    rows = [{"x": "a" * 100} for _ in range(6)]
    batch = npstream.Batch({"x": [row["x"] for row in rows]})
    for data in rows if kind_of_data == "samples" else [batch]:
        try:
            writer.write(data)
        except OSError:
            break
    monkeypatch.undo()
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.write(rows[0])
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind_of_data", ["samples", "columns"])
def test_a_full_directory_of_temporary_files(kind_of_data, tmp_path, monkeypatch):
    """The error names the directory of temporary files. The dataset's directory stays empty."""
    full = []

    def open_full(**options):
        full.append(open("/dev/full", "w+b"))  # noqa: SIM115 - the builder closes it
        return full[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", open_full)
    data = [{"x": 1}] if kind_of_data == "samples" else {"x": np.arange(10**5)}
    with pytest.raises(StorageError, match=r"No space left.*side-car; TMPDIR names") as caught:
        write(tmp_path / "a", data, shard_size=1000)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == tempfile.gettempdir()
    assert os.listdir(tmp_path) == []
    assert all(file.closed for file in full)


def test_an_error_at_the_end_removes_everything(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    writer = Writer(tmp_path / "a")
    writer.write({"x": 1})
    with pytest.raises(OSError, match="Too many open files"):
        writer.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_an_exception_publishes_nothing_and_leaves_nothing(compression, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    def samples():
        for i in range(50):
            yield {"x": i}
        assert len(list(tmp_path.glob("shard.*"))) > 1
        raise InterruptedError("in the middle")

    with pytest.raises(InterruptedError, match="in the middle"):
        write(tmp_path, samples(), shard_size=300, compression=compression)
    assert os.listdir(tmp_path) == ["notes.txt"]
    write(tmp_path, [{"x": 1}])
    assert len(read(tmp_path)) == 1


def test_a_block_left_by_an_exception(tmp_path):
    writer = Writer(tmp_path, shard_size=1)

    def block():
        with writer:
            writer.write({"x": 1})
            writer.write({"x": 2})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.write({"x": 3})
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.close()


def test_an_exception_after_close_keeps_the_dataset(tmp_path):
    writer = Writer(tmp_path)

    def block():
        with writer:
            writer.write({"x": 1})
            writer.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert read(tmp_path) == [{"x": 1}]
    assert writer.close() is writer.close()
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.write({"x": 3})


@pytest.mark.parametrize("call", range(1, 9))
def test_a_disk_that_fails_at_any_sync(call, tmp_path, monkeypatch):
    """Before it publishes two shards, a write syncs them, 3 other files and 3 directories."""
    calls = []
    sync = os.fsync

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    writer = Writer(tmp_path, shard_size=1)

    def write_two():
        for x in range(2):
            writer.write({"x": x})
        writer.close()

    with pytest.raises(OSError, match="No space left"):
        write_two()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="this Writer is closed"):
        writer.close()


@pytest.mark.parametrize("name", ["index.json", "shard.00000.mds", "shard.00007.json.meta"])
def test_a_directory_that_holds_a_dataset_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileExistsError, match=rf"remove it, or choose another.*{name}"):
        write(tmp_path, [{"x": 1}])
    assert os.listdir(tmp_path) == [name]


def test_of_two_writers_the_first_wins(tmp_path):
    first, second = Writer(tmp_path, shard_size=1), Writer(tmp_path)
    first.write({"x": 1})
    first.close()
    second.write({"y": 2})
    with pytest.raises(FileExistsError, match=r"shard\.00000\.mds"):
        second.close()
    assert read(tmp_path) == [{"x": 1}]
    assert streaming_files(tmp_path) == ["index.json", "shard.00000.mds"]


def test_an_index_is_never_replaced(tmp_path):
    writer = Writer(tmp_path)
    (tmp_path / "index.json").write_text("theirs")
    writer.write({"x": 1})
    with pytest.raises(FileExistsError, match=r"index\.json"):
        writer.close()
    assert (tmp_path / "index.json").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["index.json"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first, second = Writer(tmp_path), Writer(tmp_path)
    first.write({"x": 1})
    first.close()
    second.write({"x": 2})
    with pytest.raises(FileExistsError, match=r"shard\.00000\.mds"):
        second.close()
    assert read(tmp_path) == [{"x": 1}]
    assert streaming_files(tmp_path) == ["index.json", "shard.00000.mds"]


def test_a_killed_writer_leaves_no_index(tmp_path):
    script = """
import itertools, sys
from npstream.writing.writer import Writer
writer = Writer(sys.argv[1], shard_size=1000)
for i in itertools.count():
    writer.write({"x": 1})
    if i == 500:
        print("several shards", flush=True)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "several shards\n"
        process.send_signal(signal.SIGKILL)
    remaining = os.listdir(tmp_path / "killed")
    assert "index.json" not in remaining
    for name in remaining:
        assert re.fullmatch(r"shard\.\d{5}\.mds|\.shard\.\d{5}\.mds\.[0-9a-f]{16}\.tmp", name)
    with pytest.raises(FileExistsError, match="remove it"):
        Writer(tmp_path / "killed")
    write(tmp_path / "again", [{"x": 1}])
    assert read(tmp_path / "again") == [{"x": 1}]


# Reports, URLs and permissions


def test_the_repr_of_a_report(tmp_path):
    report = write(tmp_path / "out", {"x": np.zeros(1000, np.uint8), "text": ["a"] * 1000})
    first, *columns = repr(report).splitlines()
    size = size_text(report.stored_bytes)
    assert first == (
        f"<npstream.WriteReport: 1,000 samples in 1 shard, {size}, {report.seconds:.3g} s, "
        f"{report.path}"
    )
    assert columns == ["  x     uint8", "  text  str>"]
    packed = dataclasses.replace(report, raw_bytes=4096, rejected=1, seconds=2.0, columns={})
    facts = f"{size} (4.0 KiB before compression), 1 sample left out, 2 s, {report.path}>"
    assert repr(packed).endswith(facts)


def test_the_report(tmp_path):
    report = write(tmp_path / "out", {"x": np.zeros((100, 100))}, compression="gz", shard_size=5000)
    files = list((tmp_path / "out").glob("shard.*"))
    assert report.path == str(tmp_path / "out")
    assert (report.samples, report.shards) == (100, len(files))
    assert report.stored_bytes == sum(file.stat().st_size for file in files)
    entries = load_index(tmp_path / "out")["shards"]
    assert report.raw_bytes == sum(len(shard_bytes(tmp_path / "out", entry)) for entry in entries)
    assert report.raw_bytes > 100 * 800
    assert report.seconds > 0


def test_where_it_is_written(tmp_path):
    assert write(f"file://{tmp_path}/a", [{"x": 1}]).path == str(tmp_path / "a")
    assert write(tmp_path / "b" / "c", [{"x": 1}]).path == str(tmp_path / "b" / "c")
    with pytest.raises(ValueError, match="unknown scheme"):
        write("s33://bucket/data", [{"x": 1}])


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write(tmp_path / "out", [{"x": 1}])
    for file in filter(Path.is_file, (tmp_path / "out").rglob("*")):
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
