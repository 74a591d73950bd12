"""Eviction: the order of files, files that stay, and limits that are too small."""

from __future__ import annotations

import os
import time

import pytest
from cached_files import (
    CONTENT,
    FILE_BYTES,
    KEY,
    PIECE,
    PIECES,
    can_reserve,
    filled_file,
    key,
    open_file,
    start_process,
)

from npstream.cache import directory as cache_dir
from npstream.cache import eviction
from npstream.cache.cache import ShardCache


def test_least_recently_used_files_are_evicted_first(tmp_path):
    cache = ShardCache(tmp_path, 4 * FILE_BYTES + FILE_BYTES // 2)
    files = [filled_file(cache, key(number), age=100 - 10 * number) for number in range(4)]
    cache.touch(files[0])  # too soon after the last use to be recorded
    cache.mark_finished(files[2])
    files[1].touched -= 60  # so that the next use is recorded
    cache.touch(files[1])
    assert can_reserve(cache, PIECE)
    assert [file.is_linked for file in files] == [True, True, True, True]
    # The finished file is evicted first, then the files with the longest time since the last use.
    expected = [True, True, False, True], [False, True, False, True], [False, True, False, False]
    for number, are_linked in enumerate(expected, 1):
        assert can_reserve(cache, number * FILE_BYTES)
        assert [file.is_linked for file in files] == are_linked


def test_the_first_touch_after_opening_updates_the_last_use(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES)
    filled_file(cache, key(1), age=50_000)
    cache.mark_finished(filled_file(cache, key(2)))
    for number in (1, 2):
        cache.touch(open_file(cache, key(number)))
        assert time.time() - os.stat(tmp_path / f"{key(number)}.shard").st_mtime < 40_000


def test_a_reader_of_an_evicted_file_sees_absent_pieces(cache):
    file = filled_file(cache, KEY)
    data = file.data[:PIECE]
    assert cache.clear() >= len(CONTENT)
    assert file.resident.tolist() == [0, 0, 0, 0]
    assert data.tobytes() == CONTENT[:PIECE]
    assert not file.is_linked
    with file.lock([0]) as claim:
        assert claim.pieces == []
    file.wait([0], 60)
    assert not file.put(0, b"x")
    assert not file.commit([0])
    again = open_file(cache)
    assert again.is_linked
    assert again.resident.tolist() == [0, 0, 0, 0]
    # The old file is not mistaken for the new file of the same name.
    assert not file.is_linked
    assert not file.put(0, b"x")


def test_a_reader_sees_an_eviction_by_another_process(cache):
    file = filled_file(cache, KEY)
    other = start_process(cache, "print(cache.clear(), file.resident.sum())")
    removed, resident = other.communicate()[0].split()
    assert int(removed) >= len(CONTENT)
    assert resident == "0"
    assert not file.resident.any()
    assert not file.is_linked


def test_files_to_keep_are_not_evicted(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES)
    old, new = filled_file(cache, key(1), age=50), filled_file(cache, key(2))
    assert can_reserve(cache, 2 * FILE_BYTES, keep=[old])
    assert (old.is_linked, new.is_linked) == (True, False)


def test_a_reservation_that_never_fits_evicts_nothing(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES)
    old, new = filled_file(cache, key(1)), filled_file(cache, key(2))
    assert not can_reserve(cache, 3 * FILE_BYTES + 1)
    assert not can_reserve(cache, 2 * FILE_BYTES + FILE_BYTES // 2, keep=[old])
    assert old.is_linked
    assert new.is_linked


def test_foreign_files_do_not_stop_eviction(tmp_path):
    cache = ShardCache(tmp_path, 3 * FILE_BYTES)
    foreign = tmp_path / f"{key(9)}.shard"
    foreign.write_bytes(bytes(FILE_BYTES))
    os.utime(foreign, (0, 0))
    files = [filled_file(cache, key(1)), filled_file(cache, key(2))]
    assert can_reserve(cache, 2 * FILE_BYTES)
    assert [file.is_linked for file in files].count(True) <= 1
    assert foreign.read_bytes() == bytes(FILE_BYTES)


def test_files_are_scanned_only_if_the_counter_exceeds_the_limit(tmp_path, monkeypatch):
    scans = []
    entries = cache_dir.entries
    monkeypatch.setattr(cache_dir, "entries", lambda path: scans.append(path) or entries(path))
    cache = ShardCache(tmp_path, "10MB")
    for _ in range(100):
        assert can_reserve(cache, 100_000)
    assert len(scans) == 1
    # The next scan finds that reserved bytes were never written.
    for _ in range(100):
        assert can_reserve(cache, 100_000)
    assert len(scans) == 2


def test_the_automatic_limit_leaves_a_tenth_of_the_disk_free(tmp_path, monkeypatch):
    cache = ShardCache(tmp_path, "auto")
    file = filled_file(cache, KEY)
    free = 1 << 20
    monkeypatch.setattr(eviction, "free_and_total", lambda path: (free, 5 << 20))
    assert can_reserve(cache, 1 << 19)
    assert file.is_linked
    assert cache.info().limit == cache.info().nbytes + (1 << 19)
    assert can_reserve(cache, (1 << 19) + 1)
    assert not file.is_linked
    # Other programs fill the disk: all files are evicted, and nothing more is cached.
    file = filled_file(cache, KEY)
    free = 0
    assert not can_reserve(cache, 1)
    assert not file.is_linked


def test_the_automatic_limit_leaves_at_most_10_gb_free(tmp_path, monkeypatch):
    cache = ShardCache(tmp_path, "auto")
    free = (10 << 30) + 1000
    monkeypatch.setattr(eviction, "free_and_total", lambda path: (free, 1 << 40))
    assert cache.info().limit == 1000
    assert can_reserve(cache, 1000)
    assert not can_reserve(cache, 1001)


def test_a_limit_that_is_too_small_raises_with_the_least_limit(tmp_path):
    cache = ShardCache(tmp_path, "1MB")
    cache.require(1 << 20)
    with pytest.raises(ValueError, match=r"1,048,576 bytes, and this needs at least 1,048,577"):
        cache.require((1 << 20) + 1)


def test_a_limit_below_one_file_disables_caching(tmp_path):
    cache = ShardCache(tmp_path, 100)
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert not cache.store(KEY, b"object")
