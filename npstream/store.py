"""Where a dataset's files live. Local directories: files are mapped in place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from npstream._typing import Bytes
from npstream.errors import StorageError
from npstream.memory import ensure_fits, map_file, open_file

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def local_path(url: str | os.PathLike[str]) -> str:
    """Return the local path that a URL names.

    Parameters
    ----------
    url : str or os.PathLike
        A path, or a ``file://`` URL.

    Raises
    ------
    ValueError
        If it names anything but this machine's files.
    """
    text = os.fspath(url)
    if not isinstance(text, str):
        raise TypeError(f"a path must be str or os.PathLike, not {type(url).__name__}: {url!r}")
    match = _SCHEME.match(text)
    if match is None:
        return os.path.abspath(os.path.expanduser(text))
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(text)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ValueError(
            f"{text!r} is not on this machine: this release reads and writes local directories "
            "and file:// URLs"
        )
    return os.path.abspath(unquote(parts.path))


class LocalStore:
    """The files below a directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def where(self, name: str) -> str:
        """Return the place of a file, for messages and for reading."""
        return os.path.join(self.root, *name.split("/"))

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of that name."""
        return os.path.isfile(self.where(name))

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        try:
            return os.stat(self.where(name)).st_size
        except OSError as error:
            raise self._failed(name, error) from error

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        try:
            with open(open_file(self.where(name)), "rb") as file:
                ensure_fits(os.fstat(file.fileno()).st_size, f"reading {self.where(name)}")
                return file.read()
        except OSError as error:
            raise self._failed(name, error) from error

    def map(self, name: str) -> Bytes:
        """Return a whole file as a read-only array over its pages."""
        try:
            return map_file(self.where(name))
        except OSError as error:
            raise self._failed(name, error) from error

    def ranges(self, name: str, spans: Iterable[tuple[int, int]]) -> list[bytes]:
        """Return parts of a file, given as first byte and length; none may be cut short."""
        parts = []
        try:
            descriptor = open_file(self.where(name))
            try:
                for begin, nbytes in spans:
                    part = os.pread(descriptor, nbytes, begin)
                    if len(part) != nbytes:
                        raise StorageError(
                            f"{self.where(name)}: {len(part)} of {nbytes} bytes at {begin}; "
                            "the file is shorter than its index says"
                        )
                    parts.append(part)
            finally:
                os.close(descriptor)
        except StorageError:
            raise
        except OSError as error:
            raise self._failed(name, error) from error
        return parts

    def _failed(self, name: str, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(error.errno, f"{reason}: cannot read this file", self.where(name))
