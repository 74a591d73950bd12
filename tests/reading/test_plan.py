"""Parts of values of remote samples: what is read of them, as `explain` says, and at what cost."""

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
from npstream.errors import StorageError
from npstream.reading import plan as plans
from npstream.shards import point_reads
from npstream.shards import remote as remote_shards
from npstream.storage import coalesce

ROWS = 90

SMALL = {"mds": {}, "zstd": {"compression": "zstd"}, "variable": {}}

RNG = np.random.default_rng(0)

DATA = {
    "x": RNG.integers(0, 1 << 20, (ROWS, 6, 8)).astype(np.int32),
    "flag": RNG.integers(0, 2, (ROWS, 150)).astype(bool),
    "y": RNG.standard_normal((ROWS, 3, 4, 5)),
    "id": np.arange(ROWS),
}


@pytest.fixture(scope="module")
def urls():
    """URLs of the same data: samples of one size, compressed, and with a column that varies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npstream.formats.chunks.CHUNK_BYTES", 4 << 10)
        found = {}
        for kind, options in SMALL.items():
            found[kind] = f"memory://parts-{kind}/data"
            data = (
                DATA
                if kind != "variable"
                else {"text": ["ab" * (k % 5) for k in range(ROWS)], **DATA}
            )
            npstream.write(found[kind], data, shard_size="32KB", **options)
    yield found
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def small(monkeypatch):
    """Let a request cost what 64 bytes do, and a chunk have 4 KiB."""
    monkeypatch.setattr("npstream.formats.chunks.CHUNK_BYTES", 4 << 10)
    for module, name, value in (
        (plans, "REQUEST_BYTES", 64),
        (coalesce, "REQUEST_BYTES", 64),
        (point_reads, "MAX_SAMPLE_GAP", 8),
        (remote_shards, "SMALL_CHUNK", 0),
        (remote_shards, "MIN_PART_READ", 256),
    ):
        monkeypatch.setattr(module, name, value)


@contextlib.contextmanager
def opened(url, **options):
    with tempfile.TemporaryDirectory() as cache, npstream.open(url, cache=cache, **options) as ds:
        yield ds


def spent(requests, before=0):
    return len(requests) - before, sum(nbytes for *_, nbytes in requests[before:])


rows = st.one_of(
    st.slices(ROWS),
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=8),
    st.integers(0, ROWS - 1).map(lambda row: slice(row, row + 1)),
)


@st.composite
def reads(draw):
    """Draw a column, and an index of its rows and values."""
    name = draw(st.sampled_from(["x", "flag", "y", "y", "id"]))
    cells = draw(basic_indices(DATA[name].shape[1:]))
    cells = cells if isinstance(cells, tuple) else (cells,)
    chosen = draw(rows)
    if isinstance(chosen, list) and any(isinstance(cell, int) for cell in cells):
        chosen = slice(chosen[0], None, 3)
    return name, (chosen, *cells)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("verify", ["auto", True])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(reads(), min_size=1, max_size=5), here=st.none() | rows)
def test_parts_are_numpys_and_cost_what_explain_says(
    kind, verify, steps, here, urls, small, requests
):
    with opened(urls[kind], verify=verify) as ds:
        if here is not None:
            ds[here].prefetch()
        for name, index in steps:
            view, before = ds[name][index], len(requests)
            cost = view.explain()
            assert len(requests) == before
            np.testing.assert_array_equal(view.load(), DATA[name][index])
            if kind == "mds":
                assert (cost.requests, cost.nbytes) == spent(requests, before)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.s_[::10, 0], (9, 9 * 32)),
        (np.s_[5:6, 1:3, ::7], (1, 64)),
        (np.s_[::10, ::5], (18, 18 * 32)),
        (np.s_[::10, ::-5, 3], (18, 18 * 4)),
        (np.s_[::10, [0, 5], [1, 2]], (18, 18 * 8)),
        (np.s_[::10, 3:3], (0, 0)),
    ],
    ids=str,
)
def test_bytes_of_parts(index, expected, urls, small, requests):
    with opened(urls["mds"]) as ds:
        view = ds["x"][index]
        cost = view.explain()
        requests.clear()
        np.testing.assert_array_equal(view.load(), DATA["x"][index])
        assert (cost.requests, cost.nbytes) == spent(requests) == expected
        assert view.explain().nbytes == 0
        np.testing.assert_array_equal(view.load(), DATA["x"][index])
        assert spent(requests) == expected


def test_all_ways_of_reading_take_the_parts_alone(urls, small, requests):
    ways = {
        "scalar": (lambda c: c[20, 3], 32),
        "element": (lambda c: c[20, 3, 2], 4),
        "elements": (lambda c: c[20, [1, 2], [0, 1]], 40),
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
    for way, (read, nbytes) in ways.items():
        with opened(urls["mds"]) as ds:
            requests.clear()
            np.testing.assert_array_equal(read(ds["x"]), read(DATA["x"]), err_msg=way)
            assert spent(requests)[1] == nbytes, way


def test_samples_in_memory_and_chunks_that_are_here_serve_parts(urls, small, requests):
    with opened(urls["mds"]) as ds:
        ds[40]
        ds[:3].prefetch()
        requests.clear()
        np.testing.assert_array_equal(ds["x"][[40, 1], 2].load(), DATA["x"][[40, 1], 2])
        np.testing.assert_array_equal(ds["y"][40, :, 1], DATA["y"][40, :, 1])
        assert requests == []


def test_a_chunk_is_fetched_once_its_parts_have_cost_as_much(urls, small, requests):
    with opened(urls["mds"]) as ds:
        requests.clear()
        reads = 0
        for row in range(6):
            for at in range(48):
                before = len(requests)
                assert ds["x"][0, row, at % 8] == DATA["x"][0, row, at % 8]
                reads += spent(requests, before) == (1, 4)
        assert 4 < reads <= 16  # each counts 256 bytes of about 4 KiB
        assert spent(requests)[1] < 3 * (4 << 10)


def test_several_schemas_and_datasets(urls, small, requests):
    with opened(urls["mds"]) as one, opened(urls["variable"], columns=[*DATA]) as two:
        column = npstream.mix({"one": one, "two": two})["x"][:90:45, 1]
        both = npstream.mix({"one": one, "again": one})["x"][::45, 1]
        requests.clear()
        cost = both.explain()
        np.testing.assert_array_equal(both.load(), np.tile(DATA["x"][::45, 1], (2, 1)))
        assert (cost.requests, cost.nbytes) == spent(requests) == (2, 64)
        np.testing.assert_array_equal(column.load(), DATA["x"][::45, 1])
        assert spent(requests) == (2, 64)
        mixed = npstream.mix({"one": one, "two": two})["x"]
        np.testing.assert_array_equal(mixed[:, 2].load(), np.tile(DATA["x"][:, 2], (2, 1)))


def test_whole_small_columns_among_large_ones_are_parts(tmp_path, requests):
    data = {"large": np.zeros((12, 1 << 18)), "pair": np.arange(24).reshape(12, 2)}
    npstream.write("memory://parts-large", data)
    with opened("memory://parts-large") as ds:
        cost, seen = ds["pair"].explain(), len(requests)
        np.testing.assert_array_equal(ds["pair"].load(), data["pair"])
        assert (cost.requests, cost.nbytes) == spent(requests, seen) == (12, 12 * 16)
        assert ds["pair"][3].tolist() == [6, 7]


def test_parts_without_elements_cost_nothing(urls, requests):
    for url in urls.values():
        with opened(url) as ds:
            part, seen = ds["x"][:, 0:0], len(requests)
            assert part.explain().nbytes == 0
            part.prefetch()
            assert part.load().size == np.asarray(part).size == 0
            assert len(requests) == seen


def test_a_dataset_that_was_replaced_is_named(urls, small):
    files = fsspec.filesystem("memory")
    npstream.write("memory://parts-gone/data", {"x": DATA["x"]})
    with opened("memory://parts-gone/data") as ds:
        files.rm("/parts-gone/data", recursive=True)
        with pytest.raises(StorageError, match="the dataset was removed since it was opened"):
            ds["x"][5, 0]


@pytest.mark.parametrize("name", ["s3"])
def test_what_a_server_counts_of_parts(name, servers, tmp_path):
    data = {"x": RNG.integers(0, 255, (40, 512, 512)).astype(np.uint8)}
    npstream.write(tmp_path / "data", data)
    place, proxy = servers[name].new_directory(), servers.proxy(name)
    for path in (tmp_path / "data").iterdir():
        place.put(path.name, path.read_bytes())
    place = place.via(proxy)
    with npstream.open(
        place.url, cache=tmp_path / "cache", storage_options=place.storage_options
    ) as ds:
        view = ds["x"][::4, 7]
        cost = view.explain()
        proxy.clear()
        np.testing.assert_array_equal(view.load(), data["x"][::4, 7])
        assert (cost.requests, cost.nbytes) == (10, 5120)
        assert [request.nbytes for request in proxy.log] == [512] * 10


def test_more_parts_than_are_kept_are_read_and_the_last_are_kept(
    urls, small, requests, monkeypatch
):
    with opened(urls["mds"]) as ds:
        for limit, again in ((600, 7), (1, 9)):
            monkeypatch.setattr(point_reads, "PARTS_CACHE_BYTES", limit)
            ds._source.remote.point_reader._parts_cache = point_reads.LRUCache(limit)
            ds["x"][::10, 0].load()
            requests.clear()
            np.testing.assert_array_equal(ds["x"][::10, 0].load(), DATA["x"][::10, 0])
            assert len(requests) == again


def test_threads_read_parts(urls, small):
    with opened(urls["mds"]) as ds, ThreadPoolExecutor(8) as pool:
        column = ds["y"]
        places = [(row, axis) for row in range(0, ROWS, 7) for axis in range(3)]
        found = list(pool.map(lambda place: column[place[0], place[1]], places))
        np.testing.assert_array_equal(found, [DATA["y"][place] for place in places])


def test_a_request_for_parts_is_tried_again(servers, urls, small, tmp_path):
    place, proxy = servers["s3"].new_directory(), servers.proxy("s3")
    files = fsspec.filesystem("memory")
    for path in files.find("/parts-mds/data"):
        place.put(path.removeprefix("/parts-mds/data/"), files.cat_file(path))
    place = place.via(proxy)
    with npstream.open(place.url, cache=tmp_path, storage_options=place.storage_options) as ds:
        proxy.clear()
        proxy.faults = [status(503, path=".mds")]
        np.testing.assert_array_equal(ds["x"][5, 3], DATA["x"][5, 3])
        assert len(proxy.log) == 2
