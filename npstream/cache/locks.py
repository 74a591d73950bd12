"""Locks between processes and threads: byte ranges of files, and waiting for them.

Open-file-description (OFD) locks belong to a description, and fork copies descriptors, not
descriptions: two holders of one description do not exclude each other, and a forked child that
lives on keeps its parent's locks. So each holder opens its own description, unlocks by closing
it and never otherwise, and a forked child closes those that it inherits.

Where the system or the file system has no OFD locks, the whole file is locked, and where it has
none at all, nobody is excluded: locks here only save work.
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
    "Description",
    "has_ranges",
    "is_locked",
    "notify",
    "try_lock",
    "wait_for_lock",
    "wait_until",
]

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_BUSY = (errno.EAGAIN, errno.EACCES)
_MISSING = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_SHORTEST, _LONGEST = 0.002, 0.05
"""Seconds between two looks at what another process holds, which nothing announces."""

_ranges = sys.platform == "linux" and struct.calcsize("P") == 8

_open: set[Description] = set()
# Collecting garbage inside the lock may close another descriptor on the same thread.
_guard = threading.RLock()
_changed = threading.Condition()

_stuck: set[str] = set()
"""The files whose locks somebody held for a whole timeout, and nobody has let go since."""


def _before_fork() -> None:
    _guard.acquire()


def _after_in_parent() -> None:
    _guard.release()


def _after_in_child() -> None:
    """Let go of the parent's locks, and of what a thread that is not here may have held."""
    global _guard, _changed
    _guard, _changed = threading.RLock(), threading.Condition()
    while _open:
        description = _open.pop()
        os.close(description.descriptor)
        description.descriptor = -1


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)


class Description:
    """A file opened for its locks alone: closing it unlocks, and no forked child has it.

    Parameters
    ----------
    path : str
    flags : int
        How to open it; a file that can only be read cannot be locked.
    """

    __slots__ = ("descriptor",)

    def __init__(self, path: str, flags: int = os.O_RDWR) -> None:
        with _guard:
            flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self.descriptor = os.open(path, flags, 0o600)
            _open.add(self)

    def close(self) -> None:
        """Unlock what was locked; in a forked child nothing is."""
        with _guard:
            if self.descriptor < 0:
                return
            _open.remove(self)
            os.close(self.descriptor)
            self.descriptor = -1
        notify()

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, *exception: object) -> None:
        self.close()


def try_lock(descriptor: int, begin: int = 0, nbytes: int = 0) -> bool:
    """Lock a range of a file unless somebody else holds a part of it; 0 bytes reach to the end."""
    if (locked := _try_range(descriptor, begin, nbytes)) is not None:
        return locked
    return _try_whole(descriptor, fcntl.LOCK_EX)


def is_locked(descriptor: int, begin: int, nbytes: int) -> bool:
    """Tell whether somebody else holds a part of a range."""
    if sys.platform == "linux" and _ranges:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, nbytes, 0)
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, request)
            return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
    if not _try_whole(descriptor, fcntl.LOCK_SH):
        return True
    # Nobody shares this description, which is only here to look.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def has_ranges(descriptor: int) -> bool:
    """Tell whether parts of a file can be locked, a file of which nobody else knows."""
    return _try_range(descriptor, 0, 0) is not None


def _try_range(descriptor: int, begin: int, nbytes: int) -> bool | None:
    """Lock a range of a file, or say that somebody else does; None where that is not possible."""
    if sys.platform != "linux" or not _ranges:
        return None
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, nbytes, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in _MISSING:
            return None
        if error.errno not in _BUSY:
            raise
        return False
    return True


def _try_whole(descriptor: int, kind: int) -> bool:
    """Lock a whole file, or say that somebody else does; without locks there is nobody else."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (*_BUSY, *_MISSING):
            raise
        return error.errno not in _BUSY
    return True


def notify() -> None:
    """Wake the threads that wait, since something that they wait for may have come."""
    with _changed:
        _changed.notify_all()


def wait_until(done: Callable[[], bool], timeout: float) -> bool:
    """Wait until `done`, and return whether it came to that in time.

    The threads of this process tell each other; between processes one has to look again.
    """
    deadline, pause = time.monotonic() + timeout, _SHORTEST
    with _changed:
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            _changed.wait(min(pause, left))
            pause = min(2 * pause, _LONGEST)
    return True


def wait_for_lock(path: str, descriptor: int, begin: int, nbytes: int, timeout: float) -> bool:
    """Lock a range of a file as soon as nobody else holds a part of it.

    Parameters
    ----------
    path : str
        The file. Who has waited in vain for its lock does not wait for it again, until the lock
        was to be had once: a process that was stopped while it holds the lock costs others one
        timeout, not one for each thing that they would do under the lock.
    descriptor, begin, nbytes
        As for `try_lock`.
    timeout : float
        Seconds to wait.

    Returns
    -------
    bool
        Whether the range is locked.
    """
    attempt = partial(try_lock, descriptor, begin, nbytes)
    if wait_until(attempt, 0.0 if path in _stuck else timeout):
        _stuck.discard(path)
        return True
    _stuck.add(path)
    return False
