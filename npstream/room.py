"""Room in the cache: how much it holds, how much it may hold, and what goes first.

All processes reckon under the directory's lock. The lock's file holds the bytes in use: what the
last count of the files gave, and what was promised since. Only where that leaves no room are the
files counted again, and removed, the least recently used first, until a little more than was
asked for is free, so that the count is not taken for every few bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from contextlib import suppress

from npstream import folder, sparse

__all__ = ["clear", "free_and_total", "largest", "make_room", "used"]

_USED = struct.Struct("<Q")

_LEFT_FREE = 10
"""Without a limit of its own, the cache leaves this part of the disk free: a tenth."""

_SPARE = 32
"""To make room is to make so much more of it: this part of the limit."""


def make_room(path: str, limit: int | None, nbytes: int, keep: Collection[str] = ()) -> bool:
    """Remove files until the cache may grow by `nbytes`, and tell whether it may.

    Parameters
    ----------
    path : str
        The cache's directory.
    limit : int or None
        The bytes that it may take; None leaves a tenth of the disk free.
    nbytes : int
        What is about to be written.
    keep : collection of str
        Files that stay.
    """
    if limit is None and _fits_disk(path, nbytes):
        return True
    with folder.locked(path) as lock:
        if lock is None:
            return False
        promised = None if limit is None else _promised(lock)
        if limit is None or promised is None or promised + nbytes > limit:
            fits, promised = _evict(path, limit, nbytes, keep)
            if not fits:
                nbytes = 0
        else:
            fits = True
        _promise(lock, promised + nbytes)
    return fits


def _evict(path: str, limit: int | None, nbytes: int, keep: Collection[str]) -> tuple[bool, int]:
    """Count the files, and remove what is in the way: whether that was enough, and what is left."""
    folder.sweep(path)
    files = folder.entries(path)
    in_use = sum(file.nbytes for file in files)
    most = largest(path, limit, in_use)
    kept = sum(file.nbytes for file in files if file.path in keep)
    possible = kept + nbytes <= most
    wanted = nbytes if possible else 0
    if in_use + wanted > most:
        for file in files:
            if in_use + wanted + most // _SPARE <= most:
                break
            if file.path not in keep:
                sparse.evict(file.path)
                # What is not the cache's stays, and is not counted.
                in_use -= file.nbytes
    return possible and in_use + nbytes <= most, in_use


def _promised(lock: int) -> int | None:
    """Return the bytes in use as they stand in the lock's file, if they do."""
    packed = os.pread(lock, _USED.size, 0)
    return int(_USED.unpack(packed)[0]) if len(packed) == _USED.size else None


def _promise(lock: int, nbytes: int) -> None:
    with suppress(OSError):  # on a full disk, the files are counted each time
        sparse.write_all(lock, _USED.pack(nbytes), 0)


def largest(path: str, limit: int | None, in_use: int) -> int:
    """Return how many bytes the cache may hold, of which `in_use` are there."""
    if limit is not None:
        return limit
    free, total = free_and_total(path)
    return max(in_use + free - total // _LEFT_FREE, 0)


def _fits_disk(path: str, nbytes: int) -> bool:
    free, total = free_and_total(path)
    return nbytes <= free - total // _LEFT_FREE


def free_and_total(path: str) -> tuple[int, int]:
    """Return the bytes of a disk that are free, and all of them; also of one yet to be made."""
    while True:
        try:
            disk = os.statvfs(path)
            return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        except FileNotFoundError:
            path = os.path.dirname(path)


def used(path: str) -> tuple[int, int]:
    """Return how many files the cache has, and the bytes that they take."""
    files = folder.entries(path)
    return len(files), sum(file.nbytes for file in files)


def clear(path: str) -> int:
    """Remove every file of the cache, and return the bytes that they took."""
    if not os.path.isdir(path):
        return 0
    with folder.locked(path) as lock:
        if lock is None:
            return 0
        folder.sweep(path)
        freed = sum(file.nbytes for file in folder.entries(path) if sparse.evict(file.path))
        _promise(lock, used(path)[1])
    return freed
