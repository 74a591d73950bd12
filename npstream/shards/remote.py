"""Provide `RemoteShards`, which reads shards in an object store through the cache.

Shards are cached in chunks: ranges of consecutive samples. A read of many samples of a chunk (a
dense read) fetches the chunk into the cache. A read of few samples (a sparse read) fetches their
bytes in at most two round trips: offsets, unless they are known, then samples. The third sparse
read in a chunk fetches the chunk.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import numpy as np

from npstream._core.typing import AnyArray, Bools, Bytes, Int64, Span
from npstream.cache.cache import Reservation, disk_bytes
from npstream.cache.downloads import Downloads, PieceCheck, PieceRange, piece_ranges
from npstream.cache.leases import is_leased
from npstream.errors import DAMAGED, IntegrityError, StorageError
from npstream.shards.base import FetchResult, RemotePart
from npstream.shards.local import LocalShards
from npstream.shards.point_reads import PointReader
from npstream.shards.snapshot import explain_replacement
from npstream.storage.coalesce import REQUEST_BYTES, parts_are_cheaper, transfer_cost
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
    from npstream.storage.traffic.record import Traffic

SMALL_CHUNK = 1 << 16
"""Any read of a chunk of at most this many bytes fetches the chunk."""

DENSE_DIVISOR = 4
"""A read of at least 1/4 of a chunk's bytes fetches the chunk."""

_ABSENT_ERRNOS = (errno.ENOENT, errno.EACCES)
"""Error numbers of an absent file.

Amazon and Google deny access to an absent file if the user may not list the bucket.
"""

BULK_SAMPLES = 1 << 10
"""A read of more samples fetches chunks that cost less than a request for each of their samples."""

SPARSE_READS = 2
"""Sparse reads in a chunk before the next one fetches the chunk."""

MIN_PARTS_COST = 1 << 20
"""The minimum cost of a read of parts, in bytes. It is divided among the chunks of the read.

Each read of parts adds its cost to the sparse reads of a chunk. With a higher minimum, fewer reads
of parts come before the read that fetches the chunk.
"""


class BackgroundReader(Protocol):
    """A read-ahead: fetches in the background for a read in progress."""

    def start(self) -> None:
        """Start to fetch: the first samples were read."""

    def close(self) -> None:
        """Empty the queue, and let transfers in flight complete."""


class RemoteShards(LocalShards):
    """The shards of a dataset in an object store.

    Parameters
    ----------
    store : RemoteStore
    files : RemoteFiles
        The dataset's files in the cache.
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
        self.remote_store = store
        self.files = files
        self.downloads = Downloads(store, files.cache)
        self.point_reader = PointReader(self, files, store)
        self._readers: WeakSet[BackgroundReader] = WeakSet()
        self._sparse_reads: defaultdict[Chunk, float] = defaultdict(float)
        self._verified: WeakSet[CachedFile] = WeakSet()

    @property
    def traffic(self) -> Traffic:
        """The counts of the store's requests."""
        return self.remote_store.traffic

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteShards, (self.remote_store, self.files, self.verify, self.snapshot)

    def close(self) -> None:
        """Stop all transfers, and release the files of the cache."""
        self.remote_store.stop()
        for reader in list(self._readers):
            reader.close()
        self.files.close()

    @property
    def remotes(self) -> Sequence[RemotePart[RemoteShards]]:
        """The datasets that are in object stores."""
        return (RemotePart(self, 0, 0),)

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[RemoteShards], Rows]]:
        """Yield this dataset with all rows of `shard_of`, unless there are none."""
        if len(shard_of):
            yield RemotePart(self, 0, 0), slice(None)

    # Which chunks a read needs

    def count_chunks(self, ids: Int64, shard_of: Int64) -> list[tuple[Chunk, int]]:
        """Return the distinct chunks in order of first use, each with its number of samples."""
        sample_keys, max_chunks = self.chunk_keys(ids, shard_of), self.files.max_chunks
        if (sample_keys == sample_keys[0]).all():
            return [(divmod(int(sample_keys[0]), max_chunks), len(sample_keys))]
        keys, first, counts = np.unique(sample_keys, return_index=True, return_counts=True)
        order = np.argsort(first)
        chunks = (divmod(key, max_chunks) for key in keys[order].tolist())
        return list(zip(chunks, counts[order].tolist(), strict=True))

    def chunk_keys(self, ids: Int64, shard_of: Int64 | None = None) -> Int64:
        """Return a number for the chunk of each sample: shard * max_chunks + chunk.

        Parameters
        ----------
        ids : ndarray of int64, shape (n,)
        shard_of : ndarray of int64, shape (n,), optional
            The shard of each sample, if the caller has it.
        """
        if shard_of is None:
            shard_of = np.searchsorted(self.index.starts, ids, side="right") - 1
        start, stop = self.index.starts[shard_of], self.index.starts[shard_of + 1]
        chunk_of = ((ids - start + 1) * self.files.chunks[shard_of] - 1) // (stop - start)
        return shard_of * self.files.max_chunks + chunk_of

    @explain_replacement
    def fetch(self, ids: Int64, shard_of: Int64) -> FetchResult:
        """Fetch the chunks of dense reads, and read the other samples on their own."""
        is_missing = np.ones(len(ids), bool)
        if self.point_reader.is_extended:  # a read-ahead may have put samples into memory
            is_missing = self.point_reader.lacks(ids)
        chunks = self._fetch_dense(ids[is_missing], shard_of[is_missing])
        shards = {shard for shard, _ in chunks if self.is_ready(shard)}
        is_single = np.ones(len(ids), bool)
        if shards:
            keys = [s * self.files.max_chunks + chunk for s, chunk in chunks if s in shards]
            is_single = ~(is_missing & np.isin(self.chunk_keys(ids, shard_of), keys))
        samples = np.zeros((2, len(ids)), np.int64)
        owners: list[object] = []
        if is_single.any():
            *copies, owners = self._read_samples(ids[is_single], shard_of[is_single])
            samples[:, is_single] = copies
            self._start_readers()
        return FetchResult(np.array(sorted(shards), np.int64), samples, owners)

    def _fetch_dense(self, ids: Int64, shard_of: Int64) -> list[Chunk]:
        """Fetch the chunks of dense reads; return the chunks to read from the cache."""
        if not len(ids):
            return []
        ready: list[Chunk] = []
        absent: list[Chunk] = []
        is_bulk = self.is_bulk(len(ids))
        for (shard, chunk), count in self.count_chunks(ids, shard_of):
            file = self.files.peek(shard)  # a sparse read creates no file
            if file is None or not self.files.is_readable(shard, chunk):
                is_dense = self.is_dense(shard, count, is_bulk)
                is_in_flight = is_leased(self.files.piece_key(shard, chunk))
                if is_in_flight and not is_dense and self._within_budget(shard, count):
                    continue  # single samples arrive sooner than the chunk
                if not (is_in_flight or is_dense or self._count_sparse_read((shard, chunk))):
                    continue
                file = self.files.chunk_file(shard, chunk)
                if file is None or not self.downloads.can_keep(file):
                    continue
                absent.append((shard, chunk))
                self._sparse_reads.pop((shard, chunk), None)
            self.files.touch(shard, chunk)
            ready.append((shard, chunk))
        if absent:
            self.fetch_chunks(absent)
        return ready

    def is_bulk(self, count: int) -> bool:
        """Return True if a read of `count` samples compares the costs of requests and of chunks."""
        # If the cache cannot hold all shards, fetched chunks would evict others.
        return count > BULK_SAMPLES and not self.files.splits_shards

    def is_dense(self, shard: int, count: int, is_bulk: bool = False) -> bool:
        """Return True if a read of `count` samples of a chunk fetches the chunk.

        `is_bulk` is the result of the method `is_bulk` for all samples of the read.
        """
        chunk_bytes, nbytes = self.chunk_bytes(shard), count * self.sample_bytes(shard)
        whole = self.index.compressed[shard] or self.verify is True or chunk_bytes <= SMALL_CHUNK
        if whole or DENSE_DIVISOR * nbytes >= chunk_bytes:
            return True
        # The store sends about this many bytes in the time that a request adds.
        request_bytes = self.traffic.merging(0).measured_gap or REQUEST_BYTES
        single_cost = nbytes + count * request_bytes
        return is_bulk and not parts_are_cheaper(single_cost, chunk_bytes + request_bytes)

    def _within_budget(self, shard: int, count: int) -> bool:
        """Return True if samples are read on their own although their chunk is being fetched."""
        nbytes = count * self.sample_bytes(shard)
        return self.point_reader.within_budget(count, nbytes, self.chunk_bytes(shard))

    def is_hot(self, chunk: Chunk) -> bool:
        """Return True if the next sparse read in a chunk fetches the chunk."""
        return self._sparse_reads.get(chunk, 0) >= SPARSE_READS

    def _count_sparse_read(self, chunk: Chunk) -> bool:
        """Count a sparse read in a chunk; return True if it fetches the chunk."""
        is_hot = self.is_hot(chunk)
        self._sparse_reads[chunk] += 1
        return is_hot

    # Parts of samples

    @explain_replacement
    def read_parts(
        self, ids: Int64, shard_of: Int64, byte_ranges: Int64
    ) -> tuple[Int64, Int64, Bytes]:
        """Read parts of samples, if that costs less than reading whole samples or chunks.

        Parameters
        ----------
        ids, shard_of : ndarray of int64, shape (n,)
            Samples of one size, and the shard of each.
        byte_ranges : ndarray of int64, shape (k, 2)
            The first byte of each part within a sample, and the byte after its last.

        Returns
        -------
        positions, rows : ndarray of int64, shape (m,)
            The positions in `ids` of the samples that were read, and the row of `parts` of each.
        parts : ndarray of uint8, shape (rows, bytes of the parts of a sample)
        """
        unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        is_chosen, cost_fractions = self._choose_parts(unique, shard_of[first], byte_ranges)
        parts = self.point_reader.read_parts(unique[is_chosen], byte_ranges)
        for chunk, fraction in cost_fractions.items():
            # Once the parts of a chunk have cost as much as the chunk, the next read fetches it.
            self._sparse_reads[chunk] += fraction * SPARSE_READS
        if is_chosen.any():
            self._start_readers()
        positions = np.flatnonzero(is_chosen[inverse])
        return positions, (np.cumsum(is_chosen) - 1)[inverse[positions]], parts

    def is_read_in_parts(self, ids: Int64, shard_of: Int64, byte_ranges: Int64) -> Bools:
        """Return True for each sample to read in parts.

        Parameters
        ----------
        ids, shard_of : ndarray of int64, shape (n,)
            Samples of one size in ascending order, and the shard of each.
        byte_ranges : ndarray of int64, shape (k, 2)
            The first byte of each part within a sample, and the byte after its last.
        """
        return self._choose_parts(ids, shard_of, byte_ranges)[0]

    def _choose_parts(
        self, ids: Int64, shard_of: Int64, byte_ranges: Int64
    ) -> tuple[Bools, dict[Chunk, float]]:
        """Choose the samples to read in parts.

        Returns
        -------
        is_chosen : ndarray of bool, shape (n,)
        cost_fractions : dict of Chunk to float
            The cost of the parts of each chunk, as a fraction of the chunk's bytes.
        """
        if self.verify is True:
            return np.zeros(len(ids), bool), {}
        keys, inverse, counts = np.unique(
            self.chunk_keys(ids, shard_of), return_inverse=True, return_counts=True
        )
        is_missing = self.point_reader.lacks_parts(ids, byte_ranges)
        cost, nbytes, whole_cost = self.point_reader.part_costs_by_chunk(
            ids[is_missing], byte_ranges, inverse[is_missing], len(keys)
        )
        shards, chunks = np.divmod(keys, self.files.max_chunks)
        chunk_bytes = self.index.nbytes[shards] // self.files.chunks[shards]
        is_dense = np.array(list(map(self.is_dense, shards.tolist(), counts.tolist())), bool)
        whole_cost = np.where(is_dense, transfer_cost(1, chunk_bytes), whole_cost)
        is_chosen = (DENSE_DIVISOR * nbytes < chunk_bytes) & parts_are_cheaper(cost, whole_cost)
        is_chosen &= (chunk_bytes > SMALL_CHUNK) & ~self.index.compressed[shards]
        costs = {}
        for k in np.flatnonzero(is_chosen).tolist():
            chunk = int(shards[k]), int(chunks[k])
            # A whole chunk is free if it is cached, or if its bytes are being fetched anyway.
            if self.is_hot(chunk) or self._is_cached_or_in_flight(chunk):
                is_chosen[k] = False
            elif cost[k]:
                costs[chunk] = int(cost[k]), int(chunk_bytes[k])
        # The minimum is at most half a chunk, so that one read of parts does not make it hot.
        min_cost = MIN_PARTS_COST // max(len(costs), 1)
        cost_fractions = {
            chunk: max(part_cost, min(min_cost, size // 2)) / size
            for chunk, (part_cost, size) in costs.items()
        }
        return is_chosen[inverse], cost_fractions

    def _is_cached_or_in_flight(self, chunk: Chunk) -> bool:
        """Return True if a chunk is in the cache, or is being fetched."""
        return self.files.is_readable(*chunk) or is_leased(self.files.piece_key(*chunk))

    def chunk_bytes(self, shard: int) -> int:
        """Return the average size of a shard's chunks in bytes."""
        return int(self.index.nbytes[shard]) // int(self.files.chunks[shard])

    def sample_bytes(self, shard: int) -> int:
        """Return the average size of a shard's samples in bytes."""
        return int(self.index.nbytes[shard]) // max(self.files.sample_count(shard), 1)

    def register_reader(self, reader: BackgroundReader) -> None:
        """Register a read-ahead, to start it after the first read and close it with the dataset."""
        self._readers.add(reader)

    @explain_replacement
    def fetch_column(self, sidecar_files: CachedRanges, spans: Iterable[Span]) -> None:
        """Fetch byte ranges of the side-car's files, which hold a column, into the cache."""
        sidecar_files.fetch(spans)

    # Reading ahead single samples

    def fetch_samples(self, ids: Int64, shard_of: Int64) -> None:
        """Read samples into the samples cache, except those whose chunks are readable."""
        keys, inverse = np.unique(self.chunk_keys(ids, shard_of), return_inverse=True)
        chunks = (divmod(key, self.files.max_chunks) for key in keys.tolist())
        is_absent = np.array([not self.files.is_readable(*chunk) for chunk in chunks])
        rows = is_absent[inverse]
        if rows.any():
            with shared_deadline():
                self.point_reader.read(ids[rows], shard_of[rows])

    def estimate_bytes(self, shard_of: Int64) -> int:
        """Return the bytes of samples, each estimated as the average of its shard."""
        counts = self.index.starts[shard_of + 1] - self.index.starts[shard_of]
        return int((self.index.nbytes[shard_of] // counts).sum())

    def _start_readers(self) -> None:
        """Start the read-aheads, which wait until the first samples were read."""
        for reader in list(self._readers):
            reader.start()

    def mark_finished(self, shards: Iterable[int]) -> None:
        """Record that a sequential reader has finished some shards."""
        for shard in shards:
            for file in self.files.opened_files(shard):
                self.files.cache.mark_finished(file)

    def mark_current(self, shard: int) -> None:
        """Record that a sequential reader is now in a shard."""
        for file in self.files.opened_files(shard):
            self.files.cache.touch(file)

    @explain_replacement
    def sidecar_column(self, name: str, start: int, stop: int) -> AnyArray:
        """Return a slice of a column of the side-car."""
        assert self.files.sidecar is not None
        values = self.files.sidecar.column(name, start, stop)
        self.traffic.count_use(values.nbytes)
        return values

    # Opening shards in the cache

    def is_ready(self, shard: int) -> bool:
        """Return True if a shard can be opened without a request to the store."""
        if self.files.strict and (file := self.files.peek(shard)) is not None:
            self._verify_whole(shard, file)
        return self.files.is_ready(shard)

    @explain_replacement
    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Open the shards that are in the cache, and skip the others; make no request.

        The caller may hold a lock, so this method must not wait for the store. The cache may have
        evicted a shard since it was fetched: that shard is skipped, too.
        """
        loaded: dict[int, LoadedShard] = {}
        for shard in shards:
            if not self.files.is_ready(shard):
                continue
            data, header = self.files.data_file(shard), self.files.header_file(shard)
            # New files may have replaced those that were ready.
            if data is not None and header is not None and data.resident[0] and header.resident[0]:
                opened = self._check_shard(shard, data.data, header.data, data.resident[1:])
                slots, chunk_files = self.files.chunk_slots(shard, data)
                loaded[shard] = opened._replace(slots=slots, chunk_files=chunk_files, file=data)
        return loaded

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Return True if the cache has evicted files since a shard was opened, or has new ones."""
        file = self.files.data_file(shard)
        if file is None or loaded.data.base is not file.data.base:
            return True
        return self.files.chunk_slots(shard, file)[1] != loaded.chunk_files

    def buffer_bytes(self, shard: int) -> int | None:
        """Return 0 if a shard is in the cache, otherwise None."""
        return 0 if self.is_ready(shard) else None

    def _fetch_whole(self, shard: int) -> tuple[Bytes, Bytes]:
        """Fetch a shard that is not in the cache, and check it against the side-car."""
        files = self.index.files(shard)
        data = header = self._fetch_file(files.data, files.zip_data, files.compression)
        if files.meta is not None:
            header = self._fetch_file(files.meta, files.zip_meta, files.compression)
        meta_check, check = self._piece_check(shard, meta=True), self._piece_check(shard)
        is_intact = meta_check is None or header is data or meta_check(0, header)
        if check is not None:
            is_intact = is_intact and self.files.is_intact(shard, data, header, check)
        if not is_intact:
            raise IntegrityError(
                f"{self.store.where(self.index.name(shard))}: its hashes are not those of the "
                f"side-car{DAMAGED}"
            )
        return data, header

    def _fetch_file(self, file: File, compressed: File | None, compression: str | None) -> Bytes:
        """Fetch a whole file, and decompress it."""
        try:
            return self._load_file(file, compressed, compression)
        except StorageError as error:
            # The cache directory of MosaicML Streaming has only the decompressed file.
            if compressed is None or error.errno not in _ABSENT_ERRNOS:
                raise
            return self._load_file(file, None, None)

    # Fetching

    def stop(self, threads: Iterable[threading.Thread]) -> None:
        """Make the requests of some threads fail, now and later."""
        self.remote_store.stop(threads)

    def fetch_chunks(self, chunks: Iterable[Chunk], lease: Lease | None = None) -> None:
        """Fetch chunks into the cache, if it can hold them.

        Parameters
        ----------
        chunks : iterable of Chunk
        lease : Lease, optional
            The lease that already has the chunks. For chunks of other leases, this method waits.

        Raises
        ------
        StorageError
        IntegrityError
        """
        with shared_deadline():
            self._fetch_chunks(chunks, lease)

    @explain_replacement
    def _fetch_chunks(self, chunks: Iterable[Chunk], lease: Lease | None) -> None:
        chunks_of: dict[int, list[int]] = {}
        for shard, chunk in chunks:
            chunks_of.setdefault(shard, []).append(chunk)
        compressed = [shard for shard in chunks_of if self.index.compressed[shard]]
        for shard in compressed:
            del chunks_of[shard]
        self._fetch_compressed(compressed, lease)
        self._mark_fetched({shard: [0] for shard in compressed})
        self._fetch_headers([shard for shard in chunks_of if not self.files.is_fixed(shard)])
        ranges = [r for item in chunks_of.items() for r in self._piece_ranges(*item)]
        self.downloads.fetch(ranges, lease)
        self._mark_fetched(chunks_of)
        for shard, shard_chunks in chunks_of.items():
            file = self.files.data_file(shard)
            if file is not None and (error := self._verify_whole(shard, file)) is not None:
                raise error
            if self.files.strict:
                for chunk in shard_chunks:  # verify also the chunks that other processes fetched
                    self.files.is_readable(shard, chunk)

    def _mark_fetched(self, chunks_of: dict[int, list[int]]) -> None:
        """Record when each new chunk is used next, by the iteration that uses the chunk first."""
        if not (orders := self.files.chunk_orders):
            return
        for shard, chunks in chunks_of.items():
            for chunk in chunks:
                uses = [order.epochs_until_use(shard, chunk) for order in orders]
                orders[uses.index(min(uses))].mark_fetched(shard, chunk)

    def _piece_ranges(self, shard: int, chunks: list[int]) -> list[PieceRange]:
        """Return the byte ranges to fetch for chunks of a shard."""
        file, bounds = self.files.data_file(shard), self.files.piece_bounds(shard)
        if file is None or bounds is None:
            return []
        name, check = self.index.files(shard).data.name, self._piece_check(shard)
        whole = PieceRange(file, name, 0, tuple(bounds.tolist()), check)
        header = [] if self.files.is_ready(shard) else [0]
        if not self.files.splits(shard):
            return piece_ranges(whole, header + [1 + chunk for chunk in sorted(chunks)])
        chunk_files = [(1 + c, self.files.chunk_file(shard, c)) for c in sorted(chunks)]
        parts = [
            whole.subrange(piece, piece + 1)._replace(file=chunk_file)
            for piece, chunk_file in chunk_files
            if chunk_file is not None
        ]
        return piece_ranges(whole, header) + parts

    def _piece_check(self, shard: int, meta: bool = False) -> PieceCheck | None:
        return None if self.verify is False else self.files.piece_check(shard, meta)

    def _fetch_headers(self, shards: Iterable[int]) -> None:
        """Fetch the headers and the offsets of shards."""
        missing = [shard for shard in shards if not self.is_ready(shard)]
        # Text formats: the meta files, which have the offsets.
        self.downloads.fetch([part for shard in missing for part in self._meta_ranges(shard)])
        # Shards with a known first byte of their samples: the bytes before it.
        begins = {
            shard: begin
            for shard in missing
            if (begin := self.files.samples_begin(shard)) is not None
        }
        self._fetch_data_headers(begins)
        # The other shards: first their first offset, then the bytes before their samples.
        shard_of = {
            (file.path, 0): shard
            for shard in missing
            if shard not in begins and (file := self.files.data_file(shard)) is not None
        }

        def fetch(pieces: list[PieceKey], lease: Lease) -> None:
            begins = self._read_begins([shard_of[piece] for piece in pieces])
            self._fetch_data_headers(begins, lease)

        self.downloads.fetch_once(shard_of, lambda piece: not self.is_ready(shard_of[piece]), fetch)

    def _fetch_data_headers(self, begins: dict[int, int], lease: Lease | None = None) -> None:
        """Fetch the headers of data files, given the first byte of each shard's samples."""
        parts = [part for shard in begins for part in self._data_header_ranges(shard, begins)]
        self.downloads.fetch(parts, lease)

    def _meta_ranges(self, shard: int) -> list[PieceRange]:
        meta, file = self.index.files(shard).meta, self.files.header_file(shard)
        if meta is None or file is None:
            return []
        return [
            PieceRange(file, meta.name, 0, (0, meta.nbytes), self._piece_check(shard, meta=True))
        ]

    def _data_header_ranges(self, shard: int, begins: dict[int, int]) -> list[PieceRange]:
        file, name = self.files.data_file(shard), self.index.files(shard).data.name
        if file is None or shard not in begins:
            return []
        return [PieceRange(file, name, 0, (0, begins[shard]), self._piece_check(shard))]

    def _read_begins(self, shards: list[int]) -> dict[int, int]:
        """Return the first byte of the samples of each shard, read from the store if unknown."""
        recorded = {shard: self.files.samples_begin(shard) for shard in shards}
        begins = {shard: begin for shard, begin in recorded.items() if begin is not None}
        # MDS: the number of samples, then the offsets, all uint32. The first offset is the begin.
        mds_shards = [s for s in shards if s not in begins and not self.files.has_meta(s)]
        spans = ((self.index.files(shard).data.name, 4, 4) for shard in mds_shards)
        for shard, first_offset in zip(mds_shards, self.remote_store.ranges(spans), strict=True):
            # Opening the shard detects a damaged offset. Here it only has to lie in the file.
            begin = int.from_bytes(first_offset, "little")
            begins[shard] = min(max(begin, 8), int(self.index.nbytes[shard]))
        return begins

    def _fetch_compressed(self, shards: Iterable[int], lease: Lease | None) -> None:
        """Fetch and decompress whole shards into the cache."""
        shard_of = {self.files.piece_key(shard, 0): shard for shard in shards}

        def fetch(pieces: list[PieceKey], new_lease: Lease) -> None:
            for piece in pieces:
                self._fetch_decompressed(shard_of[piece])
                new_lease.drop([piece])

        self.downloads.fetch_once(
            shard_of, lambda piece: not self.files.is_complete(shard_of[piece]), fetch, lease
        )

    def _fetch_decompressed(self, shard: int) -> None:
        """Fetch and decompress a shard, whose lease this thread has."""
        data, header = self.files.data_file(shard), self.files.header_file(shard)
        if data is None or header is None:
            return
        # The lock of the piece that is committed last covers both files: if there were two locks,
        # two processes could get one each.
        last_piece = [len(data.present) - 1]
        with data.lock(last_piece) as claim:
            if not claim.pieces:
                # Half of the timeout: if the other process was stopped, time remains to fetch here.
                timeout = self.remote_store.timeout / 2
                with self.remote_store.deadlines.track_wait(timeout) as seconds:
                    data.wait(last_piece, seconds)
            if not self.files.is_complete(shard):
                self._store_decompressed(shard, data, header)

    def _store_decompressed(self, shard: int, data: CachedFile, header: CachedFile) -> None:
        """Reserve disk space for a shard, then fetch, decompress and store it."""
        files = self.index.files(shard)
        sizes = [file.nbytes for file in (files.data, files.meta) if file is not None]
        with self.remote_store.deadlines.track_wait(self.remote_store.timeout) as seconds:
            reserved = self.files.cache.reserve(
                sum(disk_bytes(0, size) for size in sizes), (data, header),
                may_exceed=True, timeout=seconds,
            )  # fmt: skip
        if isinstance(reserved, Reservation):
            with reserved:
                if files.meta is not None:
                    content = self._fetch_file(files.meta, files.zip_meta, files.compression)
                    _store_file(header, content)
                _store_file(data, self._fetch_file(files.data, files.zip_data, files.compression))

    def _verify_whole(self, shard: int, file: CachedFile) -> IntegrityError | None:
        """Verify a whole shard once by its recorded hash, if its pieces have no hashes.

        Returns
        -------
        IntegrityError or None
            The error of a damaged shard, which is removed from the cache.
        """
        if file in self._verified or not file.present.all():
            return None
        if self._piece_check(shard) is None:
            files, header = self.index.files(shard), self.files.header_file(shard)
            try:
                self._verify(file.data, files.data, True)
                if files.meta is not None and header is not None and header.present[0]:
                    self._verify(header.data, files.meta, True)
            except IntegrityError as error:
                for damaged in (file, header):
                    if damaged is not None:
                        damaged.discard(range(len(damaged.present)))
                return error
        self._verified.add(file)
        return None

    # Reading samples that are not in the cache

    @explain_replacement
    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples on their own, or from whole shards in memory if that is impossible."""
        samples = self._read_samples(ids, shard_of)
        self._start_readers()
        return samples

    def _read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        # A compressed shard has no byte range for a sample, and there are no hashes of samples.
        is_whole = self.index.compressed[shard_of] | (self.verify is True)
        if not is_whole.any():
            return self.point_reader.read(ids, shard_of)
        address, nbytes = np.empty((2, len(ids)), np.int64)
        owners: list[object] = []
        if not is_whole.all():
            single = ~is_whole
            address[single], nbytes[single], owners = self.point_reader.read(
                ids[single], shard_of[single]
            )
        for shard in np.unique(shard_of[is_whole]).tolist():
            positions = np.flatnonzero(shard_of == shard)
            rows = ids[positions] - self.index.starts[shard]
            address[positions], nbytes[positions], buffer = self._copy_rows(
                shard, self._open_or_fetch(shard), rows
            )
            owners.append(buffer)
        return address, nbytes, owners

    def _open_or_fetch(self, shard: int) -> LoadedShard:
        """Return a whole shard in memory, from the cache or from the store."""
        loaded = self.open([shard]).get(shard) if self.files.is_complete(shard) else None
        if loaded is None or not loaded.resident.all():
            loaded = self._check_shard(shard, *self._fetch_whole(shard))
        return loaded


def _store_file(file: CachedFile, data: Bytes) -> None:
    """Store the whole content of a file in the cache."""
    if file.put(0, data.data):
        file.commit(range(len(file.present)))
