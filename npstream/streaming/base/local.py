"""Provide `LocalDataset`, as ``streaming.base.local`` does.

Tested in tests/streaming/test_local.py.
"""

from npstream.streaming.local import LocalDataset

__all__ = ["LocalDataset"]
