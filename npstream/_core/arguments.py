"""Validation of arguments: integers, counts of samples, sizes, durations, lists of names.

Also the text of counts and sizes for messages.
"""

from __future__ import annotations

import math
import numbers
import operator
import re
from typing import Any, overload

import numpy as np

from npstream.errors import short_repr

__all__ = ["integer", "parse_count", "parse_seconds", "parse_size", "size_text"]

_POWERS = {"k": 1, "m": 2, "b": 3, "t": 4}
"""Units of counts of samples, as powers of 1000."""

_MAX_COUNT = (1 << 63) - 1
"""The largest count of samples, because positions are int64."""

_MAX_DIGITS = 40
"""The most digits that a count may have as text."""

_UNITS = {letter: 1024**power for power, letter in enumerate([None, *"kmgtpezy"])}
_SIZE = re.compile(r"(\d{1,30})|(\d{1,30}\.?\d*|\.\d+)\s*(?:([kmgtpezy])i?)?b", re.ASCII)

_DURATION = re.compile(r"(\d{1,15}\.?\d{0,15}|\.\d{1,15})\s*(s|min|h|d)?", re.ASCII)
_SECONDS = {None: 1, "s": 1, "min": 60, "h": 3600, "d": 86_400}


@overload
def parse_size(size: None, name: str = "") -> None: ...
@overload
def parse_size(size: int | float | str, name: str = "") -> int: ...
def parse_size(size: int | float | str | None, name: str = "") -> int | None:
    """Return a size as a number of bytes.

    Parameters
    ----------
    size : int, float, str or None
        A number of bytes, or text: digits alone, or a number and a unit. KB and KiB are both
        1024 bytes, MB and MiB are both 1024 KiB, and so on. Letter case does not matter.
    name : str, default: ""
        The name of the parameter, with which messages begin.

    Returns
    -------
    int or None
        The number of bytes, rounded down. None for None.

    Raises
    ------
    ValueError
        If the text is not a size, or the size is negative or not finite.
    TypeError
        If the size is neither a number nor text.

    Examples
    --------
    >>> parse_size("64MiB") == parse_size("64 mb") == 64 << 20
    True
    >>> parse_size("1.5kb"), parse_size("100b"), parse_size(77)
    (1536, 100, 77)
    """
    if size is None:
        return None
    where = f"{name}={short_repr(size)}: " if name else ""
    if isinstance(size, str):
        return _parse(size, where)
    if not is_number(size):
        raise TypeError(f"{where}a size is a number of bytes or text, not {short_repr(size)}")
    if not 0 <= size < float("inf"):
        raise ValueError(f"{where}a size is a finite number of bytes, 0 or more, not {size!r}")
    return int(size)


def is_number(value: Any) -> bool:
    """Return True for a real number of Python or NumPy, but not for a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _parse(text: str, where: str) -> int:
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(
            f"{where}cannot read the size {text!r}: write a number of bytes, or a number and a "
            "unit (B, KB, MB, GB, TB, ... or KiB, MiB, GiB, TiB, ...; all powers of 1024)"
        )
    digits, number, letter = match.groups()
    if digits is not None:
        return int(digits)
    return int(float(number) * _UNITS[letter])


def parse_seconds(name: str, duration: Any) -> float:
    """Return a duration in seconds, the value of the parameter `name`.

    Parameters
    ----------
    name : str
        The name of the parameter, for messages.
    duration : float or str
        A number of seconds, or text: a number and a unit (s, min, h or d), or a number alone.

    Raises
    ------
    ValueError
        If the text is not a duration, or the duration is negative or not finite.
    TypeError
        If the duration is neither a number nor text.

    Examples
    --------
    >>> parse_seconds("outage", "10min"), parse_seconds("outage", "1.5 h"), parse_seconds("", 7)
    (600.0, 5400.0, 7.0)
    """
    where = f"{name}={short_repr(duration)}: "
    if isinstance(duration, str):
        match = _DURATION.fullmatch(duration.strip().lower())
        if match is None:
            raise ValueError(
                f"{where}expected a number of seconds, or a number and a unit (s, min, h or d)"
            )
        return float(match[1]) * _SECONDS[match[2]]
    if not is_number(duration):
        raise TypeError(f"{where}expected a number of seconds, or text such as '10min'")
    if not 0 <= duration < math.inf:
        raise ValueError(f"{where}expected a finite number of seconds, 0 or more")
    return float(duration)


def size_text(nbytes: int) -> str:
    """Return a number of bytes as text, with the largest suitable unit.

    Examples
    --------
    >>> size_text(1536)
    '1.5 KiB'
    """
    size, units = float(nbytes), ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.1f} {units[0]}" if units[0] != "bytes" else quantity(nbytes, "byte")


def quantity(count: int, noun: str) -> str:
    """Return a count and a noun, which is in the plural unless the count is 1.

    Examples
    --------
    >>> quantity(1, "shard"), quantity(2000, "batch")
    ('1 shard', '2,000 batches')
    """
    if count == 1:
        return f"1 {noun}"
    if noun == "axis":
        return f"{count:,} axes"
    return f"{count:,} {noun}{'es' if noun.endswith(('ch', 's', 'x')) else 's'}"


def integer(name: str, number: Any, minimum: int | None = None) -> int:
    """Return `number`, the value of the parameter `name`, as an int.

    Raises
    ------
    TypeError
        If `number` is a bool or not an integer.
    ValueError
        If `number` is less than `minimum`.
    """
    if isinstance(number, bool | np.bool_) or not hasattr(number, "__index__"):
        raise TypeError(f"{name}={short_repr(number)}: expected an integer")
    value = operator.index(number)
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}={value}: expected at least {minimum}")
    return value


def name_list(columns: Any) -> list[str]:
    """Return a list of column names; raise TypeError for a single name.

    Examples
    --------
    >>> name_list(("text", "label"))
    ['text', 'label']
    """
    if isinstance(columns, str):
        raise TypeError(f"columns={columns!r}: expected a list of names, [{columns!r}]")
    return list(columns)


def parse_count(name: str, number: Any) -> int | None:
    """Return a number of samples, the value of the parameter `name`, as an int; None for None.

    The number may be a float, as in configuration files, or text, as in MosaicML Streaming. The
    text is digits, or a number that ``float`` accepts and a unit (k, M, B or T). Fractions of a
    sample are dropped, as in MosaicML Streaming.

    Examples
    --------
    >>> [parse_count("epoch_size", count) for count in ("1.5k", " 64 M", 500.0)]
    [1500, 64000000, 500]
    """
    if number is None:
        return None
    count = number
    if isinstance(number, str):
        count = _count_from_text(name, number)
    elif isinstance(number, float | np.floating):
        if not math.isfinite(number):
            raise ValueError(f"{name}={number!r}: expected a number of samples")
        count = int(number)
    count = integer(name, count)
    if not 1 <= count <= _MAX_COUNT:
        parsed = "" if count == number else f", which is {count}"
        raise ValueError(f"{name}={number!r}{parsed}: expected at least 1 and at most {_MAX_COUNT}")
    return count


def _count_from_text(name: str, text: str) -> int:
    digits = text.strip().lower()
    if digits.isdecimal() and len(digits) <= _MAX_DIGITS:
        return int(digits)
    if digits[-1:] in _POWERS:
        try:
            return int(float(digits[:-1]) * 1000 ** _POWERS[digits[-1]])
        except (ValueError, OverflowError):  # OverflowError: the number is infinite
            pass
    raise ValueError(
        f"{name}={text!r}: expected a number, alone or with a unit: thousands (k), millions (M), "
        "billions (B) or trillions (T), as in '100k'"
    )
