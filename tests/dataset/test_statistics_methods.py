"""Tests of the methods that describe columns, against NumPy and pandas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import npstream
from npstream.explore.quantiles import quantiles

RNG = np.random.default_rng(0)
COLUMNS = {
    "label": RNG.integers(0, 9, 500, np.int32),
    "score": np.where(RNG.random(500) < 0.1, np.nan, RNG.random(500)),
    "tokens": RNG.integers(0, 50, (500, 3), np.uint16),
    "flag": RNG.random(500) < 0.3,
    "text": [f"t{k}" for k in RNG.integers(0, 20, 500)],
    "body": [f"b{k}".encode() for k in RNG.integers(0, 20, 500)],
    "meta": [{"k": int(k)} for k in RNG.integers(0, 3, 500)],
    "rows": [np.arange(k) for k in RNG.integers(1, 4, 500)],
    "day": np.datetime64("2020-01-01") + RNG.integers(0, 40, 500),
}


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "ds"
    npstream.write(path, COLUMNS)
    return npstream.open(path)


@pytest.mark.parametrize("name", ["label", "score", "tokens", "flag", "text", "day"])
def test_value_counts_and_unique_are_those_of_numpy(ds, name):
    values = np.array(COLUMNS[name])
    unique, numbers = np.unique(values, return_counts=True)
    expected = dict(zip(unique.tolist(), numbers.tolist(), strict=True))
    expected = {key: count for key, count in expected.items() if key == key}
    assert dict(ds[name].value_counts()) == expected
    np.testing.assert_array_equal(ds[name].unique(), unique)
    part = ds[::-3][name]
    np.testing.assert_array_equal(part.unique(), np.unique(values[::-3]))


def test_unique_of_bytes_and_of_texts_in_nd_views(ds):
    assert ds["body"].unique().tolist() == sorted(set(COLUMNS["body"]))
    assert ds["body"].value_counts()[b"b3"] == COLUMNS["body"].count(b"b3")
    grid = ds[np.arange(12).reshape(3, 4)]["text"]
    assert grid.unique().tolist() == sorted(set(COLUMNS["text"][:12]))


def test_missing_values_are_counted_on_request(ds):
    missing = int(np.isnan(COLUMNS["score"]).sum())
    counts = ds["score"].value_counts(dropna=False)
    assert counts.counts[0] == missing
    assert np.isnan(counts.unique[0])


def test_values_that_cannot_be_counted_are_refused(ds):
    with pytest.raises(TypeError, match="column 'meta' cannot be counted, as they are not hash"):
        ds["meta"].value_counts()
    with pytest.raises(TypeError, match=r"column 'rows' holds .* values of varying size"):
        ds["rows"].unique()


@pytest.mark.parametrize("q", [0, 0.5, 1, [0.1, 0.9], [[0.25], [0.75]]])
@pytest.mark.parametrize("name", ["label", "score", "tokens", "flag"])
def test_quantiles_are_those_of_numpy_without_nan(ds, name, q):
    values = np.asarray(COLUMNS[name]).astype(float)
    np.testing.assert_array_equal(ds[name].quantile(q), np.nanquantile(values, q))


def test_quantiles_of_times_are_those_of_pandas(ds):
    pandas = pytest.importorskip("pandas")
    expected = pandas.Series(COLUMNS["day"].astype("M8[s]")).quantile([0, 0.5, 1]).to_numpy()
    assert ds["day"].quantile([0, 0.5, 1]).tolist() == expected.astype("M8[D]").tolist()
    # Without values:
    assert np.isnat(ds["day"][:0].quantile())
    assert np.isnan(ds["label"][:0].quantile())


@given(npst.arrays(st.sampled_from(["f4", "f8", "i4"]), st.integers(1, 30)), st.floats(0, 1))
def test_quantiles_of_any_numbers_are_those_of_numpy(values, q):
    present = values[values == values]
    with np.errstate(all="ignore"):
        expected = np.quantile(present, np.array(q)) if len(present) else np.nan
        np.testing.assert_array_equal(quantiles(values, np.array(q)), expected)


def test_quantile_refuses_text_and_probabilities_out_of_range(ds):
    with pytest.raises(TypeError, match="quantile takes numbers, and column 'text' holds str"):
        ds["text"].quantile()
    with pytest.raises(ValueError, match="probabilities are between 0 and 1"):
        ds["label"].quantile(50)


@pytest.mark.parametrize("name", ["label", "score", "tokens", "flag", "day"])
def test_isin_is_that_of_numpy(ds, name):
    values = np.asarray(COLUMNS[name])
    chosen = values.reshape(-1)[:3]
    np.testing.assert_array_equal(ds[name].isin(chosen.tolist()), np.isin(values, chosen))
    np.testing.assert_array_equal(ds[::2][name].isin(chosen), np.isin(values[::2], chosen))


def test_isin_refuses_a_single_text_and_columns_of_json(ds):
    with pytest.raises(TypeError, match="isin takes several values"):
        ds["text"].isin("t1")
    with pytest.raises(TypeError, match="column 'meta' holds json"):
        ds["meta"].isin([1])
