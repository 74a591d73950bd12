"""Arrow's tables and streams are written from their buffers, with the same bytes as their rows."""

from __future__ import annotations

import datetime
import decimal
import json

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from rewriting import write_and_open

import npstream
from npstream._core.jit import Kernel
from npstream.writing import engine
from npstream.writing.inputs.arrow_columns import ArrowColumn

DAY = datetime.date(2020, 1, 2)
TIME = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
SPAN = datetime.timedelta(days=1, microseconds=7)


class StreamTable:
    """A table of an unknown library, which has only Arrow's stream interface."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


# Types

TYPES = {
    pa.bool_(): ("bool", [True, False, True]),
    pa.bool8(): ("bool", [True, False, True]),
    **{
        kind: (str(kind), [0, 1, 100])
        for kind in (
            *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
            *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        )
    },
    pa.float16(): ("float16", [1.5, float("inf"), -2]),
    pa.float32(): ("float32", [1.5, float("nan"), -2]),
    pa.float64(): ("float64", [1.5, float("nan"), -2]),
    **dict.fromkeys(
        (pa.string(), pa.large_string(), pa.string_view()),
        ("str", ["", "é", "more than twelve bytes"]),
    ),
    **dict.fromkeys(
        (pa.binary(), pa.large_binary(), pa.binary_view()),
        ("bytes", [b"", b"\0", b"more than twelve bytes"]),
    ),
    pa.binary(2): ("bytes", [b"ab", b"cd", b"\0\0"]),
    pa.uuid(): ("bytes", [b"0123456789abcdef", b"\0" * 16, b"\xff" * 16]),
    pa.json_(): ("str", ["{}", "[1]", "null"]),
    pa.decimal128(10, 2): ("str_decimal", ["1.50", "-0.01", "0.00"]),
    pa.decimal128(20, 12): ("str_decimal", ["0.000000000001", "-1.000000000000", "0E-12"]),
    pa.decimal256(40, 3): ("str_decimal", ["1.500", "-0.001", "1234567890123.000"]),
    pa.date32(): ("datetime64[D]", [DAY, datetime.date(1900, 1, 1), DAY]),
    pa.date64(): ("datetime64[ms]", [DAY, datetime.date(1900, 1, 1), DAY]),
    **{
        pa.timestamp(unit): (f"datetime64[{unit}]", [TIME.replace(microsecond=0)] * 3)
        for unit in ("s", "ms", "us", "ns")
    },
    **{
        pa.duration(unit): (f"timedelta64[{unit}]", [datetime.timedelta(seconds=5)] * 3)
        for unit in ("s", "ms", "us", "ns")
    },
    pa.list_(pa.int16()): ("ndarray:int16", [[1], [2, 3], [4, 5, 6]]),
    pa.large_list(pa.float32()): ("ndarray:float32", [[1.0], [2.0, 3.0], [4.0]]),
    pa.list_(pa.bool_()): ("ndarray:bool", [[True], [False, True], [True]]),
    pa.list_(pa.timestamp("us")): ("ndarray:datetime64[us]", [[TIME], [TIME, TIME], [TIME]]),
    pa.list_view(pa.int16()): ("ndarray:int16", [[1], [2, 3], [4, 5, 6]]),
    pa.list_(pa.int16(), 2): ("ndarray:int16:2", [[1, 2], [3, 4], [5, 6]]),
    pa.list_(pa.bool_(), 2): ("ndarray:bool:2", [[True, False], [False, True], [True, True]]),
    pa.list_(pa.list_(pa.uint8(), 2), 1): ("ndarray:uint8:1,2", [[[1, 2]], [[3, 4]], [[5, 6]]]),
    pa.dictionary(pa.int8(), pa.string()): ("str", ["a", "b", "a"]),
    pa.dictionary(pa.int8(), pa.int32()): ("int32", [7, 8, 7]),
    pa.struct({"a": pa.int8(), "b": pa.string()}): (
        "json",
        [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None],
    ),
    pa.list_(pa.string()): ("json", [["a"], [], None]),
    pa.list_(pa.list_(pa.int8())): ("json", [[[1], []], [], [[2, 3]]]),
    pa.map_(pa.string(), pa.int8()): ("json", [{"a": 1}, {}, {"b": 2, "c": 3}]),
}
"""Arrow types, the encodings that they become, and values of three rows."""


def array_of(kind, values):
    if isinstance(kind, pa.BaseExtensionType):
        stored = pa.array(values).cast(kind.storage_type)
        return pa.ExtensionArray.from_storage(kind, stored)
    if pa.types.is_decimal(kind):
        values = [decimal.Decimal(value) for value in values]
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if pa.types.is_map(kind):
        values = [list(value.items()) for value in values]
    return pa.array(values, kind)


def value_of(value, encoding):
    """Return the value that a sample has for a Python value and an encoding."""
    if value is None or encoding in ("json", "str", "bytes"):
        return value
    if encoding == "str_decimal":
        return decimal.Decimal(value)
    name = encoding.removeprefix("ndarray:").partition(":")[0]
    if name.startswith(("datetime", "timedelta")) or encoding.startswith("ndarray:"):
        value = np.array(value, name)
    return value if getattr(value, "ndim", 0) else np.array(value, name)[()]


def shards(path):
    return [file.read_bytes() for file in sorted(path.glob("*.mds"))]


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "compiled"])
@pytest.mark.parametrize("form", ["table", "slice", "chunks", "stream"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_every_type_is_stored_as_its_rows_would_be(kind, form, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(Kernel, "is_loaded", property(lambda self: compiled))
    encoding, values = TYPES[kind]
    array = array_of(kind, values)
    if form == "slice":
        array, values = array[1:], values[1:]
    elif form == "chunks":
        array = pa.chunked_array([array[:1], array[1:1], array[1:]])
    table = pa.table({"n": pa.array([str(k) for k in range(len(array))]), "x": array})
    data = StreamTable(table) if form == "stream" else table
    report, ds = write_and_open(tmp_path / "a", data, shard_size=None)
    assert report.columns == {"n": "str", "x": encoding}
    rows = [{"n": str(k), "x": value_of(v, encoding)} for k, v in enumerate(values)]
    npstream.write(tmp_path / "b", rows, columns=report.columns, shard_size=None)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert len(ds) == len(values)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_table_without_rows_keeps_its_columns(kind, tmp_path):
    empty = pa.schema({"x": kind}).empty_table()
    for number, data in enumerate((empty, empty.to_reader(), StreamTable(empty))):
        report, ds = write_and_open(tmp_path / str(number), data)
        assert report.columns == {"x": TYPES[kind][0]}
        assert len(ds) == 0


def test_a_fixed_shape_tensor_array(tmp_path):
    rows = np.arange(24, dtype="f4").reshape(4, 3, 2)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
    report, ds = write_and_open(tmp_path / "a", pa.table({"x": tensors})[1:])
    assert report.columns == {"x": "ndarray:float32:3,2"}
    assert np.array_equal(ds["x"].load(), rows[1:])


UNKNOWN = {
    pa.time32("s"): (datetime.time(1), r"Arrow's time32\[s\]: cast the column to int64 or string"),
    pa.time64("us"): (datetime.time(1), r"Arrow's time64\[us\]: cast the column to int64"),
    pa.month_day_nano_interval(): ((1, 2, 3), "interval: cast the column to int64 or string"),
    pa.timestamp("us", "UTC"): (TIME, "has a time zone, .*: cast the column to a timestamp"),
    pa.struct({"a": pa.date32()}): ({"a": DAY}, r"JSON, which cannot store date32\[day\]: make"),
    pa.list_(pa.binary()): ([b"a"], "JSON, which cannot store binary: cast its values"),
    pa.list_(pa.struct({"a": pa.decimal128(5)})): (
        [{"a": 1}],
        "cannot store decimal.*: cast",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN, ids=str)
def test_the_error_of_a_type_without_an_encoding_names_two_fixes(kind, tmp_path):
    value, words = UNKNOWN[kind]
    table = pa.table({"y": [1], "x": pa.array([value], kind)})
    for data in (table, table.to_reader()):
        with pytest.raises(TypeError, match=f"column 'x': .*{words}.* or "):
            npstream.write(tmp_path / "a", data)
        assert not (tmp_path / "a").exists()
    report = npstream.write(tmp_path / "a", table, columns={"y": "int64"})
    assert report.columns == {"y": "int64"}


def test_a_null_column_needs_a_type(tmp_path):
    with pytest.raises(ValueError, match="sample 0: column 'x': 2 nulls in 2 values"):
        npstream.write(tmp_path / "a", pa.table({"x": pa.nulls(2)}))
    with pytest.raises(TypeError, match="column 'x': no encoding follows from Arrow's null"):
        npstream.write(tmp_path / "a", pa.table({"x": pa.nulls(0)}))


# Kinds of tables


def test_all_kinds_of_arrow_tables(tmp_path):
    table = pa.table({"a": list(range(5)), "s": [str(k) for k in range(5)]})
    pyarrow.parquet.write_table(table, tmp_path / "file.parquet")
    dataset = pyarrow.dataset.dataset(tmp_path / "file.parquet")
    struct = pa.StructArray.from_arrays(
        [column.combine_chunks() for column in table.columns], table.schema.names
    )
    for number, data in enumerate([
        table,
        table.to_batches()[0],
        table.to_reader(max_chunksize=2),
        dataset,
        dataset.scanner(),
        StreamTable(table),
        struct,
        pyarrow.parquet.ParquetFile(tmp_path / "file.parquet").iter_batches(2),
        table.to_batches(max_chunksize=2),
        [table[:2], table[2:].to_reader(max_chunksize=1)],
    ]):  # fmt: skip
        report, ds = write_and_open(tmp_path / str(number), data)
        assert report.columns == {"a": "int64", "s": "str"}
        assert ds["a"].load().tolist() == list(range(5))
        assert list(ds["s"]) == list("01234")


@pytest.mark.parametrize("shard_size", [None, 1, 300])
def test_shards_do_not_depend_on_batches(shard_size, tmp_path):
    table = pa.table({"a": np.arange(100), "b": np.arange(100, dtype="i2")})
    npstream.write(tmp_path / "a", table, shard_size=shard_size)
    for rows in (1, 7, 100):
        path = tmp_path / str(rows)
        npstream.write(path, table.to_reader(max_chunksize=rows), shard_size=shard_size)
        assert shards(path) == shards(tmp_path / "a")
        assert (path / "index.json").read_bytes() == (tmp_path / "a/index.json").read_bytes()


def test_a_stream_is_read_batch_by_batch(tmp_path):
    shard_counts = []

    def batches(path):
        for k in range(20):
            shard_counts.append(len([*path.glob("*.mds")]))
            yield pa.record_batch({"x": np.full(1000, k), "s": ["a" * 100] * 1000})

    schema = pa.schema({"x": pa.int64(), "s": pa.string()})
    reader = pa.RecordBatchReader.from_batches(schema, batches(tmp_path / "b"))
    for path, data in (
        (tmp_path / "a", batches(tmp_path / "a")),
        (tmp_path / "b", StreamTable(reader)),
    ):
        shard_counts.clear()
        npstream.write(path, data, shard_size=100_000)
        assert len(shard_counts) == 20
        assert shard_counts[-1] >= 10  # shards are stored while batches are read
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def test_small_blocks_give_the_same_shards(tmp_path, monkeypatch):
    table = pa.table({
        "a": pa.array([[k] * (k + 1) for k in range(30)], pa.list_(pa.int16())),
        "d": pa.array([str(k % 3) for k in range(30)]).dictionary_encode(),
        "s": pa.array([str(k) * k for k in range(30)], pa.string_view()),
        "x": pa.array([k % 2 == 0 for k in range(30)]),
    })  # fmt: skip
    npstream.write(tmp_path / "a", table)
    monkeypatch.setattr(engine, "BLOCK_BYTES", 1)
    npstream.write(tmp_path / "b", table)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def test_the_size_of_a_row_is_that_of_its_decoded_value():
    rows = 10_000
    text = pa.array(["x" * 100] * rows, pa.string_view())
    lists = pa.array([[1] * 100] * rows, pa.list_view(pa.int8()))
    for array in (
        text,
        text.cast(pa.binary_view()),
        text.dictionary_encode(),
        lists,
        pa.RunEndEncodedArray.from_arrays([rows], pa.array(["x" * 100])),
        pa.array(["x" * 100] * rows),
    ):
        for part in (array, array[:10], pa.chunked_array([array, array])):
            # A row has 100 bytes of data, and a few of offsets, sizes or views.
            assert 100 <= ArrowColumn(part).row_bytes <= 120


# Other encodings


def test_lists_become_arrays_of_another_dtype_or_shape(tmp_path):
    table = pa.table({"x": [[1, 2], [3, 65535]]})
    _, ds = write_and_open(tmp_path / "a", table, columns={"x": "ndarray:uint16"})
    assert ds["x"][1].tolist() == [3, 65535]
    _, ds = write_and_open(tmp_path / "b", table, columns={"x": "ndarray:uint16:2"})
    assert ds["x"].load().tolist() == [[1, 2], [3, 65535]]
    fixed = table.cast(pa.schema({"x": pa.list_(pa.int64(), 2)}))
    _, ds = write_and_open(tmp_path / "c", fixed, columns={"x": "ndarray:uint16:2"})
    assert ds["x"].load().tolist() == [[1, 2], [3, 65535]]
    for data, encoding in ((table, "ndarray:int16"), (fixed, "ndarray:int16:2")):
        with pytest.raises(ValueError, match=f"sample 1: column 'x': '{encoding}' cannot hold 655"):
            npstream.write(tmp_path / "d", data, columns={"x": encoding})
    ragged = pa.table({"x": [[1, 2], [3]]})
    with pytest.raises(ValueError, match="sample 1: column 'x': its list has 1 element, and 'nda"):
        npstream.write(tmp_path / "d", ragged, columns={"x": "ndarray:int64:2"})
    _, ds = write_and_open(tmp_path / "e", pa.table({"x": [[1], []]}), columns={"x": "json"})
    assert list(ds["x"]) == [[1], []]


def test_columns_choose_encodings_and_leave_out_others(tmp_path):
    table = pa.table({"a": [1, 2], "b": ["1", "2"], "c": [b"\xff\xd8", b"\xff\xd8\xff"]})
    columns = {"c": "jpeg", "a": "uint8"}
    report, _ = write_and_open(tmp_path / "a", table, columns=columns)
    assert report.columns == columns
    with pytest.raises(ValueError, match="sample 1: column 'a' is 'bool' and cannot take"):
        npstream.write(tmp_path / "b", table, columns={"a": "bool"})
    with pytest.raises(npstream.errors.ColumnError, match="no column 'aa'; did you mean 'a'"):
        npstream.write(tmp_path / "b", table, columns={"aa": "int64"})
    with pytest.raises(TypeError, match="sample 0: column 'b' is 'int64' and cannot take this str"):
        npstream.write(tmp_path / "b", table.to_reader(), columns={"b": "int64"})


def test_text_that_is_not_utf_8(tmp_path):
    offsets, data = pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, data])
    with pytest.raises(ValueError, match=r"column 'x': .*UTF-?8"):
        npstream.write(tmp_path / "a", pa.table({"x": broken}))


# Nulls


# JSON stores nulls.
REFUSING_NULLS = [kind for kind, (encoding, _) in TYPES.items() if encoding != "json"]


@pytest.mark.parametrize("kind", REFUSING_NULLS, ids=str)
def test_the_error_of_a_null_names_sample_and_column(kind, tmp_path):
    part = array_of(kind, TYPES[kind][1])
    nulls = pa.concat_arrays([part[:1], pa.nulls(1, part.type)])
    table = pa.table({"x": pa.chunked_array([part, nulls])})
    for data in (table, table.to_reader(), [table[:2], table[2:]]):
        with pytest.raises(ValueError, match=r"^sample 4: column 'x': 1 null in .* give fill= a"):
            npstream.write(tmp_path / "a", data)
        assert not (tmp_path / "a").exists()


def test_json_refuses_repeated_keys_and_keys_that_are_not_text(tmp_path):
    rows = [[("a", 1)], [("a", 1), ("a", 2)]]
    table = pa.table({"x": pa.array(rows, pa.map_(pa.string(), pa.int8()))})
    with pytest.raises(ValueError, match="sample 1: column 'x': its keys or fields have one name"):
        npstream.write(tmp_path / "a", table)
    numbers = pa.table({"x": pa.array([[(1, 1)]], pa.map_(pa.int8(), pa.int8()))})
    with pytest.raises(TypeError, match=r"sample 0: column 'x' .* its key 1 would become text"):
        npstream.write(tmp_path / "a", numbers)
    fields = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    with pytest.raises(ValueError, match="sample 0: column 'x': its keys or fields have one name"):
        npstream.write(tmp_path / "a", pa.table({"x": fields}))


def test_categories_that_are_null(tmp_path):
    values = pa.array(["a", None])
    array = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 0]), values)
    for data in (pa.table({"x": array}), pa.table({"x": array}).to_reader(max_chunksize=1)):
        with pytest.raises(ValueError, match="sample 2: column 'x': 1 null in"):
            npstream.write(tmp_path / "a", data)


def test_a_source_that_fails_publishes_nothing(tmp_path):
    def batches():
        yield pa.record_batch({"x": [1]})
        raise OSError("the source is gone")

    reader = pa.RecordBatchReader.from_batches(pa.schema({"x": pa.int64()}), batches())
    for data in (reader, batches()):
        with pytest.raises(OSError, match="the source is gone"):
            npstream.write(tmp_path / "a", data)
        assert not (tmp_path / "a").exists()


def test_nulls_within_lists(tmp_path):
    for kind in (pa.list_(pa.int8()), pa.list_view(pa.int8()), pa.list_(pa.int8(), 2)):
        array = pa.array([[1, 2], [3, 4], [5, None]], kind)
        for data in (pa.table({"x": array}), pa.table({"x": array}).to_reader(max_chunksize=1)):
            with pytest.raises(ValueError, match=r"^sample 2: column 'x': its list has a null"):
                npstream.write(tmp_path / "a", data)


# Names


def test_names_that_clash(tmp_path):
    table = pa.table([[1], [2], [3]], names=["a", "b", "a"])
    for data in (table, table.to_reader()):
        with pytest.raises(ValueError, match="column 'a': two columns have this name: rename one"):
            npstream.write(tmp_path / "a", data)
    report, ds = write_and_open(tmp_path / "b", table, columns={"b": "int64"})
    assert report.columns == {"b": "int64"}
    assert ds[0] == {"b": 2}


# Any table


COLUMNS = {
    "a": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "b": (pa.string(), st.text(max_size=20)),
    "c": (pa.large_binary(), st.binary(max_size=20)),
    "d": (pa.string_view(), st.text(max_size=20)),
    "e": (pa.list_(pa.uint8()), st.lists(st.integers(0, 255), min_size=1, max_size=300)),
    "f": (pa.bool_(), st.booleans()),
    "g": (pa.decimal128(30, 8), st.decimals(-(10**9), 10**9, places=8)),
    "h": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["", "x", "y" * 20])),
    "i": (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_table_is_stored_as_its_rows_would_be(data, tmp_path_factory):
    names = data.draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, unique=True))
    count = data.draw(st.integers(1, 12))
    columns = {
        name: data.draw(st.lists(COLUMNS[name][1], min_size=count, max_size=count))
        for name in names
    }
    table = pa.table({n: pa.array(v, COLUMNS[n][0]) for n, v in columns.items()})
    start = data.draw(st.integers(0, count - 1))
    rows = data.draw(st.integers(1, count))
    path = tmp_path_factory.mktemp("any")
    report = npstream.write(path / "a", table[start:].to_reader(max_chunksize=rows), shard_size=200)
    npstream.write(path / "b", table[start:], shard_size=200)
    samples = [
        {n: np.array(v[k], "u1") if n == "e" else v[k] for n, v in columns.items()}
        for k in range(start, count)
    ]
    npstream.write(path / "c", samples, columns=report.columns, shard_size=200)
    assert shards(path / "a") == shards(path / "b") == shards(path / "c")
    index = json.loads((path / "a/index.json").read_text())
    assert index == json.loads((path / "c/index.json").read_text())
