"""Classification of drivers' exceptions, however they are raised."""

from __future__ import annotations

import errno
import http.client

import pytest

from npstream.errors import StorageError
from npstream.storage import failures
from npstream.storage.remote import RemoteStore


def with_cause(error, cause):
    error.__cause__ = cause
    return error


def examples():
    """Yield exceptions as the drivers raise them, with the errno and whether they are transient."""
    import aiohttp
    import azure.core.exceptions
    import botocore.exceptions
    import gcsfs.retry
    import huggingface_hub.errors
    import oci.exceptions
    import paramiko
    import urllib3.exceptions

    def amazon(status, code="x"):
        answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return botocore.exceptions.ClientError(answer, "GetObject")

    def web(status):
        return aiohttp.ClientResponseError(None, (), status=status)

    def microsoft(status):
        error = azure.core.exceptions.HttpResponseError("x")
        error.status_code = status
        return error

    def google(status):
        return gcsfs.retry.HttpError({"code": status, "message": "x"})

    for make in (
        amazon,
        web,
        microsoft,
        google,
        lambda s: oci.exceptions.ServiceError(s, "x", {}, ""),
    ):
        for status, code, transient in [
            (400, errno.EINVAL, False), (403, errno.EACCES, False), (404, errno.ENOENT, False),
            (416, errno.ERANGE, False), (429, errno.EBUSY, True), (500, errno.EIO, True),
            (503, errno.EBUSY, True), (504, errno.ETIMEDOUT, True),
        ]:  # fmt: skip
            yield make(status), code, transient
    yield amazon(400, "RequestTimeout"), errno.ETIMEDOUT, True
    yield amazon(400, "ExpiredToken"), errno.EACCES, False
    yield with_cause(OSError(errno.EBUSY, "slow down"), amazon(503)), errno.EBUSY, True
    yield with_cause(FileNotFoundError("x"), web(503)), errno.EBUSY, True
    yield FileNotFoundError("x"), errno.ENOENT, False
    yield OSError("Forbidden: x"), errno.EACCES, False
    yield OSError(errno.ENOSPC, "x"), errno.ENOSPC, False
    yield botocore.exceptions.NoCredentialsError(), errno.EACCES, False
    yield botocore.exceptions.ReadTimeoutError(endpoint_url="x"), errno.EIO, True
    yield aiohttp.ClientPayloadError("cut"), errno.EIO, True
    yield paramiko.AuthenticationException("x"), errno.EACCES, False
    yield paramiko.SSHException("x"), errno.EIO, True
    yield huggingface_hub.errors.OfflineModeIsEnabled("x"), errno.ENETDOWN, False
    yield huggingface_hub.errors.LocalTokenNotFoundError("x"), errno.EACCES, False
    yield http.client.RemoteDisconnected("x"), errno.EIO, True
    yield EOFError(), errno.EIO, True
    yield urllib3.exceptions.ProtocolError("x"), errno.EIO, True
    yield TimeoutError(), errno.ETIMEDOUT, True
    yield TypeError("x"), errno.EINVAL, False


def test_driver_exceptions_have_the_expected_causes():
    pytest.importorskip("oci", reason="python -m pip install -e '.[oci]'")
    for error, code, transient in examples():
        assert failures.classify(error) == (code, transient), repr(error)


def raise_and_catch(error, cause=None, context=None):
    """Return an exception that was raised from another, or while another was handled."""
    try:
        if context is None:
            raise error from cause
        try:
            raise context
        except Exception:
            raise error  # noqa: B904
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "connection_error", [ConnectionResetError, TimeoutError, EOFError, BrokenPipeError]
)
def test_a_missing_file_after_a_lost_connection_is_transient(connection_error):
    for error in (
        raise_and_catch(FileNotFoundError("a"), connection_error()),
        raise_and_catch(FileNotFoundError("a"), context=connection_error()),
        raise_and_catch(
            FileNotFoundError("a"),
            raise_and_catch(FileNotFoundError("b"), context=connection_error()),
        ),
    ):
        assert failures.classify(error).transient
        assert failures.classify(error).code != errno.ENOENT
    for error in (
        raise_and_catch(FileNotFoundError("a"), KeyError("a")),
        raise_and_catch(FileNotFoundError("a"), context=KeyError("a")),
        raise_and_catch(FileNotFoundError("a"), PermissionError("a")),
        raise_and_catch(FileNotFoundError("a")),
    ):
        assert failures.classify(error) == (errno.ENOENT, False)


@pytest.mark.parametrize("errors", [[{"reason": "x"}], lambda: [], None])
def test_an_attribute_errors_that_is_no_mapping_is_ignored(errors):
    error = ConnectionResetError()
    error.errors = errors
    assert failures.classify(error) == (errno.EIO, True)


def test_a_lost_connection_that_a_driver_reports_as_a_missing_file_is_retried(fake):
    lost_connections = [ConnectionResetError()] * 2

    async def info(self, path, **kwargs):
        if lost_connections:
            raise FileNotFoundError(path) from lost_connections.pop()
        return {"name": path, "size": 3, "type": "file"}

    fake._info = info
    try:
        assert RemoteStore("fake://x").exists("a")
        assert not lost_connections
        lost_connections[:] = [ConnectionResetError()] * 9  # more than the attempts
        with pytest.raises(StorageError, match="after 2 attempts") as caught:
            RemoteStore("fake://x", retries=1).exists("a")
        assert caught.value.errno == errno.EIO
    finally:
        del fake._info
