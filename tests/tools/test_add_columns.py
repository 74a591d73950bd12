"""add_columns: values by position and by key; failed, concurrent and interrupted calls."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from children import fork_child, wait_for_child
from destinations import WRITABLE
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream
from npstream.errors import ColumnError, StorageError
from npstream.formats.versions import COLUMNS_FILE
from npstream.storage import drivers
from npstream.storage.local import open_store
from npstream.tools import add_columns as tool
from npstream.tools.keys import match_keys

N = 100
IDS = np.random.default_rng(1).permutation(N) * 3
NAMES = [f"name {number}" for number in IDS]


@pytest.fixture
def path(tmp_path):
    npstream.write(tmp_path / "data", {"id": IDS, "name": NAMES}, shard_samples=30)
    return tmp_path / "data"


def tree(path):
    """Return the paths and contents of everything in a directory."""
    return sorted(
        (str(entry), entry.read_bytes() if entry.is_file() else b"") for entry in path.rglob("*")
    )


def new_values():
    """Return the values of the new columns y and z, as a generator of samples."""
    return ({"y": number, "z": str(number)} for number in range(N))


def test_the_dataset_is_not_rewritten(path):
    before, version = tree(path), npstream.open(path).version
    report = npstream.add_columns(path, {"y": np.arange(N), "z": list(map(str, range(N)))})
    assert (report.samples, report.columns) == (N, {"y": "int64", "z": "str"})
    after = tree(path)
    assert [entry for entry in after if "/columns" not in entry[0]] == before
    ds = npstream.open(path)
    assert ds.version == version
    assert ds[7] == {"id": IDS[7], "name": NAMES[7], "y": 7, "z": "7"}


INPUTS = {
    "mapping": lambda: {"y": np.arange(N), "z": [str(row) for row in range(N)]},
    "samples": lambda: list(new_values()),
    "generator": new_values,
    "structured": lambda: np.array([*enumerate(map(str, range(N)))], [("y", "i8"), ("z", "U3")]),
    "pandas": lambda: pytest.importorskip("pandas").DataFrame(INPUTS["mapping"]()),
    "arrow": lambda: pytest.importorskip("pyarrow").table(INPUTS["mapping"]()),
    "reader": lambda: pytest.importorskip("pyarrow").table(INPUTS["mapping"]()).to_reader(7),
    "polars": lambda: pytest.importorskip("polars").DataFrame(INPUTS["mapping"]()),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_data_of_many_kinds(kind, path):
    npstream.add_columns(path, INPUTS[kind]())
    ds = npstream.open(path)
    np.testing.assert_array_equal(ds["y"].load(), np.arange(N))
    assert list(ds["z"]) == [str(row) for row in range(N)]


@pytest.mark.parametrize("kind", [*INPUTS, "dataset"])
@pytest.mark.parametrize("key", ["id", "name"])
def test_data_of_many_kinds_by_key(kind, key, path, tmp_path):
    """The rows come in another order, with the dataset's keys."""
    shuffled = np.random.default_rng(2).permutation(N)
    keys = IDS[shuffled] if key == "id" else [NAMES[row] for row in shuffled]
    npstream.write(tmp_path / "other", {key: keys, "y": shuffled, "z": [str(r) for r in shuffled]})
    dataset = npstream.open(tmp_path / "other")
    fields = [(key, "i8" if key == "id" else "U9"), ("y", "i8"), ("z", "U3")]
    data = {
        "mapping": lambda: {name: np.array(dataset[name]) for name in dataset.columns},
        "samples": lambda: list(dataset),
        "generator": lambda: iter(dataset),
        "structured": lambda: np.array([tuple(row.values()) for row in dataset], fields),
        "pandas": lambda: pytest.importorskip("pandas").DataFrame.from_arrow(dataset),
        "arrow": lambda: pytest.importorskip("pyarrow").table(dataset),
        "reader": lambda: pytest.importorskip("pyarrow").table(dataset).to_reader(7),
        "polars": lambda: pytest.importorskip("polars").DataFrame(dataset),
        "dataset": lambda: dataset,
    }[kind]()
    npstream.add_columns(path, data, key=key)
    ds = npstream.open(path)
    np.testing.assert_array_equal(ds["y"].load(), np.arange(N))
    assert list(ds["z"]) == [str(row) for row in range(N)]
    assert ds.columns == ("id", "name", "y", "z")


def test_rows_of_a_memory_map_are_matched_by_key_and_missing_ones_filled(path, tmp_path):
    rows = np.flatnonzero(np.arange(N) % 3)
    emb = np.lib.format.open_memmap(tmp_path / "e.npy", "w+", np.float32, (len(rows), 5))
    emb[...] = rows[:, None] + np.arange(5) / 8
    fill = {"emb": np.full(5, -1, np.float32)}
    npstream.add_columns(path, {"id": IDS[rows], "emb": emb}, key="id", fill=fill)
    expected = np.arange(N)[:, None] + np.arange(5) / 8
    expected[::3] = -1
    np.testing.assert_array_equal(npstream.open(path)["emb"].load(), expected)


def test_missing_rows_of_other_columns_are_filled(path):
    rows = [row for row in range(N) if row % 3]
    data = [{"name": NAMES[row], "text": "x" * row, "tag": row} for row in rows]
    npstream.add_columns(path, data, key="name", fill={"text": "?", "tag": -1})
    ds = npstream.open(path)
    assert list(ds["text"]) == ["x" * row if row % 3 else "?" for row in range(N)]
    assert list(ds["tag"]) == [row if row % 3 else -1 for row in range(N)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_keys_are_matched_as_by_a_dict(data):
    kind = data.draw(st.sampled_from([st.integers(-(2**63), 2**63 - 1), st.integers(0, 20),
                                      st.integers(0, 2**64 - 1), st.text(max_size=3)]))  # fmt: skip
    keys = data.draw(st.lists(kind, max_size=12))
    data_keys = data.draw(st.permutations(keys))[: data.draw(st.integers(0, 12))]
    data_keys += data.draw(st.lists(kind, max_size=2))
    start = data.draw(st.integers(0, len(keys)))
    has_fill = data.draw(st.booleans())
    row_of = {key: row for row, key in enumerate(data_keys)}
    expected = [row_of.get(key, -1) for key in keys[start:]]
    is_valid = (
        len(set(keys)) == len(keys)
        and len(row_of) == len(data_keys)
        and (has_fill or -1 not in expected)
        and len(data_keys) == sum(row >= 0 for row in expected)  # all rows of the data are used
    )
    arguments = "k", as_array(keys), start, as_array(data_keys), has_fill
    if is_valid:
        assert match_keys(*arguments).tolist() == expected
    else:
        with pytest.raises(ValueError, match="key='k'"):
            match_keys(*arguments)


def as_array(values):
    if not values:
        return np.empty(0, np.int64)
    if isinstance(values[0], str):
        return np.array(values, object)
    return np.array(values, np.uint64 if max(values) >= 2**63 else np.int64)


# Errors


@pytest.mark.parametrize(
    ("data_keys", "message"),
    [([1, 9, 3], "1 key that no sample has: 9: leave"),
     ([3, 1], "1 key of samples that already have values: 1: leave")],
)  # fmt: skip
def test_unused_keys_are_named(data_keys, message):
    with pytest.raises(ValueError, match=message):
        match_keys("k", np.array([1, 2, 3]), 2, np.array(data_keys), True)


Y = np.arange(N)
REFUSALS = [
    ({"y": Y[:-1]}, {}, ValueError, "data has 99 values of each column, .* has 100 samples"),
    ([{"y": 1}], {}, ValueError, "data has 1 value of each column"),
    ({"name": Y}, {}, ValueError, "has a column 'name': give the new one another name"),
    ({"old": Y}, {}, ValueError, "'old' was added before: pass replace=True"),
    ({"old": Y, "new": Y}, {}, ValueError, "'old' was added before"),
    ({}, {}, ValueError, "no columns"),
    ([], {}, ValueError, "no samples"),
    ({"y": Y}, {"fill": {"z": 1}}, ValueError, r"fill: data has no column 'z'; .* \['y'\]"),
    ({"y": Y}, {"fill": {"y": 0.5}}, ValueError, "cannot hold 0.5"),
    ({"y": Y}, {"replace": 1}, TypeError, "replace=1"),
    ({"y": Y}, {"key": 1}, TypeError, "key=1: expected the name"),
    ({"y": Y}, {"key": "nope"}, ColumnError, "no column 'nope'"),
    ({"y": Y}, {"key": "id"}, ColumnError, "data: no column 'id'"),
    ({"y": Y, "id": Y[:-1]}, {"key": "id"}, ValueError, "differ in length"),
    ({"y": Y, "id": np.array(NAMES)}, {"key": "id"}, TypeError, "has integers, and data has text"),
    ({"y": Y, "id": Y * 0.5}, {"key": "id"}, TypeError, "holds float64 in data; keys are"),
    ({"y": Y, "id": np.r_[IDS[:-1], IDS[0]]}, {"key": "id"}, ValueError,
     f"data has 1 key more than once: {IDS[0]}"),
    ({"y": Y[1:], "id": IDS[1:]}, {"key": "id"}, ValueError, f"1 sample .* the keys {IDS[0]}: add"),
    ({"y": Y, "id": np.r_[IDS[1:], 1]}, {"key": "id", "fill": {"y": 0}}, ValueError,
     "1 key that no sample has: 1: leave"),
    (({"y": 1 if row < 50 else 1 / 0} for row in range(N)), {}, ZeroDivisionError, "division"),
    ({"y": Y}, {"columns": {"y": "int8", "z": "str"}}, ColumnError, "'z'"),
    ({"y": Y * 3}, {"columns": {"y": "int8"}}, ValueError, "int8"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "options", "kind", "message"), REFUSALS)
def test_refusals_leave_nothing(data, options, kind, message, path):
    npstream.add_columns(path, {"old": np.zeros(N)})
    before = tree(path)
    with pytest.raises(kind, match=message):
        npstream.add_columns(path, data, **options)
    assert tree(path) == before


def test_repeated_keys_of_the_dataset_are_named(tmp_path):
    npstream.write(tmp_path / "data", {"id": [1, 2, 2, 3]})
    with pytest.raises(ValueError, match="the dataset has 1 key more than once: 2"):
        npstream.add_columns(tmp_path / "data", {"id": [1, 2, 3], "y": [1, 2, 3]}, key="id")


def test_there_must_be_a_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset is here"):
        npstream.add_columns(tmp_path / "data", {"y": Y})
    assert list(tmp_path.iterdir()) == []


# Replacing and removing


def test_replaced_and_removed_columns(path):
    npstream.add_columns(path, {"a": Y, "b": Y})
    npstream.add_columns(path, {"b": Y * 2, "name": Y}, replace=True)
    ds = npstream.open(path)
    assert ds.columns == ("id", "name", "a", "b")
    assert ds[3] == {"id": IDS[3], "name": 3, "a": 3, "b": 6}
    assert npstream.open(path, columns=["name"])[3] == {"name": 3}
    assert len(list((path / "columns").iterdir())) == 2
    npstream.remove_columns(path, "name")  # the column of the dataset is visible again
    assert npstream.open(path)[3]["name"] == NAMES[3]
    # "a" was the last column of the first call, so the files of that call are removed.
    npstream.add_columns(path, {"a": Y * 5}, replace=True)
    assert len(list((path / "columns").iterdir())) == 2
    assert npstream.open(path)[3] == {"id": IDS[3], "name": NAMES[3], "b": 6, "a": 15}
    with pytest.raises(ColumnError, match="no column 'name'; columns: a, b"):
        npstream.remove_columns(path, ["a", "name"])
    npstream.remove_columns(path, ["a", "b"])
    assert npstream.open(path).columns == ("id", "name")
    assert not (path / "columns").exists()


def test_verification_covers_added_columns(path):
    npstream.add_columns(path, {"y": Y}, fill={"y": 0})
    assert npstream.verify_dataset(path).problems == ()
    # The fill value is a dataset of its own, in a directory whose name ends with "-fill".
    (shard,) = path.glob("columns/*[!l]/shard.00000.mds")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (problem, *_) = npstream.verify_dataset(path).problems
    assert str(shard.parent) in problem
    shard.unlink()
    assert str(shard) in npstream.verify_dataset(path).problems[0]


# Publication


def add(url, options, number, **extra):
    values = {f"y{number}": Y + number, f"z{number}": [str(row + number) for row in range(N)]}
    npstream.add_columns(url, values, storage_options=options, shard_samples=40, **extra)


@pytest.fixture(params=["directory", "memory", *WRITABLE])
def url_and_options(request, tmp_path):
    """Return the URL and the options of a dataset in each kind of store."""
    if request.param == "directory":
        url, options = str(tmp_path / "data"), None
    elif request.param == "memory":
        url, options = f"memory://{request.node.name}", None
    else:
        fresh = request.getfixturevalue("servers")[request.param].new_directory()
        url, options = fresh.url, fresh.storage_options
    npstream.write(url, {"id": IDS}, storage_options=options)
    yield url, options
    fsspec.filesystem("memory").store.clear()


def has_conditions(url):
    """Return True if the store can replace a file on condition that nobody has changed it."""
    return not url.startswith("sftp")


def test_two_at_once_do_not_lose_each_others_columns(url_and_options, tmp_path):
    url, options = url_and_options
    if not has_conditions(url):
        with pytest.raises(StorageError, match="pass exclusive=True"):
            add(url, options, 0)
        add(url, options, 0, exclusive=True)
        add(url, options, 1, exclusive=True)
    elif url.startswith("memory"):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: add(url, options, number), range(2)))
    else:
        children = [fork_child(lambda n=n: add(url, options, n)) for n in range(2)]
        assert [wait_for_child(child) for child in children] == [0, 0]
    ds = npstream.open(url, cache=tmp_path / "cache", storage_options=options)
    assert set(ds.columns) == {"id", "y0", "z0", "y1", "z1"}
    for number in range(2):
        np.testing.assert_array_equal(ds[f"y{number}"].load(), Y + number)
        assert ds[5][f"z{number}"] == str(5 + number)
    extra = {} if has_conditions(url) else {"exclusive": True}
    npstream.remove_columns(url, ["y0", "z0"], storage_options=options, **extra)
    ds = npstream.open(url, cache=tmp_path / "cache", storage_options=options)
    assert ds.columns == ("id", "y1", "z1")


def test_the_second_of_two_with_one_name_is_refused(path, monkeypatch):
    barrier, update = threading.Barrier(2), tool.update_groups

    def wait(*arguments):
        barrier.wait(60)  # both have written, and neither has published
        return update(*arguments)

    monkeypatch.setattr(tool, "update_groups", wait)

    def try_to_add(number):
        try:
            npstream.add_columns(path, {"y": Y * number})
        except ValueError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(try_to_add, (1, 2)))
    assert sorted(map(bool, results)) == [False, True]
    assert "'y' was added before" in "".join(results)
    winner = 2 if results[0] else 1  # the number whose call had no error
    np.testing.assert_array_equal(npstream.open(path)["y"].load(), Y * winner)
    assert len(list((path / "columns").iterdir())) == 1


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_lost_request_or_response_is_no_error(is_stored, path, upload, monkeypatch, tmp_path):
    url = upload(path)
    npstream.add_columns(url, {"x": Y})
    driver, lost_names = drivers.SCHEMES["memory"], []

    def lose(filesystem, name, data, *condition):
        if is_stored or lost_names:
            driver.replace(filesystem, name, data, *condition)
        if not lost_names:
            lost_names.append(name)
            raise ConnectionResetError

    monkeypatch.setitem(drivers.SCHEMES, "memory", dataclasses.replace(driver, replace=lose))
    npstream.add_columns(url, {"y": Y})
    assert lost_names
    assert npstream.open(url, cache=tmp_path / "cache").columns == ("id", "name", "x", "y")


def test_a_server_that_ignores_conditions_is_detected(path, upload, monkeypatch, tmp_path):
    url, driver = upload(path), drivers.SCHEMES["memory"]

    def ignore(filesystem, name, data, tag):
        filesystem.pipe_file(name, data)

    unconditional = dataclasses.replace(driver, replace=ignore, checks_conditions=False)
    monkeypatch.setitem(drivers.SCHEMES, "memory", unconditional)
    with pytest.raises(StorageError, match="pass exclusive=True"):
        npstream.add_columns(url, {"y": Y})
    npstream.add_columns(url, {"y": Y}, exclusive=True)
    conditional = dataclasses.replace(driver, checks_conditions=False)
    monkeypatch.setitem(drivers.SCHEMES, "memory", conditional)
    npstream.add_columns(url, {"z": Y})
    ds = npstream.open(url, cache=tmp_path / "cache")
    assert ds.columns == ("id", "name", "y", "z")
    # The files with which `add_columns` tested the server are removed.
    assert not [name for name, _ in open_store(url).names() if "lock" in name]


KILLED_AT = ["the first shard", "the index of the part", "the list of columns", "never"]


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_killed_call_changes_nothing_and_can_be_repeated(moment, path):
    npstream.add_columns(path, {"x": Y})

    def work():
        names = {"the first shard": "shard.00000.mds", "the index of the part": "index.json",
                 "the list of columns": COLUMNS_FILE}  # fmt: skip
        rename, link = os.replace, os.link

        def die(function, source, target):
            if os.path.basename(target) == names.get(moment):
                os.kill(os.getpid(), signal.SIGKILL)
            function(source, target)

        os.replace = lambda source, target: die(rename, source, target)
        os.link = lambda source, target: die(link, source, target)
        npstream.add_columns(path, {"y": Y})

    status = wait_for_child(fork_child(work))
    assert os.WIFSIGNALED(status) == (moment != "never")
    ds = npstream.open(path)
    assert ds.columns == (("id", "name", "x") if moment != "never" else ("id", "name", "x", "y"))
    assert ds[9]["x"] == 9
    if moment != "never":
        npstream.add_columns(path, {"y": Y * 2})
        np.testing.assert_array_equal(npstream.open(path)["y"].load(), Y * 2)
    assert npstream.verify_dataset(path).problems == ()


# Interrupted calls


def numbers(stop=None, count=N):
    """Yield the values of new columns, and raise before number `stop`."""
    for number in range(count):
        if number == stop:
            raise ZeroDivisionError
        yield {"y": number, "z": str(number)}


@pytest.mark.parametrize("kind", ["samples", "arrays", "by key"])
def test_a_killed_call_continues(kind, path, tmp_path):
    options = {"shard_samples": 10, "resume": True, "fill": {"y": -1}}
    np.save(tmp_path / "y.npy", Y)

    def add(die_at=None):
        if kind == "samples":
            data = numbers()
        else:
            data = {"y": np.load(tmp_path / "y.npy", mmap_mode="r")}
            data |= {"id": np.arange(N) * 3} if kind == "by key" else {}
        link, count = os.link, 0

        def die(source, target):
            nonlocal count
            link(source, target)
            count += os.path.basename(target).startswith("shard.")
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.link = die
        try:
            return npstream.add_columns(
                path, data, key="id" if kind == "by key" else None, **options
            )
        finally:
            os.link = link

    # Each call is killed when it has stored this number of shards. The shard of the fill value
    # counts if it is stored first. The next call stores shards again that were not yet recorded.
    for die_at in (6, 3):
        assert os.WIFSIGNALED(wait_for_child(fork_child(lambda die_at=die_at: add(die_at))))
        assert npstream.open(path).columns == ("id", "name")
    shards = list(path.glob("columns/*/shard.0000[1-9].mds"))
    assert len({shard.parent for shard in shards}) == 1
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    add()
    kept = [shard for shard in shards if shard.stat().st_mtime_ns == times[shard]]
    assert len(kept) >= 2  # the others were not recorded
    expected = Y if kind != "by key" else Y[IDS // 3]
    np.testing.assert_array_equal(npstream.open(path)["y"].load(), expected)
    assert npstream.verify_dataset(path).problems == ()
    with pytest.raises(ValueError, match="was added before"):
        add()


def test_a_failed_call_keeps_its_shards_only_with_resume(path):
    before = tree(path)
    options = {"shard_samples": 7}
    with pytest.raises(ZeroDivisionError):
        npstream.add_columns(path, numbers(80), **options)
    assert tree(path) == before
    with pytest.raises(ZeroDivisionError) as caught:
        npstream.add_columns(path, numbers(80), resume=True, **options)
    assert "whole shards, which readers do not see" in str(caught.value.__notes__)
    with pytest.raises(ValueError, match="shard_samples: 7 then, 8 now"):
        npstream.add_columns(path, numbers(), resume=True, shard_samples=8)
    with pytest.raises(ValueError, match="data has 90 values of each column"):
        npstream.add_columns(path, numbers(count=90), resume=True, **options)
    # That call completed a part of 90 samples. It cannot be continued, so it was removed.
    assert tree(path) == before
    npstream.add_columns(path, numbers(), resume=True, **options)
    assert npstream.open(path)["y"].load().tolist() == list(range(N))


def test_a_complete_part_is_not_reused(path):
    """Another process may have stored it, and may be about to publish it."""

    def work():
        tool.update_groups = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        npstream.add_columns(path, {"y": Y * 2}, resume=True)

    assert os.WIFSIGNALED(wait_for_child(fork_child(work)))
    npstream.add_columns(path, {"y": Y}, resume=True)
    np.testing.assert_array_equal(npstream.open(path)["y"].load(), Y)
    npstream.add_columns(path, {"y": Y * 3}, resume=True, replace=True)
    np.testing.assert_array_equal(npstream.open(path)["y"].load(), Y * 3)
    assert npstream.verify_dataset(path).problems == ()


def test_an_interrupted_call_for_new_samples_is_resumed(path):
    npstream.add_columns(path, {"y": Y, "z": list(map(str, range(N)))}, resume=True)
    npstream.write(path, {"id": IDS + 1000, "name": NAMES}, mode="a")
    with pytest.raises(ZeroDivisionError):
        npstream.add_columns(path, numbers(80), shard_samples=7, resume=True)
    npstream.add_columns(path, numbers(), shard_samples=7, resume=True)
    assert npstream.open(path)["z"][[0, N, 2 * N - 1]].tolist() == ["0", "0", str(N - 1)]


def test_an_interrupt_after_the_publication_keeps_the_columns(path, monkeypatch):
    update = tool.update_groups

    def interrupt(*arguments):
        update(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "update_groups", interrupt)
    with pytest.raises(KeyboardInterrupt):
        npstream.add_columns(path, {"y": Y})
    np.testing.assert_array_equal(npstream.open(path)["y"].load(), Y)


def test_a_full_disk_publishes_nothing(path, monkeypatch):
    before = tree(path)
    monkeypatch.setattr(tool, "_create", raise_disk_full)
    with pytest.raises(StorageError, match="disk is full"):
        npstream.add_columns(path, {"y": Y})
    assert tree(path) == before


def raise_disk_full(store, data):
    raise StorageError(errno.ENOSPC, "the disk is full", store.where(COLUMNS_FILE))


def test_the_list_of_columns_is_json(path):
    npstream.add_columns(path, {"y": Y}, fill={"y": 3})
    document = json.loads(Path(path, COLUMNS_FILE).read_text())
    (group,) = document["groups"]
    assert group["columns"] == ["y"]
    assert group["dataset"]["version"] == npstream.open(path).version
    assert group["parts"][0]["samples"] == N
    assert npstream.open(path / group["parts"][0]["path"])["y"][4] == 4
