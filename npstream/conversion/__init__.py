"""Conversion of data of other formats to datasets: `npstream.convert` and its sources."""
