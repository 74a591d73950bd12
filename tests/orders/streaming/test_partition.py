"""Samples are divided among nodes, ranks and workers like in the real package."""

from __future__ import annotations

import numpy as np
import pytest
from streaming_reference import arrange_slots, expected, golden_cases, run_golden

from npstream.orders.streaming.partition import World, make_partition


@pytest.mark.usefixtures("kernel_mode")
@golden_cases("partition")
def test_golden_partition(case):
    params = case["params"]
    world = World(params["num_physical_nodes"], params["ranks_per_node"])
    names = ("drop_first", "initial_physical_nodes")
    partition = run_golden(
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
    got = arrange_slots(
        partition.positions(slots), world, params["workers_per_rank"], params["batch_size"]
    )
    np.testing.assert_array_equal(got, expected(case, "ids"))


@golden_cases("world")
def test_golden_world(case):
    params, workers = case["params"], case["params"]["workers_per_rank"]
    full_world = World(params["num_nodes"], params["ranks_per_node"])
    world = run_golden(case, lambda: full_world.merge_replicas(params["replication"]))
    if world is None:
        return
    resolved = case["resolved"]
    assert (world.nodes, world.ranks_per_node) == (
        resolved["num_nodes"],
        resolved["ranks_per_node"],
    )
    assert world.ranks == resolved["num_ranks"]
    slots = []
    for number in range(full_world.ranks * workers):
        rank, worker = number // workers // params["replication"], number % workers
        slots.append((*world.node_and_rank(rank), worker, rank, rank * workers + worker))
    np.testing.assert_array_equal(slots, expected(case, "slots"))
