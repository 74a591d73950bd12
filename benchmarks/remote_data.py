"""T, I and V in a local SeaweedFS, behind a proxy that counts and delays requests."""

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
"""An object's name, and the begin and end of a byte range."""

COLUMNS = {"T": None, "I": {"image": "bytes"}, "V": None}
"""``columns=`` of `npstream.open`: the random bytes of I cannot be decoded as images."""


@dataclass
class Usage:
    """The cost of a block of code; requests and bytes are counted only by the proxy."""

    seconds: float = 0.0
    requests: int = 0
    nbytes: int = 0


class Remote:
    """The object store with all datasets.

    Methods with a `delay` in seconds connect through the proxy, or directly if it is None.
    """

    def __init__(self, data: Data) -> None:
        npstream.precompile()  # importing Numba is not measured
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
        """Return the remote directory of a dataset."""
        remote_dir = self._server.directory_at(f"{self._server.root}/{name}")
        if delay is None:
            return remote_dir
        self.proxy.latency = delay
        return remote_dir.with_proxy(self.proxy)

    def open(self, name: str, delay: float | None, cache: Path) -> npstream.Dataset:
        remote_dir = self.remote_dir(name, delay)
        return npstream.open(
            remote_dir.url,
            columns=COLUMNS[name],
            storage_options=remote_dir.storage_options,
            cache=cache,
        )

    def filesystem(self, name: str, delay: float | None, connections: int = 10) -> tuple[Any, str]:
        """Return a new fsspec filesystem without connections, and the path of a dataset in it."""
        import fsspec

        remote_dir = self.remote_dir(name, delay)
        return fsspec.core.url_to_fs(
            remote_dir.url,
            skip_instance_cache=True,
            config_kwargs={"max_pool_connections": connections},
            **remote_dir.storage_options,
        )

    def sample_ranges(self, name: str, ids: np.ndarray, offsets: bool = False) -> list[Span]:
        """Return the byte ranges of samples, or of their offsets."""
        index = json.loads((self.paths[name] / "index.json").read_text())["shards"]
        starts = np.cumsum([0, *(shard["samples"] for shard in index)])
        shard_numbers = np.searchsorted(starts, ids, side="right") - 1
        ranges = []
        for shard, row in zip(
            shard_numbers.tolist(), (ids - starts[shard_numbers]).tolist(), strict=True
        ):
            file = index[shard]["raw_data"]["basename"]
            # A shard begins with the number of samples and the offsets, uint32 each. The offsets
            # of a sample's begin and end are 8 bytes.
            begin, end = 4 + 4 * row, 12 + 4 * row
            if not offsets:
                begin, end = self._offsets(name, file)[row : row + 2].tolist()
            ranges.append((file, begin, end))
        return ranges

    def chunk_ranges(self, name: str) -> list[Span]:
        """Return the byte ranges of all chunks of a dataset."""
        starts = self.local[name]._source.chunk_starts()
        first, last = (
            self.sample_ranges(name, starts[:-1]),
            self.sample_ranges(name, starts[1:] - 1),
        )
        return [(*head[:2], tail[2]) for head, tail in zip(first, last, strict=True)]

    @staticmethod
    def requested_ranges(log: list[Request]) -> list[Span]:
        """Return the byte ranges of logged requests."""
        requests = [(r.path.rpartition("/")[2], re.findall(r"\d+", r.range)) for r in log]
        return [(file, int(ends[0]), int(ends[1]) + 1) for file, ends in requests if len(ends) == 2]

    @functools.cache  # noqa: B019 - the only instance lives until the process ends
    def _offsets(self, name: str, file: str) -> np.ndarray:
        count, *_ = np.fromfile(self.paths[name] / file, "<u4", 1)
        return np.fromfile(self.paths[name] / file, "<u4", count + 1, offset=4).astype(np.int64)

    @contextmanager
    def measure(self, delay: float | None) -> Iterator[Usage]:
        """Measure the cost of a block."""
        before = len(self.proxy.log) if delay is not None else 0
        usage, start = Usage(), time.perf_counter()
        yield usage
        usage.seconds = time.perf_counter() - start
        if delay is not None:
            requests = self.proxy.log[before:]
            usage.requests = len(requests)
            usage.nbytes = sum(request.nbytes for request in requests)

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """Create an empty directory, and remove it at the end of the block."""
        path = self.new_directory()
        try:
            yield path
        finally:
            # Threads may still write data that is in transit.
            shutil.rmtree(path, ignore_errors=True)

    def new_directory(self) -> Path:
        """Create an empty directory on the disk of the data; stopping the store removes it."""
        return Path(tempfile.mkdtemp(dir=self._server.directory))


@functools.cache
def remote(data: Data) -> Remote:
    """Return the store, which runs until the process ends."""
    store = Remote(data)
    atexit.register(store.close)
    return store
