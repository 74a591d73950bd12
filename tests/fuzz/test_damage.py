"""Damage of a kind that was found once: each raises what is documented, or is made good."""

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
from npstream.writing import sidecar as spool

KEY = "00112233445566ff"
OTHER = "ffeeddccbbaa9988"


@pytest.fixture
def path(tmp_path):
    """Write a dataset of six shards, and return its directory."""
    npstream.write(tmp_path / "data", {"x": np.arange(600), "y": ["text"] * 600}, shard_size=3000)
    return tmp_path / "data"


# An index that is too large.


def test_an_index_of_a_gibibyte_is_refused_before_it_is_read(path, tmp_path, monkeypatch):
    with open(path / "index.json", "r+b") as file:
        file.truncate(1 << 30)
    (path / "index.msgpack").unlink()
    monkeypatch.setattr(LocalStore, "read", lambda *args: pytest.fail("it was read"))
    for read in (npstream.open, npstream.verify_dataset, npstream.build_index):
        with pytest.raises(FormatError, match=r"1,073,741,824 bytes; .* write larger shards"):
            read(path)


def test_a_large_index_in_a_store_is_refused_before_it_is_read(
    path, tmp_path, upload, requests, monkeypatch
):
    (path / "index.msgpack").unlink()
    monkeypatch.setattr(formats_index, "MAX_INDEX_BYTES", 1000)
    with pytest.raises(FormatError, match="an index has less than 1,000"):
        npstream.open(upload(path), cache=tmp_path / "cache")
    assert not [span for span in requests if span[0] == "index.json"]


def test_an_index_is_refused_that_takes_more_memory_than_is_free(path, monkeypatch):
    entry = (path / "index.json").read_bytes()
    text = entry + b" " * (3 << 20)
    monkeypatch.setattr(memory, "_UNCHECKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * len(text) - 1)
    monkeypatch.setattr(formats_index, "available_memory", memory.available_memory)
    with pytest.raises(FormatError, match="bytes; free memory has"):
        parse_index(text, "index.json")
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * len(text))
    assert len(parse_index(text, "index.json")) > 1
    text = entry.replace(b"{", b'{"x": [' + b"[]," * 500_000 + b"0],", 1)
    with pytest.raises(FormatError, match="takes about"):
        parse_index(text, "index.json")
    assert len(parse_index(text, "index.json", trusted=True)) > 1  # as its writer does


@pytest.mark.parametrize(
    ("part", "most"),
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
def test_what_parsing_takes_is_estimated(path, part, most):
    """Never much less than what is measured, and at most so many times as much."""
    if part is None:
        entry = json.dumps(json.loads((path / "index.json").read_text())["shards"][0])
        part = entry.encode() + b","
    text = b"[" + part * ((1 << 21) // len(part)) + b"0]"
    tracemalloc.start()
    try:
        document = json.loads(text)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del document
    assert 0.9 * taken < estimate_parsed_size(text) < most * taken


def test_the_address_space_counts_as_memory(monkeypatch):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (5, -1))
    assert memory.available_memory() == 0
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (-1, -1))
    assert memory._address_space() is None


def nested(depth):
    """Return a list in a list, and so on."""
    found = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("depth", [50, 900, 100_000])
@pytest.mark.parametrize(
    "place",
    ["version", "npstream", "dtypes", "format", "samples", "column_sizes", "column_names", "bytes"],
)
def test_an_index_with_deep_values(path, place, depth):
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


def test_little_is_shown_of_what_is_large():
    assert short_repr(nested(900)) == "[[[[[...]]]]]"
    assert len(short_repr(["x" * 10_000] * 10_000)) < 1000
    assert len(short_repr(1 << 10_000)) < 100


# Side-cars.


def signed(table, arrays=b""):
    """Return a side-car with this table."""
    start = -(-(struct.calcsize("<2s8sHIQQ") + len(table)) // 64) * 64
    facts = len(table), start + len(arrays), xxh3(table)
    head = struct.pack("<2s8sHIQQ", b"\xc4\x1e", b"npstream", 1, *facts)
    return (head + table).ljust(start, b"\xc0") + arrays


def test_a_table_that_is_too_large_is_not_read(path, monkeypatch):
    file = path / "index.msgpack"
    for table in (b"\xdd\xff\xff\xff\xff\xc0", b"\x91" * 1000 + b"\xc0", b"\xc1"):
        file.write_bytes(signed(table))
        with pytest.raises(FormatError):
            Sidecar(LocalStore(str(path)))
    file.write_bytes(signed(msgpack.packb(["x" * 2000])))
    monkeypatch.setattr(sections, "_MAX_TABLE", 1000)
    with pytest.raises(FormatError, match="its table takes 2,004 bytes"):
        Sidecar(LocalStore(str(path)))


def test_a_column_with_too_few_hashes(path):
    file = path / "index.msgpack"
    content = file.read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    table = msgpack.unpackb(content[32 : 32 + length])
    for section in table["sections"]:
        if section[0] == "column/x":
            section[2], section[4] = 0, b""
    start = -(-(32 + length) // 64) * 64
    file.write_bytes(signed(msgpack.packb(table), content[start:]))
    with pytest.raises(FormatError, match="section 'column/x' is 0"):
        Sidecar(LocalStore(str(path))).column("x")


@pytest.mark.parametrize("size", [0, 100, 128, 1000])
def test_a_column_file_that_was_cut(path, tmp_path, upload, size):
    (file,) = (path / "index.columns").iterdir()
    file.write_bytes(file.read_bytes()[:size])
    ds = npstream.open(upload(path), cache=tmp_path / "cache")
    for read in (ds["x"].load, ds.prefetch, ds["x"].min, ds.explain):
        try:
            read()
        except (FormatError, StorageError):
            continue
    with pytest.raises((FormatError, StorageError)):
        ds["x"].load()


# Shards.


def test_an_index_that_says_a_piece_is_larger_than_there_is(path):
    """What is not there takes no memory."""
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


def test_pieces_arrive_in_parts_of_any_size(path):
    schema = npstream.open(path)._source.index.schemas[0]
    shard = sorted(path.glob("*.mds"))[0].read_bytes()
    samples = int.from_bytes(shard[:4], "little")
    columns = {"x": np.dtype("<i8")}
    found = []
    for step in (1, 7, 1000, len(shard)):
        scan = Scan(schema, samples, columns, compressed=False, nbytes=len(shard))
        for at in range(0, len(shard), step):
            scan.feed(shard[at : at + step])
        found.append(scan.finish())
    assert all(np.array_equal(each.pieces, found[0].pieces) for each in found)
    assert all(np.array_equal(each.columns["x"], np.arange(samples)) for each in found)


def test_shards_without_a_column_in_common(tmp_path, upload):
    write_shards(tmp_path / "a", {"x": [1, 2]}, [2])
    write_shards(tmp_path / "b", {"y": [1.5, 2]}, [2])
    index = json.loads((tmp_path / "a" / "0000" / "index.json").read_text())
    other = json.loads((tmp_path / "b" / "0000" / "index.json").read_text())
    for found, place in ((index, "a"), (other, "b")):
        raw = found["shards"][0]["raw_data"]
        raw["basename"] = f"{place}/0000/{raw['basename']}"
    index["shards"] += other["shards"]
    index.pop("npstream", None)
    (tmp_path / "index.json").write_text(json.dumps(index))
    for place in (tmp_path, upload(tmp_path)):
        ds = npstream.open(place, cache=tmp_path / "cache")
        assert (ds.columns, ds[3], list(ds)) == ((), {}, [{}] * 4)


# Caches.


def test_a_stored_object_of_a_size_that_does_not_fit(tmp_path):
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


def test_a_footer_with_more_pieces_than_a_shard_has(tmp_path):
    cache = ShardCache(tmp_path, "1GB")
    file = tmp_path / f"{KEY}.shard"
    footer = Footer(KEY, 0, 1 << 41, bytes(16))
    with open(file, "wb") as opened:
        opened.truncate(1 << 41)
        opened.seek(1 << 41)
        opened.write(footer.pack())
    assert cache.open(KEY, 10, 1) is None
    cache.clear()
    assert file.exists()  # nor is it one of the cache's


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_what_is_no_reservation_reserves_nothing(tmp_path, kind):
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
def test_a_directory_that_is_replaced_while_it_is_in_use(tmp_path, kind):
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


# Unfinished work.


@pytest.fixture
def unfinished(path, monkeypatch):
    """Interrupt the making of a side-car; return its directory and what it is to be."""
    monkeypatch.setattr(build, "_SAVE_INTERVAL", 0)
    monkeypatch.setattr(reread, "_MAX_GROUP_SHARDS", 1)
    (path / "index.msgpack").unlink()
    npstream.build_index(path)
    made = (path / "index.msgpack").read_bytes()
    (path / "index.msgpack").unlink()
    add, left = spool.Spool.add, iter(range(3))

    def interrupted(self, found):
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(self, found)

    with monkeypatch.context() as patched:
        patched.setattr(spool.Spool, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            npstream.build_index(path)
    return path, made


def finish(unfinished, monkeypatch):
    """Finish the work; return how many shards were read for it."""
    path, made = unfinished
    read = []
    add = spool.Spool.add
    monkeypatch.setattr(spool.Spool, "add", lambda self, found: (read.append(1), add(self, found)))
    npstream.build_index(path)
    assert (path / "index.msgpack").read_bytes() == made
    return len(read)


def test_sound_work_is_not_done_again(unfinished, monkeypatch):
    shards = len(npstream.open(unfinished[0]).shards)
    assert finish(unfinished, monkeypatch) == shards - 3


@pytest.mark.parametrize("name", ["heads", "pieces", "bounds", "values"])
@pytest.mark.parametrize("damage", ["flip", "cut", "directory", "link", "fifo"])
def test_damaged_work_is_done_again(unfinished, monkeypatch, tmp_path, name, damage):
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
    assert finish(unfinished, monkeypatch) == shards
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
def test_a_damaged_record_of_the_work(unfinished, monkeypatch, text):
    shards = len(npstream.open(unfinished[0]).shards)
    file = unfinished[0] / ".index.work" / "state.json"
    key = json.dumps(json.loads(file.read_text())["key"])
    file.write_text(text.replace("KEY", key), "latin-1")
    assert finish(unfinished, monkeypatch) == shards


def test_work_on_a_full_disk(path, monkeypatch):
    (path / "index.msgpack").unlink()

    class Full(io.FileIO):
        def write(self, body):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "_open", lambda folder, name: Full(f"{folder}/{name}", "w+"))
    with pytest.raises(StorageError, match="No space left on device: cannot store"):
        npstream.build_index(path)
