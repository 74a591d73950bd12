"""Bit masks that find the k-th set position, and count the set positions before a position."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from npstream._core.jit import kernel, popcount, u64
from npstream._core.typing import Bools, Bytes, Int64

Words: TypeAlias = NDArray[np.uint64]

ENTRY_BITS = 1 << 10
"""Bits per block. Each block has an entry in the table of counts."""

BATCH_POSITIONS = 1 << 20
"""Positions that are handled at a time, to bound memory."""


class Mask:
    """A set of positions in ``range(domain)``, in ascending order, with one bit for each position.

    Parameters
    ----------
    bits : ndarray of uint8
        The lowest bit of the first byte is that of position 0. Padded to whole blocks.
    domain : int
        The upper limit of positions, exclusive.

    Examples
    --------
    >>> mask = Mask.from_positions([np.array([3, 5, 8])], domain=10)
    >>> mask.at(np.array([2, 0]))
    array([8, 3])
    """

    __slots__ = ("_bits", "_counts_before", "domain")

    def __init__(self, bits: Bytes, domain: int) -> None:
        self._bits = bits
        self.domain = domain
        counts = np.bitwise_count(bits.view(np.uint64)).reshape(-1, ENTRY_BITS // 64)
        self._counts_before = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts.sum(axis=1, dtype=np.int64), out=self._counts_before[1:])

    @classmethod
    def from_bools(cls, mask: Bools) -> Mask:
        """Return the mask of the positions at which `mask` is true."""
        bits = _no_bits(mask.size)
        packed = np.packbits(mask, bitorder="little")
        bits[: packed.size] = packed
        return cls(bits, mask.size)

    @classmethod
    def from_positions(cls, pieces: Iterable[Int64], domain: int) -> Mask:
        """Return the mask of the positions in several arrays, in any order."""
        bits = _no_bits(domain)
        for positions in pieces:
            bit = np.left_shift(1, positions & 7).astype(np.uint8)
            np.bitwise_or.at(bits, positions >> 3, bit)
        return cls(bits, domain)

    def __len__(self) -> int:
        return int(self._counts_before[-1])

    def __reduce__(self) -> tuple[type[Mask], tuple[Bytes, int]]:
        return Mask, (self._bits, self.domain)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the mask holds."""
        return self._bits.nbytes + self._counts_before.nbytes

    def at(self, ranks: Int64) -> Int64:
        """Return the set positions with the given ranks, in the shape of `ranks`."""
        block = self._counts_before.searchsorted(ranks, "right") - 1
        within = ranks - self._counts_before[block]
        positions = np.empty_like(ranks)
        _select.for_size(ranks.size)(
            self._bits.view(np.uint64),
            block.reshape(-1),
            within.reshape(-1),
            positions.reshape(-1),
        )
        return positions

    def rank(self, positions: Int64) -> Int64:
        """Return the number of set bits before each position, all in ``range(domain + 1)``."""
        block = positions // ENTRY_BITS
        ranks = self._counts_before[block]
        _rank.for_size(positions.size)(self._bits.view(np.uint64), positions, ranks)
        return ranks

    def at_range(self, ranks: range) -> Int64:
        """Return the set positions with the ranks in a range.

        If the positions are dense, all bits between them are unpacked at once.
        """
        if not ranks:
            return np.empty(0, np.int64)
        low, high = sorted((ranks[0], ranks[-1]))
        first, last = (self._counts_before.searchsorted((low, high), "right") - 1).tolist()
        if (last + 1 - first) * ENTRY_BITS > 64 * len(ranks) + 16 * ENTRY_BITS:
            return self.at(range_values(ranks, np.arange(len(ranks))))
        positions = np.empty(high + 1 - low, np.int64)
        for block in range(first, last + 1, BATCH_POSITIONS // ENTRY_BITS):
            end = min(block + BATCH_POSITIONS // ENTRY_BITS, last + 1)
            packed = self._bits[block * ENTRY_BITS // 8 : end * ENTRY_BITS // 8]
            set_bits = np.unpackbits(packed, bitorder="little").view(np.bool_).nonzero()[0]
            before = int(self._counts_before[block])
            set_bits = set_bits[max(low - before, 0) : high + 1 - before]
            to = max(before - low, 0)
            np.add(set_bits, block * ENTRY_BITS, out=positions[to : to + set_bits.size])
        return np.ascontiguousarray(positions[:: ranks.step])


def range_values(numbers: range, positions: Int64) -> Int64:
    """Replace positions in a range by the range's values, in place."""
    # The step of a range with one value, and the start of an empty range, may be beyond int64.
    if numbers.step != 1 and len(numbers) > 1:
        positions *= numbers.step
    if numbers.start and len(numbers):
        positions += numbers.start
    return positions


def _no_bits(domain: int) -> Bytes:
    return np.zeros(-(-domain // ENTRY_BITS) * (ENTRY_BITS // 8), np.uint8)


@kernel
def _select(words: Words, block: Int64, rank: Int64, position: Int64) -> None:
    """Set ``position[k]`` to the set bit number ``rank[k]`` of block ``block[k]``."""
    one = u64(1)
    for k in range(rank.size):
        remaining = int(rank[k])
        at = int(block[k]) * (ENTRY_BITS // 64)
        word = u64(words[at])
        count = popcount(word)
        while remaining >= count:
            remaining -= count
            at += 1
            word = u64(words[at])
            count = popcount(word)
        for _ in range(remaining):
            word &= word - one  # clears the lowest bit
        position[k] = 64 * at + popcount(word ^ (word - one)) - 1


@kernel
def _rank(words: Words, position: Int64, rank: Int64) -> None:
    """Add to ``rank[k]`` the number of set bits between the block's start and ``position[k]``."""
    one = u64(1)
    for k in range(position.size):
        end = int(position[k])
        count = 0
        for at in range(end // ENTRY_BITS * (ENTRY_BITS // 64), end // 64):
            count += popcount(u64(words[at]))
        if end % 64:
            below = (one << u64(end % 64)) - one
            count += popcount(u64(words[end // 64]) & below)
        rank[k] += count
