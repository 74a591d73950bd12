"""Files of an object store that are read by range, through the cache: a side-car and its columns.

Nothing is verified here. The reader compares what it gets with hashes, and calls `forget` if they
are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream.cache.downloads import MAX_REQUEST, Downloads, PieceRange, runs
from npstream.errors import FormatError
from npstream.formats.hashes import digest
from npstream.formats.sidecar.blocks import HASH_BLOCK
from npstream.formats.sidecar.sidecar import NPY_HEADER_BYTES
from npstream.storage.deadlines import shared_deadline

if TYPE_CHECKING:
    from npstream._core.typing import Span
    from npstream.cache.cache import CachedFile, ShardCache
    from npstream.storage.remote import RemoteStore

__all__ = ["CachedRanges"]


class CachedRanges:
    """Files of a store, kept in the cache in pieces: the head of a ``.npy`` file, then blocks.

    Parameters
    ----------
    store : RemoteStore
    cache : ShardCache
    version : str
        The version of the side-car, which its columns change with.
    held : mapping of str to bytes, optional
        Whole files that are in memory.
    """

    def __init__(
        self,
        store: RemoteStore,
        cache: ShardCache,
        version: str,
        held: Mapping[str, bytes] | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._version = version
        self._held = dict(held or {})
        self._files: dict[str, CachedFile] = {}
        self._sizes: dict[str, int] = {}
        self._downloads = Downloads(store, cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedRanges, (self._store, self._cache, self._version, self._held)

    def where(self, name: str) -> str:
        """Return the place of a file, for messages."""
        return self._store.where(name)

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        if name in self._held:
            return len(self._held[name])
        if name not in self._sizes:
            key = self._key(name, "size")
            kept = self._cache.fetch(key)
            if kept is None:
                kept = self._store.size(name).to_bytes(8, "little")
                self._cache.store(key, kept)
            self._sizes[name] = int.from_bytes(kept, "little")
        return self._sizes[name]

    def ranges(self, spans: Iterable[Span]) -> list[bytes]:
        """Return parts of files, each given as name, first byte and length."""
        spans = list(spans)
        with shared_deadline():
            self.fetch(spans)
            cached = [self._cached(*span) for span in spans]
            direct = iter(
                self._store.ranges(
                    span for span, body in zip(spans, cached, strict=True) if body is None
                )
            )
            return [next(direct) if body is None else body for body in cached]

    def fetch(self, spans: Iterable[Span]) -> None:
        """Bring parts of files into the cache, as far as it can hold them."""
        with shared_deadline():
            self._downloads.fetch([part for span in spans for part in self._absent(*span)[1]])

    def cost(self, spans: Iterable[Span]) -> list[int]:
        """Return the bytes of each request that reading parts of files takes, and make none."""
        found = []
        for name, begin, nbytes in spans:
            if name in self._held:
                continue
            is_known = name in self._sizes or self._cache.fetch(self._key(name, "size")) is not None
            if is_known and self._cache.holds(self._key(name)):
                file, parts = self._absent(name, begin, nbytes)
                if file is not None:
                    found += [part.bounds[-1] - part.bounds[0] for part in parts]
                    continue
            whole, rest = divmod(nbytes, MAX_REQUEST)
            found += [MAX_REQUEST] * whole + [rest] * (rest > 0)
        return found

    def forget(self, spans: Iterable[Span]) -> None:
        """Drop parts of files from the cache, whose bytes are wrong."""
        for name, begin, nbytes in spans:
            if name not in self._held and (file := self._file(name)) is not None:
                file.discard(_pieces(begin, nbytes))

    def _cached(self, name: str, begin: int, nbytes: int) -> bytes | None:
        """Return a part of a file, if all of it is here."""
        if name in self._held:
            return self._held[name][begin : begin + nbytes]
        file, parts = self._absent(name, begin, nbytes)
        if file is None or parts:
            return None
        self._cache.touch(file)
        return file.data[begin : begin + nbytes].tobytes()

    def _absent(
        self, name: str, begin: int, nbytes: int
    ) -> tuple[CachedFile | None, list[PieceRange]]:
        """Return a file in the cache, if there can be one, and what a part of it lacks."""
        if name in self._held or (file := self._file(name)) is None:
            return None, []
        pieces, size = _pieces(begin, nbytes), len(file.data)
        if begin + nbytes > size:
            raise FormatError(
                f"{self.where(name)}: {quantity(size, 'byte')}; its side-car needs "
                f"{begin + nbytes:,}"
            )
        bounds = tuple(min(_begin(piece), size) for piece in (*pieces, pieces.stop))
        part = PieceRange(file, name, pieces.start, bounds, None)
        return file, runs(part, [piece for piece in pieces if not file.here[piece]])

    def _file(self, name: str) -> CachedFile | None:
        file = self._files.get(name)
        if file is not None and file.alive:
            return file
        size = self.size(name)
        # What a crash damaged is found by the hashes of those who read it.
        pieces = _pieces(0, size).stop
        file = self._cache.open(self._key(name), size, pieces, lambda *_: True)
        if file is not None:
            self._files[name] = file
        return file

    def _key(self, name: str, what: str = "") -> str:
        known = repr((self._store.identity, self._version, name, what))
        return digest("xxh3_128", known.encode())


def _pieces(begin: int, nbytes: int) -> range:
    """Return the pieces that a part of a file lies in."""
    return range(_piece(begin), _piece(begin + max(nbytes, 1) - 1) + 1)


def _piece(at: int) -> int:
    """Return the piece that a byte lies in."""
    return 0 if at < NPY_HEADER_BYTES else 1 + (at - NPY_HEADER_BYTES) // HASH_BLOCK


def _begin(piece: int) -> int:
    """Return where a piece begins."""
    return 0 if piece == 0 else NPY_HEADER_BYTES + (piece - 1) * HASH_BLOCK
