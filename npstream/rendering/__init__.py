"""Values as text and HTML, for representations of datasets, columns and batches."""
