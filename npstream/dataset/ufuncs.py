"""NumPy's ufuncs on columns, one block of rows at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from npstream._core.array_like import is_tensor, is_time, time_array
from npstream._core.progress import progress
from npstream._core.typing import Bools
from npstream.dataset.reductions import UFUNCS
from npstream.reading.gate import gate
from npstream.reading.gather import BLOCK

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source


EQUALITY: dict[np.ufunc, Callable[[Any, Any], Any]] = {
    np.equal: operator.eq,
    np.not_equal: operator.ne,
}
"""The operators of equality, which know that a number is no text, where their ufuncs raise."""

REDUCED = {ufunc: name for name, ufunc in UFUNCS.items()}
"""Reductions by ufuncs, such as ``np.add.reduce``, and the methods that they are."""

_OPTIONS: dict[str, set[str]] = {
    "sum": {"initial", "dtype"}, "prod": {"initial", "dtype"}, "min": {"initial"},
    "max": {"initial"}, "any": set(), "all": set(),
}  # fmt: skip
"""Keyword arguments that a method has beside those that all have; a ufunc has each of them."""


def is_method(ufunc: np.ufunc, options: Mapping[str, Any]) -> bool:
    """Return True if a method is the reduction by a ufunc with these keyword arguments."""
    known = {"axis", "out", "keepdims", "where"}
    return ufunc in REDUCED and options.keys() - known <= _OPTIONS[REDUCED[ufunc]]


_PLAIN = (np.ndarray, np.memmap)
"""Types of arrays whose results are plain arrays."""


def takes_over(other: Any, dtype: np.dtype[Any]) -> bool:
    """Return True if arrays of a dtype leave operators to another operand.

    They do to matrices, masked and sparse arrays, and what is of pandas, all of which know what
    to do with an array, yet not with a column.
    """
    if isinstance(other, np.ndarray):
        return type(other) not in _PLAIN
    if hasattr(other, "__pandas_priority__"):
        return not hasattr(other, "_leads")
    if hasattr(other, "__array_ufunc__") or is_tensor(other):
        return False
    # Times `plain_times` makes plain; NaT is a time or a duration, as pandas sees fit.
    is_own = dtype.kind in "mM" and is_time(other) and other == other
    return getattr(other, "__array_priority__", 0) > 0 and not is_own


def _operator(name: str) -> Callable[[Any, Any], Any]:
    """Return a method for an operator, such as "add" or "radd"."""
    usual = getattr(NDArrayOperatorsMixin, f"__{name}__")
    is_reflected = name[0] == "r" and name != "rshift"
    plain = name[1:] if is_reflected else name
    function = divmod if plain == "divmod" else getattr(operator, f"__{plain}__")

    def method(self: Any, other: Any) -> Any:
        if takes_over(other, self.dtype):
            array = np.asarray(self)
            return function(other, array) if is_reflected else function(array, other)
        return usual(self, other)

    method.__name__ = f"__{name}__"
    return method


class Operators(NDArrayOperatorsMixin):
    """The operators of an array, which leaves some to its other operand."""

    __slots__ = ()

    __pandas_priority__ = 5000
    """Above a DataFrame's: what is of pandas leaves operators to a column, which reads itself."""


_BINARY = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift",
    "rshift", "and", "xor", "or",
)  # fmt: skip
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), "lt", "le", "gt", "ge"):
    setattr(Operators, f"__{_name}__", _operator(_name))


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


def common_rows(inputs: Sequence[Any], options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the shape that inputs of a ufunc have together, if rows can be computed in blocks.

    None leaves all to NumPy: for arrays of other libraries, and arguments that bind rows together.

    Parameters
    ----------
    inputs : sequence of array_like
        Columns are told by their attribute ``_leads``, which is True if rows are the first axis.
    options : mapping
        Keyword arguments of the call.
    """
    if options.keys() - {"out", "dtype", "casting", "where"}:
        return None
    arrays = [*inputs, options.get("where", True)]
    if not all(_is_plain(item) for item in arrays):
        return None
    shape = np.broadcast_shapes(*(np.shape(item) for item in arrays))
    outs = [out for out in options.get("out", ()) if out is not None]
    if not all(type(out) in _PLAIN for out in outs):
        return None
    for out in outs:
        if np.broadcast_shapes(out.shape, shape) != out.shape:
            raise ValueError(f"out has shape {out.shape}, and the result {shape}")
    if any(out.shape != shape for out in outs):
        return None
    columns = [item for item in inputs if hasattr(item, "_leads")]
    if not shape or 0 in shape or any(not c._leads for c in columns):
        return None
    return shape if any(_has_rows(c, shape) for c in columns) else None


def _is_plain(item: Any) -> bool:
    return hasattr(item, "_leads") or type(item) in (*_PLAIN, list) or np.ndim(item) == 0


def _has_rows(item: Any, shape: tuple[int, ...]) -> bool:
    """Return True if an input has the rows of the result, and not one for all of them."""
    return np.ndim(item) == len(shape) and np.shape(item)[0] == shape[0] != 1


def in_blocks(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    shape: tuple[int, ...],
    bounds: Iterable[tuple[int, int]],
) -> Any:
    """Call a ufunc, or the operator that stands for it, on blocks of rows; join the results.

    Parameters
    ----------
    function : callable
    inputs, options
        As `common_rows` takes them.
    shape : tuple of int
        What it returned.
    bounds : iterable of (int, int)
        First row of each block, and the one after its last.
    """
    wholes = [
        item if not hasattr(item, "_leads") or _has_rows(item, shape) else np.asarray(item)
        for item in inputs
    ]
    outs = options.get("out")
    given = {key: value for key, value in options.items() if key != "out"}
    results: list[Any] = list(outs) if outs else []
    for start, stop in bounds:
        rows = slice(start, stop)
        parts = [_block(item[rows]) if _has_rows(item, shape) else item for item in wholes]
        if _has_rows(options.get("where", True), shape):
            given["where"] = np.asarray(options["where"])[rows]
        if outs:
            given["out"] = tuple(None if out is None else out[rows] for out in outs)
        blocks = function(*parts, **given)
        several = isinstance(blocks, tuple)
        blocks = blocks if several else (blocks,)
        if start == 0 and stop >= shape[0] and not outs:
            return blocks if several else blocks[0]
        results = results or [None] * len(blocks)
        for k, block in enumerate(blocks):
            if results[k] is None:
                results[k] = np.empty(shape, block.dtype)
            if not outs or outs[k] is None:
                results[k][rows] = block
    return tuple(results) if len(results) > 1 else results[0]


def _block(rows: Any) -> Any:
    """Return rows as an array: a column's are read."""
    return rows._block() if hasattr(rows, "_leads") else rows


def matrix_product(left: Any, right: Any, bounds: Callable[[Any], Iterable[Any]]) -> Any:
    """Multiply matrices, one of which is a column, by blocks of its rows.

    Parameters
    ----------
    left, right : ndarray or Column
    bounds : callable
        Returns the bounds of the blocks of a column.

    Returns
    -------
    ndarray or scalar
        NotImplemented where rows cannot be taken in blocks.
    """
    if not (_is_plain(left) and _is_plain(right)):
        return NotImplemented
    left, right = (x if hasattr(x, "_leads") else np.asarray(x) for x in (left, right))
    shapes = np.shape(left), np.shape(right)
    if not all(shapes) or any(0 in shape for shape in shapes):
        return NotImplemented
    lengths = shapes[0][-1], shapes[1][-2:][0]
    if lengths[0] != lengths[1]:
        # For the exception, before anything is read.
        np.matmul(np.empty((0, lengths[0]), left.dtype), np.empty((lengths[1], 0), right.dtype))
    if getattr(left, "_leads", False) and len(shapes[0]) > 1:
        return _by_rows(left, right, bounds(left)) if len(shapes[1]) <= 2 else NotImplemented
    if getattr(right, "_leads", False) and len(shapes[1]) <= 2:
        return _summed(left, right, bounds(right))
    if getattr(left, "_leads", False) and len(shapes[1]) <= 2:
        return _summed(left, right, bounds(left))
    return NotImplemented


def _by_rows(left: Any, right: Any, bounds: Iterable[Any]) -> Any:
    """Multiply blocks of rows with the whole of another matrix."""
    right = np.asarray(right)
    products = (np.matmul(left[start:stop]._block(), right) for start, stop in bounds)
    first = next(products)
    if len(first) == len(left):
        return first
    result = np.empty((len(left), *first.shape[1:]), first.dtype)
    start = 0
    for product in chain([first], products):
        result[start : start + len(product)] = product
        start += len(product)
    return result


def _summed(left: Any, right: Any, bounds: Iterable[Any]) -> Any:
    """Sum the products of blocks along the axis that disappears."""
    total: Any = None
    for start, stop in bounds:
        part = np.matmul(_block(left[..., start:stop]), _block(right[start:stop]))
        total = part if total is None else np.add(total, part)
    return total


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
        found = source.look_up(selection.ids(start, start + BLOCK))
        equal[start : start + BLOCK] = source.equal(plan, found, text)
    return equal.reshape(selection.shape)[()]


def is_same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal; arrays are if all of their elements are."""
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else bool(left == right)
