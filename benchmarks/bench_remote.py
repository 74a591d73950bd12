"""Reading from an S3 object store, served by SeaweedFS on this machine.

Figures named "cold" open a new cache. The test proxy adds latency to each request, and counts
requests and bytes.
"""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npstream
from data import Data
from figures import SIDES, Figure, Pair, figure, run_once
from npstream._core.arguments import size_text
from npstream.formats.chunks import CHUNK_BYTES
from npstream.shards import readahead as ahead
from npstream.storage.connection import max_requests
from npstream.storage.remote import RemoteStore
from remote_data import Remote, Span, remote

ROOT = Path(__file__).parents[1]

LATENCY = 0.030

SAMPLES = 32
"""Samples that are read one by one, each from a different chunk."""

BATCH = 256


def format_count(value: float) -> str:
    return f"{value:g}"


def format_nbytes(value: float) -> str:
    return size_text(round(value))


MEASURES = {"seconds": "", "requests": ": requests", "nbytes": ": bytes read"}


def measure_figure(
    measure: str, make: Callable[..., Pair], title: str, reference: str, delay: float | None = None,
    **target: Any,
) -> Figure:  # fmt: skip
    """Return the figure for one measure of some work, with or without latency."""
    title += MEASURES[measure]
    if delay:
        title += f", {delay * 1000:g} ms of latency"
    if measure != "seconds":
        # Only the proxy counts requests and bytes, and a delay of None would leave the proxy out.
        delay = 0.0
        target["format_value"] = {"requests": format_count, "nbytes": format_nbytes}[measure]
    make_figure = figure(title, reference, rounds=5, **target)
    return make_figure(lambda data: make(remote(data), delay, attrgetter(measure)))


def both_latencies(
    make: Callable[..., Pair], title: str, reference: str, **target: Any
) -> list[Figure]:
    """Return two figures: the time without latency and with latency."""
    return [
        measure_figure("seconds", make, title, reference, delay, **target)
        for delay in (None, LATENCY)
    ]


Select = Callable[[Any], float]
"""Function that returns one measure of a `Usage`."""


def value_pair(
    ours: Callable[[int], float], theirs: Callable[[int], float], calls: int = 1
) -> Pair:
    return Pair(ours, theirs, lambda left, right: None, calls=calls, returns_value=True)


# Samples


def read_samples(
    name: str, by_shard: bool = False, reads_offsets: bool = False
) -> Callable[..., Pair]:
    """Read samples one by one, each from a different chunk or a different shard.

    With `reads_offsets`, the reference reads the offsets of each sample first.
    """

    def prepare(store: Remote, delay: float | None, select: Select) -> Pair:
        local = store.local[name]
        filesystem, root = store.filesystem(name, delay)
        starts = chunk_starts(local, by_shard)
        calls = min(SAMPLES, len(starts) - 2)

        def pick(number: int) -> list[int]:
            # Seeds must not be negative, and the reference picks with negative numbers.
            generator = np.random.default_rng(number + (1 << 32))
            parts = generator.permutation(len(starts) - 1)[: calls + 1]
            return generator.integers(starts[parts], starts[parts + 1]).tolist()

        def ours(number: int) -> float:
            with store.directory() as cache, store.open(name, delay, cache) as dataset:
                first, *others = pick(number)
                dataset[first]  # connects
                with store.measure(delay) as usage:
                    read = [dataset[i] for i in others]
            np.testing.assert_equal(read, [local[i] for i in others])
            return select(usage)

        def reference(number: int) -> float:
            store.remote_dir(name, delay)  # sets the latency of the proxy
            # Samples other than npstream's, because the server may have cached these.
            ids = np.array(pick(-1 - number))
            first, *others = store.sample_ranges(name, ids)
            offsets = store.sample_ranges(name, ids[1:], offsets=True)
            get(filesystem, root, first)
            with store.measure(delay) as usage:
                for part, offset in zip(others, offsets, strict=True):
                    if reads_offsets:
                        get(filesystem, root, offset)
                    get(filesystem, root, part)
            return select(usage)

        return value_pair(ours, reference, calls)

    return prepare


def chunk_starts(local: npstream.Dataset, by_shard: bool) -> np.ndarray:
    """Return the first sample of each shard, or approximately of each chunk, and the end."""
    shards = local.shards
    if by_shard and len(shards) > 1:
        return np.append(shards["start"], len(local))
    chunks = max(int(shards["bytes"].sum()) // CHUNK_BYTES, 2)
    return np.arange(chunks + 1) * len(local) // chunks


def get(filesystem: Any, root: str, part: Span) -> bytes:
    return filesystem.cat_file(f"{root}/{part[0]}", start=part[1], end=part[2])


def read_100_samples(store: Remote, delay: float | None, select: Select) -> Pair:
    local, width = store.local["I"], max_requests()
    sample_count = min(100, len(local) // 4)
    filesystem, root = store.filesystem("I", delay, width)

    def pick(number: int) -> np.ndarray:
        return np.random.default_rng(number).permutation(len(local))[:sample_count]

    def ours(number: int) -> float:
        with store.directory() as cache, store.open("I", delay, cache) as dataset:
            dataset[0]  # connects
            with store.measure(delay) as usage:
                read = dataset[pick(number)].load()
        np.testing.assert_array_equal(read["label"], local["label"][pick(number)].load())
        return select(usage)

    def reference(number: int) -> float:
        store.remote_dir("I", delay)  # sets the latency of the proxy
        get(filesystem, root, store.sample_ranges("I", np.array([0]))[0])
        spans = store.sample_ranges("I", np.sort(pick(number)))
        with store.measure(delay) as usage:
            get_ranges(filesystem, root, coalesce_ranges(spans), width)
        return select(usage)

    return value_pair(ours, reference)


def coalesce_ranges(spans: list[Span]) -> list[Span]:
    """Merge ascending ranges that touch."""
    ranges = spans[:1]
    for name, begin, end in spans[1:]:
        if ranges[-1][0] == name and ranges[-1][2] >= begin:
            ranges[-1] = (name, ranges[-1][1], end)
        else:
            ranges.append((name, begin, end))
    return ranges


def get_ranges(filesystem: Any, root: str, spans: list[Span], width: int) -> list[bytes]:
    """Read byte ranges by s3fs, at most `width` at once."""

    def read(part: Span) -> Awaitable[bytes]:
        return filesystem._cat_file(f"{root}/{part[0]}", start=part[1], end=part[2])

    return gather_in_loop(read, spans, width)


def gather_in_loop(
    read: Callable[[Span], Awaitable[Any]], spans: list[Span], width: int
) -> list[bytes]:
    """Read byte ranges in fsspec's event loop, at most `width` at once."""
    from fsspec.asyn import get_loop, sync

    async def run() -> list[bytes]:
        slots = asyncio.Semaphore(width)

        async def one(part: Span) -> bytes:
            async with slots:
                return bytes(await read(part))

        return await asyncio.gather(*map(one, spans))

    return sync(get_loop(), run)


def read_planes(store: Remote, delay: float | None, select: Select) -> Pair:
    """Read one plane of every tenth volume."""
    local, width = store.local["V"], max_requests()
    filesystem, root = store.filesystem("V", delay, width)
    plane = local["volume"][0, 0].nbytes

    def pick(number: int) -> slice:
        return slice(number % 10, None, 10)

    def ours(number: int) -> float:
        with store.directory() as cache, store.open("V", delay, cache) as dataset:
            dataset[len(dataset) - 1]  # connects
            with store.measure(delay) as usage:
                read = dataset["volume"][pick(number), 0].load()
        np.testing.assert_array_equal(read, local["volume"][pick(number), 0].load())
        return select(usage)

    def reference(number: int) -> float:
        store.remote_dir("V", delay)  # sets the latency of the proxy
        get(filesystem, root, store.sample_ranges("V", np.array([len(local) - 1]))[0])
        samples = store.sample_ranges("V", np.arange(len(local))[pick(number)])
        spans = [(name, begin, begin + plane) for name, begin, _ in samples]
        with store.measure(delay) as usage:
            get_ranges(filesystem, root, spans, width)
        return select(usage)

    return value_pair(ours, reference)


# Ranges


def cpu_time(read: Callable[[list[Span]], list[bytes]]) -> Callable[[list[Span]], float]:
    """Return a function that returns the CPU time of reading byte ranges."""

    def measure(spans: list[Span]) -> float:
        start = time.process_time()
        parts = read(spans)
        elapsed = time.process_time() - start
        assert [len(part) for part in parts] == [end - begin for _, begin, end in spans]
        return elapsed

    return measure


def pair_of_readers(store: Remote, ours: Any, theirs: Any) -> Pair:
    """Compare two functions that read random samples of T, with one request for each sample."""
    sample_count = min(500, len(store.local["T"]))

    def pick(number: int) -> list[Span]:
        ids = np.random.default_rng(number).permutation(len(store.local["T"]))
        return store.sample_ranges("T", ids[:sample_count])

    sides = cpu_time(ours), cpu_time(theirs)
    for side in sides:
        side(pick(0))  # connects
    return value_pair(
        lambda number: sides[0](pick(number)),
        lambda number: sides[1](pick(number)),
        sample_count,
    )


def drivers(width: int) -> Figure:
    """Compare obstore with s3fs, with `width` requests at once."""

    def prepare(data: Data) -> Pair:
        obstore = pytest.importorskip("obstore", reason="python -m pip install -e '.[fast]'")
        store = remote(data)
        filesystem, root = store.filesystem("T", None, width)
        options = store.remote_dir("T").storage_options
        bucket, _, folder = root.partition("/")
        fast = obstore.store.S3Store(
            bucket,
            endpoint=options["endpoint_url"],
            access_key_id=options["key"],
            secret_access_key=options["secret"],
            client_options={"allow_http": True},
        )

        def read(part: Span) -> Awaitable[Any]:
            name, begin, end = part
            return obstore.get_range_async(fast, f"{folder}/{name}", start=begin, end=end)

        return pair_of_readers(
            store,
            lambda spans: gather_in_loop(read, spans, width),
            lambda spans: get_ranges(filesystem, root, spans, width),
        )

    title = f"`obstore.get_range_async`, 2 KB, {width} at once: CPU time of a request"
    return figure(title, "`s3fs._cat_file`", factor=0.5, rounds=5)(prepare)


def prepare_stores(data: Data) -> Pair:
    """Compare a store that reads ranges by obstore with one that uses s3fs."""
    pytest.importorskip("obstore", reason="python -m pip install -e '.[fast]'")
    store = remote(data)
    remote_dir = store.remote_dir("T")

    def reader(enabled: str) -> Callable[[list[Span]], list[bytes]]:
        remote_store = RemoteStore(remote_dir.url, remote_dir.storage_options)
        before = os.environ.get("NPSTREAM_OBSTORE")
        os.environ["NPSTREAM_OBSTORE"] = enabled
        try:
            remote_store.exists("index.json")  # connects
        finally:
            del os.environ["NPSTREAM_OBSTORE"]
            os.environ.update({} if before is None else {"NPSTREAM_OBSTORE": before})
        return lambda spans: remote_store.ranges(
            (name, begin, end - begin) for name, begin, end in spans
        )

    return pair_of_readers(store, reader("1"), reader("0"))


# Epochs


def epoch(store: Remote, delay: float | None, select: Select) -> Pair:
    expected = len(store.local["T"])

    def ours(number: int) -> float:
        first, read = 0.0, 0
        with (
            store.directory() as cache,
            store.open("T", delay, cache) as dataset,
            store.measure(delay) as usage,
        ):
            start = time.perf_counter()
            for batch in dataset.iter(0, 1, batch_size=BATCH, last="short"):
                first = first or time.perf_counter() - start
                read += batch.n
        assert read == expected
        assert first < usage.seconds / 2 or expected < 10 * BATCH, (
            "no batch arrived before the downloads ended"
        )
        return select(usage)

    def reference(number: int) -> float:
        names = [path.name for path in store.paths["T"].glob("*.mds")]
        with store.directory() as target:
            filesystem, root = store.filesystem("T", delay)
            filesystem.info(f"{root}/index.json")  # connects
            with store.measure(delay) as usage, ThreadPoolExecutor(8) as pool:
                for name in names:
                    pool.submit(filesystem.get_file, f"{root}/{name}", str(target / name))
            assert all(
                (target / name).stat().st_size == (store.paths["T"] / name).stat().st_size
                for name in names
            )
        return select(usage)

    return value_pair(ours, reference)


def open_and_shuffle(store: Remote, delay: float | None, select: Select) -> Pair:
    width = max_requests()
    ids = np.random.default_rng(0).permutation(len(store.local["T"]))[:BATCH]

    def ours(number: int) -> float:
        with store.directory() as cache:
            with store.measure(delay) as usage:
                dataset = store.open("T", delay, cache)
                batches = iter(dataset.iter(0, 1, batch_size=BATCH, shuffle=True, seed=number))
                batch = next(batches)
            batches.close()
            dataset.close()
        np.testing.assert_array_equal(batch["id"], batch.ids)
        return select(usage)

    def reference(number: int) -> float:
        spans = store.sample_ranges("T", np.sort(ids))
        with store.measure(delay) as usage:
            filesystem, root = store.filesystem("T", delay, width)
            filesystem.info(f"{root}/index.json")
            # As many requests as for an index and a side-car; a part of the files is enough.
            for name in ("index.json", "index.msgpack"):
                get_ranges(filesystem, root, [(name, 0, 1000)], 1)
            get_ranges(filesystem, root, spans, width)
        return select(usage)

    return value_pair(ours, reference)


@figure("warm cached epoch of T, shuffled batches of 256", "the same, local", factor=1.1, rounds=15)
def warm_epoch(data: Data) -> Pair:
    store = remote(data)
    datasets = store.open("T", None, store.new_directory()), store.local["T"]
    datasets[0].load()
    sides = [dataset.iter(0, 1, batch_size=BATCH, shuffle=True) for dataset in datasets]

    def read(batches: Any) -> int:
        return sum(int(batch["id"].sum()) for batch in batches)

    return Pair(
        lambda number: read(sides[0]), lambda number: read(sides[1]), np.testing.assert_equal
    )


# Processes

READ = """
import sys, threading
import npstream
from npstream.shards import readahead as ahead
url, options, cache, local, shuffle, window = eval(sys.argv[1])
ahead.WINDOW_BYTES = window

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) << 10

def watch():
    while not is_done.wait(0.002):
        peak[0] = max(peak[0], anonymous())

dataset = npstream.open(url, storage_options=options, cache=cache)
for batch in npstream.open(local).iter(0, 1, batch_size=256, shuffle=shuffle):
    batch["id"]  # loads code and starts threads, whose memory is not measured
dataset[0]
is_done, peak, before = threading.Event(), [0], anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
for batch in dataset.iter(0, 1, batch_size=256, shuffle=shuffle):
    batch["id"]
is_done.set()
watcher.join()
print(max(peak[0] - before, 0))
"""


def read_in_processes(store: Remote, number: int, shuffle: bool, window: int) -> list[int]:
    """Read T in `number` processes that share a new cache.

    Return the growth of the memory of each process in bytes. `window` is the bytes to read ahead.
    """
    remote_dir = store.remote_dir("T", 0.0)
    with store.directory() as cache:
        paths = str(cache), str(store.paths["T"])
        arguments = (remote_dir.url, remote_dir.storage_options, *paths, shuffle, window)
        command = [sys.executable, "-c", READ, repr(arguments)]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(number)
        ]
        growths = [int(process.communicate()[0]) for process in processes]
    assert not any(process.returncode for process in processes)
    return growths


@figure(
    "2 processes, one cache, one shuffled epoch of T: chunks fetched",
    "1 process",
    format_value=format_count,
    rounds=3,
)
def shared_cache(data: Data) -> Pair:
    store = remote(data)

    chunks = store.chunk_ranges("T")

    def count_fetches(processes: int) -> float:
        before = len(store.proxy.log)
        read_in_processes(store, processes, True, ahead.WINDOW_BYTES)
        fetches = Counter(
            chunk
            for file, begin, end in store.requested_ranges(store.proxy.log[before:])
            for chunk in chunks
            if chunk[0] == file and begin <= chunk[1] and chunk[2] <= end
        )
        assert set(fetches) == set(chunks)
        return fetches.total()

    return value_pair(lambda number: count_fetches(2), lambda number: count_fetches(1))


def memory_figure(window: int) -> Figure:
    def prepare(data: Data) -> Pair:
        store = remote(data)
        return value_pair(
            lambda number: read_in_processes(store, 1, False, window)[0],
            lambda number: float(at_once),
        )

    # The factor of 2.5 allows for the parts of a response and their concatenation.
    at_once = min(ahead.MAX_THREADS * ahead.GROUP_BYTES, window)
    return figure(
        "memory at its peak, the cache's pages apart, of an epoch of T that reads "
        f"{size_text(window)} ahead",
        "what it fetches at once",
        format_value=format_nbytes,
        factor=2.5,
        rounds=5,
    )(prepare)


@figure(
    "writing T from arrays to a store",
    "`s3fs.put_file` of the same finished files, 8 at a time",
    factor=1.2,
    rounds=5,
)
def write_arrays(data: Data) -> Pair:
    store, arrays = remote(data), data.token_arrays()
    files = [path for path in store.paths["T"].rglob("*") if path.is_file()]

    def target(number: int, side: str) -> str:
        return f"written-{os.getpid()}-{number}-{side}"

    def ours(number: int) -> float:
        remote_dir = store.remote_dir(target(number, "ours"))
        with store.measure(None) as usage:
            report = npstream.write(
                remote_dir.url, arrays, storage_options=remote_dir.storage_options
            )
        assert report.samples == data.tokens
        remove(number, "ours")
        return usage.seconds

    def reference(number: int) -> float:
        name = target(number, "reference")
        filesystem, root = store.filesystem(name, None)
        filesystem.pipe_file(f"{root}/connected", b"")
        with store.measure(None) as usage, ThreadPoolExecutor(8) as pool:
            puts = [
                pool.submit(
                    filesystem.put_file, str(path), f"{root}/{path.relative_to(store.paths['T'])}"
                )
                for path in files
            ]
            for put in puts:
                put.result()
        remove(number, "reference")
        return usage.seconds

    def remove(number: int, side: str) -> None:
        filesystem, root = store.filesystem(target(number, side), None)
        filesystem.rm(root, recursive=True)

    return value_pair(ours, reference)


ONE_GET = "one ranged GET of those bytes"
TWO_GETS = "two ranged GETs, of the offsets and of those bytes"
FIRST_OF_SHARD = "cold `ds[i]` on I, the first of its shard"
MERGED = "exact merged ranges by hand, as many at once"
FILES = "`s3fs.get_file` of all shards, 8 at a time"
BY_HAND = f"3 requests in turn, then {BATCH} ranged GETs by hand, as many at once"
START = f"open, and the first shuffled batch of {BATCH} of T, s3fs imported"

FIGURES = [
    *both_latencies(read_samples("T"), "cold `ds[i]` on T", ONE_GET, factor=1.3),
    measure_figure("requests", read_samples("T"), "cold `ds[i]` on T", ONE_GET),
    measure_figure(
        "nbytes", read_samples("T"), "cold `ds[i]` on T", ONE_GET, factor=math.inf, limit=1 << 16
    ),
    *both_latencies(read_samples("I"), "cold `ds[i]` on I", ONE_GET, factor=2.3),
    measure_figure("requests", read_samples("I"), "cold `ds[i]` on I", ONE_GET, factor=2),
    measure_figure(
        "nbytes", read_samples("I"), "cold `ds[i]` on I", ONE_GET, factor=math.inf, limit=1 << 16
    ),
    *both_latencies(read_samples("I", True), FIRST_OF_SHARD, ONE_GET, factor=2.3),
    measure_figure("seconds", read_samples("I", True, True), FIRST_OF_SHARD, TWO_GETS, factor=1.3),
    measure_figure("requests", read_samples("I", True), FIRST_OF_SHARD, ONE_GET, factor=2),
    measure_figure(
        "nbytes", read_samples("I", True), FIRST_OF_SHARD, ONE_GET, factor=math.inf, limit=1 << 16
    ),
    *both_latencies(read_100_samples, "cold `ds[100 random].load()` on I", MERGED, factor=1.5),
    measure_figure(
        "nbytes", read_100_samples, "cold `ds[100 random].load()` on I", MERGED, factor=1.3
    ),
    *both_latencies(read_planes, 'cold `ds["volume"][::10, 0].load()` on V', MERGED, factor=1.5),
    measure_figure("nbytes", read_planes, 'cold `ds["volume"][::10, 0].load()` on V', MERGED),
    *both_latencies(epoch, "cold sequential epoch of T, batches of 256", FILES, factor=1.1),
    measure_figure("seconds", open_and_shuffle, START, BY_HAND, LATENCY, factor=1.3),
    measure_figure("nbytes", open_and_shuffle, START, BY_HAND, factor=math.inf, limit=1 << 24),
    drivers(1),
    drivers(64),
    figure(
        "ranges of a store, 2 KB, by obstore: CPU time of a request",
        "the same by s3fs",
        factor=0.5,
        rounds=5,
    )(prepare_stores),
    write_arrays,
    warm_epoch,
    shared_cache,
    memory_figure(ahead.WINDOW_BYTES),
    memory_figure(ahead.WINDOW_BYTES // 8),
]


@pytest.fixture(scope="module")
def store(data: Data) -> Any:
    return remote(data)


@pytest.mark.parametrize(
    "figure", FIGURES, ids=lambda figure: f"{figure.title}, {figure.reference}"
)
def test_remote(figure: Figure, store: Remote) -> None:
    pair = figure.prepare(store.data)
    ours, theirs = (run_once(pair, side, 0) for side in SIDES)
    assert min(ours, theirs) >= 0
    # On small data, only numbers of requests are the same in each run.
    if figure.format_value is format_count:
        assert ours <= figure.factor * theirs
