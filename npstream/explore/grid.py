"""Provide `ImageGrid`, which arranges thumbnails of the images of a column in a grid."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from npstream._core.optional import import_optional
from npstream.formats.encodings.encodings import parse
from npstream.formats.encodings.images import is_image
from npstream.rendering.cells import image_element
from npstream.rendering.html import Markup, document, element
from npstream.rendering.media import HEADER_BYTES, recognize
from npstream.rendering.text import error_text, truncate
from npstream.rendering.thumbnails import Thumbnail, is_image_array, thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageGrid", "holds_images"]

TILE_GAP = 6
"""Pixels between the images of a grid."""

LABEL_HEIGHT = 14
"""Pixels of a label under an image of a grid."""

MAX_ERROR = 80
"""Characters of an error in a grid."""


def holds_images(values: Sequence[Any], encoding: str) -> bool:
    """Return True if some values are images, or `encoding` is an encoding of images.

    Parameters
    ----------
    values : sequence
    encoding : str
        The stored encoding of the values.

    Returns
    -------
    bool
    """
    return encoding in ("pil", "jpeg", "png") or any(map(_is_image, values))


def _is_image(value: Any) -> bool:
    if isinstance(value, bytes):
        media = recognize(value[:HEADER_BYTES])
        return media is not None and media.kind == "image"
    shape = getattr(value, "shape", None)
    return is_image(value) or (shape is not None and is_image_array(value.dtype, value.shape))


class ImageGrid:
    """Thumbnails of images. Made by `Column.show`.

    A notebook shows the grid. Elsewhere, `save` writes it to a file.

    Parameters
    ----------
    title : str
        Text above the grid.
    values : sequence
        Bytes of image files, arrays, images of Pillow, or exceptions for values that cannot be
        read.
    labels : sequence of str
        The text under each image.
    encoding : str
        The stored encoding of the values.
    size : int
        Longest side of a thumbnail, in pixels.
    columns : int
        Images in each row of the grid.

    Raises
    ------
    MissingDependencyError
        If Pillow is not installed.

    Examples
    --------
    >>> import pytest; _ = pytest.importorskip("PIL")
    >>> pixels = np.zeros((3, 32, 32), np.uint8)
    >>> grid = ImageGrid("x", list(pixels), ["0", "1", "2"], "", size=64, columns=2)
    >>> grid
    <ImageGrid: x; a notebook shows it, .save("grid.png") writes a file>
    >>> grid.to_pil().size
    (140, 168)
    """

    def __init__(
        self,
        title: str,
        values: Sequence[Any],
        labels: Sequence[str],
        encoding: str,
        *,
        size: int,
        columns: int,
    ) -> None:
        import_optional("PIL", "PIL", "images", "A grid of images")
        self._title, self._labels = title, list(labels)
        self._size, self._columns = size, columns
        self._tiles = [_tile(value, encoding, size) for value in values]

    def __len__(self) -> int:
        return len(self._tiles)

    def __repr__(self) -> str:
        return f'<ImageGrid: {self._title}; a notebook shows it, .save("grid.png") writes a file>'

    def _repr_html_(self) -> str:
        tiles = []
        for tile, label in zip(self._tiles, self._labels, strict=True):
            if isinstance(tile, Thumbnail):
                image = image_element(tile)
            else:
                image = element("span", tile, class_="npstream-e")
            tiles.append(element("figure", image, element("figcaption", label)))
        style = f"grid-template-columns:repeat({self._columns},{self._size}px);align-items:end"
        return document(
            element("div", self._title, class_="npstream-head"),
            Markup(element("div", *tiles, class_="npstream-g", style=style)),
        )

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.to_pil().save(data, "PNG")
        return data.getvalue()

    def to_pil(self) -> Image:
        """Return the grid as one image of Pillow.

        Returns
        -------
        PIL.Image.Image
        """
        from PIL import Image, ImageDraw

        step = self._size + TILE_GAP
        columns = min(self._columns, max(1, len(self)))
        rows = math.ceil(len(self) / columns)
        canvas = Image.new(
            "RGB", (columns * step, max(1, rows * (step + LABEL_HEIGHT))), (255, 255, 255)
        )
        draw = ImageDraw.Draw(canvas)
        for number, (tile, label) in enumerate(zip(self._tiles, self._labels, strict=True)):
            x, y = number % columns * step, number // columns * (step + LABEL_HEIGHT)
            if isinstance(tile, Thumbnail):
                filter = Image.Resampling.NEAREST if tile.is_enlarged else Image.Resampling.LANCZOS
                image = tile.open().resize((tile.width, tile.height), filter)
                mask = image if image.mode == "RGBA" else None
                corner = (x + (self._size - tile.width) // 2, y + self._size - tile.height)
                canvas.paste(image, corner, mask)
            else:
                # A character of Pillow's default font takes at most about 7 pixels.
                draw.multiline_text((x, y), _wrap(tile, self._size // 7), (180, 30, 40))
            # Without FreeType, Pillow's default font raises for characters outside of Latin-1. So
            # characters outside of ASCII become question marks.
            text = label.encode("ascii", "replace").decode()
            draw.text((x, y + self._size), text, (90, 90, 90))
        return canvas

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the grid to a file: a page if its name ends in ``.html``, otherwise an image.

        Parameters
        ----------
        path : str or path-like
            Name of the file, such as ``"grid.png"``. The extension determines the format.

        Raises
        ------
        ValueError
            If Pillow does not know the format.
        """
        name = os.fspath(path)
        if name.lower().endswith((".html", ".htm")):
            with open(name, "w", encoding="utf-8") as file:
                file.write(f"<!doctype html><meta charset=utf-8>{self._repr_html_()}")
        else:
            self.to_pil().save(name)


def _tile(value: Any, encoding: str, size: int) -> Thumbnail | str:
    """Return the thumbnail of a value, or the text of the error."""
    if isinstance(value, BaseException):
        return truncate(error_text(value), MAX_ERROR)
    try:
        if encoding == "pil" and isinstance(value, bytes):
            value = parse(encoding).decode(value)
        return thumbnail(value, size)
    except Exception as error:  # a damaged image may raise anything
        return truncate(error_text(error), MAX_ERROR)


def _wrap(text: str, width: int) -> str:
    return "\n".join(text[start : start + width] for start in range(0, len(text), max(1, width)))
