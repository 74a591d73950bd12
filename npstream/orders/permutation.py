"""Permutations computed one element at a time, both ways.

Up to `SMALL` elements a permutation is a Fisher-Yates shuffle, uniform at every length, whose
table is made at the first use. Beyond that it is a Feistel network over pairs of digits (left,
right) in radix (a, b) with a * b just above n: no table, the same cost everywhere, and an
inverse. Results outside range(n) are put through again, which a * b - n < a makes rare.

The order of a run is part of what can be reproduced: `PERMUTATION_VERSION` stands in
its state, and tests hold the permutations to recorded values.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import TypeAlias

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream._core.arrays import out_of_bounds
from npstream._core.jit import Kernel, draw, kernel
from npstream._core.typing import AnyArray, Int64

Cipher: TypeAlias = Kernel[[int, int, int, int, Int64], None]

PERMUTATION_VERSION = 1
"""Names the permutations that this module computes; they may not change without it."""

SMALL = 1 << 15
"""Elements up to which a permutation is a table."""

_STRETCH = 1 << 10
"""Positions that are enciphered together: few enough for the processor's first cache."""

MAX_LENGTH = 1 << 62
"""Elements that a permutation may have: the product of the radices must stay below 2**63."""


def make_key(seed: int, epoch: int = 0, lane: int = 0, level: int = 0) -> int:
    """Hash what a permutation depends on to a key, a number in range(2**63).

    Any integers will do, of any size and sign. They are hashed as a tuple, so that (seed 0,
    epoch 1) has nothing in common with (seed 1, epoch 0).

    >>> make_key(0, epoch=1) == make_key(1, epoch=0)
    False
    """
    seed, epoch = integer("seed", seed), integer("epoch", epoch)
    lane, level = integer("lane", lane), integer("level", level)
    text = f"{seed:x},{epoch:x},{lane:x},{level:x}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Permutation:
    """A permutation of range(n), given by a key; see `make_key`.

    Parameters
    ----------
    n : int
        Elements, at most 2**62.
    key : int
        A number in range(2**63).

    Examples
    --------
    >>> order = Permutation(10**12, make_key(seed=0))
    >>> ids = order.at(np.array([0, 1, 10**12 - 1]))
    >>> order.find(ids)
    array([           0,            1, 999999999999])
    """

    def __init__(self, n: int, key: int) -> None:
        self._n = integer("n", n)
        self._key = integer("key", key)
        if not 0 <= self._n <= MAX_LENGTH:
            raise ValueError(f"a permutation has 0 to 2**62 elements, not {n}")
        if not 0 <= self._key < 1 << 63:
            raise ValueError(f"a key is a number in range(2**63), not {key}: see make_key")

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"Permutation({self._n}, {self._key})"

    def identity(self) -> str:
        """Return the text by which saved states know this order; it never changes."""
        return f"Permutation({self._n}, {self._key})"

    def __reduce__(self) -> tuple[type[Permutation], tuple[int, int]]:
        return Permutation, (self._n, self._key)

    def at(self, positions: Int64) -> Int64:
        """Return the elements at positions, in the shape of `positions`."""
        values = self._checked(positions)
        if self._n <= SMALL:
            return self._table.take(values).astype(np.int64)
        self._walk(_encipher_all, values)
        return values

    def find(self, elements: Int64) -> Int64:
        """Return the positions of elements: ``find(at(p))`` is p."""
        values = self._checked(elements)
        if self._n <= SMALL:
            inverse = np.empty_like(values, shape=self._n)
            inverse[self._table] = np.arange(self._n)
            return inverse.take(values)
        self._walk(_decipher_all, values)
        return values

    @functools.cached_property
    def _table(self) -> AnyArray:
        table = np.empty(self._n, np.uint16)
        # As plain Python a step takes 1 us; `for_size` reckons with 10 us, and 30 ms is less than
        # loading Numba takes.
        shuffle.for_size(self._n >> 5)(self._key, table)
        return table

    def _walk(self, cipher: Cipher, values: Int64) -> None:
        """Replace values by what one of the two ciphers makes of them."""
        a = math.isqrt(self._n - 1) + 1
        b = -(-self._n // a)
        cipher.for_size(values.size)(self._n, a, b, self._key, values.reshape(-1))

    def _checked(self, values: Int64) -> Int64:
        """Copy values that all lie in range(n)."""
        copy = values.astype(np.int64, order="C", casting="same_kind")
        if out_of_bounds(copy, self._n):
            bad = copy[(copy < 0) | (copy >= self._n)].flat[0]
            raise IndexError(
                f"{bad} is out of bounds for a permutation of {quantity(self._n, 'element')}"
            )
        return copy


@kernel
def shuffle(key: int, table: AnyArray) -> None:
    """Fill a table with a permutation of its positions: Fisher-Yates, inside out."""
    for i in range(table.size):
        j = draw(key ^ i, i + 1)
        table[i] = table[j]
        table[j] = i


@kernel
def shuffled_to(key: int, n: int, element: int) -> int:
    """Return the position of an element in a table of n that `shuffle` fills."""
    at = draw(key ^ element, element + 1)
    for i in range(element + 1, n):
        if draw(key ^ i, i + 1) == at:
            at = i
    return at


@kernel
def shuffled_from(key: int, n: int, position: int) -> int:
    """Return the element at a position in a table of n that `shuffle` fills."""
    i = n - 1
    while True:
        while i > position:
            if draw(key ^ i, i + 1) == position:
                return i
            i -= 1
        j = draw(key ^ i, i + 1)
        if j == i:
            return i
        position = j
        i -= 1


@kernel
def encipher(n: int, a: int, b: int, key: int, left: Int64, right: Int64) -> None:
    """Replace positions ``left * b + right`` by elements, as digits again."""
    _rounds(a, b, key, left, right)
    for k in range(left.size):
        while left[k] * b + right[k] >= n:
            _rounds(a, b, key, left[k : k + 1], right[k : k + 1])


@kernel
def _rounds(a: int, b: int, key: int, left: Int64, right: Int64) -> None:
    """Go through the rounds; all digits in each, which is twice as fast as one after another."""
    for step in range(0, 6, 2):
        for k in range(left.size):
            digit = int(left[k]) + draw(key ^ (step << 32) ^ int(right[k]), a)
            left[k] = digit if digit < a else digit - a
        for k in range(left.size):
            digit = int(right[k]) + draw(key ^ ((step + 1) << 32) ^ int(left[k]), b)
            right[k] = digit if digit < b else digit - b


@kernel
def decipher(n: int, a: int, b: int, key: int, element: int) -> int:
    """Return the position of an element: `encipher` run backwards."""
    while True:
        left = element // b
        right = element - left * b
        for step in range(4, -2, -2):
            right -= draw(key ^ ((step + 1) << 32) ^ left, b)
            if right < 0:
                right += b
            left -= draw(key ^ (step << 32) ^ right, a)
            if left < 0:
                left += a
        element = left * b + right
        if element < n:
            return element


@kernel
def _encipher_all(n: int, a: int, b: int, key: int, values: Int64) -> None:
    """Replace each position by its element."""
    left = np.empty(min(values.size, _STRETCH), np.int64)
    right = np.empty_like(left)
    for start in range(0, values.size, _STRETCH):
        part = values[start : start + _STRETCH]
        for k in range(part.size):
            left[k] = int(part[k]) // b
            right[k] = int(part[k]) - left[k] * b
        encipher(n, a, b, key, left[: part.size], right[: part.size])
        for k in range(part.size):
            part[k] = left[k] * b + right[k]


@kernel
def _decipher_all(n: int, a: int, b: int, key: int, values: Int64) -> None:
    """Replace each element by its position."""
    for k in range(values.size):
        values[k] = decipher(n, a, b, key, int(values[k]))
