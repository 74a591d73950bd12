"""The cache's directory: where it is, whether it can be used, what is in it, and its one lock."""

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
from typing import NamedTuple

from npstream._core import memory
from npstream._core.log import log
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.errors import StorageError
from npstream.storage.urls import local_path

__all__ = [
    "SHARD",
    "STORED",
    "Entry",
    "default_directory",
    "entries",
    "is_usable",
    "locked",
    "path_of",
    "prepare",
    "remove_unlocked",
    "resolve",
    "say",
    "sweep",
]

SHARD, STORED = ".shard", ".stored"
_NAME = re.compile(r"[0-9a-f]{16,64}\.(shard|stored)")
_KEY = re.compile(r"[0-9a-f]{16,64}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(?:tmp|reserved)")
_LOCK = ".lock"

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_NETWORK = {
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
"""File systems that other hosts may share: the type of statfs -> its name."""

_PROBE = 1 << 20

_ATTEMPTS = 5
"""How often the directory may be removed while its lock is being taken."""


class Entry(NamedTuple):
    """A file of the cache: when it was last used, what it takes on the disk, and where it is."""

    used: float
    nbytes: int
    path: str


def default_directory() -> str:
    """Return where this user's cache is, unless somebody says otherwise."""
    if chosen := os.environ.get("NPSTREAM_CACHE"):
        return local_path(chosen, "NPSTREAM_CACHE")
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        return os.path.join(os.environ.get("TMPDIR", "/tmp"), f"npstream-{os.geteuid()}")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Caches", "npstream")
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The convention has relative paths ignored.
    return os.path.join(base if os.path.isabs(base) else os.path.join(home, ".cache"), "npstream")


def path_of(directory: str, key: str, suffix: str) -> str:
    """Return where a key's file is."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"a key is 16 to 64 hexadecimal digits in lower case, not {key!r}")
    return os.path.join(directory, key + suffix)


def resolve(directory: str | os.PathLike[str] | None) -> str:
    """Return the directory to use: on file systems that hosts share, each host has its own."""
    path = local_path(default_directory() if directory is None else directory, "cache")
    existing = path
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if _network(existing) is None:
        return path
    return os.path.join(path, re.sub(r"[^A-Za-z0-9.-]", "-", os.uname().nodename) or "host")


def prepare(path: str) -> None:
    """Make the directory if need be, with 0700, and make sure that it is this user's.

    Raises
    ------
    StorageError
        If it cannot be a cache: it is a file, for one, or another user's.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path)
    except OSError as error:
        if error.errno in (*READ_ONLY, *FULL):
            say(path, f"cannot make it ({error.strerror}); nothing is cached")
            return
        raise StorageError(
            error.errno, f"{error.strerror}: this cannot be the cache's directory", path
        ) from error
    if status.st_uid not in (os.geteuid(), 0):
        raise StorageError(
            errno.EPERM,
            f"the cache's directory belongs to user {status.st_uid}, not to {os.geteuid()}, and "
            "who owns it decides what is read: choose another with cache= or NPSTREAM_CACHE",
            path,
        )


_examined: dict[tuple[int, int], bool] = {}


def is_usable(path: str) -> bool:
    """Tell whether maps of files in a directory show what is written to the files.

    What else is missing there, locks of ranges or sparse files, makes things only slower.
    """
    try:
        status = os.stat(path)
        place = status.st_dev, status.st_ino
        if place not in _examined:
            _examined[place] = _examine(path)
        return _examined[place]
    except OSError as error:
        if error.errno not in (*READ_ONLY, *FULL, errno.ENOENT):
            raise
        return True  # nothing can be written, so nothing has to be seen


def _examine(path: str) -> bool:
    if (kind := _network(path)) is not None:
        warnings.warn(
            f"{path}: the cache is on {kind}, which is slow for it, and each host keeps its own "
            "there: choose a local disk with cache= or NPSTREAM_CACHE",
            RuntimeWarning,
            stacklevel=2,
        )
    with sparse.temporary(path) as (descriptor, name):
        os.ftruncate(descriptor, _PROBE)
        if os.fstat(descriptor).st_blocks * 512 >= _PROBE:
            say(path, "no sparse files here: a shard takes all its room at once")
        sparse.write_all(descriptor, b"before", 0)
        try:
            mapped = memory.map_shared(descriptor, name)
        except OSError as error:
            return _unusable(path, f"files cannot be mapped ({error.strerror})")
        before = bytes(mapped[:6])
        sparse.write_all(descriptor, b"after.", 0)
        if (before, bytes(mapped[:6])) != (b"before", b"after."):
            return _unusable(path, "maps do not show what is written")
        if not locks.has_ranges(descriptor):
            say(path, "no locks of ranges here: processes wait longer, or fetch the same twice")
    return True


def _unusable(path: str, why: str) -> bool:
    warnings.warn(
        f"{path}: nothing is cached, since {why} on this file system: choose another directory "
        "with cache= or NPSTREAM_CACHE",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _network(path: str) -> str | None:
    """Return the kind of a file system that other hosts may share, as far as Linux says."""
    if sys.platform != "linux":
        return None
    status = ctypes.create_string_buffer(256)  # more than struct statfs has
    if ctypes.CDLL(None).statfs(os.fsencode(path), status):
        return None
    (kind,) = struct.unpack_from("@l", status)
    return _NETWORK.get(kind & 0xFFFFFFFF)


@contextmanager
def locked(path: str, timeout: float) -> Iterator[int]:
    """Hold the directory's lock: its descriptor.

    Raises
    ------
    TimeoutError
        If another process holds it all the time.
    OSError
        If it cannot be had for another reason.
    """
    with _take_lock(path, timeout) as descriptor:
        yield descriptor


def _take_lock(path: str, timeout: float) -> locks.Description:
    for _ in range(_ATTEMPTS):
        os.makedirs(path, mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            file = os.path.join(path, _LOCK)
            lock = locks.Description(file, os.O_RDWR | os.O_CREAT)
            try:
                if not locks.wait_for_lock(file, lock.descriptor, 0, 1, timeout):
                    what = "another process, which may have been stopped, holds its lock"
                    raise TimeoutError(errno.ETIMEDOUT, what)
                if os.fstat(lock.descriptor).st_nlink:
                    return lock
            except BaseException:
                lock.close()
                raise
            # Somebody has removed the directory meanwhile, and the lock's file with it.
            lock.close()
    raise FileNotFoundError(errno.ENOENT, "it is removed again and again", path)


def entries(path: str) -> list[Entry]:
    """Return the cache's files, the least recently used first."""
    found = []
    with suppress(OSError), os.scandir(path) as files:
        for file in files:
            if _NAME.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if sparse.is_trusted(status):
                        nbytes = status.st_blocks * 512
                        found.append(Entry(status.st_mtime, nbytes, file.path))
    return sorted(found)


def sweep(path: str) -> None:
    """Remove temporary files and reservations of processes that died: their locks are free."""
    with suppress(OSError), os.scandir(path) as files:
        for file in files:
            if _TEMPORARY.fullmatch(file.name):
                remove_unlocked(file.path)


def remove_unlocked(path: str) -> bool:
    """Remove a file unless a process has it locked, and return True if it is not there now."""
    try:
        with locks.Description(path) as descriptor:
            is_left = sparse.is_trusted(os.fstat(descriptor)) and locks.try_lock(descriptor)
            if is_left:
                os.unlink(path)
            return is_left
    except FileNotFoundError:
        return True
    except OSError:
        return False


_said: set[tuple[str, str]] = set()


def say(path: str, what: str) -> None:
    """Log what is the matter with a cache, once in a process."""
    if (path, what) not in _said:
        _said.add((path, what))
        log("%s: the cache: %s", path, what)
