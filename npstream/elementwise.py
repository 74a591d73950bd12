"""NumPy's ufuncs on columns."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._typing import AnyArray

if TYPE_CHECKING:
    from npstream.column import Column


def apply(
    column: Column,
    ufunc: np.ufunc,
    method: str,
    inputs: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """Apply a ufunc to inputs of which some are columns.

    With numbers for the other inputs, the column is read in blocks of rows; text is compared
    with a ``str`` where it lies.
    """
    cls = type(column)
    others = [item for item in inputs if not isinstance(item, cls)]
    simple = method == "__call__" and ufunc.nout == 1 and ufunc.signature is None and not options
    if simple and len(others) == len(inputs) - 1 and all(np.ndim(item) == 0 for item in others):
        if ufunc in (np.equal, np.not_equal) and column._is_text_like(others[0]):
            equal = column._equal_text(others[0])
            return equal if ufunc is np.equal else ~equal
        return _blockwise(column, ufunc, inputs)
    arrays = [np.asarray(item) if isinstance(item, cls) else item for item in inputs]
    return getattr(ufunc, method)(*arrays, **options)


def _blockwise(column: Column, ufunc: np.ufunc, inputs: tuple[Any, ...]) -> Any:
    result: AnyArray | None = None
    row = 0
    for block in column._blocks() if column.size and column.ndim else ():
        part = ufunc(*(block if item is column else item for item in inputs))
        if result is None:
            result = np.empty((len(column), *part.shape[1:]), part.dtype)
        result[row : row + len(part)] = part
        row += len(part)
    if result is None:
        return ufunc(*(np.asarray(item) if item is column else item for item in inputs))
    return result


def tensor(array: AnyArray) -> Any:
    """Return a tensor over an array's memory."""
    return importlib.import_module("npstream.torch").tensor(array)
