"""Datasets and columns, indexed again and again, do what arrays of the same values do."""

from __future__ import annotations

import functools
import operator

import hypothesis.strategies as st
import numpy as np
import pytest
from datasets import objects, write_shards
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays, basic_indices, broadcastable_shapes

import npstream
from npstream._core.jit import Kernel
from npstream.indexing import selection

DTYPES = [f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)]
DTYPES += ["float16", "float32", "float64", "bool", "datetime64[s]", "timedelta64[D]", "complex64"]
FIXED = ["scalar", "row", "matrix", "cube"]
DATASETS = 8


@pytest.fixture(autouse=True, params=["plain", "compiled"])
def _as_large_views(request, monkeypatch):
    """Let small views, too, go the ways of large ones."""
    monkeypatch.setattr(selection, "FEW", 0)
    compiled = request.param == "compiled"
    monkeypatch.setattr(Kernel, "sized", lambda self, rows: self if compiled else self.py_func)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function from a number to a dataset and its columns' values."""
    return functools.cache(lambda seed: make(tmp_path_factory.mktemp("made"), seed))


def make(path, seed):
    """Write a dataset of several shards of uneven sizes, some of which have no samples."""
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


def outcome(operation, *args):
    """Return what an operation does: its result, or the exception that it raises."""
    try:
        return operation(*args)
    except Exception as error:
        return error


def same_error(got, want, words=True):
    """Compare exceptions; True if there is one, and nothing else to compare."""
    if isinstance(want, Exception):
        assert isinstance(got, Exception), f"{got!r}; NumPy raises {want!r}"
        assert type(got) is type(want)
        if words:  # but for the shapes that do not fit, of which NumPy lists all
            assert str(got).partition(" with shapes")[0] == str(want).partition(" with shapes")[0]
        return True
    if isinstance(got, Exception):
        raise got
    return False


def check_value(got, want):
    """Compare an element: of the same type, but that `int` columns have Python's."""
    if isinstance(want, np.ndarray):
        check_array(got, want)
    elif type(got) is int:
        assert type(want) is np.int64
        assert got == want
    else:
        assert type(got) is type(want)
        assert got == want


def check_array(got, want):
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if want.dtype == object:
        for left, right in zip(got.flat, want.flat, strict=True):
            check_value(left, right)
    else:
        assert np.array_equal(got, want)


def check_column(column, want):
    """Compare a column, or what an index made of one, with NumPy's array."""
    if not isinstance(column, npstream.Column):
        check_value(column, want)
        return
    assert (column.shape, column.ndim, column.size) == (want.shape, want.ndim, want.size)
    assert column.dtype == want.dtype or (want.dtype == object and column.dtype == np.int32)
    array = np.asarray(column, object if want.dtype == object else None)
    check_array(array, want)
    assert array.flags.writeable
    loaded = column.load()
    if isinstance(loaded, npstream.Ragged):
        assert len(loaded) == want.size
        for left, right in zip(loaded, want.flat, strict=True):
            check_value(left, right)
    else:
        check_array(loaded, want)
        out = np.ones((*want.shape, 2), want.dtype)[..., 0]
        assert column.load(out=out) is out
        check_array(np.ascontiguousarray(out).reshape(out.shape), want)


def check_dataset(ds, ids, values):
    """Compare a view, or a sample, with NumPy's array of sample numbers."""
    if not isinstance(ids, np.ndarray):
        assert set(ds) == set(values)
        for name, value in ds.items():
            check_value(value, values[name][ids])
        return
    assert (ds.shape, ds.ndim, ds.size) == (ids.shape, ids.ndim, ids.size)
    batch = ds.load()
    check_array(batch.ids, ids)
    for name, rows in values.items():
        if isinstance(batch[name], npstream.Ragged):
            for left, right in zip(batch[name], rows[ids, ...].flat, strict=True):
                check_value(left, right)
        else:
            check_array(batch[name], rows[ids, ...])
    shard, row = ds.locate(...)
    assert np.array_equal(ds.shards["start"][shard] + row, ids)


def integers(n):
    return st.integers(-n, n - 1) if n else st.just(0)


def arrays_of_indices(n, shape):
    """Draw arrays of integers, now and then one that is out of bounds."""
    return st.sampled_from([(-n, n - 1)] * 8 + [(0, n - 1), (-n - 1, n)]).flatmap(
        lambda bounds: arrays(
            st.sampled_from([np.int64, np.int16, np.uint32 if bounds[0] >= 0 else np.int32]),
            shape,
            elements=st.integers(*bounds) if bounds[0] <= bounds[1] else st.just(0),
        )
    )


@st.composite
def masks(draw, shape):
    mask = draw(arrays(np.bool_, shape))
    return mask.tolist() if mask.size and draw(st.booleans()) else mask


@st.composite
def mixed_indices(draw, shape):
    """Draw a tuple with an integer, a slice, an array or a mask for each of some axes."""
    common = draw(st.sampled_from([(1,), (3,), (2, 3)]))
    items = []
    axis = 0
    while axis < len(shape) and draw(st.integers(0, 4)):
        # Beside an empty mask, NumPy overlooks whatever picks from an axis without elements.
        kinds = ["slice", "mask", "int", "slice", "array", "array"][: 6 if shape[axis] else 2]
        kind = draw(st.sampled_from(kinds))
        width = 1
        if kind == "int":
            item = draw(integers(shape[axis]))
        elif kind == "slice":
            item = draw(st.slices(shape[axis]))
        elif kind == "array":
            item = draw(
                arrays_of_indices(
                    shape[axis], draw(broadcastable_shapes(common, max_dims=len(common)))
                )
            )
            item = item.tolist() if item.ndim and draw(st.booleans()) else item
        else:
            width = draw(st.integers(1, len(shape) - axis))
            item = draw(masks(shape[axis : axis + width]))
        items.append(item)
        axis += width
    if draw(st.integers(0, 2)) == 0:
        items.insert(draw(st.integers(0, len(items))), ...)
    return tuple(items)


@st.composite
def indices(draw, shape):
    """Draw an index for an array of that shape."""
    kinds = [basic_indices(shape, allow_newaxis=False), mixed_indices(shape)]
    if shape:
        n = shape[0]
        kinds += [
            integers(n),
            st.slices(n),
            arrays_of_indices(n, (4,)),
            arrays_of_indices(n, (2, 3)),
        ]
        kinds += [st.integers(-n - 2, n + 1), masks((n,)), masks(shape), st.just([])]
    return draw(st.one_of(kinds))


def has_ellipsis(index):
    return index is ... or (isinstance(index, tuple) and any(item is ... for item in index))


@settings(max_examples=150)
@given(st.data())
def test_datasets_are_indexed_as_arrays_are(made, data):
    ds, values = made(data.draw(st.integers(0, DATASETS - 1)))
    ids = np.arange(len(ds))
    for step in range(4):
        if data.draw(st.integers(0, 4)) == 0:
            before = ids
            ds = ds.shuffle(step, block=None)
            ids = ds.load().ids
            assert np.array_equal(np.sort(ids), np.sort(before, axis=None))
        index = data.draw(indices(ids.shape))
        got, want = outcome(operator.getitem, ds, index), outcome(operator.getitem, ids, index)
        if same_error(got, want):
            continue
        check_dataset(got, want, values)
        if not isinstance(want, np.ndarray):
            break
        ds, ids = got, want


@settings(max_examples=300)
@given(st.data())
def test_columns_are_indexed_as_arrays_are(made, data):
    ds, values = made(data.draw(st.integers(0, DATASETS - 1)))
    name = data.draw(st.sampled_from(ds.columns))
    column, array = ds[name], values[name]
    for _ in range(4):
        index = data.draw(indices(array.shape))
        got, want = (
            outcome(operator.getitem, column, index),
            outcome(operator.getitem, array, index),
        )
        if same_error(got, want):
            continue
        check_column(got, want)
        if not isinstance(got, npstream.Column):
            break
        column, array = got, want


@settings(max_examples=100)
@given(st.data())
def test_rows_and_names_commute(made, data):
    ds, values = made(data.draw(st.integers(0, DATASETS - 1)))
    ids = np.arange(len(ds))
    for _ in range(2):
        index = data.draw(indices(ids.shape))
        if not isinstance(want := outcome(operator.getitem, ids, index), np.ndarray):
            continue
        names = data.draw(st.lists(st.sampled_from(ds.columns), min_size=1, unique=True))
        part = ds[index][names]
        assert part.columns == tuple(names)
        assert list(part.load()) == names
        for name in names:
            expected = values[name][want, ...]
            check_column(ds[index][name], expected)
            if not has_ellipsis(index):  # which would reach into the values
                check_column(ds[name][index], expected)
        ds, ids = ds[index], want


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
def test_functions_of_columns_are_those_of_arrays(made, data):
    ds, values = made(data.draw(st.integers(0, DATASETS - 1)))
    name = data.draw(st.sampled_from([*FIXED, "number"]))
    column, array = ds[name], values[name]
    index = data.draw(indices(array.shape))
    if not isinstance(array := outcome(operator.getitem, array, index), np.ndarray):
        return
    column = column[index]
    # NumPy takes from arrays without axes or elements what it takes from no others.
    names = [name for name in FUNCTIONS if (array.ndim and array.size) or name not in TAKES]
    function = FUNCTIONS[data.draw(st.sampled_from(names))]
    got, want = outcome(function, column), outcome(function, array)
    if not same_error(got, want, words=False):
        assert type(got) is type(want)
        np.testing.assert_array_equal(got, want, strict=True)
