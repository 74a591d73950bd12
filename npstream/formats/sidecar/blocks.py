"""Arrays in a file, read by byte range and verified with one hash per block.

Tested in tests/cache/test_ranges.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from npstream._core.memory import ensure_fits
from npstream._core.typing import AnyArray, Body
from npstream.errors import DAMAGED, IntegrityError

HASH_BLOCK = 1 << 18
"""Bytes of a block, the smallest unit that can be read and verified."""

_REQUEST_BYTES = 1 << 22
"""Maximum bytes of a range request."""


class RangeReader(Protocol):
    """The methods of a store that this module uses."""

    def ranges(self, spans: Iterable[tuple[str, int, int]]) -> list[bytes]:
        """Return byte ranges of files, given as (name, offset, length)."""

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""

    def where(self, name: str) -> str:
        """Return the path or URL of a file, for messages."""

    def discard(self, spans: Iterable[tuple[str, int, int]]) -> None:
        """Drop cached copies of byte ranges whose hashes were wrong."""


def xxh3(body: Body) -> int:
    """Return the 64-bit hash of a block or a piece.

    Examples
    --------
    >>> f"{xxh3(b''):016x}"
    '2d06800538d394c2'
    """
    import xxhash

    return xxhash.xxh3_64_intdigest(body)


def block_hashes(body: Body) -> NDArray[np.uint64]:
    """Return the hash of each block of `body`; the last block may be shorter."""
    view = memoryview(body).cast("B")
    blocks = (view[start : start + HASH_BLOCK] for start in range(0, len(view), HASH_BLOCK))
    return np.fromiter(map(xxh3, blocks), np.uint64, -(-len(view) // HASH_BLOCK))


class BlockArray:
    """A contiguous array of numbers in a file.

    Parameters
    ----------
    store : RangeReader
    name : str
        The name of the file.
    offset : int
        Offset of the first number in the file, in bytes.
    count : int
        Number of elements.
    dtype : dtype
        The itemsize must divide `HASH_BLOCK`.
    hashes : ndarray of uint64
        The hash of each block.
    """

    def __init__(
        self,
        store: RangeReader,
        name: str,
        offset: int,
        count: int,
        dtype: np.dtype[Any],
        hashes: NDArray[np.uint64],
    ) -> None:
        self.store = store
        self.name = name
        self.offset = offset
        self.count = count
        self.dtype = dtype
        self.hashes = hashes
        self._cached: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.store, self.name, self.offset, self.count, self.dtype, self.hashes
        return BlockArray, state

    def read(self, start: int = 0, stop: int | None = None) -> AnyArray:
        """Read the elements from `start` to `stop`, without caching."""
        stop = self.count if stop is None else stop
        begin, end = start * self.dtype.itemsize, stop * self.dtype.itemsize
        if begin >= end:
            return np.empty(0, self.dtype)
        first = begin // HASH_BLOCK
        body = self._read_blocks(first, -(-end // HASH_BLOCK))
        origin = first * HASH_BLOCK
        return np.frombuffer(body, np.uint8)[begin - origin : end - origin].view(self.dtype)

    def read_cached(self, start: int, stop: int) -> AnyArray:
        """Read a few elements, and cache their blocks for later calls."""
        begin, end = start * self.dtype.itemsize, stop * self.dtype.itemsize
        first = begin // HASH_BLOCK
        blocks = [self._block(k) for k in range(first, -(-end // HASH_BLOCK))]
        body = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        origin = first * HASH_BLOCK
        return np.frombuffer(body, np.uint8)[begin - origin : end - origin].view(self.dtype)

    def _block(self, number: int) -> bytes:
        body = self._cached.get(number)
        if body is None:
            body = self._cached.setdefault(number, self._read_blocks(number, number + 1))
        return body

    def _read_blocks(self, first: int, stop: int) -> bytes:
        """Return whole blocks; if a hash is wrong, drop cached copies and read once more."""
        begin, end = first * HASH_BLOCK, min(stop * HASH_BLOCK, self.count * self.dtype.itemsize)
        # Twice: the responses, and their concatenation.
        ensure_fits(2 * (end - begin), f"reading {self.store.where(self.name)}")
        spans = [
            (self.name, self.offset + start, min(_REQUEST_BYTES, end - start))
            for start in range(begin, end, _REQUEST_BYTES)
        ]
        for _ in range(2):
            parts = self.store.ranges(spans)
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            is_wrong = block_hashes(body) != self.hashes[first:stop]
            if not is_wrong.any():
                return body
            self.store.discard(spans)
        block_begin = self.offset + (first + int(is_wrong.argmax())) * HASH_BLOCK
        raise IntegrityError(
            f"{self.store.where(self.name)}: the {HASH_BLOCK} bytes from byte {block_begin} are "
            f"not those that were written{DAMAGED}"
        )
