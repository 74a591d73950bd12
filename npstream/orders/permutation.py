"""Provide permutations that compute single elements, and the positions of single elements.

Up to `MAX_TABLE_LENGTH` elements, a permutation is a Fisher-Yates shuffle. It is uniform at every
length, and its table is made on first use. Longer permutations are a Feistel network over pairs of
digits (left, right) in the radices (a, b). It needs no table, has the same cost at each position,
and can be inverted.

The network permutes range(a * b), and a * b may be above n. Results outside of range(n) are
enciphered again until they are inside (cycle walking). This is rare: a is about sqrt(n), and fewer
than a of the a * b positions are outside.

Orders must stay reproducible: tests compare permutations with recorded values. A release that
changes them must change `PERMUTATION_VERSION`, and the versions that saved states contain.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import TypeAlias

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream._core.arrays import out_of_bounds
from npstream._core.jit import Kernel, kernel
from npstream._core.typing import AnyArray, Int64
from npstream.orders.draws import draw, draw_short

Cipher: TypeAlias = Kernel[[int, int, int, int, Int64], None]
"""Enciphers or deciphers numbers in place. Parameters: n, a, b, key, and the numbers."""

PERMUTATION_VERSION = 1
"""Version of the permutations. It must change if any key gives another permutation."""

MAX_TABLE_LENGTH = 1 << 15
"""Maximum number of elements of a permutation that is computed as a table."""

_BATCH = 1 << 10
"""Positions that are enciphered together: few enough for the processor's L1 cache."""

MAX_LENGTH = 1 << 62
"""Maximum number of elements: the product of the radices must stay below 2**63."""


def make_key(seed: int, epoch: int = 0, lane: int = 0, level: int = 0) -> int:
    """Hash the arguments to the key of a permutation, a number in range(2**63).

    The arguments are any integers, also large or negative ones. They are hashed as a tuple, so
    that (seed 0, epoch 1) and (seed 1, epoch 0) are independent. Each purpose of permutations, such
    as the assignment of chunks, has its own `level`. `lane` numbers the permutations of one level.

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
        Number of elements, at most 2**62.
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
        """Return the str that identifies this order in saved states; it must never change."""
        return f"Permutation({self._n}, {self._key})"

    def __reduce__(self) -> tuple[type[Permutation], tuple[int, int]]:
        return Permutation, (self._n, self._key)

    def at(self, positions: Int64) -> Int64:
        """Return the elements at positions, in the shape of `positions`."""
        values = self._copy_within_bounds(positions)
        if self._n <= MAX_TABLE_LENGTH:
            return self._table.take(values).astype(np.int64)
        self._apply_cipher(_encipher_all, values)
        return values

    def find(self, elements: Int64) -> Int64:
        """Return the positions of elements: ``find(at(p))`` is p."""
        values = self._copy_within_bounds(elements)
        if self._n <= MAX_TABLE_LENGTH:
            inverse = np.empty_like(values, shape=self._n)
            inverse[self._table] = np.arange(self._n)
            return inverse.take(values)
        self._apply_cipher(_decipher_all, values)
        return values

    @functools.cached_property
    def _table(self) -> AnyArray:
        table = np.empty(self._n, np.uint16)
        # The largest table takes about 30 ms in plain Python: less than loading Numba. `for_size`
        # runs plain Python for up to 1 << 10 units of work, which it calls rows. So that it does
        # not import Numba even for the largest table, 1 << 5 elements count as one row.
        shuffle.for_size(self._n >> 5)(self._key, table)
        return table

    def _apply_cipher(self, cipher: Cipher, values: Int64) -> None:
        """Encipher or decipher values in place."""
        a = math.isqrt(self._n - 1) + 1
        b = -(-self._n // a)
        cipher.for_size(values.size)(self._n, a, b, self._key, values.reshape(-1))

    def _copy_within_bounds(self, values: Int64) -> Int64:
        """Return a copy of values as int64; raise IndexError if not in range(n)."""
        copy = values.astype(np.int64, order="C", casting="same_kind")
        if out_of_bounds(copy, self._n):
            bad = copy[(copy < 0) | (copy >= self._n)].flat[0]
            raise IndexError(
                f"{bad} is out of bounds for a permutation of {quantity(self._n, 'element')}"
            )
        return copy


@kernel
def shuffle(key: int, table: AnyArray) -> None:
    """Fill a table with a permutation of its positions: an inside-out Fisher-Yates shuffle."""
    for i in range(table.size):
        j = draw(key ^ i, i + 1)
        table[i] = table[j]
        table[j] = i


@kernel
def shuffled_position(key: int, n: int, element: int) -> int:
    """Return the position of an element in a table of `n` elements that `shuffle` fills.

    This takes O(n) time, and no memory for the table.
    """
    position = draw(key ^ element, element + 1)
    for i in range(element + 1, n):
        if draw(key ^ i, i + 1) == position:
            position = i
    return position


@kernel
def shuffled_element(key: int, n: int, position: int) -> int:
    """Return the element at a position in a table of `n` elements that `shuffle` fills.

    This takes O(n) time, and no memory for the table. It goes back through the steps of `shuffle`,
    and follows the element to the step that wrote it first.
    """
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
    """Replace the digits of positions ``left * b + right`` by the digits of their elements."""
    _rounds(a, b, key, left, right)
    for k in range(left.size):
        while left[k] * b + right[k] >= n:
            _rounds(a, b, key, left[k : k + 1], right[k : k + 1])


@kernel
def _rounds(a: int, b: int, key: int, left: Int64, right: Int64) -> None:
    """Apply the six rounds of the network to all digits.

    The inner loops are over the digits, so that they use vector instructions. The radices of up to
    `MAX_LENGTH` elements are below 2**32, as `draw_short` needs.
    """
    for step in range(0, 6, 2):
        for k in range(left.size):
            digit = int(left[k]) + draw_short(key ^ (step << 32) ^ int(right[k]), a)
            left[k] = digit if digit < a else digit - a
        for k in range(left.size):
            digit = int(right[k]) + draw_short(key ^ ((step + 1) << 32) ^ int(left[k]), b)
            right[k] = digit if digit < b else digit - b


@kernel
def decipher(n: int, a: int, b: int, key: int, element: int) -> int:
    """Return the position of an element: the inverse of `encipher`."""
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
    left = np.empty(min(values.size, _BATCH), np.int64)
    right = np.empty_like(left)
    for start in range(0, values.size, _BATCH):
        part = values[start : start + _BATCH]
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
