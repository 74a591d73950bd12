"""Provide `streams_registry`, which maps each valid `stream_name` to a class of streams.

Tested in tests/streaming/test_streams.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npstream.streaming.stream import Stream

__all__ = ["Stream", "streams_registry"]


class StreamsRegistry:
    """Subclasses of `Stream`, or functions that return a `Stream`, by name."""

    def __init__(self) -> None:
        self._classes: dict[str, Callable[..., Stream]] = {}

    def register(
        self, name: str, *, func: Callable[..., Stream] | None = None
    ) -> Callable[..., Any]:
        """Register a class under a name, and return it; without `func`, return a decorator."""
        if func is None:
            return lambda cls: self.register(name, func=cls)
        self._classes[name] = func
        return func

    def get(self, name: str) -> Callable[..., Stream]:
        """Return the class of a name; raise ValueError if there is none."""
        if name not in self._classes:
            names = ", ".join(map(repr, self._classes))
            raise ValueError(
                f"stream_name={name!r}: expected one of {names}; add others with "
                "streams_registry.register(name, func=...)"
            )
        return self._classes[name]


streams_registry = StreamsRegistry()
streams_registry.register("stream", func=Stream)
