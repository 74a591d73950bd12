"""What a driver's exception means: whether to try again, and what to tell the user."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Cause", "classify"]


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
_TIMED_OUT = Cause(errno.ETIMEDOUT, True)
_BUSY = Cause(errno.EBUSY, True)
_BROKEN = Cause(errno.EIO, True)
_UNREACHABLE = Cause(errno.EHOSTUNREACH, True)

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
    501: _REFUSED,
    503: _BUSY,
    504: _TIMED_OUT,
    505: _REFUSED,
}

# Amazon says some of what passes with the status of what does not.
_BY_WORD = {
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
    "ClientConnectorCertificateError": _DENIED,
    "SSLCertVerificationError": _DENIED,
    "BucketNotFoundError": _NOT_FOUND,
    "RepositoryNotFoundError": _NOT_FOUND,
    "EntryNotFoundError": _NOT_FOUND,
    "RevisionNotFoundError": _NOT_FOUND,
    # Raised from an error of the parser's, which bears a status that no server sent.
    "ClientPayloadError": _BROKEN,
    # Their errno is a number of the resolver's.
    "ClientConnectorDNSError": _UNREACHABLE,
    "gaierror": _UNREACHABLE,
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

_LASTING = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG, errno.EFBIG}
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
    for link in _chain(error):
        if (cause := _BY_WORD.get(_word(link))) is not None:
            return cause
        for kind in type(link).__mro__:
            if (cause := _BY_CLASS.get(kind.__name__)) is not None:
                return cause
        if (status := _status(link)) is not None:
            return _BY_STATUS.get(status, _BROKEN if status >= 500 else _REFUSED)
    for family, cause in _BY_TYPE:
        if isinstance(error, family):
            return cause
    if isinstance(error, OSError):
        if str(error).startswith("Forbidden"):  # gcsfs
            return _DENIED
        return Cause(error.errno or errno.EIO, error.errno not in _LASTING)
    return _REFUSED if isinstance(error, _MISTAKES) else _BROKEN


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, or made of."""
    for _ in range(10):
        if error is None:
            return
        yield error
        inner = error.args[0] if error.args else None
        error = error.__cause__ or (inner if isinstance(inner, BaseException) else None)


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
    """Return the code of an error of Amazon's."""
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, Mapping) else None
    return str(details.get("Code", "")) if isinstance(details, Mapping) else ""
