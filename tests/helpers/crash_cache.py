"""Stress test of the cache: processes share a small cache, and some of them are killed.

``python tests/helpers/crash_cache.py 200`` runs 200 rounds and prints the counters.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from npstream.cache import locks
from npstream.cache.cache import CachedFile, Reservation, ShardCache, disk_bytes

PROCESSES = 4
SHARDS, PIECES, PIECE = 24, 9, 30_011
NBYTES = PIECES * PIECE
LIMIT = SHARDS * NBYTES // 3
MAX_PIECES = 4  # in one read
IN_FLIGHT = PROCESSES * (PIECE + 2 * 4096)
"""The cache may exceed its limit by one piece, rounded up to blocks, for each writing process."""

SECONDS = 0.6
"""Duration of a round. One process is killed earlier, at a random time."""

KEYS = [f"{number:032x}" for number in range(SHARDS)]
PINNED = KEYS[:2]
CONTENT = [np.random.default_rng(number).bytes(NBYTES) for number in range(SHARDS)]

FOREIGN = {"notes.txt": b"mine", f"{999:032x}.shard": bytes(5000), ".abc.tmp": b"also mine"}
"""Files that the cache did not create."""


def expected(shard: int, piece: int) -> bytes:
    return CONTENT[shard][piece * PIECE : (piece + 1) * PIECE]


class Reader:
    """Reads pieces through a cache, like a dataset."""

    def __init__(self, directory: str) -> None:
        self.cache = ShardCache(directory, LIMIT)
        self.cache.trim()
        self.files: dict[int, CachedFile] = {}
        self.counts: Counter[str] = Counter()

    def read(self, shard: int, pieces: list[int]) -> None:
        """Read pieces of a shard, and count the wrong ones."""
        for piece, data in self._get(shard, pieces).items():
            self.counts["reads"] += 1
            self.counts["wrong"] += data != expected(shard, piece)

    def _get(self, shard: int, pieces: list[int]) -> dict[int, bytes]:
        file = self.files.get(shard)
        if file is not None and file.resident[pieces].all():
            return self._copy(file, pieces)
        if file is None or not file.is_linked:
            self.counts["reopened"] += file is not None
            file = self.cache.open(KEYS[shard], NBYTES, PIECES)
            if file is None:
                self.files.pop(shard, None)
                self.counts["uncached"] += 1
                return {piece: self._fetch(shard, piece) for piece in pieces}
            self.files[shard] = file
        data = {}
        with file.lock(pieces) as claim:
            reserved_pieces, reservation = self._reserve(file, claim.pieces)
            with reservation:
                for piece in claim.pieces:
                    data[piece] = self._fetch(shard, piece)
                    if piece in reserved_pieces and file.put(piece * PIECE, data[piece]):
                        self.counts["kept"] += file.commit([piece])
        file.wait(pieces, 5)
        present = [piece for piece in pieces if piece not in data and file.resident[piece]]
        data.update(self._copy(file, present))
        data.update({piece: self._fetch(shard, piece) for piece in pieces if piece not in data})
        self.cache.touch(file)
        return data

    def _reserve(self, file: CachedFile, pieces: list[int]) -> tuple[list[int], Reservation]:
        """Reserve space for all pieces, or for the first one."""
        for candidates in (pieces, pieces[:1]):
            nbytes = sum(disk_bytes(piece * PIECE, (piece + 1) * PIECE) for piece in candidates)
            reservation = self.cache.reserve(nbytes, [file], may_exceed=len(candidates) == 1)
            if isinstance(reservation, Reservation):
                return candidates, reservation
        self.counts["refused"] += 1
        return [], Reservation()

    def _copy(self, file: CachedFile, pieces: list[int]) -> dict[int, bytes]:
        self.counts["hits"] += len(pieces)
        return {piece: file.data[piece * PIECE : (piece + 1) * PIECE].tobytes() for piece in pieces}

    def _fetch(self, shard: int, piece: int) -> bytes:
        self.counts["fetches"] += 1
        time.sleep(0.0005)  # like a store's latency, so that other processes interleave
        return expected(shard, piece)


def kill_after(calls: int) -> None:
    """Kill this process before its system call number `calls` that changes a file."""
    remaining = calls

    def patch_call(name: str) -> None:
        call = getattr(os, name)

        def counted(*args: object, **options: object) -> object:
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        setattr(os, name, counted)

    for name in ("pwrite", "link", "unlink", "ftruncate", "posix_fallocate", "fsync"):
        patch_call(name)


def work(directory: str, seed: int, report: int) -> None:
    """Read random pieces until the time is up, and write the counters to `report`."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        kill_after(rng.randrange(200))
    reader = Reader(directory)
    for key in PINNED:
        while reader.cache.open(key, NBYTES, PIECES) is None or reader.cache.pin([key]):
            pass  # another process has evicted it
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        shard = rng.randrange(SHARDS)
        reader.read(shard, sorted(rng.sample(range(PIECES), rng.randint(1, MAX_PIECES))))
        if rng.random() < 0.02:
            reader.counts["peak"] = max(reader.counts["peak"], in_use(directory))
            if (file := reader.files.get(shard)) is not None:
                reader.cache.mark_finished(file)
        elif rng.random() < 0.3:  # two iterations mark files
            reader.cache.mark_next_use(KEYS[shard], rng.randrange(2), 2 * rng.random())
    counts = reader.counts
    os.write(report, " ".join(f"{name}={counts[name]}" for name in counts).encode() + b"\n")


def in_child(function: Callable[[], None]) -> int:
    """Fork a process that calls a function, and return its process id."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def in_use(directory: str) -> int:
    """Return the disk usage of the cache's files."""
    total = 0
    for path in Path(directory).glob("*.shard"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512 if path.name not in FOREIGN else 0
    return total


def run_round(directory: str, seed: int) -> Counter[str]:
    """Run processes concurrently, kill one of them, and check the files that remain."""
    rng = random.Random(f"round {seed}")
    reports, report = os.pipe()
    children = [
        in_child(partial(work, directory, PROCESSES * seed + n, report)) for n in range(PROCESSES)
    ]
    os.close(report)
    time.sleep(rng.uniform(0.05, SECONDS))
    os.kill(children[0], signal.SIGKILL)
    counts: Counter[str] = Counter(rounds=1)
    with open(reports) as lines:
        # The pipe ends when the last process exits.
        for line in lines:
            add(counts, {name: int(n) for name, n in (p.split("=") for p in line.split())})
    for child in children:
        _, status = os.waitpid(child, 0)
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        counts["killed"] += was_killed
        counts["failed"] += not was_killed and status != 0
    check_directory(directory, counts)
    return counts


def check_directory(directory: str, counts: Counter[str]) -> None:
    """Count violations in the directory after a round."""
    counts["peak"] = max(counts["peak"], in_use(directory))
    cache = ShardCache(directory, LIMIT)
    cache.trim()
    counts["at rest"] = in_use(directory)
    counts["temporaries"] = sum(
        name.endswith((".tmp", ".reserved")) and name not in FOREIGN
        for name in os.listdir(directory)
    )
    for path in Path(directory).iterdir():
        with locks.LockFile(str(path), os.O_RDONLY) as descriptor:
            counts["locks"] += locks.is_locked(descriptor, 0, 0)
    for name, content in FOREIGN.items():
        counts["foreign touched"] += Path(directory, name).read_bytes() != content
    pinned = [Path(directory, f"{key}.shard") for key in PINNED]
    counts["unpinned"] = sum(not (p.exists() and p.stat().st_mode & 0o100) for p in pinned)
    counts["unusable"] = sum(
        path.name not in FOREIGN and cache.open(path.stem, NBYTES, PIECES) is None
        for path in Path(directory).glob("*.shard")
    )
    for shard, key in enumerate(KEYS):
        if os.path.exists(os.path.join(directory, f"{key}.shard")):
            file = cache.open(key, NBYTES, PIECES)
            for piece in np.flatnonzero(file.resident).tolist():
                data = file.data[piece * PIECE : (piece + 1) * PIECE].tobytes()
                counts["resident"] += 1
                counts["wrong"] += data != expected(shard, piece)


def run(rounds: int, directory: str) -> Counter[str]:
    """Run rounds in a new directory, and return the sum of their counters."""
    for name, content in FOREIGN.items():
        Path(directory, name).write_bytes(content)
    total: Counter[str] = Counter()
    for number in range(rounds):
        add(total, run_round(directory, number))
    return total


def add(total: Counter[str], counts: Mapping[str, int]) -> None:
    """Add counters; for disk usage, keep the maximum."""
    peaks = {name: max(total[name], counts.get(name, 0)) for name in ("peak", "at rest")}
    total.update(counts)
    for name, peak in peaks.items():
        total[name] = peak


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(dict(run(int(sys.argv[1]), scratch)), "limit", LIMIT)
