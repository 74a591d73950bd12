"""Parts of a view: a shuffled order, random splits, and what a filter keeps."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.progress import progress
from npstream._core.typing import Bools, Int64, Sample
from npstream.errors import stopped
from npstream.orders.order import full_order
from npstream.orders.permutation import Permutation, make_key
from npstream.reading.load import stretches

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection

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
    if math.isclose(sum(lengths), 1):
        counts = [math.floor(n * fraction) for fraction in lengths]
        for part in range(n - sum(counts)):
            counts[part % len(counts)] += 1
    else:
        counts = [operator.index(n) for n in lengths if isinstance(n, SupportsIndex)]
    if len(counts) < len(lengths):
        raise ValueError(f"fractions {lengths} sum to {sum(lengths)}; they must sum to 1")
    if sum(counts) != n:
        raise ValueError(f"lengths {lengths} are {quantity(sum(counts), 'sample')}; there are {n}")
    return counts


def split_view(
    selection: Selection,
    lengths: Sequence[float],
    seed: int,
    by: str,
    chunk_starts: Callable[[], Int64],
) -> list[Any]:
    """Return parts of a view, of these lengths, drawn by sample or by chunk."""
    counts = split_lengths(lengths, selection.size)
    if by == "chunk":
        return split_chunks(selection, counts, seed, chunk_starts())
    if by != "sample":
        raise ValueError(f"by={by!r}: expected 'sample' or 'chunk'")
    order = selection.permuted(full_order(selection.size, seed))
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    return [order.select(slice(end - n, end)) for end, n in zip(ends, counts, strict=True)]


def split_chunks(
    selection: Selection, counts: Sequence[int], seed: int, chunk_starts: Int64
) -> list[Any]:
    """Deal out a view's samples by whole chunks of the storage, in random order.

    Chunks are laid end to end, and the parts cut off in turn, so each boundary splits a chunk.

    Parameters
    ----------
    selection : Selection
    counts : sequence of int
        Samples of each part; they sum to the view's.
    seed : int
    chunk_starts : ndarray of int64, shape (chunks + 1,)

    Returns
    -------
    list of Selection
        Parts, each in the view's order.
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
    part_of = np.empty(n, np.min_scalar_type(len(counts)))
    for start, stop in stretches(n, _BLOCK):
        chunk = _chunk_of(selection, chunk_starts, start, stop)
        by_chunk = np.argsort(chunk, kind="stable")
        found, first, number = np.unique(chunk[by_chunk], return_index=True, return_counts=True)
        place = np.empty(stop - start, np.int64)
        within = np.arange(stop - start) - np.repeat(first, number)
        place[by_chunk] = next_place[chunk[by_chunk]] + within
        next_place[found] += number
        part_of[start:stop] = np.searchsorted(ends, place, side="right")
    flat = selection.ravel()
    return [flat.select(part_of == part) for part in range(len(counts))]


def _chunk_of(selection: Selection, chunk_starts: Int64, start: int, stop: int) -> Int64:
    return np.searchsorted(chunk_starts, selection.ids(start, stop), side="right") - 1


class View(Protocol):
    """Samples that can be sliced, iterated over and loaded."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


def filter_mask(view: View, fn: Callable[[Any], Any], batch_size: int | None, block: int) -> Bools:
    """Return for which samples a function holds, which takes a sample or, if sized, a Batch."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected a positive integer")
    mask = np.zeros(len(view), bool)
    step = batch_size or block
    for start in progress(range(0, len(view), step), "filter"):
        part = view[start : start + step]
        try:
            if batch_size is None:
                mask[start : start + step] = [bool(fn(sample)) for sample in part]
                continue
            kept = np.asarray(fn(part.load()))
        except StopIteration as error:
            raise stopped("the function of filter()") from error
        if kept.dtype != bool or kept.shape != (len(part),):
            raise TypeError(
                f"fn returned {kept.dtype} of shape {kept.shape} for a batch of {len(part)}; "
                "expected a bool for each row"
            )
        mask[start : start + step] = kept
    return mask


def apply_both(first: Callable[[Sample], Any], second: Callable[[Any], Any], sample: Sample) -> Any:
    """Apply two functions, one after the other."""
    return second(first(sample))
