"""`merge_index` merges the datasets of a list of indexes, or those below a directory."""

from __future__ import annotations

import json

import numpy as np
import pytest

import npstream
from npstream.streaming import merge_index
from npstream.streaming.base.util import merge_index as merge_index_of_util


def write_parts(root, count=3):
    for part in range(count):
        npstream.write(f"{root}/{part}", {"x": np.arange(4) + 4 * part})
    return [f"{root}/{part}/index.json" for part in range(count)]


def numbers(url):
    return npstream.open(url)["x"].load().tolist()


@pytest.fixture(params=["directory", "memory"])
def root(request, tmp_path):
    if request.param == "directory":
        yield str(tmp_path / "root")
        return
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").store.clear()
    yield "memory://bucket/root"
    fsspec.filesystem("memory").store.clear()


def test_listed_indexes(root):
    merge_index(list(reversed(write_parts(root))), root)
    assert numbers(root) == [8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize("arguments", [[], [True], [True, 60]])
def test_all_indexes_below_a_directory(root, arguments):
    write_parts(root)
    merge_index_of_util(root, *arguments)
    assert numbers(root) == list(range(12))


def test_keywords(tmp_path):
    urls = write_parts(tmp_path)
    merge_index(index_file_urls=urls, out=str(tmp_path), keep_local=True, download_timeout=5)
    assert numbers(tmp_path) == list(range(12))


def test_out_as_a_keyword(tmp_path):
    write_parts(tmp_path)
    merge_index(out=str(tmp_path))
    assert numbers(tmp_path) == list(range(12))


def test_nested_directories_keep_their_paths(tmp_path):
    """Streaming keeps only the last directory of a path."""
    write_parts(tmp_path / "a" / "b")
    merge_index(str(tmp_path))
    assert numbers(tmp_path) == list(range(12))
    entry = json.loads((tmp_path / "index.json").read_text())["shards"][0]
    assert entry["raw_data"]["basename"] == "a/b/0/shard.00000.mds"


@pytest.mark.parametrize("keep_local", [True, False])
@pytest.mark.parametrize("is_listed", [True, False])
def test_pairs(tmp_path, keep_local, is_listed):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").store.clear()
    local, remote = str(tmp_path / "local"), "memory://bucket/root"
    pairs = list(zip(write_parts(local), write_parts(remote), strict=True))
    if is_listed:
        merge_index(pairs, (local, remote), keep_local=keep_local)
    else:
        merge_index((local, remote), keep_local)
    assert numbers(remote) == list(range(12))
    assert (tmp_path / "local").exists() == keep_local
    if keep_local:
        assert numbers(local) == list(range(12))
    fsspec.filesystem("memory").store.clear()


def test_pairs_with_an_empty_remote_part(tmp_path):
    """Streaming's `dataframe_to_mds` passes such pairs for a local directory."""
    pairs = [(url, "") for url in write_parts(tmp_path)]
    merge_index(pairs, str(tmp_path))
    assert numbers(tmp_path) == list(range(12))


def test_errors(tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match=r"no index\.json"):
        merge_index(str(tmp_path))
    merge_index([], str(tmp_path))
    assert "nothing was merged" in caplog.text
    urls = write_parts(tmp_path)
    merge_index(urls, str(tmp_path))
    with pytest.raises(FileExistsError):
        merge_index(urls, str(tmp_path))
    with pytest.raises(TypeError):
        merge_index()
