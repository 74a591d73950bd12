"""The cost of the side-car's statistics while a dataset is written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import pytest

import npstream
from data import Data, sync
from figures import SIDES, Figure, Pair, compare_and_time, figure
from npstream.formats.scan import Scan
from npstream.writing import pipeline

WITHOUT = "the same write without them, both synced"


class PlainScan(Scan):
    """A scan that hashes and extracts columns, and gathers no statistics."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"statistics_dtypes": None})


def statistics_pair(data: Data, write: Callable[[str], object]) -> Pair:
    """Write a dataset with statistics, and without."""
    target = data.directory / f"written-{os.getpid()}"

    def timed(context: AbstractContextManager[object]) -> float:
        with context:
            start = time.perf_counter()
            write(str(target))
            sync(target)
            elapsed = time.perf_counter() - start
        shutil.rmtree(target)
        return elapsed

    def ours(number: int) -> float:
        return timed(nullcontext())

    def reference(number: int) -> float:
        return timed(mock.patch.object(pipeline, "Scan", PlainScan))

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


@figure("writing T from arrays with statistics", WITHOUT, factor=1.05, rounds=9)
def arrays(data: Data) -> Pair:
    columns = data.token_arrays()
    return statistics_pair(data, lambda path: npstream.write(path, columns))


@figure("writing S row by row with statistics", WITHOUT, factor=1.05, rounds=9)
def rows(data: Data) -> Pair:
    samples = data.small_samples()
    columns = {"id": "int", "label": "int32", "text": "str"}
    return statistics_pair(data, lambda path: npstream.write(path, samples, columns=columns))


FIGURES = [arrays, rows]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.prepare.__name__)
def test_statistics(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
