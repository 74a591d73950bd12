"""Selections: which samples a view holds, in which order and in which shape.

A selection answers to any index as an `np.ndarray` of its shape would, with the same exceptions,
and reads nothing: it is arithmetic on sample ids. It is kept as small as its kind allows. What
slices, masks and shuffles make is a range of positions, looked up in a flat tuple of stages, each
of which turns positions in it into positions in the next, and the last into sample ids. Whatever
else is picked is an array of sample ids, which NumPy itself indexes further.
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
from npstream.indexing.mask import PIECE, Mask, values

FEW = 1 << 13
"""Samples up to which a mask is kept as positions, even where bits would be smaller."""

_NO_ROWS = range(0)


class Rearrangement(Protocol):
    """Positions in another order: a `Permutation`, or an `Order`."""

    def __len__(self) -> int: ...

    def at(self, positions: Int64, /) -> Int64:
        """Return what stands at positions."""


Stage: TypeAlias = range | Mask | Rearrangement | Int64


class Selection:
    """The samples of a view: see `Selection.all` for the first and `select` for the others.

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

    __slots__ = ("_ids", "_rows", "_source", "_under")

    def __init__(
        self,
        source: int,
        rows: range,
        under: tuple[Stage, ...] = (),
        ids: Int64 | None = None,
    ) -> None:
        self._source = source
        self._rows = rows
        self._under = under
        self._ids = ids

    @classmethod
    def all(cls, n: int) -> Selection:
        """Select all samples of a storage of `n`, in its order."""
        return cls(n, range(n))

    @classmethod
    def _of(cls, source: int, ids: Int64) -> Selection:
        """Select samples by their ids, in an array that nobody else writes to."""
        return cls(source, _NO_ROWS, (), np.asarray(ids, order="C"))

    @property
    def source(self) -> int:
        """Samples of the storage."""
        return self._source

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the view."""
        return (len(self._rows),) if self._ids is None else self._ids.shape

    @property
    def ndim(self) -> int:
        """Axes of the view."""
        return 1 if self._ids is None else self._ids.ndim

    @property
    def size(self) -> int:
        """Samples of the view."""
        return len(self._rows) if self._ids is None else self._ids.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the selection holds."""
        if self._ids is not None:
            return self._ids.nbytes
        return sum(stage.nbytes for stage in self._under if isinstance(stage, Mask | np.ndarray))

    @property
    def affine(self) -> tuple[int, int] | None:
        """``(start, step)`` if sample k is ``start + k * step``, and was selected as such."""
        if self._ids is not None or self._under:
            return None
        return self._rows.start, self._rows.step if len(self._rows) > 1 else 1

    @property
    def step(self) -> int:
        """Positive where sample numbers rise evenly, negative where they fall so, else 0."""
        return 0 if self.affine is None else self.affine[1]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # A few rows of a large mask are not worth sending all of it along.
        if self.size * 8 < self.nbytes:
            return Selection._of, (self._source, self.ids().reshape(self.shape))
        return Selection, (self._source, self._rows, self._under, self._ids)

    def select(self, index: Any) -> int | Selection:
        """Return the id of the sample that an index picks, or the selection that it makes.

        It is what `np.ndarray` does, except that bools, None and floats raise, alone as well as in
        a tuple, as does a list that mixes bools and integers.
        """
        if self._ids is None:
            if type(index) is int:
                return self._sample(index)
            if type(index) is slice:
                return Selection(self._source, self._rows[index], self._under)
        if isinstance(index, tuple):
            admitted: Any = tuple(admit(item) for item in index)
        else:
            admitted = admit(index)
        if self._ids is None:
            return self._select(admitted, index)
        picked = self._ids[admitted]
        if isinstance(picked, np.ndarray):
            return Selection._of(self._source, picked)
        return int(picked)

    def ids(self, start: int = 0, stop: int | None = None) -> Int64:
        """Return the sample ids of the ravelled view from `start` up to `stop`, as a new array."""
        if self._ids is not None:
            flat = self._ids if self._ids.ndim == 1 else self._ids.reshape(-1)
            return flat.copy() if start == 0 and stop is None else flat[start:stop].copy()
        rows, under = self._rows[start:stop], self._under
        ensure_fits(8 * len(rows), "the row numbers ({:,}) of a view", len(rows))
        if under and isinstance(under[0], Mask):
            ids = under[0].run(rows)
            under = under[1:]
        else:
            ids = values(rows, np.arange(len(rows)))
        for stage in under:
            ids = _look_up(stage, ids)
        return ids

    def at(self, positions: Int64) -> Int64:
        """Return the sample ids at positions of the ravelled view, all in ``range(size)``."""
        positions = positions.astype(np.int64, order="C", casting="same_kind")
        if out_of_bounds(positions, self.size):
            raise IndexError(
                f"a position is out of bounds for a view of {quantity(self.size, 'sample')}"
            )
        return self._at(positions)

    def ravel(self) -> Selection:
        """Return the samples as a 1-d view."""
        return self if self._ids is None else Selection._of(self._source, self._ids.reshape(-1))

    def cuts(self, bounds: AnyArray) -> AnyArray | None:
        """Return where rising bounds, from 0 to the number of samples, cut the ravelled view.

        Samples between two cuts have ids between two bounds. It is None unless the view's ids
        rise all along, or fall, and then cuts are in the order of the view.

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
        if not self._under and rows == range(self._source):
            return bounds
        bounds = bounds.astype(np.int64, copy=False)
        if len(self._under) == 1 and isinstance(self._under[0], Mask):
            bounds = self._under[0].rank(bounds)
        elif self._under:
            return None
        start, step = rows.start if rows else 0, rows.step if len(rows) > 1 else 1
        if step > 0:
            return np.clip(-((start - bounds) // step), 0, len(rows))
        return np.clip((start - bounds[::-1]) // -step + 1, 0, len(rows))

    def permuted(self, permutation: Rearrangement) -> Selection:
        """Return the 1-d view whose k-th sample is that at ``permutation[k]`` in this one.

        >>> from npstream.orders.permutation import Permutation
        >>> Selection.all(5).permuted(Permutation(5, key=1)).ids()
        array([...])
        """
        if len(permutation) != self.size:
            raise ValueError(
                f"{permutation} does not permute a view of {quantity(self.size, 'sample')}"
            )
        under: tuple[Stage, ...]
        if self._ids is not None:
            under = (self._ids.reshape(-1),)
        elif self._rows.start == 0 and self._rows.step == 1:
            under = self._under
        else:
            under = (self._rows, *self._under)
        return Selection(self._source, range(self.size), (permutation, *under))

    def over(self, stage: Rearrangement, source: int) -> Selection:
        """Return this view, what it counts being looked up in a stage over another storage."""
        if self._ids is not None:
            ids = stage.at(self._ids.reshape(-1)).reshape(self._ids.shape)
            return Selection(source, _NO_ROWS, (), ids)
        return Selection(source, self._rows, (*self._under, stage))

    def _sample(self, index: int) -> int:
        try:
            position = self._rows[index]
        except IndexError:
            self._refuse(index)
        if not self._under:
            return position
        index %= len(self._rows)
        return int(self.ids(index, index + 1)[0])

    def _select(self, admitted: Any, index: Any) -> int | Selection:
        """Select from a 1-d view that is not an array of ids."""
        if isinstance(admitted, tuple):
            return self._select_tuple(admitted)
        if admitted is Ellipsis:
            return self
        if isinstance(admitted, int):
            return self._sample(admitted)
        kind = admitted.dtype.kind if isinstance(admitted, np.ndarray) else ""
        if kind == "b" and admitted.shape == self.shape:
            return self._select_mask(admitted)
        # To NumPy, an empty mask fits any axis.
        if kind not in ("i", "u") and not (kind == "b" and admitted.shape == (0,)):
            self._refuse(index)
        positions, n = admitted.astype(np.int64, order="C"), self.size
        if out_of_bounds(positions, n):
            positions[positions < 0] += n
            if out_of_bounds(positions, n):
                self._refuse(index)
        return Selection(self._source, _NO_ROWS, (), self._at(positions))

    def _select_tuple(self, index: tuple[Any, ...]) -> int | Selection:
        self._stand_in()[index]  # raises for more than one axis, or more than one ellipsis
        items = [item for item in index if item is not Ellipsis]
        if not items:
            return self
        picked = self.select(items[0])
        if isinstance(picked, int) and len(index) > 1:
            return Selection._of(self._source, np.array(picked))
        return picked

    def _select_mask(self, mask: Bools) -> Selection:
        """Keep what a mask of the view's shape is true for.

        Above the last permutation, positions rise or fall all along; so whatever slices and masks
        stand there become one mask and, where they fall, one reversal.
        """
        first, under = (self._under[0], self._under) if self._under else (None, ())
        if isinstance(first, Mask):
            domain, under = first.domain, under[1:]
        else:
            domain = self._source if first is None else len(first)
        count = int(np.count_nonzero(mask))
        if count <= FEW or count * 64 <= domain:
            return Selection._of(self._source, self._at(np.flatnonzero(mask)))
        if first is None and self._rows == range(domain):
            kept = Mask.where(mask)
        else:
            kept = Mask.of(self._pieces(mask), domain)
        rows = range(count) if self._rows.step > 0 else range(count)[::-1]
        return Selection(self._source, rows, (kept, *under))

    def _pieces(self, mask: Bools) -> Iterator[Int64]:
        """Yield where a mask is true, as positions below the slices and masks on top."""
        for start in range(0, mask.size, PIECE):
            rows = self._rows[start : start + PIECE]
            chosen = np.flatnonzero(mask[start : start + PIECE])
            if self._under and isinstance(self._under[0], Mask):
                yield self._under[0].run(rows)[chosen]
            else:
                yield values(rows, chosen)

    def _at(self, positions: Int64) -> Int64:
        """Replace positions that are known to be good, in an array of our own, by sample ids."""
        if self._ids is not None:
            return self._ids.reshape(-1)[positions]
        positions = _look_up(self._rows, positions)
        for stage in self._under:
            positions = _look_up(stage, positions)
        return positions

    def _stand_in(self) -> AnyArray:
        """Return an array of the view's shape that takes no memory."""
        return np.broadcast_to(np.int8(0), self.shape)

    def _refuse(self, index: Any) -> NoReturn:
        """Raise what NumPy raises."""
        self._stand_in()[index]
        raise IndexError(f"{index!r} does not index a view of shape {self.shape}")


def _look_up(stage: Stage, positions: Int64) -> Int64:
    """Turn positions in a stage, an array that may be overwritten, into positions below it."""
    if isinstance(stage, range):
        return values(stage, positions)
    if isinstance(stage, np.ndarray):
        return stage[positions]
    return stage.at(positions)


def admit(item: Any) -> Any:
    """Bring what indexes one axis to an int, a slice, an ellipsis or an array.

    Raises for what NumPy would take in a sense that nobody wants here; leaves alone what NumPy
    will refuse.
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
        return array.astype(np.int64)  # an empty list is float64 to NumPy, and yet an index
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
