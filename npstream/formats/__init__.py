"""Dataset formats: index, shards, encodings, compression, hashes and side-car."""
