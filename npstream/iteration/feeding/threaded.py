"""Provide `ThreadedIteration`, which decides what threads do for an iteration.

Tested in tests/iteration/feeding/test_feed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from npstream._core.optional import import_optional
from npstream.iteration.epochs import Epochs
from npstream.iteration.failures.record import UserError
from npstream.iteration.feeding.caching import CachedIteration
from npstream.iteration.feeding.eviction import large_datasets
from npstream.iteration.feeding.feed import (
    MIN_EPOCH_BYTES,
    Feed,
    choose_limits,
    describe_error,
    sample_bytes,
)
from npstream.iteration.feeding.items import transform_items
from npstream.iteration.ranks import decoding_threads, machine_ranks

if TYPE_CHECKING:
    import threading
    from collections import defaultdict

    from npstream._core.memory import BufferPool
    from npstream.iteration.failures.guard import Piece, SampleGuard
    from npstream.iteration.feeding.items import AnyPlacer, TransformItems
    from npstream.iteration.feeding.threads import PrefetchCounts
    from npstream.iteration.iterator import EpochProgress
    from npstream.reading.gather import Lookup
    from npstream.shards.locality import EvictionOrder


class ThreadedIteration(CachedIteration):
    """One rank's part of a view, whose items threads may make.

    `npstream.iteration.iteration.Iteration` sets the attributes.
    """

    _transforms: list[tuple[str, Callable[[Any], Any]]]
    _counts: PrefetchCounts
    _pools: defaultdict[str, BufferPool]
    _decoding: Any

    if TYPE_CHECKING:

        @property
        def yields_batches(self) -> bool:
            """Whether Batches are yielded, not samples."""

        def _guard(self, progress: EpochProgress) -> SampleGuard | None: ...

    @property
    def _replaces_in_threads(self) -> bool:
        """Whether threads may replace samples. A thread looks up the replacement in the order.

        Threads cannot use other orders than those of `Epochs`.
        """
        return self.yields_batches and isinstance(self._epochs, Epochs)

    def _feed(self, progress: EpochProgress, workers: int) -> Feed:
        """Return how the items of an iteration are made."""
        settings, plan = self._settings, self._source.plan(self._names)
        part, size = progress.part, sample_bytes(self._source, plan, progress.part.batch_size)
        # Threads would contend for the interpreter if they made single samples.
        is_worthwhile = (
            self.yields_batches
            and not workers
            and sample_bytes(self._source, plan, part.samples) >= MIN_EPOCH_BYTES
        )
        processors = decoding_threads(settings.ranks_per_node)
        count = settings.transform_workers if self._transforms else 0
        threads = max(settings.threads or 0, count) or settings.threads
        if settings.gather is not None:  # at least one thread starts the device's work
            is_worthwhile, processors = True, max(processors, 2)
        limits = choose_limits(threads, settings.prefetch_limit, processors, is_worthwhile)
        transforms_in_threads = threads is not None and limits.threads > 0
        reads_in_threads = (
            limits.threads > 0
            and not self._decoding
            and not self._is_rowwise(progress)
            and (settings.on_error != "replace" or self._replaces_in_threads)
        )
        transforms_one_by_one = bool(self._transforms) and transforms_in_threads
        group = 1
        may_group = reads_in_threads and self.yields_batches and not transforms_one_by_one
        if may_group and not large_datasets(self._source, plan):
            group = limits.group(size)
            if settings.prefetch is not None:
                group = min(group, max(1, limits.tasks // 2))
                limits = limits._replace(tasks=limits.tasks // group)
        placer = self._placer(workers, limits.threads, reads_in_threads)
        apply: TransformItems | None = None
        stop: Callable[[list[threading.Thread]], None] | None = None
        if transforms_in_threads:
            apply = partial(transform_items, self._transforms)
            if count:
                from npstream.iteration.feeding.workers import TransformProcesses

                processes = TransformProcesses(self._transforms, count)
                apply, stop = processes, processes.close
        return Feed(
            limits, group, reads_in_threads, self._transforms, apply, stop, self._counts,
            self._pools, placer,
        )  # fmt: skip

    def _placer(self, workers: int, threads: int, reads_in_threads: bool) -> AnyPlacer | None:
        """Return what makes tensors of the items; None if they stay arrays."""
        settings = self._settings
        if settings.to is None and settings.device is None:
            return None
        if workers and settings.device is not None:
            raise RuntimeError(
                f"device={settings.device!r} in a worker of a DataLoader: a batch would be copied "
                "to the device, and then to another process: loop over the result of ds.iter "
                "itself, whose threads replace workers; or move the batches in the loop"
            )
        placer: AnyPlacer
        if settings.gather is None:
            module = import_optional("npstream.torch.device", "torch", "torch")
            placer = module.make_placer(settings.device, threads)
        else:
            module = import_optional("npstream.torch.device_gather", "torch", "torch")
            placer = module.make_gather_placer(
                settings.device, threads, self._source, self._source.plan(self._names),
                machine_ranks(settings.ranks_per_node), self._gather_obstacle(reads_in_threads),
            )  # fmt: skip
        return placer

    def _gather_obstacle(self, reads_in_threads: bool) -> str | None:
        """Return why no device can gather the batches of this iteration; None if it perhaps can."""
        if self._transforms:
            return "transforms take arrays in the memory of the host"
        if self._settings.on_error != "raise":
            return f"on_error={self._settings.on_error!r} reads samples one by one"
        if self._decoding:
            return "the processor decodes images"
        if not reads_in_threads:
            return "the cache is too small, so that samples are read one by one"
        return None

    def _read_in_threads(
        self, progress: EpochProgress, pieces: Iterator[Piece], feed: Feed
    ) -> Iterator[Any]:
        """Yield items, which threads read."""
        lookups, orders = self._begin_reading(progress, pieces)
        batch_size = progress.part.batch_size if self.yields_batches else None
        advance, guard = partial(advance_orders, orders), self._guard(progress)
        items = feed.read(self._source, self._names, batch_size, lookups, advance, guard)
        try:
            with closing(items):
                for item in items:
                    self.require_newest(progress)
                    yield item
        finally:
            for order in orders:
                order.end()

    def _with_sample_ids(
        self, items: Iterator[Any], progress: EpochProgress, worker: int, workers: int
    ) -> Iterator[Any]:
        """Yield items; an error of a transform gets a note with the ids of the item's samples."""
        try:
            yield from items
        except UserError as error:
            part, first = progress.part, progress.samples_done
            batch, row = divmod(first, part.batch_size)
            batch = worker + batch * max(workers, 1)
            ids = part.lookup(range(batch, batch + 1))[0].tolist()
            item = f"batch {batch} of this loop"
            if not self.yields_batches:
                ids, item = ids[row : row + 1], "one sample"
            raised = describe_error(error, ids, item)
            raise raised from raised.__cause__

    def _begin_reading(
        self, progress: EpochProgress, pieces: Iterator[Piece]
    ) -> tuple[Iterator[tuple[Piece, Lookup]], list[EvictionOrder]]:
        """Return pieces with lookups, whose chunks are fetched ahead, and the eviction orders."""
        plan, rowwise = self._source.plan(self._names), self._is_rowwise(progress)
        orders = [] if rowwise else self._begin_eviction(progress)
        step = 0 if orders else self._step  # an EvictionOrder knows when shards are finished

        def open_ahead(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, Lookup]]:
            return self._source.read_ahead(pieces, itemgetter(0), plan, step, rowwise)

        guard = self._guard(progress)
        ahead = open_ahead(pieces) if guard is None else guard.read_ahead(open_ahead, pieces)
        return ahead, orders


def advance_orders(orders: list[EvictionOrder], piece: Piece) -> None:
    """Tell caches that a piece was read."""
    for order in orders if len(piece[2]) else ():
        order.advance(int(piece[2].max()))
