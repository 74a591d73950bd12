"""Batches that need a request for each sample, from a store with a few very slow responses.

``python benchmarks/bench_tails.py`` prints the batch times with and without hedged requests, and
the requests that the server has seen. The store is SeaweedFS behind the proxy of the tests, which
delays each request by 10 ms, and each 100th range request of a shard by 1 s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

sys.path += [str(Path(__file__).parents[1] / "tests" / "helpers")]

from faults import FOR_EVER, Proxy, delay
from servers import RemoteDirectory, Servers

import npstream
from npstream.shards import remote as remote_shards
from npstream.storage.traffic.record import ReadStats

LATENCY = 0.010
SLOW_LATENCY = 100 * LATENCY
SLOW_EVERY = 100
BATCH = 256
SAMPLES = 60_000
WARMUP_BATCHES = 2

MAX_RATIO = 2.0
"""Maximum 99th percentile of the batch times, divided by the median."""

MAX_REQUESTS = 1.03
"""Maximum number of requests for each sample."""


@dataclass
class Run:
    """The batch times of a run in seconds, and what its server and its store have counted."""

    seconds: np.ndarray
    requests_per_sample: float
    stats: ReadStats

    @property
    def ratio(self) -> float:
        """The 99th percentile of the batch times divided by the median."""
        return float(np.percentile(self.seconds, 99) / np.median(self.seconds))


def serve(servers: Servers, path: Path, samples: int) -> tuple[RemoteDirectory, Proxy]:
    """Serve a dataset of samples of 2 KiB."""
    values = np.random.default_rng(0).integers(0, 1 << 16, (samples, 1024), np.uint16)
    npstream.write(path, {"tokens": values}, shard_size="64MB")
    directory, proxy = servers["s3"].new_directory(), servers.proxy("s3")
    filesystem, root = directory.filesystem()
    filesystem.put([str(file) for file in path.iterdir()], f"{root}/")
    return directory.with_proxy(proxy), proxy


def read_batches(
    directory: RemoteDirectory, proxy: Proxy, cache: Path, batches: int, hedge: bool
) -> Run:
    """Read random batches, and return their times."""
    proxy.clear()
    proxy.latency = LATENCY
    options = {"storage_options": directory.storage_options, "cache": cache, "hedge": hedge}
    with npstream.open(directory.url, **options) as ds:
        rows = np.random.default_rng(1).permutation(len(ds))
        rows = rows[: BATCH * (batches + WARMUP_BATCHES)].reshape(-1, BATCH)
        for batch in rows[:WARMUP_BATCHES]:
            ds[batch].load()
        proxy.faults = [delay(SLOW_LATENCY, times=FOR_EVER, every=SLOW_EVERY, path="shard")]
        before, sent, seconds = ds.stats, len(proxy.log), []
        for batch in rows[WARMUP_BATCHES:]:
            start = time.perf_counter()
            ds[batch].load()
            seconds.append(time.perf_counter() - start)
        stats = ds.stats - before
        requests = len(proxy.log) - sent
    return Run(np.array(seconds), requests / (batches * BATCH), stats)


def compare(path: Path, batches: int, samples: int) -> dict[bool, Run]:
    """Return a run without hedges and one with hedges."""
    servers = Servers(path)
    try:
        served = serve(servers, path / "data", samples)
        return {
            hedge: read_batches(*served, path / f"cache-{hedge}", batches, hedge)
            for hedge in (False, True)
        }
    finally:
        servers.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100)
    arguments = parser.parse_args()
    remote_shards.SPARSE_READS = 1 << 30  # so that batches never fetch whole chunks
    npstream.precompile()  # no batch includes the import of Numba
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        runs = compare(Path(directory), arguments.batches, SAMPLES)
    for hedge, run in runs.items():
        median, slow = 1000 * np.percentile(run.seconds, [50, 99])
        print(
            f"hedge={hedge}: batch of {BATCH} median {median:.0f} ms, p99 {slow:.0f} ms, ratio "
            f"{run.ratio:.2f}; {run.requests_per_sample:.4f} requests a sample; {run.stats}"
        )
    run = runs[True]
    is_reached = run.ratio <= MAX_RATIO and run.requests_per_sample <= MAX_REQUESTS
    print(f"at most {MAX_RATIO:g} x and {MAX_REQUESTS:g} requests: {'yes' if is_reached else 'no'}")


def test_slow_answers_cost_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_shards, "SPARSE_READS", 1 << 30)
    runs = compare(tmp_path, batches=2, samples=BATCH * (2 + WARMUP_BATCHES))
    assert runs[False].stats.hedges == 0
    assert runs[True].requests_per_sample <= MAX_REQUESTS
    for run in runs.values():
        assert run.stats.bytes_used == 2 * BATCH * 2048


if __name__ == "__main__":
    main()
