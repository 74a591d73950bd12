"""The exceptions that npstream raises.

Each subclasses the builtin that a user would catch, so ``except ValueError`` and
``except OSError`` keep working. A message says the value, the rule it broke, the place,
and the mend. Where an exception leaves a public function its traceback is cut to the first and the
last line of the package: in place, so that all that show or log it agree.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from types import TracebackType
from typing import Any

__all__ = [
    "ColumnError",
    "CostError",
    "FormatError",
    "IntegrityError",
    "MissingDependencyError",
    "NpstreamError",
    "StorageError",
]


class NpstreamError(Exception):
    """Base class of every exception that npstream defines."""


class FormatError(NpstreamError, ValueError):
    """A dataset's bytes do not follow its format: a damaged or hostile index, shard or sample."""


class StorageError(NpstreamError, OSError):
    """A dataset's bytes could not be read or written.

    An error with an ``errno`` is also the builtin that ``OSError`` makes of it, so that
    ``except FileNotFoundError`` catches an absent dataset, local or remote.

    Examples
    --------
    >>> import errno
    >>> error = StorageError(errno.ENOENT, "there is no such file", "s3://bucket/index.json")
    >>> isinstance(error, FileNotFoundError), isinstance(error, StorageError)
    (True, True)
    """

    def __new__(cls, *args: Any) -> StorageError:
        """Choose the subclass that the first of several arguments, an ``errno``, asks for."""
        kind: type[StorageError] = cls
        if cls is StorageError and len(args) > 1:
            builtin = type(OSError(*args[:2]))
            kind = next((kind for kind in _KINDS if issubclass(builtin, kind.__bases__[1])), cls)
        return super().__new__(kind, *args)


class StorageNotFoundError(StorageError, FileNotFoundError):
    """There is no such file or directory."""


class StorageExistsError(StorageError, FileExistsError):
    """There is such a file already."""


class StoragePermissionError(StorageError, PermissionError):
    """The store or the operating system refuses access."""


class StorageNotADirectoryError(StorageError, NotADirectoryError):
    """A part of the path is not a directory."""


class StorageIsADirectoryError(StorageError, IsADirectoryError):
    """The path is a directory."""


class StorageTimeoutError(StorageError, TimeoutError):
    """No answer came within the time allowed."""


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
    """A dataset's bytes are not the ones that its index recorded."""


DAMAGED = ": the file was changed or damaged; write it again, or build its side-car anew"
"""What an `IntegrityError` says of a dataset that was not replaced."""


class CostError(NpstreamError, RuntimeError):
    """A read that nobody asked for by name would fetch more than was allowed."""


class MissingDependencyError(NpstreamError, ImportError):
    """A package that npstream needs for this, and does not require, is not installed.

    Parameters
    ----------
    purpose : str
        What needs it.
    package : str
        Its name on PyPI.
    extra : str, default: ""
        The extra of npstream that installs it.
    otherwise : str, default: ""
        What helps without it.
    """

    def __init__(self, purpose: str, package: str, extra: str = "", otherwise: str = "") -> None:
        wanted = f"'npstream[{extra}]'" if extra else package
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"python -m pip install {wanted}" + (f", or {otherwise}" if otherwise else "")
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_message, (type(self), self.args)


class ColumnError(NpstreamError, KeyError):
    """A dataset has no column of that name.

    Parameters
    ----------
    name : object
        What was asked for.
    columns : iterable of str
        The columns that there are, of which the message names the nearest, or all.
    where : str, default: ""
        What the message begins with, such as the place of the dataset.
    """

    def __init__(self, name: object, columns: Iterable[str], where: str = "") -> None:
        import difflib

        known = list(columns)
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(known) or 'none'}"
        super().__init__(f"{where}no column {name!r}; {hint}")

    @classmethod
    def saying(cls, message: str) -> ColumnError:
        """Return one that says why a column, which others have, is not there.

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
        # KeyError prints the repr of its argument, quotes and all.
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_message, (type(self), self.args)


_repr = reprlib.Repr()
_repr.maxlevel = 4
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def shown(value: object) -> str:
    """Return the ``repr`` of untrusted data, of which a little is shown, however large or deep.

    Examples
    --------
    >>> shown([[[[[[1]]]]]]), len(shown("x" * 1_000_000))
    ('[[[[[...]]]]]', 80)
    """
    return _repr.repr(value)


def read_only(place: str) -> TypeError:
    """Return what is raised where a user assigns to a place of a dataset, such as "ds[0]"."""
    return TypeError(
        f"{place} = ... is refused, as datasets are read-only: change samples as they are read, "
        "with ds.with_transform, or what load() returned, and store that with npstream.write"
    )


def stopped(what: str) -> RuntimeError:
    """Return what is raised where a user's function raised StopIteration.

    That would end the loop that called it, as if there were no more data.
    """
    return RuntimeError(
        f"{what} raised StopIteration, by which a loop ends: catch it there, or give next() a "
        "default"
    )


def _with_message(kind: type[BaseException], args: tuple[str]) -> BaseException:
    """Make an exception anew from its message, as another process receives it."""
    return kind.__new__(kind, *args)


_VARIABLE = "NPSTREAM_TRACEBACK"
"""The environment variable that keeps tracebacks whole if it is "full"."""

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep

_MOST_CAUSES = 16


def shorten(error: BaseException) -> None:
    """Cut the inner frames of this package out of an exception's traceback, and of its causes'.

    Of frames in a row, the first and the last stay; of a cause's, the last. Frames of others, such
    as a user's transform, stay where they are. Call it in an ``except`` clause that then raises.

    Examples
    --------
    >>> error = ValueError("x")
    >>> shorten(error)
    >>> error.__traceback__ is None
    True
    """
    if os.environ.get(_VARIABLE) == "full":
        return
    _cut(error.__traceback__)
    for _ in range(_MOST_CAUSES):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            return
        while _is_own(cause.__traceback__) and _is_own(_next(cause.__traceback__)):
            cause.__traceback__ = _next(cause.__traceback__)
        _cut(cause.__traceback__)
        error = cause


def _cut(first: TracebackType | None) -> None:
    """Link the first frame of each run of own ones to the last."""
    while first is not None:
        if _is_own(first):
            last = first
            while (after := last.tb_next) is not None and _is_own(after):
                last = after
            if last is not first:
                first.tb_next = last
            first = last
        first = first.tb_next


def _is_own(frame: TracebackType | None) -> bool:
    return frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _next(frame: TracebackType | None) -> TracebackType | None:
    return None if frame is None else frame.tb_next


class _Door:
    """Shortens the traceback of what leaves its block, which must be a public function's."""

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


short_traceback = _Door()
"""The context in which public functions run whose calls take longer than a microsecond."""
