"""Sequential scan of a shard that hashes its pieces and extracts its scalar columns.

Tested in tests/formats/test_scan.py and tests/tools/test_index_builder.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.jit import kernel, load_u32
from npstream._core.memory import address_of, ensure_fits, huge_empty
from npstream._core.spans import copy_short
from npstream._core.typing import AnyArray, Body, Bytes, Int64
from npstream.errors import FormatError
from npstream.formats import chunks, mds, text
from npstream.formats.chunks import chunk_counts, piece_bounds, piece_rows
from npstream.formats.collector import ChunkColumns, StatisticsCollector, TextCollector
from npstream.formats.encodings.encodings import own_encoding, parse
from npstream.formats.sidecar.blocks import xxh3

if TYPE_CHECKING:
    from concurrent.futures import Future

    from npstream.formats.index import Schema
    from npstream.formats.mds import SampleLayout
    from npstream.formats.statistics import ColumnStatistics


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The result of a shard's scan.

    Attributes
    ----------
    begin : int
        Offset of the first sample in the data file.
    pieces : ndarray of uint64
        The hash of each piece of the data file.
    meta : int
        The hash of the meta file, or 0 if there is none.
    columns : dict of str to ndarray
        The values of the requested scalar columns.
    statistics : dict of str to ColumnStatistics
        The statistics of all columns, if they were requested.
    """

    begin: int
    pieces: NDArray[np.uint64]
    meta: int
    columns: dict[str, AnyArray]
    statistics: dict[str, ColumnStatistics] = field(default_factory=dict)


Scalars = dict[str, AnyArray]
"""Scalar column -> its values."""

MAX_SCALAR_BYTES = 8
"""The largest itemsize of a scalar column."""

_TEXT_DTYPES = {"int": "int64", "float": "float64"}

_MIN_BUFFER = 1 << 23
"""Initial bytes of the buffer for pieces; most pieces have half this size."""

_MAX_NUMPY_SAMPLES = 1 << 24
"""Number of samples that a process splits with NumPy before it imports Numba.

NumPy splits this number in about half a second.
"""

ColumnExtractor = Callable[[memoryview, Int64, int, Scalars], None]
"""Extracts columns from consecutive samples, given their bytes, their offsets in these bytes, the
row of the first sample, and an array for the values of each column."""


class Scan:
    """An incremental scan of one shard that holds only one piece in memory.

    Parameters
    ----------
    schema : Schema
    samples : int
        Number of samples according to the index.
    columns : mapping of str to dtype
        The scalar columns to extract.
    compressed : bool
        Whether the shard is stored compressed, and therefore has one chunk.
    nbytes : int, optional
        Bytes of the shard according to the index; by default taken from the shard's offsets.
    meta : bytes, optional
        The meta file of a text shard.
    parse_all : bool, default: False
        Whether to parse all columns of a text shard, not only `columns`.
    statistics_dtypes : mapping of str to str, optional
        The dtypes in the annotations of the index. If given, the statistics of all columns are
        computed.
    submit : callable, optional
        Runs a function with arguments in a thread, and returns the future. Then a chunk is
        processed while the next one is fed.

    Raises
    ------
    FormatError
        From the methods, if the shard does not follow the format.
    """

    def __init__(
        self,
        schema: Schema,
        samples: int,
        columns: Mapping[str, np.dtype[Any]],
        *,
        compressed: bool,
        nbytes: int | None = None,
        meta: bytes | None = None,
        parse_all: bool = False,
        statistics_dtypes: Mapping[str, str] | None = None,
        submit: Callable[..., Future[None]] | None = None,
    ) -> None:
        collector: StatisticsCollector | TextCollector | None = None
        if statistics_dtypes is not None and schema.format == "mds":
            collector = StatisticsCollector(schema, statistics_dtypes)
        elif statistics_dtypes is not None:
            collector = TextCollector(schema)
        extract = _column_extractor(schema, dict(columns), parse_all, collector)
        self._collector = collector
        self._pieces = _scan_pieces(
            schema, samples, dict(columns), compressed, nbytes, meta, extract, submit
        )
        self._needed = next(self._pieces)
        self._buffer = _new_buffer(0)
        # With `submit`, a thread processes one piece while the next one is fed. So the two pieces
        # need two buffers.
        self._spare_buffer = _new_buffer(0) if submit is not None else None
        self._filled = 0
        self._total = 0
        self._result: ScanResult | None = None

    def tee(self, parts: Iterable[Body], *, is_stable: bool = False) -> Iterator[Body]:
        """Feed each part of a shard to this scan, and yield the part unchanged."""
        for part in parts:
            self.feed(part, is_stable=is_stable)
            yield part

    def allocate(self, nbytes: int) -> memoryview:
        """Return memory for the next bytes of the shard, which `feed` then does not copy.

        The memory has at most `nbytes` bytes, and does not extend beyond the current piece.
        """
        count = min(nbytes, self._needed - self._filled)
        self._grow_buffer(self._filled + count)
        return self._buffer[self._filled : self._filled + count]

    def feed(self, body: Body, *, is_stable: bool = False) -> None:
        """Process the next bytes of the shard.

        If `is_stable` is True, the memory of `body` does not change until the scan has ended. Then
        whole pieces are not copied, also with `submit`.
        """
        unread = memoryview(body)
        is_in_place = unread.obj is self._buffer.obj
        self._total += len(unread)
        while self._result is None:
            can_use = is_stable or self._spare_buffer is None
            if can_use and not self._filled and len(unread) >= self._needed:
                # No copy is needed: the piece is processed before the caller can change it.
                piece, unread = unread[: self._needed], unread[self._needed :]
            else:
                count = min(len(unread), self._needed - self._filled)
                if not is_in_place:
                    self._grow_buffer(self._filled + count)
                    self._buffer[self._filled : self._filled + count] = unread[:count]
                self._filled, unread = self._filled + count, unread[count:]
                if self._filled < self._needed:
                    return
                piece = self._buffer[: self._needed]
            try:
                self._needed = self._pieces.send(piece)
            except StopIteration as stop:
                self._result = stop.value
            if self._spare_buffer is not None:  # a thread may read the buffer until the next piece
                self._buffer, self._spare_buffer = self._spare_buffer, self._buffer
            self._filled = 0
            if not self._needed and len(body) and not len(unread):
                # The next piece is empty, and the next call of `feed` sends it. After the last
                # chunk, sending it here would wait for the thread that processes this chunk.
                return
        self._filled += len(unread)  # bytes after the end of the shard: `finish` raises

    def _grow_buffer(self, nbytes: int) -> None:
        """Enlarge the buffer to at least `nbytes` bytes.

        The buffer grows with the data, because an index may record a piece that is larger than the
        actual file.
        """
        if nbytes > len(self._buffer):
            size = min(self._needed, max(2 * nbytes, _MIN_BUFFER))
            ensure_fits(size, "a piece of a shard")
            old, self._buffer = self._buffer, _new_buffer(size)  # views of the old one may exist
            self._buffer[: self._filled] = old[: self._filled]

    def finish(self) -> ScanResult:
        """Return the result; call this after the last byte was fed."""
        self.feed(b"")  # completes trailing pieces that are empty
        if self._result is None:
            raise FormatError(f"it ends after {quantity(self._total, 'byte')}, within a piece")
        if self._filled:
            raise FormatError(
                f"{self._filled:,} of {quantity(self._total, 'byte')} came after its end"
            )
        if self._collector is not None:
            return replace(self._result, statistics=self._collector.finish())
        return self._result


def _new_buffer(nbytes: int) -> memoryview:
    return huge_empty(nbytes, np.uint8).data


def _scan_pieces(
    schema: Schema,
    samples: int,
    columns: dict[str, np.dtype[Any]],
    compressed: bool,
    nbytes: int | None,
    meta: bytes | None,
    extract: ColumnExtractor,
    submit: Callable[..., Future[None]] | None,
) -> Generator[int, memoryview, ScanResult]:
    """Yield the number of bytes to read next; the caller sends these bytes.

    With `submit`, a thread reads the sent bytes. They must not change before the next ``send``
    returns.
    """
    layout = mds.sample_layout(schema) if schema.format == "mds" else None
    stride = layout.stride if layout else 0
    table = b"" if meta is not None else bytes((yield 4 * (samples + 2)))
    words = np.frombuffer(table if meta is None else _meta_head(meta, samples), "<u4")
    begin = int(words[1])
    end = nbytes if nbytes is not None else int(words[-1])
    if not len(table) <= begin <= end:
        raise FormatError(f"samples begin at byte {begin}; expected {len(table)} to {end}")
    head = table + (yield begin - len(table))
    if layout is not None:
        mds.check_mds_head(schema, np.frombuffer(head, np.uint8), samples, stride, end)
    else:
        meta_bytes = np.frombuffer(meta or b"", np.uint8)
        text.check_text_head(schema, np.frombuffer(head, np.uint8), meta_bytes, samples, end)
    (count,) = chunk_counts(
        np.array([samples]), np.array([end]), np.array([compressed]), chunks.CHUNK_BYTES
    ).tolist()
    rows = piece_rows(samples, count)
    bounds = piece_bounds(rows, begin, end, None if stride else words[1:]).tolist()
    hashes = [xxh3(head)]
    values = {name: np.empty(samples, dtype) for name, dtype in columns.items()}

    def process(data: memoryview, first: int, last: int) -> None:
        hashes.append(xxh3(data))
        if samples:
            offsets = words[1:][first : last + 1].astype(np.int64)
            offsets -= offsets[0]
            extract(data, offsets, first, {name: each[first:last] for name, each in values.items()})

    job: Future[None] | None = None
    for chunk in range(count):
        data = yield bounds[chunk + 2] - bounds[chunk + 1]
        arguments = data, int(rows[chunk]), int(rows[chunk + 1])
        if submit is None or count == 1:
            process(*arguments)
            continue
        if job is not None:
            # Wait for the previous chunk: chunks are processed in order, and after the next `yield`
            # the caller reuses the previous chunk's buffer.
            job.result()
        job = submit(process, *arguments)
    if job is not None:
        yield 0  # an empty piece: the caller continues while the thread processes the last chunk
        job.result()
    return ScanResult(begin, np.array(hashes, np.uint64), xxh3(meta) if meta else 0, values)


def _meta_head(meta: bytes, samples: int) -> bytes:
    if len(meta) < 4 * (samples + 2):
        raise FormatError(
            f"{quantity(len(meta), 'byte')} of meta; the head of {quantity(samples, 'sample')} "
            f"takes {4 * (samples + 2)}"
        )
    return meta[: 4 * (samples + 2)]


def _column_extractor(
    schema: Schema,
    columns: dict[str, np.dtype[Any]],
    parse_all: bool,
    collector: StatisticsCollector | TextCollector | None,
) -> ColumnExtractor:
    """Return a function that extracts `columns` from samples, and passes them to `collector`."""
    if schema.format != "mds":
        assert not isinstance(collector, StatisticsCollector)
        return _line_extractor(schema, columns, parse_all, collector)
    assert not isinstance(collector, TextCollector)
    layout = mds.sample_layout(schema)
    positions = _PositionMemory()

    def extract(data: memoryview, offsets: Int64, first: int, scalars: Scalars) -> None:
        body: Bytes = np.frombuffer(data, np.uint8)
        if layout.stride:
            record_scalars(body, layout, scalars)
            if collector is not None:
                collector.add(record_chunk(body, layout), scalars)
            return
        chunk = split_samples(body, offsets, layout, scalars, first, positions)
        if collector is not None:
            collector.add(chunk, scalars)

    return extract


def _line_extractor(
    schema: Schema,
    columns: dict[str, np.dtype[Any]],
    parse_all: bool,
    collector: TextCollector | None,
) -> ColumnExtractor:
    """Return a function that extracts `columns` from lines, and passes them to `collector`.

    The function raises if a value of `columns` does not follow the format. If `parse_all` is True,
    this applies to all columns. Otherwise, a wrong value of another column does not raise; the
    shard then gets no statistics.
    """
    parse = text.parser(schema, schema.names if parse_all else tuple(columns))

    def collect(lines: bytes, offsets: Int64, first: int) -> None:
        if collector is None or not collector.columns:
            return
        values = text.parse_together(schema, lines, len(offsets) - 1)
        if values is None:
            try:
                values = parse_lines(lines, offsets, text.parser(schema, schema.names), first)
            except FormatError:
                collector.discard()
                return
        collector.add(values, len(lines))

    def extract(data: memoryview, offsets: Int64, first: int, scalars: Scalars) -> None:
        lines = bytes(data)
        if parse_all or columns:
            for name, values in line_scalars(lines, offsets, parse, columns, first).items():
                scalars[name][:] = values
        collect(lines, offsets, first)

    return extract


def scalar_columns(schemas: Sequence[Schema]) -> dict[str, np.dtype[Any]]:
    """Return the columns that are scalars of the same dtype in all schemas.

    Examples
    --------
    >>> from npstream.formats.index import Schema
    >>> columns = scalar_columns([Schema("mds", ("a", "b"), ("int", "str"), (8, None))])
    >>> {name: dtype.name for name, dtype in columns.items()}
    {'a': 'int64'}
    """
    per_schema = [_scalars(schema) for schema in schemas]
    if not per_schema:
        return {}
    return {
        name: dtype
        for name, dtype in per_schema[0].items()
        if all(scalars.get(name) == dtype for scalars in per_schema[1:])
    }


def _scalars(schema: Schema) -> dict[str, np.dtype[Any]]:
    scalars = {}
    sizes = schema.sizes or (None,) * len(schema.names)
    is_mds = schema.format == "mds"
    for name, encoding, size in zip(schema.names, schema.encodings, sizes, strict=True):
        try:
            parsed = parse(encoding) if is_mds else own_encoding(_TEXT_DTYPES.get(encoding, ""))
        except ValueError:
            continue  # reading the column reports the error
        is_scalar = parsed.kind == "fixed" and parsed.shape == ()
        has_expected_size = parsed.size == size or not is_mds
        if is_scalar and has_expected_size and parsed.dtype.itemsize <= MAX_SCALAR_BYTES:
            scalars[name] = parsed.dtype.newbyteorder("<")
    return scalars


def record_scalars(data: Bytes, layout: SampleLayout, scalars: Scalars) -> None:
    """Extract scalar columns from MDS samples of a schema without variable columns.

    `scalars` has the arrays for the values.
    """
    for name, values in scalars.items():
        offset = layout.columns[name].offset
        values[:] = np.ndarray(len(values), values.dtype, data, offset, (layout.stride,))


class _PositionMemory:
    """Memory for the positions of columns. The chunks of a shard use it one after the other."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.int64)

    def take(self, rows: int, count: int) -> Int64:
        """Return an array of shape (rows, count), which is valid until the next call."""
        if rows * count > len(self._memory):
            # Chunks of one shard differ by one sample.
            self._memory = huge_empty(rows * (count + 1), np.int64)
        array: Int64 = self._memory[: rows * count].reshape(rows, count)
        return array


def split_samples(
    data: Bytes,
    offsets: Int64,
    layout: SampleLayout,
    scalars: Scalars,
    first: int = 0,
    positions: _PositionMemory | None = None,
) -> ChunkColumns:
    """Return the positions of columns in MDS samples, and extract scalar columns.

    The schema has variable columns, so samples vary in size.

    Parameters
    ----------
    data : ndarray of uint8
    offsets : ndarray of int64, shape (n + 1,)
        First byte of each sample in `data`, ascending, followed by the length of `data`.
    layout : SampleLayout
    scalars : dict of str to ndarray, shape (n,)
        Output: the values of scalar columns.
    first : int
        Row of the first sample in its shard, for messages.
    positions : _PositionMemory, optional
        Memory for the result; by default new memory.

    Raises
    ------
    FormatError
        If the column sizes in a sample do not add up to the sample's length.
    """
    global _samples_in_numpy
    count = len(offsets) - 1
    if not find_columns.is_loaded and _samples_in_numpy < _MAX_NUMPY_SAMPLES:
        _samples_in_numpy += count
        chunk = _split_in_numpy(data, offsets, layout, first)
        for name, values in scalars.items():
            values[:] = _numbers_at(data, chunk.begins[name], values.dtype)
        return chunk
    memory = (positions or _PositionMemory()).take(len(layout.columns) + layout.nvariable, count)
    begins, sizes = memory[: len(layout.columns)], memory[len(layout.columns) :]
    table = np.zeros((len(layout.columns), 3), np.int64)
    for row, (name, column) in zip(table, layout.columns.items(), strict=True):
        row[0] = -1 if column.size is None else column.size
        if name in scalars:
            row[1:] = address_of(scalars[name]), scalars[name].itemsize
    valid = find_columns(address_of(data), offsets, table, layout.fixed_nbytes, begins, sizes)
    if valid < count:
        raise _sizes_error(first + valid)
    variable = [name for name, column in layout.columns.items() if column.size is None]
    begins_by_name = dict(zip(layout.columns, begins, strict=True))
    return ChunkColumns(data, begins_by_name, dict(zip(variable, sizes, strict=True)))


@kernel
def find_columns(
    address: int, offsets: Int64, columns: Int64, fixed_nbytes: int, begins: Int64, sizes: Int64
) -> int:
    """Find the bodies of all columns in MDS samples with variable columns; copy scalar columns.

    Parameters
    ----------
    address : int
        The address of the samples.
    offsets : ndarray of int64, shape (n + 1,)
        The first byte of each sample, and the end of the last one.
    columns : ndarray of int64, shape (columns, 3)
        For each column: its size, or -1 if it varies; the address to which its values are copied;
        and the size of a value there, or 0 if the column is not copied.
    fixed_nbytes : int
        The bytes of all fixed columns in a sample.
    begins : ndarray of int64, shape (columns, n)
        Output: the first byte of each body.
    sizes : ndarray of int64, shape (variable columns, n)
        Output: the size of each body of a variable column.

    Returns
    -------
    int
        The first sample whose sizes do not add up to its length, or n.
    """
    head = 4 * sizes.shape[0]
    for k in range(offsets.size - 1):
        begin, end = offsets[k], offsets[k + 1]
        if end - begin < head + fixed_nbytes:
            return k
        position = begin + head
        variable = 0
        total = head + fixed_nbytes
        for v in range(sizes.shape[0]):
            sizes[v, k] = load_u32(address + begin + 4 * v)
            total += sizes[v, k]
        if total != end - begin:
            return k
        for c in range(columns.shape[0]):
            begins[c, k] = position
            if columns[c, 0] < 0:
                position += sizes[variable, k]
                variable += 1
                continue
            position += columns[c, 0]
            size = columns[c, 2]
            if size:
                copy_short(columns[c, 1] + k * size, address + begins[c, k], size)
    return offsets.size - 1


_samples_in_numpy = 0


def _split_in_numpy(
    data: Bytes, offsets: Int64, layout: SampleLayout, first: int = 0
) -> ChunkColumns:
    begins, lengths = offsets[:-1], np.diff(offsets)
    head_nbytes = 4 * layout.nvariable
    _check_sizes(lengths >= head_nbytes + layout.fixed_nbytes, first)
    sizes = np.stack(
        [_numbers_at(data, begins + 4 * k, np.dtype("<u4")) for k in range(layout.nvariable)]
    ).astype(np.int64)
    _check_sizes(head_nbytes + layout.fixed_nbytes + sizes.sum(axis=0) == lengths, first)
    # Row v has the total size of the first v variable columns of each sample.
    totals = np.concatenate([np.zeros((1, len(begins)), np.int64), np.cumsum(sizes, axis=0)])
    body_begins = {
        name: begins + head_nbytes + column.offset + totals[column.variable_before]
        for name, column in layout.columns.items()
    }
    variable = [name for name, column in layout.columns.items() if column.size is None]
    return ChunkColumns(data, body_begins, dict(zip(variable, sizes, strict=True)))


def record_chunk(data: Bytes, layout: SampleLayout) -> ChunkColumns:
    """Return the positions of columns in MDS samples of a schema without variable columns."""
    begins = np.arange(0, len(data), layout.stride)
    body_begins = {name: begins + column.offset for name, column in layout.columns.items()}
    return ChunkColumns(data, body_begins, {}, layout.stride)


def line_scalars(
    data: bytes,
    offsets: Int64,
    parse_line: Callable[[bytes], Mapping[str, Any]],
    columns: Mapping[str, np.dtype[Any]],
    first: int = 0,
) -> Scalars:
    """Return scalar columns of text samples, parsing each line with `parse_line`.

    The other parameters are those of `split_samples`.

    Raises
    ------
    FormatError
        If a line does not follow the format.
    OverflowError
        If an integer does not fit int64.
    """
    lists = parse_lines(data, offsets, parse_line, first)
    scalars = {}
    for name, dtype in columns.items():
        values = lists.get(name, [])
        if dtype.kind == "i":
            for row, value in enumerate(values, first):
                if not -(2**63) <= value < 2**63:
                    raise OverflowError(
                        f"sample {row}: column {name!r} is beyond int64; leave it out"
                    )
        scalars[name] = np.array(values, dtype)
    return scalars


def parse_lines(
    data: bytes, offsets: Int64, parse_line: Callable[[bytes], Mapping[str, Any]], first: int = 0
) -> dict[str, list[Any]]:
    """Return, for each column, the values that `parse_line` returns for each line.

    Raises
    ------
    FormatError
        If a line does not follow the format.
    """
    lists: dict[str, list[Any]] = {}
    for row, (begin, end) in enumerate(itertools.pairwise(offsets.tolist()), first):
        try:
            values = parse_line(data[begin:end])
        except ValueError as error:
            raise FormatError(f"sample {row}: {error}") from error
        for name, value in values.items():
            lists.setdefault(name, []).append(value)
    return lists


def _check_sizes(is_valid: AnyArray, first: int) -> None:
    if not is_valid.all():
        raise _sizes_error(first + int(is_valid.argmin()))


def _sizes_error(row: int) -> FormatError:
    return FormatError(f"sample {row}: the sizes of its columns do not add up to its length")


def _numbers_at(data: Bytes, offsets: Int64, dtype: np.dtype[Any]) -> AnyArray:
    """Return the numbers at unaligned `offsets`."""
    # A window begins at each byte, except the last bytes: a number there would not be complete.
    windows = np.ndarray(max(len(data) - dtype.itemsize + 1, 0), dtype, data, strides=(1,))
    numbers: AnyArray = windows[offsets]
    return numbers
