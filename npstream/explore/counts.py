"""Counts of the distinct values of a column, block by block.

Memory is proportional to the number of distinct values.

Tested in tests/explore/test_counts.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.jit import kernel
from npstream._core.memory import huge_empty
from npstream._core.optional import import_optional
from npstream._core.typing import AnyArray, Int64
from npstream.explore.display import truncate, value_text
from npstream.formats.sketches import find_runs

__all__ = ["ValueCounts", "count_numbers", "count_objects", "drop_missing"]

MAX_SHOWN = 10
"""Values that the text of `ValueCounts` shows."""

_MAX_TABLE_RANGE = 1 << 18
"""Integers within a range of this size are counted in a table; others are sorted."""

_PENDING_NUMBERS = 1 << 24
"""Minimum number of pending numbers that are sorted together and counted."""

_DISTINCT_BLOCK = 1 << 16
"""Number of sorted values that are compared at once. They fit in the processor's cache."""

_MIN_KERNEL_ROWS = 1 << 20
"""From this number of values on, a kernel is worth its compilation."""


_NAN = object()
"""The key of NaN, which does not equal itself."""


class ValueCounts(Mapping[Any, int]):
    """The distinct values of a column, each with its number of rows, the most frequent first.

    A mapping of values to counts. Values with equal counts are in ascending order. Any NaN is the
    key of the count of all NaN.

    Attributes
    ----------
    name : str
        The column's name.
    unique : ndarray, shape (distinct,)
        The values: numbers of the column's dtype, text as StringDType, other values as objects.
    counts : ndarray of int64, shape (distinct,)
        The number of each value's occurrences.

    Examples
    --------
    >>> counts = getfixture("example")["label"].value_counts()
    >>> counts.unique, counts.counts
    (array([0, 1, 2]), array([1, 1, 1]))
    >>> counts[2]
    1
    """

    __slots__ = ("_positions", "counts", "name", "unique")

    def __init__(self, name: str, unique: AnyArray, counts: Int64) -> None:
        self.name = name
        self.unique = unique
        self.counts = counts
        self._positions: dict[Any, int] | None = None

    def __getitem__(self, value: Any) -> int:
        if self._positions is None:
            self._positions = {_key(each): k for k, each in enumerate(self.unique.tolist())}
        return int(self.counts[self._positions[_key(value)]])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unique.tolist())

    def __len__(self) -> int:
        return len(self.unique)

    def rows(self, most: int) -> list[tuple[str, str, str]]:
        """Return at most `most` values as text, each with its count and its share of all rows."""
        total = max(int(self.counts.sum()), 1)
        shown = zip(self.unique[:most].tolist(), self.counts[:most].tolist(), strict=True)
        return [(value_text(v), f"{count:,}", f"{count / total:.1%}") for v, count in shown]

    def __repr__(self) -> str:
        title = f"{quantity(len(self), 'distinct value')} of {truncate(repr(self.name))}"
        lines = [f"<npstream.ValueCounts: {title}"]
        rows = self.rows(MAX_SHOWN)
        widths = [max((len(row[k]) for row in rows), default=0) for k in range(3)]
        lines += [
            f"  {value:<{widths[0]}}  {count:>{widths[1]}}  {share:>{widths[2]}}"
            for value, count, share in rows
        ]
        if len(self) > len(rows):
            lines.append(f"  ... and {len(self) - len(rows):,} more")
        return "\n".join(lines) + ">"

    def _repr_html_(self) -> str:
        from npstream.rendering.html import table

        hidden = len(self) - MAX_SHOWN
        return table(
            [self.name, "count", "share"],
            self.rows(MAX_SHOWN),
            caption=quantity(len(self), "distinct value"),
            footer=f"... and {hidden:,} more" if hidden > 0 else "",
            numeric=(1, 2),
            index=1,
        )

    def to_pandas(self) -> Any:
        """Return the counts as `pandas.Series.value_counts` does.

        Returns
        -------
        pandas.Series
            Named ``"count"``; its index has the values and the column's name.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("pandas")
        >>> getfixture("example")["label"].value_counts().to_pandas().tolist()
        [1, 1, 1]
        """
        pandas = import_optional("pandas", "pandas", "pandas")
        unique = self.unique.astype(object) if self.unique.dtype.kind == "T" else self.unique
        return pandas.Series(self.counts, pandas.Index(unique, name=self.name), name="count")


def _key(value: Any) -> Any:
    """Return the key of a value in the dict of a `ValueCounts`."""
    is_nan = isinstance(value, float | complex | np.inexact) and value != value
    return _NAN if is_nan else value


def drop_missing(values: AnyArray) -> AnyArray:
    """Return the numbers that are neither NaN nor NaT."""
    if values.dtype.kind in "biu":
        return values
    is_number = values == values
    present: AnyArray = values if is_number.all() else values[is_number]
    return present


def count_numbers(
    name: str, blocks: Iterable[AnyArray], size: int, dtype: np.dtype[Any], dropna: bool = True
) -> ValueCounts:
    """Count numbers, times or bools.

    Parameters
    ----------
    name : str
        The column's name.
    blocks : iterable of ndarray
        The numbers, in blocks of any shape.
    size : int
        The number of values in all blocks. It limits the memory that is reserved for them.
    dtype : dtype
    dropna : bool, default: True
        Whether to leave out NaN and NaT. Otherwise all of them count as one value.

    Examples
    --------
    >>> dict(count_numbers("x", [np.array([3, 1]), np.array([3])], 3, np.dtype(int)))
    {3: 2, 1: 1}
    """
    stored = np.dtype(np.int64) if dtype.kind in "mM" else dtype
    table, sorted_counts = _CountTable(stored), _SortedCounts(stored, size)
    missing = 0
    for block in blocks:
        values = block.reshape(-1)
        present = drop_missing(values)
        missing += len(values) - len(present)
        present = present.view(stored)
        if len(present) and not sorted_counts.add_ascending(present) and not table.add(present):
            sorted_counts.add(present)
    sorted_counts.add_counts(*table.result())
    unique, counts = sorted_counts.result()
    unique, counts = _order_by_count(unique, counts)
    unique = unique.view(dtype)
    if missing and not dropna:
        position = int(np.searchsorted(-counts, -missing, side="right"))
        missing_value = np.array("NaT" if dtype.kind in "mM" else np.nan, dtype)
        unique = np.insert(unique, position, missing_value)
        counts = np.insert(counts, position, missing)
    return ValueCounts(name, unique, counts)


def _order_by_count(unique: AnyArray, counts: Int64) -> tuple[AnyArray, Int64]:
    """Return values and their counts in the stable order of descending counts.

    This may overwrite both arrays.
    """
    largest = int(counts.max()) if len(counts) else 0
    if largest == 1:
        return unique, counts
    if len(counts) < _MIN_KERNEL_ROWS or unique.itemsize > 8 or largest > _MAX_TABLE_RANGE:
        order = np.argsort(-counts, kind="stable")
        return unique[order], counts[order]
    histogram = np.zeros(largest + 1, np.int64)
    add_to_histogram(counts, histogram)
    repeated = len(counts) - int(histogram[1])
    if 4 * repeated > len(counts):
        return _move_by_count(unique, counts, histogram)
    # Most values have a count of 1, and stay in their array.
    repeated_unique, repeated_counts = (
        np.empty(repeated, unique.dtype),
        np.empty(repeated, np.int64),
    )
    words = _word_dtype(unique)
    split_repeated(unique.view(words), counts, repeated_unique.view(words), repeated_counts)
    histogram[1] = 0
    first_unique, first_counts = _move_by_count(repeated_unique, repeated_counts, histogram)
    unique[:repeated], counts[:repeated], counts[repeated:] = first_unique, first_counts, 1
    return unique, counts


def _move_by_count(unique: AnyArray, counts: Int64, histogram: Int64) -> tuple[AnyArray, Int64]:
    """Return the same as `_order_by_count`.

    ``histogram[c]`` is the number of values whose count is c.
    """
    begins = len(counts) - np.cumsum(histogram)  # the number of values with larger counts
    ordered, words = huge_empty(len(unique), unique.dtype), _word_dtype(unique)
    move_by_count(unique.view(words), counts, begins, ordered.view(words))
    fill_descending(histogram, counts)
    return ordered, counts


def _word_dtype(values: AnyArray) -> np.dtype[Any]:
    """Return the unsigned dtype of the same size, so that kernels need no code for floats."""
    return np.dtype(f"u{values.itemsize}")


@kernel
def add_to_histogram(counts: Int64, histogram: Int64) -> None:
    """Add 1 to ``histogram[c]`` for each value whose count is c.

    This takes two thirds of the time of `np.bincount`, which also computes the minimum and maximum.
    """
    for k in range(counts.size):
        histogram[counts[k]] += 1


@kernel
def split_repeated(
    unique: AnyArray, counts: Int64, repeated_unique: AnyArray, repeated_counts: Int64
) -> None:
    """Move the values with a count of 1 to the end of `unique`.

    Copy the other values and their counts to `repeated_unique` and `repeated_counts`. Both groups
    keep their order.
    """
    single, repeated = unique.size, repeated_unique.size
    for k in range(unique.size - 1, -1, -1):
        if counts[k] == 1:
            single -= 1
            unique[single] = unique[k]
        else:
            repeated -= 1
            repeated_unique[repeated] = unique[k]
            repeated_counts[repeated] = counts[k]


@kernel
def move_by_count(unique: AnyArray, counts: Int64, begins: Int64, ordered: AnyArray) -> None:
    """Move values to the order of descending counts.

    ``begins[count]`` is the position of the next value with this count. It is incremented.
    """
    for k in range(unique.size):
        position = begins[counts[k]]
        ordered[position] = unique[k]
        begins[counts[k]] = position + 1


@kernel
def fill_descending(histogram: Int64, counts: Int64) -> None:
    """Write each count as often as `histogram` says, the largest first."""
    position = 0
    for k in range(histogram.size):
        count = histogram.size - 1 - k
        for _ in range(histogram[count]):
            counts[position] = count
            position += 1


def _count_distinct(values: AnyArray) -> int:
    """Return the number of distinct values of a sorted array, without a mask of its length."""
    distinct = 1
    for begin in range(0, len(values) - 1, _DISTINCT_BLOCK):
        part = values[begin : begin + _DISTINCT_BLOCK + 1]
        distinct += int(np.count_nonzero(part[1:] != part[:-1]))
    return distinct


def _count_sorted(values: AnyArray, distinct: int) -> tuple[AnyArray, Int64]:
    """Return the distinct values of a sorted array, and their counts.

    `distinct` is the number of distinct values. This may overwrite `values`.
    """
    if distinct == len(values):
        ones = huge_empty(distinct, np.dtype(np.int64))
        ones.fill(1)
        return values, ones
    if len(values) < _MIN_KERNEL_ROWS or values.itemsize > 8:
        begins, counts = find_runs(values)
        return values[begins], counts
    counts = huge_empty(distinct, np.dtype(np.int64))
    count_runs(values.view(_word_dtype(values)), counts)
    unique = values[:distinct]
    # A small view would keep all values in memory.
    return unique if 2 * distinct > len(values) else unique.copy(), counts


@kernel
def count_runs(values: AnyArray, counts: Int64) -> None:
    """Write each run of equal values as one value, in place, and the length of the run."""
    # The loop has no branch: a processor cannot predict where short runs end, so a branch would
    # triple the time. The value and the count of an unfinished run are overwritten.
    length = 1
    distinct = 0
    for k in range(values.size - 1):
        value = values[k]
        continues = int(value == values[k + 1])
        values[distinct] = value
        counts[distinct] = length
        distinct += 1 - continues
        length = 1 + length * continues
    values[distinct] = values[values.size - 1]
    counts[distinct] = length


class _CountTable:
    """Counts of integers of a small range, in an array."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._first = 0
        self._counts: Int64 = np.zeros(0, np.int64)

    def add(self, values: AnyArray) -> bool:
        """Count integers and return True.

        If their range is too large, count nothing and return False.
        """
        if self._dtype.kind not in "biu":
            return False
        if self._dtype.kind == "b":
            values = values.view(np.uint8)
        first, last = int(values.min()), int(values.max())
        # A table that is much larger than the block would cost more than sorting the block.
        if last - first >= min(_MAX_TABLE_RANGE, 64 + 4 * len(values)):
            return False
        if len(self._counts):
            end = self._first + len(self._counts)
            first, last = min(first, self._first), max(last, end - 1)
            if last - first >= _MAX_TABLE_RANGE:
                return False
        if first != self._first or last - first + 1 != len(self._counts):
            counts = np.zeros(last - first + 1, np.int64)
            if len(self._counts):
                begin = self._first - first
                counts[begin : begin + len(self._counts)] = self._counts
            self._first, self._counts = first, counts
        if first or values.dtype == np.uint64:
            # The difference can overflow a small or unsigned dtype, so it is computed in int64.
            # A large uint64 wraps around in int64, but the difference wraps back to the true value.
            values = values.astype(np.int64) - np.array(first, values.dtype).astype(np.int64)
        self._counts += np.bincount(values, minlength=len(self._counts))
        return True

    def result(self) -> tuple[AnyArray, Int64]:
        """Return the distinct values in ascending order, and their counts."""
        positions = np.flatnonzero(self._counts)
        if self._dtype.kind == "b":
            return (positions + self._first).astype(bool), self._counts[positions]
        first = np.array(self._first, self._dtype)
        return first + positions.astype(self._dtype), self._counts[positions]


class _SortedCounts:
    """Counts of the distinct values in sorted order, and values that are not counted yet."""

    def __init__(self, dtype: np.dtype[Any], size: int) -> None:
        self._unique: AnyArray = np.empty(0, dtype)
        self._counts: Int64 = np.empty(0, np.int64)
        self._buffer: AnyArray = np.empty(0, dtype)
        self._pending = 0  # the number of values in the buffer
        self._limit = _PENDING_NUMBERS
        self._remaining = size
        self._ascending: list[AnyArray] = []

    def add_ascending(self, values: AnyArray) -> bool:
        """Add strictly ascending values that are above the values of earlier calls; return True.

        For other values, add nothing and return False. Sample ids and log times are usually
        ascending. They need no sort.
        """
        if self._ascending and not values[0] > self._ascending[-1][-1]:
            return False
        for part in (values[:64], values):  # most unsorted blocks fail on the first 64 values
            if not (part[1:] > part[:-1]).all():
                return False
        self._ascending.append(values)
        return True

    def add(self, values: AnyArray) -> None:
        """Add values."""
        zero = np.zeros((), values.dtype)
        while len(values):
            count = min(len(values), self._limit - self._pending)
            self._reserve(count)
            target = self._buffer[self._pending : self._pending + count]
            np.add(values[:count], zero, out=target)  # a copy in which -0.0 is 0.0
            values = values[count:]
            self._pending += count
            self._remaining -= count
            if self._pending == self._limit:
                self._count_pending(is_last=False)

    def _reserve(self, count: int) -> None:
        """Make the buffer large enough for `count` more values.

        One large buffer has far fewer page faults than the blocks, and values are sorted in it.
        """
        if self._pending + count > len(self._buffer):
            capacity = min(self._limit, self._pending + self._remaining)
            buffer = huge_empty(capacity, self._buffer.dtype)
            buffer[: self._pending] = self._buffer[: self._pending]
            self._buffer = buffer

    def _count_pending(self, is_last: bool) -> None:
        """Count the pending values. If more than half of them are distinct, only sort them.

        Counts of many distinct values take more memory than the values, and merging them takes
        longer than a sort. The next call sorts or merges all these values again. So the limit for
        the next call is a multiple of their number, which bounds the total work.
        """
        values = self._buffer[: self._pending]
        values.sort()
        distinct = _count_distinct(values)
        if 2 * distinct > len(values) and not is_last:
            self._limit = 16 * len(values)
        else:
            if is_last:
                # The result may be a view of the buffer, so do not write into this buffer again.
                self._buffer = self._buffer[:0].copy()
            self._pending = 0
            self.add_counts(*_count_sorted(values, distinct))
            self._limit = max(_PENDING_NUMBERS, 4 * len(self._unique))

    def add_counts(self, unique: AnyArray, counts: Int64) -> None:
        """Add counts of ascending values."""
        if not len(self._unique):
            self._unique, self._counts = unique, counts
        elif len(unique):
            merged = np.concatenate([self._unique, unique])
            order = np.argsort(merged, kind="stable")
            merged, counts = merged[order], np.concatenate([self._counts, counts])[order]
            begins, _ = find_runs(merged)
            self._unique, self._counts = merged[begins], np.add.reduceat(counts, begins)

    def result(self) -> tuple[AnyArray, Int64]:
        """Return the distinct values in ascending order, and their counts."""
        if self._pending:
            self._count_pending(is_last=True)
        if self._ascending:
            values = np.concatenate(self._ascending)
            self._ascending = []
            self.add_counts(values, np.ones(len(values), np.int64))
        return self._unique, self._counts


def count_objects(name: str, blocks: Iterable[Iterable[Any]], kind: str) -> ValueCounts:
    """Count text, bytes, or other hashable values.

    Parameters
    ----------
    name : str
        The column's name.
    blocks : iterable of iterable
        The values.
    kind : str
        The kind of the column; "str" returns an array of text.

    Raises
    ------
    TypeError
        If values are not hashable, such as lists.

    Examples
    --------
    >>> dict(count_objects("x", [["b", "a"], ["b"]], "str"))
    {'b': 2, 'a': 1}
    """
    counter: Counter[Any] = Counter()
    for block in blocks:
        try:
            counter.update(block)
        except TypeError as error:
            raise TypeError(
                f"values of column {name!r} cannot be counted, as they are not hashable: {error}"
            ) from None
    try:
        pairs = sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))
    except TypeError:  # values of several types have no order
        pairs = counter.most_common()
    unique = np.empty(len(pairs), np.dtypes.StringDType() if kind == "str" else object)
    unique[:] = [value for value, _ in pairs]
    return ValueCounts(name, unique, np.array([count for _, count in pairs], np.int64))
