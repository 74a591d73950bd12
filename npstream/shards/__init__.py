"""Provide shards in memory: of local datasets, of remote datasets, and of several datasets."""
