"""Provide `InputTracker`, which knows the input sample of each row that is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["InputTracker"]


@dataclass(slots=True)
class _Run:
    """The input samples of consecutive rows.

    Attributes
    ----------
    row : int
        The first row.
    number, output : int
        The number of its input sample, and how many outputs of `map=` for that sample come before.
    is_same : bool or None
        Whether all rows come from one input sample. Otherwise each comes from the next one, and is
        its first output. None for a run of one row, which can become either.
    numbers, outputs : sequence of int
        If not empty: the same as `number` and `output` for each row.
    """

    row: int
    number: int
    output: int = 0
    is_same: bool | None = False
    numbers: Sequence[int] = ()
    outputs: Sequence[int] = ()

    def at(self, row: int) -> tuple[int, int]:
        """Return the number of the input sample of a row, and the output's among its outputs."""
        later = row - self.row
        if len(self.numbers):
            return int(self.numbers[later]), int(self.outputs[later])
        if self.is_same is False:
            return self.number + later, 0
        return self.number, self.output + later


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
        self._last = _Run(row, number)
        self._runs = deque([self._last])
        self._rejected = rejected
        self._later_rejects: deque[tuple[tuple[int, int], tuple[int, int]]] = deque()

    def add_output(self, row: int, number: int, output: int) -> None:
        """Record that the next row is output number `output` of `map=` for an input sample."""
        last = self._last
        later = row - last.row
        if last.is_same is not False and number == last.number and output == last.output + later:
            last.is_same = True
            return
        is_next = not output and number == last.number + later and not last.numbers
        if is_next and (last.is_same is False or (last.is_same is None and not last.output)):
            last.is_same = False
            return
        self._add(_Run(row, number, output, is_same=None))

    def _add(self, run: _Run) -> None:
        self._last = run
        self._runs.append(run)

    def add_batch(self, row: int, numbers: Sequence[int], outputs: Sequence[int]) -> None:
        """Record the next rows: from which input samples, and which of their outputs they are."""
        self._add(_Run(row, 0, numbers=numbers, outputs=outputs))

    def add_reject(self, number: int, output: int, rejected: tuple[int, int]) -> None:
        """Record that an output is left out; `rejected` is as in the constructor, after it."""
        self._later_rejects.append(((number, output), rejected))

    def skip(self, row: int, number: int) -> None:
        """Record that the next row is input sample `number`, as those before it were left out."""
        self._add(_Run(row, number))

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
