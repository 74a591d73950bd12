"""What was used last, kept in memory up to a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from npstream._core.fork import renew_in_child

ENTRY_OVERHEAD = 1 << 8
"""Bytes that keeping something takes beside its own."""


class LRUCache:
    """An LRU cache of byte strings by their keys.

    Threads may share it.

    Parameters
    ----------
    limit : int
        The most bytes that it takes.

    Examples
    --------
    >>> recent = LRUCache(1000)
    >>> recent.put([1, 2, 3], [b"abc", bytes(300), bytes(100)])
    >>> recent.get([1, 2, 3]) == [None, bytes(300), bytes(100)]
    True
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._extra = 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._nbytes = 0
        self.renew_locks()
        renew_in_child(self)

    def renew_locks(self) -> None:
        """Replace the lock, which a thread that a forked process does not have may have held."""
        self._lock = threading.Lock()

    @property
    def is_extended(self) -> bool:
        """Whether the limit is raised."""
        return self._extra > 0

    def extend(self, nbytes: int) -> None:
        """Raise the limit by so many bytes, or lower it again."""
        with self._lock:
            self._extra += nbytes
            self._trim()

    def get(self, numbers: Iterable[Hashable]) -> list[bytes | None]:
        """Return what is kept under some numbers, and None for the others."""
        with self._lock:
            return [self._used(number) for number in numbers]

    def put(self, numbers: Iterable[Hashable], parts: Iterable[bytes]) -> None:
        """Keep byte strings, instead of what is kept under their numbers."""
        with self._lock:
            for number, part in zip(numbers, parts, strict=True):
                self._drop(number)
                self._kept[number] = part
                self._nbytes += ENTRY_OVERHEAD + len(part)
            self._trim()

    def drop(self, numbers: Iterable[Hashable]) -> None:
        """Keep nothing under some numbers."""
        with self._lock:
            for number in numbers:
                self._drop(number)

    def numbers(self) -> list[Hashable]:
        """Return all numbers under which something is kept."""
        with self._lock:
            return list(self._kept)

    def lacks(self, numbers: Iterable[Hashable]) -> list[bool]:
        """Tell of each number whether nothing is kept under it."""
        with self._lock:
            return [number not in self._kept for number in numbers]

    def _trim(self) -> None:
        while self._nbytes > self._limit + self._extra:
            self._drop(next(iter(self._kept)))

    def _used(self, number: Hashable) -> bytes | None:
        part = self._kept.get(number)
        if part is not None:
            self._kept.move_to_end(number)
        return part

    def _drop(self, number: Hashable) -> None:
        part = self._kept.pop(number, None)
        if part is not None:
            self._nbytes -= ENTRY_OVERHEAD + len(part)
