"""Provide `decode_image`, which decodes one image with simplejpeg or Pillow.

If simplejpeg is installed, it decodes gray and color JPEG files. Pillow decodes all other images.
Both give the same pixels, because both use libjpeg-turbo with the same settings. Images are
resized by Pillow, or by a kernel that gives the same pixels.

Tested in tests/reading/images/test_columns.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._core.typing import AnyArray, Body
from npstream.formats.encodings import images
from npstream.reading.images.resize import Box, resize_pixels, use_kernel

if TYPE_CHECKING:
    from PIL.Image import Image

    from npstream.reading.images.options import Geometry, ImageOptions

__all__ = ["decode_image", "import_decoders"]

Slot: TypeAlias = "Callable[[tuple[int, ...], np.dtype[Any]], AnyArray | None]"
"""Takes the shape and the dtype of an image; returns a contiguous array to fill, or None."""

_UINT8 = np.dtype(np.uint8)
_DRAFTS = (8, 4, 2)
"""libjpeg-turbo can decode a draft: a JPEG file at its size divided by one of these numbers.

Drafts take less time than decoding at the full size.
"""

_DRAFT_GAP = 2
"""A draft is at least this many times as large as the resized image, as for `Image.thumbnail`."""


def import_decoders() -> None:
    """Import Pillow and simplejpeg; raise MissingDependencyError without Pillow.

    Pillow's plugins are imported, too: its `open` may miss a format if another thread is just
    importing them.
    """
    images.import_pillow().init()
    _simplejpeg()


@functools.cache
def _simplejpeg() -> Any:
    """Return the module simplejpeg, or None if it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def decode_image(
    body: Body,
    encoding: str,
    options: ImageOptions,
    fractions: tuple[float, float],
    slot: Slot,
) -> AnyArray:
    """Decode an image, and resize and crop it.

    Parameters
    ----------
    body : bytes-like
        The stored bytes.
    encoding : str
        The encoding of the column: "pil", or an encoding that stores image files, such as "jpeg".
    options : ImageOptions
        `transform` is not called.
    fractions : tuple of float
        The place of a random crop, see `ImageOptions.geometry`.
    slot : callable
        Returns the array that receives the pixels, if their shape fits.

    Returns
    -------
    ndarray, shape (height, width, channels)
        The array of `slot`, or a new one.

    Raises
    ------
    ValueError
        If the image does not fit the options.
    Exception
        Pillow's decoders may raise any exception for damaged images.
    """
    if encoding != "pil" and bytes(body[:3]) == b"\xff\xd8\xff" and (jpeg := _simplejpeg()):
        decoded = _decode_jpeg(jpeg, body, options, fractions, slot)
        if decoded is not None:
            return decoded
    image = images.decode_pil(body) if encoding == "pil" else images.decode_file(body)
    geometry = options.geometry(image.height, image.width, fractions)
    divisor = _draft_divisor(image.height, image.width, geometry, options)
    if divisor > 1 and image.format in ("JPEG", "MPO"):
        # `draft` takes a minimum size, and decodes at 1/8, 1/4 or 1/2 of the size, rounded up. With
        # this minimum, which is rounded down, it decodes at 1 / divisor.
        image.draft(None, (image.width // divisor, image.height // divisor))
    return _finish(_convert(image, options.mode), geometry, options, slot)


def _decode_jpeg(
    jpeg: Any,
    body: Body,
    options: ImageOptions,
    fractions: tuple[float, float],
    slot: Slot,
) -> AnyArray | None:
    """Decode a JPEG file with simplejpeg; return None if Pillow must decode it."""
    try:
        height, width, color_space, _ = jpeg.decode_jpeg_header(body)
    except ValueError:
        return None
    color_space = color_space.upper()
    if color_space not in ("GRAY", "RGB", "YCBCR"):
        return None  # CMYK
    if height * width > _max_pixels():
        return None  # Pillow warns, or raises
    decodes_gray = color_space == "GRAY" and options.mode in ("L", None)
    geometry = options.geometry(height, width, fractions)
    # `is_final`: the decoded pixels already have the mode of the options.
    is_final = decodes_gray or options.mode in ("RGB", None)
    is_whole = geometry == ((height, width), 0, 0, height, width)
    colors = "GRAY" if decodes_gray else "RGB"
    target = None
    if is_final and is_whole:
        target = slot((height, width, 1 if decodes_gray else 3), _UINT8)
    divisor = _draft_divisor(height, width, geometry, options)
    min_height, min_width = 0, 0
    if divisor > 1:
        min_height, min_width = -(-height // divisor), -(-width // divisor)
    box = None
    if is_final and colors == "RGB" and options.resample == "bilinear":
        size = (min_height, min_width) if divisor > 1 else (height, width)
        box = _kernel_box(size, geometry)
        colors = "RGB" if box is None else "RGBX"
    try:
        pixels: AnyArray = jpeg.decode_jpeg(
            body, colors, min_height=min_height, min_width=min_width, buffer=target,
            min_factor=divisor,
        )  # fmt: skip
    except ValueError:
        return None  # Pillow accepts some damage, and describes other damage
    if is_final and is_whole:
        return pixels if target is None else target
    if box is not None:
        shape = (geometry.height, geometry.width, 3)
        target = slot(shape, _UINT8)
        target = np.empty(shape, _UINT8) if target is None else target
        resize_pixels(pixels, box, target)
        return target
    if is_final and geometry.size == pixels.shape[:2]:
        return _copy_to_slot(_crop(pixels, geometry), slot)
    image = images.import_pillow().fromarray(pixels[..., 0] if decodes_gray else pixels)
    return _finish(_convert(image, options.mode), geometry, options, slot)


def _draft_divisor(height: int, width: int, geometry: Geometry, options: ImageOptions) -> int:
    """Return the divisor of the size at which a JPEG file is decoded before it is resized."""
    if not options.draft or options.resample == "nearest":
        return 1
    for divisor in _DRAFTS:
        min_ratio = divisor * _DRAFT_GAP
        if height >= min_ratio * geometry.size[0] and width >= min_ratio * geometry.size[1]:
            return divisor
    return 1


def _finish(image: Image, geometry: Geometry, options: ImageOptions, slot: Slot) -> AnyArray:
    """Resize and crop an image, and return its pixels."""
    height, width = geometry.size
    if (width, height) == image.size:
        return _copy_to_slot(_crop(_pixels(image), geometry), slot)
    box = _box((image.height, image.width), geometry)
    resample = getattr(images.import_pillow().Resampling, options.resample.upper())
    resized = image.resize((geometry.width, geometry.height), resample, box=box)
    return _copy_to_slot(_pixels(resized), slot)


def _box(size: tuple[int, int], geometry: Geometry) -> Box:
    """Return where the crop is in an image of this size, which is not resized yet."""
    y_scale, x_scale = size[0] / geometry.size[0], size[1] / geometry.size[1]
    left, top = geometry.left, geometry.top
    right, bottom = left + geometry.width, top + geometry.height
    return (
        left * x_scale,
        top * y_scale,
        min(right * x_scale, size[1]),
        min(bottom * y_scale, size[0]),
    )


def _kernel_box(size: tuple[int, int], geometry: Geometry) -> Box | None:
    """Return the part of an image to resize with the kernel; None if the kernel is not used."""
    if geometry.size == size:
        return None
    box = _box(size, geometry)
    return box if use_kernel(size, box, (geometry.height, geometry.width)) else None


def _crop(pixels: AnyArray, geometry: Geometry) -> AnyArray:
    top, left = geometry.top, geometry.left
    return pixels[top : top + geometry.height, left : left + geometry.width]


def _copy_to_slot(pixels: AnyArray, slot: Slot) -> AnyArray:
    """Copy pixels to the array of `slot`, or to a new array; return the array."""
    target = slot(pixels.shape, pixels.dtype)
    if target is None:
        return pixels.copy()
    target[...] = pixels
    return target


def _pixels(image: Image) -> AnyArray:
    pixels = np.asarray(image)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _convert(image: Image, mode: str | None) -> Image:
    """Return an image in another mode; None keeps its mode, but 1-bit pixels become 8-bit.

    Raises
    ------
    ValueError
        If the pixels are 32-bit numbers, which have no color.
    """
    if mode is None:
        return image.convert("L") if image.mode == "1" else image
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # As libpng: the high byte. Pillow would clip at 255.
        high = (np.asarray(image) >> 8).astype(np.uint8)
        image = images.import_pillow().fromarray(high)
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are 32-bit numbers (mode {image.mode!r}), which have no 8-bit color: give "
            "mode=None, and convert in transform="
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of other conversions
    return image if image.mode == mode else image.convert(mode)


def _max_pixels() -> float:
    """Return Pillow's limit for images that may be decompression bombs."""
    limit = images.import_pillow().MAX_IMAGE_PIXELS
    return float("inf") if limit is None else limit
