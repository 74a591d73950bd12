"""Provide `column_bytes`, which finds the columns that a device can gather, and `GatherBackend`.

Tested in tests/torch/test_device_gather.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

import npstream.torch as tensors
from npstream.torch.device import Backend

if TYPE_CHECKING:
    import torch
    from npstream.formats.mds import SampleLayout
    from npstream.reading.plan import Field
    from npstream.torch.registry import DeviceMemory

__all__ = ["ColumnBytes", "GatherBackend", "GatherError", "column_bytes"]


class GatherError(RuntimeError):
    """The device cannot gather. The message says why."""


class ColumnBytes(NamedTuple):
    """The position, the dtype and the shape of a column's value in samples that have equal sizes.

    Attributes
    ----------
    name : str
    offset : int
        The first byte of the value within a sample.
    nbytes : int
        The bytes of a value.
    shape : tuple of int
        The shape of a value.
    dtype : dtype
    """

    name: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class GatherBackend(Backend, Protocol):
    """The calls of a placer to a device that gathers. `memory` registers memory for the device."""

    memory: DeviceMemory

    def gather(self, addresses: torch.Tensor, columns: Sequence[ColumnBytes]) -> list[torch.Tensor]:
        """Start the copies of the values of some rows; return a tensor for each column.

        Each tensor has the dtype uint8 and the shape (rows, bytes of a value).
        """

    def record_event(self) -> Any:
        """Return an event that completes after all copies that were started so far."""


def column_bytes(fields: Iterable[Field], layout: SampleLayout | None) -> list[ColumnBytes]:
    """Return the columns that a device can gather from samples with a layout.

    The processor reads columns of bool, because it checks their bytes, and columns whose values
    torch has no dtype for. If samples vary in size, it reads all columns.
    """
    if layout is None or not layout.stride:
        return []
    columns = []
    for f in fields:
        encoding = f.encoding
        is_stored = f.part is None and f.computation is None and not f.table
        if not is_stored or encoding.kind != "fixed" or encoding.dtype.kind == "b":
            continue
        offset, size = layout.columns[f.name].offset, layout.columns[f.name].size
        shape = f.shape or ()
        nbytes = encoding.dtype.itemsize * prod(shape)
        if nbytes and nbytes == size and tensors.has_dtype(encoding.dtype):
            columns.append(ColumnBytes(f.name, offset, nbytes, shape, encoding.dtype))
    return columns
