"""The index of a dataset: ``index.json``, checked and turned into arrays.

The format is Streaming's, version 2: one entry a shard, in the order of the samples. What
Streaming has no place for stands under the key ``"npstream"`` beside the shards, which it
ignores; see `Annotations`. An index is untrusted input; whatever does not follow the format is a
`FormatError` that names the file and the shard. What shards say of themselves before their samples
is held against it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.memory import available, fits
from npstream._core.typing import AnyArray, Bools, Bytes, Int64
from npstream.errors import FormatError, shown
from npstream.formats import chunks

INDEX = "index.json"
"""The file that lists the shards of a dataset."""

INDEX_VERSION = 2

KEY = "npstream"
"""The key of an ``index.json`` under which its annotations stand, and of a side-car's table."""

ANNOTATIONS = 1
"""Version of the annotations."""

_COMMON = {
    "compression", "format", "hashes", "raw_data", "samples", "size_limit", "version", "zip_data"
}  # fmt: skip
_META = {"newline", "raw_meta", "zip_meta"}
_NAMED = {"column_encodings", "column_names"}
FORMATS = {
    "mds": _COMMON | _NAMED | {"column_sizes"},
    "json": _COMMON | _META | {"columns"},
    "csv": _COMMON | _META | _NAMED,
    "tsv": _COMMON | _META | _NAMED,
    "xsv": _COMMON | _META | _NAMED | {"separator"},
}
_SEPARATORS = {"csv": ",", "tsv": "\t"}

# A path below the dataset's directory: no root, no drive, no step up, no other scheme; nor what
# no file can be called.
BELOW = re.compile(
    r"(?![/\\]|[A-Za-z]:|.*://)(?!(?:.*/)?\.{1,2}(?:/|$))[^\\\0\ud800-\udfff]+", re.DOTALL
)

MAX_INDEX = 1 << 30
"""An index that another process wrote is refused from so many bytes on."""

_COUNTED = 1 << 20
"""The memory that smaller indexes take is not estimated."""

_PARSED = {b"[": 72, b"{": 200, b",": 40, b":": 24}
"""Bytes of memory that a character stands for, about, in JSON that is parsed."""

_MAX_CONFIGURATION = 1 << 20
"""Bytes of a configuration, from which on it is not compared."""

MAX_FILE_BYTES = 1 << 40
"""Far beyond what a shard's offsets reach, and so small that sums of it stay within int64."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What the samples of a shard are made of, as its index entry says it.

    ``sizes`` holds the bytes of each column's values, None where they vary; ``newline`` and
    ``separator`` concern the text formats.
    """

    format: str
    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...] = ()
    newline: str = ""
    separator: str = ""


@dataclass(frozen=True, slots=True)
class Annotations:
    """What an index records of columns beside their encodings.

    Attributes
    ----------
    dtypes : dict of str to str
        The dtype of each column whose encoding does not say it, such as ``"bool"``.
    order : tuple of str
        The columns in the order in which they were given; empty if that is the stored order.
    """

    dtypes: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dtypes or self.order)

    def document(self, schema: Schema | None = None) -> dict[str, Any]:
        """Return the value of the key ``"npstream"``; `schema` is that of an index without shards.

        Examples
        --------
        >>> Annotations({"seen": "bool"}).document()
        {'version': 1, 'dtypes': {'seen': 'bool'}}
        """
        parts: dict[str, Any] = {"dtypes": dict(self.dtypes), "columns": list(self.order)}
        if schema is not None:
            parts["schema"] = {
                "column_encodings": list(schema.encodings),
                "column_names": list(schema.names),
                "column_sizes": list(schema.sizes),
            }
        return {"version": ANNOTATIONS, **{key: part for key, part in parts.items() if part}}


@dataclass(frozen=True, slots=True)
class File:
    """One stored file: its name below the dataset's directory, its bytes and recorded hashes."""

    name: str
    nbytes: int
    hashes: dict[str, str]


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The files of a shard. ``meta`` belongs to the text formats; ``zip_*`` are compressed."""

    data: File
    zip_data: File | None
    meta: File | None
    zip_meta: File | None
    compression: str | None


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What an index says of all shards: the arrays of `Index`, and the samples of each shard."""

    samples: Int64
    nbytes: Int64
    schema_of: NDArray[np.int32]
    compressed: Bools
    schemas: tuple[Schema, ...]
    annotations: Annotations = field(default_factory=Annotations)


class Catalog(Protocol):
    """What an index says of single shards, wherever it keeps that."""

    def files(self, shard: int) -> ShardFiles:
        """Return the files of a shard."""

    def name(self, shard: int) -> str:
        """Return the name of a shard's (uncompressed) data file."""

    def fingerprint(self, index: Index) -> str:
        """Return `Index.fingerprint`."""


class Index:
    """The shards of a dataset, as arrays.

    Attributes
    ----------
    starts : ndarray of int64, shape (shards + 1,)
        The number of the first sample of each shard; the last element counts all samples.
    nbytes : ndarray of int64, shape (shards,)
        Bytes of each shard, uncompressed.
    compressed : ndarray of bool, shape (shards,)
        Which shards have a compressed file.
    schemas : tuple of Schema
        The different schemas, in order of appearance. An index without shards may have one.
    annotations : Annotations
        What is recorded of columns beside their encodings.
    schema_of : ndarray of int32, shape (shards,)
        Which of them each shard has.
    total : int
        Bytes of all shards, uncompressed.
    guide, shift : ndarray of int64, int
        Shard look-up: ``guide[i >> shift]`` is the shard of the sample ``i >> shift << shift``.
    where : str
        The index's own place, for messages.
    chunk_bytes : int
        The least bytes of a shard for each further chunk.
    """

    __slots__ = (
        "_catalog",
        "annotations",
        "chunk_bytes",
        "compressed",
        "guide",
        "nbytes",
        "schema_of",
        "schemas",
        "shift",
        "starts",
        "total",
        "where",
    )  # fmt: skip

    def __init__(self, facts: ShardFacts, catalog: Catalog, where: str) -> None:
        self._catalog = catalog
        self.where = where
        self.schemas, self.annotations = facts.schemas, facts.annotations
        self.nbytes, self.schema_of = facts.nbytes, facts.schema_of
        self.compressed = facts.compressed
        self.starts = np.zeros(len(self.nbytes) + 1, np.int64)
        np.cumsum(facts.samples, out=self.starts[1:])
        self.guide, self.shift = guide_table(self.starts)
        self.total = int(self.nbytes.sum())
        self.chunk_bytes = chunks.CHUNK_BYTES

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

    def fingerprint(self) -> str:
        """Hash what a sample's number depends on, and what tells its content.

        Files may be renamed, and compressed as well or as badly as one likes.
        """
        return self._catalog.fingerprint(self)


def check_size(nbytes: int, where: str) -> None:
    """Refuse an index, before it is read, that is too large to be read.

    Raises
    ------
    FormatError
        If it has `MAX_INDEX` bytes, or the memory that is free does not hold it twice, as bytes and
        as text. What it takes beyond that, when parsed, depends on what is in it.
    """
    if nbytes >= MAX_INDEX:
        raise FormatError(
            f"{where}: {quantity(nbytes, 'byte')}; an index has less than {MAX_INDEX:,}: write "
            "larger shards"
        )
    if not fits(2 * nbytes):
        raise FormatError(f"{where}: {quantity(nbytes, 'byte')}; free memory has {available():,}")


def parsed_size(text: bytes) -> int:
    """Return about how many bytes of memory parsing takes, at most twice what it does."""
    strings = max(text.count(b'"') - 2 * text.count(b":"), 0)
    parsed = sum(text.count(character) * nbytes for character, nbytes in _PARSED.items())
    return 2 * (1 if text.isascii() else 4) * len(text) + parsed + 16 * strings


def parse_index(text: bytes, where: str, trusted: bool = False) -> Index:
    """Read an ``index.json``.

    Parameters
    ----------
    text : bytes
        The file's content.
    where : str
        The file's place, for messages.
    trusted : bool
        Whether this process wrote it, so that its size has no limit.

    Raises
    ------
    FormatError
        If it is no JSON, does not follow the format, or takes more memory than is free.
    """
    if not trusted:
        check_size(len(text), where)
        if len(text) > _COUNTED and not fits(taken := parsed_size(text)):
            raise FormatError(
                f"{where}: to parse its {quantity(len(text), 'byte')} takes about "
                f"{quantity(taken, 'byte')} of memory, and {available():,} are free"
            )
    try:
        document = json.loads(text)
    except MemoryError as error:
        raise FormatError(
            f"{where}: its {quantity(len(text), 'byte')} cannot be parsed in the memory that is "
            "free"
        ) from error
    except (ValueError, RecursionError) as error:
        what = "an empty file" if not text.strip() else f"no JSON: {error}"
        raise FormatError(f"{where}: {what}; expected the index of a dataset") from error
    if not isinstance(document, dict):
        raise FormatError(f"{where}: {type(document).__name__} at the top; expected an object")
    if document.get("version") != INDEX_VERSION:
        raise FormatError(
            f"{where}: version {shown(document.get('version'))}; this release reads version "
            f"{INDEX_VERSION}"
        )
    entries = document.get("shards")
    if not isinstance(entries, list):
        raise FormatError(f"{where}: 'shards' is {type(entries).__name__}; expected a list")
    schemas, annotations = parse_annotations(document.get(KEY), f"{where}: {KEY!r}")
    return _from_entries(entries, schemas, annotations, where)


def parse_annotations(said: Any, place: str) -> tuple[tuple[Schema, ...], Annotations]:
    """Check what an index says under the key of its annotations, if it has that.

    Parameters
    ----------
    said : dict or None
    place : str
        For messages.

    Returns
    -------
    schemas : tuple of Schema
        The schema of an index that has no shards to say it.
    annotations : Annotations
    """

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{place}: {message}")

    if not isinstance(said, dict) or "version" not in said:
        return (), Annotations()  # of somebody else, who thought of the same key
    if said["version"] != ANNOTATIONS:
        fail(f"version {shown(said['version'])}; this release reads version {ANNOTATIONS}")
    dtypes, order, schema = said.get("dtypes", {}), said.get("columns", []), said.get("schema")
    if not isinstance(dtypes, dict) or not all(isinstance(d, str) for d in dtypes.values()):
        fail(f"'dtypes' is {shown(dtypes)}; expected names of columns and dtypes")
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        fail(f"'columns' is {shown(order)}; expected a list of names")
    if len(set(order)) != len(order):
        fail("'columns' names a column twice")
    schemas: tuple[Schema, ...] = ()
    if schema is not None:
        try:
            lists = _lists(schema, "column_names", "column_encodings", "column_sizes")
        except (FormatError, LookupError, TypeError) as error:
            fail(f"'schema': {error}")
        schemas = (check_schema(("mds", *lists, "", ""), place),)
    return schemas, Annotations(dtypes, tuple(order))


class _Entries:
    """The entries of an ``index.json``, checked as far as nobody has asked for their files."""

    def __init__(self, entries: list[dict[str, Any]], where: str) -> None:
        self._entries = entries
        self._where = where

    def files(self, shard: int) -> ShardFiles:
        entry = self._entries[shard]
        place = f"{self._where}: shard {shard}"
        return ShardFiles(
            data=_file(entry, "raw_data", place),
            zip_data=_optional_file(entry, "zip_data", place),
            meta=_optional_file(entry, "raw_meta", place),
            zip_meta=_optional_file(entry, "zip_meta", place),
            compression=entry.get("compression"),
        )

    def name(self, shard: int) -> str:
        return str(self._entries[shard]["raw_data"]["basename"])

    def fingerprint(self, index: Index) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for facts in (index.starts, index.nbytes, index.schema_of):
            digest.update(facts.astype(facts.dtype.newbyteorder("<")).data)
        digest.update(repr(index.schemas).encode())
        if dtypes := index.annotations.dtypes:
            digest.update(json.dumps(dtypes, sort_keys=True).encode())
        for shard, entry in enumerate(self._entries):
            hashes, zipped = entry["raw_data"].get("hashes"), entry.get("zip_data")
            if hashes or zipped:
                known = [shard, hashes, zipped is not None]
                digest.update(json.dumps(known, sort_keys=True).encode())
        return digest.hexdigest()


def _from_entries(
    entries: list[Any], given: tuple[Schema, ...], annotations: Annotations, where: str
) -> Index:
    count = len(entries)
    keys: dict[Any, int] = {}
    samples, nbytes = np.zeros((2, count), np.int64)
    schema_of, compressed = np.zeros(count, np.int32), np.zeros(count, np.bool_)
    for shard, entry in enumerate(entries):
        key, samples[shard], nbytes[shard] = _checked(entry, shard, where)
        schema_of[shard] = keys.setdefault(key, len(keys))
        compressed[shard] = entry.get("zip_data") is not None
    schemas = tuple(
        check_schema(key, f"{where}: shard {np.argmax(schema_of == number)}")
        for key, number in keys.items()
    )
    annotations = _of_columns(annotations, schemas or given)
    facts = ShardFacts(samples, nbytes, schema_of, compressed, schemas or given, annotations)
    return Index(facts, _Entries(entries, where), where)


def _of_columns(annotations: Annotations, schemas: tuple[Schema, ...]) -> Annotations:
    """Leave out what is said of columns that no shard has, as those of an index that was cut."""
    names = {name for schema in schemas for name in schema.names}
    dtypes = {name: dtype for name, dtype in annotations.dtypes.items() if name in names}
    return Annotations(dtypes, tuple(name for name in annotations.order if name in names))


def guide_table(starts: Int64) -> tuple[Int64, int]:
    """Build the look-up table that turns a sample's number into its shard.

    Parameters
    ----------
    starts : ndarray of int64, shape (shards + 1,)
        First sample of each shard, then the number of samples.

    Returns
    -------
    guide : ndarray of int64
        ``guide[c]`` is the last shard that starts at or before sample ``c << shift``, so the
        shard of sample i lies in ``[guide[i >> shift], guide[(i >> shift) + 1]]``.
    shift : int
        Chosen so that the table is about twice as long as there are shards.
    """
    shards, samples = len(starts) - 1, int(starts[-1])
    shift = max(samples // max(shards, 1), 1).bit_length() - 1
    cells = (np.arange((samples >> shift) + 2, dtype=np.int64)) << shift
    guide = np.searchsorted(starts, np.minimum(cells, max(samples - 1, 0)), side="right") - 1
    return np.minimum(guide, max(shards - 1, 0)).astype(np.int64), shift


def _checked(entry: Any, shard: int, where: str) -> tuple[Any, int, int]:
    """Check a shard's entry; return its schema as a hashable key, its samples and its bytes."""
    try:
        kind = entry["format"]
        if entry["version"] != INDEX_VERSION:
            raise FormatError(
                f"version {shown(entry['version'])}; this release reads {INDEX_VERSION}"
            )
        if kind not in FORMATS:
            raise FormatError(f"format {shown(kind)}; known: {', '.join(FORMATS)}")
        if not entry.keys() <= FORMATS[kind]:
            raise FormatError(f"unknown keys {shown(sorted(entry.keys() - FORMATS[kind]))}")
        raw = entry["raw_data"]
        samples, nbytes = entry["samples"], raw["bytes"]
        if type(samples) is not int or not 0 <= samples < 2**32:
            raise FormatError(f"'samples' is {shown(samples)}; expected an int in [0, 2**32)")
        if type(nbytes) is not int or not 0 <= nbytes < MAX_FILE_BYTES:
            raise FormatError(f"'bytes' is {shown(nbytes)}; expected an int in [0, 2**40)")
        if not isinstance(compression := entry.get("compression"), str | None):
            raise FormatError(f"'compression' is {shown(compression)}; expected a string or null")
        if kind == "mds":
            head = nbytes
            key = kind, *_lists(entry, "column_names", "column_encodings", "column_sizes"), "", ""
        else:
            head = entry["raw_meta"]["bytes"]
            key = _text_key(kind, entry)
        if head < 8 + 4 * samples or nbytes < samples:
            raise FormatError(
                f"{quantity(samples, 'sample')} cannot lie in {quantity(min(head, nbytes), 'byte')}"
            )
        for name in ("raw_data", "zip_data", "raw_meta", "zip_meta"):
            file = entry.get(name)
            if file is not None and not BELOW.fullmatch(file["basename"]):
                raise FormatError(
                    f"'basename' {shown(file['basename'])} leaves the dataset's directory"
                )
        hash(key)
    except FormatError as error:
        raise FormatError(f"{where}: shard {shard}: {error}") from None
    except KeyError as error:
        raise FormatError(f"{where}: shard {shard}: the key {error} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{where}: shard {shard}: a value has the wrong type: {error}") from error
    return key, samples, nbytes


def _text_key(kind: str, entry: dict[str, Any]) -> tuple[Any, ...]:
    if kind == "json":
        names, encodings = tuple(entry["columns"]), tuple(entry["columns"].values())
    else:
        names, encodings = _lists(entry, "column_names", "column_encodings")
    separator = entry["separator"] if kind == "xsv" else _SEPARATORS.get(kind, "")
    return kind, names, encodings, (), entry["newline"], separator


def _lists(entry: dict[str, Any], *keys: str) -> tuple[tuple[Any, ...], ...]:
    for key in keys:
        if not isinstance(entry[key], list):
            raise FormatError(f"{key!r} is {shown(entry[key])}; expected a list")
    return tuple([tuple(entry[key]) for key in keys])


def check_schema(key: Any, place: str) -> Schema:
    """Check what is said of a shard's columns, given as the values of a `Schema` in order."""
    kind, names, encodings, sizes, newline, separator = key

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{place}: {message}")

    texts = (*names, *encodings, newline, separator)
    if not all(isinstance(text, str) for text in texts):
        fail("column names, encodings, newline and separator must be strings")
    if any("\ud800" <= character <= "\udfff" for character in "".join(texts)):
        fail("column names, encodings, newline and separator must be UTF-8")
    if len(names) != len(encodings) or (kind == "mds" and len(sizes) != len(names)):
        fail(
            f"{len(names)} column names, {quantity(len(encodings), 'encoding')}, "
            f"{quantity(len(sizes), 'size')}"
        )
    if not names:
        fail("a shard has no columns")
    if len(set(names)) != len(names):
        twice = sorted(name for name, n in Counter(names).items() if n > 1)
        fail(f"duplicate columns {shown(twice)}")
    if not all(size is None or (type(size) is int and 0 < size < 2**32) for size in sizes):
        fail(f"column sizes {shown(sizes)}: expected null or an int in [1, 2**32)")
    if kind != "mds" and not newline:
        fail("an empty newline")
    if kind == "xsv" and not separator:
        fail("an empty separator")
    return Schema(kind, names, encodings, sizes, newline, separator)


def _optional_file(entry: dict[str, Any], key: str, place: str) -> File | None:
    return None if entry.get(key) is None else _file(entry, key, place)


def _file(entry: dict[str, Any], key: str, place: str) -> File:
    facts = entry[key]
    name, nbytes, hashes = facts["basename"], facts.get("bytes"), facts.get("hashes") or {}
    if type(nbytes) is not int or not 0 <= nbytes < MAX_FILE_BYTES:
        raise FormatError(
            f"{place}: {key} has 'bytes' {shown(nbytes)}; expected an int in [0, 2**40)"
        )
    if not isinstance(hashes, dict) or not all(isinstance(h, str) for h in hashes.values()):
        raise FormatError(
            f"{place}: {key} has 'hashes' {shown(hashes)}; expected names and digests"
        )
    return File(name, nbytes, hashes)


def locate_samples(index: Index, ids: int | Int64) -> tuple[Any, Any]:
    """Return the shard of a sample and its row there; of several samples, in their shape."""
    shards = np.searchsorted(index.starts, ids, side="right") - 1
    rows = ids - index.starts[shards]
    return (int(shards), int(rows)) if isinstance(ids, int) else (shards, rows)


def shard_table(index: Index) -> AnyArray:
    """Return name, first sample, samples and bytes of each shard as a structured array."""
    names = [index.name(shard) for shard in range(len(index))]
    width = max(map(len, names), default=1)
    fields = [("name", f"U{width}"), ("start", "i8"), ("samples", "i8"), ("bytes", "i8")]
    table = np.empty(len(index), fields)
    table["name"], table["bytes"] = names, index.nbytes
    table["start"], table["samples"] = index.starts[:-1], np.diff(index.starts)
    return table


def check_ascent(offsets: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
    """Raise FormatError unless a shard's offsets ascend.

    Damaged ones could otherwise pass one sample off as another, both whole.
    """
    if (descends := offsets[1:] <= offsets[:-1]).any():
        row = int(descends.argmax())
        raise FormatError(f"sample {row} begins at byte {offsets[row]}, ends at {offsets[row + 1]}")


def check_configuration(schema: Schema, configuration: Bytes) -> None:
    """Compare what a shard says of its own columns with what the index says.

    Reading does not need it, and other writers leave it out; but an index that calls the bytes
    something else, or by another name, would give wrong values without any other sign.

    Parameters
    ----------
    schema : Schema
    configuration : ndarray of uint8
        The JSON object that stands in the shard; what does not begin with one is passed over.

    Raises
    ------
    FormatError
        If they differ, or something follows the object.
    """
    if len(configuration) > _MAX_CONFIGURATION:
        return
    try:
        text = configuration.tobytes().decode(errors="replace").lstrip()
        said, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(said, dict):
        return
    if text[end:].strip():
        raise FormatError("something follows its configuration")
    names, encodings = list(schema.names), list(schema.encodings)
    known: dict[str, Any] = {"column_names": names, "column_encodings": encodings}
    if schema.format == "json":
        known = {"columns": dict(zip(names, encodings, strict=True))}
    for key in known.keys() & said.keys():
        if said[key] != known[key]:
            raise FormatError(f"its own {key!r} are {said[key]!r}; the index says {known[key]!r}")
