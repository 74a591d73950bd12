"""`fill` replaces missing values of samples and tables."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from rewriting import write_and_open

import npstream
from npstream.formats.encodings.encodings import column_type
from npstream.writing.inputs.fill import Fill, check_fill, fill_sample, is_absent


def write_filled(root, data, values, columns=None):
    """Write a table with missing values filled, and open it."""
    _, ds = write_and_open(root, data, columns=columns, fill=values)
    return ds


ARROW = {
    "bool": (pa.bool_(), [True, None, False], True),
    "int8": (pa.int8(), [1, None, 3], -1),
    "float32": (pa.float32(), [0.5, None, np.nan], 2.0),
    "datetime64[us]": (pa.timestamp("us"), [1, None, 3], np.datetime64(7, "us")),
    "datetime64[D]": (pa.date32(), [1, None, 3], np.datetime64(7, "D")),
    "str": (pa.string(), ["a", None, "c"], "filled with text"),
    "str views": (pa.string_view(), ["a", None, "c" * 20], ""),
    "bytes": (pa.large_binary(), [b"a", None, b"c"], b"xyz"),
    "fixed bytes": (pa.binary(1), [b"a", None, b"c"], b"xyz"),
    "categories": (pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"], "b"),
    "lists": (pa.list_(pa.int16()), [[1], None, [2, 3]], np.array([9, 9, 9], np.int16)),
    "views of lists": (pa.list_view(pa.int16()), [[1], None, [2, 3]], np.array([9], np.int16)),
    "rows": (pa.list_(pa.int16(), 2), [[1, 2], None, [3, 4]], np.array([9, 9], np.int16)),
    "structs": (pa.struct({"a": pa.int8()}), [{"a": 1}, None, {"a": None}], {"a": 0}),
}
"""Arrow types, the values of a column, and the value that fills its null."""


@pytest.mark.parametrize("name", ARROW)
def test_nulls_of_arrow_are_filled(name, tmp_path):
    kind, values, value = ARROW[name]
    array = pa.array(values, kind.value_type if name == "categories" else kind)
    if name == "categories":
        array = array.dictionary_encode()
    table = pa.table({"n": [1, 2, 3], "x": array})
    cases = ((table, 0), (table[1:], 1), (table.to_reader(max_chunksize=1), 0))
    for number, (data, first) in enumerate(cases):
        ds = write_filled(tmp_path / str(number), data, {"x": value})
        filled_row = 1 - first
        actual = ds["x"][filled_row]
        assert actual == value if np.ndim(value) == 0 else np.array_equal(actual, value)
        others = [sample for row, sample in enumerate(ds) if row != filled_row]
        assert [sample["n"] for sample in others] == [1, 3][first:]
        plain = npstream.write(tmp_path / f"{number}p", pa.table({"n": [3], "x": array[2:]}))
        last_value = npstream.open(plain.path)["x"][0]
        assert np.array_equal(others[-1]["x"], last_value, equal_nan=name == "float32")


def test_null_rows_that_have_elements(tmp_path):
    offsets = pa.array([0, 2, 4, 5], pa.int32())
    mask = pa.array([False, True, False])
    lists = pa.ListArray.from_arrays(offsets, pa.array([1, 2, 3, 4, 5]), mask=mask)
    ds = write_filled(tmp_path / "a", pa.table({"x": lists}), {"x": np.array([9])})
    assert [row.tolist() for row in ds["x"]] == [[1, 2], [9], [5]]


PANDAS = {
    "Int8": (pd.array([1, None, 3], dtype="Int8"), -1),
    "boolean": (pd.array([True, None, True], dtype="boolean"), False),
    "Float32": (pd.array([0.5, None, 3], dtype="Float32"), -1.0),
    "str": (["a", None, "c"], "b"),
    "category": (pd.Categorical(["a", None, "c"]), "b"),
    "category of numbers": (pd.Categorical([1.5, None, 3]), 2.5),
    "category of nothing": (pd.Categorical([None, None, None]), "b"),
    "objects": (pd.Series([{"a": 1}, None, {}], dtype=object), {"b": 2}),
    "text objects": (pd.Series(["a", np.nan, "c"], dtype=object), "b"),
    "all missing": (pd.Series([None, None, None], dtype=object), 5),
}


@pytest.mark.parametrize("name", PANDAS)
def test_missing_values_of_pandas_are_filled(name, tmp_path):
    values, value = PANDAS[name]
    ds = write_filled(tmp_path / "a", pd.DataFrame({"n": [1, 2, 3], "x": values}), {"x": value})
    assert ds["x"][1] == value
    if name not in ("category of nothing", "all missing"):
        assert ds["x"][0] == values[0]
        assert ds["x"][2] == values[2]


def test_nan_is_missing_where_the_encoding_cannot_store_it(tmp_path):
    frame = pd.DataFrame({"x": [1, None, 3], "t": pd.to_datetime(["2020", None, "2021"])})
    fill = {"x": -1, "t": np.datetime64("1970", "us")}
    ds = write_filled(tmp_path / "a", frame, fill)
    assert np.isnan(ds["x"][1])
    assert np.isnat(ds["t"][1])
    fill = {"x": -1}
    ds = write_filled(tmp_path / "b", frame, fill, {"x": "int64"})
    assert ds["x"].load().tolist() == [1, -1, 3]
    ds = write_filled(tmp_path / "c", pa.table({"x": [1, np.nan, None]}), fill, {"x": "int8"})
    assert ds["x"].load().tolist() == [1, -1, -1]
    for value, encoding, is_missing in (
        (None, "float64", True),
        (pd.NA, "json", True),
        (pd.NaT, "datetime64[s]", False),
        (pd.NaT, "int64", True),
        (float("nan"), "float32", False),
        (np.float32("nan"), "bool", True),
        (float("nan"), "str", True),
        (np.datetime64("NaT"), "str", True),
        ("", "str", False),
    ):
        assert is_absent(value, column_type(encoding)) == is_missing


def test_columns_that_a_table_lacks(tmp_path):
    table = pa.table({"x": [1, 2]})
    for number, data in enumerate((table, table.to_reader(), {"x": [1, 2]}, table.to_pandas())):
        fill = {"lang": "en", "score": 0.5, "row": np.zeros(2, "f4")}
        ds = write_filled(tmp_path / str(number), data, fill)
        assert list(ds["lang"]) == ["en", "en"]
        assert ds["score"].load().tolist() == [0.5, 0.5]
        assert ds["row"][1].tolist() == [0, 0]
    columns = {"x": "int64", "row": "ndarray:float32:2"}
    ds = write_filled(tmp_path / "fixed", table, {"row": np.zeros(2, "f4")}, columns)
    assert ds["row"].shape == (2, 2)
    assert ds.columns == ("x", "row")


def test_values_that_do_not_fit_their_column(tmp_path):
    table = pa.table({"x": [1, None]})
    for value in ("a", 1.5):
        with pytest.raises(
            (TypeError, ValueError), match="fill: column 'x' is 'int64' and cannot take"
        ):
            write_filled(tmp_path / "a", table, {"x": value})
    for fill in ([1], {1: 2}):
        with pytest.raises(TypeError, match="fill maps names of columns"):
            check_fill(fill)
    assert check_fill(None) == {}


def test_fill_sample():
    fill, columns = (
        check_fill({"a": 0, "s": ""}),
        {"a": column_type("int"), "s": column_type("str")},
    )
    whole = {"a": 1, "s": "x"}
    assert fill_sample(whole, fill, columns) is whole
    assert fill_sample({"a": None}, fill, columns) == {"a": 0, "s": ""}
    assert fill_sample({"a": float("nan"), "s": float("nan")}, fill, columns) == {"a": 0, "s": ""}
    assert fill_sample({"s": pd.NA, "b": None}, fill, {}) == {"a": 0, "s": "", "b": None}
    assert not Fill(is_given=False)


REFUSED_ROWS = {
    "Arrow numbers": pa.array([1, None, 3, None, 5]),
    "Arrow text": pa.array(["a", None, "c", None, "e"]),
    "Arrow lists": pa.array([[1], [], [3], None, [5]]),
    "pandas numbers": pd.array([1, None, 3, None, 5], dtype="Int8"),
    "pandas text": ["a", None, "c", None, "e"],
    "pandas categories": pd.Categorical(["a", None, "c", None, "e"]),
    "pandas objects": pd.Series([{"a": 1}, {1: 2}, {}, b"x", []], dtype=object),
    "NumPy objects": np.array(["a", None, "c", 4, "e"], object),
}
"""Columns whose rows 1 and 3 are refused."""


@pytest.mark.parametrize("name", REFUSED_ROWS)
def test_rows_that_are_refused_are_left_out(name, tmp_path):
    library = name.partition(" ")[0]
    columns = {"n": np.arange(5), "x": REFUSED_ROWS[name]}
    data = {"Arrow": pa.table, "pandas": pd.DataFrame, "NumPy": dict}[library](columns)
    tables = [data]
    if library == "Arrow":
        tables.append(data.to_reader(max_chunksize=2))
    for number, table in enumerate(tables):
        path = tmp_path / str(number)
        report = npstream.write(path, table, on_error="skip", rejects=tmp_path / "rejects.jsonl")
        assert npstream.open(path)["n"].load().tolist() == [0, 2, 4]
        assert report.rejected == 2
        lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in lines]
        assert [line["sample"] for line in lines] == [1, 3]
        assert all("column 'x'" in line["reason"] for line in lines)


def samples_given_to_map(tmp_path, data, **arguments):
    """Write data with `map`, and return the samples that `map` is called with."""
    samples = []

    def record(sample):
        samples.append(sample)
        return {"n": len(samples)}

    report = npstream.write(tmp_path / "mapped", data, map=record, mode="w", **arguments)
    assert report.samples == len(samples)
    return samples


@pytest.mark.parametrize("name", ARROW)
def test_map_gets_none_for_nulls_of_arrow(name, tmp_path):
    kind, values, _ = ARROW[name]
    array = pa.array(values, kind.value_type if name == "categories" else kind)
    if name == "categories":
        array = array.dictionary_encode()
    table = pa.table({"n": [1, 2, 3], "x": array})
    present = samples_given_to_map(
        tmp_path, pa.table({"n": [1, 3], "x": pa.concat_arrays([array[:1], array[2:]])})
    )
    for data in (table, table.to_reader(max_chunksize=1)):
        first, second, third = samples_given_to_map(tmp_path, data)
        assert second == {"n": 2, "x": None}
        for sample, expected in ((first, present[0]), (third, present[1])):
            assert sample["n"] == expected["n"]
            assert type(sample["x"]) is type(expected["x"])
            np.testing.assert_equal(sample["x"], expected["x"])


@pytest.mark.parametrize("name", PANDAS)
def test_map_gets_none_for_missing_values_of_pandas(name, tmp_path):
    values, _ = PANDAS[name]
    samples = samples_given_to_map(tmp_path, pd.DataFrame({"n": [1, 2, 3], "x": values}))
    assert [sample["n"] for sample in samples] == [1, 2, 3]
    assert samples[1]["x"] is None or np.isnan(samples[1]["x"])  # a column of objects keeps its NaN
    if name not in ("category of nothing", "all missing"):
        assert samples[0]["x"] == values[0]


def test_map_gets_none_where_a_column_has_only_nulls(tmp_path):
    for values in (pa.nulls(2), pa.nulls(2, pa.string()), pa.nulls(2, pa.int8())):
        assert samples_given_to_map(tmp_path, pa.table({"x": values})) == [{"x": None}] * 2
    assert samples_given_to_map(tmp_path, {"x": [None, None], "y": ["a", None]}) == [
        {"x": None, "y": "a"},
        {"x": None, "y": None},
    ]


def test_map_of_convert_gets_none_for_nulls(tmp_path):
    table = pa.table({"x": [1, None, 3], "text": [None, "b", "c"]})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    for name in ("a.parquet", "a.jsonl"):
        npstream.convert(
            tmp_path / name, tmp_path / "out", mode="w",
            map=lambda sample: {"x": sample["x"] or -1, "text": sample["text"] or ""},
        )  # fmt: skip
        ds = npstream.open(tmp_path / "out")
        assert ds["x"].load().tolist() == [1, -1, 3]
        assert list(ds["text"]) == ["", "b", "c"]
