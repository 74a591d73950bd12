"""Computation of the statistics of a shard's columns, chunk by chunk.

Tested in tests/formats/test_statistics.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.dtypes import storage_dtype
from npstream._core.memory import address_of
from npstream._core.spans import copy_spans
from npstream._core.typing import AnyArray, Bytes, Int64
from npstream.errors import MissingDependencyError
from npstream.formats.chunks import CHUNK_BYTES, piece_rows
from npstream.formats.encodings.encodings import DTYPE_CODES, Encoding, parse, with_dtype
from npstream.formats.statistics import (
    SCALARS,
    SUM_BLOCK_BYTES,
    ColumnStatistics,
    add_elements,
    add_rows,
    add_scalars,
    add_values,
)

if TYPE_CHECKING:
    from npstream.formats.index import Schema

__all__ = ["ChunkColumns", "StatisticsCollector", "TextCollector"]

_LONG_SPAN = 256
"""Minimum average size of spans, in bytes, to copy them one by one.

It applies to `concatenate_spans` before its Numba kernel is loaded.
"""


@dataclass(frozen=True, slots=True)
class ChunkColumns:
    """Consecutive samples of a shard, and the positions of their columns.

    Attributes
    ----------
    data : ndarray of uint8
        The bytes of the samples.
    begins : dict of str to ndarray of int64
        For each column, the first byte of each sample's body in `data`.
    nbytes : dict of str to ndarray of int64
        For each variable column, the size of each sample's body.
    stride : int
        Bytes of each sample, or 0 if samples vary in size.
    """

    data: Bytes
    begins: Mapping[str, Int64]
    nbytes: Mapping[str, Int64]
    stride: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.begins.values())))

    def rows(self, name: str, size: int, start: int = 0, stop: int | None = None) -> Bytes:
        """Return the bodies of a fixed column for samples `start` to `stop`, concatenated."""
        begins = self.begins[name][start:stop]
        if not self.stride or not len(begins):
            return rows_at(self.data, begins, size).reshape(-1)
        row, offset = divmod(int(begins[0]), self.stride)
        records = self.data.reshape(-1, self.stride)[row : row + len(begins)]
        return np.ascontiguousarray(records[:, offset : offset + size]).reshape(-1)

    def blocks(self, name: str, size: int) -> Iterator[Bytes]:
        """Yield the bodies of a fixed column, `SUM_BLOCK_BYTES` at a time."""
        step = max(1, SUM_BLOCK_BYTES // size)
        for start in range(0, len(self), step):
            yield self.rows(name, size, start, start + step)

    def sum_small_arguments(
        self, name: str, size: int, dtype: np.dtype[Any]
    ) -> tuple[AnyArray, int, int, int, int] | None:
        """Return the arguments of `sum_small` for a fixed column of integers of at most 16 bits.

        Return None for other dtypes, if samples vary in size, or if the numbers are not aligned.
        """
        begins, itemsize = self.begins[name], dtype.itemsize
        if dtype.kind not in "iu" or itemsize > 2 or not self.stride or not len(begins):
            return None
        first, end = int(begins[0]), int(begins[-1]) + size
        if first % itemsize or self.stride % itemsize or address_of(self.data) % itemsize:
            return None
        numbers = self.data[: end - end % itemsize].view(dtype)
        return numbers, first // itemsize, self.stride // itemsize, len(begins), size // itemsize

    def numbers_at(self, name: str, size: int, dtype: np.dtype[Any], positions: Int64) -> AnyArray:
        """Return elements of a fixed column.

        `positions` are indices into the concatenated elements of all samples.
        """
        rows, columns = np.divmod(positions, size // dtype.itemsize)
        offsets = self.begins[name][rows] + columns * dtype.itemsize
        windows = np.ndarray(len(self.data) - dtype.itemsize + 1, dtype, self.data, strides=(1,))
        numbers: AnyArray = windows[offsets]
        return numbers

    def select(self, start: int, stop: int) -> ChunkColumns:
        """Return the samples from `start` to `stop`."""
        begins = {name: each[start:stop] for name, each in self.begins.items()}
        nbytes = {name: each[start:stop] for name, each in self.nbytes.items()}
        return ChunkColumns(self.data, begins, nbytes, self.stride)


class StatisticsCollector:
    """Computes the statistics of one MDS shard, chunk by chunk.

    Parameters
    ----------
    schema : Schema
        The schema of the shard.
    dtypes : mapping of str to str
        The dtypes in the annotations of the index.

    Attributes
    ----------
    columns : dict of str to ColumnStatistics
        The statistics of the added chunks; `finish` completes them.
    """

    def __init__(self, schema: Schema, dtypes: Mapping[str, str]) -> None:
        self.columns: dict[str, ColumnStatistics] = {}
        self._scalar_buffers: dict[str, list[AnyArray]] = {}
        self._encodings: dict[str, Encoding] = {}
        self._without_numbers: set[str] = set()
        for name, text, size in zip(schema.names, schema.encodings, schema.sizes, strict=True):
            try:
                encoding = parse(text)
                if name in dtypes:
                    encoding = with_dtype(encoding, dtypes[name])
            except (ValueError, MissingDependencyError):
                continue  # reading the column reports the error
            # A column with another size than its encoding has no statistics.
            if encoding.size == size:
                self._encodings[name] = encoding
                has_numbers = encoding.kind in ("fixed", "ndarray") and encoding.dtype.kind != "O"
                dtype = encoding.dtype.name if has_numbers else ""
                self.columns[name] = ColumnStatistics(dtype)

    def add(self, chunk: ChunkColumns, scalars: Mapping[str, AnyArray]) -> None:
        """Add the samples of a chunk.

        A shard that is stored compressed is one chunk. It is divided into parts of `CHUNK_BYTES`,
        so that the statistics do not depend on the compression.

        Parameters
        ----------
        chunk : ChunkColumns
        scalars : mapping of str to ndarray
            The values of scalar columns that the caller has extracted from the chunk.
        """
        count = -(-len(chunk.data) // CHUNK_BYTES)
        bounds = piece_rows(len(chunk), min(max(count, 1), max(len(chunk), 1))).tolist()
        for start, stop in pairwise(bounds):
            values = {name: each[start:stop] for name, each in scalars.items()}
            self._add_part(chunk.select(start, stop) if count > 1 else chunk, values)

    def _add_part(self, chunk: ChunkColumns, scalars: Mapping[str, AnyArray]) -> None:
        for name, encoding in self._encodings.items():
            statistics = self.columns[name]
            if encoding.kind == "fixed":
                self._add_fixed(statistics, encoding, chunk, name, scalars.get(name))
            elif encoding.kind == "ndarray":
                self._add_arrays(name, encoding, chunk)
            else:
                begins, sizes = chunk.begins[name], chunk.nbytes.get(name)
                if sizes is None:  # a registered encoding of a fixed size
                    sizes = np.full(len(begins), encoding.size, np.int64)
                null = b"null" if encoding.name == "json" else b""
                frequent = encoding.kind != "image" and encoding.name not in _OPAQUE
                data = chunk.data
                add_values(statistics, data, begins, sizes, frequent=frequent, null=null)

    def _add_fixed(
        self,
        statistics: ColumnStatistics,
        encoding: Encoding,
        chunk: ChunkColumns,
        name: str,
        values: AnyArray | None,
    ) -> None:
        number_dtype = storage_dtype(encoding.dtype)
        begins, size = chunk.begins[name], encoding.size
        if number_dtype is None or encoding.dtype.kind == "c" or not size:
            statistics.count += len(begins)
            return
        number_dtype = number_dtype.newbyteorder("<")
        if encoding.shape:
            self._add_rows(statistics, chunk, name, size, number_dtype)
            return
        if values is None or values.dtype.kind not in "iuf":
            # A copy, because the caller overwrites the memory of the chunk.
            values = chunk.rows(name, size).view(number_dtype).copy()
        # A call of `add_scalars` costs 0.1 ms. So buffer the scalars of small chunks.
        buffer = self._scalar_buffers.setdefault(name, [])
        if sum(map(len, buffer)) + len(values) > SCALARS:
            self._flush_scalars(name)
        buffer.append(values)

    def _flush_scalars(self, name: str) -> None:
        if buffer := self._scalar_buffers[name]:
            add_scalars(self.columns[name], np.concatenate(buffer))
            buffer.clear()

    def finish(self) -> dict[str, ColumnStatistics]:
        """Return the statistics, after the last chunk."""
        for name in self._scalar_buffers:
            self._flush_scalars(name)
        return self.columns

    def _add_rows(
        self,
        statistics: ColumnStatistics,
        chunk: ChunkColumns,
        name: str,
        size: int,
        dtype: np.dtype[Any],
    ) -> None:
        """Add arrays of one shape."""

        def take(positions: Any) -> AnyArray:
            if isinstance(positions, slice):  # all positions
                return chunk.rows(name, size).view(dtype)
            return chunk.numbers_at(name, size, dtype, positions)

        blocks = (block.view(dtype) for block in chunk.blocks(name, size))
        elements = len(chunk) * (size // dtype.itemsize)
        arguments = chunk.sum_small_arguments(name, size, dtype)
        add_rows(statistics, blocks, len(chunk), elements, take, arguments)

    def _add_arrays(self, name: str, encoding: Encoding, chunk: ChunkColumns) -> None:
        """Add arrays of variable shape.

        A column has no statistics of numbers if its arrays differ in dtype, or if one is damaged.
        """
        begins, nbytes = chunk.begins[name], chunk.nbytes[name]
        statistics = self.columns[name]
        add_values(statistics, chunk.data, begins, nbytes, frequent=False)
        if not len(begins) or encoding.dtype.kind == "c" or name in self._without_numbers:
            return
        numbers = _array_elements(encoding, chunk.data, begins, nbytes)
        if numbers is None or statistics.dtype not in ("", numbers[0]):
            self._without_numbers.add(name)
            self.columns[name] = statistics.without_numbers()
            return
        statistics.dtype, elements = numbers
        # `add_values` already counted the arrays, so the count here is 0.
        add_elements(statistics, elements, 0)


def _array_elements(
    encoding: Encoding, data: Bytes, begins: Int64, nbytes: Int64
) -> tuple[str, AnyArray] | None:
    """Return the name of the dtype of arrays of variable shape, and their concatenated elements.

    Return None if the arrays differ in dtype, or if one is damaged.
    """
    dtype: np.dtype[Any] | None = encoding.dtype
    has_codes = encoding.dtype == np.dtype(object)
    if has_codes:
        codes = data[begins]
        dtype = DTYPE_CODES.get(int(codes[0])) if (codes == codes[0]).all() else None
    number_dtype = None if dtype is None else storage_dtype(dtype)
    if dtype is None or number_dtype is None:
        return None
    # A body is [dtype code] [shape head] values; see `npstream.formats.encodings.arrays`. The
    # first byte of the shape head is ndim << 2 | w; ndim dimensions of 2**w bytes follow it.
    shape_heads = begins + has_codes
    first_bytes = data[np.minimum(shape_heads, len(data) - 1)].astype(np.int64)
    head_sizes = has_codes + 1 + ((first_bytes >> 2) << (first_bytes & 3))
    value_sizes = nbytes - head_sizes
    if (value_sizes < 0).any() or (value_sizes % number_dtype.itemsize).any():
        return None
    values = concatenate_spans(data, begins + head_sizes, value_sizes)
    return dtype.name, values.view(number_dtype.newbyteorder("<"))


class TextCollector:
    """Computes the statistics of one text shard, chunk by chunk.

    Parameters
    ----------
    schema : Schema
        The schema of the shard.

    Attributes
    ----------
    columns : dict of str to ColumnStatistics
        The statistics of the added chunks. A column with an integer beyond int64 has none.
    """

    def __init__(self, schema: Schema) -> None:
        self._dtypes = {
            name: _TEXT_DTYPES[encoding]
            for name, encoding in zip(schema.names, schema.encodings, strict=True)
            if encoding in _TEXT_DTYPES  # reading the others reports the error
        }
        self.columns = {name: ColumnStatistics(dtype) for name, dtype in self._dtypes.items()}

    def add(self, values: Mapping[str, Sequence[Any]], nbytes: int) -> None:
        """Add the values of consecutive lines.

        As in `StatisticsCollector.add`, the result does not depend on the compression.

        Parameters
        ----------
        values : mapping of str to sequence
            For each column, its value in each line.
        nbytes : int
            Bytes of the lines.
        """
        length = len(next(iter(values.values()), ()))
        count = min(-(-nbytes // CHUNK_BYTES), length)
        for start, stop in pairwise(piece_rows(length, count).tolist() if count else ()):
            for name in list(self.columns):
                self._add_column(name, values[name][start:stop])

    def _add_column(self, name: str, values: Sequence[Any]) -> None:
        statistics, dtype = self.columns[name], self._dtypes[name]
        if dtype:
            try:
                add_scalars(statistics, np.array(values, dtype))
            except OverflowError:
                del self.columns[name]
            return
        bodies = [value.encode(errors="surrogatepass") for value in values]
        nbytes = np.fromiter(map(len, bodies), np.int64, len(bodies))
        data = np.frombuffer(b"".join(bodies), np.uint8)
        add_values(statistics, data, np.cumsum(nbytes) - nbytes, nbytes)

    def discard(self) -> None:
        """Drop all statistics, because a line does not follow the format."""
        self.columns.clear()

    def finish(self) -> dict[str, ColumnStatistics]:
        """Return the statistics, after the last chunk."""
        return self.columns


_TEXT_DTYPES = {"str": "", "int": "int64", "float": "float64"}
"""Encoding of a text column -> dtype of its numbers; empty for text."""

_OPAQUE = ("pkl", "list[pil]", "list[jpeg]", "list[png]", "jpeg_array", "jpegarray")
"""Encodings of pickles and of lists of images: the most frequent bodies are not counted."""


def rows_at(data: Bytes, begins: Int64, nbytes: int) -> Bytes:
    """Return the spans of `nbytes` bytes that start at `begins`, as the rows of an array."""
    windows = np.ndarray(
        max(len(data) - nbytes + 1, 0), np.dtype((np.void, nbytes)), data, strides=(1,)
    )
    rows: Bytes = windows[begins].view(np.uint8).reshape(len(begins), nbytes)
    return rows


def concatenate_spans(data: Bytes, begins: Int64, nbytes: Int64) -> Bytes:
    """Return the concatenation of spans, given their first bytes and their sizes."""
    ends = np.cumsum(nbytes)
    total = int(ends[-1]) if len(ends) else 0
    result: Bytes
    if copy_spans.is_loaded:
        result = np.empty(total, np.uint8)
        copy_spans(address_of(data) + begins, nbytes, ends - nbytes, address_of(result))
    elif total >= _LONG_SPAN * len(begins):
        pairs = zip(begins.tolist(), (begins + nbytes).tolist(), strict=True)
        result = np.concatenate([data[begin:end] for begin, end in pairs])
    else:
        result = data[np.repeat(begins - (ends - nbytes), nbytes) + np.arange(total)]
    return result
