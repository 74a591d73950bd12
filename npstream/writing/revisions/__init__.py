"""Appending to a dataset, and replacing it."""
