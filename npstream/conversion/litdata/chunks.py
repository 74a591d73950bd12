"""Read the samples of one of LitData's chunks, in bounded memory.

A chunk begins with the number of its samples, n, and n + 1 offsets, all uint32. The samples follow.
It may be compressed with zstd as a whole, sample by sample, or in frames of several samples. A
chunk of frames begins with a signature and a header; the offsets, a table of the frames and the
frames follow.

If the samples are plain dicts, the chunk may store them as an embedded Arrow file. The last bytes
of the chunk are then the Arrow file, its length (uint32) and a signature.

Tested in tests/conversion/litdata/test_source.py.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream._core.optional import import_optional
from npstream._core.typing import Int64
from npstream.errors import FormatError
from npstream.formats.compression import decompress

if TYPE_CHECKING:
    from npstream.conversion.files import SourceFile

__all__ = ["read_arrow", "read_items"]

_FRAMES_SIGNATURE = b"LDFZ01\0\0"
_ZSTD_SIGNATURE = b"\x28\xb5\x2f\xfd"
"""The first bytes of a zstd frame.

A plain chunk cannot begin with these bytes. As a uint32 they are a count above 4 * 10**9, which is
too large for offsets of uint32.
"""

_ARROW_SIGNATURE = b"LDARW01\0"

_FRAMES_HEADER = struct.Struct("<8sHHIII")
"""The signature, version, flags, number of samples, samples of a frame, and number of frames."""

_FRAME_DTYPE = np.dtype(
    [("first", "<u4"), ("count", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("raw_size", "<u4")]
)
"""An entry in the table of frames: its samples, byte range, and size when decompressed."""

_READ_BYTES = 1 << 22
"""Maximum bytes of one read or of one piece of decompressed data."""


def read_items(file: SourceFile, samples: int, *, has_compressed_samples: bool) -> Iterator[bytes]:
    """Yield the bytes of each sample in a chunk.

    Parameters
    ----------
    file : SourceFile
    samples : int
        The number of samples that the index says.
    has_compressed_samples : bool
        Whether samples may be compressed one by one.

    Raises
    ------
    FormatError
        If the chunk is damaged or truncated.
    """
    with file.open() as opened:
        start = cast("Any", opened).peek(8)[:8]
        if start == _FRAMES_SIGNATURE:
            items = _framed_items(opened, file, samples)
        elif start.startswith(_ZSTD_SIGNATURE):
            items = _decompressed_items(opened, file, samples)
        else:
            items = _plain_items(opened, file, samples, file.nbytes)
        for item in items:
            if has_compressed_samples and item[:4] == _ZSTD_SIGNATURE:
                item = _decompress_item(item, file)
            yield item


def read_arrow(file: SourceFile) -> Any:
    """Return the Arrow table in a chunk; None if the chunk has none. The whole table is in memory.

    Raises
    ------
    FormatError
        If it is damaged.
    MissingDependencyError
        If pyarrow is not installed.
    """
    if file.nbytes < 12:
        return None
    with file.open(buffered=False) as opened:
        opened.seek(file.nbytes - 12)
        end = _read(opened, 12, file)
        if end[4:] != _ARROW_SIGNATURE:
            return None
        pa = import_optional("pyarrow", "pyarrow", "arrow", f"reading {file.where}")
        nbytes = int.from_bytes(end[:4], "little")
        if nbytes > file.nbytes - 12:
            raise FormatError(
                f"{file.where}: its Arrow file of {quantity(nbytes, 'byte')} is truncated"
            )
        ensure_fits(nbytes, "reading {}", file.where)
        opened.seek(file.nbytes - 12 - nbytes)
        body = _read(opened, nbytes, file)
    is_file = body.startswith(b"ARROW1")
    try:
        reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.py_buffer(body))
        return reader.read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{file.where}: its Arrow rows are damaged: {error}") from error


def _read(opened: BinaryIO, count: int, file: SourceFile) -> bytes:
    """Return the next `count` bytes."""
    pieces: list[bytes] = []
    missing = count
    while missing:
        piece = opened.read(min(missing, _READ_BYTES))
        if not piece:
            raise FormatError(f"{file.where}: truncated: {quantity(missing, 'byte')} are missing")
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _plain_items(
    opened: BinaryIO, file: SourceFile, samples: int, nbytes: int | None
) -> Iterator[bytes]:
    """Yield the samples of a chunk that is not compressed, or is decompressed as it is read.

    `nbytes` is the size of the decompressed chunk; None if it is unknown.
    """
    count = int.from_bytes(_read(opened, 4, file), "little")
    _check_count(count, samples, file)
    offsets = _read_offsets(opened, count, file, nbytes)
    header = 4 * (count + 2)
    if offsets[0] != header or (np.diff(offsets) < 0).any():
        raise FormatError(f"{file.where}: its offsets are damaged")
    if nbytes is not None and offsets[-1] != nbytes:
        raise FormatError(
            f"{file.where}: {quantity(nbytes, 'byte')}; its samples end at {offsets[-1]:,}"
        )
    yield from _split_stream(opened, offsets, file)
    if opened.read(1):
        raise FormatError(f"{file.where}: more bytes follow the last sample")


def _read_offsets(opened: BinaryIO, count: int, file: SourceFile, nbytes: int | None) -> Int64:
    """Return the next `count` + 1 offsets."""
    size = 4 * (count + 1)
    if nbytes is not None and size > nbytes:
        raise FormatError(f"{file.where}: truncated: its offsets need {quantity(size, 'byte')}")
    ensure_fits(3 * size, "reading {}", file.where)  # the stored uint32 and the int64 values
    return np.frombuffer(_read(opened, size, file), "<u4").astype(np.int64)


def _split_stream(opened: BinaryIO, offsets: Int64, file: SourceFile) -> Iterator[bytes]:
    """Yield samples that lie one after another. One read returns several samples."""
    start, count = 0, len(offsets) - 1
    while start < count:
        stop = int(np.searchsorted(offsets, offsets[start] + _READ_BYTES, "right")) - 1
        stop = min(max(stop, start + 1), count)
        nbytes = int(offsets[stop] - offsets[start])
        ensure_fits(nbytes, "reading {}", file.where)
        body = _read(opened, nbytes, file)
        yield from _split(body, offsets[start : stop + 1] - offsets[start])
        start = stop


def _split(body: bytes, offsets: Int64) -> Iterator[bytes]:
    return (body[start:stop] for start, stop in pairwise(offsets.tolist()))


def _decompressed_items(opened: BinaryIO, file: SourceFile, samples: int) -> Iterator[bytes]:
    zstd = _zstd()
    try:
        with zstd.ZstdFile(opened) as stream:
            yield from _plain_items(stream, file, samples, None)
    except (EOFError, zstd.ZstdError) as error:
        raise FormatError(f"{file.where}: its compressed data are damaged: {error}") from error


def _framed_items(opened: BinaryIO, file: SourceFile, samples: int) -> Iterator[bytes]:
    """Yield the samples of a chunk of frames. Each frame is decompressed as a whole."""
    header = _read(opened, _FRAMES_HEADER.size, file)
    _, version, _, count, _, frame_count = _FRAMES_HEADER.unpack(header)
    if version != 1:
        raise FormatError(f"{file.where}: frames of version {version}; 1 is known")
    _check_count(count, samples, file)
    if frame_count > count:
        raise FormatError(f"{file.where}: {frame_count:,} frames for {count:,} samples")
    offsets = _read_offsets(opened, count, file, file.nbytes)
    frames = np.frombuffer(_read(opened, _FRAME_DTYPE.itemsize * frame_count, file), _FRAME_DTYPE)
    _check_frames(frames, offsets, count, file)
    for frame in frames:
        start, stop = int(frame["first"]), int(frame["first"]) + int(frame["count"])
        opened.seek(int(frame["offset"]))
        raw_size = int(frame["raw_size"])
        ensure_fits(raw_size, "reading {}", file.where)
        compressed = _read(opened, int(frame["size"]), file)
        body = _decompress(compressed, raw_size, file)
        yield from _split(body, offsets[start : stop + 1] - offsets[start])


def _check_count(count: int, samples: int, file: SourceFile) -> None:
    if count != samples:
        raise FormatError(f"{file.where}: {quantity(count, 'sample')}; its index says {samples:,}")


def _check_frames(frames: Any, offsets: Int64, count: int, file: SourceFile) -> None:
    """Raise FormatError unless the frames hold all samples, and are in the file."""
    firsts, counts = frames["first"].astype(np.int64), frames["count"].astype(np.int64)
    ends = firsts + counts
    is_whole = len(frames) and firsts[0] == 0 and ends[-1] == count and (counts > 0).all()
    if not is_whole or (firsts[1:] != ends[:-1]).any() or (np.diff(offsets) < 0).any():
        raise FormatError(f"{file.where}: its frames do not hold its samples")
    if (offsets[ends] - offsets[firsts] != frames["raw_size"]).any():
        raise FormatError(f"{file.where}: its frames have other sizes than its samples")
    if (frames["offset"] > file.nbytes).any():
        raise FormatError(f"{file.where}: a frame is not in the file: it is truncated")


def _decompress(body: bytes, size: int, file: SourceFile) -> bytes:
    try:
        return decompress(body, "zstd", size)
    except FormatError as error:
        raise FormatError(f"{file.where}: {error}") from error


def _decompress_item(item: bytes, file: SourceFile) -> bytes:
    """Return a decompressed sample; its size is not stored in the chunk."""
    zstd = _zstd()
    decoder, pieces, total, next_check = zstd.ZstdDecompressor(), list[bytes](), 0, 1 << 26
    # Memory is checked when the size doubles: the pieces and the joined sample must fit.
    try:
        data = item
        while not decoder.eof:
            piece = decoder.decompress(data, _READ_BYTES)
            data = b""
            if not piece and decoder.needs_input:
                raise EOFError("it is truncated")
            pieces.append(piece)
            total += len(piece)
            if total > next_check:
                next_check *= 2
                ensure_fits(2 * next_check, "a sample of {}", file.where)
    except (EOFError, zstd.ZstdError) as error:
        raise FormatError(f"{file.where}: a compressed sample is damaged: {error}") from error
    return b"".join(pieces)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
