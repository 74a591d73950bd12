"""Tables to write: their keys, the order of their columns, ragged rows, and blocks."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from rewriting import write_and_open

import npstream
from npstream._core.jit import Kernel
from npstream.errors import ColumnError
from npstream.writing import engine

# Keys


def test_surplus_keys_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sample 1 has 'caption', which the first sample lacks"):
        npstream.write(tmp_path / "a", [{"a": 1}, {"a": 2, "caption": "lost"}])
    with pytest.raises(ColumnError, match="sample 1: no column 'b'"):
        npstream.write(tmp_path / "b", [{"a": 1, "b": 2}, {"a": 2, "c": 3}])
    _, ds = write_and_open(tmp_path / "c", [{"a": 1}, {"a": 2, "b": 3}], columns={"a": "int"})
    assert list(ds) == [{"a": 1}, {"a": 2}]


def test_a_refused_sample_or_batch_leaves_nothing(tmp_path):
    with npstream.Writer(tmp_path) as out:
        for first in ({"a": 2**70}, npstream.Batch({"a": np.zeros((1, 0))})):
            with pytest.raises(ValueError):  # noqa: PT011 - the messages differ
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
    report, ds = write_and_open(tmp_path / "columns", data, compression=compression)
    assert tuple(report.columns) == ds.columns == names
    assert tuple(ds[1]) == tuple(next(iter(ds))) == tuple(ds.load()) == names
    assert tuple(ds[["c", "a"]][0]) == ("c", "a")
    assert tuple(npstream.open(tmp_path / "columns", columns=["c", "a"])[1]) == ("c", "a")
    columns = {name: report.columns[name] for name in names}
    rows = [{name: data[name][k] for name in sorted(names)} for k in range(3)]
    _, by_row = write_and_open(tmp_path / "rows", rows, columns=columns)
    assert by_row.columns == names
    remote = npstream.open(upload(tmp_path / "columns"), cache=tmp_path / "cache")
    assert tuple(remote[0]) == names
    index = json.loads((tmp_path / "columns" / "index.json").read_text())
    assert index["shards"][0]["column_names"] == ["a", "b", "c"]
    assert ("npstream" in index) == (names != ("a", "b", "c"))


def test_a_structured_array_has_the_order_of_the_columns(tmp_path):
    _, ds = write_and_open(tmp_path, {"b": np.arange(3), "a": np.zeros(3, bool)})
    assert np.asarray(ds).dtype.names == ("b", "a")


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
        report, ds = write_and_open(tmp_path / str(number), {"x": ragged[1:]})
        assert report.columns == {"x": encoding}
        one_by_one = npstream.write(tmp_path / f"{number}r", {"x": rows[1:]})
        assert one_by_one.columns == report.columns
        a, b = (
            (tmp_path / name / "shard.00000.mds").read_bytes()
            for name in (str(number), f"{number}r")
        )
        assert a == b
        pairs = zip(ds["x"], rows[1:], strict=True)
        assert all(np.array_equal(actual, expected) for actual, expected in pairs)


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


# Blocks


@pytest.mark.parametrize("compiled", [False, True], ids=["python", "compiled"])
@pytest.mark.parametrize("block", [1, 100, 1 << 23])
@pytest.mark.parametrize("shard_size", [None, 1, 700, 1500])
def test_shards_of_blocks_are_those_of_samples(shard_size, block, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_BYTES", block)
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


def test_numba_is_imported_only_for_many_ragged_rows(tmp_path):
    """Tables of lists and arrays do not need Numba. Ragged rows need it only if there are many."""
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
shard._MAX_PYTHON_SPANS = 0
npstream.write(root + "/c", {"x": ragged, "y": np.arange(100)})
assert "numba" in sys.modules
for name in "bc":
    assert npstream.open(root + "/" + name)["x"][99].tolist() == [0]
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
