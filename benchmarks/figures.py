"""Figures: measurements of npstream relative to a reference, alternating in one run.

``bench_*.py`` define the figures, and `reports/speed.py` measures them at full size. As tests, they
run on tiny data. Then they only check that both sides run, and that their results are equal.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data

SIDES = ("npstream", "reference")


class Unavailable(Exception):
    """A package that a figure needs is not installed; the message names it."""


def require(module: str, package: str) -> Any:
    """Import the module of another package; raise Unavailable if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{package} is not installed ({error})") from None


@dataclass(frozen=True)
class Pair:
    """The two sides of a figure: functions of the round's number, which is 0 for the warm-up."""

    npstream: Callable[[int], Any]
    reference: Callable[[int], Any]
    compare: Callable[[Any, Any], None]
    """Function that raises if the results of the two sides differ.

    It is not called if the sides return a measured value.
    """
    calls: int = 1
    """Number of measured operations in one call."""
    returns_value: bool = False
    """Whether the sides return the measured value themselves. Otherwise, their calls are timed."""


@dataclass(frozen=True)
class Figure:
    """A row of the table of `reports/speed.py`.

    The target is ``factor * reference + margin``, and at most `limit`. With a factor of infinity
    and no limit, the figure has no target.
    """

    title: str
    reference: str
    prepare: Callable[[Data], Pair]
    factor: float = 1.0
    margin: float = 0.0
    limit: float = math.inf
    rounds: int = 25
    format_value: Callable[[float], str] = field(default=lambda value: format_seconds(value))

    @property
    def target(self) -> str:
        bounds = []
        if self.margin and self.factor == 1:
            bounds = [f"{self.format_value(self.margin)} more"]
        elif self.factor < math.inf:
            margin = f" + {self.format_value(self.margin)}" if self.margin else ""
            bounds = [f"{self.factor:g} x{margin}"]
        if self.limit < math.inf:
            bounds.append(f"under {self.format_value(self.limit)}")
        return ", ".join(bounds) or "none"


@dataclass
class Result:
    """The measured values of all rounds, divided by the number of operations in a round."""

    figure: Figure
    npstream: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    @property
    def ours(self) -> float:
        """The median of npstream."""
        return statistics.median(self.npstream)

    @property
    def theirs(self) -> float:
        """The median of the reference."""
        return statistics.median(self.reference)

    @property
    def is_reached(self) -> bool:
        target = self.figure.factor * self.theirs + self.figure.margin
        return self.ours <= min(target, self.figure.limit)


def figure(title: str, reference: str, **target: Any) -> Callable[[Callable[[Data], Pair]], Figure]:
    """Return a decorator that makes a `Figure` from a function that returns a `Pair`."""
    return lambda prepare: Figure(title, reference, prepare, **target)


def measure(figure: Figure, data: Data, rounds: int | None = None) -> Result:
    """Run both sides alternately, after one round of warm-up."""
    pair = figure.prepare(data)
    result = Result(figure)
    for number in range(-1, rounds or figure.rounds):
        # The order alternates: the second side can reuse memory that the first has freed.
        for side in SIDES if number % 2 else SIDES[::-1]:
            value = run_once(pair, side, number + 1)
            if number >= 0:
                getattr(result, side).append(value / pair.calls)
    return result


def warm(dataset: npstream.Dataset, *arrays: np.ndarray) -> None:
    """Touch every page, so that no measurement includes page faults."""
    dataset.load()
    for array in arrays:
        array.view(np.uint8).max()


def run_once(pair: Pair, side: str, number: int) -> float:
    """Return the measured value of one call of a side."""
    run = getattr(pair, side)
    start = time.perf_counter()
    result = run(number)
    elapsed = time.perf_counter() - start
    return float(result) if pair.returns_value else elapsed


def compare_and_time(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    """Compare the results of both sides, and then time one side with pytest-benchmark.

    Sides that return a measured value have no result to compare.
    """
    try:
        pair = figure.prepare(data)
    except Unavailable as error:
        pytest.skip(str(error))
    if not pair.returns_value:
        pair.compare(pair.npstream(0), pair.reference(0))
    benchmark.group = figure.title
    benchmark(getattr(pair, side), 1)


def format_seconds(value: float) -> str:
    """Format a time in seconds, milliseconds or microseconds.

    >>> format_seconds(4e-06), format_seconds(0.06), format_seconds(1.2)
    ('4 us', '60 ms', '1.2 s')
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value * 1e6:.3g} us"
