"""Tests of counts of values, against NumPy and pandas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import npstream
from npstream.explore import counts
from npstream.explore.counts import ValueCounts, count_numbers, count_objects

DTYPES = [*"?bBhHiIqQefdFD", "M8[D]", "m8[us]"]


def expected_counts(values):
    unique, numbers = np.unique(values, return_counts=True)
    order = np.argsort(-numbers, kind="stable")
    return unique[order], numbers[order]


# A test runs these kernels as Python functions, without compiling them.
KERNELS = (
    "add_to_histogram", "count_runs", "move_by_count", "split_repeated", "fill_descending",
)  # fmt: skip


# The limits are _PENDING_NUMBERS, _MAX_TABLE_RANGE and _MIN_KERNEL_ROWS.
@pytest.mark.parametrize(
    "limits",
    [(1 << 22, 1 << 22, 1 << 20), (10, 20, 1 << 20), (10, 1 << 22, 1)],
    ids=["large", "small", "kernels"],
)
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_counts_of_blocks_are_those_of_numpy(limits, dtype, data):
    narrow = st.integers(0, 5) if np.dtype(dtype).kind in "iu" else None
    elements = data.draw(st.sampled_from([None, narrow]))
    values = data.draw(npst.arrays(dtype, st.integers(0, 60), elements=elements))
    values = values + np.zeros(1, values.dtype) if values.dtype.kind in "fc" else values  # no -0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "_PENDING_NUMBERS", limits[0])
        patch.setattr(counts, "_MAX_TABLE_RANGE", limits[1])
        patch.setattr(counts, "_MIN_KERNEL_ROWS", limits[2])
        for name in KERNELS:
            patch.setattr(counts, name, getattr(counts, name).py_func)
        blocks = np.array_split(values, data.draw(st.integers(1, 5)))
        found = count_numbers("x", blocks, values.size, values.dtype)
        with_missing = count_numbers("x", blocks, values.size, values.dtype, dropna=False)
    present = values[values == values]
    unique, numbers = expected_counts(present)
    np.testing.assert_array_equal(found.unique, unique)
    np.testing.assert_array_equal(found.counts, numbers)
    assert found.unique.dtype == values.dtype
    missing = len(values) - len(present)
    assert with_missing.counts.sum() == len(values)
    assert (with_missing.counts[with_missing.unique != with_missing.unique] == missing).all()
    assert (np.diff(with_missing.counts) <= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("bound", [4, 1 << 10, 1 << 20, 1 << 23])  # long to short runs of equals
def test_compiled_kernels_count_many_values(dtype, bound):
    values = np.random.default_rng(0).integers(-bound, bound, 3 << 20).astype(dtype)
    found = count_numbers("x", np.array_split(values, 3), values.size, values.dtype)
    unique, numbers = expected_counts(values)
    np.testing.assert_array_equal(found.unique, unique)
    np.testing.assert_array_equal(found.counts, numbers)


@pytest.mark.parametrize("sizes", [[40], [7, 33], [10, 10, 20], [1, 38, 1]])
@pytest.mark.parametrize("distinct", [2, 8, 40])
def test_more_values_than_may_be_pending_are_counted(sizes, distinct, monkeypatch):
    monkeypatch.setattr(counts, "_PENDING_NUMBERS", 10)
    values = np.random.default_rng(3).permutation(np.arange(40) % distinct - 1.5)
    blocks = np.split(values.copy(), np.cumsum(sizes)[:-1])
    found = count_numbers("x", blocks, values.size, values.dtype)
    unique, numbers = expected_counts(values)
    np.testing.assert_array_equal(found.unique, unique)
    np.testing.assert_array_equal(found.counts, numbers)
    np.testing.assert_array_equal(np.concatenate(blocks), values)  # not sorted in place


def test_zeros_of_both_signs_are_one_value():
    values = np.array([-0.0, 0.0, -0.0, 1.0])
    found = count_numbers("x", [values], values.size, values.dtype)
    assert dict(found) == {0.0: 3, 1.0: 1}
    assert not np.signbit(found.unique).any()
    assert np.signbit(values).tolist() == [True, False, True, False]


def test_uint64_is_counted_exactly():
    values = np.array([2**64 - 1, 2**64 - 3, 2**64 - 1, 0], np.uint64)
    assert dict(count_numbers("x", [values], values.size, values.dtype)) == {
        2**64 - 1: 2, 0: 1, 2**64 - 3: 1,
    }  # fmt: skip


def test_tables_grow_in_both_directions():
    blocks = [np.array([5, 7]), np.array([1, 2, 5]), np.array([9]), np.array([10**9])]
    assert dict(count_numbers("x", blocks, 7, np.dtype(int))) == {
        5: 2, 1: 1, 2: 1, 7: 1, 9: 1, 10**9: 1,
    }  # fmt: skip


def test_objects_without_an_order_are_counted():
    assert dict(count_objects("x", [[1, "a", None], ["a"]], "object")) == {"a": 2, 1: 1, None: 1}
    with pytest.raises(TypeError, match="column 'x' cannot be counted, as they are not hashable"):
        count_objects("x", [[[1]]], "object")


def test_counts_equal_those_of_pandas():
    pandas = pytest.importorskip("pandas")
    values = np.array([3, 1, 3, 2, 2, 3])
    ours = count_numbers("x", [values], values.size, values.dtype).to_pandas()
    pandas.testing.assert_series_equal(ours, pandas.Series(values, name="x").value_counts())
    texts = count_objects("t", [["b", "a", "b"]], "str").to_pandas()
    expected = pandas.Series(["b", "a", "b"], name="t", dtype=object).value_counts()
    pandas.testing.assert_series_equal(texts, expected, check_index_type=False)


def test_the_repr_fits_a_screen():
    found = count_numbers("x", [np.arange(50_000)], 50_000, np.dtype(int))
    lines = repr(found).splitlines()
    assert lines[0] == "<npstream.ValueCounts: 50,000 distinct values of 'x'"
    assert lines[-1] == "  ... and 49,990 more>"
    assert len(lines) == 12
    assert repr(ValueCounts("x", np.empty(0), np.empty(0, int))) == (
        "<npstream.ValueCounts: 0 distinct values of 'x'>"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_nan_is_a_key_of_the_counts(tmp_path, dtype):
    npstream.write(tmp_path, {"x": np.array([1, np.nan, 2, np.nan, np.nan], dtype)})
    all_counts = npstream.open(tmp_path)["x"].value_counts(dropna=False)
    assert [count for _, count in all_counts.items()] == [3, 1, 1]
    assert all_counts[np.nan] == all_counts[float("nan")] == all_counts[dtype("nan")] == 3
    assert all_counts[2] == 1
    assert np.nan in all_counts
    assert np.nan not in npstream.open(tmp_path)["x"].value_counts()
