"""Provide `InputTracker`, which knows the input sample of each row that is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["InputTracker"]


@dataclass(slots=True)
class _Run:
    """The input samples of consecutive rows, in a compact form.

    All rows come from one sample, or each row is the first output of the next sample. `numbers` and
    `outputs` list rows that follow neither rule.

    Attributes
    ----------
    row : int
        The first row.
    number, output : int
        The number of the first row's input sample, and how many outputs of `map=` for that sample
        come before the row.
    is_one_sample : bool or None
        True if all rows come from one sample. False if each row is the first output of the next
        sample. None for a run of one row, which can become either.
    numbers, outputs : sequence of int
        `number` and `output` of every row; empty if the other attributes are sufficient.
    """

    row: int
    number: int
    output: int = 0
    is_one_sample: bool | None = False
    numbers: Sequence[int] = ()
    outputs: Sequence[int] = ()

    def at(self, row: int) -> tuple[int, int]:
        """Return `number` and `output` of a row."""
        offset = row - self.row
        if len(self.numbers):
            return int(self.numbers[offset]), int(self.outputs[offset])
        if self.is_one_sample is False:
            return self.number + offset, 0
        return self.number, self.output + offset


class InputTracker:
    """Records which input sample each row comes from, until the row's shard is stored.

    Parameters
    ----------
    row : int
        The number of the next row.
    number : int
        The number of the next input sample.
    reject_state : tuple of (int, int)
        The number of samples that were left out so far, and the size of the file of rejects, in
        bytes.
    """

    def __init__(self, row: int, number: int, reject_state: tuple[int, int]) -> None:
        self._last = _Run(row, number)
        self._runs = deque([self._last])
        self._reject_state = reject_state
        # The position of each output that was left out, and the reject state after it.
        self._reject_states: deque[tuple[tuple[int, int], tuple[int, int]]] = deque()

    def add_output(self, row: int, number: int, output: int) -> None:
        """Record that the next row is output number `output` of `map=` for an input sample."""
        last = self._last
        offset = row - last.row
        can_hold_outputs = last.is_one_sample is not False
        if can_hold_outputs and (number, output) == (last.number, last.output + offset):
            last.is_one_sample = True  # another output of the same sample
            return
        # A run of many samples begins with a first output. A run of `add_batch` does not grow.
        can_hold_samples = not (last.is_one_sample or last.output or last.numbers)
        if can_hold_samples and (number, output) == (last.number + offset, 0):
            last.is_one_sample = False  # the first output of the next sample
            return
        self._add(_Run(row, number, output, is_one_sample=None))

    def _add(self, run: _Run) -> None:
        self._last = run
        self._runs.append(run)

    def add_batch(self, row: int, numbers: Sequence[int], outputs: Sequence[int]) -> None:
        """Record, for each of the next rows, its input sample and its number among the outputs."""
        self._add(_Run(row, 0, numbers=numbers, outputs=outputs))

    def add_reject(self, number: int, output: int, reject_state: tuple[int, int]) -> None:
        """Record that an output is left out; `reject_state` includes this output."""
        self._reject_states.append(((number, output), reject_state))

    def skip(self, row: int, number: int) -> None:
        """Record that the next row comes from sample `number`: those before it were left out."""
        self._add(_Run(row, number))

    def position(self, row: int) -> tuple[int, int]:
        """Return the number of a row's input sample, and how many of its outputs precede the row.

        Rows must not decrease from call to call, because earlier ones are dropped.
        """
        while len(self._runs) > 1 and self._runs[1].row <= row:
            self._runs.popleft()
        return self._runs[0].at(row)

    def rejected_before(self, position: tuple[int, int]) -> tuple[int, int]:
        """Return the reject state at a position. Positions must not decrease from call to call."""
        while self._reject_states and self._reject_states[0][0] < position:
            self._reject_state = self._reject_states.popleft()[1]
        return self._reject_state
