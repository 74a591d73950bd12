"""DataFrames and Series of pandas as columns to write.

Tested in tests/writing/test_frames.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.optional import import_optional
from npstream._core.typing import AnyArray
from npstream.writing.inputs.arrow_columns import ArrowColumn
from npstream.writing.tables import InputColumn, ListColumn, MaskedColumn

if TYPE_CHECKING:
    from npstream.writing.inputs.fill import Fill

__all__ = ["frame_columns", "series_column"]


def frame_columns(frame: Any, names: Collection[str] | None = None) -> dict[str, Any]:
    """Return the columns of a DataFrame by name, those of its index first.

    Parameters
    ----------
    frame : DataFrame
    names : collection of str, optional
        The columns to return; by default all. With `names`, an index without a name is left out.

    Raises
    ------
    TypeError, ValueError
        If an index other than a RangeIndex has no name, a name is not a str, or a name occurs
        twice.
    """
    index = frame.index
    levels = list(index.names)
    if levels == [None] and type(index).__name__ == "RangeIndex":
        levels = []  # row numbers
    elif None in levels and names is None:
        raise ValueError(
            f"the index of the DataFrame is of type {type(index).__name__} and has no name: call "
            "reset_index(drop=True) to leave it out, or reset_index() to keep it as a column"
        )

    def is_written(name: object) -> bool:
        return names is None or name in names

    values = [(name, index.get_level_values(name)) for name in levels if is_written(name)]
    values += [(name, frame.iloc[:, k]) for k, name in enumerate(frame.columns) if is_written(name)]
    for name, _ in values:
        if not isinstance(name, str):
            raise TypeError(
                f"column {name!r}: column names must be str, and this is of type "
                f"{type(name).__name__}: rename the columns, as with "
                "frame.columns = [str(name) for name in frame.columns], or call rename(columns=...)"
            )
    for name, count in Counter(name for name, _ in values).items():
        if count > 1:
            holders, remedy = f"{count} columns have", "loc[:, ~frame.columns.duplicated()]"
            if name in levels:
                holders, remedy = "the index and a column have", f"drop(columns={name!r})"
            raise ValueError(
                f"column {name!r}: {holders} this name: rename one, as with frame.columns = [...], "
                f"or drop it, as with frame.{remedy}"
            )
    return dict(values)


def series_column(
    values: Any, fill: Fill, array_column: Callable[[Any, Fill], InputColumn]
) -> InputColumn:
    """Return a Series, Index or array of pandas as a column.

    Parameters
    ----------
    values : Series, Index or ExtensionArray
    fill : Fill
        Replaces missing values.
    array_column : callable
        Returns the column for a NumPy array and a fill.
    """
    dtype = values.dtype
    is_text = dtype.name in ("str", "string")
    if hasattr(dtype, "pyarrow_dtype") or (is_text and _is_arrow_text(dtype)):
        return ArrowColumn(import_optional("pyarrow", "pyarrow", "arrow").array(values), fill)
    if (problem := _problem(dtype)) is not None:
        raise TypeError(f"pandas's {dtype} {problem}, or leave the column out of columns=")
    number_dtype = dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None)
    is_category = hasattr(dtype, "categories")
    if is_category or is_text or hasattr(dtype, "numpy_dtype"):
        missing = np.asarray(values.isna())
        if missing.any():
            return _with_missing(values, missing, fill, array_column)
    if is_category:
        values = values.astype(dtype.categories.dtype)
        if isinstance(values, np.ndarray):
            return array_column(values, fill)
        return series_column(values, fill, array_column)
    if hasattr(dtype, "subtype") and hasattr(dtype, "fill_value"):
        number_dtype = dtype.subtype  # the dtype of a sparse array's values
    if number_dtype is not None and number_dtype.kind != "O":
        return array_column(values.to_numpy(dtype=number_dtype), fill)
    return ListColumn(values.tolist(), "str" if is_text and not len(values) else None, fill)


def _problem(dtype: Any) -> str | None:
    """Return the problem and the fix for a dtype without an encoding; None for other dtypes."""
    name = type(dtype).__name__
    if name == "DatetimeTZDtype":
        return (
            "has a time zone, which datetime64 does not: convert it, as with .dt.tz_convert(None), "
            "which gives UTC"
        )
    if name in ("PeriodDtype", "IntervalDtype"):
        call = ".dt.to_timestamp()" if name == "PeriodDtype" else ".astype(str)"
        return f"has no encoding: convert the column, as with {call}"
    return None


def _is_arrow_text(dtype: Any) -> bool:
    return getattr(dtype, "storage", "") == "pyarrow" and find_spec("pyarrow") is not None


def _with_missing(
    values: Any,
    missing: AnyArray,
    fill: Fill,
    array_column: Callable[[Any, Fill], InputColumn],
) -> InputColumn:
    """Return a column with a mask of missing values."""
    dtype = values.dtype
    number_dtype = getattr(dtype, "numpy_dtype", None)
    if number_dtype is not None:
        column = array_column(
            values.to_numpy(dtype=number_dtype, na_value=number_dtype.type(0)), fill
        )
        return MaskedColumn(column, missing, fill)
    categories: Any = getattr(dtype, "categories", None)
    is_number = categories is not None and isinstance(categories.dtype, np.dtype)
    if is_number and categories.dtype.kind != "O" and not missing.all():
        codes = np.asarray(getattr(values, "cat", values).codes)
        numbers = categories.to_numpy()[np.where(missing, 0, codes)]
        return MaskedColumn(array_column(numbers, fill), missing, fill)
    objects: AnyArray = np.array(values.astype(object), object)
    objects[missing] = None
    return MaskedColumn(ListColumn(objects.tolist()), missing, fill)
