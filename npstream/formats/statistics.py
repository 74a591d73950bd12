"""Statistics of columns, computed while a shard is read once, and merged over shards.

Counts, bounds and the sums of integers are exact. The sums of floats are computed in float64. The
sketches (`npstream.formats.sketches`) examine a sample of each chunk of a shard: at most `SCALARS`
scalars, or `ELEMENTS` elements of arrays. `ColumnStatistics.examined` counts them.

Statistics describe the stored numbers, such as int64 for a date. Missing values are NaN, NaT, empty
text and null in JSON.

Tested in tests/formats/test_statistics.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from npstream._core.jit import Kernel, kernel
from npstream._core.typing import AnyArray, Bytes, Int64
from npstream.formats.sketches import FrequentValues, QuantileSketch, largest_runs, sort_numbers

__all__ = [
    "ColumnStatistics",
    "add_elements",
    "add_rows",
    "add_scalars",
    "add_values",
    "decode_statistics",
    "encode_statistics",
    "merge_statistics",
]

SCALARS = 1 << 16
"""Maximum number of scalars of a chunk that the sketches examine.

A chunk has 4 MiB on average, so this covers all scalars if samples have 64 bytes or more.
"""

ELEMENTS = 1 << 12
"""Maximum number of array elements of a chunk that the sketches examine."""

VALUES = 1 << 12
"""Maximum number of variable values of a chunk whose frequencies are counted."""

LONGEST = 64
"""Maximum bytes of a variable value whose frequency is counted."""

SUM_BLOCK_BYTES = 1 << 18
"""Bytes of numbers that are copied and summed together, so that they stay in the L2 cache."""

_BLOCK = 1 << 13
"""Numbers that are summed in one call: few enough for the L2 cache, and for exact sums."""

_MAX_NUMPY_INTEGERS = 1 << 28
"""Number of integers that a process sums with NumPy before it loads a kernel.

NumPy sums this number in about a third of a second.
"""

_MAX_EXACT = 1 << 19
"""Up to this magnitude, the sum of the squares of `_BLOCK` integers is exact in float64."""

_LARGEST_SUMMED = 1 << 31
"""Magnitude up to which `sum_integers` is exact for up to 2**31 integers."""

_LIMB_BITS = 22
"""Integers beyond `_MAX_EXACT` are split into parts of this number of bits.

The sum of `_BLOCK` products of two parts fits in int64.
"""

_NAT = np.iinfo(np.int64).min

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The fraction of the golden ratio, times 2**64: for evenly spread positions, and for hashes."""

Number: TypeAlias = int | float


@dataclass(slots=True)
class ColumnStatistics:
    """The statistics of the values of a column.

    Attributes
    ----------
    dtype : str
        The dtype of the numbers, such as ``"datetime64[D]"``; empty if there are none.
    count : int
        Number of values.
    elements : int
        Number of scalars, or of the elements of all arrays.
    missing : int
        Number of missing values: NaN, NaT, empty text or null in JSON.
    minimum, maximum : int, float or None
        Bounds of the numbers that are not missing; None if there are none.
    total, squares : int or float
        The sum of these numbers, and of their squares.
    shortest, longest : int or None
        Minimum and maximum size of variable values, in bytes.
    nbytes : int
        Bytes of all variable values.
    examined : int
        Number of values that the sketches examined. The sketches extrapolate from these to all
        values.
    quantiles : QuantileSketch
        A sketch of the quantiles of the numbers.
    frequent : FrequentValues
        The most frequent numbers, or the most frequent stored values of at most `LONGEST` bytes.
    """

    dtype: str = ""
    count: int = 0
    elements: int = 0
    missing: int = 0
    minimum: Number | None = None
    maximum: Number | None = None
    total: Number = 0
    squares: Number = 0
    shortest: int | None = None
    longest: int | None = None
    nbytes: int = 0
    examined: int = 0
    quantiles: QuantileSketch = field(default_factory=QuantileSketch)
    frequent: FrequentValues = field(default_factory=FrequentValues)

    def merge(self, other: ColumnStatistics) -> None:
        """Add the values that other statistics of the same dtype describe.

        Examples
        --------
        >>> one, two = ColumnStatistics("int64"), ColumnStatistics("int64")
        >>> add_scalars(one, np.array([1, 2]))
        >>> add_scalars(two, np.array([2, 9]))
        >>> one.merge(two)
        >>> one.count, one.minimum, one.maximum, one.total, one.frequent.top(1)
        (4, 1, 9, 14, [(2, 2)])
        """
        if self.dtype != other.dtype:
            raise ValueError(f"statistics of {self.dtype!r} and of {other.dtype!r}")
        for name in ("count", "elements", "missing", "total", "squares", "nbytes", "examined"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, merge_bounds in _BOUNDS.items():
            bounds = [x for x in (getattr(self, name), getattr(other, name)) if x is not None]
            setattr(self, name, merge_bounds(bounds) if bounds else None)
        self.quantiles.merge(other.quantiles)
        self.frequent.merge(other.frequent)

    def without_numbers(self) -> ColumnStatistics:
        """Return the statistics of the sizes alone."""
        return ColumnStatistics(
            count=self.count, shortest=self.shortest, longest=self.longest, nbytes=self.nbytes
        )

    def is_close(self, other: ColumnStatistics) -> bool:
        """Return True if the exact statistics are equal; sums of floats need only be close.

        The sketches and `examined` are not compared.
        """
        for name in _NUMBERS:
            value, other_value = getattr(self, name), getattr(other, name)
            if isinstance(value, float) and name in ("total", "squares"):
                # The error of a sum is proportional to the sum of the magnitudes. Its bound for
                # `total` is the Cauchy-Schwarz inequality.
                scale = math.sqrt(abs(self.squares) * self.elements)
                scale = scale if name == "total" else abs(self.squares)
                if math.isfinite(scale) and not abs(value - other_value) <= 1e-9 * scale:
                    return False
            elif value != other_value and name != "examined":
                return False
        return self.dtype == other.dtype

    def mean(self) -> float:
        """Return the mean of the numbers that are not missing.

        Examples
        --------
        >>> one = ColumnStatistics("int64")
        >>> add_scalars(one, np.array([1, 2, 6]))
        >>> one.mean()
        3.0
        """
        numbers = self.elements - self.missing
        return self.total / numbers if numbers else math.nan

    def std(self) -> float:
        """Return the standard deviation of the numbers that are not missing, as `numpy.std` does.

        Examples
        --------
        >>> one = ColumnStatistics("int64")
        >>> add_scalars(one, np.array([1, 2, 3, 6]))
        >>> bool(one.std() == np.std([1, 2, 3, 6]))
        True
        """
        numbers = self.elements - self.missing
        if not numbers:
            return math.nan
        if isinstance(self.total, int) and isinstance(self.squares, int):
            # Exact integers: the two terms may be much larger than their difference.
            return math.sqrt(numbers * self.squares - self.total**2) / numbers
        mean = self.total / numbers
        variance = self.squares / numbers - mean * mean
        return math.sqrt(max(variance, 0.0)) if variance == variance else math.nan


_BOUNDS: dict[str, Any] = {"minimum": min, "maximum": max, "shortest": min, "longest": max}
"""Attribute of `ColumnStatistics` -> function that merges its values of two statistics."""


def merge_statistics(
    merged: dict[str, ColumnStatistics], shard: Mapping[str, ColumnStatistics]
) -> None:
    """Add the statistics of a shard to `merged`.

    Columns that the shard lacks, or that have another dtype in it, are removed from `merged`.
    """
    for name in merged.keys() - shard.keys():
        del merged[name]
    for name, statistics in shard.items():
        if name in merged:
            if merged[name].dtype == statistics.dtype:
                merged[name].merge(statistics)
            else:
                del merged[name]


def add_scalars(statistics: ColumnStatistics, values: AnyArray) -> None:
    """Add stored numbers, one of each sample.

    Parameters
    ----------
    statistics : ColumnStatistics
    values : ndarray, 1-d
    """
    statistics.count += len(values)
    _add_numbers(statistics, _split(values), len(values), SCALARS, values.__getitem__)


def add_elements(statistics: ColumnStatistics, values: AnyArray, count: int) -> None:
    """Add the elements of `count` arrays, which are concatenated in one 1-d array."""
    statistics.count += count
    _add_numbers(statistics, _split(values), len(values), ELEMENTS, values.__getitem__)


def add_rows(
    statistics: ColumnStatistics,
    blocks: Iterable[AnyArray],
    count: int,
    elements: int,
    take: Callable[[Any], AnyArray],
    runs: tuple[AnyArray, int, int, int, int] | None = None,
) -> None:
    """Add the elements of `count` arrays that are copied block by block.

    Parameters
    ----------
    statistics : ColumnStatistics
    blocks : iterable of ndarray, 1-d
        All elements. The iterable may reuse the memory of one block for the next block.
    count, elements : int
        The number of arrays, and of all their elements.
    take : callable
        Returns the elements at an array of positions, or in a slice.
    runs : tuple, optional
        The arguments of `sum_small` for all elements, without `results`. If they are given, the
        elements need not be copied.
    """
    statistics.count += count
    if runs is not None and elements >= _BLOCK and _use_kernel(sum_small, 0):
        _add_summary(statistics, *_summarize_small(*runs))
        blocks = ()
    _add_numbers(statistics, blocks, elements, ELEMENTS, take)


def _split(values: AnyArray) -> Iterator[AnyArray]:
    """Yield blocks of `SUM_BLOCK_BYTES`."""
    step = SUM_BLOCK_BYTES // values.itemsize
    return (values[start : start + step] for start in range(0, len(values), step))


def _add_numbers(
    statistics: ColumnStatistics,
    blocks: Iterable[AnyArray],
    elements: int,
    limit: int,
    take: Callable[[Any], AnyArray],
) -> None:
    """Add all numbers to the exact statistics, and at most `limit` of them to the sketches."""
    statistics.elements += elements
    for block in blocks:
        _add_exactly(statistics, _decode_floats(statistics.dtype, block))
    # Of each 2**level numbers, the sketches examine one.
    level = max(0, (elements - 1).bit_length() - limit.bit_length() + 1)
    numbers = take(_spread_positions(elements, elements >> level) if level else slice(None))
    numbers = _decode_floats(statistics.dtype, numbers)
    numbers = _drop_missing(statistics.dtype, numbers)
    if not len(numbers):
        return
    numbers = sort_numbers(numbers)
    statistics.examined += len(numbers)
    quantiles = QuantileSketch()
    quantiles.add(numbers, level)
    statistics.quantiles.merge(quantiles)
    begins, counts, cut = largest_runs(numbers)
    pairs = zip(numbers[begins].tolist(), (counts << level).tolist(), strict=True)
    statistics.frequent.merge(FrequentValues(dict(pairs), cut << level))


def _drop_missing(dtype: str, values: AnyArray) -> AnyArray:
    """Return the numbers that are not missing."""
    numbers: AnyArray = values
    if values.dtype.kind == "f":
        numbers = values[values == values]
    elif _is_time(dtype):
        numbers = values[values != _NAT]
    return numbers


def _is_time(dtype: str) -> bool:
    return dtype.startswith(("datetime64", "timedelta64"))


def _add_exactly(statistics: ColumnStatistics, values: AnyArray) -> None:
    """Add numbers to the exact statistics."""
    if not len(values):
        return
    minimum, maximum, sums = _summarize(values)
    is_float = values.dtype.kind == "f"
    if (is_float and np.isnan(minimum)) or (_is_time(statistics.dtype) and minimum == _NAT):
        count = len(values)
        values = _drop_missing(statistics.dtype, values)
        statistics.missing += count - len(values)
        if not len(values):
            return
        minimum, maximum, sums = values.min(), values.max(), None
    low, high = minimum.item(), maximum.item()
    total: Number
    squares: Number
    if sums is not None:
        total, squares = sums
    elif is_float:
        total, squares = _float_sums(values)
    else:
        total, squares = _int_sums(values, low, high)
    _add_summary(statistics, low, high, total, squares)


def _add_summary(
    statistics: ColumnStatistics, low: Number, high: Number, total: Number, squares: Number
) -> None:
    statistics.minimum = low if statistics.minimum is None else min(statistics.minimum, low)
    statistics.maximum = high if statistics.maximum is None else max(statistics.maximum, high)
    statistics.total += total
    statistics.squares += squares


@kernel
def sum_small(
    numbers: AnyArray, first: int, stride: int, rows: int, width: int, results: Int64
) -> None:
    """Write minimum, maximum, sum and sum of squares of integers of at most 16 bits to `results`.

    The integers are in `rows` runs of `width` numbers. The first run begins at ``numbers[first]``.
    Each next run begins `stride` numbers after the previous one.
    """
    minimum = numbers[first]
    maximum = numbers[first]
    total = 0
    squares = 0
    for row in range(rows):
        begin = first + row * stride
        values = numbers[begin : begin + width]
        for k in range(width):
            minimum = min(minimum, values[k])
            maximum = max(maximum, values[k])
            number = int(values[k])
            total += number
            squares += number * number
    results[0], results[1], results[2], results[3] = minimum, maximum, total, squares


@kernel
def sum_integers(values: Int64, results: Int64) -> None:
    """Write minimum, maximum, sum and the sum of squares of integers to `results`.

    The sum of squares is ``results[3] + (results[4] << 32)``. The sums may overflow if a magnitude
    exceeds `_LARGEST_SUMMED`.
    """
    minimum = values[0]
    maximum = values[0]
    total = 0
    low = 0
    high = 0
    for k in range(values.size):
        number = values[k]
        minimum = min(minimum, number)
        maximum = max(maximum, number)
        total += number
        square = number * number
        low += square & 0xFFFFFFFF
        high += square >> 32
    results[0], results[1], results[2] = minimum, maximum, total
    results[3], results[4] = low, high


def _summarize(values: AnyArray) -> tuple[Any, Any, tuple[int, int] | None]:
    """Return the minimum, the maximum, and the exact sums of the numbers and of their squares.

    Return None instead of the sums if no kernel computes them exactly.
    """
    if values.dtype.kind not in "iu" or len(values) < _BLOCK or values.dtype == np.uint64:
        return values.min(), values.max(), None
    if values.itemsize <= 2:
        if _use_kernel(sum_small, len(values)):
            low, high, *sums = _summarize_small(np.ascontiguousarray(values), 0, 0, 1, len(values))
            return np.int64(low), np.int64(high), (sums[0], sums[1])
    elif _use_kernel(sum_integers, len(values)):
        results = np.empty(5, np.int64)
        sum_integers(values.astype(np.int64, copy=False), results)
        minimum, maximum, total, low, high = results.tolist()
        is_exact = minimum >= -_LARGEST_SUMMED and maximum <= _LARGEST_SUMMED
        return results[0], results[1], (total, (high << 32) + low) if is_exact else None
    return values.min(), values.max(), None


def _summarize_small(
    numbers: AnyArray, first: int, stride: int, rows: int, width: int
) -> tuple[int, int, int, int]:
    """Return the results of `sum_small`."""
    results = np.empty(4, np.int64)
    sum_small(numbers, first, stride, rows, width, results)
    minimum, maximum, total, squares = results.tolist()
    return minimum, maximum, total, squares


def _use_kernel(sum_kernel: Kernel[..., None], count: int) -> bool:
    """Return True if a kernel should sum `count` numbers.

    Otherwise, add `count` to the number of integers that NumPy has summed.

    Loading a kernel takes longer than summing `_MAX_NUMPY_INTEGERS` with NumPy.
    """
    global _numbers_in_numpy
    if sum_kernel.is_loaded or _numbers_in_numpy > _MAX_NUMPY_INTEGERS:
        return True
    _numbers_in_numpy += count
    return False


_numbers_in_numpy = 0


def _decode_floats(dtype: str, numbers: AnyArray) -> AnyArray:
    """Convert bfloat16 and float8, which are stored as integers, to float32."""
    if not dtype.startswith(("bfloat16", "float8")):
        return numbers
    from npstream._core.dtypes import dtype_of

    return numbers.view(dtype_of(dtype)).astype(np.float32)


def _spread_positions(size: int, count: int) -> Int64:
    """Return `count` positions below `size`, spread evenly but not periodically.

    As fractions of `size`, they are multiples of the golden ratio modulo 1. So a period in the data
    does not bias the sample.
    """
    fractions = (np.arange(count, dtype=np.uint64) * _GOLDEN) >> np.uint64(32)
    return ((fractions * np.uint64(size)) >> np.uint64(32)).astype(np.int64)


def _int_sums(values: AnyArray, low: int, high: int) -> tuple[int, int]:
    """Return the sum of integers, and of their squares, both exactly."""
    total = squares = 0
    magnitude = max(abs(low), abs(high))
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        if magnitude <= _MAX_EXACT:
            floats = block.astype(np.float64)
            total += int(floats.sum())
            squares += int(floats.dot(floats))
        else:
            block_total, block_squares = _large_sums(block)
            total += block_total
            squares += block_squares
    return total, squares


def _large_sums(block: AnyArray) -> tuple[int, int]:
    negative = block < 0
    magnitudes = np.where(negative, np.negative(block.astype(np.uint64)), block.astype(np.uint64))
    mask = np.uint64((1 << _LIMB_BITS) - 1)
    parts = [((magnitudes >> np.uint64(_LIMB_BITS * k)) & mask).astype(np.int64) for k in range(3)]
    signs = np.where(negative, np.int64(-1), np.int64(1))
    total = sum(int(signs.dot(part)) << _LIMB_BITS * k for k, part in enumerate(parts))
    squares = sum(
        int(one.dot(other)) << _LIMB_BITS * (k + m)
        for k, one in enumerate(parts)
        for m, other in enumerate(parts)
    )
    return total, squares


def _float_sums(values: AnyArray) -> tuple[float, float]:
    totals, squares = [], []
    with np.errstate(all="ignore"):
        for start in range(0, len(values), _BLOCK):
            floats = values[start : start + _BLOCK].astype(np.float64)
            totals.append(float(floats.sum()))
            squares.append(float(floats.dot(floats)))
        return float(np.sum(totals)), float(np.sum(squares))


def add_values(
    statistics: ColumnStatistics,
    data: Bytes,
    begins: Int64,
    nbytes: Int64,
    *,
    frequent: bool = True,
    null: bytes = b"",
) -> None:
    """Add values that vary in size.

    Parameters
    ----------
    statistics : ColumnStatistics
    data : ndarray of uint8
    begins, nbytes : ndarray of int64, shape (n,)
        The first byte of each value in `data`, and the size of each value.
    frequent : bool, default: True
        Whether to count the most frequent values.
    null : bytes, default: b""
        The bytes of a missing value. If it is empty and `frequent` is False, no value is missing.
    """
    if not len(begins):
        return
    part = ColumnStatistics(statistics.dtype, count=len(begins), nbytes=int(nbytes.sum()))
    part.shortest, part.longest = int(nbytes.min()), int(nbytes.max())
    candidates = np.flatnonzero(nbytes == len(null))
    if null and len(candidates):
        bodies = data[begins[candidates, None] + np.arange(len(null))]
        part.missing = int((bodies == np.frombuffer(null, np.uint8)).all(axis=1).sum())
    elif not null and frequent:
        part.missing = len(candidates)
    if frequent:
        level = max(0, (len(begins) - 1).bit_length() - VALUES.bit_length() + 1)
        if level:
            positions = _spread_positions(len(begins), len(begins) >> level)
            begins, nbytes = begins[positions], nbytes[positions]
        part.examined = len(begins)
        part.frequent = _frequent_bodies(data, begins, nbytes, level)
    statistics.merge(part)


def _frequent_bodies(data: Bytes, begins: Int64, nbytes: Int64, level: int) -> FrequentValues:
    """Count values of at most `LONGEST` bytes; each represents ``2**level`` values.

    Values are distinguished by a hash of 64 bits.
    """
    rows = np.flatnonzero(nbytes <= LONGEST)
    begins, nbytes = begins[rows], nbytes[rows]
    hashes = _hash_bodies(data, begins, nbytes)
    sorted_hashes = np.sort(hashes)
    firsts, counts, cut = largest_runs(sorted_hashes)
    body_counts = {}
    for hash_, weight in zip(sorted_hashes[firsts], counts.tolist(), strict=True):
        row = int((hashes == hash_).argmax())
        body = data[begins[row] : begins[row] + nbytes[row]].tobytes()
        body_counts[body] = weight << level
    return FrequentValues(body_counts, cut << level)


def _hash_bodies(data: Bytes, begins: Int64, nbytes: Int64) -> AnyArray:
    """Return a hash of each value, from its size and its first `LONGEST` bytes."""
    hashes = (nbytes.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    if len(data) < 8:
        padded = np.zeros(8, np.uint8)
        padded[: len(data)] = data
        data = padded
    windows = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    rows = np.arange(len(begins))
    for offset in range(0, LONGEST, 8):
        rows = rows[nbytes[rows] > offset]
        if not len(rows):
            break
        positions = begins[rows] + offset
        reads = np.minimum(positions, len(windows) - 1)
        word_sizes = np.minimum(nbytes[rows] - offset, 8)
        # Shift out the bytes before the word to the right, and the bytes after it to the left.
        word = windows[reads] >> (8 * (positions - reads)).astype(np.uint64)
        word = word << (8 * (8 - word_sizes)).astype(np.uint64)
        mixed = (hashes[rows] ^ word) * _GOLDEN
        hashes[rows] = mixed ^ (mixed >> np.uint64(29))
    return hashes


# Encoding of statistics as a section of the side-car


def encode_statistics(columns: Mapping[str, ColumnStatistics]) -> bytes:
    """Return statistics as msgpack; docs/sidecar.md describes it."""
    import msgpack

    document = {name: _document(column) for name, column in columns.items()}
    encoded: bytes = msgpack.packb({"version": STATISTICS_VERSION, "columns": document})
    return encoded


def decode_statistics(body: bytes) -> dict[str, ColumnStatistics]:
    """Return the statistics that `encode_statistics` encoded; empty for another version.

    Raises
    ------
    ValueError
        If the bytes do not follow the format.
    """
    import msgpack

    try:
        document = msgpack.unpackb(body)
        if document["version"] != STATISTICS_VERSION:
            return {}
        return {_require_type(n, str): _from_document(c) for n, c in document["columns"].items()}
    except (LookupError, TypeError, AttributeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"its statistics do not follow the format: {error}") from None


def _document(column: ColumnStatistics) -> dict[str, Any]:
    document: dict[str, Any] = {name: _number(getattr(column, name)) for name in _NUMBERS}
    sketch, frequent = column.quantiles, column.frequent
    kind = sketch.levels[0].dtype if sketch.levels else np.dtype(np.uint8)
    level_dtype = kind.newbyteorder("<")
    levels = [values.astype(level_dtype).tobytes() for values in sketch.levels]
    document["dtype"] = column.dtype
    document["quantiles"] = [sketch.error, sketch.parity, level_dtype.str, levels]
    document["frequent"] = [frequent.error, [list(pair) for pair in frequent.top()]]
    return document


def _number(value: Number | None) -> Number | str | None:
    """Return a number, or an integer of over 64 bits as text, because msgpack cannot hold it."""
    is_too_large = isinstance(value, int) and not -(1 << 63) <= value < 1 << 64
    return str(value) if is_too_large else value


def _from_document(document: Mapping[str, Any]) -> ColumnStatistics:
    numbers: dict[str, Any] = {}
    for name, is_optional in _NUMBERS.items():
        value = document[name]
        if isinstance(value, str):
            value = int(value)
        if not (is_optional and value is None):
            _require_type(value, int if name in _COUNTS else int | float)
        numbers[name] = value
    error, parity, dtype, levels = document["quantiles"]
    if dtype not in _DTYPES or parity not in (0, 1) or len(levels) > _MAX_LEVELS:
        raise ValueError(f"quantiles of dtype {dtype!r}")
    arrays = [np.frombuffer(_require_type(level, bytes), dtype) for level in levels]
    bound, pairs = document["frequent"]
    counts = {_require_type(v, int | float | bytes): _require_type(n, int) for v, n in pairs}
    return ColumnStatistics(
        dtype=_require_type(document["dtype"], str),
        quantiles=QuantileSketch(arrays, _require_type(error, int), parity),
        frequent=FrequentValues(counts, _require_type(bound, int)),
        **numbers,
    )


def _require_type(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{value!r:.40} is not {kind}")
    return value


STATISTICS_VERSION = 1

_COUNTS = ("count", "elements", "missing", "shortest", "longest", "nbytes", "examined")

_NUMBERS = {
    **dict.fromkeys(("count", "elements", "missing", "nbytes", "examined"), False),
    **dict.fromkeys(("total", "squares"), False),
    **dict.fromkeys(("minimum", "maximum", "shortest", "longest"), True),
}
"""The numbers of `ColumnStatistics`, and whether each may be None."""

_DTYPES = {np.dtype(kind).newbyteorder("<").str for kind in "bBhHiIqQefd"}
"""The dtypes that a stored quantile sketch may have."""

_MAX_LEVELS = 64
