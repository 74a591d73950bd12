"""Writers of test datasets: shards of given sizes, JSONL, and merged directories."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import npstream


def write_shards(
    path: Path,
    values: Mapping[str, Any],
    sizes: Sequence[int],
    columns: Mapping[str, str] | None = None,
) -> npstream.Dataset:
    """Write one shard for each size, which may be 0, and open them as one dataset."""
    start = 0
    for number, size in enumerate(sizes):
        # An empty shard is first written with one row, which `_empty` removes.
        stop = max(start + size, 1)
        rows = [
            {name: values[name][i] for name in values} for i in range(stop - max(size, 1), stop)
        ]
        npstream.write(path / f"{number:04}", rows, columns=columns, shard_size=None)
        if size == 0:
            _empty(path / f"{number:04}")
        start += size
    return merge(path)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write a dataset of one JSONL shard; `columns` maps names to "int", "float" or "str"."""
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    ends = np.cumsum([0, *map(len, lines)])
    files = {
        "data.json": b"".join(lines),
        "data.json.meta": np.array([len(lines), *ends], "<u4").tobytes(),
    }
    path.mkdir()
    for name, body in files.items():
        (path / name).write_bytes(body)
    data, meta = (
        {"basename": name, "bytes": len(body), "hashes": {}} for name, body in files.items()
    )
    shard = {"columns": columns, "compression": None, "format": "json", "hashes": []}
    shard |= {"newline": "\n", "raw_data": data, "raw_meta": meta, "samples": len(lines)}
    shard |= {"size_limit": None, "version": 2, "zip_data": None, "zip_meta": None}
    (path / "index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))


def merge(path: Path, **options: Any) -> npstream.Dataset:
    """Write a merged index of all datasets in subdirectories, and open it.

    The annotations of the last dataset apply to all.
    """
    shards: list[Any] = []
    index = {"version": 2, "shards": shards}
    for part in sorted(path.glob("*/index.json")):
        document = json.loads(part.read_text())
        index |= {"npstream": document.get("npstream")}
        for shard in document["shards"]:
            for file in ("raw_data", "raw_meta", "zip_data", "zip_meta"):
                if shard.get(file):
                    shard[file]["basename"] = f"{part.parent.name}/{shard[file]['basename']}"
            shards.append(shard)
    (path / "index.json").write_text(json.dumps(index))
    return npstream.open(path, **options)


def _empty(path: Path) -> None:
    """Remove all samples from a dataset of one shard."""
    index = json.loads((path / "index.json").read_text())
    (shard,) = index["shards"]
    body = struct.pack("<II", 0, 8)
    (path / shard["raw_data"]["basename"]).write_bytes(body)
    shard["samples"], shard["raw_data"]["bytes"] = 0, len(body)
    (path / "index.json").write_text(json.dumps(index))


def objects(rows: Any) -> np.ndarray[Any, Any]:
    """Return an object array with one element for each row, also if rows are arrays."""
    rows = list(rows)
    array = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        array[i] = row
    return array
