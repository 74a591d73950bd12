"""Compression and decompression of shard files, with the codecs of the index format.

Compressed data is untrusted. Decompression keeps at most the size that the index records, plus one
block of about 1 MiB, even if the data claim or contain more.
"""

from __future__ import annotations

import io
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from npstream._core.arguments import quantity
from npstream._core.typing import Body
from npstream.errors import FormatError, MissingDependencyError

__all__ = ["Compression", "compress", "compress_pieces", "decompress", "parse_compression"]

# Codec -> levels; none if the codec has no levels.
_LEVELS = {
    "br": range(12),
    "bz2": range(1, 10),
    "gz": range(10),
    "snappy": range(0),
    "zstd": range(1, 23),
}
_DEFAULT_LEVELS = {"br": 11, "bz2": 9, "gz": 9, "snappy": None, "zstd": 3}

_ALIASES = {"gzip": "gz", "zlib": "gz", "zst": "zstd", "zstandard": "zstd", "brotli": "br"}
_ALIASES |= {"bzip2": "bz2", "lz4": "zstd:1", "lzma": "zstd:19", "xz": "zstd:19"}
"""Names that users may try -> the codec to suggest."""

_MAX_BLOCK = 1 << 20
"""Approximate maximum bytes of a block from a decoder, except snappy, which yields all at once.

zstd also compresses blocks of this size.
"""

_FIRST_INPUT_BYTES = 1 << 12
"""A decoder of a stream gets this much input first; see `_decode_streams`."""


class Compression(NamedTuple):
    """A codec and its level; the level is None if the codec has no levels."""

    name: str
    level: int | None

    @property
    def extension(self) -> str:
        """The extension of compressed files, without the dot."""
        return self.name


def parse_compression(spec: str | None) -> Compression | None:
    """Return the codec and level that a specification names.

    Parameters
    ----------
    spec : str or None
        ``"name"`` or ``"name:level"``, from an index or a user. The name alone means the codec's
        default level. None means no compression.

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
        choices = ", ".join(
            f"{name}:{levels[0]} to {name}:{levels[-1]}" if levels else name
            for name, levels in _LEVELS.items()
        )
        similar = _ALIASES.get(spec.partition(":")[0].lower())
        hint = f"did you mean {similar!r}? " if similar else ""
        raise ValueError(f"unknown compression {spec!r}: {hint}known are {choices}")
    return Compression(name, _DEFAULT_LEVELS[name] if level is None else int(level))


def compress(data: Body, spec: str) -> bytes:
    """Compress the bytes of a file.

    The result is deterministic: the gzip header holds no timestamp.

    Parameters
    ----------
    data : bytes or memoryview
    spec : str
        The codec and level, as in `parse_compression`.

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
            import bz2

            return bz2.compress(data, level)
        case "gz", int(level):
            return zlib.compress(data, level, wbits=31)
        case "snappy", _:
            return bytes(_cramjam().snappy.compress_raw(data))
        case _:
            return b"".join(compress_pieces(data, spec))


def compress_pieces(data: Body, spec: str) -> Iterator[bytes]:
    """Yield the compressed bytes of a file in pieces.

    zstd yields several pieces, and needs no buffer for the whole result. The other codecs yield the
    whole result as one piece.

    Examples
    --------
    >>> b"".join(compress_pieces(b"abc", "zstd")) == compress(b"abc", "zstd")
    True
    """
    compression = parse_compression(spec)
    assert compression is not None
    if compression.name != "zstd":
        yield compress(data, spec)
        return
    whole = memoryview(data)
    compressor = _zstd().ZstdCompressor(level=compression.level)
    compressor.set_pledged_input_size(len(whole))  # stored in the header, for other readers
    for start in range(0, len(whole), _MAX_BLOCK):
        yield compressor.compress(whole[start : start + _MAX_BLOCK])
    yield compressor.flush()


def decompress(data: Body, spec: str, size: int) -> bytes:
    """Decompress the bytes of a file.

    Parameters
    ----------
    data : bytes or memoryview
        The compressed bytes.
    spec : str
        The codec, as in `parse_compression`. The level is ignored.
    size : int
        Expected number of decompressed bytes.

    Raises
    ------
    FormatError
        If the data are damaged or truncated, if other bytes follow them, or if the decompressed
        size is not `size`. Only zeros may follow gzip data.

    Examples
    --------
    >>> decompress(compress(b"abc", "bz2"), "bz2", 3)
    b'abc'
    """
    compression = parse_compression(spec)
    assert compression is not None
    out = io.BytesIO()
    try:
        for block in _DECODERS[compression.name](data, size):
            out.write(block)
            if out.tell() > size:
                break
    except _decoder_errors(compression.name) as error:
        raise FormatError(f"damaged {spec} data: {error}") from error
    if out.tell() != size:
        actual = f"{'more than ' * (out.tell() > size)}{quantity(min(out.tell(), size), 'byte')}"
        raise FormatError(f"the {spec} data hold {actual}; expected {size:,}")
    return out.getvalue()


def _decoder_errors(name: str) -> tuple[type[Exception], ...]:
    """Return the exceptions that a codec raises for damaged data."""
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


# Each decoder yields the decompressed data in blocks of bounded size. `size` is the expected size
# of all blocks; only snappy uses it. A decoder raises if the data are damaged, end early, or are
# followed by other bytes (gzip ignores zeros). Data of all codecs except brotli and snappy may
# consist of several concatenated streams.


def _decode_br(data: Body, size: int) -> Iterator[bytes]:
    decoder = _brotli().Decompressor()
    block = decoder.process(data, output_buffer_limit=_MAX_BLOCK)
    while block:
        yield block
        block = decoder.process(b"", output_buffer_limit=_MAX_BLOCK)
    if not decoder.is_finished():
        raise EOFError("they end early")


def _decode_gz(data: Body, size: int) -> Iterator[bytes]:
    import gzip

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while block := file.read(_MAX_BLOCK):
            yield block


def _decode_snappy(data: Body, size: int) -> Iterator[bytes]:
    snappy = _cramjam().snappy
    # cramjam allocates the claimed length at once. Three bytes of snappy data hold at most 64
    # bytes, so the result is at most about 21 times the input. The limit of 64 times is generous.
    claimed = snappy.decompress_raw_len(data)
    if claimed != size or claimed > 64 * len(data):
        raise ValueError(
            f"{quantity(len(data), 'byte')} claim to hold {quantity(claimed, 'byte')}; "
            f"expected {size:,}"
        )
    yield snappy.decompress_raw(data)


def _decode_bz2(data: Body, size: int) -> Iterator[bytes]:
    import bz2

    return _decode_streams(data, bz2.BZ2Decompressor)


def _decode_zstd(data: Body, size: int) -> Iterator[bytes]:
    return _decode_streams(data, _zstd().ZstdDecompressor)


def _decode_streams(data: Body, new_decoder: Callable[[], Any]) -> Iterator[bytes]:
    unread = memoryview(data)
    while True:
        # A decoder copies all input beyond the end of its stream. With large inputs, many short
        # streams would take quadratic time. Hence each stream's first input is small, and the next
        # ones double.
        decoder, length = new_decoder(), _FIRST_INPUT_BYTES
        while not decoder.eof:
            compressed = unread[:length] if decoder.needs_input else unread[:0]
            if decoder.needs_input and not compressed:
                raise EOFError("they end early")
            yield decoder.decompress(compressed, _MAX_BLOCK)
            unread, length = unread[len(compressed) :], min(2 * length, _MAX_BLOCK)
        # The decoder did not use the last bytes of its input: they belong to the next stream.
        unread = memoryview(data)[len(data) - len(unread) - len(decoder.unused_data) :]
        if not unread:
            return


_DECODERS = {
    "br": _decode_br,
    "bz2": _decode_bz2,
    "gz": _decode_gz,
    "snappy": _decode_snappy,
    "zstd": _decode_zstd,
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
