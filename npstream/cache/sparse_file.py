"""One file of the cache: bytes of which some are there, and a tail that says which.

A file is the bytes of a shard, then one *residency byte* for each piece, then a footer. It has
its name from the moment when its tail is whole. The bytes of absent pieces are holes: to look at
one through a map would make room for it, and on a full tmpfs that kills the process. The tail is
always allocated; it is read through maps, and written with pwrite only.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import NamedTuple

from npstream._core.typing import Body
from npstream.cache import locks

__all__ = [
    "Footer",
    "boot_id",
    "create_file",
    "evict",
    "is_trusted",
    "opened",
    "read_footer",
    "set_used",
    "temporary",
    "write_all",
    "write_tail",
]

_MAGIC, _VERSION = b"npcache\n", 1
_FOOTER = struct.Struct("<8sIQQ16s64s")  # magic, version, nbytes, pieces, stamp, key


_MAX_PIECES = 1 << 24
"""Many more than a shard has: a footer that says more is none."""


class Footer(NamedTuple):
    """What a file of the cache says of itself.

    The stamp is the boot id under which its pieces were written; an object that is stored
    whole, without pieces, has its hash there.
    """

    key: str
    nbytes: int
    pieces: int
    stamp: bytes

    @property
    def size(self) -> int:
        """The length of the file."""
        return self.nbytes + self.pieces + _FOOTER.size

    def pack(self) -> bytes:
        """Return the bytes that stand in the file."""
        key = self.key.encode("ascii")
        return _FOOTER.pack(_MAGIC, _VERSION, self.nbytes, self.pieces, self.stamp, key)


def read_footer(descriptor: int, expected: Footer | None = None) -> Footer | None:
    """Return a file's footer; None if it is no file of the cache, or another user's.

    A power failure soon after a file was made may leave zeros for its tail. Where the name and
    the size say what stood there, that is returned, with a stamp of zeros: nothing is known of
    its pieces.
    """
    status = os.fstat(descriptor)
    if not is_trusted(status):
        return None
    size = status.st_size
    packed = os.pread(descriptor, _FOOTER.size, max(size - _FOOTER.size, 0))
    if expected is not None and size == expected.size and not any(packed):
        return expected._replace(stamp=bytes(len(expected.stamp)))
    if len(packed) != _FOOTER.size:
        return None
    magic, version, nbytes, pieces, stamp, key = _FOOTER.unpack(packed)
    if magic != _MAGIC or version != _VERSION or pieces > _MAX_PIECES:
        return None
    footer = Footer(key.rstrip(b"\0").decode("ascii", "replace"), nbytes, pieces, stamp)
    return footer if footer.size == size else None


def write_tail(descriptor: int, footer: Footer, residency: Body) -> None:
    """Write which pieces a file has, and its footer."""
    _allocate(descriptor, footer.nbytes, footer.size - footer.nbytes)
    write_all(descriptor, residency, footer.nbytes)
    write_all(descriptor, footer.pack(), footer.nbytes + footer.pieces)


@contextmanager
def temporary(directory: str) -> Iterator[tuple[int, str]]:
    """Make a file under a name of its own, locked; it goes when the block ends or the process."""
    path = os.path.join(directory, f".{os.urandom(8).hex()}.tmp")
    with locks.Description(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
        try:
            locks.try_lock(descriptor)
            yield descriptor, path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


def create_file(path: str, footer: Footer) -> None:
    """Make a file without pieces, unless there is one of that name.

    Raises
    ------
    FileNotFoundError
        If the directory has gone, or the file before it had its name.
    OSError
        If the disk is full, for one.
    """
    with temporary(os.path.dirname(path)) as (descriptor, unnamed):
        os.ftruncate(descriptor, footer.size)
        write_tail(descriptor, footer, bytes(footer.pieces))
        with suppress(FileExistsError):
            _link(unnamed, path)


def _allocate(descriptor: int, offset: int, nbytes: int) -> None:
    """Make sure that a part of a file is no hole."""
    if sys.platform == "linux":
        try:
            return os.posix_fallocate(descriptor, offset, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    return write_all(descriptor, bytes(nbytes), offset)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        # No hard links on this file system: all but exclusive.
        if not os.path.lexists(target):
            os.rename(source, target)


def evict(path: str) -> bool:
    """Remove a file if it is the cache's, and tell whether it was.

    Its name goes first, then its residency: whoever reads through a map misses at the next look,
    finds that the file has no name, and opens the name anew. What is being copied stays.
    """
    try:
        with opened(path, os.O_RDWR) as descriptor:
            footer = read_footer(descriptor)
            if footer is None:
                return False
            os.unlink(path)
            write_all(descriptor, bytes(footer.pieces), footer.nbytes)
    except OSError:
        return not os.path.lexists(path)  # it has gone before, or is not ours to change
    return True


@contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file for a moment."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def set_used(path: str, when: float) -> None:
    """Set when a file was last used, which is nothing to fail of."""
    with suppress(OSError):
        os.utime(path, (when, when), follow_symlinks=False)


def write_all(descriptor: int, data: Body, offset: int) -> None:
    """Write bytes at a place, however many the system takes at a time."""
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else view[:0]
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def is_trusted(status: os.stat_result) -> bool:
    """Tell whether a file is a plain one of this user, or of root, who can do as they like."""
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.geteuid(), 0)


@cache
def boot_id() -> bytes:
    """Return 16 bytes that change when the system starts; where it has none, with each process."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return _uuid(file.read())
    except (OSError, ValueError):
        return _sysctl(b"kern.bootsessionuuid") or os.urandom(16)


def _uuid(text: str) -> bytes:
    found = bytes.fromhex(text.strip().replace("-", ""))
    if len(found) != 16:
        raise ValueError(f"a UUID has 16 bytes, not {len(found)}")
    return found


def _sysctl(name: bytes) -> bytes:
    """Return a UUID that the kernel of macOS knows."""
    import ctypes

    text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name, text, ctypes.byref(size), None, 0)
        return b"" if failed else _uuid(text.value.decode())
    except (AttributeError, ValueError):
        return b""
