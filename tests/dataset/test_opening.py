"""Opening a dataset: its columns, invalid arguments, and shards with different columns."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from dataset_files import merge, write_jsonl
from mixed_columns import COLUMNS, VALUES, N, check_sample

import npstream
from npstream import errors

# Columns and arguments


def test_columns_are_selected_or_reinterpreted(path):
    assert npstream.open(path, columns=["text", "label"]).columns == ("text", "label")
    with pytest.raises(errors.ColumnError, match="did you mean 'label'"):
        npstream.open(path, columns=["lable"])
    with pytest.raises(ValueError, match="listed twice"):
        npstream.open(path, columns=["text", "text"])
    with pytest.raises(TypeError, match=r"columns='text': expected a list"):
        npstream.open(path, columns="text")
    ds = npstream.open(path, columns={"data": "uint8", "label": np.uint64})
    assert ds.columns == tuple(COLUMNS)
    assert ds["label"].dtype == np.uint64
    assert ds[5]["data"].tolist() == [0, 1, 2, 3, 4]
    assert ds.load()["data"].kind is None
    with pytest.raises(ValueError, match="cannot be viewed"):
        npstream.open(path, columns={"label": "float32"})
    with pytest.raises(errors.ColumnError):
        npstream.open(path, columns={"lable": "float32"})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("cache_limit", "100 bananas", ValueError),
        ("cache_limit", -1, ValueError),
        ("cache_limit", True, TypeError),
        ("cache_limit", ["1GB"], TypeError),
        ("cache", 3, TypeError),
        ("cache", "s3://bucket/cache", ValueError),
        ("implicit_read_limit", "much", ValueError),
        ("implicit_read_limit", {}, TypeError),
        ("timeout", "soon", TypeError),
        ("timeout", 0, ValueError),
        ("timeout", float("nan"), ValueError),
        ("retries", -1, ValueError),
        ("retries", 2.5, TypeError),
        ("storage_options", "key", TypeError),
        ("version", 3, TypeError),
        ("allow_pickle", "no", TypeError),
        ("verify", "sometimes", ValueError),
        ("index", 3, TypeError),
        ("split", 3, TypeError),
    ],
)
def test_invalid_arguments_raise_before_anything_is_read(tmp_path, name, value, error):
    for url in (tmp_path / "absent", "memory://absent/dataset"):
        with pytest.raises(error, match=f"^{name}"):
            npstream.open(url, **{"cache": tmp_path / "cache", name: value})
    assert not (tmp_path / "cache").exists()


def test_a_dataset_may_have_no_columns(path):
    ds = npstream.open(path, columns=[])
    assert (ds.columns, len(ds)) == ((), N)
    assert ds[1] == {}
    assert list(ds[:2]) == [{}, {}]
    assert ds[[3, 1]].load().ids.tolist() == [3, 1]
    with pytest.raises(TypeError, match="structured array"):
        np.asarray(ds)
    assert "<table>" in ds._repr_html_()


def test_columns_are_unpickled_only_with_allow_pickle(tmp_path):
    npstream.write(tmp_path, {"x": [pickle.dumps(i) for i in range(3)], "y": np.arange(3)})
    for columns in ({"x": "pkl"}, {"x": "pkl", "y": "int"}):
        with pytest.raises(ValueError, match="allow_pickle=True"):
            npstream.open(tmp_path, columns=columns)
    ds = npstream.open(tmp_path, columns={"x": "pkl"}, allow_pickle=True)
    assert [sample["x"] for sample in ds] == [0, 1, 2]
    assert ds["x"].view("pkl")[1] == 1
    with pytest.raises(ValueError, match="allow_pickle=True"):
        npstream.open(tmp_path)["x"].view("pkl")


def test_a_missing_index_an_unknown_hash_and_an_unknown_protocol_raise(tmp_path, path):
    with pytest.raises(errors.StorageError, match=r"index\.json"):
        npstream.open(tmp_path)
    with pytest.raises(ValueError, match="verify='sha0'"):
        npstream.open(path, verify="sha0")
    with pytest.raises(ValueError, match="s3"):
        npstream.open("s4://bucket/data")


def test_open_reads_only_the_index(path, tmp_path):
    (tmp_path / "index.json").write_bytes((path / "index.json").read_bytes())
    ds = npstream.open(tmp_path)
    assert len(ds[::2]["tokens"]) == 6
    with pytest.raises(errors.StorageError, match="No such file"):
        ds[0]


# Shards with different columns


@pytest.fixture
def mixed(tmp_path):
    """Return a dataset of merged shards (MDS, MDS with other columns, JSONL) and its samples."""
    one = [{"n": np.int64(i), "x": i / 2, "text": f"{i}", "a": 1, "only": b"one"} for i in range(3)]
    two = [{"text": f"{i}" * i, "n": i, "x": i / 2, "a": f"{i}"} for i in range(3, 5)]
    three = [{"x": i / 2, "text": "é" * i, "n": i, "extra": "three"} for i in range(5, 9)]
    npstream.write(tmp_path / "1", one)
    npstream.write(tmp_path / "2", two)
    columns = {"x": "float", "text": "str", "n": "int", "extra": "str"}
    write_jsonl(tmp_path / "3", three, columns)
    samples = [{name: row[name] for name in ("n", "text", "x")} for row in one + two + three]
    return merge(tmp_path), samples


def test_merged_shards_have_the_columns_that_all_have(mixed):
    ds, samples = mixed
    assert ds.columns == ("n", "text", "x")
    assert ds.dtypes["n"] == np.int64
    rng = np.random.default_rng(0)
    for order in (np.arange(9), rng.permutation(9), rng.integers(0, 9, 50), np.array([0, 8])):
        expected = [samples[i] for i in order]
        view = ds[order]
        assert [view[i] for i in range(len(order))] == expected
        assert list(view) == expected
        batch = view.load(out={"n": (numbers := np.zeros(len(order), np.int64))})
        assert batch["n"] is numbers
        assert batch["n"].tolist() == [sample["n"] for sample in expected]
        assert batch["x"].tolist() == [sample["x"] for sample in expected]
        assert batch["text"].to_list() == [sample["text"] for sample in expected]
        assert (view["text"] == "4444").tolist() == [s["text"] == "4444" for s in expected]
        assert (view["text"] == "éééééé").tolist() == [s["text"] == "éééééé" for s in expected]
        assert np.asarray(view[["n", "x"]])["x"].tolist() == [s["x"] for s in expected]


def test_columns_of_all_kinds_are_read_from_merged_shards(tmp_path):
    # Only the parts 0 and 2 have these columns. Sorted by name, as MDS stores columns, they are the
    # first and the last one, so other columns have different offsets in these parts.
    extra = {"before": b"a", "until": 1}
    for part in range(3):
        rows = [{name: VALUES[name][i] for name in VALUES} for i in range(4 * part, 4 * part + 3)]
        rows = [row | ({} if part == 1 else extra) for row in rows]
        columns = COLUMNS | ({} if part == 1 else {"before": "bytes", "until": "int8"})
        npstream.write(tmp_path / f"{part}", rows, columns=columns)
    ds = merge(tmp_path)
    order = np.array([8, 0, 3, 4, 3, 7])
    ids = order // 3 * 4 + order % 3  # a part has 3 of each 4 values
    for k, i, sample in zip(order, ids, ds[order], strict=True):
        check_sample(sample, i)
        check_sample(ds[k], i)
    batch = ds[order].load()
    assert np.array_equal(batch["tokens"], VALUES["tokens"][ids])
    assert batch["meta"].tolist() == [VALUES["meta"][i] for i in ids]
    assert batch["data"].to_list() == [VALUES["data"][i] for i in ids]
    assert all(map(np.array_equal, batch["ragged"], VALUES["ragged"][ids]))
    for cells in (1, slice(1, 3), [0, 2], slice(None, None, -1)):
        assert np.array_equal(ds["tokens"][order][:, cells], VALUES["tokens"][ids][:, cells])
    assert np.array_equal(ds["ragged"].view("float32")[4], VALUES["ragged"][5].view("float32"))
    assert np.array_equal(np.asarray(ds["number"]), VALUES["number"][[0, 1, 2, 4, 5, 6, 8, 9, 10]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a", r"column 'a' is 'str' in shard 1, but 'int' before it"),
        ("only", r"not all shards have column 'only': shard 1 does not have it"),
        ("extra", r"not all shards have column 'extra': shard 2 has it"),
    ],
)
def test_reading_a_column_that_not_all_shards_have_names_the_shard(mixed, name, message):
    ds, _ = mixed
    for read in (lambda: ds[name], lambda: ds[[name]]):
        with pytest.raises(errors.FormatError, match=message):
            read()
