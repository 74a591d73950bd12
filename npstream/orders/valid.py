"""Provide `RowMask`, the valid rows of a view, and `ValidOrder`, the order of only these rows.

The order of the valid rows is the order of all rows, without the other rows. So a row that becomes
invalid does not change the relative order of the others.

Position p of the order of the valid rows is the valid row with number p. To find it, the order of
all rows is divided into windows, and the valid rows of each window are counted. Windows are counted
only up to the position that is looked up. So an epoch that is read from its beginning costs no time
before its first batch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.formats.hashes import digest
from npstream.formats.sharing import SharedArrays

if TYPE_CHECKING:
    from npstream.orders.order import RowOrder

WINDOW = 1 << 14
"""Number of rows in a window, valid or not."""

_MAX_WINDOWS = 64
"""Maximum number of windows whose valid rows are kept."""


class RowMask:
    """A flag for each row of a view, in one bit.

    Parameters
    ----------
    bits : ndarray of uint8
        The flags, packed as by `numpy.packbits`.
    size : int
        Number of rows.

    Examples
    --------
    >>> mask = RowMask.pack(np.array([True, False, True]))
    >>> mask.count, mask.at(np.array([2, 1]))
    (2, array([ True, False]))
    """

    def __init__(self, bits: AnyArray, size: int) -> None:
        self._arrays, self.size = SharedArrays({"bits": bits}), size
        self.count = int(np.bitwise_count(bits).sum(dtype=np.int64))

    @classmethod
    def pack(cls, flags: Bools) -> RowMask:
        """Return the mask of an array of bool."""
        return cls(np.packbits(flags.reshape(-1)), flags.size)

    @property
    def _bits(self) -> AnyArray:
        return self._arrays["bits"]

    def __repr__(self) -> str:
        return f"<RowMask: {self.count:,} of {quantity(self.size, 'row')}>"

    def at(self, rows: Int64) -> Bools:
        """Return the flags of rows."""
        shifts = (7 - (rows & 7)).astype(np.uint8)
        flags: Bools = ((self._bits[rows >> 3] >> shifts) & 1).view(np.bool_)
        return flags

    def first(self, size: int) -> RowMask:
        """Return the mask of the first `size` rows."""
        return RowMask.pack(np.unpackbits(self._bits[: -(-size // 8)], count=size).view(np.bool_))

    def identity(self) -> dict[str, Any]:
        """Return the facts that identify the mask in saved states; they must never change."""
        return {"samples": self.count, "hash": digest("xxh3_64", self._bits.tobytes())}


def make_mask(values: Any, load: Callable[[str], Any], shape: tuple[int, ...]) -> RowMask:
    """Return the mask that a user gave as the name of a column, or as flags.

    Parameters
    ----------
    values : str or array_like of bool
    load : callable
        Loads a column of the view, given its name.
    shape : tuple of int
        The shape of the view.

    Raises
    ------
    TypeError
        If the values are not bool.
    ValueError
        If there is not one value for each row.

    Examples
    --------
    >>> make_mask([True, False], lambda name: None, (2,))
    <RowMask: 1 of 2 rows>
    """
    flags, name = load_row_values("valid", values, load, shape)
    if flags.dtype != np.bool_:
        raise TypeError(
            f"{name} has values of {flags.dtype}: expected bool, as in valid=ds['score'] > 0.5"
        )
    return RowMask.pack(flags)


def load_row_values(
    name: str, values: Any, load: Callable[[str], Any], shape: tuple[int, ...]
) -> tuple[AnyArray, str]:
    """Return values for the rows of a view as a 1-D array, and a name for error messages.

    Parameters
    ----------
    name : str
        The name of the parameter of `npstream.Dataset.iter`.
    values, load, shape
        As for `make_mask`.
    """
    text = f"column {values!r}" if isinstance(values, str) else f"{name}="
    array = load(values) if isinstance(values, str) else values
    if not isinstance(array, np.ndarray):
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise TypeError(f"{text} has values of different sizes: {error}") from None
    if array.shape not in (shape, (math.prod(shape),)):
        raise ValueError(
            f"{text} has the shape {array.shape}, and the view has the shape {shape}: give one "
            "value for each row"
        )
    return array.reshape(-1), text


class ValidOrder:
    """The rows of an order that a mask marks as valid, in the same relative order.

    Parameters
    ----------
    order : RowOrder
        The order of all rows.
    mask : RowMask
        The valid rows.

    Examples
    --------
    >>> from npstream.orders.order import SequentialOrder
    >>> mask = RowMask.pack(np.array([True, False, True, True]))
    >>> ValidOrder(SequentialOrder(4), mask).at(np.array([2, 0, 1]))
    array([3, 0, 2])
    """

    def __init__(self, order: RowOrder, mask: RowMask) -> None:
        self._order, self._mask = order, mask
        # _ends[k] is the number of valid rows in windows 0 to k, for the windows counted so far.
        self._ends = np.zeros(-(-len(order) // WINDOW), np.int64)
        self._counted = 0
        self._windows: dict[int, Int64] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._mask.count

    def at(self, positions: Int64) -> Int64:
        """Return the valid rows at `positions`, in the same shape.

        Each position must be less than ``len(self)``, the number of valid rows.
        """
        rows = np.empty_like(positions)
        if not positions.size:
            return rows
        flat, flat_rows = positions.reshape(-1), rows.reshape(-1)
        with self._lock:
            self._count_beyond(int(flat.max()))
            windows = np.searchsorted(self._ends[: self._counted], flat, side="right")
            for window in np.unique(windows).tolist():
                inside = windows == window
                start = self._ends[window - 1] if window else 0
                flat_rows[inside] = self._valid_rows(window)[flat[inside] - start]
        return rows

    def _count_beyond(self, position: int) -> None:
        """Count windows until they have more than `position` valid rows."""
        while not self._counted or self._ends[self._counted - 1] <= position:
            window = self._counted
            before = self._ends[window - 1] if window else 0
            self._ends[window] = before + len(self._valid_rows(window))
            self._counted += 1

    def _valid_rows(self, window: int) -> Int64:
        """Return the valid rows of a window, in their order."""
        valid = self._windows.pop(window, None)
        if valid is None:
            rows = self._order.rows(window * WINDOW, (window + 1) * WINDOW)
            valid = rows[self._mask.at(rows)]
            while len(self._windows) >= _MAX_WINDOWS:
                del self._windows[next(iter(self._windows))]  # the least recently used one
        self._windows[window] = valid
        return valid
