"""Provide `Traffic`, which counts a store's requests, and `ReadStats`, a copy of its counts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from operator import add, sub
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import size_text
from npstream._core.fork import renew_in_child
from npstream.storage.traffic.hedging import HEDGE_FACTOR, MIN_HEDGE_DELAY, HedgeBudget
from npstream.storage.traffic.latency import LatencyHistogram, RecentLatencies
from npstream.storage.traffic.merging import Merging

if TYPE_CHECKING:
    from npstream.storage.traffic.slots import RequestSlots

__all__ = ["ReadStats", "Traffic", "total_stats"]

_PERCENTILES = (50, 90, 99)

MAX_MEASURED_GAP = 1 << 20
"""The limit of `Merging.measured_gap`, in bytes, however fast the store is."""


@dataclass(frozen=True, slots=True, repr=False)
class ReadStats:
    """Counts and times of reads from object stores. Made by ``ds.stats`` and ``it.stats``.

    The numbers are those of one process. To get the numbers since an earlier object was made,
    subtract that object.

    Attributes
    ----------
    requests : int
        Requests to the stores. A request with several attempts counts once.
    retries : int
        Attempts after failures.
    hedges : int
        Further attempts that were sent because the previous one was slow.
    hedges_won : int
        Hedges that answered before the other attempts.
    bytes_requested : int
        Bytes of all range requests, including retries and hedges.
    bytes_used : int
        Bytes of the samples, or of the parts of samples, that reads have returned. Samples from the
        cache count as well. A sample that is read twice counts twice.
    wait_seconds : float
        Seconds that reads have waited for samples that were not in memory, summed over all threads.
        A read that waits for several stores counts for the first of them.
    concurrency : int
        The maximum number of concurrent requests now, which adapts to the store. For several
        stores it is the sum. A difference ``a - b`` has the concurrency of ``a``.
    histogram : tuple of int
        The counts of `npstream.storage.traffic.latency.LatencyHistogram`.
    hits : int
        Batches of ``ds.iter`` that were ready when the loop asked for them. This and the following
        numbers are 0 for ``ds.stats``, and if no threads make batches ahead.
    misses : int
        Batches that the loop waited for.
    loop_wait_seconds : float
        Seconds that the loop waited for batches.
    batches_ready : int
        Batches that are ready now. A difference ``a - b`` has the number of ``a``.
    bytes_ahead : int
        Bytes of the batches that are ready now or being made. A difference ``a - b`` has the number
        of ``a``.

    Examples
    --------
    >>> stats = getfixture("example").stats
    >>> stats.requests, stats.bytes_used  # a local dataset takes nothing from a store
    (0, 0)
    """

    requests: int = 0
    retries: int = 0
    hedges: int = 0
    hedges_won: int = 0
    bytes_requested: int = 0
    bytes_used: int = 0
    wait_seconds: float = 0.0
    concurrency: int = 0
    histogram: tuple[int, ...] = field(default_factory=lambda: tuple(LatencyHistogram().counts))
    hits: int = 0
    misses: int = 0
    loop_wait_seconds: float = 0.0
    batches_ready: int = 0
    bytes_ahead: int = 0

    def latency(self, percent: float) -> float:
        """Return a percentile of the latencies of range requests.

        A latency is the time from the first attempt to the answer, with retries and hedges. It
        excludes the time in the queue of requests.

        Parameters
        ----------
        percent : float
            From 0 to 100.

        Returns
        -------
        float
            Seconds, wrong by at most 5 %. NaN if there was no range request.

        Raises
        ------
        ValueError
            If `percent` is not from 0 to 100.

        Examples
        --------
        >>> getfixture("example").stats.latency(99)
        nan
        """
        return LatencyHistogram(self.histogram).percentile(percent)

    @property
    def read_amplification(self) -> float:
        """Bytes requested for each byte used; NaN if no byte was used."""
        return self.bytes_requested / self.bytes_used if self.bytes_used else math.nan

    def __add__(self, other: ReadStats) -> ReadStats:
        return _combine(add, self, other)

    def __sub__(self, other: ReadStats) -> ReadStats:
        difference = _combine(sub, self, other)
        return replace(
            difference,
            concurrency=self.concurrency,
            batches_ready=self.batches_ready,
            bytes_ahead=self.bytes_ahead,
        )

    def __repr__(self) -> str:
        return f"<ReadStats: {', '.join(f'{name} {text}' for name, text in self._facts())}>"

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("requests", f"{self.requests:,}"),
            ("retries", f"{self.retries:,}"),
            ("hedges", f"{self.hedges:,} ({self.hedges_won:,} won)"),
            *((f"latency p{p}", _milliseconds(self.latency(p))) for p in _PERCENTILES),
            ("bytes requested", size_text(self.bytes_requested)),
            ("bytes used", size_text(self.bytes_used)),
            ("read amplification", _ratio(self.read_amplification)),
            ("wait", f"{self.wait_seconds:.3g} s"),
            ("concurrency", f"{self.concurrency}"),
            *(self._loop_facts() if self.hits or self.misses else ()),
        ]

    def _loop_facts(self) -> list[tuple[str, str]]:
        return [
            ("batches ready in time", f"{self.hits:,} of {self.hits + self.misses:,}"),
            ("wait of the loop", f"{self.loop_wait_seconds:.3g} s"),
            ("batches ready", f"{self.batches_ready:,}"),
            ("bytes ahead", size_text(self.bytes_ahead)),
        ]


def _combine(
    operation: Callable[[Any, Any], Any], first: ReadStats, second: ReadStats
) -> ReadStats:
    """Add or subtract all numbers."""
    if not isinstance(second, ReadStats):
        return NotImplemented
    numbers = {
        f.name: operation(getattr(first, f.name), getattr(second, f.name))
        for f in fields(ReadStats)
        if f.name != "histogram"
    }
    histogram = tuple(map(operation, first.histogram, second.histogram))
    return ReadStats(**numbers, histogram=histogram)


def _milliseconds(seconds: float) -> str:
    return "none" if math.isnan(seconds) else f"{1000 * seconds:.3g} ms"


def _ratio(ratio: float) -> str:
    return "none" if math.isnan(ratio) else f"{ratio:.3g}"


class Traffic:
    """Counts and times the requests of one store in this process.

    The event loop's thread counts requests. Threads that read count the bytes that they used, and
    the time that they waited.

    Parameters
    ----------
    hedge : bool, default: True
        Whether slow range requests are sent again.

    Attributes
    ----------
    recent : RecentLatencies
        The latencies of the last attempts that answered.
    budget : HedgeBudget
        Limits and counts the second attempts for slow requests.
    concurrency : int
        The maximum number of concurrent requests now; 0 before the first connection.

    Examples
    --------
    >>> traffic = Traffic()
    >>> traffic.count_request()
    >>> traffic.count_attempt(2_000, is_retry=False)
    >>> traffic.count_answer(0.010, 0.010, 2_000)
    >>> traffic.count_use(500)
    >>> traffic.stats().bytes_requested, traffic.stats().read_amplification
    (2000, 4.0)
    """

    def __init__(self, hedge: bool = True) -> None:
        self._hedge = hedge
        self.concurrency = 0
        self.reset_process_state()
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """Set all counts to 0 and make a new lock, also in a forked process."""
        self.recent = RecentLatencies()
        self.budget = HedgeBudget()
        self._histogram = LatencyHistogram()
        self._lock = threading.Lock()
        self._requests = self._retries = self._bytes_requested = 0
        self._bytes_used, self._wait_seconds = 0, 0.0

    def count_request(self) -> None:
        """Count a request, before its first attempt."""
        self._requests += 1

    def count_attempt(self, nbytes: int, is_retry: bool) -> None:
        """Count an attempt to read a range of `nbytes`; 0 if the request is not for a range."""
        self._retries += is_retry
        self._bytes_requested += nbytes
        if nbytes and not is_retry:
            self.budget.add_request()

    def hedge_delay(self, nbytes: int) -> float | None:
        """Return the seconds after which a range request is slow.

        None if hedges are turned off, or if there are too few latencies of similar requests. The
        budget of hedges does not matter yet: it may grow until the request is slow.
        """
        if not nbytes or not self._hedge:
            return None
        median = self.recent.median(nbytes)
        return None if median is None else max(HEDGE_FACTOR * median, MIN_HEDGE_DELAY)

    def start_hedge(self, nbytes: int) -> bool:
        """Return True if a hedge of a range of `nbytes` may be sent now, and count it as sent."""
        if not self.budget.take():
            return False
        self._bytes_requested += nbytes
        return True

    def adapt(self, slots: RequestSlots, nbytes: int) -> None:
        """Adapt the concurrency after an answer to a range of `nbytes`; 0 for other requests."""
        if slots.count_answer(nbytes, self.recent):
            self.concurrency = slots.limit

    def merging(self, gap: int) -> Merging:
        """Return the rule for merging neighboring ranges: only `gap` until there are measurements.

        Parameters
        ----------
        gap : int
            Ranges with at most this many bytes between them are always merged.
        """
        if (estimate := self.recent.estimate()) is None:
            return Merging(gap)
        nbytes = estimate.latency * estimate.bandwidth
        return Merging(gap, int(min(nbytes, MAX_MEASURED_GAP)), max(self.concurrency, 1))

    def count_answer(self, seconds: float, attempt_seconds: float, nbytes: int) -> None:
        """Count the answer to a range request.

        Parameters
        ----------
        seconds, attempt_seconds : float
            Seconds since the first attempt, and seconds since the attempt that was answered.
        nbytes : int
            The bytes of the range.
        """
        self._histogram.add(seconds)
        self.recent.add(attempt_seconds, nbytes)

    def count_use(self, nbytes: int) -> None:
        """Count bytes of samples that a read returns."""
        with self._lock:
            self._bytes_used += nbytes

    def count_wait(self, seconds: float) -> None:
        """Count the time that a read has waited for samples."""
        with self._lock:
            self._wait_seconds += seconds

    def stats(self) -> ReadStats:
        """Return a copy of the counts."""
        return ReadStats(
            requests=self._requests,
            retries=self._retries,
            hedges=self.budget.sent,
            hedges_won=self.budget.won,
            bytes_requested=self._bytes_requested,
            bytes_used=self._bytes_used,
            wait_seconds=self._wait_seconds,
            concurrency=self.concurrency,
            histogram=tuple(self._histogram.counts),
        )


def total_stats(traffics: Iterable[Traffic]) -> ReadStats:
    """Return the sum of the counts of several stores; each store counts once."""
    distinct = {id(traffic): traffic for traffic in traffics}
    return sum((traffic.stats() for traffic in distinct.values()), ReadStats())
