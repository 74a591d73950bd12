"""Balanced batches: nearly equal costs of ranks, or little padding."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from npstream._core.jit import Kernel
from npstream.orders.balance import BucketOrder, RowCosts, assign_ranks, make_costs


def log_normal(n: int, seed: int = 0) -> np.ndarray:
    return np.ceil(np.random.default_rng(seed).lognormal(6.0, 0.8, n))


def longest_first(costs: np.ndarray, ranks: int) -> float:
    """Return the largest load if each sample goes to the least loaded rank, the longest first."""
    heap = [0.0] * ranks
    for cost in np.sort(costs)[::-1]:
        heapq.heapreplace(heap, heap[0] + cost)
    return max(heap)


def greedy(costs: np.ndarray, capacities: np.ndarray) -> list[float]:
    """Return the loads of ranks after longest-first, with at most `capacities` samples each."""
    loads, left = [0.0] * len(capacities), list(capacities)
    for cost in np.sort(costs)[::-1]:
        free = [rank for rank, count in enumerate(left) if count]
        rank = min(free, key=lambda r: (loads[r], r))
        loads[rank] += cost
        left[rank] -= 1
    return loads


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 17])
def test_each_rank_has_its_number_of_samples(ranks, monkeypatch):
    """The largest load is at most that of `greedy`. The kernel gives the same ranks in Python."""
    for size in (ranks, 5 * ranks, 5 * ranks + ranks // 2):
        capacities = (size - np.arange(ranks) - 1) // ranks + 1
        costs = np.round(log_normal(size, size) / 100)  # with ties
        monkeypatch.setattr(Kernel, "for_size", lambda self, rows: self.compiled())
        owners = assign_ranks(costs, capacities)
        monkeypatch.setattr(Kernel, "for_size", lambda self, rows: self.py_func)
        np.testing.assert_array_equal(assign_ranks(costs, capacities), owners)
        np.testing.assert_array_equal(np.bincount(owners, minlength=ranks), capacities)
        assert np.bincount(owners, costs).max() <= max(greedy(costs, capacities))


def test_equal_costs_and_no_costs():
    for costs in (np.zeros(12), np.ones(12)):
        assert np.bincount(assign_ranks(costs, np.full(3, 4))).tolist() == [4, 4, 4]
    assert assign_ranks(np.empty(0), np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("batch_size", [8, 32])
def test_ranks_have_nearly_equal_costs(batch_size):
    """Compare the largest load with that of longest-first, which has no capacities."""
    ratios = []
    for seed in range(20):
        costs = log_normal(64 * batch_size, seed)
        owners = assign_ranks(costs, np.full(64, batch_size))
        ratios.append(longest_first(costs, 64) / np.bincount(owners, costs).max())
    assert np.mean(ratios) >= 0.95


def bucket_order(
    costs: np.ndarray, bucket_size: int, buckets: int, seed: int | None = 0, epoch: int = 0
):
    return BucketOrder(np.copy, len(costs), RowCosts(costs), bucket_size, buckets, seed, epoch)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 640, 1003])
@pytest.mark.parametrize("seed", [None, 3])
def test_each_window_of_buckets_has_its_own_rows(n, seed):
    rows = bucket_order(log_normal(n), 32, 4, seed).at(np.arange(n))
    for start in range(0, n, 128):  # a window has 4 buckets of 32 rows
        window = rows[start : start + 128]
        np.testing.assert_array_equal(np.sort(window), np.arange(start, min(start + 128, n)))


def test_a_bucket_has_rows_of_similar_cost():
    costs = log_normal(1280)
    rows = bucket_order(costs, 32, 4).at(np.arange(1280))
    for start in range(0, 1280, 128):
        window = np.sort(costs[start : start + 128])[::-1].reshape(4, 32)
        buckets = costs[rows[start : start + 128]].reshape(4, 32)
        np.testing.assert_array_equal(buckets[np.argsort(-buckets[:, 0])], window)


def test_buckets_come_in_an_order_of_the_seed_and_the_epoch():
    costs = log_normal(64 * 32)
    keys = [(0, 0), (0, 1), (1, 0)]
    orders = [bucket_order(costs, 32, 64, *key).at(np.arange(2048)) for key in keys]
    assert len({order.tobytes() for order in orders}) == 3
    again = bucket_order(costs, 32, 64, 0, 1)
    some = np.random.default_rng(0).integers(0, 2048, 100)
    np.testing.assert_array_equal(again.at(some), orders[1][some])
    costs_in_order = costs[bucket_order(costs, 32, 64, None).at(np.arange(2048))]
    assert (np.diff(costs_in_order) <= 0).all()


def test_padding_is_small():
    costs = log_normal(64 * 8 * 256)
    rows = bucket_order(costs, 64 * 8, 256).at(np.arange(len(costs)))
    # Each of 64 ranks has 8 samples of each bucket, and pads them to its longest one.
    longest = costs[rows].reshape(256, 8, 64).max(axis=1)
    assert 1 - costs.sum() / (8 * longest).sum() <= 0.07


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (["a", "b"], TypeError, "expected numbers"),
        ([1.0, -2.0], ValueError, "is -2.0 in row 1"),
        ([np.nan, 1.0], ValueError, "is nan in row 0"),
        ([np.inf, 1.0], ValueError, "is inf in row 0"),
        ([1, 2, 3], ValueError, r"the shape \(3,\)"),
    ],
)
def test_wrong_costs_are_refused(values, error, text):
    with pytest.raises(error, match=text):
        make_costs(values, lambda name: None, (2,))


def test_costs_of_several_dtypes_are_the_same():
    costs = [RowCosts(np.arange(9, dtype=dtype)) for dtype in ("uint8", "int64", "float32")]
    assert len({cost.identity() for cost in costs}) == 1
    assert RowCosts(np.arange(9)[::-1]).identity() != costs[0].identity()
    assert costs[0].first(4).identity() == RowCosts(np.arange(4)).identity()
