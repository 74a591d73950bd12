"""The native order follows its description exactly, and shuffles like a random permutation."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import pickle
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import asdict, replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from stratification import stratified as stratify

from npstream._core import jit as _jit
from npstream.iteration.partition import Partition
from npstream.orders import blocks
from npstream.orders import order as order_module
from npstream.orders.chunks import shard_chunks
from npstream.orders.order import Order, Shuffle
from npstream.orders.permutation import MAX_TABLE_LENGTH, Permutation, make_key
from orders import CHUNK, Scene, figures, native

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def bounds(sizes):
    """Return the bounds of chunks of given sizes."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def even(n, size):
    """Return the bounds of chunks of one size; the last may be smaller."""
    return np.append(np.arange(0, n, size), n)


# A reference implementation of the design, on lists


def draw(counter, bound):
    x = (counter ^ counter >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x * bound >> 64


def subkey(key, lane, level):
    return draw(draw(key ^ lane, 2**63 - 1) ^ level, 2**63 - 1)


def permute(items, key):
    """Permute a list of any length by a Fisher-Yates shuffle."""
    items = list(items)
    for i in range(len(items)):
        j = draw(key ^ i, i + 1)
        items[i], items[j] = items[j], items[i]
    return items


def permute_chunks(items, key, stratified):
    """Permute the chunks of a view, or the pieces of a lane."""
    return [items[k] for k in stratify(len(items), key)] if stratified else permute(items, key)


def reference_lanes(chunks, seed, lanes, stratified):
    """Fill the lanes with permuted chunks, one after the other; return lists of pieces."""
    n = int(chunks[-1])
    runs = [
        range(first, stop) for first, stop in itertools.pairwise(chunks.tolist()) if first < stop
    ]
    queue = permute_chunks(runs, make_key(seed, 0, 0, 2), stratified)
    result = []
    for lane in range(lanes):
        free_rows = n // lanes + (lane < n % lanes)
        result.append([])
        while free_rows:
            piece = queue.pop(0)
            if len(piece) > free_rows:
                queue.insert(0, piece[free_rows:])
                piece = piece[:free_rows]
            result[-1].append(piece)
            free_rows -= len(piece)
        if stratified:
            result[-1].sort(key=lambda piece: piece.start)
    return result


def reference_order(chunks, seed, epoch, block, lanes, stratified=False):
    """Compute an order by its description."""
    epoch_key = make_key(seed, epoch, 0, 3)
    sequences = []
    for lane, pieces in enumerate(reference_lanes(chunks, seed, lanes, stratified)):
        sequence_of_pieces = permute_chunks(pieces, subkey(epoch_key, lane, 0), stratified)
        elements = [row for piece in sequence_of_pieces for row in piece]
        sequence = []
        length = math.ceil(block * (lane + 1) / lanes)
        for number in itertools.count():
            part, elements = elements[:length], elements[length:]
            if not part:
                break
            permutation = Permutation(len(part), subkey(epoch_key, lane, number + 1))
            sequence += np.array(part)[permutation.at(np.arange(len(part)))].tolist()
            length = block
        sequences.append(sequence)
    order = itertools.chain.from_iterable(itertools.zip_longest(*sequences))
    return [row for row in order if row is not None]


CASES = {
    # chunks, rows of a block, lanes
    "nothing": (bounds([]), 1, 1),
    "no samples": (bounds([0, 0]), 3, 2),
    "one sample": (bounds([1]), 1, 1),
    "one sample, many lanes": (bounds([1]), 5, 4),
    "one chunk": (bounds([10]), 4, 1),
    "one chunk over lanes": (bounds([23]), 4, 5),
    "more lanes than samples": (bounds([2, 0, 3]), 2, 9),
    "chunks of all sizes": (bounds([0, 1, 0, 7, 30, 2, 0, 1, 12]), 6, 4),
    "blocks of one": (even(50, 8), 1, 3),
    "blocks over chunks": (even(100, 8), 17, 3),
    "one block": (even(100, 8), 100, 1),
    "lanes divide": (even(96, 8), 5, 12),
    "a long block": (even(1000, 30), 10**6, 2),
}

# Blocks of more than MAX_TABLE_LENGTH (32,768) rows are permuted by a cipher instead of a table.
LARGE_CASES = {
    "one large block": (even(40_000, 700), 40_000, 1),
    "large blocks, small first and last": (even(150_001, 4000), 34_000, 3),
    "pieces of one sample": (even(80_000, 1), 40_000, 2),
    "pieces of many sizes": (
        bounds([*[1] * 3000, 50_000, *[7] * 500, 30_000]),
        45_000,
        2,
    ),
}


@pytest.mark.usefixtures("kernel_mode")
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_orders_follow_their_description(case, stratified):
    chunks, block, lanes = CASES[case]
    order = Order(int(chunks[-1]), chunks, 5, 2, block=block, lanes=lanes, stratified=stratified)
    want = reference_order(chunks, 5, 2, block, lanes, stratified)
    assert len(order) == len(want)
    assert order[:].tolist() == want
    assert order.at(np.arange(len(want))).tolist() == want
    assert order.find(np.array(want, int)).tolist() == list(range(len(want)))


@pytest.mark.parametrize("case", LARGE_CASES)
def test_orders_of_large_blocks_follow_their_description(case):
    chunks, block, lanes = LARGE_CASES[case]
    order = Order(int(chunks[-1]), chunks, 5, 2, block=block, lanes=lanes)
    want = np.array(reference_order(chunks, 5, 2, block, lanes))
    assert np.array_equal(order[:], want)
    positions = np.random.default_rng(0).integers(0, len(want), 3000)
    assert np.array_equal(order.at(positions), want[positions])
    assert np.array_equal(order.find(want[positions]), positions)
    for part in (slice(len(want) // 2, None), slice(3, None, 5), slice(1, None, 40 * lanes)):
        order = Order(len(want), chunks, 5, 2, block=block, lanes=lanes)
        assert np.array_equal(order[part], want[part])


def test_compiled_and_plain_kernels_agree_on_large_blocks(monkeypatch):
    chunks, block, lanes = LARGE_CASES["pieces of many sizes"]
    parts = [slice(0, 40), slice(60_000, 60_090), slice(30_000, 30_010)]

    def look_up_parts(for_size):
        monkeypatch.setattr(_jit.Kernel, "for_size", for_size)
        order = Order(int(chunks[-1]), chunks, 1, block=block, lanes=lanes)
        part_rows = [order[part] for part in parts]
        return [*part_rows, order.find(part_rows[1][:3])]

    compiled = look_up_parts(lambda self, rows: self.compiled())
    plain = look_up_parts(lambda self, rows: self.py_func)
    for one, other in zip(compiled, plain, strict=True):
        assert np.array_equal(one, other)


sizes = st.lists(st.integers(0, 40), max_size=30)


@given(
    sizes, st.integers(0, 9), st.integers(0, 9), st.integers(1, 50), st.integers(1, 40),
    st.booleans(),
)  # fmt: skip
def test_every_row_occurs_once_and_is_found(sizes, seed, number, block, lanes, stratified):
    n = sum(sizes)
    settings = {"block": block, "lanes": lanes, "stratified": stratified}
    order = Order(n, bounds(sizes), seed, number, **settings)
    rows = order[:]
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(n))
    assert np.array_equal(order.find(rows), np.arange(n))


@given(sizes, st.integers(1, 50), st.integers(1, 12), st.booleans(), st.data())
def test_every_way_of_indexing_gives_the_same_rows(sizes, block, lanes, stratified, data):
    n = sum(sizes)
    settings = {"block": block, "lanes": lanes, "stratified": stratified}
    make = functools.partial(Order, n, bounds(sizes), 3, **settings)
    whole, order = make()[:], make()
    for _ in range(4):
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        assert np.array_equal(order[start:stop], whole[start:stop])
        numbers = data.draw(st.lists(st.integers(0, n - 1), max_size=9)) if n else []
        positions = np.array(numbers, int)
        assert np.array_equal(order.at(positions), whole[positions])


@given(st.integers(1, 5), st.integers(1, 2**40), st.integers(1, 1000), st.data())
def test_rows_of_a_huge_order_are_found(chunks, n, lanes, data):
    block = data.draw(st.integers(1, n))
    starts = np.linspace(0, n, chunks + 1).astype(np.int64)
    order = Order(n, starts, 1, block=block, lanes=lanes)
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5, unique=True))
    rows = order.at(np.array(positions))
    assert len(set(rows.tolist())) == len(positions)
    assert order.find(rows).tolist() == positions


# Array interface


@pytest.fixture(scope="module")
def order():
    return Order(1000, even(1000, 64), 7, 1, block=100, lanes=6)


INDICES = [
    0, 999, -1, -1000, np.int8(5), slice(None), slice(10, 20), slice(-5, None), slice(900, 5000),
    slice(20, 10), slice(None, None, -1), slice(5, 800, 7), [3, 1, 3], [], [[1, 2], [-1, -2]],
    np.arange(0, 1000, 333), np.arange(1000) % 3 == 0, ..., (slice(3, 5),), np.array(4),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES)
def test_orders_are_indexed_like_arrays(order, index):
    array = np.asarray(order)
    got, want = order[index], array[index]
    assert np.array_equal(got, want)
    assert np.shape(got) == np.shape(want)
    assert np.asarray(got).dtype == np.int64


@pytest.mark.parametrize("index", [1000, -1001, [5, 1000], 1.5, None, True, [True], "a", (1, 2)])
def test_bad_indices_raise(order, index):
    with pytest.raises(IndexError):
        order[index]


@pytest.mark.parametrize("method", ["at", "find"])
def test_numbers_out_of_bounds_raise(order, method):
    for number in (-1, 1000, 2**62):
        with pytest.raises(IndexError, match=f"{number} is out of bounds for an order of 1,000"):
            getattr(order, method)(np.array([0, number]))
    with pytest.raises(TypeError, match="Cannot cast"):
        getattr(order, method)(np.array([0.5]))


def test_shapes_are_kept_and_arguments_are_not_changed(order):
    positions = np.arange(12, dtype=np.int32).reshape(3, 4).T
    rows = order.at(positions)
    assert rows.shape == (4, 3)
    assert np.array_equal(order.find(rows), positions)
    assert np.array_equal(positions, np.arange(12).reshape(3, 4).T)
    assert order.find(np.empty((0, 2), np.int64)).shape == (0, 2)


def test_an_array_is_a_copy(order):
    assert np.asarray(order, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(order, copy=False)


def test_pickles_of_orders_contain_no_caches():
    chunks = functools.partial(even, 10**6, 10)
    order = Order(10**6, chunks, 7, 1, block=10_000, lanes=6)
    rows = order[500:600]
    assert order.nbytes > 10**5
    pickled = pickle.dumps(order)
    assert len(pickled) < 400
    assert pickle.loads(pickled).nbytes == 0
    assert np.array_equal(pickle.loads(pickled)[500:600], rows)


def test_threads_share_an_order():
    order = Order(10**6, even(10**6, 100), 7, 1, block=1000, lanes=6)
    want = Order(10**6, even(10**6, 100), 7, 1, block=1000, lanes=6)[:]
    are_equal = []

    def read(start):
        parts = [slice(first, first + 5000) for first in range(start, 10**6, 40_000)]
        are_equal.extend(np.array_equal(order[part], want[part]) for part in parts)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(0, 40_000, 5000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert are_equal == [True] * (10**6 // 5000)


@pytest.mark.parametrize("stretches", [1, 3, 100])
def test_a_full_cache_evicts_stretches(monkeypatch, stretches):
    unlimited = Order(5000, even(5000, 64), 7, block=100, lanes=20)
    want = unlimited[:]
    monkeypatch.setattr(blocks, "CACHE_BYTES", stretches * 400)  # a stretch has 100 int32
    order = Order(5000, even(5000, 64), 7, block=100, lanes=20)
    positions = np.random.default_rng(0).integers(0, 5000, 1000)
    assert np.array_equal(order.at(positions), want[positions])
    assert np.array_equal(np.concatenate([order[k : k + 7] for k in range(0, 5000, 7)]), want)
    # Without a limit, each lane has a stretch.
    assert order.nbytes <= unlimited.nbytes - 400 * max(20 - stretches, 0)


@pytest.mark.parametrize(
    ("chunks", "options", "error", "match"),
    [
        ([0, 5], {}, ValueError, "sorted bounds from 0"),
        ([1, 10], {}, ValueError, "bounds from 0 to 10"),
        ([0, 7, 5, 10], {}, ValueError, "sorted bounds"),
        ([0, 7, 5, 7, 10], {}, ValueError, "sorted bounds"),
        ([], {}, ValueError, "sorted bounds"),
        ([0, 10], {"block": 0}, ValueError, "block=0: expected at least 1"),
        ([0, 10], {"lanes": -1}, ValueError, "lanes=-1: expected at least 1"),
        ([0, 10], {"lanes": 2.0}, TypeError, "lanes=2.0: expected an integer"),
        ([0, 10], {"lanes": 1 << 60}, ValueError, "must be below 2"),
        ([0, 10], {"seed": "a"}, TypeError, "seed='a': expected an integer"),
    ],
)
def test_invalid_orders_raise(chunks, options, error, match):
    with pytest.raises(error, match=match):
        Order(10, np.array(chunks, int), **{"seed": 0, "block": 5, **options})[0]


# Recorded values: with ORDER_VERSION 1, they never change.


GOLDEN = {
    # chunks, rows of a block, lanes: first rows, first digits of the sha256 of up to 1000 rows
    # from the start and from the middle, as little-endian int64
    "one sample": ((bounds([1]), 5, 4), [0, 0], "374708fff7719dd5"),
    "small": ((even(1000, 64), 100, 6), [591, 374, 537, 439], "eec174bdc837864a"),
    "uneven": (
        (bounds([0, 1, 0, 7, 30, 2, 0, 1, 12, 300]), 6, 4),
        [53, 142, 231, 4],
        "d536aaa2043431fe",
    ),
    "long blocks": (
        (even(100_000, 300), 1 << 15, 3),
        [97892, 53069, 47139, 65963],
        "5ac66378a73b0bcb",
    ),
    "large blocks": (
        (even(1_000_003, 1000), 100_000, 7),
        [885892, 19553, 787209, 679497],
        "654bc8f7a839de96",
    ),
    "one block": (
        (even((1 << 20) + 1, 4096), 1 << 21, 1),
        [173991, 448957, 333806, 457488],
        "e0508fc8728a3f59",
    ),
    "many lanes": ((even(10**6, 10), 200, 960), [945030, 805660, 396480, 3610], "00b1fb353a43a8be"),
    "vast": (
        (even(5 * 10**9, 10**7), 10**6, 96),
        [1440004312, 4290012269, 2110029772, 2900002612],
        "8edc10959b5039bd",
    ),
}


def test_the_version_is_unchanged():
    assert order_module.ORDER_VERSION == 1


STRATIFIED_GOLDEN = {
    "uneven": ([8, 105, 194, 283], "9491285c554de9d6"),
    "many lanes": ([394470, 924680, 617450, 260080], "e736bb183da49b0f"),
}
"""The same of stratified orders."""


@pytest.mark.parametrize(
    ("case", "stratified"),
    [*((case, False) for case in GOLDEN), *((case, True) for case in STRATIFIED_GOLDEN)],
)
def test_orders_equal_recorded_values(case, stratified):
    (chunks, block, lanes), *recorded = GOLDEN[case]
    first, digits = STRATIFIED_GOLDEN[case] if stratified else recorded
    n = int(chunks[-1])
    order = Order(n, chunks, 1, 2, block=block, lanes=lanes, stratified=stratified)
    rows = np.concatenate([order[:1000], order[n // 2 : n // 2 + 1000]])
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    assert (rows[:4].tolist(), digest[:16]) == (first, digits)


# Seeds, epochs, lanes


def test_orders_of_different_seeds_and_epochs_are_independent():
    make = functools.partial(Order, 20_000, even(20_000, 50), block=2000, lanes=4)
    orders = [make(seed, number)[:] for seed, number in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2))]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 10
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def lanes_of(order, lanes):
    return [frozenset(order[lane::lanes].tolist()) for lane in range(lanes)]


def test_lanes_do_not_change_with_the_epoch():
    make = functools.partial(Order, 5003, even(5003, 50), block=300, lanes=7)
    first = lanes_of(make(0, 0), 7)
    assert lanes_of(make(0, 1), 7) == lanes_of(make(0, 99), 7) == first
    assert not set(lanes_of(make(1, 0), 7)) & set(first)
    assert sorted(map(len, first)) == [714, 714, 715, 715, 715, 715, 715]


@pytest.mark.parametrize("ranks_per_node", [1, 8])
@pytest.mark.parametrize(("nodes", "fetches"), [(1, 1), (4, 1), (12, 1), (5, 5), (16, 2), (48, 2)])
def test_number_of_nodes_that_fetch_a_chunk(nodes, fetches, ranks_per_node):
    """It is one, and the same node in each epoch, if the number of nodes divides the lanes."""
    n, lanes, chunks = 240_000, 24, 2000
    world = nodes * ranks_per_node
    fetched = [set() for _ in range(nodes)]
    for number in range(2):
        order = Order(n, even(n, n // chunks), 3, number, block=3000, lanes=lanes)
        rows = order[:]
        for rank in range(world):
            part = Partition(n, rank, world, batch_size=4, last="short", nodes=nodes)
            rank_rows = rows[part.positions(range(part.batches))]
            fetched[rank // ranks_per_node].update((rank_rows // (n // chunks)).tolist())
    total = sum(map(len, fetched))
    # At most one chunk per lane is cut, and read by two nodes.
    if fetches == 1:
        assert chunks <= total <= chunks + lanes
    else:
        assert 0.9 * fetches * chunks < total <= fetches * (chunks + lanes)


def test_lanes_begin_new_blocks_one_after_the_other():
    lanes, size = 24, 10
    order = Order(240_000, even(240_000, size), 3, block=240, lanes=lanes)
    chunks, first = np.unique(order[:] // size, return_index=True)
    assert len(chunks) == 24_000
    new = np.bincount(first // (lanes * size))  # number of chunks that each batch needs first
    steady = new[24:-48]  # without the beginning of the first blocks and of the last blocks
    assert steady.mean() == pytest.approx(24, rel=0.1)
    assert steady.max() < 2.5 * steady.mean()  # without staggered blocks: 24 times the mean


# Quality


def z_score(counts):
    """Return chi-square in standard deviations from its mean; see `test_permutation`."""
    expected = counts.sum() / counts.size
    freedom = math.prod(length - 1 for length in counts.shape)
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [MAX_TABLE_LENGTH, 300_007])
@pytest.mark.parametrize("lag", [1, 2, 64, 1024])
def test_one_block_is_shuffled_like_a_random_permutation(n, lag):
    rows = Order(n, even(n, 128), 5, block=n)[:]
    distances = (rows[lag:] - rows[:-lag]) % n
    assert abs(z_score(np.bincount(distances * 256 // n, minlength=256))) < 3.5
    assert abs(z_score(np.histogram2d(np.arange(n), rows, bins=32)[0])) < 3.5


def test_blocks_are_shuffled_like_random_permutations():
    """The position of a row in its block is independent of its position in its chunk."""
    lanes, block, size = 8, 512, 16
    order = Order(1 << 20, even(1 << 20, size), 5, block=block, lanes=lanes)
    for lane in (0, lanes - 1):
        rows = order[lane::lanes][block * (lane + 1) // lanes :]
        places = np.arange(len(rows)) % block
        assert abs(z_score(np.histogram2d(places, rows % size, bins=(32, 16))[0])) < 3.5


@pytest.mark.parametrize("block", [256, 1024, 8192])
def test_batch_means_have_the_predicted_spread(block):
    """If values differ only by chunk, and m are in flight, it is sqrt(1 + (batch - 1) / m)."""
    n, size, lanes, batch = 1 << 19, 32, 16, 256
    in_flight = lanes * block / size
    spreads = []
    for seed in range(3):
        values = np.random.default_rng(seed).standard_normal(n // size)
        order = Order(n, even(n, size), seed, block=block, lanes=lanes)
        means = values[order[:] // size].reshape(-1, batch).mean(axis=1)
        spreads.append(means.std() / (values.std() / math.sqrt(batch)))
    assert np.mean(spreads) == pytest.approx(math.sqrt(1 + (batch - 1) / in_flight), rel=0.1)


@pytest.mark.parametrize("lanes", [1, 8])
def test_stratified_batches_have_nearly_their_share_of_sorted_labels(lanes):
    """Shares of labels in batches of many blocks vary less than half as much as in other orders."""
    n, size, batch = 1 << 18, 64, 1 << 14
    labels = np.arange(n) * 10 // n

    def spread_of_shares(stratified):
        order = Order(n, even(n, size), 3, block=2048, lanes=lanes, stratified=stratified)
        counts = [np.bincount(labels[rows], minlength=10) for rows in order[:].reshape(-1, batch)]
        return np.std(np.array(counts) / batch)

    assert 2 * spread_of_shares(stratified=True) < spread_of_shares(stratified=False)


def test_stratified_orders_differ_by_seed_and_epoch():
    make = functools.partial(Order, 6400, even(6400, 16), block=320, lanes=4, stratified=True)
    orders = [make(seed, number)[:] for seed, number in ((0, 0), (0, 1), (1, 0))]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.01
    # The lanes depend on the seed alone, as in other orders.
    assert lanes_of(make(0, 0), 4) == lanes_of(make(0, 1), 4) != lanes_of(make(1, 0), 4)


@pytest.mark.parametrize("settings", [Shuffle("64MiB", 4), Shuffle("256MiB", 16)])
def test_fetched_and_cached_chunks_of_a_node_are_bounded(settings):
    """In the simulator that computes the table in docs/orders.md, with a small dataset."""
    scene = Scene("small", 4 * GIB, 30_000, 256, nodes=2)
    result = figures(scene, native(scene, settings), CHUNK)
    share = settings.block / scene.nodes
    assert result.burst < 4
    assert result.first < share / MIB
    assert result.resident < 2 * share / MIB
    assert result.spread == pytest.approx(math.sqrt(1 + 255 / (share / CHUNK)), rel=0.15)
    assert result.neighbors < 1.2


# Settings


@pytest.mark.parametrize(
    ("nbytes", "block", "lanes"),
    [
        (0, GIB, 1),
        (400 * MIB, GIB, 1),
        (GIB, GIB, 1),
        (GIB + 1, GIB, 48),
        (64 * GIB, GIB, 48),
        (248 * 10**9, 3875 * 10**6, 192),
        (TIB, 16 * GIB, 960),
        (10 * TIB, 64 * GIB, 960),
    ],
)
def test_default_settings_depend_only_on_bytes(nbytes, block, lanes):
    assert Shuffle().resolve(nbytes) == Shuffle(block, lanes)
    assert Shuffle(block, lanes).resolve(nbytes) == Shuffle(block, lanes)


@pytest.mark.parametrize(
    ("settings", "resolved"),
    [
        (Shuffle("5MiB"), (5 * MIB, 1)),
        (Shuffle("100MiB"), (100 * MIB, 4)),
        (Shuffle(64 * MIB, 3), (64 * MIB, 3)),
        (Shuffle(lanes=7), (16 * GIB, 7)),
        (Shuffle("2TiB"), (2 * TIB, 1)),
        (Shuffle(None), (None, 1)),
        (Shuffle("0"), (0, 1)),
        (Shuffle("0.0 MiB"), (0, 1)),
    ],
)
def test_given_settings_are_kept(settings, resolved):
    assert settings.resolve(TIB) == Shuffle(*resolved)
    if settings.block:
        stratified = replace(settings, stratified=True)
        assert stratified.resolve(TIB) == Shuffle(*resolved, stratified=True)


def test_settings_are_plain_and_equal_by_value():
    stratified = Shuffle("1GiB", stratified=True)
    sizes = Shuffle(), Shuffle("4GiB", np.int64(8)), Shuffle(None), Shuffle(0)
    for settings in (*sizes, stratified):
        assert Shuffle(**json.loads(json.dumps(asdict(settings)))) == settings
        assert hash(pickle.loads(pickle.dumps(settings))) == hash(settings)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"block": 0.5}, ValueError, "block=0.5: expected a size, 'auto' or None; 0 shuffles"),
        ({"block": "0.4b"}, ValueError, "block='0.4b': expected a size"),
        ({"block": False}, ValueError, "block=False"),
        ({"block": 0, "lanes": 2}, ValueError, "lanes=2 and block=0: samples in the order of"),
        ({"block": True}, ValueError, "block=True"),
        ({"block": "much"}, ValueError, "cannot read the size 'much'"),
        ({"block": -5}, ValueError, "-5"),
        ({"lanes": 0}, ValueError, "lanes=0: expected at least 1"),
        ({"lanes": True}, TypeError, "lanes=True: expected an integer"),
        ({"lanes": "8"}, TypeError, "lanes='8': expected an integer"),
        ({"block": None, "lanes": 2}, ValueError, "a shuffle of all samples has one lane"),
        ({"block": None, "stratified": True}, ValueError, "stratified=True and block=None: only"),
        ({"block": 0, "stratified": True}, ValueError, "stratified=True and block=0: only blocks"),
        ({"stratified": 1}, TypeError, "stratified=1: expected True or False"),
    ],
)
def test_invalid_shuffle_settings_raise(settings, error, match):
    with pytest.raises(error, match=match):
        Shuffle(**settings)


# Promised figures


@pytest.mark.usefixtures("compiled")
def test_a_million_chunks_take_little_memory():
    starts = np.linspace(0, 10**9, 62_501).astype(np.int64)
    chunks = functools.partial(
        shard_chunks, starts, np.full(62_500, 64 * MIB), np.zeros(62_500, bool), 4 * MIB
    )
    make = functools.partial(Order, 10**9, chunks, 0, block=16_277, lanes=960)
    make(0)[: 1 << 10]  # compiles
    tracemalloc.start()
    try:
        order = make(7)
        order[900_000_000:900_000_256]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB
    assert order.nbytes < 8.6 * 10**6  # 8.5 bytes for each chunk, and the cache


def test_a_few_rows_do_not_import_numba():
    code = """
import sys
import numpy as np
from npstream.orders.order import Order, full_order
order = Order(1000, np.arange(0, 1001, 50), 0, block=100, lanes=2)
order.find(order[:20])
full_order(10**9, 0)[:100]
print("numba" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.stderr, result.stdout) == ("", "False\n")
