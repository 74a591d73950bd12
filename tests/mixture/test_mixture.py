"""Mixtures read the same as NumPy's concatenation of their sources."""

from __future__ import annotations

import functools
import json
import multiprocessing
import operator
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
from dataset_files import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import COLUMNS, MASK, assert_batch, assert_sample, views_of, write

import npstream
from npstream.dataset.dataset import Dataset
from npstream.errors import ColumnError, FormatError
from npstream.indexing import selection
from npstream.indexing.selection import Selection
from npstream.mixture.source import MixedSource
from npstream.reading.source import Source
from npstream.shards.local import LocalShards
from npstream.shards.table import Fetcher


@pytest.fixture
def mixture_and_ids(tmp_path, upload, small_chunks):
    """Return a mixture of local, compressed and remote views, and the ids of its samples."""
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", 1000, 80, compression="zstd")
    for name, first, n, options in (("c", 2000, 60, {}), ("d", 3000, 40, {"compression": "zstd"})):
        write(tmp_path / name, first, n, **options)
    c, d = (
        npstream.open(upload(tmp_path / name), cache=tmp_path / f"cache-{name}") for name in "cd"
    )
    views, ids = views_of(a, b, c, d)
    return npstream.mix(views), np.concatenate(ids)


# Concatenation


@st.composite
def chains(draw):
    """Draw a few consecutive indices, and the rows that they select together."""
    rows, steps = np.arange(SIZE), []
    for _ in range(draw(st.integers(0, 3))):
        n, kind = len(rows), draw(st.sampled_from(["slice", "list", "mask", "shuffle"]))
        if kind == "slice":
            index = draw(st.slices(n))
        elif kind == "list" and n:
            index = np.array(draw(st.lists(st.integers(-n, n - 1), max_size=20)), np.int64)
        else:
            rng = np.random.default_rng(draw(st.integers(0, 99)))
            index = rng.random(n) < 0.5 if kind == "mask" else rng.permutation(n)
        steps.append(index)
        rows = rows[index]
    return steps, rows


SIZE = 60 + 80 + int(MASK.sum()) + 55 + 5 + 60 + 20  # of the seven views in `views_of`


def test_any_view_equals_the_view_of_the_concatenation(mixture_and_ids, monkeypatch):
    monkeypatch.setattr(selection, "MAX_MASK_AS_POSITIONS", 0)  # store small masks as bits, too
    mixed, ids = mixture_and_ids
    assert len(mixed) == len(ids) == SIZE

    @settings(max_examples=60)
    @given(chains())
    def check_chain(chain):
        steps, rows = chain
        view = functools.reduce(operator.getitem, steps, mixed)
        batch = view.load()
        assert batch.ids.tolist() == rows.tolist()
        assert_batch(batch, ids[rows])
        np.testing.assert_array_equal(np.asarray(view["id"]), ids[rows])
        np.testing.assert_array_equal(view["x"][:, 1].load(), ids[rows] + 1)
        np.testing.assert_array_equal(view["text"] == "<2001>", ids[rows] == 2001)
        assert view["id"].sum() == ids[rows].sum()
        source, row = mixed.origin(rows)
        shard, place = view.locate(slice(None))
        assert (mixed.shards["samples"][shard] > place).all()
        for k in range(0, len(rows), 17):
            assert_sample(view[k], ids[rows[k]])
            assert view.locate(k) == (shard[k], place[k])
            assert mixed.origin(int(rows[k])) == (source[k], row[k])

    check_chain()


def test_iteration_reads_the_same_as_indexing(mixture_and_ids):
    mixed, ids = mixture_and_ids
    for view, rows in ((mixed, slice(None)), (mixed[::-3], slice(None, None, -3))):
        for sample, i in zip(view, ids[rows], strict=True):
            assert_sample(sample, i)
    view = mixed[::2]
    for shuffle in (False, True):
        seen = []
        for batch in view.iter(0, 1, batch_size=17, shuffle=shuffle, last="short"):
            assert_batch(batch, ids[batch.ids])
            seen += batch.ids.tolist()
        assert sorted(seen) == list(range(0, SIZE, 2))
        assert shuffle == (seen != sorted(seen))


def test_any_kind_of_index_returns_its_values(mixture_and_ids):
    mixed, ids = mixture_and_ids
    nd = np.arange(24).reshape(2, 3, 4) * 7
    assert mixed[nd]["id"].load().tolist() == ids[nd].tolist()
    assert [part["id"].load().tolist() for part in mixed[nd]] == ids[nd].tolist()
    with pytest.raises(IndexError, match=f"index {SIZE} is out of bounds for axis 0"):
        mixed[SIZE]
    assert mixed.take([0, -1])["id"].tolist() == ids[[0, -1]].tolist()
    out = np.empty((SIZE, 3), np.float32)
    assert mixed.load(out={"x": out})["x"] is out
    np.testing.assert_array_equal(out[:, 2], ids + 2)
    parts = mixed.random_split([0.5, 0.5], 0, by="chunk")
    assert sorted(np.concatenate([part.load().ids for part in parts])) == list(range(SIZE))
    odd = mixed.filter(lambda sample: sample["id"] % 2 == 1, ["id"])
    assert odd["id"].load().tolist() == ids[ids % 2 == 1].tolist()


def test_a_fixed_column_of_one_local_view_is_memory_mapped(tmp_path):
    for name in "ab":
        npstream.write(tmp_path / name, {"x": np.arange(40.0)})
    a, b = (npstream.open(tmp_path / name) for name in "ab")
    mixed = npstream.mix({"a": a[::2], "b": b})
    mapped = np.asarray(mixed[4:10]["x"], copy=False)
    assert mapped.tolist() == list(range(8, 20, 2))
    assert not mapped.flags.owndata
    for rows in (slice(15, 25), slice(0, 0)):
        with pytest.raises(ValueError, match="Unable to avoid copy"):
            np.asarray(mixed[rows]["x"], copy=False)


def test_columns_can_differ_in_storage(tmp_path):
    """Text and binary files, or fixed and variable sizes, can be one column."""
    npstream.write(tmp_path / "a", [{"id": i, "t": f"a{i}"} for i in range(9)],
                   columns={"t": "str", "id": "int64"})  # fmt: skip
    write_jsonl(
        tmp_path / "b",
        [{"id": i, "t": f"b{i}", "more": 1.5} for i in range(5)],
        {"id": "int", "t": "str", "more": "float"},
    )
    mixed = npstream.mix({name: npstream.open(tmp_path / name) for name in "ab"})
    assert mixed.columns == ("t", "id")
    batch = mixed[::-1].load()
    assert batch["id"].tolist() == [*range(4, -1, -1), *range(8, -1, -1)]
    assert list(batch["t"])[3:7] == ["b1", "b0", "a8", "a7"]
    assert mixed[10]["t"] == "b1"
    assert (mixed["t"] == "b1").tolist() == [row == 10 for row in range(14)]
    assert mixed[:0].load()["id"].shape == (0,)
    rows = np.arange(24, dtype=np.uint16).reshape(6, 4)
    npstream.write(tmp_path / "c", {"x": rows})
    npstream.write(tmp_path / "d", [{"x": row.tobytes()} for row in rows], columns={"x": "bytes"})
    d = npstream.open(tmp_path / "d", columns={"x": "ndarray:uint16:4"})
    both = npstream.mix({"c": npstream.open(tmp_path / "c"), "d": d})
    np.testing.assert_array_equal(both[[1, 7, 11]]["x"].load(), rows[[1, 1, 5]])
    with pytest.raises(ColumnError, match=r"'ndarray:uint16:4' in source 'c', but 'bytes' in 'd'"):
        npstream.mix({name: npstream.open(tmp_path / name) for name in "cd"}, columns=["x"])


# Sources


def test_repr_and_properties_of_a_mixture(mixture_and_ids):
    mixed, ids = mixture_and_ids
    assert mixed.names == ("first", "packed", "masked", "remote", "listed", "shuffled", "tail")
    assert list(mixed.columns) == list(COLUMNS)
    assert mixed.weights["packed"] == pytest.approx(80 / SIZE)
    text = repr(mixed)
    assert text.startswith(f"<npstream.Mixture: {SIZE} samples of 7 sources\n  id ")
    assert f"  packed     {80 / SIZE:.2%} of drawn samples, 80 samples\n" in text
    assert repr(mixed[::2]).startswith(
        f"<npstream.Dataset: {len(mixed[::2])} samples of {SIZE} in "
    )
    assert f"<span>{ids[4]}</span>" in mixed._repr_html_()
    assert len(mixed.version) == 16
    assert len(mixed.shards) == sum(len(part.index) for part in mixed._source._datasets)
    assert mixed["id"].shape == (SIZE,)
    assert mixed.dtypes["x"] == np.float32


def test_views_of_one_dataset_share_its_memory(tmp_path):
    a = write(tmp_path / "a")
    mixed = npstream.mix({"even": a[::2], "odd": a[1::2], "all": a})
    assert len(mixed._source._datasets) == 1
    assert len(mixed.shards) == len(a.shards)
    assert mixed.version != a.version
    assert_batch(mixed[[3, 65, 120]].load(), [6, 11, 0])


def test_the_column_of_source_names(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", 1000, 80, compression="zstd")
    mixed = npstream.mix({"é": a[:3], "b": b[:2]}, columns=["source", "id"])
    names = ["é"] * 3 + ["b"] * 2
    assert mixed.columns == ("source", "id")
    assert list(mixed.load()["source"]) == names
    assert [sample["source"] for sample in mixed] == names
    assert mixed[3] == {"source": "b", "id": 1000}
    assert mixed["source"][4] == "b"
    assert mixed["source"].dtype == np.dtypes.StringDType()
    assert (mixed["source"] == "b").tolist() == [False] * 3 + [True] * 2
    assert np.asarray(mixed["source"]).tolist() == names
    assert list(mixed[["source"]].load()["source"]) == names
    assert mixed[["source"]][0] == {"source": "é"}
    assert [*mixed[["source"]]] == [{"source": name} for name in names]
    assert list(pickle.loads(pickle.dumps(mixed["source"]))[::2].load()) == names[::2]
    cost = mixed["source"].explain()
    assert (cost.samples, cost.shards) == (5, 0)
    assert mixed.explain() == mixed[["id"]].explain()
    with pytest.raises(ValueError, match="column 'source' is computed, not stored"):
        mixed["source"].view("uint8")
    with pytest.raises(ColumnError, match="no column 'source'"):
        npstream.mix({"a": a, "b": b})["source"]


def test_a_source_column_in_a_dataset_raises(tmp_path):
    for name in "ab":
        npstream.write(tmp_path / name, [{"source": "mine", "x": 1}])
    a, b = (npstream.open(tmp_path / name) for name in "ab")
    assert npstream.mix({"a": a, "b": b})[1] == {"source": "mine", "x": 1}
    with pytest.raises(ValueError, match="source 'a' has a column of the same name"):
        npstream.mix({"a": a, "b": b}, columns=["source", "x"])
    mixed = npstream.mix({"a": a[["x"]], "b": b[["x"]]}, columns=["source", "x"])
    assert mixed[1] == {"source": "b", "x": 1}


def double_id(sample):
    return {**sample, "id": 2 * sample["id"]}


def test_transforms_of_sources(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", 1000, 80)
    mixed = npstream.mix({"a": a.with_transform(double_id), "b": b}, columns=["id", "source"])
    view = mixed[[5, 121]]
    assert [sample["id"] for sample in view] == [view[0]["id"], view[1]["id"]] == [10, 1001]
    assert view["id"].load().tolist() == [5, 1001]
    assert view["id"][0] == 5
    assert "<span>5</span>" in view._repr_html_()
    names = view.with_transform(lambda sample: (sample["source"], sample["id"]))
    assert [*names] == [("a", 10), ("b", 1001)]
    assert isinstance(mixed.with_transform(str), npstream.Mixture)
    samples = mixed[::40].iter(0, 1, batch_size=2, batched=False)
    # Five samples fill three batches of 2 if the first one is repeated.
    assert [sample["id"] for sample in samples] == [0, 80, 160, 1000, 1040, 0]
    with pytest.raises(ValueError, match="give iter a transform= for batches"):
        mixed[::40].iter(0, 1, batch_size=2)


# Errors


def test_invalid_sources_raise(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", columns={"id": "int32", "text": "str"})
    for sources, error, message in (
        ({}, ValueError, "a mixture needs at least one source"),
        ([a, b], TypeError, "type list: mix takes a mapping from names to datasets"),
        ({"a": a, "b": b[:0]}, ValueError, "source 'b' is empty: leave it out"),
        ({"a": a, 3: b}, TypeError, "the name of a source is 3"),
        ({"a": a["id"]}, TypeError, "source 'a' is a Column; expected a Dataset"),
        ({"a": a[[[0, 1]]]}, ValueError, "source 'a' has 2 axes; expected 1"),
        (
            {"a": npstream.mix({"a": a})[::2]},
            TypeError,
            "source 'a' is a mixture or concatenation, or a view",
        ),
        ({"a": a[["x"]], "b": b}, ValueError, "no column in common: column 'x' is not common"),
    ):
        with pytest.raises(error, match=message):
            npstream.mix(sources)
    a.close()
    with pytest.raises(ValueError, match="the dataset is closed"):
        npstream.mix({"a": a})


def test_invalid_columns_raise(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", columns={"id": "int32", "text": "str"})
    sources = {"a": a, "b": b, "c": b, "d": b, "e": b}
    assert npstream.mix(sources).columns == ("text",)
    for columns, error, message in (
        (["x"], ColumnError, "'x' is not common .* it is missing in 'b', 'c', 'd' and 1 more"),
        (["id"], ColumnError, "'id' is 'int64' in source 'a', but 'int32' in 'b', 'c', 'd' and 1"),
        (["txt"], ColumnError, "no column 'txt'; did you mean 'text'"),
        ("text", TypeError, r"expected a list of names, \['text'\]"),
        (["text", "text"], ValueError, "listed twice"),
    ):
        with pytest.raises(error, match=message):
            npstream.mix(sources, columns=columns)
    with pytest.raises(ColumnError, match="'x' is not common"):
        npstream.mix(sources)[["x"]]


def test_invalid_mix_weights_raise(tmp_path):
    a = write(tmp_path / "a")
    sources = {"a": a[:50], "b": a[50:]}
    for weights, message in (
        ({"a": 1}, "'b'"),
        ({"a": 1, "b": 1, "c": 1}, "'c'"),
        ({"a": 0, "b": 1}, "'a'"),
        ({"a": 1, "b": -1}, "'b'"),
        ({"a": 1, "b": float("nan")}, "'b'"),
        ({"a": 1, "b": float("inf")}, "'b'"),
        ([(5, {"a": 1, "b": 1})], "position"),
    ):
        with pytest.raises(ValueError, match=message):
            npstream.mix(sources, weights)
    for weights in ([], "a", {"a": True, "b": 1}):
        with pytest.raises(TypeError, match=r"'a'|weights"):
            npstream.mix(sources, weights)
    with pytest.raises(ValueError, match="alpha"):
        npstream.mix(sources, alpha=float("nan"))
    with pytest.raises(ValueError, match=r"give block=100000[01]"):
        npstream.mix(sources, {"a": 1e-6, "b": 1 - 1e-6}, block=1000)


def test_weights_can_change_by_a_schedule(tmp_path):
    a = write(tmp_path / "a")
    weights = [(0, {"a": 1, "b": 1}), (64, {"a": 1, "b": 3})]
    mixed = npstream.mix({"a": a[:50], "b": a[50:]}, weights)
    assert mixed.weights == [(0, {"a": 0.5, "b": 0.5}), (64, {"a": 0.25, "b": 0.75})]
    assert repr(mixed).endswith("  and other shares from position 64 on>")
    drawn, _ = mixed.origin(mixed.order(0)[:64])
    assert np.bincount(drawn).tolist() == [32, 32]


def test_errors_name_the_damaged_shard(tmp_path):
    a = write(tmp_path / "a")
    write(tmp_path / "b", 1000, 80)
    (shard,) = [path for path in (tmp_path / "b").glob("*.mds") if "00001" in path.name]
    # A shard begins with the number of samples and the offset of the first one. A sample begins
    # with the size of its text.
    body = bytearray(shard.read_bytes())
    count = int.from_bytes(body[:4], "little")
    begin = int.from_bytes(body[4:8], "little")
    body[begin : begin + 4] = b"\xff\xff\xff\xff"
    shard.write_bytes(body)
    b = npstream.open(tmp_path / "b")
    mixed = npstream.mix({"a": a, "b": b[::-1]})
    first = int(b.shards["start"][1])
    assert count > 1
    where = rf"b/shard\.00001\.mds \(shard 1\): sample 0 \(sample {first} of the dataset\)"
    with pytest.raises(FormatError, match=where):
        mixed.load()
    with pytest.raises(FormatError, match=where):
        mixed[120 + 79 - first]  # after 120 rows of "a", those of "b" are reversed


# Other processes


def read_some(mixed):
    return [int(sample["id"]) for sample in mixed[::7]], mixed[3]["source"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_mixtures_work_in_other_processes(method, tmp_path, upload):
    a = write(tmp_path / "a")
    write(tmp_path / "b", 1000, 80)
    # A memory store belongs to its process, so only a forked process has it.
    url = upload(tmp_path / "b") if method == "fork" else f"local://{tmp_path / 'b'}"
    b = npstream.open(url, cache=tmp_path / "cache")
    mixed = npstream.mix({"a": a[::2], "b": b}, columns=["id", "source"])
    assert mixed[60]["id"] == 1000
    expected = [*range(0, 120, 2), *range(1000, 1080)][::7]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_some, (mixed,)) == (expected, "a")


def test_a_data_loader_with_workers(tmp_path):
    torch_data = pytest.importorskip("torch.utils.data")
    a, b = write(tmp_path / "a"), write(tmp_path / "b", 1000, 80)
    mixed = npstream.mix({"a": a, "b": b}, columns=["id"])
    options = {"num_workers": 2, "multiprocessing_context": "fork"}
    loader = torch_data.DataLoader(mixed, batch_size=8, **options)
    ids = [int(i) for batch in loader for i in batch["id"]]
    assert ids == [*range(120), *range(1000, 1080)]


def test_mixtures_can_be_pickled(mixture_and_ids):
    mixed, ids = mixture_and_ids
    mixed.load()
    body = pickle.dumps(mixed)
    again = pickle.loads(body)
    assert isinstance(again, npstream.Mixture)
    assert (again.names, again.weights) == (mixed.names, mixed.weights)
    assert_batch(again[::-5].load(), ids[::-5])
    assert len(again._source._datasets) == 4
    column = pickle.loads(pickle.dumps(mixed["x"][::3, 1]))
    np.testing.assert_array_equal(column.load(), ids[::3] + 1)


# Drawn samples


def test_batches_hold_the_drawn_rows(mixture_and_ids):
    mixed, ids = mixture_and_ids
    for batching in ("random", "stratified", "per_stream", "device_per_stream"):
        batches = mixed.iter(1, 2, batch_size=40, batching=batching, shuffle=True, seed=3)
        assert len(batches) == len(list(batches)) > 2
        for batch in batches:
            assert_batch(batch, ids[batch.ids])
            if batching.endswith("per_stream"):
                assert len(set(mixed.origin(batch.ids)[0])) == 1
    samples = mixed[["id"]].iter(0, 1, batch_size=40, batched=False, seed=3, shuffle=True)
    expected = mixed.shuffle(3)["id"].load()
    assert [sample["id"] for sample in samples][: len(expected)] == expected.tolist()
    assert expected.tolist() == ids[mixed.order(3)[:]].tolist()
    assert mixed.order(3, 1)[:9].tolist() != mixed.order(3, 0)[:9].tolist()


def test_shuffle_returns_a_view_of_drawn_samples(mixture_and_ids):
    mixed, ids = mixture_and_ids
    drawn = mixed.shuffle(5, 2)
    assert not isinstance(drawn, npstream.Mixture)
    rows = np.asarray(mixed.order(5, 2))
    assert_batch(drawn[10:50:3].load(), ids[rows[10:50:3]])
    again = pickle.loads(pickle.dumps(drawn))
    assert again["id"].load().tolist() == ids[rows].tolist()
    state = drawn.iter(0, 1, batch_size=4).state_dict()
    again.iter(0, 1, batch_size=4).load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of another view"):
        mixed.shuffle(5, 3).iter(0, 1, batch_size=4).load_state_dict(state)


def test_batching_with_an_order_of_streaming_raises(mixture_and_ids):
    mixed, _ = mixture_and_ids
    with pytest.raises(ValueError, match=r"StreamingShuffle\(batching_method="):
        mixed.iter(0, 1, batch_size=4, shuffle="py1e", batching="stratified")


def test_states_of_views_identify_mixtures(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", 1000, 120)
    views = [
        npstream.mix(sources)[::2].iter(0, 1, batch_size=4)
        for sources in ({"a": a, "b": b}, {"a": a, "b": b[::-1]}, {"a": b, "b": a})
    ]
    state = views[0].state_dict()
    npstream.mix({"x": a, "y": b})[::2].iter(0, 1, batch_size=9).load_state_dict(state)
    for other in views[1:]:
        with pytest.raises(ValueError, match=r"the state is of another (dataset|view)"):
            other.load_state_dict(state)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_draw_the_same_samples(method, tmp_path):
    pytest.importorskip("torch")
    from npstream.torch import DataLoader

    a, b = write(tmp_path / "a"), write(tmp_path / "b", 1000, 80)
    mixed = npstream.mix({"a": a, "b": b}, {"a": 1, "b": 2}, columns=["id"])
    expected = [batch["id"].tolist() for batch in mixed.iter(0, 1, batch_size=16, shuffle=True)]
    workers = 2 if method == "fork" else 1  # a spawned worker starts slowly
    options = {"num_workers": workers, "multiprocessing_context": method}
    loader = DataLoader(mixed.iter(0, 1, batch_size=16, shuffle=True), **options)
    assert [batch["id"].tolist() for batch in loader] == expected


# Many sources


def copy_dataset(ds):
    """Return a copy of a local dataset, without reading its index again."""
    source = ds._source
    shards = LocalShards(source.index, source.fetcher.shards.store, "auto")
    copy_source = Source(Fetcher(shards), source.fields, source.column_errors)
    return Dataset(copy_source, Selection.all(len(ds)), ds.columns)


def count_calls(function):
    """Return the number of calls that a function makes, and its result."""
    calls = 0

    def count(_frame, event, _argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return calls, result


def test_mixing_takes_linear_time_in_the_number_of_sources(tmp_path):
    """Ten times more sources need about ten times more calls, and little memory."""
    npstream.write(tmp_path / "x", {"x": np.arange(10)})
    index = json.loads((tmp_path / "x" / "index.json").read_text())
    index["shards"] *= 200
    (tmp_path / "x" / "index.json").write_text(json.dumps(index))
    ds = npstream.open(tmp_path / "x")
    sources = {f"s{k}": copy_dataset(ds) for k in range(1000)}
    npstream.mix({"s0": sources["s0"]})  # imports modules
    calls_with_100, _ = count_calls(lambda: npstream.mix(dict(list(sources.items())[:100])))
    calls_with_1000, mixed = count_calls(lambda: npstream.mix(sources))
    assert calls_with_1000 < 15 * calls_with_100
    tracemalloc.start()
    mixed = npstream.mix(sources)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 50e6
    assert isinstance(mixed._source, MixedSource)
    assert (len(mixed), len(mixed.shards)) == (2_000_000, 200_000)
    rows = np.random.default_rng(0).integers(0, 2_000_000, 256)
    np.testing.assert_array_equal(mixed[rows]["x"].load(), rows % 10)
    assert len(repr(mixed).splitlines()) < 40
