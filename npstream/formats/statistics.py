"""Statistics of columns, gathered while a shard passes by and merged over shards.

Everything but the sketches is exact: counts, bounds, and for integers the sums, too. The sums of
floats are those of float64. The sketches (`npstream.formats.sketches`) look at no more than
`SCALARS` numbers, or `ELEMENTS` elements of arrays, of each chunk of a shard; ``examined`` says how
many.

Numbers are those that are stored, such as int64 for a date; a NaN, a NaT, an empty text and a null
of JSON are missing values.

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
from npstream.formats.sketches import FrequentValues, QuantileSketch, find_runs, largest_counts

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
"""Numbers of a chunk that the sketches examine: all, where samples have 64 bytes or more."""

ELEMENTS = 1 << 12
"""Elements of arrays of a chunk that the sketches examine."""

VALUES = 1 << 12
"""Texts of a chunk whose frequency is counted."""

LONGEST = 64
"""Bytes of the longest value whose frequency is counted."""

SUMMED_BYTES = 1 << 18
"""Bytes of numbers that are taken at once: they stay in the processor's cache."""

_BLOCK = 1 << 13
"""Numbers that are summed at once: they stay in the processor's cache, and their sums exact."""

_NUMPY_PATIENCE = 1 << 28
"""Integers that are summed with NumPy, over the process's life: a third of a second."""

_EXACT = 1 << 19
"""Up to this magnitude, the sum of the squares of a block is exact in float64."""

_LARGEST_SUMMED = 1 << 31
"""Magnitude up to which `sum_integers` is exact for up to 2**31 integers."""

_LIMB = 22
"""Bits of the parts of larger integers: products of parts, added over a block, fit int64."""

_NAT = np.iinfo(np.int64).min

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Number: TypeAlias = int | float


@dataclass(slots=True)
class ColumnStatistics:
    """What is known of the values of a column.

    Attributes
    ----------
    dtype : str
        The dtype of the numbers, such as ``"datetime64[D]"``; empty if there are none.
    count : int
        Number of values.
    elements : int
        Number of numbers: of values, or of the elements of all arrays.
    missing : int
        How many numbers are NaN or NaT, texts empty, or JSON values null.
    minimum, maximum : int, float or None
        Bounds of the numbers that are not missing; None if there are none.
    total, squares : int or float
        The sum of these numbers, and of their squares.
    shortest, longest : int or None
        Bounds of the bytes of values that vary in size.
    nbytes : int
        Bytes of all values that vary in size.
    examined : int
        How many values the sketches have seen; the rest is extrapolated from them.
    quantiles : QuantileSketch
        The ranks of numbers.
    frequent : FrequentValues
        The most frequent numbers, or values of at most 64 bytes as they are stored.
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
        """Add the values that another one describes, of the same dtype.

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
        for name, choose in _CHOICES.items():
            known = [x for x in (getattr(self, name), getattr(other, name)) if x is not None]
            setattr(self, name, choose(known) if known else None)
        self.quantiles.merge(other.quantiles)
        self.frequent.merge(other.frequent)

    def is_close(self, other: ColumnStatistics) -> bool:
        """Return True if all but the sketches are equal; sums of floats need only be close."""
        for name in _NUMBERS:
            mine, yours = getattr(self, name), getattr(other, name)
            if isinstance(mine, float) and name in ("total", "squares"):
                # The sum of the magnitudes is at most this.
                size = math.sqrt(abs(self.squares) * self.elements)
                size = size if name == "total" else abs(self.squares)
                if math.isfinite(size) and not abs(mine - yours) <= 1e-9 * size:
                    return False
            elif mine != yours and name != "examined":
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
        """Return the standard deviation of these numbers, as `numpy.std` does.

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


_CHOICES: dict[str, Any] = {"minimum": min, "maximum": max, "shortest": min, "longest": max}


def merge_statistics(
    known: dict[str, ColumnStatistics], found: Mapping[str, ColumnStatistics]
) -> None:
    """Add the statistics of a shard; a column that is not alike in all shards is left out."""
    for name in known.keys() - found.keys():
        del known[name]
    for name, statistics in found.items():
        if name in known:
            if known[name].dtype == statistics.dtype:
                known[name].merge(statistics)
            else:
                del known[name]


def add_scalars(statistics: ColumnStatistics, values: AnyArray) -> None:
    """Add numbers, one of each sample, as they are stored.

    Parameters
    ----------
    statistics : ColumnStatistics
    values : ndarray, 1-d
    """
    statistics.count += len(values)
    _add_numbers(statistics, _split(values), len(values), SCALARS, values.__getitem__)


def add_elements(statistics: ColumnStatistics, values: AnyArray, count: int) -> None:
    """Add the elements of `count` arrays, all of them in one 1-d array."""
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
        All elements; a block may overwrite the one before.
    count, elements : int
        The number of arrays, and of all their elements.
    take : callable
        Returns the elements at some positions, or of a slice.
    runs : tuple, optional
        The arguments of `sum_small` that describe all elements, which then need not be copied.
    """
    statistics.count += count
    if runs is not None and elements >= _BLOCK and _is_compiled(sum_small, 0):
        _add_facts(statistics, *_small_facts(*runs))
        blocks = ()
    _add_numbers(statistics, blocks, elements, ELEMENTS, take)


def _split(values: AnyArray) -> Iterator[AnyArray]:
    """Yield blocks that stay in the processor's cache."""
    step = SUMMED_BYTES // values.itemsize
    return (values[start : start + step] for start in range(0, len(values), step))


def _add_numbers(
    statistics: ColumnStatistics,
    blocks: Iterable[AnyArray],
    elements: int,
    most: int,
    take: Callable[[Any], AnyArray],
) -> None:
    statistics.elements += elements
    for block in blocks:
        _add_exactly(statistics, _meant(statistics.dtype, block))
    level = max(0, (elements - 1).bit_length() - most.bit_length() + 1)
    seen = take(_spread(elements, elements >> level) if level else slice(None))
    seen = _meant(statistics.dtype, seen)
    seen = _present(statistics.dtype, seen)
    if not len(seen):
        return
    # Numbers of samples are sorted already. The copy is needed: a chunk's memory is reused.
    seen = np.sort(seen) if (seen[1:] < seen[:-1]).any() else seen.copy()
    statistics.examined += len(seen)
    quantiles = QuantileSketch()
    quantiles.add(seen, level)
    statistics.quantiles.merge(quantiles)
    begins, counts = find_runs(seen)
    kept, lost = largest_counts(counts)
    numbers, weights = seen[begins[kept]].tolist(), ((counts[kept] - lost) << level).tolist()
    found = FrequentValues(dict(zip(numbers, weights, strict=True)), lost << level)
    statistics.frequent.merge(found)


def _present(dtype: str, values: AnyArray) -> AnyArray:
    """Return the numbers that are not missing."""
    present: AnyArray = values
    if values.dtype.kind == "f":
        present = values[values == values]
    elif _is_time(dtype):
        present = values[values != _NAT]
    return present


def _is_time(dtype: str) -> bool:
    return dtype.startswith(("datetime64", "timedelta64"))


def _add_exactly(statistics: ColumnStatistics, values: AnyArray) -> None:
    """Add numbers to everything but the sketches."""
    if not len(values):
        return
    least, greatest, sums = _facts(values)
    is_float = values.dtype.kind == "f"
    if (is_float and np.isnan(least)) or (_is_time(statistics.dtype) and least == _NAT):
        present = _present(statistics.dtype, values)
        statistics.missing += len(values) - len(present)
        values = present
        if not len(values):
            return
        least, greatest, sums = values.min(), values.max(), None
    low, high = least.item(), greatest.item()
    total: Number
    squares: Number
    if sums is not None:
        total, squares = sums
    elif is_float:
        total, squares = _float_sums(values)
    else:
        total, squares = _int_sums(values, low, high)
    _add_facts(statistics, low, high, total, squares)


def _add_facts(
    statistics: ColumnStatistics, low: Number, high: Number, total: Number, squares: Number
) -> None:
    statistics.minimum = low if statistics.minimum is None else min(statistics.minimum, low)
    statistics.maximum = high if statistics.maximum is None else max(statistics.maximum, high)
    statistics.total += total
    statistics.squares += squares


@kernel
def sum_small(
    numbers: AnyArray, first: int, stride: int, rows: int, width: int, found: Int64
) -> None:
    """Find least, greatest, sum and sum of squares of integers of at most 16 bits.

    They are `rows` runs of `width` numbers. The first run begins at ``numbers[first]``, and each
    other one `stride` numbers after the one before.
    """
    least = numbers[first]
    greatest = numbers[first]
    total = 0
    squares = 0
    for row in range(rows):
        begin = first + row * stride
        values = numbers[begin : begin + width]
        for k in range(width):
            least = min(least, values[k])
            greatest = max(greatest, values[k])
            number = int(values[k])
            total += number
            squares += number * number
    found[0], found[1], found[2], found[3] = least, greatest, total, squares


@kernel
def sum_integers(values: Int64, found: Int64) -> None:
    """Find least, greatest, sum and the two halves of the sum of squares of integers.

    The sums are those of integers of at most 32 bits, and meaningless for larger ones.
    """
    least = values[0]
    greatest = values[0]
    total = 0
    low = 0
    high = 0
    for k in range(values.size):
        number = values[k]
        least = min(least, number)
        greatest = max(greatest, number)
        total += number
        square = number * number
        low += square & 0xFFFFFFFF
        high += square >> 32
    found[0], found[1], found[2], found[3], found[4] = least, greatest, total, low, high


def _facts(values: AnyArray) -> tuple[Any, Any, tuple[int, int] | None]:
    """Return the least and the greatest number; and the sums, if these cost nothing more."""
    if values.dtype.kind not in "iu" or len(values) < _BLOCK or values.dtype == np.uint64:
        return values.min(), values.max(), None
    if values.itemsize <= 2:
        if _is_compiled(sum_small, len(values)):
            facts = _small_facts(np.ascontiguousarray(values), 0, 0, 1, len(values))
            return np.int64(facts[0]), np.int64(facts[1]), facts[2:]
    elif _is_compiled(sum_integers, len(values)):
        found = np.empty(5, np.int64)
        sum_integers(values.astype(np.int64, copy=False), found)
        least, greatest, total, low, high = found.tolist()
        is_exact = least >= -_LARGEST_SUMMED and greatest <= _LARGEST_SUMMED
        return found[0], found[1], (total, (high << 32) + low) if is_exact else None
    return values.min(), values.max(), None


def _small_facts(
    numbers: AnyArray, first: int, stride: int, rows: int, width: int
) -> tuple[int, int, int, int]:
    """Return what `sum_small` finds."""
    found = np.empty(4, np.int64)
    sum_small(numbers, first, stride, rows, width, found)
    least, greatest, total, squares = found.tolist()
    return least, greatest, total, squares


def _is_compiled(summing: Kernel[..., None], count: int) -> bool:
    """Return whether to use a kernel for `count` numbers: if not, NumPy has some more to do."""
    global _numbers_in_numpy
    if summing.is_loaded or _numbers_in_numpy > _NUMPY_PATIENCE:
        return True
    _numbers_in_numpy += count
    return False


_numbers_in_numpy = 0


def _meant(dtype: str, stored: AnyArray) -> AnyArray:
    """Return stored numbers as the floats that they mean, if they do; all others as they are."""
    if not dtype.startswith(("bfloat16", "float8")):
        return stored
    from npstream._core.dtypes import dtype_of

    return stored.view(dtype_of(dtype)).astype(np.float32)


def _spread(count: int, wanted: int) -> Int64:
    """Return places that lie evenly, and in step with no structure of the data."""
    fractions = (np.arange(wanted, dtype=np.uint64) * _GOLDEN) >> np.uint64(32)
    return ((fractions * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def _int_sums(values: AnyArray, low: int, high: int) -> tuple[int, int]:
    """Return the sum of integers, and of their squares, both exactly."""
    total = squares = 0
    most = max(abs(low), abs(high))
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        if most <= _EXACT:
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
    size = np.where(negative, np.negative(block.astype(np.uint64)), block.astype(np.uint64))
    mask = np.uint64((1 << _LIMB) - 1)
    parts = [((size >> np.uint64(_LIMB * k)) & mask).astype(np.int64) for k in range(3)]
    signs = np.where(negative, np.int64(-1), np.int64(1))
    total = sum(int(signs.dot(part)) << _LIMB * k for k, part in enumerate(parts))
    squares = sum(
        int(one.dot(other)) << _LIMB * (k + m)
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
        Where each value lies in `data`.
    frequent : bool
        Whether to count the most frequent ones.
    null : bytes
        The value that is a missing one.
    """
    if not len(begins):
        return
    part = ColumnStatistics(statistics.dtype, count=len(begins), nbytes=int(nbytes.sum()))
    part.shortest, part.longest = int(nbytes.min()), int(nbytes.max())
    alike = np.flatnonzero(nbytes == len(null))
    if null and len(alike):
        found = data[begins[alike, None] + np.arange(len(null))]
        part.missing = int((found == np.frombuffer(null, np.uint8)).all(axis=1).sum())
    elif not null and frequent:
        part.missing = len(alike)
    if frequent:
        level = max(0, (len(begins) - 1).bit_length() - VALUES.bit_length() + 1)
        if level:
            seen = _spread(len(begins), len(begins) >> level)
            begins, nbytes = begins[seen], nbytes[seen]
        part.examined = len(begins)
        part.frequent = _frequent_bodies(data, begins, nbytes, level)
    statistics.merge(part)


def _frequent_bodies(data: Bytes, begins: Int64, nbytes: Int64, level: int) -> FrequentValues:
    """Count values of at most `LONGEST` bytes, each for ``2**level``, by a hash of 64 bits."""
    short = np.flatnonzero(nbytes <= LONGEST)
    begins, nbytes = begins[short], nbytes[short]
    hashes = _hash_bodies(data, begins, nbytes)
    order = np.sort(hashes)
    first, counts = find_runs(order)
    kept, lost = largest_counts(counts)
    found = {}
    for hash_, count in zip(order[first[kept]], (counts[kept] - lost).tolist(), strict=True):
        row = int((hashes == hash_).argmax())
        body = data[begins[row] : begins[row] + nbytes[row]].tobytes()
        found[body] = count << level
    return FrequentValues(found, lost << level)


def _hash_bodies(data: Bytes, begins: Int64, nbytes: Int64) -> AnyArray:
    """Return a hash of each run of bytes, word by word."""
    hashes = (nbytes.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    if len(data) < 8:
        padded = np.zeros(8, np.uint8)
        padded[: len(data)] = data
        data = padded
    windows = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    rows = np.arange(len(begins))
    for at in range(0, LONGEST, 8):
        rows = rows[nbytes[rows] > at]
        if not len(rows):
            break
        places = begins[rows] + at
        reads = np.minimum(places, len(windows) - 1)
        left = np.minimum(nbytes[rows] - at, 8)
        # Shift out the bytes before the word to the right, and the bytes after it to the left.
        word = windows[reads] >> (8 * (places - reads)).astype(np.uint64)
        word = word << (8 * (8 - left)).astype(np.uint64)
        mixed = (hashes[rows] ^ word) * _GOLDEN
        hashes[rows] = mixed ^ (mixed >> np.uint64(29))
    return hashes


# As a section of the side-car


def encode_statistics(columns: Mapping[str, ColumnStatistics]) -> bytes:
    """Return statistics as msgpack; docs/sidecar.md describes it."""
    import msgpack

    document = {name: _document(column) for name, column in columns.items()}
    encoded: bytes = msgpack.packb({"version": STATISTICS_VERSION, "columns": document})
    return encoded


def decode_statistics(body: bytes) -> dict[str, ColumnStatistics]:
    """Return the statistics that `encode_statistics` encoded; none of another version.

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
        return {_typed(n, str): _from_document(c) for n, c in document["columns"].items()}
    except (LookupError, TypeError, AttributeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"its statistics do not follow the format: {error}") from None


def _document(column: ColumnStatistics) -> dict[str, Any]:
    document: dict[str, Any] = {name: _number(getattr(column, name)) for name in _NUMBERS}
    sketch, frequent = column.quantiles, column.frequent
    kind = sketch.levels[0].dtype if sketch.levels else np.dtype(np.uint8)
    stored = kind.newbyteorder("<")
    levels = [values.astype(stored).tobytes() for values in sketch.levels]
    document["dtype"] = column.dtype
    document["quantiles"] = [sketch.error, sketch.turn, stored.str, levels]
    document["frequent"] = [frequent.error, [list(pair) for pair in frequent.top()]]
    return document


def _number(value: Number | None) -> Number | str | None:
    """Return a number as msgpack can hold it: as text, if it is an integer of over 64 bits."""
    beyond = isinstance(value, int) and not -(1 << 63) <= value < 1 << 64
    return str(value) if beyond else value


def _from_document(document: Mapping[str, Any]) -> ColumnStatistics:
    numbers: dict[str, Any] = {}
    for name, is_optional in _NUMBERS.items():
        value = document[name]
        if isinstance(value, str):
            value = int(value)
        if not (is_optional and value is None):
            _typed(value, int if name in _COUNTS else int | float)
        numbers[name] = value
    error, turn, dtype, levels = document["quantiles"]
    if dtype not in _DTYPES or turn not in (0, 1) or len(levels) > _MAX_LEVELS:
        raise ValueError(f"quantiles of dtype {dtype!r}")
    arrays = [np.frombuffer(_typed(level, bytes), dtype) for level in levels]
    bound, pairs = document["frequent"]
    counts = {_typed(v, int | float | bytes): _typed(n, int) for v, n in pairs}
    return ColumnStatistics(
        dtype=_typed(document["dtype"], str),
        quantiles=QuantileSketch(arrays, _typed(error, int), turn),
        frequent=FrequentValues(counts, _typed(bound, int)),
        **numbers,
    )


def _typed(value: Any, kind: Any) -> Any:
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

_MAX_LEVELS = 64
