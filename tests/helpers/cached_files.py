"""Helpers that open, fill and read a cached file of four pieces, also in another process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import npstream
from npstream.cache import locks
from npstream.cache.cache import CachedFile, Refusal, ShardCache

KEY, OTHER = "0123456789abcdef", "f" * 64
PIECE, PIECES = 10_000, 4
CONTENT = np.random.default_rng(0).bytes(PIECE * PIECES)

FILE_BYTES = 40_960  # disk usage of a complete file, with disk blocks of 4 KiB


def open_file(cache: ShardCache, key: str = KEY, **options) -> CachedFile:
    file = cache.open(key, len(CONTENT), PIECES, **options)
    assert file is not None
    return file


def add(file: CachedFile, pieces=range(PIECES)) -> None:
    for piece in pieces:
        assert file.put(piece * PIECE, CONTENT[piece * PIECE : (piece + 1) * PIECE])
    assert file.commit(pieces)


def read(file: CachedFile, piece: int) -> bytes:
    assert file.resident[piece]
    return file.data[piece * PIECE : (piece + 1) * PIECE].tobytes()


def filled_file(cache: ShardCache, key: str, age: float = 0) -> CachedFile:
    """Return a complete file that was last used `age` seconds ago."""
    file = open_file(cache, key)
    assert can_reserve(cache, len(CONTENT))
    add(file)
    last_used = time.time() - age
    os.utime(file.path, (last_used, last_used))
    return file


def can_reserve(cache: ShardCache, nbytes: int, keep: Iterable[CachedFile] = ()) -> bool:
    """Return True if bytes can be reserved; release the reservation."""
    reservation = cache.reserve(nbytes, keep)
    if isinstance(reservation, Refusal):
        return False
    reservation.close()
    return True


def key(number: int) -> str:
    return f"{number:016x}"


def exit_code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


PRELUDE = f"""
import sys, time
from npstream.cache.cache import ShardCache
directory = sys.argv[1]
cache = ShardCache(directory, "100MB")
file = cache.open({KEY!r}, {len(CONTENT)}, {PIECES})
"""


def start_process(cache: ShardCache, code: str) -> subprocess.Popen[str]:
    """Run code in another process that has a file of the cache open."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, cache.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(npstream.__file__).parents[1],
    )


@contextlib.contextmanager
def hold_lock(path: str | Path) -> Iterator[None]:
    """Hold a file lock, like another process that is stopped."""
    with locks.LockFile(str(path), os.O_RDWR | os.O_CREAT) as descriptor:
        assert locks.try_lock(descriptor)
        yield
