"""Methods that make views: head, sample, sort, drop, rename and map."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal

import numpy as np
import pytest
from dataset_files import objects
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_columns import VALUES, N, ids_of, label

import npstream
from npstream.errors import ColumnError
from npstream.explore.sorting import sort_order


def upper(sample):
    return sample["text"].upper()


# head and sample


@pytest.mark.parametrize("n", [0, 1, 3, N, N + 5, -1, -N, -N - 3])
def test_head_has_the_rows_of_pandas(ds, n):
    pandas = pytest.importorskip("pandas")
    expected = pandas.DataFrame({"id": np.arange(N)}).head(n)["id"]
    assert ids_of(ds.head(n)).tolist() == expected.tolist()


def test_head_has_five_rows_by_default_also_of_a_view(ds):
    assert ids_of(ds.head()).tolist() == [0, 1, 2, 3, 4]
    assert ids_of(ds[::-2].head(2)).tolist() == [10, 8]
    assert ds[[[0, 1], [2, 3]]].head(1).shape == (1, 2)
    with pytest.raises(TypeError, match="n"):
        ds.head(2.5)


def test_sample_draws_without_replacement_and_a_larger_sample_has_the_smaller_one(ds):
    for seed in range(5):
        whole = ids_of(ds.sample(N, seed))
        assert sorted(whole) == list(range(N))
        assert ids_of(ds.sample(4, seed)).tolist() == whole[:4].tolist()
        assert whole.tolist() == ids_of(ds.shuffle(seed, block=None)).tolist()
    assert ids_of(ds.sample(N)).tolist() == ids_of(ds.sample(N, seed=0)).tolist()
    assert ids_of(ds.sample(N, 1)).tolist() != ids_of(ds.sample(N, 2)).tolist()
    assert set(ids_of(ds[3:6].sample(2))) < {3, 4, 5}
    assert ds[[[0, 1], [2, 3]]].sample(3).shape == (3,)


@pytest.mark.parametrize("n", [-1, N + 1])
def test_sample_refuses_more_samples_than_there_are(ds, n):
    with pytest.raises(ValueError, match=f"n={n}: expected a number from 0 to {N}"):
        ds.sample(n)


# sort


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("name", ["label", "number", "text", "data"])
def test_sort_orders_as_pandas_does(ds, name, descending):
    pandas = pytest.importorskip("pandas")
    expected = pandas.Series(VALUES[name]).sort_values(ascending=not descending, kind="stable")
    if descending:  # pandas reverses equal values
        values = list(VALUES[name])
        expected = pandas.Series(0, sorted(range(N), key=values.__getitem__, reverse=True))
    assert ids_of(ds.sort(name, descending=descending)).tolist() == expected.index.tolist()


def test_sort_orders_a_view_and_returns_one(ds):
    view = ds[::-1].sort("label")
    assert ids_of(view).tolist() == [8, 4, 0, 9, 5, 1, 10, 6, 2, 7, 3]
    assert ids_of(view[2:4]).tolist() == [0, 9]
    assert ids_of(ds[[[3, 2], [1, 0]]].sort("label")).tolist() == [0, 1, 2, 3]
    assert len(ds[:0].sort("label")) == 0


values_of_kind = {
    "float": st.lists(st.sampled_from([0.0, -0.0, 1.5, -3.0, np.nan, np.inf, -np.inf])),
    "int": st.lists(st.integers(-2, 2)),
    "object": st.lists(st.sampled_from([None, 1, 2.5, np.nan, -4])),
    "text": st.lists(st.sampled_from(["", "a", "b", "é", "z", "日本"])),
}


@pytest.mark.parametrize("kind", values_of_kind)
@pytest.mark.parametrize("descending", [False, True])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_order_of_one_column_is_stable_with_missing_values_last(data, kind, descending):
    values = data.draw(values_of_kind[kind])
    array = np.empty(len(values), object)
    array[:] = values
    dtype = {"float": np.float64, "int": np.int64, "object": object, "text": "T"}[kind]
    order = sort_order({"x": array.astype(dtype)}, {"x": descending}).tolist()
    missing = [k for k, v in enumerate(values) if v is None or v != v]
    present = [k for k in range(len(values)) if k not in missing]
    expected = sorted(present, key=values.__getitem__, reverse=descending) + missing
    assert order == expected


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(0, 2)] * 3)),
    descending=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_several_columns_are_sorted_as_pandas_does(rows, descending):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(np.array(rows, int).reshape(-1, 3), columns=["a", "b", "c"])
    expected = table.sort_values(
        ["a", "b", "c"], ascending=[not flag for flag in descending], kind="stable"
    )
    columns = {name: table[name].to_numpy() for name in table}
    order = sort_order(columns, dict(zip("abc", descending, strict=True)))
    assert order.tolist() == expected.index.tolist()


def test_sort_takes_columns_and_directions_in_several_forms(ds):
    expected = sorted(range(N), key=lambda i: (VALUES["label"][i], -VALUES["number"][i]))
    for by in (("label", "number"), (["label", "number"],), (("label",), "number")):
        assert ids_of(ds.sort(*by, descending=[False, True])).tolist() == expected
    assert ids_of(ds.sort("label", "label")).tolist() == ids_of(ds.sort("label")).tolist()


def test_sort_orders_dates_decimals_and_json_numbers(tmp_path):
    days = np.array(["2026-02-01", "NaT", "2026-01-01"], "M8[D]")
    values = {
        "day": days,
        "price": objects([Decimal("2.5"), Decimal("10"), Decimal("-1")]),
        "json": objects([3, None, 1.5]),
    }
    columns = {"day": "datetime64[D]", "price": "str_decimal", "json": "json"}
    npstream.write(tmp_path / "d", values, columns=columns)
    ds = npstream.open(tmp_path / "d")
    assert ids_of(ds.sort("day")).tolist() == [2, 0, 1]
    assert ids_of(ds.sort("day", descending=True)).tolist() == [0, 2, 1]
    assert ids_of(ds.sort("price")).tolist() == [2, 0, 1]
    assert ids_of(ds.sort("json", descending=True)).tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("by", "options", "error", "message"),
    [
        (("nope",), {}, ColumnError, "nope"),
        (("tokens",), {}, TypeError, "'tokens' has arrays, which have no order"),
        (("ragged",), {}, TypeError, "'ragged' has arrays, which have no order"),
        (("meta",), {}, TypeError, "'meta' cannot be sorted: its values, of type dict"),
        (("label",), {"descending": [True, False]}, ValueError, "a bool for each column"),
        (("label",), {"descending": 1}, (TypeError, ValueError), "."),
        (([],), {}, ValueError, "at least one column"),
    ],
)
def test_sort_refuses_what_has_no_order(ds, by, options, error, message):
    with pytest.raises(error, match=message):
        ds.sort(*by, **options)


# drop


def test_drop_leaves_out_columns(ds):
    assert ds.drop("text", "meta").columns == ("label", "number", "tokens", "data", "ragged")
    assert ds.drop().columns == ds.columns
    empty = ds.drop(*ds.columns)
    assert (empty.columns, len(empty), empty[0]) == ((), N, {})
    with pytest.raises(ColumnError, match="tex"):
        ds.drop("tex")
    with pytest.raises(ColumnError):
        ds.drop("text").drop("text")
    with pytest.raises(TypeError, match=r"ds.drop\('a', 'b'\)"):
        ds.drop(["text"])


# rename


SWAP = {"label": "text", "text": "label", "tokens": "ids"}


@pytest.fixture
def renamed(ds):
    return ds.rename(SWAP)


def check_renamed(view, ds):
    """Check that all reads of a renamed view are those of the dataset with other names."""
    names = tuple(SWAP.get(name, name) for name in ds.columns)
    assert view.columns == names
    old_names = dict(zip(names, ds.columns, strict=True))
    for sample, old in zip(view, ds, strict=True):
        assert list(sample) == list(names)
        for name in names:
            assert np.array_equal(sample[name], old[old_names[name]])
    batch, old_batch = view.load(), ds.load()
    assert list(batch) == list(names)
    for name in names:
        for a, b in zip(batch[name], old_batch[old_names[name]], strict=True):
            assert np.array_equal(a, b)
        for a, b in zip(view[name], ds[old_names[name]], strict=True):
            assert np.array_equal(a, b)
        assert view[name].name == name
    assert view.dtypes == {name: ds.dtypes[old_names[name]] for name in names}


def test_rename_changes_only_names(ds, renamed):
    check_renamed(renamed, ds)
    check_renamed(renamed[::-2], ds[::-2])
    check_renamed(pickle.loads(pickle.dumps(renamed)), ds)
    assert renamed[3]["text"] == 3
    assert (renamed["label"] == "text 1").nonzero()[0].tolist() == [1]
    assert renamed["ids"][:, 0, 1].load().tolist() == ds["tokens"][:, 0, 1].load().tolist()
    assert len(renamed.filter(lambda sample: sample["text"] == 3)) == 2
    assert len(renamed.filter(lambda batch: batch["text"] == 3, batch_size=4)) == 2
    with pytest.raises(ColumnError, match="tokens"):
        renamed["tokens"]


def test_names_can_be_changed_again_and_back(ds, renamed):
    check_renamed(renamed.rename(ids="x", text="y").rename(x="ids", y="text"), ds)
    back = renamed.rename(label="text", text="label", ids="tokens")
    assert back.columns == ds.columns
    assert back[1]["text"] == ds[1]["text"]
    assert back.drop("text").rename(label="text")["text"][:5].load().tolist() == [0, 1, 2, 3, 0]
    assert ds.rename().columns == ds.columns


def test_states_versions_and_costs_do_not_depend_on_names(ds, renamed):
    assert renamed.version == ds.version
    assert renamed.explain() == ds.explain()
    epochs = [view.iter(0, 1, batch_size=3, shuffle=True) for view in (ds, renamed)]
    first = iter(epochs[0])
    next(first)
    state = json.loads(json.dumps(epochs[0].state_dict()))
    rest = [batch.ids.tolist() for batch in first]
    epochs[1].load_state_dict(state)
    assert [batch.ids.tolist() for batch in epochs[1]] == rest


def test_a_written_copy_has_the_new_names(tmp_path, ds, renamed):
    npstream.write(tmp_path / "copy", renamed)
    copy = npstream.open(tmp_path / "copy")
    check_renamed(copy, ds)
    check_renamed(copy.rename(text="label", label="text").rename(text="label", label="text"), ds)


@pytest.mark.parametrize("compression", [None, "zstd:3"])
def test_whole_samples_are_copied_under_new_names_of_the_same_order(tmp_path, compression):
    values = {"a": np.arange(20), "b": ["x" * (i % 5) for i in range(20)], "c": np.ones(20, bool)}
    npstream.write(tmp_path / "d", values, compression=compression, shard_samples=6)
    view = npstream.open(tmp_path / "d").rename(a="d", b="e", c="f")
    npstream.copy(view[3:], tmp_path / "copy")
    copy = npstream.open(tmp_path / "copy")
    assert copy.dtypes == view.dtypes
    assert [*copy] == [*view[3:]]
    assert not npstream.verify_dataset(tmp_path / "copy").problems


@pytest.mark.parametrize("layout", ["jsonl", "csv"])
def test_columns_of_text_files_are_renamed(tmp_path, layout):
    values = {"n": np.arange(5), "word": [f"w{i}" for i in range(5)], "x": np.arange(5) / 4}
    npstream.write(tmp_path / "d", values, format=layout)
    ds = npstream.open(tmp_path / "d")
    first, second = "n", "word"
    view = ds.rename({first: second, second: first})
    assert [sample[second] for sample in view] == [sample[first] for sample in ds]
    assert view[0][first] == ds[0][second]
    npstream.write(tmp_path / "copy", view)
    copy = npstream.open(tmp_path / "copy")
    assert [dict(sample) for sample in copy] == [dict(sample) for sample in view]


def test_a_closed_dataset_closes_its_renamed_views(ds, renamed):
    assert renamed[0]["text"] == 0
    ds.close()
    with pytest.raises(ValueError, match="closed"):
        renamed[0]
    with pytest.raises(ValueError, match="closed"):
        renamed["text"].load()


def test_a_function_of_map_gets_the_old_names_also_after_a_later_rename(ds):
    view = ds.map(label).rename(label="y")
    assert view[3] == 3
    assert [*view] == [*ds.map(label)]
    assert next(iter(view.iter(0, 1))) == 0
    assert pickle.loads(pickle.dumps(view))[2] == 2
    assert ds.rename(label="y").map(lambda sample: sample["y"])[3] == 3


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ({"nope": "x"}, ColumnError, "nope"),
        ({"label": "text"}, ValueError, "both have the name 'text'.*or drop one before"),
        ({"label": "x", "text": "x"}, ValueError, "'label' and 'text' would both have the name"),
        ({"label": 3}, TypeError, "the new name of column 'label' is 3"),
        ("label", TypeError, "a mapping from old names to new names"),
    ],
)
def test_rename_refuses_clashes_and_unknown_names(ds, mapping, error, message):
    with pytest.raises(error, match=message):
        ds.rename(mapping)


def test_a_renamed_remote_dataset_reads_side_car_columns_and_parts(tmp_path, upload):
    values = {"a": np.arange(4000), "b": np.arange(4000) * 2.0, "t": ["x" * 90] * 4000}
    npstream.write(tmp_path / "d", values, sidecar=True)
    ds = npstream.open(upload(tmp_path / "d"), cache=tmp_path / "cache")
    view = ds.rename(a="b", b="a")
    assert view[["b"]].explain() == ds[["a"]].explain()
    assert view["b"][::7].load().tolist() == values["a"][::7].tolist()
    assert view["a"][5:50].load().tolist() == values["b"][5:50].tolist()
    view[["a"]].prefetch()
    assert ds[["b"]].explain().nbytes == 0
    assert view[17]["b"] == 17


# map


def test_map_is_with_transform(ds):
    assert [*ds.map(upper)] == [*ds.with_transform(upper)]
    assert ds.map(upper).map(len)[2] == len("text 2" * 2)
    assert ds.map(upper)["text"][1] == "text 1"
    assert next(iter(ds.map(upper).iter(0, 1))) == ""
    with pytest.raises(TypeError, match="map takes a function of a sample, got None"):
        ds.map(None)


# query


QUERIES = [
    "label == 3",
    "label == 3 and len(text) > 5",
    "len(text) > 5 and label != 3 or number < 2 * 10**12",
    "not (label in [0, 2]) and 'text' in text",
    "number // 10**12 % 2 == 1",
    "text == 'text 1' or len(data) >= 9",
    "len(tokens) == 3 and label < number",
    "meta is None",
]


@pytest.mark.parametrize("text", QUERIES)
@pytest.mark.parametrize("nbytes", [1, 100, 1 << 20])
def test_query_keeps_the_rows_for_which_python_says_true(ds, text, nbytes, monkeypatch):
    monkeypatch.setattr("npstream.dataset.view_methods._QUERY_BYTES", nbytes)
    expected = [i for i in range(N) if eval(text, {name: VALUES[name][i] for name in VALUES})]
    assert ids_of(ds.query(text)).tolist() == expected
    rows = [9, 2, 2, 5, 0]
    assert ids_of(ds[rows].query(text)).tolist() == [i for i in rows if i in expected]
    assert len(ds[:0].query(text)) == 0


def test_query_selects_rows_of_renamed_nd_concatenated_mixed_and_mapped_views(ds):
    assert ids_of(ds.rename(label="a b").query("`a b` == 3")).tolist() == [3, 7]
    assert ids_of(ds[[[0, 3], [7, 1]]].query("label == 3")).tolist() == [3, 7]
    assert ids_of(ds.query("label == 3").query("number > 3 * 10**12")).tolist() == [7]
    both = npstream.concat([ds[:4], ds[::-1]])
    assert both.query("label == 3")["number"].load().tolist() == [
        3 * 10**12,
        7 * 10**12,
        3 * 10**12,
    ]
    mixed = npstream.mix({"a": ds, "b": ds[:2]}, columns=["label", "source"])
    assert ids_of(mixed.query("source == 'b' and label == 1")).tolist() == [N + 1]
    assert ds.map(upper).query("label == 2")[0] == ds[2]["text"].upper()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lable == 3", ColumnError, "label"),
        ("label = 3", ValueError, "=="),
        ("__import__('os')", ValueError, "."),
        ("label == 'x'", TypeError, "label"),
        ("tokens == 3", TypeError, "tokens"),
        ("label", TypeError, "label"),
        ("1 // label == 2", ZeroDivisionError, "zero"),
        (3, TypeError, "an expression is text"),
    ],
)
def test_query_refuses_what_it_cannot_answer(ds, text, error, message):
    with pytest.raises(error, match=message):
        ds.query(text)
    if error is TypeError:
        with pytest.raises(error, match=message):
            ds[:0].query(text)
    with pytest.raises(ColumnError):
        ds.drop("label").query("label == 3")


def test_query_of_a_remote_dataset_reads_the_side_car_and_obeys_the_limit(tmp_path, upload):
    values = {"a": np.arange(4000), "t": ["x" * 200] * 4000}
    npstream.write(tmp_path / "d", values, sidecar=True)
    ds = npstream.open(upload(tmp_path / "d"), cache=tmp_path / "c", implicit_read_limit="100kB")
    assert ids_of(ds.query("a % 1000 == 1").drop("t")).tolist() == [1, 1001, 2001, 3001]
    with pytest.raises(npstream.errors.CostError, match="query 'len"):
        ds.query("len(t) == 3")


def test_parts_of_renamed_remote_values_cost_as_much_as_of_the_original(tmp_path, upload):
    values = {"v": np.arange(20 * 2**16).reshape(20, 4, -1), "n": np.arange(20)}
    npstream.write(tmp_path / "d", values, sidecar=False)
    url = upload(tmp_path / "d")
    ds = npstream.open(url, cache=tmp_path / "a")
    view = npstream.open(url, cache=tmp_path / "b").rename(v="n", n="v")
    both = npstream.concat([view[:10], view[10:]])
    assert view[::3][["v"]].explain() == ds[::3][["n"]].explain()
    assert both[::3][["v"]].explain() == ds[::3][["n"]].explain()
    assert both["v"][::3].load().tolist() == values["n"][::3].tolist()
    assert np.array_equal(view["n"][::7, 1, 5:9].load(), values["v"][::7, 1, 5:9])
