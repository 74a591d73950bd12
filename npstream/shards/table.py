"""From sample numbers to bytes in memory.

A *table* says where the resident shards lie; kernels read it without the GIL. Shards come into a
table when they are first touched and never leave it: to evict, a new table takes its place, and
the old one, which holds its maps and buffers, dies with the last call that reads through it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import WeakSet

import numpy as np

from npstream._core import memory
from npstream._core.fork import renew_in_child
from npstream._core.typing import Bytes, Int64
from npstream.shards import kernels
from npstream.shards import paging as pages
from npstream.shards.local import layouts_of
from npstream.storage.deadlines import inherit_deadline, shared_deadline

if TYPE_CHECKING:
    from npstream.shards.base import Region, RemotePart, Shards
    from npstream.shards.readahead import ReadAhead, RowsAhead, RowsOfPiece
    from npstream.shards.remote import RemoteShards

T = TypeVar("T")

LOOK_AHEAD = 128
"""Pieces of work whose bytes are asked for before the first of them is done, at most."""

ROWS_WINDOW = 1 << 24
"""Bytes of single samples that are fetched ahead, about, but at least two pieces of work."""

GROWTH = 4
"""Pieces whose bytes are asked for while one is done, as long as some have to be fetched."""


@dataclass(slots=True)
class Table:
    """Where the resident shards lie (see `npstream.shards.kernels`), and what keeps them there."""

    place: Int64
    regions: dict[int, Region] = field(default_factory=dict)
    owned: dict[int, int] = field(default_factory=dict)  # buffers, not maps: shard -> bytes


@dataclass(frozen=True, slots=True)
class Split:
    """How to take samples apart: the arguments of the kernel `split`, without addresses."""

    nvariable: int
    nfixed: int
    fixed: Int64
    variable: Int64


class Fetcher:
    """The shards of one dataset, or of several, brought into memory as they are touched.

    Parameters
    ----------
    shards : Shards
    """

    def __init__(self, shards: Shards[RemoteShards]) -> None:
        self.shards = shards
        self.index = shards.index
        self.remotes = tuple(shards.remotes)
        self.layouts = layouts_of(shards.index)
        self.renew_locks()
        renew_in_child(self)
        self._cold = pages.Coldness()
        self._readers: WeakSet[ReadAhead | RowsAhead] = WeakSet()
        self._lookup = (self.index.starts, self.index.guide, self.index.shift)
        self.table: Table | None = Table(np.zeros((max(len(self.index), 1), 7), np.int64))

    def renew_locks(self) -> None:
        """Replace the locks, which a thread that a forked process does not have may have held."""
        self._lock = threading.RLock()
        self._publish = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Fetcher, (self.shards,)

    def close(self) -> None:
        """Let go of every map and buffer; calls that are reading finish first."""
        # First, as whoever has the lock may wait for a store.
        for reader in list(self._readers):
            reader.close()
            reader.stop()
        self.shards.close()
        with self._lock:
            self.table = None

    def current(self) -> Table:
        """Return the table to read through; the caller holds it while it does."""
        if (table := self.table) is None:
            raise ValueError(f"{self.shards.root}: the dataset is closed; open it again")
        return table

    def locate(self, ids: Int64) -> tuple[Int64, Int64, object]:
        """Find the bytes of samples.

        Returns
        -------
        address, nbytes : ndarray of int64, shape (n,)
            Where each sample lies, and its length.
        held : object
            What must be referred to while the addresses are in use.
        """
        samples, held = self._locate(ids)
        return samples[0], samples[1], held

    def _locate(self, ids: Int64) -> tuple[Int64, object]:
        """Find the bytes of samples: `address` and `nbytes` are the rows of one array."""
        samples = np.empty((2, len(ids)), np.int64)
        table = self.current()
        code = self._find(ids, table, samples)
        held: list[object] = [table]
        if code > 0:
            with shared_deadline():
                code, held = self._locate_absent(ids, samples, held)
        if code < 0:
            self.damaged(int(ids[-1 - code]), "its offsets do not fit the shard")
        return samples, held

    def _locate_absent(
        self, ids: Int64, samples: Int64, held: list[object]
    ) -> tuple[int, list[object]]:
        """Find the bytes of samples some of which are not in memory, as their addresses say."""
        address, nbytes = samples[0], samples[1]
        absent = address == 0
        code = 1
        brought = self.shards.bring(ids[absent], nbytes[absent])
        if len(brought):
            table = self._ensure(brought)
            held = [table]
            code = self._find(ids, table, samples)
        if code > 0:
            absent = address == 0
            found = self.shards.borrow(ids[absent], nbytes[absent])
            address[absent], nbytes[absent], borrowed = found
            held += borrowed
        return code, held

    def _find(self, ids: Int64, table: Table, samples: Int64) -> int:
        """Fill in the addresses and lengths of samples; returns what `kernels.locate` does."""
        return kernels.read.for_size(len(ids))(
            kernels.LOCATE, ids, *self._lookup, table.place, samples,
            0, 0, _NO_COLUMNS, _NO_COLUMNS, _NO_SPANS,
        )  # fmt: skip

    def whole(self, ids: Int64) -> tuple[Int64, Int64, object]:
        """Find the bytes of samples as `locate` does, and ask for all pages that they lie in."""
        address, nbytes, held = self.locate(ids)
        self._cold.prepare(address, nbytes)
        return address, nbytes, held

    def read(
        self, ids: Int64, how: Split, fixed: Int64, is_prefetched: bool = False
    ) -> tuple[Int64, object]:
        """Copy the fixed columns of MDS samples, and find the bytes of variable ones.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        how : Split
        fixed : ndarray of int64
            ``how.fixed``, with the addresses of the outputs.
        is_prefetched : bool, default: False
            Whether `prefetch` has asked for the pages of these samples.

        Returns
        -------
        spans : ndarray of int64, shape (variable columns, 2, n)
            Address and length of each value.
        held : object
            What must be referred to while the addresses are in use.
        """
        n = len(ids)
        spans = np.empty((len(how.variable), 2, n), np.int64) if len(how.variable) else _NO_SPANS
        if is_prefetched or self._cold.warm:
            table = self.current()
            samples = np.empty((2, n), np.int64)
            code = kernels.read.for_size(n)(
                kernels.LOCATE | kernels.SPLIT, ids, *self._lookup, table.place, samples,
                how.nvariable, how.nfixed, fixed, how.variable, spans,
            )  # fmt: skip
            if not is_prefetched:
                self._cold.observe(n)
            if code == 0:
                return spans, table
        samples, held = self._locate(ids)
        self._cold.prepare(samples[0], samples[1])
        code = kernels.read.for_size(n)(
            kernels.SPLIT, ids, *self._lookup, _NO_PLACE, samples,
            how.nvariable, how.nfixed, fixed, how.variable, spans,
        )  # fmt: skip
        if code < 0:
            self.damaged(int(ids[-1 - code]), "the sizes of its columns do not add up to its own")
        return spans, held

    def parts(self, ids: Int64, runs: Int64) -> list[tuple[Int64, Int64, Bytes]]:
        """Read parts of samples that are not in memory, where that costs less than samples.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Samples of one size.
        runs : ndarray of int64, shape (k, 2)
            The first byte in a sample of each part, and the one after its last.

        Returns
        -------
        list of (rows, which, parts)
            Of each dataset, which of `ids` were read, and the row of `parts` that has theirs: the
            parts of a sample, end to end.
        """
        samples = np.empty((2, len(ids)), np.int64)
        if self._find(ids, self.current(), samples) <= 0:
            return []
        absent = np.flatnonzero(samples[0] == 0)
        shard_of = samples[1][absent]
        found: list[tuple[Int64, Int64, Bytes]] = []

        def read(part: RemotePart[RemoteShards], mine: Int64, shards: Int64) -> None:
            own = ids[mine] - part.first_sample
            rows, which, parts = part.shards.read_parts(own, shards - part.first_shard, runs)
            if len(rows):
                found.append((mine[rows], which, parts))

        from npstream.shards.readahead import do_all

        with shared_deadline():
            do_all(
                [
                    (
                        part.shards,
                        inherit_deadline(partial(read, part, absent[rows], shard_of[rows])),
                    )
                    for part, rows in self.shards.split(shard_of)
                ]
            )
        return found

    def is_resident(self, sample: int) -> bool:
        """Return True if a sample can be read without looking at the cache or the store."""
        starts = self.index.starts.data
        shard = bisect_right(starts, sample) - 1
        region = self.current().regions.get(shard)
        if region is None or not len(region.resident):
            return region is not None
        first, stop, chunks = starts[shard], starts[shard + 1], len(region.resident)
        chunk = ((sample - first + 1) * chunks - 1) // (stop - first)
        return bool(region.resident.data[chunk] == 1)

    def ahead(
        self,
        pieces: Iterable[T],
        ids_of: Callable[[T], Int64],
        step: int = 0,
        is_rowwise: bool = False,
    ) -> Iterator[tuple[T, bool]]:
        """Yield pieces of work, each when the bytes of the next ones were asked for.

        With each piece comes what `read` takes as `is_prefetched`.

        Parameters
        ----------
        pieces : iterable
        ids_of : callable
            Returns the samples that a piece is about.
        step : int
            Positive if samples come in rising order, negative if in falling, 0 if in no such.
        is_rowwise : bool
            Whether samples are fetched one by one, and not with their chunks.
        """
        if is_rowwise:
            yield from ((piece, False) for piece in self._by_rows(pieces, ids_of))
            return
        if not self.remotes:
            yield from self._prefetched(pieces, ids_of)
            return
        from npstream.shards.readahead import ReadAhead

        with ReadAhead(self.shards) as reader:
            self._readers.add(reader)
            fetched = self._fetched(pieces, ids_of, reader)
            yield from ((piece, False) for piece in self._passing(fetched, ids_of, step))

    def _by_rows(self, pieces: Iterable[T], ids_of: Callable[[T], Int64]) -> Iterator[T]:
        """Yield pieces whose samples are in memory, while those of the next ones are fetched."""
        window: deque[tuple[T, RowsOfPiece]] = deque()
        from npstream.shards.readahead import RowsAhead

        with RowsAhead(self.shards) as rows:
            self._readers.add(rows)
            for piece in pieces:
                window.append((piece, rows.ask(self._absent(ids_of(piece)))))
                while len(window) > 1 and (rows.nbytes >= ROWS_WINDOW or len(window) > LOOK_AHEAD):
                    yield from rows.taken(*window.popleft())
            for piece, asked in window:
                yield from rows.taken(piece, asked)

    def _fetched(
        self, pieces: Iterable[T], ids_of: Callable[[T], Int64], coming: ReadAhead
    ) -> Iterator[T]:
        """Yield pieces, the chunks of the next of which are being fetched."""
        window: deque[tuple[T, int]] = deque()
        most, asked = LOOK_AHEAD, 0
        for piece in pieces:
            nbytes = coming.ask(self._absent(ids_of(piece)))
            window.append((piece, nbytes))
            asked += nbytes
            while len(window) > 1 and (asked >= coming.window or len(window) > most):
                first, nbytes = window.popleft()
                yield first
                coming.start()
                asked -= nbytes
                # The window grows while what is in it has to be fetched.
                most = most + GROWTH if asked else LOOK_AHEAD
        coming.start()
        for piece, _ in window:
            yield piece

    def _passing(self, pieces: Iterable[T], ids_of: Callable[[T], Int64], step: int) -> Iterator[T]:
        """Yield pieces, and say of which shards in-order ones will need nothing more."""
        last = -1
        for piece in pieces:
            ids = ids_of(piece)
            if step and len(ids):
                shard = int(np.searchsorted(self.index.starts, ids[0], side="right")) - 1
                if last >= 0 and (shard - last) * step > 0:
                    self._pass(np.arange(last, shard, 1 if step > 0 else -1), shard)
                last = shard
            yield piece

    def _pass(self, finished: Int64, entered: int) -> None:
        """Record that a sequential reader has finished some shards, and reads another."""
        for part, rows in self.shards.split(finished):
            part.shards.finished((finished[rows] - part.first_shard).tolist())
        for part, _ in self.shards.split(np.array([entered])):
            part.shards.entered(entered - part.first_shard)

    def _prefetched(
        self, pieces: Iterable[T], ids_of: Callable[[T], Int64]
    ) -> Iterator[tuple[T, bool]]:
        window: deque[tuple[T, bool]] = deque()
        for piece in pieces:
            window.append((piece, self.prefetch(ids_of(piece))))
            if len(window) > 1:
                yield window.popleft()
        yield from window

    def prefetch(self, ids: Int64) -> bool:
        """Ask for the pages of samples, if pages have been missing, while others are read.

        Returns
        -------
        bool
            Whether the pages were asked for.
        """
        if not self._cold.expected:
            return False
        address, nbytes, _held = self.locate(ids)
        self._cold.prepare(address, nbytes)
        return True

    def _absent(self, ids: Int64) -> tuple[Int64, Int64]:
        """Return the samples that are not in memory, and their shards."""
        samples = np.empty((2, len(ids)), np.int64)
        if self._find(ids, self.current(), samples) <= 0:
            return _NONE, _NONE
        absent = samples[0] == 0
        return ids[absent], samples[1][absent]

    def region(self, shard: int) -> Region | None:
        """Return a shard in memory, all of it or in part; None if that would take a request."""
        region = self.current().regions.get(shard)
        if region is not None:
            return region
        if self.shards.buffered(shard) is None:
            return None
        region = self._ensure(np.array([shard])).regions.get(shard)
        return self.shards.open([shard]).get(shard) if region is None else region

    def damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""
        self.shards.damaged(sample, what, cause)

    # Bringing shards in

    def _ensure(self, shards: Int64) -> Table:
        """Bring shards into the table, as far as maps and memory allow, and return it."""
        with self._lock:
            table = self._without_stale(self.current(), shards.tolist())
            absent = [shard for shard in shards.tolist() if shard not in table.regions]
            sizes = {shard: self.shards.buffered(shard) for shard in absent}
            missing = [shard for shard in absent if sizes[shard] is not None]
            owned = {shard: size for shard, size in sizes.items() if size}
            table = self._make_room(table, sum(owned.values()))
            room = _budget(table) - sum(table.owned.values())
            maps = memory.map_budget()
            admitted = []
            for shard in missing:
                if owned.get(shard, 0) > room or (shard not in owned and maps < 2):
                    continue  # its samples are borrowed instead, one shard after the other
                admitted.append(shard)
                if shard in owned:
                    room -= owned[shard]
                else:
                    maps -= 2
            fresh = self.shards.open(admitted)  # which waits for no store
            for shard, region in fresh.items():
                table.regions[shard] = region
                if shard in owned:
                    table.owned[shard] = owned[shard]
                table.place[shard, 1:] = region.place[1:]
            with self._publish:
                pass  # releasing a lock orders the stores above before those below
            for shard, region in fresh.items():
                table.place[shard, 0] = region.place[0]
            return table

    def _without_stale(self, table: Table, shards: list[int]) -> Table:
        """Return a table without those of some shards that are to be opened anew."""
        stale = [
            shard
            for shard in shards
            if shard in table.regions and self.shards.is_stale(shard, table.regions[shard])
        ]
        return self._without(table, stale) if stale else table

    def _without(self, table: Table, shards: list[int]) -> Table:
        """Put a table without some shards in the place of the old one, and return it."""
        table = Table(table.place.copy(), dict(table.regions), dict(table.owned))
        for shard in shards:
            table.owned.pop(shard, None)
            del table.regions[shard]
            table.place[shard] = 0
        self.table = table
        return table

    def _make_room(self, table: Table, nbytes: int) -> Table:
        """Return a table with room for `nbytes` of buffers: the oldest leave, if they must."""
        if not (nbytes and table.owned):
            return table
        excess = sum(table.owned.values()) + nbytes - _budget(table)
        if excess <= 0:
            return table
        leaving = []
        for shard, held in table.owned.items():
            if excess > 0:
                excess -= held
                leaving.append(shard)
        return self._without(table, leaving)


_NONE: Int64 = np.empty(0, np.int64)
_NO_PLACE: Int64 = np.empty((0, 7), np.int64)
_NO_COLUMNS: Int64 = np.empty((0, 4), np.int64)
_NO_SPANS: Int64 = np.empty((0, 2, 0), np.int64)


def _budget(table: Table) -> int:
    """Return the bytes that decompressed shards may take: a quarter of what would be free."""
    return (memory.available_memory() + sum(table.owned.values())) // 4
