"""Exploration of datasets: representations, previews, statistics, value counts, expressions."""
