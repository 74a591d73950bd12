"""``columns=[...]`` selects and orders columns, and infers their encodings."""

from __future__ import annotations

import collections

import numpy as np
import pandas as pd
import pytest

import npstream
from npstream.errors import ColumnError

COUNT = 4
ARRAYS = {"a": np.arange(COUNT), "b": np.arange(COUNT, dtype=np.float32), "c": list("wxyz")}
ODD = object()  # no encoding stores it, so a write must ignore columns that are left out
ROWS = [{"a": k, "b": np.float32(k), "c": "wxyz"[k], "odd": ODD} for k in range(COUNT)]


def arrow():
    return pytest.importorskip("pyarrow").table(
        ARRAYS | {"odd": pytest.importorskip("pyarrow").nulls(COUNT)}
    )


def hugging_face():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({name: list(column) for name, column in ARRAYS.items()})


def written_dataset(tmp_path):
    npstream.write(tmp_path / "stored", ARRAYS)
    return npstream.open(tmp_path / "stored")


Row = collections.namedtuple("Row", "a b c odd")

DATA = {
    "samples": lambda path: ROWS,
    "a generator": lambda path: iter(ROWS),
    "named tuples": lambda path: [Row(**row) for row in ROWS],
    "arrays": lambda path: ARRAYS | {"odd": [ODD] * COUNT},
    "pandas": lambda path: pd.DataFrame(ARRAYS | {"odd": [ODD] * COUNT}),
    "tables": lambda path: [pd.DataFrame(ARRAYS), pd.DataFrame(ARRAYS | {"odd": [ODD] * COUNT})],
    "arrow": lambda path: arrow(),
    "a reader": lambda path: arrow().to_reader(),
    "datasets": lambda path: hugging_face(),
    "npstream": written_dataset,
    "a view": lambda path: written_dataset(path)[::2],
    "a structured array": lambda path: np.array(
        [(k, k, "x") for k in range(COUNT)], [("a", int), ("b", "f4"), ("c", "U1")]
    ),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("names", [["c", "a"], ("b",)])
def test_columns_are_selected_and_ordered(kind, names, tmp_path):
    names_of_all = ["a", "b", "c"]
    whole = npstream.write(tmp_path / "all", DATA[kind](tmp_path / "1"), columns=names_of_all)
    report = npstream.write(tmp_path / "some", DATA[kind](tmp_path / "2"), columns=names)
    everything, some = npstream.open(tmp_path / "all"), npstream.open(tmp_path / "some")
    assert list(report.columns) == list(some.columns) == list(names)
    assert list(everything.columns) == names_of_all
    assert len(some) == len(everything) > 1
    for name in names:
        assert list(some[name]) == list(everything[name])
        assert report.columns[name] == whole.columns[name]


@pytest.mark.parametrize("options", [{"workers": 2}, {"format": "jsonl"}, {"on_error": "skip"}])
@pytest.mark.parametrize("kind", ["samples", "pandas"])
def test_columns_are_selected_with_other_options(options, kind, tmp_path):
    report = npstream.write(tmp_path / "1", DATA[kind](tmp_path), columns=["c", "a"], **options)
    assert list(report.columns) == ["c", "a"]
    assert report.samples == COUNT
    assert npstream.open(tmp_path / "1")[1] == {"c": "x", "a": 1}


def double(sample):
    return [{"double": sample["a"] * 2, "a": sample["a"], "odd": ODD}]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["samples", "arrays"])
def test_columns_of_a_map_are_selected(kind, workers, tmp_path):
    data = [{"a": k} for k in range(COUNT)] if kind == "samples" else {"a": np.arange(COUNT)}
    columns = ["double", "a"]
    npstream.write(tmp_path / "1", data, map=double, columns=columns, workers=workers)
    ds = npstream.open(tmp_path / "1")
    assert list(ds.columns) == columns
    assert ds["double"].load().tolist() == [0, 2, 4, 6]


def test_a_writer_selects_columns(tmp_path):
    with npstream.Writer(tmp_path / "1", ["c", "a"]) as writer:
        writer.write(ROWS[0])
        writer.write(("x", 1))
        writer.write({"a": 2, "c": "y"})
        writer.write(pd.DataFrame(ARRAYS)[3:])
        with pytest.raises(ColumnError, match="no column 'a'"):
            writer.write({"c": "no a"})
    ds = npstream.open(tmp_path / "1")
    assert list(ds.columns) == ["c", "a"]
    assert ds["a"].load().tolist() == [0, 1, 2, 3]
    assert list(ds["c"]) == list("wxyz")


@pytest.mark.parametrize("kind", ["frame", "batch"])
def test_a_writer_selects_columns_of_a_first_table(kind, tmp_path):
    data = (
        pd.DataFrame(ARRAYS)
        if kind == "frame"
        else written_dataset(tmp_path).take(np.arange(COUNT))
    )
    with npstream.Writer(tmp_path / "1", ["c", "a"]) as writer:
        writer.write(data)
    assert list(npstream.open(tmp_path / "1").columns) == ["c", "a"]
    assert len(npstream.open(tmp_path / "1")) == COUNT


def test_fill_gives_a_column_that_is_missing(tmp_path):
    npstream.write(tmp_path / "1", ROWS, columns=["lang", "a"], fill={"lang": "en"})
    npstream.write(tmp_path / "2", ARRAYS, columns=["lang", "a"], fill={"lang": "en"})
    for name in "12":
        assert npstream.open(tmp_path / name)[2] == {"lang": "en", "a": 2}


@pytest.mark.parametrize("kind", DATA)
def test_a_column_that_is_not_there(kind, tmp_path):
    data = DATA[kind](tmp_path / "source")
    with pytest.raises(ColumnError, match="no column 'aa'"):
        npstream.write(tmp_path / "out", data, columns=["c", "aa"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["samples", "arrays", "pandas", "tables", "named tuples"])
def test_an_append_selects_columns(kind, tmp_path):
    columns = {"c": "str", "a": "int64"}
    npstream.write(tmp_path / "out", [{"c": "v", "a": -1}], columns=columns)
    report = npstream.write(tmp_path / "out", DATA[kind](tmp_path), columns=["a", "c"], mode="a")
    assert report.columns == columns
    ds = npstream.open(tmp_path / "out")
    assert ds["a"].load().tolist()[:5] == [-1, 0, 1, 2, 3]
    assert ds["a"].dtype == np.int64
    for names, message in ((["a"], "has no such column"), (["a", "c", "b"], "'b'")):
        with pytest.raises(ValueError, match=message):
            npstream.write(tmp_path / "out", DATA[kind](tmp_path), columns=names, mode="a")
    assert len(npstream.open(tmp_path / "out")) == len(ds)


def test_an_append_that_creates_the_dataset_selects_columns(tmp_path):
    npstream.write(tmp_path / "out", iter(ROWS), columns=["c", "a"], mode="a")
    assert list(npstream.open(tmp_path / "out").columns) == ["c", "a"]
