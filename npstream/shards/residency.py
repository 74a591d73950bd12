"""The files of a remote dataset in the cache: what they are called, and where their pieces lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npstream._core.typing import Bytes, Int64
from npstream.cache.cache import allocated, tail_bytes
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
"""Names of files that are remembered, as every read of a sample asks for them."""


class RemoteFiles:
    """The files of the shards of a remote dataset, parts of which are in a cache.

    A shard has one file for its data, and one for its offsets if they are stored apart.

    Parameters
    ----------
    index : Index
    root : str
        The dataset's URL.
    cache : ShardCache
    identity : str
        What tells this version of the dataset from others.
    sidecar : Sidecar, optional
        Holds the hashes of pieces.
    strict : bool
        Verify what is in the cache before this process first reads it, where hashes are recorded.

    Attributes
    ----------
    chunks : ndarray of int64, shape (shards,)
        How many chunks each shard has.
    max_chunks : int
        The most that one has, at least 1.
    strides : ndarray of int64, shape (schemas,)
        Bytes of every sample of shards of a schema; 0 if they vary.
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
        """Let go of the files."""
        self._open.clear()

    # The files

    def data_file(self, shard: int) -> CachedFile | None:
        """Return the file of a shard's data; None if the cache cannot have it."""
        return self._file(shard, False)

    def header_file(self, shard: int) -> CachedFile | None:
        """Return the file that a shard's offsets are in."""
        return self._file(shard, self.has_meta(shard))

    def has_meta(self, shard: int) -> bool:
        """Tell whether the offsets of a shard are stored apart."""
        return self.index.schemas[int(self.index.schema_ids[shard])].format != "mds"

    def open_files(self, shard: int) -> list[CachedFile]:
        """Return those files of a shard that this process has opened."""
        found = (self._open.get((shard, meta)) for meta in (False, True))
        return [file for file in found if file is not None]

    def peek(self, shard: int) -> CachedFile | None:
        """Return the file of a shard's data if there is one, and make none."""
        found = self._open.get((shard, False))
        if found is None and not self.cache.holds(self._key(shard, False)):
            return None
        return self.data_file(shard)

    def _file(self, shard: int, meta: bool) -> CachedFile | None:
        found = self._open.get((shard, meta))
        if found is not None and found.alive:
            return found
        pieces = 1 if meta else 1 + int(self.chunks[shard])
        key, check = self._key(shard, meta), self._cached_check(shard, meta)
        opened = self.cache.open(key, self._stored(shard, meta).nbytes, pieces, check)
        if opened is not None:
            if self.strict and check is not None:
                opened.distrust()
            self._open[shard, meta] = opened
        return opened

    def piece(self, shard: int, chunk: int) -> PieceKey:
        """Return the piece of a file in the cache that a chunk is."""
        return self.cache.path(self._key(shard, False)), 1 + chunk

    def _is_piece_readable(self, shard: int, meta: bool, piece: int) -> bool:
        """Tell whether a piece may be read, and verify it for that where that is wanted."""
        file = self._file(shard, meta)
        if file is None or file.resident[piece] or not file.here[piece]:
            return file is not None and bool(file.resident[piece])
        check = self._cached_check(shard, meta)
        assert check is not None
        return file.admit(piece, check)

    def _stored(self, shard: int, meta: bool) -> File:
        files = self.index.files(shard)
        return files.meta if meta and files.meta is not None else files.data

    def _key(self, shard: int, meta: bool) -> str:
        """Return what a file is called in the cache: a hash of what tells its content."""
        key = self._keys.get((shard, meta))
        if key is None:
            stored = self._stored(shard, meta)
            content = sorted(stored.hashes.items()) or self._hashes(shard, meta) or self.identity
            known = repr((self.root, stored.name, stored.nbytes, content))
            if len(self._keys) >= MAX_KEYS:
                self._keys.clear()
            key = self._keys[shard, meta] = digest("xxh3_128", known.encode())
        return key

    def min_cache_bytes(self) -> int:
        """Return about how many bytes the cache must hold for the largest chunk, and its head."""
        samples, nbytes = np.diff(self.index.starts), self.index.nbytes
        apart = np.array([s.format != "mds" for s in self.index.schemas], bool)
        meta = apart[self.index.schema_ids]
        heads = 4 * (samples + 2)
        body = np.maximum(nbytes - np.where(meta, 0, heads), 0)
        # Chunks of a shard differ by one sample.
        chunks = body // self.chunks + (self.chunks > 1) * (body // np.maximum(samples, 1))
        sizes = heads + chunks + (1 + meta) * tail_bytes(1 + int(self.chunks.max(initial=1)))
        sizes += 2 * allocated(0, 1)  # as a chunk begins and ends within a block
        return int(sizes.max(initial=0))

    # What is here

    def is_ready(self, shard: int) -> bool:
        """Tell whether all of a shard but its samples is here, and make no file for that."""
        if self.peek(shard) is None:
            return False
        return self._is_piece_readable(shard, False, 0) and self._is_piece_readable(
            shard, self.has_meta(shard), 0
        )

    def is_readable(self, shard: int, chunk: int) -> bool:
        """Tell whether a chunk is here, and where its samples lie."""
        return self.is_ready(shard) and self._is_piece_readable(shard, False, 1 + chunk)

    def is_cached(self, shard: int, chunk: int) -> bool:
        """Tell whether a chunk is in the cache, verified or not, and make no file for that."""
        if self.peek(shard) is None:
            return False
        data, head = self.data_file(shard), self.header_file(shard)
        if data is None or head is None or not (data.here[0] and head.here[0]):
            return False
        return bool(data.here[1 + chunk])

    def is_complete(self, shard: int) -> bool:
        """Tell whether all of a shard is here."""
        chunks = range(int(self.chunks[shard]))
        return self.is_ready(shard) and all(
            self._is_piece_readable(shard, False, 1 + k) for k in chunks
        )

    # Where things lie

    def sample_count(self, shard: int) -> int:
        """Return the number of samples of a shard."""
        return int(self.index.starts[shard + 1]) - int(self.index.starts[shard])

    def is_fixed(self, shard: int) -> bool:
        """Tell whether all samples of a shard have the same size, so that no offset is needed."""
        return bool(self.strides[self.index.schema_ids[shard]])

    def samples_begin(self, shard: int) -> int | None:
        """Return where the samples of a shard begin, if no request is needed for that."""
        offsets = self.offsets(shard)
        return self.recorded_begin(shard) if offsets is None else int(offsets[0])

    def recorded_begin(self, shard: int) -> int | None:
        """Return where the samples of a shard begin, as the index or the side-car says it."""
        stride = int(self.strides[self.index.schema_ids[shard]])
        if stride:
            return int(self.index.nbytes[shard]) - self.sample_count(shard) * stride
        return None if self.sidecar is None else self.sidecar.begin(shard)

    def chunk_sizes(self, shard: int) -> Int64:
        """Return the bytes of a shard's chunks: the average, where that takes no request."""
        begin, chunks = self.recorded_begin(shard) or 0, int(self.chunks[shard])
        rows = np.diff(piece_rows(self.sample_count(shard), chunks))
        body = int(self.index.nbytes[shard]) - begin
        sizes: Int64 = rows * body // max(self.sample_count(shard), 1)
        return sizes

    def offsets(self, shard: int) -> NDArray[np.uint32] | None:
        """Return the offsets of a shard, if they are here."""
        if not self._is_piece_readable(shard, self.has_meta(shard), 0):
            return None
        head = self.header_file(shard)
        return None if head is None else _offsets_of(head.data, self.sample_count(shard))

    def row_bounds(self, shard: int, rows: Int64) -> tuple[Int64, Int64] | None:
        """Return where rows of a shard begin and end, if no request is needed for that."""
        stride = int(self.strides[self.index.schema_ids[shard]])
        if stride:
            begins = int(self.index.nbytes[shard]) + (rows - self.sample_count(shard)) * stride
            return begins, begins + stride
        offsets = None if self.peek(shard) is None else self.offsets(shard)
        if offsets is None:
            return None
        return offsets[rows].astype(np.int64), offsets[rows + 1].astype(np.int64)

    def piece_bounds(self, shard: int) -> Int64 | None:
        """Return where the pieces of a shard's data begin, and end; None if that is not known."""
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
        """Return what tells whether a piece has the hash that the side-car records."""
        hashes = self._hashes(shard, meta)
        if hashes is None:
            return None
        return lambda piece, body: xxh3(body.data) == hashes[piece]

    def _hashes(self, shard: int, meta: bool) -> list[int] | None:
        """Return the hash of each piece of a file, if the side-car has them."""
        if self.sidecar is None:
            return None
        if meta:
            known = self.sidecar.meta_hash(shard)
            return None if known is None else [known]
        found = self.sidecar.piece_hashes(shard)
        return None if found is None else found.tolist()

    def is_intact(self, shard: int, data: Bytes, head: Bytes, check: PieceCheck) -> bool:
        """Tell whether all pieces of a shard's data are right, given the file of its offsets."""
        bounds = self._data_bounds(shard, _offsets_of(head, self.sample_count(shard)))
        pieces = range(1 + int(self.chunks[shard]))
        return bounds is not None and all(check(k, _piece_of(data, bounds, k)) for k in pieces)

    def _cached_check(self, shard: int, meta: bool) -> Callable[[CachedFile, int], bool] | None:
        """Return what tells whether a piece that is in the cache is right, where hashes tell."""
        check = self.piece_check(shard, meta)
        if check is None:
            return None

        def is_intact(file: CachedFile, piece: int) -> bool:
            if meta:
                return check(piece, file.data)
            head = self.header_file(shard) if self.has_meta(shard) else file
            if head is None or not head.here[0]:
                return False
            bounds = self._data_bounds(shard, _offsets_of(head.data, self.sample_count(shard)))
            return bounds is not None and check(piece, _piece_of(file.data, bounds, piece))

        return is_intact


def _offsets_of(head: Bytes, count: int) -> NDArray[np.uint32]:
    return head[4 : 4 * (count + 2)].view("<u4")


def _piece_of(data: Bytes, bounds: Int64, piece: int) -> Bytes:
    return data[bounds[piece] : bounds[piece + 1]]
