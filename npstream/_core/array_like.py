"""Conversion of other libraries' arrays to NumPy arrays of the same dtype.

Tested in tests/writing/test_foreign_arrays.py.
"""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.optional import import_npstream_torch, import_optional
from npstream._core.typing import AnyArray

if TYPE_CHECKING:
    from npstream._core.dtypes import DType

HOW_TO_FILL = (
    "fill it in with a value of your own, or leave the sample out, with fill= or on_error='skip'"
)
"""The advice that errors about a missing value give."""


def is_missing(value: object) -> bool:
    """Return True for a missing value: None, ``np.ma.masked``, or pandas's NA or NaT.

    Examples
    --------
    >>> is_missing(None), is_missing(np.ma.masked), is_missing(float("nan"))
    (True, True, False)
    """
    return value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType")


def is_tensor(value: object) -> bool:
    """Return True for a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tensor_rows(value: Any) -> Any:
    """Return the rows of a nested tensor, which vary in shape; None for any other tensor."""
    return value.unbind() if value.is_nested else None


def is_arrow(value: object) -> bool:
    """Return True for an object that exports Arrow data, except objects of pandas and PIL.

    pandas objects are converted through ``__array__``. PIL images are not arrays.
    """
    if type(value).__module__.partition(".")[0] in ("pandas", "PIL"):
        return False
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):
        return False  # a NumPy-like array, whose shape Arrow cannot represent
    if str(dtype) == "Object":
        return False  # polars would export the addresses of Python objects
    return hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__")


def is_array(value: object) -> bool:
    """Return True for an array of any library."""
    if isinstance(value, np.ndarray | np.generic):
        return True
    return hasattr(value, "__array__") or hasattr(value, "__dlpack__") or is_arrow(value)


def as_array(value: Any) -> AnyArray:
    """Return any library's array as a NumPy array, without converting its values.

    Parameters
    ----------
    value : array
        An array of NumPy or torch, or one with ``__array__``, ``__dlpack__`` or Arrow's PyCapsules.

    Raises
    ------
    TypeError
        If `value` is not an array, or NumPy has no dtype for its elements.
    ValueError
        If elements are masked or null.
    """
    if isinstance(value, np.ndarray):
        return _unmask(value)
    if is_tensor(value):
        return import_npstream_torch().to_array(value)  # type: ignore[no-any-return]
    if is_arrow(value):
        return arrow_numbers(arrow_array(value))
    if hasattr(value, "__array__"):
        return _unmask(np.asanyarray(value))
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value, device="cpu")
        except TypeError:
            return np.from_dlpack(value)  # the library does not support device=
    raise TypeError(f"expected an array, got {type(value).__name__}")


def _unmask(array: AnyArray) -> AnyArray:
    """Return a masked array as an ordinary one; raise ValueError if values are masked."""
    if not isinstance(array, np.ma.MaskedArray):
        return np.asarray(array)
    if masked_count := int(np.ma.getmaskarray(array).sum()):
        raise ValueError(
            f"its mask hides {masked_count:,} of {quantity(array.size, 'value')}: fill them in, as "
            "with .filled(0), or leave the samples out"
        )
    return np.asarray(array.data)


def is_time(value: object) -> bool:
    """Return True for a date, a date with a time, or a duration, of Python or pandas."""
    return isinstance(value, datetime.date | datetime.timedelta) or _is_nat(value)


def _is_nat(value: object) -> bool:
    return type(value).__name__ == "NaTType"


def time_array(value: Any, dtype: DType | None = None) -> AnyArray:
    """Return a date, a date with a time, or a duration, of Python or pandas, as a 0-d array.

    Parameters
    ----------
    value : datetime.date or datetime.timedelta
    dtype : dtype, optional
        The dtype of the result if `value` is pandas's NaT, which may be a time or a duration. By
        default, NaT is a time.

    Raises
    ------
    ValueError
        If `value` has a time zone, which datetime64 cannot represent. If a duration has more
        microseconds than int64 can represent, and is not a whole number of seconds.
    """
    if _is_nat(value) and dtype is not None and dtype.kind in "mM":
        return np.array("NaT", dtype)
    if getattr(value, "tzinfo", None) is not None:
        raise ValueError(
            f"{value} has a time zone, which datetime64 does not: convert it to UTC and leave the "
            "zone out, as with .astimezone(datetime.UTC).replace(tzinfo=None)"
        )
    return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else _time(value))


def _time(value: datetime.date | datetime.timedelta) -> np.datetime64 | np.timedelta64:
    if not isinstance(value, datetime.timedelta):
        return np.datetime64(value)
    # np.timedelta64 would silently wrap microseconds beyond int64.
    if abs(microseconds := value // datetime.timedelta(microseconds=1)) < 1 << 63:
        return np.timedelta64(microseconds, "us")
    seconds, remainder = divmod(microseconds, 10**6)
    if remainder:
        raise ValueError(f"{value} is more than 2**63 microseconds: round it to seconds")
    return np.timedelta64(seconds, "s")


# Arrow


def arrow_array(value: Any) -> Any:
    """Return a pyarrow Array or ChunkedArray over the memory of an Arrow array."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value
    return pa.chunked_array(value) if hasattr(value, "__arrow_c_stream__") else pa.array(value)


def arrow_numbers(array: Any) -> AnyArray:
    """Return an Arrow array of numbers, of fixed-size lists, or of tensors, as a NumPy array.

    Raises
    ------
    TypeError
        If NumPy has no dtype that represents all of the values.
    ValueError
        If values are null.
    """
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    check_nulls(array)
    if isinstance(array.type, pa.FixedShapeTensorType):
        check_nulls(array.storage.flatten())
        return array.to_numpy_ndarray()  # type: ignore[no-any-return]
    shape: tuple[int, ...] = ()
    flat = array
    while pa.types.is_fixed_size_list(flat.type):
        shape += (flat.type.list_size,)
        flat = flat.flatten()
        check_nulls(flat)
    if not is_arrow_number(flat.type):
        raise TypeError(f"Arrow's {array.type} is not an array of numbers: convert it first")
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), *shape)  # type: ignore[no-any-return]


def is_arrow_number(arrow_type: Any) -> bool:
    """Return True for an Arrow type that has an equal NumPy dtype.

    Raises
    ------
    TypeError
        If it is a timestamp with a time zone, which NumPy would drop.
    """
    types = import_optional("pyarrow.types", "pyarrow", "arrow")
    if types.is_timestamp(arrow_type) and arrow_type.tz is not None:
        raise TypeError(
            f"{arrow_type} has a time zone, which datetime64 does not: cast the column to a "
            "timestamp without a zone, or to string"
        )
    checks = ("is_integer", "is_floating", "is_boolean", "is_timestamp", "is_date", "is_duration")
    return any(getattr(types, name)(arrow_type) for name in checks)


def check_nulls(array: Any) -> None:
    """Raise ValueError if values of an Arrow array are null."""
    if array.null_count:
        row = array.is_null().index(True).as_py()
        raise ValueError(
            f"{quantity(array.null_count, 'null')} in {quantity(len(array), 'value')}, the first "
            f"in row {row}: fill them in, as with .fill_null(0), or leave their samples out"
        )


def decode_arrow(array: Any) -> Any:
    """Return an Arrow array with dictionaries, run ends and list views decoded."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    while True:
        arrow_type = array.type
        if pa.types.is_dictionary(arrow_type):
            array = arrow_categories(array)
        elif pa.types.is_run_end_encoded(arrow_type):
            array = import_optional("pyarrow.compute", "pyarrow", "arrow").run_end_decode(array)
        elif pa.types.is_list_view(arrow_type) or pa.types.is_large_list_view(arrow_type):
            array = _arrow_lists(array)
        else:
            break
    array.validate()
    return array


def _arrow_lists(array: Any) -> Any:
    """Return list views as lists; pyarrow's own cast gives wrong results."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    lists = []
    for chunk in chunks:
        lengths = chunk.value_lengths().fill_null(0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
        nulls = chunk.is_null() if chunk.null_count else None
        lists.append(pa.LargeListArray.from_arrays(offsets, chunk.flatten(), mask=nulls))
    return pa.chunked_array(lists, pa.large_list(array.type.value_type))


def arrow_categories(array: Any) -> Any:
    """Return a dictionary-encoded Arrow array as an array of its values."""
    pa = import_optional("pyarrow", "pyarrow", "arrow")
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    value_type = array.type.value_type
    if pa.types.is_string_view(value_type) or pa.types.is_binary_view(value_type):
        # pyarrow's take does not support string views and binary views.
        is_text = pa.types.is_string_view(value_type)
        value_type = pa.large_string() if is_text else pa.large_binary()
    decoded = [chunk.dictionary.cast(value_type).take(chunk.indices) for chunk in chunks]
    return pa.chunked_array(decoded, value_type)
