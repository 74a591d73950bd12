"""Provide stratified permutations by their definition: one element at a time."""

from __future__ import annotations

from npstream.orders.draws import draw


def stratified(n: int, key: int) -> list[int]:
    """Return a stratified permutation of `n` elements.

    The binary digits of an element are those of its position, from the last digit to the first.
    Each digit is flipped or not, depending on the digits of the element before it.
    """
    digits = (n - 1).bit_length()
    elements = []
    for position in range(1 << digits):
        element = 0
        for digit in range(digits):
            is_flipped = draw.py_func(key ^ (1 << digit) + element, 2)
            element = 2 * element + ((position >> digit & 1) ^ is_flipped)
        elements.append(element)
    return [element for element in elements if element < n]
