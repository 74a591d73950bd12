"""Bringing pieces of files into the cache, each once, whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from npstream._core.fork import renew_in_child
from npstream._core.typing import Bytes, Span
from npstream.cache.cache import Refusal, Reservation, allocated
from npstream.cache.leases import Lease, PieceKey, wait
from npstream.errors import DAMAGED, IntegrityError

if TYPE_CHECKING:
    from npstream.cache.cache import CachedFile, Claim, ShardCache
    from npstream.storage.remote import RemoteStore

MAX_REQUEST = 1 << 24
"""Bytes of one request."""

ATTEMPTS = 3
"""How often bytes are fetched whose hash is not the recorded one."""

PieceCheck = Callable[[int, Bytes], bool]
"""Tells whether the bytes of a piece are right."""


class PieceRange(NamedTuple):
    """Successive pieces of one file, and the bytes where they begin; then where the last ends."""

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
    def leased(self) -> list[PieceKey]:
        """The pieces as leases know them."""
        return [(self.file.path, piece) for piece in self.pieces]

    def piece(self, number: int) -> slice:
        """Return where in the file a piece is."""
        k = number - self.first
        return slice(self.bounds[k], self.bounds[k + 1])

    def some(self, first: int, stop: int) -> PieceRange:
        """Return the part with the pieces from `first` up to `stop`."""
        bounds = self.bounds[first - self.first : stop - self.first + 1]
        return self._replace(first=first, bounds=bounds)

    def spans(self) -> list[Span]:
        """Return what to request."""
        begin, end = self.bounds[0], self.bounds[-1]
        return [
            (self.name, at, min(MAX_REQUEST, end - at)) for at in range(begin, end, MAX_REQUEST)
        ]


class Downloads:
    """Fetches into the cache, so that no two threads fetch the same piece.

    Between processes, locks on the cache's files do the same. They only save requests: after its
    timeout a process fetches the bytes itself.
    """

    def __init__(self, store: RemoteStore, cache: ShardCache) -> None:
        self.store = store
        self.cache = cache
        self._refused: set[str] = set()
        renew_in_child(self)

    def renew_locks(self) -> None:
        """Try again in a forked process what the disk refused."""
        self._refused = set()

    def can_keep(self, file: CachedFile) -> bool:
        """Tell whether a file's pieces can be kept: not if the disk is full or read-only."""
        return file.path not in self._refused

    def fetch(self, parts: Iterable[PieceRange], lease: Lease | None = None) -> None:
        """Fetch pieces that are absent, and wait for those that others are fetching.

        Pieces may still be absent then: where the cache cannot keep them, or has evicted them.

        Parameters
        ----------
        parts : iterable of PieceRange
        lease : Lease, optional
            Of whoever wants them. Pieces that it has are fetched, too.

        Raises
        ------
        StorageError
        IntegrityError
            If the bytes are wrong however often they are fetched.
        """
        part_of = {piece: part for part in parts for piece in part.leased}

        def fetch(pieces: list[PieceKey], own: Lease) -> None:
            of_parts = groupby(pieces, part_of.__getitem__)
            found = [run for part, mine in of_parts for run in runs(part, [k for _, k in mine])]
            self._fetch(found, own)

        self.once(part_of, lambda piece: not part_of[piece].file.here[piece[1]], fetch, lease)

    def once(
        self,
        pieces: Iterable[PieceKey],
        is_absent: Callable[[PieceKey], object],
        fetch: Callable[[list[PieceKey], Lease], object],
        lease: Lease | None = None,
    ) -> None:
        """Have absent pieces fetched by one thread; wait for those that another one fetches.

        What another thread failed to fetch is fetched here.

        Parameters
        ----------
        pieces : iterable of PieceKey
        is_absent : callable
            ``is_absent(piece)`` tells whether a piece is to be fetched.
        fetch : callable
            ``fetch(pieces, lease)`` fetches pieces, which the lease has until then.
        lease : Lease, optional
            Of whoever wants the pieces. Those that it has are fetched, too.
        """
        absent = [piece for piece in pieces if is_absent(piece)]
        for _ in range(2):
            if not absent:
                return
            own = Lease()
            mine = own.take(absent, lease)
            try:
                # Before they were ours, some may have come.
                if left := [piece for piece in mine if is_absent(piece)]:
                    fetch(left, own)
            finally:
                own.drop(mine)
            taken = {*mine}
            others = [piece for piece in absent if piece not in taken]
            if not others:
                return
            with self.store.deadlines.track_wait(self.store.timeout) as time:
                wait(others, time)
            absent = [piece for piece in others if is_absent(piece)]

    def _fetch(self, parts: list[PieceRange], lease: Lease) -> None:
        """Fetch parts under locks; then, without, what other processes did not bring."""
        parts, reserved = self._with_room([part for part in parts if self.can_keep(part.file)])
        with reserved:
            busy = self._fetch_locked(parts, reserved, lease)
        for part in busy:
            # Not longer, so that what a process that was stopped holds can be fetched here.
            with self.store.deadlines.track_wait(self.store.timeout / 2) as left:
                part.file.wait(part.pieces, left)
        late, reserved = self._with_room(
            [late for part in busy for late in _absent(part) if part.file.alive]
        )
        with reserved:
            self._bring(late, reserved, lease)

    def _fetch_locked(
        self, parts: list[PieceRange], reserved: Reservation, lease: Lease
    ) -> list[PieceRange]:
        """Fetch those of some parts that no other process is fetching; return the others."""
        claims: list[Claim] = []
        try:
            claimed, busy = [], []
            for part in parts:
                claim = part.file.lock(part.pieces)
                claims.append(claim)
                claimed += runs(part, claim.pieces)
                locked = set(claim.pieces)
                busy += runs(part, [piece for piece in part.pieces if piece not in locked])
            self._bring(claimed, reserved, lease)
        finally:
            for claim in claims:
                claim.close()
        return busy

    def _with_room(self, parts: list[PieceRange]) -> tuple[list[PieceRange], Reservation]:
        """Reserve room in the cache for as many of the parts as it can take now."""
        count = len(parts)
        while count:
            found = self._reserve(parts[:count])
            if isinstance(found, Reservation):
                return parts[:count], found
            if found is Refusal.LOCKED:
                return [], Reservation()
            count //= 2
        if parts:
            # A chunk at a time each process may have, whatever the others are writing.
            one = parts[0].some(parts[0].first, parts[0].first + 1)
            found = self._reserve([one], may_exceed=True)
            if isinstance(found, Reservation):
                return [one], found
            if found is Refusal.FULL:
                self._refused.update(part.file.path for part in parts)
        return [], Reservation()

    def _reserve(self, parts: list[PieceRange], may_exceed: bool = False) -> Reservation | Refusal:
        nbytes = sum(allocated(part.bounds[0], part.bounds[-1]) for part in parts)
        keep = [part.file for part in parts]
        with self.store.deadlines.track_wait(self.store.timeout) as left:
            return self.cache.reserve(nbytes, keep, may_exceed=may_exceed, timeout=left)

    def _bring(self, parts: list[PieceRange], reserved: Reservation, lease: Lease) -> None:
        """Fetch parts, and fetch those anew whose hashes are wrong."""
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
        """Fetch parts and yield those with pieces whose hashes are wrong."""
        spans = [(part, span) for part in parts for span in part.spans()]
        left = {id(part): len(part.spans()) for part in parts}
        for part in parts:
            if not left[id(part)]:
                part.file.commit(part.pieces)  # of no bytes
        stream = self.store.stream(span for _, span in spans)
        try:
            for number, data in stream:
                part, (_, begin, _) = spans[number]
                if not part.file.put(begin, data):
                    if part.file.alive:
                        self._refused.add(part.file.path)
                    left[id(part)] = -1
                left[id(part)] -= 1
                if left[id(part)] == 0:
                    wrong = _damaged(part, part.file.data)
                    yield from runs(part, wrong)
                    sound = [piece for piece in part.pieces if piece not in wrong]
                    part.file.commit(sound)
                    reserved.spend(allocated(part.bounds[0], part.bounds[-1]))
                    lease.drop((part.file.path, piece) for piece in sound)
        finally:
            stream.close()


def _damaged(part: PieceRange, data: Bytes) -> list[int]:
    """Return the pieces whose bytes, all of which are in the file, are wrong."""
    if part.check is None:
        return []
    return [piece for piece in part.pieces if not part.check(piece, data[part.piece(piece)])]


def _absent(part: PieceRange) -> list[PieceRange]:
    return runs(part, [piece for piece in part.pieces if not part.file.here[piece]])


def runs(part: PieceRange, pieces: list[int]) -> list[PieceRange]:
    """Return some pieces of a part, rising, as parts of successive ones that are not too long."""
    found: list[PieceRange] = []
    for piece in pieces:
        if found and found[-1].pieces.stop == piece:
            longer = part.some(found[-1].first, piece + 1)
            if longer.bounds[-1] - longer.bounds[0] <= MAX_REQUEST:
                found[-1] = longer
                continue
        found.append(part.some(piece, piece + 1))
    return found
