"""What the error of a place without a dataset says is there, and what it says to do."""

from __future__ import annotations

import re

import numpy as np
import pytest
from servers import RemoteDirectory

import npstream
from npstream.errors import StorageError


def said(path, **settings) -> str:
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


def test_the_parent_of_datasets(splits):
    assert "it holds the datasets 'train', 'val': give split='train'" in said(splits)
    assert "'d/train', 'd/val': give split='d/train'" in said(splits.parent)
    with pytest.raises(StorageError, match="give split='train'"):
        npstream.verify_dataset(splits)
    with pytest.raises(StorageError, match="give split='train'"):
        npstream.build_index(splits)


def test_a_search_below_is_bounded(tmp_path):
    for number in range(70):
        (tmp_path / f"{number:03}").mkdir()
    npstream.write(tmp_path / "000/a/b/c", {"x": [1]})
    assert "datasets" not in said(tmp_path)


def test_a_split_that_is_not_there(splits):
    assert re.search(r"split='tran': .*did you mean 'train'\?", said(splits, split="tran"))
    assert "holds the datasets 'train', 'val'" in said(splits, split="zzz")


def test_a_path_that_is_not_there(splits):
    root = splits.parent
    assert f"there is no 'dd' in {str(root)!r}: did you mean 'd'?" in said(root / "dd" / "train")
    assert "which is a dataset itself: open that" in said(splits / "train" / "zzz")
    (root / "empty").mkdir()
    assert "a relative one begins at" in said(root / "empty" / "zzz")


def test_the_index_itself_and_other_files_of_a_dataset(splits):
    train = splits / "train"
    hint = f"give the directory that holds index.json, {str(train)!r}"
    assert hint in said(train / "index.json")
    assert hint in said(f"{train}/index.json/")
    assert "file of the dataset in" in said(train / "shard.00000.mds")
    (train / "index.json").unlink()
    assert "it is a shard" in said(train / "shard.00000.mds")
    assert "it holds 1 shard ('shard.00000.mds'), but no index.json" in said(train)


def test_an_empty_directory(tmp_path):
    assert "the directory is empty: npstream.write" in said(tmp_path)


def test_a_write_that_was_cut_off(tmp_path):
    (tmp_path / ".index.json.12ab.tmp").touch()
    assert "a write is under way, or was cut off" in said(tmp_path)


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("a.csv", "dict(pandas.read_csv('"),
        ("a.parquet", "dict(pandas.read_parquet('"),
        ("a.npy", "{'x': numpy.load('"),
        ("a.npz", "dict(numpy.load('"),
        ("a.jsonl", "map(json.loads, pathlib.Path('"),
        ("a.jpg", "PIL.Image.open"),
        ("a.bin", "npstream.write('new', samples)"),
    ],
)
def test_files_of_other_formats(tmp_path, name, mend):
    (tmp_path / name).touch()
    assert mend in said(tmp_path / name)
    assert "it is a file" in said(tmp_path / name)
    (tmp_path / "README").touch()
    assert mend in said(tmp_path)
    assert f"holds 'README', {name!r}" in said(tmp_path)


def test_the_mends_are_right(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    (tmp_path / "a.jsonl").write_text('{"x": 0}\n{"x": 1}\n{"x": 2}\n')
    (tmp_path / "a.json").write_text('[{"x": 0}, {"x": 1}, {"x": 2}]')
    (tmp_path / "a.csv").write_text("x\n0\n1\n2\n")
    for number, kind in enumerate(("npy", "npz", "jsonl", "json", "csv")):
        mend = re.search(r"npstream\.write\('new', (.*)\): '", said(tmp_path / f"a.{kind}"))
        code = mend[0][:-3].replace("'new'", "new", 1)
        run = (
            f"import json, numpy, pathlib, npstream\nnew = {str(tmp_path / str(number))!r}\n{code}"
        )
        if kind == "csv":
            pytest.importorskip("pandas")
            run = "import pandas\n" + run
        exec(run, {})
        assert [row["x"] for row in npstream.open(tmp_path / str(number))] == [0, 1, 2]


def test_a_directory_that_may_not_be_listed(tmp_path, monkeypatch):
    from npstream.storage.local import LocalStore

    def refuse(_self):
        raise StorageError(13, "no", "x")

    monkeypatch.setattr(LocalStore, "entries", refuse)
    assert "cannot be listed (Permission denied)" in said(tmp_path)


def test_urls(remote_dir: RemoteDirectory, tmp_path):
    options = {"storage_options": remote_dir.storage_options, "cache": tmp_path / "cache"}
    assert "give the directory that holds index.json" in said(
        f"{remote_dir.url}/index.json", **options
    )
    bare = said(remote_dir.url, **options)
    remote_dir.put("train/index.json", b"{}")
    remote_dir.put("notes.txt", b"")
    text = said(remote_dir.url, **options)
    if remote_dir.url.startswith("http"):
        assert "directory that holds index.json" in bare
        assert text == bare
    else:
        assert "nothing is stored" in bare or "is empty" in bare
        assert "it holds the datasets 'train': give split='train'" in text
