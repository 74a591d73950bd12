"""What a new process pays."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from data import TOKENS, Data
from figures import SIDES, Figure, Pair, check, figure


def process(code: str) -> None:
    """Run code in a process that may keep its modules compiled, as installed ones are.

    The threads of NumPy's BLAS spin while they wait: whatever runs longer pays for them, too.
    """
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def wall(code: str) -> Callable[[int], float]:
    """Return a function that runs code in a process and returns the time until its end."""

    def run(_number: int) -> float:
        start = time.perf_counter()
        process(code)
        return time.perf_counter() - start

    return run


def cpu(code: str) -> Callable[[int], float]:
    """Return a function that runs code in a process and returns the CPU time that it took."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def run(_number: int) -> float:
        start = spent()
        process(code)
        return spent() - start

    return run


def timed(ours: Callable[[int], float], reference: Callable[[int], float]) -> Pair:
    return Pair(ours, reference, lambda left, right: None, timed=True)


def memmap(data: Data, index: str) -> str:
    return (
        "import numpy as np\n"
        f"rows = np.memmap({str(data.tokens_file())!r}, np.uint16, 'r').reshape(-1, {TOKENS})\n"
        f"rows[{index}].copy()"
    )


@figure("`import npstream` and `npstream.open`, CPU time", "`import numpy`", plus=0.060, rounds=15)
def imported(data: Data) -> Pair:
    return timed(cpu("import numpy, npstream\nnpstream.open"), cpu("import numpy"))


@figure(
    "process start to first sample", "process start to an `np.memmap` row", plus=0.150, rounds=15
)
def first_sample(data: Data) -> Pair:
    ours = f"import npstream\nnpstream.open({str(data.tokens_dataset())!r})[{data.tokens // 2}]"
    return timed(wall(ours), wall(memmap(data, str(data.tokens // 2))))


@figure(
    "process start to first 1,000-row load, kernels cached",
    "process start to 1,000 rows of an `np.memmap`",
    plus=1.2,
)
def first_load(data: Data) -> Pair:
    pick = f"np.random.default_rng(0).integers(0, {data.tokens}, 1000)"
    dataset = str(data.tokens_dataset())
    ours = f"import numpy as np, npstream\nnpstream.open({dataset!r})[{pick}].load()"
    return timed(wall(ours), wall(memmap(data, pick)))


FIGURES = [imported, first_sample, first_load]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_start(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    check(figure, side, benchmark, data)
