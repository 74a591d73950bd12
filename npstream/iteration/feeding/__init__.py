"""Provide the threads, processes and device buffers that make the next batches of an iteration."""
