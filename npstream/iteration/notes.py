"""Texts that a process hands on to its workers, also to those that are running.

Tested in tests/mixture/test_epochs.py.
"""

from __future__ import annotations

import zlib
from typing import Any

_LENGTH = 8
"""Bytes that say how long a text is."""

_TEXTS = 2
"""Texts, each in a room of its own."""


class Notes:
    """Two texts: in memory of the process, or in memory that workers inherit.

    Parameters
    ----------
    room : int
        Bytes that a text may take, compressed, where workers are to read it.

    Examples
    --------
    >>> notes = Notes(room=100)
    >>> notes.write(0, "weights")
    >>> notes.read(0), notes.read(1)
    ('weights', '')
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._shared: Any = None
        self._texts: dict[int, str] = {}

    def share(self) -> None:
        """Move to memory that workers inherit, however they are started."""
        if self._shared is None and self.room:
            import multiprocessing

            self._shared = multiprocessing.RawArray("B", _TEXTS * (self.room + _LENGTH))
            for number, text in self._texts.items():
                self.write(number, text)

    def write(self, number: int, text: str) -> None:
        """Write text 0 or text 1."""
        if self._shared is None:
            self._texts[number] = text
            return
        packed = zlib.compress(text.encode()) if text else b""
        if len(packed) > self.room:
            raise ValueError(
                f"what the run was of before takes {len(packed)} bytes, and workers can be told "
                f"{self.room}: begin a new run, or read without workers"
            )
        begin = number * (self.room + _LENGTH)
        length = len(packed).to_bytes(_LENGTH, "little")
        self._shared[begin : begin + _LENGTH + len(packed)] = length + packed

    def read(self, number: int) -> str:
        """Return text 0 or text 1; an empty one if none was written."""
        if self._shared is None:
            return self._texts.get(number, "")
        begin = number * (self.room + _LENGTH)
        memory = memoryview(self._shared).cast("B")[begin : begin + _LENGTH + self.room]
        length = int.from_bytes(memory[:_LENGTH], "little")
        return zlib.decompress(memory[_LENGTH : _LENGTH + length]).decode() if length else ""
