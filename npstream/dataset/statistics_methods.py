"""The methods that describe the values of columns and datasets.

Tested in tests/dataset/test_statistics_methods.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from npstream.errors import short_traceback
from npstream.explore import text
from npstream.explore.counts import ValueCounts, count_numbers, count_objects
from npstream.explore.quantiles import quantiles
from npstream.reading.cost_limit import check_cost

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from npstream._core.typing import AnyArray
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source


class TextMethods:
    """Tests of the values of a column of text or bytes: ``ds["text"].str``.

    They read as ``==`` does: block by block, without decoding. A remote column is read up to the
    limit of implicit reads.

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
        with short_traceback:
            (body,) = self._bodies(pattern)
            return self._test(text.has_part(body), bool, "contains")

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
        with short_traceback:
            return self._test(text.has_end(self._bodies(prefix), False), bool, "startswith")

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
        with short_traceback:
            return self._test(text.has_end(self._bodies(suffix), True), bool, "endswith")

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
        with short_traceback:
            is_text = self._column._field.encoding.kind == "str"
            return self._test(text.character_counts if is_text else text.byte_counts, int, "len")

    def _bodies(self, argument: Any) -> list[bytes]:
        """Return an argument, or those of a tuple, as bytes."""
        field = self._column._field
        items = argument if isinstance(argument, tuple) else (argument,)
        return [text.text_bytes(item, field.encoding.kind, field.name) for item in items]

    def _test(self, function: Any, dtype: type, method: str) -> AnyArray:
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

        @property
        def dtype(self) -> np.dtype[Any]:
            """Dtype of the elements."""

        def _bounds(self, purpose: Any = None) -> Iterator[tuple[int, int]]: ...

        def _blocks(self, purpose: Any = None) -> Iterator[AnyArray]: ...

        def _rows(self) -> Iterable[Any]: ...

        def __getitem__(self, index: Any) -> Any: ...

    def value_counts(self, dropna: bool = True) -> ValueCounts:
        """Return the distinct values with the number of their occurrences.

        Values are read in blocks. Memory is proportional to the number of distinct values.

        Parameters
        ----------
        dropna : bool, default: True
            Whether to leave out NaN and NaT. Otherwise they count as one value.

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
        return count_numbers(field.name, self._blocks(purpose), self.dtype, dropna)

    def unique(self) -> AnyArray:
        """Return the distinct values in ascending order, as `numpy.unique` does for an array.

        Returns
        -------
        ndarray
            NaN occurs once, at the end. Values other than numbers and text are objects.

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
        """Return quantiles, interpolated linearly, without NaN: as `pandas.Series.quantile` does.

        The column is read into memory.

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
        """Raise TypeError unless the values are real numbers or times of one size."""
        field, kind = self._field, self.dtype.kind
        if field.encoding.kind in (*text.TEXT_KINDS, "image", "ndarray", "object") or kind == "c":
            raise TypeError(
                f"{method} takes numbers, and column {field.name!r} holds {field.encoding.name}"
            )

    def isin(self, values: Iterable[Any]) -> AnyArray:
        """Return True where a value equals one of some values, as `numpy.isin` does.

        Parameters
        ----------
        values : iterable
            Values of another type equal none of text or bytes.

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

    # `str` is the last attribute: in the class's body, it hides the type.
    @property
    def str(self) -> TextMethods:
        """Tests of text: `contains`, `startswith`, `endswith` and `len`."""
        field = self._field
        if field.encoding.kind not in text.TEXT_KINDS:
            raise AttributeError(
                f"column {field.name!r} holds {field.encoding.name} values: only columns of text "
                "and bytes have .str"
            )
        return TextMethods(self)
