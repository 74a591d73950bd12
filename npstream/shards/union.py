"""The shards of several datasets as those of one, numbered one dataset after the other.

Each number is looked up and handed on to the shards that it belongs to, which keep what they have
fetched, so one table, and one call of a kernel, serves samples of all of them.

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
from npstream.shards.base import RemotePart
from npstream.shards.readahead import RemoteJob, run_all
from npstream.storage.deadlines import carried

if TYPE_CHECKING:
    from npstream.shards.base import LoadedShard, Shards
    from npstream.shards.remote import RemoteShards

MAX_CONCURRENT = 32
"""Datasets whose stores are waited for at once."""

_PartNumber: TypeAlias = "tuple[Shards[RemoteShards], int]"
"""A part, and the number there of a shard or a sample."""


def _find_part(
    parts: Sequence[Shards[RemoteShards]], firsts: list[int], number: int
) -> _PartNumber:
    """Return the part that a number belongs to, given the first number of each part."""
    part = bisect_right(firsts, number) - 1
    return parts[part], number - firsts[part]


class ShardUnion:
    """The shards of several datasets.

    Parameters
    ----------
    parts : sequence of Shards
        Each of one dataset. To close the union does not close them.

    Attributes
    ----------
    first_shards, first_samples : list of int
        The numbers that each part's begin with, then how many there are.
    """

    def __init__(self, parts: Sequence[Shards[RemoteShards]]) -> None:
        self.parts = tuple(parts)
        indexes = [part.index for part in self.parts]
        self.first_shards = [*accumulate(map(len, indexes), initial=0)]
        self.first_samples = [*accumulate((index.samples for index in indexes), initial=0)]
        self.root = f"mixture of {quantity(len(parts), 'dataset')}"
        self.index = union_index(indexes, _UnionCatalog(self.parts, self.first_shards))
        self._bounds = np.array(self.first_shards)
        self._remotes = {
            number: RemotePart(remote.shards, self.first_shards[number], self.first_samples[number])
            for number, part in enumerate(self.parts)
            for remote in part.remotes
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardUnion, (self.parts,)

    def close(self) -> None:
        """Do nothing: the parts stay open."""

    # Which part a number belongs to

    def _find_shard(self, shard: int) -> _PartNumber:
        return _find_part(self.parts, self.first_shards, shard)

    def _find_sample(self, sample: int) -> _PartNumber:
        return _find_part(self.parts, self.first_samples, sample)

    def _groups(self, shard_of: Int64) -> Iterator[tuple[int, Rows]]:
        """Yield the number of each part that some shards belong to, and which of them do."""
        return group_positions(np.searchsorted(self._bounds, shard_of, side="right") - 1)

    @property
    def remotes(self) -> Sequence[RemotePart[RemoteShards]]:
        """The datasets that are in object stores."""
        return tuple(self._remotes.values())

    def split(self, shard_of: Int64) -> Iterator[tuple[RemotePart[RemoteShards], Rows]]:
        """Yield the datasets in object stores that samples belong to, and which samples do."""
        for number, rows in self._groups(shard_of):
            if (part := self._remotes.get(number)) is not None:
                yield part, rows

    def for_each_part(
        self, groups: Iterable[tuple[int, Rows]], work: Callable[[int, Rows], object]
    ) -> None:
        """Do something for samples of some parts; side by side where that waits for stores."""
        jobs: list[RemoteJob] = []
        for number, rows in groups:
            if (remote := self._remotes.get(number)) is None:
                work(number, rows)
            else:
                jobs.append((remote.shards, carried(partial(work, number, rows))))
        run_all(jobs, MAX_CONCURRENT)

    # Reading samples

    def fetch_shards(self, ids: Int64, shard_of: Int64) -> Int64:
        """Return the shards to open so that samples are in memory, fetched if need be."""
        found: list[Int64] = []

        def fetch(number: int, rows: Rows) -> None:
            first = self.first_shards[number]
            mine = ids[rows] - self.first_samples[number]
            found.append(self.parts[number].fetch_shards(mine, shard_of[rows] - first) + first)

        self.for_each_part(self._groups(shard_of), fetch)
        return np.sort(np.concatenate(found))

    def read_samples(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples of shards that cannot stay in memory."""
        address, nbytes = np.empty((2, len(ids)), np.int64)
        held: list[object] = []

        def read(number: int, rows: Rows) -> None:
            mine = ids[rows] - self.first_samples[number]
            found = self.parts[number].read_samples(
                mine, shard_of[rows] - self.first_shards[number]
            )
            address[rows], nbytes[rows], more = found
            held.extend(more)

        self.for_each_part(self._groups(shard_of), read)
        return address, nbytes, held

    # Opening shards

    def open(self, shards: Iterable[int]) -> dict[int, LoadedShard]:
        """Open those of some shards that take no request, and check them against their index."""
        found: dict[int, LoadedShard] = {}
        wanted = np.array([*shards], np.int64)
        for number, rows in self._groups(wanted):
            first = self.first_shards[number]
            opened = self.parts[number].open((wanted[rows] - first).tolist())
            found |= {first + shard: loaded for shard, loaded in opened.items()}
        return found

    def buffer_bytes(self, shard: int) -> int | None:
        """Return the bytes of memory that a shard takes, open, besides maps."""
        part, mine = self._find_shard(shard)
        return part.buffer_bytes(mine)

    def is_stale(self, shard: int, loaded: LoadedShard) -> bool:
        """Return True if a shard that is in memory is to be opened again."""
        part, mine = self._find_shard(shard)
        return part.is_stale(mine, loaded)

    # Messages

    def describe(self, sample: int) -> str:
        """Say where a sample is stored, for messages."""
        part, mine = self._find_sample(sample)
        return part.describe(mine)

    def raise_damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""
        part, mine = self._find_sample(sample)
        part.raise_damaged(mine, what, cause)


class _UnionCatalog:
    """The files of joined shards, as the parts' indexes know them."""

    def __init__(self, parts: tuple[Shards[RemoteShards], ...], first_shards: list[int]) -> None:
        self._parts = parts
        self._first_shards = first_shards

    def files(self, shard: int) -> ShardFiles:
        part, mine = self._find_shard(shard)
        return part.index.files(mine)

    def name(self, shard: int) -> str:
        part, mine = self._find_shard(shard)
        return f"{part.root}/{part.index.name(mine)}"

    def _find_shard(self, shard: int) -> _PartNumber:
        return _find_part(self._parts, self._first_shards, shard)

    def fingerprint(self, index: Index) -> str:
        known = [part.index.fingerprint() for part in self._parts]
        return hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()


def union_index(indexes: Sequence[Index], catalog: _UnionCatalog) -> Index:
    """Return the index of all shards, one dataset's after the other's."""
    numbers: dict[Any, int] = {}
    schema_ids = []
    for index in indexes:
        own = [numbers.setdefault(schema, len(numbers)) for schema in index.schemas]
        schema_ids.append(np.array(own, np.int32)[index.schema_ids])
    facts = ShardArrays(
        np.concatenate([np.diff(index.starts) for index in indexes]),
        np.concatenate([index.nbytes for index in indexes]),
        np.concatenate(schema_ids),
        np.concatenate([index.compressed for index in indexes]),
        tuple(numbers),
    )
    others = f" and {len(indexes) - 1} more" if len(indexes) > 1 else ""
    return Index(facts, catalog, f"{indexes[0].where}{others}")
