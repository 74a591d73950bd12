"""A dataset with any number of shards, of which only the first exists."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np

from npstream.formats.index import parse_index
from npstream.formats.sidecar.sidecar import Sidecar, digest_index, encode_sidecar
from npstream.formats.versions import SIDECAR_FILE
from npstream.storage.local import open_store
from npstream.tools.index_builder import build_index


def publish_repeated_shard(directory: Path, shards: int, upload: Callable[[Path], str]) -> str:
    """Publish a dataset of one shard as a dataset with many shards, and return the URL.

    The side-car has the hashes of all shards. The URL is in a store in memory.
    """
    build_index(directory, columns=[])
    document = json.loads((directory / "index.json").read_text())
    (entry,) = document["shards"]
    sidecar = Sidecar(open_store(str(directory)))
    pieces, begin = sidecar.piece_hashes(0), sidecar.first_offset(0)
    entries = []
    for number in range(shards):
        entries.append(copy.deepcopy(entry))
        entries[-1]["raw_data"]["basename"] = f"shard.{number:06d}.mds"
    text = json.dumps(document | {"shards": entries}).encode()
    index = parse_index(text, "index.json", trusted=True)
    sections = {
        "begins": np.full(shards, begin, np.uint32),
        "pieces": np.tile(np.asarray(pieces, np.uint64), shards),
    }
    url = upload(directory)
    files, root = fsspec.filesystem("memory"), url.removeprefix("memory:/")
    body = b"".join(map(bytes, encode_sidecar(index, digest_index(text), [], sections)))
    files.pipe_file(f"{root}/index.json", text)
    files.pipe_file(f"{root}/{SIDECAR_FILE}", body)
    files.pipe_file(f"{root}/shard.000000.mds", (directory / "shard.00000.mds").read_bytes())
    return url
