"""Provide `stratify`: a random permutation whose stretches are spread evenly over all positions.

The first ``2**k`` elements have one element of each of ``2**k`` equal ranges of positions, and so
have the next ``2**k``; this holds for all k at once. Such a sequence is a (0, 1)-sequence in base
2: the van der Corput sequence, with random nested permutations of its binary digits. See A. B.
Owen, Randomly permuted (t, m, s)-nets and (t, s)-sequences, in Monte Carlo and Quasi-Monte Carlo
Methods in Scientific Computing, Springer 1995. For a number of elements that is no power of two,
the elements of the next power of two that are too large are left out. So a stretch of the rest may
have several elements of one range.

Tested in tests/orders/test_stratified.py.
"""

from __future__ import annotations

import numpy as np

from npstream._core.jit import kernel
from npstream._core.typing import AnyArray
from npstream.orders.draws import draw

__all__ = ["stratify"]


@kernel
def stratify(key: int, table: AnyArray) -> None:
    """Fill a table with a stratified permutation of its positions; the module defines it.

    Every element is equally probable at every position of a table of ``2**k`` elements.
    """
    length = 1
    while length < table.size:
        length *= 2
    sequence = np.zeros(length, table.dtype)
    half = 1
    while half < length:
        for i in range(half):
            # Element i is in range sequence[i] of `half` equal ranges. It moves into one half of
            # this range at random, and element i + half into the other.
            first = 2 * int(sequence[i]) + draw(key ^ (half + int(sequence[i])), 2)
            sequence[i] = first
            sequence[i + half] = first ^ 1
        half *= 2
    count = 0
    for i in range(length):
        if sequence[i] < table.size:
            table[count] = sequence[i]
            count += 1
