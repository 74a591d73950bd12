"""Provide the native order of an epoch, which shuffles blocks of samples from all over a view.

A chunk is a range of samples that are stored together (see `npstream.orders.chunks`). A lane is a
random sequence of chunks (see `npstream.orders.layout`). Position p of the order is element
``p // lanes`` of lane ``p % lanes``. Each lane is cut into blocks, and the samples of each block
are permuted (see `npstream.orders.blocks`). The first blocks of lanes differ in length. So lanes
reach their next blocks, and need new chunks, at different times. In a stratified order, the
sequence of a lane's chunks is one in which neighbors come evenly from all parts of the view (see
`npstream.orders.stratified`).

The chunks of a lane depend only on the seed. So a node that reads certain lanes needs the same
chunks in every epoch. An order depends only on its arguments, and must stay reproducible: saved
states contain `ORDER_VERSION`, and tests compare orders with recorded values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    grow_cache,
    look_up,
    new_cache,
)
from npstream.orders.chunks import smallest_step
from npstream.orders.layout import Layout, make_layout, piece_slots
from npstream.orders.permutation import MAX_TABLE_LENGTH, make_key
from npstream.orders.spread import OrderPieces, pieces_of_layout

BlockSize: TypeAlias = int | str | None
"""Size of a block: a number of bytes, a str such as "1GiB", "auto", or None for all data."""

ORDER_VERSION = 1
"""Version of the order; it must change whenever this module computes another order."""

LANES = (1, 2, 4, 8, 24, 48, 96, 192, 480, 960)
"""Default numbers of lanes. They have many divisors, so that nodes can share lanes evenly."""

_IDENTITY = "<Order: {} rows, seed {}, epoch {}, {} lanes, blocks of {}>"
"""Text of `Order.identity`, which must never change; that of ``repr(order)`` may change."""

_SEQUENTIAL_IDENTITY = "<SequentialOrder: {} rows>"
"""Text of `SequentialOrder.identity`, which must never change."""

MIN_LANE_BLOCK_BYTES = 1 << 24
"""Minimum bytes of a lane's share of `Shuffle.block`, when the number of lanes is the default.

It is the size of four chunks; see `npstream.formats.chunks.CHUNK_BYTES`.
"""

_CHUNKS_LEVEL = 2
"""The `level` in `make_key` for the assignment of chunks to lanes."""

_EPOCH_LEVEL = 3
"""The `level` in `make_key` for the permutations of an epoch."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Settings of the native order.

    Parameters
    ----------
    block : int, str or None, default: "auto"
        Bytes of data that are shuffled together, over all lanes. About this amount of data stays in
        memory or in the cache while the order is read. "auto" is 1/64 of the data, but at least
        1 GiB and at most 64 GiB. None shuffles all samples together. 0 shuffles nothing: samples
        keep the order of the view.
    lanes : int, optional
        Number of sequences of chunks that the order interleaves. If it is a multiple of the number
        of nodes, the nodes read different chunks. Only the few chunks that are cut at the end of a
        lane may be read by two nodes. The default is 1 if all data fit into a block. Otherwise, the
        default is the largest of 1, 2, 4, 8, 24, 48, 96, 192, 480 and 960 for which each lane has
        at least 16 MiB of the block.
    stratified : bool, default: False
        If True, chunks that are read one after the other come evenly from all parts of the data, as
        in stratified sampling. If False, they come at random. It is for data that are sorted, for
        instance by label: all labels then have nearly their right shares at any time.

    Examples
    --------
    >>> Shuffle().resolve(10**12)
    Shuffle(block=15625000000, lanes=480, stratified=False)
    """

    block: BlockSize = "auto"
    lanes: int | None = None
    stratified: bool = False

    def __post_init__(self) -> None:
        if self.block is not None and self.block != "auto":
            if isinstance(self.block, bool) or _is_below_one_byte(self.block):
                raise ValueError(
                    f"block={self.block!r}: expected a size, 'auto' or None; 0 shuffles nothing, "
                    "and None shuffles all samples together"
                )
            object.__setattr__(self, "block", parse_size(self.block))
        if self.lanes is not None:
            object.__setattr__(self, "lanes", _positive_integer("lanes", self.lanes))
            if self.block is None and self.lanes > 1:
                raise ValueError(
                    f"lanes={self.lanes} and block=None: a shuffle of all samples has one lane"
                )
            if self.block == 0 and self.lanes > 1:
                raise ValueError(
                    f"lanes={self.lanes} and block=0: samples in the order of the view have one "
                    "lane"
                )
        if not isinstance(self.stratified, bool):
            raise TypeError(f"stratified={self.stratified!r}: expected True or False")
        if self.stratified and (self.block is None or self.block == 0):
            raise ValueError(
                f"stratified=True and block={self.block}: only blocks of some of the data can be "
                "stratified"
            )

    def resolve(self, nbytes: int) -> Shuffle:
        """Return the settings for data of a given size, with values instead of defaults.

        Parameters
        ----------
        nbytes : int
            Bytes of the data.

        Returns
        -------
        Shuffle
            Settings in which `block` is an int or None, and `lanes` is an int.

        Examples
        --------
        >>> Shuffle("2GiB").resolve(1 << 34)
        Shuffle(block=2147483648, lanes=96, stratified=False)
        """
        if self.block is None or self.block == 0:
            return replace(self, lanes=1)
        block = min(max(nbytes >> 6, 1 << 30), 1 << 36) if self.block == "auto" else self.block
        assert isinstance(block, int)
        lanes = self.lanes
        if lanes is None and nbytes <= block:
            lanes = 1
        elif lanes is None:
            lanes = max(c for c in LANES if c == 1 or block >= c * MIN_LANE_BLOCK_BYTES)
        return replace(self, block=block, lanes=lanes)


def shuffle_with_block(nbytes: int, stratified: bool) -> tuple[Shuffle, str]:
    """Return settings with blocks of `nbytes`, and the argument that sets them, for a message."""
    option = ", stratified=True" if stratified else ""
    return Shuffle(nbytes, None, stratified), f"shuffle=npstream.Shuffle(block={nbytes}{option})"


class RowOrder(ABC):
    """The order of a training epoch: an array of row numbers, computed when it is indexed."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that the order uses now."""

    @abstractmethod
    def at(self, positions: Int64) -> Int64:
        """Return the rows at `positions`, in the same shape; all must be in range(len(order))."""

    @abstractmethod
    def find(self, rows: Int64) -> Int64:
        """Return the positions of rows: ``find(at(p))`` is p."""

    @abstractmethod
    def identity(self) -> str:
        """Return the str that identifies this order in saved states; it must never change."""

    def rows(self, start: int | None = None, stop: int | None = None) -> Int64:
        """Return the rows at positions from `start` up to `stop`, as a new array."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self.at(np.arange(start, stop))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.step in (None, 1):
            return self.rows(index.start, index.stop)
        selection = Selection.all(len(self)).select(index)
        if isinstance(selection, int):
            return int(self.at(np.array([selection]))[0])
        return self.at(selection.ids()).reshape(selection.shape)

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
        First row of each chunk of the view, sorted, then n. A callable returns this array. It is
        called when the array is needed, and pickled instead of the array.
    seed, epoch : int
        The order depends on both: different pairs give different orders.
    block : int
        Number of samples of a block in one lane. (`Shuffle.block` is in bytes, over all lanes.)
    lanes : int, default: 1
        Number of lanes.
    stratified : bool, default: False
        Whether the chunks of a lane come evenly from all parts of the view; see `Shuffle`.
    scratch : Cache, optional
        A cache whose buffers this order shares. By default, the order has its own buffers. The
        shared ones must be of int32 if `n` is below 2**31, else of int64. Orders that share buffers
        must not be used at the same time.

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
        stratified: bool = False,
        scratch: Cache | None = None,
    ) -> None:
        self._n, self._chunks, self._scratch = n, chunks, scratch
        self._stratified = stratified
        self._seed, self._epoch = seed, epoch
        block, lanes = _positive_integer("block", block), _positive_integer("lanes", lanes)
        if n * lanes >= 1 << 62:
            raise ValueError(
                f"{quantity(n, 'row')} in {quantity(lanes, 'lane')}: the product must be below "
                "2**62"
            )
        # All blocks of at least n samples give the same order.
        self._blocks = Blocks(
            n, lanes, min(block, max(n, 1)), make_key(seed, epoch, 0, _EPOCH_LEVEL)
        )
        # Each look-up takes a layout and a cache out of this deque, and puts them back at the end.
        # So two threads never use the same layout or cache.
        self._free_buffers: deque[tuple[Layout, Cache]] = deque(maxlen=2)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        _, lanes, block, _ = self._blocks
        return (
            f"<Order: {quantity(self._n, 'row')}, seed {self._seed}, epoch {self._epoch}, "
            f"{quantity(lanes, 'lane')}, blocks of {block}{self._stratified_text}>"
        )

    def identity(self) -> str:
        """Return the str that identifies this order in saved states; it must never change."""
        _, lanes, block, _ = self._blocks
        block_text = f"{block}{self._stratified_text}"
        return _IDENTITY.format(self._n, self._seed, self._epoch, lanes, block_text)

    @property
    def _stratified_text(self) -> str:
        return ", stratified" if self._stratified else ""

    def __reduce__(self) -> tuple[Any, ...]:
        _, lanes, block, _ = self._blocks
        make = partial(Order, block=block, lanes=lanes, stratified=self._stratified)
        return make, (self._n, self._chunks, self._seed, self._epoch)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the order uses now, without a shared `scratch`."""
        shared = self._scratch is not None
        return sum(
            layout.nbytes + (cache.rows_nbytes if shared else cache.nbytes)
            for layout, cache in list(self._free_buffers)
        )

    def at(self, positions: Int64) -> Int64:
        """Return the rows at `positions`, in the same shape; all must be in range(n)."""
        positions = _within_bounds(positions, self._n)
        rows = np.empty_like(positions)
        self._look_up(positions.reshape(-1), rows.reshape(-1))
        return rows

    def find(self, rows: Int64) -> Int64:
        """Return the positions of rows: ``find(at(p))`` is p."""
        rows = _within_bounds(rows, self._n)
        positions = np.empty_like(rows)
        if rows.size:
            layout, cache = self._acquire()
            find.for_size(self._estimate_work(rows.size, rows.size))(
                rows.reshape(-1), self._blocks, layout, piece_slots(layout), positions.reshape(-1)
            )
            self._free_buffers.append((layout, cache))
        return positions

    def rows(self, start: int | None = None, stop: int | None = None) -> Int64:
        """Return the rows at positions from `start` up to `stop`, as a new array."""
        start, stop, _ = slice(start, stop).indices(self._n)
        rows = np.empty(max(stop - start, 0), np.int64)
        self._look_up(np.array([start]), rows)
        return rows

    def pieces(self) -> OrderPieces:
        """Return the pieces of chunks in each lane, in the sequence of this epoch."""
        layout, cache = self._acquire()
        pieces = pieces_of_layout(self._blocks, layout)
        self._free_buffers.append((layout, cache))
        return pieces

    def _look_up(self, positions: Int64, rows: Int64) -> None:
        """Write the rows at `positions` to `rows`.

        If `positions` has only one element, it is the first of ``rows.size`` consecutive positions.
        """
        if rows.size == 0:
            return
        blocks, (layout, cache) = self._blocks, self._acquire()
        kernel = look_up.for_size(self._estimate_work(rows.size, min(rows.size, blocks.lanes)))
        done = kernel(positions, blocks, layout, cache, rows)
        # The kernel stops when the cache has no memory for another range of rows of a lane.
        while done < rows.size:
            cache = grow_cache(cache, rows.size - done)
            next_positions = positions[done:] if positions.size == rows.size else positions + done
            done += kernel(next_positions, blocks, layout, cache, rows[done:])
        self._free_buffers.append((layout, cache))

    def _estimate_work(self, rows: int, blocks: int) -> int:
        """Estimate the work of looking up `rows` rows in `blocks` blocks, for `Kernel.for_size`."""
        # A small block is shuffled as a whole. For the largest one, plain Python takes about 30 ms:
        # less than loading Numba. So this block counts as 1 << 10 rows, as in `Permutation`.
        block = self._blocks.block
        return rows + (blocks * block >> 5 if block <= MAX_TABLE_LENGTH else 0)

    def _acquire(self) -> tuple[Layout, Cache]:
        """Return a layout and a cache that no other thread uses."""
        try:
            return self._free_buffers.pop()
        except IndexError:
            chunks = self._chunks() if callable(self._chunks) else self._chunks
        blocks, chunks_key = self._blocks, make_key(self._seed, 0, 0, _CHUNKS_LEVEL)
        nonempty = _nonempty_chunks(chunks, self._n)
        layout = make_layout(nonempty, blocks.lanes, chunks_key, blocks.key, self._stratified)
        return layout, new_cache(blocks, layout.chunks.dtype, self._scratch)


class SequentialOrder(RowOrder):
    """The order of a view itself, which shuffles nothing: position p has row p.

    Parameters
    ----------
    n : int
        Rows of the view.

    Examples
    --------
    >>> SequentialOrder(10)[7:]
    array([7, 8, 9])
    """

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"<SequentialOrder: {quantity(self._n, 'row')}>"

    def identity(self) -> str:
        """Return the str that identifies this order in saved states; it must never change."""
        return _SEQUENTIAL_IDENTITY.format(self._n)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the order uses now: none."""
        return 0

    def at(self, positions: Int64) -> Int64:
        """Return a copy of `positions`; all must be in range(n)."""
        return _within_bounds(positions, self._n).copy()

    def find(self, rows: Int64) -> Int64:
        """Return the positions of rows, which are the rows themselves."""
        return _within_bounds(rows, self._n).copy()


def full_order(n: int, seed: int, epoch: int = 0) -> Order:
    """Return an order that shuffles all `n` rows together."""
    return Order(n, np.array([0, n]), seed, epoch, block=max(n, 1))


def _within_bounds(numbers: Int64, n: int) -> Int64:
    """Return numbers as a contiguous int64 array; raise IndexError if not in range(n)."""
    numbers = np.asarray(numbers).astype(np.int64, "C", casting="same_kind", copy=False)
    if out_of_bounds(numbers, n):
        bad = numbers[(numbers < 0) | (numbers >= n)].flat[0]
        raise IndexError(f"{bad} is out of bounds for an order of {quantity(n, 'row')}")
    return numbers


def _is_below_one_byte(block: int | float | str) -> bool:
    """Return True for a positive size below 1 byte: rounded down to 0, it would shuffle nothing."""
    is_zero = block == 0 or (isinstance(block, str) and set(block).isdisjoint("123456789"))
    return parse_size(block) == 0 and not is_zero


def _nonempty_chunks(chunks: AnyArray, n: int) -> AnyArray:
    """Return the bounds of the nonempty chunks; raise ValueError if bounds are invalid."""
    smallest = smallest_step.for_size(len(chunks))(chunks)
    if len(chunks) == 0 or chunks[0] != 0 or chunks[-1] != n or smallest < 0:
        raise ValueError(f"chunks: expected sorted bounds from 0 to {n}, for {quantity(n, 'row')}")
    return chunks if smallest > 0 else np.unique(chunks)


def _positive_integer(name: str, number: object) -> int:
    """Return a parameter as an int; raise ValueError if it is below 1."""
    if (count := integer(name, number)) < 1:
        raise ValueError(f"{name}={count}: expected at least 1")
    return count
