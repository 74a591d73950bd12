"""Mixtures of several datasets, drawn by weight."""
