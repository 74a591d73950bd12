"""Partition against lists: what is dealt to a rank is what slicing a list of positions gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npstream.orders.partition import LAST, Partition

settings = st.fixed_dictionaries(
    {
        "size": st.integers(0, 60),
        "world": st.integers(1, 6),
        "batch_size": st.integers(1, 9),
        "last": st.sampled_from(LAST),
    }
)


def dealt(size: int, world: int, batch_size: int, last: str) -> list[list[list[int]]]:
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
    for rank, batches in enumerate(dealt(**settings)):
        part = Partition(rank=rank, **settings)
        found = [part.positions(range(t, t + 1)).tolist() for t in range(part.batches)]
        assert found == batches
        assert part.samples == sum(map(len, batches))


@given(settings, st.integers(1, 5))
def test_several_batches_are_looked_up_at_once(settings, step):
    for rank, batches in enumerate(dealt(**settings)):
        part = Partition(rank=rank, **settings)
        for first in range(step):
            mine = range(first, part.batches, step)
            positions = part.positions(mine)
            assert positions.dtype == np.int64
            assert positions.tolist() == [p for t in mine for p in batches[t]]


@given(settings, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_a_global_batch_does_not_depend_on_the_ranks(settings, world):
    """Its samples are a run of positions, however many ranks share it."""

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
def test_every_rank_has_as_many_samples_unless_the_last_batch_is_short(settings):
    parts = [Partition(rank=rank, **settings) for rank in range(settings["world"])]
    if settings["last"] == "short":
        assert sum(part.samples for part in parts) == settings["size"]
        assert max(part.samples for part in parts) - min(part.samples for part in parts) <= 1
    else:
        assert len({part.samples for part in parts}) == 1
        assert {part.samples % settings["batch_size"] for part in parts} == {0}


@pytest.mark.parametrize("last", LAST)
def test_no_samples_make_no_batches(last):
    part = Partition(0, 1, 2, 4, last)
    assert (part.batches, part.samples) == (0, 0)
    assert part.positions(range(0)).size == 0


def test_a_view_smaller_than_the_ranks_is_repeated_over_and_over():
    parts = [Partition(2, rank, 5, 1) for rank in range(5)]
    assert [(part.positions(range(1)) % 2).tolist() for part in parts] == [[0], [1], [0], [1], [0]]


def test_positions_beyond_int32():
    part = Partition(10**15, 3, 1000, 7, "short")
    last = range(part.batches - 1, part.batches)
    assert part.positions(last)[-1] == 10**15 - 1000 + 3
