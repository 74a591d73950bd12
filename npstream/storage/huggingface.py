"""Hugging Face's Hub: huggingface_hub's filesystem, whose reads are requests of ours.

Its own way to the first range of a file is four requests, which it repeats for half a minute where
the Hub is busy, and what it has seen of a repository it takes for true ever after. Paths,
addresses, credentials, the client and the meaning of errors are still its; so is all of writing.
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from npstream._core.redaction import redact
from npstream.storage.responses import Response, check_encoding, read_body
from npstream.storage.threads import Threads

if TYPE_CHECKING:
    from logging import LogRecord

__all__ = ["commit_file", "connect", "filesystem_class", "request_range"]

_IDENTITY = {"accept-encoding": "identity"}

_MAX_METADATA = 1 << 28
"""The maximum number of bytes to read of a response about files."""

_MAX_ERROR = 1 << 16
"""The maximum number of bytes to read of an error response."""

_PART = 1 << 16
"""Bytes of a body to read at once."""

_asking: ContextVar[bool] = ContextVar("_asking", default=False)
"""Whether a request of this module's is under way."""


def filesystem_class() -> Any:
    """Return huggingface_hub's filesystem, with coroutines that read."""
    base = import_module("huggingface_hub").HfFileSystem
    methods = {
        "async_impl": True,
        # Whether there is such a repository, or file, is what the requests themselves find out.
        "_repo_and_revision_exist": lambda *_: (True, None),
        "_bucket_exists": lambda *_: (True, None),
        "isdir": lambda *_: False,
        "_info": _info,
        "_find": _find,
        "_ls": _list,
        "_pipe_file": _blocking(lambda self, path, data: _upload(self, data, path)),
        "_put_file": _blocking(_upload),
        "_rm_file": _blocking(base.rm_file),
    }
    return type(base)("HfFileSystem", (base,), methods)


def connect(filesystem: Any) -> None:
    """Give a filesystem a client of its own, and its credentials.

    The client that huggingface_hub shares is closed in every forked process, which waits for ever
    for a lock if another thread had a request under way. And what else it would say of us in each
    request it asks the Hub for first, while all others would wait.
    """
    filesystem.client = import_module("huggingface_hub").get_async_session()
    package = type(filesystem.client).__module__.partition(".")[0]
    import_module("logging").getLogger(package).addFilter(_unsigned)
    filesystem.threads = Threads(lambda: None, lambda _: None)
    filesystem.credentials = _credentials(filesystem.token)


def _unsigned(record: LogRecord) -> bool:
    """Take the signatures out of the addresses of our requests, which the client writes down."""
    if _asking.get() and isinstance(record.args, tuple):
        kept = (int, float)
        record.args = tuple(a if isinstance(a, kept) else redact(str(a), ()) for a in record.args)
    return True


def _credentials(token: str | bool | None) -> dict[str, str]:
    """Return the header that says who asks, renewed where a login had to be."""
    found = import_module("huggingface_hub.utils").get_token_to_send(token)
    return {"authorization": f"Bearer {found}"} if found else {}


async def _ask(filesystem: Any, method: str, url: str, **options: Any) -> Any:
    """Return the JSON body of a response, and the response."""
    async with _answer(filesystem, method, url, **options) as answer:
        check_encoding(answer.headers, url)
        return json.loads(await read_body(_reader(answer), _MAX_METADATA)), answer


@asynccontextmanager
async def _answer(filesystem: Any, method: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """Send a request, follow redirects, and yield the response with its body unread."""
    before = filesystem.credentials
    answer = await _send(filesystem, method, url, **options)
    if answer.status_code == 401:
        filesystem.credentials = await filesystem.threads.run(
            lambda _: _credentials(filesystem.token)
        )
        if filesystem.credentials != before:
            await answer.aclose()
            answer = await _send(filesystem, method, url, **options)
    try:
        if answer.is_error:
            await _refuse(answer)
        yield answer
    finally:
        await answer.aclose()


async def _send(filesystem: Any, method: str, url: str, **options: Any) -> Any:
    headers = {**filesystem.credentials, **_IDENTITY, **options.pop("headers", {})}
    _asking.set(True)  # for as long as this task of the event loop runs
    with _named(url):
        request = filesystem.client.build_request(method, url, headers=headers, **options)
        return await filesystem.client.send(request, stream=True)


async def _refuse(answer: Any) -> None:
    """Raise huggingface_hub's exception for an error response."""
    if not answer.is_stream_consumed:  # the client's own hook may have read it
        told = await read_body(_reader(answer), _MAX_ERROR)
        headers = {
            n: text for n, text in answer.headers.items() if n.startswith(("x-", "content-t"))
        }
        request = answer.request
        answer = type(answer)(answer.status_code, headers=headers, content=told, request=request)
    import_module("huggingface_hub.utils").hf_raise_for_status(answer)


def _reader(answer: Any) -> Callable[[int], Awaitable[bytes]]:
    """Return a function that reads the next part of a body, without decoding it."""
    parts = answer.aiter_raw(_PART)

    async def read(most: int) -> bytes:
        with _named(str(answer.url)):
            return bytes(await anext(parts, b""))

    return read


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Add the host to the client's exceptions, whose text does not name it."""
    try:
        yield
    except import_module("huggingface_hub.errors").HTTPError as error:
        reason = f"{type(error).__name__} {error}".rstrip()
        raise ConnectionError(f"{urlsplit(url).hostname}: {reason}") from error


@asynccontextmanager
async def request_range(
    filesystem: Any, path: str, start: int, end: int | None
) -> AsyncIterator[Response]:
    """Request a range of a file, or the whole file if `end` is None."""
    headers = {} if end is None else {"range": f"bytes={start}-{end - 1}"}
    async with _answer(filesystem, "GET", filesystem.url(path), headers=headers) as answer:
        yield Response(answer.status_code, answer.headers, path, _reader(answer))


async def _info(self: Any, path: str) -> dict[str, Any]:
    place = self.resolve_path(path)
    # As huggingface_hub asks for either.
    kind = "json" if hasattr(place, "bucket_id") else "data"
    url = _address(self, place, "paths-info")
    found, _ = await _ask(self, "POST", url, **{kind: {"paths": [place.path]}})
    if not found:
        raise FileNotFoundError("the Hub knows no file of that name")
    return _described(path, found[0])


async def _list(self: Any, path: str, detail: bool = True) -> list[dict[str, Any]]:
    """Return what is right below a path."""
    return list((await _find(self, path, recursive=False)).values())


async def _find(
    self: Any, path: str, detail: bool = True, recursive: bool = True
) -> dict[str, Any]:
    place = self.resolve_path(path)
    folder = f"/{quote(place.path, safe='')}" if place.path else ""
    url = f"{_address(self, place, 'tree')}{folder}"
    query: dict[str, str] | None = {"recursive": str(recursive).lower()}
    root = path.removesuffix(place.path).rstrip("/")
    found = {}
    while url:
        page, answer = await _ask(self, "GET", url, params=query)
        for entry in page:
            name = f"{root}/{entry['path']}"
            found[name] = _described(name, entry)
        # The address of the next page has the query in it.
        url, query = answer.links.get("next", {}).get("url"), None
    return found


def _address(filesystem: Any, place: Any, what: str) -> str:
    """Return where the Hub tells of the files of a repository or bucket."""
    root = f"{filesystem.endpoint}/api"
    if hasattr(place, "bucket_id"):
        return f"{root}/buckets/{place.bucket_id}/{what}"
    revision = quote(place.revision, safe="")
    return f"{root}/{place.repo_type}s/{place.repo_id}/{what}/{revision}"


def _described(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what fsspec says of a file, from what the Hub says."""
    return {
        "name": path,
        "type": entry["type"],
        "size": entry.get("size"),
        "blob_id": entry.get("oid"),
        "xet_hash": entry.get("xetHash"),
        "mtime": entry.get("mtime"),
    }


def _upload(filesystem: Any, data: bytes | str, path: str, parent: str | None = None) -> None:
    """Commit a file, given as bytes or as the path of a local one, to a branch that may not move.

    Parameters
    ----------
    filesystem : HfFileSystem
    data : bytes or str
    path : str
    parent : str, optional
        The commit that must be the newest.
    """
    place, api = filesystem.resolve_path(path), filesystem._api
    if hasattr(place, "bucket_id"):
        api.batch_bucket_files(place.bucket_id, add=[(data, place.path)])
    else:
        where = {"repo_id": place.repo_id, "repo_type": place.repo_type}
        api.upload_file(
            path_or_fileobj=data, path_in_repo=place.path, revision=place.revision,
            parent_commit=parent, **where,
        )  # fmt: skip


async def commit_file(filesystem: Any, path: str, data: bytes) -> None:
    """Commit a new file; raise FileExistsError if there is one of that name."""
    place = filesystem.resolve_path(path)
    if hasattr(place, "bucket_id"):
        raise OSError(errno.EOPNOTSUPP, "a bucket creates no file in one step")
    await filesystem.threads.run(lambda _: _create(filesystem, place, path, data))


def _create(filesystem: Any, place: Any, path: str, data: bytes) -> None:
    api = filesystem._api
    where = {"repo_id": place.repo_id, "repo_type": place.repo_type}
    while True:
        newest = api.repo_info(revision=place.revision, **where).sha
        if api.get_paths_info(paths=[place.path], revision=newest, **where):
            raise FileExistsError(path)
        try:
            _upload(filesystem, data, path, parent=newest)
            return
        except import_module("huggingface_hub.errors").HfHubHTTPError as error:
            # Each time another's commit was first, so it does not go on for ever.
            if error.response.status_code != HTTPStatus.PRECONDITION_FAILED:
                raise


def _blocking(method: Any) -> Any:
    """Return a coroutine function that does what a method does, in a thread."""

    async def call(self: Any, *args: Any) -> Any:
        return await self.threads.run(lambda _: method(self, *args))

    return call
