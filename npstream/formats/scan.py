"""What reading a shard as a whole tells: hashes of its pieces, and its scalar columns.

Tested in tests/tools/test_index_builder.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream._core.typing import AnyArray, Body, Bytes, Int64
from npstream.errors import FormatError
from npstream.formats import chunks, mds, text
from npstream.formats.chunks import chunk_counts, piece_bounds, piece_rows
from npstream.formats.encodings.encodings import parse
from npstream.formats.sidecar.blocks import xxh3

if TYPE_CHECKING:
    from npstream.formats.index import Schema
    from npstream.formats.mds import SampleLayout


@dataclass(frozen=True, slots=True)
class Scanned:
    """What was found in a shard.

    Attributes
    ----------
    begin : int
        Where its samples begin.
    pieces : ndarray of uint64
        The hash of each piece of its data file.
    meta : int
        The hash of its meta file; 0 if it has none.
    columns : dict of str to ndarray
        The values of the scalar columns that were asked for.
    """

    begin: int
    pieces: NDArray[np.uint64]
    meta: int
    columns: dict[str, AnyArray]


Scalars = dict[str, AnyArray]

MOST = 8
"""Bytes of the largest scalars."""

_TEXT = {"int": "int64", "float": "float64"}

_BUFFER = 1 << 23
"""Bytes that are allocated for pieces, of which most have half as many."""

Take = Callable[[memoryview, Int64, int], dict[str, AnyArray]]
"""Takes columns out of consecutive samples: their bytes, where each begins in
them, and the number of the first."""


class Scan:
    """A shard that is being read, from its first byte on; one piece at a time is in memory.

    Parameters
    ----------
    schema : Schema
    samples : int
        How many the index says there are.
    columns : mapping of str to dtype
        The scalar columns to take out.
    whole : bool
        Whether the shard is one chunk, being stored compressed.
    nbytes : int, optional
        The bytes that the index says there are; by default those that the shard itself says.
    meta : bytes, optional
        The meta file of a text shard.
    every : bool
        Whether to parse all columns of a text shard, not only those that are wanted.

    Raises
    ------
    FormatError
        From its methods, if the shard does not follow the format.
    """

    def __init__(
        self,
        schema: Schema,
        samples: int,
        columns: Mapping[str, np.dtype[Any]],
        *,
        whole: bool,
        nbytes: int | None = None,
        meta: bytes | None = None,
        every: bool = False,
    ) -> None:
        self._steps = _steps(schema, samples, dict(columns), whole, nbytes, meta, every)
        self._need = next(self._steps)
        self._buffer = bytearray()
        self._filled = 0
        self._total = 0
        self._found: Scanned | None = None

    def watch(self, parts: Iterable[Body]) -> Iterator[Body]:
        """Yield the parts of a shard, and take note of them."""
        for part in parts:
            self.feed(part)
            yield part

    def feed(self, body: Body) -> None:
        """Take the next bytes."""
        rest = memoryview(body)
        self._total += len(rest)
        while self._found is None:
            count = min(len(rest), self._need - self._filled)
            self._make_room(self._filled + count)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled, rest = self._filled + count, rest[count:]
            if self._filled < self._need:
                return
            try:
                self._need = self._steps.send(memoryview(self._buffer)[: self._need])
            except StopIteration as stop:
                self._found = stop.value
            self._filled = 0
        self._filled += len(rest)

    def _make_room(self, nbytes: int) -> None:
        """Enlarge the buffer: an index may say that a piece has more bytes than there are."""
        if nbytes > len(self._buffer):
            size = min(self._need, max(2 * nbytes, _BUFFER))
            ensure_fits(size, "a piece of a shard")
            old, self._buffer = self._buffer, bytearray(size)  # somebody may look at the old one
            self._buffer[: self._filled] = old[: self._filled]

    def finish(self) -> Scanned:
        """Return what was found, after the last byte."""
        self.feed(b"")  # the last pieces may be empty
        if self._found is None:
            raise FormatError(f"it ends after {quantity(self._total, 'byte')}, within a piece")
        if self._filled:
            raise FormatError(
                f"{self._filled:,} of {quantity(self._total, 'byte')} came after its end"
            )
        return self._found


def _steps(
    schema: Schema,
    samples: int,
    columns: dict[str, np.dtype[Any]],
    whole: bool,
    nbytes: int | None,
    meta: bytes | None,
    every: bool,
) -> Generator[int, memoryview, Scanned]:
    """Yield how many bytes come next, and be sent those, in a buffer that is used again."""
    layout = mds.layout(schema) if schema.format == "mds" else None
    stride = layout.stride if layout else 0
    first = b"" if meta is not None else bytes((yield 4 * (samples + 2)))
    words = np.frombuffer(first if meta is None else _words(meta, samples), "<u4")
    begin = int(words[1])
    end = nbytes if nbytes is not None else int(words[-1])
    if not len(first) <= begin <= end:
        raise FormatError(f"samples begin at byte {begin}; expected {len(first)} to {end}")
    head = first + (yield begin - len(first))
    if layout is not None:
        mds.samples_begin(schema, np.frombuffer(head, np.uint8), samples, stride, end)
    else:
        told = np.frombuffer(meta or b"", np.uint8)
        text.lines_begin(schema, np.frombuffer(head, np.uint8), told, samples, end)
    (count,) = chunk_counts(
        np.array([samples]), np.array([end]), np.array([whole]), chunks.CHUNK_BYTES
    ).tolist()
    rows = piece_rows(samples, count)
    bounds = piece_bounds(rows, begin, end, None if stride else words[1:]).tolist()
    take = _taker(schema, columns, every)
    hashes, found = [xxh3(head)], [{name: np.empty(0, t) for name, t in columns.items()}]
    for chunk in range(count):
        data = yield bounds[chunk + 2] - bounds[chunk + 1]
        hashes.append(xxh3(data))
        if samples and (columns or not stride):
            offsets = words[1:][rows[chunk] : rows[chunk + 1] + 1].astype(np.int64)
            found.append(take(data, offsets - offsets[0], int(rows[chunk])))
    values = {name: np.concatenate([part[name] for part in found]) for name in columns}
    return Scanned(begin, np.array(hashes, np.uint64), xxh3(meta) if meta else 0, values)


def _words(meta: bytes, samples: int) -> bytes:
    if len(meta) < 4 * (samples + 2):
        raise FormatError(
            f"{quantity(len(meta), 'byte')} of meta; the head of {quantity(samples, 'sample')} "
            f"takes {4 * (samples + 2)}"
        )
    return meta[: 4 * (samples + 2)]


def _taker(schema: Schema, columns: dict[str, np.dtype[Any]], every: bool) -> Take:
    """Return what takes the columns out of samples of a schema."""
    if schema.format != "mds":
        names = schema.names if every else tuple(columns)
        if not names:
            return lambda data, offsets, first: {}
        parse = text.parser(schema, names)
        return lambda data, offsets, first: line_scalars(
            bytes(data), offsets, parse, columns, first
        )
    layout = mds.layout(schema)

    def take(data: memoryview, offsets: Int64, first: int) -> dict[str, AnyArray]:
        body: Bytes = np.frombuffer(data, np.uint8)
        if layout.stride:
            return record_scalars(body, layout, columns)
        return sample_scalars(body, offsets, layout, columns, first)

    return take


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


def record_scalars(
    data: Bytes, layout: SampleLayout, columns: Mapping[str, np.dtype[Any]]
) -> Scalars:
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
    layout: SampleLayout,
    columns: Mapping[str, np.dtype[Any]],
    first: int = 0,
) -> Scalars:
    """Return columns of MDS samples whose sizes vary; the sizes of all columns are checked.

    Parameters
    ----------
    data : ndarray of uint8
    offsets : ndarray of int64, shape (n + 1,)
        Where each sample begins in `data`, ascending; the last ends where `data` end.
    layout : SampleLayout
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
