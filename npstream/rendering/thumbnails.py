"""Thumbnails of images for HTML, made by Pillow.

Image data is untrusted. Only formats that Pillow decodes without another program are opened. An
image file with more than `MAX_PIXELS` pixels is not decoded.
"""

from __future__ import annotations

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core.typing import AnyArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Thumbnail", "is_image_array", "open_image", "thumbnail"]

MAX_PIXELS = 64_000_000
"""Maximum pixels of an image that is decoded."""

MIN_SIDE = 8
"""A uint8 array with a shorter side is not shown as an image."""

MAX_RATIO = 16
"""Maximum ratio of the long side to the short side of a uint8 array that is shown as an image."""

PIXEL_RATIO = 1.5
"""Pixels of a thumbnail for each CSS pixel, for screens of high resolution."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class Thumbnail(NamedTuple):
    """A thumbnail.

    Attributes
    ----------
    uri : str
        A ``data:`` URI with a JPEG or PNG file.
    width, height : int
        Size on the page, in CSS pixels.
    size : tuple of int
        Width and height of the original image, in pixels.
    is_enlarged : bool
        True if the image is smaller than its thumbnail.
    """

    uri: str
    width: int
    height: int
    size: tuple[int, int]
    is_enlarged: bool

    def open(self) -> Image:
        """Return the image in the URI."""
        from PIL import Image

        data = base64.b64decode(self.uri.partition(",")[2])
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))


def is_image_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Return True for uint8 arrays of shape (H, W), (H, W, C) or (C, H, W), with C of 1, 3 or 4.

    Parameters
    ----------
    dtype : dtype
    shape : tuple of int
        Shape of one array.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_image_array(np.dtype("uint8"), (3, 32, 32)), is_image_array(np.dtype("uint8"), (2, 99))
    (True, False)
    """
    if dtype != np.uint8 or (sides := _sides(shape)) is None:
        return False
    short, long = sorted(sides)
    return short >= MIN_SIDE and long <= MAX_RATIO * short and short * long <= MAX_PIXELS


def _sides(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return height and width of an image array."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        return shape[0], shape[1]
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return shape[1], shape[2]
    return None


def open_image(value: Any) -> Image:
    """Return an image of Pillow from the bytes of an image file, an array, or an image.

    Parameters
    ----------
    value : bytes, ndarray or PIL.Image.Image

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    ImportError
        If Pillow is not installed.
    ValueError
        If the image is too large.
    Exception
        If the file is damaged. Pillow raises exceptions of many types.
    """
    from PIL import Image

    if isinstance(value, np.ndarray):
        return Image.fromarray(_move_channels_last(value))
    if isinstance(value, bytes | bytearray | memoryview):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            value = Image.open(io.BytesIO(value), formats=_FORMATS)
    image: Image.Image = value
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many for a thumbnail")
    return image


def _move_channels_last(array: AnyArray) -> AnyArray:
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return np.ascontiguousarray(array)


def thumbnail(value: Any, box: int) -> Thumbnail:
    """Return a thumbnail of an image.

    Parameters
    ----------
    value : bytes, ndarray or PIL.Image.Image
        As for `open_image`.
    box : int
        Maximum width and height on the page, in CSS pixels. An image of at most half this size is
        enlarged by an integer factor.

    Returns
    -------
    Thumbnail

    Raises
    ------
    ImportError
        If Pillow is not installed.
    ValueError
        If the image is too large.
    Exception
        If the file is damaged.
    """
    image, size = reduce_image(value, round(box * PIXEL_RATIO))
    is_small = max(size) <= box // 2
    if is_small:
        factor = box // max(size)
        width, height = size[0] * factor, size[1] * factor
    else:
        scale = min(1.0, box / max(size))
        width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    is_lossless = is_small or image.mode == "RGBA"
    data = io.BytesIO()
    if is_lossless:
        image.save(data, "PNG", optimize=True)
    else:
        image.save(data, "JPEG", quality=80)
    mime = "image/png" if is_lossless else "image/jpeg"
    uri = f"data:{mime};base64,{base64.b64encode(data.getvalue()).decode()}"
    return Thumbnail(uri, width, height, size, is_small)


def reduce_image(value: Any, side: int) -> tuple[Image, tuple[int, int]]:
    """Return an image in mode L, RGB or RGBA with sides of at most `side`, and its full size."""
    image = open_image(value)
    size = image.size
    # `draft` makes Pillow decode at a lower resolution. It changes the image, so an image of the
    # caller is decoded in full.
    if image.format == "JPEG" and image is not value:
        image.draft(None, (side, side))
    image = _convert_mode(image)
    image.thumbnail((side, side))
    return image, size


def _convert_mode(image: Image) -> Image:
    """Return a copy of an image in mode L, RGB or RGBA."""
    from PIL import Image as pillow

    if image.mode in ("L", "RGB", "RGBA"):
        return image.copy()
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip these numbers to 0 to 255, so their range is scaled to 0 to 255.
        values = np.asarray(image, np.float64)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        scaled = (values - low) * (255 / (high - low or 1))
        return pillow.fromarray(np.nan_to_num(scaled).astype(np.uint8))
    has_alpha = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "L" if image.mode == "1" else "RGB")
