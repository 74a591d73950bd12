"""Epochs leave out rows that are not valid, and balance the costs of batches."""

from __future__ import annotations

import copy
import pickle
from itertools import chain

import numpy as np
import pytest

import npstream

N = 1200
G = 24  # global batch size
FLAGS = np.random.default_rng(2).random(N) >= 0.1
LENGTHS = np.ceil(np.random.default_rng(3).lognormal(5, 0.8, N)).astype(np.int32)
ORDERS = {
    "view": False,
    "all": npstream.Shuffle(block=None),
    "lanes": npstream.Shuffle(block="2KiB", lanes=3),
    "stratified": npstream.Shuffle(block="2KiB", lanes=3, stratified=True),
}


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    path = tmp_path_factory.mktemp("epochs") / "data"
    columns = {"label": np.arange(N), "ok": FLAGS, "length": LENGTHS}
    npstream.write(path, columns, shard_size="4KiB")
    return npstream.open(path)


@pytest.fixture(params=ORDERS)
def shuffle(request):
    return ORDERS[request.param]


def read(ds, world=1, state=None, **settings):
    """Return the ids of each rank in each batch, and the states of rank 0."""
    ranks = [ds.iter(rank, world, global_batch_size=G, **settings) for rank in range(world)]
    if state is not None:
        for rank in ranks:
            rank.load_state_dict(state)
    batches, states = [], [ranks[0].state_dict()]
    for parts in zip(*ranks, strict=True):
        batches.append([part.ids for part in parts])
        states.append(ranks[0].state_dict())
    return batches, states


def global_batches(batches):
    return [np.sort(np.concatenate(parts)).tolist() for parts in batches]


def concatenated(batches):
    return np.concatenate([np.concatenate(parts) for parts in batches])


# Valid rows


def test_valid_rows_keep_the_order_of_all_rows(ds, shuffle):
    whole, _ = read(ds, shuffle=shuffle, last="short")
    some, _ = read(ds, shuffle=shuffle, last="short", valid="ok")
    rows = concatenated(whole)
    np.testing.assert_array_equal(concatenated(some), rows[FLAGS[rows]])


@pytest.mark.parametrize("valid", ["ok", FLAGS, FLAGS.tolist()])
def test_valid_may_be_a_column_or_an_array(ds, valid):
    batches = ds.iter(0, 1, batch_size=10, valid=valid, last="short")
    assert len(batches) == -(-FLAGS.sum() // 10)
    ids = np.concatenate([batch.ids for batch in batches])
    np.testing.assert_array_equal(ids, np.flatnonzero(FLAGS))


def test_valid_has_a_flag_for_each_row_of_the_view(ds):
    view = ds[::-3]
    ids = [sample["label"] for sample in view.iter(0, 1, valid="ok")]
    np.testing.assert_array_equal(ids, np.arange(N)[::-3][FLAGS[::-3]])
    grid = ds[np.arange(24).reshape(4, 6)]
    flags = np.arange(24).reshape(4, 6) % 2 == 0
    assert [s["label"] for s in grid.iter(0, 1, valid=flags)] == [*range(0, 24, 2)]


def test_epochs_of_another_size_continue_in_the_valid_rows(ds, shuffle):
    batches = ds.iter(0, 1, batch_size=7, shuffle=shuffle, valid="ok", epoch_size=490, last="short")
    epochs = [np.concatenate([batch.ids for batch in batches]) for _ in range(5)]
    assert [len(epoch) for epoch in epochs] == [490] * 5
    first = np.concatenate(epochs)[: FLAGS.sum()]
    np.testing.assert_array_equal(np.sort(first), np.flatnonzero(FLAGS))


def test_an_epoch_without_valid_rows_is_empty(ds):
    batches = ds.iter(0, 1, batch_size=7, shuffle=True, valid=np.zeros(N, bool))
    assert len(batches) == 0
    assert [*batches] == []


# Balanced batches


BALANCES = {
    "valid": {"valid": "ok"},
    "ranks": {"balance": "length"},
    "ranks of valid rows": {"balance": "length", "valid": "ok"},
    "buckets": {"balance": "length", "buckets": 8},
    "buckets of valid rows": {"balance": LENGTHS, "buckets": 8, "valid": "ok"},
}


@pytest.mark.parametrize("name", BALANCES)
@pytest.mark.parametrize("last", ["repeat", "drop", "short"])
def test_any_world_and_any_resumed_run_have_the_same_global_batches(ds, shuffle, name, last):
    settings = {"shuffle": shuffle, "seed": 5, "last": last, **BALANCES[name]}
    batches, states = read(ds, **settings)
    expected = global_batches(batches)
    for world in (2, 3, 8):
        assert global_batches(read(ds, world, **settings)[0]) == expected
    for step in (1, 17, 30, len(expected) - 1):
        for world in (1, 8):
            rest, _ = read(ds, world, states[step], **settings)
            assert global_batches(rest) == expected[step:]


@pytest.mark.parametrize("name", ["ranks", "ranks of valid rows"])
def test_balance_only_moves_samples_between_ranks(ds, shuffle, name):
    settings = {"shuffle": shuffle, "seed": 5, **BALANCES[name]}
    valid = {"valid": settings["valid"]} if "valid" in settings else {}
    plain, _ = read(ds, 8, shuffle=shuffle, seed=5, **valid)
    balanced, _ = read(ds, 8, **settings)
    assert global_batches(balanced) == global_batches(plain)
    assert [[len(ids) for ids in parts] for parts in balanced] == [[3] * 8] * len(plain)
    balanced_maximum, plain_maximum = [
        np.mean([max(LENGTHS[ids].sum() for ids in parts) for parts in batches])
        for batches in (balanced, plain)
    ]
    assert balanced_maximum < 0.85 * plain_maximum  # 0.71 to 0.74 were measured


def test_buckets_have_little_padding(ds):
    def padding(**settings):
        """Return the part of a padded batch that is padding."""
        batches, _ = read(ds, 2, shuffle=True, last="drop", **settings)
        lengths = [LENGTHS[ids] for parts in batches for ids in parts]
        return 1 - sum(map(np.sum, lengths)) / sum(len(part) * part.max() for part in lengths)

    assert padding(balance="length", buckets=25) < 0.3 * padding()  # 0.18 and 0.65


def test_nodes_and_workers_read_the_same(ds):
    torch = pytest.importorskip("torch")
    settings = {"batch_size": 6, "shuffle": True, "balance": "length", "valid": "ok"}
    ranks = [ds.iter(rank, 4, ranks_per_node=2, **settings) for rank in range(4)]
    expected = [[batch.ids.tolist() for batch in rank] for rank in ranks]
    plain = [[b.ids.tolist() for b in ds.iter(r, 4, **settings)] for r in range(4)]
    for left, right in zip(zip(*expected, strict=True), zip(*plain, strict=True), strict=True):
        assert sorted(chain(*left)) == sorted(chain(*right))
    loader = torch.utils.data.DataLoader(
        ds.iter(1, 4, ranks_per_node=2, **settings), batch_size=None, num_workers=2,
        multiprocessing_context="fork",
    )  # fmt: skip
    assert [batch.ids.tolist() for batch in loader] == expected[1]


@pytest.mark.parametrize("name", BALANCES)
def test_copies_read_the_same(ds, name):
    settings = {"batch_size": 12, "shuffle": True, **BALANCES[name]}
    expected = [batch.ids.tolist() for batch in ds.iter(0, 2, **settings)]
    for make_copy in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        batches = make_copy(ds.iter(0, 2, **settings))
        assert [batch.ids.tolist() for batch in batches] == expected


@pytest.mark.parametrize("name", BALANCES)
def test_samples_of_a_step_are_listed_by_rank(ds, name):
    settings = {"global_batch_size": G, "shuffle": True, **BALANCES[name]}
    ranks = [ds.iter(rank, 3, **settings) for rank in range(3)]
    parts = [[*rank][4].ids for rank in ranks]
    samples = ranks[0].samples_of(4, epoch=0)
    for rank, ids in enumerate(parts):
        np.testing.assert_array_equal(samples.ids[samples.ranks == rank], ids)
    with pytest.raises(ValueError, match=r"the run had .*=, whose values the state does not hold"):
        ds.provenance(ranks[0].state_dict(), steps=1)


# States


@pytest.mark.parametrize("name", BALANCES)
def test_a_state_is_refused_with_other_settings(ds, name):
    def iteration(**changes):
        return ds.iter(0, 1, global_batch_size=G, shuffle=True, **changes)

    state = iteration(**BALANCES[name]).state_dict()
    iteration(**BALANCES[name]).load_state_dict(state)
    other_flags, other_lengths = FLAGS.copy(), LENGTHS.copy()
    other_flags[7] ^= True
    other_lengths[7] += 1
    others = [{}, {"valid": other_flags}, {"balance": other_lengths}]
    if "buckets" in BALANCES[name]:
        others.append({**BALANCES[name], "buckets": 9})
    else:
        others.append({**BALANCES[name], "balance": LENGTHS, "buckets": 8})
    for other in others:
        with pytest.raises(ValueError, match=r"the state is of an iteration with (no )?\w+="):
            iteration(**other).load_state_dict(state)
    with pytest.raises(ValueError, match=r"with no \w+=; this iteration has \w+= of"):
        iteration(**BALANCES[name]).load_state_dict(iteration().state_dict())


def test_buckets_resume_only_with_the_same_global_batch(ds):
    settings = {"shuffle": True, "balance": "length", "buckets": 8}
    state = ds.iter(0, 2, batch_size=12, **settings).state_dict()
    ds.iter(0, 3, batch_size=8, **settings).load_state_dict(state)
    with pytest.raises(ValueError, match="'global_batch_size': 24"):
        ds.iter(0, 3, batch_size=12, **settings).load_state_dict(state)


def test_balanced_ranks_resume_with_another_batch_size(ds):
    settings = {"shuffle": True, "balance": "length", "last": "short"}
    batches = ds.iter(0, 1, batch_size=100, **settings)
    first = next(iter(batches)).ids
    rest = ds.iter(0, 1, batch_size=64, **settings)
    rest.load_state_dict(batches.state_dict())
    ids = np.concatenate([first, *(batch.ids for batch in rest)])
    np.testing.assert_array_equal(np.sort(ids), np.arange(N))


def test_states_without_these_settings_do_not_mention_them(ds):
    assert {"valid", "balance"}.isdisjoint(ds.iter(0, 1, batch_size=2).state_dict())


def test_skipping_does_not_change_the_other_batches(ds):
    settings = {"shuffle": True, "balance": "length", "valid": "ok"}
    expected = global_batches(read(ds, 2, **settings)[0])
    ranks = [ds.iter(rank, 2, global_batch_size=G, **settings) for rank in range(2)]
    for rank in ranks:
        rank.skip(3, 5)
    parts = [[batch.ids for batch in rank] for rank in ranks]
    read_batches = global_batches(zip(*parts, strict=True))
    assert read_batches == expected[:3] + expected[5:]


def test_a_state_of_a_former_version_resumes_with_its_rows(tmp_path):
    path = tmp_path / "growing"
    npstream.write(path, {"x": np.arange(40)}, shard_size="100B")
    flags = np.arange(60) % 3 != 0
    settings = {"batch_size": 4, "shuffle": True}
    ds = npstream.open(path)
    batches = ds.iter(0, 1, valid=flags[:40], balance=np.arange(40), **settings)
    expected = [batch.ids.tolist() for batch in ds.iter(0, 1, valid=flags[:40], **settings)]
    next(iter(batches))
    state = batches.state_dict()
    npstream.write(path, {"x": np.arange(40, 60)}, shard_size="100B", mode="a")
    again = npstream.open(path).iter(0, 1, valid=flags, balance=np.arange(60), **settings)
    with pytest.warns(UserWarning, match="without those that were appended"):
        again.load_state_dict(state)
    assert [sorted(batch.ids.tolist()) for batch in again] == [sorted(ids) for ids in expected[1:]]


# Settings


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"buckets": 3}, ValueError, "give balance="),
        ({"balance": "length"}, ValueError, "give batch_size or global_batch_size"),
        ({"balance": "length", "batch_size": 2, "batched": False}, ValueError, "or give buckets="),
        ({"balance": "length", "batch_size": 2, "buckets": 0}, ValueError, "buckets"),
        ({"balance": "ok", "batch_size": 2}, TypeError, "expected numbers"),
        ({"valid": "length"}, TypeError, "expected bool"),
        ({"valid": "missing"}, npstream.errors.ColumnError, "missing"),
        ({"valid": [True]}, ValueError, "the shape"),
        ({"valid": "ok", "shuffle": "py1e", "batch_size": 2}, ValueError, "orders of Streaming"),
    ],
)
def test_settings_that_do_not_fit_are_refused(ds, settings, error, text):
    with pytest.raises(error, match=text):
        ds.iter(0, 1, **settings)
