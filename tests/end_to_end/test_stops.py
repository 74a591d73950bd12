"""Reads of a remote dataset stop on request, even while the server does not respond."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from stalling import Stalling
from started import started_threads

import npstream
from npstream.errors import StorageError

TIMEOUT = 120.0  # seconds; a read that has not stopped by then hangs
DEADLINE = 1000.0  # seconds of a request; far more than TIMEOUT
SAMPLES = 6000


@pytest.fixture
def ds(tmp_path, monkeypatch):
    """Return a dataset whose shards cannot be read while `Stalling.stalls` is set."""
    monkeypatch.setattr(Stalling, "stalls", True)
    monkeypatch.setattr(Stalling, "reached", threading.Event())
    monkeypatch.setattr(Stalling, "released", threading.Event())
    npstream.write(tmp_path / "data", columns(), shard_size="128KB")
    url, cache = f"stalling://{tmp_path / 'data'}", tmp_path / "cache"
    with npstream.open(url, cache=cache, timeout=DEADLINE) as ds:
        yield ds
    Stalling.released.set()


def columns():
    return {"x": np.arange(SAMPLES * 16).reshape(SAMPLES, 16), "id": np.arange(SAMPLES)}


def prefetch_threads():
    """Return the running prefetch threads."""
    return started_threads("npstream-ahead")


def assert_threads_end():
    for thread in prefetch_threads():
        thread.join(TIMEOUT)
    assert prefetch_threads() == []


READS = {
    "load": lambda ds: ds.load(),
    "few": lambda ds: ds[[1, 2000]].load(),
    "sample": lambda ds: ds[5],
    "iteration": lambda ds: list(ds),
    "batches": lambda ds: list(ds.iter(0, 1, batch_size=100, shuffle=True)),
    "prefetch": lambda ds: ds.prefetch(),
    "mean": lambda ds: ds["x"].mean(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_closing_from_another_thread_stops_a_read(ds, read):
    failed = []

    def reading():
        try:
            read(ds)
        except (StorageError, ValueError) as error:
            failed.append(error)

    reader = threading.Thread(target=reading, daemon=True)
    reader.start()
    assert Stalling.reached.wait(TIMEOUT)
    ds.close()
    reader.join(TIMEOUT)
    assert not reader.is_alive()
    (error,) = failed
    assert re.search("reading was stopped|the dataset is closed", str(error))
    assert_threads_end()
    with pytest.raises(ValueError, match="the dataset is closed"):
        ds[5]


class Left(Exception):
    pass


def iterate_and_leave(batches, how):
    """Leave an iteration after its second batch, while prefetches of other batches block."""
    for number, batch in enumerate(batches):
        assert len(batch["id"]) == 50
        if number == 0:
            continue
        assert Stalling.reached.wait(TIMEOUT)
        assert prefetch_threads()
        if how == "break":
            break
        raise Left


def test_a_loop_over_a_silent_store_yields_cached_batches_and_fails_in_time(ds, tmp_path):
    """Batches that are read together are read one by one after a failure, in the same deadline."""
    Stalling.stalls = False
    ds[:900].prefetch()
    Stalling.stalls = True
    deadline, url = 4.0, f"stalling://{tmp_path / 'data'}"
    with npstream.open(url, cache=tmp_path / "cache", timeout=deadline, retries=0) as impatient:
        firsts, start = [], time.monotonic()
        with pytest.raises(StorageError):
            firsts.extend(b["id"][0] for b in impatient.iter(0, 1, batch_size=50, threads=1))
        seconds = time.monotonic() - start
    assert firsts[:18] == list(range(0, 900, 50))  # and those of the same chunks
    assert seconds < 1.8 * deadline


@pytest.mark.parametrize("how", ["break", "exception"])
def test_leaving_an_iteration_stops_prefetching(ds, how):
    # The first batches are cached, so that only prefetches of later batches block.
    Stalling.stalls = False
    ds[:900].prefetch()
    Stalling.stalls = True
    with suppress(Left):
        iterate_and_leave(ds.iter(0, 1, batch_size=50), how)
    assert_threads_end()
    # Other reads continue.
    threading.Timer(0.1, Stalling.released.set).start()
    np.testing.assert_array_equal(ds["x"].load(), columns()["x"])


PROGRAM = """
import signal, sys
import npstream
from stalling import Stalling
url, cache, how = sys.argv[1:]
# A shell that starts the tests in the background makes them ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
ds = npstream.open(url, cache=cache, timeout=1000)
Stalling.stalls = True
class Reached:
    def set(self):
        print("reached", flush=True)
Stalling.reached = Reached()
batches = ds.iter(0, 1, batch_size=100)
match how:
    case "load":
        ds.load()
    case "prefetch":
        ds.prefetch()
    case "batches":
        for batch in batches:
            pass
    case "end":  # the main thread ends while other threads wait for reads
        import threading
        reader = threading.Thread(target=ds.load, daemon=True)
        reader.start()
        iterator = iter(batches)
        threading.Thread(target=next, args=(iterator,), daemon=True).start()
        sys.stdin.read(1)  # returns when the test closes the pipe
"""


@pytest.mark.parametrize("how", ["load", "prefetch", "batches", "end"])
def test_an_interrupted_or_ending_process_stops_reading(tmp_path, how):
    npstream.write(tmp_path / "data", columns(), shard_size="128KB")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"stalling://{tmp_path}/data", tmp_path / "cache", how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            assert process.stdout.readline().startswith("reached")
            time.sleep(0.3)  # lets the reader start to wait, but the test passes also if not
            if how == "end":
                process.stdin.close()
                process.stdin = None
            else:
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    if how != "end":
        assert "KeyboardInterrupt" in errors
    assert process.returncode == (0 if how == "end" else -signal.SIGINT)
