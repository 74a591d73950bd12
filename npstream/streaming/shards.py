"""Provide `ShardInfo`, with the attributes and sizes that Streaming's shard readers provide.

Tested in tests/streaming/test_dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npstream.formats.index import File, Index


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard of a dataset.

    Parameters
    ----------
    samples : int
        Number of samples.
    compression : str or None
        The codec, such as "zstd:3"; None for an uncompressed shard.
    raw_bytes : int
        Bytes of the uncompressed files.
    zip_bytes : int or None
        Bytes of the compressed files; None if there are none.
    """

    samples: int
    compression: str | None
    raw_bytes: int
    zip_bytes: int | None

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
        yield ShardInfo(int(stop - first), files.compression, _total_bytes(raw), zip_bytes)


def _total_bytes(files: tuple[File | None, ...]) -> int:
    return sum(file.nbytes for file in files if file is not None)
