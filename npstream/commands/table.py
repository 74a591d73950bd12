"""Tables of text that fit a terminal, also with wide characters.

No value can reach the terminal as an escape sequence: characters that are not printable are
shown as Python would write them. Spaces and joiners stay.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from typing import Any

from npstream.commands.output import style_text

__all__ = ["cell_text", "display_width", "fit", "format_table", "printable", "table_width"]

GAP = "  "
"""The text between two columns."""

MIN_WIDTH = 8
"""Minimum width of a truncated column. Columns that then still do not fit are omitted."""

MAX_CHARACTERS = 1000
"""Maximum characters of a value that are processed."""

SHOWN_BYTES = 16
"""Maximum bytes of a value that are shown after the size."""

_JOINERS = {"\u200c", "\u200d"}
"""Joiners of letters and emoji. They are shown, although Python calls them not printable."""


def format_table(
    names: Sequence[str],
    types: Sequence[str] | None,
    rows: Sequence[Sequence[Any]],
    width: int | None = None,
    left_columns: int | None = None,
) -> tuple[list[str], list[str]]:
    r"""Return the lines of a table, and the names of the columns that do not fit in it.

    Parameters
    ----------
    names : sequence of str
        The headers of the columns.
    types : sequence of str, optional
        A second line of headers.
    rows : sequence of sequence
        The values of each row.
    width : int, optional
        Maximum width of a line, in terminal cells. By default that of ``COLUMNS`` or of the
        terminal, or 80. The first two columns are always shown.
    left_columns : int, optional
        Number of columns that are aligned to the left, from the first on; the others are aligned
        to the right. By default columns of numbers are aligned to the right, and others to the
        left.

    Examples
    --------
    >>> lines, omitted = format_table(["row", "text"], ["", "str"], [[9, "東京"], [10, "x"]], 80)
    >>> print("\n".join(lines))
    row  text
         str
      9  東京
     10  x
    """
    if width is None:
        width = shutil.get_terminal_size().columns
    headers = [list(names)] if types is None else [list(names), list(types)]
    columns = [list(map(cell_text, cells)) for cells in zip(*headers, *rows, strict=True)]
    widths = [max(map(display_width, column)) for column in columns]
    limits = _limits(widths, width)
    is_right = [
        number >= left_columns
        if left_columns is not None
        else bool(rows) and all(_is_number(row[number]) for row in rows)
        for number in range(len(names))
    ]
    lines = []
    for number in range(len(headers) + len(rows)):
        cells = [
            _pad(fit(column[number], limit), limit, right)
            for column, limit, right in zip(columns, limits, is_right, strict=False)
        ]
        line = GAP.join(cells).rstrip()
        lines.append(style_text(line, ("bold", "dim")[number]) if number < len(headers) else line)
    return lines, list(names[len(limits) :])


def table_width(rows: Sequence[Sequence[Any]]) -> int:
    """Return the width of a table without truncated cells.

    Examples
    --------
    >>> table_width([["a", "bc"], ["def", "g"]])
    7
    """
    widths = [
        max(display_width(cell_text(cell)) for cell in cells) for cells in zip(*rows, strict=True)
    ]
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _limits(widths: list[int], total: int) -> list[int]:
    """Return the widths of the columns that fit; the widest are truncated to the same width."""
    count = len(widths)
    while count > 2 and sum(min(w, MIN_WIDTH) for w in widths[:count]) > _available(total, count):
        count -= 1
    widths = widths[:count]
    available = _available(total, count)
    limit = max(widths, default=0)
    while limit > MIN_WIDTH and sum(min(w, limit) for w in widths) > available:
        limit -= 1
    limits = [min(w, limit) for w in widths]
    # The width that rounding leaves goes to the first truncated columns.
    for number, full_width in enumerate(widths):
        extra = min(full_width - limits[number], max(available - sum(limits), 0))
        limits[number] += extra
    return limits


def _available(total: int, count: int) -> int:
    """Return the width that `count` columns share: the total without the gaps."""
    return total - len(GAP) * (count - 1)


def _pad(text: str, width: int, right: bool) -> str:
    spaces = " " * (width - display_width(text))
    return spaces + text if right else text + spaces


def _is_number(value: Any) -> bool:
    """Return True for a number of Python or NumPy."""
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind is not None:
        return kind in "iufc" and not value.shape
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def cell_text(value: Any) -> str:
    r"""Return a value as one line of printable text.

    Examples
    --------
    >>> cell_text(np.int64(5)), cell_text("a\nb"), cell_text(np.arange(1000))
    ('5', 'a\\nb', '[0 1 2 ... 997 998 999]')
    >>> cell_text(b"abc"), cell_text({"a": [1, None]})
    ("3 bytes b'abc'", '{"a": [1, null]}')
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bytes):
        from npstream._core.arguments import size_text

        end = "..." if len(value) > SHOWN_BYTES else ""
        return f"{size_text(len(value))} {value[:SHOWN_BYTES]!r}{end}"
    if isinstance(value, dict | list):
        from npstream.commands.output import json_text

        return printable(json_text(value))
    if getattr(value, "ndim", 0):
        import numpy as np

        elements = np.array2string(np.asarray(value), threshold=6, edgeitems=3, separator=" ")
        shape = f"{value.shape} " if value.ndim > 1 else ""
        return printable(shape + " ".join(elements.split()).replace("[ ", "["))
    return printable(str(value))


def printable(text: str) -> str:
    r"""Return text with escapes for control characters, truncated to `MAX_CHARACTERS`.

    Examples
    --------
    >>> printable("red\x1b[31m"), printable("x" * 2000) == "x" * 1000
    ('red\\x1b[31m', True)
    """
    text = text[:MAX_CHARACTERS]
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def display_width(text: str) -> int:
    r"""Return the number of a terminal's cells that a text takes.

    Examples
    --------
    >>> display_width("abc"), display_width("東京"), display_width("e\u0301")
    (3, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(character: str) -> int:
    # Hangul vowels and final consonants join the consonant before them.
    if unicodedata.category(character) in ("Mn", "Me", "Cf") or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def fit(text: str, width: int) -> str:
    """Return text that takes at most `width` cells: the end of longer text is "...".

    Examples
    --------
    >>> fit("abcdefgh", 6), fit("東京都庁", 7), fit("abc", 3)
    ('abc...', '東京...', 'abc')
    """
    if display_width(text) <= width:
        return text
    end = "..."[:width]
    remaining = width - len(end)
    for number, character in enumerate(text):
        remaining -= 1 if character.isascii() else _character_width(character)
        if remaining < 0:
            return text[:number] + end
    return text
