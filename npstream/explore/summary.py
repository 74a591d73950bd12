"""Provide the results of ``describe``: statistics that are shown as text, HTML or pandas tables.

Tested in tests/explore/test_describe.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.optional import import_optional
from npstream.explore.display import MAX_COLUMNS, truncate, value_text

__all__ = ["PROBABILITIES", "ColumnSummary", "Description", "align_cells"]

PROBABILITIES = (0.25, 0.5, 0.75)
"""The quantiles of a description."""

_NAME_WIDTH = 24
"""Characters of a column's name that are shown."""

_TOP_WIDTH = 20
"""Characters of a most frequent value that are shown."""


@dataclass(frozen=True)
class ColumnSummary:
    """Statistics of a column: the result of ``column.describe()``.

    Unknown statistics are None.

    Attributes
    ----------
    name : str
        The column's name.
    type : str
        Its encoding.
    rows : int
        Number of rows of the view.
    count : int
        Number of rows that were examined: all, or those of a sample.
    origin : str
        ``"side-car"``, ``"rows"`` or ``"sample"``: what the statistics are computed from.
    elements : int
        Number of values, counting each element of arrays.
    missing : int
        Number of NaN, NaT, empty texts and nulls.
    min, max : scalar or None
        Bounds of the numbers that are not missing.
    mean, std : float or None
        Mean and standard deviation of these numbers. As with `numpy.std`, the standard deviation
        divides by the number of values.
    quantiles : dict of float to scalar
        Quantiles of these numbers, by probability.
    rank_error : float
        Estimated maximum error of the probabilities of `quantiles`. With an error of 0.01, the
        value for 0.5 is the exact quantile of a probability from 0.49 to 0.51. 0 if all are exact.
    distinct : int or None
        Number of distinct values.
    top : list of tuple
        The most frequent values, each with its count.
    top_error : int
        Bound of the error of these counts: the true count can be higher by at most this number. If
        the counts are extrapolated from a sample, it is positive, but not a bound.
    lengths : tuple or None
        Minimum, mean and maximum length of values that vary in length.
    unit : str
        The unit of `lengths`: ``"bytes"``, or ``"rows"`` for arrays. The rows of an array are
        counted along its first axis.
    image_sizes : tuple or None
        Minimum width, maximum width, minimum height and maximum height in pixels, of the images
        that were opened.
    images : int
        Number of images that were opened.
    """

    name: str
    type: str
    rows: int
    count: int
    origin: str
    elements: int = 0
    missing: int = 0
    min: Any = None
    max: Any = None
    mean: float | None = None
    std: float | None = None
    quantiles: dict[float, Any] = field(default_factory=dict)
    rank_error: float = 0.0
    distinct: int | None = None
    top: list[tuple[Any, int]] = field(default_factory=list)
    top_error: int = 0
    lengths: tuple[int, float, int] | None = None
    unit: str = ""
    image_sizes: tuple[int, int, int, int] | None = None
    images: int = 0

    @property
    def has_numbers(self) -> bool:
        """Whether `min` is known, as for numbers, times and bools that are not all missing."""
        return self.min is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics under the names of `pandas.DataFrame.describe`, in its order.

        Returns
        -------
        dict
            The known statistics. Unknown statistics have no key.
        """
        top, freq = self.top[0] if self.top else (None, None)
        low, mean, high = self.lengths or (None, None, None)
        min_width, max_width, min_height, max_height = self.image_sizes or (None,) * 4
        statistics = {
            "count": self.count,
            "missing": self.missing,
            "unique": self.distinct,
            "top": top,
            "freq": freq,
            "mean": self.mean,
            "std": self.std,
            "min": self.min,
            **{f"{p:.0%}": value for p, value in self.quantiles.items()},
            "max": self.max,
            "min length": low,
            "mean length": mean,
            "max length": high,
            "min width": min_width,
            "max width": max_width,
            "min height": min_height,
            "max height": max_height,
        }
        return {key: value for key, value in statistics.items() if value is not None}

    def __repr__(self) -> str:
        statistics = self._statistics()
        width = max(len(name) for name, _ in statistics)
        lines = [f"<npstream.ColumnSummary {truncate(repr(self.name))}: {self.type}"]
        lines += [f"  {name:{width}}  {value}" for name, value in statistics]
        return "\n".join(lines) + ">"

    def _repr_html_(self) -> str:
        from npstream.rendering.html import table

        caption = f"{truncate(self.name)}: {self.type}"
        return table(["statistic", "value"], self._statistics(), caption=caption, index=1)

    def to_pandas(self) -> Any:
        """Return the statistics as a series of objects.

        Returns
        -------
        pandas.Series

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        pandas = import_optional("pandas", "pandas", "pandas")
        return pandas.Series(self.to_dict(), name=self.name, dtype=object)

    def _statistics(self) -> list[tuple[str, str]]:
        """Return names and values of all known statistics as text."""
        statistics = [("rows", self.origin_text())]
        statistics += [
            (name, text) for name, text in zip(_NUMBER_HEADERS[2:], self.numbers(), strict=True)
        ]
        statistics += [("lengths", self.lengths_text()), ("image sizes", self.sizes_text())]
        statistics += [("most frequent", self.top_text(k)) for k in range(min(len(self.top), 5))]
        if self.images:
            statistics.append(("images opened", f"{self.images:,}"))
        if self.rank_error:
            statistics.append(("quantiles", f"within {self.rank_error:.1%} of the ranks"))
        return [(name, text) for name, text in statistics if text]

    def origin_text(self, has_unit: bool = False) -> str:
        """Return which rows were examined, such as "all 5"; with `has_unit`, "all 5 rows"."""
        rows = quantity(self.rows, "row") if has_unit else f"{self.rows:,}"
        if self.origin == "sample":
            return f"a sample of {self.count:,} of {rows}"
        return f"all {rows}" + (", by the side-car" if self.origin == "side-car" else "")

    def numbers(self) -> list[str]:
        """Return the cells of a column with numbers, in its row of the table.

        The cells of the name and the type are left out.
        """
        distinct = "" if self.distinct is None else f"{self.distinct:,}"
        prefix = "~" if self.rank_error else ""
        quantiles = [
            prefix + _number_text(self.quantiles[p]) if p in self.quantiles else ""
            for p in PROBABILITIES
        ]
        cells = [_number_text(x) for x in (self.mean, self.std, self.min)]
        return [f"{self.missing:,}", distinct, *cells, *quantiles, _number_text(self.max)]

    def others(self) -> list[str]:
        """Return the cells of a column without numbers, in its row of the table.

        The cells of the name and the type are left out.
        """
        distinct = "" if self.distinct is None else f"{self.distinct:,}"
        sizes = self.sizes_text()
        lengths = ", ".join(text for text in (self.lengths_text(), sizes) if text)
        return [f"{self.missing:,}", distinct, lengths, self.top_text(0) if self.top else ""]

    def lengths_text(self) -> str:
        """Return the lengths of values."""
        if self.lengths is None:
            return ""
        low, mean, high = self.lengths
        if low == high:
            return f"{low:,} {self.unit}"
        return f"{low:,} to {high:,} {self.unit}, mean {_number_text(mean)}"

    def sizes_text(self) -> str:
        """Return the sizes of images."""
        if self.image_sizes is None:
            return ""
        min_width, max_width, min_height, max_height = self.image_sizes
        widths = f"{max_width}" if min_width == max_width else f"{min_width} to {max_width}"
        heights = f"{max_height}" if min_height == max_height else f"{min_height} to {max_height}"
        return f"{widths} x {heights} pixels"

    def top_text(self, number: int) -> str:
        """Return a most frequent value and its share of the examined values."""
        value, count = self.top[number]
        text = value_text(value) if not isinstance(value, str) else repr(value)
        text = text if len(text) <= _TOP_WIDTH else text[: _TOP_WIDTH - 3] + "..."
        prefix = "~" if self.top_error else ""
        return f"{text} ({prefix}{count / max(self.elements or self.count, 1):.2%})"


def _number_text(value: Any) -> str:
    """Return a number as text of about ten characters or fewer."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_ | np.datetime64 | np.timedelta64):
        return str(value)
    if isinstance(value, int | np.integer) and abs(int(value)) < 10**9:
        return f"{value:,}"
    if isinstance(value, float) and value.is_integer() and abs(value) < 10**9:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if 10**4 <= abs(value) < 10**9 else f"{value:,.4g}"


_NUMBER_HEADERS = [
    "column", "type", "missing", "distinct", "mean", "std", "min",
    *(f"{p:.0%}" for p in PROBABILITIES), "max",
]  # fmt: skip

_OTHER_HEADERS = ["column", "type", "missing", "distinct", "lengths", "most frequent"]


class Description(Mapping[str, ColumnSummary]):
    """Statistics of the columns of a view: the result of ``ds.describe()``.

    A mapping of column names to `ColumnSummary`.

    Parameters
    ----------
    rows : int
        Number of rows of the view.
    columns : sequence of ColumnSummary
        The statistics of each column, in the order of the view.

    Examples
    --------
    >>> description = getfixture("example").describe()
    >>> description["label"].max, description["text"].lengths[2]
    (2, 4)
    """

    __slots__ = ("_columns", "_rows")

    def __init__(self, rows: int, columns: Sequence[ColumnSummary]) -> None:
        self._rows = rows
        self._columns = {column.name: column for column in columns}

    def __getitem__(self, name: str) -> ColumnSummary:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def to_pandas(self) -> Any:
        """Return a table of the statistics, as `pandas.DataFrame.describe` does.

        Returns
        -------
        pandas.DataFrame
            A row for each statistic, and a column for each column; unknown statistics are NaN.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("pandas")
        >>> getfixture("example").describe().to_pandas().loc["max", "label"]
        2
        """
        pandas = import_optional("pandas", "pandas", "pandas")
        columns = {name: column.to_dict() for name, column in self.items()}
        keys = {key for column in columns.values() for key in column}
        names = [key for key in _PANDAS_ORDER if key in keys]
        table = {name: [column.get(key) for key in names] for name, column in columns.items()}
        return pandas.DataFrame(table, names, dtype=object).fillna(np.nan)

    def __repr__(self) -> str:
        size = f"{quantity(self._rows, 'row')}, {quantity(len(self), 'column')}"
        lines = [f"<npstream.Description: {size}"]
        for headers, rows in self._tables():
            lines += ["", *align_cells([headers, *rows], 2)]
        hidden = len(self) - MAX_COLUMNS
        if hidden > 0:
            lines.append(f"  ... and {quantity(hidden, 'more column')}")
        return "\n".join([*lines, "", *(f"  {line}" for line in self._origins())]) + ">"

    def _repr_html_(self) -> str:
        from npstream.rendering.html import table

        tables = self._tables()
        size = f"{quantity(self._rows, 'row')}, {quantity(len(self), 'column')}"
        footer = " ".join(self._origins())
        return "".join(
            table(
                headers,
                rows,
                caption="" if number else size,
                footer="" if number < len(tables) - 1 else footer,
                numeric=range(2, len(headers) if headers is _NUMBER_HEADERS else 4),
                index=1,
            )
            for number, (headers, rows) in enumerate(tables)
        )

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """Return the headers and rows of the tables that are shown."""
        columns = list(self.values())[:MAX_COLUMNS]
        numbers = [[*_titles(c), *c.numbers()] for c in columns if c.has_numbers]
        others = [[*_titles(c), *c.others()] for c in columns if not c.has_numbers]
        tables = [(_NUMBER_HEADERS, numbers), (_OTHER_HEADERS, others)]
        return [(headers, rows) for headers, rows in tables if rows]

    def _origins(self) -> list[str]:
        """Return lines that say what the statistics are computed from."""
        by_origin: dict[str, list[str]] = {}
        for column in self.values():
            by_origin.setdefault(column.origin_text(has_unit=True), []).append(column.name)
        lines = []
        for origin, names in by_origin.items():
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            prefix = "" if len(by_origin) == 1 else f"{', '.join(map(truncate, names[:5]))}{more}: "
            lines.append(f"{prefix}{origin}.")
        error = max((column.rank_error for column in self.values()), default=0.0)
        if error:
            lines.append(f"~ is approximate: quantiles are within {error:.1%} of the ranks.")
        return lines


def _titles(column: ColumnSummary) -> list[str]:
    return [_short(column.name), _short(column.type)]


def _short(text: str) -> str:
    return text if len(text) <= _NAME_WIDTH else text[: _NAME_WIDTH - 3] + "..."


_PANDAS_ORDER = [
    "count", "missing", "unique", "top", "freq", "mean", "std", "min",
    *(f"{p:.0%}" for p in PROBABILITIES), "max",
    "min length", "mean length", "max length", "min width", "max width", "min height", "max height",
]  # fmt: skip


def align_cells(rows: Sequence[Sequence[str]], left_cells: int) -> list[str]:
    """Return each row of cells as a line.

    The first `left_cells` cells are aligned to the left, the others to the right.

    Examples
    --------
    >>> align_cells([["a", "n"], ["bcd", "10"]], 1)
    ['  a     n', '  bcd  10']
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            f"{cell:<{width}}" if k < left_cells else f"{cell:>{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
