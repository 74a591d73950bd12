"""Provide `dataframe_to_mds`, as ``streaming.base.converters`` does."""

from npstream.streaming.dataframes import dataframe_to_mds

__all__ = ["dataframe_to_mds"]
