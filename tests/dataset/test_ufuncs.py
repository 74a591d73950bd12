"""Ufuncs, operators and comparisons of columns give the results for arrays of their values."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from column_values import NUMBERS, VALUES, N, write_columns

import npstream
from npstream._core import jit as _jit
from npstream.testing import assert_same


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_columns(tmp_path_factory.mktemp("column"))


@pytest.fixture
def ds(path):
    return npstream.open(path)


# Computing


UFUNCS = [
    np.negative,
    lambda x: x + 1,
    lambda x: 2.5 * x,
    lambda x: np.maximum(x, 3),
    lambda x: x - x[::-1],
    lambda x: x**2 > np.float64(4),
    lambda x: np.add(x, 1, dtype=float),
    lambda x: divmod(x, 7),
    lambda x: np.multiply.outer(x, [1, 2]),
    lambda x: np.maximum.reduce(x),
    lambda x: x == 3,
    lambda x: x != 3,
    lambda x: x == "3",
    lambda x: x == None,  # noqa: E711
    lambda x: x == np.arange(N),
    lambda x: np.arange(N) + x,
    lambda x: x // np.ones((2, N)),
    np.isnan,
    np.frexp,
    abs,
]


@pytest.mark.parametrize("block", [1, 1 << 23])
@pytest.mark.parametrize("name", ["label", "small", "score", "number", "str_float"])
@pytest.mark.parametrize("function", range(len(UFUNCS)))
def test_ufuncs_give_the_results_for_arrays(ds, name, function, block, monkeypatch):
    monkeypatch.setattr(npstream.dataset.column, "READ_BYTES", block)
    for index in (..., slice(None, None, -1)):
        got, expected = UFUNCS[function](ds[name][index]), UFUNCS[function](VALUES[name][index])
        for left, right in zip(
            *(x if isinstance(x, tuple) else (x,) for x in (got, expected)), strict=True
        ):
            assert_same(left, right)


@pytest.mark.parametrize("view", [slice(0, 0), [[0, 1, 2], [7, 6, 5]], (..., 2)])
def test_ufuncs_of_views_give_the_results_for_arrays(ds, view):
    for name in ("label", "tokens", "text"):
        for function in (lambda x: x == 3, lambda x: x != "text", lambda x: x == x):
            assert_same(function(ds[name][view]), function(VALUES[name][view]))
    assert_same(ds["tokens"][view] + 1, VALUES["tokens"][view] + 1)
    assert_same(ds["tokens"][:, [0, 1]] + 1, VALUES["tokens"][:, [0, 1]] + 1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["text", "data"])
def test_comparisons_of_text_give_the_results_for_arrays(ds, name, compiled, monkeypatch):
    if compiled:
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda kernel, rows: kernel.compiled())
    values = VALUES[name]
    for value in set(values) | {"x", b"x", b"", "", "text" * 9}:
        for index in (..., slice(None, None, -3), [[0, 1], [1, 4]]):
            assert_same(ds[name][index] == value, values[index] == value)
            assert_same(ds[name][index] != value, values[index] != value)
            assert_same(value == ds[name][index], values[index] == value)
    assert_same(ds[name] == values, np.ones(N, bool))
    assert not (ds["text"] == "\ud800").any()


def test_other_operations_on_text_give_the_results_for_arrays(ds):
    assert_same(ds["text"] < "b", VALUES["text"] < "b")
    assert_same(ds["text"] + "!", VALUES["text"] + "!")
    assert_same(np.strings.str_len(ds["text"]), np.strings.str_len(VALUES["text"]))


def test_objects_are_compared_elementwise(ds):
    assert (ds["json"] == {"i": 4}).nonzero()[0].tolist() == [4]
    assert (ds["decimal"] > 1).nonzero()[0].tolist() == list(range(9, N))
    assert (ds["json"] == None).sum() == 3  # noqa: E711


@pytest.mark.parametrize("symbol", ["iadd", "isub", "imul", "iand", "ipow", "ifloordiv", "ilshift"])
def test_in_place_operators_on_columns_raise(ds, symbol):
    column = ds["label"]
    with pytest.raises(TypeError, match="a column is read-only"):
        getattr(operator, symbol)(column, 1)
    with pytest.raises(TypeError, match="a column is read-only"):
        np.add(np.arange(N), 1, out=column)
    with pytest.raises(TypeError, match="a column is read-only"):
        np.add.at(column, [0], 1)
    array = np.ones(N, int)
    array += column
    assert_same(array, VALUES["label"] + 1)
    out = np.empty(N, int)
    assert np.add(column, 1, out=out) is out
    assert np.add.at(out, [0], column[:1]) is None


@pytest.mark.parametrize("block", [1, 1 << 23])
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "reduction",
    ["sum", "prod", "min", "max", "mean", "std", "var", "any", "all", "argmin", "argmax"],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_reductions_give_the_results_for_arrays(ds, name, reduction, block, monkeypatch):
    monkeypatch.setattr(npstream.dataset.column, "READ_BYTES", block)
    function = getattr(np, reduction)
    for index in (slice(1, None), [[1, 2], [4, 12]]):
        column, array = ds[name][index], VALUES[name][index]
        for axis in (None, 0, -1):
            got, expected = function(column, axis=axis), function(array, axis=axis)
            assert type(got) is type(expected)
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=1e-5)
    got = getattr(column, reduction)(axis=0, keepdims=True)
    np.testing.assert_allclose(got, function(array, axis=0, keepdims=True), rtol=1e-5)


def test_reductions_raise_the_exceptions_of_numpy(ds):
    with pytest.raises(np.exceptions.AxisError):
        np.sum(ds["label"], axis=1)
    with pytest.raises(ValueError, match="zero-size array to reduction operation minimum"):
        np.min(ds["label"][:0])
    with pytest.raises(TypeError, match="holds ndarray:int32 values"):
        np.mean(ds["ragged"])
    with pytest.raises(ValueError, match="truth value of an array with more than one element"):
        bool(ds["label"])
    assert bool(ds["label"][1:2])
    assert not bool(ds["label"][0:1] != 0)
    assert np.sum(ds["label"][:0]) == 0


FUNCTIONS = [
    np.flip,
    lambda x: np.flip(x, axis=1),
    lambda x: np.concatenate([x, x[:2]]),
    lambda x: np.stack([x, x]),
    lambda x: np.where(x > 5, x, 0),
    lambda x: np.isin(x, [1, 100]),
    lambda x: np.unique(x % 7),
    lambda x: np.reshape(x, (-1, 2)),
    lambda x: np.ravel(x),
    lambda x: np.transpose(x, (1, 0, 2)),
    lambda x: np.median(x, axis=0),
    lambda x: np.percentile(x, 50),
    lambda x: np.sort(x, axis=0),
    lambda x: np.argsort(x[:, 0, 0]),
    lambda x: np.cumsum(x, axis=0),
    lambda x: np.clip(x, 3, 9),
    lambda x: np.count_nonzero(x),
    lambda x: np.average(x, axis=0),
    lambda x: np.nanmean(x),
    lambda x: np.expand_dims(x, 0),
    lambda x: np.squeeze(x[:1]),
    lambda x: np.split(x[:4], 2)[1],
    lambda x: np.array_split(x, 3)[2],
    lambda x: np.dot(x[:, 0, 0], np.arange(N)),
    lambda x: np.einsum("nij->n", x),
    lambda x: np.shape(x),
    lambda x: np.size(x),
    lambda x: np.ndim(x),
    lambda x: np.diff(x, axis=0),
    lambda x: np.histogram(x, bins=3)[0],
    lambda x: np.copy(x),
    lambda x: np.array_equal(x, x),
    lambda x: np.broadcast_to(x, (2, *np.shape(x))),
    lambda x: np.searchsorted(x[:, 0, 0], [3, 40]),
    lambda x: np.bincount(x[:, 0, 0]),
    lambda x: np.ptp(x),
    lambda x: np.arange(500)[x],
    lambda x: np.vectorize(int)(x),
]


@pytest.mark.parametrize("function", range(len(FUNCTIONS)))
def test_numpy_functions_give_the_results_for_arrays(ds, function):
    got, expected = FUNCTIONS[function](ds["tokens"]), FUNCTIONS[function](VALUES["tokens"])
    assert_same(np.asarray(got) if isinstance(got, npstream.Column) else got, expected)


# Comparing


OTHERS = [
    *(3, 3.0, "ab", b"ab", None, True, np.float64(3), np.str_("ab"), np.int8(3)),
    *(np.array(["ab"] * N), np.arange(N), ["ab"] * N, [3] * N, np.datetime64("2026-01-01")),
]


@pytest.mark.parametrize(
    "other", OTHERS, ids=[f"{k}-{type(x).__name__}" for k, x in enumerate(OTHERS)]
)
@pytest.mark.parametrize("name", ["label", "score", "text", "data", "str_int"])
def test_text_and_numbers_compare_as_in_numpy(ds, name, other):
    """Equality operators return False; ufuncs and ordering operators raise."""
    values = np.array(VALUES[name])
    for function in (
        *(operator.eq, operator.ne, operator.lt, operator.ge, np.equal, np.not_equal),
        lambda x, y: y == x,
    ):
        try:
            expected = function(values, other)
        except TypeError:
            with pytest.raises(TypeError):
                function(ds[name], other)
            continue
        got = function(ds[name], other)
        assert_same(got, expected)
    if np.ndim(other) == 0:
        assert (other in ds[name]) == bool(np.any(values == other))


TENSORS = {
    "int64": lambda torch: torch.arange(N) % 4,
    "int8": lambda torch: (torch.arange(N) % 4).to(torch.int8),
    "float32": lambda torch: torch.arange(N, dtype=torch.float32),
    "one": lambda torch: torch.tensor(3),
    "with a gradient": lambda torch: torch.arange(N, dtype=torch.float32).requires_grad_(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_operators_with_a_tensor_return_tensors(ds, name, torch):
    tensor, label = TENSORS[name](torch), VALUES["label"]
    values = tensor.detach().numpy()
    for function in (operator.eq, operator.ne):
        for got in (function(tensor, ds["label"]), function(ds["label"], tensor)):
            assert got.dtype == torch.bool
            assert torch.equal(got, torch.from_numpy(function(label, values)))
            assert torch.equal(~got, torch.from_numpy(~function(label, values)))
    for function in (operator.lt, operator.ge):
        got = function(ds["label"], tensor)
        assert torch.equal(got, torch.from_numpy(function(label, values)))
        assert torch.equal(function(tensor, ds["label"]), torch.from_numpy(function(values, label)))
    if tensor.requires_grad:
        for function in (operator.add, operator.mul):
            with pytest.raises(TypeError, match=r"NumPy has no gradients.*to_torch"):
                function(ds["label"], tensor)
    else:
        assert torch.equal(ds["label"] + tensor, torch.from_numpy(label + values))
        assert torch.equal(tensor - ds["label"], torch.from_numpy(values - label))
    nd = ds["tokens"] == torch.from_numpy(VALUES["tokens"])
    assert nd.dtype == torch.bool
    assert nd.all()


def test_an_operand_without_ufuncs_implements_the_comparison(ds):
    class NoUfuncs:
        __array_ufunc__ = None

        def __eq__(self, other):
            return "its own result"

        __hash__ = None

    assert (ds["label"] == NoUfuncs()) == "its own result"


# Operators that the other operand implements

OPERATORS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv),
    *(operator.mod, operator.eq, operator.ne, operator.lt, operator.ge, operator.and_, divmod),
]


def result_or_error(function):
    try:
        return function()
    except Exception as error:
        return type(error)


def assert_equal_results(function, column, array):
    """Assert that a function returns the same for a column and an array, with the same type."""
    got = result_or_error(lambda: function(column))
    expected = result_or_error(lambda: function(array))
    assert type(got) is type(expected)
    if isinstance(expected, type):
        assert got is expected
    else:
        for left, right in zip(
            *(x if isinstance(x, tuple) else (x,) for x in (got, expected)), strict=True
        ):
            assert type(left) is type(right)
            mask = np.ma.getmaskarray(np.ma.asarray(right))
            assert_same(np.ma.getmaskarray(np.ma.asarray(left)), mask)
            assert_same(np.asarray(left)[~mask], np.asarray(right)[~mask])


@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("function", OPERATORS)
@pytest.mark.parametrize("kind", ["matrix", "masked", "memmap"])
def test_operators_with_subclasses_of_ndarray_give_the_results_for_arrays(
    ds, function, kind, tmp_path
):
    other = {
        "matrix": lambda: np.matrix(np.arange(1, N + 1)),
        "masked": lambda: np.ma.masked_equal(np.arange(N) % 3, 0),
        "memmap": lambda: np.memmap(tmp_path / "m", np.int64, "w+", shape=(N,)),
    }[kind]()
    if kind == "memmap":
        other[:] = np.arange(1, N + 1)
    for x in (ds["label"], ds["label"][::-1]):
        assert_equal_results(lambda x: function(x, other), x, np.asarray(x))
        assert_equal_results(lambda x: function(other, x), x, np.asarray(x))


@pytest.mark.parametrize("function", OPERATORS)
@pytest.mark.parametrize("kind", ["Series", "Index", "DataFrame", "times", "Timedelta", "NaT"])
def test_operators_with_pandas_give_the_results_for_arrays(ds, function, kind):
    pd = pytest.importorskip("pandas")
    other = {
        "Series": lambda: pd.Series(np.arange(1, N + 1)),
        "Index": lambda: pd.Index(np.arange(1, N + 1)),
        "DataFrame": lambda: pd.DataFrame(np.ones((N, N), int)),
        "times": lambda: pd.Series(np.arange(N).astype("M8[s]")),
        "Timedelta": lambda: pd.Timedelta("2s"),
        "NaT": lambda: pd.NaT,
    }[kind]()
    x = ds["label"]
    for call in (lambda x: function(x, other), lambda x: function(other, x)):
        got = result_or_error(lambda call=call: call(x))
        expected = result_or_error(lambda call=call: call(np.asarray(x)))
        assert type(got) is type(expected)
        if isinstance(expected, type):
            assert got is expected
        else:
            assert str(got) == str(expected)


def test_operators_with_sparse_arrays_give_the_results_for_arrays(ds):
    sparse = pytest.importorskip("scipy.sparse")
    other = sparse.csr_array(np.eye(N, dtype=np.int64))
    x = ds["label"]
    assert_same(x @ other, np.asarray(x) @ other)
    assert_same(other @ x, other @ np.asarray(x))


def test_results_are_written_to_a_memmap_in_blocks(ds, monkeypatch, tmp_path):
    monkeypatch.setattr(npstream.dataset.column, "READ_BYTES", 1)
    # This method would read the whole column, so it must not be called.
    monkeypatch.delattr(npstream.dataset.column.Column, "__array__")
    out = np.memmap(tmp_path / "m", np.int64, "w+", shape=(N,))
    assert np.add(ds["label"], 1, out=out) is out
    assert_same(np.asarray(out), VALUES["label"] + 1)


@pytest.mark.parametrize("ufunc", [np.maximum, np.logical_and, np.add])
@pytest.mark.parametrize(
    "options", [{"dtype": float}, {"initial": 3}, {"axis": None, "dtype": int}]
)
def test_reduce_accepts_the_options_of_the_ufunc(ds, ufunc, options):
    got = result_or_error(lambda: ufunc.reduce(ds["label"], **options))
    expected = result_or_error(lambda: ufunc.reduce(VALUES["label"], **options))
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge])
def test_order_of_text_and_bytes_counts_nuls_at_the_end(tmp_path, compare):
    texts = ["\0", "a", "a\0", "", "\0\0", "a\0b"]
    npstream.write(tmp_path, {"text": texts, "data": [text.encode() for text in texts]})
    ds = npstream.open(tmp_path)
    for name, values in (("text", texts), ("data", [text.encode() for text in texts])):
        for other in values:
            expected = [compare(value, other) for value in values]
            assert compare(ds[name], other).tolist() == expected
            assert compare(other, ds[name]).tolist() == [compare(other, value) for value in values]
