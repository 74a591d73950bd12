"""Leases for the downloads of this process into the cache, which stores files in pieces.

A piece has at most one lease at a time. The thread with the lease downloads the piece, and other
threads that need it wait. Between processes, locks on the cache's files have the same purpose.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TypeAlias

from npstream._core.fork import renew_in_child

__all__ = ["Lease", "PieceKey", "is_leased", "wait_for_leases"]

PieceKey: TypeAlias = tuple[str, int]
"""Identifies a piece: the path of the file in the cache, and the number of the piece."""


class _Registry:
    """The lease of each piece that has one. `condition` is notified when pieces are dropped."""

    def __init__(self) -> None:
        self.reset_process_state()
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """Reset the registry in a forked process, which has none of the downloading threads."""
        self.condition = threading.Condition()
        self.leases: dict[PieceKey, Lease] = {}


class Lease:
    """The pieces that one owner downloads, or will download.

    The pieces are not an attribute: `_Registry.leases` maps each piece to its lease.

    Examples
    --------
    >>> queued, direct = Lease(), Lease()
    >>> queued.take([("a", 0), ("a", 1)])
    [('a', 0), ('a', 1)]
    >>> direct.take([("a", 1), ("a", 2)])
    [('a', 2)]
    >>> direct.take([("a", 0)], from_lease=queued)
    [('a', 0)]
    >>> queued.drop([("a", 0), ("a", 1)])
    >>> [is_leased(("a", piece)) for piece in range(3)]
    [True, False, True]
    >>> direct.drop([("a", 0), ("a", 2)])
    """

    def take(self, pieces: Iterable[PieceKey], from_lease: Lease | None = None) -> list[PieceKey]:
        """Add the pieces without a lease, and take over those of `from_lease`.

        Parameters
        ----------
        pieces : iterable of PieceKey
        from_lease : Lease, optional
            The lease whose pieces this one takes over.

        Returns
        -------
        list of PieceKey
            The pieces that this lease now has. The other pieces have another lease.
        """
        taken_pieces = []
        with _registry.condition:
            leases = _registry.leases
            for piece in pieces:
                lease = leases.get(piece)
                if lease is None or lease is from_lease:
                    leases[piece] = self
                    taken_pieces.append(piece)
        return taken_pieces

    def drop(self, pieces: Iterable[PieceKey]) -> None:
        """Give up pieces: this owner has downloaded them, or will not download them."""
        pieces = list(pieces)
        with _registry.condition:
            for piece in pieces:
                if _registry.leases.get(piece) is self:
                    del _registry.leases[piece]
            _registry.condition.notify_all()

    def start(self) -> None:
        """Start the downloads, because another thread waits for a piece.

        A subclass that delays downloads overrides this. Here it does nothing.
        """


def is_leased(piece: PieceKey) -> bool:
    """Return True if a piece has a lease."""
    return piece in _registry.leases


def wait_for_leases(pieces: Iterable[PieceKey], timeout: float) -> None:
    """Wait until none of `pieces` has a lease, or until `timeout`, in seconds."""
    pieces, deadline = [*pieces], time.monotonic() + timeout
    started_leases: set[Lease] = set()

    def not_started() -> set[Lease]:
        leases = {lease for piece in pieces if (lease := _registry.leases.get(piece))}
        return leases - started_leases

    while (remaining := deadline - time.monotonic()) > 0:
        for lease in not_started():
            lease.start()  # without the registry's lock, which `start` may need
            started_leases.add(lease)
        with _registry.condition:
            # A piece that one lease dropped may have another lease by now, which must start, too.
            _registry.condition.wait_for(
                lambda: not_started() or not any(map(is_leased, pieces)), remaining
            )
            if not any(map(is_leased, pieces)):
                return


_registry = _Registry()
