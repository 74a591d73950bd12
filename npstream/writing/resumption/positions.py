"""Provide `InputTracker`, which knows the input sample of each row that is written.

Tested in tests/writing/resumption/test_resume.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["InputTracker"]


@dataclass(frozen=True, slots=True)
class _Run:
    """The input samples of consecutive rows.

    Attributes
    ----------
    row : int
        The first row.
    numbers : int or sequence of int
        The number of its input sample, or those of all rows.
    outputs : int or sequence of int
        How many outputs of `map=` for the same input sample come before this row.
    is_same : bool
        Whether all rows come from one input sample. Otherwise each comes from the next one.
    """

    row: int
    numbers: int | Sequence[int]
    outputs: int | Sequence[int]
    is_same: bool = False

    def at(self, row: int) -> tuple[int, int]:
        """Return the number of the input sample of a row, and the output's among its outputs."""
        later = row - self.row
        if not isinstance(self.numbers, int):
            assert not isinstance(self.outputs, int)
            return int(self.numbers[later]), int(self.outputs[later])
        assert isinstance(self.outputs, int)
        if self.is_same:
            return self.numbers, self.outputs + later
        return self.numbers + later, 0


class InputTracker:
    """Knows from which input sample each row comes that is not yet part of a stored shard.

    Parameters
    ----------
    row : int
        The number of the next row.
    number : int
        The number of the next input sample.
    rejected : tuple of (int, int)
        The number of samples that were left out so far, and the bytes of the file that records
        them.
    """

    def __init__(self, row: int, number: int, rejected: tuple[int, int]) -> None:
        self._runs = deque([_Run(row, number, 0)])
        self._rejected = rejected
        self._later_rejects: deque[tuple[tuple[int, int], tuple[int, int]]] = deque()

    def add_output(self, row: int, number: int, output: int) -> None:
        """Record that the next row is output number `output` of `map=` for an input sample."""
        last = self._runs[-1]
        if not (last.is_same and last.at(row) == (number, output)):
            self._runs.append(_Run(row, number, output, is_same=True))

    def add_batch(self, row: int, numbers: Sequence[int], outputs: Sequence[int]) -> None:
        """Record the next rows: from which input samples, and which of their outputs they are."""
        self._runs.append(_Run(row, numbers, outputs))

    def add_reject(self, number: int, output: int, rejected: tuple[int, int]) -> None:
        """Record that an output is left out; `rejected` is as in the constructor, after it."""
        self._later_rejects.append(((number, output), rejected))

    def skip(self, row: int, number: int) -> None:
        """Record that the next row is input sample `number`, as those before it were left out."""
        self._runs.append(_Run(row, number, 0))

    def position(self, row: int) -> tuple[int, int]:
        """Return the number of a row's input sample, and how many of its outputs precede the row.

        Later calls ask for later rows.
        """
        while len(self._runs) > 1 and self._runs[1].row <= row:
            self._runs.popleft()
        return self._runs[0].at(row)

    def rejected_before(self, position: tuple[int, int]) -> tuple[int, int]:
        """Return how many samples before a position were left out, and the bytes of their file."""
        while self._later_rejects and self._later_rejects[0][0] < position:
            self._rejected = self._later_rejects.popleft()[1]
        return self._rejected
