"""Stores of files in local directories, and `open_store`, which also opens URLs."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits, map_file, open_file
from npstream._core.typing import Body, Bytes, Span
from npstream.errors import StorageError
from npstream.storage.deadlines import require_limits
from npstream.storage.urls import Location, local_path, location_str, scheme_of

if TYPE_CHECKING:
    from io import RawIOBase

    from npstream.storage.remote import RemoteStore
    from npstream.storage.uploads import Tag

__all__ = ["LocalStore", "Store", "check_location", "open_store", "options_for", "write_fully"]

_COPY_BYTES = 1 << 20

_ATTEMPTS = 5
"""Attempts to create a file in a directory that other processes may remove."""

_SYNC_THREADS = 32
"""The maximum number of files that are synced to disk concurrently."""

_FULL_DISK_RETRIES = 4
"""How often a write to a full disk is tried again."""

_FULL_DISK_BACKOFF = 0.125
"""The pause before the first retry, in seconds. Each further pause is twice as long."""

_FEW_FILES = 4
"""Up to this many files are synced one after the other: threads would take longer."""

_SCHEMES = ("s3", "gs", "az", "oci", "sftp", "https", "hf", "memory", "file")
"""The schemes that a message names: one for each driver that docs/stores.md describes."""

Store: TypeAlias = Union["LocalStore", "RemoteStore"]


def options_for(
    url: Location, storage_options: Mapping[str, Any] | None, other: Location
) -> Mapping[str, Any] | None:
    """Return the options of `url` if they also apply to `other`; else None.

    They apply if both URLs have the same driver and, for web addresses, the same host. No other
    host may receive the options, which can contain passwords.
    """
    from npstream.storage.drivers import same_service

    text, other_text = location_str(url), location_str(other)
    is_shared = scheme_of(other_text) not in ("", "file") and same_service(text, other_text)
    return storage_options if is_shared else None


def open_store(
    url: Location,
    storage_options: Mapping[str, Any] | None = None,
    *,
    timeout: float = 60.0,
    retries: int = 4,
    hedge: bool = True,
    outage: float = 0.0,
    argument: str = "path",
) -> Store:
    """Return the store of a path or URL, without reading anything.

    Parameters
    ----------
    url : str or os.PathLike
        A path, a ``file://`` URL, or a URL with a scheme that fsspec supports.
    storage_options : mapping, optional
        Options of the driver of a remote store.
    timeout : float
        Seconds after which a request to a remote store fails, including its retries.
    retries : int
        How often such a request is retried.
    hedge : bool
        Whether slow range requests to a remote store are sent again.
    outage : float
        Seconds that requests wait for a remote store that does not answer, in addition to
        `timeout`.
    argument : str
        The argument's name, for messages.

    Raises
    ------
    ValueError
        If the scheme is unknown, or the URL has nothing after its scheme.

    Examples
    --------
    >>> open_store("some/directory").is_local
    True
    >>> open_store("memory://shelf").where("a")
    'memory://shelf/a'
    """
    text = check_location(url, argument)
    require_limits(timeout, retries)
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise TypeError(
            f"storage_options of type {type(storage_options).__name__}: expected a mapping from "
            "the names of options to values"
        )
    if scheme_of(text) in ("", "file"):
        if storage_options:
            from npstream._core.redaction import redact_url

            redacted = redact_url(text)
            raise ValueError(f"storage_options are for remote stores; {redacted!r} is local")
        return LocalStore(local_path(text, argument))
    from npstream.storage.remote import RemoteStore

    return RemoteStore(text, storage_options, timeout, retries, hedge, outage)


def check_location(location: Location, argument: str = "path") -> str:
    """Return a path or URL as a str. Raise if `open_store` would refuse it; make no store.

    >>> check_location("s3://bucket/corpus")
    's3://bucket/corpus'
    """
    text = location_str(location, argument)
    scheme = scheme_of(text)
    if scheme in ("", "file"):
        local_path(text, argument)
        return text
    from npstream.storage.remote import known_schemes

    if scheme not in known_schemes():
        import difflib

        from npstream._core.redaction import redact_url

        matches = difflib.get_close_matches(scheme, _SCHEMES, n=1, cutoff=0.5)
        hint = f"did you mean {matches[0]!r}? " if matches else ""
        raise ValueError(
            f"{redact_url(text)!r}: unknown scheme {scheme!r}; {hint}expected a local path, or a "
            f"URL of one of {', '.join(_SCHEMES)}, or of another scheme of fsspec"
        )
    is_named = scheme == "memory" or text.partition(":")[2].strip("/")
    if scheme in (*_SCHEMES, "http") and not is_named:
        raise ValueError(
            f"{argument}: {text!r} names no bucket or host: give a URL such as {scheme}://name/path"
        )
    return text


class LocalStore:
    """The files below a directory."""

    is_local = True
    can_list = True

    def __init__(self, root: str) -> None:
        self.root = self.identity = root

    def folder(self, name: str) -> LocalStore:
        """Return the store of a directory below this one."""
        return LocalStore(self.where(name))

    def where(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.root, *name.split("/"))

    def exists(self, name: str) -> bool:
        """Return True if the file exists."""
        return os.path.isfile(self.where(name))

    def exist_many(self, names: Iterable[str]) -> list[bool]:
        """Return for each name whether the file exists."""
        return [self.exists(name) for name in names]

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        try:
            return os.stat(self.where(name)).st_size
        except OSError as error:
            raise self._error(name, error) from error

    def version(self, name: str) -> str:
        """Return the version of a file, which changes when the file does."""
        try:
            status = os.stat(self.where(name))
        except OSError as error:
            raise self._error(name, error) from error
        return f"{status.st_size}:{status.st_mtime_ns}"

    def read(self, name: str, nbytes: int | None = None) -> bytes:
        """Return a whole file; raise StorageError if its size is not `nbytes`."""
        try:
            with open(open_file(self.where(name)), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if nbytes is not None and size != nbytes:
                    raise StorageError(
                        f"{self.where(name)}: {quantity(size, 'byte')}; its index says {nbytes:,}"
                    )
                ensure_fits(size, f"reading {self.where(name)}")
                return file.read()
        except StorageError:
            raise
        except OSError as error:
            raise self._error(name, error) from error

    def sizes(self, names: Iterable[str]) -> list[int | StorageError | None]:
        """Return the sizes of files in bytes, None for missing ones."""
        return [self.size(name) if self.exists(name) else None for name in names]

    def map(self, name: str, nbytes: int | None = None) -> Bytes:
        """Return a whole file as a read-only, memory-mapped array; `nbytes` is not used."""
        try:
            return map_file(self.where(name))
        except OSError as error:
            raise self._error(name, error) from error

    def discard(self, spans: Iterable[Span]) -> None:
        """No-op: a local store keeps no damaged copies."""

    def stream(self, spans: Iterable[Span]) -> Iterator[tuple[int, bytes]]:
        """Yield byte ranges of files, each with its number; raise if a range is truncated."""
        name, descriptor = "", -1
        try:
            for number, (span_name, begin, nbytes) in enumerate(spans):
                if span_name != name:
                    # One open file is enough: successive spans are mostly of the same file.
                    _close(descriptor)
                    name, descriptor = span_name, -1
                    descriptor = open_file(self.where(name))
                body = os.pread(descriptor, nbytes, begin)
                # A single call returns less than 2 GiB on Linux.
                while len(body) < nbytes and (
                    part := os.pread(descriptor, nbytes - len(body), begin + len(body))
                ):
                    body += part
                if len(body) != nbytes:
                    raise StorageError(
                        f"{self.where(name)}: {len(body):,} of {quantity(nbytes, 'byte')} at "
                        f"{begin}; the file is shorter than its index says"
                    )
                yield number, body
        except StorageError:
            raise
        except OSError as error:
            raise self._error(name, error) from error
        finally:
            _close(descriptor)

    def ranges(self, spans: Iterable[Span]) -> list[bytes]:
        """Return byte ranges of files in the order of `spans`: name, first byte, length."""
        return [body for _, body in self.stream(spans)]

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the names that start with `prefix`, and the sizes of the files."""
        top = os.path.join(self.root, *prefix.rpartition("/")[0].split("/"))
        for folder, folders, files in os.walk(top):
            folders.sort()
            for file in sorted(files):
                path = os.path.join(folder, file)
                name = os.path.relpath(path, self.root).replace(os.sep, "/")
                if not name.startswith(prefix):
                    continue
                try:
                    status = os.stat(path)
                except OSError:  # another process has removed it, or it is a broken link
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield name, status.st_size

    def entries(self) -> list[str]:
        """Return the names in this directory; names of directories end with a slash."""
        with self._storage_errors("", "list"), os.scandir(self.root) as entries:
            return sorted(entry.name + "/" * entry.is_dir() for entry in entries)

    def put(self, name: str, data: bytes | str | os.PathLike[str], token: str = "") -> None:
        """Store a file atomically, given as bytes or as the path of another file.

        The draft is a temporary file with a hidden name. `token` is a part of that name, by default
        a random one.
        """
        with (
            self.draft(name, self._pieces(name, data), token or os.urandom(8).hex(), []) as draft,
            self._storage_errors(name, "store"),
        ):
            draft.sync()
            draft.replace()

    def can_replace(self, name: str) -> bool:
        """Return True if the file can be locked; some network file systems have no locks."""
        from npstream.storage.uploads import lock_file

        try:
            with lock_file(self.where(name)):
                return True
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
                return False
            raise self._error(name, error, "lock") from error

    def read_tagged(self, name: str) -> Tag:
        """Return a file with its tag for `replace`."""
        from npstream.storage import uploads

        return uploads.Tag(self.read(name), {})

    def replace(self, name: str, data: bytes, tag: Tag, token: str = "") -> None:
        """Replace the content of a file with `data` if the file is unchanged since `tag`.

        A lock on the file excludes other processes that replace it. The operating system releases
        the lock if a process dies. `token` is a part of the hidden name of the draft, by default a
        random one.

        Raises
        ------
        StorageError
            With ``errno.EEXIST`` or ``errno.ENOENT`` if the file has changed.
        """
        from npstream.storage.uploads import replace_unchanged

        token = token or os.urandom(8).hex()
        with self.draft(name, [data], token, []) as draft, self._storage_errors(name, "replace"):
            draft.sync()
            replace_unchanged(draft.path, self.where(name), tag)

    def put_all(self, files: Iterable[tuple[str, Iterable[Body]]]) -> None:
        """Store files. They get their names after all of them are complete and synced to disk."""
        token = os.urandom(8).hex()
        with ExitStack() as stack:
            drafts = [
                (name, stack.enter_context(self.draft(name, pieces, token, [])))
                for name, pieces in files
            ]
            self.sync_all(drafts, "store")
            for name, draft in drafts:
                with self._storage_errors(name, "store"):
                    draft.replace()

    def sync_all(self, drafts: Sequence[tuple[str, Draft]], action: str) -> None:
        """Sync files to disk concurrently, because file systems commit concurrent syncs together.

        Parameters
        ----------
        drafts : sequence of (str, Draft)
            The names of the files, and their drafts.
        action : str
            The verb of error messages, such as "store".
        """
        queue, errors = deque(drafts), list[StorageError]()

        def sync() -> None:
            while not errors:
                try:
                    name, draft = queue.popleft()
                except IndexError:
                    return
                try:
                    with self._storage_errors(name, action):
                        draft.sync()
                except StorageError as error:
                    errors.append(error)

        threads: list[threading.Thread] = []
        try:
            if len(drafts) > _FEW_FILES:
                # Starting a thread fails at the limit of threads, and while the interpreter exits.
                with suppress(RuntimeError):
                    for _ in range(min(_SYNC_THREADS, len(drafts)) - 1):
                        thread = threading.Thread(target=sync, name="npstream-sync")
                        thread.start()
                        threads.append(thread)
            sync()
        finally:
            queue.clear()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _pieces(self, name: str, data: bytes | str | os.PathLike[str]) -> Iterator[Body]:
        """Yield the content of a file to store: `data`, or pieces of the file that `data` names."""
        if isinstance(data, bytes | bytearray | memoryview):
            yield data
            return
        with self._storage_errors(name, "store"):
            descriptor = open_file(os.fspath(data))
        with open(descriptor, "rb") as source:
            while piece := source.read(_COPY_BYTES):
                yield piece

    @contextmanager
    def draft(
        self, name: str, pieces: Iterable[Body], token: str, folders: list[str]
    ) -> Iterator[Draft]:
        """Write a draft: a temporary file under a hidden name. Remove it when the block ends.

        The content is on disk after `Draft.sync` has returned.

        Parameters
        ----------
        name : str
            The final name of the file. The draft is in the same directory.
        pieces : iterable of bytes-like
            The content. Each piece is written before the next is requested.
        token : str
            A part of the hidden name.
        folders : list of str
            The new directories are appended to it.
        """
        draft = Draft(self.where(name), token)
        try:
            with self._storage_errors(name, "store"):
                file = draft.open(folders)
            try:
                for piece in pieces:
                    with self._storage_errors(name, "store"):
                        write_fully(file.write, piece)
            finally:
                with self._storage_errors(name, "store"):
                    file.close()
            yield draft
        finally:
            with suppress(OSError):
                os.unlink(draft.path)

    def make_folders(self, folders: list[str]) -> None:
        """Make this directory and its parents; append the new ones to `folders`, top first."""
        with self._storage_errors("", "make the directory of"):
            _make_folders(self.root, folders)

    def remove_folder(self, folder: str) -> None:
        """Remove a directory if it is empty."""
        with suppress(OSError):
            os.rmdir(folder)

    def sync(self, folder: str) -> None:
        """Sync the entries of a directory to disk."""
        with self._storage_errors("", "store"):
            _sync(folder)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.where(name))
        except OSError as error:
            raise self._error(name, error, "remove") from error

    @contextmanager
    def _storage_errors(self, name: str, action: str) -> Iterator[None]:
        """Raise an OSError in the block as a StorageError that names the file."""
        try:
            yield
        except OSError as error:
            raise self._error(name, error, action) from error

    def _error(self, name: str, error: OSError, action: str = "read") -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(error.errno, f"{reason}: cannot {action} this file", self.where(name))


class Draft:
    """A temporary file under a hidden name, in the directory of the final file.

    Attributes
    ----------
    path : str
        The path of the temporary file.
    """

    def __init__(self, target: str, token: str) -> None:
        folder, base = os.path.split(target)
        self._target = target
        self.path = os.path.join(folder, f".{base}.{token}.tmp")

    def open(self, folders: list[str]) -> RawIOBase:
        """Create the temporary file, and its directory if necessary."""
        folder = os.path.dirname(self.path)
        for _ in range(_ATTEMPTS):
            _make_folders(folder, folders)
            # A concurrent write that fails removes the directories that it made.
            with suppress(FileNotFoundError):
                return open(self.path, "xb", buffering=0)
        raise FileNotFoundError(errno.ENOENT, "the directory is removed again and again", folder)

    def sync(self) -> None:
        """Sync the content to disk."""
        _sync(self.path)

    def replace(self) -> None:
        """Rename the draft to its final name; replace a file of that name."""
        os.replace(self.path, self._target)

    def link(self) -> None:
        """Link the draft to its final name; raise FileExistsError if the name exists."""
        try:
            os.link(self.path, self._target)
        except FileExistsError:
            # A network file system may repeat a request whose response was lost: if the draft has
            # two links, the first attempt succeeded.
            if os.stat(self.path).st_nlink == 1:
                raise
        except OSError:
            # The file system has no hard links: create the name exclusively, then replace it.
            os.close(os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                self.replace()
            except BaseException:
                os.unlink(self._target)
                raise


def write_fully(write: Callable[[memoryview], int | None], data: Body) -> None:
    """Write all of `data`; if the disk is full, try again for about two seconds.

    Parameters
    ----------
    write : callable
        Writes the first bytes of its argument, and returns their number.
    data : bytes-like

    Raises
    ------
    OSError
        If nothing can be written.
    """
    remaining, attempt = memoryview(data).cast("B"), 0
    while remaining:
        try:
            remaining, attempt = remaining[write(remaining) :], 0
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or attempt == _FULL_DISK_RETRIES:
                raise
            # Another program may free space, such as that of its temporary files.
            threading.Event().wait(_FULL_DISK_BACKOFF * 2**attempt)
            attempt += 1


def file_id(path: str) -> tuple[int, ...]:
    """Return a key that identifies a file and its content, and that a rename does not change."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sync(path: str) -> None:
    """Sync a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(folder: str, new_folders: list[str]) -> None:
    """Make a directory and its parents; append the new ones to `new_folders`."""
    missing: list[str] = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        new_folders.append(folder)
        try:
            os.mkdir(folder)
        except OSError as error:
            new_folders.pop()
            if os.path.islink(folder.rstrip(os.sep)) and not os.path.exists(folder):
                reason = "the link leads to a directory that does not exist"
                raise FileNotFoundError(errno.ENOENT, reason, folder) from error
            if not isinstance(error, FileExistsError) or not os.path.isdir(folder):
                raise
            # Another process has made it meanwhile.


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
