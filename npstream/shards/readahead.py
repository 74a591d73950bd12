"""Fetching the chunks of samples that will be read, while others are.

Tested in tests/shards/test_remote.py.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from npstream._core.fork import renew_in_child
from npstream._core.log import log
from npstream.cache.leases import Lease
from npstream.errors import NpstreamError

if TYPE_CHECKING:
    from npstream._core.arrays import Rows
    from npstream._core.typing import Int64
    from npstream.cache.leases import PieceKey
    from npstream.shards.base import Chunk, RemotePart, Shards
    from npstream.shards.remote import RemoteShards

T = TypeVar("T")


RemoteJob: TypeAlias = "tuple[RemoteShards, Callable[[], object]]"
"""Something to do that waits for a store, and the shards that are in the store."""

ClaimedChunk: TypeAlias = "tuple[RemoteShards, Chunk, PieceKey]"
"""A chunk to fetch, the dataset that it is of, and the piece that is leased for it."""

MAX_THREADS = 8
"""Groups of chunks that are fetched side by side."""

GROUP_BYTES = 1 << 23
"""Bytes of the chunks that are fetched together, about."""

MAX_SAMPLE_THREADS = 4
"""Pieces of work whose samples are fetched one by one, side by side."""

WINDOW_BYTES = 1 << 28
"""Bytes of the chunks that were asked for, and are of samples that have not been read."""

CACHE_FRACTION = 4
"""At most this part of the cache's limit."""


class ChunkReadAhead(Lease):
    """Fetches chunks in the background, in the order in which they are asked for.

    It starts when it is told to, so that the first samples, which are read exactly, do not share
    the connection with what is not needed yet. It is the lease of the chunks that it was asked for.

    Parameters
    ----------
    shards : Shards

    Attributes
    ----------
    window : int
        Bytes that may be asked for ahead of what is read.
    threads : list of Thread
        Those that fetch.
    """

    def __init__(self, shards: Shards[RemoteShards]) -> None:
        self._shards = shards
        self._queue: deque[ClaimedChunk] = deque()
        self._condition = threading.Condition()
        self.threads: list[threading.Thread] = []
        self._is_started = self._is_closed = False
        limits = [part.shards.files.cache.limit for part in shards.remotes]
        self.window = min(
            [WINDOW_BYTES, *(limit // CACHE_FRACTION for limit in limits if limit is not None)]
        )
        renew_in_child(self)
        for part in shards.remotes:
            part.shards.point_reader.reset_budget()
            part.shards.register_reader(self)

    def renew_locks(self) -> None:
        """End in a forked process, which has none of the threads that fetch."""
        self._condition = threading.Condition()
        self._queue.clear()
        self._is_closed = True

    def start(self) -> None:
        """Begin to fetch."""
        with self._condition:
            if not (self._is_started or self._is_closed):
                self._is_started = True
                self._add_threads(len(self._queue))

    def request(self, absent: tuple[Int64, Int64]) -> int:
        """Have the chunks of samples, given with their shards, fetched after all before.

        Returns
        -------
        int
            About how many bytes more will be fetched.
        """
        if self._is_closed:
            return 0
        ids, shard_of = absent
        fresh: list[ClaimedChunk] = []
        is_queued = False
        try:
            for (shards, first_shard, first_sample), rows in self._shards.split(shard_of):
                wanted = shards.count_chunks(ids[rows] - first_sample, shard_of[rows] - first_shard)
                absent_of = [chunk for chunk, _ in wanted if not shards.files.is_readable(*chunk)]
                claims = ((shards, chunk, shards.files.piece(*chunk)) for chunk in absent_of)
                fresh.extend(claim for claim in claims if self.take([claim[2]]))
            with self._condition:
                if not self._is_closed:  # else nothing would take them out of the queue
                    self._queue += fresh
                    is_queued = True
                    if self._is_started:
                        self._add_threads(len(fresh))
                    self._condition.notify_all()
        finally:
            if not is_queued:
                self._drop(fresh)
        return sum(shards.chunk_bytes(shard) for shards, (shard, _), _ in fresh)

    def _add_threads(self, most: int) -> None:
        for _ in range(min(most, MAX_THREADS - len(self.threads))):
            thread = threading.Thread(target=self._run, name="npstream-ahead", daemon=True)
            thread.start()
            self.threads.append(thread)

    def __enter__(self) -> ChunkReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if error is not None:  # else what is still coming may be needed next
            self.stop()

    def stop(self) -> None:
        """Let the requests of its threads fail, now and later."""
        for part in self._shards.remotes:
            part.shards.stop(self.threads)

    def close(self) -> None:
        """Fetch no more than what is being fetched."""
        with self._condition:
            self._is_closed = True
            left, self._queue = list(self._queue), deque()
            self._condition.notify_all()
        self._drop(left)

    def _drop(self, claimed: Iterable[ClaimedChunk]) -> None:
        self.drop([piece for _, _, piece in claimed])

    def _run(self) -> None:
        try:
            while group := self._next():
                self._fetch(group)
        finally:
            self.close()  # also after an unexpected error, so that no reader waits for this thread

    def _fetch(self, group: list[ClaimedChunk]) -> None:
        chunks_of: dict[RemoteShards, list[Chunk]] = defaultdict(list)
        for shards, chunk, _ in group:
            chunks_of[shards].append(chunk)
        fetches = [(s, partial(s.fetch, chunks, self)) for s, chunks in chunks_of.items()]
        try:
            run_all(fetches)
        except NpstreamError as error:
            # The reader of these chunks will fetch them again, and gets the error.
            if not self._is_closed:
                log("reading ahead failed: %s", error)
        finally:
            self._drop(group)

    def _next(self) -> list[ClaimedChunk]:
        """Wait for chunks to fetch together; none once it is closed."""
        group: list[ClaimedChunk] = []
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._is_closed)
            nbytes = 0
            while self._queue and nbytes < GROUP_BYTES:
                claimed = self._queue.popleft()
                group.append(claimed)
                nbytes += claimed[0].chunk_bytes(claimed[1][0])
        return group


class SampleRequest:
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
        self.error: NpstreamError | None = None


class SampleReadAhead:
    """Fetches single samples in the background, piece by piece, and holds them in memory.

    Parameters
    ----------
    shards : Shards

    Attributes
    ----------
    nbytes : int
        Bytes of the pieces that were asked for and not released, about.
    threads : list of Thread
        Those that fetch.
    """

    def __init__(self, shards: Shards[RemoteShards]) -> None:
        self._shards = shards
        self._queue: deque[SampleRequest] = deque()
        self._condition = threading.Condition()
        self._is_closed = False
        self.threads: list[threading.Thread] = []
        self.nbytes = 0
        renew_in_child(self)
        for part in shards.remotes:
            part.shards.register_reader(self)

    def renew_locks(self) -> None:
        """End in a forked process, which has none of the threads that fetch."""
        self._condition = threading.Condition()
        self._queue.clear()
        self._is_closed = True

    def start(self) -> None:
        """Do nothing: what is asked for is fetched at once."""

    def request(self, absent: tuple[Int64, Int64]) -> SampleRequest:
        """Have samples, given with their shards, fetched after all before."""
        nbytes = sum(
            part.shards.estimate_bytes(absent[1][rows] - part.first_shard)
            for part, rows in self._shards.split(absent[1])
        )
        piece = SampleRequest(*absent, nbytes)
        self._extend_cache(nbytes)
        with self._condition:
            if self._is_closed or not len(piece.ids):
                piece.done.set()
                return piece
            self._queue.append(piece)
            if len(self.threads) < MAX_SAMPLE_THREADS:
                thread = threading.Thread(target=self._run, name="npstream-rows", daemon=True)
                thread.start()
                self.threads.append(thread)
            self._condition.notify()
        return piece

    def wait_for(self, piece: T, asked: SampleRequest) -> Generator[T]:
        """Yield a piece of work once its samples came, and hold them until it is done."""
        if not self._is_closed and not asked.done.is_set():
            asked.done.wait()  # bounded by the deadlines of its requests
            # The reader has waited for these deadlines. Another read would have a new deadline.
            if asked.error is not None:
                raise asked.error
        yield piece
        self._extend_cache(-asked.nbytes)

    def _extend_cache(self, nbytes: int) -> None:
        """Keep so many more bytes of single samples of each dataset in memory, or fewer."""
        self.nbytes += nbytes
        for part in self._shards.remotes:
            part.shards.point_reader.extend(nbytes)

    def __enter__(self) -> SampleReadAhead:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self.stop()
        self._extend_cache(-self.nbytes)

    def stop(self) -> None:
        """Let the requests of its threads fail, now and later."""
        for part in self._shards.remotes:
            part.shards.stop(self.threads)

    def close(self) -> None:
        """Fetch no more than what is being fetched."""
        with self._condition:
            self._is_closed = True
            while self._queue:
                self._queue.popleft().done.set()
            self._condition.notify_all()

    def _run(self) -> None:
        try:
            while (piece := self._next()) is not None:
                self._fetch(piece)
        finally:
            self.close()  # also after an unexpected error, so that no reader waits for this thread

    def _fetch(self, piece: SampleRequest) -> None:
        try:
            run_all(
                [
                    (part.shards, partial(self._fetch_of, part, piece, rows))
                    for part, rows in self._shards.split(piece.shard_of)
                ]
            )
        except NpstreamError as error:
            # A reader that waits for these samples gets the error. A later one fetches them again.
            if not self._is_closed:
                piece.error = error
                log("reading ahead failed: %s", error)
        finally:
            piece.done.set()

    @staticmethod
    def _fetch_of(part: RemotePart[RemoteShards], piece: SampleRequest, rows: Rows) -> None:
        ids, shard_of = piece.ids[rows], piece.shard_of[rows]
        part.shards.fetch_samples(ids - part.first_sample, shard_of - part.first_shard)

    def _next(self) -> SampleRequest | None:
        """Wait for a piece to fetch; None once it is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._is_closed)
            return self._queue.popleft() if self._queue else None


def run_all(jobs: Sequence[RemoteJob], most: int = MAX_THREADS) -> None:
    """Do what waits for stores, side by side; raise what one raises."""
    if len(jobs) == 1:
        jobs[0][1]()
    elif jobs:
        for _ in run_as_completed(jobs, most):
            pass


def run_as_completed(jobs: Sequence[RemoteJob], most: int = MAX_THREADS) -> Generator[None]:
    """Do what waits for stores side by side, and yield as each is done; raise what one raises.

    Whoever closes the generator waits for nothing.
    """
    left: deque[RemoteJob] = deque(jobs)
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
