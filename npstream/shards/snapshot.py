"""Provide `Snapshot`, the index at the time of opening, and errors that report its replacement."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from npstream.errors import DAMAGED, FormatError, IntegrityError, NpstreamError, StorageError

if TYPE_CHECKING:
    from npstream.storage.local import Store

__all__ = ["MEMORY_ADVICE", "Snapshot", "explain_replacement", "identity_of", "is_in_memory"]

P = ParamSpec("P")
T = TypeVar("T")

_REPLACEMENT_ERRNOS = {None, errno.ENOENT, errno.EIO, errno.ERANGE, errno.EINVAL}
"""Error numbers of a file that is absent or has another size than expected.

None belongs to errors without a number, such as those of a file of another size.
"""

MEMORY_ADVICE = (
    "write the dataset to a directory, or start workers by fork "
    "(multiprocessing_context='fork' of a DataLoader)"
)
"""What to do if another process needs ``memory://`` data."""


class Snapshot(NamedTuple):
    """The index of a dataset as it was when the dataset was opened.

    Attributes
    ----------
    name : str
        The file name.
    version : str
        The version of the file.
    identity : str
        The result of `identity_of`. Empty if the version alone shows whether the index was
        replaced, or if the text was not read.
    process : int
        The id of the process that read the file.
    """

    name: str
    version: str
    identity: str
    process: int


def identity_of(text: bytes, version: str) -> str:
    """Return a hash of the text and the version of an index.

    The hash includes the version: if an index has no hashes, its text may be the same for other
    shards.
    """
    from npstream.formats.hashes import digest

    return digest("xxh3_128", text + version.encode())


def explain_replacement(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], T]:
    """Decorate a method of `LocalShards`: its errors say if the dataset was replaced.

    After an error, the store's index is compared with the snapshot, once for each error and within
    the deadline of the read.
    """

    @wraps(method)
    def call(self: Any, /, *args: P.args, **options: P.kwargs) -> T:
        try:
            return method(self, *args, **options)
        except (IntegrityError, FormatError, StorageError) as error:
            explained = _explain_error(error, self.store, self.snapshot)
            try:
                if explained is error:
                    raise
                raise explained from None
            finally:
                del explained  # breaks the reference cycle of error, traceback and this frame

    return call


def is_in_memory(store: Store) -> bool:
    """Return True for the store of a ``memory://`` URL, whose data only one process has."""
    return store.root.lower().startswith("memory://")


def _explain_error(error: NpstreamError, store: Store, snapshot: Snapshot | None) -> NpstreamError:
    """Return the error, or an error that says how the index changed since the snapshot."""
    if snapshot is None or getattr(error, "is_explained", False):
        return error
    is_suspect = not isinstance(error, StorageError) or error.errno in _REPLACEMENT_ERRNOS
    if is_suspect and (change := _find_replacement(store, snapshot)):
        error = _with_reason(error, _reason(change, store, snapshot))
    error.is_explained = True  # type: ignore[attr-defined]
    return error


def _find_replacement(store: Store, snapshot: Snapshot) -> str:
    """Return "replaced" or "removed" if the index changed since the snapshot, otherwise ""."""
    from npstream.storage.deadlines import shared_deadline

    name, version, identity, _ = snapshot
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


def _reason(change: str, store: Store, snapshot: Snapshot) -> str:
    """Return the part of a message that gives the reason of a failed read, and the fix."""
    if change == "removed" and is_in_memory(store) and snapshot.process != os.getpid():
        return (
            "the dataset was opened in another process, and memory:// data exist only in the "
            f"process that wrote them: {MEMORY_ADVICE}"
        )
    advice = "open it anew" if change == "replaced" else "its index is not there any more"
    return f"the dataset was {change} since it was opened: {advice}"


def _with_reason(error: NpstreamError, reason: str) -> NpstreamError:
    """Return a copy of the error with a reason in place of the advice `DAMAGED`."""
    if isinstance(error, StorageError) and error.errno is not None:
        return StorageError(error.errno, f"{error.strerror}; {reason}", error.filename)
    return type(error)(f"{str(error).partition(DAMAGED)[0]}; {reason}")
