"""The one door to torch.

Nothing else imports torch, and lower modules come here by name: when they are asked for a tensor,
or when torch is there already and may know what they want to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from npstream._core.arguments import quantity
from npstream.errors import MissingDependencyError, stopped

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
from npstream.reading.batch import Batch, Ragged

if TYPE_CHECKING:
    from npstream.iteration.iterator import EpochProgress

__all__ = ["DataLoader"]


def tensor(array: AnyArray) -> torch.Tensor:
    """Return a tensor over an array's memory, or over a copy's if the array is read-only."""
    # Torch knows no read-only tensors: it would warn, and let the write through.
    array = array if array.flags.writeable else array.copy()
    if (bits := ML_DTYPES.get(array.dtype.name)) is not None:
        known = getattr(torch, array.dtype.name, None)
        if known is None:
            raise TypeError(f"torch has no dtype {array.dtype}: take its bits, as .view({bits})")
        return torch.from_numpy(array.view(bits)).view(known)
    if array.dtype.kind in "mM":
        raise TypeError(
            f"torch has no dtype for {array.dtype}: take its numbers, as .view('int64')"
        )
    return torch.from_numpy(array)


def has_dtype(dtype: np.dtype[Any]) -> bool:
    """Return True if torch has tensors of a dtype."""
    return dtype.kind in "biufc" or (dtype.name in ML_DTYPES and hasattr(torch, dtype.name))


def array(tensor: torch.Tensor) -> AnyArray:
    """Return an array of a tensor's values, over the same memory where NumPy can have that."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout)
        raise TypeError(f"a tensor that is {kind} is no array: convert it, as with .to_dense()")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if (bits := ML_DTYPES.get(name)) is not None:
        return tensor.view(getattr(torch, bits.name)).numpy().view(dtype_of(name))
    return tensor.numpy()


def nested(values: AnyArray, offsets: Int64) -> torch.Tensor:
    """Return the nested tensor, in jagged layout, of rows ``values[offsets[i]:offsets[i + 1]]``."""
    return torch.nested.nested_tensor_from_jagged(tensor(values), tensor(offsets))


def register(iterable: type) -> None:
    """Make a class an IterableDataset, as which DataLoader iterates over it."""
    torch.utils.data.IterableDataset.register(iterable)


def rank_and_world() -> tuple[int, int] | None:
    """Return the process's rank and the number of ranks, if a process group is initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None


def worker() -> tuple[int, int]:
    """Return the number of the DataLoader's worker that this process is, and of all workers.

    In a process that is none, these are 0 and 0.
    """
    info = torch.utils.data.get_worker_info()
    return (0, 0) if info is None else (info.id, info.num_workers)


class _SkippedItem:
    """Stands for batches that are dropped unseen, so that none has to be read for them."""


SKIPPED_ITEM = _SkippedItem()


def _refuse(batches: list[Batch], *, collate_fn_map: Any = None) -> NoReturn:
    """Refuse to make a batch of batches."""
    raise TypeError(
        f"this DataLoader makes batches, of {len(batches)} each, of what are batches already, of "
        f"{quantity(batches[0].n, 'sample')}: give it batch_size=None; or let torch make the "
        "batches, of ds.iter(batch_size=..., batched=False)"
    )


def _first(items: list[_SkippedItem], *, collate_fn_map: Any = None) -> _SkippedItem:
    return items[0]


def _listed(columns: list[Ragged], *, collate_fn_map: Any = None) -> list[Ragged]:
    return list(columns)


# Torch would wrap each batch in one more axis without a word: its default batch size is 1.
default_collate_fn_map.update({Batch: _refuse, Ragged: _listed, _SkippedItem: _first})


class _Columns:
    """What torch keeps of a batch that it takes apart as a pytree: a dict of its columns.

    Two are equal if the names are. Which samples they are only goes along.
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


def _taken_apart(batch: Batch) -> tuple[list[Any], _Columns]:
    return list(batch.values()), _Columns(batch, batch._ids, batch._repeated)


def _taken_apart_by_name(batch: Batch) -> tuple[list[tuple[Any, Any]], _Columns]:
    values, columns = _taken_apart(batch)
    keys: list[Any] = [torch.utils._pytree.MappingKey(name) for name in columns.names]
    return list(zip(keys, values, strict=True)), columns


def _put_together(values: Iterable[Any], columns: _Columns) -> Batch:
    """Return a batch, which still knows its samples if all its columns have as many rows."""
    batch = Batch(zip(columns.names, values, strict=True))
    ids = columns.ids
    if ids is None or not all(np.shape(ids)[:1] == _rows(column) for column in batch.values()):
        return batch
    return Batch(batch, ids, columns.repeated)


def _rows(column: Any) -> tuple[int, ...] | None:
    if isinstance(column, Ragged):
        return (len(column),)
    return tuple(column.shape[:1]) if isinstance(column, torch.Tensor | np.ndarray) else None


torch.utils._pytree.register_pytree_node(
    Batch,
    _taken_apart,
    _put_together,
    serialized_type_name="npstream.reading.batch.Batch",
    to_dumpable_context=lambda columns: list(columns.names),
    from_dumpable_context=_Columns,
    flatten_with_keys_fn=_taken_apart_by_name,
)


_ALIGNED = 64
"""Where tensors begin that share memory: whole cache lines apart."""


def _in_one_piece(batch: Batch) -> tuple[Any, ...]:
    """Return how a batch is sent to another process: all its tensors in one piece of memory.

    A piece of shared memory costs both processes more than copying most tensors does.
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
    sizes = [-(-column.nbytes // _ALIGNED) * _ALIGNED for column in tensors.values()]
    memory = torch.empty(0, dtype=torch.uint8)
    memory.set_(torch.UntypedStorage._new_shared(sum(sizes)))  # type: ignore[no-untyped-call]
    places = {}
    at = 0
    for (name, column), size in zip(tensors.items(), sizes, strict=True):
        places[name] = (at, column.nbytes, column.dtype, tuple(column.shape))
        _at(memory, *places[name]).copy_(column)
        at += size
    others = {name: places.get(name, column) for name, column in batch.items()}
    return _of_one_piece, (memory, others, list(places), batch.__dict__)


def _of_one_piece(
    memory: torch.Tensor, columns: dict[str, Any], placed: list[str], state: dict[str, Any]
) -> Batch:
    batch = Batch({**columns, **{name: _at(memory, *columns[name]) for name in placed}})
    batch.__dict__.update(state)
    return batch


def _at(
    memory: torch.Tensor, at: int, nbytes: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    """Return a tensor that lies in a piece of memory."""
    return memory[at : at + nbytes].view(dtype).view(shape)


ForkingPickler.register(Batch, _in_one_piece)


def accelerate_mode(dataset: Any) -> tuple[str | None, int]:
    """Tell how Accelerate, which was imported, reads a dataset now, where that takes knowing.

    It "deals" what one process read to several, or several read all and drop what is others'; or
    it "skips" so many items, of the next epoch, whichever was the checkpoint's; or it reads a batch
    "ahead" of what it yields.
    """
    loaders: Any = sys.modules.get("accelerate.data_loader")
    if loaders is None:
        return None, 0
    loader = loaders.GradientState().active_dataloader
    read = getattr(loader, "dataset", None)
    if isinstance(read, loaders.IterableDatasetShard):
        is_dealt = read.dataset is dataset and read.num_processes > 1
        return "deals" if is_dealt else None, 0
    if read is not dataset:
        return None, 0
    if isinstance(loader, loaders.DataLoaderDispatcher) and loader.state.num_processes > 1:
        return "deals", 0
    if isinstance(loader, loaders.SkipDataLoader):
        return "skips", loader.skip_batches * (loader.batch_size or 1)
    if isinstance(loader, loaders.DataLoaderShard | loaders.DataLoaderDispatcher):
        is_counted = hasattr(loader.base_dataloader, "state_dict")
        return None if is_counted or loader.end_of_dataloader else "ahead", 0
    return None, 0


class _StopIterationGuard:
    """A user's function, whose StopIteration does not end the loop that calls it."""

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self._function, self._what = function, what

    def __call__(self, data: Any) -> Any:
        first = data[0] if isinstance(data, list) and data else data
        if isinstance(first, _SkippedItem):
            return first
        try:
            return self._function(data)
        except StopIteration as error:
            raise stopped(self._what) from error


class _Epochs(torch.utils.data.Sampler[None]):
    """The sampler of a loader, which samples nothing: trainers tell it which epoch begins."""

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration

    def __iter__(self) -> Iterator[None]:
        return repeat(None)

    def set_epoch(self, epoch: int) -> None:
        """Take a trainer's word that one of its epochs begins."""
        self._iteration.set_trainer_epoch(epoch)


class DataLoader(torch.utils.data.DataLoader[Any]):
    """Torch's DataLoader for what ``ds.iter`` returns, with a state that is always exact.

    It counts what it yielded, not what its workers have read ahead; and as it tells them which
    epoch is next, they cannot disagree.

    Parameters
    ----------
    dataset : Iteration
        What to iterate over.
    batch_size : int, optional
        Samples that torch makes batches of. By default what is iterated over is yielded as it is.
    **options : Any
        What else torch's takes.

    Raises
    ------
    TypeError
        If `dataset` is not what ``ds.iter`` returns.
    ValueError
        If torch is to make batches of batches, and nothing says how.

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

    # Accelerate takes such loaders as they are. Of others it reads rank 0's, and deals that out.
    _is_accelerate_prepared = True

    def __init__(self, dataset: Iteration, batch_size: int | None = None, **options: Any) -> None:
        if not isinstance(dataset, Iteration):
            raise TypeError(
                f"{type(dataset).__name__!r} is not what ds.iter returns: "
                "torch's own DataLoader takes any dataset"
            )
        if shuffle := options.get("shuffle"):
            raise ValueError(
                f"shuffle={shuffle!r} of a DataLoader of ds.iter(...), which chooses the samples: "
                f"give it to iter, ds.iter(shuffle={shuffle!r})"
            )
        for name in ("collate_fn", "worker_init_fn"):
            if options.get(name) is not None:
                options[name] = _StopIterationGuard(options[name], name)
            elif name == "collate_fn" and batch_size is not None and dataset.yields_batches:
                raise ValueError(
                    f"batch_size={batch_size} of a DataLoader of what are batches already: leave "
                    "it out, or give batch_size=None; or let torch make the batches, of "
                    "ds.iter(batch_size=..., batched=False)"
                )
        super().__init__(dataset, batch_size, **options)  # type: ignore[arg-type]
        sampler = _Epochs(dataset)
        object.__setattr__(self, "sampler", sampler)  # which torch's own attributes refuse
        if self.batch_sampler is not None:
            self.batch_sampler.sampler = sampler  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers and not getattr(self, "in_order", True):
            raise ValueError("in_order=False: what is yielded in no order has no state")
        progress = self.dataset.begin()
        iterator = EpochIterator.of(
            progress, self._samples_per_item(progress), self._items(progress), self._items
        )
        return self.dataset.attach(iterator)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iterator": None}

    def _samples_per_item(self, progress: EpochProgress) -> int:
        return self.dataset.samples_per_item(progress, self.batch_size, self.num_workers)

    def _items(self, progress: EpochProgress) -> Iterator[Any]:
        """Let torch read what is left of a progress."""
        if progress.resume_cursor(progress.position + progress.failed) is None:
            return iter(())
        return self._checked_batches(self.dataset.coordinate(progress, super().__iter__), progress)

    def _checked_batches(self, batches: Iterator[Any], progress: EpochProgress) -> Iterator[Any]:
        """Yield batches; raise if there are fewer than there must be."""
        try:
            for batch in batches:
                self.dataset.require_newest(progress)
                yield batch
        except GeneratorExit:
            raise
        except BaseException:
            self._iterator = None  # persistent workers, which may be lost
            raise
        left = progress.part.samples - progress.samples_done
        if left > (self._samples_per_item(progress) - 1 if self.drop_last else 0):
            raise RuntimeError(
                f"torch's DataLoader ended with {left} of this rank's "
                f"{quantity(progress.part.samples, 'sample')} not read: a collate_fn, or something else "
                "that it calls, may have raised StopIteration"
            )

    @property
    def epoch(self) -> int:
        """The epoch that a loop is in; outside of loops, the one that the next loop is of."""
        return self.dataset.epoch

    def state_dict(self, *composer: Any) -> dict[str, Any]:
        """Return what is to be loaded to go on after the last batch that was yielded.

        Parameters
        ----------
        *composer : Any
            What Composer passes; see `npstream.iteration.iteration.Iteration.state_dict`.

        Returns
        -------
        dict
            Nothing but what JSON can hold.

        Examples
        --------
        >>> loader = DataLoader(getfixture("example").iter(0, 1, batch_size=2))
        >>> loader.state_dict()["epoch"]
        0
        """
        return self.dataset.state_dict(*composer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin next where another was, maybe with other workers, when it returned this state.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned, of a loader or of an iteration.

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
        """Make all iterations from now on those of one epoch, until it is set anew.

        Parameters
        ----------
        epoch : int
            Number of the epoch.

        Examples
        --------
        >>> loader = DataLoader(getfixture("example").iter(0, 1, batch_size=2))
        >>> loader.set_epoch(4)
        >>> loader.epoch
        4
        """
        self.dataset.set_epoch(epoch)

    def skip(self, start: int, stop: int) -> None:
        """Leave batches of an epoch out, in a loop from its next batch on.

        Parameters
        ----------
        start, stop : int
            The first batch to be left out, and the next one not to be, as counted from the
            beginning of the epoch.

        Examples
        --------
        >>> loader = DataLoader(getfixture("example").iter(0, 1, batch_size=1))
        >>> loader.skip(0, 2)
        >>> [batch.ids.tolist() for batch in loader]
        [[2]]
        """
        self.dataset.skip(start, stop)
