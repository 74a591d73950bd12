"""Loops over samples: locate, split into columns, gather.

A kernel takes arrays and addresses, fills arrays that it is given, and returns a number. What
lies at an address is *spans*: runs of bytes, given as two arrays of addresses and lengths. A
span may be a sample, a line of text or one column's body, in a mapped file or any other memory;
whoever passes addresses holds the memory.

Arguments that recur, for n samples and S shards:

============  ==========  =========================================================
ids           int64[n]    sample numbers, each in [0, starts[S])
starts        int64[S+1]  first sample of each shard
guide, shift              see `npstream.formats.index.shard_lookup_table`
place         int64[S,7]  address of the shard's bytes (0: not in memory), address of
                          its offsets, first and last byte that samples may take,
                          bytes of every sample (0: see the offsets), address of a byte a
                          chunk that says if it is in memory (0: all are), chunks
address       int64[n]    where each span begins
nbytes        int64[n]    its length
============  ==========  =========================================================
"""

from __future__ import annotations

from npstream._core.jit import (
    kernel,
    load_acquire,
    load_u8,
    load_u8_acquire,
    load_u32,
    will_need,
)
from npstream._core.spans import PREFETCH_DISTANCE, copy_short, prefetch_span
from npstream._core.typing import Int64


@kernel
def locate(
    ids: Int64,
    starts: Int64,
    guide: Int64,
    shift: int,
    place: Int64,
    address: Int64,
    nbytes: Int64,
) -> int:
    """Find the bytes of samples.

    Returns 0; or the number of samples whose shard or chunk is not in memory, which get the
    address 0 and, for a length, their shard; or -1 - k if the offsets of sample k are damaged.
    """
    absent = 0
    for k in range(ids.size):
        i = ids[k]
        low = guide[i >> shift]
        high = guide[(i >> shift) + 1]
        while low < high:  # the last shard that starts at or before i
            middle = (low + high + 1) >> 1
            if starts[middle] <= i:
                low = middle
            else:
                high = middle - 1
        base = load_acquire(place, low)
        row = i - starts[low]
        if base and place[low, 5]:
            chunk = ((row + 1) * place[low, 6] - 1) // (starts[low + 1] - starts[low])
            if load_u8_acquire(place[low, 5] + chunk) != 1:
                base = 0
        if base == 0:
            address[k] = 0
            nbytes[k] = low
            absent += 1
            continue
        stride = place[low, 4]
        if stride:
            begin = place[low, 2] + row * stride
            end = begin + stride
        else:
            begin = load_u32(place[low, 1] + 4 * row)
            end = load_u32(place[low, 1] + 4 * row + 4)
        if begin < place[low, 2] or end < begin or end > place[low, 3]:
            return -1 - k
        address[k] = base + begin
        nbytes[k] = end - begin
    return absent


@kernel
def split(
    address: Int64,
    nbytes: Int64,
    nvariable: int,
    nfixed: int,
    fixed: Int64,
    variable: Int64,
    spans: Int64,
) -> int:
    """Take MDS samples apart.

    Each row of `fixed` is a column to copy: variable columns before it, bytes of fixed ones
    before it, bytes to copy, address of the output. Each row of `variable` is a column whose
    span is wanted in ``spans[column, :, k]``: variable columns before it, bytes of fixed ones.

    Returns 0, or -1 - k if the sizes within sample k do not add up to its length.
    """
    head = 4 * nvariable
    for k in range(address.size):
        prefetch_span(address, nbytes, k + PREFETCH_DISTANCE)
        source = address[k]
        if nbytes[k] < head + nfixed:
            return -1 - k
        if nvariable:
            total = head + nfixed
            for v in range(nvariable):
                total += load_u32(source + 4 * v)
            if total != nbytes[k]:
                return -1 - k
        for c in range(fixed.shape[0]):
            body = source + head + fixed[c, 1]
            for v in range(fixed[c, 0]):
                body += load_u32(source + 4 * v)
            size = fixed[c, 2]
            copy_short(fixed[c, 3] + k * size, body, size)
        for c in range(variable.shape[0]):
            body = source + head + variable[c, 1]
            for v in range(variable[c, 0]):
                body += load_u32(source + 4 * v)
            spans[c, 0, k] = body
            spans[c, 1, k] = load_u32(source + 4 * variable[c, 0])
    return 0


LOCATE, SPLIT = 1, 2
"""Steps of `read`."""


@kernel
def read(
    steps: int,
    ids: Int64,
    starts: Int64,
    guide: Int64,
    shift: int,
    place: Int64,
    samples: Int64,
    nvariable: int,
    nfixed: int,
    fixed: Int64,
    variable: Int64,
    spans: Int64,
) -> int:
    """`locate`, `split`, or the one and then the other; returns what the first failure did.

    The rows of `samples` are their `address` and `nbytes`: each array of a call takes time.

    Only this is called: to compile both alone as well would take as long again.
    """
    code = 0
    address, nbytes = samples[0], samples[1]
    if steps & LOCATE:
        code = locate(ids, starts, guide, shift, place, address, nbytes)
    if code == 0 and steps & SPLIT:
        code = split(address, nbytes, nvariable, nfixed, fixed, variable, spans)
    return code


@kernel
def read_array_headers(
    address: Int64,
    nbytes: Int64,
    typed: int,
    itemsizes: Int64,
    codes: Int64,
    heads: Int64,
    ndims: Int64,
) -> int:
    """Read what stands before the values of arrays.

    The head is a dtype code (if `typed`), then ``ndim << 2 | w``, then ndim lengths of 2**w
    bytes each. ``itemsizes[code]`` is 0 for a code that does not exist. For each span,
    ``codes[k]`` gets the code (the caller's, unless `typed`), ``heads[k]`` the bytes of the head
    and ``ndims[k]`` the number of axes.

    Returns 0, or -1 - k if the head of span k is damaged or its values do not fill the span.
    """
    for k in range(address.size):
        at = address[k]
        end = at + nbytes[k]
        if end - at < typed + 1:
            return -1 - k
        if typed:
            codes[k] = load_u8(at)
            at += 1
        itemsize = itemsizes[codes[k]]
        ndim = load_u8(at) >> 2
        width = 1 << (load_u8(at) & 3)
        at += 1
        if itemsize == 0 or ndim == 0 or end - at < ndim * width:
            return -1 - k
        values = int(end - at - ndim * width) // int(itemsize)
        size = 1
        for _ in range(ndim):
            length = load_little_endian(at, width)
            at += width
            # Dividing keeps a hostile product of lengths from wrapping around.
            if length <= 0 or size > values // length:
                return -1 - k
            size *= length
        if size * itemsize != end - at:
            return -1 - k
        heads[k] = at - address[k]
        ndims[k] = ndim
    return 0


@kernel
def read_array_shapes(address: Int64, typed: int, shapes: Int64) -> None:
    """Read the shapes of arrays of one rank, whose heads `read_array_headers` found sound."""
    for k in range(address.size):
        at = address[k] + typed
        width = 1 << (load_u8(at) & 3)
        for axis in range(shapes.shape[1]):
            shapes[k, axis] = load_little_endian(at + 1 + axis * width, width)


@kernel
def load_little_endian(address: int, width: int) -> int:
    """Read an unsigned number of up to 8 bytes; one of 2**63 and more comes out negative."""
    number = 0
    for byte in range(width):
        number |= load_u8(address + byte) << (8 * byte)
    return number


@kernel
def will_need_spans(address: Int64, nbytes: Int64, page: int, gap: int) -> None:
    """Ask for the pages of spans, sorted by address; holes of up to `gap` bytes are read too."""
    first = 0
    last = 0
    for k in range(address.size):
        begin = address[k] // page * page
        end = address[k] + nbytes[k]
        if begin > last + gap or first == 0:
            if first:
                will_need(first, last - first)
            first = begin
            last = end
        elif end > last:
            last = end
    if first:
        will_need(first, last - first)


@kernel
def touch(address: Int64, nbytes: Int64) -> int:
    """Read a byte of each span that has any, so that its page is in memory."""
    total = 0
    for k in range(address.size):
        if nbytes[k] > 0:
            total += load_u8(address[k])
    return total
