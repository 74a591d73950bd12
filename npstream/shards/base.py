"""Provide `LoadedShard`, a shard in memory, and `Shards`, the protocol of a dataset's shards.

`LocalShards`, `RemoteShards` and `ShardUnion` follow the protocol. Tables, read-ahead and cost
estimates use them only through the protocol.

Tested in tests/shards/test_local.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar

import numpy as np

from npstream._core import memory
from npstream._core.typing import Bytes, Int64

if TYPE_CHECKING:
    from npstream._core.arrays import Rows
    from npstream.cache.shard_file import CachedFile
    from npstream.formats.index import Index

RemoteShardsT = TypeVar("RemoteShardsT", covariant=True)
"""The class `RemoteShards`, which this module does not import."""

Verify = bool | str
"""Which recorded hashes to check.

"auto" checks the hashes of decompressed files. True also checks the hashes of mapped files. False
checks none. The name of a hash checks this hash of all files.
"""

Chunk: TypeAlias = tuple[int, int]
"""A chunk: the shard number, and the chunk number within the shard."""


_NO_SLOTS: Int64 = np.empty((0, 2), np.int64)


class LoadedShard(NamedTuple):
    """A shard in memory.

    Attributes
    ----------
    data : ndarray of uint8
        The bytes of the data file.
    offsets : ndarray of uint32, shape (samples + 1,)
        The offsets table, a view of the data file or of the meta file.
    begin : int
        The first byte of the samples.
    stride : int
        The size of every sample in bytes; 0 if sizes vary.
    resident : ndarray of uint8, shape (chunks,)
        1 for each chunk that is in `data`. Empty if all chunks are.
    slots : ndarray of int64, shape (chunks, 2)
        Where each chunk is, as `npstream.shards.kernels` describes. Empty if all chunks are in
        `data`.
    chunk_files : dict of int to CachedFile
        The files of chunks that are not in `data`, by the number of the chunk.
    file : CachedFile or None
        The file of the cache that has `data`; None if `data` are in a local file or a buffer.
    """

    data: Bytes
    offsets: np.ndarray[Any, np.dtype[np.uint32]]
    begin: int
    stride: int
    resident: Bytes
    slots: Int64 = _NO_SLOTS
    chunk_files: Mapping[int, CachedFile] = MappingProxyType({})
    file: CachedFile | None = None

    @property
    def entry(self) -> tuple[int, ...]:
        """The shard's row in `npstream.shards.table.ShardTable.entries`."""
        chunks = len(self.slots)
        return (
            memory.address_of(self.data), memory.address_of(self.offsets), self.begin,
            len(self.data), self.stride, memory.address_of(self.slots) if chunks else 0, chunks,
        )  # fmt: skip

    @property
    def has_evicted_files(self) -> bool:
        """True if the cache has evicted a file of the shard.

        Such a file takes disk space as long as it is mapped.
        """
        if self.file is not None and not self.file.present[0]:
            return True
        return any(not file.present[1 + chunk] for chunk, file in self.chunk_files.items())

    def is_resident(self, chunk: int) -> bool:
        """Return True if a chunk is in memory."""
        if not len(self.resident) or self.resident[chunk] == 1:
            return True
        file = self.chunk_files.get(chunk)
        return file is not None and file.resident[1 + chunk] == 1


class RemotePart(NamedTuple, Generic[RemoteShardsT]):
    """A dataset in an object store, as a part of `Shards`.

    Attributes
    ----------
    shards : RemoteShards
        The shards of this dataset.
    first_shard, first_sample : int
        The numbers of its first shard and its first sample, counted over all parts.
    """

    shards: RemoteShardsT
    first_shard: int
    first_sample: int


class FetchResult(NamedTuple):
    """The result of `Shards.fetch`.

    Attributes
    ----------
    shards : ndarray of int64
        The shards to open, in ascending order.
    samples : ndarray of int64, shape (2, n)
        The address and the length of each sample that was read on its own. The address is 0 for
        a sample that is in one of `shards`.
    owners : list
        The owners of that memory. Keep them alive while the addresses are in use.
    """

    shards: Int64
    samples: Int64
    owners: list[object]


class Shards(Protocol[RemoteShardsT]):
    """The shards of one dataset, or of several datasets, numbered consecutively."""

    @property
    def index(self) -> Index:
        """The index of all shards."""

    @property
    def root(self) -> str:
        """The URL or directory of the dataset, for messages."""

    @property
    def remotes(self) -> Sequence[RemotePart[RemoteShardsT]]:
        """The datasets that are in object stores."""

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[RemoteShardsT], Rows]]:
        """Yield each dataset in an object store with the rows of `shard_of` that belong to it.

        Parameters
        ----------
        shard_of : ndarray of int64, shape (n,)
            The shard of each sample.
        """

    def fetch(self, ids: Int64, shard_of: Int64) -> FetchResult:
        """Fetch what samples need: their shards, or single samples where that costs less.

        Parameters
        ----------
        ids, shard_of : ndarray of int64, shape (n,)
            Samples, and the shard of each.
        """

    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples into new buffers, without keeping their shards in memory.

        Parameters
        ----------
        ids, shard_of : ndarray of int64, shape (n,)
            Samples, and the shard of each.

        Returns
        -------
        address, nbytes : ndarray of int64, shape (n,)
            The address and the length of each sample. The `text.guard_nbytes` bytes before a
            sample are in the buffer as well.
        owners : list
            The owners of that memory. Keep them alive while the addresses are in use.
        """

    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Open and check shards; skip those whose opening takes a request to a store."""

    def buffer_bytes(self, shard: int) -> int | None:
        """Return the bytes of memory that an open shard takes, without memory-mapped files.

        Returns
        -------
        int or None
            0 for an uncompressed shard. None if opening the shard takes a request to a store.
        """

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Return True if a loaded shard must be opened again."""

    def describe(self, sample: int) -> str:
        """Return the location of a sample, for messages."""

    def raise_damaged(self, sample: int, reason: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError with the location of a sample and the reason."""

    def close(self) -> None:
        """Stop background work."""


def concatenate_parts(parts: list[bytes], guard: Int64 | int) -> tuple[Int64, Int64, Bytes]:
    """Concatenate samples into one buffer.

    Parameters
    ----------
    parts : list of bytes
        The samples, each with its guard bytes in front.
    guard : int or ndarray of int64
        The number of guard bytes of all samples, or of each. See `text.guard_nbytes`.

    Returns
    -------
    address, nbytes : ndarray of int64, shape (n,)
        The address and the length of each sample, without its guard bytes.
    buffer : ndarray of uint8
        The owner of that memory.
    """
    buffer: Bytes = np.frombuffer(b"".join(parts), np.uint8)
    lengths = np.array([len(part) for part in parts], np.int64)
    address = memory.address_of(buffer) + np.cumsum(lengths) - lengths + guard
    return address, lengths - guard, buffer
