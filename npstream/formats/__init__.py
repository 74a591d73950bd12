"""The formats of datasets: what the bytes of an index and of its shards mean."""
