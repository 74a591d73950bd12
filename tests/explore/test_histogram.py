"""Tests of histograms against NumPy, and of what matplotlib draws."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import npstream
from npstream.errors import MissingDependencyError
from npstream.explore.histogram import histogram

VALUES = st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf])


@given(npst.arrays("f8", st.integers(1, 40), elements=VALUES), st.integers(1, 7), st.integers(1, 4))
def test_histogram_is_that_of_numpy(values, bins, parts):
    finite = values[np.isfinite(values)]
    blocks = np.array_split(values, parts)
    counts, edges = histogram(lambda: blocks, values.dtype, bins)
    if len(finite):
        expected = np.histogram(finite, bins)
        np.testing.assert_array_equal(edges, expected[1])
    np.testing.assert_array_equal(counts, np.histogram(finite, edges)[0])
    assert counts.sum() == len(finite)


@pytest.mark.parametrize("dtype", ["M8[D]", "m8[s]"])
def test_times_are_counted(dtype):
    values = np.array([0, 5, 5, 9], "i8").astype(dtype)
    values = np.append(values, np.array("NaT", dtype))
    counts, edges = histogram(lambda: [values], values.dtype, 3)
    assert counts.tolist() == [1, 2, 1]
    assert edges.dtype == dtype
    same, _ = histogram(lambda: [values[1:3]], values.dtype, 3)
    assert same.sum() == 2
    counts, _ = histogram(lambda: [values], values.dtype, np.array([0, 5, 9]).astype(dtype))
    assert counts.tolist() == [1, 3]


def test_hist_draws_on_axes(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    npstream.write(tmp_path / "a", {"x": np.arange(100), "text": ["a"] * 100})
    ds = npstream.open(tmp_path / "a")
    ax = Figure().subplots()
    assert ds["x"].hist(bins=4, ax=ax, color="red") is ax
    assert [bar.get_height() for bar in ax.patches] == [25] * 4
    assert ax.get_title() == "x"
    with pytest.raises(TypeError, match="hist takes numbers, and column 'text' holds str"):
        ds["text"].hist()


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    npstream.write(tmp_path / "a", {"x": np.arange(9)})
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"npstream\[plot\]"):
        npstream.open(tmp_path / "a")["x"].hist()
