"""Exceptions: their base classes, their messages, and pickling."""

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
    (errors.StorageError(errno.EIO, "5 of 6 bytes received"), OSError),
    (errors.StorageError("5 of 6 bytes received"), OSError),
    (errors.IntegrityError("wrong hash"), OSError),
    (errors.MissingDependencyError("this", "pillow", "images"), ImportError),
    (errors.ColumnError("lable", ["label", "text"]), KeyError),
]

OTHERS = (BlockingIOError, ChildProcessError, InterruptedError, ProcessLookupError)
"""Builtins whose errno no store returns."""


@pytest.mark.parametrize(("error", "builtin"), RAISED)
def test_exceptions_subclass_the_builtin_that_a_user_would_catch(error, builtin):
    assert isinstance(error, builtin)
    assert isinstance(error, errors.NpstreamError)


@pytest.mark.parametrize("error", [error for error, _ in RAISED])
def test_exceptions_can_be_pickled_and_copied(error):
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)
        if isinstance(error, OSError):
            assert (copied.errno, copied.filename) == (error.errno, error.filename)
        # torch's DataLoader pickles the class and the message.
        assert isinstance(pickle.loads(pickle.dumps(type(error))), type)


def test_storage_errors_subclass_the_builtin_of_their_errno():
    for code in errno.errorcode:
        builtin = type(OSError(code, "x"))
        if builtin not in OTHERS:
            error = errors.StorageError(code, "x", "y")
            expected = ConnectionError if issubclass(builtin, ConnectionError) else builtin
            assert isinstance(error, expected)
            assert isinstance(error, errors.StorageError)
            assert (error.errno, error.strerror, error.filename) == (code, "x", "y")


def test_an_unknown_column_suggests_a_similar_name():
    assert str(errors.ColumnError("lable", ["label", "text"])) == (
        "no column 'lable'; did you mean 'label'?"
    )
    assert str(errors.ColumnError("x", [])) == "no column 'x'; columns: none"


def test_a_missing_package_names_the_extra():
    assert "npstream[images]" in str(errors.MissingDependencyError("this", "pillow", "images"))
