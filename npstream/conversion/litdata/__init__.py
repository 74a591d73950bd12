"""Datasets that LitData wrote, as a source."""
