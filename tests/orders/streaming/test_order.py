"""Streaming's orders equal those of the real package, bit for bit; see ``golden/README.md``.

Results without golden data, such as parts of an order, are compared with a reference in plain NumPy
(`streaming_reference`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from streaming_reference import (
    BY_STREAM,
    arrange_slots,
    assert_resolved,
    expected,
    full_order,
    golden,
    golden_cases,
    run_golden,
)

from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.partition import World
from npstream.orders.streaming.sampling import Weight, samples_per_stream
from npstream.orders.streaming.shuffle import SHUFFLE_ALGORITHMS, EpochShuffle

NAMES = [field.name for field in dataclasses.fields(StreamingOrder)][2:]
"""The names of settings that are not arrays."""


def make_shards(stream):
    if "shard_run" in stream:
        size, count, last_size = stream["shard_run"]
        return np.array([size] * count + [last_size] * (last_size > 0))
    return np.array(stream["shards"])


def make_order(params):
    shards = [make_shards(stream) for stream in params["streams"]]
    weights = [
        Weight(**{name: stream[name] for name in Weight.__slots__ if name in stream})
        for stream in params["streams"]
    ]
    return StreamingOrder(shards=shards, weights=weights, **{name: params[name] for name in NAMES})


def make_world(params):
    return World(params["nodes"], params["ranks_per_node"]).merge_replicas(params["replication"])


@pytest.fixture
def epoch_of():
    def epoch(params):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "sample_in_epoch=.* is not a multiple of the global")
            return make_order(params).epoch(
                params["epoch"], make_world(params), params["sample_in_epoch"]
            )

    return epoch


def work(epoch, workers):
    """Return the ids in all slots of an epoch."""
    world, batches = epoch.world, range(epoch.batches)
    ids = [
        [epoch.ids(node, rank, batches) for rank in range(world.ranks_per_node)]
        for node in range(world.nodes)
    ]
    return arrange_slots(np.moveaxis(ids, 2, 0).reshape(-1), world, workers, epoch.batch_size)


@golden_cases("work")
def test_golden_samples_of_workers(case, epoch_of):
    params, workers = case["params"], case["params"]["workers_per_rank"]
    epoch = run_golden(case, lambda: epoch_of(params))
    if epoch is None:
        return
    order, resolved = make_order(params), case["resolved"]
    assert order.lanes(epoch.world) == resolved["num_canonical_nodes"]
    assert order.block_size(epoch.world) == resolved["shuffle_block_size"]
    sizes = np.array([shards.sum() for shards in order.shards])
    assert_resolved(
        case, *samples_per_stream(order.weights, sizes, order.epoch_size, order.shuffle_seed), sizes
    )
    want, got = expected(case, "work"), work(epoch, workers)
    if params["batching_method"] == "device_per_stream":
        # Streaming appends empty batches here.
        assert (want[:, :, :, got.shape[3] :] == -1).all()
        want = want[:, :, :, : got.shape[3]]
    np.testing.assert_array_equal(got, want)


@golden_cases("digest")
def test_golden_digest(case, epoch_of):
    params, resolved = case["params"], case["resolved"]
    assert_digest(work(epoch_of(params), params["workers_per_rank"]), resolved["digest"])
    shuffle = EpochShuffle(
        params["shuffle_algo"],
        resolved["num_canonical_nodes"],
        params["shuffle_seed"],
        params["epoch"],
        resolved["shuffle_block_size"],
    )
    assert_digest(
        full_order(shuffle, make_shards(params["streams"][0])), resolved["shuffle_digest"]
    )


def assert_digest(got, want):
    assert list(got.shape) == want["shape"]
    assert got.reshape(-1)[:24].tolist() == want["head"]
    assert got.reshape(-1)[-24:].tolist() == want["tail"]
    assert hashlib.sha256(got.astype("<i8").tobytes()).hexdigest() == want["sha256_int64le"]


SAMPLING_CASES = [case for case in golden("orders") if "sampling0" in case.get("arrays", ())]


@pytest.mark.parametrize("case", SAMPLING_CASES, ids=[case["id"] for case in SAMPLING_CASES])
def test_golden_picks(case, epoch_of):
    """The counts, the units and the sample ids of each stream equal golden data."""
    batching = epoch_of(case["params"]).batching
    is_one_stream = case["params"]["batching_method"] == "random"
    streams = {"": batching} if is_one_stream else dict(enumerate(batching.streams))
    counts = np.concatenate([stream.picks.counts for stream in streams.values()])
    count = len(case["params"]["streams"])
    want = [expected(case, f"sampling{number}") for number in range(count)]
    np.testing.assert_array_equal(counts, np.concatenate(want))
    for number, stream in streams.items():
        picks = stream.picks
        np.testing.assert_array_equal(picks.units.sizes, expected(case, f"units{number}"))
        ids = picks.ids(np.arange(picks.size)) + stream.first_id
        np.testing.assert_array_equal(ids, expected(case, f"ids{number}"))


@golden_cases("defaults")
def test_golden_defaults(case):
    params = dict(case["params"])
    world = World(params.pop("num_nodes"), 1)
    order = StreamingOrder(shards=[np.array([5])], batch_size=1, **params)
    resolved = {
        "num_canonical_nodes": order.lanes(world),
        "shuffle_block_size": order.block_size(world),
    }
    assert resolved == case["resolved"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shuffle_algo": "py1b"}, "shuffle_algo='py1b': expected one of naive, py1br, py1e"),
        ({"partition_algo": "new"}, "partition_algo='new'"),
        ({"batching_method": "none"}, "batching_method='none'"),
        ({"sampling_method": "none"}, "sampling_method='none'"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"num_canonical_nodes": 0}, "num_canonical_nodes=0"),
        ({"shuffle_seed": -1}, "shuffle_seed=-1: expected at least 0"),
        ({"weights": [Weight()]}, "1 weight for 2 streams"),
    ],
)
def test_invalid_streaming_settings_raise(change, match):
    settings = {"shards": [np.array([5]), np.array([6])], "batch_size": 2}
    with pytest.raises(ValueError, match=match):
        StreamingOrder(**settings | change)


@pytest.mark.parametrize(
    ("settings", "place", "match"),
    [
        ({}, (-1, World(1, 1)), "epochs are numbered from 0, not -1"),
        ({}, (0, World(2, 2), -4), "sample_in_epoch=-4: expected a number of samples"),
        ({"num_canonical_nodes": 2}, (0, World(3, 1)), "and 3 nodes: one must be a multiple"),
        (
            {"num_canonical_nodes": 2, "initial_physical_nodes": 2},
            (0, World(3, 1)),
            "the global batch of 3 nodes cannot be divided among initial_physical_nodes=2",
        ),
        (
            {"batching_method": "device_per_stream", "num_canonical_nodes": 1},
            (0, World(2, 1)),
            "num_canonical_nodes=1 and 2 nodes: device_per_stream needs a multiple",
        ),
        ({"batching_method": "per_stream"}, (0, World(9, 9)), "a global batch of 243 samples"),
    ],
)
def test_impossible_epochs_raise(settings, place, match):
    order = StreamingOrder(shards=[np.array([5, 60])], batch_size=3, **settings)
    with pytest.raises(ValueError, match=match):
        order.epoch(*place)


@pytest.mark.parametrize("method", BY_STREAM)
def test_streams_that_fill_no_batch_raise(method):
    """Streaming raises, too, except for "stratified": there its epoch has no batches."""
    order = StreamingOrder(
        shards=[np.array([50, 50]), np.array([3])],
        weights=[Weight(), Weight(repeat=2)],
        batch_size=7 if method != "stratified" else 120,
        shuffle=True,
        shuffle_algo="py1s",
        num_canonical_nodes=1,
        batching_method=method,
    )
    with pytest.raises(
        ValueError, match=r"stream . has (6|100) samples in an epoch, too few to fill"
    ):
        order.epoch(0, World(1, 2), 0)


@pytest.mark.parametrize("method", BY_STREAM)
def test_device_per_stream_raises_if_a_block_is_rounded_to_0(method):
    """Streaming has this rule only for device_per_stream."""
    order = StreamingOrder(
        shards=[np.array([50, 50]), np.array([10])],
        batch_size=10,
        shuffle=True,
        shuffle_algo="naive",  # it has no blocks
        shuffle_block_size=10,
        num_canonical_nodes=1,
        batching_method=method,
    )
    if method != "device_per_stream":
        assert order.epoch(0, World(1, 1)).batches > 0
        return
    with pytest.raises(
        ValueError, match=r"stream 1 is 0\.0909 of an epoch, .* give shuffle_block_size=11"
    ):
        order.epoch(0, World(1, 1))
    assert dataclasses.replace(order, shuffle=False).epoch(0, World(1, 1)).batches > 0
    enough = dataclasses.replace(order, shuffle_block_size=11)
    assert enough.epoch(0, World(1, 1)).batches > 0


HUGE = {"shards": [np.full(1000, 10**9)], "batch_size": 512, "shuffle": True}


@pytest.mark.parametrize("algorithm", SHUFFLE_ALGORITHMS)
def test_an_epoch_draws_nothing_before_it_is_read(algorithm):
    """To draw for 4 * 10**9 samples would take too long and too much memory."""
    order = StreamingOrder(**HUGE | {"shards": [np.full(4, 10**9)]}, shuffle_algo=algorithm)
    assert order.epoch(0, World(8, 8), 2**20).batches == -(-(4 * 10**9 - 2**20) // 2**15)
    with pytest.raises(ValueError, match="in an epoch of 4,000,000,000 samples"):
        order.epoch(0, World(8, 8), 2**32)


def test_an_unshuffled_epoch_needs_no_memory_per_sample():
    epoch = StreamingOrder(**HUGE | {"shuffle": False}).epoch(0, World(8, 8), 10**9)
    ids = epoch.ids(3, 5, range(7, 9))
    # Each of 8 nodes has 125 * 10**9 samples, and its 8 ranks take them in turn.
    first = (10**9 + 7 * 64 * 512) // 8 + 5 + 3 * 125 * 10**9
    assert ids.shape == (2, 512)
    assert ids[0, :2].tolist() == [first, first + 8]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("lanes", [1, 8, 64])
def test_a_node_needs_no_memory_for_samples_of_other_nodes(lanes, monkeypatch):
    monkeypatch.setattr("npstream.orders.streaming.order.MAX_IDS", 1 << 16)
    samples = 1 << 22
    order = StreamingOrder(
        shards=[np.full(samples >> 10, 1 << 10)],
        batch_size=256,
        shuffle=True,
        num_canonical_nodes=lanes,
        shuffle_block_size=1 << 16,
    )

    def count():
        epoch = order.epoch(1, World(8, 1))
        return sum(len(ids) for ids in epoch.read(5, 0, range(epoch.batches)))

    count()  # compiles
    tracemalloc.start()
    assert count() == samples // 8
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * samples, "two bytes for each sample of the epoch"


@pytest.mark.parametrize("batching_method", ["random", "per_stream", "stratified"])
def test_workers_that_take_batches_in_turn_read_the_same(batching_method, monkeypatch):
    monkeypatch.setattr("npstream.orders.streaming.order.MAX_IDS", 50)
    order = StreamingOrder(
        shards=[np.full(20, 30), np.full(10, 33)],
        batch_size=7,
        shuffle=True,
        batching_method=batching_method,
    )
    epoch = order.epoch(2, World(1, 2))
    want = [ids[ids >= 0].tolist() for ids in epoch.ids(0, 1, range(epoch.batches))]
    for workers in (1, 2, 3):
        got = [None] * epoch.batches
        for worker in range(workers):
            batches = range(worker, epoch.batches, workers)
            got[worker::workers] = [ids.tolist() for ids in epoch.read(0, 1, batches)]
        assert got == want


def test_epochs_can_be_pickled():
    epoch = StreamingOrder(shards=[np.full(9, 7)], batch_size=4, shuffle=True).epoch(0, World(1, 1))
    for _ in range(2):  # before and after it is read
        copy = pickle.loads(pickle.dumps(epoch))
        np.testing.assert_array_equal(copy.ids(0, 0, range(16)), epoch.ids(0, 0, range(16)))
