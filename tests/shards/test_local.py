"""Tests of opening shards: files must match the index, otherwise nothing is read."""

from __future__ import annotations

import json
import os
import re
import shutil

import golden_data as golden
import numpy as np
import pytest

import npstream
from npstream._core import memory
from npstream._core.arguments import quantity
from npstream.errors import FormatError, IntegrityError, StorageError
from npstream.shards import local as shards
from npstream.storage import local as store

WITH_MAPPED_FILES = ["mds_tokens", "mds_ragged", "jsonl_shards", "csv_shards", "xsv_weird"]
WITH_COMPRESSED_FILES = [
    *("mds_c_zstd", "mds_c_gz", "mds_c_bz2", "mds_c_br", "mds_c_snappy"),
    *("jsonl_zstd", "tsv_br"),
]


@pytest.fixture
def copy_golden(tmp_path):
    """Return a function that copies a golden dataset, so that tests can damage it."""

    def copy(name):
        return shutil.copytree(golden.directory(golden.case(name)), tmp_path / name)

    return copy


def change_index(root, edit):
    index = json.loads((root / "index.json").read_text())
    for shard in index["shards"]:
        edit(shard)
    (root / "index.json").write_text(json.dumps(index))


def files(root):
    return sorted(path for path in root.iterdir() if path.name != "index.json")


def readers(ds):
    """Return functions that read the first sample, one for each way to read it."""
    return (
        lambda: ds[0],
        lambda: ds[[0]].load(),
        lambda: next(iter(ds)),
        lambda: ds[ds.columns[0]][0],
        lambda: ds[ds.columns[0]][:1].load(),
    )


def assert_reads_raise(ds, error, match):
    for read in readers(ds):
        with pytest.raises(error, match=match):
            read()


# Files that changed since the dataset was opened.


@pytest.mark.parametrize("name", WITH_MAPPED_FILES + WITH_COMPRESSED_FILES)
def test_missing_files_raise_until_they_are_back(copy_golden, name):
    root = copy_golden(name)
    for path in files(root):
        if ".00000." not in path.name:
            continue
        ds = npstream.open(root)
        path.rename(path.with_suffix(".away"))
        assert_reads_raise(ds, StorageError, f"No such file.*/{re.escape(path.name)}'")
        path.with_suffix(".away").rename(path)
        assert ds[0]  # the failure is not cached


@pytest.mark.parametrize("name", WITH_MAPPED_FILES + WITH_COMPRESSED_FILES)
def test_files_of_another_size_raise(copy_golden, name):
    root = copy_golden(name)
    for path in files(root):
        if ".00000." not in path.name:
            continue
        content = path.read_bytes()
        for body in (b"", content[:1], content[:-1], content + b"x", content * 2):
            ds = npstream.open(root)
            path.write_bytes(body)
            match = f"{path.name}: {quantity(len(body), 'byte')}; the index says {len(content):,}"
            assert_reads_raise(ds, FormatError, match)
        path.write_bytes(content)


def test_pipes_and_directories_raise(copy_golden):
    root = copy_golden("mds_tokens")
    path = files(root)[0]
    path.unlink()
    os.mkfifo(path)
    assert_reads_raise(npstream.open(root), StorageError, f"not a file.*{path.name}")
    path.unlink()
    path.mkdir()
    assert_reads_raise(npstream.open(root), StorageError, f"not a file.*{path.name}")


def test_a_header_that_contradicts_the_index_raises(copy_golden):
    root = copy_golden("mds_ragged")
    path = files(root)[0]
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    match = rf"{path.name} \(shard 0\): \d+ samples in the shard's head; the index says \d+"
    assert_reads_raise(npstream.open(root), FormatError, match)


def test_errors_name_the_damaged_sample(copy_golden):
    root = copy_golden("mds_ragged")
    ds = npstream.open(root)
    path = files(root)[1]
    content = bytearray(path.read_bytes())
    first = int(ds.shards["start"][1])
    (begin,) = np.frombuffer(content[4 + 4 * 3 : 8 + 4 * 3], "<u4").tolist()  # of sample 3
    content[begin] ^= 4  # the size of a column
    path.write_bytes(content)
    match = rf"{path.name} \(shard 1\): sample 3 \(sample {first + 3} of the dataset\): .*add up"
    for read in (lambda: ds[first + 3], lambda: ds[[first, first + 3]].load(), lambda: list(ds)):
        with pytest.raises(FormatError, match=match):
            read()
    assert ds[first + 2]
    assert ds[[0, first + 4]].load().n == 2


@pytest.mark.parametrize(
    ("name", "suffix"), [("csv_basic", ".meta"), ("jsonl_basic", ".meta"), ("mds_no_limit", ".mds")]
)
def test_both_samples_at_a_shifted_offset_raise(copy_golden, name, suffix):
    """A reader of JSON Lines also finds ends of lines itself, so it may return both samples."""
    root = copy_golden(name)
    expected = list(npstream.open(root))
    (path,) = (path for path in files(root) if path.suffix == suffix)
    content = path.read_bytes()
    n = len(expected)
    for row in (1, n // 2, n - 1):
        for shift in (-8, -4, -3, -2, -1, 1, 2, 3, 4, 8):
            words = np.frombuffer(content[: 4 * (n + 2)], "<u4").astype(np.int64)
            words[1 + row] += shift
            path.write_bytes(words.astype("<u4").tobytes() + content[4 * (n + 2) :])
            is_ascending = (words[2:] > words[1:-1]).all()
            ds = npstream.open(root)
            for i in range(n):
                try:
                    sample = ds[i]
                except FormatError:
                    # If the offsets do not ascend, the shard cannot be opened.
                    assert i in (row - 1, row) or not is_ascending
                else:
                    np.testing.assert_equal(sample, expected[i])
                    assert name == "jsonl_basic" or i not in (row - 1, row)


@pytest.mark.parametrize("name", ["csv_shards", "mds_ragged", "jsonl_shards"])
def test_offsets_of_other_samples_raise(copy_golden, name):
    """Moved offsets would return whole samples, but of other rows."""
    root = copy_golden(name)
    suffix = ".mds" if name == "mds_ragged" else ".meta"
    path = next(path for path in files(root) if path.suffix == suffix and ".00001." in path.name)
    content = path.read_bytes()
    samples = content[0]
    words = np.frombuffer(content[: 4 * (samples + 2)], "<u4")
    moved_words = words.copy()
    moved_words[2:4] = words[3:5]
    path.write_bytes(moved_words.tobytes() + content[words.nbytes :])
    first = int(npstream.open(root).shards["start"][1])
    for row in (0, 1, 2):
        with pytest.raises(
            FormatError, match=r"\(shard 1\): sample \d begins at byte \d+, ends at"
        ):
            npstream.open(root)[first + row]


# Compressed files.


@pytest.mark.parametrize(
    ("compression", "match"),
    [
        (None, "compressed, but the index names no compression"),
        ("lzma", "unknown compression 'lzma'"),
        ("zstd:99", "unknown compression 'zstd:99'"),
        ("", "unknown compression ''"),
        ("gz", "damaged gz data"),
    ],
)
def test_a_wrong_compression_raises(copy_golden, compression, match):
    root = copy_golden("mds_c_zstd")
    change_index(root, lambda shard: shard.update(compression=compression))
    assert_reads_raise(npstream.open(root), FormatError, rf"shard\.00000\.mds\.zstd: .*{match}")


@pytest.mark.parametrize("name", WITH_COMPRESSED_FILES)
@pytest.mark.parametrize("change", [-1, 1, 10_000, 2**32 - 1, 2**32, 2**39])
def test_a_wrong_decompressed_size_raises(copy_golden, name, change):
    root = copy_golden(name)

    def edit(shard):
        shard["raw_data"]["bytes"] += change

    change_index(root, edit)
    extension = name.rpartition("_")[2]
    with pytest.raises((FormatError, MemoryError), match=rf"shard\.00000\.\w+\.{extension}"):
        npstream.open(root)[0]


def test_files_too_large_for_memory_are_not_decompressed(copy_golden, monkeypatch):
    root = copy_golden("mds_c_zstd")
    change_index(root, lambda shard: shard["raw_data"].update(bytes=1 << 30))
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 29)
    monkeypatch.delattr(shards, "decompress")
    with pytest.raises(FormatError, match=r"mds\.zstd: 1,073,741,824 bytes when decompressed"):
        npstream.open(root)[0]


def test_a_compressed_file_of_another_size_is_not_read(copy_golden, monkeypatch):
    root = copy_golden("mds_c_zstd")
    with open(files(root)[0], "ab") as file:
        file.truncate(1 << 30)
    ds = npstream.open(root)
    monkeypatch.delattr(store.LocalStore, "read")
    assert_reads_raise(ds, FormatError, r"mds\.zstd: 1,073,741,824 bytes; the index says [\d,]+")


@pytest.mark.parametrize("part", ["data", "meta"])
def test_compressed_and_decompressed_files_can_be_mixed(copy_golden, part):
    root = copy_golden("jsonl_zstd")
    expected = golden.expected(golden.case("jsonl_zstd"))
    local_shards = npstream.open(root)._source.fetcher.shards
    for shard in range(len(local_shards.index)):
        shard_files = local_shards.index.files(shard)
        file, compressed = (getattr(shard_files, name) for name in (part, f"zip_{part}"))
        content = local_shards._load_file(file, compressed, "zstd")
        (root / file.name).write_bytes(content.tobytes())
        (root / compressed.name).unlink()
    for i, sample in enumerate(npstream.open(root)):
        golden.assert_same_sample(sample, expected[i])


# Prefetching of pages.


def test_pages_are_prefetched_only_for_maps(monkeypatch):
    prefetched = []
    monkeypatch.setattr(memory, "will_need", prefetched.append)
    # If samples have one size, only the first and the last offset are read.
    for name, ranges in (("mds_ragged", 1), ("csv_shards", 1), ("mds_tokens_one", 2)):
        npstream.open(golden.directory(golden.case(name)))[0]
        assert len(prefetched) == ranges
        prefetched.clear()
    for name in WITH_COMPRESSED_FILES:
        npstream.open(golden.directory(golden.case(name)))[0]
    assert prefetched == []


# Hashes.

WITH_HASHES = ["mds_h_sha1", "mds_h_xxh3_128", "mds_hz_sha1", "mds_hz_xxh3_128"]


def damage(root):
    """Flip a bit of a value in the first file; return the file's name."""
    path = files(root)[0]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    return path.name


@pytest.mark.parametrize("name", WITH_HASHES)
@pytest.mark.parametrize("verify", ["auto", True, False, "named"])
def test_verify_chooses_the_hashes_to_check(copy_golden, name, verify):
    root, is_compressed = copy_golden(name), name.startswith("mds_hz")
    if verify == "named":
        (verify,) = golden.case(name)["args"]["hashes"]
    npstream.open(root, verify=verify).load()
    damaged = damage(root)
    ds = npstream.open(root, verify=verify)
    if verify is not False and (is_compressed or verify != "auto"):
        file = damaged.removesuffix(".zstd")
        assert_reads_raise(ds, IntegrityError, rf"{file}\S*: its \w+ is \w+; the index says \w+$")
    elif not is_compressed:
        assert len(list(ds)) == len(ds)  # a changed value is valid, so nothing detects it
    # Decompression of a damaged file may fail or not, so nothing is expected without verification.


def test_a_hash_of_only_the_decompressed_file_is_checked(copy_golden):
    root = copy_golden("mds_hz_sha1")
    change_index(root, lambda shard: shard["zip_data"].update(hashes={}))
    assert npstream.open(root)[0]
    change_index(root, lambda shard: shard["raw_data"]["hashes"].update(sha1="0" * 40))
    assert_reads_raise(npstream.open(root), IntegrityError, r"00000\.mds: its sha1 is")


def test_a_hash_of_only_the_compressed_file_is_checked(copy_golden):
    root = copy_golden("mds_hz_sha1")
    change_index(root, lambda shard: shard["raw_data"].update(hashes={}))
    assert npstream.open(root)[0]
    change_index(root, lambda shard: shard["zip_data"]["hashes"].update(sha1="0" * 40))
    assert_reads_raise(npstream.open(root), IntegrityError, r"00000\.mds\.zstd: its sha1 is")
    assert npstream.open(root, verify=False)[0]


def test_the_hash_of_a_meta_file_is_checked(copy_golden):
    root = copy_golden("jsonl_zstd")
    change_index(root, lambda shard: shard["raw_meta"].update(hashes={"md5": "0" * 32}))
    assert_reads_raise(npstream.open(root), IntegrityError, r"json\.meta: its md5 is")


def test_an_unknown_hash_raises_only_if_verify_is_true(copy_golden):
    root = copy_golden("mds_h_sha1")
    change_index(root, lambda shard: shard["raw_data"].update(hashes={"sha99": "00"}))
    assert npstream.open(root)[0]
    ds = npstream.open(root, verify=True)
    assert_reads_raise(ds, IntegrityError, "records sha99; expected a known hash")


def test_a_shard_without_the_named_hash_raises(copy_golden):
    root = copy_golden("mds_h_sha1")
    index = json.loads((root / "index.json").read_text())
    index["shards"][-1]["raw_data"]["hashes"] = {}
    (root / "index.json").write_text(json.dumps(index))
    ds = npstream.open(root, verify="sha1")
    assert ds[0]
    with pytest.raises(IntegrityError, match="the index records no hash; expected sha1"):
        ds[-1]
    assert npstream.open(root, verify=True)[-1]  # True checks only recorded hashes
