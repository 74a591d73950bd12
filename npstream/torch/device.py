"""Provide placers, which make tensors of the items of an iteration, on the CPU or on a device.

`PinnedPlacer` is for CUDA. Threads read batches into pinned buffers, and start their copies on a
side stream. The loop's stream waits for a copy on the device, and the loop's thread does not wait.
A pinned buffer is used again when the event of its last copy is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch.utils._pytree as pytree

import npstream.torch as tensors
import torch
from npstream._core.memory import address_of
from npstream._core.typing import AnyArray
from npstream.reading.ragged import Ragged

if TYPE_CHECKING:
    from npstream.reading.gather import Lookup
    from npstream.reading.plan import Field, Plan
    from npstream.reading.source import Source

__all__ = [
    "Backend",
    "CudaBackend",
    "GatheredTensor",
    "PinnedPlacer",
    "PinnedRing",
    "Placer",
    "address_view",
    "make_placer",
]

ALIGNMENT = 256
"""Alignment, in bytes, of arrays in a pinned buffer."""

BUFFERS_PER_THREAD = 2
"""A thread may hold two buffers: one that it reads into, and one for all other tensors."""


class Backend(Protocol):
    """What a placer asks of a device."""

    device: torch.device

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Return pinned memory as a tensor of bytes."""

    def send(self, sources: list[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """Start copies to the device. Return the copies, and an event that is done after them."""

    def receive(self, copies: list[torch.Tensor], event: Any) -> None:
        """Make the current stream of the caller wait for `event` on the device."""


class CudaBackend:
    """Copies to a CUDA device on a side stream.

    Parameters
    ----------
    device : torch.device

    Raises
    ------
    RuntimeError
        If there is no such device, or if this process was forked after its parent started CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        if torch.cuda._is_in_bad_fork():
            raise RuntimeError(
                f"device='{device}': this process was forked after its parent had started CUDA, so "
                "CUDA cannot be used in it: start processes with the method 'spawn', or fork them "
                "before CUDA is used"
            )
        if not torch.cuda.is_available():
            raise RuntimeError(
                f"device='{device}': torch finds no CUDA device here (torch.cuda.is_available() is "
                "False); leave device= out to get tensors on the CPU"
            )
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Return pinned memory as a tensor of bytes."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def send(self, sources: list[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        """Start copies to the device. Return the copies, and an event that is done after them."""
        with torch.cuda.stream(self._stream):
            copies = [source.to(self.device, non_blocking=True) for source in sources]
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return copies, event

    def receive(self, copies: list[torch.Tensor], event: Any) -> None:
        """Make the current stream of the caller wait for `event` on the device."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        for copy in copies:
            # Otherwise the allocator could reuse the memory while the loop's stream reads it.
            copy.record_stream(stream)


class PinnedBuffer:
    """A pinned buffer, and the event of the last copy from it.

    Attributes
    ----------
    memory : ndarray of uint8
    event : object or None
        The event; None before the first copy.
    """

    __slots__ = ("_tensor", "event", "memory")

    def __init__(self) -> None:
        self.memory: AnyArray = np.empty(0, np.uint8)
        self._tensor: torch.Tensor | None = None
        self.event: Any = None

    def reserve(self, backend: Backend, nbytes: int) -> None:
        """Enlarge the buffer to at least `nbytes`."""
        if self.memory.nbytes < nbytes:
            self._tensor = backend.pinned(max(nbytes, 2 * self.memory.nbytes))
            self.memory = self._tensor.numpy()

    def __contains__(self, array: AnyArray) -> bool:
        begin, address = address_of(self.memory), address_of(array)
        return begin <= address and address + array.nbytes <= begin + self.memory.nbytes


class PinnedRing:
    """Pinned buffers. Each buffer is used again when its last copy is done.

    Parameters
    ----------
    backend : Backend
    count : int
        The number of buffers. They take memory from their first use on.
    """

    def __init__(self, backend: Backend, count: int) -> None:
        self._backend = backend
        self._buffers: SimpleQueue[PinnedBuffer] = SimpleQueue()
        for _ in range(count):
            self._buffers.put(PinnedBuffer())

    def take(self, nbytes: int) -> PinnedBuffer:
        """Return the buffer that was given back first, after its last copy is done."""
        buffer = self._buffers.get()
        try:
            if buffer.event is not None:
                buffer.event.synchronize()
                buffer.event = None
            buffer.reserve(self._backend, nbytes)
        except BaseException:
            self._buffers.put(buffer)
            raise
        return buffer

    def give_back(self, buffer: PinnedBuffer, event: Any) -> None:
        """Let `take` return the buffer again after `event`."""
        buffer.event = event
        self._buffers.put(buffer)


def address_view(buffer: PinnedBuffer, count: int) -> torch.Tensor:
    """Return an int64 tensor over the first bytes of a pinned buffer.

    It is for the addresses of `count` samples that a device gathers.
    """
    return torch.from_numpy(buffer.memory[: 8 * count].view(np.int64))


class GatheredTensor:
    """A column that a device gathers, as a leaf of an item.

    `PinnedPlacer.place` replaces the leaf by `tensor`.

    Attributes
    ----------
    tensor : Tensor
        The values, on the device, once the side stream has gathered them.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class PlacedItem:
    """An item whose tensors are being copied to a device.

    Attributes
    ----------
    value : Any
        The item.
    copies : list of Tensor
        Its tensors on the device.
    event : object
        The event after their copies.
    nbytes : int
        Bytes of the tensors.
    """

    __slots__ = ("copies", "event", "nbytes", "value")

    def __init__(self, value: Any, copies: list[torch.Tensor], event: Any) -> None:
        self.value, self.copies, self.event = value, copies, event
        self.nbytes = sum(copy.nbytes for copy in copies)


class Placer:
    """Makes CPU tensors of the arrays in items, over the same memory, and moves them to a device.

    Parameters
    ----------
    device : torch.device, optional
        Any device but CUDA. By default the tensors stay on the CPU.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device

    def gather(
        self, source: Source, plan: Plan, lookup: Lookup, batch_size: int
    ) -> list[dict[str, Any]]:
        """Return columns of batches that a device gathers: here, none."""
        return []

    def outputs(self, fields: Iterable[Field], rows: int) -> tuple[dict[str, AnyArray], Any]:
        """Return no arrays and no buffer: columns are read into new arrays."""
        return {}, None

    def give_back(self, buffer: Any, items: list[Any]) -> None:
        """Do nothing, because `outputs` returns no buffer."""

    def place(self, item: Any, buffer: Any = None) -> Any:
        """Return an item with tensors instead of arrays. Threads call this.

        Parameters
        ----------
        item : Any
            Arrays, tensors and Ragged columns in any structure of dicts, lists and tuples.
        buffer : object, optional
            The buffer that `outputs` returned.
        """
        return pytree.tree_map(cpu_leaf, item)

    def receive(self, item: Any) -> Any:
        """Return a placed item, with its tensors on the device. The loop's thread calls this."""
        if self._device is None:
            return item
        device = self._device

        def move(leaf: Any) -> Any:
            return leaf.to(device, non_blocking=True) if isinstance(leaf, torch.Tensor) else leaf

        return pytree.tree_map(move, item)


class PinnedPlacer(Placer):
    """Copies items to a device through pinned buffers.

    Parameters
    ----------
    backend : Backend
    threads : int
        Threads that place items.
    """

    def __init__(self, backend: Backend, threads: int) -> None:
        super().__init__()
        self._backend = backend
        # With one more buffer, a thread can read into it while its last copies run.
        self.ring = PinnedRing(backend, BUFFERS_PER_THREAD * max(threads, 1) + 1)

    def outputs(self, fields: Iterable[Field], rows: int) -> tuple[dict[str, AnyArray], Any]:
        """Return arrays in a pinned buffer to read columns of fixed size into."""
        fixed = [
            f
            for f in fields
            if f.encoding.kind == "fixed"
            and f.computation is None
            and tensors.has_dtype(f.encoding.dtype)
        ]
        shapes = {f.name: ((rows, *(f.shape or ())), f.encoding.dtype) for f in fixed}
        sizes = {name: _nbytes(*shape) for name, shape in shapes.items()}
        if not sum(sizes.values()):
            return {}, None
        buffer = self.ring.take(sum(map(_aligned, sizes.values())))
        arrays, begin = {}, 0
        for name, (shape, dtype) in shapes.items():
            arrays[name] = buffer.memory[begin : begin + sizes[name]].view(dtype).reshape(shape)
            begin += _aligned(sizes[name])
        return arrays, buffer

    def give_back(self, buffer: Any, items: list[Any]) -> None:
        """Let a buffer be used again, once `items` are copied to the device."""
        if buffer is not None:
            # The stream runs copies in order, so the last event comes after all of them.
            events = [item.event for item in items if isinstance(item, PlacedItem)]
            self.ring.give_back(buffer, events[-1] if events else None)

    def place(self, item: Any, buffer: Any = None) -> Any:
        """Start the copies of an item's arrays to the device."""
        leaves, structure = pytree.tree_flatten(item)
        leaves = [cpu_leaf(leaf) for leaf in leaves]
        sources: list[torch.Tensor] = []
        for leaf in leaves:
            sources += _dense_parts(leaf)
        staged = self._stage(sources, buffer)
        event = None
        try:
            copies, event = self._backend.send(staged.sources)
        finally:
            # If `send` raises, its copies are dropped, so the buffer may be overwritten.
            if staged.buffer is not None:
                self.ring.give_back(staged.buffer, event)
        remaining = iter(copies)
        value = pytree.tree_unflatten([_replace(leaf, remaining) for leaf in leaves], structure)
        gathered = [leaf.tensor for leaf in leaves if isinstance(leaf, GatheredTensor)]
        return PlacedItem(value, copies + gathered, event)

    def _stage(self, sources: list[torch.Tensor], buffer: Any) -> _Staged:
        """Copy tensors that are not in `buffer` to another pinned buffer."""
        is_pinned = [buffer is not None and _bytes_of(source) in buffer for source in sources]
        sizes = [_aligned(source.nbytes) for source in sources]
        total = sum(size for size, pinned in zip(sizes, is_pinned, strict=True) if not pinned)
        if not total:
            return _Staged(sources, None)
        staging = self.ring.take(total)
        memory, begin, staged = torch.from_numpy(staging.memory), 0, []
        for source, size, pinned in zip(sources, sizes, is_pinned, strict=True):
            if pinned:
                staged.append(source)
                continue
            target = memory[begin : begin + source.nbytes].view(source.dtype).view(source.shape)
            staged.append(target.copy_(source))
            begin += size
        return _Staged(staged, staging)

    def receive(self, item: Any) -> Any:
        """Make the loop's stream wait for the copies of an item, and return the item."""
        self._backend.receive(item.copies, item.event)
        return item.value


class _Staged:
    """Tensors in pinned memory, and the buffer that was taken for some of them."""

    def __init__(self, sources: list[torch.Tensor], buffer: PinnedBuffer | None) -> None:
        self.sources, self.buffer = sources, buffer


def make_placer(device: Any, threads: int) -> Placer:
    """Return the placer for a device.

    Parameters
    ----------
    device : torch.device, str, int or None
        None for tensors on the CPU.
    threads : int
        Threads that place items.

    Raises
    ------
    RuntimeError
        If torch knows no such device, or cannot use CUDA in this process.
    """
    if device is None:
        return Placer()
    device = torch.device(device)
    if device.type == "cuda":
        return PinnedPlacer(CudaBackend(device), threads)
    return Placer(None if device.type == "cpu" else device)


def cpu_leaf(leaf: Any) -> Any:
    """Return a CPU tensor of an array, a copy if it is read-only; a nested one for a Ragged.

    Values for which torch has no type, such as text, stay unchanged.
    """
    if isinstance(leaf, Ragged):
        is_numeric = leaf.kind != "str" and tensors.has_dtype(leaf.dtype)
        return leaf.to_torch() if is_numeric else leaf
    if isinstance(leaf, np.ndarray):
        return tensors.to_tensor(leaf) if tensors.has_dtype(leaf.dtype) else leaf
    if isinstance(leaf, np.generic) and tensors.has_dtype(leaf.dtype):
        return tensors.to_tensor(np.array(leaf))
    return leaf


def _dense_parts(leaf: Any) -> list[torch.Tensor]:
    """Return the dense CPU tensors of a leaf: values and offsets of a nested one."""
    if not isinstance(leaf, torch.Tensor) or leaf.device.type != "cpu":
        return []
    if leaf.is_nested:
        nested: Any = leaf
        return [nested.values(), nested.offsets()]
    return [leaf] if leaf.layout is torch.strided else []


def _replace(leaf: Any, copies: Any) -> Any:
    """Return a leaf made of the next copies."""
    if isinstance(leaf, GatheredTensor):
        return leaf.tensor
    parts = _dense_parts(leaf)
    if not parts:
        return leaf
    moved = [next(copies) for _ in parts]
    if leaf.is_nested:
        return torch.nested.nested_tensor_from_jagged(*moved)
    return moved[0]


def _bytes_of(tensor: torch.Tensor) -> AnyArray:
    """Return the bytes of a contiguous tensor as an array; an empty one for other tensors."""
    if not tensor.is_contiguous() or not tensor.nbytes:
        return np.empty(0, np.uint8)
    array: AnyArray = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return array


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
