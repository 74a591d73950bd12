"""Estimate if an order of samples would fetch the same chunks again and again.

If it would, the cache evicts a chunk before its samples are read. Samples are then read one by one
(rowwise).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream._core.typing import AnyArray, Int64
from npstream.cache.cache import disk_bytes, tail_bytes
from npstream.storage.coalesce import REQUEST_BYTES

if TYPE_CHECKING:
    from npstream.cache.cache import ShardCache
    from npstream.shards.base import Shards
    from npstream.shards.remote import RemoteShards

__all__ = ["ReadOrder", "is_rowwise"]

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
    for cache, parts in _datasets_by_cache(shards):
        limit, total = cache.limit, sum(int(_disk_bytes(part).sum()) for part in parts)
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
    shards: Shards[RemoteShards],
) -> Iterator[tuple[ShardCache, list[RemoteShards]]]:
    """Yield each cache with the datasets that use it."""
    groups: dict[str, tuple[ShardCache, list[RemoteShards]]] = {}
    for part, *_ in shards.remotes:
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
    bytes_per_sample = _refetched_bytes(reads.chunks, reads.nbytes, expected, read_limit)
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
        nbytes.append(_disk_bytes(part)[shard] // chunks)
        samples.append(np.diff(part.index.starts)[shard] / chunks)
    return _ChunkReads(keys[keys >= 0], np.concatenate(nbytes), np.concatenate(samples))


def _disk_bytes(part: RemoteShards) -> Int64:
    """Return the disk space of each shard in the cache, in bytes.

    A chunk begins and ends within a disk block, so it may occupy two more blocks.
    """
    sizes: Int64 = part.index.nbytes + part.files.chunks * 2 * disk_bytes(0, 1)
    return sizes + tail_bytes(1 + part.files.max_chunks)


def _refetched_bytes(chunks: Int64, nbytes: AnyArray, expected: AnyArray, limit: int) -> float:
    """Estimate the bytes that are fetched again, divided by the number of samples.

    The cache evicts the least recently used chunk. A chunk is fetched again if it is evicted before
    half of its `expected` samples are read. The first fill of the cache does not count.

    Examples
    --------
    >>> twice, size, count = np.array([0, 1, 2, 0, 1, 2]), np.full(3, 10), np.full(3, 4)
    >>> _refetched_bytes(twice, size, count, 30), _refetched_bytes(twice, size, count, 20)
    (0.0, 7.5)
    >>> _refetched_bytes(np.sort(twice), size, count, 20)
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
