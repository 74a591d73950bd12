"""NumPy functions that are implemented for columns without reading the whole column at once.

Any other function receives the columns as arrays.

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

SHAPE_FUNCTIONS: tuple[Any, ...] = (
    np.shape, np.ndim, np.size, np.empty_like, np.zeros_like, np.ones_like, np.result_type,
    np.can_cast, np.common_type, np.iscomplexobj, np.isrealobj, np.shares_memory,
    np.may_share_memory, np.diag_indices_from, np.tril_indices_from, np.triu_indices_from,
)  # fmt: skip
"""Functions that use only an array's shape and dtype, and no elements."""

METHOD_NAMES: dict[Any, str] = {
    **{getattr(np, name): name for name in REDUCTIONS},
    np.amin: "min", np.amax: "max", np.take: "take", np.round: "round", np.around: "round",
    np.nonzero: "nonzero",
}  # fmt: skip
"""Functions that a column's method with the same signature implements."""

READ_ONLY_VIEWS: tuple[Any, ...] = (
    np.diagonal, np.linalg.diagonal, np.broadcast_to, np.broadcast_arrays,
)  # fmt: skip
"""Functions that return read-only views, or views with overlapping elements."""

ELEMENTWISE: tuple[Any, ...] = (np.nan_to_num, np.isin, np.real, np.imag, np.angle)
"""Elementwise functions whose other arguments are the same for each block of rows."""


def apply(function: Any, args: tuple[Any, ...], keywords: dict[str, Any], column_type: type) -> Any:
    """Call a NumPy function whose arguments contain columns.

    Parameters
    ----------
    function : callable
        The NumPy function.
    args : tuple
        Positional arguments of the function.
    keywords : dict
        Keyword arguments of the function.
    column_type : type
        The class `Column`, which this module cannot import, because `Column`'s module imports it.
    """
    if function in SHAPE_FUNCTIONS:
        args = tuple(_replace(item, column_type, _placeholder) for item in args)
        keywords = {
            key: _replace(item, column_type, _placeholder) for key, item in keywords.items()
        }
        return function(*args, **keywords)
    if function is np.full_like and args:
        args = (_replace(args[0], column_type, _placeholder), *args[1:])
    column, *others = args or (None,)
    if isinstance(column, column_type) and not _contains(column_type, others, keywords):
        handler = HANDLERS.get(function)
        result = NotImplemented if handler is None else handler(column, *others, **keywords)
        if result is not NotImplemented:
            return result
    elif function is np.dot and len(args) == 2 and not keywords:
        return _dot(*args)
    elif function is np.copyto and args and isinstance(args[0], np.ndarray):
        return _copy_to(*args, **keywords)
    return _call(function, args, keywords, column_type)


def _call(function: Any, args: tuple[Any, ...], keywords: dict[str, Any], column_type: type) -> Any:
    """Read the columns and call a function with their arrays.

    The arrays are read-only during the call, because the function's writes would be lost.
    """
    arrays: list[AnyArray] = []

    def read(column: Any) -> AnyArray:
        arrays.append(np.asarray(column))
        arrays[-1].flags.writeable = False
        return arrays[-1]

    args = tuple(_replace(item, column_type, read) for item in args)
    keywords = {key: _replace(item, column_type, read) for key, item in keywords.items()}
    result = function(*args, **keywords)
    for array in arrays:
        array.flags.writeable = True
    if function not in READ_ONLY_VIEWS:
        _make_writable(result, arrays)
    return result


def _make_writable(result: Any, arrays: list[AnyArray]) -> None:
    """Make results writable that are views of one of `arrays`, which no other object uses."""
    for item in result if isinstance(result, list | tuple) else (result,):
        if isinstance(item, np.ndarray) and any(np.may_share_memory(item, a) for a in arrays):
            item.flags.writeable = True


def _replace(item: Any, column_type: type, function: Callable[[Any], Any]) -> Any:
    """Replace each column by ``function(column)``, also in lists and tuples."""
    if isinstance(item, column_type):
        return function(item)
    if type(item) in (list, tuple) and _contains(column_type, item, {}):
        return type(item)(_replace(part, column_type, function) for part in item)
    return item


def _contains(column_type: type, items: Any, keywords: dict[str, Any]) -> bool:
    return any(
        isinstance(item, column_type)
        or (type(item) in (list, tuple) and _contains(column_type, item, {}))
        for item in (*items, *keywords.values())
    )


def _placeholder(column: Any) -> AnyArray:
    """Return an array with a column's shape and dtype that takes no memory."""
    return np.broadcast_to(np.zeros((), column.dtype), column.shape)


def _blocks(column: Any, function: Any) -> Iterator[AnyArray]:
    return column._blocks(f"{function.__name__} of {column.name!r}")  # type: ignore[no-any-return]


def _concatenate_blocks(column: Any, function: Any, *args: Any, **keywords: Any) -> Any:
    """Call a function on blocks of rows, and concatenate the results."""
    if not column.shape:
        return NotImplemented
    return np.concatenate([function(b, *args, **keywords) for b in _blocks(column, function)])


def _method_handler(name: str) -> Callable[..., Any]:
    """Return a handler that calls a method of the column."""

    def call(column: Any, /, *args: Any, **keywords: Any) -> Any:
        return getattr(column, name)(*args, **_drop_novalue(keywords))

    return call


def _drop_novalue(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments without those equal to ``np._NoValue``, NumPy's mark for unset."""
    return {k: v for k, v in keywords.items() if v is not np._NoValue}


def _clip(column: Any, /, *args: Any, **keywords: Any) -> Any:
    # NumPy's own function handles its arguments, then calls the column's method `clip`.
    return np.clip.__wrapped__(column, *args, **keywords)  # type: ignore[attr-defined]


def _min_scalar_type(column: Any) -> Any:
    return np.min_scalar_type(_placeholder(column) if column.shape else np.asarray(column))


def _elementwise_handler(function: Any) -> Callable[..., Any]:
    """Return a handler that calls an elementwise function on blocks of rows."""

    def call(column: Any, /, *args: Any, **keywords: Any) -> Any:
        # `np.nan_to_num` with `copy=False` writes to its argument.
        if not column._rows_first or "copy" in keywords:
            return NotImplemented
        return _concatenate_blocks(column, function, *args, **keywords)

    return call


def _nan_reduction_handler(name: str) -> Callable[..., Any]:
    """Return a handler of a reduction that ignores NaN."""
    function = getattr(np, name)

    def call(column: Any, /, axis: Any = None, dtype: Any = None, **keywords: Any) -> Any:
        if not column.shape:
            return NotImplemented
        options = _drop_novalue(keywords)
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
    # The type of a scalar result depends on the version of NumPy.
    return total if np.ndim(total) else type(np.count_nonzero(np.empty(0)))(total)


def _norm(column: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Compute norms block by block.

    If the rows are not a reduced axis, the norms of a block are independent of other blocks.
    Otherwise, the norm is a root of the sum of powers, or the greatest or least magnitude. These
    sums and extremes are combined from those of the blocks.
    """
    if column.dtype.kind not in "biufc" or not column.size or not column._rows_first:
        return NotImplemented
    axes = None if axis is None else normalize_axis_tuple(axis, column.ndim)
    if axes is not None and 0 not in axes:
        return _concatenate_blocks(column, np.linalg.norm, ord=ord, axis=axis, keepdims=keepdims)
    # Without axes and order, NumPy takes the norm of the ravelled array.
    is_vector = (axes is None and ord is None) or len(axes or column.shape) == 1
    if not is_vector or not (ord is None or isinstance(ord, int | float)):
        return NotImplemented
    dtype = column.dtype if column.dtype.kind in "fc" else np.dtype(float)
    real_dtype = np.empty(0, dtype).real.dtype
    power = 2 if ord is None else ord
    magnitudes = (np.abs(block.astype(dtype)) for block in _blocks(column, np.linalg.norm))
    options: dict[str, Any] = {"axis": axis, "keepdims": keepdims}
    if abs(power) == np.inf:
        extreme = "max" if power > 0 else "min"
        return reduce_blocks(extreme, magnitudes, column.shape, real_dtype, **options)
    if power == 0:
        nonzero = ((block != 0).astype(real_dtype) for block in magnitudes)
        return reduce_blocks("sum", nonzero, column.shape, real_dtype, **options)
    sum_dtype = np.result_type(real_dtype, np.float64)
    powers = (block.astype(sum_dtype) ** power for block in magnitudes)
    total = reduce_blocks("sum", powers, column.shape, sum_dtype, **options)
    root = np.sqrt(total) if power == 2 else total ** (1 / power)
    return root.astype(real_dtype)


def _dot(left: Any, right: Any) -> Any:
    if np.ndim(left) and np.ndim(right) and np.ndim(right) <= 2 and np.ndim(left) <= 2:
        return np.matmul(left, right)
    return np.dot(np.asarray(left), np.asarray(right))


def _inner(column: Any, other: Any) -> Any:
    if column.ndim < 2 or not column._rows_first or not column.size:
        return NotImplemented
    return _concatenate_blocks(column, np.inner, other)


def _copy_to(dst: AnyArray, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    """Copy a column into an array, one block of rows at a time."""
    if where is True and getattr(src, "_rows_first", False) and src.shape == dst.shape:
        for start, stop in src._bounds("copying into an array"):
            np.copyto(dst[start:stop], src[start:stop]._block(), casting)
        return
    np.copyto(dst, np.asarray(src), casting, np.asarray(where))


def _array_equal(column: Any, other: Any, equal_nan: bool = False) -> Any:
    """Compare block by block, and stop reading at the first block that differs."""
    other = np.asarray(other)
    if column.shape != other.shape:
        return False
    if not column._rows_first or not column.shape:
        return NotImplemented
    return all(
        np.array_equal(column[start:stop]._block(), other[start:stop], equal_nan)
        for start, stop in column._bounds("comparing")
    )


def _unique(column: Any, *args: Any, **keywords: Any) -> Any:
    """Merge the distinct values of blocks; memory is proportional to the number of these values."""
    if args or keywords or column.dtype.kind not in "biufc" or not column.size:
        return NotImplemented
    distinct: list[AnyArray] = []
    pending = 0
    for block in _blocks(column, np.unique):
        distinct.append(np.unique(block))
        pending += len(distinct[-1])
        # Merge only after the number of values has about doubled. A merge for each block would sort
        # all values each time.
        if pending > 2 * len(distinct[0]) + (1 << 16):
            distinct = [np.unique(np.concatenate(distinct))]
            pending = len(distinct[0])
    return np.unique(np.concatenate(distinct))


def _bincount(column: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    if weights is not None or column.ndim != 1 or column.dtype.kind not in "biu":
        return NotImplemented
    counts = np.bincount(np.empty(0, column.dtype), minlength=minlength)
    for block in _blocks(column, np.bincount):
        block_counts = np.bincount(block, minlength=len(counts))
        block_counts[: len(counts)] += counts
        counts = block_counts
    return counts


def _histogram(
    column: Any, bins: Any = 10, range: Any = None, density: Any = None, weights: Any = None
) -> Any:
    """Count block by block. If the bins need the range of the values, read the column twice."""
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
    **{function: _method_handler(name) for function, name in METHOD_NAMES.items()},
    **{getattr(np, name): _nan_reduction_handler(name) for name in NAN_REDUCTIONS},
    **{function: _elementwise_handler(function) for function in ELEMENTWISE},
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
"""The implementation of each function, for calls whose first argument is the only column.

An implementation returns NotImplemented for arguments that it cannot process block by block. The
function is then called with the whole column as an array.
"""
