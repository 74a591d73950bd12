"""The file of a partly cached shard: reads, locks on absent pieces, and writes of pieces."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import map_shared
from npstream._core.typing import Body, Bytes
from npstream.cache import directory as cache_dir
from npstream.cache import locks
from npstream.cache import sparse_file as sparse

__all__ = ["CachedFile", "Claim", "FileCheck", "open_shard_file"]

FileCheck = Callable[["CachedFile", int], bool]
"""Returns True if the bytes of a piece of a file are right."""


class CachedFile:
    """The file of a partly cached shard.

    Attributes
    ----------
    path : str
        The path of the file in the cache.
    data : ndarray of uint8
        The shard's bytes, read-only. The bytes of absent pieces must not be read.
    present : ndarray of uint8
        The residency bytes, read-only: nonzero for each piece that is in the file. Other threads
        and processes change them.
    resident : ndarray of uint8
        Nonzero for each piece that this process may read. It is `present` itself, unless
        `require_verification` was called.
    touched : float
        The time of the last recorded use, on the clock of `time.monotonic`.
    """

    __slots__ = ("__weakref__", "_inode", "data", "path", "present", "resident", "touched")

    def __init__(self, path: str, descriptor: int, footer: sparse.Footer) -> None:
        whole = map_shared(descriptor, path)
        self.path = path
        self.data: Bytes = whole[: footer.nbytes]
        self.present: Bytes = whole[footer.nbytes : footer.nbytes + footer.pieces]
        self.resident = self.present
        status = os.fstat(descriptor)
        self._inode = _inode(status)
        self.touched = time.monotonic() - (time.time() - status.st_mtime)

    @property
    def is_linked(self) -> bool:
        """True if the file still has its name. Otherwise it was evicted, and must be reopened."""
        try:
            return _inode(os.lstat(self.path)) == self._inode
        except OSError:
            return False

    def require_verification(self) -> None:
        """Let this process read only pieces that it has verified with `admit` or has committed."""
        self.resident = np.zeros(len(self.present), np.uint8)

    def admit(self, piece: int, check: FileCheck) -> bool:
        """Return True if a piece may be read. Verify it if necessary; discard it if damaged."""
        if self.resident[piece] or not self.present[piece]:
            return bool(self.resident[piece])
        if is_sound := check(self, piece):
            self.resident[piece] = 1
        else:
            self.discard([piece])
        return is_sound

    def lock(self, pieces: Iterable[int]) -> Claim:
        """Lock those pieces that are absent and that no other holder has locked."""
        return Claim(self, [int(piece) for piece in pieces])

    def wait(self, pieces: Iterable[int], timeout: float) -> None:
        """Wait up to `timeout` seconds until no other process is fetching an absent piece."""
        absent = [int(piece) for piece in pieces if not self.present[piece]]
        with suppress(OSError), locks.LockFile(self.path, os.O_RDONLY) as descriptor:
            locks.wait_until(lambda: not self._fetched_by_others(descriptor, absent), timeout)

    def _fetched_by_others(self, descriptor: int, pieces: list[int]) -> bool:
        if _inode(os.fstat(descriptor)) != self._inode:
            return False
        return any(
            not self.present[piece]
            and locks.is_locked(descriptor, self._residency_offset(piece), 1)
            for piece in pieces
        )

    def put(self, offset: int, data: Body) -> bool:
        """Write bytes of the shard; return False if that failed, for example on a full disk."""
        nbytes = memoryview(data).nbytes
        if not 0 <= offset <= offset + nbytes <= len(self.data):
            raise ValueError(
                f"{self.path}: {quantity(nbytes, 'byte')} at {offset:,} of a shard of "
                f"{len(self.data):,}"
            )
        return self._write([(offset, data)])

    def commit(self, pieces: Sequence[int]) -> bool:
        """Mark pieces, whose bytes were all written, as present; return False if that failed."""
        is_written = self._write([(self._residency_offset(piece), b"\1") for piece in pieces])
        if is_written and self.resident is not self.present:
            self.resident[pieces] = 1
        locks.notify()
        return is_written

    def discard(self, pieces: Sequence[int]) -> None:
        """Mark pieces as absent, because their bytes are wrong."""
        if self.resident is not self.present:
            self.resident[pieces] = 0
        self._write([(self._residency_offset(piece), b"\0") for piece in pieces])

    def _residency_offset(self, piece: int) -> int:
        """Return the offset of a piece's residency byte. A lock on this byte locks the piece."""
        if not 0 <= piece < len(self.present):
            raise IndexError(f"{self.path}: piece {piece} of {len(self.present)}")
        return len(self.data) + int(piece)

    def _write(self, parts: Sequence[tuple[int, Body]]) -> bool:
        """Write parts of the file, unless it was evicted; return True if they were written."""
        try:
            with sparse.open_descriptor(self.path, os.O_RDWR) as descriptor:
                if _inode(os.fstat(descriptor)) != self._inode:
                    return False
                for offset, data in parts:
                    sparse.write_all(descriptor, data, offset)
        except FileNotFoundError:
            return False
        except OSError as error:
            directory = os.path.dirname(self.path)
            cache_dir.log_once(directory, f"{error.strerror or error}: reading on without caching")
            return False
        return True


class Claim:
    """Locks on absent pieces of a file, held until the claim is closed.

    Attributes
    ----------
    pieces : list of int
        The locked pieces, which the holder should fetch. Pieces that others fetch are not among
        them. Empty if the file is read-only.
    """

    __slots__ = ("_lock", "pieces")

    def __init__(self, file: CachedFile, pieces: list[int]) -> None:
        self.pieces: list[int] = []
        self._lock: locks.LockFile | None = None
        absent = [piece for piece in pieces if not file.present[piece]]
        if not absent:
            return
        try:
            self._lock = locks.LockFile(file.path)
        except OSError:
            return  # the file was evicted, or is read-only
        try:
            descriptor = self._lock.descriptor
            if _inode(os.fstat(descriptor)) == file._inode:
                locked_pieces = [
                    p for p in absent if locks.try_lock(descriptor, file._residency_offset(p), 1)
                ]
                # A piece may have arrived before it was locked.
                self.pieces = [piece for piece in locked_pieces if not file.present[piece]]
        finally:
            if not (self.pieces and file.is_linked):  # the file may have been evicted meanwhile
                self.close()

    def close(self) -> None:
        """Unlock the pieces."""
        self.pieces = []
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_shard_file(
    path: str, footer: sparse.Footer, check: FileCheck | None, timeout: float
) -> CachedFile | None:
    """Open a shard's file; return None if the file at `path` is not the cache's.

    If another process is verifying the file, wait for it for up to `timeout` seconds. Return None
    if it has not finished by then.
    """
    with sparse.open_descriptor(path) as descriptor:
        stored = sparse.read_footer(descriptor, footer)
        if stored is None or stored._replace(stamp=footer.stamp) != footer:
            cache_dir.log_once(
                path, "this file belongs to another user, or is not the cache's: remove it"
            )
            return None
        file = CachedFile(path, descriptor, footer)
    if stored.stamp != footer.stamp and not _reverify(file, footer, check, timeout):
        return None
    return file


def _reverify(
    file: CachedFile, footer: sparse.Footer, check: FileCheck | None, timeout: float
) -> bool:
    """Verify the pieces that were written before the last boot. Only one process does this.

    Return False if another process still verifies at the timeout, or if the file was evicted.
    """
    try:
        lock = locks.LockFile(file.path)
    except FileNotFoundError:
        raise
    except OSError:
        # The file is read-only, so the result is only for this process.
        file.present = file.resident = _verified_residency(file, check)
        return True
    with lock as descriptor:
        footer_begin = len(file.data) + footer.pieces
        # The lock for verifying is on the footer. A length of 0 means up to the end of the file.
        has_lock = locks.wait_for_lock(file.path, descriptor, footer_begin, 0, timeout)
        stored = sparse.read_footer(descriptor, footer)
        if not has_lock or stored is None or _inode(os.fstat(descriptor)) != file._inode:
            return False
        if stored.stamp != footer.stamp:
            sparse.write_tail(descriptor, footer, _verified_residency(file, check).data)
    return True


def _verified_residency(file: CachedFile, check: FileCheck | None) -> Bytes:
    """Return the residency bytes after a check of the pieces. Without `check`, all are absent."""
    residency = [
        check is not None and bool(present) and check(file, piece)
        for piece, present in enumerate(file.present)
    ]
    return np.array(residency, np.uint8)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
