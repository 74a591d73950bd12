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
from npstream.shards import kernels, paging
from npstream.shards.local import layouts_of
from npstream.storage.deadlines import inherit_deadline, shared_deadline

if TYPE_CHECKING:
    from npstream.shards.base import LoadedShard, RemotePart, Shards
    from npstream.shards.readahead import ChunkReadAhead, SampleReadAhead, SampleRequest
    from npstream.shards.remote import RemoteShards

T = TypeVar("T")

MAX_WINDOW_ITEMS = 128
"""Pieces of work whose bytes are asked for before the first of them is done, at most."""

SAMPLES_WINDOW_BYTES = 1 << 24
"""Bytes of single samples that are fetched ahead, about, but at least two pieces of work."""

WINDOW_GROWTH = 4
"""Pieces whose bytes are asked for while one is done, as long as some have to be fetched."""


@dataclass(slots=True)
class ShardTable:
    """Where the resident shards lie (see `npstream.shards.kernels`), and what keeps them there."""

    entries: Int64
    loaded: dict[int, LoadedShard] = field(default_factory=dict)
    owned: dict[int, int] = field(default_factory=dict)  # buffers, not maps: shard -> bytes


@dataclass(frozen=True, slots=True)
class SplitArguments:
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
        self._pages = paging.PagePrefetcher()
        self._readers: WeakSet[ChunkReadAhead | SampleReadAhead] = WeakSet()
        self._lookup = (self.index.starts, self.index.guide, self.index.shift)
        self.table: ShardTable | None = ShardTable(np.zeros((max(len(self.index), 1), 7), np.int64))

    def renew_locks(self) -> None:
        """Replace the locks, which a thread that a forked process does not have may have held."""
        self._lock = threading.RLock()
        self._publish_lock = threading.Lock()

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

    def current_table(self) -> ShardTable:
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
        table = self.current_table()
        code = self._locate_loaded(ids, table, samples)
        held: list[object] = [table]
        if code > 0:
            with shared_deadline():
                code, held = self._locate_absent(ids, samples, held)
        if code < 0:
            self.raise_damaged(int(ids[-1 - code]), "its offsets do not fit the shard")
        return samples, held

    def _locate_absent(
        self, ids: Int64, samples: Int64, held: list[object]
    ) -> tuple[int, list[object]]:
        """Find the bytes of samples some of which are not in memory, as their addresses say."""
        address, nbytes = samples[0], samples[1]
        absent = address == 0
        code = 1
        brought = self.shards.fetch_shards(ids[absent], nbytes[absent])
        if len(brought):
            table = self._load_shards(brought)
            held = [table]
            code = self._locate_loaded(ids, table, samples)
        if code > 0:
            absent = address == 0
            found = self.shards.read_samples(ids[absent], nbytes[absent])
            address[absent], nbytes[absent], borrowed = found
            held += borrowed
        return code, held

    def _locate_loaded(self, ids: Int64, table: ShardTable, samples: Int64) -> int:
        """Fill in the addresses and lengths of samples; returns what `kernels.locate` does."""
        return kernels.read.sized(len(ids))(
            kernels.LOCATE, ids, *self._lookup, table.entries, samples,
            0, 0, _NO_COLUMNS, _NO_COLUMNS, _NO_SPANS,
        )  # fmt: skip

    def locate_and_prefetch(self, ids: Int64) -> tuple[Int64, Int64, object]:
        """Find the bytes of samples as `locate` does, and ask for all pages that they lie in."""
        address, nbytes, held = self.locate(ids)
        self._pages.prefetch(address, nbytes)
        return address, nbytes, held

    def read(
        self, ids: Int64, how: SplitArguments, fixed: Int64, is_prefetched: bool = False
    ) -> tuple[Int64, object]:
        """Copy the fixed columns of MDS samples, and find the bytes of variable ones.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        how : SplitArguments
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
        if is_prefetched or self._pages.is_resident:
            table = self.current_table()
            samples = np.empty((2, n), np.int64)
            code = kernels.read.sized(n)(
                kernels.LOCATE | kernels.SPLIT, ids, *self._lookup, table.entries, samples,
                how.nvariable, how.nfixed, fixed, how.variable, spans,
            )  # fmt: skip
            if not is_prefetched:
                self._pages.count_rows(n)
            if code == 0:
                return spans, table
        samples, held = self._locate(ids)
        self._pages.prefetch(samples[0], samples[1])
        code = kernels.read.sized(n)(
            kernels.SPLIT, ids, *self._lookup, _NO_PLACE, samples,
            how.nvariable, how.nfixed, fixed, how.variable, spans,
        )  # fmt: skip
        if code < 0:
            self.raise_damaged(
                int(ids[-1 - code]), "the sizes of its columns do not add up to its own"
            )
        return spans, held

    def read_parts(self, ids: Int64, runs: Int64) -> list[tuple[Int64, Int64, Bytes]]:
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
        if self._locate_loaded(ids, self.current_table(), samples) <= 0:
            return []
        absent = np.flatnonzero(samples[0] == 0)
        shard_of = samples[1][absent]
        found: list[tuple[Int64, Int64, Bytes]] = []

        def read(part: RemotePart[RemoteShards], mine: Int64, shards: Int64) -> None:
            own = ids[mine] - part.first_sample
            rows, which, parts = part.shards.read_parts(own, shards - part.first_shard, runs)
            if len(rows):
                found.append((mine[rows], which, parts))

        from npstream.shards.readahead import run_all

        with one_read():
            run_all(
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
        loaded = self.current_table().loaded.get(shard)
        if loaded is None or not len(loaded.resident):
            return loaded is not None
        first, stop, chunks = starts[shard], starts[shard + 1], len(loaded.resident)
        chunk = ((sample - first + 1) * chunks - 1) // (stop - first)
        return bool(loaded.resident.data[chunk] == 1)

    def read_ahead(
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
            yield from ((piece, False) for piece in self._with_samples_ahead(pieces, ids_of))
            return
        if not self.remotes:
            yield from self._with_pages_ahead(pieces, ids_of)
            return
        from npstream.shards.readahead import ChunkReadAhead

        with ChunkReadAhead(self.shards) as reader:
            self._readers.add(reader)
            fetched = self._with_chunks_ahead(pieces, ids_of, reader)
            yield from ((piece, False) for piece in self._mark_progress(fetched, ids_of, step))

    def _with_samples_ahead(self, pieces: Iterable[T], ids_of: Callable[[T], Int64]) -> Iterator[T]:
        """Yield pieces whose samples are in memory, while those of the next ones are fetched."""
        window: deque[tuple[T, SampleRequest]] = deque()
        from npstream.shards.readahead import SampleReadAhead

        with SampleReadAhead(self.shards) as rows:
            self._readers.add(rows)
            for piece in pieces:
                window.append((piece, rows.request(self._absent(ids_of(piece)))))
                while len(window) > 1 and (
                    rows.nbytes >= SAMPLES_WINDOW_BYTES or len(window) > MAX_WINDOW_ITEMS
                ):
                    yield from rows.wait_for(*window.popleft())
            for piece, asked in window:
                yield from rows.wait_for(piece, asked)

    def _with_chunks_ahead(
        self, pieces: Iterable[T], ids_of: Callable[[T], Int64], coming: ChunkReadAhead
    ) -> Iterator[T]:
        """Yield pieces, the chunks of the next of which are being fetched."""
        window: deque[tuple[T, int]] = deque()
        most, asked = MAX_WINDOW_ITEMS, 0
        for piece in pieces:
            nbytes = coming.request(self._absent(ids_of(piece)))
            window.append((piece, nbytes))
            asked += nbytes
            while len(window) > 1 and (asked >= coming.window or len(window) > most):
                first, nbytes = window.popleft()
                yield first
                coming.start()
                asked -= nbytes
                # The window grows while what is in it has to be fetched.
                most = most + WINDOW_GROWTH if asked else MAX_WINDOW_ITEMS
        coming.start()
        for piece, _ in window:
            yield piece

    def _mark_progress(
        self, pieces: Iterable[T], ids_of: Callable[[T], Int64], step: int
    ) -> Iterator[T]:
        """Yield pieces, and say of which shards in-order ones will need nothing more."""
        last = -1
        for piece in pieces:
            ids = ids_of(piece)
            if step and len(ids):
                shard = int(np.searchsorted(self.index.starts, ids[0], side="right")) - 1
                if last >= 0 and (shard - last) * step > 0:
                    self._mark_shards(np.arange(last, shard, 1 if step > 0 else -1), shard)
                last = shard
            yield piece

    def _mark_shards(self, finished: Int64, entered: int) -> None:
        """Record that a sequential reader has finished some shards, and reads another."""
        for part, rows in self.shards.split(finished):
            part.shards.mark_finished((finished[rows] - part.first_shard).tolist())
        for part, _ in self.shards.split(np.array([entered])):
            part.shards.mark_current(entered - part.first_shard)

    def _with_pages_ahead(
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
        if not self._pages.is_active:
            return False
        address, nbytes, _held = self.locate(ids)
        self._pages.prefetch(address, nbytes)
        return True

    def _absent(self, ids: Int64) -> tuple[Int64, Int64]:
        """Return the samples that are not in memory, and their shards."""
        samples = np.empty((2, len(ids)), np.int64)
        if self._locate_loaded(ids, self.current_table(), samples) <= 0:
            return _NONE, _NONE
        absent = samples[0] == 0
        return ids[absent], samples[1][absent]

    def loaded_shard(self, shard: int) -> LoadedShard | None:
        """Return a shard in memory, all of it or in part; None if that would take a request."""
        loaded = self.current_table().loaded.get(shard)
        if loaded is not None:
            return loaded
        if self.shards.buffer_bytes(shard) is None:
            return None
        loaded = self._load_shards(np.array([shard])).loaded.get(shard)
        return self.shards.open([shard]).get(shard) if loaded is None else loaded

    def raise_damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""
        self.shards.raise_damaged(sample, what, cause)

    # Bringing shards in

    def _load_shards(self, shards: Int64) -> ShardTable:
        """Bring shards into the table, as far as maps and memory allow, and return it."""
        with self._lock:
            table = self._without_stale(self.current_table(), shards.tolist())
            absent = [shard for shard in shards.tolist() if shard not in table.loaded]
            sizes = {shard: self.shards.buffer_bytes(shard) for shard in absent}
            missing = [shard for shard in absent if sizes[shard] is not None]
            owned = {shard: size for shard, size in sizes.items() if size}
            table = self._evict_buffers(table, sum(owned.values()))
            room = _buffer_limit(table) - sum(table.owned.values())
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
            for shard, loaded in fresh.items():
                table.loaded[shard] = loaded
                if shard in owned:
                    table.owned[shard] = owned[shard]
                table.entries[shard, 1:] = loaded.entry[1:]
            with self._publish_lock:
                pass  # releasing a lock orders the stores above before those below
            for shard, loaded in fresh.items():
                table.entries[shard, 0] = loaded.entry[0]
            return table

    def _without_stale(self, table: ShardTable, shards: list[int]) -> ShardTable:
        """Return a table without those of some shards that are to be opened anew."""
        stale = [
            shard
            for shard in shards
            if shard in table.loaded and self.shards.is_stale(shard, table.loaded[shard])
        ]
        return self._without(table, stale) if stale else table

    def _without(self, table: ShardTable, shards: list[int]) -> ShardTable:
        """Put a table without some shards in the place of the old one, and return it."""
        table = ShardTable(table.entries.copy(), dict(table.loaded), dict(table.owned))
        for shard in shards:
            table.owned.pop(shard, None)
            del table.loaded[shard]
            table.entries[shard] = 0
        self.table = table
        return table

    def _evict_buffers(self, table: ShardTable, nbytes: int) -> ShardTable:
        """Return a table with room for `nbytes` of buffers: the oldest leave, if they must."""
        if not (nbytes and table.owned):
            return table
        excess = sum(table.owned.values()) + nbytes - _buffer_limit(table)
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


def _buffer_limit(table: ShardTable) -> int:
    """Return the bytes that decompressed shards may take: a quarter of what would be free."""
    return (memory.available_memory() + sum(table.owned.values())) // 4
