"""Stratified permutations follow their definition, and any stretch of them is evenly spread."""

from __future__ import annotations

import numpy as np
import pytest
from stratification import stratified

from npstream.orders.permutation import make_key
from npstream.orders.stratified import stratify

pytestmark = pytest.mark.usefixtures("kernel_mode")


def make_table(n, seed=0, dtype=np.int32):
    table = np.empty(n, dtype)
    stratify.for_size(n)(make_key(seed), table)
    return table


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 8, 100, 1023, 1024, 1025])
def test_tables_follow_the_definition(n):
    for seed in range(3):
        assert make_table(n, seed).tolist() == stratified(n, make_key(seed))


def test_recorded_values():
    assert make_table(10).tolist() == [1, 9, 5, 2, 6, 0, 8, 4, 3, 7]


@pytest.mark.parametrize("power", range(9))
def test_each_aligned_stretch_has_one_element_of_each_range(power):
    ranges = make_table(256) // (256 >> power)
    stretches = ranges.reshape(-1, 1 << power)
    assert np.array_equal(np.sort(stretches), np.broadcast_to(range(1 << power), stretches.shape))


@pytest.mark.parametrize("n", [300, 1000])
def test_any_stretch_has_its_share_of_any_range(n):
    """Unlike in a random permutation, the number differs from its mean by a few elements only."""
    for seed in range(20):
        is_in_range = make_table(n, seed) < n // 3
        counts = np.append(0, np.cumsum(is_in_range))
        for length in (10, 50, 150):
            differences = counts[length:] - counts[:-length] - length / 3
            assert abs(differences).max() <= 5


def test_each_element_is_equally_frequent_at_each_position():
    tables = np.array([make_table(16, seed) for seed in range(1600)])
    for position in range(16):
        counts = np.bincount(tables[:, position], minlength=16)
        assert ((counts - 100) ** 2 / 100).sum() < 45  # chi-squared, 15 degrees: p = 0.0001
