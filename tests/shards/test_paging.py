"""Reads are announced where pages have been missing, and not where they are there."""

from __future__ import annotations

import numpy as np
import pytest

from npstream._core.memory import address_of, map_file
from npstream.shards import paging as pages

ROWS = 1 << 12


class Machine:
    """A process whose major faults are counted by the test."""

    def __init__(self, monkeypatch, tmp_path):
        (tmp_path / "file").write_bytes(bytes(ROWS))
        self.held = map_file(str(tmp_path / "file"))
        self.address = address_of(self.held) + np.arange(ROWS)
        self.nbytes = np.ones(ROWS, np.int64)
        self.faults = self.missing = self.announced = 0
        monkeypatch.setattr(pages, "_major_faults", lambda: self.faults)
        monkeypatch.setattr(pages, "prefetch_pages", self.prefetch)
        monkeypatch.setattr(pages, "kernels", self)
        self.cold = pages.PagePrefetcher()

    def prefetch(self, address, nbytes):
        assert len(address) == len(nbytes) == ROWS
        self.announced += 1

    @property
    def touch(self):
        return self

    def for_size(self, rows):
        return self.fault

    def fault(self, address, nbytes):
        assert len(address) == len(nbytes) == pages.PROBE_ROWS
        self.faults += self.missing

    def read(self):
        """Read as a fetcher does; return whether that was announced."""
        before = self.announced
        if self.cold.is_resident:
            self.faults += 30 * self.missing
            self.cold.count_rows(ROWS)
        else:
            self.cold.prefetch(self.address, self.nbytes)
        return self.announced > before


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


def test_nothing_is_announced_where_pages_are_there(machine):
    assert not any(machine.read() for _ in range(100))
    assert not machine.cold.is_active


def test_everything_is_announced_while_pages_are_missing(machine):
    machine.missing = pages.PROBE_ROWS
    assert all(machine.read() for _ in range(25 * pages.READS_PER_PROBE + 1))
    assert machine.cold.is_active


def test_a_few_missing_pages_do_not_matter(machine):
    machine.missing = pages.PROBE_ROWS >> 3
    assert not machine.read()


def test_announcing_ends_when_pages_are_there(machine):
    machine.missing = pages.PROBE_ROWS
    for _ in range(10):
        machine.read()
    machine.missing = 0
    announced = [machine.read() for _ in range(100)]
    assert not any(announced[pages.READS_PER_PROBE :])


def test_announcing_begins_again_after_a_read_that_faulted(machine):
    assert not machine.read()
    machine.missing = pages.PROBE_ROWS
    assert not machine.read()  # the read that finds out
    assert machine.read()


def test_looks_come_every_few_reads(machine):
    looks = []
    fault = machine.fault
    machine.fault = lambda *args: (looks.append(machine.announced), fault(*args))
    machine.missing = pages.PROBE_ROWS
    for _ in range(100):
        machine.read()
    assert set(np.diff(looks).tolist()) == {pages.READS_PER_PROBE}
