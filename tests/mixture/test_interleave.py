"""Patterns have exact counts in each lane, shares within one unit in each prefix, and no period."""

from __future__ import annotations

import hashlib
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from npstream._core import jit as _jit
from npstream.mixture.interleave import PATTERN_VERSION
from npstream.mixture.patterns import count_draws, find_places, look_up_draws, make_pattern
from npstream.mixture.shares import (
    MAX_BLOCK,
    MixtureSpec,
    apportion,
    block_counts,
    block_length,
    make_schedule,
    min_block_length,
    next_coprime,
)
from npstream.orders.permutation import make_key


def pattern_of(counts, lanes=1, seed=0):
    return make_pattern(np.array(counts), lanes, make_key(seed))


def assert_shares_of_prefixes(sources, counts):
    """Assert that every prefix has each source within one unit of its share."""
    length = len(sources)
    assert np.array_equal(np.bincount(sources, minlength=len(counts)), counts)
    for source, count in enumerate(counts):
        drawn = np.cumsum(sources == source) * length
        assert (np.abs(drawn - count * np.arange(1, length + 1)) < length).all(), source


@st.composite
def source_weights(draw):
    """Draw weights of 2 to 40 sources, often extreme ones."""
    count = draw(st.integers(2, 40))
    spread = draw(st.sampled_from([0, 1, 5]))
    one = st.floats(-spread, spread).map(math.exp)
    return draw(st.lists(one, min_size=count, max_size=count))


@given(source_weights(), st.integers(1, 2000))
def test_shares_are_rounded_by_largest_remainders(weights, length):
    counts = apportion(weights, length)
    quotas = np.array(weights) / math.fsum(weights) * length
    assert sum(counts) == length
    assert (np.abs(counts - quotas) < 1 + 1e-9).all()
    remainders = quotas - np.floor(quotas)
    is_rounded_up = np.array(counts) > quotas
    if is_rounded_up.any() and not is_rounded_up.all():
        assert remainders[is_rounded_up].min() >= remainders[~is_rounded_up].max() - 1e-6


def test_equal_remainders_go_to_the_first_sources():
    assert apportion([1, 1, 1, 1], 6) == [2, 2, 1, 1]


@given(source_weights(), st.integers(40, 1500), st.integers(0, 5))
@example([1.0, 1e-3], 1001, 0)
@settings(max_examples=60)
def test_every_prefix_is_within_one_of_the_shares(weights, length, seed):
    counts = apportion(weights, length)
    assert_shares_of_prefixes(pattern_of(counts, seed=seed).sources, counts)


@pytest.mark.parametrize("counts", [[1], [7], [3, 4], [0, 5, 1], [1, 1, 1], [5, 1, 0, 3, 4]])
def test_small_patterns_compiled_and_plain(counts, kernel_mode):
    assert_shares_of_prefixes(pattern_of(counts).sources, counts)


@pytest.mark.parametrize("length", [240, 241])  # 6 lanes divide it, or are coprime to it
def test_compiled_and_plain_kernels_agree(length, monkeypatch):
    counts = apportion([1, 2, 3, 0.1], length)
    places = np.random.default_rng(0).integers(0, length * 6, 300)
    results = []
    for choose in (lambda self: self.compiled(), lambda self: self.py_func):
        monkeypatch.setattr(_jit.Kernel, "for_size", lambda self, rows, choose=choose: choose(self))
        pattern = pattern_of(counts, 6)
        sources, numbers = np.empty_like(places), np.empty_like(places)
        look_up_draws.for_size(0)(places, pattern, sources, numbers)
        arrays = pattern.sources, pattern.slot_numbers, pattern.cell_starts, pattern.cells
        results.append([*arrays, sources, numbers])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


# Counts of a block, and lanes. The lanes divide the blocks of the first row, and are coprime to
# those of the second.
CASES = [
    ([3, 4, 5], 1), ([3, 4, 5], 4), ([2, 9, 1], 6), ([1, 1], 2), ([5, 0, 3, 4], 12), ([8], 4),
    ([3, 5, 5], 4), ([1, 2], 8), ([2, 8, 1], 6), ([5, 0, 4, 4], 12), ([5], 4), ([1], 6),
]  # fmt: skip


@pytest.mark.parametrize(("counts", "lanes"), CASES)
def test_places_are_numbered_in_each_lane(counts, lanes, kernel_mode):
    pattern = pattern_of(counts, lanes)
    length = sum(counts)
    places = np.arange(length * lanes)
    sources, numbers = np.empty_like(places), np.empty_like(places)
    look_up_draws.for_size(0)(places, pattern, sources, numbers)
    draws = {}
    for place, source, number in zip(places, sources, numbers, strict=True):
        block, slot = divmod(place, length)
        if length % lanes == 0:  # rows of lanes are rotated from block to block
            slot += (slot + block) % lanes - slot % lanes
        assert source == pattern.sources[slot]
        key = place % lanes, source
        assert number == draws.get(key, 0)  # in the order in which the lane meets them
        draws[key] = number + 1
    for lane in range(lanes):
        assert [draws.get((lane, source), 0) for source in range(len(counts))] == counts
    actual = np.empty_like(places)
    find_places.for_size(0)(sources, places % lanes, numbers, pattern, actual)
    assert np.array_equal(actual, places)


@pytest.mark.parametrize(("counts", "lanes"), CASES)
def test_draws_before_a_place_are_counted(counts, lanes, kernel_mode):
    pattern = pattern_of(counts, lanes)
    length = sum(counts)
    places = np.arange(length * lanes)
    sources, numbers = np.empty_like(places), np.empty_like(places)
    look_up_draws.for_size(0)(places, pattern, sources, numbers)
    expected = np.zeros((len(counts), lanes), int)
    actual = np.full_like(expected, 99)  # all are overwritten
    for stop in range(length * lanes + 1):
        count_draws.for_size(0)(pattern, stop, actual)
        assert np.array_equal(actual, expected)
        if stop < length * lanes:
            expected[sources[stop], stop % lanes] += 1


@pytest.mark.parametrize(
    "counts", [[2867, 1229], [410, 3686], [100] * 40 + [96], [2048] + [64] * 32]
)
def test_every_residue_class_sees_all_sources(counts):
    """A rank that reads every tenth position reads all sources by their shares."""
    length = sum(counts)
    for step in (2, 8, 10):
        class_counts = np.zeros((len(counts), step))
        for seed in range(150):
            sources = pattern_of(counts, seed=seed).sources[: length - length % step]
            cells = sources.astype(int) * step + np.arange(len(sources)) % step
            class_counts += np.bincount(cells, minlength=class_counts.size).reshape(-1, step)
        expected = class_counts.mean(axis=1, keepdims=True)
        chi_squares = ((class_counts - expected) ** 2 / expected).sum(axis=1)
        # Independent draws would have about the mean `step` and the variance 2 * step.
        deviation = math.sqrt(2 * step)
        assert chi_squares[0] < step + 4 * deviation
        assert chi_squares.max() < step + 6 * deviation  # one of up to 41 sources


def test_patterns_equal_recorded_digests():
    """Runs resume in the same pattern, so another pattern needs another version."""
    digest = hashlib.blake2b(digest_size=8)
    for number, (counts, lanes) in enumerate([*CASES, (apportion([0.6, 0.3, 0.1], 4096), 8)]):
        pattern = pattern_of(counts, lanes, seed=number)
        for array in (pattern.sources, pattern.slot_numbers, pattern.cells):
            digest.update(array.astype("<i8").tobytes())
    assert (PATTERN_VERSION, digest.hexdigest()) == (1, GOLDEN)


GOLDEN = "64d5cc95ceda4f98"

# Shares


def make_spec(names="ab", sizes=(10, 30), block=None, weights=None, alpha=1.0):
    return MixtureSpec(
        tuple(names), tuple(sizes), tuple(sizes), (), (),
        make_schedule(names, sizes, weights, alpha), block,
    )  # fmt: skip


def test_weights_are_sizes_to_a_power():
    assert make_schedule("ab", [10, 30]) == ((0, (0.25, 0.75)),)
    assert make_schedule("ab", [10, 30], alpha=0) == ((0, (0.5, 0.5)),)
    ((_, shares),) = make_schedule("ab", [10**15, 1], alpha=0.5)
    assert shares[0] / shares[1] == pytest.approx(10**7.5)
    with pytest.raises(ValueError, match="'a' is almost 0"):
        make_schedule("ab", [1, 10**300], alpha=1000)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"a": 0, "b": 1}, ValueError, "'a' is 0.0: expected a positive number; leave the source"),
        ({"a": -1, "b": 1}, ValueError, "'a' is -1.0: expected a positive number"),
        ({"a": math.nan, "b": 1}, ValueError, "'a' is nan"),
        ({"a": math.inf, "b": 1}, ValueError, "'a' is inf"),
        ({"a": True, "b": 1}, TypeError, "'a' is True: expected a number"),
        ({"a": "1", "b": 1}, TypeError, "'a' is '1': expected a number"),
        ({"a": 1}, ValueError, "'b' has no weight; the sources are 'a', 'b'"),
        ({"a": 1, "b": 1, "c": 1}, ValueError, "there is no source 'c'"),
        ({"a": 1e-320, "b": 1e300}, ValueError, "'a' is almost 0"),
        ([], TypeError, "expected a mapping of names to numbers, or a list"),
        ([(0, 1)], TypeError, "expected a mapping of names to numbers, or a list"),
        (1.0, TypeError, "expected a mapping of names to numbers, or a list"),
        ([(5, {"a": 1, "b": 1})], ValueError, "position 5: expected increasing positions"),
        (
            [(0, {"a": 1, "b": 1}), (0, {"a": 2, "b": 1})],
            ValueError,
            "position 0: expected increasing positions",
        ),
    ],
)
def test_invalid_schedule_weights_raise(weights, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        make_schedule(["a", "b"], [10, 30], weights)


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_invalid_alphas_raise(alpha):
    with pytest.raises(ValueError, match="expected a finite number"):
        make_schedule(["a", "b"], [10, 30], alpha=alpha)
    with pytest.raises(ValueError, match="either weights or alpha"):
        make_schedule(["a", "b"], [10, 30], {"a": 1, "b": 1}, alpha=2)


def test_invalid_sources_and_blocks_raise():
    with pytest.raises(ValueError, match="a mixture needs at least one source"):
        make_spec((), (), weights={})
    with pytest.raises(ValueError, match="source 'b' is empty"):
        make_spec(sizes=(3, 0), weights={"a": 1, "b": 1})
    for block in (0, MAX_BLOCK + 1):
        with pytest.raises(ValueError, match=f"block={block}: expected 1 to"):
            make_spec(block=block)


def test_blocks_hold_each_source():
    with pytest.raises(ValueError, match="a block of 10 units holds no unit of it: give block=101"):
        make_spec(block=10, weights={"a": 1, "b": 100})
    make_spec(block=101, weights={"a": 1, "b": 100})
    with pytest.raises(ValueError, match="holds no unit of it: give it more weight"):
        make_spec(weights={"a": 1, "b": 1e9})


@given(source_weights())
def test_the_suggested_block_works(weights):
    minimum = min_block_length(weights)
    assert min(apportion(weights, minimum)) >= 1
    assert sum(block_counts("x" * len(weights), weights, minimum)) == minimum


def test_default_blocks_are_primes_that_do_not_divide_the_lanes():
    assert block_length([0.5, 0.5]) == 4099
    assert block_length([1 / 1000] * 1000) == 32_003
    assert block_length([1e-9, 1]) == (1 << 20) + 7
    assert block_length([0.5, 0.5], 480) == 4099
    assert block_length([0.5, 0.5], 2 * 4099) == 4111


@given(st.integers(1, 10_000), st.integers(1, 1000))
def test_block_lengths_become_coprime(minimum, lanes):
    length = next_coprime(minimum, lanes)
    assert math.gcd(length, lanes) == 1
    assert all(math.gcd(number, lanes) > 1 for number in range(minimum, length))
