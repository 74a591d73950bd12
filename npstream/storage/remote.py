"""Stores of remote files: object stores and other machines, reached through fsspec or obstore.

All requests of a process start in fsspec's event loop. Drivers with coroutines run in the loop
itself. Drivers that block run in threads. Every wait has a deadline, and a request is retried only
until its deadline. No driver's exception leaves this module.
"""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream._core.redaction import location_hash, redact_url
from npstream._core.typing import Body, Bytes, Span
from npstream.errors import StorageError
from npstream.storage.connection import StoreConnection
from npstream.storage.deadlines import Deadlines, require_limits
from npstream.storage.drivers import SCHEMES
from npstream.storage.requests import Cancellation, Request, run_requests, run_with_retries
from npstream.storage.traffic.outage import Outage
from npstream.storage.traffic.record import Traffic
from npstream.storage.uploads import Tag, make_folders, remove_folder
from npstream.storage.urls import is_http, join_url, require_picklable
from npstream.storage.versions import Version, version_of

if TYPE_CHECKING:
    from threading import Thread

__all__ = ["RemoteStore", "known_schemes"]

READ_REQUEST_BYTES = 1 << 23
"""The size of the range requests that read a whole file, in bytes."""

UNKNOWN_SIZE = -1
"""Stands for the size of a file if the server does not report it."""


class RemoteStore:
    """The files below a URL.

    Any thread may use a store. A store can be pickled, and it works in forked processes: each
    process makes its own connection at the first use. The pickle contains the options with their
    secrets; the repr and the error messages do not.

    Parameters
    ----------
    url : str
    storage_options : mapping, optional
        Options of the driver.
    timeout : float
        Seconds after which a request fails, including its retries. A request for more than 16 MiB
        has proportionally more time.
    retries : int
        How often a request is retried after a transient failure.
    hedge : bool
        Whether slow range requests are sent again.
    outage : float
        Seconds that requests wait for a store that does not answer, in addition to `timeout`.

    Attributes
    ----------
    root : str
        The URL without secrets, for messages.
    identity : str
        A hash of the URL and the options, which identifies the store.
    traffic : Traffic
        Counts the requests and measures their times, also for the stores that `folder` returns.

    Raises
    ------
    ValueError
        If `timeout` or `retries` is out of range, or a web address has a fragment.

    Examples
    --------
    >>> store = RemoteStore("memory://shelf")
    >>> store.put("a/b", b"0123456789")
    >>> store.ranges([("a/b", 2, 3), ("a/b", 9, 1)])
    [b'234', b'9']
    """

    is_local = False

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        hedge: bool = True,
        outage: float = 0.0,
    ) -> None:
        require_limits(timeout, retries)
        if is_http(url) and "#" in url:
            raise ValueError(
                f"{redact_url(url)!r}: a '#' begins a fragment, which is not sent to "
                "servers: where it is part of a name, write %23"
            )
        self._url = url
        self._options = dict(storage_options or {})
        self.timeout, self.retries, self.hedge = float(timeout), int(retries), hedge
        self.root = redact_url(url)
        self.identity = location_hash(url, self._options)
        self._cancellation = Cancellation(self.root)
        scheme, _, address = url.partition("://")
        service = location_hash(f"{scheme}://{address.partition('/')[0]}", self._options)
        self.outage = outage
        self.deadlines = Deadlines(service, Outage(outage, self.root))
        self.traffic = Traffic(hedge)
        self._connections: dict[int, StoreConnection] = {}  # by process id
        self._parent: tuple[RemoteStore, str] | None = None  # and this store's name in it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        require_picklable(self._options, "storage_options")
        arguments = (self._url, self._options, *self._limits)
        return type(self), arguments, (self.deadlines.has_answered, self._parent)

    def __setstate__(self, state: tuple[bool, tuple[RemoteStore, str] | None]) -> None:
        self.deadlines.has_answered, self._parent = state
        if self._parent is not None:
            self._share(self._parent[0])

    @property
    def _limits(self) -> tuple[float, int, bool, float]:
        """The arguments of a store that has the same limits."""
        return self.timeout, self.retries, self.hedge, self.outage

    def folder(self, name: str) -> RemoteStore:
        """Return the store of a directory below this URL. It shares this store's connection."""
        url = join_url(self._url, name)
        store = RemoteStore(url, self._options, *self._limits)
        store._parent = self, name
        store._share(self)
        return store

    def _share(self, parent: RemoteStore) -> None:
        """Share the counts, and the state of an outage, with the store of a parent directory."""
        self.traffic = parent.traffic
        self.deadlines.outage = parent.deadlines.outage

    @property
    def max_uploads(self) -> int:
        """The maximum number of files that one write stores concurrently."""
        return self._connect().driver.max_uploads

    def where(self, name: str) -> str:
        """Return the URL of a file, for messages."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Return True if the file exists."""
        return self.exist_many([name]) == [True]

    def exist_many(self, names: Iterable[str]) -> list[bool]:
        """Return for each name whether the file exists, with concurrent requests."""
        connection = self._connect()
        requests = (self._info_request(connection, name, is_optional=True) for name in names)
        infos = dict(self._run(connection, requests))
        return [_is_file(infos[number]) for number in range(len(infos))]

    def sizes(self, names: Iterable[str]) -> list[int | StorageError | None]:
        """Return the sizes of files in bytes, with concurrent requests.

        A size is None if the file does not exist, `UNKNOWN_SIZE` if the server does not report it,
        and an exception if the request failed.
        """
        connection = self._connect()

        async def work(request: Request, wait_start: float) -> int | StorageError | None:
            try:
                return _size_of(await self._run_with_retries(connection, request, wait_start))
            except StorageError as error:
                return error

        requests = (self._info_request(connection, name, is_optional=True) for name in names)
        sizes = dict(self._run(connection, requests, work))
        return [sizes[number] for number in range(len(sizes))]

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        if (size := _size_of(self._info(name))) is None:
            raise StorageError(errno.ENOENT, "a directory, and no file", self.where(name))
        if size == UNKNOWN_SIZE:
            raise StorageError(errno.EINVAL, "the server does not say its size", self.where(name))
        return size

    def version(self, name: str) -> Version:
        """Return the version of a file, which changes when the file does."""
        return version_of(self._info(name))

    def read_start(self, name: str, nbytes: int) -> tuple[Version, bytes]:
        """Return the version of a file, and its first bytes if the same request returns them.

        Parameters
        ----------
        name : str
        nbytes : int
            The maximum number of bytes to read.

        Returns
        -------
        version : Version
        start : bytes
            The first bytes; empty if the driver needs another request for them.
        """
        connection = self._connect()
        result = self._run_one(connection, connection.start_request(self.where(name), name, nbytes))
        info, start = result if isinstance(result, tuple) else (result, b"")
        return version_of(dict(info)), start

    def read(self, name: str, nbytes: int | None = None) -> bytes:
        """Return a whole file, with concurrent requests unless its size is unknown.

        `nbytes` is the file's size, if the caller knows it.
        """
        connection = self._connect()
        if nbytes is None:
            request = self._info_request(connection, name, "read this file")
            nbytes = _size_of(self._run_one(connection, request))
        if nbytes is None or nbytes == UNKNOWN_SIZE:
            request = connection.whole_request(self.where(name), name)
            return bytes(self._run_one(connection, request))
        ensure_fits(nbytes, f"reading {self.where(name)}")
        offsets = range(0, nbytes, READ_REQUEST_BYTES)
        spans = ((name, offset, min(READ_REQUEST_BYTES, nbytes - offset)) for offset in offsets)
        return b"".join(self.ranges(spans))

    def map(self, name: str, nbytes: int | None = None) -> Bytes:
        """Return a copy of a whole file as a read-only array; `nbytes` is as in `read`."""
        return np.frombuffer(self.read(name, nbytes), np.uint8)

    def ranges(self, spans: Iterable[Span]) -> list[bytes]:
        """Return byte ranges of files in the order of `spans`: name, first byte, length."""
        bodies = dict(self.stream(spans))
        return [bodies[number] for number in range(len(bodies))]

    def discard(self, spans: Iterable[Span]) -> None:
        """No-op: a store without a cache keeps no damaged copies."""

    def stream(self, spans: Iterable[Span]) -> Generator[tuple[int, bytes]]:
        """Yield the bytes of ranges as they arrive; the bounds are those of `stream_bodies`."""
        return _as_bytes(self.stream_bodies(spans))

    def stream_bodies(self, spans: Iterable[Span]) -> Generator[tuple[int, Body]]:
        """Yield byte ranges of files as they arrive, each with its number among `spans`.

        The number of concurrent requests and their bytes are bounded; ranges that were yielded do
        not count. Closing the generator cancels the other requests.
        """
        connection = self._connect()
        requests = (connection.range_request(self.where(span[0]), *span) for span in spans)
        return self._run(connection, requests)

    @property
    def can_list(self) -> bool:
        """True if `names` yields all files."""
        return self._connect().can_list

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the names that start with `prefix`, and the sizes of the files."""
        connection = self._connect()
        folder = connection.path(prefix.rpartition("/")[0]).rstrip("/")
        call = connection.method("find", folder, detail=True, **connection.find_options)
        where, action = self.where(prefix), "list the files"
        # A long listing takes many requests, one after another.
        request = Request(where, action, call, timeout_factor=10.0, is_optional=True)
        infos = self._run_one(connection, request) or {}
        for path, info in sorted(infos.items()):
            name = connection.name(path)
            if info.get("type") == "file" and name.startswith(prefix) and not name.endswith("/"):
                size = info.get("size")
                yield name, self.size(name) if size is None else int(size)

    def entries(self) -> list[str]:
        """Return the names directly below this URL; names of directories end with a slash."""
        connection = self._connect()
        call = connection.method("ls", connection.path("").rstrip("/"), detail=True)
        request = Request(self.root, "list the directory", call, is_optional=True)
        infos = self._run_one(connection, request) or []
        names = ((connection.name(info["name"]).rstrip("/"), info["type"]) for info in infos)
        return sorted(
            name + "/" * (kind == "directory") for name, kind in names if name and "/" not in name
        )

    def put(self, name: str, data: bytes | str | os.PathLike[str]) -> None:
        """Store a file atomically, given as bytes or as the path of a local file."""
        connection = self._connect()
        nbytes = (
            len(data) if isinstance(data, bytes | bytearray | memoryview) else _local_size(data)
        )
        call = connection.uploader(connection.path(name), connection.writer(data))
        action = f"store {quantity(nbytes, 'byte')} as this file"
        self._run_one(connection, Request(self.where(name), action, call, nbytes))

    def create(self, name: str, data: bytes) -> None:
        """Store a new file atomically; never replace another file.

        The server creates the file in one step. If several processes create the same file, only one
        succeeds. If the response to the first attempt is lost, the second attempt may find the file
        of the first, and fail.

        Raises
        ------
        StorageError
            With ``errno.EEXIST`` if the file exists, which is left as it is; with
            ``errno.EOPNOTSUPP`` if this store cannot create files in one step.
        """
        connection = self._connect()
        action = f"create this file of {quantity(len(data), 'byte')}"
        call = connection.creator(connection.path(name), data)
        self._run_one(connection, Request(self.where(name), action, call, len(data)))

    def can_replace(self, name: str) -> bool:
        """Return True if the driver can replace a file on the condition that it is unchanged."""
        return self._connect().driver.replace is not None

    @property
    def checks_conditions(self) -> bool:
        """False if there are servers for this driver that ignore the conditions of uploads."""
        return self._connect().driver.checks_conditions

    def tag(self, name: str) -> Tag:
        """Return the tag of a file for `replace`, without the content of the file."""
        return Tag(b"", self._info(name))

    def read_tagged(self, name: str) -> Tag:
        """Return a file with its tag for `replace`; read it again if it is replaced meanwhile."""
        info = self._info(name)
        while True:
            try:
                size = _size_of(info)
                content = self.read(name, None if size == UNKNOWN_SIZE else size)
            except StorageError:
                previous, info = info, self._info(name)
                if version_of(info) == version_of(previous):
                    raise
                continue
            previous, info = info, self._info(name)
            if version_of(info) == version_of(previous):
                return Tag(content, info)

    def replace(self, name: str, data: bytes, tag: Tag) -> None:
        """Store a file in place of the version that `tag` identifies, in one step of the server.

        Raises
        ------
        StorageError
            With ``errno.EEXIST`` if the file has changed or is gone; some servers report
            ``errno.ENOENT`` if it is gone. With ``errno.EIO`` if a retry gets ``errno.EEXIST``,
            because the first attempt may have replaced the file. With ``errno.EOPNOTSUPP`` if this
            store cannot replace a file conditionally.
        """
        connection, attempts = self._connect(), 0
        path, replace = connection.path(name), connection.driver.replace
        if replace is None:
            raise StorageError(
                errno.EOPNOTSUPP, "this driver replaces no file conditionally", self.where(name)
            )

        def call(filesystem: Any) -> Any:
            nonlocal attempts
            attempts += 1
            return replace(filesystem, path, data, tag)

        action = f"replace this file by {quantity(len(data), 'byte')}"
        try:
            self._run_one(connection, Request(self.where(name), action, call, len(data)))
        except FileExistsError as error:
            if attempts == 1:
                raise
            raise StorageError(errno.EIO, error.strerror, error.filename) from error

    def make_folders(self, folders: list[str], name: str = "") -> None:
        """Make a directory and its parents; append the new ones to `folders`, top first.

        Object stores have no directories, so nothing is made there.
        """
        connection = self._connect()
        if connection.driver.rename is not None:  # then the store has directories
            call = partial(make_folders, folder=connection.path(name).rstrip("/"))
            request = Request(self.where(name), "make this directory", call)
            folders += self._run_one(connection, request)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of uploads that broke off."""
        connection = self._connect()
        while connection.leftovers:
            call = connection.remover(connection.leftovers[-1])
            action = "remove a temporary file"
            self._run_one(connection, Request(self.root, action, call, is_optional=True))
            connection.leftovers.pop()

    def remove_folder(self, folder: str) -> None:
        """Remove a directory, given as a path from `make_folders`, unless it has files."""
        connection = self._connect()
        call = partial(remove_folder, folder=folder)
        request = Request(self.root, f"remove the directory {folder}", call, is_optional=True)
        self._run_one(connection, request)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        self.remove_all([name])

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove the files that exist.

        The requests are concurrent, unless the driver allows only one upload at a time. Uploads and
        removals of such a driver are commits, each on top of the one before.
        """
        connection = self._connect()

        def removal(name: str) -> Request:
            call = connection.remover(connection.path(name))
            return Request(self.where(name), "remove this file", call, is_optional=True)

        names = list(names)
        batch_size = max(len(names), 1) if connection.driver.max_uploads > 1 else 1
        for start in range(0, len(names), batch_size):
            for _ in self._run(connection, map(removal, names[start : start + batch_size])):
                pass

    def stop(self, threads: Iterable[Thread] | None = None) -> None:
        """Fail the requests of `threads`, or of all threads: those pending and all later ones."""
        self._cancellation.stop(threads)

    def _info(self, name: str) -> dict[str, Any]:
        connection = self._connect()
        return dict(self._run_one(connection, self._info_request(connection, name)))

    def _info_request(
        self,
        connection: StoreConnection,
        name: str,
        action: str = "look at this file",
        is_optional: bool = False,
    ) -> Request:
        call = connection.info_call(connection.path(name))
        return Request(self.where(name), action, call, is_optional=is_optional)

    def _connect(self) -> StoreConnection:
        """Return this process's connection; make it at the first use."""
        if (connection := self._connections.get(os.getpid())) is not None:
            return connection
        # Concurrent threads may each make one; `setdefault` gives all of them the first.
        if self._parent is None:
            connection = StoreConnection(self._url, self._options, self.timeout)
            self.traffic.concurrency = connection.width
        else:
            parent, name = self._parent
            connection = parent._connect().folder(name)
        return self._connections.setdefault(os.getpid(), connection)

    def _run_one(self, connection: StoreConnection, request: Request) -> Any:
        ((_, result),) = self._run(connection, [request])
        return result

    def _run(
        self,
        connection: StoreConnection,
        requests: Iterable[Request],
        work: Callable[[Request, float], Any] | None = None,
    ) -> Generator[tuple[int, Any]]:
        return run_requests(
            requests, work or partial(self._run_with_retries, connection), connection.loop,
            lambda: connection.slots.limit, self._cancellation, self.deadlines, self.timeout,
        )  # fmt: skip

    def _run_with_retries(
        self, connection: StoreConnection, request: Request, wait_start: float
    ) -> Any:
        limits = (self.deadlines, self.traffic, self.timeout, self.retries)
        return run_with_retries(request, wait_start, connection, *limits)


def known_schemes() -> list[str]:
    """Return the schemes that URLs may have."""
    from fsspec import available_protocols
    from fsspec.registry import registry

    return sorted({*available_protocols(), *registry, *SCHEMES})


def _as_bytes(bodies: Generator[tuple[int, Body]]) -> Generator[tuple[int, bytes]]:
    """Yield copies of the bodies that are views."""
    with closing(bodies):
        for number, body in bodies:
            yield number, body if isinstance(body, bytes) else bytes(body)
            del body  # not kept in memory while the next one arrives


def _is_file(info: Mapping[str, Any] | None) -> bool:
    return info is not None and info.get("type") != "directory"


def _size_of(info: Mapping[str, Any] | None) -> int | None:
    """Return the size in a file's info; None and `UNKNOWN_SIZE` as in `RemoteStore.sizes`."""
    if info is None or not _is_file(info):
        return None
    size: Any = info.get("size")
    if isinstance(size, str) and size.isdecimal():
        return int(size)
    try:
        return max(operator.index(size), UNKNOWN_SIZE)
    except TypeError:
        return UNKNOWN_SIZE


def _local_size(file: str | os.PathLike[str]) -> int:
    """Return the size of a local file that is to be uploaded."""
    try:
        return os.stat(file).st_size
    except OSError as error:
        raise StorageError(error.errno, error.strerror, os.fspath(file)) from error
