"""Neighboring ranges are coalesced by a gap, and by the measured latency and bandwidth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream.storage.coalesce import MAX_MERGED, coalesce_ranges
from npstream.storage.traffic.latency import MIN_REQUESTS
from npstream.storage.traffic.merging import Merging
from npstream.storage.traffic.record import MAX_MEASURED_GAP, Traffic


def ranges_of(sizes_and_gaps: list[tuple[int, int]], files: int = 1):
    """Return the files, begins and ends of ranges, given each size and the gap before it."""
    sizes, gaps = np.array(sizes_and_gaps, np.int64).reshape(-1, 2).T
    ends = np.cumsum(sizes + gaps)
    return np.sort(np.arange(len(sizes)) % files), ends - sizes, ends


def reference(file_of, begins, ends, gap):
    """Return the number of each range's request, one range after the other."""
    numbers = [0]
    for k in range(1, len(begins)):
        is_new = file_of[k] != file_of[k - 1] or begins[k] > ends[k - 1] + gap
        numbers.append(numbers[-1] + is_new)
    return numbers


size_gap_lists = st.lists(
    st.tuples(st.integers(1, 3000), st.sampled_from([0, 1, 500, 513, 5000, 70_000])),
    min_size=1,
    max_size=200,
)


@given(size_gap_lists, st.integers(1, 3), st.sampled_from([0, 512, 16384]))
def test_one_gap_merges_what_a_loop_merges(sizes_and_gaps, files, gap):
    spans = ranges_of(sizes_and_gaps, files)
    _, request_of, _, _ = coalesce_ranges(*spans, Merging(gap))
    assert request_of.tolist() == reference(*spans, gap)


@given(
    size_gap_lists,
    st.integers(1, 3),
    st.sampled_from([600, 6000, 100_000]),
    st.integers(1, 40),
)
def test_each_range_is_in_its_request(sizes_and_gaps, files, measured_gap, concurrency):
    file_of, begins, ends = ranges_of(sizes_and_gaps, files)
    merging = Merging(512, measured_gap, concurrency)
    first, request_of, starts, lengths = coalesce_ranges(file_of, begins, ends, merging)
    by_gap = coalesce_ranges(file_of, begins, ends, Merging(512))[0]
    assert np.isin(first, by_gap).all()  # ranges that the gap merges are never separated
    assert (np.diff(request_of) >= 0).all()
    assert (request_of[first] == np.arange(len(first))).all()
    assert (starts[request_of] <= begins).all()
    assert (ends <= (starts + lengths)[request_of]).all()
    assert (file_of == file_of[first][request_of]).all()
    same_request = np.diff(request_of) == 0
    assert (begins[1:] - ends[:-1] <= measured_gap)[same_request].all()
    # Without other requests to wait for, nothing more is merged.
    assert len(by_gap) > concurrency or len(first) == len(by_gap)


def test_merging_by_measurements_takes_less_time():
    latency, bandwidth, concurrency = 0.010, 50e6, 32
    begins = np.sort(np.random.default_rng(0).integers(0, 400_000_000, 2000))
    spans = np.zeros(2000, np.int64), begins, begins + 2000
    gap = int(latency * bandwidth)

    def seconds_and_requests(merging: Merging) -> tuple[float, int]:
        lengths = coalesce_ranges(*spans, merging)[3]
        return (len(lengths) * latency + lengths.sum() / bandwidth) / concurrency, len(lengths)

    separate = seconds_and_requests(Merging(512))
    merged = seconds_and_requests(Merging(512, gap, concurrency))
    assert merged[0] < 0.8 * separate[0]
    assert concurrency <= merged[1] < separate[1] / 2
    # A request begins less than MAX_MERGED gaps before the begin of its last part.
    longest_part = coalesce_ranges(*spans, Merging(512))[3].max()
    largest = coalesce_ranges(*spans, Merging(512, gap, concurrency))[3].max()
    assert largest <= MAX_MERGED * gap + longest_part


def measured_traffic(latency: float, bandwidth: float) -> Traffic:
    traffic = Traffic()
    traffic.concurrency = 8
    for nbytes in (1000, 1 << 22):
        for _ in range(MIN_REQUESTS):
            traffic.count_answer(1.0, latency + nbytes / bandwidth, nbytes)
    return traffic


def test_the_measured_gap_is_latency_times_bandwidth():
    assert Traffic().merging(512) == Merging(512)
    gap, measured_gap, concurrency = measured_traffic(0.010, 20e6).merging(512)
    assert (gap, concurrency) == (512, 8)
    assert measured_gap == pytest.approx(200_000, abs=2)
    assert measured_traffic(0.020, 1e9).merging(512).measured_gap == MAX_MEASURED_GAP


@pytest.mark.parametrize("is_variable", [False, True])
def test_samples_are_merged_once_the_store_is_measured(upload, tmp_path, requests, is_variable):
    n = 50_000
    if is_variable:
        columns = {"text": [f"{k:040}" * (1 + k % 3) for k in range(n)]}
    else:
        columns = {"x": np.arange(n * 16).reshape(n, 16)}
    (name,) = columns
    npstream.write(tmp_path / "data", columns, shard_size="16MB")
    url, rows = upload(tmp_path / "data"), np.arange(7, n, 500)
    expected = [columns[name][row] for row in rows.tolist()]
    counts = []
    for traffic in (Traffic(), measured_traffic(0.010, 20e6)):
        with npstream.open(url, cache=tmp_path / f"cache{len(counts)}") as ds:
            ds._source.remote.remote_store.traffic = traffic
            traffic.concurrency = 8
            estimated = ds[rows].explain().requests
            requests.clear()
            np.testing.assert_array_equal(ds[rows][name], expected)
            counts.append(len(requests))
            assert is_variable or estimated == counts[-1]
    assert counts[0] >= 100
    assert 8 <= counts[1] <= counts[0] / 2
