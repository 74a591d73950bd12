"""Variances and peaks of orders equal those of simulated epochs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from npstream.orders.order import Order, full_order
from npstream.orders.spread import sequential_pieces


def bounds(sizes):
    return np.concatenate([[0], np.cumsum(sizes)])


CHUNKS = {
    "even": bounds([20] * 60),
    "uneven": bounds(np.random.default_rng(3).integers(1, 60, 40)),
    "two": bounds([500, 700]),
}


def chunk_counts(rows, chunks, batch_size):
    """Return the number of samples that each batch has of each chunk."""
    batches = len(rows) // batch_size
    chunk = np.searchsorted(chunks, rows[: batches * batch_size], side="right") - 1
    counts = np.zeros((batches, len(chunks) - 1))
    np.add.at(counts, (np.repeat(np.arange(batches), batch_size), chunk), 1)
    return counts


def chunk_variance(rows, chunks, batch_size):
    """Return the variance of batch means if each chunk has one random value, of variance 1.

    It is the variance of the difference from the mean of all rows, averaged over the batches.
    """
    fractions = np.diff(chunks) / chunks[-1]
    return np.mean(
        np.sum((chunk_counts(rows, chunks, batch_size) / batch_size - fractions) ** 2, axis=1)
    )


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize(("block", "lanes"), [(1, 1), (7, 1), (64, 1), (150, 3), (40, 7), (300, 1)])
@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_chunk_variances_equal_those_of_simulated_epochs(kind, block, lanes, batch_size):
    chunks = CHUNKS[kind]
    n = int(chunks[-1])
    full = np.mean(
        [chunk_variance(full_order(n, seed)[:], chunks, batch_size) for seed in range(100)]
    )
    orders = [Order(n, chunks, seed, block=block, lanes=lanes) for seed in range(25)]
    simulated = [chunk_variance(order[:], chunks, batch_size) for order in orders]
    computed = [order.pieces().chunk_variance(batch_size, chunks) for order in orders]
    error = 4 * np.std(simulated) / np.sqrt(len(simulated)) / full  # four standard errors
    assert np.mean(computed) == pytest.approx(np.mean(simulated) / full, rel=0.03, abs=error)


@pytest.mark.parametrize(("block", "lanes"), [(1, 1), (64, 1), (150, 3), (40, 7)])
@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_value_variances_equal_those_of_simulated_epochs(block, lanes, batch_size):
    chunks = CHUNKS["uneven"]
    n = int(chunks[-1])
    values = np.sort(np.random.default_rng(0).standard_normal(n)) ** 3 + 100
    perfect = values.var() * (n - batch_size) / (batch_size * (n - 1))
    simulated, computed = [], []
    for seed in range(40):
        order = Order(n, chunks, seed, block=block, lanes=lanes)
        batches = values[order[:][: n // batch_size * batch_size]].reshape(-1, batch_size)
        simulated.append(np.mean((batches.mean(axis=1) - values.mean()) ** 2) / perfect)
        computed.append(order.pieces().value_variance(batch_size, values))
    error = 4 * np.std(np.subtract(simulated, computed)) / np.sqrt(len(simulated))
    assert np.mean(computed) == pytest.approx(np.mean(simulated), rel=0.01, abs=error)


def test_one_block_of_all_rows_has_the_variance_of_a_full_shuffle():
    chunks = CHUNKS["uneven"]
    pieces = sequential_pieces(chunks, int(chunks[-1]))
    for batch_size in (1, 50):
        assert pieces.chunk_variance(batch_size, chunks) == pytest.approx(1, abs=1e-12)
        assert pieces.value_variance(batch_size, np.arange(chunks[-1]) ** 2.0) == pytest.approx(1)
    # The formula of `perfect` above is Cochran's Theorem 2.2. It holds for all permutations.
    n, values = 6, np.array([0, 0, 1, 4, 9, 9.5])
    means = [np.mean(rows) for rows in itertools.permutations(values, 2)]
    assert np.mean((means - values.mean()) ** 2) == pytest.approx(
        values.var() * (n - 2) / (2 * (n - 1))
    )


def test_the_variance_follows_the_number_of_chunks_in_flight():
    """For many chunks, m of them in flight, it is L. Kish's design effect: 1 + (batch - 1) / m."""
    chunks, batch_size = bounds([100] * 4000), 65
    order = Order(int(chunks[-1]), chunks, 0, block=1600, lanes=4)
    in_flight = 4 * 1600 / 100
    variance = order.pieces().chunk_variance(batch_size, chunks)
    assert variance == pytest.approx(1 + (batch_size - 1) / in_flight, rel=0.05)


def test_degenerate_data_have_a_ratio_of_one():
    chunks = np.array([0, 5])
    pieces = sequential_pieces(chunks, 1)
    assert pieces.chunk_variance(2, chunks) == 1  # one chunk has no other to differ from
    assert pieces.value_variance(2, np.ones(5)) == 1
    assert pieces.chunk_variance(5, chunks) == pieces.value_variance(7, np.arange(5.0)) == 1
    empty = sequential_pieces(np.array([0]), 1)
    assert empty.chunk_variance(3, np.array([0])) == 1
    assert empty.value_variance(3, np.zeros(0)) == 1
    assert empty.peak_bytes(np.zeros(0, np.int64)) == 0


@pytest.mark.parametrize(("block", "lanes"), [(1, 1), (64, 1), (150, 3), (40, 7), (5000, 1)])
@pytest.mark.parametrize("kind", CHUNKS)
def test_peaks_are_close_upper_bounds_of_simulated_peaks(kind, block, lanes):
    chunks = CHUNKS[kind]
    n = int(chunks[-1])
    order = Order(n, chunks, 1, block=block, lanes=lanes)
    pieces = order.pieces()
    sizes = np.random.default_rng(0).integers(1, 100, len(chunks) - 1)
    piece_bytes = sizes[np.searchsorted(chunks, pieces.rows, side="right") - 1]
    piece_of_row = np.empty(n, int)
    for piece, row in enumerate(pieces.rows):
        stop = row + pieces.places[piece + 1] - pieces.places[piece]
        piece_of_row[row:stop] = piece
    sequence = piece_of_row[order[:]]
    in_use = np.zeros(n + 1, int)  # bytes of the pieces between their first and last use
    for piece, nbytes in enumerate(piece_bytes):
        (used,) = np.nonzero(sequence == piece)
        in_use[used[0] : used[-1] + 1] += nbytes
    peak = in_use.max()
    computed = pieces.peak_bytes(piece_bytes)
    # The computed peak is larger: a piece counts from the beginning to the end of its blocks.
    assert peak <= computed <= 1.25 * peak + 2 * sizes.max() * lanes


def test_pieces_have_all_rows_once():
    chunks = CHUNKS["uneven"]
    n = int(chunks[-1])
    pieces = Order(n, chunks, 5, block=30, lanes=6).pieces()
    sizes = np.diff(pieces.places)
    rows = [np.arange(row, row + size) for row, size in zip(pieces.rows, sizes, strict=True)]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(n))
    assert len(rows) <= len(chunks) - 1 + 5  # the ends of 6 lanes cut at most 5 chunks
