"""Arrays and groups that zarr wrote, of both versions of the format, as datasets."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest

import npstream
from npstream.conversion.arrays import source
from npstream.conversion.arrays.zarr import ZarrSource
from npstream.conversion.files import find_files
from npstream.conversion.source import SourceRequest, recognize_kind
from npstream.errors import FormatError

zarr = pytest.importorskip("zarr", "3")

ROWS = 100
X = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
Y = np.arange(ROWS, dtype=np.int16)
TEXTS = [f"ü{number}" for number in range(ROWS)]


def create(group, name, values, **options):
    array = group.create_array(name, shape=np.shape(values), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the type of text has no final specification
        array[...] = values


@pytest.fixture(params=[2, 3])
def path(tmp_path, request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=request.param)
        create(group, "x", X, dtype="f4", chunks=(8, 2, 3))
        create(group, "y", Y, dtype="i2", chunks=(30,))
        create(group, "inner/text", TEXTS, dtype=str, chunks=(50,))
        create(group, "inner/flag", Y % 2 == 0, dtype=bool)
        create(group, "other/z", np.arange(7), dtype="i8")
    return tmp_path / "a.zarr"


COLUMNS = {"x": "ndarray:float32:2,3", "y": "int16", "inner/text": "str", "inner/flag": "bool"}


def assert_values(path):
    ds = npstream.open(path)
    np.testing.assert_array_equal(ds["x"].load(), X)
    np.testing.assert_array_equal(ds["y"].load(), Y)
    np.testing.assert_array_equal(ds["inner/flag"].load(), Y % 2 == 0)
    assert list(ds["inner/text"]) == TEXTS


@pytest.mark.parametrize("part_bytes", [1, 1 << 25])
def test_a_group_is_columns(path, tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(source, "PART_BYTES", part_bytes)
    monkeypatch.setattr(source, "_PART_ROWS", 30)
    report = npstream.convert(path, tmp_path / "out", columns=list(COLUMNS))
    assert report.columns == COLUMNS
    assert_values(tmp_path / "out")


def test_remote_groups_are_converted(path, tmp_path, servers):
    remote_dir = servers["s3"].new_directory()
    for file in path.rglob("*"):
        if file.is_file():
            remote_dir.put(f"data/a.zarr/{file.relative_to(path)}", file.read_bytes())
    url, options = f"{remote_dir.url}/data/a.zarr", remote_dir.storage_options
    npstream.convert(url, tmp_path / "out", columns=list(COLUMNS), source_options=options)
    assert_values(tmp_path / "out")


def test_an_array_is_a_column_of_its_directory_s_name(path, tmp_path):
    report = npstream.convert(path / "x", tmp_path / "out")
    assert report.columns == {"x": "ndarray:float32:2,3"}
    report = npstream.convert(path, tmp_path / "y", reader_options={"group": "/y"})
    assert report.columns == {"y": "int16"}
    report = npstream.convert(path, tmp_path / "inner", reader_options={"group": "inner"})
    assert report.columns == {"flag": "bool", "text": "str"}
    # A remote directory without the extension .zarr is not recognized, so the kind is named.
    fsspec.filesystem("memory").put(str(path), "memory://zarr/renamed", recursive=True)
    report = npstream.convert("memory://zarr/renamed/y", tmp_path / "memory", kind="zarr")
    assert report.samples == ROWS


def test_parts_are_whole_chunks(path, monkeypatch):
    monkeypatch.setattr(source, "PART_BYTES", 500)  # 20 rows of x
    request = SourceRequest(columns=("x",))
    parts = ZarrSource(find_files(path), request).parts()
    assert [part.samples for part in parts] == [16] * 6 + [4]
    parts = ZarrSource(find_files(path), SourceRequest(columns=("x", "y"))).parts()
    assert [part.samples for part in parts] == [100]  # 120 rows are whole chunks of both


def test_parts_are_whole_shards_of_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PART_BYTES", 1)
    array = zarr.create_array(
        tmp_path / "s.zarr", shape=X.shape, dtype="f4", chunks=(5, 2, 3), shards=(25, 2, 3)
    )
    array[...] = X
    parts = ZarrSource(find_files(tmp_path / "s.zarr"), SourceRequest()).parts()
    assert [part.samples for part in parts] == [25] * 4
    npstream.convert(tmp_path / "s.zarr", tmp_path / "out")
    np.testing.assert_array_equal(npstream.open(tmp_path / "out")["s"].load(), X)


def test_lengths_that_differ_name_the_arrays(path):
    with pytest.raises(ValueError, match=r"'other/z' has 7.* rows: name .* or a group of them"):
        npstream.convert(path, "no")


class Touch:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_objects_that_only_pickle_reads_are_refused_and_not_loaded(tmp_path):
    folder = tmp_path / "o.zarr"
    folder.mkdir()
    metadata = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None,
        "order": "C", "compressor": None, "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(metadata))
    (folder / "0").write_bytes(pickle.dumps(np.array([Touch(tmp_path / "ran")], object)))
    with pytest.raises((TypeError, FormatError), match=r"o\.zarr"):
        npstream.convert(folder, "no")
    assert not (tmp_path / "ran").exists()


def test_directories_are_recognized(path, tmp_path):
    assert recognize_kind(find_files(path)).kind == "zarr"
    assert recognize_kind(find_files(path / "x")).kind == "zarr"
    fsspec.filesystem("memory").put(str(path), "memory://zarr2/a.zarr", recursive=True)
    assert recognize_kind(find_files("memory://zarr2/a.zarr")).kind == "zarr"
    with pytest.raises(ValueError, match="directories or zip files: give a single one"):
        npstream.convert([path / "x", path / "y"], "no", kind="zarr")


def test_damaged_chunks_raise_format_error(path, tmp_path):
    for file in (path / "x").rglob("*"):
        if file.is_file() and not file.name.startswith(("zarr", ".z")):  # not the metadata
            file.write_bytes(b"damaged")
    with pytest.raises(FormatError, match=r"a.zarr/x: cannot be read as Zarr"):
        npstream.convert(path, tmp_path / "out", columns=["x"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("has_folder", [False, True])
def test_zip_files_are_converted(has_folder, path, tmp_path, servers):
    """The files of the store are at the root of the zip file, or in a directory of it."""
    archive = tmp_path / "a.zarr.zip"
    root, base = (path.parent, path.name) if has_folder else (path, ".")
    shutil.make_archive(str(archive.with_suffix("")), "zip", root, base)
    remote_dir = servers["s3"].new_directory()
    remote_dir.put("a.zarr.zip", archive.read_bytes())
    columns = list(COLUMNS)
    for number, (source_path, options) in enumerate(
        [(archive, None), (remote_dir.url + "/a.zarr.zip", remote_dir.storage_options)]
    ):
        out = tmp_path / f"out{number}"
        npstream.convert(source_path, out, columns=columns, source_options=options)
        assert_values(out)
    npstream.convert(archive, tmp_path / "z", reader_options={"group": "other/z"})
    assert npstream.open(tmp_path / "z")["z"].load().tolist() == list(range(7))


def test_a_damaged_zip_file_raises(tmp_path):
    (tmp_path / "a.zarr.zip").write_bytes(b"no zip")
    with pytest.raises(FormatError, match=r"a.zarr.zip: cannot be read as Zarr: File is not a zip"):
        npstream.convert(tmp_path / "a.zarr.zip", tmp_path / "out")
