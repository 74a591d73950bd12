"""Scalar columns taken out of the bytes of consecutive samples.

Tested in tests/formats/sidecar/test_sidecar.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import AnyArray, Bytes, Int64
from npstream.errors import FormatError
from npstream.formats.encodings.encodings import parse

if TYPE_CHECKING:
    from npstream.formats.index import Schema
    from npstream.formats.mds import Layout

Scalars = dict[str, AnyArray]

MOST = 8
"""Bytes of the largest scalars."""

_TEXT = {"int": "int64", "float": "float64"}


def scalar_columns(schemas: Sequence[Schema]) -> dict[str, np.dtype[Any]]:
    """Return the columns that are scalars of one dtype in every schema.

    Examples
    --------
    >>> from npstream.formats.index import Schema
    >>> columns = scalar_columns([Schema("mds", ("a", "b"), ("int", "str"), (8, None))])
    >>> {name: dtype.name for name, dtype in columns.items()}
    {'a': 'int64'}
    """
    each = [_scalars(schema) for schema in schemas]
    if not each:
        return {}
    return {
        name: dtype
        for name, dtype in each[0].items()
        if all(scalars.get(name) == dtype for scalars in each[1:])
    }


def _scalars(schema: Schema) -> dict[str, np.dtype[Any]]:
    scalars = {}
    sizes = schema.sizes or (None,) * len(schema.names)
    for name, encoding, size in zip(schema.names, schema.encodings, sizes, strict=True):
        try:
            parsed = parse(encoding if schema.format == "mds" else _TEXT.get(encoding, ""))
        except ValueError:
            continue  # who reads the column says what is wrong
        fits = parsed.size == size or schema.format != "mds"
        if parsed.kind == "fixed" and parsed.shape == () and fits and parsed.dtype.itemsize <= MOST:
            scalars[name] = parsed.dtype.newbyteorder("<")
    return scalars


def record_scalars(data: Bytes, layout: Layout, columns: Mapping[str, np.dtype[Any]]) -> Scalars:
    """Return columns of MDS samples that all have one size."""
    records = data.reshape(-1, layout.stride)
    scalars = {}
    for name, dtype in columns.items():
        at = layout.places[name].offset
        body = records[:, at : at + dtype.itemsize].copy()
        scalars[name] = body.view(dtype)[:, 0]
    return scalars


def sample_scalars(
    data: Bytes,
    offsets: Int64,
    layout: Layout,
    columns: Mapping[str, np.dtype[Any]],
    first: int = 0,
) -> Scalars:
    """Return columns of MDS samples whose sizes vary; the sizes of all columns are checked.

    Parameters
    ----------
    data : ndarray of uint8
    offsets : ndarray of int64, shape (n + 1,)
        Where each sample begins in `data`, ascending; the last ends where `data` end.
    layout : Layout
    columns : mapping of str to dtype
    first : int
        The number of the first sample, for messages.

    Raises
    ------
    FormatError
        If the sizes in a sample do not add up to its own.
    """
    begins, lengths = offsets[:-1], np.diff(offsets)
    body = 4 * layout.nvariable
    _check(lengths >= body + layout.nfixed, first)
    sizes = np.stack(
        [_gather(data, begins + 4 * k, np.dtype("<u4")) for k in range(layout.nvariable)]
    ).astype(np.int64)
    _check(body + layout.nfixed + sizes.sum(axis=0) == lengths, first)
    scalars = {}
    for name, dtype in columns.items():
        place = layout.places[name]
        scalars[name] = _gather(
            data, begins + body + place.offset + sizes[: place.before].sum(axis=0), dtype
        )
    return scalars


def line_scalars(
    data: bytes,
    offsets: Int64,
    parse_line: Callable[[bytes], Mapping[str, Any]],
    columns: Mapping[str, np.dtype[Any]],
    first: int = 0,
) -> Scalars:
    """Return columns of samples that are lines of text, each of which is parsed.

    The parameters are otherwise those of `sample_scalars`.

    Raises
    ------
    FormatError
        If a line does not follow the format.
    OverflowError
        If an integer is beyond int64.
    """
    found: dict[str, list[Any]] = {name: [] for name in columns}
    bounds = offsets.tolist()
    for row, (begin, end) in enumerate(itertools.pairwise(bounds), first):
        try:
            values = parse_line(data[begin:end])
        except ValueError as error:
            raise FormatError(f"sample {row}: {error}") from error
        for name, dtype in columns.items():
            if dtype.kind == "i" and not -(2**63) <= values[name] < 2**63:
                raise OverflowError(f"sample {row}: column {name!r} is beyond int64; leave it out")
            found[name].append(values[name])
    return {name: np.array(found[name], dtype) for name, dtype in columns.items()}


def _check(sound: AnyArray, first: int) -> None:
    if not sound.all():
        row = first + int(sound.argmin())
        raise FormatError(f"sample {row}: the sizes of its columns do not add up to its own")


def _gather(data: Bytes, at: Int64, dtype: np.dtype[Any]) -> AnyArray:
    """Return numbers that lie anywhere."""
    numbers: AnyArray = data[at[:, None] + np.arange(dtype.itemsize)].view(dtype)
    return numbers[:, 0]
