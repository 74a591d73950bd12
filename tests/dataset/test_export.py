"""Views as tables of pyarrow, pandas, polars and Hugging Face's datasets."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from dataset_files import objects
from mixed_columns import VALUES, N

import npstream
from npstream import errors
from npstream._core import memory
from npstream.reading import arrow_stream

pa = pytest.importorskip("pyarrow")
pandas = pytest.importorskip("pandas")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Let a table consist of several record batches."""
    monkeypatch.setattr(arrow_stream, "BATCH_BYTES", 300)


def test_a_table_of_arrow_is_that_of_the_stream(ds):
    table = ds.to_arrow()
    assert table.column("label").num_chunks > 1
    assert table.equals(pa.table(ds))
    assert table.column_names == list(ds.columns)
    assert table["tokens"].to_pylist() == VALUES["tokens"].tolist()
    assert table["ragged"].to_pylist() == [row.tolist() for row in VALUES["ragged"]]
    assert table["data"].to_pylist() == VALUES["data"]
    assert list(map(json.loads, table["meta"].to_pylist())) == VALUES["meta"]
    rows = [7, 0, 0, 3]
    assert ds[rows].to_arrow().equals(pa.table(ds[rows]))
    assert ds[:0].to_arrow().schema == table.schema
    renamed = ds.rename(label="text", text="label")[["label", "text"]].to_arrow()
    assert renamed["label"].to_pylist() == VALUES["text"]


def test_a_data_frame_has_the_values_of_the_view(ds):
    names = ["label", "number", "text", "data"]
    frame = ds[::-1][names].to_pandas()
    expected = pandas.DataFrame({name: list(VALUES[name])[::-1] for name in names})
    pandas.testing.assert_frame_equal(frame, expected, check_dtype=False)
    assert frame["label"].dtype == np.int64
    assert frame["text"].dtype == "str"
    whole = ds.to_pandas()
    # Every third value has the same length.
    assert np.array_equal(np.stack(whole["ragged"][2::3]), np.stack(VALUES["ragged"][2::3]))
    assert whole["tokens"][3].tolist()[1].tolist() == VALUES["tokens"][3][1].tolist()
    sums = ds.to_pandas().groupby("label")["number"].sum()
    assert sums.tolist() == [int(VALUES["number"][k::4].sum()) for k in range(4)]


def test_types_of_numbers_and_times_survive_and_decimals_become_text(tmp_path):
    values = {
        "day": np.array(["2026-02-01", "1969-01-01"], "M8[D]"),
        "moment": np.array([1, 2], "M8[us]"),
        "flag": np.array([True, False]),
        "half": np.array([1.5, 2.5], np.float16),
        "large": np.array([2**64 - 1, 0], np.uint64),
        "price": objects([Decimal("2.50"), Decimal("1")]),
    }
    columns = {name: array.dtype.name for name, array in values.items() if name != "price"}
    npstream.write(tmp_path / "d", values, columns={**columns, "price": "str_decimal"})
    ds = npstream.open(tmp_path / "d")
    frame = ds.to_pandas()
    assert frame["day"].tolist() == [pandas.Timestamp(2026, 2, 1), pandas.Timestamp(1969, 1, 1)]
    for name in ("flag", "half", "large", "moment"):
        assert frame[name].dtype == values[name].dtype
        assert frame[name].tolist() == pandas.Series(values[name]).tolist()
    assert frame["price"].tolist() == ["2.50", "1"]


def test_a_frame_of_polars_has_the_values_of_the_view(ds):
    polars = pytest.importorskip("polars")
    frame = ds[2:].to_polars()
    assert frame.equals(polars.DataFrame(ds[2:]))
    assert frame["text"].to_list() == VALUES["text"][2:]
    assert frame.filter(polars.col("label") == 3)["number"].to_list() == [3 * 10**12, 7 * 10**12]


def test_added_columns_of_bytes_and_json_are_exported(tmp_path):
    npstream.write(tmp_path / "d", {"a": np.arange(3)})
    added = {"b": [b"x", b"", b"yz"], "j": [{"k": 1}, {}, {"k": 2}]}
    npstream.add_columns(tmp_path / "d", added, columns={"b": "bytes", "j": "json"})
    table = npstream.open(tmp_path / "d").to_arrow()
    assert table["b"].to_pylist() == added["b"]
    assert list(map(json.loads, table["j"].to_pylist())) == added["j"]


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def test_a_dataset_of_hugging_face_has_the_values_of_the_view(ds, datasets):
    loaded = ds[1:].to_hf()
    assert isinstance(loaded, datasets.Dataset)
    assert loaded.column_names == list(ds.columns)
    for i, row in enumerate(loaded, 1):
        assert (row["label"], row["text"]) == (VALUES["label"][i], VALUES["text"][i])
        assert row["tokens"] == VALUES["tokens"][i].tolist()
        assert row["ragged"] == VALUES["ragged"][i].tolist()
        assert (row["data"], json.loads(row["meta"])) == (VALUES["data"][i], VALUES["meta"][i])
    assert loaded.filter(lambda row: row["label"] == 3).num_rows == 2
    assert len(ds[:0].to_hf()) == 0


def test_images_are_features_of_hugging_face(tmp_path, datasets):
    image = pytest.importorskip("PIL.Image")
    pictures = [image.new("RGB", (5 + i, 4), (i, 9, 3)) for i in range(4)]
    values = {"png": pictures, "pil": pictures, "jpeg": pictures, "n": np.arange(4)}
    columns = {"png": "png", "pil": "pil", "jpeg": "jpeg", "n": "int64"}
    npstream.write(tmp_path / "d", values, columns=columns)
    ds = npstream.open(tmp_path / "d")
    loaded = ds[[2, 0, 1]].to_hf()
    for name in ("png", "pil", "jpeg"):
        assert loaded.features[name] == datasets.Image()
    for row, i in zip(loaded, [2, 0, 1], strict=True):
        for name in ("png", "pil", "jpeg"):
            assert row[name].size == (5 + i, 4)
            assert np.array_equal(row[name], ds[i][name])
    stored = loaded.cast_column("jpeg", datasets.Image(decode=False))[0]["jpeg"]["bytes"]
    assert stored == ds.to_arrow()["jpeg"][2].as_py()
    npstream.write(tmp_path / "f", {"x": [image.new("F", (2, 2))]}, columns={"x": "pil"})
    with pytest.raises(TypeError, match=r"'x' has an image of mode 'F'.*ds.drop"):
        npstream.open(tmp_path / "f").to_hf()


EXPORTERS = ["to_arrow", "to_pandas", "to_polars", "to_hf"]


@pytest.mark.parametrize("method", EXPORTERS)
def test_views_that_are_no_tables_are_refused(ds, method, tmp_path):
    if method in ("to_polars", "to_hf"):
        pytest.importorskip({"to_polars": "polars", "to_hf": "datasets"}[method])
    with pytest.raises(ValueError, match="take its ravel"):
        getattr(ds[[[0, 1]]], method)()
    with pytest.raises(ValueError, match="without columns"):
        getattr(ds.drop(*ds.columns), method)()
    npstream.write(tmp_path / "d", {"z": np.ones(3, complex)})
    with pytest.raises(TypeError, match=r"'z'.*no type: leave the column out"):
        getattr(npstream.open(tmp_path / "d"), method)()


def test_a_table_that_does_not_fit_is_refused_after_its_first_batch(ds, monkeypatch):
    read = []
    columns = type(ds._source).columns

    def record(source, plan, lookup, out):
        read.append(len(lookup.rows))
        return columns(source, plan, lookup, out)

    monkeypatch.setattr(type(ds._source), "columns", record)
    monkeypatch.setattr(memory, "_UNCHECKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 150)
    with pytest.raises(MemoryError, match=r"a table with .* more rows takes"):
        ds[["label", "text"]].to_arrow()
    assert sum(read) < N


def test_an_export_of_a_remote_dataset_is_not_limited(tmp_path, upload):
    npstream.write(tmp_path / "d", {"t": ["x" * 200] * 4000})
    url = upload(tmp_path / "d")
    ds = npstream.open(url, cache=tmp_path / "c", implicit_read_limit=1000)
    with pytest.raises(errors.CostError):
        pa.table(ds)
    assert ds.to_arrow().num_rows == 4000


@pytest.mark.parametrize(
    ("method", "package", "extra"),
    [
        ("to_arrow", "pyarrow", "arrow"),
        ("to_pandas", "pandas", "pandas"),
        ("to_polars", "polars", "polars"),
        ("to_hf", "datasets", "datasets"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(path, method, package, extra):
    code = f"""
import sys
sys.modules[{package!r}] = None
import npstream
try:
    npstream.open({str(path)!r}).{method}()
except npstream.errors.MissingDependencyError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert f"pip install 'npstream[{extra}]'" in result.stdout


def test_columns_become_dask_arrays_along_the_shards(tmp_path, monkeypatch):
    dask = pytest.importorskip("dask.array")
    monkeypatch.setattr("npstream.dataset.export._MIN_BLOCK_BYTES", 1)
    values = {
        "x": np.arange(100),
        "v": np.arange(300.0).reshape(100, 3),
        "t": list(map(str, range(100))),
    }
    npstream.write(tmp_path / "out", values, shard_samples=30)
    ds = npstream.open(tmp_path / "out")
    array = ds["v"].to_dask()
    assert isinstance(array, dask.Array)
    assert (array.shape, array.dtype, array.chunks) == (
        (100, 3),
        np.float64,
        ((30, 30, 30, 10), (3,)),
    )
    assert type(array._meta) is np.ndarray
    for index in (np.s_[:], np.s_[5:80:7, 1], np.s_[::-1], np.s_[[3, 99, 3]], np.s_[40]):
        result = array[index].compute(scheduler="threads")
        np.testing.assert_array_equal(result, values["v"][index])
        assert result.dtype == np.float64
    assert ds[::2]["x"].to_dask().chunks == ((15, 15, 15, 5),)
    assert ds[:0]["x"].to_dask().compute(scheduler="threads").tolist() == []
    assert int((ds["x"].to_dask() ** 2).sum().compute(scheduler="threads")) == 328350
    with pytest.raises(TypeError, match=r"column 't' .*ds.to_dask_dataframe\(\)"):
        ds["t"].to_dask()
    with pytest.raises(ValueError, match=r"ravel\(\)"):
        ds[np.arange(4).reshape(2, 2)]["x"].to_dask()


def test_a_slice_of_a_dask_array_reads_only_its_rows(tmp_path, upload, requests, small_chunks):
    pytest.importorskip("dask.array")
    npstream.write(tmp_path / "out", {"x": np.arange(4000)}, shard_samples=1000, sidecar=False)
    ds = npstream.open(upload(tmp_path / "out"), cache=tmp_path / "cache")
    array = ds["x"].to_dask()
    requests.clear()
    assert array[1500:1510].compute(scheduler="synchronous").tolist() == list(range(1500, 1510))
    data = [span for span in requests if span[0].startswith("shard")]
    assert {name for name, _, _ in data} == {"shard.00001.mds"}
    assert sum(nbytes for _, _, nbytes in data) < 3000


def test_views_become_dask_data_frames(ds, monkeypatch):
    frames = pytest.importorskip("dask.dataframe")
    monkeypatch.setattr("npstream.dataset.export._MIN_BLOCK_BYTES", 1)
    view = ds[::2][["label", "number", "text", "data", "ragged"]]
    frame = view.to_dask_dataframe()
    assert isinstance(frame, frames.DataFrame)
    assert frame.npartitions > 1
    result, expected = frame.compute(scheduler="threads"), view.to_pandas()
    assert result.index.tolist() == expected.index.tolist()
    assert result.dtypes.tolist() == expected.dtypes.tolist()
    for name in ("label", "number", "text", "data"):
        assert result[name].tolist() == expected[name].tolist()
    assert all(map(np.array_equal, result["ragged"], expected["ragged"]))
    assert frame.loc[3:5]["label"].compute(scheduler="threads").tolist() == [
        int(label) for label in view["label"][3:6]
    ]
    assert len(ds[:0].to_dask_dataframe().compute(scheduler="threads")) == 0


def test_concatenations_of_views_become_dask_collections(tmp_path, monkeypatch):
    pytest.importorskip("dask.dataframe")
    monkeypatch.setattr("npstream.dataset.export._MIN_BLOCK_BYTES", 1)
    for name, start, stop in (("a", 0, 100), ("b", 100, 150)):
        npstream.write(tmp_path / name, {"x": np.arange(start, stop)}, shard_samples=30)
    a, b = npstream.open(tmp_path / "a"), npstream.open(tmp_path / "b")
    shuffled = a[np.random.default_rng(0).permutation(100)]
    # A view in random order has blocks of the average number of rows of a shard: here, 25.
    cases = [
        (npstream.concat([a, b]), (30, 30, 30, 10, 30, 20)),
        (npstream.concat([a[:10], b]), (10, 30, 20)),
        (npstream.concat([a[::-1], b, a[:0], a]), (10, 30, 30, 30, 30, 20, 30, 30, 30, 10)),
        (npstream.concat([a[:10], b])[::2], (5, 15, 10)),
        (npstream.concat([npstream.concat([a, b])[95:], shuffled]), (5, 30, 20, 25, 25, 25, 25)),
    ]
    for view, blocks in cases:
        array, expected = view["x"].to_dask(), view["x"].load().tolist()
        assert array.chunks == (blocks,)
        assert array.compute(scheduler="threads").tolist() == expected
        frame = view.to_dask_dataframe().compute(scheduler="threads")
        assert frame["x"].tolist() == expected
