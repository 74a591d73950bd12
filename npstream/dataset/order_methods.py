"""Provide the methods of datasets that shuffle and split samples, and what a shuffle costs.

Tested in tests/dataset/test_order_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from npstream.dataset.splits import split_view
from npstream.reading.source import view_order

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.orders.order import BlockSize, RowOrder
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

    def order(
        self, seed: int, epoch: int = 0, *, block: BlockSize = "auto", lanes: int | None = None
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

        Returns
        -------
        RowOrder
            Array-like; ``order.find(rows)`` is its inverse.

        Raises
        ------
        ValueError
            If `block` or `lanes` is invalid.

        Examples
        --------
        >>> order = getfixture("example").order(0)
        >>> order.find(order[1:3])
        array([1, 2])
        """
        from npstream.orders.order import Shuffle

        return view_order(self._source, self._selection, Shuffle(block, lanes), seed, epoch)

    def shuffle(
        self, seed: int, epoch: int = 0, *, block: BlockSize = "auto", lanes: int | None = None
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

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If `block` or `lanes` is invalid.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> sorted(sample["label"] for sample in ds.shuffle(seed=0))
        [np.int64(0), np.int64(1), np.int64(2)]
        """
        from npstream.orders.order import SequentialOrder

        order = self.order(seed, epoch, block=block, lanes=lanes)
        if isinstance(order, SequentialOrder):
            view: View = self.ravel()
        else:
            view = self._view(self._selection.permute(order))
        return view

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
