"""A selection is indexed like an array of sample ids, and takes little memory."""

from __future__ import annotations

import pickle
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from npstream import testing
from npstream.indexing import selection
from npstream.indexing.selection import Selection
from npstream.orders.permutation import Permutation

SIZES = (0, 1, 2, 7, 1024, 3000)


class Seven:
    def __index__(self):
        return 7


class Lazy:
    """An array of another library, which has only ``__array__``."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


@pytest.fixture(autouse=True)
def _masks_are_stored_as_bits(monkeypatch):
    """Treat small masks like large ones."""
    monkeypatch.setattr(selection, "MAX_MASK_AS_POSITIONS", 0)


class Ids:
    """A selection in the form of its array of sample ids."""

    def __init__(self, view):
        self.view = view
        self.shape = view.shape
        self.dtype = np.dtype(np.int64)

    def __array__(self, dtype=None, copy=None):
        return self.view.ids().reshape(self.shape)

    def __getitem__(self, index):
        result = self.view.select(index)
        return Ids(result) if isinstance(result, Selection) else result


def check_same(view, ids):
    """Compare a selection to NumPy's array of ids."""
    assert (view.shape, view.ndim, view.size) == (ids.shape, ids.ndim, ids.size)
    got = view.ids()
    assert got.dtype == np.int64
    assert got.flags.writeable
    assert np.array_equal(got, ids.ravel())
    assert view.ravel().shape == (ids.size,)
    assert np.array_equal(view.ravel().ids(), got)
    third = ids.size // 3
    assert np.array_equal(view.ids(third, 2 * third), ids.ravel()[third : 2 * third])
    backwards = np.arange(ids.size)[::-1].copy()
    assert np.array_equal(view.at(backwards), ids.ravel()[::-1])
    assert np.array_equal(backwards, np.arange(ids.size)[::-1])
    if view.affine is not None:
        start, step = view.affine
        assert np.array_equal(got, start + step * np.arange(ids.size))


def check_select(view, ids, index):
    """Index both; return the two results, or None if the result is not a selection."""
    pair = testing.assert_same_as_numpy(Ids(view), ids, index, messages=True)
    if pair is None or not isinstance(pair[0], Ids):
        assert pair is None or type(pair[0]) is int
        return None
    got, expected = pair
    check_same(got.view, expected)
    return got.view, expected


@settings(max_examples=200)
@given(st.data())
def test_chained_indices_give_the_results_of_numpy(data):
    n = data.draw(st.sampled_from(SIZES))
    view, ids = Selection.all(n), np.arange(n)
    for step in range(data.draw(st.integers(1, 6))):
        if data.draw(st.integers(0, 4)) == 0:
            permutation = Permutation(view.size, key=step)
            view = view.permute(permutation)
            ids = ids.ravel()[permutation.at(np.arange(ids.size))]
            check_same(view, ids)
        result = check_select(view, ids, data.draw(testing.indices(ids.shape)))
        if result is not None:
            view, ids = result
    unpickled = pickle.loads(pickle.dumps(view))
    check_same(unpickled, ids)
    assert unpickled.dataset_size == view.dataset_size == n


def views():
    """Return a view of each kind, with 10 rows, and its ids."""
    source = Selection.all(40)
    mask = np.zeros(40, bool)
    mask[5:35:3] = True
    shuffle = Permutation(10, key=3)
    order = np.random.default_rng(0).permutation(40)[:10]
    ids = np.arange(40)
    return {
        "all": (Selection.all(10), np.arange(10)),
        "affine": (source.select(slice(33, 3, -3)), ids[33:3:-3]),
        "mask": (source.select(mask), ids[mask]),
        "permutation": (
            source.select(slice(30, 40)).permute(shuffle),
            ids[30:40][shuffle.at(np.arange(10))],
        ),
        "index": (source.select(order), order),
        "grid": (source.select(np.arange(30).reshape(10, 3)), ids[:30].reshape(10, 3)),
    }


KINDS = list(views())

UNUSUAL = {
    "np.int64": np.int64(-3),
    "uint64": np.uint64(9),
    "0-d array": np.array(4),
    "__index__": Seven(),
    "below": -11,
    "beyond": 10,
    "far": 2**70,
    "far negative": -(2**70),
    "uint64 far": np.uint64(2**64 - 1),
    "0-d beyond": np.array(10),
    "range": range(2, 8, 2),
    "empty list": [],
    "nested empty list": [[], []],
    "empty float array": np.array([]),
    "float list": [1.0, 2.0],
    "float array": np.array([1.0, 2.0]),
    "string": "a",
    "string list": ["a"],
    "object": object(),
    "0-d object array": np.array(3, dtype=object),
    "date": np.datetime64("2026-11-22"),
    "dict": {},
    "ragged list": [[1], [2, 3]],
    "list with None": [None, 1],
    "list of slices": [slice(2)],
    "huge list": [2**70],
    "uint64 list": [2**64 - 1, 2**64 - 2],
    "list out of bounds": [0, 3, 99, -99],
    "object array": np.array([1, 2], dtype=object),
    "subclass": np.arange(4).view(type("Subclass", (np.ndarray,), {})),
    "masked array": np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]),
    "not native": np.arange(4, dtype=">i4"),
    "transposed": np.arange(6).reshape(2, 3).T,
    "read-only": np.broadcast_to(np.int64(3), 4),
    "lazy": Lazy([1, 2]),
    "lazy int": Lazy(3),
    "lazy mask": Lazy(np.arange(10) < 4),
    "mask list": [True, False] * 5,
    "short mask": np.ones(9, bool),
    "long mask": np.ones(11, bool),
    "empty mask": np.ones(0, bool),
    "2-d mask": np.ones((10, 10), bool),
    "slice of floats": slice(0.5, None),
    "slice of arrays": slice(np.array(2), np.int64(8)),
    "slice with step 0": slice(None, None, 0),
    "slice far": slice(-(2**80), 2**80, 2**75),
    "()": (),
    "(...,)": (...,),
    "(int,)": (3,),
    "(int, ...)": (3, ...),
    "(..., int)": (..., 3),
    "(slice, ...)": (slice(2, 5), ...),
    "(..., list)": (..., [1, 2]),
    "(tuple,)": ((1, 2),),
    "(list,)": ([],),
    "(mask, ...)": (np.arange(10) < 3, ...),
    "(..., ...)": (..., ...),
    "(int, int)": (1, 1),
    "(int, int, int, int)": (1, 1, 1, 1),
    "(list, list)": ([1, 2], [0, 1]),
    "(slice, string)": (slice(None), "a"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_indices_give_the_results_of_numpy(kind, name):
    check_select(*views()[kind], UNUSUAL[name])


ARRAYS = {
    "torch": ("torch", lambda torch: torch.tensor([3, 1, -2])),
    "torch mask": ("torch", lambda torch: torch.arange(10) % 3 == 0),
    "pandas": ("pandas", lambda pandas: pandas.Series([3, 1, 2])),
    "pandas mask": ("pandas", lambda pandas: pandas.Series(np.arange(10) % 2 == 0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_other_libraries_give_the_results_of_numpy(kind, name):
    package, make = ARRAYS[name]
    check_select(*views()[kind], make(pytest.importorskip(package)))


REJECTED = {
    "True": (True, "a single True is neither a row number nor a mask"),
    "np.False_": (np.False_, "a single False"),
    "0-d bool": (np.array(True), "a single True"),
    "None": (None, "adds no axis"),
    "float": (1.0, "1.0 is not an integer: only integers, slices"),
    "np.float32": (np.float32(1.5), "1.5 is not an integer"),
    "0-d float": (np.array(2.0), "2.0 is not an integer"),
    "nan": (float("nan"), "nan is not an integer"),
    "complex": (1j, "1j is not an integer"),
    "mixed list": ([True, 0, 1], "bools and integers"),
    "mixed list, np.bool": ([0, np.True_], "bools and integers"),
    "mixed nested list": ([[0, 1], [1, False]], "bools and integers"),
    "mixed list of arrays": ([np.array([0, 1]), np.array([True, False])], "bools and integers"),
    "(None, int)": ((None, 1), "adds no axis"),
    "(..., True)": ((..., True), "a single True"),
    "(float,)": ((1.5,), "1.5 is not an integer"),
    "(mixed,)": (((True, 2),), "bools and integers"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REJECTED)
def test_indices_that_are_likely_mistakes_raise_with_a_hint(kind, name):
    """NumPy rejects floats without a hint, and accepts the others."""
    index, hint = REJECTED[name]
    with pytest.raises(IndexError, match=hint):
        views()[kind][0].select(index)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_one_bool_raises_with_a_hint(kind, torch):
    with pytest.raises(IndexError, match="a single True"):
        views()[kind][0].select(torch.tensor(True))


def test_a_1d_tensor_with_one_element_is_an_array_unlike_in_numpy(torch):
    """If it were an integer, indices of a last batch of one sample would give no selection."""
    assert Selection.all(10).select(torch.tensor([3])).shape == (1,)
    assert Selection.all(10).select(torch.tensor(3)) == 3


def test_a_view_without_axes_has_no_length():
    view = Selection.all(5).select((2, ...))
    assert view.shape == ()
    assert view.select(()) == 2
    with pytest.raises(TypeError, match=r"len\(\) of unsized object"):
        len(view)


def test_len_is_the_length_of_the_first_axis():
    assert {name: len(view) for name, (view, _) in views().items()} == dict.fromkeys(KINDS, 10)


def test_index_arrays_are_copied():
    index = np.arange(6)
    view = Selection.all(10).select(index)
    grid = Selection.all(10).select(index.reshape(2, 3))
    index[:] = 9
    view.ids()[:] = 9
    grid.ids()[:] = 9
    assert view.ids().tolist() == grid.ids().tolist() == [0, 1, 2, 3, 4, 5]


def test_positions_out_of_bounds_raise():
    for view, _ in views().values():
        for position in (-1, view.size):
            with pytest.raises(IndexError, match="out of bounds"):
                view.at(np.array([0, position]))


def test_a_permutation_of_another_length_raises():
    with pytest.raises(ValueError, match="does not permute a view of 10 samples"):
        Selection.all(10).permute(Permutation(9, key=1))


def test_many_chained_slices_stay_affine():
    view = Selection.all(10**12)
    for _ in range(1000):
        view = view.select(slice(1, -1))
    assert view.affine == (1000, 1)
    assert view.select(slice(None, None, -2)).affine == (10**12 - 1001, -2)
    assert view.nbytes == 0


def test_many_chained_masks_and_slices_merge_into_one_mask():
    """Before and after the permutation, they merge into one range and one mask."""
    rng = np.random.default_rng(0)
    view, ids = Selection.all(100_000), np.arange(100_000)
    for depth in range(30):
        mask = rng.random(ids.size) < 0.95
        part = slice(10, None) if depth % 3 else slice(None, 10, -1)
        view, ids = view.select(mask).select(part), ids[mask][part]
        if depth == 10:
            shuffle = Permutation(view.size, key=1)
            view, ids = view.permute(shuffle), ids[shuffle.at(np.arange(ids.size))]
    assert len(view._stages) == 4  # mask, permutation, range, mask; the last range is no stage
    assert view.nbytes < 30_000  # a mask of 100,000 bits takes 13,300 bytes
    check_same(view, ids)


def test_a_mask_is_stored_as_bits_or_positions_whichever_is_smaller(monkeypatch):
    monkeypatch.undo()  # of `_masks_are_stored_as_bits`
    n = 10_000_000
    for share in (0.5, 0.1, 0.02, 0.01, 0.0001):
        mask = np.random.default_rng(0).random(n) < share
        view = Selection.all(n).select(mask)
        count = np.count_nonzero(mask)
        # Each block of 128 bytes of bits also has a count of 8 bytes.
        assert view.nbytes <= min(8 * count, n / 8 * 17 / 16 + 200)
        assert len(pickle.dumps(view)) <= view.nbytes + 1000
        assert np.array_equal(
            view.ids(count // 2, count // 2 + 100), np.flatnonzero(mask)[count // 2 :][:100]
        )
        few = view.select(slice(5, 20))
        assert len(pickle.dumps(few)) < 1000
        assert np.array_equal(pickle.loads(pickle.dumps(few)).ids(), few.ids())


def test_small_views_do_not_import_numba():
    code = """
import sys
import numpy as np
from npstream.orders.permutation import Permutation
from npstream.indexing.selection import Selection
mask = np.arange(100_000) % 3 == 0
view = Selection.all(100_000).select(slice(None, None, -1)).select(mask[::-1])
assert view.select(-1) == 0 and view.at(np.arange(0, 30000, 1000))[3] == 99_999 - 9_000
assert view.ids(5, 9).tolist() == [99_984, 99_981, 99_978, 99_975]
shuffled = view.permute(Permutation(len(view), key=1))
assert mask[shuffled.ids(0, 200)].all() and mask[shuffled.select(5)]
print("numba" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.stderr, result.stdout) == ("", "False\n")
