"""NumPy's default generator, PCG64, inside kernels: the numbers of ``np.random.default_rng``.

NumPy makes a state from a seed (`seeded`); from there kernels draw, and leave the state as NumPy
would have left it. A state is six uint64: the upper and lower half of the generator's own 128
bits, those of its increment, the half of the last word that no 32-bit draw has used yet, and
whether there is one.
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
"""Numbers among which a kernel can draw: 32 bits each time, as NumPy does up to here."""

_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_UPPER, _LOWER = _MULTIPLIER >> 64, _MULTIPLIER & (1 << 64) - 1
_HALF = 0xFFFFFFFF


def seeded(seed: int) -> State:
    """Return the state of ``np.random.default_rng(seed)``.

    >>> state = seeded(7)
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
    """Shuffle ``values[start:stop]`` as ``Generator.shuffle`` does: Fisher-Yates from the end.

    Whose place an element takes is drawn from as many bits as that needs, and drawn again while
    it is out of range.
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
            hi, lo, spare, has_spare, half = _half(hi, lo, inc_hi, inc_lo, spare, has_spare)
            j = half & mask
            # Half of the branches on this would be foreseen wrongly. So a draw that is out of
            # range changes places with itself, which costs less.
            accepted = u64(j <= i)
            a, b = first + i, first + min(j, i)
            value = values[a]
            values[a] = values[b]
            values[b] = value
            i = u64(i - accepted)
        mask = limit
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare


@kernel
def skip_shuffle(state: State, size: int) -> None:
    """Leave the state as a shuffle of `size` values would."""
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
            hi, lo, spare, has_spare, half = _half(hi, lo, inc_hi, inc_lo, spare, has_spare)
            i = u64(i - u64(half & mask <= i))
        mask = limit
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare


@kernel
def write_down(state: State, mark: int, states: NDArray[np.uint64]) -> None:
    """Copy the state to a row of `states`."""
    for word in range(state.size):  # to assign a whole row takes Numba 3 s to compile
        states[mark, word] = state[word]


@kernel
def draw_below(state: State, bound: int) -> int:
    """Draw a number below `bound` as ``Generator.integers`` does: Lemire's method."""
    if bound == 1:
        return 0
    hi, lo, inc_hi, inc_lo = u64(state[0]), u64(state[1]), u64(state[2]), u64(state[3])
    spare, has_spare = u64(state[4]), u64(state[5])
    hi, lo, spare, has_spare, drawn = bounded(hi, lo, inc_hi, inc_lo, spare, has_spare, bound)
    state[0], state[1], state[4], state[5] = hi, lo, spare, has_spare
    return drawn


@kernel
def bounded(
    hi: int, lo: int, inc_hi: int, inc_lo: int, spare: int, has_spare: int, bound: int
) -> tuple[int, int, int, int, int]:
    """Draw a number below a bound of at least 2, the last result, where the state is at hand."""
    hi, lo, spare, has_spare, half = _half(hi, lo, inc_hi, inc_lo, spare, has_spare)
    product = half * u64(bound)
    if product & u64(_HALF) < u64(bound):  # or else it is above the threshold, too
        threshold = u64(MAX_BOUND - bound) % u64(bound)
        while product & u64(_HALF) < threshold:
            hi, lo, spare, has_spare, half = _half(hi, lo, inc_hi, inc_lo, spare, has_spare)
            product = half * u64(bound)
    # The upper half of the product, as a signed number.
    return hi, lo, spare, has_spare, multiply_high(half << u64(32), bound)


@kernel
def jump(state: State, steps: int) -> None:
    """Leave the state as `steps` draws of 64 bits would: squaring the step, bit by bit."""
    hi, lo = u64(state[0]), u64(state[1])
    mul_hi, mul_lo = u64(_UPPER), u64(_LOWER)
    add_hi, add_lo = u64(state[2]), u64(state[3])
    zero = u64(0)
    left = steps
    while left > 0:
        if left & 1:
            hi, lo = _multiply_add(hi, lo, mul_hi, mul_lo, add_hi, add_lo)
        # Twice x * mul + add.
        add_hi, add_lo = _multiply_add(add_hi, add_lo, mul_hi, mul_lo, add_hi, add_lo)
        mul_hi, mul_lo = _multiply_add(mul_hi, mul_lo, mul_hi, mul_lo, zero, zero)
        left >>= 1
    state[0], state[1] = hi, lo


@kernel
def step(hi: int, lo: int, inc_hi: int, inc_lo: int) -> tuple[int, int, int]:
    """Advance the two halves of a state, and return them and the word that they stand for."""
    hi, lo = _multiply_add(hi, lo, u64(_UPPER), u64(_LOWER), inc_hi, inc_lo)
    folded, turn = hi ^ lo, hi >> u64(58)
    word = u64(folded >> turn | folded << (u64(u64(64) - turn) & u64(63)))
    return hi, lo, word


@kernel
def _half(
    hi: int, lo: int, inc_hi: int, inc_lo: int, spare: int, has_spare: int
) -> tuple[int, int, int, int, int]:
    """Draw 32 bits, the last result: the lower half of a word, and next time the upper one."""
    if has_spare:
        return hi, lo, spare, u64(0), spare
    hi, lo, word = step(hi, lo, inc_hi, inc_lo)
    return hi, lo, word >> u64(32), u64(1), word & u64(_HALF)


@kernel
def _multiply_add(
    hi: int, lo: int, mul_hi: int, mul_lo: int, add_hi: int, add_lo: int
) -> tuple[int, int]:
    """Return the halves of a product and a sum modulo 2**128."""
    low = u64(lo * mul_lo + add_lo)
    carry = u64(low < add_lo)
    high = u64(u64(multiply_high(lo, mul_lo)) + hi * mul_lo + lo * mul_hi + add_hi + carry)
    return high, low
