"""Columns as arrays over mapped files, copying nothing.

Tested in tests/dataset/test_column.py.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.memory import is_mapped
from npstream._core.typing import AnyArray
from npstream.indexing.cells import Cell, as_slice
from npstream.reading.sample import record_column

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Field
    from npstream.reading.source import Source


def mapped_column(
    source: Source, field: Field, selection: Selection, cell: Cell, dtype: Any
) -> AnyArray:
    """Return a fixed column as a read-only array over one shard's file.

    The file stays mapped for as long as the array lives, also after the dataset is closed.

    Raises
    ------
    ValueError
        If that cannot be: the rows are not evenly spaced within one uncompressed shard whose
        columns all have one size, or another dtype is asked for.
    """
    encoding = field.encoding
    refusal = ValueError("Unable to avoid copy while creating an array as requested.")
    pieces = [*islice(source.pieces(selection), 2)]
    if len(pieces) != 1:
        raise refusal
    ((source, selection),) = pieces
    affine = selection.affine
    if affine is None or selection.size == 0 or (dtype is not None and dtype != encoding.dtype):
        raise refusal
    if field.computation is not None:
        raise refusal
    index = source.index
    start, step = affine
    last = start + step * (selection.size - 1)
    shards = np.searchsorted(index.starts, [start, last], side="right") - 1
    shard = int(shards[0])
    layout = source.fetcher.layouts[index.schema_of[shard]]
    if shards[1] != shard or layout is None or not layout.stride:
        raise refusal
    region = source.fetcher.region(shard)
    if region is None or not (is_mapped(region.data) and region.resident.all()):
        raise refusal
    column = record_column(region, layout, field)
    row = start - int(index.starts[shard])
    rows = range(row, row + step * selection.size, step)
    return column[(as_slice(rows), *cell.index)]
