"""The memory that a write takes does not depend on the size of the data."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SHARD = 4 << 20
"""Bytes of a shard. A write also has buffers of up to 8 MiB, and workers' batches of 1 MB."""

SCRIPT = """
import json, re, sys, threading
from pathlib import Path
import numpy as np
import npstream
from npstream.formats import scan, statistics

# Importing Numba takes 60 MB once.
scan._MAX_NUMPY_SAMPLES = statistics._MAX_NUMPY_INTEGERS = 1 << 60
directory, kind, shard, *sizes = sys.argv[1:]
ROW = 2048


def anonymous_bytes():
    # The pages of mapped files are not counted: the system takes them back when it needs memory.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) << 10


def samples(count):
    row = np.random.default_rng(0).integers(0, 256, ROW, np.uint8)
    for number in range(count):
        yield {"x": row, "n": number}


def tables(count):
    import pyarrow as pa

    for start in range(0, count, 512):
        values = np.random.default_rng(start).integers(0, 256, (512, ROW), np.uint8)
        text = pa.array(["x" * 100] * 512)
        x = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), ROW)
        yield pa.table({"x": x, "text": text})


def write(size, target):
    count = size // ROW
    options = {"shard_size": int(shard)}
    if kind.endswith("zstd"):
        options["compression"] = "zstd"
    if kind.startswith("samples"):
        npstream.write(target, samples(count), **options)
    elif kind.startswith("maps"):
        data = np.memmap(Path(directory) / "map", np.uint8, "w+", shape=(count, ROW))
        npstream.write(target, {"x": data, "n": np.arange(count)}, **options)
    elif kind.startswith("workers"):
        npstream.write(target, range(count), map=lambda n: {"x": bytes(ROW), "n": n}, workers=2,
                       **options)
    else:
        npstream.write(target, tables(count), **options)


def peak(size, target):
    # The highest of many measurements, 1 ms apart. A shard is in memory for longer than that.
    highest, stop = [anonymous_bytes()], threading.Event()

    def watch():
        while not stop.wait(0.001):
            highest.append(anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    write(size, target)
    stop.set()
    thread.join()
    return max(highest)


write(1 << 22, Path(directory) / "first")  # imports, and starts threads
before = anonymous_bytes()
peaks = [peak(int(size), Path(directory) / size) - before for size in sizes]
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    "kind", ["samples", "samples-zstd", "maps", "maps-zstd", "tables", "tables-zstd", "workers"]
)
def test_memory_does_not_grow_with_the_data(kind, tmp_path):
    if kind.startswith("tables"):
        pytest.importorskip("pyarrow")
    sizes = [8 * SHARD, 32 * SHARD]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), kind, str(SHARD), *map(str, sizes)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    small, large = json.loads(process.stdout)
    assert large < small + 8 * SHARD  # the second dataset has 24 shards more
    assert large < 20 * SHARD  # the data has 32 shards
