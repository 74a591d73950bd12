"""Print the costs that the design notes give as reasons for a choice.

python benchmarks/reports/costs.py [GROUP ...] [--rounds N]

Each row has the name of a page in docs/design. A cost is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "helpers")]

from servers import Servers  # noqa: E402

import npstream  # noqa: E402
from figures import format_seconds  # noqa: E402
from npstream._core import jit  # noqa: E402
from npstream._core.jit import copy, kernel  # noqa: E402
from npstream._core.typing import Int64  # noqa: E402
from npstream.cache import eviction  # noqa: E402
from npstream.formats import statistics as column_statistics  # noqa: E402
from npstream.mixture import patterns  # noqa: E402

MIB = 1 << 20
ROW_BYTES = 2048
CACHE_FILES = 20_000
DRAWS, LANES = 1 << 20, 64
REQUESTS = ((2 << 10, 1), (2 << 10, 64), (64 << 10, 1), (64 << 10, 64), (MIB, 32), (4 * MIB, 8))
"""Sizes of ranges in bytes, and how many are requested at once."""


@dataclass(frozen=True)
class Cost:
    """A row: the page, what costs, and a function that returns the cost of a round as text."""

    page: str
    title: str
    measure: Callable[[], float]
    unit: Callable[[float], str] = format_seconds


def seconds_of(work: Callable[[], Any], calls: int = 1) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def printed_number(program: str, environment: dict[str, str] | None = None) -> float:
    """Return the number that a program prints in a new Python."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def timed_program(setup: str, work: str) -> Callable[[], float]:
    """Return a function that returns the seconds of `work` after `setup`, in a new Python."""
    program = f"import time\n{setup}\nstart = time.perf_counter()\n{work}\n"
    return lambda: printed_number(f"{program}print(time.perf_counter() - start)")


@numba.njit(nogil=True)
def copy_slices(rows: Any, source: Any, target: Any) -> None:
    """Copy rows by assigning slices."""
    for k in range(rows.size):
        target[k] = source[rows[k]]


@kernel
def copy_by_memcpy(rows: Int64, source: int, target: int) -> None:
    """Copy rows with `memcpy`, from an address to an address."""
    for k in range(rows.size):
        copy(target + k * ROW_BYTES, source + rows[k] * ROW_BYTES, ROW_BYTES)


def row_copies(_: Path) -> Iterator[Cost]:
    """Yield the costs of copying a row of 2 KB that is in the processor's cache."""
    source = np.random.default_rng(0).integers(0, 256, (256, ROW_BYTES), np.uint8)
    rows, target = np.arange(256), np.empty_like(source)
    addresses = rows, source.ctypes.data, target.ctypes.data
    for name, work in {
        "the assignment of a slice": lambda: copy_slices(rows, source, target),
        "`memcpy`": lambda: copy_by_memcpy(*addresses),
    }.items():
        target[:] = 0
        work()
        assert np.array_equal(source, target)
        yield Cost(
            "kernels",
            f"copying a row of 2 KB with {name}",
            lambda work=work: seconds_of(work, 100) / rows.size,
        )


def imports(_: Path) -> Iterator[Cost]:
    """Yield the costs of importing packages and of their first calls."""
    yield Cost("kernels", "importing Numba", timed_program("import numpy", "import numba"))
    call = "from npstream.formats.statistics import sum_integers\nimport numpy, numba"
    work = "sum_integers(numpy.arange(9), numpy.empty(5, numpy.int64))"
    yield Cost("kernels", "the first call of a cached kernel", timed_program(call, work))
    s3 = "endpoint_url='http://127.0.0.1:9'"
    yield Cost(
        "remote",
        "importing s3fs and making its client",
        timed_program(
            "import asyncio, numpy, npstream, fsspec",
            f"import s3fs\nfs = s3fs.S3FileSystem(key='k', secret='s', {s3})\nfs.connect()",
        ),
    )
    yield Cost(
        "remote",
        "importing obstore and making its client",
        timed_program(
            "import asyncio, numpy, npstream",
            "import obstore.store\n"
            f"obstore.store.S3Store('b', {s3}, region='r', client_options={{'allow_http': True}})",
        ),
    )


def files(directory: Path) -> Iterator[Cost]:
    """Yield the costs of syncing a file of 4 MiB, and of counting the files of a cache."""
    path, body = directory / "synced", bytes(4 * MIB)

    def sync() -> float:
        with path.open("wb", buffering=0) as file:
            file.write(body)
            return seconds_of(lambda: os.fsync(file.fileno()))

    yield Cost("cache", "`fsync` of a new file of 4 MiB", sync)
    cache = directory / "cache"
    cache.mkdir()
    for number in range(CACHE_FILES):
        (cache / f"{number:032x}.shard").touch()
    assert eviction.count_files(str(cache))[0] == CACHE_FILES
    yield Cost(
        "cache",
        f"counting {CACHE_FILES:,} files",
        lambda: seconds_of(lambda: eviction.count_files(str(cache))),
    )


def draws(_: Path) -> Iterator[Cost]:
    """Yield the costs of the pattern of a mixture."""
    pattern = None
    for sources in (4, 1000):
        counts = np.full(sources, DRAWS // sources)
        pattern = patterns.make_pattern(counts, LANES, 5)  # compiles
        yield Cost(
            "mixtures",
            f"drawing a slot of a pattern of {sources:,} sources",
            lambda counts=counts: (
                seconds_of(lambda: patterns.make_pattern(counts, LANES, 5)) / counts.sum()
            ),
            lambda seconds: f"{seconds * 1e6:.2f} us",
        )
    places, results = np.arange(DRAWS), np.empty((2, DRAWS), np.int64)
    yield Cost(
        "mixtures",
        "looking up a unit",
        lambda: seconds_of(lambda: patterns.look_up_draws(places, pattern, *results)) / DRAWS,
        lambda seconds: f"{seconds * 1e6:.2f} us",
    )


def small_sums(_: Path) -> Iterator[Cost]:
    """Yield the speeds of the minimum, maximum and sum of small integers."""
    numbers = np.random.default_rng(0).integers(0, 200, 64 * MIB, np.uint8)
    results = np.empty(4, np.int64)

    def numpy_sums() -> None:
        numbers.min(), numbers.max(), numbers.sum()

    def kernel_sums() -> None:
        column_statistics.sum_small(numbers, 0, 0, 1, numbers.size, results)

    kernel_sums()
    assert results[2] == numbers.sum()
    for name, work in {"NumPy": numpy_sums, "the kernel": kernel_sums}.items():
        yield Cost(
            "sidecar",
            f"bounds and sum of uint8 with {name}",
            lambda work=work: numbers.nbytes / seconds_of(work),
            lambda speed: f"{speed / 1e9:.1f} GB/s",
        )


async def repeat(get: Callable[[], Coroutine[Any, Any, Any]], count: int, at_once: int) -> float:
    """Return the seconds of processor time of a request, with some requests in flight."""
    await get()
    start = time.process_time()
    for _ in range(0, count, at_once):
        await asyncio.gather(*(get() for _ in range(at_once)))
    return (time.process_time() - start) / (count // at_once * at_once)


def requests(directory: Path) -> Iterator[Cost]:
    """Yield the processor time of range requests to SeaweedFS, with s3fs and with obstore."""
    import obstore
    import s3fs
    from fsspec.asyn import sync
    from obstore.store import S3Store

    servers = Servers(directory)
    place = servers["s3"].directory_at("npstream/costs")
    options = place.storage_options
    npstream.write(place.url, {"x": np.zeros((32, MIB), np.uint8)}, shard_size="64MiB",
                   storage_options=options)  # fmt: skip
    bucket, _, folder = place.url.removeprefix("s3://").partition("/")
    (name,) = [
        entry["path"]
        for entry in obstore.list(make_store(S3Store, bucket, options), folder).collect()
        if entry["path"].endswith(".mds")
    ]

    fs = s3fs.S3FileSystem(**options)

    def by_s3fs(nbytes: int, at_once: int) -> float:
        def get() -> Coroutine[Any, Any, Any]:
            return fs._cat_file(f"{bucket}/{name}", start=0, end=nbytes)

        return sync(fs.loop, repeat, get, request_count(nbytes), at_once)

    def by_obstore(nbytes: int, at_once: int) -> float:
        store = make_store(S3Store, bucket, options)

        async def run() -> float:
            return await repeat(
                lambda: obstore.get_range_async(store, name, start=0, end=nbytes),
                request_count(nbytes),
                at_once,
            )

        return asyncio.run(run())

    for nbytes, at_once in REQUESTS:
        for package, measure in {"s3fs": by_s3fs, "obstore": by_obstore}.items():
            yield Cost(
                "remote",
                f"processor time of a range of {nbytes >> 10:,} KiB, {at_once} at once, {package}",
                lambda measure=measure, sizes=(nbytes, at_once): measure(*sizes),
            )
    servers.close()


def request_count(nbytes: int) -> int:
    """Return how many requests of a size take about a second."""
    return max(16, min(512, 256 * MIB // nbytes))


def make_store(kind: Any, bucket: str, options: dict[str, Any]) -> Any:
    """Return a store of obstore with the address and the keys of s3fs's options."""
    return kind(
        bucket,
        endpoint=options["endpoint_url"],
        access_key_id=options["key"],
        secret_access_key=options["secret"],
        region="us-east-1",
        client_options={"allow_http": True},
    )


GROUPS: dict[str, Callable[[Path], Iterator[Cost]]] = {
    "copies": row_copies,
    "imports": imports,
    "files": files,
    "draws": draws,
    "sums": small_sums,
    "requests": requests,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    jit.always_compile()
    print("| page | what | cost |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for name in options.groups or GROUPS:
            for cost in GROUPS[name](Path(directory)):
                cost.measure()  # not counted: it may compile, or read from the disk
                value = statistics.median(cost.measure() for _ in range(options.rounds))
                print(f"| {cost.page} | {cost.title} | {cost.unit(value)} |", flush=True)


if __name__ == "__main__":
    main()
