"""The operations of `reports/memory.py` run on little data, so that they do not break unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

import memory

NBYTES = 1 << 18

# LitData's `optimize` starts processes, which takes seconds.
LOCAL = [
    each
    for each in memory.OPERATIONS
    if not each.is_remote and each.make is not memory.make_litdata
]


@pytest.mark.parametrize("operation", LOCAL, ids=lambda operation: operation.title)
def test_operation_writes_samples(
    operation: memory.Operation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(memory.options, "shard_size", NBYTES // memory.SHARDS)
    (tmp_path / "source").mkdir()
    operation.make(tmp_path / "source", NBYTES)
    report = operation.run(tmp_path / "source", tmp_path / "written")
    assert getattr(report, "samples", 0) > 0
