"""The index of a dataset: ``index.json``, checked and turned into arrays.

The format is Streaming's, version 2: one entry a shard, in the order of the samples. An index
is untrusted input; whatever does not follow the format is a `FormatError` that names the file
and the shard.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from npstream._typing import Bytes, Int64
from npstream.errors import FormatError

VERSION = 2

_COMMON = {
    "compression", "format", "hashes", "raw_data", "samples", "size_limit", "version", "zip_data"
}  # fmt: skip
_META = {"newline", "raw_meta", "zip_meta"}
_NAMED = {"column_encodings", "column_names"}
_KEYS = {
    "mds": _COMMON | _NAMED | {"column_sizes"},
    "json": _COMMON | _META | {"columns"},
    "csv": _COMMON | _META | _NAMED,
    "tsv": _COMMON | _META | _NAMED,
    "xsv": _COMMON | _META | _NAMED | {"separator"},
}
_SEPARATORS = {"csv": ",", "tsv": "\t"}

# A path below the dataset's directory: no root, no drive, no step up, no other scheme; nor what
# no file can be called.
_BELOW = re.compile(
    r"(?![/\\]|[A-Za-z]:|.*://)(?!(?:.*/)?\.{1,2}(?:/|$))[^\\\0\ud800-\udfff]+", re.DOTALL
)

_MAX_BYTES = 1 << 40
"""Far beyond what a shard's offsets reach, and so small that sums of it stay within int64."""

_MAX_CONFIGURATION = 1 << 20


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
        The different schemas, in order of appearance.
    schema_of : ndarray of int32, shape (shards,)
        Which of them each shard has.
    total : int
        Bytes of all shards, uncompressed.
    guide, shift : ndarray of int64, int
        Shard look-up: ``guide[i >> shift]`` is the shard of the sample ``i >> shift << shift``.
    where : str
        The index's own place, for messages.
    """

    __slots__ = (
        "_entries", "compressed", "guide", "nbytes", "schema_of", "schemas", "shift", "starts",
        "total", "where",
    )  # fmt: skip

    def __init__(self, entries: list[dict[str, Any]], where: str) -> None:
        self._entries = entries
        self.where = where
        schemas: dict[Any, int] = {}
        counts = np.zeros(len(entries), np.int64)
        self.nbytes = np.zeros(len(entries), np.int64)
        self.schema_of = np.zeros(len(entries), np.int32)
        self.compressed = np.zeros(len(entries), np.bool_)
        for shard, entry in enumerate(entries):
            key, counts[shard], self.nbytes[shard] = _checked(entry, shard, where)
            self.schema_of[shard] = schemas.setdefault(key, len(schemas))
            self.compressed[shard] = entry.get("zip_data") is not None
        self.schemas = tuple(
            _schema(key, f"{where}: shard {np.argmax(self.schema_of == number)}")
            for key, number in schemas.items()
        )
        self.starts = np.zeros(len(entries) + 1, np.int64)
        np.cumsum(counts, out=self.starts[1:])
        self.guide, self.shift = guide_table(self.starts)
        self.total = int(self.nbytes.sum())

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self._entries)

    @property
    def samples(self) -> int:
        """The number of samples in all shards."""
        return int(self.starts[-1])

    def files(self, shard: int) -> ShardFiles:
        """Return the files of a shard."""
        entry = self._entries[shard]
        place = f"{self.where}: shard {shard}"
        return ShardFiles(
            data=_file(entry, "raw_data", place),
            zip_data=_optional_file(entry, "zip_data", place),
            meta=_optional_file(entry, "raw_meta", place),
            zip_meta=_optional_file(entry, "zip_meta", place),
            compression=entry.get("compression"),
        )

    def fingerprint(self) -> str:
        """Hash what a sample's number depends on, and what tells its content.

        Files may be renamed, and compressed as well or as badly as one likes.
        """
        digest = hashlib.blake2b(digest_size=8)
        for facts in (self.starts, self.nbytes, self.schema_of):
            digest.update(facts.astype(facts.dtype.newbyteorder("<")).data)
        digest.update(repr(self.schemas).encode())
        for shard, entry in enumerate(self._entries):
            hashes, zipped = entry["raw_data"].get("hashes"), entry.get("zip_data")
            if hashes or zipped:
                known = [shard, hashes, zipped is not None]
                digest.update(json.dumps(known, sort_keys=True).encode())
        return digest.hexdigest()

    def name(self, shard: int) -> str:
        """Return the name of a shard's (uncompressed) data file."""
        return str(self._entries[shard]["raw_data"]["basename"])


def parse_index(text: bytes, where: str) -> Index:
    """Read an ``index.json``.

    Parameters
    ----------
    text : bytes
        The file's content.
    where : str
        The file's place, for messages.

    Raises
    ------
    FormatError
        If it is no JSON, or does not follow the format.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "an empty file" if not text.strip() else f"no JSON: {error}"
        raise FormatError(f"{where}: {what}; expected the index of a dataset") from error
    if not isinstance(document, dict):
        raise FormatError(f"{where}: {type(document).__name__} at the top; expected an object")
    if document.get("version") != VERSION:
        raise FormatError(
            f"{where}: version {document.get('version')!r}; this release reads version {VERSION}"
        )
    entries = document.get("shards")
    if not isinstance(entries, list):
        raise FormatError(f"{where}: 'shards' is {type(entries).__name__}; expected a list")
    return Index(entries, where)


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


def _checked(entry: Any, shard: int, where: str) -> tuple[Any, int, int]:
    """Check a shard's entry; return its schema as a hashable key, its samples and its bytes."""
    try:
        kind = entry["format"]
        if entry["version"] != VERSION:
            raise FormatError(f"version {entry['version']!r}; this release reads {VERSION}")
        if kind not in _KEYS:
            raise FormatError(f"format {kind!r}; known: {', '.join(_KEYS)}")
        if not entry.keys() <= _KEYS[kind]:
            raise FormatError(f"unknown keys {sorted(entry.keys() - _KEYS[kind])}")
        raw = entry["raw_data"]
        samples, nbytes = entry["samples"], raw["bytes"]
        if type(samples) is not int or not 0 <= samples < 2**32:
            raise FormatError(f"'samples' is {samples!r}; expected an int in [0, 2**32)")
        if type(nbytes) is not int or not 0 <= nbytes < _MAX_BYTES:
            raise FormatError(f"'bytes' is {nbytes!r}; expected an int in [0, 2**40)")
        if not isinstance(compression := entry.get("compression"), str | None):
            raise FormatError(f"'compression' is {compression!r}; expected a string or null")
        if kind == "mds":
            head = nbytes
            key = kind, *_lists(entry, "column_names", "column_encodings", "column_sizes"), "", ""
        else:
            head = entry["raw_meta"]["bytes"]
            key = _text_key(kind, entry)
        if head < 8 + 4 * samples or nbytes < samples:
            raise FormatError(f"{samples} samples cannot lie in {min(head, nbytes)} bytes")
        for name in ("raw_data", "zip_data", "raw_meta", "zip_meta"):
            file = entry.get(name)
            if file is not None and not _BELOW.fullmatch(file["basename"]):
                raise FormatError(f"'basename' {file['basename']!r} leaves the dataset's directory")
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
            raise FormatError(f"{key!r} is {entry[key]!r}; expected a list")
    return tuple([tuple(entry[key]) for key in keys])


def _schema(key: Any, place: str) -> Schema:
    kind, names, encodings, sizes, newline, separator = key

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{place}: {message}")

    texts = (*names, *encodings, newline, separator)
    if not all(isinstance(text, str) for text in texts):
        fail("column names, encodings, newline and separator must be strings")
    if any("\ud800" <= character <= "\udfff" for character in "".join(texts)):
        fail("column names, encodings, newline and separator must be UTF-8")
    if len(names) != len(encodings) or (kind == "mds" and len(sizes) != len(names)):
        fail(f"{len(names)} column names, {len(encodings)} encodings, {len(sizes)} sizes")
    if not names:
        fail("a shard has no columns")
    if len(set(names)) != len(names):
        fail(f"duplicate columns {sorted(name for name, n in Counter(names).items() if n > 1)}")
    if not all(size is None or (type(size) is int and 0 < size < 2**32) for size in sizes):
        fail(f"column sizes {sizes}: expected null or an int in [1, 2**32)")
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
    if type(nbytes) is not int or not 0 <= nbytes < _MAX_BYTES:
        raise FormatError(f"{place}: {key} has 'bytes' {nbytes!r}; expected an int in [0, 2**40)")
    if not isinstance(hashes, dict) or not all(isinstance(h, str) for h in hashes.values()):
        raise FormatError(f"{place}: {key} has 'hashes' {hashes!r}; expected names and digests")
    return File(name, nbytes, hashes)
