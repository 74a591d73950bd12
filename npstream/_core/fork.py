"""Replacement of locks and similar state in forked processes, and `is_spawning`.

A forked process inherits its parent's locks in their current state, but not the threads that may
hold them. So each object with such state registers here, and resets it in the child.

Tested in tests/shards/test_locality.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol
from weakref import WeakSet

__all__ = ["is_spawning", "renew_in_child"]


def is_spawning() -> bool:
    """Return True while multiprocessing pickles an object for a process that it starts."""
    context: Any = sys.modules.get("multiprocessing.context")
    return context is not None and context.get_spawning_popen() is not None


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
