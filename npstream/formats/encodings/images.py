"""Images as bytes: raw pixels, JPEG, PNG, and lists of them.

Pillow is imported by the first call that needs it. Decoding an image file reads its head;
its pixels are read when somebody looks at them, as everywhere with Pillow.
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
    "is_image",
    "jpeg_file",
]

# Already encoded bytes pass through any column, so a jpeg column may hold other images. Not
# every format of Pillow is safe to open: for EPS it starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def encode_pil(image: Any) -> bytes:
    """Return an image's width, height, mode and raw pixels, to which a palette does not belong."""
    image = _checked(image)
    if image.getpalette():
        raise ValueError(
            "its pixels are numbers of colors in a palette, which pil does not store: convert it, "
            "as with .convert('RGB'), or choose 'png'"
        )
    mode = image.mode.encode()
    head = np.array([*image.size, len(mode)], np.uint32).tobytes()
    return b"".join((head, mode, image.tobytes()))


def decode_pil(body: Body) -> Image:
    """Return the image that `encode_pil` stored."""
    width, height, length = _uint32s(body, 0, 3).tolist()
    mode, pixels = str(body[12 : 12 + length], "utf-8"), body[12 + length :]
    expected = height * -(-width * _bits_per_pixel(mode) // 8)
    # Pillow allocates for the size that it is told, and a pointer a line even without pixels.
    if len(pixels) != expected or max(width, height) > max(8 * expected, 0xFFFF):
        raise ValueError(
            f"{quantity(len(pixels), 'byte')} of pixels for an image of {width} x {height} in mode "
            f"{mode!r}"
        )
    image: Image = _pillow().frombytes(mode, (width, height), bytes(pixels))
    return image


def is_image(value: object) -> bool:
    """Return True for a PIL image; Pillow is not imported for that."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def encode_jpeg(image: Any) -> bytes:
    """Return an image as JPEG: verbatim the file it was opened from, if there is one."""
    image = _checked(image)
    return jpeg_file(image) or _encode_file(image, "JPEG")


def encode_jpeg_file(image: Any) -> bytes:
    """Return the JPEG file that an image was opened from."""
    file = jpeg_file(_checked(image))
    if file is None:
        raise ValueError(
            "it was not opened from a JPEG file, or was edited since, and JPEG would change its "
            "pixels: choose columns={...: 'png'}, which keeps them, or 'jpeg', which encodes anew"
        )
    return file


def encode_png(image: Any) -> bytes:
    """Return an image as PNG."""
    return _encode_file(_checked(image), "PNG")


def decode_file(body: Body) -> Image:
    """Return the image in the bytes of an image file."""
    pillow = _pillow()
    try:
        image: Image = pillow.open(io.BytesIO(body), formats=_FORMATS)
    except pillow.UnidentifiedImageError:
        raise ValueError(f"not an image: it starts with {bytes(body[:12])!r}") from None
    except Exception as error:
        # What Pillow's parsers raise on a damaged head is not confined to any set of types.
        raise ValueError(f"not an image: {error}") from error
    return image


def encode_list(encode: Callable[[Any], bytes], images: Any) -> bytes:
    """Return a list of images: four bytes of zero, their count, their sizes, and each encoded."""
    if not isinstance(images, list):
        raise TypeError(f"expected a list of images, got {type(images).__name__}")
    return bytes(4) + _join([encode(image) for image in images])


def decode_list(decode: Callable[[Body], Image], body: Body) -> list[Image]:
    """Return the images that `encode_list` stored."""
    if bytes(body[:4]) != bytes(4):
        raise ValueError("a list of images starts with four bytes of zero")
    return [decode(part) for part in _split(memoryview(body)[4:])]


def encode_jpeg_array(files: Any) -> bytes:
    """Return a list of JPEG byte strings: their count, their sizes, and each as it is.

    An image counts as its bytes if it was opened from a JPEG file.
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
    """Return the images whose JPEG bytes `encode_jpeg_array` stored."""
    return [decode_file(part) for part in _split(body)]


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("An image column", "pillow", "images") from error
    return Image


def _checked(image: Any) -> Image:
    if not isinstance(image, _pillow().Image):
        hint = "; jpeg_array takes the bytes of files" if isinstance(image, bytes) else ""
        raise TypeError(f"expected a PIL image, got {type(image).__name__}{hint}")
    checked: Image = image
    return checked


@functools.cache
def _bits_per_pixel(mode: str) -> int:
    """Return the bits that a mode takes in raw pixels."""
    try:
        return len(_pillow().new(mode, (8, 1)).tobytes())
    except ValueError:
        raise ValueError(f"no image mode {mode[:16]!r}") from None


def jpeg_file(image: Image) -> bytes | None:
    """Return the JPEG file that an image was opened from and still equals."""
    if getattr(image, "format", None) not in ("JPEG", "MPO"):
        return None
    from PIL.JpegImagePlugin import JpegImageFile

    if not isinstance(image, JpegImageFile):
        return None
    # The open file is what the image shows, whatever has become of its name; its first image.
    is_read = not image.tile
    if not is_read and image.tile[0][2]:
        return None
    data = _content(image.filename) if is_read else _open_content(image)
    if data is None:
        return None
    stored = decode_file(data)
    if (stored.mode, stored.size) != (image.mode, image.size):
        return None
    # An image whose pixels were read may have been edited in place.
    return None if is_read and stored.tobytes() != image.tobytes() else data


def _content(path: str | bytes) -> bytes | None:
    if not path or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def _open_content(image: Any) -> bytes | None:
    """Return all of the file that an image reads from when its pixels are asked for."""
    file = image.fp
    try:
        at = file.tell()
        file.seek(0)
        data: bytes = file.read()
        file.seek(at)
    except (AttributeError, OSError, ValueError):
        return None  # closed, or no file that can be read twice
    return data


def _encode_file(image: Image, kind: str) -> bytes:
    file = io.BytesIO()
    try:
        image.save(file, kind)
    except OSError as error:
        other = "pil" if kind == "PNG" else "pil or png"
        raise ValueError(f"{error}: convert the image, or store it as {other}") from error
    return file.getvalue()


def _join(parts: list[bytes]) -> bytes:
    head = np.array([len(parts), *map(len, parts)], np.uint32)
    return b"".join((head.tobytes(), *parts))


def _split(body: Body) -> list[Body]:
    """Cut a body into the parts that `_join` joined."""
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
