"""The registry of what this process fetches into the cache: a piece has one owner at a time.

A lease is an owner's handle. A thread that wants a piece of another owner waits for it. Between
processes, locks on the cache's files do the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TypeAlias

from npstream._core.fork import renew_in_child

__all__ = ["Lease", "PieceKey", "is_leased", "wait"]

PieceKey: TypeAlias = tuple[str, int]
"""A piece of a file in the cache: the file's path, and the number of the piece."""


class _Registry:
    """The owner of each piece."""

    def __init__(self) -> None:
        self.renew_locks()
        renew_in_child(self)

    def renew_locks(self) -> None:
        """Begin anew in a forked process, which has none of the threads that fetch."""
        self.changed = threading.Condition()
        self.owners: dict[PieceKey, Lease] = {}


class Lease:
    """The pieces that one owner fetches, or will fetch.

    Examples
    --------
    >>> queued, direct = Lease(), Lease()
    >>> queued.take([("a", 0), ("a", 1)])
    [('a', 0), ('a', 1)]
    >>> direct.take([("a", 1), ("a", 2)])
    [('a', 2)]
    >>> direct.take([("a", 0)], of=queued)
    [('a', 0)]
    >>> queued.drop([("a", 0), ("a", 1)])
    >>> [is_leased(("a", piece)) for piece in range(3)]
    [True, False, True]
    >>> direct.drop([("a", 0), ("a", 2)])
    """

    def take(self, pieces: Iterable[PieceKey], of: Lease | None = None) -> list[PieceKey]:
        """Take those of some pieces that have no owner, or that another lease has.

        Parameters
        ----------
        pieces : iterable of PieceKey
        of : Lease, optional
            The lease whose pieces this one takes over.

        Returns
        -------
        list of PieceKey
            Those that were taken.
        """
        taken = []
        with _registry.changed:
            owners = _registry.owners
            for piece in pieces:
                owner = owners.get(piece)
                if owner is None or owner is of:
                    owners[piece] = self
                    taken.append(piece)
        return taken

    def drop(self, pieces: Iterable[PieceKey]) -> None:
        """Own some pieces no longer: they have come, or will not come after all."""
        pieces = list(pieces)
        with _registry.changed:
            for piece in pieces:
                if _registry.owners.get(piece) is self:
                    del _registry.owners[piece]
            _registry.changed.notify_all()

    def start(self) -> None:
        """Begin to fetch what was held back: another thread waits for it."""


def is_leased(piece: PieceKey) -> bool:
    """Return True if a piece has an owner."""
    return piece in _registry.owners


def wait(pieces: Iterable[PieceKey], timeout: float) -> None:
    """Wait until none of some pieces has an owner, or time is up."""
    wanted, end = [*pieces], time.monotonic() + timeout
    started: set[Lease] = set()

    def others() -> set[Lease]:
        return {owner for piece in wanted if (owner := _registry.owners.get(piece))} - started

    while (left := end - time.monotonic()) > 0:
        for owner in others():
            owner.start()  # without the lock, which it may need
            started.add(owner)
        with _registry.changed:
            # A piece that one owner dropped may have another by now, which is to be started, too.
            _registry.changed.wait_for(lambda: others() or not any(map(is_leased, wanted)), left)
            if not any(map(is_leased, wanted)):
                return


_registry = _Registry()
