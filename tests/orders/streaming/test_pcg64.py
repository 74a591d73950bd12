"""The generator in kernels gives the same numbers as NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from npstream.orders.streaming import pcg64


def convert_state(rng):
    """Return the state of a NumPy generator in the format of kernels."""
    state = rng.bit_generator.state
    words = [number >> shift & 2**64 - 1 for number in state["state"].values() for shift in (64, 0)]
    spare = [state["uinteger"], 1] if state["has_uint32"] else [0, 0]
    return np.array([*words, *spare], np.uint64)


def assert_same_state(state, rng):
    """Assert that a state equals that of a generator; an unused spare half is ignored."""
    np.testing.assert_array_equal(state[[0, 1, 2, 3, 5]], convert_state(rng)[[0, 1, 2, 3, 5]])
    if state[5]:
        assert state[4] == convert_state(rng)[4]


@pytest.fixture
def run(kernel_mode):
    return lambda kernel: kernel.py_func if kernel_mode == "python" else kernel.compiled()


def test_kernels_shuffle_as_numpy_does(run):
    rng, state, skip_state = (
        np.random.default_rng(3),
        pcg64.state_from_seed(3),
        pcg64.state_from_seed(3),
    )
    for size in [0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000]:
        for dtype in (np.uint32, np.int64):
            # The shuffled values are in the middle of an array: got[2:-1].
            want, got = np.arange(size), np.arange(size + 3, dtype=dtype) - 2
            rng.shuffle(want)
            run(pcg64.draw_shuffle)(state, got[2:], 0, size)
            run(pcg64.skip_shuffle)(skip_state, size)
            np.testing.assert_array_equal(got[2:-1], want)
            assert_same_state(state, rng)
            assert_same_state(skip_state, rng)


def test_kernels_shuffle_only_the_given_range(run):
    values = np.arange(20)
    run(pcg64.draw_shuffle)(pcg64.state_from_seed(0), values, 5, 15)
    assert values[:5].tolist() + values[15:].tolist() == [*range(5), *range(15, 20)]
    assert sorted(values[5:15]) == [*range(5, 15)] != values[5:15].tolist()


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 2**16 + 1, 2**31, 2**31 + 1, 3 << 30, 2**32 - 1])
def test_kernels_draw_as_numpy_does(run, bound):
    rng, state = np.random.default_rng(bound), pcg64.state_from_seed(bound)
    for _ in range(50):
        assert run(pcg64.draw_below)(state, bound) == rng.integers(0, bound)
    assert_same_state(state, rng)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 100, 12345])
def test_jump_advances_like_draws_of_numpy(run, steps):
    rng, state = np.random.default_rng(steps), pcg64.state_from_seed(steps)
    assert run(pcg64.draw_below)(state, 10) == rng.integers(0, 10)  # leaves half a word
    run(pcg64.jump)(state, steps)
    rng.random(steps)
    assert_same_state(state, rng)
