"""Compare the order of an iteration with a cache that cannot hold all chunks.

`is_rowwise` estimates if an order would fetch the same chunks again and again, because the cache
evicts a chunk before its samples are read. Samples are then read one by one (rowwise).

`EvictionOrder` marks each cached chunk with its next use: in the rest of this epoch, or in the next
epoch. The cache first evicts the chunk whose next use is the latest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream._core.typing import AnyArray, Int64
from npstream.shards.residency import shard_disk_bytes
from npstream.storage.coalesce import REQUEST_BYTES

if TYPE_CHECKING:
    from npstream.cache.cache import ShardCache
    from npstream.shards.base import RemotePart, Shards
    from npstream.shards.remote import RemoteShards

__all__ = [
    "MAX_PREFIX", "READ_FRACTION", "ChunkUses", "EvictionOrder", "ReadOrder", "is_rowwise",
    "refetched_bytes", "split_large_datasets",
]  # fmt: skip

MAX_PREFIX = 1 << 18
"""The estimate looks at this many samples of an order at most."""

READ_FRACTION = 0.75
"""The fraction of the cache's limit for chunks that are being read. Read-ahead takes the rest."""


class ReadOrder(NamedTuple):
    """An order in which samples are read.

    Attributes
    ----------
    prefix : callable
        Takes n and returns the first n sample numbers of the order, or all if there are fewer.
    fraction : float
        The approximate fraction of a chunk's samples that this machine reads.
    """

    prefix: Callable[[int], Int64]
    fraction: float = 1.0


class _ChunkReads(NamedTuple):
    """The chunks that an order reads, of all datasets with one cache.

    Attributes
    ----------
    chunks : ndarray of int64, shape (samples,)
        The number of each sample's chunk, in the order of the samples.
    nbytes, samples : ndarray, shape (chunks,)
        Bytes and samples of each chunk.
    """

    chunks: Int64
    nbytes: AnyArray
    samples: AnyArray


def is_rowwise(
    shards: Shards[RemoteShards],
    order: ReadOrder,
    suggest: Callable[[Callable[[ReadOrder], bool]], str] | None = None,
) -> bool:
    """Return True if samples must be read one by one, because the cache cannot keep their chunks.

    Parameters
    ----------
    shards : Shards
    order : ReadOrder
    suggest : callable, optional
        Returns a change of the order, as text for the error message. Its argument is a function
        that returns True if a given order fits the cache.

    Raises
    ------
    ValueError
        If single samples cannot be read, because shards are compressed or `verify` is True.
    """
    result = False
    for cache, parts in _datasets_by_cache(shards.remotes):
        limit, total = cache.limit, sum(part.files.disk_bytes() for part in parts)
        if limit is None and total > cache.free_bytes():
            limit = cache.max_bytes()
        if limit is None or limit >= total or not _exceeds_cache(shards, order, cache, limit):
            continue
        result = True
        for part in parts:
            if part.index.compressed.any() or part.verify is True:
                fits = partial(_fits, shards, cache)
                min_limit = _min_limit(partial(fits, order), limit, total)
                advice = "read the samples in the order in which they are stored"
                if suggest is not None:
                    advice = suggest(lambda other: fits(other, limit))  # noqa: B023 - called now
                raise ValueError(_refusal_text(part, limit, min_limit, advice))
    return result


def _refusal_text(part: RemoteShards, limit: int, min_limit: int, advice: str) -> str:
    reason = "verify=True verifies chunks" if part.verify is True else "its shards are compressed"
    return (
        f"{part.store.root}: in this order, the cache evicts chunks before their samples are read, "
        "so a chunk would be fetched for each sample; and no sample can be read alone, as "
        f"{reason}. The cache may take {size_text(limit)}: raise cache_limit to at least "
        f"{quantity(min_limit, 'byte')}, or {advice}"
    )


def _fits(shards: Shards[RemoteShards], cache: ShardCache, order: ReadOrder, limit: int) -> bool:
    return not _exceeds_cache(shards, order, cache, limit)


def _min_limit(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest limit that fits, to within 1/16. `low` does not fit; `high` does."""
    while high - low > low >> 4:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _datasets_by_cache(
    remotes: Iterable[RemotePart[RemoteShards]],
) -> Iterator[tuple[ShardCache, list[RemoteShards]]]:
    """Yield each cache with the datasets that use it."""
    groups: dict[str, tuple[ShardCache, list[RemoteShards]]] = {}
    for part, *_ in remotes:
        cache = part.files.cache
        groups.setdefault(cache.directory, (cache, []))[1].append(part)
    yield from groups.values()


def _exceeds_cache(
    shards: Shards[RemoteShards], order: ReadOrder, cache: ShardCache, limit: int
) -> bool:
    """Return True if an order would refetch chunks at a higher cost than reading single samples.

    A request for a single sample costs as much as `REQUEST_BYTES` bytes.
    """
    chunk_bytes = max(part.chunk_bytes(0) for part, *_ in shards.remotes if len(part.index))
    # If each sample is in a different chunk, these samples fill the cache eight times.
    ids = order.prefix(min(MAX_PREFIX, 8 * limit // max(chunk_bytes, 1) + (1 << 12)))
    reads = _chunk_reads(shards, ids, cache)
    expected = reads.samples * order.fraction
    read_limit = int(READ_FRACTION * limit)
    bytes_per_sample = refetched_bytes(reads.chunks, reads.nbytes, expected, read_limit)
    return bytes_per_sample > REQUEST_BYTES


def _chunk_reads(shards: Shards[RemoteShards], ids: Int64, cache: ShardCache) -> _ChunkReads:
    """Return the chunks of samples, for the datasets that use `cache`."""
    keys = np.full(len(ids), -1)
    nbytes, samples, base = [], [], 0
    for part, _, first in shards.remotes:
        if part.files.cache.directory != cache.directory:
            continue
        rows = np.flatnonzero((ids >= first) & (ids < first + part.index.samples))
        part_keys, inverse = np.unique(part.chunk_keys(ids[rows] - first), return_inverse=True)
        keys[rows] = base + inverse
        base += len(part_keys)
        shard = part_keys // part.files.max_chunks
        chunks = part.files.chunks[shard]
        nbytes.append(shard_disk_bytes(part.files)[shard] // chunks)
        samples.append(np.diff(part.index.starts)[shard] / chunks)
    return _ChunkReads(keys[keys >= 0], np.concatenate(nbytes), np.concatenate(samples))


def refetched_bytes(chunks: Int64, nbytes: AnyArray, expected: AnyArray, limit: int) -> float:
    """Estimate the bytes that are fetched again, divided by the number of samples.

    The cache evicts the least recently used chunk. A chunk is fetched again if it is evicted before
    half of its `expected` samples are read. The first fill of the cache does not count.

    Examples
    --------
    >>> twice, size, count = np.array([0, 1, 2, 0, 1, 2]), np.full(3, 10), np.full(3, 4)
    >>> refetched_bytes(twice, size, count, 30), refetched_bytes(twice, size, count, 20)
    (0.0, 7.5)
    >>> refetched_bytes(np.sort(twice), size, count, 20)
    0.0
    """
    if int(nbytes.sum()) <= limit:
        return 0.0
    cached: OrderedDict[int, None] = OrderedDict()
    uses = [0] * len(nbytes)
    sizes, min_uses = nbytes.tolist(), (expected / 2).tolist()
    cached_bytes = refetched = 0
    full_since = None
    for number, chunk in enumerate(chunks.tolist()):
        uses[chunk] += 1
        if chunk in cached:
            cached.move_to_end(chunk)
            continue
        cached[chunk] = None
        cached_bytes += sizes[chunk]
        while cached_bytes > limit and len(cached) > 1:
            evicted, _ = cached.popitem(last=False)
            cached_bytes -= sizes[evicted]
            full_since = number if full_since is None else full_since
            if uses[evicted] < min_uses[evicted]:
                refetched += sizes[evicted]
    return 0.0 if full_since is None else refetched / (len(chunks) - full_since)


class ChunkUses(NamedTuple):
    """When an epoch uses the chunks of a dataset.

    Attributes
    ----------
    first, last : ndarray of int64, shape (chunks,)
        The epoch positions of the first and the last sample that is read of each chunk, for all
        chunks of the dataset. For a chunk that is not used, they are `NEVER` and -1.
    """

    first: Int64
    last: Int64

    @classmethod
    def find(
        cls,
        part: RemotePart[RemoteShards],
        blocks: Iterable[tuple[Int64, Int64]],
        is_complete: bool = True,
    ) -> ChunkUses:
        """Return the uses of a dataset's chunks.

        Parameters
        ----------
        part : RemotePart
        blocks : iterable of (ndarray, ndarray)
            Sample numbers in any order, and the epoch position of each.
        is_complete : bool, default: True
            False if not all samples of the epoch are in `blocks`. The last use of a chunk is then
            an estimate, which is later than the last use in `blocks`.
        """
        shards, _, first_sample = part
        starts = _first_chunks(shards)
        first, last = np.full(int(starts[-1]), NEVER), np.full(int(starts[-1]), -1)
        for ids, positions in blocks:
            is_here = (ids >= first_sample) & (ids < first_sample + shards.index.samples)
            keys = shards.chunk_keys(ids[is_here] - first_sample)
            shard, chunk = np.divmod(keys, shards.files.max_chunks)
            np.minimum.at(first, starts[shard] + chunk, positions[is_here])
            np.maximum.at(last, starts[shard] + chunk, positions[is_here])
        if not is_complete:
            last = np.where(last < 0, last, last + (last - first) // _LATER_USE)
        return cls(first, last)


_LATER_USE = 8
"""The estimate of a chunk's last use adds its known span of positions, divided by this number.

Of 32 samples at random, one is in the last eighth with a probability of 99 %.
"""

NEVER = np.iinfo(np.int64).max
"""The position of the first use of a chunk that is not used."""


class _Epoch(NamedTuple):
    """The state of an `EvictionOrder` in an epoch.

    Attributes
    ----------
    number, size, slack : int
        As for `EvictionOrder.begin`.
    uses, next_uses : ChunkUses
        The uses of chunks in this epoch and in the next one.
    ends, chunks, next_positions : ndarray, shape (n,)
        The chunks in the order in which they are finished: the position after which each is
        finished, its number, and the position of its next use in epochs, or NaN.
    """

    number: int
    size: int
    slack: int
    uses: ChunkUses
    next_uses: ChunkUses
    ends: Int64
    chunks: Int64
    next_positions: AnyArray


class EvictionOrder:
    """Marks the cached chunks of a dataset with the next use by an iteration.

    All processes of a node compute the same marks: they depend only on the order. A process marks a
    chunk when it has fetched the chunk. It marks the chunk again when it is `slack` positions past
    the last use in the epoch. So a process that is less than `slack` positions behind still finds
    the chunk.

    Parameters
    ----------
    shards : RemoteShards
    group : int
        Identifies the iteration; see `npstream.cache.priority.mark_next_use`.
    """

    def __init__(self, shards: RemoteShards, group: int) -> None:
        self._files, self._group = shards.files, group
        self._starts = _first_chunks(shards)
        self._epoch: _Epoch | None = None
        self._done = self._position = 0

    def begin(
        self, number: int, size: int, uses: ChunkUses, next_uses: ChunkUses, slack: int
    ) -> None:
        """Begin an epoch.

        Parameters
        ----------
        number, size : int
            The epoch, and the number of its positions.
        uses, next_uses : ChunkUses
            The uses of chunks in this epoch and in the next one.
        slack : int
            Positions by which processes of a node may be apart.
        """
        previous, done = self._epoch, self._done
        chunks = np.flatnonzero(uses.last >= 0)
        chunks = chunks[np.argsort(uses.last[chunks], kind="stable")]
        ends = uses.last[chunks] + slack
        first = next_uses.first[chunks]
        next_positions = np.where(first == NEVER, np.nan, number + 1 + first / max(size, 1))
        is_continued = previous is not None and previous.number + 1 == number
        if previous is not None and is_continued:
            # Also mark the chunks that the previous epoch finished, but has not marked yet.
            ends = np.concatenate([previous.ends[done:] - previous.size, ends])
            chunks = np.concatenate([previous.chunks[done:], chunks])
            next_positions = np.concatenate([previous.next_positions[done:], next_positions])
        self._done = self._position = 0
        self._epoch = _Epoch(number, size, slack, uses, next_uses, ends, chunks, next_positions)
        self._mark_existing(headers_only=is_continued)
        self.end()
        self._files.chunk_orders += (self,)

    def end(self) -> None:
        """End an epoch: reads from now on do not belong to the iteration."""
        orders = self._files.chunk_orders
        self._files.chunk_orders = tuple(order for order in orders if order is not self)

    def advance(self, position: int) -> None:
        """Mark the chunks that are finished at `position`."""
        epoch = self._epoch
        assert epoch is not None
        self._position = max(self._position, position)
        stop = int(np.searchsorted(epoch.ends, self._position, side="right"))
        for k in range(self._done, stop):
            self._mark(int(epoch.chunks[k]), float(epoch.next_positions[k]))
        self._done = max(self._done, stop)

    def covers(self, shard: int, chunk: int) -> bool:
        """Return True if the iteration uses a chunk in this epoch or the next one."""
        epoch, number = self._epoch, int(self._starts[shard]) + chunk
        return epoch is not None and (
            epoch.uses.first[number] != NEVER or epoch.next_uses.first[number] != NEVER
        )

    def epochs_until_use(self, shard: int, chunk: int) -> float:
        """Return when the iteration uses a chunk next, in epochs from now; infinity if never."""
        epoch = self._epoch
        if epoch is None or not self.covers(shard, chunk):
            return math.inf
        now = epoch.number + self._position / max(epoch.size, 1)
        position = self._next_position(int(self._starts[shard]) + chunk)
        return math.inf if math.isnan(position) else position - now

    def mark_fetched(self, shard: int, chunk: int) -> None:
        """Record in the files of a new chunk when the iteration uses it."""
        if self.covers(shard, chunk):
            self._mark_headers(shard)
            number = int(self._starts[shard]) + chunk
            self._mark(number, self._next_position(number))

    def _next_position(self, number: int) -> float:
        """Return the position of the next use of a chunk in epochs, or NaN if there is none.

        While the current epoch uses the chunk, this is the first use in the epoch, even if past.
        """
        epoch = self._epoch
        assert epoch is not None
        last = epoch.uses.last[number]
        if last >= 0 and self._position < last + epoch.slack:
            return epoch.number + float(epoch.uses.first[number]) / max(epoch.size, 1)
        if (first := epoch.next_uses.first[number]) == NEVER:
            return math.nan
        return epoch.number + 1 + float(first) / max(epoch.size, 1)

    def _mark_existing(self, headers_only: bool) -> None:
        """Mark all chunks that the cache holds, or only the headers of shards."""
        epoch, files = self._epoch, self._files
        assert epoch is not None
        is_used = (epoch.uses.first != NEVER) | (epoch.next_uses.first != NEVER)
        counts = np.add.reduceat(is_used, self._starts[:-1]) if len(is_used) else np.empty(0, int)
        for shard in np.flatnonzero(counts).tolist():
            self._mark_headers(shard)
            first, stop = int(self._starts[shard]), int(self._starts[shard + 1])
            for number in range(first, first if headers_only else stop):
                key = files.unit_keys(shard, number - first)[-1]
                if is_used[number] and files.cache.has_file(key):
                    self._mark(number, self._next_position(number))

    def _mark_headers(self, shard: int) -> None:
        """Mark the header of a shard, which each of its chunks needs."""
        if self._files.splits(shard) and (epoch := self._epoch) is not None:
            for key in self._files.header_keys(shard):
                self._files.cache.mark_next_use(key, self._group, epoch.number)

    def _mark(self, number: int, position: float) -> None:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        keys = self._files.unit_keys(shard, number - int(self._starts[shard]))
        for key in keys[-1:] if self._files.splits(shard) else keys:
            if math.isnan(position):
                self._files.cache.mark_unused(key)
            else:
                self._files.cache.mark_next_use(key, self._group, position)


def split_large_datasets(
    remotes: Iterable[RemotePart[RemoteShards]],
) -> list[RemotePart[RemoteShards]]:
    """Give chunks files of their own if a cache cannot hold the datasets that share it.

    Returns
    -------
    list of RemotePart
        The datasets whose chunks are evicted one by one.
    """
    remotes = list(remotes)
    for cache, parts in _datasets_by_cache(remotes):
        if cache.limit is not None and sum(p.files.disk_bytes() for p in parts) > cache.limit:
            for part in parts:
                part.files.split_shards()
    return [part for part in remotes if part.shards.files.splits_shards]


def _first_chunks(shards: RemoteShards) -> Int64:
    """Return the number of the first chunk of each shard, followed by the number of chunks."""
    return np.concatenate([[0], np.cumsum(shards.files.chunks)])
