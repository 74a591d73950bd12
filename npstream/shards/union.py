"""The shards of several datasets as those of one, numbered one dataset after the other.

Each number is looked up and handed on to the shards that it belongs to, which keep what they have
fetched, so one table, and one call of a kernel, serves samples of all of them.

Tested in tests/mixture/test_mixture.py.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

import numpy as np

from npstream._core.arrays import Rows, grouped
from npstream._core.typing import Int64
from npstream.formats import mds
from npstream.formats.index import Index, ShardFacts, ShardFiles
from npstream.shards.readahead import Job, ReadAhead, RowsAhead, side_by_side
from npstream.storage.deadlines import carried

if TYPE_CHECKING:
    import threading

    from npstream.shards.base import Chunk, Region
    from npstream.shards.local import Shards
    from npstream.shards.remote import RemoteShards

SIDE_BY_SIDE = 32
"""Datasets whose stores are waited for at once."""


class JoinedShards:
    """The shards of several datasets.

    Parameters
    ----------
    parts : sequence of Shards
        They stay whoever's they are: to close this does not close them.

    Attributes
    ----------
    first_shards, first_samples : list of int
        The numbers that each part's begin with, then how many there are.
    layouts : list of Layout or None
        As `npstream.shards.local.Shards` has them, for the schemas of the joined index.
    """

    def __init__(self, parts: Sequence[Shards]) -> None:
        self.parts = tuple(parts)
        indexes = [part.index for part in self.parts]
        self.first_shards = [*accumulate(map(len, indexes), initial=0)]
        self.first_samples = [*accumulate((index.samples for index in indexes), initial=0)]
        self.root = f"mixture of {len(parts)} datasets"
        self.index = joined_index(indexes, _Catalog(self.parts, self.first_shards))
        self.layouts = [mds.layout(s) if s.format == "mds" else None for s in self.index.schemas]
        self._bounds = np.array(self.first_shards)
        self._remote: dict[int, RemoteShards] = {
            number: part  # type: ignore[misc]
            for number, part in enumerate(self.parts)
            if not part.store.is_local
        }
        self._readers: WeakSet[ReadAhead | RowsAhead] = WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedShards, (self.parts,)

    def close(self) -> None:
        """Stop what is read ahead for this; the parts stay open."""
        for reader in list(self._readers):
            reader.close()
            self.stop(reader.threads)

    # Whose a number is

    def place(self, shard: int) -> tuple[Shards, int]:
        """Return the part that a shard belongs to, and its number there."""
        number = bisect_right(self.first_shards, shard) - 1
        return self.parts[number], shard - self.first_shards[number]

    def _by_shards(self, shard_of: Int64) -> Iterator[tuple[int, Rows]]:
        """Yield the number of each part that some shards belong to, and which of them do."""
        return grouped(np.searchsorted(self._bounds, shard_of, side="right") - 1)

    def each(self, parts: Iterable[tuple[int, Rows]], work: Callable[[int, Rows], object]) -> None:
        """Do something for samples of some parts; side by side where that waits for stores."""
        jobs: list[Job] = []
        for number, rows in parts:
            if (remote := self._remote.get(number)) is None:
                work(number, rows)
            else:
                jobs.append((remote, carried(partial(work, number, rows))))
        if len(jobs) == 1:
            jobs[0][1]()
        elif jobs:
            for _ in side_by_side(jobs, SIDE_BY_SIDE):
                pass

    # What `npstream.shards.table.Fetcher` asks for

    def bring(self, ids: Int64, shard_of: Int64) -> Int64:
        """Return the shards to be opened so that samples are in memory."""
        found: list[Int64] = []

        def bring(number: int, rows: Rows) -> None:
            first = self.first_shards[number]
            mine = ids[rows] - self.first_samples[number]
            found.append(self.parts[number].bring(mine, shard_of[rows] - first) + first)

        self.each(self._by_shards(shard_of), bring)
        return np.sort(np.concatenate(found))

    def borrow(self, ids: Int64, shard_of: Int64) -> tuple[Int64, Int64, list[object]]:
        """Read samples of shards that cannot stay in memory, as `Shards.borrow` does."""
        address, nbytes = np.empty((2, len(ids)), np.int64)
        held: list[object] = []

        def borrow(number: int, rows: Rows) -> None:
            mine = ids[rows] - self.first_samples[number]
            found = self.parts[number].borrow(mine, shard_of[rows] - self.first_shards[number])
            address[rows], nbytes[rows], more = found
            held.extend(more)

        self.each(self._by_shards(shard_of), borrow)
        return address, nbytes, held

    def open(self, shards: Iterable[int]) -> dict[int, Region]:
        """Map or decompress the files of shards, and check them against their index."""
        found: dict[int, Region] = {}
        for number, mine in self._by_part(shards).items():
            first = self.first_shards[number]
            opened = self.parts[number].open(mine)
            found |= {first + shard: region for shard, region in opened.items()}
        return found

    def _by_part(self, shards: Iterable[int]) -> dict[int, list[int]]:
        """Return shards by the number of their part, as they are numbered there."""
        found: dict[int, list[int]] = {}
        for shard in shards:
            number = bisect_right(self.first_shards, shard) - 1
            found.setdefault(number, []).append(shard - self.first_shards[number])
        return found

    def buffered(self, shard: int) -> int:
        """Return the bytes of memory that a shard takes beside maps."""
        part, mine = self.place(shard)
        return part.buffered(mine)

    def is_ready(self, shard: int) -> bool:
        """Tell whether a shard can be opened without a request to a store."""
        part, mine = self.place(shard)
        return part.is_ready(mine)

    def is_stale(self, shard: int, region: Region) -> bool:
        """Tell whether a shard that is in memory is to be opened anew."""
        part, mine = self.place(shard)
        return part.is_stale(mine, region)

    def passed(self, shards: range, now: int | None) -> None:
        """Note that samples are read in order, who has done with some shards, and is in another."""
        done = self._by_part(shards)
        if now is not None:
            for number, (mine,) in self._by_part([now]).items():
                self.parts[number].passed(_run(done.pop(number, [])), mine)
        for number, others in done.items():
            self.parts[number].passed(_run(others), None)

    def damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""
        number = bisect_right(self.first_samples, sample) - 1
        self.parts[number].damaged(sample - self.first_samples[number], what, cause)

    def describe(self, sample: int) -> str:
        """Say where a sample is stored, for messages."""
        number = bisect_right(self.first_samples, sample) - 1
        return self.parts[number].describe(sample - self.first_samples[number])

    # Reading ahead, of the parts that are in object stores

    def read_ahead(self) -> AbstractContextManager[ReadAhead | None]:
        """Return what fetches shards in the background, if anything does."""
        if not self._remote:
            return nullcontext()
        reader = ReadAhead(self)
        self._readers.add(reader)
        for part in self._remote.values():
            part.attend(reader)
        return reader

    def remote_parts(self) -> list[tuple[RemoteShards, int]]:
        """Return the datasets in stores, and the number of the first sample of each."""
        return [(part, self.first_samples[number]) for number, part in self._remote.items()]

    def rows_ahead(self) -> RowsAhead:
        """Return what fetches single samples in the background."""
        reader = RowsAhead(self)
        self._readers.add(reader)
        return reader

    def hold_rows(self, nbytes: int) -> None:
        """Keep so many more bytes of single samples of each dataset in memory, or fewer."""
        for part in self._remote.values():
            part.hold_rows(nbytes)

    def fetch_rows(self, ids: Int64, shard_of: Int64) -> None:
        """Bring samples that are in stores into memory, if their chunks are not here."""

        def fetch(number: int, rows: Rows) -> None:
            if (part := self._remote.get(number)) is not None:
                first, samples = self.first_shards[number], self.first_samples[number]
                part.fetch_rows(ids[rows] - samples, shard_of[rows] - first)

        self.each(self._by_shards(shard_of), fetch)

    def rows_bytes(self, shard_of: Int64) -> int:
        """Return about how many bytes samples of some shards have that are in stores."""
        return sum(
            part.rows_bytes(shard_of[rows] - self.first_shards[number])
            for number, rows in self._by_shards(shard_of)
            if (part := self._remote.get(number)) is not None
        )

    @property
    def cache_limit(self) -> int | None:
        """The bytes that the smallest of the caches may take, if that is known."""
        limits = [part.cache_limit for part in self._remote.values()]
        return min((limit for limit in limits if limit is not None), default=None)

    def wanted(self, ids: Int64, shard_of: Int64) -> list[tuple[Chunk, int]]:
        """Return the chunks of samples that are in stores, with their counts."""
        found: list[tuple[Chunk, int]] = []
        for number, rows in self._by_shards(shard_of):
            if (part := self._remote.get(number)) is not None:
                first, samples = self.first_shards[number], self.first_samples[number]
                chunks = part.wanted(ids[rows] - samples, shard_of[rows] - first)
                found += [((first + shard, chunk), count) for (shard, chunk), count in chunks]
        return found

    def chunk_bytes(self, shard: int) -> int:
        """Return about how many bytes a chunk of a shard in a store has."""
        part, mine = self._remote_place(shard)
        return part.chunk_bytes(mine)

    def claim(self, chunk: Chunk) -> bool:
        """Say that a chunk will be fetched, unless it is here or somebody else said so."""
        part, mine = self._remote_place(chunk[0])
        return part.claim((mine, chunk[1]))

    def release(self, chunks: Iterable[Chunk]) -> None:
        """Say that chunks have come, or will not come after all."""
        for part, mine in self._remote_chunks(chunks):
            part.release(mine)

    def fetch(self, chunks: Iterable[Chunk]) -> None:
        """Bring chunks into the caches, as far as these can hold them."""
        jobs: list[Job] = [
            (part, partial(part.fetch, mine)) for part, mine in self._remote_chunks(chunks)
        ]
        if len(jobs) == 1:
            jobs[0][1]()
            return
        for _ in side_by_side(jobs):
            pass

    def stop(self, threads: Iterable[threading.Thread]) -> None:
        """Let the requests of some threads fail, now and later."""
        for part in self._remote.values():
            part.stop(threads)

    def _remote_place(self, shard: int) -> tuple[RemoteShards, int]:
        number = bisect_right(self.first_shards, shard) - 1
        return self._remote[number], shard - self.first_shards[number]

    def _remote_chunks(self, chunks: Iterable[Chunk]) -> list[tuple[RemoteShards, list[Chunk]]]:
        """Return chunks with the part that they belong to, as they are numbered there."""
        found: dict[int, list[Chunk]] = {}
        for shard, chunk in chunks:
            number = bisect_right(self.first_shards, shard) - 1
            found.setdefault(number, []).append((shard - self.first_shards[number], chunk))
        return [(self._remote[number], mine) for number, mine in found.items()]


class _Catalog:
    """The files of joined shards, as the parts' indexes know them."""

    def __init__(self, parts: tuple[Shards, ...], first_shards: list[int]) -> None:
        self._parts = parts
        self._first_shards = first_shards

    def files(self, shard: int) -> ShardFiles:
        part, mine = self._place(shard)
        return part.index.files(mine)

    def name(self, shard: int) -> str:
        part, mine = self._place(shard)
        return part.store.where(part.index.name(mine))

    def _place(self, shard: int) -> tuple[Shards, int]:
        number = bisect_right(self._first_shards, shard) - 1
        return self._parts[number], shard - self._first_shards[number]

    def fingerprint(self, index: Index) -> str:
        known = [part.index.fingerprint() for part in self._parts]
        return hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()


def joined_index(indexes: Sequence[Index], catalog: _Catalog) -> Index:
    """Return the index of all shards, one dataset's after the other's."""
    numbers: dict[Any, int] = {}
    schema_of = []
    for index in indexes:
        own = [numbers.setdefault(schema, len(numbers)) for schema in index.schemas]
        schema_of.append(np.array(own, np.int32)[index.schema_of])
    facts = ShardFacts(
        np.concatenate([np.diff(index.starts) for index in indexes]),
        np.concatenate([index.nbytes for index in indexes]),
        np.concatenate(schema_of),
        np.concatenate([index.compressed for index in indexes]),
        tuple(numbers),
    )
    others = f" and {len(indexes) - 1} more" if len(indexes) > 1 else ""
    return Index(facts, catalog, f"{indexes[0].where}{others}")


def _run(shards: list[int]) -> range:
    """Return successive shards, rising or falling, as a range."""
    if not shards:
        return range(0)
    step = 1 if shards[-1] >= shards[0] else -1
    return range(shards[0], shards[-1] + step, step)
