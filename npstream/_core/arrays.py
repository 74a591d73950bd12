"""Arrays of numbers: grouping, and checks of positions.

Tested in tests/dataset/test_dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from npstream._core.typing import Int64

Rows: TypeAlias = slice | Int64
"""Which of some samples."""


def group_positions(numbers: Int64) -> Iterator[tuple[int, Rows]]:
    """Yield each number that occurs, rising, and where it does.

    Examples
    --------
    >>> list(group_positions(np.array([7, 3, 7])))
    [(3, array([1])), (7, array([0, 2]))]
    """
    if not len(numbers):
        return
    if (numbers == numbers[0]).all():
        yield int(numbers[0]), slice(None)
        return
    least = int(numbers.min())
    short = numbers - least
    if short.max() < 1 << 16:
        short = short.astype(np.uint16)  # are sorted by their digits, in a fifth of the time
    order = np.argsort(short, kind="stable")
    short = short[order]
    cuts = [0, *(np.flatnonzero(short[1:] != short[:-1]) + 1).tolist(), len(order)]
    for first, stop in pairwise(cuts):
        yield least + int(short[first]), order[first:stop]


def out_of_bounds(positions: Int64, n: int) -> bool:
    """Return True if a position is negative, or n or more."""
    # As unsigned numbers, negative ones are too large as well.
    unsigned = positions.view(np.uint64)
    return bool(positions.size) and unsigned.item(unsigned.argmax()) >= n


def in_bounds(indices: Any, size: int) -> Any:
    """Return indices of a ravelled array as numbers from 0; raise IndexError out of bounds."""
    array = np.asarray(indices)
    wrong = (array < -size) | (array >= size)
    if wrong.any():
        first = array[wrong].flat[0]
        raise IndexError(f"index {first} is out of bounds for axis 0 with size {size}")
    return np.where(array < 0, array + size, array)
