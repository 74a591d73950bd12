"""Print figures of balanced batches, of runs over damaged data, and of workers of a large dataset.

python benchmarks/reports/batches.py [balance] [damage] [workers]

`damage` compares each resumed run with the uninterrupted one, and raises if a global batch differs.
Its data have 1 % damaged samples and 10 % rows that are left out.
"""

from __future__ import annotations

import argparse
import heapq
import importlib
import io
import json
import logging
import multiprocessing
import struct
import sys
import tempfile
import time
from multiprocessing.context import set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np

import npstream
from npstream._core import jit
from npstream.orders.balance import BucketOrder, RowCosts, assign_ranks

RANKS = 64
ROUNDS = 20

SHARDS = 100_000
SHARD_ROWS = 10_000

GLOBAL_BATCH = 24
STEPS = 500
WORLDS = (1, 2, 3, 8)


def longest_first(costs: Any, ranks: int) -> float:
    """Return the largest sum of a rank after greedy assignment.

    The samples are assigned from the longest to the shortest, each to the rank with the smallest
    sum.
    """
    heap = [0.0] * ranks
    for cost in np.sort(costs)[::-1].tolist():
        heapq.heapreplace(heap, heap[0] + cost)
    return max(heap)


def lengths(n: int, sigma: float, seed: int = 0) -> Any:
    """Return log-normal lengths of texts."""
    return np.ceil(np.random.default_rng(seed).lognormal(6.0, sigma, n))


def balance() -> None:
    """Print the quality and the time of balanced batches of 64 ranks.

    The quality is the largest sum of a rank by `longest_first`, divided by the largest sum by
    `assign_ranks`. Above 100 %, `assign_ranks` is better.
    """
    jit.always_compile()
    print("| sigma | batch of a rank | of longest-first | worst | ms for a global batch |")
    print("|---|---|---|---|---|")
    for sigma in (0.5, 0.8, 1.0, 1.5):
        for batch in (8, 16, 32, 512):
            ratios, seconds = [], 0.0
            for seed in range(ROUNDS):
                costs, capacities = lengths(RANKS * batch, sigma, seed), np.full(RANKS, batch)
                assign_ranks(costs, capacities)  # compiled, and in the caches
                start = time.process_time()
                owners = assign_ranks(costs, capacities)
                seconds += time.process_time() - start
                ratios.append(longest_first(costs, RANKS) / np.bincount(owners, costs).max())
            print(
                f"| {sigma} | {batch} | {np.mean(ratios):.1%} | {min(ratios):.1%} "
                f"| {seconds / ROUNDS * 1e3:.2f} |"
            )
    print("\n| sigma | buckets | padding | without | ms for a global batch of 512 |")
    print("|---|---|---|---|---|")
    for sigma in (0.5, 0.8, 1.0):
        for buckets in (64, 256):
            costs = lengths(8 * RANKS * 256, sigma)
            rows, start = np.arange(len(costs)), time.process_time()
            # np.copy returns the rows at positions of an epoch that is not shuffled.
            order = BucketOrder(np.copy, len(costs), RowCosts(costs), 8 * RANKS, buckets, 0, 0)
            batches = rows.reshape(-1, 8 * RANKS)
            rows = np.concatenate([order.at(batch) for batch in batches])
            seconds = (time.process_time() - start) / len(batches)
            print(
                f"| {sigma} | {buckets} | {padding(costs[rows]):.1%} | {padding(costs):.1%} "
                f"| {seconds * 1e3:.2f} |"
            )


def padding(costs: Any) -> float:
    """Return the share of padding in batches of 8 samples of each rank."""
    longest = costs.reshape(-1, 8, RANKS).max(axis=1)
    return float(1 - costs.sum() / (8 * longest).sum())


def damage() -> None:
    """Compare runs that stop and resume with the uninterrupted run, at each of 500 steps."""
    logging.getLogger("npstream").setLevel(logging.ERROR)
    valid = np.random.default_rng(0).random(STEPS * GLOBAL_BATCH * 8 // 7) >= 0.1
    n = len(valid)
    broken = np.random.default_rng(1).choice(n, n // 100, replace=False)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data"
        columns = {"text": [str(i) * (i % 5) for i in range(n)], "label": np.arange(n)}
        npstream.write(path, columns, shard_size="64KiB")
        break_samples(path, set(broken.tolist()))
        ds = npstream.open(path)
        for mode in ("skip", "replace"):
            settings = {
                "global_batch_size": GLOBAL_BATCH, "shuffle": npstream.Shuffle("16KiB", 2),
                "valid": valid, "on_error": mode,
            }  # fmt: skip
            whole = ds.iter(0, 1, **settings)
            states, expected = [whole.state_dict()], []
            for batch in whole:
                expected.append(np.sort(batch.ids).tolist())
                states.append(whole.state_dict())
            for step in range(min(STEPS, len(expected))):
                for world in WORLDS:
                    ranks = [ds.iter(rank, world, **settings) for rank in range(world)]
                    for rank in ranks:
                        rank.load_state_dict(states[step])
                    parts = zip(*map(iter, ranks), strict=False)
                    for wanted in expected[step : step + 2]:
                        ids = np.concatenate([batch.ids for batch in next(parts)])
                        assert np.sort(ids).tolist() == wanted, (mode, step, world)
            print(
                f"{mode}: {min(STEPS, len(expected))} stops, worlds {WORLDS}, "
                f"{len(whole.failures)} failures: the same global batches"
            )


def break_samples(path: Path, samples: set[int]) -> None:
    """Overwrite the sizes of values in samples."""
    first = 0
    for shard in json.loads((path / "index.json").read_text())["shards"]:
        with open(path / shard["raw_data"]["basename"], "r+b") as file:
            for sample in samples & set(range(first, first + shard["samples"])):
                file.seek(4 * (1 + sample - first))
                (offset,) = struct.unpack("<I", file.read(4))
                file.seek(offset)
                file.write(b"\xff\xff\xff\x7f")
        first += shard["samples"]


class Start:
    """Is unpickled as the usage before the next value is unpickled, but after its imports.

    A process unpickles its arguments in order. With `Start`, a value and `End` as arguments, the
    function thus receives the usage before and after the value.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        modules = [name for name in sys.modules if name.split(".")[0] in ("npstream", "numpy")]
        return start, (modules,)


class End:
    """Is unpickled as the usage after the previous value is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return usage, ()


def usage() -> tuple[float, int]:
    """Return the time, and the private bytes of this process."""
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file if "kB" in line)
    kilobytes = sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
    return time.perf_counter(), kilobytes << 10


def start(modules: list[str]) -> tuple[float, int]:
    """Import modules, and return the result of `usage`."""
    for module in modules:
        importlib.import_module(module)
    return usage()


def send_usage(before: tuple[float, int], _: Any, after: tuple[float, int], pipe: Any) -> None:
    """Send the seconds and the private bytes of unpickling, in a started process."""
    pipe.send((after[0] - before[0], after[1] - before[1]))
    pipe.close()


class NoProcess:
    """Stands for a process that is being started, so that a pickle for a worker can be measured.

    While a process is being started, `SharedArrays` pickles the numbers of shared files instead of
    the values.
    """

    def duplicate_for_child(self, file: int) -> int:
        """Return the number of a file."""
        return file

    DupFd = staticmethod(int)


def workers() -> None:
    """Print the cost of sending a dataset of 10**9 rows to a worker.

    The cost is the size of the pickle, and the time and the memory that unpickling takes.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        npstream.write(path / "one", {"x": np.arange(SHARD_ROWS)})
        document = json.loads((path / "one" / "index.json").read_text())
        (entry,) = document["shards"]
        document["shards"] = [
            {**entry, "raw_data": {**entry["raw_data"], "basename": f"shard.{shard:05}.mds"}}
            for shard in range(SHARDS)
        ]
        (path / "data").mkdir()
        (path / "data" / "index.json").write_text(json.dumps(document))
        ds = npstream.open(path / "data")
        context = multiprocessing.get_context("spawn")
        for name, value in {"dataset": ds, "ds.iter": ds.iter(0, 1, batch_size=256)}.items():
            file = io.BytesIO()
            set_spawning_popen(NoProcess())  # type: ignore[arg-type]
            ForkingPickler(file, 5).dump(value)
            set_spawning_popen(None)  # type: ignore[arg-type]
            results = []
            for _ in range(5):
                receiver, sender = context.Pipe(duplex=False)
                arguments = Start(), value, End(), sender
                process = context.Process(target=send_usage, args=arguments)
                process.start()
                results.append(receiver.recv())
                process.join()
            seconds, nbytes = np.median(np.array(results), axis=0)
            print(
                f"{name} of {len(ds):,} rows in {SHARDS:,} shards: pickle of {file.tell():,} "
                f"bytes; ready {seconds * 1e3:.1f} ms after its imports, "
                f"{nbytes / 1e6:.1f} MB private"
            )


def main() -> None:
    """Run the parts that the command line names; by default all."""
    parts = {"balance": balance, "damage": damage, "workers": workers}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    for name in parser.parse_args().parts or parts:
        parts[name]()
        print()


if __name__ == "__main__":
    main()
