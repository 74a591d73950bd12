"""Provide `BufferPool`, which reuses the memory of decoded images.

The operating system fills new memory with zeros, page by page. For images, that takes a tenth of
the time of decoding. Memory that is used again needs no new pages.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from npstream._core.memory import address_of, huge_empty
from npstream._core.typing import AnyArray, Bytes

__all__ = ["BufferPool"]

_MIN_BYTES = 1 << 20
"""Smaller arrays are not pooled: `malloc` reuses their memory."""

_MAX_FREE = 2
"""Maximum number of buffers that the pool keeps while no array uses them."""


class BufferPool:
    """Memory for arrays, which is used again as soon as all arrays over it are freed.

    Views, tensors and other objects that share memory with an array keep it in use. Threads may
    share a pool. After `close`, the pool keeps no memory.
    """

    def __init__(self) -> None:
        # Methods of a deque are atomic. A lock could deadlock, because `_Buffer.__del__` can run in
        # any line of Python code.
        self._free: deque[Bytes] = deque(maxlen=_MAX_FREE)
        self._is_closed = False

    def empty(self, count: int, dtype: np.dtype[Any]) -> AnyArray:
        """Return an uninitialized array of one axis."""
        nbytes = count * dtype.itemsize
        if nbytes < _MIN_BYTES:
            return np.empty(count, dtype)
        buffer = _Buffer(self._take(nbytes), self)
        array: AnyArray = np.asarray(buffer)[:nbytes].view(dtype)
        return array

    def _take(self, nbytes: int) -> Bytes:
        """Return free memory of up to twice the size, or new memory.

        Free memory of any other size leaves the pool.
        """
        while True:
            try:
                memory = self._free.pop()
            except IndexError:
                return huge_empty(nbytes, np.uint8)
            if nbytes <= memory.nbytes <= 2 * nbytes:
                return memory

    def give_back(self, memory: Bytes) -> None:
        """Keep memory that no array uses."""
        if not self._is_closed:
            self._free.append(memory)

    def close(self) -> None:
        """Free all memory that no array uses, and keep none from now on."""
        self._is_closed = True
        self._free.clear()


class _Buffer:
    """Owns the memory of an array, and gives it back to the pool when the array is freed."""

    __slots__ = ("_memory", "_pool")

    def __init__(self, memory: Bytes, pool: BufferPool) -> None:
        self._memory, self._pool = memory, pool

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "data": (address_of(self._memory), False),
            "shape": self._memory.shape,
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        self._pool.give_back(self._memory)
