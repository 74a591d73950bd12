"""Scans of whole shards, read sequentially from a store.

Tested in tests/tools/test_index_builder.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core import memory
from npstream._core.typing import Bools, Span
from npstream.errors import FormatError, IntegrityError, NpstreamError, StorageError
from npstream.formats.compression import decompress
from npstream.formats.hashes import HASHES, Hasher, fastest, hasher
from npstream.formats.scan import Scan, ScanResult

if TYPE_CHECKING:
    from npstream.formats.index import File, Index
    from npstream.storage.local import Store

_REQUEST_BYTES = 1 << 22
"""Maximum bytes of a range request."""

_MAX_GROUP_BYTES = 1 << 25
"""Maximum bytes that one call of the store reads.

A compressed file is also held in memory as a whole, because it is decompressed at once.
"""

_MAX_GROUP_SHARDS = 256

_TASKS_PER_THREAD = 2
"""Number of tasks that are submitted to a cluster at once, for each of its threads."""


class _StoredFile(NamedTuple):
    """A file to read, which may be compressed, and the same file without compression."""

    stored: File
    uncompressed: File
    is_compressed: bool


class ShardScanner:
    """Reads and scans whole shards.

    Parameters
    ----------
    index : Index
    store : LocalStore or RemoteStore
    compressed : ndarray of bool, shape (shards,)
        True for shards to read from their compressed files.
    columns : mapping of str to dtype
        The scalar columns to extract.
    check_all : bool, default: False
        If True, check all recorded hashes, and parse all columns of text shards. If False, check
        only the fastest hash, and parse only `columns`.
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

    def scan_groups(
        self, groups: Sequence[Sequence[int]], client: Any = None
    ) -> Iterator[Iterable[tuple[int, ScanResult | NpstreamError]]]:
        """Scan groups of shards; yield the results of each group, in order.

        Parameters
        ----------
        groups : sequence of sequence of int
            Numbers of shards.
        client : distributed.Client, optional
            A client of a Dask cluster. Its workers scan the groups, each in one task. By default
            this process scans them, one shard at a time.
        """
        if client is None:
            yield from map(self.scan_group, groups)
            return
        # The workers get the index once, and not with each task.
        scanner = client.scatter(self, broadcast=True)
        max_pending = _TASKS_PER_THREAD * max(sum(client.nthreads().values()), 1)
        pending: deque[Any] = deque()
        try:
            for group in groups:
                pending.append(client.submit(_scan_list, scanner, group, pure=False))
                if len(pending) >= max_pending:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            client.cancel([*pending, scanner])

    def scan_group(self, group: Sequence[int]) -> Iterator[tuple[int, ScanResult | NpstreamError]]:
        """Scan the shards of a group; yield each shard with its result or its error."""
        yielded_shards = 0
        try:
            for shard, result in self._scan_in_one_call(group):
                yield shard, result
                yielded_shards += 1
        except StorageError as error:
            if len(group) == 1:
                yield group[0], error
            else:
                # Other shards of the group may be readable, so read each of them alone.
                for shard in group[yielded_shards:]:
                    yield from self.scan_group([shard])

    def _scan_in_one_call(
        self, group: Sequence[int]
    ) -> Iterator[tuple[int, ScanResult | NpstreamError]]:
        files_by_shard = [self._files(shard) for shard in group]
        spans = [
            span
            for files in files_by_shard
            for file in files
            for span in _request_spans(file.stored)
        ]
        bodies = _read_spans(self.store, spans)
        for shard, files in zip(group, files_by_shard, strict=True):
            parts = islice(bodies, sum(len(_request_spans(file.stored)) for file in files))
            try:
                yield shard, self._scan_shard(shard, files, parts)
            except (FormatError, IntegrityError) as error:
                yield shard, error
            for _ in parts:  # skip the rest of a damaged shard
                pass

    def _files(self, shard: int) -> list[_StoredFile]:
        """Return a shard's files: first the meta file with the offsets, if any, then the data."""
        files, prefers_zip = self.index.files(shard), bool(self.compressed[shard])
        pairs = [(files.meta, files.zip_meta), (files.data, files.zip_data)]
        return [
            _StoredFile(
                zipped if prefers_zip and zipped else raw, raw, bool(prefers_zip and zipped)
            )
            for raw, zipped in pairs
            if raw is not None
        ]

    def _scan_shard(
        self, shard: int, files: list[_StoredFile], parts: Iterator[bytes]
    ) -> ScanResult:
        index, meta = self.index, None
        compression = index.files(shard).compression
        *meta_files, data_file = files
        for meta_file in meta_files:
            meta_parts = islice(parts, len(_request_spans(meta_file.stored)))
            meta = b"".join(self._uncompressed_parts(meta_file, meta_parts, compression))
        path = self.store.where(data_file.stored.name)
        try:
            scan = Scan(
                index.schemas[index.schema_ids[shard]],
                int(index.starts[shard + 1] - index.starts[shard]),
                self.columns,
                # A shard with a compressed file has one chunk, even if its raw file is read.
                compressed=bool(index.compressed[shard]),
                nbytes=int(index.nbytes[shard]),
                meta=meta,
                parse_all=self.check_all,
                statistics_dtypes=index.annotations.dtypes,
            )
            for body in self._uncompressed_parts(data_file, parts, compression):
                scan.feed(body)
            return scan.finish()
        except (FormatError, OverflowError) as error:
            raise type(error)(f"{path} (shard {shard}): {error}") from None

    def _uncompressed_parts(
        self, file: _StoredFile, parts: Iterator[bytes], compression: str | None
    ) -> Iterator[bytes]:
        """Yield the uncompressed bytes of a file, and check its hashes at the end."""
        if file.is_compressed:
            parts = iter([self._decompress(file, parts, compression)])
        hashers = self._hashers(file.uncompressed)
        for part in parts:
            for file_hasher in hashers.values():
                file_hasher.update(part)
            yield part
        self._check_hashes(file.uncompressed, hashers)

    def _decompress(
        self, file: _StoredFile, parts: Iterator[bytes], compression: str | None
    ) -> bytes:
        if compression is None:
            raise FormatError("compressed, but the index names no compression")
        nbytes = file.uncompressed.nbytes
        if not memory.fits_in_memory(nbytes):
            raise FormatError(memory.too_large_text(nbytes))
        data = b"".join(parts)
        hashers = self._hashers(file.stored)
        for file_hasher in hashers.values():
            file_hasher.update(data)
        self._check_hashes(file.stored, hashers)
        try:
            return decompress(data, compression, nbytes)
        except ValueError as error:
            raise FormatError(str(error)) from error

    def _hashers(self, file: File) -> dict[str, Hasher]:
        names = [name for name in file.hashes if name in HASHES]
        best = fastest(names)
        return {name: hasher(name) for name in names if self.check_all or name == best}

    def _check_hashes(self, file: File, hashers: Mapping[str, Hasher]) -> None:
        for name, file_hasher in hashers.items():
            digest = file_hasher.hexdigest()
            if digest != file.hashes[name]:
                raise IntegrityError(
                    f"{self.store.where(file.name)}: its {name} is {digest}; the index says "
                    f"{file.hashes[name]}"
                )


def _scan_list(
    scanner: ShardScanner, group: Sequence[int]
) -> list[tuple[int, ScanResult | NpstreamError]]:
    """Scan a group of shards, in a task of Dask."""
    return list(scanner.scan_group(group))


def _request_spans(file: File) -> list[Span]:
    """Return the byte ranges of the requests that read a whole file."""
    return [
        (file.name, offset, min(_REQUEST_BYTES, file.nbytes - offset))
        for offset in range(0, file.nbytes, _REQUEST_BYTES)
    ]


def _read_spans(store: Store, spans: Sequence[Span]) -> Iterator[bytes]:
    """Yield the bytes of each span, reading at most `_MAX_GROUP_BYTES` at once."""
    group: list[Span] = []
    nbytes = 0
    for span in spans:
        if group and nbytes + span[2] > _MAX_GROUP_BYTES:
            yield from store.ranges(group)
            group, nbytes = [], 0
        group.append(span)
        nbytes += span[2]
    yield from store.ranges(group)
