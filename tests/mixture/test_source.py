"""A mixture reads each of its stores as a dataset of that store alone reads it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

import npstream
from npstream.errors import CostError, StorageError
from npstream.shards import readahead
from npstream.shards.remote import RemoteShards
from npstream.storage.remote import RemoteStore


@pytest.fixture
def requests(monkeypatch):
    """Return a list to which all later range requests are appended, with their stores."""
    spans_read = []
    stream = RemoteStore.stream_bodies

    def record_spans(self, spans):
        spans = list(spans)
        spans_read.extend((self.root, *span) for span in spans)
        return stream(self, spans)

    monkeypatch.setattr(RemoteStore, "stream_bodies", record_spans)
    return spans_read


@pytest.fixture
def remote(tmp_path, upload, small_chunks):
    """Return three remote datasets and a local dataset, of 300 samples each.

    The second is compressed, and the third has no side-car. Sample i of dataset k has the x
    ``12 * i + 10_000 * k`` to ``12 * i + 11 + 10_000 * k``.
    """
    n = 300
    datasets = []
    for number, name in enumerate("abcd"):
        x = np.arange(n * 12, dtype=np.float64).reshape(n, 12) + number * 10_000
        data = {"id": np.arange(n) + number * n, "x": x}
        options = {"compression": "zstd"} if number == 1 else {}
        npstream.write(tmp_path / name, data, shard_size="8KB", **options)
        if number == 2:
            for path in (tmp_path / name).glob("index.*"):
                if path.name != "index.json":
                    path.unlink() if path.is_file() else remove_directory(path)
        if number == 3:
            datasets.append(npstream.open(tmp_path / name))
        else:
            cache = tmp_path / "cache"
            datasets.append(npstream.open(upload(tmp_path / name), cache=cache))
    return datasets


def remove_directory(directory):
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


@pytest.mark.parametrize(
    "index", [slice(None), slice(50, 1150, 3), slice(None, None, -70), [3, 310, 700, 1100, 4]],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("twice", [False, True])
def test_explain_counts_downloads(index, twice, remote, requests):
    sources = dict(zip("abcd", remote, strict=True))
    if twice:  # views that overlap
        sources |= {"a2": remote[0][100:250], "b2": remote[1].shuffle(0)}
    mixed = npstream.mix(sources)
    view = mixed[index]
    cost = view.explain()
    requests.clear()
    batch = view.load()
    np.testing.assert_array_equal(batch["id"] // 300 * 10_000 + batch["id"] % 300 * 12,
                                  batch["x"][:, 0])  # fmt: skip
    assert (cost.requests, cost.nbytes) == (len(requests), sum(nbytes for *_, nbytes in requests))
    assert cost.samples == len(view)
    whole = [ds.explain() for ds in remote]
    if len(view) == 1200 and not twice:  # all chunks, each from one source
        assert cost.chunks == sum(part.chunks for part in whole)
        assert cost.shards == sum(part.shards for part in whole)
    next_cost = view.explain()
    assert next_cost.cached >= cost.cached
    if isinstance(index, slice) and index.step is None:
        assert (next_cost.requests, next_cost.cached) == (0, next_cost.chunks)


def test_prefetch_of_a_mixture(remote, requests, tmp_path, upload):
    mixed = npstream.mix(dict(zip("abcd", remote, strict=True)))
    mixed[100:1000].prefetch()
    requests.clear()
    assert mixed[100:1000:3].load()["id"].tolist() == list(range(100, 1000, 3))
    assert requests == []
    # Each dataset alone would fit.
    small = [
        npstream.open(upload(tmp_path / name), cache=tmp_path / "small-cache", cache_limit="50KB")
        for name in "ac"
    ]
    small[0].prefetch()
    with pytest.raises(ValueError, match="raise cache_limit"):
        npstream.mix({"a": small[0], "c": small[1]}).prefetch()


def test_implicit_read_limit_of_a_mixture(tmp_path, upload, remote):
    def open_with_limit(limit):
        return [
            npstream.open(upload(tmp_path / name), cache=tmp_path / f"{limit}",
                          implicit_read_limit=limit) for name in "abc"
        ]  # fmt: skip

    limited = npstream.mix(dict(zip("abcd", [*open_with_limit("40KB"), remote[3]], strict=True)))
    for read in (
        lambda: limited["x"].mean(),
        lambda: np.asarray(limited[::2]["x"]),
        lambda: limited["x"][:700] + 1,
        lambda: next(iter(limited[[*range(1200)]])),
    ):
        with pytest.raises(CostError, match=r"more than implicit_read_limit=40\.0 KiB"):
            read()
    assert limited["x"][900:].max() == 30_000 + 12 * 299 + 11  # the local dataset
    assert limited["x"][:100].min() == 0
    sources = {"a": open_with_limit(0)[0], "d": remote[3]}
    zero_limit = npstream.mix(sources, columns=["id", "x", "source"])
    assert (zero_limit["source"] == "d").sum() == 300  # x is not read
    assert np.asarray(zero_limit[["id", "source"]]["id"]).max() == 1199  # from the side-car
    with pytest.raises(CostError):
        zero_limit["x"].sum()
    unlimited = npstream.mix(dict(zip("abcd", [*open_with_limit(None), remote[3]], strict=True)))
    assert unlimited["x"].max() == 30_000 + 12 * 299 + 11


def test_small_columns_come_from_side_cars(remote, requests):
    mixed = npstream.mix(dict(zip("abcd", remote, strict=True)))
    requests.clear()
    cost = mixed["id"].explain()
    view = mixed[np.r_[0:600, 900:1200]]
    assert view["id"].load().tolist() == [*range(600), *range(900, 1200)]
    assert {name for _, name, *_ in requests} == {"index.columns/id.npy"}
    nbytes = sum(size for *_, size in requests)
    requests.clear()
    assert (mixed["id"] % 7 == 3).tolist() == (np.arange(1200) % 7 == 3).tolist()
    # The side-cars' values are in the cache now; the third dataset has no side-car.
    assert {name.split(".")[0] for _, name, *_ in requests} == {"shard"}
    nbytes += sum(size for *_, size in requests)
    assert (cost.samples, cost.nbytes) == (1200, nbytes)


def test_several_stores_are_prefetched(remote, requests, monkeypatch):
    monkeypatch.setattr(readahead, "WINDOW_BYTES", 1 << 13)
    monkeypatch.setattr(readahead, "GROUP_BYTES", 1 << 11)
    mixed = npstream.mix(dict(zip("abcd", remote, strict=True)))
    threads = set()
    fetch = readahead.ChunkReadAhead._next

    def record_thread(self):
        threads.add(threading.current_thread())
        return fetch(self)

    monkeypatch.setattr(readahead.ChunkReadAhead, "_next", record_thread)
    seen = []
    for batch in mixed[:].iter(0, 1, batch_size=32, shuffle=True, last="short"):
        np.testing.assert_array_equal(batch["id"], batch.ids)
        seen += batch.ids.tolist()
    assert sorted(seen) == list(range(1200))
    assert 0 < len(threads) <= readahead.MAX_THREADS  # for all stores together
    assert len(requests) == len(set(requests))
    assert [int(sample["id"]) for sample in mixed] == list(range(1200))


def test_threads_share_fetched_chunks(remote, requests):
    mixed = npstream.mix(dict(zip("abcd", remote, strict=True)))
    requests.clear()
    with ThreadPoolExecutor(8) as pool:
        for batch in pool.map(lambda _: mixed.load(), range(8)):
            assert batch["id"].tolist() == list(range(1200))
    assert len(requests) == len(set(requests))


def test_sources_stay_open_when_a_mixture_is_closed(remote):
    with npstream.mix(dict(zip("abcd", remote, strict=True))) as mixed:
        batches = iter(mixed[:].iter(0, 1, batch_size=8, shuffle=True))
        next(batches)
    with pytest.raises(ValueError, match="mixture of 4 datasets: the dataset is closed"):
        mixed[0]
    assert [ds[299]["id"] for ds in remote] == [299, 599, 899, 1199]
    assert remote[0].load()["id"].tolist() == list(range(300))


def test_stores_are_read_concurrently(remote, monkeypatch):
    mixed = npstream.mix(dict(zip("abcd", remote, strict=True)))
    barrier = threading.Barrier(2, timeout=60)
    stream = RemoteStore.stream_bodies

    def wait_for_other(self, spans):
        barrier.wait()
        return stream(self, spans)

    monkeypatch.setattr(RemoteStore, "stream_bodies", wait_for_other)
    batch = mixed[[1100, 700, 5]].load()  # one request to each of two stores; 1100 is local
    assert batch["id"].tolist() == [1100, 700, 5]


def test_errors_of_one_store_are_raised(remote, upload, tmp_path):
    mixed = npstream.mix(dict(zip("abcd", remote, strict=True)))
    fsspec.filesystem("memory").rm("/bucket-2/shard.00001.mds")
    with pytest.raises(StorageError, match=r"memory://bucket-2/shard\.00001\.mds"):
        mixed.load()
    with pytest.raises(StorageError, match=r"memory://bucket-2/shard\.00001\.mds"):
        list(mixed.iter(0, 1, batch_size=32, shuffle=True))
    assert mixed[:600].load()["id"].tolist() == list(range(600))


def test_a_cache_can_be_cleared_in_use(remote, tmp_path):
    mixed = npstream.mix(dict(zip("abcd", remote, strict=True)))
    for _ in range(2):
        assert mixed.load()["id"].tolist() == list(range(1200))
        assert mixed[601]["id"] == 601
        npstream.cache.clear(tmp_path / "cache")


def test_finished_shards_are_marked(remote, monkeypatch):
    """A reader in stored order, or in reverse order, marks shards as finished.

    A reader whose sources have different orders does not.
    """
    seen = []

    def record_finished(self, shards):
        seen.append((self.root[-1], [*shards]))

    monkeypatch.setattr(RemoteShards, "mark_finished", record_finished)
    mixed = npstream.mix({"a": remote[0], "c": remote[2]})
    finished = {"0": [], "2": []}
    for view in (mixed, mixed[::-1]):
        seen.clear()
        for batch in view[:].iter(0, 1, batch_size=16):
            assert batch.n == 16
        for root, shards in seen:
            finished[root] += shards
    assert finished["0"] == [0, 1, 2, 3, 4, 4, 3, 2, 1]
    assert finished["2"] == [0, 1, 2, 3, 4, 3, 2, 1, 0]
    seen.clear()
    both = npstream.mix({"c": remote[2], "a": remote[0][::-1]})  # one source in each order
    for _ in both[:].iter(0, 1, batch_size=16):
        pass
    assert seen == []
