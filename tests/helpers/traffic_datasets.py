"""A dataset on a server, behind a proxy that counts requests and makes them fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from faults import Proxy
from servers import RemoteDirectory, Servers

import npstream

SAMPLES = 20_000
SAMPLE_BYTES = 64 * 8


def serve_numbers(
    servers: Servers, name: str, path: Path, samples: int = SAMPLES
) -> tuple[RemoteDirectory, Proxy]:
    """Serve a dataset whose sample i has the 64 numbers from i on, each in 8 bytes."""
    values = np.arange(samples)[:, None] + np.arange(64)
    npstream.write(path / "numbers", {"value": values}, shard_size="4MB")
    proxy = servers.proxy(name)
    proxy.clear()
    directory = servers[name].new_directory()
    for file in (path / "numbers").iterdir():
        directory.put(file.name, file.read_bytes())
    return directory.with_proxy(proxy), proxy


def open_numbers(directory: RemoteDirectory, path: Path, **options: Any) -> npstream.Dataset:
    """Open the dataset with a new cache."""
    return npstream.open(
        directory.url, storage_options=directory.storage_options, cache=path / "cache", **options
    )
