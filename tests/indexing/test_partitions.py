"""Partitions of views along shards, against a count of the rows of each shard."""

from __future__ import annotations

import numpy as np
import pytest

from npstream.indexing.partitions import partition_bounds
from npstream.indexing.selection import Selection

STARTS = np.array([0, 4, 4, 5, 12, 20])
N = 20

INDEXES = [
    slice(None), slice(3, 17, 2), slice(None, None, -3), slice(0, 0), np.array([1, 4, 4, 19]),
    np.array([19, 4, 1]), np.arange(N) % 3 == 0, np.array([7, 2, 11, 3, 19, 0]),
]  # fmt: skip


@pytest.mark.parametrize("min_rows", [1, 3, 100])
@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_partitions_have_all_rows_of_their_shards(index, min_rows):
    selection = Selection.all(N).select(index)
    ids = np.arange(N)[index]
    bounds = partition_bounds(selection, STARTS, min_rows)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == len(ids)
    assert (sizes > 0).all()
    assert (sizes[:-1] >= min_rows).all()
    if (np.diff(ids) >= 0).all() or (np.diff(ids) <= 0).all():
        shards = np.searchsorted(STARTS, ids, side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        assert np.isin(bounds[1:-1], cuts).all()
        if min_rows == 1:
            assert bounds[1:-1].tolist() == cuts.tolist()


def test_partitions_of_a_view_in_any_order_are_as_long_as_an_average_shard():
    bounds = partition_bounds(
        Selection.all(N).select(np.random.default_rng(0).permutation(N)), STARTS
    )
    assert bounds.tolist() == [0, 4, 8, 12, 16, 20]
