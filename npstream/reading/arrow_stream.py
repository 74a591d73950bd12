"""Provide views and columns as streams of Arrow record batches, which read on demand.

Tested in tests/reading/test_arrow.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from npstream._core.optional import import_optional
from npstream.formats.encodings.encodings import own_encoding
from npstream.reading.arrow import TEXT_WRITERS, arrow_type, no_arrow_type, record_batch
from npstream.reading.cost_limit import check_cost
from npstream.reading.plan import Plan

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Field
    from npstream.reading.source import Source

BATCH_BYTES = 1 << 24
"""Approximate number of bytes of the samples of one record batch."""


def arrow_field(field: Field) -> Field:
    """Return a column as it is read for Arrow: as bytes, as text, or unchanged.

    Raises
    ------
    TypeError
        If Arrow has no type for the values.
    """
    encoding = field.encoding
    if encoding.kind in ("image", "bytes"):
        return field._replace(encoding=own_encoding("bytes"))
    if encoding.name in TEXT_WRITERS:
        return field._replace(encoding=own_encoding("str"))
    if encoding.kind == "object" or (encoding.kind == "ndarray" and encoding.dtype == object):
        raise no_arrow_type(field.name, f"{encoding.name} values")
    arrow_type(field.name, encoding.dtype)
    return field


def record_batches(
    source: Source, selection: Selection, names: tuple[str, ...], is_limited: bool = True
) -> Any:
    """Return a pyarrow RecordBatchReader of a 1-d view, which reads on demand.

    The limit of implicit reads applies if `is_limited` is True.

    Raises
    ------
    TypeError
        If Arrow has no type for a column.
    CostError
        If the read would fetch more than the implicit read limit.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    plan = Plan([arrow_field(source.field(name)) for name in names])
    if is_limited:
        check_cost(source, selection, "an Arrow stream of this view", plan)
    step = source.estimate_read_rows(BATCH_BYTES, plan)
    # An empty view has one empty batch, whose schema the stream needs.
    starts = range(0, selection.size, step) or range(1)
    blocks = (selection.ids(start, start + step) for start in starts)
    is_rowwise = source.is_view_rowwise(selection, plan)
    pairs = source.read_ahead(blocks, lambda ids: ids, plan, selection.step, is_rowwise)
    batches = (
        record_batch(source.columns(plan, lookup, {}), {}, has_stable_type=True)
        for _, lookup in pairs
    )
    first = next(batches)
    return pa.RecordBatchReader.from_batches(first.schema, _check_schemas(first, batches))


def _check_schemas(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    """Yield record batches; raise TypeError if one has other types than the first."""
    yield first
    for batch in others:
        if batch.schema != first.schema:
            name = next(f.name for f, g in zip(batch.schema, first.schema, strict=True) if f != g)
            raise TypeError(
                f"column {name!r} holds arrays of different numbers of axes, "
                f"{first.schema.field(name).type} and {batch.schema.field(name).type}, and an "
                "Arrow column has one type: leave the column out, as in ds[['other', 'columns']]"
            )
        yield batch
