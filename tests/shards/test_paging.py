"""Tests of `PagePrefetcher`: reads are prefetched only while pages are missing."""

from __future__ import annotations

import numpy as np
import pytest

from npstream._core.memory import address_of, map_file
from npstream.shards import paging

ROWS = 1 << 12


class FakeProcess:
    """A process whose count of major faults the test controls.

    A probe causes `missing_pages` faults.
    """

    def __init__(self, monkeypatch, tmp_path):
        (tmp_path / "file").write_bytes(bytes(ROWS))
        self.mapped = map_file(str(tmp_path / "file"))
        self.address = address_of(self.mapped) + np.arange(ROWS)
        self.nbytes = np.ones(ROWS, np.int64)
        self.faults = self.missing_pages = self.prefetches = 0
        monkeypatch.setattr(paging, "_major_faults", lambda: self.faults)
        monkeypatch.setattr(paging, "prefetch_pages", self.prefetch)
        monkeypatch.setattr(paging, "kernels", self)
        self.prefetcher = paging.PagePrefetcher()

    def prefetch(self, address, nbytes):
        assert len(address) == len(nbytes) == ROWS
        self.prefetches += 1

    @property
    def touch_pages(self):
        """Replaces the kernel `touch_pages` by `probe`."""
        return self

    def for_size(self, rows):
        return self.probe

    def probe(self, address, nbytes):
        assert len(address) == len(nbytes) == paging.PROBE_ROWS
        self.faults += self.missing_pages

    def read(self):
        """Read as `Fetcher.read` does; return True if the read was prefetched."""
        before = self.prefetches
        if self.prefetcher.is_resident:
            # The same fraction of all rows is missing as of the rows of a probe.
            self.faults += ROWS // paging.PROBE_ROWS * self.missing_pages
            self.prefetcher.count_rows(ROWS)
        else:
            self.prefetcher.prefetch(self.address, self.nbytes)
        return self.prefetches > before


@pytest.fixture
def process(monkeypatch, tmp_path):
    return FakeProcess(monkeypatch, tmp_path)


def test_nothing_is_prefetched_while_pages_are_resident(process):
    assert not any(process.read() for _ in range(100))
    assert not process.prefetcher.is_active


def test_every_read_is_prefetched_while_pages_are_missing(process):
    process.missing_pages = paging.PROBE_ROWS
    assert all(process.read() for _ in range(25 * paging.READS_PER_PROBE + 1))
    assert process.prefetcher.is_active


def test_a_few_missing_pages_start_no_prefetch(process):
    process.missing_pages = paging.PROBE_ROWS // paging.ROWS_PER_PROBE_FAULT
    assert not process.read()


def test_prefetching_stops_when_pages_are_resident(process):
    process.missing_pages = paging.PROBE_ROWS
    for _ in range(10):
        process.read()
    process.missing_pages = 0
    is_prefetched = [process.read() for _ in range(100)]
    assert not any(is_prefetched[paging.READS_PER_PROBE :])


def test_prefetching_starts_again_after_a_read_with_faults(process):
    assert not process.read()
    process.missing_pages = paging.PROBE_ROWS
    assert not process.read()  # this read detects the faults
    assert process.read()


def test_probes_come_every_few_reads(process):
    prefetches_at_probe = []
    probe = process.probe
    process.probe = lambda *args: (prefetches_at_probe.append(process.prefetches), probe(*args))
    process.missing_pages = paging.PROBE_ROWS
    for _ in range(100):
        process.read()
    assert set(np.diff(prefetches_at_probe).tolist()) == {paging.READS_PER_PROBE}
