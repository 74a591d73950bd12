"""Asking for pages of mapped files before they are read, where they are not in memory."""

from __future__ import annotations

import mmap
import resource

import numpy as np

from npstream import kernels
from npstream._typing import Int64


class Coldness:
    """Whether pages should be asked for before they are read.

    That costs a system call a row and saves most of the time of a page fault, so it pays on cold
    data only. The process's count of major faults tells: a read that was not announced and
    faulted makes the next ones announced, each time four times as many. One that did not fault
    only halves that, since it may have been announced ahead.
    """

    def __init__(self) -> None:
        self._announce = self._streak = 4
        self._faults = _major_faults()

    @property
    def expected(self) -> bool:
        """Whether the next read will be announced."""
        return self._announce > 0

    def advise(self) -> bool:
        """Count a read; tell whether it is to be announced."""
        if self._announce:
            self._announce -= 1
            if not self._announce:
                self._faults = _major_faults()
            return True
        return False

    def observe(self, rows: int) -> None:
        """Take note of what a read of `rows` rows that was not announced has done."""
        faults = _major_faults()
        if faults - self._faults > rows >> 6:
            self._streak = min(4 * self._streak, 1 << 12)
            self._announce = self._streak
        else:
            self._streak = max(4, self._streak // 2)
        self._faults = faults


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def prefetch(address: Int64, nbytes: Int64) -> None:
    """Ask for the pages of spans, neighbours merged.

    Parameters
    ----------
    address, nbytes : ndarray of int64, shape (n,)
    """
    if (address[1:] < address[:-1]).any():
        order = np.argsort(address)
        address, nbytes = address[order], nbytes[order]
    kernels.prefetch.sized(len(address))(address, nbytes, mmap.PAGESIZE, _GAP)


_GAP = 1 << 14
"""Bytes between two rows that are read rather than skipped."""
