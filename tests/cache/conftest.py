"""Fixtures: an empty cache, a system without range locks, and a reboot."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from npstream.cache import directory as cache_dir
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import ShardCache


@pytest.fixture(autouse=True)
def _reset_module_state(monkeypatch):
    monkeypatch.setattr(cache_dir, "_logged", set())
    monkeypatch.setattr(cache_dir, "_usable", {})


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", "100MB")


@pytest.fixture
def without_range_locks(monkeypatch):
    monkeypatch.setattr(locks, "_has_ofd_locks", False)


@pytest.fixture
def reboot(monkeypatch) -> Callable[[], None]:
    boots = itertools.count(1)

    def boot() -> None:
        stamp = bytes([next(boots)] * 16)
        monkeypatch.setattr(sparse, "boot_id", lambda: stamp)

    return boot
