"""Copying the samples of a view to a new dataset."""

from __future__ import annotations

import ctypes
import errno
import json
import shutil
import signal
import subprocess
import sys

import golden_data as golden
import numpy as np
import pytest
from destinations import names
from started import started_threads

import npstream
from npstream.__main__ import main
from npstream._core.arguments import size_text
from npstream.errors import ColumnError, FormatError, StorageError
from npstream.storage.local import LocalStore
from npstream.writing.shard import MdsFormat

ROWS = 60
COLUMNS = {"text": "str", "number": "int64", "raw": "bytes", "seen": "bool"}
READABLE = [
    case
    for case in golden.cases()
    if case["readable"] is True and not case["name"].startswith("bad")
]


def rows(first=0, count=ROWS):
    return [
        {"text": "é" * (k % 7), "number": k, "raw": bytes(k), "seen": k % 2 == 0}
        for k in range(first, first + count)
    ]


@pytest.fixture
def source(tmp_path):
    """Return the path of a dataset of several shards, whose settings are not the defaults."""
    settings = {"shard_size": "1KiB", "hashes": ["sha1", "xxh64"]}
    npstream.write(tmp_path / "source", rows(), columns=COLUMNS, **settings)
    return tmp_path / "source"


def samples_of(ds):
    """Return the stored bytes of each sample of a view."""
    lookup = ds._source.whole_samples(ds._source.look_up(ds._selection.ids()))
    spans = zip(lookup.address.tolist(), lookup.nbytes.tolist(), strict=True)
    return [ctypes.string_at(address, nbytes) for address, nbytes in spans]


def copy_and_verify(view, url, **settings):
    """Copy a view, verify the copy, and return the report and the opened copy."""
    report = npstream.copy(view, url, **settings)
    options = {"storage_options": settings.get("storage_options")}
    assert npstream.verify_dataset(url, **options).problems == ()
    return report, npstream.open(url, allow_pickle=True, **options)


VIEWS = {
    "all": lambda ds: ds,
    "step": lambda ds: ds[3:50:4],
    "backwards": lambda ds: ds[::-1],
    "any": lambda ds: ds[[5, 5, 59, 0]],
    "mask": lambda ds: ds[np.arange(ROWS) % 10 == 1],
    "none": lambda ds: ds[:0],
    "condition": lambda ds: ds[ds["seen"]],
    "shuffled": lambda ds: ds.shuffle(0),
}


@pytest.mark.parametrize("compression", [None, "zstd:1"])
@pytest.mark.parametrize("view", VIEWS)
def test_the_bytes_of_samples_are_copied(view, compression, tmp_path, upload, monkeypatch):
    settings = {"shard_size": "1KiB", "hashes": ["sha1", "xxh64"], "compression": compression}
    npstream.write(tmp_path / "source", rows(), columns=COLUMNS, **settings)
    expected = VIEWS[view](npstream.open(tmp_path / "source"))
    remote = npstream.open(upload(tmp_path / "source"), cache=tmp_path / "cache")
    monkeypatch.setattr(MdsFormat, "pack", None)  # a copy that encodes samples fails
    reports = []
    for k, ds in enumerate((expected, VIEWS[view](remote))):
        report, copy = copy_and_verify(ds, tmp_path / f"copy{k}")
        assert report.columns == COLUMNS
        assert copy.columns == tuple(COLUMNS)
        assert samples_of(copy) == samples_of(expected)
        assert list(copy) == list(expected)
        reports.append(report)
    assert len({(r.samples, r.shards, r.raw_bytes, r.stored_bytes) for r in reports}) == 1


@pytest.mark.parametrize("compression", [None, "zstd:1"])
def test_a_whole_dataset_is_copied_byte_for_byte(compression, tmp_path):
    settings = {"shard_size": "1KiB", "hashes": ["sha1", "xxh64"], "compression": compression}
    npstream.write(tmp_path / "a", rows(), columns=COLUMNS, **settings)
    npstream.copy(npstream.open(tmp_path / "a"), tmp_path / "b")
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("case", READABLE, ids=lambda case: case["name"])
def test_datasets_of_streaming(case, tmp_path):
    """Each format, encoding, compression and hash that Streaming writes."""
    source = npstream.open(golden.directory(case), allow_pickle=True)
    if not source.columns:
        pytest.skip("an index without shards does not say the columns")
    _, copy = copy_and_verify(source, tmp_path / "copy")
    index, copy_index = source._source.index, copy._source.index
    assert samples_of(copy) == samples_of(source)
    assert {schema.format for schema in copy_index.schemas} <= {
        schema.format for schema in index.schemas
    }
    for row, expected in zip(copy, golden.expected(case), strict=True):
        for name, value in expected.items():
            golden.assert_same(row[name], value)
    files, copy_files = index.files(0), copy_index.files(0)
    assert copy_files.compression == files.compression
    assert copy_files.data.hashes.keys() == files.data.hashes.keys()


def test_the_settings_are_those_of_the_source(source, tmp_path):
    _, copy = copy_and_verify(npstream.open(source)[10:30], tmp_path / "copy")
    entry = json.loads((tmp_path / "copy/index.json").read_text())["shards"][0]
    assert (entry["size_limit"], entry["hashes"]) == (1024, ["sha1", "xxh64"])
    assert copy.shards["bytes"].max() <= 1024
    report, copy = copy_and_verify(
        npstream.open(source), tmp_path / "other", shard_size="2KiB", shard_samples=9, hashes=[],
        compression="gz:1", sidecar=False,
    )  # fmt: skip
    entry = json.loads((tmp_path / "other/index.json").read_text())["shards"][0]
    assert (entry["size_limit"], entry["hashes"], entry["compression"]) == (2048, [], "gz:1")
    assert copy.shards["samples"].tolist() == [9] * 6 + [6]
    assert not (tmp_path / "other/index.msgpack").exists()
    assert report.stored_bytes < report.raw_bytes
    _, copy = copy_and_verify(npstream.open(tmp_path / "other"), tmp_path / "raw", compression=None)
    assert list(copy) == list(npstream.open(source))
    _, copy = copy_and_verify(copy, tmp_path / "one", shard_size=None)
    assert len(copy.shards) == 1


def test_a_source_without_a_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("npstream.tools.copy._SHARD_BYTES", 1 << 9)
    npstream.write(tmp_path / "a", rows(), columns=COLUMNS, shard_size=None)
    _, copy = copy_and_verify(npstream.open(tmp_path / "a")[:20], tmp_path / "b")
    assert len(copy.shards) == 1  # a shard may be as large as that of the source
    twice = npstream.open(tmp_path / "a")[[*range(ROWS)] * 3]
    _, copy = copy_and_verify(twice, tmp_path / "c")
    assert len(copy.shards) in (3, 4)


def test_columns(source, tmp_path):
    ds = npstream.open(source)
    report, copy = copy_and_verify(ds[::7], tmp_path / "a", columns=["raw", "number"])
    assert report.columns == {"raw": "bytes", "number": "int64"}
    assert copy.columns == ("raw", "number")
    assert copy["number"].load().tolist() == list(range(0, ROWS, 7))
    assert list(copy["raw"]) == [bytes(k) for k in range(0, ROWS, 7)]
    report, copy = copy_and_verify(ds, tmp_path / "b", columns={"number": "int16", "seen": "bool"})
    assert report.columns == {"number": "int16", "seen": "bool"}
    assert copy["number"].load().tolist() == list(range(ROWS))
    _, copy = copy_and_verify(ds[["seen", "text"]], tmp_path / "c")
    assert copy.columns == ("seen", "text")
    with pytest.raises(ColumnError, match="no column 'nunber'; did you mean 'number'"):
        npstream.copy(ds, tmp_path / "d", columns=["nunber"])
    with pytest.raises(TypeError, match="expected a list of names"):
        npstream.copy(ds, tmp_path / "d", columns="number")


def test_columns_that_were_opened_with_other_encodings(tmp_path):
    npstream.write(tmp_path / "a", {"day": np.arange(5), "raw": [b"ab"] * 5})
    ds = npstream.open(tmp_path / "a", columns={"day": "M8[D]", "raw": "ndarray:uint8:2"})
    report, copy = copy_and_verify(ds, tmp_path / "b")
    assert report.columns == {"day": "datetime64[D]", "raw": "ndarray:uint8:2"}
    assert np.array_equal(copy["day"], ds["day"])
    assert np.array_equal(copy["raw"], ds["raw"])


def test_text_stays_text(tmp_path):
    lines = [{"n": 10**30 + k, "s": f"é{k}", "x": k / 3} for k in range(40)]
    kinds = {"jsonl": {}, "csv": {}, "xsv": {"separator": "::", "newline": "\r\n"}}
    for name, settings in kinds.items():
        npstream.write(tmp_path / name, lines, format=name, shard_size="400", **settings)
        _, copy = copy_and_verify(npstream.open(tmp_path / name)[::-1], tmp_path / f"{name}2")
        assert list(copy) == lines[::-1]
        (schema,) = copy._source.index.schemas
        assert (schema,) == npstream.open(tmp_path / name)._source.index.schemas
        _, copy = copy_and_verify(npstream.open(tmp_path / name)[["s", "x"]], tmp_path / f"{name}3")
        assert list(copy) == [{"s": line["s"], "x": line["x"]} for line in lines]
        assert copy._source.index.schemas[0].format == schema.format
    _, copy = copy_and_verify(npstream.open(tmp_path / "xsv"), tmp_path / "tab", format="tsv")
    assert list(copy) == lines
    assert (tmp_path / "tab/shard.00000.tsv").read_bytes().endswith(b"\n")
    ds = npstream.open(tmp_path / "csv")
    _, copy = copy_and_verify(
        ds, tmp_path / "mds", format="mds", columns={"n": "str_int", "s": "str"}
    )
    assert copy[3] == {"n": lines[3]["n"], "s": lines[3]["s"]}
    _, copy = copy_and_verify(npstream.open(tmp_path / "mds"), tmp_path / "back", format="jsonl")
    assert copy[3] == {"n": lines[3]["n"], "s": lines[3]["s"]}


def test_lines_are_copied_and_not_parsed(tmp_path):
    npstream.write(tmp_path / "a", {"s": ["a", "b"]}, format="jsonl")
    shard = tmp_path / "a/shard.00000.json"
    body = shard.read_bytes()
    assert body.count(b'"s": ') == 2
    shard.write_bytes(body.replace(b'"s": ', b'"s" :'))
    _, copy = copy_and_verify(npstream.open(tmp_path / "a", verify=False), tmp_path / "b")
    assert list(copy["s"]) == ["a", "b"]
    assert (tmp_path / "b/shard.00000.json").read_bytes() == body.replace(b'"s": ', b'"s" :')


def test_merged_datasets_and_mixtures(tmp_path):
    npstream.write(tmp_path / "m/a", rows(0, 10), columns=COLUMNS, compression="zstd")
    npstream.write(tmp_path / "m/b", rows(10, 20), columns={**COLUMNS, "number": "int"})
    npstream.merge([tmp_path / "m/a", tmp_path / "m/b"], tmp_path / "m")
    ds = npstream.open(tmp_path / "m")
    _, copy = copy_and_verify(ds, tmp_path / "copy")
    assert copy._source.index.files(0).compression == "zstd"
    assert samples_of(copy) == samples_of(ds)
    members = {"b": npstream.open(tmp_path / "m/b")[5:], "a": npstream.open(tmp_path / "m/a")}
    mixture = npstream.mix(members)
    _, copy = copy_and_verify(mixture, tmp_path / "mixed")
    assert copy["number"].load().tolist() == [*range(15, 30), *range(10)]
    assert samples_of(copy) == samples_of(mixture)
    named_mixture = npstream.mix(members, columns=[*COLUMNS, "source"])
    _, copy = copy_and_verify(named_mixture, tmp_path / "named_mixture")
    assert list(copy["source"]) == ["b"] * 15 + ["a"] * 10
    _, copy = copy_and_verify(mixture[::-1], tmp_path / "some", columns=list(COLUMNS))
    assert samples_of(copy) == [*samples_of(npstream.open(tmp_path / "m/a")[::-1]),
                                *samples_of(npstream.open(tmp_path / "m/b")[:4:-1])]  # fmt: skip


def test_shards_whose_schemas_differ(tmp_path):
    npstream.write(tmp_path / "a", {"x": np.arange(5), "t": list("abcde")})
    npstream.write(tmp_path / "b", [{"x": k, "t": "z", "more": 1} for k in range(3)])
    index = {"shards": [], "version": 2}
    for name in "ab":
        part = json.loads((tmp_path / name / "index.json").read_text())
        for entry in part["shards"]:
            entry["raw_data"]["basename"] = f"{name}/{entry['raw_data']['basename']}"
            index["shards"].append(entry)
    (tmp_path / "index.json").write_text(json.dumps(index))
    _, copy = copy_and_verify(npstream.open(tmp_path)[[7, 0, 6, 1]], tmp_path / "copy")
    assert list(copy) == [{"t": t, "x": x} for t, x in zip("zazb", (2, 0, 1, 1), strict=True)]


def test_large_samples_in_several_shards_and_chunks(tmp_path, kernel_mode, monkeypatch):
    """The bytes of mapped samples are read when their shard is stored, also after `ds.close`."""
    monkeypatch.setattr("npstream.writing.pipeline.CHUNK_BYTES", 1 << 14)
    rng = np.random.default_rng(0)
    bodies = [rng.bytes(int(n)) for n in rng.integers(0, 3000, 300)]
    npstream.write(tmp_path / "a", {"x": bodies}, shard_size="100KiB")
    ds = npstream.open(tmp_path / "a")
    with npstream.Writer(tmp_path / "b", shard_size="70KiB") as writer:
        writer.write(ds[::2])
        writer.write({"x": b"one"})
        writer.write(ds[1::2])
        ds.close()
    expected = [*bodies[::2], b"one", *bodies[1::2]]
    ds = npstream.open(tmp_path / "b")
    assert list(ds["x"]) == expected
    assert npstream.verify_dataset(tmp_path / "b").problems == ()
    npstream.write(tmp_path / "c", {"x": expected}, shard_size="70KiB")
    for name in names(tmp_path / "c"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_memory_does_not_grow_with_the_data(compression, tmp_path):
    samples = ({"x": bytes([k % 251]) * 10_000} for k in range(4000))
    npstream.write(tmp_path / "a", samples, shard_size="1MiB", compression=compression)
    ds = npstream.open(tmp_path / "a")
    view = ds[np.arange(4000) % 8 > 0]
    # Another process: tracemalloc can hang if a thread starts while threads of libraries run.
    code = (
        "import sys, tracemalloc, npstream, numpy as np, npstream.writing.engine as engine\n"
        "engine.BLOCK_BYTES, path = 1 << 20, sys.argv[1]\n"
        "ds = npstream.open(f'{path}/a')\n"
        "view = ds[np.arange(4000) % 8 > 0]\n"
        "npstream.copy(view, f'{path}/first')  # imports what it needs\n"
        "tracemalloc.start()\n"
        "npstream.copy(view, f'{path}/b')\n"
        "print(tracemalloc.get_traced_memory()[1], len(ds._source.fetcher.buffered_shards()))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    peak, buffered = map(int, result.stdout.split())
    assert peak < 16 << 20  # the view has 35 MB
    assert buffered <= 2
    assert samples_of(npstream.open(tmp_path / "b")) == samples_of(view)


# Refusals


def test_the_source_is_not_overwritten(source, tmp_path, monkeypatch):
    ds, before = npstream.open(source)[:3], names(source)
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for url in (source, f"{source}/", "source", tmp_path / "link", source.as_uri()):
        with pytest.raises(ValueError, match="is the source of the view: copy to another"):
            npstream.copy(ds, url)
    mixture = npstream.mix({"a": ds})
    with pytest.raises(ValueError, match="is the source of the view"):
        npstream.copy(mixture, source)
    npstream.copy(ds, tmp_path / "copy")
    with pytest.raises(FileExistsError):
        npstream.copy(ds, tmp_path / "copy")
    assert names(source) == before


def test_a_remote_source_is_not_overwritten(source, upload, tmp_path):
    url = upload(source)
    ds = npstream.open(url, cache=tmp_path / "cache")
    for same in (url, f"{url}/"):
        with pytest.raises(ValueError, match="is the source of the view"):
            npstream.copy(ds, same)


def test_arguments_that_cannot_be_copied_raise(source, tmp_path):
    ds = npstream.open(source)
    with pytest.raises(TypeError, match=r"str; expected a Dataset.*open it first with"):
        npstream.copy(str(source), tmp_path / "a")
    with pytest.raises(TypeError, match=r"a Column: select it as a dataset of one column, ds\[\["):
        npstream.copy(ds["text"], tmp_path / "a")
    with pytest.raises(TypeError, match=r"type dict; .*npstream\.write takes other data"):
        npstream.copy({"x": [1]}, tmp_path / "a")
    transformed = ds.with_transform(lambda sample: sample)
    for view in (transformed, npstream.mix({"a": transformed})):
        with pytest.raises(TypeError, match=r"has a transform, .*npstream\.write\(url, view\)"):
            npstream.copy(view, tmp_path / "a")
    with pytest.raises(ValueError, match=r"shape \(2, 2\) .*ravel"):
        npstream.copy(ds[np.array([[0, 1], [2, 3]])], tmp_path / "a")
    with pytest.raises(ValueError, match="unknown format"):
        npstream.copy(ds, tmp_path / "a", format="mdx")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["mds", "jsonl", "csv"])
def test_damaged_samples_are_not_copied(name, tmp_path):
    """The sizes of the columns of each sample are checked, and the ends of each line."""
    npstream.write(tmp_path / "a", {"text": ["a", "bb", "ccc"], "n": [1, 2, 3]}, format=name)
    shard = next(path for path in (tmp_path / "a").glob("shard*") if path.suffix != ".meta")
    data = bytearray(shard.read_bytes())
    offset = data.rindex(b"bb")
    if name == "mds":
        # The text follows its size, of 4 bytes, and the number, of 8 bytes.
        assert data[offset - 12] == 2
        data[offset - 12] = 9
    else:
        data[offset] = ord("\n")
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=r"sample 1 .*(do not add up|not one whole line)"):
        npstream.copy(npstream.open(tmp_path / "a"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


# Failures, and stores


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    npstream.write(tmp_path / "a", {"x": [bytes(1000)] * 100}, shard_size="10KiB")
    draft = LocalStore.draft

    def fail(self, name, *arguments):
        if "00003" in name:
            raise StorageError(errno.ENOSPC, "No space left on device", name)
        return draft(self, name, *arguments)

    monkeypatch.setattr(LocalStore, "draft", fail)
    with pytest.raises(StorageError, match="No space left"):
        npstream.copy(npstream.open(tmp_path / "a"), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert not started_threads("npstream-write")


# The process dies while it stores the fourth shard. Threads store shards, so a copy that can resume
# first waits until the journal has the first three.
KILLED = """
import os, signal, sys, threading
import npstream
from npstream.storage.local import LocalStore
from npstream.writing.resumption.journal import Journal
resume = sys.argv[3] == "resume"
sync_all, append = LocalStore.sync_all, Journal.append
recorded = threading.Semaphore(0)
def die(self, drafts, action):
    if any("00003" in name for name, _ in drafts):
        for _ in range(3 * resume):
            recorded.acquire(timeout=60)
        os.kill(os.getpid(), signal.SIGKILL)
    sync_all(self, drafts, action)
def record(self, kind, *values):
    append(self, kind, *values)
    if kind == "shard":
        recorded.release()
LocalStore.sync_all, Journal.append = die, record
npstream.copy(npstream.open(sys.argv[1]), sys.argv[2], resume=resume)
"""


def test_a_copy_that_is_killed_is_not_visible(tmp_path):
    npstream.write(tmp_path / "a", {"x": [bytes(1000)] * 100}, shard_size="10KiB")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(tmp_path / "b"), "no"]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "b").glob("*.mds"))
    with pytest.raises(FileNotFoundError):
        npstream.open(tmp_path / "b")
    with pytest.raises(FileExistsError, match="in progress or was interrupted"):
        npstream.copy(npstream.open(tmp_path / "a"), tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
    copy_and_verify(npstream.open(tmp_path / "a"), tmp_path / "b")


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_copy_that_was_killed_goes_on(compression, tmp_path, capsys):
    bodies = {"x": [bytes([k]) * 1000 for k in range(100)]}
    npstream.write(tmp_path / "a", bodies, shard_size="10KiB", compression=compression)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(tmp_path / "b"), "resume"]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    shard_times = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "b").glob("shard.0000[0-2]*")
    }
    assert len(shard_times) == 3
    assert main(["copy", str(tmp_path / "a"), str(tmp_path / "b"), "--resume"]) == 0
    assert "100 samples in 12 shards" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shard_times} == shard_times
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure", "sftp"])
def test_from_and_to_a_store(kind, servers, source, tmp_path):
    location = servers[kind].new_directory()
    local = npstream.open(source)
    _, remote_copy = copy_and_verify(
        local[::2], f"{location.url}/a", storage_options=location.storage_options
    )
    assert list(remote_copy) == list(local[::2])
    _, second_copy = copy_and_verify(
        remote_copy[::-1],
        f"{location.url}/b",
        compression="zstd",
        storage_options=location.storage_options,
    )
    assert list(second_copy) == list(local[::2][::-1])
    _, local_copy = copy_and_verify(second_copy[second_copy["seen"]], tmp_path / "back")
    assert samples_of(local_copy) == samples_of(local[::2][::-1])


# The command


def test_the_command(source, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--columns", "number", "text", "--rows", "10:40", "--where", "seen and number > 15"]
    settings = ["--compression", "zstd", "--hashes", "--shard-samples", "5", "--no-sidecar"]
    assert main(["copy", str(source), str(out), *words, *settings]) == 0
    ds = npstream.open(out)
    assert ds.columns == ("number", "text")
    assert ds["number"].load().tolist() == list(range(16, 40, 2))
    stored = sum(path.stat().st_size for path in out.glob("*.mds.zstd"))
    assert capsys.readouterr().out == f"{out}: 12 samples in 3 shards of {size_text(stored)}\n"
    entry = json.loads((out / "index.json").read_text())["shards"][0]
    assert (entry["compression"], entry["hashes"]) == ("zstd", [])
    assert not (out / "index.msgpack").exists()
    assert main(["copy", str(out), str(tmp_path / "raw"), "--compression", "none"]) == 0
    assert json.loads((tmp_path / "raw/index.json").read_text())["shards"][0]["zip_data"] is None
    capsys.readouterr()
    for extra, message in {
        ("--rows", "5"): "--rows: '5': expected a slice",
        ("--rows", "a:b"): "expected a slice",
        ("--rows", "::0"): "expected a slice",
        ("--shard-samples", "-1"): "--shard-samples: '-1': expected a whole number",
        ("--storage-options", "secret"): "--storage-options: expected NAME=VALUE",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            main(["copy", str(source), str(tmp_path / "x"), *extra])
        printed = capsys.readouterr().err
        assert message in printed
        assert "secret" not in printed.replace("--storage-options", "")
    for extra, message in {
        ("--where", "nunber > 3"): "no column 'nunber'; did you mean 'number'",
        ("--columns", "nunber"): "no column 'nunber'",
        ("--source-options", "key=1"): "storage_options are for remote stores",
    }.items():
        assert main(["copy", str(source), str(tmp_path / "x"), *extra]) == 1
        assert message in capsys.readouterr().err
    assert main(["copy", str(source), str(source)]) == 1
    assert "is the source of the view" in capsys.readouterr().err
