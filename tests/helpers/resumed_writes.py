"""Writes of every kind of data, and helpers that kill a write at a given step and resume it."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from children import fork_child

import npstream
from npstream.storage.remote import RemoteStore
from npstream.writing.inputs.parts import Part, PartedInput

SAMPLES = 60


def sample(number):
    return {"x": number, "text": "t" * (number % 7), "y": np.arange(number % 3 + 1, dtype="u1")}


def samples(count=SAMPLES):
    return (sample(number) for number in range(count))


def bad_samples():
    """Return samples; every fifth one cannot be encoded."""
    return ({**sample(k), "x": "bad"} if k % 5 == 3 else sample(k) for k in range(SAMPLES))


def arrays():
    return {"x": np.arange(SAMPLES), "y": np.arange(SAMPLES * 3, dtype="f4").reshape(-1, 3)}


def columns(start=0, stop=SAMPLES):
    numbers = np.arange(start, stop)
    return {"x": numbers, "text": ["t" * (k % 7) for k in numbers.tolist()]}


def frame(missing):
    """Return a frame without the values of column x in rows k for which ``k % 6 == missing``."""
    numbers = [None if k % 6 == missing else k for k in range(SAMPLES)]
    return pd.DataFrame({"x": pd.array(numbers, "Int64"), "text": columns()["text"]})


def reader():
    table = pa.table({name: pa.array(values) for name, values in columns().items()})
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(7))


def parts(content):
    bounds = [(0, 4), (4, 4), (4, 31), (31, 33), (33, SAMPLES)]
    return PartedInput(
        Part(f"part {k}", lambda start=start, stop=stop: content(start, stop))
        for k, (start, stop) in enumerate(bounds)
    )


def batches():
    return (npstream.Batch(columns(k, k + 9)) for k in range(0, 54, 9))


@functools.cache
def dataset():
    """Return a view of a dataset, which stays open."""
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    npstream.write(directory.name, samples(), shard_size=900)
    return npstream.open(directory.name)[::-1]


def repeat(number):
    """Return 0 to 11 samples for a number."""
    return [{"x": number, "text": "t" * k} for k in range(number % 12)]


def repeat_bad(number):
    """Return samples like `repeat`, some of which cannot be encoded."""
    return [{"x": "bad" if k % 4 == 1 else number, "text": "t" * k} for k in range(number % 12)]


SKIP = {"on_error": "skip", "rejects": True, "columns": {"x": "int64", "text": "str"}}

CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "samples": (samples, {}),
    "compressed samples": (samples, {"compression": "zstd", "hashes": ["sha1", "xxh64"]}),
    "samples, encoded by workers": (samples, {"workers": 2}),
    "tuples": (
        lambda: ((k, "t" * (k % 7)) for k in range(SAMPLES)),
        {"columns": {"text": "int", "x": "str"}, "sidecar": False},
    ),
    "bad samples": (bad_samples, {"on_error": "skip", "rejects": True, "max_errors": 99}),
    "bad samples, encoded by workers": (
        bad_samples,
        {"on_error": "skip", "rejects": True, "workers": 2},
    ),
    "arrays": (arrays, {}),
    "compressed arrays": (arrays, {"compression": "gz"}),
    "arrays in shards of 7": (arrays, {"shard_samples": 7, "shard_size": None}),
    "columns": (columns, {}),
    "a filled frame": (lambda: frame(2), {"fill": {"x": -1}}),
    "a frame with missing values": (lambda: frame(2), SKIP),
    # No k has k % 6 == 7, so no values are missing.
    "a frame through map": (lambda: frame(7), {"map": lambda row: [row] * (row["x"] % 4)}),
    "a stream": (reader, {}),
    "batches": (batches, {}),
    "a view of a dataset": (dataset, {}),
    "map": (lambda: range(SAMPLES // 2), {"map": repeat}),
    "map in workers": (lambda: range(SAMPLES // 2), {"map": repeat, "workers": 2}),
    "map, and bad samples": (lambda: range(SAMPLES // 2), {"map": repeat_bad, **SKIP}),
    "map in workers, and bad samples": (
        lambda: range(SAMPLES // 2),
        {"map": repeat_bad, "workers": 2, **SKIP},
    ),
    "parts of samples": (lambda: parts(lambda a, b: map(sample, range(a, b))), {}),
    "parts of tables": (lambda: parts(columns), {}),
    "parts through map": (lambda: parts(range), {"map": repeat}),
    "parts through map in workers": (lambda: parts(range), {"map": repeat, "workers": 2}),
    "lines of JSON": (
        lambda: ({"x": k, "text": "t" * (k % 7)} for k in range(SAMPLES)),
        {"format": "jsonl"},
    ),
    "compressed CSV": (
        columns,
        {"format": "csv", "compression": "zstd", "shard_size": 80},
    ),
}
"""Cases of writes: a function that makes the data, and the settings."""


def write_case(case, url, rejects, *, resume, options=None, **settings):
    """Write the data of a case, and return the report; `rejects` is a path for its rejects."""
    make_data, case_settings = CASES[case]
    case_settings = {"shard_size": 400, **case_settings}
    if case_settings.get("rejects"):
        case_settings["rejects"] = rejects
    data = make_data()
    return npstream.write(
        url, data, **{**case_settings, **settings}, resume=resume, storage_options=options
    )


def local_files(directory):
    """Return the content of each file below a directory by its path."""
    top = Path(directory)
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def facts(report):
    """Return the parts of a report that do not depend on the place and time of the write."""
    return (report.columns, report.samples, report.shards, report.raw_bytes, report.rejected)


SYSTEM_CALLS = ("fsync", "link", "pwrite", "unlink", "mkdir", "rmdir", "ftruncate", "truncate")

STORE_CALLS = ("put", "create", "remove_all", "exists", "names", "ranges", "read")


@contextmanager
def watch_steps(steps, owner=os, names=SYSTEM_CALLS):
    """Call `steps` before and after each call of functions of `owner` in this process."""
    process = os.getpid()
    originals = {name: getattr(owner, name) for name in names}

    def wrap(name):
        def call(*args, **kwargs):
            if os.getpid() == process:
                steps()
            result = originals[name](*args, **kwargs)
            if os.getpid() == process:
                steps()
            return result

        return call

    for name in names:
        setattr(owner, name, wrap(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def count_steps(work, **counted_calls):
    """Return the number of steps that `watch_steps` counts during `work`."""
    steps = []
    with watch_steps(lambda: steps.append(None), **counted_calls):
        work()
    return len(steps)


def kill_at_step(step, work, **counted_calls):
    """Do some work in a process that is killed at a step; return True if it was killed."""
    lock, remaining = threading.Lock(), [step]

    def die():
        with lock:
            remaining[0] -= 1
            if not remaining[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    def child():
        with watch_steps(die, **counted_calls):
            work()

    status = os.waitpid(fork_child(child), 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def store_steps():
    """Return the arguments of `watch_steps` for the calls of a remote store."""
    return {"owner": RemoteStore, "names": STORE_CALLS}
