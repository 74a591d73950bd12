"""A demonstration of npstream on the source files of Python's standard library.

Tested in tests/test_main.py.
"""

from __future__ import annotations

import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import npstream
from npstream._core.arguments import quantity
from npstream._core.typing import Sample
from npstream.tools.precompile import precompile_reads

T = TypeVar("T")

COLUMNS = {
    "path": "str",
    "package": "str",
    "text": "str",
    "tokens": "ndarray:uint16:512",
    "lines": "int32",
    "size": "int",
}
TOKENS = 512
"""Number of tokens in each sample."""

PADDING = 256
"""The token that pads short files. The other tokens are the first bytes of a file."""

BAR_WIDTH = 30


def demo(directory: str | None = None) -> None:
    """Write a dataset, open it, show typical operations, and measure their speed.

    Parameters
    ----------
    directory : str, optional
        Directory of the dataset; by default a temporary directory, which is removed at the end.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="npstream-demo-") as temporary:
        path = directory or temporary
        write_sources(path)
        with npstream.open(path) as dataset:
            show_array(dataset)
            compile_kernels()
            show_batch(dataset)
            show_ranks(dataset)
    print(f"\nthe demo took {time.perf_counter() - start:.1f} s")


def write_sources(directory: str) -> None:
    """Write the source files of Python's standard library as a dataset."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if "site-packages" not in file.parts]
    title("the source files of Python's standard library, written as MDS shards")
    start = time.perf_counter()
    samples = draw_progress(read_samples(root, files), len(files))
    npstream.write(directory, samples, columns=COLUMNS, shard_size="4MiB")
    nbytes = sum(file.stat().st_size for file in files)
    print(format_speed(len(files), nbytes, time.perf_counter() - start))


def read_samples(root: Path, files: list[Path]) -> Iterator[Sample]:
    """Yield one sample for each file."""
    for file in files:
        source = file.read_bytes()
        relative = file.relative_to(root)
        tokens = np.full(TOKENS, PADDING, np.uint16)
        tokens[: len(source)] = np.frombuffer(source[:TOKENS], np.uint8)
        yield {
            "path": str(relative),
            "package": relative.parts[0] if len(relative.parts) > 1 else "",
            "text": source.decode(errors="replace"),
            "tokens": tokens,
            "lines": source.count(b"\n"),
            "size": len(source),
        }


def show_array(ds: npstream.Dataset) -> None:
    """Show the results of indexing and of NumPy functions."""
    scope = {"np": np, "ds": ds}
    title("opened: only the index is read")
    run("ds", scope)
    title("an integer reads one sample; every other index is a lazy view")
    run("ds[0]['path'], ds[-1]['path']", scope)
    run("ds['tokens'][::2, :16]", scope)
    run("np.asarray(ds['tokens'][:2, :16])", scope)
    title("a boolean filter, and statistics of a column")
    run("long = ds[ds['lines'] > 2000]", scope)
    run("len(ds), len(long), long[0]['path']", scope)
    run("int(np.sum(ds['lines'])), float(np.mean(ds['lines'])), int(np.max(ds['lines']))", scope)
    run("np.sort(ds[ds['package'] == 'json']['lines'])", scope)


def compile_kernels() -> None:
    """Compile the kernels now, so that the measurements below exclude compilation."""
    title("kernels are compiled once on a machine, and loaded once in a process")
    start = time.perf_counter()
    precompile_reads()
    print(
        f"{time.perf_counter() - start:.1f} s; `python -m npstream precompile` compiles all of them"
    )


def show_batch(ds: npstream.Dataset) -> None:
    """Load a batch five times: only the first load maps the samples' pages."""
    title("a batch of 4,096 random samples: one array for each column")
    ids = np.random.default_rng(0).integers(0, len(ds), 4096)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        batch = ds[ids].load()
        seconds.append(time.perf_counter() - start)
    nbytes = int(batch["size"].sum())
    print(f"the first: {format_speed(batch.n, nbytes, seconds[0])}")
    print(f"the fastest of four more: {format_speed(batch.n, nbytes, min(seconds[1:]))}")
    run("batch['tokens'].shape, batch['text'].lengths[:4], batch['path'][0]", {"batch": batch})


def show_ranks(ds: npstream.Dataset) -> None:
    """Iterate over a shuffled epoch as two ranks, and count the occurrences of each sample."""
    title("a shuffled epoch on two ranks, batches of 64, last='short'")
    shuffled = ds.shuffle(0, block=None)
    times_seen = np.zeros(len(ds), np.int64)
    for rank in range(2):
        batches = shuffled.iter(rank, 2, batch_size=64, last="short")
        samples = nbytes = 0
        start = time.perf_counter()
        for batch in draw_progress(batches, len(batches)):
            np.add.at(times_seen, batch.ids, 1)
            samples += batch.n
            nbytes += int(batch["size"].sum())
        print(f"rank {rank}: {format_speed(samples, nbytes, time.perf_counter() - start)}")
    if (times_seen != 1).any():
        raise RuntimeError(f"a sample did not occur exactly once: {np.bincount(times_seen)}")
    print(f"together they read each of the {quantity(len(ds), 'sample')} exactly once")


def title(text: str) -> None:
    """Print the title of a section."""
    print(f"\n# {text}")


def run(code: str, scope: dict[str, Any]) -> None:
    """Print a line of Python, and run it as the interactive interpreter does."""
    print(f">>> {code}")
    exec(compile(code, "<demo>", "single"), scope)


def draw_progress(items: Iterable[T], total: int) -> Iterator[T]:
    """Yield items, and draw a progress bar of `BAR_WIDTH` characters."""
    print("[", end="")
    drawn = 0
    for number, item in enumerate(items, 1):
        width = number * BAR_WIDTH // total
        print("#" * (width - drawn), end="", flush=True)
        drawn = width
        yield item
    print("]", end=" ")


def format_speed(samples: int, nbytes: int, seconds: float) -> str:
    """Return the sizes, the duration and the throughput of an operation as text."""
    return (
        f"{quantity(samples, 'sample')} in {seconds:.3f} s, {samples / seconds:,.0f} samples/s, "
        f"{nbytes / seconds / 1e6:,.0f} MB/s"
    )
