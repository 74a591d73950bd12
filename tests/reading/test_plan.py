"""Tests of reads of parts of samples: the values are right, and `explain` estimates the cost."""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from faults import status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

import npstream
from npstream._core.lru import ENTRY_OVERHEAD, LRUCache
from npstream.errors import StorageError
from npstream.reading import plan as plans
from npstream.shards import point_reads
from npstream.shards import remote as remote_shards
from npstream.storage import coalesce

ROWS = 90

OPTIONS = {"mds": {}, "zstd": {"compression": "zstd"}, "variable": {}}
"""The kinds of datasets, and their options of `write`."""

RNG = np.random.default_rng(0)

DATA = {
    "x": RNG.integers(0, 1 << 20, (ROWS, 6, 8)).astype(np.int32),
    "flag": RNG.integers(0, 2, (ROWS, 150)).astype(bool),
    "y": RNG.standard_normal((ROWS, 3, 4, 5)),
    "id": np.arange(ROWS),
}


@pytest.fixture(scope="module")
def urls():
    """Return URLs of the same data: with samples of one size, compressed, and of varying size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npstream.formats.chunks.CHUNK_BYTES", 4 << 10)
        urls = {}
        for kind, options in OPTIONS.items():
            urls[kind] = f"memory://parts-{kind}/data"
            data = DATA
            if kind == "variable":
                data = {"text": ["ab" * (k % 5) for k in range(ROWS)], **DATA}
            npstream.write(urls[kind], data, shard_size="32KB", **options)
    yield urls
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def small_costs(monkeypatch):
    """Adapt the costs to samples of less than 1 KiB: a request costs as much as 64 bytes."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 4 << 10)
    for module, name, value in (
        (plans, "REQUEST_BYTES", 64),
        (coalesce, "REQUEST_BYTES", 64),
        (point_reads, "MAX_SAMPLE_GAP", 8),
        (remote_shards, "SMALL_CHUNK", 0),
        (remote_shards, "MIN_PARTS_COST", 256),
    ):
        monkeypatch.setattr(module, name, value)


@contextlib.contextmanager
def open_with_new_cache(url, **options):
    with tempfile.TemporaryDirectory() as cache, npstream.open(url, cache=cache, **options) as ds:
        yield ds


def count_transfers(requests, start=0):
    """Return the number of requests in ``requests[start:]``, and their bytes."""
    return len(requests) - start, sum(nbytes for *_, nbytes in requests[start:])


rows = st.one_of(
    st.slices(ROWS),
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=8),
    st.integers(0, ROWS - 1).map(lambda row: slice(row, row + 1)),
)


@st.composite
def reads(draw):
    """Draw a column, and an index of its rows and of the elements of its values."""
    name = draw(st.sampled_from(["x", "flag", "y", "y", "id"]))
    cells = draw(basic_indices(DATA[name].shape[1:]))
    cells = cells if isinstance(cells, tuple) else (cells,)
    return name, (draw(rows), *cells)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("verify", ["auto", True])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(reads(), min_size=1, max_size=5), cached=st.none() | rows)
def test_parts_equal_those_of_numpy_and_cost_what_explain_estimates(
    kind, verify, steps, cached, urls, small_costs, requests
):
    with open_with_new_cache(urls[kind], verify=verify) as ds:
        if cached is not None:
            ds[cached].prefetch()
        for name, index in steps:
            view, start = ds[name][index], len(requests)
            cost = view.explain()
            assert len(requests) == start
            np.testing.assert_array_equal(view.load(), DATA[name][index])
            if kind != "variable":  # the sizes of varying samples are estimated
                assert (cost.requests, cost.nbytes) == count_transfers(requests, start)


# A value of "x" has 6 lines of 8 int32: 32 bytes a line. Gaps of up to 64 bytes are fetched, too.
@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.s_[::10, 0], (9, 9 * 32)),
        (np.s_[5:6, 1:3, ::7], (1, 64)),
        (np.s_[::10, ::5], (18, 18 * 32)),
        (np.s_[::10, ::-5, 3], (18, 18 * 4)),
        (np.s_[::10, [0, 5], [1, 2]], (18, 18 * 8)),  # elements 1 and 2 of lines 0 and 5
        (np.s_[::10, 3:3], (0, 0)),
    ],
    ids=str,
)
def test_a_part_takes_its_bytes_and_is_cached(index, expected, urls, small_costs, requests):
    with open_with_new_cache(urls["mds"]) as ds:
        view = ds["x"][index]
        cost = view.explain()
        requests.clear()
        np.testing.assert_array_equal(view.load(), DATA["x"][index])
        assert (cost.requests, cost.nbytes) == count_transfers(requests) == expected
        assert view.explain().nbytes == 0
        np.testing.assert_array_equal(view.load(), DATA["x"][index])
        assert count_transfers(requests) == expected


def test_every_way_to_read_a_part_fetches_only_its_bytes(urls, small_costs, requests):
    reads = {
        "scalar": (lambda c: c[20, 3], 32),
        "element": (lambda c: c[20, 3, 2], 4),
        "elements": (lambda c: c[20, [1, 2], [0, 1]], 32 + 8),  # from (1, 0) to (2, 1)
        "iteration": (lambda c: [*c[::10, 0]], 9 * 32),
        "reduction": (lambda c: c[::10, 0].sum(axis=0), 9 * 32),
        "ufunc": (lambda c: c[::10, 0] + 1, 9 * 32),
        "array": (lambda c: np.asarray(c[::10, 0]), 9 * 32),
        "take": (lambda c: c[::10].take([0], axis=1), 9 * 32),
        "out": (
            lambda c: (
                c[::10, 0].load(np.empty((9, 8), np.int32)) if hasattr(c, "load") else c[::10, 0]
            ),
            9 * 32,
        ),
        "strided": (lambda c: np.asarray(c[::10, 0, ::-7]), 9 * 32),
    }
    for name, (read, nbytes) in reads.items():
        with open_with_new_cache(urls["mds"]) as ds:
            requests.clear()
            np.testing.assert_array_equal(read(ds["x"]), read(DATA["x"]), err_msg=name)
            assert count_transfers(requests)[1] == nbytes, name


def test_parts_of_samples_in_memory_and_of_cached_chunks_take_no_request(
    urls, small_costs, requests
):
    with open_with_new_cache(urls["mds"]) as ds:
        ds[40]
        ds[:3].prefetch()
        requests.clear()
        np.testing.assert_array_equal(ds["x"][[40, 1], 2].load(), DATA["x"][[40, 1], 2])
        np.testing.assert_array_equal(ds["y"][40, :, 1], DATA["y"][40, :, 1])
        assert requests == []


def test_a_chunk_is_fetched_when_reads_of_parts_have_cost_as_much(urls, small_costs, requests):
    with open_with_new_cache(urls["mds"]) as ds:
        requests.clear()
        reads = 0
        for index in np.ndindex(6, 8):
            start = len(requests)
            assert ds["x"][0, *index] == DATA["x"][0, *index]
            reads += count_transfers(requests, start) == (1, 4)
        assert 4 < reads <= 16  # each read counts as 256 bytes, and the chunk has about 4 KiB
        assert len(requests) == reads + 1
        assert requests[-1][2] > 3 << 10  # the chunk


def test_parts_of_several_schemas_and_datasets_are_read(urls, small_costs, requests):
    with (
        open_with_new_cache(urls["mds"]) as one,
        open_with_new_cache(urls["variable"], columns=[*DATA]) as two,
    ):
        column = npstream.mix({"one": one, "two": two})["x"][:90:45, 1]
        repeated = npstream.mix({"one": one, "again": one})["x"][::45, 1]
        requests.clear()
        cost = repeated.explain()
        np.testing.assert_array_equal(repeated.load(), np.tile(DATA["x"][::45, 1], (2, 1)))
        assert (cost.requests, cost.nbytes) == count_transfers(requests) == (2, 64)
        np.testing.assert_array_equal(column.load(), DATA["x"][::45, 1])
        assert count_transfers(requests) == (2, 64)
        mixed = npstream.mix({"one": one, "two": two})["x"]
        np.testing.assert_array_equal(mixed[:, 2].load(), np.tile(DATA["x"][:, 2], (2, 1)))


def test_a_small_column_next_to_a_large_one_is_read_as_a_part(requests):
    data = {"large": np.zeros((12, 1 << 18)), "pair": np.arange(24).reshape(12, 2)}
    npstream.write("memory://parts-large", data)
    with open_with_new_cache("memory://parts-large") as ds:
        cost, start = ds["pair"].explain(), len(requests)
        np.testing.assert_array_equal(ds["pair"].load(), data["pair"])
        assert (cost.requests, cost.nbytes) == count_transfers(requests, start) == (12, 12 * 16)
        assert ds["pair"][3].tolist() == [6, 7]


def test_parts_without_elements_cost_nothing(urls, requests):
    for url in urls.values():
        with open_with_new_cache(url) as ds:
            part, start = ds["x"][:, 0:0], len(requests)
            assert part.explain().nbytes == 0
            part.prefetch()
            assert part.load().size == np.asarray(part).size == 0
            assert len(requests) == start


def test_reads_of_parts_report_a_removed_dataset(small_costs):
    files = fsspec.filesystem("memory")
    npstream.write("memory://parts-gone/data", {"x": DATA["x"]})
    with open_with_new_cache("memory://parts-gone/data") as ds:
        files.rm("/parts-gone/data", recursive=True)
        with pytest.raises(StorageError, match="the dataset was removed since it was opened"):
            ds["x"][5, 0]


@pytest.mark.parametrize("name", ["s3"])
def test_servers_receive_the_estimated_requests_for_parts(name, servers, tmp_path):
    data = {"x": RNG.integers(0, 255, (40, 512, 512)).astype(np.uint8)}
    npstream.write(tmp_path / "data", data)
    bucket, proxy = servers[name].new_directory(), servers.proxy(name)
    for path in (tmp_path / "data").iterdir():
        bucket.put(path.name, path.read_bytes())
    bucket = bucket.with_proxy(proxy)
    with npstream.open(
        bucket.url, cache=tmp_path / "cache", storage_options=bucket.storage_options
    ) as ds:
        view = ds["x"][::4, 7]
        cost = view.explain()
        proxy.clear()
        np.testing.assert_array_equal(view.load(), data["x"][::4, 7])
        assert (cost.requests, cost.nbytes) == (10, 5120)
        assert [request.nbytes for request in proxy.log] == [512] * 10


def test_the_last_parts_of_a_read_larger_than_the_cache_are_cached(
    urls, small_costs, requests, monkeypatch
):
    with open_with_new_cache(urls["mds"]) as ds:
        for limit, cached in ((2 * (ENTRY_OVERHEAD + 32), 2), (1, 0)):  # a part has 32 bytes
            monkeypatch.setattr(point_reads, "PARTS_CACHE_BYTES", limit)
            ds._source.remote.point_reader._parts_cache = LRUCache(limit)
            requests.clear()
            ds["x"][::10, 0].load()
            first_requests = requests.copy()
            requests.clear()
            np.testing.assert_array_equal(ds["x"][::10, 0].load(), DATA["x"][::10, 0])
            assert requests == first_requests[: 9 - cached]


def test_threads_may_read_parts_concurrently(urls, small_costs):
    with open_with_new_cache(urls["mds"]) as ds, ThreadPoolExecutor(8) as pool:
        column = ds["y"]
        indices = [(row, axis) for row in range(0, ROWS, 7) for axis in range(3)]
        values = list(pool.map(column.__getitem__, indices))
        np.testing.assert_array_equal(values, [DATA["y"][index] for index in indices])


def test_a_failed_request_for_parts_is_retried(servers, urls, small_costs, tmp_path):
    bucket, proxy = servers["s3"].new_directory(), servers.proxy("s3")
    files = fsspec.filesystem("memory")
    for path in files.find("/parts-mds/data"):
        bucket.put(path.removeprefix("/parts-mds/data/"), files.cat_file(path))
    bucket = bucket.with_proxy(proxy)
    with npstream.open(bucket.url, cache=tmp_path, storage_options=bucket.storage_options) as ds:
        proxy.clear()
        proxy.faults = [status(503, path=".mds")]
        np.testing.assert_array_equal(ds["x"][5, 3], DATA["x"][5, 3])
        assert len(proxy.log) == 2
