"""Lazy selections of elements of a column's values, for indices that contain arrays.

NumPy selects the same part of each row (``a[:, [0, 1]]``), or a different part of each row
(``a[[4, 2], [0, 1]]``). A `Mesh` stores both as one array of positions for each axis of a value.
These arrays broadcast to the shape of the result. So the memory for a sliced axis is proportional
to the length of this axis only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import AnyArray, Int64, Shape
from npstream.indexing.columns import Cell

if TYPE_CHECKING:
    from npstream.indexing.columns import Items


@dataclass(frozen=True, slots=True)
class Mesh:
    """Elements of the values of some rows.

    Parameters
    ----------
    axis_positions : tuple of ndarray of int64
        The elements' positions along each axis of a value. Each array has the axes of the rows,
        then those of `shape`. An axis along which the array is constant has length 1.
    shape : tuple of int
        Shape of the elements selected from one row.
    lead : int
        Number of axes of `shape` that precede the row axes in the result.
    """

    axis_positions: tuple[Int64, ...]
    shape: Shape
    lead: int = 0

    @classmethod
    def whole(cls, row_axes: int, shape: Shape) -> Mesh:
        """Return the mesh of all elements of values of a shape.

        Examples
        --------
        >>> [positions.shape for positions in Mesh.whole(1, (4, 3)).axis_positions]
        [(1, 4, 1), (1, 1, 3)]
        """
        grid = np.ogrid[tuple(slice(length) for length in shape)] if shape else ()
        return cls(tuple(n.reshape((1,) * row_axes + n.shape) for n in grid), shape)

    def result_shape(self, rows: Shape) -> Shape:
        """Return the shape of the result, given the shape of the rows."""
        return (*self.shape[: self.lead], *rows, *self.shape[self.lead :])

    def select(self, row_items: Items, value_items: Items) -> Mesh:
        """Return a part of the elements, with separate indices of the rows and of the values.

        Parameters
        ----------
        row_items, value_items : tuple of int, slice or ndarray
            One for each row axis, and one for each axis of `shape`, within bounds. If `value_items`
            contains arrays, then `row_items` are all slices, and the row axes come first.
        """
        axis_positions = tuple(_index(n, row_items, value_items) for n in self.axis_positions)
        lead = sum(not isinstance(item, int) for item in value_items[: self.lead])
        # If a slice stands between two arrays, or between an array and an int, NumPy puts the axes
        # of the arrays first.
        if width := _width(value_items):
            lead = 0 if _are_adjacent(value_items) else width
            targets = range(len(row_items), len(row_items) + lead)
            axis_positions = tuple(np.moveaxis(n, range(lead), targets) for n in axis_positions)
        return Mesh(axis_positions, _indexed_shape(self.shape, value_items), lead)

    def select_jointly(
        self, row_items: Items, value_items: Items, row_shape: Shape
    ) -> tuple[Int64, Mesh]:
        """Return a part of the elements that may differ between rows.

        Parameters
        ----------
        row_items, value_items : tuple of int, slice or ndarray
            One for each row axis, and one for each axis of `shape`. At least one of `row_items` is
            not a slice.
        row_shape : tuple of int
            Shape of the rows, whose axes come first.

        Returns
        -------
        positions : ndarray of int64
            The rows of the result, as flat positions among all rows.
        mesh : Mesh
            The elements of these rows.
        """
        shape = _indexed_shape(row_shape + self.shape, row_items + value_items)
        slice_count = sum(isinstance(item, slice) for item in value_items)
        result_row_axes = len(shape) - slice_count
        if len(row_items) == 1:
            positions = np.asarray(row_items[0])
            positions = positions.nonzero()[0] if positions.dtype == bool else positions
        else:
            all_rows = np.arange(prod(row_shape)).reshape(row_shape + (1,) * len(value_items))
            positions = _index(all_rows, row_items, value_items)
            positions = positions.reshape(positions.shape[: positions.ndim - slice_count])
        axis_positions = []
        for n in self.axis_positions:
            part = _index(n, row_items, value_items)
            # An array that varies along one row axis gets the full length of every row axis.
            if set(part.shape[:result_row_axes]) - {1}:
                part = np.broadcast_to(part, shape[:result_row_axes] + part.shape[result_row_axes:])
            axis_positions.append(part)
        positions = np.broadcast_to(positions, shape[:result_row_axes])
        return positions, Mesh(tuple(axis_positions), shape[result_row_axes:])

    def positions(self, cell: Cell) -> tuple[list[int], ...]:
        """Return the elements' positions along each axis of a value, in ascending order.

        Parameters
        ----------
        cell : Cell
            The part of the value over which this mesh is defined; see `bounding_cell`.
        """
        axis_positions = iter(self.axis_positions)
        return tuple(
            [axis]
            if isinstance(axis, int)
            else sorted(axis[k] for k in np.unique(next(axis_positions)).tolist())
            for axis in cell.axes
        )

    def bounding_cell(self) -> tuple[Cell, Mesh]:
        """Return the smallest cell that contains all elements, and the mesh over that cell."""
        axes, axis_positions = [], []
        for n in self.axis_positions:
            first, stop = (int(n.min()), int(n.max()) + 1) if n.size else (0, 0)
            axes.append(range(first, stop))
            axis_positions.append(n - first)
        return Cell(tuple(axes)), Mesh(tuple(axis_positions), self.shape, self.lead)

    def take(self, values: AnyArray, rows: Int64, start: int, row_axes: int) -> AnyArray:
        """Return the elements of some consecutive rows.

        Parameters
        ----------
        values : ndarray, shape (m, ...)
            The values of rows. Each may be only the part of a value that `bounding_cell` returns.
        rows : ndarray of int64, shape (n,)
            For each row of the result, its position in `values`.
        start : int
            Position of the result's first row in the raveled rows of the mesh.
        row_axes : int
            Number of row axes of the mesh.

        Returns
        -------
        ndarray, shape (n, *self.shape)
        """
        flat = [
            n.reshape((prod(n.shape[:row_axes]), *n.shape[row_axes:])) for n in self.axis_positions
        ]
        shape = (len(rows), *self.shape)
        axes = _result_axes(flat)
        if axes is None:
            row = rows.reshape((-1,) + (1,) * len(self.shape))
            axis_positions = [n if len(n) == 1 else n[start : start + len(rows)] for n in flat]
            return np.broadcast_to(values[(row, *axis_positions)], shape)
        for axis, n in enumerate(flat, 1):
            if not np.array_equal(n.reshape(-1), np.arange(values.shape[axis])):
                values = values.take(n.reshape(-1), axis)
        if not np.array_equal(rows, np.arange(len(values))):
            values = values.take(rows, 0)
        # Axes along which no array varies have length 1, and come last.
        order = sorted(range(len(axes)), key=lambda axis: axes[axis])
        ordered = values.transpose(0, *(1 + axis for axis in order))
        lengths = [1] * len(self.shape)
        for axis in order:
            if axes[axis] < len(lengths):
                lengths[axes[axis]] = flat[axis].size
        return np.broadcast_to(ordered.reshape((len(rows), *lengths)), shape)


def _result_axes(flat: list[Int64]) -> list[int] | None:
    """Return the axis of the result along which each array varies.

    For an array that does not vary, the number is that of the axis after the last one. Return None
    if an array varies along the rows or along several axes, or if two arrays vary along the same
    axis.

    Examples
    --------
    >>> _result_axes([np.zeros((1, 1, 3)), np.zeros((1, 1, 1))])
    [1, 2]
    """
    axes: list[int] = []
    for n in flat:
        varying_axes = [axis for axis, length in enumerate(n.shape[1:]) if length != 1]
        if len(n) != 1 or len(varying_axes) > 1 or (varying_axes and varying_axes[0] in axes):
            return None
        axes += varying_axes or [n.ndim - 1]
    return axes


def _width(items: Items) -> int:
    """Return the number of axes to which the arrays in an index broadcast."""
    return max((item.ndim for item in items if isinstance(item, np.ndarray)), default=0)


def _are_adjacent(items: Items) -> bool:
    """Return True if no slice stands between the arrays and ints in an index."""
    axes = [axis for axis, item in enumerate(items) if not isinstance(item, slice)]
    return axes[-1] - axes[0] + 1 == len(axes)


def _index(array: Int64, row_items: Items, value_items: Items) -> Int64:
    """Index an array that has length 1 along axes on which it does not depend.

    Slices of such axes have length 1 in the result, too.
    """
    width = _width(row_items + value_items)
    items: list[Any] = []
    for length, item in zip(array.shape, row_items + value_items, strict=True):
        is_constant = length == 1
        if isinstance(item, slice):
            items.append(slice(None) if is_constant else item)
        elif not isinstance(item, np.ndarray):
            items.append(0 if is_constant else item)
        elif is_constant:
            items.append(np.zeros((1,) * width, np.int64))
        else:
            positions = item.nonzero()[0] if item.dtype == bool else item
            items.append(positions.reshape((1,) * (width - positions.ndim) + positions.shape))
    part: Int64 = array[tuple(items)]
    return part


def _indexed_shape(shape: Shape, items: Items) -> Shape:
    """Return the shape of an indexed array, without allocating the array.

    Examples
    --------
    >>> _indexed_shape((10**9, 5, 10**9), (slice(None), np.array([1, 2, 3]), slice(None)))
    (1000000000, 3, 1000000000)
    """
    slice_lengths = tuple(
        len(range(length)[item])
        for length, item in zip(shape, items, strict=True)
        if isinstance(item, slice)
    )
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if not arrays:
        return slice_lengths
    arrays = [item.nonzero()[0] if item.dtype == bool else item for item in arrays]
    for axis, (length, item) in enumerate(zip(shape, items, strict=True)):
        if not isinstance(item, slice):  # raises if the item is out of bounds
            np.broadcast_to(np.False_, (1,) * axis + (length,))[(slice(None),) * axis + (item,)]
    try:
        array_shape = np.broadcast_shapes(*(item.shape for item in arrays))
    except ValueError:
        shapes = " ".join(str(item.shape) for item in arrays)
        raise IndexError(
            "shape mismatch: indexing arrays could not be broadcast together with shapes " + shapes
        ) from None
    # The arrays' axes replace the indexed axes, or come first if a slice stands between arrays.
    lead = 0
    if _are_adjacent(items):
        lead = next(axis for axis, item in enumerate(items) if not isinstance(item, slice))
    return (*slice_lengths[:lead], *array_shape, *slice_lengths[lead:])
