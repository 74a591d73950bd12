"""NumPy's functions on columns that read less than the whole column at once.

A function that is not here gets the columns as arrays.

Tested in tests/dataset/test_array_functions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from npstream._core.typing import AnyArray
from npstream.dataset.reductions import (
    NAN_REDUCTIONS,
    REDUCTIONS,
    reduce_blocks,
    reduce_without_nan,
)

STAND_INS: tuple[Any, ...] = (
    np.shape, np.ndim, np.size, np.empty_like, np.zeros_like, np.ones_like, np.result_type,
    np.can_cast, np.common_type, np.iscomplexobj, np.isrealobj, np.shares_memory,
    np.may_share_memory, np.diag_indices_from, np.tril_indices_from, np.triu_indices_from,
)  # fmt: skip
"""Functions that need a shape and a dtype, and no element."""

METHOD_OF: dict[Any, str] = {
    **{getattr(np, name): name for name in REDUCTIONS},
    np.amin: "min", np.amax: "max", np.take: "take", np.round: "round", np.around: "round",
    np.nonzero: "nonzero",
}  # fmt: skip
"""Functions that a method of the same signature serves."""

READ_ONLY_VIEWS: tuple[Any, ...] = (
    np.diagonal, np.linalg.diagonal, np.broadcast_to, np.broadcast_arrays,
)  # fmt: skip
"""Functions whose results are read-only views, or show an element in several places."""

BY_ROWS: tuple[Any, ...] = (np.nan_to_num, np.isin, np.real, np.imag, np.angle)
"""Functions of elements whose first argument alone has rows."""


def apply(function: Any, args: tuple[Any, ...], keywords: dict[str, Any], kind: type) -> Any:
    """Call a function of NumPy that columns are among the arguments of.

    Parameters
    ----------
    function : callable
    args, keywords
        Its arguments.
    kind : type
        The class of columns.
    """
    if function in STAND_INS:
        args = tuple(_replaced(item, kind, _stand_in) for item in args)
        keywords = {key: _replaced(item, kind, _stand_in) for key, item in keywords.items()}
        return function(*args, **keywords)
    if function is np.full_like and args:
        args = (_replaced(args[0], kind, _stand_in), *args[1:])
    column, *others = args or (None,)
    if isinstance(column, kind) and not _has(kind, others, keywords):
        handler = HANDLERS.get(function)
        result = NotImplemented if handler is None else handler(column, *others, **keywords)
        if result is not NotImplemented:
            return result
    elif function is np.dot and len(args) == 2 and not keywords:
        return _dot(*args)
    elif function is np.copyto and args and isinstance(args[0], np.ndarray):
        return _copy(*args, **keywords)
    return _call(function, args, keywords, kind)


def _call(function: Any, args: tuple[Any, ...], keywords: dict[str, Any], kind: type) -> Any:
    """Call a function with the columns read.

    Their arrays are read-only meanwhile, as what it wrote to one would be lost.
    """
    lent: list[AnyArray] = []

    def lend(column: Any) -> AnyArray:
        lent.append(np.asarray(column))
        lent[-1].flags.writeable = False
        return lent[-1]

    args = tuple(_replaced(item, kind, lend) for item in args)
    keywords = {key: _replaced(item, kind, lend) for key, item in keywords.items()}
    result = function(*args, **keywords)
    for array in lent:
        array.flags.writeable = True
    if function not in READ_ONLY_VIEWS:
        _return(result, lent)
    return result


def _return(result: Any, lent: list[AnyArray]) -> None:
    """Let views of arrays that were read be written to, as these are nobody else's."""
    for item in result if isinstance(result, list | tuple) else (result,):
        if isinstance(item, np.ndarray) and any(np.may_share_memory(item, a) for a in lent):
            item.flags.writeable = True


def _replaced(item: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Replace columns, also those in lists and tuples."""
    if isinstance(item, kind):
        return function(item)
    if type(item) in (list, tuple) and _has(kind, item, {}):
        return type(item)(_replaced(part, kind, function) for part in item)
    return item


def _has(kind: type, items: Any, keywords: dict[str, Any]) -> bool:
    return any(
        isinstance(item, kind) or (type(item) in (list, tuple) and _has(kind, item, {}))
        for item in (*items, *keywords.values())
    )


def _stand_in(column: Any) -> AnyArray:
    """Return an array of a column's shape and dtype that takes no memory."""
    return np.broadcast_to(np.zeros((), column.dtype), column.shape)


def _blocks(column: Any, function: Any) -> Iterator[AnyArray]:
    return column._blocks(f"{function.__name__} of {column.name!r}")  # type: ignore[no-any-return]


def _joined(column: Any, function: Any, *args: Any, **keywords: Any) -> Any:
    """Call a function on blocks of rows, and join what it returns."""
    if not column.shape:
        return NotImplemented
    return np.concatenate([function(b, *args, **keywords) for b in _blocks(column, function)])


def _method(name: str) -> Callable[..., Any]:
    def call(column: Any, /, *args: Any, **keywords: Any) -> Any:
        return getattr(column, name)(*args, **_given(keywords))

    return call


def _given(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments without those that are NumPy's sign for none."""
    return {k: v for k, v in keywords.items() if v is not np._NoValue}


def _clip(column: Any, /, *args: Any, **keywords: Any) -> Any:
    # NumPy's own function sorts its arguments out, and calls the method.
    return np.clip.__wrapped__(column, *args, **keywords)  # type: ignore[attr-defined]


def _min_scalar_type(column: Any) -> Any:
    return np.min_scalar_type(_stand_in(column) if column.shape else np.asarray(column))


def _by_rows(function: Any) -> Callable[..., Any]:
    def call(column: Any, /, *args: Any, **keywords: Any) -> Any:
        if not column._leads or "copy" in keywords:
            return NotImplemented
        return _joined(column, function, *args, **keywords)

    return call


def _without_nan(name: str) -> Callable[..., Any]:
    function = getattr(np, name)

    def call(column: Any, /, axis: Any = None, dtype: Any = None, **keywords: Any) -> Any:
        if not column.shape:
            return NotImplemented
        options = _given(keywords)
        options |= {} if dtype is None else {"dtype": dtype}
        blocks = _blocks(column, function)
        return reduce_without_nan(
            name.removeprefix("nan"), blocks, column.shape, column.dtype, axis, **options
        )

    return call


def _count_nonzero(column: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    if not column.shape or column.dtype.kind not in "biufc":
        return NotImplemented
    blocks = (block != 0 for block in _blocks(column, np.count_nonzero))
    total = reduce_blocks("sum", blocks, column.shape, np.dtype(bool), axis, keepdims=keepdims)
    return total if np.ndim(total) else type(np.count_nonzero(np.empty(0)))(total)


def _norm(column: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Return norms of rows block by block, and those of vectors along them from sums of powers."""
    if column.dtype.kind not in "biufc" or not column.size or not column._leads:
        return NotImplemented
    axes = None if axis is None else normalize_axis_tuple(axis, column.ndim)
    if axes is not None and 0 not in axes:
        return _joined(column, np.linalg.norm, ord=ord, axis=axis, keepdims=keepdims)
    vector = len(axes or column.shape) == 1 if axes or ord is not None else True
    if not vector or not (ord is None or isinstance(ord, int | float)):
        return NotImplemented
    kind = column.dtype if column.dtype.kind in "fc" else np.dtype(float)
    real = np.empty(0, kind).real.dtype
    power = 2 if ord is None else ord
    magnitudes = (np.abs(block.astype(kind)) for block in _blocks(column, np.linalg.norm))
    options: dict[str, Any] = {"axis": axis, "keepdims": keepdims}
    if abs(power) == np.inf:
        extreme = "max" if power > 0 else "min"
        return reduce_blocks(extreme, magnitudes, column.shape, real, **options)
    if power == 0:
        counted = ((block != 0).astype(real) for block in magnitudes)
        return reduce_blocks("sum", counted, column.shape, real, **options)
    wide = np.result_type(real, np.float64)
    powers = (block.astype(wide) ** power for block in magnitudes)
    total = reduce_blocks("sum", powers, column.shape, wide, **options)
    root = np.sqrt(total) if power == 2 else total ** (1 / power)
    return root.astype(real)


def _dot(left: Any, right: Any) -> Any:
    if np.ndim(left) and np.ndim(right) and np.ndim(right) <= 2 and np.ndim(left) <= 2:
        return np.matmul(left, right)
    return np.dot(np.asarray(left), np.asarray(right))


def _inner(column: Any, other: Any) -> Any:
    if column.ndim < 2 or not column._leads or not column.size:
        return NotImplemented
    return _joined(column, np.inner, other)


def _copy(dst: AnyArray, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    """Copy a column into an array, one block of rows at a time."""
    if where is True and getattr(src, "_leads", False) and src.shape == dst.shape:
        for start, stop in src._bounds("copying into an array"):
            np.copyto(dst[start:stop], src[start:stop]._block(), casting)
        return
    np.copyto(dst, np.asarray(src), casting, np.asarray(where))


def _array_equal(column: Any, other: Any, equal_nan: bool = False) -> Any:
    """Compare block by block, and read no further than the first that differs."""
    other = np.asarray(other)
    if column.shape != other.shape:
        return False
    if not column._leads or not column.shape:
        return NotImplemented
    return all(
        np.array_equal(column[start:stop]._block(), other[start:stop], equal_nan)
        for start, stop in column._bounds("comparing")
    )


def _unique(column: Any, *args: Any, **keywords: Any) -> Any:
    """Merge the distinct values of blocks, so that memory is bounded by these."""
    if args or keywords or column.dtype.kind not in "biufc" or not column.size:
        return NotImplemented
    found: list[AnyArray] = []
    pending = 0
    for block in _blocks(column, np.unique):
        found.append(np.unique(block))
        pending += len(found[-1])
        if pending > 2 * len(found[0]) + (1 << 16):
            found = [np.unique(np.concatenate(found))]
            pending = len(found[0])
    return np.unique(np.concatenate(found))


def _bincount(column: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    if weights is not None or column.ndim != 1 or column.dtype.kind not in "biu":
        return NotImplemented
    counts = np.bincount(np.empty(0, column.dtype), minlength=minlength)
    for block in _blocks(column, np.bincount):
        more = np.bincount(block, minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    return counts


def _histogram(
    column: Any, bins: Any = 10, range: Any = None, density: Any = None, weights: Any = None
) -> Any:
    """Count block by block; equal bins without a range need the extremes first, which are read."""
    if weights is not None or isinstance(bins, str) or column.dtype.kind not in "biuf":
        return NotImplemented
    if np.ndim(bins) == 0 and range is None:
        if not column.size:
            return NotImplemented
        range = (column.min(), column.max())
    edges = np.histogram_bin_edges(np.empty(0, column.dtype), bins, range)
    counts = np.zeros(len(edges) - 1, np.intp)
    for block in _blocks(column, np.histogram):
        counts += np.histogram(block, bins, range)[0]
    if not density:
        return counts, edges
    return counts / np.diff(edges) / counts.sum(), edges


HANDLERS: dict[Any, Callable[..., Any]] = {
    **{function: _method(name) for function, name in METHOD_OF.items()},
    **{getattr(np, name): _without_nan(name) for name in NAN_REDUCTIONS},
    **{function: _by_rows(function) for function in BY_ROWS},
    np.clip: _clip,
    np.min_scalar_type: _min_scalar_type,
    np.count_nonzero: _count_nonzero,
    np.linalg.norm: _norm,
    np.dot: _dot,
    np.inner: _inner,
    np.array_equal: _array_equal,
    np.unique: _unique,
    np.bincount: _bincount,
    np.histogram: _histogram,
}
"""What serves a function whose first argument is its only column."""
