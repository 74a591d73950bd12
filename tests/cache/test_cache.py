"""`ShardCache`: small objects, keys, sizes, and faults of the disk and the directory."""

from __future__ import annotations

import collections
import errno
import gc
import itertools
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cached_files import (
    CONTENT,
    KEY,
    OTHER,
    PIECE,
    PIECES,
    add,
    can_reserve,
    filled_file,
    key,
    open_file,
    read,
)

import npstream
from npstream.__main__ import main
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import ShardCache

# Keys and pickles


@pytest.mark.parametrize("invalid", ["", "abc", "../" + KEY, KEY.upper() + "A", "g" * 16, "0" * 65])
def test_keys_are_hexadecimal(cache, invalid):
    for call in (lambda: cache.open(invalid, 1, 1), lambda: cache.load(invalid)):
        with pytest.raises(ValueError, match="16 to 64 hexadecimal digits"):
            call()


def test_a_pickled_cache_uses_the_same_directory(cache):
    import pickle

    add(open_file(cache), [1])
    assert open_file(pickle.loads(pickle.dumps(cache))).resident.tolist() == [0, 1, 0, 0]


# Faults


@pytest.fixture
def small_disk(tmp_path, monkeypatch) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a small tmpfs and a function that fills it; without mount, simulate a full disk."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "disk"]
    if shutil.which("mount") and not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:

        def fill() -> None:
            with (
                open(tmp_path / "disk" / "ballast", "wb", buffering=0) as ballast,
                pytest.raises(OSError, match="No space left"),
            ):
                collections.deque(map(ballast.write, itertools.repeat(bytes(4096))), 0)

        yield tmp_path / "disk", fill
        gc.collect()
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)
    else:

        def full(*_arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        yield tmp_path / "disk", lambda: monkeypatch.setattr(sparse, "write_all", full)


def test_a_full_disk_keeps_cached_pieces_and_rejects_new_ones(small_disk, caplog):
    directory, fill = small_disk
    cache = ShardCache(directory, "1GB")
    file = open_file(cache)
    add(file, [0])
    fill()
    with caplog.at_level(logging.INFO, "npstream"):
        assert [file.put(piece * PIECE, bytes(PIECE)) for piece in (1, 2)] == [False, False]
        assert file.resident.tolist() == [1, 0, 0, 0]
        assert read(file, 0) == CONTENT[:PIECE]
        assert cache.open(OTHER, len(CONTENT), PIECES) is None
        assert not cache.store(OTHER, bytes(10_000))
        assert open_file(cache).resident.tolist() == [1, 0, 0, 0]
        # Without the counter in the lock file, a reservation scans the files.
        os.truncate(directory / ".lock", 0)
        assert can_reserve(cache, 1)
    assert caplog.text.count("No space left on device") == 1
    assert sorted(os.listdir(directory)) in (
        [".lock", f"{KEY}.shard"],
        [".lock", f"{KEY}.shard", "ballast"],
    )


def test_a_cache_works_after_its_directory_was_deleted(cache):
    file = filled_file(cache, KEY)
    shutil.rmtree(cache.directory)
    assert read(file, 1) == CONTENT[PIECE : 2 * PIECE]
    assert not file.is_linked
    assert not file.put(0, b"x")
    assert cache.load(OTHER) is None
    assert can_reserve(cache, PIECE)
    again = open_file(cache)
    add(again, [0])
    assert os.stat(cache.directory).st_mode & 0o777 == 0o700
    shutil.rmtree(cache.directory)
    assert cache.store(OTHER, b"object")
    assert cache.load(OTHER) == b"object"


def test_temporary_files_of_dead_processes_are_removed(cache):
    dead = Path(cache.directory, f".{'0' * 16}.tmp")
    locked = Path(cache.directory, f".{'1' * 16}.tmp")
    foreign = Path(cache.directory, ".other.tmp")
    for path in (dead, locked, foreign):
        path.touch()
    with locks.LockFile(str(locked)) as descriptor:
        assert locks.try_lock(descriptor)
        ShardCache(cache.directory)
        assert (dead.exists(), locked.exists(), foreign.exists()) == (False, True, True)
    cache.clear()
    assert (locked.exists(), foreign.exists()) == (False, True)


# Small objects


def test_objects_are_stored_and_loaded(cache):
    assert cache.load(KEY) is None
    for content in (b"", b"first", bytes(100_000), memoryview(b"last")):
        assert cache.store(KEY, content)
        assert cache.load(KEY) == bytes(content)
    assert cache.info().files == 1


@pytest.mark.parametrize("offset", [0, 5, 30, -1])
def test_a_damaged_object_loads_as_none(cache, offset):
    cache.store(KEY, b"some object")
    path = Path(cache.directory, f"{KEY}.stored")
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    assert cache.load(KEY) is None
    assert cache.store(KEY, b"some object")
    assert cache.load(KEY) == b"some object"


def test_objects_are_evicted_like_shards(tmp_path):
    cache = ShardCache(tmp_path, "1MB")
    for number in range(4):
        assert cache.store(key(number), bytes(100_000))
        os.utime(tmp_path / f"{key(number)}.stored", (number, number))
    assert cache.load(key(0)) is not None  # this updates its last use
    assert can_reserve(cache, 900_000)
    assert [cache.load(key(number)) is not None for number in range(4)] == [True] + 3 * [False]


# Reports


def test_info_and_clear_report_the_bytes_of_a_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    assert npstream.cache.info().files == 0
    assert npstream.cache.clear() == 0
    assert not (tmp_path / "cache").exists()
    cache = ShardCache(limit="100MB")
    assert repr(cache) == f"<npstream.ShardCache: {tmp_path / 'cache'}, limit 104,857,600 bytes>"
    add(open_file(cache))
    cache.store(KEY, b"object")
    info = npstream.cache.info()
    assert info.files == 2
    assert info.nbytes >= len(CONTENT)
    assert main(["cache", "info"]) == 0
    assert f"{tmp_path / 'cache'}: 2 files, {info.nbytes:,} bytes of" in capsys.readouterr().out
    assert main(["cache", "clear", str(tmp_path / "cache")]) == 0
    assert capsys.readouterr().out == f"{info.nbytes:,} bytes removed\n"
    assert npstream.cache.info().files == 0


# Fetch locks


def test_one_thread_at_a_time_fetches_an_object(tmp_path):
    cache = ShardCache(tmp_path / "cache")
    inside, most = [0], [0]

    def fetch(key):
        with cache.fetch_lock(key):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            never_set.wait(0.01)
            inside[0] -= 1

    never_set = threading.Event()
    threads = [threading.Thread(target=fetch, args=("00" * 8,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    with cache.fetch_lock("11" * 8):  # another object
        pass
    for thread in threads:
        thread.join()
    assert most == [1]


def test_objects_are_stored_while_another_one_is_fetched(tmp_path):
    cache = ShardCache(tmp_path / "cache", None, 60)
    with cache.fetch_lock("00" * 8):
        # Another descriptor of the same lock file, as another thread or process has.
        with locks.LockFile(str(tmp_path / "cache" / ".lock"), os.O_RDWR) as descriptor:
            assert locks.try_range(descriptor, 0, 1)
        cache.store("11" * 8, b"stored meanwhile")
    assert cache.load("11" * 8) == b"stored meanwhile"


def test_a_fetch_lock_that_is_not_released_is_ignored_after_a_timeout(tmp_path):
    cache = ShardCache(tmp_path / "cache", timeout=0.02)
    entered = []
    with cache.fetch_lock("00" * 8), cache.fetch_lock("00" * 8):
        entered.append(True)
    assert entered
