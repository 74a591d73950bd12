"""Dtypes of columns: their names, their storage dtypes, and exact conversion."""

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
"""The dtypes that the MDS format defines, by name."""

ML_DTYPES: dict[str, DType] = {
    "bfloat16": np.dtype(np.uint16),
    **{
        f"float8_{name}": np.dtype(np.uint8)
        for name in (
            *("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu"),
        )
    },
}
"""Dtypes of the package ml_dtypes, with the dtype of their bits.

Only dtypes for which every bit pattern is valid are listed.
"""

_STORAGE_DTYPES: dict[str, DType] = {
    "bool": np.dtype(np.uint8),
    "complex64": np.dtype(np.float32),
    "complex128": np.dtype(np.float64),
    **ML_DTYPES,
}

_TIME = re.compile(r"(datetime64|timedelta64)\[(?:[1-9][0-9]{0,8})?(?:[YMWDhms]|[munpfa]s)\]")


def is_column_dtype(name: str) -> bool:
    """Return True if columns can have the dtype called `name`.

    Examples
    --------
    >>> [is_column_dtype(name) for name in ("datetime64[ns]", "bfloat16", "datetime64", "O")]
    [True, True, False, False]
    """
    return name in NUMBERS or name in _STORAGE_DTYPES or _TIME.fullmatch(name) is not None


@functools.lru_cache
def dtype_of(name: str) -> DType:
    """Return the dtype called `name`.

    Raises
    ------
    ValueError
        If columns cannot have this dtype.
    MissingDependencyError
        If the package ml_dtypes defines the dtype, and is not installed.
    """
    if not is_column_dtype(name):
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
"""The dtypes that columns can have, as error messages list them."""


def storage_dtype(dtype: DType) -> DType | None:
    """Return the dtype that elements of a dtype are stored as; None if they cannot be stored.

    A complex number is stored as two floats: its real part, then its imaginary part.

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
    storage = _STORAGE_DTYPES.get(name)
    # Another package may define a dtype with the name of one of ml_dtypes.
    if storage is None or (name in ML_DTYPES and dtype.type.__module__ != "ml_dtypes"):
        return None
    return storage


def invalid_bool_byte(array: AnyArray) -> int | None:
    """Return a byte of a bool array that is neither 0 nor 1, or None if there is none.

    NumPy's results for such a bool are undefined.
    """
    if array.dtype.kind != "b" or not array.size:
        return None
    largest = int(np.ascontiguousarray(array).view(np.uint8).max())
    return largest if largest > 1 else None


def convert_exactly(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    """Convert an array, and find the elements that `dtype` cannot represent.

    Floats may be rounded to a narrower float dtype, but must stay finite. All other elements must
    keep their values.

    Parameters
    ----------
    array : ndarray
    dtype : dtype

    Returns
    -------
    converted : ndarray of dtype
    is_changed : ndarray of bool
        True for elements whose value would change.

    Raises
    ------
    TypeError
        If the two dtypes have no values in common, such as dates and numbers.

    Examples
    --------
    >>> convert_exactly(np.array([1.0, 1.5, 300.0]), np.dtype("u1"))[1]
    array([False,  True,  True])
    """
    source, target = _kind(array.dtype), _kind(dtype)
    if array.dtype == dtype:
        return array.astype(dtype, copy=False), np.zeros(array.shape, bool)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if source in "mM" and source == target:
            return _convert_times(array, dtype)
        if source == target == "c":
            return _convert_complex(array, dtype)
        if source not in "bif" or target not in "bifc":
            raise TypeError(f"expected {_dtype_text(dtype)}, got {_dtype_text(array.dtype)}")
        if target == "c":
            converted, is_changed = convert_exactly(array, np.empty(0, dtype).real.dtype)
            return converted.astype(dtype), is_changed
        if target == "b":
            return array.astype(bool), (array != 0) & (array != 1)
        if source == "f":
            floats = array if array.dtype.itemsize > 8 else array.astype(np.float64)
            convert = _round_floats if target == "f" else _floats_to_integers
            return convert(floats, dtype)
        if target == "i":
            return array.astype(dtype), _out_of_range(array, dtype)
        return _integers_to_floats(array, dtype)


def _kind(dtype: DType) -> str:
    """Return the dtype's kind, with "i" for unsigned integers and "f" for ml_dtypes."""
    if dtype.name in ML_DTYPES:
        return "f"
    return "i" if dtype.kind in "iu" else dtype.kind


def _dtype_text(dtype: DType) -> str:
    """Return the name of a dtype's values in error messages."""
    return {"O": "objects", "U": "text", "T": "text", "S": "bytes"}.get(dtype.kind, str(dtype))


def _convert_times(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    if "generic" in (np.datetime_data(array.dtype)[0], np.datetime_data(dtype)[0]):
        raise TypeError(f"{array.dtype} has no unit: convert it, as with astype({dtype.name!r})")
    try:
        converted = array.astype(dtype)
        round_trip = converted.astype(array.dtype)
    except (OverflowError, TypeError) as error:
        raise TypeError(f"{array.dtype} does not convert to {dtype}: {error}") from None
    both_nat = np.isnat(array) & np.isnat(converted)
    return converted, ~((round_trip == array) | both_nat)


def _convert_complex(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    part = np.empty(0, dtype).real.dtype
    _, is_real_changed = convert_exactly(array.real, part)
    _, is_imaginary_changed = convert_exactly(array.imag, part)
    return array.astype(dtype), is_real_changed | is_imaginary_changed


def _round_floats(floats: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    converted = floats.astype(dtype)
    round_trip = converted.astype(floats.dtype)
    same = np.where(np.isfinite(floats), np.isfinite(round_trip), floats == round_trip)
    return converted, ~(same | (np.isnan(floats) & np.isnan(round_trip)))


def _floats_to_integers(floats: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    limits = np.iinfo(dtype)
    # 2.0**63 and 2.0**64 are exact as floats; the largest integers, one less, are not.
    fits = (
        (floats == np.trunc(floats))
        & (floats >= limits.min)
        & (floats < 2.0 * (limits.max // 2 + 1))
    )
    return np.where(fits, floats, 0).astype(dtype), ~fits


def _out_of_range(array: AnyArray, dtype: DType) -> Bools:
    """Return True for each integer that is outside the limits of a dtype."""
    limits = np.iinfo(dtype)
    source = np.iinfo(array.dtype) if array.dtype.kind != "b" else np.iinfo(np.uint8)
    is_outside = np.zeros(array.shape, bool)
    if source.min < limits.min:
        is_outside |= array < max(limits.min, source.min)
    if source.max > limits.max:
        is_outside |= array > min(limits.max, source.max)
    return is_outside


def _integers_to_floats(array: AnyArray, dtype: DType) -> tuple[AnyArray, Bools]:
    array = array.astype(np.uint8) if array.dtype.kind == "b" else array
    converted = array.astype(dtype)
    wide = converted.astype(np.float64)
    bound = 2.0 * (np.iinfo(array.dtype).max // 2 + 1)
    fits = (wide < bound) & (wide >= -bound)
    round_trip = np.where(fits, wide, 0).astype(array.dtype)
    return converted, ~(fits & (round_trip == array))
