"""A shard in memory, and what reads of single samples ask of shards.

Tested in tests/shards/test_local.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

import numpy as np

from npstream._core import memory
from npstream._core.typing import Bytes, Int64

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.formats.mds import Layout
    from npstream.shards.residency import RemoteFiles

Verify = bool | str
"""Which recorded hashes are checked: "auto", those of what is decompressed; True, those of mapped
files too; False, none; a name, that one of both."""

Chunk: TypeAlias = tuple[int, int]
"""A chunk, by its shard and its number there."""


@dataclass(frozen=True, slots=True)
class Region:
    """A shard in memory.

    ``offsets`` lie over the shard's own bytes, or its meta file's. ``begin`` is where the samples
    begin, ``stride`` their size, 0 if it varies. ``resident`` has a byte for each chunk, 1 if it
    is in memory; it is empty if all are.
    """

    data: Bytes
    offsets: np.ndarray[Any, np.dtype[np.uint32]]
    begin: int
    stride: int
    resident: Bytes

    @property
    def place(self) -> tuple[int, ...]:
        """The shard's row in the table that kernels read."""
        chunks = len(self.resident)
        return (
            memory.address_of(self.data), memory.address_of(self.offsets), self.begin,
            len(self.data), self.stride, memory.address_of(self.resident) if chunks else 0, chunks,
        )  # fmt: skip


class Located(Protocol):
    """The shards of a remote dataset, as reads of single samples need them."""

    index: Index
    files: RemoteFiles
    guards: Int64
    layouts: list[Layout | None]

    def check_bounds(self, shard: int, rows: Int64, begins: Int64, ends: Int64) -> int:
        """Raise FormatError unless rows lie within their shard; return their guard."""

    def damaged(self, sample: int, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise FormatError for a sample, saying where it is stored."""


def laid_out(parts: list[bytes], guard: Int64 | int) -> tuple[Int64, Int64, Bytes]:
    """Lay byte strings end to end; return where they lie after their guard, and their lengths."""
    arena: Bytes = np.frombuffer(b"".join(parts), np.uint8)
    lengths = np.array([len(part) for part in parts], np.int64)
    address = memory.address_of(arena) + np.cumsum(lengths) - lengths + guard
    return address, lengths - guard, arena
