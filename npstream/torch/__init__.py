"""Provide the DataLoader for iterations, and functions that need torch.

Only modules of this package import torch. Lower modules import them by name, with
`npstream._core.optional`. They use this one to convert between tensors and arrays. If torch is
already imported, they also use it to find the rank, the worker and the mode of Accelerate, and to
register `Iteration`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from npstream._core.arguments import quantity
from npstream.errors import MissingDependencyError, stop_iteration_error

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("npstream.torch", "torch", "torch") from None
import torch.distributed
import torch.utils._pytree
import torch.utils.data
from torch.utils.data._utils.collate import default_collate_fn_map

from npstream._core.dtypes import ML_DTYPES, dtype_of
from npstream._core.typing import AnyArray, Int64
from npstream.iteration.iteration import Iteration
from npstream.iteration.iterator import EpochIterator
from npstream.iteration.pickling import require_importable
from npstream.reading.batch import Batch, Ragged
from npstream.torch.worker_exit import exit_before_finalizing as exit_before_finalizing

if TYPE_CHECKING:
    from npstream.iteration.iterator import EpochProgress

__all__ = ["DataLoader"]

# Base classes of the classes of `npstream.streaming`.
TorchDataLoader = torch.utils.data.DataLoader
TorchDataset = torch.utils.data.Dataset
TorchIterableDataset = torch.utils.data.IterableDataset


def to_tensor(array: AnyArray) -> torch.Tensor:
    """Return a tensor of an array's values, which shares its memory unless it is read-only."""
    # Torch has no read-only tensors: without a copy, a write to the tensor would change the array.
    array = array if array.flags.writeable else array.copy()
    if (bits := ML_DTYPES.get(array.dtype.name)) is not None:
        dtype = getattr(torch, array.dtype.name, None)
        if dtype is None:
            raise TypeError(f"torch has no dtype {array.dtype}: convert by .view({bits})")
        return torch.from_numpy(array.view(bits)).view(dtype)
    if array.dtype.kind in "mM":
        raise TypeError(f"torch has no dtype for {array.dtype}: convert by .view('int64')")
    return torch.from_numpy(array)


def has_dtype(dtype: np.dtype[Any]) -> bool:
    """Return True if torch has tensors of a dtype."""
    return dtype.kind in "biufc" or (dtype.name in ML_DTYPES and hasattr(torch, dtype.name))


def to_array(tensor: torch.Tensor) -> AnyArray:
    """Return an array of a tensor's values, which shares its memory if NumPy can access it."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind, method = str(tensor.layout), "to_dense"
        if tensor.is_quantized:
            kind, method = "quantized", "dequantize"
        raise TypeError(f"cannot convert a {kind} tensor to an array: call .{method}() first")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if (bits := ML_DTYPES.get(name)) is not None:
        return tensor.view(getattr(torch, bits.name)).numpy().view(dtype_of(name))
    return tensor.numpy()


def to_nested_tensor(values: AnyArray, offsets: Int64) -> torch.Tensor:
    """Return the jagged nested tensor whose row i is ``values[offsets[i]:offsets[i + 1]]``."""
    return torch.nested.nested_tensor_from_jagged(to_tensor(values), to_tensor(offsets))


def register_iterable(iterable: type) -> None:
    """Register a class as an IterableDataset, so that torch's DataLoader iterates over it."""
    torch.utils.data.IterableDataset.register(iterable)


def rank_and_world() -> tuple[int, int] | None:
    """Return rank and number of ranks if torch.distributed is initialized, else None."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None


def worker_and_workers() -> tuple[int, int]:
    """Return the number of this DataLoader worker and of all workers; (0, 0) outside of workers."""
    info = torch.utils.data.get_worker_info()
    return (0, 0) if info is None else (info.id, info.num_workers)


class _SkippedItem:
    """Placeholder for a batch that Accelerate drops, so no data is read for it."""


SKIPPED_ITEM = _SkippedItem()


def _raise_for_batches(batches: list[Batch], *, collate_fn_map: Any = None) -> NoReturn:
    raise TypeError(
        f"this DataLoader would make a batch of {quantity(len(batches), 'batch')}, each of "
        f"{quantity(batches[0].n, 'sample')}: give it batch_size=None; or let torch make the "
        "batches, with ds.iter(batch_size=..., batched=False)"
    )


def _collate_skipped(items: list[_SkippedItem], *, collate_fn_map: Any = None) -> _SkippedItem:
    return items[0]


def _collate_ragged(columns: list[Ragged], *, collate_fn_map: Any = None) -> list[Ragged]:
    return list(columns)


# The default batch size of torch's DataLoader is 1: without an error, torch would silently add an
# axis to each batch.
default_collate_fn_map.update(
    {Batch: _raise_for_batches, Ragged: _collate_ragged, _SkippedItem: _collate_skipped}
)


class _Columns:
    """The pytree context of a batch: the names of its columns, and its `ids` and `repeated`.

    Two contexts are equal if their names are equal: torch treats batches with unequal contexts as
    different structures.
    """

    def __init__(self, names: Iterable[str], ids: Any = None, repeated: Any = None) -> None:
        self.names = tuple(names)
        self.ids, self.repeated = ids, repeated

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Columns) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return repr(list(self.names))


def _flatten(batch: Batch) -> tuple[list[Any], _Columns]:
    return list(batch.values()), _Columns(batch, batch._ids, batch._repeated)


def _flatten_with_keys(batch: Batch) -> tuple[list[tuple[Any, Any]], _Columns]:
    values, columns = _flatten(batch)
    keys: list[Any] = [torch.utils._pytree.MappingKey(name) for name in columns.names]
    return list(zip(keys, values, strict=True)), columns


def _unflatten(values: Iterable[Any], columns: _Columns) -> Batch:
    """Return a batch; it has the ids of its samples if each column has one row per id."""
    batch = Batch(zip(columns.names, values, strict=True))
    ids = columns.ids
    if ids is None or not all(
        np.shape(ids)[:1] == _leading_shape(column) for column in batch.values()
    ):
        return batch
    return Batch(batch, ids, columns.repeated)


def _leading_shape(column: Any) -> tuple[int, ...] | None:
    if isinstance(column, Ragged | list):
        return (len(column),)
    return tuple(column.shape[:1]) if isinstance(column, torch.Tensor | np.ndarray) else None


torch.utils._pytree.register_pytree_node(
    Batch,
    _flatten,
    _unflatten,
    serialized_type_name="npstream.reading.batch.Batch",
    to_dumpable_context=lambda columns: list(columns.names),
    from_dumpable_context=_Columns,
    flatten_with_keys_fn=_flatten_with_keys,
)


_ALIGNMENT = 64
"""Alignment, in bytes, of tensors in shared memory: a cache line."""


def _reduce_batch(batch: Batch) -> tuple[Any, ...]:
    """Pickle a batch for another process, with its dense CPU tensors in one block of shared memory.

    Each block of shared memory costs both processes more than copying most tensors.
    """
    tensors = {
        name: column
        for name, column in batch.items()
        if isinstance(column, torch.Tensor)
        and column.layout is torch.strided
        and column.device.type == "cpu"
        and not column.requires_grad
    }
    if len(tensors) < 2:
        return batch.__reduce_ex__(2)  # type: ignore[return-value]
    sizes = [-(-column.nbytes // _ALIGNMENT) * _ALIGNMENT for column in tensors.values()]
    memory = torch.empty(0, dtype=torch.uint8)
    memory.set_(torch.UntypedStorage._new_shared(sum(sizes)))  # type: ignore[no-untyped-call]
    views = {}
    offset = 0
    for (name, column), size in zip(tensors.items(), sizes, strict=True):
        views[name] = (offset, column.nbytes, column.dtype, tuple(column.shape))
        _view_memory(memory, *views[name]).copy_(column)
        offset += size
    columns = {name: views.get(name, column) for name, column in batch.items()}
    return _rebuild_batch, (memory, columns, list(views)), batch.__getstate__()


def _rebuild_batch(memory: torch.Tensor, columns: dict[str, Any], shared: list[str]) -> Batch:
    return Batch({**columns, **{name: _view_memory(memory, *columns[name]) for name in shared}})


def _view_memory(
    memory: torch.Tensor, offset: int, nbytes: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """Return a tensor over a range of bytes of `memory`."""
    return memory[offset : offset + nbytes].view(dtype).view(shape)


ForkingPickler.register(Batch, _reduce_batch)


def accelerate_mode(dataset: Any) -> tuple[str | None, int]:
    """Return how Accelerate, if imported, reads a dataset now, and how many items it skips.

    The modes are:

    - "shards": Accelerate divides the items among its processes.
    - "skips": Accelerate resumes from a checkpoint. It skips a number of items in the next epoch
      that is read, which may be another epoch than that of the checkpoint. The number is that of
      the items before the checkpoint in its epoch.
    - "prefetches": Accelerate always reads one batch ahead, which saved states would count as
      yielded.
    - None: Accelerate changes neither the items nor the states.
    """
    loaders: Any = sys.modules.get("accelerate.data_loader")
    if loaders is None:
        return None, 0
    loader = loaders.GradientState().active_dataloader
    loader_dataset = getattr(loader, "dataset", None)
    if isinstance(loader_dataset, loaders.IterableDatasetShard):
        is_sharded = loader_dataset.dataset is dataset and loader_dataset.num_processes > 1
        return "shards" if is_sharded else None, 0
    if loader_dataset is not dataset:
        return None, 0
    if isinstance(loader, loaders.DataLoaderDispatcher) and loader.state.num_processes > 1:
        return "shards", 0
    if isinstance(loader, loaders.SkipDataLoader):
        return "skips", loader.skip_batches * (loader.batch_size or 1)
    if isinstance(loader, loaders.DataLoaderShard | loaders.DataLoaderDispatcher):
        is_stateful = hasattr(loader.base_dataloader, "state_dict")
        return None if is_stateful or loader.end_of_dataloader else "prefetches", 0
    return None, 0


class _StopIterationGuard:
    """Wraps a user's function so that a StopIteration in it becomes a RuntimeError.

    Without this, torch would take the StopIteration for the end of the data. Items that Accelerate
    skips do not reach the function. Pickling raises if a worker could not import the function.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function, self._name = function, name

    def __getstate__(self) -> dict[str, Any]:
        require_importable(self._name, self._function)
        return self.__dict__

    def __call__(self, data: Any) -> Any:
        first = data[0] if isinstance(data, list) and data else data
        if isinstance(first, _SkippedItem):
            return first
        try:
            return self._function(data)
        except StopIteration as error:
            raise stop_iteration_error(self._name) from error


class _EpochSampler(torch.utils.data.Sampler[None]):
    """The sampler of a loader. It samples nothing; trainers call its `set_epoch`."""

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration

    def __iter__(self) -> Iterator[None]:
        return repeat(None)

    def set_epoch(self, epoch: int) -> None:
        """Record that a trainer begins or continues its epoch number `epoch`."""
        self._iteration.set_trainer_epoch(epoch)


class DataLoader(torch.utils.data.DataLoader[Any]):
    """Torch's DataLoader for the iterations that ``ds.iter`` returns, with exact states.

    Its states count only batches that it yielded, not batches that its workers prefetched. It tells
    its workers which epoch is next, so that they always read the same epoch.

    Parameters
    ----------
    dataset : Iteration
        The result of ``ds.iter``.
    batch_size : int, optional
        Number of samples in each batch that torch makes. By default torch makes no batches, and
        the loader yields the items of `dataset`.
    **options : Any
        Other parameters of ``torch.utils.data.DataLoader``.

    Raises
    ------
    TypeError
        If `dataset` is not a result of ``ds.iter``.
    ValueError
        If `dataset` yields batches, and `batch_size` is given without a `collate_fn`; or if
        `shuffle` is true.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> loader = DataLoader(ds.iter(0, 1, batch_size=1))
    >>> first = next(iter(loader))
    >>> again = DataLoader(ds.iter(0, 1, batch_size=1))
    >>> again.load_state_dict(loader.state_dict())
    >>> [batch["label"].item() for batch in again]
    [1, 2]
    """

    dataset: Iteration  # type: ignore[assignment]

    # Accelerate does not change a loader with this attribute. It would read any other loader on
    # rank 0 only, and divide its data among the ranks.
    _is_accelerate_prepared = True

    def __init__(self, dataset: Iteration, batch_size: int | None = None, **options: Any) -> None:
        if not isinstance(dataset, Iteration):
            raise TypeError(
                f"dataset is a {type(dataset).__name__}, and not a result of ds.iter(...): use "
                "torch's own DataLoader, which takes any dataset"
            )
        if shuffle := options.get("shuffle"):
            raise ValueError(
                f"shuffle={shuffle!r}: ds.iter(...) determines the order of samples, not the "
                f"DataLoader: give ds.iter(shuffle={shuffle!r})"
            )
        for name in ("collate_fn", "worker_init_fn"):
            if options.get(name) is not None:
                options[name] = _StopIterationGuard(options[name], name)
            elif name == "collate_fn" and batch_size is not None and dataset.yields_batches:
                raise ValueError(
                    f"batch_size={batch_size}: the dataset yields batches already: leave "
                    "batch_size out, or give batch_size=None; or let torch make the batches, with "
                    "ds.iter(batch_size=..., batched=False)"
                )
        super().__init__(dataset, batch_size, **options)  # type: ignore[arg-type]
        sampler = _EpochSampler(dataset)
        object.__setattr__(self, "sampler", sampler)  # torch's __setattr__ would raise
        if self.batch_sampler is not None:
            self.batch_sampler.sampler = sampler  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers and not getattr(self, "in_order", True):
            raise ValueError("in_order=False: without an order of batches there is no exact state")
        progress = self.dataset.begin()
        iterator = EpochIterator.create(
            progress, self._samples_per_item(progress), self._items(progress), self._items
        )
        return self.dataset.attach(iterator)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iterator": None}

    def _samples_per_item(self, progress: EpochProgress) -> int:
        return self.dataset.samples_per_item(progress, self.batch_size, self.num_workers)

    def _items(self, progress: EpochProgress) -> Iterator[Any]:
        """Let torch's DataLoader read the rest of the epoch after `progress`."""
        if progress.resume_cursor(progress.position + progress.failed_positions) is None:
            return iter(())  # nothing is left: starts no workers
        return self._checked_batches(self.dataset.coordinate(progress, super().__iter__), progress)

    def _checked_batches(self, batches: Iterator[Any], progress: EpochProgress) -> Iterator[Any]:
        """Yield batches; raise RuntimeError if too few come."""
        try:
            for batch in batches:
                self.dataset.require_newest(progress)
                yield batch
        except GeneratorExit:
            raise
        except BaseException:
            self._iterator = None  # its persistent workers may be dead
            raise
        missing = progress.part.samples - progress.samples_done
        if missing > (self._samples_per_item(progress) - 1 if self.drop_last else 0):
            raise RuntimeError(
                f"torch's DataLoader ended before it read {missing:,} of this rank's "
                f"{quantity(progress.part.samples, 'sample')}: a function that it calls, such as a "
                "collate_fn, may have raised StopIteration"
            )

    @property
    def epoch(self) -> int:
        """The epoch of the current loop, or outside of loops, of the next loop."""
        return self.dataset.epoch

    def state_dict(self, *composer: Any) -> dict[str, Any]:
        """Return a state from which to resume after the last yielded batch.

        Parameters
        ----------
        *composer : Any
            The arguments that Composer passes; see
            `npstream.iteration.iteration.Iteration.state_dict`.

        Returns
        -------
        dict
            It holds only values that JSON can represent.

        Examples
        --------
        >>> loader = DataLoader(getfixture("example").iter(0, 1, batch_size=2))
        >>> loader.state_dict()["epoch"]
        0
        """
        return self.dataset.state_dict(*composer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin at a saved state.

        The state may come from a loader with another number of workers.

        Parameters
        ----------
        state : mapping
            The result of `state_dict` of a loader or of an iteration.

        Raises
        ------
        ValueError
            If the state is of another dataset or view, or of another order.
        RuntimeError
            In a loop over this loader, which would not see the state.

        Examples
        --------
        >>> loader = DataLoader(getfixture("example").iter(0, 1, batch_size=1))
        >>> first = next(iter(loader))
        >>> again = DataLoader(getfixture("example").iter(0, 1, batch_size=1))
        >>> again.load_state_dict(loader.state_dict())
        >>> [batch.ids.tolist() for batch in again]
        [[1], [2]]
        """
        self.dataset.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Make all further iterations read this epoch, until the next call.

        Parameters
        ----------
        epoch : int
            Number of the epoch, at least 0.

        Raises
        ------
        RuntimeError
            In a loop over this loader, whose epoch cannot change.

        Examples
        --------
        >>> loader = DataLoader(getfixture("example").iter(0, 1, batch_size=2))
        >>> loader.set_epoch(4)
        >>> loader.epoch
        4
        """
        self.dataset.set_epoch(epoch)

    def skip(self, start: int, stop: int) -> None:
        """Skip batches of an epoch.

        In a loop, the current epoch skips them, from its next batch on. Outside of a loop, the next
        iteration skips them.

        Parameters
        ----------
        start, stop : int
            The first skipped batch, and the one after the last, counted from the beginning of the
            epoch. A `stop` after the last batch skips the rest of the epoch.

        Raises
        ------
        RuntimeError
            In a worker of a DataLoader.
        ValueError
            If `start` is after `stop` or after the epoch's last batch, or if an epoch would have
            more than 8 separate skipped ranges.

        Examples
        --------
        >>> loader = DataLoader(getfixture("example").iter(0, 1, batch_size=1))
        >>> loader.skip(0, 2)
        >>> [batch.ids.tolist() for batch in loader]
        [[2]]
        """
        self.dataset.skip(start, stop)
