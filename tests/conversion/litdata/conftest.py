"""Fixtures of the tests of LitData."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def start_method() -> Iterator[None]:
    """Restore the start method of processes, which `litdata.optimize` changes for all."""
    before = multiprocessing.get_start_method()
    yield
    multiprocessing.set_start_method(before, force=True)
