"""The directory of the cache: its default path, checks of its file system, and its lock."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from npstream._core import memory
from npstream._core.log import log
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.cache.priority import Entry
from npstream.errors import StorageError
from npstream.storage.urls import local_path

__all__ = [
    "OBJECT_SUFFIX",
    "SHARD_SUFFIX",
    "default_directory",
    "entries",
    "hold_lock",
    "is_usable",
    "log_once",
    "make_directory",
    "path_of",
    "remove_unlocked",
    "resolve",
    "sweep",
]

SHARD_SUFFIX = ".shard"
"""The suffix of files of shards."""

OBJECT_SUFFIX = ".stored"
"""The suffix of files of small objects, such as indices."""

_NAME = re.compile(r"[0-9a-f]{16,64}\.(shard|stored)")
_KEY = re.compile(r"[0-9a-f]{16,64}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(?:tmp|reserved)")
LOCK_FILE = ".lock"

_NOT_WRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS,  # read-only
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG,  # full
)  # fmt: skip
"""Error numbers of a directory that takes no more files. Reads then continue without a cache."""

_NETWORK_TYPES = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x5346414F: "AFS",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x01021997: "9P",
}
"""Network file systems, which hosts may share: the type in struct statfs -> the name."""

_PROBE_BYTES = 1 << 20

_ATTEMPTS = 5
"""How often the directory may vanish while its lock is being acquired."""


def default_directory() -> str:
    """Return the directory in ``NPSTREAM_CACHE``, or the user's default directory."""
    if path := os.environ.get("NPSTREAM_CACHE"):
        return local_path(path, "NPSTREAM_CACHE")
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        return os.path.join(os.environ.get("TMPDIR", "/tmp"), f"npstream-{os.geteuid()}")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Caches", "npstream")
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification requires that relative paths are ignored.
    return os.path.join(base if os.path.isabs(base) else os.path.join(home, ".cache"), "npstream")


def path_of(directory: str, key: str, suffix: str) -> str:
    """Return the path of the file with `key`."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"a key is 16 to 64 hexadecimal digits in lower case, not {key!r}")
    return os.path.join(directory, key + suffix)


def resolve(directory: str | os.PathLike[str] | None) -> str:
    """Return the directory to use. On a network file system, each host has a subdirectory."""
    path = local_path(default_directory() if directory is None else directory, "cache")
    existing = path
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if _network_type(existing) is None:
        return path
    return os.path.join(path, re.sub(r"[^A-Za-z0-9.-]", "-", os.uname().nodename) or "host")


def make_directory(path: str) -> None:
    """Make the directory with mode 0700 if it is absent, and check that this user or root owns it.

    Raises
    ------
    StorageError
        If the path cannot be a cache: it is a file, or another user except root owns it.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            log_once(path, f"cannot make the directory ({error.strerror}); nothing is cached")
            return
        raise StorageError(
            error.errno, f"{error.strerror}: this cannot be the cache's directory", path
        ) from error
    if status.st_uid not in (os.geteuid(), 0):
        raise StorageError(
            errno.EPERM,
            f"the cache's directory belongs to user {status.st_uid}, not to {os.geteuid()}: its "
            "owner controls the data that is read. Choose another with cache= or NPSTREAM_CACHE",
            path,
        )


_usable: dict[tuple[int, int], bool] = {}  # by device and inode of the directory


def is_usable(path: str) -> bool:
    """Return True if memory maps of files in a directory show later writes to the files.

    The cache needs this. Without range locks or sparse files it is only slower.
    """
    try:
        status = os.stat(path)
        inode = status.st_dev, status.st_ino
        if inode not in _usable:
            _usable[inode] = _probe(path)
        return _usable[inode]
    except OSError as error:
        if error.errno not in (*_NOT_WRITABLE, errno.ENOENT):
            raise
        return True  # without writes there are no changes that a map must show


def _probe(path: str) -> bool:
    """Return True if a directory is usable. Warn or log if its file system lacks a feature."""
    if (kind := _network_type(path)) is not None:
        warnings.warn(
            f"{path}: the cache is on {kind}, which is slow, and each host has a cache of its own "
            "there: choose a local disk with cache= or NPSTREAM_CACHE",
            RuntimeWarning,
            stacklevel=2,
        )
    with sparse.temporary_file(path) as (descriptor, name):
        os.ftruncate(descriptor, _PROBE_BYTES)
        if os.fstat(descriptor).st_blocks * 512 >= _PROBE_BYTES:
            log_once(path, "no sparse files here: a shard takes all its disk space at once")
        sparse.write_all(descriptor, b"before", 0)
        try:
            mapped = memory.map_shared(descriptor, name)
        except OSError as error:
            return _warn_unusable(path, f"files cannot be mapped ({error.strerror})")
        old = bytes(mapped[:6])
        sparse.write_all(descriptor, b"after.", 0)
        if (old, bytes(mapped[:6])) != (b"before", b"after."):
            return _warn_unusable(path, "maps do not show later writes")
        if not locks.supports_ranges(descriptor):
            log_once(path, "no range locks here: processes wait longer, or download bytes twice")
    return True


def _warn_unusable(path: str, reason: str) -> bool:
    warnings.warn(
        f"{path}: nothing is cached, since {reason} on this file system: choose another directory "
        "with cache= or NPSTREAM_CACHE",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _network_type(path: str) -> str | None:
    """Return the type of a network file system, or None for others and outside Linux."""
    if sys.platform != "linux":
        return None
    status = ctypes.create_string_buffer(256)  # struct statfs is smaller
    if ctypes.CDLL(None).statfs(os.fsencode(path), status):
        return None
    (kind,) = struct.unpack_from("@l", status)
    return _NETWORK_TYPES.get(kind & 0xFFFFFFFF)


@contextmanager
def hold_lock(path: str, timeout: float) -> Iterator[int]:
    """Hold the directory's lock, and yield the descriptor of its file.

    Raises
    ------
    TimeoutError
        If another process holds the lock until the timeout.
    OSError
        If the lock cannot be acquired for another reason.
    """
    with _acquire_lock(path, timeout) as descriptor:
        yield descriptor


def _acquire_lock(path: str, timeout: float) -> locks.LockFile:
    for _ in range(_ATTEMPTS):
        os.makedirs(path, mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            file = os.path.join(path, LOCK_FILE)
            lock = locks.LockFile(file, os.O_RDWR | os.O_CREAT)
            try:
                if not locks.wait_for_lock(file, lock.descriptor, 0, 1, timeout):
                    message = "another process, which may have been stopped, holds its lock"
                    raise TimeoutError(errno.ETIMEDOUT, message)
                if os.fstat(lock.descriptor).st_nlink:
                    return lock
            except BaseException:
                lock.close()
                raise
            # Another process has removed the directory meanwhile, and with it the lock file.
            lock.close()
    raise FileNotFoundError(errno.ENOENT, "the directory is removed again and again", path)


def entries(path: str) -> list[Entry]:
    """Return the cache's files."""
    entries = []
    with suppress(OSError), os.scandir(path) as files:
        for file in files:
            if _NAME.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if sparse.is_trusted(status):
                        entries.append(Entry.from_status(status, file.path))
    return entries


def sweep(path: str) -> None:
    """Remove temporary files and reservations of dead processes, whose locks are free."""
    with suppress(OSError), os.scandir(path) as files:
        for file in files:
            if _TEMPORARY.fullmatch(file.name):
                remove_unlocked(file.path)


def remove_unlocked(path: str) -> bool:
    """Remove a file unless a process has locked it; return True if the file is absent now."""
    try:
        with locks.LockFile(path) as descriptor:
            is_stale = sparse.is_trusted(os.fstat(descriptor)) and locks.try_lock(descriptor)
            if is_stale:
                os.unlink(path)
            return is_stale
    except FileNotFoundError:
        return True
    except OSError:
        return False


_logged: set[tuple[str, str]] = set()


def log_once(path: str, message: str) -> None:
    """Log a message about a cache, once in a process."""
    if (path, message) not in _logged:
        _logged.add((path, message))
        log("%s: the cache: %s", path, message)
