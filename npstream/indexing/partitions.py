"""Provide `partition_bounds`, which cuts a view into partitions along its shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from npstream._core.typing import AnyArray, Int64

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection

__all__ = ["partition_bounds"]


def partition_bounds(selection: Selection, shard_starts: AnyArray, min_rows: int = 1) -> Int64:
    """Return the bounds of partitions of a raveled view.

    A partition is a range of rows: all rows of the view from one shard or several consecutive ones.
    If the sample ids of the view are in neither ascending nor descending order, partitions do not
    follow the shards. They then have the average number of rows of a shard.

    Parameters
    ----------
    selection : Selection
    shard_starts : ndarray of int64, shape (shards + 1,)
        First sample of each shard, then the number of samples.
    min_rows : int, default: 1
        Consecutive shards are joined until a partition has at least this number of rows. Only the
        last partition may have fewer.

    Returns
    -------
    ndarray of int64, shape (partitions + 1,)
        First row of each partition, then the number of rows. No partition is empty. A view without
        rows has no partitions, and the result is ``[0]``.

    Examples
    --------
    >>> from npstream.indexing.selection import Selection
    >>> view = Selection.all(10).select(slice(None, None, 2))
    >>> partition_bounds(view, np.array([0, 4, 5, 8, 10]))
    array([0, 2, 3, 4, 5])
    >>> partition_bounds(view, np.array([0, 4, 5, 8, 10]), min_rows=3)
    array([0, 3, 5])
    """
    cuts = selection.cuts(shard_starts)
    if cuts is None:
        rows = max(1, selection.dataset_size // max(len(shard_starts) - 1, 1))
        cuts = np.append(np.arange(0, selection.size, rows), selection.size)
    bounds = [0]
    for cut in cuts.tolist():
        if cut - bounds[-1] >= min_rows:
            bounds.append(cut)
    if bounds[-1] != selection.size:
        bounds.append(selection.size)
    return np.array(bounds, np.int64)
