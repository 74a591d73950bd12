"""The native order: lanes of chunks, shuffled in staggered blocks.

The samples of an epoch lie in lanes (see `npstream.orders.layout`), which the order interleaves:
position p is element ``p // lanes`` of lane ``p % lanes``. Each lane is cut into blocks, whose
samples are permuted (see `npstream.orders.blocks`). First blocks differ in length, so that lanes
turn to their next blocks, and to the chunks that these need, in turn and not all at once.

Lanes depend on the seed alone, not on the epoch: who reads certain lanes needs the same chunks in
every epoch. An order depends on nothing but its arguments, and is part of what can be reproduced:
`ORDER_VERSION` stands in the state of a run, and tests hold orders to recorded values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from npstream._core.arguments import integer, parse_size, quantity
from npstream._core.arrays import out_of_bounds
from npstream._core.typing import AnyArray, Int64
from npstream.indexing.selection import Selection
from npstream.orders.blocks import (
    Blocks,
    Cache,
    find,
    grown,
    look_up,
    new_cache,
)
from npstream.orders.chunks import smallest_step
from npstream.orders.layout import Layout, lay_out, slots_of
from npstream.orders.permutation import SMALL, make_key

Size: TypeAlias = int | str | None
"""Bytes, as a number or as text such as "1GiB", or "auto"; or None for all there are."""

ORDER_VERSION = 1
"""Names the order that this module computes; it may not change without it."""

LANES = (1, 2, 4, 8, 24, 48, 96, 192, 480, 960)
"""Default numbers of lanes. Numbers of nodes that share lanes evenly divide them."""

_IDENTITY = "<Order: {} rows, seed {}, epoch {}, {} lanes, blocks of {}>"

LEAST_BLOCK = 1 << 24
"""Bytes of a block in one lane, at least, where the number of lanes is chosen: four chunks."""

_RUN, _EPOCH = 2, 3
"""Levels of the keys by which chunks are dealt to lanes, and by which an epoch is permuted."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Settings of the native order.

    Parameters
    ----------
    block : int, str or None, default: "auto"
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

    block: Size = "auto"
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
        """Return the settings for a number of bytes of data, with nothing left to choose.

        Parameters
        ----------
        nbytes : int
            Bytes of the data.

        Returns
        -------
        Shuffle

        Examples
        --------
        >>> Shuffle("2GiB").resolve(1 << 34)
        Shuffle(block=2147483648, lanes=96)
        """
        if self.block is None:
            return Shuffle(None, 1)
        block = min(max(nbytes >> 6, 1 << 30), 1 << 36) if self.block == "auto" else self.block
        assert isinstance(block, int)
        if self.lanes is not None:
            return Shuffle(block, self.lanes)
        if nbytes <= block:
            return Shuffle(block, 1)
        return Shuffle(block, max(c for c in LANES if c == 1 or block >= c * LEAST_BLOCK))


class RowOrder(ABC):
    """The order of a training epoch: an array of row numbers, computed where it is read."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that the order holds by now."""

    @abstractmethod
    def at(self, positions: Int64) -> Int64:
        """Return the rows at positions, all in ``range(len(order))``, in their shape."""

    @abstractmethod
    def find(self, rows: Int64) -> Int64:
        """Return the positions of rows: ``find(at(p))`` is p."""

    @abstractmethod
    def identity(self) -> str:
        """Return the text by which saved states know this order; it never changes."""

    def rows(self, start: int | None = None, stop: int | None = None) -> Int64:
        """Return the rows at positions from `start` up to `stop`, as a new array."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self.at(np.arange(start, stop))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.step in (None, 1):
            return self.rows(index.start, index.stop)
        chosen = Selection.all(len(self)).select(index)
        if isinstance(chosen, int):
            return int(self.at(np.array([chosen]))[0])
        return self.at(chosen.ids()).reshape(chosen.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        return self.rows().astype(dtype or np.int64, copy=False)


class Order(RowOrder):
    """The native order of an epoch of a view.

    Parameters
    ----------
    n : int
        Rows of the view.
    chunks : ndarray of int32 or int64, or callable
        First row of each chunk of the view, rising, then n; or what returns that, which is called
        when it is needed and is pickled in its place.
    seed, epoch : int
        Each pair gives another order.
    block : int
        Samples of a block in one lane.
    lanes : int
    scratch : Cache, optional
        A cache for rows of the dtype of the chunks, in whose memory to work. Orders that share it
        may not be used at the same time.

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
        chunks: AnyArray | Callable[[], AnyArray],
        seed: int,
        epoch: int = 0,
        *,
        block: int,
        lanes: int = 1,
        scratch: Cache | None = None,
    ) -> None:
        self._n, self._chunks, self._scratch = n, chunks, scratch
        self._seed, self._epoch = seed, epoch
        block, lanes = _count("block", block), _count("lanes", lanes)
        if n * lanes >= 1 << 62:
            raise ValueError(
                f"{quantity(n, 'row')} in {quantity(lanes, 'lane')}: the product must be below "
                "2**62"
            )
        # A block that holds all samples is as good as any larger one.
        self._blocks = Blocks(n, lanes, min(block, max(n, 1)), make_key(seed, epoch, 0, _EPOCH))
        # Whoever looks rows up takes these away, so that no two threads ever use one.
        self._free: deque[tuple[Layout, Cache]] = deque(maxlen=2)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        _, lanes, block, _ = self._blocks
        return (
            f"<Order: {quantity(self._n, 'row')}, seed {self._seed}, epoch {self._epoch}, "
            f"{quantity(lanes, 'lane')}, blocks of {block}>"
        )

    def identity(self) -> str:
        """Return the text by which saved states know this order; it never changes."""
        _, lanes, block, _ = self._blocks
        return _IDENTITY.format(self._n, self._seed, self._epoch, lanes, block)

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(Order, block=self._blocks.block, lanes=self._blocks.lanes)
        return make, (self._n, self._chunks, self._seed, self._epoch)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the order holds by now."""
        shared = self._scratch is not None
        return sum(
            layout.nbytes + (cache.kept if shared else cache.nbytes)
            for layout, cache in list(self._free)
        )

    def at(self, positions: Int64) -> Int64:
        """Return the rows at positions, all in ``range(n)``, in the shape of `positions`."""
        positions = self._checked(positions)
        rows = np.empty_like(positions)
        self._look_up(positions.reshape(-1), rows.reshape(-1))
        return rows

    def find(self, rows: Int64) -> Int64:
        """Return the positions of rows: ``find(at(p))`` is p."""
        rows = self._checked(rows)
        positions = np.empty_like(rows)
        if rows.size:
            layout, cache = self._taken()
            find.for_size(self._work(rows.size, rows.size))(
                rows.reshape(-1), self._blocks, layout, slots_of(layout), positions.reshape(-1)
            )
            self._free.append((layout, cache))
        return positions

    def rows(self, start: int | None = None, stop: int | None = None) -> Int64:
        """Return the rows at positions from `start` up to `stop`, as a new array."""
        start, stop, _ = slice(start, stop).indices(self._n)
        rows = np.empty(max(stop - start, 0), np.int64)
        self._look_up(np.array([start]), rows)
        return rows

    def _look_up(self, positions: Int64, rows: Int64) -> None:
        """Fill in the rows at positions, or at consecutive ones from a single one on."""
        if rows.size == 0:
            return
        blocks, (layout, cache) = self._blocks, self._taken()
        run = look_up.for_size(self._work(rows.size, min(rows.size, blocks.lanes)))
        done = run(positions, blocks, layout, cache, rows)
        while done < rows.size:
            cache = grown(cache, rows.size - done)
            rest = positions[done:] if positions.size == rows.size else positions + done
            done += run(rest, blocks, layout, cache, rows[done:])
        self._free.append((layout, cache))

    def _work(self, rows: int, blocks: int) -> int:
        """Reckon what it takes to look up rows in so many blocks."""
        # As plain Python, a row of a small block takes 1 us; `for_size` reckons with 10 us, and a
        # few blocks take less than loading Numba does.
        block = self._blocks.block
        return rows + (blocks * block >> 5 if block <= SMALL else 0)

    def _taken(self) -> tuple[Layout, Cache]:
        """Return a layout and a cache that nobody else has."""
        try:
            return self._free.pop()
        except IndexError:
            chunks = self._chunks() if callable(self._chunks) else self._chunks
        blocks, run_key = self._blocks, make_key(self._seed, 0, 0, _RUN)
        layout = lay_out(_without_empty(chunks, self._n), blocks.lanes, run_key, blocks.key)
        return layout, new_cache(blocks, layout.chunks.dtype, self._scratch)

    def _checked(self, numbers: Int64) -> Int64:
        """Return numbers, which must be in range(n), as a kernel takes them."""
        numbers = np.asarray(numbers).astype(np.int64, "C", casting="same_kind", copy=False)
        if out_of_bounds(numbers, self._n):
            bad = numbers[(numbers < 0) | (numbers >= self._n)].flat[0]
            raise IndexError(f"{bad} is out of bounds for an order of {quantity(self._n, 'row')}")
        return numbers


def full_order(n: int, seed: int, epoch: int = 0) -> Order:
    """Return an order that permutes n rows at once."""
    return Order(n, np.array([0, n]), seed, epoch, block=max(n, 1))


def _without_empty(chunks: AnyArray, n: int) -> AnyArray:
    """Return the bounds of the chunks that are not empty."""
    least = smallest_step.for_size(len(chunks))(chunks)
    if len(chunks) == 0 or chunks[0] != 0 or chunks[-1] != n or least < 0:
        raise ValueError(
            f"the bounds of the chunks of {quantity(n, 'row')} must rise from 0 to that"
        )
    return chunks if least > 0 else np.unique(chunks)


def _count(name: str, number: object) -> int:
    """Return a number of things, of which there is at least one."""
    if (count := integer(name, number)) < 1:
        raise ValueError(f"{name}={count}: expected at least 1")
    return count
