"""Data that users give to a writer, as tables and samples."""
