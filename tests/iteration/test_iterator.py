"""Loops over an iteration: skipping, errors, outdated iterators, copies."""

from __future__ import annotations

import copy
import functools
import json
import os
import warnings
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream

N = 100


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("iterator") / "data"
    npstream.write(path, {"x": np.arange(N)}, shard_size="256B")
    return path


@pytest.fixture(scope="module")
def ds(path):
    return npstream.open(path)


def iterate_dataset(ds, **options):
    return ds.iter(0, 1, batch_size=10, shuffle=True, **options)


def iterate_mixture(ds, **options):
    mixed = npstream.mix({"a": ds[:60], "b": ds[60:]})
    return mixed.iter(0, 1, batch_size=10, shuffle=True, **options)


def iterate_streaming(ds, **options):
    order = npstream.StreamingShuffle("py1s", num_canonical_nodes=1)
    return ds.iter(0, 1, batch_size=10, shuffle=order, **options)


ITERATIONS = [iterate_dataset, iterate_mixture, iterate_streaming]


def ids(batches):
    """Return the ids of the samples of each batch. Column x has them."""
    return [batch["x"].tolist() for batch in batches]


def remaining_batches(length, done, skips):
    """Return the numbers of the batches of an epoch that remain after `done` batches and skips."""
    return [k for k in range(done, length) if not any(a <= k < b for a, b in skips)]


# Skipping in a loop


@pytest.mark.parametrize("make", ITERATIONS)
@settings(max_examples=40)
@given(data=st.data())
def test_skipping_starts_with_the_next_batch(ds, make, data):
    epochs = [ids(make(ds, epoch=epoch)) for epoch in range(2)]
    numbers = {tuple(batch): k for k, batch in enumerate(epochs[0])}
    batches, seen, skips, expected = make(ds), [], [], list(range(10))
    for batch in batches:
        seen.append(numbers[tuple(batch["x"].tolist())])
        # After the last batch, skip applies to the next epoch.
        is_over = not remaining_batches(10, seen[-1] + 1, skips)
        if not is_over and len(skips) < 3 and data.draw(st.integers(0, 3)) == 0:
            gap = sorted(data.draw(st.tuples(st.integers(0, 10), st.integers(0, 10))))
            batches.skip(*gap)
            skips.append(gap)
            expected = seen + remaining_batches(10, seen[-1] + 1, skips)
        state = json.loads(json.dumps(batches.state_dict()))
        resumed = make(ds)
        resumed.load_state_dict(state)
        following = remaining_batches(10, seen[-1] + 1, skips)
        remaining = [epochs[0][k] for k in following] if following else epochs[1]
        assert ids(resumed) == remaining
    assert seen == expected
    assert ids(batches) == epochs[1]


def test_the_next_loop_reads_the_next_epoch(ds):
    batches = iterate_dataset(ds)
    for step, _ in enumerate(batches):
        if step == 2:
            batches.skip(5, 7)
    assert ids(batches) == ids(iterate_dataset(ds, epoch=1))


def test_samples_are_skipped_too(ds):
    samples = ds.iter(0, 1)
    seen = []
    for sample in samples:
        seen.append(int(sample["x"]))
        if len(seen) == 10:
            samples.skip(20, 90)
    assert seen == [*range(20), *range(90, 100)]


def test_skip_raises_while_a_batch_is_made(ds):
    batches = ds.iter(0, 1, batch_size=10, transform=lambda batch: batches.skip(5, 6))
    with pytest.raises(RuntimeError, match="call it in the loop over the batches"):
        next(iter(batches))


# Calls that raise in a loop


@pytest.mark.parametrize("make", ITERATIONS)
def test_set_epoch_raises_in_a_loop(ds, make):
    batches = make(ds)
    state = batches.state_dict()
    for step, _ in enumerate(batches):
        with pytest.raises(RuntimeError, match=r"set_epoch\(\) in a loop over epoch 0"):
            batches.set_epoch(3)
        with pytest.raises(RuntimeError, match=r"load_state_dict\(\) in a loop over epoch"):
            batches.load_state_dict(state)
        if step == 3:
            break
    batches.set_epoch(3)
    assert ids(batches) == ids(make(ds, epoch=3))
    batches.load_state_dict(state)
    assert ids(batches) == ids(make(ds))


def test_a_referenced_iterator_can_be_closed(ds):
    batches = iterate_dataset(ds)
    iterator = iter(batches)
    next(iterator)
    with pytest.raises(RuntimeError, match="or delete its iterator if you hold it"):
        batches.set_epoch(2)
    iterator.close()
    batches.set_epoch(2)
    assert list(iterator) == []
    assert ids(batches) == ids(iterate_dataset(ds, epoch=2))


@pytest.mark.parametrize("make", ITERATIONS)
def test_an_outdated_iterator_raises(ds, make):
    batches = make(ds)
    old = iter(batches)
    next(old)
    new = iter(batches)
    with pytest.raises(RuntimeError, match="this iterator is outdated"):
        next(old)
    position = batches.state_dict()["position"]
    next(new)
    assert batches.state_dict()["position"] == position + 10


def test_an_outdated_iterator_ends_normally_if_it_yielded_everything(ds):
    batches = iterate_dataset(ds)
    old = iter(batches)
    for _ in range(10):
        next(old)
    iter(batches)
    assert next(old, None) is None


def test_an_unused_iterator_follows_set_epoch_and_loaded_states(ds):
    batches = iterate_dataset(ds)
    iterator = iter(batches)
    batches.set_epoch(4)
    assert ids(iterator) == ids(iterate_dataset(ds, epoch=4))


# Errors in user code


def raise_stop_iteration(*_):
    raise StopIteration


def raise_at(numbers, error, batch):
    if np.ravel(batch["x"])[0] in numbers:
        raise error
    return batch


@pytest.mark.parametrize("batched", [True, False])
def test_stop_iteration_in_a_transform_does_not_end_an_epoch(ds, batched):
    transform = functools.partial(raise_at, {50}, StopIteration())
    items = iter(ds.iter(0, 1, batch_size=10, batched=batched, transform=transform))
    before = list(islice(items, 5 if batched else 50))
    assert np.ravel(before[-1]["x"])[-1] == 49
    with pytest.raises(
        RuntimeError, match="transform= raised StopIteration, which would end the loop"
    ):
        next(items)
    assert len(list(items)) == (4 if batched else 49)  # a loop can continue after it


def test_stop_iteration_in_a_transform_of_a_view_is_an_error(ds):
    view = ds.with_transform(raise_stop_iteration)
    reads = [
        lambda: view[3],
        lambda: list(view),
        lambda: list(view.iter(0, 1)),
        lambda: list(view.iter(0, 1, batch_size=10, batched=False)),
        lambda: view.__getitems__([1, 2]),
        lambda: list(view[np.arange(6).reshape(2, 3)][0]),
    ]
    for read in reads:
        with pytest.raises(RuntimeError, match="the transform of the view raised StopIteration"):
            read()


def test_stop_iteration_in_a_transform_of_a_source_is_an_error(ds):
    mixed = npstream.mix({"a": ds[:50], "b": ds[50:].with_transform(raise_stop_iteration)})
    for read in (lambda: mixed[70], lambda: list(mixed), lambda: list(mixed.iter(0, 1))):
        with pytest.raises(RuntimeError, match="the transform of source 'b' raised StopIteration"):
            read()


@pytest.mark.parametrize("batch_size", [None, 10])
def test_stop_iteration_in_a_filter_is_an_error(ds, batch_size):
    with pytest.raises(RuntimeError, match=r"the function of filter\(\) raised StopIteration"):
        ds.filter(raise_stop_iteration, batch_size=batch_size)


def test_a_batch_whose_transform_raised_is_skipped(ds):
    transform = functools.partial(raise_at, {30, 40}, ValueError("bad"))
    batches = ds.iter(0, 1, batch_size=10, transform=transform)
    iterator, seen, states = iter(batches), [], []
    while True:
        try:
            seen.append(next(iterator)["x"][0])
        except ValueError:
            states.append(batches.state_dict()["position"])
        except StopIteration:
            break
    assert seen == [0, 10, 20, 50, 60, 70, 80, 90]
    assert states == [30, 30]  # batch 30 was not yielded, so both states are before it
    assert batches.state_dict()["epoch"] == 1


# The property epoch


def test_epoch_property_in_a_loop_over_epochs(ds):
    batches, seen = iterate_dataset(ds), []
    while batches.epoch < 3:
        seen += [(batches.epoch, batch["x"].tolist()) for batch in batches]
    assert seen == [
        (epoch, batch) for epoch in range(3) for batch in ids(iterate_dataset(ds, epoch=epoch))
    ]


@pytest.mark.parametrize(("done", "epoch"), [(0, 2), (1, 2), (9, 2), (10, 3)])
def test_epoch_property_after_a_state_was_loaded(ds, done, epoch):
    batches = iterate_dataset(ds, epoch=2)
    for _ in zip(range(done), batches, strict=False):
        pass
    resumed = iterate_dataset(ds)
    resumed.load_state_dict(batches.state_dict())
    assert resumed.epoch == epoch
    resumed.set_epoch(5)
    assert resumed.epoch == 5


# Copies


@pytest.mark.parametrize("make", ITERATIONS)
@pytest.mark.parametrize("done", [0, 4, 10])
def test_a_copy_continues_where_the_original_was(ds, make, done):
    batches = make(ds)
    iterator = iter(batches)
    for _ in range(done):
        next(iterator)
    other = copy.deepcopy(batches)
    remaining = ids(iterator) if done < 10 else ids(batches)
    assert ids(other) == remaining


def test_a_copy_made_after_a_loop_was_left_begins_the_next_epoch(ds):
    batches = iterate_dataset(ds)
    next(iter(batches))
    other = copy.deepcopy(batches)
    assert ids(other) == ids(batches) == ids(iterate_dataset(ds, epoch=1))


def test_a_copy_made_after_a_loop_was_left_has_the_same_state(ds):
    batches = iterate_dataset(ds)
    next(iter(batches))
    assert copy.deepcopy(batches).state_dict() == batches.state_dict()


@pytest.mark.parametrize("make", ITERATIONS)
def test_a_copy_ignores_skipped_batches_that_were_yielded(make, ds):
    batches = make(ds)
    iterator = iter(batches)
    for _ in range(5):
        next(iterator)
    batches.skip(0, 4)
    other = copy.deepcopy(batches)
    remaining = ids(iterator)
    assert remaining == ids(other) == ids(make(ds))[5:]
    assert ids(copy.deepcopy(batches)) == ids(make(ds, epoch=1))


def test_iterators_cannot_be_copied(ds):
    iterator = iter(iterate_dataset(ds))
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"copy what ds\.iter returned"):
            duplicate(iterator)


# Loops that are left at a saved state


def test_leaving_an_epoch_at_a_saved_state_warns_and_names_epoch_size(ds):
    batches = iterate_dataset(ds)
    for step, _ in enumerate(batches, 1):
        if step == 4:
            assert batches.state_dict()["position"] == 40
            break
    with pytest.warns(UserWarning, match=r"epoch 0 was left after 40 of 100 .* epoch_size=40"):
        iter(batches)
    # With the recommended epoch_size, a resumed run reads the same as one that was not stopped.
    limited = ds.iter(0, 1, batch_size=10, shuffle=True, epoch_size=40)
    whole = [ids(limited) for _ in range(2)]
    resumed = ds.iter(0, 1, batch_size=10, shuffle=True, epoch_size=40)
    first = ds.iter(0, 1, batch_size=10, shuffle=True, epoch_size=40)
    list(first)
    resumed.load_state_dict(first.state_dict())
    assert ids(resumed) == whole[1]


@pytest.mark.parametrize("saved_steps", [0, 1, 2])
def test_leaving_an_epoch_after_its_last_saved_state_does_not_warn(ds, saved_steps):
    batches = iterate_dataset(ds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, _ in enumerate(batches, 1):
            if step <= saved_steps:
                batches.state_dict()
            if step == 4:
                break
        list(batches)


# Ranks of launchers whose environment variables npstream does not use


LAUNCHERS = [
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
]


@pytest.fixture
def clean_setenv(monkeypatch):
    """Remove the variables of all launchers; return the function that sets one."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "MV2_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    return monkeypatch.setenv


@pytest.mark.parametrize("names", LAUNCHERS)
def test_ranks_of_an_unused_launcher_warn_once(ds, clean_setenv, names):
    rank, world = names
    clean_setenv(rank, "3")
    clean_setenv(world, "8")
    batches = ds.iter(batch_size=10)
    message = rf"{rank}=3 and {world}=8.*rank=int\(os.environ\['{rank}'\]\)"
    with pytest.warns(UserWarning, match=message) as caught:
        list(batches)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(batches)


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "RANK": "1", "WORLD_SIZE": "2"},
    ],
)
def test_detected_ranks_do_not_warn(ds, clean_setenv, variables):
    for name, value in variables.items():
        clean_setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(ds.iter(batch_size=10))
        list(ds.iter(0, 1, batch_size=10))


def test_given_ranks_do_not_warn(ds, clean_setenv):
    clean_setenv("SLURM_PROCID", "3")
    clean_setenv("SLURM_NTASKS", "8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(ds.iter(0, 1, batch_size=10))
