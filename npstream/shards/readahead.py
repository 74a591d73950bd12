"""Provide read-ahead: background threads that fetch chunks or samples before they are read.

Tested in tests/shards/test_remote.py.
"""

from __future__ import annotations

import sys
import threading
import time
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
from npstream.storage.traffic.events import report

if TYPE_CHECKING:
    from npstream._core.arrays import Rows
    from npstream._core.typing import Int64
    from npstream.cache.leases import PieceKey
    from npstream.shards.base import Chunk, RemotePart, Shards
    from npstream.shards.remote import RemoteShards

T = TypeVar("T")

RemoteJob: TypeAlias = "tuple[RemoteShards, Callable[[], object]]"
"""The shards of one store, and a function that waits for the store."""

LeasedChunk: TypeAlias = "tuple[RemoteShards, Chunk, PieceKey]"
"""A chunk to fetch: its dataset, its number, and the leased piece of the cache."""

MAX_THREADS = 8
"""Maximum number of threads that fetch chunks. Each fetches one group of chunks at a time."""

GROUP_BYTES = 1 << 23
"""One thread fetches at most this many bytes of chunks together, or one larger chunk."""

MAX_SAMPLE_THREADS = 4
"""Maximum number of threads that fetch samples. Each fetches one request at a time."""

WINDOW_BYTES = 1 << 28
"""Bytes of chunks that may be requested before their samples are read."""

CACHE_DIVISOR = 4
"""The window is at most 1/4 of the cache's limit."""


ORDERED_DIVISOR = 32
"""The window is at most 1/32 of the limit if the cache evicts chunks in the order of their use.

Chunks that are fetched earlier than necessary take the place of chunks for the next epoch.
"""

MIN_ORDERED_ITEMS = 8
"""In such an epoch, the chunks of at least this number of items are requested ahead."""


class ChunkReadAhead(Lease):
    """Fetches chunks in background threads, in the order of the requests.

    It fetches nothing before `start`. Until then, the first samples are read without their chunks.
    These samples arrive sooner, because no transfer of a later chunk shares the connection. This
    object is also the `Lease` that holds the requested chunks.

    Parameters
    ----------
    shards : Shards

    Attributes
    ----------
    max_bytes : int
        Bytes of chunks that may be requested before their samples are read.
    threads : list of Thread
        The threads that fetch.
    """

    def __init__(self, shards: Shards[RemoteShards]) -> None:
        self._shards = shards
        self._queue: deque[LeasedChunk] = deque()
        self._condition = threading.Condition()
        self.threads: list[threading.Thread] = []
        self._previous_chunks: set[tuple[RemoteShards, Chunk]] = set()
        self._is_started = self._is_closed = self._is_ordered = False
        self.max_bytes = WINDOW_BYTES
        for part in shards.remotes:
            files = part.shards.files
            if files.cache.limit is not None:
                self._is_ordered |= bool(files.chunk_orders)
                divisor = ORDERED_DIVISOR if files.chunk_orders else CACHE_DIVISOR
                self.max_bytes = min(self.max_bytes, files.cache.limit // divisor)
        renew_in_child(self)
        for part in shards.remotes:
            part.shards.point_reader.reset_budget()
            part.shards.register_reader(self)

    def reset_process_state(self) -> None:
        """Close the read-ahead in a forked process, which has none of its threads."""
        self._condition = threading.Condition()
        self._queue.clear()
        self._is_closed = True

    def start(self) -> None:
        """Start to fetch."""
        with self._condition:
            if not (self._is_started or self._is_closed):
                self._is_started = True
                self._add_threads(len(self._queue))

    def request(self, absent: tuple[Int64, Int64]) -> int:
        """Queue the chunks of samples that are not in memory.

        Chunks of the previous request are not looked up in the cache again: many successive
        requests have the same chunk if samples are read in order. If such a chunk did not come, or
        was evicted, its reader fetches it.

        Parameters
        ----------
        absent : tuple of ndarray of int64
            The samples, and the shard of each.

        Returns
        -------
        int
            About how many bytes these chunks add to the queue.
        """
        if self._is_closed:
            return 0
        ids, shard_of = absent
        leased: list[LeasedChunk] = []
        chunks_of_request: set[tuple[RemoteShards, Chunk]] = set()
        is_queued = False
        try:
            for (shards, first_shard, first_sample), rows in self._shards.split(shard_of):
                counts = shards.count_chunks(ids[rows] - first_sample, shard_of[rows] - first_shard)
                all_chunks = [chunk for chunk, _ in counts]
                chunks_of_request.update((shards, chunk) for chunk in all_chunks)
                chunks = [
                    chunk
                    for chunk in all_chunks
                    if (shards, chunk) not in self._previous_chunks
                    and not shards.files.is_readable(*chunk)
                ]
                candidates = ((shards, chunk, shards.files.piece_key(*chunk)) for chunk in chunks)
                leased.extend(candidate for candidate in candidates if self.take([candidate[2]]))
            self._previous_chunks = chunks_of_request
            if not leased:
                return 0
            with self._condition:
                if not self._is_closed:  # no thread takes chunks from a closed queue
                    self._queue += leased
                    is_queued = True
                    if self._is_started:
                        self._add_threads(len(leased))
                    self._condition.notify_all()
        finally:
            if not is_queued:
                self._drop(leased)
        return sum(shards.chunk_bytes(shard) for shards, (shard, _), _ in leased)

    def max_items(self, done: int) -> int:
        """Return the maximum number of items to request ahead after `done` items were read.

        At the beginning of an epoch no chunk is finished. A chunk that is fetched then takes the
        place of one that the same epoch still uses. So if the cache evicts chunks in the order of
        their use, read-ahead begins with few items, and covers at most half of those that were
        read.
        """
        return max(MIN_ORDERED_ITEMS, done // 2) if self._is_ordered else sys.maxsize

    def _add_threads(self, count: int) -> None:
        for _ in range(min(count, MAX_THREADS - len(self.threads))):
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
        if error is not None:  # without an error, requests in flight may be needed next
            self.stop()

    def stop(self) -> None:
        """Make the requests of its threads fail, now and later."""
        for part in self._shards.remotes:
            part.shards.stop(self.threads)

    def close(self) -> None:
        """Empty the queue, and let the fetches of chunks in progress complete."""
        with self._condition:
            self._is_closed = True
            queued, self._queue = list(self._queue), deque()
            self._condition.notify_all()
        self._drop(queued)

    def _drop(self, leased: Iterable[LeasedChunk]) -> None:
        self.drop([piece for _, _, piece in leased])

    def _run(self) -> None:
        try:
            while group := self._next():
                self._fetch(group)
        finally:
            self.close()  # after an unexpected error too, so that no reader waits for this thread

    def _fetch(self, group: list[LeasedChunk]) -> None:
        chunks_of: dict[RemoteShards, list[Chunk]] = defaultdict(list)
        for shards, chunk, _ in group:
            chunks_of[shards].append(chunk)
        fetches = [(s, partial(s.fetch_chunks, chunks, self)) for s, chunks in chunks_of.items()]
        try:
            run_all(fetches)
        except NpstreamError as error:
            # The reader of these chunks fetches them again and gets the error.
            if not self._is_closed:
                log("reading ahead failed: %s", error)
        finally:
            self._drop(group)

    def _next(self) -> list[LeasedChunk]:
        """Wait for chunks, and return those to fetch together; empty once the queue is closed."""
        group: list[LeasedChunk] = []
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._is_closed)
            nbytes = 0
            while self._queue:
                shards, (shard, _), _ = self._queue[0]
                nbytes += shards.chunk_bytes(shard)
                if group and nbytes > GROUP_BYTES:
                    break
                group.append(self._queue.popleft())
        return group


class SampleRequest:
    """Samples to fetch for one item of a read-ahead.

    Parameters
    ----------
    ids, shard_of : ndarray of int64, shape (n,)
    nbytes : int
        About how many bytes the samples have.

    Attributes
    ----------
    done : Event
        Set once the samples are in memory, or the fetch has failed.
    error : NpstreamError or None
        The error of a failed fetch.
    """

    def __init__(self, ids: Int64, shard_of: Int64, nbytes: int) -> None:
        self.ids, self.shard_of, self.nbytes = ids, shard_of, nbytes
        self.done = threading.Event()
        self.error: NpstreamError | None = None


class SampleReadAhead:
    """Fetches single samples in background threads, and keeps them in the samples cache.

    Parameters
    ----------
    shards : Shards

    Attributes
    ----------
    nbytes : int
        About how many bytes are requested and not released.
    threads : list of Thread
        The threads that fetch.
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

    def reset_process_state(self) -> None:
        """Close the read-ahead in a forked process, which has none of its threads."""
        self._condition = threading.Condition()
        self._queue.clear()
        self._is_closed = True

    def start(self) -> None:
        """No-op: requests are fetched at once."""

    def request(self, absent: tuple[Int64, Int64]) -> SampleRequest:
        """Queue samples that are not in memory, given with their shards."""
        nbytes = sum(
            part.shards.estimate_bytes(absent[1][rows] - part.first_shard)
            for part, rows in self._shards.split(absent[1])
        )
        request = SampleRequest(*absent, nbytes)
        self._extend_cache(nbytes)
        with self._condition:
            if self._is_closed or not len(request.ids):
                request.done.set()
                return request
            self._queue.append(request)
            if len(self.threads) < MAX_SAMPLE_THREADS:
                thread = threading.Thread(target=self._run, name="npstream-rows", daemon=True)
                thread.start()
                self.threads.append(thread)
            self._condition.notify()
        return request

    def wait_for(self, item: T, request: SampleRequest) -> Generator[T]:
        """Yield an item once its samples are in memory; release them after the caller resumes."""
        if not self._is_closed and not request.done.is_set():
            start = time.perf_counter()
            request.done.wait()  # bounded by the deadlines of its requests
            seconds = time.perf_counter() - start
            for part in self._shards.remotes[:1]:
                part.shards.traffic.count_wait(seconds)
                report("wait", seconds, 0, self._shards.root)
            # Do not read the samples again: that would wait for a new deadline after this one.
            if request.error is not None:
                raise request.error
        yield item
        self._extend_cache(-request.nbytes)

    def _extend_cache(self, nbytes: int) -> None:
        """Enlarge the samples cache of each dataset by `nbytes`, or shrink it if negative."""
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
        """Make the requests of its threads fail, now and later."""
        for part in self._shards.remotes:
            part.shards.stop(self.threads)

    def close(self) -> None:
        """Empty the queue, and let the fetches of samples in progress complete."""
        with self._condition:
            self._is_closed = True
            while self._queue:
                self._queue.popleft().done.set()
            self._condition.notify_all()

    def _run(self) -> None:
        try:
            while (request := self._next()) is not None:
                self._fetch(request)
        finally:
            self.close()  # after an unexpected error too, so that no reader waits for this thread

    def _fetch(self, request: SampleRequest) -> None:
        try:
            run_all(
                [
                    (part.shards, partial(self._fetch_part, part, request, rows))
                    for part, rows in self._shards.split(request.shard_of)
                ]
            )
        except NpstreamError as error:
            # A reader that waits for these samples gets the error. A later one fetches them again.
            if not self._is_closed:
                request.error = error
                log("reading ahead failed: %s", error)
        finally:
            request.done.set()

    @staticmethod
    def _fetch_part(part: RemotePart[RemoteShards], request: SampleRequest, rows: Rows) -> None:
        ids, shard_of = request.ids[rows], request.shard_of[rows]
        part.shards.fetch_samples(ids - part.first_sample, shard_of - part.first_shard)

    def _next(self) -> SampleRequest | None:
        """Wait for a request and return it; None once the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._is_closed)
            return self._queue.popleft() if self._queue else None


def run_all(jobs: Sequence[RemoteJob], max_threads: int = MAX_THREADS) -> None:
    """Run jobs concurrently, and wait for all of them; raise the first error of a job."""
    if len(jobs) == 1:
        jobs[0][1]()
    elif jobs:
        for _ in run_as_completed(jobs, max_threads):
            pass


def run_as_completed(jobs: Sequence[RemoteJob], max_threads: int = MAX_THREADS) -> Generator[None]:
    """Run jobs concurrently, and yield as each completes; raise the first error of a job.

    Closing the generator does not wait for the jobs: it makes their requests fail.
    """
    pending: deque[RemoteJob] = deque(jobs)
    results: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        with suppress(IndexError):
            while job := pending.popleft():
                try:
                    job[1]()
                except BaseException as error:
                    results.put(error)
                    return
                results.put(None)

    # Daemon threads, unlike those of an executor, do not keep the process from exiting.
    threads = [
        threading.Thread(target=run, name="npstream-ahead", daemon=True)
        for _ in range(min(max_threads, len(jobs)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            if (error := results.get()) is not None:
                raise error
            yield
    finally:
        pending.clear()
        for shards in {id(shards): shards for shards, _ in jobs}.values():
            shards.stop(threads)
