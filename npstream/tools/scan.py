"""Scans of whole shards, read sequentially from a store.

Tested in tests/tools/test_index_builder.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core import memory
from npstream._core.typing import Bools
from npstream.errors import FormatError, IntegrityError, NpstreamError, StorageError
from npstream.formats.compression import decompress
from npstream.formats.hashes import HASHES, Hasher, fastest, hasher
from npstream.formats.scan import Scan, ScanResult

if TYPE_CHECKING:
    from npstream.formats.index import File, Index
    from npstream.storage.local import Store

_REQUEST = 1 << 22
_MAX_GROUP_BYTES = 1 << 25
"""Maximum bytes of files in memory, in addition to the largest compressed file."""

_MAX_GROUP_SHARDS = 256


class _StoredFile(NamedTuple):
    """A file in its stored form, and in its uncompressed form `raw`."""

    stored: File
    raw: File
    is_compressed: bool


class ShardScanner:
    """Reads and scans whole shards.

    Parameters
    ----------
    index : Index
    store : LocalStore or RemoteStore
    compressed : ndarray of bool, shape (shards,)
        The shards whose compressed files to read.
    columns : mapping of str to dtype
        The scalar columns to extract.
    check_all : bool
        Whether to check all recorded hashes instead of the fastest one, and to parse all columns.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        compressed: Bools,
        columns: Mapping[str, np.dtype[Any]],
        check_all: bool = False,
    ) -> None:
        self.index = index
        self.store = store
        self.compressed = compressed
        self.columns = columns
        self.check_all = check_all

    def groups(self, shards: Sequence[int]) -> list[list[int]]:
        """Group small consecutive shards, so that one call of the store fetches a whole group."""
        groups: list[list[int]] = []
        remaining = 0
        for shard in shards:
            nbytes = int(self.index.nbytes[shard])
            if not groups or nbytes > remaining or len(groups[-1]) == _MAX_GROUP_SHARDS:
                groups.append([])
                remaining = _MAX_GROUP_BYTES
            groups[-1].append(shard)
            remaining -= nbytes
        return groups

    def shards(self, group: Sequence[int]) -> Iterator[tuple[int, ScanResult | NpstreamError]]:
        """Scan the shards of a group; yield each shard with its result or its error."""
        done = 0
        try:
            for shard, result in self._shards(group):
                yield shard, result
                done += 1
        except StorageError as error:
            if len(group) == 1:
                yield group[0], error
            else:
                for shard in group[done:]:
                    yield from self.shards([shard])

    def _shards(self, group: Sequence[int]) -> Iterator[tuple[int, ScanResult | NpstreamError]]:
        files = [self._files(shard) for shard in group]
        spans = [span for pair in files for file in pair for span in _spans(file.stored)]
        bodies = _read_spans(self.store, spans)
        for shard, pair in zip(group, files, strict=True):
            parts = islice(bodies, sum(len(_spans(file.stored)) for file in pair))
            try:
                yield shard, self._scan_shard(shard, pair, parts)
            except (FormatError, IntegrityError) as error:
                yield shard, error
            for _ in parts:  # skip the rest of a damaged shard
                pass

    def _files(self, shard: int) -> list[_StoredFile]:
        """Return the files of a shard in reading order: the meta file, with the offsets, first."""
        files, compressed = self.index.files(shard), bool(self.compressed[shard])
        pairs = [(files.meta, files.zip_meta), (files.data, files.zip_data)]
        return [
            _StoredFile(zipped if compressed and zipped else raw, raw, bool(compressed and zipped))
            for raw, zipped in pairs
            if raw is not None
        ]

    def _scan_shard(
        self, shard: int, files: list[_StoredFile], parts: Iterator[bytes]
    ) -> ScanResult:
        index, meta = self.index, None
        compression = index.files(shard).compression
        if len(files) == 2:
            first = islice(parts, len(_spans(files[0].stored)))
            meta = b"".join(self._bytes(files[0], first, compression))
        name = self.store.where(files[-1].stored.name)
        try:
            scan = Scan(
                index.schemas[index.schema_ids[shard]],
                int(index.starts[shard + 1] - index.starts[shard]),
                self.columns,
                compressed=bool(index.compressed[shard]),
                nbytes=int(index.nbytes[shard]),
                meta=meta,
                parse_all=self.check_all,
                statistics=index.annotations.dtypes,
            )
            for body in self._bytes(files[-1], parts, compression):
                scan.feed(body)
            return scan.finish()
        except (FormatError, OverflowError) as error:
            raise type(error)(f"{name} (shard {shard}): {error}") from None

    def _bytes(
        self, file: _StoredFile, parts: Iterator[bytes], compression: str | None
    ) -> Iterator[bytes]:
        """Yield the uncompressed bytes of a file, and check its hashes at the end."""
        if file.is_compressed:
            parts = iter([self._decompressed(file, parts, compression)])
        hashers = self._hashers(file.raw)
        for part in parts:
            for each in hashers.values():
                each.update(part)
            yield part
        self._check_hashes(file.raw, hashers)

    def _decompressed(
        self, file: _StoredFile, parts: Iterator[bytes], compression: str | None
    ) -> bytes:
        if compression is None:
            raise FormatError("compressed, but the index names no compression")
        if not memory.fits_in_memory(file.raw.nbytes):
            raise FormatError(memory.too_large_text(file.raw.nbytes))
        data = b"".join(parts)
        hashers = self._hashers(file.stored)
        for each in hashers.values():
            each.update(data)
        self._check_hashes(file.stored, hashers)
        try:
            return decompress(data, compression, file.raw.nbytes)
        except ValueError as error:
            raise FormatError(str(error)) from error

    def _hashers(self, file: File) -> dict[str, Hasher]:
        known = [name for name in file.hashes if name in HASHES]
        best = fastest(known)
        return {name: hasher(name) for name in known if self.check_all or name == best}

    def _check_hashes(self, file: File, hashers: Mapping[str, Hasher]) -> None:
        for name, each in hashers.items():
            if each.hexdigest() != file.hashes[name]:
                raise IntegrityError(
                    f"{self.store.where(file.name)}: its {name} is {each.hexdigest()}; the index "
                    f"says {file.hashes[name]}"
                )


def _spans(file: File) -> list[tuple[str, int, int]]:
    return [
        (file.name, at, min(_REQUEST, file.nbytes - at)) for at in range(0, file.nbytes, _REQUEST)
    ]


def _read_spans(store: Store, spans: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
    """Yield the bytes of each span, reading at most `_MAX_GROUP_BYTES` at once."""
    window: list[tuple[str, int, int]] = []
    nbytes = 0
    for span in spans:
        if window and nbytes + span[2] > _MAX_GROUP_BYTES:
            yield from store.ranges(window)
            window, nbytes = [], 0
        window.append(span)
        nbytes += span[2]
    yield from store.ranges(window)
