r"""Measure cold starts of npstream, Lance, Streaming and obstore by hand on T and I.

The data are on an S3 server of the tests. Each measurement is a process of its own with an empty
cache. The sides alternate, and a table shows the medians. Lance and Streaming are
installed in other environments, whose Pythons are arguments::

    python benchmarks/reports/cold.py --data ~/data --rounds 9 \
        --lance ~/lance/bin/python --streaming ~/streaming/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]

SAMPLES = 100
ROWS = 8192

TOUCHED_BYTES = 1 << 30
"""Memory that a process uses and frees before the CPU time of an epoch is measured.

A virtual machine may give free pages back to its host. To use such a page again takes many times
the time of the copy into it, and more or fewer pages are concerned in each run.
"""

NPSTREAM = """
import json, sys, time
settings = json.load(sys.stdin)
start = time.perf_counter()
import numpy as np
import npstream
def open_dataset():
    return npstream.open(
        settings["url"], columns=settings["columns"], storage_options=settings["options"],
        cache=settings["cache"],
    )
if settings["imported"]:  # a small dataset imports all code before the time starts
    npstream.write("memory://imports", {"x": np.arange(9)})
    small = npstream.open("memory://imports", cache=settings["cache"] + "-imports")
    small[[1, 2]].load()
    for _ in small.iter(0, 1, batch_size=3, last="short"):
        pass
    import obstore.store
    if settings["work"] == "epoch":
        npstream.precompile()
        np.ones(settings["touched_bytes"], np.uint8)
    start = time.perf_counter()
cpu = time.process_time()
dataset = open_dataset()
if settings["work"] == "epoch":
    count = sum(batch.n for batch in dataset.iter(0, 1, batch_size=256, last="short"))
    assert count == len(dataset)
elif settings["work"] == "sample":
    sample = dataset[settings["rows"][0]]
else:
    batch = dataset[np.array(settings["rows"])].load()
elapsed = time.perf_counter() - start
cpu = time.process_time() - cpu
print(json.dumps({"seconds": elapsed, "cpu": cpu}))
"""

LANCE = """
import json, sys, time
settings = json.load(sys.stdin)
start = time.perf_counter()
import lance
if settings["imported"]:
    import pyarrow
    start = time.perf_counter()
cpu = time.process_time()
dataset = lance.dataset(settings["lance"], storage_options=settings["lance_options"])
rows = settings["rows"][:1] if settings["work"] == "sample" else settings["rows"]
table = dataset.take(rows)
assert table.num_rows == len(rows)
elapsed = time.perf_counter() - start
print(json.dumps({"seconds": elapsed, "cpu": time.process_time() - cpu}))
"""

STREAMING = """
import json, os, sys
settings = json.load(sys.stdin)
os.environ.update(settings["environment"])
from streaming import StreamingDataset
dataset = StreamingDataset(
    remote=settings["url"], local=settings["cache"], shuffle=False, batch_size=1
)
sample = dataset[settings["rows"][0]]
assert sample["id"] is not None
print(json.dumps({}), flush=True)
"""

BY_HAND = """
import asyncio, json, os, sys, time
settings = json.load(sys.stdin)
import numpy as np
import obstore, obstore.store
if settings["work"] == "epoch":
    np.ones(settings["touched_bytes"], np.uint8)
start, cpu = time.perf_counter(), time.process_time()
options = settings["options"]
bucket, _, folder = settings["url"].removeprefix("s3://").partition("/")
store = obstore.store.S3Store(
    bucket, endpoint=options["endpoint_url"], access_key_id=options["key"],
    secret_access_key=options["secret"], region="us-east-1", client_options={"allow_http": True},
)
async def get(name, begin, end):
    return await obstore.get_range_async(store, f"{folder}/{name}", start=begin, end=end)
async def sample(shards, starts, row):
    number = int(np.searchsorted(starts, row, side="right")) - 1
    name, row = shards[number]["raw_data"]["basename"], row - starts[number]
    if settings["row_bytes"]:  # rows of one size end where the shard ends
        end = shards[number]["raw_data"]["bytes"]
        begin = end - (shards[number]["samples"] - row) * settings["row_bytes"]
        return await get(name, begin, begin + settings["row_bytes"])
    key = (name, row // 4096)
    if key not in offsets:  # the offsets of 4,096 rows in one request, as npstream reads them
        last = min(key[1] * 4096 + 4096, shards[number]["samples"])
        offsets[key] = asyncio.ensure_future(get(name, 4 + 4 * 4096 * key[1], 8 + 4 * last))
    words = np.frombuffer(await offsets[key], "<u4")
    begin, end = words[row % 4096 : row % 4096 + 2].tolist()
    return await get(name, begin, end)
async def fetch_shards(shards):
    slots = asyncio.Semaphore(8)
    async def part(file, name, begin, end):
        async with slots:
            body = await get(name, begin, end)
        file.seek(begin)
        file.write(body)
    parts = []
    for shard in shards:
        name, nbytes = shard["raw_data"]["basename"], shard["raw_data"]["bytes"]
        file = open(f"{settings['cache']}-{name}", "wb")
        files.append(file)
        for begin in range(0, nbytes, settings["chunk_bytes"]):
            end = min(begin + settings["chunk_bytes"], nbytes)
            parts.append(part(file, name, begin, end))
    await asyncio.gather(*parts)
files, offsets = [], {}
async def main():
    response = await obstore.get_async(store, f"{folder}/index.json")
    shards = json.loads(bytes(await response.bytes_async()))["shards"]
    starts = np.cumsum([0, *(shard["samples"] for shard in shards)])
    if settings["work"] in ("epoch", "whole"):
        await fetch_shards(shards)
    if settings["work"] == "epoch":
        return
    if settings["work"] == "whole":
        row_bytes, rows = settings["row_bytes"], np.array(settings["rows"])
        out = np.empty((len(rows), row_bytes), np.uint8)
        shard_of = np.searchsorted(starts, rows, side="right") - 1
        for number, file in enumerate(files):
            file.flush()
            end, count = shards[number]["raw_data"]["bytes"], shards[number]["samples"]
            data = np.memmap(file.name, np.uint8, "r", end - count * row_bytes, (count, row_bytes))
            is_here = shard_of == number
            out[is_here] = data[rows[is_here] - starts[number]]
        return
    await asyncio.gather(*(sample(shards, starts, row) for row in settings["rows"]))
asyncio.run(main())
usage = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
print(json.dumps(usage), flush=True)
os._exit(0)  # the threads of obstore can abort a process that ends in the usual way
"""


class Bench:
    """The server with the datasets, and the processes that read them.

    Parameters
    ----------
    data : Path
        The directory of the benchmarks' datasets.
    lance, streaming : str or None
        The Pythons that have Lance and Streaming; None leaves a side out.
    names : sequence of str
        The datasets to store: "T", "I" or both.
    """

    def __init__(self, data: Path, lance: str | None, streaming: str | None, names: str) -> None:
        from servers import Servers

        self.lance, self.streaming = lance, streaming
        self.folder = Path(tempfile.mkdtemp(prefix="cold-", dir=data))
        self.servers = Servers(self.folder)
        self.server, self.proxy = self.servers["s3"], self.servers.proxy("s3")
        self.paths = {"T": data / "T-200000", "I": data / "I-20000"}
        self.counts = {"T": 200_000, "I": 20_000}
        filesystem, root = self.server.directory_at(self.server.root).filesystem()
        for name in names:
            self._upload(filesystem, self.paths[name], f"{root}/{name}")
            if lance:
                target = self.folder / f"{name}.lance"
                self._write_lance(name, target)
                self._upload(filesystem, target, f"{root}/{name}.lance")
                shutil.rmtree(target)

    @staticmethod
    def _upload(filesystem: Any, source: Path, target: str) -> None:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                filesystem.put_file(str(file), f"{target}/{file.relative_to(source)}")

    def _write_lance(self, name: str, target: Path) -> None:
        import npstream

        parquet = target.with_suffix(".parquet")
        columns = {"image": "bytes"} if name == "I" else None
        dataset = npstream.open(self.paths[name], columns=columns)
        write_parquet(dataset, parquet)
        code = (
            "import lance, sys, pyarrow.parquet as pq; file = pq.ParquetFile(sys.argv[1]);"
            "lance.write_dataset(file.iter_batches(), sys.argv[2], schema=file.schema_arrow)"
        )
        subprocess.run([self.lance, "-c", code, str(parquet), str(target)], check=True)
        parquet.unlink()

    def close(self) -> None:
        """Stop the server, and remove its data."""
        self.servers.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def cache(self) -> Iterator[Path]:
        """Create an empty directory for one measurement."""
        path = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def run(self, side: str, name: str, work: str, rows: list[int], latency: float) -> float:
        """Return the measured value of one side, in seconds.

        This is the CPU time of an epoch, the time from the start of the process to the first
        sample, or the time that `rows` take after the imports.
        """
        python, code = {
            "npstream": (sys.executable, NPSTREAM),
            "by hand": (sys.executable, BY_HAND),
            "whole chunks by hand": (sys.executable, BY_HAND),
            "Streaming": (self.streaming, STREAMING),
            "Lance": (self.lance, LANCE),
        }[side]
        self.proxy.latency = latency
        remote_dir = self.server.directory_at(f"{self.server.root}/{name}", self.proxy.port)
        if work == "epoch":  # without the proxy, which would take more time than the reader
            remote_dir = self.server.directory_at(f"{self.server.root}/{name}")
        options = remote_dir.storage_options
        with self.cache() as cache:
            settings = {
                "url": remote_dir.url,
                "options": options,
                "columns": {"image": "bytes"} if name == "I" else None,
                "cache": str(cache / "cache"),
                "imported": work != "sample",  # the first sample includes the imports
                "work": "whole" if side == "whole chunks by hand" else work,
                "rows": rows,
                # A row of T has an id of 8 bytes and 1,024 tokens of 2 bytes; rows of I differ in
                # size.
                "row_bytes": 2056 if name == "T" else 0,
                "chunk_bytes": 1 << 22,
                "touched_bytes": TOUCHED_BYTES,
                "environment": {
                    **remote_dir.env,
                    "S3_ENDPOINT_URL": options["endpoint_url"],
                },
                "lance": f"{remote_dir.url}.lance",
                "lance_options": {
                    "endpoint": options["endpoint_url"],
                    "access_key_id": options["key"],
                    "secret_access_key": options["secret"],
                    "region": "us-east-1",
                    "allow_http": "true",
                },
            }
            start = time.perf_counter()
            # A process may write .pyc files, as installation does.
            environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": str(ROOT)}
            process = subprocess.run(
                [python, "-c", code],
                input=json.dumps(settings),
                env=environment if side == "npstream" else None,
                capture_output=True,
                text=True,
                check=False,
            )
            elapsed = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"{side}: status {process.returncode}: {process.stderr}")
        usage = json.loads(process.stdout.splitlines()[-1])
        if work == "sample":
            return elapsed
        return usage["cpu" if work == "epoch" else "seconds"]


def write_parquet(dataset: Any, path: Path) -> None:
    """Write the columns of a dataset as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, len(dataset), 5000):
        batch = dataset[start : start + 5000].load()
        columns = {}
        for name in batch:
            if name == "image":
                columns[name] = pa.array([bytes(image) for image in batch[name]], pa.large_binary())
                continue
            values = np.asarray(batch[name])
            columns[name] = pa.array(values.ravel())
            if values.ndim == 2:
                columns[name] = pa.FixedSizeListArray.from_arrays(columns[name], values.shape[1])
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


FIGURES: list[tuple[str, str, str, int, tuple[tuple[str, float], ...]]] = [
    ("open + 100 random samples of T", "T", "rows", SAMPLES, (("Lance", 0.9), ("by hand", 1.5))),
    ("open + 100 random samples of I", "I", "rows", SAMPLES, (("Lance", 1.0), ("by hand", 1.5))),
    (
        "process start to the first sample of T", "T", "sample", 1,
        (("Lance", 1.0), ("Streaming", 0.2)),
    ),
    (
        "first 8,192 random rows of T", "T", "rows", ROWS,
        (("by hand", 1.2), ("whole chunks by hand", 1.2)),
    ),
    ("CPU time of an epoch of T", "T", "epoch", 0, (("by hand", 1.3),)),
]  # fmt: skip
"""Title, dataset, work, number of rows, and each reference with the factor to reach."""


def measure(
    bench: Bench,
    figure: tuple[str, str, str, int, tuple[tuple[str, float], ...]],
    latency: float,
    rounds: int,
    show: Callable[[str], None],
) -> None:
    """Measure a figure with alternating sides, and show a line for each reference."""
    title, name, work, row_count, references = figure
    absent = {name for name in ("Lance", "Streaming") if not getattr(bench, name.lower())}
    sides = ["npstream", *(side for side, _ in references if side not in absent)]
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        generator = np.random.default_rng(number)
        rows = generator.permutation(bench.counts[name])[:row_count].tolist()
        for side in sides if number % 2 else sides[::-1]:
            times[side].append(bench.run(side, name, work, rows, latency))
    ours = statistics.median(times["npstream"])
    for side, factor in references:
        if side in times:
            other = statistics.median(times[side])
            show(
                f"| {title} | {latency * 1000:g} ms | {side} | {1000 * ours:.0f} ms | "
                f"{1000 * other:.0f} ms | {ours / other:.2f} | {factor:g} x |"
            )


def main() -> None:
    """Measure the chosen figures, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lance", help="a Python that has pylance")
    parser.add_argument("--streaming", help="a Python that has mosaicml-streaming")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--latencies", default="0,0.01,0.03")
    parser.add_argument("--only", default="", help="a part of the titles")
    options = parser.parse_args()
    figures = [figure for figure in FIGURES if options.only in figure[0]]
    names = "".join(sorted({figure[1] for figure in figures}))
    bench = Bench(options.data, options.lance, options.streaming, names)
    try:
        print("| what | latency | reference | npstream | reference | ratio | must reach |")
        print("|---|---|---|---|---|---|---|")
        for figure in figures:
            latencies = [0.0] if figure[2] == "epoch" else map(float, options.latencies.split(","))
            for latency in latencies:
                measure(bench, figure, latency, options.rounds, lambda s: print(s, flush=True))
    finally:
        bench.close()


if __name__ == "__main__":
    main()
