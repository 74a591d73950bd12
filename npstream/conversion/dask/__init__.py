"""Provide `write`, which writes Dask collections as datasets, one task for each partition."""

from npstream.conversion.dask.writer import write

__all__ = ["write"]
