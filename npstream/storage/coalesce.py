"""Range requests in which neighboring byte ranges are coalesced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Int64

if TYPE_CHECKING:
    from npstream._core.typing import Bytes
    from npstream.storage.local import Store
    from npstream.storage.traffic.merging import Merging

REQUEST_BYTES = 1 << 16
"""The cost of a request, in bytes.

With many concurrent requests, the store sends about this many bytes in the time of one request.
"""


def transfer_cost(requests: Any, nbytes: Any) -> Any:
    """Return the cost, in bytes, of a number of requests that transfer `nbytes` in all."""
    return nbytes + REQUEST_BYTES * requests


def parts_are_cheaper(parts_cost: Any, whole_cost: Any) -> Any:
    """Return True where reading parts costs at most three quarters of reading the whole."""
    return 4 * parts_cost <= 3 * whole_cost


MAX_MERGED = 4
"""Maximum distance of ranges that `Merging.measured_gap` merges into a request, in measured gaps.

It is counted from begin to begin. The store sends that many bytes in 4 times its latency.
"""


def coalesce_ranges(
    file_of: Int64, begins: Int64, ends: Int64, merging: Merging
) -> tuple[Int64, Int64, Int64, Int64]:
    """Coalesce byte ranges that overlap, or are close together, into requests.

    Parameters
    ----------
    file_of, begins, ends : ndarray of int64, shape (ranges,)
        The file, the first byte and the end of each range. The ranges are sorted by file; the
        begins and the ends in a file ascend.
    merging : Merging

    Returns
    -------
    first_ranges : ndarray of int64, shape (requests,)
        The number of the first range in each request.
    request_of : ndarray of int64, shape (ranges,)
        The number of the request that contains each range.
    starts, lengths : ndarray of int64, shape (requests,)
        The bytes to request.

    Examples
    --------
    >>> from npstream.storage.traffic.merging import Merging
    >>> begins = np.array([0, 100, 9000, 50])
    >>> coalesce_ranges(np.array([0, 0, 0, 1]), begins, begins + 10, Merging(90))[1]
    array([0, 0, 1, 2])
    """
    gap, measured_gap, concurrency = merging
    first_ranges = _first_ranges(file_of, begins, ends, gap)
    if measured_gap > gap and len(first_ranges) > concurrency:
        # Concurrent requests take no longer than one request. So merge further only the requests
        # that would otherwise have to wait for others.
        last_ranges = np.append(first_ranges[1:], len(file_of)) - 1
        units = file_of[first_ranges], begins[first_ranges], ends[last_ranges]
        first_ranges = first_ranges[_merge_units(*units, measured_gap, concurrency)]
    counts = np.diff(np.append(first_ranges, len(file_of)))
    starts, stops = begins[first_ranges], ends[first_ranges + counts - 1]
    return first_ranges, np.repeat(np.arange(len(first_ranges)), counts), starts, stops - starts


def _first_ranges(file_of: Int64, begins: Int64, ends: Int64, gap: int) -> Int64:
    """Return the number of the first range in each request, for one gap."""
    is_first = (file_of[1:] != file_of[:-1]) | (begins[1:] > ends[:-1] + gap)
    return np.flatnonzero(np.append(True, is_first))


def _merge_units(file_of: Int64, begins: Int64, ends: Int64, gap: int, concurrency: int) -> Int64:
    """Merge ranges by a measured gap, into about `concurrency` requests or more."""
    first = _first_ranges(file_of, begins, ends, gap)
    counts = np.diff(np.append(first, len(file_of)))
    span = int((ends[first + counts - 1] - begins[first]).sum())
    max_nbytes = max(min(MAX_MERGED * gap, span // concurrency), 1)
    group_of = np.repeat(np.arange(len(first)), counts)
    piece_of = (begins - begins[first][group_of]) // max_nbytes
    is_first = (group_of[1:] != group_of[:-1]) | (piece_of[1:] != piece_of[:-1])
    return np.flatnonzero(np.append(True, is_first))


def read_coalesced(
    store: Store,
    name_of: Callable[[int], str],
    file_of: Int64,
    begins: Int64,
    ends: Int64,
    merging: Merging,
) -> list[bytes]:
    """Read byte ranges by coalesced requests; they must be sorted as for `coalesce_ranges`."""
    first_ranges, request_of, starts, lengths = coalesce_ranges(file_of, begins, ends, merging)
    names = map(name_of, file_of[first_ranges].tolist())
    bodies = store.ranges(zip(names, starts.tolist(), lengths.tolist(), strict=True))
    first, stop = begins - starts[request_of], ends - starts[request_of]
    slices = zip(request_of.tolist(), first.tolist(), stop.tolist(), strict=True)
    return [bodies[number][begin:end] for number, begin, end in slices]


def fill_coalesced(
    store: Store,
    name_of: Callable[[int], str],
    file_of: Int64,
    begins: Int64,
    ends: Int64,
    merging: Merging,
    out: Bytes,
) -> None:
    """Read sorted byte ranges of files by coalesced requests, and concatenate them in `out`."""
    first_ranges, _, starts, lengths = coalesce_ranges(file_of, begins, ends, merging)
    names = map(name_of, file_of[first_ranges].tolist())
    stops = np.append(first_ranges[1:], len(file_of))
    sizes = ends - begins
    out_offsets = np.cumsum(sizes) - sizes
    spans = zip(names, starts.tolist(), lengths.tolist(), strict=True)
    for number, body in store.stream(spans):
        ranges = slice(int(first_ranges[number]), int(stops[number]))
        offsets = (begins[ranges] - starts[number]).tolist()
        targets = out_offsets[ranges].tolist()
        for target, offset, size in zip(targets, offsets, sizes[ranges].tolist(), strict=True):
            out[target : target + size] = np.frombuffer(body, np.uint8, size, offset)
