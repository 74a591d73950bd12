"""Provide the specification of a mixture: its sources, and their shares in the drawn samples.

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
"""Phases ``(position, shares)``: the shares of sources from a position on, which sum to 1.

Positions are sorted, and begin with 0."""

_MIN_BLOCK, _MAX_DEFAULT_BLOCK = 1 << 12, 1 << 20
"""Bounds of the default `MixtureSpec.block`, in units."""

MAX_BLOCK = 1 << 22
"""Maximum of `MixtureSpec.block`, in units."""

_RAREST_UNITS = 32
"""Units of the rarest source in a default block, unless a bound changes the block. A count is off
by less than one unit, so the source's share is off by less than 1/32 of it."""


@dataclass(frozen=True, slots=True)
class MixtureSpec:
    """The properties of a mixture that its order depends on.

    Parameters
    ----------
    names : tuple of str
    sizes, nbytes : tuple of int
        Samples of each source, at least 1, and their bytes.
    chunks : tuple of callable
        Each returns the bounds of a source's chunks: the first row of each, then the number of
        rows.
    fingerprints : tuple of callable
        Each takes the format version of a saved state, and returns a source's fingerprint in it;
        see `npstream.iteration.state.ViewFingerprint`.
    schedule : tuple
        See `make_schedule`.
    block : int, optional
        Number of consecutive units in which all sources have their exact shares. A unit is a
        sample, or a batch if each batch is of one source.
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
            raise ValueError("a mixture needs at least one source: give datasets by name")
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


def make_schedule(
    names: Sequence[str],
    sizes: Sequence[int],
    weights: Mapping[str, float] | Sequence[tuple[int, Mapping[str, float]]] | None = None,
    alpha: float = 1.0,
) -> Schedule:
    """Return the schedule of shares for weights.

    Parameters
    ----------
    names : sequence of str
    sizes : sequence of int
        Samples of each source.
    weights : mapping, or sequence of (int, mapping), optional
        A positive weight of each source, on any scale. Or pairs ``(position, weights)``: these
        weights apply from the position on. Positions increase, and the first is 0. By default
        weights are ``size ** alpha``.
    alpha : float
        1 draws from sources in proportion to their sizes, 0 from all equally.

    Examples
    --------
    >>> make_schedule(["code", "web"], [10, 30])
    ((0, (0.25, 0.75)),)
    >>> make_schedule(["code", "web"], [10, 30], [(0, {"code": 1, "web": 1}), (99, {"code": 3,
    ... "web": 1})])
    ((0, (0.5, 0.5)), (99, (0.75, 0.25)))
    """
    if weights is None:
        power = _number("alpha", alpha)
        if not math.isfinite(power):
            raise ValueError(f"alpha={alpha!r}: expected a finite number")
        # Divided by this base, the largest power is 1, so that none overflows.
        base = (max if power >= 0 else min)(sizes, default=1) or 1
        return ((0, _normalize(names, [(max(size, 1) / base) ** power for size in sizes])),)
    if alpha != 1:
        raise ValueError(
            f"alpha={alpha!r} computes weights from sizes: give either weights or alpha"
        )
    if isinstance(weights, Mapping):
        return ((0, _shares(names, weights, "weights")),)
    if not isinstance(weights, Sequence) or not weights:
        _raise_for_schedule(weights)
    schedule: list[tuple[int, tuple[float, ...]]] = []
    for entry in weights:
        if not isinstance(entry, Sequence) or len(entry) != 2 or not isinstance(entry[1], Mapping):
            _raise_for_schedule(weights)
        position = _integer("a position of weights", entry[0])
        is_valid = position > schedule[-1][0] if schedule else position == 0
        if not is_valid:
            raise ValueError(
                f"weights change at position {position}: expected increasing positions from 0"
            )
        schedule.append(
            (position, _shares(names, entry[1], f"weights from position {position} on"))
        )
    return tuple(schedule)


def block_length(shares: Sequence[float], lanes: int = 1) -> int:
    """Return the default number of units in a block: a prime that does not divide `lanes`.

    Patterns repeat from block to block. A prime length makes sure that a reader of every n-th unit
    meets every slot of a pattern.

    >>> block_length([0.5, 0.5]), block_length([0.999, 0.001], lanes=8)
    (4099, 32003)
    """
    length = _RAREST_UNITS / min(share for share in shares if share)
    number = math.ceil(min(max(_MIN_BLOCK, length), _MAX_DEFAULT_BLOCK))
    while lanes % number == 0 or any(
        number % factor == 0 for factor in range(2, math.isqrt(number) + 1)
    ):
        number += 1
    return number


def next_coprime(number: int, lanes: int) -> int:
    """Return the smallest number, at least `number`, that is coprime to `lanes`.

    >>> next_coprime(48, lanes=8), next_coprime(48, lanes=1)
    (49, 48)
    """
    while math.gcd(number, lanes) > 1:
        number += 1
    return number


def apportion(shares: Sequence[float], length: int) -> list[int]:
    """Divide `length` units by the largest remainder method; ties go to the first sources.

    >>> apportion([0.5, 0.25, 0.25], 7)
    [3, 2, 2]
    """
    parts = _as_integers(shares)
    total = sum(parts)
    quotas = [divmod(part * length, total) for part in parts]
    counts = [quotient for quotient, _ in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda source: (-quotas[source][1], source))
    for source in by_remainder[: length - sum(counts)]:
        counts[source] += 1
    return counts


def _as_integers(shares: Sequence[float]) -> list[int]:
    """Return integers in exactly the proportion of shares."""
    ratios = [float(share).as_integer_ratio() for share in shares]
    common = max(denominator for _, denominator in ratios)  # all are powers of two
    return [numerator * (common // denominator) for numerator, denominator in ratios]


def block_counts(names: Sequence[str], shares: Sequence[float], block: int | None) -> list[int]:
    """Return the number of units of each source in a block; 0 for a share of 0.

    Raises
    ------
    ValueError
        If a block holds none of a source that has a share.
    """
    length = block_length(shares) if block is None else block
    counts = apportion(shares, length)
    for name, share, count in zip(names, shares, counts, strict=True):
        if share and not count:
            minimum = min_block_length(shares)
            fix = f"give block={minimum}" if minimum <= MAX_BLOCK else "give it more weight"
            raise ValueError(
                f"source {name!r} has {share:.3g} of the weight, and a block of "
                f"{quantity(length, 'unit')} holds no unit of it: {fix}"
            )
    return counts


def min_block_length(shares: Sequence[float]) -> int:
    """Return the smallest length for which each positive share times the length is at least 1.

    >>> min_block_length([0.75, 0.25])
    4
    """
    # Each source needs a quota of at least 1: smaller quotas may be rounded down.
    parts = _as_integers(shares)
    return -(-sum(parts) // min(part for part in parts if part))


def _shares(names: Sequence[str], weights: Mapping[str, float], label: str) -> tuple[float, ...]:
    unknown = [name for name in weights if name not in names]
    missing = [name for name in names if name not in weights]
    if unknown or missing:
        problem = (
            f"there is no source {unknown[0]!r}" if unknown else f"{missing[0]!r} has no weight"
        )
        raise ValueError(f"{label}: {problem}; the sources are {', '.join(map(repr, names))}")
    numbers = []
    for name in names:
        weight = _number(f"the weight of source {name!r}", weights[name])
        if not (math.isfinite(weight) and weight > 0):
            fix = "; leave the source out of the mixture" if weight == 0 else ""
            raise ValueError(
                f"the weight of source {name!r} is {weight!r}: expected a positive number{fix}"
            )
        numbers.append(weight)
    return _normalize(names, numbers)


def _normalize(names: Sequence[str], weights: list[float]) -> tuple[float, ...]:
    largest = max(weights, default=1.0)
    scaled = [weight / largest for weight in weights]
    total = math.fsum(scaled)
    shares = tuple(weight / total for weight in scaled)
    for name, share in zip(names, shares, strict=True):
        if share == 0:
            raise ValueError(
                f"the weight of source {name!r} is almost 0 relative to others: give it more weight"
            )
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


def _raise_for_schedule(weights: Any) -> NoReturn:
    raise TypeError(
        f"weights={weights!r}: expected a mapping of names to numbers, or a list of "
        "(position, mapping) pairs"
    )
