"""Provide the methods of datasets that shuffle samples, estimate shuffle costs, and split samples.

Tested in tests/dataset/test_order_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from npstream._core.arguments import integer, parse_size
from npstream.dataset.splits import split_view
from npstream.errors import short_repr, short_traceback
from npstream.reading.source import view_order

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from npstream.explore.costs.shuffle_costs import ShuffleCosts
    from npstream.indexing.selection import Selection
    from npstream.orders.balance import RowCosts
    from npstream.orders.order import BlockSize, RowOrder, Shuffle
    from npstream.orders.valid import RowMask
    from npstream.reading.source import Source

View = TypeVar("View")
"""The class of the views that the methods return, `Dataset`."""


class OrderMethods(Generic[View]):
    """Methods of `Dataset`."""

    __slots__ = ()

    if TYPE_CHECKING:
        ravel: Callable[[], Any]
        _view: Callable[[Selection], Any]
        _source: Source
        _selection: Selection

        def __getitem__(self, index: Any) -> Any: ...

    def order(
        self,
        seed: int,
        epoch: int = 0,
        *,
        block: BlockSize = "auto",
        lanes: int | None = None,
        stratified: bool = False,
    ) -> RowOrder:
        """Return the order of a training epoch: a lazy array of row numbers.

        Parameters
        ----------
        seed : int
            Any integer. A seed gives the same order on any machine and in any release.
        epoch : int, default: 0
            Number of the epoch. Each epoch has its own order.
        block : int, str or None, default: "auto"
            Bytes of data to shuffle together. 0 keeps the order of the view, and None shuffles all
            data together; see `npstream.Shuffle`.
        lanes : int, optional
            Number of random sequences of chunks, from which samples are drawn in turn; see
            `npstream.Shuffle`.
        stratified : bool, default: False
            Whether the chunks come evenly from all parts of the view; see `npstream.Shuffle`.

        Returns
        -------
        RowOrder
            Array-like; ``order.find(rows)`` is its inverse.

        Raises
        ------
        ValueError
            If `block` or `lanes` is invalid, or if `stratified` is True without blocks.

        Examples
        --------
        >>> order = getfixture("example").order(0)
        >>> order.find(order[1:3])
        array([1, 2])
        """
        from npstream.orders.order import Shuffle

        settings = Shuffle(block, lanes, stratified)
        return view_order(self._source, self._selection, settings, seed, epoch)

    def shuffle(
        self,
        seed: int,
        epoch: int = 0,
        *,
        block: BlockSize = "auto",
        lanes: int | None = None,
        stratified: bool = False,
    ) -> View:
        """Return a view of all samples in the order of a training epoch, as `order` returns it.

        Parameters
        ----------
        seed : int
            Any integer. A seed gives the same order on any machine and in any release.
        epoch : int, default: 0
            Number of the epoch. Each epoch has its own order.
        block : int, str or None, default: "auto"
            Bytes of data to shuffle together. 0 keeps the order of the view, and None shuffles all
            data together; see `npstream.Shuffle`.
        lanes : int, optional
            Number of random sequences of chunks, from which samples are drawn in turn; see
            `npstream.Shuffle`.
        stratified : bool, default: False
            Whether the chunks come evenly from all parts of the view; see `npstream.Shuffle`.

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If `block` or `lanes` is invalid, or if `stratified` is True without blocks.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> sorted(sample["label"] for sample in ds.shuffle(seed=0))
        [np.int64(0), np.int64(1), np.int64(2)]
        """
        from npstream.orders.order import SequentialOrder

        order = self.order(seed, epoch, block=block, lanes=lanes, stratified=stratified)
        if isinstance(order, SequentialOrder):
            view: View = self.ravel()
        else:
            view = self._view(self._selection.permute(order))
        return view

    def shuffle_costs(
        self,
        batch_size: int,
        blocks: Sequence[BlockSize | Shuffle] | None = None,
        *,
        by: str | ArrayLike | None = None,
        cache_limit: int | str | None = None,
        seed: int = 0,
    ) -> ShuffleCosts:
        """Estimate the costs and the quality of a shuffled epoch, for blocks of several sizes.

        The costs follow from the index and the orders: nothing is read, except the column `by`.
        They are those of one reader of all samples, in an epoch that begins with an empty cache.
        For local data, the costs are those of the same files in an object store. Columns that
        `npstream.add_columns` added are not counted.

        Parameters
        ----------
        batch_size : int
            Samples of a batch; of all ranks together, if they train one model.
        blocks : sequence of int, str, None or Shuffle, optional
            Sizes of blocks, as `npstream.Shuffle` takes them. By default 0, a 1,024th, a 256th, a
            64th, a 16th and a fourth of the data, and None.
        by : str or array_like, optional
            A column of numbers, or an array with a number for each row. The means of these numbers
            in batches are compared with the means in a perfect shuffle. By default all samples of a
            chunk have the same random number, independent of other chunks: the hardest case.
        cache_limit : int or str, optional
            Maximum bytes of the cache. By default the limit of the dataset's cache. For a local
            dataset, the default is a cache that holds all data.
        seed : int, default: 0
            Seed of the orders.

        Returns
        -------
        ShuffleCosts
            A sequence with a `ShuffleCost` for each block: requests and bytes of the epoch, memory,
            bytes of the first batch, and the ratio of variances. A notebook shows it as a table.

        Raises
        ------
        ValueError
            If a block is invalid, if `by` does not have one finite number for each row, if this is
            a mixture, or if this is a view whose samples neither ascend nor descend.
        TypeError
            If `by` is not a column or an array of numbers.

        Examples
        --------
        >>> path = getfixture("tmp_path") / "sorted"
        >>> labels = np.repeat(np.arange(10), 1000)
        >>> report = npstream.write(path, {"label": labels}, shard_size="4KiB")
        >>> costs = npstream.open(path).shuffle_costs(100, ["4KiB", None], by="label")
        >>> [round(cost.variance, 1) for cost in costs]
        [65.4, 1.0]
        """
        from npstream.explore.costs.shuffle_costs import check_values, estimate_costs

        with short_traceback:
            size, limit = (
                integer("batch_size", batch_size, 1),
                parse_size(cache_limit, "cache_limit"),
            )
            remote = self._source.remote
            if limit is None and remote is not None:
                limit = remote.files.cache.limit
            values = None
            if by is not None:
                name = short_repr(by) if isinstance(by, str) else "an array"
                column = self[by].to_numpy() if isinstance(by, str) else np.asarray(by)
                values = check_values(column, self._selection.size, name)
            return estimate_costs(
                self._source, self._selection, size, blocks, integer("seed", seed), limit, values
            )

    def random_split(
        self, lengths: Sequence[float], seed: int = 0, by: str = "sample"
    ) -> list[View]:
        """Split the samples at random into views that do not overlap.

        Parameters
        ----------
        lengths : sequence of int or float
            Samples of each part, or fractions that sum to 1, rounded as in torch's random_split.
        seed : int, default: 0
            Seed of the split.
        by : {"sample", "chunk"}, default: "sample"
            "sample" draws single samples: parts are slices of ``shuffle(seed, block=None)``.
            "chunk" draws whole chunks, so that reading a part fetches only its own chunks. Then the
            samples of a part keep the view's order.

        Returns
        -------
        list of Dataset

        Raises
        ------
        ValueError
            If the lengths do not sum to the number of samples, or to 1.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> [len(part) for part in ds.random_split([0.6, 0.4], seed=0)]
        [2, 1]
        """
        parts = split_view(self._selection, lengths, seed, by, self._source.chunk_starts)
        return [self._view(part) for part in parts]

    def _mask_and_costs(
        self, valid: str | ArrayLike | None, balance: str | ArrayLike | None
    ) -> tuple[RowMask | None, RowCosts | None]:
        """Return the values of `valid` and `balance` of `iter`, read and checked."""
        from npstream.orders.balance import make_costs
        from npstream.orders.valid import make_mask

        def load(name: str) -> Any:
            return self[name].load()

        with short_traceback:
            shape = self._selection.shape
            mask = None if valid is None else make_mask(valid, load, shape)
            return mask, None if balance is None else make_costs(balance, load, shape)
