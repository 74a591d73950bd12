"""A shard in memory, and a source of shards: what tables, read-ahead and costs ask of it.

The shards of a local dataset, those of a dataset in an object store and those of several datasets
are such sources.

Tested in tests/shards/test_local.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Protocol, TypeAlias, TypeVar

import numpy as np

from npstream._core import memory
from npstream._core.typing import Bytes, Int64

if TYPE_CHECKING:
    from npstream._core.arrays import Rows
    from npstream.formats.index import Index

Remote = TypeVar("Remote", covariant=True)
"""The class of the shards of a dataset in an object store, which this module does not know."""

Verify = bool | str
"""Which recorded hashes are checked: "auto", those of what is decompressed; True, those of mapped
files too; False, none; a name, that one of both."""

Chunk: TypeAlias = tuple[int, int]
"""A chunk, by its shard and its number there."""


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """A shard in memory.

    ``offsets`` lie over the shard's own bytes, or its meta file's. ``begin`` is where the samples
    begin, ``stride`` their size, 0 if it varies. ``resident`` has a byte for each chunk, 1 if it
    is in memory; it is empty if all are.
    """

    data: Bytes
    offsets: np.ndarray[Any, np.dtype[np.uint32]]
    begin: int
    stride: int
    resident: Bytes

    @property
    def entry(self) -> tuple[int, ...]:
        """The shard's row in the table that kernels read."""
        chunks = len(self.resident)
        return (
            memory.address_of(self.data), memory.address_of(self.offsets), self.begin,
            len(self.data), self.stride, memory.address_of(self.resident) if chunks else 0, chunks,
        )  # fmt: skip


class RemotePart(NamedTuple, Generic[Remote]):
    """A dataset in an object store, and the numbers that its shards and samples begin with."""

    shards: Remote
    first_shard: int
    first_sample: int


class Shards(Protocol[Remote]):
    """The shards of one dataset, or of several datasets, numbered one after the other."""

    @property
    def index(self) -> Index:
        """The index of all shards."""

    @property
    def root(self) -> str:
        """The place of the dataset, for messages."""

    @property
    def remotes(self) -> Sequence[RemotePart[Remote]]:
        """The datasets that are in object stores."""

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[Remote], Rows]]:
        """Yield the datasets in object stores that samples belong to, and which samples do.

        Parameters
        ----------
        shard_of : ndarray of int64, shape (n,)
            The shard of each sample.
        """

    def fetch_shards(self, ids: Int64, shard_of: Int64) -> Int64:
        """Return the shards to open so that samples are in memory, fetched if need be."""

    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples of shards that cannot stay in memory.

        Returns
        -------
        address, nbytes : ndarray of int64, shape (n,)
            Where each sample lies, and its length; its `text.guard` lies before it.
        held : list
            What must be referred to while the addresses are in use.
        """

    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Open those of some shards that take no request, and check them against the index."""

    def buffer_bytes(self, shard: int) -> int | None:
        """Return the bytes of memory that a shard takes, open, besides maps.

        Returns
        -------
        int or None
            0 unless the shard is compressed; None if opening it takes a request.
        """

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Return True if a shard that is in memory is to be opened again."""

    def describe(self, sample: int) -> str:
        """Say where a sample is stored, for messages."""

    def raise_damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""

    def close(self) -> None:
        """Stop what runs in the background."""


def concatenate_parts(parts: list[bytes], guard: Int64 | int) -> tuple[Int64, Int64, Bytes]:
    """Lay byte strings end to end; return where they lie after their guard, and their lengths."""
    arena: Bytes = np.frombuffer(b"".join(parts), np.uint8)
    lengths = np.array([len(part) for part in parts], np.int64)
    address = memory.address_of(arena) + np.cumsum(lengths) - lengths + guard
    return address, lengths - guard, arena
