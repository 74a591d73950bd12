"""Feeding a training step by the threads of `ds.iter`: time, CPU time, and what a step loses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure, warm

torch = pytest.importorskip("torch")
GIGABYTE = 1e9
STEP_SECONDS = 0.005
STEPS = 200


def sum_of_ids(batches: Iterable[Any]) -> int:
    return sum(int(batch["id"][0]) for batch in batches)


def time_cpu(function: Callable[[], object], nbytes: int) -> float:
    """Return the CPU seconds of all threads for each gigabyte, if `function` reads `nbytes`."""
    start = time.process_time()
    function()
    return (time.process_time() - start) / nbytes * GIGABYTE


def epoch_pair(data: Data, size: int) -> Pair:
    dataset, records = npstream.open(data.tokens_dataset()), data.records()
    warm(dataset, records)
    batches = dataset.iter(0, 1, batch_size=size, shuffle=True, last="short")
    order = dataset.order(0)[:]
    starts = range(0, len(order), size)

    def ours(number: int) -> int:
        batches.set_epoch(0)
        return sum_of_ids(batches)

    def reference(number: int) -> int:
        return sum_of_ids(records[order[start : start + size]] for start in starts)

    return Pair(ours, reference, equal, calls=len(starts))


def cpu_pair(data: Data, size: int) -> Pair:
    dataset, records = npstream.open(data.tokens_dataset()), data.records()
    warm(dataset, records)
    batches = dataset.iter(0, 1, batch_size=size, shuffle=True, last="drop")
    order = dataset.order(0)[:]
    starts = range(0, len(order) // size * size, size)
    nbytes = len(starts) * size * records.dtype.itemsize
    out = np.empty(size, records.dtype)

    def read() -> int:
        batches.set_epoch(0)
        return sum_of_ids(batches)

    def take() -> None:
        for start in starts:
            np.take(records, order[start : start + size], out=out, mode="clip")

    return Pair(
        lambda number: time_cpu(read, nbytes),
        lambda number: time_cpu(take, nbytes),
        lambda left, right: None,
        returns_value=True,
    )


EPOCH_REFERENCE = "`memmap[perm[k:k+{}]]` of a packed record array {{id, tokens}}, in one thread"
CPU_REFERENCE = 'CPU seconds of `np.take(out=, mode="clip")` of the same rows'


@figure(
    "shuffled batches of 256 of T from threads, to a loop that does nothing, for a batch",
    EPOCH_REFERENCE.format(256),
    factor=1.0,
    rounds=15,
)
def epoch_of_small_batches(data: Data) -> Pair:
    return epoch_pair(data, min(256, data.tokens // 4))


@figure(
    "shuffled batches of 2,048 of T from threads, to a loop that does nothing, for a batch",
    EPOCH_REFERENCE.format("2,048"),
    factor=0.7,
    rounds=15,
)
def epoch_of_large_batches(data: Data) -> Pair:
    return epoch_pair(data, min(2048, data.tokens // 4))


@figure(
    "CPU time of shuffled batches of 256 of T from threads, for a GB",
    CPU_REFERENCE,
    factor=1.3,
    rounds=15,
)
def cpu_time_of_small_batches(data: Data) -> Pair:
    return cpu_pair(data, min(256, data.tokens // 4))


@figure(
    "CPU time of shuffled batches of 2,048 of T from threads, for a GB",
    CPU_REFERENCE,
    factor=1.3,
    rounds=15,
)
def cpu_time_of_large_batches(data: Data) -> Pair:
    return cpu_pair(data, min(2048, data.tokens // 4))


def make_step() -> Callable[[], float]:
    """Return a function that multiplies matrices for about 5 ms in one thread."""
    torch.set_num_threads(1)
    left, right = torch.rand(256, 256), torch.rand(256, 256)
    out = torch.empty(256, 256)

    def multiply(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.mm(left, right, out=out)
        return time.perf_counter() - start

    multiply(10)
    times = max(1, round(STEP_SECONDS / (min(multiply(10) for _ in range(5)) / 10)))
    return partial(multiply, times)


def training(data: Data) -> tuple[Callable[[], tuple[float, float]], Callable[[], float], int]:
    """Return a loop with a step for each batch, the steps alone, and the number of steps.

    The loop returns its seconds, and the part of them in steps. The steps alone return their
    seconds.
    """
    dataset = npstream.open(data.tokens_dataset())
    warm(dataset)
    size = min(256, data.tokens // 4)
    batches = dataset.iter(0, 1, batch_size=size, shuffle=True, last="drop")
    steps, step = min(STEPS, len(batches)), make_step()

    def loop() -> tuple[float, float]:
        begin, inside = time.perf_counter(), 0.0
        for number, _ in enumerate(batches, 1):
            start = time.perf_counter()
            step()
            inside += time.perf_counter() - start
            if number == steps:
                break
        return time.perf_counter() - begin, inside

    def alone() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - begin

    return loop, alone, steps


@figure(
    "a loop over T that multiplies matrices for 5 ms a batch of 256, for a batch",
    "the matrix products alone, one torch thread",
    factor=1.05,
    rounds=15,
)
def loop_with_steps(data: Data) -> Pair:
    loop, alone, steps = training(data)
    return Pair(
        lambda number: loop()[0],
        lambda number: alone(),
        lambda left, right: None,
        calls=steps,
        returns_value=True,
    )


@figure(
    "the matrix products in that loop, for a batch",
    "the matrix products alone, one torch thread",
    factor=1.03,
    rounds=15,
)
def steps_in_loop(data: Data) -> Pair:
    loop, alone, steps = training(data)
    return Pair(
        lambda number: loop()[1],
        lambda number: alone(),
        lambda left, right: None,
        calls=steps,
        returns_value=True,
    )


class SlowTransform:
    """Runs Python code that holds the interpreter's lock for some milliseconds."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    def __call__(self, batch: Any) -> Any:
        end = time.thread_time() + self.milliseconds / 1000
        while time.thread_time() < end:
            sum(range(100))
        return batch


def worker_pair(data: Data, milliseconds: int, **settings: Any) -> Pair:
    """Compare settings of `ds.iter` with 2 DataLoader workers, with the same transform."""
    dataset = npstream.open(data.tokens_dataset())[: 256 * 64]
    warm(dataset)
    size = min(256, data.tokens // 4)
    transform = SlowTransform(milliseconds) if milliseconds else None
    options = {"batch_size": size, "shuffle": True, "transform": transform, "last": "drop"}
    batches = dataset.iter(0, 1, to="torch", **options, **settings)
    loader = torch.utils.data.DataLoader(
        dataset.iter(0, 1, **options), batch_size=None, num_workers=2, persistent_workers=True
    )
    return Pair(
        lambda number: sum(len(batch["id"]) for batch in batches),
        lambda number: sum(len(batch["id"]) for batch in loader),
        equal,
        calls=len(batches),
    )


@figure(
    "shuffled batches of 256 of T as tensors, from threads",
    "2 workers of torch's DataLoader",
    rounds=5,
)
def without_transform(data: Data) -> Pair:
    return worker_pair(data, 0)


@figure(
    "the same with a transform of 20 ms in Python, in 2 threads",
    "2 workers of torch's DataLoader",
    factor=float("inf"),
    rounds=5,
)
def python_transform_in_threads(data: Data) -> Pair:
    return worker_pair(data, 20, threads=2)


@figure(
    "the same with `transform_workers=2`, which start anew for each loop",
    "2 workers of torch's DataLoader, which persist",
    factor=float("inf"),
    rounds=5,
)
def python_transform_in_workers(data: Data) -> Pair:
    return worker_pair(data, 20, transform_workers=2)


def equal(left: Any, right: Any) -> None:
    assert left == right


FIGURES = [
    epoch_of_small_batches,
    epoch_of_large_batches,
    cpu_time_of_small_batches,
    cpu_time_of_large_batches,
    loop_with_steps,
    steps_in_loop,
    without_transform,
    python_transform_in_threads,
    python_transform_in_workers,
]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_feeding(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
