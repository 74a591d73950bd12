"""Provide `ShardUnion`: the shards of several datasets, numbered one dataset after the other.

Each method calls the parts that the given shards or samples belong to. Each part has its own
caches. One `ShardTable` has the shards of all parts, so one kernel call reads samples of all parts.

Tested in tests/mixture/test_mixture.py.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.arrays import Rows, group_positions
from npstream._core.typing import Int64
from npstream.formats.index import Index, ShardArrays, ShardFiles
from npstream.shards.base import FetchResult, RemotePart
from npstream.shards.readahead import RemoteJob, run_all
from npstream.storage.deadlines import inherit_deadline

if TYPE_CHECKING:
    from npstream.shards.base import LoadedShard, Shards
    from npstream.shards.remote import RemoteShards

MAX_CONCURRENT = 32
"""Maximum number of datasets that one call reads concurrently."""

_NumberInPart: TypeAlias = "tuple[Shards[RemoteShards], int]"
"""A part, and the number of a shard or a sample within it."""


def _find_part(
    parts: Sequence[Shards[RemoteShards]], firsts: list[int], number: int
) -> _NumberInPart:
    """Find a shard or a sample by its number in the union, given the first number of each part."""
    part = bisect_right(firsts, number) - 1
    return parts[part], number - firsts[part]


class ShardUnion:
    """The shards of several datasets.

    Parameters
    ----------
    parts : sequence of Shards
        One for each dataset. Closing the union does not close them.
    indexes : sequence of Index, optional
        The index of each part, with the column names of the union. By default, the column names of
        the parts are used.

    Attributes
    ----------
    first_shards, first_samples : list of int
        The first shard and the first sample of each part, followed by the totals.
    """

    def __init__(
        self, parts: Sequence[Shards[RemoteShards]], indexes: Sequence[Index] | None = None
    ) -> None:
        self.parts = tuple(parts)
        indexes = [part.index for part in self.parts] if indexes is None else indexes
        self._indexes = indexes
        self.first_shards = [*accumulate(map(len, indexes), initial=0)]
        self.first_samples = [*accumulate((index.samples for index in indexes), initial=0)]
        self.root = f"mixture of {quantity(len(parts), 'dataset')}"
        self.index = union_index(indexes, _UnionCatalog(self.parts, self.first_shards))
        self._bounds = np.array(self.first_shards)
        # Each part is one dataset, so it has at most one entry in `remotes`: itself.
        self._remotes = {
            number: RemotePart(remote.shards, self.first_shards[number], self.first_samples[number])
            for number, part in enumerate(self.parts)
            for remote in part.remotes
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardUnion, (self.parts, self._indexes)

    def close(self) -> None:
        """No-op: the parts stay open."""

    # Finding parts

    def _find_shard(self, shard: int) -> _NumberInPart:
        return _find_part(self.parts, self.first_shards, shard)

    def _find_sample(self, sample: int) -> _NumberInPart:
        return _find_part(self.parts, self.first_samples, sample)

    def _groups(self, shard_of: Int64) -> Iterator[tuple[int, Rows]]:
        """Yield each part's number with the rows of `shard_of` that belong to it."""
        return group_positions(np.searchsorted(self._bounds, shard_of, side="right") - 1)

    @property
    def remotes(self) -> Sequence[RemotePart[RemoteShards]]:
        """The datasets that are in object stores."""
        return tuple(self._remotes.values())

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[RemoteShards], Rows]]:
        """Yield each dataset in an object store with the rows of `shard_of` that belong to it."""
        for number, rows in self._groups(shard_of):
            if (part := self._remotes.get(number)) is not None:
                yield part, rows

    def for_each_part(
        self, groups: Iterable[tuple[int, Rows]], work: Callable[[int, Rows], object]
    ) -> None:
        """Call `work` for the rows of each part; concurrently for parts in object stores."""
        jobs: list[RemoteJob] = []
        for number, rows in groups:
            if (remote := self._remotes.get(number)) is None:
                work(number, rows)
            else:
                jobs.append((remote.shards, inherit_deadline(partial(work, number, rows))))
        run_all(jobs, MAX_CONCURRENT)

    # Reading samples

    def fetch(self, ids: Int64, shard_of: Int64) -> FetchResult:
        """Fetch what samples need: their shards, or single samples where that costs less."""
        shards: list[Int64] = []
        samples = np.empty((2, len(ids)), np.int64)
        owners: list[object] = []

        def fetch(number: int, rows: Rows) -> None:
            first = self.first_shards[number]
            part_ids = ids[rows] - self.first_samples[number]
            fetched = self.parts[number].fetch(part_ids, shard_of[rows] - first)
            shards.append(fetched.shards + first)
            samples[:, rows] = fetched.samples
            owners.extend(fetched.owners)

        self.for_each_part(self._groups(shard_of), fetch)
        return FetchResult(np.sort(np.concatenate(shards)), samples, owners)

    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples into new buffers, without keeping their shards in memory."""
        address, nbytes = np.empty((2, len(ids)), np.int64)
        owners: list[object] = []

        def read(number: int, rows: Rows) -> None:
            part_ids = ids[rows] - self.first_samples[number]
            part_shard_of = shard_of[rows] - self.first_shards[number]
            samples = self.parts[number].read_samples(part_ids, part_shard_of)
            address[rows], nbytes[rows], part_owners = samples
            owners.extend(part_owners)

        self.for_each_part(self._groups(shard_of), read)
        return address, nbytes, owners

    # Opening shards

    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Open and check shards; skip those whose opening takes a request to a store."""
        loaded: dict[int, LoadedShard] = {}
        shard_numbers = np.array([*shards], np.int64)
        for number, rows in self._groups(shard_numbers):
            first = self.first_shards[number]
            opened = self.parts[number].open((shard_numbers[rows] - first).tolist())
            loaded |= {first + shard: value for shard, value in opened.items()}
        return loaded

    def buffer_bytes(self, shard: int) -> int | None:
        """Return the bytes of memory that an open shard takes, without memory-mapped files."""
        part, number = self._find_shard(shard)
        return part.buffer_bytes(number)

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Return True if a loaded shard must be opened again."""
        part, number = self._find_shard(shard)
        return part.is_stale(number, loaded)

    # Messages

    def describe(self, sample: int) -> str:
        """Return the location of a sample, for messages."""
        part, number = self._find_sample(sample)
        return part.describe(number)

    def raise_damaged(self, sample: int, reason: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError with the location of a sample and the reason."""
        part, number = self._find_sample(sample)
        part.raise_damaged(number, reason, cause)


class _UnionCatalog:
    """The files of all shards of a union, from the indexes of its parts."""

    def __init__(self, parts: tuple[Shards[RemoteShards], ...], first_shards: list[int]) -> None:
        self._parts = parts
        self._first_shards = first_shards

    def files(self, shard: int) -> ShardFiles:
        part, number = self._find_shard(shard)
        return part.index.files(number)

    def name(self, shard: int) -> str:
        part, number = self._find_shard(shard)
        return f"{part.root}/{part.index.name(number)}"

    def _find_shard(self, shard: int) -> _NumberInPart:
        return _find_part(self._parts, self._first_shards, shard)

    def size_limit(self, shard: int) -> int | None:
        part, number = self._find_shard(shard)
        return part.index.size_limit(number)

    def fingerprint(self, index: Index) -> str:
        fingerprints = [part.index.fingerprint() for part in self._parts]
        return hashlib.blake2b(repr(fingerprints).encode(), digest_size=8).hexdigest()


def union_index(indexes: Sequence[Index], catalog: _UnionCatalog) -> Index:
    """Return the index of the shards of all datasets, one dataset after the other."""
    id_of_schema: dict[Any, int] = {}
    schema_ids = []
    for index in indexes:
        new_ids = [id_of_schema.setdefault(schema, len(id_of_schema)) for schema in index.schemas]
        schema_ids.append(np.array(new_ids, np.int32)[index.schema_ids])
    arrays = ShardArrays(
        np.concatenate([np.diff(index.starts) for index in indexes]),
        np.concatenate([index.nbytes for index in indexes]),
        np.concatenate(schema_ids),
        np.concatenate([index.compressed for index in indexes]),
        tuple(id_of_schema),
    )
    suffix = f" and {len(indexes) - 1} more" if len(indexes) > 1 else ""
    return Index(arrays, catalog, f"{indexes[0].where}{suffix}")
