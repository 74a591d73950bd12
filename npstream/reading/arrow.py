"""Views, batches and columns as Arrow data, by Arrow's PyCapsule interface.

Numbers become Arrow's numbers, further axes lists of a fixed size, values that vary in shape large
lists, text large strings. What has no type in Arrow is handed over as it is stored: JSON and
decimals as text, images as the bytes of their files.

The interface: https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.optional import optional
from npstream.formats.encodings.encodings import parse
from npstream.reading.gate import gate
from npstream.reading.gather import Field, Plan
from npstream.reading.ragged import Ragged

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.source import Source

BATCH_BYTES = 1 << 24
"""Bytes of samples in a record batch."""

_AS_TEXT = {"json": json.dumps, "str_decimal": str}
"""Encodings of objects that Arrow takes as text, and what makes text of a value."""


def arrow_field(field: Field) -> Field:
    """Return a column as it is read for Arrow.

    Raises
    ------
    TypeError
        If Arrow has no type for its values.
    """
    encoding = field.encoding
    if encoding.kind in ("image", "bytes"):
        return Field(field.name, parse("bytes"))
    if encoding.name in _AS_TEXT:
        return Field(field.name, parse("str"))
    if encoding.kind == "object" or (encoding.kind == "ndarray" and encoding.dtype == object):
        raise _no_type(field.name, f"{encoding.name} values")
    arrow_type(field.name, encoding.dtype)
    return field


def arrow_type(name: str, dtype: np.dtype[Any]) -> Any:
    """Return Arrow's type of the elements of a column."""
    pa = optional("pyarrow", "pyarrow", "arrow")
    if dtype.kind == "T":
        return pa.large_string()
    try:
        return pa.from_numpy_dtype(dtype)
    except (NotImplementedError, pa.ArrowException, TypeError):
        raise _no_type(name, f"values of dtype {dtype}") from None


def _no_type(name: str, what: str) -> TypeError:
    return TypeError(
        f"column {name!r} holds {what}, for which Arrow has no type: leave the column out, as in "
        "ds[['other', 'columns']], or give Arrow numbers, as of values.view(float)"
    )


def arrow_array(name: str, values: Any, is_part: bool = False) -> Any:
    """Return the values of a column, once they are read, as a pyarrow Array.

    Parameters
    ----------
    name : str
    values : ndarray or Ragged
        Rows along the first axis.
    is_part : bool, default: False
        True for a type that does not depend on which axes of a Ragged happen to be constant.
    """
    pa = optional("pyarrow", "pyarrow", "arrow")
    if isinstance(values, Ragged):
        return values.to_arrow() if not is_part else values._to_arrow(regular=False)
    array = np.asarray(values)
    if array.dtype.kind == "T":
        return Ragged.from_list(array.tolist(), "str").to_arrow()
    if array.dtype == object:
        try:
            return pa.array(array.tolist())
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise _no_type(name, "objects") from error
    arrow_type(name, array.dtype)
    content = pa.array(array.reshape(-1))
    for axis in range(array.ndim - 1, 0, -1):
        # FixedSizeListArray.from_arrays cannot tell how many lists of size 0 there are.
        kind, lists = pa.list_(content.type, array.shape[axis]), prod(array.shape[:axis])
        content = pa.Array.from_buffers(kind, lists, [None], children=[content])
    return content


def record_batches(source: Source, selection: Selection, names: tuple[str, ...]) -> Any:
    """Return the samples of a 1-d view as a pyarrow RecordBatchReader, which reads as it goes.

    Raises
    ------
    TypeError
        If Arrow has no type for a column.
    CostError
        If that fetches more than an implicit read may.
    """
    pa = optional("pyarrow", "pyarrow", "arrow")
    plan = Plan([arrow_field(source.field(name)) for name in names])
    gate(source, selection, "an Arrow stream of this view", plan)
    step = source.rows_of(BATCH_BYTES)
    starts = range(0, selection.size, step) or range(1)
    pieces = (selection.ids(start, start + step) for start in starts)
    rowwise = source.is_view_rowwise(selection)
    ahead = source.ahead(pieces, lambda ids: ids, selection.step, rowwise)
    batches = (batch_of(source.columns(plan, ids, {}), {}, is_part=True) for ids in ahead)
    first = next(batches)
    return pa.RecordBatchReader.from_batches(first.schema, _alike(first, batches))


def _alike(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    """Yield record batches; raise TypeError at one whose columns have other types."""
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


def batch_of(
    columns: Mapping[str, Any], encodings: Mapping[str, str] | None, is_part: bool = False
) -> Any:
    """Return columns as a pyarrow RecordBatch.

    Parameters
    ----------
    columns : mapping of str to ndarray or Ragged
    encodings : mapping of str to str, optional
        How the columns are stored.
    is_part : bool, default: False
        True for one of several batches, which have the same types.
    """
    pa = optional("pyarrow", "pyarrow", "arrow")
    arrays = []
    for name, values in columns.items():
        if (write := _AS_TEXT.get((encodings or {}).get(name, ""))) is not None:
            values = Ragged.from_list(list(map(write, values)), "str")
        arrays.append(arrow_array(name, values, is_part))
    return pa.RecordBatch.from_arrays(arrays, list(columns))
