"""Arrays of other libraries are written with the values that their library returns."""

from __future__ import annotations

import awkward
import dask.array
import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray
import zarr
from rewriting import write_and_open

import npstream
import torch
from npstream.formats import chunks
from npstream.writing import destination, engine, pipeline
from tests._core.test_dtypes import assert_same

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


class Exported:
    """An array of an unknown library, which has only one protocol."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)


class Capsule(Exported):
    def __arrow_c_array__(self, requested_schema=None):
        return self.array.__arrow_c_array__(requested_schema)


class Stream(Exported):
    def __arrow_c_stream__(self, requested_schema=None):
        return self.array.__arrow_c_stream__(requested_schema)


class Tensor(Exported):
    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Array(Exported):
    def __array__(self, dtype=None, copy=None):
        return self.array


ARRAYS["an Arrow capsule"] = Capsule(pa.array([1, 2], pa.int8())), "int8"

ARRAYS["an Arrow stream"] = Stream(pa.chunked_array([["a"], ["b"]])), "str"

ARRAYS["a DLPack tensor"] = Tensor(np.arange(3.0)), "float64"


class Objects(Stream, Array):
    """Objects as polars exports them: as an array, and their addresses as Arrow's bytes."""

    dtype = "Object"


ARRAYS["an __array__"] = Array(np.array([1, 2], "M8[D]")), "datetime64[D]"


def values_of(array):
    """Return an array's rows as values of NumPy or Python, converted by the array's library."""
    array = array.array if isinstance(array, Exported) else array
    if isinstance(array, torch.Tensor):
        array = array.detach().resolve_conj()
        if str(array.dtype).removeprefix("torch.") in ("bfloat16", "float8_e5m2"):
            return list(array.float().numpy())
        return list(array.numpy())
    if isinstance(array, pa.Array | pa.ChunkedArray):
        return array.to_pylist()
    if isinstance(array, dask.array.Array):
        array = array.compute()
    if type(array).__module__.startswith("pandas"):
        return array.tolist()
    return list(np.asarray(array))


def is_same(actual, expected):
    """Return True if two values are equal, or both are NaN or NaT."""
    if isinstance(expected, list | dict):
        return (actual.tolist() if isinstance(actual, np.ndarray) else actual) == expected
    return np.array_equal(actual, expected) or bool(
        np.ndim(actual) == 0 and actual != actual and expected != expected
    )


@pytest.mark.parametrize("block", [engine.BLOCK_BYTES, 1], ids=["at once", "row by row"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_other_libraries(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_BYTES", block)
    array, encoding = ARRAYS[name]
    report, ds = write_and_open(tmp_path / "a", {"x": array})
    assert report.columns == {"x": encoding}
    expected = values_of(array)
    assert len(ds) == len(expected)
    for actual, value in zip(ds["x"], expected, strict=True):
        assert is_same(actual, value.to_numpy() if hasattr(value, "to_numpy") else value)
    texts = [str(k) for k in range(len(ds))]
    report, ds = write_and_open(tmp_path / "b", {"text": texts, "x": array})
    assert report.columns == {"text": "str", "x": encoding}


UNKNOWN_WHEN_EMPTY = {"object", "pandas objects"}


@pytest.mark.parametrize(
    "name", [name for name, (array, _) in ARRAYS.items() if not isinstance(array, Exported)]
)
def test_no_rows_of_other_libraries(name, tmp_path):
    array, encoding = ARRAYS[name]
    if name in UNKNOWN_WHEN_EMPTY:
        with pytest.raises(
            ValueError, match="column 'x': it has no values to infer an encoding from"
        ):
            npstream.write(tmp_path / "out", {"x": array[:0]})
        return
    report, ds = write_and_open(tmp_path, {"x": array[:0]})
    assert report.columns == {"x": encoding}
    assert len(ds) == 0


REFUSED = {
    "pandas NA": (
        pd.Series([1, None], dtype="Int64"),
        "sample 1: column 'x': 1 missing value of 2",
    ),
    "pandas NA text": (
        pd.Series(["a", None]),
        "sample 1: column 'x': 1 null in 2 values; this is the first: give fill=",
    ),
    "pandas NA float": (pd.Series([1.5, None], dtype="Float64"), "missing"),
    "pandas NA category": (pd.Series(["a", None], dtype="category"), "missing"),
    "pandas None": (pd.Series(["a", None], dtype=object), "sample 1: .*fill it in"),
    "pandas zone": (pd.Series(pd.date_range("2020", periods=2, tz="UTC")), "has a time zone"),
    "pandas period": (
        pd.Series(pd.period_range("2020", periods=2)),
        r"pandas's period\[D\] has no encoding: convert the column",
    ),
    "arrow null": (pa.array([1, None]), "sample 1: column 'x': 1 null in 2 values; .* give fill="),
    "arrow null text": (pa.array(["a", None]), "sample 1: column 'x': 1 null in 2 values"),
    "arrow null in a list": (pa.array([[1], [None]]), "sample 1: .* its list has a null"),
    "arrow null in a row": (
        pa.array([[1, 2], [1, None]], pa.list_(pa.int8(), 2)),
        "sample 1: column 'x': its list has a null",
    ),
    "arrow nulls": (pa.nulls(2), "2 nulls in 2 values"),
    "arrow zone": (pa.array([1], pa.timestamp("us", "UTC")), "has a time zone"),
    "arrow empty list": (
        pa.array([[1], []]),
        r"sample 1: column 'x': cannot store an array of shape \(0,\)",
    ),
    "arrow time of day": (
        pa.array([1], pa.time32("s")),
        r"no encoding follows from Arrow's time32\[s\]: cast",
    ),
    "torch sparse": (torch.ones(2, 2).to_sparse(), "cannot convert a torch.sparse_coo"),
    "torch scalar": (torch.tensor(1), "it is of type Tensor: a mapping holds columns"),
    "masked": (np.ma.array([1, 2], mask=[0, 1]), "its mask hides 1 of 2 values"),
    "structured": (np.zeros(2, [("a", "i4")]), "cannot store an array of dtype"),
    "text matrix": (np.array([["a", "b"]]), "cannot store an array of dtype <U1"),
    "no unit": (np.zeros(2, "M8"), "no unit"),
    "missing text": (np.array(["a", None], np.dtypes.StringDType(na_object=None)), "fill it in"),
    "DataFrame": (pd.DataFrame({"a": [1]}), "it is a DataFrame, which is several columns"),
    "arrow table": (pa.table({"a": [1]}), "it is a Table, which is several columns"),
    "arrow batch": (pa.record_batch({"a": [1]}), "it is a RecordBatch, which is several columns"),
    "arrow null run": (
        pa.RunEndEncodedArray.from_arrays([1], pa.nulls(1, pa.int8())),
        "sample 0: column 'x': 1 null in 1 value",
    ),
    "arrow null view": (
        pa.array([[1], None], pa.list_view(pa.int8())),
        "sample 1: column 'x': 1 null in 2 values",
    ),
    "objects as bytes": (Objects(np.array([1j, object()])), "expected complex128|cannot take this"),
    "no data": (torch.ones(2, device="meta"), "Cannot copy out of meta tensor"),
    "ragged": (awkward.Array([[1, 2], [3]]), "cannot convert to RegularArray"),
    "a set": ({1, 2}, "'set' object is not subscriptable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_refused(name, tmp_path):
    array, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        npstream.write(tmp_path / "out", {"x": array})
    assert "column 'x'" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_the_message_about_a_quantized_tensor_names_the_method_that_converts_it(tmp_path):
    tensor = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)
    with pytest.raises(TypeError, match=r"a quantized tensor .* call \.dequantize\(\) first"):
        npstream.write(tmp_path / "out", {"x": tensor})
    npstream.write(tmp_path / "out", {"x": tensor.dequantize()})
    assert npstream.open(tmp_path / "out")["x"].tolist() == [1, 1]


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
    report, ds = write_and_open(tmp_path, rows)
    assert report.columns == {
        **{"vector": "ndarray:bfloat16", "label": "int64", "seen": "bool"},
        **{"array": "ndarray:int64", "list": "ndarray:int64"},
    }
    assert_same(ds[2]["vector"], np.full(2, 2, ml_dtypes.bfloat16))
    assert_same(ds[2]["array"], np.full(3, 2))
    assert (ds[2]["label"], ds[2]["seen"], ds[2]["list"].tolist()) == (2, True, [2, 2])


def test_a_nested_tensor(tmp_path):
    rows = [torch.ones(2), torch.zeros(3)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    report, ds = write_and_open(tmp_path, {"x": nested})
    assert report.columns == {"x": "ndarray:float32"}
    assert [row.tolist() for row in ds["x"]] == [[1, 1], [0, 0, 0]]


def test_blocks_are_whole_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_BYTES", 1)
    ranges = []

    class Chunked:
        shape, dtype, ndim, chunks = (10, 2), np.dtype("f4"), 2, (4, 2)

        def __getitem__(self, rows):
            ranges.append((rows.start, rows.stop))
            return np.ones(self.shape, self.dtype)[rows]

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read at once")

    _, ds = write_and_open(tmp_path, {"x": Chunked()})
    assert ds["x"].shape == (10, 2)
    # The first read infers the encoding.
    assert ranges[1:] == [(0, 4), (4, 8), (8, 10)]


def test_an_array_may_return_the_same_memory_again(tmp_path, monkeypatch):
    """A thread may scan a chunk after the next chunk was read into the same memory."""
    monkeypatch.setattr(pipeline, "CHUNK_BYTES", 400)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 400)
    numbers = np.arange(2000, dtype="f4")

    class LateJob:
        def __init__(self, job, arguments):
            self.job, self.arguments = job, arguments

        def result(self):
            return self.job(*self.arguments)

    def submit(self, job, *arguments):
        return LateJob(job, arguments)

    class Reusing:
        shape, dtype, ndim = numbers.shape, numbers.dtype, 1
        memory = np.empty_like(numbers)

        def __getitem__(self, rows):
            block = self.memory[: len(numbers[rows])]
            block[:] = numbers[rows]
            return block

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read at once")

    monkeypatch.setattr(destination.Destination, "submit_scan", submit)
    _, ds = write_and_open(tmp_path / "out", {"x": Reusing()}, shard_size="2KiB")
    assert np.array_equal(ds["x"], numbers)


def test_a_length_that_changes_during_a_write(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_BYTES", 1)

    class Shrinking:
        shape, dtype, ndim = (10,), np.dtype("f4"), 1

        def __getitem__(self, rows):
            return np.ones(8, self.dtype)[rows]

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read at once")

    with pytest.raises(
        ValueError, match="column 'x': rows 8 to 9: 0 rows came, so the length has changed"
    ):
        npstream.write(tmp_path / "out", {"x": Shrinking()})
    assert not (tmp_path / "out").exists()
