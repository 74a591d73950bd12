"""Shards are stored in the background, in order, and a few at a time; after an error none stays."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading

import numpy as np
import pytest
from destinations import assert_no_files, names
from started import started_threads

import npstream
from npstream.errors import StorageError
from npstream.formats import chunks
from npstream.storage.local import LocalStore
from npstream.writing import destination, pipeline, shard
from npstream.writing.destination import LocalDestination

ROWS = 64
SHARD = 2000
ROW_BYTES = 96
"""Bytes of a row in a shard: 8 of `x`, 80 of `text`, 4 of its size, and 4 of an offset."""


def rows(count=ROWS):
    for number in range(count):
        yield {"x": number, "text": "text" * 20}


@pytest.fixture
def replace_compression(monkeypatch):
    """Return a function that replaces how shards are compressed, given the original."""

    def replace(function):
        original = pipeline.compress_pieces
        monkeypatch.setattr(pipeline, "compress_pieces", lambda *args: function(original, *args))

    return replace


@pytest.mark.parametrize("compression", [None, "zstd", "gz"])
def test_the_order_is_that_of_the_samples(compression, tmp_path):
    report = npstream.write(tmp_path, rows(), shard_size=SHARD, compression=compression)
    assert report.shards > 2
    assert npstream.open(tmp_path)["x"].load().tolist() == list(range(ROWS))
    assert npstream.verify_dataset(tmp_path).problems == ()


def test_shards_are_compressed_while_samples_are_written(tmp_path, replace_compression):
    """With few shards, the last sample is written before any shard is compressed."""
    last = threading.Event()

    def compress(original, data, spec):
        assert last.wait(60)
        return original(data, spec)

    replace_compression(compress)
    with npstream.Writer(tmp_path, shard_size=SHARD, compression="zstd") as writer:
        for sample in rows(2 * SHARD // ROW_BYTES):
            writer.write(sample)
        assert names(str(tmp_path)) == []
        last.set()
    assert len(npstream.open(tmp_path)) == 2 * SHARD // ROW_BYTES


def test_a_shard_that_takes_long_does_not_change_the_order(tmp_path, replace_compression):
    order, second = [], threading.Event()

    def compress(original, data, spec):
        begin = int.from_bytes(data[4:8], "little")  # the offset of the first sample
        first_x = int.from_bytes(data[begin + 84 : begin + 92], "little")  # 84: `text`, its size
        if first_x == 0:
            assert second.wait(60)
        order.append(first_x)
        second.set()
        return original(data, spec)

    replace_compression(compress)
    npstream.write(tmp_path, rows(), shard_size=SHARD, compression="zstd")
    assert sorted(order)[0] == 0 != order[0]
    assert npstream.open(tmp_path)["x"].load().tolist() == list(range(ROWS))


def test_a_few_shards_are_in_memory(tmp_path, replace_compression, monkeypatch):
    """The source is not read further while the threads have the maximum number of shards."""
    read, counts = [], []

    def compress(original, data, spec):
        count = -1
        while count != len(read):  # until the source was not read for a while
            count = len(read)
            threading.Event().wait(0.05)
        counts.append(count)
        return original(data, spec)

    def source():
        for sample in rows(1000):
            read.append(sample)
            yield sample

    monkeypatch.setattr(destination, "_MAX_COMPRESSED_SHARDS", 2)
    replace_compression(compress)
    npstream.write(tmp_path, source(), shard_size=5000, compression="zstd")
    per_shard = 1000 / len(npstream.open(tmp_path).shards)
    for number, count in enumerate(counts):
        # Two shards are in threads, one is filled, and a row of the next may have been read.
        assert count <= (number + 3) * per_shard + 5


class Failure(Exception):
    pass


@pytest.mark.parametrize("successes", [0, 1, 3])
@pytest.mark.parametrize("interface", ["write", "writer"])
def test_a_failure_in_a_thread_is_raised_and_publishes_nothing(
    successes, interface, tmp_path, replace_compression
):
    count = []

    def compress(original, data, spec):
        count.append(data)
        if len(count) > successes:
            raise MemoryError("no memory is left")
        return original(data, spec)

    def write_all():
        if interface == "write":
            npstream.write(path, rows(), shard_size=SHARD, compression="zstd")
            return
        with npstream.Writer(path, shard_size=SHARD, compression="zstd") as writer:
            for sample in rows():
                writer.write(sample)

    replace_compression(compress)
    path = tmp_path / "out"
    with pytest.raises(MemoryError, match="no memory is left"):
        write_all()
    assert_no_files(str(path))


def test_a_full_disk_in_a_thread_is_a_storage_error(tmp_path, monkeypatch):
    sync = os.fsync

    def fail(descriptor):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    out = tmp_path / "out"
    with pytest.raises(StorageError, match=r"No space left.*shard\.0000") as caught:
        npstream.write(out, rows(), shard_size=SHARD)
    assert caught.value.errno == errno.ENOSPC
    assert_no_files(str(out))


def test_an_exception_of_the_source_waits_for_threads(tmp_path, replace_compression):
    """Shards that threads store after the exception are removed, too."""
    started = threading.Event()

    def compress(original, data, spec):
        started.set()
        return original(data, spec)

    def source():
        yield from rows(60)
        assert started.wait(60)
        raise Failure

    replace_compression(compress)
    with pytest.raises(Failure):
        npstream.write(tmp_path / "out", source(), shard_size=SHARD, compression="zstd")
    assert_no_files(str(tmp_path / "out"))
    assert not started_threads("npstream-write")


def test_a_writer_that_is_garbage_collected_while_threads_store(tmp_path, replace_compression):
    started = threading.Event()

    def compress(original, data, spec):
        started.set()
        return original(data, spec)

    replace_compression(compress)
    writer = npstream.Writer(tmp_path / "out", shard_size=SHARD, compression="zstd")
    for sample in rows():
        writer.write(sample)
    assert started.wait(60)
    del writer
    gc.collect()
    assert_no_files(str(tmp_path / "out"))


def test_the_first_shard_is_stored_first(tmp_path, replace_compression):
    """The first shard claims the directory, so that one of two concurrent writers succeeds."""
    calls, second = itertools.count(1), threading.Event()

    def compress(original, data, spec):
        if next(calls) == 1:
            assert second.wait(60)
        second.set()
        return original(data, spec)

    replace_compression(compress)
    stored = []
    link = LocalDestination._link

    def record(self, name, draft):
        stored.append(name)
        link(self, name, draft)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalDestination, "_link", record)
        npstream.write(tmp_path, rows(), shard_size=SHARD, compression="zstd")
    assert stored[0] == "shard.00000.mds.zstd"
    assert len(stored) > 3


def test_rows_larger_than_the_blocks_that_are_written(tmp_path):
    """The buffer of a row is reused while a thread scans the chunk before it."""
    for number in range(3):  # one write may not show a race
        rows = np.random.default_rng(number).integers(0, 256, (6, 3 << 20), np.uint8)
        npstream.write(tmp_path / str(number), {"x": rows})
        assert npstream.verify_dataset(tmp_path / str(number)).problems == ()


# Arrays of fixed columns


def arrays(count=ROWS):
    return {"x": np.arange(count), "row": np.arange(25 * count, dtype=np.uint16).reshape(count, 25)}


@pytest.mark.parametrize("sidecar", [True, False])
@pytest.mark.parametrize("compression", [None, "gz"])
@pytest.mark.parametrize("columns", [("x", "row"), ("row",)])
def test_arrays_are_stored_as_their_rows_are(columns, compression, sidecar, tmp_path, monkeypatch):
    """Small pieces and chunks: a shard has several chunks, and a chunk has several pieces."""
    monkeypatch.setattr(shard, "_PIECE_BYTES", 150)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 500)
    data = {name: arrays()[name] for name in columns}
    samples = (dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True))
    options = {"compression": compression, "sidecar": sidecar, "hashes": ["sha1"]}
    encodings = {"x": "int64", "row": "ndarray:uint16:25"}
    encodings = {name: encodings[name] for name in columns}
    npstream.write(tmp_path / "arrays", data, shard_size=SHARD, **options)
    npstream.write(tmp_path / "rows", samples, columns=encodings, shard_size=SHARD, **options)
    stored = {file.relative_to(tmp_path / "arrays") for file in tmp_path.glob("arrays/**/*")}
    assert len(stored) > 2
    assert npstream.verify_dataset(tmp_path / "arrays").problems == ()
    for name in stored:
        path = tmp_path / "arrays" / name
        assert path.is_dir() or path.read_bytes() == (tmp_path / "rows" / name).read_bytes()


@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(25 * ROWS, dtype=np.uint16).reshape(ROWS, 25),
        np.arange(50 * ROWS, dtype=np.uint16).reshape(ROWS, 50)[:, ::2],
        np.arange(25 * ROWS).reshape(ROWS, 25).astype(">u2"),
        np.arange(ROWS).astype("datetime64[D]"),
    ],
    ids=["contiguous", "strided", "big-endian", "dates"],
)
def test_a_single_array_is_stored_as_its_rows_are(array, is_aligned, tmp_path, monkeypatch):
    """The scan reads whole blocks of the array, or chunks of another size than the blocks."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 500)
    if is_aligned:
        monkeypatch.setattr(pipeline, "CHUNK_BYTES", 500)
    npstream.write(tmp_path / "array", {"x": array}, shard_size=SHARD)
    native = array.astype(array.dtype.newbyteorder("="))
    encoding = npstream.open(tmp_path / "array")._encodings()
    samples = ({"x": row} for row in native)
    npstream.write(tmp_path / "rows", samples, columns=encoding, shard_size=SHARD)
    assert npstream.verify_dataset(tmp_path / "array").problems == ()
    stored = [file for file in tmp_path.glob("array/**/*") if file.is_file()]
    assert len(stored) > 2
    for file in stored:
        path = tmp_path / "rows" / file.relative_to(tmp_path / "array")
        assert file.read_bytes() == path.read_bytes()
    assert (npstream.open(tmp_path / "array")["x"].load() == array).all()


def test_a_shard_of_arrays_is_synced_while_the_next_one_is_written(tmp_path, monkeypatch):
    """The first sync runs until another shard has been written."""
    synced, second, sync = [], threading.Event(), os.fsync
    draft = LocalDestination.write_draft

    def record(self, name, pieces):
        publish = draft(self, name, pieces)
        if name == "shard.00001.mds":
            second.set()
        return publish

    def wait(descriptor):
        if not synced:
            assert second.wait(60)
        synced.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(LocalDestination, "write_draft", record)
    monkeypatch.setattr(os, "fsync", wait)
    report = npstream.write(tmp_path, arrays(), shard_size=SHARD)
    assert report.shards > 2
    assert npstream.open(tmp_path)["x"].load().tolist() == list(range(ROWS))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_while_a_shard_of_arrays_is_synced(number, tmp_path, monkeypatch):
    count, sync = itertools.count(1), os.fsync

    def fail(descriptor):
        if next(count) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"No space left.*shard\.0000") as caught:
        npstream.write(tmp_path / "out", arrays(), shard_size=SHARD)
    assert caught.value.errno == errno.ENOSPC
    assert_no_files(str(tmp_path / "out"))


def test_a_shard_is_scanned_while_it_is_stored(tmp_path, monkeypatch):
    """The first scan ends only after its file was synced, and a sync starts before that."""
    synced, sync, scan_pieces = threading.Event(), os.fsync, pipeline._scan_pieces

    def wait(scan, pieces):
        assert synced.wait(60)
        return scan_pieces(scan, pieces)

    def record(descriptor):
        sync(descriptor)
        synced.set()

    monkeypatch.setattr(pipeline, "_scan_pieces", wait)
    monkeypatch.setattr(os, "fsync", record)
    npstream.write(tmp_path, rows(), shard_size=SHARD)
    assert npstream.verify_dataset(tmp_path).problems == ()


def test_every_thread_that_stores_can_wait_for_a_scan(tmp_path):
    """As many jobs as there are threads wait for scans, which start after all of them."""
    local = LocalDestination(LocalStore(str(tmp_path)))
    count = local.max_parallel(compressed=True)
    barrier = threading.Barrier(count)

    def store(number):
        barrier.wait(60)
        return local.submit_scan(lambda: number).result(60)

    jobs = [local.submit(store, number) for number in range(count)]
    assert [job.result(60) for job in jobs] == list(range(count))
    local.remove()


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_of_a_scan_is_raised_and_publishes_nothing(failing, tmp_path, monkeypatch):
    scans, scan_pieces = itertools.count(), pipeline._scan_pieces

    def fail(scan, pieces):
        if next(scans) == failing:
            raise Failure("in a scan")
        return scan_pieces(scan, pieces)

    monkeypatch.setattr(pipeline, "_scan_pieces", fail)
    with pytest.raises(Failure, match="in a scan"):
        npstream.write(tmp_path / "out", rows(), shard_size=SHARD)
    assert_no_files(str(tmp_path / "out"))


def test_the_first_shard_of_arrays_gets_its_name_first(tmp_path, monkeypatch):
    """The sync of the first one takes longer than that of the second one."""
    linked, second = [], threading.Event()
    sync_all, link = LocalStore.sync_all, LocalDestination._link

    def sync(self, drafts, action):
        if drafts[0][0] == "shard.00000.mds":
            assert second.wait(60)
        sync_all(self, drafts, action)
        if drafts[0][0] == "shard.00001.mds":
            second.set()

    def record(self, name, draft):
        linked.append(name)
        link(self, name, draft)

    monkeypatch.setattr(LocalStore, "sync_all", sync)
    monkeypatch.setattr(LocalDestination, "_link", record)
    npstream.write(tmp_path, arrays(), shard_size=SHARD)
    assert linked[:2] == ["shard.00000.mds", "shard.00001.mds"]
