"""The format of a file in the cache: sparse data, and a tail that marks the cached pieces.

A file consists of the bytes of a shard and a tail. The tail has a *residency byte* for each piece,
then a footer. A file gets its name after its tail is complete. The bytes of absent pieces are
holes. Reading a hole through a memory map allocates a page, and on a full tmpfs that kills the
process. The tail is always allocated. It is read through memory maps, and written only with pwrite.
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
    "open_descriptor",
    "read_footer",
    "set_last_use",
    "temporary_file",
    "write_all",
    "write_tail",
]

_MAGIC, _VERSION = b"npcache\n", 1
_FOOTER = struct.Struct("<8sIQQ16s64s")  # magic, version, nbytes, pieces, stamp, key


_MAX_PIECES = 1 << 24
"""More pieces than any shard has. A footer with a larger number is invalid."""


class Footer(NamedTuple):
    """The footer of a file.

    The stamp of a shard's file is the boot id under which its pieces were written. The stamp of a
    small object, which has no pieces, is its hash.
    """

    key: str
    nbytes: int
    pieces: int
    stamp: bytes

    @property
    def file_size(self) -> int:
        """The length of the file."""
        return self.nbytes + self.pieces + _FOOTER.size

    def pack(self) -> bytes:
        """Return the footer as bytes."""
        key = self.key.encode("ascii")
        return _FOOTER.pack(_MAGIC, _VERSION, self.nbytes, self.pieces, self.stamp, key)


def read_footer(descriptor: int, expected: Footer | None = None) -> Footer | None:
    """Return a file's footer, or None if the file is not the cache's, or is another user's.

    A power failure soon after the file was created may leave zeros in its tail. If the size of such
    a file fits `expected`, return `expected` with a stamp of zeros: all pieces must be verified.
    """
    status = os.fstat(descriptor)
    if not is_trusted(status):
        return None
    size = status.st_size
    packed = os.pread(descriptor, _FOOTER.size, max(size - _FOOTER.size, 0))
    if expected is not None and size == expected.file_size and not any(packed):
        return expected._replace(stamp=bytes(len(expected.stamp)))
    if len(packed) != _FOOTER.size:
        return None
    magic, version, nbytes, pieces, stamp, key = _FOOTER.unpack(packed)
    if magic != _MAGIC or version != _VERSION or pieces > _MAX_PIECES:
        return None
    footer = Footer(key.rstrip(b"\0").decode("ascii", "replace"), nbytes, pieces, stamp)
    return footer if footer.file_size == size else None


def write_tail(descriptor: int, footer: Footer, residency: Body) -> None:
    """Write the residency bytes and the footer."""
    _allocate(descriptor, footer.nbytes, footer.file_size - footer.nbytes)
    write_all(descriptor, residency, footer.nbytes)
    write_all(descriptor, footer.pack(), footer.nbytes + footer.pieces)


@contextmanager
def temporary_file(directory: str) -> Iterator[tuple[int, str]]:
    """Make a locked temporary file. Remove it when the block ends; `sweep` removes leftovers."""
    path = os.path.join(directory, f".{os.urandom(8).hex()}.tmp")
    with locks.LockFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
        try:
            # Only the first byte: a process that opens the file under its final name, before this
            # lock is released, can then lock pieces. `sweep` needs a lock on the whole file.
            locks.try_lock(descriptor, 0, 1)
            yield descriptor, path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


def create_file(path: str, footer: Footer) -> None:
    """Create a shard's file without pieces, unless it exists.

    Raises
    ------
    FileNotFoundError
        If another process removed the directory or the temporary file.
    OSError
        If the disk is full, for example.
    """
    with temporary_file(os.path.dirname(path)) as (descriptor, temporary):
        os.ftruncate(descriptor, footer.file_size)
        write_tail(descriptor, footer, bytes(footer.pieces))
        with suppress(FileExistsError):
            _link(temporary, path)


def _allocate(descriptor: int, offset: int, nbytes: int) -> None:
    """Allocate disk space for a range of a file."""
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
        # The file system has no hard links. A rename after this check is almost exclusive.
        if not os.path.lexists(target):
            os.rename(source, target)


def evict(path: str) -> bool:
    """Remove a file if it is the cache's; return True if the file is absent now.

    The name is removed first, then the residency bytes are set to zero. A reader that uses a memory
    map then finds its pieces absent, notices that the file has no name, and opens the name again.
    The data stays readable for copies in progress.
    """
    try:
        with open_descriptor(path, os.O_RDWR) as descriptor:
            footer = read_footer(descriptor)
            if footer is None:
                return False
            os.unlink(path)
            write_all(descriptor, bytes(footer.pieces), footer.nbytes)
    except OSError:
        return not os.path.lexists(path)  # already removed, or not writable
    return True


@contextmanager
def open_descriptor(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file, and yield its descriptor."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def set_last_use(path: str, seconds: float) -> None:
    """Set the time of a file's last use, in seconds since 1970. Ignore failures."""
    with suppress(OSError):
        os.utime(path, (seconds, seconds), follow_symlinks=False)


def write_all(descriptor: int, data: Body, offset: int) -> None:
    """Write all bytes at an offset: one pwrite may write fewer."""
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else view[:0]
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def is_trusted(status: os.stat_result) -> bool:
    """Return True for a regular file of this user, or of root, who could change it anyway."""
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.geteuid(), 0)


@cache
def boot_id() -> bytes:
    """Return 16 bytes that change at each boot, or with each process if there is no boot id."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return _uuid(file.read())
    except (OSError, ValueError):
        return _sysctl(b"kern.bootsessionuuid") or os.urandom(16)


def _uuid(text: str) -> bytes:
    uuid = bytes.fromhex(text.strip().replace("-", ""))
    if len(uuid) != 16:
        raise ValueError(f"a UUID has 16 bytes, not {len(uuid)}")
    return uuid


def _sysctl(name: bytes) -> bytes:
    """Return a UUID from a sysctl of macOS, or b"" if there is none."""
    import ctypes

    text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name, text, ctypes.byref(size), None, 0)
        return b"" if failed else _uuid(text.value.decode())
    except (AttributeError, ValueError):
        return b""
