"""Compressed shards: one blob a file, by one of the codecs that an index may name.

Compressed data is untrusted. Whatever it claims or unfolds to, no more than the size that the
index records is kept, plus a piece of about a mebibyte.
"""

from __future__ import annotations

import bz2
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from npstream._core.arguments import quantity
from npstream._core.typing import Body
from npstream.errors import FormatError, MissingDependencyError

__all__ = ["Compression", "compress", "decompress", "parse_compression"]

_LEVELS = {
    "br": range(12),
    "bz2": range(1, 10),
    "gz": range(10),
    "snappy": range(0),
    "zstd": range(1, 23),
}
_DEFAULT_LEVELS = {"br": 11, "bz2": 9, "gz": 9, "snappy": None, "zstd": 3}

_PIECE = 1 << 20
_FIRST_STEP = 1 << 12


@dataclass(frozen=True, slots=True)
class Compression:
    """A codec and its level (None for one that has no levels)."""

    name: str
    level: int | None

    @property
    def extension(self) -> str:
        """What a compressed file's name ends in, without the dot."""
        return self.name


def parse_compression(spec: str | None) -> Compression | None:
    """Return the codec that an index or a user names.

    Parameters
    ----------
    spec : str or None
        ``"name"`` or ``"name:level"``; None is no compression.

    Raises
    ------
    ValueError
        If there is no such codec or level.

    Examples
    --------
    >>> parse_compression("zstd:7")
    Compression(name='zstd', level=7)
    """
    if spec is None:
        return None
    match = re.fullmatch(r"(\w+)(?::(0|[1-9][0-9]?))?", spec)
    name, level = match.groups() if match else ("", None)
    if name not in _LEVELS or (level is not None and int(level) not in _LEVELS[name]):
        known = ", ".join(
            f"{name}:{levels[0]} to {name}:{levels[-1]}" if levels else name
            for name, levels in _LEVELS.items()
        )
        raise ValueError(f"unknown compression {spec!r}; known: {known}")
    return Compression(name, _DEFAULT_LEVELS[name] if level is None else int(level))


def compress(data: Body, spec: str) -> bytes:
    """Compress the bytes of a file.

    Equal bytes give equal results: gzip's header holds no time.

    Examples
    --------
    >>> len(compress(bytes(10_000), "zstd:7")) < 100
    True
    """
    compression = parse_compression(spec)
    assert compression is not None
    match compression.name, compression.level:
        case "br", level:
            return _brotli().compress(data, quality=level)  # type: ignore[no-any-return]
        case "bz2", int(level):
            return bz2.compress(data, level)
        case "gz", int(level):
            return zlib.compress(data, level, wbits=31)
        case "snappy", _:
            return bytes(_cramjam().snappy.compress_raw(data))
        case _, level:
            return _zstd().compress(data, level=level)  # type: ignore[no-any-return]


def decompress(data: Body, spec: str, size: int) -> bytes:
    """Decompress the bytes of a file.

    Parameters
    ----------
    data : bytes or memoryview
        What is stored.
    spec : str
        The codec, as in `parse_compression`; the level plays no part.
    size : int
        How many bytes must result.

    Raises
    ------
    FormatError
        If the data are damaged or cut short, something follows them, or the size is another.

    Examples
    --------
    >>> decompress(compress(b"abc", "bz2"), "bz2", 3)
    b'abc'
    """
    compression = parse_compression(spec)
    assert compression is not None
    out = io.BytesIO()
    try:
        for piece in _DECODERS[compression.name](data, size):
            out.write(piece)
            if out.tell() > size:
                break
    except _errors(compression.name) as error:
        raise FormatError(f"damaged {spec} data: {error}") from error
    if out.tell() != size:
        held = f"{'more than ' * (out.tell() > size)}{quantity(min(out.tell(), size), 'byte')}"
        raise FormatError(f"the {spec} data hold {held}; expected {size:,}")
    return out.getvalue()


def _errors(name: str) -> tuple[type[Exception], ...]:
    """Return what a codec raises at damaged data."""
    match name:
        case "br":
            return EOFError, _brotli().error
        case "gz":
            return EOFError, OSError, zlib.error
        case "snappy":
            return ValueError, _cramjam().DecompressionError
        case "zstd":
            return EOFError, _zstd().ZstdError
    return EOFError, OSError


# Each yields what the data unfold to, in pieces of bounded size, and raises at damage, at an
# early end, and where something else follows. All but brotli and snappy may be several
# streams laid end to end.


def _br_pieces(data: Body, size: int) -> Iterator[bytes]:
    decoder = _brotli().Decompressor()
    piece = decoder.process(data, output_buffer_limit=_PIECE)
    while piece:
        yield piece
        piece = decoder.process(b"", output_buffer_limit=_PIECE)
    if not decoder.is_finished():
        raise EOFError("they end early")


def _gz_pieces(data: Body, size: int) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while piece := file.read(_PIECE):
            yield piece


def _snappy_pieces(data: Body, size: int) -> Iterator[bytes]:
    snappy = _cramjam().snappy
    # The length that the data claim is allocated at once; three bytes stand for up to 64.
    claimed = snappy.decompress_raw_len(data)
    if claimed != size or claimed > 64 * len(data):
        raise ValueError(
            f"{len(data)} of them claim {quantity(claimed, 'byte')}; expected {size:,}"
        )
    yield snappy.decompress_raw(data)


def _bz2_pieces(data: Body, size: int) -> Iterator[bytes]:
    return _streams(data, bz2.BZ2Decompressor)


def _zstd_pieces(data: Body, size: int) -> Iterator[bytes]:
    return _streams(data, _zstd().ZstdDecompressor)


def _streams(data: Body, new_decoder: Callable[[], Any]) -> Iterator[bytes]:
    rest = memoryview(data)
    while True:
        # A decoder copies what it was given beyond its stream's end; fed by ever longer steps,
        # very many very short streams stay linear.
        decoder, step = new_decoder(), _FIRST_STEP
        while not decoder.eof:
            fed = rest[:step] if decoder.needs_input else rest[:0]
            if decoder.needs_input and not fed:
                raise EOFError("they end early")
            yield decoder.decompress(fed, _PIECE)
            rest, step = rest[len(fed) :], min(2 * step, _PIECE)
        rest = memoryview(data)[len(data) - len(rest) - len(decoder.unused_data) :]
        if not rest:
            return


_DECODERS = {
    "br": _br_pieces,
    "bz2": _bz2_pieces,
    "gz": _gz_pieces,
    "snappy": _snappy_pieces,
    "zstd": _zstd_pieces,
}


def _brotli() -> Any:
    try:
        import brotli
    except ImportError as error:
        raise MissingDependencyError("compression 'br'", "brotli", "codecs") from error
    return brotli


def _cramjam() -> Any:
    try:
        import cramjam
    except ImportError as error:
        raise MissingDependencyError("compression 'snappy'", "cramjam", "codecs") from error
    return cramjam


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
