"""Streaming's shuffles equal golden data, and a reference in plain NumPy."""

from __future__ import annotations

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import streaming_reference
from hypothesis import example, given, settings
from streaming_reference import expected, full_order, golden_cases, run_golden

from npstream.orders.streaming.partition import lane_bounds
from npstream.orders.streaming.runs import CachedOrder, Pieces
from npstream.orders.streaming.shuffle import SHUFFLE_ALGORITHMS, EpochShuffle


@pytest.mark.usefixtures("kernel_mode")
@golden_cases("shuffle")
def test_golden_shuffle(case):
    params = dict(case["params"])
    units = params.pop("shard_sizes")
    names = ("algo", "num_canonical_nodes", "seed", "epoch", "block_size")
    shuffle = EpochShuffle(*map(params.get, names))
    got = run_golden(case, lambda: full_order(shuffle, units))
    if got is not None:
        np.testing.assert_array_equal(got, expected(case, "order"))


UNITS = st.lists(st.integers(0, 30) | st.integers(0, 3), min_size=1, max_size=40).filter(any)

SETTINGS = st.tuples(
    st.sampled_from(SHUFFLE_ALGORITHMS),
    st.integers(1, 9),  # lanes
    st.integers(0, 2**33),  # seed
    st.integers(0, 9),  # epoch
    st.integers(2, 9) | st.integers(2, 400),  # block size
)


@pytest.mark.usefixtures("kernel_mode")
@settings(max_examples=150)
@given(UNITS, SETTINGS, st.data())
@example([0, 0, 5, 0, 5, 0], ("py1br", 2, 0, 0, 3), None)
@example([1], ("py2s", 5, 0, 0, 3), None)
def test_any_part_of_a_shuffle_equals_the_reference(units, parameters, data):
    shuffle = EpochShuffle(*parameters)
    if shuffle.algorithm == "py1e" and sum(units) < shuffle.lanes:
        return  # `EpochShuffle.check` raises
    want = streaming_reference.order(shuffle.algorithm, units, *parameters[1:])
    np.testing.assert_array_equal(full_order(shuffle, units), want)
    if data is None:  # an explicit example
        return
    order = shuffle.order(Pieces.consecutive(np.array(units)))
    bounds = lane_bounds(sum(units), shuffle.lanes)
    start = data.draw(st.integers(0, sum(units) - 1))
    lane_end = int(bounds[bounds.searchsorted(start, "right")])
    stop = data.draw(st.integers(start + 1, lane_end))
    np.testing.assert_array_equal(order.rows(start, stop), want[start:stop])
    positions = data.draw(st.lists(st.integers(0, sum(units) - 1), max_size=20))
    got = CachedOrder(order, bounds).at(np.array(positions, np.int64))
    np.testing.assert_array_equal(got, want[positions])


@pytest.mark.parametrize("algorithm", SHUFFLE_ALGORITHMS)
@pytest.mark.parametrize("units", [[1000] * 700, [700_000], [300_000, 17, 399_983], [7] * 100_000])
def test_large_shuffles_equal_the_reference(algorithm, units):
    """A lane has more samples than a bucket of py1e, and more than the spacing of snapshots."""
    shuffle = EpochShuffle(algorithm, 3, 1, 2, 40_000)
    units = np.array(units)
    if algorithm == "py2s" and len(units) > 1000:
        units = units[:20_000]  # the reference is slow for many units
    size = int(units.sum())
    want = streaming_reference.order(algorithm, units, 3, 1, 2, 40_000)
    np.testing.assert_array_equal(full_order(shuffle, units), want)
    order, bounds = shuffle.order(Pieces.consecutive(units)), lane_bounds(size, 3)
    for start in (0, size // 6, size // 3 - 20_000, size // 3, size - 20_000):
        np.testing.assert_array_equal(
            order.rows(start, start + 20_000), want[start : start + 20_000]
        )
    positions = np.random.default_rng(0).integers(0, size, 1000)
    np.testing.assert_array_equal(CachedOrder(order, bounds).at(positions), want[positions])


@pytest.mark.parametrize("algorithm", ["py1e", "py1s", "py1br"])
@pytest.mark.parametrize("step", [700, 90_000])
def test_a_sequential_reader_uses_the_readahead(algorithm, step, monkeypatch):
    """The lanes are read together, the last one backward; then with a small cache."""
    shuffle, size = EpochShuffle(algorithm, 3, 1, 2, 20_000), 900_000
    order, bounds = shuffle.order(Pieces.consecutive(np.full(9000, 100))), lane_bounds(size, 3)
    want = full_order(shuffle, [100] * 9000)
    lengths = []

    class RecordingOrder:
        lookup_size = order.lookup_size

        def rows(self, start, stop):
            lengths.append(stop - start)
            return order.rows(start, stop)

    cached_order = CachedOrder(RecordingOrder(), bounds)
    for start in range(0, size // 3, step):
        first_lane = np.arange(start, min(start + step, size // 3), 7)
        last_lane = first_lane[::-1] + 2 * size // 3
        positions = np.concatenate([first_lane, first_lane + size // 3, last_lane])
        np.testing.assert_array_equal(cached_order.at(positions), want[positions])
    assert size // 2 < sum(lengths) < 2 * size
    copy = pickle.loads(pickle.dumps(CachedOrder(order, bounds)))
    np.testing.assert_array_equal(copy.at(positions), want[positions])
    monkeypatch.setattr("npstream.orders.streaming.runs.MAX_CACHED", 3000)
    small = CachedOrder(order, bounds)
    for start in range(0, 20_000, 700):
        np.testing.assert_array_equal(
            small.at(np.arange(start, start + 700)), want[start : start + 700]
        )


def test_a_random_lookup_does_not_read_ahead():
    order = EpochShuffle("py1e", 1, 0, 0, 200).order(Pieces.consecutive(np.full(9000, 100)))
    lengths = []

    class RecordingOrder:
        lookup_size = order.lookup_size

        def rows(self, start, stop):
            lengths.append(stop - start)
            return order.rows(start, stop)

    cached_order = CachedOrder(RecordingOrder(), lane_bounds(900_000, 1))
    for position in (5, 899_999, 5):
        cached_order.at(np.array([position]))
    assert lengths == [1, 1, 1]
    cached_order.at(np.arange(6, 9))
    assert lengths[3:] == [order.lookup_size]


@pytest.mark.parametrize(
    ("algorithm", "block_size"), [("py1e", 0), ("py1br", 1), ("py1e", 1 << 34), ("py1br", 1 << 32)]
)
def test_too_small_and_too_large_blocks_raise(algorithm, block_size):
    message = "larger blocks" if block_size < 2 else "the maximum is"
    with pytest.raises(ValueError, match=message):
        EpochShuffle(algorithm, 1, 0, 0, block_size).check(10, 10)


def test_too_large_draws_raise():
    with pytest.raises(ValueError, match="one of 4294967297 numbers"):
        EpochShuffle("naive", 1, 0, 0, 4).check(2**32 + 1, 1000)
    with pytest.raises(ValueError, match="one of 4294967297 numbers"):
        EpochShuffle("py1s", 1, 0, 0, 4).check(2**33, 2**32 + 1)
