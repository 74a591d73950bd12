"""Startup cost of a new process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import TOKENS, Data
from figures import SIDES, Figure, Pair, compare_and_time, figure


def run_process(code: str, **settings: str) -> None:
    """Run code in a process that may write .pyc files, as installation does.

    BLAS gets one thread: its waiting threads would spin, and so add CPU time.
    """
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "",
        "OPENBLAS_NUM_THREADS": "1",
        **settings,
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def wall_time(code: str) -> Callable[[int], float]:
    """Return a function that runs code in a process and returns the elapsed time."""

    def run(_number: int) -> float:
        start = time.perf_counter()
        run_process(code)
        return time.perf_counter() - start

    return run


def cpu_time(code: str, **settings: str) -> Callable[[int], float]:
    """Return a function that runs code in a process and returns its CPU time."""

    def children_time() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def run(_number: int) -> float:
        start = children_time()
        run_process(code, **settings)
        return children_time() - start

    return run


def first_cpu_time(code: str) -> Callable[[int], float]:
    """Return a function like that of `cpu_time`, with an empty cache of compiled kernels."""

    def run(number: int) -> float:
        with tempfile.TemporaryDirectory() as empty:
            return cpu_time(code, NUMBA_CACHE_DIR=empty)(number)

    return run


def value_pair(ours: Callable[[int], float], reference: Callable[[int], float]) -> Pair:
    return Pair(ours, reference, lambda left, right: None, returns_value=True)


def memmap(data: Data, index: str) -> str:
    return (
        "import numpy as np\n"
        f"rows = np.memmap({str(data.tokens_file())!r}, np.uint16, 'r').reshape(-1, {TOKENS})\n"
        f"rows[{index}].copy()"
    )


@figure(
    "`import npstream` and `npstream.open`, CPU time", "`import numpy`", margin=0.060, rounds=15
)
def import_npstream(data: Data) -> Pair:
    # The attribute `npstream.open` is loaded when it is first used.
    return value_pair(cpu_time("import numpy, npstream\nnpstream.open"), cpu_time("import numpy"))


@figure(
    "process start to first sample", "process start to an `np.memmap` row", margin=0.150, rounds=15
)
def first_sample(data: Data) -> Pair:
    ours = f"import npstream\nnpstream.open({str(data.tokens_dataset())!r})[{data.tokens // 2}]"
    return value_pair(wall_time(ours), wall_time(memmap(data, str(data.tokens // 2))))


@figure(
    "process start to first 1,000-row load, kernels cached",
    "process start to 1,000 rows of an `np.memmap`",
    margin=1.2,
)
def first_load(data: Data) -> Pair:
    pick = f"np.random.default_rng(0).integers(0, {data.tokens}, 1000)"
    dataset = str(data.tokens_dataset())
    ours = f"import numpy as np, npstream\nnpstream.open({dataset!r})[{pick}].load()"
    return value_pair(wall_time(ours), wall_time(memmap(data, pick)))


@figure(
    "first shuffled batch of 4,096 rows with no kernel compiled, CPU time",
    "`import numpy`",
    margin=6.0,
    rounds=3,
)
def first_batch(data: Data) -> Pair:
    dataset = str(data.tokens_dataset())
    settings = "batch_size=4096, shuffle=True, seed=0, last='short'"
    ours = f"import npstream\nnext(iter(npstream.open({dataset!r}).iter(0, 1, {settings})))"
    return value_pair(first_cpu_time(ours), cpu_time("import numpy"))


@figure(
    "the same, compiled at once",
    "`import numpy`",
    margin=6.0,
    rounds=3,
)
def first_compiled_batch(data: Data) -> Pair:
    dataset = str(data.tokens_dataset())
    settings = "batch_size=4096, shuffle=True, seed=0, last='short'"
    ours = (
        "import npstream\nfrom npstream._core import jit\njit.always_compile()\n"
        f"next(iter(npstream.open({dataset!r}).iter(0, 1, {settings})))"
    )
    return value_pair(first_cpu_time(ours), cpu_time("import numpy"))


@figure(
    "first load of 4,096 fixed rows with no kernel compiled, CPU time",
    "`import numpy`",
    margin=4.0,
    rounds=3,
)
def first_fixed(data: Data) -> Pair:
    return value_pair(first_cpu_time(_first_rows(data.tokens_dataset())), cpu_time("import numpy"))


@figure(
    "first load of 4,096 rows of text with no kernel compiled, CPU time",
    "`import numpy`",
    margin=4.0,
    rounds=3,
)
def first_text(data: Data) -> Pair:
    return value_pair(first_cpu_time(_first_rows(data.small_dataset())), cpu_time("import numpy"))


def _first_rows(dataset: Path) -> str:
    return f"import npstream\nnpstream.open({str(dataset)!r})[:4096].load()"


@figure("`npstream --help`", "`python -c pass`", margin=0.150, rounds=15)
def command_line_help(data: Data) -> Pair:
    ours = (
        "import contextlib, io\nfrom npstream.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])"
    )
    return value_pair(wall_time(ours), wall_time("pass"))


FIGURES = [
    import_npstream, command_line_help, first_sample, first_load, first_batch, first_compiled_batch,
    first_fixed, first_text,
]  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_start(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
