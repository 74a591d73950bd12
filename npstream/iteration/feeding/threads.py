"""Provide `map_ahead`, which makes the next results in threads and yields them in order.

The caller's thread advances the items, so iterators of items need no locks. Only the function that
makes a result of an item runs in threads. Threads and caller share no lock: each task has its own,
which its thread releases when the result is ready.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

__all__ = ["PrefetchCounts", "PrefetchLimits", "map_ahead", "result_bytes"]

Item = TypeVar("Item")
Result = TypeVar("Result")

FIRST_TASKS = 2
"""Tasks that are begun before the first result is yielded. The number grows with each result."""

GROUPED_BYTES = 1 << 22
"""About how many bytes of small batches are read together."""

_JOIN_SECONDS = 0.5
"""Seconds that `map_ahead` waits at its end for a thread in a user's function."""


class PrefetchLimits(NamedTuple):
    """How much is made ahead.

    Attributes
    ----------
    threads : int
        Number of threads; 0 makes each result when it is needed.
    tasks : int
        Maximum number of results that are ready or being made.
    nbytes : int
        Maximum bytes of these results. One result is made even if it is larger.
    """

    threads: int
    tasks: int
    nbytes: int

    def group(self, batch_bytes: int) -> int:
        """Return how many batches to read together.

        Each read takes the interpreter's lock twice, however small its batches are.
        """
        batch_bytes = max(batch_bytes, 1)
        return max(1, min(round(GROUPED_BYTES / batch_bytes), self.nbytes // 2 // batch_bytes))


class PrefetchCounts:
    """Counts of what an iteration makes ahead in this process.

    Attributes
    ----------
    hits : int
        Results that were ready when the caller asked for them.
    misses : int
        Results that the caller waited for.
    wait_seconds : float
        Seconds that the caller waited.
    """

    def __init__(self) -> None:
        self.hits = self.misses = 0
        self.wait_seconds = 0.0
        self._window: deque[_Task[Any, Any]] = deque()

    def begin(self, window: deque[_Task[Any, Any]]) -> None:
        """Count the tasks of `window` from now on."""
        self._window = window

    def count_wait(self, seconds: float | None, results: int) -> None:
        """Count results. `seconds` is the caller's wait for them, or None if they were ready."""
        if seconds is None:
            self.hits += results
        else:
            self.misses += results
            self.wait_seconds += seconds

    @property
    def ready(self) -> int:
        """Number of results that are ready now."""
        return sum(task.count for task in list(self._window) if task.is_done)

    @property
    def nbytes(self) -> int:
        """Bytes of the results that are ready now, or being made."""
        return sum(task.nbytes for task in list(self._window))


class _Task(Generic[Item, Result]):
    """An item, and its result or error once the lock `done` is released.

    `estimate` is the expected number of bytes of the result. `count` is the number of batches or
    samples in the result.
    """

    __slots__ = ("count", "done", "error", "estimate", "is_done", "item", "nbytes", "result")

    def __init__(self, item: Item, estimate: int, count: int) -> None:
        self.item, self.estimate, self.nbytes, self.count = item, estimate, estimate, count
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.done = threading.Lock()
        self.done.acquire()

    def run(self, function: Callable[[Item], Result]) -> None:
        """Make the result; a caller that waits for `done` continues."""
        try:
            self.result = function(self.item)
            self.nbytes = result_bytes(self.result) or self.nbytes
        except BaseException as error:
            self.error = error
        self.is_done = True
        self.done.release()

    def take(self) -> Result:
        """Return the result, and do not keep it in memory."""
        result: Result = self.result
        self.result = None
        return result


class _Threads(Generic[Item, Result]):
    """Daemon threads that run tasks, first come, first served."""

    def __init__(self, function: Callable[[Item], Result], count: int) -> None:
        self._function, self._count = function, count
        self._queue: SimpleQueue[_Task[Item, Result] | None] = SimpleQueue()
        self._process = os.getpid()
        self._is_closed = False
        self.threads: list[threading.Thread] = []

    @property
    def is_inherited(self) -> bool:
        """Whether a parent process made this object, and its threads do not exist here."""
        return os.getpid() != self._process

    def submit(self, task: _Task[Item, Result]) -> None:
        """Let a thread run a task. Threads start with the first tasks."""
        if self.is_inherited:
            return  # `_wait` runs it
        self._queue.put(task)
        if len(self.threads) < self._count:
            # Daemon threads, unlike those of an executor, do not keep the process from exiting.
            thread = threading.Thread(target=self._run, name="npstream-batches", daemon=True)
            thread.start()
            self.threads.append(thread)

    def _run(self) -> None:
        function, queue = self._function, self._queue
        while (task := queue.get()) is not None:
            if not self._is_closed:
                task.run(function)
            del task  # do not keep a result in memory that the caller has freed

    def close(self, stop: Callable[[list[threading.Thread]], None] | None) -> None:
        """End the threads. One that is in a user's function ends when the function returns."""
        self._is_closed = True
        if self.is_inherited:
            return
        for _ in self.threads:
            self._queue.put(None)
        if stop is not None:
            stop(self.threads)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterator[Item],
    limits: PrefetchLimits,
    estimate: Callable[[Item], tuple[int, int]],
    counts: PrefetchCounts,
    stop: Callable[[list[threading.Thread]], None] | None = None,
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, while threads make the next results.

    An error of `items` or of the function is raised after the results before it. When the iterator
    ends, is closed or is freed, the threads stop. In a forked process, the results are made as they
    are needed.

    Parameters
    ----------
    function : callable
        Called in threads.
    items : iterator
        Advanced in the caller's thread.
    limits : PrefetchLimits
        The limits; `threads` is at least 1.
    estimate : callable
        Returns an estimate of the bytes of an item's result, and the number of batches or samples
        in the result.
    counts : PrefetchCounts
        Counts what is made ahead.
    stop : callable, optional
        Called with the threads when they must end. It makes the requests fail that they wait for.
    """
    window: deque[_Task[Item, Result]] = deque()
    threads: _Threads[Item, Result] = _Threads(function, limits.threads)
    counts.begin(window)
    max_tasks, scale = FIRST_TASKS, 1.0
    error: Exception | None = None
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as raised:
                error = raised
                break
            task: _Task[Item, Result] = _Task(item, *estimate(item))
            while window and (
                len(window) >= min(max_tasks, limits.tasks)
                or counts.nbytes + scale * task.estimate > limits.nbytes
            ):
                done = _wait(window, threads, function, counts)
                yield done.take()
                # Results may be larger than what is read for them: a transform may decode images.
                scale = done.nbytes / max(done.estimate, 1)
                max_tasks += 1
                del done
            task.nbytes = int(scale * task.estimate)
            window.append(task)
            threads.submit(task)
            del task, item
        while window:
            yield _wait(window, threads, function, counts).take()
        if error is not None:
            raise error
    finally:
        window.clear()
        threads.close(stop)


def _wait(
    window: deque[_Task[Item, Result]],
    threads: _Threads[Item, Result],
    function: Callable[[Item], Result],
    counts: PrefetchCounts,
) -> _Task[Item, Result]:
    """Wait for the first task of a window and remove it; raise its error if it has one."""
    task = window[0]
    seconds = None
    if not task.done.acquire(blocking=False):
        start = time.perf_counter()
        if threads.is_inherited:
            window[0] = task = _Task(task.item, task.estimate, task.count)
            task.run(function)
        else:
            task.done.acquire()
        seconds = time.perf_counter() - start
    window.popleft()
    counts.count_wait(seconds, task.count)
    if task.error is not None:
        error, task.error = task.error, None
        raise error
    return task


def result_bytes(result: Any) -> int:
    """Return about how many bytes the arrays, tensors and texts in a result have."""
    if type(result) is np.ndarray:
        return result.nbytes
    # This precedes `getattr`, because a failed `getattr` of a Batch takes microseconds.
    if isinstance(result, Mapping):
        return sum(map(result_bytes, result.values()))
    nbytes = getattr(result, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if isinstance(result, bytes | str):
        return len(result)
    if isinstance(result, list | tuple):
        return sum(map(result_bytes, result))
    return 0
