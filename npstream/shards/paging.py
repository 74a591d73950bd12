"""Asking for pages of mapped files before they are read, where they are not in memory."""

from __future__ import annotations

import mmap
import resource

import numpy as np

from npstream._core.typing import Int64
from npstream.shards import kernels

LOOK = 32
"""Rows that are touched to see whether their pages are in memory."""

STREAK = 4
"""Reads that are announced before a look at whether that is still of use."""


class Coldness:
    """Whether pages are asked for before they are read.

    Asking costs a system call a row, many times what it takes to copy a row that is in memory,
    and saves most of a page fault. The process's count of major faults tells which it will be: a
    few rows are touched, and if their pages were missing, this read and the next few are
    announced. Where they were there, reads are not announced until one of them has faulted.
    """

    def __init__(self) -> None:
        self.warm = False
        self._announce = 0
        self._faults = 0
        self._unseen = 0

    @property
    def expected(self) -> bool:
        """Whether reads are being announced."""
        return self._announce > 0

    def prepare(self, address: Int64, nbytes: Int64) -> None:
        """Announce a read of spans, if pages are missing."""
        if not self._announce:
            before = _major_faults()
            kernels.touch.for_size(LOOK)(address[:LOOK], nbytes[:LOOK])
            self._faults, self._unseen = _major_faults(), 0
            self.warm = self._faults - before <= min(len(address), LOOK) >> 3
            if self.warm:
                return
            self._announce = STREAK
        self._announce -= 1
        prefetch_pages(address, nbytes)

    def observe(self, rows: int) -> None:
        """Take note of what a read of `rows` rows has done that was not announced."""
        self._unseen += rows
        if self._unseen >= 1 << 12:  # looking takes a microsecond
            faults = _major_faults()
            self.warm = faults - self._faults <= self._unseen >> 6
            self._faults, self._unseen = faults, 0


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def prefetch_pages(address: Int64, nbytes: Int64) -> None:
    """Ask for the pages of spans, neighbors merged.

    Parameters
    ----------
    address, nbytes : ndarray of int64, shape (n,)
    """
    if (address[1:] < address[:-1]).any():
        order = np.argsort(address)
        address, nbytes = address[order], nbytes[order]
    kernels.will_need_spans.for_size(len(address))(address, nbytes, mmap.PAGESIZE, _GAP)


_GAP = 1 << 14
"""Bytes between two rows that are read rather than skipped."""
