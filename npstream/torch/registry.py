"""Provide `ShardRegistry`: the mapped shards that a device may read, within a limit of bytes.

CUDA locks the pages of registered memory, so that a device can read them over the bus. A *use* of
shards gathers the rows of one or more batches. Each use has a number, and an event that completes
after its reads. The shards whose last use is the oldest are unregistered to make room for others. A
shard stays registered, and mapped, until the events of all uses up to its last use have completed.

A process has one registry, because CUDA refuses to register an address twice.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, finalize

import numpy as np

from npstream._core import memory
from npstream._core.arguments import size_text
from npstream._core.fork import renew_in_child

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.shards.base import LoadedShard
    from npstream.shards.table import Fetcher

__all__ = [
    "DeviceMemory",
    "GatherRefusal",
    "RegisteredShards",
    "RegistrationError",
    "ShardRegistry",
]

MAX_NEW_BYTES = 1 << 28
"""Bytes that one use registers at most, unless a single shard is larger.

The first batches of a random order need nearly all shards. Without this limit, the first batch
would wait until all of them are read from the disk and registered.
"""

SWEEP_USES = 64
"""Once in this number of uses, shards whose files a cache has evicted are unregistered."""

FREED_DIVISOR = 16
"""If the limit is reached, the limit divided by this number is freed beyond the needed bytes."""


class DeviceMemory(Protocol):
    """The calls that let a device read memory of the host."""

    def register(self, address: int, nbytes: int) -> int:
        """Register whole pages; return their address for the device."""

    def unregister(self, address: int) -> None:
        """Unregister the pages that were registered at an address."""


class RegistrationError(RuntimeError):
    """The driver refused to register or to unregister memory."""


class GatherRefusal(Exception):
    """The device cannot read some samples now. The message says why."""


class _Range(NamedTuple):
    """Registered pages: their size, their address for the device, and how many shards use them."""

    nbytes: int
    device_address: int
    users: int


class RegisteredShards:
    """The registered shards of one dataset. Made by `ShardRegistry.shards_of`.

    Attributes
    ----------
    first_sample : ndarray of int64, shape (shards,)
        The address, for the device, of the first sample of each shard; 0 if the shard is not
        registered.
    last_use : ndarray of int64, shape (shards,)
        The number of the last use of each shard.
    loaded : dict of int to LoadedShard
        The registered shards. They own the maps.
    """

    __slots__ = ("__weakref__", "_registry", "first_sample", "last_use", "loaded")

    def __init__(self, registry: ShardRegistry, shards: int) -> None:
        self._registry = registry
        self.first_sample = np.zeros(shards, np.int64)
        self.last_use = np.zeros(shards, np.int64)
        self.loaded: dict[int, LoadedShard] = {}

    def close(self) -> None:
        """Wait until all uses of the shards have completed, and unregister the shards."""
        self._registry.release(self)


class ShardRegistry:
    """The registered shards of all datasets of a process.

    Parameters
    ----------
    memory : DeviceMemory
        Registers memory for the device.
    limit : int
        Maximum bytes of registered pages.

    Attributes
    ----------
    lock : Lock
        Held from `begin_use` to `end_use`.
    nbytes : int
        The bytes of registered pages.
    """

    def __init__(self, memory: DeviceMemory, limit: int) -> None:
        self._memory, self.limit = memory, limit
        self._shards: list[RegisteredShards] = []
        self.reset_process_state()
        renew_in_child(self)

    def reset_process_state(self) -> None:
        """Forget all shards in a forked process: only the parent can unregister them."""
        for shards in self._shards:
            shards.first_sample[:] = 0
            shards.loaded.clear()
        self.lock = threading.Lock()
        self.nbytes = 0
        self._shards = []
        self._by_dataset: WeakKeyDictionary[Any, RegisteredShards] = WeakKeyDictionary()
        self._abandoned: deque[RegisteredShards] = deque()
        self._ranges: dict[int, _Range] = {}
        self._uses = 0
        self._events: deque[tuple[int, Any]] = deque()

    def shards_of(self, fetcher: Fetcher) -> RegisteredShards:
        """Return the registered shards of a dataset, which closing the dataset unregisters."""
        dataset = fetcher.shards
        with self.lock:
            shards = self._by_dataset.get(dataset)
            if shards is None:
                shards = RegisteredShards(self, len(fetcher.index))
                self._by_dataset[dataset] = shards
                self._shards.append(shards)
                # The end of the process unregisters all shards, so `atexit` is not needed.
                finalize(dataset, self._abandon, shards).atexit = False
        fetcher.add_user(shards)
        return shards

    # Uses

    def begin_use(self) -> int:
        """Return the number of a new use. The caller holds `lock` until `end_use`."""
        self._release_abandoned()
        self._uses += 1
        return self._uses

    def end_use(self, event: Any) -> None:
        """Record the event that completes after the reads of the current use."""
        self._events.append((self._uses, event))
        while self._events and self._events[0][1].query():
            self._events.popleft()

    def register(
        self, shards: RegisteredShards, fetcher: Fetcher, numbers: Int64
    ) -> tuple[int, bool]:
        """Register shards for the current use, up to `MAX_NEW_BYTES`.

        Parameters
        ----------
        shards : RegisteredShards
        fetcher : Fetcher
        numbers : ndarray of int64
            Numbers of distinct shards.

        Returns
        -------
        nbytes : int
            The bytes that were registered now.
        is_complete : bool
            True if all of the shards are registered.

        Raises
        ------
        GatherRefusal
            If the limit is too small, or if a shard is not in a mapped file as a whole.
        RegistrationError
            If the driver refuses.
        ValueError
            If the dataset is closed.
        """
        fetcher.current_table()  # raises if the dataset is closed
        if fetcher.remotes and self._uses % SWEEP_USES == 0:
            self._release_evicted(shards)
        pages = -(-fetcher.index.nbytes[numbers] // mmap.PAGESIZE)
        if int(pages.sum()) * mmap.PAGESIZE > self.limit:
            # The text is the same for all batches, so that there is one warning.
            raise GatherRefusal(
                f"the shards of a batch have more bytes than the {size_text(self.limit)} that are "
                "registered at most; shuffle in blocks, with shuffle=npstream.Shuffle(block=...)"
            )
        shards.last_use[numbers] = self._uses
        nbytes = 0
        for number in numbers[shards.first_sample[numbers] == 0].tolist():
            if nbytes and nbytes + int(fetcher.index.nbytes[number]) > MAX_NEW_BYTES:
                return nbytes, False
            nbytes += self._register_shard(shards, fetcher, number)
        return nbytes, True

    def _register_shard(self, shards: RegisteredShards, fetcher: Fetcher, number: int) -> int:
        """Register a shard; return the bytes of its pages."""
        loaded = fetcher.loaded_shard(number)
        if loaded is None or not loaded.resident.all():
            raise GatherRefusal(
                "not all chunks of the shards are in the cache, each shard in one file; batches "
                "are gathered by the device once they are"
            )
        if not memory.is_mapped(loaded.data):
            raise GatherRefusal("the shards are compressed, so that no file has their samples")
        address = memory.address_of(loaded.data)
        first, stop = address, address + len(loaded.data)
        first -= first % mmap.PAGESIZE
        stop += -stop % mmap.PAGESIZE
        registered = self._ranges.get(first)
        if registered is None:
            self._make_room(stop - first)
            # Read ahead: otherwise the driver would wait for one page fault after the other.
            memory.will_need(loaded.data)
            device_address = self._memory.register(first, stop - first)
            registered = _Range(stop - first, device_address, 0)
            self.nbytes += registered.nbytes
        self._ranges[first] = registered._replace(users=registered.users + 1)
        shards.loaded[number] = loaded
        begin = address - first + loaded.begin
        shards.first_sample[number] = registered.device_address + begin
        return registered.nbytes

    def _make_room(self, nbytes: int) -> None:
        """Unregister the shards of the oldest uses, so that `nbytes` can be registered.

        The shards of the current use stay. `register` has checked that these are within the limit.
        """
        if self.nbytes + nbytes <= self.limit:
            return
        target = self.limit - nbytes - self.limit // FREED_DIVISOR
        oldest = sorted(
            (int(shards.last_use[number]), index, number)
            for index, shards in enumerate(self._shards)
            for number in shards.loaded
        )
        for use, index, number in oldest:
            if use == self._uses or self.nbytes <= max(target, 0):
                break
            self._unregister(self._shards[index], number)

    # Releases

    def release(self, shards: RegisteredShards) -> None:
        """Wait until all uses of a dataset's shards have completed, and unregister the shards."""
        with self.lock:
            self._release_abandoned()
            for number in list(shards.loaded):
                self._unregister(shards, number)

    def _unregister(self, shards: RegisteredShards, number: int) -> None:
        """Wait until all uses of a shard have completed, unregister it, and release its map."""
        for use, event in list(self._events):
            if use <= shards.last_use[number]:
                event.synchronize()
        loaded = shards.loaded.pop(number)
        shards.first_sample[number] = 0
        address = memory.address_of(loaded.data)
        address -= address % mmap.PAGESIZE
        registered = self._ranges.pop(address)
        if registered.users > 1:
            self._ranges[address] = registered._replace(users=registered.users - 1)
            return
        self.nbytes -= registered.nbytes
        self._memory.unregister(address)

    def _release_evicted(self, shards: RegisteredShards) -> None:
        """Unregister shards whose files were evicted, because a map keeps their disk space."""
        for number, loaded in list(shards.loaded.items()):
            if not loaded.resident.all():
                self._unregister(shards, number)

    def _abandon(self, shards: RegisteredShards) -> None:
        """Unregister the shards of a dataset that was deleted and not closed.

        Garbage collection may call this while this thread holds the lock. Then the next use
        unregisters them.
        """
        self._abandoned.append(shards)
        if self.lock.acquire(blocking=False):
            try:
                self._release_abandoned()
            finally:
                self.lock.release()

    def _release_abandoned(self) -> None:
        while self._abandoned:
            shards = self._abandoned.popleft()
            for number in list(shards.loaded):
                self._unregister(shards, number)
            self._shards = [other for other in self._shards if other is not shards]
