"""Brace expansion of names, as in ``shard-{000..003}.tar``."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["expand_braces"]

_MAX_NAMES = 1_000_000

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?", re.ASCII)


def expand_braces(text: str) -> list[str]:
    """Return the names that a pattern with braces stands for, in the order that a shell uses.

    ``{a,b}`` expands to ``a`` and ``b``. ``{0..3}`` expands to the numbers from 0 to 3, both
    included. In ``{000..012..4}``, 4 is the step. Because a bound begins with 0, the numbers are
    padded with zeros to the width of the longer bound. Groups can be nested. Other braces stay as
    they are.

    Raises
    ------
    ValueError
        If there are more than 1,000,000 names.

    Examples
    --------
    >>> expand_braces("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    >>> expand_braces("{x}.tar")
    ['{x}.tar']
    """
    start = text.find("{")
    if start < 0:
        return [text]
    parts, stop = _split_group(text, start)
    if stop is None:
        return [text]
    if len(parts) > 1:
        choices: Sequence[str] = [name for part in parts for name in expand_braces(part)]
    elif (match := _RANGE.fullmatch(parts[0])) is not None:
        choices = _numbers(text, match)
    else:
        choices = [f"{{{name}}}" for name in expand_braces(parts[0])]
    endings = expand_braces(text[stop:])
    _check_count(text, len(choices) * len(endings))
    return [text[:start] + choice + ending for choice in choices for ending in endings]


def _split_group(text: str, start: int) -> tuple[list[str], int | None]:
    """Return the parts of the group at `start`, and the index after it; None if it has no end."""
    depth, begin, parts = 0, start + 1, []
    for index in range(start, len(text)):
        character = text[index]
        depth += (character == "{") - (character == "}")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(text[begin:index])
            begin = index + 1
        if depth == 0:
            return parts, begin
    return [], None


def _numbers(text: str, match: re.Match[str]) -> list[str]:
    first, last, step = match.groups()
    start, stop, stride = int(first), int(last), abs(int(step or 1)) or 1
    _check_count(text, abs(stop - start) // stride + 1)
    has_zeros = any(re.match(r"-?0\d", bound) for bound in (first, last))
    width = max(len(first), len(last)) if has_zeros else 0
    values = range(start, stop + 1, stride) if start <= stop else range(start, stop - 1, -stride)
    return [f"{value:0{width}d}" for value in values]


def _check_count(text: str, count: int) -> None:
    if count > _MAX_NAMES:
        raise ValueError(
            f"{text!r} stands for {count:,} names; at most {_MAX_NAMES:,} are possible: use "
            "smaller bounds, or *"
        )
