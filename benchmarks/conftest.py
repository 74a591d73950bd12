"""Tiny datasets for running each benchmark once as a test."""

from __future__ import annotations

import pytest

from data import Data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(
        tmp_path_factory.mktemp("benchmarks"),
        tokens=300,
        small=500,
        images=20,
        volumes=40,
        cold_bytes=1 << 24,
        shards=(10, 20),
    )
