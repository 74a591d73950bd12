"""Where a dataset's files live: local directories, whose files are mapped in place, or a URL."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits, map_file, open_file
from npstream._core.redaction import redacted_url
from npstream._core.typing import Body, Bytes, Span
from npstream.errors import StorageError
from npstream.storage.urls import Location, local_path, location, scheme_of

if TYPE_CHECKING:
    from npstream.storage.remote import RemoteStore

__all__ = ["LocalStore", "Store", "open_store", "options_for"]

_COPIED = 1 << 20

_ATTEMPTS = 5
"""How often a directory may be removed while a file is being created in it."""

_SYNCS = 32
"""Files that are brought to the disk at once."""

_FEW_FILES = 4
"""Files that are brought there one after the other, as threads would take longer."""

Store: TypeAlias = Union["LocalStore", "RemoteStore"]


def options_for(
    url: Location, storage_options: Mapping[str, Any] | None, other: Location
) -> Mapping[str, Any] | None:
    """Return the options of one URL if they are meant for another, too; else None.

    That is so where both have the same driver, and on the web the same host, as nobody else is to
    get what may be a password.
    """
    from npstream.storage.drivers import same_service

    here, there = location(url), location(other)
    is_meant = scheme_of(there) not in ("", "file") and same_service(here, there)
    return storage_options if is_meant else None


def open_store(
    url: Location,
    storage_options: Mapping[str, Any] | None = None,
    *,
    timeout: float = 60.0,
    retries: int = 4,
    argument: str = "path",
) -> Store:
    """Return the store that a path or URL names; nothing is read.

    Parameters
    ----------
    url : str or os.PathLike
        A path, a ``file://`` URL, or a URL of a scheme that fsspec knows.
    storage_options : mapping, optional
        Options of the driver of a remote store.
    timeout : float
        Seconds after which a request to a remote store fails, with all its attempts.
    retries : int
        How often such a request is tried again.
    argument : str
        The name of the argument that the path or URL was given as, for messages.

    Raises
    ------
    ValueError
        If nobody knows the scheme.

    Examples
    --------
    >>> open_store("some/directory").is_local
    True
    >>> open_store("memory://shelf").where("a")
    'memory://shelf/a'
    """
    text = location(url, argument)
    scheme = scheme_of(text)
    if scheme in ("", "file"):
        if storage_options:
            shown = redacted_url(text)
            raise ValueError(f"storage_options are for remote stores; {shown!r} is local")
        return LocalStore(local_path(text, argument))
    from npstream.storage.remote import RemoteStore, known_schemes

    if scheme not in (known := known_schemes()):
        import difflib

        near = difflib.get_close_matches(scheme, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{redacted_url(text)!r}: unknown scheme {scheme!r}; {hint}expected a local path, or a "
            f"URL of one of {', '.join(known)}"
        )
    return RemoteStore(text, storage_options, timeout, retries)


class LocalStore:
    """The files below a directory."""

    is_local = True
    can_list = True

    def __init__(self, root: str) -> None:
        self.root = self.identity = root

    def where(self, name: str) -> str:
        """Return the place of a file, for messages and for reading."""
        return os.path.join(self.root, *name.split("/"))

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of that name."""
        return os.path.isfile(self.where(name))

    def exist(self, names: Iterable[str]) -> list[bool]:
        """Tell of each name whether there is such a file."""
        return [self.exists(name) for name in names]

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        try:
            return os.stat(self.where(name)).st_size
        except OSError as error:
            raise self._failed(name, error) from error

    def version(self, name: str) -> str:
        """Return what changes whenever the file does."""
        try:
            found = os.stat(self.where(name))
        except OSError as error:
            raise self._failed(name, error) from error
        return f"{found.st_size}:{found.st_mtime_ns}"

    def read(self, name: str, nbytes: int | None = None) -> bytes:
        """Return a whole file, which must have the bytes that are given."""
        try:
            with open(open_file(self.where(name)), "rb") as file:
                found = os.fstat(file.fileno()).st_size
                if nbytes is not None and found != nbytes:
                    raise StorageError(
                        f"{self.where(name)}: {quantity(found, 'byte')}; its index says {nbytes:,}"
                    )
                ensure_fits(found, f"reading {self.where(name)}")
                return file.read()
        except StorageError:
            raise
        except OSError as error:
            raise self._failed(name, error) from error

    def sizes(self, names: Iterable[str]) -> list[int | StorageError | None]:
        """Return the sizes of files in bytes, None for missing ones."""
        return [self.size(name) if self.exists(name) else None for name in names]

    def map(self, name: str, nbytes: int | None = None) -> Bytes:
        """Return a whole file as a read-only array over its pages; `nbytes` is not used."""
        try:
            return map_file(self.where(name))
        except OSError as error:
            raise self._failed(name, error) from error

    def forget(self, spans: Iterable[Span]) -> None:
        """Keep no copies of parts of files, whose bytes are wrong: there are none."""

    def stream(self, spans: Iterable[Span]) -> Iterator[tuple[int, bytes]]:
        """Yield parts of files, each with its number; none may be cut short."""
        name, descriptor = "", -1
        try:
            for number, (wanted, begin, nbytes) in enumerate(spans):
                if wanted != name:
                    # One is open at a time: neighbors are mostly of one file.
                    _close(descriptor)
                    name, descriptor = wanted, -1
                    descriptor = open_file(self.where(name))
                part = os.pread(descriptor, nbytes, begin)
                if len(part) != nbytes:
                    raise StorageError(
                        f"{self.where(name)}: {len(part):,} of {quantity(nbytes, 'byte')} at "
                        f"{begin}; the file is shorter than its index says"
                    )
                yield number, part
        except StorageError:
            raise
        except OSError as error:
            raise self._failed(name, error) from error
        finally:
            _close(descriptor)

    def ranges(self, spans: Iterable[Span]) -> list[bytes]:
        """Return parts of files, each given as name, first byte and length, in that order."""
        return [part for _, part in self.stream(spans)]

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the names that begin so, and the sizes of the files."""
        top = os.path.join(self.root, *prefix.rpartition("/")[0].split("/"))
        for folder, folders, files in os.walk(top):
            folders.sort()
            for file in sorted(files):
                path = os.path.join(folder, file)
                name = os.path.relpath(path, self.root).replace(os.sep, "/")
                if name.startswith(prefix) and os.path.isfile(path):
                    yield name, self.size(name)

    def entries(self) -> list[str]:
        """Return the names in this directory, those of directories with a slash behind."""
        with self._reporting("", "list"), os.scandir(self.root) as found:
            return sorted(entry.name + "/" * entry.is_dir() for entry in found)

    def put(self, name: str, data: bytes | str | os.PathLike[str]) -> None:
        """Store a file, given as bytes or as the path of another; it appears whole."""
        with (
            self.draft(name, self._content(name, data), os.urandom(8).hex(), []) as draft,
            self._reporting(name, "store"),
        ):
            draft.sync()
            draft.replace()

    def put_all(self, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store files: they have their names once all are whole and on the disk."""
        token = os.urandom(8).hex()
        with ExitStack() as stack:
            drafts = [
                (name, stack.enter_context(self.draft(name, pieces, token, [])))
                for name, pieces in files
            ]
            self.sync_all(drafts, "store")
            for name, draft in drafts:
                with self._reporting(name, "store"):
                    draft.replace()

    def sync_all(self, drafts: Sequence[tuple[str, Draft]], what: str) -> None:
        """Bring files to the disk, many at once: file systems commit these together.

        Parameters
        ----------
        drafts : sequence of (str, Draft)
            The names of the files, and where they are now.
        what : str
            What is done with them, for messages.
        """
        left, failed = deque(drafts), list[StorageError]()

        def sync() -> None:
            while not failed:
                try:
                    name, draft = left.popleft()
                except IndexError:
                    return
                try:
                    with self._reporting(name, what):
                        draft.sync()
                except StorageError as error:
                    failed.append(error)

        threads: list[threading.Thread] = []
        try:
            if len(drafts) > _FEW_FILES:
                # None can be started where their number is limited, or the interpreter ends.
                with suppress(RuntimeError):
                    for _ in range(min(_SYNCS, len(drafts)) - 1):
                        thread = threading.Thread(target=sync, name="npstream-sync")
                        thread.start()
                        threads.append(thread)
            sync()
        finally:
            left.clear()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]

    def _content(self, name: str, data: bytes | str | os.PathLike[str]) -> Iterator[Body]:
        """Yield bytes, or the content of a file that is to be stored."""
        if isinstance(data, bytes | bytearray | memoryview):
            yield data
            return
        with self._reporting(name, "store"):
            descriptor = open_file(os.fspath(data))
        with open(descriptor, "rb") as source:
            while piece := source.read(_COPIED):
                yield piece

    @contextmanager
    def draft(
        self, name: str, pieces: Iterable[Body], token: str, folders: list[str]
    ) -> Iterator[Draft]:
        """Write a file under a hidden name; remove it in the end.

        It is on the disk once its `Draft.sync` has returned.

        Parameters
        ----------
        name : str
            The file whose directory it is written to, and whose name it may be given.
        pieces : iterable of bytes-like
            The content. Each piece is used before the next is asked for.
        token : str
            What the hidden name has in it.
        folders : list of str
            Directories that are made are added to it.
        """
        draft = Draft(self.where(name), token)
        try:
            with self._reporting(name, "store"):
                file = draft.open(folders)
            try:
                for piece in pieces:
                    with self._reporting(name, "store"):
                        file.write(piece)
            finally:
                with self._reporting(name, "store"):
                    file.close()  # writes what is buffered, so that it, too, can meet a full disk
            yield draft
        finally:
            with suppress(OSError):
                os.unlink(draft.path)

    def make_folders(self, folders: list[str]) -> None:
        """Make this directory and those above it; add what was made to a list, from the top."""
        with self._reporting("", "make the directory of"):
            _make_folders(self.root, folders)

    def remove_folder(self, folder: str) -> None:
        """Remove a directory that was made, unless something is in it."""
        with suppress(OSError):
            os.rmdir(folder)

    def sync(self, folder: str) -> None:
        """Bring to the disk which files are in a directory."""
        with self._reporting("", "store"):
            _sync(folder)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.where(name))
        except OSError as error:
            raise self._failed(name, error, "remove") from error

    @contextmanager
    def _reporting(self, name: str, what: str) -> Iterator[None]:
        """Raise what the operating system says as a StorageError that names the file."""
        try:
            yield
        except OSError as error:
            raise self._failed(name, error, what) from error

    def _failed(self, name: str, error: OSError, what: str = "read") -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(error.errno, f"{reason}: cannot {what} this file", self.where(name))


class Draft:
    """A file that is written under a hidden name, in the directory where it will have another.

    Attributes
    ----------
    path : str
        Where it is now.
    """

    def __init__(self, target: str, token: str) -> None:
        folder, base = os.path.split(target)
        self._target = target
        self.path = os.path.join(folder, f".{base}.{token}.tmp")

    def open(self, folders: list[str]) -> BinaryIO:
        """Create the file, and its directory if need be."""
        folder = os.path.dirname(self.path)
        for _ in range(_ATTEMPTS):
            _make_folders(folder, folders)
            # A write that gives up removes the directory that it made.
            with suppress(FileNotFoundError):
                return open(self.path, "xb")
        raise FileNotFoundError(errno.ENOENT, "it is removed again and again", folder)

    def sync(self) -> None:
        """Bring the file's content to the disk."""
        _sync(self.path)

    def replace(self) -> None:
        """Give the file its name, which may have been another's."""
        os.replace(self.path, self._target)

    def link(self) -> None:
        """Give the file its name; raise FileExistsError if it is taken."""
        try:
            os.link(self.path, self._target)
        except FileExistsError:
            # A server of files may repeat a request whose answer was lost.
            if os.stat(self.path).st_nlink == 1:
                raise
        except OSError:
            # No hard links on this file system: the name is reserved, and then used.
            os.close(os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                self.replace()
            except BaseException:
                os.unlink(self._target)
                raise


def identity(path: str) -> tuple[int, ...]:
    """Return what tells a file from others, and stays the same when it gets another name."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sync(path: str) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(folder: str, made: list[str]) -> None:
    missing: list[str] = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        made.append(folder)
        try:
            os.mkdir(folder)
        except OSError as error:
            made.pop()
            if not isinstance(error, FileExistsError) or not os.path.isdir(folder):
                raise
            # Another has made it meanwhile.


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
