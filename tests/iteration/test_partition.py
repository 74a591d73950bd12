"""A partition gives each rank the positions that slices of a list of all positions have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npstream.iteration.partition import (
    LAST_BATCH_MODES,
    LOOKUP_SAMPLES,
    MAX_LOOKUP_SAMPLES,
    Partition,
    merge_gaps,
    to_epoch_positions,
    to_unskipped_position,
)

settings = st.fixed_dictionaries(
    {
        "size": st.integers(0, 60),
        "world": st.integers(1, 6),
        "batch_size": st.integers(1, 9),
        "last": st.sampled_from(LAST_BATCH_MODES),
    }
)


def batches_by_rank(size: int, world: int, batch_size: int, last: str) -> list[list[list[int]]]:
    """Return the positions in each batch of each rank."""
    whole = world * batch_size
    order = list(range(size))
    if last == "drop":
        order = order[: size - size % whole]
    while last == "repeat" and len(order) % whole:
        order.append(len(order))
    steps = [order[start : start + whole] for start in range(0, len(order), whole)]
    return [[step[rank::world] for step in steps if step[rank::world]] for rank in range(world)]


@given(settings)
def test_batches_are_slices_of_global_batches(settings):
    for rank, batches in enumerate(batches_by_rank(**settings)):
        part = Partition(rank=rank, **settings)
        positions = [part.positions(range(t, t + 1)).tolist() for t in range(part.batches)]
        assert positions == batches
        assert part.samples == sum(map(len, batches))


@given(settings, st.integers(1, 5))
def test_several_batches_are_looked_up_together(settings, step):
    for rank, batches in enumerate(batches_by_rank(**settings)):
        part = Partition(rank=rank, **settings)
        for first in range(step):
            numbers = range(first, part.batches, step)
            positions = part.positions(numbers)
            assert positions.dtype == np.int64
            assert positions.tolist() == [p for t in numbers for p in batches[t]]


@given(settings, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_a_global_batch_does_not_depend_on_the_ranks(settings, world):
    """Its samples are consecutive positions, for any number of ranks."""

    def global_batches(world: int) -> list[list[int]]:
        parts = [
            Partition(settings["size"], rank, world, 12 // world, settings["last"])
            for rank in range(world)
        ]
        steps = [range(t, t + 1) for t in range(max(part.batches for part in parts))]
        return [
            sorted(p for part in parts if step[0] < part.batches for p in part.positions(step))
            for step in steps
        ]

    assert global_batches(world) == global_batches(1)


@given(settings)
def test_all_ranks_have_the_same_number_of_samples_unless_last_is_short(settings):
    parts = [Partition(rank=rank, **settings) for rank in range(settings["world"])]
    if settings["last"] == "short":
        assert sum(part.samples for part in parts) == settings["size"]
        assert max(part.samples for part in parts) - min(part.samples for part in parts) <= 1
    else:
        assert len({part.samples for part in parts}) == 1
        assert {part.samples % settings["batch_size"] for part in parts} == {0}


@pytest.mark.parametrize("last", LAST_BATCH_MODES)
def test_no_samples_make_no_batches(last):
    part = Partition(0, 1, 2, 4, last)
    assert (part.batches, part.samples) == (0, 0)
    assert part.positions(range(0)).size == 0


def test_a_view_smaller_than_the_world_is_repeated_several_times():
    parts = [Partition(2, rank, 5, 1) for rank in range(5)]
    assert [(part.positions(range(1)) % 2).tolist() for part in parts] == [[0], [1], [0], [1], [0]]


def test_positions_beyond_int32():
    part = Partition(10**15, 3, 1000, 7, "short")
    last = range(part.batches - 1, part.batches)
    assert part.positions(last)[-1] == 10**15 - 1000 + 3


# Nodes, starts and gaps


@given(
    settings, st.sampled_from([(1, 1), (2, 1), (2, 2), (6, 3), (4, 2), (12, 4), (12, 12)]),
    st.integers(0, 30),
)  # fmt: skip
def test_a_global_batch_does_not_depend_on_the_nodes(settings, ranks, start):
    """From any start, the rest of an epoch has the same global batches."""
    world, nodes = ranks
    size, last = settings["size"], settings["last"]
    alone = Partition(size, 0, 1, 12, last, start=start)
    parts = [Partition(size, rank, world, 12 // world, last, nodes, start) for rank in range(world)]
    for t in range(alone.batches):
        shared = [part.positions(range(t, t + 1)) for part in parts if t < part.batches]
        assert np.sort(np.concatenate(shared)).tolist() == alone.positions(range(t, t + 1)).tolist()
    assert max(part.batches for part in parts) == alone.batches
    assert sum(part.samples for part in parts) == alone.samples


@pytest.mark.parametrize("per_node", [1, 8])
def test_a_node_reads_its_own_lanes(per_node):
    nodes, lanes = 4, 24
    world = nodes * per_node
    read = []
    for node in range(nodes):
        parts = [
            Partition(9600, rank, world, 5, nodes=nodes)
            for rank in range(node * per_node, (node + 1) * per_node)
        ]
        read.append({p % lanes for part in parts for p in part.positions(range(part.batches))})
    assert [len(node_lanes) for node_lanes in read] == [lanes // nodes] * nodes
    assert set.union(*read) == set(range(lanes))


def test_on_a_node_ranks_take_positions_in_turn():
    parts = [Partition(24, rank, 4, 3, nodes=2) for rank in range(4)]
    assert [part.positions(range(1)).tolist() for part in parts] == [
        [0, 4, 8], [2, 6, 10], [1, 5, 9], [3, 7, 11]
    ]  # fmt: skip


gaps = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5)


@given(gaps)
def test_gaps_are_removed_from_positions(gaps):
    merged = merge_gaps(gaps)
    skipped = {p for start, stop in gaps for p in range(start, stop)}
    assert [p for start, stop in merged for p in range(start, stop)] == sorted(skipped)
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(merged))
    remaining = [p for p in range(50) if p not in skipped]
    assert to_epoch_positions(np.arange(len(remaining)), merged).tolist() == remaining
    assert [to_unskipped_position(p, merged) for p in range(50)] == [
        sum(q < p for q in remaining) for p in range(50)
    ]


@given(settings, st.integers(1, 4))
def test_units_are_divided_like_single_positions(settings, unit):
    """Each batch of a rank is one unit."""
    for rank in range(settings["world"]):
        single = Partition(rank=rank, **{**settings, "batch_size": 1})
        part = Partition(
            settings["size"] * unit, rank, settings["world"], unit, settings["last"], unit=unit
        )
        assert (part.batches, part.samples) == (single.batches, single.samples * unit)
        assert (part.end, part.unrepeated_end) == (single.end * unit, single.unrepeated_end * unit)
        numbers = range(part.batches)
        expected = [p * unit + k for p in single.positions(numbers).tolist() for k in range(unit)]
        assert part.positions(numbers).tolist() == expected


@given(settings, st.integers(0, 20))
def test_lookup_handles_gaps_repeats_and_missing_samples(settings, repeat_start):
    """Position p has row ``p + 1000``; every fifth position has none."""
    repeat_start = min(repeat_start, max(settings["size"] - 1, 0))
    gaps = ((2, 4), (7, 20))
    # The gaps have 15 positions.
    whole = [p for p in range(settings["size"] + 15) if not (2 <= p < 4 or 7 <= p < 20)]

    def rows(positions):
        return np.where(positions % 5 == 0, -1, positions + 1000)

    for rank in range(settings["world"]):
        part = Partition(rank=rank, **settings, gaps=gaps, rows=rows, repeat_start=repeat_start)
        expected = []
        for position in part.positions(range(part.batches)).tolist():
            repeated = position >= part.size
            if repeated:
                position = repeat_start + (position - part.size) % (part.size - repeat_start)
            if whole[position] % 5:
                expected.append((whole[position] + 1000, repeated))
        columns = part.lookup(range(part.batches))
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_lookups_of_a_long_loop_grow():
    part = Partition(10**6, 0, 1, 256, grows_lookups=True)
    done, looked_up = 0, []
    while done < 1000:
        looked_up.append(part.lookup_batches(1, done))
        done += looked_up[-1]
    assert looked_up[:10] == [LOOKUP_SAMPLES // 256] * 10
    assert looked_up == sorted(looked_up)
    assert looked_up[-1] == MAX_LOOKUP_SAMPLES // 256
    assert Partition(10**6, 0, 1, 256).lookup_batches(1, 1000) == LOOKUP_SAMPLES // 256


def test_samples_and_span_limit_the_batches_of_a_lookup():
    part = Partition(10**6, 0, 4, 8, lookup_samples=100, lookup_span=800)
    # 100 samples are 12 batches of 8. 800 positions are 25 global batches of 32.
    assert [part.lookup_batches(step) for step in (1, 2, 3, 9)] == [12, 12, 8, 2]
    assert part.lookup_batches(1000) == 1
    assert Partition(10**6, 0, 4, 8, lookup_samples=1).lookup_batches(1) == 1
