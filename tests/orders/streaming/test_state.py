"""Checkpoints of the real package can be resumed; other states raise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from streaming_reference import BY_STREAM, GOLDEN, arrays, golden

import npstream
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.partition import World
from npstream.orders.streaming.sampling import Weight

# Whole epochs


@pytest.mark.parametrize("method", BY_STREAM)
@pytest.mark.parametrize("remaining", [1, 0, -1])
def test_states_near_the_end_of_an_epoch_resume_by_their_batches(method, remaining):
    """Lanes are filled up, so an epoch can have more batches than its samples fill."""
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
    assert batches * 4 > 1000 + 100
    state = STATE | {"epoch": 0, "sample_in_epoch": 4 * (batches - remaining)}
    resumed_order, *place = order.resume(state, world)
    assert place == [0, 4 * (batches - remaining)]
    assert resumed_order.epoch(place[0], world, place[1]).batches == max(remaining, 0)


def test_a_resumed_epoch_warns_of_repeated_samples():
    order = StreamingOrder(shards=[np.array([90])], batch_size=3, batching_method="per_stream")
    with pytest.warns(
        UserWarning, match="not a multiple of the global batch of 6 samples: 4 samples"
    ):
        epoch = order.epoch(0, World(1, 2), 16)
    assert epoch.ids(0, 0, range(1)).tolist() == [[12, 14, 16]]  # 12 to 15 are repeated
    assert epoch.batches == (90 - 12) // 6


# Checkpoints


RUNS = [
    pytest.param(case, run, id=f"{case['name']}-{number}")
    for case in golden("checkpoints")
    for number, run in enumerate([case["save"], *case["resume"]])
]


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_runs_of_streaming_resume(case, run):
    """After a loaded state, each rank reads and ends as in the real package."""
    arguments = dict(run.get("dataset_args", case["dataset_args"]))
    world = World(run["nodes"], run["ranks_per_node"])
    replication = arguments.pop("replication", None)
    ranks, world = world.ranks, world.merge_replicas(replication)
    order = StreamingOrder(
        shards=[np.array(sizes_of(stream["dir"])) for stream in case["streams"]],
        weights=[
            Weight(**{name: stream[name] for name in Weight.__slots__ if name in stream})
            for stream in case["streams"]
        ],
        batch_size=run["batch_size"],
        **arguments,
    )
    number, first_sample, rank_samples = -1, 0, [0]
    next_place = 0, 0
    if "loaded_state" in run:
        order, *next_place = order.resume(run["loaded_state"], world)
    for each in run["epochs"]:
        number, first_sample = next_place
        assert number == each["epoch"]
        epoch = order.epoch(number, world, first_sample)
        batches = range(epoch.batches)[: each["stopped_after_batches"]]
        rank_samples = []
        for rank in range(ranks):
            node, node_rank = world.node_and_rank(rank // (replication or 1))
            got = [ids.tolist() for ids in epoch.read(node, node_rank, batches)]
            want = arrays("checkpoints/ids.npz")[each["ids"][rank]]
            assert got == [[i for i in ids if i >= 0] for ids in want.tolist()]
            rank_samples.append(sum(map(len, got)))
        next_place = number + 1, 0
    for rank, state in enumerate(run.get("state_after_per_rank", [run["state_after"]])):
        assert order.state(world, number, first_sample + rank_samples[rank] * world.ranks) == state


def sizes_of(directory):
    data = json.loads((GOLDEN / "checkpoints" / "cases.json").read_text("utf-8"))["data"]
    return data[directory]["samples_per_shard"]


def test_ids_of_runs_match_their_data():
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


def test_states_round_trip():
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


def test_a_state_without_the_keys_of_streaming_raises():
    with pytest.raises(ValueError, match="num_canonical_nodes, shuffle_seed missing"):
        order_for_states().resume({"epoch": 0, "sample_in_epoch": 3}, World(1, 1))


@pytest.mark.parametrize(
    ("sample_in_epoch", "want"), [(440, (2, 440)), (441, (2, 441)), (448, (3, 0))]
)
def test_a_state_from_the_end_of_an_epoch_can_count_repeated_samples(sample_in_epoch, want):
    """Streaming saves such states if lanes are unequal, but cannot load them."""
    state = STATE | {"sample_in_epoch": sample_in_epoch}
    _, *place = order_for_states().resume(state, World(1, 1))
    assert tuple(place) == want


def test_a_state_of_a_larger_dataset_raises():
    order, *place = order_for_states().resume(STATE | {"sample_in_epoch": 10_000}, World(1, 1))
    with pytest.raises(ValueError, match="sample_in_epoch=10000: expected a number of samples"):
        order.epoch(place[0], World(1, 1), place[1])
