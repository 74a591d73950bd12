"""Parquet files that pyarrow, pandas, polars, datasets and DuckDB wrote, as datasets."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import pytest

import npstream
from npstream.conversion import parquet
from npstream.conversion.files import find_files
from npstream.conversion.source import SourceRequest, kind_class

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 1000
TABLE = pa.table(
    {
        "id": pa.array(range(ROWS), pa.int32()),
        "text": [f"text {number}" for number in range(ROWS)],
        "kind": pa.array([f"k{number % 7}" for number in range(ROWS)]).dictionary_encode(),
        "price": [decimal.Decimal(number) / 4 for number in range(ROWS)],
        "day": pa.array([datetime.date(2024, 1, 1 + number % 28) for number in range(ROWS)]),
        "tokens": [[number, number + 1] for number in range(ROWS)],
        "meta": [{"n": number, "tags": ["x"] * (number % 3)} for number in range(ROWS)],
        "flag": [number % 2 == 0 for number in range(ROWS)],
        "body": [bytes([number % 256]) * 3 for number in range(ROWS)],
    }
)  # fmt: skip
COLUMNS = {
    "id": "int32", "text": "str", "kind": "str", "price": "str_decimal", "day": "datetime64[D]",
    "tokens": "ndarray:int64", "meta": "json", "flag": "bool", "body": "bytes",
}  # fmt: skip


def assert_some_rows(path, table=TABLE):
    """Assert that a dataset has the rows of a table. Four rows are compared."""
    ds = npstream.open(path)
    assert len(ds) == len(table)
    rows = table.to_pylist()
    for number in (0, 1, len(rows) // 2, len(rows) - 1):
        for name, value in rows[number].items():
            stored = ds[number][name]
            stored = stored.tolist() if hasattr(stored, "tolist") else stored
            assert stored == value, name


@pytest.mark.parametrize("options", [{}, {"row_group_size": 100}, {"compression": "zstd"}])
def test_files_of_pyarrow_are_converted(tmp_path, options):
    pq.write_table(TABLE, tmp_path / "a.parquet", **options)
    report = npstream.convert(tmp_path / "a.parquet", tmp_path / "out")
    assert report.columns == COLUMNS
    assert report.samples == ROWS
    assert_some_rows(tmp_path / "out")


def test_files_of_pandas_are_converted(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"x": np.arange(5), "name": list("abcde"), "c": pd.Categorical(list("xyxyx"))}
    )
    frame["when"] = pd.date_range("2024-01-01", periods=5)
    frame["n"] = pd.array([1, 2, 3, 4, 5], "Int64")
    frame.to_parquet(tmp_path / "a.parquet")
    report = npstream.convert(tmp_path / "a.parquet", tmp_path / "out")
    assert report.columns["c"] == "str"
    assert report.columns["n"] == "int64"
    ds = npstream.open(tmp_path / "out")
    assert (ds["when"].load() == frame["when"].to_numpy()).all()


def test_files_of_polars_are_converted(tmp_path):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {"x": [1.5, 2.5], "s": ["a", "b"], "l": [[1], [2, 3]], "d": [{"a": 1}] * 2}
    )
    frame.write_parquet(tmp_path / "a.parquet")
    report = npstream.convert(tmp_path / "a.parquet", tmp_path / "out")
    assert report.columns == {"x": "float64", "s": "str", "l": "ndarray:int64", "d": "json"}
    assert npstream.open(tmp_path / "out")[1]["d"] == {"a": 1}


def test_files_of_duckdb_have_partitions_as_columns(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    duckdb.sql(
        "copy (select range as id, range % 3 as part, 'x y/' || range % 2 as name from range(30))"
        f" to '{tmp_path}/data' (format parquet, partition_by (part, name))"
    )
    report = npstream.convert(tmp_path / "data", tmp_path / "out")
    assert report.columns == {"id": "int64", "part": "int64", "name": "str"}
    ds = npstream.open(tmp_path / "out").load()
    assert (ds["id"] % 3 == ds["part"]).all()
    assert set(ds["name"]) == {"x y/0", "x y/1"}
    options = {"partitioning": False}
    plan = npstream.convert(
        tmp_path / "data", tmp_path / "o2", reader_options=options, dry_run=True
    )
    assert plan.columns == {"id": "int64"}


def test_files_of_datasets_are_converted(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    data.to_parquet(str(tmp_path / "a.parquet"))
    npstream.convert(tmp_path, tmp_path / "out")
    assert npstream.open(tmp_path / "out")[1] == {"text": "b", "label": 1}


def test_images_and_arrays_of_datasets_are_stored_as_they_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    pictures = []
    for number in range(3):
        path = tmp_path / f"{number}.jpg"
        image.new("RGB", (8, 6), (number, 0, 0)).save(path)
        pictures.append(path.read_bytes())
    features = datasets.Features(
        {"image": datasets.Image(), "grid": datasets.Array2D((2, 3), "int16")}
    )
    grids = np.arange(18, dtype=np.int16).reshape(3, 2, 3)
    rows = {"image": [{"bytes": each, "path": None} for each in pictures], "grid": list(grids)}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    report = npstream.convert(tmp_path / "a.parquet", tmp_path / "out")
    assert report.columns == {"image": "jpeg", "grid": "ndarray:int16:2,3"}
    ds = npstream.open(tmp_path / "out", columns={"image": "bytes"})
    assert [sample["image"] for sample in ds] == pictures
    assert (ds["grid"].load() == grids).all()


def test_files_are_read_in_natural_order_and_empty_ones_are_skipped(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name, start, stop in (("10", 600, 1000), ("9", 100, 600), ("1", 0, 100), ("5", 100, 100)):
        pq.write_table(TABLE.slice(start, stop - start), source / f"part-{name}.parquet")
    npstream.convert(source, tmp_path / "out")
    assert (npstream.open(tmp_path / "out")["id"].load() == np.arange(ROWS)).all()
    pq.write_table(TABLE.slice(0, 0), tmp_path / "empty.parquet")
    report = npstream.convert(tmp_path / "empty.parquet", tmp_path / "none")
    assert (report.samples, report.columns) == (0, COLUMNS)


def test_nulls_are_refused_or_filled(tmp_path):
    pq.write_table(pa.table({"x": [1, None], "s": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"sample 1: column '[xs]'.*null"):
        npstream.convert(tmp_path / "a.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fill = {"x": -1, "s": "", "more": 2.5}
    report = npstream.convert(tmp_path / "a.parquet", tmp_path / "out", fill=fill)
    assert report.columns == {"x": "int64", "s": "str", "more": "float64"}
    assert npstream.open(tmp_path / "out")[1] == {"x": -1, "s": "", "more": 2.5}


def test_a_file_of_another_schema_raises_and_names_itself(tmp_path):
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "1.parquet")

    def convert(other, **options):
        pq.write_table(pa.table(other), tmp_path / "2.parquet")
        return npstream.convert(f"{tmp_path}/*.parquet", tmp_path / "out", **options)

    with pytest.raises(ValueError, match=r"2\.parquet: there is no column 'y', which .*1\.parquet"):
        convert({"x": [1]})
    with pytest.raises(ValueError, match=r"2\.parquet: column 'z' is not in .*1\.parquet"):
        convert({"x": [1], "y": ["b"], "z": [1]})
    with pytest.raises(ValueError, match=r"2\.parquet: column 'x' is of type double.*columns="):
        convert({"x": [1.0], "y": ["b"]})
    assert not (tmp_path / "out").exists()
    report = convert({"y": ["b"], "x": pa.array([2.0])}, columns={"x": "int64", "y": "str"})
    assert npstream.open(tmp_path / "out")["x"].load().tolist() == [1, 2]
    assert report.samples == 2


def test_time_zones_and_times_are_stored_only_if_the_user_names_an_encoding(tmp_path):
    when = datetime.datetime(2024, 7, 1, 12, tzinfo=datetime.UTC)
    zone = pa.timestamp("us", "Europe/Berlin")
    table = pa.table({"t": pa.array([when], zone), "at": pa.array([datetime.time(9, 30)])})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TypeError, match=r"a\.parquet: column 't'.*'datetime64\[us\]'.*UTC"):
        npstream.convert(tmp_path / "a.parquet", tmp_path / "out")
    with pytest.raises(TypeError, match=r"column 'at'.*columns=\{'at': 'str'"):
        npstream.convert(tmp_path / "a.parquet", tmp_path / "out", columns=["at"])
    columns = {"t": "datetime64[us]", "at": "str"}
    npstream.convert(tmp_path / "a.parquet", tmp_path / "out", columns=columns)
    sample = npstream.open(tmp_path / "out")[0]
    assert sample == {"t": np.datetime64("2024-07-01T12:00:00"), "at": "09:30:00.000000"}


def test_columns_that_cannot_be_written_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["x", "x"]), path)
    with pytest.raises(ValueError, match=r"a\.parquet: 2 columns have the name 'x'"):
        npstream.convert(path, tmp_path / "out")
    pq.write_table(pa.table({"x": pa.nulls(2)}), path)
    with pytest.raises(TypeError, match=r"a\.parquet: column 'x': it has only nulls: give fill="):
        npstream.convert(path, tmp_path / "out")
    npstream.convert(path, tmp_path / "out", fill={"x": 7})
    assert npstream.open(tmp_path / "out")["x"].load().tolist() == [7, 7]


@pytest.mark.parametrize("text", ["--5", "-", "9" * 200, "007", "x"])
def test_partitions_that_are_no_int64_are_text(tmp_path, text):
    folder = tmp_path / "data" / f"part={text}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), folder / "a.parquet")
    npstream.convert(tmp_path / "data", tmp_path / "out")
    assert npstream.open(tmp_path / "out")[0]["part"] == text


def test_names_with_dots_are_columns_and_a_partition_can_be_the_only_column(tmp_path):
    source = tmp_path / "in" / "y=3"
    source.mkdir(parents=True)
    table = pa.table({"a.b": [1, 2], "a": [{"b": 5}] * 2})
    pq.write_table(table, source / "x.parquet")
    npstream.convert(tmp_path / "in", tmp_path / "o1", columns=["a.b"], where="`a.b` == 2")
    assert npstream.open(tmp_path / "o1")[0] == {"a.b": 2}
    npstream.convert(tmp_path / "in", tmp_path / "o2", columns=["y"])
    assert npstream.open(tmp_path / "o2")["y"].load().tolist() == [3, 3]


def test_row_groups_are_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "TABLE_BYTES", 1 << 20)
    texts = [np.random.default_rng(n).bytes(500).hex() for n in range(40_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=1 << 20)
    (part,) = kind_class("parquet")(find_files(tmp_path), SourceRequest()).parts()
    before = peak = pa.total_allocated_bytes()
    for batch in part.open():
        peak = max(peak, pa.total_allocated_bytes())
        del batch
    assert pa.total_allocated_bytes() == before
    assert (tmp_path / "a.parquet").stat().st_size > 20 << 20
    assert peak - before < 10 << 20


def test_a_file_that_is_not_parquet_raises(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(npstream.errors.FormatError, match=r"a\.parquet: cannot be read as Parquet"):
        npstream.convert(tmp_path, tmp_path / "out")


def test_remote_files_are_converted(tmp_path, servers):
    remote_dir = servers["s3"].new_directory()
    for number in range(3):
        pq.write_table(TABLE.slice(number * 100, 100), tmp_path / "x", row_group_size=30)
        remote_dir.put(f"data/{number}.parquet", (tmp_path / "x").read_bytes())
    for number, source in enumerate([f"{remote_dir.url}/data", f"{remote_dir.url}/data/*.parquet"]):
        out = tmp_path / f"out{number}"
        npstream.convert(source, out, source_options=remote_dir.storage_options)
        assert_some_rows(out, TABLE.slice(0, 300))


@pytest.mark.parametrize("where", [None, "n != 3"])
def test_a_null_names_its_row(tmp_path, where):
    numbers = list(range(60))
    pq.write_table(pa.table({"n": numbers, "x": numbers}), tmp_path / "a.parquet")
    with_null = [None if number == 40 else number for number in numbers]
    pq.write_table(pa.table({"n": numbers, "x": with_null}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="column 'x': 1 null") as caught:
        npstream.convert(tmp_path / "*.parquet", tmp_path / "out", where=where)
    assert "in part 'b.parquet' of the source, row 40, counted from 0" in caught.value.__notes__
