"""Pieces of a shard: its head and its chunks, the units of fetching, caching and hashing.

Piece 0 is what stands before the samples, piece 1 + i chunk i. A chunk is a run of samples. Where
shards are cut follows from the index alone; where that is in bytes, from the shard's offsets.

Tested in tests/formats/sidecar/test_sidecar.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npstream._core.typing import Bools, Int64

CHUNK_BYTES = 1 << 22
"""The least bytes of a shard for each further chunk; a constant of the format, not a setting."""


def chunk_counts(samples: Int64, nbytes: Int64, whole: Bools, chunk_bytes: int) -> Int64:
    """Return how many chunks shards have: at least one, and no empty one beside another.

    Parameters
    ----------
    samples, nbytes : ndarray of int64, shape (shards,)
    whole : ndarray of bool, shape (shards,)
        Which shards are one chunk, whatever their size: those stored compressed.
    chunk_bytes : int

    Examples
    --------
    >>> bounds = np.array([5, 2, 0]), np.array([30, 30, 30]), np.array([False, False, False])
    >>> chunk_counts(*bounds, 10).tolist()
    [3, 2, 1]
    """
    wanted = np.where(whole, 1, np.maximum(-(-nbytes // chunk_bytes), 1))
    counts: Int64 = np.minimum(wanted, np.maximum(samples, 1))
    return counts


def piece_rows(samples: int, chunks: int) -> Int64:
    """Return the first row of each chunk of a shard, then the number of its samples.

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
    """Return where the pieces of a shard's data file begin, then where it ends.

    Parameters
    ----------
    rows : ndarray of int64, shape (chunks + 1,)
        As `piece_rows` returns them.
    begin : int
        Where the samples begin.
    nbytes : int
        The bytes of the file.
    offsets : ndarray of uint32, shape (samples + 1,), optional
        Where each sample begins, then where the last one ends; by default all have one size.

    Returns
    -------
    ndarray of int64, shape (chunks + 2,)
        The last chunk ends with the file, also where there are no samples.

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
