"""A slow range is requested again, the first answer is used, and hedges are few."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from fake_drivers import DATA, wait_for_event_loop
from faults import delay

import npstream
from npstream.errors import StorageError
from npstream.storage import requests
from npstream.storage.remote import RemoteStore
from npstream.storage.traffic import record
from npstream.storage.traffic.hedging import MAX_SAVED_HEDGES, HedgeBudget
from npstream.storage.traffic.record import Traffic

FAST_REQUESTS = 40
"""Enough for a median, and for one hedge."""

SLOW = "slow"
"""The path of the requests whose answers a test defines."""


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch):
    monkeypatch.setattr(record, "HEDGE_FACTOR", 0.0)
    monkeypatch.setattr(record, "MIN_HEDGE_DELAY", 0.0005)
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)


class Attempts:
    """Answers the attempts of a slow request by the functions of a list."""

    def __init__(self) -> None:
        self.answers: list[Callable[[], object]] = []
        self.started: list[asyncio.Event] = []
        self.cancelled: list[int] = []

    async def __call__(self) -> object:
        number = len(self.started)
        self.started.append(asyncio.Event())
        if number:
            self.started[number - 1].set()
        try:
            return await self.answers[number]()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise

    def next_start(self, number: int) -> asyncio.Event:
        """Return the event that the attempt after `number` has begun."""
        return self.started[number]


@pytest.fixture
def attempts(fake) -> Attempts:
    attempts = Attempts()

    def respond(path: str, start: int, end: int) -> object:
        return attempts() if path.endswith(SLOW) else DATA[start:end]

    fake.respond = staticmethod(respond)
    return attempts


def warm_store(hedges: int = 1, **options) -> RemoteStore:
    """Return a store with a recent median, which may send `hedges` hedges."""
    store = RemoteStore("fake://a", **options)
    store.ranges([("fast", 0, 100)] * (FAST_REQUESTS * hedges))
    assert store.traffic.stats().hedges == 0
    return store


async def never() -> object:
    await asyncio.Event().wait()


async def data() -> bytes:
    return DATA[:100]


def after_next_start(attempts: Attempts, number: int, result: object) -> Callable[[], object]:
    """Return an answer of attempt `number` that comes once the next attempt has begun."""

    async def answer() -> object:
        await attempts.next_start(number).wait()
        if isinstance(result, Exception):
            raise result
        return result

    return answer


def test_a_second_attempt_answers_for_a_silent_one(attempts):
    store = warm_store()
    attempts.answers = [never, data]
    before = store.traffic.stats()
    assert store.ranges([(SLOW, 0, 100)]) == [DATA[:100]]
    stats = store.traffic.stats() - before
    assert (stats.requests, stats.retries) == (1, 0)
    assert (stats.hedges, stats.hedges_won) == (1, 1)
    assert stats.bytes_requested == 200
    wait_for_event_loop()
    assert attempts.cancelled == [0]


def test_a_slow_hedge_is_hedged(attempts):
    store = warm_store(hedges=2)
    attempts.answers = [never, never, data]
    before = store.traffic.stats()
    assert store.ranges([(SLOW, 0, 100)]) == [DATA[:100]]
    stats = store.traffic.stats() - before
    assert (stats.requests, stats.retries) == (1, 0)
    assert (stats.hedges, stats.hedges_won) == (2, 1)
    assert stats.bytes_requested == 300
    wait_for_event_loop()
    assert attempts.cancelled == [0, 1]


def test_a_request_has_at_most_two_hedges(attempts):
    store = warm_store(hedges=4)

    async def answer_late() -> object:
        await asyncio.wait((asyncio.get_running_loop().create_future(),), timeout=0.02)
        return DATA[:100]

    attempts.answers = [never, never, answer_late]
    assert store.ranges([(SLOW, 0, 100)]) == [DATA[:100]]
    assert store.traffic.stats().hedges == len(attempts.started) - 1 == 2


def test_the_first_attempt_may_still_win(attempts):
    store = warm_store()
    attempts.answers = [after_next_start(attempts, 0, DATA[:100]), never]
    assert store.ranges([(SLOW, 0, 100)]) == [DATA[:100]]
    stats = store.traffic.stats()
    assert (stats.hedges, stats.hedges_won) == (1, 0)
    wait_for_event_loop()
    assert attempts.cancelled == [1]


@pytest.mark.parametrize(
    "failure", [ConnectionResetError("lost"), DATA[:3]], ids=["error", "short"]
)
def test_a_failed_attempt_leaves_the_other_running(attempts, failure):
    store = warm_store()
    second = asyncio.Event()

    async def fail() -> object:
        await attempts.next_start(0).wait()
        # By then, the failure of this attempt has been handled.
        asyncio.get_running_loop().call_later(0.01, second.set)
        if isinstance(failure, Exception):
            raise failure
        return failure

    async def answer_later() -> object:
        await second.wait()
        return DATA[:100]

    attempts.answers = [fail, answer_later]
    assert store.ranges([(SLOW, 0, 100)]) == [DATA[:100]]
    stats = store.traffic.stats()
    assert (stats.retries, stats.hedges, stats.hedges_won) == (0, 1, 1)


def test_if_both_fail_the_request_is_retried(attempts):
    store = warm_store()

    async def fail() -> object:
        raise ConnectionResetError("second")

    attempts.answers = [after_next_start(attempts, 0, ConnectionResetError("first")), fail, data]
    assert store.ranges([(SLOW, 0, 100)]) == [DATA[:100]]
    stats = store.traffic.stats()
    assert (stats.retries, stats.hedges, stats.hedges_won) == (1, 1, 0)
    store = warm_store(retries=0)
    attempts.started.clear()
    attempts.answers = [after_next_start(attempts, 0, ConnectionResetError("first")), fail]
    with pytest.raises(StorageError, match=r"after 1 attempt .*first"):
        store.ranges([(SLOW, 0, 100)])


@pytest.mark.usefixtures("short_first_attempts")
def test_without_hedges_a_silent_attempt_is_retried_after_its_timeout(attempts):
    store = warm_store(hedge=False)
    attempts.answers = [never, data]
    assert store.ranges([(SLOW, 0, 100)]) == [DATA[:100]]
    stats = store.traffic.stats()
    assert (stats.retries, stats.hedges) == (1, 0)


def test_only_ranges_are_hedged(fake, attempts):
    store = warm_store()
    starts = []

    async def info(self, path, **options):
        starts.append(path)
        await asyncio.sleep(0.02)  # 40 times the delay of a hedge
        return {"type": "file", "size": 7}

    fake._info = info
    try:
        assert store.size("x") == 7
    finally:
        del fake._info
    assert len(starts) == 1


def test_drivers_with_threads_are_not_hedged(blocking):
    """Cancelling a request closes the session of its thread, and opening another takes long."""
    store = RemoteStore("blocking://a")
    store.ranges([("x", 0, 100)] * FAST_REQUESTS)

    def respond_late(path: str, start: int, end: int) -> bytes:
        threading.Event().wait(0.02)  # 40 times the delay of a hedge
        return DATA[start:end]

    blocking.respond = staticmethod(respond_late)
    assert store.ranges([("x", 0, 100)]) == [DATA[:100]]
    assert store.traffic.stats().hedges == 0


def test_hedges_are_at_most_3_percent_of_the_requests(fake):
    calls = 0

    async def answer(start: int, end: int) -> bytes:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.002)  # longer than the delay of a hedge
        return DATA[start:end]

    fake.respond = staticmethod(lambda path, start, end: answer(start, end))
    store = RemoteStore("fake://a")
    for _ in range(4):
        store.ranges([("x", 0, 100)] * 250)
        hedges = store.traffic.stats().hedges
        assert calls - hedges == store.traffic.stats().requests
        assert hedges <= 0.03 * store.traffic.stats().requests
    assert hedges >= 15


def test_saved_hedges_are_limited():
    budget = HedgeBudget()
    for _ in range(100_000):
        budget.add_request()
    assert sum(budget.take() for _ in range(100)) == budget.sent == MAX_SAVED_HEDGES


def test_the_delay_is_3_medians(monkeypatch):
    monkeypatch.undo()  # the real factor and minimum
    traffic = Traffic()
    for _ in range(FAST_REQUESTS):
        traffic.count_attempt(1000, is_retry=False)
        traffic.count_answer(0.05, 0.05, 1000)
    assert traffic.hedge_delay(2000) == pytest.approx(0.15)
    assert traffic.hedge_delay(1 << 22) is None  # no request of this size was measured
    assert traffic.hedge_delay(0) is None  # not a range
    assert Traffic(hedge=False).hedge_delay(2000) is None
    for _ in range(100):
        traffic.count_answer(0.001, 0.001, 1000)
    assert traffic.hedge_delay(2000) == 0.02  # the minimum


@pytest.mark.parametrize("name", ["http", "s3"])
def test_a_slow_answer_of_a_server_is_hedged(servers, monkeypatch, name):
    """The server delays the 60th of 100 requests by a minute."""
    monkeypatch.setattr(record, "MIN_HEDGE_DELAY", 2.0)  # no other request takes as long
    proxy = servers.proxy(name)
    proxy.clear()
    remote_dir = servers[name].new_directory().with_proxy(proxy)
    remote_dir.put("file", DATA)
    store = RemoteStore(remote_dir.url, remote_dir.storage_options)
    proxy.faults = [delay(60.0, every=60, path="file", method="GET")]
    bodies = [store.ranges([("file", start, 100)])[0] for start in range(100)]
    assert bodies == [DATA[start : start + 100] for start in range(100)]
    stats = store.traffic.stats()
    assert (stats.retries, stats.hedges, stats.hedges_won) == (0, 1, 1)
    assert len(proxy.log) == 101


def test_hedge_is_a_bool(tmp_path):
    with pytest.raises(TypeError, match="hedge=1: expected True or False"):
        npstream.open(tmp_path, hedge=1)
