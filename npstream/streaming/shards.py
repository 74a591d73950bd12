"""Provide `ShardInfo`, with the attributes and sizes that Streaming's shard readers provide.

Tested in tests/streaming/test_dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from npstream._core.typing import Int64

if TYPE_CHECKING:
    from npstream.formats.index import File, Index


class FileInfo(NamedTuple):
    """A file of a shard: its name, its size in bytes and its hashes by name."""

    basename: str
    bytes: int
    hashes: dict[str, str]


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard of a dataset.

    Parameters
    ----------
    number : int
        Number of the shard in its stream.
    samples : int
        Number of samples.
    compression : str or None
        The codec, such as "zstd:3"; None for an uncompressed shard.
    raw_bytes : int
        Bytes of the uncompressed files.
    zip_bytes : int or None
        Bytes of the compressed files; None if there are none.
    file_pairs : list of (FileInfo, FileInfo or None)
        The uncompressed files, each with the compressed one if there is one.
    """

    number: int
    samples: int
    compression: str | None
    raw_bytes: int
    zip_bytes: int | None
    file_pairs: list[tuple[FileInfo, FileInfo | None]]

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.samples

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.samples

    def get_raw_size(self) -> int:
        """Return the bytes of the uncompressed files."""
        return self.raw_bytes

    def get_zip_size(self) -> int | None:
        """Return the bytes of the compressed files; None if there are none."""
        return self.zip_bytes

    def get_max_size(self) -> int:
        """Return the bytes of the uncompressed and the compressed files together."""
        return self.raw_bytes + (self.zip_bytes or 0)

    def get_persistent_size(self, keep_zip: bool) -> int:
        """Return the bytes on disk, with or without the compressed files."""
        return self.get_max_size() if keep_zip else self.raw_bytes


def shard_infos(index: Index) -> Iterator[ShardInfo]:
    """Yield the shards of an index."""
    for shard, (first, stop) in enumerate(zip(index.starts[:-1], index.starts[1:], strict=True)):
        files = index.files(shard)
        raw, zipped = (files.data, files.meta), (files.zip_data, files.zip_meta)
        zip_bytes = None if files.zip_data is None else _total_bytes(zipped)
        pairs = [
            (FileInfo(*file), None if zip_file is None else FileInfo(*zip_file))
            for file, zip_file in zip(raw, zipped, strict=True)
            if file is not None
        ]
        yield ShardInfo(
            shard, int(stop - first), files.compression, _total_bytes(raw), zip_bytes, pairs
        )


class ShardStream(Protocol):
    """What `ShardPreparation` needs of a stream."""

    def prepare_shard(self, shard: ShardInfo) -> int:
        """Bring a shard to the local directory."""


class ShardPreparation:
    """Calls `prepare_shard` of streams, once for each shard before its samples are read.

    Parameters
    ----------
    streams : sequence of ShardStream or None
        The streams; None for those whose class does not override `prepare_shard`.
    indexes : sequence of Index
        The index of each stream.
    """

    def __init__(self, streams: Sequence[ShardStream | None], indexes: Sequence[Index]) -> None:
        self._shards = [
            (stream, shard)
            for stream, index in zip(streams, indexes, strict=True)
            for shard in shard_infos(index)
        ]
        self._stops = np.cumsum([len(shard) for _, shard in self._shards])
        self._prepared: set[int] = set()

    def prepare(self, numbers: Int64) -> None:
        """Prepare the shards of samples."""
        for shard in np.unique(np.searchsorted(self._stops, numbers, side="right")).tolist():
            stream, info = self._shards[shard]
            if stream is not None and shard not in self._prepared:
                stream.prepare_shard(info)
                self._prepared.add(shard)


def _total_bytes(files: tuple[File | None, ...]) -> int:
    return sum(file.nbytes for file in files if file is not None)
