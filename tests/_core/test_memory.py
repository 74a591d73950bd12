"""Maps hold their pages and nothing else; what cannot fit is refused before it is allocated."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading

import numpy as np
import pytest
from children import fork_child, wait_for_child

from npstream._core import memory
from npstream._core.memory import address_of, ensure_fits, is_mapped, map_file, open_file

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    return str(tmp_path / "file")


def test_a_map_is_the_file(path):
    mapped = map_file(path)
    assert mapped.tobytes() == CONTENT
    assert mapped.dtype == np.uint8
    assert not mapped.flags.writeable
    assert address_of(mapped) == mapped.ctypes.data
    assert address_of(mapped) % mmap.PAGESIZE == 0
    assert ctypes.string_at(address_of(mapped[300:]), 4) == CONTENT[300:304]


def test_a_map_lasts_as_long_as_an_array_over_it(path):
    gc.collect()  # maps that other tests have left
    before = memory.map_budget()
    part = map_file(path)[1000:2000].view("<u4")[::2]
    gc.collect()
    assert memory.map_budget() == before - 1
    os.remove(path)
    assert part.tolist() == np.frombuffer(CONTENT[1000:2000], "<u4")[::2].tolist()
    del part
    assert memory.map_budget() == before


def test_no_descriptor_is_kept(path):
    before = os.listdir("/dev/fd")
    maps = [map_file(path) for _ in range(10)]
    assert os.listdir("/dev/fd") == before
    assert len(maps) == 10


def test_an_empty_file_takes_no_map(tmp_path):
    (tmp_path / "empty").touch()
    before = memory.map_budget()
    mapped = map_file(str(tmp_path / "empty"))
    assert mapped.shape == (0,)
    assert not is_mapped(mapped)
    assert memory.map_budget() == before


def test_is_mapped(path):
    mapped = map_file(path)
    assert is_mapped(mapped)
    assert not is_mapped(mapped.copy())
    assert not is_mapped(np.frombuffer(CONTENT, np.uint8))


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # to open one waits for whoever writes to it
    for name in (tmp_path / "pipe", tmp_path, "/dev/null"):
        before = os.listdir("/dev/fd")
        for opened in (open_file, map_file):
            with pytest.raises(OSError, match="not a file"):
                opened(str(name))
        assert os.listdir("/dev/fd") == before
    with pytest.raises(FileNotFoundError):
        map_file(str(tmp_path / "none"))


def test_a_map_that_cannot_be_made(path, monkeypatch):
    monkeypatch.setattr(memory._libc, "mmap", lambda *args: memory._MAP_FAILED)
    gc.collect()
    before = memory.map_budget()
    with pytest.raises(OSError, match=r"cannot map 25,600 bytes"):
        map_file(path)
    gc.collect()
    assert memory.map_budget() == before


def test_the_budget_is_half_of_what_the_system_allows(monkeypatch):
    monkeypatch.setattr(memory, "_map_count", 7)
    monkeypatch.setattr(memory, "_limit", 0)
    assert memory.map_budget() == memory._limit // 2 - 7 > 10_000
    monkeypatch.setattr(memory, "_limit", 100)
    assert memory.map_budget() == 43


def test_will_need_asks_for_whole_pages(path, monkeypatch):
    asked = []
    monkeypatch.setattr(memory._libc, "madvise", lambda *args: asked.append(args))
    mapped = map_file(path)
    asked.clear()
    memory.will_need(mapped[5000:9000])
    ((address, nbytes, _),) = asked
    assert address == address_of(mapped) + mmap.PAGESIZE
    assert address + nbytes == address_of(mapped) + 9000


def test_available_is_what_the_tighter_bound_leaves(monkeypatch):
    assert 0 < memory.available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory, "_system_free", lambda: 1000)
    for bound, expected in ((None, 1000), (10, 10), (5000, 1000), (0, 0)):
        monkeypatch.setattr(memory, "_cgroup_free", lambda bound=bound: bound)
        assert memory.available_memory() == expected


def test_ensure_fits(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 30)
    ensure_fits(0, "nothing")
    ensure_fits(1 << 30, "all of it")
    with pytest.raises(
        MemoryError, match=r"^five rows takes 1,073,741,825 bytes and 1,073,741,824"
    ):
        ensure_fits((1 << 30) + 1, "five rows")
    with pytest.raises(MemoryError, match=r"^5,000 rows of 'a\{b\}' takes"):
        ensure_fits((1 << 30) + 1, "{:,} rows of {!r}", 5000, "a{b}")
    with pytest.raises(MemoryError, match=r"^the file \{x\} takes"):
        ensure_fits((1 << 30) + 1, "the file {x}")


def test_small_allocations_are_not_asked_about(monkeypatch):
    monkeypatch.delattr(memory, "available_memory")
    ensure_fits(1 << 26, "little")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_can_map_while_a_thread_was_at_it(path):
    held, done = threading.Event(), threading.Event()

    def hold():
        with memory._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def in_child():
        assert map_file(path).tobytes() == CONTENT

    child = fork_child(in_child)
    done.set()
    thread.join()
    assert wait_for_child(child) == 0
