"""Checks that HTTP responses match their requests.

Drivers return the bytes that a server sends, without checks. A broken server or proxy may answer a
range request with another range, the whole file, a compressed body, or a body that never ends.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol

from npstream._core.arguments import quantity

__all__ = [
    "NO_RANGES",
    "RangeRequest",
    "Response",
    "ResponseError",
    "SurplusError",
    "check_encoding",
    "check_range",
    "file_info",
    "file_size",
    "http_info",
    "http_range",
    "info_with_size",
    "read_body",
    "read_range",
    "read_whole",
]

_RANGE = re.compile(r"\s*bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)\s*", re.I)

_SUFFIXES = {
    "gzip": (".gz",),
    "x-gzip": (".gz",),
    "br": (".br",),
    "zstd": (".zstd", ".zst"),
    "deflate": (),
    "compress": (),
    "x-compress": (),
    "dcb": (),
    "dcz": (),
}
"""Content encodings that change the body, and the suffixes of files stored in that encoding."""

_TAG_HEADERS = ("ETag", "Content-MD5", "Digest", "Last-Modified")
"""Headers whose values change when the file changes."""

NO_RANGES = (
    "the server ignores Range requests: let it answer them, or copy the dataset to a local "
    "directory"
)


class Headers(Protocol):
    """The headers of a response: a case-insensitive mapping, or one with lower-case keys."""

    def get(self, name: str, /) -> str | None:
        """Return the value of a header, or None."""


class Response(NamedTuple):
    """A response to a range request.

    Attributes
    ----------
    status : int
    headers : Headers
    name : str
        The name of the file.
    read : callable
        Reads at most the given number of bytes of the undecoded body; b"" at the end.
    """

    status: int
    headers: Headers
    name: str
    read: Callable[[int], Awaitable[bytes]]


RangeRequest = Callable[[Any, str, int, int | None], AbstractAsyncContextManager[Response]]
"""Sends a range request. The arguments are the filesystem, the path, the start and the end.

If the end is None, the request is for the whole file. Not all drivers support that.
"""


class ResponseError(Exception):
    """A response does not match its request.

    Parameters
    ----------
    message : str
    transient : bool
        True if the same request may succeed later.
    """

    def __init__(self, message: str, transient: bool = True) -> None:
        super().__init__(message)
        self.transient = transient


class SurplusError(ResponseError):
    """A body is longer than expected.

    Parameters
    ----------
    max_bytes : int
        The maximum length in bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"more than {quantity(max_bytes, 'byte')} came", transient=False)


def check_range(status: int, headers: Headers, name: str, start: int, end: int) -> int | None:
    """Raise ResponseError unless a response holds bytes `start` to `end` of a file.

    A response with the whole file is valid if the range is the whole file. Some servers leave out
    Content-Range: a partial response without it is valid if it has the length of the range.

    Parameters
    ----------
    status : int
    headers : Headers
    name : str
        The name of the file.
    start, end : int

    Returns
    -------
    int or None
        The length of the body, if the response gives it.

    Examples
    --------
    >>> check_range(206, {"content-range": "bytes 2-5/9", "content-length": "4"}, "a", 2, 6)
    4
    >>> check_range(206, {"content-range": "bytes 0-3/9"}, "a", 2, 6)
    Traceback (most recent call last):
    npstream.storage.responses.ResponseError: bytes 0 to 4 came; expected 2 to 6
    """
    length = _length(headers)
    if status == 206:
        header = _header(headers, "Content-Range")
        match = _RANGE.fullmatch(header or "")
        if header is None and length == end - start and not _is_multipart(headers):
            first, stop = start, end
        elif match is None or match[1] is None:
            raise ResponseError(
                f"the response does not name its range: Content-Range is {header!r}; expected "
                f"bytes {start} to {end}"
            )
        else:
            first, stop = int(match[1]), int(match[2]) + 1
        if first == start and start < stop < end and match and match[3] == str(stop):
            raise ResponseError(
                f"{stop - start:,} of {quantity(end - start, 'byte')} came, and the file ends"
            )
        if (first, stop) != (start, end):
            raise ResponseError(f"bytes {first} to {stop} came; expected {start} to {end}")
    elif status == 200:
        if start or length not in (None, end):
            came = "a whole file" if length is None else quantity(length, "byte")
            raise ResponseError(f"{came} came; {NO_RANGES}", transient=False)
    else:
        raise ResponseError(f"the server answered with status {status}; expected 206")
    check_encoding(headers, name)
    if length is not None and length != end - start:
        raise ResponseError(
            f"{length:,} of {quantity(end - start, 'byte')} came", length < end - start
        )
    return length


def check_encoding(headers: Headers, name: str) -> None:
    """Raise ResponseError if the server compressed the body.

    Some servers also send Content-Encoding for files that are stored compressed, and leave the
    bytes unchanged. This is accepted if the file's suffix matches the encoding.
    """
    header = (_header(headers, "Content-Encoding") or "").lower()
    codings = [coding for part in header.split(",") if (coding := part.strip()) in _SUFFIXES]
    if codings and not (len(codings) == 1 and name.lower().endswith(_SUFFIXES[codings[0]])):
        raise ResponseError(
            f"the body is encoded as {header!r}, which was not requested: configure the server and "
            "its proxies to send files as they are stored",
            transient=False,
        )


async def read_whole(request: RangeRequest, filesystem: Any, path: str, max_bytes: int) -> bytes:
    """Read a whole file of at most `max_bytes` bytes."""
    async with request(filesystem, path, 0, None) as response:
        if response.status != 200:
            raise ResponseError(f"the server answered with status {response.status}; expected 200")
        check_encoding(response.headers, response.name)
        return await read_body(response.read, max_bytes)


async def read_range(
    request: RangeRequest, filesystem: Any, path: str, start: int, end: int
) -> bytes:
    """Read a range with one request, and check the response."""
    async with request(filesystem, path, start, end) as response:
        check_range(response.status, response.headers, response.name, start, end)
        try:
            return await read_body(response.read, end - start)
        except SurplusError as error:
            reason = f"{error}; {NO_RANGES}" if response.status == 200 else str(error)
            raise ResponseError(reason, transient=False) from None


async def info_with_size(
    head: Callable[[Any, str], Awaitable[dict[str, Any]]],
    request: RangeRequest,
    filesystem: Any,
    path: str,
) -> dict[str, Any]:
    """Return a file's info, with the size from a range request if `head` returns none.

    Some proxies remove Content-Length from the response to HEAD.

    Parameters
    ----------
    head : callable
        Gets the info with one request.
    request : RangeRequest
    filesystem
    path : str
    """
    info = await head(filesystem, path)
    if info.get("size") is not None or info.get("type") == "directory":
        return info
    async with request(filesystem, path, 0, 1) as response:
        return info | file_info(response.status, response.headers, response.name)


def file_info(status: int, headers: Headers, name: str) -> dict[str, Any]:
    """Return the info of a file, in fsspec's form, from a response."""
    tags = {tag: text for tag in _TAG_HEADERS if (text := _header(headers, tag))}
    return {"name": name, "type": "file", "size": file_size(status, headers, name), **tags}


def file_size(status: int, headers: Headers, name: str) -> int | None:
    """Return the size of a file from a response to a request for it or for a range."""
    check_encoding(headers, name)
    if status == 200:
        return _length(headers)
    match = _RANGE.fullmatch(_header(headers, "Content-Range") or "")
    return int(match[3]) if match is not None and match[3] != "*" else None


async def read_body(read: Callable[[int], Awaitable[bytes]], max_bytes: int) -> bytes:
    """Read a body to its end. Raise SurplusError as soon as it is longer than `max_bytes` bytes.

    Parameters
    ----------
    read : callable
        Reads at most the given number of bytes; b"" at the end.
    max_bytes : int
    """
    parts, remaining = [], max_bytes
    while data := await read(remaining + 1):
        parts.append(data)
        remaining -= len(data)
        if remaining < 0:
            raise SurplusError(max_bytes)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _length(headers: Headers) -> int | None:
    text = _header(headers, "Content-Length")
    return int(text) if text and text.strip().isdecimal() else None


def _is_multipart(headers: Headers) -> bool:
    return (_header(headers, "Content-Type") or "").strip().lower().startswith("multipart/")


def _header(headers: Headers, name: str) -> str | None:
    return headers.get(name) or headers.get(name.lower())


# Requests to web servers, through fsspec's HTTP filesystem. Its own methods accept any response,
# and report any failure as a missing file.

_IDENTITY = {"Accept-Encoding": "identity"}

_FATAL = (401, 402, 407, 408, 425, 429)
"""Statuses of a HEAD request after which GET would fail as well."""


async def http_info(filesystem: Any, path: str) -> dict[str, Any]:
    """Return the info of a file: from HEAD or, if that gives no size, from GET."""
    from aiohttp import ClientResponseError

    try:
        async with _send(filesystem, "HEAD", path, {}) as response:
            info = file_info(response.status, response.headers, response.url.path)
            if info["size"] is not None:
                return info
    except ClientResponseError as error:
        # Some URLs are signed only for GET, and some servers do not support HEAD.
        if error.status in _FATAL or (error.status >= 500 and error.status != 501):
            raise
    except ResponseError:
        pass  # the server would compress the body; perhaps it compresses no ranges
    # The status is 416 if the file is empty. Content-Range then has the size 0.
    async with _send(filesystem, "GET", path, {"Range": "bytes=0-0"}, 416) as response:
        return file_info(response.status, response.headers, response.url.path)


@asynccontextmanager
async def http_range(
    filesystem: Any, path: str, start: int, end: int | None
) -> AsyncIterator[Response]:
    """Request a range of a file, or the whole file if `end` is None."""
    headers = {} if end is None else {"Range": f"bytes={start}-{end - 1}"}
    async with _send(filesystem, "GET", path, headers) as response:
        yield Response(response.status, response.headers, response.url.path, response.content.read)


@asynccontextmanager
async def _send(
    filesystem: Any, method: str, path: str, headers: dict[str, str], allowed: int = 0
) -> AsyncIterator[Any]:
    """Send a request with the user's options. Raise for error statuses except `allowed`."""
    session = await filesystem.set_session()
    options = {"allow_redirects": True, **filesystem.kwargs, "auto_decompress": False}
    options["headers"] = {**_IDENTITY, **(options.get("headers") or {}), **headers}
    url = filesystem.encode_url(path)
    async with session.request(method, url, **options) as response:
        if response.status != allowed:
            response.raise_for_status()
        yield response
