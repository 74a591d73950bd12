"""Whether the chunks of an order can be cached: else a chunk would be fetched for each sample."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream._core.typing import AnyArray, Int64
from npstream.cache.cache import allocated, tail_bytes
from npstream.storage.coalesce import REQUEST_BYTES

if TYPE_CHECKING:
    from npstream.cache.cache import ShardCache
    from npstream.shards.base import Shards
    from npstream.shards.remote import RemoteShards

__all__ = ["ReadOrder", "is_rowwise"]

MAX_PREFIX = 1 << 18
"""Samples of an order that are looked at, at most."""

READ_FRACTION = 0.75
"""The part of a cache's limit for what is being read. Reading ahead takes the rest."""


class ReadOrder(NamedTuple):
    """An order in which samples are read, in pieces.

    Attributes
    ----------
    first : callable
        Returns the first samples, as many as asked for, or all.
    share : float
        The part of a chunk's samples that are read on this machine, about.
    """

    prefix: Callable[[int], Int64]
    fraction: float = 1.0


class _ChunkReads(NamedTuple):
    """The chunks that samples lie in, one after the other, of all datasets with one cache.

    Attributes
    ----------
    chunks : ndarray of int64, shape (samples,)
        A number for each sample's chunk.
    nbytes, samples : ndarray, shape (chunks,)
        Of each chunk, by that number.
    """

    chunks: Int64
    nbytes: AnyArray
    samples: AnyArray


def is_rowwise(
    shards: Shards[RemoteShards],
    order: ReadOrder,
    suggest: Callable[[Callable[[ReadOrder], bool]], str] | None = None,
) -> bool:
    """Tell whether samples are read one by one, as their chunks cannot be cached for so long.

    Parameters
    ----------
    shards : Shards
    order : ReadOrder
    suggest : callable, optional
        Given a function that tells whether another order would fit the cache, returns what to
        change in the order, for the message.

    Raises
    ------
    ValueError
        If they cannot be read so: they are compressed, or `verify` is True.
    """
    found = False
    for cache, parts in _datasets_by_cache(shards):
        limit, total = cache.limit, sum(int(_disk_bytes(part).sum()) for part in parts)
        if limit is None and total > cache.free():
            limit = cache.room()
        if limit is None or limit >= total or not _exceeds_cache(shards, order, cache, limit):
            continue
        found = True
        for part in parts:
            if part.index.compressed.any() or part.verify is True:
                fits = partial(_fits, shards, cache)
                least = _least_limit(partial(fits, order), limit, total)
                otherwise = "read the samples in the order in which they are stored"
                if suggest is not None:
                    otherwise = suggest(lambda other: fits(other, limit))  # noqa: B023 - called now
                raise ValueError(_refusal(part, limit, least, otherwise))
    return found


def _refusal(part: RemoteShards, limit: int, least: int, otherwise: str) -> str:
    why = "verify=True verifies chunks" if part.verify is True else "its shards are compressed"
    return (
        f"{part.store.root}: read in this order, chunks leave the cache before their samples were "
        f"read, so a chunk would be fetched for each sample; and no sample is read alone, as "
        f"{why}. The cache may take {size_text(limit)}: raise cache_limit to at least "
        f"{quantity(least, 'byte')}, or {otherwise}"
    )


def _fits(shards: Shards[RemoteShards], cache: ShardCache, order: ReadOrder, limit: int) -> bool:
    return not _exceeds_cache(shards, order, cache, limit)


def _least_limit(fits: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least limit that will do, within a 16th, between one that does not and one."""
    while high - low > low >> 4:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _datasets_by_cache(
    shards: Shards[RemoteShards],
) -> Iterator[tuple[ShardCache, list[RemoteShards]]]:
    """Yield each cache, with the datasets that are kept there."""
    found: dict[str, tuple[ShardCache, list[RemoteShards]]] = {}
    for part, *_ in shards.remotes:
        cache = part.files.cache
        found.setdefault(cache.directory, (cache, []))[1].append(part)
    yield from found.values()


def _exceeds_cache(
    shards: Shards[RemoteShards], order: ReadOrder, cache: ShardCache, limit: int
) -> bool:
    """Tell whether an order would have chunks fetched again, too much of that."""
    chunk = max(part.chunk_bytes(0) for part, *_ in shards.remotes if len(part.index))
    ids = order.prefix(min(MAX_PREFIX, 8 * limit // max(chunk, 1) + (1 << 12)))
    reads = _chunk_reads(shards, ids, cache)
    expected = reads.samples * order.fraction
    again = _refetched_bytes(reads.chunks, reads.nbytes, expected, int(READ_FRACTION * limit))
    return again > REQUEST_BYTES  # for each sample


def _chunk_reads(shards: Shards[RemoteShards], ids: Int64, cache: ShardCache) -> _ChunkReads:
    """Return the chunks that samples of the datasets with one cache lie in."""
    keys = np.full(len(ids), -1)
    nbytes, samples, base = [], [], 0
    for part, _, first in shards.remotes:
        if part.files.cache.directory != cache.directory:
            continue
        mine = np.flatnonzero((ids >= first) & (ids < first + part.index.samples))
        own, which = np.unique(part.chunk_keys(ids[mine] - first), return_inverse=True)
        keys[mine] = base + which
        base += len(own)
        shard = own // part.files.max_chunks
        chunks = part.files.chunks[shard]
        nbytes.append(_disk_bytes(part)[shard] // chunks)
        samples.append(np.diff(part.index.starts)[shard] / chunks)
    return _ChunkReads(keys[keys >= 0], np.concatenate(nbytes), np.concatenate(samples))


def _disk_bytes(part: RemoteShards) -> Int64:
    """Return what each shard takes on the disk, as each of its chunks begins within a block."""
    sizes: Int64 = part.index.nbytes + part.files.chunks * 2 * allocated(0, 1)
    return sizes + tail_bytes(1 + part.files.max_chunks)


def _refetched_bytes(chunks: Int64, nbytes: AnyArray, expected: AnyArray, limit: int) -> float:
    """Return the bytes of chunks, for each sample, that leave a cache and are not used up.

    The least recently used chunk leaves. Those that have left are fetched again, at least once.

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
    kept: OrderedDict[int, None] = OrderedDict()
    uses = [0] * len(nbytes)
    sizes, enough = nbytes.tolist(), (expected / 2).tolist()
    held = again = 0
    full_since = None
    for number, chunk in enumerate(chunks.tolist()):
        uses[chunk] += 1
        if chunk in kept:
            kept.move_to_end(chunk)
            continue
        kept[chunk] = None
        held += sizes[chunk]
        while held > limit and len(kept) > 1:
            left, _ = kept.popitem(last=False)
            held -= sizes[left]
            full_since = number if full_since is None else full_since
            if uses[left] < enough[left]:
                again += sizes[left]
    return 0.0 if full_since is None else again / (len(chunks) - full_since)
