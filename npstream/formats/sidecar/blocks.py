"""Bytes of a file that are read by range and held against hashes, block by block.

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
"""Bytes of a block: what one number costs to read, as all of it is hashed."""

REQUEST = 1 << 22


class Ranges(Protocol):
    """A place that holds files: what this module needs of a store."""

    def ranges(self, spans: Iterable[tuple[str, int, int]]) -> list[bytes]:
        """Return parts of files, given as name, first byte and length."""

    def size(self, name: str) -> int:
        """Return the bytes of a file."""

    def where(self, name: str) -> str:
        """Return the place of a file, for messages."""

    def forget(self, spans: Iterable[tuple[str, int, int]]) -> None:
        """Keep no copies of parts of files, whose bytes are wrong."""


def xxh3(body: Body) -> int:
    """Return the 64-bit hash by which blocks and pieces are known.

    Examples
    --------
    >>> f"{xxh3(b''):016x}"
    '2d06800538d394c2'
    """
    import xxhash

    return xxhash.xxh3_64_intdigest(body)


def block_hashes(body: Body) -> NDArray[np.uint64]:
    """Return the hash of each block of some bytes; the last may be short."""
    view = memoryview(body).cast("B")
    parts = (view[at : at + HASH_BLOCK] for at in range(0, len(view), HASH_BLOCK))
    return np.fromiter(map(xxh3, parts), np.uint64, -(-len(view) // HASH_BLOCK))


class BlockArray:
    """Numbers that lie in a file, back to back.

    Parameters
    ----------
    store : Ranges
    name : str
        The file.
    offset : int
        Where the first number lies.
    count : int
        How many numbers there are.
    dtype : dtype
        Of a number; its bytes divide those of a block.
    hashes : ndarray of uint64
        The hash of each block.
    """

    def __init__(
        self,
        store: Ranges,
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
        self._kept: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.store, self.name, self.offset, self.count, self.dtype, self.hashes
        return BlockArray, state

    def array(self, start: int = 0, stop: int | None = None) -> AnyArray:
        """Read numbers, and keep nothing."""
        stop = self.count if stop is None else stop
        begin, end = start * self.dtype.itemsize, stop * self.dtype.itemsize
        if begin >= end:
            return np.empty(0, self.dtype)
        first, last = begin // HASH_BLOCK, -(-end // HASH_BLOCK)
        body = self._read(first, last)
        skipped = first * HASH_BLOCK
        return np.frombuffer(body, np.uint8)[begin - skipped : end - skipped].view(self.dtype)

    def part(self, start: int, stop: int) -> AnyArray:
        """Read a few numbers, and keep their blocks for those beside them."""
        begin, end = start * self.dtype.itemsize, stop * self.dtype.itemsize
        first = begin // HASH_BLOCK
        blocks = [self._block(k) for k in range(first, -(-end // HASH_BLOCK))]
        body = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        skipped = first * HASH_BLOCK
        return np.frombuffer(body, np.uint8)[begin - skipped : end - skipped].view(self.dtype)

    def _block(self, number: int) -> bytes:
        body = self._kept.get(number)
        if body is None:
            body = self._kept.setdefault(number, self._read(number, number + 1))
        return body

    def _read(self, first: int, last: int) -> bytes:
        """Return whole blocks; ones that are damaged are read once more, from afar they may be."""
        begin, end = first * HASH_BLOCK, min(last * HASH_BLOCK, self.count * self.dtype.itemsize)
        ensure_fits(2 * (end - begin), f"reading {self.store.where(self.name)}")
        spans = [
            (self.name, self.offset + at, min(REQUEST, end - at))
            for at in range(begin, end, REQUEST)
        ]
        for _ in range(2):
            parts = self.store.ranges(spans)
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            wrong = block_hashes(body) != self.hashes[first:last]
            if not wrong.any():
                return body
            self.store.forget(spans)
        at = self.offset + (first + int(wrong.argmax())) * HASH_BLOCK
        raise IntegrityError(
            f"{self.store.where(self.name)}: the {HASH_BLOCK} bytes from byte {at} are not those "
            f"that were written{DAMAGED}"
        )
