"""Writes that continue after an interruption."""
