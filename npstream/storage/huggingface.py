"""The filesystem of huggingface_hub, changed to read with npstream's own requests.

The original filesystem sends four requests before the first range of a file, retries for half a
minute while the Hub is busy, and never updates its view of a repository. npstream still uses its
paths, URLs, credentials, client, exceptions, and all of its writing.
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
from npstream.storage.threads import DriverThreads

if TYPE_CHECKING:
    from logging import LogRecord

    from npstream.storage.uploads import Tag

__all__ = ["commit_file", "connect", "filesystem_class", "replace_file", "request_range"]

_IDENTITY = {"accept-encoding": "identity"}

_MAX_METADATA = 1 << 28
"""The maximum number of bytes to read of a response with files' metadata."""

_MAX_ERROR = 1 << 16
"""The maximum number of bytes to read of an error response."""

_CHUNK_BYTES = 1 << 16
"""The number of bytes to read of a body at a time."""

_is_requesting: ContextVar[bool] = ContextVar("_is_requesting", default=False)
"""True in tasks of the event loop that send requests of this module."""


def filesystem_class() -> Any:
    """Return huggingface_hub's filesystem class with coroutines as methods."""
    base = import_module("huggingface_hub").HfFileSystem
    methods = {
        "async_impl": True,
        # Skip the checks that a repository or a file exists: the requests themselves show it.
        "_repo_and_revision_exist": lambda *_: (True, None),
        "_bucket_exists": lambda *_: (True, None),
        "isdir": lambda *_: False,
        "_info": _info,
        "_find": _find,
        "_ls": _list,
        "_pipe_file": _in_thread(lambda self, path, data: _upload(self, data, path)),
        "_put_file": _in_thread(_upload),
        "_rm_file": _in_thread(base.rm_file),
    }
    return type(base)("HfFileSystem", (base,), methods)


def connect(filesystem: Any) -> None:
    """Give a filesystem its own client and credentials.

    huggingface_hub closes its shared client in forked processes. Closing deadlocks if another
    thread had a request in progress. In addition, the shared client first asks the Hub for
    metadata that it adds to every request. All other requests would wait for this metadata.
    """
    filesystem.client = import_module("huggingface_hub").get_async_session()
    package = type(filesystem.client).__module__.partition(".")[0]
    import_module("logging").getLogger(package).addFilter(_redact_record)
    filesystem.threads = DriverThreads(lambda: None, lambda _: None)
    filesystem.credentials = _credentials(filesystem.token)


def _redact_record(record: LogRecord) -> bool:
    """Remove signatures from the URLs of npstream's requests that the client logs."""
    if _is_requesting.get() and isinstance(record.args, tuple):
        numbers = (int, float)
        record.args = tuple(
            arg if isinstance(arg, numbers) else redact(str(arg), ()) for arg in record.args
        )
    return True


def _credentials(token: str | bool | None) -> dict[str, str]:
    """Return the authorization header. If the login has expired, huggingface_hub renews it."""
    access_token = import_module("huggingface_hub.utils").get_token_to_send(token)
    return {"authorization": f"Bearer {access_token}"} if access_token else {}


async def _request_json(filesystem: Any, method: str, url: str, **options: Any) -> Any:
    """Send a request; return the JSON body of the response, and the response."""
    async with _open_response(filesystem, method, url, **options) as response:
        check_encoding(response.headers, url)
        return json.loads(await read_body(_reader(response), _MAX_METADATA)), response


@asynccontextmanager
async def _open_response(
    filesystem: Any, method: str, url: str, **options: Any
) -> AsyncIterator[Any]:
    """Send a request, follow redirects, and yield the response with its body unread."""
    credentials = filesystem.credentials
    response = await _send(filesystem, method, url, **options)
    if response.status_code == 401:
        filesystem.credentials = await filesystem.threads.run(
            lambda _: _credentials(filesystem.token)
        )
        if filesystem.credentials != credentials:
            await response.aclose()
            response = await _send(filesystem, method, url, **options)
    try:
        if response.is_error:
            await _raise_for_status(response)
        yield response
    finally:
        await response.aclose()


async def _send(filesystem: Any, method: str, url: str, **options: Any) -> Any:
    headers = {**filesystem.credentials, **_IDENTITY, **options.pop("headers", {})}
    _is_requesting.set(True)  # only in this task of the event loop
    with _errors_with_host(url):
        request = filesystem.client.build_request(method, url, headers=headers, **options)
        return await filesystem.client.send(request, stream=True)


async def _raise_for_status(response: Any) -> None:
    """Raise huggingface_hub's exception for an error response."""
    if not response.is_stream_consumed:  # a hook of the client may have read the body
        body = await read_body(_reader(response), _MAX_ERROR)
        headers = {
            n: text for n, text in response.headers.items() if n.startswith(("x-", "content-t"))
        }
        request = response.request
        response = type(response)(
            response.status_code, headers=headers, content=body, request=request
        )
    import_module("huggingface_hub.utils").hf_raise_for_status(response)


def _reader(response: Any) -> Callable[[int], Awaitable[bytes]]:
    """Return a function that reads the next part of a body, without decoding it.

    A part has at most `_CHUNK_BYTES` bytes, whatever number the caller asks for.
    """
    parts = response.aiter_raw(_CHUNK_BYTES)

    async def read(_max_bytes: int) -> bytes:
        with _errors_with_host(str(response.url)):
            return bytes(await anext(parts, b""))

    return read


@contextmanager
def _errors_with_host(url: str) -> Iterator[None]:
    """Add the host to the client's exceptions, whose messages do not contain it."""
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
    async with _open_response(filesystem, "GET", filesystem.url(path), headers=headers) as response:
        yield Response(response.status_code, response.headers, path, _reader(response))


async def _info(self: Any, path: str) -> dict[str, Any]:
    location = self.resolve_path(path)
    # The same forms as in huggingface_hub: JSON for buckets, form data for repositories.
    kind = "json" if hasattr(location, "bucket_id") else "data"
    url = _api_url(self, location, "paths-info")
    entries, _ = await _request_json(self, "POST", url, **{kind: {"paths": [location.path]}})
    if not entries:
        raise FileNotFoundError("the Hub knows no file of that name")
    return _file_info(path, entries[0])


async def _list(self: Any, path: str, detail: bool = True) -> list[dict[str, Any]]:
    """Return the infos of the entries directly below a path."""
    return list((await _find(self, path, recursive=False)).values())


async def _find(
    self: Any, path: str, detail: bool = True, recursive: bool = True
) -> dict[str, Any]:
    location = self.resolve_path(path)
    folder = f"/{quote(location.path, safe='')}" if location.path else ""
    url = f"{_api_url(self, location, 'tree')}{folder}"
    query: dict[str, str] | None = {"recursive": str(recursive).lower()}
    root = path.removesuffix(location.path).rstrip("/")
    infos = {}
    while url:
        page, response = await _request_json(self, "GET", url, params=query)
        for entry in page:
            name = f"{root}/{entry['path']}"
            infos[name] = _file_info(name, entry)
        # The URL of the next page contains the query.
        url, query = response.links.get("next", {}).get("url"), None
    return infos


def _api_url(filesystem: Any, location: Any, endpoint: str) -> str:
    """Return the URL of an endpoint of the Hub's API for a repository or bucket."""
    root = f"{filesystem.endpoint}/api"
    if hasattr(location, "bucket_id"):
        return f"{root}/buckets/{location.bucket_id}/{endpoint}"
    revision = quote(location.revision, safe="")
    return f"{root}/{location.repo_type}s/{location.repo_id}/{endpoint}/{revision}"


def _file_info(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the info of a file in fsspec's form from an entry of the Hub."""
    return {
        "name": path,
        "type": entry["type"],
        "size": entry.get("size"),
        "blob_id": entry.get("oid"),
        "xet_hash": entry.get("xetHash"),
        "mtime": entry.get("mtime"),
    }


def _upload(filesystem: Any, data: bytes | str, path: str, parent: str | None = None) -> None:
    """Commit a file, given as bytes or as the path of a local file.

    Parameters
    ----------
    filesystem : HfFileSystem
    data : bytes or str
    path : str
    parent : str, optional
        The commit that must be the newest on the branch.
    """
    location, api = filesystem.resolve_path(path), filesystem._api
    if hasattr(location, "bucket_id"):
        api.batch_bucket_files(location.bucket_id, add=[(data, location.path)])
    else:
        repo = {"repo_id": location.repo_id, "repo_type": location.repo_type}
        api.upload_file(
            path_or_fileobj=data, path_in_repo=location.path, revision=location.revision,
            parent_commit=parent, **repo,
        )  # fmt: skip


async def commit_file(filesystem: Any, path: str, data: bytes) -> None:
    """Commit a new file; raise FileExistsError if the file exists."""
    location = filesystem.resolve_path(path)
    _require_commits(location)
    await filesystem.threads.run(lambda _: _commit(filesystem, location, path, data, None))


async def replace_file(filesystem: Any, path: str, data: bytes, tag: Tag) -> None:
    """Commit a file in place of another version; raise FileExistsError if the file has changed."""
    location, version = filesystem.resolve_path(path), tag.info["blob_id"]
    _require_commits(location)
    await filesystem.threads.run(lambda _: _commit(filesystem, location, path, data, version))


def _require_commits(location: Any) -> None:
    """Raise OSError for a bucket, which has no commits and so no conditional uploads."""
    if hasattr(location, "bucket_id"):
        raise OSError(errno.EOPNOTSUPP, "a bucket creates or replaces no file conditionally")


def _commit(filesystem: Any, location: Any, path: str, data: bytes, version: str | None) -> None:
    """Commit a file if its version on the branch is `version`; None means that there is no file."""
    api = filesystem._api
    repo = {"repo_id": location.repo_id, "repo_type": location.repo_type}
    while True:
        newest_commit = api.repo_info(revision=location.revision, **repo).sha
        infos = api.get_paths_info(paths=[location.path], revision=newest_commit, **repo)
        if [file.blob_id for file in infos] != ([] if version is None else [version]):
            raise FileExistsError(path)
        try:
            _upload(filesystem, data, path, parent=newest_commit)
            return
        except import_module("huggingface_hub.errors").HfHubHTTPError as error:
            # Another process has committed first. The loop needs no limit: each retry follows a
            # commit of another process.
            if error.response.status_code != HTTPStatus.PRECONDITION_FAILED:
                raise


def _in_thread(method: Any) -> Any:
    """Return a coroutine function that calls a method in a thread."""

    async def call(self: Any, *args: Any) -> Any:
        return await self.threads.run(lambda _: method(self, *args))

    return call
