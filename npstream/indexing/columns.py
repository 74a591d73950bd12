"""Indices of a column, taken apart into those of rows and those of values, which compose.

Tested in tests/dataset/test_column.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NoReturn, TypeAlias

import numpy as np

from npstream._core.typing import AnyArray, Shape
from npstream.errors import shown
from npstream.indexing.selection import admit

Items: TypeAlias = tuple[Any, ...]


def refuse_names(index: Any) -> None:
    """Raise IndexError if an index of a dataset's rows has names of columns in it.

    Examples
    --------
    >>> refuse_names((0, "label"))
    Traceback (most recent call last):
    ...
    IndexError: ds[0, 'label']: an index has rows or names, not both: write ds['label'][0]
    """
    items = index if isinstance(index, tuple) else ()
    names = [item for item in items if isinstance(item, str)]
    if not names:
        return
    given = ", ".join(map(_index_text, items))
    rows = [item for item in items if not isinstance(item, str)]
    if not rows:
        raise IndexError(f"ds[{given}]: a list picks several columns: write ds[{names}]") from None
    column = repr(names[0]) if len(names) == 1 else names
    mend = f"ds[{column}][{', '.join(map(_index_text, rows))}]"
    raise IndexError(f"ds[{given}]: an index has rows or names, not both: write {mend}") from None


def _index_text(item: Any) -> str:
    """Return what stands in brackets."""
    if not isinstance(item, slice):
        return shown(item)
    ends = [item.start, item.stop] + [item.step] * (item.step is not None)
    return ":".join("" if end is None else shown(end) for end in ends)


def split_index(index: Any, row_axes: int, shape: Shape) -> tuple[Items, Items, bool]:
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
        Ints, slices and arrays, one for each axis; `cells` may end early. An Ellipsis before the
        rows says that they remain an array, if one without axes.
    separable : bool
        Whether ``array[rows][(slice(None),) * k + cells]``, where k axes are left of the rows',
        is what NumPy gives.

    Raises
    ------
    IndexError, TypeError
        In NumPy's words, unless it concerns the rows alone.

    Examples
    --------
    >>> split_index((..., 0), 1, (10, 4))
    ((slice(None, None, None),), (0,), True)
    """
    if row_axes == 1 and (
        type(index) in (int, slice) or (type(index) is np.ndarray and index.ndim == 1)
    ):
        return (index,), (), True
    given = index if isinstance(index, tuple) else (index,)
    items = _one_an_axis(tuple(map(admit, given)), index, shape)
    rows, cells = items[:row_axes], items[row_axes:]
    row_kinds, cell_kinds = set(map(type, rows)), set(map(type, cells))
    if not cell_kinds <= {int, slice}:
        # For its exceptions; slices have none, and may be long.
        lengths = shape[row_axes : row_axes + len(cells)]
        short = [1 if isinstance(c, slice) else n for n, c in zip(lengths, cells, strict=True)]
        whole = [slice(None) if isinstance(c, slice) else c for c in cells]
        indexed_shape((1,) * row_axes + tuple(short), (slice(None),) * row_axes + tuple(whole))
    for item, length in zip(cells, shape[row_axes:], strict=False):
        if type(item) is int and not -length <= item < length:
            _refuse(index, shape)
    # To NumPy, a number beside an array is one, too: if a slice stands between them, the array's
    # axis moves to the front.
    if np.ndarray in cell_kinds or (int in cell_kinds and {np.ndarray, slice} <= row_kinds):
        return rows, cells, False
    one_element = {int} >= row_kinds | cell_kinds
    stays = any(item is Ellipsis for item in given) if one_element else not rows
    return ((..., *rows) if stays else rows), cells, True


def indexed_shape(shape: Shape, index: Items) -> Shape:
    """Return the shape of an array of that shape, indexed, at no cost in its first, whole axes."""
    whole = 0
    while whole < len(index) and isinstance(index[whole], slice) and index[whole] == slice(None):
        whole += 1
    # Two arrays whose whole axes differ in length show where these axes go. The empty one comes
    # second: of an index out of bounds, NumPy 2.0 only warns there.
    single, empty = (
        np.broadcast_to(np.False_, (length,) * whole + shape[whole:])[index].shape
        for length in (1, 0)
    )
    lengths = iter(shape)
    return tuple(next(lengths) if a != b else a for a, b in zip(empty, single, strict=True))


def _one_an_axis(items: Items, index: Any, shape: Shape) -> Items:
    """Replace the ellipsis by slices, and masks of several axes by arrays of numbers."""
    masks = [isinstance(item, np.ndarray) and item.dtype == bool for item in items]
    ellipses = sum(item is Ellipsis for item in items)
    widths = [item.ndim if mask else 1 for item, mask in zip(items, masks, strict=True)]
    free = len(shape) - sum(widths) + ellipses
    if ellipses > 1 or free < 0:
        _refuse(index, shape)
    flat: list[Any] = []
    for item, width in zip(items, widths, strict=True):
        if item is Ellipsis:
            flat += [slice(None)] * free
        elif width == 1:
            flat.append(item)
        else:
            lengths = zip(item.shape, shape[len(flat) :], strict=False)
            if any(here not in (0, there) for here, there in lengths):  # none fits any, to NumPy
                _refuse(index, shape)
            flat += item.nonzero()
    return tuple(flat)


def _refuse(index: Any, shape: Shape) -> NoReturn:
    """Raise what NumPy raises."""
    stand_in: AnyArray = np.broadcast_to(np.False_, shape)
    stand_in[index]
    raise IndexError(f"{index!r} does not index an array of shape {shape}")


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of every value of a column: on each axis a number, or a range."""

    axes: tuple[int | range, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Cell:
        """Return all of a value of that shape."""
        return cls(tuple(range(length) for length in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(len(axis) for axis in self.axes if isinstance(axis, range))

    def select(self, index: tuple[int | slice, ...]) -> Cell:
        """Return a part of the part; numbers must be within bounds."""
        remaining = iter(index)
        axes = [
            axis[next(remaining, slice(None))] if isinstance(axis, range) else axis
            for axis in self.axes
        ]
        return Cell(tuple(axes))

    @property
    def index(self) -> tuple[int | slice, ...]:
        """What NumPy takes the part with."""
        return tuple(as_slice(axis) if isinstance(axis, range) else axis for axis in self.axes)

    @property
    def positions(self) -> tuple[Sequence[int], ...]:
        """For each axis of a value the positions of the part, rising."""
        return tuple(
            (axis,) if isinstance(axis, int) else axis if axis.step > 0 else axis[::-1]
            for axis in self.axes
        )

    def contiguous(self, shape: tuple[int, ...], itemsize: int) -> tuple[int, int] | None:
        """Return the first byte of the part and the one after its last, if it is one run."""
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
        whole = all(isinstance(rest, range) and rest == range(size) for rest, size in axes)
        if not whole or (axis.step != 1 and len(axis) > 1):
            return None
        step //= length
        first += axis.start * step
        return first, first + len(axis) * step

    def bounds(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the first element of the part in a value, and the one after its last."""
        if 0 in self.shape:
            return 0, 0
        first = last = 0
        for axis, length in zip(self.axes, shape, strict=True):
            low, high = (axis, axis) if isinstance(axis, int) else sorted((axis[0], axis[-1]))
            first, last = first * length + low, last * length + high
        return first, last + 1

    def strided(self, values: AnyArray, shape: tuple[int, ...]) -> AnyArray:
        """Return the part as a view of what `bounds` says of values.

        Parameters
        ----------
        values : ndarray, shape (..., n)
            In C order.
        shape : tuple of int
            Of a whole value.
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
    """Return the bytes of a value that elements take, as runs more than `gap` bytes apart.

    Parameters
    ----------
    axes : sequence of sequence of int
        For each axis of the value the elements' positions, rising.
    shape : tuple of int
        Of the value.
    itemsize, gap : int

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
            hop = positions.step
        else:
            hop = max((b - a for a, b in pairwise(positions)), default=1)
        if len(runs) == 1 and hop * step <= end - begin + gap:
            runs = [(begin + positions[0] * step, end + positions[-1] * step)]
        else:
            runs = join_runs(
                [(p * step + a, p * step + b) for p in positions for a, b in runs], gap
            )
        step *= length
    return tuple(runs)


def join_runs(runs: list[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Return rising runs, joined where they are no more than `gap` apart."""
    joined: list[tuple[int, int]] = []
    for begin, end in runs:
        if joined and begin - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((begin, end))
    return joined


def as_slice(axis: range) -> slice:
    """Return the slice that picks these numbers, none of them negative."""
    if len(axis) == 0:
        return slice(0, 0)
    stop: Any = axis.stop if axis.stop >= 0 else None
    return slice(axis.start, stop, axis.step)
