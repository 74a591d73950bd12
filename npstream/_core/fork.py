"""Locks in forked processes.

A forked process has the locks of its parent as they stood, and none of the threads that may hold
them. So each object with locks is registered here, and makes new ones in the child.

Tested in tests/shards/test_locality.py.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["renew_in_child"]


class HasLocks(Protocol):
    """An object that can replace its locks."""

    def renew_locks(self) -> None:
        """Replace the locks, and forget what threads are doing."""


_objects: WeakSet[HasLocks] = WeakSet()


def renew_in_child(owner: HasLocks) -> None:
    """Have an object renew its locks in every forked process, for as long as it lives."""
    _objects.add(owner)


def _renew() -> None:
    for owner in list(_objects):
        owner.renew_locks()


os.register_at_fork(after_in_child=_renew)
