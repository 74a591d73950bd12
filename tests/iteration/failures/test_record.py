"""The record of failed samples counts those of other processes, too."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle

import pytest

from npstream.iteration.failures.record import FailedSample, FailureRecord

ERROR = ValueError("damaged")


def failure(sample: int) -> FailedSample:
    return FailedSample(0, sample, sample, None, "damaged")


def add(record: FailureRecord, first: int) -> None:
    for sample in range(first, first + 50):
        record.add(failure(sample), ERROR)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_failures_of_workers_are_listed(method):
    record = FailureRecord()
    record.add(failure(1000), ERROR)
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=add, args=(record, first)) for first in (0, 50, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert record.list() == [*(failure(sample) for sample in range(150)), failure(1000)]
    path = record._path
    assert path.exists()
    del record, workers, worker
    gc.collect()
    assert not path.exists()


def test_failures_are_listed_in_the_order_of_their_positions():
    record = FailureRecord()
    rows = [(1, 2, 5, None), (0, 9, 1, 7), (0, 3, 2, None), (0, 9, 7, 4), (0, 9, 4, None)]
    failures = [FailedSample(*row, "damaged") for row in rows]
    for each in failures:
        record.add(each, ERROR)
    assert record.list() == [failures[k] for k in (2, 1, 3, 4, 0)]


def test_more_than_max_errors_raise():
    record = FailureRecord(max_errors=2)
    record.add(failure(0), ERROR)
    record.add(failure(1), ERROR)
    with pytest.raises(RuntimeError, match="3 samples could not be read, more than max_errors=2"):
        record.add(failure(2), ERROR)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copy_counts_for_itself(make_copy):
    record = FailureRecord()
    record.add(failure(0), ERROR)
    other = make_copy(record)
    other.add(failure(1), ERROR)
    assert record.list() == [failure(0)]
    assert other.list() == [failure(0), failure(1)]


def test_long_reasons_are_cut():
    record = FailureRecord()
    record.add(failure(0)._replace(reason="x" * 10_000), ERROR)
    assert record.list()[0].reason == "x" * 1000


def test_only_the_first_failure_is_logged(caplog):
    record = FailureRecord()
    add(record, 0)
    (message,) = caplog.messages
    assert "sample 0 of epoch 0 is left out: damaged" in message
