"""Provide NumPy's default generator, PCG64, in kernels: the numbers of ``np.random.default_rng``.

NumPy makes a state from a seed (`state_from_seed`). Kernels draw from it, and leave it as NumPy
would. A state has six uint64:

- the upper and the lower half of the generator's 128-bit state;
- the upper and the lower half of its increment;
- the 32 bits of the last word that no 32-bit draw has used yet;
- 1 if there are such bits, else 0.

Sources: https://www.pcg-random.org, and NumPy's ``Generator.shuffle`` and ``Generator.integers``.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from npstream._core.jit import kernel, multiply_high, u64
from npstream._core.typing import AnyArray

State: TypeAlias = NDArray[np.uint64]

WORDS = 6
"""Words in a state."""

MAX_BOUND = 1 << 32
"""Maximum bound of a draw: up to it, NumPy uses 32 bits for each draw."""

_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_UPPER, _LOWER = _MULTIPLIER >> 64, _MULTIPLIER & (1 << 64) - 1
_HALF = 0xFFFFFFFF


def state_from_seed(seed: int) -> State:
    """Return the state of ``np.random.default_rng(seed)``.

    >>> state = state_from_seed(7)
    >>> values = np.arange(5)
    >>> draw_shuffle(state, values, 0, 5)
    >>> values, np.random.default_rng(7).permutation(5)
    (array([2, 0, 4, 1, 3]), array([2, 0, 4, 1, 3]))
    """
    state = np.random.default_rng(seed).bit_generator.state["state"]
    words = [number >> shift & (1 << 64) - 1 for number in state.values() for shift in (64, 0)]
    return np.array([*words, 0, 0], np.uint64)


@kernel
def draw_shuffle(state: State, values: AnyArray, start: int, stop: int) -> None:
    """Shuffle ``values[start:stop]`` like ``Generator.shuffle``: Fisher-Yates from the end.

    The index of each swap is drawn with just enough bits, and drawn again if it is out of range.
    """
    if stop - start < 2:
        return
    hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
    spare, has_spare = u64(state[4]), u64(state[5])
    first, one = u64(start), u64(1)
    i = u64(stop - start - 1)
    mask = one
    while mask < i:
        mask = u64(mask << one | one)
    while i > u64(0):
        limit = mask >> one
        while i > limit:
            hi, lo, spare, has_spare, half = _draw_half(hi, lo, inc_hi, inc_lo, spare, has_spare)
            j = half & mask
            # The processor would mispredict a branch on `is_in_range` half of the time. Instead, a
            # draw that is out of range swaps an element with itself, which costs less.
            is_in_range = u64(j <= i)
            a, b = first + i, first + min(j, i)
            value = values[a]
            values[a] = values[b]
            values[b] = value
            i = u64(i - is_in_range)
        mask = limit
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare


@kernel
def skip_shuffle(state: State, size: int) -> None:
    """Advance the state like a shuffle of `size` values."""
    if size < 2:
        return
    hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
    spare, has_spare = u64(state[4]), u64(state[5])
    one = u64(1)
    i = u64(size - 1)
    mask = one
    while mask < i:
        mask = u64(mask << one | one)
    while i > u64(0):
        limit = mask >> one
        while i > limit:
            hi, lo, spare, has_spare, half = _draw_half(hi, lo, inc_hi, inc_lo, spare, has_spare)
            i = u64(i - u64(half & mask <= i))
        mask = limit
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare


@kernel
def save_state(state: State, row: int, states: NDArray[np.uint64]) -> None:
    """Copy the state to a row of `states`."""
    for word in range(state.size):  # Numba needs 3 s to compile ``states[row] = state``
        states[row, word] = state[word]


@kernel
def draw_below(state: State, bound: int) -> int:
    """Draw a number below `bound` like ``Generator.integers``: Lemire's method."""
    if bound == 1:
        return 0
    hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
    spare, has_spare = u64(state[4]), u64(state[5])
    hi, lo, spare, has_spare, number = draw_below_words(
        hi, lo, inc_hi, inc_lo, spare, has_spare, bound
    )
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare
    return number


@kernel
def draw_below_words(
    hi: int, lo: int, inc_hi: int, inc_lo: int, spare: int, has_spare: int, bound: int
) -> tuple[int, int, int, int, int]:
    """Draw a number like `draw_below`, with the words of a state as arguments and results.

    So loops need not load and store the state for each number. `bound` must be at least 2. Return
    the changed words, then the number.
    """
    hi, lo, spare, has_spare, half = _draw_half(hi, lo, inc_hi, inc_lo, spare, has_spare)
    product = half * u64(bound)
    if product & u64(_HALF) < u64(bound):  # avoids the division: the threshold is below bound
        threshold = u64(MAX_BOUND - bound) % u64(bound)
        while product & u64(_HALF) < threshold:
            hi, lo, spare, has_spare, half = _draw_half(hi, lo, inc_hi, inc_lo, spare, has_spare)
            product = half * u64(bound)
    # The upper half of the product, as a signed number.
    return hi, lo, spare, has_spare, multiply_high(half << u64(32), bound)


@kernel
def jump(state: State, steps: int) -> None:
    """Advance the state like `steps` draws of 64 bits, in time proportional to log(steps)."""
    hi, lo = u64(state[0]), u64(state[1])
    mul_hi, mul_lo = u64(_UPPER), u64(_LOWER)
    add_hi, add_lo = u64(state[2]), u64(state[3])
    zero = u64(0)
    bits = steps
    while bits > 0:
        if bits & 1:
            hi, lo = _multiply_add(hi, lo, mul_hi, mul_lo, add_hi, add_lo)
        # Compose the step x * mul + add with itself.
        add_hi, add_lo = _multiply_add(add_hi, add_lo, mul_hi, mul_lo, add_hi, add_lo)
        mul_hi, mul_lo = _multiply_add(mul_hi, mul_lo, mul_hi, mul_lo, zero, zero)
        bits >>= 1
    state[0], state[1] = hi, lo


@kernel
def step(hi: int, lo: int, inc_hi: int, inc_lo: int) -> tuple[int, int, int]:
    """Advance the two halves of a state; return them and the output word (XSL-RR)."""
    hi, lo = _multiply_add(hi, lo, u64(_UPPER), u64(_LOWER), inc_hi, inc_lo)
    xored, rotation = hi ^ lo, hi >> u64(58)
    word = u64(xored >> rotation | xored << (u64(u64(64) - rotation) & u64(63)))
    return hi, lo, word


@kernel
def _draw_half(
    hi: int, lo: int, inc_hi: int, inc_lo: int, spare: int, has_spare: int
) -> tuple[int, int, int, int, int]:
    """Draw 32 bits: the lower half of a word, and next time its upper half.

    Return the changed words of the state, then the bits.
    """
    if has_spare:
        return hi, lo, spare, u64(0), spare
    hi, lo, word = step(hi, lo, inc_hi, inc_lo)
    return hi, lo, word >> u64(32), u64(1), word & u64(_HALF)


@kernel
def _multiply_add(
    hi: int, lo: int, mul_hi: int, mul_lo: int, add_hi: int, add_lo: int
) -> tuple[int, int]:
    """Return the halves of the 128-bit number ``x * mul + add`` modulo 2**128."""
    low = u64(lo * mul_lo + add_lo)
    carry = u64(low < add_lo)
    high = u64(u64(multiply_high(lo, mul_lo)) + hi * mul_lo + lo * mul_hi + add_hi + carry)
    return high, low
