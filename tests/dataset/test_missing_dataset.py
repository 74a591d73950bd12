"""The error for a path or URL without a dataset describes the directory and gives a fix."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from servers import RemoteDirectory

import npstream
from npstream.dataset import missing_dataset
from npstream.errors import StorageError


def open_error(path, **settings) -> str:
    with pytest.raises((FileNotFoundError, NotADirectoryError)) as caught:
        npstream.open(path, **settings)
    assert isinstance(caught.value, StorageError)
    assert caught.value.filename.endswith("index.json")
    return str(caught.value)


@pytest.fixture
def splits(tmp_path):
    for split in ("train", "val"):
        npstream.write(tmp_path / "d" / split, {"x": np.arange(3)})
    return tmp_path / "d"


def test_a_parent_directory_lists_its_datasets(splits):
    assert "it holds the datasets 'train', 'val': give split='train'" in open_error(splits)
    assert "'d/train', 'd/val': give split='d/train'" in open_error(splits.parent)
    with pytest.raises(StorageError, match="give split='train'"):
        npstream.verify_dataset(splits)
    with pytest.raises(StorageError, match="give split='train'"):
        npstream.build_index(splits)


def test_the_search_below_a_directory_is_limited(tmp_path):
    for number in range(70):
        (tmp_path / f"{number:03}").mkdir()
    npstream.write(tmp_path / "000/a/b/c", {"x": [1]})  # too deep, and behind too many directories
    assert "holds the datasets" not in open_error(tmp_path)


def test_a_missing_split_suggests_a_similar_name(splits):
    assert re.search(r"split='tran': .*did you mean 'train'\?", open_error(splits, split="tran"))
    assert "holds the datasets 'train', 'val'" in open_error(splits, split="zzz")


def test_a_missing_path_suggests_a_similar_name(splits):
    root = splits.parent
    assert f"there is no 'dd' in {str(root)!r}: did you mean 'd'?" in open_error(
        root / "dd" / "train"
    )
    assert f"which is itself a dataset: open {str(splits / 'train')!r}" in open_error(
        splits / "train" / "zzz"
    )
    (root / "empty").mkdir()
    assert "a relative path starts from" in open_error(root / "empty" / "zzz")


def test_a_file_of_a_dataset_names_the_directory_to_open(splits):
    train = splits / "train"
    hint = f"give the directory that holds index.json, {str(train)!r}"
    assert hint in open_error(train / "index.json")
    assert hint in open_error(f"{train}/index.json/")
    assert open_error(train / "index.json").endswith(f"{str(train / 'index.json')!r}")
    assert "file of the dataset in" in open_error(train / "shard.00000.mds")
    (train / "index.json").unlink()
    assert "it is a shard" in open_error(train / "shard.00000.mds")
    assert "it holds 1 shard ('shard.00000.mds'), but no index.json" in open_error(train)


def test_a_device_and_a_link_to_nothing_are_named(tmp_path):
    assert "no dataset is here; it is a device, pipe or socket" in open_error("/dev/null")
    (tmp_path / "link").symlink_to("nowhere")
    assert "it is a link to 'nowhere', which does not exist" in open_error(tmp_path / "link")


def test_an_empty_directory_suggests_to_write_a_dataset(tmp_path):
    assert "the directory is empty: npstream.write" in open_error(tmp_path)


def test_temporary_files_show_an_unfinished_write(tmp_path):
    (tmp_path / ".index.json.12ab.tmp").touch()
    assert "a write is under way, or was interrupted" in open_error(tmp_path)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.csv", "import npstream; npstream.convert('"),
        ("a.JPG", "import npstream; npstream.convert('"),
        ("a.json", "import npstream, json, pathlib; npstream.write('new', json.loads("),
        ("a.bin", "npstream.write writes a dataset, from samples, arrays or tables"),
    ],
)
def test_files_of_other_formats_show_how_to_convert_them(tmp_path, name, advice):
    (tmp_path / name).touch()
    assert advice in open_error(tmp_path / name)
    assert "it is a file" in open_error(tmp_path / name)
    (tmp_path / "README").touch()
    assert advice in open_error(tmp_path)
    assert f"holds 'README', {name!r}" in open_error(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PIL's open files
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
# This test does not write HDF5 files and tars.
@pytest.mark.parametrize(
    "suffix",
    [*missing_dataset._READ_CODE, *sorted(missing_dataset._CONVERTIBLE - {".h5", ".hdf5", ".tar"})],
)
def test_the_code_of_each_hint_runs_as_it_is(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    rows = [{"x": 0}, {"x": 1}, {"x": 2}]
    if suffix in missing_dataset._IMAGE_SUFFIXES:
        PIL = pytest.importorskip("PIL.Image")
        PIL.new("RGB", (3, 2)).save(path)
    elif suffix == ".npy":
        np.save(path, np.arange(3))
    elif suffix == ".npz":
        np.savez(path, x=np.arange(3))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        pytest.importorskip("pyarrow")
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        table = pytest.importorskip("pandas").DataFrame(rows)
        if suffix in (".csv", ".tsv"):
            table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        elif suffix == ".parquet":
            table.to_parquet(path)
        else:
            table.to_feather(path)
    (tmp_path / "README").touch()
    for place in (path, tmp_path):
        message = open_error(place)
        code = re.search(r"import npstream.*; npstream\.(write|convert)\(.*\)(?=: ')", message)[0]
        exec(code, {})
        ds = npstream.open("new")
        if suffix in missing_dataset._IMAGE_SUFFIXES:
            assert ds[0]["image"].size == (3, 2)
        else:
            column = "a" if suffix == ".npy" else "x"
            assert [row[column] for row in ds] == [0, 1, 2]
        shutil.rmtree("new")


def test_a_directory_that_cannot_be_listed_says_why(tmp_path, monkeypatch):
    from npstream.storage.local import LocalStore

    def refuse(_self):
        raise StorageError(13, "no", "x")

    monkeypatch.setattr(LocalStore, "entries", refuse)
    assert "cannot be listed (Permission denied)" in open_error(tmp_path)


def test_urls_without_a_dataset_describe_the_contents(remote_dir: RemoteDirectory, tmp_path):
    options = {"storage_options": remote_dir.storage_options, "cache": tmp_path / "cache"}
    assert "give the directory that holds index.json" in open_error(
        f"{remote_dir.url}/index.json", **options
    )
    empty = open_error(remote_dir.url, **options)
    remote_dir.put("train/index.json", b"{}")
    remote_dir.put("notes.txt", b"")
    text = open_error(remote_dir.url, **options)
    if remote_dir.url.startswith("http"):
        assert "directory that holds index.json" in empty
        assert text == empty
    else:
        assert "nothing is stored" in empty or "is empty" in empty
        assert "it holds the datasets 'train': give split='train'" in text
