"""Exceptions: what they subclass, what they say, and that they cross process boundaries."""

import pickle

import pytest

from npstream import errors

RAISED = [
    (errors.FormatError("bad"), ValueError),
    (errors.StorageError(2, "No such file", "x"), OSError),
    (errors.IntegrityError("wrong hash"), OSError),
    (errors.MissingDependencyError("this", "pillow", "images"), ImportError),
    (errors.ColumnError("lable", ["label", "text"]), KeyError),
]


@pytest.mark.parametrize(("error", "builtin"), RAISED)
def test_each_is_the_builtin_that_a_user_would_catch(error, builtin):
    assert isinstance(error, builtin)
    assert isinstance(error, errors.NpstreamError)


@pytest.mark.parametrize("error", [error for error, _ in RAISED])
def test_each_survives_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_an_unknown_column_names_the_nearest_one():
    assert str(errors.ColumnError("lable", ["label", "text"])) == (
        "no column 'lable'; did you mean 'label'?"
    )
    assert str(errors.ColumnError("x", [])) == "no column 'x'; columns: none"


def test_a_missing_package_names_the_extra():
    assert "npstream[images]" in str(errors.MissingDependencyError("this", "pillow", "images"))
