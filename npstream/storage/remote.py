"""Files in object stores and on other machines: the one door to fsspec.

All requests of a process run in fsspec's event loop: coroutines of drivers that have them,
threads for those that block. Each has a deadline, within which it is tried again after a failure
that may pass. No wait is without an end, and no driver's exception leaves this module.
"""

from __future__ import annotations

import asyncio
import errno
import operator
import os
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream._core.redaction import Redactor, place_hash, redacted_url
from npstream._core.typing import Bytes, Span
from npstream.errors import NpstreamError, StorageError
from npstream.storage.deadlines import Patience
from npstream.storage.drivers import SCHEMES, Driver, Route, imports, missing, route
from npstream.storage.obstore import fast_ranges
from npstream.storage.requests import Job, Waits, persist, results
from npstream.storage.threads import Threads
from npstream.storage.urls import is_http
from npstream.storage.versions import Version, version_of

if TYPE_CHECKING:
    from threading import Thread

__all__ = ["RemoteStore", "known_schemes"]

T = TypeVar("T")

WHOLE_REQUEST = 1 << 23
"""Bytes of each of the requests that together read a whole file."""

MAX_UNSIZED = 1 << 30
"""The maximum number of bytes to read of a file of unknown size."""

UNKNOWN_SIZE = -1
"""The size of a file whose size the server does not tell."""

_REQUESTS = 32

_PATH = "path"
"""Stands for a path in the URLs that drivers parse."""


class RemoteStore:
    """The files below a URL.

    It may be used by any thread, and pickled, and goes on working in forked processes: what
    belongs to a process is made there, at the first use. Its pickle holds the options, and so
    their secrets; its repr and its errors do not.

    Parameters
    ----------
    url : str
    storage_options : mapping, optional
        Options of the driver.
    timeout : float
        Seconds after which a request fails, with all its attempts. A transfer of more than
        16 MiB in one piece has proportionally more.
    retries : int
        How often a request is tried again after a failure that may pass.

    Attributes
    ----------
    root : str
        The URL without what may be secret in it, for messages.
    identity : str
        A hash that tells it from other places.

    Raises
    ------
    ValueError
        If a setting makes no sense, or a web address has a fragment.

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
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout={timeout}: expected seconds, more than 0")
        if retries < 0:
            raise ValueError(f"retries={retries}: expected 0 or more")
        if is_http(url) and "#" in url:
            raise ValueError(
                f"{redacted_url(url)!r}: a '#' begins a fragment, which is not sent to "
                "servers: where it is part of a name, write %23"
            )
        self._url = url
        self._options = dict(storage_options or {})
        self.timeout, self.retries = float(timeout), int(retries)
        self.root = redacted_url(url)
        self.identity = place_hash(url, self._options)
        self._waits = Waits(self.root)
        scheme, _, rest = url.partition("://")
        service = place_hash(f"{scheme}://{rest.partition('/')[0]}", self._options)
        self.patience = Patience(service)
        self._links: dict[int, _Link] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        _require_picklable(self._options, "storage_options")
        arguments = (self._url, self._options, self.timeout, self.retries)
        return type(self), arguments, self.patience.is_known

    def __setstate__(self, is_known: bool) -> None:
        self.patience.is_known = is_known

    @property
    def uploads(self) -> int:
        """The most files that one write stores at once."""
        return self._connect().driver.uploads

    def where(self, name: str) -> str:
        """Return the URL of a file, for messages."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of that name."""
        return self.exist([name]) == [True]

    def exist(self, names: Iterable[str]) -> list[bool]:
        """Tell of each name whether there is such a file; the store is asked for many at once."""
        link = self._connect()
        jobs = (self._look(link, name, is_optional=True) for name in names)
        found = dict(self._results(link, jobs))
        return [_is_file(found[number]) for number in range(len(found))]

    def sizes(self, names: Iterable[str]) -> list[int | StorageError | None]:
        """Return the sizes of files in bytes, with many requests at once.

        A size is None if there is no such file, `UNKNOWN_SIZE` if the server does not tell it, and
        an exception if the request failed.
        """
        link = self._connect()

        async def work(job: Job, asked: float) -> int | StorageError | None:
            try:
                return _size_of(await self._persist(link, job, asked))
            except StorageError as error:
                return error

        jobs = (self._look(link, name, is_optional=True) for name in names)
        found = dict(self._results(link, jobs, work))
        return [found[number] for number in range(len(found))]

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        if (size := _size_of(self._info(name))) is None:
            raise StorageError(errno.ENOENT, "a directory, and no file", self.where(name))
        if size == UNKNOWN_SIZE:
            raise StorageError(errno.EINVAL, "the server does not say its size", self.where(name))
        return size

    def version(self, name: str) -> Version:
        """Return what changes whenever the file does, as far as the server tells."""
        return version_of(self._info(name))

    def read(self, name: str, nbytes: int | None = None) -> bytes:
        """Return a whole file, of a known size in several requests at once."""
        link = self._connect()
        if nbytes is None:
            nbytes = _size_of(self._one(link, self._look(link, name, "read this file")))
        if nbytes is None or nbytes == UNKNOWN_SIZE:
            return bytes(self._one(link, link.whole(self.where(name), name)))
        ensure_fits(nbytes, f"reading {self.where(name)}")
        cuts = range(0, nbytes, WHOLE_REQUEST)
        spans = ((name, at, min(WHOLE_REQUEST, nbytes - at)) for at in cuts)
        return b"".join(self.ranges(spans))

    def map(self, name: str, nbytes: int | None = None) -> Bytes:
        """Return a copy of a whole file as a read-only array."""
        return np.frombuffer(self.read(name, nbytes), np.uint8)

    def ranges(self, spans: Iterable[Span]) -> list[bytes]:
        """Return parts of files, each given as name, first byte and length, in that order."""
        parts = dict(self.stream(spans))
        return [parts[number] for number in range(len(parts))]

    def forget(self, spans: Iterable[Span]) -> None:
        """Keep no copies of parts of files, whose bytes are wrong: there are none."""

    def stream(self, spans: Iterable[Span]) -> Generator[tuple[int, bytes]]:
        """Yield parts of files as they arrive, each with its number among the spans.

        No more requests and bytes are under way than fit the bounds; what was yielded does not
        count. Closing the generator cancels the rest.
        """
        link = self._connect()
        return self._results(link, (link.ranged(self.where(span[0]), *span) for span in spans))

    @property
    def can_list(self) -> bool:
        """True if `names` yields all files."""
        return self._connect().can_list

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the names that begin so, and the sizes of the files."""
        link = self._connect()
        folder = link.path(prefix.rpartition("/")[0]).rstrip("/")
        call = link.method("find", folder, detail=True, **link.strict)
        job = Job(self.where(prefix), "list the files", call, patience=10.0, is_optional=True)
        found = self._one(link, job) or {}
        for path, info in sorted(found.items()):
            name = link.name(path)
            if info.get("type") == "file" and name.startswith(prefix) and not name.endswith("/"):
                size = info.get("size")
                yield name, self.size(name) if size is None else int(size)

    def entries(self) -> list[str]:
        """Return the names right below this URL, those of directories with a slash behind."""
        link = self._connect()
        call = link.method("ls", link.path("").rstrip("/"), detail=True)
        found = self._one(link, Job(self.root, "list what is below", call, is_optional=True)) or []
        names = ((link.name(info["name"]), info["type"] == "directory") for info in found)
        bare = ((name.rstrip("/"), is_folder) for name, is_folder in names)
        return sorted(
            name + "/" * is_folder for name, is_folder in bare if name and "/" not in name
        )

    def put(self, name: str, data: bytes | str | os.PathLike[str]) -> None:
        """Store a file, given as bytes or as the path of a local one; it appears whole."""
        link = self._connect()
        nbytes = len(data) if isinstance(data, bytes | bytearray | memoryview) else _size(data)
        call = link.uploader(link.path(name), link.writer(data))
        self._one(
            link,
            Job(self.where(name), f"store {quantity(nbytes, 'byte')} as this file", call, nbytes),
        )

    def create(self, name: str, data: bytes) -> None:
        """Store a new file; it appears whole, and never in place of another.

        The server sees to that, in one step. So of several that create the same file at once, one
        does. After a lost answer a second attempt may find the file of the first.

        Raises
        ------
        StorageError
            With ``errno.EEXIST`` if there is such a file, which is left as it is; with
            ``errno.EOPNOTSUPP`` if this store cannot create files in one step.
        """
        link = self._connect()
        what = f"create this file of {quantity(len(data), 'byte')}"
        self._one(link, Job(self.where(name), what, link.creator(link.path(name), data), len(data)))

    def make_folders(self, folders: list[str], name: str = "") -> None:
        """Make a directory and those above it; add what was made to a list, from the top.

        In object stores there are none to be made.
        """
        link = self._connect()
        if link.driver.rename is not None:
            call = partial(_make_folders, folder=link.path(name).rstrip("/"))
            folders += self._one(link, Job(self.where(name), "make this directory", call))

    def sweep(self) -> None:
        """Remove what uploads that broke off have left under names that nobody looks for."""
        link = self._connect()
        while link.left:
            call = link.remover(link.left[-1])
            self._one(link, Job(self.root, "remove a file that is left", call, is_optional=True))
            link.left.pop()

    def remove_folder(self, folder: str) -> None:
        """Remove a directory that was made, unless something is in it."""
        link = self._connect()
        call = partial(_remove_folder, folder=folder)
        self._one(link, Job(self.root, f"remove the directory {folder}", call, is_optional=True))

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        self.remove_all([name])

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove files, many at once, as far as there are any of these names."""
        link = self._connect()

        def job(name: str) -> Job:
            call = link.remover(link.path(name))
            return Job(self.where(name), "remove this file", call, is_optional=True)

        wanted = list(names)
        at_once = len(wanted) if link.driver.uploads > 1 else 1
        for start in range(0, len(wanted), at_once):
            for _ in self._results(link, map(job, wanted[start : start + at_once])):
                pass

    def stop(self, threads: Iterable[Thread] | None = None) -> None:
        """Let the requests of some threads of this process, or of all, fail, now and later."""
        self._waits.stop(threads)

    def _info(self, name: str) -> dict[str, Any]:
        link = self._connect()
        return dict(self._one(link, self._look(link, name)))

    def _look(
        self, link: _Link, name: str, what: str = "look at this file", is_optional: bool = False
    ) -> Job:
        return Job(self.where(name), what, link.info_call(link.path(name)), is_optional=is_optional)

    def _connect(self) -> _Link:
        """Return this process's connection, which is not made before it is used."""
        if (link := self._links.get(os.getpid())) is not None:
            return link
        # Threads that get here at once make one each, and all take the first.
        return self._links.setdefault(os.getpid(), _Link(self._url, self._options, self.timeout))

    def _one(self, link: _Link, job: Job) -> Any:
        ((_, result),) = self._results(link, [job])
        return result

    def _results(
        self,
        link: _Link,
        jobs: Iterable[Job],
        work: Callable[[Job, float], Any] | None = None,
    ) -> Generator[tuple[int, Any]]:
        work = work or partial(self._persist, link)
        return results(jobs, work, link.loop, link.width, self._waits, self.patience, self.timeout)

    def _persist(self, link: _Link, job: Job, asked: float) -> Any:
        return persist(job, asked, link, self.patience, self.timeout, self.retries)


class _Link:
    """A store's connection, of one process: the loop, the driver and the bounds."""

    def __init__(self, url: str, storage_options: Mapping[str, Any], timeout: float) -> None:
        from fsspec.asyn import get_loop

        self.pid = os.getpid()
        self._where = redacted_url(url)
        self.loop: asyncio.AbstractEventLoop = get_loop()
        base, _, self._query = url.partition("?") if is_http(url) else (url, "", "")
        most = requests_at_once()
        self._redactor = Redactor(url, storage_options)
        self.route = self._asked(lambda: route(base, storage_options, most, timeout))
        self._redactor = Redactor(url, self.route.options)
        self.width = min(most, self.route.driver.width)
        self.slots = asyncio.Semaphore(self.width)
        self.trust = self.route.driver.trust
        kind = self._asked(lambda: _filesystem_class(self.route))
        self._blocking = not getattr(kind, "async_impl", False)
        driver = self.route.driver
        # Another package may have registered itself for the scheme.
        is_known = driver.load or kind.__module__.partition(".")[0] in (driver.package, "fsspec")
        self.driver = driver if is_known else Driver(driver.protocol)
        read = self.driver.read
        self._read = read and (fast_ranges(kind, read, self._redactor) or read)
        self.left: list[str] = []
        self._quotes = is_http(url)
        self._base, in_url = self._asked(lambda: _parsed(kind, self.route.url))
        options = {**in_url, **self.route.options}
        self._threads = Threads(partial(_make, kind, options, self.route), self.route.driver.end)
        # fsspec's own way of listing leaves out what it could not list.
        self.strict = {"on_error": "raise"} if _lists_by_walking(kind) else {}
        self._making: asyncio.Task[Any] | None = None
        self._made: list[Any] = []
        weakref.finalize(self, _close, self.loop, self._made, self.pid).atexit = False

    @property
    def can_list(self) -> bool:
        """True if the driver's listings contain all files."""
        return self.driver.can_list

    def path(self, name: str) -> str:
        """Return a file's path as the driver is to have it."""
        path = f"{self._base}/{quote(name) if self._quotes else name}"
        return f"{path}?{self._query}" if self._query else path

    def name(self, path: str) -> str:
        """Return the name of a file from the path that the driver gave it."""
        base = self._base
        if not path.startswith(base):  # the bucket is spelled in another way
            base, path = base.partition("/")[2], path.partition("/")[2]
        name = path[len(base) :].lstrip("/")
        return unquote(name) if self._quotes else name

    def method(self, name: str, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """Return a job's call of a filesystem's method."""
        name = name if self._blocking else f"_{name}"
        return lambda filesystem: getattr(filesystem, name)(*args, **options)

    def info_call(self, path: str) -> Callable[[Any], Any]:
        """Return a job's call that gets the info of a file."""
        info = self.driver.info
        if info is None:
            return self.method("info", path)
        return lambda filesystem: info(filesystem, path)

    def whole(self, where: str, name: str) -> Job:
        """Return a job that reads a file of unknown size."""
        path, read = self.path(name), self.driver.whole
        if read is None:
            call = self.method("cat_file", path)
        else:
            call = lambda filesystem: read(filesystem, path, MAX_UNSIZED)  # noqa: E731
        return Job(where, "read this file", call)

    def ranged(self, where: str, name: str, start: int, nbytes: int) -> Job:
        """Return a job that reads a range."""
        path, end, read = self.path(name), start + nbytes, self._read
        if read is not None:
            call: Callable[[Any], Any] = lambda filesystem: read(filesystem, path, start, end)  # noqa: E731
        else:
            call = self.method("cat_file", path, start=start, end=end)
        return Job(
            where, f"read {quantity(nbytes, 'byte')} at {start} of this file", call, nbytes, nbytes
        )

    def writer(self, data: bytes | str | os.PathLike[str]) -> Callable[[Any, str], Any]:
        """Return what stores bytes, or a local file, under a path."""
        prefix, write = "" if self._blocking else "_", self.route.driver.write
        if not isinstance(data, bytes | bytearray | memoryview):
            file = os.fspath(data)
            return lambda filesystem, path: getattr(filesystem, f"{prefix}put_file")(file, path)
        if write is not None:
            return lambda filesystem, path: write(filesystem, path, data)
        return lambda filesystem, path: getattr(filesystem, f"{prefix}pipe_file")(path, bytes(data))

    def remover(self, path: str) -> Callable[[Any], Any]:
        """Return what removes the file under a path."""
        remove = self.route.driver.remove
        if remove is None:
            return self.method("rm_file", path)
        return lambda filesystem: remove(filesystem, path)

    def uploader(self, path: str, put: Callable[[Any, str], Any]) -> Callable[[Any], Any]:
        """Return what stores a file under a path, which has that name only when it is whole."""
        if self.driver.rename is None:
            return lambda filesystem: put(filesystem, path)
        return lambda filesystem: _put_aside(filesystem, path, put, filesystem.mv, self.left)

    def creator(self, path: str, data: bytes) -> Callable[[Any], Any]:
        """Return what stores bytes under a path where there is no file."""
        create, rename = self.driver.create, self.driver.rename
        if rename is not None:
            put = self.writer(data)
            return lambda filesystem: _put_aside(
                filesystem, path, put, partial(rename, filesystem), self.left
            )
        if create is not None:
            return lambda filesystem: create(filesystem, path, data)
        raise StorageError(
            errno.EOPNOTSUPP, "this driver creates no file in one step", f"{self._base}/..."
        )

    async def perform(self, call: Callable[[Any], Any]) -> Any:
        """Return what a call of the filesystem comes to."""
        if self._blocking:
            return await self._threads.run(call)
        if self._making is None:
            # In a thread, as a driver may look for its credentials in the network.
            self._making = self.loop.create_task(self._threads.run(lambda filesystem: filesystem))
        making = self._making
        try:
            filesystem = await asyncio.shield(making)
            if not self._made:
                self._made.append(filesystem)
        except Exception:
            if self._making is making:
                self._making = None
            raise
        return await call(filesystem)

    def describe(self, error: BaseException) -> str:
        """Say what a driver's exception says, without secrets."""
        return self._redactor.describe(error)

    def _asked(self, ask: Callable[[], T]) -> T:
        """Return what a driver says of the URL and the options, or raise in its place."""
        try:
            return ask()
        except NpstreamError:
            raise
        except Exception as error:
            reason = self.describe(error)
        # Out here the driver's exception, which may tell secrets, is not this one's context.
        code = errno.EINVAL
        what = "the driver does not understand the URL or its options"
        raise StorageError(code, f"{os.strerror(code)}: {what}: {reason}", self._where)


def _require_picklable(options: Mapping[str, Any], where: str) -> None:
    """Raise TypeError, which names the option, if one cannot be sent to other processes."""
    from multiprocessing.reduction import ForkingPickler

    for name, value in options.items():
        place = f"{where}[{name!r}]"
        if isinstance(value, Mapping):
            _require_picklable(value, place)
            continue
        try:
            ForkingPickler.dumps(value)
        except TypeError:
            kind = type(value).__name__
            mend = "give what it is made of"
            if kind == "SSLContext":
                mend = "give the name of the file of certificates (Certificates in docs/stores.md)"
            raise TypeError(
                f"{place}, of type {kind}, cannot be pickled for another process: {mend}, or fork "
                "the workers (multiprocessing_context='fork')"
            ) from None


def known_schemes() -> list[str]:
    """Return the schemes that URLs may have."""
    from fsspec import available_protocols
    from fsspec.registry import registry

    return sorted({*available_protocols(), *registry, *SCHEMES})


def requests_at_once() -> int:
    """Return how many requests a store makes at once: NPSTREAM_THREADS, or else 32."""
    text = os.environ.get("NPSTREAM_THREADS", "") or str(_REQUESTS)
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"NPSTREAM_THREADS={text!r}: expected a number of requests, 1 or more")
    return int(text)


def _filesystem_class(found: Route) -> Any:
    """Import a driver."""
    from fsspec import get_filesystem_class

    driver = found.driver
    try:
        with imports.lock:
            return driver.load() if driver.load else get_filesystem_class(driver.protocol)
    except ImportError as error:
        raise missing(driver, error) from error


def _parsed(kind: Any, url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL's path as a driver names it, and the options that stand in the URL.

    The driver parses the URL with another path in place of its own. So whatever characters a path
    has, "#" and "?" among them, are those of its name, for every driver.
    """
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    stem = f"{scheme}://{authority}/{_PATH}"
    base = str(kind._strip_protocol(stem)).removesuffix(_PATH)
    return (base + path).rstrip("/"), kind._get_kwargs_from_urls(stem)


def _make(kind: Any, options: Mapping[str, Any], found: Route) -> Any:
    """Make a filesystem of our own, whose settings nobody else sees."""
    filesystem = kind(**options, skip_instance_cache=True)
    if hasattr(filesystem.dircache, "use_listings_cache"):
        filesystem.dircache.use_listings_cache = False
    found.driver.tame(filesystem)
    return filesystem


def _put_aside(
    filesystem: Any,
    path: str,
    put: Callable[[Any, str], object],
    rename: Callable[[str, str], object],
    left: list[str],
) -> None:
    """Store a file under a name that nobody looks for, and then rename it.

    Such a name is added to `left` if the connection breaks, so that it cannot be removed now.
    """
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.{os.urandom(8).hex()}.tmp"
    filesystem.makedirs(folder, exist_ok=True)
    left.append(temporary)
    try:
        put(filesystem, temporary)
        rename(temporary, path)
    except BaseException:
        with suppress(Exception):
            filesystem.rm_file(temporary)
            left.remove(temporary)
        raise
    left.remove(temporary)


def _make_folders(filesystem: Any, folder: str) -> list[str]:
    missing, made = [], []
    while folder and not filesystem.exists(folder):
        missing.append(folder)
        folder = folder.rpartition("/")[0]
    for folder in reversed(missing):
        # Another may have made it meanwhile.
        with suppress(FileExistsError):
            filesystem.mkdir(folder, create_parents=False)
            made.append(folder)
    return made


def _remove_folder(filesystem: Any, folder: str) -> None:
    if not filesystem.ls(folder, detail=False):
        filesystem.rmdir(folder)


def _lists_by_walking(kind: Any) -> bool:
    """Tell whether a driver's ``find`` is one that fsspec gives to all."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    if getattr(kind, "async_impl", False):
        return bool(kind._find is AsyncFileSystem._find)
    return bool(kind.find is AbstractFileSystem.find)


def _close(loop: asyncio.AbstractEventLoop, made: list[Any], process: int) -> None:
    """Close the session of a filesystem in its loop, as few drivers do when they are collected."""

    async def close() -> None:
        while made:
            filesystem = made.pop()
            for place in ("_session.close", "service_client.close", "client.aclose"):
                holder, way = place.split(".")
                end = getattr(getattr(filesystem, holder, None), way, None)
                if end is not None:
                    await end()

    if made and process == os.getpid() and loop.is_running():
        asyncio.run_coroutine_threadsafe(close(), loop)


def _is_file(info: Mapping[str, Any] | None) -> bool:
    return info is not None and info.get("type") != "directory"


def _size_of(info: Mapping[str, Any] | None) -> int | None:
    """Return the size in a file's info, as `RemoteStore.sizes` does."""
    if info is None or not _is_file(info):
        return None
    size: Any = info.get("size")
    if isinstance(size, str) and size.isdecimal():
        return int(size)
    try:
        return max(operator.index(size), UNKNOWN_SIZE)
    except TypeError:
        return UNKNOWN_SIZE


def _size(file: str | os.PathLike[str]) -> int:
    """Return the size of a local file that is to be stored elsewhere."""
    try:
        return os.stat(file).st_size
    except OSError as error:
        raise StorageError(error.errno, error.strerror, os.fspath(file)) from error
