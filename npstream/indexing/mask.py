"""Masks kept as bits: rising positions, found by their number and counted from the lowest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from npstream._core.jit import kernel, popcount, u64
from npstream._core.typing import Bools, Bytes, Int64

Words: TypeAlias = NDArray[np.uint64]

ENTRY_BITS = 1 << 10
"""Bits per entry of the directory."""

PIECE = 1 << 20
"""Positions that are handled at a time, where all of them would take too much memory."""


class Mask:
    """Rising positions in ``range(domain)``, with a bit for each that is or is not among them.

    Parameters
    ----------
    bits : ndarray of uint8
        The lowest bit of the first byte stands for position 0; padded to whole blocks.
    domain : int
        What the positions are below.

    Examples
    --------
    >>> mask = Mask.of([np.array([3, 5, 8])], domain=10)
    >>> mask.at(np.array([2, 0]))
    array([8, 3])
    """

    __slots__ = ("_before", "_bits", "domain")

    def __init__(self, bits: Bytes, domain: int) -> None:
        self._bits = bits
        self.domain = domain
        counts = np.bitwise_count(bits.view(np.uint64)).reshape(-1, ENTRY_BITS // 64)
        self._before = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts.sum(axis=1, dtype=np.int64), out=self._before[1:])

    @classmethod
    def where(cls, mask: Bools) -> Mask:
        """Keep the positions at which an array is true."""
        bits = _no_bits(mask.size)
        packed = np.packbits(mask, bitorder="little")
        bits[: packed.size] = packed
        return cls(bits, mask.size)

    @classmethod
    def of(cls, pieces: Iterable[Int64], domain: int) -> Mask:
        """Keep the positions in several arrays, whatever their order."""
        bits = _no_bits(domain)
        for positions in pieces:
            bit = np.left_shift(1, positions & 7).astype(np.uint8)
            np.bitwise_or.at(bits, positions >> 3, bit)
        return cls(bits, domain)

    def __len__(self) -> int:
        return int(self._before[-1])

    def __reduce__(self) -> tuple[type[Mask], tuple[Bytes, int]]:
        return Mask, (self._bits, self.domain)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the mask holds."""
        return self._bits.nbytes + self._before.nbytes

    def at(self, ranks: Int64) -> Int64:
        """Return the positions with these numbers, in the shape of `ranks`."""
        block = self._before.searchsorted(ranks, "right") - 1
        within = ranks - self._before[block]
        positions = np.empty_like(ranks)
        _select.for_size(ranks.size)(
            self._bits.view(np.uint64),
            block.reshape(-1),
            within.reshape(-1),
            positions.reshape(-1),
        )
        return positions

    def rank(self, positions: Int64) -> Int64:
        """Return how many set bits are before each position, all in ``range(domain + 1)``."""
        block = positions // ENTRY_BITS
        ranks = self._before[block]
        _rank.for_size(positions.size)(self._bits.view(np.uint64), positions, ranks)
        return ranks

    def run(self, ranks: range) -> Int64:
        """Return the positions with the numbers in a range.

        Where they lie dense, the bits between them are unpacked.
        """
        if not ranks:
            return np.empty(0, np.int64)
        low, high = sorted((ranks[0], ranks[-1]))
        first, last = (self._before.searchsorted((low, high), "right") - 1).tolist()
        if (last + 1 - first) * ENTRY_BITS > 64 * len(ranks) + 16 * ENTRY_BITS:
            return self.at(values(ranks, np.arange(len(ranks))))
        positions = np.empty(high + 1 - low, np.int64)
        for block in range(first, last + 1, PIECE // ENTRY_BITS):
            end = min(block + PIECE // ENTRY_BITS, last + 1)
            packed = self._bits[block * ENTRY_BITS // 8 : end * ENTRY_BITS // 8]
            found = np.unpackbits(packed, bitorder="little").view(np.bool_).nonzero()[0]
            before = int(self._before[block])
            found = found[max(low - before, 0) : high + 1 - before]
            to = max(before - low, 0)
            np.add(found, block * ENTRY_BITS, out=positions[to : to + found.size])
        return np.ascontiguousarray(positions[:: ranks.step])


def values(numbers: range, positions: Int64) -> Int64:
    """Turn positions in a range into its values, in place."""
    # The step from a lone value is nobody's, as is the start of none; both may be beyond int64.
    if numbers.step != 1 and len(numbers) > 1:
        positions *= numbers.step
    if numbers.start and len(numbers):
        positions += numbers.start
    return positions


def _no_bits(domain: int) -> Bytes:
    return np.zeros(-(-domain // ENTRY_BITS) * (ENTRY_BITS // 8), np.uint8)


@kernel
def _select(words: Words, block: Int64, rank: Int64, position: Int64) -> None:
    """Find the set bit number ``rank[k]`` of block ``block[k]``, which has more than that."""
    one = u64(1)
    for k in range(rank.size):
        left = int(rank[k])
        at = int(block[k]) * (ENTRY_BITS // 64)
        word = u64(words[at])
        count = popcount(word)
        while left >= count:
            left -= count
            at += 1
            word = u64(words[at])
            count = popcount(word)
        for _ in range(left):
            word &= word - one  # clears the lowest bit
        position[k] = 64 * at + popcount(word ^ (word - one)) - 1


@kernel
def _rank(words: Words, position: Int64, rank: Int64) -> None:
    """Add to ``rank[k]`` the bits that are set between a block's start and ``position[k]``."""
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
