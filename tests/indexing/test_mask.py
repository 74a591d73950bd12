"""Mask returns the positions that `np.flatnonzero` returns."""

from __future__ import annotations

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from npstream.indexing import mask
from npstream.indexing.mask import BLOCK_BITS, Mask

SHARES = [0.001, 0.03, 0.5, 1]


def bools(n, share):
    return np.random.default_rng(n).random(n) < share


@pytest.mark.usefixtures("kernel_mode")
@pytest.mark.parametrize("share", SHARES)
def test_at_returns_the_positions_with_any_ranks(share):
    array = bools(7 * BLOCK_BITS + 5, share)
    bits = Mask.from_bools(array)
    ranks = np.random.default_rng(2).permutation(len(bits))
    assert np.array_equal(bits.at(ranks), np.flatnonzero(array)[ranks])
    pairs = ranks[: len(ranks) // 2 * 2].reshape(2, -1)
    assert np.array_equal(bits.at(pairs), np.flatnonzero(array)[pairs])


@given(st.data())
def test_at_range_returns_the_positions_for_any_step(data):
    array = bools(data.draw(st.integers(1, 40 * BLOCK_BITS)), data.draw(st.sampled_from(SHARES)))
    bits, positions = Mask.from_bools(array), np.flatnonzero(array)
    bound = st.none() | st.integers(-len(bits), len(bits))
    step = st.sampled_from([None, 2, -1, -3, 100, -2000])
    part = data.draw(st.builds(slice, bound, bound, step))
    result = bits.at_range(range(len(bits))[part])
    assert result.flags.c_contiguous
    assert np.array_equal(result, positions[part])


@pytest.fixture
def unpacked_bytes(monkeypatch):
    """Return a list to which each later call of `np.unpackbits` appends its number of bytes."""
    sizes = []
    unpackbits = np.unpackbits
    monkeypatch.setattr(
        np, "unpackbits", lambda a, **kwargs: sizes.append(a.size) or unpackbits(a, **kwargs)
    )
    return sizes


def test_long_ranges_are_unpacked_in_batches(monkeypatch, unpacked_bytes):
    monkeypatch.setattr(mask, "BATCH_POSITIONS", 4 * BLOCK_BITS)
    array = bools(50 * BLOCK_BITS, 0.3)
    bits, positions = Mask.from_bools(array), np.flatnonzero(array)
    for part in (slice(None), slice(1000, -1000), slice(5000, 6500)):
        assert np.array_equal(bits.at_range(range(len(bits))[part]), positions[part])
    assert max(unpacked_bytes) == 4 * BLOCK_BITS // 8


@pytest.mark.parametrize("n", [0, 1, 8, BLOCK_BITS, BLOCK_BITS + 1, 9999])
def test_positions_may_be_given_in_several_arrays_and_in_any_order(n):
    positions = np.flatnonzero(bools(n, 0.3))[::-1]
    bits = Mask.from_positions([positions[:5], positions[5:]], n)
    assert len(bits) == len(positions)
    assert np.array_equal(bits.at_range(range(len(bits))), positions[::-1])
    unpickled = pickle.loads(pickle.dumps(bits))
    assert unpickled.domain == n
    assert np.array_equal(unpickled.at_range(range(len(bits))), positions[::-1])


def test_at_range_unpacks_only_dense_bits_of_the_range(unpacked_bytes):
    """It unpacks neither the bits before the range nor a long gap in its middle."""
    array = np.zeros(50_000_000, bool)
    array[:2_000_000] = True
    array[-2_000_000:] = True
    bits = Mask.from_bools(array)
    assert bits.at_range(range(3_000_000, 3_000_100)).tolist() == [*range(49_000_000, 49_000_100)]
    around_gap = bits.at_range(range(2_000_000 - 50, 2_000_000 + 50))
    assert around_gap.tolist() == [*range(1_999_950, 2_000_000), *range(48_000_000, 48_000_050)]
    assert sum(unpacked_bytes) <= 2 * BLOCK_BITS // 8


def test_a_mask_takes_little_more_than_a_bit_per_position():
    n = 10_000_000
    # Each block of 128 bytes also has a count of 8 bytes: 1/16 more.
    assert Mask.from_bools(bools(n, 0.5)).nbytes < n / 8 * 1.07
