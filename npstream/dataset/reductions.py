"""NumPy's reductions of an array that is read in blocks of rows.

Results have the same value, dtype, type and shape as those of NumPy for the whole array. Exceptions
are the same, too. Only sums of floats may differ in their last digits: the order of additions is
different, and the precision is at least that of float64. Memory holds one block and the result. If
an argument makes that impossible, NumPy reduces the whole array.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from npstream._core.memory import ensure_fits
from npstream._core.typing import AnyArray, Shape

Axes: TypeAlias = tuple[int, ...]
Arrays: TypeAlias = Iterable[AnyArray]
Dtype: TypeAlias = "np.dtype[Any]"

UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "any": np.logical_or,
    "all": np.logical_and,
}
REDUCTIONS = (*UFUNCS, "mean", "var", "std", "argmin", "argmax")
NAN_REDUCTIONS = (
    "nansum", "nanprod", "nanmin", "nanmax", "nanmean", "nanvar", "nanstd", "nanargmin",
    "nanargmax",
)  # fmt: skip


def reduce_blocks(
    name: str,
    blocks: Arrays,
    shape: Shape,
    array_dtype: Dtype,
    /,
    axis: Any = None,
    *,
    out: AnyArray | None = None,
    **options: Any,
) -> Any:
    """Reduce an array that is given as blocks of consecutive rows.

    Parameters
    ----------
    name : str
        One of `REDUCTIONS`.
    blocks : iterable of ndarray
        The rows, in order. Iteration stops once the result is certain.
    shape : tuple of int
        Shape of the whole array.
    array_dtype : dtype
        Dtype of the whole array.
    axis, out, **options
        Arguments of NumPy's function called `name`.

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
    dtype = _blockwise_dtype(name, shape, array_dtype, axis, out, options)
    if dtype is None:
        options |= {} if out is None else {"out": out}
        return getattr(np, name)(_concatenate(blocks, shape, array_dtype), axis=axis, **options)
    axes = _axes(axis, len(shape))
    result_shape = _result_shape(shape, axes, options.pop("keepdims", False))
    if out is not None and out.shape != result_shape:
        raise ValueError(f"output array has shape {out.shape}, and the result {result_shape}")
    result = _reduce(name, blocks, shape, array_dtype, axis, dtype, options).reshape(result_shape)
    if out is not None:
        np.copyto(out, result, casting="same_kind")
        return out
    result = result.astype(dtype, copy=False)
    return result if result.ndim else result[()]


def _blockwise_dtype(
    name: str,
    shape: Shape,
    array_dtype: Dtype,
    axis: Any,
    out: AnyArray | None,
    options: dict[str, Any],
) -> Dtype | None:
    """Return the result's dtype if blocks can be reduced one by one, else None.

    NumPy reduces an array of one element with the same number of axes. That returns the dtype, or
    raises the exception that NumPy would raise for the whole array.
    """
    if math.prod(shape) == 0 or array_dtype.kind not in "biufc":
        return None
    if name in ("mean", "var", "std") and not _is_mergeable(shape, array_dtype, axis, options):
        return None
    keywords = {key: value for key, value in options.items() if key != "ddof"}
    if "where" in keywords:
        keywords["where"] = keywords["where"][(slice(1),) * len(shape)]
    one = np.ones((1,) * len(shape), array_dtype)
    dtype = np.asarray(getattr(np, name)(one, axis=axis, **keywords)).dtype
    return dtype if out is None or out.dtype == dtype else None


def _is_mergeable(shape: Shape, array_dtype: Dtype, axis: Any, options: dict[str, Any]) -> bool:
    """Return True if a mean or variance can be computed by merging those of blocks."""
    dtype = options.get("dtype")
    count = math.prod(shape[a] for a in _axes(axis, len(shape)))
    return (
        options.keys().isdisjoint({"where", "mean"})
        and (dtype is None or np.dtype(dtype).kind == ("c" if array_dtype.kind == "c" else "f"))
        and options.get("ddof", 0) < count  # otherwise NumPy warns, and divides by zero
    )


def _reduce(
    name: str,
    blocks: Arrays,
    shape: Shape,
    array_dtype: Dtype,
    axis: Any,
    dtype: Dtype,
    options: dict[str, Any],
) -> AnyArray:
    """Reduce block by block; the result keeps all axes, and may have a wider dtype."""
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
    sum_dtype = np.result_type(dtype, array_dtype, np.float64)
    variance = _squared_deviations(blocks, axes, sum_dtype) / (count - options.get("ddof", 0))
    return variance if name == "var" else np.sqrt(variance)  # type: ignore[no-any-return]


def _axes(axis: Any, ndim: int) -> Axes:
    return tuple(range(ndim)) if axis is None else normalize_axis_tuple(axis, ndim)


def _concatenate(blocks: Arrays, shape: Shape, dtype: Dtype) -> AnyArray:
    """Return the whole array; raise MemoryError if it does not fit in memory."""
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


def _blocks_and_options(
    blocks: Arrays, options: dict[str, Any]
) -> Iterator[tuple[AnyArray, dict[str, Any]]]:
    """Yield each nonempty block with its options, such as its part of `where`."""
    where = options.get("where")
    start = 0
    for block in blocks:
        stop = start + len(block)
        if len(block):
            yield block, options if where is None else {**options, "where": where[start:stop]}
        start = stop


def _row_by_row(name: str, blocks: Arrays, axis: Any, options: dict[str, Any]) -> AnyArray:
    """Reduce along axes other than the first, so that blocks are independent."""
    function = getattr(np, name)
    return np.concatenate(
        [
            function(b, axis=axis, keepdims=True, **kw)
            for b, kw in _blocks_and_options(blocks, options)
        ]
    )


def _accumulate(
    name: str, blocks: Arrays, axes: Axes, dtype: Dtype, options: dict[str, Any]
) -> AnyArray:
    """Reduce each block by a ufunc, and combine the results by the same ufunc."""
    ufunc = UFUNCS[name]
    first_only = {}
    if name in ("sum", "prod"):
        options["dtype"] = np.result_type(dtype, np.float64) if dtype.kind in "fc" else dtype
        # Only one block may add or multiply `initial`. A minimum or maximum may use it in every
        # block, and needs it in a block in which `where` is nowhere true.
        first_only = {key: options.pop(key) for key in ("initial",) if key in options}
    total: Any = None
    for block, keywords in _blocks_and_options(blocks, options):
        part = ufunc.reduce(block, axis=axes, keepdims=True, **keywords, **first_only)
        total = part if total is None else ufunc(total, part)
        first_only = {}
        if (name == "any" and total.all()) or (name == "all" and not total.any()):
            break
    return total  # type: ignore[no-any-return]


def _squared_deviations(blocks: Arrays, axes: Axes, dtype: Dtype) -> AnyArray:
    """Return the sum of squared deviations from the mean, merged over blocks.

    The merge is that of Chan, Golub and LeVeque (1979).
    """
    count = 0
    origin: Any = None
    mean: Any = 0
    squares: Any = 0
    for block, _ in _blocks_and_options(blocks, {}):
        size = math.prod(block.shape[axis] for axis in axes)
        if origin is None:
            origin = _mean(block, axes, dtype, size)
        # The mean of numbers far from zero would lose digits. So first subtract an estimate of the
        # mean: the mean of the first block.
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


def _position(name: str, blocks: Arrays, flat: bool) -> AnyArray:
    """Return the position of the first extreme along the first axis.

    If `flat`, return its position in the flattened array.

    As in NumPy, NaN counts as the extreme.
    """
    is_better = np.less if name == "argmin" else np.greater
    start = 0
    position: Any = None
    best: Any = None
    for block, _ in _blocks_and_options(blocks, {}):
        rows = block.reshape(-1) if flat else block
        row = getattr(rows, name)(axis=0, keepdims=True)
        value = np.take_along_axis(rows, row, axis=0)
        if best is None:
            position, best = row, value
        else:
            replaces = is_better(value, best) | ((value != value) & (best == best))
            position = np.where(replaces, row + start, position)
            best = np.where(replaces, value, best)
        start += len(rows)
    return position  # type: ignore[no-any-return]


# Reductions that ignore NaN


def reduce_without_nan(
    name: str,
    blocks: Arrays,
    shape: Shape,
    array_dtype: Dtype,
    /,
    axis: Any = None,
    *,
    out: AnyArray | None = None,
    **options: Any,
) -> Any:
    """Reduce an array that is given as blocks of rows, and ignore NaN.

    Parameters
    ----------
    name : str
        One of `NAN_REDUCTIONS`, without "nan".
    blocks, shape, array_dtype, axis, out, **options
        As for `reduce_blocks`.

    Examples
    --------
    >>> reduce_without_nan("mean", [np.array([1, np.nan, 3])], (3,), np.dtype(float))
    np.float64(2.0)
    """
    if array_dtype.kind in "biu":
        return reduce_blocks(name, blocks, shape, array_dtype, axis, out=out, **options)
    if name in ("sum", "prod") and array_dtype.kind in "fc":
        numbers = (np.where(np.isnan(b), array_dtype.type(name == "prod"), b) for b in blocks)
        return reduce_blocks(name, numbers, shape, array_dtype, axis, out=out, **options)
    allowed = {"keepdims", "dtype", "ddof"} if name in ("mean", "var", "std") else {"keepdims"}
    dtype = options.get("dtype")
    if (
        array_dtype.kind != "f"
        or math.prod(shape) == 0
        or options.keys() - allowed
        or (out is not None and not isinstance(out, np.ndarray))
        or (dtype is not None and np.dtype(dtype).kind != "f")
        or isinstance(axis, list)
        or (name in ("argmin", "argmax") and not _allows_positions(axis, out))
    ):
        options |= {} if out is None else {"out": out}
        return getattr(np, "nan" + name)(
            _concatenate(blocks, shape, array_dtype), axis=axis, **options
        )
    axes = _axes(axis, len(shape))
    result_shape = _result_shape(shape, axes, options.pop("keepdims", False) is True)
    if out is not None and out.shape != result_shape:
        raise ValueError(f"output array has shape {out.shape}, and the result {result_shape}")
    if name in ("argmin", "argmax"):
        position_axis = None if axis is None else axes[0]
        result, result_dtype = _position_without_nan(name, blocks, position_axis), np.dtype(np.intp)
    elif name in ("min", "max"):
        result, result_dtype = _extreme_without_nan(name, blocks, axes), array_dtype
    else:
        result_dtype = array_dtype if dtype is None else np.dtype(dtype)
        result = _moment_without_nan(name, blocks, axes, result_dtype, options.get("ddof", 0))
    result = result.reshape(result_shape)
    if out is not None:
        np.copyto(out, result, casting="same_kind")
        return out
    result = result.astype(result_dtype, copy=False)
    return result if result.ndim else result[()]


def _allows_positions(axis: Any, out: AnyArray | None) -> bool:
    """Return True if `axis` is an int or None, and `out` has the dtype of positions, intp."""
    return (axis is None or isinstance(axis, int)) and (out is None or out.dtype == np.intp)


def _combine(axes: Axes, parts: Iterator[AnyArray], merge: Any) -> AnyArray:
    """Concatenate the results of blocks, or merge them with `merge` if `axes` has the row axis."""
    if 0 not in axes:
        return np.concatenate(list(parts))
    result = next(parts)
    for part in parts:
        result = merge(result, part)
    return result


def _extreme_without_nan(name: str, blocks: Arrays, axes: Axes) -> AnyArray:
    ufunc = np.fmin if name == "min" else np.fmax
    parts = (ufunc.reduce(b, axis=axes, keepdims=True) for b in blocks if len(b))
    result = _combine(axes, parts, ufunc)
    if np.isnan(result).any():
        warnings.warn("All-NaN slice encountered", RuntimeWarning, stacklevel=4)
    return result


def _position_without_nan(name: str, blocks: Arrays, axis: Any) -> AnyArray:
    """Return the position of the first extreme; raise ValueError if a slice contains only NaN."""
    worst = np.inf if name == "argmin" else -np.inf
    reduces_rows = axis is None or axis == 0
    all_nan: list[AnyArray] = []  # one array if rows are reduced, otherwise one for each block

    def fill_nan() -> Iterator[AnyArray]:
        for block in blocks:
            is_nan = np.isnan(block)
            reduced: AnyArray = np.all(is_nan, axis=axis, keepdims=True)
            if all_nan and reduces_rows:
                all_nan[0] &= reduced
            else:
                all_nan.append(reduced)
            yield np.where(is_nan, worst, block)

    if reduces_rows:
        result = _position(name, fill_nan(), flat=axis is None)
    else:
        result = _row_by_row(name, fill_nan(), axis, {})
    if any(part.any() for part in all_nan):
        raise ValueError("All-NaN slice encountered")
    return result


def _moment_without_nan(
    name: str, blocks: Arrays, axes: Axes, dtype: Dtype, ddof: float
) -> AnyArray:
    """Return means, variances or standard deviations that ignore NaN.

    The sums of blocks are merged by the method of Chan, Golub and LeVeque (1979).
    """
    sum_dtype = np.result_type(dtype, np.float64)
    moments = _count_and_sum if name == "mean" else _moments
    parts = (moments(block, axes, sum_dtype) for block in blocks if len(block))
    if 0 not in axes:
        count, *sums = (np.concatenate(part) for part in zip(*parts, strict=True))
    else:
        count, *sums = next(parts)
        for n, *block_sums in parts:
            if name != "mean":
                difference = block_sums[0] / np.maximum(n, 1) - sums[0] / np.maximum(count, 1)
                sums[1] = sums[1] + _square(difference) * count * n / np.maximum(count + n, 1)
            count, sums = count + n, [a + b for a, b in zip(sums, block_sums, strict=True)]
    divisor = count if name == "mean" else count - ddof
    if (divisor <= 0).any():
        warning = "Mean of empty slice" if name == "mean" else "Degrees of freedom <= 0 for slice."
        warnings.warn(warning, RuntimeWarning, stacklevel=4)
    result = np.where(divisor <= 0, np.nan, sums[-1] / np.where(divisor <= 0, 1, divisor))
    return np.sqrt(result) if name == "std" else result


def _count_and_sum(block: AnyArray, axes: Axes, dtype: Dtype) -> tuple[AnyArray, ...]:
    """Return the count and the sum of a block's elements, ignoring NaN."""
    is_number = ~np.isnan(block)
    count = is_number.sum(axis=axes, keepdims=True)
    return count, np.add.reduce(block, axis=axes, dtype=dtype, where=is_number, keepdims=True)


def _moments(block: AnyArray, axes: Axes, dtype: Dtype) -> tuple[AnyArray, ...]:
    """Return the count, the sum, and the sum of squared deviations of a block, ignoring NaN."""
    count, total = _count_and_sum(block, axes, dtype)
    deviations = np.subtract(block, total / np.maximum(count, 1), dtype=dtype)
    squares = _square(deviations)
    return count, total, np.add.reduce(squares, axis=axes, where=~np.isnan(block), keepdims=True)
