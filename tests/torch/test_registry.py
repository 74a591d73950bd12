"""`ShardRegistry`: its limit, and which shards it unregisters, and when."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

import npstream
from npstream.torch import registry as registry_module

pytest.importorskip("torch")
from gather_device import SHIFT, RegisteredMemory

from npstream._core.memory import address_of
from npstream.torch.registry import (
    GatherRefusal,
    RegistrationError,
    ShardRegistry,
)

ROWS, SHARD_PAGES = 300, 3
SHARD_BYTES = SHARD_PAGES << 12


class Event:
    """An event that happens when something waits for it."""

    def __init__(self, memory, addresses=()):
        self._memory, self._addresses, self.is_done = memory, addresses, False

    def query(self):
        return self.is_done

    def synchronize(self):
        is_registered = set(self._addresses) <= set(self._memory.pages)
        assert self.is_done or is_registered, "unregistered during its use"
        self.is_done = True


@pytest.fixture
def ds(tmp_path):
    """Return a dataset of at least ten shards, each of at most three pages."""
    values = np.arange(ROWS * 50).reshape(ROWS, 50)
    npstream.write(tmp_path / "data", {"x": values}, shard_size=SHARD_BYTES)
    with npstream.open(tmp_path / "data") as dataset:
        assert len(dataset._source.index) >= 10
        yield dataset


def fetcher_of(dataset):
    return dataset._source.fetcher


def use(registry, dataset, numbers, event=None):
    """Use shards; return how many bytes were registered, and whether all shards are."""
    fetcher = fetcher_of(dataset)
    shards = registry.shards_of(fetcher)
    with registry.lock:
        registry.begin_use()
        result = registry.register(shards, fetcher, np.array(numbers))
        if event is not None:
            registry.end_use(event)
    return result


def registered_shards(registry, dataset):
    return sorted(registry.shards_of(fetcher_of(dataset)).loaded)


def test_addresses_are_those_of_the_first_samples(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    assert use(registry, ds, [1, 4]) == (2 * SHARD_BYTES, True)
    shards, starts = registry.shards_of(fetcher_of(ds)), ds._source.index.starts
    for number in (1, 4):
        loaded = fetcher_of(ds).loaded_shard(number)
        address = int(shards.first_sample[number])
        assert address == address_of(loaded.data) + loaded.begin + SHIFT
        row = np.frombuffer(memory.read(address, 400), np.int64)
        assert np.array_equal(row, ds["x"][int(starts[number])])
    assert not shards.first_sample[[0, 2, 3]].any()
    assert use(registry, ds, [1, 4]) == (0, True)
    assert registry.nbytes == memory.nbytes == 2 * SHARD_BYTES


def test_the_least_recently_used_shard_is_unregistered(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 4 * SHARD_BYTES)
    for numbers in ([0], [1], [2], [0], [3]):
        use(registry, ds, numbers)
    assert registered_shards(registry, ds) == [0, 1, 2, 3]
    use(registry, ds, [4])
    assert 1 not in registered_shards(registry, ds)
    assert {0, 3, 4} <= {*registered_shards(registry, ds)}
    assert memory.max_nbytes <= registry.limit


def test_a_shard_in_use_is_unregistered_after_the_events_of_its_uses(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 2 * SHARD_BYTES)
    use(registry, ds, [0])
    pages = [*memory.pages]
    # On two streams, the second use may end before the first one.
    first, second = Event(memory, pages), Event(memory, pages)
    use(registry, ds, [0], first)
    use(registry, ds, [0], second)
    second.is_done = True
    other = Event(memory)
    use(registry, ds, [1], other)
    use(registry, ds, [2, 3])
    assert first.is_done
    assert pages[0] not in memory.pages
    assert other.is_done
    assert registered_shards(registry, ds) == [2, 3]


def test_a_use_of_more_bytes_than_the_limit_is_refused(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 2 * SHARD_BYTES)
    with pytest.raises(GatherRefusal, match=r"more bytes than the 24\.0 KiB that are registered"):
        use(registry, ds, [0, 1, 2])
    assert not memory.pages


def test_a_use_does_not_unregister_its_own_shards(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 3 * SHARD_BYTES)
    for numbers in ([0, 1, 2], [2, 3, 4], [0, 4, 5]):
        assert use(registry, ds, numbers)[1]
        assert set(numbers) <= {*registered_shards(registry, ds)}
    assert memory.max_nbytes == 3 * SHARD_BYTES


def test_the_limit_counts_whole_pages(ds):
    index = fetcher_of(ds).index
    registry = ShardRegistry(RegisteredMemory(), int(index.nbytes[:3].sum()))
    with pytest.raises(GatherRefusal, match="the shards of a batch have more bytes"):
        use(registry, ds, [0, 1, 2])


def test_one_use_registers_a_limited_number_of_bytes(ds, monkeypatch):
    monkeypatch.setattr(registry_module, "MAX_NEW_BYTES", 2 * SHARD_BYTES)
    registry = ShardRegistry(RegisteredMemory(), 1 << 30)
    assert use(registry, ds, [0, 1, 2, 3, 4]) == (2 * SHARD_BYTES, False)
    assert use(registry, ds, [0, 1, 2, 3, 4]) == (2 * SHARD_BYTES, False)
    assert use(registry, ds, [0, 1, 2, 3, 4]) == (SHARD_BYTES, True)
    monkeypatch.setattr(registry_module, "MAX_NEW_BYTES", 1)
    assert use(registry, ds, [5]) == (SHARD_BYTES, True)


def test_closing_the_dataset_unregisters_after_the_uses(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    use(registry, ds, [0, 1])
    event = Event(memory, [*memory.pages])
    use(registry, ds, [0, 1], event)
    ds.close()
    assert event.is_done
    assert not memory.pages
    assert registry.nbytes == 0
    with pytest.raises(ValueError, match="closed"):
        use(registry, ds, [0])
    assert not memory.pages


def test_deleting_the_dataset_unregisters(tmp_path, ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    other = npstream.open(tmp_path / "data")
    use(registry, other, [0, 1])
    use(registry, ds, [0])
    assert registry.nbytes == 3 * SHARD_BYTES
    del other
    gc.collect()
    assert registry.nbytes == memory.nbytes == SHARD_BYTES


def test_a_dataset_that_is_deleted_during_a_use_is_unregistered_by_the_next(tmp_path, ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    other = npstream.open(tmp_path / "data")
    use(registry, other, [0])
    with registry.lock:
        del other
        gc.collect()
        assert memory.nbytes == SHARD_BYTES
    use(registry, ds, [1])
    assert memory.nbytes == SHARD_BYTES
    assert registered_shards(registry, ds) == [1]


def test_views_and_renamed_views_share_registrations(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    renamed = ds.rename({"x": "y"})[5:]
    use(registry, ds, [0])
    assert use(registry, renamed, [0]) == (0, True)
    renamed.close()
    assert not memory.pages


@pytest.fixture
def cached(tmp_path):
    """Return a remote dataset, which is wholly in the cache."""
    values = np.arange(ROWS * 50).reshape(ROWS, 50)
    url = f"memory://registry/{tmp_path.name}"
    npstream.write(url, {"x": values}, shard_size=SHARD_BYTES)
    with npstream.open(url, cache=tmp_path / "cache") as dataset:
        dataset.load()
        yield dataset


def test_a_concatenation_and_its_part_register_a_cached_file_once(cached, tmp_path):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    npstream.write(tmp_path / "other", {"x": np.zeros((5, 50), np.int64)})
    with npstream.open(tmp_path / "other") as other:
        both = npstream.concat([cached, other])
        use(registry, cached, [0])
        use(registry, both, [0])
        assert memory.registrations == 1
        assert memory.nbytes == registry.nbytes
        cached.close()
        assert memory.nbytes == registry.nbytes > 0
        both.close()
        assert memory.nbytes == registry.nbytes == 0


def test_shards_that_a_cache_evicts_are_unregistered(cached, tmp_path, monkeypatch):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    use(registry, cached, [0, 1])
    npstream.cache.clear(tmp_path / "cache")
    monkeypatch.setattr(registry_module, "SWEEP_USES", 1)
    with pytest.raises(GatherRefusal, match="not all chunks of the shards are in the cache"):
        use(registry, cached, [2])
    assert not memory.pages


def test_shards_are_refused_until_the_cache_has_them(tmp_path):
    npstream.write("memory://registry/new", {"x": np.arange(ROWS * 50).reshape(ROWS, 50)})
    registry = ShardRegistry(RegisteredMemory(), 1 << 30)
    with npstream.open("memory://registry/new", cache=tmp_path / "cache") as dataset:
        with pytest.raises(GatherRefusal, match="not all chunks of the shards are in the cache"):
            use(registry, dataset, [0])
        dataset.load()
        assert use(registry, dataset, [0])[1]


def test_a_forked_process_forgets_the_registrations_of_its_parent(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    use(registry, ds, [0, 1])
    with registry.lock:  # another thread of the parent may hold it
        child = os.fork()
        if not child:
            memory.unregister = lambda address: os._exit(3)
            is_forgotten = registry.nbytes == 0 and not registered_shards(registry, ds)
            ds.close()
            os._exit(0 if is_forgotten else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert registered_shards(registry, ds) == [0, 1]


def test_an_error_of_the_driver_registers_nothing(ds):
    memory = RegisteredMemory()
    registry = ShardRegistry(memory, 1 << 30)
    memory.error = "CUDA_ERROR_NOT_SUPPORTED"
    with pytest.raises(RegistrationError, match="NOT_SUPPORTED"):
        use(registry, ds, [0])
    memory.error = None
    assert registry.nbytes == 0
    assert use(registry, ds, [0]) == (SHARD_BYTES, True)


def test_compressed_shards_are_refused(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(1000)}, compression="zstd")
    registry = ShardRegistry(RegisteredMemory(), 1 << 30)
    with (
        npstream.open(tmp_path / "data") as dataset,
        pytest.raises(GatherRefusal, match="the shards are compressed"),
    ):
        use(registry, dataset, [0])
