"""Provide the kernels that locate samples, split them into columns, and read array headers.

A kernel fills arrays that it is given and returns a number. It reads memory through *spans*:
byte ranges, given as one array of addresses and one of lengths. A span is a sample, a line of
text or the body of one column, in a mapped file or any other memory. The caller keeps that memory
alive.

Common arguments, for n samples and S shards:

============  ==========  =========================================================
ids           int64[n]    sample numbers, each in [0, starts[S])
table         int64[4]    the addresses of `starts`, `guide` and `entries`, and `shift`
starts        int64[S+1]  first sample of each shard
guide, shift              see `npstream.formats.index.shard_lookup_table`
entries       int64[S,7]  for each shard, the row described below
address       int64[n]    first byte of each span
nbytes        int64[n]    length of each span
============  ==========  =========================================================

`table` has addresses, because each array that Python passes to a kernel takes time.

Columns of `entries`, for a shard:

=========  ========================================================================
0          address of its bytes, or 0 if it is not in memory
_OFFSETS   address of its offsets
_BEGIN     offset of the first byte of its samples
_END       offset of the end of its samples
_STRIDE    bytes of every sample, or 0 if samples differ and need the offsets
_SLOTS     address of two int64 for each chunk, which are described below;
           0 if all chunks are in memory, at the address in column 0
_CHUNKS    number of chunks
=========  ========================================================================

Chunks of a shard may be in different files. The first int64 of a chunk takes the place of column 0
for its samples, so the address of a byte is this number plus the byte's offset in the shard. It is
0 if the chunk is not in memory. The second is the address of a byte, which is 1 while the chunk
may be read.
"""

from __future__ import annotations

from npstream._core.jit import (
    is_compiled,
    kernel,
    load_i64,
    load_i64_acquire,
    load_u8,
    load_u8_acquire,
    load_u32,
    prefetch_far,
    will_need,
)
from npstream._core.spans import PREFETCH_DISTANCE, copy_short, prefetch_span
from npstream._core.typing import Int64

_OFFSETS, _BEGIN, _END, _STRIDE, _SLOTS, _CHUNKS = range(8, 56, 8)
"""The columns of `entries` after column 0, as byte offsets in a row.

Another thread writes column 0 last. A kernel reads it with acquire order, so a kernel that finds an
address also finds the other columns.
"""

ENTRY_COLUMNS = 7
"""Number of columns of `entries`."""

LONG_SAMPLE = 1 << 9
"""`split` uses `copy_long_samples` where it copies this number of bytes or more of each sample."""

BYTES_AHEAD = 1 << 13
"""While a long sample is copied, the sample about this number of bytes later is prefetched."""

MAX_PREFETCH_LINES = 64
"""The maximum number of cache lines, of 64 bytes each, that are prefetched of a value.

The processor itself prefetches the rest of a longer value.
"""


@kernel
def locate(ids: Int64, table: Int64, address: Int64, nbytes: Int64) -> int:
    """Find the addresses and lengths of samples.

    Returns 0 if all samples are in memory and intact. Returns the number of samples whose shard
    or chunk is not in memory: their address is 0 and their nbytes is the shard number. Returns
    -1 - k if the offsets of sample k are damaged.
    """
    absent = 0
    starts, guide, entries, shift = int(table[0]), int(table[1]), int(table[2]), int(table[3])
    for k in range(ids.size):
        i = int(ids[k])
        guess = guide + 8 * (i >> shift)
        low, high = load_i64(guess), load_i64(guess + 8)
        while low < high:  # binary search for the last shard that starts at or before i
            middle = (low + high + 1) >> 1
            if load_i64(starts + 8 * middle) <= i:
                low = middle
            else:
                high = middle - 1
        entry, start = entries + 8 * ENTRY_COLUMNS * low, load_i64(starts + 8 * low)
        base = load_i64_acquire(entry)
        row = i - start
        slots = load_i64(entry + _SLOTS)
        if base and slots:
            # The last chunk whose first row, ``chunk * rows // chunks``, is at most `row`.
            rows = load_i64(starts + 8 * low + 8) - start
            chunk = ((row + 1) * load_i64(entry + _CHUNKS) - 1) // rows
            slot = slots + 16 * chunk
            base = load_i64(slot)
            if base and load_u8_acquire(load_i64(slot + 8)) != 1:
                base = 0
        if base == 0:
            address[k] = 0
            nbytes[k] = low
            absent += 1
            continue
        stride, first = load_i64(entry + _STRIDE), load_i64(entry + _BEGIN)
        if stride:
            begin = first + row * stride
            end = begin + stride
        else:
            offset = load_i64(entry + _OFFSETS) + 4 * row
            begin, end = load_u32(offset), load_u32(offset + 4)
        if begin < first or end < begin or end > load_i64(entry + _END):
            return -1 - k
        address[k] = base + begin
        nbytes[k] = end - begin
    return absent


@kernel
def split(
    address: Int64,
    nbytes: Int64,
    nvariable: int,
    fixed_nbytes: int,
    fixed: Int64,
    outputs: Int64,
    variable: Int64,
    spans: Int64,
) -> int:
    """Split MDS samples into columns: copy fixed columns, and find the spans of variable ones.

    A sample has `nvariable` variable columns. Its fixed columns have `fixed_nbytes` bytes together.

    Row c of `fixed` is a column to copy:

    - the number of variable columns before it
    - the bytes of fixed columns before it
    - the bytes to copy from each sample

    ``outputs[c]`` is the address to which the values of this column are copied.

    Row c of `variable` is a column of variable size, with the first two of these numbers. The
    addresses of its n values are written to ``spans[2 * c * n :]``, and then their n lengths.

    Returns 0, or -1 - k if the column sizes of sample k do not add up to its length.
    """
    header = 4 * nvariable
    if is_compiled() and nvariable == 0 and sum_of_sizes(fixed) >= LONG_SAMPLE:
        return copy_long_samples(address, nbytes, fixed_nbytes, fixed, outputs)
    count = address.size
    for k in range(count):
        prefetch_span(address, nbytes, k + PREFETCH_DISTANCE)
        source = address[k]
        if nbytes[k] < header + fixed_nbytes:
            return -1 - k
        if nvariable:
            total = header + fixed_nbytes
            for v in range(nvariable):
                total += load_u32(source + 4 * v)
            if total != nbytes[k]:
                return -1 - k
        for c in range(fixed.shape[0]):
            variable_before, fixed_before, size = fixed[c, 0], fixed[c, 1], fixed[c, 2]
            body = source + header + fixed_before
            for v in range(variable_before):
                body += load_u32(source + 4 * v)
            copy_short(outputs[c] + k * size, body, size)
        for c in range(variable.shape[0]):
            variable_before, fixed_before = variable[c, 0], variable[c, 1]
            body = source + header + fixed_before
            for v in range(variable_before):
                body += load_u32(source + 4 * v)
            spans[2 * c * count + k] = body
            spans[(2 * c + 1) * count + k] = load_u32(source + 4 * variable_before)
    return 0


@kernel
def sum_of_sizes(fixed: Int64) -> int:
    """Return the bytes to copy from each sample."""
    total = 0
    for c in range(fixed.shape[0]):
        total += fixed[c, 2]
    return total


@kernel
def copy_long_samples(
    address: Int64, nbytes: Int64, fixed_nbytes: int, fixed: Int64, outputs: Int64
) -> int:
    """Copy columns of samples that have only fixed columns; return as `split` does.

    The processor prefetches sequential cache lines, but only after the first misses in each value.
    With these prefetches, random values of 2 and 4 KiB take a tenth to a third less time if the
    dataset exceeds the L3 cache: least on an idle machine. They take 8 % more if it fits the L2
    cache. Prefetches into the L1 cache gain little, because it waits for few lines at once. The
    loop is separate from that of `split`, because one more condition there makes copies of short
    values slower.
    """
    distance = max(1, BYTES_AHEAD // sum_of_sizes(fixed))
    for k in range(address.size):
        # The page-table lookup of a sample is done before its other lines are prefetched.
        prefetch_span(address, nbytes, k + distance + PREFETCH_DISTANCE)
        if k + distance < address.size:
            for c in range(fixed.shape[0]):
                begin = address[k + distance] + fixed[c, 1]
                for line in range(min((fixed[c, 2] + 63) >> 6, MAX_PREFETCH_LINES)):
                    prefetch_far(begin + 64 * line)
        if nbytes[k] < fixed_nbytes:
            return -1 - k
        for c in range(fixed.shape[0]):
            size = fixed[c, 2]
            copy_short(outputs[c] + k * size, address[k] + fixed[c, 1], size)
    return 0


LOCATE, SPLIT, BOTH = 1, 2, 3
"""Values of the argument `steps` of `read`."""


@kernel
def read(steps: int, ids: Int64, table: Int64, columns: Int64, words: Int64) -> int:
    """Run `locate`, `split`, or both; return the status of the first that fails.

    Row 0 of `columns` has the arguments `nvariable` and `fixed_nbytes` of `split`, and the number
    of columns to copy. The rows of `fixed` follow, then those of `variable`. Each row of `variable`
    ends with an unused number.

    `words` has the addresses of the n samples, their n lengths, the same for the values of each
    variable column, and finally the outputs. `locate` fills the first part, and `split` the second.
    The caller sets the outputs.

    Python calls only this kernel, so `locate` and `split` are compiled once. It takes one array
    besides the constant ones, because each array that Python makes takes time.
    """
    status = 0
    n = ids.size
    address, nbytes = words[:n], words[n : 2 * n]
    if steps & LOCATE:
        status = locate(ids, table, address, nbytes)
    if status == 0 and steps & SPLIT:
        stop = 1 + columns[0, 2]
        fixed, variable = columns[1:stop], columns[stop:]
        spans = words[2 * n : 2 * n * (1 + variable.shape[0])]
        outputs = words[2 * n * (1 + variable.shape[0]) :]
        status = split(
            address, nbytes, columns[0, 0], columns[0, 1], fixed, outputs, variable, spans
        )
    return status


def value_spans(words: Int64, n: int, number: int) -> Int64:
    """Return the addresses and lengths of variable column `number`, counted from 1, shape (2, n).

    `words` is the argument of `read`, for `n` samples.
    """
    return words[2 * n * number : 2 * n * (number + 1)].reshape(2, n)


@kernel
def read_array_headers(
    address: Int64,
    nbytes: Int64,
    has_code: int,
    itemsizes: Int64,
    codes: Int64,
    header_sizes: Int64,
    ndims: Int64,
) -> int:
    """Read the headers of arrays, which precede their values.

    A header begins with a dtype code if `has_code` is 1, but not if it is 0. Then it has the byte
    ``ndim << 2 | w``, and a length of 2**w bytes for each axis. ``itemsizes[code]`` is 0 for an
    unknown code.

    For each span k, the kernel writes the length of the header in bytes to ``header_sizes[k]``, and
    the number of axes to ``ndims[k]``. It writes the dtype code to ``codes[k]``, or reads it there
    if `has_code` is 0.

    Returns 0, or -1 - k if the header of span k is damaged or the values do not fill the span.
    """
    for k in range(address.size):
        cursor = address[k]
        end = cursor + nbytes[k]
        if end - cursor < has_code + 1:
            return -1 - k
        if has_code:
            codes[k] = load_u8(cursor)
            cursor += 1
        itemsize = itemsizes[codes[k]]
        ndim = load_u8(cursor) >> 2
        width = 1 << (load_u8(cursor) & 3)
        cursor += 1
        if itemsize == 0 or ndim == 0 or end - cursor < ndim * width:
            return -1 - k
        max_size = int(end - cursor - ndim * width) // int(itemsize)
        size = 1
        for _ in range(ndim):
            length = load_little_endian(cursor, width)
            cursor += width
            # Dividing keeps a malicious product of lengths from wrapping around.
            if length <= 0 or size > max_size // length:
                return -1 - k
            size *= length
        if size * itemsize != end - cursor:
            return -1 - k
        header_sizes[k] = cursor - address[k]
        ndims[k] = ndim
    return 0


@kernel
def read_array_shapes(address: Int64, has_code: int, shapes: Int64) -> None:
    """Read the shapes of arrays with the same number of axes.

    `read_array_headers` has checked their headers. `has_code` is the same as there.
    """
    for k in range(address.size):
        header = address[k] + has_code
        width = 1 << (load_u8(header) & 3)
        for axis in range(shapes.shape[1]):
            shapes[k, axis] = load_little_endian(header + 1 + axis * width, width)


@kernel
def load_little_endian(address: int, width: int) -> int:
    """Read an unsigned number of up to 8 bytes; numbers of 2**63 and more become negative."""
    number = 0
    for byte in range(width):
        number |= load_u8(address + byte) << (8 * byte)
    return number


@kernel
def will_need_spans(address: Int64, nbytes: Int64, page: int, gap: int) -> None:
    """Call madvise(WILLNEED) for the pages of spans, sorted by address.

    `page` is the size of a page in bytes. Spans that are at most `gap` bytes apart share a call.
    """
    merged_begin = 0  # 0: there was no span yet
    merged_end = 0
    for k in range(address.size):
        begin = address[k] // page * page
        end = address[k] + nbytes[k]
        if begin > merged_end + gap or merged_begin == 0:
            if merged_begin:
                will_need(merged_begin, merged_end - merged_begin)
            merged_begin = begin
            merged_end = end
        elif end > merged_end:
            merged_end = end
    if merged_begin:
        will_need(merged_begin, merged_end - merged_begin)


@kernel
def touch_pages(address: Int64, nbytes: Int64) -> int:
    """Read one byte of each span that is not empty, to bring its page into memory.

    Returns the sum of the bytes, only so that the compiler keeps the reads.
    """
    total = 0
    for k in range(address.size):
        if nbytes[k] > 0:
            total += load_u8(address[k])
    return total
