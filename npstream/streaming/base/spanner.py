"""Provide `Spanner`, which finds the shard of a sample.

Tested in tests/streaming/test_dataset.py.
"""

from __future__ import annotations

import operator

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import Int64

__all__ = ["Spanner"]


class Spanner:
    """The shard of each sample, and the number of the sample in this shard.

    Parameters
    ----------
    shard_sizes : ndarray of int64
        The number of samples of each shard.
    span_size : int, default: 1024
        Not used: the shard is found by bisection.

    Examples
    --------
    >>> Spanner(np.array([5, 10]))[7]
    (1, 2)
    """

    def __init__(self, shard_sizes: Int64, span_size: int = 1 << 10) -> None:
        self.shard_sizes, self.span_size = np.asarray(shard_sizes, np.int64), span_size
        self.shard_bounds = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self.num_samples = int(self.shard_bounds[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample, and the number of the sample in this shard."""
        number = operator.index(index)
        if not 0 <= number < self.num_samples:
            raise IndexError(
                f"index {number} is out of bounds for {quantity(self.num_samples, 'sample')}"
            )
        shard = int(np.searchsorted(self.shard_bounds, number, side="right")) - 1
        return shard, number - int(self.shard_bounds[shard])
