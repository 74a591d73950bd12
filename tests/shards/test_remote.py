"""Tests of remote datasets: they read as local ones do, and fetch only the estimated bytes."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import golden_data as golden
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream.cache.leases import is_leased
from npstream.errors import CostError, FormatError, IntegrityError, NpstreamError, StorageError
from npstream.shards import readahead
from npstream.shards.readahead import ChunkReadAhead
from npstream.shards.remote import BULK_SAMPLES, RemoteShards
from npstream.storage.remote import RemoteStore
from npstream.storage.traffic.latency import MIN_REQUESTS

READABLE = [case["name"] for case in golden.cases() if case["readable"] is True]
BAD = [case["name"] for case in golden.cases() if case["name"].startswith("bad_")]

HANG = 120
"""Seconds after which a thread is regarded as hanging."""


def write(directory, n=600, variable=False, **options):
    """Write a dataset with about 100 bytes a sample, and return its columns."""
    data = {"id": np.arange(n), "x": np.arange(n * 12).reshape(n, 12).astype(np.float64)}
    if variable:
        texts = [f"{i}" * (i % 40) for i in range(n)]
        rows = [{"id": i, "text": texts[i], "x": data["x"][i]} for i in range(n)]
        columns = {"id": "int64", "text": "str", "x": "ndarray:float64:12"}
        npstream.write(directory, rows, columns=columns, **options)
        return {**data, "text": texts}
    npstream.write(directory, data, **options)
    return data


def check(batch, data):
    np.testing.assert_array_equal(batch["id"], data["id"][batch.ids])
    np.testing.assert_array_equal(batch["x"], data["x"][batch.ids])
    if "text" in data:
        assert list(batch["text"]) == [data["text"][i] for i in batch.ids.ravel()]


# Equality with local datasets.


@pytest.mark.parametrize("name", READABLE)
def test_golden_data_are_read(name, upload, tmp_path, small_chunks):
    case = golden.case(name)
    expected = golden.expected(case)
    url = upload(golden.directory(case))
    for order in (range(len(expected)), reversed(range(len(expected)))):
        ds = npstream.open(url, cache=tmp_path, allow_pickle=True)
        for row in order:
            golden.assert_same_sample(ds[row], expected[row], f"sample {row}")
    ds = npstream.open(url, cache=tmp_path / "other", allow_pickle=True)
    for row, sample in enumerate(ds):
        golden.assert_same_sample(sample, expected[row], f"sample {row}")


@pytest.mark.parametrize("name", BAD)
def test_damaged_golden_data_raise(name, upload, tmp_path, small_chunks):
    case = golden.case(name)
    with pytest.raises((NpstreamError, ValueError)):  # noqa: PT012 - at open, or at a sample
        verify = case.get("validate_hash") or True
        ds = npstream.open(upload(golden.directory(case)), cache=tmp_path, verify=verify)
        for sample in ds:
            assert sample
        assert [ds[i] for i in range(len(ds))]


indices = st.one_of(
    st.integers(-600, 599),
    st.slices(600),
    st.lists(st.integers(-600, 599), min_size=1, max_size=40),
)


@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_reads_in_any_order_equal_those_of_a_local_dataset(
    variable, compression, upload, tmp_path, small_chunks
):
    data = write(tmp_path / "data", variable=variable, compression=compression, shard_size="16KB")
    local, url = npstream.open(tmp_path / "data"), upload(tmp_path / "data")
    caches = iter(range(1000))

    @given(st.lists(indices, min_size=1, max_size=8))
    def read_all(index_list):
        ds = npstream.open(url, cache=tmp_path / f"cache{next(caches)}")
        for index in index_list:
            if isinstance(index, int):
                np.testing.assert_equal(ds[index], local[index])
            else:
                check(ds[index].load(), data)

    read_all()


@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
def test_iteration_with_read_ahead_yields_each_sample_once(
    variable, upload, tmp_path, small_chunks, monkeypatch
):
    monkeypatch.setattr(readahead, "WINDOW_BYTES", 1 << 13)
    monkeypatch.setattr(readahead, "GROUP_BYTES", 1 << 11)
    data = write(tmp_path / "data", variable=variable, shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    batches = ds.iter(0, 1, batch_size=17, shuffle=True, last="short")
    for _ in range(2):
        ids = []
        for batch in batches:
            check(batch, data)
            ids += batch.ids.tolist()
        assert sorted(ids) == list(range(600))
    assert [sample["id"] for sample in ds[::-1]] == list(range(600))[::-1]


def every_seventh_id(ds):
    return [int(sample["id"]) for sample in ds[::7]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_reads_a_dataset(method, tmp_path, upload):
    write(tmp_path / "data", shard_size="16KB")
    # Only a forked process has the files of a memory store.
    url = upload(tmp_path / "data") if method == "fork" else f"local://{tmp_path / 'data'}"
    ds = npstream.open(url, cache=tmp_path / "cache")
    assert ds[3]["id"] == 3
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(every_seventh_id, (ds,)) == list(range(0, 600, 7))


def test_a_pickled_dataset_reads_the_same_samples(tmp_path, upload, small_chunks):
    data = write(tmp_path / "data", shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    ds[:100].load()
    check(pickle.loads(pickle.dumps(ds))[::-1].load(), data)


def test_threads_share_fetched_chunks(tmp_path, upload, small_chunks, requests):
    data = write(tmp_path / "data", shard_size="64KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        for batch in pool.map(lambda _: ds.load(), range(8)):
            check(batch, data)
    assert len(requests) == len(set(requests))


# Requests.


@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
def test_one_sample_takes_its_bytes_and_is_cached(
    variable, tmp_path, upload, requests, small_chunks
):
    write(tmp_path / "data", variable=variable, shard_size="64KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    requests.clear()
    assert ds[7]["id"] == ds[7]["id"] == 7
    assert len(requests) == 1 + variable
    sizes = [nbytes for *_, nbytes in requests]
    assert sizes.pop() < 150
    if variable:  # one run has the offsets of the whole shard, so the next read takes one request
        assert sizes == [4 * (int(ds.shards["samples"][0]) + 1)]
        assert ds[300]["id"] == 300
        assert len(requests) == 3


def test_the_third_sparse_read_fetches_the_chunk(tmp_path, upload, requests, small_chunks):
    write(tmp_path / "data", shard_size="64KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    requests.clear()
    for row in (0, 2, 4):
        cost, start = ds[[row]].explain(), len(requests)
        assert ds[row]["id"] == row
        sizes = [nbytes for *_, nbytes in requests[start:]]
        assert (cost.requests, cost.nbytes) == (len(sizes), sum(sizes))
    assert len(requests) == 3  # two samples, then the chunk together with the header
    for row in range(6):
        assert ds[row]["id"] == row
    assert len(requests) == 3


@pytest.mark.parametrize("case", ["many", "fewer", "cheap requests", "small cache"])
def test_a_read_of_many_samples_fetches_chunks_if_they_cost_less(
    case, upload, tmp_path, requests, monkeypatch
):
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 1 << 18)
    n = 40_000
    values = np.arange(n * 16).reshape(n, 16)
    npstream.write(tmp_path / "data", {"x": values}, shard_size="4MB")
    count = BULK_SAMPLES if case == "fewer" else 2 * BULK_SAMPLES
    rows = np.random.default_rng(0).permutation(n)[:count]
    limit = values.nbytes // 2 if case == "small cache" else None
    options = {"cache": tmp_path / "cache", "cache_limit": limit}
    with npstream.open(upload(tmp_path / "data"), **options) as ds:
        if case == "cheap requests":  # a request takes the time of 100 bytes
            for nbytes in [1_000] * MIN_REQUESTS + [1 << 22] * MIN_REQUESTS:
                ds._source.remote.traffic.count_answer(1.0, 0.001 + nbytes / 1e5, nbytes)
        cost = ds[rows].explain()
        requests.clear()
        np.testing.assert_array_equal(ds[rows]["x"], values[rows])
    assert (cost.requests, cost.nbytes) == (len(requests), sum(size for _, _, size in requests))
    if case == "many":
        assert len(requests) < 40  # 20 chunks, and the headers of shards
        assert cost.nbytes >= values.nbytes
    else:
        assert len(requests) > count / 2
        assert cost.nbytes < values.nbytes / 4


@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
@pytest.mark.parametrize(
    "index",
    [5, slice(None), slice(10, 30), slice(None, None, -50), [3, 599, 4, 300], slice(0, 0)],
    ids=str,
)
def test_explain_estimates_the_fetched_bytes(
    variable, index, tmp_path, upload, requests, small_chunks
):
    write(tmp_path / "data", variable=variable, shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    view = ds[[index]] if isinstance(index, int) else ds[index]
    requests.clear()
    cost = view.explain()
    assert requests == []
    view.load()
    nbytes = sum(nbytes for *_, nbytes in requests)
    if variable:  # explain takes the average size for each sample
        assert cost.requests == pytest.approx(len(requests), abs=2)
        assert cost.nbytes == pytest.approx(nbytes, rel=0.6, abs=600)
    else:
        assert (cost.requests, cost.nbytes) == (len(requests), nbytes)
    assert cost.samples == view.size


def test_explain_counts_cached_chunks(tmp_path, upload, small_chunks):
    write(tmp_path / "data", shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    before = ds.explain()
    assert (before.cached, before.shards) == (0, len(ds.shards))
    ds[:300].load()
    assert 0 < ds.explain().cached < before.chunks
    assert ds.explain().nbytes < before.nbytes
    ds.load()
    assert ds.explain().requests == 0
    local = npstream.open(tmp_path / "data").explain()
    assert (local.cached, local.requests) == (local.chunks, 0)
    assert repr(local) == f"<Cost: {local}>"
    assert "<th>requests</th><td>0</td>" in local._repr_html_()


def test_reads_after_a_prefetch_take_no_request(tmp_path, upload, requests, small_chunks):
    data = write(tmp_path / "data", variable=True, shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    ds[100:400].prefetch()
    requests.clear()
    check(ds[100:400:3].load(), data)
    assert ds[250]["text"] == data["text"][250]
    assert requests == []
    small_cache = npstream.open(
        upload(tmp_path / "data"), cache=tmp_path / "less", cache_limit="24KB"
    )
    with pytest.raises(ValueError, match="raise cache_limit"):
        small_cache.prefetch()


def test_implicit_reads_above_the_limit_raise(tmp_path, upload, small_chunks):
    write(tmp_path / "data", variable=True, shard_size="16KB")
    url = upload(tmp_path / "data")
    ds = npstream.open(url, cache=tmp_path / "cache", implicit_read_limit="4KB")
    for read in (
        lambda: ds["x"].mean(),
        lambda: ds["x"] + 1,
        lambda: ds["text"] == "1",
        lambda: np.asarray(ds["x"]),
        lambda: list(ds["x"]),
        lambda: next(iter(ds.shuffle(0, block=None))),
    ):
        with pytest.raises(CostError, match=r"implicit_read_limit=4\.0 KiB: read with \.load\(\)"):
            read()
    assert ds["x"][:10].sum() == np.arange(120).sum()
    assert ds.load().n == 600
    assert ds["x"].mean() == np.arange(7200).mean()  # all chunks are cached now
    unlimited = npstream.open(url, cache=tmp_path / "other", implicit_read_limit=None)
    assert unlimited["x"].mean() == np.arange(7200).mean()


def test_small_columns_are_read_from_the_side_car(tmp_path, upload, requests, small_chunks):
    write(tmp_path / "data", shard_size="16KB")
    url = upload(tmp_path / "data")
    ds = npstream.open(url, cache=tmp_path / "cache", implicit_read_limit=0)
    requests.clear()
    view = ds[ds["id"] % 100 == 3]
    assert ds["id"].max() == 599
    assert {name for name, *_ in requests} == {"index.columns/id.npy"}
    assert view["id"].load().tolist() == list(range(3, 600, 100))
    assert view[2]["x"][0] == 203 * 12


# The index.


def test_the_index_is_fetched_once(tmp_path, upload, monkeypatch):
    write(tmp_path / "data")
    url = upload(tmp_path / "data")
    npstream.open(url, cache=tmp_path / "cache")
    monkeypatch.delattr(RemoteStore, "read")
    assert len(npstream.open(url, cache=tmp_path / "cache")) == 600


def test_versions_of_all_metadata_files_are_requested_concurrently(tmp_path, upload, monkeypatch):
    write(tmp_path / "data")
    url, version = upload(tmp_path / "data"), RemoteStore.version
    barrier = threading.Barrier(3)  # index, side-car and list of added columns

    def wait_for_all(store, name):
        barrier.wait(timeout=HANG)
        return version(store, name)

    monkeypatch.setattr(RemoteStore, "version", wait_for_all)
    assert npstream.open(url, cache=tmp_path / "cache")[7]["id"] == 7


def test_a_missing_index_raises(tmp_path):
    with pytest.raises(StorageError, match=r"index\.json"):
        npstream.open("memory://nothing/here", cache=tmp_path)


def test_older_versions_of_the_index_can_be_opened(tmp_path, upload):
    write(tmp_path / "data", n=100)
    ds = npstream.open(tmp_path / "data")
    old = ds.version
    old_index = (tmp_path / "data" / "index.json").read_bytes()
    write(tmp_path / "new", n=50)
    for path in (tmp_path / "new").glob("*.mds"):
        path.rename(tmp_path / "data" / f"new-{path.name}")
    text = (tmp_path / "new" / "index.json").read_text().replace("shard.0", "new-shard.0")
    (tmp_path / "data" / "index.json").write_text(text)
    (tmp_path / "data" / f"index.{old}.json").write_bytes(old_index)
    for url in (tmp_path / "data", upload(tmp_path / "data")):
        newest = npstream.open(url, cache=tmp_path / "cache")
        assert len(newest) == 50
        assert len(npstream.open(url, version=newest.version, cache=tmp_path / "cache")) == 50
        assert len(npstream.open(url, version=old, cache=tmp_path / "cache")) == 100
        with pytest.raises(StorageError, match=f"the newest is '{newest.version}'"):
            npstream.open(url, version="0123456789abcdef", cache=tmp_path / "cache")
        with pytest.raises(ValueError, match="expected the fingerprint"):
            npstream.open(url, version="../x", cache=tmp_path / "cache")


@pytest.mark.parametrize("has_sidecar", [False, True])
@pytest.mark.parametrize("is_index_rewritten", [False, True])
def test_the_cache_of_rewritten_data_is_not_used(
    has_sidecar, is_index_rewritten, tmp_path, small_chunks
):
    """The index of both datasets is equal, because it has no hashes."""
    files, values = fsspec.filesystem("memory"), []
    for number in range(2):
        directory = tmp_path / str(number)
        npstream.write(directory, {"x": np.full((300, 12), number)}, shard_size="16KB")
        for path in directory.rglob("*"):
            name = path.relative_to(directory).as_posix()
            is_new = path.suffix == ".mds" or is_index_rewritten or number == 0
            is_sidecar = name.startswith("index.") and name != "index.json"
            if path.is_file() and (has_sidecar if is_sidecar else is_new):
                files.pipe_file(f"/rewritten/{name}", path.read_bytes())
        ds = npstream.open("memory://rewritten", cache=tmp_path / "cache")
        values.append((int(ds["x"].load().min()), int(ds[7]["x"][0])))
    files.rm("/rewritten", recursive=True)
    # If neither index nor side-car is rewritten, nothing reveals that shards were.
    is_detectable = has_sidecar or is_index_rewritten
    assert values == [(0, 0), (1, 1) if is_detectable else (0, 0)]


# Failures.


def test_a_cache_may_be_cleared_in_use(tmp_path, upload, small_chunks):
    data = write(tmp_path / "data", variable=True, shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    for _ in range(3):
        check(ds.load(), data)
        assert ds[5]["id"] == 5
        npstream.cache.clear(tmp_path / "cache")
    check(ds[::-1].load(), data)


def test_a_small_cache_keeps_about_its_limit(tmp_path, upload, small_chunks):
    data = write(tmp_path / "data", variable=True, shard_size="16KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", cache_limit="60KB")
    for _ in range(2):
        check(ds.load(), data)
        for batch in ds.iter(0, 1, batch_size=50, shuffle=True):
            check(batch, data)
    # Each piece of 1 KiB takes a disk block of 4 KiB, which the limit does not count.
    assert npstream.cache.info(tmp_path / "cache").nbytes <= 2 * (60 << 10)


def damage(url, pattern="*.mds"):
    """Flip a bit in the last value of each file."""
    files = fsspec.filesystem("memory")
    for name in files.glob(f"{url.removeprefix('memory:/')}/{pattern}"):
        body = bytearray(files.cat_file(name))
        body[-3] ^= 1
        files.pipe_file(name, bytes(body))


def test_the_recorded_hash_of_a_complete_shard_is_checked(tmp_path, upload, small_chunks):
    write(tmp_path / "data", shard_size="16KB", hashes=["xxh64"])
    (tmp_path / "data" / "index.msgpack").unlink(missing_ok=True)
    url = upload(tmp_path / "data")
    damage(url)
    ds = npstream.open(url, cache=tmp_path / "cache")
    with pytest.raises(IntegrityError, match="its xxh64 is"):
        ds.load()
    with pytest.raises(IntegrityError, match="its xxh64 is"):
        ds.load()  # the damaged shard was not kept


def test_a_shard_that_is_fetched_again_is_checked_again(tmp_path, upload, small_chunks):
    data = write(tmp_path / "data", shard_size="16KB", hashes=["xxh64"])
    (tmp_path / "data" / "index.msgpack").unlink()
    url = upload(tmp_path / "data")
    ds = npstream.open(url, cache=tmp_path / "cache")
    check(ds.load(), data)
    npstream.cache.clear(tmp_path / "cache")
    damage(url)
    with pytest.raises(IntegrityError, match="its xxh64 is"):
        ds.load()


def test_a_store_that_reports_no_sizes_is_read(tmp_path, upload, monkeypatch):
    data = write(tmp_path / "data", shard_size="16KB")
    info = RemoteStore._info
    monkeypatch.setattr(RemoteStore, "_info", lambda *args: {**info(*args), "size": None})
    check(npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache").load(), data)


def test_errors_wake_all_waiting_threads(tmp_path, upload, small_chunks):
    write(tmp_path / "data", shard_size="16KB")
    url = upload(tmp_path / "data")
    ds = npstream.open(url, cache=tmp_path / "cache", timeout=1000.0, retries=0)
    files = fsspec.filesystem("memory")
    for name in files.glob(f"{url.removeprefix('memory:/')}/*.mds"):
        files.rm_file(name)
    with pytest.raises(StorageError, match="No such file"):
        ds[::2].load()
    with pytest.raises(StorageError, match="No such file"):
        next(iter(ds.iter(0, 1, batch_size=100)))
    with pytest.raises(StorageError, match="No such file"):
        ds.prefetch()
    for thread in [t for t in threading.enumerate() if t.name == "npstream-ahead"]:
        thread.join(HANG)
        assert not thread.is_alive()


@pytest.mark.timeout(HANG)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_readers_do_not_wait_for_a_dead_thread(tmp_path, upload, small_chunks, monkeypatch):
    data = write(tmp_path / "data", shard_size="4KB")
    fetch, failed_leases = RemoteShards.fetch_chunks, []

    def fetch_with_bug(self, chunks, lease=None):
        if lease is not None:
            failed_leases.append(lease)
            raise RuntimeError("a bug")
        fetch(self, chunks)

    monkeypatch.setattr(RemoteShards, "fetch_chunks", fetch_with_bug)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", timeout=1000.0)
    for batch in ds.iter(0, 1, batch_size=50, shuffle=True):
        check(batch, data)
    assert failed_leases


@pytest.mark.timeout(HANG)
@pytest.mark.parametrize("failure", ["closed", "interrupted", "no thread"])
def test_leases_of_a_failed_request_are_released(
    failure, tmp_path, upload, small_chunks, monkeypatch
):
    """If a lease were kept, all readers of this process would wait for its chunks."""
    write(tmp_path / "data", shard_size="4KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache", timeout=1000.0)
    shards = ds._source.fetcher.shards
    ids = np.arange(len(ds))
    shard_of = np.searchsorted(shards.index.starts, ids, side="right") - 1
    reader = ChunkReadAhead(shards)
    piece_key, calls = shards.files.piece_key, []

    def fail_at_third_chunk(*chunk):
        calls.append(chunk)
        if len(calls) == 3:
            if failure == "interrupted":
                raise KeyboardInterrupt
            reader.close()
        return piece_key(*chunk)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    if failure == "no thread":
        reader.start()
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(shards.files, "piece_key", fail_at_third_chunk)
    with contextlib.suppress(KeyboardInterrupt, RuntimeError):
        reader.request((ids, shard_of))
    if failure == "no thread":
        reader.close()  # as an iteration does when it ends with this error
    monkeypatch.undo()
    assert not any(
        is_leased(shards.files.piece_key(*chunk))
        for (chunk, _) in shards.count_chunks(ids, shard_of)
    )


def test_a_read_ahead_looks_up_a_chunk_once_for_successive_requests(
    tmp_path, upload, small_chunks, monkeypatch
):
    write(tmp_path / "data", shard_size="64KB")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    shards = ds._source.remote
    is_readable, lookups = shards.files.is_readable, []

    def record(*chunk):
        lookups.append(chunk)
        return is_readable(*chunk)

    monkeypatch.setattr(shards.files, "is_readable", record)
    ids, shard_of = np.arange(300), np.zeros(300, np.int64)
    (first, count), (second, _), (third, _), *_ = shards.count_chunks(ids, shard_of)
    with ChunkReadAhead(shards) as reader:
        assert reader.request((ids[:1], shard_of[:1])) > 0
        assert reader.request((ids[1:2], shard_of[1:2])) == 0
        assert reader.request((ids[: count + 1], shard_of[: count + 1])) > 0
        assert lookups == [first, second]
        reader.request((ids[2 * count : 2 * count + 1], shard_of[:1]))
        reader.request((ids[:1], shard_of[:1]))  # it may have been evicted since its last request
        assert lookups == [first, second, third, first]


@pytest.mark.timeout(HANG)
def test_a_read_ahead_starts_when_another_reader_waits_for_its_chunks(
    tmp_path, upload, small_chunks
):
    """The other reader is another opening of the dataset, and the first one reads nothing."""
    data = write(tmp_path / "data")
    url = upload(tmp_path / "data")
    one = npstream.open(url, cache=tmp_path / "cache", timeout=1000.0)
    two = npstream.open(url, cache=tmp_path / "cache", timeout=1000.0)
    shards = one._source.remote
    with ChunkReadAhead(shards) as reader:
        assert reader.request((np.arange(600), np.zeros(600, np.int64))) > 0
        assert not reader.threads
        two.prefetch()
        assert two.explain().nbytes == 0
        check(two.load(), data)


def test_a_wrong_header_size_raises(tmp_path, upload, small_chunks):
    write(tmp_path / "data", variable=True, shard_size="16KB")
    url = upload(tmp_path / "data")
    files = fsspec.filesystem("memory")
    (name, *_) = sorted(files.glob(f"{url.removeprefix('memory:/')}/*.mds"))
    body = bytearray(files.cat_file(name))
    body[4:8] = b"\xff\xff\xff\xff"
    files.pipe_file(name, bytes(body))
    ds = npstream.open(url, cache=tmp_path / "cache", verify=False)
    for read in (lambda: ds[0], lambda: ds[:100].load()):
        with pytest.raises(FormatError):
            read()
