"""Provide `Array`, the base class of datasets that are indexed like Streaming's.

Tested in tests/streaming/test_dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import Int64


class Array:
    """A list of samples, indexed by integers, slices, lists and integer arrays.

    Subclasses provide `size` and `get_item`.
    """

    @property
    def size(self) -> int:
        """The number of samples."""
        raise NotImplementedError

    def get_item(self, idx: int) -> Any:
        """Return a sample. For `npstream.streaming` only.

        Parameters
        ----------
        idx : int
            Number of the sample, from 0 to ``size - 1``.

        Returns
        -------
        Any
        """
        raise NotImplementedError

    def __getitem__(self, at: Any) -> Any:
        """Return a sample for an integer; for a slice, a list or an array, a list of samples."""
        if isinstance(at, int | np.integer):
            size = self.size
            return self.get_item(int(at) + size if -size <= at < 0 else int(at))
        if isinstance(at, slice):
            return self._npstream_items(range(*at.indices(self.size)))
        if isinstance(at, list | np.ndarray):
            if self._npstream_reads_itself and (numbers := _row_numbers(at)) is not None:
                return self._npstream_items(_wrap(numbers, self.size))
            return [self[part] for part in at]
        raise ValueError(
            f"an index of type {type(at).__name__}: expected an integer, a slice, a list or an "
            "array of integers; npstream.open(...) has columns, masks and views"
        )

    _npstream_reads_itself = False
    """Whether no subclass overrides how samples are read, so that many can be read at once."""

    def _npstream_items(self, numbers: Iterable[int] | Int64) -> list[Any]:
        """Return samples, given numbers from 0 to ``size - 1``."""
        return [self.get_item(number) for number in numbers]


def _row_numbers(at: Any) -> Int64 | None:
    """Return a flat sequence of integers as an array; None for anything else."""
    is_array = isinstance(at, np.ndarray)
    if not is_array and not all(type(number) is int for number in at):
        return None
    try:
        numbers = np.asarray(at) if len(at) else np.empty(0, np.int64)
    except (OverflowError, TypeError):  # a 0-d array, which has no length
        return None
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        return None
    return numbers.astype(np.int64)


def _wrap(numbers: Int64, size: int) -> Int64:
    """Replace negative numbers, which count from the end; raise IndexError for invalid ones."""
    invalid = (numbers < -size) | (numbers >= size)
    if invalid.any():
        number = int(numbers[invalid.argmax()])
        raise IndexError(
            f"index {number} is out of bounds for a dataset of {quantity(size, 'sample')}"
        )
    return np.where(numbers < 0, numbers + size, numbers)
