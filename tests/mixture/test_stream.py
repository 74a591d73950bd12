"""Streams of mixtures draw each sample once per pass, by shares, and can be inverted."""

from __future__ import annotations

import functools
import hashlib
import itertools
import pickle
import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from npstream.mixture import passes
from npstream.mixture.passes import source_seed
from npstream.mixture.patterns import make_pattern
from npstream.mixture.shares import next_coprime
from npstream.mixture.stream import (
    MIN_PATTERN_REPEATS,
    STREAM_VERSION,
    Course,
    EpochOrder,
    MixtureOrder,
    Phase,
    Stored,
)
from npstream.orders.order import Order
from npstream.orders.permutation import make_key

SIZES = (23, 40, 17)  # 80 rows
CHUNK = 4


def chunk_bounds(n):
    """Return the bounds of chunks of `CHUNK` rows."""
    return np.append(np.arange(0, n, CHUNK), n)


def stream(
    phases, lanes=1, source_lanes=(1, 1, 1), sizes=SIZES, block=3, seed=1, stratified=False,
    **settings,
):  # fmt: skip
    """Return a stream of sources named "0", "1", ..."""
    sources = tuple(
        Stored(str(number), size, source_lanes[number], block) for number, size in enumerate(sizes)
    )
    course = Course(seed, lanes, sources, tuple(itertools.starmap(Phase, phases)), **settings)
    chunks = [functools.partial(chunk_bounds, n) for n in sizes]
    return MixtureOrder(course, chunks, np.cumsum([0, *sizes])[:-1].tolist(), stratified)


def sources_of(order, rows):
    """Return the sources of rows of the concatenation."""
    return np.searchsorted(np.cumsum([s.samples for s in order.course.sources]), rows, "right")


def draw_one_by_one(order, stop):
    """Return the row and the pass at each position before `stop`, by the definition of streams."""
    seed, lanes, sources, phases, batches, across = order.course
    batches = batches or (1,) * len(sources)
    drawn = {}
    orders = {}
    result = []
    for unit in range(-(-stop // max(batches))):
        start, counts = max(phase for phase in phases if phase.start <= unit)
        length = sum(counts)
        block, slot = divmod(unit - (start - start % lanes), length)
        superblock, block = divmod(block, lanes)
        key = make_key(seed, start, superblock // -(-MIN_PATTERN_REPEATS // lanes), 4)
        pattern = make_pattern(np.array(counts), lanes, key)
        if length % lanes == 0:  # rows of lanes are rotated from block to block
            slot += (slot + block) % lanes - slot % lanes
        source = int(pattern.sources[slot])
        name, samples, source_lanes, rows = sources[source]
        lane = unit % lanes
        unit_number = drawn[source, lane] = drawn.get((source, lane), -1) + 1
        for offset in range(max(batches)):
            if offset >= batches[source]:  # all units have as many positions as the largest
                result.append((-1, -1))
                continue
            if across:
                draw, source_lane = divmod(unit_number * batches[source] + offset, source_lanes)
            else:
                lane_group, source_lane = divmod(lane, source_lanes)
                number = unit_number * (lanes // source_lanes) + lane_group
                draw = number * batches[source] + offset
            lane_rows = samples // source_lanes + (source_lane < samples % source_lanes)
            pass_number, element = divmod(draw, lane_rows)
            if (source, pass_number) not in orders:
                orders[source, pass_number] = Order(
                    samples, chunk_bounds(samples), source_seed(seed, name), pass_number,
                    block=rows, lanes=source_lanes, stratified=order.stratified,
                )[:]  # fmt: skip
            first = sum(other.samples for other in sources[:source])
            row = orders[source, pass_number][element * source_lanes + source_lane]
            result.append((first + row, pass_number))
    return np.array(result[:stop]).T


ONE = [(0, (3, 4, 5))]
CASES = {
    "one lane": ({"phases": ONE}, 300),
    "lanes": ({"phases": [(0, (3, 5, 5))], "lanes": 4, "source_lanes": (4, 2, 1)}, 500),
    "lanes that divide blocks": ({"phases": ONE, "lanes": 4, "source_lanes": (4, 2, 1)}, 500),
    "stratified": (
        {
            "phases": [(0, (3, 5, 5))], "lanes": 4, "source_lanes": (4, 2, 1), "block": 12,
            "stratified": True,
        },
        500,
    ),
    "phases": (
        {
            "phases": [(0, (4, 5, 4)), (48, (0, 5, 6)), (96, (10, 1, 1))], "lanes": 6,
            "source_lanes": (6, 3, 2),
        },
        400,
    ),
    "phases at any unit": (
        {
            "phases": [(0, (4, 6, 5)), (50, (2, 9, 1)), (97, (3, 3, 7))], "lanes": 4,
            "source_lanes": (4, 4, 1),
        },
        400,
    ),
    "batches of a device": (
        {
            "phases": [(0, (4, 5, 3)), (10, (3, 4, 5))], "lanes": 4, "source_lanes": (4, 2, 1),
            "batches": (3, 2, 3),
        },
        400,
    ),
    "global batches": (
        {
            "phases": [(0, (4, 5, 7)), (10, (3, 4, 5))], "source_lanes": (4, 2, 1),
            "batches": (3, 2, 5), "across": True,
        },
        400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_streams_follow_their_description(case, kernel_mode):
    arguments, stop = CASES[case]
    order = stream(**arguments)
    rows, _ = draw_one_by_one(order, stop)
    assert np.array_equal(order.at(np.arange(stop)), rows)
    assert np.array_equal(order.at(np.arange(stop)[::-7].reshape(1, -1))[0], rows[::-7])


@pytest.mark.parametrize("case", CASES)
def test_drawn_rows_are_found(case, kernel_mode):
    arguments, stop = CASES[case]
    order = stream(**arguments)
    rows, passes_ = draw_one_by_one(order, stop)
    drawn = np.flatnonzero(rows >= 0)
    assert np.array_equal(order.find(rows[drawn], passes_[drawn]), drawn)
    first = order.find(np.arange(80).reshape(8, 10))
    assert np.array_equal(order.at(first), np.arange(80).reshape(8, 10))


@pytest.mark.parametrize("case", CASES)
def test_each_sample_occurs_once_per_pass(case):
    arguments, _ = CASES[case]
    order = stream(**arguments)
    positions = np.array([order.find(np.arange(80), number) for number in range(4)])
    assert len(np.unique(positions)) == positions.size
    assert np.array_equal(order.at(positions), np.broadcast_to(np.arange(80), positions.shape))
    stop = int(positions.max()) + 1
    rows, passes_ = draw_one_by_one(order, stop)
    assert np.array_equal(np.bincount(rows[(passes_ >= 0) & (passes_ < 4)]), np.full(80, 4))


def test_each_pass_has_its_own_order():
    order = stream(ONE)
    rows = order.at(np.arange(600))
    first = rows[rows < 23]
    passes_ = first[: len(first) // 23 * 23].reshape(-1, 23)
    assert (np.sort(passes_) == np.arange(23)).all()
    assert len(np.unique(passes_, axis=0)) == len(passes_) > 4


def test_without_blocks_sources_keep_their_order():
    order = stream(ONE, block=0)
    rows = order.at(np.arange(600))
    assert np.array_equal(rows[rows < 23], np.arange((rows < 23).sum()) % 23)
    assert np.array_equal(order.find(rows[:12]), np.arange(12))


@pytest.mark.parametrize(
    ("lanes", "source_lanes"), [(1, (1, 1, 1)), (4, (4, 2, 1)), (54, (2, 27, 54))]
)
def test_blocks_have_exact_counts_and_prefixes_within_one(lanes, source_lanes):
    counts = (41, 29, 7)
    length = sum(counts)
    order = stream([(0, counts)], lanes, source_lanes, sizes=(230, 400, 170))
    sources = sources_of(order, order.at(np.arange(length * 160)))
    for block in sources.reshape(-1, length):
        assert np.array_equal(np.bincount(block, minlength=3), counts)
        for source, count in enumerate(counts):
            drawn = np.cumsum(block == source) * length
            assert (np.abs(drawn - count * np.arange(1, length + 1)) < length).all()


def test_blocks_have_exact_counts_and_prefixes_within_two_if_lanes_divide_them():
    """Lanes divide blocks if a block is a global batch."""
    counts = (40, 33, 7)
    length = sum(counts)
    order = stream([(0, counts)], 4, (4, 2, 1))
    sources = sources_of(order, order.at(np.arange(length * 24)))
    for block in sources.reshape(-1, length):
        assert np.array_equal(np.bincount(block, minlength=3), counts)
        for source, count in enumerate(counts):
            drawn = np.cumsum(block == source) * length
            assert (np.abs(drawn - count * np.arange(1, length + 1)) < 2 * length).all()


def test_sources_do_not_depend_on_others():
    """The order of a source's samples does not depend on the other sources."""
    rows = stream(ONE).at(np.arange(500))
    other = stream([(0, (5, 1, 1))]).at(np.arange(500))
    count = min((rows < 23).sum(), (other < 23).sum())
    assert np.array_equal(rows[rows < 23][:count], other[other < 23][:count])
    assert source_seed(0, "1") != source_seed(0, "2") != source_seed(1, "2")


@given(
    st.integers(2, 40).flatmap(
        lambda count: st.lists(st.integers(1, 60), min_size=count, max_size=count)
    ),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 10**12),
)
@settings(max_examples=30)
def test_very_large_positions_are_found(counts, lanes, position):
    sizes = tuple(lanes * (7 + 3 * count) for count in counts)
    counts[0] += next_coprime(sum(counts), lanes) - sum(counts)  # blocks must be coprime to lanes
    length = sum(counts)
    order = stream([(0, tuple(counts))], lanes, (lanes,) * len(sizes), sizes)
    rows = order.at(np.array([position]))
    source = int(sources_of(order, order.at(np.array([position])))[0])
    mean = position * counts[source] // (length * sizes[source])
    positions = [order.find(rows, number)[0] for number in range(max(mean - 2, 0), mean + 3)]
    assert position in positions


def test_lanes_of_a_node_read_their_own_chunks():
    """If 4 divides a source's lanes, 4 nodes share only the chunks that ends of lanes cut."""
    sizes, nodes = (960, 480, 96), 4
    order = stream([(0, (10, 6, 1))], 8, (8, 4, 1), sizes, block=24)
    rows = order.at(np.arange(6400))
    node = np.arange(6400) % nodes
    for source, (first, size) in enumerate(zip((0, 960, 1440), sizes, strict=True)):
        is_source = (rows >= first) & (rows < first + size)
        chunk = (rows[is_source] - first) // CHUNK
        node_chunks = len(set(zip(chunk.tolist(), node[is_source].tolist(), strict=True)))
        cuts = 8 if source < 2 else size  # all nodes read the one lane of the last source
        assert size // CHUNK <= node_chunks <= size // CHUNK + cuts


def test_removed_sources_are_named_in_the_error():
    full = stream([(0, (4, 4, 4)), (24, (6, 6, 0))])
    # The mixture now has sources 1 and 0, in this order.
    order = MixtureOrder(full.course, [*full.chunks[:2], None], [40, 0, 0])
    rows = order.at(np.arange(24, 80))
    assert rows.max() < 63
    assert np.array_equal(np.where(rows < 40, rows + 23, rows - 40), full.at(np.arange(24, 80)))
    with pytest.raises(ValueError, match="source '2' is at one of the positions"):
        order.at(np.arange(24))
    positions = order.find(np.arange(63), 2)
    assert np.array_equal(order.at(positions[positions >= 24]), np.arange(63)[positions >= 24])
    with pytest.raises(IndexError, match="63 is out of bounds for a mixture of 63 rows"):
        order.find(np.array([63]))


def test_epoch_orders_are_arrays():
    order = stream(ONE)
    whole = order.at(np.arange(200))
    stretch = EpochOrder(order, 50, 100)
    assert len(stretch) == 100
    assert np.array_equal(stretch, whole[50:150])
    assert np.array_equal(stretch[::-3], whole[50:150][::-3])
    assert stretch[-1] == whole[149]
    assert np.array_equal(stretch[10:20], stretch.rows(10, 20))
    assert np.array_equal(stretch.rows(), whole[50:150])
    assert stretch.nbytes == order.nbytes > 0
    assert stretch.find(whole[:1])[0] == -50
    with pytest.raises(IndexError, match="100 is out of bounds for 100 positions"):
        stretch.at(np.array([100]))
    with pytest.raises(IndexError, match="-1 is out of bounds"):
        order.at(np.array([-1]))
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(stretch, copy=False)
    again = pickle.loads(pickle.dumps(stretch))
    assert np.array_equal(again[:], stretch[:])
    assert repr(again) == repr(stretch) != repr(EpochOrder(stream(ONE, seed=2), 50, 100))


def test_many_threads_look_up_at_once():
    order = stream(ONE, 4, (4, 2, 1))
    expected = order.at(np.arange(3000))
    failed_seeds = []

    def read(seed):
        for _ in range(20):
            positions = np.random.default_rng(seed).integers(0, 3000, 50)
            if not np.array_equal(order.at(positions), expected[positions]):
                failed_seeds.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed_seeds


def test_memory_of_orders_is_bounded(monkeypatch):
    sizes = (4000,) * 20
    order = stream([(0, (1,) * 20)], 1, (1,) * 20, sizes, block=4000)
    expected = order.at(np.arange(4000))
    assert order.nbytes > 10 * 16_000  # a pass takes 4 bytes for each of 4000 rows
    monkeypatch.setattr(passes, "CACHE_BYTES", 100_000)
    order = pickle.loads(pickle.dumps(order))
    rows = [order.at(np.arange(start, start + 20)) for start in range(0, 4000, 20)]
    assert np.array_equal(np.concatenate(rows), expected)
    assert order.nbytes < 150_000


def test_streams_equal_recorded_digests():
    """A release that changes the draws of a run must change the version."""
    digest = hashlib.blake2b(digest_size=8)
    cases = [*(case for case in CASES if case != "stratified"), "stratified"]
    digests = []
    for case in cases:
        arguments, stop = CASES[case]
        digest.update(stream(**arguments).at(np.arange(stop)).astype("<i8").tobytes())
        digests.append(digest.hexdigest())
    assert STREAM_VERSION == (1, 1, 1)
    assert digests[-2:] == ["055729f8fbb70a14", "8a3fbd5b22d30c20"]
