"""Views, batches and columns go into Arrow's world as they are, with the values that they hold."""

from __future__ import annotations

import datetime
import decimal
import io
import json

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
COLUMNS = {
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
    npstream.write(path, samples, columns=FIXED_ENCODINGS | COLUMNS, shard_size=1 << 11)
    return path


@pytest.fixture
def ds(path, monkeypatch):
    monkeypatch.setattr("npstream.reading.arrow_stream.BATCH_BYTES", 1 << 11)
    return npstream.open(path)


def expected(index=slice(None)):
    """Return each column as a list of Python's values, as Arrow gives them."""
    lists = {name: values.tolist() for name, values in FIXED.items()}
    lists |= {
        "ragged": [row.tolist() for row in RAGGED],
        "planes": [row.tolist() for row in PLANES],
        "text": TEXT,
        "data": [text.encode() for text in TEXT],
        "decimal": [str(value) for value in DECIMALS],
        "digits": list(range(N)),
    }
    return {name: np.arange(N)[index].tolist() and [lists[name][k] for k in np.arange(N)[index]]
            for name in lists}  # fmt: skip


@pytest.mark.parametrize("index", [slice(None), slice(None, None, -3), np.array([4, 4, 0])])
def test_a_view_is_a_table(ds, index):
    table = pa.table(ds[index])
    found = table.to_pydict()
    assert [json.loads(text) for text in found.pop("json")] == [
        JSON[k] for k in np.arange(N)[index]
    ]
    assert found == expected(index)
    assert table.schema.field("grid").type == pa.list_(pa.list_(pa.float32(), 3), 2)
    assert table.schema.field("planes").type == pa.large_list(pa.large_list(pa.float32()))
    assert table.schema.field("time").type == pa.timestamp("us")


def test_a_view_is_read_as_the_stream_goes(ds, monkeypatch):
    reader = pa.RecordBatchReader.from_stream(ds[["label", "ragged"]])
    first = reader.read_next_batch()
    assert 0 < first.num_rows < N

    def read(*args, **keywords):
        raise OSError("it is read now")

    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", read)
    with pytest.raises(Exception, match="it is read now"):
        reader.read_all()


@pytest.mark.parametrize("name", sorted({*FIXED, *COLUMNS} - {"json"}))
def test_a_column_is_an_array(ds, name):
    assert pa.array(ds[name]).to_pylist() == expected()[name]
    assert pa.chunked_array(ds[name][::-2]).to_pylist() == expected(slice(None, None, -2))[name]


def test_parts_of_values(ds):
    for index in [(slice(None), 1), (slice(4), [2, 0]), (slice(3), slice(1, None))]:
        assert pa.array(ds["vector"][index]).to_pylist() == FIXED["vector"][index].tolist()
    assert pa.array(ds[[[1, 2]]]["vector"]).to_pylist() == FIXED["vector"][[[1, 2]]].tolist()


def test_a_batch_is_a_table(ds):
    batch = ds[5:9].load()
    found = pa.RecordBatchReader.from_stream(batch).read_all().to_pydict()
    assert [json.loads(text) for text in found.pop("json")] == JSON[5:9]
    assert pa.table({name: batch[name] for name in ("label", "text")}).to_pydict() == {
        "label": found["label"], "text": found["text"]
    }  # fmt: skip
    assert list(map(decimal.Decimal, found.pop("decimal"))) == DECIMALS[5:9]
    want = expected(slice(5, 9))
    assert found == {name: want[name] for name in found}


def test_a_ragged_is_an_array(ds):
    ragged = ds["ragged"].load()
    assert pa.array(ragged).to_pylist() == expected()["ragged"]
    assert pa.chunked_array(ragged).to_pylist() == expected()["ragged"]


def test_no_samples(ds):
    empty = pa.table(ds[:0])
    assert empty.num_rows == 0
    assert empty.schema.names == list(ds.columns)
    assert pa.array(ds["vector"][:0]).to_pylist() == []


def test_what_has_no_type(tmp_path):
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


def test_rows_of_another_rank_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("npstream.reading.arrow_stream.BATCH_BYTES", 1)
    rows = [{"x": np.ones((1,) * (1 + k // 2))} for k in range(4)]
    npstream.write(tmp_path, rows, columns={"x": "ndarray:float64"})
    with pytest.raises((TypeError, OSError, pa.ArrowException), match="column 'x' holds arrays of"):
        pa.table(npstream.open(tmp_path))


def test_views_without_one_axis_are_refused(ds):
    for view in (ds[[[1, 2]]], ds[..., 3]):
        with pytest.raises(ValueError, match=r"ravel\(\)"):
            pa.table(view)
        with pytest.raises(ValueError, match=r"ravel\(\)"):
            view.load().__arrow_c_stream__()
        with pytest.raises(ValueError, match=r"ravel\(\)"):
            pa.array(view["text"])


def test_images_are_their_files(tmp_path):
    image = pytest.importorskip("PIL.Image").fromarray(np.zeros((4, 5, 3), np.uint8))
    npstream.write(tmp_path, [{"x": image}] * 2, columns={"x": "png"})
    files = pa.array(npstream.open(tmp_path)["x"]).to_pylist()
    assert [PIL_size(file) for file in files] == [(5, 4)] * 2


def PIL_size(file):
    from PIL import Image

    return Image.open(io.BytesIO(file)).size


def test_expensive_streams_are_refused(ds, monkeypatch):
    def refuse(source, selection, purpose, *_):
        raise CostError(purpose)

    monkeypatch.setattr("npstream.reading.arrow_stream.check_cost", refuse)
    with pytest.raises(CostError, match="Arrow"):
        pa.table(ds)


def test_pyarrow_is_named_where_it_is_missing(ds, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"npstream\[arrow\]"):
        ds.__arrow_c_stream__()


# Libraries that take such data


def test_polars(ds):
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


def test_pandas(ds):
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


def test_duckdb(ds):
    duckdb = pytest.importorskip("duckdb")
    view = ds[["label", "text", "vector"]]
    rows = duckdb.sql("select label, count(*) from view group by label order by label").fetchall()
    assert rows == list(enumerate(np.bincount(FIXED["label"]).tolist()))
    assert duckdb.sql("select text from view where label = 3").fetchall()[0] == (TEXT[3],)
    # DuckDB takes a batch for the dict that it is, of NumPy's arrays with one axis.
    batch = view[["label"]][:4].load()  # noqa: F841 (SQL names it)
    assert duckdb.sql("select sum(label) from batch").fetchall() == [(6,)]
    reader = pa.RecordBatchReader.from_stream(view[:4].load())  # noqa: F841 (SQL names it)
    assert duckdb.sql("select max(text) from reader").fetchall() == [(max(TEXT[:4]),)]


def test_writing_takes_views_as_before(ds, tmp_path):
    """A view is copied as it is stored, though it can be read as Arrow's."""
    npstream.write(tmp_path / "copy", ds[::2])
    again = npstream.open(tmp_path / "copy")
    assert [sample["json"] for sample in again] == JSON[::2]
    table = pa.table(ds[["grid", "text", "time"]])
    npstream.write(tmp_path / "table", {name: table[name] for name in table.column_names})
    back = npstream.open(tmp_path / "table")
    assert_same(back["grid"].load(), FIXED["grid"])
    assert list(back["text"]) == TEXT
    assert datetime.datetime(2024, 1, 3) in back["time"].load().tolist()
