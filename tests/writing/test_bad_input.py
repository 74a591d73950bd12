"""Bad input: the error names the sample, column or value, and nothing is published."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import npstream


def tables(*columns):
    """Return a stream of pandas tables."""
    return (pd.DataFrame(each) for each in columns)


def batches(*columns):
    """Return a stream of Arrow tables."""
    return (pa.table(each) for each in columns)


GOOD = [{"x": 1, "t": "a"}, {"x": 2, "t": "b"}]

CASES = {
    # Columns that change type in mid-stream
    "an int, then text": (
        [*GOOD, {"x": "three", "t": "c"}],
        {},
        ["sample 2", "column 'x'", "'three'"],
    ),
    "text, then an int": ([*GOOD, {"x": 3, "t": 4}], {}, ["sample 2", "column 't'", "int 4"]),
    "an int, then a float": ([*GOOD, {"x": 3.0, "t": ""}], {}, ["sample 2", "column 'x'", "3.0"]),
    "a NumPy int, then text": (
        [{"x": np.int8(1)}, {"x": "no"}],
        {},
        ["sample 1", "column 'x'", "'no'"],
    ),
    "an array, then one of another dtype": (
        [{"x": np.zeros(2, "i4")}, {"x": np.zeros(2, "f8")}],
        {},
        ["sample 1", "column 'x'", "float64"],
    ),
    "an array of another shape": (
        [{"x": np.zeros(2, "i4")}, {"x": np.zeros(3, "i4")}],
        {"columns": {"x": "ndarray:int32:2"}},
        ["sample 1", "column 'x'", "(3,)"],
    ),
    "a date, then text": (
        [{"x": datetime.date(2020, 1, 1)}, {"x": "2020-01-02"}],
        {},
        ["sample 1", "column 'x'", "'2020-01-02'"],
    ),
    "a stream, then floats": (
        lambda: tables({"x": [1, 2]}, {"x": [3, 4.5]}),
        {},
        ["sample 3", "column 'x'", "4.5"],
    ),
    "a stream, then text": (
        lambda: tables({"x": [1, 2]}, {"x": ["a"]}),
        {},
        ["sample 2", "column 'x'", "'a'"],
    ),
    "a stream of Arrow, then floats": (
        lambda: batches({"x": [1, 2]}, {"x": [3.0, 4.5]}),
        {},
        ["sample 3", "column 'x'", "4.5"],
    ),
    "a column of mixed types": (
        {"x": [1, 2, "three"]},
        {},
        ["sample 2", "column 'x'", "'three'"],
    ),
    # Missing and extra keys
    "a missing key": ([*GOOD, {"x": 3}], {}, ["sample 2", "'t'"]),
    "an extra key": ([*GOOD, {"x": 3, "t": "", "late": 0}], {}, ["sample 2", "'late'"]),
    "a table without a column": (
        lambda: tables({"x": [1], "t": ["a"]}, {"x": [2]}),
        {},
        ["sample 1", "'t'"],
    ),
    "a table with another column": (
        lambda: tables({"x": [1]}, {"x": [2], "late": [0]}),
        {},
        ["sample 1", "'late'"],
    ),
    "a column that is not there": ({"x": [1]}, {"columns": {"y": "int"}}, ["'y'"]),
    "a tuple that is too short": (
        [(1, "a"), (2,)],
        {"columns": {"x": "int", "t": "str"}},
        ["sample 1", "1 value", "columns= has 2 names"],
    ),
    "no mapping": ([*GOOD, 7], {}, ["sample 2", "int"]),
    # None
    "None": ([*GOOD, {"x": None, "t": ""}], {}, ["sample 2", "column 'x'", "None"]),
    "None as text": ([*GOOD, {"x": 3, "t": None}], {}, ["sample 2", "column 't'", "None"]),
    "pandas's NA": ([*GOOD, {"x": pd.NA, "t": ""}], {}, ["sample 2", "column 'x'", "NA"]),
    "None at first": ([{"x": None}], {}, ["sample 0: column 'x'", "no encoding follows from None"]),
    "None in a list": ({"x": [1, None]}, {}, ["sample 1", "column 'x'", "None"]),
    "nulls of Arrow": (pa.table({"x": [1, None, 3]}), {}, ["sample 1", "column 'x'", "null"]),
    "nulls of polars": (pl.DataFrame({"x": [1, 2, None]}), {}, ["sample 2", "column 'x'", "null"]),
    "nulls of pandas": (
        pd.DataFrame({"x": pd.array([1, None], "Int64")}),
        {},
        ["sample 1", "column 'x'", "missing value"],
    ),
    "nulls of a later table": (
        lambda: batches({"x": [1, 2]}, {"x": [3, None]}),
        {},
        ["sample 3", "column 'x'", "null"],
    ),
    "masked elements": (
        {"x": np.ma.array([1, 2], mask=[False, True])},
        {},
        ["sample 1", "column 'x'", "its mask hides 1 of 2 values"],
    ),
    # Values outside the declared dtype
    "an int that is too large": (
        [{"x": 1}, {"x": 300}],
        {"columns": {"x": "uint8"}},
        ["sample 1", "column 'x'", "300"],
    ),
    "a negative int": (
        {"x": np.array([1, -1])},
        {"columns": {"x": "uint16"}},
        ["sample 1", "column 'x'", "-1"],
    ),
    "a fraction": (
        {"x": np.array([1.0, 2.5])},
        {"columns": {"x": "int32"}},
        ["sample 1", "column 'x'", "2.5"],
    ),
    "a fraction of Arrow": (
        pa.table({"x": [1.0, 2.5]}),
        {"columns": {"x": "int32"}},
        ["sample 1", "column 'x'", "2.5"],
    ),
    "an int that a float rounds": (
        [{"x": 0.5}, {"x": 2**53 + 1}],
        {"columns": {"x": "float64"}},
        ["sample 1", "column 'x'", str(2**53 + 1)],
    ),
    "a float that becomes infinite": (
        {"x": np.array([1.0, 1e300])},
        {"columns": {"x": "float32"}},
        ["sample 1", "column 'x'", "1e+300"],
    ),
    "text with a surrogate": (
        [*GOOD, {"x": 3, "t": "\udc80"}],
        {},
        ["sample 2", "column 't'", "surrogate"],
    ),
    "a date between two days": (
        {"x": np.array(["2020-01-01T00", "2020-01-01T01"], "M8[h]")},
        {"columns": {"x": "datetime64[D]"}},
        ["sample 1", "column 'x'", "2020-01-01T01"],
    ),
    # NaN in columns of integers
    "NaN": ([{"x": 1}, {"x": float("nan")}], {}, ["sample 1", "column 'x'", "nan"]),
    "NaN of an array": (
        {"x": np.array([1.0, np.nan])},
        {"columns": {"x": "int64"}},
        ["sample 1", "column 'x'", "nan"],
    ),
    "NaN of a frame": (
        pd.DataFrame({"x": [1.0, np.nan]}),
        {"columns": {"x": "int64"}},
        ["sample 1", "column 'x'", "nan"],
    ),
    "NaN of a later table": (
        lambda: tables({"x": [1, 2]}, {"x": [3, None]}),
        {},
        ["sample 3", "column 'x'", "nan"],
    ),
    "NaN of Arrow": (
        pa.table({"x": [1.0, float("nan")]}),
        {"columns": {"x": "int64"}},
        ["sample 1", "column 'x'", "nan"],
    ),
    "NaT": (
        {"x": np.array(["2020", "NaT"], "M8[D]")},
        {"columns": {"x": "int64"}},
        ["column 'x'"],
    ),
    # Names that clash
    "two columns of a frame": (
        pd.DataFrame([[1, 2]], columns=["x", "x"]),
        {},
        ["'x'"],
    ),
    "two columns of Arrow": (
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]),
        {},
        ["'x'"],
    ),
    "a name that is not text": ([{1: 2}], {}, ["sample 0", "1"]),
    "names of a frame that are not text": (pd.DataFrame({0: [1]}), {}, ["0"]),
    "an index and a column of one name": (
        pd.DataFrame({"x": [1]}, index=pd.Index([5], name="x")),
        {},
        ["'x'"],
    ),
    "columns of other lengths": ({"x": [1, 2], "t": ["a"]}, {}, ["'x': 2", "'t': 1"]),
}
"""Data, or a function that returns it; arguments of `write`; and words of the error message."""


SAMPLES = [name for name, (data, *_) in CASES.items() if isinstance(data, list)]
"""The cases of samples."""

MAPPINGS = [name for name in SAMPLES if all(isinstance(each, dict) for each in CASES[name][0])]
"""The cases whose samples `map=` can return."""


def failure(path, data, **settings):
    """Check that a write fails and leaves nothing, and return the message of its error."""
    data = data() if callable(data) else data
    with pytest.raises((TypeError, ValueError, LookupError)) as caught:
        npstream.write(path, data, **settings)
    assert not path.exists()
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_the_error_names_what_is_wrong(case, tmp_path):
    data, settings, words = CASES[case]
    for small_shards in (False, True):
        shards = {"shard_samples": 1} if small_shards else {}
        message = failure(tmp_path / "ds", data, **settings, **shards)
        assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("case", MAPPINGS)
def test_errors_with_map_and_workers_have_the_same_words(case, tmp_path):
    data, settings, words = CASES[case]
    settings = {**settings, "map": lambda sample: sample}
    for workers in (0, 1):
        message = failure(tmp_path / "ds", data, **settings, workers=workers)
        assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("case", SAMPLES)
def test_a_writer_refuses_the_sample_and_goes_on(case, tmp_path):
    data, settings, words = CASES[case]
    with npstream.Writer(tmp_path / "ds", settings.get("columns")) as writer:
        for sample in data[:-1]:
            writer.write(sample)
        with pytest.raises((TypeError, ValueError, LookupError)) as caught:
            writer.write(data[-1])
        assert [word for word in words if word not in str(caught.value)] == []
        if len(data) == 1:
            writer.write({"x": 1})
    assert len(npstream.open(tmp_path / "ds")) == max(len(data) - 1, 1)


def test_a_map_that_is_not_callable_is_refused_before_data_is_read(tmp_path):
    data = iter([{"x": 1}, {"x": 2}])
    with pytest.raises(TypeError, match="map=5: expected a function of a sample"):
        npstream.write(tmp_path / "ds", data, map=5)
    assert next(data) == {"x": 1}
    assert not (tmp_path / "ds").exists()


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path: 'a\\x00b' has a null character"):
        npstream.write("a\0b", [{"x": 1}])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match="the link leads to a directory that does not exist"
    ):
        npstream.write(tmp_path / "link", [{"x": 1}])


@pytest.mark.parametrize("path", [5, "", "a\0b", "foo://data", "s3://", "s3:/bucket/data"])
def test_a_bad_path_is_refused_before_a_sample_is_taken(path):
    samples = iter([{"a": 1}, {"a": 2}])
    with pytest.raises((TypeError, ValueError)):
        npstream.write(path, samples)
    assert list(samples) == [{"a": 1}, {"a": 2}]
