"""Publishing a dataset on a local disk: every file appears whole, the index last."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress

from npstream._typing import Body

__all__ = ["INDEX", "NewDirectory"]

INDEX = "index.json"


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
                if file.name == INDEX or file.name.startswith("shard."):
                    raise self._taken(file.path)

    def put(self, name: str, pieces: Iterable[Body]) -> None:
        """Store a file: it has its name once it is whole and on the disk, and never another's."""
        final = os.path.join(self.path, name)
        temporary = os.path.join(self.path, f".{name}.{self._token}.tmp")
        try:
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
            with suppress(FileNotFoundError):
                os.unlink(self._made.pop())

    def _sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _taken(self, file: str) -> FileExistsError:
        what = "a dataset, or a part of one, is here: remove it, or choose another directory"
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
