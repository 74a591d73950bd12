"""DataFrames of pandas and polars, and relations of DuckDB, keep their types."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rewriting import write_and_open

import npstream


def frame():
    return pd.DataFrame({
        "i": [1, 2, 3],
        "f": [1.5, np.nan, 2],
        "s": ["a", "b", "é"],
        "c": pd.Categorical(["x", "y", "x"]),
        "t": pd.to_datetime(["2020", "2021", None]),
        "b": [True, False, True],
        "n": pd.array([1, 2, 3], dtype="Int16"),
        "o": pd.Series([{"a": 1}, {"a": None}, {}], dtype=object),
        "w": pd.Series([1, 2, 3], dtype="int32[pyarrow]"),
    })  # fmt: skip


TYPES = {
    **{"i": "int64", "f": "float64", "s": "str", "c": "str", "t": "datetime64[us]"},
    **{"b": "bool", "n": "int16", "o": "json", "w": "int32"},
}


def test_a_dataframe(tmp_path):
    report, ds = write_and_open(tmp_path, frame())
    assert report.columns == TYPES
    assert ds["s"][2] == "é"
    assert np.isnan(ds["f"][1])
    assert np.isnat(ds["t"][2])
    assert ds[2]["o"] == {}
    for name in ("i", "n", "b", "c", "w"):
        assert list(ds[name]) == frame()[name].tolist()


def test_a_range_index_is_not_a_column(tmp_path):
    for number, data in enumerate((frame(), frame()[1:], frame()[::2], frame().iloc[:0])):
        report, ds = write_and_open(tmp_path / str(number), data.drop(columns="o"))
        assert list(report.columns) == [name for name in TYPES if name != "o"]
        assert ds["i"].load().tolist() == data["i"].tolist()


def test_columns_leave_out_an_index_and_a_name_that_is_not_text(tmp_path):
    data = frame().set_index(pd.Index(list("abc")))
    data[0] = 1
    _, ds = write_and_open(tmp_path, data, columns={"i": "int8", "s": "str"})
    assert ds[2] == {"i": 3, "s": "é"}


def test_an_index_with_names_is_columns(tmp_path):
    report, ds = write_and_open(tmp_path / "a", frame().set_index("s"))
    assert next(iter(report.columns)) == "s"
    assert list(ds["s"]) == ["a", "b", "é"]
    report, ds = write_and_open(tmp_path / "b", frame().set_index(["s", "i"]))
    assert list(report.columns)[:2] == ["s", "i"]
    assert ds["i"].load().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: frame().iloc[[0, 2, 1]], r"has no name: call reset_index\(drop=True\)"),
        (lambda: frame().set_index(pd.Index(list("abc"))), r"or reset_index\(\) to keep it"),
        (
            lambda: frame().set_index(frame()["i"]),
            r"'i': the index and a column have this name: .* as with frame\.drop\(columns='i'\)",
        ),
        (
            lambda: pd.concat([frame(), frame()], axis=1),
            r"'i': 2 columns have this name: .* as with frame\.loc\[:, ~frame\.columns\.duplicated",
        ),
        (lambda: pd.DataFrame(np.zeros((2, 2))), "column 0: column names must be str"),
        (lambda: pd.DataFrame({("a", "b"): [1]}), r"column \('a', 'b'\): column names must be str"),
        (lambda: pd.DataFrame({"x": pd.period_range("2020", periods=2)}), "'x': pandas's period"),
        (lambda: pd.DataFrame({"x": pd.interval_range(0, 2)}), "'x': pandas's interval.* or leave"),
        (
            lambda: pd.DataFrame({"x": pd.date_range("2020", periods=2, tz="UTC")}),
            r"'x': pandas's .* has a time zone.* \.dt\.tz_convert\(None\), .*or leave the column",
        ),
        (
            lambda: pd.DataFrame({"x": pd.array([1, 2, None], dtype="Int8")}),
            "sample 2: column 'x': 1 missing value of 3; .*: give fill= a value",
        ),
        (
            lambda: pd.DataFrame({"x": ["a", None, "b"]}),
            "sample 1: column 'x': 1 null in 3 values; .*: give fill= a value",
        ),
        (
            lambda: pd.DataFrame({"x": pd.Categorical(["a", None])}),
            "sample 1: column 'x': 1 missing value of 2",
        ),
        (
            lambda: pd.DataFrame({"x": pd.Series([1, "a"], dtype=object)}),
            "sample 1: column 'x' is 'int' and cannot take this str 'a'",
        ),
    ],
)
def test_frames_that_are_refused(make, words, tmp_path):
    with pytest.raises((TypeError, ValueError), match=words):
        npstream.write(tmp_path / "a", make())
    assert not (tmp_path / "a").exists()


def test_values_that_a_column_of_integers_cannot_hold(tmp_path):
    data = pd.DataFrame({"x": [1, None, 3]})  # a column of float64
    with pytest.raises(ValueError, match=r"sample 1: column 'x' is 'int64' and cannot take .* nan"):
        npstream.write(tmp_path / "a", data, columns={"x": "int64"})
    with pytest.raises(ValueError, match=r"sample 2: column 'x' is 'uint8' and cannot .* 300"):
        npstream.write(tmp_path / "a", pd.DataFrame({"x": [1, 2, 300]}), columns={"x": "uint8"})
    _, ds = write_and_open(tmp_path / "b", data.iloc[[0, 2]].reset_index(), columns={"x": "uint8"})
    assert ds["x"].load().tolist() == [1, 3]


def test_frames_one_after_another(tmp_path):
    parts = [frame()[:1], frame()[1:]]
    report, ds = write_and_open(tmp_path / "a", iter(parts))
    assert report.columns == TYPES
    assert list(ds["s"]) == ["a", "b", "é"]
    first = pd.DataFrame({"x": [1, 2], "y": [1, 2]})
    for other, kind, words in (
        (first.assign(x=[1.5, 2]), ValueError, "sample 2: column 'x' is 'int64' and .* 1.5"),
        (first.assign(x=["a", "b"]), TypeError, "sample 2: column 'x' is 'int64' and .* str 'a'"),
        (first.assign(x=[None, 1]), ValueError, "sample 2: column 'x' is 'int64' and .* nan"),
        (first.assign(z=1), ValueError, "sample 2 has 'z', which the first sample lacks"),
        (first[["y"]], npstream.errors.ColumnError, "sample 2: no column 'x'"),
        ({"x": 1, "y": 2}, TypeError, "data yields a dict after tables: give tables only"),
    ):
        with pytest.raises(kind, match=words):
            npstream.write(tmp_path / "b", iter([first, other]))
        assert not (tmp_path / "b").exists()
    _, ds = write_and_open(tmp_path / "c", iter([first, first.assign(x=[5.0, 6.0])]))
    assert ds["x"].load().tolist() == [1, 2, 5, 6]


def test_a_writer_takes_frames(tmp_path):
    with npstream.Writer(tmp_path / "a") as out:
        out.write({"x": 1, "s": "a"})
        out.write(pd.DataFrame({"x": [2, 3], "s": ["b", "c"]}))
        with pytest.raises(ValueError, match="sample 4: column 's': 1 null in 2 values"):
            out.write(pd.DataFrame({"x": [4, 5], "s": ["d", None]}))
        with pytest.raises(TypeError, match="sample 3: column 'x' is 'int' and cannot take"):
            out.write(pd.DataFrame({"x": [1.5], "s": ["d"]}))
        out.write(pa.record_batch({"s": ["d"], "x": [4]}))
        out.write(pa.table({"s": ["e"], "x": [5]}).to_reader())
    ds = npstream.open(tmp_path / "a")
    assert ds["x"].load().tolist() == [1, 2, 3, 4, 5]
    assert list(ds["s"]) == list("abcde")


# Polars


def polars_frame(pl):
    return pl.DataFrame({
        "a": [1, 2],
        "s": ["x", "y" * 30],
        "c": pl.Series(["p", "q"], dtype=pl.Categorical),
        "e": pl.Series(["p", "q"], dtype=pl.Enum(["p", "q"])),
        "l": [[1], [2, 3]],
        "r": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int16, 2)),
        "t": [{"a": 1}, {"a": None}],
        "d": pl.Series(["1.50", "2.25"]).cast(pl.Decimal(10, 2)),
        "b": [True, False],
        "day": [datetime.date(2020, 1, 1)] * 2,
        "time": [datetime.datetime(2020, 1, 1, 5)] * 2,
        "span": [datetime.timedelta(1)] * 2,
        "raw": [b"a", b"b"],
    })  # fmt: skip


POLARS = {
    **{"a": "int64", "s": "str", "c": "str", "e": "str", "l": "ndarray:int64"},
    **{"r": "ndarray:int16:2", "t": "json", "d": "str_decimal", "b": "bool"},
    **{"day": "datetime64[D]", "time": "datetime64[us]", "span": "timedelta64[us]"},
    "raw": "bytes",
}


def test_a_polars_frame(tmp_path):
    pl = pytest.importorskip("polars")
    data = polars_frame(pl)
    for number, table in enumerate((data, data.lazy().collect_batches())):
        report, ds = write_and_open(tmp_path / str(number), table)
        assert report.columns == POLARS
        for name in ("a", "s", "c", "e", "t", "d", "b", "raw", "day", "time", "span"):
            assert [getattr(v, "item", lambda v=v: v)() for v in ds[name]] == data[name].to_list()
        for name in ("l", "r"):
            assert [row.tolist() for row in ds[name]] == data[name].to_list()
    report, ds = write_and_open(tmp_path / "none", data[:0])
    assert report.columns == POLARS
    assert len(ds) == 0


def test_polars_frames_that_are_refused(tmp_path):
    pl = pytest.importorskip("polars")
    for data, words in (
        (polars_frame(pl).lazy(), r"data is a LazyFrame.*data\.collect\(\), or data\.collect_batc"),
        (pl.DataFrame({"x": pl.Series([object()], dtype=pl.Object)}), "column 'x': .*Object: cast"),
        (pl.DataFrame({"x": pl.Series([1], dtype=pl.Int128)}), "column 'x': .*Int128: cast it"),
        (pl.DataFrame({"x": [datetime.time(1)]}), "column 'x': .*time64.*int64 or string, or"),
        (pl.DataFrame({"x": [1, None]}), "sample 1: column 'x': 1 null in 2 values"),
        (pl.DataFrame({"x": [1]})["x"], r"data is a Series of shape \(1,\), one column without"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            npstream.write(tmp_path / "a", data)
        assert not (tmp_path / "a").exists()
    _, ds = write_and_open(tmp_path / "b", pl.Series([1, 2]), columns={"x": "uint8"})
    assert ds["x"].load().tolist() == [1, 2]


# DuckDB


def test_a_relation_of_duckdb(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    query = """
        select i, i::varchar s, [i, i + 1] l, {'a': i} t, (i / 4)::decimal(9, 2) d,
        (i % 200)::utinyint u, date '2020-01-01' as date, i::hugeint h from range(5000) t(i)
    """
    report, ds = write_and_open(tmp_path / "a", duckdb.sql(query))
    assert report.columns == {
        **{"i": "int64", "s": "str", "l": "ndarray:int64", "t": "json", "d": "str_decimal"},
        **{"u": "uint8", "date": "datetime64[D]", "h": "str_decimal"},
    }
    assert ds["i"].load().tolist() == list(range(5000))
    assert ds[4999]["t"] == {"a": 4999}
    nulls = duckdb.sql("select case when i < 3000 then i end x from range(5000) t(i)")
    with pytest.raises(ValueError, match=r"sample 3000: column 'x': .* give fill= a value"):
        npstream.write(tmp_path / "b", nulls)
