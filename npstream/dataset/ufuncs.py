"""NumPy's ufuncs on columns, one block of rows at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.array_like import is_time, time_array
from npstream._core.progress import progress
from npstream._core.typing import AnyArray, Bools
from npstream.dataset.reductions import reduce_blocks
from npstream.reading.gate import gate
from npstream.reading.gather import BLOCK

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.gather import Plan
    from npstream.reading.source import Source


EQUALITY: dict[np.ufunc, Callable[[Any, Any], Any]] = {
    np.equal: operator.eq,
    np.not_equal: operator.ne,
}
"""The operators of equality, which know that a number is no text, where their ufuncs raise."""


def plain_times(inputs: tuple[Any, ...], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return inputs to a column of times with the times and durations of pandas as NumPy's.

    Arrays leave operators to those, which do so; a column is no array to them.
    """
    if dtype.kind not in "mM":
        return inputs
    return tuple(
        time_array(item, dtype)
        if is_time(item) and hasattr(item, "to_numpy") and getattr(item, "tzinfo", None) is None
        else item
        for item in inputs
    )


def is_blockwise(
    ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any], column: object
) -> bool:
    """Tell whether a ufunc takes each element of a column on its own, beside mere numbers."""
    others = [item for item in inputs if item is not column]
    return (
        (method, ufunc.nout, ufunc.signature, options) == ("__call__", 1, None, {})
        and len(others) == len(inputs) - 1
        and all(np.ndim(item) == 0 for item in others)
    )


def blockwise(
    function: Callable[..., Any],
    inputs: tuple[Any, ...],
    column: Any,
    blocks: Iterable[AnyArray],
) -> Any:
    """Apply a function to the blocks of a column, one of the inputs, and join the results."""
    parts = (function(*(block if item is column else item for item in inputs)) for block in blocks)
    first = next(parts)
    if not column.shape or len(first) == len(column):
        return first
    result = np.empty((len(column), *first.shape[1:]), first.dtype)
    start = 0
    for part in chain([first], parts):
        result[start : start + len(part)] = part
        start += len(part)
    return result


def compared_text(ufunc: np.ufunc, inputs: tuple[Any, ...], kind: str) -> bytes | None:
    """Return the text that a column of a kind of text is compared with, if that is done."""
    wanted: Any = {"str": str, "bytes": bytes}.get(kind)
    if wanted is None or ufunc not in EQUALITY:
        return None
    for item in inputs:
        if isinstance(item, wanted):
            # What is no UTF-8 equals nothing, yet is no mistake.
            return item.encode(errors="surrogatepass") if isinstance(item, str) else bytes(item)
    return None


def equal_to(text: bytes, source: Source, plan: Plan, selection: Selection) -> Bools:
    """Compare a column of text with one, where it lies."""
    gate(source, selection, "comparing text", plan)
    equal = np.empty(selection.size, bool)
    for start in progress(range(0, selection.size, BLOCK), "comparing text"):
        ids = selection.ids(start, start + BLOCK)
        equal[start : start + BLOCK] = source.equal(plan, ids, text)
    return equal.reshape(selection.shape)[()]


def is_same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal; arrays are if all of their elements are."""
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else bool(left == right)


def reduction(name: str) -> Callable[..., Any]:
    """Return the method that ``np.<name>`` calls: it reads one block of rows at a time."""

    def method(self: Any, axis: Any = None, **options: Any) -> Any:
        if not self.shape:
            return getattr(np, name)(np.asarray(self), axis, **options)
        blocks = (part._as_array() for part in self._parts(f"{name} of {self.name!r}"))
        return reduce_blocks(name, blocks, self.shape, self.dtype, axis, **options)

    method.__name__ = name
    method.__qualname__ = f"Column.{name}"
    method.__doc__ = f"Reduce the column, block by block, as `numpy.{name}` does."
    return method
