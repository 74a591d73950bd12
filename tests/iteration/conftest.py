"""The dataset of the golden checkpoints."""

from __future__ import annotations

import pytest
from streaming_runs import DATA

import npstream


@pytest.fixture(scope="module")
def ds():
    return npstream.open(DATA)
