"""Indices of a column, taken apart into those of rows and those of values."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

Items = tuple[Any, ...]


def split_index(index: Any, row_axes: int, shape: tuple[int, ...]) -> tuple[Items, Items, bool]:
    """Split an index of a whole array into one of its rows and one of its values.

    Parameters
    ----------
    index : object
        Whatever stands in the brackets.
    row_axes : int
        How many of the first axes are the rows'.
    shape : tuple of int
        The array's.

    Returns
    -------
    rows, cells : tuple
        `cells` holds ints, slices and arrays of int, all within bounds.
    separable : bool
        Whether ``array[rows][(slice(None),) * k + cells]``, where k axes are left of the rows',
        is what NumPy gives; where not, `rows` holds no masks.

    Raises
    ------
    IndexError, TypeError
        In NumPy's words, for what concerns `cells`.
    """
    items = index if isinstance(index, tuple) else (index,)
    if len(items) == 1 and row_axes == 1 and np.ndim(items[0]) <= 1 and items[0] is not Ellipsis:
        return items, (), True
    items = _expanded(tuple(map(_as_item, items)), index, shape)
    rows, cells = items[:row_axes], items[row_axes:]
    if any(item is None or isinstance(item, bool) for item in cells):
        raise IndexError(f"{index!r}: None and bools do not index a column; reshape what load() gives")
    rows_advanced = any(isinstance(item, np.ndarray) for item in rows)
    cells_basic = not any(isinstance(item, np.ndarray) for item in cells)
    # NumPy moves the axis of an array to the front if a slice stands between it and an int.
    moves = (
        rows_advanced
        and any(isinstance(item, slice) for item in rows)
        and any(isinstance(item, int) for item in cells)
    )
    indexed_shape(shape, (slice(None),) * row_axes + cells)  # for its exceptions
    if cells_basic and not moves:
        return rows, cells, True
    flat: list[Any] = []
    for item in rows:
        is_mask = isinstance(item, np.ndarray) and item.dtype == bool
        flat += np.nonzero(_fitting(item, shape, len(flat))) if is_mask else [item]
    return tuple(flat), cells, False


def indexed_shape(shape: tuple[int, ...], index: Items) -> tuple[int, ...]:
    """Return the shape of an array of that shape, indexed, at no cost in its first, whole axes."""
    whole = 0
    while whole < len(index) and _is_whole(index[whole]):
        whole += 1
    rest = index[whole:]
    # A stand-in for the rows, of length 1, so that axes are counted as the user does.
    stand_in = np.broadcast_to(np.False_, (1,) * whole + shape[whole:])
    result = stand_in[(slice(None),) * whole + rest].shape
    advanced = [place for place, item in enumerate(rest) if not isinstance(item, slice)]
    arrays = [rest[place] for place in advanced]
    separated = bool(advanced) and advanced[-1] - advanced[0] >= len(advanced)
    at = 0
    if separated and any(isinstance(item, np.ndarray) for item in arrays):
        at = np.broadcast(*arrays).ndim  # the arrays' axes come first
    return result[:at] + shape[:whole] + result[at + whole :]


def _is_whole(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def _as_item(item: Any) -> Any:
    """Return an index of one or more axes as an int, a slice, an array, None, bool or Ellipsis."""
    if item is None or item is Ellipsis or isinstance(item, slice | bool):
        return item
    array = np.asarray(item)
    if array.size == 0 and isinstance(item, list):
        array = array.astype(np.int64)
    if array.ndim == 0 and array.dtype.kind in "iu":
        return operator.index(array)
    return array


def _expanded(items: Items, index: Any, shape: tuple[int, ...]) -> Items:
    """Give each axis an item of its own: no Ellipsis, no mask of several axes."""
    flat: list[Any] = []
    ellipses = sum(item is Ellipsis for item in items)
    used = sum(
        item.ndim if isinstance(item, np.ndarray) and item.dtype == bool else 1
        for item in items
        if item is not Ellipsis and item is not None
    )
    if ellipses > 1 or used > len(shape):
        np.broadcast_to(np.False_, shape)[index]  # raises, in NumPy's words
    for item in items:
        if item is Ellipsis:
            flat += [slice(None)] * (len(shape) - used)
        elif isinstance(item, np.ndarray) and item.dtype == bool and item.ndim > 1:
            flat += np.nonzero(_fitting(item, shape, len(flat)))
        else:
            flat.append(item)
    return tuple(flat)


def _fitting(mask: np.ndarray[Any, Any], shape: tuple[int, ...], axis: int) -> Any:
    """Return the mask if it has the lengths of the axes that it stands for."""
    for place, length in enumerate(mask.shape):
        if length != shape[axis + place]:
            raise IndexError(
                f"boolean index did not match indexed array along axis {axis + place}; size of "
                f"axis is {shape[axis + place]} but size of corresponding boolean axis is {length}"
            )
    return mask
