"""Indices of columns: splits them into rows and elements, and finds the bytes of the elements.

The index of a column has items for the row axes, then items for the axes of each value. The latter
items select a part of every value. A part that is an int or a range along each axis is a `Cell`.

Tested in tests/dataset/test_column.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, NoReturn, TypeAlias

import numpy as np

from npstream._core.typing import AnyArray, Shape
from npstream.errors import short_repr
from npstream.indexing.selection import normalize_item

Items: TypeAlias = tuple[Any, ...]
"""Items of an index. `split_index` returns ints, slices and arrays, and a leading Ellipsis."""


def raise_if_column_names(index: Any) -> None:
    """Raise IndexError if an index of a dataset's rows contains column names.

    Examples
    --------
    >>> raise_if_column_names((0, "label"))
    Traceback (most recent call last):
    ...
    IndexError: ds[0, 'label']: an index has rows or names, not both: write ds['label'][0]
    """
    items = index if isinstance(index, tuple) else ()
    names = [item for item in items if isinstance(item, str)]
    if not names:
        return
    text = ", ".join(map(_index_text, items))
    rows = [item for item in items if not isinstance(item, str)]
    if not rows:
        raise IndexError(f"ds[{text}]: a list picks several columns: write ds[{names}]") from None
    column = repr(names[0]) if len(names) == 1 else names
    fix = f"ds[{column}][{', '.join(map(_index_text, rows))}]"
    raise IndexError(f"ds[{text}]: an index has rows or names, not both: write {fix}") from None


def _index_text(item: Any) -> str:
    """Return an item of an index as a user writes it in brackets."""
    if not isinstance(item, slice):
        return short_repr(item)
    parts = [item.start, item.stop] + [item.step] * (item.step is not None)
    return ":".join("" if part is None else short_repr(part) for part in parts)


def split_index(index: Any, row_axes: int, shape: Shape) -> tuple[Items, Items, bool]:
    """Split the items of a column's index into those for its rows and those for each value.

    Parameters
    ----------
    index : object
        The index, as ``array[index]`` receives it.
    row_axes : int
        Number of row axes, which are the array's first axes.
    shape : tuple of int
        Shape of the array: its row axes, then the axes of a value.

    Returns
    -------
    row_items, value_items : tuple
        Ints, slices and arrays. `row_items` has at most one item for each row axis. `value_items`
        has items for the first axes of a value. If `row_items` begins with an Ellipsis, indexing
        must return an array, even an array without axes.
    separable : bool
        True if NumPy's result equals ``array[row_items][(slice(None),) * k + value_items]``, where
        k is the number of row axes that ``array[row_items]`` still has.

    Raises
    ------
    IndexError, TypeError
        If NumPy raises this exception for the index. Errors that concern `row_items`
        alone are left to `Selection.select`.

    Examples
    --------
    >>> split_index((..., 0), 1, (10, 4))
    ((slice(None, None, None),), (0,), True)
    """
    if row_axes == 1 and (
        type(index) in (int, slice) or (type(index) is np.ndarray and index.ndim == 1)
    ):
        return (index,), (), True  # the most common indices, which need none of the checks below
    index_items = index if isinstance(index, tuple) else (index,)
    items = _expand_index(tuple(map(normalize_item, index_items)), index, shape)
    row_items, value_items = items[:row_axes], items[row_axes:]
    row_kinds, value_kinds = set(map(type, row_items)), set(map(type, value_items))
    if not value_kinds <= {int, slice}:
        _check_value_items(value_items, row_axes, shape)
    for item, length in zip(value_items, shape[row_axes:], strict=False):
        if type(item) is int and not -length <= item < length:
            _raise_index_error(index, shape)
    # NumPy treats an int next to an array as an array, too. If a slice stands between them, the
    # array's axis moves to the front.
    if np.ndarray in value_kinds or (int in value_kinds and {np.ndarray, slice} <= row_kinds):
        return row_items, value_items, False
    # If all items are ints, NumPy returns an array only if there is an Ellipsis. Without row axes,
    # `row_items` is empty, and indexing the rows with it would return a single row. With an
    # Ellipsis, the result is an array without row axes, from which `value_items` can select.
    one_element = row_kinds | value_kinds <= {int}
    is_array = any(item is Ellipsis for item in index_items) if one_element else not row_items
    return ((..., *row_items) if is_array else row_items), value_items, True


def _check_value_items(value_items: Items, row_axes: int, shape: Shape) -> None:
    """Raise the exception that NumPy raises for invalid items of the axes of a value."""
    # Slices are always valid, and the axes of slices and rows may be long. So these axes get length
    # 1.
    lengths = shape[row_axes : row_axes + len(value_items)]
    short_shape = [1] * row_axes
    index: list[Any] = [slice(None)] * row_axes
    for item, length in zip(value_items, lengths, strict=True):
        is_slice = isinstance(item, slice)
        short_shape.append(1 if is_slice else length)
        index.append(slice(None) if is_slice else item)
    indexed_shape(tuple(short_shape), tuple(index))


def indexed_shape(shape: Shape, index: Items) -> Shape:
    """Return the shape of ``array[index]`` for an array of `shape`, or raise NumPy's exception.

    This takes no memory for leading axes with the item ``slice(None)``, whatever their length.
    """
    leading = 0
    for item in index:
        if not isinstance(item, slice) or item != slice(None):
            break
        leading += 1
    # Give these leading axes length 1 in one array and 0 in another, and index both arrays. If the
    # length of an axis differs between the two results, it is a leading axis. Its true length is in
    # `shape`. The empty array comes second, because NumPy 2.0 only warns of an index that is out of
    # bounds in an empty array.
    single, empty = (
        np.broadcast_to(np.False_, (length,) * leading + shape[leading:])[index].shape
        for length in (1, 0)
    )
    lengths = iter(shape)
    return tuple(next(lengths) if a != b else a for a, b in zip(empty, single, strict=True))


def _expand_index(items: Items, index: Any, shape: Shape) -> Items:
    """Expand the ellipsis, and masks over several axes, into one item for each axis."""
    masks = [isinstance(item, np.ndarray) and item.dtype == bool for item in items]
    ellipses = sum(item is Ellipsis for item in items)
    widths = [item.ndim if mask else 1 for item, mask in zip(items, masks, strict=True)]
    missing = len(shape) - sum(widths) + ellipses  # axes for which the ellipsis stands
    if ellipses > 1 or missing < 0:
        _raise_index_error(index, shape)
    flat: list[Any] = []
    for item, width in zip(items, widths, strict=True):
        if item is Ellipsis:
            flat += [slice(None)] * missing
        elif width == 1:
            flat.append(item)
        else:
            lengths = zip(item.shape, shape[len(flat) :], strict=False)
            # NumPy lets a mask of length 0 fit an axis of any length.
            if any(mask_length not in (0, length) for mask_length, length in lengths):
                _raise_index_error(index, shape)
            flat += item.nonzero()
    return tuple(flat)


def _raise_index_error(index: Any, shape: Shape) -> NoReturn:
    """Raise the exception that NumPy raises for an index."""
    placeholder: AnyArray = np.broadcast_to(np.False_, shape)  # takes no memory
    placeholder[index]
    # NumPy accepts the index.
    raise IndexError(f"{index!r} does not index an array of shape {shape}")


class Cell:
    """A part of every value of a column: an int or a range for each axis of the value."""

    __slots__ = ("axes",)

    def __init__(self, axes: tuple[int | range, ...]) -> None:
        self.axes = axes

    def __eq__(self, other: object) -> bool:
        return self.axes == other.axes if isinstance(other, Cell) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.axes)

    def __repr__(self) -> str:
        return f"Cell(axes={self.axes!r})"

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Cell:
        """Return the cell that covers a whole value of a shape."""
        return cls(tuple(range(length) for length in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return tuple(len(axis) for axis in self.axes if isinstance(axis, range))

    def select(self, index: tuple[int | slice, ...]) -> Cell:
        """Return the elements of this cell that an index selects, as a cell.

        `index` indexes an array of `self.shape`. Axes without an item stay whole. Ints must be
        within bounds.
        """
        remaining = iter(index)
        axes = [
            axis[next(remaining, slice(None))] if isinstance(axis, range) else axis
            for axis in self.axes
        ]
        return Cell(tuple(axes))

    @property
    def index(self) -> tuple[int | slice, ...]:
        """The index that selects the part from a value."""
        return tuple(as_slice(axis) if isinstance(axis, range) else axis for axis in self.axes)

    @property
    def positions(self) -> tuple[Sequence[int], ...]:
        """The part's positions along each axis of a value, in ascending order."""
        return tuple(
            (axis,) if isinstance(axis, int) else axis if axis.step > 0 else axis[::-1]
            for axis in self.axes
        )

    def byte_range(self, shape: tuple[int, ...], itemsize: int) -> tuple[int, int] | None:
        """Return the part's byte range in a value of `shape`, or None if it is not contiguous."""
        first, step = 0, itemsize * prod(shape)
        axes = list(zip(self.axes, shape, strict=True))
        while axes and isinstance(axes[0][0], int):
            number, length = axes.pop(0)
            assert isinstance(number, int)
            step //= length
            first += number * step
        if not axes:
            return first, first + itemsize
        axis, length = axes.pop(0)
        assert isinstance(axis, range)
        is_whole = all(isinstance(item, range) and item == range(size) for item, size in axes)
        if not is_whole or (axis.step != 1 and len(axis) > 1):
            return None
        step //= length
        first += axis.start * step
        return first, first + len(axis) * step

    def bounds(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the smallest range of positions in a flattened value that contains the part."""
        if 0 in self.shape:
            return 0, 0
        first = last = 0
        for axis, length in zip(self.axes, shape, strict=True):
            low, high = (axis, axis) if isinstance(axis, int) else sorted((axis[0], axis[-1]))
            first, last = first * length + low, last * length + high
        return first, last + 1

    def strided_view(self, values: AnyArray, shape: tuple[int, ...]) -> AnyArray:
        """Return the part of each value as a view of `values`, which takes no memory.

        Parameters
        ----------
        values : ndarray, shape (..., n)
            For each value, only its elements from ``bounds(shape)[0]`` to ``bounds(shape)[1]``, in
            C order.
        shape : tuple of int
            Shape of a whole value.

        Returns
        -------
        ndarray, shape (..., *self.shape)
        """
        itemsize = values.dtype.itemsize
        if 0 in self.shape or not values.size:
            return np.empty(values.shape[:-1] + self.shape, values.dtype)
        start, strides, step = -self.bounds(shape)[0], [], 1
        for axis, length in zip(reversed(self.axes), reversed(shape), strict=True):
            start += (axis if isinstance(axis, int) else axis.start) * step
            if isinstance(axis, range):
                strides.append(axis.step * step * itemsize)
            step *= length
        return np.ndarray(
            values.shape[:-1] + self.shape, values.dtype, values, start * itemsize,
            (*values.strides[:-1], *reversed(strides)),
        )  # fmt: skip


def byte_runs(
    axes: Sequence[Sequence[int]], shape: Shape, itemsize: int, gap: int
) -> tuple[tuple[int, int], ...]:
    """Return the byte ranges that contain some elements of a value.

    Parameters
    ----------
    axes : sequence of sequence of int
        The elements' positions along each axis of the value, in ascending order.
    shape : tuple of int
        Shape of the value.
    itemsize : int
        Bytes of an element.
    gap : int
        Ranges at most this number of bytes apart are merged.

    Examples
    --------
    >>> byte_runs([range(4), [0, 2]], (4, 5), 1, 1), byte_runs([[0, 3], range(5)], (4, 5), 2, 9)
    (((0, 3), (5, 8), (10, 13), (15, 18)), ((0, 10), (30, 40)))
    """
    runs, step = [(0, itemsize)], itemsize
    for positions, length in zip(reversed(axes), reversed(shape), strict=True):
        if not len(positions):
            return ()
        begin, end = runs[0][0], runs[-1][1]
        if isinstance(positions, range):
            stride = positions.step
        else:
            stride = max((b - a for a, b in pairwise(positions)), default=1)
        # One range covers all positions if even the largest gap between them is to be merged.
        if len(runs) == 1 and stride * step <= end - begin + gap:
            runs = [(begin + positions[0] * step, end + positions[-1] * step)]
        else:
            runs = coalesce_runs(
                [(p * step + a, p * step + b) for p in positions for a, b in runs], gap
            )
        step *= length
    return tuple(runs)


def coalesce_runs(runs: list[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Merge ranges that are at most `gap` apart; `runs` are in ascending order."""
    result: list[tuple[int, int]] = []
    for begin, end in runs:
        if result and begin - result[-1][1] <= gap:
            result[-1] = result[-1][0], end
        else:
            result.append((begin, end))
    return result


def as_slice(axis: range) -> slice:
    """Return the slice that selects the positions in a range; no position may be negative."""
    if len(axis) == 0:
        return slice(0, 0)
    # In a slice, a negative `stop` would count from the end.
    stop: Any = axis.stop if axis.stop >= 0 else None
    return slice(axis.start, stop, axis.step)
