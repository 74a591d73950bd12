"""Range requests to S3 through obstore, which is faster than s3fs for small ranges.

Many settings and conventions determine how s3fs reaches a bucket: endpoint, region, address style,
headers and credentials. So s3fs sends the first requests, and obstore is configured to send the
same. If obstore does not support one of the settings, s3fs continues to read.
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

WARMUP_READS = 32
"""The number of ranges that s3fs reads before obstore starts.

Starting obstore takes 20 to 50 ms. It saves this time only after about this many ranges. Moreover,
obstore's threads do not survive a fork, and in the child obstore would wait for them for ever.
Opening and inspecting a dataset takes fewer reads. A process may therefore open a dataset and then
fork workers, because obstore has not started yet.
"""

MAX_RANGE = 1 << 20
"""The largest range that obstore reads, in bytes.

For larger ranges it saves little time, and needs twice the memory.
"""

_NO_TIMEOUT = "365days"  # npstream cancels requests at their deadlines

_BEFORE_SEND = "before-send.s3.GetObject"  # botocore's event

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]+/\d{8}/([^/,]+)/s3/aws4_request,")
"""Finds the region in the Authorization header of a signed request."""

_HEADERS = {
    *("accept-encoding", "authorization", "host", "range", "user-agent"),
    *("amz-sdk-invocation-id", "amz-sdk-request"),
    *("x-amz-checksum-mode", "x-amz-content-sha256", "x-amz-date", "x-amz-request-payer"),
    *("x-amz-security-token", "x-amz-user-agent", "x-amzn-trace-id"),
}
"""Headers that obstore sends as well, or that do not affect a range."""

# These patterns find the parts of a server's response in the texts of obstore's exceptions.
_STATUS = re.compile(r"non-2xx status code: (\d{3}) ?([^:\n]*)")
_CODE, _MESSAGE = (re.compile(f"<{tag}>([^<]*)</{tag}>") for tag in ("Code", "Message"))
# These patterns search the debugging output of a Rust error, which such a text ends with.
_REASON = re.compile(r'(?:message|error): "([^"\n]*)"')
_OS_CODE = re.compile(r"\bOs \{\s*code: (\d+),")
_NO_ANSWER = re.compile(r"\bkind: Connect\b|\bParse\(|\bUnexpectedMessage\b")

_obstore_pids: set[int] = set()
"""The id of the process that loaded obstore, if any: this process, or a parent that forked it."""


def fast_ranges(
    driver_class: type, driver_read: Callable[..., Any], redact: Callable[[str], str]
) -> FastRanges | None:
    """Return an object that reads ranges instead of the driver, or None.

    Parameters
    ----------
    driver_class : type
    driver_read : callable
        Reads a range through the driver.
    redact : callable
        Returns a message without secrets.

    Examples
    --------
    >>> from fsspec.implementations.memory import MemoryFileSystem
    >>> fast_ranges(MemoryFileSystem, MemoryFileSystem.cat_file, str) is None
    True
    """
    setting = os.environ.get("NPSTREAM_OBSTORE", "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"NPSTREAM_OBSTORE={setting!r}: expected 0 or 1")
    is_s3fs = driver_class.__module__.partition(".")[0] == "s3fs"
    if not is_s3fs or setting == "0" or find_spec("obstore") is None:
        return None
    return FastRanges(driver_read, redact)


class FastRanges:
    """Reads ranges of objects in one bucket through obstore. Use it in one event loop only.

    Parameters
    ----------
    driver_read : callable
        Reads a range through s3fs.

    Attributes
    ----------
    state : str
        "watching" while s3fs reads, "trying" from the first read through obstore, "proven" after
        obstore has read a range, or "off".
    """

    def __init__(self, driver_read: Callable[..., Any], redact: Callable[[str], str]) -> None:
        self.state = "watching"
        self._driver_read = driver_read
        self._redact = redact
        self._reads = 0
        self._client: Any = None  # botocore's client, while its requests are recorded
        self._last_request: Any = None
        self._bucket = ""
        self._make_store: Callable[[Any], Any]
        self._store: Any = None
        self._credentials: Any = None
        self._frozen_credentials: Any = None  # botocore's snapshot of them

    async def __call__(self, filesystem: Any, path: str, start: int, end: int) -> Any:
        """Return a range of an object with one request; raise the exceptions that s3fs raises."""
        if self.state == "off" or end - start > MAX_RANGE:
            return await self._driver_read(filesystem, path, start, end)
        if self.state == "watching":
            data = await self._read_and_watch(filesystem, path, start, end)
            self._reads += 1
            if self._reads >= WARMUP_READS and self.state == "watching":
                await self._configure(filesystem, path)
            return data
        bucket, key, version = filesystem.split_path(path)
        if bucket == self._bucket and version is None:
            return await self._read(filesystem, path, key, start, end)
        return await self._driver_read(filesystem, path, start, end)

    async def _read_and_watch(self, filesystem: Any, path: str, start: int, end: int) -> Any:
        """Read through s3fs, and record the request that it sends."""
        client = await filesystem.set_session()
        if client is not self._client:
            self._client = client
            client.meta.events.register(_BEFORE_SEND, self._record_request)
        return await self._driver_read(filesystem, path, start, end)

    def _record_request(self, request: Any, **_: Any) -> None:
        self._last_request = request

    async def _configure(self, filesystem: Any, path: str) -> None:
        """Configure obstore to send the same requests as s3fs has sent for the object at `path`."""
        bucket, key, version = filesystem.split_path(path)
        request, suffix = self._last_request, "/" + quote(key, safe="/~")
        if request is None or version is not None or not request.url.endswith(suffix):
            return  # the last request was for another object; try again after the next read
        headers = {name.lower(): _as_str(value) for name, value in request.headers.items()}
        try:
            if _obstore_pids - {os.getpid()}:
                raise _UnsupportedError("a process that had begun to use obstore was forked")
            # Add the process before the import. A child that is forked during the import inherits a
            # locked import lock, so it must not import obstore.
            _obstore_pids.add(os.getpid())
            certificates = _trusted_certificates(filesystem, self._client)
            base = request.url.removesuffix(suffix)
            self._make_store = _store_factory(bucket, base, headers, certificates)
            signed = "authorization" in headers
            self._credentials = self._client._get_credentials() if signed else None
            await self._refresh_credentials()
        except Exception as error:
            is_expected = isinstance(error, _UnsupportedError)
            self._give_up(str(error) if is_expected else type(error).__name__)
        if self.state == "watching":
            self._bucket, self.state = bucket, "trying"
            self._stop_watching()

    async def _refresh_credentials(self) -> None:
        """Use the current credentials of s3fs, which renews them before they expire."""
        frozen_credentials = self._credentials and await self._credentials.get_frozen_credentials()
        if self._store is None or frozen_credentials != self._frozen_credentials:
            self._store = self._make_store(frozen_credentials)
            self._frozen_credentials = frozen_credentials

    async def _read(self, filesystem: Any, path: str, key: str, start: int, end: int) -> Any:
        """Read through obstore; if obstore may lack a setting of s3fs, read through s3fs."""
        await self._refresh_credentials()
        try:
            data = await _get(self._store, key, start, end)
        except ValueError:  # obstore does not support keys such as a//b
            return await self._driver_read(filesystem, path, start, end)
        except Exception as error:
            converted = _as_driver_error(error)
            if self.state == "proven" and isinstance(converted, _NoAnswerError):
                # Through s3fs, the exception names the reason.
                return await self._driver_read(filesystem, path, start, end)
            if self.state == "proven" or not _may_succeed_through_s3fs(converted):
                raise converted from None
            self._give_up(str(converted))
            return await self._driver_read(filesystem, path, start, end)
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
            self._client.meta.events.unregister(_BEFORE_SEND, self._record_request)
        self._client = self._last_request = None


class _UnsupportedError(Exception):
    """obstore cannot send the same requests as s3fs."""


class _NoAnswerError(ConnectionError):
    """The server sent no answer, for a reason that obstore's exception does not name.

    Possible reasons are an unknown host, an untrusted certificate and another protocol.
    """


def _store_factory(
    bucket: str, base: str, headers: Mapping[str, str], certificates: bytes | None
) -> Callable[[Any], Any]:
    """Return a function that makes, from credentials, a store that sends the requests of s3fs."""
    scope = _SCOPE.match(headers.get("authorization", ""))
    if scope is None and "authorization" in headers:
        raise _UnsupportedError("s3fs signs in another way")
    if unsupported := sorted(headers.keys() - _HEADERS):
        raise _UnsupportedError(f"obstore cannot send {', '.join(unsupported)}")
    store = import_module("obstore.store").S3Store
    settings = {
        # With virtual_hosted_style_request, the endpoint is the URL of the bucket itself. Both
        # keys are set: otherwise aws_endpoint_url_s3 from the environment would take precedence.
        **dict.fromkeys(("endpoint", "aws_endpoint_url_s3"), base),
        "virtual_hosted_style_request": True,
        "region": scope[1] if scope else "us-east-1",
        "skip_signature": scope is None,
        "request_payer": "x-amz-request-payer" in headers,
    }
    client: dict[str, Any] = {"timeout": _NO_TIMEOUT, "connect_timeout": _NO_TIMEOUT}
    client["allow_http"] = base.startswith("http://")
    if certificates is not None:
        client["root_certificate"] = certificates

    def make(frozen_credentials: Any) -> Any:
        def make_credentials() -> dict[str, Any]:
            return {
                "access_key_id": frozen_credentials.access_key,
                "secret_access_key": frozen_credentials.secret_key,
                "token": frozen_credentials.token,
                "expires_at": None,
            }

        return store(
            bucket, config=settings, client_options=client, retry_config={"max_retries": 0},
            credential_provider=make_credentials if frozen_credentials else None,
        )  # fmt: skip

    return make


def _trusted_certificates(filesystem: Any, client: Any) -> bytes | None:
    """Return the certificates that s3fs is configured to trust, or None for the default."""
    config = client.meta.config
    if config.proxies or config.proxies_config or config.client_cert:
        raise _UnsupportedError("a proxy or a client's certificate is set")
    verify = filesystem.client_kwargs.get("verify")
    if verify is None:
        verify = filesystem.session.get_config_variable("ca_bundle")
    if verify is False:
        raise _UnsupportedError("certificates are not verified")
    return Path(verify).read_bytes() if isinstance(verify, str) else None


async def _get(store: Any, key: str, start: int, end: int) -> bytes:
    """Return a range. obstore itself compares Content-Range with the request."""
    response = await import_module("obstore").get_async(store, key, options={"range": (start, end)})
    check_encoding({"content-encoding": response.attributes.get("Content-Encoding")}, key)
    body = aiter(response.stream(min_chunk_size=end - start))
    parts, remaining = [], end - start
    # The end of the stream is not read: waiting for it would double the time of a small range.
    while remaining > 0:
        part = await anext(body, b"")
        if not part:
            raise ResponseError(
                f"{end - start - remaining:,} of {quantity(end - start, 'byte')} came"
            )
        parts.append(part)
        remaining -= len(part)
    if remaining:
        raise SurplusError(end - start)
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def _as_driver_error(error: Exception) -> Exception:
    """Return the exception that s3fs would raise for an exception of obstore."""
    if isinstance(error, ResponseError):
        return error
    text, _, details = str(error).partition("\n\nDebug source:")
    if (status := _STATUS.search(text)) is not None:
        code, match = _CODE.search(text), _MESSAGE.search(text)
        response = {
            "Error": {
                "Code": code[1] if code else status[1],
                "Message": match[1] if match else status[2],
            },
            "ResponseMetadata": {"HTTPStatusCode": int(status[1])},
        }
        client_error = import_module("botocore.exceptions").ClientError
        converted: Exception = client_error(response, "GetObject")
        return converted
    if "non-partial response" in text:
        return ResponseError("a whole object came; the server ignores Range requests", False)
    message = ": ".join([text, *_REASON.findall(details)[-1:]])
    if (code := _OS_CODE.search(details)) is not None:
        return OSError(int(code[1]), message)
    return _NoAnswerError(message) if _NO_ANSWER.search(details) else ConnectionError(message)


def _may_succeed_through_s3fs(error: Exception) -> bool:
    """Return True if s3fs, with its other settings, may read where obstore failed."""
    is_refused = classify(error).code in (errno.EACCES, errno.EINVAL)
    return is_refused or isinstance(error, OSError)


def _as_str(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
