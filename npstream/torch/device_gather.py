"""Provide `GatherPlacer`, whose device reads the rows of a batch from mapped shards by itself.

The processor computes only the addresses of rows. A kernel of the device copies the values of fixed
size over the bus, from shards that `ShardRegistry` has registered. Threads read the other columns
into pinned buffers, as `PinnedPlacer` does. `PinnedPlacer` also reads all batches that the device
cannot gather. A warning gives each reason once.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

import npstream.torch as tensors
import torch
from npstream._core.arguments import size_text
from npstream._core.memory import available_memory
from npstream.reading.gather import Lookup
from npstream.torch.cuda_gather import CudaGatherBackend, find_cuda_obstacle
from npstream.torch.device import GatheredTensor, PinnedPlacer, Placer, address_view, make_placer
from npstream.torch.gather_columns import GatherError, column_bytes
from npstream.torch.registry import GatherRefusal, RegistrationError, ShardRegistry

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray, Int64
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source
    from npstream.torch.gather_columns import ColumnBytes, GatherBackend
    from npstream.torch.registry import DeviceMemory, RegisteredShards

__all__ = ["GatherPlacer", "find_obstacle", "make_gather_placer"]

_MEMORY_DIVISOR = 2
"""All ranks of a machine together register at most its available memory divided by this number."""

MAX_REGISTERED_RATIO = 2
"""Maximum ratio of the bytes that a loop registers to the bytes that it gathers.

The ratio is checked once the loop has registered more bytes than the limit of the registry.
Registering a byte takes about as long as gathering a byte.
"""

CHECKED_ROWS = 64
"""Number of the first rows of a loop that are compared with the rows that the processor reads."""


def find_obstacle(device: torch.device, source: Source, plan: Plan) -> str | None:
    """Return why a device cannot gather any batch of a source; None if it perhaps can."""
    if device.type != "cuda":
        return f"{device.type!r} is no CUDA device"
    layouts = source.fetcher.layouts
    if all(layout is None for layout in layouts):
        return "the samples are lines of text"
    if not any(layout is not None and layout.stride for layout in layouts):
        return "samples vary in size, because a column does"
    if not any(column_bytes(plan.fields, layout) for layout in layouts):
        return (
            "the columns have no values of fixed size that torch has a dtype for, other than bool"
        )
    return find_cuda_obstacle()


class GatherPlacer(PinnedPlacer):
    """Lets a device gather the rows of batches, or copies them through pinned buffers.

    Parameters
    ----------
    backend : GatherBackend
    threads : int
        Threads that place items.
    registry : ShardRegistry
    """

    def __init__(self, backend: GatherBackend, threads: int, registry: ShardRegistry) -> None:
        super().__init__(backend, threads)
        self._gather_backend, self._registry = backend, registry
        self._is_off = self._is_checked = False
        self._registered_bytes = self._gathered_bytes = 0

    def gather(
        self, source: Source, plan: Plan, lookup: Lookup, batch_size: int
    ) -> list[dict[str, Any]]:
        """Start to gather rows; return the columns of each batch, or [] if that is impossible.

        Parameters
        ----------
        source : Source
        plan : Plan
            The columns.
        lookup : Lookup
            The rows of one or more batches.
        batch_size : int
            Samples in a batch; the last one may have fewer.

        Returns
        -------
        list of dict of str to GatheredTensor
            The gathered columns of each batch. Other columns must be read.
        """
        if self._is_off or not len(lookup.samples):
            return []
        try:
            return self._gather(source, plan, lookup, batch_size)
        except GatherRefusal as refusal:
            warn_once(source, str(refusal))
        except (GatherError, RegistrationError) as error:
            self._is_off = True
            warn_once(source, str(error))
        return []

    def _gather(
        self, source: Source, plan: Plan, lookup: Lookup, batch_size: int
    ) -> list[dict[str, Any]]:
        fetcher, ids = source.fetcher, lookup.samples
        index = fetcher.index
        shard_of = np.searchsorted(index.starts, ids, side="right") - 1
        numbers = np.unique(shard_of)
        schemas = np.unique(index.schema_ids[numbers])
        layout = fetcher.layouts[int(schemas[0])]
        columns = column_bytes(plan.fields, layout)
        if len(schemas) > 1 or layout is None or not columns:
            raise GatherRefusal("not all shards have the same columns of fixed size")
        rows, shards = ids - index.starts[shard_of], self._registry.shards_of(fetcher)
        buffer = self.ring.take(8 * len(ids))
        event = None
        try:
            addresses = address_view(buffer, len(ids))
            with self._registry.lock:
                self._registry.begin_use()
                if not self._register(source, shards, numbers):
                    return []
                addresses.numpy()[:] = shards.first_sample[shard_of] + rows * layout.stride
                try:
                    sent = self._backend.send([addresses])[0][0]
                    batches = self._start(sent, columns, batch_size)
                finally:
                    event = self._gather_backend.record_event()
                    self._registry.end_use(event)
        finally:
            self.ring.give_back(buffer, event)
        if not self._is_checked:
            self._check(source, columns, lookup, batches[0], event)
        self._gathered_bytes += len(ids) * sum(column.nbytes for column in columns)
        if fetcher.remotes:
            fetcher.count_use(ids, np.full(len(ids), layout.stride))
        return batches

    def _register(self, source: Source, shards: RegisteredShards, numbers: Int64) -> bool:
        """Register shards; return True if all of them are registered."""
        registry = self._registry
        is_missing = bool((shards.first_sample[numbers] == 0).any())
        limit = max(registry.limit, MAX_REGISTERED_RATIO * self._gathered_bytes)
        if is_missing and self._registered_bytes > limit:
            raise GatherRefusal(
                "registering shards moves more bytes than the batches have, because at most "
                f"{size_text(registry.limit)} are registered at a time; shuffle in blocks, with "
                "shuffle=npstream.Shuffle(block=...)"
            )
        nbytes, is_complete = registry.register(shards, source.fetcher, numbers)
        self._registered_bytes += nbytes
        return is_complete

    def _start(
        self, addresses: torch.Tensor, columns: list[ColumnBytes], batch_size: int
    ) -> list[dict[str, Any]]:
        """Start to gather all batches. Each batch has memory of its own."""
        batches = []
        for start in range(0, len(addresses), batch_size):
            part = addresses[start : start + batch_size]
            values = self._gather_backend.gather(part, columns)
            batches.append(
                {
                    column.name: GatheredTensor(_with_dtype(value, column))
                    for column, value in zip(columns, values, strict=True)
                }
            )
        return batches

    def _check(
        self,
        source: Source,
        columns: list[ColumnBytes],
        lookup: Lookup,
        batch: dict[str, Any],
        event: Any,
    ) -> None:
        """Raise GatherError unless the first rows are those that the processor reads."""
        event.synchronize()
        first = Lookup(lookup.rows[:CHECKED_ROWS], lookup.samples[:CHECKED_ROWS])
        expected = source.columns(source.plan(tuple(c.name for c in columns)), first, {})
        for column in columns:
            gathered = tensors.to_array(batch[column.name].tensor[:CHECKED_ROWS])
            if _bytes_of_array(gathered) != _bytes_of_array(expected[column.name][: len(gathered)]):
                raise GatherError(
                    f"the values of column {column.name!r} that the device reads differ from those "
                    "that the processor reads, so that the device or its driver cannot read "
                    "registered files"
                )
        self._is_checked = True


def _with_dtype(values: torch.Tensor, column: ColumnBytes) -> torch.Tensor:
    """View a tensor of bytes as a tensor of values, in the dtype and shape of a column."""
    dtype = tensors.to_tensor(np.empty(0, column.dtype)).dtype
    return values.view(dtype).view(len(values), *column.shape)


def _bytes_of_array(values: Any) -> bytes:
    array: AnyArray = np.ascontiguousarray(values)
    return array.tobytes()


_warned: set[str] = set()
_registry: tuple[int, ShardRegistry] | None = None
"""The number of a device, and the registry of this process for this device."""

_registry_lock = threading.Lock()


def warn_once(source: Source, reason: str) -> None:
    """Warn that batches are read into pinned buffers, once for each dataset and reason."""
    message = (
        f"{source.fetcher.shards.root}: threads read batches into pinned buffers, because "
        f"gather='device' is not possible: {reason}"
    )
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def process_registry(device: int, memory: DeviceMemory, ranks: int) -> ShardRegistry | None:
    """Return the registry of this process; None if it belongs to another device.

    Parameters
    ----------
    device : int
        The number of the device.
    memory : DeviceMemory
        Registers memory for the device. Only a new registry uses it.
    ranks : int
        Ranks on this machine, which share its memory.
    """
    global _registry
    with _registry_lock:
        if _registry is None:
            limit = available_memory() // (_MEMORY_DIVISOR * max(ranks, 1))
            _registry = device, ShardRegistry(memory, limit)
        owner, registry = _registry
    return registry if owner == device else None


def make_gather_placer(
    device: Any, threads: int, source: Source, plan: Plan, ranks: int, obstacle: str | None
) -> Placer:
    """Return a placer that lets a device gather, or another one, with a warning.

    Parameters
    ----------
    device : torch.device, str or int
    threads : int
        Threads that place items.
    source : Source
    plan : Plan
        The columns.
    ranks : int
        Ranks on this machine.
    obstacle : str or None
        Why no device can gather the batches of the iteration; None if one perhaps can.

    Raises
    ------
    RuntimeError
        If torch cannot use the device in this process.
    """
    target = torch.device(device)
    obstacle = obstacle or find_obstacle(target, source, plan)
    if obstacle is None:
        try:
            backend = CudaGatherBackend(target)
        except RegistrationError as error:
            obstacle = str(error)
        else:
            registry = process_registry(backend.device.index, backend.memory, ranks)
            if registry is not None:
                return GatherPlacer(backend, threads, registry)
            obstacle = "shards of this process are registered for another device"
    placer = make_placer(device, threads)  # raises if there is no such device
    warn_once(source, obstacle)
    return placer
