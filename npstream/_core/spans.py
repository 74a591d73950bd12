"""Kernels that copy, compare and search spans: byte ranges in memory, given by address and length.

The caller must keep the memory alive. A `Span` of `npstream._core.typing` is something else: a byte
range of a file.

Tested in tests/shards/test_kernels.py.
"""

from __future__ import annotations

from npstream._core.jit import (
    MASK_BYTES,
    compare,
    continuation_mask,
    copy,
    copy_u8,
    copy_u16,
    copy_u32,
    copy_u64,
    is_compiled,
    kernel,
    load_i64,
    load_u8,
    lowest_bit,
    match_mask,
    popcount,
    prefetch_cache_line,
    u64,
)
from npstream._core.typing import Bools, Int64

PREFETCH_DISTANCE = 8
"""While a kernel reads span k, it prefetches span ``k + PREFETCH_DISTANCE``.

Without prefetching, each read waits for a cache miss and for one or two page-table lookups.
"""


@kernel
def prefetch_span(address: Int64, nbytes: Int64, k: int) -> None:
    """Prefetch the first and last bytes of span `k`, if it exists."""
    if is_compiled() and k < address.size:
        prefetch_cache_line(address[k])
        prefetch_cache_line(address[k] + nbytes[k] - 1)


@kernel
def copy_short(destination: int, source: int, size: int) -> None:
    """Copy `size` bytes; a constant size of 1, 2, 4 or 8 compiles to one load and one store."""
    if size == 8:
        copy_u64(destination, source)
    elif size == 4:
        copy_u32(destination, source)
    elif size == 2:
        copy_u16(destination, source)
    elif size == 1:
        copy_u8(destination, source)
    else:
        copy(destination, source, size)


@kernel
def copy_spans(address: Int64, nbytes: Int64, offsets: Int64, destination: int) -> None:
    """Copy span k to ``destination + offsets[k]``, for all k."""
    for k in range(address.size):
        prefetch_span(address, nbytes, k + PREFETCH_DISTANCE)
        copy(destination + offsets[k], address[k], nbytes[k])


@kernel
def join_columns(count: int, columns: Int64, destination: int) -> None:
    """Write `count` rows back to back: the sizes of values, then the value of every column.

    Parameters
    ----------
    count : int
        Number of rows.
    columns : ndarray of int64, shape (columns, 3)
        The first number of each column is its kind:

        - ``(-1, address, size)``: the values are contiguous, and each has `size` bytes.
        - ``(0, addresses, sizes)``: the values are separate. `addresses` and `sizes` are the
          addresses of two arrays of int64, which contain the address and the size of each value.
        - ``(1, addresses, sizes)``: as for 0, but the size of each value is also written. A row
          starts with the sizes of all these columns, as uint32.
    destination : int
        The address of the first row.
    """
    target = destination
    for k in range(count):
        for c in range(columns.shape[0]):
            if columns[c, 0] == 1:
                copy_u32(target, columns[c, 2] + 8 * k)  # little-endian
                target += 4
        for c in range(columns.shape[0]):
            if columns[c, 0] < 0:
                size = columns[c, 2]
                copy_short(target, columns[c, 1] + k * size, size)
            else:
                row = k + PREFETCH_DISTANCE
                if row < count:
                    prefetch_cache_line(load_i64(columns[c, 1] + 8 * row))
                size = load_i64(columns[c, 2] + 8 * k)
                copy(target, load_i64(columns[c, 1] + 8 * k), size)
            target += size


@kernel
def equal_spans(address: Int64, nbytes: Int64, value: int, size: int, equal: Bools) -> None:
    """Set ``equal[k]`` to True where span k equals the `size` bytes at the address `value`."""
    for k in range(address.size):
        equal[k] = nbytes[k] == size and compare(address[k], value, size) == 0


@kernel
def match_any_span(
    address: Int64, nbytes: Int64, values: Int64, sizes: Int64, matches: Bools
) -> None:
    """Set ``matches[k]`` to True where span k equals one of some values.

    Parameters
    ----------
    address, nbytes : ndarray of int64, shape (n,)
        The spans.
    values, sizes : ndarray of int64, shape (values,)
        Addresses and sizes of the values, sorted by size, then by their bytes.
    matches : ndarray of bool, shape (n,)
    """
    for k in range(address.size):
        prefetch_span(address, nbytes, k + PREFETCH_DISTANCE)
        size = nbytes[k]
        low, high = 0, values.size
        is_found = False
        while low < high and not is_found:
            middle = (low + high) // 2
            order = sizes[middle] - size
            if order == 0:
                order = compare(values[middle], address[k], size)
            if order == 0:
                is_found = True
            elif order < 0:
                low = middle + 1
            else:
                high = middle
        matches[k] = is_found


@kernel
def match_ends(
    address: Int64, nbytes: Int64, value: int, size: int, at_end: bool, matches: Bools
) -> None:
    """Set ``matches[k]`` to True where span k begins with the `size` bytes at the address `value`.

    If `at_end` is True, compare the end of the span instead.
    """
    for k in range(address.size):
        begin = address[k]
        if at_end:
            begin += nbytes[k] - size
        matches[k] = nbytes[k] >= size and compare(begin, value, size) == 0


@kernel
def is_within_page(address: int) -> bool:
    """Return True if `MASK_BYTES` bytes can be read, given that the first one can.

    Memory is mapped in whole pages, of 4 KiB or a multiple.
    """
    return address & 4095 <= 4096 - MASK_BYTES


@kernel
def contains(address: int, nbytes: int, value: int, size: int) -> bool:
    """Return True if a span contains the `size` bytes at the address `value`.

    `MASK_BYTES` positions are tested at once for the first and the last byte of the value. Where
    both match, the whole value is compared. In a long span, the last group of positions overlaps
    the previous group, so that the last group also has `MASK_BYTES` positions.
    """
    if size == 0:
        return True
    count = nbytes - size + 1
    first, last = load_u8(value), load_u8(value + size - 1)
    position = 0
    while position < count:
        if position > 0 and position > count - MASK_BYTES:
            position = count - MASK_BYTES
        pointer, remaining = address + position, count - position
        mask = 0
        if remaining >= MASK_BYTES:
            mask = match_mask(pointer, size - 1, first | last << 8)
        elif is_within_page(pointer) and is_within_page(pointer + size - 1):
            mask = match_mask(pointer, size - 1, first | last << 8) & ((1 << remaining) - 1)
        else:
            for k in range(remaining):
                if load_u8(pointer + k) == first and load_u8(pointer + k + size - 1) == last:
                    mask |= 1 << k
        while mask != 0:
            begin = pointer + lowest_bit(mask)
            if size <= 2 or compare(begin + 1, value + 1, size - 2) == 0:
                return True
            mask &= mask - 1
        position += MASK_BYTES
    return False


@kernel
def search_spans(address: Int64, nbytes: Int64, value: int, size: int, matches: Bools) -> None:
    """Set ``matches[k]`` to True where span k contains the `size` bytes at `value`."""
    for k in range(address.size):
        prefetch_span(address, nbytes, k + PREFETCH_DISTANCE)
        matches[k] = contains(address[k], nbytes[k], value, size)


@kernel
def count_characters(address: Int64, nbytes: Int64, lengths: Int64) -> None:
    """Set ``lengths[k]`` to the number of code points of span k, which is UTF-8.

    Each byte that is not ``0b10xxxxxx`` begins a code point.
    """
    for k in range(address.size):
        prefetch_span(address, nbytes, k + PREFETCH_DISTANCE)
        pointer, end = address[k], address[k] + nbytes[k]
        continuations = u64(0)
        while pointer < end:
            remaining = end - pointer
            if remaining >= MASK_BYTES:
                mask = continuation_mask(pointer)
            elif is_within_page(pointer):
                mask = continuation_mask(pointer) & ((1 << remaining) - 1)
            else:
                remaining = 1
                mask = int(load_u8(pointer) >> 6 == 2)
            continuations += popcount(u64(mask))
            pointer += min(remaining, MASK_BYTES)
        # Convert to int64 first: in Numba, int64 minus uint64 is a float.
        lengths[k] = continuations
        lengths[k] = nbytes[k] - lengths[k]
