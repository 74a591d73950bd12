"""Values as short text, in the simplest form: ``5``, not ``np.int64(5)``.

Tested in tests/rendering/test_cells.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream._core.typing import AnyArray
from npstream.formats.encodings.images import is_image
from npstream.rendering.media import recognize

__all__ = [
    "WIDTH",
    "Unread",
    "array_elements",
    "error_text",
    "plain_text",
    "printable_name",
    "truncate",
    "value_text",
    "values_text",
]

WIDTH = 60
"""Maximum characters that are shown of a name or value."""

_PLAIN_MODULES = ("datetime", "decimal", "fractions", "ipaddress", "uuid")
"""Modules of types whose values are shown as their ``str``, which is shorter than ``repr``."""

MAX_TEXT_DEPTH = 4
"""Maximum depth of the nested containers that are shown of a value."""


class Unread:
    """Replaces a value that is too large to read for a preview."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __repr__(self) -> str:
        return f"<{size_text(self.nbytes)}, not read>"


def printable_name(name: str) -> str:
    """Return a name for a terminal: characters that control it become escapes."""
    return name if name.isprintable() else repr(name)[1:-1]


def truncate(text: str, width: int = WIDTH) -> str:
    """Return text, truncated to `width` characters."""
    return text if len(text) <= width else text[: width - 3] + "..."


def value_text(value: Any, width: int = WIDTH) -> str:
    """Return a value as one line of at most `width` characters. Never raises.

    Parameters
    ----------
    value : Any
        The value, or an exception if the value cannot be read.
    width : int, default: 60

    Returns
    -------
    str

    Examples
    --------
    >>> value_text(np.int64(5)), value_text("a" * 9, 7), value_text({"x": [np.float32(0.1)]})
    ('5', "'aaa...", "{'x': [0.1]}")
    >>> value_text(np.float64(2 / 3)), value_text(1760000000.123)
    ('0.666667', '1760000000.1')
    >>> value_text(np.arange(1000))
    'int64 (1000,) [0 1 2 ... 997 998 999]'
    """
    try:
        return _one_line(_text(value, width, 0), width)
    except Exception as error:  # the value's own __repr__ may raise anything
        return truncate(f"<{type(value).__name__}: its repr raises {type(error).__name__}>", width)


def _text(value: Any, width: int, depth: int) -> str:
    if isinstance(value, str):
        return repr(str(value[: width + 1]))
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes_text(bytes(value[: width + 1]), memoryview(value).nbytes, width)
    if isinstance(value, float | np.floating):
        return _float_text(value)
    if isinstance(value, np.generic):
        return str(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return _text(value[()], width, depth)
    if isinstance(value, np.ndarray):
        return _array_text(value, width)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _container_text(value, width, depth)
    if isinstance(value, BaseException):
        return error_text(value)
    if is_image(value):
        return f"<{value.format or value.mode} image, {value.width} x {value.height}>"
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "dim"):
        if value.dim() == 0:
            return _text(value.item(), width, depth)
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if type(value).__module__ in _PLAIN_MODULES:
        return str(value)
    return repr(value)


def _float_text(value: Any) -> str:
    """Return a number with 6 significant digits, but with all digits before the decimal point."""
    number, exact = float(value), str(value)
    if number.is_integer() and abs(number) < 1e16:
        return exact
    rounded = f"{number:.1f}" if 1e5 <= abs(number) < 1e16 else f"{number:.6g}"
    return rounded if len(rounded) < len(exact) else exact


def _bytes_text(head: bytes, nbytes: int, width: int) -> str:
    if (media := recognize(head)) is not None:
        return f"<{media.label}, {size_text(nbytes)}>"
    text = repr(head)
    if nbytes == len(head) and len(text) <= width:
        return text
    size = f" ({size_text(nbytes)})"
    return truncate(text, max(8, width - len(size))) + size


def _array_text(array: AnyArray, width: int) -> str:
    dtype = "str" if isinstance(array.dtype, np.dtypes.StringDType) else array.dtype
    return f"{dtype} {array.shape} {array_elements(array, width)}"


def array_elements(array: AnyArray, width: int) -> str:
    """Return the first and last elements of an array in one line."""
    text = " ".join(np.array2string(array, threshold=6, edgeitems=3, separator=" ").split())
    if array.dtype.kind in "biufcmM":
        text = text.replace("[ ", "[")  # NumPy pads numbers
    return truncate(text, width)


def _one_line(text: str, width: int) -> str:
    return truncate(" ".join(text.split()), width)


def _container_text(value: Any, width: int, depth: int) -> str:
    """Return a container with the first items that fit in `width` characters."""
    opening, closing = (
        "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
    )
    if depth >= MAX_TEXT_DEPTH and value:
        return f"{opening}...{closing}"
    parts: list[str] = []
    length = 0
    for item in value.items() if isinstance(value, Mapping) else value:
        if length > width:
            parts.append("...")
            break
        if isinstance(value, Mapping):
            name, content = item
            part = f"{_text(name, width, depth + 1)}: {_text(content, width, depth + 1)}"
        else:
            part = _text(item, width, depth + 1)
        length += len(part) + 2
        parts.append(part)
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{opening}{', '.join(parts)}{comma}{closing}"


def values_text(values: Iterable[Any], is_all: bool, width: int = WIDTH) -> str:
    """Return the first values that fit in one line, and ``...`` if there are more.

    Arrays are shown without dtype and shape, which the column's type says.

    Parameters
    ----------
    values : iterable
        The first values.
    is_all : bool
        True if there are no other values.
    width : int, default: 60

    Returns
    -------
    str

    Examples
    --------
    >>> values_text([1, 2], True), values_text(["a", "b"], False), values_text(range(99), True, 9)
    ('1, 2', "'a', 'b', ...", '0, 1, ...')
    """
    line = ""
    values_width = width - len(", ...")
    for value in values:
        separator = ", " if line else ""
        is_array = isinstance(value, np.ndarray) and value.ndim > 0
        text = array_elements(value, values_width) if is_array else value_text(value, values_width)
        part = separator + text
        if line and len(line) + len(part) > values_width:
            return f"{line}, ..."
        line += part
    return line if is_all else f"{line}, ..." if line else "..."


def plain_text(value: Any, limit: int) -> str:
    """Return a value as text for a table cell. A str has no quotes.

    Parameters
    ----------
    value : Any
    limit : int
        Maximum characters of the value. A note on the length of a longer str is not counted.

    Returns
    -------
    str

    Examples
    --------
    >>> plain_text("a'b", 10), plain_text("a" * 1000, 10), plain_text(np.float32(0.1), 10)
    ("a'b", 'aaaaaaaaaa… (1,000 characters)', '0.1')
    """
    if isinstance(value, str):
        if len(value) <= limit:
            return str(value)
        return f"{value[:limit]}… ({quantity(len(value), 'character')})"
    return value_text(value, limit)


def error_text(error: BaseException, width: int = 300) -> str:
    """Return the type and message of an exception in one line."""
    return truncate(" ".join(f"{type(error).__name__}: {error}".split()), width)
