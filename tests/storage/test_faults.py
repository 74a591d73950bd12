"""Faults of servers: a store returns the right bytes, or raises an error before its deadline.

The servers are real, behind a faulty proxy. Drivers do not detect a flipped bit; the readers of a
dataset detect it by hashes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from faults import (
    FOR_EVER,
    Fault,
    encoded,
    flip,
    flood,
    garbage,
    ignore_range,
    multipart,
    other_range,
    oversized,
    reset,
    slow,
    stall,
    status,
    truncate,
    unranged,
    unsized,
    wrong_length,
)
from faulty_stores import (
    DATA,
    MIDDLE,
    NAME,
    PART,
    SPAN,
    FaultyStore,
    failure,
    on_every_server,
    on_web_servers,
    store_at,
)

from npstream.errors import StorageError
from npstream.storage.remote import RemoteStore

pytestmark = pytest.mark.usefixtures("short_pauses")


@on_every_server
@pytest.mark.parametrize(
    "fault",
    [
        reset(),
        reset(MIDDLE),
        truncate(MIDDLE),
        stall(),
        stall(MIDDLE),
        slow(0.01, times=FOR_EVER),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.at}",
)
@pytest.mark.usefixtures("short_first_attempts")
def test_a_read_succeeds_after_a_transient_fault(faulty: FaultyStore, fault: Fault):
    faulty.proxy.faults = [fault]
    assert faulty.store(timeout=60.0).ranges([SPAN]) == [PART]
    # Only a slow response needs no second attempt.
    assert len(faulty.proxy.log) >= (1 if fault.kind == "slow" else 2)


@on_web_servers
@pytest.mark.parametrize(
    "fault",
    [status(429), status(500), status(503, times=2)],
    ids=lambda fault: str(fault.status),
)
def test_each_attempt_sends_one_request(faulty: FaultyStore, fault: Fault):
    faulty.proxy.faults = [fault]
    assert faulty.store().ranges([SPAN]) == [PART]
    assert faulty.statuses() == [*[fault.status] * fault.times, 206]
    assert {(request.method, request.range) for request in faulty.proxy.log} == {
        ("GET", "bytes=1000-250999")
    }
    assert faulty.proxy.log[-1].nbytes == len(PART)


OPERATIONS: dict[str, Callable[[RemoteStore], Any]] = {
    "version": lambda store: store.version(NAME),
    "exists": lambda store: store.exists("absent"),
    "range": lambda store: store.ranges([SPAN]),
    "list": lambda store: list(store.names("folder/")),
    "put": lambda store: store.put("new", DATA),
    "put large": lambda store: store.put("new", bytes(9 << 20)),
    "create": lambda store: store.create(f"new {time.monotonic_ns()}", b"new"),  # must not exist
    "remove": lambda store: store.remove("new"),
}

WRITES = ("put", "put large", "create", "remove")

SKIPPED = {
    "http": WRITES,  # nginx only reads
    "hf": ("put", "put large"),  # huggingface_hub retries uploads itself
}


@on_web_servers
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_drivers_do_not_retry(faulty: FaultyStore):
    """A failed attempt sends no more requests than a successful attempt."""
    for name, call in OPERATIONS.items():
        if name in SKIPPED.get(faulty.remote_dir.server.name, ()):
            continue
        faulty.proxy.clear()
        call(faulty.store(timeout=60.0))
        count = len(faulty.proxy.log)
        for fault in (reset(), status(429), status(500), status(503), reset(1), truncate(1)):
            faulty.proxy.clear()
            faulty.proxy.faults = [dataclasses.replace(fault, times=FOR_EVER)]
            # A fault in the body does not affect a response without a body.
            with contextlib.suppress(StorageError):
                call(faulty.store(timeout=60.0, retries=0))
            # If a connection breaks before a response, aiohttp assumes it was idle, and retries.
            max_requests = 2 * count if fault == reset() else count
            assert len(faulty.proxy.log) <= max_requests, f"{name}, {fault}: {faulty.proxy.log}"


@on_every_server
@pytest.mark.parametrize(
    "fault",
    [reset(), reset(MIDDLE), truncate(MIDDLE), stall(), stall(MIDDLE)],
    ids=lambda fault: f"{fault.kind}-{fault.at}",
)
def test_a_permanent_fault_raises_after_all_attempts(faulty: FaultyStore, fault: Fault):
    faulty.proxy.faults = [dataclasses.replace(fault, times=FOR_EVER)]
    stall_timeout = 4.0 if faulty.remote_dir.server.raw else 0.8  # SFTP needs a handshake
    # Only a stall lasts until the timeout. The other faults end with the number of attempts.
    timeout = stall_timeout if fault.kind == "stall" else 60.0
    store = faulty.store(timeout=timeout, retries=1)
    error = failure(store, lambda: store.ranges([SPAN]), timeout)
    assert error.errno in (errno.ETIMEDOUT, errno.EIO, errno.ECONNRESET)
    assert "after 2 attempts" in str(error)


@on_web_servers
def test_a_response_of_the_wrong_length_is_retried(faulty: FaultyStore):
    store = faulty.store(timeout=60.0, retries=1)
    faulty.proxy.faults = [wrong_length(MIDDLE)]
    assert store.ranges([SPAN]) == [PART]
    assert len(faulty.proxy.log) == 2
    faulty.proxy.faults = [wrong_length(MIDDLE, times=FOR_EVER)]
    error = failure(store, lambda: store.ranges([SPAN]))
    assert error.errno == errno.EIO
    assert "after 2 attempts" in str(error)


@on_web_servers
@pytest.mark.parametrize("code", [429, 503])
def test_busy_responses_are_retried_as_often_as_set(faulty: FaultyStore, code: int):
    faulty.proxy.faults = [status(code, times=FOR_EVER)]
    store = faulty.store(retries=1)
    error = failure(store, lambda: store.ranges([SPAN]))
    assert error.errno == errno.EBUSY
    assert "after 2 attempts" in str(error)
    assert faulty.statuses() == [code] * 2


@on_web_servers
@pytest.mark.parametrize(("code", "expected"), [(403, errno.EACCES), (404, errno.ENOENT)])
def test_permanent_errors_are_not_retried(faulty: FaultyStore, code: int, expected: int):
    faulty.proxy.faults = [status(code, times=FOR_EVER)]
    store = faulty.store()
    error = failure(store, lambda: store.ranges([SPAN]))
    assert error.errno == expected
    assert "after 1 attempt in" in str(error)
    assert faulty.statuses() == [code]


@on_web_servers
def test_a_server_that_ignores_ranges_raises(faulty: FaultyStore):
    faulty.proxy.faults = [ignore_range(times=FOR_EVER)]
    store = faulty.store()
    error = failure(store, lambda: store.ranges([SPAN]))
    assert re.search("came; the server ignores Range|Content-Range", str(error))


@on_web_servers
@pytest.mark.parametrize(
    "fault",
    [
        other_range(1000),
        other_range(-1000),
        unranged(),
        multipart(),
        encoded(),
        flood(),
        oversized(64 << 20),
    ],
    ids=lambda fault: f"{fault.kind}{fault.at or ''}",
)
def test_responses_that_do_not_match_the_range_are_rejected(faulty: FaultyStore, fault: Fault):
    faulty.proxy.faults = [dataclasses.replace(fault, times=FOR_EVER)]
    store = faulty.store(retries=1)
    error = failure(store, lambda: store.ranges([SPAN]))
    assert error.errno in (errno.EIO, errno.EINVAL)
    # The surplus is not read. Only the buffers of sockets, of less than 16 MiB, take some of it.
    assert all(request.nbytes < 16 << 20 for request in faulty.proxy.log)
    faulty.proxy.faults = []
    assert store.ranges([SPAN]) == [PART]


@on_every_server
def test_a_lost_connection_is_not_reported_as_a_missing_file(faulty: FaultyStore):
    reads: list[Callable[[RemoteStore], Any]] = [
        lambda store: store.exists(NAME),
        lambda store: store.size(NAME) == len(DATA),
        lambda store: store.read(NAME) == DATA,
        lambda store: store.sizes([NAME]) == [len(DATA)],
    ]
    faults = [reset()] if faulty.remote_dir.server.raw else [reset(), garbage(), truncate(0)]

    def store(**settings: Any) -> RemoteStore:
        # SFTP's session stays open. Only a new store opens a connection, which may have the fault.
        return (
            store_at(faulty.remote_dir, **settings)
            if faulty.remote_dir.server.raw
            else faulty.store(**settings)
        )

    for read, fault in itertools.product(reads, faults):
        faulty.proxy.faults = [fault]
        assert read(store())
    faulty.proxy.faults = [reset(times=FOR_EVER)]
    settings = {"timeout": 60.0, "retries": 1}
    for read in reads[:3]:
        error = failure(faulty.remote_store, lambda read=read: read(store(**settings)))
        assert error.errno not in (errno.ENOENT, errno.EINVAL)
        assert "after 2 attempts" in str(error)
    (size,) = store(**settings).sizes([NAME])
    assert isinstance(size, StorageError)
    assert size.errno != errno.ENOENT


@on_web_servers
def test_a_size_that_head_omits_comes_from_another_request(faulty: FaultyStore):
    faulty.proxy.faults = [unsized(times=FOR_EVER, method="HEAD")]
    store = faulty.store()
    assert store.size(NAME) == len(DATA)
    assert faulty.proxy.log[-1].method != "HEAD"
    assert store.exists(NAME)
    assert store.read(NAME) == DATA
    assert store.version(NAME).startswith(f"{len(DATA)}:")
    assert store.exists(NAME + "x") is False


@on_web_servers
def test_a_body_without_length_ends_with_the_connection(faulty: FaultyStore):
    faulty.proxy.faults = [unsized(times=FOR_EVER, method="GET", path="%.bin")]
    try:
        assert faulty.store(retries=0).ranges([SPAN]) == [PART]
    except StorageError as error:  # some drivers require the length
        assert "ength" in str(error)  # noqa: PT017


@on_web_servers
def test_an_invalid_status_line_is_retried(faulty: FaultyStore):
    faulty.proxy.faults = [garbage()]
    assert faulty.store().ranges([SPAN]) == [PART]
    faulty.proxy.faults = [garbage(times=FOR_EVER)]
    store = faulty.store(retries=1)
    error = failure(store, lambda: store.ranges([SPAN]))
    assert error.errno in (errno.EIO, errno.EPROTO)
    assert "after 2 attempts" in str(error)


@on_web_servers
def test_drivers_do_not_detect_a_flipped_bit(faulty: FaultyStore):
    # A late request of the previous test would use up a fault that occurs once.
    faulty.proxy.faults = [flip(MIDDLE, times=FOR_EVER)]
    [part] = faulty.store().ranges([SPAN])
    differing = np.frombuffer(part, np.uint8) != np.frombuffer(PART, np.uint8)
    assert differing.nonzero()[0].tolist() == [MIDDLE]


@on_every_server
def test_every_call_times_out_if_the_server_is_silent(faulty: FaultyStore):
    store = faulty.store(timeout=1.0, retries=0)
    faulty.proxy.faults = [stall(times=FOR_EVER)]
    calls: list[Callable[[], Any]] = [
        lambda: store.exists(NAME),
        lambda: store.size(NAME),
        lambda: store.version(NAME),
        lambda: store.read(NAME),
        lambda: store.read(NAME, len(DATA)),
        lambda: store.ranges([SPAN]),
        lambda: store.put(NAME, b"new"),
    ]
    if faulty.remote_dir.server.name != "http":
        calls.append(lambda: store.remove(NAME))
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(failure, store, call, 1.0) for call in calls]:
            assert future.result().errno in (errno.ETIMEDOUT, errno.EIO)


@on_web_servers
def test_every_call_is_retried_if_the_server_is_busy(faulty: FaultyStore):
    store = faulty.store()
    calls: list[Callable[[], bool]] = [
        lambda: store.exists(NAME),
        lambda: store.size(NAME) == len(DATA),
        lambda: store.read(NAME) == DATA,
        lambda: list(store.names("folder/")) == [(NAME, len(DATA))],
    ]
    if faulty.remote_dir.server.name != "http":
        calls.append(lambda: store.put(NAME, b"new") is None)
        calls.append(lambda: store.remove(NAME) is None)
    for call in calls:
        faulty.proxy.clear()
        faulty.proxy.faults = [status(503)]
        assert call()
        assert faulty.statuses().count(503) == 1
    if faulty.remote_dir.server.name != "http":
        assert not store.exists(NAME)


@on_every_server
def test_failures_among_many_requests_are_retried(faulty: FaultyStore):
    faulty.proxy.faults = [reset(MIDDLE // 2, times=3)]
    spans = [(NAME, offset, 60_000) for offset in range(0, 240_000, 10_000)]
    expected = [DATA[offset : offset + 60_000] for _, offset, _ in spans]
    assert faulty.store(timeout=60.0, retries=4).ranges(spans) == expected


@on_web_servers
def test_a_truncated_file_raises(faulty: FaultyStore):
    faulty.remote_dir.put(NAME, DATA[:150_000])
    store = faulty.store(retries=0)
    error = failure(store, lambda: store.ranges([(NAME, 200_000, 9)]))
    assert error.errno == errno.ERANGE or "0 of 9 bytes came" in str(error)
    error = failure(store, lambda: store.ranges([SPAN]))
    assert "149,000 of 250,000 bytes came" in str(error)
