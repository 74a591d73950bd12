"""Callbacks get an event for each open, fetch, wait and gather; their errors break no read."""

from __future__ import annotations

import logging
import os
import threading
import time

import numpy as np
import pytest
from fake_drivers import DATA
from traffic_datasets import SAMPLE_BYTES, open_numbers, serve_numbers

import npstream
from npstream.storage.remote import RemoteStore
from npstream.storage.traffic import events
from npstream.storage.traffic.events import Event


@pytest.fixture
def event_list():
    """Return the list of the events of the test."""
    recorded: list[Event] = []
    with npstream.on_event(recorded.append):
        yield recorded


def filter_kind(event_list: list[Event], kind: str) -> list[Event]:
    return [event for event in event_list if event.kind == kind]


def check_times(event_list: list[Event], start: float, stop: float) -> None:
    """Check that all events are between two times of `time.time`.

    The start of an event is computed from a duration on another clock, hence the tolerance.
    """
    for event in event_list:
        assert start - 0.001 <= event.start <= event.start + event.seconds <= stop + 0.001
        assert event.seconds >= 0


@pytest.mark.parametrize("name", ["http", "s3"])
def test_events_of_a_remote_read(servers, tmp_path, event_list, name):
    directory, proxy = serve_numbers(servers, name, tmp_path)
    event_list.clear()
    start = time.time()
    with open_numbers(directory, tmp_path) as ds:
        (open_event,) = filter_kind(event_list, "open")
        assert open_event.url.rstrip("/") == ds._source.remote.remote_store.root.rstrip("/")
        event_list.clear()
        proxy.clear()
        rows = np.arange(0, 20_000, 1000)
        np.testing.assert_array_equal(ds[rows]["value"].load()[:, 0], rows)
        check_times([open_event, *event_list], start, time.time())
        bodies = [request.nbytes for request in proxy.log if request.status == 206]
        fetches = filter_kind(event_list, "fetch")
        assert sorted(event.nbytes for event in fetches) == sorted(bodies)
        assert {event.url for event in fetches} <= {
            f"{open_event.url.rstrip('/')}/{ds._source.index.files(k).data.name}" for k in range(3)
        }
        (wait,), (gather,) = filter_kind(event_list, "wait"), filter_kind(event_list, "gather")
        assert gather.nbytes == len(rows) * SAMPLE_BYTES
        assert gather.start <= wait.start
        assert wait.seconds <= gather.seconds
        assert wait.seconds == pytest.approx(ds.stats.wait_seconds)
        event_list.clear()
        ds[rows]["value"].load()  # from memory
        assert filter_kind(event_list, "fetch") == []
        assert len(filter_kind(event_list, "gather")) == 1


def test_events_have_no_secrets(fake, event_list):
    store = RemoteStore("fake://user:sesame@host/a?token=sesame")
    assert store.ranges([("x", 0, 7)]) == [DATA[:7]]
    (event,) = event_list
    assert (event.kind, event.nbytes) == ("fetch", 7)
    assert "sesame" not in repr(event)


def test_local_reads_report_open_and_gather(tmp_path, event_list):
    npstream.write(tmp_path / "data", {"x": np.arange(1000), "s": ["ab"] * 1000})
    event_list.clear()
    with npstream.open(tmp_path / "data") as ds:
        ds[:10].load()
        for _ in ds.iter(0, 1, batch_size=500):
            pass
    assert [event.kind for event in event_list] == ["open", "gather", "gather", "gather"]
    sample_bytes = 8 + 2
    expected = [count * sample_bytes for count in (0, 10, 500, 500)]
    assert [event.nbytes for event in event_list] == expected
    assert {event.url for event in event_list} == {str(tmp_path / "data")}


def test_removed_callbacks_get_nothing(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(10)})
    first, second = [], []
    handle = npstream.on_event(first.append)
    with npstream.on_event(second.append) as other:
        npstream.open(tmp_path / "data").close()
        assert "registered" in repr(handle)
        handle.remove()
        handle.remove()
        npstream.open(tmp_path / "data").close()
    npstream.open(tmp_path / "data").close()
    assert (len(first), len(second)) == (1, 2)
    assert "removed" in repr(handle)
    assert "removed" in repr(other)
    assert not events.is_reporting()


def test_an_error_in_a_callback_breaks_no_read(tmp_path, caplog, event_list):
    npstream.write(tmp_path / "data", {"x": np.arange(10)})

    def fail(event: Event) -> None:
        raise KeyError(event.kind)

    with npstream.on_event(fail), npstream.open(tmp_path / "data") as ds:
        for _ in range(3):
            np.testing.assert_array_equal(ds["x"][:], np.arange(10))
            assert ds[:5].load()["x"].sum() == 10
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "of npstream.on_event raised KeyError: 'open'" in record.getMessage()
    assert len(filter_kind(event_list, "gather")) >= 3  # the other callback gets all events


def test_an_interruption_in_a_callback_is_raised(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(10)})

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with npstream.on_event(interrupt), pytest.raises(KeyboardInterrupt):
        npstream.open(tmp_path / "data")
    later_events = []
    with npstream.on_event(later_events.append):
        npstream.open(tmp_path / "data").close()
    assert len(later_events) == 1  # the thread reports again


def test_a_callback_may_read(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(10)})
    values = []
    with npstream.open(tmp_path / "data") as ds:

        def read(event: Event) -> None:
            values.append(ds[:3].load()["x"].sum())

        with npstream.on_event(read):
            ds[:5].load()
    assert values == [3]


class ThreadRecorder:
    """A callback that records the thread of each call."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self, event: Event) -> None:
        self.threads.append(threading.get_ident())


def test_threads_register_and_read_at_once(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(10)})
    failures = []
    with npstream.open(tmp_path / "data") as ds:

        def work() -> None:
            own = threading.get_ident()
            for _ in range(50):
                recorder = ThreadRecorder()
                with npstream.on_event(recorder):
                    ds[:5].load()
                if recorder.threads.count(own) != 1:
                    failures.append(recorder.threads)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert not events.is_reporting()


def test_a_forked_process_calls_its_copy(tmp_path, event_list):
    npstream.write(tmp_path / "data", {"x": np.arange(10)})
    event_list.clear()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            npstream.open(tmp_path / "data").close()
            status = 0 if len(event_list) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert event_list == []


def test_callbacks_are_callable():
    with pytest.raises(TypeError, match="callback='print': expected a function of one event"):
        npstream.on_event("print")
