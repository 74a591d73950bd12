"""The order of eviction: last uses, next uses of iterations, and pinned files."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from itertools import pairwise

import pytest
from cached_files import CONTENT, FILE_BYTES, can_reserve, filled_file, hold_lock, key
from hypothesis import given
from hypothesis import strategies as st

from npstream.cache import directory as cache_dir
from npstream.cache import priority
from npstream.cache.cache import Reservation, ShardCache
from npstream.cache.priority import FINISHED_AGE, GROUP_TIMEOUT, RECENT, Entry, sort_by_priority
from npstream.errors import StorageError

GROUP = 987_654_321
"""The number of an iteration. The nanoseconds of a file's time store it.

A float of seconds since 1970 cannot hold these nanoseconds.
"""


def entry_at(position, group=1, marked=None):
    """Return a file that an iteration uses at `position`, as the cache would find it."""
    # As `mark_next_use` computes them.
    seconds = (1 << 28) + int(position * (1 << 18)) % (1 << 28)
    marked = time.time() if marked is None else marked
    return Entry(float(seconds), 1 << 20, f"{group}: {position}", group, marked)


def eviction_order(files):
    """Return files in the order of their eviction."""
    return [file for part in sort_by_priority(files)[:3] for file in part]


def entry_of_age(age):
    """Return a file that was last used `age` seconds ago, and that no iteration has marked."""
    return Entry(time.time() - age, 4096, f"{age} s", 0, time.time())


@given(st.lists(st.floats(0, 2), min_size=1, max_size=20, unique=True), st.integers(0, 3000))
def test_files_of_an_iteration_are_evicted_in_the_order_of_their_next_use(positions, epoch):
    # Positions are encoded modulo 1024 epochs; two of them are at most two epochs apart.
    positions = [epoch + round(position, 3) for position in positions]
    files = [entry_at(position) for position in positions]
    random.Random(0).shuffle(files)
    sorted_positions = [float(f.path.split()[1]) for f in eviction_order(files)]
    for a, b in pairwise(sorted_positions):
        assert a >= b - 2 / (1 << 18)


def test_unused_files_are_evicted_first_and_recent_ones_last():
    files = {
        "finished": entry_of_age(FINISHED_AGE),
        "old": entry_of_age(3 * RECENT),
        "older": entry_of_age(4 * RECENT),
        "recent": entry_of_age(1),
        "far": entry_at(1.5),
        "near": entry_at(0.5),
    }
    names = {entry.path: name for name, entry in files.items()}
    found = [names[entry.path] for entry in eviction_order(files.values())]
    assert found == ["finished", "older", "old", "far", "near", "recent"]


def test_an_ended_iteration_no_longer_has_an_order():
    ended = [entry_at(position, 1, time.time() - GROUP_TIMEOUT - 60) for position in (0.1, 0.2)]
    found = eviction_order([entry_at(1.9, 2), *ended, entry_at(0.1, 2)])
    assert [entry.group for entry in found] == [1, 1, 2, 2]


def test_next_uses_of_two_iterations_are_compared_from_now_on():
    files = [entry_at(k / 10, 1) for k in range(20)] + [
        entry_at(900 + k / 50, 2) for k in range(100)
    ]
    # The 60 files with a next use one epoch or more from now: 10 of the first iteration, and 50 of
    # the second.
    evicted = Counter(entry.group for entry in eviction_order(files)[:60])
    assert evicted == {1: 10, 2: 50}
    # The headers of shards do not say where an iteration is.
    files += [entry_at(899, 2)._replace(nbytes=12_288)]
    assert Counter(entry.group for entry in eviction_order(files)[:60]) == {1: 10, 2: 50}
    assert eviction_order(files)[-1] == files[-1]


def test_the_next_use_is_stored_in_the_file(tmp_path):
    cache = ShardCache(tmp_path, 4 * FILE_BYTES)
    files = [filled_file(cache, key(number)) for number in range(3)]
    for number, position in enumerate((7.5, 8.25, 7.75)):
        cache.mark_next_use(key(number), GROUP, position)
    cache.mark_next_use(key(9), GROUP, 0.0)  # there is no such file
    entries = eviction_order(cache_dir.entries(cache.directory))
    assert [os.path.basename(e.path)[:16] for e in entries] == [key(1), key(2), key(0)]
    assert {entry.group for entry in entries} == {GROUP}
    assert can_reserve(cache, 2 * FILE_BYTES)
    assert [file.is_linked for file in files] == [True, False, True]


def marked_files(tmp_path, count, free):
    """Return a cache with files that an iteration has marked, and room for `free` more."""
    cache = ShardCache(tmp_path, (count + free) * FILE_BYTES)
    files = [filled_file(cache, key(number)) for number in range(count)]
    for number in range(count):
        cache.mark_next_use(key(number), GROUP, number / count)
    return cache, files


def reserve(cache, nbytes):
    with cache.reserve(nbytes) as reservation:
        assert isinstance(reservation, Reservation)


def test_files_are_evicted_without_another_scan(tmp_path, monkeypatch):
    # A scan remembers files of 1/64 of the limit, which are 5 files.
    cache, files = marked_files(tmp_path, 312, 8)
    scans = []
    entries = cache_dir.entries
    monkeypatch.setattr(cache_dir, "entries", lambda path: scans.append(path) or entries(path))
    for count in range(1, 5):
        reserve(cache, FILE_BYTES if count > 1 else 9 * FILE_BYTES)
        assert [file.is_linked for file in files].count(False) == count
    assert len(scans) == 1
    assert not any(file.is_linked for file in files[-4:])


def test_marks_after_a_scan_change_the_order_of_eviction(tmp_path):
    cache, files = marked_files(tmp_path, 312, 8)
    reserve(cache, 9 * FILE_BYTES)
    assert not files[311].is_linked
    cache.mark_next_use(key(310), GROUP, 0.0)
    cache.mark_next_use(key(7), GROUP, 1.9)
    filled = len(files) - 1
    for count, evicted in enumerate((7, 309, 308), 1):
        reserve(cache, FILE_BYTES)
        assert not files[evicted].is_linked
        assert sum(file.is_linked for file in files) == filled - count
    assert files[310].is_linked


def test_a_running_iteration_keeps_its_marks(tmp_path, monkeypatch):
    cache, _ = marked_files(tmp_path, 2, 2)
    cache.mark_next_use(key(1), 6, 1.5)
    assert {entry.group for entry in cache_dir.entries(cache.directory)} == {GROUP}
    monkeypatch.setattr(priority, "GROUP_TIMEOUT", -1.0)
    cache.mark_next_use(key(1), 6, 1.5)
    assert {entry.group for entry in cache_dir.entries(cache.directory)} == {GROUP, 6}


def test_pinned_files_are_not_evicted(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES)
    old, new = filled_file(cache, key(1), age=500), filled_file(cache, key(2), age=100)
    assert cache.pin([key(1), key(7)]) == [key(7)]
    cache.touch(old)
    assert cache.info().pinned == FILE_BYTES
    assert f"{FILE_BYTES:,} of them pinned" in str(cache.info())
    assert can_reserve(cache, 2 * FILE_BYTES)
    assert (old.is_linked, new.is_linked) == (True, False)
    assert not can_reserve(cache, 2 * FILE_BYTES + 1)
    assert old.is_linked
    assert cache.pin([key(1)], False) == []
    assert can_reserve(cache, 2 * FILE_BYTES + 1)
    assert not old.is_linked


def test_pinned_files_above_a_smaller_limit_stay(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES)
    files = [filled_file(cache, key(number)) for number in range(2)]
    cache.pin([key(0), key(1)])
    smaller = ShardCache(tmp_path, FILE_BYTES)
    smaller.trim()
    assert not can_reserve(smaller, 1)
    assert all(file.is_linked for file in files)
    assert smaller.info().nbytes > smaller.info().limit
    assert cache.clear() >= 2 * len(CONTENT)  # clearing removes pinned files, too


def test_a_limit_below_all_pinned_files_raises(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES)
    filled_file(cache, key(1))
    cache.pin([key(1)])
    cache.require_pinned(2 * FILE_BYTES, [])
    cache.require_pinned(3 * FILE_BYTES, [key(1)])  # this file would be pinned anyway
    with pytest.raises(ValueError, match=r"other files that take 40,960 are pinned.*unpin\(\)"):
        cache.require_pinned(2 * FILE_BYTES + 1, [])


def test_pinning_raises_while_another_process_holds_the_lock(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES, timeout=0.01)
    filled_file(cache, key(1))
    with (
        hold_lock(tmp_path / ".lock"),
        pytest.raises(StorageError, match="no file was pinned or unpinned"),
    ):
        cache.pin([key(1)])


def test_marks_of_files_that_are_not_writable_are_ignored(tmp_path):
    priority.mark_next_use(str(tmp_path / "absent"), 1, 0.5)
    assert not priority.pin(str(tmp_path / "absent"), True)
