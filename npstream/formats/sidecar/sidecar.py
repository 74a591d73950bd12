"""The side-car of a dataset, ``index.msgpack``: index arrays, hashes and statistics.

`npstream.formats.sidecar.container` defines the container format. The sections of
`npstream.formats.sidecar.catalog` list the shards' files. The other sections hold one number for
each shard, except ``pieces``, ``statistics`` and ``column/NAME``:

    samples, bytes, schema    number of samples, uncompressed bytes, and position of the schema in
                              the table's list of schemas
    begins                    offset of the first sample in the uncompressed data file
    pieces                    hash of each piece (`npstream.formats.chunks`) of the uncompressed
                              data files, ordered by shard
    metas                     hash of the uncompressed meta file
    statistics                msgpack of the statistics of all columns, over all shards
    min/NAME, max/NAME        bounds of a scalar column's values
    column/NAME               hash of each block of the values in ``index.columns``

Values and bounds are those of the stored dtype, such as uint8 for a bool. The table holds a copy of
the index's annotations, if there are any. Like an index, a side-car is untrusted input.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.typing import AnyArray, Body, Int64
from npstream.errors import ColumnError, FormatError
from npstream.formats import chunks
from npstream.formats.chunks import chunk_counts
from npstream.formats.index import (
    ANNOTATIONS_KEY,
    FORMAT_KEYS,
    MAX_FILE_BYTES,
    Index,
    Schema,
    ShardArrays,
    check_schema,
    parse_annotations,
)
from npstream.formats.sidecar.blocks import HASH_BLOCK, BlockArray, RangeReader, xxh3
from npstream.formats.sidecar.catalog import SidecarCatalog, catalog_sections, smallest_uint
from npstream.formats.sidecar.container import Sections, encode_sections
from npstream.formats.versions import SIDECAR_FILE

if TYPE_CHECKING:
    from npstream.formats.statistics import ColumnStatistics

END_BYTES = 1 << 16
"""Bytes at each end of ``index.json`` that are hashed to match a side-car with its index."""

NPY_HEADER_BYTES = 128
"""Bytes of the header in the ``.npy`` files that npstream writes."""

_COLUMN_FILE = re.compile(r"index\.columns/[^/\\\0\ud800-\udfff]+\.npy")


@dataclass(frozen=True, slots=True)
class IndexDigest:
    """A digest that distinguishes versions of ``index.json``, computed from parts of the file.

    ``ends_hash`` is the hash of the first and last `END_BYTES` bytes. ``version`` is the store's
    version of the file, such as an ETag. ``origin`` is the hash of the store's URL: versions are
    comparable only within one store. ``version`` and ``origin`` may be empty.
    """

    nbytes: int
    ends_hash: bytes
    version: str = ""
    origin: str = ""

    def matches(self, other: IndexDigest) -> bool:
        """Return True unless the digests show that the two indexes differ.

        Examples
        --------
        >>> digest = digest_index(b"[1]")
        >>> digest.matches(digest_index(b"[1]")), digest.matches(digest_index(b"[2]"))
        (True, False)
        """
        if (self.nbytes, self.ends_hash) != (other.nbytes, other.ends_hash):
            return False
        is_comparable = self.version and other.version and self.origin == other.origin
        return not is_comparable or _is_same_version(self.version, other.version)


def _is_same_version(version: str, other: str) -> bool:
    """Return True if two version texts are the same, or differ only by an upload time.

    A version of an object in Google's storage is ``size:generation``. Earlier versions of npstream
    appended the time of the upload, after another colon.
    """
    short, long = sorted((version, other), key=len)
    return long == short or (short.count(":") == 1 and long.startswith(f"{short}:"))


def digest_index_ends(
    nbytes: int, head: bytes, tail: bytes, version: str = "", url: str = ""
) -> IndexDigest:
    """Return the digest of an index from its first and last `END_BYTES` bytes."""
    import xxhash

    origin = f"{xxh3(url.encode()):016x}" if url else ""
    return IndexDigest(nbytes, xxhash.xxh3_128_digest(head + tail), version, origin)


def digest_index(text: bytes, version: str = "", url: str = "") -> IndexDigest:
    """Return the digest of an index from its whole content."""
    return digest_index_ends(len(text), text[:END_BYTES], text[-END_BYTES:], version, url)


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """A scalar column whose values are in a ``.npy`` file next to the side-car."""

    name: str
    dtype: np.dtype[Any]
    file: str


def encode_sidecar(
    index: Index,
    digest: IndexDigest,
    columns: Sequence[ColumnFile],
    sections: Mapping[str, AnyArray],
) -> Iterator[Body]:
    """Yield the parts of a side-car.

    Parameters
    ----------
    index : Index
        The index of the dataset.
    digest : IndexDigest
        The digest of ``index.json``.
    columns : sequence of ColumnFile
        The scalar columns whose values are in column files.
    sections : mapping of str to ndarray
        Sections in addition to those that follow from `index`.
    """
    entries, files = catalog_sections(index)
    entries |= {
        "index": [digest.nbytes, digest.ends_hash, digest.version, digest.origin],
        "shards": len(index),
        "samples": index.samples,
        "chunk_bytes": chunks.CHUNK_BYTES,
        "fingerprint": index.fingerprint(),
        "schemas": [
            [s.format, s.names, s.encodings, s.sizes, s.newline, s.separator] for s in index.schemas
        ],
        "columns": [[column.name, column.dtype.str, column.file] for column in columns],
    }
    if index.annotations:
        entries[ANNOTATIONS_KEY] = index.annotations.to_document()
    arrays = {
        "samples": smallest_uint(np.diff(index.starts)),
        "bytes": smallest_uint(index.nbytes),
        "schema": smallest_uint(index.schema_ids),
    }
    # The statistics come first: opening a side-car reads its first bytes, which then often contain
    # the statistics.
    first = {name: array for name, array in sections.items() if name == "statistics"}
    return encode_sections(entries, first | arrays | files | dict(sections))


class Sidecar:
    """An opened side-car; its arrays are read on demand.

    Parameters
    ----------
    store : RangeReader
        The store of the side-car and its column files.
    name : str
        The name of the file.

    Attributes
    ----------
    name : str
        The name of the file.
    index_digest : IndexDigest
        The digest of the ``index.json`` from which the side-car was built.
    shards, samples : int
        Numbers of shards and samples.
    columns : dict of str to ColumnFile
        The scalar columns with values in column files, and with bounds for each shard.
    has_hashes : bool
        Whether the side-car holds the hashes of pieces and the offsets of first samples.

    Raises
    ------
    FormatError
        If the file is not a side-car, or is damaged.
    StorageError
        If the file cannot be read or does not exist.
    """

    def __init__(self, store: RangeReader, name: str = SIDECAR_FILE) -> None:
        self.store, self.name = store, name
        self._sections = sections = Sections(store, name)
        self.index_digest = IndexDigest(
            *sections.row(sections.entry("index", list), int, bytes, str, str)
        )
        self.shards: int = sections.entry("shards", int)
        self.samples: int = sections.entry("samples", int)
        if (chunk_bytes := sections.entry("chunk_bytes", int)) != chunks.CHUNK_BYTES:
            raise sections.error(
                f"chunks of {quantity(chunk_bytes, 'byte')}; expected {chunks.CHUNK_BYTES:,}"
            )
        self.columns: dict[str, ColumnFile] = {}
        for column in sections.entry("columns", list):
            key, dtype, file = sections.row(column, str, str, str)
            if not _COLUMN_FILE.fullmatch(file):
                raise sections.error(f"column {key!r} cannot lie in {file!r}")
            self.columns[key] = ColumnFile(key, sections.dtype(dtype), file)
        self.has_hashes = "pieces" in sections
        self._values: dict[str, BlockArray] = {}

    @property
    def where(self) -> str:
        """The path or URL of the side-car, for messages."""
        return self._sections.where

    def index(self, where: str) -> Index:
        """Return an `Index` equal to the one that ``parse_index`` returns for ``index.json``.

        Parameters
        ----------
        where : str
            The path or URL of ``index.json``, for messages.
        """
        return Index(self._shard_arrays, SidecarCatalog(self._sections, self.shards), where)

    def first_offset(self, shard: int) -> int | None:
        """Return the offset of a shard's first sample, if recorded; the shard's head has it too."""
        return self._shard_value("begins", shard)

    def meta_hash(self, shard: int) -> int | None:
        """Return the hash of a shard's uncompressed meta file, if recorded."""
        return self._shard_value("metas", shard)

    def piece_hashes(self, shard: int) -> NDArray[np.uint64] | None:
        """Return the hash of each piece of a shard's uncompressed data file, if recorded."""
        if not self.has_hashes:
            return None
        starts = self._piece_starts
        pieces = self._sections.blocks("pieces", int(starts[-1]))
        return pieces.read_cached(int(starts[shard]), int(starts[shard + 1]))

    def shard_hashes(self) -> tuple[AnyArray, AnyArray, AnyArray]:
        """Read the offsets and hashes of all shards; `has_hashes` must be True.

        Returns
        -------
        offsets, metas : ndarray of uint64, shape (shards,)
            `first_offset` and `meta_hash` of each shard; `metas` is 0 without meta files.
        pieces : ndarray of uint64
            `piece_hashes` of all shards, one shard after the other.
        """
        blocks, shards = self._sections.blocks, self.shards
        metas: AnyArray = np.zeros(shards, np.uint64)
        if "metas" in self._sections:
            metas = blocks("metas", shards).read()
        pieces = blocks("pieces", int(self._piece_starts[-1])).read()
        return blocks("begins", shards).read().astype(np.uint64), metas, pieces

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Read the statistics of the dataset's columns, with at most one request.

        Opening the side-car has read its first bytes. If these contain the statistics, this makes
        no request.

        Returns
        -------
        dict of str to ColumnStatistics
            Empty if the side-car holds none.
        """
        from npstream.formats.statistics import decode_statistics

        if "statistics" not in self._sections:
            return {}
        body = self._sections.blocks("statistics").read().tobytes()
        try:
            return decode_statistics(body)
        except ValueError as error:
            raise self._sections.error(str(error)) from None

    def shard_range(self, name: str) -> tuple[AnyArray, AnyArray]:
        """Return the minimum and maximum of a column in each shard.

        They are -inf and inf for a shard with a NaN, and zeros for a shard without samples.

        Parameters
        ----------
        name : str

        Returns
        -------
        minimum, maximum : ndarray, shape (shards,)
        """
        dtype = self._column(name).dtype
        low, high = (self._sections.blocks(f"{w}/{name}", self.shards, "iuf") for w in _BOUNDS)
        if (low.dtype, high.dtype) != (dtype, dtype):
            raise self._sections.error(f"bounds of column {name!r} are not {dtype}")
        return low.read(), high.read()

    def column(self, name: str, start: int = 0, stop: int | None = None) -> AnyArray:
        """Read the values of a scalar column for consecutive samples.

        Parameters
        ----------
        name : str
        start, stop : int
            First sample, and the sample after the last; by default all samples.

        Returns
        -------
        ndarray, shape (stop - start,)
            Read-only.
        """
        stop = self.samples if stop is None else stop
        if not 0 <= start <= stop <= self.samples:
            raise IndexError(f"samples {start} to {stop} of {self.samples}")
        values = self._values.get(name)
        if values is None:
            values = self._values.setdefault(name, self._open_column(self._column(name)))
        return values.read(start, stop)

    def column_spans(self, name: str, start: int, stop: int) -> list[tuple[str, int, int]]:
        """Return the byte ranges that `column` reads if `start` is less than `stop`.

        Each range is the file name, the first byte, and the number of bytes.
        """
        column = self._column(name)
        begin, end = start * column.dtype.itemsize, stop * column.dtype.itemsize
        block_begin = begin - begin % HASH_BLOCK
        block_end = min(-(-end // HASH_BLOCK) * HASH_BLOCK, self.samples * column.dtype.itemsize)
        return [
            (column.file, 0, NPY_HEADER_BYTES),
            (column.file, NPY_HEADER_BYTES + block_begin, block_end - block_begin),
        ]

    def drop_column(self, name: str) -> None:
        """Remove a column from `columns`, because its file cannot be read."""
        self.columns.pop(name, None)

    def _column(self, name: str) -> ColumnFile:
        try:
            return self.columns[name]
        except KeyError:
            raise ColumnError(name, self.columns, f"{self.where}: ") from None

    def _open_column(self, column: ColumnFile) -> BlockArray:
        """Check the header of a column file; return the array of its values without reading it."""
        where = self.store.where(column.file)
        nbytes, itemsize = self.store.size(column.file), column.dtype.itemsize
        if nbytes != NPY_HEADER_BYTES + self.samples * itemsize:
            raise FormatError(
                f"{where}: {quantity(nbytes, 'byte')}; expected {self.samples:,} of {column.dtype}"
            )
        (head,) = self.store.ranges([(column.file, 0, NPY_HEADER_BYTES)])
        if head != npy_header(column.dtype, self.samples):
            raise FormatError(
                f"{where}: its header does not describe {self.samples} of {column.dtype}"
            )
        count = -(-self.samples * itemsize // HASH_BLOCK)
        section = self._sections.blocks(f"column/{column.name}", count)
        hashes = section.read().astype(np.uint64)
        return BlockArray(
            self.store, column.file, NPY_HEADER_BYTES, self.samples, column.dtype, hashes
        )

    def _shard_value(self, section: str, shard: int) -> int | None:
        if section not in self._sections:
            return None
        return int(self._sections.blocks(section, self.shards).read_cached(shard, shard + 1)[0])

    @cached_property
    def _shard_arrays(self) -> ShardArrays:
        """The arrays of the index, checked for consistency."""
        sections, catalog = self._sections, SidecarCatalog(self._sections, self.shards)
        samples, nbytes, schema_ids = (
            sections.blocks(name, self.shards).read() for name in ("samples", "bytes", "schema")
        )
        schemas = self._schemas
        if (samples >= 1 << 32).any() or (nbytes >= MAX_FILE_BYTES).any():
            raise sections.error("a shard has more samples or bytes than the format allows")
        if (schema_ids >= len(schemas)).any():
            raise sections.error("a shard has a schema that is not listed")
        samples, nbytes = samples.astype(np.int64), nbytes.astype(np.int64)
        if int(samples.sum()) != self.samples:
            raise sections.error(
                f"the shards have {quantity(samples.sum(), 'sample')}, not {self.samples:,}"
            )
        is_text = np.array([schema.format != "mds" for schema in schemas], bool)[schema_ids]
        heads = nbytes
        if is_text.any():
            heads = np.where(is_text, catalog.sizes("meta"), nbytes)
        is_invalid = (
            (heads < 8 + 4 * samples) | (nbytes < samples) | (catalog.has_file("meta") != is_text)
        )
        if is_invalid.any():
            raise sections.error(f"shard {is_invalid.argmax()} cannot hold its samples")
        compressed = catalog.has_file("zip_data")
        _, annotations = parse_annotations(
            sections.table.get(ANNOTATIONS_KEY), f"{self.where}: {ANNOTATIONS_KEY!r}"
        )
        return ShardArrays(
            samples, nbytes, schema_ids.astype(np.int32), compressed, schemas, annotations
        )

    @property
    def _schemas(self) -> tuple[Schema, ...]:
        schemas = []
        for number, schema in enumerate(self._sections.entry("schemas", list)):
            row = self._sections.row(schema, str, list, list, list, str, str)
            if row[0] not in FORMAT_KEYS:
                raise self._sections.error(f"format {row[0]!r}; known: {', '.join(FORMAT_KEYS)}")
            key = [tuple(value) if type(value) is list else value for value in row]
            schemas.append(check_schema(key, f"{self.where}: schema {number}"))
        return tuple(schemas)

    @cached_property
    def _piece_starts(self) -> Int64:
        """Position of each shard's first piece in the section, followed by the number of pieces."""
        arrays = self._shard_arrays
        counts = chunk_counts(arrays.samples, arrays.nbytes, arrays.compressed, chunks.CHUNK_BYTES)
        piece_counts = counts + 1  # the header is a piece, too
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(piece_counts)])


_BOUNDS = ("min", "max")


def npy_header(dtype: np.dtype[Any], count: int) -> bytes:
    """Return the header of a ``.npy`` file that holds `count` numbers.

    Examples
    --------
    >>> len(npy_header(np.dtype("<u2"), 3)), npy_header(np.dtype("<u2"), 3)[10:26]
    (128, b"{'descr': '<u2',")
    """
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({count},), }}"
    body = text.ljust(NPY_HEADER_BYTES - 11).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body
