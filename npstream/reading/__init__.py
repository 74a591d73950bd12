"""Provide reads of many samples into arrays: planning, gathering and decoding."""
