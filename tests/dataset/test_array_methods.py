"""A column's methods accept the arguments of ndarray's methods, and return the same results."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest

import npstream
from npstream.dataset.array_methods import ArrayMethods
from npstream.testing import assert_same

N = 12
FIXED = {
    "x": np.arange(N * 6, dtype=np.float32).reshape(N, 3, 2) % 7,
    "n": np.arange(N) % 5 - 2,
}
OBJECTS = {"text": [f"t{k}" for k in range(N)], "json": [{"k": k} for k in range(N)]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("methods")
    columns = {"x": "ndarray:float32:3,2", "n": "int64", "text": "str", "json": "json"}
    with npstream.Writer(path, columns, shard_size=400) as out:
        for k in range(N):
            out.write({name: values[k] for name, values in (FIXED | OBJECTS).items()})
    return npstream.open(path)


@pytest.fixture
def ds(dataset, monkeypatch):
    monkeypatch.setattr("npstream.dataset.column.READ_BYTES", 200)
    return dataset


CALLS: dict[str, list[Any]] = {
    "sum": [
        lambda a: a.sum(),
        lambda a: a.sum(0),
        lambda a: a.sum(0, np.float64),
        lambda a: a.sum(1, None, np.zeros((12, 2), np.float32)),
        lambda a: a.sum(0, None, None, True),
        lambda a: a.sum(initial=3),
        lambda a: a.sum(where=[[True], [False], [True]]),
        lambda a: a.sum(axis=(0, 2)),
        lambda a: a.sum(initial=0),
    ],
    "prod": [
        lambda a: a.prod(),
        lambda a: a.prod(1, np.float64),
        lambda a: a.prod(0, initial=2),
    ],
    "min": [
        lambda a: a.min(),
        lambda a: a.min(0),
        lambda a: a.min(0, None, True),
        lambda a: a.min(initial=-1),
        lambda a: a.min(0, where=[[True], [False], [True]], initial=9),
    ],
    "max": [
        lambda a: a.max(),
        lambda a: a.max(0, None, True),
        lambda a: a.max(axis=2, keepdims=True),
        lambda a: a.max(0, np.zeros((3, 2), np.float32)),
    ],
    "any": [
        lambda a: a.any(),
        lambda a: a.any(0),
        lambda a: a.any(where=False),
        lambda a: a.any(1, where=[[True], [False], [True]]),
    ],
    "all": [
        lambda a: a.all(),
        lambda a: a.all(2),
        lambda a: a.all(keepdims=True),
    ],
    "mean": [
        lambda a: a.mean(),
        lambda a: a.mean(0, np.float64),
        lambda a: a.mean(1, None, None, True),
        lambda a: a.mean(where=[[True], [False], [True]]),
    ],
    "std": [
        lambda a: a.std(),
        lambda a: a.std(0, None, None, 1),
        lambda a: a.std(0, None, None, 1, True),
        lambda a: a.std(0, mean=np.ones((1, 3, 2))),
    ],
    "var": [
        lambda a: a.var(),
        lambda a: a.var(0, np.float64),
        lambda a: a.var(axis=1, ddof=2),
        lambda a: a.var(where=[[True], [False], [True]]),
    ],
    "argmin": [
        lambda a: a.argmin(),
        lambda a: a.argmin(1, None),
        lambda a: a.argmin(0),
        lambda a: a.argmin(0, None, keepdims=True),
        lambda a: a.argmin((0,)),
    ],
    "argmax": [
        lambda a: a.argmax(),
        lambda a: a.argmax(1, None),
        lambda a: a.argmax(2),
        lambda a: a.argmax(1, np.zeros((12, 2), np.intp)),
    ],
    "astype": [
        lambda a: a.astype("f8"),
        lambda a: a.astype("f8", copy=False),
        lambda a: a.astype("f8", order="C"),
        lambda a: a.astype("f8", "F"),
        lambda a: a.astype("f8", casting="safe"),
        lambda a: a.astype("i1", casting="safe"),
        lambda a: a.astype("i1", "K", "unsafe", True, True),
        lambda a: a.astype(object),
        lambda a: a.astype("f4"),
    ],
    "copy": [
        lambda a: a.copy(),
        lambda a: a.copy("F"),
        lambda a: a.copy(order="C"),
    ],
    "flatten": [
        lambda a: a.flatten(),
        lambda a: a.flatten("F"),
    ],
    "reshape": [
        lambda a: a.reshape(6, -1),
        lambda a: a.reshape((6, -1)),
        lambda a: a.reshape(-1),
        lambda a: a.reshape((N, 6), order="F"),
        lambda a: a.reshape(5, 5),
    ],
    "ravel": [
        lambda a: a.ravel(),
        lambda a: a.ravel("F"),
    ],
    "transpose": [
        lambda a: a.transpose(),
        lambda a: a.transpose(2, 0, 1),
        lambda a: a.transpose((1, 0, 2)),
        lambda a: a.transpose(None),
        lambda a: a.transpose(0, 0, 1),
    ],
    "tolist": [
        lambda a: a.tolist(),
    ],
    "repeat": [
        lambda a: a.repeat(2),
        lambda a: a.repeat([1, 2, 0], 1),
        lambda a: a.repeat(3, axis=0),
        lambda a: a.repeat([1, 2], 0),
    ],
    "clip": [
        lambda a: a.clip(1, 4),
        lambda a: a.clip(1),
        lambda a: a.clip(max=2),
        lambda a: a.clip([1, 2], [[3], [4], [5]]),
        lambda a: a.clip(1, 4, np.zeros((12, 3, 2), np.float32)),
        lambda a: a.clip(min=None, max=None),
        lambda a: a.clip(1, 4, dtype=np.float64),
    ],
    "round": [
        lambda a: a.round(),
        lambda a: a.round(-1),
        lambda a: a.round(1, np.zeros((12, 3, 2), np.float32)),
        lambda a: a.round(decimals=2),
    ],
    "cumsum": [
        lambda a: a.cumsum(),
        lambda a: a.cumsum(0),
        lambda a: a.cumsum(1, np.float64),
        lambda a: a.cumsum(0, None, np.zeros((12, 3, 2), np.float32)),
    ],
    "argsort": [
        lambda a: a.argsort(),
        lambda a: a.argsort(0),
        lambda a: a.argsort(None),
        lambda a: a.argsort(axis=1, kind="stable"),
        lambda a: a.argsort(0, stable=True),
    ],
    "nonzero": [
        lambda a: a.nonzero(),
    ],
    "dot": [
        lambda a: a.dot(np.ones(2)),
        lambda a: a.dot(np.ones((2, 5))),
        lambda a: a.dot(2),
        lambda a: a.dot(np.ones(3)),
    ],
    "item": [
        lambda a: a.item(5),
        lambda a: a.item(-1),
        lambda a: a.item(1, 2, 1),
        lambda a: a.item((1, -1, 0)),
        lambda a: a.item(),
        lambda a: a.item(99),
    ],
    "take": [
        lambda a: a.take([1, 0]),
        lambda a: a.take([1, 0], 1),
        lambda a: a.take([[1], [0]], axis=2),
        lambda a: a.take(5, mode="wrap"),
        lambda a: a.take(99, 0, None, "clip"),
        lambda a: a.take([0], 0, np.zeros((1, 3, 2), np.float32)),
    ],
}


def outcome(function, array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(array)
        except Exception as error:
            return error


@pytest.mark.parametrize(
    ("name", "number"), [(name, k) for name, calls in CALLS.items() for k in range(len(calls))]
)
def test_methods_return_the_results_for_arrays(ds, name, number):
    function = CALLS[name][number]
    got, expected = outcome(function, ds["x"]), outcome(function, FIXED["x"])
    if isinstance(expected, Exception):
        assert isinstance(got, type(expected)), got
        return
    if isinstance(expected, np.ndarray | np.generic) and expected.dtype.kind == "f":
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    elif isinstance(expected, tuple):
        for left, right in zip(got, expected, strict=True):
            assert_same(left, right)
    elif isinstance(expected, np.ndarray):
        assert_same(got, np.ascontiguousarray(expected))
    else:
        assert_same(got, expected)


def test_parameters_have_the_names_and_positions_of_numpys():
    for name in ("sum", "prod", "min", "max", "any", "all", "mean", "std", "var"):
        parameters = list(inspect.signature(getattr(ArrayMethods, name)).parameters)[1:]
        expected = list(inspect.signature(getattr(np, name)).parameters)[1:]
        assert parameters == expected, name


def test_correction_is_an_alias_of_ddof(ds):
    assert ds["x"].std(correction=1) == ds["x"].std(ddof=1) == np.std(ds["x"], correction=1)
    with pytest.raises(ValueError, match="simultaneously"):
        ds["x"].var(ddof=1, correction=1)


def test_methods_of_0d_views_return_the_results_for_arrays(ds):
    column, array = ds[..., 3]["n"], np.array(FIXED["n"][3])
    for call in (
        lambda a: a.sum(), lambda a: a.tolist(), lambda a: a.item(), lambda a: a.copy(),
        lambda a: a.reshape(1, 1), lambda a: a.T, lambda a: a.flatten(), lambda a: a.clip(1, 2),
        lambda a: a.round(), lambda a: a.argmax(), lambda a: a.astype("f8"), lambda a: a.repeat(2),
        lambda a: a.cumsum(), lambda a: a.dot(3),
    ):  # fmt: skip
        assert_same(call(column), call(array))


def test_methods_of_text_and_object_columns_return_their_values(ds):
    assert ds["text"].tolist() == OBJECTS["text"]
    assert ds["json"].tolist() == OBJECTS["json"]
    assert ds["json"].item(3) == {"k": 3}
    assert ds["text"][::-1].item(0) == "t11"
    assert ds["text"].copy().tolist() == OBJECTS["text"]
    assert ds["json"].reshape(4, 3).shape == (4, 3)
    assert ds["text"].argsort().tolist() == np.array(OBJECTS["text"]).argsort().tolist()
    with pytest.raises(TypeError, match="no array has such rows"):
        ds["json"].sum()


def test_reshape_has_the_parameter_copy(ds):
    """ndarray.reshape has it since NumPy 2.1."""
    assert_same(ds["x"].reshape(6, -1, copy=True), FIXED["x"].reshape(6, -1))
    with pytest.raises(ValueError, match="Unable to avoid creating a copy"):
        ds["x"].reshape(6, -1, copy=False)


def test_methods_without_effect_on_the_values_read_nothing(ds, monkeypatch):
    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", None)
    rows = ds[[[1, 2], [3, 4]]]
    assert rows["text"].ravel().shape == (4,)
    assert isinstance(rows["n"].ravel(), npstream.Column)
    assert isinstance(ds["n"].T, npstream.Column)
    assert isinstance(ds["n"].transpose(), npstream.Column)
    assert isinstance(ds["x"].reshape(N, 3, 2), npstream.Column)


def test_a_dataset_contains_the_names_of_its_columns(ds, monkeypatch):
    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", None)
    assert "n" in ds
    assert "label" not in ds
    assert "n" not in ds[["x"]]
    with pytest.raises(TypeError, match="name of a column, got dict"):
        {"n": 1} in ds  # noqa: B015
