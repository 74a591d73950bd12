"""Latencies of a store: their distribution, the recent median, and the bandwidth.

Latencies are added in one thread, that of the event loop. Other threads may read them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LatencyHistogram", "LinkEstimate", "RecentLatencies"]

_MIN_SECONDS = 1e-5
"""The upper bound of the first bucket of a histogram, in seconds."""

_BUCKETS_PER_OCTAVE = 8
"""The bound of a bucket is twice that of the bucket 8 places before it: bounds grow by 9 %."""

_BUCKETS = 216
"""The last bucket holds all latencies above about 1,130 s."""

RECENT_REQUESTS = 64
"""The number of latencies of each size class that count as recent."""

MIN_REQUESTS = 16
"""A size class has no median before it has this number of latencies."""

_MEDIAN_PERIOD = 8
"""A median is computed again after this number of new latencies."""

_MIN_CLASS_BITS = 12
"""Class 0 has the requests of less than 2 ** (this number + 1) bytes, which is 8 KiB.

In this class, the transfer of the bytes takes no time. Each further class ends at four times the
size: 32 KiB, 128 KiB and so on.
"""

_MIN_SIZE_RATIO = 16
"""Two size classes determine the bandwidth if their sizes differ by at least this factor."""

_MIN_GROWTH = 1.1
"""Two size classes determine the bandwidth if their medians differ by at least this factor."""


class LatencyHistogram:
    """Counts of latencies in buckets whose bounds grow by 9 %.

    Parameters
    ----------
    counts : sequence of int, optional
        The counts of an earlier histogram; by default all are 0.

    Examples
    --------
    >>> histogram = LatencyHistogram()
    >>> for milliseconds in range(1, 100):
    ...     histogram.add(milliseconds / 1000)
    >>> abs(histogram.percentile(50) - 0.050) < 0.0025
    True
    """

    def __init__(self, counts: Sequence[int] = ()) -> None:
        self.counts = list(counts) or [0] * _BUCKETS

    def add(self, seconds: float) -> None:
        """Count a latency."""
        bucket = 0
        if seconds > _MIN_SECONDS:
            bucket = math.ceil(_BUCKETS_PER_OCTAVE * math.log2(seconds / _MIN_SECONDS))
        self.counts[min(bucket, _BUCKETS - 1)] += 1

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds; NaN without latencies.

        The result is the middle of the bucket that contains the percentile, so it is wrong by at
        most 5 %.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"{percent!r} is not a percentile: expected a number from 0 to 100")
        total = sum(self.counts)
        rank = max(math.ceil(total * percent / 100), 1)
        for bucket, count in enumerate(self.counts):
            rank -= count
            if count and rank <= 0:
                return float(_MIN_SECONDS * 2 ** ((bucket - 0.5) / _BUCKETS_PER_OCTAVE))
        return math.nan


class LinkEstimate(NamedTuple):
    """The time of a request, estimated from requests of two sizes.

    Attributes
    ----------
    latency : float
        Seconds of a request without bytes.
    bandwidth : float
        Bytes per second of one request, at the concurrency of the measured requests.
    """

    latency: float
    bandwidth: float


class _SizeClass:
    """The last latencies of requests of similar sizes.

    Attributes
    ----------
    summary : tuple of float, optional
        The mean size in bytes and the median latency in seconds. Other threads read it.
    lowest : float
        The lowest median so far, in seconds. `RecentLatencies.forget_lowest` replaces it.
    """

    __slots__ = ("_added", "_nbytes", "_seconds", "lowest", "summary")

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=RECENT_REQUESTS)
        self._nbytes: deque[int] = deque(maxlen=RECENT_REQUESTS)
        self._added = 0
        self.summary: tuple[float, float] | None = None
        self.lowest = math.inf

    def add(self, seconds: float, nbytes: int) -> None:
        self._seconds.append(seconds)
        self._nbytes.append(nbytes)
        self._added += 1
        if self._added >= MIN_REQUESTS and self._added % _MEDIAN_PERIOD == 0:
            median = sorted(self._seconds)[len(self._seconds) // 2]
            self.summary = sum(self._nbytes) / len(self._nbytes), median
            self.lowest = min(self.lowest, median)


class RecentLatencies:
    """The latencies of the last requests of a store, by size class.

    The sizes of a class differ by a factor of at most 4, so that their latencies are comparable.
    One class has all sizes below 8 KiB.

    Examples
    --------
    >>> recent = RecentLatencies()
    >>> for _ in range(16):
    ...     recent.add(0.010, 2_000)
    ...     recent.add(0.050, 4_002_000)
    >>> recent.median(1_500), recent.median(100_000)
    (0.01, None)
    >>> recent.estimate().bandwidth  # 4 MB take 40 ms longer
    100000000.0
    """

    def __init__(self) -> None:
        self._classes: dict[int, _SizeClass] = {}

    def add(self, seconds: float, nbytes: int) -> None:
        """Record the latency of a request that transferred `nbytes`."""
        self._class_of(nbytes).add(seconds, nbytes)

    def median(self, nbytes: int) -> float | None:
        """Return the median latency of requests of similar sizes, or None if there are too few."""
        summary = self._class_of(nbytes).summary
        return None if summary is None else summary[1]

    def growth(self, nbytes: int) -> float:
        """Return the median of a size class divided by its lowest median; 1 without a median."""
        size_class = self._class_of(nbytes)
        if size_class.summary is None:
            return 1.0
        return size_class.summary[1] / max(size_class.lowest, _MIN_SECONDS)

    def forget_lowest(self, nbytes: int) -> None:
        """Take the present median of a size class as the lowest one."""
        size_class = self._class_of(nbytes)
        if size_class.summary is not None:
            size_class.lowest = size_class.summary[1]

    def estimate(self) -> LinkEstimate | None:
        """Estimate latency and bandwidth from the smallest and the largest size class.

        Returns
        -------
        LinkEstimate or None
            None if the two classes differ too little in size or median latency, or are the same.
        """
        summaries = [size_class.summary for size_class in list(self._classes.values())]
        known = sorted(summary for summary in summaries if summary is not None)
        if not known:
            return None
        (small, small_seconds), (large, large_seconds) = known[0], known[-1]
        if large < _MIN_SIZE_RATIO * small or large_seconds < _MIN_GROWTH * small_seconds:
            return None
        bandwidth = (large - small) / (large_seconds - small_seconds)
        return LinkEstimate(max(small_seconds - small / bandwidth, 0.0), bandwidth)

    def _class_of(self, nbytes: int) -> _SizeClass:
        number = max(nbytes.bit_length() - _MIN_CLASS_BITS, 0) // 2
        if (size_class := self._classes.get(number)) is None:
            size_class = self._classes.setdefault(number, _SizeClass())
        return size_class
