"""The number of concurrent requests adapts to busy servers and to the latency."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from faults import status
from traffic_datasets import open_numbers, serve_numbers

from npstream.storage import requests
from npstream.storage.remote import RemoteStore
from npstream.storage.traffic import slots as slots_module
from npstream.storage.traffic.latency import RECENT_REQUESTS, RecentLatencies
from npstream.storage.traffic.record import Traffic
from npstream.storage.traffic.slots import MIN_SLOW_LIMIT, RequestSlots

NBYTES = 1000


def answer(slots: RequestSlots, recent: RecentLatencies, times: int, seconds: float) -> None:
    """Let ranges be answered after the same time."""
    for _ in range(times):
        recent.add(seconds, NBYTES)
        slots.count_answer(NBYTES, recent)


def test_busy_answers_halve_the_bound_once_in_a_period():
    slots = RequestSlots(32)
    assert [slots.count_busy(now) for now in (5.0, 5.01, 5.09)] == [True, False, False]
    assert slots.limit == 16
    limits = []
    for now in range(6, 12):
        slots.count_busy(now)
        limits.append(slots.limit)
    assert limits == [8, 4, 2, 1, 1, 1]


def test_answers_raise_the_bound_by_one_for_each_round():
    slots, recent = RequestSlots(32), RecentLatencies()
    slots.count_busy(0.0)
    limits = []
    for times in (16, 16, 1, 1000):
        answer(slots, recent, times, 0.010)
        limits.append(slots.limit)
    assert limits == [17, 17, 18, 32]  # up to the maximum


def test_a_store_whose_latency_comes_from_a_queue_gets_fewer_requests():
    """The latency is proportional to the number of requests, above 4."""
    slots, recent = RequestSlots(32), RecentLatencies()
    answer(slots, recent, 64, 0.005)  # one request at a time
    limits = []
    for _ in range(10_000):
        answer(slots, recent, 1, 0.005 * max(slots.limit / 4, 1))
        limits.append(slots.limit)
    assert min(limits) == 8
    # At 8 requests the median is twice the lowest: the bound tries larger values, and comes back.
    assert max(limits[1000:]) <= 12


def test_a_store_that_becomes_slow_keeps_its_requests():
    """The latency triples for another reason: the lower bound is given up after a trial."""
    slots, recent = RequestSlots(32), RecentLatencies()
    answer(slots, recent, 64, 0.010)
    limits = []
    for _ in range(60):
        answer(slots, recent, 32, 0.030)
        limits.append(slots.limit)
    assert min(limits) == 24
    assert limits.count(24) <= 4
    assert limits[-30:] == [32] * 30


def test_the_latency_alone_has_a_minimum_and_busy_answers_have_none():
    slots, recent = RequestSlots(4), RecentLatencies()
    answer(slots, recent, 64, 0.010)
    answer(slots, recent, 640, 0.100)
    assert slots.limit == 4 < MIN_SLOW_LIMIT
    for now in range(3):
        slots.count_busy(now)
    assert slots.limit == 1


def test_growth_compares_medians_of_one_size():
    recent = RecentLatencies()
    assert recent.growth(1000) == 1.0
    for _ in range(RECENT_REQUESTS):
        recent.add(0.010, 1000)
        recent.add(0.500, 1 << 22)
    assert recent.growth(1000) == recent.growth(1 << 22) == 1.0
    for _ in range(RECENT_REQUESTS):
        recent.add(0.030, 1000)
    assert recent.growth(1000) == pytest.approx(3.0)
    recent.forget_lowest(1000)
    assert recent.growth(1000) == 1.0


def test_slots_are_a_semaphore_whose_bound_changes():
    """Random tasks acquire, wait, are cancelled, and release. No slot is lost, no task starves."""

    async def run(seed: int) -> None:
        choose = random.Random(seed)
        slots, active, most = RequestSlots(5), 0, 0

        async def work() -> None:
            nonlocal active, most
            await slots.acquire()
            active += 1
            most = max(most, active)
            assert active <= 5
            try:
                await asyncio.sleep(choose.choice([0, 0, 0.001]))
            finally:
                active -= 1
                slots.release()

        tasks = []
        for number in range(200):
            tasks.append(asyncio.create_task(work()))
            if choose.random() < 0.3:
                choose.choice(tasks).cancel()
            if choose.random() < 0.1:
                slots.count_busy(float(number))
            if choose.random() < 0.5:
                slots.count_answer(0, RecentLatencies())
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert active == 0
        assert most > 1
        assert not slots.locked()
        assert slots._in_use == 0
        assert not slots._waiters

    for seed in range(20):
        asyncio.run(run(seed))


def test_slots_are_given_in_order():
    async def run() -> list[int]:
        slots, order = RequestSlots(1), []

        async def work(number: int) -> None:
            await slots.acquire()
            order.append(number)
            slots.release()

        await slots.acquire()
        tasks = [asyncio.create_task(work(number)) for number in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        slots.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order

    assert asyncio.run(run()) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("name", ["http", "s3"])
def test_a_busy_server_gets_fewer_requests_at_a_time(servers, tmp_path, monkeypatch, name, code):
    monkeypatch.setattr(requests, "_BACKOFF", 0.001)
    monkeypatch.setattr(slots_module, "SLOW_GROWTH", math.inf)
    directory, proxy = serve_numbers(servers, name, tmp_path, samples=2000)
    with open_numbers(directory, tmp_path) as ds:
        store = ds._source.remote.remote_store
        shard = ds._source.index.files(0).data.name
        first_limit = ds.stats.concurrency  # a driver of fsspec has 32, and obstore 128
        assert first_limit >= 32
        proxy.faults = [status(code, times=2, path="shard")]
        assert len(store.ranges([(shard, 0, 10)])[0]) == 10
        slots = store._connect().slots
        # The second answer may come within the period.
        assert slots.limit in (first_limit // 4, first_limit // 2)
        assert ds.stats.concurrency == slots.limit
        limit = slots.limit
        store.ranges([(shard, k, 10) for k in range(2 * limit)])
        assert slots.limit > limit


def test_the_bound_holds_for_requests_in_flight(fake):
    async def respond(start: int, end: int) -> bytes:
        await asyncio.sleep(0.001)
        return bytes(end - start)

    fake.respond = staticmethod(lambda path, start, end: respond(start, end))
    store = RemoteStore("fake://a", hedge=False)
    slots = store._connect().slots
    for now in range(3):
        slots.count_busy(now)
    assert slots.limit == 4
    fake.max_active = 0
    store.ranges([("x", 0, 10)] * 8)
    assert fake.max_active <= 5  # the first 4 answers raise the limit by one
    store.ranges([("x", 0, 10)] * 1000)
    assert fake.max_active <= 32


def test_requests_that_are_not_ranges_raise_the_bound():
    """A writer of a busy server sends no range, and must become fast again."""
    slots, traffic = RequestSlots(32), Traffic()
    slots.count_busy(0.0)
    for _ in range(16):
        traffic.adapt(slots, 0)
    assert slots.limit == traffic.concurrency == 17
