"""Merging datasets by an index of their shards."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import golden_data as golden
import numpy as np
import pytest
from destinations import WRITABLE, names

import npstream
from npstream.__main__ import main
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.formats.sidecar.sidecar import Sidecar
from npstream.storage.local import LocalStore
from npstream.storage.remote import RemoteStore

MERGED = [case for case in golden.cases() if case["name"].startswith("merged_")]
ROWS = 7


def write(path, first=0, **settings):
    """Write rows ``first`` to ``first + ROWS`` in several shards."""
    numbers = np.arange(first, first + ROWS)
    rows = {
        "text": [f"row {k}" for k in numbers.tolist()],
        "number": numbers,
        "seen": numbers % 2 == 0,
        "tokens": np.stack([numbers] * 3, axis=1).astype("u2"),
    }
    npstream.write(path, rows, **{"shard_samples": 3, **settings})


def assert_rows(url, numbers, **settings):
    """Assert that a merged dataset has these rows, and no problems."""
    with npstream.open(url, **settings) as ds:
        assert ds.columns == ("text", "number", "seen", "tokens")
        assert ds["seen"].dtype == np.bool_
        assert ds["number"].load().tolist() == list(numbers)
        assert list(ds["text"]) == [f"row {k}" for k in numbers]
        assert ds["seen"].load().tolist() == [k % 2 == 0 for k in numbers]
        assert ds["tokens"].load()[:, 2].tolist() == list(numbers)
    options = settings.get("storage_options")
    assert npstream.verify_dataset(url, storage_options=options).problems == ()


@pytest.mark.parametrize("case", MERGED, ids=lambda case: case["name"])
def test_the_index_names_the_same_shards_as_that_of_streaming(case, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(golden.directory(case), root)
    expected = json.loads((root / "index.json").read_text())
    (root / "index.json").unlink()
    report = npstream.merge([root / name for name in case["merge_order"]], root)
    assert json.loads((root / "index.json").read_text()) == expected
    assert report.samples == case["num_samples"]
    assert report.raw_bytes == sum(
        file["bytes"] for shard in case["shards"] for file in shard.values() if type(file) is dict
    )
    for row, expected in zip(npstream.open(root), golden.expected(case), strict=True):
        for name, value in expected.items():
            golden.assert_same(row[name], value)


def test_datasets_at_any_depth_and_merged_ones_are_merged_in_order(tmp_path):
    write(tmp_path / "a", 0)
    write(tmp_path / "deep/er/b", 10, compression="zstd", hashes=["sha1"])
    write(tmp_path / "deep/c", 20, shard_samples=None)
    parts = [tmp_path / "deep/c", tmp_path / "deep/er/b"]
    report = npstream.merge(parts, tmp_path / "deep")
    assert_rows(tmp_path / "deep", [*range(20, 27), *range(10, 17)])
    assert (report.samples, report.shards) == (14, 4)
    report = npstream.merge(iter([tmp_path / "deep", str(tmp_path / "a") + "/"]), tmp_path)
    assert_rows(tmp_path, [*range(20, 27), *range(10, 17), *range(7)])
    stored = [path for path in tmp_path.rglob("*") if ".mds" in path.name]
    assert len(stored) == report.shards == 7
    assert report.stored_bytes == sum(path.stat().st_size for path in stored)
    assert report.columns == {
        "text": "str",
        "number": "int64",
        "seen": "bool",
        "tokens": "ndarray:uint16:3",
    }
    index = npstream.open(tmp_path)._source.index
    assert [index.name(k) for k in range(5)] == [
        "deep/c/shard.00000.mds",
        *(f"deep/er/b/shard.0000{k}.mds" for k in range(3)),
        "a/shard.00000.mds",
    ]


def test_datasets_grow_before_and_after_a_merge(tmp_path):
    """A merged dataset has the samples that its parts had at the merge. It can itself grow."""
    write(tmp_path / "a", 0)
    write(tmp_path / "a", 7, mode="a", compression="zstd")
    write(tmp_path / "b", 14)
    npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert_rows(tmp_path, range(21))
    assert Sidecar(LocalStore(str(tmp_path))).statistics()["number"].count == 21
    version = npstream.open(tmp_path).version
    write(tmp_path / "a", 50, mode="a")
    write(tmp_path, 21, mode="a")
    assert_rows(tmp_path, range(28))
    assert_rows(tmp_path, range(21), version=version)
    (tmp_path / "up").mkdir()
    for name in ("a", "b", "index.json", "index.columns", *shard_and_sidecar_names(tmp_path)):
        (tmp_path / name).rename(tmp_path / "up" / name)
    npstream.merge([tmp_path / "up"], tmp_path)
    assert_rows(tmp_path, range(28))
    write(tmp_path, 100, mode="w")
    assert_rows(tmp_path, range(100, 107))
    assert_rows(tmp_path / "up", range(28))


def shard_and_sidecar_names(root):
    return [path.name for path in root.iterdir() if path.suffix in (".mds", ".msgpack")]


def test_no_shard_is_read(tmp_path):
    for name, first in {"a": 0, "b": 7}.items():
        write(tmp_path / name, first)
    shards = list(tmp_path.rglob("*.mds"))
    for shard in shards:
        shard.rename(shard.with_suffix(".away"))
    npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    for shard in shards:
        shard.with_suffix(".away").rename(shard)
    assert_rows(tmp_path, range(14))


def test_the_side_car_is_the_one_that_a_scan_of_the_shards_builds(tmp_path, monkeypatch):
    monkeypatch.setattr("npstream.tools.merge._COLUMN_BYTES", 1 << 18)
    rng = np.random.default_rng(0)
    root = tmp_path / "root"
    for name, rows in {"a": 70_000, "b": 3, "c": 40_000}.items():
        columns = {
            "x": rng.normal(size=rows),
            "y": rng.integers(0, 9, rows, np.uint8),
            "text": ["x" * (k % 5) for k in range(rows)],
        }
        npstream.write(root / name, columns, shard_size="256KiB")
    npstream.merge([root / "c", root / "a", root / "b"], root)
    merged = Sidecar(LocalStore(str(root)))
    npstream.build_index(root, out=tmp_path / "scanned")
    scanned = Sidecar(LocalStore(str(tmp_path / "scanned")))
    for merged_hashes, scanned_hashes in zip(
        merged.shard_hashes(), scanned.shard_hashes(), strict=True
    ):
        assert np.array_equal(merged_hashes, scanned_hashes)
    assert list(merged.columns) == list(scanned.columns) == ["x", "y"]
    for name in merged.columns:
        files = [Path(d) / merged.columns[name].file for d in (root, tmp_path / "scanned")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert np.array_equal(merged.column(name), npstream.open(root)[name])
        assert np.array_equal(merged.shard_range(name), scanned.shard_range(name))
    statistics = merged.statistics()
    assert statistics.keys() == {"x", "y", "text"}
    for name, expected in scanned.statistics().items():
        assert statistics[name].is_close(expected)
    assert merged.index_digest == scanned.index_digest
    assert npstream.verify_dataset(root).problems == ()


def test_side_cars_of_different_columns(tmp_path):
    """The merged side-car has the columns and the hashes that all side-cars have."""
    for name in "ab":
        write(tmp_path / name)
        (tmp_path / name / "index.msgpack").unlink()
    npstream.build_index(tmp_path / "a", columns=["number"])
    npstream.build_index(tmp_path / "b", columns=["seen", "number"], hashes=False)
    npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    sidecar = Sidecar(LocalStore(str(tmp_path)))
    assert (list(sidecar.columns), sidecar.has_hashes) == (["number"], False)
    assert npstream.verify_dataset(tmp_path).problems == ()


def test_text_shards(tmp_path):
    for name, first in {"a": 0, "b": 3}.items():
        rows = [{"k": k, "s": str(k)} for k in range(first, first + 3)]
        npstream.write(tmp_path / name, rows, format="jsonl" if name == "a" else "mds")
    npstream.merge([tmp_path / "b", tmp_path / "a"], tmp_path)
    sidecar = Sidecar(LocalStore(str(tmp_path)))
    assert sidecar.has_hashes
    assert [bool(sidecar.meta_hash(shard)) for shard in (0, 1)] == [False, True]
    assert npstream.verify_dataset(tmp_path).problems == ()
    assert list(npstream.open(tmp_path)["k"]) == [3, 4, 5, 0, 1, 2]


def test_a_merged_side_car_needs_a_side_car_of_each_dataset(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", 7, sidecar=False)
    urls = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(ValueError, match=r"b' has no side-car.*npstream.build_index\('.*b'\)"):
        npstream.merge(urls, tmp_path, sidecar=True)
    assert names(tmp_path) == [*names_below(tmp_path, "a"), *names_below(tmp_path, "b")]
    npstream.merge(urls, tmp_path)
    assert not (tmp_path / "index.msgpack").exists()
    assert_rows(tmp_path, range(14))
    npstream.build_index(tmp_path)
    assert_rows(tmp_path, range(14))


def names_below(root, name):
    return [f"{name}/{entry}" for entry in names(root / name)]


def test_a_side_car_of_another_index_is_not_used(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", 7)
    write(tmp_path / "other", 7, shard_samples=2)
    shutil.copy(tmp_path / "other/index.msgpack", tmp_path / "b/index.msgpack")
    npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert not (tmp_path / "index.msgpack").exists()


def test_side_cars_can_be_left_out(tmp_path):
    write(tmp_path / "a")
    npstream.merge([tmp_path / "a"], tmp_path, sidecar=False)
    assert_rows(tmp_path, range(7))
    assert not (tmp_path / "index.msgpack").exists()


def test_empty_datasets(tmp_path):
    columns = {"text": "str", "number": "int64", "seen": "bool", "tokens": "ndarray:uint16:3"}
    npstream.write(tmp_path / "none", [], columns=columns)
    write(tmp_path / "a")
    npstream.write(tmp_path / "x/none", [], columns=columns)
    npstream.write(tmp_path / "x/other", [], columns=columns)
    npstream.merge([tmp_path / "x/none", tmp_path / "x/other"], tmp_path / "x")
    assert npstream.open(tmp_path / "x").columns == tuple(columns)
    npstream.merge([tmp_path / "none", tmp_path / "a", tmp_path / "x"], tmp_path)
    assert_rows(tmp_path, range(7))


# Refusals


def test_places_that_cannot_be_merged(tmp_path, monkeypatch):
    write(tmp_path / "root/a")
    write(tmp_path / "elsewhere")
    root, a = tmp_path / "root", tmp_path / "root/a"
    (tmp_path / "link").symlink_to(root)
    (root / "other").symlink_to(a)
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match=r"elsewhere' is not below out=.* choose out='.*\.copy"):
        npstream.merge([a, tmp_path / "elsewhere"], root)
    with pytest.raises(ValueError, match=r"'s3://bucket/a' is not below out=.*npstream\.copy"):
        npstream.merge([a, "s3://bucket/a"], root)
    with pytest.raises(
        ValueError, match=r"s3://bucket/b/c' is not below.*choose out='s3://bucket/b'"
    ):
        npstream.merge(["s3://bucket/b/c", "s3://bucket/b/d"], "s3://bucket/a")
    with pytest.raises(ValueError, match=r"s3://other/c' is not below (?!.*choose out)"):
        npstream.merge(["s3://bucket/b/c", "s3://other/c"], "s3://bucket/b")
    for alias in (a, f"{a}/", "a", "../root/a", a.as_uri(), tmp_path / "link/a", "other"):
        with pytest.raises(ValueError, match=r"was given before.*give each dataset once"):
            npstream.merge([a, alias], root)
    with pytest.raises(ValueError, match="is out= itself"):
        npstream.merge([a, root], ".")
    with pytest.raises(TypeError, match="urls is one path"):
        npstream.merge(a, root)
    with pytest.raises(ValueError, match="urls is empty"):
        npstream.merge([], root)
    with pytest.raises(FileNotFoundError, match="missing"):
        npstream.merge([a, root / "missing"], root)
    assert names(root) == names_below(root, "a")


def test_a_dataset_is_not_replaced(tmp_path):
    write(tmp_path / "a")
    write(tmp_path, 100)
    before = names(tmp_path)
    with pytest.raises(FileExistsError, match="a dataset, or a part of one, is here") as caught:
        npstream.merge([tmp_path / "a"], tmp_path)
    assert caught.value.__notes__ == [
        "to merge anew, remove 'index.*' and 'shard.*' from out, and keep the datasets' directories"
    ]
    assert names(tmp_path) == before
    assert_rows(tmp_path, range(100, 107))
    for path in [*tmp_path.glob("index.*"), *tmp_path.glob("shard.*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    npstream.merge([tmp_path / "a"], tmp_path)
    assert_rows(tmp_path, range(7))


def test_a_link_to_a_directory_is_followed(tmp_path):
    write(tmp_path / "root/a")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    npstream.merge([tmp_path / "link/a"], tmp_path / "root")
    assert_rows(tmp_path / "root", range(7))


def test_columns_must_agree(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    npstream.write(a, {"x": np.arange(3), "t": list("abc")})

    def assert_raises(match, **columns):
        shutil.rmtree(b, ignore_errors=True)
        npstream.write(b, columns)
        for parts in ([a, b], [b, a]):
            with pytest.raises(ValueError, match=match) as caught:
                npstream.merge(parts, tmp_path)
            assert repr(str(a)) in str(caught.value)
            assert repr(str(b)) in str(caught.value)
        assert not (tmp_path / "index.json").exists()

    assert_raises("column 't': '.*b' lacks it, and '.*a' has it", x=np.arange(3))
    assert_raises("column 'u': ", x=np.arange(3), t=["a"] * 3, u=[1] * 3)
    assert_raises("column 'x' is '(int64|int32)' in ", x=np.arange(3, dtype="i4"), t=["a"] * 3)
    assert_raises("column 't' is '(str|bytes)' in ", x=np.arange(3), t=[b"a"] * 3)
    shutil.rmtree(a)
    npstream.write(a, {"x": np.arange(3, dtype="u1")})
    assert_raises("column 'x' is '(bool|uint8)' in ", x=np.ones(3, bool))
    shutil.rmtree(b)
    npstream.write(b, [{"x": 1}], columns={"x": "uint8"}, format="mds", compression="gz")
    npstream.merge([a, b], tmp_path)
    assert npstream.open(tmp_path)["x"].load().tolist() == [0, 1, 2, 1]


def test_encodings_of_the_same_values_agree(tmp_path):
    npstream.write(tmp_path / "a", {"x": np.arange(3)}, columns={"x": "int"})
    npstream.write(tmp_path / "b", {"x": np.arange(3)}, columns={"x": "int64"})
    npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert npstream.open(tmp_path)["x"].load().tolist() == [0, 1, 2, 0, 1, 2]


def test_the_order_of_columns_is_that_of_the_first_dataset(tmp_path):
    npstream.write(tmp_path / "a", {"a": [1], "b": [2]})
    npstream.write(tmp_path / "b", {"b": [2], "a": [1]})
    for first, second in ("ab", "ba"):
        npstream.merge([tmp_path / first, tmp_path / second], tmp_path)
        assert npstream.open(tmp_path).columns == (first, second)
        for name in ("index.json", "index.msgpack"):
            (tmp_path / name).unlink()
        shutil.rmtree(tmp_path / "index.columns")


def test_a_shard_comes_once(tmp_path):
    write(tmp_path / "x/a")
    write(tmp_path / "x/b", 7)
    npstream.merge([tmp_path / "x/a", tmp_path / "x/b"], tmp_path / "x")
    with pytest.raises(ValueError, match=r"x' and '.*x/b' both have the shard 'x/b/shard"):
        npstream.merge([tmp_path / "x", tmp_path / "x/b"], tmp_path)


def test_names_that_an_index_cannot_hold(tmp_path):
    write(tmp_path / "a\\b")
    with pytest.raises(ValueError, match=r"an index cannot name shards in .* rename it"):
        npstream.merge([tmp_path / "a\\b"], tmp_path)


def test_a_damaged_index_or_side_car_publishes_nothing(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", 7)
    file = tmp_path / "b/index.columns/number.npy"
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    before = names(tmp_path)
    with pytest.raises(IntegrityError, match=r"number.npy"):
        npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    (tmp_path / "b/index.json").write_text("{")
    with pytest.raises(FormatError, match=r"b/index.json: not JSON"):
        npstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert names(tmp_path) == before
    assert not list(tmp_path.rglob(".*"))


def test_a_failed_merge_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path / "a")
    before = names(tmp_path)
    draft = LocalStore.draft

    def fail(self, name, *arguments):
        if name == "index.json":
            raise StorageError(errno.ENOSPC, "No space left on device", name)
        return draft(self, name, *arguments)

    monkeypatch.setattr(LocalStore, "draft", fail)
    with pytest.raises(StorageError, match="No space left"):
        npstream.merge([tmp_path / "a"], tmp_path)
    assert names(tmp_path) == before
    assert os.listdir(tmp_path) == ["a"]


# Stores


@pytest.mark.parametrize("kind", ["memory", *WRITABLE])
def test_datasets_in_a_store(kind, request, servers, tmp_path):
    if kind == "memory":
        url, options = f"memory://{request.node.name}", None
    else:
        location = servers[kind].new_directory()
        url, options = location.url, location.storage_options
    write(f"{url}/x/a", 0, storage_options=options)
    write(f"{url}/x/b", 7, storage_options=options, compression="zstd")
    write(f"{url}/c", 14, storage_options=options)
    npstream.merge([f"{url}/x/a", f"{url}/x/b/"], f"{url}/x", storage_options=options)
    merged = npstream.merge([f"{url}/x", f"{url}/c"], f"{url}/", storage_options=options)
    assert (merged.samples, merged.shards) == (21, 9)
    assert_rows(url, range(21), storage_options=options, cache=tmp_path / "cache")
    assert not [name for name in names(url, options) if name.endswith((".lock", ".tmp"))]
    with pytest.raises(FileExistsError):
        npstream.merge([f"{url}/x"], url, storage_options=options)


def test_no_request_is_about_shards(tmp_path, upload, requests, monkeypatch):
    for number in range(20):
        write(tmp_path / str(number), 7 * number)
    url = upload(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "names", None)  # it would list the shards, too
        npstream.merge([f"{url}/{number}" for number in range(20)], url)
    assert not [name for name, *_ in requests if name.endswith(".mds")]
    assert_rows(url, range(140), cache=tmp_path / "cache")


# The command


def test_the_command(tmp_path, capsys):
    write(tmp_path / "a")
    write(tmp_path / "b", 7)
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert output == f"{tmp_path}: 14 samples in 6 shards of 1.9 KiB\n"
    assert_rows(tmp_path, range(14))
    assert main(["merge", str(tmp_path / "a"), str(tmp_path)]) == 1
    assert "is here" in capsys.readouterr().err
