"""Provide `StreamingDataset`, as ``streaming.base.dataset`` does.

Tested in tests/streaming/test_dataset.py.
"""

from npstream.streaming.dataset import StreamingDataset

__all__ = ["StreamingDataset"]
