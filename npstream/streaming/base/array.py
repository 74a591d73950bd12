"""Provide `Array`, as ``streaming.base.array`` does.

Tested in tests/streaming/test_dataset.py.
"""

from npstream.streaming.array import Array

__all__ = ["Array"]
