"""Bytes that two ranks fetch in later epochs through a cache that cannot hold all data.

``python benchmarks/cache_order.py`` writes a dataset to an S3 server on this machine, and prints a
table. The ranks are processes that take their batches in step, as in a training. A proxy counts
the bytes of epochs 2 to 4. The reference is the data times (1 - fraction), where fraction is the
size of the cache divided by that of the data. Each epoch uses each chunk once, so no rule can keep
more than the cache holds from one epoch to the next.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import npstream
from npstream.formats import chunks

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "helpers")]

from servers import Servers  # noqa: E402 - its folder is not a package

RANKS, EPOCHS, BATCH = 2, 4, 128
SAMPLE_BYTES = 4096


def shuffle_of(name: str, nbytes: int) -> Any:
    """Return the `shuffle=` of an order, for `nbytes` of data."""
    if name == "npstream":  # the default is 1/64 of large data, but at least 1 GiB
        return npstream.Shuffle(block=nbytes // 64, lanes=4)
    if name == "sequential":
        return False
    return npstream.StreamingShuffle(
        name, num_canonical_nodes=1, shuffle_block_size=nbytes // 64 // SAMPLE_BYTES
    )


def read(rank: int, settings: dict[str, Any], barrier: Any, latch: Any) -> None:
    """Read all epochs as one rank; wait for the other one at each batch."""
    chunks.CHUNK_BYTES = settings["chunk_bytes"]
    ds = npstream.open(settings["url"], **settings["options"])
    iteration = ds.iter(
        rank, RANKS, batch_size=BATCH, shuffle=shuffle_of(settings["order"], settings["nbytes"])
    )
    for _ in range(EPOCHS):
        for batch in iteration:
            np.testing.assert_array_equal(batch["x"][:, 0], batch.ids)
            barrier.wait()
        latch.wait()  # the main process reads the count
        latch.wait()


def measure(settings: dict[str, Any], proxy: Any) -> list[int]:
    """Return the bytes that all ranks fetched in each epoch."""
    context = multiprocessing.get_context("spawn")
    barrier, latch = context.Barrier(RANKS), context.Barrier(RANKS + 1)
    ranks = [
        context.Process(target=read, args=(rank, settings, barrier, latch)) for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    counts = []
    for _ in range(EPOCHS):
        latch.wait(600)
        counts.append(sum(request.nbytes for request in proxy.log))
        proxy.clear()
        latch.wait(600)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=400)
    parser.add_argument("--chunk-bytes", type=int, default=1 << 22)
    parser.add_argument("--orders", nargs="+", default=["npstream", "sequential", "py1e"])
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.25, 0.5, 0.9])
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    chunks.CHUNK_BYTES = arguments.chunk_bytes
    scratch = Path(tempfile.mkdtemp(dir=arguments.directory))
    servers = Servers(scratch)
    try:
        samples = arguments.chunks * arguments.chunk_bytes // SAMPLE_BYTES
        values = np.zeros((samples, SAMPLE_BYTES // 8), np.int64)
        values[:, 0] = np.arange(samples)
        npstream.write(scratch / "data", {"x": values}, shard_size=16 * arguments.chunk_bytes)
        remote = servers["s3"].new_directory()
        filesystem, root = remote.filesystem()
        filesystem.put(str(scratch / "data"), root, recursive=True)
        proxy = servers.proxy("s3")
        through_proxy = remote.with_proxy(proxy)
        nbytes = int(npstream.open(scratch / "data").shards["bytes"].sum())
        print("| order | cache | bytes of epochs 2 to 4 / (data x (1 - fraction)) |\n|---|---|---|")
        for order in arguments.orders:
            for fraction in arguments.fractions:
                settings = {
                    "url": through_proxy.url, "order": order, "nbytes": nbytes,
                    "chunk_bytes": arguments.chunk_bytes,
                    "options": {
                        "storage_options": through_proxy.storage_options,
                        "cache": str(scratch / f"{order}-{fraction}"),
                        "cache_limit": int(nbytes * fraction),
                    },
                }  # fmt: skip
                _, *later = measure(settings, proxy)
                ratios = [count / nbytes / (1 - fraction) for count in later]
                text = ", ".join(f"{ratio:.3f}" for ratio in ratios)
                print(f"| {order} | {fraction:.0%} | {np.mean(ratios):.3f} ({text}) |", flush=True)
                shutil.rmtree(scratch / f"{order}-{fraction}")
    finally:
        servers.close()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
