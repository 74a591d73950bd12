"""Whoever waits for a store from which nothing comes waits no longer than for one request."""

from __future__ import annotations

import asyncio
import concurrent.futures
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
from servers import Place, Servers

import npstream
from npstream.errors import StorageError
from npstream.storage import deadlines, requests
from npstream.storage.deadlines import Deadlines, inherit_deadline, shared_deadline
from npstream.storage.remote import RemoteStore

DEADLINE = 1.2
SLACK = 1.0  # seconds that a busy machine may take on top; less than another deadline


class Clock:
    """A time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(deadlines, "time", found)
    return found


def left(store: Deadlines, timeout: float = 60.0) -> float:
    with store.track_wait(timeout) as seconds:
        return seconds


def test_only_waiting_counts(clock: Clock):
    store = Deadlines()
    with shared_deadline():
        with store.track_wait():
            clock.now += 10
        clock.now += 1000
        assert left(store) == 50
        with shared_deadline(), store.track_wait():
            clock.now += 30
        assert left(store) == 20
        assert store.wait_start() == clock.now - 40
        with store.track_wait():
            clock.now += 100
        assert left(store) == 0
    assert left(store) == 60
    with store.track_wait():
        clock.now += 10
    assert left(store) == 60


def test_whatever_comes_begins_it_anew(clock: Clock):
    store = Deadlines()
    with shared_deadline():
        with store.track_wait():
            clock.now += 50
            store.last_arrival = clock.now
            clock.now += 5
        assert left(store) == 55
        assert store.deadline(store.wait_start(), 60) == clock.now + 55
        store.last_arrival = clock.now
        assert left(store) == 60


def test_a_read_that_goes_on_in_another_thread(clock: Clock):
    store = Deadlines()
    seen = []

    def work() -> None:
        seen.append(left(store))
        with store.track_wait():
            clock.now += 20

    def run(work: Callable[[], object]) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    with shared_deadline():
        with store.track_wait():
            clock.now += 10
        run(inherit_deadline(work))
        run(work)
        assert left(store) == 30
    run(inherit_deadline(work))
    assert seen == [50, 60, 60]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Return a driver with one request at a time, whose answers the test gives."""
    state = SimpleNamespace(answer=None, asked=threading.Event(), calls=0)

    class Silent(fsspec.asyn.AsyncFileSystem):
        protocol = "silent"
        cachable = False

        async def _cat_file(self, path, start=None, end=None, **kwargs):
            state.calls += 1
            state.asked.set()
            return await state.answer(end - start)

    fsspec.register_implementation("silent", Silent, clobber=True)
    monkeypatch.setenv("NPSTREAM_THREADS", "1")
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    return state


async def never(nbytes: int) -> bytes:
    await asyncio.Event().wait()
    return b""


async def at_last(nbytes: int) -> bytes:
    await asyncio.sleep(0.1)
    return bytes(nbytes)


def failure(read: Callable[[], object], deadline: float) -> StorageError:
    """Return what a read fails with, in time."""
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        read()
    assert deadline - 0.1 < time.monotonic() - start < deadline + SLACK
    return caught.value


def test_those_in_the_queue_wait_no_longer_than_the_first(silent: SimpleNamespace):
    silent.answer = never
    store = RemoteStore("silent://a", timeout=DEADLINE, retries=0)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(failure, lambda: store.ranges([("x", 0, 1)]), DEADLINE) for _ in range(6)
        ]
        texts = [str(waiting.result()) for waiting in asked]
    idle = [
        text for text in texts if re.search(r"after 0 attempts in \d\.\d s: nothing came", text)
    ]
    assert len(idle) == 5, texts
    assert silent.calls == 1


def test_those_in_the_queue_wait_while_others_get_something(silent: SimpleNamespace):
    silent.answer = at_last
    store = RemoteStore("silent://a", timeout=0.35, retries=0)
    # The first attempt has all of the time, as there is no other.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(store.ranges, [("x", 0, 1)]) for _ in range(8)]
        assert [waiting.result() for waiting in asked] == [[b"\0"]] * 8


def test_whoever_leaves_the_queue_keeps_no_turn(silent: SimpleNamespace):
    silent.answer = never
    store = RemoteStore("silent://a", timeout=20.0, retries=0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(store.ranges, [("x", 0, 1)]) for _ in range(2)]
        assert silent.asked.wait(5)
        store.stop(list(pool._threads))
        for waiting in asked:
            with pytest.raises(StorageError, match="was stopped"):
                waiting.result(5)
    silent.answer = at_last
    assert store.ranges([("x", 0, 1)]) == [b"\0"]


SAMPLES = 100_000


@pytest.fixture(scope="module")
def published(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return where a dataset is, of many chunks whose offsets are not known."""
    directory = tmp_path_factory.mktemp("data")
    columns = {"value": np.arange(SAMPLES), "text": [str(i) * (i % 7) for i in range(SAMPLES)]}
    npstream.write(directory, columns, shard_size="256KiB")
    npstream.open(directory).load()  # to compile takes longer than a deadline here
    place = servers["http"].fresh()
    for name in ("index.json", *(path.name for path in directory.glob("*.mds"))):
        place.put(name, (directory / name).read_bytes())
    return place


@pytest.fixture
def dataset(
    servers: Servers,
    published: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[npstream.Dataset]:
    """Return a dataset whose server falls silent as soon as it is open."""
    monkeypatch.setenv("NPSTREAM_THREADS", "1")
    proxy = servers.proxy("http")
    with silenced(proxy, published, tmp_path / "cache") as found:
        yield found


def silenced(proxy: Proxy, published: Place, cache: Path) -> npstream.Dataset:
    proxy.faults = []
    url = published.through(proxy).url
    found = npstream.open(url, cache=cache, timeout=DEADLINE, retries=1)
    proxy.faults = [stall(times=FOR_EVER, path=".mds")]
    return found


@pytest.mark.parametrize(
    "read",
    [
        lambda ds: ds[77],
        lambda ds: ds[::499].load(),
        lambda ds: ds.load(),
        lambda ds: next(iter(ds)),
        lambda ds: next(iter(ds.iter(0, 1, batch_size=50, shuffle=True))),
        lambda ds: ds["value"].load(),
        lambda ds: ds.prefetch(),
    ],
    ids=["sample", "few", "all", "samples", "batches", "column", "prefetch"],
)
def test_one_read_has_one_deadline(dataset: npstream.Dataset, read):
    failure(lambda: read(dataset), DEADLINE)


def test_many_readers_have_one_deadline(dataset: npstream.Dataset):
    ids = range(0, SAMPLES, SAMPLES // 7)
    with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
        for reading in [pool.submit(failure, lambda i=i: dataset[i], DEADLINE) for i in ids]:
            reading.result()


def test_a_mixture_has_one_deadline(
    servers: Servers, published: Place, dataset: npstream.Dataset, tmp_path: Path
):
    with silenced(servers.proxy("http"), published, tmp_path / "other") as other:
        mixed = npstream.mix({"one": dataset, "other": other})
        failure(lambda: mixed[:1000].load(), DEADLINE)
        failure(lambda: next(iter(mixed.iter(0, 1, batch_size=50))), DEADLINE)


def test_an_iteration_whose_server_falls_silent(
    servers: Servers, published: Place, dataset: npstream.Dataset, monkeypatch: pytest.MonkeyPatch
):
    proxy = servers.proxy("http")
    monkeypatch.setattr("npstream.shards.readahead.WINDOW", 1 << 18)
    batches = iter(dataset.iter(0, 1, batch_size=50))
    next(batches)
    proxy.faults = [stall(times=FOR_EVER, path=".mds")]
    last = time.monotonic()
    with pytest.raises(StorageError):  # noqa: PT012
        for _ in batches:
            last = time.monotonic()
    assert time.monotonic() - last < DEADLINE + SLACK
