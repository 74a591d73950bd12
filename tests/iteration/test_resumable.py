"""Resumed iterations read the same as one that was never stopped."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream import Shuffle
from npstream.iteration.counter import MAX_GAPS

N = 103


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    path = tmp_path_factory.mktemp("resume") / "data"
    npstream.write(path, {"label": np.arange(N), "x": np.ones((N, 2))}, shard_size="256B")
    return npstream.open(path)


ORDERS = {
    "no shuffle": {},
    "shuffle": {"shuffle": True, "seed": 5},
    "lanes": {"shuffle": Shuffle(block="500B", lanes=3)},
    "stratified": {"shuffle": Shuffle(block="500B", lanes=3, stratified=True)},
    "permutation": {"shuffle": Shuffle(block=None)},
    "long epochs": {"shuffle": Shuffle(block="500B", lanes=2), "epoch_size": 150},
    "short epochs": {"shuffle": True, "epoch_size": 40},
}


def ranks(ds, world, state=None, **settings):
    """Return the iterations of all ranks; they have loaded the state, if one is given."""
    iterations = [ds.iter(rank, world, **settings) for rank in range(world)]
    for iteration in iterations:
        if state is not None:
            iteration.load_state_dict(state)
    return iterations


def steps(iterations):
    """Yield the sorted samples of all ranks in each step, and the state after it.

    A sample is its id, and whether it is repeated.
    """
    iterators = [iter(iteration) for iteration in iterations]
    while batches := [batch for it in iterators if (batch := next(it, None)) is not None]:
        states = [iteration.state_dict() for iteration in iterations]
        if len(batches) == len(iterations):
            assert all(state == states[0] for state in states)
        read = [(int(i), bool(r)) for b in batches for i, r in zip(b.ids, b.repeated, strict=True)]
        yield sorted(read), states[0]


def epochs(iterations, count):
    """Return the sorted samples of all ranks in each step of the next epochs."""
    return [batch for _ in range(count) for batch, _ in steps(iterations)]


@pytest.mark.filterwarnings("ignore:each chunk is fetched . times")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("last", ["repeat", "drop", "short"])
def test_any_ranks_resume_after_any_global_batch(ds, order, last):
    settings = {"global_batch_size": 12, "last": last, **ORDERS[order]}
    undisturbed = epochs(ranks(ds, 2, **settings), 3)
    done = 0
    iterations = ranks(ds, 2, **settings)
    for _ in range(2):
        for batch, state in steps(iterations):
            assert batch == undisturbed[done]
            done += 1
            world, per_node = ((1, 1), (3, 1), (4, 2))[done % 3]
            state = json.loads(json.dumps(state))
            resumed = ranks(ds, world, state, **settings, ranks_per_node=per_node)
            following = epochs(resumed, 1)
            following += [next(steps(resumed))[0]]
            expected = undisturbed[done : done + len(following)]
            assert following[: len(expected)] == expected


@pytest.mark.parametrize("order", ["no shuffle", "lanes"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_samples_resume_after_any_sample(ds, order, batch_size):
    settings = {"batch_size": batch_size, "batched": False, "last": "short", **ORDERS[order]}
    undisturbed = [int(sample["label"]) for sample in ds.iter(1, 2, **settings)]
    samples = ds.iter(1, 2, **settings)
    for done, sample in enumerate(samples, 1):
        assert int(sample["label"]) == undisturbed[done - 1]
        resumed = ds.iter(1, 2, **settings)
        resumed.load_state_dict(samples.state_dict())
        if done < len(undisturbed):
            assert [int(sample["label"]) for sample in resumed] == undisturbed[done:]


@given(
    st.sampled_from(sorted(ORDERS)), st.integers(1, 5), st.integers(1, 9), st.integers(1, 5),
    st.integers(1, 9), st.integers(0, 6),
)  # fmt: skip
def test_another_batch_size_resumes_at_the_same_position(
    ds, order, world, size, new_world, new_size, done
):
    settings = {"last": "short", **ORDERS[order]}
    whole = epochs(ranks(ds, 1, batch_size=1000, **settings), 1)
    iterations = ranks(ds, world, batch_size=size, **settings)
    seen, state = [], iterations[0].state_dict()
    for step, (batch, state_after) in enumerate(steps(iterations)):
        if step == done:
            break
        seen += batch
        state = state_after
    if state["epoch"] == 0:
        for batch, _ in steps(ranks(ds, new_world, state, batch_size=new_size, **settings)):
            seen += batch
    assert sorted(seen) == whole[0]


def test_a_state_is_plain_json_with_its_settings(ds):
    batches = ds.iter(0, 1, batch_size=4, shuffle=Shuffle(block="1MB", lanes=2), seed=3)
    assert next(iter(batches)).n == 4
    state = batches.state_dict()
    assert re.fullmatch("[0-9a-f]{16}", state.pop("settings_hash"))
    assert json.loads(json.dumps(state)) == {
        "version": 2,
        "samples": N,
        "fingerprint": f"{ds.version}-{state['fingerprint'].split('-')[1]}",
        "seed": 3,
        "shuffle": {"order": "native", "version": 1, "block": 1 << 20, "lanes": 2},
        "epoch_size": None,
        "epoch": 0,
        "position": 4,
        "skipped": [],
        "steps": [
            {
                "epoch": 0,
                "step": 0,
                "position": 0,
                "global_batch": 4,
                "world": 1,
                "ranks_per_node": 1,
                "last": "repeat",
                "gaps": [],
                "restart": 0,
            }
        ],
    }


def test_a_loaded_state_is_returned_by_state_dict(ds):
    batches = ds.iter(0, 1, batch_size=10, shuffle=True)
    first = [batch.ids.tolist() for batch in batches]
    batches = ds.iter(0, 1, batch_size=10, shuffle=True)
    iterator = iter(batches)
    next(iterator), next(iterator)
    state = batches.state_dict()
    del iterator
    for _ in range(2):
        batches.load_state_dict(state)
        assert batches.state_dict() == state
        assert len(batches) == len(first)
        assert [batch.ids.tolist() for batch in batches] == first[2:]


def test_after_the_last_batch_the_state_is_of_the_next_epoch(ds):
    batches = ds.iter(0, 1, batch_size=50, last="drop", shuffle=True)
    states = [batches.state_dict() for _ in batches]
    states.append(batches.state_dict())
    assert [(state["epoch"], state["position"]) for state in states] == [(0, 50), (1, 0), (1, 0)]
    following = [batch.ids.tolist() for batch in batches]
    for state in states[1:]:
        resumed = ds.iter(0, 1, batch_size=50, last="drop", shuffle=True)
        resumed.load_state_dict(state)
        assert [batch.ids.tolist() for batch in resumed] == following


def test_the_rest_of_an_epoch_can_be_too_short_for_a_batch(ds):
    batches = ds.iter(0, 1, batch_size=10, last="drop")
    iterator = iter(batches)
    for _ in range(9):
        next(iterator)
    resumed = ds.iter(0, 1, batch_size=20, last="drop")
    resumed.load_state_dict(batches.state_dict())
    assert next(iter(resumed)).ids[0] == 0
    assert resumed.state_dict()["epoch"] == 1


# Epochs


def first_ids(batches):
    return next(iter(batches)).ids.tolist()


def test_each_iteration_reads_the_next_epoch(ds):
    settings = {"batch_size": 30, "shuffle": True}
    orders = [first_ids(ds.iter(0, 1, epoch=e, **settings)) for e in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    batches = ds.iter(0, 1, epoch=1, **settings)
    assert [first_ids(batches) for _ in range(3)] == orders[1:]


def test_an_iteration_that_yielded_nothing_does_not_count(ds):
    batches = ds.iter(0, 1, batch_size=30, shuffle=True)
    first, second = iter(batches), iter(batches)
    second_ids = next(second).ids.tolist()
    assert second_ids == first_ids(ds.iter(0, 1, batch_size=30, shuffle=True))
    assert batches.state_dict()["position"] == 30
    with pytest.raises(RuntimeError, match="this iterator is outdated"):
        next(first)
    assert batches.state_dict()["position"] == 30


def test_seed_and_epoch_are_not_interchangeable(ds):
    one = first_ids(ds.iter(0, 1, batch_size=30, shuffle=True, seed=0, epoch=1))
    assert one != first_ids(ds.iter(0, 1, batch_size=30, shuffle=True, seed=1, epoch=0))


def test_set_epoch_applies_to_all_later_iterations(ds):
    settings = {"batch_size": 30, "shuffle": True}
    batches = ds.iter(0, 1, **settings)
    batches.set_epoch(3)
    expected = first_ids(ds.iter(0, 1, epoch=3, **settings))
    assert [first_ids(batches) for _ in range(2)] == [expected] * 2
    batches.set_epoch(4)
    assert first_ids(batches) != expected


def test_set_epoch_of_the_loaded_epoch_keeps_the_position(ds):
    batches = ds.iter(0, 1, batch_size=30, epoch=2)
    state = {**batches.state_dict(), "position": 60}
    for begun in (False, True):
        batches.load_state_dict(state)
        if begun:
            iter(batches)
        batches.set_epoch(2)
        assert first_ids(batches)[0] == 60
        assert first_ids(batches)[0] == 0
    batches.load_state_dict(state)
    batches.set_epoch(3)
    assert first_ids(batches)[0] == 0


def test_epoch_size_skips_no_sample(ds):
    settings = {"shuffle": True, "batch_size": 20, "last": "short"}
    batches = ds.iter(0, 1, epoch_size=60, **settings)
    assert len(batches) == 3
    seen = [i for _ in range(7) for batch in batches for i in batch.ids.tolist()]
    whole = ds.iter(0, 1, **settings)
    assert seen[: 4 * N] == [i for _ in range(4) for batch in whole for i in batch.ids.tolist()]


def test_copies_continue_independently(ds):
    batches = ds.iter(0, 1, batch_size=30, shuffle=True)
    orders = [first_ids(batches) for _ in range(3)]
    batches = ds.iter(0, 1, batch_size=30, shuffle=True)
    first_ids(batches)
    for copied in (copy.copy(batches), copy.deepcopy(batches), pickle.loads(pickle.dumps(batches))):
        assert [first_ids(copied) for _ in range(2)] == orders[1:]


# Skipping


def test_batches_are_skipped(ds):
    settings = {"shuffle": True, "batch_size": 8}
    whole = epochs(ranks(ds, 1, **settings), 2)
    steps_in = len(whole) // 2
    batches = ds.iter(0, 1, **settings)
    batches.skip(3, 6)
    batches.skip(8, 9)
    remaining = [batch for t, batch in enumerate(whole[: steps_in - 1]) if t not in (3, 4, 5, 8)]
    read = epochs([batches], 2)
    assert read[: len(remaining)] == remaining
    assert read[-steps_in:] == whole[-steps_in:]  # the next epoch is whole


@pytest.mark.parametrize("done", [0, 2, 4, 7, 10])
def test_skipped_ranges_are_part_of_the_state(ds, done):
    settings = {"shuffle": True, "global_batch_size": 8, "last": "drop"}
    whole = epochs(ranks(ds, 1, **settings), 1)
    batches = ds.iter(0, 1, **settings)
    iterator = iter(batches)
    for _ in range(done):
        next(iterator)
    batches.skip(3, 6)
    batches.skip(7, 9)
    expected = [batch for t, batch in enumerate(whole) if t >= done and t not in (3, 4, 5, 7, 8)]
    read = list(steps([copy.copy(batches)]))
    assert [batch for batch, _ in read] == expected
    for number, (_, state) in enumerate(read[:-1], 1):
        assert epochs(ranks(ds, 2, state, **settings), 1) == expected[number:]


def test_the_whole_rest_of_an_epoch_can_be_skipped(ds):
    batches = ds.iter(0, 1, batch_size=8)
    batches.skip(0, 10**9)
    assert first_ids(batches)[0] == 0
    assert batches.state_dict()["epoch"] == 1


@pytest.mark.parametrize("batch_size", [8, None])
def test_a_range_to_skip_must_begin_within_the_epoch(ds, batch_size):
    batches = ds.iter(0, 1, batch_size=batch_size)
    state = batches.state_dict()
    n = len(batches)
    with pytest.raises(ValueError, match=rf"skip\({n}, {n + 4}\): epoch 0 has only {n} batches"):
        batches.skip(n, n + 4)
    with pytest.raises(ValueError, match=r"skip\(3, 1\): .* skip\(1, 3\) skips 2 batches"):
        batches.skip(3, 1)
    with pytest.raises(ValueError, match="start=-1: expected at least 0"):
        batches.skip(-1, 3)
    with pytest.raises(TypeError, match="stop='last': expected an integer"):
        batches.skip(0, "last")
    batches.skip(2, 2)  # skips nothing
    assert batches.state_dict() == state


def test_an_epoch_has_a_limited_number_of_skipped_ranges(ds):
    batches = ds.iter(0, 1, batch_size=1)
    for t in range(MAX_GAPS):
        batches.skip(3 * t, 3 * t + 1)
    batches.skip(1, 3)  # joins two gaps, so the next gap is still allowed
    batches.skip(90, 91)
    with pytest.raises(ValueError, match=f"at most {MAX_GAPS} separate ranges"):
        batches.skip(92, 93)


def test_a_seed_is_any_integer(ds):
    orders = {}
    for seed in (-1, 1, 0, 2**70):
        batches = ds.iter(0, 1, shuffle=True, seed=seed, batch_size=N)
        again = ds.iter(0, 1, shuffle=True, seed=seed, batch_size=N)
        again.load_state_dict(json.loads(json.dumps(batches.state_dict())))
        (batch,), (other,) = batches, again
        assert sorted(batch.ids.tolist()) == list(range(N))
        assert batch.ids.tolist() == other.ids.tolist()
        orders[seed] = tuple(batch.ids.tolist())
    assert len(set(orders.values())) == 4


# States that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3; .*reads versions 1 and 2"),
        ({"seed": 1}, "seed=1; this iteration has seed=0"),
        ({"samples": 99}, "view of 99 samples; this view has 103"),
        ({"fingerprint": "0-1"}, "another dataset: .*open the same dataset"),
        ({"shuffle": None}, "shuffle=None; this iteration has shuffle={"),
        ({"epoch_size": 7}, "epoch_size=7"),
        ({"epoch": -1}, "epoch=-1"),
        ({"position": -1}, "damaged: position=-1"),
        ({"position": N + 1}, f"damaged: position reaches sample {N + 1} of an epoch of {N} "),
        ({"position": 10**9}, "damaged: position reaches sample 1,000,000,000"),
        ({"skipped": [[0, 10**9]]}, "damaged: skipped reaches sample 1,000,000,000"),
        ({"workers": 2, "yielded": 3}, "the state has workers=2"),
    ],
)
def test_a_state_that_does_not_fit_raises_with_the_reason(ds, change, message):
    batches = ds.iter(0, 1, batch_size=4, shuffle=True)
    state = batches.state_dict()
    with pytest.raises(ValueError, match=message):
        batches.load_state_dict({**state, **change})
    assert batches.state_dict() == state


def test_another_view_or_dataset_is_named_in_the_error(ds, tmp_path):
    def write_copy(name, **options):
        npstream.write(tmp_path / name, {"label": np.arange(N), "x": np.ones((N, 2))}, **options)
        return npstream.open(tmp_path / name)

    state = ds.iter(0, 1).state_dict()
    ds[:].iter(0, 1).load_state_dict(state)
    ds[["x"]].iter(0, 1).load_state_dict(state)
    write_copy("same", shard_size="256B").iter(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="another view"):
        ds[::-1].iter(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="another dataset"):
        write_copy("shards", shard_size="512B").iter(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="another dataset"):
        write_copy("hashes", shard_size="256B", hashes=["sha1"]).iter(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="another dataset"):
        write_copy("zip", shard_size="256B", compression="gz").iter(0, 1).load_state_dict(state)


@pytest.mark.parametrize(
    "index", [slice(1, None), np.arange(N) % 3 == 0, np.arange(2 * N).reshape(2, N) % 5]
)
def test_a_state_of_a_view_fits_only_this_view(ds, index):
    view = ds[index]
    state = view.iter(0, 1).state_dict()
    view.iter(0, 1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"samples|another view"):
        ds.iter(0, 1).load_state_dict(state)


@pytest.mark.parametrize("state", [{}, {"position": 3}, {"epoch": 0, "sample_in_epoch": 4}])
def test_invalid_states_raise(ds, state):
    with pytest.raises(ValueError, match=r"not a state of an iteration: version, .* missing"):
        ds.iter(0, 1).load_state_dict(state)
    with pytest.raises(TypeError, match="a state is a dict"):
        ds.iter(0, 1).load_state_dict(json.dumps(state))


def test_the_caller_can_count_samples(ds):
    """The second argument of `state_dict` is `from_beginning`."""
    settings = {"batch_size": 10, "shuffle": True}
    whole = [batch.ids.tolist() for batch in ds.iter(0, 1, **settings)]
    batches = ds.iter(0, 1, **settings)
    for state in (batches.state_dict(30, True), batches.state_dict(30, False)):
        resumed = ds.iter(0, 1, **settings)
        resumed.load_state_dict(state)
        assert first_ids(resumed) == whole[3]
    iter(resumed)
    resumed.load_state_dict(state)
    iter(resumed)
    assert resumed.state_dict(20, False)["position"] == 50
    assert resumed.state_dict(20, True)["position"] == 20
    assert resumed.state_dict(N, True)["epoch"] == 1


# A training


def torchrun(processes, *arguments):
    """Run tests/helpers/training.py with several ranks; return True if it finished."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    script = Path(__file__).parents[1] / "helpers" / "training.py"
    paths = [str(Path(npstream.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        [*launch, str(processes), str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=280,  # less than pytest's timeout of a test
    )
    assert done.returncode == 0 or "Signal 9 (SIGKILL)" in done.stderr, done.stderr
    return done.returncode == 0


def read_steps(directory, processes):
    """Return the sorted ids that all ranks read in each step."""
    read = {}
    for rank in range(processes):
        for line in (directory / f"{processes}-{rank}.jsonl").read_text().splitlines():
            step, ids, _ = json.loads(line)
            read.setdefault(step, []).extend(ids)
    return {step: sorted(ids) for step, ids in read.items()}


def test_a_killed_training_resumes_on_other_ranks(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4)).astype(np.float32)
    npstream.write(tmp_path / "data", {"x": x, "y": x.sum(axis=1)}, shard_size="300B")
    settings = {"shuffle": Shuffle("2KB", lanes=4), "batch_size": 12}
    undisturbed = [
        [i for i, _ in batch]
        for batch in epochs(ranks(npstream.open(tmp_path / "data"), 1, **settings), 2)
    ]
    killed = tmp_path / "killed"
    killed.mkdir()
    # The first epoch has 9 steps: 100 samples in batches of 12. A rank dies after 5 steps.
    assert not torchrun(2, tmp_path / "data", killed, 1, 5)
    assert list(read_steps(killed, 2).values())[:4] == undisturbed[:4]
    weights = []
    for processes in (1, 4):
        directory = shutil.copytree(killed, tmp_path / str(processes))
        assert torchrun(processes, tmp_path / "data", directory, 0, -1)
        after = read_steps(directory, processes)
        assert list(after) == list(range(4, 19))  # from the checkpoint after step 3
        assert list(after.values()) == undisturbed[3:]
        weights.append(torch.load(directory / f"{processes}.pt")["weight"].numpy())
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-4)
