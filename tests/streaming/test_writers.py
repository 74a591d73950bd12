"""Writers with Streaming's arguments write the bytes that Streaming writes."""

from __future__ import annotations

import golden_data as golden
import numpy as np
import pytest
from written_shards import assert_same_dataset

import npstream
from npstream.streaming import CSVWriter, JSONWriter, MDSWriter, TSVWriter, XSVWriter, writers

WRITERS = {
    "MDSWriter": MDSWriter, "JSONWriter": JSONWriter, "CSVWriter": CSVWriter,
    "TSVWriter": TSVWriter, "XSVWriter": XSVWriter,
}  # fmt: skip

FORMATS = {"JSONWriter": "jsonl", "CSVWriter": "csv", "TSVWriter": "tsv", "XSVWriter": "xsv"}

EMPTY_FIRST_SHARD = {"mds_first_too_big", "mds_one_per_shard", "mds_zstd_empty_first"}
"""Golden cases that are not tested here.

Streaming writes an empty shard before a first sample that exceeds the size limit; npstream does
not.
"""


def exact_cases():
    for case in golden.cases():
        if case["writer"] not in WRITERS or case["byte_exact"] not in ("files", "raw"):
            continue
        inputs = golden.inputs(case)
        for part in inputs.get("partitions", [inputs]):
            name = "/".join([case["name"], *([part["dir"]] if "dir" in part else [])])
            directory = golden.directory(case) / part.get("dir", "")
            writer = part.get("writer", case["writer"])
            if name not in EMPTY_FIRST_SHARD:
                yield pytest.param(writer, part["args"], part["samples"], directory, id=name)


@pytest.mark.parametrize(("writer", "args", "samples", "directory"), list(exact_cases()))
def test_golden_bytes(writer, args, samples, directory, tmp_path):
    out = str(tmp_path / "out")
    with WRITERS[writer](out=out, **args) as open_writer:
        for tagged in samples:
            sample = golden.sample(tagged)
            encodings = args["columns"]
            sample = {k: golden.without_palette(v, encodings[k]) for k, v in sample.items()}
            open_writer.write(sample)
    if writer == "MDSWriter":
        exactness = "raw" if args.get("compression") else "files"
        assert_same_dataset(tmp_path / "out", directory, exactness)
        return
    # tests/writing/test_text.py compares `npstream.write` with the golden data of text formats.
    args = {{"size_limit": "shard_size"}.get(name, name): value for name, value in args.items()}
    other = tmp_path / "other"
    npstream.write(other, map(golden.sample, samples), format=FORMATS[writer], **args)
    names = sorted(path.name for path in other.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture
def store():
    """Return the URL of an empty store in memory."""
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield "memory://bucket/out"
    filesystem.store.clear()


def write(out, **arguments):
    writer = MDSWriter(columns={"x": "int"}, out=out, **arguments)
    with writer:
        for number in range(10):
            writer.write({"x": number, "other": 0})  # a key without a column is ignored
    return writer


def write_all(writer, samples):
    for sample in samples:
        writer.write(sample)


def numbers(url):
    return npstream.open(url)["x"].load().tolist()


def test_a_remote_directory(store):
    writer = write(store)
    assert (writer.local, writer.remote) == (None, store)
    assert numbers(store) == list(range(10))
    assert writer.report.samples == 10


@pytest.mark.parametrize("keep_local", [False, True])
def test_a_pair_of_directories(store, tmp_path, keep_local):
    local = tmp_path / "local"
    writer = write((str(local), store), keep_local=keep_local)
    assert (writer.local, writer.remote) == (str(local), store)
    assert numbers(store) == list(range(10))
    assert local.exists() == keep_local
    if keep_local:
        assert numbers(local) == list(range(10))


def test_a_failure_leaves_nothing_anywhere(store, tmp_path):
    local = tmp_path / "local"
    writer = MDSWriter(columns={"x": "int"}, out=(str(local), store), keep_local=True)
    with pytest.raises(TypeError, match="column 'x'"), writer:
        write_all(writer, [{"x": 1}, {"x": "one"}])
    for url in (local, store):
        with pytest.raises(FileNotFoundError):
            npstream.open(url)


def test_a_failed_upload_leaves_no_local_dataset(store, tmp_path):
    local = tmp_path / "local"
    writer = MDSWriter(columns={"x": "int"}, out=(str(local), store), keep_local=True)
    writer.write({"x": 1})
    npstream.write(store, {"x": [2]})  # another write is published first
    with pytest.raises(FileExistsError):
        writer.finish()
    assert not local.exists()
    assert numbers(store) == [2]


def test_a_directory_with_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is not empty"):
        MDSWriter(columns={"x": "int"}, out=str(tmp_path))
    write(str(tmp_path), exist_ok=True)
    with pytest.raises(FileExistsError, match="is not empty"):
        MDSWriter(columns={"x": "int"}, out=str(tmp_path))
    with MDSWriter(columns={"x": "int"}, out=str(tmp_path), exist_ok=True) as writer:
        writer.write({"x": -1})
        assert numbers(tmp_path) == list(range(10))
    assert numbers(tmp_path) == [-1]
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_finish_publishes_once(tmp_path):
    writer = MDSWriter(columns={"x": "int"}, out=str(tmp_path / "out"))
    writer.write({"x": 1})
    writer.finish()
    writer.finish()
    assert numbers(tmp_path / "out") == [1]
    with pytest.raises(ValueError, match="closed"):
        writer.write({"x": 2})


COMMON = {"version": 2, "compression": "zstd", "hashes": ["sha1"], "size_limit": 1536}
NAMES = {"column_names": ["a", "b"], "column_encodings": ["int", "str"]}


@pytest.mark.parametrize(
    ("writer", "arguments", "config"),
    [
        (MDSWriter, {}, {"format": "mds", "column_sizes": [8, None], **NAMES}),
        (JSONWriter, {}, {"format": "json", "columns": {"b": "str", "a": "int"}, "newline": "\n"}),
        (CSVWriter, {"newline": "\r\n"}, {"format": "csv", "newline": "\r\n", **NAMES}),
        (TSVWriter, {}, {"format": "tsv", "newline": "\n", **NAMES}),
        (
            XSVWriter,
            {"separator": "|"},
            {"format": "xsv", "separator": "|", "newline": "\n", **NAMES},
        ),
    ],
)
def test_configurations(writer, arguments, config, tmp_path):
    """They equal the settings that Streaming's index records for each shard."""
    result = writer(
        columns={"b": "str", "a": "int"}, out=str(tmp_path / "out"), compression="zstd",
        hashes=["sha1"], size_limit="1.5kb", **arguments,
    ).get_config()  # fmt: skip
    assert result == COMMON | config


def test_all_samples_in_one_shard(tmp_path):
    with MDSWriter(columns={"x": "ndarray"}, out=str(tmp_path / "out"), size_limit=None) as writer:
        for _ in range(3):
            writer.write({"x": np.zeros(1 << 20)})
    assert writer.report.shards == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"columns": {"x": "odd"}}, TypeError, "MDSWriter: column 'x'"),
        ({"compression": "odd"}, ValueError, "odd"),
        ({"hashes": ["odd"]}, ValueError, "odd"),
        ({"hashes": ["sha256", "sha1"]}, ValueError, "alphabetical order"),
        ({"hashes": ["sha1", "sha1"]}, ValueError, "distinct"),
        ({"size_limit": -1}, ValueError, "size_limit=-1"),
        ({"size_limit": 2**32}, ValueError, "less than 4 GiB"),
        ({"size_limit": "1.5k"}, ValueError, "'1.5k': expected a number"),
        ({"odd": 1}, ValueError, "unknown arguments of the writer: odd"),
        ({"out": ("a", "b", "c")}, ValueError, "a pair of both"),
    ],
)
def test_invalid_arguments(arguments, error, message, tmp_path):
    arguments = {"columns": {"x": "int"}, "out": str(tmp_path / "out"), **arguments}
    with pytest.raises(error, match=message):
        MDSWriter(**arguments)
    assert not (tmp_path / "out").exists()


def test_arguments_without_meaning_are_logged_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(writers, "_warned", set())
    for number in range(2):
        write(str(tmp_path / f"{number}"), progress_bar=True, max_workers=4, retry=3)
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == [
        "progress_bar", "max_workers",
    ]  # fmt: skip
