"""Values that an encoding holds, and those that it does not."""

from __future__ import annotations

import datetime
import decimal

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from rewriting import write_and_open

import npstream
import torch
from tests._core.test_dtypes import assert_same

REFUSED = [
    ("int32", [1.7], "int32 cannot hold 1.7"),
    ("uint8", [-0.5], "cannot hold -0.5"),
    ("int64", np.array([1.5, 2.5]), "cannot hold 1.5"),
    ("int64", np.array([1.0, np.nan]), "sample 1: .* cannot hold nan"),
    ("int64", np.array([1.0, 2.0**63]), "sample 1: "),
    ("uint16", [np.float32(2.9)], "cannot hold 2.9"),
    ("float32", np.array([1 + 2j]), "expected float32, got complex128"),
    ("float32", [1j], "expected float32, got complex128"),
    ("float64", [np.timedelta64(3, "h")], r"got timedelta64\[h\]"),
    ("float64", [np.datetime64("2020-01-01")], r"got datetime64\[D\]"),
    ("float64", [datetime.date(2020, 1, 1)], r"got datetime64\[D\]"),
    ("float32", [None], "fill it in with a value of your own, or leave the sample out"),
    ("float32", [pd.NA], "fill it in"),
    ("uint8", [np.ma.masked], "fill"),
    ("uint8", np.ma.array([1, 2], mask=[False, True]), "mask hides 1 of 2 values: fill them in"),
    ("float32", [1e300], "beyond that dtype's range"),
    ("float32", np.array([1, 1e300]), "sample 1: .*beyond that dtype's range"),
    ("float64", [2**53 + 1], "cannot hold 9007199254740993"),
    ("float64", np.array([2**53 + 1]), "cannot hold 9007199254740993"),
    ("float16", [70000], "cannot hold 70000"),
    ("int64", ["1"], "expected one int64, got str"),
    ("float64", ["1.5"], "expected one float64, got str"),
    ("float64", [decimal.Decimal("0.1")], "got Decimal"),
    ("int", [1.0], "expected an int"),
    ("int", [None], "fill it in"),
    ("int", [torch.tensor([3])], "expected an int, got Tensor"),
    ("str", ["a", None], "sample 1: .*fill it in"),
    ("str", ["a", float("nan")], "sample 1: .*fill it in"),
    ("str", [pd.NA], "fill it in"),
    ("bytes", [None], "fill it in"),
    ("bytes", [memoryview(np.arange(3))], r"use its cast\('B'\)"),
    ("bool", [2], "bool cannot hold 2"),
    ("bool", [None], "fill it in"),
    ("bool", np.array([0, 2]), "sample 1: .*cannot hold 2"),
    ("datetime64[D]", [datetime.datetime(2020, 1, 1, 5)], r"choose 'datetime64\[us\]'"),
    ("datetime64[D]", np.array(["2020-01-01T05"], "M8[h]"), r"choose 'datetime64\[h\]'"),
    ("datetime64[us]", [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)], "has a time zone"),
    ("datetime64[us]", [pd.Timestamp(1)], r"choose 'datetime64\[ns\]'"),
    ("datetime64[s]", [5], r"expected datetime64\[s\], got int64"),
    ("datetime64[s]", ["2020"], "got str"),
    ("timedelta64[s]", [np.timedelta64(3)], "has no unit"),
    ("complex64", [1e300], "beyond that dtype's range"),
    ("complex64", [None], "fill it in"),
    ("json", [{1: 2}], "its key 1 would become text"),
    ("json", [{"a": [{"b": ({2.5: 0},)}]}], "its key 2.5 would become text"),
    ("json", [{None: 0}], "its key None"),
    ("json", [np.ma.array([1], mask=True)], "mask hides"),
    ("json", [{"a": 1j}], "not JSON serializable"),
    ("json", [np.array([1], "M8[ns]")], r"JSON cannot store an array of datetime64\[ns\]"),
    ("json", [np.array([1], "m8[ns]")], r"JSON cannot store an array of timedelta64\[ns\]"),
    ("json", np.zeros((1, 2), "m8[Y]"), r"JSON cannot store an array of timedelta64\[Y\]"),
    ("json", [np.zeros(1, [("a", "i4")])], "JSON cannot store an array of"),
    ("int64", [2**63], "9223372036854775808 is out of bounds for int64"),
    ("uint64", [-(2**64)], "an integer of 65 bits is out of bounds for uint64"),
    ("uint8", [np.int16(300)], "300 is out of bounds for uint8, which holds 0 to 255"),
    ("timedelta64[us]", [datetime.timedelta.max], "is more than 2.*63 microseconds"),
    ("timedelta64[us]", [datetime.timedelta.min], r"choose 'timedelta64\[s\]'"),
    ("ndarray:uint8:2", [np.ma.array([1, 2], np.uint8, mask=[0, 1])], "mask hides"),
    ("ndarray:uint8", [np.ma.array([1, 2], np.uint8, mask=[0, 1])], "mask hides"),
    ("ndarray:float32:2", np.zeros((1, 2)), "expected an array of dtype float32, got float64"),
    ("ndarray", [np.array([True])], "holds no bool: make it one of 'ndarray:bool'"),
    ("pil", [None], "fill it in"),
    ("str_float", [None], "fill it in"),
]


@pytest.mark.parametrize(
    ("encoding", "values", "words"),
    REFUSED,
    ids=[f"{k}-{encoding}" for k, (encoding, *_) in enumerate(REFUSED)],
)
def test_values_that_an_encoding_does_not_hold(encoding, values, words, tmp_path):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        npstream.write(tmp_path / "columns", {"x": values}, columns={"x": encoding})
    assert "column 'x'" in str(caught.value)
    if isinstance(values, np.ma.MaskedArray):
        return  # the rows of a masked array have other types than its elements
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        npstream.write(tmp_path / "rows", ({"x": x} for x in values), columns={"x": encoding})
    assert "column 'x'" in str(caught.value)
    for name in ("columns", "rows"):
        assert not (tmp_path / name).exists()


ACCEPTED = [
    ("int32", [2.0, np.float32(3), True, np.int8(4), torch.tensor(5), np.array(6)]),
    ("uint8", np.array([1.0, 255.0])),
    ("float32", [0.1, 1, np.float64(0.1), float("inf"), True, torch.tensor(1.5)]),
    ("float16", np.array([0.1, np.inf, -0.0])),
    ("float64", np.array([2**53, -(2**63)])),
    ("bool", [1, np.True_, 0.0, False]),
    ("bool", np.array([0, 1], np.int64)),
    ("complex64", [1, 2.5, 1j, np.complex128(1)]),
    ("datetime64[us]", [datetime.datetime(2020, 1, 1, 5), datetime.date(2020, 1, 1), pd.NaT]),
    ("datetime64[s]", np.array(["2020", "NaT"], "M8[Y]")),
    ("timedelta64[ns]", [datetime.timedelta(1), pd.Timedelta(5), np.timedelta64(1, "s"), pd.NaT]),
    ("bfloat16", [1, 0.5, np.float32(1.5), ml_dtypes.bfloat16(2)]),
]


@pytest.mark.parametrize(
    ("encoding", "values"),
    ACCEPTED,
    ids=[f"{k}-{encoding}" for k, (encoding, _) in enumerate(ACCEPTED)],
)
def test_values_that_an_encoding_holds(encoding, values, tmp_path):
    _, ds = write_and_open(tmp_path / "columns", {"x": values}, columns={"x": encoding})
    _, rows = write_and_open(tmp_path / "rows", [{"x": x} for x in values], columns={"x": encoding})
    dtype = ds["x"].dtype
    if dtype.kind in "mM":
        values = [x.to_numpy() if hasattr(x, "to_numpy") else x for x in values]
        expected = np.array([np.array("NaT", dtype) if x != x else x for x in values], dtype)
    else:
        expected = np.array([np.asarray(x).astype(dtype) for x in values])
    assert_same(ds["x"].load(), expected)
    assert_same(rows["x"].load(), expected)


def test_durations_that_overflow_in_microseconds(tmp_path):
    durations = [datetime.timedelta.min, datetime.timedelta(1), datetime.timedelta(-1)]
    for unit, per_day in (("D", 1), ("s", 86400)):
        _, ds = write_and_open(
            tmp_path / unit, {"x": durations}, columns={"x": f"timedelta64[{unit}]"}
        )
        assert ds["x"].load().astype(np.int64).tolist() == [d.days * per_day for d in durations]
    with pytest.raises(ValueError, match=r"column 'x': 999999999 days.* is more than 2.*63 micro"):
        npstream.write(tmp_path / "inferred", [{"x": datetime.timedelta.max}])


INFERRED = [
    (["a", b"\xff"], "sample 1: column 'x' is 'str' and cannot take this bytes: 'utf-8'"),
    ([1, b"12345678"], "sample 1: column 'x' is 'int' and cannot take this bytes: expected an int"),
    ([1.5, b"12345678"], "expected one float64, got bytes"),
    ([True, b"1"], "expected one bool, got bytes"),
    ([[1], b"[2]"], "not JSON serializable"),
    ([np.zeros(1), b"12345678"], "expected an array, got bytes"),
]


@pytest.mark.parametrize(("values", "words"), INFERRED, ids=[str(k) for k in range(len(INFERRED))])
def test_bytes_are_encoded_values_only_where_an_encoding_was_chosen(values, words, tmp_path):
    for data in ({"x": values}, [{"x": x} for x in values]):
        with pytest.raises((TypeError, ValueError), match=words):
            npstream.write(tmp_path / "out", data)
    _, ds = write_and_open(tmp_path / "str", {"x": ["a", "é".encode()]})
    assert list(ds["x"]) == ["a", "é"]
    _, ds = write_and_open(tmp_path / "bytes", {"x": [b"a", b"\xff"]})
    assert list(ds["x"]) == [b"a", b"\xff"]
    _, ds = write_and_open(tmp_path / "int64", {"x": [1, b"\2" + bytes(7)]}, columns={"x": "int64"})
    assert list(ds["x"]) == [1, 2]


def test_what_json_holds(tmp_path):
    values = [{"a": [1, (2.5, None)], "é": {"b": True}}, [], "text", None, float("inf"), 10**30]
    _, ds = write_and_open(tmp_path, {"x": [*values, np.arange(3)]}, columns={"x": "json"})
    assert list(ds["x"]) == [{"a": [1, [2.5, None]], "é": {"b": True}}, *values[1:], [0, 1, 2]]
