"""Tests of the Arrow interface: views, batches and columns become Arrow data of the same values."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import sys

import numpy as np
import pytest

import npstream
from npstream.errors import CostError, MissingDependencyError
from npstream.testing import assert_same

pa = pytest.importorskip("pyarrow")

N = 30
TIMES = np.arange("2024-01-01", "2024-01-31", dtype="M8[D]").astype("M8[us]")
FIXED = {
    "label": np.arange(N) % 7,
    "score": np.linspace(0, 1, N, dtype=np.float32),
    "flag": np.arange(N) % 2 == 0,
    "half": np.arange(N, dtype=np.float16),
    "time": TIMES,
    "wait": TIMES - TIMES[0],
    "vector": np.arange(N * 3, dtype=np.int16).reshape(N, 3),
    "grid": np.arange(N * 6, dtype=np.float32).reshape(N, 2, 3),
}
RAGGED = [np.arange(k % 4 + 1, dtype=np.int32) for k in range(N)]
PLANES = [np.ones((k % 3 + 1, 2), np.float32) * k for k in range(N)]
TEXT = [f"täxt {k}" for k in range(N)]
JSON = [{"k": k, "list": [1, None]} if k % 2 else k for k in range(N)]
DECIMALS = [decimal.Decimal(k) / 8 for k in range(N)]
FIXED_ENCODINGS = {
    "label": "int64", "score": "float32", "flag": "bool", "half": "float16",
    "time": "datetime64[us]", "wait": "timedelta64[us]", "vector": "ndarray:int16:3",
    "grid": "ndarray:float32:2,3",
}  # fmt: skip
VARIABLE_ENCODINGS = {
    "ragged": "ndarray:int32", "planes": "ndarray:float32", "text": "str", "data": "bytes",
    "json": "json", "decimal": "str_decimal", "digits": "str_int",
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("arrow")
    samples = (
        {name: values[k] for name, values in FIXED.items()}
        | {
            "ragged": RAGGED[k],
            "planes": PLANES[k],
            "text": TEXT[k],
            "data": TEXT[k].encode(),
            "json": JSON[k],
            "decimal": DECIMALS[k],
            "digits": k,
        }
        for k in range(N)
    )
    npstream.write(path, samples, columns=FIXED_ENCODINGS | VARIABLE_ENCODINGS, shard_size=1 << 11)
    return path


@pytest.fixture
def ds(path, monkeypatch):
    monkeypatch.setattr("npstream.reading.arrow_stream.BATCH_BYTES", 1 << 11)
    return npstream.open(path)


def expected(index=slice(None)):
    """Return each column except "json" as a list of Python values, as Arrow returns them."""
    lists = {name: values.tolist() for name, values in FIXED.items()}
    lists |= {
        "ragged": [row.tolist() for row in RAGGED],
        "planes": [row.tolist() for row in PLANES],
        "text": TEXT,
        "data": [text.encode() for text in TEXT],
        "decimal": [str(value) for value in DECIMALS],
        "digits": list(range(N)),
    }
    return {name: [values[k] for k in np.arange(N)[index]] for name, values in lists.items()}


@pytest.mark.parametrize("index", [slice(None), slice(None, None, -3), np.array([4, 4, 0])])
def test_a_view_becomes_a_table(ds, index):
    table = pa.table(ds[index])
    columns = table.to_pydict()
    assert [json.loads(text) for text in columns.pop("json")] == [
        JSON[k] for k in np.arange(N)[index]
    ]
    assert columns == expected(index)
    assert table.schema.field("grid").type == pa.list_(pa.list_(pa.float32(), 3), 2)
    assert table.schema.field("planes").type == pa.large_list(pa.large_list(pa.float32()))
    assert table.schema.field("time").type == pa.timestamp("us")


def test_a_stream_reads_a_view_on_demand(ds, monkeypatch):
    reader = pa.RecordBatchReader.from_stream(ds[["label", "ragged"]])
    first = reader.read_next_batch()
    assert 0 < first.num_rows < N

    def read(*args, **keywords):
        raise OSError("read on demand")

    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", read)
    with pytest.raises(Exception, match="read on demand"):
        reader.read_all()


@pytest.mark.parametrize("name", sorted({*FIXED, *VARIABLE_ENCODINGS} - {"json"}))
def test_a_column_becomes_an_array(ds, name):
    assert pa.array(ds[name]).to_pylist() == expected()[name]
    assert pa.chunked_array(ds[name][::-2]).to_pylist() == expected(slice(None, None, -2))[name]


def test_parts_of_values_become_arrays(ds):
    for index in [(slice(None), 1), (slice(4), [2, 0]), (slice(3), slice(1, None))]:
        assert pa.array(ds["vector"][index]).to_pylist() == FIXED["vector"][index].tolist()
    assert pa.array(ds[[[1, 2]]]["vector"]).to_pylist() == FIXED["vector"][[[1, 2]]].tolist()


def test_a_batch_becomes_a_table(ds):
    batch = ds[5:9].load()
    columns = pa.RecordBatchReader.from_stream(batch).read_all().to_pydict()
    assert [json.loads(text) for text in columns.pop("json")] == JSON[5:9]
    assert pa.table({name: batch[name] for name in ("label", "text")}).to_pydict() == {
        "label": columns["label"], "text": columns["text"]
    }  # fmt: skip
    assert list(map(decimal.Decimal, columns.pop("decimal"))) == DECIMALS[5:9]
    values = expected(slice(5, 9))
    assert columns == {name: values[name] for name in columns}


def test_a_ragged_becomes_an_array(ds):
    ragged = ds["ragged"].load()
    assert pa.array(ragged).to_pylist() == expected()["ragged"]
    assert pa.chunked_array(ragged).to_pylist() == expected()["ragged"]


def test_an_empty_view_becomes_an_empty_table(ds):
    empty = pa.table(ds[:0])
    assert empty.num_rows == 0
    assert empty.schema.names == list(ds.columns)
    assert pa.array(ds["vector"][:0]).to_pylist() == []


def test_columns_without_an_arrow_type_raise(tmp_path):
    values = [{"c": np.complex64(1j), "any": np.ones(k + 1), "pkl": {1}, "n": k} for k in range(3)]
    columns = {"c": "ndarray:complex64:1", "any": "ndarray", "pkl": "pkl", "n": "int"}
    rows = ({**value, "c": np.array([1j], np.complex64)} for value in values)
    npstream.write(tmp_path, rows, columns=columns)
    ds = npstream.open(tmp_path, allow_pickle=True)
    for name in ("c", "any", "pkl"):
        with pytest.raises(TypeError, match=f"column '{name}' holds .*leave the column out"):
            pa.table(ds[[name, "n"]])
        with pytest.raises(TypeError, match=f"column '{name}'"):
            pa.array(ds[name])
    assert pa.table(ds[["n"]]).to_pydict() == {"n": [0, 1, 2]}


def test_a_column_of_arrays_of_different_ranks_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("npstream.reading.arrow_stream.BATCH_BYTES", 1)
    rows = [{"x": np.ones((1,) * (1 + k // 2))} for k in range(4)]
    npstream.write(tmp_path, rows, columns={"x": "ndarray:float64"})
    with pytest.raises((TypeError, OSError, pa.ArrowException), match="column 'x' holds arrays of"):
        pa.table(npstream.open(tmp_path))


def test_views_with_other_than_one_axis_raise(ds):
    for view in (ds[[[1, 2]]], ds[..., 3]):
        with pytest.raises(ValueError, match=r"ravel\(\)"):
            pa.table(view)
        with pytest.raises(ValueError, match=r"ravel\(\)"):
            view.load().__arrow_c_stream__()
        with pytest.raises(ValueError, match=r"ravel\(\)"):
            pa.array(view["text"])


def test_images_become_the_bytes_of_their_files(tmp_path):
    image = pytest.importorskip("PIL.Image").fromarray(np.zeros((4, 5, 3), np.uint8))
    npstream.write(tmp_path, [{"x": image}] * 2, columns={"x": "png"})
    files = pa.array(npstream.open(tmp_path)["x"]).to_pylist()
    assert [image_size(file) for file in files] == [(5, 4)] * 2


def image_size(file):
    from PIL import Image

    return Image.open(io.BytesIO(file)).size


def test_streams_above_the_implicit_read_limit_raise(ds, monkeypatch):
    def refuse(source, selection, purpose, *_):
        raise CostError(purpose)

    monkeypatch.setattr("npstream.reading.arrow_stream.check_cost", refuse)
    with pytest.raises(CostError, match="Arrow"):
        pa.table(ds)


def test_a_missing_pyarrow_is_reported(ds, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"npstream\[arrow\]"):
        ds.__arrow_c_stream__()


# Libraries that read Arrow data


def test_polars_reads_views_and_columns(ds):
    pl = pytest.importorskip("polars")
    assert pl.DataFrame(ds[["text", "label"]].load())["text"].to_list() == TEXT
    frame = pl.DataFrame(ds)
    assert frame["text"].to_list() == TEXT
    assert frame["grid"].to_list() == FIXED["grid"].tolist()
    assert frame.filter(pl.col("label") == 3)["score"].to_list() == [
        pytest.approx(x) for x in FIXED["score"][FIXED["label"] == 3]
    ]
    assert pl.Series(ds["ragged"]).to_list() == expected()["ragged"]
    assert pl.Series(ds["vector"]).to_list() == FIXED["vector"].tolist()


def test_pandas_reads_views_and_columns(ds):
    pd = pytest.importorskip("pandas", "3")
    frame = pd.DataFrame.from_arrow(ds[["label", "text", "score", "time"]])
    assert frame["label"].tolist() == FIXED["label"].tolist()
    assert frame["text"].tolist() == TEXT
    assert_same(frame["time"].to_numpy(), TIMES)
    assert (
        pd.DataFrame.from_arrow(ds[["flag", "text"]].load())["flag"].tolist()
        == FIXED["flag"].tolist()
    )
    assert pd.Series.from_arrow(ds["text"]).tolist() == TEXT
    assert_same(pd.Series(ds["score"]).to_numpy(), FIXED["score"])
    assert_same(pd.DataFrame({"x": ds["label"]})["x"].to_numpy(), FIXED["label"])
    assert pd.Series(ds["text"]).tolist() == TEXT


def test_duckdb_reads_views(ds):
    duckdb = pytest.importorskip("duckdb")
    view = ds[["label", "text", "vector"]]
    rows = duckdb.sql("select label, count(*) from view group by label order by label").fetchall()
    assert rows == list(enumerate(np.bincount(FIXED["label"]).tolist()))
    assert duckdb.sql("select text from view where label = 3").fetchall()[0] == (TEXT[3],)
    # DuckDB treats a batch as a dict of 1-d NumPy arrays.
    batch = view[["label"]][:4].load()  # noqa: F841 (SQL names it)
    assert duckdb.sql("select sum(label) from batch").fetchall() == [(6,)]
    reader = pa.RecordBatchReader.from_stream(view[:4].load())  # noqa: F841 (SQL names it)
    assert duckdb.sql("select max(text) from reader").fetchall() == [(max(TEXT[:4]),)]


def test_writing_a_view_copies_its_stored_form(ds, tmp_path):
    """`write` does not take the view as Arrow data, although it has that interface."""
    npstream.write(tmp_path / "copy", ds[::2])
    copy = npstream.open(tmp_path / "copy")
    assert [sample["json"] for sample in copy] == JSON[::2]
    table = pa.table(ds[["grid", "text", "time"]])
    npstream.write(tmp_path / "table", {name: table[name] for name in table.column_names})
    written = npstream.open(tmp_path / "table")
    assert_same(written["grid"].load(), FIXED["grid"])
    assert list(written["text"]) == TEXT
    assert datetime.datetime(2024, 1, 3) in written["time"].load().tolist()
