"""Cut datasets and views into chunks: ranges of samples that are stored together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from npstream._core.jit import kernel
from npstream._core.memory import huge_empty
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.formats.chunks import chunk_counts

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection


def shard_chunks(starts: Int64, nbytes: Int64, is_chunk: Bools, chunk_bytes: int) -> AnyArray:
    """Cut shards into chunks.

    A shard of r samples and b bytes has ``min(ceil(b / chunk_bytes), r)`` chunks. Their numbers of
    samples differ by at most 1.

    Parameters
    ----------
    starts : ndarray of int64, shape (shards + 1,)
        First sample of each shard, then the number of samples.
    nbytes : ndarray of int64, shape (shards,)
        Bytes of each shard.
    is_chunk : ndarray of bool, shape (shards,)
        True for shards that are one chunk, of any size.
    chunk_bytes : int
        Maximum average size of the chunks of a shard, in bytes.

    Returns
    -------
    ndarray of int32, shape (chunks + 1,)
        First sample of each chunk, then the number of samples; no chunk is empty. From 2**31
        samples on, the dtype is int64.

    Examples
    --------
    >>> shard_chunks(np.array([0, 5, 7]), np.array([30, 30]), np.array([False, True]), 10)
    array([0, 1, 3, 5, 7], dtype=int32)
    """
    samples = np.diff(starts)
    counts = np.minimum(chunk_counts(samples, nbytes, is_chunk, chunk_bytes), samples)
    dtype = np.int32 if starts[-1] < 1 << 31 else np.int64
    chunks = huge_empty(int(counts.sum()) + 1, dtype)
    chunks[-1] = starts[-1]
    _cut.for_size(len(chunks))(starts, counts, chunks)
    return chunks


def view_chunks(chunks: AnyArray, selection: Selection) -> AnyArray:
    """Cut a view, raveled, into chunks.

    If the sample ids of the view are monotonic, it is cut where the dataset's chunks begin.
    Otherwise all chunks of the view have the average length of the dataset's chunks. So consecutive
    samples of the view mostly stay together in an order. They are often also stored together, for
    instance if the view consists of several slices.

    Parameters
    ----------
    chunks : ndarray, shape (chunks + 1,)
        First sample of each chunk of the dataset, then the number of samples.
    selection : Selection

    Returns
    -------
    ndarray
        First position of each chunk of the view, then the number of samples; chunks may be empty.

    Examples
    --------
    >>> from npstream.indexing.selection import Selection
    >>> view_chunks(np.array([0, 4, 8, 10]), Selection.all(10).select(slice(None, 1, -2)))
    array([0, 1, 3, 4])
    """
    cuts = selection.cuts(chunks)
    if cuts is not None:
        return cuts
    length = max(1, selection.dataset_size // max(len(chunks) - 1, 1))
    return np.append(np.arange(0, selection.size, length), selection.size)


@kernel
def _cut(starts: Int64, counts: Int64, chunks: AnyArray) -> None:
    """Write the first sample of each chunk: chunk i of c begins at ``i * samples // c``."""
    k = 0
    for shard in range(counts.size):
        count = int(counts[shard])
        if count == 0:
            continue
        first = int(starts[shard])
        quotient = (int(starts[shard + 1]) - first) // count
        remainder = int(starts[shard + 1]) - first - quotient * count
        if count <= 1 << 16:
            # The step is in units of 2**-32, rounded up. After `count` steps the sum is too large
            # by less than 1 / count, so the results are exact.
            step = ((remainder << 32) + count - 1) // count
            for i in range(count):
                chunks[k + i] = first + i * quotient + (i * step >> 32)
        else:
            for i in range(count):
                chunks[k + i] = first + i * quotient + i * remainder // count
        k += count


@kernel
def smallest_step(bounds: AnyArray) -> int:
    """Return the smallest difference of consecutive bounds, or 1 if all differences are larger."""
    smallest = 1
    for k in range(bounds.size - 1):
        smallest = min(smallest, int(bounds[k + 1]) - int(bounds[k]))
    return smallest
