"""Recognition of image, audio and video formats by their first bytes.

Tested in tests/rendering/test_cells.py.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HEADER_BYTES", "Media", "recognize"]

HEADER_BYTES = 32
"""Number of bytes at the start of a file that `recognize` needs."""


class Media(NamedTuple):
    """A format of media files.

    Attributes
    ----------
    kind : {"image", "audio", "video"}
    label : str
        The name of the format.
    mime : str
        The MIME type.
    """

    kind: str
    label: str
    mime: str


_PREFIXES = (
    (b"\xff\xd8\xff", Media("image", "JPEG image", "image/jpeg")),
    (b"\x89PNG\r\n\x1a\n", Media("image", "PNG image", "image/png")),
    (b"GIF87a", Media("image", "GIF image", "image/gif")),
    (b"GIF89a", Media("image", "GIF image", "image/gif")),
    (b"II*\x00", Media("image", "TIFF image", "image/tiff")),
    (b"MM\x00*", Media("image", "TIFF image", "image/tiff")),
    (b"fLaC", Media("audio", "FLAC audio", "audio/flac")),
    (b"OggS\x00", Media("audio", "OGG audio", "audio/ogg")),
    (b"ID3", Media("audio", "MP3 audio", "audio/mpeg")),
    (b"\x1aE\xdf\xa3", Media("video", "Matroska video", "video/x-matroska")),
)
_MP3 = Media("audio", "MP3 audio", "audio/mpeg")
_RIFF = {
    b"WAVE": Media("audio", "WAV audio", "audio/wav"),
    b"WEBP": Media("image", "WebP image", "image/webp"),
    b"AVI ": Media("video", "AVI video", "video/x-msvideo"),
}
_AVIF = Media("image", "AVIF image", "image/avif")
_MP4 = Media("video", "MP4 video", "video/mp4")
_BMP = Media("image", "BMP image", "image/bmp")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Sizes of the versions of the BMP information header, which begins with its size."""


def recognize(head: bytes) -> Media | None:
    r"""Return the media format of bytes, or None.

    Parameters
    ----------
    head : bytes
        At least the first `HEADER_BYTES` bytes, or all if there are fewer.

    Returns
    -------
    Media or None

    Examples
    --------
    >>> recognize(b"RIFF\x24\x00\x00\x00WAVEfmt ").label
    'WAV audio'
    >>> recognize(b"text") is None
    True
    """
    for prefix, media in _PREFIXES:
        if head.startswith(prefix):
            return media
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _AVIF if head[8:12] in (b"avif", b"avis") else _MP4
    if head[:2] == b"BM" and len(head) >= 18:
        return _BMP if int.from_bytes(head[14:18], "little") in _BMP_HEADERS else None
    return _MP3 if _is_mp3_frame(head[:4]) else None


def _is_mp3_frame(head: bytes) -> bool:
    """Return True for the header of a frame of MPEG audio layer III, with all fields valid."""
    # The fields of the header: 11 bits of 1, the version (2 bits, 1 is reserved), the layer (2
    # bits, 1 is III), the checksum (1 bit), the bitrate (4 bits, 0 is free and 15 is invalid), and
    # the sampling rate (2 bits, 3 is reserved).
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return False
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and bitrate not in (0, 15) and rate != 3
