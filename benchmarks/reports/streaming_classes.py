"""Compare `npstream.streaming` with the real package of Streaming, and with `npstream.open`.

python benchmarks/reports/streaming_classes.py --data DIRECTORY --real VENV/bin/python [--samples N]

The real package needs older versions of NumPy and transformers, so it runs in a venv of its own,
such as that of `.ci/reference`. Both sides run the same program on the dataset T in processes of
their own, in turn. Each figure is the median of several runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 256
ROUNDS = 5
CASES = [
    # name of the case, overridden __getitem__, workers, least ratio
    ("script, no workers", False, 0, 8.0),
    ("script, 2 workers", False, 2, 3.0),
    ("own __getitem__, no workers", True, 0, 2.0),
    ("own __getitem__, 2 workers", True, 2, 2.0),
]


def samples_per_second(package: str, path: str, own: bool, workers: int, samples: int) -> float:
    """Read samples with a package as in a training script; the first batch is not counted."""
    from torch.utils.data import DataLoader

    streaming = importlib.import_module(package)
    base: Any = streaming.StreamingDataset

    class Own(base):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return {"id": sample["id"], "tokens": sample["tokens"].astype("int64")}

    kind = Own if own else base
    dataset = kind(local=path, batch_size=BATCH, shuffle=True)
    loader = iter(DataLoader(dataset, batch_size=BATCH, num_workers=workers))
    next(loader)
    count, start = 0, time.perf_counter()
    while count < samples:
        count += len(next(loader)["tokens"])
    return count / (time.perf_counter() - start)


def measure(python: str, package: str, path: str, own: bool, workers: int, samples: int) -> float:
    """Run `samples_per_second` in a process of its own."""
    arguments = json.dumps([package, path, own, workers, samples])
    command = [python, __file__, "--child", arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def indexing(path: str) -> list[tuple[str, float, float, float]]:
    """Compare ``ds[i]`` and ``ds[array]`` of StreamingDataset with ``ds[i]`` of `npstream.open`.

    Return the name, both times in microseconds for a sample, and the maximum ratio of each row.
    """
    import numpy as np

    import npstream
    from npstream.streaming import StreamingDataset

    ours, theirs = StreamingDataset(local=path), npstream.open(path)
    numbers = np.random.default_rng(0).integers(0, len(theirs), 4096)
    listed = numbers.tolist()

    def one_by_one(dataset: Any) -> Any:
        return lambda: [dataset[i] for i in listed]

    pairs = [
        ("ds[i], µs", one_by_one(ours), one_by_one(theirs), 1.5),
        ("ds[array], µs for a sample", lambda: ours[numbers], one_by_one(theirs), 1.0),
    ]
    rows = []
    for name, first, second, limit in pairs:
        times: tuple[list[float], list[float]] = [], []
        for _ in range(9):
            for function, results in zip((first, second), times, strict=True):
                start = time.perf_counter()
                function()
                results.append((time.perf_counter() - start) / len(listed) * 1e6)
        rows.append((name, *map(statistics.median, times), limit))
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--real", required=True, help="the Python with the real package")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    # The pattern leaves out the files of T, such as T-200000.tokens.
    (path,) = map(str, arguments.data.glob("T-*[0-9]"))
    sides = [(sys.executable, "npstream.streaming"), (arguments.real, "streaming")]
    print(
        "| samples/s | npstream.streaming | Streaming | ratio | must reach |\n|---|---|---|---|---|"
    )
    for name, own, workers, least in CASES:
        speeds: tuple[list[float], list[float]] = [], []
        for _ in range(arguments.rounds):
            for (python, package), results in zip(sides, speeds, strict=True):
                results.append(measure(python, package, path, own, workers, arguments.samples))
        ours, theirs = map(statistics.median, speeds)
        print(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} x | {least:.0f} x |")
    print("\n| | npstream.streaming | npstream | ratio | at most |\n|---|---|---|---|---|")
    for name, ours, theirs, limit in indexing(path):
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} x | {limit} x |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(samples_per_second(*json.loads(sys.argv[2])))
    else:
        main()
