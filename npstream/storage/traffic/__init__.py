"""Measurements of a store's requests, and the decisions that depend on them."""
