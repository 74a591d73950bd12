"""Room in the cache: how much it holds, how much it may hold, and what is evicted first.

All processes account under the directory's lock. The lock's file holds the bytes in use: what the
last count of the files gave, and what was reserved since. Only where that leaves no room are the
files counted again, and evicted, the least recently used first, until a little more than was
asked for is free, so that the files are not counted for every few bytes.

Bytes that are about to be written are reserved. A reservation is a locked file whose size says for
how many blocks of the disk it stands; it takes none itself. So every count sees what others are
writing, and a process that dies loses its reservations: their locks are free.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from enum import Enum
from functools import partial

from npstream.cache import directory as folder
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.errors import StorageError

__all__ = [
    "Refusal",
    "Reservation",
    "free_and_total",
    "largest",
    "remove_files",
    "reserve",
    "trim",
    "used",
]

_USED = struct.Struct("<Q")

_LEFT_FREE = 10
"""Without a limit of its own, the cache leaves this part of the disk free: a tenth."""

_SPARE = 32
"""To evict is to free so much more than was asked for: this part of the limit."""

_RESERVED = re.compile(r"\.[0-9a-f]{16}\.reserved")

DISK_BLOCK = 1 << 12
"""Bytes of a block of the disk: what a file takes is counted in these."""


class Refusal(Enum):
    """Why nothing was reserved."""

    FULL = "the cache cannot hold so much, or not be written to"
    CROWDED = "others are writing all that it can hold"
    LOCKED = "its lock was not to be had in time"


class Reservation:
    """Bytes of the cache that nobody else may take, until it is closed.

    Parameters
    ----------
    description : Description, optional
        The lock on the file that says so to others; none if there is no limit.
    path : str
        That file.
    """

    __slots__ = ("_description", "_path", "_settle")

    def __init__(self, description: locks.Description | None = None, path: str = "") -> None:
        self._description = description
        self._path = path
        self._settle: Callable[[], None] | None = None

    def spend(self, nbytes: int) -> None:
        """Free a part of it that was written, and so is counted with the files."""
        if self._description is not None and (descriptor := self._description.descriptor) >= 0:
            with suppress(OSError):
                left = os.fstat(descriptor).st_size - nbytes // DISK_BLOCK
                os.ftruncate(descriptor, max(left, 0))

    def close(self) -> None:
        """Give up what was not written; what was written is counted with the files."""
        description, self._description = self._description, None
        if description is not None and description.descriptor >= 0:  # -1 in a forked child
            with suppress(OSError):
                os.unlink(self._path)
            description.close()
        settle, self._settle = self._settle, None
        if settle is not None:
            settle()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def reserve(
    path: str,
    limit: int | None,
    nbytes: int,
    keep: Collection[str] = (),
    *,
    timeout: float,
    may_exceed: bool = False,
) -> Reservation | Refusal:
    """Evict files until the cache may grow by `nbytes`, and reserve these.

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
    timeout : float
        Seconds to wait for others.
    may_exceed : bool
        Whether the limit may be exceeded where there is no room only because others are writing.
        One reservation of each process does that at a time. When it is closed, so much is evicted
        that the limit holds again.
    """
    try:
        if limit is None and _fits_disk(path, nbytes):
            return Reservation()
    except StorageError as error:
        folder.say(path, f"{error.strerror}: reading on without caching")
        return Refusal.FULL
    end = time.monotonic() + timeout
    found = _reserve(path, limit, nbytes, keep, timeout, False)
    if found is not Refusal.CROWDED or not may_exceed:
        return found
    if not _begin_exceeding(path, end - time.monotonic()):
        return found
    found = _reserve(path, limit, nbytes, keep, max(end - time.monotonic(), 0.0), True)
    if isinstance(found, Reservation):
        found._settle = partial(_end_exceeding, path, limit, timeout)
    else:
        _end_exceeding(path, None, 0.0)
    return found


_exceeding: dict[str, threading.Lock] = {}
_owners: dict[str, int] = {}
"""The threads of this process that may exceed the limits of caches, one for each."""


def _after_fork() -> None:
    """Forget the threads that are not here."""
    _exceeding.clear()
    _owners.clear()


os.register_at_fork(after_in_child=_after_fork)


def _begin_exceeding(path: str, timeout: float) -> bool:
    """Let this thread exceed a cache's limit, unless one does, maybe this, and goes on doing so."""
    if _owners.get(path) == threading.get_ident():
        return False
    if not _exceeding.setdefault(path, threading.Lock()).acquire(
        timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)
    ):
        return False
    _owners[path] = threading.get_ident()
    return True


def _end_exceeding(path: str, limit: int | None, timeout: float) -> None:
    """Evict what is too much, and let another thread exceed the limit."""
    try:
        trim(path, limit, timeout)
    finally:
        if _owners.pop(path, None) is not None:
            _exceeding[path].release()


def _reserve(
    path: str,
    limit: int | None,
    nbytes: int,
    keep: Collection[str],
    timeout: float,
    may_exceed: bool,
) -> Reservation | Refusal:
    try:
        with folder.locked(path, timeout) as lock:
            in_use = None if limit is None else _counted(lock)
            if in_use is None or limit is None or in_use + nbytes > limit:
                refusal, in_use = _evict(path, limit, nbytes, keep)
                if refusal is not None and not (may_exceed and refusal is Refusal.CROWDED):
                    _count(lock, in_use)
                    return refusal
            found = Reservation() if limit is None else _promised(path, nbytes)
            _count(lock, in_use + nbytes)
            return found
    except OSError as error:
        folder.say(path, f"{error.strerror or error}: reading on without caching")
        return Refusal.LOCKED if isinstance(error, TimeoutError) else Refusal.FULL


def _evict(
    path: str, limit: int | None, nbytes: int, keep: Collection[str]
) -> tuple[Refusal | None, int]:
    """Count the files, and evict what is in the way: why that is not enough, and what is left."""
    folder.sweep(path)
    # In this order, as what is written meanwhile may be counted twice, but not missed.
    reserved, files = _reserved(path), folder.entries(path)
    in_use = sum(file.nbytes for file in files) + reserved
    most = largest(path, limit, in_use)
    kept = sum(file.nbytes for file in files if file.path in keep)
    refusal = Refusal.FULL if kept + nbytes > most else None
    if refusal is not None and limit is not None:
        return refusal, in_use  # nothing goes for what never fits, nor for a limit that is a slip
    wanted = nbytes if refusal is None else 0
    if in_use + wanted > most:
        for file in files:
            if in_use + wanted + most // _SPARE <= most:
                break
            if file.path not in keep:
                sparse.evict(file.path)
                # What is not the cache's stays, and is not counted.
                in_use -= file.nbytes
    if refusal is None and in_use + nbytes > most:
        refusal = Refusal.CROWDED
    return refusal, in_use


def _promised(path: str, nbytes: int) -> Reservation:
    """Make a reservation that every other process sees."""
    while True:
        name = os.path.join(path, f".{os.urandom(8).hex()}.reserved")
        description = locks.Description(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        descriptor = description.descriptor
        # Somebody who sweeps may have had the lock, and the file, before us.
        if locks.try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            os.ftruncate(descriptor, -(-nbytes // DISK_BLOCK))
            return Reservation(description, name)
        description.close()


def _reserved(path: str) -> int:
    """Return the bytes that living processes have reserved."""
    nbytes = 0
    with suppress(OSError), os.scandir(path) as files:
        for file in files:
            if _RESERVED.fullmatch(file.name) and not folder.remove_unlocked(file.path):
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if sparse.is_trusted(status):
                        nbytes += status.st_size * DISK_BLOCK
    return nbytes


def trim(path: str, limit: int | None, timeout: float) -> None:
    """Evict files until the cache is within its limit."""
    if limit is None:
        return
    try:
        with folder.locked(path, timeout) as lock:
            in_use = _counted(lock)
            if in_use is None or in_use > limit:
                _count(lock, _evict(path, limit, 0, ())[1])
    except OSError as error:
        folder.say(path, f"{error.strerror or error}: it may take more than its limit")


def _counted(lock: int) -> int | None:
    """Return the bytes in use as they stand in the lock's file, if they do."""
    packed = os.pread(lock, _USED.size, 0)
    return int(_USED.unpack(packed)[0]) if len(packed) == _USED.size else None


def _count(lock: int, nbytes: int) -> None:
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
        except OSError as error:
            what = f"{error.strerror}: this cannot be the cache's directory"
            raise StorageError(error.errno, what, path) from error


def used(path: str) -> tuple[int, int]:
    """Return how many files the cache has, and the bytes that they take."""
    files = folder.entries(path)
    return len(files), sum(file.nbytes for file in files)


def remove_files(path: str, timeout: float) -> int:
    """Remove every file of the cache, and return the bytes that they took.

    Raises
    ------
    StorageError
        If another process holds the directory's lock all the time, or it cannot be written to.
    """
    if not os.path.isdir(path):
        return 0
    try:
        with folder.locked(path, timeout) as lock:
            folder.sweep(path)
            freed = sum(file.nbytes for file in folder.entries(path) if sparse.evict(file.path))
            _count(lock, _reserved(path) + used(path)[1])
    except OSError as error:
        what = f"{error.strerror or error}: the cache was not emptied"
        raise StorageError(error.errno, what, path) from error
    return freed
