"""Bit masks that find the k-th set position, and count the set positions before a position."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from npstream._core.jit import kernel, popcount, u64
from npstream._core.typing import Bools, Bytes, Int64

Words: TypeAlias = NDArray[np.uint64]

BLOCK_BITS = 1 << 10
"""Bits per block. The mask stores the number of set bits before each block."""

BATCH_POSITIONS = 1 << 20
"""Positions per batch, to bound memory."""

DENSE_BITS = 64
"""Up to this number of bits per rank, `Mask.at_range` unpacks all bits from first to last position.

In the time in which `Mask.at` finds one position, 60 to 190 bits can be unpacked.
"""

DENSE_BLOCKS = 16
"""Up to this number of blocks, `Mask.at_range` always unpacks all bits."""


class Mask:
    """A set of positions in ``range(domain)``, in ascending order, with one bit for each position.

    Parameters
    ----------
    bits : ndarray of uint8
        The lowest bit of the first byte is that of position 0. Zero bits pad the array to a
        multiple of `BLOCK_BITS`.
    domain : int
        The upper limit of positions, exclusive.

    Notes
    -----
    The rank of a set position is the number of set positions before it.

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
        counts = np.bitwise_count(bits.view(np.uint64)).reshape(-1, BLOCK_BITS // 64)
        self._counts_before = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts.sum(axis=1, dtype=np.int64), out=self._counts_before[1:])

    @classmethod
    def from_bools(cls, mask: Bools) -> Mask:
        """Return the mask of the positions at which `mask` is true."""
        bits = _zero_bits(mask.size)
        packed = np.packbits(mask, bitorder="little")
        bits[: packed.size] = packed
        return cls(bits, mask.size)

    @classmethod
    def from_positions(cls, arrays: Iterable[Int64], domain: int) -> Mask:
        """Return the mask of the positions in several arrays, in any order."""
        bits = _zero_bits(domain)
        for positions in arrays:
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
        """Return the set position of each rank, in the shape of `ranks`."""
        block = self._counts_before.searchsorted(ranks, "right") - 1
        rank_in_block = ranks - self._counts_before[block]
        positions = np.empty_like(ranks)
        _select.for_size(ranks.size)(
            self._bits.view(np.uint64),
            block.reshape(-1),
            rank_in_block.reshape(-1),
            positions.reshape(-1),
        )
        return positions

    def rank(self, positions: Int64) -> Int64:
        """Return the number of set bits before each position; positions are at most `domain`."""
        block = positions // BLOCK_BITS
        ranks = self._counts_before[block]
        _rank.for_size(positions.size)(self._bits.view(np.uint64), positions, ranks)
        return ranks

    def at_range(self, ranks: range) -> Int64:
        """Return the set position of each rank in a range.

        If the positions are dense, this unpacks all bits between them.
        """
        if not ranks:
            return np.empty(0, np.int64)
        low, high = sorted((ranks[0], ranks[-1]))
        first, last = (self._counts_before.searchsorted((low, high), "right") - 1).tolist()
        if (last + 1 - first - DENSE_BLOCKS) * BLOCK_BITS > DENSE_BITS * len(ranks):
            return self.at(range_values(ranks, np.arange(len(ranks))))
        positions = np.empty(high + 1 - low, np.int64)
        for block in range(first, last + 1, BATCH_POSITIONS // BLOCK_BITS):
            end = min(block + BATCH_POSITIONS // BLOCK_BITS, last + 1)
            packed = self._bits[block * BLOCK_BITS // 8 : end * BLOCK_BITS // 8]
            set_bits = np.unpackbits(packed, bitorder="little").view(np.bool_).nonzero()[0]
            first_rank = int(self._counts_before[block])
            set_bits = set_bits[max(low - first_rank, 0) : high + 1 - first_rank]
            begin = max(first_rank - low, 0)
            np.add(set_bits, block * BLOCK_BITS, out=positions[begin : begin + set_bits.size])
        return np.ascontiguousarray(positions[:: ranks.step])


def range_values(values: range, positions: Int64) -> Int64:
    """Replace each position k by ``values[k]``, in place."""
    # Unused attributes of a range may not fit in int64: the step of a range with one value, and
    # the start of an empty range.
    if values.step != 1 and len(values) > 1:
        positions *= values.step
    if values.start and len(values):
        positions += values.start
    return positions


def _zero_bits(domain: int) -> Bytes:
    """Return the zeroed bits of `domain` positions, padded to whole blocks."""
    return np.zeros(-(-domain // BLOCK_BITS) * (BLOCK_BITS // 8), np.uint8)


@kernel
def _select(words: Words, block: Int64, rank: Int64, position: Int64) -> None:
    """Write to ``position[k]`` the position of set bit number ``rank[k]`` in block ``block[k]``."""
    one = u64(1)
    for k in range(rank.size):
        remaining = int(rank[k])
        index = int(block[k]) * (BLOCK_BITS // 64)
        word = u64(words[index])
        count = popcount(word)
        while remaining >= count:
            remaining -= count
            index += 1
            word = u64(words[index])
            count = popcount(word)
        for _ in range(remaining):
            word &= word - one  # clears the lowest bit
        # word ^ (word - 1) has ones up to the lowest set bit of the word, and zeros above it.
        position[k] = 64 * index + popcount(word ^ (word - one)) - 1


@kernel
def _rank(words: Words, position: Int64, rank: Int64) -> None:
    """Add to ``rank[k]`` the number of set bits between the block's start and ``position[k]``."""
    one = u64(1)
    for k in range(position.size):
        end = int(position[k])
        count = 0
        for index in range(end // BLOCK_BITS * (BLOCK_BITS // 64), end // 64):
            count += popcount(u64(words[index]))
        if end % 64:
            lower_bits = (one << u64(end % 64)) - one
            count += popcount(u64(words[end // 64]) & lower_bits)
        rank[k] += count
