"""Provide `PartialCopyStore`: a remote store with local copies of some of its files.

Tested in tests/streaming/test_places.py.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from typing import Any

from npstream._core.typing import Body, Span
from npstream.storage.remote import RemoteStore


class PartialCopyStore(RemoteStore):
    """A remote store that reads byte ranges from local copies, and requests all other ranges.

    Parameters
    ----------
    directory : str
        The local directory. Its files are copies of those of the store.
    *args : Any
        The arguments of `RemoteStore`.
    """

    def __init__(self, directory: str, *args: Any) -> None:
        super().__init__(*args)
        self._directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        _, arguments, state = super().__reduce__()
        return type(self), (self._directory, *arguments), state

    def stream_bodies(self, spans: Iterable[Span]) -> Generator[tuple[int, Body]]:
        """Yield byte ranges of files, each with its number among `spans`; local ones first."""
        remote: list[tuple[int, Span]] = []
        for number, span in enumerate(spans):
            copied = self._read_local(span)
            if copied is None:
                remote.append((number, span))
            else:
                yield number, copied
        for position, body in super().stream_bodies(span for _, span in remote):
            yield remote[position][0], body

    def _read_local(self, span: Span) -> bytes | None:
        """Return a range of a local file; None if the file is absent or too short."""
        name, begin, nbytes = span
        try:
            with open(os.path.join(self._directory, *name.split("/")), "rb") as file:
                body = os.pread(file.fileno(), nbytes, begin)
        except OSError:
            return None
        return body if len(body) == nbytes else None
