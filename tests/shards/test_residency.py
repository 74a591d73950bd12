"""Tests of cached files: samples are right whatever happens to the cache, its disk or its bytes."""

from __future__ import annotations

import collections
import errno
import itertools
import multiprocessing
import os
import re
import shutil
import subprocess
import time

import fsspec
import numpy as np
import pytest
from dataset_files import write_jsonl

import npstream
from npstream.__main__ import main
from npstream.cache import downloads, sparse_file
from npstream.cache.cache import Refusal
from npstream.errors import IntegrityError, StorageError
from npstream.reading import load as reading
from npstream.shards.table import Fetcher
from npstream.storage.remote import RemoteStore

SAMPLES = 600

HANG = 120
"""Seconds after which a process is regarded as hanging."""


def write(directory, variable=True, **options):
    """Write a dataset with about 100 bytes a sample, and return its numbers."""
    numbers = np.arange(SAMPLES * 12).reshape(SAMPLES, 12)
    rows = [{"id": i, "text": f"{i}" * (i % 40), "x": numbers[i]} for i in range(SAMPLES)]
    columns = {"id": "int64", "text": "str", "x": "ndarray:int64:12"}
    if not variable:
        rows, columns = {"id": np.arange(SAMPLES), "x": numbers}, None
    npstream.write(directory, rows, columns=columns, shard_size="16KB", **options)
    return numbers


def check(ds, numbers):
    """Read all samples in several ways."""
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    np.testing.assert_array_equal(ds[::3]["x"].load(), numbers[::3])
    np.testing.assert_array_equal(ds[77]["x"], numbers[77])
    assert [sample["id"] for sample in ds] == list(range(SAMPLES))
    ids = [batch.ids for batch in ds.iter(0, 1, batch_size=64, shuffle=True, last="short")]
    assert sorted(np.concatenate(ids)) == list(range(SAMPLES))


# The limit of the cache.


@pytest.mark.parametrize(
    ("limit_from", "compression"),
    [("argument", None), ("argument", "zstd"), ("environment", "zstd")],
)
def test_a_limit_below_the_largest_chunk_raises(
    compression, limit_from, tmp_path, upload, small_chunks, monkeypatch
):
    numbers = write(tmp_path / "data", compression=compression)
    url = upload(tmp_path / "data")

    def open_dataset(limit):
        if limit_from == "argument":
            return npstream.open(url, cache=tmp_path / "cache", cache_limit=limit)
        monkeypatch.setenv("NPSTREAM_CACHE_LIMIT", str(limit))
        return npstream.open(url, cache=tmp_path / "cache")

    with pytest.raises(ValueError, match="raise cache_limit") as caught:
        open_dataset(1000)
    min_limit = int(re.search(r"at least ([\d,]+)", str(caught.value))[1].replace(",", ""))
    # The largest chunk of a compressed shard is the whole shard.
    assert min_limit > 28_000 if compression else min_limit < 24_000
    with pytest.raises(ValueError, match=f"{min_limit:,}"):
        open_dataset(min_limit - 1)
    ds = open_dataset(min_limit)
    cached_before = ds[:1].explain().cached
    ds[:5].load()
    assert (cached_before, ds[:1].explain().cached) == (0, 1)
    check(ds, numbers)
    assert npstream.cache.info(tmp_path / "cache").nbytes <= 2 * min_limit


def test_a_full_disk_without_a_limit_does_not_raise(tmp_path, upload, monkeypatch):
    numbers = write(tmp_path / "data")
    url = upload(tmp_path / "data")
    monkeypatch.setattr("npstream.cache.eviction.free_and_total", lambda path: (0, 1 << 40))
    check(npstream.open(url, cache=tmp_path / "cache"), numbers)
    assert npstream.cache.info(tmp_path / "cache").files == 0


def test_a_read_larger_than_the_limit_does_not_stop_caching(tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit="150KB")
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    assert 0 < ds.explain().cached < ds.explain().chunks
    for start in range(0, SAMPLES, 100):
        ds[start : start + 50].load()
        cost = ds[start : start + 50].explain()
        assert cost.cached >= cost.chunks - 2  # few samples of the first and last chunk are read


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("reads", ["samples", "batches", "shuffled"])
def test_shards_that_a_sequential_reader_finished_are_evicted_first(
    reads, step, tmp_path, upload, small_chunks, monkeypatch
):
    monkeypatch.setattr(reading, "SAMPLE_BLOCK", 1 << 10)
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")[::step]
    ds.load()
    items, count = iter(ds), SAMPLES * 3 // 4
    if reads != "samples":
        items = iter(ds.iter(0, 1, batch_size=5, shuffle=reads == "shuffled"))
        count //= 5
    for _ in range(count):
        next(items)
    assert len(ds.shards) == 7
    # The cache sets the mtime of finished files far into the past.
    times = [path.stat().st_mtime for path in (tmp_path / "cache").glob("*.shard")]
    finished = sum(mtime < time.time() - 1e9 for mtime in times)
    assert finished in ([0] if reads == "shuffled" else [4, 5])


# The disk of the cache.


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """Return a directory on a disk of 1 MB, and a function that fills it, or simulates that."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]
    if shutil.which("mount") and not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:

        def fill():
            with open(disk / "ballast", "wb", buffering=0) as ballast:  # noqa: SIM117
                with pytest.raises(OSError, match="No space left"):  # noqa: PT012
                    while True:
                        ballast.write(bytes(4096))

        yield disk, fill
        subprocess.run(["umount", "-l", disk], check=True)
    else:

        def raise_no_space(*_arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        yield disk, lambda: monkeypatch.setattr(sparse_file, "write_all", raise_no_space)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_full_disk_does_not_stop_reads(
    when, compression, full_disk, tmp_path, upload, small_chunks
):
    numbers = write(tmp_path / "data", compression=compression)
    directory, fill = full_disk
    if when == "before":
        fill()
    ds = npstream.open(upload(tmp_path / "data"), cache=directory / "cache", cache_limit="1GB")
    if when == "after":
        ds[:100].load()
        fill()
    check(ds, numbers)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("is_filled", [False, True])
def test_a_read_only_cache_does_not_stop_reads(
    is_filled, compression, tmp_path, upload, small_chunks, monkeypatch
):
    numbers = write(tmp_path / "data", compression=compression)
    url = upload(tmp_path / "data")
    if is_filled:
        npstream.open(url, cache=tmp_path / "cache")[:300].load()
    make_read_only(tmp_path / "cache", monkeypatch)
    check(npstream.open(url, cache=tmp_path / "cache"), numbers)


def make_read_only(directory, monkeypatch):
    """Make writes below a directory fail, even for root, whom permissions do not stop."""
    os_open, os_makedirs = os.open, os.makedirs

    def refuse(path, flags, *arguments, **options):
        if str(path).startswith(str(directory)) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return os_open(path, flags, *arguments, **options)

    def refuse_to_make(path, *arguments, **options):
        if not os.path.isdir(path):
            raise OSError(errno.EROFS, "Read-only file system", path)
        os_makedirs(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "makedirs", refuse_to_make)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_no_request_is_made_under_the_lock_of_a_fetcher(
    compression, tmp_path, upload, small_chunks, monkeypatch
):
    """Even for shards that are evicted before they are opened."""
    numbers = write(tmp_path / "data", variable=False, compression=compression)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    lock, load_shards = ds._source.fetcher._lock, Fetcher._load_shards
    stream = RemoteStore.stream_bodies
    evicted_bytes = []

    def evict(self, shards):
        evicted_bytes.append(npstream.cache.clear(tmp_path / "cache"))
        return load_shards(self, shards)

    def request(self, spans):
        assert not lock._is_owned()
        return stream(self, spans)

    monkeypatch.setattr(Fetcher, "_load_shards", evict)
    monkeypatch.setattr(RemoteStore, "stream_bodies", request)
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    np.testing.assert_array_equal(ds[7]["x"], numbers[7])
    assert max(evicted_bytes) > 0


def test_a_cache_directory_may_be_deleted_in_use(tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    for stop in (100, 300, SAMPLES):
        np.testing.assert_array_equal(ds[:stop]["x"].load(), numbers[:stop])
        shutil.rmtree(tmp_path / "cache")
    check(ds, numbers)


# The bytes of the cache.


@pytest.fixture
def flips(monkeypatch):
    """Return a list with one number: how many of the next responses have a flipped bit."""
    remaining = [0]
    stream = RemoteStore.stream_bodies

    def stream_flipped(self, spans):
        spans = list(spans)
        for number, body in stream(self, spans):
            data = bytes(body)
            if remaining[0] and spans[number][0].endswith(".mds") and len(data) > 100:
                remaining[0] -= 1
                data = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
            yield number, data

    monkeypatch.setattr(RemoteStore, "stream_bodies", stream_flipped)
    return remaining


@pytest.mark.parametrize("times", [1, 2])
def test_a_bit_that_flips_in_transfer_is_fetched_again(
    times, flips, tmp_path, upload, small_chunks
):
    numbers = write(tmp_path / "data", variable=False)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    flips[0] = times
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    assert flips[0] == 0


@pytest.mark.parametrize("verify", ["auto", True])
def test_a_bit_that_is_always_wrong_raises(verify, flips, tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data", variable=False)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", verify=verify)
    flips[0] = 1 << 30
    # Single samples are verified only with verify=True.
    single = [lambda: ds[-1], lambda: list(ds), lambda: list(ds.iter(0, 1, shuffle=True))]
    for read in [ds.load, ds.prefetch, *(single if verify is True else [])]:
        with pytest.raises(IntegrityError, match=rf"shard\.\d+\.mds.* {downloads.ATTEMPTS} att"):
            read()
    flips[0] = 0
    check(ds, numbers)  # no damaged piece was kept


@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize("hashes", [(), ("xxh64",)])
def test_chunks_that_the_cache_cannot_hold_are_verified(
    variable, hashes, tmp_path, upload, small_chunks, monkeypatch
):
    numbers = write(tmp_path / "data", variable=variable, hashes=hashes)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", verify=True)
    np.testing.assert_array_equal(ds[:9]["x"].load(), numbers[:9])
    monkeypatch.setattr(
        "npstream.cache.cache.ShardCache.reserve", lambda *_, **options: Refusal.FULL
    )
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    reads = (lambda: ds[-1], lambda: list(ds.iter(0, 1, shuffle=True)))
    read_file = RemoteStore.read

    def read_damaged(self, name, nbytes=None):
        body = bytearray(read_file(self, name, nbytes))
        body[-9] ^= 1
        return bytes(body)

    monkeypatch.setattr(RemoteStore, "read", read_damaged)
    for read in reads:
        with pytest.raises(IntegrityError, match=r"shard\.\d+\.mds"):
            read()


def damage(cache, begin=0.0, end=0.9):
    """Flip all bits in a part of each cached shard, but not in its footer."""
    for path in sorted(cache.glob("*.shard")):
        body = bytearray(path.read_bytes())
        with sparse_file.open_descriptor(str(path)) as descriptor:
            footer = sparse_file.read_footer(descriptor)
        first, last = int(begin * footer.nbytes), int(end * footer.nbytes)
        body[first:last] = bytes(byte ^ 255 for byte in body[first:last])
        with open(path, "r+b") as file:
            file.write(body)


@pytest.mark.parametrize("part", [(0.0, 0.01), (0.5, 0.6), (0.0, 1.0)])
@pytest.mark.parametrize(
    ("kind", "verify"),
    [
        *itertools.product(["variable", "fixed", "compressed", "no side-car"], [True, "xxh64"]),
        ("text", True),
    ],
)
def test_a_damaged_cache_is_detected_and_fetched_again(
    kind, part, verify, tmp_path, upload, requests, small_chunks
):
    data = tmp_path / "data"
    if kind == "text":
        rows = [{"id": i, "x": f"{i:08}" * 9} for i in range(SAMPLES)]
        write_jsonl(data, rows, {"id": "int", "x": "str"})
        npstream.build_index(data)
        numbers = np.array([row["x"] for row in rows])
    else:
        compression = "zstd" if kind == "compressed" else None
        numbers = write(data, kind == "variable", hashes=["xxh64"], compression=compression)
    if kind == "no side-car":
        (data / "index.msgpack").unlink()
    url, cache = upload(data), tmp_path / "cache"
    for _ in range(2):
        with npstream.open(url, cache=cache, verify=verify) as ds:
            ds.load()
        damage(cache, *part)
        # One sample, some samples of every chunk, all samples.
        for index in (slice(77, 78), slice(None, None, 5), slice(None)):
            with npstream.open(url, cache=cache, verify=verify) as ds:
                np.testing.assert_array_equal(np.asarray(ds[index]["x"].load()), numbers[index])
    # Undamaged pieces are not fetched again, even by another opening.
    with npstream.open(url, cache=cache, verify=verify) as ds:
        ds.load()
    requests.clear()
    with npstream.open(url, cache=cache, verify=verify) as ds:
        np.testing.assert_array_equal(np.asarray(ds["x"].load()), numbers)
        assert ds[SAMPLES - 1]["id"] == SAMPLES - 1
    assert not [span for span in requests if "shard" in span[0]]


def test_pieces_that_another_reader_did_not_verify_are_verified(tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data")
    url, cache = upload(tmp_path / "data"), tmp_path / "cache"
    with (
        npstream.open(url, cache=cache, verify=True) as ds,
        npstream.open(url, cache=cache, verify=False) as other,
    ):
        assert ds[0]["id"] == 0  # opens the files
        other.load()
        damage(cache, 0.3, 1.0)
        assert ds.explain().cached == ds.explain().chunks
        np.testing.assert_array_equal(ds["x"].load(), numbers)
        check(ds, numbers)


@pytest.mark.parametrize("has_sidecar", [True, False])
def test_a_replaced_shard_raises(has_sidecar, tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data", variable=False, hashes=["xxh64"])
    if not has_sidecar:
        (tmp_path / "data" / "index.msgpack").unlink()
    url = upload(tmp_path / "data")
    ds = npstream.open(url, cache=tmp_path / "cache")
    np.testing.assert_array_equal(ds[:10]["x"].load(), numbers[:10])
    files = fsspec.filesystem("memory")
    for name in files.glob(f"{url.removeprefix('memory:/')}/*.mds"):
        body = files.cat_file(name)
        files.pipe_file(name, body[:-900] + bytes(900))
    with pytest.raises(IntegrityError, match=r"shard\.\d+\.mds"):
        ds.load()
    with pytest.raises((IntegrityError, StorageError)):
        npstream.open(url, cache=tmp_path / "cache")["x"].load()


# Side-cars.


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_side_car_apart_from_the_dataset_is_used(
    scheme, tmp_path, upload, requests, small_chunks
):
    numbers = write(tmp_path / "data", variable=False)
    (tmp_path / "data" / "index.msgpack").unlink()
    shutil.rmtree(tmp_path / "data" / "index.columns")
    url = upload(tmp_path / "data")
    out = tmp_path / "side-car" if scheme == "file" else "memory://elsewhere"
    npstream.build_index(url, out=out)
    ds = npstream.open(url, index=out, cache=tmp_path / "cache", implicit_read_limit=0)
    requests.clear()
    assert np.flatnonzero(ds["id"] % 200 == 7).tolist() == [7, 207, 407]
    assert {name for name, *_ in requests} <= {"index.columns/id.npy"}
    check(ds, numbers)
    with pytest.raises(ValueError, match="needs at least"):
        npstream.open(url, index=out, cache=tmp_path / "cache", cache_limit=10)
    if scheme == "memory":
        fsspec.filesystem("memory").rm("/elsewhere", recursive=True)


def test_a_damaged_side_car_gives_no_wrong_values(tmp_path, upload, monkeypatch, caplog):
    monkeypatch.setattr("npstream.formats.sidecar.sidecar.END_BYTES", 64)
    # So that the side-car is read instead of the index.
    monkeypatch.setattr("npstream.shards.manifest.LARGE_INDEX", 0)
    numbers = write(tmp_path / "data", variable=False)
    body = bytearray((tmp_path / "data" / "index.msgpack").read_bytes())
    messages = 0
    for k, position in enumerate(range(100, len(body), 444)):
        damaged = bytearray(body)
        damaged[position] ^= 1
        (tmp_path / "data" / "index.msgpack").write_bytes(damaged)
        url = upload(tmp_path / "data")
        caplog.clear()
        with caplog.at_level("INFO", "npstream"):
            ds = npstream.open(url, cache=tmp_path / f"cache{k}", verify=False)
        messages += "reading without a side-car" in caplog.text
        try:
            np.testing.assert_array_equal(ds["x"].load(), numbers)
        except IntegrityError as error:
            assert "index.msgpack" in str(error)  # noqa: PT017 - other reads succeed
    assert messages


# Other processes.


def read_in_process(url, cache, barrier, queue):
    """Read an epoch, and send the sum of the ids and the fetched pieces."""
    pieces = []
    transfer = downloads.Downloads._transfer

    def record_pieces(self, parts, *arguments):
        pieces.extend((part.file.path, piece) for part in parts for piece in part.pieces)
        return transfer(self, parts, *arguments)

    downloads.Downloads._transfer = record_pieces
    ds = npstream.open(url, cache=cache)
    barrier.wait(HANG)
    total = sum(int(batch["id"].sum()) for batch in ds.iter(0, 1, batch_size=50, shuffle=True))
    queue.put((total, pieces))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_fetch_every_chunk_once(method, tmp_path):
    write(tmp_path / "data", variable=False)
    context = multiprocessing.get_context(method)
    barrier, queue = context.Barrier(2), context.Queue()
    arguments = (f"local://{tmp_path / 'data'}", tmp_path / "cache", barrier, queue)
    workers = [context.Process(target=read_in_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    (total, pieces), (other_total, other_pieces) = queue.get(timeout=HANG), queue.get(timeout=HANG)
    for worker in workers:
        worker.join()
    counts = collections.Counter([*pieces, *other_pieces])
    assert set(counts.values()) == {1}
    assert total == other_total >= SAMPLES * (SAMPLES - 1) // 2


@pytest.mark.parametrize(("method", "persistent"), [("fork", False), ("spawn", True)])
def test_workers_of_a_loader_read_each_sample_once(method, persistent, tmp_path):
    torch = pytest.importorskip("torch")
    numbers = write(tmp_path / "data", variable=False)
    ds = npstream.open(f"local://{tmp_path / 'data'}", cache=tmp_path / "cache")
    np.testing.assert_array_equal(ds[5]["x"], numbers[5])  # so that a fork inherits threads
    loader = torch.utils.data.DataLoader(
        ds.iter(0, 1, batch_size=32, shuffle=True, last="short"),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=method,
        persistent_workers=persistent,
    )
    for _ in range(2):
        ids = []
        for batch in loader:
            np.testing.assert_array_equal(batch["x"], numbers[batch.ids])
            ids += batch.ids.tolist()
        assert sorted(ids) == list(range(SAMPLES))


def remaining_ids(samples):
    return [int(sample["id"]) for sample in samples]


def test_an_iteration_continues_in_a_forked_process(tmp_path, upload, small_chunks, monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE_BLOCK", 1 << 10)
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", timeout=1000.0)
    samples = iter(ds)
    first_ids = [int(next(samples)["id"]) for _ in range(50)]
    reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)

    def read_on():
        writer.send(remaining_ids(samples))

    child = multiprocessing.get_context("fork").Process(target=read_on)
    child.start()
    assert reader.poll(HANG), "the child waits for threads of its parent"
    assert first_ids + reader.recv() == list(range(SAMPLES))
    child.join()
    assert remaining_ids(samples) == list(range(50, SAMPLES))


# Costs.


def test_explain_estimates_the_cost_of_columns(tmp_path, upload, requests, small_chunks):
    numbers = write(tmp_path / "data", variable=False)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    assert ds["x"].explain() == ds.explain()
    requests.clear()
    for view in (ds["id"], ds["id"][::-7], ds["id"][[5, 3]]):
        cost = view.explain()
        assert (cost.samples, cost.shards, cost.chunks) == (len(view), 0, 0)
        # The header of a .npy file, and one block of values.
        assert (cost.requests, cost.nbytes) == (2, 128 + 8 * SAMPLES)
        assert requests == []
    ds["id"][[5, 3]].prefetch()
    assert requests == [
        ("index.columns/id.npy", 0, 128),
        ("index.columns/id.npy", 128, 8 * SAMPLES),
    ]
    assert (ds["id"].explain().requests, ds["id"].explain().nbytes) == (0, 0)
    assert ds["id"][100:].load()[0] == 100
    assert len(requests) == 2
    ds["x"][:300].prefetch()
    requests.clear()
    np.testing.assert_array_equal(ds["x"][:300:2].load(), numbers[:300:2])
    assert requests == []


# The command line.


def test_the_command_line_fetches_a_dataset_into_the_cache(tmp_path, upload, requests, capsys):
    numbers = write(tmp_path / "data" / "train")
    url = upload(tmp_path / "data")
    cache = tmp_path / "cache"
    assert main(["cache", "fetch", url, "--split", "train", "--cache", str(cache)]) == 0
    output = capsys.readouterr().out
    assert "600 samples in 7 chunks of 7 shards" in output
    assert str(cache) in output
    requests.clear()
    ds = npstream.open(url, split="train", cache=cache)
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    assert {name for name, *_ in requests} <= {"index.msgpack"}
    arguments = ["cache", "fetch", url, "--split", "train", "--cache", str(cache), "--limit"]
    assert main([*arguments, "1KB"]) == 1
    assert "raise cache_limit" in capsys.readouterr().err
    assert main([*arguments, "30KB"]) == 1
    assert "raise cache_limit" in capsys.readouterr().err
    assert main([*arguments, "50MB"]) == 0
    assert "of 52,428,800 that it may take" in capsys.readouterr().out


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_shard_that_is_evicted_before_it_is_opened_is_skipped(compression, tmp_path, upload):
    """Another process evicts the file after this one saw that it is ready."""
    values = np.arange(600)
    npstream.write(tmp_path / "data", {"x": values}, compression=compression)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    shards = ds._source.fetcher.shards
    shards.fetch_chunks([(0, 0)])
    is_ready = shards.files.is_ready
    answers = []

    def evict(shard):
        answers.append(is_ready(shard))
        npstream.cache.clear(tmp_path / "cache")
        return answers[-1]

    shards.files.is_ready = evict
    assert shards.open([0]) == {}
    assert answers == [True]
    del shards.files.is_ready
    assert ds["x"].load().tolist() == values.tolist()


@pytest.mark.parametrize("has_meta", [False, True])
def test_offsets_are_read_from_the_file_that_was_tested(has_meta, tmp_path, upload, small_chunks):
    """Another process evicts the file after this one saw that its offsets are present."""
    texts = [f"{i}" * (i % 40) for i in range(SAMPLES)]
    if has_meta:
        write_jsonl(tmp_path / "data", [{"text": text} for text in texts], {"text": "str"})
    else:
        npstream.write(tmp_path / "data", {"text": texts}, shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    ds["text"].load()
    files = ds._source.fetcher.shards.files
    assert files.has_meta(0) == has_meta
    expected, is_readable, answers = files.offsets(0).tolist(), files._is_readable_in, []

    def evict(*args):
        answers.append(is_readable(*args))
        npstream.cache.clear(tmp_path / "cache")
        return answers[-1]

    files._is_readable_in = evict
    assert files.offsets(0).tolist() == expected
    assert files.offsets(0) is None  # there is a new file, without offsets
    assert answers == [True, False]
    del files._is_readable_in
    assert list(ds["text"].load()) == texts
