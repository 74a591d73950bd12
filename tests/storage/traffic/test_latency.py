"""Latencies are summarized by percentiles and recent medians, and give the bandwidth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from npstream.storage.traffic.latency import (
    MIN_REQUESTS,
    RECENT_REQUESTS,
    LatencyHistogram,
    RecentLatencies,
)


@pytest.mark.parametrize("percent", [0, 1, 50, 90, 99, 99.95, 100])
def test_percentiles_are_those_of_numpy_within_5_percent(percent):
    # Outside of these bounds, the histogram counts all latencies together.
    seconds = np.random.default_rng(0).lognormal(-5, 2, 5000).clip(2e-5, 1000)
    histogram = LatencyHistogram()
    for value in seconds.tolist():
        histogram.add(value)
    expected = np.percentile(seconds, percent, method="inverted_cdf")
    assert histogram.percentile(percent) == pytest.approx(expected, rel=0.05)


def test_extreme_latencies_have_a_bucket():
    histogram = LatencyHistogram()
    for seconds in (0.0, 1e-9, 1e-5, 1e9):
        histogram.add(seconds)
    assert sum(histogram.counts) == 4
    assert histogram.percentile(50) <= 1e-5
    assert histogram.percentile(100) > 1000


def test_an_empty_histogram_has_no_percentile_and_invalid_percents_raise():
    assert math.isnan(LatencyHistogram().percentile(50))
    for percent in (-1, 101, math.nan):
        with pytest.raises(ValueError, match="from 0 to 100"):
            LatencyHistogram().percentile(percent)


def test_the_median_needs_requests_and_forgets_old_ones():
    recent = RecentLatencies()
    for _ in range(MIN_REQUESTS - 1):
        recent.add(0.010, 1000)
    assert recent.median(1000) is None
    recent.add(0.010, 1000)
    assert recent.median(1000) == recent.median(4000) == 0.010
    for _ in range(RECENT_REQUESTS):
        recent.add(0.030, 1000)
    assert recent.median(1000) == 0.030


def test_sizes_have_their_own_medians():
    recent = RecentLatencies()
    for _ in range(MIN_REQUESTS):
        recent.add(0.010, 1000)
        recent.add(0.100, 1 << 22)
    assert recent.median(0) == 0.010
    assert recent.median(1 << 22) == recent.median((1 << 23) - 1) == 0.100
    assert recent.median(1 << 16) is None


def test_latency_and_bandwidth_are_estimated_from_two_sizes():
    recent = RecentLatencies()
    assert recent.estimate() is None
    for k in range(64):
        recent.add(0.010 + 2000 / 50e6, 2000)
        if k == 0:
            assert recent.estimate() is None  # all requests have one size
        recent.add(0.010 + 4_000_000 / 50e6 + (k == 3), 4_000_000)  # one is 1 s slower
    estimate = recent.estimate()
    assert estimate.latency == pytest.approx(0.010)
    assert estimate.bandwidth == pytest.approx(50e6)


@pytest.mark.parametrize(
    ("large", "seconds"), [(8000, 0.02), (4_000_000, 0.010), (4_000_000, 0.005)]
)
def test_similar_sizes_or_times_give_no_estimate(large, seconds):
    recent = RecentLatencies()
    for _ in range(MIN_REQUESTS):
        recent.add(0.010, 2000)
        recent.add(seconds, large)
    assert recent.estimate() is None
