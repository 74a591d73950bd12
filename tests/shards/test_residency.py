"""Whatever happens to the cache of a remote dataset, its samples are right."""

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
from npstream.cache import downloads
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import Refusal
from npstream.errors import IntegrityError, StorageError
from npstream.reading import load as reading
from npstream.shards.table import Fetcher
from npstream.storage.remote import RemoteStore

SAMPLES = 600


def write(directory, variable=True, **options):
    """Write a dataset of about 100 bytes a sample, and return its numbers."""
    numbers = np.arange(SAMPLES * 12).reshape(SAMPLES, 12)
    rows = [{"id": i, "text": f"{i}" * (i % 40), "x": numbers[i]} for i in range(SAMPLES)]
    columns = {"id": "int64", "text": "str", "x": "ndarray:int64:12"}
    if not variable:
        rows, columns = {"id": np.arange(SAMPLES), "x": numbers}, None
    npstream.write(directory, rows, columns=columns, shard_size="16KB", **options)
    return numbers


def check(ds, numbers):
    """Read everything in several ways."""
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    np.testing.assert_array_equal(ds[::3]["x"].load(), numbers[::3])
    np.testing.assert_array_equal(ds[77]["x"], numbers[77])
    assert [sample["id"] for sample in ds] == list(range(SAMPLES))
    seen = [batch.ids for batch in ds.iter(0, 1, batch_size=64, shuffle=True, last="short")]
    assert sorted(np.concatenate(seen)) == list(range(SAMPLES))


# Its limit.


@pytest.mark.parametrize(
    ("how", "compression"), [("argument", None), ("argument", "zstd"), ("environment", "zstd")]
)
def test_a_limit_that_is_too_small(compression, how, tmp_path, upload, small_chunks, monkeypatch):
    numbers = write(tmp_path / "data", compression=compression)
    url = upload(tmp_path / "data")

    def opened(limit):
        if how == "argument":
            return npstream.open(url, cache=tmp_path / "cache", cache_limit=limit)
        monkeypatch.setenv("NPSTREAM_CACHE_LIMIT", str(limit))
        return npstream.open(url, cache=tmp_path / "cache")

    with pytest.raises(ValueError, match="raise cache_limit") as caught:
        opened(1000)
    least = int(re.search(r"at least ([\d,]+)", str(caught.value))[1].replace(",", ""))
    # All of a compressed shard, but a chunk of another.
    assert least > 28_000 if compression else least < 24_000
    with pytest.raises(ValueError, match=f"{least:,}"):
        opened(least - 1)
    ds = opened(least)
    before = ds[:1].explain().cached
    ds[:5].load()
    assert (before, ds[:1].explain().cached) == (0, 1)
    check(ds, numbers)
    assert npstream.cache.info(tmp_path / "cache").nbytes <= 2 * least


def test_the_disk_as_the_limit_is_never_too_small(tmp_path, upload, monkeypatch):
    numbers = write(tmp_path / "data")
    url = upload(tmp_path / "data")
    monkeypatch.setattr("npstream.cache.eviction.free_and_total", lambda path: (0, 1 << 40))
    check(npstream.open(url, cache=tmp_path / "cache"), numbers)
    assert npstream.cache.info(tmp_path / "cache").files == 0


def test_a_read_that_is_larger_than_the_limit_does_not_end_caching(tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit="150KB")
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    assert 0 < ds.explain().cached < ds.explain().chunks
    for at in range(0, SAMPLES, 100):
        ds[at : at + 50].load()
        cost = ds[at : at + 50].explain()
        assert cost.cached >= cost.chunks - 2  # of those at the ends, few samples are wanted


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("how", ["samples", "batches", "shuffled"])
def test_shards_that_were_passed_in_order_go_first(
    how, step, tmp_path, upload, small_chunks, monkeypatch
):
    monkeypatch.setattr(reading, "SAMPLE_BLOCK", 1 << 10)
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")[::step]
    ds.load()
    items, count = iter(ds), SAMPLES * 3 // 4
    if how != "samples":
        items, count = iter(ds.iter(0, 1, batch_size=5, shuffle=how == "shuffled")), count // 5
    for _ in range(count):
        next(items)
    assert len(ds.shards) == 7
    used = [path.stat().st_mtime for path in (tmp_path / "cache").glob("*.shard")]
    finished = sum(when < time.time() - 1e9 for when in used)
    assert finished in ([0] if how == "shuffled" else [4, 5])


# Its disk.


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """Return a directory on a disk of 1 MB, and what fills it; it may only say that it is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]
    if shutil.which("mount") and not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:

        def fill():
            with open(disk / "ballast", "wb", buffering=0) as ballast:  # noqa: SIM117
                with pytest.raises(OSError, match="No space left"):
                    collections.deque(map(ballast.write, itertools.repeat(bytes(4096))), 0)

        yield disk, fill
        subprocess.run(["umount", "-l", disk], check=True)
    else:

        def full(*_arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        yield disk, lambda: monkeypatch.setattr(sparse, "write_all", full)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_disk_that_is_full(when, compression, full_disk, tmp_path, upload, small_chunks):
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
@pytest.mark.parametrize("held", [False, True])
def test_a_directory_that_cannot_be_written(
    held, compression, tmp_path, upload, small_chunks, monkeypatch
):
    numbers = write(tmp_path / "data", compression=compression)
    url = upload(tmp_path / "data")
    if held:
        npstream.open(url, cache=tmp_path / "cache")[:300].load()
    read_only(tmp_path / "cache", monkeypatch)
    check(npstream.open(url, cache=tmp_path / "cache"), numbers)


def read_only(directory, monkeypatch):
    """Refuse to write below a directory, also to root, who may do anything."""
    opened, made = os.open, os.makedirs

    def refuse(path, flags, *arguments, **options):
        if str(path).startswith(str(directory)) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", path)
        return opened(path, flags, *arguments, **options)

    def refuse_to_make(path, *arguments, **options):
        if not os.path.isdir(path):
            raise OSError(errno.EROFS, "Read-only file system", path)
        made(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "makedirs", refuse_to_make)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_no_store_is_waited_for_under_a_lock(
    compression, tmp_path, upload, small_chunks, monkeypatch
):
    """Shards that leave the cache before they are opened are read like others that it lacks."""
    numbers = write(tmp_path / "data", variable=False, compression=compression)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    lock, ensure, stream = ds._source.fetcher._lock, Fetcher._load_shards, RemoteStore.stream
    evicted = []

    def evict(self, shards):
        evicted.append(npstream.cache.clear(tmp_path / "cache"))
        return ensure(self, shards)

    def request(self, spans):
        assert not lock._is_owned()
        return stream(self, spans)

    monkeypatch.setattr(Fetcher, "_load_shards", evict)
    monkeypatch.setattr(RemoteStore, "stream", request)
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    np.testing.assert_array_equal(ds[7]["x"], numbers[7])
    assert max(evicted) > 0


def test_a_directory_that_is_deleted_in_use(tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    for stop in (100, 300, SAMPLES):
        np.testing.assert_array_equal(ds[:stop]["x"].load(), numbers[:stop])
        shutil.rmtree(tmp_path / "cache")
    check(ds, numbers)


# Its bytes.


@pytest.fixture
def flips(monkeypatch):
    """Return a list of how many of the next answers shall have a wrong bit."""
    left = [0]
    stream = RemoteStore.stream

    def flipped(self, spans):
        spans = list(spans)
        for number, data in stream(self, spans):
            if left[0] and spans[number][0].endswith(".mds") and len(data) > 100:
                left[0] -= 1
                data = bytes(data[:-9]) + bytes([data[-9] ^ 1]) + bytes(data[-8:])
            yield number, data

    monkeypatch.setattr(RemoteStore, "stream", flipped)
    return left


@pytest.mark.parametrize("times", [1, 2])
def test_a_bit_that_flips_on_the_way(times, flips, tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data", variable=False)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    flips[0] = times
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    assert flips[0] == 0


@pytest.mark.parametrize("verify", ["auto", True])
def test_a_bit_that_is_wrong_for_good(verify, flips, tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data", variable=False)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", verify=verify)
    flips[0] = 1 << 30
    # Single samples are checked only if that is asked for.
    single = [lambda: ds[-1], lambda: list(ds), lambda: list(ds.iter(0, 1, shuffle=True))]
    for read in [ds.load, ds.prefetch, *(single if verify is True else [])]:
        with pytest.raises(IntegrityError, match=rf"shard\.\d+\.mds.* {downloads.ATTEMPTS} att"):
            read()
    flips[0] = 0
    check(ds, numbers)  # nothing of it was kept


@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize("hashes", [(), ("xxh64",)])
def test_what_cannot_be_kept_is_verified_too(
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
    whole = RemoteStore.read

    def damaged(self, name, nbytes=None):
        body = bytearray(whole(self, name, nbytes))
        body[-9] ^= 1
        return bytes(body)

    monkeypatch.setattr(RemoteStore, "read", damaged)
    for read in reads:
        with pytest.raises(IntegrityError, match=r"shard\.\d+\.mds"):
            read()


def damage(cache, begin=0.0, end=0.9):
    """Flip the bytes of the shards in a cache, in some part of each, but not what follows them."""
    for path in sorted(cache.glob("*.shard")):
        body = bytearray(path.read_bytes())
        with sparse.open_descriptor(str(path)) as descriptor:
            footer = sparse.read_footer(descriptor)
        first, last = int(begin * footer.nbytes), int(end * footer.nbytes)
        body[first:last] = bytes(byte ^ 255 for byte in body[first:last])
        with open(path, "r+b") as file:
            file.write(body)


@pytest.mark.parametrize("part", [(0.0, 0.01), (0.5, 0.6), (0.0, 1.0)])
@pytest.mark.parametrize(
    ("how", "verify"),
    [
        *itertools.product(["variable", "fixed", "compressed", "no side-car"], [True, "xxh64"]),
        ("text", True),
    ],
)
def test_a_cache_that_is_damaged_is_verified(
    how, part, verify, tmp_path, upload, requests, small_chunks
):
    data = tmp_path / "data"
    if how == "text":
        rows = [{"id": i, "x": f"{i:08}" * 9} for i in range(SAMPLES)]
        write_jsonl(data, rows, {"id": "int", "x": "str"})
        npstream.build_index(data)
        numbers = np.array([row["x"] for row in rows])
    else:
        compression = "zstd" if how == "compressed" else None
        numbers = write(data, how == "variable", hashes=["xxh64"], compression=compression)
    if how == "no side-car":
        (data / "index.msgpack").unlink()
    url, cache = upload(data), tmp_path / "cache"
    for _ in range(2):
        with npstream.open(url, cache=cache, verify=verify) as ds:
            ds.load()
        damage(cache, *part)
        # One sample, one of all chunks, all.
        for read in (slice(77, 78), slice(None, None, 5), slice(None)):
            with npstream.open(url, cache=cache, verify=verify) as ds:
                np.testing.assert_array_equal(np.asarray(ds[read]["x"].load()), numbers[read])
    # What is right is not fetched again, in another process either.
    with npstream.open(url, cache=cache, verify=verify) as ds:
        ds.load()
    requests.clear()
    with npstream.open(url, cache=cache, verify=verify) as ds:
        np.testing.assert_array_equal(np.asarray(ds["x"].load()), numbers)
        assert ds[SAMPLES - 1]["id"] == SAMPLES - 1
    assert not [span for span in requests if "shard" in span[0]]


def test_what_others_did_not_verify_is_verified(tmp_path, upload, small_chunks):
    numbers = write(tmp_path / "data")
    url, cache = upload(tmp_path / "data"), tmp_path / "cache"
    with (
        npstream.open(url, cache=cache, verify=True) as ds,
        npstream.open(url, cache=cache, verify=False) as other,
    ):
        assert ds[0]["id"] == 0  # its files are open
        other.load()
        damage(cache, 0.3, 1.0)
        assert ds.explain().cached == ds.explain().chunks
        np.testing.assert_array_equal(ds["x"].load(), numbers)
        check(ds, numbers)


@pytest.mark.parametrize("has_sidecar", [True, False])
def test_a_shard_that_is_replaced(has_sidecar, tmp_path, upload, small_chunks):
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


# A side-car elsewhere.


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_side_car_beside_a_dataset_that_cannot_be_written(
    where, tmp_path, upload, requests, small_chunks
):
    numbers = write(tmp_path / "data", variable=False)
    (tmp_path / "data" / "index.msgpack").unlink()
    shutil.rmtree(tmp_path / "data" / "index.columns")
    url = upload(tmp_path / "data")
    out = tmp_path / "side-car" if where == "here" else "memory://elsewhere"
    npstream.build_index(url, out=out)
    ds = npstream.open(url, index=out, cache=tmp_path / "cache", implicit_read_limit=0)
    requests.clear()
    assert np.flatnonzero(ds["id"] % 200 == 7).tolist() == [7, 207, 407]
    assert {name for name, *_ in requests} <= {"index.columns/id.npy"}
    check(ds, numbers)
    with pytest.raises(ValueError, match="needs at least"):
        npstream.open(url, index=out, cache=tmp_path / "cache", cache_limit=10)
    if where == "there":
        fsspec.filesystem("memory").rm("/elsewhere", recursive=True)


def test_a_side_car_that_is_damaged_is_not_used(tmp_path, upload, monkeypatch, caplog):
    monkeypatch.setattr("npstream.formats.sidecar.sidecar.END_BYTES", 64)
    monkeypatch.setattr(
        "npstream.shards.manifest.LARGE_INDEX", 0
    )  # so that it stands for the index
    numbers = write(tmp_path / "data", variable=False)
    body = bytearray((tmp_path / "data" / "index.msgpack").read_bytes())
    places = [k for k in range(100, len(body), 37)]
    messages = 0
    for k, place in enumerate(places[::12]):
        damaged = bytearray(body)
        damaged[place] ^= 1
        (tmp_path / "data" / "index.msgpack").write_bytes(damaged)
        url = upload(tmp_path / "data")
        caplog.clear()
        with caplog.at_level("INFO", "npstream"):
            ds = npstream.open(url, cache=tmp_path / f"cache{k}", verify=False)
        messages += "reading without a side-car" in caplog.text
        try:
            np.testing.assert_array_equal(ds["x"].load(), numbers)
        except IntegrityError as error:
            assert "index.msgpack" in str(error)  # noqa: PT017 - or it was right
    assert messages


# Other processes.


def read_in_process(url, cache, barrier, queue):
    """Read an epoch; send what chunks were fetched."""
    fetched = []
    transfer = downloads.Downloads._transfer

    def spied(self, parts, *rest):
        fetched.extend((part.file.path, piece) for part in parts for piece in part.pieces)
        return transfer(self, parts, *rest)

    downloads.Downloads._transfer = spied
    ds = npstream.open(url, cache=cache)
    barrier.wait(60)
    total = sum(int(batch["id"].sum()) for batch in ds.iter(0, 1, batch_size=50, shuffle=True))
    queue.put((total, fetched))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_fetch_every_chunk_once(method, tmp_path):
    write(tmp_path / "data", variable=False)
    context = multiprocessing.get_context(method)
    barrier, queue = context.Barrier(2), context.Queue()
    arguments = (f"local://{tmp_path / 'data'}", tmp_path / "cache", barrier, queue)
    workers = [context.Process(target=read_in_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    (one, ours), (two, theirs) = queue.get(timeout=100), queue.get(timeout=100)
    for worker in workers:
        worker.join()
    pieces = collections.Counter([*ours, *theirs])
    assert set(pieces.values()) == {1}
    assert one == two >= SAMPLES * (SAMPLES - 1) // 2


@pytest.mark.parametrize(("method", "persistent"), [("fork", False), ("spawn", True)])
def test_workers_of_a_loader(method, persistent, tmp_path):
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
        seen = []
        for batch in loader:
            np.testing.assert_array_equal(batch["x"], numbers[batch.ids])
            seen += batch.ids.tolist()
        assert sorted(seen) == list(range(SAMPLES))


def rest(samples):
    return [int(sample["id"]) for sample in samples]


def test_an_iteration_that_goes_on_in_a_forked_process(tmp_path, upload, small_chunks, monkeypatch):
    monkeypatch.setattr(reading, "SAMPLE_BLOCK", 1 << 10)
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", timeout=20)
    samples = iter(ds)
    started = [int(next(samples)["id"]) for _ in range(50)]
    reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)

    def go_on():
        writer.send(rest(samples))

    child = multiprocessing.get_context("fork").Process(target=go_on)
    child.start()
    assert reader.poll(15)
    assert started + reader.recv() == list(range(SAMPLES))
    child.join()
    assert rest(samples) == list(range(50, SAMPLES))


# What it costs.


def test_what_columns_cost(tmp_path, upload, requests, small_chunks):
    numbers = write(tmp_path / "data", variable=False)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    assert ds["x"].explain() == ds.explain()
    requests.clear()
    for view in (ds["id"], ds["id"][::-7], ds["id"][[5, 3]]):
        cost = view.explain()
        assert (cost.samples, cost.shards, cost.chunks) == (len(view), 0, 0)
        # The head of a .npy file, and one block of values.
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


def test_fetching_ahead(tmp_path, upload, requests, capsys):
    numbers = write(tmp_path / "data" / "train")
    url = upload(tmp_path / "data")
    cache = tmp_path / "cache"
    assert main(["cache", "fetch", url, "--split", "train", "--cache", str(cache)]) == 0
    shown = capsys.readouterr().out
    assert "600 samples in 7 chunks of 7 shards" in shown
    assert str(cache) in shown
    requests.clear()
    ds = npstream.open(url, split="train", cache=cache)
    np.testing.assert_array_equal(ds["x"].load(), numbers)
    assert {name for name, *_ in requests} <= {"index.msgpack"}
    words = ["cache", "fetch", url, "--split", "train", "--cache", str(cache), "--limit"]
    assert main([*words, "1KB"]) == 1
    assert "raise cache_limit" in capsys.readouterr().err
    assert main([*words, "30KB"]) == 1
    assert "raise cache_limit" in capsys.readouterr().err


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_shard_that_is_replaced_once_it_was_found_ready(compression, tmp_path, upload):
    """Another process evicts a file after this one saw that it is ready, and before it opens it."""
    values = np.arange(600)
    npstream.write(tmp_path / "data", {"x": values}, compression=compression)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    shards = ds._source.fetcher.shards
    shards.fetch([(0, 0)])
    is_ready = shards.files.is_ready
    evicted = []

    def evict(shard):
        evicted.append(is_ready(shard))
        npstream.cache.clear(tmp_path / "cache")
        return evicted[-1]

    shards.files.is_ready = evict
    assert shards.open([0]) == {}
    assert evicted == [True]
    del shards.files.is_ready
    assert ds["x"].load().tolist() == values.tolist()
