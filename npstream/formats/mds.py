"""MDS shards: offsets of samples in a file, and of columns in a sample.

::

    u32   n                     number of samples
    u32   offset[n + 1]         absolute; offset[0] is the end of the head
    bytes configuration         JSON, up to offset[0]: part of the shard's index entry
    bytes sample[0 .. n - 1]    contiguous, up to the end of the file

    sample: u32 size[v]         one for each variable column
            bytes body[columns] one for each column, contiguous, unaligned

All integers are little-endian. If a shard has only fixed columns, its samples are records of one
size. Reading such a shard does not need the offsets.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from npstream._core.arguments import quantity
from npstream._core.typing import Bytes
from npstream.errors import FormatError
from npstream.formats.heads import check_ascending, check_configuration

if TYPE_CHECKING:
    from npstream.formats.index import Schema


class ColumnLayout(NamedTuple):
    """The position of a column's body in a sample.

    The sample's sizes and the bodies of the previous columns precede the body. The previous columns
    are fixed columns of `offset` bytes in total, and `variable_before` variable columns. The body
    has `size` bytes, or a variable number of bytes if `size` is None.
    """

    variable_before: int
    offset: int
    size: int | None


class SampleLayout(NamedTuple):
    """The layout of a schema's samples.

    ``nvariable`` is the number of variable columns. ``fixed_nbytes`` is the size of all fixed
    columns together.
    """

    columns: dict[str, ColumnLayout]
    nvariable: int
    fixed_nbytes: int

    @property
    def stride(self) -> int:
        """Bytes of each sample, or 0 if samples vary in size."""
        return 0 if self.nvariable else self.fixed_nbytes


def sample_layout(schema: Schema) -> SampleLayout:
    """Return the sample layout of an MDS schema."""
    columns, variable_before, offset = {}, 0, 0
    for name, size in zip(schema.names, schema.sizes, strict=True):
        columns[name] = ColumnLayout(variable_before, offset, size)
        if size is None:
            variable_before += 1
        else:
            offset += size
    return SampleLayout(columns, variable_before, offset)


def has_consistent_sizes(layout: SampleLayout, sample: bytes) -> bool:
    """Return True if the sizes of all columns add up to the sample's length.

    Examples
    --------
    >>> sample = bytes([2, 0, 0, 0]) + bytes(8) + b"hi"
    >>> layout = SampleLayout({}, 1, 8)
    >>> has_consistent_sizes(layout, sample), has_consistent_sizes(layout, sample[1:])
    (True, False)
    """
    if len(sample) < 4 * layout.nvariable:
        return False
    sizes: tuple[int, ...] = struct.unpack_from(f"<{layout.nvariable}I", sample)
    return 4 * layout.nvariable + layout.fixed_nbytes + sum(sizes) == len(sample)


def check_mds_head(
    schema: Schema, data: Bytes, samples: int, stride: int, nbytes: int | None = None
) -> int:
    """Check the head of an MDS shard and return the offset of its first sample.

    Parameters
    ----------
    schema : Schema
    data : ndarray of uint8
        The whole shard, or its head only.
    samples : int
        Number of samples according to the index.
    stride : int
        Bytes of each sample, or 0 if samples vary in size.
    nbytes : int, optional
        Bytes of the whole shard; by default the length of `data`.

    Raises
    ------
    FormatError
        If the head contradicts the index or the file's size.
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
        check_ascending(words[1:])
    check_configuration(schema, data[head:begin])
    return begin
