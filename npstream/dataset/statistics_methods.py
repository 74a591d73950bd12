"""The methods that describe the values of columns and datasets.

They import `npstream.explore` when they are called, so that opening a dataset does not.

Tested in tests/dataset/test_statistics_methods.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from npstream.errors import short_traceback
from npstream.reading.cost_limit import check_cost
from npstream.reading.load import small_samples_view

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from npstream._core.typing import AnyArray
    from npstream.explore.counts import ValueCounts
    from npstream.explore.summary import ColumnSummary, Description
    from npstream.formats.statistics import ColumnStatistics
    from npstream.indexing.columns import Cell
    from npstream.indexing.mesh import Mesh
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source


_VIEW_ROWS = 1 << 16
"""Rows of a mapped file that are copied at once."""


class TextMethods:
    """Methods that search or measure the values of a column of text or bytes: ``ds["text"].str``.

    They read as ``==`` does: block by block, without decoding. They raise CostError if a remote
    column would download more than the limit of implicit reads.

    Examples
    --------
    >>> text = getfixture("example")["text"]
    >>> text.str.contains("o")
    array([ True,  True,  True])
    """

    __slots__ = ("_column",)

    def __init__(self, column: StatisticsMethods) -> None:
        self._column = column

    def contains(self, pattern: str | bytes) -> AnyArray:
        """Return True where a value contains a text.

        Parameters
        ----------
        pattern : str or bytes
            The text itself, not a regular expression; of the type of the column's values.

        Returns
        -------
        ndarray of bool
            Of the view's shape.

        Raises
        ------
        TypeError
            If `pattern` does not have the type of the column's values.

        Examples
        --------
        >>> getfixture("example")["text"].str.contains("ne")
        array([False,  True, False])
        """
        from npstream.explore import text

        with short_traceback:
            (body,) = self._as_bytes((pattern,))  # a tuple raises
            return self._apply(text.has_part(body), bool, "contains")

    def startswith(self, prefix: str | bytes | tuple[str | bytes, ...]) -> AnyArray:
        """Return True where a value begins with a text, or with one of several.

        Parameters
        ----------
        prefix : str, bytes or tuple
            A text, or a tuple of them.

        Returns
        -------
        ndarray of bool
            Of the view's shape.

        Raises
        ------
        TypeError
            If `prefix` does not have the type of the column's values.

        Examples
        --------
        >>> getfixture("example")["text"].str.startswith(("o", "t"))
        array([False,  True,  True])
        """
        from npstream.explore import text

        with short_traceback:
            return self._apply(text.has_end(self._as_bytes(prefix), False), bool, "startswith")

    def endswith(self, suffix: str | bytes | tuple[str | bytes, ...]) -> AnyArray:
        """Return True where a value ends with a text, or with one of several.

        Parameters
        ----------
        suffix : str, bytes or tuple
            A text, or a tuple of them.

        Returns
        -------
        ndarray of bool
            Of the view's shape.

        Raises
        ------
        TypeError
            If `suffix` does not have the type of the column's values.

        Examples
        --------
        >>> getfixture("example")["text"].str.endswith("o")
        array([ True, False,  True])
        """
        from npstream.explore import text

        with short_traceback:
            return self._apply(text.has_end(self._as_bytes(suffix), True), bool, "endswith")

    def len(self) -> AnyArray:
        """Return the length of each value: characters of text, or bytes.

        Returns
        -------
        ndarray of int64
            Of the view's shape.

        Examples
        --------
        >>> getfixture("example")["text"].str.len()
        array([4, 3, 3])
        """
        from npstream.explore import text

        with short_traceback:
            is_text = self._column._field.encoding.kind == "str"
            return self._apply(text.character_counts if is_text else text.byte_counts, int, "len")

    def _as_bytes(self, argument: Any) -> list[bytes]:
        """Return a text, or each text of a tuple, as bytes."""
        from npstream.explore import text

        field = self._column._field
        items = argument if isinstance(argument, tuple) else (argument,)
        return [text.text_bytes(item, field.encoding.kind, field.name) for item in items]

    def _apply(self, function: Any, dtype: type, method: str) -> AnyArray:
        from npstream.explore import text

        column = self._column
        purpose = f"str.{method} of {column._field.name!r}"
        return text.apply_to_rows(
            function, dtype, column._source, column._plan, column._selection, purpose
        )


class StatisticsMethods:
    """Methods of `Column`."""

    __slots__ = ()

    if TYPE_CHECKING:
        _source: Source
        _plan: Plan
        _selection: Selection

        @property
        def _field(self) -> Field: ...

        _mesh: Mesh | None

        @property
        def dtype(self) -> np.dtype[Any]:
            """Dtype of the elements."""

        @property
        def shape(self) -> tuple[int, ...]:
            """Shape of the column."""

        @property
        def size(self) -> int:
            """Number of elements."""

        def load(self, out: Any = None) -> Any:
            """Read the column."""

        _cell: Cell | None

        def _as_array(self) -> AnyArray: ...

        def _flat_rows(self) -> Any: ...

        def _bounds(self, purpose: Any = None) -> Iterator[tuple[int, int]]: ...

        def _rows(self) -> Iterable[Any]: ...

        def __getitem__(self, index: Any) -> Any: ...

    def value_counts(self, dropna: bool = True) -> ValueCounts:
        """Return the distinct values with the number of their occurrences.

        Values are read in blocks. Memory is proportional to the number of distinct values.

        Parameters
        ----------
        dropna : bool, default: True
            Whether to leave out NaN and NaT of numbers and times. Otherwise they count as one
            value.

        Returns
        -------
        ValueCounts
            A mapping of values to counts, the most frequent first. Elements of arrays are counted
            one by one.

        Raises
        ------
        TypeError
            If values are images, arrays that vary in size, or not hashable.

        Examples
        --------
        >>> getfixture("example")["label"][[0, 1, 1]].value_counts()
        <npstream.ValueCounts: 2 distinct values of 'label'
          1  2  66.7%
          0  1  33.3%>
        """
        with short_traceback:
            return self._value_counts(f"value_counts of {self._field.name!r}", dropna)

    def _value_counts(self, purpose: Any, dropna: bool) -> ValueCounts:
        from npstream.explore import text
        from npstream.explore.counts import count_numbers, count_objects

        field = self._field
        kind = field.encoding.kind
        if kind in ("image", "ndarray"):
            raise TypeError(
                f"column {field.name!r} holds {field.encoding.name} values of varying size: only "
                "numbers, text, bytes and hashable objects are counted"
            )
        if kind in (*text.TEXT_KINDS, "object"):
            rows = (self[start:stop].ravel()._rows() for start, stop in self._bounds(purpose))
            return count_objects(field.name, rows, kind)
        blocks = self._number_blocks(purpose)
        return count_numbers(field.name, blocks, self.size, self.dtype, dropna)

    def _number_blocks(self, purpose: Any) -> Iterator[AnyArray]:
        """Yield the numbers in blocks of rows.

        Numbers of small samples in a mapped file are copied to blocks that stay in the processor's
        cache. That is faster than to look up each row.
        """
        cell = self._cell if self._mesh is None else None
        for start, stop in self._bounds(purpose):
            part = self[start:stop]
            view = small_samples_view(self._source, self._field, part._selection, cell)
            if view is None:
                yield part._as_array()
                continue
            for begin in range(0, len(view), _VIEW_ROWS):
                yield np.ascontiguousarray(view[begin : begin + _VIEW_ROWS])

    def unique(self) -> AnyArray:
        """Return the distinct values in ascending order, as `numpy.unique` does for an array.

        Returns
        -------
        ndarray
            NaN occurs once, at the end. Values other than numbers, times, bools and text are
            objects. They are not sorted if Python cannot compare them.

        Raises
        ------
        TypeError
            If values are images, arrays that vary in size, or not hashable.

        Examples
        --------
        >>> getfixture("example")["text"].unique()
        array(['one', 'two', 'zero'], dtype=StringDType())
        """
        with short_traceback:
            counts = self._value_counts(f"unique values of {self._field.name!r}", False)
            try:
                return np.sort(counts.unique)
            except TypeError:  # objects of several types have no order
                return counts.unique

    def quantile(self, q: ArrayLike = 0.5) -> Any:
        """Return quantiles, as `pandas.Series.quantile` does.

        They are interpolated linearly. NaN and NaT are ignored. The column is read into memory.

        Parameters
        ----------
        q : float or array_like of float, default: 0.5
            Probabilities between 0 and 1.

        Returns
        -------
        scalar or ndarray
            Of the shape of `q`; float64 for integers. NaN or NaT if there are no values.

        Raises
        ------
        TypeError
            If values are not numbers or times.
        ValueError
            If a probability is not between 0 and 1.

        Examples
        --------
        >>> getfixture("example")["label"].quantile([0.25, 0.5])
        array([0.5, 1. ])
        """
        from npstream.explore.quantiles import quantiles

        with short_traceback:
            probabilities = np.asarray(q, np.float64)
            if not ((probabilities >= 0) & (probabilities <= 1)).all():
                raise ValueError(f"q={q!r}: probabilities are between 0 and 1")
            self._require_numbers("quantile")
            check_cost(
                self._source, self._selection, f"quantile of {self._field.name!r}", self._plan
            )
            return quantiles(np.asarray(self), probabilities)

    def _require_numbers(self, method: Any) -> None:
        """Raise TypeError unless values are real numbers or times, or their arrays of one shape."""
        from npstream.explore import text

        field, kind = self._field, self.dtype.kind
        if field.encoding.kind in (*text.TEXT_KINDS, "image", "ndarray", "object") or kind == "c":
            raise TypeError(
                f"{method} takes numbers, and column {field.name!r} holds {field.encoding.name}"
            )

    def hist(self, bins: Any = 10, ax: Any = None, **keywords: Any) -> Any:
        """Draw a histogram with matplotlib, as `pandas.Series.hist` does.

        Values are counted in blocks of rows. NaN, NaT and infinities are left out.

        Parameters
        ----------
        bins : int or sequence, default: 10
            Number of bins of equal width, or their edges.
        ax : matplotlib.axes.Axes, optional
            The axes to draw on. By default the current axes of pyplot, or new axes if there are no
            current ones.
        **keywords : Any
            Arguments of `matplotlib.axes.Axes.hist`, such as `color` or `log`.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        TypeError
            If values are not numbers or times.
        MissingDependencyError
            If matplotlib is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("matplotlib").use("agg")
        >>> getfixture("example")["label"].hist(bins=3).get_title()
        'label'
        """
        from npstream.explore.histogram import draw_histogram

        with short_traceback:
            self._require_numbers("hist")
            name = self._field.name

            def read() -> Iterator[AnyArray]:
                return self._number_blocks(f"hist of {name!r}")

            return draw_histogram(name, read, self.dtype, bins, ax, keywords)

    def isin(self, values: Iterable[Any]) -> AnyArray:
        """Return True where a value of the column is one of `values`, as `numpy.isin` does.

        Parameters
        ----------
        values : iterable
            The values to search for. In a column of text or bytes, a value of another type is
            never found.

        Returns
        -------
        ndarray of bool
            Of the column's shape.

        Raises
        ------
        TypeError
            If `values` is a single text, or the column does not hold numbers, text or bytes.

        Examples
        --------
        >>> getfixture("example")["text"].isin(["two", "three"])
        array([False, False,  True])
        """
        from npstream.explore import text

        with short_traceback:
            field = self._field
            kind = field.encoding.kind
            if isinstance(values, text.TEXT_TYPES):
                raise TypeError(f"isin takes several values, such as [{values!r}]")
            if kind in ("image", "ndarray", "object"):
                raise TypeError(
                    f"isin takes numbers, text or bytes, and column {field.name!r} holds "
                    f"{field.encoding.name}"
                )
            if kind not in text.TEXT_KINDS:
                items = values if isinstance(values, np.ndarray) else np.asarray(list(values))
                return np.isin(cast("Any", self), items)
            purpose = f"isin of {field.name!r}"
            test = text.equals_any(text.stored_texts(values, kind))
            return text.apply_to_rows(
                test, bool, self._source, self._plan, self._selection, purpose
            )

    def describe(self, sample: int = 10_000, seed: int = 0) -> ColumnSummary:
        """Return statistics of the values: counts, bounds, mean, quantiles, lengths.

        The statistics of a whole remote column are those of the dataset's side-car. Otherwise,
        all rows are read if the dataset is local and the values are single numbers, times or bools.
        In all other cases, a sample of rows is read.

        Parameters
        ----------
        sample : int, default: 10000
            Maximum rows of the sample. All rows are read if there are at most this number.
        seed : int, default: 0
            Seed of the sample.

        Returns
        -------
        ColumnSummary
            It says which rows it describes, and has `to_pandas`.

        Raises
        ------
        ValueError
            If `sample` is not positive.

        Examples
        --------
        >>> summary = getfixture("example")["label"].describe()
        >>> summary.count, summary.mean, summary.quantiles[0.5]
        (3, 1.0, 1.0)
        """
        from npstream.explore.describe import sidecar_statistics

        with short_traceback:
            _check_sample(sample)
            statistics: Mapping[Any, ColumnStatistics] = {}
            if self._has_plain_rows:
                statistics = sidecar_statistics(self._source, self._selection)
            return self._describe(statistics, sample, seed)

    @property
    def _has_plain_rows(self) -> bool:
        """Whether the column has one axis of rows, and no mesh that selects elements."""
        return len(self._selection.shape) == 1 and self._mesh is None

    def _describe(
        self, statistics: Mapping[Any, ColumnStatistics], sample: int, seed: int
    ) -> ColumnSummary:
        """Describe the column, with the side-car's `statistics` by column name if there are any."""
        from npstream.explore.describe import describe_rows, describe_statistics

        field = self._field
        if statistics and self._has_plain_rows:
            summary = describe_statistics(self._source, field, statistics)
            if summary is not None:
                return summary
        column = self._flat_rows() if len(self._selection.shape) != 1 else self
        if column is None:
            raise ValueError(
                f"column {field.name!r} of shape {self.shape}: describe a view with one axis of "
                "rows, such as ds.ravel()"
            )
        return describe_rows(column, sample, seed)

    # `str` is the last attribute, because after it, the class's body cannot use the type `str`.
    @property
    def str(self) -> TextMethods:
        """Methods of text columns: `contains`, `startswith`, `endswith` and `len`."""
        from npstream.explore import text

        field = self._field
        if field.encoding.kind not in text.TEXT_KINDS:
            raise AttributeError(
                f"column {field.name!r} holds {field.encoding.name} values: only columns of text "
                "and bytes have .str"
            )
        return TextMethods(self)


def _check_sample(sample: int) -> None:
    if not isinstance(sample, int) or sample < 1:
        raise ValueError(f"sample={sample!r}: the number of rows is a positive integer")


class DescriptionMethods:
    """Methods of `Dataset`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def columns(self) -> tuple[str, ...]:
            """Names of the columns."""

        @property
        def size(self) -> int:
            """Number of samples in the view."""

        def ravel(self) -> DescriptionMethods:
            """Return the samples as a 1-d view."""

        def _column(self, name: str) -> StatisticsMethods: ...

    def describe(self, sample: int = 10_000, seed: int = 0) -> Description:
        """Return statistics of all columns: counts, bounds, mean, quantiles, lengths.

        The statistics of a whole remote dataset are those of its side-car: one request reads them.
        Otherwise, all rows of a column are read if the dataset is local and the values are single
        numbers, times or bools. For other columns, a sample of rows is read. Transforms of the
        view are not applied.

        Parameters
        ----------
        sample : int, default: 10000
            Maximum rows of the sample. All rows are read if there are at most this number.
        seed : int, default: 0
            Seed of the sample.

        Returns
        -------
        Description
            A mapping of names to `ColumnSummary`, with text, HTML and `to_pandas`. It says which
            rows it describes.

        Raises
        ------
        ValueError
            If `sample` is not positive.
        CostError
            If a remote view would download more than the limit of implicit reads.

        Examples
        --------
        >>> getfixture("example").describe()
        <npstream.Description: 3 rows, 2 columns
        <BLANKLINE>
          column  type   missing  distinct  mean     std  min  25%  50%  75%  max
          label   int64        0         3     1  0.8165    0  0.5    1  1.5    2
        <BLANKLINE>
          column  type  missing  distinct                     lengths  most frequent
          text    str         0         3  3 to 4 bytes, mean 3.333
        <BLANKLINE>
          all 3 rows.>
        """
        from npstream.explore.describe import sidecar_statistics
        from npstream.explore.summary import Description

        with short_traceback:
            _check_sample(sample)
            view = self.ravel()
            columns = [view._column(name) for name in self.columns]
            by_source: dict[int, Mapping[Any, ColumnStatistics]] = {}
            for column in columns:
                source = column._source
                if id(source) not in by_source:  # added columns have sources of their own
                    by_source[id(source)] = sidecar_statistics(source, column._selection)
            return Description(
                self.size, [c._describe(by_source[id(c._source)], sample, seed) for c in columns]
            )
