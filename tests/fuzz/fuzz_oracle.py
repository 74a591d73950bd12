"""What may be read from a damaged dataset: the rule of `fuzz`, without any of npstream's readers.

Every sample equals the original or raises (DESIGN §12.15), except bytes inside the value body of
shards that record no hash. To the byte, that exception is:

- MDS: the bodies of columns, so a changed byte excuses one column of one sample. The head of the
  shard and the sizes at the start of a sample excuse nothing, unless they still agree by chance:
  the sizes of one sample were changed and add up to its length, or an offset leads to bytes that
  begin with a size which fits. The format has no means to notice that.
- JSONL and XSV: the text of a line, without its newline, excuses that line's sample.
- A compressed file that still unpacks to as many bytes is judged by these.
- Whether a shard records a hash is for the (damaged) index to say, and ``verify=`` whether it is
  compared: always where a file is decompressed, with ``verify=True`` where it is mapped.

The index is no value. It may name fewer shards, name them in another order, or twice: then the
samples are those of the shards that it names.
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
"""The owner of a byte that is no part of any value."""


@dataclass
class Shard:
    """An undamaged shard: whose each byte is, as ``row * columns + column``, or STRUCTURE."""

    raw: bytes
    owner: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """Of each byte, the row whose sizes it is part of, or STRUCTURE."""
    rows: int
    columns: tuple[str, ...]
    is_mds: bool
    fixed: int = 0
    """Bytes of the columns of one size in each sample."""


class Original:
    """A dataset as it was: its files, and what their bytes are for."""

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
        """Return the content of a shard's file, as it is or unpacked."""
        raw, packed = entry[f"raw_{which}"], entry[f"zip_{which}"]
        if raw["basename"] in files:
            return files[raw["basename"]]
        return decompress(files[packed["basename"]], entry["compression"], raw["bytes"])


def _mds(entry: dict[str, Any], raw: bytes, meta: bytes) -> Shard:
    (rows,) = struct.unpack_from("<I", raw)
    offsets = struct.unpack_from(f"<{rows + 1}I", raw, 4)
    fixed = entry["column_sizes"]
    variable = fixed.count(None)
    owner, sizes = np.full((2, len(raw)), STRUCTURE)
    for row, (begin, end) in enumerate(pairwise(offsets)):
        lengths = iter(struct.unpack_from(f"<{variable}I", raw, begin))
        sizes[begin : begin + 4 * variable] = row
        at = begin + 4 * variable
        for column, size in enumerate(fixed):
            length = next(lengths) if size is None else size
            owner[at : at + length] = row * len(fixed) + column
            at += length
        assert at == end
    return Shard(
        raw, owner, sizes, rows, tuple(entry["column_names"]), True, sum(filter(None, fixed))
    )


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
class Place:
    """What a position of the damaged dataset must hold: a row of an original shard, or raise."""

    shard: Shard | None = None
    row: int = 0
    excused: frozenset[str] = frozenset()


def judge(
    original: Original, changed: dict[str, bytes], verify: bool | str
) -> list[tuple[int, list[Place]]] | None:
    """Return what the shards that the damaged index names must hold, as (samples, places).

    The places of a shard that must raise are empty. None: the index itself must be refused.
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
    """Return what matters of a shard's entry; raise where it is not there."""
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
) -> tuple[int, list[Place]]:
    count, packed = entry["samples"], entry["packed"]
    mapped = packed is None or entry["raw"] in files
    name = entry["raw"] if mapped else packed
    shard = original.shards.get(name)
    if shard is None or name not in files or count != shard.rows:
        return count, []
    excused: dict[int, frozenset[str]] = {}
    recorded = entry["hashed"][0] if mapped else any(entry["hashed"])
    if not recorded or not (verify is True or (verify == "auto" and not mapped)):
        excused = _excused(shard, files[name], None if mapped else entry["compression"])
    return count, [Place(shard, row, excused.get(row, frozenset())) for row in range(count)]


def _excused(shard: Shard, content: bytes, compression: str | None) -> dict[int, frozenset[str]]:
    """Return which columns of which rows may differ."""
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
    for row in _moved(shard, content):
        excused[row] = frozenset(shard.columns)
    return excused


def _moved(shard: Shard, content: bytes) -> set[int]:
    """Return the rows whose offsets lead to what looks like a sample, though it is none."""
    variable = int((shard.sizes == 0).sum()) // 4
    if not variable:
        return set()
    known, found = (
        list(pairwise(struct.unpack_from(f"<{shard.rows + 1}I", data, 4)))
        for data in (shard.raw, content)
    )
    moved = set()
    for row in np.flatnonzero([a != b for a, b in zip(known, found, strict=True)]).tolist():
        begin, end = found[row]
        if begin + 4 * variable <= end <= len(content) and found[row] not in known:
            sizes = struct.unpack_from(f"<{variable}I", content, begin)
            if 4 * variable + shard.fixed + sum(sizes) == end - begin:
                moved.add(row)
    return moved
