"""Dtypes of columns: their names, the numbers that store them, and exact conversion."""

from __future__ import annotations

import functools
import re
from typing import Any, TypeAlias

import numpy as np

from npstream._core.typing import AnyArray, Bools
from npstream.errors import MissingDependencyError

DType: TypeAlias = np.dtype[Any]

NUMBERS = {
    name: np.dtype(name)
    for name in (
        *("uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32"),
        *("uint64", "int64", "float64"),
    )
}
"""The dtypes that the format itself knows, by name."""

ML_DTYPES: dict[str, DType] = {
    "bfloat16": np.dtype(np.uint16),
    **{
        f"float8_{name}": np.dtype(np.uint8)
        for name in (
            *("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"),
        )
    },
}
"""Dtypes of the package ml_dtypes whose bits are a value whatever they are, and those bits'."""

_STORAGE_DTYPES: dict[str, DType] = {
    "bool": np.dtype(np.uint8),
    "complex64": np.dtype(np.float32),
    "complex128": np.dtype(np.float64),
    **ML_DTYPES,
}

_TIME = re.compile(r"(datetime64|timedelta64)\[(?:[1-9][0-9]{0,8})?(?:[YMWDhms]|[munpfa]s)\]")


def is_known(name: str) -> bool:
    """Return True if columns can have the dtype of this name.

    Examples
    --------
    >>> is_known("datetime64[ns]"), is_known("bfloat16"), is_known("datetime64"), is_known("O")
    (True, True, False, False)
    """
    return name in NUMBERS or name in _STORAGE_DTYPES or _TIME.fullmatch(name) is not None


@functools.lru_cache
def dtype_of(name: str) -> DType:
    """Return the dtype of a name.

    Raises
    ------
    ValueError
        If no column can have it.
    MissingDependencyError
        If it comes from the package ml_dtypes, which is not installed.
    """
    if not is_known(name):
        raise ValueError(f"{name!r} is not a dtype of columns; they are {COLUMN_DTYPES}")
    if name not in ML_DTYPES:
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingDependencyError(f"dtype {name}", "ml_dtypes", "dtypes") from error
    if not hasattr(ml_dtypes, name):
        raise ValueError(f"dtype {name!r} needs a newer release of the package ml_dtypes")
    dtype: DType = np.dtype(getattr(ml_dtypes, name))
    return dtype


COLUMN_DTYPES = (
    f"bool, {', '.join(NUMBERS)}, complex64, complex128, datetime64 and timedelta64 with a unit, "
    "bfloat16, and float8_* of ml_dtypes"
)
"""The dtypes of columns, for messages."""


def storage_dtype(dtype: DType) -> DType | None:
    """Return the dtype of the numbers that elements are stored as; None if they cannot be stored.

    A complex number is stored as two, its real and its imaginary part.

    Examples
    --------
    >>> [storage_dtype(np.dtype(name)) for name in (">i4", "bool", "M8[D]")]
    [dtype('int32'), dtype('uint8'), dtype('int64')]
    """
    name = dtype.name
    if dtype.kind in "mM":
        return NUMBERS["int64"] if np.datetime_data(dtype)[0] != "generic" else None
    if (number := NUMBERS.get(name)) is not None:
        return number
    known = _STORAGE_DTYPES.get(name)
    if known is None or (name in ML_DTYPES and dtype.type.__module__ != "ml_dtypes"):
        return None
    return known


def invalid_bool_byte(array: AnyArray) -> int | None:
    """Return a byte of bools that is neither 0 nor 1, on which NumPy's results depend; or None."""
    if array.dtype.kind != "b" or not array.size:
        return None
    most = int(np.ascontiguousarray(array).view(np.uint8).max())
    return most if most > 1 else None


def convert_exactly(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    """Convert numbers, and find those that `dtype` cannot hold.

    A narrower dtype of floats rounds floats, which must stay finite: to name it is to ask for that.
    Everything else must keep its value.

    Parameters
    ----------
    array : ndarray
    dtype : dtype

    Returns
    -------
    converted : ndarray of dtype
    wrong : ndarray of bool
        True for elements that would change.

    Raises
    ------
    TypeError
        If none of these dtypes' values is the other's, such as dates and numbers.

    Examples
    --------
    >>> convert_exactly(np.array([1.0, 1.5, 300.0]), np.dtype("u1"))[1]
    array([False,  True,  True])
    """
    given, wanted = _kind(array.dtype), _kind(dtype)
    if array.dtype == dtype:
        return array.astype(dtype, copy=False), np.zeros(array.shape, bool)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if given in "mM" and given == wanted:
            return _convert_times(array, dtype)
        if given == wanted == "c":
            return _convert_complex(array, dtype)
        if given not in "bif" or wanted not in "bifc":
            raise TypeError(f"expected {_dtype_text(dtype)}, got {_dtype_text(array.dtype)}")
        if wanted == "c":
            converted, wrong = convert_exactly(array, np.empty(0, dtype).real.dtype)
            return converted.astype(dtype), wrong
        if wanted == "b":
            wrong = (array != 0) & (array != 1)
            return array.astype(bool), wrong
        if given == "f":
            floats = array if array.dtype.itemsize > 8 else array.astype(np.float64)
            return (
                _round_floats(floats, dtype)
                if wanted == "f"
                else _floats_to_integers(floats, dtype)
            )
        if wanted == "i":
            return array.astype(dtype), _out_of_range(array, dtype)
        return _integers_to_floats(array, dtype)


def _kind(dtype: DType) -> str:
    """Return b, i, f, c, M or m; i for unsigned numbers, too, and f for those of ml_dtypes."""
    if dtype.name in ML_DTYPES:
        return "f"
    return "i" if dtype.kind in "iu" else dtype.kind


def _dtype_text(dtype: DType) -> str:
    """Return what values of a dtype are called in messages."""
    return {"O": "objects", "U": "text", "T": "text", "S": "bytes"}.get(dtype.kind, str(dtype))


def _convert_times(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    if "generic" in (np.datetime_data(array.dtype)[0], np.datetime_data(dtype)[0]):
        raise TypeError(f"{array.dtype} has no unit: convert it, as with astype({dtype.name!r})")
    try:
        converted = array.astype(dtype)
        back = converted.astype(array.dtype)
    except (OverflowError, TypeError) as error:
        raise TypeError(f"{array.dtype} does not convert to {dtype}: {error}") from None
    neither = np.isnat(array) & np.isnat(converted)
    return converted, ~((back == array) | neither)


def _convert_complex(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    part = np.empty(0, dtype).real.dtype
    _, real = convert_exactly(array.real, part)
    _, imaginary = convert_exactly(array.imag, part)
    return array.astype(dtype), real | imaginary


def _round_floats(floats: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    converted = floats.astype(dtype)
    back = converted.astype(floats.dtype)
    same = np.where(np.isfinite(floats), np.isfinite(back), floats == back)
    return converted, ~(same | (np.isnan(floats) & np.isnan(back)))


def _floats_to_integers(floats: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    limits = np.iinfo(dtype)
    # 2.0**63 and 2.0**64 are floats, where one less is not.
    fits = (
        (floats == np.trunc(floats))
        & (floats >= limits.min)
        & (floats < 2.0 * (limits.max // 2 + 1))
    )
    return np.where(fits, floats, 0).astype(dtype), ~fits


def _out_of_range(array: AnyArray, dtype: DType) -> Bools:
    """Return which integers are not within a dtype's limits."""
    limits = np.iinfo(dtype)
    own = np.iinfo(array.dtype) if array.dtype.kind != "b" else np.iinfo(np.uint8)
    wrong = np.zeros(array.shape, bool)
    if own.min < limits.min:
        wrong |= array < max(limits.min, own.min)
    if own.max > limits.max:
        wrong |= array > min(limits.max, own.max)
    return wrong


def _integers_to_floats(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    array = array.astype(np.uint8) if array.dtype.kind == "b" else array
    converted = array.astype(dtype)
    wide = converted.astype(np.float64)
    bound = 2.0 * (np.iinfo(array.dtype).max // 2 + 1)
    fits = (wide < bound) & (wide >= -bound)
    back = np.where(fits, wide, 0).astype(array.dtype)
    return converted, ~(fits & (back == array))
