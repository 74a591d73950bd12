"""Checks of arguments that are local paths or URLs.

A mistyped URL must not become a local path. In particular, no directory is made whose name looks
like the scheme of a URL, such as ``s3:``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = [
    "Location",
    "is_http",
    "join_url",
    "local_path",
    "location_str",
    "require_picklable",
    "scheme_of",
]

Location: TypeAlias = "str | os.PathLike[str]"
"""A local path, or a URL."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ONE_SLASH = re.compile(r"((?:[^/:]*::)*[A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_STORE_SCHEME = re.compile(
    r"(?:[^/:]*::)*(abfss?|adl|azure(-dl)?|az|file|ftps?|gc?s|hdfs|hf|https?|local|memory|oci|s3[an]?|sftp|smb|ssh"
    r"|webdav|webhdfs):",
    re.IGNORECASE,
)


def location_str(location: Location, argument: str = "path") -> str:
    """Return a path or URL as a str.

    Parameters
    ----------
    location : str or os.PathLike
        A path object of another library may stand for a URL: then `str(location)` is that URL.
    argument : str
        The argument's name, for messages.

    Raises
    ------
    TypeError
        If `location` has another type, such as bytes.
    ValueError
        If `location` is empty, or a URL that lost a slash.

    Examples
    --------
    >>> from pathlib import Path
    >>> location_str(Path("data") / "train"), location_str("s3://bucket/corpus")
    ('data/train', 's3://bucket/corpus')
    """
    text: object = location
    if isinstance(location, os.PathLike):
        # For URL objects of other libraries, os.fspath returns a local copy or drops the scheme.
        text = url if "://" in (url := str(location)) else os.fspath(location)
    if not isinstance(text, str):
        name = _type_name(location, text)
        raise TypeError(f"{argument}: expected str or os.PathLike of str, not {name}")
    if not text:
        raise ValueError(f"{argument} is empty: give a path or a URL; '.' is this directory")
    if "\0" in text:
        raise ValueError(f"{argument}: {text!r} has a null character, which no path can have")
    if (match := _ONE_SLASH.match(text)) is not None and match[1].lower() not in ("file", "dbfs"):
        raise ValueError(
            f"{argument}: {match[0]!r} begins a URL that lost a slash, as in pathlib.Path: give a "
            f"URL as a str that begins with '{match[1]}://', and a path with './{match[0]}'"
        )
    return text


def _type_name(location: object, text: object) -> str:
    suffix = "" if text is location else f" of {type(text).__name__}"
    return f"{type(location).__name__}{suffix}"


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case, or "" for a path.

    Examples
    --------
    >>> scheme_of("S3://bucket/x"), scheme_of("/data"), scheme_of("file:/data")
    ('s3', '', 'file')
    """
    if (match := _SCHEME.match(text) or _ONE_SLASH.match(text)) is not None:
        scheme = match[1].lower()
        # MosaicML Streaming uses "dbfs:/" for Databricks. Such a URL is not a local path, and no
        # driver supports it. So the result is a scheme that no driver has.
        return "dbfs:" if scheme == "dbfs" else scheme
    # A chain of URLs in fsspec, such as "zip://x::s3://y", is not a local path either.
    start, separator, _ = text.partition("://")
    return start if separator and "::" in start else ""


def is_http(url: str) -> bool:
    """Return True for a web address, which may have a query and must be quoted."""
    return url.lower().startswith(("http://", "https://"))


def local_path(location: Location, argument: str = "path") -> str:
    """Return the absolute local path that a path or a ``file://`` URL names.

    Parameters
    ----------
    location : str or os.PathLike
    argument : str
        The argument's name, for messages.

    Raises
    ------
    TypeError
        If `location` has another type.
    ValueError
        If `location` is not on this machine.

    Examples
    --------
    >>> local_path("/data/../cache"), local_path("file:///my%20data")
    ('/cache', '/my data')
    """
    text = location_str(location, argument)
    if not (scheme := scheme_of(text)):
        path = os.path.abspath(os.path.expanduser(text))
        _check_parts(path, argument)
        return path
    address = text.partition(":")[2]
    if address.startswith("//"):
        host, slash, path = address[2:].partition("/")
    else:
        host, slash, path = "", "/", address[1:]
    if scheme != "file" or host.lower() not in ("", "localhost"):
        raise ValueError(
            f"{argument}: '{scheme}://...' is not on this machine: expected a local directory, or "
            "its file:// URL"
        )
    if not slash or not path.strip("/"):
        from npstream._core.redaction import redact_url

        raise ValueError(f"{argument}: {redact_url(text)!r} names no directory")
    from urllib.parse import unquote

    return os.path.abspath("/" + unquote(path))


def _check_parts(path: str, argument: str) -> None:
    """Raise ValueError if a missing directory in `path` has a name such as ``s3:``."""
    parts = path.split("/")
    for number, part in enumerate(parts):
        if _STORE_SCHEME.fullmatch(part) and not os.path.isdir("/".join(parts[: number + 1])):
            from npstream._core.redaction import redact_url

            redacted = redact_url("/".join(parts[number:]))
            raise ValueError(
                f"{argument}: {redacted!r} is a URL that lost a slash, as in pathlib.Path: give a "
                f"URL as a str that begins with '{part}//'"
            )


def join_url(url: Location, name: Location, argument: str = "split") -> str:
    """Return the path or URL of `name` below `url`; the query of a web address stays last.

    Parameters
    ----------
    url : str or os.PathLike
    name : str or os.PathLike
        A relative path.
    argument : str
        The name of the argument that `name` comes from, for messages.

    Examples
    --------
    >>> join_url("s3://bucket/corpus/", "train"), join_url("https://host/corpus?key=1", "train")
    ('s3://bucket/corpus/train', 'https://host/corpus/train?key=1')
    """
    text, part = location_str(url, "url"), location_str(name, argument)
    if part.startswith("/") or scheme_of(part):
        raise ValueError(
            f"{argument}: expected the name of a directory below the dataset's, not an absolute "
            "path or a URL"
        )
    base, separator, query = text.partition("?") if is_http(text) else (text, "", "")
    return base + "/" * (not base.endswith("/")) + part + separator + query


def require_picklable(options: Mapping[str, Any], where: str) -> None:
    """Raise TypeError, which names the option, if a driver's option cannot be pickled.

    Parameters
    ----------
    options : mapping
        The options of a storage driver.
    where : str
        The argument that they come from, for messages.
    """
    from multiprocessing.reduction import ForkingPickler

    for name, value in options.items():
        option = f"{where}[{name!r}]"
        if isinstance(value, Mapping):
            require_picklable(value, option)
            continue
        try:
            ForkingPickler.dumps(value)
        except TypeError:
            kind = type(value).__name__
            fix = "give the values it was made from"
            if kind == "SSLContext":
                fix = "give the name of the file of certificates (Certificates in docs/stores.md)"
            raise TypeError(
                f"{option}, of type {kind}, cannot be pickled for another process: {fix}, or fork "
                "the workers (multiprocessing_context='fork')"
            ) from None
