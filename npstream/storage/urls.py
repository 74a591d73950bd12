"""Paths and URLs as arguments: which of the two a text is, and local paths of either.

Nothing here takes one for the other. A directory that is named like the scheme of a URL is what a
mistake leaves behind, so it is never made.
"""

from __future__ import annotations

import os
import re
from typing import TypeAlias
from urllib.parse import unquote

from npstream._core.redaction import redacted_url

__all__ = ["Location", "below", "is_http", "local_path", "location", "scheme_of"]

Location: TypeAlias = "str | os.PathLike[str]"
"""A local path, or a URL."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ONE_SLASH = re.compile(r"((?:[^/:]*::)*[A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_STORES = re.compile(
    r"(?:[^/:]*::)*(abfss?|adl|azure(-dl)?|az|file|ftps?|gc?s|hdfs|hf|https?|local|memory|oci|s3[an]?|sftp|smb|ssh"
    r"|webdav|webhdfs):",
    re.IGNORECASE,
)


def location(given: Location, argument: str = "path") -> str:
    """Return the text of a path or URL that was given as an argument.

    Parameters
    ----------
    given : str or os.PathLike
        An object that shows itself as a URL, such as a path of another library, is that URL.
    argument : str
        The argument's name, for messages.

    Raises
    ------
    TypeError
        If it is of another type, bytes included.
    ValueError
        If it is empty, or a URL that lost a slash.

    Examples
    --------
    >>> from pathlib import Path
    >>> location(Path("data") / "train"), location("s3://bucket/corpus")
    ('data/train', 's3://bucket/corpus')
    """
    text: object = given
    if isinstance(given, os.PathLike):
        # Objects for URLs give their local copy, or a path without scheme, to os.fspath.
        text = shown if "://" in (shown := str(given)) else os.fspath(given)
    if not isinstance(text, str):
        raise TypeError(f"{argument}: expected str or os.PathLike of str, not {_kind(given, text)}")
    if not text:
        raise ValueError(f"{argument} is empty: give a path or a URL; '.' is this directory")
    if (match := _ONE_SLASH.match(text)) is not None and match[1].lower() not in ("file", "dbfs"):
        raise ValueError(
            f"{argument}: {match[0]!r} begins a URL that lost a slash, as in pathlib.Path: give a "
            f"URL as a str that begins with '{match[1]}://', and a path with './{match[0]}'"
        )
    return text


def _kind(given: object, text: object) -> str:
    path = "" if text is given else f" of {type(text).__name__}"
    return f"{type(given).__name__}{path}"


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case, or nothing for a path.

    Examples
    --------
    >>> scheme_of("S3://bucket/x"), scheme_of("/data"), scheme_of("file:/data")
    ('s3', '', 'file')
    """
    if (match := _SCHEME.match(text) or _ONE_SLASH.match(text)) is not None:
        scheme = match[1].lower()
        # What Streaming takes for Databricks is no local path.
        return "dbfs:" if scheme == "dbfs" else scheme
    # Nor is what fsspec takes for a chain.
    start, separator, _ = text.partition("://")
    return start if separator and "::" in start else ""


def is_http(url: str) -> bool:
    """Return True for a URL that may have a query, and needs quoting."""
    return url.lower().startswith(("http://", "https://"))


def local_path(given: Location, argument: str = "path") -> str:
    """Return the absolute local path that a path or a ``file://`` URL names.

    Parameters
    ----------
    given : str or os.PathLike
    argument : str
        The argument's name, for messages.

    Raises
    ------
    TypeError
        If it is of another type.
    ValueError
        If it names anything but this machine's files.

    Examples
    --------
    >>> local_path("/data/../cache"), local_path("file:///my%20data")
    ('/cache', '/my data')
    """
    text = location(given, argument)
    if not (scheme := scheme_of(text)):
        path = os.path.abspath(os.path.expanduser(text))
        _check_parts(path, argument)
        return path
    rest = text.partition(":")[2]
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", "/", rest[1:])
    if scheme != "file" or host.lower() not in ("", "localhost"):
        raise ValueError(
            f"{argument}: '{scheme}://...' is not on this machine: expected a local directory, or "
            "its file:// URL"
        )
    if not slash or not path.strip("/"):
        raise ValueError(f"{argument}: {redacted_url(text)!r} names no directory")
    return os.path.abspath("/" + unquote(path))


def _check_parts(path: str, argument: str) -> None:
    """Raise if a directory would have to be made that is named like a store's scheme."""
    parts = path.split("/")
    for number, part in enumerate(parts):
        if _STORES.fullmatch(part) and not os.path.isdir("/".join(parts[: number + 1])):
            shown = redacted_url("/".join(parts[number:]))
            raise ValueError(
                f"{argument}: {shown!r} is a URL that lost a slash, as in pathlib.Path: give a URL "
                f"as a str that begins with '{part}//'"
            )


def below(url: Location, name: Location, argument: str = "split") -> str:
    """Return the path or URL of something below another; the query of a web address stays last.

    Parameters
    ----------
    url : str or os.PathLike
    name : str or os.PathLike
        A relative path.
    argument : str
        What that argument is called, for messages.

    Examples
    --------
    >>> below("s3://bucket/corpus/", "train"), below("https://host/corpus?key=1", "train")
    ('s3://bucket/corpus/train', 'https://host/corpus/train?key=1')
    """
    text, part = location(url, "url"), location(name, argument)
    if part.startswith("/") or scheme_of(part):
        raise ValueError(
            f"{argument}: expected the name of a directory below the dataset's, not an absolute "
            "path or a URL"
        )
    base, mark, query = text.partition("?") if is_http(text) else (text, "", "")
    return base + "/" * (not base.endswith("/")) + part + mark + query
