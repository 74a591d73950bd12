"""What is given to a writer: arrays of other libraries, and what npstream itself has read."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import decimal
import io
import json
import os
import subprocess
import sys

import awkward
import dask.array
import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import xarray
import zarr
from golden_data import FORMATS
from PIL import Image

import npstream
from npstream._core.jit import Kernel
from npstream.errors import ColumnError, FormatError
from npstream.writing import writer
from tests._core.test_dtypes import same


def rewritten(root, data, **options):
    """Write data, and return what opening them gives."""
    report = npstream.write(root, data, **options)
    assert npstream.verify_dataset(root).problems == ()
    return report, npstream.open(root, allow_pickle=True)


# Values that an encoding does not hold


NOT_HELD = [
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
    ("json", [np.array([1], "M8[ns]")], r"JSON has nothing for an array of datetime64\[ns\]"),
    ("json", [np.array([1], "m8[ns]")], r"JSON has nothing for an array of timedelta64\[ns\]"),
    ("json", np.zeros((1, 2), "m8[Y]"), r"JSON has nothing for an array of timedelta64\[Y\]"),
    ("json", [np.zeros(1, [("a", "i4")])], "JSON has nothing for an array of"),
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
    NOT_HELD,
    ids=[f"{k}-{encoding}" for k, (encoding, *_) in enumerate(NOT_HELD)],
)
def test_values_that_an_encoding_does_not_hold(encoding, values, words, tmp_path):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        npstream.write(tmp_path / "columns", {"x": values}, columns={"x": encoding})
    assert "column 'x'" in str(caught.value)
    if isinstance(values, np.ma.MaskedArray):
        return  # whose elements that are hidden are of another kind
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        npstream.write(tmp_path / "rows", ({"x": x} for x in values), columns={"x": encoding})
    assert "column 'x'" in str(caught.value)
    for left in ("columns", "rows"):
        assert not (tmp_path / left).exists()


HELD = [
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
    ("encoding", "values"), HELD, ids=[f"{k}-{encoding}" for k, (encoding, _) in enumerate(HELD)]
)
def test_values_that_an_encoding_holds(encoding, values, tmp_path):
    _, ds = rewritten(tmp_path / "columns", {"x": values}, columns={"x": encoding})
    _, rows = rewritten(tmp_path / "rows", [{"x": x} for x in values], columns={"x": encoding})
    dtype = ds["x"].dtype
    if dtype.kind in "mM":
        values = [x.to_numpy() if hasattr(x, "to_numpy") else x for x in values]
        wanted = np.array([np.array("NaT", dtype) if x != x else x for x in values], dtype)
    else:
        wanted = np.array([np.asarray(x).astype(dtype) for x in values])
    same(ds["x"].load(), wanted)
    same(rows["x"].load(), wanted)


INFERRED = [
    (["a", b"\xff"], "sample 1: column 'x' is 'str' and cannot take this bytes: 'utf-8'"),
    ([1, b"12345678"], "sample 1: column 'x' is 'int' and cannot take this bytes: expected an int"),
    ([1.5, b"12345678"], "expected one float64, got bytes"),
    ([True, b"1"], "expected one bool, got bytes"),
    ([[1], b"[2]"], "not JSON serializable"),
    ([np.zeros(1), b"12345678"], "expected an array, got bytes"),
]


def test_durations_that_numpy_takes_modulo(tmp_path):
    durations = [datetime.timedelta.min, datetime.timedelta(1), datetime.timedelta(-1)]
    for unit, per_day in (("D", 1), ("s", 86400)):
        _, ds = rewritten(tmp_path / unit, {"x": durations}, columns={"x": f"timedelta64[{unit}]"})
        assert ds["x"].load().astype(np.int64).tolist() == [d.days * per_day for d in durations]
    with pytest.raises(ValueError, match=r"column 'x': 999999999 days.* is more than 2.*63 micro"):
        npstream.write(tmp_path / "inferred", [{"x": datetime.timedelta.max}])


@pytest.mark.parametrize(("values", "words"), INFERRED, ids=[str(k) for k in range(len(INFERRED))])
def test_bytes_are_encoded_values_only_where_an_encoding_was_chosen(values, words, tmp_path):
    for data in ({"x": values}, [{"x": x} for x in values]):
        with pytest.raises((TypeError, ValueError), match=words):
            npstream.write(tmp_path / "out", data)
    _, ds = rewritten(tmp_path / "str", {"x": ["a", "é".encode()]})
    assert list(ds["x"]) == ["a", "é"]
    _, ds = rewritten(tmp_path / "bytes", {"x": [b"a", b"\xff"]})
    assert list(ds["x"]) == [b"a", b"\xff"]
    _, ds = rewritten(tmp_path / "int64", {"x": [1, b"\2" + bytes(7)]}, columns={"x": "int64"})
    assert list(ds["x"]) == [1, 2]


def test_what_json_holds(tmp_path):
    values = [{"a": [1, (2.5, None)], "é": {"b": True}}, [], "text", None, float("inf"), 10**30]
    _, ds = rewritten(tmp_path, {"x": [*values, np.arange(3)]}, columns={"x": "json"})
    assert list(ds["x"]) == [{"a": [1, [2.5, None]], "é": {"b": True}}, *values[1:], [0, 1, 2]]


# Keys


def test_surplus_keys_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sample 1 has 'caption', which the first sample lacks"):
        npstream.write(tmp_path / "a", [{"a": 1}, {"a": 2, "caption": "lost"}])
    with pytest.raises(ColumnError, match="sample 1: no column 'b'"):
        npstream.write(tmp_path / "b", [{"a": 1, "b": 2}, {"a": 2, "c": 3}])
    _, ds = rewritten(tmp_path / "c", [{"a": 1}, {"a": 2, "b": 3}], columns={"a": "int"})
    assert list(ds) == [{"a": 1}, {"a": 2}]


def test_a_refused_sample_or_batch_leaves_nothing(tmp_path):
    with npstream.Writer(tmp_path) as out:
        for first in ({"a": 2**70}, npstream.Batch({"a": np.zeros((1, 0))})):
            with pytest.raises(ValueError):  # noqa: PT011 - of other words each
                out.write(first)
        out.write({"b": 1})
        for bad in (
            {"b": 1, "c": 2},
            npstream.Batch({"b": np.array([1, 2]), "c": np.array([1, 2])}),
            npstream.Batch({"c": np.array([1, 2])}),
            npstream.Batch({"b": np.array([1.0, 2.5])}),
            npstream.Batch({"b": np.array([1, 2]), "c": np.array([1])}),
        ):
            with pytest.raises((TypeError, ValueError, ColumnError)):
                out.write(bad)
        out.write(npstream.Batch({"b": np.array([7, 8])}))
    assert list(npstream.open(tmp_path)["b"]) == [1, 7, 8]


# Order


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("names", [("b", "a", "c"), ("c", "b", "a"), ("a", "b", "c")])
def test_columns_have_the_order_in_which_they_were_given(names, compression, tmp_path, upload):
    values = {"a": [1, 2, 3], "b": ["x", "yy", ""], "c": np.zeros((3, 2))}
    data = {name: values[name] for name in names}
    report, ds = rewritten(tmp_path / "columns", data, compression=compression)
    assert tuple(report.columns) == ds.columns == names
    assert tuple(ds[1]) == tuple(next(iter(ds))) == tuple(ds.load()) == names
    assert tuple(ds[["c", "a"]][0]) == ("c", "a")
    assert tuple(npstream.open(tmp_path / "columns", columns=["c", "a"])[1]) == ("c", "a")
    columns = {name: report.columns[name] for name in names}
    rows = [{name: data[name][k] for name in sorted(names)} for k in range(3)]
    _, by_row = rewritten(tmp_path / "rows", rows, columns=columns)
    assert by_row.columns == names
    remote = npstream.open(upload(tmp_path / "columns"), cache=tmp_path / "cache")
    assert tuple(remote[0]) == names
    index = json.loads((tmp_path / "columns" / "index.json").read_text())
    assert index["shards"][0]["column_names"] == ["a", "b", "c"]
    assert ("npstream" in index) == (names != ("a", "b", "c"))


def test_a_structured_array_has_that_order(tmp_path):
    _, ds = rewritten(tmp_path, {"b": np.arange(3), "a": np.zeros(3, bool)})
    assert np.asarray(ds).dtype.names == ("b", "a")


# Arrays of other libraries

ARRAYS = {
    "torch": (torch.arange(6, dtype=torch.int16).reshape(3, 2), "ndarray:int16:2"),
    "torch bool": (torch.tensor([True, False]), "bool"),
    "torch bfloat16": (torch.tensor([1.5, 2]).bfloat16(), "bfloat16"),
    "torch complex": (torch.tensor([1j, 2]).conj(), "complex64"),
    "torch float8": (torch.tensor([1.5, 2]).to(torch.float8_e5m2), "float8_e5m2"),
    "torch strided": (torch.arange(8).reshape(2, 4).T, "ndarray:int64:2"),
    "torch with a gradient": (torch.ones(3, requires_grad=True), "float32"),
    "pandas": (pd.Series([1, 2], index=[7, 5], dtype="int16"), "int16"),
    "pandas nullable": (pd.Series([1, 2], dtype="UInt8"), "uint8"),
    "pandas boolean": (pd.Series([True, False], dtype="boolean"), "bool"),
    "pandas times": (pd.Series(pd.to_datetime(["2020", None])).dt.as_unit("ms"), "datetime64[ms]"),
    "pandas durations": (pd.Series(pd.to_timedelta([1, 2], unit="s")), "timedelta64[us]"),
    "pandas float": (pd.Series([1.5, np.nan]), "float64"),
    "pandas sparse": (pd.Series([0, 2]).astype(pd.SparseDtype("int32")), "int32"),
    "pandas text": (pd.Series(["a", "bc"]), "str"),
    "pandas string": (pd.Series(["a", "bc"], dtype="string"), "str"),
    "pandas category": (pd.Series(["a", "bc", "a"], dtype="category"), "str"),
    "pandas numbers in categories": (pd.Series([2, 1], dtype="int8").astype("category"), "int8"),
    "pandas categorical": (pd.Categorical(np.array([1.5], "f4")), "float32"),
    "pandas objects": (pd.Series([{"a": 1}, {"a": 2}]), "json"),
    "pandas of Arrow": (pd.Series([1, 2], dtype="int32[pyarrow]"), "int32"),
    "pandas text of Arrow": (pd.Series(["a", "bc"], dtype=pd.ArrowDtype(pa.string())), "str"),
    "pandas index": (pd.Index([1.5, 2]), "float64"),
    "pandas array": (pd.array([1, 2]), "int64"),
    "arrow": (pa.array([1, 2], pa.int8()), "int8"),
    "arrow bool": (pa.array([True, False, True])[1:], "bool"),
    "arrow half": (pa.array([1.5], pa.float16()), "float16"),
    "arrow date": (pa.array([18000, 1], pa.date32()), "datetime64[D]"),
    "arrow time": (pa.array([18000, 1], pa.timestamp("us")), "datetime64[us]"),
    "arrow duration": (pa.array([5, 1], pa.duration("ms")), "timedelta64[ms]"),
    "arrow text": (pa.array(["a", "é", "", "bc"])[1:], "str"),
    "arrow views": (pa.array(["a", "é" * 20, ""], pa.string_view())[1:], "str"),
    "arrow bytes": (pa.array([b"a", b"", b"bc"], pa.large_binary())[:2], "bytes"),
    "arrow fixed bytes": (pa.array([b"ab", b"cd"], pa.binary(2))[1:], "bytes"),
    "arrow lists": (pa.array([[1], [2, 3], [4]], pa.list_(pa.int16()))[1:], "ndarray:int16"),
    "arrow views of lists": (
        pa.ListViewArray.from_arrays(pa.array([2, 0]), pa.array([1, 2]), pa.array([4, 5, 6])),
        "ndarray:int64",
    ),
    "arrow chunks of views": (
        pa.chunked_array([pa.array([[k], [k, 1]], pa.large_list_view(pa.int8())) for k in (2, 3)]),
        "ndarray:int8",
    ),
    "arrow runs": (pa.RunEndEncodedArray.from_arrays([2, 3], pa.array([7, 8], "int8")), "int8"),
    "arrow bool lists": (pa.array([[True], [False, True]]), "ndarray:bool"),
    "arrow rows": (pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2))[1:], "ndarray:int16:2"),
    "arrow matrices": (
        pa.array([[[1, 2]] * 3] * 2, pa.list_(pa.list_(pa.int16(), 2), 3)),
        "ndarray:int16:3,2",
    ),
    "arrow categories": (pa.array(["a", "b", "a"]).dictionary_encode(), "str"),
    "arrow structs": (pa.array([{"a": 1}, {"a": 2}]), "json"),
    "arrow nested lists": (pa.array([[[1], [2, 3]], []]), "json"),
    "arrow chunks": (pa.chunked_array([[1, 2], [], [3]]), "int64"),
    "arrow text chunks": (pa.chunked_array([["a", "bc"], ["d"]])[1:], "str"),
    "arrow category chunks": (
        pa.chunked_array([pa.array(part).dictionary_encode() for part in (["a", "b"], ["c"])]),
        "str",
    ),
    "xarray": (xarray.DataArray(np.zeros((3, 2), "f4"), dims=("row", "x")), "ndarray:float32:2"),
    "xarray times": (xarray.DataArray(np.array(["2020", "NaT"], "M8[ns]")), "datetime64[ns]"),
    "zarr": (zarr.array(np.ones((10, 3), "i2"), chunks=(4, 3)), "ndarray:int16:3"),
    "zarr bool": (zarr.array(np.array([True, False])), "bool"),
    "dask": (dask.array.arange(10, chunks=3), "int64"),
    "awkward": (awkward.Array(np.array([[1, 2]], "i2")), "ndarray:int16:2"),
    "ml_dtypes": (np.array([1.5, 2], ml_dtypes.bfloat16), "bfloat16"),
    "object": (np.array(["a", "bc"], object), "str"),
    "StringDType": (np.array(["a", "bc"], np.dtypes.StringDType()), "str"),
    "unicode": (np.array(["a", "bc"]), "str"),
    "strings of bytes": (np.array([b"a", b"bc"]), "bytes"),
    "masked, hiding nothing": (np.ma.array([1, 2]), "int64"),
    "big-endian": (np.array([1, 2], ">i4"), "int32"),
    "big-endian times": (np.array([1, 2], ">M8[s]"), "datetime64[s]"),
    "big-endian complex": (np.array([[1j, 2]], ">c8"), "ndarray:complex64:2"),
}  # fmt: skip


class Lent:
    """An array that some library lends by one protocol only."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)


class Capsule(Lent):
    def __arrow_c_array__(self, requested_schema=None):
        return self.array.__arrow_c_array__(requested_schema)


class Stream(Lent):
    def __arrow_c_stream__(self, requested_schema=None):
        return self.array.__arrow_c_stream__(requested_schema)


class Tensor(Lent):
    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Array(Lent):
    def __array__(self, dtype=None, copy=None):
        return self.array


ARRAYS["an Arrow capsule"] = Capsule(pa.array([1, 2], pa.int8())), "int8"
ARRAYS["an Arrow stream"] = Stream(pa.chunked_array([["a"], ["b"]])), "str"
ARRAYS["a DLPack tensor"] = Tensor(np.arange(3.0)), "float64"


class Objects(Stream, Array):
    """Objects as polars lends them: as an array, and their addresses as Arrow's bytes."""

    dtype = "Object"


ARRAYS["an __array__"] = Array(np.array([1, 2], "M8[D]")), "datetime64[D]"


def values_of(given):
    """Return an array's rows as NumPy's or Python's values, by its library's own means."""
    given = given.array if isinstance(given, Lent) else given
    if isinstance(given, torch.Tensor):
        given = given.detach().resolve_conj()
        if str(given.dtype).removeprefix("torch.") in ("bfloat16", "float8_e5m2"):
            return list(given.float().numpy())
        return list(given.numpy())
    if isinstance(given, pa.Array | pa.ChunkedArray):
        return given.to_pylist()
    if isinstance(given, dask.array.Array):
        given = given.compute()
    if type(given).__module__.startswith("pandas"):
        return given.tolist()
    return list(np.asarray(given))


def is_same(got, wanted):
    """Return True if two values are equal, or neither is one."""
    if isinstance(wanted, list | dict):
        return got.tolist() == wanted if isinstance(got, np.ndarray) else got == wanted
    return np.array_equal(got, wanted) or bool(
        np.ndim(got) == 0 and got != got and wanted != wanted
    )


@pytest.mark.parametrize("block", [writer.BLOCK_BYTES, 1], ids=["at once", "row by row"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_other_libraries(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK_BYTES", block)
    given, encoding = ARRAYS[name]
    report, ds = rewritten(tmp_path / "a", {"x": given})
    assert report.columns == {"x": encoding}
    wanted = values_of(given)
    assert len(ds) == len(wanted)
    for got, value in zip(ds["x"], wanted, strict=True):
        assert is_same(got, value.to_numpy() if hasattr(value, "to_numpy") else value)
    more = [str(k) for k in range(len(ds))]
    report, ds = rewritten(tmp_path / "b", {"text": more, "x": given})
    assert report.columns == {"text": "str", "x": encoding}


UNKNOWN_WHEN_EMPTY = {"object"}


@pytest.mark.parametrize("name", ARRAYS)
def test_no_rows_of_other_libraries(name, tmp_path):
    given, encoding = ARRAYS[name]
    if isinstance(given, Lent):
        return
    if encoding == "json" or name in UNKNOWN_WHEN_EMPTY:
        with pytest.raises(ValueError, match="column 'x': it has no values to tell its encoding"):
            npstream.write(tmp_path / "out", {"x": given[:0]})
        return
    report, ds = rewritten(tmp_path, {"x": given[:0]})
    assert report.columns == {"x": encoding}
    assert len(ds) == 0


REFUSED = {
    "pandas NA": (
        pd.Series([1, None], dtype="Int64"),
        "1 of 2 values are missing, the first in row 1",
    ),
    "pandas NA text": (pd.Series(["a", None]), "missing, the first in row 1: fill them in"),
    "pandas NA float": (pd.Series([1.5, None], dtype="Float64"), "missing"),
    "pandas NA category": (pd.Series(["a", None], dtype="category"), "missing"),
    "pandas None": (pd.Series(["a", None], dtype=object), "sample 1: .*fill it in"),
    "pandas zone": (pd.Series(pd.date_range("2020", periods=2, tz="UTC")), "has a time zone"),
    "pandas period": (pd.Series(pd.period_range("2020", periods=2)), "no encoding follows"),
    "arrow null": (pa.array([1, None]), "1 of 2 values are null, the first in row 1: fill them in"),
    "arrow null text": (pa.array(["a", None]), "null, the first in row 1"),
    "arrow null in a list": (pa.array([[1], [None]]), "values are null"),
    "arrow null in a row": (pa.array([[1, None]], pa.list_(pa.int8(), 2)), "values are null"),
    "arrow nulls": (pa.nulls(2), "2 of 2 values are null"),
    "arrow zone": (pa.array([1], pa.timestamp("us", "UTC")), "has a time zone"),
    "arrow empty list": (pa.array([[1], []]), r"row 1: cannot store an array of shape \(0,\)"),
    "arrow time of day": (pa.array([1], pa.time32("s")), "no encoding follows from a time"),
    "torch sparse": (torch.ones(2, 2).to_sparse(), "torch.sparse_coo is no array"),
    "torch scalar": (torch.tensor(1), "it is of type Tensor: a mapping holds columns"),
    "masked": (np.ma.array([1, 2], mask=[0, 1]), "its mask hides 1 of 2 values"),
    "structured": (np.zeros(2, [("a", "i4")]), "cannot store an array of dtype"),
    "text matrix": (np.array([["a", "b"]]), "cannot store an array of dtype <U1"),
    "no unit": (np.zeros(2, "M8"), "no unit"),
    "missing text": (np.array(["a", None], np.dtypes.StringDType(na_object=None)), "fill it in"),
    "DataFrame": (pd.DataFrame({"a": [1]}), "it is a DataFrame, which is several columns"),
    "arrow table": (pa.table({"a": [1]}), "it is a Table, which is several columns"),
    "arrow batch": (pa.record_batch({"a": [1]}), "it is a RecordBatch, which is several columns"),
    "arrow null run": (pa.RunEndEncodedArray.from_arrays([1], pa.nulls(1)), "1 values are null"),
    "arrow null view": (pa.array([[1], None], pa.list_view(pa.int8())), "null, the first in row 1"),
    "objects as bytes": (Objects(np.array([1j, object()])), "expected complex128|cannot take this"),
    "no data": (torch.ones(2, device="meta"), "Cannot copy out of meta tensor"),
    "ragged": (awkward.Array([[1, 2], [3]]), "cannot convert to RegularArray"),
    "a set": ({1, 2}, "'set' object is not subscriptable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_refused(name, tmp_path):
    given, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        npstream.write(tmp_path / "out", {"x": given})
    assert "column 'x'" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_samples_of_other_libraries(tmp_path):
    rows = [
        {
            "vector": torch.full((2,), k, dtype=torch.bfloat16),
            "label": torch.tensor(k),
            "seen": torch.tensor(k > 1),
            "array": xarray.DataArray(np.full(k + 1, k)),
            "list": pa.array([k, k]),
        }
        for k in range(3)
    ]
    report, ds = rewritten(tmp_path, rows)
    assert report.columns == {
        **{"vector": "ndarray:bfloat16", "label": "int64", "seen": "bool"},
        **{"array": "ndarray:int64", "list": "ndarray:int64"},
    }
    same(ds[2]["vector"], np.full(2, 2, ml_dtypes.bfloat16))
    same(ds[2]["array"], np.full(3, 2))
    assert (ds[2]["label"], ds[2]["seen"], ds[2]["list"].tolist()) == (2, True, [2, 2])


def test_a_nested_tensor(tmp_path):
    rows = [torch.ones(2), torch.zeros(3)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    report, ds = rewritten(tmp_path, {"x": nested})
    assert report.columns == {"x": "ndarray:float32"}
    assert [row.tolist() for row in ds["x"]] == [[1, 1], [0, 0, 0]]


def test_blocks_are_whole_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK_BYTES", 1)
    asked = []

    class Chunked:
        shape, dtype, ndim, chunks = (10, 2), np.dtype("f4"), 2, (4, 2)

        def __getitem__(self, rows):
            asked.append((rows.start, rows.stop))
            return np.ones(self.shape, self.dtype)[rows]

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read at once")

    _, ds = rewritten(tmp_path, {"x": Chunked()})
    assert ds["x"].shape == (10, 2)
    assert asked[1:] == [(0, 4), (4, 8), (8, 10)]


def test_a_shape_that_changes_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK_BYTES", 1)

    class Shrinking:
        shape, dtype, ndim = (10,), np.dtype("f4"), 1

        def __getitem__(self, rows):
            return np.ones(8, self.dtype)[rows]

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read at once")

    with pytest.raises(ValueError, match="column 'x': rows 8 to 9 are 0: its length has changed"):
        npstream.write(tmp_path / "out", {"x": Shrinking()})
    assert not (tmp_path / "out").exists()


# What npstream has read


def jpeg(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


ROWS = 20


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source") / "data"
    columns = {
        **{"text": "str", "number": "int", "image": "jpeg", "tokens": "ndarray:uint16:4"},
        **{"array": "ndarray:float32", "any": "ndarray", "meta": "json", "object": "pkl"},
        **{"digits": "str_int", "float": "str_float", "decimal": "str_decimal", "raw": "bytes"},
        **{"images": "list[png]", "files": "jpeg_array", "seen": "bool", "label": "int32"},
    }
    rows = [
        {
            **{"text": "é" * k, "number": k, "image": jpeg(k), "tokens": np.full(4, k, "u2")},
            **{"array": np.full((k + 1, 2), k, "f4"), "any": np.ones((1,) * (k % 2 + 1), "i2")},
            **{"meta": {"k": k}, "object": (k, "o"), "digits": 10**k, "float": k / 3},
            **{"decimal": decimal.Decimal(k), "raw": np.arange(k + 1, dtype="u2").tobytes()},
            "images": [Image.new("L", (2, 2), k)] * (k % 3),
            **{"files": [jpeg(k)] * (k % 2 + 1), "seen": k % 2 == 0, "label": np.int32(k)},
        }
        for k in range(ROWS)
    ]
    npstream.write(root, rows, columns=columns, shard_size="6KiB")
    return root, columns


def bodies(ds):
    """Return the stored bytes of each value."""
    return {
        name: [np.frombuffer(body, np.uint8).tobytes() for body in _bytes(ds, name)]
        for name in ds.columns
    }


def _bytes(ds, name):
    part = ds._source.bodies(ds._source.plan((name,)), ds._selection.ids())[name]
    spans = zip(part.address.tolist(), part.nbytes.tolist(), strict=True)
    return [ctypes.string_at(at, nbytes) for at, nbytes in spans]


VIEWS = {
    "all": lambda ds: ds,
    "step": lambda ds: ds[1::3],
    "backwards": lambda ds: ds[::-1],
    "any": lambda ds: ds[[5, 5, 19, 0]],
    "mask": lambda ds: ds[np.arange(ROWS) % 3 == 1],
    "none": lambda ds: ds[:0],
    "filtered": lambda ds: ds[ds["seen"]],
    "shuffled": lambda ds: ds.shuffle(0),
}


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_copied_as_it_is_stored(view, compression, source, tmp_path, upload):
    root, columns = source
    places = [root, upload(root)]
    for k, place in enumerate(places):
        ds = VIEWS[view](npstream.open(place, cache=tmp_path / "cache", allow_pickle=True))
        report, copy = rewritten(tmp_path / str(k), ds, compression=compression, shard_size="4KiB")
        assert list(report.columns.items()) == list(columns.items())
        assert copy.columns == ds.columns
        assert copy.dtypes == ds.dtypes
        assert [copy[name].shape for name in columns] == [ds[name].shape for name in columns]
        assert bodies(copy) == bodies(ds)


def test_nothing_is_decoded_for_a_copy(source, tmp_path, monkeypatch):
    root, columns = source
    ds = npstream.open(root, allow_pickle=True)
    monkeypatch.setattr("npstream.reading.decode._decoded", None)
    monkeypatch.setattr("npstream.reading.decode.sample_values", None)
    monkeypatch.setattr("npstream.formats.encodings.encodings.Encoding.encode", None)
    assert npstream.write(tmp_path, ds).columns == columns


def test_columns_and_batches_keep_their_encodings(source, tmp_path):
    root, columns = source
    ds = npstream.open(root, allow_pickle=True)
    rows = ds[[3, 1, 4, 1, 5]]
    wanted = bodies(rows)
    for name, data in {
        "columns": {name: rows[name] for name in columns},
        "batch": rows.load(),
        "batches": rows.iter(0, 1, batch_size=2, last="short"),
        "copied batch": rows.load().copy(),
    }.items():
        report, copy = rewritten(tmp_path / name, data)
        assert list(report.columns.items()) == list(columns.items())
        assert bodies(copy) == wanted
    report, copy = rewritten(tmp_path / "top", ds["text"][:3])
    assert report.columns == {"text": "str"}
    loaded = {name: rows[name].load() for name in ("text", "image", "array", "raw", "tokens")}
    report, copy = rewritten(tmp_path / "ragged", loaded)
    assert report.columns == {name: columns[name] for name in loaded}
    assert bodies(copy) == {name: wanted[name] for name in loaded}
    tensors = rows[["tokens", "array", "number", "seen"]].load().to_torch()
    report, copy = rewritten(tmp_path / "tensors", tensors)
    assert report.columns == {name: columns[name] for name in tensors}
    assert bodies(copy) == {name: wanted[name] for name in tensors}


def test_a_batch_that_was_edited(source, tmp_path):
    batch = npstream.open(source[0], allow_pickle=True)[:3].load()
    del batch["object"], batch["images"], batch["files"]
    batch["number"] = np.array(["a", "b", "c"])
    batch["label"] = batch["label"] * 0.5
    batch["new"] = np.arange(3) * 1j
    batch["tokens"] = batch["tokens"][:, :2]
    report, ds = rewritten(tmp_path, batch)
    changed = {name: report.columns[name] for name in ("number", "label", "new", "tokens")}
    assert changed == {
        **{"number": "str", "label": "float64", "new": "complex128"},
        "tokens": "ndarray:uint16:2",
    }
    assert report.columns["image"] == "jpeg"
    assert ds[2]["new"] == 2j


def test_rows_that_only_fill_a_batch_up_are_not_written(source, tmp_path):
    ds = npstream.open(source[0], columns=["number"])[:5]
    with pytest.raises(ValueError, match=r"1 rows of this batch only fill it up.*last='short'"):
        npstream.write(tmp_path / "out", ds.iter(0, 1, batch_size=2))
    _, copy = rewritten(tmp_path / "short", ds.iter(0, 1, batch_size=2, last="short"))
    assert list(copy["number"]) == list(range(5))


def test_parts_of_columns(source, tmp_path):
    ds = npstream.open(source[0], allow_pickle=True)
    tokens = ds["tokens"].load()
    report, copy = rewritten(
        tmp_path / "a",
        {
            "cut": ds["tokens"][::2, 1:3],
            "one": ds["tokens"][::2, 0],
            "picked": ds["tokens"][::2, [0, 3]],
            "matrix": ds["label"][np.arange(20).reshape(10, 2)],
        },
    )
    assert report.columns == {
        **{"cut": "ndarray:uint16:2", "one": "uint16", "picked": "ndarray:uint16:2"},
        "matrix": "ndarray:int32:2",
    }
    same(copy["cut"].load(), tokens[::2, 1:3])
    same(copy["picked"].load(), tokens[::2, [0, 3]])
    with pytest.raises(ValueError, match="column 'x': column 'text' has 2 axes"):
        npstream.write(tmp_path / "b", {"x": ds["text"][np.arange(20).reshape(10, 2)]})
    with pytest.raises(ValueError, match=r"shape \(10, 2\) is no sequence of samples.*ravel"):
        npstream.write(tmp_path / "b", ds[np.arange(20).reshape(10, 2)])
    with pytest.raises(TypeError, match="a Ragged is a column without a name"):
        npstream.write(tmp_path / "b", ds["text"].load())
    assert not (tmp_path / "b").exists()


def test_other_encodings_for_a_copy(source, tmp_path):
    ds = npstream.open(source[0], allow_pickle=True)
    chosen = {"number": "float32", "label": "int64", "image": "png", "digits": "json"}
    report, copy = rewritten(tmp_path / "a", ds[:5], columns=chosen)
    assert report.columns == chosen
    same(copy["number"].load(), np.arange(5, dtype="f4"))
    assert copy["digits"][4] == 10**4
    assert copy["image"][3].tobytes() == ds["image"][3].tobytes()
    with pytest.raises(ValueError, match=r"sample 2: column 'number' is 'bool'.*cannot hold 2"):
        npstream.write(tmp_path / "b", ds, columns={"number": "bool"})
    with pytest.raises(ColumnError, match="no column 'nunber'; did you mean 'number'"):
        npstream.write(tmp_path / "b", ds, columns={"nunber": "bool"})


def test_columns_that_were_declared_anew(source, tmp_path):
    declared = {"raw": "uint16", "tokens": "ndarray:int64:1", "label": ">i4", "number": "M8[D]"}
    ds = npstream.open(source[0], columns=declared, allow_pickle=True)[list(declared)]
    for name, data in {
        "dataset": ds,
        "columns": {column: ds[column] for column in declared},
        "batch": ds.load(),
    }.items():
        report, copy = rewritten(tmp_path / name, data)
        assert report.columns == {
            **{"raw": "ndarray:uint16", "tokens": "ndarray:int64:1", "label": "int32"},
            "number": "datetime64[D]",
        }
        for got, wanted in zip(copy, ds, strict=True):
            assert all(np.array_equal(got[column], wanted[column]) for column in declared)
    odd = npstream.open(source[0], columns={"number": "S8"}, allow_pickle=True)[["number"]]
    with pytest.raises(ValueError, match=r"column 'number': cannot store an array of dtype \|S8"):
        npstream.write(tmp_path / "odd", odd)


def test_bytes_that_hold_no_elements(tmp_path):
    npstream.write(tmp_path / "a", {"x": [b"\1\2", b""]})
    ds = npstream.open(tmp_path / "a", columns={"x": "uint16"})
    with pytest.raises(
        ValueError, match=r"row 1: .*shape \(0,\).*open the dataset without columns="
    ):
        npstream.write(tmp_path / "b", ds)


def test_transformed_samples_are_written_one_by_one(source, tmp_path):
    ds = npstream.open(source[0], columns=["number"])
    view = ds[:3].with_transform(lambda sample: {"half": sample["number"] / 2})
    report, copy = rewritten(tmp_path / "a", view)
    assert report.columns == {"half": "float64"}
    assert list(copy["half"]) == [0, 0.5, 1]
    _, copy = rewritten(tmp_path / "b", npstream.mix({"a": view})[:])
    assert list(copy["half"]) == [0, 0.5, 1]


@pytest.mark.parametrize("name", ["jsonl_basic", "csv_basic", "tsv_basic"])
def test_shards_of_text_become_mds(name, tmp_path):
    ds = npstream.open(FORMATS / name)
    chosen = {"n": "str_int"}
    with pytest.raises(OverflowError, match="'str_int' holds any"):
        npstream.write(tmp_path / "a", ds)
    report, copy = rewritten(tmp_path / "b", ds[["n"]], columns=chosen)
    assert list(copy["n"]) == list(ds["n"])
    others = [column for column in ds.columns if column != "n"]
    report, copy = rewritten(tmp_path / "c", ds[others])
    assert set(report.columns.values()) <= {"str", "int", "float64"}
    for column in others:
        assert np.array_equal(copy[column], ds[column], equal_nan=report.columns[column] != "str")


def test_merged_shards_that_differ(tmp_path):
    """Columns are copied by name from wherever they lie in a sample."""
    npstream.write(tmp_path / "a", {"x": np.arange(5), "t": list("abcde")})
    npstream.write(tmp_path / "b", [{"x": k, "t": "z", "more": 1} for k in range(3)])
    index = {"shards": [], "version": 2}
    for name in "ab":
        part = json.loads((tmp_path / name / "index.json").read_text())
        for entry in part["shards"]:
            entry["raw_data"]["basename"] = f"{name}/{entry['raw_data']['basename']}"
            index["shards"].append(entry)
    (tmp_path / "index.json").write_text(json.dumps(index))
    ds = npstream.open(tmp_path)
    _, copy = rewritten(tmp_path / "copy", ds[[7, 0, 6, 1]])
    assert list(copy) == [{"t": t, "x": x} for t, x in zip("zazb", (2, 0, 1, 1), strict=True)]


def test_damage_does_not_spread(source, tmp_path):
    npstream.write(tmp_path / "a", {"text": ["a", "bb", "ccc"], "n": [1, 2, 3]})
    (shard,) = (tmp_path / "a").glob("*.mds")
    data = bytearray(shard.read_bytes())
    at = data.rindex(b"bb") - 12
    assert data[at] == 2
    data[at] = 9
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=r"sample 1 .*do not add up"):
        npstream.write(tmp_path / "b", npstream.open(tmp_path / "a"))
    assert not (tmp_path / "b").exists()


# Images


def test_images_of_jpeg_files_are_stored_as_these(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.jpg").write_bytes(jpeg(k))
    files = [jpeg(k) for k in range(3)]

    def opened(k):
        return stack.enter_context(Image.open(tmp_path / f"{k}.jpg"))

    def read(k):
        image = opened(k)
        image.load()
        return image

    def of_bytes(k):
        return Image.open(io.BytesIO(files[k]))

    with contextlib.ExitStack() as stack:
        for number, how in enumerate((opened, read, of_bytes)):
            report, ds = rewritten(tmp_path / str(number), ({"image": how(k)} for k in range(3)))
            assert report.columns == {"image": "jpeg"}
            assert list(map(bytes, ds["image"].load())) == files
            report, ds = rewritten(tmp_path / f"{number}c", {"image": [how(k) for k in range(3)]})
            assert list(map(bytes, ds["image"].load())) == files


def test_other_images_do_not_lose_their_pixels_to_jpeg(tmp_path):
    painted = Image.open(io.BytesIO(jpeg(1)))
    painted.paste((255, 0, 0), (0, 0, 4, 4))
    for other in (Image.new("RGB", (2, 2)), painted):
        first = {"image": Image.open(io.BytesIO(jpeg(0)))}
        with pytest.raises(ValueError, match=r"sample 1: .*JPEG would change its pixels.*'png'"):
            npstream.write(tmp_path / "out", [first, {"image": other}])
        report, ds = rewritten(tmp_path / str(other.size), [{"image": other}, first])
        assert report.columns == {"image": "png"}
        assert ds[0]["image"].tobytes() == other.tobytes()
    images = [first, {"image": painted}]
    assert rewritten(tmp_path / "named", images, columns={"image": "jpeg"})[0].samples == 2


def test_a_file_that_was_replaced_is_not_the_image(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(0))
    with Image.open(path) as image:
        (tmp_path / "b").write_bytes(jpeg(1))
        os.replace(tmp_path / "b", path)
        _, ds = rewritten(tmp_path / "out", [{"image": image}])
    assert bytes(ds["image"].load()[0]) == jpeg(0)


def test_a_later_image_of_a_file_is_not_the_file(tmp_path):
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    images[0].save(tmp_path / "a.mpo", save_all=True, append_images=images[1:])
    with Image.open(tmp_path / "a.mpo") as file:
        assert npstream.write(tmp_path / "first", [{"x": file}]).columns == {"x": "jpeg"}
        file.seek(1)
        report, ds = rewritten(tmp_path / "second", [{"x": file}])
        assert report.columns == {"x": "png"}
        assert ds[0]["x"].tobytes() == file.tobytes()


def test_images_of_which_nothing_tells_the_encoding(tmp_path):
    files = npstream.Ragged.from_list([jpeg(0), jpeg(1)], "image")
    assert npstream.write(tmp_path / "a", {"x": files}).columns == {"x": "jpeg"}
    raw = npstream.Ragged.from_list([b"abc"], "image")
    with pytest.raises(TypeError, match="column 'x': nothing tells what its images are"):
        npstream.write(tmp_path / "b", {"x": raw})
    _, ds = rewritten(tmp_path / "c", {"x": files}, columns={"x": "bytes"})
    assert list(ds["x"]) == [jpeg(0), jpeg(1)]


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda file: Image.open(io.BytesIO(file))]
)
@pytest.mark.parametrize("outer", [list, tuple])
def test_a_jpeg_array_takes_any_bytes(kind, outer, tmp_path):
    files = [jpeg(0), jpeg(1)]
    npstream.write(tmp_path / "a", [{"x": files}], columns={"x": "jpeg_array"})
    npstream.write(tmp_path / "b", [{"x": outer(map(kind, files))}], columns={"x": "jpeg_array"})
    a, b = ((tmp_path / name / "shard.00000.mds").read_bytes() for name in "ab")
    assert a == b


# Ragged


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "compiled"])
def test_ragged_rows(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(Kernel, "is_loaded", property(lambda self: compiled))
    rng = np.random.default_rng(0)
    for number, (rows, encoding) in enumerate([
        ([rng.random((k % 3 + 1, 2, 3)) for k in range(9)], "ndarray:float64"),
        ([np.zeros((1, side), np.uint8) for side in (1, 255, 256, 65535, 65536)], "ndarray:uint8"),
        ([rng.random(k + 1).astype("c8") for k in range(9)], "ndarray:complex64"),
        ([rng.random((k + 1, 2)) > 0.5 for k in range(9)], "ndarray:bool"),
        (["", "é", "abc"], "str"),
        ([b"", b"\0", b"abc"], "bytes"),
    ]):  # fmt: skip
        ragged = npstream.Ragged.from_list(rows)
        report, ds = rewritten(tmp_path / str(number), {"x": ragged[1:]})
        assert report.columns == {"x": encoding}
        one_by_one = npstream.write(tmp_path / f"{number}r", {"x": rows[1:]})
        assert one_by_one.columns == report.columns
        a, b = (
            (tmp_path / name / "shard.00000.mds").read_bytes()
            for name in (str(number), f"{number}r")
        )
        assert a == b
        assert all(np.array_equal(got, row) for got, row in zip(ds["x"], rows[1:], strict=True))


def test_ragged_rows_that_are_refused(tmp_path):
    for ragged, words in [
        (npstream.Ragged(np.zeros(3), [0, 0, 3]), r"row 0: cannot store an array of shape \(0,\)"),
        (npstream.Ragged(np.array([255], np.uint8), [0, 1], "str"), "row 0 is not UTF-8"),
        (npstream.Ragged(np.zeros(3, "V3"), [0, 3]), "cannot store an array of dtype"),
    ]:
        with pytest.raises(ValueError, match=words):
            npstream.write(tmp_path / "out", {"x": ragged})
    with pytest.raises(ValueError, match="expected arrays of dtype float32, got float64"):
        npstream.write(
            tmp_path / "out",
            {"x": npstream.Ragged(np.zeros(3), [0, 3])},
            columns={"x": "ndarray:float32"},
        )


# Shards of blocks are those of samples


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "compiled"])
@pytest.mark.parametrize("block", [1, 100, 1 << 23])
@pytest.mark.parametrize("shard_size", [None, 1, 700, 1500])
def test_shards_of_blocks_are_those_of_samples(shard_size, block, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "BLOCK_BYTES", block)
    monkeypatch.setattr(Kernel, "is_loaded", property(lambda self: compiled))
    texts = ["x" * (k * 37 % 200) for k in range(40)]
    table = {"text": texts, "k": np.arange(40), "row": np.ones((40, 3), bool)}
    npstream.write(tmp_path / "a", table, shard_size=shard_size, hashes=["xxh64"])
    columns = {"text": "str", "k": "int64", "row": "ndarray:bool:3"}
    rows = [{name: column[k] for name, column in table.items()} for k in range(40)]
    npstream.write(tmp_path / "b", rows, columns=columns, shard_size=shard_size, hashes=["xxh64"])
    npstream.write(
        tmp_path / "c", npstream.open(tmp_path / "a"), shard_size=shard_size, hashes=["xxh64"]
    )
    assert (tmp_path / "a" / "index.json").read_bytes() == (
        tmp_path / "b" / "index.json"
    ).read_bytes()
    assert (tmp_path / "a" / "index.json").read_bytes() == (
        tmp_path / "c" / "index.json"
    ).read_bytes()


def test_numba_is_imported_once_it_pays(tmp_path):
    """Tables of lists and arrays never need it; spans only where there are very many."""
    script = """
import sys
import numpy as np
import npstream
from npstream.writing import shard
root = sys.argv[1]
rows = 20_000
table = {"text": ["a"] * rows, "x": np.arange(rows), "y": np.zeros((rows, 3), bool)}
npstream.write(root + "/a", table)
assert "numba" not in sys.modules
ragged = npstream.Ragged(np.zeros(100), np.arange(101))
npstream.write(root + "/b", {"x": ragged, "y": np.arange(100)})
assert "numba" not in sys.modules
shard._PATIENCE = 0
npstream.write(root + "/c", {"x": ragged, "y": np.arange(100)})
assert "numba" in sys.modules
for name in "bc":
    assert npstream.open(root + "/" + name)["x"][99].tolist() == [0]
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
