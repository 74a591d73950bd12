"""MDS shards: where the samples lie in a file, and the columns in a sample.

::

    u32   n                     number of samples
    u32   offset[n + 1]         absolute; offset[0] is where the head ends
    bytes configuration         JSON, up to offset[0]: the index's entry, in part
    bytes sample[0 .. n - 1]    back to back, up to the file's end

    sample: u32 size[v]         one for each variable column
            bytes body[columns] every column's, back to back, unaligned

All integers are little-endian. Shards of fixed columns alone are records of one size, so their
offsets need not be read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from npstream._core.arguments import quantity
from npstream._core.typing import Bytes
from npstream.errors import FormatError
from npstream.formats.index import check_ascent, check_configuration

if TYPE_CHECKING:
    from npstream.formats.index import Schema


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column's body begins in a sample.

    That is after the sizes, plus `offset` bytes of fixed columns, plus the bodies of the first
    `before` variable columns. It takes `size` bytes, or None if they vary.
    """

    before: int
    offset: int
    size: int | None


@dataclass(frozen=True, slots=True)
class SampleLayout:
    """The layout of a schema's samples.

    ``nvariable`` counts the variable columns; ``nfixed`` is the bytes of all fixed ones.
    """

    places: dict[str, Place]
    nvariable: int
    nfixed: int

    @property
    def stride(self) -> int:
        """Bytes of every sample, or 0 if they vary."""
        return 0 if self.nvariable else self.nfixed


def layout(schema: Schema) -> SampleLayout:
    """Return where the columns of an MDS schema lie in a sample."""
    places, before, offset = {}, 0, 0
    for name, size in zip(schema.names, schema.sizes, strict=True):
        places[name] = Place(before, offset, size)
        if size is None:
            before += 1
        else:
            offset += size
    return SampleLayout(places, before, offset)


def adds_up(layout: SampleLayout, sample: bytes) -> bool:
    """Tell whether the sizes in a sample add up to its own.

    Examples
    --------
    >>> sample = bytes([2, 0, 0, 0]) + bytes(8) + b"hi"
    >>> adds_up(SampleLayout({}, 1, 8), sample), adds_up(SampleLayout({}, 1, 8), sample[1:])
    (True, False)
    """
    if len(sample) < 4 * layout.nvariable:
        return False
    sizes: tuple[int, ...] = struct.unpack_from(f"<{layout.nvariable}I", sample)
    return 4 * layout.nvariable + layout.nfixed + sum(sizes) == len(sample)


def samples_begin(
    schema: Schema, data: Bytes, samples: int, stride: int, nbytes: int | None = None
) -> int:
    """Check the head of an MDS shard and return where its samples begin.

    Parameters
    ----------
    schema : Schema
    data : ndarray of uint8
        The whole shard, or what stands before its samples.
    samples : int
        How many samples the index says there are.
    stride : int
        Bytes of every sample, or 0 if they vary.
    nbytes : int, optional
        Bytes of the whole shard, if `data` is a part of it.

    Raises
    ------
    FormatError
        If the head does not agree with the index or the file's size.
    """
    nbytes = len(data) if nbytes is None else nbytes
    head = 4 * (samples + 2)
    if nbytes < head:
        raise FormatError(
            f"{quantity(nbytes, 'byte')}; the head of {quantity(samples, 'sample')} takes {head:,}"
        )
    words = data[:head].view("<u4")
    count, begin, end = int(words[0]), int(words[1]), int(words[-1])
    if count != samples:
        raise FormatError(
            f"{quantity(count, 'sample')} in the shard's head; the index says {samples:,}"
        )
    if not head <= begin <= nbytes:
        raise FormatError(f"samples begin at byte {begin}; expected {head} to {nbytes}")
    if end != nbytes and samples:
        raise FormatError(f"samples end at byte {end} of {nbytes}")
    if stride and begin + samples * stride != nbytes:
        raise FormatError(
            f"{quantity(samples, 'sample')} of {quantity(stride, 'byte')} from byte {begin} on "
            f"would end at byte {begin + samples * stride} of {nbytes}"
        )
    if not stride:
        check_ascent(words[1:])
    check_configuration(schema, data[head:begin])
    return begin
