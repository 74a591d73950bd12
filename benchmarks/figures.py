"""What a figure is: npstream and a reference, measured in turn, in one run, as a ratio.

The themes are in ``bench_*.py``; `reports/speed.py` measures them at full size. As tests they run
on tiny data and only hold both sides to the same result.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import npstream
from data import Data

SIDES = ("npstream", "reference")


@dataclass(frozen=True)
class Pair:
    """The two sides of a figure; each is called with the number of the round."""

    npstream: Callable[[int], Any]
    reference: Callable[[int], Any]
    same: Callable[[Any, Any], None]
    """Raises if the two sides' results differ."""
    calls: int = 1
    """How many times one call does what the figure is about."""
    timed: bool = False
    """Whether the sides return the seconds themselves (they measure another process)."""


@dataclass(frozen=True)
class Figure:
    """One row of the table, and its target: at most ``factor * reference + plus``, and `under`."""

    what: str
    reference: str
    prepare: Callable[[Data], Pair]
    factor: float = 1.0
    plus: float = 0.0
    under: float = math.inf
    rounds: int = 25
    text: Callable[[float], str] = field(default=lambda value: seconds(value))
    """Prints a measured value, which may be something else than a time."""

    @property
    def target(self) -> str:
        bounds = []
        if self.plus and self.factor == 1:
            bounds = [f"{self.text(self.plus)} more"]
        elif self.factor < math.inf:
            plus = f" + {self.text(self.plus)}" if self.plus else ""
            bounds = [f"{self.factor:g} x{plus}"]
        if self.under < math.inf:
            bounds.append(f"under {self.text(self.under)}")
        return ", ".join(bounds) or "none"


@dataclass
class Result:
    """The times of every round, in seconds for one of what the figure is about."""

    figure: Figure
    npstream: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    @property
    def ours(self) -> float:
        return statistics.median(self.npstream)

    @property
    def theirs(self) -> float:
        return statistics.median(self.reference)

    @property
    def reached(self) -> bool:
        limit = self.figure.factor * self.theirs + self.figure.plus
        return self.ours <= min(limit, self.figure.under)


def figure(what: str, reference: str, **target: Any) -> Callable[[Callable[[Data], Pair]], Figure]:
    """Make a function that prepares a `Pair` into a `Figure`."""
    return lambda prepare: Figure(what, reference, prepare, **target)


def measure(figure: Figure, data: Data, rounds: int | None = None) -> Result:
    """Run both sides in turn, after one round that is not counted."""
    pair = figure.prepare(data)
    result = Result(figure)
    for number in range(-1, rounds or figure.rounds):
        # Who comes first changes, so that neither always finds the other's memory freed.
        for side in SIDES if number % 2 else SIDES[::-1]:
            taken = once(pair, side, number + 1)
            if number >= 0:
                getattr(result, side).append(taken / pair.calls)
    return result


def warm(dataset: npstream.Dataset, *arrays: np.ndarray) -> None:
    """Touch every page, so that neither side meets one for the first time."""
    dataset.load()
    for array in arrays:
        array.view(np.uint8).max()


def once(pair: Pair, side: str, number: int) -> float:
    run = getattr(pair, side)
    start = time.perf_counter()
    kept = run(number)
    taken = time.perf_counter() - start
    return float(kept) if pair.timed else taken


def check(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    """Test one side of a figure: the same result as the other's, then pytest-benchmark's timing."""
    pair = figure.prepare(data)
    if not pair.timed:
        pair.same(pair.npstream(0), pair.reference(0))
    benchmark.group = figure.what
    benchmark(getattr(pair, side), 1)


def seconds(value: float) -> str:
    """Print a time in the unit that suits it.

    >>> seconds(4e-06), seconds(0.06), seconds(1.2)
    ('4 us', '60 ms', '1.2 s')
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value * 1e6:.3g} us"
