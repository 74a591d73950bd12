"""Encoders and decoders of images: raw pixels, JPEG, PNG, and lists of images.

The first call that needs Pillow imports it. Decoding an image file reads only its header. Pillow
reads the pixels on first access.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from npstream._core.arguments import quantity
from npstream._core.typing import Body
from npstream.errors import MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "decode_file",
    "decode_jpeg_array",
    "decode_list",
    "decode_pil",
    "encode_jpeg",
    "encode_jpeg_array",
    "encode_jpeg_file",
    "encode_list",
    "encode_pil",
    "encode_png",
    "import_pillow",
    "is_image",
    "jpeg_file",
]

# A column stores `bytes` unchanged, so a jpeg column may hold other image formats. Some formats of
# Pillow are unsafe to open: for EPS it starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def encode_pil(image: Any) -> bytes:
    """Return an image's width, height, mode and raw pixels; raise if it has a palette."""
    image = _require_image(image)
    if image.getpalette():
        raise ValueError(
            "its pixels are indices into a palette, which 'pil' does not store: convert the image, "
            "as with .convert('RGB'), or choose 'png'"
        )
    mode = image.mode.encode()
    head = np.array([*image.size, len(mode)], np.uint32).tobytes()
    return b"".join((head, mode, image.tobytes()))


def decode_pil(body: Body) -> Image:
    """Return the image that `encode_pil` encoded."""
    width, height, length = _uint32s(body, 0, 3).tolist()
    mode, pixels = str(body[12 : 12 + length], "utf-8"), body[12 + length :]
    expected = height * -(-width * _bits_per_pixel(mode) // 8)
    # Pillow allocates memory for the width and height in the body, and one pointer for each row,
    # even if rows have no pixels. So if a side has more than 0xFFFF pixels, it may have at most 8
    # pixels for each byte of `pixels`.
    if len(pixels) != expected or max(width, height) > max(8 * expected, 0xFFFF):
        raise ValueError(
            f"{quantity(len(pixels), 'byte')} of pixels for an image of {width} x {height} in mode "
            f"{mode!r}"
        )
    image: Image = import_pillow().frombytes(mode, (width, height), bytes(pixels))
    return image


def is_image(value: object) -> bool:
    """Return True for a PIL image, without importing Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def encode_jpeg(image: Any) -> bytes:
    """Return an image as JPEG; if it was opened from a JPEG file, return that file unchanged."""
    image = _require_image(image)
    return jpeg_file(image) or _encode_file(image, "JPEG")


def encode_jpeg_file(image: Any) -> bytes:
    """Return the bytes of the JPEG file that an image was opened from."""
    file = jpeg_file(_require_image(image))
    if file is None:
        raise ValueError(
            "it was not opened from a JPEG file, or was edited since, so JPEG would change its "
            "pixels: choose columns={...: 'png'}, which is lossless, or 'jpeg', which re-encodes"
        )
    return file


def encode_png(image: Any) -> bytes:
    """Return an image as PNG."""
    return _encode_file(_require_image(image), "PNG")


def decode_file(body: Body) -> Image:
    """Return the image in the bytes of an image file."""
    pillow = import_pillow()
    try:
        image: Image = pillow.open(io.BytesIO(body), formats=_FORMATS)
    except pillow.UnidentifiedImageError:
        raise ValueError(f"not an image: it starts with {bytes(body[:12])!r}") from None
    except Exception as error:
        # Pillow's parsers may raise any exception for a damaged header.
        raise ValueError(f"not an image: {error}") from error
    return image


def encode_list(encode: Callable[[Any], bytes], images: Any) -> bytes:
    """Encode a list of images: four zero bytes, the count, the sizes, and the encoded images."""
    if not isinstance(images, list):
        raise TypeError(f"expected a list of images, got {type(images).__name__}")
    return bytes(4) + _join([encode(image) for image in images])


def decode_list(decode: Callable[[Body], Image], body: Body) -> list[Image]:
    """Return the images that `encode_list` encoded."""
    if bytes(body[:4]) != bytes(4):
        raise ValueError("a list of images starts with four bytes of zero")
    return [decode(part) for part in _split(memoryview(body)[4:])]


def encode_jpeg_array(files: Any) -> bytes:
    """Encode a list of JPEG byte strings: the count, the sizes, and the unchanged strings.

    An image that was opened from a JPEG file stands for the bytes of that file.
    """
    bodies = [_file_bytes(file) for file in files] if isinstance(files, list | tuple) else [None]
    if None in bodies:
        raise TypeError("expected a list of the bytes of JPEG files; for images use list[jpeg]")
    return _join([body for body in bodies if body is not None])


def _file_bytes(file: Any) -> bytes | None:
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    return jpeg_file(file) if is_image(file) else None


def decode_jpeg_array(body: Body) -> list[Image]:
    """Return the images that `encode_jpeg_array` encoded."""
    return [decode_file(part) for part in _split(body)]


def import_pillow() -> ModuleType:
    """Return Pillow's module Image, or raise MissingDependencyError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("An image column", "pillow", "images") from error
    return Image


def _require_image(image: Any) -> Image:
    """Return `image`; raise TypeError if it is not a PIL image."""
    if not isinstance(image, import_pillow().Image):
        hint = "; jpeg_array takes the bytes of files" if isinstance(image, bytes) else ""
        raise TypeError(f"expected a PIL image, got {type(image).__name__}{hint}")
    pillow_image: Image = image
    return pillow_image


@functools.cache
def _bits_per_pixel(mode: str) -> int:
    """Return the bits of a raw pixel in an image mode."""
    # The number of bytes of eight pixels is the number of bits of one pixel.
    try:
        return len(import_pillow().new(mode, (8, 1)).tobytes())
    except ValueError:
        raise ValueError(f"unknown image mode {mode[:16]!r}") from None


def jpeg_file(image: Image) -> bytes | None:
    """Return the bytes of the JPEG file that an image was opened from, if it was not edited."""
    if getattr(image, "format", None) not in ("JPEG", "MPO"):
        return None
    from PIL.JpegImagePlugin import JpegImageFile

    if not isinstance(image, JpegImageFile):
        return None
    # Until Pillow reads the pixels, `image.fp` stays open. Use it, because another file may have
    # replaced the one at the path. A nonzero offset means a later frame of a multi-picture file.
    is_read = not image.tile
    if not is_read and image.tile[0][2]:
        return None
    data = _read_path(image.filename) if is_read else _read_open_file(image)
    if data is None:
        return None
    file_image = decode_file(data)
    if (file_image.mode, file_image.size) != (image.mode, image.size):
        return None
    # Once the pixels are read, they may have been edited in place.
    return None if is_read and file_image.tobytes() != image.tobytes() else data


def _read_path(path: str | bytes) -> bytes | None:
    if not path or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def _read_open_file(image: Any) -> bytes | None:
    """Return the content of the open file from which an image will read its pixels."""
    file = image.fp
    try:
        position = file.tell()
        file.seek(0)
        data: bytes = file.read()
        file.seek(position)
    except (AttributeError, OSError, ValueError):
        return None  # closed, or not seekable
    return data


def _encode_file(image: Image, format: str) -> bytes:
    file = io.BytesIO()
    try:
        image.save(file, format)
    except OSError as error:
        other = "pil" if format == "PNG" else "pil or png"
        raise ValueError(f"{error}: convert the image, or store it as {other}") from error
    return file.getvalue()


def _join(parts: list[bytes]) -> bytes:
    head = np.array([len(parts), *map(len, parts)], np.uint32)
    return b"".join((head.tobytes(), *parts))


def _split(body: Body) -> list[Body]:
    """Split a body into the parts that `_join` concatenated."""
    (count,) = _uint32s(body, 0, 1).tolist()
    ends = np.cumsum(_uint32s(body, 4, count), dtype=np.int64) + 4 * (count + 1)
    bounds = [4 * (count + 1), *ends.tolist()]
    if bounds[-1] != len(body):
        raise ValueError(
            f"the end of {quantity(count, 'part')} is byte {bounds[-1]} of {len(body)}"
        )
    return [body[start:stop] for start, stop in pairwise(bounds)]


def _uint32s(body: Body, start: int, count: int) -> NDArray[np.uint32]:
    if start + 4 * count > len(body):
        raise ValueError(
            f"{quantity(len(body), 'byte')}: too few for {quantity(count, 'number')} at byte "
            f"{start}"
        )
    return np.frombuffer(body, np.uint32, count, start)
