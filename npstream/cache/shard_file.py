"""A shard of which parts are in the cache: reading it, locking pieces, adding them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import map_shared
from npstream._core.typing import Body, Bytes
from npstream.cache import directory as folder
from npstream.cache import locks
from npstream.cache import sparse_file as sparse

__all__ = ["CachedFile", "Claim", "FileCheck", "join"]

FileCheck = Callable[["CachedFile", int], bool]


class CachedFile:
    """A shard of which parts are here.

    Attributes
    ----------
    data : ndarray of uint8
        The shard's bytes, read-only; those of absent pieces must not be touched.
    here : ndarray of uint8
        Not 0 for each piece that is in the file, read-only; it changes under its reader.
    resident : ndarray of uint8
        Not 0 for each piece that may be read: the same array, unless `distrust` was called.
    """

    __slots__ = ("__weakref__", "_inode", "data", "here", "path", "resident", "touched")

    def __init__(self, path: str, descriptor: int, footer: sparse.Footer) -> None:
        whole = map_shared(descriptor, path)
        self.path = path
        self.data: Bytes = whole[: footer.nbytes]
        self.here: Bytes = whole[footer.nbytes : footer.nbytes + footer.pieces]
        self.resident = self.here
        status = os.fstat(descriptor)
        self._inode = _inode(status)
        self.touched = time.monotonic() - (time.time() - status.st_mtime)

    @property
    def alive(self) -> bool:
        """Whether the file still has its name; else it is to be opened anew."""
        try:
            return _inode(os.lstat(self.path)) == self._inode
        except OSError:
            return False

    def distrust(self) -> None:
        """Let no piece be read before this process has verified it, as `admit` does."""
        self.resident = np.zeros(len(self.here), np.uint8)

    def admit(self, piece: int, check: FileCheck) -> bool:
        """Tell whether a piece may be read, and verify it for that; drop it if it is damaged."""
        if self.resident[piece] or not self.here[piece]:
            return bool(self.resident[piece])
        if is_sound := check(self, piece):
            self.resident[piece] = 1
        else:
            self.discard([piece])
        return is_sound

    def lock(self, pieces: Iterable[int]) -> Claim:
        """Lock those of some pieces that are absent and that nobody else has locked."""
        return Claim(self, [int(piece) for piece in pieces])

    def wait(self, pieces: Iterable[int], timeout: float) -> None:
        """Wait until nobody fetches any of the pieces, they are here, or time is up."""
        left = [int(piece) for piece in pieces if not self.here[piece]]
        with suppress(OSError), locks.Description(self.path, os.O_RDONLY) as descriptor:
            locks.wait_until(lambda: not self._fetched_by_others(descriptor, left), timeout)

    def _fetched_by_others(self, descriptor: int, pieces: list[int]) -> bool:
        if _inode(os.fstat(descriptor)) != self._inode:
            return False
        first = len(self.data)
        return any(
            not self.here[piece] and locks.is_locked(descriptor, first + piece, 1)
            for piece in pieces
        )

    def put(self, offset: int, data: Body) -> bool:
        """Write bytes of the shard, and tell whether they are kept: the disk may be full."""
        nbytes = memoryview(data).nbytes
        if not 0 <= offset <= offset + nbytes <= len(self.data):
            raise ValueError(
                f"{self.path}: {quantity(nbytes, 'byte')} at {offset:,} of a shard of "
                f"{len(self.data):,}"
            )
        return self._write([(offset, data)])

    def commit(self, pieces: Sequence[int]) -> bool:
        """Say that pieces are here, all of whose bytes were put; tell whether that was possible."""
        done = self._write([(self._place(piece), b"\1") for piece in pieces])
        if done and self.resident is not self.here:
            self.resident[pieces] = 1
        locks.notify()
        return done

    def discard(self, pieces: Sequence[int]) -> None:
        """Say that pieces are absent, since their bytes are wrong."""
        if self.resident is not self.here:
            self.resident[pieces] = 0
        self._write([(self._place(piece), b"\0") for piece in pieces])

    def _place(self, piece: int) -> int:
        """Return where a piece's residency byte is."""
        if not 0 <= piece < len(self.here):
            raise IndexError(f"{self.path}: piece {piece} of {len(self.here)}")
        return len(self.data) + int(piece)

    def _write(self, parts: Sequence[tuple[int, Body]]) -> bool:
        """Write parts of the file, if it still has its name."""
        try:
            with sparse.opened(self.path, os.O_RDWR) as descriptor:
                if _inode(os.fstat(descriptor)) != self._inode:
                    return False
                for offset, data in parts:
                    sparse.write_all(descriptor, data, offset)
        except FileNotFoundError:
            return False
        except OSError as error:
            directory = os.path.dirname(self.path)
            folder.say(directory, f"{error.strerror or error}: reading on without caching")
            return False
        return True


class Claim:
    """Locks on absent pieces of a file, until it is closed.

    Attributes
    ----------
    pieces : list of int
        The pieces to fetch: whoever else wants them waits. What others fetch is not among them,
        and nothing is where a file can only be read.
    """

    __slots__ = ("_description", "pieces")

    def __init__(self, file: CachedFile, pieces: list[int]) -> None:
        self.pieces: list[int] = []
        self._description: locks.Description | None = None
        absent = [piece for piece in pieces if not file.here[piece]]
        if not absent:
            return
        try:
            self._description = locks.Description(file.path)
        except OSError:
            return  # it has no name any more, or can only be read
        try:
            descriptor = self._description.descriptor
            if _inode(os.fstat(descriptor)) == file._inode:
                locked = [p for p in absent if locks.try_lock(descriptor, file._place(p), 1)]
                # Before the lock was ours, the piece may have come, or the file gone.
                self.pieces = [piece for piece in locked if not file.here[piece]]
        finally:
            if not (self.pieces and file.alive):
                self.close()

    def close(self) -> None:
        """Unlock the pieces."""
        self.pieces = []
        if self._description is not None:
            self._description.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def join(
    path: str, footer: sparse.Footer, check: FileCheck | None, timeout: float
) -> CachedFile | None:
    """Open a shard's file; None if the one of its name is something else.

    Another process that verifies the file is waited for, for `timeout` seconds.
    """
    with sparse.opened(path) as descriptor:
        found = sparse.read_footer(descriptor, footer)
        if found is None or found[:3] != footer[:3]:
            folder.say(path, "this file is another user's, or not what belongs here: remove it")
            return None
        file = CachedFile(path, descriptor, footer)
    if found.stamp != footer.stamp and not _renew(file, footer, check, timeout):
        return None
    return file


def _renew(
    file: CachedFile, footer: sparse.Footer, check: FileCheck | None, timeout: float
) -> bool:
    """Verify what was written before the system last started, once over all processes."""
    try:
        description = locks.Description(file.path)
    except FileNotFoundError:
        raise
    except OSError:
        # It can only be read, so what is sound in it is for this process to know.
        file.here = file.resident = _sound(file, check)
        return True
    with description as descriptor:
        begin = len(file.data) + footer.pieces
        locked = locks.wait_for_lock(file.path, descriptor, begin, 0, timeout)
        found = sparse.read_footer(descriptor, footer)
        if not locked or found is None or _inode(os.fstat(descriptor)) != file._inode:
            return False
        if found.stamp != footer.stamp:
            sparse.write_tail(descriptor, footer, _sound(file, check).data)
    return True


def _sound(file: CachedFile, check: FileCheck | None) -> Bytes:
    """Return the residency of the pieces whose bytes are right."""
    known = [
        check is not None and bool(here) and check(file, piece)
        for piece, here in enumerate(file.here)
    ]
    return np.array(known, np.uint8)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
