"""NumPy's reductions, of an array that comes as blocks of rows.

Results have the value, dtype, type and shape, and failures the exception, that NumPy gives for the
whole array; only sums of floats may differ in their last digits, for they are added in another
order, and in float64 at least. One block and the result are all that is held in memory, unless
an argument rules that out: then NumPy gets the whole array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from npstream._core.memory import ensure_fits
from npstream._core.typing import AnyArray

Axes: TypeAlias = tuple[int, ...]
Blocks: TypeAlias = Iterable[AnyArray]
Dtype: TypeAlias = "np.dtype[Any]"
Shape: TypeAlias = tuple[int, ...]

UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "any": np.logical_or,
    "all": np.logical_and,
}
REDUCTIONS = (*UFUNCS, "mean", "var", "std", "argmin", "argmax")


def reduce_blocks(
    name: str,
    blocks: Blocks,
    shape: Shape,
    source: Dtype,
    /,
    axis: Any = None,
    *,
    out: AnyArray | None = None,
    **options: Any,
) -> Any:
    """Reduce an array that comes as blocks of consecutive rows.

    Parameters
    ----------
    name : str
        One of `REDUCTIONS`.
    blocks : iterable of ndarray
        The rows, in order; read no further than the result needs.
    shape, source
        Shape and dtype of the whole array.
    axis, out, **options
        What the function of that name in NumPy takes.

    Examples
    --------
    >>> blocks = [np.array([[1, 2], [3, 4]]), np.array([[5, 6]])]
    >>> reduce_blocks("sum", blocks, (3, 2), np.dtype(int), axis=0)
    array([ 9, 12])
    """
    if out is not None and not isinstance(out, np.ndarray):
        raise TypeError("return arrays must be of ArrayType")
    if "correction" in options:
        if options.get("ddof"):
            raise ValueError("ddof and correction can't be provided simultaneously.")
        options["ddof"] = options.pop("correction")
    if "where" in options:
        where = options["where"]
        where = where if isinstance(where, np.ndarray) else np.array(where, np.bool_)
        options["where"] = np.broadcast_to(where, shape)
    dtype = _common_dtype(name, shape, source, axis, out, options)
    if dtype is None:
        options |= {} if out is None else {"out": out}
        return getattr(np, name)(_whole(blocks, shape, source), axis=axis, **options)
    axes = _axes(axis, len(shape))
    final = _result_shape(shape, axes, options.pop("keepdims", False))
    if out is not None and out.shape != final:
        raise ValueError(f"output array has shape {out.shape}, and the result {final}")
    result = _reduce(name, blocks, shape, source, axis, dtype, options).reshape(final)
    if out is not None:
        np.copyto(out, result, casting="same_kind")
        return out
    result = result.astype(dtype, copy=False)
    return result if result.ndim else result[()]


def _common_dtype(
    name: str, shape: Shape, source: Dtype, axis: Any, out: AnyArray | None, options: dict[str, Any]
) -> Dtype | None:
    """Return the result's dtype if blocks can be reduced one by one; None leaves all to NumPy.

    NumPy tells it, and raises where it would, by reducing one element in as many axes.
    """
    if math.prod(shape) == 0 or source.kind not in "biufc":
        return None
    if name in ("mean", "var", "std") and not _is_plain(shape, source, axis, options):
        return None
    keywords = {key: value for key, value in options.items() if key != "ddof"}
    if "where" in keywords:
        keywords["where"] = keywords["where"][(slice(1),) * len(shape)]
    one = np.ones((1,) * len(shape), source)
    dtype = np.asarray(getattr(np, name)(one, axis=axis, **keywords)).dtype
    return dtype if out is None or out.dtype == dtype else None


def _is_plain(shape: Shape, source: Dtype, axis: Any, options: dict[str, Any]) -> bool:
    """Say whether a moment is one that merging blocks can give."""
    dtype = options.get("dtype")
    count = math.prod(shape[a] for a in _axes(axis, len(shape)))
    return (
        options.keys().isdisjoint({"where", "mean"})
        and (dtype is None or np.dtype(dtype).kind == ("c" if source.kind == "c" else "f"))
        and options.get("ddof", 0) < count  # else NumPy warns, and divides by zero
    )


def _reduce(
    name: str,
    blocks: Blocks,
    shape: Shape,
    source: Dtype,
    axis: Any,
    dtype: Dtype,
    options: dict[str, Any],
) -> AnyArray:
    """Reduce block by block; the result has all axes, and may have a wider dtype."""
    axes = _axes(axis, len(shape))
    if 0 not in axes:
        return _row_by_row(name, blocks, axis, options)
    if name in UFUNCS:
        return _accumulate(name, blocks, axes, dtype, options)
    if name in ("argmin", "argmax"):
        return _position(name, blocks, flat=axis is None)
    count = math.prod(shape[axis] for axis in axes)
    if name == "mean":
        return _accumulate("sum", blocks, axes, dtype, {}) / count
    wide = np.result_type(dtype, source, np.float64)
    variance = _squares(blocks, axes, wide) / (count - options.get("ddof", 0))
    return variance if name == "var" else np.sqrt(variance)  # type: ignore[no-any-return]


def _axes(axis: Any, ndim: int) -> Axes:
    return tuple(range(ndim)) if axis is None else normalize_axis_tuple(axis, ndim)


def _whole(blocks: Blocks, shape: Shape, dtype: Dtype) -> AnyArray:
    """Put the blocks together."""
    ensure_fits(math.prod(shape) * dtype.itemsize, "reducing the whole array at once")
    whole = np.empty(shape, dtype)
    start = 0
    for block in blocks:
        whole[start : start + len(block)] = block
        start += len(block)
    return whole


def _result_shape(shape: Shape, axes: Axes, keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    return tuple(length for axis, length in enumerate(shape) if axis not in axes)


def _parts(blocks: Blocks, options: dict[str, Any]) -> Iterator[tuple[AnyArray, dict[str, Any]]]:
    """Yield the blocks that have rows, each with the options for it."""
    where = options.get("where")
    start = 0
    for block in blocks:
        stop = start + len(block)
        if len(block):
            yield block, options if where is None else {**options, "where": where[start:stop]}
        start = stop


def _row_by_row(name: str, blocks: Blocks, axis: Any, options: dict[str, Any]) -> AnyArray:
    """Reduce along other axes than the first."""
    function = getattr(np, name)
    return np.concatenate(
        [function(b, axis=axis, keepdims=True, **kw) for b, kw in _parts(blocks, options)]
    )


def _accumulate(
    name: str, blocks: Blocks, axes: Axes, dtype: Dtype, options: dict[str, Any]
) -> AnyArray:
    """Reduce by a ufunc, which then combines what it made of each block."""
    ufunc = UFUNCS[name]
    once = {}
    if name in ("sum", "prod"):
        options["dtype"] = np.result_type(dtype, np.float64) if dtype.kind in "fc" else dtype
        # A minimum may meet its initial value in every block, and with `where` it has to.
        once = {key: options.pop(key) for key in ("initial",) if key in options}
    total: Any = None
    for block, keywords in _parts(blocks, options):
        part = ufunc.reduce(block, axis=axes, keepdims=True, **keywords, **once)
        total = part if total is None else ufunc(total, part)
        once = {}
        if (name == "any" and total.all()) or (name == "all" and not total.any()):
            break
    return total  # type: ignore[no-any-return]


def _squares(blocks: Blocks, axes: Axes, dtype: Dtype) -> AnyArray:
    """Sum squared distances from the mean, by merging those of blocks (Chan et al., 1979)."""
    count = 0
    origin: Any = None
    mean: Any = 0
    squares: Any = 0
    for block, _ in _parts(blocks, {}):
        size = math.prod(block.shape[axis] for axis in axes)
        if origin is None:
            origin = _mean(block, axes, dtype, size)
        # Numbers far from zero lose their digits in a mean, unless they are moved near it.
        numbers = block - origin
        center = _mean(numbers, axes, dtype, size)
        squares = squares + np.add.reduce(_square(numbers - center), axis=axes, keepdims=True)
        squares += _square(center - mean) * count * size / (count + size)
        mean = mean + (center - mean) * size / (count + size)
        count += size
    return squares  # type: ignore[no-any-return]


def _mean(block: AnyArray, axes: Axes, dtype: Dtype, size: int) -> AnyArray:
    return np.add.reduce(block, axis=axes, dtype=dtype, keepdims=True) / size


def _square(numbers: AnyArray) -> AnyArray:
    if numbers.dtype.kind == "c":
        return _square(numbers.real) + _square(numbers.imag)
    return numbers * numbers


def _position(name: str, blocks: Blocks, flat: bool) -> AnyArray:
    """Find the first extreme, among rows or, if `flat`, among all elements; NaN is one."""
    beats = np.less if name == "argmin" else np.greater
    start = 0
    position: Any = None
    best: Any = None
    for block, _ in _parts(blocks, {}):
        rows = block.reshape(-1) if flat else block
        at = getattr(rows, name)(axis=0, keepdims=True)
        value = np.take_along_axis(rows, at, axis=0)
        if best is None:
            position, best = at, value
        else:
            better = beats(value, best) | ((value != value) & (best == best))
            position = np.where(better, at + start, position)
            best = np.where(better, value, best)
        start += len(rows)
    return position  # type: ignore[no-any-return]
