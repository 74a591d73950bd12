"""Memory-mapped files, addresses of arrays, pooled buffers, and free memory.

Files are mapped with libc's mmap. Python's mmap keeps a duplicate of the descriptor while the map
exists, and so reaches the limit of open files. Linux allows about 65,000 maps a process, so this
module counts the maps that it creates.
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
import weakref
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.typing import AnyArray, Bytes, Int64

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
# Reentrant: garbage collection inside the lock may run another map's finalizer in this thread.
_lock = threading.RLock()


def _renew_lock() -> None:
    """Replace the lock: in a forked process, the thread that holds it does not exist."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class FileMap:
    """A read-only map of a file's bytes, unmapped when the object is deleted.

    Code that reads through `address` must hold a reference to the object, or to an array over it.
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
        # npstream plans its own readahead. The kernel would read megabytes for one missing row.
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
        # At interpreter shutdown, the module's names may be deleted before its maps.
        if self.address and _libc is not None:
            _libc.munmap(self.address, self.nbytes)
            self.address = 0
            with _lock:
                _map_count -= 1


def open_file(path: str) -> int:
    """Open a regular file for reading; raise OSError for a pipe or device, without blocking."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a file", path)


def map_file(path: str) -> Bytes:
    """Return a file's bytes as a read-only array over its pages."""
    descriptor = open_file(path)
    try:
        mapped = _map_pages(descriptor, path)
    finally:
        os.close(descriptor)
    return np.asarray(mapped) if mapped.nbytes else np.empty(0, np.uint8)


def _map_pages(descriptor: int, path: str) -> FileMap:
    """Return a map of a file's pages in the page cache.

    The map is shared: Linux would copy the pages of a private map when CUDA locks them in memory.
    """
    try:
        return FileMap(descriptor, path, _MAP_SHARED)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    # A FUSE file system that bypasses the page cache supports only private maps.
    return FileMap(descriptor, path)


def map_shared(descriptor: int, path: str) -> Bytes:
    """Return an open file's bytes as a read-only array that shows later writes to the file."""
    return np.asarray(FileMap(descriptor, path, _MAP_SHARED))


def will_need(pages: Bytes) -> None:
    """Ask the operating system to read the pages of an array over a map."""
    address = address_of(pages) // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(address, address_of(pages) + len(pages) - address, _MADV_WILLNEED)


def is_mapped(array: Bytes) -> bool:
    """Return True if an array is a mapped file, or a slice or view of one."""
    base: object = array.base
    return isinstance(base.base if isinstance(base, np.ndarray) else base, FileMap)


def map_budget() -> int:
    """Return how many more files this module may map.

    It may use half of the kernel's limit. The other half is left to the rest of the process.
    """
    return _map_limit() // 2 - _map_count


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Return the address of an array's first element."""
    # array.ctypes.data is slower: it builds an object.
    return int(array.__array_interface__["data"][0])


def writable_address(array: np.ndarray[Any, Any]) -> int:
    """Return the address of a writable, contiguous array, in a third of `address_of`'s time."""
    try:
        return _addressof(_buffer_of(array))
    except ValueError:
        if not array.size:
            return 0
        if not array.flags.writeable:
            raise
        return address_of(array)  # the buffer protocol does not support all dtypes, such as dates


_addressof = ctypes.addressof
_buffer_of: Callable[[AnyArray], ctypes.c_char] = ctypes.c_char.from_buffer  # type: ignore[assignment]


def copy_spans_in_python(address: Int64, nbytes: Int64, offsets: Int64, destination: int) -> None:
    """Copy each span k to ``destination + offsets[k]``, in a third of a microsecond per span."""
    spans = zip(offsets.tolist(), address.tolist(), nbytes.tolist(), strict=True)
    for offset, source, size in spans:
        ctypes.memmove(destination + offset, source, size)


def huge_empty(count: int, dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """Return a new, uninitialized array; one of 2 MiB or more is aligned to a huge page.

    NumPy requests huge pages from 4 MiB on, but does not align its arrays to them. So up to half of
    its arrays' memory is in pages of 4 KiB. The page faults of these take longer than one pass over
    the array.
    """
    dtype = np.dtype(dtype)
    nbytes = count * dtype.itemsize
    if nbytes < _HUGE_PAGE:
        return np.empty(count, dtype)
    # One page is for the alignment. With the other, the end of the array is in a huge page, too.
    buffer = np.empty(nbytes + 2 * _HUGE_PAGE, np.uint8)
    begin = -address_of(buffer) % _HUGE_PAGE
    return buffer[begin : begin + nbytes].view(dtype)


_MIN_POOLED_BYTES = 1 << 20
"""Smaller arrays are not pooled: `malloc` reuses their memory."""

_MAX_FREE_BUFFERS = 3
"""Maximum number of buffers that a pool keeps while no array uses them."""

_MAX_OVERSIZE = 4
"""An array uses free memory of up to this many times its size."""


class BufferPool:
    """Memory for arrays, which is used again as soon as all arrays over it are freed.

    The operating system fills new memory with zeros, page by page. For decoded images, that takes a
    tenth of the time of decoding, and for random samples of 2 KiB a fifth of the time of reading.
    Memory that is used again needs no new pages.

    Views, tensors and other objects that share memory with an array keep it in use. Threads may
    share a pool. A pool that is freed or closed keeps no memory.
    """

    def __init__(self) -> None:
        # Sizes, ids and buffers, sorted. Each line below changes the list with one atomic call. A
        # lock could deadlock, because `_Buffer.__del__` can run in any line of Python code.
        self._free: list[tuple[int, int, Bytes]] = []
        self._is_closed = False

    def empty(self, count: int, dtype: np.dtype[Any]) -> AnyArray:
        """Return an uninitialized array of one axis."""
        nbytes = count * dtype.itemsize
        if nbytes < _MIN_POOLED_BYTES:
            return np.empty(count, dtype)
        buffer = _Buffer(self._take(nbytes), self)
        array: AnyArray = np.asarray(buffer)[:nbytes].view(dtype)
        return array

    def _take(self, nbytes: int) -> Bytes:
        """Return the smallest free memory that is large enough, or new memory."""
        try:
            size, _, memory = self._free.pop(bisect_left(self._free, (nbytes,)))
        except IndexError:
            size = 0
        if nbytes <= size <= _MAX_OVERSIZE * nbytes:
            return memory
        if size:
            self.give_back(memory)
        # Whole huge pages, so that a slightly larger array can use the memory, too.
        return huge_empty(-(-nbytes // _HUGE_PAGE) * _HUGE_PAGE, np.uint8)

    def give_back(self, memory: Bytes) -> None:
        """Keep memory that no array uses. If there is too much of it, free the smallest."""
        if not self._is_closed:
            insort(self._free, (memory.nbytes, id(memory), memory))
            del self._free[:-_MAX_FREE_BUFFERS]

    def close(self) -> None:
        """Free all memory that no array uses, and keep none from now on."""
        self._is_closed = True
        self._free.clear()


class _Buffer:
    """Owns the memory of an array, and gives it back to the pool when the array is freed."""

    __slots__ = ("_memory", "_pool")

    def __init__(self, memory: Bytes, pool: BufferPool) -> None:
        self._memory, self._pool = memory, weakref.ref(pool)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "data": (address_of(self._memory), False),
            "shape": self._memory.shape,
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        if (pool := self._pool()) is not None:
            pool.give_back(self._memory)


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping, within the cgroup's limit."""
    bounds = [_cgroup_free(), _system_free(), _address_space()]
    return min(bound for bound in bounds if bound is not None)


def ensure_fits(nbytes: int, subject: str, *values: object) -> None:
    """Raise MemoryError, before an allocation, if `nbytes` exceeds the free memory.

    The message begins with ``subject.format(*values)``. It is formatted only for the error.
    """
    if nbytes > _UNCHECKED_BYTES and nbytes > available_memory():
        text = subject.format(*values) if values else subject
        raise MemoryError(
            f"{text} takes {quantity(nbytes, 'byte')} and {available_memory():,} are free: read "
            "a part of it, fewer columns, or iterate"
        )


def fits_in_memory(nbytes: int) -> bool:
    """Return True if `nbytes` of memory are free."""
    return nbytes <= _UNCHECKED_BYTES or nbytes <= available_memory()


def too_large_text(nbytes: int) -> str:
    """Return the end of an error message: a decompressed file does not fit in memory."""
    return (
        f"{quantity(nbytes, 'byte')} when decompressed, as its index says, and free memory "
        f"has {available_memory():,}"
    )


_UNCHECKED_BYTES = 1 << 26
"""Up to this size, an allocation is not checked, because reading /proc costs more."""


_cached_map_limit = 0
"""Result of `_map_limit`; 0 before the first call."""


def _map_limit() -> int:
    """Return the maximum number of maps of a process."""
    global _cached_map_limit
    if _cached_map_limit == 0:
        try:
            with open("/proc/sys/vm/max_map_count") as file:
                _cached_map_limit = int(file.read())
        except (OSError, ValueError):
            _cached_map_limit = 65_530  # Linux's default; macOS sets no such limit
    return _cached_map_limit


def _system_free() -> int:
    """Return the available bytes of memory on Linux; elsewhere, the bytes of all memory."""
    if sys.platform == "linux":
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _address_space() -> int | None:
    """Return the unused bytes of this process's address space, or None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or sys.platform != "linux":
        return None
    with open("/proc/self/statm") as file:
        return max(limit - int(file.read().split()[0]) * mmap.PAGESIZE, 0)


def _cgroup_free() -> int | None:
    """Return the available bytes of this process's control group, or None without a limit.

    The page cache counts as available, because the kernel evicts it for an allocation.
    """
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
