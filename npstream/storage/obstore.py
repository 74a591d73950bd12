"""Small ranges of objects in S3 by obstore, where it is installed; all else is s3fs's.

s3fs goes first: how it reaches a bucket (endpoint, region, style of address, headers), and as whom,
comes of many settings and conventions, so what it sends is looked at, and obstore told to send the
same. What obstore cannot be told goes on through s3fs.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from npstream._core.arguments import quantity
from npstream._core.log import log
from npstream.storage.failures import classify
from npstream.storage.responses import ResponseError, SurplusError, check_encoding

__all__ = ["FastRanges", "fast_ranges"]

FIRST = 32
"""How many of them s3fs reads first: opening a dataset, and a look at it, take fewer.

To start obstore takes 20 to 50 ms, as much as it saves in so many. And its threads are not in
forked processes, where it would wait for them for ever. A process that has done no more than open
a dataset has none yet, so the workers that it forks get their own.
"""

LARGEST = 1 << 20
"""The most bytes of a range that obstore reads; with more it saves little, and holds them twice."""

_NEVER = "365days"  # who waits for a request gives it up

_BEFORE_SEND = "before-send.s3.GetObject"  # botocore's event

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]+/\d{8}/([^/,]+)/s3/aws4_request,")

_HEADERS = {
    *("accept-encoding", "authorization", "host", "range", "user-agent"),
    *("amz-sdk-invocation-id", "amz-sdk-request"),
    *("x-amz-checksum-mode", "x-amz-content-sha256", "x-amz-date", "x-amz-request-payer"),
    *("x-amz-security-token", "x-amz-user-agent", "x-amzn-trace-id"),
}
"""What obstore sends too, or what makes no difference to a range."""

_STATUS = re.compile(r"non-2xx status code: (\d{3}) ?([^:\n]*)")
_CODE, _MESSAGE = (re.compile(f"<{tag}>([^<]*)</{tag}>") for tag in ("Code", "Message"))
_REASON = re.compile(r'(?:message|error): "([^"\n]*)"')
_OS_CODE = re.compile(r"\bOs \{\s*code: (\d+),")
_NO_ANSWER = re.compile(r"\bkind: Connect\b|\bParse\(|\bUnexpectedMessage\b")

_started: set[int] = set()
"""The processes that loaded obstore: this one, or one that it was forked from."""


def fast_ranges(
    kind: type, by_driver: Callable[..., Any], redact: Callable[[str], str]
) -> FastRanges | None:
    """Return what reads ranges instead of a driver, or None.

    Parameters
    ----------
    kind : type
        The driver's class.
    by_driver : callable
        Reads a range through the driver.
    redact : callable
        Returns a message without secrets.

    Examples
    --------
    >>> from fsspec.implementations.memory import MemoryFileSystem
    >>> fast_ranges(MemoryFileSystem, MemoryFileSystem.cat_file, str) is None
    True
    """
    wanted = os.environ.get("NPSTREAM_OBSTORE", "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"NPSTREAM_OBSTORE={wanted!r}: expected 0 or 1")
    is_s3fs = kind.__module__.partition(".")[0] == "s3fs"
    if not is_s3fs or wanted == "0" or find_spec("obstore") is None:
        return None
    return FastRanges(by_driver, redact)


class FastRanges:
    """Reads ranges of a bucket's objects, in one event loop.

    Parameters
    ----------
    by_driver : callable
        Reads a range through s3fs.

    Attributes
    ----------
    state : str
        "watching" s3fs, "trying" obstore, "proven" when that has read something, or "off".
    """

    def __init__(self, by_driver: Callable[..., Any], redact: Callable[[str], str]) -> None:
        self.state = "watching"
        self._by_driver = by_driver
        self._redact = redact
        self._reads = 0
        self._client: Any = None
        self._sent: Any = None
        self._bucket = ""
        self._make: Callable[[Any], Any]
        self._store: Any = None
        self._credentials: Any = None
        self._frozen: Any = None

    async def __call__(self, filesystem: Any, path: str, start: int, end: int) -> Any:
        """Return a range of an object, by one request; what is raised is as s3fs's."""
        if self.state == "off" or end - start > LARGEST:
            return await self._by_driver(filesystem, path, start, end)
        if self.state == "watching":
            data = await self._watched(filesystem, path, start, end)
            self._reads += 1
            if self._reads >= FIRST and self.state == "watching":
                await self._translate(filesystem, path)
            return data
        bucket, key, version = filesystem.split_path(path)
        if bucket == self._bucket and version is None:
            return await self._read(filesystem, path, key, start, end)
        return await self._by_driver(filesystem, path, start, end)

    async def _watched(self, filesystem: Any, path: str, start: int, end: int) -> Any:
        """Read through s3fs, and note what it sends."""
        client = await filesystem.set_session()
        if client is not self._client:
            self._client = client
            client.meta.events.register(_BEFORE_SEND, self._note)
        return await self._by_driver(filesystem, path, start, end)

    def _note(self, request: Any, **_: Any) -> None:
        self._sent = request

    async def _translate(self, filesystem: Any, path: str) -> None:
        """Prepare obstore to send what s3fs has sent for a file."""
        bucket, key, version = filesystem.split_path(path)
        sent, ending = self._sent, "/" + quote(key, safe="/~")
        if sent is None or version is not None or not sent.url.endswith(ending):
            return  # it was for another file; perhaps the next one is not
        headers = {name.lower(): _text(value) for name, value in sent.headers.items()}
        try:
            if _started - {os.getpid()}:
                raise _NotAlikeError("a process that had begun to use it was forked")
            # Before it is imported: a child that is forked during that finds the import locked.
            _started.add(os.getpid())
            trusted = _trust(filesystem, self._client)
            self._make = _maker(bucket, sent.url.removesuffix(ending), headers, trusted)
            signed = "authorization" in headers
            self._credentials = self._client._get_credentials() if signed else None
            await self._renew()
        except Exception as error:
            told = str(error) if isinstance(error, _NotAlikeError) else type(error).__name__
            self._give_up(told)
        if self.state == "watching":
            self._bucket, self.state = bucket, "trying"
            self._stop_watching()

    async def _renew(self) -> None:
        """Take the credentials that s3fs has, and renews before they expire."""
        frozen = self._credentials and await self._credentials.get_frozen_credentials()
        if self._store is None or frozen != self._frozen:
            self._store, self._frozen = self._make(frozen), frozen

    async def _read(self, filesystem: Any, path: str, key: str, start: int, end: int) -> Any:
        """Read by obstore; by s3fs if that is refused what it was never given."""
        await self._renew()
        try:
            data = await _get(self._store, key, start, end)
        except ValueError:  # it has no name for an object like a//b
            return await self._by_driver(filesystem, path, start, end)
        except Exception as error:
            failure = _failure(error)
            if self.state == "proven" and isinstance(failure, _NoAnswerError):
                # s3fs says what is wrong.
                return await self._by_driver(filesystem, path, start, end)
            if self.state == "proven" or not _is_doubtful(failure):
                raise failure from None
            self._give_up(str(failure))
            return await self._by_driver(filesystem, path, start, end)
        if self.state == "trying":
            self.state = "proven"
        return data

    def _give_up(self, reason: str) -> None:
        if self.state != "off":
            log("ranges are read by s3fs, not obstore: %s", self._redact(reason)[:300])
        self.state = "off"
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._client is not None:
            self._client.meta.events.unregister(_BEFORE_SEND, self._note)
        self._client = self._sent = None


class _NotAlikeError(Exception):
    """What s3fs does obstore cannot be told."""


class _NoAnswerError(ConnectionError):
    """No answer came, for a reason that obstore does not tell from others.

    That may be an unknown host, an untrusted certificate or another protocol.
    """


def _maker(
    bucket: str, base: str, headers: Mapping[str, str], trusted: bytes | None
) -> Callable[[Any], Any]:
    """Return what makes, of credentials, a store that sends what s3fs has sent."""
    scope = _SCOPE.match(headers.get("authorization", ""))
    if scope is None and "authorization" in headers:
        raise _NotAlikeError("it signs in another way")
    if unknown := sorted(headers.keys() - _HEADERS):
        raise _NotAlikeError(f"it cannot send {', '.join(unknown)}")
    store = import_module("obstore.store").S3Store
    settings = {
        # The place of the bucket itself, for which "virtual hosted" stands. It takes a name of
        # the second from the environment, before the first.
        **dict.fromkeys(("endpoint", "aws_endpoint_url_s3"), base),
        "virtual_hosted_style_request": True,
        "region": scope[1] if scope else "us-east-1",
        "skip_signature": scope is None,
        "request_payer": "x-amz-request-payer" in headers,
    }
    client: dict[str, Any] = {"timeout": _NEVER, "connect_timeout": _NEVER}
    client["allow_http"] = base.startswith("http://")
    if trusted is not None:
        client["root_certificate"] = trusted

    def make(frozen: Any) -> Any:
        def credentials() -> dict[str, Any]:
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": None,
            }

        return store(
            bucket, config=settings, client_options=client, retry_config={"max_retries": 0},
            credential_provider=credentials if frozen else None,
        )  # fmt: skip

    return make


def _trust(filesystem: Any, client: Any) -> bytes | None:
    """Return the certificates that s3fs was told to trust."""
    config = client.meta.config
    if config.proxies or config.proxies_config or config.client_cert:
        raise _NotAlikeError("a proxy or a client's certificate is set")
    verify = filesystem.client_kwargs.get("verify")
    if verify is None:
        verify = filesystem.session.get_config_variable("ca_bundle")
    if verify is False:
        raise _NotAlikeError("certificates are not verified")
    return Path(verify).read_bytes() if isinstance(verify, str) else None


async def _get(store: Any, key: str, start: int, end: int) -> bytes:
    """Return a range. obstore itself compares Content-Range with the request."""
    answer = await import_module("obstore").get_async(store, key, options={"range": (start, end)})
    check_encoding({"content-encoding": answer.attributes.get("Content-Encoding")}, key)
    body = aiter(answer.stream(min_chunk_size=end - start))
    parts, left = [], end - start
    while left > 0:  # not until the end of the stream, which takes as long as its first part
        part = await anext(body, b"")
        if not part:
            raise ResponseError(f"{end - start - left:,} of {quantity(end - start, 'byte')} came")
        parts.append(part)
        left -= len(part)
    if left:
        raise SurplusError(end - start)
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def _failure(error: Exception) -> Exception:
    """Return an exception as s3fs's driver raises it for what obstore's text says."""
    if isinstance(error, ResponseError):
        return error
    text, _, details = str(error).partition("\n\nDebug source:")
    if (status := _STATUS.search(text)) is not None:
        code, message = _CODE.search(text), _MESSAGE.search(text)
        answer = {
            "Error": {
                "Code": code[1] if code else status[1],
                "Message": message[1] if message else status[2],
            },
            "ResponseMetadata": {"HTTPStatusCode": int(status[1])},
        }
        made: Exception = import_module("botocore.exceptions").ClientError(answer, "GetObject")
        return made
    if "non-partial response" in text:
        return ResponseError("a whole object came; the server ignores Range requests", False)
    said = ": ".join([text, *_REASON.findall(details)[-1:]])
    if (code := _OS_CODE.search(details)) is not None:
        return OSError(int(code[1]), said)
    return _NoAnswerError(said) if _NO_ANSWER.search(details) else ConnectionError(said)


def _is_doubtful(failure: Exception) -> bool:
    """Tell whether s3fs, with what it knows, might not have failed."""
    refused = classify(failure).code in (errno.EACCES, errno.EINVAL)
    return refused or isinstance(failure, OSError)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
