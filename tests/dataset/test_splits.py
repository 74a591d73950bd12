"""Random splits are disjoint and complete; filters keep the samples that a function selects."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_files import write_shards
from mixed_columns import N, ids_of, label

from npstream import errors
from npstream.dataset.splits import split_lengths


@pytest.mark.parametrize("by", ["sample", "chunk"])
@pytest.mark.parametrize("view", [..., slice(None, None, -1), [[0, 1, 2], [2, 9, 10]], []])
def test_random_splits_are_disjoint_and_complete(ds, by, view):
    view = ds[view]
    parts = view.random_split([0.5, 0.2, 0.3], seed=1, by=by)
    assert [len(part) for part in parts] == split_lengths([0.5, 0.2, 0.3], view.size)
    ids = np.concatenate([ids_of(part) for part in parts])
    assert sorted(ids) == sorted(ids_of(view).ravel())


def test_random_splits_by_sample_are_slices_of_a_shuffle(ds):
    one, two = ds.random_split([4, N - 4], 7)
    order = ids_of(ds.shuffle(7, block=None)).tolist()
    assert ids_of(one).tolist() + ids_of(two).tolist() == order
    assert ids_of(ds.random_split([4, N - 4], 8)[0]).tolist() != order[:4]


def test_random_splits_by_chunk_split_few_chunks_and_keep_the_order(tmp_path):
    ds = write_shards(tmp_path, {"x": np.arange(100)}, [10] * 10, {"x": "int64"})
    seen = set()
    for seed in range(5):
        parts = ds.random_split([0.5, 0.25, 0.25], seed, by="chunk")
        assert [len(part) for part in parts] == [50, 25, 25]
        shards = [set(part.locate(...)[0].tolist()) for part in parts]
        assert sum(map(len, shards)) <= 10 + 2  # the two cuts divide at most two of the ten shards
        assert all((np.diff(ids_of(part)) > 0).all() for part in parts)
        seen.add(tuple(sorted(shards[0])))
    assert len(seen) > 1


@pytest.mark.parametrize("n", [0, 1, 7, 10, 1001])
@pytest.mark.parametrize("lengths", [[1], [0.9, 0.1], [1 / 3] * 3, [0.5, 0.25, 0.25], [0.1] * 10])
@pytest.mark.filterwarnings("ignore:Length of split")
def test_fractions_are_rounded_as_in_torch(lengths, n, torch):
    parts = torch.utils.data.random_split(range(n), lengths)
    assert split_lengths(lengths, n) == [len(part) for part in parts]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 3], r"lengths \[3, 3\] are 6 samples; there are 11"),
        ([0.5, 0.4], "fractions .* sum to 0.9"),
        ([-1, 12], "none negative"),
        ([float("nan"), 1], "none negative"),
        ([], "0 samples"),
    ],
)
def test_invalid_lengths_raise(ds, lengths, message):
    with pytest.raises(ValueError, match=message):
        ds.random_split(lengths)
    with pytest.raises(ValueError, match="by='shard'"):
        ds.random_split([1.0], by="shard")


@pytest.mark.parametrize("batch_size", [None, 1, 4, 100])
@pytest.mark.parametrize("columns", [None, ["label"]])
def test_filter_keeps_the_samples_for_which_the_function_is_true(ds, batch_size, columns):
    def is_odd(item):
        assert columns is None or list(item) == columns
        return item["label"] % 2 == 1

    for view in (ds, ds[::-1], ds[ds["label"] > 1]):
        kept = view.filter(is_odd, columns=columns, batch_size=batch_size)
        ids = ids_of(view)
        assert ids_of(kept).tolist() == ids[ids % 2 == 1].tolist()
        assert kept.columns == ds.columns
    assert ids_of(ds[[[0, 1], [2, 3]]].filter(is_odd, columns=columns)).tolist() == [1, 3]


def test_invalid_arguments_of_filter_raise(ds):
    with pytest.raises(ValueError, match="batch_size=0"):
        ds.filter(label, batch_size=0)
    with pytest.raises(TypeError, match=r"int64 of shape \(4,\).*bool for each row"):
        ds.filter(label, batch_size=4)
    with pytest.raises(TypeError, match=r"shape \(\)"):
        ds.filter(lambda batch: True, batch_size=4)
    with pytest.raises(errors.ColumnError):
        ds.filter(label, columns=["lable"])
    with pytest.raises(TypeError, match=r"columns='label': expected a list of names, \['label'\]"):
        ds.filter(label, columns="label")
    for condition in ("label == 3", ds["label"] == 3):
        with pytest.raises(
            TypeError, match=r"takes a function, not .* for a mask write ds\[mask\]"
        ):
            ds.filter(condition)


def test_a_single_fraction_raises(ds):
    with pytest.raises(TypeError, match=r"lengths=0.9: expected .*, such as \[0.9, 0.1\]"):
        ds.random_split(0.9)
