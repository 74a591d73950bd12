"""NumPy functions on columns return NumPy's results, and read only what they need."""

from __future__ import annotations

import operator
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import npstream
from npstream.dataset.array_functions import HANDLERS, SHAPE_FUNCTIONS
from npstream.dataset.reductions import NAN_REDUCTIONS, REDUCTIONS, reduce_without_nan
from npstream.testing import assert_same

N, WIDTH = 40, 6


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, WIDTH)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    with_infinity = values.copy()
    with_infinity[3, 1] = np.inf
    return {
        "x": rng.normal(size=(N, WIDTH)).astype(np.float32),
        "nan": values,
        "infinite": with_infinity,
        "n": rng.integers(0, 9, N),
        "grid": rng.integers(-9, 9, (N, 3, WIDTH)),
        "z": (rng.normal(size=(N, 2)) + 1j).astype(np.complex64),
        "text": np.array([f"t{k % 7}" for k in range(N)], np.dtypes.StringDType()),
    }


@pytest.fixture(scope="module")
def dataset(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("functions")
    npstream.write(path, arrays, shard_size=1 << 12)
    return npstream.open(path)


@pytest.fixture
def ds(dataset, monkeypatch):
    """Return a dataset whose columns are read in blocks of a few rows."""
    monkeypatch.setattr("npstream.dataset.column.READ_BYTES", 2000)
    return dataset


def outcome(function, value):
    """Return the result of a call or its exception's type, and the messages of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(value)
        except Exception as error:
            return type(error), set()
    return result, {str(w.message) for w in caught}


def assert_same_outcome(function, column, array):
    got, warned = outcome(function, column)
    expected, expected_warnings = outcome(function, array)
    if isinstance(expected, type):
        assert isinstance(got, type)
        assert issubclass(got, expected)
        return
    assert warned == expected_warnings
    for left, right in zip(
        *(x if isinstance(x, tuple) else (x,) for x in (got, expected)), strict=True
    ):
        assert type(left) is type(right)
        if isinstance(right, np.ndarray | np.generic) and right.dtype.kind in "fc":
            assert left.dtype == right.dtype
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
        else:
            assert_same(left, right)


W = np.arange(WIDTH, dtype=np.float32)

FUNCTIONS = {
    "x": [
        lambda a: a @ W,
        lambda a: a @ np.ones((WIDTH, 2)),
        lambda a: np.arange(N) @ a,
        lambda a: np.ones((3, N)) @ a,
        lambda a: np.ones((2, 3, N)) @ a,
        lambda a: a @ np.ones((2, WIDTH, 3)),
        lambda a: a @ np.ones(N),
        lambda a: W @ a,
        lambda a: a.T @ a,
        lambda a: a - a,
        lambda a: a - W,
        lambda a: W[None] * a,
        lambda a: a - a[:1],
        lambda a: a - a.mean(axis=0),
        lambda a: a + np.ones((2, N, 1)),
        lambda a: a + np.ones((N, 1)),
        lambda a: a + np.ones(N),
        lambda a: a[:, 0] + np.ones((N, 1)),
        lambda a: a[:, [0, 4]] * [1, 2],
        lambda a: np.divmod(a, W + 1),
        lambda a: np.add(a, W, dtype=np.float64),
        lambda a: np.multiply(a, 2, out=np.zeros((N, WIDTH), np.float32)),
        lambda a: np.multiply(a, 2, out=np.zeros((3, N, WIDTH), np.float32)),
        lambda a: np.multiply(a, 2, out=np.zeros((N, 2), np.float32)),
        lambda a: np.add(a, 1, where=a > 0, out=np.zeros((N, WIDTH), np.float32)),
        lambda a: np.add(a, 1, casting="no", dtype=np.int8),
        lambda a: np.add.reduce(a),
        lambda a: np.add.reduce(a, axis=1, keepdims=True),
        lambda a: np.add.accumulate(a),
        lambda a: np.logical_and.reduce(a, axis=None),
        lambda a: np.linalg.norm(a),
        lambda a: np.linalg.norm(a, axis=1),
        lambda a: np.linalg.norm(a, axis=-1, keepdims=True),
        lambda a: np.linalg.norm(a, axis=0),
        lambda a: np.linalg.norm(a, 1, axis=0),
        lambda a: np.linalg.norm(a, 3, axis=0),
        lambda a: np.linalg.norm(a, np.inf, axis=0),
        lambda a: np.linalg.norm(a, -np.inf, axis=0),
        lambda a: np.linalg.norm(a, 0, axis=0),
        lambda a: np.linalg.norm(a, "fro"),
        lambda a: np.linalg.norm(a, 2),
        lambda a: np.linalg.norm(a, "nuc"),
        lambda a: np.linalg.norm(a, axis=2),
        lambda a: np.linalg.norm(a[:, 0]),
        lambda a: np.linalg.norm(a[:, 0], 1),
        lambda a: np.dot(a, W),
        lambda a: np.dot(a, 2),
        lambda a: np.dot(2, a),
        lambda a: np.dot(a[:, 0], a),
        lambda a: np.inner(a, W),
        lambda a: np.inner(a[:, 0], a[:, 1]),
        lambda a: np.tensordot(a, W, 1),
        lambda a: np.einsum("ij,j->i", a, W),
        lambda a: np.clip(a, -0.5, 0.5),
        lambda a: np.clip(a, W - 2, None),
        lambda a: np.clip(a, a_min=0, a_max=None),
        lambda a: np.clip(a, None, None),
        lambda a: np.round(a, 1),
        lambda a: np.around(a, decimals=2),
        lambda a: np.round(a, 1, np.zeros((N, WIDTH), np.float32)),
        lambda a: np.count_nonzero(a > 0),
        lambda a: np.count_nonzero(a),
        lambda a: np.count_nonzero(a, axis=1),
        lambda a: np.count_nonzero(a, axis=0, keepdims=True),
        lambda a: np.array_equal(a, np.asarray(a)),
        lambda a: np.array_equal(a, np.asarray(a) + 1),
        lambda a: np.array_equal(a, W),
        lambda a: np.allclose(a, np.asarray(a)),
        lambda a: np.unique(a),
        lambda a: np.unique(a, return_counts=True),
        lambda a: np.histogram(a),
        lambda a: np.histogram(a, 5, density=True),
        lambda a: np.histogram(a, [-1, 0, 1]),
        lambda a: np.histogram(a, 4, (0, 1)),
        lambda a: np.histogram(a, "auto"),
        lambda a: np.histogram(a, 0),
        lambda a: np.isin(a, [0.5]),
        lambda a: np.nan_to_num(a),
        lambda a: np.concatenate([a, a]),
        lambda a: np.stack((a, a[::-1])),
        lambda a: np.where(a > 0, a, 0),
        lambda a: np.take(a, [1, 0], axis=1),
        lambda a: np.take(a, 3),
        lambda a: np.take(a, [99], mode="clip"),
        lambda a: np.median(a, axis=0),
        lambda a: np.quantile(a, 0.25),
        lambda a: np.cov(a.T),
        lambda a: np.sum(a, 0, np.float64),
        lambda a: np.mean(a, axis=1, keepdims=True),
        lambda a: np.max(a, initial=3),
        lambda a: np.sum(a=a),
        lambda a: np.nonzero(a > 0),
        lambda a: np.argsort(a, axis=0),
        lambda a: np.sum(a, where=np.ones((N, 1), bool)),
        lambda a: np.sum(a, axis=2),
        lambda a: np.empty_like(a).shape,
        lambda a: np.full_like(a, 3),
        lambda a: np.zeros_like(a, dtype=int, shape=(2,)),
        lambda a: np.result_type(a, np.float64),
        lambda a: np.size(a),
        lambda a: np.shape(a),
        lambda a: np.iscomplexobj(a),
    ],
    "nan": [
        lambda a: np.isnan(a).sum(),
        lambda a: np.nan_to_num(a, nan=1),
        lambda a: np.array_equal(a, np.asarray(a), equal_nan=True),
        lambda a: np.nanmedian(a),
        lambda a: np.unique(a),
        lambda a: np.nanmean(a, axis=0, out=np.zeros(WIDTH, np.float32)),
        lambda a: np.nanstd(a, 1, ddof=1),
        lambda a: np.nansum(a, axis=0, initial=2),
        lambda a: np.nanmax(a, initial=9),
        lambda a: np.nanmean(a, dtype=np.float64),
        lambda a: np.histogram(a),
    ],
    "n": [
        lambda a: np.bincount(a),
        lambda a: np.bincount(a, minlength=20),
        lambda a: np.bincount(a, weights=np.ones(N)),
        lambda a: np.bincount(a - 5),
        lambda a: np.unique(a),
        lambda a: np.isin(a, [3, 4], invert=True),
        lambda a: a @ a,
        lambda a: a @ np.arange(N),
        lambda a: np.linalg.norm(a),
        lambda a: np.linalg.norm(a, 1),
        lambda a: np.nanmean(a),
        lambda a: np.nanmax(a),
        lambda a: np.histogram(a, bins=3),
        lambda a: np.clip(a, 2, 5),
        lambda a: np.round(a, -1),
        lambda a: np.zeros(9)[a],
        lambda a: np.searchsorted(np.arange(9), a),
        lambda a: np.repeat(a, 2),
        lambda a: np.split(a, 2)[0],
        lambda a: np.real(a),
        lambda a: (a > 3) & (a < 7),
        lambda a: ~(a > 3) | (a[::-1] == a),
        lambda a: np.array_equal(a, a),
        lambda a: np.bincount(a[:0]),
    ],
    "grid": [
        lambda a: a @ np.arange(WIDTH),
        lambda a: a @ np.ones((WIDTH, 2), int),
        lambda a: np.ones((2, 3), int) @ a,
        lambda a: a * np.arange(3)[:, None],
        lambda a: a.sum(axis=(1, 2)),
        lambda a: np.linalg.norm(a, axis=(1, 2)),
        lambda a: np.linalg.norm(a),
        lambda a: np.inner(a, np.arange(WIDTH)),
        lambda a: a[:, 0, [1, 2]] + 1,
        lambda a: a[:, 0, :][:, [1, 2]].max(axis=0),
        lambda a: a[
            :,
            [0, 1],
            :,
        ][..., [2, 0]].mean(axis=0),
        lambda a: np.count_nonzero(a, axis=(0, 2)),
    ],
    "z": [
        lambda a: np.linalg.norm(a, axis=0),
        lambda a: np.real(a),
        lambda a: np.angle(a),
        lambda a: np.imag(a),
        lambda a: np.nansum(a, axis=0),
        lambda a: np.nanmean(a, axis=0),
        lambda a: np.linalg.norm(a),
    ],
    "text": [
        lambda a: a == "t3",
        lambda a: np.unique(a),
        lambda a: np.isin(a, ["t3"]),
        lambda a: np.strings.upper(a),
        lambda a: a + "!",
        lambda a: np.array_equal(a, a),
        lambda a: np.count_nonzero(a),
        lambda a: np.full_like(a, "x"),
        lambda a: np.linalg.norm(a),
    ],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, k) for name in FUNCTIONS for k in range(len(FUNCTIONS[name]))]
)
def test_functions_return_the_results_for_arrays(ds, arrays, name, number):
    assert_same_outcome(FUNCTIONS[name][number], ds[name], arrays[name])


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), 2])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", NAN_REDUCTIONS)
def test_nan_reductions_return_the_results_for_arrays(ds, arrays, name, axis, keepdims):
    function = getattr(np, name)
    # For variances of infinite numbers, NumPy's warnings differ from ours.
    is_moment = name in ("nanvar", "nanstd")
    for column in ("x", "nan") if is_moment else ("x", "nan", "infinite"):
        assert_same_outcome(
            lambda a: function(a, axis=axis, keepdims=keepdims), ds[column], arrays[column]
        )


@settings(max_examples=200)
@given(st.data())
def test_nan_reductions_of_any_blocks_return_the_results_for_arrays(data):
    name = data.draw(st.sampled_from(NAN_REDUCTIONS))
    array = data.draw(
        npst.arrays(
            data.draw(st.sampled_from(["f4", "f8", "i4", "?"])),
            npst.array_shapes(max_dims=3, max_side=4),
            elements=st.sampled_from([0, 1]) | st.just(0),
        )
    )
    if array.dtype.kind == "f":
        array = np.where(data.draw(npst.arrays(bool, array.shape)), np.nan, array + 2).astype(
            array.dtype
        )
    axis = data.draw(st.none() | st.integers(-array.ndim, array.ndim - 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=3)))

    def reduce_in_blocks(array):
        blocks = np.split(array, cuts)
        return reduce_without_nan(name.removeprefix("nan"), blocks, array.shape, array.dtype, axis)

    got, warned = outcome(reduce_in_blocks, array)
    expected, expected_warnings = outcome(lambda a: getattr(np, name)(a, axis=axis), array)
    if isinstance(expected, type):
        assert got is expected
        return
    assert warned == expected_warnings
    assert np.asarray(got).dtype == np.asarray(expected).dtype
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("function", [f for f in SHAPE_FUNCTIONS if f.__name__.endswith("_like")])
def test_functions_of_the_shape_read_nothing(ds, function, monkeypatch):
    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", None)
    column = ds["grid"]
    like = function(column, *([1] if function is np.full_like else []))
    assert (like.shape, like.dtype, like.flags.c_contiguous) == (column.shape, column.dtype, True)


INVALID = [
    lambda a: a @ np.ones(3),
    lambda a: a + np.ones(4),
    lambda a: np.add(a, 1, out=np.ones(3)),
    lambda a: a.reshape(7, 7),
    lambda a: a.transpose(0, 0),
    lambda a: a.item(),
    lambda a: a.item(10**6),
    lambda a: a.sum(axis=3),
    lambda a: np.nansum(a, axis=3),
    lambda a: np.nanmean(a, axis=3),
    lambda a: a.take([7], axis=1),
    lambda a: a.take([10**6]),
    lambda a: a.astype("i1", casting="safe"),
]


@pytest.mark.parametrize("number", range(len(INVALID)))
def test_invalid_arguments_raise_before_reading(ds, arrays, number, monkeypatch):
    function = INVALID[number]
    with pytest.raises((ValueError, TypeError, IndexError)) as caught:
        function(arrays["x"])
    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", None)
    with pytest.raises(caught.type):
        function(ds["x"])


BOUNDED = {
    "matmul": lambda a: a @ np.ones(WIDTH * 100),
    "rmatmul": lambda a: np.ones(len(a)) @ a,
    "norm of rows": lambda a: np.linalg.norm(a, axis=1),
    "norm": lambda a: np.linalg.norm(a),
    "nanmean": lambda a: np.nanmean(a, axis=0),
    "nanvar": lambda a: np.nanvar(a),
    "nanmax": lambda a: np.nanmax(a, axis=1),
    "nanargmin": lambda a: np.nanargmin(a, axis=0),
    "a broadcast row": lambda a: np.greater(a, a[0]).shape,
    "into an array": lambda a: np.copyto(np.empty(a.shape, np.float16), a),
    "count_nonzero": np.count_nonzero,
    "histogram": lambda a: np.histogram(a, 5, (0, 1)),
    "array_equal": lambda a: np.array_equal(a, np.broadcast_to(np.float32(1), a.shape)),
    "an index on values": lambda a: a[:, [5, 1]].std(axis=0),
    "add.reduce": np.add.reduce,
    "unique": np.unique,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large")
    npstream.write(path, {"x": np.ones((4000, WIDTH * 100), np.float32)})
    return npstream.open(path)["x"]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", BOUNDED)
def test_memory_is_bounded_by_blocks_and_the_result(large, name, monkeypatch):
    monkeypatch.setattr("npstream.dataset.column.READ_BYTES", 1 << 18)
    BOUNDED[name](large)  # compile kernels before memory is measured
    tracemalloc.start()
    try:
        BOUNDED[name](large)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two results are as large as the column: one of bools, and one of float16.
    result_bytes = {"a broadcast row": large.size, "into an array": 2 * large.size}.get(name, 0)
    assert peak - result_bytes < large.nbytes // 3


def test_columns_may_be_other_than_the_first_argument(ds, arrays):
    out = np.zeros((N, WIDTH), np.float32)
    np.copyto(out, ds["x"])
    assert_same(out, arrays["x"])
    np.copyto(out, ds["x"] > 0, where=ds["x"] > 0, casting="unsafe")
    assert_same(np.choose(ds["n"] % 2, [ds["n"], 0]), np.choose(arrays["n"] % 2, [arrays["n"], 0]))
    assert_same(np.interp(ds["n"], [0, 9], [0, 1]), np.interp(arrays["n"], [0, 9], [0, 1]))


def test_columns_support_pythons_number_and_sequence_protocols(ds, arrays):
    x, n = ds["x"], ds["n"]
    assert_same(np.array(list(reversed(n))), arrays["n"][::-1].copy())
    assert arrays["n"][0] in n
    assert 99 not in n
    one = n[..., 3]
    assert (int(one), float(one), complex(one)) == (arrays["n"][3],) * 3
    assert operator.index(one) == arrays["n"][3]
    for function in (int, float, operator.index):
        with pytest.raises(TypeError):
            function(n)
    with pytest.raises(TypeError):
        operator.index(x[..., 0, 0])
    assert min(n) == arrays["n"].min()
    assert sorted(n) == sorted(arrays["n"])


def test_columns_are_exported_by_dlpack(ds, arrays):
    assert_same(np.from_dlpack(ds["x"][::2]), arrays["x"][::2].copy())
    assert ds["x"].__dlpack_device__() == arrays["x"].__dlpack_device__()
    with pytest.raises((BufferError, TypeError)):
        np.from_dlpack(ds["text"])


def test_torch_converts_columns_to_tensors(ds, arrays):
    torch = pytest.importorskip("torch")
    for make in (torch.as_tensor, torch.asarray, torch.from_dlpack):
        assert_same(make(ds["x"]).numpy(), arrays["x"])


def test_every_handler_is_called_in_this_file():
    text = Path(__file__).read_text()
    # The tests of reductions take these functions by name.
    methods = {getattr(np, name) for name in (*REDUCTIONS, *NAN_REDUCTIONS, "amin", "amax")}
    names = {function.__name__ for function in set(HANDLERS) - methods}
    assert {name for name in names if f".{name}(" not in text} == set()


def test_a_data_loader_reads_the_rows_of_a_batch_at_once(ds, arrays, monkeypatch):
    data = pytest.importorskip("torch.utils.data")
    sizes = []
    original = type(ds._source).columns

    def columns(self, plan, samples, *rest):
        sizes.append(len(samples.rows))
        return original(self, plan, samples, *rest)

    monkeypatch.setattr(type(ds._source), "columns", columns)
    batches = list(data.DataLoader(ds["x"], batch_size=4))
    assert_same(np.concatenate([batch.numpy() for batch in batches]), arrays["x"])
    assert set(sizes) == {4}


WRITES = [
    lambda x, n: np.copyto(x, 1),
    lambda x, n: np.put(n, 1, 0),
    lambda x, n: np.putmask(n, n > 0, 0),
    lambda x, n: np.place(n, n > 0, [0]),
    lambda x, n: np.fill_diagonal(x, 0),
    lambda x, n: np.put_along_axis(x, np.zeros((1, WIDTH), int), 3, 0),
    lambda x, n: np.isneginf(np.ones(len(x)), x),
    lambda x, n: np.dot(x, np.eye(WIDTH, dtype=np.float32), x),
    lambda x, n: np.concatenate([x[:1].load(), x[1:].load()], 0, x),
    lambda x, n: np.nan_to_num(x, copy=False),
]


@pytest.mark.parametrize("write", range(len(WRITES)))
def test_functions_that_write_to_a_column_raise(ds, write):
    with pytest.raises(ValueError, match=r"read-only|not acceptable"):
        WRITES[write](ds["x"], ds["n"])


@pytest.mark.parametrize("function", [np.squeeze, np.flip, np.atleast_3d, np.transpose])
def test_returned_views_of_the_read_array_are_writable(ds, function):
    assert function(ds["x"]).flags.writeable


def test_full_like_and_min_scalar_type_accept_columns(ds, arrays):
    n, text = ds["n"], ds["text"]
    assert_same(np.full_like(n, n), arrays["n"])
    assert_same(np.full_like(ds["x"][:, 0], n), arrays["n"].astype(np.float32))
    assert_same(np.full_like(a=n, fill_value=3), np.full_like(arrays["n"], 3))
    for index in (..., np.array(5)):
        assert np.min_scalar_type(n[index]) == np.min_scalar_type(arrays["n"][index])
    assert np.min_scalar_type(text) == np.min_scalar_type(arrays["text"])


UNUSUAL_CALLS = [
    lambda x: np.clip(x),
    lambda x: np.clip(x, 1, 2, min=3),
    lambda x: np.clip(x, 1, 2, dtype=np.float64),
    lambda x: np.clip(x, 1, 2, casting="no", dtype=np.float64),
    lambda x: np.clip(x, 0, None),
    lambda x: np.nanmax(x, [0, 1]),
    lambda x: np.nanvar(x, [0, 1]),
    lambda x: np.nanargmax(x, 0, out=np.zeros(WIDTH)),
    lambda x: np.nanargmax(x, 0, out=np.zeros(WIDTH, int)),
    lambda x: np.copyto(1, x),
    lambda x: [1] * N @ x,
    lambda x: np.matmul(x, np.matrix(np.ones((WIDTH, 2)))),
]


@pytest.mark.parametrize("call", range(len(UNUSUAL_CALLS)))
def test_unusual_arguments_give_the_results_for_arrays(ds, arrays, call):
    assert_same_outcome(UNUSUAL_CALLS[call], ds["x"], arrays["x"])
