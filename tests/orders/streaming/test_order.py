"""Streaming's orders are those of the real package, bit for bit; see ``golden/README.md``.

What has no golden data, such as parts of an order, is held against the steps of the description
in plain NumPy (`streaming_reference`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pickle
import tracemalloc
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import streaming_reference
from hypothesis import example, given, settings
from streaming_reference import GOLDEN, arrays, golden

import npstream
from npstream.orders.streaming import pcg64
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.partition import World, lane_bounds, make_partition
from npstream.orders.streaming.runs import Pieces, Window
from npstream.orders.streaming.sampling import Picks, Weight, chosen, chosen_per_shard
from npstream.orders.streaming.shuffle import ALGORITHMS, EpochShuffle


def expected(case, name):
    return arrays(f"orders/{case['file']}")[f"{case['id']}.{name}"]


def of_kind(*kinds):
    cases = [case for case in golden("orders") if case["kind"] in kinds]
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def checked(case, run):
    """Return what a case gives, or None if it rightly raises."""
    if "raises" not in case:
        return run()
    with pytest.raises(ValueError, match=r"\w+"):
        run()
    return None


# NumPy's generator.


def state_of(rng):
    """Return the state of a NumPy generator as kernels have it."""
    state = rng.bit_generator.state
    words = [number >> shift & 2**64 - 1 for number in state["state"].values() for shift in (64, 0)]
    spare = [state["uinteger"], 1] if state["has_uint32"] else [0, 0]
    return np.array([*words, *spare], np.uint64)


def assert_at(state, rng):
    """Fail unless a state is that of a generator; an old spare half does not matter."""
    np.testing.assert_array_equal(state[[0, 1, 2, 3, 5]], state_of(rng)[[0, 1, 2, 3, 5]])
    if state[5]:
        assert state[4] == state_of(rng)[4]


@pytest.fixture
def run(way):
    return lambda kernel: kernel.py_func if way == "python" else kernel.compiled()


def test_kernels_shuffle_as_numpy_does(run):
    rng, state, skipped = np.random.default_rng(3), pcg64.seeded(3), pcg64.seeded(3)
    for size in [0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000]:
        for dtype in (np.uint32, np.int64):
            want, got = np.arange(size), np.arange(size + 3, dtype=dtype) - 2
            rng.shuffle(want)
            run(pcg64.shuffle)(state, got[2:], 0, size)
            run(pcg64.skip_shuffle)(skipped, size)
            np.testing.assert_array_equal(got[2:-1], want)
            assert_at(state, rng)
            assert_at(skipped, rng)


def test_kernels_shuffle_just_the_part(run):
    values = np.arange(20)
    run(pcg64.shuffle)(pcg64.seeded(0), values, 5, 15)
    assert values[:5].tolist() + values[15:].tolist() == [*range(5), *range(15, 20)]
    assert sorted(values[5:15]) == [*range(5, 15)] != values[5:15].tolist()


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 2**16 + 1, 2**31, 2**31 + 1, 3 << 30, 2**32 - 1])
def test_kernels_draw_as_numpy_does(run, bound):
    rng, state = np.random.default_rng(bound), pcg64.seeded(bound)
    for _ in range(50):
        assert run(pcg64.below)(state, bound) == rng.integers(0, bound)
    assert_at(state, rng)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 100, 12345])
def test_kernels_jump_as_numpy_draws(run, steps):
    rng, state = np.random.default_rng(steps), pcg64.seeded(steps)
    assert run(pcg64.below)(state, 10) == rng.integers(0, 10)  # leaves half a word
    run(pcg64.jump)(state, steps)
    rng.random(steps)
    assert_at(state, rng)


# Shuffles.


def whole(shuffle, units):
    """Return all of an order, lane by lane."""
    units = np.array(units, np.int64)
    shuffle.check(int(units.sum()), int(units.max()))
    order = shuffle.order(Pieces.counted(units))
    bounds = lane_bounds(int(units.sum()), shuffle.lanes).tolist()
    parts = [order.rows(*each) for each in itertools.pairwise(bounds) if each[0] < each[1]]
    return np.concatenate(parts)


@pytest.mark.usefixtures("way")
@of_kind("shuffle")
def test_golden_shuffle(case):
    params = dict(case["params"])
    units = params.pop("shard_sizes")
    names = ("algo", "num_canonical_nodes", "seed", "epoch", "block_size")
    shuffle = EpochShuffle(*map(params.get, names))
    got = checked(case, lambda: whole(shuffle, units))
    if got is not None:
        np.testing.assert_array_equal(got, expected(case, "order"))


UNITS = st.lists(st.integers(0, 30) | st.integers(0, 3), min_size=1, max_size=40).filter(any)
SETTINGS = st.tuples(
    st.sampled_from(ALGORITHMS),
    st.integers(1, 9),  # lanes
    st.integers(0, 2**33),  # seed
    st.integers(0, 9),  # epoch
    st.integers(2, 9) | st.integers(2, 400),  # block size
)


@pytest.mark.usefixtures("way")
@settings(max_examples=150)
@given(UNITS, SETTINGS, st.data())
@example([0, 0, 5, 0, 5, 0], ("py1br", 2, 0, 0, 3), None)
@example([1], ("py2s", 5, 0, 0, 3), None)
def test_any_part_of_a_shuffle_is_that_of_the_description(units, parameters, data):
    shuffle = EpochShuffle(*parameters)
    if shuffle.algorithm == "py1e" and sum(units) < shuffle.lanes:
        return
    want = streaming_reference.order(shuffle.algorithm, units, *parameters[1:])
    np.testing.assert_array_equal(whole(shuffle, units), want)
    if data is None:
        return
    order = shuffle.order(Pieces.counted(np.array(units)))
    bounds = lane_bounds(sum(units), shuffle.lanes)
    start = data.draw(st.integers(0, sum(units) - 1))
    lane_end = int(bounds[bounds.searchsorted(start, "right")])
    stop = data.draw(st.integers(start + 1, lane_end))
    np.testing.assert_array_equal(order.rows(start, stop), want[start:stop])
    positions = data.draw(st.lists(st.integers(0, sum(units) - 1), max_size=20))
    got = Window(order, bounds).at(np.array(positions, np.int64))
    np.testing.assert_array_equal(got, want[positions])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("units", [[1000] * 700, [700_000], [300_000, 17, 399_983], [7] * 100_000])
def test_large_shuffles_are_those_of_the_description(algorithm, units):
    """Of more samples than lie between marks, and sorted in more than one bucket."""
    shuffle = EpochShuffle(algorithm, 3, 1, 2, 40_000)
    units = np.array(units)
    if algorithm == "py2s" and len(units) > 1000:
        units = units[:20_000]
    size = int(units.sum())
    want = streaming_reference.order(algorithm, units, 3, 1, 2, 40_000)
    np.testing.assert_array_equal(whole(shuffle, units), want)
    order, bounds = shuffle.order(Pieces.counted(units)), lane_bounds(size, 3)
    for start in (0, size // 6, size // 3 - 20_000, size // 3, size - 20_000):
        np.testing.assert_array_equal(
            order.rows(start, start + 20_000), want[start : start + 20_000]
        )
    positions = np.random.default_rng(0).integers(0, size, 1000)
    np.testing.assert_array_equal(Window(order, bounds).at(positions), want[positions])


@pytest.mark.parametrize("algorithm", ["py1e", "py1s", "py1br"])
@pytest.mark.parametrize("step", [700, 90_000])
def test_who_reads_on_finds_what_was_computed_before(algorithm, step, monkeypatch):
    """In lanes of its own, and whether that is enough or not."""
    shuffle, size = EpochShuffle(algorithm, 3, 1, 2, 20_000), 900_000
    order, bounds = shuffle.order(Pieces.counted(np.full(9000, 100))), lane_bounds(size, 3)
    want = whole(shuffle, [100] * 9000)
    computed = []

    class Counted:
        stride = order.stride

        def rows(self, start, stop):
            computed.append(stop - start)
            return order.rows(start, stop)

    window = Window(Counted(), bounds)
    for start in range(0, size // 3, step):
        own = np.arange(start, min(start + step, size // 3), 7)
        positions = np.concatenate([own, own + size // 3, own[::-1] + 2 * size // 3])
        np.testing.assert_array_equal(window.at(positions), want[positions])
    assert size // 2 < sum(computed) < 2 * size
    copy = pickle.loads(pickle.dumps(Window(order, bounds)))
    np.testing.assert_array_equal(copy.at(positions), want[positions])
    monkeypatch.setattr("npstream.orders.streaming.runs.MOST_HELD", 3000)
    small = Window(order, bounds)
    for start in range(0, 20_000, 700):
        np.testing.assert_array_equal(
            small.at(np.arange(start, start + 700)), want[start : start + 700]
        )


def test_who_looks_a_position_up_does_not_read_on():
    order = EpochShuffle("py1e", 1, 0, 0, 200).order(Pieces.counted(np.full(9000, 100)))
    computed = []

    class Counted:
        stride = order.stride

        def rows(self, start, stop):
            computed.append(stop - start)
            return order.rows(start, stop)

    window = Window(Counted(), lane_bounds(900_000, 1))
    for position in (5, 899_999, 5):
        window.at(np.array([position]))
    assert computed == [1, 1, 1]
    window.at(np.arange(6, 9))
    assert computed[3:] == [order.stride]


@pytest.mark.parametrize(
    ("algorithm", "block_size"), [("py1e", 0), ("py1br", 1), ("py1e", 1 << 34), ("py1br", 1 << 32)]
)
def test_blocks_that_cannot_be_drawn_raise(algorithm, block_size):
    with pytest.raises(ValueError, match=r"larger blocks|at once: at most"):
        EpochShuffle(algorithm, 1, 0, 0, block_size).check(10, 10)


def test_too_many_samples_at_once_raise():
    with pytest.raises(ValueError, match="among 4294967297 at once"):
        EpochShuffle("naive", 1, 0, 0, 4).check(2**32 + 1, 1000)
    with pytest.raises(ValueError, match="among 4294967297 at once"):
        EpochShuffle("py1s", 1, 0, 0, 4).check(2**33, 2**32 + 1)


# Partitions and worlds.


def tensor(values, world, workers, batch_size):
    """Arrange values by slot as Streaming does: by node, rank, worker, batch of it and place."""
    missing = -len(values) % (world.ranks * workers * batch_size)
    values = np.concatenate([values, np.full(missing, -1)])
    shape = (-1, workers, world.nodes, world.ranks_per_node, batch_size)
    return values.reshape(shape).transpose(2, 3, 1, 0, 4)


@pytest.mark.usefixtures("way")
@of_kind("partition")
def test_golden_partition(case):
    params = case["params"]
    world = World(params["num_physical_nodes"], params["ranks_per_node"])
    names = ("drop_first", "initial_physical_nodes")
    partition = checked(
        case,
        lambda: make_partition(
            params["algo"],
            params["num_samples"],
            params["num_canonical_nodes"],
            world,
            params["batch_size"],
            *map(params.get, names),
        ),
    )
    if partition is None:
        return
    slots = np.arange(partition.batches * world.ranks * params["batch_size"])
    got = tensor(
        partition.positions(slots), world, params["workers_per_rank"], params["batch_size"]
    )
    np.testing.assert_array_equal(got, expected(case, "ids"))


@of_kind("world")
def test_golden_world(case):
    params, workers = case["params"], case["params"]["workers_per_rank"]
    before = World(params["num_nodes"], params["ranks_per_node"])
    world = checked(case, lambda: before.replicated(params["replication"]))
    if world is None:
        return
    resolved = case["resolved"]
    assert (world.nodes, world.ranks_per_node) == (
        resolved["num_nodes"],
        resolved["ranks_per_node"],
    )
    assert world.ranks == resolved["num_ranks"]
    slots = []
    for number in range(before.ranks * workers):
        rank, worker = number // workers // params["replication"], number % workers
        slots.append((*world.place(rank), worker, rank, rank * workers + worker))
    np.testing.assert_array_equal(slots, expected(case, "slots"))


# Sampling.


@pytest.mark.usefixtures("way")
@of_kind("sampling")
def test_golden_sampling(case):
    params = case["params"]
    seed = params["seed"] + (params["epoch"] if params["use_epoch"] else 0)
    sizes = np.array(params["samples_per_shard"])
    got = chosen_per_shard(sizes, params["choose"], params["granularity"], seed)
    np.testing.assert_array_equal(got, expected(case, "choose_per_shard"))
    assert got.sum() == params["choose"]


@pytest.mark.parametrize("sizes", [(2, 3, 60, 999), (9_999, 10_000, 10_001, 20_000)])
def test_samples_are_chosen_as_numpy_does(way, sizes):
    """However NumPy chooses so many of so many, and whatever it drew before."""
    for seed in range(2 if way == "python" else 40):
        rng, counts = np.random.default_rng(seed), []
        for size in sizes:
            among = {1, max(size // 50, 1), size // 50 + 1, size // 2, size - 1}
            counts.append(int(rng.choice(sorted(among))))
        picks = Picks([np.array(sizes)], [sum(counts)], 1, shard_seed=0, sample_seed=seed)
        vars(picks)["counts"] = np.array(counts)
        rng, first, want = np.random.default_rng(seed), 0, []
        for size, count in zip(sizes, counts, strict=True):
            want += sorted((first + rng.choice(size, count, replace=False)).tolist())
            first += size
        assert picks.ids(np.arange(len(want))).tolist() == want
        assert picks.units.rows(1, len(want)).tolist() == want[1:]


@of_kind("weights")
def test_golden_weights(case):
    params = case["params"]
    weights = [Weight(**weight) for weight in params["weights"]]
    sizes = np.array(params["samples_per_stream"])
    got = checked(case, lambda: chosen(weights, sizes, params["epoch_size"], params["seed"]))
    if got is not None:
        assert_resolved(case, *got, sizes)


def assert_resolved(case, counts, proportions, sizes):
    resolved = case["resolved"]
    assert counts.sum() == resolved["epoch_size"]
    repeats = counts / sizes
    for stream, count, proportion, repeat in zip(
        resolved["streams"], counts, proportions, repeats, strict=True
    ):
        assert count == stream["choose"]
        assert float(proportion).hex() == stream["proportion"]
        assert float(repeat).hex() == stream["repeat"]


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        ({"proportion": 1, "repeat": 2}, "one weight, not proportion and repeat"),
        ({"choose": -1}, "choose=-1: a weight is not negative"),
        ({"repeat": float("nan")}, "repeat=nan"),
    ],
)
def test_weights_that_mean_nothing_raise(weight, match):
    with pytest.raises(ValueError, match=match):
        Weight(**weight)


def test_an_epoch_of_nothing_raises():
    for weights in ([Weight(choose=0)], [Weight(proportion=0)]):
        with pytest.raises(ValueError, match="no sample of any stream"):
            chosen(weights, np.array([5]), None, 0)
    with pytest.raises(ValueError, match="samples of stream 1, which has none"):
        chosen([Weight(), Weight(choose=3)], np.array([5, 0]), None, 0)


# All of it.

NAMES = [field.name for field in dataclasses.fields(StreamingOrder)][2:]
"""The settings that are no arrays."""


def shards_of(stream):
    if "shard_run" in stream:
        size, count, rest = stream["shard_run"]
        return np.array([size] * count + [rest] * (rest > 0))
    return np.array(stream["shards"])


def order_of(params):
    shards = [shards_of(stream) for stream in params["streams"]]
    weights = [
        Weight(**{name: stream[name] for name in Weight.__slots__ if name in stream})
        for stream in params["streams"]
    ]
    return StreamingOrder(shards=shards, weights=weights, **{name: params[name] for name in NAMES})


def world_of(params):
    return World(params["nodes"], params["ranks_per_node"]).replicated(params["replication"])


@pytest.fixture
def epoch_of():
    def epoch(params):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "sample_in_epoch=.* is no multiple of the global")
            return order_of(params).epoch(
                params["epoch"], world_of(params), params["sample_in_epoch"]
            )

    return epoch


def work(epoch, workers):
    """Return what an epoch has in all slots."""
    world, batches = epoch.world, range(epoch.batches)
    ids = [
        [epoch.ids(node, rank, batches) for rank in range(world.ranks_per_node)]
        for node in range(world.nodes)
    ]
    return tensor(np.moveaxis(ids, 2, 0).reshape(-1), world, workers, epoch.batch_size)


@of_kind("work")
def test_golden_work(case, epoch_of):
    params, workers = case["params"], case["params"]["workers_per_rank"]
    epoch = checked(case, lambda: epoch_of(params))
    if epoch is None:
        return
    order, resolved = order_of(params), case["resolved"]
    assert order.lanes(epoch.world) == resolved["num_canonical_nodes"]
    assert order.block_size(epoch.world) == resolved["shuffle_block_size"]
    sizes = np.array([shards.sum() for shards in order.shards])
    assert_resolved(
        case, *chosen(order.weights, sizes, order.epoch_size, order.shuffle_seed), sizes
    )
    want, got = expected(case, "work"), work(epoch, workers)
    if params["batching_method"] == "device_per_stream":
        # Streaming always adds batches of nothing here.
        assert (want[:, :, :, got.shape[3] :] == -1).all()
        want = want[:, :, :, : got.shape[3]]
    np.testing.assert_array_equal(got, want)


@of_kind("digest")
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
    assert_digest(whole(shuffle, shards_of(params["streams"][0])), resolved["shuffle_digest"])


def assert_digest(got, want):
    assert list(got.shape) == want["shape"]
    assert got.reshape(-1)[:24].tolist() == want["head"]
    assert got.reshape(-1)[-24:].tolist() == want["tail"]
    assert hashlib.sha256(got.astype("<i8").tobytes()).hexdigest() == want["sha256_int64le"]


PICKED = [case for case in golden("orders") if "sampling0" in case.get("arrays", ())]


@pytest.mark.parametrize("case", PICKED, ids=[case["id"] for case in PICKED])
def test_golden_picks(case, epoch_of):
    """What each stream contributes: units, and the ids of samples."""
    batching = epoch_of(case["params"]).batching
    joined = case["params"]["batching_method"] == "random"
    streams = {"": batching} if joined else dict(enumerate(batching.streams))
    counts = np.concatenate([stream.picks.counts for stream in streams.values()])
    count = len(case["params"]["streams"])
    want = [expected(case, f"sampling{number}") for number in range(count)]
    np.testing.assert_array_equal(counts, np.concatenate(want))
    for number, stream in streams.items():
        picks = stream.picks
        np.testing.assert_array_equal(picks.units.sizes, expected(case, f"units{number}"))
        ids = picks.ids(np.arange(picks.size)) + stream.first_id
        np.testing.assert_array_equal(ids, expected(case, f"ids{number}"))


@of_kind("defaults")
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
        ({"weights": [Weight()]}, "1 weights for 2 streams"),
    ],
)
def test_settings_that_mean_nothing_raise(change, match):
    settings = {"shards": [np.array([5]), np.array([6])], "batch_size": 2}
    with pytest.raises(ValueError, match=match):
        StreamingOrder(**settings | change)


@pytest.mark.parametrize(
    ("settings", "place", "match"),
    [
        ({}, (-1, World(1, 1)), "epochs are numbered from 0, not -1"),
        ({}, (0, World(2, 2), -4), "sample_in_epoch=-4: expected what was read"),
        ({"num_canonical_nodes": 2}, (0, World(3, 1)), "and 3 nodes: one must be a multiple"),
        (
            {"num_canonical_nodes": 2, "initial_physical_nodes": 2},
            (0, World(3, 1)),
            "the global batch of 3 nodes cannot be shared by the initial_physical_nodes=2",
        ),
        (
            {"batching_method": "device_per_stream", "num_canonical_nodes": 1},
            (0, World(2, 1)),
            "num_canonical_nodes=1 and 2 nodes: device_per_stream needs a multiple",
        ),
        ({"batching_method": "per_stream"}, (0, World(9, 9)), "the 243 samples of a global batch"),
    ],
)
def test_epochs_that_cannot_be_raise(settings, place, match):
    order = StreamingOrder(shards=[np.array([5, 60])], batch_size=3, **settings)
    with pytest.raises(ValueError, match=match):
        order.epoch(*place)


BY_STREAM = ["per_stream", "stratified", "device_per_stream"]


@pytest.mark.parametrize("method", BY_STREAM)
def test_streams_that_fill_no_batch_raise(method):
    """Streaming does so, too, but for "stratified", where its epoch has no batch at all."""
    order = StreamingOrder(
        shards=[np.array([50, 50]), np.array([3])],
        weights=[Weight(), Weight(repeat=2)],
        batch_size=7 if method != "stratified" else 120,
        shuffle=True,
        shuffle_algo="py1s",
        num_canonical_nodes=1,
        batching_method=method,
    )
    with pytest.raises(ValueError, match=r"stream . has (6|100) samples in an epoch, which do not"):
        order.epoch(0, World(1, 2), 0)


@pytest.mark.parametrize("method", BY_STREAM)
def test_blocks_of_streams_that_are_rounded_to_nothing(method):
    order = StreamingOrder(
        shards=[np.array([50, 50]), np.array([10])],
        batch_size=10,
        shuffle=True,
        shuffle_algo="naive",  # which has no use for blocks
        shuffle_block_size=10,
        num_canonical_nodes=1,
        batching_method=method,
    )
    if method != "device_per_stream":
        assert order.epoch(0, World(1, 1)).batches > 0
        return
    with pytest.raises(ValueError, match=r"stream 1 is 0\.0909 of an epoch, .* give blocks of 11"):
        order.epoch(0, World(1, 1))
    assert dataclasses.replace(order, shuffle=False).epoch(0, World(1, 1)).batches > 0
    enough = dataclasses.replace(order, shuffle_block_size=11)
    assert enough.epoch(0, World(1, 1)).batches > 0


@pytest.mark.parametrize("method", BY_STREAM)
@pytest.mark.parametrize("left", [1, 0, -1])
def test_states_near_the_end_of_an_epoch_are_judged_by_its_batches(method, left):
    """Lanes are filled up, so an epoch may have more batches than its samples make."""
    order = StreamingOrder(
        shards=[np.array([1000, 100])],
        batch_size=1,
        shuffle=True,
        shuffle_algo="py1s",
        num_canonical_nodes=64,
        batching_method=method,
    )
    world = World(1, 4)
    batches = order.epoch(0, world).batches
    assert batches * 4 > 1100
    state = STATE | {"epoch": 0, "sample_in_epoch": 4 * (batches - left)}
    resumed, *place = order.resume(state, world)
    assert place == [0, 4 * (batches - left)]
    assert resumed.epoch(place[0], world, place[1]).batches == max(left, 0)


def test_a_resumed_epoch_says_what_it_reads_again():
    order = StreamingOrder(shards=[np.array([90])], batch_size=3, batching_method="per_stream")
    with pytest.warns(UserWarning, match="no multiple of the global batch of 6 samples: 4 of them"):
        epoch = order.epoch(0, World(1, 2), 16)
    assert epoch.ids(0, 0, range(1)).tolist() == [[12, 14, 16]]
    assert epoch.batches == 13


HUGE = {"shards": [np.full(1000, 10**9)], "batch_size": 512, "shuffle": True}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_epoch_draws_nothing_before_it_is_read(algorithm):
    """What 10**12 samples would take cannot go unnoticed; this, and the errors, come at once."""
    order = StreamingOrder(**HUGE | {"shards": [np.full(4, 10**9)]}, shuffle_algo=algorithm)
    assert order.epoch(0, World(8, 8), 2**20).batches == -(-(4 * 10**9 - 2**20) // 2**15)
    with pytest.raises(ValueError, match="of an epoch of 4000000000 samples"):
        order.epoch(0, World(8, 8), 2**32)


def test_an_unshuffled_epoch_takes_no_memory():
    epoch = StreamingOrder(**HUGE | {"shuffle": False}).epoch(0, World(8, 8), 10**9)
    ids = epoch.ids(3, 5, range(7, 9))
    first = (10**9 + 7 * 64 * 512) // 8 + 5 + 3 * 125 * 10**9
    assert ids.shape == (2, 512)
    assert ids[0, :2].tolist() == [first, first + 8]


@pytest.mark.parametrize("lanes", [1, 8, 64])
def test_a_node_takes_no_memory_for_the_samples_of_others(lanes, monkeypatch):
    monkeypatch.setattr("npstream.orders.streaming.order.MOST_IDS", 1 << 16)
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
def test_workers_that_take_turns_read_the_same(batching_method, monkeypatch):
    monkeypatch.setattr("npstream.orders.streaming.order.MOST_IDS", 50)
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
    for _ in range(2):  # before it is read, and after
        copy = pickle.loads(pickle.dumps(epoch))
        np.testing.assert_array_equal(copy.ids(0, 0, range(16)), epoch.ids(0, 0, range(16)))


# Checkpoints.


RUNS = [
    pytest.param(case, run, id=f"{case['name']}-{number}")
    for case in golden("checkpoints")
    for number, run in enumerate([case["save"], *case["resume"]])
]


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_runs_of_streaming_go_on(case, run):
    """From the state that was loaded, each rank reads what it read there, and ends in its state."""
    arguments = dict(run.get("dataset_args", case["dataset_args"]))
    world = World(run["nodes"], run["ranks_per_node"])
    replication = arguments.pop("replication", None)
    ranks, world = world.ranks, world.replicated(replication)
    order = StreamingOrder(
        shards=[np.array(sizes_of(stream["dir"])) for stream in case["streams"]],
        weights=[
            Weight(**{name: stream[name] for name in Weight.__slots__ if name in stream})
            for stream in case["streams"]
        ],
        batch_size=run["batch_size"],
        **arguments,
    )
    number, begun, yielded = -1, 0, [0]
    following = 0, 0
    if "loaded_state" in run:
        order, *following = order.resume(run["loaded_state"], world)
    for each in run["epochs"]:
        number, begun = following
        assert number == each["epoch"]
        epoch = order.epoch(number, world, begun)
        batches = range(epoch.batches)[: each["stopped_after_batches"]]
        yielded = []
        for rank in range(ranks):
            node, own = world.place(rank // (replication or 1))
            got = [ids.tolist() for ids in epoch.read(node, own, batches)]
            want = arrays("checkpoints/ids.npz")[each["ids"][rank]]
            assert got == [[i for i in ids if i >= 0] for ids in want.tolist()]
            yielded.append(sum(map(len, got)))
        following = number + 1, 0
    for rank, state in enumerate(run.get("state_after_per_rank", [run["state_after"]])):
        assert order.state(world, number, begun + yielded[rank] * world.ranks) == state


def sizes_of(directory):
    data = json.loads((GOLDEN / "checkpoints" / "cases.json").read_text("utf-8"))["data"]
    return data[directory]["samples_per_shard"]


def test_ids_of_runs_are_those_of_their_data():
    first_id = 0
    for directory in "abc":
        with npstream.open(GOLDEN / "checkpoints" / "data" / directory) as ds:
            assert ds["id"].load().tolist() == [*range(first_id, first_id + len(ds))]
            assert ds.shards["samples"].tolist() == sizes_of(directory)
            first_id += len(ds)


def order_for_states(**settings):
    return StreamingOrder(shards=[np.full(10, 44)], batch_size=8, shuffle=True, **settings)


STATE = {
    "epoch": 2,
    "sample_in_epoch": 80,
    "num_canonical_nodes": 64,
    "shuffle_seed": 5,
    "initial_physical_nodes": 1,
}


def test_states_come_back():
    world = World(2, 4)
    order, *place = order_for_states(shuffle_seed=7).resume(STATE, world)
    assert order.state(world, *place) == STATE
    assert order_for_states(shuffle_seed=7).state(world) == {
        "epoch": -1,
        "sample_in_epoch": 0,
        "num_canonical_nodes": 2,
        "shuffle_seed": 7,
        "initial_physical_nodes": 2,
    }


def test_a_state_of_anything_else_raises():
    with pytest.raises(ValueError, match="no num_canonical_nodes, shuffle_seed"):
        order_for_states().resume({"epoch": 0, "sample_in_epoch": 3}, World(1, 1))


@pytest.mark.parametrize(
    ("sample_in_epoch", "goes_on"), [(440, (2, 440)), (441, (2, 441)), (448, (3, 0))]
)
def test_a_finished_epoch_may_count_repeated_samples(sample_in_epoch, goes_on):
    """Streaming itself refuses such states, which it saves where lanes are not equal."""
    state = STATE | {"sample_in_epoch": sample_in_epoch}
    _, *place = order_for_states().resume(state, World(1, 1))
    assert tuple(place) == goes_on


def test_a_state_of_a_larger_dataset_raises():
    order, *place = order_for_states().resume(STATE | {"sample_in_epoch": 10_000}, World(1, 1))
    with pytest.raises(ValueError, match="sample_in_epoch=10000: expected what was read"):
        order.epoch(place[0], World(1, 1), place[1])
