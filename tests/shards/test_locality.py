"""Tests of orders whose chunks do not fit the cache: they read single samples, or raise."""

from __future__ import annotations

import multiprocessing
import re
import threading
from collections import OrderedDict

import numpy as np
import pytest
from dataset_files import write_jsonl
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream.errors import StorageError
from npstream.shards import locality
from npstream.shards.locality import refetched_bytes
from npstream.shards.remote import RemoteShards
from npstream.storage.remote import RemoteStore

SAMPLES = 4000
CHUNK = 1 << 14
LIMIT = 400_000
"""Limit of the cache in bytes: about a quarter of the bytes that a dataset takes there."""

HANG = 120
"""Seconds after which a thread or process is regarded as hanging."""


@pytest.fixture
def cheap_requests(small_chunks, monkeypatch):
    """Split shards into chunks of 16 KiB, and make a request cheaper than a chunk."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(locality, "REQUEST_BYTES", 256)


def write(directory, kind="fixed"):
    """Write a dataset of about 1 MB, and return the values of its column "x"."""
    numbers = np.random.default_rng(0).integers(0, 1 << 30, (SAMPLES, 32))
    if kind == "jsonl":
        rows = [{"id": i, "x": f"{i:05}" * 50} for i in range(SAMPLES)]
        write_jsonl(directory, rows, {"id": "int", "x": "str"})
        return np.array([row["x"] for row in rows])
    columns = {"id": "int64", "x": "ndarray:int64:32", "text": "str"}
    data = {"id": np.arange(SAMPLES), "x": numbers, "text": ["a" * (i % 9) for i in range(SAMPLES)]}
    if kind == "fixed":
        del columns["text"], data["text"]
    compression = "zstd" if kind == "zstd" else None
    size = "16KB" if kind == "zstd" else "64KB"
    rows = [{name: data[name][i] for name in columns} for i in range(SAMPLES)]
    npstream.write(directory, rows, columns=columns, shard_size=size, compression=compression)
    return numbers


def fetched_bytes(requests) -> int:
    return sum(span[2] for span in requests if span[0].startswith(("shard", "data")))


SHUFFLES = {
    "native": True,
    "blocks": npstream.Shuffle(block="600KB", lanes=2),
    "py1e": npstream.StreamingShuffle("py1e", num_canonical_nodes=2),
    "naive": npstream.StreamingShuffle("naive", num_canonical_nodes=2),
}


@pytest.mark.parametrize("kind", ["fixed", "variable", "jsonl"])
@pytest.mark.parametrize("order", SHUFFLES)
def test_orders_that_do_not_fit_the_cache_read_single_samples(
    order, kind, tmp_path, upload, requests, cheap_requests
):
    numbers = write(tmp_path / "data", kind)
    url = upload(tmp_path / "data")
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=LIMIT) as ds:
        nbytes = ds[:].explain().nbytes
        requests.clear()
        for _ in range(2):
            ids = []
            for batch in ds.iter(0, 1, batch_size=32, shuffle=SHUFFLES[order], last="drop"):
                np.testing.assert_array_equal(np.asarray(batch["x"]), numbers[batch["id"]])
                ids += batch["id"].tolist()
            assert sorted(ids) == list(range(SAMPLES))
        # Runs of offsets are read in addition to the samples.
        assert fetched_bytes(requests) < 2 * 1.6 * nbytes


@pytest.mark.parametrize(
    "settings",
    [
        {"shuffle": False},
        {"shuffle": npstream.Shuffle(block="60KB", lanes=1)},
        {"shuffle": npstream.Shuffle(block="60KB", lanes=3)},
        {
            "shuffle": npstream.StreamingShuffle(
                "py1s", num_canonical_nodes=1, shuffle_block_size=100
            )
        },
    ],
)
def test_orders_that_fit_the_cache_read_chunks(
    settings, tmp_path, upload, requests, cheap_requests
):
    numbers = write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        nbytes = ds[:].explain().nbytes
        requests.clear()
        for batch in ds.iter(0, 1, batch_size=32, **settings):
            np.testing.assert_array_equal(batch["x"], numbers[batch["id"]])
        # Some samples are read on their own while their chunks are being fetched.
        assert fetched_bytes(requests) < 1.9 * nbytes
        assert len(requests) < SAMPLES / 2


def test_a_cache_that_holds_the_dataset_is_filled_with_chunks(
    tmp_path, upload, requests, cheap_requests
):
    write(tmp_path / "data")
    url = upload(tmp_path / "data")
    for limit in ("auto", 4_000_000):
        with npstream.open(url, cache=tmp_path / f"{limit}", cache_limit=limit) as ds:
            requests.clear()
            for _ in ds.iter(0, 1, batch_size=32, shuffle=True):
                pass
            for _ in ds.iter(0, 1, batch_size=32, shuffle=True):
                pass
            assert len(requests) < SAMPLES / 2


def test_permuted_views_read_single_samples(tmp_path, upload, requests, cheap_requests):
    numbers = write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        nbytes = ds[:].explain().nbytes
        rows = np.random.default_rng(1).permutation(SAMPLES)
        for view, ids in ((ds.shuffle(seed=3), None), (ds[rows], rows)):
            requests.clear()
            sample_ids = [sample["id"] for sample in view]
            assert sorted(sample_ids) == list(range(SAMPLES))
            assert ids is None or sample_ids == ids.tolist()
            assert fetched_bytes(requests) < 1.3 * nbytes
            requests.clear()
            for batch in view.iter(0, 1, batch_size=50):
                np.testing.assert_array_equal(batch["x"], numbers[batch["id"]])
            assert fetched_bytes(requests) < 1.3 * nbytes
        requests.clear()
        npstream.write(tmp_path / "copy", ds[rows])
        assert fetched_bytes(requests) < 1.3 * nbytes
    assert (npstream.open(tmp_path / "copy")["id"].load() == rows).all()


def test_mixtures_read_single_samples(tmp_path, upload, requests, cheap_requests):
    datasets = {}
    for name, kind in (("a", "fixed"), ("b", "variable"), ("local", "fixed")):
        numbers = write(tmp_path / name, kind)  # the same numbers for each dataset
        url = tmp_path / name if name == "local" else upload(tmp_path / name)
        settings = {} if name == "local" else {"cache": tmp_path / "cache", "cache_limit": LIMIT}
        datasets[name] = npstream.open(url, columns=["id", "x"], **settings)
    mixed = npstream.mix(datasets)
    nbytes = sum(datasets[name][:].explain().nbytes for name in "ab")
    for shuffle in (True, npstream.Shuffle(block="900KB", lanes=2)):
        requests.clear()
        count = 0
        for batch in mixed.iter(0, 1, batch_size=60, shuffle=shuffle):
            for number, x in zip(batch["id"].tolist(), batch["x"], strict=True):
                np.testing.assert_array_equal(x, numbers[number])
            count += len(batch["id"])
        assert count >= 3 * SAMPLES
        assert fetched_bytes(requests) < 1.8 * nbytes


@pytest.mark.parametrize("per_node", [None, 1])
def test_the_order_decides_for_all_ranks_if_single_samples_are_read(
    per_node, tmp_path, upload, cheap_requests
):
    write(tmp_path / "data")
    url = upload(tmp_path / "data")
    settings = {"batch_size": 16, "shuffle": npstream.Shuffle(block="60KB", lanes=4)}
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=LIMIT) as ds:
        parts = [ds.iter(r, 4, ranks_per_node=per_node, **settings) for r in range(4)]
        ids = {sample_id for part in parts for batch in part for sample_id in batch["id"].tolist()}
        assert ids == set(range(SAMPLES))
        for part in parts:
            assert part._rowwise is False
        shuffled = [ds.iter(r, 4, batch_size=16, shuffle=True) for r in range(4)]
        for part in shuffled:
            next(iter(part))
            assert part._rowwise is True


@pytest.mark.parametrize("order", ["native", "py1br", "mixture", "view"])
@pytest.mark.parametrize("kind", ["zstd", "verify"])
def test_an_order_that_needs_single_samples_raises_if_chunks_are_verified_or_compressed(
    kind, order, tmp_path, upload, requests, cheap_requests
):
    write(tmp_path / "data", "zstd" if kind == "zstd" else "fixed")
    url = upload(tmp_path / "data")
    settings = {"verify": True} if kind == "verify" else {}

    def open_dataset(limit):
        ds = npstream.open(url, cache=tmp_path / f"{limit}", cache_limit=limit, **settings)
        return npstream.mix({"a": ds[:2000], "b": ds[2000:]}) if order == "mixture" else ds

    def loop(ds, shuffle):
        view = ds.shuffle(seed=0) if order == "view" else ds
        requests.clear()
        rows = 0
        for batch in view.iter(0, 1, batch_size=32, shuffle=shuffle):
            rows += len(batch["id"])
        assert rows >= SAMPLES

    shuffle = {
        "py1br": npstream.StreamingShuffle("py1br", num_canonical_nodes=1, shuffle_block_size=3000),
        "view": False,
    }.get(order, True)
    ds = open_dataset(LIMIT)
    nbytes = (ds.explain() if order == "mixture" else ds[:].explain()).nbytes
    with pytest.raises(ValueError, match="raise cache_limit to at least") as caught:
        loop(ds, shuffle)
    assert not requests
    message = str(caught.value)
    min_limit = int(re.search(r"at least ([\d,]+) bytes", message)[1].replace(",", ""))
    assert LIMIT < min_limit < 4_000_000
    loop(open_dataset(min_limit), shuffle)
    assert fetched_bytes(requests) < 1.6 * nbytes
    if order == "view":
        assert "in the order in which they are stored" in message
        return
    number = int(re.search(r"block(?:_size)?=(\d+)", message)[1])
    smaller = (
        npstream.StreamingShuffle("py1br", num_canonical_nodes=1, shuffle_block_size=number)
        if order == "py1br"
        else npstream.Shuffle(block=number)
    )
    loop(open_dataset(LIMIT), smaller)
    # How many chunks are evicted before their last sample depends on the threads that fetch. In the
    # order that was refused, nearly every sample would fetch its chunk.
    assert fetched_bytes(requests) < 2.5 * nbytes


def test_errors_of_read_ahead_reach_the_reader(tmp_path, upload, cheap_requests, monkeypatch):
    write(tmp_path / "data")
    url = upload(tmp_path / "data")
    stream = RemoteStore.stream_bodies
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=LIMIT, retries=0) as ds:
        batches = iter(ds.iter(0, 1, batch_size=32, shuffle=True))
        next(batches)
        is_failing = [True]

        def stream_or_fail(self, spans):
            if is_failing[0]:
                raise StorageError(5, "the store fails", self.root)
            return stream(self, spans)

        monkeypatch.setattr(RemoteStore, "stream_bodies", stream_or_fail)
        with pytest.raises(StorageError, match="the store fails"):
            for _ in batches:
                pass
        is_failing[0] = False
        assert sum(len(b["id"]) for b in ds.iter(0, 1, batch_size=32, shuffle=True)) >= SAMPLES
    threads = [thread for thread in threading.enumerate() if thread.name == "npstream-rows"]
    for thread in threads:
        thread.join(HANG)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_readers_do_not_wait_for_a_dead_thread(tmp_path, upload, cheap_requests, monkeypatch):
    write(tmp_path / "data")
    failed_reads = []

    def fetch_with_bug(self, ids, shard_of):
        failed_reads.append(len(ids))
        raise RuntimeError("a bug")

    monkeypatch.setattr(RemoteShards, "fetch_samples", fetch_with_bug)
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        ids = [batch["id"] for batch in ds.iter(0, 1, batch_size=400, shuffle=True)]
    assert sorted(np.concatenate(ids)) == list(range(SAMPLES))
    assert failed_reads


def test_an_iteration_that_is_closed_releases_its_memory(tmp_path, upload, cheap_requests):
    write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        batches = iter(ds.iter(0, 1, batch_size=32, shuffle=True))
        next(batches)
        point_reader = ds._source.remote.point_reader
        assert point_reader.is_extended  # a read-ahead may keep more samples in memory
        batches.close()
        assert not point_reader.is_extended


def test_an_iteration_continues_in_a_forked_process(tmp_path, upload, cheap_requests):
    numbers = write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        batches = iter(ds.iter(0, 1, batch_size=32, shuffle=True, seed=1))
        first_ids = next(batches)["id"].tolist()

        def read_rest():
            rest = list(batches)
            for batch in rest:
                np.testing.assert_array_equal(batch["x"], numbers[batch["id"]])
            ids = np.concatenate([first_ids, *(batch["id"] for batch in rest)])
            assert set(ids.tolist()) == set(range(SAMPLES))

        child = multiprocessing.get_context("fork").Process(target=read_rest)
        child.start()
        child.join(HANG)
        assert child.exitcode == 0
        read_rest()


def lru(chunks, nbytes, min_uses, limit):
    """Simulate an LRU cache; return what `refetched_bytes` estimates."""
    cached, uses = OrderedDict(), dict.fromkeys(range(len(nbytes)), 0)
    refetched, full_since = 0, None
    for number, chunk in enumerate(chunks):
        uses[chunk] += 1
        cached[chunk] = cached.pop(chunk, None)
        while sum(nbytes[k] for k in cached) > limit and len(cached) > 1:
            evicted = next(iter(cached))
            del cached[evicted]
            full_since = number if full_since is None else full_since
            refetched += nbytes[evicted] * (uses[evicted] < min_uses[evicted])
    return 0.0 if full_since is None else refetched / (len(chunks) - full_since)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.integers(1, 50),
)
def test_refetched_bytes_equal_those_of_a_simulated_cache(chunks, nbytes, samples, limit):
    expected = lru(chunks, nbytes, [n / 2 for n in samples], limit)
    arrays = (np.array(values) for values in (chunks, nbytes, samples))
    assert refetched_bytes(*arrays, limit) == expected


@pytest.mark.parametrize("step", [1, -1, 2])
@pytest.mark.parametrize("shuffled", [True, False])
def test_explain_estimates_the_bytes_of_a_view(
    shuffled, step, tmp_path, upload, requests, cheap_requests
):
    write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        view = ds[::step].shuffle(seed=0) if shuffled else ds[::step]
        cost = view.explain()
        requests.clear()
        view.load()
        assert cost.nbytes / 1.6 < fetched_bytes(requests) < 1.6 * cost.nbytes
