"""Reads of files in object stores through obstore, which takes less time than fsspec's drivers.

obstore reads from the first request on, if it supports all options of the store. Otherwise the
driver reads. Until obstore has read something, the driver repeats each request that the server
refuses. If the driver succeeds, it reads this store from then on. The driver always repeats
requests that fail in obstore for an unknown reason, or because the server leaves out Content-Range.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from npstream._core.arguments import quantity
from npstream._core.log import log
from npstream._core.redaction import redact_url
from npstream.storage.engines.azure import azure_target
from npstream.storage.engines.gcs import gcs_target
from npstream.storage.engines.library import (
    ForkError,
    Library,
    is_installed,
    is_stopped,
    load_library,
    register_loop,
)
from npstream.storage.engines.options import Target, UnsupportedOptionError
from npstream.storage.engines.s3 import s3_target
from npstream.storage.failures import classify
from npstream.storage.responses import ResponseError, SurplusError, check_encoding

__all__ = ["Engine", "find_engine"]

DriverCall = Callable[[], Awaitable[Any]]
"""Sends the same request through the driver."""

_MAX_STREAM_BYTES = 1 << 20
"""Bodies of at most this size are read as streams.

A stream ends as soon as more bytes come than were requested, so it finds a server that sends a
wrong Content-Length. obstore reads a larger body to its end. A stream would copy it once more, into
memory that is set to zero first.
"""

_KEPT_BYTES = 1 << 24
"""Blocks of memory up to this size stay in the process when they are freed.

glibc returns freed memory to the kernel unless the process has freed a block of at least this size
before. Without such a block, most bodies would be in new pages, whose page faults take a tenth of
the processor time of reading a dataset.
"""

_TARGETS: dict[str, Callable[[str, Mapping[str, Any]], Target]] = {
    "s3": s3_target,
    "gcs": gcs_target,
    "abfs": azure_target,
}
"""For each driver: translates its options."""

_INFO_KEYS = {
    "S3Store": {"e_tag": "ETag", "last_modified": "LastModified"},
    "GCSStore": {"version": "generation", "e_tag": "etag"},
    "AzureStore": {"e_tag": "etag", "last_modified": "last_modified"},
}
"""For each class of stores: key in obstore's metadata -> key in the info of the driver."""

# These patterns find the parts of a server's response in the texts of obstore's exceptions.
_STATUS = re.compile(r"non-2xx status code: (\d{3}) ?([^:\n]*)")
_CODE, _MESSAGE = (re.compile(f"<{tag}>([^<]*)</{tag}>") for tag in ("Code", "Message"))
# These texts end with the debugging output of a Rust error, which the next patterns search.
_REASON = re.compile(r'(?:message|error): "([^"\n]*)"')
_OS_CODE = re.compile(r"\bOs \{\s*code: (\d+),")
_UNKNOWN = re.compile(
    r"\bkind: Connect\b|\bParse\(|\bUnexpectedMessage\b|\bBareRedirect\b|\bMissingContentLength\b"
)


def find_engine(
    protocol: str, container: str, options: Mapping[str, Any], redact: Callable[[str], str]
) -> Engine | None:
    """Return an engine that reads instead of the driver, or None.

    Parameters
    ----------
    protocol : str
        fsspec's name for the driver.
    container : str
        The name of the bucket or container.
    options : mapping
        The options of the user for the driver.
    redact : callable
        Returns a message without secrets.

    Examples
    --------
    >>> find_engine("memory", "shelf", {}, str) is None
    True
    """
    setting = os.environ.get("NPSTREAM_OBSTORE", "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"NPSTREAM_OBSTORE={setting!r}: expected 0 or 1")
    make_target = _TARGETS.get(protocol)
    if make_target is None or setting == "0" or not is_installed():
        return None
    try:
        target = make_target(container, options)
    except UnsupportedOptionError as error:
        where = redact(redact_url(f"{protocol}://{container}"))
        log("%s is read by fsspec, not obstore: %s", where, redact(str(error)))
        return None
    return Engine(target, redact)


class Engine:
    """Reads files in a bucket or container through obstore. Use it in one event loop only.

    Parameters
    ----------
    target : Target
    redact : callable
        Returns a message without secrets.

    Attributes
    ----------
    container : str
        The name of the bucket or container.
    state : str
        "new" before the first read, "proven" after obstore has read something, or "off" if only the
        driver reads.
    """

    def __init__(self, target: Target, redact: Callable[[str], str]) -> None:
        self.state = "new"
        self._target = target
        self._redact = redact
        self.container = target.container
        self._library: Library
        self._store: Any = None

    def connect(self) -> None:
        """Load obstore, and make its client. This may block; call it in a thread."""
        bytes(_KEPT_BYTES)  # freed at once, and never touched: the kernel clears it when it is used
        try:
            library, target = load_library(), self._target
            credentials = target.make_credentials() if target.make_credentials else None
            config = target.config | {"skip_signature": credentials is None}
            self._store = getattr(library.stores, target.store)(
                target.container, config=config, client_options=target.client,
                retry_config={"max_retries": 0}, credential_provider=credentials,
            )  # fmt: skip
            self._library = library
        except Exception as error:
            is_expected = isinstance(error, ForkError | UnsupportedOptionError)
            self._turn_off(str(error) if is_expected else f"{type(error).__name__}: {error}")

    async def read(self, key: str, start: int, end: int, driver: DriverCall) -> Any:
        """Return a byte range of a file."""
        return await self._perform(key, lambda: self._read(key, start, end), driver)

    async def read_start(self, key: str, nbytes: int, driver: DriverCall) -> Any:
        """Return the info of a file and its first `nbytes` bytes, or all if it has fewer."""
        return await self._perform(key, lambda: self._read_start(key, nbytes), driver)

    async def info(self, key: str, driver: DriverCall) -> Any:
        """Return the info of a file, in the form of the driver."""
        return await self._perform(key, lambda: self._info(key), driver)

    async def _perform(self, key: str, request: DriverCall, driver: DriverCall) -> Any:
        """Perform a request through obstore, or through the driver if obstore cannot."""
        if self.state == "off" or is_stopped() or key.startswith("/") or key.endswith("/"):
            return await driver()  # obstore would remove these slashes
        register_loop()
        try:
            result = await request()
        except ValueError:  # obstore does not support keys such as a//b
            return await driver()
        except Exception as error:
            converted = _as_driver_error(error)
            if not self._may_succeed_through_driver(converted):
                raise converted from None
        else:
            self.state = "proven"
            return result
        result = await driver()  # if the driver fails, too, its exception names the reason
        if self.state == "new":
            self._turn_off(str(converted))
        return result

    def _may_succeed_through_driver(self, error: Exception) -> bool:
        if isinstance(error, _UnknownError):
            return True
        return self.state == "new" and classify(error).code in (errno.EACCES, errno.EINVAL)

    def _turn_off(self, reason: str) -> None:
        self.state = "off"
        where = f"{self._target.store} {self._target.container}"
        log("%s is read by fsspec, not obstore: %s", where, self._redact(reason)[:300])

    async def _read(self, key: str, start: int, end: int) -> memoryview:
        """Return a byte range. No check of Content-Range is needed: obstore checks it."""
        return await _read_body(await self._get(key, start, end), key, end - start)

    async def _read_start(self, key: str, nbytes: int) -> tuple[dict[str, Any], bytes]:
        try:
            response = await self._get(key, 0, nbytes)
        except Exception as error:
            if classify(_as_driver_error(error)).code != errno.ERANGE:
                raise
            return await self._info(key), b""  # the file is empty
        info = _file_info(key, response.meta, _INFO_KEYS[self._target.store])
        _, end = response.range
        return info, bytes(await _read_body(response, key, end))

    async def _get(self, key: str, start: int, end: int) -> Any:
        options = {"range": (start, end)}
        return await self._library.get_async(self._store, key, options=options)

    async def _info(self, key: str) -> dict[str, Any]:
        metadata = await self._library.head_async(self._store, key)
        return _file_info(key, metadata, _INFO_KEYS[self._target.store])


async def _read_body(response: Any, key: str, nbytes: int) -> memoryview:
    """Read the body of a response, which must have `nbytes` bytes.

    The result is a view of obstore's memory. To copy a large body here would block the event loop.
    """
    check_encoding({"content-encoding": response.attributes.get("Content-Encoding")}, key)
    if nbytes > _MAX_STREAM_BYTES:
        part = await response.bytes_async()
    else:
        # The end of the stream is not read.
        part = await anext(aiter(response.stream(min_chunk_size=nbytes)), b"")
    body = memoryview(part)
    if len(body) < nbytes:
        raise ResponseError(f"{len(body):,} of {quantity(nbytes, 'byte')} came")
    if len(body) > nbytes:
        raise SurplusError(nbytes)
    return body


class _ServerError(Exception):
    """An error that the server answered with, in the form of botocore's exceptions.

    Attributes
    ----------
    response : dict
        The status, the code and the message.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code or status}: {message}" if message else code or str(status))
        self.response = {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }


class _UnknownError(ConnectionError):
    """obstore failed where the driver may succeed, or may name the reason.

    Possible reasons are an unknown host, an untrusted certificate, another protocol, a redirect,
    and a response that does not name its range, which obstore always refuses.
    """


def _file_info(
    key: str, metadata: Mapping[str, Any], driver_keys: Mapping[str, str]
) -> dict[str, Any]:
    """Return the info of a file, in the form of the driver, from obstore's metadata."""
    tags = {name: metadata[source] for source, name in driver_keys.items() if metadata[source]}
    return {"name": key, "type": "file", "size": metadata["size"], **tags}


def _as_driver_error(error: Exception) -> Exception:
    """Return the exception that a driver would raise for an exception of obstore."""
    if isinstance(error, ResponseError):
        return error
    text, _, details = str(error).partition("\n\nDebug source:")
    if (status := _STATUS.search(text)) is not None:
        code, match = _CODE.search(text), _MESSAGE.search(text)
        return _ServerError(
            int(status[1]), code[1] if code else "", match[1] if match else status[2]
        )
    if "credential provider" in text:
        return _UnknownError("the credentials could not be read")
    if "non-partial response" in text:
        return ResponseError("a whole object came; the server ignores Range requests", False)
    message = ": ".join([text, *_REASON.findall(details)[-1:]])
    if (code := _OS_CODE.search(details)) is not None:
        return OSError(int(code[1]), message)
    if _UNKNOWN.search(details) or "Content-Range header not present" in text:
        return _UnknownError(message)
    return ConnectionError(message)
