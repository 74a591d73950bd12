"""Random splits of a view into parts that do not overlap."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from npstream._typing import Bools, Int64
from npstream.orders.permutation import Permutation, make_key
from npstream.reading import stretches

if TYPE_CHECKING:
    from npstream.selection import Selection

_BLOCK = 1 << 20


def split_lengths(lengths: Sequence[float], n: int) -> list[int]:
    """Return how many of `n` samples each part gets.

    Parameters
    ----------
    lengths : sequence of int or float
        Counts that sum to n, or fractions that sum to 1. Fractions are rounded down, and what
        remains is dealt out one by one from the first part on, as in torch.

    Examples
    --------
    >>> split_lengths([0.9, 0.1], 15)
    [14, 1]
    """
    lengths = list(lengths)
    if any(not math.isfinite(length) or length < 0 for length in lengths):
        raise ValueError(f"lengths {lengths}: expected counts or fractions, none negative")
    if math.isclose(sum(lengths), 1) and sum(lengths) <= 1 + 1e-9 and lengths != [n]:
        counts = [math.floor(n * fraction) for fraction in lengths]
        for part in range(n - sum(counts)):
            counts[part % len(counts)] += 1
        return counts
    try:
        counts = [operator.index(length) for length in lengths]
    except TypeError:
        raise ValueError(f"fractions {lengths} sum to {sum(lengths)}; they must sum to 1") from None
    if sum(counts) != n:
        raise ValueError(f"lengths {counts} sum to {sum(counts)}; there are {n} samples")
    return counts


def split_chunks(
    selection: Selection, chunk_starts: Int64, counts: Sequence[int], seed: int
) -> list[Bools]:
    """Deal out a view's samples by whole chunks of the storage, in random order.

    Chunks are laid end to end, and the parts cut off in turn, so each boundary splits a chunk.

    Parameters
    ----------
    selection : Selection
    chunk_starts : ndarray of int64, shape (chunks + 1,)
    counts : sequence of int
        Samples of each part; they sum to the view's.
    seed : int

    Returns
    -------
    list of ndarray of bool, shape (n,)
        Which of the view's samples each part has.
    """
    n, chunks = selection.size, len(chunk_starts) - 1
    sizes = np.zeros(chunks, np.int64)
    for start, stop in stretches(n, _BLOCK):
        sizes += np.bincount(_chunk_of(selection, chunk_starts, start, stop), minlength=chunks)
    order = Permutation(chunks, make_key(seed, 0, 0, 1)).at(np.arange(chunks))
    # next_place[c] is where the next sample of chunk c goes when chunks lie end to end.
    next_place = np.empty(chunks, np.int64)
    next_place[order] = np.cumsum(sizes[order]) - sizes[order]
    ends = np.cumsum(counts)
    masks = [np.zeros(n, bool) for _ in counts]
    for start, stop in stretches(n, _BLOCK):
        chunk = _chunk_of(selection, chunk_starts, start, stop)
        by_chunk = np.argsort(chunk, kind="stable")
        found, first, number = np.unique(
            chunk[by_chunk], return_index=True, return_counts=True
        )
        place = np.empty(stop - start, np.int64)
        within = np.arange(stop - start) - np.repeat(first, number)
        place[by_chunk] = next_place[chunk[by_chunk]] + within
        next_place[found] += number
        part = np.searchsorted(ends, place, side="right")
        for number_of_part, mask in enumerate(masks):
            mask[start:stop] = part == number_of_part
    return masks


def _chunk_of(selection: Selection, chunk_starts: Int64, start: int, stop: int) -> Int64:
    return np.searchsorted(chunk_starts, selection.ids(start, stop), side="right") - 1
