"""Provide `RemoteFiles`: the cached files of a remote dataset, and the byte ranges of their pieces.

Piece 0 of a data file is its header, the bytes before the samples. Piece 1 + k is chunk k.

If the cache cannot hold the whole dataset, each chunk has a file of its own, so that each can be
evicted alone. Such a file has the format and the size of the data file, but only piece 1 + k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from npstream._core.memory import address_of
from npstream._core.typing import Bytes, Int64
from npstream.cache.cache import disk_bytes, tail_bytes
from npstream.formats.chunks import chunk_counts, piece_bounds, piece_rows
from npstream.formats.hashes import digest
from npstream.formats.sidecar.blocks import xxh3
from npstream.shards.local import layouts_of

if TYPE_CHECKING:
    from npstream.cache.cache import ShardCache
    from npstream.cache.downloads import PieceCheck
    from npstream.cache.leases import PieceKey
    from npstream.cache.shard_file import CachedFile
    from npstream.formats.index import File, Index
    from npstream.formats.sidecar.sidecar import Sidecar
    from npstream.shards.base import Chunk

T = TypeVar("T")

MIN_SPLIT = 1 << 16
"""Chunks of fewer bytes have no files of their own, which would take too much disk space."""

PIN_ATTEMPTS = 5
"""Maximum attempts to pin files, which other processes may evict meanwhile."""

MIN_OPENED = 8
"""At least this number of files of chunks is opened between two releases of evicted files."""

MAX_KEYS = 1 << 12
"""Maximum number of cache keys to remember: every read of a sample needs one."""


class ChunkOrder(Protocol):
    """The order in which an iteration uses the chunks of a dataset."""

    def covers(self, shard: int, chunk: int) -> bool:
        """Return True if the iteration uses a chunk."""

    def epochs_until_use(self, shard: int, chunk: int) -> float:
        """Return when the iteration uses a chunk next, in epochs from now; infinity if never."""

    def mark_fetched(self, shard: int, chunk: int) -> None:
        """Record in the files of a new chunk when the iteration uses it."""


class RemoteFiles:
    """The files of a remote dataset's shards; the cache holds some of their pieces.

    A shard has a data file. A shard of a text format also has a meta file, with its offsets.

    Parameters
    ----------
    index : Index
    root : str
        Identifies the location of the dataset: the store's `identity`.
    cache : ShardCache
    identity : str
        Differs between versions of the dataset.
    sidecar : Sidecar, optional
        Holds the hashes of pieces.
    strict : bool
        Verify each cached piece before this process first reads it, if its hash is recorded.

    Attributes
    ----------
    chunks : ndarray of int64, shape (shards,)
        The number of chunks of each shard.
    max_chunks : int
        The largest of these numbers, at least 1.
    strides : ndarray of int64, shape (schemas,)
        The size of every sample of a schema in bytes; 0 if sizes vary.
    chunk_orders : tuple of ChunkOrder
        The orders of the iterations that read the dataset now, if the cache cannot hold all of it.

    Notes
    -----
    A piece is *present* if any process has cached it. It is *resident* if this process may read it:
    if it is present and, if `strict`, this process has verified it.
    """

    def __init__(
        self,
        index: Index,
        root: str,
        cache: ShardCache,
        identity: str,
        sidecar: Sidecar | None,
        strict: bool,
    ) -> None:
        self.index = index
        self.root = root
        self.cache = cache
        self.identity = identity
        self.sidecar = sidecar
        self.strict = strict
        samples = np.diff(index.starts)
        self.chunks = chunk_counts(samples, index.nbytes, index.compressed, index.chunk_bytes)
        self.max_chunks = int(self.chunks.max(initial=1))
        self.strides = np.array([0 if a is None else a.stride for a in layouts_of(index)])
        self.chunk_orders: tuple[ChunkOrder, ...] = ()
        self._splits: bool | None = None
        self._is_large_chunk = (self.chunks > 1) & (index.nbytes >= MIN_SPLIT * self.chunks)
        self._open: dict[tuple[int, bool], CachedFile] = {}
        self._open_chunks: dict[Chunk, CachedFile] = {}
        self._opened_since_sweep = 0
        self._keys: dict[tuple[int, bool], str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFiles, (
            self.index, self.root, self.cache, self.identity, self.sidecar, self.strict,
        )  # fmt: skip

    def close(self) -> None:
        """Release the files."""
        self._open.clear()
        self._open_chunks.clear()

    # Files

    def data_file(self, shard: int) -> CachedFile | None:
        """Return the data file of a shard; None if the cache cannot hold it."""
        return self._file(shard, meta=False)

    def header_file(self, shard: int) -> CachedFile | None:
        """Return the file with a shard's offsets: the data file or the meta file."""
        return self._file(shard, meta=self.has_meta(shard))

    def has_meta(self, shard: int) -> bool:
        """Return True if a shard's offsets are in a meta file."""
        return self.index.schemas[int(self.index.schema_ids[shard])].format != "mds"

    def opened_files(self, shard: int) -> list[CachedFile]:
        """Return the files of a shard that this process has opened."""
        files = [self._open.get((shard, meta)) for meta in (False, True)]
        if self._open_chunks:
            chunks = range(int(self.chunks[shard]))
            files += [self._open_chunks.get((shard, chunk)) for chunk in chunks]
        return [file for file in files if file is not None]

    def peek(self, shard: int) -> CachedFile | None:
        """Return the data file of a shard if the cache has one; do not create it."""
        file = self._open.get((shard, False))
        if file is None and not self.cache.has_file(self._key(shard, meta=False)):
            return None
        return self.data_file(shard)

    def _file(self, shard: int, meta: bool) -> CachedFile | None:
        file = self._open.get((shard, meta))
        if file is not None and file.is_linked:
            return file
        pieces = 1 if meta else 1 + int(self.chunks[shard])
        key, check = self._key(shard, meta), self._cached_check(shard, meta)
        file = self.cache.open(key, self._index_entry(shard, meta).nbytes, pieces, check)
        if file is not None:
            if self.strict and check is not None:
                file.require_verification()
            self._open[shard, meta] = file
        return file

    def piece_key(self, shard: int, chunk: int) -> PieceKey:
        """Return the key of a chunk's piece: the path of the cached file, and the piece number."""
        key = self._key(shard, meta=False)
        return self.cache.path(_chunk_key(key, chunk) if self.splits(shard) else key), 1 + chunk

    def _is_piece_readable(self, shard: int, piece: int, meta: bool = False) -> bool:
        """Return True if a piece of the data or meta file is cached and passes its check."""
        return self._is_readable_in(self._file(shard, meta), shard, piece, meta)

    def _is_readable_in(
        self, file: CachedFile | None, shard: int, piece: int, meta: bool = False
    ) -> bool:
        if file is None or not file.present[piece]:
            return False
        if file.resident[piece]:
            return True
        check = self._cached_check(shard, meta)
        assert check is not None  # `_file` calls `require_verification` only if there is a check
        return file.admit(piece, check)

    # Files of single chunks

    @property
    def splits_shards(self) -> bool:
        """True if chunks have files of their own, because the cache cannot hold all shards.

        Either each chunk must have a hash, or no shard may have one: the hash of a shard can only
        be compared with that of a whole file.
        """
        if self._splits is None:
            limit, total = self.cache.limit, self.disk_bytes()
            if limit is None and total > self.cache.free_bytes():
                limit = self.cache.max_bytes()
            self._splits = limit is not None and total > limit and self._can_split
        return self._splits

    @property
    def _can_split(self) -> bool:
        """True if each chunk can be verified alone, or nothing can be verified."""
        if self.max_chunks == 1 or self._hashes(0, meta=False) is not None:
            return True
        return not self.index.files(0).data.hashes

    def split_shards(self) -> None:
        """Give each chunk a file of its own from now on, unless only whole shards can be verified.

        For datasets that share a cache, and are too large for it together.
        """
        self._splits = self._can_split

    def disk_bytes(self) -> int:
        """Return the disk space that all shards take in the cache, in bytes."""
        return int(shard_disk_bytes(self).sum())

    def splits(self, shard: int) -> bool:
        """Return True if the chunks of a shard have files of their own."""
        return self.splits_shards and bool(self._is_large_chunk[shard])

    def chunk_file(self, shard: int, chunk: int) -> CachedFile | None:
        """Return the file that holds a chunk or will hold it; None if the cache cannot hold it."""
        if (file := self._present_chunk_file(shard, chunk)) is not None:
            return file
        is_split = self.splits(shard)
        return self._open_chunk_file(shard, chunk) if is_split else self.data_file(shard)

    def _present_chunk_file(self, shard: int, chunk: int) -> CachedFile | None:
        """Return the file that holds a chunk; None if no file does. Create no file.

        A dataset that was opened with another limit may have cached the chunk in either file.
        """
        file = self.peek(shard)
        if file is not None and file.present[1 + chunk]:
            return file
        if not self._is_large_chunk[shard]:
            return None
        file = self._open_chunks.get((shard, chunk))
        # Eviction clears the residency bytes, so a present piece needs no look at the directory.
        if file is not None and file.present[1 + chunk]:
            return file
        if not self.cache.has_file(_chunk_key(self._key(shard, meta=False), chunk)):
            return None
        file = self._open_chunk_file(shard, chunk)
        return file if file is not None and file.present[1 + chunk] else None

    def _open_chunk_file(self, shard: int, chunk: int) -> CachedFile | None:
        file = self._open_chunks.get((shard, chunk))
        if file is not None and file.is_linked:
            return file
        self._sweep_chunk_files()
        key, check = self._key(shard, meta=False), self._cached_check(shard, meta=False)
        nbytes, pieces = self._index_entry(shard, meta=False).nbytes, 1 + int(self.chunks[shard])
        file = self.cache.open(_chunk_key(key, chunk), nbytes, pieces, check)
        if file is not None:
            if self.strict and check is not None:
                file.require_verification()
            self._open_chunks[shard, chunk] = file
        return file

    def _sweep_chunk_files(self) -> None:
        """Release evicted files of chunks: they keep their disk space while they are mapped."""
        self._opened_since_sweep += 1
        if self._opened_since_sweep > max(MIN_OPENED, len(self._open_chunks) // 64):
            self._release_evicted(self._open_chunks, lambda chunk: 1 + chunk[1])

    def release_evicted_files(self) -> None:
        """Release all evicted files: they keep their disk space while they are mapped."""
        self._release_evicted(self._open, lambda shard: 0)
        self._release_evicted(self._open_chunks, lambda chunk: 1 + chunk[1])

    def _release_evicted(self, files: dict[T, CachedFile], piece_of: Callable[[T], int]) -> None:
        """Release those of `files` that are evicted.

        `piece_of` returns a piece of a file. Eviction clears its residency byte.
        """
        self._opened_since_sweep = 0
        for key in list(files):
            file = files.get(key)  # another thread may have removed it
            if file is not None and not file.present[piece_of(key)] and not file.is_linked:
                files.pop(key, None)

    def pin(self, chunks: Iterable[Chunk]) -> bool:
        """Create the files of chunks, and keep them from eviction; return False if that failed."""
        for _ in range(PIN_ATTEMPTS):
            keys: list[str] = []
            for shard, chunk in chunks:
                file = self.chunk_file(shard, chunk)
                if file is None or self.data_file(shard) is None or self.header_file(shard) is None:
                    return False
                is_split = file.path != self.cache.path(self._key(shard, meta=False))
                keys += self.unit_keys(shard, chunk) if is_split else self.header_keys(shard)
            if not self.cache.pin(dict.fromkeys(keys)):
                return True
        return False

    def unpin(self, chunks: Iterable[Chunk]) -> None:
        """Let the files of chunks be evicted again."""
        keys = [key for shard, chunk in chunks for key in self.unit_keys(shard, chunk)]
        self.cache.pin(dict.fromkeys(keys), False)

    def pinned_disk_bytes(self, chunks: Iterable[Chunk]) -> int:
        """Estimate the disk space of the files that hold chunks."""
        shards, nbytes = set(), 0
        for shard, chunk in chunks:
            if self.splits(shard):
                nbytes += int(self.chunk_sizes(shard)[chunk]) + tail_bytes(1 + self.max_chunks)
            shards.add(shard)
        whole = shard_disk_bytes(self)
        for shard in shards:
            header = 4 * (self.sample_count(shard) + 2) + tail_bytes(1 + self.max_chunks)
            nbytes += header if self.splits(shard) else int(whole[shard])
        return nbytes

    def release_chunk_files(self) -> None:
        """Release half of the files of chunks, those opened first. They are opened again on use."""
        for chunk in list(self._open_chunks)[: len(self._open_chunks) // 2]:
            self._open_chunks.pop(chunk, None)

    def chunk_slots(self, shard: int, data: CachedFile) -> tuple[Int64, dict[int, CachedFile]]:
        """Return `slots` and `chunk_files` of a `LoadedShard`, for the files that are open.

        The slot of a chunk has two addresses: of its file's bytes, and of its byte in `resident`.
        """
        count = int(self.chunks[shard])
        slots = np.empty((count, 2), np.int64)
        slots[:, 0] = address_of(data.data)
        slots[:, 1] = address_of(data.resident) + 1 + np.arange(count)
        chunk_files = {}
        for chunk in range(count if self._open_chunks else 0):
            file = self._open_chunks.get((shard, chunk))
            if file is not None and file.present[1 + chunk] and not data.present[1 + chunk]:
                chunk_files[chunk] = file
                slots[chunk] = address_of(file.data), address_of(file.resident) + 1 + chunk
        return slots, chunk_files

    def touch(self, shard: int, chunk: int) -> None:
        """Record that a chunk is in use, unless an iteration in progress marks the chunk."""
        if any(order.covers(shard, chunk) for order in self.chunk_orders):
            return
        for file in (self._open.get((shard, False)), self._open_chunks.get((shard, chunk))):
            if file is not None:
                self.cache.touch(file)

    def header_keys(self, shard: int) -> list[str]:
        """Return the keys of the files of a shard that hold its header and its offsets."""
        return [self._key(shard, meta) for meta in (False, True)[: 1 + self.has_meta(shard)]]

    def unit_keys(self, shard: int, chunk: int) -> list[str]:
        """Return the keys of the files that the cache needs to hold a chunk."""
        keys = self.header_keys(shard)
        return [*keys, _chunk_key(keys[0], chunk)] if self.splits(shard) else keys

    def _index_entry(self, shard: int, meta: bool) -> File:
        """Return the index's entry of a data or meta file."""
        files = self.index.files(shard)
        return files.meta if meta and files.meta is not None else files.data

    def _key(self, shard: int, meta: bool) -> str:
        """Return the cache key of a file: a hash of its location, name, size and content."""
        key = self._keys.get((shard, meta))
        if key is None:
            entry = self._index_entry(shard, meta)
            content = sorted(entry.hashes.items()) or self._hashes(shard, meta) or self.identity
            description = repr((self.root, entry.name, entry.nbytes, content))
            if len(self._keys) >= MAX_KEYS:
                self._keys.clear()
            key = self._keys[shard, meta] = digest("xxh3_128", description.encode())
        return key

    def min_cache_bytes(self) -> int:
        """Estimate the bytes that the cache must hold for the largest chunk and its header."""
        samples, nbytes = np.diff(self.index.starts), self.index.nbytes
        is_text = np.array([s.format != "mds" for s in self.index.schemas], bool)
        has_meta = is_text[self.index.schema_ids]
        headers = 4 * (samples + 2)  # see `_offsets_of`
        body = np.maximum(nbytes - np.where(has_meta, 0, headers), 0)
        # Chunks of a shard differ by at most one sample.
        chunks = body // self.chunks + (self.chunks > 1) * (body // np.maximum(samples, 1))
        tails = (1 + has_meta) * tail_bytes(1 + int(self.chunks.max(initial=1)))
        if self.splits_shards:  # a chunk's own file
            tails += self._is_large_chunk * tail_bytes(1 + self.max_chunks)
        sizes = headers + chunks + tails
        sizes += 2 * disk_bytes(0, 1)  # a chunk begins and ends within a disk block
        return int(sizes.max(initial=0))

    # Cached pieces

    def is_ready(self, shard: int) -> bool:
        """Return True if a shard's header and offsets are readable; create no file."""
        if self.peek(shard) is None:
            return False
        return self._is_piece_readable(shard, 0) and self._is_piece_readable(
            shard, 0, meta=self.has_meta(shard)
        )

    def is_readable(self, shard: int, chunk: int) -> bool:
        """Return True if a chunk, its header and its offsets are readable."""
        if not self.is_ready(shard):
            return False
        return self._is_readable_in(self._present_chunk_file(shard, chunk), shard, 1 + chunk)

    def is_cached(self, shard: int, chunk: int) -> bool:
        """Return True if a chunk and its header are cached, verified or not; create no file."""
        if self.peek(shard) is None:
            return False
        data, header = self.data_file(shard), self.header_file(shard)
        if data is None or header is None or not (data.present[0] and header.present[0]):
            return False
        return self._present_chunk_file(shard, chunk) is not None

    def is_complete(self, shard: int) -> bool:
        """Return True if all pieces of a shard are readable in its data file."""
        chunks = range(int(self.chunks[shard]))
        return self.is_ready(shard) and all(
            self._is_piece_readable(shard, 1 + chunk) for chunk in chunks
        )

    # Byte ranges

    def sample_count(self, shard: int) -> int:
        """Return the number of samples of a shard."""
        return int(self.index.starts[shard + 1]) - int(self.index.starts[shard])

    def is_fixed(self, shard: int) -> bool:
        """Return True if all samples of a shard have one size, so that no offset is needed."""
        return bool(self.strides[self.index.schema_ids[shard]])

    def samples_begin(self, shard: int) -> int | None:
        """Return the first byte of a shard's samples; None if a request must fetch it."""
        offsets = self.offsets(shard)
        return self.recorded_begin(shard) if offsets is None else int(offsets[0])

    def recorded_begin(self, shard: int) -> int | None:
        """Return the first byte of a shard's samples according to the index or the side-car."""
        stride = int(self.strides[self.index.schema_ids[shard]])
        if stride:
            return int(self.index.nbytes[shard]) - self.sample_count(shard) * stride
        return None if self.sidecar is None else self.sidecar.first_offset(shard)

    def chunk_sizes(self, shard: int) -> Int64:
        """Estimate the bytes of each chunk of a shard from the average sample."""
        begin, chunks = self.recorded_begin(shard) or 0, int(self.chunks[shard])
        rows = np.diff(piece_rows(self.sample_count(shard), chunks))
        body = int(self.index.nbytes[shard]) - begin
        sizes: Int64 = rows * body // max(self.sample_count(shard), 1)
        return sizes

    def offsets(self, shard: int) -> NDArray[np.uint32] | None:
        """Return the offsets of a shard; None if they are not cached."""
        header = self.header_file(shard)
        # The offsets must be those of the file that was tested. If it is evicted after the test, a
        # second look-up returns a new file, whose offsets are holes.
        if header is None or not self._is_readable_in(header, shard, 0, self.has_meta(shard)):
            return None
        return _offsets_of(header.data, self.sample_count(shard))

    def row_bounds(self, shard: int, rows: Int64) -> tuple[Int64, Int64] | None:
        """Return where rows of a shard begin and end; None if a request must fetch offsets."""
        stride = int(self.strides[self.index.schema_ids[shard]])
        if stride:
            begins = int(self.index.nbytes[shard]) + (rows - self.sample_count(shard)) * stride
            return begins, begins + stride
        offsets = None if self.peek(shard) is None else self.offsets(shard)
        if offsets is None:
            return None
        return offsets[rows].astype(np.int64), offsets[rows + 1].astype(np.int64)

    def piece_bounds(self, shard: int) -> Int64 | None:
        """Return where the pieces of a data file begin, then its end; None if that is unknown."""
        return self._data_bounds(shard, self.offsets(shard))

    def _data_bounds(self, shard: int, offsets: NDArray[np.uint32] | None) -> Int64 | None:
        rows = piece_rows(self.sample_count(shard), int(self.chunks[shard]))
        nbytes = int(self.index.nbytes[shard])
        stride = int(self.strides[self.index.schema_ids[shard]])
        if stride:
            return piece_bounds(rows, nbytes - self.sample_count(shard) * stride, nbytes)
        return None if offsets is None else piece_bounds(rows, int(offsets[0]), nbytes, offsets)

    # Integrity

    def piece_check(self, shard: int, meta: bool = False) -> PieceCheck | None:
        """Return a function that compares a piece with its hash; None if no hashes are recorded."""
        hashes = self._hashes(shard, meta)
        if hashes is None:
            return None
        return lambda piece, body: xxh3(body.data) == hashes[piece]

    def _hashes(self, shard: int, meta: bool) -> list[int] | None:
        """Return the hash of each piece of a file; None if the side-car has none."""
        if self.sidecar is None:
            return None
        if meta:
            meta_hash = self.sidecar.meta_hash(shard)
            return None if meta_hash is None else [meta_hash]
        hashes = self.sidecar.piece_hashes(shard)
        return None if hashes is None else hashes.tolist()

    def is_intact(self, shard: int, data: Bytes, header: Bytes, check: PieceCheck) -> bool:
        """Return True if all pieces of a shard pass the check; `header` has its offsets."""
        bounds = self._data_bounds(shard, _offsets_of(header, self.sample_count(shard)))
        pieces = range(1 + int(self.chunks[shard]))
        return bounds is not None and all(check(k, _piece_of(data, bounds, k)) for k in pieces)

    def _cached_check(self, shard: int, meta: bool) -> Callable[[CachedFile, int], bool] | None:
        """Return a function that checks a cached piece; None if no hashes are recorded."""
        check = self.piece_check(shard, meta)
        if check is None:
            return None

        def is_intact(file: CachedFile, piece: int) -> bool:
            if meta:
                return check(piece, file.data)
            is_data_file = file.path == self.cache.path(self._key(shard, meta=False))
            header = file if is_data_file and not self.has_meta(shard) else self.header_file(shard)
            if header is None or not header.present[0]:
                return False
            bounds = self._data_bounds(shard, _offsets_of(header.data, self.sample_count(shard)))
            return bounds is not None and check(piece, _piece_of(file.data, bounds, piece))

        return is_intact


def shard_disk_bytes(files: RemoteFiles) -> Int64:
    """Return the disk space of each shard in the cache, in bytes.

    A chunk begins and ends within a disk block, so it may occupy two more blocks.
    """
    sizes: Int64 = files.index.nbytes + files.chunks * 2 * disk_bytes(0, 1)
    return sizes + tail_bytes(1 + files.max_chunks)


def _chunk_key(key: str, chunk: int) -> str:
    """Return the key of the file of a chunk, given the key of the shard's data file."""
    return digest("xxh3_128", f"{key} {chunk}".encode())


def _offsets_of(header: Bytes, count: int) -> NDArray[np.uint32]:
    """Return the offsets in a header: a uint32, the number of samples, precedes them."""
    return header[4 : 4 * (count + 2)].view("<u4")


def _piece_of(data: Bytes, bounds: Int64, piece: int) -> Bytes:
    return data[bounds[piece] : bounds[piece + 1]]
