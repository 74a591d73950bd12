"""The cache: parts of remote shards on a local disk, shared by every process of this user."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from npstream._core.arguments import parse_size, quantity
from npstream._core.memory import ensure_fits
from npstream._core.typing import Body
from npstream.cache import directory as folder
from npstream.cache import eviction as room
from npstream.cache import sparse_file as sparse
from npstream.cache.eviction import Refusal, Reservation
from npstream.cache.shard_file import CachedFile, Claim, FileCheck, join
from npstream.formats.hashes import digest

__all__ = [
    "CacheInfo",
    "CachedFile",
    "Claim",
    "Refusal",
    "Reservation",
    "ShardCache",
    "allocated",
    "clear",
    "info",
    "tail_bytes",
]

_TOUCHED = 5.0
"""A file's time of last use is true to so many seconds."""

_FINISHED = 1 << 30
"""Seconds by which a finished file looks older than it is: it goes before all others."""

_ATTEMPTS = 5
"""How often a file may vanish while it is being opened, before it is not cached."""

_BLOCKS = 3 * room.DISK_BLOCK
"""What a file may take beyond its bytes: the rest of two blocks, and one with their places."""

TIMEOUT = 60.0
"""Seconds to wait for other processes."""


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds.

    Attributes
    ----------
    directory : str
        Where it is.
    files : int
        Files in it.
    nbytes : int
        Bytes that these take on the disk.
    limit : int
        Bytes that they may take.

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

    def __str__(self) -> str:
        return (
            f"{self.directory}: {quantity(self.files, 'file')}, {quantity(self.nbytes, 'byte')} of "
            f"{self.limit:,} that it may take"
        )


class ShardCache:
    """A directory of shards of which parts are here, and of small objects.

    Parameters
    ----------
    directory : str or os.PathLike, optional
        By default what ``NPSTREAM_CACHE`` says, or else this user's place for caches.
    limit : int or str, optional
        The bytes that it may take, as a number or as text such as "100GB"; "auto" leaves a tenth
        of the disk free. By default what ``NPSTREAM_CACHE_LIMIT`` says, or else "auto".
    timeout : float
        Seconds to wait for other processes that hold a lock.

    Examples
    --------
    >>> cache = ShardCache("cache", limit="1GB")
    >>> cache.store("00112233445566ff", b"an object")
    True
    >>> cache.fetch("00112233445566ff")
    b'an object'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        limit: int | float | str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.directory = folder.resolve(directory)
        self.limit = _limit(limit)
        self.timeout = timeout
        folder.prepare(self.directory)
        self._usable = folder.is_usable(self.directory)
        folder.sweep(self.directory)

    def __repr__(self) -> str:
        limit = "auto" if self.limit is None else quantity(self.limit, "byte")
        return f"<npstream.ShardCache: {self.directory}, limit {limit}>"

    def open(
        self, key: str, nbytes: int, pieces: int, check: FileCheck | None = None
    ) -> CachedFile | None:
        """Return a shard's file, made if need be; None where it cannot be cached.

        Parameters
        ----------
        key : str
            What tells this shard from all others, and its versions from each other: 16 to 64
            hexadecimal digits.
        nbytes, pieces : int
            The shard's bytes, and of how many pieces it is known whether they are there.
        check : callable, optional
            ``check(file, piece)`` tells whether the bytes of a piece are right. It is asked of
            what was written before the system last started, which a crash may have damaged;
            without it such pieces count as absent.
        """
        path = self.path(key)
        footer = sparse.Footer(key, nbytes, pieces, sparse.boot_id())
        tail = tail_bytes(pieces)
        try:
            for _ in range(_ATTEMPTS if self._usable else 0):
                with suppress(FileNotFoundError):
                    return join(path, footer, check, self.timeout)
                reserved = self.reserve(tail, may_exceed=True)
                if isinstance(reserved, Refusal):
                    return None
                with reserved:
                    folder.prepare(self.directory)
                    with suppress(FileNotFoundError):
                        sparse.create_file(path, footer)
        except OSError as error:
            self._uncached(error)
        return None

    def path(self, key: str) -> str:
        """Return where a shard's file of that key is, or would be."""
        return folder.path_of(self.directory, key, folder.SHARD)

    def holds(self, key: str) -> bool:
        """Tell whether there is a shard's file of that key."""
        return os.path.exists(self.path(key))

    def store(self, key: str, data: Body) -> bool:
        """Keep a small object whole, and tell whether that was possible."""
        path = folder.path_of(self.directory, key, folder.STORED)
        footer = sparse.Footer(key, len(data), 0, bytes.fromhex(digest("xxh3_128", data)))
        reserved = self.reserve(footer.size + _BLOCKS)
        if isinstance(reserved, Refusal):
            return False
        try:
            with reserved:
                return self._store(path, data, footer)
        except OSError as error:
            self._uncached(error)
        return False

    def _store(self, path: str, data: Body, footer: sparse.Footer) -> bool:
        for _ in range(_ATTEMPTS):
            folder.prepare(self.directory)
            with (
                suppress(FileNotFoundError),
                sparse.temporary(self.directory) as (descriptor, unnamed),
            ):
                sparse.write_all(descriptor, data, 0)
                sparse.write_all(descriptor, footer.pack(), len(data))
                os.rename(unnamed, path)
                return True
        return False

    def _uncached(self, error: OSError) -> None:
        folder.say(self.directory, f"{error.strerror or error}: reading on without caching")

    def fetch(self, key: str) -> bytes | None:
        """Return an object that was stored; None if it is not here, or damaged."""
        path = folder.path_of(self.directory, key, folder.STORED)
        try:
            with sparse.opened(path) as descriptor:
                footer = sparse.read_footer(descriptor)
                if footer is None or (footer.key, footer.pieces) != (key, 0):
                    return None
                ensure_fits(footer.nbytes, f"reading {path}")
                with open(descriptor, "rb", closefd=False) as file:
                    data = file.read(footer.nbytes)
                used = os.fstat(descriptor).st_mtime
        except (OSError, MemoryError):
            return None  # of a size that only a damaged footer names, for one
        if bytes.fromhex(digest("xxh3_128", data)) != footer.stamp:
            return None
        if abs(time.time() - used) > _TOUCHED:
            sparse.set_used(path, time.time())
        return data

    def reserve(
        self,
        nbytes: int,
        keep: Iterable[CachedFile] = (),
        *,
        may_exceed: bool = False,
        timeout: float | None = None,
    ) -> Reservation | Refusal:
        """Evict files until `nbytes` more may be written, and reserve these; or say why not.

        Parameters
        ----------
        nbytes : int
            Bytes on the disk, as `allocated` and `tail_bytes` count them.
        keep : iterable of CachedFile
            Files that stay.
        may_exceed : bool
            Whether the limit may be exceeded for a moment where others are writing all that it
            allows: for one chunk.
        timeout : float, optional
            Seconds to wait for others; by default the cache's.
        """
        return room.reserve(
            self.directory, self.limit, nbytes, {file.path for file in keep},
            timeout=self.timeout if timeout is None else timeout, may_exceed=may_exceed,
        )  # fmt: skip

    def trim(self) -> None:
        """Evict files until the limit holds: it may have been larger for others."""
        room.trim(self.directory, self.limit, self.timeout)

    def touch(self, file: CachedFile) -> None:
        """Note that a file is in use; only every few seconds does this cost anything."""
        now = time.monotonic()
        if now - file.touched > _TOUCHED:
            file.touched = now
            sparse.set_used(file.path, time.time())

    def finished(self, file: CachedFile) -> None:
        """Note that nothing will need a file for long: it is evicted before others."""
        file.touched = time.monotonic() - _TOUCHED
        sparse.set_used(file.path, time.time() - _FINISHED)

    def require(self, nbytes: int) -> None:
        """Raise ValueError unless the cache may hold `nbytes` at once."""
        most = self.room()
        if nbytes > most:
            mend = "raise cache_limit, or NPSTREAM_CACHE_LIMIT where that is not given"
            if self.limit is None:
                mend = "free some of the disk, or choose another with cache= or NPSTREAM_CACHE"
            raise ValueError(
                f"{self.directory}: the cache may take {quantity(most, 'byte')}, and this needs at "
                f"least {nbytes:,}: {mend}"
            )

    def room(self) -> int:
        """Return the bytes that the cache may take; without a limit, its files are counted."""
        return self.info().limit if self.limit is None else self.limit

    def free(self) -> int:
        """Return the bytes that the disk has left for a cache without a limit."""
        return room.largest(self.directory, None, 0)

    def info(self) -> CacheInfo:
        """Count the cache's files."""
        files, nbytes = room.used(self.directory)
        return CacheInfo(
            self.directory, files, nbytes, room.largest(self.directory, self.limit, nbytes)
        )

    def clear(self) -> int:
        """Remove all files, also those in use, whose readers go on; return the bytes they took."""
        return room.remove_files(self.directory, self.timeout)


def info(directory: str | os.PathLike[str] | None = None) -> CacheInfo:
    """Return what a cache holds.

    Parameters
    ----------
    directory : str or os.PathLike, optional
        By default the one that `npstream.open` uses by default.

    Returns
    -------
    CacheInfo

    Examples
    --------
    >>> npstream.cache.info("cache").files
    0
    """
    path = folder.resolve(directory)
    files, nbytes = room.used(path)
    return CacheInfo(path, files, nbytes, room.largest(path, _limit(None), nbytes))


def clear(directory: str | os.PathLike[str] | None = None, timeout: float = TIMEOUT) -> int:
    """Empty a cache, also while it is in use: its readers go on, and fetch anew.

    Parameters
    ----------
    directory : str or os.PathLike, optional
        By default the one that `npstream.open` uses by default.
    timeout : float, default: 60.0
        Seconds to wait for another process that holds the directory's lock.

    Returns
    -------
    int
        The bytes that its files took.

    Raises
    ------
    StorageError
        If it cannot be emptied: another process holds the lock for all of that time, for one.

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
    return room.remove_files(folder.resolve(directory), timeout)


def tail_bytes(pieces: int) -> int:
    """Return what the file of a shard of so many pieces takes besides the shard's bytes."""
    return sparse.Footer("", 0, pieces, b"").size + _BLOCKS


def allocated(begin: int, end: int) -> int:
    """Return what a range of a file takes on the disk, which counts in blocks.

    Examples
    --------
    >>> allocated(0, 1), allocated(4095, 4097)
    (4096, 8192)
    """
    return (-(-end // room.DISK_BLOCK) - begin // room.DISK_BLOCK) * room.DISK_BLOCK


def _limit(limit: int | float | str | None) -> int | None:
    """Return a limit in bytes, or None for what the disk has."""
    if limit is None:
        limit = os.environ.get("NPSTREAM_CACHE_LIMIT") or "auto"
    return None if limit == "auto" else parse_size(limit)
