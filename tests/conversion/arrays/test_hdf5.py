"""Files that h5py wrote as datasets: values, groups, chunks, remote files, and bad files."""

from __future__ import annotations

import gc

import fsspec
import numpy as np
import pytest

import npstream
from npstream.conversion.arrays import hdf5, source
from npstream.conversion.arrays.hdf5 import Hdf5Source
from npstream.conversion.files import find_files
from npstream.conversion.source import SourceRequest
from npstream.errors import FormatError
from npstream.storage.remote import RemoteStore

h5py = pytest.importorskip("h5py")

ROWS = 100
X = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
Y = np.arange(ROWS, dtype=">i2")
TEXTS = [f"ü{number}" for number in range(ROWS)]
TOKENS = [np.arange(number % 5 + 1, dtype=np.int32) for number in range(ROWS)]


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(8, 2, 3), compression="gzip")
        file["y"] = Y
        file["flag"] = Y % 2 == 0
        file["inner/text"] = TEXTS
        file["inner/raw"] = np.array([b"ab", b"c"] * 50)
        tokens = file.create_dataset("inner/tokens", (ROWS,), h5py.vlen_dtype(np.int32))
        tokens[:] = TOKENS
        file["other/z"] = np.arange(7)
    return tmp_path / "a.h5"


def column_names(group=None):
    """Return the names of the datasets that have `ROWS` rows; with `group`, of those in it."""
    names = ["x", "y", "flag", "inner/text", "inner/raw", "inner/tokens"]
    return names if group is None else [n.removeprefix(f"{group}/") for n in names if group in n]


@pytest.mark.parametrize("part_bytes", [1, 1000, 1 << 25])
def test_values_of_all_kinds_are_converted(path, tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(source, "PART_BYTES", part_bytes)
    monkeypatch.setattr(source, "_PART_ROWS", 30)
    report = npstream.convert(path, tmp_path / "out", columns=column_names())
    assert report.columns == {
        "x": "ndarray:float32:2,3", "y": "int16", "flag": "bool", "inner/text": "str",
        "inner/raw": "bytes", "inner/tokens": "ndarray:int32",
    }  # fmt: skip
    ds = npstream.open(tmp_path / "out")
    np.testing.assert_array_equal(ds["x"].load(), X)
    np.testing.assert_array_equal(ds["y"].load(), Y)
    np.testing.assert_array_equal(ds["flag"].load(), Y % 2 == 0)
    assert list(ds["inner/text"]) == TEXTS
    assert list(ds["inner/raw"]) == [b"ab", b"c"] * 50
    for row, tokens in zip(ds["inner/tokens"].load(), TOKENS, strict=True):
        np.testing.assert_array_equal(row, tokens)


def test_a_group_or_a_dataset_can_be_chosen(path, tmp_path):
    report = npstream.convert(path, tmp_path / "in", reader_options={"group": "inner"})
    assert set(report.columns) == set(column_names("inner"))
    report = npstream.convert(path, tmp_path / "z", reader_options={"group": "/other/z"})
    assert report.columns == {"z": "int64"}
    with pytest.raises(ValueError, match=r"no group 'iner'; it has .*/inner/text"):
        npstream.convert(path, "no", reader_options={"group": "iner"})


def test_lengths_that_differ_name_the_datasets(path):
    with pytest.raises(ValueError, match=r"'other/z' has 7 rows.*: name .* or a group of them"):
        npstream.convert(path, "no")


def test_where_filters_also_values_of_varying_size(path, tmp_path):
    where = "len(`inner/tokens`) == 5 and y > 50"
    npstream.convert(path, tmp_path / "out", columns=column_names(), where=where)
    assert npstream.open(tmp_path / "out")["y"].load().tolist() == list(range(54, 100, 5))


def test_parts_are_whole_chunks(path, monkeypatch):
    monkeypatch.setattr(source, "PART_BYTES", 500)  # 20 rows of x
    parts = Hdf5Source(find_files(path), SourceRequest(columns=("x",))).parts()
    assert [part.samples for part in parts] == [16] * 6 + [4]
    np.testing.assert_array_equal(parts[2].open()["x"], X[32:48])


def test_several_remote_files_are_concatenated(path, tmp_path):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.put(str(path), f"memory://hdf5/{number}.h5")
    names = ["inner/text", "y"]
    npstream.convert("memory://hdf5", tmp_path / "out", columns=names)
    ds = npstream.open(tmp_path / "out")
    np.testing.assert_array_equal(ds["y"].load(), np.tile(Y, 3))
    assert list(ds["inner/text"]) == TEXTS * 3


def test_no_garbage_is_collected_while_h5py_reads_a_remote_file(path, tmp_path, monkeypatch):
    fsspec.filesystem("memory").put(str(path), "memory://hdf5-garbage/0.h5")
    ranges, collects = RemoteStore.ranges, []

    def record(self, spans):
        collects.append(gc.isenabled())
        return ranges(self, spans)

    monkeypatch.setattr(RemoteStore, "ranges", record)
    (file,) = find_files("memory://hdf5-garbage").files
    item = hdf5._open_item(file, "/")
    np.testing.assert_array_equal(item["x"][:], X)
    assert collects
    assert not any(collects)
    assert gc.isenabled()


def test_fields_of_a_compound_type_are_columns(tmp_path):
    rows = np.zeros(5, [("a", "f4", (2,)), ("b", "i8")])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["r"] = rows
    report = npstream.convert(tmp_path / "a.h5", tmp_path / "out")
    assert report.columns == {"a": "ndarray:float32:2", "b": "int64"}


def test_values_without_an_encoding_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = X
        file["ref"] = np.array([file["x"].ref] * ROWS, h5py.ref_dtype)
        file["one"] = 3
        file["none"] = h5py.Empty("f4")
        file.create_dataset("bad", data=[b"\xff"] * ROWS, dtype=h5py.string_dtype())
    with pytest.raises(TypeError, match=r"column 'ref': .* have no encoding: leave it out"):
        npstream.convert(tmp_path / "a.h5", "no", columns=["x", "ref"])
    for name in ("one", "none"):
        with pytest.raises(ValueError, match=f"column '{name}': it is a single value"):
            npstream.convert(tmp_path / "a.h5", "no", columns=["x", name])
    with pytest.raises(ValueError, match=r"/bad: a text is not UTF-8"):
        npstream.convert(tmp_path / "a.h5", "no", columns=["bad"])


def test_damaged_files_raise_format_error(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(FormatError, match=r"a.h5: cannot be read as HDF5"):
        npstream.convert(path, "no")
    path.write_bytes(b"no")
    with pytest.raises(FormatError, match=r"a.h5: cannot be read as HDF5"):
        npstream.convert(path, "no")


def test_a_file_without_datasets_raises(tmp_path):
    h5py.File(tmp_path / "a.h5", "w").close()
    with pytest.raises(ValueError, match=r"a.h5: there are no arrays"):
        npstream.convert(tmp_path / "a.h5", "no")
