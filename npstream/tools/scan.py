"""Reading whole shards out of a store, one after another, to learn or to check what they hold.

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
_AT_ONCE = 1 << 25
"""Bytes of files that are in memory, beside the largest compressed one."""

_FILES_AT_ONCE = 256


class _Stored(NamedTuple):
    """A file as it is stored, and unpacked."""

    stored: File
    raw: File
    packed: bool


class Reading:
    """How to read shards.

    Parameters
    ----------
    index : Index
    store : LocalStore or RemoteStore
    packed : ndarray of bool, shape (shards,)
        Of which shards to read the compressed files.
    columns : mapping of str to dtype
        The scalar columns to take out.
    every : bool
        Whether to check every recorded hash, not only the fastest one, and all of each sample.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        packed: Bools,
        columns: Mapping[str, np.dtype[Any]],
        every: bool = False,
    ) -> None:
        self.index = index
        self.store = store
        self.packed = packed
        self.columns = columns
        self.every = every

    def groups(self, shards: Sequence[int]) -> list[list[int]]:
        """Put small shards together, which are then fetched at once."""
        groups: list[list[int]] = []
        room = 0
        for shard in shards:
            nbytes = int(self.index.nbytes[shard])
            if not groups or nbytes > room or len(groups[-1]) == _FILES_AT_ONCE:
                groups.append([])
                room = _AT_ONCE
            groups[-1].append(shard)
            room -= nbytes
        return groups

    def shards(self, group: Sequence[int]) -> Iterator[tuple[int, ScanResult | NpstreamError]]:
        """Read the shards of a group; each gives what was found, or what is wrong."""
        done = 0
        try:
            for found in self._shards(group):
                yield found
                done += 1
        except StorageError as error:
            if len(group) == 1:
                yield group[0], error
            else:
                for shard in group[done:]:
                    yield from self.shards([shard])

    def _shards(self, group: Sequence[int]) -> Iterator[tuple[int, ScanResult | NpstreamError]]:
        files = [self._files(shard) for shard in group]
        spans = [span for mine in files for file in mine for span in _spans(file.stored)]
        bodies = _bodies(self.store, spans)
        for shard, mine in zip(group, files, strict=True):
            parts = islice(bodies, sum(len(_spans(file.stored)) for file in mine))
            try:
                yield shard, self._scan(shard, mine, parts)
            except (FormatError, IntegrityError) as error:
                yield shard, error
            for _ in parts:  # those after the damage
                pass

    def _files(self, shard: int) -> list[_Stored]:
        """Return the files of a shard in the order in which they are read: its offsets first."""
        files, packed = self.index.files(shard), bool(self.packed[shard])
        pairs = [(files.meta, files.zip_meta), (files.data, files.zip_data)]
        return [
            _Stored(zipped if packed and zipped else raw, raw, bool(packed and zipped))
            for raw, zipped in pairs
            if raw is not None
        ]

    def _scan(self, shard: int, files: list[_Stored], parts: Iterator[bytes]) -> ScanResult:
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
                parse_all=self.every,
            )
            for body in self._bytes(files[-1], parts, compression):
                scan.feed(body)
            return scan.finish()
        except (FormatError, OverflowError) as error:
            raise type(error)(f"{name} (shard {shard}): {error}") from None

    def _bytes(
        self, file: _Stored, parts: Iterator[bytes], compression: str | None
    ) -> Iterator[bytes]:
        """Yield the bytes of a file, unpacked; at the end it is held against its hashes."""
        if file.packed:
            parts = iter([self._unpacked(file, parts, compression)])
        checks = self._hashers(file.raw)
        for part in parts:
            for check in checks.values():
                check.update(part)
            yield part
        self._compare(file.raw, checks)

    def _unpacked(self, file: _Stored, parts: Iterator[bytes], compression: str | None) -> bytes:
        if compression is None:
            raise FormatError("compressed, but the index names no compression")
        if not memory.fits(file.raw.nbytes):
            raise FormatError(memory.too_large(file.raw.nbytes))
        packed = b"".join(parts)
        checks = self._hashers(file.stored)
        for check in checks.values():
            check.update(packed)
        self._compare(file.stored, checks)
        try:
            return decompress(packed, compression, file.raw.nbytes)
        except ValueError as error:
            raise FormatError(str(error)) from error

    def _hashers(self, file: File) -> dict[str, Hasher]:
        known = [name for name in file.hashes if name in HASHES]
        best = fastest(known)
        return {name: hasher(name) for name in known if self.every or name == best}

    def _compare(self, file: File, found: Mapping[str, Hasher]) -> None:
        for name, check in found.items():
            if check.hexdigest() != file.hashes[name]:
                raise IntegrityError(
                    f"{self.store.where(file.name)}: its {name} is {check.hexdigest()}; the index "
                    f"says {file.hashes[name]}"
                )


def _spans(file: File) -> list[tuple[str, int, int]]:
    return [
        (file.name, at, min(_REQUEST, file.nbytes - at)) for at in range(0, file.nbytes, _REQUEST)
    ]


def _bodies(store: Store, spans: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
    window: list[tuple[str, int, int]] = []
    nbytes = 0
    for span in spans:
        if window and nbytes + span[2] > _AT_ONCE:
            yield from store.ranges(window)
            window, nbytes = [], 0
        window.append(span)
        nbytes += span[2]
    yield from store.ranges(window)
