"""The exceptions that npstream raises.

Each exception subclasses a matching builtin, so ``except ValueError`` and ``except OSError`` work.
A message states the value, the rule that it breaks, the location, and the fix.

Public functions shorten the traceback of an exception that they raise: of consecutive frames of
this package, only the first and the last remain. The traceback is changed in place, so that every
tool that shows or logs the exception shows the same frames.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NoReturn

__all__ = [
    "ColumnError",
    "CostError",
    "FormatError",
    "IntegrityError",
    "MissingDependencyError",
    "NpstreamError",
    "PartitionError",
    "StorageError",
]


class NpstreamError(Exception):
    """Base class of every exception that npstream defines."""


class FormatError(NpstreamError, ValueError):
    """An index, shard or sample does not follow its format: it is damaged or malicious."""


class StorageError(NpstreamError, OSError):
    """A dataset's bytes could not be read or written.

    An error whose ``errno`` concerns a path, a permission, a timeout or a connection is also an
    instance of the matching builtin. So ``except FileNotFoundError`` catches a missing dataset,
    local or remote.

    Examples
    --------
    >>> import errno
    >>> error = StorageError(errno.ENOENT, "there is no such file", "s3://bucket/index.json")
    >>> isinstance(error, FileNotFoundError), isinstance(error, StorageError)
    (True, True)
    """

    def __new__(cls, *args: Any) -> StorageError:
        """Choose the subclass for the ``errno``, which is the first of several arguments."""
        kind: type[StorageError] = cls
        if cls is StorageError and len(args) > 1:
            builtin = type(OSError(*args[:2]))
            # Each subclass has StorageError and a builtin as its bases.
            kind = next((k for k in _KINDS if issubclass(builtin, k.__bases__[1])), cls)
        return super().__new__(kind, *args)


class StorageNotFoundError(StorageError, FileNotFoundError):
    """The file or directory does not exist."""


class StorageExistsError(StorageError, FileExistsError):
    """The file already exists."""


class StoragePermissionError(StorageError, PermissionError):
    """The store or the operating system denied access."""


class StorageNotADirectoryError(StorageError, NotADirectoryError):
    """A part of the path is not a directory."""


class StorageIsADirectoryError(StorageError, IsADirectoryError):
    """The path is a directory."""


class StorageTimeoutError(StorageError, TimeoutError):
    """The store did not answer before the timeout."""


class StorageConnectionError(StorageError, ConnectionError):
    """The connection was refused or lost."""


_KINDS: tuple[type[StorageError], ...] = (
    StorageNotFoundError,
    StorageExistsError,
    StoragePermissionError,
    StorageNotADirectoryError,
    StorageIsADirectoryError,
    StorageTimeoutError,
    StorageConnectionError,
)


class IntegrityError(NpstreamError, OSError):
    """A dataset's bytes differ from those that its index recorded."""


DAMAGED = ": the file was changed or damaged; write it again, or rebuild its side-car"
"""The end of an `IntegrityError`'s message if the dataset was not replaced."""


class CostError(NpstreamError, RuntimeError):
    """An implicit read would download more than ``implicit_read_limit``.

    Implicit reads are those without an explicit call, such as a comparison or ``np.asarray``.
    """


class PartitionError(NpstreamError, RuntimeError):
    """A partition of a Dask or Spark collection cannot be written.

    Parameters
    ----------
    partition : int
        The number of the partition, counted from 0.
    reason : str
        The end of the message: what is wrong, and what to do.

    Examples
    --------
    >>> str(PartitionError(3, "ValueError: sample 7 has no column 'label'"))
    "partition 3: ValueError: sample 7 has no column 'label'"
    """

    def __init__(self, partition: int, reason: str) -> None:
        super().__init__(f"partition {partition}: {reason}")
        self.partition = partition
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.partition, self.reason)


class MissingDependencyError(NpstreamError, ImportError):
    """An optional package that an operation needs is not installed.

    Parameters
    ----------
    purpose : str
        The operation that needs the package.
    package : str
        The package's name on PyPI.
    extra : str, default: ""
        The extra of npstream that installs the package.
    otherwise : str, default: ""
        An alternative to installing the package, as the message's last words.
    """

    def __init__(self, purpose: str, package: str, extra: str = "", otherwise: str = "") -> None:
        requirement = f"'npstream[{extra}]'" if extra else package
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"python -m pip install {requirement}" + (f", or {otherwise}" if otherwise else "")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_message, (type(self), self.args)


class ColumnError(NpstreamError, KeyError):
    """A dataset has no column of this name.

    Parameters
    ----------
    name : object
        The requested name.
    columns : iterable of str
        The names of the existing columns. The message suggests the most similar one, or lists all.
    where : str, default: ""
        The beginning of the message, including a separator, such as "/data/train: ".
    """

    def __init__(self, name: object, columns: Iterable[str], where: str = "") -> None:
        import difflib

        existing = list(columns)
        matches = difflib.get_close_matches(str(name), existing, n=1)
        hint = f"columns: {', '.join(existing) or 'none'}"
        if matches:
            hint = f"did you mean {matches[0]!r}?"
        super().__init__(f"{where}no column {name!r}; {hint}")

    @classmethod
    def saying(cls, message: str) -> ColumnError:
        """Return an error with its own message, such as for a column that only some shards have.

        Parameters
        ----------
        message : str
            The whole message.

        Returns
        -------
        ColumnError

        Examples
        --------
        >>> str(ColumnError.saying("only shard 3 has column 'x'"))
        "only shard 3 has column 'x'"
        """
        return cls.__new__(cls, message)

    def __str__(self) -> str:
        # KeyError would show the message's repr, in quotes.
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_message, (type(self), self.args)


_repr = reprlib.Repr()
_repr.maxlevel = 4
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def short_repr(value: object) -> str:
    """Return a short ``repr`` of untrusted data, which may be large or deeply nested.

    Examples
    --------
    >>> short_repr([[[[[[1]]]]]]), len(short_repr("x" * 1_000_000))
    ('[[[[[...]]]]]', 80)
    """
    return _repr.repr(value)


def read_only_error(target: str) -> TypeError:
    """Return the error for an assignment to a part of a dataset, such as "ds[0]"."""
    return TypeError(
        f"{target} = ... is refused, as datasets are read-only: use ds.with_transform to change "
        "samples as they are read, or change the result of load() and store it with npstream.write"
    )


def refuse_assignment(_owner: Any, index: Any, _value: Any) -> NoReturn:
    """Raise TypeError for ``ds[index] = value``; the ``__setitem__`` of a dataset."""
    raise read_only_error(f"ds[{short_repr(index)}]")


def refuse_deletion(owner: Any, index: Any) -> NoReturn:
    """Raise TypeError for ``ds[index]`` in a ``del`` statement; the ``__delitem__`` of views."""
    raise TypeError(
        f"del {type(owner).__name__.lower()}[{short_repr(index)}] is refused, as datasets are "
        "read-only: select what to keep, by rows, a mask, names of columns or ds.filter, and store "
        "it with npstream.write"
    )


def stop_iteration_error(name: str) -> RuntimeError:
    """Return the error for a user's function of this name that raised StopIteration.

    StopIteration itself would end the calling loop silently, as if there were no more data.
    """
    return RuntimeError(
        f"{name} raised StopIteration, which would end the loop silently: catch it there, or give "
        "next() a default"
    )


def _with_message(kind: type[BaseException], args: tuple[str]) -> BaseException:
    """Create an exception from its message without ``__init__``, for unpickling."""
    return kind.__new__(kind, *args)


_VARIABLE = "NPSTREAM_TRACEBACK"
"""The environment variable that keeps all frames of tracebacks if its value is "full"."""

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep

_MAX_CAUSES = 16
"""Maximum number of causes that `shorten` visits, because causes can form a cycle."""


def shorten(error: BaseException) -> None:
    """Remove this package's inner frames from the tracebacks of an exception and its causes.

    Of consecutive frames of this package, the first and the last remain. At the start of a cause's
    traceback, only the last remains. Frames of other code, such as a user's transform, all remain.
    A cause is removed if only this package raised it, and the exception that it caused repeats its
    message. Call this function in an ``except`` clause that then raises.

    Examples
    --------
    >>> import traceback
    >>> from npstream.indexing.selection import Selection
    >>> try:
    ...     Selection.all(3).select(9)
    ... except IndexError as error:
    ...     shorten(error)  # removes the frame of `Selection._sample`
    ...     [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    ['<module>', 'select', '_raise_index_error']
    """
    if os.environ.get(_VARIABLE) == "full":
        return
    _cut_frames(error.__traceback__)
    for _ in range(_MAX_CAUSES):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            return
        while is_own_frame(cause.__traceback__) and is_own_frame(_next(cause.__traceback__)):
            cause.__traceback__ = _next(cause.__traceback__)
        _cut_frames(cause.__traceback__)
        if _is_repeated(cause, error):
            error.__cause__, error.__suppress_context__ = None, True
            return
        error = cause


def _is_repeated(cause: BaseException, error: BaseException) -> bool:
    """Return True if only this package raised a cause, and `error` repeats the cause's message."""
    frame = cause.__traceback__
    return is_own_frame(frame) and _next(frame) is None and str(cause) in str(error)


def _cut_frames(first: TracebackType | None) -> None:
    """Link the first of consecutive frames of this package to the last of them."""
    while first is not None:
        if is_own_frame(first):
            last = first
            while (frame := last.tb_next) is not None and is_own_frame(frame):
                last = frame
            if last is not first:
                first.tb_next = last
            first = last
        first = first.tb_next


def is_own_frame(frame: TracebackType | None) -> bool:
    """Return True for a frame of a function of this package."""
    return frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _next(frame: TracebackType | None) -> TracebackType | None:
    return None if frame is None else frame.tb_next


class _ShortTraceback:
    """A context manager that shortens the traceback of an exception that leaves its block."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            shorten(error)


short_traceback = _ShortTraceback()
"""The context manager for public functions. It is too slow for calls of less than a microsecond."""
