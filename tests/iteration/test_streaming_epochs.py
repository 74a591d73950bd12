"""Iterations in Streaming's orders read, and resume, the same as the real package.

The orders themselves are held to golden data in `test_order`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from streaming_reference import GOLDEN, arrays, golden
from streaming_runs import BATCHING_METHODS, DATA, batch_ids

import npstream
import npstream.torch
from npstream import StreamingShuffle
from npstream.iteration.counter import EpochCursor
from npstream.iteration.ranks import Ranks
from npstream.iteration.streaming_epochs import _run
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.partition import World
from npstream.orders.streaming.settings import StreamingRun
from npstream.orders.streaming.shuffle import SHUFFLE_ALGORITHMS

# Samples of ranks and workers


WEIGHTS = ("proportion", "repeat", "choose")


def weights_of(streams):
    """Return each weight's values by stream; the name of a stream is its number."""
    weights = {
        weight: {str(k): stream[weight] for k, stream in enumerate(streams) if weight in stream}
        for weight in WEIGHTS
    }
    return {weight: values for weight, values in weights.items() if values}


def settings_of(case):
    params = dict(case["params"])
    if not params["shuffle"]:
        params["shuffle_algo"] = None
        # Streaming's default depends on the algorithm, even without a shuffle.
        if "resolved" in case:
            params["num_canonical_nodes"] = case["resolved"]["num_canonical_nodes"]
    names = [name for name in StreamingShuffle.__slots__ if name in params]
    return StreamingShuffle(
        **{name: params[name] for name in names}, **weights_of(params["streams"])
    )


def open_with_shards(path, sizes):
    """Open a dataset that has only an index, with the given shard sizes."""
    entry = json.loads((DATA / "index.json").read_text())["shards"][0]
    raw = {"basename": "x", "bytes": 1 << 20, "hashes": {}}
    index = {
        "version": 2,
        "shards": [entry | {"samples": int(size), "raw_data": raw} for size in sizes],
    }
    path.mkdir()
    (path / "index.json").write_text(json.dumps(index))
    return npstream.open(path)


def open_streams(path, streams):
    """Open one dataset, or mix the datasets of several streams."""
    datasets = {
        str(k): open_with_shards(path / str(k), stream["shards"])
        for k, stream in enumerate(streams)
    }
    return datasets["0"] if is_unweighted(streams) else npstream.mix(datasets)


def is_unweighted(streams):
    """Return True if there is one stream, without weights."""
    return len(streams) == 1 and not set(WEIGHTS) & set(streams[0])


WORK = [case for case in golden("orders") if case["kind"] == "work"]


@pytest.mark.filterwarnings("ignore:sample_in_epoch=.* is not a multiple of the global:UserWarning")
@pytest.mark.parametrize("case", WORK, ids=[case["id"] for case in WORK])
def test_golden_samples_of_workers(case, tmp_path):
    params, workers = case["params"], case["params"]["workers_per_rank"]
    world, replication = params["nodes"] * params["ranks_per_node"], params["replication"] or 1
    sample_in_epoch = params["sample_in_epoch"]
    cursor = EpochCursor(params["epoch"], sample_in_epoch, restart=sample_in_epoch)

    view = open_streams(tmp_path, params["streams"])

    def part(rank, last="repeat"):
        batches = view.iter(
            shuffle=settings_of(case), epoch_size=params["epoch_size"], last=last,
            batch_size=params["batch_size"],
        )  # fmt: skip
        ranks = batches._epochs.merge_replicas(
            Ranks(rank, world, params["ranks_per_node"]), replication
        )
        return batches._epochs.part(cursor, ranks, params["batch_size"], last)

    if "raises" in case:
        with pytest.raises(ValueError, match=r"\w+"):
            part(0)
        return
    # The axes are node, rank, worker, batch, and position in the batch. Empty slots are -1.
    work = arrays(f"orders/{case['file']}")[f"{case['id']}.work"]
    work = work.reshape(-1, *work.shape[2:])
    global_batches = work.transpose(2, 1, 0, 3).reshape(-1, work.shape[0] * work.shape[3])
    full_batches = int((global_batches >= 0).all(axis=1).sum())
    for rank in range(world):
        share, read = part(rank), 0
        for worker, slots in enumerate(work[rank // replication]):
            ids = share.lookup(range(worker, share.batches, workers))[0]
            np.testing.assert_array_equal(ids, slots[slots >= 0])
            read += len(ids)
        assert share.samples == read
        assert part(rank, "drop").samples == full_batches * params["batch_size"]


CASES = [
    (algorithm, world, per_node, lanes)
    for algorithm in (None, *SHUFFLE_ALGORITHMS)
    for world, per_node, lanes in ((1, 1, None), (4, 2, 4), (3, 3, 1), (4, 1, 2))
]


@pytest.mark.parametrize(("algorithm", "world", "per_node", "lanes"), CASES)
def test_ranks_and_workers_read_the_same_samples_as_in_streaming(
    ds, monkeypatch, algorithm, world, per_node, lanes
):
    settings = StreamingShuffle(algorithm, num_canonical_nodes=lanes, shuffle_block_size=60)
    order = StreamingOrder(
        shards=[ds.shards["samples"]],
        batch_size=7,
        num_canonical_nodes=lanes,
        shuffle=algorithm is not None,
        shuffle_algo=algorithm or "py1e",
        shuffle_block_size=60,
    )
    nodes = World(world // per_node, per_node)
    for rank in {0, world - 1}:
        batches = ds.iter(
            rank, world, batch_size=7, shuffle=settings, ranks_per_node=per_node, epoch=1
        )
        epoch = order.epoch(1, nodes)
        expected = [
            ids.tolist() for ids in epoch.read(*nodes.node_and_rank(rank), range(epoch.batches))
        ]
        read = list(batches)
        assert [batch.ids.tolist() for batch in read] == expected
        assert [batch["id"].tolist() for batch in read] == expected
        assert len(batches) == len(expected)
        samples = ds.iter(
            rank, world, batch_size=7, batched=False, shuffle=settings, ranks_per_node=per_node
        )
        samples.set_epoch(1)
        for worker in range(3):
            monkeypatch.setattr(
                "npstream.torch.worker_and_workers", lambda worker=worker: (worker, 3)
            )
            batches.set_epoch(1)
            assert [batch.ids.tolist() for batch in batches] == expected[worker::3]
            ids = [int(sample["id"]) for sample in samples]
            assert ids == [number for batch in expected[worker::3] for number in batch]
        monkeypatch.undo()
        assert len(samples) == sum(map(len, expected))


# Checkpoints


RUNS = [
    pytest.param(case, run, id=f"{case['name']}-{number}")
    for case in golden("checkpoints")
    for number, run in enumerate([case["save"], *case["resume"]])
]


def iteration(view, rank, run, case, **options):
    """Return a rank's iteration with the settings of a run of Streaming."""
    arguments = dict(run.get("dataset_args", case["dataset_args"]))
    replication, shuffle = arguments.pop("replication", 1), arguments.pop("shuffle", False)
    algorithm = arguments.pop("shuffle_algo", "py1e") if shuffle else None
    epoch_size = arguments.pop("epoch_size", None)
    return view.iter(
        rank,
        run["nodes"] * run["ranks_per_node"],
        batch_size=run["batch_size"],
        shuffle=StreamingShuffle(algorithm, **arguments, **weights_of(case["streams"])),
        epoch_size=epoch_size,
        ranks_per_node=run["ranks_per_node"],
        replication=replication,
        **options,
    )


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_runs_of_streaming_resume(case, run):
    """After a loaded state of Streaming, each rank reads the same as the real package did."""
    datasets = [npstream.open(GOLDEN / "checkpoints" / "data" / s["dir"]) for s in case["streams"]]
    view = datasets[0]
    if not is_unweighted(case["streams"]):
        view = npstream.mix({str(number): ds for number, ds in enumerate(datasets)})
    for rank in range(run["nodes"] * run["ranks_per_node"]):
        batches = iteration(view, rank, run, case)
        if "loaded_state" in run:
            batches.load_state_dict(json.loads(json.dumps(run["loaded_state"])))
        for epoch in run["epochs"]:
            ids = arrays("checkpoints/ids.npz")[epoch["ids"][rank]]
            if len(ids) == 0:  # only Streaming has an epoch without batches if nothing is left
                continue
            iterator, expected = iter(batches), [[i for i in row if i >= 0] for row in ids.tolist()]
            read = [next(iterator) for _ in expected]
            assert [batch.ids.tolist() for batch in read] == expected
            assert [batch["id"].tolist() for batch in read] == expected
            if epoch["stopped_after_batches"] is None:
                assert next(iterator, None) is None
            else:
                state, state_after = batches.state_dict(), run["state_after"]
                assert state["epoch"] == epoch["epoch"]
                if epoch["epoch"] == state_after["epoch"]:
                    assert {name: state[name] for name in state_after} == state_after


STATE = {
    "epoch": 2,
    "sample_in_epoch": 80,
    "num_canonical_nodes": 4,
    "shuffle_seed": 5,
    "initial_physical_nodes": 2,
}


def read_run(ds, number, drop_first=0, batch_size=8):
    """Return the batches of rank 1 of 2 in epoch `number`, with the settings in `STATE`."""
    order = StreamingOrder(shards=[ds.shards["samples"]], batch_size=batch_size, shuffle=True)
    world = World(1, 2)
    order, *_ = order.resume(STATE, world)
    epoch = order.epoch(number, world, drop_first)
    return [ids.tolist() for ids in epoch.read(0, 1, range(epoch.batches))]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "start", "persistent"),
    [
        ("torch", "fork", False), ("torch", "spawn", True),
        ("npstream", "fork", False),
    ],
)  # fmt: skip
def test_workers_resume_from_a_state_of_streaming(ds, kind, start, persistent):
    """The settings in the state apply to later epochs, too."""
    torch = pytest.importorskip("torch.utils.data")
    make = {"torch": torch.DataLoader, "npstream": npstream.torch.DataLoader}[kind]
    batches = ds.iter(1, 2, batch_size=8, shuffle="py1e")
    loader = make(
        batches, batch_size=None, num_workers=2, persistent_workers=persistent,
        multiprocessing_context=start,
    )  # fmt: skip
    first = batch_ids(loader)
    for _ in range(2):
        batches.load_state_dict(STATE)
        assert batch_ids(loader) == read_run(ds, 2, 80)
        assert batch_ids(loader) == read_run(ds, 3) != first
    batches.set_epoch(1)
    assert batch_ids(loader) == read_run(ds, 1)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata's own
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_torchdata_states_contain_the_run(ds, persistent):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

    def make_loader(batches):
        return stateful.StatefulDataLoader(
            batches, batch_size=None, num_workers=2, persistent_workers=persistent
        )

    batches = ds.iter(1, 2, batch_size=8, shuffle="py1e")
    batches.load_state_dict(STATE)
    loader = make_loader(batches)
    for _ in zip(range(3), loader, strict=False):
        pass
    resumed = make_loader(ds.iter(1, 2, batch_size=8, shuffle="py1e"))
    resumed.load_state_dict(loader.state_dict())
    assert batch_ids(resumed) == read_run(ds, 2, 80)[3:]
    assert batch_ids(resumed) == read_run(ds, 3)


# States of npstream


ORDERS = {
    "py1e": "py1e",
    "py1s": "py1s",
    "lanes": StreamingShuffle("py1br", num_canonical_nodes=6, shuffle_block_size=50),
    "no shuffle": StreamingShuffle(None, num_canonical_nodes=6),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("world", "per_node"), [(1, 1), (4, 2), (3, 1)])
def test_an_iteration_resumes_after_any_batch(ds, order, world, per_node):
    """It reads the same samples as without a stop. This includes samples that fill up ranks."""
    settings = {"batch_size": 16, "shuffle": ORDERS[order], "ranks_per_node": per_node}
    for rank in (0, world - 1):
        batches, other = (ds.iter(rank, world, **settings) for _ in range(2))
        whole = [batch_ids(other) for _ in range(3)]
        for epoch in range(2):
            for done, batch in enumerate(batches, 1):
                assert batch.ids.tolist() == whole[epoch][done - 1]
                state = batches.state_dict()
                assert batches.state_dict() == state
                resumed = ds.iter(rank, world, **settings)
                for _ in range(2):
                    resumed.load_state_dict(json.loads(json.dumps(state)))
                    assert resumed.state_dict() == state
                assert batch_ids(resumed) == (whole[epoch][done:] or whole[epoch + 1])
                if done == len(whole[epoch]):
                    assert (state["epoch"], state["sample_in_epoch"]) == (epoch + 1, 0)
            assert done == len(batches)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_samples_resume_after_any_sample(ds, batch_size):
    settings = {"batch_size": batch_size, "batched": False, "shuffle": "py1s"}

    def read(iteration):
        return [int(sample["id"]) for sample in iteration]

    other = ds.iter(1, 3, **settings)
    whole, following = read(other), read(other)
    samples = ds.iter(1, 3, **settings)
    assert len(samples) == len(whole)
    for done, _ in enumerate(samples, 1):
        if done % 10 > 1 and done < len(whole) - 3:
            continue  # a fifth of the samples, and the last three, take less time
        resumed = ds.iter(1, 3, **settings)
        resumed.load_state_dict(samples.state_dict())
        if batch_size and done == len(whole):  # the last batch is short, so its end is still ahead
            assert read(resumed) == []
        assert read(resumed) == (whole[done:] or following)


@pytest.mark.parametrize("new", [(1, 1, 24), (2, 1, 12), (3, 3, 8), (4, 2, 6)])
def test_other_ranks_read_the_same_global_batches(ds, new):
    """With the default partition_algo, "relaxed", 2 nodes can resume a run with 3 lanes."""

    def global_batches(world, per_node, size, state):
        ranks = [
            ds.iter(rank, world, batch_size=size, ranks_per_node=per_node, shuffle="py1e")
            for rank in range(world)
        ]
        if state is not None:
            for rank in ranks:
                rank.load_state_dict(state)
        read = [batch_ids(rank) for rank in ranks]
        return [sorted(i for ids in step for i in ids) for step in zip(*read, strict=False)]

    whole = global_batches(3, 1, 8, None)
    batches = ds.iter(0, 3, batch_size=8, ranks_per_node=1, shuffle="py1e")
    for done, _ in enumerate(batches, 1):
        if done in (1, 7, 15):
            after = global_batches(*new, batches.state_dict())
            full = len(whole) - 1 - done  # the repeated samples in the last batch depend on ranks
            assert after[:full] == whole[done:-1]


def test_batches_are_skipped(ds):
    settings = {"batch_size": 8, "shuffle": "py1e"}
    first, second = (
        batch_ids(iteration) for iteration in [ds.iter(0, 2, **settings, epoch=e) for e in (0, 1)]
    )
    batches = ds.iter(0, 2, **settings)
    batches.skip(0, 2)
    batches.skip(5, 9)
    batches.skip(20, 10**6)
    remaining = first[2:5] + first[9:20]
    for done, batch in enumerate(batches, 1):
        assert batch.ids.tolist() == remaining[done - 1]
        resumed = ds.iter(0, 2, **settings)
        resumed.load_state_dict(batches.state_dict())
        assert batch_ids(resumed) == (remaining[done:] or second)
    assert done == len(remaining)
    assert batch_ids(batches) == second
    batches.skip(3, 4)
    ds.iter(0, 2, batch_size=15, shuffle="py1e").load_state_dict(batches.state_dict())
    with pytest.raises(ValueError, match=r"\(\(48, 64\),\),.* multiples of 5 "):
        ds.iter(0, 5, batch_size=3, shuffle="py1e").load_state_dict(batches.state_dict())
    relaxed = {"ranks_per_node": 1, "shuffle": StreamingShuffle(num_canonical_nodes=3)}
    batches = ds.iter(0, 3, batch_size=4, **relaxed)
    batches.skip(1, 4)
    resumed = ds.iter(0, 2, batch_size=6, **relaxed)
    with pytest.raises(ValueError, match="num_canonical_nodes=3 and 2 nodes"):
        len(resumed)
    resumed.load_state_dict(batches.state_dict())
    assert len(resumed) == 37  # 437 samples in global batches of 12; skipped ones are counted
    with pytest.raises(ValueError, match="multiples of 18 samples"):
        ds.iter(0, 2, batch_size=9, **relaxed).load_state_dict(batches.state_dict())


def test_states_contain_the_values_of_streaming(ds):
    """So a run can also resume in Streaming."""
    batches = ds.iter(0, 2, batch_size=8, shuffle="py1s", ranks_per_node=1)
    next(iter(batches))
    state = batches.state_dict()
    assert {name: state[name] for name in STATE} == {
        "epoch": 0, "sample_in_epoch": 16, "num_canonical_nodes": 128, "shuffle_seed": 9176,
        "initial_physical_nodes": 2,
    }  # fmt: skip


def test_a_state_from_before_the_first_epoch_starts_at_the_beginning(ds):
    """The other values in such a state, such as the seed, have no effect."""
    batches = ds.iter(0, 1, batch_size=8, shuffle="py1s")
    batches.load_state_dict(STATE | {"epoch": -1, "sample_in_epoch": 0})
    assert batch_ids(batches) == batch_ids(ds.iter(0, 1, batch_size=8, shuffle="py1s"))


@pytest.mark.parametrize("method", BATCHING_METHODS[1:])
@pytest.mark.parametrize("remaining", [3, 1, 0])
def test_states_of_streaming_resume_up_to_the_last_batch(ds, method, remaining):
    def batches(rank):
        settings = StreamingShuffle("py1s", batching_method=method)
        return ds.iter(rank, 4, ranks_per_node=4, batch_size=1, shuffle=settings)

    iteration = batches(1)
    whole = batch_ids(iteration)
    rank_0_batches = len(batches(0))
    assert 4 * rank_0_batches > len(ds)  # so the last states count more samples than there are
    resumed = batches(1)
    state = {"epoch": 0, "sample_in_epoch": 4 * (rank_0_batches - remaining)}
    resumed.load_state_dict(STATE | state | {"num_canonical_nodes": 64, "shuffle_seed": 9176})
    expected = whole[rank_0_batches - remaining :] or batch_ids(iteration)
    assert batch_ids(resumed) == expected


def test_epochs_of_another_size_pick_samples(ds):
    settings = StreamingShuffle("py1e", sampling_granularity=4)
    batches = ds.iter(0, 1, batch_size=10, shuffle=settings, epoch_size=1000)
    ids = np.concatenate([batch.ids for batch in batches])
    assert len(batches) == 100
    counts = np.bincount(ids, minlength=len(ds))
    assert set(counts) == {2, 3}
    state = batches.state_dict()
    ds.iter(0, 1, batch_size=10, shuffle=settings, epoch_size=1000).load_state_dict(state)
    with pytest.raises(ValueError, match="epoch_size=1000; this iteration has epoch_size=None"):
        ds.iter(0, 1, batch_size=10, shuffle=settings).load_state_dict(state)


def test_replicated_ranks_read_the_same(ds):
    read = [
        batch_ids(ds.iter(rank, 4, batch_size=8, replication=2, ranks_per_node=2, shuffle="py1s"))
        for rank in range(4)
    ]
    assert read[0] == read[1] != read[2] == read[3]


def test_views_of_whole_datasets_can_have_streaming_orders(ds):
    expected = batch_ids(ds.iter(0, 1, batch_size=8, shuffle="py1e"))
    for view in (ds[:], ds[["id"]], ds[::-1][::-1]):
        assert batch_ids(view.iter(0, 1, batch_size=8, shuffle="py1e")) == expected


# Views, settings and states that do not fit


@pytest.mark.parametrize(
    "view",
    [lambda ds: ds[1:], lambda ds: ds[::-1], lambda ds: ds.shuffle(0), lambda ds: ds[[0, 1]]],
    ids=["part", "reversed", "shuffled", "picked"],
)
def test_views_of_a_part_raise(ds, view):
    with pytest.raises(ValueError, match=r"orders need whole datasets.*; shuffle=True"):
        view(ds).iter(shuffle="py1e")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shuffle": "py1b"}, ValueError, "shuffle='py1b': expected .* 'naive', 'py1br'"),
        ({"shuffle": 3}, TypeError, "npstream.StreamingShuffle"),
        ({"seed": 3}, ValueError, r"StreamingShuffle\('py1e', shuffle_seed=3\)"),
        ({"last": "short"}, ValueError, "last='short': Streaming's orders repeat samples"),
        (
            {"shuffle": StreamingShuffle("py1s", 2, partition_algo="orig"), "ranks_per_node": 1},
            ValueError,
            "num_canonical_nodes=2 and 3 nodes",
        ),
        ({"shuffle": StreamingShuffle("py1br", shuffle_block_size=1)}, ValueError, "larger blocks"),
    ],
)
def test_invalid_settings_raise_immediately(ds, arguments, error, message):
    with pytest.raises(error, match=message):
        ds.iter(0, 3, **{"batch_size": 4, "shuffle": "py1e"} | arguments)


@pytest.mark.parametrize(
    "run", [StreamingRun(64, (1 << 63) - 1, None), StreamingRun(1, 0, 7), None]
)
def test_the_context_of_a_cursor_contains_the_run(run):
    assert _run(EpochCursor(0, context=run.pack() if run else b"")) == run


def test_a_state_can_contain_the_largest_seed(ds):
    settings = StreamingShuffle("naive", shuffle_seed=(1 << 63) - 1, num_canonical_nodes=1)
    state = ds.iter(0, 1, batch_size=4, shuffle=settings).state_dict()
    ds.iter(0, 1, batch_size=4, shuffle=settings).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_canonical_nodes": 0}, ValueError, "num_canonical_nodes=0"),
        ({"num_canonical_nodes": 1.5}, TypeError, "num_canonical_nodes=1.5: expected an integer"),
        ({"shuffle_seed": 1 << 63}, ValueError, "shuffle_seed=.*: expected at most"),
        ({"partition_algo": "new"}, ValueError, "partition_algo='new'"),
        ({"batching_method": "none"}, ValueError, "batching_method='none': expected one of random"),
        ({"proportion": 3}, TypeError, "proportion=3: expected a mapping"),
        ({"proportion": {"a": True}}, TypeError, "proportion of source 'a' is True"),
        ({"repeat": {"a": -1}}, ValueError, "repeat of source 'a' is -1: expected at least 0"),
        ({"repeat": {"a": float("nan")}}, ValueError, "repeat of source 'a' is nan"),
        ({"proportion": {"a": float("inf")}}, ValueError, "proportion of source 'a' is inf"),
        ({"choose": {"a": 1.5}}, TypeError, "choose of source 'a' is 1.5: expected an integer"),
    ],
)
def test_invalid_arguments_of_streaming_shuffle_raise(settings, error, message):
    with pytest.raises(error, match=message):
        StreamingShuffle(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3; .*reads versions 1 and 2"),
        ({"samples": 99}, "view of 99 samples; this view has 437"),
        ({"fingerprint": "0-1"}, "another dataset: .*open the same dataset"),
        ({"shuffle": None}, "shuffle=None; this iteration has shuffle={'order': 'py1e'"),
        ({"shuffle_seed": 1}, "shuffle_seed=1; this iteration has shuffle_seed=9:"),
        ({"num_canonical_nodes": 3}, "num_canonical_nodes=3; .*num_canonical_nodes=2"),
        ({"initial_physical_nodes": 3}, "initial_physical_nodes=3; .*initial_physical_nodes=1"),
        ({"num_canonical_nodes": None}, "num_canonical_nodes=None; expected an integer"),
        ({"position": 10**9}, "damaged: position reaches sample 1,000,000,000"),
    ],
)
def test_a_state_that_does_not_fit_raises_with_the_reason(ds, change, message):
    settings = StreamingShuffle("py1e", 2, shuffle_seed=9, initial_physical_nodes=1)
    batches = ds.iter(0, 1, batch_size=4, shuffle=settings)
    state = batches.state_dict()
    with pytest.raises((ValueError, TypeError), match=message):
        batches.load_state_dict({**state, **change})
    assert batches.state_dict() == state


def test_states_of_other_orders_raise(ds):
    streaming, native = (ds.iter(0, 1, batch_size=4, shuffle=order) for order in ("py1e", True))
    with pytest.raises(ValueError, match=r"num_canonical_nodes, .* missing$"):
        streaming.load_state_dict(native.state_dict())
    with pytest.raises(ValueError, match="seed=9176; this iteration has seed=0"):
        native.load_state_dict(streaming.state_dict())
    with pytest.raises(ValueError, match=r"looks like a state of Streaming.* shuffle='py1e'"):
        native.load_state_dict(STATE)
    with pytest.raises(ValueError, match="not a state of Streaming: num_canonical_nodes"):
        streaming.load_state_dict({"epoch": 0, "sample_in_epoch": 3})
    with pytest.raises(ValueError, match="sample_in_epoch=10000: expected a number of samples"):
        streaming.load_state_dict(STATE | {"sample_in_epoch": 10_000})
    with pytest.raises(TypeError, match="a state is a dict"):
        streaming.load_state_dict(json.dumps(STATE))
