"""Where samples are stored: in which shard, and as which of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._typing import AnyArray, Int64

if TYPE_CHECKING:
    from npstream.formats.index import Index


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
