"""A cache of its own for each test, and systems that lack something or have started anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from npstream.cache import directory as folder
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import ShardCache


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(folder, "_said", set())
    monkeypatch.setattr(folder, "_examined", {})


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", "100MB")


@pytest.fixture
def without_ranges(monkeypatch):
    monkeypatch.setattr(locks, "_ranges", False)


@pytest.fixture
def reboot(monkeypatch) -> Callable[[], None]:
    boots = itertools.count(1)

    def boot() -> None:
        stamp = bytes([next(boots)] * 16)
        monkeypatch.setattr(sparse, "boot_id", lambda: stamp)

    return boot
