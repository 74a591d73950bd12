"""An LRU cache of byte strings in memory, with a limit in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from npstream._core.fork import renew_in_child

ENTRY_OVERHEAD = 1 << 8
"""Estimated bytes that an entry takes in addition to its value."""


class LRUCache:
    """A thread-safe LRU cache of byte strings.

    Parameters
    ----------
    limit : int
        The most bytes that all entries take together.

    Examples
    --------
    >>> cache = LRUCache(1000)
    >>> cache.put([1, 2, 3], [b"abc", bytes(300), bytes(100)])
    >>> cache.get([1, 2, 3]) == [None, bytes(300), bytes(100)]
    True
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._extra = 0
        self._entries: OrderedDict[Hashable, bytes] = OrderedDict()
        self._nbytes = 0
        self.reset_process_state()
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """Replace the lock: in a forked process, the thread that holds it does not exist."""
        self._lock = threading.Lock()

    @property
    def is_extended(self) -> bool:
        """Whether the limit is raised."""
        return self._extra > 0

    def extend(self, nbytes: int) -> None:
        """Raise the limit by `nbytes`, or lower it if `nbytes` is negative."""
        with self._lock:
            self._extra += nbytes
            self._evict()

    def get(self, keys: Iterable[Hashable]) -> list[bytes | None]:
        """Return the value of each key, or None for a key that is not cached."""
        with self._lock:
            return [self._get(key) for key in keys]

    def put(self, keys: Iterable[Hashable], values: Iterable[bytes]) -> None:
        """Store a value for each key, and evict the least recently used entries."""
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                self._drop(key)
                self._entries[key] = value
                self._nbytes += ENTRY_OVERHEAD + len(value)
            self._evict()

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Remove the entries of some keys."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def keys(self) -> list[Hashable]:
        """Return all keys, the least recently used first."""
        with self._lock:
            return list(self._entries)

    def are_absent(self, keys: Iterable[Hashable]) -> list[bool]:
        """Return for each key whether it is not cached."""
        with self._lock:
            return [key not in self._entries for key in keys]

    def _evict(self) -> None:
        while self._nbytes > self._limit + self._extra:
            self._drop(next(iter(self._entries)))

    def _get(self, key: Hashable) -> bytes | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def _drop(self, key: Hashable) -> None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._nbytes -= ENTRY_OVERHEAD + len(value)
