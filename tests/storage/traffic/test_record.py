"""Statistics of a dataset and of an iteration are those that the server sees."""

from __future__ import annotations

import copy
import math
import os
import pickle
import threading

import numpy as np
import pytest
from faults import status
from traffic_datasets import SAMPLE_BYTES, open_numbers, serve_numbers

import npstream
from npstream.errors import StorageError
from npstream.storage import requests
from npstream.storage.traffic.record import ReadStats, Traffic, total_stats


@pytest.fixture(scope="module", params=["http", "s3"])
def shared_dataset(request, servers, tmp_path_factory):
    return serve_numbers(servers, request.param, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def remote_dataset(shared_dataset, monkeypatch):
    """Return the directory of a dataset on a server, and the proxy in front of it.

    The drivers of fsspec read. With obstore, the requests that open a dataset have ranges, too.
    """
    monkeypatch.setenv("NPSTREAM_OBSTORE", "0")
    shared_dataset[1].clear()
    return shared_dataset


def range_requests(proxy):
    return [request for request in proxy.log if request.range and request.status == 206]


def test_bytes_requested_and_requests_are_those_of_the_server(remote_dataset, tmp_path):
    directory, proxy = remote_dataset
    proxy.clear()
    with open_numbers(directory, tmp_path) as ds:
        rows = np.array([3, 15_000, 19_999, 7, 3])
        np.testing.assert_array_equal(ds[rows]["value"], rows[:, None] + np.arange(64))
        ds[8000:9000].load()
        stats = ds.stats
        assert stats.bytes_requested == sum(request.nbytes for request in range_requests(proxy))
        assert len(range_requests(proxy)) <= stats.requests <= len(proxy.log)
        assert stats.retries == stats.hedges == 0
        assert 0 < stats.latency(50) <= stats.latency(99) < 60
        assert stats.wait_seconds > 0
        assert sum(stats.histogram) == len(range_requests(proxy))


def test_bytes_used_are_those_of_the_samples_read(remote_dataset, tmp_path):
    directory, _ = remote_dataset
    with open_numbers(directory, tmp_path) as ds:
        rows = np.array([3, 15_000, 19_999, 7, 3])
        ds[rows].load()
        assert ds.stats.bytes_used == 5 * SAMPLE_BYTES
        assert ds[1000]["value"][0] == 1000
        assert ds.stats.bytes_used == 6 * SAMPLE_BYTES
        first_amplification = ds.stats.read_amplification
        ds[:1000].load()
        ds[:1000].load()  # from the cache
        assert ds.stats.bytes_used == (6 + 2 * 1000) * SAMPLE_BYTES
        before = ds.stats
        assert ds[500]["value"][0] == 500  # one sample, from the cache
        assert (ds.stats - before).bytes_used == pytest.approx(SAMPLE_BYTES, rel=0.01)
        assert (ds.stats - before).requests == 0
        assert ds.stats.read_amplification < first_amplification


def test_parts_of_samples_count_with_their_bytes(servers, tmp_path):
    npstream.write(tmp_path / "wide", {"x": np.zeros((40, 256, 1024), "f4")}, shard_size="16MB")
    server = servers["http"]
    directory = server.new_directory()
    for path in (tmp_path / "wide").iterdir():
        directory.put(path.name, path.read_bytes())
    with npstream.open(directory.url, cache=tmp_path / "cache") as ds:
        ds["x"][::10, 0].load()
        assert ds.stats.bytes_used == 4 * 4096
        assert ds.stats.read_amplification < 3  # with the index


def test_retries_are_counted_with_their_bytes(remote_dataset, tmp_path, monkeypatch):
    directory, proxy = remote_dataset
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    with open_numbers(directory, tmp_path) as ds:
        before = ds.stats
        proxy.faults = [status(503, times=2, path="shard")]
        assert ds[17_777]["value"][0] == 17_777
        stats = ds.stats - before
        assert (stats.requests, stats.retries, stats.bytes_requested) == (1, 2, 3 * SAMPLE_BYTES)


def test_an_iteration_counts_from_its_beginning(remote_dataset, tmp_path):
    directory, _ = remote_dataset
    with open_numbers(directory, tmp_path) as ds:
        ds[:10].load()
        batches = ds[:10_000].iter(0, 1, batch_size=1000)
        assert batches.stats == ReadStats(concurrency=32)
        seen = sum(len(batch.ids) for batch in batches)
        assert batches.stats.bytes_used == seen * SAMPLE_BYTES
        assert batches.stats.requests > 0
        assert copy.copy(batches).stats == ReadStats(concurrency=32)
        sent = pickle.loads(pickle.dumps(batches))
        assert sent.stats == ReadStats()
        assert sum(len(batch.ids) for batch in sent) == seen
        assert sent.stats.bytes_used == seen * SAMPLE_BYTES


def test_failed_requests_count(remote_dataset, tmp_path):
    directory, proxy = remote_dataset
    with open_numbers(directory, tmp_path, retries=0) as ds:
        before = ds.stats
        proxy.faults = [status(503, times=100, path="shard")]
        with pytest.raises(StorageError):
            ds[3]
        stats = ds.stats - before
        assert stats.requests >= 1
        assert sum(stats.histogram) == 0


def test_a_mixture_adds_the_statistics_of_its_datasets(remote_dataset, tmp_path):
    directory, _ = remote_dataset
    npstream.write(tmp_path / "local", {"value": np.zeros((100, 64), np.int64)})
    with open_numbers(directory, tmp_path) as ds:
        mixture = npstream.mix({"a": ds, "b": npstream.open(tmp_path / "local")})
        before = mixture.stats
        assert before.requests == ds.stats.requests  # a local dataset sends none
        mixture[[5, len(ds) + 1]].load()
        stats = mixture.stats - before
        assert stats.bytes_used == SAMPLE_BYTES  # of the remote dataset
        assert stats.requests >= 1


def test_a_forked_process_counts_from_0(remote_dataset, tmp_path):
    directory, _ = remote_dataset
    with open_numbers(directory, tmp_path) as ds:
        ds[:10].load()
        batches = ds.iter(0, 1, batch_size=10)
        assert ds.stats.requests > 0
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            status = 1
            try:
                counted = ds.stats.requests, batches.stats.requests
                os.write(writer, repr(counted).encode())
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.read(reader, 100) == b"(0, 0)"
        os.close(reader)
        os.close(writer)


def test_no_count_of_concurrent_reads_is_lost():
    traffic = Traffic()

    def count() -> None:
        for _ in range(20_000):
            traffic.count_use(1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traffic.stats().bytes_used == 80_000
    assert total_stats([traffic, traffic, Traffic()]).bytes_used == 80_000


def test_the_repr_has_all_numbers():
    stats = ReadStats(requests=1200, retries=3, bytes_requested=1 << 20, bytes_used=1 << 18)
    text = repr(stats)
    for part in (
        "requests 1,200",
        "retries 3",
        "hedges 0 (0 won)",
        "bytes requested 1.0 MiB",
        "bytes used 256.0 KiB",
        "read amplification 4",
        "p50 none",
        "p99 none",
        "wait 0 s",
        "concurrency 0",
    ):
        assert part in text
    assert math.isnan(ReadStats().read_amplification)
    assert (stats + stats) - stats == stats
    with pytest.raises(TypeError):
        stats - 1
    with pytest.raises(AttributeError):
        stats.requests = 0
