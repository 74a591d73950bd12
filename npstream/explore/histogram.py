"""Provide `draw_histogram`: a histogram of numbers that are read in blocks.

Tested in tests/explore/test_histogram.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from npstream._core.optional import import_optional
from npstream._core.typing import AnyArray, Int64

__all__ = ["draw_histogram", "histogram"]


def draw_histogram(
    name: str,
    read: Callable[[], Iterable[AnyArray]],
    dtype: np.dtype[Any],
    bins: Any,
    ax: Any,
    keywords: Mapping[str, Any],
) -> Any:
    """Draw a histogram, and return the axes.

    Parameters
    ----------
    name : str
        The column's name.
    read : callable
        Returns the numbers, in blocks. It is called twice, unless `bins` are edges.
    dtype : dtype
        The dtype of the numbers.
    bins, ax, keywords
        The arguments of `Column.hist`.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    if ax is None:
        import_optional("matplotlib", "matplotlib", "plot", "a histogram")
    counts, edges = histogram(read, dtype, bins)
    if ax is None:
        ax = import_optional("matplotlib.pyplot", "matplotlib", "plot").gca()
    if dtype.kind == "m":
        edges = edges.astype(np.int64)  # matplotlib has no axis of durations
    ax.hist(edges[:-1], edges, weights=counts, **keywords)
    ax.set_title(name)
    ax.grid(True)
    return ax


def histogram(
    read: Callable[[], Iterable[AnyArray]], dtype: np.dtype[Any], bins: Any
) -> tuple[Int64, AnyArray]:
    """Count finite numbers or times, as `numpy.histogram` does.

    Parameters
    ----------
    read : callable
        Returns the numbers, in blocks. It is called twice, unless `bins` are edges.
    dtype : dtype
        The dtype of the numbers.
    bins : int or array_like
        Number of bins, or their edges.

    Returns
    -------
    counts : ndarray of int64, shape (bins,)
    edges : ndarray, shape (bins + 1,)
        Increasing edges of the bins. If the numbers are times, the edges have the dtype `dtype`.

    Examples
    --------
    >>> histogram(lambda: [np.array([1.0, np.nan]), np.array([3.0])], np.dtype(float), 2)
    (array([1, 1]), array([1., 2., 3.]))
    """
    is_time = dtype.kind in "mM"
    if np.ndim(bins) == 0:
        extremes = [(v.min(), v.max()) for v in map(_finite, read()) if v.size]
        low = min((minimum for minimum, _ in extremes), default=0)
        high = max((maximum for _, maximum in extremes), default=1)
        edges = np.histogram_bin_edges(np.empty(0), bins, (low, high))
        if is_time:
            # Rounded to whole units of time, close edges can be equal.
            edges = np.unique(edges.astype(np.int64))
            edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1])
    else:
        edges = np.asarray(bins)
        if is_time:
            edges = edges.astype(dtype).view(np.int64)
    counts = np.zeros(len(edges) - 1, np.int64)
    for block in read():
        counts += np.histogram(_finite(block), edges)[0]
    return counts, edges.view(dtype) if is_time else edges


def _finite(block: AnyArray) -> AnyArray:
    """Return the finite numbers of a block. Times become integers, and NaT is left out."""
    values = block.reshape(-1)
    if values.dtype.kind in "mM":
        numbers: AnyArray = values[~np.isnat(values)].view(np.int64)
        return numbers
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    if values.dtype.kind in "iu":
        return values
    numbers = values[np.isfinite(values)]
    return numbers.astype(np.float64) if numbers.dtype.itemsize < 4 else numbers
