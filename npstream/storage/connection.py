"""The connection of one process to a remote store: the event loop, the driver and its requests.

Tested in tests/storage/test_remote.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import weakref
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from npstream._core.arguments import quantity
from npstream._core.redaction import Redactor, redact_url
from npstream.errors import NpstreamError, StorageError
from npstream.storage.drivers import (
    Driver,
    Route,
    find_route,
    import_lock,
    lists_by_walking,
    make_filesystem,
    missing_driver,
)
from npstream.storage.engines.obstore import fast_ranges
from npstream.storage.requests import Request
from npstream.storage.threads import DriverThreads
from npstream.storage.uploads import put_then_rename
from npstream.storage.urls import is_http

__all__ = ["StoreConnection", "max_requests"]

T = TypeVar("T")

MAX_UNSIZED = 1 << 30
"""The maximum number of bytes to read of a file of unknown size."""

_DEFAULT_REQUESTS = 32

_PATH_PLACEHOLDER = "path"
"""Replaces the path in the URLs that drivers parse; see `_parse_url`."""


class StoreConnection:
    """The connection of one process to a store: the event loop, the driver and the limits."""

    _origin: StoreConnection

    def __init__(self, url: str, storage_options: Mapping[str, Any], timeout: float) -> None:
        from fsspec.asyn import get_loop

        self.pid = os.getpid()
        self._where = redact_url(url)
        self.loop: asyncio.AbstractEventLoop = get_loop()
        base, _, self._query = url.partition("?") if is_http(url) else (url, "", "")
        limit = max_requests()
        self._redactor = Redactor(url, storage_options)
        self.route = self._call_driver(lambda: find_route(base, storage_options, limit, timeout))
        self._redactor = Redactor(url, self.route.options)
        self.width = min(limit, self.route.driver.max_requests)
        self.slots = asyncio.Semaphore(self.width)
        self.trust = self.route.driver.trust
        filesystem_class = self._call_driver(lambda: _filesystem_class(self.route))
        self._blocking = not getattr(filesystem_class, "async_impl", False)
        driver = self.route.driver
        # Another package may have registered its own class for the scheme.
        package = filesystem_class.__module__.partition(".")[0]
        is_known = driver.load or package in (driver.package, "fsspec")
        self.driver = driver if is_known else Driver(driver.protocol)
        read = self.driver.read
        self._read = read and (fast_ranges(filesystem_class, read, self._redactor) or read)
        self.leftovers: list[str] = []  # temporary files that could not be removed
        self._must_quote = is_http(url)
        parse_url = partial(_parse_url, filesystem_class, self.route.url)
        self._base, url_options = self._call_driver(parse_url)
        options = {**url_options, **self.route.options}
        make = partial(make_filesystem, filesystem_class, options, driver)
        self._threads = DriverThreads(make, driver.close)
        # By default, fsspec's generic `find` silently omits directories that it could not list.
        self.find_options = {"on_error": "raise"} if lists_by_walking(filesystem_class) else {}
        self._filesystem_tasks: list[asyncio.Task[Any]] = []  # at most one
        self._filesystems: list[Any] = []  # at most one; `_close_filesystems` empties it
        close = partial(_close_filesystems, self.loop, self._filesystems, self.pid)
        weakref.finalize(self, close).atexit = False

    def folder(self, name: str) -> StoreConnection:
        """Return this connection for the files of a directory. Both share the filesystem."""
        connection = copy(self)
        connection._base = f"{self._base}/{quote(name) if self._must_quote else name}"
        connection._origin = self  # keeps it alive: its finalizer closes the filesystem
        return connection

    @property
    def can_list(self) -> bool:
        """True if the driver's listings contain all files."""
        return self.driver.can_list

    def path(self, name: str) -> str:
        """Return the path of a file in the driver's form."""
        path = f"{self._base}/{quote(name) if self._must_quote else name}"
        return f"{path}?{self._query}" if self._query else path

    def name(self, path: str) -> str:
        """Return the name of a file from its path in the driver's form."""
        base = self._base
        if not path.startswith(base):  # the driver spells the bucket in another way
            base, path = base.partition("/")[2], path.partition("/")[2]
        name = path[len(base) :].lstrip("/")
        return unquote(name) if self._must_quote else name

    def method(self, name: str, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """Return a function for `Request.call` that calls a method of the filesystem."""
        name = name if self._blocking else f"_{name}"
        return lambda filesystem: getattr(filesystem, name)(*args, **options)

    def info_call(self, path: str) -> Callable[[Any], Any]:
        """Return a function for `Request.call` that gets the info of a file."""
        info = self.driver.info
        if info is None:
            return self.method("info", path)
        return lambda filesystem: info(filesystem, path)

    def whole_request(self, where: str, name: str) -> Request:
        """Return a request for a whole file of unknown size."""
        path, read = self.path(name), self.driver.read_all
        if read is None:
            call = self.method("cat_file", path)
        else:
            call = lambda filesystem: read(filesystem, path, MAX_UNSIZED)  # noqa: E731
        return Request(where, "read this file", call)

    def range_request(self, where: str, name: str, start: int, nbytes: int) -> Request:
        """Return a request for a byte range."""
        path, end, read = self.path(name), start + nbytes, self._read
        if read is not None:
            call: Callable[[Any], Any] = lambda filesystem: read(filesystem, path, start, end)  # noqa: E731
        else:
            call = self.method("cat_file", path, start=start, end=end)
        action = f"read {quantity(nbytes, 'byte')} at {start} of this file"
        return Request(where, action, call, nbytes, nbytes)

    def writer(self, data: bytes | str | os.PathLike[str]) -> Callable[[Any, str], Any]:
        """Return a function that stores bytes, or a local file, under a path."""
        prefix, write = "" if self._blocking else "_", self.route.driver.write
        if not isinstance(data, bytes | bytearray | memoryview):
            file = os.fspath(data)
            return lambda filesystem, path: getattr(filesystem, f"{prefix}put_file")(file, path)
        if write is not None:
            return lambda filesystem, path: write(filesystem, path, data)
        return lambda filesystem, path: getattr(filesystem, f"{prefix}pipe_file")(path, bytes(data))

    def remover(self, path: str) -> Callable[[Any], Any]:
        """Return a function for `Request.call` that removes the file at `path`."""
        remove = self.route.driver.remove
        if remove is None:
            return self.method("rm_file", path)
        return lambda filesystem: remove(filesystem, path)

    def uploader(self, path: str, put: Callable[[Any, str], Any]) -> Callable[[Any], Any]:
        """Return a function for `Request.call` that stores a file atomically."""
        if self.driver.rename is None:
            return lambda filesystem: put(filesystem, path)
        leftovers = self.leftovers
        return lambda filesystem: put_then_rename(filesystem, path, put, filesystem.mv, leftovers)

    def creator(self, path: str, data: bytes) -> Callable[[Any], Any]:
        """Return a function for `Request.call` that stores bytes as a new file."""
        create, rename = self.driver.create, self.driver.rename
        if rename is not None:
            put = self.writer(data)
            return lambda filesystem: put_then_rename(
                filesystem, path, put, partial(rename, filesystem), self.leftovers
            )
        if create is not None:
            return lambda filesystem: create(filesystem, path, data)
        raise StorageError(
            errno.EOPNOTSUPP, "this driver creates no file in one step", f"{self._base}/..."
        )

    async def perform(self, call: Callable[[Any], Any]) -> Any:
        """Return the result of a call of the filesystem."""
        if self._blocking:
            return await self._threads.run(call)
        if not self._filesystem_tasks:
            # In a thread: a driver may request its credentials from the network.
            self._filesystem_tasks.append(self.loop.create_task(self._threads.run(lambda fs: fs)))
        (task,) = self._filesystem_tasks
        try:
            filesystem = await asyncio.shield(task)
            if not self._filesystems:
                self._filesystems.append(filesystem)
        except Exception:
            if self._filesystem_tasks == [task]:
                self._filesystem_tasks.clear()
            raise
        return await call(filesystem)

    def describe(self, error: BaseException) -> str:
        """Return the text of a driver's exception, without secrets."""
        return self._redactor.describe(error)

    def _call_driver(self, call: Callable[[], T]) -> T:
        """Return the result of `call`; raise StorageError in place of a driver's exception."""
        try:
            return call()
        except NpstreamError:
            raise
        except Exception as error:
            reason = self.describe(error)
        # Raised outside the `except` block: the driver's exception may contain secrets, and must
        # not become the context of this one.
        code, message = errno.EINVAL, "the driver does not understand the URL or its options"
        raise StorageError(code, f"{os.strerror(code)}: {message}: {reason}", self._where)


def max_requests() -> int:
    """Return the maximum number of concurrent requests of a store: NPSTREAM_THREADS, or 32."""
    text = os.environ.get("NPSTREAM_THREADS", "") or str(_DEFAULT_REQUESTS)
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"NPSTREAM_THREADS={text!r}: expected a number of requests, 1 or more")
    return int(text)


def _filesystem_class(route: Route) -> Any:
    """Import a driver, and return its class."""
    from fsspec import get_filesystem_class

    driver = route.driver
    try:
        with import_lock.lock:
            return driver.load() if driver.load else get_filesystem_class(driver.protocol)
    except ImportError as error:
        raise missing_driver(driver, route.scheme, error) from error


def _parse_url(filesystem_class: Any, url: str) -> tuple[str, dict[str, Any]]:
    """Return the path of a URL in the driver's form, and the options that the URL contains.

    The driver parses the URL with a placeholder instead of its path. Characters such as "#" and
    "?" in the path thus belong to the name, for every driver.
    """
    scheme, _, address = url.partition("://")
    authority, _, path = address.partition("/")
    stem = f"{scheme}://{authority}/{_PATH_PLACEHOLDER}"
    base = str(filesystem_class._strip_protocol(stem)).removesuffix(_PATH_PLACEHOLDER)
    return (base + path).rstrip("/"), filesystem_class._get_kwargs_from_urls(stem)


def _close_filesystems(loop: asyncio.AbstractEventLoop, filesystems: list[Any], pid: int) -> None:
    """Close the sessions of filesystems in their loop: few drivers do so when garbage-collected."""

    async def close() -> None:
        while filesystems:
            filesystem = filesystems.pop()
            for attribute in ("_session.close", "service_client.close", "client.aclose"):
                session, method = attribute.split(".")
                close_session = getattr(getattr(filesystem, session, None), method, None)
                if close_session is not None:
                    await close_session()

    if filesystems and pid == os.getpid() and loop.is_running():
        asyncio.run_coroutine_threadsafe(close(), loop)
