"""The orders in which samples are visited, computed and never stored."""
