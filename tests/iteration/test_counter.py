"""The epoch counter; calls with worker numbers stand for workers in other processes."""

from __future__ import annotations

import pickle
import sys
import threading

import pytest

from npstream.iteration.counter import MAX_WORKERS, EpochCounter, EpochCursor


def test_consecutive_loaders_with_any_number_of_workers_read_consecutive_epochs():
    counter = EpochCounter(4)
    for epoch, workers in enumerate([2, 3, 3, 1, 2, MAX_WORKERS, 2], 4):
        epochs = {
            counter.advance_worker(worker, workers).epoch for worker in reversed(range(workers))
        }
        assert epochs == {epoch}
        assert counter.last_worker_cursor() == EpochCursor(epoch)
        assert counter.next_cursor() == EpochCursor(epoch + 1)
    assert counter.advance() == EpochCursor(11)
    with pytest.raises(ValueError, match=f"at most {MAX_WORKERS}"):
        counter.advance_worker(0, MAX_WORKERS + 1)


def test_only_the_first_iteration_begins_at_the_set_cursor():
    counter = EpochCounter(0)
    cursor = EpochCursor(3, 40, ((50, 60), (70, 2**40)))
    for pinned in (False, True):
        following = EpochCursor(3 if pinned else 4)
        counter.set(cursor, pinned=pinned)
        assert counter.advance() == cursor
        assert counter.current_cursor() == cursor
        assert counter.next_cursor() == following
        counter.set(cursor, pinned=pinned)
        assert [counter.advance_worker(worker, 2) for worker in (0, 1)] == [cursor] * 2
        assert [counter.advance_worker(worker, 2) for worker in (1, 0)] == [following] * 2
        assert counter.last_worker_cursor() == following


def run_at_once(run, workers=3):
    """Call a function with each worker number concurrently, and return its results."""
    gate, results = threading.Barrier(workers), [None] * workers

    def run_worker(worker):
        gate.wait()
        results[worker] = run(worker)

    threads = [threading.Thread(target=run_worker, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def frequent_switches():
    """Let threads switch after nearly every step, to simulate processes on their own cores."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_switches")
def test_workers_can_begin_concurrently():
    counter = EpochCounter(5)
    counter.share()
    epochs = run_at_once(
        lambda worker: [counter.advance_worker(worker, 3).epoch for _ in range(400)]
    )
    assert epochs == [[*range(5, 405)]] * 3

    def resume_and_advance(worker):
        epochs = []
        for epoch in (*range(700, 800), *range(100)):
            counter.resume_worker(EpochCursor(epoch), worker, 3)
            epochs += [counter.advance_worker(worker, 3).epoch for _ in range(2)]
        return epochs

    expected = [epoch + k for epoch in (*range(700, 800), *range(100)) for k in range(2)]
    assert run_at_once(resume_and_advance) == [expected] * 3
    assert counter.next_cursor() == EpochCursor(101)


def test_workers_that_load_a_state_are_counted():
    counter = EpochCounter(5)
    counter.share()
    for worker in range(2):
        counter.resume_worker(EpochCursor(4), worker, 2)
        assert counter.advance_worker(worker, 2) == EpochCursor(4)
    assert counter.worker_iterations
    assert (counter.last_worker_cursor(), counter.next_cursor()) == (EpochCursor(4), EpochCursor(5))
    counter.set(counter.next_cursor(), pinned=True)
    counter.resume_worker(EpochCursor(1), 0, 2)
    assert counter.advance_worker(0, 2) == EpochCursor(5)  # a pinned epoch stays


# Contexts


def test_contexts_are_moved_to_shared_memory():
    counter = EpochCounter(0, context_bytes=200)
    first, second = b"first", b"other" * 40  # the second has the maximum of 200 bytes
    counter.set(EpochCursor(2, 5, context=second), pinned=False)
    counter.coordinate(EpochCursor(3, context=first))
    counter.share()
    assert (counter.current_cursor(), counter.next_cursor()) == (
        EpochCursor(3, context=first), EpochCursor(2, 5, context=second)
    )  # fmt: skip
    counter.coordinate(EpochCursor(3))
    assert (counter.current_cursor().context, counter.next_cursor().context) == (b"", second)
    with pytest.raises(ValueError, match="takes 201 bytes, and at most 200 bytes can be shared"):
        counter.coordinate(EpochCursor(3, context=bytes(201)))


def test_contexts_are_the_same_in_all_epochs():
    counter = EpochCounter(0, context_bytes=1)
    cursor = EpochCursor(2, 5, ((6, 8),), restart=5, context=b"n")
    counter.set(cursor, pinned=False)
    assert pickle.loads(pickle.dumps(counter)).next_cursor() == cursor
    for shared in (False, True):
        if shared:
            counter.share()
        counter.set(cursor, pinned=False)
        assert counter.advance() == counter.current_cursor() == cursor
        assert counter.next_cursor() == EpochCursor(3, context=b"n")
    counter.resume_worker(EpochCursor(7, context=b"m"), 0, 2)
    assert counter.advance_worker(0, 2) == EpochCursor(7, context=b"m")


def test_a_counter_without_workers_accepts_any_context():
    counter = EpochCounter(0)
    counter.set(EpochCursor(1, context=bytes(99)), pinned=False)
    assert pickle.loads(pickle.dumps(counter)).advance().context == bytes(99)
    assert counter.advance().context == bytes(99)
    with pytest.raises(ValueError, match="begin a new run, or read without workers"):
        counter.share()
    assert counter.next_cursor() == EpochCursor(2, context=bytes(99))
