"""Fetching the chunks of samples that will be read, while others are.

Tested in tests/shards/test_remote.py.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from npstream._core.fork import renew_in_child
from npstream._core.log import log
from npstream.errors import NpstreamError

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.shards.base import Chunk

T = TypeVar("T")


class Stoppable(Protocol):
    """What waits for a store, and can be told to stop."""

    def stop(self, threads: Iterable[threading.Thread]) -> None:
        """Let the requests of some threads fail, now and later."""


Job: TypeAlias = tuple[Stoppable, Callable[[], object]]
"""Something to do that waits for a store, and the shards that are in the store."""

THREADS = 8
"""Groups of chunks that are fetched side by side."""

GROUP = 1 << 23
"""Bytes of the chunks that are fetched together, about."""

ROW_THREADS = 4
"""Pieces of work whose samples are fetched one by one, side by side."""

WINDOW = 1 << 28
"""Bytes of the chunks that were asked for, and are of samples that have not been read."""

SHARE = 4
"""At most this part of the cache's limit."""


class Coming:
    """The chunks that somebody in this process will fetch, or is fetching."""

    def __init__(self) -> None:
        self.renew_locks()
        renew_in_child(self)

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


class Fetching(Protocol):
    """Shards whose chunks are fetched: those of one dataset, or of several."""

    @property
    def cache_limit(self) -> int | None:
        """The bytes that the cache may take, if that is known."""

    def wanted(self, ids: Int64, shard_of: Int64) -> list[tuple[Chunk, int]]:
        """Return the chunks of samples in the order of their first use, with their counts."""

    def chunk_bytes(self, shard: int) -> int:
        """Return about how many bytes a chunk of a shard has."""

    def claim(self, chunk: Chunk) -> bool:
        """Say that a chunk will be fetched, unless it is here or somebody else said so."""

    def release(self, chunks: Iterable[Chunk]) -> None:
        """Say that chunks have come, or will not come after all."""

    def fetch(self, chunks: Iterable[Chunk]) -> None:
        """Bring chunks into the cache, as far as it can hold them."""

    def stop(self, threads: Iterable[threading.Thread]) -> None:
        """Let the requests of some threads fail, now and later."""


class ReadAhead:
    """Fetches chunks in the background, in the order in which they are asked for.

    It starts when it is told to, so that the first samples, which are read exactly, do not share
    the connection with what is not needed yet.

    Parameters
    ----------
    shards : RemoteShards or JoinedShards

    Attributes
    ----------
    window : int
        Bytes that may be asked for ahead of what is read.
    threads : list of Thread
        Those that fetch.
    """

    def __init__(self, shards: Fetching) -> None:
        self._shards = shards
        self._queue: deque[Chunk] = deque()
        self._asked = threading.Condition()
        self.threads: list[threading.Thread] = []
        self._is_started = self._is_closed = False
        limit = shards.cache_limit
        self.window = WINDOW if limit is None else min(WINDOW, limit // SHARE)
        renew_in_child(self)

    def renew_locks(self) -> None:
        """End in a forked process, which has none of the threads that fetch."""
        self._asked = threading.Condition()
        self._queue.clear()
        self._is_closed = True

    def start(self) -> None:
        """Begin to fetch."""
        with self._asked:
            if not (self._is_started or self._is_closed):
                self._is_started = True
                self._add_threads(len(self._queue))

    def ask(self, absent: tuple[Int64, Int64]) -> int:
        """Have the chunks of samples, given with their shards, fetched after all before.

        Returns
        -------
        int
            About how many bytes more will be fetched.
        """
        if not len(absent[0]) or self._is_closed:
            return 0
        chunks = [chunk for chunk, _ in self._shards.wanted(*absent)]
        fresh = [chunk for chunk in chunks if self._shards.claim(chunk)]
        with self._asked:
            self._queue += fresh
            if self._is_started:
                self._add_threads(len(fresh))
            self._asked.notify_all()
        return sum(self._shards.chunk_bytes(shard) for shard, _ in fresh)

    def _add_threads(self, most: int) -> None:
        for _ in range(min(most, THREADS - len(self.threads))):
            thread = threading.Thread(target=self._run, name="npstream-ahead", daemon=True)
            self.threads.append(thread)
            thread.start()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if error is not None:  # else what is still coming may be needed next
            self._shards.stop(self.threads)

    def close(self) -> None:
        """Fetch no more than what is being fetched."""
        with self._asked:
            self._is_closed = True
            left, self._queue = list(self._queue), deque()
            self._asked.notify_all()
        self._shards.release(left)

    def _run(self) -> None:
        while group := self._next():
            try:
                self._shards.fetch(group)
            except NpstreamError as error:
                # Whoever reads these chunks will fetch them anew, and is told what is wrong.
                if not self._is_closed:
                    log("reading ahead failed: %s", error)
            finally:
                self._shards.release(group)

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


class FetchingRows(Protocol):
    """Shards whose samples are fetched one by one: those of one dataset, or of several."""

    def hold_rows(self, nbytes: int) -> None:
        """Keep so many more bytes of single samples in memory, or fewer."""

    def fetch_rows(self, ids: Int64, shard_of: Int64) -> None:
        """Bring samples whose chunks are not here into memory."""

    def rows_bytes(self, shard_of: Int64) -> int:
        """Return about how many bytes samples of some shards have."""

    def stop(self, threads: Iterable[threading.Thread]) -> None:
        """Let the requests of some threads fail, now and later."""


class RowsOfPiece:
    """The samples of a piece of work that are being fetched.

    Parameters
    ----------
    ids, shard_of : ndarray of int64, shape (n,)
    nbytes : int
        Of the samples, about.
    """

    def __init__(self, ids: Int64, shard_of: Int64, nbytes: int) -> None:
        self.ids, self.shard_of, self.nbytes = ids, shard_of, nbytes
        self.done = threading.Event()


class RowsAhead:
    """Fetches single samples in the background, piece by piece, and holds them in memory.

    Parameters
    ----------
    shards : RemoteShards or JoinedShards

    Attributes
    ----------
    nbytes : int
        Bytes of the pieces that were asked for and not released, about.
    threads : list of Thread
        Those that fetch.
    """

    def __init__(self, shards: FetchingRows) -> None:
        self._shards = shards
        self._queue: deque[RowsOfPiece] = deque()
        self._asked = threading.Condition()
        self._is_closed = False
        self.threads: list[threading.Thread] = []
        self.nbytes = 0
        renew_in_child(self)

    def renew_locks(self) -> None:
        """End in a forked process, which has none of the threads that fetch."""
        self._asked = threading.Condition()
        self._queue.clear()
        self._is_closed = True

    def start(self) -> None:
        """Do nothing: what is asked for is fetched at once."""

    def ask(self, absent: tuple[Int64, Int64]) -> RowsOfPiece:
        """Have samples, given with their shards, fetched after all before."""
        piece = RowsOfPiece(*absent, self._shards.rows_bytes(absent[1]))
        self.nbytes += piece.nbytes
        self._shards.hold_rows(piece.nbytes)
        with self._asked:
            if self._is_closed or not len(piece.ids):
                piece.done.set()
                return piece
            self._queue.append(piece)
            if len(self.threads) < ROW_THREADS:
                thread = threading.Thread(target=self._run, name="npstream-rows", daemon=True)
                self.threads.append(thread)
                thread.start()
            self._asked.notify()
        return piece

    def taken(self, piece: T, asked: RowsOfPiece) -> Generator[T]:
        """Yield a piece of work once its samples came, and hold them until it is done."""
        if not self._is_closed:
            asked.done.wait()  # the deadlines of its requests bound this
        yield piece
        self.nbytes -= asked.nbytes
        self._shards.hold_rows(-asked.nbytes)

    def __enter__(self) -> RowsAhead:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._shards.stop(self.threads)
        self._shards.hold_rows(-self.nbytes)

    def close(self) -> None:
        """Fetch no more than what is being fetched."""
        with self._asked:
            self._is_closed = True
            while self._queue:
                self._queue.popleft().done.set()
            self._asked.notify_all()

    def _run(self) -> None:
        try:
            while (piece := self._next()) is not None:
                self._fetch(piece)
        finally:
            self.close()  # also after an unexpected error, so that no reader waits for this thread

    def _fetch(self, piece: RowsOfPiece) -> None:
        try:
            self._shards.fetch_rows(piece.ids, piece.shard_of)
        except NpstreamError as error:
            # The reader of these samples will fetch them again, and gets the error.
            if not self._is_closed:
                log("reading ahead failed: %s", error)
        finally:
            piece.done.set()

    def _next(self) -> RowsOfPiece | None:
        """Wait for a piece to fetch; None once it is closed."""
        with self._asked:
            self._asked.wait_for(lambda: self._queue or self._is_closed)
            return self._queue.popleft() if self._queue else None


def side_by_side(jobs: Sequence[Job], most: int = THREADS) -> Generator[None]:
    """Do what waits for stores side by side, and yield as each is done; raise what one raises.

    Whoever closes the generator waits for nothing.
    """
    left: deque[Job] = deque(jobs)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        with suppress(IndexError):
            while job := left.popleft():
                try:
                    job[1]()
                except BaseException as error:
                    ended.put(error)
                    return
                ended.put(None)

    # Unlike those of an executor, daemons do not keep the process from ending.
    threads = [
        threading.Thread(target=run, name="npstream-ahead", daemon=True)
        for _ in range(min(most, len(jobs)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            if (error := ended.get()) is not None:
                raise error
            yield
    finally:
        left.clear()
        for shards in {id(shards): shards for shards, _ in jobs}.values():
            shards.stop(threads)
