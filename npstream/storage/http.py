"""Requests to web servers through fsspec's HTTP filesystem.

Requests use the filesystem's session and options, but not its own methods: these accept any
response, and report any failure as a missing file.

Tested in tests/storage/test_responses.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from npstream.storage.responses import Response, ResponseError, file_info

__all__ = ["request_info", "request_range"]

_IDENTITY = {"Accept-Encoding": "identity"}

_FATAL = (401, 402, 407, 408, 425, 429)
"""Statuses of a HEAD request after which GET would fail as well."""


async def request_info(filesystem: Any, path: str) -> dict[str, Any]:
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
        pass  # the server compressed the body; it may not compress a range
    async with _send(filesystem, "GET", path, {"Range": "bytes=0-0"}, 416) as response:
        return file_info(response.status, response.headers, response.url.path)


@asynccontextmanager
async def request_range(
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
