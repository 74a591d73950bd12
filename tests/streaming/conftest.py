"""Datasets and ranks for tests of Streaming's classes."""

from __future__ import annotations

import numpy as np
import pytest

import npstream


@pytest.fixture
def set_rank(monkeypatch):
    """Return a function that sets the environment of a rank, as torchrun does."""

    def set_variables(rank=0, world=1, per_node=None):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        if per_node is None:
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_node))

    return set_variables


@pytest.fixture
def numbers(tmp_path):
    """Return the directory of 100 samples in shards of 10."""
    path = tmp_path / "numbers"
    arrays = np.arange(300, dtype=np.float32).reshape(100, 3)
    columns = {"id": np.arange(100), "name": [f"n{i}" for i in range(100)], "array": arrays}
    npstream.write(path, columns, shard_samples=10)
    return str(path)
