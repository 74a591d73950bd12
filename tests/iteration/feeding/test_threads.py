"""`map_ahead`: order, bounds, errors and ends, with threads that events control."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from started import started_threads, wait_for_threads

from npstream.iteration.feeding import threads
from npstream.iteration.feeding.threads import (
    PrefetchCounts,
    PrefetchLimits,
    map_ahead,
    result_bytes,
)

TIMEOUT = 60
LIMITS = PrefetchLimits(threads=2, tasks=4, nbytes=1 << 30)


def run(function, items, limits=LIMITS, size=1, counts=None, stop=None):
    counts = PrefetchCounts() if counts is None else counts
    return map_ahead(function, iter(items), limits, lambda item: (size, 1), counts, stop)


def test_results_come_in_order_although_the_first_is_made_last():
    second_is_made = threading.Event()

    def function(item):
        if item == 0:
            assert second_is_made.wait(TIMEOUT)
        if item == 1:
            second_is_made.set()
        return item

    assert list(run(function, range(50))) == list(range(50))


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_a_slow_consumer_holds_the_producers(tasks):
    begun = []
    results = run(begun.append, range(100), LIMITS._replace(tasks=tasks))
    for number in range(20):
        next(results)
        # A task is added only when the caller asks, so no more than these can ever begin.
        assert len(begun) <= number + 1 + tasks
    results.close()
    assert len(begun) <= 20 + tasks


def test_bytes_ahead_are_bounded_by_the_size_of_results():
    """The estimates are too small. After the first result, they are scaled by its size."""
    counts = PrefetchCounts()
    limits = LIMITS._replace(tasks=1000, nbytes=5000)
    results = run(lambda item: np.zeros(1000, np.uint8), range(100), limits, 10, counts)
    for _ in results:
        assert counts.nbytes <= 5000


def test_a_result_beyond_the_bound_is_made_alone():
    limits = LIMITS._replace(nbytes=10)
    counts = PrefetchCounts()
    results = run(lambda item: item, range(10), limits, 100, counts)
    assert [counts.nbytes for _ in results] == [0] * 10  # nothing is ahead


def test_an_error_comes_after_the_results_before_it():
    def function(item):
        if item == 7:
            raise KeyError(item)
        return item

    results = run(function, range(20))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError, match="7"):
        next(results)
    wait_for_threads("npstream-batches")


def test_an_error_of_the_items_comes_after_the_results_before_it():
    def items():
        yield from range(5)
        raise OSError("no more")

    results = run(lambda item: item, items())
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_threads_end_with_the_iterator():
    assert list(run(str, range(3))) == ["0", "1", "2"]
    wait_for_threads("npstream-batches")


@pytest.mark.parametrize("end", ["close", "del"])
def test_threads_end_when_the_iterator_is_closed_or_freed(end):
    results = run(str, range(1000))
    next(results)
    assert started_threads("npstream-batches")
    if end == "close":
        results.close()
    del results
    gc.collect()
    wait_for_threads("npstream-batches")


def test_closing_does_not_wait_for_a_function_that_hangs():
    may_return = threading.Event()
    is_begun = threading.Event()

    def function(item):
        if item:
            is_begun.set()
            assert may_return.wait(TIMEOUT)

    results = run(function, range(10), LIMITS._replace(threads=1))
    next(results)
    assert is_begun.wait(TIMEOUT)
    results.close()
    assert len(started_threads("npstream-batches")) == 1  # it is still in the function
    may_return.set()
    wait_for_threads("npstream-batches")


def test_closing_stops_the_requests_of_the_threads():
    stopped = []
    results = run(str, range(10), stop=stopped.extend)
    next(results)
    results.close()
    assert stopped
    assert all(thread.name == "npstream-batches" for thread in stopped)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["wait", "items"])
def test_an_interrupt_ends_the_threads(monkeypatch, where):
    may_return = threading.Event()

    def function(item):
        assert may_return.wait(TIMEOUT)

    def items():
        yield 0
        if where == "items":
            interrupt()

    if where == "wait":  # the caller reads this clock when it begins to wait
        clocks = SimpleNamespace(perf_counter=interrupt, monotonic=time.monotonic)
        monkeypatch.setattr(threads, "time", clocks)
    results = run(function, items())
    with pytest.raises(KeyboardInterrupt):
        next(results)
    may_return.set()
    wait_for_threads("npstream-batches")


def test_results_that_the_caller_has_freed_are_freed():
    class Value:
        pass

    results = run(lambda item: Value(), range(10))
    freed = weakref.ref(next(results))
    assert freed() is None


def test_hits_and_misses_are_counted():
    counts = PrefetchCounts()
    list(run(str, range(30), counts=counts))
    assert counts.hits + counts.misses == 30
    assert (counts.ready, counts.nbytes) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_forked_process_makes_the_results_itself():
    may_return = threading.Event()

    def function(item):
        if os.getpid() == parent and item:
            assert may_return.wait(TIMEOUT)
        return item

    parent = os.getpid()
    results = run(function, range(6))
    assert next(results) == 0
    child = os.fork()
    if not child:
        os._exit(0 if list(results) == [1, 2, 3, 4, 5] else 1)
    may_return.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(results) == [1, 2, 3, 4, 5]


def test_result_bytes_counts_nested_values():
    value = {"x": np.zeros(10, np.int64), "y": [b"abc", ("de", np.zeros(2, np.uint8))], "z": 1}
    assert result_bytes(value) == 80 + 3 + 2 + 2
