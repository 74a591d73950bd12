"""Processes that run the user's `map` and encode samples, in the order of the input.

The parent pickles samples in batches and sends them over pipes. A worker sends encoded rows back.
A thread in each worker receives batches at any time, so that neither side waits for the other to
read. Results are used in the order of the batches.
"""

from __future__ import annotations

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
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bytes, Int64
from npstream.writing.mapping import MapFunction, Position, mapped, noted, watched
from npstream.writing.report import REFUSALS, Rejected
from npstream.writing.rows import SampleEncoder

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from npstream.writing.inputs.fill import Fill
    from npstream.writing.shard import ShardFormat

__all__ = ["Task", "WorkerPool", "WorkerResult"]

_AHEAD = 2
"""Batches that a worker has at once: one that it works on, and the next."""

_BATCH_BYTES = 1 << 20
"""Bytes of a pickled batch, about."""

_BATCH_SECONDS = 0.1
"""Seconds that a worker takes for a batch, about."""

_MOST_SAMPLES = 1 << 12

_PATIENCE = 5.0
"""Seconds after which a worker that was terminated is killed."""


@dataclass(frozen=True, slots=True)
class Task:
    """What each worker does with samples.

    Attributes
    ----------
    function : callable or None
        The user's `map`.
    fill : mapping of str to Fill
        As `SampleEncoder` takes it.
    skips : bool
        Whether samples that are refused are left out.
    encoding : tuple of (ShardFormat, bool) or None
        The layout, and whether other keys are refused. None if the first sample decides.
    """

    function: MapFunction | None
    fill: Mapping[str, Fill]
    skips: bool
    encoding: tuple[ShardFormat, bool] | None


@dataclass(slots=True)
class WorkerResult:
    """The result of a worker for a batch.

    Attributes
    ----------
    rows : list of bytes
        Encoded samples; in the parent they are in `data`.
    samples : list of (int, object)
        Samples with their numbers in the input, where no layout was known.
    rejected : list of Rejected
        The samples that were left out.
    seconds : float
        The time that it took.
    """

    rows: list[bytes] = field(default_factory=list)
    samples: list[tuple[int, Any]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0.0
    data: bytes = b""
    sizes: bytes = b""

    def pack(self) -> None:
        """Join the rows, which then are pickled fast."""
        sizes = np.fromiter(map(len, self.rows), np.int64, len(self.rows))
        self.data, self.sizes, self.rows = b"".join(self.rows), sizes.tobytes(), []

    def encoded(self) -> tuple[Bytes, Int64]:
        """Return the rows back to back, and the size of each."""
        return np.frombuffer(self.data, np.uint8), np.frombuffer(self.sizes, np.int64)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception of a worker, which may be one that cannot be pickled."""

    error: BaseException | None
    summary: str
    notes: list[str]
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        is_refusal = isinstance(error, _RefusedError)
        if is_refusal and error.__cause__ is not None:
            error = error.__cause__
        trace = "" if is_refusal else "".join(traceback.format_exception(error))
        notes = list(getattr(error, "__notes__", ()))
        summary = f"{type(error).__qualname__}: {error}"
        sent: BaseException | None = error
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:
            sent = None
        return cls(sent, summary, notes, trace)

    def raised(self) -> BaseException:
        """Return the exception that the parent raises."""
        error = self.error
        if error is None:
            error = RuntimeError(f"a worker raised {self.summary}")
        there = getattr(error, "__notes__", ())
        for note in self.notes:
            if note not in there:
                error.add_note(note)
        if self.trace:
            error.add_note(f"in a worker process:\n{self.trace}")
        return error


class _RefusedError(Exception):
    """A sample was refused; its cause is the error for users."""


class WorkerPool:
    """Worker processes; they start at once, and so before threads and clients of this write.

    Parameters
    ----------
    count : int
    task : Task
    """

    def __init__(self, count: int, task: Task) -> None:
        context = multiprocessing.get_context()
        self._workers: list[_Worker] = []
        self._is_single = task.encoding is None
        try:
            for _ in range(count):
                others = [worker.connection for worker in self._workers]
                self._workers.append(_Worker(context, task, others))
        except BaseException:
            self.stop()
            raise

    def set_layout(self, layout: ShardFormat, only_columns: bool) -> None:
        """Let the workers encode the batches that are sent from now on."""
        self._is_single = False
        for worker in self._workers:
            worker.send(_dumps((layout, only_columns)))

    def run(self, samples: Iterable[Any]) -> Iterator[WorkerResult]:
        """Yield the results of workers for samples, in the order of the input.

        Until the layout is known, a batch is one sample, and its result comes before the next
        sample is taken.
        """
        batches = _Batches(samples)
        results: dict[int, WorkerResult | _Failure] = {}
        sent = used = 0
        while True:
            while not batches.are_over and sent - used < self._most():
                worker = min(self._workers, key=lambda worker: len(worker.batches))
                if len(worker.batches) >= _AHEAD:
                    break
                payload = batches.next(1 if self._is_single else None)
                if payload is not None:
                    worker.batches.append(sent)
                    worker.send(payload)
                    sent += 1
            if used == sent:
                return
            while used not in results:
                self._receive(results)
            result = results.pop(used)
            used += 1
            if isinstance(result, _Failure):
                raise result.raised()
            batches.adapt(result.seconds)
            yield result

    def _most(self) -> int:
        """Return how many batches may be sent and not yet be used, as each is in memory."""
        return 1 if self._is_single else (_AHEAD + 1) * len(self._workers)

    def _receive(self, results: dict[int, WorkerResult | _Failure]) -> None:
        """Wait for results of any workers."""
        busy = [worker for worker in self._workers if worker.batches]
        ready = wait([worker.connection for worker in busy] + [w.process.sentinel for w in busy])
        for worker in busy:
            if worker.connection in ready:
                results[worker.batches.popleft()] = worker.receive()
            elif worker.process.sentinel in ready:
                raise worker.death()

    def stop(self) -> None:
        """End the workers, whatever they do."""
        for worker in self._workers:
            worker.connection.close()
            if worker.batches:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()
        self._workers.clear()


class _Worker:
    """A process, and the parent's end of its pipe."""

    def __init__(self, context: Any, task: Task, others: list[Connection]) -> None:
        self.connection, theirs = context.Pipe()
        self.batches: deque[int] = deque()
        # A forked process closes the parent's ends, so that the parent's end shows on its pipe.
        is_forked = context.get_start_method() == "fork"
        inherited = [*others, self.connection] if is_forked else []
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, inherited, task), daemon=True, name="npstream-write"
        )
        try:
            self.process.start()
        except Exception as error:
            self.connection.close()
            raise noted(
                error,
                "workers= starts processes by the method "
                f"{context.get_start_method()!r}, to which map= and its data are pickled: define "
                "them at the top of a module",
            ) from None
        finally:
            theirs.close()

    def send(self, payload: bytes) -> None:
        try:
            self.connection.send_bytes(payload)
        except OSError:
            raise self.death() from None

    def receive(self) -> WorkerResult | _Failure:
        try:
            result: WorkerResult | _Failure = ForkingPickler.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self.death() from None
        return result

    def death(self) -> RuntimeError:
        """Return the error that says how the process ended."""
        self.process.join(_PATIENCE)
        code = self.process.exitcode
        how = f"with exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"killed by {name}"
            if name == "SIGKILL":
                how += ", as the system does when memory is short"
        self.batches.clear()
        return RuntimeError(f"worker process {self.process.pid} ended, {how}: nothing is published")


class _Batches:
    """Samples in pickled batches, whose length adapts to their bytes and to the workers' time."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self.are_over = False
        self._position = Position()
        self._samples = watched(samples, self._position)
        self._count = self._limit = 1
        self._number = 0

    def next(self, count: int | None) -> bytes | None:
        """Return the next batch, of `count` samples if that is given; None if there is none."""
        samples = list(islice(self._samples, count or self._count))
        if len(samples) < (count or self._count):
            self.are_over = True
        if not samples:
            return None
        payload = _dumps((self._number, samples))
        self._number += len(samples)
        self._limit = max(1, _BATCH_BYTES * len(samples) // len(payload))
        self._count = min(self._count, self._limit)
        return payload

    def adapt(self, seconds: float) -> None:
        """Change the length of batches, after one for which a worker took some time."""
        count = self._count * 2 if seconds < _BATCH_SECONDS else self._count // 2
        self._count = max(1, min(count, self._limit, _MOST_SAMPLES))


def _dumps(value: Any) -> bytes:
    try:
        return bytes(ForkingPickler.dumps(value, 5))
    except Exception as error:
        raise noted(error, "workers= pickles samples, to send them to its processes") from None


def _work(connection: Connection, inherited: list[Connection], task: Task) -> None:
    """Run in a worker: answer each batch until the parent closes the pipe."""
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_receive_all, args=(connection, messages), daemon=True).start()
    encoder: SampleEncoder | None = None
    if task.encoding is not None:
        encoder = SampleEncoder(*task.encoding, task.fill)
    while (message := messages.get()) is not None:
        try:
            first, rest = ForkingPickler.loads(message)
            if not isinstance(rest, list):
                encoder = SampleEncoder(first, rest, task.fill)
                continue
            result: WorkerResult | _Failure = _process(task, encoder, first, rest)
        except BaseException as error:
            result = _Failure.of(error)
        with suppress(OSError):  # the parent has given up, or ended
            connection.send_bytes(ForkingPickler.dumps(result, 5))


def _receive_all(connection: Connection, messages: queue.SimpleQueue[bytes | None]) -> None:
    """Receive messages until the parent closes the pipe, and then None."""
    try:
        while True:
            messages.put(connection.recv_bytes())
    except (EOFError, OSError):
        messages.put(None)


def _process(
    task: Task, encoder: SampleEncoder | None, first: int, samples: list[Any]
) -> WorkerResult:
    """Map samples, and encode them if their layout is known."""
    start = time.perf_counter()
    result = WorkerResult()
    for number, given in enumerate(samples, first):
        one_or_more: Iterable[Any] = (given,)
        if task.function is not None:
            one_or_more = mapped(task.function, given, number)
        for sample in one_or_more:
            if encoder is None:
                result.samples.append((number, sample))
                continue
            row = encoder.fast(sample) if type(sample) is dict else None
            if row is None:
                try:
                    row = encoder.encode(sample, number)
                except REFUSALS as error:
                    if not task.skips:
                        raise _RefusedError from error
                    result.rejected.append(Rejected.of(sample, number, error))
                    continue
            result.rows.append(row)
    result.pack()
    result.seconds = time.perf_counter() - start
    return result
