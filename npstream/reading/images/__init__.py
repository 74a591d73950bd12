"""Decoding of images in batches: options, decoders, threads, and the columns of reads."""
