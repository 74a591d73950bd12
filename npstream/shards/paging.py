"""Provide `PagePrefetcher`, which requests pages of mapped files before they are read."""

from __future__ import annotations

import mmap
import resource

import numpy as np

from npstream._core.typing import Int64
from npstream.shards import kernels

PROBE_ROWS = 32
"""Rows that a probe touches to find out if their pages are in memory."""

ROWS_PER_PROBE_FAULT = 8
"""Pages count as in memory if at most one of this number of probed rows causes a major fault."""

ROWS_PER_FAULT = 64
"""Reads are not prefetched while at most one of this number of rows causes a major fault."""

READS_PER_PROBE = 4
"""Reads that are prefetched after a probe that found missing pages."""


class PagePrefetcher:
    """Prefetches the pages of reads while pages are missing from memory.

    Prefetching costs a system call for each row, many times the cost of copying a row that is in
    memory. It saves most of the cost of a page fault. The process's count of major faults decides:
    a probe touches a few rows, and if their pages were missing, this read and the next few are
    prefetched. If the pages were in memory, reads are not prefetched until they cause more than one
    major fault in `ROWS_PER_FAULT` rows.

    Attributes
    ----------
    is_resident : bool
        True while reads find their pages in memory.
    """

    def __init__(self) -> None:
        self.is_resident = False
        self._reads_to_prefetch = 0
        self._faults = 0
        self._unchecked_rows = 0

    @property
    def is_active(self) -> bool:
        """True while reads are prefetched."""
        return self._reads_to_prefetch > 0

    def prefetch(self, address: Int64, nbytes: Int64) -> None:
        """Prefetch the pages of spans if pages are missing."""
        if not self._reads_to_prefetch:
            before = _major_faults()
            kernels.touch_pages.for_size(PROBE_ROWS)(address[:PROBE_ROWS], nbytes[:PROBE_ROWS])
            self._faults, self._unchecked_rows = _major_faults(), 0
            rows = min(len(address), PROBE_ROWS)
            self.is_resident = self._faults - before <= rows // ROWS_PER_PROBE_FAULT
            if self.is_resident:
                return
            self._reads_to_prefetch = READS_PER_PROBE
        self._reads_to_prefetch -= 1
        prefetch_pages(address, nbytes)

    def count_rows(self, rows: int) -> None:
        """Count the rows of a read that was not prefetched, and check for faults now and then."""
        self._unchecked_rows += rows
        if self._unchecked_rows >= 1 << 12:  # a check takes a microsecond
            faults = _major_faults()
            self.is_resident = faults - self._faults <= self._unchecked_rows // ROWS_PER_FAULT
            self._faults, self._unchecked_rows = faults, 0


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def prefetch_pages(address: Int64, nbytes: Int64) -> None:
    """Request the pages of spans, merging neighbors.

    Parameters
    ----------
    address, nbytes : ndarray of int64, shape (n,)
    """
    if (address[1:] < address[:-1]).any():
        order = np.argsort(address)
        address, nbytes = address[order], nbytes[order]
    kernels.will_need_spans.for_size(len(address))(address, nbytes, mmap.PAGESIZE, MAX_PAGE_GAP)


MAX_PAGE_GAP = 1 << 14
"""Gaps of up to this many bytes between two rows are prefetched with them."""
