"""Oracle of `fuzz`: which values may be read from a damaged dataset, without npstream's readers.

Every sample must equal the original or raise (DESIGN §12.15). Exception: a value may differ if its
bytes changed and its shard has no verified hash. In detail:

- MDS: a changed byte in the body of a column excuses this column of this sample. Changes in the
  head of the shard, or in the sizes at the start of a sample, excuse nothing, with two exceptions
  that the format cannot detect. The changed sizes of a sample may still add up to its length. A
  changed offset may lead to bytes that start with consistent sizes.
- JSONL and XSV: a changed byte in a line, except its newline, excuses the sample of the line.
- A damaged compressed file counts by its decompressed bytes, if their number is unchanged.
- The (damaged) index determines whether a shard has a hash. ``verify=`` determines whether the hash
  is compared: always for a decompressed file, with ``verify=True`` for a mapped file.

The index itself is not a value. It may list fewer shards, another order, or a shard twice. The
samples are then those of the listed shards.
"""

from __future__ import annotations

import json
import operator
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npstream.formats.compression import decompress

STRUCTURE = -1
"""The owner of a byte that is not part of a value."""


@dataclass
class Shard:
    """An undamaged shard; ``owner`` has ``row * columns + column`` or STRUCTURE for each byte."""

    raw: bytes
    owner: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """For each byte, the row whose sizes contain it, or STRUCTURE."""
    rows: int
    columns: tuple[str, ...]
    is_mds: bool
    fixed: int = 0
    """Bytes of the fixed columns in each sample."""


class Original:
    """An undamaged dataset: its files, and the owners of their bytes."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.shards: dict[str, Shard] = {}
        for entry in json.loads(files["index.json"])["shards"]:
            raw = self._content(files, entry, "data")
            build = _mds if entry["format"] == "mds" else _lines
            meta = b"" if entry["format"] == "mds" else self._content(files, entry, "meta")
            self.shards[entry["raw_data"]["basename"]] = build(entry, raw, meta)
            if entry["zip_data"]:
                self.shards[entry["zip_data"]["basename"]] = self.shards[
                    entry["raw_data"]["basename"]
                ]

    def _content(self, files: dict[str, bytes], entry: dict[str, Any], which: str) -> bytes:
        """Return the uncompressed content of a shard's file."""
        raw, packed = entry[f"raw_{which}"], entry[f"zip_{which}"]
        if raw["basename"] in files:
            return files[raw["basename"]]
        return decompress(files[packed["basename"]], entry["compression"], raw["bytes"])


def _mds(entry: dict[str, Any], raw: bytes, meta: bytes) -> Shard:
    (rows,) = struct.unpack_from("<I", raw)
    offsets = struct.unpack_from(f"<{rows + 1}I", raw, 4)
    column_sizes = entry["column_sizes"]
    variable = column_sizes.count(None)
    owner, sizes = np.full((2, len(raw)), STRUCTURE)
    for row, (begin, end) in enumerate(pairwise(offsets)):
        lengths = iter(struct.unpack_from(f"<{variable}I", raw, begin))
        sizes[begin : begin + 4 * variable] = row
        at = begin + 4 * variable
        for column, size in enumerate(column_sizes):
            length = next(lengths) if size is None else size
            owner[at : at + length] = row * len(column_sizes) + column
            at += length
        assert at == end
    fixed = sum(filter(None, column_sizes))
    return Shard(raw, owner, sizes, rows, tuple(entry["column_names"]), True, fixed)


def _lines(entry: dict[str, Any], raw: bytes, meta: bytes) -> Shard:
    (rows,) = struct.unpack_from("<I", meta)
    offsets = struct.unpack_from(f"<{rows + 1}I", meta, 4)
    columns = tuple(entry["columns"] if "columns" in entry else entry["column_names"])
    owner, sizes = np.full((2, len(raw)), STRUCTURE)
    newline = len(entry["newline"].encode())
    for row, (begin, end) in enumerate(pairwise(offsets)):
        owner[begin : end - newline] = row * len(columns)
    return Shard(raw, owner, sizes, rows, columns, False)


@dataclass
class ExpectedRow:
    """The expected row at a position of the damaged dataset; without a shard, reads must raise."""

    shard: Shard | None = None
    row: int = 0
    excused: frozenset[str] = frozenset()


def judge(
    original: Original, changed: dict[str, bytes], verify: bool | str
) -> list[tuple[int, list[ExpectedRow]]] | None:
    """Return (samples, expected rows) for each shard in the damaged index.

    A shard without expected rows must raise. None means that opening must raise.
    """
    files = original.files | changed
    try:
        document = json.loads(files["index.json"])
        entries = [_entry(entry) for entry in document["shards"]]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    if document.get("version") != 2:
        return None
    return [_judge_shard(original, files, entry, verify) for entry in entries]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the relevant values of a shard's entry; raise if one is missing."""
    raw, packed = entry["raw_data"], entry.get("zip_data")
    hashed = [bool(raw.get("hashes")), bool(packed and packed.get("hashes"))]
    return {
        "samples": operator.index(entry["samples"]),
        "raw": str(raw["basename"]),
        "packed": packed and str(packed["basename"]),
        "hashed": hashed,
        "compression": entry.get("compression"),
    }


def _judge_shard(
    original: Original, files: dict[str, bytes], entry: dict[str, Any], verify: bool | str
) -> tuple[int, list[ExpectedRow]]:
    count, packed = entry["samples"], entry["packed"]
    mapped = packed is None or entry["raw"] in files
    name = entry["raw"] if mapped else packed
    shard = original.shards.get(name)
    if shard is None or name not in files or count != shard.rows:
        return count, []
    excused: dict[int, frozenset[str]] = {}
    has_hash = entry["hashed"][0] if mapped else any(entry["hashed"])
    if not has_hash or not (verify is True or (verify == "auto" and not mapped)):
        excused = _excused(shard, files[name], None if mapped else entry["compression"])
    return count, [ExpectedRow(shard, row, excused.get(row, frozenset())) for row in range(count)]


def _excused(shard: Shard, content: bytes, compression: str | None) -> dict[int, frozenset[str]]:
    """Return the columns that may differ, by row."""
    if compression is not None:
        try:
            content = decompress(content, compression, len(shard.raw))
        except (ValueError, TypeError):
            return {}
    if content == shard.raw or len(content) != len(shard.raw):
        return {}
    before, after = (np.frombuffer(data, np.uint8) for data in (shard.raw, content))
    changed = np.flatnonzero(before != after)
    excused: dict[int, frozenset[str]] = {}
    for owner in set(shard.owner[changed].tolist()) - {STRUCTURE}:
        row, column = divmod(owner, len(shard.columns))
        names = (shard.columns[column],) if shard.is_mds else shard.columns
        excused[row] = excused.get(row, frozenset()) | frozenset(names)
    for row in set(shard.sizes[changed].tolist()) - {STRUCTURE}:
        words = np.flatnonzero(shard.sizes == row)
        total = [int(data[words].view("<u4").sum(dtype=np.int64)) for data in (before, after)]
        if total[0] == total[1]:
            excused[row] = frozenset(shard.columns)
    for row in _rows_with_plausible_offsets(shard, content):
        excused[row] = frozenset(shard.columns)
    return excused


def _rows_with_plausible_offsets(shard: Shard, content: bytes) -> set[int]:
    """Return the rows whose changed offsets lead to bytes that look like a sample."""
    variable = int((shard.sizes == 0).sum()) // 4
    if not variable:
        return set()
    original, changed = (
        list(pairwise(struct.unpack_from(f"<{shard.rows + 1}I", data, 4)))
        for data in (shard.raw, content)
    )
    rows = set()
    for row in np.flatnonzero([a != b for a, b in zip(original, changed, strict=True)]).tolist():
        begin, end = changed[row]
        if begin + 4 * variable <= end <= len(content) and changed[row] not in original:
            sizes = struct.unpack_from(f"<{variable}I", content, begin)
            if 4 * variable + shard.fixed + sum(sizes) == end - begin:
                rows.add(row)
    return rows
