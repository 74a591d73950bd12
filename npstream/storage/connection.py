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
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
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
    make_filesystem,
    missing_driver,
    protocols_of,
)
from npstream.storage.engines.obstore import Engine, find_engine
from npstream.storage.requests import Request
from npstream.storage.threads import DriverThreads, run_in_thread
from npstream.storage.traffic.slots import RequestSlots
from npstream.storage.uploads import put_then_rename
from npstream.storage.urls import is_http

__all__ = ["StoreConnection", "max_requests"]

T = TypeVar("T")

MAX_UNSIZED = 1 << 30
"""The maximum number of bytes to read of a file of unknown size."""

_DEFAULT_REQUESTS = 32

_ENGINE_REQUESTS = 128
"""More than with a driver, because a request through obstore takes a quarter of the CPU time."""

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
        self.trust = self.route.driver.trust
        self.leftovers: list[str] = []  # temporary files that could not be removed
        self._must_quote = is_http(url)
        self._engine, self._base = _find_engine(self.route, self._redactor)
        self.width = min(max_requests(self._engine is not None), self.route.driver.max_requests)
        self.slots = RequestSlots(self.width)
        self.driver, self._blocking = self.route.driver, False
        if self._engine is None:
            filesystem_class = self._call_driver(lambda: _filesystem_class(self.route))
            self._blocking = not getattr(filesystem_class, "async_impl", False)
            if not _has_known_class(self.driver, filesystem_class):
                self.driver = Driver(self.driver.protocol)  # use only fsspec's own methods
            parse_url = partial(_parse_url, filesystem_class, self.route.url)
            self._base, _ = self._call_driver(parse_url)
        self._threads = DriverThreads(
            partial(_make_filesystem, self.route), self.route.driver.close
        )
        self._engine_tasks: list[asyncio.Task[Any]] = []  # at most one
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
    def can_hedge(self) -> bool:
        """False for a driver that runs in threads.

        A hedge cancels one of two attempts, and a cancelled request loses its thread's session.
        """
        return not self._blocking

    @property
    def can_list(self) -> bool:
        """True if the driver's listings contain all files."""
        return self.driver.can_list

    @property
    def find_options(self) -> dict[str, Any]:
        """Options of the filesystem's ``find``.

        By default, fsspec's generic method silently omits directories that it could not list.
        """
        filesystem_class = self._call_driver(lambda: _filesystem_class(self.route))
        return {"on_error": "raise"} if _lists_by_walking(filesystem_class) else {}

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
        return _EngineCall(
            lambda engine, driver_call: engine.info(_key(path), driver_call),
            lambda filesystem: info(filesystem, path),
        )

    def whole_request(self, where: str, name: str) -> Request:
        """Return a request for a whole file of unknown size."""
        path, read = self.path(name), self.driver.read_all
        if read is None:
            call = self.method("cat_file", path)
        else:
            call = lambda filesystem: read(filesystem, path, MAX_UNSIZED)  # noqa: E731
        return Request(where, "read this file", call)

    def start_request(self, where: str, name: str, nbytes: int) -> Request:
        """Return a request for the info of a file, with an engine also for its first bytes.

        With an engine, the result is a tuple: the info, and up to `nbytes` bytes. The bytes are
        empty if the engine leaves the request to the driver.
        """
        path = self.path(name)
        info_call = self.info_call(path)

        async def info_alone(filesystem: Any) -> tuple[Any, bytes]:
            return await info_call(filesystem), b""

        call: Callable[[Any], Any] = info_call
        if self._engine is not None:
            call = _EngineCall(
                lambda engine, driver_call: engine.read_start(_key(path), nbytes, driver_call),
                info_alone,
            )
        return Request(where, "look at this file", call)

    def range_request(self, where: str, name: str, start: int, nbytes: int) -> Request:
        """Return a request for a byte range."""
        path, end, read = self.path(name), start + nbytes, self.driver.read
        if read is not None:
            call: Callable[[Any], Any] = _EngineCall(
                lambda engine, driver_call: engine.read(_key(path), start, end, driver_call),
                lambda filesystem: read(filesystem, path, start, end),
            )
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
        """Return the result of `call`, from the engine if possible, else from the driver."""
        if self._engine is None or not isinstance(call, _EngineCall):
            return await self._perform_by_driver(call)
        if not self._engine_tasks:
            # In a thread: loading takes long, and the engine may request credentials.
            self._engine_tasks.append(self.loop.create_task(run_in_thread(self._engine.connect)))
        await asyncio.shield(self._engine_tasks[0])
        return await call.engine_call(self._engine, partial(self._perform_by_driver, call))

    async def _perform_by_driver(self, call: Callable[[Any], Any]) -> Any:
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


@dataclass(frozen=True, slots=True)
class _EngineCall:
    """A function for `Request.call`, with an equivalent function for an engine.

    Attributes
    ----------
    engine_call : callable
        Does the call, given the engine and a function that does the call by the driver.
    driver_call : callable
        Does the call, given the filesystem.
    """

    engine_call: Callable[[Engine, Callable[[], Any]], Any]
    driver_call: Callable[[Any], Any]

    def __call__(self, filesystem: Any) -> Any:
        return self.driver_call(filesystem)


def _key(path: str) -> str:
    """Return the name of an object in its bucket, from its path in the driver's form."""
    return path.partition("/")[2]


def _find_engine(route: Route, redact: Callable[[str], str]) -> tuple[Engine | None, str]:
    """Return the engine for a URL, and the URL's path in the form of the driver.

    The driver is not imported. If there is no engine, the path is empty.
    """
    from fsspec.config import conf
    from fsspec.registry import known_implementations, registry

    driver = route.driver
    address = route.url.partition("://")[2]
    container, _, path = address.partition("/")
    if driver.load is None and driver.package:
        known = known_implementations.get(driver.protocol, {"class": ""})["class"]
        loaded = registry.get(driver.protocol)
        package = (known if loaded is None else loaded.__module__).partition(".")[0]
        if package != driver.package:  # another package has registered its own class
            return None, ""
    if not driver.package or find_spec(driver.package) is None:
        return None, ""
    options: dict[str, Any] = {}
    for name in protocols_of(driver):
        options.update(conf.get(name, {}))
    engine = find_engine(driver.protocol, container, options | route.user_options, redact)
    return engine, f"{engine.container}/{path}".rstrip("/") if engine else ""


def _has_known_class(driver: Driver, filesystem_class: Any) -> bool:
    """Return False if another package has registered its own class for the scheme."""
    package = filesystem_class.__module__.partition(".")[0]
    return driver.load is not None or package in (driver.package, "fsspec")


def _make_filesystem(route: Route) -> Any:
    filesystem_class = _filesystem_class(route)
    _, url_options = _parse_url(filesystem_class, route.url)
    return make_filesystem(filesystem_class, {**url_options, **route.options}, route.driver)


def max_requests(has_engine: bool = False) -> int:
    """Return the maximum number of concurrent requests of a store.

    It is NPSTREAM_THREADS, or 32 for a driver and 128 for an engine.
    """
    default = _ENGINE_REQUESTS if has_engine else _DEFAULT_REQUESTS
    text = os.environ.get("NPSTREAM_THREADS", "") or str(default)
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


def _lists_by_walking(filesystem_class: Any) -> bool:
    """Return True if a driver inherits fsspec's generic ``find``."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    if getattr(filesystem_class, "async_impl", False):
        return bool(filesystem_class._find is AsyncFileSystem._find)
    return bool(filesystem_class.find is AbstractFileSystem.find)


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
