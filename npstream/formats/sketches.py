"""Sketches of many values: their quantiles, and the most frequent ones.

Both sketches are mergeable and deterministic, and take bounded memory. Each keeps a bound of its
error.

Quantiles: the sketch has levels of sorted values. A value of level k has the weight ``2**k``: it
represents this number of values. A compaction moves every second value of a full level to the next
level, and drops the others. The method is that of Manku, Rajagopalan and Lindsay, "Approximate
medians and other quantiles in one pass and with limited memory" (SIGMOD 1998), and of KLL (Karnin,
Lang and Liberty, FOCS 2016). Here, all levels have the same capacity. KLL keeps the even or the odd
positions of a level at random. Here, compactions keep even and odd positions alternately. So the
error of ranks has a bound that always holds: a compaction of values of weight w adds at most w.

Frequent values: the summary of Misra and Gries (1982), merged as in Agarwal et al. ("Mergeable
summaries", PODS 2012).

Tested in tests/formats/test_statistics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from npstream._core.jit import kernel
from npstream._core.typing import AnyArray, Int64

__all__ = ["CAPACITY", "COUNTERS", "FrequentValues", "QuantileSketch", "sort_numbers"]

CAPACITY = 512
"""Maximum number of values in a level of a `QuantileSketch`; a larger level is halved."""

COUNTERS = 64
"""Maximum number of values that `FrequentValues` counts."""

_DIGIT_BITS = 11
"""Bits of a digit of the radix sort: the counts of its values, in int32, take 8 KiB."""

_MIN_RADIX_SORT = 1 << 12
"""Numbers from which the radix sort is used: with fewer, counting digits takes as long."""

_MAX_NUMPY_SORTED = 1 << 25
"""Number of numbers that a process sorts with NumPy before it loads the kernel.

NumPy sorts this number in 0.1 to 1 second. With AVX-512 on AMD's Zen 4 it takes longest.
"""

_numbers_in_numpy = 0


class QuantileSketch:
    """A sketch of the ranks and quantiles of numbers.

    Parameters
    ----------
    levels : iterable of ndarray
        Values of one dtype; each value of level k represents ``2**k`` values.
    error : int
        The maximum error of a rank, in values.
    parity : int
        Positions that the next compaction keeps: even (0) or odd (1) ones.
    """

    def __init__(self, levels: Iterable[AnyArray] = (), error: int = 0, parity: int = 0) -> None:
        self.levels = list(levels)
        self.error = error
        self.parity = parity

    def add(self, values: AnyArray, level: int = 0) -> None:
        """Add sorted values; each represents ``2**level`` values."""
        while len(self.levels) <= level:
            self.levels.append(values[:0])
        if len(self.levels[level]):
            values = np.sort(np.concatenate([self.levels[level], values]))
        self.levels[level] = values
        self._compact(level)

    def merge(self, other: QuantileSketch) -> None:
        """Add the values of another sketch; the bounds of the errors add up."""
        self.error += other.error
        for level, values in enumerate(other.levels):
            self.add(values, level)

    def _compact(self, level: int) -> None:
        """Halve a level if it exceeds the capacity.

        Add every second value to the next level. If this level then exceeds the capacity, halve it
        too, and so on.
        """
        while len(values := self.levels[level]) > CAPACITY:
            pairs = len(values) // 2 * 2
            half = values[self.parity : pairs : 2]
            self.parity ^= 1
            self.error += 1 << level
            self.levels[level] = values[pairs:].copy()
            level += 1
            if level == len(self.levels):
                self.levels.append(values[:0])
            above = self.levels[level]
            if len(above):
                half = np.sort(np.concatenate([above, half]))
            elif len(half) <= CAPACITY:
                half = half.copy()  # a view would keep all values in memory
            self.levels[level] = half

    @property
    def weight(self) -> int:
        """Number of values that the sketch represents."""
        return sum(len(values) << level for level, values in enumerate(self.levels))

    def values_and_ranks(self) -> tuple[AnyArray, Int64]:
        """Return the kept values in ascending order, and the rank of each.

        The rank of a value is the number of all values that are at most this value.
        """
        if not self.levels:
            return np.empty(0), np.empty(0, np.int64)
        values = np.concatenate(self.levels)
        weights = np.repeat(
            np.int64(1) << np.arange(len(self.levels)), [len(each) for each in self.levels]
        )
        order = np.argsort(values, kind="stable")
        ranks: Int64 = np.cumsum(weights[order])
        return values[order], ranks

    def quantiles(self, probabilities: Iterable[float]) -> AnyArray:
        """Return the quantile for each probability.

        The quantile for p is the smallest kept value whose rank is at least p times the number of
        all values.

        Raises
        ------
        ValueError
            If the sketch is empty.

        Examples
        --------
        >>> sketch = QuantileSketch()
        >>> sketch.add(np.arange(101))
        >>> sketch.quantiles([0, 0.5, 1]).tolist()
        [0, 50, 100]
        """
        values, ranks = self.values_and_ranks()
        fractions = np.asarray(list(probabilities), np.float64)
        if not len(values):
            raise ValueError("no values, so no quantiles")
        positions = np.searchsorted(ranks, np.ceil(fractions * ranks[-1]), side="left")
        quantiles: AnyArray = values[np.minimum(positions, len(values) - 1)]
        return quantiles


class FrequentValues:
    """Counts of the most frequent values.

    Parameters
    ----------
    counts : mapping of value to int
        At most `COUNTERS` counts. The true number of occurrences of a value is at least its count,
        and at most its count plus `error`.
    error : int
        The maximum error of a count. A value without a count occurs at most this number of times.
    """

    def __init__(self, counts: Mapping[Any, int] | None = None, error: int = 0) -> None:
        self.counts: dict[Any, int] = dict(counts or {})
        self.error = error

    def merge(self, other: FrequentValues) -> None:
        """Add the counts of another instance.

        Examples
        --------
        >>> one = FrequentValues({"a": 3, "b": 1})
        >>> one.merge(FrequentValues({"a": 2, "c": 9}, error=1))
        >>> one.top(2), one.error
        ([('c', 9), ('a', 5)], 1)
        """
        self.error += other.error
        for value, count in other.counts.items():
            self.counts[value] = self.counts.get(value, 0) + count
        if len(self.counts) > COUNTERS:
            cut = sorted(self.counts.values(), reverse=True)[COUNTERS]
            self.error += cut
            self.counts = {value: n - cut for value, n in self.counts.items() if n > cut}

    def top(self, limit: int = COUNTERS) -> list[tuple[Any, int]]:
        """Return at most `limit` values and their counts, the most frequent first."""
        pairs = sorted(self.counts.items(), key=lambda pair: (-pair[1], str(pair[0])))
        return pairs[:limit]


def largest_runs(values: AnyArray) -> tuple[Int64, Int64, int]:
    """Find the most frequent values of sorted values, as runs of equal values.

    At most `COUNTERS` runs are kept, as in `FrequentValues.merge`.

    Returns
    -------
    begins, counts : ndarray of int64
        Where each kept run begins, and the number of its values minus `cut`.
    cut : int
        The number that was subtracted from all counts. It is the maximum error of a count.

    Examples
    --------
    >>> largest_runs(np.array([3, 3, 7]))
    (array([0, 2]), array([2, 1]), 0)
    >>> largest_runs(np.arange(100))
    (array([], dtype=int64), array([], dtype=int64), 1)
    """
    if len(values) > COUNTERS and (values[1:] != values[:-1]).all():  # such as ids
        return np.empty(0, np.int64), np.empty(0, np.int64), 1
    begins, counts = find_runs(values)
    if len(counts) <= COUNTERS:
        return begins, counts, 0
    # Counts of 0 to n, from the largest on: the cut is the first that COUNTERS + 1 runs reach.
    runs_of_count = np.bincount(counts)
    reached = np.cumsum(runs_of_count[::-1]) > COUNTERS
    cut = len(reached) - 1 - int(reached.argmax())
    largest = np.flatnonzero(counts > cut)
    return begins[largest], counts[largest] - cut, cut


def find_runs(values: AnyArray) -> tuple[Int64, Int64]:
    """Return where each run of equal values begins in sorted values, and its length.

    Examples
    --------
    >>> find_runs(np.array([3, 3, 7]))
    (array([0, 2]), array([2, 1]))
    """
    if not len(values):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    bounds = np.flatnonzero(values[1:] != values[:-1])
    bounds = np.concatenate([[0], bounds + 1, [len(values)]])
    return bounds[:-1], bounds[1:] - bounds[:-1]


def sort_numbers(numbers: AnyArray) -> AnyArray:
    """Return numbers in ascending order; there must be no NaN.

    The result is `numbers` itself if they are sorted already, such as ids. If they are so few that
    a `QuantileSketch` keeps them, it is a copy, because their memory may be reused.

    Examples
    --------
    >>> sort_numbers(np.array([3.0, -1.0, 2.0]))
    array([-1.,  2.,  3.])
    """
    global _numbers_in_numpy
    if not (numbers[1:] < numbers[:-1]).any():
        return numbers if len(numbers) > CAPACITY else numbers.copy()
    kind, itemsize = numbers.dtype.kind, numbers.itemsize
    if len(numbers) < _MIN_RADIX_SORT or itemsize not in (4, 8) or kind not in "iuf":
        return np.sort(numbers)
    if not sort_keys.is_loaded and _numbers_in_numpy <= _MAX_NUMPY_SORTED:
        _numbers_in_numpy += len(numbers)
        return np.sort(numbers)
    keys = numbers.astype(numbers.dtype.newbyteorder("="), "C").view(f"u{itemsize}")
    if kind == "f":
        _invert_negative(keys)
    if kind != "u":
        keys ^= keys.dtype.type(1 << (8 * itemsize - 1))
    keys = sort_keys(keys, np.empty_like(keys))
    if kind != "u":
        keys ^= keys.dtype.type(1 << (8 * itemsize - 1))
    if kind == "f":
        _invert_negative(keys)
    return keys.view(f"{kind}{itemsize}")


def _invert_negative(keys: AnyArray) -> None:
    """Convert the bits of floats to those of signed integers in the same order, or back.

    In negative numbers, all bits but the sign are inverted.
    """
    bits = keys.view(f"i{keys.itemsize}")
    bits ^= (bits >> (8 * keys.itemsize - 1)) & np.iinfo(bits.dtype).max


@kernel
def sort_keys(keys: AnyArray, scratch: AnyArray) -> AnyArray:
    """Sort unsigned integers by a radix sort, from the lowest digit to the highest.

    Returns `keys` or `scratch`, of the same size; the other one is overwritten.
    """
    n = keys.size
    mask = (1 << _DIGIT_BITS) - 1
    digits = (keys.itemsize * 8 + _DIGIT_BITS - 1) // _DIGIT_BITS
    counts = np.zeros((digits, mask + 1), np.int32)
    for i in range(n):
        for digit in range(digits):
            counts[digit, (keys[i] >> (digit * _DIGIT_BITS)) & mask] += 1
    for digit in range(digits):
        shift = digit * _DIGIT_BITS
        positions = counts[digit]
        if positions[(keys[0] >> shift) & mask] == n:
            continue  # all numbers have the same digit
        position = 0
        for value in range(mask + 1):
            count = positions[value]
            positions[value] = position
            position += count
        for i in range(n):
            value = (keys[i] >> shift) & mask
            scratch[positions[value]] = keys[i]
            positions[value] += 1
        keys, scratch = scratch, keys
    return keys
