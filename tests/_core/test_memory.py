"""Mapped files, the limit of maps, and checks of free memory before an allocation."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading
import weakref

import numpy as np
import pytest
from children import fork_child, wait_for_child

from npstream._core import memory
from npstream._core.memory import (
    BufferPool,
    address_of,
    ensure_fits,
    is_mapped,
    map_file,
    open_file,
)

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    return str(tmp_path / "file")


def test_a_map_has_the_content_of_the_file(path):
    mapped = map_file(path)
    assert mapped.tobytes() == CONTENT
    assert mapped.dtype == np.uint8
    assert not mapped.flags.writeable
    assert address_of(mapped) == mapped.ctypes.data
    assert address_of(mapped) % mmap.PAGESIZE == 0
    assert ctypes.string_at(address_of(mapped[300:]), 4) == CONTENT[300:304]


def test_a_file_stays_mapped_while_an_array_over_it_exists(path):
    gc.collect()  # delete maps of other tests
    before = memory.map_budget()
    part = map_file(path)[1000:2000].view("<u4")[::2]
    gc.collect()
    assert memory.map_budget() == before - 1
    os.remove(path)
    assert part.tolist() == np.frombuffer(CONTENT[1000:2000], "<u4")[::2].tolist()
    del part
    assert memory.map_budget() == before


def test_a_map_keeps_no_descriptor_open(path):
    before = os.listdir("/dev/fd")
    maps = [map_file(path) for _ in range(10)]
    assert os.listdir("/dev/fd") == before
    assert len(maps) == 10


def test_an_empty_file_is_not_mapped(tmp_path):
    (tmp_path / "empty").touch()
    before = memory.map_budget()
    mapped = map_file(str(tmp_path / "empty"))
    assert mapped.shape == (0,)
    assert not is_mapped(mapped)
    assert memory.map_budget() == before


def test_is_mapped_is_true_only_for_maps(path):
    mapped = map_file(path)
    assert is_mapped(mapped)
    assert not is_mapped(mapped.copy())
    assert not is_mapped(np.frombuffer(CONTENT, np.uint8))


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # a blocking open would wait for a writer
    for name in (tmp_path / "pipe", tmp_path, "/dev/null"):
        before = os.listdir("/dev/fd")
        for open_function in (open_file, map_file):
            with pytest.raises(OSError, match="not a file"):
                open_function(str(name))
        assert os.listdir("/dev/fd") == before
    with pytest.raises(FileNotFoundError):
        map_file(str(tmp_path / "none"))


def test_an_error_of_mmap_is_raised_and_not_counted(path, monkeypatch):
    monkeypatch.setattr(memory._libc, "mmap", lambda *args: memory._MAP_FAILED)
    gc.collect()
    before = memory.map_budget()
    with pytest.raises(OSError, match=r"cannot map 25,600 bytes"):
        map_file(path)
    gc.collect()
    assert memory.map_budget() == before


def test_the_budget_is_half_of_the_systems_limit_minus_existing_maps(monkeypatch):
    monkeypatch.setattr(memory, "_map_count", 7)
    monkeypatch.setattr(memory, "_cached_map_limit", 0)  # is read from the system again
    assert memory.map_budget() == memory._cached_map_limit // 2 - 7 > 10_000
    monkeypatch.setattr(memory, "_cached_map_limit", 100)
    assert memory.map_budget() == 43


def test_will_need_begins_at_the_first_byte_of_a_page(path, monkeypatch):
    calls = []
    monkeypatch.setattr(memory._libc, "madvise", lambda *args: calls.append(args))
    mapped = map_file(path)
    calls.clear()
    memory.will_need(mapped[5000:9000])  # byte 5000 is in the second page
    ((address, nbytes, _),) = calls
    assert address == address_of(mapped) + mmap.PAGESIZE
    assert address + nbytes == address_of(mapped) + 9000


def test_available_memory_is_the_lower_of_system_and_cgroup(monkeypatch):
    assert 0 < memory.available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory, "_system_free", lambda: 1000)
    for bound, expected in ((None, 1000), (10, 10), (5000, 1000), (0, 0)):
        monkeypatch.setattr(memory, "_cgroup_free", lambda bound=bound: bound)
        assert memory.available_memory() == expected


def test_ensure_fits_raises_for_more_than_the_available_memory(monkeypatch):
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


def test_small_allocations_are_not_checked(monkeypatch):
    monkeypatch.delattr(memory, "available_memory")  # a call would raise
    ensure_fits(1 << 26, "little")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_can_map_although_a_thread_held_the_lock(path):
    is_locked, done = threading.Event(), threading.Event()

    def hold_lock():
        with memory._lock:
            is_locked.set()
            done.wait()

    thread = threading.Thread(target=hold_lock)
    thread.start()
    is_locked.wait()

    def in_child():
        assert map_file(path).tobytes() == CONTENT

    child = fork_child(in_child)
    done.set()
    thread.join()
    assert wait_for_child(child) == 0


# Pools of buffers

BYTE = np.dtype(np.uint8)
SIZE = 3 << 20


def test_memory_is_used_again_after_the_last_view():
    pool = BufferPool()
    array = pool.empty(SIZE, BYTE)
    view, address = array.reshape(3, 1 << 20)[1:, ::2], address_of(array)
    del array
    gc.collect()
    other = pool.empty(SIZE, BYTE)
    assert not np.shares_memory(view, other)
    del view
    gc.collect()
    assert address_of(pool.empty(SIZE, BYTE)) == address


def test_a_smaller_array_fits_and_a_much_smaller_one_does_not():
    pool = BufferPool()
    address = address_of(pool.empty(10 << 20, BYTE))
    smaller = pool.empty(3 << 18, np.dtype(np.float32))
    assert smaller.dtype == np.float32
    assert smaller.nbytes == 3 << 20
    assert address_of(smaller) == address
    smaller[:] = 1
    del smaller
    assert address_of(pool.empty(2 << 20, BYTE)) != address
    assert address_of(pool.empty(10 << 20, BYTE)) == address


def test_tensors_keep_the_memory(torch):
    pool = BufferPool()
    tensor = torch.from_numpy(pool.empty(SIZE, BYTE))
    tensor[:] = 7
    pool.empty(SIZE, BYTE)[:] = 0
    assert tensor.min() == 7


def test_a_closed_pool_keeps_no_memory():
    pool = BufferPool()
    array = pool.empty(SIZE, BYTE)
    pool.close()
    del array
    assert not pool._free
    array = pool.empty(SIZE, BYTE)
    array[:] = 1
    del array
    assert not pool._free


def test_a_pool_keeps_the_largest_buffers():
    pool = BufferPool()
    arrays = [pool.empty(megabytes << 20, BYTE) for megabytes in (40, 2, 30, 4, 20, 6)]
    while arrays:
        del arrays[0]
    assert [size >> 20 for size, _, _ in pool._free] == [20, 30, 40]


def test_the_memory_of_a_freed_pool_is_freed_with_its_arrays():
    pool = BufferPool()
    kept, dropped = pool.empty(SIZE, BYTE), pool.empty(SIZE, BYTE)
    kept[:] = 5
    del dropped
    ((_, _, memory),) = pool._free
    free_memory = weakref.ref(memory)
    del memory, pool
    gc.collect()
    assert free_memory() is None
    assert (kept == 5).all()


def test_threads_share_a_pool():
    pool = BufferPool()
    errors = []

    def work(number):
        for step in range(200):
            array = pool.empty(SIZE // (1 + step % 3), BYTE)
            array[::4096] = number
            if (array[::4096] != number).any():
                errors.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(pool._free) <= 3
