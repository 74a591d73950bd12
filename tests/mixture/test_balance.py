"""`balance=` of mixtures: ranks divide the same global batches by costs."""

from __future__ import annotations

import numpy as np
import pytest

import npstream

GLOBAL_BATCH = 24
SIZES = {"a": 200, "b": 120, "c": 64}
LENGTHS = {
    name: np.ceil(np.random.default_rng(n).lognormal(5, 0.8, n)).astype(np.int32)
    for name, n in SIZES.items()
}
COSTS = np.concatenate([*LENGTHS.values()])
BATCHINGS = ["random", "stratified", "per_stream"]


def open_sources(path):
    sources = {}
    for name, lengths in LENGTHS.items():
        columns = {"length": lengths, "number": np.arange(len(lengths))}
        npstream.write(path / name, columns, shard_size="512B")
        sources[name] = npstream.open(path / name)
    return sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return open_sources(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def mix(sources):
    return npstream.mix(sources)


def read(mix, world=1, state=None, **settings):
    """Return the ids of each batch on each rank, and the state before each batch."""
    settings = {"global_batch_size": GLOBAL_BATCH, "shuffle": True} | settings
    batches, states = [], []
    ranks = [mix.iter(rank, world, **settings) for rank in range(world)]
    for rank in ranks:
        if state is not None:
            rank.load_state_dict(state)
    states.append(ranks[0].state_dict())
    for parts in zip(*ranks, strict=True):
        batches.append([part.ids for part in parts])
        states.append(ranks[0].state_dict())
    return batches, states


def global_batches(batches):
    return [sorted(np.concatenate(parts).tolist()) for parts in batches]


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_balance_keeps_the_global_batches_for_any_ranks_and_after_resume(mix, batching, shuffle):
    settings = {"batching": batching, "shuffle": shuffle, "seed": 5}
    expected = global_batches(read(mix, **settings)[0])
    batches, states = read(mix, balance="length", **settings)
    assert global_batches(batches) == expected
    for world in (2, 3, 8):
        batches, _ = read(mix, world, balance="length", **settings)
        assert global_batches(batches) == expected
        assert {len(ids) for parts in batches for ids in parts} == {GLOBAL_BATCH // world}
        for step in (1, 7, len(expected) - 1):
            rest, _ = read(mix, world, states[step], balance="length", **settings)
            assert global_batches(rest) == expected[step:]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_ranks_have_nearly_equal_costs(mix, batching):
    def largest_costs(**settings):
        """Return the largest cost of a rank, divided by the mean cost, for each global batch."""
        batches, _ = read(mix, 4, batching=batching, **settings)
        costs = np.array([[COSTS[ids].sum() for ids in parts] for parts in batches])
        return costs.max(axis=1) / costs.mean(axis=1)

    # The median, because a sample can cost more than the mean of a rank.
    assert np.median(largest_costs(balance=COSTS)) < 1.02
    assert np.median(largest_costs()) > 1.2


def test_balance_keeps_the_global_batches_of_each_epoch_and_the_last_batch(mix):
    for last in ("repeat", "drop", "short"):
        settings = {"global_batch_size": 32, "last": last, "shuffle": True, "epoch_size": 100}
        for epoch in range(2):
            expected = global_batches(read(mix, 4, epoch=epoch, **settings)[0])
            batches, _ = read(mix, 4, epoch=epoch, balance="length", **settings)
            assert global_batches(batches) == expected


def test_samples_of_a_step_have_their_ranks(mix):
    settings = {"global_batch_size": GLOBAL_BATCH, "shuffle": True, "balance": "length"}
    ranks = [mix.iter(rank, 3, **settings) for rank in range(3)]
    step_4_ids = [[*rank][4].ids for rank in ranks]
    samples = ranks[0].samples_of(4, epoch=0)
    for rank, ids in enumerate(step_4_ids):
        np.testing.assert_array_equal(samples.ids[samples.ranks == rank], ids)
    with pytest.raises(ValueError, match=r"the run had balance=, whose values the state does not"):
        mix.provenance(ranks[0].state_dict(), steps=1)


def test_a_state_is_refused_with_other_costs(mix):
    def iteration(**balance):
        return mix.iter(0, 1, batch_size=GLOBAL_BATCH, **balance)

    state = iteration(balance="length").state_dict()
    iteration(balance=COSTS).load_state_dict(state)
    for balance in ({}, {"balance": COSTS + 1}):
        with pytest.raises(ValueError, match="the state is of an iteration with balance="):
            iteration(**balance).load_state_dict(state)
    with pytest.raises(ValueError, match="with no balance=; this iteration has balance= of"):
        iteration(balance="length").load_state_dict(iteration().state_dict())
    assert "balance" not in iteration().state_dict()


def test_a_run_continues_with_another_mixture_and_its_costs(mix, sources):
    settings = {"batch_size": GLOBAL_BATCH, "shuffle": True}
    batches = mix.iter(0, 1, balance="length", **settings)
    iterator = iter(batches)
    for _ in range(3):
        next(iterator)
    other = npstream.mix({"a": sources["a"], "b": sources["b"]})
    state = other.continuing(batches.state_dict())
    plain = mix.iter(0, 1, **settings)
    iterator = iter(plain)
    for _ in range(3):
        next(iterator)
    expected, _ = read(other, 1, other.continuing(plain.state_dict()))
    rest, states = read(other, 2, state, balance="length")
    assert global_batches(rest) == global_batches(expected)
    # From now on, the state has the costs of the new mixture.
    with pytest.raises(ValueError, match="the state is of an iteration with balance="):
        other.iter(0, 1, balance=np.arange(len(other)), **settings).load_state_dict(states[1])
    with pytest.raises(ValueError, match="this iteration has no balance="):
        other.iter(0, 1, **settings).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batching": "device_per_stream"}, "each rank's batch is of one source"),
        ({"batching": "per_stream", "batch_size": {"a": 2, "b": 3, "c": 4}}, "differ by source"),
        ({"buckets": 4}, "buckets=4 is not for mixtures"),
        ({"valid": np.ones(384, bool)}, "valid= is not for mixtures"),
        ({"batch_size": None}, "give batch_size or global_batch_size"),
        ({"balance": COSTS[1:]}, r"has the shape \(383,\), and the view has the shape \(384,\)"),
        ({"shuffle": "py1e"}, "orders of Streaming leave no rows out and do not balance"),
    ],
)
def test_other_settings_are_refused(mix, settings, message):
    with pytest.raises(ValueError, match=message):
        mix.iter(0, 1, **{"batch_size": 8, "balance": "length"} | settings)
