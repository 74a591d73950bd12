"""Batches and samples for a rank, epoch after epoch, resumable."""
