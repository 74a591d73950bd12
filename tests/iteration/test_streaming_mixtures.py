"""Mixtures in Streaming's orders, with sources as streams."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from streaming_reference import GOLDEN
from streaming_runs import BATCHING_METHODS, batch_ids

import npstream
from npstream import StreamingShuffle


@pytest.fixture(scope="module")
def mixed():
    data = GOLDEN / "checkpoints" / "data"
    return npstream.mix({name: npstream.open(data / name) for name in "abc"})


@pytest.mark.parametrize("method", BATCHING_METHODS)
@pytest.mark.parametrize(("world", "per_node"), [(1, 1), (4, 2)])
def test_mixtures_resume_after_any_batch_or_sample(mixed, method, world, per_node):
    order = StreamingShuffle(
        "py1s", num_canonical_nodes=2, proportion={"a": 3, "b": 1, "c": 2}, batching_method=method
    )
    settings = {"batch_size": 9, "shuffle": order, "ranks_per_node": per_node, "epoch_size": "0.5k"}
    for rank in {0, world - 1}:
        batches, other = (mixed.iter(rank, world, **settings) for _ in range(2))
        whole, following = batch_ids(other), batch_ids(other)
        assert whole != following
        assert len(batches) == len(whole) > 2
        rank_0_batches = len(mixed.iter(0, world, **settings))
        for done, batch in enumerate(batches, 1):
            assert batch.ids.tolist() == whole[done - 1]
            assert batch["id"].tolist() == batch.ids.tolist()
            resumed = mixed.iter(rank, world, **settings)
            resumed.load_state_dict(json.loads(json.dumps(batches.state_dict())))
            if done == len(whole) < rank_0_batches:  # other ranks have one more batch
                assert batch_ids(resumed) == []
            assert batch_ids(resumed) == (whole[done:] or following)
        samples = mixed.iter(rank, world, **settings, batched=False)
        expected = [number for batch in whole for number in batch]
        assert len(samples) == len(expected)
        for done, sample in enumerate(samples, 1):
            assert sample["id"] == expected[done - 1]
            # At the end and in the middle of each batch of 9.
            if done % 9 in (0, 4) and done < len(expected):
                resumed = mixed.iter(rank, world, **settings, batched=False)
                resumed.load_state_dict(samples.state_dict())
                assert [int(sample["id"]) for sample in resumed] == expected[done:]


def test_sources_of_batches_follow_the_batching_method(mixed):
    def origins(method):
        """Return the number of samples of each source, for each global batch and rank."""
        order = StreamingShuffle(batching_method=method, num_canonical_nodes=1)
        ranks = [mixed.iter(rank, 2, batch_size=8, shuffle=order) for rank in range(2)]
        counts = [
            [np.bincount(mixed.origin(batch.ids)[0], minlength=3) for batch in batches]
            for batches in zip(*ranks, strict=False)
        ]
        return np.array(counts)

    assert (origins("stratified").sum(axis=1) == origins("stratified")[0].sum(axis=0)).all()
    assert (np.count_nonzero(origins("per_stream").sum(axis=1), axis=1) == 1).all()
    device_origins = origins("device_per_stream")
    assert (np.count_nonzero(device_origins, axis=2) == 1).all()
    assert (np.count_nonzero(device_origins.sum(axis=1), axis=1) == 2).any()


def test_ranks_may_differ_by_one_batch_with_device_per_stream(mixed):
    order = StreamingShuffle(None, batching_method="device_per_stream", num_canonical_nodes=1)

    def ranks(last):
        return [mixed.iter(r, 4, batch_size=7, shuffle=order, last=last) for r in range(4)]

    read = [[len(batch.ids) for batch in batches] for batches in ranks("repeat")]
    assert [*map(len, ranks("repeat"))] == [*map(len, read)] == [24, 24, 24, 23]  # 95 batches
    assert {*np.concatenate(read)} == {7}
    assert {len(batch_ids(batches)) for batches in ranks("drop")} == {23}


@pytest.mark.parametrize(
    ("count", "epoch_size"),
    [
        (300, "0.3k"), (300, "300"), (1000, "1K"), (1500, "1.5k"), (7, 7), (300, " 0.3 k "),
        (1000, "1e0k"), (50, 50.0), (50, 50.9), (50, np.float32(50)), (77, "0.0775k"),
    ],
)  # fmt: skip
def test_epochs_of_a_size_that_is_text_or_a_float(mixed, count, epoch_size):
    batches = mixed.iter(0, 1, batch_size=1, shuffle="py1e", epoch_size=epoch_size)
    assert len(batches) == count
    native = mixed[["id"]].iter(0, 1, batch_size=1, epoch_size=epoch_size)
    assert len(native) == count


def test_one_dataset_may_be_all_of_a_mixture(ds):
    for method in BATCHING_METHODS:
        settings = {"batch_size": 8, "shuffle": StreamingShuffle(batching_method=method)}
        expected = batch_ids(ds.iter(1, 2, **settings))
        batches = npstream.mix({"alone": ds}).iter(1, 2, **settings)
        assert batch_ids(pickle.loads(pickle.dumps(batches))) == batch_ids(batches) == expected


def test_one_dataset_may_be_several_streams(ds):
    twice = npstream.mix({"x": ds, "y": ds})
    ids = np.concatenate(batch_ids(twice.iter(0, 1, batch_size=8, shuffle="py1e")))
    assert sorted(ids.tolist()) == [*range(2 * len(ds))]
    weighted = StreamingShuffle("py1e", repeat={"x": 2}, choose={"y": 5})
    batches = twice.iter(0, 1, batch_size=8, shuffle=weighted)
    ids = np.concatenate([batch.ids for batch in batches])
    assert np.bincount(ids)[: len(ds)].tolist() == [2] * len(ds)
    assert len(ids) == 2 * len(ds) + 5


def test_changed_settings_raise_when_a_state_is_loaded(mixed):
    def batches(size=8, **settings):
        return mixed.iter(0, 1, batch_size=size, shuffle=StreamingShuffle("py1s", **settings))

    state = batches(repeat={"a": 2}).state_dict()
    batches(repeat={"a": 2.0}).load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state is of weights=.*'repeat': 2\.0"):
        batches(repeat={"b": 2}).load_state_dict(state)
    state = batches(batching_method="per_stream").state_dict()
    with pytest.raises(ValueError, match=r"global_batch_size=8; .* global_batch_size=4"):
        batches(4, batching_method="per_stream").load_state_dict(state)
    with pytest.raises(ValueError, match="'batching_method': 'per_stream'"):
        batches(batching_method="stratified").load_state_dict(state)
    with pytest.raises(ValueError, match=r"num_canonical_nodes, .* missing"):
        batches().load_state_dict(mixed.iter(0, 1, batch_size=8, shuffle=True).state_dict())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"proportion": {"a": 1, "b": 1, "d": 1}}, ValueError, "no source 'd'; the sources are"),
        ({"proportion": {"a": 1}}, ValueError, "give a proportion to all"),
        ({"repeat": {"a": 1}, "choose": {"a": 1}}, ValueError, "'a' has at most one weight, not r"),
        ({"repeat": {"a": 2}, "epoch_size": 5}, ValueError, "the sum of repeat and choose"),
        ({"choose": dict.fromkeys("abc", 0)}, ValueError, "no sample of any stream"),
        (
            {"choose": {"a": 0}, "batching_method": "stratified"},
            ValueError,
            "takes no sample of stream 0, and batching_method='stratified' makes batches of each",
        ),
        (
            {"choose": {"b": 1}, "batching_method": "stratified"},
            ValueError,
            "a global batch of 8 samples holds no sample of stream 1: use a larger batch",
        ),
        ({"batching_method": "per_stream", "batch_size": None}, ValueError, "give batch_size or"),
        ({"batching": "per_stream"}, ValueError, "give shuffle=npstream.StreamingShuffle"),
        ({"epoch_size": "many"}, ValueError, "epoch_size='many': expected a number, alone"),
        ({"epoch_size": "1e3"}, ValueError, "epoch_size='1e3': expected a number, alone"),
        ({"epoch_size": "infk"}, ValueError, "epoch_size='infk': expected a number, alone"),
        ({"epoch_size": 0}, ValueError, "epoch_size=0: expected at least 1"),
        ({"epoch_size": 0.5}, ValueError, "epoch_size=0.5, which is 0: expected at least 1"),
        ({"epoch_size": "-5k"}, ValueError, "epoch_size='-5k', which is -5000: expected at"),
        ({"epoch_size": float("nan")}, ValueError, "epoch_size=nan: expected a number"),
        ({"epoch_size": 1 << 63}, ValueError, "and at most 9223372036854775807"),
        ({"epoch_size": True}, TypeError, "epoch_size=True: expected an integer"),
        (
            {"choose": {"b": 7}, "batching_method": "per_stream", "num_canonical_nodes": 1},
            ValueError,
            r"stream 1 has 7 samples .* a global batch of 8 samples.*\(stream 1 is source 'b'\)",
        ),
    ],
)  # fmt: skip
def test_invalid_mixtures_raise_immediately(mixed, settings, error, message):
    arguments = {"batch_size": 8} | dict(settings)
    names = [name for name in arguments if name in StreamingShuffle.__slots__]
    order = StreamingShuffle("py1s", **{name: arguments.pop(name) for name in names})
    with pytest.raises(error, match=message):
        mixed.iter(0, 1, shuffle=order, **arguments)


@pytest.mark.parametrize(
    "view",
    [
        lambda mixed, ds: mixed[::2],
        lambda mixed, ds: mixed.shuffle(0),
        lambda mixed, ds: npstream.mix({"whole": ds, "part": ds[1:]}),
        lambda mixed, ds: npstream.mix({"reversed": ds[::-1]}),
    ],
    ids=["slice", "shuffled", "part", "reversed"],
)
def test_orders_need_mixtures_of_whole_datasets(mixed, ds, view):
    with pytest.raises(ValueError, match=r"orders need whole datasets, and (this|source ')"):
        view(mixed, ds).iter(shuffle="py1e")
    for whole in (mixed[["id"]], mixed[:], npstream.mix({"reversed twice": ds[::-1][::-1]})):
        whole.iter(shuffle="py1e")


def test_unequal_weights_of_the_mixture_raise(ds):
    equal = npstream.mix({"a": ds, "b": ds}, {"a": 2, "b": 2})
    equal.iter(shuffle="py1e")  # equal weights are the same as no weights
    other = npstream.mix({"a": ds, "b": ds}, {"a": 3, "b": 1})
    with pytest.raises(ValueError, match=r"mix without weights, and give .*\(proportion=\.\.\.\)"):
        other.iter(shuffle="py1e")


def test_weights_need_a_mixture(ds):
    with pytest.raises(ValueError, match=r"a single dataset has no weights: make an npstream\.mix"):
        ds.iter(shuffle=StreamingShuffle(repeat={"a": 2}))
