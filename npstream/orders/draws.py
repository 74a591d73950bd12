"""Provide random numbers that are hashes of counters, so each number is computed alone.

Tested in tests/orders/test_permutation.py.
"""

from __future__ import annotations

from npstream._core.jit import kernel, multiply_high, multiply_high_short, u64


@kernel
def draw(counter: int, bound: int) -> int:
    """Return a number below `bound` from a uniform hash of `counter`.

    This is a counter-based random number generator: any number can be drawn without those before
    it. The two rounds are those of SplitMix64's finalizer. The finalizer's last shift is left out,
    because it does not affect the upper bits. The function may never change, because orders of
    samples depend on it.
    """
    x = u64(counter)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return multiply_high(x, bound)


@kernel
def draw_short(counter: int, bound: int) -> int:
    """Return ``draw(counter, bound)`` for a bound below 2**32; loops use vector instructions."""
    x = u64(counter)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return multiply_high_short(x, bound)
