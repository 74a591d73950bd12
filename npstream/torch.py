"""The one door to torch.

Nothing else imports torch, and lower modules come here by name: when they are asked for a tensor,
or when torch is there already and may know what they want to.
"""

from __future__ import annotations

import torch
import torch.distributed
import torch.utils.data

from npstream._typing import AnyArray, Int64


def tensor(array: AnyArray) -> torch.Tensor:
    """Return a tensor over an array's memory, or over a copy's if the array is read-only."""
    # Torch knows no read-only tensors: it would warn, and let the write through.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


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
    """Return the number of the DataLoader's worker that this process is, and of all workers."""
    info = torch.utils.data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
