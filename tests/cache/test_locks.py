"""Locks of the cache: killed, forked and stopped processes, and file systems without locks."""

from __future__ import annotations

import errno
import logging
import os
import threading

import crash_cache
import pytest
from cached_files import (
    CONTENT,
    KEY,
    OTHER,
    PIECES,
    add,
    can_reserve,
    exit_code_of,
    hold_lock,
    open_file,
    start_process,
)
from crash_cache import in_child

import npstream
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import Refusal, ShardCache

# Locks of pieces


def test_a_killed_process_releases_its_locks(cache):
    holder = start_process(
        cache, "claim = file.lock(range(4)); print(claim.pieces, flush=True); input()"
    )
    assert holder.stdout.readline() == "[0, 1, 2, 3]\n"
    file = open_file(cache)
    with file.lock([0]) as claim:
        assert claim.pieces == []
    threading.Timer(0.1, holder.kill).start()
    file.wait([0], 60)
    with file.lock([0]) as claim:
        assert claim.pieces == [0]
    holder.communicate()


def test_a_forked_child_neither_holds_nor_releases_locks(cache):
    file = open_file(cache)
    (result_reader, result_writer), (wait, release) = os.pipe(), os.pipe()

    def child() -> None:
        assert parent_claim.pieces == [0]
        parent_claim.close()  # must not close another file that has the same descriptor by now
        with file.lock([0]) as claim:
            assert claim.pieces == []
        with file.lock([1]) as claim:
            assert claim.pieces == [1]
        os.write(result_writer, b"x")
        os.close(release)
        os.read(wait, 1)

    parent_claim = file.lock([0])
    child_pid = in_child(child)
    os.close(result_writer)
    assert os.read(result_reader, 1) == b"x"
    with open_file(cache).lock([0]) as claim:
        assert claim.pieces == []
    parent_claim.close()
    # The child is still alive, but does not hold the lock.
    with open_file(cache).lock([0]) as claim:
        assert claim.pieces == [0]
    os.close(release)
    assert exit_code_of(child_pid) == 0
    os.close(wait)
    os.close(result_reader)


def test_a_child_can_lock_if_threads_lock_during_the_fork(cache):
    file = open_file(cache)
    stop = threading.Event()

    def lock() -> None:
        while not stop.is_set():
            file.lock([0]).close()

    threads = [threading.Thread(target=lock) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert exit_code_of(in_child(lambda: file.lock([1]).close())) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_without_range_locks_a_claim_locks_the_whole_file(cache, without_range_locks):
    file, other = open_file(cache), open_file(cache)
    with file.lock([0]) as claim:
        assert claim.pieces == [0]
        with other.lock([0, 1]) as second:
            assert second.pieces == []
        other.wait([0], 0.05)  # ends at the timeout
        add(file, [0])
        other.wait([0], 60)
    other.wait([1], 60)
    with other.lock([0, 1]) as claim:
        assert claim.pieces == [1]


def test_without_file_locks_each_holder_gets_its_claim(cache, without_range_locks, monkeypatch):
    def flock(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with open_file(cache).lock([0]) as claim, open_file(cache).lock([0]) as second:
        assert claim.pieces == second.pieces == [0]
    assert can_reserve(cache, 1)
    add(open_file(cache))


def test_missing_range_locks_are_logged_once(tmp_path, without_range_locks, caplog):
    with caplog.at_level(logging.INFO, "npstream"):
        ShardCache(tmp_path / "a")
        ShardCache(tmp_path / "a")
    assert caplog.text.count("no range locks here") == 1


# The lock of the directory


def test_a_lock_that_is_never_released_costs_one_timeout(tmp_path, monkeypatch, caplog):
    cache = ShardCache(tmp_path, "1MB", timeout=0.05)
    waits = []
    wait = locks.wait_until
    monkeypatch.setattr(
        locks, "wait_until", lambda condition, t: waits.append(t) or wait(condition, t)
    )
    with hold_lock(tmp_path / ".lock"), caplog.at_level(logging.INFO, "npstream"):
        for _ in range(3):
            assert cache.reserve(1) is Refusal.LOCKED
        assert cache.reserve(1, may_exceed=True, timeout=7.0) is Refusal.LOCKED
        assert cache.open(KEY, len(CONTENT), PIECES) is None
        assert not cache.store(OTHER, b"object")
        cache.trim()
        with pytest.raises(TimeoutError, match=r"holds its lock: the cache was not emptied"):
            cache.clear()
        with pytest.raises(TimeoutError, match=r"holds its lock"):
            npstream.cache.clear(tmp_path, timeout=0.05)
    assert "which may have been stopped, holds its lock: reading on without" in caplog.text
    # Only the first call waits until the timeout.
    assert waits[0] == 0.05
    assert not any(waits[1:])
    assert can_reserve(cache, 1)
    assert can_reserve(cache, 1)
    assert waits[-1] == 0.05


def test_a_file_that_another_process_verifies_is_not_opened_after_the_timeout(
    tmp_path, monkeypatch
):
    cache = ShardCache(tmp_path, "1MB", timeout=0.05)
    add(open_file(cache))
    monkeypatch.setattr(sparse, "boot_id", lambda: bytes(16))
    with hold_lock(tmp_path / f"{KEY}.shard"):
        assert cache.open(KEY, len(CONTENT), PIECES, lambda *_: True) is None
    assert open_file(cache, check=lambda *_: True).resident.all()


# Killed processes


def assert_consistent(counts: dict[str, int], rounds: int) -> None:
    """Fail unless the counts of `crash_cache.run` are those of a cache that no crash damages."""
    assert counts["rounds"] == rounds
    assert counts["killed"] >= rounds - 1  # one may end just before the signal
    assert counts["hits"] > rounds
    assert counts["kept"] > rounds
    assert counts["peak"] <= crash_cache.LIMIT + crash_cache.IN_FLIGHT
    assert counts["at rest"] <= crash_cache.LIMIT
    for what in (
        "wrong", "failed", "temporaries", "locks", "foreign touched", "unusable", "unpinned",
    ):  # fmt: skip
        assert counts[what] == 0, what


def test_killed_processes_leave_a_consistent_cache(tmp_path):
    assert_consistent(crash_cache.run(10, str(tmp_path)), 10)


def test_killed_processes_leave_a_consistent_cache_without_range_locks(
    tmp_path, without_range_locks
):
    assert_consistent(crash_cache.run(2, str(tmp_path)), 2)
