"""Kernels that copy and compare spans: byte ranges in memory, given by address and length.

The caller must keep the memory alive. A `Span` of `npstream._core.typing` is something else: a byte
range of a file.

Tested in tests/shards/test_kernels.py.
"""

from __future__ import annotations

from npstream._core.jit import (
    compare,
    copy,
    copy_u8,
    copy_u16,
    copy_u32,
    copy_u64,
    kernel,
    prefetch_cache_line,
)
from npstream._core.typing import Bools, Int64

PREFETCH_DISTANCE = 8
"""The kernels prefetch this number of spans ahead of the current copy into the processor's cache.

Without prefetching, each copy waits for a cache miss and for one or two page-table lookups.
"""


@kernel
def prefetch_span(address: Int64, nbytes: Int64, k: int) -> None:
    """Prefetch the first and last bytes of span `k`, if it exists."""
    if k < address.size:
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
def join_columns(count: int, columns: Int64, spans: Int64, destination: int) -> None:
    """Write `count` rows back to back, each with its value of every column.

    Parameters
    ----------
    count : int
        Number of rows.
    columns : ndarray of int64, shape (columns, 3)
        ``(-1, address, size)`` describes a contiguous array of values of `size` bytes.
        ``(v, 0, 0)`` describes a column of varying sizes: value k is at the address
        ``spans[v, 0, k]`` and has ``spans[v, 1, k]`` bytes.
    spans : ndarray of int64, shape (columns of varying sizes, 2, count)
        The addresses and the sizes of their values.
    destination : int
        The address of the first row.
    """
    target = destination
    for k in range(count):
        for c in range(columns.shape[0]):
            v = columns[c, 0]
            if v < 0:
                size = columns[c, 2]
                copy_short(target, columns[c, 1] + k * size, size)
            else:
                ahead = k + PREFETCH_DISTANCE
                if ahead < count:
                    prefetch_cache_line(spans[v, 0, ahead])
                size = spans[v, 1, k]
                copy(target, spans[v, 0, k], size)
            target += size


@kernel
def equal_spans(address: Int64, nbytes: Int64, value: int, size: int, equal: Bools) -> None:
    """Set ``equal[k]`` to True where span k equals the `size` bytes at the address `value`."""
    for k in range(address.size):
        equal[k] = nbytes[k] == size and compare(address[k], value, size) == 0
