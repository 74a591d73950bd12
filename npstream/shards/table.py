"""Provide `Fetcher`, which brings shards into memory and locates samples in them.

A `ShardTable` has the addresses of the loaded shards. Kernels read it without the GIL. Shards enter
a table when they are first used, and never leave it. To evict shards, a new table replaces the old
one. The old table owns its maps and buffers, and is freed with the last call that reads through it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar
from weakref import WeakSet

import numpy as np

from npstream._core import memory
from npstream._core.fork import renew_in_child
from npstream._core.typing import AnyArray, Bytes, Int64
from npstream.shards import kernels, paging
from npstream.shards.local import layouts_of
from npstream.storage.deadlines import inherit_deadline, shared_deadline
from npstream.storage.traffic.events import report

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.shards.base import LoadedShard, RemotePart, Shards
    from npstream.shards.readahead import ChunkReadAhead, SampleReadAhead, SampleRequest
    from npstream.shards.remote import RemoteShards

T = TypeVar("T")

_INT64 = np.dtype(np.int64)  # NumPy takes a dtype in less time than a type

MAX_WINDOW_ITEMS = 128
"""Maximum number of items that read-ahead requests. For chunks, it grows by `WINDOW_GROWTH`."""

SAMPLES_WINDOW_BYTES = 1 << 24
"""Bytes of single samples to request ahead. Two items are requested even if they are larger."""

WINDOW_GROWTH = 4
"""Each item that is read adds this number to the maximum, while chunks must be fetched."""


MIN_LOADS = 8
"""At least this number of reads finds samples absent between two releases of evicted files."""

MIN_MAPS = 1 << 10
"""If fewer files can be mapped, files of chunks are released."""


class ShardTable:
    """The loaded shards, and their addresses for kernels.

    Parameters
    ----------
    index : Index
        The index of the shards.
    entries : ndarray of int64, shape (shards, 7)
        A row for each shard, which `npstream.shards.kernels` describes.
    loaded : dict of int to LoadedShard
        The loaded shards by number. They own the memory.
    buffer_bytes : dict of int to int
        The bytes of the shards that are in buffers instead of maps, oldest first.

    Attributes
    ----------
    addresses : ndarray of int64, shape (4,)
        The argument `table` of kernels. The table keeps the memory of these addresses.
    """

    __slots__ = ("addresses", "buffer_bytes", "entries", "index", "loaded")

    def __init__(
        self,
        index: Index,
        entries: Int64,
        loaded: dict[int, LoadedShard],
        buffer_bytes: dict[int, int],
    ) -> None:
        self.index, self.entries = index, entries
        self.loaded, self.buffer_bytes = loaded, buffer_bytes
        starts, guide, rows = map(memory.address_of, (index.starts, index.guide, entries))
        self.addresses = np.array([starts, guide, rows, index.shift], np.int64)


class MemoryUser(Protocol):
    """An object that uses the maps of loaded shards in other ways than by reads."""

    def close(self) -> None:
        """End the use of the maps."""


class Fetcher:
    """Loads the shards of one dataset, or of several, when they are first used.

    Parameters
    ----------
    shards : Shards
    """

    def __init__(self, shards: Shards[RemoteShards]) -> None:
        self.shards = shards
        self.index = shards.index
        self.remotes = tuple(shards.remotes)
        self.layouts = layouts_of(shards.index)
        self.reset_process_state()
        renew_in_child(self)
        self._pages = paging.PagePrefetcher()
        self._readers: WeakSet[ChunkReadAhead | SampleReadAhead] = WeakSet()
        self._users: WeakSet[MemoryUser] = WeakSet()
        self._loads_since_sweep = 0
        entries = np.zeros((max(len(self.index), 1), kernels.ENTRY_COLUMNS), np.int64)
        self.table: ShardTable | None = ShardTable(self.index, entries, {}, {})

    def reset_process_state(self) -> None:
        """Replace the locks in a forked process: threads of the parent may have held them."""
        self._lock = threading.RLock()
        self._publish_lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Fetcher, (self.shards,)

    def close(self) -> None:
        """Release all maps and buffers; calls that are reading finish first."""
        # This precedes taking the lock, because the thread that holds it may wait for a store.
        for reader in list(self._readers):
            reader.close()
            reader.stop()
        for user in list(self._users):
            user.close()
        self.shards.close()
        with self._lock:
            self.table = None

    def add_user(self, user: MemoryUser) -> None:
        """Call ``user.close()`` when this fetcher is closed, before it releases its maps."""
        self._users.add(user)

    def stored_name(self, name: str) -> str:
        """Return the name of a column in the shards and in the side-car."""
        return name

    def current_table(self) -> ShardTable:
        """Return the table to read through. The caller keeps a reference while it reads."""
        if (table := self.table) is None:
            raise ValueError(f"{self.shards.root}: the dataset is closed; open it again")
        return table

    def locate(self, ids: Int64) -> tuple[Int64, Int64, object]:
        """Return the addresses and lengths of samples.

        Returns
        -------
        address, nbytes : ndarray of int64, shape (n,)
            The address and the length of each sample.
        owner : object
            The owner of that memory. Keep it alive while the addresses are in use.
        """
        samples = np.empty((2, len(ids)), np.int64)
        owner = self._locate(ids, samples)
        return samples[0], samples[1], owner

    def _locate(self, ids: Int64, samples: Int64) -> object:
        """Fill the rows of `samples`: the addresses and the lengths of samples.

        Returns
        -------
        object
            The owner of that memory. Keep it alive while the addresses are in use.
        """
        table = self.current_table()
        status = self._locate_loaded(ids, table, samples)
        owners: list[object] = [table]
        if status > 0:
            with shared_deadline(), self._time_wait():
                status, owners = self._locate_absent(ids, samples, owners)
        if status < 0:
            self.raise_damaged(int(ids[-1 - status]), "its offsets do not fit the shard")
        if self.remotes:
            self.count_use(ids, samples[1])
        return owners

    @contextmanager
    def _time_wait(self) -> Iterator[None]:
        """Count the time in the block as a wait for the first store.

        The stores are awaited concurrently, so the sum over all stores counts this time once.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            for part in self.remotes[:1]:
                part.shards.traffic.count_wait(seconds)
                report("wait", seconds, 0, self.shards.root)

    def count_use(self, ids: Int64, nbytes: Int64) -> None:
        """Count the bytes of samples that a read returns, for the store of each sample."""
        if len(self.remotes) == 1 and self.remotes[0].shards is self.shards:
            self.remotes[0].shards.traffic.count_use(int(nbytes.sum()))
            return
        shard_of = np.searchsorted(self.index.starts, ids, side="right") - 1
        for part, rows in self.shards.split(shard_of):
            part.shards.traffic.count_use(int(nbytes[rows].sum()))

    def _locate_absent(
        self, ids: Int64, samples: Int64, owners: list[object]
    ) -> tuple[int, list[object]]:
        """Fetch and locate the absent samples; return the status and the owners of the memory.

        `_locate_loaded` describes the status and the absent samples.
        """
        absent = np.flatnonzero(samples[0] == 0)
        fetched = self.shards.fetch(ids[absent], shard_of=samples[1, absent])
        if len(fetched.shards):
            table = self._load_shards(fetched.shards)
            owners = [table]
            status = self._locate_loaded(ids, table, samples)
            if status <= 0:
                return status, owners
        elif self.remotes:
            # On a full disk nothing is loaded. Evicted files must nevertheless be released.
            with self._lock:
                self._release_files(self.current_table())
        is_read = fetched.samples[0] != 0
        samples[:, absent[is_read]] = fetched.samples[:, is_read]
        owners += fetched.owners
        absent = np.flatnonzero(samples[0] == 0)
        if len(absent):  # the limits of maps and buffers exclude their shard, or it was evicted
            *copies, new_owners = self.shards.read_samples(ids[absent], samples[1, absent])
            samples[:, absent] = copies
            owners += new_owners
        return 0, owners

    def _locate_loaded(self, ids: Int64, table: ShardTable, samples: Int64) -> int:
        """Locate samples in the table's shards.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        table : ShardTable
        samples : ndarray of int64, shape (2, n)
            Filled with the addresses and the lengths. If a sample is not in memory (absent), its
            address is 0, and its shard number takes the place of its length.

        Returns
        -------
        int
            The number of absent samples, or -1 - k if the offsets of sample k are damaged.
        """
        return kernels.read.for_size(len(ids))(
            kernels.LOCATE, ids, table.addresses, _NO_COLUMNS, samples.reshape(-1)
        )

    def use_counter(self, shard: int) -> Callable[[], None]:
        """Return a function that counts the use of a sample, with the mean size of its shard."""
        starts = self.index.starts
        samples = int(starts[shard + 1] - starts[shard])
        nbytes = int(self.index.nbytes[shard]) // max(samples, 1)
        for part, _ in self.shards.split(np.array([shard])):
            return partial(part.shards.traffic.count_use, nbytes)
        return _count_nothing

    def locate_and_prefetch(self, ids: Int64) -> tuple[Int64, Int64, object]:
        """Locate samples as `locate` does, and prefetch their pages."""
        address, nbytes, owner = self.locate(ids)
        self._pages.prefetch(address, nbytes)
        return address, nbytes, owner

    def read(
        self,
        ids: Int64,
        columns: Int64,
        variable: int,
        outputs: Collection[AnyArray] = (),
        is_prefetched: bool = False,
    ) -> tuple[Int64, object]:
        """Copy the fixed columns of MDS samples, and locate the values of variable columns.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        columns : ndarray of int64, shape (1 + fixed columns + variable columns, 3)
            The argument `columns` of the kernel `read`.
        variable : int
            The number of variable columns to read.
        outputs : collection of ndarray, default: ()
            The C-contiguous array to fill of each fixed column.
        is_prefetched : bool, default: False
            True if `prefetch` has requested the pages of these samples.

        Returns
        -------
        words : ndarray of int64
            The addresses and the lengths of the samples, and then of the values of each variable
            column; `kernels.value_spans` returns them.
        owner : object
            The owner of that memory. Keep it alive while the addresses are in use.
        """
        n = len(ids)
        size = 2 * n * (1 + variable)
        words = np.empty(size + len(outputs), _INT64)
        for k, output in enumerate(outputs, size):
            words[k] = memory.writable_address(output)
        kernel = kernels.read.for_size(n)
        if is_prefetched or self._pages.is_resident:
            table = self.current_table()
            status = kernel(kernels.BOTH, ids, table.addresses, columns, words)
            if not is_prefetched:
                self._pages.count_rows(n)
            if status == 0:
                if self.remotes:
                    self.count_use(ids, words[n : 2 * n])
                return words, table
        samples = words[: 2 * n].reshape(2, n)
        owner = self._locate(ids, samples)
        self._pages.prefetch(samples[0], samples[1])
        status = kernel(kernels.SPLIT, ids, _NO_TABLE, columns, words)
        if status < 0:
            sample = int(ids[-1 - status])
            self.raise_damaged(sample, "the sizes of its columns do not add up to its length")
        return words, owner

    def read_parts(self, ids: Int64, byte_ranges: Int64) -> list[tuple[Int64, Int64, Bytes]]:
        """Read parts of samples that are not in memory, if that costs less than whole samples.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
            Samples of one size.
        byte_ranges : ndarray of int64, shape (k, 2)
            The first byte of each part within a sample, and the byte after its last.

        Returns
        -------
        list of (positions, rows, parts)
            For each dataset: the positions in `ids` of the samples that were read, and the row of
            `parts` of each. A row has the parts of a sample, one after the other.
        """
        samples = np.empty((2, len(ids)), np.int64)
        if self._locate_loaded(ids, self.current_table(), samples) <= 0:
            return []
        absent = np.flatnonzero(samples[0] == 0)
        shard_of = samples[1][absent]  # see `_locate_loaded`
        results: list[tuple[Int64, Int64, Bytes]] = []

        def read(part: RemotePart[RemoteShards], positions: Int64, shards: Int64) -> None:
            part_ids = ids[positions] - part.first_sample
            is_read, rows, parts = part.shards.read_parts(
                part_ids, shards - part.first_shard, byte_ranges
            )
            if len(is_read):
                part.shards.traffic.count_use(len(is_read) * parts.shape[1])
                results.append((positions[is_read], rows, parts))

        from npstream.shards.readahead import run_all

        with shared_deadline(), self._time_wait():
            run_all(
                [
                    (
                        part.shards,
                        inherit_deadline(partial(read, part, absent[rows], shard_of[rows])),
                    )
                    for part, rows in self.shards.split(shard_of)
                ]
            )
        return results

    def is_resident(self, sample: int) -> bool:
        """Return True if a sample is in memory, so that neither the cache nor a store is needed."""
        starts = self.index.starts.data
        shard = bisect_right(starts, sample) - 1
        loaded = self.current_table().loaded.get(shard)
        if loaded is None or not len(loaded.resident):
            return loaded is not None
        first, stop, chunks = starts[shard], starts[shard + 1], len(loaded.resident)
        chunk = ((sample - first + 1) * chunks - 1) // (stop - first)
        return loaded.is_resident(chunk)

    def read_ahead(
        self,
        items: Iterable[T],
        ids_of: Callable[[T], Int64],
        step: int = 0,
        is_rowwise: bool = False,
    ) -> Iterator[tuple[T, bool]]:
        """Yield items while the samples of the next ones are being fetched.

        Yields pairs (item, is_prefetched). Pass `is_prefetched` to `read` with the item's samples.

        Parameters
        ----------
        items : iterable
        ids_of : callable
            Returns the samples of an item.
        step : int
            Positive if samples are in ascending order, negative if in descending, otherwise 0.
        is_rowwise : bool
            True to fetch single samples instead of their chunks.
        """
        if is_rowwise:
            yield from ((item, False) for item in self._read_ahead_samples(items, ids_of))
            return
        if not self.remotes:
            yield from self._read_ahead_pages(items, ids_of)
            return
        from npstream.shards.readahead import ChunkReadAhead

        with ChunkReadAhead(self.shards) as reader:
            self._readers.add(reader)
            items = self._read_ahead_chunks(items, ids_of, reader)
            yield from ((item, False) for item in self._mark_progress(items, ids_of, step))

    def _read_ahead_samples(self, items: Iterable[T], ids_of: Callable[[T], Int64]) -> Iterator[T]:
        """Yield items once their samples are in memory, while the next samples are fetched."""
        window: deque[tuple[T, SampleRequest]] = deque()
        from npstream.shards.readahead import SampleReadAhead

        with SampleReadAhead(self.shards) as reader:
            self._readers.add(reader)
            for item in items:
                window.append((item, reader.request(self._find_absent(ids_of(item)))))
                while len(window) > 1 and (
                    reader.nbytes >= SAMPLES_WINDOW_BYTES or len(window) > MAX_WINDOW_ITEMS
                ):
                    yield from reader.wait_for(*window.popleft())
            for item, request in window:
                yield from reader.wait_for(item, request)

    def _read_ahead_chunks(
        self, items: Iterable[T], ids_of: Callable[[T], Int64], reader: ChunkReadAhead
    ) -> Iterator[T]:
        """Yield items while the chunks of the next ones are being fetched."""
        window: deque[tuple[T, int]] = deque()
        max_items, window_bytes, done = MAX_WINDOW_ITEMS, 0, 0
        for item in items:
            nbytes = reader.request(self._find_absent(ids_of(item)))
            window.append((item, nbytes))
            window_bytes += nbytes
            while len(window) > 1 and (
                window_bytes >= reader.max_bytes
                or len(window) > min(max_items, reader.max_items(done))
            ):
                first, nbytes = window.popleft()
                yield first
                reader.start()
                done += 1
                window_bytes -= nbytes
                # The window grows while its items must be fetched.
                max_items = max_items + WINDOW_GROWTH if window_bytes else MAX_WINDOW_ITEMS
        reader.start()
        yield from (item for item, _ in window)

    def _mark_progress(
        self, items: Iterable[T], ids_of: Callable[[T], Int64], step: int
    ) -> Iterator[T]:
        """Yield items, and record which shards a sequential reader has finished."""
        previous_shard, starts = -1, self.index.starts.data
        for item in items:
            ids = ids_of(item)
            if step and len(ids):
                shard = bisect_right(starts, int(ids[0])) - 1
                if previous_shard >= 0 and (shard - previous_shard) * step > 0:
                    finished_shards = np.arange(previous_shard, shard, 1 if step > 0 else -1)
                    self._mark_shards(finished_shards, shard)
                previous_shard = shard
            yield item

    def _mark_shards(self, finished_shards: Int64, current_shard: int) -> None:
        """Record which shards a sequential reader has finished, and in which one it is now."""
        for part, rows in self.shards.split(finished_shards):
            part.shards.mark_finished((finished_shards[rows] - part.first_shard).tolist())
        for part, _ in self.shards.split(np.array([current_shard])):
            part.shards.mark_current(current_shard - part.first_shard)

    def _read_ahead_pages(
        self, items: Iterable[T], ids_of: Callable[[T], Int64]
    ) -> Iterator[tuple[T, bool]]:
        """Yield pairs (item, is_prefetched), after requesting the pages of the next item."""
        window: deque[tuple[T, bool]] = deque()
        for item in items:
            window.append((item, self.prefetch(ids_of(item))))
            if len(window) > 1:
                yield window.popleft()
        yield from window

    def prefetch(self, ids: Int64) -> bool:
        """Prefetch the pages of samples, if pages were missing in recent reads.

        Returns
        -------
        bool
            True if the pages were prefetched.
        """
        if not self._pages.is_active:
            return False
        address, nbytes, _owner = self.locate(ids)
        self._pages.prefetch(address, nbytes)
        return True

    def _find_absent(self, ids: Int64) -> tuple[Int64, Int64]:
        """Return the samples that are not in memory, and the shard of each."""
        samples = np.empty((2, len(ids)), np.int64)
        if self._locate_loaded(ids, self.current_table(), samples) <= 0:
            return _NO_SAMPLES, _NO_SAMPLES
        is_absent = samples[0] == 0
        return ids[is_absent], samples[1][is_absent]  # see `_locate_loaded`

    def loaded_shard(self, shard: int) -> LoadedShard | None:
        """Return a shard; some of its chunks may not be in memory.

        Returns
        -------
        LoadedShard or None
            None if opening the shard takes a request to a store.
        """
        loaded = self.current_table().loaded.get(shard)
        if loaded is not None:
            return loaded
        if self.shards.buffer_bytes(shard) is None:
            return None
        loaded = self._load_shards(np.array([shard])).loaded.get(shard)
        if loaded is None:  # the limits of maps and buffers exclude it from the table
            return self.shards.open([shard]).get(shard)
        return loaded

    def raise_damaged(self, sample: int, reason: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError with the location of a sample and the reason."""
        self.shards.raise_damaged(sample, reason, cause)

    # Loading shards

    def _load_shards(self, shards: Int64) -> ShardTable:
        """Load shards into the table, within the limits of maps and buffers; return the table."""
        with self._lock:
            table = self._remove_stale(self._release_files(self.current_table()), shards.tolist())
            absent = [shard for shard in shards.tolist() if shard not in table.loaded]
            sizes = {shard: self.shards.buffer_bytes(shard) for shard in absent}
            openable = [shard for shard in absent if sizes[shard] is not None]
            buffer_bytes = {shard: size for shard, size in sizes.items() if size}
            table = self._evict_buffers(table, sum(buffer_bytes.values()))
            free_bytes = _buffer_limit(table) - sum(table.buffer_bytes.values())
            free_maps = memory.map_budget()
            admitted = []
            for shard in openable:
                needs_map = shard not in buffer_bytes
                exceeds_maps = needs_map and free_maps < _MAX_MAPS_PER_SHARD
                if buffer_bytes.get(shard, 0) > free_bytes or exceeds_maps:
                    continue  # `Shards.read_samples` copies its samples instead
                admitted.append(shard)
                if needs_map:
                    free_maps -= _MAX_MAPS_PER_SHARD
                else:
                    free_bytes -= buffer_bytes[shard]
            opened = self.shards.open(admitted)  # makes no request to a store
            for shard, loaded in opened.items():
                table.loaded[shard] = loaded
                if shard in buffer_bytes:
                    table.buffer_bytes[shard] = buffer_bytes[shard]
                table.entries[shard, 1:] = loaded.entry[1:]
            with self._publish_lock:
                pass  # releasing a lock orders the memory writes above before those below
            for shard, loaded in opened.items():
                table.entries[shard, 0] = loaded.entry[0]
            return table

    def buffered_shards(self) -> frozenset[int]:
        """Return the shards that are in buffers instead of maps."""
        return frozenset(self.current_table().buffer_bytes)

    def release_buffers(self, sample: int, kept_shards: frozenset[int]) -> None:
        """Release the buffers of the shards before a sample's shard, except `kept_shards`."""
        stop = bisect_right(self.index.starts.data, sample) - 1
        with self._lock:
            table = self.current_table()
            finished = [k for k in table.buffer_bytes if k < stop and k not in kept_shards]
            if finished:
                self._remove_shards(table, finished)

    def _release_files(self, table: ShardTable) -> ShardTable:
        """Release files of chunks; return a table without the shards that used them.

        If few more files can be mapped, this releases half of all files of chunks. Otherwise, it
        releases evicted files now and then: they take disk space as long as they are mapped.
        """
        self._loads_since_sweep += 1
        if self.remotes and memory.map_budget() < MIN_MAPS:
            for part in self.remotes:
                part.shards.files.release_chunk_files()
            released = [shard for shard, loaded in table.loaded.items() if loaded.chunk_files]
        elif self._loads_since_sweep > max(MIN_LOADS, len(table.loaded) // 64):
            self._loads_since_sweep = 0
            for part in self.remotes:
                part.shards.files.release_evicted_files()
            released = [shard for shard, loaded in table.loaded.items() if loaded.has_evicted_files]
        else:
            return table
        return self._remove_shards(table, released) if released else table

    def _remove_stale(self, table: ShardTable, shards: list[int]) -> ShardTable:
        """Remove those of `shards` that must be opened again; return the table without them."""
        stale = [
            shard
            for shard in shards
            if shard in table.loaded and self.shards.is_stale(shard, table.loaded[shard])
        ]
        return self._remove_shards(table, stale) if stale else table

    def _remove_shards(self, table: ShardTable, shards: list[int]) -> ShardTable:
        """Replace the table by one without `shards`, and return it."""
        loaded, buffer_bytes = dict(table.loaded), dict(table.buffer_bytes)
        table = ShardTable(self.index, table.entries.copy(), loaded, buffer_bytes)
        for shard in shards:
            table.buffer_bytes.pop(shard, None)
            del table.loaded[shard]
            table.entries[shard] = 0
        self.table = table
        return table

    def _evict_buffers(self, table: ShardTable, nbytes: int) -> ShardTable:
        """Return a table that can add `nbytes` of buffers: the oldest are evicted if necessary."""
        if not (nbytes and table.buffer_bytes):
            return table
        excess = sum(table.buffer_bytes.values()) + nbytes - _buffer_limit(table)
        if excess <= 0:
            return table
        evicted = []
        for shard, size in table.buffer_bytes.items():
            if excess > 0:
                excess -= size
                evicted.append(shard)
        return self._remove_shards(table, evicted)


class RenamedFetcher(Fetcher):
    """A view of a fetcher with renamed columns. Both share one table of loaded shards.

    Parameters
    ----------
    fetcher : Fetcher
    names : mapping of str to str
        Name of a column in `fetcher` -> new name. Omitted columns cannot be read by name.
    """

    def __init__(self, fetcher: Fetcher, names: Mapping[str, str]) -> None:
        self._fetcher, self._names = fetcher, dict(names)
        self._old_names = {new: old for old, new in names.items()}
        self.index = fetcher.index.renamed(names)
        self.layouts = layouts_of(self.index)
        self.shards, self.remotes = fetcher.shards, fetcher.remotes
        self._pages, self._readers = fetcher._pages, fetcher._readers

    def __getattr__(self, name: str) -> Any:
        if name == "_fetcher":  # not set before `__init__`: a lookup would recurse without end
            raise AttributeError(name)
        return getattr(self._fetcher, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return RenamedFetcher, (self._fetcher, self._names)

    @property
    def table(self) -> ShardTable | None:
        """The current table of the original fetcher, which replaces its table to evict shards."""
        return self._fetcher.table

    @table.setter
    def table(self, table: ShardTable | None) -> None:
        self._fetcher.table = table

    def stored_name(self, name: str) -> str:
        """Return the name of a column in the shards and in the side-car."""
        return self._fetcher.stored_name(self._old_names[name])


_MAX_MAPS_PER_SHARD = 2
"""A shard has at most two maps: of its data file and of its meta file."""


def _count_nothing() -> None:
    """No-op: only the samples of remote datasets are counted."""


_NO_SAMPLES: Int64 = np.empty(0, np.int64)
_NO_TABLE: Int64 = np.zeros(4, np.int64)
_NO_COLUMNS: Int64 = np.empty((0, 3), np.int64)


def _buffer_limit(table: ShardTable) -> int:
    """Return the maximum bytes of buffers: 1/4 of the sum of free memory and present buffers."""
    return (memory.available_memory() + sum(table.buffer_bytes.values())) // 4
