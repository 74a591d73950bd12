"""`.npy` and `.npz` files as datasets: values, parts, layouts, remote files, and bad files."""

from __future__ import annotations

import gzip
import zipfile

import fsspec
import numpy as np
import pytest

import npstream
from npstream.conversion.arrays import numpy_files, source
from npstream.conversion.files import find_files
from npstream.conversion.source import SourceRequest
from npstream.errors import ColumnError, FormatError

ROWS = 100
X = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
Y = np.arange(ROWS, dtype=">i2")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(source, "PART_BYTES", 300)  # 12 rows of X


def load(path):
    ds = npstream.open(path)
    return {name: ds[name].load() for name in ds.columns}


def upload(path, bucket):
    """Copy a file or directory to fsspec's memory, and return its URL."""
    url = f"memory://{bucket}/{path.name}"
    fsspec.filesystem("memory").put(str(path), url, recursive=True)
    return url


def test_an_array_is_a_column_of_its_file_s_name(tmp_path, small_parts):
    np.save(tmp_path / "x.npy", X)
    report = npstream.convert(tmp_path / "x.npy", tmp_path / "out")
    assert report.columns == {"x": "ndarray:float32:2,3"}
    np.testing.assert_array_equal(load(tmp_path / "out")["x"], X)


@pytest.mark.parametrize(
    "array",
    [
        Y,
        X.transpose(0, 2, 1),
        np.asfortranarray(X),
        X > 5,
        Y.astype("M8[s]"),
        X.astype(np.complex64)[:, 0, 0],
        np.array(["a", "ünï", ""]),
        np.array([b"ab", b"c"]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
@pytest.mark.parametrize("storage", ["local", "remote", "gzip", "npz", "compressed npz"])
def test_each_array_is_read_from_each_storage(tmp_path, small_parts, array, storage):
    path = tmp_path / "x.npy"
    if "npz" in storage:
        path = tmp_path / "x.npz"
        (np.savez_compressed if "compressed" in storage else np.savez)(path, x=array)
    else:
        np.save(path, array)
    if storage == "gzip":
        pytest.importorskip("pyarrow")
        path = tmp_path / "x.npy.gz"
        path.write_bytes(gzip.compress((tmp_path / "x.npy").read_bytes()))
    npstream.convert(upload(path, "npy") if storage == "remote" else path, tmp_path / "out")
    values = load(tmp_path / "out")["x"]
    if array.dtype.kind in "US":
        assert list(values) == array.tolist()
        return
    assert values.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(values, array)


def test_numbered_files_are_rows_of_one_column(tmp_path, small_parts):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        np.save(folder / f"x-{number}.npy", X[number * 8 : number * 8 + 8])
        np.save(folder / f"y-{number:05}-of-00012.npy", Y[number * 8 : number * 8 + 8])
    report = npstream.convert(folder, tmp_path / "out", where="y % 3 == 0")
    assert report.columns == {"x": "ndarray:float32:2,3", "y": "int16"}
    np.testing.assert_array_equal(load(tmp_path / "out")["x"], X[:96:3])
    np.save(folder / "x-12.npy", X[:, 0])
    with pytest.raises(ValueError, match=r"x-12.npy: its rows have .* shape \(3,\), and those of"):
        npstream.convert(folder, tmp_path / "more")


def test_numbered_files_can_be_columns(tmp_path):
    np.save(tmp_path / "x1.npy", X)
    np.save(tmp_path / "x2.npy", Y)
    options = {"numbered": "columns"}
    report = npstream.convert(f"{tmp_path}/x*.npy", tmp_path / "out", reader_options=options)
    assert list(report.columns) == ["x1", "x2"]
    with pytest.raises(ValueError, match="expected 'rows' or 'columns'"):
        npstream.convert(f"{tmp_path}/x*.npy", "no", reader_options={"numbered": 1})


def test_a_local_file_is_memory_mapped_and_read_in_parts(tmp_path, small_parts):
    np.save(tmp_path / "x.npy", X)
    files = find_files(tmp_path / "x.npy")
    parts = numpy_files.NpySource(files, SourceRequest()).parts()
    assert [part.samples for part in parts] == [12] * 8 + [4]
    rows = parts[1].open()["x"]
    assert len(rows) == 12
    assert isinstance(rows, np.memmap)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_of_an_npz_file_are_read_forward_and_once(tmp_path, monkeypatch, save):
    monkeypatch.setattr(source, "PART_BYTES", 260)  # about ten rows
    save(tmp_path / "a.npz", x=X, y=Y)
    opened = []
    original = zipfile.ZipFile.open

    def record(self, name, *arguments, **options):
        opened.append(name)
        return original(self, name, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", record)
    npstream.convert(tmp_path / "a.npz", tmp_path / "out")
    assert sorted(opened) == ["x.npy", "x.npy", "y.npy", "y.npy"]  # the header, and the rows
    np.testing.assert_array_equal(load(tmp_path / "out")["x"], X)


def test_a_resumed_read_skips_rows(tmp_path, small_parts):
    np.savez_compressed(tmp_path / "a.npz", x=X)
    parts = numpy_files.NpzSource(find_files(tmp_path / "a.npz"), SourceRequest()).parts()
    np.testing.assert_array_equal(parts[3].open()["x"], X[36:48])
    np.testing.assert_array_equal(parts[0].open()["x"], X[:12])  # the file is opened again


def test_the_rows_of_npz_files_are_concatenated(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        np.savez(folder / f"{number}.npz", x=X, y=Y)
    npstream.convert(folder, tmp_path / "out", columns=["y"])
    np.testing.assert_array_equal(load(tmp_path / "out")["y"], np.tile(Y, 3))
    np.savez(folder / "3.npz", x=X, y=X)
    with pytest.raises(ValueError, match=r"3.npz: column 'y' is 'ndarray:float32:2,3', and 'int"):
        npstream.convert(folder, "no")


def test_fields_of_a_structured_array_in_an_archive_are_requested_by_name(tmp_path):
    record = np.array([(1, 2.0), (3, 4.0)], [("x", "<i8"), ("y", "<f8")])
    np.savez(tmp_path / "two.npz", rec=record, other=np.arange(2))
    np.savez(tmp_path / "one.npz", rec=record)
    for file, column in (("two.npz", "rec.y"), ("one.npz", "y")):
        npstream.convert(tmp_path / file, tmp_path / column, columns=[column])
        ds = npstream.open(tmp_path / column)
        assert ds.columns == (column,)
        assert ds[column].load().tolist() == [2.0, 4.0]
    with pytest.raises(ColumnError, match=r"rec\.z"):
        npstream.convert(tmp_path / "two.npz", tmp_path / "no", columns=["rec.z"])


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_fields_of_a_structured_array_are_columns(tmp_path, small_parts):
    dtype = np.dtype([("größe_λ", "f4", (2, 3)), ("y", ">i2"), ("name", "U2")])
    array = np.zeros(ROWS, dtype)
    array["größe_λ"], array["y"], array["name"] = X, Y, "ü"
    np.save(tmp_path / "x.npy", array)  # version 3 of .npy, because λ is not Latin-1
    np.savez(tmp_path / "x.npz", rec=array, z=Y)
    report = npstream.convert(tmp_path / "x.npy", tmp_path / "out")
    assert report.columns == {"größe_λ": "ndarray:float32:2,3", "y": "int16", "name": "str"}
    report = npstream.convert(tmp_path / "x.npz", tmp_path / "two")
    assert list(report.columns) == ["rec.größe_λ", "rec.y", "rec.name", "z"]
    values = load(tmp_path / "two")
    np.testing.assert_array_equal(values["rec.größe_λ"], X)
    assert set(values["rec.name"]) == {"ü"}


def test_lengths_that_differ_name_the_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y[:50], z=Y[:50])
    message = r"a.npz: the arrays differ in length.*'x' has 100 rows, 'y' has 50 rows, 'z' has"
    with pytest.raises(ValueError, match=message):
        npstream.convert(tmp_path / "a.npz", tmp_path / "out")
    npstream.convert(tmp_path / "a.npz", tmp_path / "out", columns=["y", "z"])
    with pytest.raises(ColumnError, match="no column 'yy'; did you mean 'y'"):
        npstream.convert(tmp_path / "a.npz", "no", columns=["yy"])


def test_arrays_without_an_encoding_are_refused_unless_they_are_left_out(tmp_path):
    objects = np.array([{"a": 1}, None] * 50, object)
    np.savez(tmp_path / "a.npz", x=X, o=objects, n=np.int64(3), u=np.full((ROWS, 2), "ab"))
    with pytest.raises(ValueError, match=r"a.npz/o.npy: its values are Python objects .*pickled"):
        npstream.convert(tmp_path / "a.npz", "no")
    with pytest.raises(ValueError, match=r"column 'n': it is a single value"):
        npstream.convert(tmp_path / "a.npz", "no", columns=["x", "n"])
    with pytest.raises(TypeError, match=r"column 'u': .* dtype <U2 and shape \(2,\), have no enc"):
        npstream.convert(tmp_path / "a.npz", "no", columns=["x", "u"])
    npstream.convert(tmp_path / "a.npz", tmp_path / "out", columns=["x"])
    np.save(tmp_path / "o.npy", objects)
    with pytest.raises(ValueError, match="could run code"):
        npstream.convert(tmp_path / "o.npy", "no")


def test_damaged_compressed_files_raise_format_error(tmp_path):
    pytest.importorskip("pyarrow")
    np.save(tmp_path / "x.npy", X)
    body = gzip.compress((tmp_path / "x.npy").read_bytes())
    for damaged in (body[: len(body) // 2], b"no", body[:20] + bytes(50) + body[70:]):
        (tmp_path / "x.npy.gz").write_bytes(damaged)
        with pytest.raises(FormatError, match=r"x\.npy\.gz"):
            npstream.convert(tmp_path / "x.npy.gz", "no")


@pytest.mark.parametrize("storage", ["npy", "npz", "remote"])
def test_damaged_files_raise_format_error(tmp_path, storage):
    path = tmp_path / f"x.{'npz' if storage == 'npz' else 'npy'}"
    (np.savez if storage == "npz" else np.save)(path, X)
    whole = path.read_bytes()
    path.write_bytes(b"not a file of numpy" + whole[19:])
    with pytest.raises(FormatError, match=r"x\.np"):
        npstream.convert(upload(path, "damaged") if storage == "remote" else path, "no")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    # Only npz files have checksums. A damaged value in another file is not noticed, so cut it.
    path.write_bytes(damaged if storage == "npz" else whole[:-100])
    with pytest.raises(FormatError, match=r"x\.np.*(cannot be read as an array of NumPy|Bad CRC)"):
        npstream.convert(upload(path, "damaged") if storage == "remote" else path, "no")


def test_no_rows_keep_the_columns(tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:0], t=np.empty(0, "U3"))
    report = npstream.convert(tmp_path / "a.npz", tmp_path / "out")
    assert report.samples == 0
    assert report.columns == {"x": "ndarray:float32:2,3", "t": "str"}
    np.save(tmp_path / "x.npy", X[:0])
    assert npstream.convert(tmp_path / "x.npy", tmp_path / "npy").samples == 0


def test_encodings_and_fill_can_be_chosen(tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:, 0, 0], y=Y)
    report = npstream.convert(
        tmp_path / "a.npz", tmp_path / "out", columns={"y": "int64", "lang": None, "x": "float64"},
        fill={"lang": "de"},
    )  # fmt: skip
    assert report.columns == {"y": "int64", "lang": "str", "x": "float64"}
    assert npstream.open(tmp_path / "out")["lang"][3] == "de"
