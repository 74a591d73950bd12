"""Where samples are stored: in which dataset, in which shard, and as which of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._typing import AnyArray, Int64

if TYPE_CHECKING:
    from npstream.formats.index import Index

Rows: TypeAlias = slice | Int64
"""Which of some samples."""


def locate(index: Index, ids: int | Int64) -> tuple[Any, Any]:
    """Return the shard of a sample and its row there; of several samples, in their shape."""
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    rows = ids - index.starts[shards]
    return (int(shards), int(rows)) if isinstance(ids, int) else (shards, rows)


def shard_table(index: Index) -> AnyArray:
    """Return name, first sample, samples and bytes of each shard as a structured array."""
    names = [index.name(shard) for shard in range(len(index))]
    width = max(map(len, names), default=1)
    fields = [("name", f"U{width}"), ("start", "i8"), ("samples", "i8"), ("bytes", "i8")]
    table = np.empty(len(index), fields)
    table["name"], table["bytes"] = names, index.nbytes
    table["start"], table["samples"] = index.starts[:-1], np.diff(index.starts)
    return table


def grouped(numbers: Int64) -> Iterator[tuple[int, Rows]]:
    """Yield each number that occurs, rising, and where it does.

    Examples
    --------
    >>> list(grouped(np.array([7, 3, 7])))
    [(3, array([1])), (7, array([0, 2]))]
    """
    if not len(numbers):
        return
    if (numbers == numbers[0]).all():
        yield int(numbers[0]), slice(None)
        return
    least = int(numbers.min())
    short = numbers - least
    if short.max() < 1 << 16:
        short = short.astype(np.uint16)  # are sorted by their digits, in a fifth of the time
    order = np.argsort(short, kind="stable")
    short = short[order]
    cuts = [0, *(np.flatnonzero(short[1:] != short[:-1]) + 1).tolist(), len(order)]
    for first, stop in pairwise(cuts):
        yield least + int(short[first]), order[first:stop]
