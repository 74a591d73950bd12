"""The provenance of steps names the samples of the batches that ranks read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream
from npstream import Shuffle, StreamingShuffle

N = 203
ORDERS = {
    "stored": {},
    "shuffled": {"shuffle": True, "seed": 5},
    "blocks": {"shuffle": Shuffle(block=400, lanes=2), "seed": 1},
    "stratified": {"shuffle": Shuffle(block=400, lanes=2, stratified=True), "seed": 1},
    "epoch_size": {"shuffle": True, "epoch_size": 70},
    "py1e": {"shuffle": "py1e"},
    "py1s": {"shuffle": StreamingShuffle("py1s", num_canonical_nodes=2, shuffle_seed=3)},
}


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    path = tmp_path_factory.mktemp("provenance") / "data"
    npstream.write(path, {"x": np.arange(N)}, shard_samples=20)
    return npstream.open(path)


@pytest.fixture(scope="module")
def mixed(ds):
    return npstream.mix({"a": ds[:60], "b": ds[60:]}, {"a": 1, "b": 2})


def read(view, world, count, state=None, **options):
    """Read up to `count` batches on each rank.

    Return the epoch, the ids of each step by rank, the state, and the iteration of rank 0.
    """
    ranks = [view.iter(rank, world, **options) for rank in range(world)]
    if state is not None:
        for rank in ranks:
            rank.load_state_dict(json.loads(json.dumps(state)))
    record = {}
    epoch = ranks[0].epoch
    iterators = [iter(rank) for rank in ranks]
    for _ in range(count):
        batches = [next(iterator, None) for iterator in iterators]
        if all(batch is None for batch in batches):
            break
        record[len(record)] = [[] if batch is None else batch.ids.tolist() for batch in batches]
    return epoch, record, ranks[0].state_dict(), ranks[0]


def by_rank(provenance, step, world):
    """Return the ids that each rank read in a step."""
    return [
        provenance.ids[(provenance.steps == step) & (provenance.ranks == rank)].tolist()
        for rank in range(world)
    ]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_steps_of_an_epoch(ds, order, world):
    options = {"batch_size": 6, **ORDERS[order]}
    epoch, record, state, iteration = read(ds, world, 5, **options)
    provenance = ds.provenance(state, epoch=epoch, steps=record)
    for step, ids in record.items():
        assert by_rank(provenance, step, world) == ids
    from_iteration = iteration.samples_of(record, epoch=epoch)
    np.testing.assert_array_equal(from_iteration.ids, provenance.ids)
    np.testing.assert_array_equal(from_iteration.ranks, provenance.ranks)


@settings(max_examples=60)
@given(
    st.sampled_from(["stored", "shuffled", "blocks", "epoch_size"]),
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(1, 9), st.integers(0, 12)),
        min_size=1, max_size=6,
    ),
    st.sampled_from(["repeat", "drop", "short"]),
)  # fmt: skip
def test_batch_sizes_and_ranks_that_change(ds, order, loops, last):
    steps, state, expected, worlds = {}, None, {}, {}
    for world, batch_size, count in loops:
        options = {"batch_size": batch_size, "last": last, **ORDERS[order]}
        epoch, record, state, _ = read(ds, world, count, state, **options)
        first = steps.get(epoch, 0)
        for number, ids in record.items():
            expected[epoch, first + number] = ids
            worlds[epoch, first + number] = world
        steps[epoch] = first + len(record)
    state = json.loads(json.dumps(state))
    if not expected:
        return
    for (epoch, step), ids in expected.items():
        provenance = ds.provenance(state, epoch=epoch, steps=step)
        assert by_rank(provenance, step, worlds[epoch, step]) == ids
        assert (ds["x"][provenance.ids] == provenance.ids).all()


def test_steps_before_and_after_batches_were_skipped(ds):
    batches = ds.iter(0, 1, batch_size=10, shuffle=True)
    record = []
    for batch in batches:
        record.append(batch.ids.tolist())
        if len(record) == 3:
            batches.skip(5, 8)
        if len(record) == 9:
            break
    provenance = ds.provenance(batches.state_dict(), steps=range(9))
    assert [by_rank(provenance, step, 1)[0] for step in range(9)] == record


def test_an_epoch_that_is_read_again_with_other_batches(ds):
    batches = ds.iter(0, 1, batch_size=10)
    batches.set_epoch(0)
    assert len(list(batches)) == 21
    again = ds.iter(0, 1, batch_size=50)
    again.load_state_dict(batches.state_dict())
    again.set_epoch(0)
    first = next(iter(again))
    np.testing.assert_array_equal(ds.provenance(again.state_dict(), steps=0).ids, first.ids)


@pytest.mark.parametrize("batching", ["random", "stratified", "per_stream", "device_per_stream"])
@pytest.mark.parametrize("world", [1, 2])
def test_steps_of_a_mixture(mixed, batching, world):
    options = {"batch_size": 4, "batching": batching, "shuffle": True, "seed": 2}
    epoch, record, state, _ = read(mixed, world, 6, **options)
    _, later_record, state, _ = read(mixed, world, 6, state, **options)
    record |= {6 + number: ids for number, ids in later_record.items()}
    provenance = mixed.provenance(state, epoch=epoch, steps=range(12))
    for step, ids in record.items():
        assert by_rank(provenance, step, world) == ids
    assert provenance.sources.tolist() == [
        "a" if row < 60 else "b" for row in provenance.ids.tolist()
    ]


def test_steps_of_a_mixture_with_batch_sizes_by_source(mixed):
    options = {"batch_size": {"a": 3, "b": 5}, "batching": "per_stream", "shuffle": True}
    epoch, record, state, _ = read(mixed, 2, 6, **options)
    provenance = mixed.provenance(state, epoch=epoch, steps=range(6))
    for step, ids in record.items():
        assert by_rank(provenance, step, 2) == ids


def test_streaming_orders_of_a_mixture(ds):
    mixed = npstream.mix({"a": ds, "b": ds})
    shuffle = StreamingShuffle("py1e", proportion={"a": 0.25, "b": 0.75})
    epoch, record, state, _ = read(mixed, 2, 6, batch_size=5, shuffle=shuffle)
    provenance = mixed.provenance(state, epoch=epoch, steps=range(6))
    for step, ids in record.items():
        assert by_rank(provenance, step, 2) == ids


def test_a_view_names_the_shards_of_the_dataset(ds):
    view = ds[::-2]
    batches = view.iter(0, 1, batch_size=7, shuffle=True)
    first = next(iter(batches))
    provenance = view.provenance(batches.state_dict(), steps=0)
    np.testing.assert_array_equal(provenance.ids, first.ids)
    np.testing.assert_array_equal(provenance.shards * 20 + provenance.rows, first.ids)
    assert provenance.files.tolist() == [f"shard.{shard:05}.mds" for shard in provenance.shards]
    assert not any(provenance.sources)


def test_a_loader_with_workers(ds):
    pytest.importorskip("torch", reason="needs torch")
    import npstream.torch

    loader = npstream.torch.DataLoader(
        ds.iter(0, 1, batch_size=9, shuffle=True, seed=4), num_workers=2
    )
    record = [batch["x"].tolist() for _, batch in zip(range(8), loader, strict=False)]
    provenance = ds.provenance(loader.state_dict(), epoch=0, steps=range(8))
    assert [by_rank(provenance, step, 1)[0] for step in range(8)] == record


def test_future_steps_are_those_that_the_run_will_read(ds):
    batches = ds.iter(0, 1, batch_size=10, shuffle=True)
    expected = batches.samples_of(range(21)).ids
    np.testing.assert_array_equal(np.concatenate([batch.ids for batch in batches]), expected)


def test_repeated_samples_are_marked(ds):
    batches = ds.iter(0, 1, batch_size=10)
    *_, last = batches
    provenance = batches.samples_of(20, epoch=0)
    np.testing.assert_array_equal(provenance.repeated, last.repeated)


def test_the_repr_and_the_dataframe_list_the_samples(ds):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    batches = ds.iter(0, 1, batch_size=3)
    provenance = batches.samples_of([0, 2])
    assert repr(provenance).splitlines()[:3] == [
        "<Provenance: 6 samples>",
        "  steps  ranks  ids  repeated  shards  rows            files",
        "      0      0    0     False       0     0  shard.00000.mds",
    ]
    table = provenance.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table["ids"].tolist() == [0, 1, 2, 6, 7, 8]


def test_steps_that_do_not_exist_raise(ds):
    batches = ds.iter(0, 1, batch_size=10)
    with pytest.raises(IndexError, match="step 21: epoch 0 has 21 steps, counted from 0"):
        batches.samples_of(21)
    with pytest.raises(IndexError, match="step -1: steps of an epoch are counted from 0"):
        batches.samples_of(-1)
    with pytest.raises(TypeError, match="a step is True"):
        batches.samples_of([True])
    with pytest.raises(TypeError, match="steps='3'"):
        batches.samples_of("3")


def test_a_state_without_steps_has_only_later_steps(ds):
    batches = ds.iter(0, 1, batch_size=10, shuffle=True)
    _, second = [batch.ids for _, batch in zip(range(2), batches, strict=False)]
    old = batches.state_dict()
    del old["steps"]
    with pytest.raises(ValueError, match=r"the state has no 'steps'.*older release"):
        ds.provenance(old, steps=0)
    again = ds.iter(0, 1, batch_size=10, shuffle=True)
    again.load_state_dict(old)
    np.testing.assert_array_equal(again.samples_of(1).ids, second)
    third = next(iter(again))
    np.testing.assert_array_equal(again.samples_of(2, epoch=0).ids, third.ids)
    with pytest.raises(ValueError, match=r"step 0 of epoch 0 is unknown.*from step 2 of epoch 0"):
        again.samples_of(0, epoch=0)


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ("x", "steps is 'x'"),
        ([1], "steps has 1"),
        ([{"epoch": 0}], "steps has"),
        ({"global_batch": 0}, "global_batch=0"),
        ({"last": "x"}, "last='x'"),
        ({"position": -1}, "position=-1"),
    ],
)
def test_damaged_steps_raise(ds, steps, match):
    """The argument `steps` replaces the steps, or it is a dict that changes the first one."""
    batches = ds.iter(0, 1, batch_size=10)
    next(iter(batches))
    state = batches.state_dict()
    if isinstance(steps, dict):
        steps = [state["steps"][0] | steps]
    with pytest.raises(ValueError, match=f"this state is damaged: {match}"):
        ds.iter(0, 1, batch_size=10).load_state_dict({**state, "steps": steps})


def test_a_state_of_another_view_raises(ds):
    batches = ds.iter(0, 1, batch_size=10)
    next(iter(batches))
    with pytest.raises(ValueError, match="the state is of a view of"):
        ds[1:].provenance(batches.state_dict(), steps=0)
