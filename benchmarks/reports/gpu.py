"""Run the tests that need a GPU, and compare `ds.iter(device="cuda")` with pinned copies.

Threads gather the rows in one loop, and the GPU itself gathers them in another (`gather="device"`).

python benchmarks/reports/gpu.py [--data DIRECTORY] [--threads N] [--gigabytes N]

The script makes its data, and needs no network. It needs only torch and the packages of the tests.
It prints a table, and exits with the status of the tests.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import npstream
import torch

ROW_BYTES = 2048
BATCH_BYTES = 16 << 20
ROUNDS = 7
TARGETS = {None: 0.45, "device": 0.88}
"""Minimum rate of the loop for each value of `gather`, divided by the rate of pinned copies."""


def make_dataset(directory: Path, gigabytes: int) -> npstream.Dataset:
    """Open a dataset of rows of 2 KB; write it first if it is missing."""
    path = directory / f"rows-{gigabytes}"
    if not path.exists():
        rows = gigabytes * (1 << 30) // ROW_BYTES
        generator = np.random.default_rng(0)
        npstream.write(path, {"row": generator.integers(0, 256, (rows, ROW_BYTES), np.uint8)})
    return npstream.open(path)


def copy_limit() -> float:
    """Return the bytes a second of copies of 16 MiB from pinned memory."""
    source = torch.empty(BATCH_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(BATCH_BYTES, dtype=torch.uint8, device="cuda")
    copies = 200
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(copies):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return copies * BATCH_BYTES / (time.perf_counter() - start)


def loop_rate(dataset: npstream.Dataset, threads: int, gather: str | None) -> float:
    """Return the bytes a second that arrive on the device in a shuffled epoch."""
    batches = dataset.iter(
        0, 1, batch_size=BATCH_BYTES // ROW_BYTES, shuffle=True, last="drop",
        threads=threads, device="cuda", gather=gather,
    )  # fmt: skip
    nbytes = 0
    torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in batches:
        nbytes += batch["row"].nbytes
    torch.cuda.synchronize()
    return nbytes / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "npstream-bench")
    parser.add_argument("--threads", type=int, default=12)
    parser.add_argument("--gigabytes", type=int, default=4)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device: torch.cuda.is_available() is False")

    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/torch"]
    code = subprocess.call(pytest, cwd=Path(__file__).parents[2])
    arguments.data.mkdir(parents=True, exist_ok=True)
    dataset = make_dataset(arguments.data, arguments.gigabytes)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.threads} threads")
    print("| what | npstream | pinned copies | ratio | at least | reached |")
    print("|---|---|---|---|---|---|")
    # npstream warns when threads gather instead of the GPU. Their rate must not be taken for that
    # of the GPU.
    warnings.simplefilter("error", RuntimeWarning)
    for gather, target in TARGETS.items():
        for _ in range(2):  # warm-up: page cache, kernels, pinned memory, registered shards
            loop_rate(dataset, arguments.threads, gather)
        pairs = [
            (loop_rate(dataset, arguments.threads, gather), copy_limit()) for _ in range(ROUNDS)
        ]
        ours, limit = (statistics.median(side) for side in zip(*pairs, strict=True))
        verdict = "yes" if ours >= target * limit else "**no**"
        option = '`device="cuda"`' if gather is None else f'`device="cuda"`, `gather="{gather}"`'
        print(
            f"| {option}, batches of 16 MiB of rows of 2 KB, shuffled | {ours / 1e9:.1f} GB/s "
            f"| {limit / 1e9:.1f} GB/s | {ours / limit:.2f} | {target} | {verdict} |"
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
