"""Classification of drivers' exceptions: the errno, and whether a retry may succeed."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from npstream.storage.responses import ResponseError

__all__ = ["Cause", "classify", "diagnose"]


class Cause(NamedTuple):
    """The cause of a failed request.

    Attributes
    ----------
    code : int
        The errno that fits best.
    transient : bool
        True if the same request may succeed later.
    """

    code: int
    transient: bool


_NOT_FOUND = Cause(errno.ENOENT, False)
_DENIED = Cause(errno.EACCES, False)
_EXISTS = Cause(errno.EEXIST, False)
_REJECTED = Cause(errno.EINVAL, False)
_UNSUPPORTED = Cause(errno.EOPNOTSUPP, False)
_TIMED_OUT = Cause(errno.ETIMEDOUT, True)
_BUSY = Cause(errno.EBUSY, True)
_BROKEN = Cause(errno.EIO, True)
_UNREACHABLE = Cause(errno.EHOSTUNREACH, True)
_UNTRUSTED = Cause(errno.ECONNABORTED, False)
"""The server's certificate is not trusted. No other failure has this errno."""
_WRONG_PROTOCOL = Cause(errno.EPROTO, True)
_NOT_TLS = Cause(errno.EPROTO, False)

_BY_STATUS = {
    401: _DENIED,
    402: _DENIED,
    403: _DENIED,
    404: _NOT_FOUND,
    408: _TIMED_OUT,
    409: _EXISTS,
    410: _NOT_FOUND,
    412: _EXISTS,
    416: Cause(errno.ERANGE, False),
    425: _BUSY,
    429: _BUSY,
    501: _UNSUPPORTED,
    503: _BUSY,
    504: _TIMED_OUT,
    505: _REJECTED,
}

# The error codes of Amazon and Oracle are more precise than the HTTP status. For example, some
# transient errors have the status of a permanent error.
_BY_SERVICE_CODE = {
    "ConcurrentObjectUpdate": _BUSY,
    "ConditionalRequestConflict": _BUSY,
    "OperationAborted": _BUSY,
    "RequestTimeout": _TIMED_OUT,
    "RequestTimeTooSkewed": _DENIED,
    "SlowDown": _BUSY,
    "ThrottlingException": _BUSY,
    "TooManyRequestsException": _BUSY,
    "ExpiredToken": _DENIED,
    "InvalidToken": _DENIED,
    "InvalidAccessKeyId": _DENIED,
    "AuthorizationHeaderMalformed": _DENIED,
}

# The keys are names, because importing a driver only for its exception classes would be slow.
_BY_CLASS = {
    "AuthenticationException": _DENIED,
    "BadHostKeyException": _DENIED,
    "CredentialRetrievalError": _DENIED,
    "CredentialUnavailableError": _DENIED,
    "DefaultCredentialsError": _DENIED,
    "GatedRepoError": _DENIED,
    "LocalTokenNotFoundError": _DENIED,
    "NoAuthTokenError": _DENIED,
    "NoCredentialsError": _DENIED,
    "OfflineModeIsEnabled": Cause(errno.ENETDOWN, False),
    "PartialCredentialsError": _DENIED,
    "ClientConnectorCertificateError": _UNTRUSTED,
    "SSLCertVerificationError": _UNTRUSTED,
    "BucketNotFoundError": _NOT_FOUND,
    "RepositoryNotFoundError": _NOT_FOUND,
    "EntryNotFoundError": _NOT_FOUND,
    "RevisionNotFoundError": _NOT_FOUND,
    # aiohttp raises it from an error of its parser. That error has a status, but no server sent it.
    "ClientPayloadError": _BROKEN,
    # The errno of the next three is an error number of the resolver, not of the system.
    "ClientConnectorDNSError": _UNREACHABLE,
    "NameResolutionError": _UNREACHABLE,
    "gaierror": _UNREACHABLE,
    "BadStatusLine": _WRONG_PROTOCOL,
    "RemoteDisconnected": _BROKEN,  # http.client derives it from BadStatusLine
    "InvalidUrlClientError": _REJECTED,
    "ParamValidationError": _REJECTED,
}

_BY_TYPE: list[tuple[type[BaseException], Cause]] = [
    (TimeoutError, _TIMED_OUT),
    (FileNotFoundError, _NOT_FOUND),
    (IsADirectoryError, _NOT_FOUND),
    (NotADirectoryError, _NOT_FOUND),
    (PermissionError, _DENIED),
    (FileExistsError, _EXISTS),
    (ConnectionError, _BROKEN),
    (EOFError, _BROKEN),
]

_PROGRAMMING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)

_NETWORK_ERRNOS = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT),
}
"""Errors of the network: the system's errno says more than the driver's exception around it."""

_NOT_TLS_REASONS = {
    *("HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"),
    *("UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION", "WRONG_VERSION_NUMBER"),
}
"""OpenSSL's names for an answer that is not TLS."""

_CONNECTION_CLASSES = {
    "ClientConnectionError",  # aiohttp
    "HTTPClientError",  # botocore
    "ProtocolError",  # urllib3
    "ServiceRequestError",  # azure.core
    "ServiceResponseError",
    "SSHException",  # paramiko
    "TransportError",  # httpx
}
"""Base classes of connection failures that do not derive from ConnectionError."""

_MAX_CHAIN = 10
"""The maximum number of exceptions that are examined: a chain may be a cycle."""

_PERMANENT_ERRNOS = {
    errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOSPC, errno.EOPNOTSUPP, errno.EROFS
}  # fmt: skip
"""Errors of a server's disk that a retry does not change."""


def classify(error: BaseException) -> Cause:
    """Return the cause of a driver's exception.

    Parameters
    ----------
    error : BaseException

    Examples
    --------
    >>> classify(ConnectionResetError())
    Cause(code=5, transient=True)
    >>> classify(FileNotFoundError()).transient
    False
    """
    return diagnose(error)[0]


def diagnose(error: BaseException) -> tuple[Cause, BaseException]:
    """Return the cause of an exception, and the exception of its chain that shows this cause.

    Drivers wrap exceptions of their libraries, which wrap the system's. Many wrappers only say that
    a request failed. The outermost exception with a specific meaning determines the cause.
    """
    for link in _chain(error):
        if (cause := _specific_cause(link)) is not None:
            return cause, link
    if isinstance(error, FileNotFoundError):
        connection_error = _lost_connection(error)
        if connection_error is not None:
            return diagnose(connection_error)
    for kind, cause in _BY_TYPE:
        if isinstance(error, kind):
            return cause, error
    if isinstance(error, OSError):
        if str(error).startswith("Forbidden"):  # gcsfs
            return _DENIED, error
        return Cause(error.errno or errno.EIO, error.errno not in _PERMANENT_ERRNOS), error
    return (_REJECTED if isinstance(error, _PROGRAMMING_ERRORS) else _BROKEN), error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then the exceptions that it was raised from, or that it wraps."""
    for _ in range(_MAX_CHAIN):
        if error is None:
            return
        yield error
        # Paramiko's NoValidConnectionsError has the attribute `errors`, a dict. Exceptions of other
        # packages have a list or a method of this name.
        errors = getattr(error, "errors", None)
        values = [*error.args[:1], *(errors.values() if isinstance(errors, Mapping) else ())]
        wrapped = [value for value in values if isinstance(value, BaseException)]
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or next(iter(wrapped), context)


def _specific_cause(error: BaseException) -> Cause | None:
    """Return the cause that an exception shows by itself, or None if it shows none."""
    if isinstance(error, ResponseError):
        return _BROKEN if error.transient else _REJECTED
    if (cause := _BY_SERVICE_CODE.get(_service_code(error))) is not None:
        return cause
    names = _class_names(error)
    for name in names:
        if (cause := _BY_CLASS.get(name)) is not None:
            return cause
    inner = error.__cause__ or error.__context__
    # If an answer is not HTTP, aiohttp's error has a status that no server sent.
    all_names = {*names, *_class_names(inner)}
    if "HttpProcessingError" not in all_names and (status := _status(error)) is not None:
        return _BY_STATUS.get(status, _BROKEN if status >= 500 else _REJECTED)
    if "SSLError" in names and getattr(error, "reason", None) in _NOT_TLS_REASONS:
        return _NOT_TLS
    if "SSHException" in names and "protocol banner" in str(error):
        # paramiko raises the same exception if the connection fails. Then the cause is the OSError.
        return None if isinstance(inner, OSError) else _WRONG_PROTOCOL
    if "RemoteProtocolError" in names and "illegal status line" in str(error):  # httpx
        return _WRONG_PROTOCOL
    if isinstance(error, TimeoutError):
        return _TIMED_OUT
    if isinstance(error, OSError) and error.errno in _NETWORK_ERRNOS:
        return Cause(error.errno, True)
    return None


def _class_names(error: BaseException | None) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _lost_connection(error: BaseException) -> BaseException | None:
    """Return the connection failure that a driver reported as a missing file, or None."""
    for _ in range(_MAX_CHAIN):
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None:
            return None
        error = inner
        if isinstance(error, FileNotFoundError):
            continue
        if isinstance(error, TimeoutError | ConnectionError | EOFError):
            return error
        if not _CONNECTION_CLASSES.isdisjoint(_class_names(error)):
            return error
    return None


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an exception, or None; drivers use different attributes."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return _as_status(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    # In this order: aiohttp warns about access to `code`.
    for holder, name in (
        (response, "status_code"),
        (error, "status"),
        (error, "status_code"),
        (error, "code"),
    ):
        if (status := _as_status(getattr(holder, name, None))) is not None:
            return status
    return None


def _as_status(value: Any) -> int | None:
    if isinstance(value, int | str) and str(value).isdigit() and 400 <= int(value) < 600:
        return int(value)
    return None


def _service_code(error: BaseException) -> str:
    """Return the code of an error of Amazon or Oracle, or "" for other errors."""
    if type(error).__name__ == "ServiceError":
        return str(getattr(error, "code", ""))
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, Mapping) else None
    return str(details.get("Code", "")) if isinstance(details, Mapping) else ""
