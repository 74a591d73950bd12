"""npstream.testing: assertions find wrong arrays, and strategies draw every kind of value."""

from __future__ import annotations

import decimal
import subprocess
import sys

import numpy as np
import pytest
from dataset_files import objects
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import npstream
from npstream import testing
from npstream.formats.encodings.encodings import column_type

FIRST = settings(phases=[Phase.generate], max_examples=2000)
"""Settings for `find` that return the first example without shrinking it."""

VALUES = np.arange(24, dtype=np.int32).reshape(6, 4)


class ArrayLike:
    """An array-like that behaves like its array."""

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __getitem__(self, index):
        return self.wrap(self.array[index])

    def wrap(self, result):
        return type(self)(result) if isinstance(result, np.ndarray) else result


class WrongValue(ArrayLike):
    def __getitem__(self, index):
        return self.wrap(self.array[index] + 1)


class WrongDtype(ArrayLike):
    def __getitem__(self, index):
        return self.wrap(self.array[index].astype(np.int64))


class WrongShape(ArrayLike):
    def __getitem__(self, index):
        return self.wrap(self.array[index].reshape(1, -1))


class WrongShapeAttribute(ArrayLike):
    def wrap(self, result):
        wrapped = super().wrap(result)
        if isinstance(wrapped, ArrayLike):
            wrapped.shape = (1, *wrapped.shape)
        return wrapped


class ClampsIntegers(ArrayLike):
    """Negative integers select the first row, and integers out of bounds select the last."""

    def __getitem__(self, index):
        if isinstance(index, int):
            index = min(max(index, 0), len(self.array) - 1)
        return super().__getitem__(index)


class IgnoresSteps(ArrayLike):
    def __getitem__(self, index):
        if isinstance(index, slice):
            index = slice(index.start, index.stop)
        return super().__getitem__(index)


class SortsIndexArrays(ArrayLike):
    def __getitem__(self, index):
        if isinstance(index, np.ndarray) and index.dtype != bool:
            index = np.sort(index, axis=None).reshape(index.shape)
        return super().__getitem__(index)


class IgnoresMasks(ArrayLike):
    def __getitem__(self, index):
        if isinstance(index, np.ndarray) and index.dtype == bool:
            index = slice(None)
        return super().__getitem__(index)


class RaisesAnotherType(ArrayLike):
    def __getitem__(self, index):
        try:
            return super().__getitem__(index)
        except IndexError as error:
            raise ValueError(str(error)) from None


class RefusesTuples(ArrayLike):
    def __getitem__(self, index):
        if isinstance(index, tuple):
            raise TypeError("no tuples")
        return super().__getitem__(index)


BROKEN = [
    WrongValue, WrongDtype, WrongShape, WrongShapeAttribute, ClampsIntegers, IgnoresSteps,
    SortsIndexArrays, IgnoresMasks, RaisesAnotherType, RefusesTuples,
]  # fmt: skip


def fails(check, *args):
    try:
        check(*args)
    except AssertionError:
        return True
    return False


# Assertions


@pytest.mark.parametrize("kind", BROKEN)
def test_drawn_indices_and_the_assertion_find_each_error(kind):
    actual = kind(VALUES)
    find(
        testing.indices(VALUES.shape),
        lambda index: fails(testing.assert_same_as_numpy, actual, VALUES, index),
        settings=FIRST,
    )


@given(testing.indices(VALUES.shape))
def test_a_correct_array_like_passes(index):
    pair = testing.assert_same_as_numpy(ArrayLike(VALUES), VALUES, index, messages=True)
    if pair is not None and isinstance(pair[1], np.ndarray):
        assert np.array_equal(pair[0].array, pair[1])


def test_arrays_and_scalars_are_compared_directly():
    assert testing.assert_same_as_numpy(VALUES, VALUES, (1, 2)) == (6, 6)
    assert testing.assert_same_as_numpy(VALUES, VALUES, 6) is None
    with pytest.raises(AssertionError, match="shape"):
        testing.assert_same_as_numpy(VALUES, VALUES[:5])


def test_exceptions_are_compared_by_type_and_optionally_by_message():
    class Terse(ArrayLike):
        def __getitem__(self, index):
            raise IndexError("no")

    assert testing.assert_same_as_numpy(Terse(VALUES), VALUES, 6) is None
    with pytest.raises(AssertionError, match="message 'no' is not NumPy's 'index 6 is out"):
        testing.assert_same_as_numpy(Terse(VALUES), VALUES, 6, messages=True)
    with pytest.raises(
        AssertionError, match=r"IndexError\('no'\) is raised, where NumPy"
    ) as caught:
        testing.assert_same_as_numpy(Terse(VALUES), VALUES, slice(2, 3))
    assert caught.value.__notes__ == ["index: slice(2, 3, None)"]
    with pytest.raises(AssertionError, match="where NumPy raises IndexError"):
        testing.assert_same_as_numpy(ClampsIntegers(VALUES), VALUES, 6)


def test_results_of_functions_are_compared():
    testing.assert_same_result(np.sum, ArrayLike(VALUES), VALUES)
    testing.assert_same_result(lambda x: np.asarray(x) @ "a", ArrayLike(VALUES), VALUES)
    with pytest.raises(AssertionError, match=r"value .*276.* is not NumPy's .*282"):
        testing.assert_same_result(np.sum, ArrayLike(VALUES), VALUES + np.int32(6) * (VALUES == 0))


A = np.array([1.0, np.nan])

SAME = {
    "nan": (A, A.copy()),
    "nat": (np.array(["NaT", 1], "m8[s]"), np.array(["NaT", 1], "m8[s]")),
    "text": (np.array(["a", "é"], "T"), np.array(["a", "é"], "T")),
    "objects": (objects([A, {"a": [1]}]), objects([A.copy(), {"a": [1]}])),
    "int": (3, np.int64(3)),
    "float": (float("nan"), np.float64("nan")),
    "records": (np.zeros(2, "i4,f8"), np.zeros(2, "i4,f8")),
    "rows": (npstream.Ragged.from_list(["a", ""]), np.array([["a"], [""]], "T")),
    "mapping": ({"a": A, "b": "x"}, {"b": "x", "a": A.copy()}),
    "none": (None, None),
}

DIFFERENT = {
    "value": (A, np.array([1.0, 2.0]), r"1 wrong value of 2, the first at \(1,\): nan is not"),
    "0-d": (np.array(1), np.array(2), r"the first at \(\): 1 is not NumPy's 2"),
    "byte order": (np.arange(3, dtype=">i4"), np.arange(3, dtype="<i4"), "dtype >i4"),
    "dtype": (A, A.astype(np.float32), "dtype float64 is not NumPy's float32"),
    "shape": (A, A[None], r"shape \(2,\) is not NumPy's \(1, 2\)"),
    "list": ([1], np.array([1]), "type"),
    "scalar": (np.int32(3), np.int64(3), "type"),
    "scalar for array": (np.int64(3), np.array(3), "type"),
    "bool": (True, np.int64(1), "type"),
    "int for int32": (3, np.int32(3), "type"),
    "decimal": (decimal.Decimal(1), 1, "type"),
    "element": (objects([A, "a"]), objects([A, "b"]), "'a' is not NumPy's 'b'"),
    "type of element": (objects([1, 2]), objects([1, 2.0]), "type"),
    "array within": (objects([A]), objects([A.astype("f4")]), "dtype"),
    "rows": (npstream.Ragged.from_list(["a", ""]), np.array(["a", "b"], "T"), "value '' is not"),
    "number of rows": (npstream.Ragged.from_list(["a"]), np.array(["a", ""], "T"), "rows 1"),
    "subclass": (np.ma.array([1]), np.array([1]), "type"),
    "names": ({"a": 1}, {"b": 1}, "columns"),
    "no mapping": (1, {"a": 1}, "type"),
    "in a mapping": ({"a": 1}, {"a": 2}, "value 1 is not NumPy's 2"),
}


@pytest.mark.parametrize("name", SAME)
def test_same_values_pass(name):
    testing.assert_same(*SAME[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_values_fail(name):
    actual, expected, message = DIFFERENT[name]
    with pytest.raises(AssertionError, match=message):
        testing.assert_same(actual, expected)


# Datasets


@pytest.fixture
def values():
    return {
        "label": np.arange(6),
        "tokens": np.arange(12, dtype=np.uint16).reshape(6, 2),
        "text": np.array(["", "a", "b", "c", "d", "é"], "T"),
    }


@pytest.fixture
def ds(tmp_path, values):
    npstream.write(tmp_path / "ds", values)
    return npstream.open(tmp_path / "ds")


def test_the_returned_views_of_datasets_can_be_compared_again(ds, values):
    pair = testing.assert_same_as_numpy(ds, values, [[4, 1], [0, 0]])
    assert pair[0].shape == (2, 2)
    assert pair[1]["tokens"].shape == (2, 2, 2)
    view, rows = testing.assert_same_as_numpy(*pair, (slice(None), 1))
    assert rows["label"].tolist() == [1, 0]
    assert testing.assert_same_as_numpy(view, rows, 1)[0]["text"] == ""
    assert testing.assert_same_as_numpy(view, rows, 2, messages=True) is None
    assert testing.assert_same_as_numpy(*pair, (..., 0, 1))[1]["label"].shape == ()
    assert testing.assert_same_as_numpy(view, rows, "label")[1].tolist() == [1, 0]
    assert list(testing.assert_same_as_numpy(view, rows, ["text", "label"])[1]) == ["text", "label"]
    assert testing.assert_same_as_numpy(view, rows, "lable") is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "label",
            lambda column: column + (np.arange(6) == 3),
            r"1 wrong value of 6.*\(3,\): 3 is not",
        ),
        ("label", lambda column: column.astype(np.int32), "dtype"),
        ("tokens", lambda column: column[:, :1], "shape"),
        (
            "text",
            lambda column: np.where(column == "é", "e", column),
            r"\(5,\): é is not NumPy's e",
        ),
    ],
)
def test_the_error_names_the_column_that_differs(ds, values, name, change, message):
    wrong = values | {name: change(values[name])}
    with pytest.raises(AssertionError, match=message) as caught:
        testing.assert_same_as_numpy(ds, wrong)
    assert caught.value.__notes__ == [f"column: {name!r}", "index: Ellipsis"]
    with pytest.raises(AssertionError, match="set of columns"):
        testing.assert_same_as_numpy(ds[["label"]], values)


def test_load_is_compared_in_addition_to_asarray(ds, values, monkeypatch):
    monkeypatch.setattr(npstream.Column, "load", lambda column: np.zeros(6, np.int64))
    monkeypatch.setattr(npstream.Column, "__array__", lambda column, *_, **__: np.arange(6))
    with pytest.raises(AssertionError, match="5 wrong values of 6"):
        testing.assert_same_as_numpy(ds["label"], values["label"])


# Strategies


def parts(index):
    return index if isinstance(index, tuple) else (index,)


KINDS = {
    "integer": lambda index: isinstance(index, int),
    "negative": lambda index: isinstance(index, int) and index < 0,
    "beyond": lambda index: isinstance(index, int) and index >= 4,
    "far below": lambda index: isinstance(index, int) and index < -4,
    "slice": lambda index: isinstance(index, slice),
    "backwards": lambda index: isinstance(index, slice) and (index.step or 0) < -1,
    "step of 0": lambda index: isinstance(index, slice) and index.step == 0,
    "ellipsis": lambda index: index is ...,
    "array": lambda index: isinstance(index, np.ndarray) and index.dtype == np.int64,
    "unsigned array": lambda index: isinstance(index, np.ndarray) and index.dtype.kind == "u",
    "array of many axes": lambda index: isinstance(index, np.ndarray) and index.ndim == 3,
    "layout": lambda index: isinstance(index, np.ndarray) and not index.flags.c_contiguous,
    "list": lambda index: isinstance(index, list) and len(index) > 1 and type(index[0]) is int,
    "empty list": lambda index: isinstance(index, list) and not index,
    "mask": lambda index: isinstance(index, np.ndarray) and index.dtype == bool,
    "mask of values": lambda i: isinstance(i, np.ndarray) and i.dtype == bool and i.ndim == 2,
    "long mask": lambda i: isinstance(i, np.ndarray) and i.dtype == bool and len(i) == 5,
    "list of bools": lambda index: isinstance(index, list) and bool in map(type, index),
    "empty tuple": lambda index: isinstance(index, tuple) and not index,
    "integer, array": lambda index: {int, np.ndarray} <= set(map(type, parts(index))),
    "arrays": lambda index: [*map(type, parts(index))].count(np.ndarray) == 2,
    "slice, list": lambda index: {slice, list} <= set(map(type, parts(index))),
    "too many": lambda index: len([part for part in parts(index) if part is not ...]) == 3,
}


def test_every_kind_of_index_is_drawn():
    drawn = set()

    @settings(max_examples=1000, phases=[Phase.generate])
    @given(testing.indices((4, 3)))
    def draw(index):
        drawn.update(name for name in KINDS if KINDS[name](index))

    draw()
    assert drawn == set(KINDS)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 5, 300]), max_size=3).map(tuple)


@given(SHAPES, st.data())
def test_valid_indices_never_raise(shape, data):
    index = data.draw(testing.indices(shape, allow_invalid=False))
    np.broadcast_to(np.int8(0), shape)[index]


def test_indices_accepts_a_length_as_the_shape():
    find(
        testing.indices(10**12),
        lambda index: isinstance(index, int) and index > 10**11,
        settings=FIRST,
    )
    with pytest.raises(TypeError):
        testing.indices((1.5,))


@given(testing.encodings(), st.integers(0, 4), st.data())
def test_values_have_the_dtype_and_shape_of_their_column(encoding, n, data):
    values = data.draw(testing.column_values(encoding, n))
    column = column_type(encoding)
    assert values.shape == (n, *(column.shape or ()))
    if column.kind in ("fixed", "str", "int_text", "float_text"):
        assert values.dtype == column.dtype
    else:
        assert values.dtype == object


def test_values_of_ml_dtypes_are_drawn():
    assert find(testing.column_values("bfloat16", 2), lambda values: values[0] > 0)[0] == 1


@pytest.mark.parametrize("encoding", ["pkl", "png"])
def test_encodings_without_a_strategy_raise(encoding):
    with pytest.raises(ValueError, match=f"no strategy for values of encoding '{encoding}'"):
        testing.column_values(encoding, 3)


@given(testing.tables(st.just("int8"), min_samples=2, max_samples=3, max_columns=2))
def test_tables_have_the_requested_size(table):
    values, columns = table
    assert set(values) == set(columns)
    assert 1 <= len(values) <= 2
    assert set(columns.values()) == {"int8"}
    assert {len(column) for column in values.values()} in ({2}, {3})


# Without Hypothesis


def test_only_the_strategies_need_hypothesis():
    code = """
import sys
sys.modules["hypothesis"] = None
import numpy as np
import npstream
assert "npstream.testing" not in sys.modules
from npstream import testing
testing.assert_same_as_numpy(np.arange(3), np.arange(3), [2, 0])
for draw in (lambda: testing.indices(3), testing.encodings, testing.tables,
             lambda: testing.column_values("int8", 3)):
    try:
        draw()
    except npstream.errors.MissingDependencyError as error:
        print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        f"npstream.testing.{name} needs the package 'hypothesis', which is not installed: "
        "python -m pip install 'npstream[testing]'"
        for name in ("indices", "encodings", "tables", "column_values")
    ]
