"""Tests of computed columns: they read like stored columns of the same values."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from dataset_files import write_jsonl

import npstream
from npstream.dataset.dataset import Dataset
from npstream.errors import StorageError
from npstream.formats.encodings.encodings import parse
from npstream.indexing.selection import Selection
from npstream.reading.batch import Ragged
from npstream.reading.plan import Field
from npstream.reading.source import Source

N = 200


class Squares:
    """Values of one size: ``[row, row ** 2, -row]``."""

    def column(self, rows):
        return np.stack((rows, rows**2, -rows), axis=1)

    def value(self, row):
        return np.array([row, row**2, -row])


class Words:
    """Text: the number of letters is the last digit of the row."""

    def column(self, rows):
        return Ragged.from_list([self.value(row) for row in rows.tolist()], "str")

    def value(self, row):
        return "é" * (row % 10)

    def equal(self, rows, text):
        return np.array([self.value(row).encode() == text for row in rows.tolist()])


COMPUTED = {"square": ("ndarray:int64:3", Squares()), "word": ("str", Words())}


@pytest.fixture(params=["mds", "jsonl"])
def pair(request, tmp_path):
    """Return a dataset with two computed columns, and one with the same values stored."""
    x = np.arange(N) * 3
    if request.param == "mds":
        npstream.write(tmp_path / "x", {"x": x}, shard_size="1KB")
    else:
        write_jsonl(tmp_path / "x", [{"x": value} for value in x.tolist()], {"x": "int"})
    stored = {"word": [Words().value(row) for row in range(N)], "x": x,
              "square": Squares().column(np.arange(N))}  # fmt: skip
    npstream.write(tmp_path / "all", stored)
    stored_source = npstream.open(tmp_path / "x")._source
    fields = dict(stored_source.fields)
    for name, (encoding, computation) in COMPUTED.items():
        fields[name] = Field(name, parse(encoding), computation=computation)
    source = Source(stored_source.fetcher, fields, stored_source.column_errors)
    computed = Dataset(source, Selection.all(N), ("word", "x", "square"), None)
    return computed, npstream.open(tmp_path / "all")


def assert_same_columns(left, right):
    """Assert that two samples, or two batches, have the same columns with the same values."""
    assert [*left] == [*right]
    for name in right:
        np.testing.assert_array_equal(np.asarray(left[name]), np.asarray(right[name]))


@pytest.mark.parametrize(
    "index", [slice(None), slice(150, 3, -7), [7, 199, 0, 7], [[3, 1], [4, 1]], slice(0)], ids=str
)
@pytest.mark.parametrize("names", [["word", "x", "square"], ["square"], ["word"], ["x"]], ids=str)
def test_views_of_computed_and_stored_columns_are_equal(pair, index, names):
    computed, stored = (ds[names][index] for ds in pair)
    assert_same_columns(computed.load(), stored.load())
    if computed.ndim == 1:
        for left, right in zip(computed, stored, strict=True):
            assert_same_columns(left, right)
        for i in range(min(3, len(computed))):
            assert_same_columns(computed[i], stored[i])
    for name in names:
        left, right = computed[name], stored[name]
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))
        if left.size and left.ndim == 1:
            assert left[-1] == right[-1]
            assert [*left] == [*right]


def test_parts_of_computed_values_equal_stored_parts(pair):
    computed, stored = pair
    for index in (np.s_[5:90:4, 1:], np.s_[:, ::-1], np.s_[[3, 1], [0, 2]], np.s_[9, 1]):
        np.testing.assert_array_equal(computed["square"][index], stored["square"][index])
    out = np.empty((N, 3), np.int64)
    assert computed["square"].load(out=out) is out
    np.testing.assert_array_equal(out, stored["square"])


def test_comparisons_reductions_and_batches_equal_stored_ones(pair):
    computed, stored = pair
    for word in ("é" * 4, "", "no such word"):
        np.testing.assert_array_equal(computed["word"] == word, stored["word"] == word)
    assert computed["square"].max() == (N - 1) ** 2
    batches = [*computed.iter(0, 1, batch_size=32, shuffle=True, last="short")]
    assert sum(len(batch.ids) for batch in batches) == N
    for batch in batches:
        assert_same_columns(batch, stored[batch.ids].load())


def test_a_copy_stores_the_computed_values(pair, tmp_path):
    computed, stored = pair
    npstream.write(tmp_path / "copy", computed[::-3])
    copy = npstream.open(tmp_path / "copy")
    assert copy.columns == computed.columns
    assert_same_columns(copy.load(), stored[::-3].load())


def test_computed_columns_alone_read_no_shard(pair, tmp_path):
    computed, _ = pair
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(StorageError):
        computed["x"][3]
    view = computed[["word", "square"]]
    assert view[3]["word"] == "ééé"
    assert view.load()["square"][9].tolist() == [9, 81, -9]
    cost = view.explain()
    assert (cost.samples, cost.shards, cost.chunks) == (N, 0, 0)


def test_computed_columns_have_no_bytes_to_view_or_map(pair):
    computed, _ = pair
    with pytest.raises(ValueError, match=r"column 'square' is computed, not stored: it has no byt"):
        computed["square"].view("uint8")
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(computed["square"], copy=False)
