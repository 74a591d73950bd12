"""Publishing a dataset: every file appears whole, the index last."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any

from npstream._typing import Body
from npstream.errors import StorageError
from npstream.store import LocalStore, open_store

if TYPE_CHECKING:
    from concurrent.futures import Future

    from npstream.remote import RemoteStore

__all__ = ["INDEX", "NewDirectory", "NewPrefix", "new_place"]

INDEX = "index.json"

_PARTS = (INDEX, "index.columns", "index.msgpack", "shard.")
"""What the names of a dataset's files begin with."""

_UPLOADS = 4


def new_place(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> NewDirectory | NewPrefix:
    """Return the place that a path or URL names, for a dataset to be written there."""
    store = open_store(url, storage_options)
    return NewDirectory(store.root) if isinstance(store, LocalStore) else NewPrefix(store)


class NewDirectory:
    """The directory of a dataset that is being written, and the files in it that one writer made.

    Parameters
    ----------
    path : str
        A directory, which is made if need be.

    Raises
    ------
    FileExistsError
        If it holds a dataset, or shards that some writer left behind.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._made: list[str] = []
        # Writers that run at once have temporary files of their own.
        self._token = os.urandom(8).hex()
        os.makedirs(path, exist_ok=True)
        with os.scandir(path) as files:
            for file in files:
                if file.name.startswith(_PARTS):
                    raise self._taken(file.path)

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a file: it has its name once it is whole and on the disk, and never another's."""
        final = os.path.join(self.path, name)
        folder, base = os.path.split(final)
        temporary = os.path.join(folder, f".{base}.{self._token}.tmp")
        try:
            if not os.path.isdir(folder):
                with suppress(FileExistsError):
                    os.mkdir(folder)
                    self._made.append(folder)
            with open(temporary, "xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            try:
                _rename_exclusively(temporary, final)
            except FileExistsError as error:
                raise self._taken(final) from error
            self._made.append(final)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def publish(self, index: bytes) -> None:
        """Store the index, after everything that it names."""
        self._sync()
        self.put(INDEX, [index])
        self._sync()

    def remove(self) -> None:
        """Remove the files that were made, the index first."""
        while self._made:
            made = self._made.pop()
            if os.path.isdir(made):
                with suppress(OSError):  # others may have put files there
                    os.rmdir(made)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(made)

    def _sync(self) -> None:
        for folder in (self.path, *filter(os.path.isdir, self._made)):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _taken(self, file: str) -> FileExistsError:
        return _taken(file, "directory")


class NewPrefix:
    """The place of a dataset in a remote store, and the files there that one writer made.

    Files are uploaded in the background, a few at once; a failure shows at the next file, or at
    the end.

    Parameters
    ----------
    store : RemoteStore

    Raises
    ------
    FileExistsError
        If there is a dataset, or shards that some writer left behind.
    """

    def __init__(self, store: RemoteStore) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.path = store.root
        self._store = store
        self._made: list[str] = []
        self._uploads: deque[Future[None]] = deque()
        for name, _ in store.names():
            if name.startswith(_PARTS):
                raise _taken(store.where(name), "URL")
        self._threads = ThreadPoolExecutor(_UPLOADS, "npstream-upload")

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a file, sooner or later."""
        whole = BytesIO()
        for piece in pieces:
            whole.write(piece)  # at once, as the next piece may overwrite it
        data = whole.getvalue()
        self._finish(_UPLOADS - 1)
        self._made.append(name)
        self._uploads.append(self._threads.submit(self._store.put, name, data))

    def publish(self, index: bytes) -> None:
        """Store the index, after everything that it names."""
        self._finish(0)
        if self._store.exists(INDEX):
            raise _taken(self._store.where(INDEX), "URL")
        self._made.append(INDEX)
        self._store.put(INDEX, index)
        self._threads.shutdown()

    def remove(self) -> None:
        """Remove the files that were made, the index first, as far as the store lets us."""
        # What is under way would appear after it was removed.
        self._threads.shutdown(cancel_futures=True)
        while self._made:
            with suppress(StorageError):
                self._store.remove(self._made.pop())

    def _finish(self, left: int) -> None:
        """Wait until so many uploads are under way, and raise what one has raised."""
        while len(self._uploads) > left:
            self._uploads.popleft().result()


def _taken(file: str, place: str) -> FileExistsError:
    what = f"a dataset, or a part of one, is here: remove it, or choose another {place}"
    return FileExistsError(errno.EEXIST, what, file)


def _rename_exclusively(source: str, target: str) -> None:
    """Rename a file, unless the new name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this file system: all but exclusive.
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.rename(source, target)
