"""Provide `SampleReader`, which reads one sample in a few microseconds, without a kernel.

Tested in tests/end_to_end/test_golden.py.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import AnyArray, Sample
from npstream.formats import text
from npstream.formats.encodings.arrays import check_bools
from npstream.reading.decode import decode_value, sample_values
from npstream.reading.gather import gather, line_parser

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding
    from npstream.formats.mds import SampleLayout
    from npstream.reading.plan import Field, Plan
    from npstream.shards.base import LoadedShard
    from npstream.shards.table import Fetcher, ShardTable

ShardReader = Callable[[int], Sample]
"""Reads a sample of one shard, given its number in the dataset."""

Decoder = Callable[[int, int, int], Sample]
"""Decodes a sample, given its number in the dataset and the begin and end of its bytes."""


class SampleReader:
    """Reads samples one at a time, all with the same columns.

    Parameters
    ----------
    fetcher : Fetcher
    plan : Plan
        A plan without computed columns.
    """

    def __init__(self, fetcher: Fetcher, plan: Plan) -> None:
        self._fetcher = fetcher
        self._plan = plan
        self._starts = fetcher.index.starts.data
        # Shard readers keep shards in memory, so they are dropped if the fetcher has a new table.
        self._table: ShardTable | None = None
        self._readers: dict[int, ShardReader] = {}

    def read(self, sample: int) -> Sample:
        """Return a sample by its number."""
        shard = bisect_right(self._starts, sample) - 1
        if self._fetcher.table is not self._table:
            self._readers, self._table = {}, self._fetcher.table
        read = self._readers.get(shard)
        if read is None:
            read = self._open(shard)
        return read(sample)

    def release(self) -> None:
        """Release the shards that samples were read from."""
        self._readers, self._table = {}, None

    def _open(self, shard: int) -> ShardReader:
        """Return a reader of a shard, and keep it while the shard is in the table."""
        if self._fetcher.remotes:
            # `_fetch` loads the shard if its chunk is in the cache, or is worth fetching.
            loaded = self._table.loaded.get(shard) if self._table is not None else None
        else:
            loaded = self._fetcher.loaded_shard(shard)
        if loaded is None:
            return self._fetch
        read = _shard_reader(self._fetcher, loaded, shard, self._plan.fields)
        if len(loaded.resident):
            read = self._read_or_fetch(loaded, shard, read)
        if self._table is not None and shard in self._table.loaded:
            self._readers[shard] = read
        return read

    def _fetch(self, sample: int) -> Sample:
        """Read a sample that is not in memory. This uses `gather`, the read of several samples."""
        ids = np.array([sample])
        stored = gather(self._fetcher, self._plan, ids)
        return {
            f.name: sample_values(self._fetcher, f, stored[f.name], ids)[0]
            for f in self._plan.fields
        }

    def _read_or_fetch(self, loaded: LoadedShard, shard: int, read: ShardReader) -> ShardReader:
        """Return a reader that uses `read` for chunks in memory, and fetches other samples."""
        resident, chunks = loaded.resident.data, len(loaded.resident)
        first, stop = self._starts[shard], self._starts[shard + 1]
        samples = stop - first
        count_use = self._fetcher.use_counter(shard)

        def read_or_fetch(sample: int) -> Sample:
            # The index is the chunk of the sample.
            if resident[((sample - first + 1) * chunks - 1) // samples] != 1:
                return self._fetch(sample)
            count_use()
            return read(sample)

        return read_or_fetch


def record_column(loaded: LoadedShard, layout: SampleLayout, field: Field) -> AnyArray:
    """Return a fixed column, in a shard of fixed columns, as an array over the shard's bytes."""
    record = np.dtype(
        {
            "names": ["values"],
            "formats": [(field.encoding.dtype, field.encoding.shape)],
            "offsets": [layout.columns[field.name].offset],
            "itemsize": layout.stride,
        }
    )
    samples = len(loaded.offsets) - 1
    column: AnyArray = np.ndarray(samples, record, loaded.data, loaded.begin)["values"]
    return column


def _shard_reader(
    fetcher: Fetcher, loaded: LoadedShard, shard: int, fields: Sequence[Field]
) -> ShardReader:
    """Return a reader of a loaded shard."""
    schema, first = int(fetcher.index.schema_ids[shard]), int(fetcher.index.starts[shard])
    layout = fetcher.layouts[schema]
    if layout is not None and layout.stride and all(f.encoding.kind == "fixed" for f in fields):
        columns = [(f, record_column(loaded, layout, f)) for f in fields]
        return _record_reader(fetcher, first, columns)
    offsets, samples_begin, samples_end = loaded.offsets.data, loaded.begin, len(loaded.data)
    decode, guard = _decoder(fetcher, loaded, schema, fields)
    if stride := loaded.stride:
        zero = samples_begin - first * stride  # where sample 0 of the dataset would begin
        return lambda sample: decode(
            sample, zero + sample * stride, zero + sample * stride + stride
        )

    def read(sample: int) -> Sample:
        row = sample - first
        begin, end = offsets[row], offsets[row + 1]
        if not samples_begin <= begin <= end <= samples_end:
            fetcher.raise_damaged(sample, "its offsets do not fit the shard")
        return decode(sample, begin - guard, end)

    return read


def _record_reader(
    fetcher: Fetcher, first: int, columns: Sequence[tuple[Field, AnyArray]]
) -> ShardReader:
    """Return a reader of fixed columns, which are arrays over a shard."""
    numbers = [(f.name, _number_reader(c, f.encoding)) for f, c in columns if c.ndim == 1]
    arrays = [(f.name, c) for f, c in columns if c.ndim > 1]
    bools = [name for name, column in arrays if column.dtype.kind == "b"]
    template: Sample = dict.fromkeys([f.name for f, _ in columns])

    def read(sample: int) -> Sample:
        row = sample - first
        values = template.copy()
        try:
            for name, read_number in numbers:
                values[name] = read_number(row)
            for name, column in arrays:
                values[name] = column[row].copy()
            for name in bools:
                check_bools(values[name])
        except ValueError as error:
            fetcher.raise_damaged(sample, str(error))
        return values

    return read


def _number_reader(column: AnyArray, encoding: Encoding) -> Callable[[int], Any]:
    """Return a function from a row to a scalar of a column."""
    if encoding.name == "int":
        return column.item
    if encoding.dtype.kind == "b":
        return _bool_reader(column)
    return column.__getitem__


def _bool_reader(column: AnyArray) -> Callable[[int], Any]:
    """Return a function from a row to a bool, which raises ValueError for a byte above 1."""
    byte_at = column.view(np.uint8).item

    def read(row: int) -> Any:
        if (byte := byte_at(row)) > 1:
            check_bools(column[row : row + 1])
        return _BOOLS[byte]

    return read


_BOOLS = (np.False_, np.True_)


def _decoder(
    fetcher: Fetcher, loaded: LoadedShard, schema: int, fields: Sequence[Field]
) -> tuple[Decoder, int]:
    """Return a decoder of a shard's samples, and the bytes that it needs before each sample."""
    layout = fetcher.layouts[schema]
    if layout is None:
        data, parse = loaded.data.data, line_parser(fetcher, schema, [f.name for f in fields])
        guard = text.guard_nbytes(fetcher.index.schemas[schema])
        return (lambda sample, begin, end: parse(sample, bytes(data[begin:end]))), guard
    encodings = {f.name: f.encoding for f in fields}
    names = fetcher.index.schemas[schema].names
    columns = [(name, encodings.get(name), layout.columns[name].size) for name in names]
    return _body_decoder(fetcher, loaded, columns, list(encodings)), 0


def _body_decoder(
    fetcher: Fetcher,
    loaded: LoadedShard,
    columns: list[tuple[str, Encoding | None, int | None]],
    order: list[str],
) -> Decoder:
    """Return a decoder of a shard's MDS samples.

    The sizes of the variable columns come first in a sample. Numbers before the first variable
    column have a constant offset, and are read without slicing the sample.

    Parameters
    ----------
    fetcher : Fetcher
    loaded : LoadedShard
    columns : list of (str, Encoding or None, int or None)
        Name, encoding and size of each stored column. A column without an encoding is skipped. The
        size is None if it varies.
    order : list of str
        The names of the decoded columns, in the order of the sample's keys.
    """
    data = loaded.data.data
    sizes = struct.Struct(f"<{sum(size is None for _, _, size in columns)}I")
    leading_columns = list(takewhile(_is_number_or_skipped, columns))
    body_columns = [
        (name, None if encoding is None else encoding.decode, size)
        for name, encoding, size in columns[len(leading_columns) :]
    ]
    body_offset, number_readers = sizes.size, []
    for name, encoding, size in leading_columns:
        if encoding is not None:
            values_at = _overlapping_numbers(loaded, encoding, body_offset)
            number_readers.append((name, _number_reader(values_at, encoding)))
        body_offset += size or 0
    min_bytes = body_offset + sum(size for _, _, size in body_columns if size is not None)
    template: Sample = dict.fromkeys(order)

    def decode(sample: int, begin: int, end: int) -> Sample:
        lengths = sizes.unpack_from(data, begin) if end - begin >= body_offset else ()
        if min_bytes + sum(lengths) != end - begin:
            fetcher.raise_damaged(sample, "the sizes of its columns do not add up to its length")
        values = template.copy()
        try:
            for name, read_number in number_readers:
                values[name] = read_number(begin)
        except ValueError as error:
            fetcher.raise_damaged(sample, f"column {name!r}: {error}")
        cursor, next_variable = begin + body_offset, 0
        for name, decode_body, size in body_columns:
            if size is None:
                stop = cursor + lengths[next_variable]
                next_variable += 1
            else:
                stop = cursor + size
            if decode_body is not None:
                body = data[cursor:stop]
                try:
                    values[name] = decode_body(body)
                except Exception:
                    values[name] = decode_value(fetcher, name, decode_body, body, sample)
            cursor = stop
        return values

    return decode


def _is_number_or_skipped(column: tuple[str, Encoding | None, int | None]) -> bool:
    """Return True for a column of numbers, and for a skipped column of any fixed size."""
    _, encoding, size = column
    if encoding is None:
        return size is not None
    return encoding.kind == "fixed" and encoding.shape == () and encoding.size == size


def _overlapping_numbers(loaded: LoadedShard, encoding: Encoding, offset: int) -> AnyArray:
    """Return the numbers at all bytes of a shard: element k begins at byte k + offset."""
    count = max(len(loaded.data) - offset - encoding.dtype.itemsize + 1, 0)
    return np.ndarray(count, encoding.dtype, loaded.data, min(offset, len(loaded.data)), (1,))
