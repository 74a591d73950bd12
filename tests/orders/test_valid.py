"""An order of valid rows is the order of all rows, without the invalid ones."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from npstream.orders.order import Order, SequentialOrder
from npstream.orders.valid import WINDOW, RowMask, ValidOrder, make_mask

N = 3 * WINDOW + 100


def order_of(n: int) -> Order:
    return Order(n, np.array([*range(0, n, 512), n]), 5, block=max(n // 6, 1), lanes=3)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("make", [order_of, SequentialOrder])
def test_valid_rows_keep_their_order(make, share):
    flags = np.random.default_rng(1).random(N) < share
    order = ValidOrder(make(N), RowMask.pack(flags))
    rows = make(N).rows()
    expected = rows[flags[rows]]
    assert len(order) == len(expected)
    np.testing.assert_array_equal(order.at(np.arange(len(expected))), expected)
    if len(expected):
        some = np.random.default_rng(2).integers(0, len(expected), (7, 9))
        again = ValidOrder(make(N), RowMask.pack(flags))
        np.testing.assert_array_equal(again.at(some), expected[some])


def test_windows_without_valid_rows():
    flags = np.zeros(N, bool)
    flags[[0, 2 * WINDOW, 2 * WINDOW + 1, N - 1]] = True
    order = ValidOrder(SequentialOrder(N), RowMask.pack(flags))
    assert order.at(np.array([3, 1, 0, 2])).tolist() == [N - 1, 2 * WINDOW, 0, 2 * WINDOW + 1]


def test_a_lookup_near_the_beginning_computes_one_window():
    ranges = []

    class RecordingOrder(SequentialOrder):
        def rows(self, start=None, stop=None):
            ranges.append((start, stop))
            return super().rows(start, stop)

    order = ValidOrder(RecordingOrder(N), RowMask.pack(np.ones(N, bool)))
    order.at(np.arange(100))
    assert ranges == [(0, WINDOW)]


def test_masks():
    flags = np.random.default_rng(0).random(1001) < 0.3
    mask = RowMask.pack(flags)
    assert mask.count == flags.sum()
    np.testing.assert_array_equal(mask.at(np.arange(1001)), flags)
    copy = pickle.loads(pickle.dumps(mask))
    assert copy.identity() == mask.identity()
    assert RowMask.pack(~flags).identity() != mask.identity()
    for size in (0, 1, 8, 9, 1001):
        first = mask.first(size)
        assert first.identity() == RowMask.pack(flags[:size]).identity()


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (np.arange(4), TypeError, "expected bool"),
        ([True], ValueError, r"the shape \(1,\)"),
        ([[True], [True, False]], TypeError, "different sizes"),
        ("name", TypeError, "column 'name' has values of int64"),
    ],
)
def test_wrong_masks_are_refused(values, error, text):
    with pytest.raises(error, match=text):
        make_mask(values, lambda name: np.arange(4), (4,))


def test_a_mask_may_have_the_shape_of_the_view():
    flags = np.array([[True, False], [True, True]])
    assert make_mask(flags, lambda name: None, (2, 2)).count == 3
    assert make_mask(flags.ravel(), lambda name: None, (2, 2)).count == 3
