"""Cold reads, large indexes and writing."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npstream
from data import RECORD, TOKENS, Data, sync
from figures import SIDES, Figure, Pair, compare_and_time, figure

ROW_BYTES = 2 * TOKENS


def cold_rows(data: Data, threads: int) -> Pair:
    flat, dataset = data.cold_file(), data.cold_dataset()
    rows = flat.stat().st_size // ROW_BYTES
    batches, batch = 4, min(1000, rows // 16)
    count = batches * batch
    # Half of the bytes is a safe minimum: a row can be drawn twice, and two rows can share a page.
    # The small file of a test may be on tmpfs, whose pages cannot be dropped.
    min_bytes = count * ROW_BYTES // 2 if data.cold_bytes >= 1 << 30 else 0

    def pick(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(0, rows, count)

    def ours(number: int) -> float:
        drop_pages(*dataset.glob("*.mds"))
        with npstream.open(dataset) as opened, timed_disk_reads(min_bytes) as seconds:
            for batch_rows in pick(number).reshape(batches, batch):
                opened["tokens"][batch_rows].load()
        return seconds()

    def reference(number: int) -> float:
        drop_pages(flat)
        descriptor = os.open(flat, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        with timed_disk_reads(min_bytes) as seconds, ThreadPoolExecutor(threads) as pool:
            for part in np.array_split(pick(number), threads):
                pool.submit(read, descriptor, part.tolist())
        os.close(descriptor)
        return seconds()

    def read(descriptor: int, rows: list[int]) -> None:
        for row in rows:
            os.pread(descriptor, ROW_BYTES, row * ROW_BYTES)

    return Pair(ours, reference, lambda left, right: None, calls=count, returns_value=True)


def drop_pages(*files: Path) -> None:
    """Drop files from the page cache; no process may have them mapped."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def timed_disk_reads(min_bytes: int) -> Iterator[Callable[[], float]]:
    """Time a block, and assert that it read at least `min_bytes` from the disk."""
    before, start = bytes_from_disk(), time.perf_counter()
    elapsed = []
    yield lambda: elapsed[0]
    elapsed.append(time.perf_counter() - start)
    assert bytes_from_disk() - before >= min_bytes, "the page cache was not cold"


def bytes_from_disk() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def open_shards(position: int) -> Callable[[Data], Pair]:
    """Return a figure's function for an index of ``data.shards[position]`` shards."""

    def prepare(data: Data) -> Pair:
        path = data.index_only(data.shards[position])

        def ours(number: int) -> int:
            with npstream.open(path) as dataset:
                return len(dataset)

        def reference(number: int) -> int:
            with (path / "index.json").open() as file:
                return sum(shard["samples"] for shard in json.load(file)["shards"])

        def compare(left: int, right: int) -> None:
            assert left == right

        return Pair(ours, reference, compare)

    prepare.__name__ = f"open_shards_{position}"
    return prepare


open_10_000_shards = figure("opening 10,000 shards", "`json.load` of the same file", factor=2)(
    open_shards(0)
)
open_100_000_shards = figure("opening 100,000 shards", "`json.load` of the same file", factor=2)(
    open_shards(1)
)


@figure(
    "writing T from arrays",
    "`ndarray.tofile` of the same bytes, both synced",
    factor=1.3,
    rounds=5,
)
def write_arrays(data: Data) -> Pair:
    arrays = data.token_arrays()
    records = np.array(data.records())
    target = data.directory / f"written-{os.getpid()}"

    def ours(number: int) -> float:
        shutil.rmtree(target, ignore_errors=True)
        start = time.perf_counter()
        npstream.write(target, arrays)
        sync(target)
        elapsed = time.perf_counter() - start
        assert np.array_equal(npstream.open(target)["id"][-1], arrays["id"][-1])
        shutil.rmtree(target)
        return elapsed

    def reference(number: int) -> float:
        start = time.perf_counter()
        with target.open("wb") as file:
            records.tofile(file)
            os.fsync(file.fileno())
        elapsed = time.perf_counter() - start
        assert target.stat().st_size == RECORD.itemsize * len(records)
        target.unlink()
        return elapsed

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


@figure(
    "writing S from an Arrow table",
    "`ndarray.tofile` of the buffers of its columns, both synced",
    factor=4,
    rounds=7,
)
def write_arrow_table(data: Data) -> Pair:
    table = data.small_table()
    buffers = [
        np.frombuffer(buffer, np.uint8)
        for column in table.columns
        for buffer in column.chunk(0).buffers()
        if buffer is not None
    ]
    target = data.directory / f"written-{os.getpid()}"

    def ours(number: int) -> float:
        shutil.rmtree(target, ignore_errors=True)
        start = time.perf_counter()
        npstream.write(target, table)
        sync(target)
        elapsed = time.perf_counter() - start
        assert npstream.open(target)["text"][-1] == table["text"][-1].as_py()
        shutil.rmtree(target)
        return elapsed

    def reference(number: int) -> float:
        start = time.perf_counter()
        with target.open("wb") as file:
            for buffer in buffers:
                buffer.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        elapsed = time.perf_counter() - start
        target.unlink()
        return elapsed

    return Pair(ours, reference, lambda left, right: None, returns_value=True)


COLD = "a cold random row (page cache dropped), batches of 1,000"


@figure(COLD, "a loop of `pread` in one thread", factor=0.5)
def cold_one_thread(data: Data) -> Pair:
    return cold_rows(data, threads=1)


@figure(COLD, "`pread` in 32 threads: all that the disk gives", factor=math.inf)
def cold_32_threads(data: Data) -> Pair:
    return cold_rows(data, threads=32)


# Only Linux has /proc/self/io, and macOS and Windows have no posix_fadvise.
COLD_FIGURES = [cold_one_thread, cold_32_threads]
WARM_FIGURES = [open_10_000_shards, open_100_000_shards, write_arrays, write_arrow_table]
FIGURES = [*COLD_FIGURES, *WARM_FIGURES]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "figure",
    FIGURES if sys.platform == "linux" else WARM_FIGURES,
    ids=lambda figure: figure.prepare.__name__,
)
def test_disk(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)
