"""Provide worker processes that run the user's `map` and encode samples, in input order.

The parent pickles samples in batches and sends them over pipes. A worker sends encoded rows back.
A thread in each worker receives batches at any time, so that neither side waits for the other to
read. Results are used in the order of the batches.
"""

from __future__ import annotations

import io
import multiprocessing
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bytes, Int64
from npstream.writing.mapping import (
    MapFunction,
    Position,
    apply_map,
    batch_function,
    track_position,
    with_note,
)
from npstream.writing.report import REFUSALS, RejectedSample
from npstream.writing.rows import SampleEncoder

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from npstream.writing.inputs.fill import Fill
    from npstream.writing.shard import ShardFormat

__all__ = ["Task", "WorkerPool", "WorkerResult"]

_BATCHES_PER_WORKER = 2
"""Unfinished batches of a worker: the current one, and the next."""

_BATCH_BYTES = 1 << 20
"""Approximate maximum bytes of a pickled batch."""

_BATCH_SECONDS = 0.1
"""Approximate seconds that a worker spends on a batch."""

_MAX_BATCH_SAMPLES = 1 << 12
"""Maximum samples of a batch."""

_PICKLING_NOTE = "workers= pickles samples, to send them to its processes"
"""The note that is added to an exception from pickling."""

_EXIT_TIMEOUT = 5.0
"""Seconds to wait for a worker to exit, before it is killed."""


@dataclass(frozen=True, slots=True)
class Task:
    """The settings that each worker receives when it starts.

    Attributes
    ----------
    function : callable or None
        The user's `map`.
    fill : mapping of str to Fill
        Values of columns for samples that lack them.
    skips : bool
        Whether samples that cannot be encoded are left out. Otherwise they raise.
    encoding : tuple of (ShardFormat, bool) or None
        The format, and whether keys without a column raise. None if the first sample defines it.
    tracks : bool
        Whether results say from which sample each row comes.
    """

    function: MapFunction | None
    fill: Mapping[str, Fill]
    skips: bool
    encoding: tuple[ShardFormat, bool] | None
    tracks: bool = False


@dataclass(slots=True)
class WorkerResult:
    """A worker's result for a batch.

    Attributes
    ----------
    rows : list of bytes
        Encoded samples; `pack` moves them to `data` and `sizes`.
    samples : list of (int, int, bytes)
        The outputs of `map`, or the input samples without `map`, if the worker has no format yet.
        Each item has the number of the input sample, the number of earlier outputs for that sample,
        and the pickled output.
    rejected : list of RejectedSample
        The samples that were left out.
    seconds : float
        The time that the worker spent on the batch.
    data, sizes : bytes
        The encoded samples, joined; and their sizes as int64.
    first : int
        The number of the batch's first sample in the input.
    numbers, outputs : list of int
        For each row, the number of its input sample, and the number of earlier outputs for that
        sample. Empty unless the task tracks rows.
    """

    rows: list[bytes] = field(default_factory=list)
    samples: list[tuple[int, int, bytes]] = field(default_factory=list)
    rejected: list[RejectedSample] = field(default_factory=list)
    seconds: float = 0.0
    data: bytes = b""
    sizes: bytes = b""
    first: int = 0
    numbers: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def loaded_samples(self) -> Iterator[tuple[int, int, Any]]:
        """Yield `samples` with each output unpickled."""
        for number, output, pickled in self.samples:
            yield number, output, ForkingPickler.loads(pickled)

    def drop(self, position: tuple[int, int]) -> bytes | None:
        """Drop all outputs up to a position, inclusive, and return the row at this position.

        The position is the number of an input sample, and of one of its outputs. The result is the
        encoded row, or None if no row has this position.
        """
        positions = list(zip(self.numbers, self.outputs, strict=True))
        self.rejected = [r for r in self.rejected if (r.number, r.output) > position]
        sizes = np.frombuffer(self.sizes, np.int64)
        ends = np.cumsum(sizes)
        row_bytes = None
        if position in positions:
            row = positions.index(position)
            row_bytes = self.data[int(ends[row] - sizes[row]) : int(ends[row])]
        count = sum(row_position <= position for row_position in positions)
        if count:
            self.data, self.sizes = self.data[int(ends[count - 1]) :], self.sizes[8 * count :]
            self.numbers, self.outputs = self.numbers[count:], self.outputs[count:]
        return row_bytes

    def pack(self) -> None:
        """Join the rows, because one bytes object is pickled faster than a list."""
        sizes = np.fromiter(map(len, self.rows), np.int64, len(self.rows))
        self.data, self.sizes, self.rows = b"".join(self.rows), sizes.tobytes(), []

    def encoded(self) -> tuple[Bytes, Int64]:
        """Return the contiguous rows as uint8, and the size of each."""
        return np.frombuffer(self.data, np.uint8), np.frombuffer(self.sizes, np.int64)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception of a worker.

    `error` is None if the exception cannot be pickled; `summary` then replaces it.
    """

    error: BaseException | None
    summary: str
    notes: list[str]
    trace: str

    @classmethod
    def from_error(cls, error: BaseException) -> _Failure:
        is_refused = isinstance(error, _RefusedError)
        if is_refused and error.__cause__ is not None:
            error = error.__cause__
        trace = "" if is_refused else "".join(traceback.format_exception(error))
        notes = list(getattr(error, "__notes__", ()))
        summary = f"{type(error).__qualname__}: {error}"
        picklable: BaseException | None = error
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:
            picklable = None
        return cls(picklable, summary, notes, trace)

    def exception(self) -> BaseException:
        """Return the exception for the parent to raise."""
        error = self.error
        if error is None:
            error = RuntimeError(f"a worker raised {self.summary}")
        existing = getattr(error, "__notes__", ())
        for note in self.notes:
            if note not in existing:
                error.add_note(note)
        if self.trace:
            error.add_note(f"in a worker process:\n{self.trace}")
        return error


class _RefusedError(Exception):
    """A sample cannot be encoded; `__cause__` is the error for users."""


class WorkerPool:
    """Worker processes, which start in `__init__`.

    A write creates the pool before any threads and storage clients, which do not survive a fork.

    Parameters
    ----------
    count : int
        Number of processes.
    task : Task
    """

    def __init__(self, count: int, task: Task) -> None:
        context = multiprocessing.get_context()
        self._workers: list[_Worker] = []
        self._sends_single_samples = task.encoding is None
        try:
            for _ in range(count):
                others = [worker.connection for worker in self._workers]
                self._workers.append(_Worker(context, task, others))
        except BaseException:
            self.stop()
            raise

    @property
    def has_layout(self) -> bool:
        """Whether the workers know the format."""
        return not self._sends_single_samples

    def set_layout(self, layout: ShardFormat, only_columns: bool) -> None:
        """Send the format to the workers; they encode all batches that are sent later.

        If `only_columns` is True, a sample with a key that is not a column raises.
        """
        self._sends_single_samples = False
        for worker in self._workers:
            worker.send(_dumps((layout, only_columns)))

    def run(self, samples: Iterable[Any], first: int = 0) -> Iterator[WorkerResult]:
        """Yield the results of workers for samples, in the order of the input.

        `first` is the number of the first sample in the input.

        If the task has no `encoding`, each batch is one sample until `set_layout` is called. Its
        result is yielded before the next sample is read.
        """
        batches = _Batcher(samples, first)
        results: dict[int, WorkerResult | _Failure] = {}
        sent_count = result_count = 0
        while True:
            while not batches.is_exhausted and sent_count - result_count < self._max_pending():
                worker = min(self._workers, key=lambda worker: len(worker.batches))
                if len(worker.batches) >= _BATCHES_PER_WORKER:
                    break
                payload = batches.next(1 if self._sends_single_samples else None)
                if payload is not None:
                    worker.batches.append(sent_count)
                    worker.send(payload)
                    sent_count += 1
            if result_count == sent_count:
                return
            while result_count not in results:
                self._receive(results)
            result = results.pop(result_count)
            result_count += 1
            if isinstance(result, _Failure):
                raise result.exception()
            batches.adapt(result.seconds)
            yield result

    def _max_pending(self) -> int:
        """Return the maximum number of batches that are sent but not yet yielded.

        It exceeds what the workers hold at once. So other workers continue while a batch is slow.
        """
        return 1 if self._sends_single_samples else (_BATCHES_PER_WORKER + 1) * len(self._workers)

    def _receive(self, results: dict[int, WorkerResult | _Failure]) -> None:
        """Wait until a worker has a result, and put all available ones into `results`."""
        busy = [worker for worker in self._workers if worker.batches]
        ready = wait([worker.connection for worker in busy] + [w.process.sentinel for w in busy])
        for worker in busy:
            if worker.connection in ready:
                results[worker.batches.popleft()] = worker.receive()
            elif worker.process.sentinel in ready:
                raise worker.exit_error()

    def stop(self) -> None:
        """Stop the workers; a worker with unfinished batches is terminated."""
        for worker in self._workers:
            worker.connection.close()
            if worker.batches:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_EXIT_TIMEOUT)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._workers.clear()


class _Worker:
    """A worker process, and the parent's end of its pipe."""

    def __init__(self, context: Any, task: Task, others: list[Connection]) -> None:
        self.connection, child_connection = context.Pipe()
        self.batches: deque[int] = deque()
        # A forked process inherits the parent's ends of all pipes. It closes them, because its
        # own pipe signals the exit of the parent only when no process has the other end open.
        is_forked = context.get_start_method() == "fork"
        inherited = [*others, self.connection] if is_forked else []
        self.process: BaseProcess = context.Process(
            target=_run_worker,
            args=(child_connection, inherited, task),
            daemon=True,
            name="npstream-write",
        )
        try:
            self.process.start()
        except Exception as error:
            self.connection.close()
            raise with_note(
                error,
                "workers= starts processes by the method "
                f"{context.get_start_method()!r}, to which map= and its data are pickled: define "
                "them at the top of a module",
            ) from None
        finally:
            child_connection.close()

    def send(self, payload: bytes) -> None:
        try:
            self.connection.send_bytes(payload)
        except OSError:
            raise self.exit_error() from None

    def receive(self) -> WorkerResult | _Failure:
        try:
            result: WorkerResult | _Failure = ForkingPickler.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self.exit_error() from None
        return result

    def exit_error(self) -> RuntimeError:
        """Return an error with the exit code or signal of the process."""
        self.process.join(_EXIT_TIMEOUT)
        code = self.process.exitcode
        cause = f"with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            cause = f"killed by {name}"
            if name == "SIGKILL":
                cause += ", as the system does when memory is short"
        self.batches.clear()
        return RuntimeError(
            f"worker process {self.process.pid} ended, {cause}: nothing is published"
        )


class _Batcher:
    """Pickles samples in batches, whose length adapts to their bytes and the workers' time."""

    def __init__(self, samples: Iterable[Any], first: int) -> None:
        self.is_exhausted = False
        self._position = Position()
        self._samples = track_position(samples, self._position, first)
        self._length = 1  # of the next batch, in samples
        self._max_length = 1  # so that the next batch has at most about `_BATCH_BYTES`
        self._number = first

    def next(self, count: int | None) -> bytes | None:
        """Return the next batch; None at the end. `count` replaces the adaptive length."""
        max_count = count or self._length
        pickled, ends = io.BytesIO(), [0]
        pickler = ForkingPickler(pickled, 5)
        dump, clear_memo = pickler.dump, pickler.clear_memo
        # The input may change an object and yield it again. So each sample is pickled before the
        # next one is read. The memo is cleared, because pickle would otherwise replace the changed
        # object by a reference to its earlier copy.
        for sample in islice(self._samples, max_count):
            clear_memo()
            try:
                dump(sample)
            except Exception as error:
                raise with_note(error, _PICKLING_NOTE) from None
            ends.append(pickled.tell())
        length = len(ends) - 1
        if length < max_count:
            self.is_exhausted = True
        if not length:
            return None
        payload = _dumps((self._number, (pickled.getvalue(), ends)))
        self._number += length
        self._max_length = max(1, _BATCH_BYTES * length // len(payload))
        self._length = min(self._length, self._max_length)
        return payload

    def adapt(self, seconds: float) -> None:
        """Change the length of batches; a worker spent `seconds` on the last one."""
        length = self._length * 2 if seconds < _BATCH_SECONDS else self._length // 2
        self._length = max(1, min(length, self._max_length, _MAX_BATCH_SAMPLES))


def _dumps(value: Any) -> bytes:
    try:
        return bytes(ForkingPickler.dumps(value, 5))
    except Exception as error:
        raise with_note(error, _PICKLING_NOTE) from None


def _run_worker(connection: Connection, inherited: list[Connection], task: Task) -> None:
    """Run in a worker: send a result for each batch until the parent closes the pipe."""
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent stops its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_receive_all, args=(connection, messages), daemon=True).start()
    encoder: SampleEncoder | None = None
    if task.encoding is not None:
        encoder = SampleEncoder(*task.encoding, task.fill)
    while (message := messages.get()) is not None:
        try:
            # A message of `set_layout` is (layout, only_columns). A batch is (number of the first
            # sample, (pickled samples, offsets)).
            first, second = ForkingPickler.loads(message)
            if not isinstance(second, tuple):
                encoder = SampleEncoder(first, second, task.fill)
                continue
            pickled, offsets = memoryview(second[0]), second[1]
            samples = [ForkingPickler.loads(pickled[start:end]) for start, end in pairwise(offsets)]
            result: WorkerResult | _Failure = _process_batch(task, encoder, first, samples)
        except BaseException as error:
            result = _Failure.from_error(error)
        with suppress(OSError):  # the parent has closed the pipe
            connection.send_bytes(ForkingPickler.dumps(result, 5))


def _receive_all(connection: Connection, messages: queue.SimpleQueue[bytes | None]) -> None:
    """Put each message into `messages`, and None after the parent has closed the pipe."""
    try:
        while True:
            messages.put(connection.recv_bytes())
    except (EOFError, OSError):
        messages.put(None)


def _process_batch(
    task: Task, encoder: SampleEncoder | None, first: int, samples: list[Any]
) -> WorkerResult:
    """Map samples, and encode them if there is an encoder.

    `first` is the number of the first sample in the input.
    """
    start = time.perf_counter()
    result = WorkerResult(first=first)
    function = None if task.function is None else batch_function(task.function, samples)
    for number, source_sample in enumerate(samples, first):
        mapped_samples: Iterable[Any] = (source_sample,)
        if function is not None:
            mapped_samples = apply_map(function, source_sample, number)
        for output, sample in enumerate(mapped_samples):
            if encoder is None:
                result.samples.append((number, output, _dumps(sample)))  # `map` may reuse it
                continue
            row = encoder.fast(sample) if type(sample) is dict else None
            if row is None:
                try:
                    row = encoder.encode(sample, number)
                except REFUSALS as error:
                    if not task.skips:
                        raise _RefusedError from error
                    rejected = RejectedSample.from_sample(sample, number, error, output)
                    result.rejected.append(rejected)
                    continue
            result.rows.append(row)
            if task.tracks:
                result.numbers.append(number)
                result.outputs.append(output)
    result.pack()
    result.seconds = time.perf_counter() - start
    return result
