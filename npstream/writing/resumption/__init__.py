"""Writes that go on after an interruption."""
