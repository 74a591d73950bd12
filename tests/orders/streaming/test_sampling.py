"""Weights and picked samples equal those of the real package."""

from __future__ import annotations

import numpy as np
import pytest
from streaming_reference import assert_resolved, expected, golden_cases, run_golden

from npstream.orders.streaming.sampling import Picks, Weight, samples_per_shard, samples_per_stream


@pytest.mark.usefixtures("kernel_mode")
@golden_cases("sampling")
def test_golden_sampling(case):
    params = case["params"]
    seed = params["seed"] + (params["epoch"] if params["use_epoch"] else 0)
    sizes = np.array(params["samples_per_shard"])
    got = samples_per_shard(sizes, params["choose"], params["granularity"], seed)
    np.testing.assert_array_equal(got, expected(case, "choose_per_shard"))
    assert got.sum() == params["choose"]


@pytest.mark.parametrize("sizes", [(2, 3, 60, 999), (9_999, 10_000, 10_001, 20_000)])
def test_samples_are_chosen_as_numpy_does(kernel_mode, sizes):
    """For each of NumPy's algorithms, and in any state of the generator."""
    for seed in range(2 if kernel_mode == "python" else 40):
        # NumPy chooses one algorithm up to a size of 10,000. Above, it chooses another one for
        # counts above size // 50.
        rng, counts = np.random.default_rng(seed), []
        for size in sizes:
            candidates = {1, max(size // 50, 1), size // 50 + 1, size // 2, size - 1}
            counts.append(int(rng.choice(sorted(candidates))))
        picks = Picks([np.array(sizes)], [sum(counts)], 1, shard_seed=0, sample_seed=seed)
        vars(picks)["counts"] = np.array(counts)  # the value of the cached property
        rng, first, want = np.random.default_rng(seed), 0, []
        for size, count in zip(sizes, counts, strict=True):
            want += sorted((first + rng.choice(size, count, replace=False)).tolist())
            first += size
        assert picks.ids(np.arange(len(want))).tolist() == want
        assert picks.units.rows(1, len(want)).tolist() == want[1:]


@golden_cases("weights")
def test_golden_weights(case):
    params = case["params"]
    weights = [Weight(**weight) for weight in params["weights"]]
    sizes = np.array(params["samples_per_stream"])
    got = run_golden(
        case, lambda: samples_per_stream(weights, sizes, params["epoch_size"], params["seed"])
    )
    if got is not None:
        assert_resolved(case, *got, sizes)


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        ({"proportion": 1, "repeat": 2}, "one weight, not proportion and repeat"),
        ({"choose": -1}, "choose=-1: expected at least 0"),
        ({"repeat": float("nan")}, "repeat=nan"),
    ],
)
def test_invalid_weights_raise(weight, match):
    with pytest.raises(ValueError, match=match):
        Weight(**weight)


def test_an_empty_epoch_raises():
    for weights in ([Weight(choose=0)], [Weight(proportion=0)]):
        with pytest.raises(ValueError, match="no sample of any stream"):
            samples_per_stream(weights, np.array([5]), None, 0)
    with pytest.raises(ValueError, match="samples of stream 1, which has none"):
        samples_per_stream([Weight(), Weight(choose=3)], np.array([5, 0]), None, 0)
    with pytest.raises(ValueError, match="samples of stream 1, which has none"):
        samples_per_stream([Weight(choose=0), Weight(choose=3)], np.array([0, 0]), None, 0)
