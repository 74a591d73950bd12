"""Datasets that exceed the cache: it first evicts the chunk whose next use is the latest."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections import defaultdict
from itertools import zip_longest

import numpy as np
import pytest
from faults import flip, reset, status, truncate
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream
from npstream.cache import directory as cache_dir
from npstream.cache import priority
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import ShardCache
from npstream.shards import table
from npstream.shards.base import RemotePart
from npstream.shards.locality import NEVER, ChunkUses
from npstream.shards.readahead import MIN_ORDERED_ITEMS, ChunkReadAhead

SAMPLES = 6000
VALUES = np.arange(SAMPLES * 128).reshape(SAMPLES, 128)
NBYTES = VALUES.nbytes

ORDERS = {
    "blocks": npstream.Shuffle(block=NBYTES // 16, lanes=2),
    "sequential": False,
    "py1e": npstream.StreamingShuffle("py1e", num_canonical_nodes=2, shuffle_block_size=128),
}

HANG = 120
"""Seconds after which a process is regarded as hanging."""


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Split shards of 512 KiB into chunks of about 125 KiB: the dataset has 48 chunks."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 1 << 17)


def write(directory, variable=False):
    rows = {"x": VALUES, "text": ["a" * (i % 9) for i in range(SAMPLES)]}
    if not variable:
        del rows["text"]
    npstream.write(directory, rows, shard_size="512KiB")
    return directory


@pytest.fixture
def url(tmp_path, upload):
    return upload(write(tmp_path / "data"))


def check(batch):
    ids = batch.ids
    np.testing.assert_array_equal(np.asarray(batch["x"]), VALUES[ids])


def read_in_step(iterations):
    """Read an epoch of several ranks in step; return the ids of all ranks in the epoch's order."""
    steps = []
    for batches in zip_longest(*iterations):
        for batch in batches:
            check(batch)
        steps.append(np.stack([batch.ids for batch in batches], axis=1).reshape(-1))
    return np.concatenate(steps)


def fetched_bytes(requests):
    return sum(span[2] for span in requests if span[0].startswith("shard"))


def chunk_of(ds, ids):
    """Return the number of each sample's chunk, counted over the dataset."""
    return np.searchsorted(ds._source.chunk_starts(), ids, side="right") - 1


@pytest.mark.parametrize("order", [*ORDERS, "some batches"])
def test_later_epochs_fetch_what_the_cache_cannot_hold(order, tmp_path, url, requests, monkeypatch):
    limit = NBYTES // 2
    if order == "some batches":  # only some batches are looked up, as in a large dataset
        monkeypatch.setattr("npstream.iteration.feeding.eviction.MIN_USE_SAMPLES", 1)
        order = "blocks"
    with (
        npstream.open(url, cache=tmp_path / "cache", cache_limit=limit) as ds,
        npstream.open(url, cache=tmp_path / "cache", cache_limit=limit) as other,
    ):
        iterations = [
            each.iter(rank, 2, batch_size=20, shuffle=ORDERS[order], last="drop")
            for rank, each in enumerate((ds, other))
        ]
        counts = []
        for _ in range(4):
            requests.clear()
            ids = read_in_step(iterations)
            assert len(np.unique(ids)) > 0.98 * SAMPLES
            counts.append(fetched_bytes(requests))
            assert ShardCache(tmp_path / "cache", limit).info().nbytes <= limit
        # Smaller files hold headers of shards, not chunks.
        files = [f for f in cache_dir.entries(str(tmp_path / "cache")) if f.nbytes > 1 << 16]
        # An epoch uses each chunk once, so it misses at least the chunks that do not fit.
        chunk_bytes = NBYTES / len(np.unique(chunk_of(ds, ids)))
        missed_bytes = NBYTES - limit // files[0].nbytes * chunk_bytes
    assert counts[0] >= NBYTES
    # Chunks that are being read or fetched take space in the cache, too. There are few of them. In
    # the order py1e, they are those of two shards and of the next blocks.
    max_in_use = 16 if order == "py1e" else 6
    mean = np.mean(counts[1:])
    assert missed_bytes * 0.98 <= mean <= 1.05 * missed_bytes + max_in_use * chunk_bytes
    assert mean < 0.95 * NBYTES


def test_read_ahead_begins_with_few_batches(tmp_path, url, monkeypatch):
    """Regression: at the beginning, it evicted chunks that the same epoch still had to use."""
    requests_ahead, requested, request = [], [], ChunkReadAhead.request
    monkeypatch.setattr(
        ChunkReadAhead,
        "request",
        lambda self, absent: requested.append(absent) or request(self, absent),
    )
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=NBYTES // 2) as ds:
        iteration = ds.iter(0, 1, batch_size=20, shuffle=False, threads=0)
        for _ in range(2):
            requested.clear()
            for done, batch in enumerate(iteration):
                check(batch)
                requests_ahead.append((done, len(requested) - done))
    assert all(ahead <= 1 + max(MIN_ORDERED_ITEMS, done // 2) for done, ahead in requests_ahead)
    assert max(ahead for _, ahead in requests_ahead) > 3 * MIN_ORDERED_ITEMS


@pytest.mark.parametrize("order", ORDERS)
def test_chunks_are_marked_with_their_next_use(order, tmp_path, url):
    options = {"cache": tmp_path / "cache", "cache_limit": NBYTES // 2}
    with npstream.open(url, **options) as ds, npstream.open(url, **options) as other:
        iterations = [
            each.iter(rank, 2, batch_size=20, shuffle=ORDERS[order], last="drop")
            for rank, each in enumerate((ds, other))
        ]
        read_in_step(iterations)
        entries = {entry.path: entry for entry in cache_dir.entries(str(tmp_path / "cache"))}
        local = npstream.open(tmp_path / "data")
        expected = []
        for epoch in range(2):
            copies = [
                local.iter(rank, 2, batch_size=20, shuffle=ORDERS[order], last="drop", epoch=epoch)
                for rank in range(2)
            ]
            chunks = chunk_of(local, read_in_step(copies))
            unique, first = np.unique(chunks, return_index=True)
            expected.append(
                dict(zip(unique.tolist(), (epoch + first / SAMPLES).tolist(), strict=True))
            )
        files, number, next_epoch_marks = ds._source.remote.files, 0, 0
        for shard, count in enumerate(files.chunks.tolist()):
            for chunk in range(count):
                entry = entries.get(files.cache.path(files.unit_keys(shard, chunk)[-1]))
                if entry is not None:
                    position = (entry.last_use - priority._BASE) / priority._EPOCH_STEPS
                    uses = [epoch[number] for epoch in expected if number in epoch]
                    assert np.isclose(uses, position, atol=1e-4).any()
                    next_epoch_marks += np.isclose(uses[-1], position, atol=1e-4)
                number += 1
        # Chunks of the last batches keep their mark: other ranks may still need them.
        assert next_epoch_marks > 10
        assert len({entry.group for entry in entries.values() if entry.is_ordered}) == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, SAMPLES - 1), max_size=300), st.integers(0, 100))
def test_uses_are_the_first_and_last_positions(ids, first_sample):
    class Files:
        chunks, max_chunks = np.array([3, 1, 2]), 3

    class Shards:
        files = Files()

        class index:
            samples = 600

        def chunk_keys(self, ids):  # shard * max_chunks + chunk
            return np.array([0, 1, 2, 3, 6, 7])[ids // 100]

    positions = np.random.default_rng(0).permutation(len(ids)) + 5
    halves = [slice(0, len(ids) // 2), slice(len(ids) // 2, None)]
    ids = np.array(ids, np.int64)
    uses = ChunkUses.find(
        RemotePart(Shards(), first_shard=7, first_sample=first_sample),
        [(ids[half], positions[half]) for half in halves],
    )
    expected = defaultdict(list)
    for sample, position in zip(ids.tolist(), positions.tolist(), strict=True):
        if first_sample <= sample < first_sample + 600:
            expected[(sample - first_sample) // 100].append(position)
    assert uses.first.tolist() == [min(expected[k], default=NEVER) for k in range(6)]
    assert uses.last.tolist() == [max(expected[k], default=-1) for k in range(6)]


def test_a_run_that_resumes_marks_the_files_that_exist(tmp_path, url, requests, monkeypatch):
    options = {"cache": tmp_path / "cache", "cache_limit": NBYTES // 2}
    iter_options = {"batch_size": 20, "shuffle": ORDERS["blocks"]}
    with npstream.open(url, **options) as ds:
        first = ds.iter(0, 1, seed=1, **iter_options)
        for batch in first:
            check(batch)
        state = first.state_dict()
    groups = {e.group for e in cache_dir.entries(str(tmp_path / "cache")) if e.is_ordered}
    assert len(groups) == 1
    with npstream.open(url, **options) as ds:
        resumed = ds.iter(0, 1, seed=1, **iter_options)
        resumed.load_state_dict(state)
        requests.clear()
        for batch in resumed:
            check(batch)
        assert fetched_bytes(requests) < 0.75 * NBYTES  # the cache had almost half of the chunks
        resumed_groups = {
            e.group for e in cache_dir.entries(str(tmp_path / "cache")) if e.is_ordered
        }
        assert resumed_groups == groups
        # A run with another seed marks all files with its own order once the first run has ended.
        monkeypatch.setattr(priority, "GROUP_TIMEOUT", -1.0)
        for batch in ds.iter(0, 1, seed=2, **iter_options):
            check(batch)
            break
        others = {e.group for e in cache_dir.entries(str(tmp_path / "cache")) if e.is_ordered}
        assert len(others) == 1
        assert others != groups


def test_two_runs_with_different_orders_share_a_cache(tmp_path, url, requests):
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=NBYTES // 2) as ds:
        runs = [ds.iter(0, 1, batch_size=20, seed=s, shuffle=ORDERS["blocks"]) for s in (1, 2)]
        for _ in range(3):
            requests.clear()
            for batches in zip(*runs, strict=True):
                for batch in batches:
                    check(batch)
            # Without a cache, this would be 2. If a run evicted chunks that the other run still
            # reads, it would be more.
            assert fetched_bytes(requests) < 2.5 * NBYTES


def test_random_access_evicts_the_least_recently_used_chunk(tmp_path, url, requests):
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=NBYTES // 2) as ds:
        starts = ds._source.chunk_starts().tolist()
        for start in starts[:-1]:
            np.testing.assert_array_equal(ds["x"][start : start + 60].load(), VALUES[start:][:60])
        requests.clear()
        for start in starts[-15:-1]:  # the last 14 chunks: the cache holds about 22
            ds["x"][start : start + 60].load()
        assert fetched_bytes(requests) == 0
        ds["x"][:60].load()
        assert fetched_bytes(requests) > 100_000  # a chunk


@pytest.mark.parametrize("variable", [False, True])
def test_gather_returns_the_right_bytes_while_files_are_evicted(variable, tmp_path, upload):
    url = upload(write(tmp_path / "data", variable))
    cache = tmp_path / "cache"
    stop = multiprocessing.get_context("fork").Event()

    def evict():
        rng = random.Random(0)
        while not stop.is_set():
            names = [name for name in os.listdir(cache) if name.endswith(".shard")]
            for name in rng.sample(names, min(len(names), 3)):
                sparse.evict(str(cache / name))
            time.sleep(0.001)

    def read(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                ids = np.sort(rng.integers(0, SAMPLES, 400))
                np.testing.assert_array_equal(ds["x"][ids].load(), VALUES[ids])
                if variable:
                    expected = ["a" * (i % 9) for i in ids.tolist()]
                    assert list(ds["text"][ids].load()) == expected
                sample = int(ids[0])
                np.testing.assert_array_equal(ds[sample]["x"], VALUES[sample])
        except BaseException as error:
            errors.append(error)

    ds = npstream.open(url, cache=cache, cache_limit=NBYTES // 2)
    errors = []
    evictor = multiprocessing.get_context("fork").Process(target=evict)
    evictor.start()
    try:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for batch in ds.iter(0, 1, batch_size=50, shuffle=ORDERS["blocks"]):
            check(batch)
        for thread in threads:
            thread.join(HANG)
            assert not thread.is_alive()
    finally:
        stop.set()
        evictor.join(HANG)
    assert not errors
    assert evictor.exitcode == 0
    ds.close()


def test_killed_readers_leave_a_usable_cache(tmp_path, url):
    cache, limit = tmp_path / "cache", NBYTES // 2
    context = multiprocessing.get_context("fork")

    def read(seed):
        with npstream.open(url, cache=cache, cache_limit=limit) as ds:
            while True:
                for batch in ds.iter(0, 1, batch_size=20, seed=seed, shuffle=ORDERS["blocks"]):
                    check(batch)

    rng = random.Random(1)
    for number in range(6):
        readers = [context.Process(target=read, args=(seed,)) for seed in (0, number)]
        for process in readers:
            process.start()
        time.sleep(rng.uniform(0.2, 0.8))
        for process in readers:
            assert process.is_alive()
            os.kill(process.pid, signal.SIGKILL)
            process.join(HANG)
        with npstream.open(url, cache=cache, cache_limit=limit) as ds:  # trims the cache
            assert ds._source.remote.files.cache.info().nbytes <= limit
            for batch in ds.iter(0, 1, batch_size=50, shuffle=ORDERS["blocks"]):
                check(batch)
            assert not [name for name in os.listdir(cache) if name.endswith((".tmp", ".reserved"))]


def test_an_s3_server_counts_the_bytes_of_later_epochs(tmp_path, servers):
    remote = servers["s3"].new_directory()
    for path in write(tmp_path / "data").iterdir():
        remote.put(path.name, path.read_bytes())
    proxy = servers.proxy("s3")
    proxy.clear()
    location, limit = remote.with_proxy(proxy), NBYTES // 2
    options = {"storage_options": location.storage_options, "cache": tmp_path / "cache"}
    ranks = [npstream.open(location.url, cache_limit=limit, **options) for _ in range(2)]
    iterations = [
        ds.iter(rank, 2, batch_size=20, shuffle=ORDERS["blocks"]) for rank, ds in enumerate(ranks)
    ]
    counts = []
    for _ in range(3):
        proxy.clear()
        read_in_step(iterations)
        counts.append(sum(request.nbytes for request in proxy.log))
    # From a slow server, single samples of the first batches are fetched in addition to chunks.
    assert NBYTES < counts[0] < 1.5 * NBYTES
    # A file takes more space than its chunk, so the cache holds less than half of the chunks.
    assert max(counts[1:]) < 0.85 * NBYTES
    for ds in ranks:
        ds.close()


def test_an_epoch_continues_after_faults_of_the_server(tmp_path, servers):
    remote = servers["s3"].new_directory()
    for path in write(tmp_path / "data").iterdir():
        remote.put(path.name, path.read_bytes())
    proxy = servers.proxy("s3")
    proxy.clear()
    location = remote.with_proxy(proxy)
    options = {"storage_options": location.storage_options, "cache": tmp_path / "cache"}
    with npstream.open(location.url, cache_limit=NBYTES // 2, timeout=HANG, **options) as ds:
        shards = {"path": ".mds", "method": "GET"}
        for _ in range(2):
            proxy.faults = [
                status(503, times=2, **shards),
                flip(50_000, times=2, **shards),
                truncate(1000, **shards),
                reset(**shards),
                reset(2000, **shards),
            ]
            batches = [*ds.iter(0, 1, batch_size=50, shuffle=ORDERS["blocks"])]
            assert sum(len(batch.ids) for batch in batches) == SAMPLES
            for batch in batches:
                check(batch)
        assert [request.status for request in proxy.log].count(503) == 2 * 2
    proxy.clear()


def test_a_mixture_reads_datasets_that_exceed_the_cache_together(tmp_path, upload):
    url = upload(write(tmp_path / "data"))
    parts = [npstream.open(url, cache=tmp_path / "cache", cache_limit="7MB") for _ in range(2)]
    assert not parts[0]._source.remote.files.splits_shards
    mixture = npstream.mix({"a": parts[0], "b": parts[1][::2]})
    expected = np.concatenate([VALUES, VALUES[::2]])
    for batch in mixture.iter(0, 1, batch_size=20, shuffle=ORDERS["blocks"]):
        np.testing.assert_array_equal(np.asarray(batch["x"]), expected[batch.ids])
    assert parts[0]._source.remote.files.splits_shards


def test_a_cache_stays_usable_with_another_limit(tmp_path, url, requests):
    options = {"cache": tmp_path / "cache"}
    with npstream.open(url, cache_limit=NBYTES // 2, **options) as ds:
        ds[:2000].load()
    requests.clear()
    with npstream.open(url, cache_limit="100MB", **options) as ds:
        np.testing.assert_array_equal(ds["x"][:2000].load(), VALUES[:2000])
        assert fetched_bytes(requests) == 0
        ds.load()
    requests.clear()
    with npstream.open(url, cache_limit=NBYTES // 2, **options) as ds:  # evicts some shards
        np.testing.assert_array_equal(ds["x"][::-1].load(), VALUES[::-1])
        assert fetched_bytes(requests) < 0.9 * NBYTES


def test_evicted_files_do_not_stay_mapped(tmp_path, url):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux lists maps in /proc")
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=NBYTES // 2) as ds:
        for _ in range(2):
            for batch in ds.iter(0, 1, batch_size=20, shuffle=ORDERS["blocks"]):
                check(batch)
        with open("/proc/self/maps") as maps:
            lines = [line for line in maps if str(tmp_path / "cache") in line]
        # Two epochs evict more than 50 chunks. Reads may still use some of them.
        assert sum(line.rstrip().endswith("(deleted)") for line in lines) <= 20


@pytest.mark.parametrize("free_bytes", [NBYTES // 2, 2 * NBYTES])
@pytest.mark.parametrize("left_bytes", [0, 20_000])  # 20,000: enough for a file without chunks
def test_a_cache_recovers_from_a_full_disk(tmp_path, url, monkeypatch, free_bytes, left_bytes):
    total = 5 << 30  # the cache leaves a tenth of it free
    usable = [free_bytes]
    monkeypatch.setattr(
        "npstream.cache.eviction.free_and_total", lambda path: (total // 10 + usable[0], total)
    )
    with npstream.open(url, cache=tmp_path / "cache") as ds:
        ds.load()
        files = ds._source.remote.files
        assert files.splits_shards == (free_bytes < NBYTES)
        references = [
            weakref.ref(file) for k in range(len(ds.shards)) for file in files.opened_files(k)
        ]
        npstream.cache.clear(tmp_path / "cache")  # as another process does that needs space
        usable[0] = left_bytes
        for start in range(0, SAMPLES, 100):
            rows = slice(start, start + 100)
            np.testing.assert_array_equal(ds["x"][rows].load(), VALUES[rows])
        assert len(references) >= len(ds.shards)
        # No map is left of the removed files: a map would keep their space on the disk.
        assert not any(reference() for reference in references)
        assert npstream.cache.info(tmp_path / "cache").nbytes < 1 << 20
        usable[0] = free_bytes
        monkeypatch.setattr("npstream.cache.downloads.RETRY_SECONDS", 0)
        np.testing.assert_array_equal(ds["x"][:2000].load(), VALUES[:2000])
        assert npstream.cache.info(tmp_path / "cache").nbytes > 2000 * 1024


def test_files_of_chunks_are_released_if_few_maps_are_left(tmp_path, url, requests, monkeypatch):
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=NBYTES // 2) as ds:
        monkeypatch.setattr(table, "MIN_MAPS", 1 << 40)
        for batch in ds.iter(0, 1, batch_size=20, shuffle=ORDERS["blocks"]):
            check(batch)
        assert len(ds._source.remote.files._open_chunks) < 15  # of about 22 in the cache
        assert fetched_bytes(requests) < 2 * NBYTES


# Pinned views


def test_a_pinned_view_stays_in_the_cache(tmp_path, url, requests):
    options = {"cache": tmp_path / "cache", "cache_limit": NBYTES // 2}
    with npstream.open(url, **options) as ds:
        ds[:600].prefetch(pin=True)
        for batch in ds.iter(0, 1, batch_size=20, shuffle=ORDERS["blocks"]):
            check(batch)
        assert ds._source.remote.files.cache.info().pinned > 600 * 1024
    requests.clear()
    with npstream.open(url, **options) as ds:
        ds[:600].prefetch(pin=True)  # again
        np.testing.assert_array_equal(ds["x"][:600].load(), VALUES[:600])
        assert fetched_bytes(requests) == 0
        ds[:600].unpin()
        assert npstream.cache.info(tmp_path / "cache").pinned == 0
        for entry in cache_dir.entries(str(tmp_path / "cache")):
            # Files used in the last 60 seconds would be evicted last.
            os.utime(entry.path, (time.time() - 100, time.time() - 100))
        for _ in range(2):
            for batch in ds[600:].iter(0, 1, batch_size=20, shuffle=ORDERS["blocks"]):
                check(batch)
        requests.clear()
        ds["x"][:600].load()
        assert fetched_bytes(requests) > 300 * 1024


def test_views_that_do_not_fit_are_not_pinned(tmp_path, url, requests):
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=NBYTES // 2) as ds:
        ds[:2000].prefetch(pin=True)
        requests.clear()
        with pytest.raises(ValueError, match=r"other files that take [\d,]+ are pinned"):
            ds[3000:5000].prefetch(pin=True)
        assert not requests
        ds[:2000].unpin()
        ds[3000:5000].prefetch(pin=True)


def test_a_view_is_pinned_if_the_dataset_fits(tmp_path, url):
    with npstream.open(url, cache=tmp_path / "cache", cache_limit="100MB") as ds:
        ds[:600].prefetch(pin=True)
        assert not ds._source.remote.files.splits_shards
        assert npstream.cache.info(tmp_path / "cache").pinned > 600 * 1024
        ds[["x"]][:600].unpin()
        assert npstream.cache.info(tmp_path / "cache").pinned == 0
