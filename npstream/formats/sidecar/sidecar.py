"""The side-car of a dataset, ``index.msgpack``: its index as arrays, hashes, and statistics.

`npstream.formats.sidecar.container` is the file's form, `npstream.formats.sidecar.catalog` the
part that names the shards' files. Beside those there are these sections, one number a shard if not
said otherwise:

    samples, bytes, schema    of each shard; the schemas stand in the table
    begins                    where samples begin in the data file, uncompressed
    pieces                    hash of each piece (`npstream.formats.chunks`) of the data files,
                              uncompressed, those of one shard after another
    metas                     hash of the meta file, uncompressed
    min/NAME, max/NAME        bounds of a scalar column's values
    column/NAME               hash of each block of the values in ``index.columns``

Values and bounds are of the numbers that are stored, such as uint8 for a bool. The table holds the
index's annotations, if it has any, as they stand there.

Like an index, a side-car is untrusted input.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.typing import AnyArray, Body, Int64
from npstream.errors import ColumnError, FormatError
from npstream.formats import chunks
from npstream.formats.chunks import chunk_counts
from npstream.formats.index import (
    FORMATS,
    KEY,
    MAX_FILE_BYTES,
    Index,
    Schema,
    ShardFacts,
    check_schema,
    parse_annotations,
)
from npstream.formats.sidecar.blocks import HASH_BLOCK, BlockArray, Ranges, xxh3
from npstream.formats.sidecar.catalog import SidecarCatalog, catalog_sections, least
from npstream.formats.sidecar.container import Sections, encode_sections

NAME = "index.msgpack"

ENDS = 1 << 16
"""Bytes at either end of ``index.json`` that are hashed, to tell whether a side-car is of it."""

NPY_HEAD = 128
"""Bytes before the values in the ``.npy`` files that we write."""

_COLUMN_FILE = re.compile(r"index\.columns/[^/\\\0\ud800-\udfff]+\.npy")


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells one ``index.json`` from another, without reading all of it.

    ``ends`` is the hash of its first and last bytes, ``version`` what the store calls it, and
    ``origin`` the hash of the store's place, as the versions of copies differ; both may be empty.
    """

    nbytes: int
    ends: bytes
    version: str = ""
    origin: str = ""

    def matches(self, other: Mark) -> bool:
        """Tell whether two are of one index, as far as they say.

        Examples
        --------
        >>> mark_of(b"[1]").matches(mark_of(b"[1]")), mark_of(b"[1]").matches(mark_of(b"[2]"))
        (True, False)
        """
        if (self.nbytes, self.ends) != (other.nbytes, other.ends):
            return False
        known = self.version and other.version and self.origin == other.origin
        return not known or self.version == other.version


def make_mark(nbytes: int, head: bytes, tail: bytes, version: str = "", place: str = "") -> Mark:
    """Return the mark of an index, from its first and last `ENDS` bytes, or all if it has fewer."""
    import xxhash

    origin = f"{xxh3(place.encode()):016x}" if place else ""
    return Mark(nbytes, xxhash.xxh3_128_digest(head + tail), version, origin)


def mark_of(text: bytes, version: str = "", place: str = "") -> Mark:
    """Return the mark of an index that is at hand."""
    return make_mark(len(text), text[:ENDS], text[-ENDS:], version, place)


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """A scalar column whose values lie in a ``.npy`` file beside the side-car."""

    name: str
    dtype: np.dtype[Any]
    file: str


def encode_sidecar(
    index: Index, mark: Mark, columns: Sequence[ColumnFile], sections: Mapping[str, AnyArray]
) -> Iterator[Body]:
    """Yield the parts of a side-car.

    Parameters
    ----------
    index : Index
    mark : Mark
        Of the index.
    columns : sequence of ColumnFile
    sections : mapping of str to ndarray
        What is known beyond the index.
    """
    facts, files = catalog_sections(index)
    facts |= {
        "index": [mark.nbytes, mark.ends, mark.version, mark.origin],
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
        facts[KEY] = index.annotations.document()
    arrays = {
        "samples": least(np.diff(index.starts)),
        "bytes": least(index.nbytes),
        "schema": least(index.schema_of),
    }
    return encode_sections(facts, arrays | files | dict(sections))


class Sidecar:
    """An opened side-car; what it holds is read when it is asked for.

    Parameters
    ----------
    store : Ranges
        Where it lies, with the files of its columns.
    name : str
        The file.

    Attributes
    ----------
    mark : Mark
        Of the ``index.json`` that it was made from.
    shards, samples : int
        How many of them there are.
    columns : dict of str to ColumnFile
        The columns with statistics, and values in files of their own.
    hashed : bool
        Whether it holds the hashes of pieces, and where samples begin.

    Raises
    ------
    FormatError
        If it is no side-car, or damaged.
    StorageError
        If there is none.
    """

    def __init__(self, store: Ranges, name: str = NAME) -> None:
        self.store = store
        self._sections = sections = Sections(store, name)
        self.mark = Mark(*sections.row(sections.typed("index", list), int, bytes, str, str))
        self.shards: int = sections.typed("shards", int)
        self.samples: int = sections.typed("samples", int)
        if (chunk_bytes := sections.typed("chunk_bytes", int)) != chunks.CHUNK_BYTES:
            raise sections.damaged(
                f"chunks of {quantity(chunk_bytes, 'byte')}; expected {chunks.CHUNK_BYTES:,}"
            )
        self.columns: dict[str, ColumnFile] = {}
        for column in sections.typed("columns", list):
            key, dtype, file = sections.row(column, str, str, str)
            if not _COLUMN_FILE.fullmatch(file):
                raise sections.damaged(f"column {key!r} cannot lie in {file!r}")
            self.columns[key] = ColumnFile(key, sections.dtype(dtype), file)
        self.hashed = "pieces" in sections
        self._values: dict[str, BlockArray] = {}

    @property
    def where(self) -> str:
        """The side-car's place, for messages."""
        return self._sections.where

    def index(self, where: str) -> Index:
        """Return the index, equal to what ``parse_index`` makes of ``index.json``.

        Parameters
        ----------
        where : str
            The place of ``index.json``, for messages.
        """
        return Index(self._facts, SidecarCatalog(self._sections, self.shards), where)

    def begin(self, shard: int) -> int | None:
        """Return where the samples of a shard begin, as its offsets will confirm, if known."""
        return self._one("begins", shard)

    def meta_hash(self, shard: int) -> int | None:
        """Return the hash of a shard's meta file, uncompressed, if there is one."""
        return self._one("metas", shard)

    def piece_hashes(self, shard: int) -> NDArray[np.uint64] | None:
        """Return the hash of each piece of a shard's data file, uncompressed, if known."""
        if not self.hashed:
            return None
        starts = self._piece_starts
        pieces = self._sections.blocks("pieces", int(starts[-1]))
        return pieces.part(int(starts[shard]), int(starts[shard + 1]))

    def shard_range(self, name: str) -> tuple[AnyArray, AnyArray]:
        """Return bounds of a column's values in each shard.

        A shard that holds a NaN is bounded by infinities, one of no samples by zeros.

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
            raise self._sections.damaged(f"bounds of column {name!r} are no {dtype}")
        return low.array(), high.array()

    def column(self, name: str, start: int = 0, stop: int | None = None) -> AnyArray:
        """Read a run of a scalar column's values.

        Parameters
        ----------
        name : str
        start, stop : int
            The first sample, and the one after the last; by default all.

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
        return values.array(start, stop)

    def column_spans(self, name: str, start: int, stop: int) -> list[tuple[str, int, int]]:
        """Return what `column` reads for a run of values that is not empty."""
        column = self._column(name)
        begin, end = start * column.dtype.itemsize, stop * column.dtype.itemsize
        first = begin - begin % HASH_BLOCK
        last = min(-(-end // HASH_BLOCK) * HASH_BLOCK, self.samples * column.dtype.itemsize)
        return [(column.file, 0, NPY_HEAD), (column.file, NPY_HEAD + first, last - first)]

    def drop_column(self, name: str) -> None:
        """Go on without a column whose file cannot be read."""
        self.columns.pop(name, None)

    def _column(self, name: str) -> ColumnFile:
        try:
            return self.columns[name]
        except KeyError:
            raise ColumnError(name, self.columns, f"{self.where}: ") from None

    def _open_column(self, column: ColumnFile) -> BlockArray:
        """Check the head of a column's file, and return its values, unread."""
        where = self.store.where(column.file)
        nbytes, itemsize = self.store.size(column.file), column.dtype.itemsize
        if nbytes != NPY_HEAD + self.samples * itemsize:
            raise FormatError(
                f"{where}: {quantity(nbytes, 'byte')}; expected {self.samples:,} of {column.dtype}"
            )
        (head,) = self.store.ranges([(column.file, 0, NPY_HEAD)])
        if head != npy_head(column.dtype, self.samples):
            raise FormatError(f"{where}: its head does not say {self.samples} of {column.dtype}")
        count = -(-self.samples * itemsize // HASH_BLOCK)
        found = self._sections.blocks(f"column/{column.name}", count)
        hashes = found.array().astype(np.uint64)
        return BlockArray(self.store, column.file, NPY_HEAD, self.samples, column.dtype, hashes)

    def _one(self, section: str, shard: int) -> int | None:
        if section not in self._sections:
            return None
        return int(self._sections.blocks(section, self.shards).part(shard, shard + 1)[0])

    @cached_property
    def _facts(self) -> ShardFacts:
        """The arrays of the index, held against each other."""
        sections, catalog = self._sections, SidecarCatalog(self._sections, self.shards)
        samples, nbytes, schema_of = (
            sections.blocks(name, self.shards).array() for name in ("samples", "bytes", "schema")
        )
        schemas = self._schemas
        if (samples >= 1 << 32).any() or (nbytes >= MAX_FILE_BYTES).any():
            raise sections.damaged("a shard has more samples or bytes than the format allows")
        if (schema_of >= len(schemas)).any():
            raise sections.damaged("a shard has a schema that is not listed")
        samples, nbytes = samples.astype(np.int64), nbytes.astype(np.int64)
        if int(samples.sum()) != self.samples:
            raise sections.damaged(
                f"the shards have {quantity(samples.sum(), 'sample')}, not {self.samples:,}"
            )
        is_text = np.array([schema.format != "mds" for schema in schemas], bool)[schema_of]
        heads = nbytes
        if is_text.any():
            heads = np.where(is_text, catalog.sizes("meta"), nbytes)
        wrong = (
            (heads < 8 + 4 * samples) | (nbytes < samples) | (catalog.present("meta") != is_text)
        )
        if wrong.any():
            raise sections.damaged(f"shard {wrong.argmax()} cannot hold its samples")
        compressed = catalog.present("zip_data")
        _, annotations = parse_annotations(sections.table.get(KEY), f"{self.where}: {KEY!r}")
        return ShardFacts(
            samples, nbytes, schema_of.astype(np.int32), compressed, schemas, annotations
        )

    @property
    def _schemas(self) -> tuple[Schema, ...]:
        schemas = []
        for number, schema in enumerate(self._sections.typed("schemas", list)):
            row = self._sections.row(schema, str, list, list, list, str, str)
            if row[0] not in FORMATS:
                raise self._sections.damaged(f"format {row[0]!r}; known: {', '.join(FORMATS)}")
            key = [tuple(value) if type(value) is list else value for value in row]
            schemas.append(check_schema(key, f"{self.where}: schema {number}"))
        return tuple(schemas)

    @cached_property
    def _piece_starts(self) -> Int64:
        """The number of the first piece of each shard, then of all pieces."""
        facts = self._facts
        counts = chunk_counts(facts.samples, facts.nbytes, facts.compressed, chunks.CHUNK_BYTES) + 1
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


_BOUNDS = ("min", "max")


def npy_head(dtype: np.dtype[Any], count: int) -> bytes:
    """Return the head of a ``.npy`` file of so many numbers.

    Examples
    --------
    >>> len(npy_head(np.dtype("<u2"), 3)), npy_head(np.dtype("<u2"), 3)[10:26]
    (128, b"{'descr': '<u2',")
    """
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({count},), }}"
    body = text.ljust(NPY_HEAD - 11).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body
