"""Requests for parts of files, neighbors in one.

Tested in tests/shards/test_remote.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Int64

if TYPE_CHECKING:
    from npstream._core.typing import Bytes
    from npstream.storage.local import Store

REQUEST_BYTES = 1 << 16
"""Bytes that take as long as a request, where many requests are under way at once."""


def transfer_cost(requests: Any, nbytes: Any) -> Any:
    """Return the cost of requests, and of the bytes that they bring, in bytes."""
    return nbytes + REQUEST_BYTES * requests


def is_worthwhile(parts: Any, whole: Any) -> Any:
    """Return True where reading parts costs at most three quarters of reading all."""
    return 4 * parts <= 3 * whole


def merged(
    file_of: Int64, begins: Int64, ends: Int64, gap: int
) -> tuple[Int64, Int64, Int64, Int64]:
    """Merge parts of files, rising, where they overlap or are no further apart than a gap.

    Returns
    -------
    heads : ndarray of int64, shape (requests,)
        The first part of each request.
    run : ndarray of int64, shape (parts,)
        The request that each part is in.
    starts, lengths : ndarray of int64, shape (requests,)
        The bytes to request.

    Examples
    --------
    >>> begins = np.array([0, 100, 9000, 50])
    >>> merged(np.array([0, 0, 0, 1]), begins, begins + 10, 90)[1]
    array([0, 0, 1, 2])
    """
    apart = (file_of[1:] != file_of[:-1]) | (begins[1:] > ends[:-1] + gap)
    heads = np.flatnonzero(np.append(True, apart))
    sizes = np.diff(np.append(heads, len(file_of)))
    starts = begins[heads]
    return heads, np.repeat(np.arange(len(heads)), sizes), starts, ends[heads + sizes - 1] - starts


def read_merged(
    store: Store,
    name_of: Callable[[int], str],
    file_of: Int64,
    begins: Int64,
    ends: Int64,
    gap: int,
) -> list[bytes]:
    """Read parts of files, rising, in requests that are merged."""
    heads, run, starts, lengths = merged(file_of, begins, ends, gap)
    names = map(name_of, file_of[heads].tolist())
    fetched = store.ranges(zip(names, starts.tolist(), lengths.tolist(), strict=True))
    base = starts[run]
    within = zip(run.tolist(), (begins - base).tolist(), (ends - base).tolist(), strict=True)
    return [fetched[number][begin:end] for number, begin, end in within]


def fill_merged(
    store: Store,
    name_of: Callable[[int], str],
    file_of: Int64,
    begins: Int64,
    ends: Int64,
    gap: int,
    out: Bytes,
) -> None:
    """Read parts of files, rising, into `out`, end to end, in requests that are merged."""
    heads, _, starts, lengths = merged(file_of, begins, ends, gap)
    names = map(name_of, file_of[heads].tolist())
    stops = np.append(heads[1:], len(file_of))
    sizes = ends - begins
    at = np.cumsum(sizes) - sizes
    spans = zip(names, starts.tolist(), lengths.tolist(), strict=True)
    for number, body in store.stream(spans):
        mine = slice(int(heads[number]), int(stops[number]))
        offsets = begins[mine] - starts[number]
        found = zip(at[mine].tolist(), offsets.tolist(), sizes[mine].tolist(), strict=True)
        for to, offset, size in found:
            out[to : to + size] = np.frombuffer(body, np.uint8, size, offset)
