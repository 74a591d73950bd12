"""Provide `CachedIteration`, which tells caches in what order an iteration reads.

Tested in tests/iteration/test_iteration.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from npstream.iteration.feeding.eviction import MAX_SAMPLED_RANKS, EpochReads, EvictionPlan
from npstream.iteration.resumable import Resumable
from npstream.shards.locality import ReadOrder

if TYPE_CHECKING:
    from npstream._core.typing import Int64
    from npstream.indexing.selection import Selection
    from npstream.iteration.counter import EpochCursor
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.iterator import EpochProgress
    from npstream.iteration.ranks import Ranks
    from npstream.iteration.settings import IterationSettings
    from npstream.reading.source import Source
    from npstream.shards.locality import EvictionOrder


class CachedIteration(Resumable):
    """One rank's part of a view, whose chunks may be in caches.

    Parameters
    ----------
    source : Source
    selection : Selection
        The samples of the view.
    names : tuple of str
        The columns of the view.
    epochs : AnyEpochs
    settings : IterationSettings
    """

    def __init__(
        self,
        source: Source,
        selection: Selection,
        names: tuple[str, ...],
        epochs: AnyEpochs,
        settings: IterationSettings,
    ) -> None:
        super().__init__(epochs, settings)
        self._source, self._selection, self._names = source, selection, names
        # The step between the rows that are read one after the other; 0 if they are shuffled.
        self._step = selection.step if epochs.is_view_order else 0
        self._rowwise: bool | None = None
        self._evictions: tuple[AnyEpochs, EvictionPlan] | None = None

    def _is_rowwise(self, progress: EpochProgress) -> bool:
        """Return True if samples are read one by one, because the cache cannot hold the chunks."""
        if self._rowwise is None:
            cursor = progress.cursor.epoch_start
            self._rowwise = not self._step and self._source.is_rowwise(
                self._order(cursor, self._epochs),
                self._source.plan(self._names),
                partial(self._smaller_block_hint, cursor),
            )
        return self._rowwise

    def _order(self, cursor: EpochCursor, epochs: AnyEpochs) -> ReadOrder:
        """Return the order in which this machine reads an epoch."""
        ranks = self._merged_ranks()
        nodes = ranks.world // ranks.per_node
        # The order reads only a fraction of a chunk's samples. The others are not in the
        # view, or are read by other nodes or by ranks that are not simulated.
        view_share = min(1.0, self._selection.size / max(self._source.index.samples, 1))
        sampled_share = min(1.0, MAX_SAMPLED_RANKS / ranks.per_node)
        share = epochs.chunk_share(nodes) * view_share * sampled_share
        return ReadOrder(partial(self._first_samples, cursor, ranks, epochs), share)

    def _first_samples(self, cursor: EpochCursor, ranks: Ranks, epochs: AnyEpochs, n: int) -> Int64:
        """Return about the first `n` samples that ranks of this machine read."""
        first = ranks.rank - ranks.rank % ranks.per_node
        step = -(-ranks.per_node // MAX_SAMPLED_RANKS)
        sampled_ranks = range(first, first + ranks.per_node, step)
        ids, batch_numbers = [], []
        for rank in sampled_ranks:
            part = self._part_of(cursor, ranks._replace(rank=rank), epochs)
            batches = min(-(-n // (len(sampled_ranks) * part.batch_size)), part.batches)
            ids.append(part.lookup(range(batches))[0])
            batch_numbers.append(np.arange(len(ids[-1])) // part.batch_size)
        # The ranks read their batches with the same number at about the same time.
        return np.concatenate(ids)[np.argsort(np.concatenate(batch_numbers), kind="stable")]

    def _smaller_block_hint(self, cursor: EpochCursor, fits: Callable[[ReadOrder], bool]) -> str:
        """Return advice for an error: a smaller block that fits the cache, or the stored order."""
        nbytes = self._source.index.total_nbytes
        while (nbytes := nbytes // 2) and (smaller := self._epochs.with_block(nbytes)):
            epochs, setting = smaller
            if fits(self._order(cursor, epochs)):
                return f"give {setting}"
        return "read the samples in the order in which they are stored"

    def _begin_eviction(self, progress: EpochProgress) -> list[EvictionOrder]:
        """Tell caches that cannot hold all data when this epoch and the next one use each chunk.

        Returns
        -------
        list of EvictionOrder
            One for each dataset that does not fit its cache.
        """
        cursor = progress.cursor.epoch_start
        if self._evictions is None or self._evictions[0] is not self._epochs:
            plan = EvictionPlan(
                self._source, self._source.plan(self._names), partial(self._run_text, cursor)
            )
            self._evictions = self._epochs, plan
        return self._evictions[1].begin(cursor.epoch, partial(self._epoch_reads, cursor))

    def _run_text(self, cursor: EpochCursor) -> str:
        """Return text that identifies the order, the same in all processes that read with it."""
        state = self._epochs.state(cursor._replace(epoch=0), self._merged_ranks())
        return json.dumps(state, sort_keys=True, default=str)

    def _epoch_reads(self, cursor: EpochCursor, epoch: int) -> EpochReads:
        """Return what ranks of this machine read in an epoch; `cursor` is that of the loop."""
        if epoch != cursor.epoch:
            cursor = cursor._replace(epoch=epoch).epoch_start
        part = self._part(cursor)
        ranks = min(self._merged_ranks().per_node, MAX_SAMPLED_RANKS)
        sample_batches = partial(self._sample_epoch, cursor)
        return EpochReads(part.size, part.global_batch, ranks * part.samples, sample_batches)

    def _sample_epoch(self, cursor: EpochCursor, step: int) -> Iterator[tuple[Int64, Int64]]:
        """Yield rows that ranks of this machine read in an epoch, and their epoch positions.

        Only every `step`-th batch is looked up.
        """
        ranks = self._merged_ranks()
        first = ranks.rank - ranks.rank % ranks.per_node
        rank_step = -(-ranks.per_node // MAX_SAMPLED_RANKS)
        for rank in range(first, first + ranks.per_node, rank_step):
            part = self._part_of(cursor, ranks._replace(rank=rank), self._epochs)
            batches = range(0, part.batches, step)
            start = 0
            while start < len(batches):
                stop = start + part.lookup_batches(step, start)
                rows, _, positions = part.lookup_with_positions(batches[start:stop])
                yield rows, positions
                start = stop
