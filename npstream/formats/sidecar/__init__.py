"""The side-car of a dataset: index arrays, hashes, statistics and scalar columns."""
