"""Versions of remote files: what changes whenever a file does.

Tested in tests/shards/test_snapshot.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = ["Version", "version_of"]

_SIGNS = ("generation", "ETag", "etag", "blob_id", "xet_hash", "md5Hash", "content_md5")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")

_SETTLED = 86400.0
"""A time in whole seconds that is older than this is exact, however wrong the clocks are."""

_TIME_AND_SIZE = re.compile(r'"?([0-9a-f]+)-[0-9a-f]+"?')
"""nginx's ETag: the time of the last change in whole seconds, and the size."""


class Version(str):
    """A version of a file, as text that begins with the size.

    Parameters
    ----------
    text : str
    is_exact : bool

    Attributes
    ----------
    is_exact : bool
        False if two files that are written within one second may have the same version.
    """

    __slots__ = ("is_exact",)

    is_exact: bool

    def __new__(cls, text: str, is_exact: bool = True) -> Version:
        """Make a version of its text."""
        made = super().__new__(cls, text)
        made.is_exact = is_exact
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Version, (str(self), self.is_exact)


def version_of(info: Mapping[str, Any], now: float | None = None) -> Version:
    """Return the version of a file from its info.

    Parameters
    ----------
    info : mapping
        As drivers give it.
    now : float, optional
        The time, in seconds since 1970.

    Examples
    --------
    >>> version_of({"size": 3, "ETag": '"1f"'})
    '3:"1f"'
    >>> old, new = (version_of({"size": 3, "mtime": 5e8}, now) for now in (1e9, 5e8 + 60))
    >>> old == new, old.is_exact, new.is_exact
    (True, True, False)
    """
    sign = next((info[key] for key in _SIGNS if info.get(key)), None)
    changed = next((info[key] for key in _TIMES if info.get(key)), None)
    # Both, as a file that is written anew, the same, may stand for others that are not.
    text = ":".join([str(info.get("size")), *(str(p) for p in (sign, changed) if p is not None)])
    seconds = _seconds(changed)
    if seconds is not None and not seconds.is_integer():
        return Version(text)
    now = time.time() if now is None else now
    is_settled = seconds is not None and now - seconds > _SETTLED
    return Version(text, is_settled or _is_strong(sign, seconds))


def _is_strong(sign: Any, seconds: float | None) -> bool:
    """Return True if a sign changes with each change of the file."""
    if sign is None or str(sign).startswith("W/"):
        return False
    match = _TIME_AND_SIZE.fullmatch(str(sign))
    return match is None or seconds is None or int(match[1], 16) != seconds


def _seconds(changed: Any) -> float | None:
    """Return a time in seconds since 1970, or None if it cannot be told."""
    if isinstance(changed, datetime):
        return changed.timestamp()
    try:
        return float(changed)
    except (TypeError, ValueError):
        pass
    from email.utils import parsedate_to_datetime

    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return parse(changed).timestamp()
        except (TypeError, ValueError):
            continue
    return None
