"""Locks on byte ranges of files, between processes and between threads.

Open-file-description (OFD) locks belong to the open file description. Threads that share a
description do not exclude each other. A fork copies only the descriptor, so a child process keeps
its parent's locks until it closes the descriptor. Therefore each holder opens its own description
and unlocks only by closing it, and a forked child closes the descriptors that it inherits.

Without OFD locks, the whole file is locked. Without any file locks, nothing is excluded: the locks
only save work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

__all__ = [
    "LockFile",
    "is_locked",
    "notify",
    "supports_ranges",
    "try_lock",
    "try_range",
    "wait_for_lock",
    "wait_until",
]

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_BUSY = (errno.EAGAIN, errno.EACCES)
_UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_MIN_POLL, _MAX_POLL = 0.002, 0.05
"""Seconds between checks of another process's locks. No event signals their release."""

_has_ofd_locks = sys.platform == "linux" and struct.calcsize("P") == 8

_open_files: set[LockFile] = set()
# Reentrant: a garbage collection while it is held may close another LockFile in the same thread.
_guard = threading.RLock()
_condition = threading.Condition()

_stuck_files: set[str] = set()
"""Files whose locks another process held until the timeout, and has not released since then."""


def _before_fork() -> None:
    _guard.acquire()


def _after_in_parent() -> None:
    _guard.release()


def _after_in_child() -> None:
    """Close the parent's lock files, and replace locks that its threads may have held."""
    global _guard, _condition
    _guard, _condition = threading.RLock(), threading.Condition()
    while _open_files:
        lock = _open_files.pop()
        os.close(lock.descriptor)
        lock.descriptor = -1


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)


class LockFile:
    """A file that is opened only for its locks. Closing it unlocks; forked children close it.

    Parameters
    ----------
    path : str
    flags : int
        Flags of `os.open`. Locking needs write access.
    """

    __slots__ = ("descriptor",)

    def __init__(self, path: str, flags: int = os.O_RDWR) -> None:
        with _guard:
            flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self.descriptor = os.open(path, flags, 0o600)
            _open_files.add(self)

    def close(self) -> None:
        """Close the file, and so release its locks; a no-op in a forked child."""
        with _guard:
            if self.descriptor < 0:
                return
            _open_files.remove(self)
            os.close(self.descriptor)
            self.descriptor = -1
        notify()

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, *exception: object) -> None:
        self.close()


def try_lock(descriptor: int, begin: int = 0, nbytes: int = 0) -> bool:
    """Lock a range of a file, and return True; return False if a part of it is locked.

    `nbytes` 0 means up to the end of the file. Without range locks, the whole file is locked.
    """
    if (locked := try_range(descriptor, begin, nbytes)) is not None:
        return locked
    return _try_whole(descriptor, fcntl.LOCK_EX)


def is_locked(descriptor: int, begin: int, nbytes: int) -> bool:
    """Return True if another holder has locked a part of a range."""
    if sys.platform == "linux" and _has_ofd_locks:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, nbytes, 0)
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, request)
            return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    if not _try_whole(descriptor, fcntl.LOCK_SH):
        return True
    # This releases only the lock of this check: no holder of a lock shares the file description.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def supports_ranges(descriptor: int) -> bool:
    """Return True if ranges of a file can be locked.

    If so, this locks the whole file until the descriptor is closed. So no other process may use it.
    """
    return try_range(descriptor, 0, 0) is not None


def try_range(descriptor: int, begin: int, nbytes: int) -> bool | None:
    """Lock a range, and return True.

    Return False if another holder has locked a part of it, and None if ranges cannot be locked.
    """
    if sys.platform != "linux" or not _has_ofd_locks:
        return None
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, nbytes, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        if error.errno not in _BUSY:
            raise
        return False
    return True


def _try_whole(descriptor: int, kind: int) -> bool:
    """Lock a whole file, and return True, also if the file system has no locks.

    Return False if another holder has locked the file.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (*_BUSY, *_UNSUPPORTED):
            raise
        return error.errno not in _BUSY
    return True


def notify() -> None:
    """Wake the waiting threads, whose conditions may have become true."""
    with _condition:
        _condition.notify_all()


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until `condition()` is True. Return False at the timeout.

    Threads of this process call `notify`. Changes by other processes are found by polling.
    """
    deadline, pause = time.monotonic() + timeout, _MIN_POLL
    with _condition:
        while not condition():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            _condition.wait(min(pause, remaining))
            pause = min(2 * pause, _MAX_POLL)
    return True


def wait_for_lock(path: str, descriptor: int, begin: int, nbytes: int, timeout: float) -> bool:
    """Lock a range of a file, and wait for other holders.

    Parameters
    ----------
    path : str
        The file. After a timeout, later calls for this file do not wait, until a call gets the
        lock. A process that is stopped while it holds the lock thus costs only one timeout, and not
        one for each operation under the lock.
    descriptor, begin, nbytes
        As for `try_lock`.
    timeout : float
        Seconds to wait.

    Returns
    -------
    bool
        True if the range is locked now.
    """
    attempt = partial(try_lock, descriptor, begin, nbytes)
    if wait_until(attempt, 0.0 if path in _stuck_files else timeout):
        _stuck_files.discard(path)
        return True
    _stuck_files.add(path)
    return False
