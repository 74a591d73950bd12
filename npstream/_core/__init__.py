"""Foundations that all layers share: compilation, types, logging, memory, arguments."""
