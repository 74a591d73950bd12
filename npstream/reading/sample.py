"""Reading one sample: no plan, no kernel, a few microseconds.

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
from npstream.reading.decode import decode_value
from npstream.reading.gather import line_parser

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding
    from npstream.formats.mds import SampleLayout
    from npstream.reading.plan import Field
    from npstream.shards.base import LoadedShard
    from npstream.shards.table import Fetcher

ShardReader = Callable[[int], Sample]
"""Reads a sample of one shard, by its number in the dataset."""

Decoder = Callable[[int, int, int], Sample]
"""Makes a sample of its number in the dataset, and of where its bytes begin and end."""


class SampleReader:
    """Reads samples one at a time, all with the same columns.

    Parameters
    ----------
    fetcher : Fetcher
    fields : sequence of Field
    fetch : callable
        Returns a sample, by its number, that is not in memory.
    """

    def __init__(
        self, fetcher: Fetcher, fields: Sequence[Field], fetch: Callable[[int], Sample]
    ) -> None:
        self._fetcher = fetcher
        self._fields = fields
        self._fetch = fetch
        self._starts = fetcher.index.starts.data
        # Readers keep shards in memory, so they go when the table does.
        self._table: object = None
        self._readers: dict[int, ShardReader] = {}

    def read(self, sample: int) -> Sample:
        """Return the sample of that number."""
        shard = bisect_right(self._starts, sample) - 1
        if self._fetcher.table is not self._table:
            self._readers = {}
            self._table = self._fetcher.current_table()
        read = self._readers.get(shard)
        if read is None:
            read = self._open(shard)
        return read(sample)

    def release(self) -> None:
        """Let go of the shards that samples were read from."""
        self._readers, self._table = {}, None

    def _open(self, shard: int) -> ShardReader:
        loaded = self._fetcher.loaded_shard(shard)
        if loaded is None:
            return self._fetch
        read = _shard_reader(self._fetcher, loaded, shard, self._fields)
        if len(loaded.resident):
            read = self._read_or_fetch(loaded, shard, read)
        if shard in self._fetcher.current_table().loaded:
            self._readers[shard] = read
        return read

    def _read_or_fetch(self, loaded: LoadedShard, shard: int, read: ShardReader) -> ShardReader:
        """Return what reads rows of chunks that are in memory, and fetches others."""
        resident, chunks = loaded.resident.data, len(loaded.resident)
        first, stop = self._starts[shard], self._starts[shard + 1]
        samples = stop - first

        def read_or_fetch(sample: int) -> Sample:
            is_here = resident[((sample - first + 1) * chunks - 1) // samples] == 1
            return read(sample) if is_here else self._fetch(sample)

        return read_or_fetch


def record_column(loaded: LoadedShard, layout: SampleLayout, field: Field) -> AnyArray:
    """Return a fixed column of a shard of fixed columns, as an array over the shard."""
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
    """Return what reads samples of a shard that is in memory."""
    schema, first = int(fetcher.index.schema_ids[shard]), int(fetcher.index.starts[shard])
    layout = fetcher.layouts[schema]
    if layout is not None and layout.stride and all(f.encoding.kind == "fixed" for f in fields):
        columns = [(f, record_column(loaded, layout, f)) for f in fields]
        return _record_reader(fetcher, first, columns)
    offsets, begin, end = loaded.offsets.data, loaded.begin, len(loaded.data)
    decode, guard = _decoder(fetcher, loaded, schema, fields)
    if stride := loaded.stride:
        zero = begin - first * stride  # where sample 0 of the dataset would begin
        return lambda sample: decode(
            sample, zero + sample * stride, zero + sample * stride + stride
        )

    def read(sample: int) -> Sample:
        row = sample - first
        at, stop = offsets[row], offsets[row + 1]
        if not begin <= at <= stop <= end:
            fetcher.raise_damaged(sample, "its offsets do not fit the shard")
        return decode(sample, at - guard, stop)

    return read


def _record_reader(
    fetcher: Fetcher, first: int, columns: Sequence[tuple[Field, AnyArray]]
) -> ShardReader:
    """Return what reads samples of fixed columns, which are arrays over a shard."""
    numbers = [(f.name, _number_reader(c, f.encoding)) for f, c in columns if c.ndim == 1]
    arrays = [(f.name, c) for f, c in columns if c.ndim > 1]
    bools = [name for name, column in arrays if column.dtype.kind == "b"]
    template: Sample = dict.fromkeys([f.name for f, _ in columns])

    def read(sample: int) -> Sample:
        row = sample - first
        values = template.copy()
        try:
            for name, take in numbers:
                values[name] = take(row)
            for name, column in arrays:
                values[name] = column[row].copy()
            for name in bools:
                check_bools(values[name])
        except ValueError as error:
            fetcher.raise_damaged(sample, str(error))
        return values

    return read


def _number_reader(column: AnyArray, encoding: Encoding) -> Callable[[int], Any]:
    """Return what makes a scalar of a sample."""
    if encoding.name == "int":
        return column.item
    if encoding.dtype.kind == "b":
        return _bool_reader(column)
    return column.__getitem__


def _bool_reader(column: AnyArray) -> Callable[[int], Any]:
    """Return what makes a bool, whose byte it checks."""
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
    """Return what decodes samples of a shard, and how many bytes it wants before them."""
    layout = fetcher.layouts[schema]
    if layout is None:
        data, parse = loaded.data.data, line_parser(fetcher, schema, [f.name for f in fields])
        guard = text.guard(fetcher.index.schemas[schema])
        return (lambda sample, at, stop: parse(sample, bytes(data[at:stop]))), guard
    wanted = {f.name: f.encoding for f in fields}
    names = fetcher.index.schemas[schema].names
    columns = [(name, wanted.get(name), layout.columns[name].size) for name in names]
    return _body_decoder(fetcher, loaded, columns, list(wanted)), 0


def _body_decoder(
    fetcher: Fetcher,
    loaded: LoadedShard,
    columns: list[tuple[str, Encoding | None, int | None]],
    order: list[str],
) -> Decoder:
    """Return what decodes samples of a shard whose columns, in the order of the storage, are these.

    The sizes of the variable ones come first; and where each number lies that no variable column
    comes before is known, too.
    """
    data = loaded.data.data
    sizes = struct.Struct(f"<{sum(size is None for _, _, size in columns)}I")
    numbers = list(takewhile(_is_number, columns))
    rest = [
        (name, None if encoding is None else encoding.decode, size)
        for name, encoding, size in columns[len(numbers) :]
    ]
    head, takes = sizes.size, []
    for name, encoding, size in numbers:
        if encoding is not None:
            takes.append(
                (name, _number_reader(_overlapping_numbers(loaded, encoding, head), encoding))
            )
        head += size or 0
    nbytes = head + sum(size for _, _, size in rest if size is not None)
    template: Sample = dict.fromkeys(order)

    def decode(sample: int, at: int, stop: int) -> Sample:
        lengths = sizes.unpack_from(data, at) if stop - at >= head else ()
        if nbytes + sum(lengths) != stop - at:
            fetcher.raise_damaged(sample, "the sizes of its columns do not add up to its own")
        values = template.copy()
        try:
            for name, take in takes:
                values[name] = take(at)
        except ValueError as error:
            fetcher.raise_damaged(sample, f"column {name!r}: {error}")
        at, variable = at + head, 0
        for name, value, size in rest:
            if size is None:
                end = at + lengths[variable]
                variable += 1
            else:
                end = at + size
            if value is not None:
                try:
                    values[name] = value(data[at:end])
                except Exception:
                    values[name] = decode_value(fetcher, name, value, data[at:end], sample)
            at = end
        return values

    return decode


def _is_number(column: tuple[str, Encoding | None, int | None]) -> bool:
    """Tell whether a column is stored as a number; if it is passed over, any fixed size will do."""
    _, encoding, size = column
    if encoding is None:
        return size is not None
    return encoding.kind == "fixed" and encoding.shape == () and encoding.size == size


def _overlapping_numbers(loaded: LoadedShard, encoding: Encoding, offset: int) -> AnyArray:
    """Return the numbers that begin `offset` bytes after each byte of a shard, which overlap."""
    count = max(len(loaded.data) - offset - encoding.dtype.itemsize + 1, 0)
    return np.ndarray(count, encoding.dtype, loaded.data, min(offset, len(loaded.data)), (1,))
