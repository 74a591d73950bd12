"""Text and HTML representations of datasets and columns."""
