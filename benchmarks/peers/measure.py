"""Measure one task of one package, in the environment of that package. compare.py runs it.

python benchmarks/peers/measure.py NAME TASK --kind T|S --data DIRECTORY --path DATASET
    --count SAMPLES

The last line of its output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from adapters import ADAPTERS, Adapter
from samples import Samples, check_batch

PASSES = 2
"""Timed epochs of one process, after one that is not timed. The faster one counts."""

ROWS = 1000
"""Samples that are read one by one."""

Figures = dict[str, Any]


def measure_write(adapter: Adapter) -> Figures:
    """Write all samples, and sync the files."""
    start = time.perf_counter()
    adapter.write()
    files = [path for path in adapter.path.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    elapsed = time.perf_counter() - start
    return {
        "seconds": elapsed / adapter.samples.count,
        "bytes": sum(path.stat().st_size for path in files),
    }


def read_epoch(adapter: Adapter, *, shuffled: bool) -> float:
    """Return the seconds of an epoch, which includes opening; raise if a sample is missing."""
    count, id_sum, first = 0, 0, None
    start = time.perf_counter()
    for batch in adapter.epoch(shuffled=shuffled):
        first = batch if first is None else first
        count += len(batch["id"])
        id_sum += int(np.asarray(batch["id"]).sum())
    elapsed = time.perf_counter() - start
    total = adapter.samples.count
    assert (count, id_sum) == (total, total * (total - 1) // 2), (count, id_sum)
    assert first is not None
    check_batch(adapter.kind, first, min(256, total))
    if not shuffled:
        assert np.flatnonzero(np.asarray(first["id"]) == 0).tolist() == [0]
        for name, value in next(iter(adapter.samples)).items():
            assert np.array_equal(first[name][0], value), name
    else:
        assert np.any(np.diff(np.asarray(first["id"])) != 1), "not shuffled"
    return elapsed


def measure_epoch(adapter: Adapter, *, shuffled: bool) -> Figures:
    """Read one epoch to warm up, and several timed ones."""
    read_epoch(adapter, shuffled=shuffled)
    passes = [read_epoch(adapter, shuffled=shuffled) for _ in range(PASSES)]
    return {"seconds": min(passes) / adapter.samples.count}


def measure_samples(adapter: Adapter) -> Figures:
    """Read single samples at random."""
    reader, total = adapter.reader(), adapter.samples.count
    rows = np.random.default_rng(2).integers(0, total, 2 * ROWS).tolist()
    for row in rows[:ROWS]:  # to warm up
        assert int(reader[row]["id"]) == row
    start = time.perf_counter()
    for row in rows[ROWS:]:
        reader[row]
    return {"seconds": (time.perf_counter() - start) / ROWS}


def measure_first(adapter: Adapter) -> Figures:
    """Read the first sample; the caller has noted when it started the process."""
    sample = adapter.reader()[0]
    now = time.time()
    assert int(sample["id"]) == 0
    return {"now": now}


TASKS: dict[str, Callable[[Adapter], Figures]] = {
    "write": measure_write,
    "order": lambda adapter: measure_epoch(adapter, shuffled=False),
    "shuffled": lambda adapter: measure_epoch(adapter, shuffled=True),
    "samples": measure_samples,
    "first": measure_first,
}


def main() -> None:
    """Measure the task that is named."""
    parser = argparse.ArgumentParser(description="Measure one task of one package.")
    parser.add_argument("name", choices=ADAPTERS)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--kind", choices=["T", "S"], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    adapter = ADAPTERS[options.name](
        Samples(options.kind, options.data, options.count), options.path
    )
    figures = TASKS[options.task](adapter)
    figures["version"] = metadata.version(adapter.package)
    figures["python"] = ".".join(map(str, sys.version_info[:3]))
    print(json.dumps(figures), flush=True)
    os._exit(0)  # some packages leave threads and processes that take seconds to end


if __name__ == "__main__":
    main()
