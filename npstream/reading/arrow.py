"""Provide conversion of views, batches and columns to Arrow data.

Numbers become Arrow numbers, and further axes become lists of a fixed size. Values that vary in
shape become large lists. Text becomes large strings. JSON values and decimals become text. Images
become the bytes of their files. Other values for which Arrow has no type raise TypeError.

The interface is Arrow's PyCapsule interface:
https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from npstream._core.optional import import_optional
from npstream.reading.ragged import Ragged

TEXT_WRITERS: dict[str, Callable[[Any], str]] = {"json": json.dumps, "str_decimal": str}
"""For encodings that become text in Arrow, the function that converts a value to text."""


def arrow_type(name: str, dtype: np.dtype[Any]) -> Any:
    """Return the Arrow type of a column's elements; raise TypeError if there is none."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if dtype.kind == "T":
        return pa.large_string()
    try:
        return pa.from_numpy_dtype(dtype)
    except (NotImplementedError, pa.ArrowException, TypeError):
        raise no_arrow_type(name, f"values of dtype {dtype}") from None


def no_arrow_type(name: str, values_text: str) -> TypeError:
    """Return the error for a column of values for which Arrow has no type."""
    return TypeError(
        f"column {name!r} holds {values_text}, for which Arrow has no type: leave the column out, "
        "as in ds[['other', 'columns']], or give Arrow numbers, such as values.view(float)"
    )


def to_arrow_array(name: str, values: Any, has_stable_type: bool = False) -> Any:
    """Convert the values of a column to a pyarrow Array.

    Parameters
    ----------
    name : str
    values : ndarray or Ragged
        Rows along the first axis.
    has_stable_type : bool, default: False
        By default, an axis of a Ragged becomes a list of fixed size if all rows have the same
        length along it. If True, such an axis becomes a list of variable size, as other axes do.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(values, Ragged):
        return values.to_arrow() if not has_stable_type else values._to_arrow(regular=False)
    array = np.asarray(values)
    if array.dtype.kind == "T":
        return Ragged.from_list(array.tolist(), "str").to_arrow()
    if array.dtype == object:
        try:
            return pa.array(array.tolist())
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise no_arrow_type(name, "objects") from error
    arrow_type(name, array.dtype)
    content = pa.array(array.reshape(-1))
    for axis in range(array.ndim - 1, 0, -1):
        # FixedSizeListArray.from_arrays cannot count lists of size 0.
        list_type, count = pa.list_(content.type, array.shape[axis]), prod(array.shape[:axis])
        content = pa.Array.from_buffers(list_type, count, [None], children=[content])
    return content


def record_batch(
    columns: Mapping[str, Any], encodings: Mapping[str, str] | None, has_stable_type: bool = False
) -> Any:
    """Convert columns to a pyarrow RecordBatch.

    Parameters
    ----------
    columns : mapping of str to ndarray or Ragged
    encodings : mapping of str to str, optional
        The encoding of each column in storage.
    has_stable_type : bool, default: False
        True for one of several batches, which must all have the same types.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    arrays = []
    for name, values in columns.items():
        if (write := TEXT_WRITERS.get((encodings or {}).get(name, ""))) is not None:
            values = Ragged.from_list(list(map(write, values)), "str")
        arrays.append(to_arrow_array(name, values, has_stable_type))
    return pa.RecordBatch.from_arrays(arrays, list(columns))
