"""Provide `MDSWriter`, as ``streaming.base.format.mds`` does."""

from npstream.streaming.writers import MDSWriter

__all__ = ["MDSWriter"]
