"""Random splits, filters and queries of a view."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.progress import progress
from npstream._core.typing import Bools, Int64, Sample
from npstream.errors import short_repr, stop_iteration_error
from npstream.reading.load import row_ranges

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection

_BLOCK = 1 << 20
"""Samples that are split at once, to bound memory."""


def split_lengths(lengths: Sequence[float], n: int) -> list[int]:
    """Return the number of samples of each part of `n` samples.

    Parameters
    ----------
    lengths : sequence of int or float
        Counts that sum to `n`, or fractions that sum to 1. As in torch, counts from fractions are
        rounded down, and the first parts get one more sample each, until none remain.
    n : int
        Number of samples to split.

    Examples
    --------
    >>> split_lengths([0.9, 0.1], 15)
    [14, 1]
    """
    if not isinstance(lengths, Iterable):
        raise TypeError(
            f"lengths={lengths!r}: expected the lengths of all parts, such as [0.9, 0.1]"
        )
    lengths = list(lengths)
    if any(not math.isfinite(length) or length < 0 for length in lengths):
        raise ValueError(f"lengths {lengths}: expected counts or fractions, none negative")
    if math.isclose(sum(lengths), 1):
        counts = [math.floor(n * fraction) for fraction in lengths]
        for part in range(n - sum(counts)):
            counts[part % len(counts)] += 1
    else:
        counts = [operator.index(k) for k in lengths if isinstance(k, SupportsIndex)]
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
    """Return random parts of a view with the given lengths, drawn by sample or by chunk."""
    counts = split_lengths(lengths, selection.size)
    if by == "chunk":
        return split_chunks(selection, counts, seed, chunk_starts())
    if by != "sample":
        raise ValueError(f"by={by!r}: expected 'sample' or 'chunk'")
    from npstream.orders.order import full_order

    order = selection.permute(full_order(selection.size, seed))
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    return [order.select(slice(end - n, end)) for end, n in zip(ends, counts, strict=True)]


def split_chunks(
    selection: Selection, counts: Sequence[int], seed: int, chunk_starts: Int64
) -> list[Any]:
    """Split a view by chunks of the dataset.

    The chunks are concatenated in random order, and the sequence is cut into parts. So two
    neighboring parts may share a chunk.

    Parameters
    ----------
    selection : Selection
    counts : sequence of int
        Samples of each part, which sum to the view's size.
    seed : int
    chunk_starts : ndarray of int64, shape (chunks + 1,)
        The first sample of each chunk, then the number of samples.

    Returns
    -------
    list of Selection
        The parts, each in the view's order.
    """
    from npstream.orders.permutation import Permutation, make_key

    n, chunks = selection.size, len(chunk_starts) - 1
    sizes = np.zeros(chunks, np.int64)
    for start, stop in row_ranges(n, _BLOCK):
        sizes += np.bincount(_chunk_numbers(selection, chunk_starts, start, stop), minlength=chunks)
    # Orders and mixtures use other levels, so that this permutation is independent of theirs.
    order = Permutation(chunks, make_key(seed, level=1)).at(np.arange(chunks))
    # next_position[c] is the position of the next sample of chunk c in the concatenated chunks.
    next_position = np.empty(chunks, np.int64)
    next_position[order] = np.cumsum(sizes[order]) - sizes[order]
    ends = np.cumsum(counts)
    part_numbers = np.empty(n, np.min_scalar_type(len(counts)))
    for start, stop in row_ranges(n, _BLOCK):
        chunk = _chunk_numbers(selection, chunk_starts, start, stop)
        by_chunk = np.argsort(chunk, kind="stable")
        distinct, first, count = np.unique(chunk[by_chunk], return_index=True, return_counts=True)
        position = np.empty(stop - start, np.int64)
        index_in_chunk = np.arange(stop - start) - np.repeat(first, count)
        position[by_chunk] = next_position[chunk[by_chunk]] + index_in_chunk
        next_position[distinct] += count
        part_numbers[start:stop] = np.searchsorted(ends, position, side="right")
    flat = selection.ravel()
    return [flat.select(part_numbers == part) for part in range(len(counts))]


def _chunk_numbers(selection: Selection, chunk_starts: Int64, start: int, stop: int) -> Int64:
    return np.searchsorted(chunk_starts, selection.ids(start, stop), side="right") - 1


class View(Protocol):
    """Samples that can be sliced, iterated over and loaded."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


def filter_mask(view: View, fn: Callable[[Any], Any], batch_size: int | None, block: int) -> Bools:
    """Return the mask of samples for which `fn` returns True.

    `fn` takes a Batch of `batch_size` samples. If `batch_size` is None, `fn` takes a single sample,
    and samples are read in blocks of `block` samples.
    """
    if not callable(fn):
        raise TypeError(
            f"filter takes a function, not a {type(fn).__name__}: for a mask write ds[mask], such "
            "as ds[ds['label'] == 3]"
        )
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
            part_mask = np.asarray(fn(part.load()))
        except StopIteration as error:
            raise stop_iteration_error("the function of filter()") from error
        if part_mask.dtype != bool or part_mask.shape != (len(part),):
            raise TypeError(
                f"fn returned {part_mask.dtype} of shape {part_mask.shape} for a batch of "
                f"{len(part)}; expected a bool for each row"
            )
        mask[start : start + step] = part_mask
    return mask


def query_mask(view: View, evaluate: Callable[[Any], Bools], block: int) -> Bools:
    """Return the mask of samples for which an expression is true.

    Parameters
    ----------
    view : View
        A one-dimensional dataset.
    evaluate : callable
        Takes a part of the view, and returns a bool for each of its rows.
    block : int
        Rows that are evaluated at once.
    """
    mask = np.zeros(len(view), bool)
    for start in progress(range(0, len(view), block), "query"):
        mask[start : start + block] = evaluate(view[start : start + block])
    if not len(view):
        evaluate(view)  # raises for operands of the wrong kind
    return mask


def chain_transforms(
    first: Callable[[Any], Any] | None, second: Callable[[Any], Any] | None
) -> Callable[[Any], Any] | None:
    """Return a function that applies two transforms in turn; None if there is no second one."""
    if second is not None and not callable(second):
        raise TypeError(f"transform={short_repr(second)}: expected a function, or None")
    return second if first is None or second is None else partial(apply_both, first, second)


def apply_both(first: Callable[[Sample], Any], second: Callable[[Any], Any], sample: Sample) -> Any:
    """Apply two functions, one after the other."""
    return second(first(sample))
