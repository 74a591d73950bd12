"""The index of a dataset as it was when it was opened, and errors that come of its replacement."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from npstream.errors import DAMAGED, FormatError, IntegrityError, NpstreamError, StorageError

if TYPE_CHECKING:
    from npstream.storage.local import Store

__all__ = ["Snapshot", "explain_replacement", "identity_of"]

P = ParamSpec("P")
T = TypeVar("T")

_REPLACEMENT_ERRNOS = {None, errno.ENOENT, errno.EIO, errno.ERANGE, errno.EINVAL}
"""Of storage errors, those that a file has that is absent or has another size than expected."""


class Snapshot(NamedTuple):
    """The index of a dataset as it was when it was opened.

    Attributes
    ----------
    name : str
        The file.
    version : str
        Its version.
    identity : str
        A hash of its text and its version, as `identity_of` makes it. Empty if the version of the
        file is enough, or the text has not been read.
    """

    name: str
    version: str
    identity: str = ""


def identity_of(text: bytes, version: str) -> str:
    """Return a hash of an index and its version.

    The version counts, as an index without hashes may be the same for other shards.
    """
    from npstream.formats.hashes import digest

    return digest("xxh3_128", text + version.encode())


def explain_replacement(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], T]:
    """Return a method of `LocalShards` whose errors say if the dataset was replaced.

    Then another index is in the store. It is looked for once for each error, within the time that
    the read has.
    """

    @wraps(method)
    def call(self: Any, /, *args: P.args, **options: P.kwargs) -> T:
        try:
            return method(self, *args, **options)
        except (IntegrityError, FormatError, StorageError) as error:
            found = _explain_error(error, self.store, self.snapshot)
            try:
                if found is error:
                    raise
                raise found from None
            finally:
                del found  # else it would hold this frame, which holds it, and what was read

    return call


def _explain_error(error: NpstreamError, store: Store, snapshot: Snapshot | None) -> NpstreamError:
    """Return an error, or one that says that the dataset was replaced, if it was."""
    if snapshot is None or getattr(error, "is_explained", False):
        return error
    is_sign = not isinstance(error, StorageError) or error.errno in _REPLACEMENT_ERRNOS
    if is_sign and (happened := _find_replacement(store, snapshot)):
        error = _with_replacement(error, happened)
    error.is_explained = True  # type: ignore[attr-defined]
    return error


def _find_replacement(store: Store, snapshot: Snapshot) -> str:
    """Return what has happened to an index since a snapshot of it; "" if nothing is known of."""
    from npstream.storage.deadlines import shared_deadline

    name, version, identity = snapshot
    try:
        with shared_deadline():
            if store.version(name) != version:
                return "replaced"
            if identity and identity_of(store.read(name), version) != identity:
                return "replaced"
    except StorageError as error:
        if error.errno == errno.ENOENT:
            return "removed"
    return ""


def _with_replacement(error: NpstreamError, happened: str) -> NpstreamError:
    """Return an error with what has happened to the dataset in place of what to do otherwise."""
    mend = "open it anew" if happened == "replaced" else "its index is not there any more"
    why = f"the dataset was {happened} since it was opened: {mend}"
    if isinstance(error, StorageError) and error.errno is not None:
        return StorageError(error.errno, f"{error.strerror}; {why}", error.filename)
    return type(error)(f"{str(error).partition(DAMAGED)[0]}; {why}")
