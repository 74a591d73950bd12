"""Provide `ShuffleCosts`: the costs of an epoch in orders with blocks of several sizes.

The costs follow from the index and from the orders. No sample is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream._core.optional import import_optional
from npstream.cache.downloads import MAX_REQUEST
from npstream.errors import short_repr
from npstream.explore.summary import align_cells
from npstream.orders.order import Order, RowOrder, Shuffle
from npstream.orders.spread import OrderPieces, sequential_pieces
from npstream.reading.source import view_order
from npstream.shards.local import layouts_of
from npstream.shards.locality import MAX_PREFIX, READ_FRACTION, refetched_bytes
from npstream.storage.coalesce import REQUEST_BYTES
from npstream.storage.remote import READ_REQUEST_BYTES

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray, Int64
    from npstream.indexing.selection import Selection
    from npstream.orders.order import BlockSize
    from npstream.orders.spread import Float64
    from npstream.reading.source import Source

__all__ = ["ShuffleCost", "ShuffleCosts", "estimate_costs"]

_DEFAULT_DIVISORS = (1024, 256, 64, 16, 4)
"""By default, the sizes of blocks are the bytes of the data, divided by each of these numbers."""

_MAX_EPOCHS = 16
"""If values are given, the variance is averaged over at most this number of epochs.

The variance depends on the chunks that come together in a block, so it varies from epoch to epoch.
"""

_MAX_LOOKUPS = 1 << 26
"""Maximum number of values that are looked up for the variance, in all epochs together."""

_HEADERS = [
    "block", "lanes", "reads", "requests", "bytes", "memory", "first batch", "variance"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ShuffleCost:
    """The cost of an epoch in one order, for one reader of all samples with an empty cache.

    Attributes
    ----------
    block : int or None
        Bytes that are shuffled together. 0 is the order of the view, and None is a full shuffle.
    lanes : int
        Number of lanes of the order; see `npstream.Shuffle`.
    stratified : bool
        Whether the order is stratified; see `npstream.Shuffle`.
    reads : str
        ``"chunks"`` if whole chunks are fetched. ``"samples"`` if samples are fetched one by one,
        because the cache cannot hold the chunks. ``"nothing"`` if the iteration would raise an
        error, because the cache cannot hold the chunks, and samples cannot be fetched one by one.
    requests : int
        Requests to the store in an epoch.
    nbytes : int
        Bytes that an epoch fetches.
    memory : int
        The most bytes of chunks that are between their first and their last use. With a cache of
        about 1.5 times this size, each chunk is fetched about once.
    first_batch : int
        Bytes to fetch for the first batch.
    variance : float
        Variance of the mean of a batch, divided by that of a perfect shuffle.
    """

    block: int | None
    lanes: int
    stratified: bool
    reads: str
    requests: int
    nbytes: int
    memory: int
    first_batch: int
    variance: float

    def to_texts(self) -> list[str]:
        """Return the attributes as texts, under the headers of `ShuffleCosts`."""
        block = "all" if self.block is None else size_text(self.block) if self.block else "0"
        block += ", stratified" if self.stratified else ""
        sizes = self.nbytes, self.memory, self.first_batch
        return [
            block, f"{self.lanes:,}", self.reads, f"{self.requests:,}", *map(size_text, sizes),
            f"{self.variance:,.2f}",
        ]  # fmt: skip


class ShuffleCosts(Sequence[ShuffleCost]):
    """The costs of an epoch with blocks of several sizes: the result of ``ds.shuffle_costs()``.

    A sequence of `ShuffleCost`, one for each block, in the order of the argument `blocks`.

    Parameters
    ----------
    title : str
        What is read: samples, bytes, and the size of batches.
    costs : iterable of ShuffleCost

    Examples
    --------
    >>> costs = getfixture("example").shuffle_costs(batch_size=2, blocks=[0, None])
    >>> [(cost.block, cost.requests, cost.variance) for cost in costs]
    [(0, 2, 1.0), (None, 2, 1.0)]
    """

    __slots__ = ("_costs", "_title")

    def __init__(self, title: str, costs: Iterable[ShuffleCost]) -> None:
        self._title, self._costs = title, tuple(costs)

    def __len__(self) -> int:
        return len(self._costs)

    def __iter__(self) -> Iterator[ShuffleCost]:
        return iter(self._costs)

    @overload
    def __getitem__(self, index: int) -> ShuffleCost: ...
    @overload
    def __getitem__(self, index: slice) -> ShuffleCosts: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ShuffleCosts(self._title, self._costs[index])
        return self._costs[index]

    def __repr__(self) -> str:
        rows = [cost.to_texts() for cost in self._costs]
        return (
            "\n".join(
                [f"<npstream.ShuffleCosts: {self._title}", *align_cells([_HEADERS, *rows], 0)]
            )
            + ">"
        )

    def _repr_html_(self) -> str:
        from npstream.rendering.html import table

        rows = [cost.to_texts() for cost in self._costs]
        return table(_HEADERS, rows, caption=self._title, numeric=[0, 1, *range(3, len(_HEADERS))])

    def to_pandas(self) -> Any:
        """Return the table as a DataFrame of pandas.

        Returns
        -------
        pandas.DataFrame
            A row for each block, and a column for each attribute of `ShuffleCost`. The `block` of a
            full shuffle is NA.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("pandas")
        >>> costs = getfixture("example").shuffle_costs(batch_size=2, blocks=[0, None])
        >>> costs.to_pandas()["requests"].tolist()
        [2, 2]
        """
        pandas = import_optional("pandas", "pandas", "pandas")
        names = [f.name for f in fields(ShuffleCost)]
        frame = pandas.DataFrame([astuple(cost) for cost in self._costs], columns=names)
        return frame.astype({"block": "Int64"})


def estimate_costs(
    source: Source,
    selection: Selection,
    batch_size: int,
    blocks: Sequence[BlockSize | Shuffle] | None,
    seed: int,
    cache_limit: int | None,
    values: Float64 | None,
) -> ShuffleCosts:
    """Return the costs of an epoch for several blocks.

    Parameters
    ----------
    source : Source
    selection : Selection
        The view that is read.
    batch_size : int
    blocks : sequence or None
        Sizes of blocks, or settings with a number of lanes; None for the default sizes.
    seed : int
        The seed of the orders.
    cache_limit : int or None
        Bytes of the cache; None for a cache that holds all data.
    values : ndarray of float64 or None
        A value for each row of the view. The variance is that of the mean of a batch's values. If
        None, all samples of a chunk have the same value, which is random for each chunk.
    """
    if isinstance(blocks, str | int | Shuffle):
        raise TypeError(f"blocks={blocks!r}: expected a sequence of sizes, such as [{blocks!r}]")
    data = _StoredView(source, selection)
    if blocks is None:
        sizes = [data.nbytes // divisor for divisor in _DEFAULT_DIVISORS]
        blocks = [0, *dict.fromkeys(size for size in sizes if size), None]
    settings = [block if isinstance(block, Shuffle) else Shuffle(block) for block in blocks]
    nbytes = source.estimate_bytes(selection.size)
    title = (
        f"{quantity(selection.size, 'sample')}, {size_text(data.nbytes)} in "
        f"{quantity(len(data.chunk_bytes), 'chunk')}, batches of {batch_size:,}"
    )
    if cache_limit is not None:
        title += f", a cache of {size_text(cache_limit)}"
    return ShuffleCosts(
        title,
        [
            _estimate_cost(data, setting.resolve(nbytes), batch_size, seed, cache_limit, values)
            for setting in settings
        ],
    )


def _estimate_cost(
    data: _StoredView,
    setting: Shuffle,
    batch_size: int,
    seed: int,
    cache_limit: int | None,
    values: Float64 | None,
) -> ShuffleCost:
    """Return the cost of an epoch with one setting, which `Shuffle.resolve` has returned."""
    order = view_order(data.source, data.selection, setting, seed)
    pieces = _pieces_of(order, setting, data.chunks)
    piece_chunks = np.searchsorted(data.chunks, pieces.rows, side="right") - 1
    memory = pieces.peak_bytes(data.chunk_bytes[piece_chunks])
    if values is None or setting.block in (0, None):
        epochs = [pieces]
    else:
        epochs = [
            _pieces_of(
                view_order(data.source, data.selection, setting, seed, e), setting, data.chunks
            )
            for e in range(max(1, min(_MAX_EPOCHS, _MAX_LOOKUPS // max(len(order), 1))))
        ]
    variance = float(
        np.mean(
            [
                pieces.chunk_variance(batch_size, data.chunks)
                if values is None
                else pieces.value_variance(batch_size, values)
                for pieces in epochs
            ]
        )
    )
    is_kept = cache_limit is None or cache_limit >= data.nbytes
    refetched = 0.0
    if cache_limit is not None and not is_kept and setting.block != 0:
        refetched = data.refetched_bytes(order, cache_limit)
    first = np.unique(data.chunks_of(order.rows(0, batch_size)))
    first_batch, reads = int(data.chunk_bytes[first].sum()), "chunks"
    # If the cache holds all data, each chunk is fetched once, although the order may cut it into
    # several pieces.
    fetched = np.unique(piece_chunks) if is_kept else piece_chunks
    requests, nbytes = data.epoch_requests(fetched, is_sequential=setting.block == 0)
    # `refetched` is in bytes per sample. A request for a sample costs as much as `REQUEST_BYTES`.
    if refetched > REQUEST_BYTES:
        reads = "samples" if data.has_sample_reads else "nothing"
        samples = len(order) if data.has_sample_reads else 0
        requests, nbytes = samples, data.nbytes * samples // max(len(order), 1)
        first_batch = nbytes * min(batch_size, samples) // max(samples, 1)
    elif refetched:
        extra = int(refetched * len(order))
        requests += extra // max(int(data.chunk_bytes.mean()), 1)
        nbytes += extra
    block = setting.block
    assert block != "auto"
    assert not isinstance(block, str)
    return ShuffleCost(
        block, setting.lanes or 1, setting.stratified, reads, requests, nbytes, memory, first_batch,
        variance,
    )  # fmt: skip


def _pieces_of(order: RowOrder, setting: Shuffle, chunks: AnyArray) -> OrderPieces:
    """Return the pieces of an order.

    The order of the view and a full shuffle are described as one lane of all chunks, with blocks of
    one sample and of all samples.
    """
    if setting.block is not None and isinstance(order, Order) and len(order):
        return order.pieces()
    return sequential_pieces(chunks, 1 if setting.block == 0 else len(order))


class _StoredView:
    """A view of a dataset, and the stored chunks that have its samples.

    Attributes
    ----------
    source, selection
        The parameters.
    chunks : ndarray, shape (chunks + 1,)
        The first row of each chunk of the view, then the number of rows.
    chunk_bytes : ndarray of int64, shape (chunks,)
        For each chunk, the average bytes of the chunks of its shard.
    nbytes : int
        The bytes of these chunks.
    """

    def __init__(self, source: Source, selection: Selection) -> None:
        starts = source.chunk_starts()
        cuts = None if source.members else selection.cuts(starts)
        if cuts is None:
            raise ValueError(
                "shuffle_costs() takes a dataset, or a view whose samples ascend or descend: ask "
                "each source of a mixture, and ask before you reorder the samples"
            )
        self.source, self.selection = source, selection
        sizes = np.diff(cuts)
        chunk = np.flatnonzero(sizes)
        self.chunks = np.append(cuts[chunk], selection.size)
        if selection.step < 0 or _descends(selection):
            chunk = len(starts) - 2 - chunk  # the view reads the stored chunks from the last one
        index = source.index
        self.shards = np.searchsorted(index.starts, starts[chunk], side="right") - 1
        self._chunks_of_shard = np.bincount(
            np.searchsorted(index.starts, starts[:-1], side="right") - 1, minlength=len(index)
        )
        self.chunk_bytes: Int64 = index.nbytes[self.shards] // self._chunks_of_shard[self.shards]
        self.nbytes = int(self.chunk_bytes.sum())

    @property
    def has_sample_reads(self) -> bool:
        """Whether samples can be fetched one by one."""
        remote = self.source.remote
        is_verified = remote is not None and remote.verify is True
        return not (is_verified or self.source.index.compressed[self.shards].any())

    def chunks_of(self, rows: Int64) -> Int64:
        """Return the chunk of each row."""
        return np.searchsorted(self.chunks, rows, side="right") - 1

    def refetched_bytes(self, order: RowOrder, cache_limit: int) -> float:
        """Estimate the bytes that are fetched again, divided by the number of samples."""
        numbers = self.chunks_of(order.rows(0, MAX_PREFIX))
        limit = int(READ_FRACTION * cache_limit)
        return refetched_bytes(numbers, self.chunk_bytes, np.diff(self.chunks), limit)

    def epoch_requests(self, chunks: Int64, is_sequential: bool) -> tuple[int, int]:
        """Return the requests and the bytes of an epoch that fetches chunks.

        Parameters
        ----------
        chunks : ndarray of int64
            The chunks that are fetched. A chunk that is fetched twice is listed twice.
        is_sequential : bool
            Whether chunks that are stored one after the other are fetched together.
        """
        index = self.source.index
        shards = np.unique(self.shards)
        chunks_of_shard, nbytes = self._chunks_of_shard[shards], index.nbytes[shards]
        sizes = nbytes // chunks_of_shard
        fetched = np.bincount(self.shards[chunks], minlength=len(index))[shards]
        per_chunk = -(-sizes // MAX_REQUEST)
        requests = fetched * per_chunk
        if is_sequential:
            together = np.maximum(MAX_REQUEST // np.maximum(sizes, 1), 1)
            requests = np.where(together > 1, -(-fetched // together), requests)
        requests += self._header_requests(shards, is_sequential)
        total = fetched * sizes
        is_text = np.array([s.format != "mds" for s in index.schemas], bool)
        is_text = is_text[index.schema_ids[shards]]
        for k in np.flatnonzero(index.compressed[shards] | is_text).tolist():
            files = index.files(int(shards[k]))
            if not index.compressed[shards[k]]:
                total[k] += 0 if files.meta is None else files.meta.nbytes
                continue
            stored = [f.nbytes for f in (files.zip_data, files.zip_meta or files.meta) if f]
            requests[k] = fetched[k] * sum(-(-size // READ_REQUEST_BYTES) for size in stored)
            total[k] = fetched[k] * sum(stored)
        return int(requests.sum()), int(total.sum())

    def _header_requests(self, shards: Int64, is_sequential: bool) -> Int64:
        """Return the requests for the header and the offsets of each shard.

        Samples of one size need no offsets. Their header needs no request of its own if the shard
        has one chunk, or if the epoch reads shards in sequence: the request for the first chunk
        then includes the header.
        """
        index, remote = self.source.index, self.source.remote
        schemas = index.schema_ids[shards]
        is_fixed = np.array([bool(a and a.stride) for a in layouts_of(index)], bool)[schemas]
        is_text = np.array([s.format != "mds" for s in index.schemas], bool)[schemas]
        is_alone = self._chunks_of_shard[shards] == 1
        # Without a side-car, one more request finds out where the samples begin.
        variable_requests = 1 if remote is None or remote.files.sidecar is not None else 2
        fixed_requests = np.where(is_alone | is_sequential, 0, 1)
        return np.where(is_text, 1, np.where(is_fixed, fixed_requests, variable_requests))


def _descends(selection: Selection) -> bool:
    """Return True if the samples of a view descend, given that they ascend or descend."""
    n = selection.size
    return n > 1 and bool(np.diff(selection.at(np.array([0, n - 1])))[0] < 0)


def check_values(values: AnyArray, rows: int, name: str) -> Float64:
    """Return `values` as float64; raise TypeError or ValueError unless each row has a number."""
    if values.dtype.kind not in "biuf":
        raise TypeError(
            f"by={name}: expected a column of numbers or bools, or a number for each row, got "
            f"{values.dtype}; number classes of text with np.unique(column, return_inverse=True)[1]"
        )
    if values.shape != (rows,):
        raise ValueError(
            f"by={name}: expected a number for each of {quantity(rows, 'row')}, got the shape "
            f"{short_repr(values.shape)}"
        )
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"by={name}: expected finite numbers; leave out or replace NaN")
    return numbers
