"""Provide `write` and `read`, for datasets from and as DataFrames of Spark."""

from npstream.conversion.spark.reader import read
from npstream.conversion.spark.types import column_encodings
from npstream.conversion.spark.writer import write

__all__ = ["column_encodings", "read", "write"]
