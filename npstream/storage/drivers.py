"""Which driver serves a URL, and with which options.

One table says what each scheme means: fsspec's name for it, the package to install, what the
environment variables of Streaming's users stand for, and how the driver is kept from retrying
on its own, as npstream does that under one deadline for all of them.
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
from npstream.storage import http
from npstream.storage import huggingface as hub
from npstream.storage.responses import (
    Response,
    ResponseError,
    SurplusError,
    check_range,
    file_info,
    info_with_size,
    read_range,
    read_whole,
)
from npstream.storage.urls import is_http

__all__ = [
    "SCHEMES",
    "Driver",
    "Route",
    "imports",
    "missing",
    "route",
    "same_service",
]

Options = dict[str, Any]

PARAMIKO_LOG = "npstream.paramiko"
"""The logger of paramiko's connections. It is silent until somebody sets its level."""

_MAX_ERROR = 1 << 16
"""The maximum number of bytes to read of an error response."""

_SFTP_DATA = 103
"""The type of an SFTP message that carries data (SSH_FXP_DATA)."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a driver's options may depend on.

    Attributes
    ----------
    bucket : str
        What follows the scheme.
    given : dict
        The options that the user or the environment set.
    width : int
        How many requests will be made at once.
    timeout : float
        How many seconds one may take.
    """

    bucket: str = field(repr=False)
    given: Options = field(repr=False)
    width: int
    timeout: float


def _nothing(*_: Any) -> Any:
    return {}


class _Imports:
    """A lock for importing drivers.

    Parts of some packages import each other, such as those of Oracle's SDK. Two threads that
    import different parts at once would find half of them.
    """

    def __init__(self) -> None:
        self.renew_locks()
        renew_in_child(self)

    def renew_locks(self) -> None:
        """Replace the lock, which a thread that a forked process does not have may have held."""
        self.lock = threading.RLock()


imports = _Imports()


@dataclass(frozen=True, slots=True)
class Driver:
    """How one of fsspec's filesystems is used.

    Attributes
    ----------
    protocol : str
        fsspec's name for it.
    package, extra : str
        What to install where it is missing.
    variables : mapping of str to str
        Environment variables, and the options that they set.
    options : callable
        Returns options that lie below all others.
    load : callable, optional
        Returns the class, where fsspec's registry would give another.
    tame : callable
        Turns the retries of a filesystem off.
    read : callable, optional
        Reads a range with one request and checks the response. Replaces the filesystem's own
        method, which accepts any response.
    whole : callable, optional
        Reads a file of unknown size, up to a given number of bytes.
    info : callable, optional
        Returns the file's info with one request for the file itself. Replaces the filesystem's own
        method where that lists the bucket, which may not be permitted, reports every failure as a
        missing file, or needs the length in the response to HEAD.
    can_list : bool
        True if a listing contains all files.
    write : callable, optional
        Stores bytes, where the filesystem's own way waits for an answer to every few of them.
    create : callable, optional
        Stores bytes under a path, or raises FileExistsError if there is such a file, in one step
        for the server. None where there is no such step.
    remove : callable, optional
        Removes a file, where the filesystem's own way is none.
    end : callable
        Closes a filesystem of a driver that blocks.
    trust : str
        How it is told which certificates to trust, for messages.
    width : int
        The most requests at once.
    uploads : int
        The most files that one write stores at once.
    rename : callable, optional
        Gives a file another name, or raises FileExistsError if there is such a file. A driver that
        has it works with directories and shows files while they are written, so files get their
        names last.
    """

    protocol: str
    package: str = ""
    extra: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Callable[[Need], Options] = _nothing
    load: Callable[[], Any] | None = None
    tame: Callable[[Any], object] = _nothing
    read: Callable[[Any, str, int, int], Any] | None = None
    whole: Callable[[Any, str, int], Any] | None = None
    info: Callable[[Any, str], Any] | None = None
    can_list: bool = True
    write: Callable[[Any, str, Any], object] | None = None
    create: Callable[[Any, str, bytes], object] | None = None
    remove: Callable[[Any, str], object] | None = None
    end: Callable[[Any], object] = _nothing
    trust: str = "in SSL_CERT_FILE"
    width: int = 1 << 16
    uploads: int = 4
    rename: Callable[[Any, str, str], object] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A URL as its driver is to have it."""

    driver: Driver
    url: str = field(repr=False)  # as there may be secrets in it
    options: Options = field(repr=False)


def route(url: str, storage_options: Mapping[str, Any], width: int, timeout: float) -> Route:
    """Find the driver for a URL, and its options.

    Parameters
    ----------
    url : str
    storage_options : mapping
        What the user set; it lies on top.
    width : int
        How many requests will be made at once.
    timeout : float
        How many seconds one may take.

    Examples
    --------
    >>> found = route("azure://container/data", {"account_name": "mine"}, 32, 60.0)
    >>> found.url, found.options["account_name"]
    ('abfs://container/data', 'mine')
    """
    scheme, _, rest = url.partition("://")
    driver = SCHEMES.get(scheme.lower()) or Driver(scheme.lower())
    if driver is _GCS and not storage_options and _is_set("GCS_KEY", "GCS_SECRET"):
        driver = _GCS_HMAC
    given = {option: os.environ[name] for name, option in driver.variables.items() if _is_set(name)}
    given.update(storage_options)
    need = Need(rest.partition("/")[0], given, min(width, driver.width), timeout)
    try:
        with imports.lock:
            merged = _merge(driver.options(need), given)
    except ImportError as error:
        raise missing(driver, error) from error
    return Route(driver, f"{driver.protocol}://{rest}", merged)


def missing(driver: Driver, error: ImportError) -> MissingDependencyError:
    """Return the error that says what to install for a driver."""
    absent = getattr(error.__cause__, "name", None) or error.name
    package = driver.package or absent or driver.protocol
    return MissingDependencyError(f"{driver.protocol}://", package, driver.extra)


def same_service(url: str, other: str) -> bool:
    """Tell whether two URLs have the same driver, and on the web the same host.

    Examples
    --------
    >>> same_service("gs://a/b", "gcs://c"), same_service("https://a/b", "https://b/b")
    (True, False)
    """
    (one, _, here), (two, _, there) = url.partition("://"), other.partition("://")
    if is_http(url) or is_http(other):
        return (one.lower(), here.partition("/")[0]) == (two.lower(), there.partition("/")[0])
    one, two = one.lower(), two.lower()
    return SCHEMES.get(one, one) == SCHEMES.get(two, two)


def _is_set(*names: str) -> bool:
    return all(os.environ.get(name) for name in names)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Options:
    """Lay options over others, also within mappings."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _merge(under, value)
        merged[name] = value
    return merged


def _create(filesystem: Any, path: str, data: bytes) -> Any:
    """Store bytes on a condition that S3, Google and Azure know: that there is no such object."""
    return filesystem._pipe_file(path, data, mode="create")


def _memory_create(filesystem: Any, path: str, data: bytes) -> None:
    made = import_module("fsspec.implementations.memory").MemoryFile(filesystem, path, data)
    if filesystem.store.setdefault(path, made) is not made:  # in one step, for all threads
        raise FileExistsError(path)


def _s3_options(need: Need) -> Options:
    config = {
        "max_pool_connections": need.width,
        "connect_timeout": need.timeout,
        "read_timeout": need.timeout,
        "retries": {"total_max_attempts": 1},
    }
    payers = os.environ.get("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", "").split(",")
    if need.bucket in [bucket.strip() for bucket in payers]:
        return {"config_kwargs": config, "requester_pays": True}
    return {"config_kwargs": config}


_S3_TRUST = "in AWS_CA_BUNDLE, or as storage_options={'client_kwargs': {'verify': 'ca.pem'}}"


def _s3_tame(filesystem: Any) -> None:
    filesystem.retries = 1
    if not filesystem.version_aware:
        # It cuts the name of a version off each key, and then reads the newest.
        filesystem.split_path = partial(_split_path, filesystem.split_path, "?versionId=")


def _split_path(
    split: Callable[..., Any], mark: str, path: str, **options: Any
) -> tuple[str, str, None]:
    """Return a bucket and a key from a path, all of which names the object."""
    bucket, key, _ = split(path, **options)
    _, found, rest = path.partition(mark)
    return bucket, f"{key}{found}{rest}", None


async def _s3_head(filesystem: Any, path: str) -> dict[str, Any]:
    bucket, key, version = filesystem.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
    found = await filesystem._call_s3("head_object", filesystem.kwargs, **wanted)
    signs = {sign: found[sign] for sign in ("ETag", "LastModified") if sign in found}
    return {"name": path, "type": "file", "size": found.get("ContentLength"), **signs}


@asynccontextmanager
async def _s3_request(filesystem: Any, path: str, start: int, end: Any) -> AsyncIterator[Response]:
    bucket, key, version = filesystem.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
    if version:
        wanted["VersionId"] = version
    answer = await filesystem._call_s3("get_object", **wanted)
    said = answer["ResponseMetadata"]
    with closing(answer["Body"]) as body:
        yield Response(said["HTTPStatusCode"], said["HTTPHeaders"], key, body.read)


def _gcs_hmac_options(need: Need) -> Options:
    options = _s3_options(need)
    # Google's XML interface does not know the checksums that botocore sends by default.
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        options["config_kwargs"][name] = "when_required"
    return {"endpoint_url": "https://storage.googleapis.com", **options}


def _gcs_load() -> Any:
    """Return gcsfs without its support for zonal buckets, unless that is asked for.

    Before the first read of a bucket it asks by gRPC what kind of bucket that is; where nobody
    answers that, as behind a proxy or in an emulator, it gives up after a minute or more.
    """
    wanted = os.environ.get("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "").lower() in ("true", "1")
    base = import_module("gcsfs" if wanted else "gcsfs.core").GCSFileSystem
    # Its retries are a decorator's, with no setting.
    request = getattr(base._request, "__wrapped__", base._request)
    return type(base)("GCSFileSystem", (base,), {"_request": request})


async def _gcs_info(filesystem: Any, path: str) -> Any:
    bucket, key, version = filesystem.split_path(path)
    found = await filesystem._call(
        "GET", "b/{}/o/{}", bucket, key, json_out=True, generation=version
    )
    return filesystem._process_object(bucket, found)


@asynccontextmanager
async def _gcs_request(filesystem: Any, path: str, start: int, end: Any) -> AsyncIterator[Response]:
    await filesystem._set_session()
    # Without this the server unpacks files that are stored with gzip, and then ignores Range.
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "gzip"}
    async with filesystem.session.get(
        filesystem.url(path),
        params=filesystem._get_params({}),
        headers=filesystem._get_headers(headers),
        timeout=filesystem.requests_timeout,
        auto_decompress=False,
    ) as answer:
        if answer.status >= 400:
            told = await answer.content.read(_MAX_ERROR)
            import_module("gcsfs.retry").validate_response(answer.status, told, path)
        yield Response(answer.status, answer.headers, path, answer.content.read)


async def _gcs_read(filesystem: Any, path: str, start: int, end: int) -> bytes:
    if type(filesystem)._cat_file is not import_module("gcsfs.core").GCSFileSystem._cat_file:
        return bytes(await filesystem._cat_file(path, start=start, end=end))  # zonal buckets
    return await read_range(_gcs_request, filesystem, path, start, end)


def _azure_load() -> Any:
    """Return adlfs, which takes the paths that it is given for names and not for URLs."""
    base = import_module("adlfs").AzureBlobFileSystem
    # What it says of answers that are not Azure's would be printed where logging is not set up.
    if not (log := logging.getLogger("azure")).handlers:
        log.addHandler(logging.NullHandler())

    def strip(cls: Any, path: Any) -> Any:
        is_name = isinstance(path, str) and re.match("[a-z]+://", path) is None
        return path.lstrip("/") if is_name else base._strip_protocol(path)

    return type(base)("AzureBlobFileSystem", (base,), {"_strip_protocol": classmethod(strip)})


def _azure_options(need: Need) -> Options:
    return {"connection_timeout": need.timeout, "read_timeout": need.timeout}


def _azure_tame(filesystem: Any) -> None:
    filesystem.service_client._config.retry_policy.total_retries = 0
    if not filesystem.version_aware:
        filesystem.split_path = partial(_split_path, filesystem.split_path, "?versionid=")


async def _azure_head(filesystem: Any, path: str) -> dict[str, Any]:
    container, blob, version = filesystem.split_path(filesystem._strip_protocol(path))
    client = filesystem.service_client.get_blob_client(container=container, blob=blob)
    async with client:
        found = await client.get_blob_properties(version_id=version, **filesystem._timeout_kwargs)
    return dict((await filesystem._details([found]))[0])


@asynccontextmanager
async def _azure_request(
    filesystem: Any, path: str, start: int, end: Any
) -> AsyncIterator[Response]:
    """Bypass the SDK's downloader, which retries on its own and checks no Content-Range."""
    container, blob, version = filesystem.split_path(filesystem._strip_protocol(path))
    client = filesystem.service_client.get_blob_client(container=container, blob=blob)
    async with client:
        answer = await client._client.blob.download(
            range=f"bytes={start}-{end - 1}",
            version_id=version,
            cls=lambda answer, *_: answer.http_response.internal_response,
            **filesystem._timeout_kwargs,
        )
        with closing(answer):
            yield Response(answer.status, answer.headers, blob, answer.content.read)


def _oci_load() -> Any:
    """Return ocifs, which lists files without the SDK's paginator: that has retries of its own."""
    base = import_module("ocifs").OCIFileSystem
    return type(base)("OCIFileSystem", (base,), {"find": _oci_find})


def _oci_find(self: Any, path: str, detail: bool = True) -> dict[str, Any]:
    bucket, namespace, key = self.split_path(path)
    prefix, start, found = f"{key}/" if key else "", None, {}
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
            found[name] = {"name": name, "type": "file", "size": entry.size}
        if (start := page.next_start_with) is None:
            return found


def _oci_options(need: Need) -> Options:
    retry = import_module("oci.retry").NoneRetryStrategy()
    limits = (need.timeout, need.timeout)
    # After ten failures its circuit breaker fails every request of the process for 30 s, unsent.
    breaker = import_module("oci.circuit_breaker").NoCircuitBreakerStrategy()
    options: Options = {
        "config_kwargs": {
            "retry_strategy": retry,
            "circuit_breaker_strategy": breaker,
            "timeout": limits,
        }
    }
    # As the SDK does, and Streaming with it; the driver would ask for a resource principal.
    if not {"config", "iam_type", "signer"} & set(need.given) and not _is_set("OCIFS_IAM_TYPE"):
        files = [os.environ.get(name) for name in ("OCIFS_CONFIG_LOCATION", "OCI_CONFIG_FILE")]
        file = os.path.expanduser(next(filter(None, files), "~/.oci/config"))
        if os.path.isfile(file):
            options.update(config=file, iam_type="api_key")
    return options


def _oci_remove(filesystem: Any, path: str) -> None:
    """Remove a file, and do not take a server that is busy for one that has no such file."""
    filesystem.bulk_delete([path])


def _oci_create(filesystem: Any, path: str, data: bytes) -> None:
    bucket, namespace, key = filesystem.split_path(path)
    filesystem.oci_client.put_object(namespace, bucket, key, data, if_none_match="*")


@contextmanager
def _oci_request(filesystem: Any, path: str, start: int, end: int) -> Iterator[Any]:
    bucket, namespace, name = filesystem.split_path(path)
    answer = filesystem._call_oci(
        filesystem.oci_client.get_object,
        namespace_name=namespace,
        bucket_name=bucket,
        object_name=name,
        range=f"bytes={start}-{end - 1}",
    )
    with closing(answer.data):
        yield answer


def _oci_read(filesystem: Any, path: str, start: int, end: int) -> bytes:
    with _oci_request(filesystem, path, start, end) as answer:
        check_range(answer.status, answer.headers, path, start, end)
        data = bytes(answer.data.raw.read(end - start + 1, decode_content=False))
    if len(data) > end - start:
        raise SurplusError(end - start)
    return data


def _oci_info(filesystem: Any, path: str) -> Any:
    bucket, namespace, name = filesystem.split_path(path)
    answer = filesystem._call_oci(
        filesystem.oci_client.head_object,
        namespace_name=namespace,
        bucket_name=bucket,
        object_name=name,
    )
    found = file_info(answer.status, answer.headers, path)
    if found["size"] is None:  # no length in the response to HEAD
        with _oci_request(filesystem, path, 0, 1) as answer:
            return file_info(answer.status, answer.headers, path)
    return found


def _sftp_load() -> Any:
    # The package sshfs takes the scheme over where it is installed, and ignores ranges.
    return import_module("fsspec.implementations.sftp").SFTPFileSystem


def _sftp_options(need: Need) -> Options:
    options: Options = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), need.timeout)
    options["transport_factory"] = _quiet_transport
    if hosts := os.environ.get("COMPOSER_SFTP_KNOWN_HOSTS_FILE"):
        options["host_key_policy"] = _known_hosts(hosts)
    return options


def _quiet_transport(*given: Any, **options: Any) -> Any:
    """Return paramiko's connection, whose log has a name of its own.

    It logs each failure with a traceback, which Python prints where logging is not set up. The
    reader gets the exception.
    """
    if not (channel := logging.getLogger(PARAMIKO_LOG)).level:
        channel.setLevel(logging.CRITICAL)
    transport = import_module("paramiko").Transport(*given, **options)
    transport.set_log_channel(PARAMIKO_LOG)
    return transport


def _known_hosts(file: str) -> Any:
    """Return a policy that takes the hosts of a file, and no others."""
    paramiko = import_module("paramiko")
    known = paramiko.HostKeys(file)

    def missing_host_key(self: Any, client: Any, host: str, key: Any) -> None:
        if not known.check(host, key):
            raise paramiko.BadHostKeyException(host, key, key)

    kind = type("Known", (paramiko.MissingHostKeyPolicy,), {"missing_host_key": missing_host_key})
    return kind()


def _sftp_read(filesystem: Any, path: str, start: int, end: int) -> bytes:
    """Read a range, all its requests sent before the first answer is waited for."""
    with filesystem.ftp.open(path, "rb") as file:
        file._prefetch_thread = partial(_until_closed, file._prefetch_thread)
        file._async_response = partial(_bounded, file, file._async_response)
        return b"".join(file.readv([(start, end - start)]))


def _bounded(file: Any, take: Callable[..., None], kind: int, message: Any, number: int) -> None:
    """Accept a response to one request of a range, unless it is longer than a request may be.

    Paramiko would let the surplus replace the bytes of another request.
    """
    packet = message.packet
    begin = packet.tell()
    length = int.from_bytes(packet.read(4))
    packet.seek(begin)
    if kind == _SFTP_DATA and length > file.MAX_REQUEST_SIZE:
        raise ResponseError(f"{length} of {file.MAX_REQUEST_SIZE} bytes came")
    take(kind, message, number)


def _until_closed(send: Callable[..., None], *given: Any) -> None:
    """Send requests, in a thread of paramiko's; who reads the answers is told what goes wrong."""
    with suppress(OSError, EOFError):
        send(*given)


def _sftp_write(filesystem: Any, path: str, data: Any) -> None:
    filesystem.ftp.putfo(BytesIO(data), path)


def _sftp_rename(filesystem: Any, old: str, new: str) -> None:
    """Give a file a name that is not taken: the protocol's own rename replaces nothing."""
    try:
        filesystem.ftp.rename(old, new)
    except OSError as error:
        # Servers say no more than that it failed.
        if error.errno is None and filesystem.exists(new):
            raise FileExistsError(new) from error
        raise


def _local_rename(_filesystem: Any, old: str, new: str) -> None:
    os.link(old, new)
    os.unlink(old)


def _sftp_end(filesystem: Any) -> None:
    with suppress(Exception):
        filesystem.client.close()


def _http_tame(filesystem: Any) -> None:
    """Turn the name of a file of certificates into what the driver takes."""
    trusted = filesystem.kwargs.get("ssl")
    if isinstance(trusted, str | os.PathLike):
        try:
            context = import_module("ssl").create_default_context(cafile=trusted)
        except OSError as error:
            raise ValueError(
                f"storage_options['ssl'] = {os.fspath(trusted)!r}: expected a file of certificates "
                f"in PEM format ({error.strerror or error})"
            ) from None
        filesystem.kwargs["ssl"] = context


_S3 = Driver(
    "s3", "s3fs", "s3", {"S3_ENDPOINT_URL": "endpoint_url"},
    options=_s3_options, tame=_s3_tame, trust=_S3_TRUST, create=_create,
    read=partial(read_range, _s3_request), info=partial(info_with_size, _s3_head, _s3_request),
)  # fmt: skip
_GCS = Driver(
    "gcs", "gcsfs", "gcs", load=_gcs_load, read=_gcs_read, info=_gcs_info, create=_create,
)  # fmt: skip
_GCS_HMAC = Driver(
    "s3", "s3fs", "s3", {"GCS_KEY": "key", "GCS_SECRET": "secret"},
    options=_gcs_hmac_options, tame=_s3_tame, trust=_S3_TRUST, create=_create,
    read=partial(read_range, _s3_request), info=partial(info_with_size, _s3_head, _s3_request),
)  # fmt: skip
_AZURE = Driver(
    "abfs", "adlfs", "azure",
    {"AZURE_ACCOUNT_NAME": "account_name", "AZURE_ACCOUNT_ACCESS_KEY": "account_key"},
    options=_azure_options, load=_azure_load, tame=_azure_tame, create=_create,
    read=partial(read_range, _azure_request),
    info=partial(info_with_size, _azure_head, _azure_request),
)  # fmt: skip
_SFTP = Driver(
    "sftp", "paramiko", "sftp", {"COMPOSER_SFTP_KEY_FILE": "key_filename"},
    # A server drops connections beyond ten that have not logged in yet.
    options=_sftp_options, load=_sftp_load, read=_sftp_read, write=_sftp_write, end=_sftp_end,
    width=8, rename=_sftp_rename,
)  # fmt: skip
_OCI = Driver(
    "oci", "ocifs", "oci", options=_oci_options, load=_oci_load, read=_oci_read, info=_oci_info,
    create=_oci_create, remove=_oci_remove, trust="in REQUESTS_CA_BUNDLE", width=16,
)  # fmt: skip
_HTTP = Driver(
    "http",
    "aiohttp",
    "http",
    tame=_http_tame,
    trust="in SSL_CERT_FILE, or as storage_options={'ssl': 'ca.pem'}",
    read=partial(read_range, http.request_range),
    whole=partial(read_whole, http.request_range),
    info=http.request_info,
    can_list=False,
)
_LOCAL = Driver("file", rename=_local_rename)

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
    "hf": Driver(
        "hf",
        "huggingface_hub",
        "hf",
        load=hub.filesystem_class,
        tame=hub.connect,
        read=partial(read_range, hub.request_range),
        whole=partial(read_whole, hub.request_range),
        create=hub.commit_file,
        uploads=1,  # each is a commit on top of the newest
    ),
    "memory": Driver("memory", create=_memory_create),
    "file": _LOCAL,
    "local": _LOCAL,
}
"""The schemes that are more than their name in fsspec's registry."""
