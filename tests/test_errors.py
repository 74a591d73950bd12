"""Exceptions: what they subclass, what they say, and that they cross process boundaries."""

import copy
import errno
import pickle

import pytest

from npstream import errors

RAISED = [
    (errors.FormatError("bad"), ValueError),
    (errors.StorageError(errno.ENOENT, "No such file", "x"), FileNotFoundError),
    (errors.StorageError(errno.EEXIST, "it is here", "x"), FileExistsError),
    (errors.StorageError(errno.EACCES, "refused"), PermissionError),
    (errors.StorageError(errno.EPERM, "refused"), PermissionError),
    (errors.StorageError(errno.ENOTDIR, "x/y", "x/y"), NotADirectoryError),
    (errors.StorageError(errno.EISDIR, "x", "x"), IsADirectoryError),
    (errors.StorageError(errno.ETIMEDOUT, "no answer"), TimeoutError),
    (errors.StorageError(errno.ECONNREFUSED, "refused"), ConnectionError),
    (errors.StorageError(errno.ECONNRESET, "reset"), ConnectionError),
    (errors.StorageError(errno.EIO, "5 of 6 bytes came"), OSError),
    (errors.StorageError("5 of 6 bytes came"), OSError),
    (errors.IntegrityError("wrong hash"), OSError),
    (errors.MissingDependencyError("this", "pillow", "images"), ImportError),
    (errors.ColumnError("lable", ["label", "text"]), KeyError),
]

OTHERS = (BlockingIOError, ChildProcessError, InterruptedError, ProcessLookupError)
"""Builtins of an errno that no store gives."""


@pytest.mark.parametrize(("error", "builtin"), RAISED)
def test_each_is_the_builtin_that_a_user_would_catch(error, builtin):
    assert isinstance(error, builtin)
    assert isinstance(error, errors.NpstreamError)


@pytest.mark.parametrize("error", [error for error, _ in RAISED])
def test_each_survives_pickling(error):
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        if isinstance(error, OSError):
            assert (again.errno, again.filename) == (error.errno, error.filename)
        # DataLoader pickles the class, and makes another from a text.
        assert isinstance(pickle.loads(pickle.dumps(type(error))), type)


def test_storage_errors_are_what_oserror_would_be():
    for code in errno.errorcode:
        builtin = type(OSError(code, "x"))
        if builtin not in OTHERS:
            error = errors.StorageError(code, "x", "y")
            expected = ConnectionError if issubclass(builtin, ConnectionError) else builtin
            assert isinstance(error, expected)
            assert isinstance(error, errors.StorageError)
            assert (error.errno, error.strerror, error.filename) == (code, "x", "y")


def test_an_unknown_column_names_the_nearest_one():
    assert str(errors.ColumnError("lable", ["label", "text"])) == (
        "no column 'lable'; did you mean 'label'?"
    )
    assert str(errors.ColumnError("x", [])) == "no column 'x'; columns: none"


def test_a_missing_package_names_the_extra():
    assert "npstream[images]" in str(errors.MissingDependencyError("this", "pillow", "images"))
