"""Division of a shard into pieces, the units of fetching, caching and hashing.

Piece 0 is the header: all bytes before the samples. Piece 1 + i is chunk i, a run of consecutive
samples. The index alone determines the rows of each chunk. The shard's offsets determine the byte
ranges of these rows.

Tested in tests/formats/sidecar/test_sidecar.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npstream._core.typing import Bools, Int64

CHUNK_BYTES = 1 << 22
"""Maximum average size of the chunks of a shard, in bytes. The format prescribes this value.

A shard of n samples has at most n chunks, so chunks of large samples may be larger.
"""


def chunk_counts(samples: Int64, nbytes: Int64, compressed: Bools, chunk_bytes: int) -> Int64:
    """Return the number of chunks of each shard.

    Each shard has at least one chunk. A chunk is empty only if its shard has no samples.

    Parameters
    ----------
    samples, nbytes : ndarray of int64, shape (shards,)
        The number of samples and the uncompressed bytes of each shard.
    compressed : ndarray of bool, shape (shards,)
        Which shards are stored compressed. These have one chunk, whatever their size.
    chunk_bytes : int
        The chunks of a shard have at most this size on average, unless samples are larger.

    Examples
    --------
    >>> samples, nbytes = np.array([5, 2, 0]), np.array([30, 30, 30])
    >>> chunk_counts(samples, nbytes, np.zeros(3, bool), 10).tolist()
    [3, 2, 1]
    """
    by_size = np.where(compressed, 1, np.maximum(-(-nbytes // chunk_bytes), 1))
    counts: Int64 = np.minimum(by_size, np.maximum(samples, 1))
    return counts


def piece_rows(samples: int, chunks: int) -> Int64:
    """Return the first row of each chunk of a shard, followed by the number of samples.

    Examples
    --------
    >>> piece_rows(7, 3).tolist()
    [0, 2, 4, 7]
    """
    return np.arange(chunks + 1, dtype=np.int64) * samples // chunks


def piece_bounds(
    rows: Int64,
    begin: int,
    nbytes: int,
    offsets: np.ndarray[Any, np.dtype[np.uint32]] | None = None,
) -> Int64:
    """Return the first byte of each piece of a shard's data file, followed by the file's end.

    Parameters
    ----------
    rows : ndarray of int64, shape (chunks + 1,)
        As `piece_rows` returns them.
    begin : int
        First byte of the samples.
    nbytes : int
        Bytes of the file.
    offsets : ndarray of uint32, shape (samples + 1,), optional
        First byte of each sample, followed by the end of the last one. By default all samples have
        the same size.

    Returns
    -------
    ndarray of int64, shape (chunks + 2,)
        The last chunk always ends at `nbytes`, even if the shard has no samples.

    Examples
    --------
    >>> piece_bounds(piece_rows(7, 3), 20, 90).tolist()
    [0, 20, 40, 60, 90]
    >>> piece_bounds(piece_rows(2, 2), 20, 90, np.array([20, 80, 90], np.uint32)).tolist()
    [0, 20, 80, 90]
    """
    bounds = np.zeros(len(rows) + 1, np.int64)
    if offsets is None:
        stride = (nbytes - begin) // max(int(rows[-1]), 1)
        bounds[1:] = begin + rows * stride
    else:
        bounds[1:] = offsets[rows]
    bounds[1], bounds[-1] = begin, nbytes
    return bounds
