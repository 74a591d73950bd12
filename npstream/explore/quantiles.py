"""Provide `quantiles`, which computes quantiles of an array.

Tested in tests/dataset/test_statistics_methods.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npstream._core.typing import AnyArray
from npstream.explore.counts import drop_missing


def quantiles(values: AnyArray, probabilities: AnyArray) -> Any:
    """Return quantiles of numbers or times, with linear interpolation.

    NaN and NaT are ignored. Without other values, the quantiles are NaN or NaT.

    Parameters
    ----------
    values : ndarray
        Numbers, bools or times, of any shape.
    probabilities : ndarray
        Probabilities from 0 to 1, of any shape.

    Returns
    -------
    scalar or ndarray
        Of the shape of `probabilities`.

    Examples
    --------
    >>> quantiles(np.array([1, np.nan, 2]), np.array(0.5))
    np.float64(1.5)
    """
    present = drop_missing(values.reshape(-1))
    kind = present.dtype.kind
    if not len(present):
        missing_value = np.array("NaT", present.dtype) if kind in "mM" else np.array(np.nan)
        return np.full(probabilities.shape, missing_value)[()]
    if kind in "mM":
        unit = np.dtype(present.dtype.str.replace("M8", "m8"))
        # Durations since the first time are small numbers, which float64 rounds less than times.
        first = present.min()
        durations = np.quantile((present - first).astype(np.int64), probabilities)
        return first + np.asarray(durations).astype(np.int64).astype(unit)
    if kind not in "iuf" or present.dtype.itemsize < 4:
        # `numpy.quantile` needs numbers, and computes differences, which may overflow small dtypes.
        present = present.astype(np.float64)
    return np.quantile(present, probabilities)
