"""Provide `sort_order`, the order of rows by the values of columns.

Tested in tests/dataset/test_view_methods.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from npstream._core import array_like
from npstream._core.typing import AnyArray, Bools, Int64

__all__ = ["sort_order"]


def sort_order(columns: Mapping[str, Any], descending: Mapping[str, bool]) -> Int64:
    """Return the positions of rows in sorted order.

    The sort is stable: rows with equal values keep their order, even if a column is sorted in
    descending order. None, NaN and NaT come last.

    Parameters
    ----------
    columns : mapping of str to array_like
        The values of each column, all of one length. The first column is the primary sort key.
    descending : mapping of str to bool
        Whether the greatest value of a column comes first.

    Returns
    -------
    ndarray of int64

    Raises
    ------
    TypeError
        If values of a column have no order.

    Examples
    --------
    >>> sort_order({"x": [2.0, np.nan, 1.0]}, {"x": False})
    array([2, 0, 1])
    """
    order: Int64 | None = None
    for name, values in reversed(list(columns.items())):
        array = _as_array(values)
        if order is not None:
            array = array[order]
        column_order = _stable_order(name, array, descending[name])
        order = column_order if order is None else order[column_order]
    assert order is not None
    return order


def _as_array(values: Any) -> AnyArray:
    array = np.asarray(values)
    if array.dtype.kind == "V":  # NumPy does not sort the dtypes of ml_dtypes
        array = array.astype(np.float32)
    return array


def _stable_order(name: str, values: AnyArray, descending: bool) -> Int64:
    """Return the stable order of one column."""
    missing = _missing(values)
    if missing is None:
        return _order_of_present(name, values, descending)
    present = np.flatnonzero(~missing)
    order = _order_of_present(name, values[present], descending)
    return np.concatenate([present[order], np.flatnonzero(missing)])


def _missing(values: AnyArray) -> Bools | None:
    """Return True for missing values; None if there are none."""
    kind = values.dtype.kind
    if kind == "O":
        missing = np.fromiter(map(_is_missing, values), bool, len(values))
    elif kind in "fc":
        missing = np.isnan(values)
    elif kind in "Mm":
        missing = np.isnat(values)
    else:
        return None
    return missing if missing.any() else None


def _is_missing(value: Any) -> bool:
    if array_like.is_missing(value):
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError, ArithmeticError):  # an array, or a signaling NaN of Decimal
        return False


def _order_of_present(name: str, values: AnyArray, descending: bool) -> Int64:
    if values.dtype.kind == "O":
        return _order_of_objects(name, values.tolist(), descending)
    if not descending:
        return np.argsort(values, kind="stable").astype(np.int64, copy=False)
    # Reversing an ascending order would also reverse the order of equal values. So the values are
    # reversed before the sort as well.
    order = np.argsort(values[::-1], kind="stable")[::-1]
    return (len(values) - 1 - order).astype(np.int64, copy=False)


def _order_of_objects(name: str, values: list[Any], descending: bool) -> Int64:
    try:
        order = sorted(range(len(values)), key=values.__getitem__, reverse=descending)
    except (TypeError, ValueError) as error:
        kinds = sorted({type(value).__name__ for value in values})
        raise TypeError(
            f"column {name!r} cannot be sorted: its values, of type {', '.join(kinds)}, have no "
            f"order ({error}): sort by another column, or index with an order of your own, as in "
            "ds[numpy.argsort(keys, kind='stable')]"
        ) from None
    return np.array(order, np.int64)
