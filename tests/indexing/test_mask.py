"""A mask finds what `np.flatnonzero` would, whichever way it looks."""

from __future__ import annotations

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from npstream._core import jit as _jit
from npstream.indexing import mask
from npstream.indexing.mask import ENTRY_BITS, Mask

SHARES = [0.001, 0.03, 0.5, 1]


def bools(n, share):
    return np.random.default_rng(n).random(n) < share


@pytest.fixture(params=["compiled", "python"])
def _way(request, monkeypatch):
    """Run kernels in either way, whatever their size."""
    if request.param == "python":
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda self, rows: self.py_func)
    else:
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda self, rows: self.compiled())


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("share", SHARES)
def test_every_position_is_found_by_its_number(share):
    chosen = bools(7 * ENTRY_BITS + 5, share)
    found = Mask.from_bools(chosen)
    ranks = np.random.default_rng(2).permutation(len(found))
    assert np.array_equal(found.at(ranks), np.flatnonzero(chosen)[ranks])
    pairs = ranks[: len(ranks) // 2 * 2].reshape(2, -1)
    assert np.array_equal(found.at(pairs), np.flatnonzero(chosen)[pairs])


@given(st.data())
def test_ranges_of_numbers_are_found_whatever_their_step(data):
    chosen = bools(data.draw(st.integers(1, 40 * ENTRY_BITS)), data.draw(st.sampled_from(SHARES)))
    found, positions = Mask.from_bools(chosen), np.flatnonzero(chosen)
    bound = st.none() | st.integers(-len(found), len(found))
    step = st.sampled_from([None, 2, -1, -3, 100, -2000])
    part = data.draw(st.builds(slice, bound, bound, step))
    run = found.at_range(range(len(found))[part])
    assert run.flags.c_contiguous
    assert np.array_equal(run, positions[part])


def test_long_runs_are_unpacked_in_pieces(monkeypatch):
    monkeypatch.setattr(mask, "BATCH_POSITIONS", 4 * ENTRY_BITS)
    chosen = bools(50 * ENTRY_BITS, 0.3)
    found, positions = Mask.from_bools(chosen), np.flatnonzero(chosen)
    for cut in (slice(None), slice(1000, -1000), slice(5000, 6500)):
        assert np.array_equal(found.at_range(range(len(found))[cut]), positions[cut])


@pytest.mark.parametrize("n", [0, 1, 8, ENTRY_BITS, ENTRY_BITS + 1, 9999])
def test_positions_may_come_in_pieces_and_in_any_order(n):
    chosen = bools(n, 0.3)
    positions = np.flatnonzero(chosen)[::-1]
    found = Mask.from_positions([positions[:5], positions[5:]], n)
    assert len(found) == len(positions)
    assert np.array_equal(found.at_range(range(len(found))), positions[::-1])
    again = pickle.loads(pickle.dumps(found))
    assert again.domain == n
    assert np.array_equal(again.at_range(range(len(found))), positions[::-1])


def test_a_part_costs_what_the_part_is_worth(monkeypatch):
    """Neither the bits before it nor a desert in its middle are unpacked."""
    chosen = np.zeros(50_000_000, bool)
    chosen[:2_000_000] = True
    chosen[-2_000_000:] = True
    found = Mask.from_bools(chosen)
    unpacked = []
    unpackbits = np.unpackbits
    monkeypatch.setattr(
        np, "unpackbits", lambda a, **kwargs: unpacked.append(a.size) or unpackbits(a, **kwargs)
    )
    assert found.at_range(range(3_000_000, 3_000_100)).tolist() == [*range(49_000_000, 49_000_100)]
    desert = found.at_range(range(2_000_000 - 50, 2_000_000 + 50))
    assert desert.tolist() == [*range(1_999_950, 2_000_000), *range(48_000_000, 48_000_050)]
    assert sum(unpacked) < 2000


def test_memory_is_little_more_than_a_bit_a_position():
    n = 10_000_000
    assert Mask.from_bools(bools(n, 0.5)).nbytes < n / 8 * 1.07
