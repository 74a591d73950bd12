"""Provide `StreamingDataLoader`, as ``streaming.base.dataloader`` does.

Tested in tests/streaming/test_states.py.
"""

from npstream.streaming.dataloader import StreamingDataLoader

__all__ = ["StreamingDataLoader"]
