"""Downloads of pieces into the cache, each piece once for all threads and processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from npstream._core.fork import renew_in_child
from npstream._core.typing import Bytes, Span
from npstream.cache.cache import Refusal, Reservation, disk_bytes
from npstream.cache.leases import Lease, PieceKey, wait_for_leases
from npstream.errors import DAMAGED, IntegrityError

if TYPE_CHECKING:
    from npstream.cache.cache import CachedFile, Claim, ShardCache
    from npstream.storage.remote import RemoteStore

MAX_REQUEST = 1 << 24
"""The maximum number of bytes of one request."""

ATTEMPTS = 3
"""The same bytes are downloaded at most this number of times, if their hash is wrong each time."""

RETRY_SECONDS = 60
"""After a failure to write a file, the seconds until the next attempt."""

PieceCheck = Callable[[int, Bytes], bool]
"""Returns True if the bytes of a piece are right."""


class PieceRange(NamedTuple):
    """Successive pieces of one file. Variables for such ranges are named `part`.

    Attributes
    ----------
    file : CachedFile
    name : str
        The name of the file in the store.
    first : int
        The number of the first piece.
    bounds : tuple of int
        The offsets at which the pieces begin, and then the end of the last piece.
    check : callable, optional
        Returns True if the bytes of a piece are right. Without it, the bytes are not checked.
    """

    file: CachedFile
    name: str
    first: int
    bounds: tuple[int, ...]
    check: PieceCheck | None

    @property
    def pieces(self) -> range:
        """The numbers of the pieces."""
        return range(self.first, self.first + len(self.bounds) - 1)

    @property
    def keys(self) -> list[PieceKey]:
        """The keys of the pieces for leases."""
        return [(self.file.path, piece) for piece in self.pieces]

    def piece_slice(self, number: int) -> slice:
        """Return the slice of the file's bytes that a piece covers."""
        k = number - self.first
        return slice(self.bounds[k], self.bounds[k + 1])

    def subrange(self, first: int, stop: int) -> PieceRange:
        """Return the pieces from `first` up to, but not including, `stop`."""
        bounds = self.bounds[first - self.first : stop - self.first + 1]
        return self._replace(first=first, bounds=bounds)

    def spans(self) -> list[Span]:
        """Return the byte ranges to request."""
        begin, end = self.bounds[0], self.bounds[-1]
        return [
            (self.name, offset, min(MAX_REQUEST, end - offset))
            for offset in range(begin, end, MAX_REQUEST)
        ]


class Downloads:
    """Downloads pieces into the cache so that no two threads download the same piece.

    Between processes, locks on the cache's files have the same purpose. A process that has waited
    for such a lock until its timeout downloads the bytes itself, so they may be downloaded twice.
    """

    def __init__(self, store: RemoteStore, cache: ShardCache) -> None:
        self.store = store
        self.cache = cache
        self._unwritable: dict[str, float] = {}
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """In a forked process, forget which files could not be written."""
        self._unwritable = {}

    def can_keep(self, file: CachedFile) -> bool:
        """Return False if a file could not be written in the last minute.

        The reason is a full or read-only disk. Another program may have made space since.
        """
        failure = self._unwritable.get(file.path)
        return failure is None or time.monotonic() - failure > RETRY_SECONDS

    def fetch(self, parts: Iterable[PieceRange], lease: Lease | None = None) -> None:
        """Download absent pieces, and wait for pieces that other threads or processes download.

        Pieces may still be absent afterwards, if the cache cannot keep them or has evicted them.

        Parameters
        ----------
        parts : iterable of PieceRange
        lease : Lease, optional
            A lease of the caller. Pieces with this lease are downloaded here. The call does not
            wait for them.

        Raises
        ------
        StorageError
        IntegrityError
            If the bytes are still wrong after `ATTEMPTS` downloads.
        """
        part_of = {piece: part for part in parts for piece in part.keys}

        def fetch_leased(pieces: list[PieceKey], new_lease: Lease) -> None:
            absent: list[PieceRange] = []
            for part, keys in groupby(pieces, part_of.__getitem__):
                absent += piece_ranges(part, [number for _, number in keys])
            self._fetch(absent, new_lease)

        self.fetch_once(
            part_of, lambda piece: not part_of[piece].file.present[piece[1]], fetch_leased, lease
        )

    def fetch_once(
        self,
        pieces: Iterable[PieceKey],
        is_absent: Callable[[PieceKey], object],
        fetch: Callable[[list[PieceKey], Lease], object],
        lease: Lease | None = None,
    ) -> None:
        """Fetch absent pieces that no other lease has, and wait for those that other threads fetch.

        Pieces that another thread failed to fetch are fetched here.

        Parameters
        ----------
        pieces : iterable of PieceKey
        is_absent : callable
            ``is_absent(piece)`` returns True if a piece must be fetched.
        fetch : callable
            ``fetch(pieces, lease)`` fetches pieces. They have the lease until `fetch` returns.
        lease : Lease, optional
            A lease of the caller. Pieces with this lease are fetched here. The call does not wait
            for them.
        """
        absent = [piece for piece in pieces if is_absent(piece)]
        # In the second round, pieces that other threads failed to fetch are fetched here.
        for _ in range(2):
            if not absent:
                return
            new_lease = Lease()
            leased_pieces = new_lease.take(absent, lease)
            try:
                # Some pieces may have arrived before the lease was taken.
                if still_absent := [piece for piece in leased_pieces if is_absent(piece)]:
                    fetch(still_absent, new_lease)
            finally:
                new_lease.drop(leased_pieces)
            own_pieces = set(leased_pieces)
            others = [piece for piece in absent if piece not in own_pieces]
            if not others:
                return
            with self.store.deadlines.track_wait(self.store.timeout) as seconds:
                wait_for_leases(others, seconds)
            absent = [piece for piece in others if is_absent(piece)]

    def _fetch(self, parts: list[PieceRange], lease: Lease) -> None:
        """Download parts under file locks, wait for other processes, and download the rest."""
        busy = self._fetch_locked([part for part in parts if self.can_keep(part.file)], lease)
        for part in busy:
            # Half of the timeout: if the other process was stopped, time remains to download here.
            with self.store.deadlines.track_wait(self.store.timeout / 2) as seconds:
                part.file.wait(part.pieces, seconds)
        # An evicted file is not linked: nobody would read bytes written to it.
        linked_parts = [part for part in busy if part.file.is_linked]
        self._download_reserved(
            [subrange for part in linked_parts for subrange in _absent_ranges(part)], lease
        )

    def _fetch_locked(self, parts: list[PieceRange], lease: Lease) -> list[PieceRange]:
        """Download the parts that no other process is downloading; return the other parts."""
        claims: list[Claim] = []
        try:
            claimed, busy = [], []
            for part in parts:
                claim = part.file.lock(part.pieces)
                claims.append(claim)
                claimed += piece_ranges(part, claim.pieces)
                locked = set(claim.pieces)
                busy += piece_ranges(part, [piece for piece in part.pieces if piece not in locked])
            # Space is reserved only for what this process writes: a second reservation for the same
            # piece would evict a file for nothing.
            self._download_reserved(claimed, lease)
        finally:
            for claim in claims:
                claim.close()
        return busy

    def _download_reserved(self, parts: list[PieceRange], lease: Lease) -> None:
        """Reserve disk space, and download the parts that fit."""
        parts, reserved = self._reserve_space(parts)
        with reserved:
            self._download(parts, reserved, lease)

    def _mark_unwritable(self, parts: Iterable[PieceRange]) -> None:
        """Record that the files of parts cannot be written now."""
        self._unwritable.update(dict.fromkeys((part.file.path for part in parts), time.monotonic()))

    def _reserve_space(self, parts: list[PieceRange]) -> tuple[list[PieceRange], Reservation]:
        """Reserve disk space; return what fits: the first parts, the first piece, or nothing."""
        count = len(parts)
        while count:
            result = self._reserve(parts[:count])
            if isinstance(result, Reservation):
                return parts[:count], result
            if result is Refusal.LOCKED:  # fewer parts would need the same lock
                return [], Reservation()
            count //= 2
        if parts:
            # Each process may write one piece at a time, even if others have reserved all space.
            first_piece = parts[0].subrange(parts[0].first, parts[0].first + 1)
            result = self._reserve([first_piece], may_exceed=True)
            if isinstance(result, Reservation):
                return [first_piece], result
            if result is Refusal.FULL:
                self._mark_unwritable(parts)
        return [], Reservation()

    def _reserve(self, parts: list[PieceRange], may_exceed: bool = False) -> Reservation | Refusal:
        nbytes = sum(disk_bytes(part.bounds[0], part.bounds[-1]) for part in parts)
        keep = [part.file for part in parts]
        with self.store.deadlines.track_wait(self.store.timeout) as seconds:
            return self.cache.reserve(nbytes, keep, may_exceed=may_exceed, timeout=seconds)

    def _download(self, parts: list[PieceRange], reserved: Reservation, lease: Lease) -> None:
        """Download parts; download pieces again whose hashes are wrong."""
        for _ in range(ATTEMPTS):
            wrong = list(self._transfer(parts, reserved, lease))
            if not wrong:
                return
            parts = wrong
        where = self.store.where(parts[0].name)
        begin, end = parts[0].bounds[0], parts[0].bounds[-1]
        raise IntegrityError(
            f"{where}: the hash of bytes {begin:,} to {end:,} is not the recorded one, also after "
            f"{ATTEMPTS} attempts{DAMAGED}"
        )

    def _transfer(
        self, parts: list[PieceRange], reserved: Reservation, lease: Lease
    ) -> Iterator[PieceRange]:
        """Download parts, and yield ranges of pieces whose hashes are wrong."""
        spans = [(part, span) for part in parts for span in part.spans()]
        remaining = {id(part): len(part.spans()) for part in parts}  # requests of each part
        for part in parts:
            if not remaining[id(part)]:  # pieces without bytes
                yield from _commit_sound(part, lease)
        stream = self.store.stream_bodies(span for _, span in spans)
        try:
            for number, body in stream:
                part, (_, begin, _) = spans[number]
                if not part.file.put(begin, body):
                    if part.file.is_linked:
                        self._mark_unwritable([part])
                    remaining[id(part)] = -1  # never 0 again, so the part is never committed
                remaining[id(part)] -= 1
                if remaining[id(part)] == 0:
                    yield from _commit_sound(part, lease)
                    reserved.release(disk_bytes(part.bounds[0], part.bounds[-1]))
        finally:
            stream.close()


def _commit_sound(part: PieceRange, lease: Lease) -> list[PieceRange]:
    """Mark the pieces whose hashes are right as present; return the others, as ranges."""
    wrong = _find_damaged(part, part.file.data)
    sound = [piece for piece in part.pieces if piece not in wrong]
    part.file.commit(sound)
    lease.drop((part.file.path, piece) for piece in sound)
    return piece_ranges(part, wrong)


def _find_damaged(part: PieceRange, data: Bytes) -> list[int]:
    """Return the pieces whose bytes are wrong. All bytes of the part must be in the file."""
    if part.check is None:
        return []
    return [piece for piece in part.pieces if not part.check(piece, data[part.piece_slice(piece)])]


def _absent_ranges(part: PieceRange) -> list[PieceRange]:
    """Return the pieces of a part that are not in the file, as ranges."""
    return piece_ranges(part, [piece for piece in part.pieces if not part.file.present[piece]])


def piece_ranges(part: PieceRange, pieces: list[int]) -> list[PieceRange]:
    """Split pieces of a part, which must be sorted, into ranges of successive pieces.

    A range is at most `MAX_REQUEST` bytes, or it is one larger piece.
    """
    ranges: list[PieceRange] = []
    for piece in pieces:
        if ranges and ranges[-1].pieces.stop == piece:
            longer = part.subrange(ranges[-1].first, piece + 1)
            if longer.bounds[-1] - longer.bounds[0] <= MAX_REQUEST:
                ranges[-1] = longer
                continue
        ranges.append(part.subrange(piece, piece + 1))
    return ranges
