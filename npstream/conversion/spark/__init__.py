"""Provide `write`, which writes a DataFrame of Spark as a dataset, and `read` for the reverse."""

from npstream.conversion.spark.reader import read
from npstream.conversion.spark.types import column_encodings
from npstream.conversion.spark.writer import write

__all__ = ["column_encodings", "read", "write"]
