"""The index of a dataset: ``index.json``, validated and converted to arrays.

The format is version 2 of MosaicML Streaming's: one entry for each shard, in sample order. The
top-level key ``"npstream"``, which Streaming ignores, holds npstream's `Annotations`. An index is
untrusted input: a violation of the format raises `FormatError`, which names the file and the shard.
Readers also compare the head of each shard, the bytes before its first sample, with the index.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.fork import is_spawning
from npstream._core.memory import available_memory, fits_in_memory
from npstream._core.typing import AnyArray, Bools, Int64
from npstream.errors import FormatError, short_repr
from npstream.formats import chunks
from npstream.formats.sharing import SharedArrays, SharedEntries, reduce_index
from npstream.formats.versions import SIDECAR_NAME

INDEX = "index.json"
"""The file that lists the shards of a dataset."""

INDEX_VERSION = 2

ANNOTATIONS_KEY = "npstream"
"""The key of the annotations in ``index.json`` and in the table of a side-car."""

ANNOTATIONS_VERSION = 1
"""The format version of annotations."""

_COMMON_KEYS = {
    "compression", "format", "hashes", "raw_data", "samples", "size_limit", "version", "zip_data"
}  # fmt: skip
_META_KEYS = {"newline", "raw_meta", "zip_meta"}
_COLUMN_KEYS = {"column_encodings", "column_names"}
FORMAT_KEYS = {
    "mds": _COMMON_KEYS | _COLUMN_KEYS | {"column_sizes"},
    "json": _COMMON_KEYS | _META_KEYS | {"columns"},
    "csv": _COMMON_KEYS | _META_KEYS | _COLUMN_KEYS,
    "tsv": _COMMON_KEYS | _META_KEYS | _COLUMN_KEYS,
    "xsv": _COMMON_KEYS | _META_KEYS | _COLUMN_KEYS | {"separator"},
}
"""Shard format -> the keys that an index entry of this format may have."""

_SEPARATORS = {"csv": ",", "tsv": "\t"}

# A path below the dataset's directory: no root, drive, scheme or "..". The pattern also excludes
# names that no file can have, such as those with NUL or surrogates.
RELATIVE_PATH = re.compile(
    r"(?![/\\]|[A-Za-z]:|.*://)(?!(?:.*/)?\.{1,2}(?:/|$))[^\\\0\ud800-\udfff]+", re.DOTALL
)

MAX_INDEX_BYTES = 1 << 30
"""An index of this size or larger is rejected, unless this process wrote it."""

_MIN_ESTIMATED_BYTES = 1 << 20
"""The memory that parsing takes is estimated only for an index larger than this."""

_PARSED_BYTES = {b"[": 72, b"{": 200, b",": 40, b":": 24}
"""Character of JSON -> approximate bytes of Python objects for each occurrence."""

MAX_FILE_BYTES = 1 << 40
"""A file of this size or larger is rejected.

The limit is far above the range of a shard's uint32 offsets. Sums over 2**23 files still fit int64.
"""


class Schema(NamedTuple):
    """The columns of a shard's samples, from its index entry.

    Attributes
    ----------
    format : str
        The shard format, such as ``"mds"``; a key of `FORMAT_KEYS`.
    names : tuple of str
        The names of the columns.
    encodings : tuple of str
        The encoding of each column.
    sizes : tuple of (int or None)
        The bytes of each column's values, or None for a variable size; empty for text formats.
    newline, separator : str
        For text formats only.
    keys : tuple of str
        The names of the columns in the shards, if `renamed` has replaced ``names``; else empty.
    """

    format: str
    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...] = ()
    newline: str = ""
    separator: str = ""
    keys: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # Fingerprints include a hash of this text. The text must never change for a schema, and
        # must not depend on `keys`.
        return (
            f"Schema(format={self.format!r}, names={self.names!r}, encodings={self.encodings!r}, "
            f"sizes={self.sizes!r}, newline={self.newline!r}, separator={self.separator!r})"
        )

    def renamed(self, names: Mapping[str, str]) -> Schema:
        """Return the schema with other names: `names` maps each old name to a new one.

        Columns that are not in `names` get names that start with NUL, so that they are hidden.
        """
        new_names = tuple(names.get(name, f"\0{name}") for name in self.names)
        return self._replace(names=new_names, keys=self.keys or self.names)


class Annotations(NamedTuple):
    """Column metadata that an index records in addition to the encodings.

    Attributes
    ----------
    dtypes : dict of str to str
        The dtype of each column whose encoding does not imply it, such as ``"bool"``.
    order : tuple of str
        The columns in the order of the writer's input; empty if the stored order is the same.
    sidecar : str
        The file name of the side-car that was written with this index; empty if that name is
        ``index.msgpack``.
    """

    dtypes: Mapping[str, str]
    order: tuple[str, ...] = ()
    sidecar: str = ""

    def __bool__(self) -> bool:
        return bool(self.dtypes or self.order or self.sidecar)

    def to_document(self, schema: Schema | None = None) -> dict[str, Any]:
        """Return the value of the key ``"npstream"``.

        Pass `schema` only for an index without shards, which has no other record of its schema.

        Examples
        --------
        >>> Annotations({"seen": "bool"}).to_document()
        {'version': 1, 'dtypes': {'seen': 'bool'}}
        """
        parts: dict[str, Any] = {"dtypes": dict(self.dtypes), "columns": list(self.order)}
        parts["sidecar"] = self.sidecar
        if schema is not None:
            parts["schema"] = {
                "column_encodings": list(schema.encodings),
                "column_names": list(schema.names),
                "column_sizes": list(schema.sizes),
            }
        return {
            "version": ANNOTATIONS_VERSION,
            **{key: part for key, part in parts.items() if part},
        }


class File(NamedTuple):
    """A stored file: path relative to the dataset's directory, size and recorded hashes."""

    name: str
    nbytes: int
    hashes: dict[str, str]


class ShardFiles(NamedTuple):
    """The files of a shard. Only text formats have ``meta``.

    ``zip_*`` are the compressed files. ``compression`` is their codec, such as ``"zstd:3"``; None
    if there are none.
    """

    data: File
    zip_data: File | None
    meta: File | None
    zip_meta: File | None
    compression: str | None


class ShardArrays(NamedTuple):
    """The arrays from which an `Index` is built.

    ``samples`` has the sample count of each shard. The others are attributes of `Index`.
    """

    samples: Int64
    nbytes: Int64
    schema_ids: NDArray[np.int32]
    compressed: Bools
    schemas: tuple[Schema, ...]
    annotations: Annotations = Annotations({})


class Catalog(Protocol):
    """Access to the index entries of single shards."""

    def files(self, shard: int) -> ShardFiles:
        """Return the files of a shard."""

    def name(self, shard: int) -> str:
        """Return the name of a shard's (uncompressed) data file."""

    def fingerprint(self, index: Index) -> str:
        """Return a hash of the content and sample order; see `Index.fingerprint`."""

    def size_limit(self, shard: int) -> int | None:
        """Return the size limit that the index records for a shard; None if it has none."""


class Index:
    """The index of a dataset as arrays over its shards.

    Attributes
    ----------
    starts : ndarray of int64, shape (shards + 1,)
        The first sample of each shard, followed by the total number of samples.
    nbytes : ndarray of int64, shape (shards,)
        Uncompressed bytes of each shard.
    compressed : ndarray of bool, shape (shards,)
        Which shards have a compressed file.
    schemas : tuple of Schema
        The distinct schemas, in order of appearance. An index without shards may have one.
    annotations : Annotations
        Column metadata in addition to the encodings.
    schema_ids : ndarray of int32, shape (shards,)
        The position of each shard's schema in `schemas`.
    total_nbytes : int
        Uncompressed bytes of all shards.
    guide, shift : ndarray of int64, int
        Lookup table from sample to shard; see `shard_lookup_table`.
    where : str
        The path or URL of the index, for messages.
    chunk_bytes : int
        An uncompressed shard is divided into chunks whose average size is at most this number of
        bytes. Chunks of large samples may be larger; see `npstream.formats.chunks`.
    original : Index
        The index before `renamed` replaced names of columns; this index if no names are replaced.
    """

    __slots__ = (
        "_catalog", "_original", "_shared", "annotations", "chunk_bytes", "compressed", "guide",
        "nbytes", "schema_ids", "schemas", "shift", "starts", "total_nbytes", "where",
    )  # fmt: skip

    def __init__(self, arrays: ShardArrays, catalog: Catalog, where: str) -> None:
        self._catalog = catalog
        self._original: Index | None = None
        self._shared: SharedArrays | None = None
        self.where = where
        self.schemas, self.annotations = arrays.schemas, arrays.annotations
        self.nbytes, self.schema_ids = arrays.nbytes, arrays.schema_ids
        self.compressed = arrays.compressed
        self.starts = np.zeros(len(self.nbytes) + 1, np.int64)
        np.cumsum(arrays.samples, out=self.starts[1:])
        self.guide, self.shift = shard_lookup_table(self.starts)
        self.total_nbytes = int(self.nbytes.sum())
        self.chunk_bytes = chunks.CHUNK_BYTES

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduce_index(self)

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self.nbytes)

    @property
    def samples(self) -> int:
        """The number of samples in all shards."""
        return int(self.starts[-1])

    def files(self, shard: int) -> ShardFiles:
        """Return the files of a shard."""
        return self._catalog.files(shard)

    def name(self, shard: int) -> str:
        """Return the name of a shard's (uncompressed) data file."""
        return self._catalog.name(shard)

    def size_limit(self, shard: int) -> int | None:
        """Return the recorded maximum of a shard's bytes, or None if there is none.

        A side-car does not record it, so an index that was read from a side-car returns None.
        """
        return self._catalog.size_limit(shard)

    def fingerprint(self) -> str:
        """Return a hash of the dataset's content and sample order.

        It covers sample counts, sizes, schemas, dtypes, recorded hashes, and which shards are
        compressed. It does not depend on file names or on compressed sizes.
        """
        return self._catalog.fingerprint(self.original)

    @property
    def original(self) -> Index:
        """The index with the names of columns that the shards store."""
        return self._original or self

    def renamed(self, names: Mapping[str, str]) -> Index:
        """Return the index with other names of columns; its fingerprint stays the same.

        Parameters
        ----------
        names : mapping of str to str
            Name in this index -> new name. Columns that are not in `names` cannot be read by name.
        """
        index = copy(self)
        index._original = self.original
        index.schemas = tuple(schema.renamed(names) for schema in self.schemas)
        return index


def check_size(nbytes: int, where: str) -> None:
    """Raise if an index is too large to read; call this before reading it.

    Raises
    ------
    FormatError
        If `nbytes` is at least `MAX_INDEX_BYTES`, or if free memory cannot hold the index both as
        bytes and as text. `parse_index` later checks the memory for parsing a large index.
    """
    if nbytes >= MAX_INDEX_BYTES:
        raise FormatError(
            f"{where}: {quantity(nbytes, 'byte')}; an index has less than {MAX_INDEX_BYTES:,}: "
            "write larger shards"
        )
    if not fits_in_memory(2 * nbytes):
        raise FormatError(
            f"{where}: {quantity(nbytes, 'byte')}; free memory has {available_memory():,}"
        )


def estimate_parsed_size(text: bytes) -> int:
    """Return an estimate of the bytes of memory that parsing takes.

    The estimate is at most twice the memory that is actually taken.
    """
    # The quotes of keys, two for each colon, are not counted: the parser shares equal keys.
    strings = max(text.count(b'"') - 2 * text.count(b":"), 0)
    parsed = sum(text.count(character) * nbytes for character, nbytes in _PARSED_BYTES.items())
    return 2 * (1 if text.isascii() else 4) * len(text) + parsed + 16 * strings


def parse_index(text: bytes, where: str, trusted: bool = False) -> Index:
    """Parse and validate an ``index.json``.

    Parameters
    ----------
    text : bytes
        Content of the file.
    where : str
        Path or URL of the file, for messages.
    trusted : bool, default: False
        True if this process wrote the file. The limits on size and memory then do not apply.

    Raises
    ------
    FormatError
        If the file is not JSON, violates the format, or needs more memory than is free.
    """
    if not trusted:
        check_size(len(text), where)
        if len(text) > _MIN_ESTIMATED_BYTES and not fits_in_memory(
            needed := estimate_parsed_size(text)
        ):
            raise FormatError(
                f"{where}: parsing its {quantity(len(text), 'byte')} takes about "
                f"{quantity(needed, 'byte')} of memory, and {available_memory():,} are free"
            )
    try:
        document = json.loads(text)
    except MemoryError as error:
        raise FormatError(
            f"{where}: its {quantity(len(text), 'byte')} cannot be parsed in the free memory"
        ) from error
    except (ValueError, RecursionError) as error:
        problem = "an empty file" if not text.strip() else f"not JSON: {error}"
        raise FormatError(f"{where}: {problem}; expected the index of a dataset") from error
    if not isinstance(document, dict):
        raise FormatError(f"{where}: {type(document).__name__} at the top; expected an object")
    if document.get("version") != INDEX_VERSION:
        raise FormatError(
            f"{where}: version {short_repr(document.get('version'))}; this release reads version "
            f"{INDEX_VERSION}"
        )
    entries = document.get("shards")
    if not isinstance(entries, list):
        raise FormatError(f"{where}: 'shards' is {type(entries).__name__}; expected a list")
    schemas, annotations = parse_annotations(
        document.get(ANNOTATIONS_KEY), f"{where}: {ANNOTATIONS_KEY!r}"
    )
    return _build_index(entries, schemas, annotations, where)


def parse_annotations(document: Any, where: str) -> tuple[tuple[Schema, ...], Annotations]:
    """Parse and validate the annotations of an index.

    Parameters
    ----------
    document : dict or None
        The value of the key ``"npstream"``, if the index has one.
    where : str
        The annotations' file and key, for messages.

    Returns
    -------
    schemas : tuple of Schema
        The recorded schema, if any: only an index without shards needs one.
    annotations : Annotations
    """

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{where}: {message}")

    if not isinstance(document, dict) or "version" not in document:
        return (), Annotations({})  # another program uses the same key
    if (version := document["version"]) != ANNOTATIONS_VERSION:
        fail(f"version {short_repr(version)}; this release reads version {ANNOTATIONS_VERSION}")
    dtypes, order = document.get("dtypes", {}), document.get("columns", [])
    schema = document.get("schema")
    if not isinstance(dtypes, dict) or not all(isinstance(d, str) for d in dtypes.values()):
        fail(f"'dtypes' is {short_repr(dtypes)}; expected names of columns and dtypes")
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        fail(f"'columns' is {short_repr(order)}; expected a list of names")
    if len(set(order)) != len(order):
        fail("'columns' names a column twice")
    schemas: tuple[Schema, ...] = ()
    if schema is not None:
        try:
            lists = _require_lists(schema, "column_names", "column_encodings", "column_sizes")
        except (FormatError, LookupError, TypeError) as error:
            fail(f"'schema': {error}")
        schemas = (check_schema(("mds", *lists, "", ""), where),)
    sidecar = document.get("sidecar", "")
    if sidecar and (not isinstance(sidecar, str) or not SIDECAR_NAME.fullmatch(sidecar)):
        fail(f"'sidecar' is {short_repr(sidecar)}; expected a name such as 'index.1f.msgpack'")
    return schemas, Annotations(dtypes, tuple(order), sidecar)


class _Entries:
    """The shard entries of an ``index.json``; file entries are validated on access."""

    def __init__(self, entries: Sequence[dict[str, Any]], where: str) -> None:
        self._entries = entries
        self._where = where

    def __reduce__(self) -> tuple[Any, ...]:
        if is_spawning():
            self._entries = SharedEntries.of(self._entries)
        return _Entries, (self._entries, self._where)

    def files(self, shard: int) -> ShardFiles:
        entry = self._entries[shard]
        where = f"{self._where}: shard {shard}"
        return ShardFiles(
            data=_parse_file(entry, "raw_data", where),
            zip_data=_parse_optional_file(entry, "zip_data", where),
            meta=_parse_optional_file(entry, "raw_meta", where),
            zip_meta=_parse_optional_file(entry, "zip_meta", where),
            compression=entry.get("compression"),
        )

    def name(self, shard: int) -> str:
        return str(self._entries[shard]["raw_data"]["basename"])

    def size_limit(self, shard: int) -> int | None:
        limit = self._entries[shard].get("size_limit")
        return limit if type(limit) is int and 0 < limit < 1 << 32 else None

    def fingerprint(self, index: Index) -> str:
        import hashlib  # takes 3 ms, as it loads OpenSSL

        digest = hashlib.blake2b(digest_size=8)
        for array in (index.starts, index.nbytes, index.schema_ids):
            digest.update(array.astype(array.dtype.newbyteorder("<")).data)
        digest.update(repr(index.schemas).encode())
        if dtypes := index.annotations.dtypes:
            digest.update(json.dumps(dtypes, sort_keys=True).encode())
        for shard, entry in enumerate(self._entries):
            hashes, zip_data = entry["raw_data"].get("hashes"), entry.get("zip_data")
            if hashes or zip_data:
                facts = [shard, hashes, zip_data is not None]
                digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()


def _build_index(
    entries: list[Any], recorded_schemas: tuple[Schema, ...], annotations: Annotations, where: str
) -> Index:
    count = len(entries)
    keys: dict[Any, int] = {}
    samples, nbytes = np.zeros((2, count), np.int64)
    schema_ids, compressed = np.zeros(count, np.int32), np.zeros(count, np.bool_)
    for shard, entry in enumerate(entries):
        key, samples[shard], nbytes[shard] = _check_entry(entry, shard, where)
        schema_ids[shard] = keys.setdefault(key, len(keys))
        compressed[shard] = entry.get("zip_data") is not None
    schemas = tuple(
        check_schema(key, f"{where}: shard {np.argmax(schema_ids == number)}")
        for key, number in keys.items()
    )
    schemas = schemas or recorded_schemas
    annotations = _drop_absent_columns(annotations, schemas)
    arrays = ShardArrays(samples, nbytes, schema_ids, compressed, schemas, annotations)
    return Index(arrays, _Entries(entries, where), where)


def _drop_absent_columns(annotations: Annotations, schemas: tuple[Schema, ...]) -> Annotations:
    """Return the annotations of columns in `schemas`; an edited index may annotate others."""
    names = {name for schema in schemas for name in schema.names}
    dtypes = {name: dtype for name, dtype in annotations.dtypes.items() if name in names}
    order = tuple(name for name in annotations.order if name in names)
    return Annotations(dtypes, order, annotations.sidecar)


def shard_lookup_table(starts: Int64) -> tuple[Int64, int]:
    """Return the lookup table from a sample to its shard.

    Parameters
    ----------
    starts : ndarray of int64, shape (shards + 1,)
        First sample of each shard, followed by the number of samples.

    Returns
    -------
    guide : ndarray of int64
        ``guide[c]`` is the last shard that starts at or before sample ``c << shift``. The shard of
        sample i is therefore in ``[guide[i >> shift], guide[(i >> shift) + 1]]``.
    shift : int
        Chosen so that the table has about one to two elements for each shard.
    """
    shards, samples = len(starts) - 1, int(starts[-1])
    shift = max(samples // max(shards, 1), 1).bit_length() - 1
    cells = (np.arange((samples >> shift) + 2, dtype=np.int64)) << shift
    guide = np.searchsorted(starts, np.minimum(cells, max(samples - 1, 0)), side="right") - 1
    return np.minimum(guide, max(shards - 1, 0)).astype(np.int64), shift


def _check_entry(entry: Any, shard: int, where: str) -> tuple[Any, int, int]:
    """Validate a shard's entry; return its schema as a hashable key, its samples and its bytes."""
    try:
        kind = entry["format"]
        if entry["version"] != INDEX_VERSION:
            raise FormatError(
                f"version {short_repr(entry['version'])}; this release reads {INDEX_VERSION}"
            )
        if kind not in FORMAT_KEYS:
            raise FormatError(f"format {short_repr(kind)}; known: {', '.join(FORMAT_KEYS)}")
        if not entry.keys() <= FORMAT_KEYS[kind]:
            raise FormatError(
                f"unknown keys {short_repr(sorted(entry.keys() - FORMAT_KEYS[kind]))}"
            )
        raw = entry["raw_data"]
        samples, nbytes = entry["samples"], raw["bytes"]
        if type(samples) is not int or not 0 <= samples < 2**32:
            raise FormatError(f"'samples' is {short_repr(samples)}; expected an int in [0, 2**32)")
        if type(nbytes) is not int or not 0 <= nbytes < MAX_FILE_BYTES:
            raise FormatError(f"'bytes' is {short_repr(nbytes)}; expected an int in [0, 2**40)")
        if not isinstance(compression := entry.get("compression"), str | None):
            raise FormatError(
                f"'compression' is {short_repr(compression)}; expected a string or null"
            )
        if kind == "mds":
            head = nbytes
            key = (
                kind,
                *_require_lists(entry, "column_names", "column_encodings", "column_sizes"),
                "",
                "",
            )
        else:
            head = entry["raw_meta"]["bytes"]
            key = _text_schema_key(kind, entry)
        # The head has a count and `samples` + 1 offsets. A sample takes at least one byte.
        if head < 8 + 4 * samples or nbytes < samples:
            raise FormatError(
                f"{quantity(samples, 'sample')} cannot lie in {quantity(min(head, nbytes), 'byte')}"
            )
        for name in ("raw_data", "zip_data", "raw_meta", "zip_meta"):
            file = entry.get(name)
            if file is not None and not RELATIVE_PATH.fullmatch(file["basename"]):
                raise FormatError(
                    f"'basename' {short_repr(file['basename'])} leaves the dataset's directory"
                )
        hash(key)  # raises TypeError if a column list contains lists or objects
    except FormatError as error:
        raise FormatError(f"{where}: shard {shard}: {error}") from None
    except KeyError as error:
        raise FormatError(f"{where}: shard {shard}: the key {error} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{where}: shard {shard}: a value has the wrong type: {error}") from error
    return key, samples, nbytes


def _text_schema_key(kind: str, entry: dict[str, Any]) -> tuple[Any, ...]:
    if kind == "json":
        names, encodings = tuple(entry["columns"]), tuple(entry["columns"].values())
    else:
        names, encodings = _require_lists(entry, "column_names", "column_encodings")
    separator = entry["separator"] if kind == "xsv" else _SEPARATORS.get(kind, "")
    return kind, names, encodings, (), entry["newline"], separator


def _require_lists(entry: dict[str, Any], *keys: str) -> tuple[tuple[Any, ...], ...]:
    for key in keys:
        if not isinstance(entry[key], list):
            raise FormatError(f"{key!r} is {short_repr(entry[key])}; expected a list")
    return tuple([tuple(entry[key]) for key in keys])


def check_schema(key: Any, where: str) -> Schema:
    """Return a schema after validating it.

    Parameters
    ----------
    key : tuple
        The values of the fields of `Schema` in order, without ``keys``.
    where : str
        The place of the schema, for messages.

    Raises
    ------
    FormatError
        If a value has the wrong type, or the values contradict each other.
    """
    kind, names, encodings, sizes, newline, separator = key

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{where}: {message}")

    strings = (*names, *encodings, newline, separator)
    if not all(isinstance(string, str) for string in strings):
        fail("column names, encodings, newline and separator must be strings")
    if any("\ud800" <= character <= "\udfff" for character in "".join(strings)):
        fail("column names, encodings, newline and separator must be UTF-8")
    if len(names) != len(encodings) or (kind == "mds" and len(sizes) != len(names)):
        fail(
            f"{len(names)} column names, {quantity(len(encodings), 'encoding')}, "
            f"{quantity(len(sizes), 'size')}"
        )
    if not names:
        fail("a shard has no columns")
    if len(set(names)) != len(names):
        duplicates = sorted(name for name, n in Counter(names).items() if n > 1)
        fail(f"duplicate columns {short_repr(duplicates)}")
    if not all(size is None or (type(size) is int and 0 < size < 2**32) for size in sizes):
        fail(f"column sizes {short_repr(sizes)}: expected null or an int in [1, 2**32)")
    if kind != "mds" and not newline:
        fail("an empty newline")
    if kind == "xsv" and not separator:
        fail("an empty separator")
    return Schema(kind, names, encodings, sizes, newline, separator)


def _parse_optional_file(entry: dict[str, Any], key: str, where: str) -> File | None:
    return None if entry.get(key) is None else _parse_file(entry, key, where)


def _parse_file(entry: dict[str, Any], key: str, where: str) -> File:
    file = entry[key]
    name, nbytes, hashes = file["basename"], file.get("bytes"), file.get("hashes") or {}
    if type(nbytes) is not int or not 0 <= nbytes < MAX_FILE_BYTES:
        raise FormatError(
            f"{where}: {key} has 'bytes' {short_repr(nbytes)}; expected an int in [0, 2**40)"
        )
    if not isinstance(hashes, dict) or not all(isinstance(h, str) for h in hashes.values()):
        raise FormatError(
            f"{where}: {key} has 'hashes' {short_repr(hashes)}; expected names and digests"
        )
    return File(name, nbytes, hashes)


def locate_samples(index: Index, ids: int | Int64) -> tuple[Any, Any]:
    """Return the shard of each sample, and its row in the shard, in the shape of `ids`."""
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    rows = ids - index.starts[shards]
    return (int(shards), int(rows)) if isinstance(ids, int) else (shards, rows)


def shard_table(index: Index) -> AnyArray:
    """Return a structured array with each shard's name, first sample, samples and bytes."""
    names = [index.name(shard) for shard in range(len(index))]
    width = max(map(len, names), default=1)
    fields = [("name", f"U{width}"), ("start", "i8"), ("samples", "i8"), ("bytes", "i8")]
    table = np.empty(len(index), fields)
    table["name"], table["bytes"] = names, index.nbytes
    table["start"], table["samples"] = index.starts[:-1], np.diff(index.starts)
    return table
