"""T, I and V in an object store: a local SeaweedFS, and a proxy that counts and delays."""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faults import Request
from servers import RemoteDirectory, Servers

import npstream
from data import Data

Span = tuple[str, int, int]
"""An object's path, and where a part of it begins and ends."""

COLUMNS = {"T": None, "I": {"image": "bytes"}, "V": None}
"""What they are opened as: the images are none."""


@dataclass
class Spent:
    """What a piece of work took; requests and the bytes of answers only through the proxy."""

    seconds: float = 0.0
    requests: int = 0
    nbytes: int = 0


class Remote:
    """The store, and what is in it.

    With a `delay`, in seconds, it is reached through a proxy; with None straight.
    """

    def __init__(self, data: Data) -> None:
        npstream.precompile()  # to import Numba is not what is measured
        self.data = data
        self.paths = {
            "T": data.tokens_dataset(),
            "I": data.images_dataset(),
            "V": data.volumes_dataset(),
        }
        self.local = {
            name: npstream.open(path, columns=COLUMNS[name]) for name, path in self.paths.items()
        }
        self._servers = Servers(data.directory)
        self._server = self._servers["s3"]
        self.proxy = self._servers.proxy("s3")
        for name, path in self.paths.items():
            filesystem, root = self.remote_dir(name).filesystem()
            filesystem.put([str(file) for file in path.iterdir()], f"{root}/", batch_size=8)

    def close(self) -> None:
        self._servers.close()

    def remote_dir(self, name: str, delay: float | None = None) -> RemoteDirectory:
        """Return where a dataset is."""
        remote_dir = self._server.at(f"{self._server.root}/{name}")
        if delay is None:
            return remote_dir
        self.proxy.latency = delay
        return remote_dir.via(self.proxy)

    def open(self, name: str, delay: float | None, cache: Path) -> npstream.Dataset:
        remote_dir = self.remote_dir(name, delay)
        return npstream.open(
            remote_dir.url,
            columns=COLUMNS[name],
            storage_options=remote_dir.storage_options,
            cache=cache,
        )

    def filesystem(self, name: str, delay: float | None, connections: int = 10) -> tuple[Any, str]:
        """Return a driver's filesystem without a connection yet, and where in it a dataset is."""
        import fsspec

        remote_dir = self.remote_dir(name, delay)
        return fsspec.core.url_to_fs(
            remote_dir.url,
            skip_instance_cache=True,
            config_kwargs={"max_pool_connections": connections},
            **remote_dir.storage_options,
        )

    def parts(self, name: str, ids: np.ndarray, offsets: bool = False) -> list[Span]:
        """Return where samples are stored, or their offsets."""
        index = json.loads((self.paths[name] / "index.json").read_text())["shards"]
        starts = np.cumsum([0, *(shard["samples"] for shard in index)])
        shard_of = np.searchsorted(starts, ids, side="right") - 1
        found = []
        for shard, row in zip(shard_of.tolist(), (ids - starts[shard_of]).tolist(), strict=True):
            file = index[shard]["raw_data"]["basename"]
            begin, end = 4 + 4 * row, 12 + 4 * row
            if not offsets:
                begin, end = self._offsets(name, file)[row : row + 2].tolist()
            found.append((file, begin, end))
        return found

    def chunks(self, name: str) -> list[Span]:
        """Return where the chunks of a dataset are stored."""
        starts = self.local[name]._source.chunk_starts()
        first, last = self.parts(name, starts[:-1]), self.parts(name, starts[1:] - 1)
        return [(*head[:2], tail[2]) for head, tail in zip(first, last, strict=True)]

    @staticmethod
    def ranges(log: list[Request]) -> list[Span]:
        """Return what parts of objects were asked for."""
        found = [(r.path.rpartition("/")[2], re.findall(r"\d+", r.range)) for r in log]
        return [(file, int(ends[0]), int(ends[1]) + 1) for file, ends in found if len(ends) == 2]

    @functools.cache  # noqa: B019 - there is one, as long as the process
    def _offsets(self, name: str, file: str) -> np.ndarray:
        count, *_ = np.fromfile(self.paths[name] / file, "<u4", 1)
        return np.fromfile(self.paths[name] / file, "<u4", count + 1, offset=4).astype(np.int64)

    @contextmanager
    def spent(self, delay: float | None) -> Iterator[Spent]:
        """Measure a block."""
        before = len(self.proxy.log) if delay is not None else 0
        spent, start = Spent(), time.perf_counter()
        yield spent
        spent.seconds = time.perf_counter() - start
        if delay is not None:
            made = self.proxy.log[before:]
            spent.requests, spent.nbytes = len(made), sum(request.nbytes for request in made)

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """Make an empty directory for a while."""
        path = self.new_directory()
        try:
            yield path
        finally:
            # What is on its way may still be written.
            shutil.rmtree(path, ignore_errors=True)

    def new_directory(self) -> Path:
        """Make an empty directory on the disk of the data, which goes with the store."""
        return Path(tempfile.mkdtemp(dir=self._server.directory))


@functools.cache
def remote(data: Data) -> Remote:
    """Return the store, which lasts as long as the process."""
    found = Remote(data)
    atexit.register(found.close)
    return found
