"""Replacement of locks in forked processes.

A forked process inherits its parent's locks in their current state, but not the threads that may
hold them. So each object with locks registers here, and creates new locks in the child.

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
        """Replace the locks, and reset the state that the parent's threads maintained."""


_objects: WeakSet[HasLocks] = WeakSet()


def renew_in_child(owner: HasLocks) -> None:
    """Call `owner.renew_locks` in every forked process while `owner` exists."""
    _objects.add(owner)


def _renew() -> None:
    for owner in list(_objects):
        owner.renew_locks()


os.register_at_fork(after_in_child=_renew)
