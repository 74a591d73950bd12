"""What a mixture is made of, and the shares that its sources have of what is drawn.

Tested in tests/mixture/test_interleave.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import AnyArray

Schedule: TypeAlias = "tuple[tuple[int, tuple[float, ...]], ...]"
"""Positions from which on sources have these shares, rising from 0; shares sum to 1."""

_LEAST, _MOST = 1 << 12, 1 << 20
"""Units of a block, where that is not given."""

MAX_BLOCK = 1 << 22
"""Units of a block, at most."""

_EACH = 32
"""Units of the rarest source in a block, where that is not given: shares are exact to a 64th."""


@dataclass(frozen=True, slots=True)
class MixtureOf:
    """The facts of a mixture that its order depends on.

    Parameters
    ----------
    names : tuple of str
    sizes, nbytes : tuple of int
        Samples of each source, none of them empty, and their bytes.
    chunks : tuple of callable
        Each returns the bounds of a source's chunks: the first row of each, then their number.
    fingerprints : tuple of callable
        Each returns what tells a source from others, in states of a version: see
        `npstream.iteration.state.ViewFingerprint`.
    schedule : tuple
        See `schedule_of`.
    block : int, optional
        Units that hold exact shares: samples, or batches where each is of one source.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    nbytes: tuple[int, ...]
    chunks: tuple[Callable[[], AnyArray], ...]
    fingerprints: tuple[Callable[[int], str], ...]
    schedule: Schedule
    block: int | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("a mixture of no sources: give at least one, by name")
        for name, size in zip(self.names, self.sizes, strict=True):
            if size == 0:
                raise ValueError(f"source {name!r} is empty: leave it out of the mixture")
        if self.block is not None:
            block = _integer("block", self.block)
            if not 1 <= block <= MAX_BLOCK:
                raise ValueError(f"block={block}: expected 1 to {MAX_BLOCK}")
            object.__setattr__(self, "block", block)
        for _, shares in self.schedule:
            block_counts(self.names, shares, self.block)


def schedule_of(
    names: Sequence[str],
    sizes: Sequence[int],
    weights: Mapping[str, float] | Sequence[tuple[int, Mapping[str, float]]] | None = None,
    alpha: float = 1.0,
) -> Schedule:
    """Return the shares that weights come to, from which position on.

    Parameters
    ----------
    names : sequence of str
    sizes : sequence of int
        Sources, and their samples.
    weights : mapping, or sequence of (int, mapping), optional
        A positive weight of each source, in any unit; or such weights from each of several
        positions on, the first of which is 0. By default the sizes to the power of `alpha`.
    alpha : float
        1 draws from sources by their sizes, 0 from all alike.

    Examples
    --------
    >>> schedule_of(["code", "web"], [10, 30])
    ((0, (0.25, 0.75)),)
    >>> schedule_of(["code", "web"], [10, 30], [(0, {"code": 1, "web": 1}), (99, {"code": 3,
    ... "web": 1})])
    ((0, (0.5, 0.5)), (99, (0.75, 0.25)))
    """
    if weights is None:
        power = _number("alpha", alpha)
        if not math.isfinite(power):
            raise ValueError(f"alpha={alpha!r}: expected a finite number")
        # The largest power is 1, so that none overflows.
        base = (max if power >= 0 else min)(sizes, default=1) or 1
        return ((0, _normalized(names, [(max(size, 1) / base) ** power for size in sizes])),)
    if alpha != 1:
        raise ValueError(
            f"alpha={alpha!r} makes weights of sizes: leave it out where they are given"
        )
    if isinstance(weights, Mapping):
        return ((0, _shares(names, weights, "weights")),)
    if not isinstance(weights, Sequence) or not weights:
        _refuse_schedule(weights)
    schedule: list[tuple[int, tuple[float, ...]]] = []
    for entry in weights:
        if not isinstance(entry, Sequence) or len(entry) != 2 or not isinstance(entry[1], Mapping):
            _refuse_schedule(weights)
        position = _integer("a position of weights", entry[0])
        if position != 0 if not schedule else position <= schedule[-1][0]:
            raise ValueError(f"weights change at position {position}: positions are to rise from 0")
        schedule.append(
            (position, _shares(names, entry[1], f"weights from position {position} on"))
        )
    return tuple(schedule)


def block_length(shares: Sequence[float], lanes: int = 1) -> int:
    """Return the units of a block where that is not given: a prime number, no factor of the lanes.

    So that no number of ranks has a period in common with blocks, whose patterns repeat: who reads
    every tenth unit meets every slot of a pattern.

    >>> block_length([0.5, 0.5]), block_length([0.999, 0.001], lanes=8)
    (4099, 32003)
    """
    wanted = min(max(_LEAST, _EACH / min(share for share in shares if share)), _MOST)
    number = math.ceil(wanted)
    while lanes % number == 0 or any(
        number % factor == 0 for factor in range(2, math.isqrt(number) + 1)
    ):
        number += 1
    return number


def coprime_from(least: int, lanes: int) -> int:
    """Return the least number from one on that has no factor in common with the lanes.

    >>> coprime_from(48, lanes=8), coprime_from(48, lanes=1)
    (49, 48)
    """
    while math.gcd(least, lanes) > 1:
        least += 1
    return least


def apportioned(shares: Sequence[float], length: int) -> list[int]:
    """Share out units by largest remainders; of equal ones, the first sources' count.

    >>> apportioned([0.5, 0.25, 0.25], 7)
    [3, 2, 2]
    """
    parts = _as_integers(shares)
    whole = sum(parts)
    quotas = [divmod(part * length, whole) for part in parts]
    counts = [quotient for quotient, _ in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda source: (-quotas[source][1], source))
    for source in by_remainder[: length - sum(counts)]:
        counts[source] += 1
    return counts


def _as_integers(shares: Sequence[float]) -> list[int]:
    """Return whole numbers in exactly the proportion of shares."""
    ratios = [float(share).as_integer_ratio() for share in shares]
    common = max(denominator for _, denominator in ratios)  # all are powers of two
    return [numerator * (common // denominator) for numerator, denominator in ratios]


def block_counts(names: Sequence[str], shares: Sequence[float], block: int | None) -> list[int]:
    """Return the units of each source in a block; sources without a share have none.

    Raises
    ------
    ValueError
        If a block holds none of a source that has a share.
    """
    length = block_length(shares) if block is None else block
    counts = apportioned(shares, length)
    for name, share, count in zip(names, shares, counts, strict=True):
        if share and not count:
            enough = least_length(shares)
            mend = f"block={enough} would do" if enough <= MAX_BLOCK else "give it more weight"
            raise ValueError(
                f"source {name!r} has {share:.3g} of the weight, of which a block of "
                f"{quantity(length, 'unit')} holds none: {mend}"
            )
    return counts


def least_length(shares: Sequence[float]) -> int:
    """Return a length in which each source that has a share has a unit.

    >>> least_length([0.75, 0.25])
    4
    """
    # A quota of one is enough; what smaller ones are rounded to depends on the others.
    parts = _as_integers(shares)
    return -(-sum(parts) // min(part for part in parts if part))


def _shares(names: Sequence[str], weights: Mapping[str, float], what: str) -> tuple[float, ...]:
    unknown = [name for name in weights if name not in names]
    missing = [name for name in names if name not in weights]
    if unknown or missing:
        wrong = f"no source is called {unknown[0]!r}" if unknown else f"{missing[0]!r} has none"
        raise ValueError(f"{what}: {wrong}; the sources are {', '.join(map(repr, names))}")
    found = []
    for name in names:
        weight = _number(f"the weight of source {name!r}", weights[name])
        if not (math.isfinite(weight) and weight > 0):
            mend = "; leave the source out of the mixture" if weight == 0 else ""
            raise ValueError(
                f"the weight of source {name!r} is {weight!r}: expected a positive number{mend}"
            )
        found.append(weight)
    return _normalized(names, found)


def _normalized(names: Sequence[str], weights: list[float]) -> tuple[float, ...]:
    most = max(weights, default=1.0)
    scaled = [weight / most for weight in weights]
    whole = math.fsum(scaled)
    shares = tuple(weight / whole for weight in scaled)
    for name, share in zip(names, shares, strict=True):
        if share == 0:
            raise ValueError(f"the weight of source {name!r} is next to nothing: give it more")
    return shares


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_ | str | bytes) or not (
        hasattr(value, "__float__") or hasattr(value, "__index__")
    ):
        raise TypeError(f"{name} is {value!r}: expected a number")
    return float(value)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}: expected an integer")
    return operator.index(value)


def _refuse_schedule(weights: Any) -> NoReturn:
    raise TypeError(
        f"weights={weights!r}: expected a mapping of names to numbers, or a list of "
        "(position, mapping) pairs"
    )
