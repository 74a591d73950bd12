"""Iterations that go on after samples that cannot be read."""
