"""Regression tests for kinds of damage that the fuzzer has found."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from dataset_files import write_shards

import npstream
from npstream._core import memory
from npstream.cache import eviction
from npstream.cache.cache import ShardCache
from npstream.cache.sparse_file import Footer
from npstream.errors import FormatError, StorageError, short_repr
from npstream.formats import index as formats_index
from npstream.formats.index import estimate_parsed_size, parse_index
from npstream.formats.scan import Scan
from npstream.formats.sidecar import container as sections
from npstream.formats.sidecar.blocks import xxh3
from npstream.formats.sidecar.sidecar import Sidecar
from npstream.storage.local import LocalStore
from npstream.tools import index_builder as build
from npstream.tools import scan as reread
from npstream.writing import sidecar as sidecar_module

KEY = "00112233445566ff"
OTHER = "ffeeddccbbaa9988"


@pytest.fixture
def path(tmp_path):
    """Write a dataset of six shards, and return its directory."""
    npstream.write(tmp_path / "data", {"x": np.arange(600), "y": ["text"] * 600}, shard_size=3000)
    return tmp_path / "data"


# Large indexes


def test_an_index_of_a_gibibyte_is_rejected_before_it_is_read(path, tmp_path, monkeypatch):
    with open(path / "index.json", "r+b") as file:
        file.truncate(1 << 30)
    (path / "index.msgpack").unlink()
    monkeypatch.setattr(LocalStore, "read", lambda *args: pytest.fail("it was read"))
    for read in (npstream.open, npstream.verify_dataset, npstream.build_index):
        with pytest.raises(FormatError, match=r"1,073,741,824 bytes; .* write larger shards"):
            read(path)


def test_a_large_remote_index_is_rejected_before_it_is_read(
    path, tmp_path, upload, requests, monkeypatch
):
    (path / "index.msgpack").unlink()
    monkeypatch.setattr(formats_index, "MAX_INDEX_BYTES", 1000)
    with pytest.raises(FormatError, match="an index has less than 1,000"):
        npstream.open(upload(path), cache=tmp_path / "cache")
    assert not [span for span in requests if span[0] == "index.json"]


def test_an_index_that_needs_more_memory_than_is_free_is_rejected(path, monkeypatch):
    entry = (path / "index.json").read_bytes()
    text = entry + b" " * (3 << 20)
    monkeypatch.setattr(memory, "_UNCHECKED_BYTES", 0)
    # The estimate of the memory that parsing takes is at least twice the bytes of the text.
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * len(text) - 1)
    monkeypatch.setattr(formats_index, "available_memory", memory.available_memory)
    with pytest.raises(FormatError, match="bytes; free memory has"):
        parse_index(text, "index.json")
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * len(text))
    assert len(parse_index(text, "index.json")) > 1
    text = entry.replace(b"{", b'{"x": [' + b"[]," * 500_000 + b"0],", 1)
    with pytest.raises(FormatError, match="takes about"):
        parse_index(text, "index.json")
    assert (
        len(parse_index(text, "index.json", trusted=True)) > 1
    )  # the writer's own index has no limit


@pytest.mark.parametrize(
    ("part", "max_ratio"),
    [
        (b"[],", 2.0),
        (b'{"a":{}},', 2.5),
        (b"1.5,", 1.5),
        (b"100000,", 1.5),
        (b'"ab",', 1.5),
        (b'"' + b"x" * 1000 + b'",', 2.5),
        (None, 2.5),
    ],
)
def test_the_estimate_of_parsing_memory_is_close(path, part, max_ratio):
    """The estimate is at least 0.9 times, and at most `max_ratio` times, the measured memory."""
    if part is None:
        entry = json.dumps(json.loads((path / "index.json").read_text())["shards"][0])
        part = entry.encode() + b","
    text = b"[" + part * ((1 << 21) // len(part)) + b"0]"
    tracemalloc.start()
    try:
        document = json.loads(text)
        actual = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del document
    assert 0.9 * actual < estimate_parsed_size(text) < max_ratio * actual


def test_the_limit_of_the_address_space_reduces_available_memory(monkeypatch):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (5, -1))
    assert memory.available_memory() == 0
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (-1, -1))
    assert memory._address_space() is None


def nested(depth):
    """Return lists that are nested `depth` times."""
    nested = []
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize("depth", [50, 900, 100_000])
@pytest.mark.parametrize(
    "place",
    ["version", "npstream", "dtypes", "format", "samples", "column_sizes", "column_names", "bytes"],
)
def test_an_index_with_deeply_nested_values_raises(path, place, depth):
    deep = "[" * depth + "]" * depth
    document = json.loads((path / "index.json").read_text())
    entry = document["shards"][0]
    if place == "dtypes":
        document["npstream"] = {"version": 1, "dtypes": "DEEP"}
    elif place in ("version", "npstream"):
        document[place] = "DEEP" if place == "version" else {"version": "DEEP"}
    elif place == "bytes":
        entry["raw_data"][place] = "DEEP"
    else:
        entry[place] = ["DEEP", "DEEP"] if place.startswith("column_") else "DEEP"
    (path / "index.json").write_text(json.dumps(document).replace('"DEEP"', deep))
    with pytest.raises(FormatError) as raised:
        npstream.open(path)
    assert len(str(raised.value)) < 1000


def test_the_repr_of_large_values_is_short():
    assert short_repr(nested(900)) == "[[[[[...]]]]]"
    assert len(short_repr(["x" * 10_000] * 10_000)) < 1000
    assert len(short_repr(1 << 10_000)) < 100


# Side-cars


def sidecar_with_table(table, arrays=b""):
    """Return a side-car with this packed table, and with a correct hash."""
    start = -(-(struct.calcsize("<2s8sHIQQ") + len(table)) // 64) * 64
    facts = len(table), start + len(arrays), xxh3(table)
    head = struct.pack("<2s8sHIQQ", b"\xc4\x1e", b"npstream", 1, *facts)
    return (head + table).ljust(start, b"\xc0") + arrays


def test_invalid_and_too_large_tables_raise(path, monkeypatch):
    file = path / "index.msgpack"
    for table in (b"\xdd\xff\xff\xff\xff\xc0", b"\x91" * 1000 + b"\xc0", b"\xc1"):
        file.write_bytes(sidecar_with_table(table))
        with pytest.raises(FormatError):
            Sidecar(LocalStore(str(path)))
    file.write_bytes(sidecar_with_table(msgpack.packb(["x" * 2000])))
    monkeypatch.setattr(sections, "_MAX_TABLE", 1000)
    with pytest.raises(FormatError, match="its table takes 2,004 bytes"):
        Sidecar(LocalStore(str(path)))


def test_a_column_with_too_few_hashes_raises(path):
    file = path / "index.msgpack"
    content = file.read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    table = msgpack.unpackb(content[32 : 32 + length])
    for section in table["sections"]:
        if section[0] == "column/x":
            section[2], section[4] = 0, b""
    start = -(-(32 + length) // 64) * 64
    file.write_bytes(sidecar_with_table(msgpack.packb(table), content[start:]))
    with pytest.raises(FormatError, match="section 'column/x' is 0"):
        Sidecar(LocalStore(str(path))).column("x")


@pytest.mark.parametrize("size", [0, 100, 128, 1000])
def test_a_truncated_column_file_raises(path, tmp_path, upload, size):
    (file,) = (path / "index.columns").iterdir()
    file.write_bytes(file.read_bytes()[:size])
    ds = npstream.open(upload(path), cache=tmp_path / "cache")
    # These reads may succeed, but they raise no other errors.
    for read in (ds["x"].load, ds.prefetch, ds["x"].min, ds.explain):
        try:
            read()
        except (FormatError, StorageError):
            continue
    with pytest.raises((FormatError, StorageError)):
        ds["x"].load()


# Shards


def test_a_claimed_piece_size_is_not_allocated(path):
    """Only received bytes take memory."""
    schema = npstream.open(path)._source.index.schemas[0]
    scan = Scan(schema, 2**32 - 1, {}, compressed=False, nbytes=2**39)
    tracemalloc.start()
    try:
        scan.feed(bytes(1000))
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()
    with pytest.raises(FormatError, match="it ends after 1,000 bytes"):
        scan.finish()


def test_a_scan_accepts_parts_of_any_size(path):
    schema = npstream.open(path)._source.index.schemas[0]
    shard = sorted(path.glob("*.mds"))[0].read_bytes()
    samples = int.from_bytes(shard[:4], "little")
    columns = {"x": np.dtype("<i8")}
    results = []
    for step in (1, 7, 1000, len(shard)):
        scan = Scan(schema, samples, columns, compressed=False, nbytes=len(shard))
        for at in range(0, len(shard), step):
            scan.feed(shard[at : at + step])
        results.append(scan.finish())
    assert all(np.array_equal(each.pieces, results[0].pieces) for each in results)
    assert all(np.array_equal(each.columns["x"], np.arange(samples)) for each in results)


def test_shards_without_common_columns_give_empty_samples(tmp_path, upload):
    write_shards(tmp_path / "a", {"x": [1, 2]}, [2])
    write_shards(tmp_path / "b", {"y": [1.5, 2]}, [2])
    index = json.loads((tmp_path / "a" / "0000" / "index.json").read_text())
    other = json.loads((tmp_path / "b" / "0000" / "index.json").read_text())
    for document, place in ((index, "a"), (other, "b")):
        raw = document["shards"][0]["raw_data"]
        raw["basename"] = f"{place}/0000/{raw['basename']}"
    index["shards"] += other["shards"]
    index.pop("npstream", None)
    (tmp_path / "index.json").write_text(json.dumps(index))
    for place in (tmp_path, upload(tmp_path)):
        ds = npstream.open(place, cache=tmp_path / "cache")
        assert (ds.columns, ds[3], list(ds)) == ((), {}, [{}] * 4)


# Caches


def test_a_cached_object_with_a_huge_claimed_size_is_ignored(tmp_path):
    cache = ShardCache(tmp_path, "1GB")
    cache.store(KEY, b"object")
    footer = Footer(KEY, 1 << 42, 0, bytes(16)).pack()
    with open(tmp_path / f"{KEY}.stored", "r+b") as file:
        file.truncate(1 << 42)
        file.seek(1 << 42)
        file.write(footer)
    assert cache.load(KEY) is None
    assert cache.store(KEY, b"object")
    assert cache.load(KEY) == b"object"


def test_a_footer_with_too_many_pieces_is_ignored(tmp_path):
    cache = ShardCache(tmp_path, "1GB")
    file = tmp_path / f"{KEY}.shard"
    footer = Footer(KEY, 0, 1 << 41, bytes(16))
    with open(file, "wb") as opened:
        opened.truncate(1 << 41)
        opened.seek(1 << 41)
        opened.write(footer.pack())
    assert cache.open(KEY, 10, 1) is None
    cache.clear()
    assert file.exists()  # `clear` does not remove files that are not the cache's


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_a_special_file_reserves_nothing(tmp_path, kind):
    cache = ShardCache(tmp_path, "100KB")
    path = tmp_path / ".0123456789abcdef.reserved"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("x" * 200)
    else:
        os.mkfifo(path)
    assert eviction._reserved_bytes(str(tmp_path)) == 0
    assert cache.store(KEY, bytes(50_000))
    assert cache.load(KEY) is not None


@pytest.mark.parametrize("kind", ["loop", "file"])
def test_a_cache_directory_that_is_replaced_during_use_is_ignored(tmp_path, kind):
    directory = tmp_path / "cache"
    for limit in (None, "1MB"):
        cache = ShardCache(directory, limit)
        cache.store(KEY, b"object")
        cache.clear()
        (directory / ".lock").unlink()
        directory.rmdir()
        if kind == "loop":
            directory.symlink_to(directory)
        else:
            directory.touch()
        assert cache.load(KEY) is None
        assert not cache.store(OTHER, b"x")
        assert cache.open(KEY, 10, 1) is None
        cache.trim()
        if kind == "loop":
            with pytest.raises(StorageError, match="cannot be the cache's directory"):
                npstream.cache.info(directory)
        directory.unlink()


# Unfinished builds


@pytest.fixture
def unfinished(path, monkeypatch):
    """Interrupt a build; return the dataset's directory and the expected side-car."""
    monkeypatch.setattr(build, "_SAVE_INTERVAL", 0)
    monkeypatch.setattr(reread, "_MAX_GROUP_SHARDS", 1)
    (path / "index.msgpack").unlink()
    npstream.build_index(path)
    expected = (path / "index.msgpack").read_bytes()
    (path / "index.msgpack").unlink()
    add, remaining = sidecar_module.SidecarBuilder.add, iter(range(3))  # shards until the interrupt

    def add_or_interrupt(self, result):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        add(self, result)

    with monkeypatch.context() as patched:
        patched.setattr(sidecar_module.SidecarBuilder, "add", add_or_interrupt)
        with pytest.raises(KeyboardInterrupt):
            npstream.build_index(path)
    return path, expected


def resume_build(unfinished, monkeypatch):
    """Resume the build; return the number of shards that it reads."""
    path, expected = unfinished
    read = []
    add = sidecar_module.SidecarBuilder.add
    monkeypatch.setattr(
        sidecar_module.SidecarBuilder,
        "add",
        lambda self, result: (read.append(1), add(self, result)),
    )
    npstream.build_index(path)
    assert (path / "index.msgpack").read_bytes() == expected
    return len(read)


def test_an_interrupted_build_is_resumed(unfinished, monkeypatch):
    shards = len(npstream.open(unfinished[0]).shards)
    assert resume_build(unfinished, monkeypatch) == shards - 3


@pytest.mark.parametrize("name", ["heads", "pieces", "bounds", "values"])
@pytest.mark.parametrize("damage", ["flip", "cut", "directory", "link", "fifo"])
def test_a_build_with_damaged_files_starts_again(unfinished, monkeypatch, tmp_path, name, damage):
    shards = len(npstream.open(unfinished[0]).shards)
    file = unfinished[0] / ".index.work" / name
    body = file.read_bytes()
    (tmp_path / "target").write_bytes(b"mine")
    if damage == "flip":
        file.write_bytes(bytes([body[0] ^ 1]) + body[1:])
    elif damage == "cut":
        file.write_bytes(body[:-1])
    else:
        file.unlink()
    if damage == "directory":
        file.mkdir()
        (file / "x").touch()
    elif damage == "link":
        file.symlink_to(tmp_path / "target")
    elif damage == "fifo":
        os.mkfifo(file)
    assert resume_build(unfinished, monkeypatch) == shards
    assert (tmp_path / "target").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "[" * 100_000, '{"done": -5}', '{"done": 1e999}', "\0", "\xff"),
        '{"key": KEY, "done": -1, "digests": []}',
        '{"key": KEY, "done": Infinity, "digests": []}',
        '{"key": KEY, "done": 2, "digests": {"a": 1}}',
        '{"key": KEY, "done": 99999999999999999999, "digests": [1, 2]}',
    ],
)
def test_a_build_with_a_damaged_state_starts_again(unfinished, monkeypatch, text):
    shards = len(npstream.open(unfinished[0]).shards)
    file = unfinished[0] / ".index.work" / "state.json"
    key = json.dumps(json.loads(file.read_text())["key"])
    file.write_text(text.replace("KEY", key), "latin-1")
    assert resume_build(unfinished, monkeypatch) == shards


def test_a_build_on_a_full_disk_raises(path, monkeypatch):
    (path / "index.msgpack").unlink()

    class Full(io.FileIO):
        def write(self, body):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        sidecar_module, "_open", lambda folder, name: Full(f"{folder}/{name}", "w+")
    )
    with pytest.raises(StorageError, match="No space left on device: cannot store"):
        npstream.build_index(path)
