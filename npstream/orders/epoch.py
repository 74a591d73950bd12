"""The native order: lanes of chunks, shuffled in staggered blocks.

The samples of an epoch lie in lanes (see `npstream.orders.layout`), which the order interleaves:
position p is element ``p // lanes`` of lane ``p % lanes``. Each lane is cut into blocks, whose
samples are permuted (see `npstream.orders.blocks`). First blocks differ in length, so that lanes
turn to their next blocks, and to the chunks that these need, in turn and not all at once.

Lanes depend on the seed alone, not on the epoch: who reads certain lanes needs the same chunks in
every epoch. An order depends on nothing but its arguments, and is part of what can be reproduced:
`VERSION` stands in the state of a run, and tests hold orders to recorded values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from npstream._typing import AnyArray, Int64
from npstream._jit import Kernel
from npstream.orders.blocks import Blocks, Cache, find, grown, look_up, look_up_run, new_cache
from npstream.orders.layout import Layout, lay_out, slots_of
from npstream.orders.permutation import SMALL, integer, make_key, out_of_bounds
from npstream.selection import Selection
from npstream.sizes import parse_size

VERSION = 1
"""Names the order that this module computes; it may not change without it."""

LANES = (1, 2, 4, 8, 24, 48, 96, 192, 480, 960)
"""Default numbers of lanes: of each, most numbers of nodes below it are divisors."""

LEAST_BLOCK = 1 << 24
"""Bytes of a block in one lane, at least, where the number of lanes is chosen: four chunks."""

_RUN, _EPOCH = 2, 3
"""Levels of the keys by which chunks are dealt to lanes, and by which an epoch is permuted."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Settings of the native order.

    Parameters
    ----------
    block : int, str or None
        Bytes of data that are shuffled together, over all lanes; about what stays in memory or in
        the cache while the order is read. "auto" is a 64th of the data, but at least 1 GiB and at
        most 64 GiB. None shuffles all samples at once.
    lanes : int, optional
        Sequences of chunks that the order interleaves. A node reads just its own chunks if the
        number of nodes divides it. By default 1 if all data fit into a block, else the largest of
        1, 2, 4, 8, 24, 48, 96, 192, 480 and 960 that leaves 16 MiB of the block to each lane.

    Examples
    --------
    >>> Shuffle().resolve(10**12)
    Shuffle(block=15625000000, lanes=480)
    """

    block: int | str | None = "auto"
    lanes: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.block != "auto":
            if isinstance(self.block, bool) or (nbytes := parse_size(self.block)) < 1:
                raise ValueError(f"block={self.block!r}: expected a size, 'auto' or None")
            object.__setattr__(self, "block", nbytes)
        if self.lanes is not None:
            object.__setattr__(self, "lanes", _count("lanes", self.lanes))
            if self.block is None and self.lanes > 1:
                raise ValueError(
                    f"lanes={self.lanes} and block=None: all samples at once are one lane"
                )

    def resolve(self, nbytes: int) -> Shuffle:
        """Return the settings for so many bytes of data, with nothing left to choose."""
        if self.block is None:
            return Shuffle(None, 1)
        block = min(max(nbytes >> 6, 1 << 30), 1 << 36) if self.block == "auto" else self.block
        assert isinstance(block, int)
        if self.lanes is not None:
            return Shuffle(block, self.lanes)
        if nbytes <= block:
            return Shuffle(block, 1)
        return Shuffle(block, max(c for c in LANES if c == 1 or block >= c * LEAST_BLOCK))


class Order:
    """The order of an epoch: an array of the numbers 0 to n - 1 that is computed where it is read.

    Parameters
    ----------
    n : int
        Samples of the view.
    chunks : ndarray of int64 or callable
        First sample of each chunk of the view, ascending, then n; or what returns it, which is
        called when it is needed, and pickled in its place.
    seed, epoch : int
        Each pair gives another order.
    block : int
        Samples of a block in one lane.
    lanes : int

    Examples
    --------
    >>> order = Order(10, np.array([0, 4, 8, 10]), seed=0, block=3, lanes=2)
    >>> order[2:5]
    array([...])
    >>> order.find(order[2:5])
    array([2, 3, 4])
    >>> np.sort(order)
    array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(
        self,
        n: int,
        chunks: Int64 | Callable[[], Int64],
        seed: int,
        epoch: int = 0,
        *,
        block: int,
        lanes: int = 1,
    ) -> None:
        self._n = n
        self._chunks = chunks
        self._seed, self._epoch = seed, epoch
        block, lanes = _count("block", block), _count("lanes", lanes)
        if n * lanes >= 1 << 62:
            raise ValueError(f"{n} samples in {lanes} lanes: their product must be below 2**62")
        # A block that holds all samples is as good as any larger one.
        self._blocks = Blocks(n, lanes, min(block, max(n, 1)), make_key(seed, epoch, 0, _EPOCH))
        # Whoever looks something up takes the cache away, so that no two threads use one.
        self._caches: deque[Cache] = deque(maxlen=1)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return (
            f"<Order: {self._n} samples, seed {self._seed}, epoch {self._epoch}, "
            f"blocks of {self._blocks.block} in {self._blocks.lanes} lanes>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(Order, block=self._blocks.block, lanes=self._blocks.lanes)
        return make, (self._n, self._chunks, self._seed, self._epoch)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.step in (None, 1):
            return self.ids(index.start, index.stop)
        chosen = Selection.all(self._n).select(index)
        if isinstance(chosen, int):
            return int(self.at(np.array([chosen]))[0])
        return self.at(chosen.ids()).reshape(chosen.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        return self.ids().astype(dtype or np.int64, copy=False)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the order holds by now."""
        caches = sum(cache.nbytes for cache in self._caches)
        return caches + (self._layout.nbytes if "_layout" in self.__dict__ else 0)

    def ids(self, start: int | None = None, stop: int | None = None) -> Int64:
        """Return the samples at positions from `start` up to `stop`, as a new array."""
        start, stop, _ = slice(start, stop).indices(self._n)
        samples = np.empty(max(stop - start, 0), np.int64)
        self._look_up(look_up_run, start, samples)
        return samples

    def at(self, positions: Int64) -> Int64:
        """Return the samples at positions, all in ``range(n)``, in the shape of `positions`."""
        positions = self._checked(positions)
        samples = np.empty_like(positions)
        self._look_up(look_up, positions.reshape(-1), samples.reshape(-1))
        return samples

    def find(self, samples: Int64) -> Int64:
        """Return the positions of samples: ``find(at(p))`` is p."""
        samples = self._checked(samples)
        positions = np.empty_like(samples)
        if samples.size:
            steps = samples.size * min(self._blocks.block, SMALL) >> 5
            find.sized(samples.size + steps)(
                samples.reshape(-1), self._blocks, self._layout, slots_of(self._layout),
                positions.reshape(-1),
            )  # fmt: skip
        return positions

    def _look_up(self, kernel: Kernel[..., int], positions: Any, samples: Int64) -> None:
        """Fill in the samples at positions: an array of them, or the first of consecutive ones."""
        if samples.size == 0:
            return
        blocks, layout = self._blocks, self._layout
        try:
            cache = self._caches.pop()
        except IndexError:
            cache = new_cache(blocks, layout.bounds.dtype)
        steps = min(samples.size, blocks.lanes) * min(blocks.block, SMALL) >> 5
        run = kernel.sized(samples.size + steps)
        done = run(positions, blocks, layout, cache, samples)
        while done < samples.size:
            cache = grown(cache)
            rest = positions[done:] if kernel is look_up else positions + done
            done += run(rest, blocks, layout, cache, samples[done:])
        self._caches.append(cache)

    @cached_property
    def _layout(self) -> Layout:
        starts = self._chunks() if callable(self._chunks) else self._chunks
        sizes = np.diff(starts)
        if len(starts) == 0 or starts[0] != 0 or starts[-1] != self._n or (sizes < 0).any():
            raise ValueError(f"the chunks of {self._n} samples must rise from 0 to that")
        if not sizes.all():
            starts = np.append(starts[:-1][sizes > 0], self._n)
        return lay_out(starts, self._blocks.lanes, make_key(self._seed, 0, 0, _RUN), self._blocks.key)

    def _checked(self, numbers: Int64) -> Int64:
        """Copy numbers that all lie in range(n)."""
        numbers = np.asarray(numbers)
        copy = numbers.astype(np.int64, order="C", casting="same_kind")
        if out_of_bounds(copy, self._n):
            bad = copy[(copy < 0) | (copy >= self._n)].flat[0]
            raise IndexError(f"{bad} is out of bounds for an order of {self._n} samples")
        return copy


def _count(name: str, number: object) -> int:
    """Return a number of things, of which there is at least one."""
    if (count := integer(name, number)) < 1:
        raise ValueError(f"{name}={count}: expected at least 1")
    return count
