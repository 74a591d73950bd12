"""The encodings of columns: what the bytes of one value mean."""
