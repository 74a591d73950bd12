"""Basic indices on the axes of one value, composed without reading it.

Tested in tests/dataset/test_column.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any


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


def as_slice(axis: range) -> slice:
    """Return the slice that picks these numbers, none of them negative."""
    if len(axis) == 0:
        return slice(0, 0)
    stop: Any = axis.stop if axis.stop >= 0 else None
    return slice(axis.start, stop, axis.step)
