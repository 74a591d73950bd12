"""The cache as a whole: what it stores, misses and empties, and what can go wrong with it."""

from __future__ import annotations

import collections
import errno
import gc
import itertools
import logging
import os
import shutil
import subprocess
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

# What is kept.


@pytest.mark.parametrize("wrong", ["", "abc", "../" + KEY, KEY.upper() + "A", "g" * 16, "0" * 65])
def test_keys_are_hexadecimal(cache, wrong):
    for call in (lambda: cache.open(wrong, 1, 1), lambda: cache.load(wrong)):
        with pytest.raises(ValueError, match="16 to 64 hexadecimal digits"):
            call()


def test_a_cache_can_be_sent_to_other_processes(cache):
    import pickle

    add(open_file(cache), [1])
    assert open_file(pickle.loads(pickle.dumps(cache))).resident.tolist() == [0, 1, 0, 0]


# Trouble.


@pytest.fixture
def small_disk(tmp_path, monkeypatch) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Make a tmpfs, and a way to fill it; where none can be mounted, one that says it is full."""
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


def test_a_full_disk(small_disk, caplog):
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
        os.truncate(directory / ".lock", 0)
        assert can_reserve(cache, 1)
    assert caplog.text.count("No space left on device") == 1
    assert sorted(os.listdir(directory)) in (
        [".lock", f"{KEY}.shard"],
        [".lock", f"{KEY}.shard", "ballast"],
    )


def test_a_cache_that_is_deleted_while_in_use(cache):
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


def test_what_the_dead_left_is_swept(cache):
    dead = Path(cache.directory, f".{'0' * 16}.tmp")
    alive = Path(cache.directory, f".{'1' * 16}.tmp")
    foreign = Path(cache.directory, ".other.tmp")
    for path in (dead, alive, foreign):
        path.touch()
    with locks.LockFile(str(alive)) as descriptor:
        assert locks.try_lock(descriptor)
        ShardCache(cache.directory)
        assert (dead.exists(), alive.exists(), foreign.exists()) == (False, True, True)
    cache.clear()
    assert (alive.exists(), foreign.exists()) == (False, True)


# Objects.


def test_objects_are_stored_whole(cache):
    assert cache.load(KEY) is None
    for content in (b"", b"first", bytes(100_000), memoryview(b"last")):
        assert cache.store(KEY, content)
        assert cache.load(KEY) == bytes(content)
    assert cache.info().files == 1


@pytest.mark.parametrize("place", [0, 5, 30, -1])
def test_a_damaged_object_is_none(cache, place):
    cache.store(KEY, b"some object")
    path = Path(cache.directory, f"{KEY}.stored")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert cache.load(KEY) is None
    assert cache.store(KEY, b"some object")
    assert cache.load(KEY) == b"some object"


def test_objects_are_evicted_like_shards(tmp_path):
    cache = ShardCache(tmp_path, "1MB")
    for number in range(4):
        assert cache.store(key(number), bytes(100_000))
        os.utime(tmp_path / f"{key(number)}.stored", (number, number))
    assert cache.load(key(0)) is not None  # and with that used just now
    assert can_reserve(cache, 900_000)
    assert [cache.load(key(number)) is not None for number in range(4)] == [True] + 3 * [False]


# Where it is, and what one sees of it.


def test_info_and_clear(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    assert npstream.cache.info().files == 0
    assert npstream.cache.clear() == 0
    assert not (tmp_path / "cache").exists()
    cache = ShardCache(limit="100MB")
    assert repr(cache) == f"<npstream.ShardCache: {tmp_path / 'cache'}, limit 104,857,600 bytes>"
    add(open_file(cache))
    cache.store(KEY, b"object")
    held = npstream.cache.info()
    assert held.files == 2
    assert held.nbytes >= len(CONTENT)
    assert main(["cache", "info"]) == 0
    assert f"{tmp_path / 'cache'}: 2 files, {held.nbytes:,} bytes of" in capsys.readouterr().out
    assert main(["cache", "clear", str(tmp_path / "cache")]) == 0
    assert capsys.readouterr().out == f"{held.nbytes:,} bytes removed\n"
    assert npstream.cache.info().files == 0
