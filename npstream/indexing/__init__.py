"""NumPy's indexing of datasets and columns, without reading data."""
