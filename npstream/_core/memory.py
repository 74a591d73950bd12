"""Mapped files and free memory.

Files are mapped by libc's mmap, not Python's, which keeps a duplicate of the descriptor for
the life of the map and so ends at the limit of open files. The kernel allows about 65,000 maps
a process; this module counts its own.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import Bytes, Int64

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_PROT_READ = 1
_MAP_SHARED = 1
_MAP_PRIVATE = 2
_MADV_RANDOM = 1
_MADV_WILLNEED = 3
_HUGE_PAGE = 1 << 21
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_map_count = 0
# Collecting garbage inside the lock may run another map's finaliser on the same thread.
_lock = threading.RLock()


def _renew_lock() -> None:
    """Replace the lock, which a thread that a forked process does not have may have held."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class FileMap:
    """A file's bytes in memory, read-only, unmapped when nothing refers to it any more.

    Whoever reads through the address must hold the object, or an array over it.
    """

    __slots__ = ("__weakref__", "address", "nbytes")

    def __init__(self, descriptor: int, path: str, flags: int = _MAP_PRIVATE) -> None:
        global _map_count
        self.address = 0
        self.nbytes = os.fstat(descriptor).st_size
        if self.nbytes == 0:
            return
        address = _libc.mmap(None, self.nbytes, _PROT_READ, flags, descriptor, 0)
        if address == _MAP_FAILED:
            code = ctypes.get_errno()
            raise OSError(
                code, f"cannot map {quantity(self.nbytes, 'byte')}: {os.strerror(code)}", path
            )
        self.address = int(address)
        # Reading ahead is planned, never guessed: a cold row would otherwise fetch megabytes.
        _libc.madvise(self.address, self.nbytes, _MADV_RANDOM)
        with _lock:
            _map_count += 1

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "data": (self.address, True),
            "shape": (self.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        global _map_count
        # At the interpreter's end the module's names may be gone before its maps.
        if self.address and _libc is not None:
            _libc.munmap(self.address, self.nbytes)
            self.address = 0
            with _lock:
                _map_count -= 1


def open_file(path: str) -> int:
    """Return a descriptor of a regular file, to read; nothing else is waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a file", path)


def map_file(path: str) -> Bytes:
    """Return a file's bytes as a read-only array over its pages."""
    descriptor = open_file(path)
    try:
        mapped = FileMap(descriptor, path)
    finally:
        os.close(descriptor)
    return np.asarray(mapped) if mapped.nbytes else np.empty(0, np.uint8)


def map_shared(descriptor: int, path: str) -> Bytes:
    """Return an open file's bytes as a read-only array, which shows what is written later."""
    return np.asarray(FileMap(descriptor, path, _MAP_SHARED))


def will_need(pages: Bytes) -> None:
    """Ask for the pages of an array over a map."""
    address = address_of(pages) // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(address, address_of(pages) + len(pages) - address, _MADV_WILLNEED)


def is_mapped(array: Bytes) -> bool:
    """Tell whether an array is a mapped file, or the beginning of one."""
    base: object = array.base
    return isinstance(base.base if isinstance(base, np.ndarray) else base, FileMap)


def map_budget() -> int:
    """Return how many more files may be mapped: half of what the kernel allows, less the live."""
    return _map_limit() // 2 - _map_count


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Return where an array's first element lies."""
    # array.ctypes.data builds an object, and the array interface a dict.
    return int(array.__array_interface__["data"][0])


def writable_address(array: np.ndarray[Any, Any]) -> int:
    """Return where a writable, contiguous array begins, in a third of `address_of`'s time."""
    if not array.size:
        return 0
    try:
        # mypy does not know that an array is a buffer.
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except ValueError:
        if not array.flags.writeable:
            raise
        return address_of(array)  # the buffer protocol has no dates, and not every float


def move_spans(address: Int64, nbytes: Int64, offsets: Int64, destination: int) -> None:
    """Copy span k to ``destination + offsets[k]``, for all k, in a third of a microsecond each."""
    for at, source, size in zip(offsets.tolist(), address.tolist(), nbytes.tolist(), strict=True):
        ctypes.memmove(destination + at, source, size)


def huge_empty(count: int, dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """Return a new array, not filled in; a long one begins at a huge page.

    NumPy asks for huge pages from 4 MiB on, but lets arrays begin anywhere: then half of such an
    array is brought in by pages of 4 KiB, which takes longer than a pass over it.
    """
    dtype = np.dtype(dtype)
    nbytes = count * dtype.itemsize
    if nbytes < _HUGE_PAGE:
        return np.empty(count, dtype)
    room = np.empty(nbytes + 2 * _HUGE_PAGE, np.uint8)
    begin = -address_of(room) % _HUGE_PAGE
    return room[begin : begin + nbytes].view(dtype)


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping, at most what a cgroup leaves."""
    bounds = [_cgroup_free(), _system_free(), _address_space()]
    return min(bound for bound in bounds if bound is not None)


def ensure_fits(nbytes: int, what: str, *values: object) -> None:
    """Raise MemoryError, before allocating, where `nbytes` is more than the memory that is free.

    The message begins with ``what.format(*values)``, which is only made where it is raised.
    """
    if nbytes > _UNCHECKED_BYTES and nbytes > available_memory():
        subject = what.format(*values) if values else what
        raise MemoryError(
            f"{subject} takes {quantity(nbytes, 'byte')} and {available_memory():,} are free: read "
            "a part of it, fewer columns, or iterate"
        )


def fits_in_memory(nbytes: int) -> bool:
    """Return True if so much memory is free."""
    return nbytes <= _UNCHECKED_BYTES or nbytes <= available_memory()


def too_large_text(nbytes: int) -> str:
    """Say that what an index says of a file cannot be, as far as this machine can tell."""
    return (
        f"{quantity(nbytes, 'byte')} when decompressed, as its index says, and free memory "
        f"has {available_memory():,}"
    )


_UNCHECKED_BYTES = 1 << 26
"""Smaller allocations are not worth reading /proc for."""


def _map_limit() -> int:
    global _limit
    if _limit == 0:
        try:
            with open("/proc/sys/vm/max_map_count") as file:
                _limit = int(file.read())
        except (OSError, ValueError):
            _limit = 65_530  # Linux's default; macOS sets no such limit
    return _limit


_limit = 0


def _system_free() -> int:
    if sys.platform == "linux":
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _address_space() -> int | None:
    """Return what is left of the address space that this process may have, if that is limited."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or sys.platform != "linux":
        return None
    with open("/proc/self/statm") as file:
        return max(limit - int(file.read().split()[0]) * mmap.PAGESIZE, 0)


def _cgroup_free() -> int | None:
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            maximum = int(file.read())
        with open("/sys/fs/cgroup/memory.current") as file:
            used = int(file.read())
        with open("/sys/fs/cgroup/memory.stat") as file:
            cached = next(int(line.split()[1]) for line in file if line.startswith("file "))
    except (OSError, ValueError, StopIteration):
        return None  # no limit ("max"), or no such control group
    return max(maximum - used + cached, 0)
