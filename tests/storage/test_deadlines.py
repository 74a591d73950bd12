"""A read of a silent store fails after one deadline, however many waits it takes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec.asyn
import numpy as np
import pytest
from faults import FOR_EVER, Proxy, stall
from servers import RemoteDirectory, Servers

import npstream
from npstream.cache.cache import ShardCache
from npstream.cache.ranges import CachedRanges
from npstream.errors import StorageError
from npstream.shards.readahead import SampleReadAhead, SampleRequest
from npstream.storage import deadlines, requests
from npstream.storage.deadlines import Deadlines, inherit_deadline, shared_deadline
from npstream.storage.remote import RemoteStore
from npstream.storage.requests import Request
from npstream.storage.traffic.record import Traffic

DEADLINE = 1.2
"""Seconds of the timeout of reads from silent stores."""

HANG = 60.0
"""Seconds after which a wait can only be a hang, on the slowest machine."""


class Clock:
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deadlines, "time", clock)
    return clock


def remaining(store: Deadlines, timeout: float = 60.0) -> float:
    with store.track_wait(timeout) as seconds:
        return seconds


def run_in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_only_time_in_waits_counts(clock: Clock):
    store = Deadlines()
    with shared_deadline():
        with store.track_wait():
            clock.now += 10
        clock.now += 1000
        assert remaining(store) == 50
        with shared_deadline(), store.track_wait():
            clock.now += 30
        assert remaining(store) == 20
        assert store.wait_start() == clock.now - 40
        with store.track_wait():
            clock.now += 100
        assert remaining(store) == 0
    assert remaining(store) == 60
    with store.track_wait():
        clock.now += 10
    assert remaining(store) == 60


def test_an_arrival_restarts_the_deadline(clock: Clock):
    store = Deadlines()
    with shared_deadline():
        with store.track_wait():
            clock.now += 50
            store.last_arrival = clock.now
            clock.now += 5
        assert remaining(store) == 55
        assert store.deadline(store.wait_start(), 60) == clock.now + 55
        store.last_arrival = clock.now
        assert remaining(store) == 60


def test_a_read_keeps_its_deadline_in_another_thread(clock: Clock):
    store = Deadlines()
    remaining_times = []

    def work() -> None:
        remaining_times.append(remaining(store))
        with store.track_wait():
            clock.now += 20

    with shared_deadline():
        with store.track_wait():
            clock.now += 10
        run_in_thread(inherit_deadline(work))
        run_in_thread(work)
        assert remaining(store) == 30
    run_in_thread(inherit_deadline(work))
    assert remaining_times == [50, 60, 60]


def test_arrivals_from_one_store_do_not_extend_the_deadline_of_another(clock: Clock):
    """A read of a mixture has one thread for each store, and all of them share its deadline."""
    silent, healthy = Deadlines(), Deadlines()
    first_wait_is_over, bytes_arrived = threading.Event(), threading.Event()
    remaining_times = []

    def read_silent_store() -> None:
        with silent.track_wait():  # for another thread's download, without success
            clock.now += 60
        first_wait_is_over.set()
        bytes_arrived.wait()
        remaining_times.append(remaining(silent))  # for a request of its own

    def read_healthy_store() -> None:
        first_wait_is_over.wait()
        with healthy.track_wait():
            clock.now += 1
            healthy.last_arrival = clock.now
        remaining_times.append(remaining(healthy))
        bytes_arrived.set()

    with shared_deadline():
        works = [inherit_deadline(read_silent_store), inherit_deadline(read_healthy_store)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()
    assert remaining_times == [60, 0]


def test_a_side_car_shares_its_deadline_between_the_cache_and_the_store(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = RemoteStore("memory://side-car")
    files = CachedRanges(store, ShardCache(tmp_path), "1")
    remaining_times = []

    def wait_in_vain(spans: object) -> None:
        with store.deadlines.track_wait():
            clock.now += 40

    def read(spans: object) -> list[bytes]:
        remaining_times.append(remaining(store.deadlines))
        return [bytes(10) for _ in spans]

    monkeypatch.setattr(files, "fetch", wait_in_vain)
    monkeypatch.setattr(files, "_read_cached", lambda *span: None)
    monkeypatch.setattr(store, "ranges", read)
    assert files.ranges([("file", 0, 10)]) == [bytes(10)]
    assert remaining_times == [20]


class FailingShards:
    """The shards of one dataset, whose samples cannot be fetched."""

    def __init__(self) -> None:
        self.point_reader = SimpleNamespace(extend=lambda nbytes: None)
        self.may_fail = threading.Event()
        self.traffic = Traffic()

    def register_reader(self, reader: object) -> None: ...

    def stop(self, threads: object) -> None: ...

    def estimate_bytes(self, shard_of: object) -> int:
        return 100

    def fetch_samples(self, ids: object, shard_of: object) -> None:
        assert self.may_fail.wait(HANG)
        raise StorageError("silent")


class WatchedEvent(threading.Event):
    """An event that calls a function when a thread begins to wait for it."""

    def __init__(self, on_wait: Callable[[], object]) -> None:
        super().__init__()
        self.on_wait = on_wait

    def wait(self, timeout: float | None = None) -> bool:
        self.on_wait()
        return super().wait(timeout)


@pytest.fixture
def failing_prefetch() -> Iterator[tuple[FailingShards, SampleReadAhead]]:
    """Return shards, and a read-ahead whose requests fail once the shards' `may_fail` is set."""
    shards = FailingShards()
    part = SimpleNamespace(shards=shards, first_shard=0, first_sample=0)
    parts = [(part, slice(None))]
    union = SimpleNamespace(remotes=[part], split=lambda shard_of: parts, root="memory://x")
    with SampleReadAhead(union) as readahead:
        yield shards, readahead


@pytest.fixture
def prefetch_fails_while_its_reader_waits(
    monkeypatch: pytest.MonkeyPatch, failing_prefetch: tuple[FailingShards, SampleReadAhead]
) -> None:
    """Make a prefetch fail only after a reader has begun to wait for it."""
    init = SampleRequest.__init__

    def init_watched(self: SampleRequest, *args: object) -> None:
        init(self, *args)
        self.done = WatchedEvent(failing_prefetch[0].may_fail.set)

    monkeypatch.setattr(SampleRequest, "__init__", init_watched)


SAMPLE_AND_SHARD = (np.zeros(1, np.int64), np.zeros(1, np.int64))


@pytest.mark.usefixtures("prefetch_fails_while_its_reader_waits")
def test_a_reader_that_waits_for_a_prefetch_does_not_wait_again(
    failing_prefetch: tuple[FailingShards, SampleReadAhead],
):
    _, readahead = failing_prefetch
    request = readahead.request(SAMPLE_AND_SHARD)
    with pytest.raises(StorageError, match="silent"):
        next(readahead.wait_for("piece", request))


def test_a_prefetch_that_failed_before_its_reader_came_is_repeated(
    failing_prefetch: tuple[FailingShards, SampleReadAhead],
):
    shards, readahead = failing_prefetch
    request = readahead.request(SAMPLE_AND_SHARD)
    shards.may_fail.set()
    assert request.done.wait(HANG)
    assert next(readahead.wait_for("piece", request)) == "piece"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Return a driver with one request at a time; the test sets its `answer`."""
    state = SimpleNamespace(answer=None, requested=threading.Event(), calls=0)

    class Silent(fsspec.asyn.AsyncFileSystem):
        protocol = "silent"
        cachable = False

        async def _cat_file(self, path, start=None, end=None, **kwargs):
            state.calls += 1
            state.requested.set()
            return await state.answer(end - start)

    fsspec.register_implementation("silent", Silent, clobber=True)
    monkeypatch.setenv("NPSTREAM_THREADS", "1")
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    return state


async def never_answer(nbytes: int) -> bytes:
    await asyncio.Event().wait()
    return b""


async def answer_at_once(nbytes: int) -> bytes:
    return bytes(nbytes)


def failure(read: Callable[[], object]) -> StorageError:
    """Return the error of a read, which must wait for its deadline, but not hang."""
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        read()
    assert DEADLINE - 0.1 < time.monotonic() - start < HANG
    return caught.value


@pytest.mark.parametrize("slots", [0, 1])
def test_a_read_that_has_waited_for_its_deadline_sends_no_request(slots: int):
    request = Request("x", "read this file", lambda filesystem: None, 1, 1)
    # The connection has no method that sends a request: an attempt would raise AttributeError.
    connection = SimpleNamespace(slots=asyncio.Semaphore(slots))

    async def run() -> None:
        start = asyncio.get_running_loop().time() - 60.0
        await requests.run_with_retries(
            request, start, connection, Deadlines(), Traffic(), 60.0, retries=4
        )

    with pytest.raises(StorageError, match=r"after 0 attempts in .* s: nothing arrived"):
        asyncio.run(run())


def test_queued_requests_fail_at_the_deadline(silent: SimpleNamespace):
    silent.answer = never_answer
    store = RemoteStore("silent://a", timeout=DEADLINE, retries=0)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(failure, lambda: store.ranges([("x", 0, 1)])) for _ in range(6)]
        texts = [str(future.result()) for future in futures]
    # A reader that starts later than the others may get the slot for a moment.
    queued = [text for text in texts if re.search(r"after 0 attempts .*: nothing arrived", text)]
    assert len(queued) == 6 - silent.calls


def test_an_arrival_moves_the_deadline_of_a_queued_request():
    async def acquire() -> tuple[bool, bool]:
        slots, now = asyncio.Semaphore(1), asyncio.get_running_loop().time
        await slots.acquire()
        start = now()
        timed_out_acquisition = await requests._acquire_slot(slots, lambda: start)
        calls = []

        def deadline() -> float:
            calls.append(now())
            if len(calls) == 1:
                return calls[0] + 0.1
            if len(calls) == 2:  # something has arrived, and the slot becomes free
                slots.release()
            return calls[0] + HANG

        return timed_out_acquisition, await requests._acquire_slot(slots, deadline)

    assert asyncio.run(acquire()) == (False, True)


def test_a_stopped_reader_in_the_queue_keeps_no_slot(silent: SimpleNamespace):
    silent.answer = never_answer
    store = RemoteStore("silent://a", timeout=10 * HANG, retries=0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(store.ranges, [("x", 0, 1)]) for _ in range(2)]
        assert silent.requested.wait(HANG)
        store.stop(list(pool._threads))
        for future in futures:
            with pytest.raises(StorageError, match="was stopped"):
                future.result(HANG)
    silent.answer = answer_at_once
    assert store.ranges([("x", 0, 1)]) == [b"\0"]


SAMPLES = 100_000


@pytest.fixture(scope="module")
def dataset_location(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> RemoteDirectory:
    """Return the location of a dataset without a side-car: its reads fetch offsets, too."""
    directory = tmp_path_factory.mktemp("data")
    columns = {"value": np.arange(SAMPLES), "text": [str(i) * (i % 7) for i in range(SAMPLES)]}
    npstream.write(directory, columns, shard_size="256KiB")
    remote_dir = servers["http"].new_directory()
    for name in ("index.json", *(path.name for path in directory.glob("*.mds"))):
        remote_dir.put(name, (directory / name).read_bytes())
    return remote_dir


@pytest.fixture
def dataset(
    servers: Servers,
    dataset_location: RemoteDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[npstream.Dataset]:
    """Return a dataset whose server stops responding after it was opened."""
    monkeypatch.setenv("NPSTREAM_THREADS", "1")
    proxy = servers.proxy("http")
    with open_silenced(proxy, dataset_location, tmp_path / "cache") as ds:
        yield ds


def open_silenced(proxy: Proxy, dataset_location: RemoteDirectory, cache: Path) -> npstream.Dataset:
    proxy.faults = []
    url = dataset_location.with_proxy(proxy).url
    ds = npstream.open(url, cache=cache, timeout=DEADLINE, retries=1)
    proxy.faults = [stall(times=FOR_EVER, path=".mds")]
    return ds


@pytest.fixture
def exhausted_reads(monkeypatch: pytest.MonkeyPatch) -> set[object]:
    """Return the reads of this thread that waited for a whole deadline without an arrival.

    They are counted, because the elapsed time also contains the time to compile kernels.
    """
    exhausted_reads: set[object] = set()
    caller, track_wait = threading.get_ident(), Deadlines.track_wait

    class Read(deadlines._Read):
        def __init__(self) -> None:
            super().__init__()
            self.thread = threading.get_ident()

    @contextlib.contextmanager
    def track(self: Deadlines, timeout: float = math.inf) -> Iterator[float]:
        read, start = deadlines._thread.read, self.wait_start()
        try:
            with track_wait(self, timeout) as seconds:
                yield seconds
        finally:
            waited = time.monotonic() - max(start, self.last_arrival)
            thread = threading.get_ident() if read is None else read.thread
            if thread == caller and waited > 0.9 * DEADLINE:
                exhausted_reads.add(read or object())  # a wait outside of a read counts by itself

    monkeypatch.setattr(deadlines, "_Read", Read)
    monkeypatch.setattr(Deadlines, "track_wait", track)
    return exhausted_reads


@pytest.mark.parametrize(
    "read",
    [
        lambda ds: ds[77],
        lambda ds: ds[::499].load(),
        lambda ds: ds.load(),
        lambda ds: next(iter(ds)),
        lambda ds: next(iter(ds.iter(0, 1, batch_size=50, shuffle=True))),
        lambda ds: ds["value"].load(),
    ],
    ids=["sample", "few", "all", "samples", "batches", "column"],
)
def test_one_read_has_one_deadline(dataset: npstream.Dataset, exhausted_reads: set[object], read):
    failure(lambda: read(dataset))
    assert len(exhausted_reads) == 1


def test_prefetch_fails_at_the_deadline(dataset: npstream.Dataset):
    failure(dataset.prefetch)


def test_concurrent_readers_fail_at_the_deadline(dataset: npstream.Dataset):
    ids = range(0, SAMPLES, SAMPLES // 7)
    with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
        for future in [pool.submit(failure, lambda i=i: dataset[i]) for i in ids]:
            future.result()


def test_a_read_of_a_mixture_has_one_deadline(
    servers: Servers,
    dataset_location: RemoteDirectory,
    dataset: npstream.Dataset,
    exhausted_reads: set[object],
    tmp_path: Path,
):
    with open_silenced(servers.proxy("http"), dataset_location, tmp_path / "other") as other:
        mixed = npstream.mix({"one": dataset, "other": other})
        failure(lambda: mixed[:1000].load())
        assert len(exhausted_reads) == 1
        failure(lambda: next(iter(mixed.iter(0, 1, batch_size=50, threads=0))))
        assert len(exhausted_reads) == 2


def test_an_iteration_fails_when_its_server_falls_silent(
    servers: Servers,
    dataset_location: RemoteDirectory,
    dataset: npstream.Dataset,
    exhausted_reads: set[object],
    monkeypatch: pytest.MonkeyPatch,
):
    proxy = servers.proxy("http")  # clears the faults of `dataset`: the first batch arrives
    monkeypatch.setattr("npstream.shards.readahead.WINDOW_BYTES", 1 << 18)
    batches = iter(dataset.iter(0, 1, batch_size=50))
    next(batches)
    proxy.faults = [stall(times=FOR_EVER, path=".mds")]
    with pytest.raises(StorageError):
        for _ in batches:
            pass
    assert len(exhausted_reads) == 1
