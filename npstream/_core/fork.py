"""Replacement of locks and similar state in forked processes.

A forked process inherits its parent's locks in their current state, but not the threads that may
hold them. So each object with such state registers here, and resets it in the child.

Tested in tests/shards/test_locality.py.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["renew_in_child"]


class HasProcessState(Protocol):
    """An object with locks, or other state that a forked process must not inherit."""

    def reset_process_state(self) -> None:
        """Replace the locks, and reset the state that the parent's threads maintained."""


_objects: WeakSet[HasProcessState] = WeakSet()


def renew_in_child(owner: HasProcessState) -> None:
    """Call `owner.reset_process_state` in every forked process while `owner` exists."""
    _objects.add(owner)


def _renew() -> None:
    for owner in list(_objects):
        owner.reset_process_state()


os.register_at_fork(after_in_child=_renew)
