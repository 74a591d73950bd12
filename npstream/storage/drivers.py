"""Drivers for the schemes of URLs, and the options that npstream gives them.

One table, `SCHEMES`, describes each driver: fsspec's name for it, the package to install, the
options that environment variables set, and how to disable its own retries. npstream does the
retries, because all attempts of a request share one deadline.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import Any

from npstream._core.fork import renew_in_child
from npstream.errors import MissingDependencyError
from npstream.storage import huggingface as hub
from npstream.storage import uploads
from npstream.storage.responses import (
    Response,
    ResponseError,
    SurplusError,
    check_range,
    file_info,
    http_info,
    http_range,
    info_with_size,
    read_range,
    read_whole,
)
from npstream.storage.urls import is_http

__all__ = [
    "SCHEMES",
    "Driver",
    "Route",
    "find_route",
    "import_lock",
    "make_filesystem",
    "missing_driver",
    "protocols_of",
    "same_service",
]

Options = dict[str, Any]

PARAMIKO_LOG = "npstream.paramiko"
"""The logger of paramiko's connections. It is silent unless the user sets its level."""

_KEPT_DEFAULTS = {"endpoint_url", "requester_pays"}  # defaults that `Route.user_options` keeps

_MAX_ERROR_BYTES = 1 << 16
"""The maximum number of bytes to read of an error response."""

_SFTP_DATA = 103
"""The type of an SFTP message that carries data: SSH_FXP_DATA."""


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """The settings from which a driver derives its default options.

    Attributes
    ----------
    bucket : str
        The first component of the URL after the scheme.
    user_options : dict
        The options that the user or the environment set.
    max_requests : int
        The maximum number of concurrent requests.
    timeout : float
        The seconds that one request may take.
    """

    bucket: str = field(repr=False)
    user_options: Options = field(repr=False)
    max_requests: int
    timeout: float


def _no_options(_settings: RouteSettings) -> Options:
    return {}


def _no_op(_filesystem: Any) -> None:
    pass


class _ImportLock:
    """A lock that is held while a driver is imported.

    Modules of some packages, such as Oracle's SDK, import each other. If two threads import
    different modules of such a package concurrently, both may see partly initialized modules.
    """

    def __init__(self) -> None:
        self.reset_process_state()
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """Replace the lock in a forked process: a thread of the parent may have held it."""
        self.lock = threading.RLock()


import_lock = _ImportLock()


@dataclass(frozen=True, slots=True)
class Driver:
    """How npstream uses one of fsspec's filesystems.

    Attributes
    ----------
    protocol : str
        fsspec's name for the filesystem.
    package, extra : str
        The package, and npstream's extra, that install the driver.
    variables : mapping of str to str
        Environment variables, and the options that they set.
    options : callable
        Returns default options from `RouteSettings`.
    load : callable, optional
        Returns the filesystem's class, if it differs from that in fsspec's registry.
    configure : callable
        Prepares a new filesystem: disables its own retries, for example.
    read : callable, optional
        Reads a range with one request and checks the response. Replaces the filesystem's own
        method, which accepts any response.
    read_all : callable, optional
        Reads a file of unknown size, up to a given number of bytes.
    info : callable, optional
        Returns the file's info with one request for the file itself. Replaces methods with one of
        these faults: they list the bucket, which may be forbidden; they report every failure as a
        missing file; they need the length in the response to HEAD.
    can_list : bool
        True if a listing contains all files.
    write : callable, optional
        Stores bytes. Replaces a method that waits for a response after every few bytes.
    create : callable, optional
        Stores bytes as a new file in one atomic step of the server, or raises FileExistsError.
        None if the server has no such step.
    replace : callable, optional
        Stores bytes in place of the version of a file that a `Tag` identifies, in one atomic step
        of the server. Raises FileExistsError, or the driver's exception for the status 412, if the
        file has changed. None if the server has no such step.
    checks_conditions : bool
        False if there are servers that ignore the conditions of `create` and `replace`.
    remove : callable, optional
        Removes a file. Replaces a method that reports a busy server as a missing file.
    close : callable
        Closes the filesystem of a blocking (not asynchronous) driver.
    trust : str
        How the user configures trusted certificates, for messages.
    max_requests : int
        The maximum number of concurrent requests.
    max_uploads : int
        The maximum number of files that one write stores concurrently.
    rename : callable, optional
        Renames a file, or raises FileExistsError if the new name exists. Drivers with `rename` have
        directories and show files while they are being written. npstream therefore writes
        temporary files and renames them last.
    """

    protocol: str
    package: str = ""
    extra: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Callable[[RouteSettings], Options] = _no_options
    load: Callable[[], Any] | None = None
    configure: Callable[[Any], object] = _no_op
    read: Callable[[Any, str, int, int], Any] | None = None
    read_all: Callable[[Any, str, int], Any] | None = None
    info: Callable[[Any, str], Any] | None = None
    can_list: bool = True
    write: Callable[[Any, str, Any], object] | None = None
    create: Callable[[Any, str, bytes], object] | None = None
    replace: Callable[[Any, str, bytes, uploads.Tag], object] | None = None
    checks_conditions: bool = True
    remove: Callable[[Any, str], object] | None = None
    close: Callable[[Any], object] = _no_op
    trust: str = "in SSL_CERT_FILE"
    max_requests: int = 1 << 16
    max_uploads: int = 4
    rename: Callable[[Any, str, str], object] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The driver of a URL, with the URL and the options in the driver's form."""

    driver: Driver
    url: str = field(repr=False)  # may contain secrets
    options: Options = field(repr=False)
    user_options: Options = field(repr=False)  # without the limits that npstream sets
    scheme: str  # of the user's URL, in lower case, such as "s3a"


def find_route(
    url: str, storage_options: Mapping[str, Any], max_requests: int, timeout: float
) -> Route:
    """Find the driver for a URL, and its options.

    Parameters
    ----------
    url : str
    storage_options : mapping
        The user's options, which override all others.
    max_requests : int
        The maximum number of concurrent requests.
    timeout : float
        The seconds that one request may take.

    Examples
    --------
    >>> route = find_route("azure://container/data", {"account_name": "mine"}, 32, 60.0)
    >>> route.url, route.options["account_name"]
    ('abfs://container/data', 'mine')
    """
    scheme, _, address = url.partition("://")
    driver = SCHEMES.get(scheme.lower()) or Driver(scheme.lower())
    if driver is _GCS and not storage_options and _is_set("GCS_KEY", "GCS_SECRET"):
        driver = _GCS_HMAC
    options = {key: os.environ[name] for name, key in driver.variables.items() if _is_set(name)}
    options.update(storage_options)
    max_requests = min(max_requests, driver.max_requests)
    settings = RouteSettings(address.partition("/")[0], options, max_requests, timeout)
    try:
        with import_lock.lock:
            merged = _merge(driver.options(settings), options)
    except ImportError as error:
        raise missing_driver(driver, scheme.lower(), error) from error
    defaults = {name: merged[name] for name in _KEPT_DEFAULTS & merged.keys()}
    own_url = f"{driver.protocol}://{address}"
    return Route(driver, own_url, merged, defaults | options, scheme.lower())


def protocols_of(driver: Driver) -> list[str]:
    """Return fsspec's names for the filesystem of a driver."""
    return sorted({driver.protocol, *(name for name in SCHEMES if SCHEMES[name] == driver)})


def missing_driver(driver: Driver, scheme: str, error: ImportError) -> MissingDependencyError:
    """Return an error that names the package to install for the driver of a URL's scheme."""
    missing_module = getattr(error.__cause__, "name", None) or error.name
    package = driver.package or missing_module or driver.protocol
    return MissingDependencyError(f"{scheme}://", package, driver.extra)


def make_filesystem(filesystem_class: Any, options: Mapping[str, Any], driver: Driver) -> Any:
    """Make a filesystem outside of fsspec's cache, so that no other code changes its settings."""
    filesystem = filesystem_class(**options, skip_instance_cache=True)
    if hasattr(filesystem.dircache, "use_listings_cache"):
        filesystem.dircache.use_listings_cache = False
    driver.configure(filesystem)
    return filesystem


def same_service(url: str, other: str) -> bool:
    """Return True if two URLs have the same driver and, for web addresses, the same host.

    Examples
    --------
    >>> same_service("gs://a/b", "gcs://c"), same_service("https://a/b", "https://b/b")
    (True, False)
    """
    scheme, _, address = url.partition("://")
    other_scheme, _, other_address = other.partition("://")
    scheme, other_scheme = scheme.lower(), other_scheme.lower()
    if is_http(url) or is_http(other):
        host, other_host = address.partition("/")[0], other_address.partition("/")[0]
        return (scheme, host) == (other_scheme, other_host)
    return SCHEMES.get(scheme, scheme) == SCHEMES.get(other_scheme, other_scheme)


def _is_set(*names: str) -> bool:
    return all(os.environ.get(name) for name in names)


def _merge(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> Options:
    """Return `defaults` updated with `options`; mappings among the values are merged as well."""
    merged = dict(defaults)
    for name, value in options.items():
        default = merged.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _merge(default, value)
        merged[name] = value
    return merged


def _s3_options(settings: RouteSettings) -> Options:
    config = {
        "max_pool_connections": settings.max_requests,
        "connect_timeout": settings.timeout,
        "read_timeout": settings.timeout,
        "retries": {"total_max_attempts": 1},
    }
    buckets = os.environ.get("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "").split(",")
    if settings.bucket in [bucket.strip() for bucket in buckets]:
        return {"config_kwargs": config, "requester_pays": True}
    return {"config_kwargs": config}


_S3_TRUST = "in AWS_CA_BUNDLE, or as storage_options={'client_kwargs': {'verify': 'ca.pem'}}"


def _s3_configure(filesystem: Any) -> None:
    filesystem.retries = 1
    if not filesystem.version_aware:
        # s3fs cuts "?versionId=..." off a key. Without versions, that text belongs to the key.
        filesystem.split_path = partial(_split_path, filesystem.split_path, "?versionId=")


def _split_path(
    split: Callable[..., Any], separator: str, path: str, **options: Any
) -> tuple[str, str, None]:
    """Return the bucket and the key of a path.

    `separator` and the text after it belong to the key.
    """
    bucket, key, _ = split(path, **options)
    return bucket, "".join([key, *path.partition(separator)[1:]]), None


async def _s3_head(filesystem: Any, path: str) -> dict[str, Any]:
    bucket, key, version = filesystem.split_path(path)
    arguments = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
    response = await filesystem._call_s3("head_object", filesystem.kwargs, **arguments)
    tags = {tag: response[tag] for tag in ("ETag", "LastModified") if tag in response}
    return {"name": path, "type": "file", "size": response.get("ContentLength"), **tags}


@asynccontextmanager
async def _s3_request(filesystem: Any, path: str, start: int, end: Any) -> AsyncIterator[Response]:
    bucket, key, version = filesystem.split_path(path)
    arguments = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
    if version:
        arguments["VersionId"] = version
    response = await filesystem._call_s3("get_object", **arguments)
    metadata = response["ResponseMetadata"]
    with closing(response["Body"]) as body:
        yield Response(metadata["HTTPStatusCode"], metadata["HTTPHeaders"], key, body.read)


def _gcs_hmac_options(settings: RouteSettings) -> Options:
    options = _s3_options(settings)
    # Google's XML interface does not know the checksums that botocore sends by default.
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        options["config_kwargs"][name] = "when_required"
    return {"endpoint_url": "https://storage.googleapis.com", **options}


def _gcs_load() -> Any:
    """Return gcsfs's class, without support for zonal buckets unless the environment enables it.

    With this support, gcsfs asks by gRPC for the type of a bucket before the first read. Behind a
    proxy or in an emulator nothing answers, and gcsfs gives up only after a minute or more.
    """
    is_zonal = os.environ.get("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "").lower() in ("true", "1")
    base = import_module("gcsfs" if is_zonal else "gcsfs.core").GCSFileSystem
    # A decorator does the retries, and no setting disables it.
    request = getattr(base._request, "__wrapped__", base._request)
    return type(base)("GCSFileSystem", (base,), {"_request": request})


async def _gcs_info(filesystem: Any, path: str) -> Any:
    bucket, key, version = filesystem.split_path(path)
    metadata = await filesystem._call(
        "GET", "b/{}/o/{}", bucket, key, json_out=True, generation=version
    )
    return filesystem._process_object(bucket, metadata)


@asynccontextmanager
async def _gcs_request(filesystem: Any, path: str, start: int, end: Any) -> AsyncIterator[Response]:
    await filesystem._set_session()
    # Without Accept-Encoding, the server decompresses files stored with gzip, and ignores Range.
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "gzip"}
    async with filesystem.session.get(
        filesystem.url(path),
        params=filesystem._get_params({}),
        headers=filesystem._get_headers(headers),
        timeout=filesystem.requests_timeout,
        auto_decompress=False,
    ) as response:
        if response.status >= 400:
            body = await response.content.read(_MAX_ERROR_BYTES)
            import_module("gcsfs.retry").validate_response(response.status, body, path)
        yield Response(response.status, response.headers, path, response.content.read)


async def _gcs_read(filesystem: Any, path: str, start: int, end: int) -> bytes:
    if type(filesystem)._cat_file is not import_module("gcsfs.core").GCSFileSystem._cat_file:
        # Only the class with support for zonal buckets overrides this method.
        return bytes(await filesystem._cat_file(path, start=start, end=end))
    return await read_range(_gcs_request, filesystem, path, start, end)


def _azure_load() -> Any:
    """Return adlfs's class, changed to treat a path without a scheme as a name, not as a URL."""
    base = import_module("adlfs").AzureBlobFileSystem
    # The SDK warns if a server other than Azure answers. A handler keeps Python from printing that.
    if not (log := logging.getLogger("azure")).handlers:
        log.addHandler(logging.NullHandler())

    def strip(cls: Any, path: Any) -> Any:
        is_name = isinstance(path, str) and re.match("[a-z]+://", path) is None
        return path.lstrip("/") if is_name else base._strip_protocol(path)

    return type(base)("AzureBlobFileSystem", (base,), {"_strip_protocol": classmethod(strip)})


def _azure_options(settings: RouteSettings) -> Options:
    return {"connection_timeout": settings.timeout, "read_timeout": settings.timeout}


def _azure_configure(filesystem: Any) -> None:
    filesystem.service_client._config.retry_policy.total_retries = 0
    if not filesystem.version_aware:
        filesystem.split_path = partial(_split_path, filesystem.split_path, "?versionid=")


async def _azure_head(filesystem: Any, path: str) -> dict[str, Any]:
    container, blob, version = filesystem.split_path(filesystem._strip_protocol(path))
    client = filesystem.service_client.get_blob_client(container=container, blob=blob)
    async with client:
        blob = await client.get_blob_properties(version_id=version, **filesystem._timeout_kwargs)
    return dict((await filesystem._details([blob]))[0])


@asynccontextmanager
async def _azure_request(
    filesystem: Any, path: str, start: int, end: Any
) -> AsyncIterator[Response]:
    """Bypass the SDK's downloader, which retries on its own and checks no Content-Range."""
    container, blob, version = filesystem.split_path(filesystem._strip_protocol(path))
    client = filesystem.service_client.get_blob_client(container=container, blob=blob)
    async with client:
        response = await client._client.blob.download(
            range=f"bytes={start}-{end - 1}",
            version_id=version,
            cls=lambda pipeline, *_: pipeline.http_response.internal_response,
            **filesystem._timeout_kwargs,
        )
        with closing(response):
            yield Response(response.status, response.headers, blob, response.content.read)


def _oci_load() -> Any:
    """Return ocifs's class, changed to list without the SDK's paginator, which retries."""
    base = import_module("ocifs").OCIFileSystem
    return type(base)("OCIFileSystem", (base,), {"find": _oci_find})


def _oci_find(self: Any, path: str, detail: bool = True) -> dict[str, Any]:
    bucket, namespace, key = self.split_path(path)
    prefix, start, infos = f"{key}/" if key else "", None, {}
    while True:
        page = self._call_oci(
            self.oci_client.list_objects,
            namespace_name=namespace,
            bucket_name=bucket,
            prefix=prefix,
            start=start,
            fields="name,size",
        ).data
        for entry in page.objects:
            name = f"{bucket}@{namespace}/{entry.name}"
            infos[name] = {"name": name, "type": "file", "size": entry.size}
        if (start := page.next_start_with) is None:
            return infos


def _oci_options(settings: RouteSettings) -> Options:
    retry = import_module("oci.retry").NoneRetryStrategy()
    timeouts = (settings.timeout, settings.timeout)  # to connect, to read
    # By default, ten failures make the SDK's circuit breaker fail all requests for 30 s.
    breaker = import_module("oci.circuit_breaker").NoCircuitBreakerStrategy()
    config = {"retry_strategy": retry, "circuit_breaker_strategy": breaker, "timeout": timeouts}
    options: Options = {"config_kwargs": config}
    # Use the SDK's configuration file, as MosaicML Streaming does. By default, ocifs would use a
    # resource principal.
    if not {"config", "iam_type", "signer"} & set(settings.user_options) and not _is_set(
        "OCIFS_IAM_TYPE"
    ):
        files = [os.environ.get(name) for name in ("OCIFS_CONFIG_LOCATION", "OCI_CONFIG_FILE")]
        file = os.path.expanduser(next(filter(None, files), "~/.oci/config"))
        if os.path.isfile(file):
            options.update(config=file, iam_type="api_key")
    return options


def _oci_remove(filesystem: Any, path: str) -> None:
    """Remove a file. ocifs's own method reports a busy server as a missing file."""
    filesystem.bulk_delete([path])


@contextmanager
def _oci_request(filesystem: Any, path: str, start: int, end: int) -> Iterator[Any]:
    bucket, namespace, name = filesystem.split_path(path)
    response = filesystem._call_oci(
        filesystem.oci_client.get_object,
        namespace_name=namespace,
        bucket_name=bucket,
        object_name=name,
        range=f"bytes={start}-{end - 1}",
    )
    with closing(response.data):
        yield response


def _oci_read(filesystem: Any, path: str, start: int, end: int) -> bytes:
    with _oci_request(filesystem, path, start, end) as response:
        check_range(response.status, response.headers, path, start, end)
        data = bytes(response.data.raw.read(end - start + 1, decode_content=False))
    if len(data) > end - start:
        raise SurplusError(end - start)
    return data


def _oci_info(filesystem: Any, path: str) -> Any:
    bucket, namespace, name = filesystem.split_path(path)
    response = filesystem._call_oci(
        filesystem.oci_client.head_object,
        namespace_name=namespace,
        bucket_name=bucket,
        object_name=name,
    )
    info = file_info(response.status, response.headers, path)
    if info["size"] is None:  # no length in the response to HEAD
        with _oci_request(filesystem, path, 0, 1) as response:
            return file_info(response.status, response.headers, path)
    return info


def _sftp_load() -> Any:
    # The package sshfs, if installed, registers itself for the scheme, and ignores ranges.
    return import_module("fsspec.implementations.sftp").SFTPFileSystem


def _sftp_options(settings: RouteSettings) -> Options:
    options: Options = dict.fromkeys(
        ("timeout", "banner_timeout", "auth_timeout"), settings.timeout
    )
    options["transport_factory"] = _quiet_transport
    if hosts := os.environ.get("COMPOSER_SFTP_KNOWN_HOSTS_FILE"):
        options["host_key_policy"] = _known_hosts(hosts)
    return options


def _quiet_transport(*args: Any, **options: Any) -> Any:
    """Return a paramiko transport that logs to `PARAMIKO_LOG`.

    Paramiko logs each failure with a traceback. Python would print it if logging is not
    configured, although the caller gets the exception.
    """
    if not (logger := logging.getLogger(PARAMIKO_LOG)).level:
        logger.setLevel(logging.CRITICAL)
    transport = import_module("paramiko").Transport(*args, **options)
    transport.set_log_channel(PARAMIKO_LOG)
    return transport


def _known_hosts(file: str) -> Any:
    """Return a policy that accepts only the hosts that `file` lists."""
    paramiko = import_module("paramiko")
    host_keys = paramiko.HostKeys(file)

    def missing_host_key(self: Any, client: Any, host: str, key: Any) -> None:
        if not host_keys.check(host, key):
            raise paramiko.BadHostKeyException(host, key, key)

    base = paramiko.MissingHostKeyPolicy
    return type("KnownHostsPolicy", (base,), {"missing_host_key": missing_host_key})()


def _sftp_read(filesystem: Any, path: str, start: int, end: int) -> bytes:
    """Read a range: send all its SFTP requests, then receive the responses."""
    with filesystem.ftp.open(path, "rb") as file:
        file._prefetch_thread = partial(_send_until_closed, file._prefetch_thread)
        file._async_response = partial(_check_length, file, file._async_response)
        return b"".join(file.readv([(start, end - start)]))


def _check_length(
    file: Any, accept: Callable[..., None], kind: int, message: Any, number: int
) -> None:
    """Pass a response to `accept`; raise if it has more bytes than one request asks for.

    Paramiko would let the surplus overwrite the bytes of another request.
    """
    packet = message.packet
    begin = packet.tell()
    length = int.from_bytes(packet.read(4))
    packet.seek(begin)
    if kind == _SFTP_DATA and length > file.MAX_REQUEST_SIZE:
        raise ResponseError(f"{length} of {file.MAX_REQUEST_SIZE} bytes came")
    accept(kind, message, number)


def _send_until_closed(send: Callable[..., None], *args: Any) -> None:
    """Send requests in a paramiko thread. The thread that receives raises the errors."""
    with suppress(OSError, EOFError):
        send(*args)


def _sftp_write(filesystem: Any, path: str, data: Any) -> None:
    filesystem.ftp.putfo(BytesIO(data), path)


def _sftp_close(filesystem: Any) -> None:
    with suppress(Exception):  # the connection may be broken already
        filesystem.client.close()


def _http_configure(filesystem: Any) -> None:
    """Replace the path of a certificate file by an SSLContext, because aiohttp accepts no path."""
    certificates = filesystem.kwargs.get("ssl")
    if isinstance(certificates, str | os.PathLike):
        try:
            context = import_module("ssl").create_default_context(cafile=certificates)
        except OSError as error:
            raise ValueError(
                f"storage_options['ssl'] = {os.fspath(certificates)!r}: expected a file of "
                f"certificates in PEM format ({error.strerror or error})"
            ) from None
        filesystem.kwargs["ssl"] = context


_S3 = Driver(
    "s3", "s3fs", "s3", {"S3_ENDPOINT_URL": "endpoint_url"},
    options=_s3_options, configure=_s3_configure, trust=_S3_TRUST,
    create=uploads.create_with_mode, replace=uploads.replace_s3, checks_conditions=False,
    read=partial(read_range, _s3_request), info=partial(info_with_size, _s3_head, _s3_request),
)  # fmt: skip
_GCS = Driver(
    "gcs", "gcsfs", "gcs", load=_gcs_load, read=_gcs_read, info=_gcs_info,
    create=uploads.create_with_mode, replace=uploads.replace_gcs,
)  # fmt: skip
_GCS_HMAC = Driver(
    "s3", "s3fs", "s3", {"GCS_KEY": "key", "GCS_SECRET": "secret"},
    options=_gcs_hmac_options, configure=_s3_configure, trust=_S3_TRUST,
    create=uploads.create_with_mode, replace=uploads.replace_s3, checks_conditions=False,
    read=partial(read_range, _s3_request), info=partial(info_with_size, _s3_head, _s3_request),
)  # fmt: skip
_AZURE = Driver(
    "abfs", "adlfs", "azure",
    {"AZURE_ACCOUNT_NAME": "account_name", "AZURE_ACCOUNT_ACCESS_KEY": "account_key"},
    options=_azure_options, load=_azure_load, configure=_azure_configure,
    create=uploads.create_with_mode, replace=uploads.replace_azure,
    read=partial(read_range, _azure_request),
    info=partial(info_with_size, _azure_head, _azure_request),
)  # fmt: skip
_SFTP = Driver(
    "sftp", "paramiko", "sftp", {"COMPOSER_SFTP_KEY_FILE": "key_filename"},
    # Eight connections, because an SFTP server drops new ones while ten have not logged in yet.
    options=_sftp_options, load=_sftp_load, read=_sftp_read, write=_sftp_write, close=_sftp_close,
    max_requests=8, rename=uploads.rename_sftp,
)  # fmt: skip
_OCI = Driver(
    "oci", "ocifs", "oci", options=_oci_options, load=_oci_load, read=_oci_read, info=_oci_info,
    create=uploads.create_oci, replace=uploads.replace_oci, remove=_oci_remove,
    trust="in REQUESTS_CA_BUNDLE", max_requests=16,
)  # fmt: skip
_HTTP = Driver(
    "http", "aiohttp", "http", configure=_http_configure, info=http_info, can_list=False,
    trust="in SSL_CERT_FILE, or as storage_options={'ssl': 'ca.pem'}",
    read=partial(read_range, http_range), read_all=partial(read_whole, http_range),
)  # fmt: skip
_HF = Driver(
    "hf", "huggingface_hub", "hf", load=hub.filesystem_class, configure=hub.connect,
    read=partial(read_range, hub.request_range), read_all=partial(read_whole, hub.request_range),
    create=hub.commit_file, replace=hub.replace_file,
    max_uploads=1,  # each upload is a commit on top of the newest one
)  # fmt: skip
_LOCAL = Driver("file", rename=uploads.rename_local, replace=uploads.replace_local)

SCHEMES = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GCS,
    "gcs": _GCS,
    **dict.fromkeys(("az", "abfs", "abfss", "azure", "azure-dl"), _AZURE),
    "oci": _OCI,
    "sftp": _SFTP,
    "ssh": _SFTP,
    "http": _HTTP,
    "https": replace(_HTTP, protocol="https"),
    "hf": _HF,
    "memory": Driver("memory", create=uploads.memory_create, replace=uploads.memory_replace),
    "file": _LOCAL,
    "local": _LOCAL,
}
"""The driver of each scheme. For other schemes, npstream uses fsspec's driver unchanged."""
