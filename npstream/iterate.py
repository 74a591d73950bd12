"""Iterating over a rank's part of a view, as batches or samples."""

from __future__ import annotations

import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._log import log
from npstream.batch import Batch
from npstream.exchange import torch_door
from npstream.orders.partition import LAST, Partition

if TYPE_CHECKING:
    from npstream._typing import Bools, Int64
    from npstream.selection import Selection
    from npstream.source import Source

BLOCK = 1 << 10
"""Samples that are looked up at once, and read at once where samples are yielded."""

BLOCK_BYTES = 1 << 22
"""Bytes of the samples that are read at once where samples are yielded."""

Piece: TypeAlias = "tuple[Int64, Bools]"
"""Sample ids, and which of them only fill a batch up."""


class Iteration:
    """One rank's part of a view, in the view's order; what ``ds.iter`` returns.

    It can be iterated over any number of times, pickled, and given to
    ``torch.utils.data.DataLoader``, to which it is an ``IterableDataset``: with
    ``batch_size=None`` there, if it yields batches. Batches are dealt to workers in turn, so the
    number of workers changes neither batches nor their order. ``len`` is exact.

    Parameters
    ----------
    source : Source
    selection : Selection
    names : tuple of str
        The view: `Dataset` passes these, and `view_transform`.
    rank, world : int, optional
        Number of this process among those that share the view, and of them all. By default those
        of ``torch.distributed`` where it is initialised; else RANK and WORLD_SIZE of the
        environment; else 0 of 1. That is looked up when it is needed, not before.
    batch_size : int, optional
        Samples of this rank in a batch. Without it samples are yielded, not batches.
    batched : bool
        False yields samples also with `batch_size`, for torch to make batches of as many: workers
        are dealt runs of that length.
    last : {"repeat", "drop", "short"}
        Where samples do not suffice for a full batch on every rank: "repeat" fills the last one
        up with the first samples of the view, and marks them in ``batch.repeated`` (samples carry
        no mark); "drop" leaves it out, as torch's ``drop_last=True`` does. With both, all ranks
        have the same number of batches of the same size. "short" reads each sample once, and
        ranks may differ.
    transform : callable, optional
        Takes each Batch, or each sample, and returns what is yielded in its place.
    view_transform : callable, optional
        The transform that the view's samples have.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> for batch in ds.iter(0, 1, batch_size=2):
    ...     print(batch["label"], batch.ids, batch.repeated)
    [0 1] [0 1] [False False]
    [2 0] [2 0] [False  True]
    """

    def __init__(
        self,
        source: Source,
        selection: Selection,
        names: tuple[str, ...],
        rank: int | None = None,
        world: int | None = None,
        *,
        batch_size: int | None = None,
        batched: bool = True,
        last: str = "repeat",
        transform: Callable[[Any], Any] | None = None,
        view_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if (rank is None) != (world is None):
            raise ValueError(f"rank={rank!r} and world={world!r}: give both, or neither")
        if not isinstance(batched, bool):
            raise TypeError(f"batched={batched!r}: expected True or False")
        if last not in LAST:
            raise ValueError(
                f"last={last!r}: expected 'repeat', 'drop' (torch's drop_last=True) or 'short'"
            )
        if transform is not None and not callable(transform):
            raise TypeError(f"transform={transform!r}: expected a function, or None")
        self._source = source
        self._selection = selection
        self._names = names
        self._given = None if rank is None else _checked_place(rank, world)
        self._found: tuple[int, int] | None = None
        self._batch_size = None if batch_size is None else _integer("batch_size", batch_size, 1)
        self._batched = batched and batch_size is not None
        self._last = last
        if self._batched and view_transform is not None:
            raise ValueError(
                "the view has a transform, which takes samples, and batches are not made of "
                "samples: give iter a transform= for batches, or batched=False"
            )
        self._transforms = [fn for fn in (view_transform, transform) if fn is not None]

    @property  # type: ignore[misc]
    def __class__(self) -> type[Iteration]:
        # Whoever calls isinstance looks here, so torch finds it registered whenever it came.
        if "torch.utils.data" in sys.modules:
            torch_door().register(Iteration)
        return type(self)

    def __len__(self) -> int:
        part = self._part()
        return part.batches if self._batched else part.samples

    def __iter__(self) -> Iterator[Any]:
        part = self._part()
        worker, workers = torch_door().worker() if "torch" in sys.modules else (0, 1)
        if workers > 1 and worker == 0 and self._batch_size is None:
            warnings.warn(
                f"samples are dealt to {workers} workers one by one, so batches that torch makes "
                "of them depend on the number of workers: give its batch size to iter, too, as in "
                "ds.iter(batch_size=..., batched=False)",
                stacklevel=2,
            )
        log("iterating as worker %d of %d: %r over %s", worker, workers, self, part)
        mine = range(worker, part.batches, workers)
        items = self._batches(part, mine) if self._batched else self._samples(part, mine)
        for transform in self._transforms:
            items = map(transform, items)
        return items

    def __getstate__(self) -> dict[str, Any]:
        self._resolve()
        return self.__dict__

    def __repr__(self) -> str:
        rank, world = self._given or self._found or ("?", "?")
        what = f"batches of {self._batch_size}" if self._batched else "samples"
        return f"<Iteration: rank {rank} of {world}, {what}, last={self._last!r}>"

    def _resolve(self) -> tuple[int, int]:
        """Return the rank and the number of ranks; once found, they may not change."""
        if self._given is not None:
            return self._given
        running = torch_door().rank_and_world() if "torch" in sys.modules else None
        if self._found is None:
            self._found = running or _environment()
        elif running is not None and running != self._found:
            raise RuntimeError(
                f"(rank, world) was {self._found} when this was first used, and torch.distributed "
                f"says {running}: call init_process_group before, or give rank= and world="
            )
        return self._found

    def _part(self) -> Partition:
        rank, world = self._resolve()
        return Partition(self._selection.size, rank, world, self._batch_size or 1, self._last)

    def _batches(self, part: Partition, mine: range) -> Iterator[Any]:
        plan = self._source.plan(self._names)
        for ids, repeated in self._announced(self._pieces(part, mine, part.batch_size)):
            yield Batch(self._source.columns(plan, ids, {}), ids, repeated)

    def _samples(self, part: Partition, mine: range) -> Iterator[Any]:
        rows = min(BLOCK, self._source.rows_of(BLOCK_BYTES))
        for ids, _ in self._announced(self._pieces(part, mine, rows)):
            yield from self._source.samples(self._names, ids)

    def _pieces(self, part: Partition, mine: range, rows: int) -> Iterator[Piece]:
        """Look up several batches at once, and yield the ids of `rows` samples at a time."""
        step = max(1, BLOCK // part.batch_size)
        for start in range(0, len(mine), step):
            positions = part.positions(mine[start : start + step])
            ids, repeated = self._selection.at(positions % part.size), positions >= part.size
            for row in range(0, len(ids), rows):
                yield ids[row : row + rows], repeated[row : row + rows]

    def _announced(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Pass pieces on, each while the pages of the next one come."""
        held = None
        for piece in pieces:
            self._source.fetcher.prefetch(piece[0])
            if held is not None:
                yield held
            held = piece
        if held is not None:
            yield held


def _environment() -> tuple[int, int]:
    """Return the rank and the number of ranks that a launcher says, or else 0 of 1."""
    said = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if said == (None, None):
        return 0, 1
    try:
        rank, world = map(int, said)  # type: ignore[arg-type]
        return _checked_place(rank, world)
    except (TypeError, ValueError):
        raise ValueError(
            "the environment says RANK={} and WORLD_SIZE={}: expected a number below another, or "
            "neither; or give rank= and world=".format(*said)
        ) from None


def _checked_place(rank: Any, world: Any) -> tuple[int, int]:
    world = _integer("world", world, 1)
    rank = _integer("rank", rank, 0)
    if rank >= world:
        raise ValueError(f"rank={rank} of world={world}: ranks are numbered from 0")
    return rank, world


def _integer(name: str, number: Any, least: int) -> int:
    """Return a parameter as an int; bools are none."""
    if isinstance(number, bool | np.bool_) or not hasattr(number, "__index__"):
        raise TypeError(f"{name}={number!r}: expected an integer")
    if (integer := operator.index(number)) < least:
        raise ValueError(f"{name}={integer}: expected at least {least}")
    return integer
