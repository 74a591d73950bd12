"""Provide `Iteration`, which yields one rank's part of a view as batches or samples."""

from __future__ import annotations

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, repeat, starmap
from typing import TYPE_CHECKING, Any, TypeAlias

from npstream._core.arguments import integer, quantity
from npstream._core.fork import is_spawning
from npstream._core.log import log
from npstream._core.memory import BufferPool
from npstream._core.optional import import_npstream_torch
from npstream.errors import short_repr
from npstream.indexing.selection import Selection
from npstream.iteration.counter import EpochCursor
from npstream.iteration.epochs import epochs_for
from npstream.iteration.failures.guard import GuardedPiece, SampleGuard
from npstream.iteration.failures.record import FailureRecord
from npstream.iteration.feeding.items import apply_transforms
from npstream.iteration.feeding.threaded import ThreadedIteration, advance_orders
from npstream.iteration.feeding.threads import PrefetchCounts
from npstream.iteration.former import former_source, former_version_hint
from npstream.iteration.iterator import EpochIterator, EpochProgress
from npstream.iteration.partition import LOOKUP_SAMPLES, to_unskipped_position
from npstream.iteration.pickling import require_importable
from npstream.iteration.provenance import StepHistory
from npstream.iteration.rank_epochs import FORMER_VERSION
from npstream.iteration.ranks import begin_loop, decoding_threads, this_worker
from npstream.iteration.settings import VIEW_TRANSFORM
from npstream.joins.versions import warn_of_newer_versions
from npstream.reading.batch import Batch
from npstream.reading.images.options import options_by_column

if TYPE_CHECKING:
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.failures.guard import Piece
    from npstream.iteration.failures.record import FailedSample
    from npstream.iteration.provenance import Provenance
    from npstream.iteration.settings import IterationSettings
    from npstream.reading.gather import Lookup
    from npstream.reading.images.columns import ColumnDecoder, DecodedColumns
    from npstream.reading.images.threads import ImageStack
    from npstream.reading.source import Source
    from npstream.storage.traffic.record import ReadStats

_READ_BYTES = 1 << 22
"""Bytes of samples that are read together if samples are yielded, not batches."""

_Read: TypeAlias = "tuple[Piece, Lookup, dict[str, Any]]"
"""A piece, the lookup of its rows, and its columns."""


class Iteration(ThreadedIteration):
    """One rank's part of a view, epoch after epoch. Made by `Dataset.iter`.

    It can be iterated over any number of times, and pickled. It is an ``IterableDataset`` for
    ``torch.utils.data.DataLoader``, which needs ``batch_size=None`` if the iteration yields
    batches. Workers take batches in turn, so their number changes neither batches nor their order.
    ``len`` is exact.

    Each new iteration reads the next epoch, even if the last loop was left early. Only an epoch
    that yielded nothing is read again. `npstream.torch.DataLoader` counts the samples that
    it yielded, so states are exact with workers, too.

    Parameters
    ----------
    source : Source
    selection : Selection
        The samples of the view.
    names : tuple of str
        The columns of the view.
    view_transform : callable, optional
        The transform of the view's samples.
    settings : IterationSettings
    epochs : AnyEpochs
        The epochs that `settings` describe.

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
        super().__init__(source, selection, names, epochs, settings)
        self._start_stats = os.getpid(), source.read_stats() if source.remotes else None
        # The newer versions that were reported. None before the first loop, which does not look for
        # newer versions.
        self._reported_versions: set[str] | None = None
        self._counts, self._pools = PrefetchCounts(), defaultdict(BufferPool)
        if settings.yields_batches and (view_transform is not None or source.has_transforms):
            raise ValueError(
                "the view has a transform, which takes samples, and batches are not made of "
                "samples: give iter a transform= for batches, or batched=False"
            )
        self._decoding = options_by_column(settings.decode, source.plan(names).fields)
        transforms = [(VIEW_TRANSFORM, view_transform), ("transform=", settings.transform)]
        self._transforms = [(name, fn) for name, fn in transforms if fn is not None]
        self._failures: FailureRecord | None = None
        if settings.on_error != "raise":
            self._failures = FailureRecord(settings.max_errors)
        if self._given_ranks is not None:
            ranks = self._merged_ranks()
            if not epochs.needs_state(ranks):
                self._part_of(EpochCursor(0), ranks, epochs)  # raises if settings do not fit
            self._warn_of_shared_chunks(ranks)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Iteration]:
        # isinstance reads __class__. So the class is registered with torch before torch checks it,
        # even if torch was imported later. DataLoader checks it before it starts workers, so
        # forked workers inherit the counter's shared memory.
        if "torch.utils.data" in sys.modules:
            import_npstream_torch().register_iterable(Iteration)
            self._counter.share()
        return type(self)

    def __len__(self) -> int:
        """Return the number of batches, or samples, of a whole epoch."""
        part = self._part(self._counter.next_cursor().epoch_start)
        return part.batches if self.yields_batches else part.samples

    def __iter__(self) -> Iterator[Any]:
        worker, workers = begin_loop()
        make = partial(self._items, worker, workers)
        if self._is_coordinated:
            return make(self._progress_from(self._counter.current_cursor()))
        skipped = self._check_reader()
        one_by_one = self._settings.batch_size is None and self._settings.global_batch_size is None
        if workers > 1 and worker == 0 and one_by_one:
            warnings.warn(
                f"{quantity(workers, 'worker')} take single samples in turn, so torch's batches of "
                "them depend on the number of workers: give torch's batch size to iter, too, as in "
                "ds.iter(batch_size=..., batched=False)",
                stacklevel=2,
            )
        progress = self.begin_worker(worker, workers) if workers else self.begin()
        iterator = self.attach(
            EpochIterator.create(progress, self.samples_per_item(progress), make(progress), make)
        )
        if skipped:
            return chain(repeat(import_npstream_torch().SKIPPED_ITEM, skipped), iterator)
        return iterator

    def begin(self) -> EpochProgress:
        """Begin the next iteration, as `Resumable.begin` explains. For `npstream.torch` only."""
        progress = super().begin()
        if self._reported_versions is None:
            self._reported_versions = set()
        elif progress.part.rank == 0 and self._epochs is self._newest_epochs:
            warn_of_newer_versions(self._source, self._reported_versions)
        return progress

    def _items(self, worker: int, workers: int, progress: EpochProgress) -> Iterator[Any]:
        """Yield the remaining items of a worker, or of the main process if `workers` is 0."""
        part = progress.part
        log("iterating as worker %d of %d: %r over %s", worker, workers, self, part)
        batches_done, rows_done = divmod(progress.samples_done, part.batch_size)
        batches = range(worker, part.batches, workers or 1)[batches_done:]
        feed = self._feed(progress, workers)
        pieces = self._pieces(progress, batches, rows_done, feed.group)
        if self._failures is not None and not self.yields_batches:
            return feed.place(self._guarded_samples(progress, pieces))
        if feed.reads_in_threads:
            items = self._read_in_threads(progress, pieces, feed)
        elif self.yields_batches:
            items = self._batches(progress, pieces)
        else:
            items = self._samples(progress, pieces)
        if not self._transforms:
            return feed.place(items)
        items = self._with_sample_ids(feed.transform(items), progress, worker, workers)
        return feed.place(items)

    @property
    def yields_batches(self) -> bool:
        """Whether Batches are yielded, not samples."""
        return self._settings.yields_batches

    def samples_per_item(
        self, progress: EpochProgress, batch_size: int | None = None, workers: int = 0
    ) -> int:
        """Return the number of samples of an item, or of a batch that a DataLoader makes of items.

        For `npstream.torch` only.

        Parameters
        ----------
        progress : EpochProgress
            The progress in the current epoch.
        batch_size : int, optional
            Items in a batch of the DataLoader; by default it makes no batches.
        workers : int, default: 0
            Number of the DataLoader's workers.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If the DataLoader has several workers and its batches have another size than the
            batches that the workers take in turn.
        """
        rows = (progress.part.batch_size if self.yields_batches else 1) * (batch_size or 1)
        if workers > 1 and rows != progress.part.batch_size:
            raise ValueError(
                f"DataLoader(batch_size={batch_size}) makes batches of {quantity(rows, 'sample')}, "
                f"and its {quantity(workers, 'worker')} read "
                f"{quantity(progress.part.batch_size, 'sample')} in turn: both numbers must be the "
                "same; or use one worker"
            )
        return rows

    def samples_of(self, steps: int | Iterable[int], *, epoch: int | None = None) -> Provenance:
        """Return the ids and locations of the samples in steps of this run, on all ranks.

        No data is read.

        Parameters
        ----------
        steps : int or iterable of int
            Numbers of steps (global batches) in the epoch, counted from 0. For a step that was not
            read yet, the result has the samples that this iteration will read.
        epoch : int, optional
            Number of the epoch. By default the epoch of the current loop; outside of loops, that of
            the next loop.

        Returns
        -------
        Provenance

        Raises
        ------
        ValueError
            If the step is before the first step that the loaded state knows.
        IndexError
            If the epoch has no such step, or a number is negative.
        TypeError
            If a number is not an integer.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=2, shuffle=True)
        >>> [batch.ids.tolist() for batch in batches]
        [[2, 0], [1, 2]]
        >>> batches.samples_of(0, epoch=0).ids
        array([2, 0])
        """
        from npstream.iteration.provenance import step_numbers, trace_steps

        numbers = step_numbers(steps)
        epoch = self.epoch if epoch is None else integer("epoch", epoch, 0)
        history, cursor = self._history, self._next_cursor()
        if not history.ranges:
            history = StepHistory([self._step_range(self._part(cursor.epoch_start))])
        return trace_steps(self._epochs, self._source, history, cursor.context, epoch, numbers)

    def __getstate__(self) -> dict[str, Any]:
        if is_spawning():
            self._check_reader(has_workers=True)  # workers cannot see Accelerate's loader
            for name, transform in self._transforms:
                require_importable(name, transform)
            for options in self._decoding.values():
                require_importable("transform= of decode", options.transform)
        self._resolve()
        own = {"_start_stats": None, "_evictions": None, "_counts": None, "_pools": None}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._counts, self._pools = PrefetchCounts(), defaultdict(BufferPool)
        self._start_stats = os.getpid(), self._source.read_stats() if self._source.remotes else None

    @property
    def stats(self) -> ReadStats:
        """Statistics of this process's reads from object stores since this object was made.

        Other reads of the same dataset count as well. Workers of a DataLoader are other processes,
        whose reads do not count.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=2)
        >>> [len(batch) for batch in batches], batches.stats.requests
        ([2, 2], 0)
        """
        process, start = self._start_stats
        stats = self._source.read_stats()
        if start is not None and process == os.getpid():
            stats = stats - start
        counts = self._counts
        return replace(
            stats,
            hits=counts.hits,
            misses=counts.misses,
            loop_wait_seconds=counts.wait_seconds,
            batches_ready=counts.ready,
            bytes_ahead=counts.nbytes,
        )

    @property
    def failures(self) -> list[FailedSample]:
        """The samples that could not be read so far, with ``on_error="skip"`` or ``"replace"``.

        They include those of this rank's DataLoader workers, but not of other ranks.

        Examples
        --------
        >>> batches = getfixture("example").iter(0, 1, batch_size=2, on_error="skip")
        >>> [batch.n for batch in batches], batches.failures
        ([2, 2], [])
        """
        return [] if self._failures is None else self._failures.list()

    def __repr__(self) -> str:
        rank, world = (self._given_ranks or self._detected_ranks or ("?", "?"))[:2]
        settings = f"rank {rank} of {world}, {self._item_text()}, last={self._settings.last!r}"
        return "<Iteration: " + ", ".join([settings, *filter(None, [self._epoch_text()])]) + ">"

    def _item_text(self) -> str:
        size, suffix = self._settings.batch_size, ""
        if size is None:
            size, suffix = self._settings.global_batch_size, " of all ranks"
        return f"batches of {size}{suffix}" if self.yields_batches else "samples"

    def _epoch_text(self) -> str:
        """Return the epoch and its length, or "" if the ranks are not known yet."""
        if self._given_ranks is None and self._detected_ranks is None:
            return ""  # detecting the ranks now would fix them
        try:
            items = quantity(len(self), "batch" if self.yields_batches else "sample")
            return f"epoch {self.epoch} of {items}"
        except (RuntimeError, ValueError):  # the settings fit only together with a state
            return ""

    def _repr_html_(self) -> str:
        from npstream.rendering.html import key_value_table
        from npstream.rendering.text import truncate

        rank, world = (self._given_ranks or self._detected_ranks or ("?", "?"))[:2]
        pairs = [
            ("rank", f"{rank} of {world}"),
            ("yields", self._item_text()),
            ("last", repr(self._settings.last)),
            ("shuffle", short_repr(self._settings.shuffle)),
            ("epoch", self._epoch_text().removeprefix("epoch ") or "not known before the ranks"),
            ("columns", truncate(", ".join(self._names), 300)),
        ]
        return key_value_table(f"Iteration over {quantity(self._selection.size, 'sample')}", pairs)

    def _check_reader(self, has_workers: bool = False) -> int:
        """Raise if Accelerate would divide this rank's data again, or skip wrong batches.

        Returns
        -------
        int
            Items that Accelerate will drop although the loaded state is already past them. They
            are not read.
        """
        if "accelerate" not in sys.modules:
            return 0
        mode: str | None
        dropped: int
        mode, dropped = import_npstream_torch().accelerate_mode(self)
        if mode == "shards" and (world := self._resolve().world) > 1:
            raise RuntimeError(
                f"this is the part of one of {quantity(world, 'rank')}, and Accelerate would "
                "divide it among them again: prepare an npstream.torch.DataLoader, which "
                "Accelerate does not change; in a Hugging Face Trainer, let get_train_dataloader "
                "return one"
            )
        if mode != "skips":
            return 0
        cursor = self._next_cursor()
        if self._counter.pinned and cursor == cursor.epoch_start:
            return 0  # set_epoch chose the epoch: its batches are read, and Accelerate drops them
        if cursor == cursor.epoch_start:
            raise RuntimeError(
                "Accelerate would skip batches of the next epoch, and does not know which epoch "
                "the checkpoint is of: load the checkpoint's state into the "
                "npstream.torch.DataLoader by load_state_dict, so that skipped batches are not "
                "read; or call its set_epoch before"
            )
        if has_workers or this_worker()[1]:
            raise RuntimeError(
                "Accelerate skips batches with its own DataLoader, whose workers have no exact "
                "state: give the npstream.torch.DataLoader num_workers=0, which prefetches in its "
                "own process; or skip nothing (ignore_data_skip=True in a Hugging Face "
                "Trainer, if its gradient accumulation divides the batches of an epoch)"
            )
        part = self._part(cursor)
        done = to_unskipped_position(cursor.position, cursor.gaps)
        skipped = dropped * self.samples_per_item(EpochProgress(cursor, part, 0)) * part.world
        if done != skipped:
            raise RuntimeError(
                f"Accelerate would skip {quantity(skipped, 'sample')}, and the loaded state has "
                f"read {quantity(done, 'sample')} of its epoch: load the state of the checkpoint "
                "that Accelerate resumes from"
            )
        return dropped

    def _former_epochs(self, state: Mapping[str, Any], error: ValueError) -> AnyEpochs | None:
        former = former_source(self._source, self._selection, state)
        if former is None:
            if hint := former_version_hint(self._source, state):
                raise ValueError(f"{error}{hint}") from error
            return None
        samples = former.index.samples
        if self._is_first_warning(FORMER_VERSION):
            warnings.warn(
                f"the state is of version {former.index.fingerprint()!r} of {former.index.where}, "
                f"with {quantity(samples, 'sample')}: the iteration continues with these samples, "
                "without those that were appended since",
                stacklevel=5,
            )
        self._rowwise = None
        settings = self._settings.for_first(samples)
        return epochs_for(former, Selection.all(samples), settings)

    def _batches(self, progress: EpochProgress, pieces: Iterator[Piece]) -> Iterator[Any]:
        plan = self._source.plan(self._names)
        encodings = {name: e for name, e in plan.encodings.items() if name not in self._decoding}
        reads = self._reads(progress, pieces)
        if self._decoding:
            reads = self._decoded(progress, reads)
        for (ids, repeated, _), _, columns in reads:
            yield Batch(columns, ids, repeated, encodings=encodings)

    def _reads(self, progress: EpochProgress, pieces: Iterator[Piece]) -> Iterator[_Read]:
        """Yield the columns of pieces."""
        ahead, guard = self._read_ahead(progress, pieces), self._guard(progress)
        if guard is None:
            return starmap(self._read, ahead)
        return (guard.read(self._read, piece, lookup) for piece, lookup in ahead)

    def _read(self, piece: Piece, lookup: Lookup) -> _Read:
        """Read the columns of a piece."""
        return piece, lookup, self._source.columns(self._source.plan(self._names), lookup, {})

    def _guard(self, progress: EpochProgress) -> SampleGuard | None:
        """Return what leaves out or replaces samples that fail; None if their errors are raised."""
        if self._failures is None:
            return None
        settings = self._settings
        return SampleGuard(
            settings.on_error == "replace", settings.seed, progress.cursor.epoch, progress.part,
            self._source.look_up, self._failures,
        )  # fmt: skip

    def _read_ahead(
        self, progress: EpochProgress, pieces: Iterator[Piece]
    ) -> Iterator[tuple[Piece, Lookup]]:
        ahead, orders = self._begin_reading(progress, pieces)
        try:
            for piece, lookup in ahead:
                self.require_newest(progress)
                yield piece, lookup
                advance_orders(orders, piece)
        finally:
            for order in orders:
                order.end()

    def _decoded(self, progress: EpochProgress, reads: Iterator[_Read]) -> Iterator[_Read]:
        """Yield reads with decoded images; the images of the next read are decoded meanwhile."""
        guard = self._guard(progress)
        for read, decoded in self._decode_ahead(progress, reads):
            if guard is not None and decoded.error is not None:
                guarded = GuardedPiece(guard, read[0])
                guarded.mend(decoded.errors())
                read, decoded = self._decode_guarded(progress, guarded, self._read)
            piece, lookup, columns = read
            yield piece, lookup, {**columns, **decoded.arrays()}

    def _decode_guarded(
        self,
        progress: EpochProgress,
        guarded: GuardedPiece,
        read: Callable[[Piece, Lookup], _Read],
    ) -> tuple[_Read, DecodedColumns]:
        """Read and decode a piece, without the samples that fail or with their replacements."""
        from npstream.reading.images.columns import decode_stacks

        decoder = self._decoder(progress)
        with closing(decoder):
            while True:
                result = guarded.read(read)
                stacks = self._stacks(decoder, result)
                decoded = decode_stacks(stacks, decoding_threads(self._settings.ranks_per_node))
                if decoded.error is None:
                    return result, decoded
                guarded.mend(decoded.errors())

    def _decoder(self, progress: EpochProgress) -> ColumnDecoder:
        from npstream.reading.images.columns import ColumnDecoder

        fields, seed = self._source.plan(self._names).fields, self._settings.seed
        return ColumnDecoder(self._source, fields, self._decoding, seed, progress.cursor.epoch)

    def _stacks(self, decoder: ColumnDecoder, read: _Read) -> dict[str, ImageStack]:
        """Return an image stack for each column to decode."""
        (_, _, positions), lookup, columns = read
        stacks = decoder.stacks(columns, lookup, positions, separate=not self.yields_batches)
        if self._failures is not None:
            for stack in stacks.values():
                stack.decode_past_errors()
        return stacks

    def _decode_ahead(
        self, progress: EpochProgress, reads: Iterator[_Read]
    ) -> Iterator[tuple[_Read, DecodedColumns]]:
        from npstream.reading.images.columns import decode_ahead

        decoder = self._decoder(progress)
        stacks_of = partial(self._stacks, decoder)
        threads = decoding_threads(self._settings.ranks_per_node)
        with closing(decoder):
            for read, decoded in decode_ahead(reads, stacks_of, threads):
                self.require_newest(progress)
                yield read, decoded

    def _samples(self, progress: EpochProgress, pieces: Iterator[Piece]) -> Iterator[Any]:
        if self._decoding:
            yield from self._decoded_samples(progress, pieces)
            return
        for _, lookup in self._read_ahead(progress, pieces):
            yield from self._source.samples(self._names, lookup)

    def _decoded_samples(self, progress: EpochProgress, pieces: Iterator[Piece]) -> Iterator[Any]:
        source, plan = self._source, self._source.plan(self._names)
        reads = starmap(self._read_undecoded, self._read_ahead(progress, pieces))
        for ((ids, *_), lookup, columns), decoded in self._decode_ahead(progress, reads):
            values = {**columns, **decoded.lists()}
            if decoded.error is not None:  # yield the rows before the error first
                values = {name: column[: decoded.rows] for name, column in values.items()}
                lookup = source.look_up(ids[: decoded.rows])
            yield from source.make_samples(plan, values, lookup)
            if decoded.error is not None:
                raise decoded.error

    def _read_undecoded(self, piece: Piece, lookup: Lookup) -> _Read:
        """Read the columns of a piece: stored images to decode, and other values of samples."""
        source = self._source
        images = source.plan(tuple(self._decoding))
        others = source.plan(tuple(name for name in self._names if name not in self._decoding))
        values = source.value_lists(others, lookup) if others.fields else {}
        return piece, lookup, {**values, **source.columns(images, lookup, {})}

    def _guarded_samples(self, progress: EpochProgress, pieces: Iterator[Piece]) -> Iterator[Any]:
        """Yield transformed samples; those that fail are replaced."""
        guard = self._guard(progress)
        assert guard is not None
        transform = partial(apply_transforms, self._transforms)
        for piece, _ in self._read_ahead(progress, pieces):
            guarded = GuardedPiece(guard, piece)
            yield from guarded.transformed(partial(self._make_samples, progress), transform)

    def _make_samples(self, progress: EpochProgress, guarded: GuardedPiece) -> list[Any]:
        """Read and decode the samples of a piece."""
        source, plan = self._source, self._source.plan(self._names)
        if not self._decoding:
            return guarded.read(lambda _, lookup: [*source.samples(self._names, lookup)])
        read, decoded = self._decode_guarded(progress, guarded, self._read_undecoded)
        _, lookup, columns = read
        return [*source.make_samples(plan, {**columns, **decoded.lists()}, lookup)]

    def _pieces(
        self, progress: EpochProgress, batches: range, rows_done: int, group: int
    ) -> Iterator[Piece]:
        """Yield the samples of batches in pieces; skip the first `rows_done` samples.

        A piece has up to `group` batches. The first pieces are smaller, so that they are read soon.
        The pieces of one look-up have about the same size.
        """
        part = progress.part
        plan = self._source.plan(self._names)
        rows = min(LOOKUP_SAMPLES, self._source.estimate_read_rows(_READ_BYTES, plan))
        unit = 1
        if self.yields_batches:
            rows = unit = part.batch_size
        max_rows = rows * group
        start = 0
        while start < len(batches):
            stop = start + part.lookup_batches(batches.step, start)
            ids, repeated, positions = part.lookup_with_positions(batches[start:stop])
            start, row = stop, rows_done
            while row < len(ids):
                span = slice(row, row + _even_part(len(ids) - row, rows, unit))
                yield ids[span], repeated[span], positions[span]
                row, rows = span.stop, min(2 * rows, max_rows)
            rows_done = 0


def _even_part(rows: int, max_rows: int, unit: int) -> int:
    """Return the rows of the first part, if `rows` rows are divided into few parts of similar size.

    A part has a multiple of `unit` rows, and at most `max_rows`.

    >>> _even_part(32, max_rows=30, unit=2)
    16
    """
    units = -(-rows // unit)
    parts = -(-units // (max_rows // unit))
    return -(-units // parts) * unit
