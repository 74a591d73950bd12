"""Appends and replacements: concurrent ones, after failures, and on every store."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from destinations import SHARD, names
from golden_data import FORMATS
from growing import append, assert_sound, contents, lacks_conditional_uploads

import npstream
from npstream.errors import FormatError, StorageError
from npstream.formats.index import INDEX
from npstream.shards.manifest import kept_versions
from npstream.storage.local import LocalStore, open_store
from npstream.storage.remote import RemoteStore
from npstream.writing.revisions.base import Base

pytestmark = pytest.mark.usefixtures("short_pauses")


# Appends


def test_every_version_can_be_opened(target, tmp_path):
    url, options = target
    settings = {"exclusive": lacks_conditional_uploads(url)}
    cache = tmp_path / "cache"
    versions = []
    for count in (5, 9, 12):
        first = len(versions) * 100
        report = append(url, options, range(first, first + count), **settings)
        assert report.samples == count
        versions.append(npstream.open(url, storage_options=options, cache=cache).version)
        assert_sound(url, options)
    whole = [*range(5), *range(100, 109), *range(200, 212)]
    for version, count in zip(versions, (5, 14, 26), strict=True):
        assert contents(url, options, cache, version=version) == whole[:count]
        with npstream.open(url, storage_options=options, version=version, cache=cache) as ds:
            assert ds.version == version
            if ds._source.remote is not None:
                sidecar = ds._source.remote.files.sidecar
                assert sidecar is not None
                assert sidecar.column("v").tolist() == whole[:count]
                assert sidecar.statistics()["v"].count == count
    kept = ", ".join(sorted(map(repr, versions[:2])))
    message = f"the newest is {versions[-1]!r}, and the former ones that were kept: {kept}"
    with pytest.raises(FileNotFoundError, match=message):
        npstream.open(url, storage_options=options, version="0f", cache=cache)


def test_a_reader_of_the_former_version_goes_on(target, tmp_path, small_chunks):
    url, options = target
    settings = {"exclusive": lacks_conditional_uploads(url)}
    append(url, options, range(40), **settings)
    former = npstream.open(url, storage_options=options, cache=tmp_path / "cache")
    assert former[3]["v"] == 3
    append(url, options, range(40, 60), **settings)
    assert former["v"].load().tolist() == list(range(40))
    assert [sample["v"] for sample in former] == list(range(40))
    newest = npstream.open(url, storage_options=options, cache=tmp_path / "cache")
    assert newest["v"].load().tolist() == list(range(60))


def test_an_append_of_no_samples_has_the_columns_of_the_dataset(tmp_path):
    npstream.write(tmp_path, {"v": np.arange(3)})
    for data in (iter(()), []):
        assert npstream.write(tmp_path, data, mode="a").samples == 0
    assert npstream.open(tmp_path)["v"].load().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no samples and no columns="):
        npstream.write(tmp_path / "new", iter(()), mode="a")
    assert not (tmp_path / "new").exists()


def test_replacing_a_dataset_removes_its_files(target, tmp_path):
    url, options = target
    cache = tmp_path / "cache"
    npstream.write(
        url, {"v": np.arange(30), "text": ["x"] * 30}, shard_size=SHARD, storage_options=options
    )
    former = npstream.open(url, storage_options=options, cache=tmp_path / "other")
    former_names = set(names(url, options))
    report = npstream.write(
        url, {"other": np.arange(3)}, mode="w", compression="zstd", storage_options=options
    )
    assert report.samples == 3
    with npstream.open(url, storage_options=options, cache=cache) as ds:
        assert ds["other"].load().tolist() == [0, 1, 2]
    assert_sound(url, options)
    assert not (former_names - {INDEX}) & set(names(url, options))
    with pytest.raises((StorageError, FormatError), match="was replaced since it was opened"):
        former["text"].load()


def test_replacing_a_merged_dataset_keeps_the_datasets_that_were_merged(tmp_path):
    for name, values in {"a": [1, 2], "b": [3]}.items():
        append(tmp_path / name, None, values)
        append(tmp_path / name, None, [9])
    npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert contents(tmp_path, None, None) == [1, 2, 9, 3, 9]
    assert_sound(tmp_path, None)
    append(tmp_path, None, [4])
    assert contents(tmp_path, None, None) == [1, 2, 9, 3, 9, 4]
    assert_sound(tmp_path, None)
    assert Base.read(open_store(tmp_path)).sidecar is not None
    npstream.write(tmp_path, {"v": [5], "text": ["5"]}, mode="w")
    assert contents(tmp_path, None, None) == [5]
    assert contents(tmp_path / "a", None, None) == [1, 2, 9]
    assert contents(tmp_path / "b", None, None) == [3, 9]


def test_columns_added_to_a_replaced_dataset_are_not_in_the_new_one(tmp_path):
    path = tmp_path / "out"
    npstream.write(path, {"x": np.arange(10)})
    npstream.add_columns(path, {"score": np.arange(10.0)})
    version = npstream.open(path).version
    npstream.write(path, {"x": np.arange(10) * 2}, mode="w")
    assert npstream.open(path).version == version  # without hashes, equal sizes give equal versions
    assert npstream.open(path)[3] == {"x": 6}
    npstream.write(path, {"x": np.arange(5)}, mode="a")
    assert npstream.open(path)[3] == {"x": 6}


def test_replacing_keeps_the_files_of_kept_versions(target, tmp_path):
    url, options = target
    cache, settings = tmp_path / "cache", {"exclusive": lacks_conditional_uploads(url)}
    append(url, options, range(10), **settings)
    with npstream.open(url, storage_options=options, cache=cache) as ds:
        version, shards = ds.version, len(ds.shards)
    append(url, options, range(10, 15), **settings)
    for value in (7, 8):
        data = {"v": [value], "text": [str(value)]}
        npstream.write(url, data, mode="w", storage_options=options)
        assert contents(url, options, cache) == [value]
        assert contents(url, options, cache, version=version) == list(range(10))
    assert len([name for name in names(url, options) if name.startswith("shard.")]) == shards + 1
    assert_sound(url, options)


@pytest.mark.parametrize("format", ["mds", "jsonl", "csv", "tsv", "xsv"])
def test_an_append_keeps_the_format_and_its_settings(format, tmp_path):
    settings = {"separator": "|", "newline": "\r\n"} if format == "xsv" else {}
    path = tmp_path / "out"
    first = [{"b": 1, "a": "x", "c": 0.5}, {"b": 2, "a": "y", "c": 1.5}]
    npstream.write(
        path, first, format=format, compression="zstd:3", hashes=["sha1", "xxh64"], **settings
    )
    npstream.build_index(path, columns=["b", "c"])
    second = [{"b": 3, "a": "z", "c": 2.5}]
    report = npstream.write(path, second, mode="a")
    assert list(report.columns) == ["b", "a", "c"]
    ds = npstream.open(path)
    assert [dict(sample) for sample in ds] == first + second
    entries = Base.read(open_store(path)).entries
    for key in entries[0].keys() - {"raw_data", "zip_data", "raw_meta", "zip_meta", "samples"}:
        assert entries[0][key] == entries[1][key], key
    assert entries[1]["raw_data"]["hashes"].keys() == {"sha1", "xxh64"}
    assert_sound(path, None)
    sidecar = Base.read(open_store(path)).sidecar
    assert sidecar.column("b").tolist() == [1, 2, 3]
    assert [bound.tolist() for bound in sidecar.shard_range("c")] == [[0.5, 2.5], [1.5, 2.5]]
    number = "float64" if format == "mds" else "float"
    columns = {"b": "int", "a": "str", "c": number}
    npstream.write(
        path, second, mode="a", compression="gz", hashes=["md5"], columns=columns, format=format,
        workers=1,
    )  # fmt: skip
    assert len(npstream.open(path)) == 4
    assert_sound(path, None)


def test_statistics_are_those_of_all_samples(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=3000).astype(np.float32)
    texts = [str(number) for number in rng.integers(10, size=3000)]
    columns = {"value": values, "text": texts, "flag": values > 0}
    npstream.write(tmp_path / "whole", columns, shard_samples=500)
    for start in range(0, 3000, 1000):
        part = {name: column[start : start + 1000] for name, column in columns.items()}
        npstream.write(tmp_path / "grown", part, mode="a", shard_samples=500)
    whole, grown = (Base.read(open_store(tmp_path / n)).sidecar for n in ("whole", "grown"))
    assert whole.statistics().keys() == grown.statistics().keys() == columns.keys()
    for name, statistics in whole.statistics().items():
        assert statistics.is_close(grown.statistics()[name])
        assert statistics.frequent.top() == grown.statistics()[name].frequent.top()
    assert_sound(tmp_path / "grown", None)
    assert npstream.open(tmp_path / "whole").version == npstream.open(tmp_path / "grown").version


def test_a_dataset_without_a_sidecar_grows_without_one(tmp_path):
    append(tmp_path / "out", None, [1, 2], sidecar=False)
    append(tmp_path / "out", None, [3])
    assert Base.read(open_store(tmp_path / "out")).sidecar is None
    npstream.build_index(tmp_path / "out")
    append(tmp_path / "out", None, [4])
    assert Base.read(open_store(tmp_path / "out")).sidecar.column("v").tolist() == [1, 2, 3, 4]
    append(tmp_path / "out", None, [5], sidecar=False)
    assert Base.read(open_store(tmp_path / "out")).sidecar is None
    assert contents(tmp_path / "out", None, None) == [1, 2, 3, 4, 5]


def test_an_empty_dataset_grows(tmp_path):
    npstream.write(tmp_path / "out", [], columns={"v": "int64", "text": "str"})
    append(tmp_path / "out", None, [1, 2])
    assert contents(tmp_path / "out", None, None) == [1, 2]
    assert_sound(tmp_path / "out", None)
    before = (tmp_path / "out" / INDEX).read_bytes()
    columns = {"v": "int64", "text": "str"}
    report = npstream.write(tmp_path / "out", [], columns=columns, mode="a")
    assert report.samples == 0
    assert (tmp_path / "out" / INDEX).read_bytes() == before
    npstream.write(tmp_path / "text", [], columns={"a": "float"}, format="csv")
    npstream.write(tmp_path / "text", [{"a": 0.5}], mode="a", format="csv")
    assert npstream.open(tmp_path / "text")[0] == {"a": 0.5}


def test_an_index_with_other_keys_keeps_them(tmp_path):
    append(tmp_path / "out", None, [1, 2])
    document = json.loads((tmp_path / "out" / INDEX).read_text())
    document |= {"mine": [1], "npstream": {"comment": "of another program"}}
    (tmp_path / "out" / INDEX).write_text(json.dumps(document))
    append(tmp_path / "out", None, [3])
    grown = json.loads((tmp_path / "out" / INDEX).read_text())
    assert grown["mine"] == [1]
    assert grown["npstream"] == document["npstream"]
    assert contents(tmp_path / "out", None, None) == [1, 2, 3]


DTYPES = {
    "flag": np.array([True, False]),
    "when": np.array(["2020-01-01", "2021-01-01"], "M8[D]"),
    "phase": np.array([1j, 2]),
    "tokens": np.arange(8, dtype=np.uint16).reshape(2, 4),
}


def test_columns_and_their_order_are_those_of_the_dataset(tmp_path):
    npstream.write(tmp_path / "out", DTYPES)
    npstream.write(tmp_path / "out", dict(reversed(DTYPES.items())), mode="a")
    ds = npstream.open(tmp_path / "out")
    assert list(ds.columns) == list(DTYPES)
    for name, values in DTYPES.items():
        assert (ds[name].load() == np.concatenate([values, values])).all()
    with npstream.Writer(tmp_path / "out", mode="a") as writer:
        writer.write({name: values[0] for name, values in DTYPES.items()})
        writer.write(npstream.Batch({name: values for name, values in DTYPES.items()}))
    assert len(npstream.open(tmp_path / "out")) == 7
    npstream.write(tmp_path / "out", ds[:2], mode="a")
    assert npstream.open(tmp_path / "out")[-1]["phase"] == 2


def test_python_values_become_the_columns_of_the_dataset(tmp_path):
    npstream.write(tmp_path / "out", [{"x": 1, "y": 0.5}], columns={"x": "int8", "y": "float32"})
    npstream.write(tmp_path / "out", {"x": [2], "y": [1.5]}, mode="a")
    npstream.write(tmp_path / "out", [{"x": 3, "y": 2.5}] * 40, mode="a", workers=1)
    assert npstream.open(tmp_path / "out")["x"].load().dtype == np.int8
    assert npstream.open(tmp_path / "out")["x"][:3].load().tolist() == [1, 2, 3]
    assert len(npstream.open(tmp_path / "out")) == 42
    with pytest.raises(
        ValueError, match=r"sample 0: column 'x' is 'int8' .*300 is out of bounds for int8"
    ):
        npstream.write(tmp_path / "out", [{"x": 300, "y": 0.5}], mode="a")


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ({"x": np.array([1.5]), "t": ["a"]}, {}, "column 'x' of .* is 'int64'.* it is 'float64'"),
        ({"x": np.arange(1)}, {}, "column 't' of .* is 'str', and what is appended has no such"),
        ({"x": np.arange(1), "t": ["a"], "z": ["b"]}, {}, "column 'z' of what .* is 'str'"),
        ([{"x": 1, "t": "a"}], {"columns": {"x": "int8", "t": "str"}}, "'int64'.*'int8'"),
        ([{"x": 1, "t": "a"}], {"format": "jsonl"}, "'x' of .* is 'int64', .* it is 'int'"),
        ([{"x": 1, "t": 2}], {}, "sample 0: column 't' is 'str'"),
        ([{"x": 1}], {}, "no column 't'"),
        ([{"x": 1, "t": "a", "z": 1}], {}, "sample 0 has 'z', which the dataset lacks"),
    ],
)  # fmt: skip
def test_an_append_of_other_columns_is_refused(data, settings, message, tmp_path):
    npstream.write(tmp_path / "out", {"x": np.arange(3), "t": list("abc")})
    before = sorted(os.listdir(tmp_path / "out"))
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        npstream.write(tmp_path / "out", data, mode="a", **settings)
    assert sorted(os.listdir(tmp_path / "out")) == before


def test_bad_arguments(tmp_path):
    for mode in ("r", "w+", None, 1):
        with pytest.raises(ValueError, match=r"mode=.*: it is 'x' to write a new dataset"):
            npstream.write(tmp_path / "out", {"x": [1]}, mode=mode)
    with pytest.raises(TypeError, match="exclusive=1: expected True or False"):
        npstream.write(tmp_path / "out", {"x": [1]}, mode="a", exclusive=1)
    assert not (tmp_path / "out").exists()
    npstream.write(tmp_path / "out", {"x": [1]})
    (tmp_path / "out" / INDEX).write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        npstream.write(tmp_path / "out", {"x": [1]}, mode="a")


# Several writers at once

ROUNDS = 8
SCRIPT = """
import json, sys
import numpy as np, npstream
from npstream.storage import requests
requests._BACKOFF = 0.001
url, options, writer, rounds = sys.argv[1], *map(json.loads, sys.argv[2:])
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    value = writer * 1000 + number
    data = {"v": np.full(3, value), "text": [str(value)] * 3}
    npstream.write(url, data, mode="a", shard_size=300, storage_options=options)
"""


def run_appenders(url, options, writers, rounds):
    """Run processes that append at the same time; return the standard error of failed ones."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", SCRIPT, str(url), json.dumps(options)]
    processes = [
        subprocess.Popen([*command, str(writer), str(rounds)], text=True, **pipes)
        for writer in range(1, writers + 1)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    return [text for text, process in zip(errors, processes, strict=True) if process.returncode]


CONDITIONAL = ["directory", "s3", "gcs", "azure", "oci", "hf"]


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_processes_that_append_at_once(kind, tmp_path, servers):
    url, options = str(tmp_path / "out"), None
    if kind != "directory":
        fresh = servers[kind].new_directory()
        url, options = fresh.url, fresh.storage_options
    append(url, options, [7])
    assert run_appenders(url, options, 2, ROUNDS) == []
    values = contents(url, options, tmp_path / "cache")
    expected = [writer * 1000 + number for writer in (1, 2) for number in range(ROUNDS)]
    assert values[0] == 7
    assert sorted(values[1:]) == sorted(expected * 3)
    for writer in (1, 2):  # each writer's samples are in its order
        assert [v for v in values if v // 1000 == writer] == sorted(
            v for v in values if v // 1000 == writer
        )
    assert_sound(url, options)
    with npstream.open(url, storage_options=options, cache=tmp_path / "cache") as ds:
        shards = len(ds.shards)
    paths = names(url, options)
    assert len([name for name in paths if name.startswith("shard.")]) == shards
    assert len([name for name in paths if name.endswith(".msgpack")]) == 2 * ROUNDS + 1
    indexes = [name for name in paths if name.startswith("index.") and name.endswith(".json")]
    assert len(indexes) == 2 * ROUNDS + 1


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_threads_that_append_and_replace_at_once(kind, tmp_path, memory):
    rng = random.Random(kind)
    for number in range(15):
        url = str(tmp_path / f"{number}") if kind == "directory" else f"{memory}/{number}"
        modes = [rng.choice("aaw") for _ in range(4)]
        barrier = threading.Barrier(len(modes))
        errors = []

        def run(value, mode, url=url, barrier=barrier, errors=errors):
            barrier.wait()
            try:
                data = {"v": np.full(4, value), "text": [str(value)] * 4}
                npstream.write(url, data, mode=mode, shard_size=SHARD)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=pair) for pair in enumerate(modes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        values = contents(url, None, tmp_path / "cache")
        # A write has all its samples, or none if it was replaced. The last replacement comes first.
        assert all(values.count(value) == 4 for value in set(values))
        if "w" not in modes:
            assert set(values) == set(range(4))
        else:
            assert modes[values[0]] == "w"
            assert all(modes[value] == "a" for value in values[4:])
        assert_sound(url, None)


def test_an_append_that_another_one_overtakes_keeps_its_shards(tmp_path, monkeypatch):
    """Another append is published between the shards and the index of the first one."""
    append(tmp_path / "out", None, [1])
    replace = LocalStore.replace

    def replace_after_another_write(self, name, data, tag, token):
        monkeypatch.setattr(LocalStore, "replace", replace)
        append(tmp_path / "out", None, [2])
        replace(self, name, data, tag, token)

    monkeypatch.setattr(LocalStore, "replace", replace_after_another_write)
    append(tmp_path / "out", None, [3, 3])
    assert contents(tmp_path / "out", None, None) == [1, 2, 3, 3]
    assert_sound(tmp_path / "out", None)


def test_an_append_whose_columns_no_longer_fit_is_refused(tmp_path, monkeypatch):
    append(tmp_path / "out", None, [1])
    replace = LocalStore.replace

    def replace_after_another_write(self, name, data, tag, token):
        monkeypatch.setattr(LocalStore, "replace", replace)
        npstream.write(tmp_path / "out", {"other": [1]}, mode="w")
        replace(self, name, data, tag, token)

    monkeypatch.setattr(LocalStore, "replace", replace_after_another_write)
    with pytest.raises(ValueError, match=r"column 'other' of .* is 'int', and what is"):
        append(tmp_path / "out", None, [3, 3])
    paths = names(tmp_path / "out")
    # The write that replaced the dataset has found the index that the append had kept.
    (version,) = kept_versions(LocalStore(str(tmp_path / "out")))
    assert len([name for name in paths if name.startswith("shard.")]) == 2
    assert contents(tmp_path / "out", None, None, version=version) == [1]
    assert npstream.open(tmp_path / "out")["other"].load().tolist() == [1]


def test_a_new_dataset_that_another_write_publishes_first(target, tmp_path):
    url, options = target
    settings = {"exclusive": lacks_conditional_uploads(url)}
    with npstream.Writer(url, mode="a", storage_options=options, **settings) as second:
        second.write({"v": np.int64(2), "text": "2"})
        append(url, options, [1], **settings)
    assert contents(url, options, tmp_path / "cache") == [1, 2]
    with npstream.Writer(url, mode="w", storage_options=options) as second:
        second.write({"v": np.int64(4), "text": "4"})
        append(url, options, [3], **settings)
    assert contents(url, options, tmp_path / "cache") == [4]
    assert_sound(url, options)


def test_a_new_write_does_not_replace_what_an_append_publishes(target, tmp_path):
    url, options = target
    settings = {"exclusive": lacks_conditional_uploads(url)}
    new = npstream.Writer(url, storage_options=options)
    new.write({"v": np.int64(2), "text": "2"})
    append(url, options, [1], **settings)
    with pytest.raises(FileExistsError):
        new.close()
    assert contents(url, options, tmp_path / "cache") == [1]


# Stores without conditions


@pytest.mark.parametrize("kind", ["sftp", "memory"])
def test_a_store_without_conditions(kind, servers, tmp_path, memory, monkeypatch):
    url, options = memory, None
    if kind == "sftp":
        fresh = servers[kind].new_directory()
        url, options = fresh.url, fresh.storage_options
    else:
        monkeypatch.setattr(RemoteStore, "can_replace", lambda self, name: False)
    message = "cannot replace a file on the condition .*: pass exclusive=True"
    for _ in range(2):
        with pytest.raises(StorageError, match=message) as caught:
            append(url, options, [1])
        assert caught.value.errno == errno.EOPNOTSUPP
        npstream.write(url, {"v": [1], "text": ["1"]}, mode="w", storage_options=options)
    append(url, options, [2], exclusive=True)
    assert contents(url, options, tmp_path / "cache") == [1, 2]


def ignore_condition(filesystem, path, data, tag):
    filesystem.pipe_file(path, data)


def refuse_condition(filesystem, path, data, tag):
    raise OSError(errno.EOPNOTSUPP, "not implemented")


@pytest.mark.parametrize("replace_file", [ignore_condition, refuse_condition])
def test_a_server_that_ignores_or_refuses_conditions(
    replace_file, memory, replace_in_memory, tmp_path
):
    npstream.write(memory, {"v": [1], "text": ["1"]})
    replace_in_memory(replace_file, checks_conditions=False)
    with pytest.raises(StorageError, match="pass exclusive=True"):
        append(memory, None, [2])
    assert not [name for name in names(memory) if name.endswith(".lock")]
    if replace_file is ignore_condition:
        append(memory, None, [2], exclusive=True)
        assert contents(memory, None, tmp_path / "cache") == [1, 2]


# Reading


def test_a_large_index_is_read_from_the_sidecar_that_it_names(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("npstream.shards.manifest.LARGE_INDEX", 1 << 17)
    text = "t" * 500
    data = {"v": np.arange(700), "text": [text] * 700}
    for start in (0, 350):
        part = {name: values[start : start + 350] for name, values in data.items()}
        npstream.write(memory, part, mode="a", shard_samples=1)
    assert RemoteStore(memory).size(INDEX) > 1 << 17
    read, names_read = RemoteStore.read, []

    def record(self, name, nbytes=None):
        names_read.append(name)
        return read(self, name, nbytes)

    monkeypatch.setattr(RemoteStore, "read", record)
    with npstream.open(memory, cache=tmp_path / "cache") as ds:
        assert INDEX not in names_read
        assert ds["v"].load().tolist() == list(range(700))


@pytest.mark.parametrize("kind", ["directory", "memory"])
def test_an_index_that_is_replaced_while_it_is_opened(kind, tmp_path, memory, monkeypatch):
    """The reader gets the version of the former index, and then the content of the new one."""
    url = str(tmp_path / "out") if kind == "directory" else memory
    store = type(open_store(url))
    append(url, None, range(9))
    calls = []

    def write_after(method):
        """Return a method that replaces the index after its first two calls for it."""

        def call_and_write(self, name, *arguments):
            result = method(self, name, *arguments)
            if name == INDEX and len(calls) < 2:
                calls.append(name)
                if len(calls) == 1:
                    append(url, None, [9])
                else:
                    npstream.write(url, {"v": [5], "text": ["5"]}, mode="w")
            return result

        return call_and_write

    monkeypatch.setattr(store, "version", write_after(store.version))
    if kind == "memory":
        # One request returns the version and the content of a small index. This one is large.
        monkeypatch.setattr("npstream.shards.manifest.SMALL_FILE", 1)
        monkeypatch.setattr(store, "read_start", write_after(store.read_start))
    assert contents(url, None, tmp_path / "cache") == [5]
    assert len(calls) == 2


GOLDEN = [
    *("mds_scalars", "mds_c_snappy", "mds_hz_xxh64", "mds_jpeg", "mds_json", "mds_nd_dynamic"),
    *("mds_str_numbers", "mds_nd_fixed", "jsonl_gz", "csv_crlf", "tsv_br", "xsv_emoji"),
    *("merged_root", "merged_mixed_limits"),
]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_dataset_of_streaming_grows(name, tmp_path):
    path = tmp_path / "out"
    shutil.copytree(FORMATS / name, path)
    ds = npstream.open(path)
    samples = len(ds)
    npstream.write(path, ds[:2], mode="a")
    npstream.write(path, [ds[0]], mode="a")
    grown = npstream.open(path)
    assert len(grown) == samples + 3
    for new, old in ((samples, 0), (samples + 1, 1), (samples + 2, 0)):
        for column, value in ds[old].items():
            np.testing.assert_array_equal(grown[new][column], value)
    assert_sound(path, None)
