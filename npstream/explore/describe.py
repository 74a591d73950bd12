"""Compute statistics of columns: from the side-car's statistics, from all rows, or from a sample.

Tested in tests/explore/test_describe.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from npstream._core.progress import progress
from npstream._core.typing import AnyArray, Int64
from npstream.explore.counts import count_numbers, drop_missing
from npstream.explore.quantiles import quantiles
from npstream.explore.summary import PROBABILITIES, ColumnSummary
from npstream.formats.statistics import LONGEST, ColumnStatistics, add_scalars
from npstream.reading.cost_limit import check_cost
from npstream.reading.ragged import Ragged

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source

__all__ = ["DescribedColumn", "describe_rows", "describe_statistics", "sidecar_statistics"]

EXACT_ELEMENTS = 1 << 22
"""Maximum elements of a column that are kept in memory, for exact quantiles and counts."""

SAMPLE_BYTES = 1 << 28
"""Approximate maximum bytes of a sample. The number of its rows is limited accordingly."""

IMAGES = 100
"""Maximum number of images of a sample that are opened to read their width and height."""

RUNS = 64
"""A sample of a remote column has this number of runs of consecutive rows."""

_BLOCK_ROWS = 1 << 10
"""Rows of a sample that are read at once."""

_MOST_FREQUENT = 10
"""Maximum number of the most frequent values that a summary lists."""

_TEXT_TYPES = {"float": "float64"}
"""Type of a CSV or JSON column in the index -> the encoding's name in npstream, if it differs."""

_MIN_VARIANCE_RATIO = 1e-10
"""Minimum ratio of a variance to the mean square.

Below it, the variance that is computed from sums of floats is only rounding error.
"""


class DescribedColumn(Protocol):
    """The attributes of a 1-d column that a description needs."""

    _source: Source
    _plan: Plan
    _selection: Selection

    @property
    def _field(self) -> Field: ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the column."""

    @property
    def size(self) -> int:
        """Number of elements."""

    def _number_blocks(self, purpose: str) -> Iterator[AnyArray]: ...

    def _rows(self) -> Iterable[Any]: ...

    def load(self, out: Any = None) -> Any:
        """Read the column."""

    def __getitem__(self, index: Any) -> Any: ...


# From the side-car


def sidecar_statistics(source: Source, selection: Selection) -> dict[str, ColumnStatistics]:
    """Read the statistics of a remote dataset from its side-car, with one request.

    Returns
    -------
    dict of str to ColumnStatistics
        Empty for a view, a local dataset, or a side-car without statistics.
    """
    remote = source.remote
    is_whole = selection.affine in ((0, 1), (0, 0)) and selection.size == source.index.samples
    if source.members or remote is None or not is_whole or remote.files.sidecar is None:
        return {}
    return remote.files.sidecar.statistics()


def describe_statistics(
    source: Source, field: Field, statistics_by_name: Mapping[str, ColumnStatistics]
) -> ColumnSummary | None:
    """Return a summary of the side-car's statistics of a column.

    Parameters
    ----------
    source : Source
    field : Field
        The whole column.
    statistics_by_name : mapping of str to ColumnStatistics
        The result of `sidecar_statistics`.

    Returns
    -------
    ColumnSummary or None
        None if the side-car has no statistics of the column, or if the column is read as another
        type than the stored one.
    """
    encoding = field.encoding
    statistics = statistics_by_name.get(source.fetcher.stored_name(field.name))
    if statistics is None or field.part is not None or field.computation is not None:
        return None
    for schema in source.index.schemas:
        stored = schema.encodings[schema.names.index(field.name)]
        if _TEXT_TYPES.get(stored, stored) != encoding.stored_name:
            return None
    if statistics.dtype and statistics.dtype != encoding.dtype.name and encoding.dtype != object:
        return None
    rows = source.index.samples
    summary = ColumnSummary(
        field.name, encoding.name, rows, rows, "side-car", missing=statistics.missing
    )
    if statistics.dtype:
        summary = _add_numbers(summary, statistics)
    else:
        pairs = statistics.frequent.top(_MOST_FREQUENT)
        top = _drop_if_distinct([(_decode(encoding, body), count) for body, count in pairs])
        # Longer values than LONGEST bytes are not counted.
        is_exact = _counts_all(statistics, rows) and (statistics.longest or 0) <= LONGEST
        distinct = len(statistics.frequent.counts) if is_exact else None
        summary = replace(
            summary, elements=rows, top=top, distinct=distinct, top_error=statistics.frequent.error
        )
    if statistics.shortest is not None and encoding.kind != "ndarray":
        mean = statistics.nbytes / max(statistics.count, 1)
        lengths = statistics.shortest, mean, statistics.longest or 0
        summary = replace(summary, lengths=lengths, unit="bytes")
    return summary


def _counts_all(statistics: ColumnStatistics, values: int) -> bool:
    """Return True if the counters of frequent values counted all values."""
    return statistics.frequent.error == 0 and statistics.examined == values


def _decode(encoding: Encoding, body: Any) -> Any:
    try:
        return encoding.decode(body) if isinstance(body, bytes) else body
    except ValueError:  # the stored bytes may be damaged, or invalid UTF-8
        return body


def _add_numbers(summary: ColumnSummary, statistics: ColumnStatistics) -> ColumnSummary:
    """Add the statistics of numbers to a summary."""
    dtype, present = statistics.dtype, statistics.elements - statistics.missing
    quantile_values: dict[float, Any] = {}
    if statistics.quantiles.weight:
        values = statistics.quantiles.quantiles(PROBABILITIES).tolist()
        pairs = zip(PROBABILITIES, (_column_value(dtype, x) for x in values), strict=True)
        quantile_values = dict(pairs)
    is_time = dtype.startswith(("datetime64", "timedelta64"))
    top = statistics.frequent.top(_MOST_FREQUENT)
    is_exact = _counts_all(statistics, present)
    error = _rank_error(statistics, present)
    std = None if is_time or not present else _std(statistics)
    return replace(
        summary,
        elements=statistics.elements,
        missing=statistics.missing,
        min=_column_value(dtype, statistics.minimum),
        max=_column_value(dtype, statistics.maximum),
        mean=None if is_time or not present else statistics.mean(),
        std=std,
        quantiles=quantile_values,
        rank_error=error if quantile_values else 0.0,
        distinct=len(statistics.frequent.counts) if is_exact else None,
        top=_drop_if_distinct([(_column_value(dtype, value), count) for value, count in top]),
        # Counts that are extrapolated from a part of the values have no known bound. They have an
        # error of at least 1, so that they are shown as approximate.
        top_error=statistics.frequent.error + (statistics.examined < present),
    )


def _rank_error(statistics: ColumnStatistics, present: int) -> float:
    """Estimate the error of the ranks of a sketch, as a fraction of all ranks."""
    if not statistics.examined:
        return 0.0
    error = statistics.quantiles.error / max(statistics.quantiles.weight, 1)
    sampling_error = 0.0 if statistics.examined >= present else 1 / math.sqrt(statistics.examined)
    return min(1.0, error + sampling_error)


def _std(statistics: ColumnStatistics) -> float | None:
    """Return the standard deviation, or None if the sums of floats are too inexact for it."""
    std, present = statistics.std(), statistics.elements - statistics.missing
    if isinstance(statistics.squares, int) or not math.isfinite(std):
        return std
    mean_square = statistics.squares / max(present, 1)
    is_stable = mean_square == 0 or std * std >= _MIN_VARIANCE_RATIO * mean_square
    return std if is_stable else (0.0 if statistics.minimum == statistics.maximum else None)


def _column_value(dtype: str, value: Any) -> Any:
    """Return a stored number as a value of the column."""
    if value is None:
        return None
    if dtype == "bool":
        return bool(value)
    if dtype.startswith(("datetime64", "timedelta64")):
        return np.int64(value).view(dtype)
    return value


# From rows


def describe_rows(column: DescribedColumn, sample: int, seed: int) -> ColumnSummary:
    """Return a summary of all rows of a column, or of a sample.

    All rows of a local column are read if its values are numbers, times or bools of fixed size. Of
    any other column, at most `sample` rows and about `SAMPLE_BYTES` are read. If the column is
    larger, these rows are a random sample.

    Parameters
    ----------
    column : Column
        A column with one axis of rows.
    sample : int
        Maximum number of rows of a sample.
    seed : int
        Seed of the sample.
    """
    source, field, rows = column._source, column._field, len(column._selection)
    encoding = field.encoding
    purpose = f"describing {field.name!r}"
    is_scalar = encoding.kind == "fixed" and len(column.shape) == 1
    if is_scalar and not source.remotes and column.dtype.kind in "biufmM":
        summary = ColumnSummary(field.name, encoding.name, rows, rows, "rows")
        return _describe_numbers(summary, column._number_blocks(purpose), column.dtype, column.size)
    # Even if samples are so large that fewer fit in SAMPLE_BYTES, `IMAGES` rows are read.
    limit = min(sample, max(IMAGES, source.estimate_rows(SAMPLE_BYTES)))
    ids = _sample_rows(rows, limit, seed, bool(source.remotes))
    count = rows if ids is None else len(ids)
    origin = "rows" if ids is None else "sample"
    summary = ColumnSummary(field.name, encoding.name, rows, count, origin)
    part = column if ids is None else column[ids]
    check_cost(source, part._selection, purpose, part._plan)
    starts = progress(range(0, count, _BLOCK_ROWS), purpose)
    blocks = (part[start : start + _BLOCK_ROWS] for start in starts)
    if encoding.kind in ("fixed", "int_text", "float_text"):
        arrays = (np.asarray(block) for block in blocks)
        if column.dtype.kind not in "biufmM":
            return replace(summary, elements=sum(array.size for array in arrays))
        return _describe_numbers(summary, arrays, column.dtype, part.size)
    if encoding.kind == "ndarray":
        return _describe_arrays(summary, (block.load() for block in blocks))
    if encoding.kind == "image":
        return _describe_images(summary, blocks)
    if encoding.kind == "object":
        return _describe_objects(summary, (block._rows() for block in blocks))
    return _describe_text(summary, (block.load() for block in blocks))


def _sample_rows(rows: int, limit: int, seed: int, is_remote: bool) -> Int64 | None:
    """Return the sorted rows of a sample, or None for all rows.

    A sample of a remote column consists of runs of consecutive rows. The column is divided into
    equal parts, and each part has one run at a random position. A run is usually in one or two
    chunks, so that a sample needs few requests.
    """
    if rows <= limit:
        return None
    random = np.random.default_rng(seed)
    if not is_remote or limit < RUNS:
        ids: Int64 = np.sort(random.choice(rows, limit, replace=False, shuffle=False))
        return ids
    length = limit // RUNS
    bounds = np.linspace(0, rows, RUNS + 1).astype(np.int64)
    starts = bounds[:-1] + random.integers(0, np.diff(bounds) - length + 1)
    return (starts[:, None] + np.arange(length)).reshape(-1)


def _describe_numbers(
    summary: ColumnSummary, blocks: Iterable[AnyArray], dtype: np.dtype[Any], elements: int
) -> ColumnSummary:
    """Add the statistics of numbers.

    They are exact for at most `EXACT_ELEMENTS` numbers, and computed by sketches for more.
    """
    if elements <= EXACT_ELEMENTS:
        arrays = [block.reshape(-1) for block in blocks]
        return _describe_array(summary, np.concatenate(arrays) if arrays else np.empty(0, dtype))
    statistics = ColumnStatistics(dtype.name)
    # `add_scalars` takes integers and floats. Bools are passed as uint8, and times as int64.
    is_number = dtype.kind in "iuf"
    for block in blocks:
        values = block.reshape(-1)
        numbers = values if is_number else values.view(np.uint8 if dtype.kind == "b" else np.int64)
        add_scalars(statistics, numbers)
    return _add_numbers(summary, statistics)


def _describe_array(summary: ColumnSummary, values: AnyArray) -> ColumnSummary:
    """Add the exact statistics of numbers in memory."""
    dtype = values.dtype
    present = drop_missing(values)
    summary = replace(summary, elements=len(values), missing=len(values) - len(present))
    if not len(present):
        return replace(summary, distinct=0)
    counts = count_numbers(summary.name, [present], present.size, dtype)
    unique, occurrences = counts.unique[:_MOST_FREQUENT], counts.counts[:_MOST_FREQUENT]
    top = zip(unique, occurrences.tolist(), strict=True)
    probabilities = np.array(PROBABILITIES)
    is_time, is_bool = dtype.kind in "mM", dtype.kind == "b"
    quantile_values = quantiles(present, probabilities)
    with np.errstate(all="ignore"):  # infinities have neither mean nor deviation
        mean = std = None
        if not is_time:
            is_wide = dtype.kind == "f" and dtype.itemsize >= 8
            numbers = present if is_wide else present.astype(np.float64)
            mean, std = float(numbers.mean()), float(numbers.std())
    return replace(
        summary,
        min=_as_python(present.min()),
        max=_as_python(present.max()),
        mean=mean,
        std=std,
        quantiles={}
        if is_bool
        else dict(zip(PROBABILITIES, map(_as_python, quantile_values), strict=True)),
        distinct=len(counts),
        top=_drop_if_distinct([(_as_python(value), count) for value, count in top]),
    )


def _as_python(value: Any) -> Any:
    """Return a Python number. Times stay those of NumPy: Python's have no nanoseconds."""
    return value if isinstance(value, np.datetime64 | np.timedelta64) else value.item()


def _describe_arrays(summary: ColumnSummary, blocks: Iterable[Any]) -> ColumnSummary:
    """Add the statistics of arrays that vary in shape: their lengths, and their elements."""
    lengths: list[int] = []
    arrays: list[AnyArray] = []
    for block in blocks:
        rows = [np.asarray(row) for row in block]
        lengths += [len(row) if row.ndim else 1 for row in rows]
        arrays += [row.reshape(-1) for row in rows if row.size]
    summary = _add_lengths(summary, np.array(lengths, np.int64), "rows")
    kinds = {array.dtype for array in arrays}
    if len(kinds) != 1 or arrays[0].dtype.kind not in "biufmM":
        return replace(summary, elements=sum(array.size for array in arrays))
    total = sum(array.size for array in arrays)
    return _describe_numbers(summary, arrays, arrays[0].dtype, total)


def _add_lengths(summary: ColumnSummary, lengths: Int64, unit: str) -> ColumnSummary:
    if not len(lengths):
        return summary
    bounds = int(lengths.min()), float(lengths.mean()), int(lengths.max())
    return replace(summary, lengths=bounds, unit=unit)


def _describe_text(summary: ColumnSummary, blocks: Iterable[Any]) -> ColumnSummary:
    """Add the statistics of text or bytes. An empty value counts as missing."""
    counter: Counter[Any] = Counter()
    lengths: list[Int64] = []
    for block in blocks:
        rows = block if isinstance(block, Ragged) else Ragged.from_list(list(block))
        lengths.append(rows.lengths)
        counter.update(rows)
    nbytes = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
    missing = int((nbytes == 0).sum())
    return _add_lengths(_add_counter(summary, counter, missing), nbytes, "bytes")


def _add_counter(summary: ColumnSummary, counter: Counter[Any], missing: int) -> ColumnSummary:
    top = _drop_if_distinct(counter.most_common(_MOST_FREQUENT))
    return replace(summary, elements=summary.count, missing=missing, distinct=len(counter), top=top)


def _drop_if_distinct(top: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Return `top`, or an empty list if there are several values and each occurs only once."""
    return top if len(top) == 1 or (top and top[0][1] > 1) else []


def _describe_objects(summary: ColumnSummary, blocks: Iterable[Iterable[Any]]) -> ColumnSummary:
    """Add the statistics of decoded values; they are counted if all of them are hashable."""
    counter: Counter[Any] = Counter()
    missing, is_hashable = 0, True
    for block in blocks:
        values = list(block)
        missing += sum(value is None for value in values)
        try:
            counter.update(values)
        except TypeError:
            is_hashable = False
    if not is_hashable:
        return replace(summary, elements=summary.count, missing=missing)
    return _add_counter(summary, counter, missing)


def _describe_images(summary: ColumnSummary, blocks: Iterable[Any]) -> ColumnSummary:
    """Add the bytes of images, and the sizes of the first ones, if Pillow is installed."""
    sizes: list[tuple[int, int]] = []
    lengths: list[Int64] = []
    for block in blocks:
        if len(sizes) < IMAGES:
            sizes += _image_sizes(block[: IMAGES - len(sizes)])
        lengths.append(block.load().lengths)
    nbytes = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
    summary = _add_lengths(replace(summary, elements=summary.count), nbytes, "bytes")
    if not sizes:
        return summary
    min_width, min_height = np.min(sizes, axis=0).tolist()
    max_width, max_height = np.max(sizes, axis=0).tolist()
    bounds = min_width, max_width, min_height, max_height
    return replace(summary, image_sizes=bounds, images=len(sizes))


def _image_sizes(images: Any) -> list[tuple[int, int]]:
    try:
        return [image.size for image in images._rows()]
    except ImportError:  # Pillow is not installed
        return []
