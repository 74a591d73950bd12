"""Streaming's checkpoints resume with npstream's classes, whose states have the same content."""

from __future__ import annotations

from collections import UserDict

import pytest
from streaming_reference import GOLDEN, arrays, golden

import torch
from npstream.orders.streaming.partition import World
from npstream.streaming import Stream, StreamingDataLoader, StreamingDataset
from npstream.streaming.position import detect_world

CHECKPOINTS = GOLDEN / "checkpoints" / "data"

RUNS = [
    pytest.param(case, run, id=f"{case['name']}-{number}")
    for case in golden("checkpoints")
    for number, run in enumerate([case["save"], *case["resume"]])
]


def collate(samples):
    """Return a batch of one column. Streaming's loader counts samples in the first column."""
    return [[int(sample["id"]) for sample in samples]]


def make_loader(case, run, workers, **options):
    streams = []
    for stream in case["streams"]:
        weights = {name: weight for name, weight in stream.items() if name != "dir"}
        streams.append(Stream(local=str(CHECKPOINTS / stream["dir"]), **weights))
    arguments = run.get("dataset_args", case["dataset_args"])
    ds = StreamingDataset(streams=streams, batch_size=run["batch_size"], **arguments)
    size = run["batch_size"]
    return StreamingDataLoader(
        ds, batch_size=size, num_workers=workers, collate_fn=collate, **options
    )


def read(loader, batches=None):
    """Read an epoch, or leave it after a number of batches."""
    result = []
    for (ids,) in loader:
        result.append(ids)
        if len(result) == batches:
            break
    return result


def expected(epoch, rank):
    """Return the batches that Streaming read, without the -1 that pad short batches."""
    want = arrays("checkpoints/ids.npz")[epoch["ids"][rank]].tolist()
    batches = [[number for number in ids if number >= 0] for ids in want]
    return [batch for batch in batches if batch]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("case", "run"), RUNS)
def test_runs_of_streaming(case, run, set_rank):
    """Each rank reads the batches that it read with Streaming, and then has the same state."""
    world = run["nodes"] * run["ranks_per_node"]
    states = run.get("state_after_per_rank", [run["state_after"]] * world)
    for rank in range(world):
        set_rank(rank, world, run["ranks_per_node"])
        loader = make_loader(case, run, run["num_workers"])
        assert len(loader.dataset) == run["len_dataset"]
        assert loader.dataset.epoch_size == run["epoch_size"]
        for _ in range(2 if run.get("load_twice") else 1):
            if "loaded_state" in run:
                loader.load_state_dict(run["loaded_state"])
        for epoch in run["epochs"]:
            assert loader.dataset.next_epoch == epoch["epoch"]
            assert read(loader, epoch["stopped_after_batches"]) == expected(epoch, rank)
        assert loader.state_dict() == states[rank]


PY1E = next(case for case in golden("checkpoints") if case["name"] == "py1e_w2")


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"workers": 3},
        {"workers": 2, "persistent_workers": True},
        {"workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
    ],
)
def test_workers_read_the_same_epochs(options):
    """The number of workers and their lifetime change nothing, even after a state is loaded."""
    run = PY1E["save"]
    loader = make_loader(PY1E, run, **options)
    first, second = (expected(epoch, 0) for epoch in run["epochs"])
    assert read(loader) == first
    assert read(loader, len(second)) == second
    state = loader.state_dict()
    assert state == run["state_after"]
    third = read(loader, 2)
    assert loader.dataset.next_epoch == 3
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    resumed_epochs = PY1E["resume"][0]["epochs"]
    assert read(loader) == expected(resumed_epochs[0], 0)
    # The epoch after the resumed one is the third, which was also read before the state was loaded.
    assert read(loader, 2) == expected(resumed_epochs[1], 0)[:2] == third


def test_settings_of_a_loaded_state_win():
    case = next(case for case in golden("checkpoints") if case["name"] == "seed_from_state")
    run = case["resume"][0]
    loader = make_loader(case, run, 0)
    loader.load_state_dict(run["loaded_state"])
    read(loader, 1)
    for name in ("num_canonical_nodes", "shuffle_seed", "initial_physical_nodes"):
        assert getattr(loader.dataset, name) == run["loaded_state"][name]


def test_an_earlier_state_can_be_loaded(numbers):
    """Streaming ignores a state whose epoch is earlier than the dataset's next epoch."""
    ds = StreamingDataset(local=numbers, batch_size=10, shuffle=True)
    first = [int(sample["id"]) for sample in ds]
    state = ds.state_dict(40, from_beginning=True) | {"epoch": 0}
    for _ in range(3):
        list(ds)
    ds.load_state_dict(state)
    assert [int(sample["id"]) for sample in ds] == first[40:]


def test_states_count_from_the_beginning_or_from_a_loaded_state(numbers):
    ds = StreamingDataset(local=numbers, batch_size=10)
    assert ds.state_dict(0, False)["epoch"] == -1
    next(iter(ds))
    state = ds.state_dict(num_samples=30, from_beginning=False)
    assert (state["epoch"], state["sample_in_epoch"]) == (0, 30)
    ds.load_state_dict(state)
    next(iter(ds))
    assert ds.state_dict(20, from_beginning=False)["sample_in_epoch"] == 50
    assert ds.state_dict(20, from_beginning=True)["sample_in_epoch"] == 20
    next(iter(ds))
    assert ds.state_dict(20, from_beginning=False)["sample_in_epoch"] == 20


def test_an_incomplete_state_raises(numbers):
    with pytest.raises(ValueError, match="not a state of Streaming: sample_in_epoch"):
        StreamingDataset(local=numbers, batch_size=10).load_state_dict({"epoch": 1})


@pytest.mark.parametrize(
    ("per_node", "replication", "world", "rank"),
    [
        (None, None, World(8, 1), 5),
        (4, None, World(2, 4), 5),
        (4, 2, World(1, 4), 2),
        (8, 4, World(1, 2), 1),
    ],
)
def test_ranks(set_rank, per_node, replication, world, rank):
    set_rank(5, 8, per_node)
    assert detect_world(replication) == (world, rank)


# The DataLoader


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(3, 2), 3),
        ({"a": [1, 2], "b": 3}, 2),
        (UserDict(a=torch.zeros(5)), 5),
        ((torch.zeros(4), [1]), 4),
        ([[1, 2, 3]], 3),
    ],
)
def test_samples_of_batches_are_counted(batch, count, numbers):
    """As in Streaming: by a tensor, by a mapping's first value, or by a sequence's first item."""
    loader = StreamingDataLoader(
        StreamingDataset(local=numbers, batch_size=10), batch_size=10, collate_fn=lambda _: batch
    )
    batches = iter(loader)
    next(batches)
    next(batches)
    assert loader.num_samples_yielded == 2 * count


def test_a_batch_without_values_raises(numbers):
    ds = StreamingDataset(local=numbers, batch_size=10)
    loader = StreamingDataLoader(ds, batch_size=10, collate_fn=lambda _: {})
    with pytest.raises(ValueError, match="the batch is empty"):
        next(iter(loader))


def test_a_loader_of_another_kind_of_dataset_has_no_state():
    loader = StreamingDataLoader([1, 2, 3])
    assert loader.state_dict() is None
    loader.load_state_dict({})
