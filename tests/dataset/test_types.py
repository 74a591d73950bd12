"""Types that mypy infers for users' code; `.ci/run` runs mypy on this file."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest

import npstream
from npstream import Column, Dataset, Mixture


@pytest.fixture
def ds(tmp_path: Path) -> Dataset:
    npstream.write(tmp_path / "data", {"a": np.arange(4)})
    return npstream.open(tmp_path / "data")


def test_indices_have_the_inferred_types(ds: Dataset) -> None:
    assert isinstance(assert_type(ds[0], dict[str, Any]), dict)
    assert isinstance(assert_type(ds[np.int64(1)], dict[str, Any]), dict)
    assert isinstance(assert_type(ds["a"], Column), Column)
    assert isinstance(assert_type(ds[["a"]], Dataset), Dataset)
    assert isinstance(assert_type(ds[::2], Dataset), Dataset)
    assert isinstance(assert_type(ds[np.array([3, 1])], Dataset), Dataset)
    assert isinstance(assert_type(ds[np.asarray(ds["a"]) > 1], Dataset), Dataset)
    assert isinstance(assert_type(npstream.mix({"x": ds}), Mixture), Mixture)


def test_views_have_the_inferred_types(ds: Dataset) -> None:
    views = [
        assert_type(ds.head(), Dataset),
        assert_type(ds.sample(2), Dataset),
        assert_type(ds.sort("a"), Dataset),
        assert_type(ds.drop("a"), Dataset),
        assert_type(ds.rename(a="b"), Dataset),
        assert_type(ds.map(len), Dataset),
        assert_type(ds.with_transform(None), Dataset),
        assert_type(ds.filter(len), Dataset),
        assert_type(ds.query("a > 1"), Dataset),
        assert_type(npstream.concat([ds, ds]), Dataset),
        assert_type(npstream.mix({"x": ds}).query("a > 1"), Dataset),
    ]
    assert all(isinstance(view, Dataset) for view in views)


PUBLIC = [
    npstream.open,
    npstream.write,
    npstream.mix,
    npstream.concat,
    *(
        method
        for kind in (Dataset, Mixture)
        for name, method in vars(kind).items()
        if callable(method) and not name.startswith("_")
    ),
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__qualname__)
def test_public_functions_have_no_keyword_catch_all(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
