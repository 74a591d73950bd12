"""Sizes in bytes, as numbers or as text."""

from __future__ import annotations

import re
from typing import overload

__all__ = ["parse_size", "size_text"]

_UNITS = {letter: 1024**power for power, letter in enumerate([None, *"kmgtpezy"])}
_SIZE = re.compile(r"(\d{1,30})|(\d{1,30}\.?\d*|\.\d+)\s*(?:([kmgtpezy])i?)?b", re.ASCII)


@overload
def parse_size(size: None) -> None: ...
@overload
def parse_size(size: int | float | str) -> int: ...
def parse_size(size: int | float | str | None) -> int | None:
    """Return a size as a number of bytes.

    Parameters
    ----------
    size : int, float, str or None
        A number of bytes, or text: digits alone, or a number and a unit. KB and KiB are both
        1024 bytes, MB and MiB both 1024 of those, and so on; letter case does not matter.

    Returns
    -------
    int or None
        The bytes, fractions dropped; None for None.

    Raises
    ------
    ValueError
        If the text is no size, or the size is negative.

    Examples
    --------
    >>> parse_size("64MiB") == parse_size("64 mb") == 64 << 20
    True
    >>> parse_size("1.5kb"), parse_size("100b"), parse_size(77)
    (1536, 100, 77)
    """
    if size is None:
        return None
    if isinstance(size, str):
        return _parse(size)
    if not 0 <= size < float("inf"):
        raise ValueError(f"a size is a finite number of bytes, 0 or more, not {size!r}")
    return int(size)


def _parse(text: str) -> int:
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(
            f"cannot read the size {text!r}: write a number of bytes, or a number and a unit "
            "(B, KB, MB, GB, TB, ... or KiB, MiB, GiB, TiB, ...; all powers of 1024)"
        )
    digits, number, letter = match.groups()
    if digits is not None:
        return int(digits)
    return int(float(number) * _UNITS[letter])


def size_text(nbytes: int) -> str:
    """Return a number of bytes with the unit that suits it.

    Examples
    --------
    >>> size_text(1536)
    '1.5 KiB'
    """
    size, units = float(nbytes), ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.1f} {units[0]}" if units[0] != "bytes" else f"{nbytes} bytes"
