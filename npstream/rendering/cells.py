"""Cells of HTML tables: text, nested values, thumbnails of images, and players of audio."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from npstream._core.arguments import quantity, size_text
from npstream.formats.encodings.encodings import parse
from npstream.formats.encodings.images import is_image
from npstream.rendering.html import Markup, element, table
from npstream.rendering.media import HEADER_BYTES, recognize
from npstream.rendering.text import (
    array_elements,
    error_text,
    plain_text,
    truncate,
    value_text,
    values_text,
)
from npstream.rendering.thumbnails import Thumbnail, is_image_array, thumbnail

__all__ = [
    "CellRenderer",
    "first_items",
    "first_values_text",
    "image_element",
    "is_numeric",
    "rows_table",
    "type_text",
]

THUMBNAIL_SIDE = 96
"""Maximum width and height of a thumbnail in a table, in CSS pixels."""

MAX_TEXT = 160
"""Maximum characters that are shown of a text."""

MAX_AUDIO = 1 << 20
"""Maximum bytes of an audio file that a page contains."""

MAX_PAGE = 4 << 20
"""Maximum bytes of all images and audio files of a page."""

MAX_IMAGES = 4
"""Maximum images that are shown of a list of images."""

MAX_ITEMS = 20
"""Maximum items that are shown of a nested value."""

MAX_NODES = 200
"""Maximum items that are shown of a cell, in all its nested values together."""

MAX_LINE = 48
"""Maximum characters of a value on one line. Longer nested values are collapsed."""


def is_numeric(value: Any) -> bool:
    """Return True for a number, which a table aligns to the right."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


class CellRenderer:
    """Makes the cells of one page, and limits the size of its images and audio files."""

    def __init__(self) -> None:
        self._remaining_bytes = MAX_PAGE

    def cell(self, value: Any, encoding: str = "") -> Markup:
        """Return the HTML of a value. Never raises.

        Parameters
        ----------
        value : Any
            The value, or an exception if the value cannot be read.
        encoding : str, default: ""
            The stored encoding of the value; "" if it is unknown. An image in the encoding
            ``"pil"`` is not an image file. It is recognized only by this argument.

        Returns
        -------
        Markup
        """
        try:
            return self._cell(value, encoding)
        except Exception as error:  # the methods of a value may raise anything
            return _error_cell(error)

    def _cell(self, value: Any, encoding: str) -> Markup:
        if isinstance(value, BaseException):
            return _error_cell(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes_cell(bytes(value), encoding)
        if isinstance(value, np.ndarray) and is_image_array(value.dtype, value.shape):
            return self._image_cell(value, "uint8")
        if is_image(value):
            return self._image_cell(value, value.format or value.mode)
        if isinstance(value, list | tuple) and value and all(map(is_image, value)):
            return self._image_list_cell(value)
        if isinstance(value, Mapping | list | tuple) and value:
            return self._nested_cell(value)
        if isinstance(value, str):
            classes = "npstream-t npstream-l" if len(value) > MAX_LINE else "npstream-t"
            return element("span", plain_text(value, MAX_TEXT), class_=classes)
        if value is None:
            return element("span", "None", class_="npstream-m")
        if isinstance(value, np.ndarray) and value.ndim:
            text = element("code", array_elements(value, MAX_LINE))
            return Markup(text + element("small", f"shape {value.shape}"))
        plain = plain_text(value, MAX_TEXT)
        return element("span", plain, class_="npstream-l" if len(plain) > MAX_LINE else False)

    def _bytes_cell(self, body: bytes, encoding: str) -> Markup:
        media, size = recognize(body[:HEADER_BYTES]), size_text(len(body))
        if encoding == "pil":
            return self._image_cell(parse(encoding).decode(body), size)
        if (media is not None and media.kind == "image") or encoding in ("jpeg", "png"):
            return self._image_cell(
                body, f"{media.label.removesuffix(' image')}, {size}" if media else size
            )
        if media is not None and media.kind == "audio":
            return self._audio_cell(body, media.mime, f"{media.label}, {size}")
        if media is not None:
            return element("span", f"{media.label}, {size}")
        start = truncate(repr(body[:MAX_LINE]), MAX_LINE)
        return Markup(element("code", start) + element("small", size))

    def _image_list_cell(self, images: Sequence[Any]) -> Markup:
        parts = [self._image_cell(image, "") for image in images[:MAX_IMAGES]]
        return Markup("".join(parts) + element("small", quantity(len(images), "image")))

    def _image_cell(self, value: Any, note: str) -> Markup:
        try:
            image = thumbnail(value, THUMBNAIL_SIDE)
        except ImportError:
            return Markup(
                element("span", note) + element("small", "to show images: pip install pillow")
            )
        except Exception as error:  # a damaged image may raise anything
            return Markup(_error_cell(error) + element("small", note))
        width, height = image.size
        text = ", ".join(filter(None, [f"{width} × {height}", note]))  # noqa: RUF001
        if not self._reserve(len(image.uri)):
            return element("span", text)
        return Markup(image_element(image) + element("small", text))

    def _audio_cell(self, body: bytes, mime: str, note: str) -> Markup:
        if len(body) > MAX_AUDIO or not self._reserve(len(body) * 4 // 3):
            return Markup(element("span", note) + element("small", "too large for a player"))
        uri = f"data:{mime};base64,{base64.b64encode(body).decode()}"
        player = element("audio", controls=True, preload="metadata", src=uri)
        return Markup(player + element("small", note))

    def _reserve(self, nbytes: int) -> bool:
        """Return True if the page has space for `nbytes` more bytes, and count them."""
        if nbytes > self._remaining_bytes:
            return False
        self._remaining_bytes -= nbytes
        return True

    def _nested_cell(self, value: Any) -> Markup:
        text = value_text(value, MAX_LINE + 1)
        if len(text) <= MAX_LINE and "..." not in text:
            return element("code", text)
        return _TreeRenderer(MAX_NODES).render(value, "")


class _TreeRenderer:
    """Renders a nested value as collapsed HTML elements, with at most `nodes` items in total."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def render(self, value: Any, label: str, depth: int = 0) -> Markup:
        """Return a collapsed element for a value. The reader opens it to see the items."""
        is_mapping = isinstance(value, Mapping)
        if depth > 8 or not value:
            return self._leaf(value, label)
        items = value.items() if is_mapping else enumerate(value)
        kind = quantity(len(value), "key" if is_mapping else "item")
        brackets = "{%s}" if is_mapping else "[%s]"
        summary = element("code", label + brackets % kind)
        preview = element("span", " " + value_text(value, MAX_LINE), class_="npstream-m")
        children = []
        for number, (name, item) in enumerate(items):
            self._nodes -= 1
            if self._nodes < 0 or number >= MAX_ITEMS:
                more = f"... {len(value) - number:,} more"
                children.append(element("div", more, class_="npstream-m"))
                break
            text = f"{value_text(name, MAX_LINE)}: "
            if isinstance(item, Mapping | list | tuple) and item:
                children.append(element("div", self.render(item, text, depth + 1)))
            else:
                children.append(element("div", self._leaf(item, text)))
        body = element("div", *children)
        return element("details", element("summary", Markup(summary + preview)), body)

    def _leaf(self, value: Any, label: str) -> Markup:
        return element("code", label + value_text(value, MAX_TEXT))


def _error_cell(error: BaseException) -> Markup:
    return element("span", error_text(error), class_="npstream-e")


def image_element(image: Thumbnail) -> Markup:
    """Return the element of a thumbnail."""
    return element(
        "img", src=image.uri, width=image.width, height=image.height, alt="",
        class_="npstream-p" if image.is_enlarged else False,
    )  # fmt: skip


def first_items(column: Any, count: int) -> list[Any]:
    """Return the first items of a column, with an exception for each that cannot be decoded.

    Parameters
    ----------
    column : sequence
        An array, a Ragged, a tensor or a list.
    count : int
        Number of items.

    Returns
    -------
    list
    """
    items = []
    for number in range(count):
        try:
            items.append(column[number])
        except Exception as error:
            items.append(error)
    return items


def first_values_text(column: Any, width: int) -> str:
    """Return the first values of a column in one line of at most `width` characters.

    Examples
    --------
    >>> first_values_text(np.arange(100), 20)
    '0, 1, 2, 3, ...'
    """
    try:
        size = len(column)
    except Exception:  # not a column, as a user may put anything into a batch
        return value_text(column, width)
    return values_text(first_items(column, min(size, width // 2)), size <= width // 2, width)


def type_text(encoding: str) -> str:
    """Return an encoding in NumPy's terms.

    Examples
    --------
    >>> type_text("ndarray:uint8:28,28"), type_text("ndarray:float32"), type_text("ndarray")
    ('uint8 (28, 28)', 'float32 (...)', 'ndarray')
    """
    name, _, parameters = encoding.partition(":")
    if name != "ndarray" or not parameters:
        return encoding
    dtype, _, shape = parameters.partition(":")
    if not shape:
        return f"{dtype} (...)"
    lengths = shape.split(",")
    return f"{dtype} ({', '.join(lengths)}{',' if len(lengths) == 1 else ''})"


def rows_table(
    title: str,
    indices: Mapping[str, Sequence[str]],
    columns: Mapping[str, Sequence[Any]],
    types: Mapping[str, str],
    encodings: Mapping[str, str],
    footer: str,
) -> str:
    """Return an HTML table of rows. Never raises because of a value.

    Parameters
    ----------
    title : str
        Text above the table.
    indices : mapping of str to sequence of str
        Labels of the rows: the name of each column of labels, and its labels.
    columns : mapping of str to sequence
        The values of each column, with an exception for each value that cannot be read.
    types : mapping of str to str
        The name of each column, and its type.
    encodings : mapping of str to str
        The stored encodings of columns, if known.
    footer : str
        Text under the table.

    Returns
    -------
    str
    """
    renderer = CellRenderer()
    headers: list[str | tuple[str, str]] = list(indices) if columns else []
    headers += [(truncate(name), kind) for name, kind in types.items()]
    cells = {
        name: [renderer.cell(value, encodings.get(name, "")) for value in values]
        for name, values in columns.items()
    }
    numeric = list(range(len(indices))) if columns else []
    numeric += [
        len(indices) + number
        for number, name in enumerate(types)
        if columns.get(name) and all(map(is_numeric, columns[name]))
    ]
    rows = zip(*indices.values(), *(cells[name] for name in types), strict=True) if columns else ()
    return table(headers, rows, caption=title, footer=footer, numeric=numeric, index=len(indices))
