"""What a driver's exception means: whether to try again, and what to tell the user."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from npstream.storage.responses import ResponseError

__all__ = ["Cause", "classify", "diagnose"]


class Cause(NamedTuple):
    """Why a request failed.

    Attributes
    ----------
    code : int
        The errno that says it best.
    transient : bool
        Whether the same request may succeed later.
    """

    code: int
    transient: bool


_NOT_FOUND = Cause(errno.ENOENT, False)
_DENIED = Cause(errno.EACCES, False)
_EXISTS = Cause(errno.EEXIST, False)
_REFUSED = Cause(errno.EINVAL, False)
_UNSUPPORTED = Cause(errno.EOPNOTSUPP, False)
_TIMED_OUT = Cause(errno.ETIMEDOUT, True)
_BUSY = Cause(errno.EBUSY, True)
_BROKEN = Cause(errno.EIO, True)
_UNREACHABLE = Cause(errno.EHOSTUNREACH, True)
_UNTRUSTED = Cause(errno.ECONNABORTED, False)
"""The server's certificate. No other failure has this errno."""
_NOT_SPOKEN = Cause(errno.EPROTO, True)
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
    505: _REFUSED,
}

# Amazon and Oracle say some of what passes with the status of what does not.
_BY_WORD = {
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

# Told by name, as no driver may be imported just to be asked for its exceptions.
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
    # Raised from an error of the parser, which bears a status that no server sent.
    "ClientPayloadError": _BROKEN,
    # Their errno is a number of the resolver's.
    "ClientConnectorDNSError": _UNREACHABLE,
    "NameResolutionError": _UNREACHABLE,
    "gaierror": _UNREACHABLE,
    "BadStatusLine": _NOT_SPOKEN,
    "RemoteDisconnected": _BROKEN,  # http.client derives it from BadStatusLine
    "InvalidUrlClientError": _REFUSED,
    "ParamValidationError": _REFUSED,
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

_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)

_NETWORK = {
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT),
}
"""What the system says of a connection, whatever a driver makes of that."""

_NOT_TLS_REASONS = {
    *("HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"),
    *("UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION", "WRONG_VERSION_NUMBER"),
}
"""OpenSSL's names for an answer that is not TLS."""
_CONNECTION = {
    "ClientConnectionError",  # aiohttp
    "HTTPClientError",  # botocore
    "ProtocolError",  # urllib3
    "ServiceRequestError",  # azure.core
    "ServiceResponseError",
    "SSHException",  # paramiko
    "TransportError",  # httpx
}
"""Base classes of connection failures that do not derive from ConnectionError."""

_LASTING = {
    errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOSPC, errno.EOPNOTSUPP, errno.EROFS
}  # fmt: skip
"""What a server's disk says, and goes on saying."""


def classify(error: BaseException) -> Cause:
    """Tell what an exception of any driver means.

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
    """Return what an exception means, and the one that says so: it, or what it was raised from.

    Drivers wrap exceptions of their libraries, and those wrap the system's. What the outermost
    says for certain counts; many say nothing but that a request failed.
    """
    for link in _chain(error):
        if (cause := _meaning(link)) is not None:
            return cause, link
    if isinstance(error, FileNotFoundError) and (lost := _lost_connection(error)) is not None:
        return diagnose(lost)
    for family, cause in _BY_TYPE:
        if isinstance(error, family):
            return cause, error
    if isinstance(error, OSError):
        if str(error).startswith("Forbidden"):  # gcsfs
            return _DENIED, error
        return Cause(error.errno or errno.EIO, error.errno not in _LASTING), error
    return (_REFUSED if isinstance(error, _MISTAKES) else _BROKEN), error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, made of, or raised while handling."""
    for _ in range(10):
        if error is None:
            return
        yield error
        made_of = [*error.args[:1], *getattr(error, "errors", {}).values()]
        inner = [link for link in made_of if isinstance(link, BaseException)]
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or next(iter(inner), context)


def _meaning(error: BaseException) -> Cause | None:
    """Return what an exception means by itself; None if it does not say."""
    if isinstance(error, ResponseError):
        return _BROKEN if error.transient else _REFUSED
    if (cause := _BY_WORD.get(_word(error))) is not None:
        return cause
    kinds = _families(error)
    for kind in kinds:
        if (cause := _BY_CLASS.get(kind)) is not None:
            return cause
    inner = error.__cause__ or error.__context__
    # aiohttp gives its error of an answer that is not HTTP a status, which no server sent.
    unparsed = {*kinds, *_families(inner)}
    if "HttpProcessingError" not in unparsed and (status := _status(error)) is not None:
        return _BY_STATUS.get(status, _BROKEN if status >= 500 else _REFUSED)
    if "SSLError" in kinds and getattr(error, "reason", None) in _NOT_TLS_REASONS:
        return _NOT_TLS
    if "SSHException" in kinds and "protocol banner" in str(error):
        return None if isinstance(inner, OSError) else _NOT_SPOKEN
    if "RemoteProtocolError" in kinds and "illegal status line" in str(error):  # httpx
        return _NOT_SPOKEN
    if isinstance(error, TimeoutError):
        return _TIMED_OUT
    if isinstance(error, OSError) and error.errno in _NETWORK:
        return Cause(error.errno, True)
    return None


def _families(error: BaseException | None) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _lost_connection(error: BaseException) -> BaseException | None:
    """Return the connection failure that a driver reported as a missing file, or None."""
    for _ in range(10):
        inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if inner is None:
            return None
        error = inner
        if isinstance(error, FileNotFoundError):
            continue
        if isinstance(error, TimeoutError | ConnectionError | EOFError):
            return error
        if not _CONNECTION.isdisjoint(_families(error)):
            return error
    return None


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception carries under whichever name."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return _as_status(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    # One after the other, as aiohttp warns of whoever asks for the last.
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


def _word(error: BaseException) -> str:
    """Return the code of an error of Amazon's or Oracle's."""
    if type(error).__name__ == "ServiceError":
        return str(getattr(error, "code", ""))
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, Mapping) else None
    return str(details.get("Code", "")) if isinstance(details, Mapping) else ""
