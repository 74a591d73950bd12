"""Selections: the sample ids of a view, in its order and shape.

A selection can be indexed like an `np.ndarray` of its shape, and raises the same exceptions. It
reads no data, as it only computes sample ids. It has one of two forms:

- Slices, large masks and shuffles give a range of positions and a tuple of stages. Each stage maps
  positions to positions in the next stage, and the last stage maps them to sample ids.
- Any other index gives an array of sample ids, which NumPy indexes further.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol, TypeAlias

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.arrays import out_of_bounds
from npstream._core.memory import ensure_fits
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.indexing.mask import BATCH_POSITIONS, Mask, range_values

MAX_MASK_AS_POSITIONS = 1 << 13
"""Up to this number of selected samples, a mask is stored as their ids.

A mask of more samples is stored as bits, unless the ids take less memory.
"""

_NO_ROWS = range(0)

_INT64 = np.dtype(np.int64)  # NumPy takes a dtype in less time than a type


class PositionMap(Protocol):
    """A mapping of positions to other positions, such as a `Permutation` or an `Order`."""

    def __len__(self) -> int: ...

    def at(self, positions: Int64, /) -> Int64:
        """Return the positions to which `positions` are mapped."""


Stage: TypeAlias = range | Mask | PositionMap | Int64


class Selection:
    """The sample ids of a view. `Selection.all` creates the first one, and its methods all others.

    Examples
    --------
    >>> tail = Selection.all(10).select(slice(2, None, 3))
    >>> tail.ids()
    array([2, 5, 8])
    >>> tail.select(-1)
    8
    >>> tail.select([[0, 2], [1, 1]]).shape
    (2, 2)
    """

    __slots__ = ("_dataset_size", "_ids", "_rows", "_stages")

    def __init__(
        self,
        dataset_size: int,
        rows: range,
        stages: tuple[Stage, ...] = (),
        ids: Int64 | None = None,
    ) -> None:
        self._dataset_size = dataset_size
        self._rows = rows
        self._stages = stages
        self._ids = ids

    @classmethod
    def all(cls, n: int) -> Selection:
        """Select all `n` samples of a dataset, in stored order."""
        return cls(n, range(n))

    @classmethod
    def _from_ids(cls, dataset_size: int, ids: Int64) -> Selection:
        """Select samples by an array of their ids, which must not be modified later."""
        return cls(dataset_size, _NO_ROWS, (), np.asarray(ids, order="C"))

    @property
    def dataset_size(self) -> int:
        """Number of samples of the whole dataset."""
        return self._dataset_size

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return (len(self._rows),) if self._ids is None else self._ids.shape

    @property
    def ndim(self) -> int:
        """Number of axes of the view."""
        return 1 if self._ids is None else self._ids.ndim

    @property
    def size(self) -> int:
        """Number of samples of the view."""
        return len(self._rows) if self._ids is None else self._ids.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the selection holds."""
        if self._ids is not None:
            return self._ids.nbytes
        return sum(stage.nbytes for stage in self._stages if isinstance(stage, Mask | np.ndarray))

    @property
    def affine(self) -> tuple[int, int] | None:
        """``(start, step)`` if the view is one slice: its sample k is ``start + k * step``."""
        if self._ids is not None or self._stages:
            return None
        return self._rows.start, self._rows.step if len(self._rows) > 1 else 1

    @property
    def step(self) -> int:
        """The step of an affine view, negative if sample ids descend; 0 for any other view."""
        return 0 if self.affine is None else self.affine[1]

    @property
    def is_whole(self) -> bool:
        """True if the view has all samples of the dataset, in stored order."""
        return self.affine == (0, 1) and self.size == self.dataset_size

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # For a few rows of a large mask, the ids take fewer bytes in a pickle than the mask.
        if self.size * 8 < self.nbytes:
            return Selection._from_ids, (self._dataset_size, self.ids().reshape(self.shape))
        return Selection, (self._dataset_size, self._rows, self._stages, self._ids)

    def select(self, index: Any) -> int | Selection:
        """Return the sample id that an index selects, or a selection of several samples.

        The result is that of an `np.ndarray`, with these exceptions: single bools and None raise,
        also in a tuple. A list that mixes bools and integers raises, too.
        """
        if self._ids is None:
            if type(index) is int:
                return self._sample(index)
            if type(index) is slice:
                return Selection(self._dataset_size, self._rows[index], self._stages)
        key: Any = index
        if isinstance(index, tuple):
            key = tuple(map(normalize_item, index))
        elif type(index) is not np.ndarray or index.ndim == 0:
            key = normalize_item(index)
        if self._ids is None:
            return self._select(key, index)
        ids = self._ids[key]
        if isinstance(ids, np.ndarray):
            return Selection._from_ids(self._dataset_size, ids)
        return int(ids)

    def ids(self, start: int = 0, stop: int | None = None) -> Int64:
        """Return the sample ids of the raveled view from `start` up to `stop`, as a new array."""
        if self._ids is not None:
            flat = self._ids if self._ids.ndim == 1 else self._ids.reshape(-1)
            return flat.copy() if start == 0 and stop is None else flat[start:stop].copy()
        rows, stages = self._rows[start:stop], self._stages
        ensure_fits(8 * len(rows), "the row numbers ({:,}) of a view", len(rows))
        if stages and isinstance(stages[0], Mask):
            ids = stages[0].at_range(rows)
            stages = stages[1:]
        else:
            ids = range_values(rows, np.arange(len(rows)))
        for stage in stages:
            ids = _look_up(stage, ids)
        return ids

    def at(self, positions: Int64) -> Int64:
        """Return the sample ids at positions of the raveled view, which must be in bounds."""
        positions = positions.astype(np.int64, order="C", casting="same_kind")
        if out_of_bounds(positions, self.size):
            raise IndexError(
                f"a position is out of bounds for a view of {quantity(self.size, 'sample')}"
            )
        return self._at(positions)

    def ravel(self) -> Selection:
        """Return the samples as a 1-d view."""
        if self._ids is None:
            return self
        return Selection._from_ids(self._dataset_size, self._ids.reshape(-1))

    def cuts(self, bounds: AnyArray) -> AnyArray | None:
        """Return the positions at which sorted bounds of sample ids split the raveled view.

        The bounds ascend from 0 to the number of samples of the dataset. The samples of the view
        between two consecutive cuts have ids between two consecutive bounds. Cuts always ascend. So
        if the view's ids descend, the first cut belongs to the last bound. The result is None if
        the ids neither only ascend nor only descend.

        >>> Selection.all(10).select(slice(None, None, -3)).cuts(np.array([0, 5, 10]))
        array([0, 2, 4])
        """
        if self._ids is not None:
            ids = self._ids.reshape(-1)
            if not (ids[1:] < ids[:-1]).any():
                return np.searchsorted(ids, bounds)
            if not (ids[1:] > ids[:-1]).any():
                return ids.size - np.searchsorted(ids[::-1], bounds)[::-1]
            return None
        rows = self._rows
        if not self._stages and rows == range(self._dataset_size):
            return bounds
        bounds = bounds.astype(np.int64, copy=False)
        if len(self._stages) == 1 and isinstance(self._stages[0], Mask):
            bounds = self._stages[0].rank(bounds)
        elif self._stages:
            return None
        start, step = rows.start if rows else 0, rows.step if len(rows) > 1 else 1
        # The id at position k is start + k * step. If ids ascend, a cut is the number of ids below
        # the bound. If ids descend, it is the number of ids that are at least the bound.
        if step > 0:
            return np.clip(-((start - bounds) // step), 0, len(rows))
        return np.clip((start - bounds[::-1]) // -step + 1, 0, len(rows))

    def permute(self, permutation: PositionMap) -> Selection:
        """Return the 1-d view whose sample k is sample ``permutation[k]`` of this view.

        >>> from npstream.orders.permutation import Permutation
        >>> Selection.all(5).permute(Permutation(5, key=1)).ids()
        array([2, 0, 1, 4, 3])
        """
        if len(permutation) != self.size:
            raise ValueError(
                f"{permutation} does not permute a view of {quantity(self.size, 'sample')}"
            )
        stages: tuple[Stage, ...]
        if self._ids is not None:
            stages = (self._ids.reshape(-1),)
        elif self._rows.start == 0 and self._rows.step == 1:
            stages = self._stages
        else:
            stages = (self._rows, *self._stages)
        return Selection(self._dataset_size, range(self.size), (permutation, *stages))

    def map_ids(self, stage: PositionMap, dataset_size: int) -> Selection:
        """Return this view with its sample ids mapped through a stage to ids of another dataset.

        `dataset_size` is the number of samples of that dataset.
        """
        if self._ids is not None:
            ids = stage.at(self._ids.reshape(-1)).reshape(self._ids.shape)
            return Selection(dataset_size, _NO_ROWS, (), ids)
        return Selection(dataset_size, self._rows, (*self._stages, stage))

    def _sample(self, index: int) -> int:
        try:
            position = self._rows[index]
        except IndexError:
            pass  # raised below, so that Python's error is not its context
        else:
            if not self._stages:
                return position
            index %= len(self._rows)
            return int(self.ids(index, index + 1)[0])
        return self._raise_index_error(index)

    def _select(self, key: Any, index: Any) -> int | Selection:
        """Select from a 1-d view that is not an array of ids.

        `key` is the index after `normalize_item`; the original `index` is for errors.
        """
        kind = key.dtype.kind if isinstance(key, np.ndarray) else ""
        if kind == "i" or kind == "u":
            positions, n = key.astype(_INT64, "C"), len(self._rows)
            if out_of_bounds(positions, n):
                positions[positions < 0] += n
                if out_of_bounds(positions, n):
                    self._raise_index_error(index)
            return Selection(self._dataset_size, _NO_ROWS, (), self._at(positions))
        if isinstance(key, tuple):
            return self._select_tuple(key)
        if key is Ellipsis:
            return self
        if isinstance(key, int):
            return self._sample(key)
        # NumPy lets a mask of length 0 fit an axis of any length.
        if kind == "b" and key.shape in (self.shape, (0,)):
            return self._select_mask(key)
        return self._raise_index_error(index)

    def _select_tuple(self, index: tuple[Any, ...]) -> int | Selection:
        self._placeholder()[index]  # raises for more than one axis, or more than one ellipsis
        items = [item for item in index if item is not Ellipsis]
        if not items:
            return self
        result = self.select(items[0])
        if isinstance(result, int) and len(index) > 1:  # (i, ...) gives an array without axes
            return Selection._from_ids(self._dataset_size, np.array(result))
        return result

    def _select_mask(self, mask: Bools) -> Selection:
        """Select the samples for which a mask of the view's shape is True.

        The result replaces the rows and a first `Mask` by one new `Mask`. This is possible because
        positions ascend or descend up to that stage. If they descend, the new rows are reversed.
        """
        first, stages = (self._stages[0], self._stages) if self._stages else (None, ())
        if isinstance(first, Mask):
            domain, stages = first.domain, stages[1:]
        else:
            domain = self._dataset_size if first is None else len(first)
        count = int(np.count_nonzero(mask))
        if count <= MAX_MASK_AS_POSITIONS or count * 64 <= domain:
            return Selection._from_ids(self._dataset_size, self._at(np.flatnonzero(mask)))
        if first is None and self._rows == range(domain):
            new_mask = Mask.from_bools(mask)
        else:
            new_mask = Mask.from_positions(self._masked_positions(mask), domain)
        rows = range(count) if self._rows.step > 0 else range(count)[::-1]
        return Selection(self._dataset_size, rows, (new_mask, *stages))

    def _masked_positions(self, mask: Bools) -> Iterator[Int64]:
        """Yield the positions where a mask is True, mapped through the rows and a first mask."""
        for start in range(0, mask.size, BATCH_POSITIONS):
            rows = self._rows[start : start + BATCH_POSITIONS]
            true_positions = np.flatnonzero(mask[start : start + BATCH_POSITIONS])
            if self._stages and isinstance(self._stages[0], Mask):
                yield self._stages[0].at_range(rows)[true_positions]
            else:
                yield range_values(rows, true_positions)

    def _at(self, positions: Int64) -> Int64:
        """Return the sample ids at positions within bounds; the array may be overwritten."""
        if self._ids is not None:
            return self._ids.reshape(-1)[positions]
        positions = range_values(self._rows, positions)
        for stage in self._stages:
            positions = _look_up(stage, positions)
        return positions

    def _placeholder(self) -> AnyArray:
        """Return an array of the view's shape that takes no memory."""
        return np.broadcast_to(np.int8(0), self.shape)

    def _raise_index_error(self, index: Any) -> NoReturn:
        """Raise the exception that NumPy raises for an index."""
        self._placeholder()[index]
        raise IndexError(f"{index!r} does not index a view of shape {self.shape}")


def _look_up(stage: Stage, positions: Int64) -> Int64:
    """Map positions through a stage; the array `positions` may be overwritten."""
    if isinstance(stage, range):
        return range_values(stage, positions)
    if isinstance(stage, np.ndarray):
        return stage[positions]
    return stage.at(positions)


def normalize_item(item: Any) -> Any:
    """Return an index of one axis as an int, a slice, an ellipsis or an array.

    Raise IndexError for an item that NumPy accepts but that is likely an error here, such as None.
    Raise IndexError also for floats and complex numbers, to advise how to convert them. Return
    other invalid items unchanged, so that NumPy raises.
    """
    if type(item) is np.ndarray and item.ndim:
        return item
    if isinstance(item, slice) or item is Ellipsis:
        return item
    if item is None:
        raise IndexError(
            "None (np.newaxis) adds no axis to a view; "
            "for rows in another shape, index with an array of row numbers in that shape"
        )
    array = np.asarray(item)
    kind = array.dtype.kind
    if array.ndim == 0:
        if kind in "iu":
            return int(array)
        if kind == "b":
            raise IndexError(
                f"a single {array} is neither a row number nor a mask; "
                f"a mask has a bool for every row, and {int(array)} is a row number"
            )
        if kind in "fc":
            raise IndexError(
                f"{array} is not an integer: only integers, slices (`:`), ellipsis (`...`) and "
                "integer or boolean arrays are valid indices; round it, or divide with //"
            )
        if isinstance(item, np.ndarray) or not hasattr(item, "__index__"):
            return item
        return operator.index(item)
    if isinstance(item, np.ndarray):
        return array
    if array.size == 0:
        return array.astype(np.int64)  # [] is a valid index, but np.asarray([]) has float64
    if kind in "iu" and isinstance(item, list | tuple) and _holds_bool(item):
        raise IndexError(
            "a list of bools and integers is neither a mask nor row numbers: "
            "make it one of them, with bool() or int()"
        )
    return array if kind in "biu" else item


def _holds_bool(items: Any) -> bool:
    kinds = set(map(type, items))
    if not kinds.isdisjoint((bool, np.bool_)):
        return True
    if kinds <= {int}:
        return False
    return any(
        _holds_bool(item) if isinstance(item, list | tuple) else np.asarray(item).dtype.kind == "b"
        for item in items
    )
