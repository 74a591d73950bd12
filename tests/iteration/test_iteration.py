"""``ds.iter`` yields the same as `load` of the same rows."""

from __future__ import annotations

import copy
import pickle

import golden_data
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream import Shuffle
from npstream.iteration.partition import LAST_BATCH_MODES, LOOKUP_SAMPLES, Partition
from npstream.reading.batch import Batch
from npstream.reading.source import Source
from npstream.shards.paging import PagePrefetcher
from npstream.shards.table import Fetcher

N = 103


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    path = tmp_path_factory.mktemp("iterate") / "data"
    columns = {
        "x": np.arange(3 * N, dtype=np.float32).reshape(N, 3),
        "label": np.arange(N, dtype=np.int16),
        "text": ["z" * (i % 7) for i in range(N)],
    }
    npstream.write(path, columns, shard_size="512B")
    return npstream.open(path)


VIEWS = {
    "all": lambda ds: ds,
    "reversed": lambda ds: ds[::-3],
    "mask": lambda ds: ds[ds["label"] % 3 == 1],
    "shuffled": lambda ds: ds.shuffle(3, block=None),
    "part of shuffled": lambda ds: ds.shuffle(3, block=None)[5:70:2],
    "2-d": lambda ds: ds[np.arange(24)[::-1].reshape(4, 6)],
    "beyond a block": lambda ds: ds[np.arange(LOOKUP_SAMPLES + 200) % N],
    "one": lambda ds: ds[7:8],
    "none": lambda ds: ds[:0],
}


@pytest.fixture(scope="module", params=VIEWS)
def view(request, ds):
    return VIEWS[request.param](ds)


def pretend_worker(monkeypatch, worker: int, workers: int) -> None:
    """Pretend to be one of DataLoader's workers."""
    monkeypatch.setattr("npstream.torch.worker_and_workers", lambda: (worker, workers))


def interleave(iterators):
    """Yield the first item of each iterator, then the second of each, like a DataLoader."""
    iterators = list(iterators)
    while iterators:
        for iterator in list(iterators):
            try:
                yield next(iterator)
            except StopIteration:
                iterators.remove(iterator)


def assert_same_columns(left, right):
    assert left.keys() == right.keys()
    for name, column in right.items():
        assert type(left[name]) is type(column)
        for one, other in zip(left[name], column, strict=True):
            np.testing.assert_array_equal(one, other)


def assert_same_samples(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert type(one[name]) is type(value)
            np.testing.assert_array_equal(one[name], value)


@pytest.mark.parametrize("last", LAST_BATCH_MODES)
@pytest.mark.parametrize(("world", "batch_size"), [(1, 8), (3, 5), (4, 1), (2, LOOKUP_SAMPLES + 1)])
def test_batches_hold_the_positions_of_the_partition(view, last, world, batch_size):
    flat = view.ravel()
    ids = np.arange(N)[flat["label"].load()]
    for rank in range(world):
        part = Partition(view.size, rank, world, batch_size, last)
        batches = view.iter(rank, world, batch_size=batch_size, last=last)
        assert len(batches) == part.batches
        t = -1
        for t, batch in enumerate(batches):
            assert type(batch) is Batch
            positions = part.positions(range(t, t + 1))
            rows = positions % view.size
            np.testing.assert_array_equal(batch.ids, ids[rows])
            np.testing.assert_array_equal(batch.repeated, positions >= view.size)
            if t in (0, part.batches - 1):
                assert_same_columns(batch, flat[rows].load())
        assert t + 1 == part.batches


@pytest.mark.parametrize("last", LAST_BATCH_MODES)
@pytest.mark.parametrize("batch_size", [None, 1, 6])
def test_samples_equal_those_of_the_batches(view, last, batch_size):
    flat = view.ravel()[:200]
    part = Partition(flat.size, 1, 3, batch_size or 1, last)
    samples = flat.iter(1, 3, batch_size=batch_size, batched=False, last=last)
    rows = part.positions(range(part.batches)) % max(flat.size, 1)
    assert_same_samples(list(samples), list(flat[rows]))
    assert len(samples) == part.samples


def test_ranks_together_see_every_sample_once_if_the_last_batch_is_short(view):
    batches = [
        batch for rank in range(3) for batch in view.iter(rank, 3, batch_size=4, last="short")
    ]
    seen = np.concatenate([np.empty(0, np.int64), *[batch.ids for batch in batches]])
    np.testing.assert_array_equal(np.sort(seen), np.sort(view.ravel()["label"].load()))
    assert not any(batch.repeated.any() for batch in batches)


def test_ranks_together_see_every_sample_if_batches_are_filled_up(view):
    ranks = [list(view.iter(rank, 3, batch_size=4)) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    assert {batch.n for batches in ranks for batch in batches} <= {4}
    once = [batch.ids[~batch.repeated] for batches in ranks for batch in batches]
    seen = np.concatenate([np.empty(0, np.int64), *once])
    np.testing.assert_array_equal(np.sort(seen), np.sort(view.ravel()["label"].load()))


@pytest.mark.parametrize("last", LAST_BATCH_MODES)
@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_workers_take_batches_in_turn(ds, monkeypatch, last, batch_size):
    batches = ds.iter(1, 2, batch_size=batch_size, last=last)
    alone = [batch.ids.tolist() for batch in batches]
    for count in (2, 3, 5):
        shares = []
        for worker in range(count):
            pretend_worker(monkeypatch, worker, count)
            shares.append(iter(batches))
        assert [batch.ids.tolist() for batch in interleave(shares)] == alone
        assert len(batches) == len(alone)


@pytest.mark.parametrize("last", LAST_BATCH_MODES)
def test_workers_take_runs_of_samples(ds, monkeypatch, last):
    samples = ds.iter(0, 2, batch_size=4, batched=False, last=last)
    alone = [sample["label"] for sample in samples]
    runs = [alone[start : start + 4] for start in range(0, len(alone), 4)]
    for worker in range(3):
        pretend_worker(monkeypatch, worker, 3)
        share = [sample["label"] for sample in samples]
        assert share == [label for run in runs[worker::3] for label in run]


def test_single_samples_in_several_workers_warn(ds, monkeypatch):
    samples = ds.iter(0, 1, last="short")
    pretend_worker(monkeypatch, 0, 2)
    with pytest.warns(
        UserWarning,
        match=r"2 workers take single samples in turn.*batch_size=\.\.\., batched=False",
    ):
        shares = [iter(samples)]
    pretend_worker(monkeypatch, 1, 2)
    shares.append(iter(samples))  # only worker 0 warns
    assert [sample["label"] for sample in interleave(shares)] == list(range(N))


def test_transform_takes_batches_or_samples(ds):
    batches = ds.iter(0, 1, batch_size=50, last="drop", transform=lambda batch: batch.n)
    assert list(batches) == [50, 50]
    samples = ds[:3].iter(0, 1, transform=lambda sample: int(sample["label"]) + 10)
    assert list(samples) == [10, 11, 12]


def test_transform_is_applied_after_the_transform_of_the_view(ds):
    view = ds[:3].with_transform(lambda sample: int(sample["label"]))
    assert list(view.iter(0, 1)) == [0, 1, 2]
    assert list(view.iter(0, 1, batch_size=3, batched=False)) == [0, 1, 2]
    assert list(view.iter(0, 1, transform=lambda label: label - 1)) == [-1, 0, 1]


def test_batches_of_a_view_with_a_transform_raise(ds):
    view = ds.with_transform(len)
    with pytest.raises(ValueError, match="transform="):
        view.iter(0, 1, batch_size=3)
    with pytest.raises(ValueError, match="transform="):
        view.iter(0, 1, batch_size=3, transform=len)


def test_omitted_columns_are_not_read(ds, monkeypatch):
    read_names = []
    columns = Source.columns

    def read(self, plan, lookup, out):
        read_names.extend(field.name for field in plan.fields)
        return columns(self, plan, lookup, out)

    monkeypatch.setattr(Source, "columns", read)
    (batch,) = ds[:4][["label"]].iter(0, 1, batch_size=4)
    assert list(batch) == read_names == ["label"]


@pytest.mark.parametrize("name", ["csv_one_col", "jsonl_shards", "mds_c_gz", "mds_bytes_str"])
def test_every_format_can_be_iterated(name):
    data = npstream.open(golden_data.directory(golden_data.case(name)))
    rows = 0
    for batch in data.iter(0, 1, batch_size=2, last="short"):
        assert_same_columns(batch, data[rows : rows + 2].load())
        rows += batch.n
    assert rows == len(data)
    assert_same_samples(list(data.iter(0, 1)), list(data))


# Reading ahead


def test_pages_of_a_batch_are_prefetched_before_the_previous_batch_is_read(ds, monkeypatch):
    events = []
    columns = Source.columns

    def read(self, plan, lookup, out):
        events.append(("read", int(lookup.rows[0])))
        return columns(self, plan, lookup, out)

    monkeypatch.setattr(Source, "columns", read)
    monkeypatch.setattr(
        Fetcher, "prefetch", lambda self, ids: events.append(("ask for", int(ids[0])))
    )
    batches = ds[:30].iter(0, 1, batch_size=10)
    events.extend(("yield", int(batch.ids[0])) for batch in batches)
    assert events == [
        ("ask for", 0), ("ask for", 10), ("read", 0), ("yield", 0),
        ("ask for", 20), ("read", 10), ("yield", 10),
        ("read", 20), ("yield", 20),
    ]  # fmt: skip


def test_pages_are_prefetched_once(ds, monkeypatch):
    prefetches = []
    monkeypatch.setattr(PagePrefetcher, "is_active", True)
    monkeypatch.setattr(
        PagePrefetcher, "prefetch", lambda self, address, nbytes: prefetches.append(len(address))
    )
    assert len(list(ds[:35].iter(0, 1, batch_size=10, last="short"))) == 4
    assert prefetches == [10, 10, 10, 5]


def test_samples_are_read_in_blocks(ds, monkeypatch):
    reads = []
    samples = Source.samples

    def read(self, names, lookup):
        reads.append(len(lookup.rows))
        return samples(self, names, lookup)

    monkeypatch.setattr(Source, "samples", read)
    view = ds[np.arange(3000) % N]
    assert len(list(view.iter(0, 1, batch_size=8, batched=False))) == 3000
    assert reads == [LOOKUP_SAMPLES, LOOKUP_SAMPLES, 3000 - 2 * LOOKUP_SAMPLES]


# Ranks


@pytest.fixture
def clean_env(monkeypatch):
    """Remove the variables of torchrun; return the `monkeypatch`, to set them."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return monkeypatch


def test_a_single_process_is_rank_0_of_1(ds, clean_env):
    assert len(ds.iter()) == N


def test_rank_and_world_are_read_from_the_environment(ds, clean_env):
    batches = ds.iter(batch_size=10, last="short")
    clean_env.setenv("RANK", "1")
    clean_env.setenv("WORLD_SIZE", "4")
    assert next(iter(batches)).ids.tolist() == list(range(1, 41, 4))
    assert len(ds.iter(3, 5, batch_size=1, last="short")) == 20


def test_ranks_per_node_are_read_from_the_environment_only_if_the_rank_is(ds, clean_env):
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        clean_env.setenv(name, value)
    assert next(iter(ds.iter(batch_size=3))).ids.tolist() == [1, 5, 9]
    assert next(iter(ds.iter(batch_size=3, ranks_per_node=4))).ids.tolist() == [2, 6, 10]
    assert next(iter(ds.iter(2, 4, batch_size=3))).ids.tolist() == [2, 6, 10]
    assert next(iter(ds.iter(2, 4, batch_size=3, ranks_per_node=1))).ids.tolist() == [2, 6, 10]
    assert next(iter(ds.iter(2, 4, batch_size=3, ranks_per_node=2))).ids.tolist() == [1, 5, 9]
    clean_env.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="ranks_per_node=3 does not divide world=4"):
        len(ds.iter())
    clean_env.setenv("LOCAL_WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="LOCAL_WORLD_SIZE=two"):
        len(ds.iter())


@pytest.mark.parametrize("per_node", [1, 8])
def test_nodes_read_their_own_shards_in_every_epoch(ds, per_node):
    """Two nodes read a shard that crosses the end of a lane."""
    nodes, lanes = 2, 4
    read = [set(), set()]
    for rank in range(nodes * per_node):
        batches = ds.iter(
            rank, nodes * per_node, batch_size=3, shuffle=Shuffle("1KB", lanes=lanes),
            last="short", ranks_per_node=per_node,
        )  # fmt: skip
        for _ in range(3):
            for batch in batches:
                read[rank // per_node].update(ds.locate(batch.ids)[0].tolist())
    shards = len(ds.shards)
    assert len(read[0] | read[1]) == shards > 2 * lanes
    assert len(read[0] & read[1]) < lanes


def test_an_order_whose_chunks_several_nodes_fetch_warns_once(ds, clean_env):
    settings = {"shuffle": Shuffle("1KB", lanes=4)}
    message = "each chunk is fetched 3 times, because 6 nodes do not divide the number of lanes"
    with pytest.warns(UserWarning, match=message):
        ds.iter(0, 12, ranks_per_node=2, **settings)
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "12"), ("LOCAL_WORLD_SIZE", "2")):
        clean_env.setenv(name, value)
    batches = ds.iter(**settings)
    with pytest.warns(UserWarning, match=message) as warned:
        assert len(batches) == len(list(batches)) == 9
    assert len(warned) == 1


@pytest.mark.parametrize(
    "options",
    [
        {},  # unknown nodes
        {"ranks_per_node": 3},
        {"ranks_per_node": 2, "replication": 6},
        {"ranks_per_node": 2, "shuffle": True},  # one lane
        {"ranks_per_node": 2, "shuffle": Shuffle(lanes=12)},
        {"ranks_per_node": 2, "shuffle": False},
        {"ranks_per_node": 2, "shuffle": "py1e"},
    ],
)
def test_other_orders_do_not_warn(ds, options):
    assert ds.iter(0, 12, **{"shuffle": Shuffle("1KB", lanes=4), **options})


def test_a_global_batch_is_divided_among_ranks(ds, clean_env):
    batches = ds.iter(global_batch_size=24)
    assert "batches of 24 of all ranks" in repr(batches)
    clean_env.setenv("RANK", "1")
    clean_env.setenv("WORLD_SIZE", "3")
    assert len(batches) == 5
    assert next(iter(batches)).ids.tolist() == list(range(1, 24, 3))
    assert next(iter(ds.iter(global_batch_size=24, batch_size=8))).n == 8
    clean_env.setenv("WORLD_SIZE", "5")
    with pytest.raises(ValueError, match=r"global_batch_size=24 with batch_size=None: .* 5 times"):
        len(ds.iter(global_batch_size=24))


def test_replicas_read_the_same_samples(ds):
    read = [
        next(iter(ds.iter(rank, 8, batch_size=3, replication=2, ranks_per_node=4))).ids.tolist()
        for rank in range(8)
    ]
    assert read[::2] == read[1::2] == [[0, 4, 8], [2, 6, 10], [1, 5, 9], [3, 7, 11]]
    across_nodes = ds.iter(5, 8, batch_size=2, replication=4, ranks_per_node=2)
    assert next(iter(across_nodes)).ids.tolist() == [1, 3]


@pytest.mark.parametrize("use", [len, iter, pickle.dumps, copy.copy])
def test_rank_and_world_are_detected_on_first_use_and_kept(ds, clean_env, use):
    samples = ds.iter(last="short")
    assert "rank ? of ?" in repr(samples)
    clean_env.setenv("RANK", "1")
    clean_env.setenv("WORLD_SIZE", "2")
    use(samples)
    clean_env.setenv("RANK", "0")
    assert len(samples) == 51
    assert len(ds.iter(last="short")) == 52


def test_pickles_contain_the_rank(ds, clean_env):
    clean_env.setenv("RANK", "2")
    clean_env.setenv("WORLD_SIZE", "3")
    sent = pickle.dumps(ds.iter(batch_size=9, last="short"))
    clean_env.setenv("RANK", "0")
    received = pickle.loads(sent)
    assert "rank 2 of 3, batches of 9" in repr(received)
    assert next(iter(received)).ids[0] == 2


@pytest.mark.parametrize(
    ("rank", "world"), [("1", None), (None, "2"), ("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")]
)
def test_an_invalid_environment_raises(ds, clean_env, rank, world):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        if value is not None:
            clean_env.setenv(name, value)
    with pytest.raises(ValueError, match=f"RANK={rank} and WORLD_SIZE={world}: .*give rank="):
        len(ds.iter())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank=0 and world=None: give both"),
        ({"world": 2}, ValueError, "give both, or neither"),
        ({"rank": 2, "world": 2}, ValueError, "rank=2 of world=2"),
        ({"rank": -1, "world": 2}, ValueError, "rank=-1: expected at least 0"),
        ({"rank": 0, "world": 0}, ValueError, "world=0: expected at least 1"),
        ({"rank": 0.0, "world": 1}, TypeError, "rank=0.0: expected an integer"),
        ({"rank": False, "world": 1}, TypeError, "rank=False: expected an integer"),
        ({"batch_size": 0}, ValueError, "batch_size=0: expected at least 1"),
        ({"batch_size": 2.5}, TypeError, "batch_size=2.5: expected an integer"),
        ({"batch_size": True}, TypeError, "batch_size=True: expected an integer"),
        ({"batch_size": np.True_}, TypeError, "batch_size=.*: expected an integer"),
        ({"batched": 1}, TypeError, "batched=1: expected True or False"),
        ({"last": "pad"}, ValueError, "last='pad': expected 'repeat', 'drop'"),
        ({"last": True}, ValueError, "last=True: expected .*drop_last=True"),
        ({"global_batch_size": 0}, ValueError, "global_batch_size=0: expected at least 1"),
        (
            {"rank": 0, "world": 2, "global_batch_size": 8, "batch_size": 3},
            ValueError,
            "global_batch_size=8 with batch_size=3: expected 2 times the batch_size",
        ),
        ({"shuffle": 1}, TypeError, "shuffle=1: expected False, True, an npstream.Shuffle"),
        ({"seed": 0.5}, TypeError, "seed=0.5: expected an integer"),
        ({"epoch": -1}, ValueError, "epoch=-1: expected at least 0"),
        ({"epoch_size": 0}, ValueError, "epoch_size=0: expected at least 1"),
        ({"rank": 0, "world": 4, "ranks_per_node": 3}, ValueError, "does not divide world=4"),
        ({"rank": 0, "world": 4, "replication": 3}, ValueError, "replication=3 does not divide"),
        (
            {"rank": 0, "world": 12, "ranks_per_node": 6, "replication": 4},
            ValueError,
            "replication=4 neither divides ranks_per_node=6",
        ),
        ({"transform": "f"}, TypeError, "transform='f': expected a function"),
    ],
)
def test_invalid_settings_raise_immediately(ds, arguments, error, message):
    with pytest.raises(error, match=message):
        ds.iter(**arguments)


@given(st.sampled_from([np.int64, np.uint8, np.array]), st.integers(1, 5))
def test_integers_can_have_any_type(ds, kind, number):
    batches = ds.iter(kind(0), kind(number), batch_size=kind(number))
    assert len(batches) == -(-N // number**2)


# Text and HTML


def test_reprs_describe_ranks_batches_and_progress(ds, clean_env):
    batches = ds.iter(1, 4, batch_size=8, shuffle=True)
    length = len(batches)
    text = f"rank 1 of 4, batches of 8, last='repeat', epoch 0 of {length} batches"
    assert repr(batches) == f"<Iteration: {text}>"
    iterator = iter(batches)
    next(iterator)
    expected = f"<EpochIterator: epoch 0, rank 1 of 4, samples 8 of {8 * length}>"
    assert repr(iterator) == expected
    assert f"8 of {8 * length}" in iterator._repr_html_()
    list(iterator)
    assert repr(iterator).endswith(", finished>")
    assert "epoch 1 of" in repr(batches)
    html = batches._repr_html_()
    assert "<th>rank</th><td>1 of 4</td>" in html
    assert f"<th>epoch</th><td>1 of {length} batches</td>" in html


def test_a_repr_detects_no_ranks(ds, clean_env):
    samples = ds.iter()
    assert "? of ?" in repr(samples) + samples._repr_html_()
    clean_env.setenv("RANK", "1")
    clean_env.setenv("WORLD_SIZE", "2")
    assert "rank ? of ?" in repr(samples)
    len(samples)
    assert repr(samples).startswith("<Iteration: rank 1 of 2, samples, last='repeat', epoch 0 of ")
