"""Versions of remote files: text that changes when the file changes.

Tested in tests/shards/test_snapshot.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = ["Version", "version_of"]

_TAG_KEYS = ("generation", "ETag", "etag", "blob_id", "xet_hash", "md5Hash", "content_md5")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")

_MIN_EXACT_AGE = 86400.0
"""The age, in seconds, above which a time in whole seconds identifies a version.

No later write to such a file can get the same time in whole seconds, even if the clocks of the
server and of this machine differ.
"""

_TIME_AND_SIZE = re.compile(r'"?([0-9a-f]+)-[0-9a-f]+"?')
"""An ETag of nginx: the time of the last change in whole seconds, and the size."""


class Version(str):
    """The version of a file: text that starts with the size.

    Parameters
    ----------
    text : str
    is_exact : bool

    Attributes
    ----------
    is_exact : bool
        False if two versions written within one second may have the same text.
    """

    __slots__ = ("is_exact",)

    is_exact: bool

    def __new__(cls, text: str, is_exact: bool = True) -> Version:
        """Make a version from its text."""
        version = super().__new__(cls, text)
        version.is_exact = is_exact
        return version

    def __reduce__(self) -> tuple[Any, ...]:
        return Version, (str(self), self.is_exact)


def version_of(info: Mapping[str, Any], now: float | None = None) -> Version:
    """Return the version of a file from its info.

    Parameters
    ----------
    info : mapping
        The info that a driver returns.
    now : float, optional
        The current time, in seconds since 1970.

    Examples
    --------
    >>> version_of({"size": 3, "ETag": '"1f"'})
    '3:"1f"'
    >>> old, new = (version_of({"size": 3, "mtime": 5e8}, now) for now in (1e9, 5e8 + 60))
    >>> old == new, old.is_exact, new.is_exact
    (True, True, False)
    """
    tag = next((info[key] for key in _TAG_KEYS if info.get(key)), None)
    modified = next((info[key] for key in _TIME_KEYS if info.get(key)), None)
    if info.get("generation"):
        # Each upload to Google's storage has a generation of its own. The time is left out, because
        # one interface of the server has it in whole seconds, and the other in milliseconds.
        modified = None
    # The text includes the tag and the time. A file that is rewritten with the same bytes keeps its
    # tag, but other files of the dataset may have changed at the same time.
    text = ":".join([str(info.get("size")), *(str(p) for p in (tag, modified) if p is not None)])
    seconds = _seconds(modified)
    if seconds is not None and not seconds.is_integer():
        return Version(text)
    now = time.time() if now is None else now
    is_old = seconds is not None and now - seconds > _MIN_EXACT_AGE
    return Version(text, is_old or _is_strong(tag, seconds))


def _is_strong(tag: Any, seconds: float | None) -> bool:
    """Return True if a tag differs between all versions of the file."""
    if tag is None or str(tag).startswith("W/"):
        return False
    match = _TIME_AND_SIZE.fullmatch(str(tag))
    return match is None or seconds is None or int(match[1], 16) != seconds


def _seconds(modified: Any) -> float | None:
    """Return a time in seconds since 1970, or None if its format is unknown."""
    if isinstance(modified, datetime):
        return modified.timestamp()
    try:
        return float(modified)
    except (TypeError, ValueError):
        pass
    from email.utils import parsedate_to_datetime

    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return parse(modified).timestamp()
        except (TypeError, ValueError):
            continue
    return None
