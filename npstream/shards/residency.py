"""Provide `RemoteFiles`: the cached files of a remote dataset, and the byte ranges of their pieces.

Piece 0 of a data file is its header, the bytes before the samples. Piece 1 + k is chunk k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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

MAX_KEYS = 1 << 12
"""Cache keys to remember, because every read of a sample needs one."""


class RemoteFiles:
    """The files of a remote dataset's shards; the cache holds some of their pieces.

    A shard has a data file. A shard of a text format also has a meta file, with its offsets.

    Parameters
    ----------
    index : Index
    root : str
        The URL of the dataset.
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
        self._open: dict[tuple[int, bool], CachedFile] = {}
        self._keys: dict[tuple[int, bool], str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFiles, (
            self.index, self.root, self.cache, self.identity, self.sidecar, self.strict,
        )  # fmt: skip

    def close(self) -> None:
        """Release the files."""
        self._open.clear()

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
        files = (self._open.get((shard, meta)) for meta in (False, True))
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
        return self.cache.path(self._key(shard, meta=False)), 1 + chunk

    def _is_piece_readable(self, shard: int, piece: int, meta: bool = False) -> bool:
        """Return True if a piece of the data or meta file is cached and passes its check."""
        file = self._file(shard, meta)
        if file is None or not file.present[piece]:
            return False
        if file.resident[piece]:
            return True
        check = self._cached_check(shard, meta)
        assert check is not None  # `_file` calls `require_verification` only if there is a check
        return file.admit(piece, check)

    def _index_entry(self, shard: int, meta: bool) -> File:
        """Return the index's entry of a data or meta file."""
        files = self.index.files(shard)
        return files.meta if meta and files.meta is not None else files.data

    def _key(self, shard: int, meta: bool) -> str:
        """Return the cache key of a file: a hash of its name, size and content hashes."""
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
        # Chunks of a shard differ by one sample.
        chunks = body // self.chunks + (self.chunks > 1) * (body // np.maximum(samples, 1))
        tails = (1 + has_meta) * tail_bytes(1 + int(self.chunks.max(initial=1)))
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
        return self.is_ready(shard) and self._is_piece_readable(shard, 1 + chunk)

    def is_cached(self, shard: int, chunk: int) -> bool:
        """Return True if a chunk and its header are cached, verified or not; create no file."""
        if self.peek(shard) is None:
            return False
        data, header = self.data_file(shard), self.header_file(shard)
        if data is None or header is None or not (data.present[0] and header.present[0]):
            return False
        return bool(data.present[1 + chunk])

    def is_complete(self, shard: int) -> bool:
        """Return True if all pieces of a shard are readable."""
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
        if not self._is_piece_readable(shard, 0, meta=self.has_meta(shard)):
            return None
        header = self.header_file(shard)
        return None if header is None else _offsets_of(header.data, self.sample_count(shard))

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
            header = self.header_file(shard) if self.has_meta(shard) else file
            if header is None or not header.present[0]:
                return False
            bounds = self._data_bounds(shard, _offsets_of(header.data, self.sample_count(shard)))
            return bounds is not None and check(piece, _piece_of(file.data, bounds, piece))

        return is_intact


def _offsets_of(header: Bytes, count: int) -> NDArray[np.uint32]:
    """Return the offsets in a header: a uint32, the number of samples, precedes them."""
    return header[4 : 4 * (count + 2)].view("<u4")


def _piece_of(data: Bytes, bounds: Int64, piece: int) -> Bytes:
    return data[bounds[piece] : bounds[piece + 1]]
