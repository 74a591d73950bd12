"""Values of npstream's datasets are copied in their stored form, without decoding."""

from __future__ import annotations

import ctypes
import decimal
import json

import numpy as np
import pytest
from golden_data import FORMATS
from PIL import Image
from rewriting import jpeg, write_and_open

import npstream
from npstream.errors import ColumnError, FormatError
from tests._core.test_dtypes import assert_same

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
    source = ds._source
    part = source.bodies(source.plan((name,)), source.look_up(ds._selection.ids()))[name]
    spans = zip(part.address.tolist(), part.nbytes.tolist(), strict=True)
    return [ctypes.string_at(address, nbytes) for address, nbytes in spans]


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
    for k, url in enumerate([root, upload(root)]):
        ds = VIEWS[view](npstream.open(url, cache=tmp_path / "cache", allow_pickle=True))
        report, copy = write_and_open(
            tmp_path / str(k), ds, compression=compression, shard_size="4KiB"
        )
        assert list(report.columns.items()) == list(columns.items())
        assert copy.columns == ds.columns
        assert copy.dtypes == ds.dtypes
        assert [copy[name].shape for name in columns] == [ds[name].shape for name in columns]
        assert bodies(copy) == bodies(ds)


def test_nothing_is_decoded_for_a_copy(source, tmp_path, monkeypatch):
    root, columns = source
    ds = npstream.open(root, allow_pickle=True)
    monkeypatch.setattr("npstream.reading.decode._decode_rows", None)
    monkeypatch.setattr("npstream.reading.decode.sample_values", None)
    monkeypatch.setattr("npstream.formats.encodings.encodings.Encoding.encode", None)
    assert npstream.write(tmp_path, ds).columns == columns


def test_columns_and_batches_keep_their_encodings(source, tmp_path):
    root, columns = source
    ds = npstream.open(root, allow_pickle=True)
    rows = ds[[3, 1, 4, 1, 5]]
    expected = bodies(rows)
    for name, data in {
        "columns": {name: rows[name] for name in columns},
        "batch": rows.load(),
        "batches": rows.iter(0, 1, batch_size=2, last="short"),
        "copied batch": rows.load().copy(),
    }.items():
        report, copy = write_and_open(tmp_path / name, data)
        assert list(report.columns.items()) == list(columns.items())
        assert bodies(copy) == expected
    report, copy = write_and_open(tmp_path / "top", ds["text"][:3])
    assert report.columns == {"text": "str"}
    loaded = {name: rows[name].load() for name in ("text", "image", "array", "raw", "tokens")}
    report, copy = write_and_open(tmp_path / "ragged", loaded)
    assert report.columns == {name: columns[name] for name in loaded}
    assert bodies(copy) == {name: expected[name] for name in loaded}
    tensors = rows[["tokens", "array", "number", "seen"]].load().to_torch()
    report, copy = write_and_open(tmp_path / "tensors", tensors)
    assert report.columns == {name: columns[name] for name in tensors}
    assert bodies(copy) == {name: expected[name] for name in tensors}


def test_a_batch_that_was_edited(source, tmp_path):
    batch = npstream.open(source[0], allow_pickle=True)[:3].load()
    del batch["object"], batch["images"], batch["files"]
    batch["number"] = np.array(["a", "b", "c"])
    batch["label"] = batch["label"] * 0.5
    batch["new"] = np.arange(3) * 1j
    batch["tokens"] = batch["tokens"][:, :2]
    report, ds = write_and_open(tmp_path, batch)
    changed = {name: report.columns[name] for name in ("number", "label", "new", "tokens")}
    assert changed == {
        **{"number": "str", "label": "float64", "new": "complex128"},
        "tokens": "ndarray:uint16:2",
    }
    assert report.columns["image"] == "jpeg"
    assert ds[2]["new"] == 2j


def test_batches_with_repeated_rows_are_refused(source, tmp_path):
    ds = npstream.open(source[0], columns=["number"])[:5]
    with pytest.raises(ValueError, match=r"repeats 1 row to be full.*last='short'"):
        npstream.write(tmp_path / "out", ds.iter(0, 1, batch_size=2))
    _, copy = write_and_open(tmp_path / "short", ds.iter(0, 1, batch_size=2, last="short"))
    assert list(copy["number"]) == list(range(5))


def test_parts_of_columns(source, tmp_path):
    ds = npstream.open(source[0], allow_pickle=True)
    tokens = ds["tokens"].load()
    report, copy = write_and_open(
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
    assert_same(copy["cut"].load(), tokens[::2, 1:3])
    assert_same(copy["one"].load(), tokens[::2, 0])
    assert_same(copy["matrix"].load(), np.arange(20, dtype="i4").reshape(10, 2))
    assert_same(copy["picked"].load(), tokens[::2, [0, 3]])
    with pytest.raises(ValueError, match="column 'x': column 'text' has 2 axes"):
        npstream.write(tmp_path / "b", {"x": ds["text"][np.arange(20).reshape(10, 2)]})
    with pytest.raises(ValueError, match=r"shape \(10, 2\) is not a sequence of samples.*ravel"):
        npstream.write(tmp_path / "b", ds[np.arange(20).reshape(10, 2)])
    with pytest.raises(TypeError, match="a Ragged is a column without a name"):
        npstream.write(tmp_path / "b", ds["text"].load())
    assert not (tmp_path / "b").exists()


def test_other_encodings_for_a_copy(source, tmp_path):
    ds = npstream.open(source[0], allow_pickle=True)
    chosen = {"number": "float32", "label": "int64", "image": "png", "digits": "json"}
    report, copy = write_and_open(tmp_path / "a", ds[:5], columns=chosen)
    assert report.columns == chosen
    assert_same(copy["number"].load(), np.arange(5, dtype="f4"))
    assert copy["digits"][4] == 10**4
    assert copy["image"][3].tobytes() == ds["image"][3].tobytes()
    with pytest.raises(ValueError, match=r"sample 2: column 'number' is 'bool'.*cannot hold 2"):
        npstream.write(tmp_path / "b", ds, columns={"number": "bool"})
    with pytest.raises(ColumnError, match="no column 'nunber'; did you mean 'number'"):
        npstream.write(tmp_path / "b", ds, columns={"nunber": "bool"})


def test_columns_with_declared_types(source, tmp_path):
    declared = {"raw": "uint16", "tokens": "ndarray:int64:1", "label": ">i4", "number": "M8[D]"}
    ds = npstream.open(source[0], columns=declared, allow_pickle=True)[list(declared)]
    for name, data in {
        "dataset": ds,
        "columns": {column: ds[column] for column in declared},
        "batch": ds.load(),
    }.items():
        report, copy = write_and_open(tmp_path / name, data)
        assert report.columns == {
            **{"raw": "ndarray:uint16", "tokens": "ndarray:int64:1", "label": "int32"},
            "number": "datetime64[D]",
        }
        for actual, expected in zip(copy, ds, strict=True):
            assert all(np.array_equal(actual[column], expected[column]) for column in declared)
    odd = npstream.open(source[0], columns={"number": "S8"}, allow_pickle=True)[["number"]]
    with pytest.raises(ValueError, match=r"column 'number': cannot store an array of dtype \|S8"):
        npstream.write(tmp_path / "odd", odd)


def test_empty_bytes_that_are_opened_as_arrays_are_refused(tmp_path):
    npstream.write(tmp_path / "a", {"x": [b"\1\2", b""]})
    ds = npstream.open(tmp_path / "a", columns={"x": "uint16"})
    with pytest.raises(
        ValueError, match=r"row 1: .*shape \(0,\).*open the dataset without columns="
    ):
        npstream.write(tmp_path / "b", ds)


def test_transformed_samples_are_written_one_by_one(source, tmp_path):
    ds = npstream.open(source[0], columns=["number"])
    view = ds[:3].with_transform(lambda sample: {"half": sample["number"] / 2})
    report, copy = write_and_open(tmp_path / "a", view)
    assert report.columns == {"half": "float64"}
    assert list(copy["half"]) == [0, 0.5, 1]
    _, copy = write_and_open(tmp_path / "b", npstream.mix({"a": view})[:])
    assert list(copy["half"]) == [0, 0.5, 1]


@pytest.mark.parametrize("name", ["jsonl_basic", "csv_basic", "tsv_basic"])
def test_shards_of_text_become_mds(name, tmp_path):
    ds = npstream.open(FORMATS / name)
    chosen = {"n": "str_int"}
    with pytest.raises(OverflowError, match="'str_int' holds any"):
        npstream.write(tmp_path / "a", ds)
    report, copy = write_and_open(tmp_path / "b", ds[["n"]], columns=chosen)
    assert list(copy["n"]) == list(ds["n"])
    other_columns = [column for column in ds.columns if column != "n"]
    report, copy = write_and_open(tmp_path / "c", ds[other_columns])
    assert set(report.columns.values()) <= {"str", "int", "float64"}
    for column in other_columns:
        assert np.array_equal(copy[column], ds[column], equal_nan=report.columns[column] != "str")


def test_merged_shards_whose_columns_have_another_order(tmp_path):
    """Columns are copied by name, although their order in the samples differs."""
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
    _, copy = write_and_open(tmp_path / "copy", ds[[7, 0, 6, 1]])
    assert list(copy) == [{"t": t, "x": x} for t, x in zip("zazb", (2, 0, 1, 1), strict=True)]


def test_a_damaged_sample_is_not_copied(tmp_path):
    npstream.write(tmp_path / "a", {"text": ["a", "bb", "ccc"], "n": [1, 2, 3]})
    (shard,) = (tmp_path / "a").glob("*.mds")
    data = bytearray(shard.read_bytes())
    offset = data.rindex(b"bb") - 12  # the size of the text, which 8 bytes of `n` follow
    assert data[offset] == 2
    data[offset] = 9
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=r"sample 1 .*do not add up"):
        npstream.write(tmp_path / "b", npstream.open(tmp_path / "a"))
    assert not (tmp_path / "b").exists()
