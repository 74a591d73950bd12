"""Writes with ``resume=True``: after a kill at any step, the next call gives the same result."""

from __future__ import annotations

import itertools
import shutil

import pytest
from resumed_writes import (
    CASES,
    count_steps,
    facts,
    kill_at_step,
    local_files,
    write_case,
)

from npstream.writing.destination import WORK

RUNS = 3
"""The number of runs of each case. Each run kills the write at other steps."""


@pytest.mark.parametrize("case", CASES)
def test_a_killed_write_goes_on(case, tmp_path):
    rejects = tmp_path / "rejects"
    report = write_case(case, tmp_path / "whole", rejects, resume=False)
    whole, rejected = local_files(tmp_path / "whole"), rejects.exists() and rejects.read_bytes()
    assert report.shards > 3

    def write():
        return write_case(case, tmp_path / "resumed", rejects, resume=True)

    steps = count_steps(write)
    assert local_files(tmp_path / "resumed") == whole
    assert steps > 40
    for run in range(RUNS):
        shutil.rmtree(tmp_path / "resumed")
        # In a run, each attempt is killed at a later step than the one before. The runs of all
        # cases cover all steps.
        first = 1 + (list(CASES).index(case) * RUNS + run) % (steps // 4)
        for step in itertools.count(first, steps // 4):
            is_killed = kill_at_step(step, write)
            files = local_files(tmp_path / "resumed")
            if not is_killed or ("index.json" in files and WORK not in files):
                break
            assert "index.json" not in files or files.keys() >= whole.keys()
        assert local_files(tmp_path / "resumed") == whole
        assert (rejects.exists() and rejects.read_bytes()) == rejected


@pytest.mark.parametrize("case", ["samples", "arrays", "map, and bad samples", "parts of tables"])
def test_a_write_that_is_killed_while_it_publishes(case, tmp_path):
    """A write that has published its index, but not yet removed its work file, can be resumed."""
    report = write_case(case, tmp_path / "whole", tmp_path / "rejects", resume=False)
    whole = local_files(tmp_path / "whole")

    def write():
        return write_case(case, tmp_path / "resumed", tmp_path / "rejects", resume=True)

    steps = count_steps(write)
    published = 0
    for step in range(steps, steps - 16, -1):
        shutil.rmtree(tmp_path / "resumed")
        assert kill_at_step(step, write)
        files = local_files(tmp_path / "resumed")
        if WORK in files:
            published += "index.json" in files
            assert facts(write()) == facts(report)
        assert local_files(tmp_path / "resumed") == whole
    assert published
