"""The side-car: a dataset's index as arrays, hashes, statistics and scalar columns."""
