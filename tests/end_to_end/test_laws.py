"""Datasets and columns, indexed repeatedly, behave like arrays of the same values."""

from __future__ import annotations

import functools
import tempfile

import hypothesis.strategies as st
import numpy as np
import pytest
from dataset_files import objects, write_shards
from hypothesis import given, settings

import npstream
from npstream import testing
from npstream._core.jit import Kernel
from npstream.indexing import selection

DTYPES = [f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)]
DTYPES += ["float16", "float32", "float64", "bool", "datetime64[s]", "timedelta64[D]", "complex64"]
FIXED = ["scalar", "row", "matrix", "cube"]
DATASETS = 8


@pytest.fixture(autouse=True, params=["plain", "compiled"])
def _treat_views_as_large(request, monkeypatch):
    """Use the code paths of large views for small ones."""
    monkeypatch.setattr(selection, "MAX_MASK_AS_POSITIONS", 0)
    compiled = request.param == "compiled"
    monkeypatch.setattr(Kernel, "for_size", lambda self, rows: self if compiled else self.py_func)


@pytest.fixture(scope="module")
def make_dataset(tmp_path_factory):
    """Return a function from a seed to a dataset and the values of its columns."""
    return functools.cache(lambda seed: make(tmp_path_factory.mktemp("made"), seed))


def make(path, seed):
    """Write a dataset of `seed` shards of different sizes, some of them empty."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0, 1, 2, 3, 7, 20], seed).tolist() or [0]
    n = max(sum(sizes), 1)
    columns, values = {}, {}
    for ndim, name in enumerate(FIXED):
        dtype = DTYPES[(seed + 3 * ndim) % len(DTYPES)]
        shape = tuple(rng.integers(1, 5, ndim).tolist())
        columns[name] = f"ndarray:{dtype}:{','.join(map(str, shape))}" if shape else dtype
        values[name] = rng.integers(0, 100, (n, *shape)).astype(dtype)
    text = ["".join(map(chr, rng.integers(32, 2000, k))) for k in rng.integers(0, 5, n)]
    values["text"] = np.array(text, np.dtypes.StringDType())
    values["data"] = objects(rng.bytes(k) for k in rng.integers(0, 9, n))
    values["tokens"] = objects(rng.integers(0, 99, k, np.int32) for k in rng.integers(1, 9, n))
    values["number"] = rng.integers(-(2**62), 2**62, n)
    columns |= {"text": "str", "data": "bytes", "tokens": "ndarray:int32", "number": "int"}
    ds = write_shards(path, values, sizes, columns)
    return ds, {name: rows[: sum(sizes)] for name, rows in values.items()}


def check_column(column):
    """Compare ways to read a column into a new or a given array."""
    if column.dtype == object or isinstance(loaded := column.load(), npstream.Ragged):
        return
    assert np.asarray(column).flags.writeable
    out = np.ones((*loaded.shape, 2), loaded.dtype)[..., 0]
    assert column.load(out=out) is out
    testing.assert_same(np.ascontiguousarray(out).reshape(out.shape), loaded)


def check_ids(ds, ids):
    """Compare the ids and the locations of a view's samples with an array of ids."""
    testing.assert_same(ds.load().ids, ids)
    shard, row = ds.locate(...)
    assert np.array_equal(ds.shards["start"][shard] + row, ids)


def has_ellipsis(index):
    return index is ... or (isinstance(index, tuple) and any(item is ... for item in index))


@settings(max_examples=150)
@given(st.data())
def test_datasets_are_indexed_like_arrays(make_dataset, data):
    ds, values = make_dataset(data.draw(st.integers(0, DATASETS - 1)))
    ids, rows = np.arange(len(ds)), values
    for step in range(4):
        if data.draw(st.integers(0, 4)) == 0:
            before = ids
            ds = ds.shuffle(step, block=None)
            ids = ds.load().ids
            rows = {name: column[ids] for name, column in values.items()}
            assert np.array_equal(np.sort(ids), np.sort(before, axis=None))
        index = data.draw(testing.indices(ids.shape))
        pair = testing.assert_same_as_numpy(ds, rows, index, messages=True)
        if pair is None:
            continue
        assert isinstance(pair[0], npstream.Dataset) == isinstance(ids[index], np.ndarray)
        if not isinstance(pair[0], npstream.Dataset):
            break
        (ds, rows), ids = pair, ids[index]
        check_ids(ds, ids)


@settings(max_examples=300)
@given(st.data())
def test_columns_are_indexed_like_arrays(make_dataset, data):
    ds, values = make_dataset(data.draw(st.integers(0, DATASETS - 1)))
    name = data.draw(st.sampled_from(ds.columns))
    column, array = ds[name], values[name]
    for _ in range(4):
        index = data.draw(testing.indices(array.shape))
        pair = testing.assert_same_as_numpy(column, array, index, messages=True)
        if pair is None:
            continue
        if not isinstance(pair[0], npstream.Column):
            break
        column, array = pair
        check_column(column)


@settings(max_examples=100)
@given(st.data())
def test_row_and_column_selection_commute(make_dataset, data):
    ds, values = make_dataset(data.draw(st.integers(0, DATASETS - 1)))
    ids = np.arange(len(ds))
    for _ in range(2):
        index = data.draw(testing.indices(ids.shape, allow_invalid=False))
        if not isinstance(want := ids[index], np.ndarray):
            continue
        names = data.draw(st.lists(st.sampled_from(ds.columns), min_size=1, unique=True))
        part = ds[index][names]
        assert part.columns == tuple(names)
        assert list(part.load()) == names
        for name in names:
            expected = values[name][want, ...]
            testing.assert_same(ds[index][name], expected)
            if not has_ellipsis(index):  # an Ellipsis would index the axes of values
                testing.assert_same(ds[name][index], expected)
        ds, ids = ds[index], want


@settings(max_examples=50)
@given(testing.tables())
def test_reading_returns_the_written_values(table):
    values, columns = table
    with tempfile.TemporaryDirectory() as directory:
        npstream.write(f"{directory}/new", values, columns=columns, shard_size="100b")
        with npstream.open(f"{directory}/new") as ds:
            testing.assert_same_as_numpy(ds, values)
            testing.assert_same_as_numpy(ds, values, -1)


FUNCTIONS = {
    "+": lambda x: x + 1,
    "==": lambda x: x == 3,
    "-": lambda x: x[::2] - x[::2],
    "sum": lambda x: np.sum(x, axis=0),
    "max": lambda x: np.max(x),
    "argmin": lambda x: np.argmin(x, axis=-1),
    "any": lambda x: np.any(x, axis=0, keepdims=True),
    "take": lambda x: np.take(x, [0, -1, 2], axis=0),
    "clip": lambda x: np.take(x, [1, 5, -9], axis=0, mode="clip"),
    "wrap": lambda x: np.take(x, [[1], [-7]], mode="wrap"),
    "in": lambda x: 3 in x,
    "list": lambda x: np.array(list(x)),
    "flip": lambda x: np.asarray(np.flip(x, axis=0)),
    "where": lambda x: np.where(x, x, 0),
    "len": lambda x: np.array(len(x)),
}
TAKES = {"take", "clip", "wrap"}


@settings(max_examples=200)
@given(st.data())
def test_functions_of_columns_equal_those_of_arrays(make_dataset, data):
    ds, values = make_dataset(data.draw(st.integers(0, DATASETS - 1)))
    name = data.draw(st.sampled_from([*FIXED, "number"]))
    column, array = ds[name], values[name]
    index = data.draw(testing.indices(array.shape, allow_invalid=False))
    if not isinstance(array := array[index], np.ndarray):
        return
    column = column[index]
    # np.take has special cases for arrays without axes or elements.
    names = [name for name in FUNCTIONS if (array.ndim and array.size) or name not in TAKES]
    function = FUNCTIONS[data.draw(st.sampled_from(names))]
    testing.assert_same_result(function, column, array)
