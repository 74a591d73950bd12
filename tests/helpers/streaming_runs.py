"""Data and helpers for tests of runs with Streaming's orders."""

from __future__ import annotations

from streaming_reference import GOLDEN

DATA = GOLDEN / "checkpoints" / "data" / "a"
BATCHING_METHODS = ("random", "stratified", "per_stream", "device_per_stream")


def batch_ids(batches):
    return [batch.ids.tolist() for batch in batches]
