"""The cache of remote shards on a local disk, which all processes of a user share.

A shard is cached in pieces. The cache also stores small objects, each of them whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from npstream._core.arguments import parse_size, quantity
from npstream._core.memory import ensure_fits
from npstream._core.typing import Body
from npstream.cache import directory as cache_dir
from npstream.cache import eviction, locks, priority
from npstream.cache import sparse_file as sparse
from npstream.cache.eviction import Refusal, Reservation
from npstream.cache.shard_file import CachedFile, Claim, FileCheck, open_shard_file
from npstream.errors import StorageError
from npstream.formats.hashes import digest

__all__ = [
    "CacheInfo",
    "CachedFile",
    "Claim",
    "Refusal",
    "Reservation",
    "ShardCache",
    "clear",
    "disk_bytes",
    "info",
    "tail_bytes",
]

_LAST_USE_PRECISION = 5.0
"""The time of a file's last use is recorded with this precision, in seconds."""

_ATTEMPTS = 5
"""Maximum attempts to open or store a file, which other processes may remove meanwhile.

After that, the data is not cached.
"""

_FETCH_LOCKS = 1 << 32
"""`ShardCache.fetch_lock` locks bytes of the lock file from here on. Other locks are before it."""

_BLOCK_OVERHEAD = 3 * eviction.DISK_BLOCK
"""A file may take this much disk space beyond its bytes: two partial blocks and metadata."""

TIMEOUT = 60.0
"""Seconds to wait for other processes."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """The size of a cache.

    Attributes
    ----------
    directory : str
        The cache's directory.
    files : int
        The number of files.
    nbytes : int
        The bytes that the files take on the disk.
    limit : int
        The bytes that the files may take.
    pinned : int, default: 0
        The bytes of pinned files, which are never evicted.

    Examples
    --------
    >>> empty = npstream.cache.info("cache")
    >>> empty.files, empty.nbytes
    (0, 0)
    """

    directory: str
    files: int
    nbytes: int
    limit: int
    pinned: int = 0

    def __str__(self) -> str:
        pinned = f", {self.pinned:,} of them pinned" if self.pinned else ""
        return (
            f"{self.directory}: {quantity(self.files, 'file')}, {quantity(self.nbytes, 'byte')} of "
            f"{self.limit:,} that it may take{pinned}"
        )


class ShardCache:
    """A directory with partly cached shards and small objects.

    Parameters
    ----------
    directory : str or os.PathLike, optional
        By default ``NPSTREAM_CACHE``, or else the user's directory for caches.
    limit : int, float or str, optional
        The bytes that the cache may take, as a number or as text such as "100GB"; "auto" leaves a
        tenth of the disk free, at most 10 GB. By default ``NPSTREAM_CACHE_LIMIT``, or else "auto".
    timeout : float, default: 60.0
        Seconds to wait for locks of other processes.

    Raises
    ------
    ValueError
        If the limit is not a size.
    StorageError
        If the directory cannot be a cache: it is a file, or it belongs to another user.

    Examples
    --------
    >>> cache = ShardCache("cache", limit="1GB")
    >>> cache.store("00112233445566ff", b"an object")
    True
    >>> cache.load("00112233445566ff")
    b'an object'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        limit: int | float | str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.directory = cache_dir.resolve(directory)
        self.limit = _limit(limit)
        self.timeout = timeout
        cache_dir.make_directory(self.directory)
        self._usable = cache_dir.is_usable(self.directory)
        cache_dir.sweep(self.directory)

    def __repr__(self) -> str:
        limit = "auto" if self.limit is None else quantity(self.limit, "byte")
        return f"<npstream.ShardCache: {self.directory}, limit {limit}>"

    def open(
        self, key: str, nbytes: int, pieces: int, check: FileCheck | None = None
    ) -> CachedFile | None:
        """Open or create the file of a shard; return None if the shard cannot be cached.

        Parameters
        ----------
        key : str
            Identifies the shard and its version: 16 to 64 hexadecimal digits.
        nbytes, pieces : int
            The size of the shard, and the number of its pieces.
        check : callable, optional
            ``check(file, piece)`` returns True if the bytes of a piece are right. A system crash
            may have damaged pieces that were written before the last boot, so they are checked.
            Without `check`, such pieces count as absent.
        """
        path = self.path(key)
        footer = sparse.Footer(key, nbytes, pieces, sparse.boot_id())
        tail = tail_bytes(pieces)
        try:
            for _ in range(_ATTEMPTS if self._usable else 0):
                with suppress(FileNotFoundError):
                    return open_shard_file(path, footer, check, self.timeout)
                # The file is absent: create it here, and open it in the next attempt.
                reserved = self.reserve(tail, may_exceed=True)
                if isinstance(reserved, Refusal):
                    return None
                with reserved:
                    cache_dir.make_directory(self.directory)
                    with suppress(FileNotFoundError):
                        sparse.create_file(path, footer)
        except OSError as error:
            self._log_uncached(error)
        return None

    def path(self, key: str) -> str:
        """Return the path of the file of the shard with `key`, whether it exists or not."""
        return cache_dir.path_of(self.directory, key, cache_dir.SHARD_SUFFIX)

    def has_file(self, key: str) -> bool:
        """Return True if the shard with `key` has a file."""
        return os.path.exists(self.path(key))

    def store(self, key: str, data: Body) -> bool:
        """Store a small object; return True if it is stored now."""
        path = cache_dir.path_of(self.directory, key, cache_dir.OBJECT_SUFFIX)
        footer = sparse.Footer(key, len(data), 0, bytes.fromhex(digest("xxh3_128", data)))
        reserved = self.reserve(footer.file_size + _BLOCK_OVERHEAD)
        if isinstance(reserved, Refusal):
            return False
        try:
            with reserved:
                return self._store(path, data, footer)
        except OSError as error:
            self._log_uncached(error)
        return False

    def _store(self, path: str, data: Body, footer: sparse.Footer) -> bool:
        for _ in range(_ATTEMPTS):
            cache_dir.make_directory(self.directory)
            with (
                suppress(FileNotFoundError),
                sparse.temporary_file(self.directory) as (descriptor, temporary),
            ):
                sparse.write_all(descriptor, data, 0)
                sparse.write_all(descriptor, footer.pack(), len(data))
                os.rename(temporary, path)
                return True
        return False

    def _log_uncached(self, error: OSError) -> None:
        cache_dir.log_once(self.directory, f"{error.strerror or error}: reading on without caching")

    @contextmanager
    def fetch_lock(self, key: str) -> Iterator[None]:
        """Wait while another thread or process is in this block for the same key.

        The wait ends after half of the timeout. Then, or if the file system has no locks of ranges,
        several processes fetch the same object.
        """
        path = os.path.join(self.directory, cache_dir.LOCK_FILE)
        try:
            lock = locks.LockFile(path, os.O_RDWR | os.O_CREAT)
        except OSError:
            yield
            return
        with lock as descriptor:
            if self._usable:
                begin = _FETCH_LOCKS + int(key[:8], 16)
                # Not `try_lock`: it may lock the whole file, which includes the directory's lock.
                locks.wait_until(
                    lambda: locks.try_range(descriptor, begin, 1) is not False, self.timeout / 2
                )
            yield
        locks.notify()

    def load(self, key: str) -> bytes | None:
        """Return a stored object, or None if it is absent or damaged."""
        path = cache_dir.path_of(self.directory, key, cache_dir.OBJECT_SUFFIX)
        try:
            with sparse.open_descriptor(path) as descriptor:
                footer = sparse.read_footer(descriptor)
                if footer is None or (footer.key, footer.pieces) != (key, 0):
                    return None
                ensure_fits(footer.nbytes, f"reading {path}")
                with open(descriptor, "rb", closefd=False) as file:
                    data = file.read(footer.nbytes)
                last_use = os.fstat(descriptor).st_mtime
        except (OSError, MemoryError):  # MemoryError: a damaged footer may contain any size
            return None
        if bytes.fromhex(digest("xxh3_128", data)) != footer.stamp:
            return None
        if abs(time.time() - last_use) > _LAST_USE_PRECISION:
            sparse.set_last_use(path, time.time())
        return data

    def reserve(
        self,
        nbytes: int,
        keep: Iterable[CachedFile] = (),
        *,
        may_exceed: bool = False,
        timeout: float | None = None,
    ) -> Reservation | Refusal:
        """Reserve disk space, and evict files for it; return a Refusal if that is impossible.

        Parameters
        ----------
        nbytes : int
            Bytes on the disk, as `disk_bytes` and `tail_bytes` count them.
        keep : iterable of CachedFile, default: ()
            Files that are not evicted.
        may_exceed : bool, default: False
            Whether the reservation may exceed the limit if only other writers' reservations are in
            the way. Closing it evicts files until the limit holds again. Use it for one piece at a
            time.
        timeout : float, optional
            Seconds to wait for other processes; by default the cache's timeout.
        """
        return eviction.reserve(
            self.directory, self.limit, nbytes, {file.path for file in keep},
            timeout=self.timeout if timeout is None else timeout, may_exceed=may_exceed,
        )  # fmt: skip

    def trim(self) -> None:
        """Evict files until the limit holds. Processes with a larger limit may have added files."""
        eviction.trim(self.directory, self.limit, self.timeout)

    def touch(self, file: CachedFile) -> None:
        """Record that a file is in use; write the time only every few seconds."""
        now = time.monotonic()
        if now - file.touched > _LAST_USE_PRECISION:
            file.touched = now
            sparse.set_last_use(file.path, time.time())

    def mark_finished(self, file: CachedFile) -> None:
        """Record that readers will not need a file soon, so that it is evicted first."""
        file.touched = time.monotonic() - _LAST_USE_PRECISION  # the next use is recorded at once
        sparse.set_last_use(file.path, time.time() - priority.FINISHED_AGE)

    def mark_unused(self, key: str) -> None:
        """Record that no reader will need the file with `key` soon, if it exists."""
        sparse.set_last_use(self.path(key), time.time() - priority.FINISHED_AGE)

    def mark_next_use(self, key: str, group: int, position: float) -> None:
        """Record when an iteration uses the file with `key` next, if it exists.

        `group` and `position` are those of `npstream.cache.priority.mark_next_use`.
        """
        marked = priority.mark_next_use(self.path(key), group, position)
        if marked is not None:
            eviction.add_mark(self.directory, marked)

    def pin(self, keys: Iterable[str], is_pinned: bool = True) -> list[str]:
        """Keep files from eviction, or let them be evicted again.

        Parameters
        ----------
        keys : iterable of str
        is_pinned : bool, default: True
            False to let the files be evicted again.

        Returns
        -------
        list of str
            The keys of absent files, and of files whose permissions cannot be changed.

        Raises
        ------
        StorageError
            If another process holds the directory's lock until the timeout.
        """
        try:
            with cache_dir.hold_lock(self.directory, self.timeout):
                return [key for key in keys if not priority.pin(self.path(key), is_pinned)]
        except OSError as error:
            message = f"{error.strerror or error}: no file was pinned or unpinned"
            raise StorageError(error.errno, message, self.directory) from error

    def evict(self, keys: Iterable[str]) -> int:
        """Remove the files with these keys, also those in use, and return the bytes they took."""
        paths = {self.path(key) for key in keys}
        return eviction.remove_files(self.directory, self.timeout, paths)

    def require_pinned(self, nbytes: int, keys: Iterable[str]) -> None:
        """Raise ValueError if the limit is less than `nbytes` and the other pinned files together.

        `nbytes` is for the files with `keys`, which are about to be pinned.
        """
        paths = {self.path(key) for key in keys}
        others = [e for e in cache_dir.entries(self.directory) if e.is_pinned]
        pinned_bytes = sum(entry.nbytes for entry in others if entry.path not in paths)
        if nbytes + pinned_bytes > (max_bytes := self.max_bytes()):
            raise ValueError(
                f"{self.directory}: this would pin {quantity(nbytes, 'byte')}, other files that "
                f"take {pinned_bytes:,} are pinned, and the cache may take {max_bytes:,}: unpin "
                "other views with unpin(), or raise cache_limit"
            )

    def require(self, nbytes: int) -> None:
        """Raise ValueError if the cache's limit is less than `nbytes`."""
        max_bytes = self.max_bytes()
        if nbytes > max_bytes:
            fix = "raise cache_limit, or NPSTREAM_CACHE_LIMIT if cache_limit is not given"
            if self.limit is None:
                fix = "free some of the disk, or choose another with cache= or NPSTREAM_CACHE"
            raise ValueError(
                f"{self.directory}: the cache may take {quantity(max_bytes, 'byte')}, and this "
                f"needs at least {nbytes:,}: {fix}"
            )

    def max_bytes(self) -> int:
        """Return the bytes that the cache may take. If the limit is "auto", scan the directory."""
        return self.info().limit if self.limit is None else self.limit

    def free_bytes(self) -> int:
        """Return the bytes that can still be cached if the limit is "auto"."""
        return eviction.max_cache_bytes(self.directory, None, 0)

    def info(self) -> CacheInfo:
        """Return the size of the cache."""
        return _info(self.directory, self.limit)

    def clear(self) -> int:
        """Remove all files, also those in use, and return the bytes that they took."""
        return eviction.remove_files(self.directory, self.timeout)


def info(directory: str | os.PathLike[str] | None = None) -> CacheInfo:
    """Return the size of a cache.

    Parameters
    ----------
    directory : str or os.PathLike, optional
        By default ``NPSTREAM_CACHE``, or else the user's directory for caches.

    Returns
    -------
    CacheInfo

    Raises
    ------
    StorageError
        If the limit is "auto", and the free space of the disk cannot be read.
    ValueError
        If `directory` is not on this machine, or ``NPSTREAM_CACHE_LIMIT`` is not a size.

    Examples
    --------
    >>> npstream.cache.info("cache").files
    0
    """
    return _info(cache_dir.resolve(directory), _limit(None))


def _info(path: str, limit: int | None) -> CacheInfo:
    """Return the size of the cache in a directory."""
    files = cache_dir.entries(path)
    nbytes, pinned = sum(f.nbytes for f in files), sum(f.nbytes for f in files if f.is_pinned)
    max_bytes = eviction.max_cache_bytes(path, limit, nbytes)
    return CacheInfo(path, len(files), nbytes, max_bytes, pinned)


def clear(directory: str | os.PathLike[str] | None = None, timeout: float = TIMEOUT) -> int:
    """Remove all files of a cache. Current readers continue, and download the data again.

    Parameters
    ----------
    directory : str or os.PathLike, optional
        By default ``NPSTREAM_CACHE``, or else the user's directory for caches.
    timeout : float, default: 60.0
        Seconds to wait for another process that holds the directory's lock.

    Returns
    -------
    int
        The bytes that the files took on the disk.

    Raises
    ------
    StorageError
        If the cache cannot be emptied, for example because another process holds the lock until
        the timeout.

    Examples
    --------
    >>> from npstream.cache.cache import ShardCache
    >>> cache = ShardCache("cache")
    >>> cache.store("00112233445566ff", bytes(10_000))
    True
    >>> npstream.cache.clear("cache") >= 10_000
    True
    >>> cache.info().files
    0
    """
    return eviction.remove_files(cache_dir.resolve(directory), timeout)


def tail_bytes(pieces: int) -> int:
    """Return the disk space that a shard's file needs in addition to the shard's bytes."""
    return sparse.Footer("", 0, pieces, b"").file_size + _BLOCK_OVERHEAD


def disk_bytes(begin: int, end: int) -> int:
    """Return the disk space of a byte range of a file: a whole number of blocks.

    Examples
    --------
    >>> disk_bytes(0, 1), disk_bytes(4095, 4097)
    (4096, 8192)
    """
    return (-(-end // eviction.DISK_BLOCK) - begin // eviction.DISK_BLOCK) * eviction.DISK_BLOCK


def _limit(limit: int | float | str | None) -> int | None:
    """Return a limit in bytes, or None for the limit "auto"."""
    if limit is None:
        limit = os.environ.get("NPSTREAM_CACHE_LIMIT") or "auto"
    return None if limit == "auto" else parse_size(limit)
