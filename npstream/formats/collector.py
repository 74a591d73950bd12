"""Statistics of the columns of samples, from a chunk of a shard.

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
    SUMMED_BYTES,
    ColumnStatistics,
    add_elements,
    add_rows,
    add_scalars,
    add_values,
)

if TYPE_CHECKING:
    from npstream.formats.index import Schema

__all__ = ["ChunkColumns", "StatisticsCollector", "TextCollector"]

_LONG_ROW = 256
"""Bytes of a row from which on rows are put together one by one; shorter ones by their elements."""


@dataclass(frozen=True, slots=True)
class ChunkColumns:
    """Consecutive samples of a shard.

    Attributes
    ----------
    data : ndarray of uint8
    begins : dict of str to ndarray of int64
        Where the body of each column begins in `data`, for each sample.
    nbytes : dict of str to ndarray of int64
        The bytes of each body of the columns that vary in size.
    stride : int
        Bytes of every sample, or 0 if they vary.
    """

    data: Bytes
    begins: Mapping[str, Int64]
    nbytes: Mapping[str, Int64]
    stride: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.begins.values())))

    def rows(self, name: str, size: int, start: int = 0, stop: int | None = None) -> Bytes:
        """Return bodies of a column of fixed size, back to back."""
        begins = self.begins[name][start:stop]
        if not self.stride or not len(begins):
            return rows_at(self.data, begins, size).reshape(-1)
        row, offset = divmod(int(begins[0]), self.stride)
        records = self.data.reshape(-1, self.stride)[row : row + len(begins)]
        return np.ascontiguousarray(records[:, offset : offset + size]).reshape(-1)

    def blocks(self, name: str, size: int) -> Iterator[Bytes]:
        """Yield bodies of a column of fixed size, a few at a time."""
        step = max(1, SUMMED_BYTES // size)
        for start in range(0, len(self), step):
            yield self.rows(name, size, start, start + step)

    def runs(
        self, name: str, size: int, dtype: np.dtype[Any]
    ) -> tuple[AnyArray, int, int, int, int] | None:
        """Return the arguments of `sum_small` for a column of small integers of one size.

        None if samples vary in size, or the numbers are not aligned.
        """
        begins, itemsize = self.begins[name], dtype.itemsize
        if dtype.kind not in "iu" or itemsize > 2 or not self.stride or not len(begins):
            return None
        first, end = int(begins[0]), int(begins[-1]) + size
        if first % itemsize or self.stride % itemsize or address_of(self.data) % itemsize:
            return None
        numbers = self.data[: end - end % itemsize].view(dtype)
        return numbers, first // itemsize, self.stride // itemsize, len(begins), size // itemsize

    def numbers_at(self, name: str, size: int, dtype: np.dtype[Any], at: Int64) -> AnyArray:
        """Return elements of arrays of one size, given their positions among all elements."""
        rows, columns = np.divmod(at, size // dtype.itemsize)
        offsets = self.begins[name][rows] + columns * dtype.itemsize
        windows = np.ndarray(len(self.data) - dtype.itemsize + 1, dtype, self.data, strides=(1,))
        numbers: AnyArray = windows[offsets]
        return numbers

    def part(self, start: int, stop: int) -> ChunkColumns:
        """Return some of the samples."""
        begins = {name: each[start:stop] for name, each in self.begins.items()}
        nbytes = {name: each[start:stop] for name, each in self.nbytes.items()}
        return ChunkColumns(self.data, begins, nbytes, self.stride)


class StatisticsCollector:
    """The statistics of one shard, which grow chunk by chunk.

    Parameters
    ----------
    schema : Schema
        That of an MDS shard.
    dtypes : mapping of str to str
        The dtypes that the index records of columns in addition to their encodings.

    Attributes
    ----------
    columns : dict of str to ColumnStatistics
        The statistics so far; `finish` completes them.
    """

    def __init__(self, schema: Schema, dtypes: Mapping[str, str]) -> None:
        self.columns: dict[str, ColumnStatistics] = {}
        self._held: dict[str, list[AnyArray]] = {}
        self._encodings: dict[str, Encoding] = {}
        for name, text, size in zip(schema.names, schema.encodings, schema.sizes, strict=True):
            try:
                encoding = parse(text)
                if name in dtypes:
                    encoding = with_dtype(encoding, dtypes[name])
            except (ValueError, MissingDependencyError):
                continue  # reading the column reports the error
            if encoding.size == size:
                self._encodings[name] = encoding
                numbers = encoding.kind in ("fixed", "ndarray") and encoding.dtype.kind != "O"
                dtype = encoding.dtype.name if numbers else ""
                self.columns[name] = ColumnStatistics(dtype)

    def add(self, chunk: ChunkColumns, scalars: Mapping[str, AnyArray]) -> None:
        """Add samples; `scalars` are the values of some of the columns, extracted already.

        A shard that is stored compressed is one chunk. It is taken in parts, so that the statistics
        do not depend on the compression.
        """
        count = -(-len(chunk.data) // CHUNK_BYTES)
        bounds = piece_rows(len(chunk), min(max(count, 1), max(len(chunk), 1))).tolist()
        for start, stop in pairwise(bounds):
            values = {name: each[start:stop] for name, each in scalars.items()}
            self._add_part(chunk.part(start, stop) if count > 1 else chunk, values)

    def _add_part(self, chunk: ChunkColumns, scalars: Mapping[str, AnyArray]) -> None:
        for name, encoding in self._encodings.items():
            statistics = self.columns[name]
            if encoding.kind == "fixed":
                self._add_fixed(statistics, encoding, chunk, name, scalars.get(name))
            elif encoding.kind == "ndarray":
                begins, nbytes = chunk.begins[name], chunk.nbytes[name]
                self._add_arrays(statistics, encoding, chunk.data, begins, nbytes)
            else:
                begins, sizes = chunk.begins[name], chunk.nbytes.get(name)
                if sizes is None:  # an encoding of the user's own, of one size
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
        stored = storage_dtype(encoding.dtype)
        begins, size = chunk.begins[name], encoding.size
        if stored is None or encoding.dtype.kind == "c" or not size:
            statistics.count += len(begins)
            return
        stored = stored.newbyteorder("<")
        if encoding.shape:
            self._add_rows(statistics, chunk, name, size, stored)
            return
        if values is None or values.dtype.kind not in "iuf":
            values = chunk.rows(name, size).view(stored).copy()  # the chunk is overwritten
        # A call costs 0.1 ms: numbers of chunks with few of them are put together.
        held = self._held.setdefault(name, [])
        if sum(map(len, held)) + len(values) > SCALARS:
            self._add_held(name)
        held.append(values)

    def _add_held(self, name: str) -> None:
        if held := self._held[name]:
            add_scalars(self.columns[name], np.concatenate(held))
            held.clear()

    def finish(self) -> dict[str, ColumnStatistics]:
        """Return the statistics, after the last chunk."""
        for name in self._held:
            self._add_held(name)
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

        def take(at: Any) -> AnyArray:
            if isinstance(at, slice):
                return chunk.rows(name, size).view(dtype)
            return chunk.numbers_at(name, size, dtype, at)

        blocks = (block.view(dtype) for block in chunk.blocks(name, size))
        elements = len(chunk) * (size // dtype.itemsize)
        runs = chunk.runs(name, size, dtype)
        add_rows(statistics, blocks, len(chunk), elements, take, runs)

    def _add_arrays(
        self,
        statistics: ColumnStatistics,
        encoding: Encoding,
        data: Bytes,
        begins: Int64,
        nbytes: Int64,
    ) -> None:
        """Add arrays that vary in length, each after a head of its own."""
        add_values(statistics, data, begins, nbytes, frequent=False)
        if not len(begins):
            return
        untyped = encoding.dtype == np.dtype(object)
        stored: np.dtype[Any] | None
        if untyped:
            codes = data[begins]
            if (codes != codes[0]).any() or int(codes[0]) not in DTYPE_CODES:
                statistics.dtype = ""
                return
            stored = DTYPE_CODES[int(codes[0])]
            if statistics.dtype not in ("", stored.name):
                return
            statistics.dtype = stored.name
        else:
            stored = storage_dtype(encoding.dtype)
        if stored is None or encoding.dtype.kind == "c":
            return
        heads = begins + untyped
        shapes = data[np.minimum(heads, len(data) - 1)].astype(np.int64)
        lengths = untyped + 1 + ((shapes >> 2) << (shapes & 3))
        elements = nbytes - lengths
        if (elements < 0).any() or (elements % stored.itemsize).any():
            return  # damaged
        body = spans_of(data, begins + lengths, elements)
        add_elements(statistics, body.view(stored.newbyteorder("<")), 0)


class TextCollector:
    """The statistics of one shard of text, which grow chunk by chunk.

    Parameters
    ----------
    schema : Schema
        That of a text shard.

    Attributes
    ----------
    columns : dict of str to ColumnStatistics
        The statistics so far. A column with an integer beyond int64 has none.
    """

    def __init__(self, schema: Schema) -> None:
        self._dtypes = {
            name: _TEXT_DTYPES[encoding]
            for name, encoding in zip(schema.names, schema.encodings, strict=True)
            if encoding in _TEXT_DTYPES  # reading the others reports the error
        }
        self.columns = {name: ColumnStatistics(dtype) for name, dtype in self._dtypes.items()}

    def add(self, values: Mapping[str, Sequence[Any]], nbytes: int) -> None:
        """Add the values of all columns of some lines, which have `nbytes` bytes.

        As in `StatisticsCollector.add`, the result does not depend on the compression.
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
        """Give up: the lines do not follow the format."""
        self.columns.clear()

    def finish(self) -> dict[str, ColumnStatistics]:
        """Return the statistics, after the last chunk."""
        return self.columns


_TEXT_DTYPES = {"str": "", "int": "int64", "float": "float64"}
"""The dtype of the numbers of each encoding of text shards."""

_OPAQUE = ("pkl", "list[pil]", "list[jpeg]", "list[png]", "jpeg_array", "jpegarray")


def rows_at(data: Bytes, begins: Int64, nbytes: int) -> Bytes:
    """Return runs of one length as the rows of an array."""
    windows = np.ndarray(
        max(len(data) - nbytes + 1, 0), np.dtype((np.void, nbytes)), data, strides=(1,)
    )
    rows: Bytes = windows[begins].view(np.uint8).reshape(len(begins), nbytes)
    return rows


def spans_of(data: Bytes, begins: Int64, nbytes: Int64) -> Bytes:
    """Return runs of any lengths, back to back."""
    ends = np.cumsum(nbytes)
    total = int(ends[-1]) if len(ends) else 0
    joined: Bytes
    if copy_spans.is_loaded:
        joined = np.empty(total, np.uint8)
        copy_spans(address_of(data) + begins, nbytes, ends - nbytes, address_of(joined))
    elif total >= _LONG_ROW * len(begins):
        pairs = zip(begins.tolist(), (begins + nbytes).tolist(), strict=True)
        joined = np.concatenate([data[begin:end] for begin, end in pairs])
    else:
        joined = data[np.repeat(begins - (ends - nbytes), nbytes) + np.arange(total)]
    return joined
