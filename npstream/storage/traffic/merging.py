"""Provide `Merging`, which says which neighboring byte ranges become one request.

Tested in tests/storage/test_coalesce.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Merging(NamedTuple):
    """Which neighboring byte ranges are merged into one request.

    Attributes
    ----------
    gap : int
        Ranges with at most this many bytes between them are always merged.
    measured_gap : int, default: 0
        The bytes that the store sends in the time of a request without bytes: its latency times its
        bandwidth. If there are more requests than `concurrency`, ranges with at most this many
        bytes between them are merged as well.
    concurrency : int, default: 1
        The number of concurrent requests of the store.
    """

    gap: int
    measured_gap: int = 0
    concurrency: int = 1
