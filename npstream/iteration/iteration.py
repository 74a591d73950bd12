"""Iterating over a rank's part of a view, as batches or samples."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.log import log
from npstream._core.optional import torch_door
from npstream.iteration.counter import EpochCursor, is_spawning
from npstream.iteration.iterator import EpochIterator, EpochProgress
from npstream.iteration.partition import LOOKUP_SAMPLES, unskipped_before
from npstream.iteration.ranks import this_worker
from npstream.iteration.resumable import Resumable
from npstream.iteration.settings import VIEW_TRANSFORM
from npstream.reading.batch import Batch
from npstream.reading.load import applied
from npstream.shards.locality import ReadOrder

if TYPE_CHECKING:
    from npstream._core.typing import Bools, Int64
    from npstream.indexing.selection import Selection
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.ranks import Ranks
    from npstream.iteration.settings import IterationSettings
    from npstream.reading.source import Source

NEIGHBORS = 32
"""Ranks of one machine whose samples are looked at to tell whether its cache holds their chunks."""

_READ_BYTES = 1 << 22
"""Bytes of samples that are read at once where samples are yielded, not batches."""

_Piece: TypeAlias = "tuple[Int64, Bools]"
"""Sample ids, and which of them only fill a batch up."""


class Iteration(Resumable):
    """One rank's part of a view, epoch after epoch. Made by `Dataset.iter`.

    It can be iterated over any number of times, pickled, and given to
    ``torch.utils.data.DataLoader``, to which it is an ``IterableDataset``: with
    ``batch_size=None`` there, if it yields batches. Batches are dealt to workers in turn, so the
    number of workers changes neither batches nor their order. ``len`` is exact.

    Each new iteration is of the next epoch, also if the last one was left early; only one that
    nothing was taken from is made again. `npstream.torch.DataLoader` keeps count of what
    it yielded, so that states are exact with workers, too.

    Parameters
    ----------
    source : Source
    selection : Selection
    names : tuple of str
        The view.
    view_transform : callable, optional
        The transform that the view's samples have.
    settings : IterationSettings
    epochs : AnyEpochs
        What the settings of the order come to.

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
        view_transform: Callable[[Any], Any] | None,
        settings: IterationSettings,
        epochs: AnyEpochs,
    ) -> None:
        super().__init__(epochs, settings)
        self._source, self._selection, self._names = source, selection, names
        self._step = selection.step if epochs.is_stored_order else 0
        self._rowwise: bool | None = None
        if settings.yields_batches and (view_transform is not None or source.has_transforms):
            raise ValueError(
                "the view has a transform, which takes samples, and batches are not made of "
                "samples: give iter a transform= for batches, or batched=False"
            )
        given = [(VIEW_TRANSFORM, view_transform), ("transform=", settings.transform)]
        self._transforms = [(what, fn) for what, fn in given if fn is not None]
        if self._given_ranks is not None:
            shared = self._merged_ranks()
            if not epochs.needs_state(shared):
                self._part_of(EpochCursor(0), shared, epochs)  # says what does not fit
            self._warn_of_shared_chunks(shared)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Iteration]:
        # Whoever calls isinstance looks here, so torch finds it registered whenever it came; and
        # DataLoader does before it starts workers, which may be forks that inherit memory.
        if "torch.utils.data" in sys.modules:
            torch_door().register(Iteration)
            self._counter.share()
        return type(self)

    def __len__(self) -> int:
        """Return the number of batches, or samples, of a whole epoch."""
        part = self._part(self._counter.upcoming().epoch_start)
        return part.batches if self.yields_batches else part.samples

    def __iter__(self) -> Iterator[Any]:
        worker, workers = this_worker()
        make = partial(self._items, worker, workers)
        if self._is_coordinated:
            return make(self._progress_from(self._counter.current()))
        skipped = self._check_reader()
        one_by_one = self._settings.batch_size is None and self._settings.global_batch_size is None
        if workers > 1 and worker == 0 and one_by_one:
            warnings.warn(
                f"samples are dealt to {quantity(workers, 'worker')} one by one, so batches that "
                "torch makes of them depend on the number of workers: give its batch size to "
                "iter, too, as in ds.iter(batch_size=..., batched=False)",
                stacklevel=2,
            )
        progress = self.begin_worker(worker, workers) if workers else self.begin()
        iterator = self.attach(
            EpochIterator.of(progress, self.samples_per_item(progress), make(progress), make)
        )
        if skipped:
            return chain(repeat(torch_door().SKIPPED_ITEM, skipped), iterator)
        return iterator

    def _items(self, worker: int, workers: int, progress: EpochProgress) -> Iterator[Any]:
        """Yield what a worker, or a process that is none, reads of a progress and is not done with."""
        part, rows = progress.part, progress.samples_done
        log("iterating as worker %d of %d: %r over %s", worker, workers, self, part)
        mine = range(worker, part.batches, workers or 1)[rows // part.batch_size :]
        pieces = self._pieces(progress, mine, rows % part.batch_size)
        items = (
            self._batches(progress, pieces)
            if self.yields_batches
            else self._samples(progress, pieces)
        )
        for what, transform in self._transforms:
            items = applied(transform, items, what)
        return items

    @property
    def yields_batches(self) -> bool:
        """Whether Batches are yielded, not samples."""
        return self._settings.yields_batches

    def samples_per_item(
        self, progress: EpochProgress, batch_size: int | None = None, workers: int = 0
    ) -> int:
        """Return the samples in each item, or in each batch that a DataLoader makes of items.

        For `npstream.torch` only.

        Parameters
        ----------
        progress : EpochProgress
            The epoch that is read.
        batch_size : int, optional
            Items in a batch of the DataLoader; by default it makes none.
        workers : int, default: 0
            Workers of the DataLoader.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If batches of the DataLoader are not what its workers are dealt.
        """
        rows = (progress.part.batch_size if self.yields_batches else 1) * (batch_size or 1)
        if workers > 1 and rows != progress.part.batch_size:
            raise ValueError(
                f"DataLoader(batch_size={batch_size}) takes {quantity(rows, 'sample')} from each "
                f"of {quantity(workers, 'worker')} in turn, which are dealt "
                f"{progress.part.batch_size} at a time: both must be the same; or use one worker"
            )
        return rows

    def __getstate__(self) -> dict[str, Any]:
        if is_spawning():
            self._check_reader(has_workers=True)  # who know of no other reader
        self._resolve()
        return super().__getstate__()

    def __repr__(self) -> str:
        rank, world = (self._given_ranks or self._detected_ranks or ("?", "?"))[:2]
        size, whose = self._settings.batch_size, ""
        if size is None:
            size, whose = self._settings.global_batch_size, " of all ranks"
        what = f"batches of {size}{whose}" if self.yields_batches else "samples"
        return f"<Iteration: rank {rank} of {world}, {what}, last={self._settings.last!r}>"

    def _check_reader(self, has_workers: bool = False) -> int:
        """Refuse to be read by what takes one rank's part for all there is, or loses count.

        Returns
        -------
        int
            Items that Accelerate will drop, and behind which a state stands, so that nothing has
            to be read for them.
        """
        if "accelerate" not in sys.modules:
            return 0
        how: str | None
        dropped: int
        how, dropped = torch_door().accelerate_mode(self)
        if how == "deals" and (world := self._resolve().world) > 1:
            raise RuntimeError(
                f"this is the part of one of {quantity(world, 'rank')}, and Accelerate would deal "
                "it out to them again: prepare an npstream.torch.DataLoader, which it takes as it "
                "is; in a Hugging Face Trainer, let get_train_dataloader return one"
            )
        if how != "skips":
            return 0
        cursor = self._next_cursor()
        if self._counter.pinned and cursor == cursor.epoch_start:
            return 0  # of an epoch that was named, they are read
        if cursor == cursor.epoch_start:
            raise RuntimeError(
                "Accelerate would skip batches of the next epoch, not knowing which one was begun: "
                "give the npstream.torch.DataLoader the state_dict() that it had, and what is "
                "skipped is not even read; or call its set_epoch before"
            )
        if has_workers or this_worker()[1]:
            raise RuntimeError(
                "Accelerate skips batches by a DataLoader of its own, whose workers nobody would "
                "count for: give the npstream.torch.DataLoader num_workers=0, whose process reads "
                "ahead by itself; or skip nothing (ignore_data_skip=True in a Hugging Face "
                "Trainer, if its gradient accumulation divides the batches of an epoch)"
            )
        part = self._part(cursor)
        behind, each = (
            unskipped_before(cursor.position, cursor.gaps),
            self.samples_per_item(EpochProgress(cursor, part, 0)),
        )
        if behind != dropped * each * part.world:
            raise RuntimeError(
                f"Accelerate would skip {quantity(dropped * each * part.world, 'sample')}, and the "
                f"state that was loaded stands behind {behind} of its epoch: load the one of that "
                "checkpoint"
            )
        return dropped

    def _is_rowwise(self, progress: EpochProgress) -> bool:
        """Tell whether samples are read one by one, as the cache cannot hold their chunks."""
        if self._rowwise is None:
            cursor = progress.cursor.epoch_start
            self._rowwise = not self._step and self._source.is_rowwise(
                self._order(cursor, self._epochs), partial(self._smaller_block, cursor)
            )
        return self._rowwise

    def _order(self, cursor: EpochCursor, epochs: AnyEpochs) -> ReadOrder:
        """Return the order in which this machine reads an epoch."""
        ranks = self._merged_ranks()
        nodes = ranks.world // ranks.per_node
        view = self._selection.size / max(self._source.index.samples, 1)
        share = epochs.chunk_share(nodes) * min(1.0, view) * min(1.0, NEIGHBORS / ranks.per_node)
        return ReadOrder(partial(self._first_samples, cursor, ranks, epochs), share)

    def _first_samples(self, cursor: EpochCursor, ranks: Ranks, epochs: AnyEpochs, n: int) -> Int64:
        """Return about the first `n` samples that ranks of this machine read."""
        first = ranks.rank - ranks.rank % ranks.per_node
        step = -(-ranks.per_node // NEIGHBORS)
        neighbors = range(first, first + ranks.per_node, step)
        ids, turns = [], []
        for rank in neighbors:
            part = self._part_of(cursor, ranks._replace(rank=rank), epochs)
            batches = min(-(-n // (len(neighbors) * part.batch_size)), part.batches)
            ids.append(part.read(range(batches))[0])
            turns.append(np.arange(len(ids[-1])) // part.batch_size)
        return np.concatenate(ids)[np.argsort(np.concatenate(turns), kind="stable")]

    def _smaller_block(self, cursor: EpochCursor, fits: Callable[[ReadOrder], bool]) -> str:
        """Return the setting of a shuffle whose chunks the cache can hold, for a message."""
        nbytes = self._source.index.total
        while (nbytes := nbytes // 2) and (smaller := self._epochs.with_block(nbytes)):
            epochs, setting = smaller
            if fits(self._order(cursor, epochs)):
                return f"give {setting}"
        return "read the samples in the order in which they are stored"

    def _batches(self, progress: EpochProgress, pieces: Iterator[_Piece]) -> Iterator[Any]:
        plan = self._source.plan(self._names)
        rowwise = self._is_rowwise(progress)
        ahead = self._source.ahead(pieces, itemgetter(0), self._step, rowwise)
        for (ids, repeated), lookup in ahead:
            self.require_newest(progress)
            columns = self._source.columns(plan, lookup, {})
            yield Batch(columns, ids, repeated, encodings=plan.encodings)

    def _samples(self, progress: EpochProgress, pieces: Iterator[_Piece]) -> Iterator[Any]:
        rowwise = self._is_rowwise(progress)
        for _, lookup in self._source.ahead(pieces, itemgetter(0), self._step, rowwise):
            self.require_newest(progress)
            yield from self._source.samples(self._names, lookup)

    def _pieces(self, progress: EpochProgress, mine: range, taken: int) -> Iterator[_Piece]:
        """Look up several batches at once, and yield the ids of those that are read together.

        Of the first batch, some samples may have been taken before.
        """
        part = progress.part
        step = part.lookup_batches(mine.step)
        rows = min(LOOKUP_SAMPLES, self._source.rows_of(_READ_BYTES))
        if self.yields_batches:
            rows = part.batch_size
        for start in range(0, len(mine), step):
            ids, repeated = part.read(mine[start : start + step])
            for row in range(taken, len(ids), rows):
                yield ids[row : row + rows], repeated[row : row + rows]
            taken = 0
