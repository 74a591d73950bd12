"""Which positions of an order a rank reads, batch by batch: arithmetic, nothing else.

The batches with number t of all ranks are one run of positions, the global batch, dealt to the
ranks in turn: sample i of rank k has position ``t * batch_size * world + i * world + k``. So what
a global batch holds does not depend on how many ranks share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npstream._typing import Int64

LAST = ("repeat", "drop", "short")
"""What becomes of the last global batch, where too few samples are left to fill it."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One rank's part of an order.

    Parameters
    ----------
    size : int
        Samples in the order.
    rank, world : int
        Number of this rank, from 0, and of all ranks.
    batch_size : int
        Samples of each rank in a batch.
    last : {"repeat", "drop", "short"}
        Whether the last global batch is filled up with the first positions of the order, is left
        out, or holds what is left, so that ranks may differ in their number of samples.

    Examples
    --------
    >>> part = Partition(size=8, rank=1, world=2, batch_size=3)
    >>> part.positions(range(part.batches))
    array([ 1,  3,  5,  7,  9, 11])

    Positions from `size` on stand for the first ones: 9 and 11 for 1 and 3.
    """

    size: int
    rank: int
    world: int
    batch_size: int
    last: str = "repeat"

    @property
    def samples(self) -> int:
        """Samples that the rank reads, repeated ones included."""
        return len(range(self.rank, self._end, self.world))

    @property
    def batches(self) -> int:
        """Batches that the rank reads."""
        return -(-self.samples // self.batch_size)

    def positions(self, batches: range) -> Int64:
        """Return the positions of the samples in some of the rank's batches."""
        first = np.arange(batches.start, batches.stop, batches.step) * (
            self.world * self.batch_size
        )
        within = np.arange(self.rank, self.world * self.batch_size, self.world)
        positions = np.add.outer(first, within).reshape(-1)
        # Only a short last batch ends early.
        return positions if self.last != "short" else positions[positions < self._end]

    @property
    def _end(self) -> int:
        """The position after the last one that some rank reads."""
        whole = self.world * self.batch_size
        if self.last == "short":
            return self.size
        full = self.size // whole if self.last == "drop" else -(-self.size // whole)
        return full * whole
