"""npstream.concat: the rows of several datasets, one after the other, against NumPy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream
from npstream.errors import ColumnError

SIZES = {"a": 7, "b": 4, "c": 1}


def values_of(name):
    """Return the columns of a dataset; ids begin at 9700 for "a", 9800 for "b", 9900 for "c"."""
    n = SIZES[name]
    first = ord(name) * 100
    return {"id": np.arange(first, first + n), "text": [f"{name}{i}" * (i % 3) for i in range(n)]}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("concat")
    for name in SIZES:
        npstream.write(root / name, values_of(name), shard_samples=3)
    return {name: root / name for name in SIZES}


@pytest.fixture
def datasets(paths):
    return {name: npstream.open(path) for name, path in paths.items()}


def ids(view):
    return view["id"].load().tolist()


def double(sample):
    return {**sample, "id": sample["id"] * 2}


def test_rows_follow_each_other(datasets):
    ds = npstream.concat([datasets["b"], datasets["a"]])
    expected = [*values_of("b")["id"], *values_of("a")["id"]]
    assert type(ds) is npstream.Dataset
    assert (len(ds), ds.columns) == (11, ("id", "text"))
    assert ids(ds) == expected
    assert [sample["id"] for sample in ds] == expected
    assert [ds[row]["id"] for row in range(-11, 11)] == expected * 2
    assert ds["text"].to_numpy().tolist() == values_of("b")["text"] + values_of("a")["text"]
    batch = ds[[10, 0, 5]].load()
    assert batch["id"].tolist() == np.array(expected)[[10, 0, 5]].tolist()
    assert ids(ds[ds["id"] > 9703]) == [i for i in expected if i > 9703]
    assert ids(ds.sort("id")) == sorted(expected)
    assert ids(ds.filter(lambda sample: sample["id"] % 2)) == [i for i in expected if i % 2]


views = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        # Row 0, any number of times: "c" has no other row.
        st.slices(7) | st.lists(st.just(0), max_size=3).map(np.int64),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(views=views, index=st.slices(12), data=st.data())
def test_views_are_concatenated_as_arrays_are(paths, views, index, data):
    datasets = {name: npstream.open(path) for name, path in paths.items()}
    ds = npstream.concat([datasets[name][rows] for name, rows in views])
    expected = np.concatenate([values_of(name)["id"][rows] for name, rows in views])
    assert ids(ds) == expected.tolist()
    assert ids(ds[index]) == expected[index].tolist()
    nested = npstream.concat([ds[index], datasets["c"], ds])
    whole = np.concatenate([expected[index], values_of("c")["id"], expected])
    assert ids(nested) == whole.tolist()
    assert ids(pickle.loads(pickle.dumps(nested))) == whole.tolist()
    rows = data.draw(st.permutations(range(len(whole))))
    again = npstream.concat([nested[rows], nested])
    assert ids(again) == [*whole[rows], *whole]
    assert ids(again.shuffle(3)) == [again[int(row)]["id"] for row in again.order(3)]


def test_an_epoch_reads_each_row_once_and_resumes(datasets):
    ds = npstream.concat([datasets["a"][::-1], datasets["b"][1:], datasets["a"]])
    batches = ds.iter(0, 1, batch_size=4, shuffle=True, last="short")
    read = [batch["id"].tolist() for batch in batches]
    assert sorted(row for batch in read for row in batch) == sorted(ids(ds))
    batches = ds.iter(0, 1, batch_size=4, shuffle=True, last="short")
    iterator = iter(batches)
    assert next(iterator)["id"].tolist() == read[0]
    resumed = ds.iter(0, 1, batch_size=4, shuffle=True, last="short")
    resumed.load_state_dict(batches.state_dict())
    assert [batch["id"].tolist() for batch in resumed] == read[1:]
    other = npstream.concat([datasets["a"], datasets["b"][1:], datasets["a"]])
    with pytest.raises(ValueError, match="select the same"):
        other.iter(0, 1, batch_size=4, shuffle=True, last="short").load_state_dict(
            batches.state_dict()
        )


def test_renamed_datasets_are_concatenated_also_with_exchanged_names(datasets, tmp_path):
    npstream.write(tmp_path / "d", {"text": np.arange(5), "id": ["x"] * 5})
    other = npstream.open(tmp_path / "d").rename(text="id", id="text")
    ds = npstream.concat([datasets["a"], other, datasets["b"]])
    assert ids(ds) == [*values_of("a")["id"], *range(5), *values_of("b")["id"]]
    assert [sample["id"] for sample in ds.rename(id="text", text="id")[["id"]]] == [
        *values_of("a")["text"], *["x"] * 5, *values_of("b")["text"],
    ]  # fmt: skip
    renamed = ds.rename(id="key").drop("text")
    assert renamed[8] == {"key": 1}
    assert pickle.loads(pickle.dumps(renamed))["key"].load().tolist() == ids(ds)
    npstream.write(tmp_path / "copy", ds)
    assert ids(npstream.open(tmp_path / "copy")) == ids(ds)


def test_functions_of_map_apply_to_their_samples(datasets):
    ds = npstream.concat([datasets["a"].map(double), datasets["c"]])
    expected = [*(values_of("a")["id"] * 2), *values_of("c")["id"]]
    assert [sample["id"] for sample in ds] == expected
    assert [sample["id"] for sample in npstream.concat([ds[5:], ds])] == expected[5:] + expected
    twice = npstream.concat([ds.map(double), datasets["c"]])
    assert [sample["id"] for sample in twice][6:8] == [9706 * 4, 9900 * 2]
    mapped = ds.rename(id="key")
    assert [sample["id"] for sample in mapped.head(7)] == expected[:7]
    with pytest.raises(ValueError, match="call map on the result of concat"):
        npstream.concat([ds[[3, 1]], datasets["a"]])


def test_local_and_remote_datasets_are_concatenated(paths, upload, tmp_path):
    remote = npstream.open(upload(paths["b"]), cache=tmp_path / "cache")
    ds = npstream.concat([npstream.open(paths["a"]), remote.rename(text="t").rename(t="text")])
    assert ids(ds) == [*values_of("a")["id"], *values_of("b")["id"]]
    assert ds.explain().samples == 11
    assert ds[9]["text"] == values_of("b")["text"][2]


def test_added_columns_are_concatenated(paths, tmp_path):
    npstream.write(tmp_path / "a", values_of("a"))
    npstream.add_columns(tmp_path / "a", {"extra": np.arange(7) * 10})
    added = npstream.open(tmp_path / "a")
    npstream.write(tmp_path / "d", {**values_of("b"), "plus": np.arange(4)})
    stored = npstream.open(tmp_path / "d").rename(plus="extra")
    ds = npstream.concat([added, stored])
    assert ds["extra"].load().tolist() == [*(np.arange(7) * 10), 0, 1, 2, 3]
    again = pickle.loads(pickle.dumps(ds.rename(extra="id", id="extra")))
    assert ids(again) == ds["extra"].load().tolist()
    assert again[8] == {"extra": 9801, "text": "b1", "id": 1}


def test_empty_and_single_datasets(datasets):
    assert ids(npstream.concat([datasets["a"][:0], datasets["b"], datasets["a"][:0]])) == ids(
        datasets["b"]
    )
    empty = npstream.concat([datasets["a"][:0], datasets["b"][:0]])
    assert (len(empty), empty.columns) == (0, ("id", "text"))
    assert ids(npstream.concat(iter([datasets["b"]]))) == ids(datasets["b"])


def test_mixtures_are_concatenated_without_weights(datasets):
    mixed = npstream.mix({"a": datasets["a"], "b": datasets["b"]}, columns=["id", "text", "source"])
    ds = npstream.concat([mixed.drop("source"), datasets["c"]])
    assert ids(ds) == [*values_of("a")["id"], *values_of("b")["id"], *values_of("c")["id"]]
    with pytest.raises(ValueError, match="'source' of datasets\\[0\\] is the name of each sample"):
        npstream.concat([mixed, mixed])


def test_a_mixture_keeps_its_weights_under_other_names(datasets):
    mixed = npstream.mix({"a": datasets["a"], "b": datasets["b"]}, columns=["id", "text", "source"])
    renamed = mixed.rename(id="key", source="origin").drop("text")
    assert type(renamed) is npstream.Mixture
    assert renamed.weights == mixed.weights
    assert renamed[8] == {"key": 9801, "origin": "b"}
    assert pickle.loads(pickle.dumps(renamed))["origin"].to_numpy()[6:8].tolist() == ["a", "b"]
    batches = mixed.iter(0, 1, batch_size=3, shuffle=True)
    next(iter(batches))
    resumed = renamed.iter(0, 1, batch_size=3, shuffle=True)
    resumed.load_state_dict(batches.state_dict())
    assert len(next(iter(resumed))["key"]) == 3
    assert type(mixed.head(2)) is npstream.Dataset
    assert [sample["id"] for sample in mixed.map(double)][:2] == [19400, 19402]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda s: [], ValueError, "at least one dataset"),
        (lambda s: s["a"], TypeError, r"npstream.concat\(\[a, b\]\)"),
        (lambda s: [s["a"], "b"], TypeError, r"datasets\[1\] is 'b'"),
        (lambda s: [s["a"], s["b"][[[0, 1]]]], ValueError, "2 axes; expected 1.*ravel"),
        (
            lambda s: [s["a"], s["b"].drop("text")],
            ValueError,
            r"datasets\[1\] has no column 'text'",
        ),
        (
            lambda s: [s["a"].drop("id"), s["b"]],
            ValueError,
            r"datasets\[0\] has no column 'id', which",
        ),
        (
            lambda s: [s["a"], s["b"].rename(id="text", text="id")],
            ValueError,
            r"'id' is 'int64' in source 'datasets\[0\]', but 'str' in 'datasets\[1\]'",
        ),
    ],
)
def test_invalid_arguments_raise(datasets, arguments, error, message):
    with pytest.raises(error, match=message):
        npstream.concat(arguments(datasets))


def test_invalid_uses_of_a_concatenation_raise(datasets):
    with pytest.raises(ColumnError, match="nope"):
        npstream.concat([datasets["a"], datasets["b"]])["nope"]
    with pytest.raises(TypeError, match="'x' is a mixture or concatenation"):
        npstream.mix({"x": npstream.concat([datasets["a"], datasets["b"]])})
    datasets["b"].close()
    with pytest.raises(ValueError, match="closed"):
        npstream.concat([datasets["a"], datasets["b"]])
