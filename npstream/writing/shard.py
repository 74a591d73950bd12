"""Provide the encoding of samples and columns as MDS shards, and the entries of the index.

`ShardFormat` is the interface of a format for a Writer. The text formats are in
`npstream.writing.text`. `npstream.formats.mds` shows the layout of an MDS shard.
"""

from __future__ import annotations

import ctypes
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.array_like import HOW_TO_FILL, is_missing
from npstream._core.memory import address_of, copy_spans_in_python, ensure_fits, huge_empty
from npstream._core.spans import copy_spans, join_columns
from npstream._core.typing import AnyArray, Body, Bytes, Int64
from npstream.errors import ColumnError, MissingDependencyError, short_repr
from npstream.formats.encodings.arrays import DTYPE_CODES, stored_shape
from npstream.formats.hashes import hasher
from npstream.formats.index import Annotations, Schema
from npstream.writing.inputs.bad_value import BadValue

if TYPE_CHECKING:
    from npstream.formats.encodings.encodings import Encoding

__all__ = [
    "MAX_SHARD_BYTES",
    "Bodies",
    "ColumnBlock",
    "FileSummary",
    "MdsFormat",
    "ShardFormat",
    "ShardOptions",
    "StoredFile",
    "bodies_of_rows",
]

MAX_SHARD_BYTES = 2**32 - 1
"""Maximum bytes of a shard, because its offsets are uint32."""

_PIECE_BYTES = 1 << 20
"""Bytes of records that are built at a time, so that they stay in the CPU's cache."""

_MAX_PYTHON_SPANS = 1 << 20
"""Spans that a process copies in Python before it imports Numba: about a third of a second."""

_CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_CODES.items()}


@dataclass(frozen=True, slots=True)
class Bodies:
    """Encoded values of a column, each at its own address.

    Attributes
    ----------
    address, nbytes : ndarray of int64, shape (n,)
        The address and the length of each value.
    owner : object
        The owner of that memory. Keep it alive while the addresses are in use.
    """

    address: Int64
    nbytes: Int64
    owner: object

    @classmethod
    def from_offsets(cls, values: Bytes, offsets: Int64) -> Bodies:
        """Return the rows ``values[offsets[k]:offsets[k + 1]]``."""
        return cls(address_of(values) + offsets[:-1], np.diff(offsets), values)

    @classmethod
    def from_list(cls, bodies: Sequence[bytes]) -> Bodies:
        """Copy bytes objects into one array, and return its rows."""
        values = np.frombuffer(b"".join(bodies), np.uint8)
        return cls.from_offsets(
            values, _offsets(np.fromiter(map(len, bodies), np.int64, len(bodies)))
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Bodies]) -> Bodies:
        """Return the values of several Bodies, without copying them."""
        address = np.concatenate([part.address for part in parts])
        nbytes = np.concatenate([part.nbytes for part in parts])
        return cls(address, nbytes, [part.owner for part in parts])

    def __len__(self) -> int:
        return len(self.address)

    def copy(self, buffer: Bytes | None = None) -> Bytes:
        """Return the encoded values, contiguous.

        Parameters
        ----------
        buffer : ndarray of uint8, optional
            Memory for the values; by default new memory.
        """
        ends = _offsets(self.nbytes)
        total = int(ends[-1])
        if buffer is None:
            ensure_fits(total, f"{quantity(len(self), 'value')} that are copied at once")
            buffer = huge_empty(total, np.uint8)
        data: Bytes = buffer[:total]
        _copy_spans(self.address, self.nbytes, ends[:-1], address_of(data))
        return data

    def part(self, start: int, stop: int) -> Bodies:
        """Return some of the values, without copying them."""
        return Bodies(self.address[start:stop], self.nbytes[start:stop], self.owner)

    def to_list(self) -> list[bytes]:
        """Return the encoded values as bytes objects."""
        spans = zip(self.address.tolist(), self.nbytes.tolist(), strict=True)
        return [ctypes.string_at(address, nbytes) for address, nbytes in spans]


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """The settings of all files of a dataset.

    Attributes
    ----------
    size_limit : int or None
        Maximum bytes of a shard of several samples; None for the format's limit.
    compression : str or None
        The codec of the stored files.
    hashes : sequence of str
        The hashes that the index records of every file.
    """

    size_limit: int | None = None
    compression: str | None = None
    hashes: Sequence[str] = ()


ColumnBlock: TypeAlias = "AnyArray | Bodies | Sequence[Any]"
"""Rows of a column: an array of its dtype and shape, encoded values, or values to encode."""


class ShardFormat(ABC):
    """The format, columns and settings that all shards of a dataset share.

    Parameters
    ----------
    name : str
        The format's name in the index.
    columns : mapping of str to Encoding
        The columns, in the caller's order.
    options : ShardOptions
        The settings of the files.
    encode_value : callable
        Takes an encoding, and returns the function that encodes a value to a part of a sample.

    Attributes
    ----------
    columns : dict of str to Encoding
        The columns in stored order, sorted by name.
    annotations : Annotations
        Facts about the columns that the index records in addition to their encodings.
    options : ShardOptions
        The parameter.
    size_limit : int or None
        Maximum bytes of a shard of several samples; None for the format's limit.
    compression : str or None
        The codec of the stored files.
    hashes : list of str
        The hashes that the index records of every file, sorted.
    schema : Schema
        The columns, as the index records them.
    sample_bytes : int
        Bytes that a shard stores for each sample in addition to the sample's own bytes.
    empty_bytes : int
        Bytes of an empty shard, as the size limit counts them.
    uncounted_bytes : int
        Bytes before the samples that do not count toward the size limit.
    min_sample_bytes : int
        Minimum bytes that a sample adds to a shard.
    encoders : dict of str to callable
        The function that encodes a value of each column.
    inferred : bool
        Whether the encodings were inferred. If True, values of type `bytes` are encoded like all
        others. If False, they are stored as they are, because a caller may pass encoded values.
    has_fast_encoder : bool
        Whether `npstream.writing.rows.compile_encoder` supports this format.
    """

    schema: Schema
    sample_bytes = 0
    empty_bytes = 0
    uncounted_bytes = 0
    min_sample_bytes = 1
    inferred = False
    has_fast_encoder = False

    def __init__(
        self,
        name: str,
        columns: Mapping[str, Encoding],
        options: ShardOptions,
        encode_value: Callable[[Encoding], Callable[[Any], Any]],
    ) -> None:
        self.columns = {name: columns[name] for name in sorted(columns)}
        dtypes = {name: e.annotated_dtype for name, e in self.columns.items() if e.annotated_dtype}
        order = tuple(columns)
        self.annotations = Annotations(dtypes, () if order == tuple(self.columns) else order)
        self.options = options
        self.size_limit = options.size_limit
        self.compression = options.compression
        self.hashes = sorted(set(options.hashes))
        self._name = name
        self._entry: dict[str, Any] = {
            "compression": self.compression,
            "format": name,
            "hashes": self.hashes,
            "size_limit": self.size_limit,
            "version": 2,
        }
        self.encoders = {name: encode_value(e) for name, e in self.columns.items()}

    @property
    def columns_in_order(self) -> dict[str, Encoding]:
        """The columns, in the caller's order."""
        return {name: self.columns[name] for name in self.annotations.order or self.columns}

    @property
    def has_fixed_size(self) -> bool:
        """Whether all samples have the same size, so that `records` can write whole arrays."""
        return False

    @property
    def empty_schema(self) -> Schema:
        """The MDS schema that an index without shards records."""
        return self.schema

    @abstractmethod
    def encode(self, sample: Mapping[str, Any], number: int) -> bytes:
        """Return the bytes of a sample; `number` is for messages."""

    @abstractmethod
    def pack(self, columns: Mapping[str, ColumnBlock], number: int) -> tuple[Bytes, Int64]:
        """Join columns to encoded samples.

        Parameters
        ----------
        columns : mapping of str to ndarray, Bodies or sequence
            All columns, in any order: arrays, encoded values, or values to encode.
        number : int
            The number of the first sample, for messages.

        Returns
        -------
        data : ndarray of uint8
            The encoded samples, contiguous.
        nbytes : ndarray of int64, shape (n,)
            The size of each sample in bytes.
        """

    @abstractmethod
    def head(self, ends: Int64) -> Body:
        """Return the bytes before the first sample. Sample k ends ``ends[k]`` bytes after these."""

    def meta(self, ends: Int64) -> bytes | None:
        """Return the content of the shard's meta file; None if the format has none."""
        return None

    def records(
        self,
        blocks: Iterable[Mapping[str, AnyArray]],
        count: int,
        allocate: Callable[[int], memoryview] | None = None,
    ) -> Iterator[Body]:
        """Yield the pieces of a shard of `count` samples, if `has_fixed_size` is True.

        Parameters
        ----------
        blocks : iterable of mapping of str to ndarray
            Each has some rows of all columns.
        count : int
            The number of samples of all blocks.
        allocate : callable, optional
            Returns writable memory for the next piece. Its argument is the maximum number of bytes.
            The memory may be shorter, but holds whole samples. By default each piece overwrites the
            one before; the array of a single column is not copied.
        """
        raise TypeError(f"samples of format {self._name!r} have no fixed size")

    def bodies(self, name: str, values: Iterable[Any], number: int) -> list[Any]:
        """Encode values of a column one by one; `number` is the first sample's, for messages."""
        encode, bodies = self.encoders[name], []
        for value in values:
            try:
                bodies.append(encode(value))
            except (MemoryError, MissingDependencyError):
                raise
            except Exception as error:
                raise self.encode_error({name: value}, name, number + len(bodies), error) from error
        return bodies

    def encode_error(
        self, sample: Mapping[str, Any], name: str, number: int, error: Exception
    ) -> Exception:
        """Return `error` as an exception that names the sample, the column and the value."""
        if name not in sample:
            return ColumnError(name, map(str, sample), f"sample {number}: ")
        value = sample[name]
        if isinstance(value, BadValue):
            return ValueError(f"sample {number}: column {name!r}: {value.reason}")
        kind = TypeError if isinstance(error, TypeError) else ValueError
        is_null = is_missing(value) or (isinstance(value, float) and value != value)
        description = type(value).__name__
        if isinstance(value, str | int | float | np.number):
            with suppress(ValueError):  # Python does not format an integer of more than 4300 digits
                description += f" {short_repr(value)}"
        return kind(
            f"sample {number}: column {name!r} is {self.columns[name].name!r} and cannot take "
            f"this {description}: {error}" + (f"; {HOW_TO_FILL}" if is_null else "")
        )

    @property
    def max_bytes(self) -> int:
        """Maximum bytes of a shard of several samples, as the size limit counts them."""
        limit = MAX_SHARD_BYTES - self.uncounted_bytes
        return min(self.size_limit or limit, limit)

    def check_end(self, nbytes: int, number: int) -> None:
        """Raise ValueError if a shard of `nbytes` is too long; sample `number` is its last."""
        if nbytes + self.uncounted_bytes > MAX_SHARD_BYTES:
            raise self._too_long(nbytes + self.uncounted_bytes, number)

    def check_ends(self, ends: Int64, number: int) -> None:
        """Raise ValueError if a shard is too long; sample `number + k` ends at ``ends[k]``."""
        if (is_too_long := ends + self.uncounted_bytes > MAX_SHARD_BYTES).any():
            row = int(is_too_long.argmax())
            self.check_end(int(ends[row]), number + row)

    def _too_long(self, nbytes: int, number: int) -> ValueError:
        fix = "split the sample" if self.size_limit else "set shard_size to less than 4 GiB"
        return ValueError(
            f"with sample {number} a shard would have {quantity(nbytes, 'byte')}, but its offsets "
            f"are uint32 and end at {MAX_SHARD_BYTES}: {fix}"
        )

    def name(self, number: int, write_id: str = "") -> str:
        """Return the name of a shard's file; `write_id` makes it unique among writes."""
        return f"shard.{write_id}{number:05}.{self._name}"

    def entry(self, samples: int, data: StoredFile, meta: StoredFile | None) -> dict[str, Any]:
        """Return the entry of a shard and its files in the index."""
        return self._entry | {"samples": samples} | data.entry("data")


class MdsFormat(ShardFormat):
    """The format of MDS shards.

    Parameters
    ----------
    columns : mapping of str to Encoding
        The columns, in the caller's order.
    options : ShardOptions
        The settings of the files.
    inferred : bool
        Whether the encodings were inferred, as in `ShardFormat`.
    """

    sample_bytes = 4
    has_fast_encoder = True

    def __init__(
        self, columns: Mapping[str, Encoding], options: ShardOptions, *, inferred: bool = False
    ) -> None:
        def encoder(encoding: Encoding) -> Callable[[Any], Any]:
            return encoding.encode_value if inferred else encoding.encode

        super().__init__("mds", columns, options, encoder)
        self.inferred = inferred
        sizes = [encoding.size for encoding in self.columns.values()]
        encodings = [encoding.stored_name for encoding in self.columns.values()]
        self.schema = Schema("mds", tuple(self.columns), tuple(encodings), tuple(sizes))
        self._entry |= {
            "column_encodings": encodings,
            "column_names": list(self.columns),
            "column_sizes": sizes,
        }
        self._configuration = json.dumps(self._entry, sort_keys=True).encode()
        self._plan = [
            (name, self.encoders[name], sizes[k] is None) for k, name in enumerate(self.columns)
        ]
        self._sizes = struct.Struct(f"<{sizes.count(None)}I")
        self.empty_bytes = 8 + len(self._configuration)
        self.min_sample_bytes = 4 + sum(4 if size is None else size for size in sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), inferred=self.inferred), (self.columns_in_order, self.options)

    @property
    def has_fixed_size(self) -> bool:
        """Whether all columns are fixed."""
        return all(encoding.kind == "fixed" for encoding in self.columns.values())

    def encode(self, sample: Mapping[str, Any], number: int) -> bytes:
        """Return the bytes of a sample; `number` is for messages."""
        sizes, bodies = [], [b""]
        for name, encode, varies in self._plan:
            try:
                body = encode(sample[name])
            except (MemoryError, MissingDependencyError):
                raise
            except Exception as error:
                raise self.encode_error(sample, name, number, error) from error
            bodies.append(body)
            if varies:
                sizes.append(len(body))
        try:
            bodies[0] = self._sizes.pack(*sizes)
        except struct.error:
            raise self._too_long(max(sizes), number) from None
        return b"".join(bodies)

    def pack(self, columns: Mapping[str, ColumnBlock], number: int) -> tuple[Bytes, Int64]:
        """Join columns to encoded samples; only columns of fixed size may be arrays."""
        parts: list[AnyArray | Bodies | list[bytes]] = []
        for name in self.columns:
            part = columns[name]
            if not isinstance(part, np.ndarray | Bodies):
                part = self.bodies(name, part, number)
            parts.append(part)
        varies = [encoding.size is None for encoding in self.columns.values()]
        nbytes = self._sample_sizes(parts)
        if len(nbytes) and (largest := int(nbytes.max())) > MAX_SHARD_BYTES:
            raise self._too_long(largest, number + int(nbytes.argmax()))
        total = int(nbytes.sum())
        ensure_fits(total, f"{quantity(len(nbytes), 'sample')} that are written at once")
        # Until this process has imported Numba, Python joins arrays and lists. It also copies the
        # first spans.
        has_bodies = any(isinstance(part, Bodies) for part in parts)
        if not has_bodies and not copy_spans.is_loaded:
            return _join_in_python(_with_sizes(parts, varies)), nbytes
        data: Bytes = huge_empty(total, np.uint8)
        if join_columns.is_loaded or _spans_in_python > _MAX_PYTHON_SPANS:
            _join_columns(parts, varies, address_of(data))
            return data, nbytes
        offsets = _offsets(nbytes)[:-1]
        for part in _with_sizes(parts, varies):
            spans = _as_bodies(part)
            _copy_spans(spans.address, spans.nbytes, offsets, address_of(data))
            offsets = offsets + spans.nbytes
        return data, nbytes

    def _sample_sizes(self, parts: Sequence[AnyArray | Bodies | list[bytes]]) -> Int64:
        """Return the bytes of each sample, given its encoded columns."""
        sizes = [encoding.size for encoding in self.columns.values()]
        fixed = sum(
            4 if size is None else size
            for part, size in zip(parts, sizes, strict=True)
            if size is None or isinstance(part, np.ndarray)
        )
        nbytes: Int64 = np.full(len(parts[0]), fixed, np.int64)
        for part in parts:
            if not isinstance(part, np.ndarray):
                nbytes += _sizes(part)
        return nbytes

    def head(self, ends: Int64) -> Body:
        """Return the offsets and the configuration."""
        begin = self.empty_bytes + 4 * len(ends)
        head = memoryview(bytearray(begin))
        words = np.frombuffer(head, "<u4", len(ends) + 2)
        words[:2] = len(ends), begin
        np.add(ends, begin, out=words[2:], casting="unsafe")
        head[words.nbytes :] = self._configuration
        return head

    def records(
        self,
        blocks: Iterable[Mapping[str, AnyArray]],
        count: int,
        allocate: Callable[[int], memoryview] | None = None,
    ) -> Iterator[Body]:
        """Yield the pieces of a shard of `count` samples; all columns are fixed."""
        record = np.dtype(
            [("", e.dtype.newbyteorder("<"), e.shape or ()) for e in self.columns.values()]
        )
        yield self.head(record.itemsize * np.arange(1, count + 1))
        if allocate is None and len(self.columns) == 1:
            for block in blocks:
                yield _stored_form(block[self.schema.names[0]]).reshape(-1).view(np.uint8).data
            return
        step = max(1, _PIECE_BYTES // record.itemsize)
        buffer = memoryview(bytearray(0 if allocate else min(step, count) * record.itemsize))
        for block in blocks:
            columns = [block[name] for name in self.columns]
            start, stop = 0, len(columns[0])
            while start < stop:
                nbytes = min(step, stop - start) * record.itemsize
                memory = allocate(nbytes) if allocate else buffer[:nbytes]
                piece = np.frombuffer(memory, record)
                for name, column in zip(record.names or (), columns, strict=True):
                    piece[name] = column[start : start + len(piece)]
                start += len(piece)
                yield memory


class FileSummary:
    """The size and hashes of a file, which `tee` computes from its pieces."""

    def __init__(self, name: str, hashes: Iterable[str]) -> None:
        self.name = name
        self.nbytes = 0
        self._hashers = {algorithm: hasher(algorithm) for algorithm in hashes}

    def tee(self, pieces: Iterable[Body]) -> Iterator[Body]:
        """Yield the pieces of the file, and add them to the size and the hashes."""
        for piece in pieces:
            self.nbytes += len(piece)
            for file_hasher in self._hashers.values():
                file_hasher.update(piece)
            yield piece

    def entry(self) -> dict[str, Any]:
        """Return the file's entry in the index."""
        hashes = {name: file_hasher.hexdigest() for name, file_hasher in self._hashers.items()}
        return {"basename": self.name, "bytes": self.nbytes, "hashes": hashes}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a shard, and the compressed file that replaces it, if there is one."""

    raw: FileSummary
    zipped: FileSummary | None = None

    def entry(self, kind: str) -> dict[str, Any]:
        """Return the index entries of both files; `kind` is ``"data"`` or ``"meta"``."""
        return {f"raw_{kind}": self.raw.entry(), f"zip_{kind}": self.zipped and self.zipped.entry()}


def _offsets(nbytes: Int64) -> Int64:
    """Return the offsets of contiguous spans of `nbytes`, shape (n + 1,)."""
    ends = np.zeros(len(nbytes) + 1, np.int64)
    np.cumsum(nbytes, out=ends[1:])
    return ends


def _sizes(part: Bodies | list[bytes]) -> Int64:
    """Return the bytes of each encoded value."""
    if isinstance(part, Bodies):
        return part.nbytes
    return np.fromiter(map(len, part), np.int64, len(part))


def _with_sizes(
    parts: Sequence[AnyArray | Bodies | list[bytes]], varies: Sequence[bool]
) -> list[AnyArray | Bodies | list[bytes]]:
    """Insert the sizes of values of variable size, which are the beginning of a sample."""
    columns = zip(parts, varies, strict=True)
    sizes = [_sizes(part) for part, is_variable in columns if is_variable]  # type: ignore[arg-type]
    return [np.stack(sizes, axis=1).astype("<u4"), *parts] if sizes else list(parts)


def _stored_form(array: AnyArray) -> AnyArray:
    """Return an array in stored form: little-endian and C-contiguous."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _join_in_python(parts: Sequence[AnyArray | Bodies | list[bytes]]) -> Bytes:
    """Join arrays and lists of bytes objects to contiguous rows, in Python."""
    columns: list[list[bytes]] = []
    for part in parts:
        if isinstance(part, np.ndarray):
            size = part.itemsize * prod(part.shape[1:])
            columns.append(_stored_form(part).reshape(-1).view(f"V{size}").tolist())
        elif isinstance(part, list):
            columns.append(part)
    return np.frombuffer(b"".join(chain.from_iterable(zip(*columns, strict=True))), np.uint8)


def _as_bodies(part: AnyArray | Bodies | list[bytes]) -> Bodies:
    """Return the rows of an array, or bytes objects, by their addresses."""
    if isinstance(part, Bodies):
        return part
    if isinstance(part, list):
        return Bodies.from_list(part)
    values = _stored_form(part)
    size = values.itemsize * prod(values.shape[1:])
    offsets = size * np.arange(len(values), dtype=np.int64)
    return Bodies(address_of(values) + offsets, np.full(len(values), size, np.int64), values)


def _join_columns(
    parts: Sequence[AnyArray | Bodies | list[bytes]], varies: Sequence[bool], destination: int
) -> None:
    """Write the contiguous rows of all columns to the address `destination`."""
    columns = np.zeros((len(parts), 3), np.int64)  # `join_columns` describes the layout
    owners: list[object] = []  # keep the memory alive
    for column, part, is_variable in zip(columns, parts, varies, strict=True):
        if isinstance(part, np.ndarray):
            values = _stored_form(part)
            column[:] = -1, address_of(values), values.itemsize * prod(values.shape[1:])
            owners.append(values)
        else:
            bodies = _as_bodies(part)
            spans = [np.ascontiguousarray(a, np.int64) for a in (bodies.address, bodies.nbytes)]
            column[:] = is_variable, *map(address_of, spans)
            owners += [bodies, *spans]
    join_columns(len(parts[0]), columns, destination)


def _copy_spans(address: Int64, nbytes: Int64, offsets: Int64, destination: int) -> None:
    """Copy span k to ``destination + offsets[k]``.

    Python copies the first spans of a process, so that small writes do not wait to import Numba.
    """
    global _spans_in_python
    if copy_spans.is_loaded or _spans_in_python > _MAX_PYTHON_SPANS:
        copy_spans(address, nbytes, offsets, destination)
    else:
        _spans_in_python += len(address)
        copy_spans_in_python(address, nbytes, offsets, destination)


_spans_in_python = 0


def bodies_of_rows(
    elements: AnyArray,
    offsets: Int64,
    shapes: Int64 | None,
    encoding: Encoding,
    first: int = 0,
) -> Bodies:
    """Encode consecutive parts of an array as arrays of equal rank.

    Each encoded array is a head and then its elements.

    Parameters
    ----------
    elements : ndarray, 1-d
        Its dtype is the encoding's. If the encoding is ``"ndarray"``, any dtype with a code.
    offsets : ndarray of int64, shape (n + 1,)
        Row k is ``elements[offsets[k]:offsets[k + 1]]``.
    shapes : ndarray of int64, shape (n, ndim), optional
        The shape of each row; by default rows are 1-d.
    encoding : Encoding
        ``"ndarray"``, or one with a dtype and no shape.
    first : int
        The number of the first row, for messages.

    Raises
    ------
    ValueError
        If a row has no elements, or the encoding cannot store the dtype.
    """
    lengths = np.diff(offsets)
    shapes = lengths[:, None] if shapes is None else shapes
    if len(lengths) and not lengths.min():
        row = int(lengths.argmin())
        shape = tuple(shapes[row].tolist())
        raise ValueError(
            f"row {first + row}: cannot store an array of shape {shape}: it must have an element"
        )
    dtype = elements.dtype.newbyteorder("=")
    code = b""
    if encoding.dtype == object:
        if dtype not in _CODE_OF_DTYPE:
            raise ValueError(f"an 'ndarray' column cannot store {dtype}: choose 'ndarray:{dtype}'")
        code = bytes([_CODE_OF_DTYPE[dtype]])
    elif encoding.dtype != dtype:
        raise ValueError(f"expected arrays of dtype {encoding.dtype}, got {dtype}")
    # Some dtypes, such as complex ones, are stored with an additional axis.
    dtype_axes = np.array([stored_shape(dtype, ())], np.int64)
    shapes = np.hstack([shapes, np.repeat(dtype_axes, len(shapes), axis=0)])
    largest = shapes.max(axis=1, initial=0)
    widths = np.searchsorted([1 << 8, 1 << 16, 1 << 32], largest, side="right")  # log2 of bytes
    head_bytes = len(code) + 1 + (shapes.shape[1] << widths)
    ends = _offsets(head_bytes + lengths * dtype.itemsize)
    data: Bytes = np.empty(int(ends[-1]), np.uint8)
    elements = np.ascontiguousarray(elements, dtype.newbyteorder("<"))
    addresses = address_of(elements) + offsets[:-1] * dtype.itemsize
    target = address_of(data)
    _copy_spans(addresses, lengths * dtype.itemsize, ends[:-1] + head_bytes, target)
    # A head is the dtype's code, a byte for the number of axes and the width, and the shape.
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        prefix = np.array([*code, shapes.shape[1] << 2 | width], np.uint8)
        shape_bytes = shapes[rows].astype(f"<u{1 << width}").view(np.uint8).reshape(len(rows), -1)
        encoded_heads = np.hstack([np.tile(prefix, (len(rows), 1)), shape_bytes])
        size = encoded_heads.shape[1]
        spans = address_of(encoded_heads) + size * np.arange(len(rows))
        _copy_spans(spans, np.full(len(rows), size, np.int64), ends[rows], target)
    return Bodies.from_offsets(data, ends)
