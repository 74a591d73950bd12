"""Chunks of a storage and of its views: runs of samples that are stored together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from npstream._core.jit import kernel
from npstream._core.memory import huge_empty
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.formats.chunks import chunk_counts

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection


def shard_chunks(starts: Int64, nbytes: Int64, whole: Bools, chunk_bytes: int) -> AnyArray:
    """Cut shards into chunks.

    A shard of r samples and b bytes has ``b / chunk_bytes`` chunks, rounded up, but at most r; as
    equal in samples as can be.

    Parameters
    ----------
    starts : ndarray of int64, shape (shards + 1,)
        First sample of each shard, then the number of samples.
    nbytes : ndarray of int64, shape (shards,)
    whole : ndarray of bool, shape (shards,)
        Which shards are one chunk, whatever their size.
    chunk_bytes : int

    Returns
    -------
    ndarray of int32, or of int64 from 2**31 samples on, shape (chunks + 1,)
        First sample of each chunk, then the number of samples; no chunk is empty.

    Examples
    --------
    >>> shard_chunks(np.array([0, 5, 7]), np.array([30, 30]), np.array([False, True]), 10)
    array([0, 1, 3, 5, 7], dtype=int32)
    """
    samples = np.diff(starts)
    counts = np.minimum(chunk_counts(samples, nbytes, whole, chunk_bytes), samples)
    dtype = np.int32 if starts[-1] < 1 << 31 else np.int64
    chunks = huge_empty(int(counts.sum()) + 1, dtype)
    chunks[-1] = starts[-1]
    _cut.for_size(len(chunks))(starts, counts, chunks)
    return chunks


def view_chunks(chunks: AnyArray, selection: Selection) -> AnyArray:
    """Cut a view, ravelled, into chunks.

    If its sample ids rise or fall all along, they are its runs inside the storage's chunks.
    Otherwise they are stretches of one length, that of the storage's chunks on average: whatever
    lies together in the view, such as in a list of several slices, mostly stays together.

    Parameters
    ----------
    chunks : ndarray, shape (chunks + 1,)
        First sample of each chunk of the storage, then the number of samples.
    selection : Selection

    Returns
    -------
    ndarray
        First position of each chunk of the view, then the number of samples; some may be empty.

    Examples
    --------
    >>> from npstream.indexing.selection import Selection
    >>> view_chunks(np.array([0, 4, 8, 10]), Selection.all(10).select(slice(None, 1, -2)))
    array([0, 1, 3, 4])
    """
    cuts = selection.cuts(chunks)
    if cuts is not None:
        return cuts
    stretch = max(1, selection.source // max(len(chunks) - 1, 1))
    return np.append(np.arange(0, selection.size, stretch), selection.size)


@kernel
def _cut(starts: Int64, counts: Int64, chunks: AnyArray) -> None:
    """Fill in the first sample of each chunk: of chunk i of c, that is ``i * samples // c``."""
    k = 0
    for shard in range(counts.size):
        count = int(counts[shard])
        if count == 0:
            continue
        first = int(starts[shard])
        quotient = (int(starts[shard + 1]) - first) // count
        remainder = int(starts[shard + 1]) - first - quotient * count
        if count <= 1 << 16:
            # In units of 2**-32, rounded up: too large by less than 1 / count after count steps.
            step = ((remainder << 32) + count - 1) // count
            for i in range(count):
                chunks[k + i] = first + i * quotient + (i * step >> 32)
        else:
            for i in range(count):
                chunks[k + i] = first + i * quotient + i * remainder // count
        k += count


@kernel
def smallest_step(bounds: AnyArray) -> int:
    """Return the least difference of neighbors, which may be negative; but 1 if it is more."""
    least = 1
    for k in range(bounds.size - 1):
        least = min(least, int(bounds[k + 1]) - int(bounds[k]))
    return least
