"""Provide the conversion of stored columns to the values of batches and samples.

Tested in tests/end_to_end/test_golden.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.dtypes import invalid_bool_byte
from npstream._core.typing import AnyArray, Int64
from npstream.errors import NpstreamError
from npstream.reading.batch import Ragged

if TYPE_CHECKING:
    from npstream.reading.gather import RawColumn
    from npstream.reading.plan import Field
    from npstream.shards.table import Fetcher

BatchColumn = AnyArray | Ragged


def batch_column(
    fetcher: Fetcher, field: Field, stored: RawColumn, ids: Int64, out: AnyArray | None = None
) -> BatchColumn:
    """Convert a stored column to a column of a batch: bytes stay bytes, numbers become arrays.

    Parameters
    ----------
    fetcher : Fetcher
        Describes the location of a sample whose value is damaged.
    field : Field
    stored : ndarray, Ragged or list
        The values in their stored form, see `npstream.reading.gather`.
    ids : ndarray of int64, shape (n,)
        The samples of the values.
    out : ndarray, optional
        Receives the values of a fixed column.

    Raises
    ------
    FormatError
        If the bytes of a value do not fit the encoding.
    OverflowError
        If an integer does not fit int64.
    """
    kind = field.encoding.kind
    if field.encoding.dtype.kind == "b":
        _check_bools(fetcher, field, stored, ids)
    if stored is out or (out is None and kind == "fixed" and isinstance(stored, np.ndarray)):
        return stored
    if kind in ("int_text", "float_text", "object"):
        stored = sample_values(fetcher, field, stored, ids)
        if kind == "object":
            return object_array(stored)
    if not isinstance(stored, list):
        if isinstance(stored, np.ndarray) and out is not None:
            out[...] = stored
            return out
        return _set_encoding(field, stored)
    if kind in ("str", "bytes", "image"):
        return _set_encoding(field, _text_rows(fetcher, field, stored, ids))
    if kind == "ndarray":
        return _set_encoding(field, _ragged_or_objects(stored))
    numbers = _number_array(fetcher, field, stored, ids)
    if out is None:
        return numbers
    out[...] = numbers
    return out


def _set_encoding(field: Field, column: BatchColumn) -> BatchColumn:
    """Record the encoding in a Ragged, for `npstream.write`; return the column."""
    if isinstance(column, Ragged):
        column.encoding = field.encoding.name
    return column


def _check_bools(fetcher: Fetcher, field: Field, stored: RawColumn, ids: Int64) -> None:
    """Raise FormatError for the first sample with a bool byte other than 0 and 1."""
    values = stored.values if isinstance(stored, Ragged) else stored
    if not isinstance(values, np.ndarray) or (byte := invalid_bool_byte(values)) is None:
        return
    position = int((values.reshape(-1).view(np.uint8) > 1).argmax())
    if isinstance(stored, Ragged):
        row = int(np.searchsorted(stored.offsets, position, side="right")) - 1
    else:
        row = position // max(values.size // len(ids), 1)
    fetcher.raise_damaged(int(ids[row]), f"column {field.name!r}: the byte {byte} is not a bool")


def sample_values(fetcher: Fetcher, field: Field, stored: RawColumn, ids: Int64) -> list[Any]:
    """Convert a stored column to values of samples, which are writable and share no memory.

    The parameters and exceptions are those of `batch_column`.
    """
    encoding = field.encoding
    if encoding.dtype.kind == "b":
        _check_bools(fetcher, field, stored, ids)
    if isinstance(stored, list):
        return stored
    if isinstance(stored, Ragged):
        if stored.kind is None:
            return [row.copy() for row in stored]
        if stored.kind == encoding.kind == "str":
            return _ascii_rows(stored) or _decode_rows(fetcher, field, stored, ids, encoding.decode)
        if stored.kind == encoding.kind == "bytes":
            return list(stored)
        return _decode_rows(fetcher, field, stored, ids, encoding.decode)
    if stored.dtype == object:
        return list(stored)
    if encoding.name == "int":
        return stored.tolist()  # type: ignore[no-any-return]
    if stored.ndim == 1:
        return list(stored)
    return [row.copy() for row in stored]


def object_array(values: list[Any]) -> AnyArray:
    """Return an array of objects, one element for each value, even for sequences."""
    column = np.empty(len(values), object)
    for k, value in enumerate(values):
        column[k] = value
    return column


def decode_value(
    fetcher: Fetcher, name: str, decode: Callable[[Any], Any], body: Any, sample: int
) -> Any:
    """Decode one value; errors name the column and the location of the sample."""
    try:
        return decode(body)
    except NpstreamError as error:
        if not isinstance(error, ValueError):
            raise  # a missing package is not a damaged value
        fetcher.raise_damaged(sample, f"column {name!r}: {error}")
    except Exception as error:
        # A decoder that the user registered may raise anything.
        fetcher.raise_damaged(sample, f"column {name!r}: {error}", error)


def _ascii_rows(stored: Ragged) -> list[str] | None:
    """Return the rows as str if all bytes are ASCII, so that one decode is enough; else None."""
    body = stored.values.tobytes()
    if not body.isascii():
        return None
    text = body.decode()
    return [text[start:stop] for start, stop in pairwise(stored.offsets.tolist())]


def _decode_rows(
    fetcher: Fetcher, field: Field, stored: Ragged, ids: Int64, decode: Callable[[Any], Any]
) -> list[Any]:
    """Decode each row of a column."""
    body = memoryview(stored.values.data)
    spans = pairwise(stored.offsets.tolist())
    try:
        return [decode(body[start:stop]) for start, stop in spans]
    except Exception:
        # Decode again one by one, to find the sample. `decode_value` names it if its value is
        # damaged. It raises other errors unchanged, for example for a missing package.
        spans = pairwise(stored.offsets.tolist())
        return [
            decode_value(fetcher, field.name, decode, body[start:stop], int(sample))
            for (start, stop), sample in zip(spans, ids, strict=True)
        ]


def _number_array(fetcher: Fetcher, field: Field, values: list[Any], ids: Int64) -> AnyArray:
    """Return parsed numbers as an array of the column's dtype."""
    dtype = field.encoding.dtype
    try:
        return np.array(values, dtype).reshape(-1, *(field.shape or ()))
    except OverflowError:
        too_wide = next(k for k, v in enumerate(values) if not -(2**63) <= v < 2**63)
        raise OverflowError(
            f"{fetcher.shards.describe(int(ids[too_wide]))}: column {field.name!r} holds "
            f"{values[too_wide]}, which int64 cannot; read it with dtype=object"
        ) from None


def _text_rows(fetcher: Fetcher, field: Field, values: list[Any], ids: Int64) -> Ragged:
    """Return text or bytes as a Ragged."""
    try:
        return Ragged.from_list(values, field.encoding.kind)
    except UnicodeEncodeError as error:
        # JSON can escape a lone surrogate, which UTF-8 cannot encode.
        sample = next(i for i, text in zip(ids, values, strict=True) if text is error.object)
        fetcher.raise_damaged(
            int(sample), f"column {field.name!r}: {error}; read it with dtype=object"
        )


def _ragged_or_objects(rows: list[AnyArray]) -> BatchColumn:
    """Return arrays as a Ragged if they agree in dtype and rank, otherwise as objects."""
    if len({(row.dtype, row.ndim) for row in rows}) == 1:
        return Ragged.from_list(rows)
    return object_array(rows)
