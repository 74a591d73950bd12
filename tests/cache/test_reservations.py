"""The limit of the cache: what is reserved, by how much it may be exceeded, what holds at rest."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stalling
from crash_cache import in_child

import npstream
from npstream.cache import directory as cache_dir
from npstream.cache import eviction
from npstream.cache.cache import CachedFile, Refusal, Reservation, ShardCache, allocated

CHUNK = 40_960
LIMIT = 4 * CHUNK + 32_768  # of four chunks, and what three files take besides


def key(number: int) -> str:
    return f"{number:016x}"


def in_use(directory: str | Path) -> int:
    """Return what the cache's files take, whoever may be removing some."""
    return sum(entry.nbytes for entry in cache_dir.entries(str(directory)))


def opened(cache: ShardCache, number: int) -> CachedFile:
    file = cache.open(key(number), CHUNK, 1)
    assert file is not None
    return file


def write(file: CachedFile) -> None:
    """Write a chunk that was reserved, as a file of its own."""
    assert file.put(0, bytes(CHUNK))
    assert file.commit([0])


def reserved(cache: ShardCache, chunks: int = 1, **options) -> Reservation:
    found = cache.reserve(chunks * CHUNK, **options)
    assert isinstance(found, Reservation)
    return found


def test_a_count_sees_what_others_have_reserved(tmp_path):
    """Once a count forgot that, so all that was written then came on top of the limit."""
    one, other = ShardCache(tmp_path, LIMIT), ShardCache(tmp_path, LIMIT)
    with reserved(one, 3):
        for number in range(8):
            with reserved(other):
                write(opened(other, number))
        os.truncate(tmp_path / ".lock", 0)  # so that the files are counted in any case
        assert other.reserve(2 * CHUNK) is Refusal.CROWDED
        for number in range(10, 13):
            write(opened(one, number))
    assert in_use(tmp_path) <= LIMIT
    assert in_use(tmp_path) >= 3 * CHUNK


def test_what_is_written_during_a_count_is_not_missed(tmp_path, monkeypatch):
    cache, entries = ShardCache(tmp_path, LIMIT), cache_dir.entries
    file, held = opened(cache, 0), reserved(cache)

    def counted(path: str) -> list[cache_dir.Entry]:
        found = entries(path)
        write(file)
        held.close()
        return found

    os.truncate(tmp_path / ".lock", 0)
    with monkeypatch.context() as patched:
        patched.setattr(cache_dir, "entries", counted)
        assert cache.reserve(4 * CHUNK, [file]) is Refusal.CROWDED
    assert in_use(tmp_path) >= CHUNK


def test_what_was_reserved_and_not_written_is_free_again(tmp_path):
    cache = ShardCache(tmp_path, LIMIT)
    for _ in range(20):
        reserved(cache, 4).close()
    assert sorted(os.listdir(tmp_path)) == [".lock"]


def test_a_process_that_dies_loses_what_it_reserved(tmp_path):
    cache = ShardCache(tmp_path, LIMIT)

    def die() -> None:
        reserved(cache, 4)
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(die), 0)
    assert len(os.listdir(tmp_path)) == 2
    reserved(cache, 4).close()
    assert sorted(os.listdir(tmp_path)) == [".lock"]


def test_a_forked_child_leaves_its_parents_reservations(tmp_path):
    cache = ShardCache(tmp_path, LIMIT)
    with reserved(cache, 4) as held:
        status = os.waitpid(in_child(held.close), 0)[1]
        assert os.waitstatus_to_exitcode(status) == 0
        assert ShardCache(tmp_path, LIMIT).reserve(CHUNK) is Refusal.CROWDED


def test_each_process_may_exceed_the_limit_by_a_chunk(tmp_path):
    one, other = ShardCache(tmp_path, LIMIT), ShardCache(tmp_path, LIMIT)
    write(opened(one, 0))
    with reserved(one, 4):
        assert other.reserve(CHUNK) is Refusal.CROWDED
        with reserved(other, may_exceed=True):
            # This thread would wait for itself; others wait until it has done.
            assert other.reserve(CHUNK, may_exceed=True) is Refusal.CROWDED
            found: list[object] = []
            wait = threading.Thread(
                target=lambda: found.append(other.reserve(CHUNK, may_exceed=True, timeout=0.05))
            )
            wait.start()
            wait.join()
            assert found == [Refusal.CROWDED]
            # What can never be is refused, and nobody goes for it.
            assert other.reserve(LIMIT + 1, may_exceed=True) is Refusal.FULL
        reserved(other, may_exceed=True).close()


def test_the_limit_holds_again_when_what_exceeds_it_is_written(tmp_path):
    one, other = ShardCache(tmp_path, LIMIT), ShardCache(tmp_path, LIMIT)
    files = [opened(one, number) for number in range(5)]
    with reserved(one, 4, keep=files) as room:
        with reserved(other, may_exceed=True, keep=files):
            for file in files:
                write(file)
            room.release(4 * CHUNK)
            assert LIMIT < in_use(tmp_path) <= LIMIT + CHUNK
        assert LIMIT - 2 * CHUNK < in_use(tmp_path) <= LIMIT


def test_what_was_written_is_not_reserved_any_more(tmp_path):
    one, other = ShardCache(tmp_path, LIMIT), ShardCache(tmp_path, LIMIT)
    files = [opened(one, number) for number in range(3)]
    with reserved(one, 3) as room:
        for file in files:
            write(file)
            room.release(CHUNK)
        os.truncate(tmp_path / ".lock", 0)
        reserved(other, 1).close()
        assert all(file.is_linked for file in files)


def test_threads_exceed_the_limit_one_after_the_other(tmp_path):
    one, other = ShardCache(tmp_path, LIMIT), ShardCache(tmp_path, LIMIT)
    peaks: list[int] = []

    def work() -> None:
        for _ in range(10):
            with reserved(other, may_exceed=True):
                peaks.append(eviction._reserved_bytes(str(tmp_path)))

    with reserved(one, 4):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(peaks) == 40
    assert set(peaks) == {5 * CHUNK}


def test_a_smaller_limit_holds_as_soon_as_a_dataset_is_opened(tmp_path, upload):
    npstream.write(tmp_path / "data", {"x": np.zeros((25_000, 8))}, shard_size="64KiB")
    url = upload(tmp_path / "data")
    with npstream.open(url, cache=tmp_path / "cache", cache_limit="10MB") as ds:
        ds.prefetch()
    assert in_use(tmp_path / "cache") > 1_500_000
    with npstream.open(url, cache=tmp_path / "cache", cache_limit="500KB"):
        assert in_use(tmp_path / "cache") <= 500 << 10
    with pytest.raises(ValueError, match="this needs at least"):
        npstream.open(url, cache=tmp_path / "cache", cache_limit="1KB")
    assert in_use(tmp_path / "cache") > 100 << 10


PROCESSES = 8


def reports(work: Callable[[], int]) -> list[int]:
    """Return what processes that run side by side find."""
    reader, writer = os.pipe()
    children = [
        in_child(lambda: os.write(writer, f"{work()}\n".encode())) for _ in range(PROCESSES)
    ]
    os.close(writer)
    with open(reader) as lines:
        found = [int(line) for line in lines]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * PROCESSES
    assert len(found) == PROCESSES
    return found


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_many_processes_and_a_small_limit(tmp_path, compression):
    """Two jobs of two ranks with two workers each left twice the limit once, at rest."""
    x = np.random.default_rng(0).integers(0, 1 << 62, (20_000, 8))
    npstream.write(tmp_path / "data", {"x": x}, shard_size="64KiB", compression=compression)
    url, limit = f"{stalling.Stalling.protocol}://{tmp_path / 'data'}", 400 << 10
    npstream.open(tmp_path / "data").load()  # so that kernels are loaded once

    def work() -> int:
        ds = npstream.open(url, cache=tmp_path / "cache", cache_limit=limit)
        peak, order = 0, np.random.default_rng(os.getpid())
        for start in order.permutation(np.arange(0, len(x), 2000).repeat(3)):
            # Of several chunks, which are reserved together.
            assert np.array_equal(ds["x"][start : start + 3000].load(), x[start : start + 3000])
            peak = max(peak, in_use(tmp_path / "cache"))
        return peak

    chunk = allocated(1, 64 << 10) + 16_384
    assert max(reports(work)) <= limit + PROCESSES * chunk
    assert in_use(tmp_path / "cache") <= limit
    assert not [name for name in os.listdir(tmp_path / "cache") if name.endswith("reserved")]
