"""Provide `Feed`, which says how an iteration makes its items: where, and how many ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from npstream._core.memory import available_memory
from npstream.iteration.feeding.items import (
    AnyPlacer,
    ItemMaker,
    TransformItems,
    Transforms,
    apply_transforms,
)
from npstream.iteration.feeding.threads import (
    PrefetchCounts,
    PrefetchLimits,
    map_ahead,
    result_bytes,
)

if TYPE_CHECKING:
    import threading
    from collections import defaultdict

    from npstream._core.memory import BufferPool
    from npstream.iteration.failures.guard import Piece, SampleGuard
    from npstream.iteration.failures.record import UserError
    from npstream.reading.gather import Lookup
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source

__all__ = ["Feed", "choose_limits"]

MAX_READ_THREADS = 8
"""Maximum number of threads by default."""

MAX_NBYTES = 1 << 28
"""Maximum bytes of batches that are made ahead by default."""

MEMORY_DIVISOR = 8
"""By default, batches made ahead take at most the free memory divided by this number."""

TASKS_PER_THREAD = 2
"""Batches, or groups of batches, that are made ahead by default, for each thread."""

MIN_EPOCH_BYTES = 1 << 22
"""By default, no threads start for an epoch with fewer bytes."""


def choose_limits(
    threads: int | None, prefetch: int | tuple[int] | None, processors: int, is_worthwhile: bool
) -> PrefetchLimits:
    """Return how much an iteration makes ahead.

    Parameters
    ----------
    threads : int or None
        Number of threads; None for the default.
    prefetch : int, tuple of int or None
        Maximum number of batches ahead, or their bytes in a tuple; None for the default.
    processors : int
        Processors of this process.
    is_worthwhile : bool
        Whether threads start if `threads` is None.
    """
    if threads is None:
        # One processor is left to the caller.
        threads = min(processors - 1, MAX_READ_THREADS) if is_worthwhile else 0
    tasks, nbytes = max(2, TASKS_PER_THREAD * threads), MAX_NBYTES
    if isinstance(prefetch, tuple):
        (nbytes,), tasks = prefetch, 1 << 30
    elif prefetch is not None:
        tasks, nbytes = prefetch, 1 << 62
    elif threads:
        nbytes = min(nbytes, available_memory() // MEMORY_DIVISOR)
    return PrefetchLimits(threads if tasks and nbytes else 0, tasks, nbytes)


@dataclass(frozen=True)
class Feed:
    """How an iteration makes its items.

    Attributes
    ----------
    limits : PrefetchLimits
        How much is made ahead.
    group : int
        Number of batches that are read together.
    reads_in_threads : bool
        Whether threads read.
    transforms : sequence of (str, callable)
        Functions to apply to each item.
    transform_items : callable, optional
        Applies the transforms in threads, perhaps by worker processes. None to apply them in the
        loop.
    stop_workers : callable, optional
        Ends the worker processes that `transform_items` uses.
    counts : PrefetchCounts
        Counts what is made ahead.
    pools : defaultdict of str to BufferPool
        The memory of each column of fixed size.
    placer : AnyPlacer, optional
        Makes tensors of the items; by default they stay arrays.
    """

    limits: PrefetchLimits
    group: int
    reads_in_threads: bool
    transforms: Transforms
    transform_items: TransformItems | None
    stop_workers: Callable[[list[threading.Thread]], None] | None
    counts: PrefetchCounts
    pools: defaultdict[str, BufferPool]
    placer: AnyPlacer | None = None

    @property
    def transforms_in_threads(self) -> bool:
        """Whether threads apply the transforms."""
        return self.transform_items is not None

    @property
    def places_in_threads(self) -> bool:
        """Whether threads make tensors of the items: if they read and nothing follows."""
        return self.reads_in_threads and (self.transforms_in_threads or not self.transforms)

    def read(
        self,
        source: Source,
        names: tuple[str, ...],
        batch_size: int | None,
        lookups: Iterator[tuple[Piece, Lookup]],
        after: Callable[[Piece], None],
        guard: SampleGuard | None = None,
    ) -> Generator[Any]:
        """Yield the items of pieces, which threads read.

        Parameters
        ----------
        source : Source
        names : tuple of str
            The columns.
        batch_size : int or None
            Samples in a batch; None to yield samples.
        lookups : iterator
            The pieces, with the lookups of their rows.
        after : callable
            Called with a piece after its items were yielded.
        guard : SampleGuard, optional
            Leaves out or replaces samples that cannot be read; by default their errors are raised.
        """
        plan = source.plan(names)
        transform = self.transform_items if self.transforms else None
        placer = self.placer if self.places_in_threads else None
        make = ItemMaker(
            source, names, batch_size, plan.encodings, transform, guard, placer, self.pools
        )

        def estimate(read: tuple[Piece, Lookup]) -> tuple[int, int]:
            rows = len(read[0][0])
            return sample_bytes(source, plan, rows), -(-rows // (batch_size or 1))

        pieces: list[Piece] = []

        def remember(lookups: Iterator[tuple[Piece, Lookup]]) -> Iterator[tuple[Piece, Lookup]]:
            for read in lookups:
                pieces.append(read[0])
                yield read

        stops = [_request_stopper(source, plan), self.stop_workers]
        stop = partial(_call_all, [function for function in stops if function is not None])
        for made in map_ahead(make, remember(lookups), self.limits, estimate, self.counts, stop):
            yield from made.take()
            after(pieces.pop(0))

    def transform(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield transformed items. Items that `read` has already transformed stay as they are.

        If `transforms_in_threads`, threads apply the transforms.
        """
        if not self.transforms or (self.reads_in_threads and self.transforms_in_threads):
            yield from items
        elif self.transforms_in_threads:
            yield from map_ahead(
                self._transform_in_thread, items, self.limits, _estimate_item, self.counts,
                self.stop_workers,
            )  # fmt: skip
        else:
            yield from map(partial(apply_transforms, self.transforms), items)

    def place(self, items: Iterator[Any]) -> Iterator[Any]:
        """Return an iterator over the items, as tensors if there is a placer."""
        placer = self.placer
        if placer is None:
            return items
        if not self.places_in_threads:
            items = map(placer.place, items)
        return map(placer.receive, items)

    def _transform_in_thread(self, item: Any) -> Any:
        assert self.transform_items is not None
        results, error = self.transform_items([item])
        if error is not None:
            raise error
        return results[0]


def _call_all(
    functions: list[Callable[[list[threading.Thread]], None]], threads: list[threading.Thread]
) -> None:
    for function in functions:
        function(threads)


def describe_error(error: UserError, ids: list[int], item: str) -> Exception:
    """Return the user's error with a note that says which samples the function was given.

    Parameters
    ----------
    error : UserError
    ids : list of int
        Ids of the samples.
    item : str
        The item in words, such as "batch 3".
    """
    shown = ", ".join(map(str, ids[:MAX_SHOWN_SAMPLES])) + (
        ", ..." if len(ids) > MAX_SHOWN_SAMPLES else ""
    )
    samples = "sample" if len(ids) == 1 else "samples"
    error.error.add_note(f"in {error.name} of {item}: {samples} {shown}")
    return error.error


MAX_SHOWN_SAMPLES = 8
"""Maximum number of ids of samples in a note."""


def sample_bytes(source: Source, plan: Plan, rows: int) -> int:
    """Return the bytes of `rows` samples of average size, joined sources included."""
    samples = max(source.index.samples, 1)
    return source.estimate_read_bytes(plan) * rows // samples


def _estimate_item(item: Any) -> tuple[int, int]:
    return result_bytes(item), 1


def _request_stopper(source: Source, plan: Plan) -> Callable[[list[threading.Thread]], None] | None:
    """Return a function that makes requests of threads fail; None if no store is remote."""
    remotes = [part.shards for s in source.sources_of(plan) for part in s.fetcher.shards.remotes]
    if not remotes:
        return None

    def stop(threads: list[threading.Thread]) -> None:
        for shards in remotes:
            shards.stop(threads)

    return stop
