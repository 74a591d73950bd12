"""The one door to torch.

Nothing else imports torch, and lower modules come here by name: when they are asked for a tensor,
or when torch is there already and may know what they want to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.utils.data
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from npstream._typing import AnyArray, Int64
from npstream.batch import Batch, Ragged
from npstream.dtypes import ML_DTYPES, dtype_of
from npstream.iterate import Iteration


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
    """Return the process's rank and the number of ranks, if a process group is initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None


def worker() -> tuple[int, int]:
    """Return the number of the DataLoader's worker that this process is, and of all workers.

    In a process that is none, these are 0 and 0.
    """
    info = torch.utils.data.get_worker_info()
    return (0, 0) if info is None else (info.id, info.num_workers)


def _stacked(batches: list[Batch], *, collate_fn_map: Any = None) -> Batch:
    """Return batches as one, which has an axis more, as has what says which samples they hold."""
    columns = {
        name: collate([batch[name] for batch in batches], collate_fn_map=collate_fn_map)
        for name in batches[0]
    }
    if not all(hasattr(batch, "ids") for batch in batches):
        return Batch(columns)
    ids, repeated = ([getattr(b, what) for b in batches] for what in ("ids", "repeated"))
    return Batch(columns, np.stack(ids), np.stack(repeated))


def _listed(columns: list[Ragged], *, collate_fn_map: Any = None) -> list[Ragged]:
    return list(columns)


# Torch would copy the first batch, ids and all, and put what it stacked into that.
default_collate_fn_map.update({Batch: _stacked, Ragged: _listed})


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


def accelerated(dataset: Any) -> str | None:
    """Tell how Accelerate, if it is there, reads a dataset now, where that takes knowing.

    It "deals" what one process read to several, or several read all and drop what is others'; or
    it "skips" what came before a checkpoint, of the next epoch, whichever was the checkpoint's.
    """
    loaders: Any = sys.modules.get("accelerate.data_loader")
    if loaders is None:
        return None
    loader = loaders.GradientState().active_dataloader
    read = getattr(loader, "dataset", None)
    if isinstance(read, loaders.IterableDatasetShard):
        return "deals" if read.dataset is dataset and read.num_processes > 1 else None
    if read is not dataset:
        return None
    if isinstance(loader, loaders.DataLoaderDispatcher) and loader.state.num_processes > 1:
        return "deals"
    return "skips" if isinstance(loader, loaders.SkipDataLoader) else None


class DataLoader(torch.utils.data.DataLoader[Any]):
    """Torch's DataLoader for what ``ds.iter`` returns, with a state that is always exact.

    It counts what it yielded, not what its workers have read ahead; and as it tells them which
    epoch is next, they cannot disagree.

    Parameters
    ----------
    dataset : Iteration
    batch_size : int, optional
        Samples that torch makes batches of. By default what is iterated over is yielded as it is.
    **options
        What else torch's takes.

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
        super().__init__(dataset, batch_size, **options)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.num_workers:
            return super().__iter__()
        if not getattr(self, "in_order", True):
            raise ValueError("in_order=False: what is yielded in no order has no state")
        run = self.dataset.begin()
        rows = self.dataset.rows_of(run, self.batch_size, self.num_workers)
        self.dataset.lead(True)
        try:
            batches = super().__iter__()
        finally:
            self.dataset.lead(False)
        return run.counted(batches, rows)

    def state_dict(self, *composer: Any) -> dict[str, Any]:
        """Return what is to be loaded to go on after the last batch that was yielded."""
        return self.dataset.state_dict(*composer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin next where another was, maybe with other workers, when it returned this state."""
        self.dataset.load_state_dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Make all iterations from now on those of one epoch, until it is set anew."""
        self.dataset.set_epoch(epoch)
