"""Reads of byte ranges through the cache, for a side-car and its columns in an object store.

This module verifies nothing. The reader compares the bytes with hashes, and calls `discard` if they
are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream.cache.downloads import MAX_REQUEST, Downloads, PieceRange, piece_ranges
from npstream.errors import FormatError
from npstream.formats.hashes import digest
from npstream.formats.sharing import SharedBytes
from npstream.formats.sidecar.blocks import HASH_BLOCK
from npstream.formats.sidecar.sidecar import NPY_HEADER_BYTES
from npstream.storage.deadlines import shared_deadline

if TYPE_CHECKING:
    from npstream._core.typing import Span
    from npstream.cache.cache import CachedFile, ShardCache
    from npstream.storage.remote import RemoteStore

__all__ = ["CachedRanges"]


class CachedRanges:
    """Files of a store that are cached in pieces: the header of a ``.npy`` file, then blocks.

    Parameters
    ----------
    store : RemoteStore
    cache : ShardCache
    version : str
        The version of the side-car. The columns change only with it.
    in_memory : mapping of str to bytes or SharedBytes, optional
        Whole files that are in memory.
    """

    def __init__(
        self,
        store: RemoteStore,
        cache: ShardCache,
        version: str,
        in_memory: Mapping[str, bytes | SharedBytes] | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._version = version
        self._in_memory = {
            name: body if isinstance(body, SharedBytes) else SharedBytes(body)
            for name, body in (in_memory or {}).items()
        }
        self._files: dict[str, CachedFile] = {}
        self._sizes: dict[str, int] = {}
        self._downloads = Downloads(store, cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedRanges, (self._store, self._cache, self._version, self._in_memory)

    def where(self, name: str) -> str:
        """Return the URL of a file, for messages."""
        return self._store.where(name)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        if name in self._in_memory:
            return len(self._in_memory[name])
        if name not in self._sizes:
            key = self._key(name, "size")
            size = self._cache.load(key)
            if size is None:
                size = self._store.size(name).to_bytes(8, "little")
                self._cache.store(key, size)
            self._sizes[name] = int.from_bytes(size, "little")
        return self._sizes[name]

    def ranges(self, spans: Iterable[Span]) -> list[bytes]:
        """Return the bytes of each span. A span has the name of a file, first byte and length."""
        spans = list(spans)
        with shared_deadline():
            self.fetch(spans)
            cached = [self._read_cached(*span) for span in spans]
            direct = iter(
                self._store.ranges(
                    span for span, body in zip(spans, cached, strict=True) if body is None
                )
            )
            return [next(direct) if body is None else body for body in cached]

    def fetch(self, spans: Iterable[Span]) -> None:
        """Download byte ranges of files into the cache, if the cache can hold them."""
        with shared_deadline():
            self._downloads.fetch([part for span in spans for part in self._absent_parts(*span)[1]])

    def request_bytes(self, spans: Iterable[Span]) -> list[int]:
        """Estimate the bytes of each request that `ranges` would make, without making any."""
        requests = []
        for name, begin, nbytes in spans:
            if name in self._in_memory:
                continue
            # Without the size or the cached file, `_absent_parts` would send a request, or create
            # the file. Then exactly the bytes of the span count as absent, not whole pieces.
            has_size = name in self._sizes or self._cache.load(self._key(name, "size")) is not None
            if has_size and self._cache.has_file(self._key(name)):
                file, parts = self._absent_parts(name, begin, nbytes)
                if file is not None:
                    requests += [part.bounds[-1] - part.bounds[0] for part in parts]
                    continue
            count, remainder = divmod(nbytes, MAX_REQUEST)
            requests += [MAX_REQUEST] * count + [remainder] * (remainder > 0)
        return requests

    def discard(self, spans: Iterable[Span]) -> None:
        """Drop byte ranges of files from the cache, because the bytes are wrong."""
        for name, begin, nbytes in spans:
            if name not in self._in_memory and (file := self._file(name)) is not None:
                file.discard(_pieces(begin, nbytes))

    def pin(self, name: str, is_pinned: bool) -> bool:
        """Keep a file from eviction, or let it be evicted again; return False if that failed."""
        if is_pinned and self._file(name) is None:
            return False
        # `ShardCache.pin` returns the keys that failed.
        return name in self._in_memory or not self._cache.pin([self._key(name)], is_pinned)

    def _read_cached(self, name: str, begin: int, nbytes: int) -> bytes | None:
        """Return a byte range of a file if it is completely cached, else None."""
        if name in self._in_memory:
            return self._in_memory[name][begin : begin + nbytes]
        file, parts = self._absent_parts(name, begin, nbytes)
        if file is None or parts:
            return None
        self._cache.touch(file)
        return file.data[begin : begin + nbytes].tobytes()

    def _absent_parts(
        self, name: str, begin: int, nbytes: int
    ) -> tuple[CachedFile | None, list[PieceRange]]:
        """Return a cached file, and the parts of a byte range that it does not have yet.

        If the content is in `in_memory`, or the cache cannot hold the file, the file is None and
        there are no parts.
        """
        if name in self._in_memory or (file := self._file(name)) is None:
            return None, []
        pieces, size = _pieces(begin, nbytes), len(file.data)
        if begin + nbytes > size:
            raise FormatError(
                f"{self.where(name)}: {quantity(size, 'byte')}; its side-car needs "
                f"{begin + nbytes:,}"
            )
        bounds = tuple(min(_piece_begin(piece), size) for piece in (*pieces, pieces.stop))
        part = PieceRange(file, name, pieces.start, bounds, None)
        return file, piece_ranges(part, [piece for piece in pieces if not file.present[piece]])

    def _file(self, name: str) -> CachedFile | None:
        file = self._files.get(name)
        if file is not None and file.is_linked:
            return file
        size = self.size(name)
        # The cache does not check these pieces. The readers' hashes detect damage by a crash.
        pieces = _pieces(0, size).stop
        file = self._cache.open(self._key(name), size, pieces, lambda *_: True)
        if file is not None:
            self._files[name] = file
        return file

    def _key(self, name: str, kind: str = "") -> str:
        text = repr((self._store.identity, self._version, name, kind))
        return digest("xxh3_128", text.encode())


def _pieces(begin: int, nbytes: int) -> range:
    """Return the pieces that contain a byte range of a file."""
    return range(_piece_at(begin), _piece_at(begin + max(nbytes, 1) - 1) + 1)


def _piece_at(offset: int) -> int:
    """Return the piece that contains the byte at `offset`."""
    return 0 if offset < NPY_HEADER_BYTES else 1 + (offset - NPY_HEADER_BYTES) // HASH_BLOCK


def _piece_begin(piece: int) -> int:
    """Return the offset at which a piece begins."""
    return 0 if piece == 0 else NPY_HEADER_BYTES + (piece - 1) * HASH_BLOCK
