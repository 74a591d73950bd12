"""Provide the writers, as ``streaming.base.format`` does."""

from npstream.streaming.base.format.index import get_index_basename
from npstream.streaming.writers import CSVWriter, JSONWriter, MDSWriter, TSVWriter, XSVWriter

__all__ = ["CSVWriter", "JSONWriter", "MDSWriter", "TSVWriter", "XSVWriter", "get_index_basename"]
