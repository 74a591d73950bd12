"""Arrays that end at a protected page: accesses out of bounds crash the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

_PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded_array(data: bytes, align: int = 1) -> NDArray[np.uint8]:
    """Return a copy of bytes in an array that ends at a protected page.

    The array starts at a multiple of `align`, so it may end up to ``align - 1`` bytes before the
    page.
    """
    nbytes = -(-max(len(data), 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = np.frombuffer(mmap.mmap(-1, nbytes + mmap.PAGESIZE), np.uint8)
    if _libc.mprotect(pages.ctypes.data + nbytes, mmap.PAGESIZE, _PROT_NONE):
        raise OSError(ctypes.get_errno(), "cannot protect a page")
    start = (nbytes - len(data)) // align * align
    array = pages[start : start + len(data)]
    array[:] = np.frombuffer(data, np.uint8)
    return array
