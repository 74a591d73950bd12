"""Reservations of disk space in the cache, and eviction of the files that are needed last.

All processes account for the space under the directory's lock. The lock file contains a counter:
the bytes at the last scan of the files, plus the bytes reserved since. A process scans the files
only if the counter leaves too little space. It remembers which files to evict next, so that the
next reservations need no scan.

A reservation stands for bytes that are about to be written. It is a locked file whose size is the
number of reserved blocks; the file is sparse and takes no space itself. Every scan thus sees the
reservations of all processes. When a process dies, its locks are released, and other processes
remove its reservations.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from enum import Enum
from functools import partial
from heapq import heappop, heappush
from itertools import chain

from npstream.cache import directory as cache_dir
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.cache.priority import Entry, Priorities, positions_apart, sort_by_priority
from npstream.errors import StorageError

__all__ = [
    "EvictionQueue",
    "Refusal",
    "Reservation",
    "add_mark",
    "count_files",
    "free_and_total",
    "max_cache_bytes",
    "remove_files",
    "reserve",
    "trim",
]

_COUNTER = struct.Struct("<Q")

_FREE_DIVISOR = 10
"""Without a limit, the cache leaves the disk's size divided by this number free."""

_MAX_FREE_BYTES = 10 << 30
"""Without a limit, the cache leaves at most this many bytes of the disk free.

A tenth of a large disk is more than most people keep free. The cache could then never be used.
"""

_MARGIN_DIVISOR = 32
"""Without a limit, eviction frees more bytes than necessary: the maximum divided by this number."""

_REMEMBERED_DIVISOR = 64
"""Files that a scan has found are evicted later without another scan.

Their bytes are at most the limit divided by this number.
"""

_RESERVATION_NAME = re.compile(r"\.[0-9a-f]{16}\.reserved")

DISK_BLOCK = 1 << 12
"""The size of a block of the disk in bytes. A file takes a whole number of blocks."""


class Refusal(Enum):
    """The reason why nothing was reserved."""

    FULL = "the bytes exceed the limit, or the cache is not writable"
    CROWDED = "reservations of other writers leave too little space"
    LOCKED = "another process held the lock until the timeout"


class Reservation:
    """Bytes of the cache that are reserved until the reservation is closed.

    Parameters
    ----------
    lock : LockFile, optional
        The lock on the reservation's file, which other processes see. None if there is no limit, or
        if nothing is reserved.
    path : str, default: ""
        The path of the reservation's file.
    """

    __slots__ = ("_lock", "_on_close", "_path")

    def __init__(self, lock: locks.LockFile | None = None, path: str = "") -> None:
        self._lock = lock
        self._path = path
        self._on_close: Callable[[], None] | None = None

    def release(self, nbytes: int) -> None:
        """Release bytes that were written: they count with the files from now on."""
        if self._lock is not None and (descriptor := self._lock.descriptor) >= 0:
            with suppress(OSError):
                remaining = os.fstat(descriptor).st_size - nbytes // DISK_BLOCK
                os.ftruncate(descriptor, max(remaining, 0))

    def close(self) -> None:
        """Release all bytes: those written count with the files, the others are free again."""
        lock, self._lock = self._lock, None
        if lock is not None and lock.descriptor >= 0:  # -1 in a forked child
            with suppress(OSError):
                os.unlink(self._path)
            lock.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

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
    """Reserve `nbytes`, and evict files for them if necessary.

    Parameters
    ----------
    path : str
        The cache's directory.
    limit : int or None
        The bytes that the cache may take; None leaves a tenth of the disk free, at most 10 GB.
    nbytes : int
        The bytes that are about to be written.
    keep : collection of str, default: ()
        Files that are not evicted.
    timeout : float
        Seconds to wait for other processes.
    may_exceed : bool, default: False
        Whether the reservation may exceed the limit if only other writers' reservations are in the
        way. Each process has at most one such reservation at a time. Closing it evicts files until
        the limit holds again.
    """
    try:
        if limit is None and nbytes <= _usable_bytes(path):
            return Reservation()
    except StorageError as error:
        cache_dir.log_once(path, f"{error.strerror}: reading on without caching")
        return Refusal.FULL
    end = time.monotonic() + timeout
    result = _reserve(path, limit, nbytes, keep, timeout, False)
    if result is not Refusal.CROWDED or not may_exceed:
        return result
    if not _begin_excess(path, end - time.monotonic()):
        return result
    result = _reserve(path, limit, nbytes, keep, max(end - time.monotonic(), 0.0), True)
    if isinstance(result, Reservation):
        result._on_close = partial(_end_excess, path, limit, timeout)
    else:
        _end_excess(path, None, 0.0)  # with limit None, this evicts nothing
    return result


_queues: dict[str, EvictionQueue] = {}
"""For each cache, the files to evict next."""

_excess_locks: dict[str, threading.Lock] = {}
_excess_owners: dict[str, int] = {}
"""For each cache, the one thread of this process that may exceed the limit."""


def _after_fork() -> None:
    """Forget the threads of the parent process, and its scan."""
    _queues.clear()
    _excess_locks.clear()
    _excess_owners.clear()


os.register_at_fork(after_in_child=_after_fork)


def _begin_excess(path: str, timeout: float) -> bool:
    """Let this thread exceed a cache's limit, and return True.

    Only one thread may exceed the limit at a time. Return False if another thread has not ended its
    excess within `timeout` seconds. Return False at once if this thread already may exceed it.
    """
    if _excess_owners.get(path) == threading.get_ident():
        return False
    if not _excess_locks.setdefault(path, threading.Lock()).acquire(
        timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)
    ):
        return False
    _excess_owners[path] = threading.get_ident()
    return True


def _end_excess(path: str, limit: int | None, timeout: float) -> None:
    """Evict files until the limit holds, then let another thread exceed it."""
    try:
        trim(path, limit, timeout)
    finally:
        if _excess_owners.pop(path, None) is not None:
            _excess_locks[path].release()


def _reserve(
    path: str,
    limit: int | None,
    nbytes: int,
    keep: Collection[str],
    timeout: float,
    may_exceed: bool,
) -> Reservation | Refusal:
    try:
        with cache_dir.hold_lock(path, timeout) as descriptor:
            in_use = None if limit is None else _read_counter(descriptor)
            if in_use is not None and limit is not None and path in _queues:
                in_use -= _queues[path].evict(in_use + nbytes - limit, keep)
            if in_use is None or limit is None or in_use + nbytes > limit:
                refusal, in_use = _evict(path, limit, nbytes, keep)
                if refusal is not None and not (may_exceed and refusal is Refusal.CROWDED):
                    _write_counter(descriptor, in_use)
                    return refusal
            reservation = Reservation() if limit is None else _create_reservation(path, nbytes)
            _write_counter(descriptor, in_use + nbytes)
            return reservation
    except OSError as error:
        cache_dir.log_once(path, f"{error.strerror or error}: reading on without caching")
        return Refusal.LOCKED if isinstance(error, TimeoutError) else Refusal.FULL


def _evict(
    path: str, limit: int | None, nbytes: int, keep: Collection[str]
) -> tuple[Refusal | None, int]:
    """Scan the files, and evict some if `nbytes` do not fit.

    Returns
    -------
    refusal : Refusal or None
        Why `nbytes` still do not fit.
    in_use : int
        The bytes in use after the eviction.
    """
    cache_dir.sweep(path)
    # Count the reservations before the files. Bytes that are written meanwhile may then be counted
    # twice, but are never missed.
    reserved, files = _reserved_bytes(path), cache_dir.entries(path)
    in_use = sum(file.nbytes for file in files) + reserved
    max_bytes = max_cache_bytes(path, limit, in_use)
    kept_bytes = sum(file.nbytes for file in files if file.is_pinned or file.path in keep)
    refusal = Refusal.FULL if kept_bytes + nbytes > max_bytes else None
    if refusal is not None and limit is not None:
        # Eviction would not free enough. If the limit is too small by mistake, eviction could even
        # empty the whole cache.
        return refusal, in_use
    # Without a limit, eviction keeps a part of the disk free, even if the request is refused.
    needed = nbytes if refusal is None else 0
    margin = max_bytes // _MARGIN_DIVISOR if limit is None else 0
    if in_use + needed > max_bytes:
        priorities = sort_by_priority(files)
        _queues[path] = EvictionQueue(priorities, max_bytes // _REMEMBERED_DIVISOR)
        for file in chain(*priorities[:3]):
            if in_use + needed + margin <= max_bytes:
                break
            if not file.is_pinned and file.path not in keep:
                sparse.evict(file.path)
                # `evict` does not remove a file without the cache's footer. Its bytes are
                # subtracted, too. Otherwise such files alone could exceed the limit, and nothing
                # could be reserved.
                in_use -= file.nbytes
    if refusal is None and in_use + nbytes > max_bytes:
        refusal = Refusal.CROWDED
    return refusal, in_use


class EvictionQueue:
    """The files to evict next, as a scan has found them; later marks of this process are added.

    Parameters
    ----------
    priorities : Priorities
        The result of the scan.
    nbytes : int
        The bytes that may be evicted before the next scan.
    """

    def __init__(self, priorities: Priorities, nbytes: int) -> None:
        self._remaining = nbytes
        self._unused = deque(priorities.unused)
        # If there are several iterations, their files cannot be compared without the present
        # position of each iteration. Only a scan finds these positions. So the queue then has only
        # files that no iteration uses.
        ordered = priorities.ordered if priorities.groups == 1 else []
        self._origin = ordered[-1] if ordered else None
        self._ordered = [(-positions_apart(file, ordered[-1]), file) for file in ordered]
        self._max_length = 2 * len(ordered) + 1000

    def add(self, file: Entry) -> None:
        """Add a file that an iteration has marked."""
        if self._origin is not None and file.group == self._origin.group:
            heappush(self._ordered, (-positions_apart(file, self._origin), file))
        # The earlier entry of a file stays in the heap. After too many marks, scan again.
        if len(self._ordered) > self._max_length:
            self._remaining = 0

    def evict(self, nbytes: int, keep: Collection[str]) -> int:
        """Evict files until `nbytes` are freed, and return the bytes that were freed.

        Fewer bytes are freed if there are too few files, or if a scan is due before `nbytes` are
        freed. Files that were used or pinned since the last scan are left for the next scan.
        """
        freed = 0
        while freed < min(nbytes, self._remaining) and (self._unused or self._ordered):
            file = self._unused.popleft() if self._unused else heappop(self._ordered)[1]
            try:
                entry = Entry.from_status(os.lstat(file.path), file.path)
            except OSError:  # another process has evicted it
                continue
            is_unchanged = (entry.last_use, entry.group) == (file.last_use, file.group)
            if is_unchanged and not entry.is_pinned and file.path not in keep:
                freed += entry.nbytes if sparse.evict(file.path) else 0
        self._remaining -= freed
        return freed


def add_mark(path: str, file: Entry) -> None:
    """Tell the queue of a cache that an iteration has marked a file."""
    if (queue := _queues.get(path)) is not None:
        queue.add(file)


def _create_reservation(path: str, nbytes: int) -> Reservation:
    """Create a reservation that all processes see."""
    while True:
        name = os.path.join(path, f".{os.urandom(8).hex()}.reserved")
        lock = locks.LockFile(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        descriptor = lock.descriptor
        # A concurrent sweep may have locked and removed the new file before this process locks it.
        if locks.try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            os.ftruncate(descriptor, -(-nbytes // DISK_BLOCK))
            return Reservation(lock, name)
        lock.close()


def _reserved_bytes(path: str) -> int:
    """Return the bytes that living processes have reserved."""
    nbytes = 0
    with suppress(OSError), os.scandir(path) as files:
        for file in files:
            if _RESERVATION_NAME.fullmatch(file.name) and not cache_dir.remove_unlocked(file.path):
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
        with cache_dir.hold_lock(path, timeout) as descriptor:
            in_use = _read_counter(descriptor)
            if in_use is None or in_use > limit:
                _write_counter(descriptor, _evict(path, limit, 0, ())[1])
    except OSError as error:
        cache_dir.log_once(path, f"{error.strerror or error}: it may take more than its limit")


def _read_counter(descriptor: int) -> int | None:
    """Return the bytes in use from the counter in the lock file, or None if there is none."""
    packed = os.pread(descriptor, _COUNTER.size, 0)
    return int(_COUNTER.unpack(packed)[0]) if len(packed) == _COUNTER.size else None


def _write_counter(descriptor: int, nbytes: int) -> None:
    with suppress(OSError):  # without a counter on a full disk, each reservation scans
        sparse.write_all(descriptor, _COUNTER.pack(nbytes), 0)


def max_cache_bytes(path: str, limit: int | None, in_use: int) -> int:
    """Return the bytes that the cache may hold; `in_use` of them are in use."""
    if limit is not None:
        return limit
    return max(in_use + _usable_bytes(path), 0)


def _usable_bytes(path: str) -> int:
    """Return the free bytes of the disk of `path` that the cache may fill, or a negative number."""
    free, total = free_and_total(path)
    return free - min(total // _FREE_DIVISOR, _MAX_FREE_BYTES)


def free_and_total(path: str) -> tuple[int, int]:
    """Return the free and the total bytes of the disk of `path`, which need not exist yet."""
    while True:
        try:
            disk = os.statvfs(path)
            return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        except FileNotFoundError:
            path = os.path.dirname(path)
        except OSError as error:
            message = f"{error.strerror}: this cannot be the cache's directory"
            raise StorageError(error.errno, message, path) from error


def count_files(path: str) -> tuple[int, int]:
    """Return the number of files in the cache, and the bytes that they take on the disk."""
    files = cache_dir.entries(path)
    return len(files), sum(file.nbytes for file in files)


def remove_files(path: str, timeout: float, only: Collection[str] | None = None) -> int:
    """Remove every file of the cache, or only files with a path in `only`; return their bytes.

    Raises
    ------
    StorageError
        If another process holds the directory's lock until the timeout, or the directory is not
        writable.
    """
    if not os.path.isdir(path):
        return 0
    try:
        with cache_dir.hold_lock(path, timeout) as descriptor:
            cache_dir.sweep(path)
            files = [f for f in cache_dir.entries(path) if only is None or f.path in only]
            freed = sum(file.nbytes for file in files if sparse.evict(file.path))
            _write_counter(descriptor, _reserved_bytes(path) + count_files(path)[1])
    except OSError as error:
        message = f"{error.strerror or error}: the cache was not emptied"
        raise StorageError(error.errno, message, path) from error
    return freed
