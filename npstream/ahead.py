"""Fetching the chunks of samples that will be read, while others are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from npstream._log import log
from npstream.errors import NpstreamError

if TYPE_CHECKING:
    from npstream._typing import Int64
    from npstream.remote_shards import Chunk, RemoteShards

THREADS = 4
"""Groups of chunks that are fetched side by side."""

GROUP = 1 << 25
"""Bytes of the chunks that are fetched together, about."""

WINDOW = 1 << 28
"""Bytes of the chunks that are asked for, and have not come."""


class Coming:
    """The chunks that somebody in this process will fetch, or is fetching."""

    def __init__(self) -> None:
        self.renew_locks()

    def renew_locks(self) -> None:
        """Begin anew in a forked process, which has none of the threads that fetch."""
        self._chunks: set[Chunk] = set()
        self.changed = threading.Condition()

    def __contains__(self, chunk: Chunk) -> bool:
        return chunk in self._chunks

    def add(self, chunk: Chunk) -> bool:
        """Say that a chunk will be fetched, unless somebody else said so."""
        with self.changed:
            if chunk in self._chunks:
                return False
            self._chunks.add(chunk)
            return True

    def remove(self, chunks: Iterable[Chunk]) -> None:
        """Say that chunks have come, or will not come after all."""
        with self.changed:
            self._chunks.difference_update(chunks)
            self.changed.notify_all()

    def wait(self, chunks: Iterable[Chunk], timeout: float) -> None:
        """Wait until none of some chunks is coming any more."""
        wanted = set(chunks)
        with self.changed:
            self.changed.wait_for(lambda: wanted.isdisjoint(self._chunks), timeout)


class ReadAhead:
    """Fetches chunks in the background, in the order in which they are asked for.

    Parameters
    ----------
    shards : RemoteShards
    """

    def __init__(self, shards: RemoteShards) -> None:
        self._shards = shards
        self._coming = shards.coming
        self._queue: deque[Chunk] = deque()
        self._asked = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._pending = 0
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether enough was asked for that has not come."""
        return self._pending >= WINDOW

    def ask(self, absent: tuple[Int64, Int64]) -> None:
        """Have the chunks of samples, given with their shards, fetched after all before."""
        if not len(absent[0]):
            return
        chunks = [chunk for chunk, _ in self._shards.wanted(*absent)]
        fresh = [c for c in chunks if not self._shards.files.is_here(*c) and self._coming.add(c)]
        with self._asked:
            self._queue += fresh
            self._pending += sum(self._shards.chunk_bytes(shard) for shard, _ in fresh)
            if len(self._threads) < THREADS:
                thread = threading.Thread(target=self._run, name="npstream-ahead", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._asked.notify()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Fetch no more than what is being fetched."""
        with self._asked:
            self._is_closed = True
            left, self._queue = list(self._queue), deque()
            self._asked.notify_all()
        self._coming.remove(left)

    def _run(self) -> None:
        while group := self._next():
            try:
                self._shards.fetch(group)
            except NpstreamError as error:
                # Whoever reads these chunks will fetch them anew, and is told what is wrong.
                log("reading ahead failed: %s", error)
            finally:
                self._coming.remove(group)
                with self._asked:
                    self._pending -= sum(self._shards.chunk_bytes(shard) for shard, _ in group)

    def _next(self) -> list[Chunk]:
        """Wait for chunks to fetch together; none once it is closed."""
        group: list[Chunk] = []
        with self._asked:
            self._asked.wait_for(lambda: self._queue or self._is_closed)
            nbytes = 0
            while self._queue and nbytes < GROUP:
                group.append(self._queue.popleft())
                nbytes += self._shards.chunk_bytes(group[-1][0])
        return group
