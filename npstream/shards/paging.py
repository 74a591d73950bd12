"""Asking for pages of mapped files before they are read, where they are not in memory."""

from __future__ import annotations

import mmap
import resource

import numpy as np

from npstream._core.typing import Int64
from npstream.shards import kernels

PROBE_ROWS = 32
"""Rows that are touched to see whether their pages are in memory."""

READS_PER_PROBE = 4
"""Reads that are announced before a look at whether that is still of use."""


class PagePrefetcher:
    """Whether pages are asked for before they are read.

    Asking costs a system call a row, many times what it takes to copy a row that is in memory,
    and saves most of a page fault. The process's count of major faults tells which it will be: a
    few rows are touched, and if their pages were missing, this read and the next few are
    announced. Where they were there, reads are not announced until one of them has faulted.
    """

    def __init__(self) -> None:
        self.is_resident = False
        self._reads_to_prefetch = 0
        self._faults = 0
        self._unchecked_rows = 0

    @property
    def is_active(self) -> bool:
        """Whether reads are being announced."""
        return self._reads_to_prefetch > 0

    def prefetch(self, address: Int64, nbytes: Int64) -> None:
        """Announce a read of spans, if pages are missing."""
        if not self._reads_to_prefetch:
            before = _major_faults()
            kernels.touch.sized(PROBE_ROWS)(address[:PROBE_ROWS], nbytes[:PROBE_ROWS])
            self._faults, self._unchecked_rows = _major_faults(), 0
            self.is_resident = self._faults - before <= min(len(address), PROBE_ROWS) >> 3
            if self.is_resident:
                return
            self._reads_to_prefetch = READS_PER_PROBE
        self._reads_to_prefetch -= 1
        prefetch_pages(address, nbytes)

    def count_rows(self, rows: int) -> None:
        """Take note of what a read of `rows` rows has done that was not announced."""
        self._unchecked_rows += rows
        if self._unchecked_rows >= 1 << 12:  # looking takes a microsecond
            faults = _major_faults()
            self.is_resident = faults - self._faults <= self._unchecked_rows >> 6
            self._faults, self._unchecked_rows = faults, 0


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
    kernels.will_need_spans.sized(len(address))(address, nbytes, mmap.PAGESIZE, MAX_PAGE_GAP)


MAX_PAGE_GAP = 1 << 14
"""Bytes between two rows that are read rather than skipped."""
