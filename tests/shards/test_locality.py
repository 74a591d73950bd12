"""Orders whose chunks the cache cannot hold: samples are read one by one, or it is refused."""

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
from npstream.shards.locality import _refetched_bytes
from npstream.shards.remote import RemoteShards
from npstream.storage.remote import RemoteStore

SAMPLES = 4000
CHUNK = 1 << 14
LIMIT = 400_000
"""Bytes of the cache: about a quarter of what a dataset takes there."""


@pytest.fixture
def exact_costs(small_chunks, monkeypatch):
    """Cut shards into chunks of 16 KiB, and let a request cost less than one."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(locality, "REQUEST_BYTES", 256)


def write(directory, kind="fixed"):
    """Write a dataset of about 1 MB, and return its numbers."""
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


def fetched(requests) -> int:
    return sum(span[2] for span in requests if span[0].startswith(("shard", "data")))


SHUFFLES = {
    "native": True,
    "blocks": npstream.Shuffle(block="600KB", lanes=2),
    "py1e": npstream.StreamingShuffle("py1e", num_canonical_nodes=2),
    "naive": npstream.StreamingShuffle("naive", num_canonical_nodes=2),
}


@pytest.mark.parametrize("kind", ["fixed", "variable", "jsonl"])
@pytest.mark.parametrize("how", SHUFFLES)
def test_samples_are_fetched_one_by_one(how, kind, tmp_path, upload, requests, exact_costs):
    numbers = write(tmp_path / "data", kind)
    url = upload(tmp_path / "data")
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=LIMIT) as ds:
        nbytes = ds[:].explain().nbytes
        requests.clear()
        for _ in range(2):
            seen = []
            for batch in ds.iter(0, 1, batch_size=32, shuffle=SHUFFLES[how], last="drop"):
                np.testing.assert_array_equal(np.asarray(batch["x"]), numbers[batch["id"]])
                seen += batch["id"].tolist()
            assert sorted(seen) == list(range(SAMPLES))
        # Offsets are read, too, in runs.
        assert fetched(requests) < 2 * 1.6 * nbytes


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
def test_orders_that_fit_read_chunks(settings, tmp_path, upload, requests, exact_costs):
    numbers = write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        nbytes = ds[:].explain().nbytes
        requests.clear()
        for batch in ds.iter(0, 1, batch_size=32, **settings):
            np.testing.assert_array_equal(batch["x"], numbers[batch["id"]])
        # Some samples are read on their own, too, while their chunks are on the way.
        assert fetched(requests) < 1.9 * nbytes
        assert len(requests) < SAMPLES / 2


def test_a_cache_that_holds_all_is_filled_with_chunks(tmp_path, upload, requests, exact_costs):
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


def test_views_in_an_order_of_their_own(tmp_path, upload, requests, exact_costs):
    numbers = write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        nbytes = ds[:].explain().nbytes
        rows = np.random.default_rng(1).permutation(SAMPLES)
        for view, ids in ((ds.shuffle(seed=3), None), (ds[rows], rows)):
            requests.clear()
            found = [sample["id"] for sample in view]
            assert sorted(found) == list(range(SAMPLES))
            assert ids is None or found == ids.tolist()
            assert fetched(requests) < 1.3 * nbytes
            requests.clear()
            for batch in view.iter(0, 1, batch_size=50):
                np.testing.assert_array_equal(batch["x"], numbers[batch["id"]])
            assert fetched(requests) < 1.3 * nbytes
        requests.clear()
        npstream.write(tmp_path / "copy", ds[rows])
        assert fetched(requests) < 1.3 * nbytes
    assert (npstream.open(tmp_path / "copy")["id"].load() == rows).all()


def test_mixtures(tmp_path, upload, requests, exact_costs):
    datasets = {}
    for name, kind in (("a", "fixed"), ("b", "variable"), ("local", "fixed")):
        numbers = write(tmp_path / name, kind)  # the same of all
        where = tmp_path / name if name == "local" else upload(tmp_path / name)
        settings = {} if name == "local" else {"cache": tmp_path / "cache", "cache_limit": LIMIT}
        datasets[name] = npstream.open(where, columns=["id", "x"], **settings)
    mixed = npstream.mix(datasets)
    nbytes = sum(datasets[name][:].explain().nbytes for name in "ab")
    for shuffle in (True, npstream.Shuffle(block="900KB", lanes=2)):
        requests.clear()
        count = 0
        for batch in mixed.iter(0, 1, batch_size=60, shuffle=shuffle):
            for which, x in zip(batch["id"].tolist(), batch["x"], strict=True):
                np.testing.assert_array_equal(x, numbers[which])
            count += len(batch["id"])
        assert count >= 3 * SAMPLES
        assert fetched(requests) < 1.8 * nbytes


@pytest.mark.parametrize("per_node", [None, 1])
def test_ranks_of_one_machine_share_the_cache(per_node, tmp_path, upload, requests, exact_costs):
    write(tmp_path / "data")
    url = upload(tmp_path / "data")
    settings = {"batch_size": 16, "shuffle": npstream.Shuffle(block="60KB", lanes=4)}
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=LIMIT) as ds:
        parts = [ds.iter(r, 4, ranks_per_node=per_node, **settings) for r in range(4)]
        seen = [sample_id for part in parts for batch in part for sample_id in batch["id"].tolist()]
        assert set(seen) == set(range(SAMPLES))
        for part in parts:
            assert part._rowwise is False
        wide = [ds.iter(r, 4, batch_size=16, shuffle=True) for r in range(4)]
        for part in wide:
            next(iter(part))
            assert part._rowwise is True


@pytest.mark.parametrize("how", ["native", "py1br", "mixture", "view"])
@pytest.mark.parametrize("kind", ["zstd", "verify"])
def test_what_cannot_be_read_alone_is_refused(kind, how, tmp_path, upload, requests, exact_costs):
    write(tmp_path / "data", "zstd" if kind == "zstd" else "fixed")
    url = upload(tmp_path / "data")
    settings = {"verify": True} if kind == "verify" else {}

    def opened(limit):
        ds = npstream.open(url, cache=tmp_path / f"{limit}", cache_limit=limit, **settings)
        return npstream.mix({"a": ds[:2000], "b": ds[2000:]}) if how == "mixture" else ds

    def loop(ds, shuffle):
        view = ds.shuffle(seed=0) if how == "view" else ds
        requests.clear()
        rows = 0
        for batch in view.iter(0, 1, batch_size=32, shuffle=shuffle):
            rows += len(batch["id"])
        assert rows >= SAMPLES

    shuffle = {
        "py1br": npstream.StreamingShuffle("py1br", num_canonical_nodes=1, shuffle_block_size=3000),
        "view": False,
    }.get(how, True)
    ds = opened(LIMIT)
    whole = (ds.explain() if how == "mixture" else ds[:].explain()).nbytes
    with pytest.raises(ValueError, match="raise cache_limit to at least") as caught:
        loop(ds, shuffle)
    assert not requests
    least = int(re.search(r"at least ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))
    assert LIMIT < least < 4_000_000
    loop(opened(least), shuffle)
    assert fetched(requests) < 1.6 * whole
    said = str(caught.value)
    if how == "view":
        assert "in the order in which they are stored" in said
        return
    number = int(re.search(r"block(?:_size)?=(\d+)", said)[1])
    smaller = (
        npstream.StreamingShuffle("py1br", num_canonical_nodes=1, shuffle_block_size=number)
        if how == "py1br"
        else npstream.Shuffle(block=number)
    )
    loop(opened(LIMIT), smaller)
    assert fetched(requests) < 1.6 * whole


def test_failures_come_to_the_reader(tmp_path, upload, exact_costs, monkeypatch):
    write(tmp_path / "data")
    url = upload(tmp_path / "data")
    stream = RemoteStore.stream
    with npstream.open(url, cache=tmp_path / "cache", cache_limit=LIMIT, retries=0) as ds:
        it = iter(ds.iter(0, 1, batch_size=32, shuffle=True))
        next(it)
        fails = [True]

        def failing(self, spans):
            if fails[0]:
                raise StorageError(5, "the store fails", self.root)
            return stream(self, spans)

        monkeypatch.setattr(RemoteStore, "stream", failing)
        with pytest.raises(StorageError, match="the store fails"):
            for _ in it:
                pass
        fails[0] = False
        assert sum(len(b["id"]) for b in ds.iter(0, 1, batch_size=32, shuffle=True)) >= SAMPLES
    left = [thread for thread in threading.enumerate() if thread.name == "npstream-rows"]
    for thread in left:
        thread.join(30)
    assert not any(thread.is_alive() for thread in left)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_not_waited_for(tmp_path, upload, exact_costs, monkeypatch):
    write(tmp_path / "data")

    died = []

    def broken(self, ids, shard_of):
        died.append(len(ids))
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr(RemoteShards, "fetch_samples", broken)
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        seen = [batch["id"] for batch in ds.iter(0, 1, batch_size=400, shuffle=True)]
    assert sorted(np.concatenate(seen)) == list(range(SAMPLES))
    assert died


def test_an_iteration_that_is_left_holds_nothing(tmp_path, upload, exact_costs):
    write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        it = iter(ds.iter(0, 1, batch_size=32, shuffle=True))
        next(it)
        exact = ds._source.remote.point_reader
        assert exact.is_extended
        it.close()
        assert not exact.is_extended


def test_a_forked_process_goes_on(tmp_path, upload, exact_costs):
    numbers = write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        batches = iter(ds.iter(0, 1, batch_size=32, shuffle=True, seed=1))
        seen = next(batches)["id"].tolist()

        def read_on():
            rest = list(batches)
            for batch in rest:
                np.testing.assert_array_equal(batch["x"], numbers[batch["id"]])
            assert sorted({*seen, *np.concatenate([b["id"] for b in rest])}) == [*range(SAMPLES)]

        child = multiprocessing.get_context("fork").Process(target=read_on)
        child.start()
        child.join(120)
        assert child.exitcode == 0
        read_on()


def lru(chunks, nbytes, enough, limit):
    """Simulate a cache in the plainest way."""
    kept, uses, again, full_since = OrderedDict(), dict.fromkeys(range(len(nbytes)), 0), 0, None
    for number, chunk in enumerate(chunks):
        uses[chunk] += 1
        kept[chunk] = kept.pop(chunk, None)
        while sum(nbytes[k] for k in kept) > limit and len(kept) > 1:
            left = next(iter(kept))
            del kept[left]
            full_since = number if full_since is None else full_since
            again += nbytes[left] * (uses[left] < enough[left])
    return 0.0 if full_since is None else again / (len(chunks) - full_since)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.lists(st.integers(1, 9), min_size=6, max_size=6),
    st.integers(1, 50),
)
def test_what_leaves_a_cache(chunks, nbytes, samples, limit):
    expected = lru(chunks, nbytes, [n / 2 for n in samples], limit)
    arrays = (np.array(values) for values in (chunks, nbytes, samples))
    assert _refetched_bytes(*arrays, limit) == expected


@pytest.mark.parametrize("step", [1, -1, 2])
@pytest.mark.parametrize("shuffled", [True, False])
def test_what_reading_costs(shuffled, step, tmp_path, upload, requests, exact_costs):
    write(tmp_path / "data")
    with npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit=LIMIT
    ) as ds:
        view = ds[::step].shuffle(seed=0) if shuffled else ds[::step]
        cost = view.explain()
        requests.clear()
        view.load()
        assert cost.nbytes / 1.6 < fetched(requests) < 1.6 * cost.nbytes
