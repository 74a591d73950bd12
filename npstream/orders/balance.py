"""Provide `RowCosts` and the two ways to balance batches by them: between ranks, or in buckets.

`assign_ranks` divides a global batch among ranks so that their total costs are nearly equal.
`BucketOrder` sorts samples of similar cost into the same batch, so that padding is small.

Both depend only on the order of an epoch and on the costs. So each rank computes its own part,
without communication, from any position on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.jit import kernel
from npstream._core.typing import AnyArray, Int64
from npstream.formats.hashes import digest
from npstream.formats.sharing import SharedArrays
from npstream.orders.permutation import Permutation, make_key
from npstream.orders.valid import load_row_values

_BUCKETS_LEVEL = 5
"""The `level` in `make_key` for the order of buckets."""

MAX_SWAPS = 4
"""Maximum swaps in a global batch: this number times the number of ranks."""

GAP_DIVISOR = 1 << 9
"""Samples are swapped only while the gap exceeds the largest load divided by this number.

The load of a rank is the sum of its costs. The gap is the difference between the largest and the
smallest load.
"""

_MAX_WINDOWS = 3
"""Maximum number of windows whose rows a `BucketOrder` keeps."""


class RowCosts:
    """The cost of each row of a view, such as the length of its text.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Finite integers or floats, at least 0.

    Examples
    --------
    >>> RowCosts(np.array([3, 1, 2])).at(np.array([2, 0]))
    array([2., 3.])
    """

    def __init__(self, values: AnyArray) -> None:
        self._arrays = SharedArrays({"values": values})

    @property
    def _values(self) -> AnyArray:
        return self._arrays["values"]

    def __repr__(self) -> str:
        return f"<RowCosts: {quantity(len(self._values), 'row')}>"

    def at(self, rows: Int64) -> AnyArray:
        """Return the costs of rows as float64."""
        costs: AnyArray = self._values[rows].astype(np.float64)
        return costs

    def first(self, size: int) -> RowCosts:
        """Return the costs of the first `size` rows."""
        return RowCosts(self._values[:size])

    def identity(self) -> str:
        """Return the str that identifies the costs in saved states; it must never change."""
        values = np.ascontiguousarray(self._values, np.float64)
        return digest("xxh3_64", values.view(np.uint8).data)


def make_costs(values: Any, load: Callable[[str], Any], shape: tuple[int, ...]) -> RowCosts:
    """Return the costs that a user gave as the name of a column, or as numbers.

    Parameters
    ----------
    values : str or array_like of int or float
    load : callable
        Loads a column of the view, given its name.
    shape : tuple of int
        The shape of the view.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If there is not one value for each row, or a value is negative or not finite.

    Examples
    --------
    >>> make_costs([3, 1], lambda name: None, (2,))
    <RowCosts: 2 rows>
    """
    costs, name = load_row_values("balance", values, load, shape)
    if costs.dtype.kind not in "uif":
        raise TypeError(
            f"{name} has values of {costs.dtype}: expected numbers, such as the lengths of texts"
        )
    least, most = (costs.min(), costs.max()) if costs.size else (0, 0)
    if not (least >= 0 and np.isfinite(most)):
        row = int(np.flatnonzero(~((costs >= 0) & np.isfinite(costs)))[0])
        raise ValueError(
            f"{name} is {costs[row]} in row {row}: a cost is a finite number, at least 0"
        )
    return RowCosts(costs)


def assign_ranks(costs: AnyArray, capacities: Int64) -> Int64:
    """Assign the samples of a global batch to ranks, so that their total costs are nearly equal.

    Samples are assigned from the most expensive to the cheapest. Each goes to the rank with the
    smallest total so far, among the ranks that are not full yet. Then samples are swapped between
    the ranks with the largest and the smallest total, as long as that helps.

    Parameters
    ----------
    costs : ndarray of float64, shape (n,)
        The cost of each sample.
    capacities : ndarray of int64, shape (ranks,)
        The number of samples of each rank, at least 1; their sum is n.

    Returns
    -------
    ndarray of int64, shape (n,)
        The rank of each sample.

    Notes
    -----
    If there were no swaps, and ranks could take any number of samples, this would be the rule
    "longest processing time first" of R. L. Graham, Bounds on Multiprocessing Timing Anomalies,
    SIAM J. Appl. Math. 17 (1969).

    Examples
    --------
    >>> assign_ranks(np.array([5.0, 4.0, 3.0, 2.0]), np.array([2, 2]))
    array([0, 1, 1, 0])
    """
    owners = np.empty(len(costs), np.int64)
    order = np.argsort(-costs, kind="stable")
    loads, heap = np.zeros(len(capacities)), np.arange(len(capacities))
    # `for_size` measures work in rows. The swaps examine about 16 times more numbers than the
    # assignment, so each sample counts as 16 rows.
    size = len(costs) << 4
    _assign.for_size(size)(order, costs, capacities.copy(), loads, heap, owners)
    if len(capacities) > 1:
        starts = np.cumsum(capacities) - capacities
        members = np.argsort(owners, kind="stable")
        _swap.for_size(size)(costs, starts, capacities, loads, members, owners)
    return owners


@kernel
def _assign(
    order: Int64,
    costs: AnyArray,
    capacities: Int64,
    loads: AnyArray,
    heap: Int64,
    owners: Int64,
) -> None:
    """Assign samples in `order`; `heap` is a binary heap of ranks by load, then by number."""
    size = len(heap)
    for item in order:
        rank = heap[0]
        owners[item] = rank
        loads[rank] += costs[item]
        capacities[rank] -= 1
        if capacities[rank] == 0:
            size -= 1
            rank = heap[size]
        load, place = loads[rank], 0
        while 2 * place + 1 < size:
            child = 2 * place + 1
            first = heap[child]
            if child + 1 < size:
                second = heap[child + 1]
                if loads[second] < loads[first] or (
                    loads[second] == loads[first] and second < first
                ):
                    child, first = child + 1, second
            if load < loads[first] or (load == loads[first] and rank < first):
                break
            heap[place] = first
            place = child
        heap[place] = rank


@kernel
def _swap(
    costs: AnyArray,
    starts: Int64,
    capacities: Int64,
    loads: AnyArray,
    members: Int64,
    owners: Int64,
) -> None:
    """Swap samples between the ranks with the largest and the smallest load, while it helps.

    ``members[starts[r] : starts[r] + capacities[r]]`` are the samples of rank r.
    """
    ranks = len(loads)
    for _ in range(MAX_SWAPS * ranks):
        high = low = 0
        for rank in range(1, ranks):
            if loads[rank] > loads[high]:
                high = rank
            if loads[rank] < loads[low]:
                low = rank
        gap = loads[high] - loads[low]
        if gap * GAP_DIVISOR <= loads[high]:
            return
        best, best_high, best_low = gap, -1, -1  # best: the difference of the loads after a swap
        for k in range(starts[high], starts[high] + capacities[high]):
            for m in range(starts[low], starts[low] + capacities[low]):
                distance = abs(gap - 2 * (costs[members[k]] - costs[members[m]]))
                if distance < best:
                    best, best_high, best_low = distance, k, m
        if best_high < 0:
            return
        one, other = members[best_high], members[best_low]
        members[best_high], members[best_low] = other, one
        owners[one], owners[other] = low, high
        difference = costs[one] - costs[other]
        loads[high] -= difference
        loads[low] += difference


class BucketOrder:
    """The rows of an epoch, in batches of rows of similar cost.

    Windows of consecutive positions are sorted by cost, each on its own. A window is cut into
    buckets, and a bucket is a global batch. Buckets of a window come in random order if the epoch
    is shuffled, and otherwise from the most expensive one to the cheapest. The last window may have
    fewer buckets, and its last bucket fewer rows. That bucket has the cheapest rows and comes last.

    Parameters
    ----------
    rows : callable
        Returns the rows at positions of the epoch.
    size : int
        Positions in the epoch.
    costs : RowCosts
    bucket : int
        Rows of a bucket: the samples of a global batch.
    buckets : int
        Buckets of a window.
    seed : int, optional
        Seed of the order of buckets. None to keep them sorted.
    epoch : int
        Number of the epoch.
    """

    def __init__(
        self,
        rows: Callable[[Int64], Int64],
        size: int,
        costs: RowCosts,
        bucket: int,
        buckets: int,
        seed: int | None,
        epoch: int,
    ) -> None:
        self._rows, self._size, self._costs = rows, size, costs
        self._bucket, self._length = bucket, bucket * buckets
        self._seed, self._epoch = seed, epoch
        self._windows: dict[int, Int64] = {}
        self._lock = threading.Lock()

    def at(self, positions: Int64) -> Int64:
        """Return the rows at `positions`; all must be in range(size)."""
        rows = np.empty_like(positions)
        windows = positions // self._length
        with self._lock:
            for window in np.unique(windows).tolist():
                inside = windows == window
                offsets = positions[inside] - window * self._length
                rows[inside] = self._window_rows(window)[offsets]
        return rows

    def _window_rows(self, window: int) -> Int64:
        """Return the rows of a window, in the order of its buckets."""
        rows = self._windows.pop(window, None)
        if rows is None:
            start = window * self._length
            rows = self._rows(np.arange(start, min(start + self._length, self._size)))
            rows = rows[np.argsort(-self._costs.at(rows), kind="stable")]
            full = len(rows) // self._bucket
            if self._seed is not None and full > 1:
                key = make_key(self._seed, self._epoch, window, _BUCKETS_LEVEL)
                order = Permutation(full, key).at(np.arange(full))
                sorted_buckets = rows[: full * self._bucket].reshape(full, self._bucket)
                rest = rows[full * self._bucket :]
                rows = np.concatenate([sorted_buckets[order].reshape(-1), rest])
            while len(self._windows) >= _MAX_WINDOWS:
                del self._windows[next(iter(self._windows))]  # the least recently used one
        self._windows[window] = rows
        return rows
