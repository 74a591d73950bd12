"""Shards in an object store: chunks in the cache, and single samples read exactly.

A read that covers much of a chunk fetches the chunk; one of few samples fetches their bytes, in
two round trips at most: offsets, unless those were read before, then samples. The third such read
in a chunk fetches it.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import numpy as np

from npstream._core.typing import AnyArray, Bools, Bytes, Int64, Span
from npstream.cache.cache import Reservation, allocated
from npstream.cache.downloads import Downloads, PieceCheck, PieceRange, runs
from npstream.cache.leases import is_leased
from npstream.errors import DAMAGED, IntegrityError, StorageError
from npstream.shards.base import RemotePart
from npstream.shards.local import LocalShards
from npstream.shards.point_reads import PointReader
from npstream.shards.snapshot import explain_replacement
from npstream.storage.coalesce import is_worthwhile, transfer_cost
from npstream.storage.deadlines import shared_deadline

if TYPE_CHECKING:
    import threading

    from npstream._core.arrays import Rows
    from npstream.cache.leases import Lease, PieceKey
    from npstream.cache.ranges import CachedRanges
    from npstream.cache.shard_file import CachedFile
    from npstream.formats.index import File
    from npstream.shards.base import Chunk, LoadedShard, Verify
    from npstream.shards.residency import RemoteFiles
    from npstream.shards.snapshot import Snapshot
    from npstream.storage.remote import RemoteStore

SMALL_CHUNK = 1 << 16
"""A chunk of no more bytes is fetched whole by any read."""

DENSE_FRACTION = 4
"""A read of one part in so many of a chunk fetches the chunk."""

_ABSENT = (errno.ENOENT, errno.EACCES)
"""Amazon and Google answer "denied" for an absent file if the user may not list the bucket."""

SPARSE_READS = 2
"""Sparse reads in a chunk; the next one fetches it."""

MIN_PART_READ = 1 << 20
"""Bytes that a read of parts counts for at least, as such reads may come one after the other."""


class BackgroundReader(Protocol):
    """What fetches in the background for a read in progress."""

    def start(self) -> None:
        """Begin to fetch: the first samples were read."""

    def close(self) -> None:
        """Fetch no more than what is being fetched."""


class RemoteShards(LocalShards):
    """The shards of a dataset in an object store.

    Parameters
    ----------
    store : RemoteStore
    files : RemoteFiles
        What is in the cache.
    verify : bool or str
    snapshot : Snapshot, optional
        The index as it was when the dataset was opened.
    """

    def __init__(
        self,
        store: RemoteStore,
        files: RemoteFiles,
        verify: Verify,
        snapshot: Snapshot | None = None,
    ) -> None:
        super().__init__(files.index, store, verify, snapshot)
        self.remote = store
        self.files = files
        self.downloads = Downloads(store, files.cache)
        self.point_reader = PointReader(self, files, store)
        self._readers: WeakSet[BackgroundReader] = WeakSet()
        self._sparse: defaultdict[Chunk, float] = defaultdict(float)
        self._verified: WeakSet[CachedFile] = WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteShards, (self.remote, self.files, self.verify, self.snapshot)

    def close(self) -> None:
        """Stop all that is being fetched, and let go of the cache's files."""
        self.remote.stop()
        for reader in list(self._readers):
            reader.close()
        self.files.close()

    @property
    def remotes(self) -> Sequence[RemotePart[RemoteShards]]:
        """The datasets that are in object stores."""
        return (RemotePart(self, 0, 0),)

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[RemoteShards], Rows]]:
        """Yield the datasets in object stores that samples belong to, and which samples do."""
        if len(shard_of):
            yield RemotePart(self, 0, 0), slice(None)

    # Which chunks a read needs

    def count_chunks(self, ids: Int64, shard_of: Int64) -> list[tuple[Chunk, int]]:
        """Return the chunks of samples in the order of their first use, with their counts."""
        key_of, most = self._chunk_keys(ids, shard_of), self.files.max_chunks
        if (key_of == key_of[0]).all():
            return [(divmod(int(key_of[0]), most), len(key_of))]
        keys, at, counts = np.unique(key_of, return_index=True, return_counts=True)
        order = np.argsort(at)
        chunks = (divmod(key, most) for key in keys[order].tolist())
        return list(zip(chunks, counts[order].tolist(), strict=True))

    def _chunk_keys(self, ids: Int64, shard_of: Int64) -> Int64:
        """Return a number for the chunk of each sample."""
        first, last = self.index.starts[shard_of], self.index.starts[shard_of + 1]
        chunk_of = ((ids - first + 1) * self.files.chunks[shard_of] - 1) // (last - first)
        return shard_of * self.files.max_chunks + chunk_of

    def chunk_keys(self, ids: Int64) -> Int64:
        """Return the chunks of samples: numbers whose quotient by `max_chunks` is the shard."""
        return self._chunk_keys(ids, np.searchsorted(self.index.starts, ids, side="right") - 1)

    @explain_replacement
    def fetch_shards(self, ids: Int64, shard_of: Int64) -> Int64:
        """Fetch the chunks that samples cover much of; return the shards that are in the cache."""
        if self.point_reader.is_extended:  # samples that were fetched one by one need no chunk
            lacking = self.point_reader.lacks(ids)
            ids, shard_of = ids[lacking], shard_of[lacking]
            if not len(ids):
                return ids
        ready: set[int] = set()
        absent: list[Chunk] = []
        for (shard, chunk), count in self.count_chunks(ids, shard_of):
            file = self.files.peek(shard)  # as a sparse read makes none
            if file is None or not self.files.is_readable(shard, chunk):
                is_dense = self.is_dense(shard, count)
                is_coming = is_leased(self.files.piece(shard, chunk))
                if is_coming and not is_dense and self._within_budget(shard, count):
                    continue
                if not (is_coming or is_dense or self._count_sparse_read((shard, chunk))):
                    continue
                file = self.files.data_file(shard)
                if file is None or not self.downloads.can_keep(file):
                    continue
                absent.append((shard, chunk))
                self._sparse.pop((shard, chunk), None)
            self.files.cache.touch(file)
            ready.add(shard)
        if absent:
            self.fetch(absent)
        return np.array([shard for shard in sorted(ready) if self.is_ready(shard)], np.int64)

    def is_dense(self, shard: int, count: int) -> bool:
        """Tell whether a read of so many samples of a chunk fetches the chunk."""
        nbytes = self.chunk_bytes(shard)
        whole = self.index.compressed[shard] or self.verify is True or nbytes <= SMALL_CHUNK
        return bool(whole) or DENSE_FRACTION * count * self.sample_bytes(shard) >= nbytes

    def _within_budget(self, shard: int, count: int) -> bool:
        """Tell whether so many samples of a chunk that is coming are read exactly."""
        nbytes = count * self.sample_bytes(shard)
        return self.point_reader.within_budget(count, nbytes, self.chunk_bytes(shard))

    def is_hot(self, chunk: Chunk) -> bool:
        """Tell whether there were enough sparse reads in a chunk for the next to fetch it."""
        return self._sparse.get(chunk, 0) >= SPARSE_READS

    def _count_sparse_read(self, chunk: Chunk) -> bool:
        """Count a sparse read in a chunk, and tell whether it is to fetch it."""
        is_hot = self.is_hot(chunk)
        self._sparse[chunk] += 1
        return is_hot

    # Parts of samples

    @explain_replacement
    def read_parts(self, ids: Int64, shard_of: Int64, runs: Int64) -> tuple[Int64, Int64, Bytes]:
        """Read parts of those samples for which that costs less than samples or chunks do.

        Parameters
        ----------
        ids, shard_of : ndarray of int64, shape (n,)
            Samples of one size, and their shards.
        runs : ndarray of int64, shape (k, 2)
            The first byte in a sample of each part, and the one after its last.

        Returns
        -------
        rows, which : ndarray of int64, shape (m,)
            Which of `ids` were read, and the row of `parts` that has theirs.
        parts : ndarray of uint8
            For each row the parts of a sample, end to end.
        """
        wanted, first, which = np.unique(ids, return_index=True, return_inverse=True)
        chosen, spent = self._choose_parts(wanted, shard_of[first], runs)
        parts = self.point_reader.read_parts(wanted[chosen], runs)
        for chunk, share in spent.items():
            self._sparse[chunk] += share * SPARSE_READS
        if chosen.any():
            self._start_readers()
        rows = np.flatnonzero(chosen[which])
        return rows, (np.cumsum(chosen) - 1)[which[rows]], parts

    def is_read_in_parts(self, ids: Int64, shard_of: Int64, runs: Int64) -> Bools:
        """Return which samples, of one size and rising, are read in part."""
        return self._choose_parts(ids, shard_of, runs)[0]

    def _choose_parts(
        self, ids: Int64, shard_of: Int64, runs: Int64
    ) -> tuple[Bools, dict[Chunk, float]]:
        """Return which samples are read in part, and what part of their chunks that costs."""
        if self.verify is True:
            return np.zeros(len(ids), bool), {}
        keys, which, counts = np.unique(
            self._chunk_keys(ids, shard_of), return_inverse=True, return_counts=True
        )
        lacks = self.point_reader.lacks_parts(ids, runs)
        cost, nbytes, whole = self.point_reader.part_costs_by_chunk(
            ids[lacks], runs, which[lacks], len(keys)
        )
        shards, numbers = np.divmod(keys, self.files.max_chunks)
        size = self.index.nbytes[shards] // self.files.chunks[shards]
        dense = np.array(list(map(self.is_dense, shards.tolist(), counts.tolist())), bool)
        whole = np.where(dense, transfer_cost(1, size), whole)
        chosen = (DENSE_FRACTION * nbytes < size) & is_worthwhile(cost, whole)
        chosen &= (size > SMALL_CHUNK) & ~self.index.compressed[shards]
        costs = {}
        for k in np.flatnonzero(chosen).tolist():
            chunk = int(shards[k]), int(numbers[k])
            # A chunk that is here, or coming, takes no more bytes.
            if self.is_hot(chunk) or self._has(chunk):
                chosen[k] = False
            elif cost[k]:
                costs[chunk] = int(cost[k]), int(size[k])
        least = MIN_PART_READ // max(len(costs), 1)
        spent = {
            chunk: max(paid, min(least, nbytes // 2)) / nbytes
            for chunk, (paid, nbytes) in costs.items()
        }
        return chosen[which], spent

    def _has(self, chunk: Chunk) -> bool:
        """Return True if a chunk is in the cache, or is being fetched."""
        return self.files.is_readable(*chunk) or is_leased(self.files.piece(*chunk))

    def chunk_bytes(self, shard: int) -> int:
        """Return about how many bytes a chunk of a shard has."""
        return int(self.index.nbytes[shard]) // int(self.files.chunks[shard])

    def sample_bytes(self, shard: int) -> int:
        """Return about how many bytes a sample of a shard has."""
        return int(self.index.nbytes[shard]) // max(self.files.sample_count(shard), 1)

    def register_reader(self, reader: BackgroundReader) -> None:
        """Register a reader, to start it after the first read, and to close it with the dataset."""
        self._readers.add(reader)

    @explain_replacement
    def fetch_column(self, files: CachedRanges, spans: Iterable[Span]) -> None:
        """Bring a part of a column of the side-car into the cache."""
        files.fetch(spans)

    # Reading ahead sample by sample

    def fetch_samples(self, ids: Int64, shard_of: Int64) -> None:
        """Bring samples whose chunks are not here into memory."""
        keys, which = np.unique(self._chunk_keys(ids, shard_of), return_inverse=True)
        most = self.files.max_chunks
        absent = np.array([not self.files.is_readable(*divmod(key, most)) for key in keys.tolist()])
        rows = absent[which]
        if rows.any():
            with one_read():
                self.point_reader.read(ids[rows], shard_of[rows])

    def estimate_bytes(self, shard_of: Int64) -> int:
        """Return about how many bytes samples of some shards have."""
        counts = self.index.starts[shard_of + 1] - self.index.starts[shard_of]
        return int((self.index.nbytes[shard_of] // counts).sum())

    def _start_readers(self) -> None:
        """Have those read ahead who held back until the first samples were read."""
        for reader in list(self._readers):
            reader.start()

    def mark_finished(self, shards: Iterable[int]) -> None:
        """Record that a sequential reader has finished some shards."""
        for shard in shards:
            for file in self.files.open_files(shard):
                self.files.cache.finished(file)

    def mark_current(self, shard: int) -> None:
        """Record that a sequential reader reads a shard now."""
        for file in self.files.open_files(shard):
            self.files.cache.touch(file)

    @explain_replacement
    def sidecar_column(self, name: str, start: int, stop: int) -> AnyArray:
        """Return a run of a column's values in the side-car."""
        assert self.files.sidecar is not None
        return self.files.sidecar.column(name, start, stop)

    # Opening what is in the cache

    def is_ready(self, shard: int) -> bool:
        """Tell whether a shard can be opened without a request to the store."""
        if self.files.strict and (file := self.files.peek(shard)) is not None:
            self._verify_whole(shard, file)
        return self.files.is_ready(shard)

    @explain_replacement
    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Open those of some shards that are in the cache, and make no request.

        The caller may hold a lock, and a shard may have left the cache since it was fetched.
        """
        found: dict[int, LoadedShard] = {}
        for shard in shards:
            if not self.files.is_ready(shard):
                continue
            data, head = self.files.data_file(shard), self.files.header_file(shard)
            # The files may be others by now, which replaced those that were ready.
            if data is not None and head is not None and data.resident[0] and head.resident[0]:
                found[shard] = self._check_shard(shard, data.data, head.data, data.resident[1:])
        return found

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Tell whether a shard has left the cache since it was opened."""
        file = self.files.data_file(shard)
        return file is None or loaded.data.base is not file.data.base

    def buffer_bytes(self, shard: int) -> int | None:
        """Return 0 if a shard is in the cache, and None if not."""
        return 0 if self.is_ready(shard) else None

    def _fetch_whole(self, shard: int) -> tuple[Bytes, Bytes]:
        """Return a shard that the cache does not have, and hold it against the side-car."""
        files = self.index.files(shard)
        data = head = self._fetch_file(files.data, files.zip_data, files.compression)
        if files.meta is not None:
            head = self._fetch_file(files.meta, files.zip_meta, files.compression)
        meta, check = self._piece_check(shard, meta=True), self._piece_check(shard)
        sound = meta is None or head is data or meta(0, head)
        if not (sound and (check is None or self.files.is_intact(shard, data, head, check))):
            raise IntegrityError(
                f"{self.store.where(self.index.name(shard))}: its hashes are not those of the "
                f"side-car{DAMAGED}"
            )
        return data, head

    def _fetch_file(self, raw: File, zipped: File | None, compression: str | None) -> Bytes:
        """Return a whole file, fetched and unpacked."""
        try:
            return self._load_file(raw, zipped, compression)
        except StorageError as error:
            # What Streaming keeps in its own cache has only the unpacked file.
            if zipped is None or error.errno not in _ABSENT:
                raise
            return self._load_file(raw, None, None)

    # Fetching

    def stop(self, threads: Iterable[threading.Thread]) -> None:
        """Let the requests of some threads fail, now and later."""
        self.remote.stop(threads)

    def fetch(self, chunks: Iterable[Chunk], lease: Lease | None = None) -> None:
        """Bring chunks into the cache, as far as it can hold them.

        Parameters
        ----------
        chunks : iterable of Chunk
        lease : Lease, optional
            Has chunks that were claimed before. Those that others claimed are waited for.

        Raises
        ------
        StorageError
        IntegrityError
        """
        with shared_deadline():
            self._fetch(chunks, lease)

    @explain_replacement
    def _fetch(self, chunks: Iterable[Chunk], lease: Lease | None) -> None:
        plain: dict[int, list[int]] = {}
        for shard, chunk in chunks:
            plain.setdefault(shard, []).append(chunk)
        packed = [shard for shard in plain if self.index.compressed[shard]]
        for shard in packed:
            del plain[shard]
        self._fetch_compressed(packed, lease)
        self._fetch_headers([shard for shard in plain if not self.files.is_fixed(shard)])
        parts = [part for shard, mine in plain.items() for part in self._piece_ranges(shard, mine)]
        self.downloads.fetch(parts, lease)
        for shard, mine in plain.items():
            file = self.files.data_file(shard)
            if file is not None and (error := self._verify_whole(shard, file)) is not None:
                raise error
            if self.files.strict:  # other processes may have brought some of them
                for chunk in mine:
                    self.files.is_readable(shard, chunk)

    def _piece_ranges(self, shard: int, chunks: list[int]) -> list[PieceRange]:
        """Return what to fetch for chunks of a shard."""
        file, bounds = self.files.data_file(shard), self.files.piece_bounds(shard)
        if file is None or bounds is None:
            return []
        name, check = self.index.files(shard).data.name, self._piece_check(shard)
        whole = PieceRange(file, name, 0, tuple(bounds.tolist()), check)
        head = [] if self.files.is_ready(shard) else [0]
        return runs(whole, head + [1 + chunk for chunk in sorted(chunks)])

    def _piece_check(self, shard: int, meta: bool = False) -> PieceCheck | None:
        return None if self.verify is False else self.files.piece_check(shard, meta)

    def _fetch_headers(self, shards: Iterable[int]) -> None:
        """Bring what stands before the samples of shards."""
        missing = [shard for shard in shards if not self.is_ready(shard)]
        self.downloads.fetch([part for shard in missing for part in self._meta_ranges(shard)])
        known = {
            shard: begin
            for shard in missing
            if (begin := self.files.samples_begin(shard)) is not None
        }
        self._fetch_prefixes(known)
        unknown = {
            (file.path, 0): shard
            for shard in missing
            if shard not in known and (file := self.files.data_file(shard)) is not None
        }

        def fetch(pieces: list[PieceKey], lease: Lease) -> None:
            self._fetch_prefixes(self._read_begins([unknown[piece] for piece in pieces]), lease)

        self.downloads.once(unknown, lambda piece: not self.is_ready(unknown[piece]), fetch)

    def _fetch_prefixes(self, begins: dict[int, int], lease: Lease | None = None) -> None:
        """Bring shards up to where their samples begin."""
        parts = [part for shard in begins for part in self._prefix_ranges(shard, begins)]
        self.downloads.fetch(parts, lease)

    def _meta_ranges(self, shard: int) -> list[PieceRange]:
        meta, file = self.index.files(shard).meta, self.files.header_file(shard)
        if meta is None or file is None:
            return []
        return [
            PieceRange(file, meta.name, 0, (0, meta.nbytes), self._piece_check(shard, meta=True))
        ]

    def _prefix_ranges(self, shard: int, begins: dict[int, int]) -> list[PieceRange]:
        file, name = self.files.data_file(shard), self.index.files(shard).data.name
        if file is None or shard not in begins:
            return []
        return [PieceRange(file, name, 0, (0, begins[shard]), self._piece_check(shard))]

    def _read_begins(self, shards: list[int]) -> dict[int, int]:
        """Return where the samples of shards begin."""
        known = {shard: self.files.samples_begin(shard) for shard in shards}
        begins = {shard: begin for shard, begin in known.items() if begin is not None}
        asked = [s for s in shards if s not in begins and not self.files.has_meta(s)]
        words = self.remote.ranges((self.index.files(shard).data.name, 4, 4) for shard in asked)
        for shard, word in zip(asked, words, strict=True):
            # A damaged one is found when the shard is opened; here it must but fit the file.
            begin = int.from_bytes(word, "little")
            begins[shard] = min(max(begin, 8), int(self.index.nbytes[shard]))
        return begins

    def _fetch_compressed(self, shards: Iterable[int], lease: Lease | None) -> None:
        """Bring compressed shards, unpacked."""
        shard_of = {self.files.piece(shard, 0): shard for shard in shards}

        def fetch(pieces: list[PieceKey], own: Lease) -> None:
            for piece in pieces:
                self._unpack(shard_of[piece])
                own.drop([piece])

        self.downloads.once(
            shard_of, lambda piece: not self.files.is_complete(shard_of[piece]), fetch, lease
        )

    def _unpack(self, shard: int) -> None:
        """Bring a compressed shard, unpacked, that no other thread is fetching."""
        files = self.index.files(shard)
        data, head = self.files.data_file(shard), self.files.header_file(shard)
        if data is None or head is None:
            return
        sizes = [file.nbytes for file in (files.data, files.meta) if file is not None]
        with self.remote.deadlines.track_wait(self.remote.timeout) as left:
            reserved = self.files.cache.reserve(
                sum(allocated(0, size) for size in sizes), (data, head),
                may_exceed=True, timeout=left,
            )  # fmt: skip
        if isinstance(reserved, Reservation):
            with reserved:
                self._fetch_unpacked(shard, data, head)

    def _fetch_unpacked(self, shard: int, data: CachedFile, head: CachedFile) -> None:
        files = self.index.files(shard)
        # Which is committed last: of several locks, two processes could get one each.
        last = [len(data.here) - 1]
        with data.lock(last) as claim:
            if not claim.pieces:
                with self.remote.deadlines.track_wait(self.remote.timeout / 2) as left:
                    data.wait(last, left)
            if self.files.is_complete(shard):
                return
            if files.meta is not None:
                _store_file(head, self._fetch_file(files.meta, files.zip_meta, files.compression))
            _store_file(data, self._fetch_file(files.data, files.zip_data, files.compression))

    def _verify_whole(self, shard: int, file: CachedFile) -> IntegrityError | None:
        """Verify a whole shard by its recorded hash, once, if its pieces have none.

        Returns
        -------
        IntegrityError or None
            What is wrong with it. It has been dropped then.
        """
        if file in self._verified or not file.here.all():
            return None
        if self._piece_check(shard) is None:
            files, head = self.index.files(shard), self.files.header_file(shard)
            try:
                self._verify(file.data, files.data, True)
                if files.meta is not None and head is not None and head.here[0]:
                    self._verify(head.data, files.meta, True)
            except IntegrityError as error:
                for damaged in (file, head):
                    if damaged is not None:
                        damaged.discard(range(len(damaged.here)))
                return error
        self._verified.add(file)
        return None

    # Reading what is not in the cache

    @explain_replacement
    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples exactly, or unpack the shards, which the cache cannot hold then."""
        found = self._read_samples(ids, shard_of)
        self._start_readers()
        return found

    def _read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        # Whole, as single samples cannot be verified.
        packed = self.index.compressed[shard_of] | (self.verify is True)
        if not packed.any():
            return self.point_reader.read(ids, shard_of)
        address, nbytes = np.empty((2, len(ids)), np.int64)
        held: list[object] = []
        if not packed.all():
            plain = ~packed
            address[plain], nbytes[plain], held = self.point_reader.read(
                ids[plain], shard_of[plain]
            )
        for shard in np.unique(shard_of[packed]).tolist():
            rows = np.flatnonzero(shard_of == shard)
            mine = ids[rows] - self.index.starts[shard]
            address[rows], nbytes[rows], arena = self._copy_rows(
                shard, self._open_or_fetch(shard), mine
            )
            held.append(arena)
        return address, nbytes, held

    def _open_or_fetch(self, shard: int) -> LoadedShard:
        """Return a whole shard in memory: out of the cache, or fetched."""
        loaded = self.open([shard]).get(shard) if self.files.is_complete(shard) else None
        if loaded is None or not loaded.resident.all():
            loaded = self._check_shard(shard, *self._fetch_whole(shard))
        return loaded


def _store_file(file: CachedFile, data: Bytes) -> None:
    """Put all of a file into the cache."""
    if file.put(0, data.data):
        file.commit(range(len(file.here)))
