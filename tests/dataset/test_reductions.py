"""Reductions of blocks return the results of NumPy's reductions of the whole array."""

from __future__ import annotations

import math
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from npstream.dataset.reductions import REDUCTIONS, UFUNCS, reduce_blocks

DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "c8", "c16"]


def split(array, cuts):
    return np.split(array, sorted(cuts)) if array.ndim else [array]


def outcome(function):
    """Return a call's result, or the type of its exception, and the types of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function()
        except Exception as error:
            result = type(error)
    return result, {warning.category for warning in caught}


def assert_same(name, array, cuts, **keywords):
    """Compare the reduction of blocks to NumPy's, each with its own copy of `out`."""

    def copied_keywords():
        return {k: v.copy() if k == "out" else v for k, v in keywords.items()}

    got, got_warnings = outcome(
        lambda: reduce_blocks(
            name, split(array, cuts), array.shape, array.dtype, **copied_keywords()
        )
    )
    expected, expected_warnings = outcome(lambda: getattr(np, name)(array, **copied_keywords()))
    if isinstance(expected, type):
        assert issubclass(got, expected), (got, expected)
        return
    assert type(got) is type(expected)
    assert np.asarray(got).dtype == np.asarray(expected).dtype
    assert np.shape(got) == np.shape(expected)
    # With infinities or NaN, warnings depend on the order of additions.
    if array.dtype.kind not in "fc" or np.isfinite(array).all():
        assert got_warnings == expected_warnings
    if name in ("sum", "prod", "mean", "var", "std") and np.asarray(expected).dtype.kind in "fc":
        assert_close(got, expected, array)
    else:
        np.testing.assert_array_equal(got, expected)


def assert_close(got, expected, array):
    """Allow for the rounding errors of NumPy's sum in the array's own precision."""
    dtypes = [dtype for dtype in (array.dtype, expected.dtype) if dtype.kind in "fc"]
    eps = max(np.finfo(dtype).eps for dtype in dtypes)
    rtol = 8 * float(eps) * max(array.size, 1)
    finite = array[np.isfinite(array)].astype(np.complex128)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(finite).sum())


def numbers(dtype):
    """Return a strategy of small numbers, whose sums and products do not overflow."""
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        return st.complex_numbers(max_magnitude=8, width=8 * dtype.itemsize)
    if dtype.kind == "f":
        return st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.5, 2.0, 7.0])
    return None  # any integers or bools


@st.composite
def arrays(draw, dtypes=DTYPES, min_side=0):
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=min_side, max_side=5))
    return draw(npst.arrays(dtype, shape, elements=numbers(dtype)))


def axes(ndim):
    one = st.integers(-ndim, ndim - 1)
    several = st.lists(one, max_size=ndim, unique_by=lambda axis: axis % ndim).map(tuple)
    return st.none() | one | several


@st.composite
def problems(draw, **kinds):
    array = draw(arrays(**kinds))
    cuts = draw(st.lists(st.integers(0, len(array)), max_size=4))
    return array, cuts, draw(axes(array.ndim))


@given(st.sampled_from(REDUCTIONS), problems(), st.booleans())
def test_reductions_equal_numpys_in_value_dtype_shape_and_exception(name, problem, keepdims):
    array, cuts, axis = problem
    assert_same(name, array, cuts, axis=axis, keepdims=keepdims)


@given(st.sampled_from(["var", "std"]), problems(), st.integers(-1, 6))
def test_ddof_and_correction_are_those_of_numpy(name, problem, ddof):
    array, cuts, axis = problem
    assert_same(name, array, cuts, axis=axis, ddof=ddof)
    assert_same(name, array, cuts, axis=axis, correction=ddof)
    assert_same(name, array, cuts, axis=axis, ddof=1, correction=ddof)


@given(
    st.sampled_from(["sum", "prod", "mean", "var", "std"]),
    problems(dtypes=["?", "i1", "u2", "i8", "f4", "f8"], min_side=1),
    st.sampled_from(["i1", "u4", "i8", "f4", "f8", "c16"]),
)
def test_dtype_is_that_of_numpy(name, problem, dtype):
    array, cuts, axis = problem
    assert_same(name, array, cuts, axis=axis, dtype=dtype)


@given(st.sampled_from([*UFUNCS, "mean", "var"]), problems(), st.data())
def test_where_and_initial_are_those_of_numpy(name, problem, data):
    array, cuts, axis = problem
    keywords = {}
    if data.draw(st.booleans(), "masked"):
        shape = data.draw(npst.broadcastable_shapes(array.shape, max_dims=array.ndim, max_side=5))
        keywords["where"] = data.draw(npst.arrays(bool, shape), "where")
    if name in ("sum", "prod", "min", "max") and data.draw(st.booleans(), "with an initial value"):
        keywords["initial"] = data.draw(st.sampled_from([0, 1, 3]), "initial")
    assert_same(name, array, cuts, axis=axis, **keywords)


@given(st.sampled_from(REDUCTIONS), problems(min_side=1), st.data())
def test_out_is_filled_as_numpy_fills_it(name, problem, data):
    array, cuts, axis = problem
    shape = np.shape(outcome(lambda: getattr(np, name)(array, axis=axis))[0])
    dtype = data.draw(st.sampled_from(["?", "i1", "i8", "f4", "f8", "c16"]), "dtype of out")
    assert_same(name, array, cuts, axis=axis, out=np.zeros(shape, dtype))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (3,), (1, 2), (2, 1)])
def test_out_with_another_shape_raises_as_in_numpy(name, shape):
    dtype = np.asarray(getattr(np, name)(np.ones((3, 2)))).dtype
    assert_same(name, np.ones((3, 2)), [1], axis=0, out=np.zeros(shape, dtype))


@given(
    st.sampled_from(["sum", "mean", "min", "max", "argmin", "argmax", "var", "any"]),
    npst.arrays("f8", (6, 2), elements=st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf])),
    st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from([None, 0, 1]),
)
def test_nan_and_infinity_give_the_results_of_numpy(name, array, cuts, axis):
    assert_same(name, array, cuts, axis=axis)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [2, -3, (0, 0), 1.0, "0", True])
def test_an_invalid_axis_raises_as_in_numpy(name, axis):
    assert_same(name, np.ones((3, 2)), [1], axis=axis)


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("sum", {"ddof": 1}),
        ("min", {"dtype": "f8"}),
        ("argmax", {"where": True}),
        ("sum", {"out": 3}),
        ("sum", {"where": [True, False, True]}),
        ("sum", {"where": [1, 0]}),
        ("sum", {"where": np.array([1, 0])}),
        ("min", {"where": [True, False]}),
        ("argmin", {"axis": (0,)}),
        ("var", {"mean": np.ones((1, 2)), "axis": 0}),
        ("mean", {"nothing": 1}),
    ],
)
def test_unusual_keywords_are_treated_as_in_numpy(name, keywords):
    assert_same(name, np.arange(6.0).reshape(3, 2), [1], **keywords)


@pytest.mark.parametrize("dtype", [object, np.dtypes.StringDType(), "U3", "M8[s]"])
@pytest.mark.parametrize("name", ["min", "sum", "argmax", "any"])
def test_other_dtypes_give_the_results_of_numpy(name, dtype):
    array = np.array(["3", "1", "2"]).astype("i8" if dtype == "M8[s]" else "U3").astype(dtype)
    assert_same(name, array, [1, 1])


def test_invalid_arguments_raise_before_a_block_is_read():
    def unread():
        raise AssertionError("a block was read")
        yield

    for keywords in ({"axis": 2}, {"out": np.ones(3)}, {"initial": "x"}, {"where": np.eye(2)}):
        with pytest.raises((ValueError, TypeError)):
            reduce_blocks("sum", unread(), (3, 2), np.dtype("f8"), **keywords)


@pytest.mark.parametrize(("name", "first"), [("any", [0, 1]), ("all", [0, 1])])
def test_any_and_all_stop_reading_once_the_result_is_certain(name, first):
    def blocks():
        yield np.array(first)
        raise AssertionError("a second block was read")

    assert reduce_blocks(name, blocks(), (9,), np.dtype(int)) == (name == "any")


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [None, 0])
def test_memory_is_bounded_by_blocks(name, axis):
    rows, count = 1000, 100
    blocks = (np.ones((rows, 8)) for _ in range(count))
    tracemalloc.start()
    try:
        reduce_blocks(name, blocks, (rows * count, 8), np.dtype(float), axis=axis)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * rows * 8 * 8


def test_float16_is_summed_in_float64():
    ones = np.ones(60_000, np.float16)
    blocks = np.split(ones, 60)
    assert reduce_blocks("mean", blocks, ones.shape, ones.dtype) == 1
    assert reduce_blocks("sum", blocks, ones.shape, ones.dtype) == ones.sum()


def test_the_variance_of_numbers_far_from_zero_is_precise():
    rng = np.random.default_rng(0)
    array = 1e9 + rng.normal(size=10_000)
    variance = reduce_blocks("var", np.split(array, 100), array.shape, array.dtype)
    assert math.isclose(variance, array.var(), rel_tol=1e-9)
