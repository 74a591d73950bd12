"""Damage samples of a dataset on disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path


def break_samples(path: Path, samples: Iterable[int]) -> None:
    """Overwrite the sizes of values in samples of an uncompressed MDS dataset.

    The samples need a column of varying size.
    """
    first = 0
    wanted = sorted(samples)
    for shard in json.loads((path / "index.json").read_text())["shards"]:
        with open(path / shard["raw_data"]["basename"], "r+b") as file:
            for sample in wanted:
                row = sample - first
                if 0 <= row < shard["samples"]:
                    file.seek(4 * (1 + row))
                    (offset,) = struct.unpack("<I", file.read(4))
                    file.seek(offset)
                    file.write(b"\xff\xff\xff\x7f")
        first += shard["samples"]
